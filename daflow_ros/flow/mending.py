# SPDX-License-Identifier: Apache-2.0
"""A clip as it is matched: what is known to be wrong with single pixels and blocks is mended."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from daflow_ros.flow.concealment import conceal_frozen
from daflow_ros.flow.enlargement import without_large_pixels
from daflow_ros.flow.preparation import without_impulses


def mended(frames: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
    """Frames without large pixels and impulses; blocks that froze in the last one concealed.

    Args:
        frames: uint8 ``(H, W, 3)`` RGB, two or more of one size, the pair to match last.
    """
    clip = [without_large_pixels(frame) for frame in frames]
    clip[-1] = conceal_frozen(clip[-2], clip[-1])
    return [without_impulses(frame) for frame in clip]
