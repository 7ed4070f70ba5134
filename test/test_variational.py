# SPDX-License-Identifier: Apache-2.0
"""Variational refinement of a given flow, on pairs whose flow is known."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from daflow_ros.flow.variational import refine_variationally


def pair(shift: tuple[float, float], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A smooth random texture and itself, moved by ``shift`` px."""
    rng = np.random.default_rng(3)
    texture = cv2.GaussianBlur(rng.uniform(0, 1, (*size, 3)), (0, 0), 2.0)
    texture = (texture - texture.min()) / np.ptp(texture) * 255
    matrix = np.float32([[1, 0, shift[0]], [0, 1, shift[1]]])
    moved = cv2.warpAffine(texture, matrix, size[::-1], borderMode=cv2.BORDER_REFLECT)
    return texture.round().astype(np.uint8), moved.round().astype(np.uint8)


def test_a_flow_that_is_off_is_mended_and_a_true_one_stays() -> None:
    """A shift by (3.5, -2.25) px, given as (3, -2) px, as it is, and both with noise of 0.1 px."""
    true = np.float32([3.5, -2.25])
    first, second = pair((3.5, -2.25), (96, 128))
    noise = np.random.default_rng(1).normal(0, 0.1, (96, 128, 2))
    for start, limit in ((np.float32([3, -2]), 0.3), (true, 0.03)):
        given = (start + noise).astype(np.float32)
        kept = given.copy()
        found = refine_variationally(given, first, second)
        assert np.array_equal(given, kept) and found.dtype == np.float32
        inside = found[8:-8, 8:-8]
        assert np.linalg.norm(inside - true, axis=-1).mean() < limit
        assert inside.std(axis=(0, 1)).max() < 0.03


@pytest.mark.parametrize('size', [(1, 1), (1, 7), (5, 3), (33, 47)])
def test_any_size_and_plain_images_give_a_finite_flow(size: tuple[int, int]) -> None:
    """Plain images keep a constant flow, also one that leads far out of them."""
    image = np.full((*size, 3), 128, np.uint8)
    for value in (0.0, 2.5, -900.0):
        given = np.full((*size, 2), value, np.float32)
        found = refine_variationally(given, image, image)
        assert found.shape == given.shape and np.isfinite(found).all()
        np.testing.assert_allclose(found, given, atol=1e-2)
