# SPDX-License-Identifier: Apache-2.0
"""Drawn things with a broad part and thin ones that hang on it: chairs, tables, stands.

Flow of a thin part is found last: nothing matches it, and it takes the motion of what is behind
it, although it moves as the broad part does. Drawn from random numbers alone.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

#: px of the canvas, and how thick thin parts are on it.
SIDE, THIN = 320, (4, 15)

Mask = NDArray[np.uint8]


def furniture(rng: np.random.Generator) -> tuple[Mask, Mask]:
    """Masks uint8 ``(SIDE, SIDE)`` of the broad part and of the thin ones."""
    broad, thin = np.zeros((2, SIDE, SIDE), np.uint8)
    thick = int(rng.integers(*THIN))
    width, height = rng.uniform(0.3, 0.75) * SIDE, rng.uniform(0.06, 0.3) * SIDE
    middle, level = SIDE / 2, rng.uniform(0.35, 0.6) * SIDE
    lean = rng.normal(0, 0.06) * SIDE
    left, right = middle - width / 2, middle + width / 2
    inside = middle - 0.4 * width + lean / 2, middle + 0.4 * width + lean / 2
    if rng.random() < 0.3:
        axes = round(width / 2), round(height / 2)
        cv2.ellipse(broad, (round(middle), round(level)), axes, 0, 0, 360, (255,), -1, cv2.LINE_AA)
    else:
        narrow = rng.uniform(0.7, 1.0)
        seat = [
            (middle - narrow * width / 2 + lean, level - height / 2),
            (middle + narrow * width / 2 + lean, level - height / 2),
            (right, level + height / 2),
            (left, level + height / 2),
        ]
        _fill(broad, seat)
    if rng.random() < 0.7:
        _back(rng, broad, thin, inside, (level, height), thick)
    if rng.random() < 0.3:
        _arms(rng, thin, inside, level, thick)
    if rng.random() < 0.25:
        _foot(rng, thin, middle, level, width, thick)
    else:
        _legs(rng, thin, (left, right), level, height, thick)
    turns = int(rng.integers(4)) if rng.random() < 0.25 else 0
    broad, thin = (np.ascontiguousarray(np.rot90(mask, turns)) for mask in (broad, thin))
    return broad, thin


def _fill(mask: Mask, points: list[tuple[float, float]]) -> None:
    cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], (255,), cv2.LINE_AA)


def _line(mask: Mask, start: tuple[float, float], end: tuple[float, float], thick: int) -> None:
    (x1, y1), (x2, y2) = (tuple(map(round, point)) for point in (start, end))
    cv2.line(mask, (x1, y1), (x2, y2), (255,), thick, cv2.LINE_AA)


def _back(
    rng: np.random.Generator,
    broad: Mask,
    thin: Mask,
    sides: tuple[float, float],
    seat: tuple[float, float],
    thick: int,
) -> None:
    """A back: whole, or posts with slats, upright or across; ``seat`` is its level and height."""
    (left, right), (foot, height) = sides, seat
    top = foot - height / 2 - rng.uniform(0.15, 0.32) * SIDE
    shift = rng.normal(0, 0.05) * SIDE
    if rng.random() < 0.4:
        corners = [(left, foot), (right, foot), (right + shift, top), (left + shift, top)]
        _fill(broad, corners)
        return
    posts = [((side, foot), (side + shift, top)) for side in (left, right)]
    for post in posts:
        _line(thin, *post, thick)
    count, across = int(rng.integers(1, 6)), rng.random() < 0.5
    for part in np.linspace(0, 1, count + 2)[1:] if across else (0.97,):
        start, end = (
            (one[0] + part * (two[0] - one[0]), one[1] + part * (two[1] - one[1]))
            for one, two in posts
        )
        _line(thin, start, end, thick if across else 2 * thick)
    if not across:
        for part in np.linspace(0, 1, count + 2)[1:-1]:
            x = left + part * (right - left)
            _line(thin, (x, foot), (x + shift, top), max(3, thick // 2))


def _arms(
    rng: np.random.Generator, thin: Mask, sides: tuple[float, float], level: float, thick: int
) -> None:
    rise, out = rng.uniform(0.08, 0.16) * SIDE, rng.uniform(0, 0.08) * SIDE
    for side, way in zip(sides, (-1, 1), strict=True):
        elbow = side + way * out, level - rise
        _line(thin, (side, level), elbow, thick)
        _line(thin, elbow, (elbow[0] - way * 0.5 * out, elbow[1] - 0.3 * rise), thick)


def _foot(
    rng: np.random.Generator, thin: Mask, middle: float, level: float, width: float, thick: int
) -> None:
    """A post on a star."""
    hub = middle + rng.normal(0, 0.02) * SIDE, level + rng.uniform(0.2, 0.32) * SIDE
    _line(thin, (middle, level), hub, thick)
    for angle in np.linspace(0.1, np.pi - 0.1, int(rng.integers(3, 6))):
        reach = rng.uniform(0.35, 0.6) * width
        tip = hub[0] + reach * np.cos(angle), hub[1] + 0.35 * reach * np.sin(angle)
        _line(thin, hub, tip, max(3, int(0.8 * thick)))


def _legs(
    rng: np.random.Generator,
    thin: Mask,
    sides: tuple[float, float],
    level: float,
    height: float,
    thick: int,
) -> None:
    """Two pairs, those behind shorter and nearer to each other, by chance with rungs."""
    (left, right), splay = sides, rng.normal(0, 0.05) * SIDE
    bottom = min(0.98 * SIDE, level + height / 2 + rng.uniform(0.2, 0.42) * SIDE)
    inner = rng.uniform(0.05, 0.3) * (right - left)
    pairs = [(left, right, bottom)]
    if rng.random() < 0.8:
        pairs.append((left + inner, right - inner, bottom - rng.uniform(0, 0.4) * height))
    rungs = []
    for one, two, floor in pairs:
        rungs += [((one, level), (one - splay, floor)), ((two, level), (two + splay, floor))]
    for leg in rungs:
        _line(thin, *leg, thick)
    if rng.random() < 0.4:
        part = rng.uniform(0.35, 0.8)
        ends = [(x1 + part * (x2 - x1), y1 + part * (y2 - y1)) for (x1, y1), (x2, y2) in rungs]
        _line(thin, ends[0], ends[1], max(3, int(0.7 * thick)))
        if len(ends) == 4:
            _line(thin, ends[0], ends[2], max(3, int(0.7 * thick)))
            _line(thin, ends[1], ends[3], max(3, int(0.7 * thick)))
