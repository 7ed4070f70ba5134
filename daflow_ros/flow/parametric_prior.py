# SPDX-License-Identifier: Apache-2.0
"""Flow drawn to the dominant motion by as much as it is unsure and the images do not object.

Most of what a camera sees may move by one affine motion: the ground below, a wall, what is far
behind what is near, all there is when the camera turns. So many pixels tell that motion that it
is far more exact than a flow in noise, haze or blur. Where a camera drives ahead nothing moves
so, and the flow stays. Ours; the motion itself is after Odobez and Bouthemy (JVCIR 1995).
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from daflow_ros.flow.consistency import warp_bordered
from daflow_ros.flow.dominant_motion import affine_flow, fit_affine
from daflow_ros.flow.hypotheses import even_contrast
from daflow_ros.flow.registration import register_affine

#: px from the fitted motion within which a pixel is registered.
FOLLOWS = 1.5
#: px from the registered motion within which a pixel follows it, and within which it nearly does.
NEAR, ABOUT = 1.0, 3.0
#: Shares of all pixels that follow it, and of those that nearly do: below the first of each
#: nothing is drawn, from the second on all. Perspective has few at any motion and many about it.
SHARE, PEAK = (0.4, 0.6), (0.5, 0.7)
#: A flow further than about this many of its expected errors from the dominant motion stays.
REACH = 1.6
#: Share of that where the images fit worse along the dominant motion; they do by more than
#: `WORSE` of their difference along the flow, softened by `SOFT`.
UNFIT, WORSE, SOFT = 0.25, 0.02, 0.015
#: Of the difference: grey values beyond which more does not count, and below which is none; px,
#: standard deviations of the Gaussians on the images and on it.
MOST, FLOOR, BLUR, WINDOW = 40.0, 0.5, 1.0, 5.0


def draw_to_dominant_motion(
    flow: NDArray[np.float32],
    error: NDArray[np.float32],
    image1: NDArray[np.uint8],
    image2: NDArray[np.uint8],
) -> NDArray[np.float32]:
    """Draw a flow to the affine motion that most of it follows.

    Args:
        flow: finite float32 ``(H, W, 2)`` px.
        error: ``(H, W)`` px, expected, not negative.
        image1, image2: uint8 ``(H, W, 3)``.

    Returns:
        float32 ``(H, W, 2)`` px.
    """
    height, width = flow.shape[:2]
    fitted = fit_affine(flow)
    follows = np.linalg.norm(affine_flow(fitted, height, width) - flow, axis=-1) < FOLLOWS
    grey1, grey2 = (
        even_contrast(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8))
        for image in (image1, image2)
    )
    registered = register_affine(grey1, grey2, fitted, follows)
    motion = affine_flow(registered, height, width)
    apart = np.linalg.norm(motion - flow, axis=-1)
    near, about = float((apart < NEAR).mean()), float((apart < ABOUT).mean())
    many = np.interp(near, SHARE, (0, 1))
    trust = float(many * np.interp(near, np.multiply(PEAK, about), (0, 1)))
    if trust == 0:
        return flow
    first, second = (
        cv2.GaussianBlur(image.astype(np.float32), (0, 0), BLUR) for image in (image1, image2)
    )

    def difference(along: NDArray[np.float32]) -> NDArray[np.float32]:
        unlike = np.abs(warp_bordered(second, along)[0] - first).mean(axis=-1)
        return cv2.GaussianBlur(np.minimum(unlike, MOST), (0, 0), WINDOW)

    before = difference(flow)
    worse = (difference(motion) - before) / (before + FLOOR)
    fits = 1 / (1 + np.exp(np.clip((worse - WORSE) / SOFT, -30, 30)))
    reach = REACH * trust * (UNFIT + (1 - UNFIT) * fits) * error
    drawn = 1 / (1 + (apart / (reach + 1e-3)) ** 4)
    return np.asarray(flow + drawn[..., None] * (motion - flow), dtype=np.float32)
