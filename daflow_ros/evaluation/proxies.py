# SPDX-License-Identifier: Apache-2.0
"""What can be measured without ground truth, and how far each measure follows the true error.

None of these is an error: a flow of zeros is smooth, consistent and, in fog, photometrically
almost right. `rank_correlation` against EPE says which of them to believe.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from daflow_ros.flow.consistency import forward_backward_error, forward_backward_mask, warp

Array = npt.NDArray[np.floating]
Image = npt.NDArray[np.uint8]

#: Proxies, what they say, and their unit; low is good in all.
PROXIES = {
    'fb_error': ('mean forward-backward error', 'px'),
    'fb_inconsistent': ('pixels whose forward and backward flow disagree', '%'),
    'photometric': ('brightness difference after warping, truncated', 'grey levels'),
    'smoothness': ('edge-aware smoothness', 'px/px'),
    'drift': ('distance of the flow from that of the clean frames', 'px'),
}

#: Grey levels beyond which a difference says only "wrong".
PHOTOMETRIC_LIMIT = 50.0
#: Smoothness forgives a step in the flow where the image has one: exp(-10 |dI|), I in [0, 1].
EDGE_WEIGHT = 10.0


def consistency(forward: Array, backward: Array) -> dict[str, float]:
    """Forward-backward error (mean over pixels that stay inside) and disagreement."""
    error = forward_backward_error(forward, backward)
    inside = np.isfinite(error)
    if not inside.any():
        return {'fb_error': float('nan'), 'fb_inconsistent': 100.0}
    agree = forward_backward_mask(forward, backward)
    return {
        'fb_error': float(error[inside].mean(dtype=np.float64)),
        'fb_inconsistent': 100 * float((~agree[inside]).mean()),
    }


def photometric(
    image1: Image, image2: Image, flow: Array, mask: npt.NDArray[np.bool_] | None = None
) -> float:
    """Mean of min(|I1(p) - I2(p + f)|, 50) in grey levels, inside the image and the mask."""
    warped = warp(image2.astype(np.float32), flow)
    difference = np.abs(image1.astype(np.float32) - warped).mean(axis=-1)
    inside = np.isfinite(difference)
    if mask is not None:
        inside &= mask
    if not inside.any():
        return float('nan')
    return float(np.minimum(difference[inside], PHOTOMETRIC_LIMIT).mean(dtype=np.float64))


def smoothness(image: Image, flow: Array) -> float:
    """Mean |df| exp(-10 |dI|) over both directions, in px per px."""
    grey = image.astype(np.float32).mean(axis=-1) / 255
    total, count = 0.0, 0
    for axis in (0, 1):
        weight = np.exp(-EDGE_WEIGHT * np.abs(np.diff(grey, axis=axis)))
        step = np.abs(np.diff(flow, axis=axis)).sum(axis=-1) * weight
        step = step[np.isfinite(step)]
        total += float(step.sum(dtype=np.float64))
        count += step.size
    return total / count if count else float('nan')


def drift(clean: Array, corrupted: Array) -> float:
    """Mean distance of two predictions of one model in px (RobustSpring's robustness metric)."""
    difference = np.asarray(clean, dtype=np.float32) - corrupted
    distance = np.hypot(difference[..., 0], difference[..., 1])
    distance = distance[np.isfinite(distance)]
    return float(distance.mean(dtype=np.float64)) if distance.size else float('nan')


def proxies(image1: Image, image2: Image, forward: Array, backward: Array) -> dict[str, float]:
    """All proxies of one pair but drift, which needs the clean prediction."""
    agree = forward_backward_mask(forward, backward)
    return {
        **consistency(forward, backward),
        'photometric': photometric(image1, image2, forward, agree),
        'smoothness': smoothness(image1, forward),
    }


def _ranks(values: Array) -> npt.NDArray[np.float64]:
    """Ranks from 0; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts + 1) / 2)[inverse], dtype=np.float64)


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's rank correlation in [-1, 1]; NaN for fewer than 3 pairs or a constant."""
    a, b = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    both = np.isfinite(a) & np.isfinite(b)
    if both.sum() < 3:
        return float('nan')
    x, y = _ranks(a[both]), _ranks(b[both])
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / scale if scale else float('nan')
