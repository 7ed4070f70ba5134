# SPDX-License-Identifier: Apache-2.0
"""Flow hypotheses from classical matching: OpenCV's DIS on images prepared in several ways.

DIS (Kroeger et al., ECCV 2016) with more smoothing and more variational iterations than its
presets is exact on clear images; on shrunken ones, with local contrast evened out, it survives
noise, veil and streaks that it does not survive as they are. A network that is shown all of them,
and how well each fits, need not learn to match from nothing (the fusion of FlowNet 2.0,
section 5). A pair much of which moves further than DIS finds is matched coarsely first.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from daflow_ros.flow.coarse_matching import large_motion
from daflow_ros.flow.dominant_motion import dominant_motion
from daflow_ros.flow.motion_layers import motion_layers
from daflow_ros.flow.preparation import (
    AGREEMENT,
    detail_agreement,
    noise_level,
    open_by_reconstruction,
)


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


#: The first is the most exact on clear images, the last survives the most; those with little
#: smoothing are worse by themselves, but keep the edges of small objects. What each brings was
#: measured as the error of the best of all at each pixel (docs/training.md).
HYPOTHESES: tuple[Preparation, ...] = (
    Preparation(1, 0, False, 120.0, 10),
    Preparation(2, 0, False, 20.0, 5),
    Preparation(2, 9, False, 30.0, 5),
    Preparation(2, 9, True, 240.0, 15),
    Preparation(2, 0, True, 240.0, 15),
    Preparation(4, 15, True, 40.0, 10),
    Preparation(4, 15, True, 240.0, 30),
)
#: px, standard deviation of a Gaussian on images that are not opened, against noise of at least
#: so many grey values, and against the blocks of codecs and large pixels, which leave less than
#: so many (blur does, too, and loses little); rain and flakes, which lie between, it would only
#: make broad. Where it is neither, and yet what one picture shows is not found again in the
#: other (`AGREEMENT`), something falls (or heavy blur hides it), and openings are twice as large,
#: by reconstruction.
SMOOTHING, NOISY, BLOCKY = 1.0, 5.0, 0.3
#: The flow back is found under these, for forward-backward checks.
BACKWARD: tuple[Preparation, ...] = (HYPOTHESES[4], HYPOTHESES[6])
#: Motion layers are taken from these: the most exact, and one that rain and flakes leave alone.
LAYERED: tuple[int, ...] = (0, 2)
#: Of each.
LAYERS = 3
#: With the dominant motion of the first and the layers.
NUM_HYPOTHESES = len(HYPOTHESES) + 1 + LAYERS * len(LAYERED)
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


def prepare(
    grey: NDArray[np.uint8],
    factor: int,
    opening: int,
    even: bool,
    smooth: bool,
    falling: bool,
) -> NDArray[np.uint8]:
    """A grey image (uint8 ``(H, W)``) as a `Preparation` wants it matched.

    ``smooth``: smoothed where it is not opened; ``falling``: opened by reconstruction.
    """
    height, width = grey.shape
    prepared: Any = grey
    if opening and falling:
        prepared = open_by_reconstruction(prepared, 2 * opening + 1)
    elif opening:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (opening, opening))
        prepared = cv2.morphologyEx(prepared, cv2.MORPH_OPEN, kernel)
    elif smooth:
        prepared = cv2.GaussianBlur(prepared, (0, 0), SMOOTHING)
    factor = max(1, min(factor, min(height, width) // SMALLEST))
    if factor > 1:
        size = (round(width / factor), round(height / factor))
        prepared = cv2.resize(prepared, size, interpolation=cv2.INTER_AREA)
    return even_contrast(prepared) if even else np.asarray(prepared, np.uint8)


def match_prepared(
    first: NDArray[np.uint8],
    second: NDArray[np.uint8],
    how: Preparation,
    size: tuple[int, int],
    start: NDArray[np.float32] | None,
) -> NDArray[np.float32]:
    """Flow of two prepared images, ``(H, W, 2)`` px at the (W, H) of ``size``.

    ``start``: where DIS starts from, px at that ``size``, of any resolution; None for no motion.
    """
    height, width = first.shape
    scale = np.array([size[0] / width, size[1] / height], np.float32)
    if start is not None:
        start = cv2.resize(start, (width, height), interpolation=cv2.INTER_LINEAR) / scale
    flow = _dis(how.alpha, how.iterations).calc(first, second, start)
    # A plain pair can leave DIS without an answer.
    flow = np.nan_to_num(flow, copy=False, posinf=0.0, neginf=0.0)
    if (width, height) != size:
        flow = cv2.resize(flow, size, interpolation=cv2.INTER_LINEAR) * scale
    return np.asarray(flow, dtype=np.float32)


class Matched(NamedTuple):
    """What `dis_hypotheses` finds.

    Attributes:
        flows: float32 ``(K + M, H, W, 2)``, px at full size: the ``HYPOTHESES``, the dominant
            motion of the first and ``LAYERS`` motion layers of each of ``LAYERED``, K in all,
            and from the second image to the first the M of ``BACKWARD``, for forward-backward
            checks of all.
        falling: whether it seems that something falls before the scene: openings are larger, and
            by reconstruction.
    """

    flows: NDArray[np.float32]
    falling: bool


def dis_hypotheses(image1: NDArray[np.uint8], image2: NDArray[np.uint8]) -> Matched:
    """DIS flow under several preparations of the images, and flows back.

    Args:
        image1, image2: uint8 ``(H, W, 3)`` RGB of one size; below 32 px a side they are padded by
            their border, and a preparation that would leave less than 32 px shrinks less.
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
    size = first.shape[1], first.shape[0]
    noise = (noise_level(first) + noise_level(second)) / 2
    smooth = noise >= NOISY or noise < BLOCKY
    wanted = [(how, 0, 1) for how in HYPOTHESES] + [(how, 1, 0) for how in BACKWARD]
    # OpenCV leaves Python's lock, and a refinement by itself keeps little more than a core busy.
    with ThreadPoolExecutor(cv2.getNumThreads() or 1) as pool:
        far = large_motion(first, second)
        starts = (None, None) if far is None else far
        waiting: dict[int, Future[NDArray[np.float32]]] = {}

        def match(opened: bool, falling: bool) -> None:
            hows = [how for how in HYPOTHESES if bool(how.opening) == opened]
            prepared = {
                way: [pool.submit(prepare, x, *way, smooth, falling) for x in (first, second)]
                for way in dict.fromkeys((how.factor, how.opening, how.even) for how in hows)
            }
            for index, (how, here, there) in enumerate(wanted):
                if how in hows:
                    pair = prepared[how.factor, how.opening, how.even]
                    waiting[index] = pool.submit(
                        match_prepared,
                        pair[here].result(),
                        pair[there].result(),
                        how,
                        size,
                        starts[here],
                    )

        match(opened=False, falling=False)
        falling = False
        if not smooth:
            plain = [i for i, how in enumerate(HYPOTHESES) if not how.opening]
            found = np.stack([waiting[i].result()[:height, :width] for i in plain])
            falling = detail_agreement(image1, image2, found) < AGREEMENT
        match(opened=True, falling=falling)
        flows = [waiting[i].result()[:height, :width] for i in range(len(wanted))]
    motions = [dominant_motion(flows[0])]
    for index in LAYERED:
        motions += motion_layers(flows[index], motions, LAYERS)
    flows[len(HYPOTHESES) : len(HYPOTHESES)] = motions
    return Matched(np.stack(flows), falling)
