# SPDX-License-Identifier: Apache-2.0
"""Flow hypotheses from classical matching: OpenCV's DIS on images prepared in several ways.

DIS (Kroeger et al., ECCV 2016) with more smoothing and more variational iterations than its
presets is exact on clear images; on shrunken ones, with local contrast evened out, it survives
noise, veil and streaks that it does not survive as they are. A network that is shown all of them,
and how well each fits, need not learn to match from nothing (the fusion of FlowNet 2.0,
section 5).
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray


class Preparation(NamedTuple):
    """How one hypothesis is found.

    Attributes:
        factor: by which the images are shrunk.
        opening: side in px of a grey-value opening before that (0: none). What is brighter than
            all about it and smaller, a streak or a flake, is gone.
        even: whether their local contrast is evened out first.
        alpha: weight of smoothness in DIS's variational refinement (its presets: 20).
        iterations: of that refinement (its medium preset: 5).
    """

    factor: int
    opening: int
    even: bool
    alpha: float
    iterations: int


#: Measured on ten real pairs, clean and in the heaviest rain, snow and noise (mean end-point
#: error, px): DIS's medium preset 1.31, 7.05, 5.81, 1.84; the first of these, with 40 iterations,
#: 0.94, 4.29, 4.11, 1.50; third 1.47, 2.38, 3.57, 2.19; fourth 1.44, 3.64, 4.40, 1.64; last 1.84,
#: 2.62, 2.55, 2.66.
#: The second is worse than the first by itself, but keeps the edges of small objects.
HYPOTHESES: tuple[Preparation, ...] = (
    Preparation(1, 0, False, 120.0, 20),
    Preparation(1, 0, False, 20.0, 10),
    Preparation(2, 9, True, 240.0, 40),
    Preparation(2, 0, True, 240.0, 40),
    Preparation(4, 15, True, 240.0, 100),
)
#: The flow back is found under these, for forward-backward checks.
BACKWARD: tuple[Preparation, ...] = HYPOTHESES[-2:]
#: DIS needs this many px a side.
SMALLEST = 32


def _dis(alpha: float, iterations: int) -> Any:
    # A new one each time: it keeps buffers between calls, which threads must not share.
    dis = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    dis.setFinestScale(0)
    dis.setVariationalRefinementAlpha(alpha)
    dis.setVariationalRefinementIterations(iterations)
    return dis


def even_contrast(grey: NDArray[np.uint8], sigma: float = 12.0) -> NDArray[np.uint8]:
    """Local mean 128 and local standard deviation 48, in windows of ``sigma`` px; uint8 (H, W).

    The floor of 4 grey values keeps plain areas plain.
    """
    x = grey.astype(np.float32)
    x -= cv2.GaussianBlur(x, (0, 0), sigma)
    deviation = np.sqrt(cv2.GaussianBlur(x * x, (0, 0), sigma)) + 4
    return np.asarray(np.clip(128 + 48 * x / deviation, 0, 255), dtype=np.uint8)


def _match(
    first: NDArray[np.uint8], second: NDArray[np.uint8], how: Preparation
) -> NDArray[np.float32]:
    """Flow ``(H, W, 2)`` of two grey images, px at their size."""
    height, width = first.shape
    factor = max(1, min(how.factor, min(height, width) // SMALLEST))
    size = (round(width / factor), round(height / factor))
    greys: list[Any] = [first, second]
    if how.opening:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (how.opening, how.opening))
        greys = [cv2.morphologyEx(grey, cv2.MORPH_OPEN, kernel) for grey in greys]
    if factor > 1:
        greys = [cv2.resize(grey, size, interpolation=cv2.INTER_AREA) for grey in greys]
    if how.even:
        greys = [even_contrast(grey) for grey in greys]
    flow = _dis(how.alpha, how.iterations).calc(greys[0], greys[1], None)
    if factor > 1:
        flow = cv2.resize(flow, (width, height), interpolation=cv2.INTER_LINEAR)
        flow *= np.array([width / size[0], height / size[1]], np.float32)
    return np.asarray(flow, dtype=np.float32)


def dis_hypotheses(image1: NDArray[np.uint8], image2: NDArray[np.uint8]) -> NDArray[np.float32]:
    """DIS flow under several preparations of the images, and flows back.

    Args:
        image1, image2: uint8 ``(H, W, 3)`` RGB of one size; below 32 px a side they are padded by
            their border, and a preparation that would leave less than 32 px shrinks less.

    Returns:
        float32 ``(K + M, H, W, 2)``, px at full size: the K of ``HYPOTHESES``, and from
        ``image2`` to ``image1`` the M of ``BACKWARD``, for forward-backward checks of all.
    """
    height, width = image1.shape[:2]
    bottom, right = max(0, SMALLEST - height), max(0, SMALLEST - width)
    first, second = (
        np.asarray(
            cv2.copyMakeBorder(
                cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), 0, bottom, 0, right, cv2.BORDER_REPLICATE
            ),
            np.uint8,
        )
        for image in (image1, image2)
    )
    # OpenCV leaves Python's lock, and a refinement by itself keeps little more than a core busy.
    with ThreadPoolExecutor(cv2.getNumThreads() or 1) as pool:
        waiting = [pool.submit(_match, first, second, how) for how in HYPOTHESES]
        waiting += [pool.submit(_match, second, first, how) for how in BACKWARD]
        flows = [future.result() for future in waiting]
    # A plain pair can leave DIS without an answer.
    found = np.nan_to_num(np.stack(flows), copy=False, posinf=0.0, neginf=0.0)
    return np.ascontiguousarray(found[:, :height, :width])
