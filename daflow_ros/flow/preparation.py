# SPDX-License-Identifier: Apache-2.0
"""What can be mended in images before they are matched, without knowing what they show.

Single pixels that have gone wrong are replaced (a switching median filter, Sun and Neuvo 1994).
What is bright and small, streaks and flakes, is taken away and the rest keeps its shape (opening
by reconstruction, Vincent, IEEE TIP 1993).
For what compares grey values and counts small differences as noise, a narrow range of
brightness, as fog leaves it, is stretched where it shows the same again in the next picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

#: A value is an impulse that is so many grey values off the median of 3x3, and so many off all of
#: its eight neighbours but one: a line, however thin, has two. In noise that all pixels have, both
#: are at least so many of its standard deviations.
OFF_MEDIAN, OFF_NEIGHBOURS = 30, 25
DEVIATIONS = 6.0
#: Percentiles of brightness, which become black and white.
DARK, BRIGHT = 0.5, 99.5
#: Noise and steps of 8 bits are stretched, too: no further than so many times, and not at all
#: below.
MOST, LEAST = 4.0, 1.1
#: Least `detail_agreement` for that.
AGREEMENT = 0.7
#: px, width below which what is bright goes even where it touches what stays: falling streaks
#: hang together with bright skies and walls.
STREAK = 5
#: Steps of a reconstruction between looks at whether it goes on.
STEPS = 8


def without_impulses(image: Image) -> Image:
    """``image`` (uint8 ``(H, W, 3)``), its impulses replaced by the median of 3x3, by channel."""
    height, width = image.shape[:2]
    if min(height, width) < 2:
        return image
    wide = cv2.copyMakeBorder(image, 1, 1, 1, 1, cv2.BORDER_REFLECT_101)
    nearest = second = np.full_like(image, 255)
    for i, j in ((i, j) for i in range(3) for j in range(3) if (i, j) != (1, 1)):
        apart = cv2.absdiff(image, wide[i : i + height, j : j + width])
        second = np.minimum(second, np.maximum(nearest, apart))
        nearest = np.minimum(nearest, apart)
    median = cv2.medianBlur(image, 3)
    off = cv2.absdiff(image, median)
    # Of most pixels: impulses, being fewer, do not count.
    noise = DEVIATIONS * 1.4826 * float(np.median(off[::2, ::2]))
    impulse = (off > max(OFF_MEDIAN, noise)) & (second > max(OFF_NEIGHBOURS, noise))
    return np.where(impulse, median, image)


def open_by_reconstruction(grey: Image, side: int) -> Image:
    """Take away what is brighter than all about it and narrower than ``side`` px.

    An opening also rounds off and darkens all that it leaves. Grown again from there, no brighter
    than the image was, what is left has its shape and detail back. Upright streaks below `STREAK`
    px go first.

    Args:
        grey: uint8 ``(H, W)``.
        side: of the opening, px, odd.

    Returns:
        uint8 ``(H, W)``, nowhere brighter than ``grey``.
    """
    line = np.ones((1, STREAK), np.uint8)
    above = cv2.morphologyEx(grey, cv2.MORPH_OPEN, line)
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    grown: Image = np.asarray(cv2.morphologyEx(above, cv2.MORPH_OPEN, kernel), np.uint8)
    step = np.ones((3, 3), np.uint8)
    while True:
        before = grown
        for _ in range(STEPS):
            grown = np.asarray(cv2.min(cv2.dilate(grown, step), above), np.uint8)
        if np.array_equal(grown, before):
            return grown


def noise_level(grey: Image) -> float:
    """Standard deviation of the noise, grey values (Immerkaer 1996, by median).

    By what a kernel finds that is blind to planes and straight edges; few streaks or flakes do
    not count.
    """
    side = np.array([1, -2, 1], np.float32)
    found = cv2.sepFilter2D(grey, cv2.CV_32F, side, side)
    return 1.4826 * float(np.median(np.abs(found))) / 6


def detail_agreement(image1: Image, image2: Image, flows: NDArray[np.float32]) -> float:
    """Correlation of the fine detail of two images along that of several flows where it is most.

    Clear and hazy pairs come to 0.8 and more, for what they show is what is there; noise, streaks
    and flakes, which the next picture does not show again, to less.

    Args:
        image1, image2: uint8 ``(H, W, 3)``.
        flows: float32 ``(N, H, W, 2)`` px.
    """
    height, width = (max(1, side // 2) for side in image1.shape[:2])
    first, second = (
        cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        .astype(np.float32)
        .mean(axis=-1)
        for image in (image1, image2)
    )
    here = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    detail = first - cv2.blur(first, (5, 5))
    best = 0.0
    for flow in flows:
        there = (here + flow[: 2 * height : 2, : 2 * width : 2] / 2).astype(np.float32)
        x, y = there[..., 0], there[..., 1]
        warped = cv2.remap(second, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        other = warped - cv2.blur(warped, (5, 5))
        size = float(np.sqrt((detail**2).mean() * (other**2).mean()))
        best = max(best, float((detail * other).mean()) / (size + 1e-6))
    return best


def stretch_range(images: Sequence[Image], flows: NDArray[np.float32]) -> list[Image]:
    """The same gain and offset for all ``images``, so that together they span 8 bits.

    As they are where their detail does not agree: rain, flakes and noise would be raised, too.

    Args:
        images: uint8 ``(H, W, 3)``, two or more.
        flows: ``(N, H, W, 2)`` px, of the last two, any of which may be right.
    """
    grey = np.concatenate([image[::4, ::4].mean(axis=-1).ravel() for image in images])
    dark, bright = np.percentile(grey, [DARK, BRIGHT])
    gain = min(MOST, 255 / max(bright - dark, 1.0))
    if gain <= LEAST or detail_agreement(images[-2], images[-1], flows) < AGREEMENT:
        return list(images)
    # What a limited gain leaves of the range stays in equal parts below and above.
    rest = max(0.0, 255 - gain * (bright - dark)) / 2
    table = np.clip(np.rint((np.arange(256) - dark) * gain + rest), 0, 255).astype(np.uint8)
    return [table[image] for image in images]
