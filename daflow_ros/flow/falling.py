# SPDX-License-Identifier: Apache-2.0
"""Rain and snow taken from a pair along a flow that was found despite them.

A streak or flake brightens what it hides, and the other image shows that place without it, if
the flow is right: so the darker of the two is nearer to the truth (Garg and Nayar, Vision and
Rain, IJCV 2007, take what neighbouring frames show, where the scene is at rest). No
pixel becomes darker than the opening by reconstruction leaves it, so that a wrong flow takes
away no more than that.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from daflow_ros.flow.consistency import warp_bordered
from daflow_ros.flow.preparation import open_by_reconstruction

Image = NDArray[np.uint8]
Flow = NDArray[np.float32]

#: px, of the opening: that of the strongest preparation, for what falls (`flow/hypotheses.py`).
OPENING = 31
#: Grey values by which an image must be brighter: less is interpolation and grain, and darkened
#: would make both images alike along the flow, right or wrong.
BRIGHTER = 8
#: px, of an opening that streaks and flakes do not outlast, but the parts that one picture shows
#: and the other hides mostly do. What rain and snow brighten by less than it is so many times what
#: is darker in turn; blur, noise and rough glass change both alike.
NARROW, BRIGHT = 9, 1.1
#: Steps of the inversion of a flow, and px within which it holds.
STEPS, INVERTED = 8, 1.0


def inverse_flow(flow: Flow) -> tuple[Flow, NDArray[np.bool_]]:
    """Flow back, by fixed points (Chen et al., Medical Physics 2008), and where it holds.

    Args:
        flow: float32 ``(H, W, 2)`` px from the first image to the second.

    Returns:
        ``(H, W, 2)`` px from the second to the first; bool ``(H, W)``, False where the flow does
        not lead back: what comes into sight there.
    """
    back: Flow = -flow
    for _ in range(STEPS):
        back = -np.asarray(warp_bordered(flow, back)[0], np.float32)
    off = back + warp_bordered(flow, back)[0]
    return back, np.hypot(off[..., 0], off[..., 1]) < INVERTED


def _excess(grey: Image, seen: Image, valid: NDArray[np.bool_], opening: int) -> Image:
    """Grey values by which an image is brighter than the other shows it, above its opening."""
    opened = open_by_reconstruction(grey, opening)
    excess = grey - np.maximum(np.minimum(grey, seen), opened)
    return np.where(valid & (excess > BRIGHTER), excess, 0).astype(np.uint8)


def _seen_along(
    image1: Image, image2: Image, flow: Flow
) -> list[tuple[Image, Image, NDArray[np.bool_]]]:
    """Of both images: grey, as the other shows it along the flow, and where it does."""
    grey1, grey2 = (
        np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8) for image in (image1, image2)
    )
    back, valid = inverse_flow(flow)
    from2, inside2 = warp_bordered(grey2, flow)
    from1, inside1 = warp_bordered(grey1, back)
    return [(grey1, from2, inside2), (grey2, from1, inside1 & valid)]


def bright_things_fall(image1: Image, image2: Image, flow: Flow) -> bool:
    """Whether what differs along the flow is mostly narrow and bright, as rain and snow are.

    Args:
        image1, image2: uint8 ``(H, W, 3)`` RGB of one size.
        flow: float32 ``(H, W, 2)`` px from ``image1`` to ``image2``.
    """
    bright = dark = 0.0
    for grey, seen, valid in _seen_along(image1, image2, flow):
        bright += float(_excess(grey, seen, valid, NARROW).mean())
        dark += float(_excess(255 - grey, 255 - seen, valid, NARROW).mean())
    return bright > BRIGHT * dark


def without_falling(image1: Image, image2: Image, flow: Flow) -> tuple[Image, Image]:
    """Both images, each darkened where it is brighter than the other along the flow.

    Args:
        image1, image2: uint8 ``(H, W, 3)`` RGB of one size.
        flow: float32 ``(H, W, 2)`` px from ``image1`` to ``image2``.
    """
    darker: list[Image] = []
    for image, (grey, seen, valid) in zip(
        (image1, image2), _seen_along(image1, image2, flow), strict=True
    ):
        excess = _excess(grey, seen, valid, OPENING)
        darker.append(np.asarray(cv2.subtract(image, cv2.merge([excess] * 3)), np.uint8))
    return darker[0], darker[1]
