# SPDX-License-Identifier: Apache-2.0
"""Direct registration of two images by one affine motion of all that follows it.

Odobez and Bouthemy (JVCIR 1995): the motion whose robust brightness error is least, found by
Gauss-Newton steps with Tukey's weights and a gain and an offset of brightness. Over so many
pixels noise and blur, which pull a dense flow about, cancel out.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from daflow_ros.flow.dominant_motion import Affine, affine_flow, unit_coordinates

#: px, standard deviation of the Gaussian on both images.
SMOOTHING = 1.0
#: Every so many px one counts.
STEP = 2
#: Most steps, and the last one's least change, px.
ROUNDS, CHANGE = 12, 0.002
#: Tukey's constant, in deviations of the brightness error.
TUKEY = 4.685
#: Fewer pixels, or a mean change of more px, and the motion is left as it was.
LEAST, FURTHEST = 200, 2.0


def register_affine(
    grey1: NDArray[np.uint8],
    grey2: NDArray[np.uint8],
    start: Affine,
    support: NDArray[np.bool_],
) -> Affine:
    """The affine motion under which the second image best shows what the first does.

    Args:
        grey1, grey2: uint8 ``(H, W)``, of even local contrast (`even_contrast`).
        start: from where, within about 2 px.
        support: ``(H, W)``, what of the first image counts.

    Returns:
        ``start``, where too little counts or nothing is found near it.
    """
    height, width = grey1.shape
    first, second = (
        cv2.GaussianBlur(grey.astype(np.float32), (0, 0), SMOOTHING) for grey in (grey1, grey2)
    )
    gradient_x = cv2.Sobel(second, cv2.CV_32F, 1, 0, scale=1 / 8)
    gradient_y = cv2.Sobel(second, cv2.CV_32F, 0, 1, scale=1 / 8)
    rows, columns = (np.arange(STEP // 2, side, STEP) for side in (height, width))
    here = np.stack(np.meshgrid(columns, rows), axis=-1).astype(np.float32)
    counts = support[rows[:, None], columns]
    unit_x, unit_y = unit_coordinates(height, width)
    grid_x, grid_y = np.meshgrid(unit_x[columns], unit_y[rows])
    basis = np.stack([np.ones_like(grid_x), grid_x, grid_y], axis=-1).astype(np.float64)
    value = first[rows[:, None], columns]
    parameters = start
    for _ in range(ROUNDS):
        there = here + (basis @ parameters).astype(np.float32)
        x, y = there[..., 0], there[..., 1]
        inside = counts & (x >= 0) & (y >= 0) & (x <= width - 1) & (y <= height - 1)
        if inside.sum() < LEAST:
            return start
        found, slope_x, slope_y = (
            cv2.remap(image, x, y, cv2.INTER_LINEAR)[inside].astype(np.float64)
            for image in (second, gradient_x, gradient_y)
        )
        seen, known = basis[inside], value[inside].astype(np.float64)
        error = found - known
        # A floor for images without noise.
        scale = 1.4826 * float(np.median(np.abs(error - np.median(error)))) + 0.3
        weight = np.clip(1 - (error / (TUKEY * scale)) ** 2, 0, None) ** 2
        jacobian = np.concatenate(
            [
                seen * slope_x[:, None],
                seen * slope_y[:, None],
                known[:, None] - 128,
                np.ones((len(known), 1)),
            ],
            axis=1,
        )
        weighted = jacobian * weight[:, None]
        normal = weighted.T @ jacobian
        normal += np.diag(1e-6 * np.diag(normal) + 1e-9)
        change = np.linalg.solve(normal, -(weighted.T @ error))[:6].reshape(2, 3).T
        parameters = parameters + change
        if np.abs(change).max() < CHANGE:
            break
    apart = affine_flow(parameters - start, height, width)[support]
    near = np.linalg.norm(apart, axis=1).mean() <= FURTHEST
    return parameters if near else start
