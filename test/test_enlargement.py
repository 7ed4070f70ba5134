# SPDX-License-Identifier: Apache-2.0
"""Large pixels against OpenCV's and torch's own enlargement of the same small image."""

import cv2
import numpy as np
import pytest
import torch

from daflow_ros.flow.enlargement import without_large_pixels


def small_image(height, width):
    noise = np.random.default_rng(0).uniform(0, 255, (height, width, 3)).astype(np.float32)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, 32).astype(np.uint8)


@pytest.mark.parametrize('size', [(80, 60), (97, 41), (61, 71), (75, 50)])
@pytest.mark.parametrize('by', ['opencv', 'torch'])
def test_copied_pixels_become_interpolated_ones(size, by):
    width, height = 150, 120
    small = small_image(*size[::-1])
    if by == 'opencv':
        large = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    else:
        planes = torch.from_numpy(small).permute(2, 0, 1)[None]
        planes = torch.nn.functional.interpolate(planes, (height, width), mode='nearest-exact')
        large = planes[0].permute(1, 2, 0).contiguous().numpy()
    expected = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR).astype(int)
    found = without_large_pixels(large)
    assert found is not large and found.shape == large.shape and found.dtype == np.uint8
    assert np.abs(found - expected).max() <= 1


def test_what_was_not_enlarged_stays():
    image = small_image(60, 80)
    assert without_large_pixels(image) is image
    # Rows repeat, columns do not.
    bars = np.repeat(image[:1], 60, axis=0)
    assert without_large_pixels(bars) is bars
    # One pixel more is a difference that no copy has.
    large = np.repeat(np.repeat(image, 3, 0), 3, 1)
    large[100, 100] ^= 64
    assert without_large_pixels(large) is large


@pytest.mark.parametrize('shape', [(1, 1, 3), (1, 40, 3), (33, 2, 3), (64, 64, 3)])
def test_plain_and_tiny_images_stay_as_they_look(shape):
    plain = np.full(shape, 77, np.uint8)
    assert np.array_equal(without_large_pixels(plain), plain)
