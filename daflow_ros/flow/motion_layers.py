# SPDX-License-Identifier: Apache-2.0
"""Affine motions of what does not move as most of a frame does, one after the other.

Layers after Wang and Adelson, Representing moving images with layers (IEEE TIP 1994), found in a
dense flow by RANSAC (Fischler and Bolles 1981; OpenCV's), each among what those before leave
unexplained. A layer fills its plain parts, and what weather hides, with the motion of the rest.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

#: Every so many px a flow vector is taken.
STEP = 8
#: A vector further than this many px from a motion is not explained by it.
TOLERANCE = 2.0
#: A motion needs so many vectors; with fewer than `AFFINE` it is a similarity.
LEAST, AFFINE = 5, 10


def motion_layers(
    flow: NDArray[np.float32], explained: Sequence[NDArray[np.float32]], count: int
) -> list[NDArray[np.float32]]:
    """Affine flows of what in ``flow`` follows none of ``explained``, the largest group first.

    Args:
        flow: finite float32 ``(H, W, 2)`` px.
        explained: one or more of the same shape.
        count: layers; where fewer are found the last one comes again.

    Returns:
        ``count`` float32 ``(H, W, 2)`` px.
    """
    height, width = flow.shape[:2]
    rows, columns = np.mgrid[
        min(STEP, height) // 2 : height : STEP, min(STEP, width) // 2 : width : STEP
    ]
    here = np.stack([columns.ravel(), rows.ravel()], axis=1).astype(np.float32)
    vectors = flow[rows, columns].reshape(-1, 2)
    left = np.ones(len(here), bool)
    for other in explained:
        apart = vectors - other[rows, columns].reshape(-1, 2)
        left &= (apart**2).sum(axis=1) > TOLERANCE**2
    here, there = here[left], (here + vectors)[left]
    x = np.arange(width, dtype=np.float32)[None, :, None]
    y = np.arange(height, dtype=np.float32)[:, None, None]
    layers: list[NDArray[np.float32]] = []
    while len(layers) < count and len(here) >= LEAST:
        estimate = cv2.estimateAffine2D if len(here) >= AFFINE else cv2.estimateAffinePartial2D
        matrix, inliers = estimate(here, there, ransacReprojThreshold=TOLERANCE)
        if matrix is None or not np.isfinite(matrix).all() or not inliers.any():
            break
        linear = matrix.astype(np.float32) - np.eye(2, 3, dtype=np.float32)
        layers.append(x * linear[:, 0] + y * linear[:, 1] + linear[:, 2])
        here, there = here[inliers.ravel() == 0], there[inliers.ravel() == 0]
    last = layers[-1] if layers else np.asarray(explained[-1], np.float32)
    return layers + [last] * (count - len(layers))
