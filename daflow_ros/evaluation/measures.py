# SPDX-License-Identifier: Apache-2.0
"""What is measured of one predicted flow where the true one is known."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from daflow_ros.datasets.benchmarks import GroundTruth
from daflow_ros.flow.metrics import ause, sparsification, valid_error

Array = npt.NDArray[np.floating]

#: True speed in px: Sintel's classes.
SPEEDS = {'s0-10': (0.0, 10.0), 's10-40': (10.0, 40.0), 's40+': (40.0, np.inf)}
#: Distance in px to the nearest motion boundary: Sintel's, the last one open.
DISTANCES = {'d0-10': (0.0, 10.0), 'd10-60': (10.0, 60.0), 'd60+': (60.0, np.inf)}
SPLITS = (*SPEEDS, *DISTANCES, 'visible', 'occluded')

#: Neighbours whose true motion differs by more than this (px) lie on a motion boundary.
BOUNDARY_STEP = 1.0
SPARSIFICATION_STEPS = 20


def boundary_distance(
    flow: npt.NDArray[np.float32], valid: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float32]:
    """Distance of each pixel to the nearest motion boundary, (H, W) px; inf where there is none.

    A boundary runs between two neighbours with known motion that differs by more than
    `BOUNDARY_STEP`; both belong to it.
    """
    boundary = np.zeros(valid.shape, bool)
    for axis in (0, 1):
        first = [slice(None), slice(None)]
        second = [slice(None), slice(None)]
        first[axis], second[axis] = slice(None, -1), slice(1, None)
        a, b = tuple(first), tuple(second)
        step = flow[a] - flow[b]
        with np.errstate(invalid='ignore'):
            differs = (np.hypot(step[..., 0], step[..., 1]) > BOUNDARY_STEP) & valid[a] & valid[b]
        boundary[a] |= differs
        boundary[b] |= differs
    if not boundary.any():
        return np.full(valid.shape, np.inf, np.float32)
    distance = cv2.distanceTransform((~boundary).astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(distance, dtype=np.float32)


def region_masks(truth: GroundTruth) -> dict[str, npt.NDArray[np.bool_]]:
    """Masks (H, W) of `SPLITS`; occluded and visible only where the benchmark has the mask."""
    speed = np.hypot(truth.flow[..., 0], truth.flow[..., 1])
    distance = boundary_distance(truth.flow, truth.valid)
    with np.errstate(invalid='ignore'):
        masks = {name: (speed >= low) & (speed < high) for name, (low, high) in SPEEDS.items()}
        masks |= {
            name: (distance >= low) & ((distance < high) | np.isinf(high))
            for name, (low, high) in DISTANCES.items()
        }
    if truth.occlusion is not None:
        masks |= {'visible': ~truth.occlusion, 'occluded': truth.occlusion}
    return masks


def accuracy(
    flow: Array, truth: GroundTruth, masks: dict[str, npt.NDArray[np.bool_]]
) -> dict[str, Any]:
    """EPE, outliers, Fl-all and the splits of one pair.

    Returns:
        `epe` px, `outlier1`, `outlier3`, `outlier5`, `fl_all` in percent; `splits`: for each
        region the sum of endpoint errors and the number of pixels, for means over all pairs.

    """
    error = valid_error(flow, truth.flow, truth.valid).astype(np.float64)
    if not error.size:
        return {}
    speed = np.hypot(truth.flow[..., 0], truth.flow[..., 1])[truth.valid]
    measured: dict[str, Any] = {'epe': float(error.mean())}
    for threshold in (1, 3, 5):
        measured[f'outlier{threshold}'] = 100 * float((error > threshold).mean())
    measured['fl_all'] = 100 * float(((error > 3) & (error > 0.05 * speed)).mean())
    measured['splits'] = {
        name: [float(error[inside].sum()), int(inside.sum())]
        for name, inside in ((name, mask[truth.valid]) for name, mask in masks.items())
        if inside.any()
    }
    return measured


def confidence_quality(flow: Array, confidence: Array, truth: GroundTruth) -> dict[str, Any]:
    """AUSE, and the sparsification curve and oracle divided by the mean error."""
    error = valid_error(flow, truth.flow, truth.valid)
    trust = confidence[truth.valid]
    if not error.size:
        return {}
    _, curve, oracle = sparsification(error, trust, steps=SPARSIFICATION_STEPS)
    scale = curve[0] or 1.0
    return {
        'ause': ause(error, trust, steps=SPARSIFICATION_STEPS),
        'sparsification': [float(value) for value in curve / scale],
        'oracle': [float(value) for value in oracle / scale],
    }
