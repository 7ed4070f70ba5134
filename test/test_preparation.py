# SPDX-License-Identifier: Apache-2.0
"""Mending of impulses and of narrow ranges, against images whose clean version is known."""

import cv2
import numpy as np
import pytest

from daflow_ros import load_estimator
from daflow_ros.flow.preparation import (
    detail_agreement,
    open_by_reconstruction,
    stretch_range,
    without_impulses,
)


def picture(height=96, width=128, seed=0):
    """Smooth texture, uint8 RGB, from 30 to 220."""
    noise = np.random.default_rng(seed).standard_normal((height, width, 3)).astype(np.float32)
    return cv2.normalize(
        cv2.GaussianBlur(noise, (0, 0), 3), None, 30, 220, cv2.NORM_MINMAX
    ).astype(np.uint8)


def still(image):
    """No motion, as the only flow."""
    return np.zeros((1, *image.shape[:2], 2), np.float32)


def spoiled(image, share, seed=1):
    """Salt and pepper in a share of the pixels."""
    random = np.random.default_rng(seed)
    out = image.copy()
    hit = random.random(image.shape[:2]) < share
    out[hit] = random.choice([0, 255], (int(hit.sum()), 1))
    return out, hit


def test_impulses_go_and_the_rest_stays():
    image = picture()
    noisy, hit = spoiled(image, 0.05)
    mended = without_impulses(noisy)
    before = np.abs(noisy.astype(int) - image)[hit].mean()
    assert np.abs(mended.astype(int) - image)[hit].mean() < 0.15 * before
    assert (mended != noisy)[~hit].mean() < 0.001


def test_lines_and_noise_are_no_impulses():
    image = np.full((64, 64, 3), 60, np.uint8)
    image[20, 5:60] = 250  # one px wide
    image[5:60, 40] = 0
    kept = without_impulses(image)
    assert (kept != image).any(axis=-1).sum() <= 6  # the ends, and where the two cross
    random = np.random.default_rng(0)
    noisy = np.clip(picture() + random.normal(0, 20, (96, 128, 3)), 0, 255).astype(np.uint8)
    assert (without_impulses(noisy) != noisy).mean() < 0.01


def test_a_narrow_range_becomes_wide_the_same_in_all_frames():
    image = picture()
    pale = np.uint8(120 + 0.5 * image)
    first, second = stretch_range([pale, np.uint8(pale - 5)], still(pale))
    assert first.min() < 20 and first.max() > 235
    # One table for both: what differed by 5 differs by 5 times the gain, of 2 to 4.
    assert 10 <= np.median(first.astype(int) - second) <= 20


def test_gain_is_limited_and_a_full_range_left_alone():
    plain = np.full((32, 32, 3), 90, np.uint8)
    plain[::8] = plain[1::8] = 92
    out, _ = stretch_range([plain, plain], still(plain))
    assert out.max() - int(out.min()) == 8  # four times as far, about the middle
    assert 110 < out.mean() < 145
    full = picture()
    full[0, 0], full[0, 1] = 0, 255
    full[:8, :64], full[8:16, :64] = 0, 255
    assert stretch_range([full, full], still(full))[0] is full


def test_detail_that_does_not_come_again_is_not_raised():
    big = np.uint8(100 + 0.3 * picture(140, 180))
    pair = [np.ascontiguousarray(big[y : y + 128, x : x + 160]) for y, x in ((6, 9), (2, 3))]
    right = np.full((1, 128, 160, 2), (6, 4), np.float32)
    wrong = np.full((1, 128, 160, 2), (-9, 1), np.float32)
    assert detail_agreement(*pair, right) > 0.9 > 0.5 > detail_agreement(*pair, wrong)
    both = np.concatenate([wrong, right])
    assert detail_agreement(*pair, both) == detail_agreement(*pair, right)
    assert stretch_range(pair, both)[0].std() > 2 * pair[0].std()
    random = np.random.default_rng(0)
    noisy = [
        np.clip(frame + random.normal(0, 12, frame.shape), 0, 255).astype(np.uint8)
        for frame in pair
    ]
    assert stretch_range(noisy, both)[0] is noisy[0]


@pytest.mark.parametrize('size', [(1, 1), (1, 50), (2, 2), (3, 1)])
def test_the_smallest_images(size):
    image = np.full((*size, 3), 7, np.uint8)
    assert (without_impulses(image) == image).all()
    mended = without_impulses(image)
    assert stretch_range([mended, mended], still(image))[1].shape == image.shape


def test_flow_sees_through_impulses():
    big = picture(140, 180)
    first, second = (
        np.ascontiguousarray(big[y : y + 128, x : x + 160]) for y, x in ((6, 9), (3, 4))
    )
    inside = (slice(8, -8), slice(8, -8))
    noisy = spoiled(first, 0.1, 1)[0], spoiled(second, 0.1, 2)[0]
    flow = load_estimator('raft_tiny', 'cpu').estimate(*noisy).flow
    # 0.5 px with the impulses.
    assert np.linalg.norm(flow - [5, 3], axis=-1)[inside].mean() < 0.1


def test_reconstruction_keeps_at_every_level_what_hangs_together_with_what_the_opening_left():
    # Vincent 1993: of the parts brighter than a level, those that the opening left something of.
    grey = picture(60, 90, seed=5)[..., 0] // 8
    above = cv2.morphologyEx(grey, cv2.MORPH_OPEN, np.ones((1, 5), np.uint8))
    ball = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (15, 15))
    left = cv2.morphologyEx(above, cv2.MORPH_OPEN, ball)
    expected = np.zeros_like(grey)
    for level in range(1, 32):
        _, parts = cv2.connectedComponents(np.uint8(above >= level), connectivity=8)
        kept = np.unique(parts[(left >= level) & (above >= level)])
        expected[np.isin(parts, kept) & (above >= level)] = level
    assert (expected > left).mean() > 0.1  # something had been lost
    assert np.array_equal(open_by_reconstruction(grey, 15), expected)


def test_reconstruction_takes_flakes_and_streaks_and_leaves_the_shape_of_the_rest():
    scene = np.full((120, 160), 60, np.uint8)
    cv2.fillPoly(scene, [np.array([[20, 20], [80, 20], [20, 80]])], 150)  # sharp corners
    weather = scene.copy()
    cv2.circle(weather, (110, 90), 6, 230, -1)
    weather[10:70, 40:43] = 220  # falls across the triangle
    kept = open_by_reconstruction(scene, 19)
    # All but a few px where the streak leaves the slanting side.
    assert (weather != scene).sum() > 250
    assert (open_by_reconstruction(weather, 19) != kept).sum() < 10
    ball = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (19, 19))
    rounded = cv2.morphologyEx(scene, cv2.MORPH_OPEN, ball)
    assert (kept != scene).sum() < 0.2 * (rounded != scene).sum()
