# SPDX-License-Identifier: Apache-2.0
"""A renderer of textured planes whose optical flow is exact.

A scene is a list of textured parallelograms, painted from the far to the near. What a pixel shows
is one point of one of them, so that its flow follows from the plane's homographies in two frames:
no field is estimated or interpolated.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

_NEAR = 0.2  # m


@dataclass
class Texture:
    """An image with prefiltered copies for every distance and slant.

    Args:
        image: uint8 (H, W, 4) RGBA, colour premultiplied with alpha, or (H, W, 3) if opaque.
        repeat: how often it is laid along (u, v) of its plane.
    """

    image: NDArray[np.uint8]
    repeat: tuple[float, float] = (1.0, 1.0)
    _levels: dict[tuple[int, int], NDArray[np.uint8]] = field(default_factory=dict)

    def level(self, i: int, j: int) -> NDArray[np.uint8]:
        """Return the copy shrunk by 2^(i/2) horizontally and 2^(j/2) vertically."""
        if (i, j) not in self._levels:
            height, width = self.image.shape[:2]
            size = (max(1, round(width / 2 ** (i / 2))), max(1, round(height / 2 ** (j / 2))))
            self._levels[i, j] = np.asarray(
                cv2.resize(self.image, size, interpolation=cv2.INTER_AREA), np.uint8)
        return self._levels[i, j]

    def sample(self, u: Array, v: Array, du: Array, dv: Array) -> NDArray[np.float32]:
        """Colours at (u, v) in [0, 1] where a pixel covers (du, dv): float32 (..., 4) in 0..255.

        The copy is chosen for each pixel and axis, so that a street seen at a flat angle neither
        flickers nor blurs.
        """
        height, width = self.image.shape[:2]
        border = cv2.BORDER_WRAP if max(self.repeat) > 1 else cv2.BORDER_REPLICATE
        levels = []
        for step, repeat, size in ((du, self.repeat[0], width), (dv, self.repeat[1], height)):
            texels = np.maximum(step * repeat * size, 1e-9)
            top = int(2 * np.log2(max(size, 2)))
            levels.append(np.clip(np.round(2 * np.log2(texels) - 0.5), 0, top).astype(np.int32))
        code = levels[0] * 64 + levels[1]
        out = np.empty((*u.shape, self.image.shape[2]), np.float32)
        for key in np.unique(code):
            picked = code == key
            rows = np.flatnonzero(picked.any(axis=1))
            columns = np.flatnonzero(picked.any(axis=0))
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            source = self.level(int(key) // 64, int(key) % 64)
            map_x = u[box] * (self.repeat[0] * source.shape[1]) - 0.5
            map_y = v[box] * (self.repeat[1] * source.shape[0]) - 0.5
            colours = cv2.remap(
                source, map_x.astype(np.float32), map_y.astype(np.float32), cv2.INTER_LINEAR,
                borderMode=border)
            np.copyto(out[box], colours, where=picked[box][..., None])
        if out.shape[-1] == 3:
            out = np.concatenate([out, np.full((*u.shape, 1), 255, np.float32)], axis=-1)
        return out


@dataclass
class Plane:
    """A textured parallelogram in the world (x right, y down, z forward; m).

    Args:
        texture: laid so that u runs along ``axis_u`` and v along ``axis_v``.
        origin: corner where u = v = 0, (3,).
        axis_u: whole side, (3,).
        axis_v: whole side, (3,).
        layer: painted by layer first, within a layer from the far to the near.
        position: added to the origin at a time (frames), None for what stands still.
        infinite: the plane is a direction (sky): it turns with the camera but comes no nearer.
        shade: darkens what is painted already and has no flow of its own (a shadow).
    """

    texture: Texture
    origin: Array
    axis_u: Array
    axis_v: Array
    layer: int
    position: Callable[[float], Array] | None = None
    infinite: bool = False
    shade: bool = False

    def matrix(self, camera: Camera, time: float) -> Array:
        """Homography (3, 3): (u, v, 1) to z * (x px, y px, 1), z the depth in m."""
        origin = self.origin if self.position is None else self.origin + self.position(time)
        offset = origin if self.infinite else origin - camera.centre(time)
        columns = np.stack([self.axis_u, self.axis_v, offset], axis=1)
        return camera.intrinsics @ camera.rotation(time) @ columns


@dataclass
class Camera:
    """A pin-hole camera on a path.

    Args:
        intrinsics: (3, 3), px; pixel centres lie at whole numbers.
        centre: position in the world at a time (frames), (3,) m.
        rotation: world to camera at a time, (3, 3).
    """

    intrinsics: Array
    centre: Callable[[float], Array]
    rotation: Callable[[float], Array]


@dataclass
class RenderedFrame:
    """A frame and its truth.

    ``image`` uint8 (H, W, 3) RGB; ``flow`` float32 (H, W, 2) px to the next frame; ``plane`` int16
    (H, W) number of the plane seen; ``depth`` float32 (H, W) m (inf for the sky).
    """

    image: NDArray[np.uint8]
    flow: NDArray[np.float32]
    plane: NDArray[np.int16]
    depth: NDArray[np.float32]


def _box(matrix: Array, height: int, width: int) -> tuple[int, int, int, int] | None:
    """Pixel box (top, bottom, left, right) that a plane can cover, clipped at the near plane."""
    corners = [matrix @ np.array([u, v, 1.0]) for u, v in ((0, 0), (1, 0), (1, 1), (0, 1))]
    points = []
    for a, b in zip(corners, corners[1:] + corners[:1], strict=True):
        if a[2] >= _NEAR:
            points.append(a)
        if (a[2] >= _NEAR) != (b[2] >= _NEAR):
            points.append(a + (b - a) * (_NEAR - a[2]) / (b[2] - a[2]))
    if len(points) < 3:
        return None
    pixels = np.array([p[:2] / p[2] for p in points])
    left, top = np.maximum(np.floor(pixels.min(axis=0)).astype(int) - 1, 0)
    right, bottom = np.minimum(np.ceil(pixels.max(axis=0)).astype(int) + 2, (width, height))
    return (top, bottom, left, right) if left < right and top < bottom else None


def render(
    planes: Sequence[Plane], camera: Camera, time: float, size: tuple[int, int],
    haze: tuple[float, float, float] = (200.0, 205.0, 210.0), visibility: float = 220.0,
) -> RenderedFrame:
    """Render a frame and the flow to the frame at ``time + 1``.

    Args:
        planes: the scene.
        camera: the camera.
        time: in frames.
        size: (height, width) px.
        haze: RGB that distance fades to.
        visibility: distance (m) at which 5 % of the contrast is left.
    """
    height, width = size
    image = np.zeros((height, width, 3), np.float32)
    flow = np.zeros((height, width, 2), np.float32)
    seen = np.full((height, width), -1, np.int16)
    depth = np.full((height, width), np.inf, np.float32)
    matrices = [plane.matrix(camera, time) for plane in planes]
    middles = [float((m @ np.array([0.5, 0.5, 1.0]))[2]) for m in matrices]
    order = sorted(range(len(planes)), key=lambda k: (planes[k].layer, -middles[k]))
    fading = np.log(0.05) / visibility
    for k in order:
        plane, matrix = planes[k], matrices[k]
        box = _box(matrix, height, width)
        if box is None:
            continue
        top, bottom, left, right = box
        area = np.s_[top:bottom, left:right]
        y, x = np.mgrid[top:bottom, left:right].astype(np.float64)
        inverse = np.linalg.inv(matrix)
        # inverse @ (x, y, 1) = (u, v, 1) / z
        over_z = inverse[2, 0] * x + inverse[2, 1] * y + inverse[2, 2]
        front = over_z > 1e-9
        z = 1.0 / np.where(front, over_z, 1.0)
        u = (inverse[0, 0] * x + inverse[0, 1] * y + inverse[0, 2]) * z
        v = (inverse[1, 0] * x + inverse[1, 1] * y + inverse[1, 2]) * z
        du = z * np.maximum(abs(inverse[0, 0] - u * inverse[2, 0]),
                            abs(inverse[0, 1] - u * inverse[2, 1]))
        dv = z * np.maximum(abs(inverse[1, 0] - v * inverse[2, 0]),
                            abs(inverse[1, 1] - v * inverse[2, 1]))
        # Share of the pixel inside the outline, for edges without stairs.
        inside = (np.clip(0.5 + np.minimum(u, 1 - u) / du, 0, 1)
                  * np.clip(0.5 + np.minimum(v, 1 - v) / dv, 0, 1))
        inside = np.where(front, inside, 0.0)
        if not inside.any():
            continue
        # Outside the outline coordinates run off to where no texture is.
        colours = plane.texture.sample(
            np.clip(u, 0, 1), np.clip(v, 0, 1), np.minimum(du, 1), np.minimum(dv, 1))
        colours *= inside[..., None].astype(np.float32)
        alpha = colours[..., 3:] / 255.0
        if plane.shade:
            image[area] *= 1.0 - alpha
            continue
        clear = np.ones_like(z) if plane.infinite else np.exp(fading * np.where(front, z, 1e3))
        clear = clear[..., None].astype(np.float32)
        faded = colours[..., :3] * clear + np.array(haze, np.float32) * (alpha * (1.0 - clear))
        image[area] = image[area] * (1.0 - alpha) + faded
        # The truth has no half pixels: the plane that covers most of a pixel owns it.
        owned = alpha[..., 0] >= 0.5
        target = plane.matrix(camera, time + 1.0)
        after = [target[i, 0] * u + target[i, 1] * v + target[i, 2] for i in range(3)]
        after_z = np.where(owned, after[2], 1.0)
        motion = np.stack([after[0] / after_z - x, after[1] / after_z - y], axis=-1)
        np.copyto(flow[area], motion.astype(np.float32), where=owned[..., None])
        np.copyto(seen[area], np.int16(k), where=owned)
        np.copyto(depth[area], np.float32(np.inf) if plane.infinite else z.astype(np.float32),
                  where=owned)
    return RenderedFrame(np.clip(np.round(image), 0, 255).astype(np.uint8), flow, seen, depth)
