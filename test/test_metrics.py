# SPDX-License-Identifier: Apache-2.0
"""Metrics and consistency against plain loops and analytic cases."""

import math

import numpy as np
import pytest

from daflow_ros.flow import metrics
from daflow_ros.flow.consistency import forward_backward_error, forward_backward_mask, warp


@pytest.fixture
def pair():
    rng = np.random.default_rng(3)
    gt = rng.normal(0, 20, (19, 27, 2)).astype(np.float32)
    flow = gt + rng.standard_t(2, gt.shape).astype(np.float32) * 3
    return flow, gt, rng.random((19, 27)) > 0.3


def test_against_a_plain_loop(pair):
    flow, gt, valid = pair
    errors, outliers, kitti = [], [], []
    for y in range(19):
        for x in range(27):
            if not valid[y, x]:
                continue
            du, dv = flow[y, x] - gt[y, x]
            error = math.sqrt(float(du) ** 2 + float(dv) ** 2)
            errors.append(error)
            outliers.append(error > 3)
            length = math.sqrt(float(gt[y, x, 0]) ** 2 + float(gt[y, x, 1]) ** 2)
            kitti.append(error > 3 and error > 0.05 * length)
    assert metrics.epe(flow, gt, valid) == pytest.approx(sum(errors) / len(errors), rel=1e-5)
    assert metrics.outlier_rate(flow, gt, 3, valid) == pytest.approx(
        100 * sum(outliers) / len(outliers)
    )
    assert metrics.fl_all(flow, gt, valid) == pytest.approx(100 * sum(kitti) / len(kitti))
    assert sum(kitti) < sum(outliers), 'the case must tell the two apart'


def test_missing_predictions_are_scored_as_zero_flow(pair):
    flow, gt, valid = pair
    flow = flow.copy()
    flow[:10] = np.nan
    zeroed = np.where(np.isfinite(flow), flow, 0)
    assert metrics.epe(flow, gt, valid) == metrics.epe(zeroed, gt, valid)
    gt = gt.copy()
    gt[valid] = np.nan
    assert math.isnan(metrics.epe(zeroed, gt, valid))
    with pytest.raises(ValueError, match='differ'):
        metrics.epe(flow[:5], gt)


def test_sparsification_of_a_uniform_error():
    # Errors 1..n: removing the share f of the largest leaves a mean of n (1 - f) / 2, so the
    # area of oracle against a flat curve is that of 1 - (1 - f) = f, from 0 to 0.95.
    n = 20000
    error = np.arange(1, n + 1, dtype=np.float64)
    fraction, curve, oracle = metrics.sparsification(error, -error)
    assert np.allclose(curve, oracle) and metrics.ause(error, -error) == pytest.approx(0)
    assert np.allclose(oracle, n * (1 - fraction) / 2, rtol=1e-3)
    shuffled = np.random.default_rng(0).permutation(n).astype(float)
    assert metrics.ause(error, shuffled) == pytest.approx(0.95**2 / 2, rel=0.02)
    # The worst ranking keeps the largest: a mean of n (1 + f) / 2.
    assert metrics.ause(error, error) == pytest.approx(0.95**2, rel=0.02)


def test_confidence_takes_only_the_order(pair):
    flow, gt, valid = pair
    error = metrics.endpoint_error(flow, gt)
    confidence = np.random.default_rng(1).random(error.shape)
    assert metrics.ause(error, confidence, valid) == metrics.ause(error, confidence**3, valid)
    assert metrics.ause(np.zeros((4, 4)), confidence[:4, :4]) == 0
    assert math.isnan(metrics.ause(error, confidence, np.zeros_like(valid)))


def rotation(height, width, angle, sign):
    y, x = np.mgrid[:height, :width] - np.array([height / 2, width / 2])[:, None, None]
    c, s = math.cos(sign * angle), math.sin(sign * angle)
    return np.stack((c * x - s * y - x, s * x + c * y - y), -1).astype(np.float32)


def test_rotation_there_and_back_is_consistent():
    forward, backward = rotation(60, 80, 0.1, 1), rotation(60, 80, 0.1, -1)
    error = forward_backward_error(forward, backward)
    inside = np.isfinite(error)
    assert 0.7 < inside.mean() < 1 and np.nanmax(error) < 1e-4
    assert np.array_equal(forward_backward_mask(forward, backward), inside)
    # Not negated: there and there again is twice as far.
    wrong = forward_backward_error(forward, -forward.copy() * 0)
    assert np.allclose(wrong[inside], np.hypot(*np.moveaxis(forward, -1, 0))[inside], atol=1e-4)


def test_warp_of_a_plane():
    y, x = np.mgrid[:20, :30].astype(np.float32)
    flow = np.stack((2 * np.sin(y), np.cos(x)), -1).astype(np.float32)
    warped = warp(2 * x - y, flow)
    known = np.isfinite(warped)
    assert np.allclose(warped[known], (2 * (x + flow[..., 0]) - (y + flow[..., 1]))[known],
                       atol=1e-3)
    assert not known[0, 0] or flow[0, 0, 1] >= 0


def test_occluder_breaks_consistency():
    forward = np.zeros((20, 40, 2), np.float32)
    backward = np.zeros((20, 40, 2), np.float32)
    forward[5:15, 5:15, 0] = 8
    backward[5:15, 13:23, 0] = -8
    mask = forward_backward_mask(forward, backward)
    # Background that the square comes to lie on does not see itself in the second image.
    assert not mask[5:15, 15:23].any() and mask[5:15, 5:15].all() and mask[:5].all()
