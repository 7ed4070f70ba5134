# SPDX-License-Identifier: Apache-2.0
"""The dominant motion of a frame: one affine flow, fitted robustly to a dense one.

Odobez and Bouthemy, Robust multiresolution estimation of parametric motion models (JVCIR 1995):
iteratively reweighted least squares whose scale shrinks, so that what moves otherwise counts less
and less. It fills what has no texture (sky, fog, a wall) with the motion of what is about it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: px; beyond about this a residual stops counting. From wide to narrow.
SCALES = (16.0, 8.0, 4.0, 4.0, 2.0, 2.0, 1.0, 1.0, 0.5, 0.5)
#: Pull of the linear part towards none, per squared unit of half the longer side.
RIDGE = 0.02
#: Every so many px a flow vector is taken.
STEP = 8


def dominant_motion(flow: NDArray[np.float32]) -> NDArray[np.float32]:
    """The affine flow that most of ``flow`` follows.

    Args:
        flow: finite float32 ``(H, W, 2)`` px.

    Returns:
        float32 ``(H, W, 2)`` px.
    """
    height, width = flow.shape[:2]
    unit = max(height, width) / 2
    x = (np.arange(width, dtype=np.float32) - width / 2) / unit
    y = (np.arange(height, dtype=np.float32) - height / 2) / unit
    rows = slice(min(STEP, height) // 2, None, STEP)
    columns = slice(min(STEP, width) // 2, None, STEP)
    taken = flow[rows, columns].reshape(-1, 2).astype(np.float64)
    grid_y, grid_x = np.meshgrid(y[rows], x[columns], indexing='ij')
    basis = np.stack([np.ones(taken.shape[0]), grid_x.ravel(), grid_y.ravel()], axis=1)
    parameters = np.zeros((3, 2))
    parameters[0] = np.median(taken, axis=0)
    for scale in SCALES:
        residual = ((basis @ parameters - taken) ** 2).sum(axis=1)
        weight = (1 + residual / scale**2) ** -2.0
        weighted = basis * weight[:, None]
        ridge = np.diag([1e-9, RIDGE, RIDGE]) * weight.sum()
        parameters = np.linalg.solve(weighted.T @ basis + ridge, weighted.T @ taken)
    shift, along_x, along_y = parameters.astype(np.float32)
    return shift + x[None, :, None] * along_x + y[:, None, None] * along_y
