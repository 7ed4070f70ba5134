# SPDX-License-Identifier: Apache-2.0
"""Where each part of an image went, however far: what local matching can start from.

Descriptors of oriented gradients (Lowe, IJCV 2004; densely as in SIFT Flow, Liu et al., PAMI
2011) of one image against all of the other's, the products averaged over windows from small to
nearly the whole image, so that what is plain or hidden goes with what is about it. Local methods
as DIS miss motions of more than some tenth of the image's width; this finds them to a cell.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

#: The longer side is shrunk to so many px, of which a cell has `CELL`.
LONG_SIDE, CELL = 320, 8
#: Sides in px of grey-value openings, which take streaks and flakes away; one descriptor each.
OPENINGS = (9, 15)
#: Directions of a gradient.
BINS = 8
#: Grey values a px of gradient below which a descriptor is short.
FLOOR = 2.0
#: Motions up to this part of the longer side are looked for.
REACH = 0.3
#: Sides of the windows, cells.
WINDOWS = (3, 7, 11, 21, 41)
#: A motion is large from this part of the longer side on; a pair's is, where more than `MANY` of
#: the cells found have such a one.
LARGE, MANY = 0.07, 0.25
#: What a cell of motion costs: among equals the least motion counts.
PENALTY = 0.002


def _descriptors(grey: NDArray[np.uint8], rows: int, columns: int) -> NDArray[np.float32]:
    """``(C, rows, columns)``, each of the `OPENINGS` at most of length 1."""
    size = (columns * CELL, rows * CELL)
    every = []
    for side in OPENINGS:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        opened = cv2.morphologyEx(grey, cv2.MORPH_OPEN, kernel)
        small = cv2.resize(opened.astype(np.float32), size, interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), 1.0)
        x = cv2.Sobel(small, cv2.CV_32F, 1, 0, scale=1 / 8)
        y = cv2.Sobel(small, cv2.CV_32F, 0, 1, scale=1 / 8)
        squared = x * x + y * y + 1e-3
        bins = []
        for angle in np.arange(BINS) * (2 * np.pi / BINS):
            along = np.maximum(x * np.cos(angle) + y * np.sin(angle), 0)
            # As long as the gradient, but for one direction.
            share = cv2.GaussianBlur(along**3 / squared, (0, 0), CELL / 2)
            bins.append(share[CELL // 2 :: CELL, CELL // 2 :: CELL])
        # With the eight cells about.
        wide = np.pad(np.stack(bins), ((0, 0), (1, 1), (1, 1)), mode='edge')
        about = np.concatenate(
            [wide[:, i : i + rows, j : j + columns] for i in range(3) for j in range(3)]
        )
        every.append(about / (np.linalg.norm(about, axis=0) + FLOOR))
    return np.concatenate(every).astype(np.float32)


def _window_means(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mean over `WINDOWS` of the means in them, which end at the border; first two dimensions."""
    rows, columns = x.shape[:2]
    total = np.zeros_like(x)
    sums = np.zeros((rows + 1, columns + 1, x.shape[2]), np.float32)
    np.cumsum(np.cumsum(x, axis=1), axis=0, out=sums[1:, 1:])
    for side in WINDOWS:
        (top, bottom), (left, right) = (
            (np.maximum(at - side // 2, 0), np.minimum(at + side // 2 + 1, len(at)))
            for at in (np.arange(rows), np.arange(columns))
        )
        for row in range(rows):
            tall = sums[bottom[row]] - sums[top[row]]
            count = (bottom[row] - top[row]) * (right - left) * np.float32(len(WINDOWS))
            total[row] += (tall[right] - tall[left]) / count.astype(np.float32)[:, None]
    return total


def _filled(flow: NDArray[np.float32], found: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Cells that are not ``found`` get the mean of those about, from as near as there are any."""
    weight = found.astype(np.float32)
    known = flow * weight[..., None]
    filled, left = known.copy(), ~found
    for sigma in (1, 2, 4, 8, 16, 32):
        count = cv2.GaussianBlur(weight, (0, 0), sigma)
        mean = cv2.GaussianBlur(known, (0, 0), sigma) / np.maximum(count, 1e-6)[..., None]
        now = left & (count > 0.15)
        filled[now] = mean[now]
        left &= ~now
    filled[left] = np.median(flow[found], axis=0)
    return filled


def _returns(there: NDArray[np.intp], back: NDArray[np.intp]) -> NDArray[np.bool_]:
    """Of which cells ``there`` leads to one from where ``back`` leads home, to a cell."""
    rows, columns = there.shape[:2]
    y, x = np.mgrid[:rows, :columns]
    y, x = y + there[..., 1], x + there[..., 0]
    inside = (y >= 0) & (y < rows) & (x >= 0) & (x < columns)
    home = there + back[y.clip(0, rows - 1), x.clip(0, columns - 1)]
    return inside & (np.abs(home).max(axis=-1) <= 1)


def coarse_matches(
    first: NDArray[np.uint8], second: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_], NDArray[np.bool_]]:
    """Motion of cells there and back.

    Args:
        first, second: grey uint8 ``(H, W)``.

    Returns:
        float32 ``(h, w, 2)`` px of full size, the same from ``second`` to ``first``, and of
        both the cells to which the other way leads back, to a cell.
    """
    height, width = first.shape
    rows, columns = (
        max(4, round(side * LONG_SIDE / max(height, width) / CELL)) for side in (height, width)
    )
    one, other = (_descriptors(grey, rows, columns) for grey in (first, second))
    reach = round(REACH * max(rows, columns))
    up, across = min(reach, rows - 1), min(reach, columns - 1)
    product = one.reshape(len(one), -1).T @ other.reshape(len(other), -1)
    wide = np.zeros((rows, columns, rows + 2 * up, columns + 2 * across), np.float32)
    inner = (..., slice(up, up + rows), slice(across, across + columns))
    wide[inner] = product.reshape(rows, columns, rows, columns)
    s = wide.strides
    # Of each cell, then of each motion.
    moved = np.lib.stride_tricks.as_strided(
        wide,
        (rows, columns, 2 * up + 1, 2 * across + 1),
        (s[0] + s[2], s[1] + s[3], s[2], s[3]),
    )
    score = _window_means(moved.reshape(rows, columns, -1))
    y, x = np.mgrid[-up : up + 1, -across : across + 1].astype(np.float32)
    score -= (PENALTY * np.hypot(y, x)).ravel()
    # A cell may leave the image with what is about it.
    best = score.argmax(axis=-1)
    forward = np.stack([best % (2 * across + 1) - across, best // (2 * across + 1) - up], axis=-1)
    # From where to where again, for the way back.
    wide[:] = -np.inf
    moved[:] = score.reshape(moved.shape)
    here = wide[inner].reshape(rows * columns, rows * columns).argmax(axis=0)
    cells = np.moveaxis(np.mgrid[:rows, :columns][::-1], 0, -1)
    backward = cells.reshape(-1, 2)[here].reshape(rows, columns, 2) - cells
    scale = np.array([width / columns, height / rows], np.float32)
    return (
        (forward * scale).astype(np.float32),
        (backward * scale).astype(np.float32),
        _returns(forward, backward),
        _returns(backward, forward),
    )


def large_motion(
    first: NDArray[np.uint8], second: NDArray[np.uint8]
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Coarse flow there and back of a pair much of which moves far; None for another.

    Where small motions are all there is, local methods do better without.

    Args:
        first, second: grey uint8 ``(H, W)``.

    Returns:
        float32 ``(h, w, 2)`` of cells, px of full size, twice; or None.
    """
    forward, backward, found, returned = coarse_matches(first, second)
    far = np.linalg.norm(forward, axis=-1) >= LARGE * max(first.shape)
    if not returned.any() or (far & found).sum() <= MANY * found.sum():
        return None
    return _filled(forward, found), _filled(backward, returned)
