# SPDX-License-Identifier: Apache-2.0
"""Pictures of flow: the Middlebury colour wheel (Baker et al. 2011), arrows, overlays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

# Hues of the wheel and how many steps lie between each and the next.
_SEGMENTS = (
    ((255, 0, 0), 15), ((255, 255, 0), 6), ((0, 255, 0), 4),
    ((0, 255, 255), 11), ((0, 0, 255), 13), ((255, 0, 255), 6),
)


def color_wheel() -> npt.NDArray[np.float64]:
    """Build the 55 colours of the wheel, (55, 3) in [0, 255], starting at red.

    As the reference code does, the steps are rounded down to whole levels.
    """
    rows = []
    for index, (start, count) in enumerate(_SEGMENTS):
        end = _SEGMENTS[(index + 1) % len(_SEGMENTS)][0]
        step = np.arange(count)[:, None] / count
        change = np.subtract(end, start)
        # Rising channels are rounded down, falling ones are 255 less a rounded-down part.
        rows.append(np.add(start, np.sign(change) * np.floor(np.abs(change) * step)))
    return np.concatenate(rows)


def _tints() -> npt.NDArray[np.float32]:
    """What each hue takes from white: the wheel blended to 64 steps between its colours."""
    wheel = color_wheel()
    position = np.arange((len(wheel) - 1) * 64 + 1) / 64
    lower = position.astype(np.intp)
    share = (position - lower)[:, None]
    color = (1 - share) * wheel[lower] + share * wheel[(lower + 1) % len(wheel)]
    return (255 - color).astype(np.float32)


_TINTS = _tints()


def flow_to_color(flow: npt.NDArray[np.floating], max_flow: float | None = None) -> Image:
    """Colour flow by direction (hue) and length (saturation), as Middlebury does.

    Args:
        flow: (H, W, 2) px, u right, v down. Vectors that are not finite are drawn black.
        max_flow: length in px that gets the full colour; longer vectors are darkened. None
            takes the longest vector of this field; fix it to compare fields, or a video
            flickers.

    Returns:
        uint8 (H, W, 3) RGB: white is no motion, red is right, yellow-green is down, cyan left,
        violet up.

    """
    if flow.ndim != 3 or flow.shape[2] != 2:
        raise ValueError(f'flow is (H, W, 2), given {flow.shape}')
    if max_flow is not None and not max_flow > 0:
        raise ValueError(f'max_flow is a positive length in px, given {max_flow}')
    flow = flow.astype(np.float32, copy=False)
    finite = np.isfinite(flow).all(axis=-1)
    if not finite.all():
        flow = np.where(finite[..., None], flow, np.float32(0))
    u, v = flow[..., 0], flow[..., 1]
    length = np.hypot(u, v)
    if max_flow is None:
        max_flow = float(length.max(initial=0)) or 1.0
    radius = length / np.float32(max_flow)
    turn = (np.arctan2(-v, -u) / np.pi + 1) / 2
    color = _TINTS.take(np.rint(turn * (len(_TINTS) - 1)).astype(np.intp), axis=0)
    color *= radius.clip(max=1)[..., None]
    np.subtract(255, color, out=color)
    color[radius > 1] *= 0.75
    image = color.astype(np.uint8)
    image[~finite] = 0
    return image


def draw_arrows(
    image: Image, flow: npt.NDArray[np.floating], step: int = 16,
    color: tuple[int, int, int] = (0, 255, 0),
) -> Image:
    """Draw every `step`-th vector on a copy of an RGB image (H, W, 3), needs OpenCV.

    Vectors that are not finite are left out; a vector shorter than half a pixel is a dot.
    """
    import cv2

    if step < 1:
        raise ValueError(f'step is at least 1 px, given {step}')
    height, width = flow.shape[:2]
    if image.shape != (height, width, 3):
        raise ValueError(f'flow {flow.shape} does not fit image {image.shape}')
    canvas: Image = np.ascontiguousarray(image).copy()
    for y in range(step // 2, height, step):
        for x in range(step // 2, width, step):
            u, v = (float(part) for part in flow[y, x])
            if not (np.isfinite(u) and np.isfinite(v)):
                continue
            # Beyond any image, OpenCV's integers would overflow.
            end = (round(x + max(min(u, 1e4), -1e4)), round(y + max(min(v, 1e4), -1e4)))
            if np.hypot(u, v) < 0.5:
                cv2.circle(canvas, (x, y), 1, color, -1)
            else:
                cv2.arrowedLine(canvas, (x, y), end, color, 1, cv2.LINE_AA, tipLength=0.3)
    return canvas


def overlay(image: Image, flow_rgb: Image, alpha: float = 0.5) -> Image:
    """Blend a flow picture over an image of the same shape; alpha in [0, 1] is the flow's."""
    if image.shape != flow_rgb.shape:
        raise ValueError(f'images {image.shape} and {flow_rgb.shape} differ in shape')
    if not 0 <= alpha <= 1:
        raise ValueError(f'alpha lies in [0, 1], given {alpha}')
    mixed = (1 - alpha) * image.astype(np.float32) + alpha * flow_rgb
    return np.asarray(np.rint(mixed), dtype=np.uint8)
