# SPDX-License-Identifier: Apache-2.0
"""What can be mended in images before they are matched, without knowing what they show.

Single pixels that have gone wrong are replaced (a switching median filter, Sun and Neuvo 1994).
For what compares grey values and counts small differences as noise, a narrow range of
brightness, as fog and darkness leave it, is stretched.
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


def stretch_range(images: Sequence[Image]) -> list[Image]:
    """The same gain and offset for all ``images``, so that together they span 8 bits."""
    grey = np.concatenate([image[::4, ::4].mean(axis=-1).ravel() for image in images])
    dark, bright = np.percentile(grey, [DARK, BRIGHT])
    gain = min(MOST, 255 / max(bright - dark, 1.0))
    if gain <= LEAST:
        return list(images)
    # What a limited gain leaves of the range stays in equal parts below and above.
    rest = max(0.0, 255 - gain * (bright - dark)) / 2
    table = np.clip(np.rint((np.arange(256) - dark) * gain + rest), 0, 255).astype(np.uint8)
    return [table[image] for image in images]
