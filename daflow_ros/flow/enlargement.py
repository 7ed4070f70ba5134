# SPDX-License-Identifier: Apache-2.0
"""Images that were enlarged without interpolation, as by digital zoom or a small thermal camera.

Their large pixels have edges that stand still, whatever moves, and hold a matcher back. Each is
a sample of a small image, which can be read off and enlarged again with interpolation.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]

#: Enlargements that are looked for; less shows little of its edges.
SMALLEST_FACTOR, LARGEST_FACTOR = 1.4, 16.0


def _samples(changes: NDArray[np.bool_]) -> NDArray[np.intp] | None:
    """Which sample of the fewest that explain it each of N rows (or columns) shows, or None.

    ``changes``: ``(N - 1,)``, whether a row differs from the next.
    """
    count = len(changes) + 1
    fewest = max(2, int(np.ceil(count / LARGEST_FACTOR)), int(changes.sum()) + 1)
    for samples in range(fewest, int(count / SMALLEST_FACTOR) + 1):
        # From the middle of a row, or from its border, as OpenCV does.
        for offset in (0.5, 0.0):
            index = np.floor((np.arange(count) + offset) * samples / count).astype(np.intp)
            if not (changes & (np.diff(index) == 0)).any():
                return index
    return None


def without_large_pixels(image: Image) -> Image:
    """``image`` enlarged anew, bilinearly, if it was enlarged by copying pixels.

    Args:
        image: uint8 ``(H, W, 3)``.

    Returns:
        uint8 ``(H, W, 3)``; ``image`` itself where not both its rows and its columns repeat.
    """
    first: list[NDArray[np.intp]] = []
    for axis in (0, 1):
        ahead, behind = (image[1:], image[:-1]) if axis == 0 else (image[:, 1:], image[:, :-1])
        index = _samples((ahead != behind).any(axis=(1 - axis, 2)))
        if index is None:
            return image
        first.append(np.unique(index, return_index=True)[1])
    small = np.ascontiguousarray(image[first[0]][:, first[1]])
    enlarged = cv2.resize(small, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return np.asarray(enlarged, np.uint8)
