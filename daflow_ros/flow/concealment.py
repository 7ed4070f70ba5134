# SPDX-License-Identifier: Apache-2.0
"""What a video codec did not send: blocks that stayed as they were while the scene moved.

A codec short of bits leaves out the difference of a block to the last frame. What is seen there
stands still, fits the last frame perfectly and holds every matcher back. Such blocks are
concealed, as a decoder conceals lost ones, by motion-compensated prediction from the first image
(Wang and Zhu, Proceedings of the IEEE 1998), along the flow of what lies about them.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from daflow_ros.flow.consistency import warp_bordered
from daflow_ros.flow.hypotheses import HYPOTHESES, SMALLEST, match_prepared, prepare

Image = NDArray[np.uint8]

#: px, side of a block: codecs choose for 8x8 whether to send a difference.
BLOCK = 8
#: Grey values, mean difference below which a block stands still, and mean gradient a px above
#: which it would show motion.
STILL, TEXTURED = 0.6, 1.0
#: Share of the blocks that stand still and would show motion, below which nothing is done.
LEAST = 0.02
#: Plain blocks of single JPEGs are alike by chance. Blocks with so many cosine coefficients above
#: so many grey values are not: where this share of all is copied, to within this difference, it
#: was left out.
COEFFICIENTS, AMPLITUDE, COPIED, COPY = 4, 3.0, 0.02, 0.25
#: Or the first frame was coded by itself and the second is predicted from it and more detailed by
#: this factor, in the number of such coefficients; two JPEGs are equally detailed.
MORE_DETAIL = 1.07
#: What moved and is strongly textured is sent. Where a larger share than this of the frame's most
#: textured quarter stands still, the camera does, and nothing was left out.
TRIPOD = 0.27
#: An area that stands still with a larger share of most textured blocks is at rest: the robot
#: itself.
AT_REST = 0.2
#: Left out blocks lie scattered among sent ones that move: within so many blocks of at least this
#: share of those that would show motion, there is one that fits along the flow to this part of
#: what it differs, at least by so many grey values, without. A wall behind something that moves
#: has them at the borders alone.
NEAR, NEAR_SHARE, FITS, DIFFERS = 2, 0.35, 0.7, 1.5
#: Blocks, widening Gaussians that draw motion from what is about a hole.
WIDTHS = (1.0, 3.0, 9.0, 25.0)
#: Each time with less of what stands still in the flow that is drawn from.
ROUNDS = 4
#: Even contrast, much smoothing.
HOW = HYPOTHESES[4]


def _by_block(values: Any) -> NDArray[np.float32]:
    """Means of float32 ``(H, W)``; ``(H / BLOCK, W / BLOCK)``, rounded up."""
    height, width = values.shape
    wide = cv2.copyMakeBorder(
        values, 0, -height % BLOCK, 0, -width % BLOCK, cv2.BORDER_REFLECT_101
    )
    size = wide.shape[1] // BLOCK, wide.shape[0] // BLOCK
    return np.asarray(cv2.resize(wide, size, interpolation=cv2.INTER_AREA), np.float32)


def _texture(grey: Image) -> NDArray[np.float32]:
    """Mean gradient of each block, grey values a px."""
    dx, dy = (cv2.Sobel(grey, cv2.CV_32F, *order) for order in ((1, 0), (0, 1)))
    return _by_block(cv2.magnitude(dx, dy) / 8)


def _detail(grey: Image) -> NDArray[np.intp]:
    """Cosine coefficients above ``AMPLITUDE`` of each block, as many as `_by_block` has."""
    height, width = grey.shape
    wide = cv2.copyMakeBorder(grey, 0, -height % BLOCK, 0, -width % BLOCK, cv2.BORDER_REFLECT_101)
    rows, columns = (side // BLOCK for side in wide.shape)
    blocks = wide.reshape(rows, BLOCK, columns, BLOCK).transpose(0, 2, 1, 3)
    cosines = cv2.dct(np.eye(BLOCK, dtype=np.float32), flags=cv2.DCT_ROWS)
    coefficients = cosines.T @ (blocks.astype(np.float32) - 128) @ cosines
    return np.asarray((np.abs(coefficients) > AMPLITUDE).sum((-2, -1)))


def frozen_blocks(first: Image, second: Image) -> NDArray[np.bool_]:
    """Blocks of the second image that were most likely left out, not at rest.

    Args:
        first, second: grey, uint8 ``(H, W)``.

    Returns:
        bool, one for each ``BLOCK`` px a side, the last ones partial; all False where it is too
        few to matter, or the images do not look like a codec's. `_among_moving` has the last
        word.
    """
    apart = _by_block(cv2.absdiff(first, second).astype(np.float32))
    still = apart < STILL
    nothing = np.zeros_like(still)
    if still.mean() < LEAST:
        return nothing
    texture = _texture(first)
    strong = texture >= np.quantile(texture, 0.75)
    if still[strong].mean() > TRIPOD:
        return nothing
    count, areas = cv2.connectedComponents(still.astype(np.uint8))
    blocks = np.bincount(areas.ravel(), minlength=count)
    share = np.bincount(areas.ravel(), strong.ravel(), minlength=count) / np.maximum(blocks, 1)
    frozen: NDArray[np.bool_] = still & (share <= AT_REST)[areas]
    if (frozen & (texture > TEXTURED)).mean() < LEAST:
        return nothing
    here, there = _detail(first), _detail(second)
    if (frozen & (apart < COPY) & (here >= COEFFICIENTS)).mean() >= COPIED:
        return frozen
    moved = ~still
    predicted = there[moved].sum() >= MORE_DETAIL * here[moved].sum()
    return frozen if predicted else nothing


def _among_moving(
    first: Image, second: Image, frozen: NDArray[np.bool_], back: NDArray[np.float32]
) -> bool:
    """Whether blocks that move lie about those that are taken for left out."""
    a, b = (cv2.GaussianBlur(image.astype(np.float32), (0, 0), 1) for image in (first, second))
    along, _ = warp_bordered(a, back)
    without, fit = _by_block(cv2.absdiff(a, b)), _by_block(cv2.absdiff(along, b))
    still = _by_block(cv2.absdiff(first, second).astype(np.float32)) < STILL
    moving = ~still & (fit < FITS * without) & (without > DIFFERS)
    distance = cv2.distanceTransform((~moving).astype(np.uint8), cv2.DIST_C, 3)
    shows = frozen & (_texture(first) > TEXTURED)
    return bool((distance[shows] <= NEAR).mean() >= NEAR_SHARE)


def fill_flow(flow: NDArray[np.float32], hole: NDArray[np.bool_]) -> NDArray[np.float32]:
    """``flow`` (``(H, W, 2)``), in ``hole`` (bool ``(H, W)``) drawn from what is about it.

    Normalised convolution (Knutsson and Westin 1993) by blocks, with the narrowest of ``WIDTHS``
    that finds a tenth of its weight outside; zero if all is a hole.
    """
    height, width = hole.shape
    size = -(-width // BLOCK), -(-height // BLOCK)
    known = (~hole).astype(np.float32)
    weight = cv2.resize(known, size, interpolation=cv2.INTER_AREA)
    summed = cv2.resize(flow * known[..., None], size, interpolation=cv2.INTER_AREA)
    filled = np.zeros_like(summed)
    open_ = np.ones(weight.shape, bool)
    for sigma in WIDTHS:
        near = cv2.GaussianBlur(weight, (0, 0), sigma)
        mean = cv2.GaussianBlur(summed, (0, 0), sigma) / np.maximum(near, 1e-9)[..., None]
        found = open_ & (near > (0.1 if sigma < WIDTHS[-1] else 1e-6))
        filled[found] = mean[found]
        open_ &= ~found
    smooth = cv2.resize(filled, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.where(hole[..., None], smooth, flow).astype(np.float32)


def conceal_frozen(image1: Image, image2: Image) -> Image:
    """``image2`` with its frozen blocks predicted from ``image1``.

    Args:
        image1, image2: uint8 ``(H, W, 3)`` RGB of one size.

    Returns:
        uint8 ``(H, W, 3)``; ``image2`` itself where nothing is frozen.
    """
    height, width = image1.shape[:2]
    if min(height, width) < SMALLEST:
        return image2
    first, second = (
        np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in (image1, image2)
    )
    blocks = frozen_blocks(first, second)
    if not blocks.any():
        return image2
    frozen = np.kron(blocks, np.ones((BLOCK, BLOCK), bool))[:height, :width]
    way = HOW.factor, HOW.opening, HOW.even, False, False
    prepared = prepare(first, *way)
    concealed = image2
    for _ in range(ROUNDS):
        grey = np.asarray(cv2.cvtColor(concealed, cv2.COLOR_RGB2GRAY), np.uint8)
        back = match_prepared(prepare(grey, *way), prepared, HOW, (width, height), None)
        if concealed is image2 and not _among_moving(first, second, blocks, back):
            return image2
        predicted, _ = warp_bordered(image1, fill_flow(back, frozen))
        concealed = np.where(frozen[..., None], predicted, image2).astype(np.uint8)
    return concealed
