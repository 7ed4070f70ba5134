# SPDX-License-Identifier: Apache-2.0
"""Coarse matching against shifts and scenes whose motion is known."""

import cv2
import numpy as np
import pytest

from daflow_ros import load_estimator
from daflow_ros.flow.coarse_matching import coarse_matches, large_motion
from daflow_ros.flow.hypotheses import dis_hypotheses


def picture(height, width, seed=0):
    """Texture of several scales, grey uint8."""
    random = np.random.default_rng(seed)
    total = np.zeros((height, width), np.float32)
    for sigma in (2, 5, 12):
        noise = random.standard_normal((height, width)).astype(np.float32)
        total += cv2.GaussianBlur(noise, (0, 0), sigma) * sigma
    return cv2.normalize(total, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def panned(dx, dy, height=192, width=256):
    """Two views of one picture, the second one's content moved by (dx, dy) px."""
    big = picture(height + abs(dy), width + abs(dx))
    x, y = max(dx, 0), max(dy, 0)
    first = big[y : y + height, x : x + width]
    second = big[y - dy : y - dy + height, x - dx : x - dx + width]
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


@pytest.mark.parametrize('shift', [(60, 0), (-50, 30), (20, -52)])
def test_a_pan_is_found_there_and_back(shift):
    first, second = panned(*shift)
    forward, backward, found, returned = coarse_matches(first, second)
    cell = 256 / 40
    assert found.mean() > 0.5 and returned.mean() > 0.5
    assert (np.abs(forward[found] - shift).max(axis=-1) <= cell).mean() > 0.9
    assert (np.abs(backward[returned] + shift).max(axis=-1) <= cell).mean() > 0.9
    starts = large_motion(first, second)
    assert starts is not None
    # What leaves the picture goes with the rest.
    assert (np.abs(starts[0] - shift).max(axis=-1) <= 1.5 * cell).mean() > 0.85
    assert (np.abs(starts[1] + shift).max(axis=-1) <= 1.5 * cell).mean() > 0.85


def test_what_moves_apart_is_told_apart():
    first, second = panned(-60, 0)
    thing = picture(80, 80, seed=1)
    first[56:136, 90:170] = thing  # held by the camera
    second[56:136, 90:170] = thing
    starts = large_motion(first, second)
    assert starts is not None
    flow = cv2.resize(starts[0], (256, 192), interpolation=cv2.INTER_NEAREST)
    assert np.abs(np.median(flow[80:112, 114:146], axis=(0, 1))).max() <= 7
    assert np.abs(np.median(flow[:, 190:], axis=(0, 1)) - [-60, 0]).max() <= 7


@pytest.mark.parametrize('shift', [(0, 0), (7, -5)])
def test_small_motion_is_left_to_local_methods(shift):
    assert large_motion(*panned(*shift)) is None


@pytest.mark.parametrize('size', [(32, 32), (32, 500), (500, 32), (45, 61)])
def test_sizes_and_plain_pictures(size):
    plain = np.full(size, 128, np.uint8)
    assert large_motion(plain, plain) is None
    forward, backward, found, returned = coarse_matches(plain, plain)
    assert forward.shape == backward.shape and found.shape == returned.shape
    assert not forward.any() and found.all()  # of equals the least motion


def test_hypotheses_and_flow_of_a_pan_by_a_quarter_of_the_width():
    first, second = (cv2.cvtColor(x, cv2.COLOR_GRAY2RGB) for x in panned(-64, 24))
    inside = (slice(0, 192 - 24), slice(64, 256))
    flows = dis_hypotheses(first, second).flows
    errors = np.linalg.norm(flows - [-64, 24], axis=-1)
    assert np.median(errors[0][inside]) < 0.5  # DIS from no motion: 71 px
    flow = load_estimator('raft_tiny', 'cpu').estimate(first, second).flow
    assert np.linalg.norm(flow - [-64, 24], axis=-1)[inside].mean() < 1
