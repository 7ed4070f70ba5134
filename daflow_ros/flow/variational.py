# SPDX-License-Identifier: Apache-2.0
"""Variational refinement of a given flow, the last step of DIS (Kroeger et al., ECCV 2016)."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

#: Weights of smoothness, constancy of brightness and of its gradient, and iterations: few outer
#: ones, each solved well. DIS's own are 20, 5, 10, 5 and 5.
ALPHA, DELTA, GAMMA, OUTER, INNER = 10.0, 2.0, 7.0, 5, 20


def refine_variationally(
    flow: NDArray[np.float32], image1: NDArray[np.uint8], image2: NDArray[np.uint8]
) -> NDArray[np.float32]:
    """The flow that, close to the given one, fits the pair better and is smooth.

    What a network adds up from parts is off by tenths of a px where the images would tell it.

    Args:
        flow: float32 ``(H, W, 2)`` px, finite.
        image1, image2: uint8 ``(H, W, 3)`` RGB.

    Returns:
        float32 ``(H, W, 2)`` px, a new array.
    """
    # A new one each time: it keeps buffers between calls, which threads must not share.
    solver = cv2.VariationalRefinement.create()
    solver.setAlpha(ALPHA)
    solver.setDelta(DELTA)
    solver.setGamma(GAMMA)
    solver.setFixedPointIterations(OUTER)
    solver.setSorIterations(INNER)
    first, second = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (image1, image2))
    refined = np.array(flow, dtype=np.float32, order='C')
    solver.calc(first, second, refined)
    return refined
