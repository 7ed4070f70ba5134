# SPDX-License-Identifier: Apache-2.0
"""Errors of flow against ground truth, and how well a confidence ranks them.

Flow is (H, W, 2) in pixels; `valid` is (H, W) bool, pixels with ground truth. A prediction that
is not finite at a valid pixel is not left out of the means: `on_missing` decides (see `epe`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Mask = npt.NDArray[np.bool_]
#: Area under a curve. NumPy 1.26, Ubuntu 24.04's, has it under its old name.
trapezoid = getattr(np, 'trapezoid' if hasattr(np, 'trapezoid') else 'trapz')


def endpoint_error(flow: Array, gt: Array) -> npt.NDArray[np.float32]:
    """Euclidean distance of the vectors in px, (H, W); NaN where either is not finite."""
    if flow.shape != gt.shape or flow.ndim != 3 or flow.shape[2] != 2:
        raise ValueError(f'flow {flow.shape} and ground truth {gt.shape} differ in shape')
    difference = flow.astype(np.float32) - gt.astype(np.float32)
    return np.hypot(difference[..., 0], difference[..., 1])


def valid_error(flow: Array, gt: Array, valid: Mask | None = None) -> npt.NDArray[np.float32]:
    """Endpoint errors of the pixels with ground truth, (N,) px.

    Where the prediction is NaN (a model that declares pixels invalid) zero flow is scored
    instead, so that nobody gains by leaving the hard pixels out.
    """
    known = np.isfinite(gt).all(axis=-1)
    if valid is not None:
        if valid.shape != known.shape:
            raise ValueError(f'mask {valid.shape} does not fit flow {gt.shape}')
        known &= valid
    prediction = np.where(np.isfinite(flow), flow, 0)
    return endpoint_error(prediction, gt)[known]


def _mean(values: npt.NDArray[np.floating] | Mask) -> float:
    return float(np.mean(values, dtype=np.float64)) if values.size else float('nan')


def epe(flow: Array, gt: Array, valid: Mask | None = None) -> float:
    """Mean endpoint error over the valid pixels in px; NaN when there are none."""
    return _mean(valid_error(flow, gt, valid))


def outlier_rate(flow: Array, gt: Array, threshold: float, valid: Mask | None = None) -> float:
    """Percentage of the valid pixels whose endpoint error is above `threshold` px."""
    return 100 * _mean(valid_error(flow, gt, valid) > threshold)


def fl_all(flow: Array, gt: Array, valid: Mask | None = None) -> float:
    """KITTI's Fl-all: percentage with an error above 3 px *and* above 5 % of the true length."""
    known = np.isfinite(gt).all(axis=-1)
    if valid is not None:
        known &= valid
    error = valid_error(flow, gt, valid)
    length = np.hypot(gt[..., 0], gt[..., 1])[known]
    return 100 * _mean((error > 3) & (error > 0.05 * length))


def sparsification(
    error: Array, confidence: Array, valid: Mask | None = None, steps: int = 20
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Mean error of what is left when the least confident pixels are removed.

    Args:
        error: (H, W) or (N,) px.
        confidence: same shape, high is good; only the order matters. Ties keep their place.
        valid: same shape, or None for all.
        steps: number of fractions removed: 0, 1/steps, ... (steps - 1)/steps.

    Returns:
        `fraction` removed, (steps,); `curve`, the mean error in px of the rest; `oracle`, the
        same when the largest errors are removed first (Ilg et al. 2018).

    """
    if error.shape != confidence.shape:
        raise ValueError(f'error {error.shape} and confidence {confidence.shape} differ')
    keep = np.isfinite(error)
    if valid is not None:
        keep &= valid
    errors = error[keep].astype(np.float64)
    trust = np.nan_to_num(confidence[keep].astype(np.float64), nan=-np.inf)
    fraction = np.arange(steps) / steps
    if not errors.size:
        nothing = np.full(steps, np.nan)
        return fraction, nothing, nothing.copy()
    removed = np.minimum((fraction * errors.size).astype(int), errors.size - 1)
    left = errors.size - removed

    def rest(order: npt.NDArray[np.intp]) -> npt.NDArray[np.float64]:
        sums = np.cumsum(errors[order])
        return np.asarray(sums[left - 1] / left)

    curve = rest(np.argsort(-trust, kind='stable'))
    oracle = rest(np.argsort(errors, kind='stable'))
    return fraction, curve, oracle


def ause(
    error: Array, confidence: Array, valid: Mask | None = None, steps: int = 20
) -> float:
    """Area between the sparsification curve and the oracle's, both divided by the mean error.

    0 is a perfect ranking; a random one comes to the oracle's own area. NaN without pixels, 0
    where there is no error at all.
    """
    fraction, curve, oracle = sparsification(error, confidence, valid, steps)
    if not np.isfinite(curve[0]):
        return float('nan')
    if curve[0] == 0:
        return 0.0
    return float(trapezoid((curve - oracle) / curve[0], fraction))
