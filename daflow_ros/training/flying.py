# SPDX-License-Identifier: Apache-2.0
"""Flying cut-outs: photographs with things that move before them, nearly as sharp as pictures are.

After FlyingChairs (Dosovitskiy et al., ICCV 2015, section 4), with free photographs and sprites:
every layer moves by one homography, which is nearly affine in most pairs, and the flow is exact.
Surfaces are shrunk to twice the resolution of the frames, drawn there and averaged, so that they
keep the fine detail of photographs, which `scenes.py` loses by sampling twice.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from daflow_ros.training.furniture import furniture
from daflow_ros.training.sprites import filled, read_cut_out, sprite_files
from daflow_ros.training.textures import IMAGE_SUFFIXES

#: Of the frames, px.
WIDTH, HEIGHT = 512, 384
#: Photographs below this many px a side are too small, sprites too; larger sprites are shrunk.
SMALLEST_PHOTO, SMALLEST_SPRITE, LARGEST_SPRITE = 300, 48, 512
#: Share of the cut-outs that are furniture, and how far it and the others move by themselves:
#: means of exponentials in px, and how often each.
FURNITURE = 0.25
FAR, NEAR = ((3, 12, 30), (0.3, 0.4, 0.3)), ((1, 5, 13), (0.25, 0.5, 0.25))

Array = NDArray[np.float32]
Matrix = NDArray[np.float64]


@dataclass
class Layer:
    """A surface that moves.

    Attributes:
        colour: float32 ``(h, w, 3)`` RGB, 0 to 255.
        alpha: uint8 ``(h, w)``, or None for the background, which has no end.
        place: 3x3, from px of the first frame to texels.
        motion: 3x3, from px of the first frame to px of the second.
    """

    colour: Array
    alpha: NDArray[np.uint8] | None
    place: Matrix
    motion: Matrix


def _shift(x: float, y: float) -> Matrix:
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]], np.float64)


def _about(matrix: Matrix, x: float, y: float) -> Matrix:
    return _shift(x, y) @ matrix @ _shift(-x, -y)


def read_photos(folder: Path) -> list[NDArray[np.uint8]]:
    """RGB photographs of a folder.

    Raises:
        FileNotFoundError: none that is large enough.
    """
    photos = []
    paths = sorted(p for p in folder.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
    for path in tqdm(paths, desc='photographs', unit='img'):
        image = cv2.imread(str(path), cv2.IMREAD_COLOR)
        if image is not None and min(image.shape[:2]) >= SMALLEST_PHOTO:
            photos.append(np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8))
    if not photos:
        raise FileNotFoundError(f'{folder}: no photographs of {SMALLEST_PHOTO} px or more')
    return photos


def read_sprites(folder: Path) -> list[NDArray[np.uint8]]:
    """RGBA pictures ``(h, w, 4)`` with an outline of their own.

    Raises:
        FileNotFoundError: none.
    """
    paths = sprite_files(folder)
    with ThreadPoolExecutor() as pool:
        read = tqdm(pool.map(_read_sprite, paths), 'sprites', len(paths), unit='img')
        sprites = [sprite for sprite in read if sprite is not None]
    if not sprites:
        raise FileNotFoundError(f'{folder}: no pictures with transparency')
    return sprites


def _read_sprite(path: Path) -> NDArray[np.uint8] | None:
    image = read_cut_out(path)
    if image is None:
        return None
    side = max(image.shape[:2])
    if side > LARGEST_SPRITE:
        scale = LARGEST_SPRITE / side
        image = np.asarray(
            cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8
        )
    if side < SMALLEST_SPRITE or not 0.05 < image[..., 3].mean() / 255 < 0.98:
        return None
    rgba = np.concatenate([filled(image), image[..., 3:]], axis=2)
    return rgba.clip(0, 255).astype(np.uint8)


class FlyingPairs:
    """Pairs of 512x384 px with exact flow.

    Args:
        imagery: folder of ``daflow imagery``.
        plain: share of pairs in which surfaces may be black, white, blown out or nearly plain:
            what nothing can match, and a network must not invent a motion for.

    Raises:
        FileNotFoundError: no photographs or sprites there.
    """

    def __init__(self, imagery: str | Path, plain: float = 0.4) -> None:
        self.plain = plain
        self.photos = read_photos(Path(imagery) / 'photos')
        self.sprites = read_sprites(Path(imagery) / 'sprites')

    def __call__(
        self, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], Array, NDArray[np.bool_]]:
        """Frames uint8 ``(2, H, W, 3)`` RGB, flow ``(H, W, 2)`` px and occluded ``(H, W)``."""
        perspective = 6e-5 if rng.random() < 0.3 else 0.0
        layers = [self._background(rng, perspective)]
        most = rng.choice([3, 9, 19])
        for _ in range(rng.integers(most // 2, most + 1)):
            layers.append(self._cut_out(rng, layers[0].motion, perspective))
        if rng.random() < self.plain:
            layers = [replace(x, colour=_plain(rng, x)) for x in layers]
        (first, top), (second, later) = (draw(layers, second) for second in (False, True))
        frames: NDArray[Any] = np.stack([first, second])
        exposed = rng.random()
        if exposed < 0.12:
            frames = frames * rng.uniform(1.2, 2.2)
        elif exposed < 0.2:
            frames = (frames - rng.uniform(20, 90)) * rng.uniform(1, 1.5)
        frames = frames * (1 + rng.normal(0, 0.02, (2, 1, 1, 1)))
        flow = exact_flow(layers, top)
        images = np.clip(np.rint(frames), 0, 255).astype(np.uint8)
        return images, flow, occlusion(flow, top, later)

    def _background(self, rng: np.random.Generator, perspective: float) -> Layer:
        photo = self.photos[rng.integers(len(self.photos))]
        if rng.random() < 0.5:
            photo = photo[:, ::-1]
        height, width = photo.shape[:2]
        widest = min(2.2, max(1.0, 1.15 * min(height / HEIGHT, width / WIDTH)))
        scale = rng.uniform(0.9, widest)
        colour, scale = _shrunk(photo.astype(np.float32), scale)
        if rng.random() < 0.5:
            colour = _tinted(rng, colour)
        x, y = (
            rng.uniform(0, max(texels - scale * px, 1))
            for texels, px in zip(colour.shape[1::-1], (WIDTH, HEIGHT), strict=True)
        )
        motion = _motion(rng, (3, 9, 22), (0.5, 0.38, 0.12), 1.2, 0.015, perspective)
        place = _shift(x, y) @ np.diag([scale, scale, 1.0])
        return Layer(colour, None, place, _about(motion, WIDTH / 2, HEIGHT / 2))

    def _cut_out(self, rng: np.random.Generator, behind: Matrix, perspective: float) -> Layer:
        legged = rng.random() < FURNITURE
        colour, alpha, size = self._furniture(rng) if legged else self._thing(rng)
        if rng.random() < 0.5:
            colour = _lit(rng, colour, rng.uniform(0.1, 0.35))
        rgba, scale = _shrunk(np.dstack([colour, alpha]), max(alpha.shape) / size)
        x, y = rng.uniform(-0.05, 1.05, 2) * (WIDTH, HEIGHT)
        turn = np.deg2rad(rng.normal(0, 12))
        rotation = np.eye(3)
        rotation[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        place = _shift(rgba.shape[1] / 2, rgba.shape[0] / 2) @ np.diag([scale, scale, 1.0])
        place = place @ rotation @ _shift(-x, -y)
        # It is carried along by what is behind it, and moves by itself.
        own = _motion(rng, *(FAR if legged else NEAR), 3.0, 0.03, perspective / 2)
        there = behind @ (x, y, 1)
        motion = _about(own, *(there[:2] / there[2])) @ behind
        return Layer(
            np.ascontiguousarray(rgba[..., :3]),
            rgba[..., 3].clip(0, 255).astype(np.uint8),
            place,
            motion,
        )

    def _thing(self, rng: np.random.Generator) -> tuple[Array, NDArray[np.uint8], float]:
        """A sprite or a drawn shape: colour, alpha, and its longer side in px."""
        size = float(np.clip(rng.lognormal(np.log(120), 0.7), 24, 420))
        drawn = rng.random() < 0.35
        if drawn:
            alpha = outline(rng)
        else:
            sprite = self.sprites[rng.integers(len(self.sprites))]
            sprite = sprite[:, ::-1] if rng.random() < 0.5 else sprite
            colour, alpha = sprite[..., :3].astype(np.float32), sprite[..., 3]
        kind = rng.random()
        if drawn or kind < 0.25:
            larger = min(2, max(1, round(2 * size / max(alpha.shape))))
            alpha = np.asarray(cv2.resize(alpha, None, fx=larger, fy=larger), np.uint8)
            colour = self._patch(rng, alpha.shape, size)
        elif kind < 0.45:
            mean = colour.mean(axis=(0, 1))
            colour = mean + rng.uniform(0.05, 0.5) * (colour - mean)
        return _tinted(rng, colour), alpha, size

    def _furniture(self, rng: np.random.Generator) -> tuple[Array, NDArray[np.uint8], float]:
        """A broad part and thin ones, of one material or of two: as `_thing`."""
        size = float(np.clip(rng.lognormal(np.log(150), 0.5), 50, 420))
        broad, thin = furniture(rng)
        colour = self._patch(rng, broad.shape, size)
        if rng.random() < 0.6:
            mean = colour.mean(axis=(0, 1))
            colour = mean + rng.uniform(0, 0.4) * (colour - mean)
        colour = _tinted(rng, colour)
        rods = colour * rng.uniform(0.4, 1.0)
        if rng.random() < 0.6:  # dark, of metal or white
            rods = rng.choice([12, 90, 200]) + rng.normal(0, 12, 3)
        over = thin[..., None] / np.float32(255)
        if rng.random() < 0.5:  # before the broad part, or behind it
            over = over * (broad[..., None] == 0)
        colour = (colour + over * (rods - colour)).clip(0, 255)
        return np.asarray(colour, np.float32), np.maximum(broad, thin), size

    def _patch(self, rng: np.random.Generator, shape: tuple[int, ...], size: float) -> Array:
        """A piece of a photograph, some 0.8 to 2 of its texels for a px."""
        photo = self.photos[rng.integers(len(self.photos))]
        scale = rng.uniform(0.8, 2.0) * size / max(shape)
        scale = min(scale, photo.shape[0] / shape[0], photo.shape[1] / shape[1])
        height, width = (max(1, int(side * scale)) for side in shape)
        top = rng.integers(photo.shape[0] - height + 1)
        left = rng.integers(photo.shape[1] - width + 1)
        piece = photo[top : top + height, left : left + width]
        how = cv2.INTER_AREA if scale > 1 else cv2.INTER_LINEAR
        return np.asarray(cv2.resize(piece, shape[::-1], interpolation=how), np.float32)


def _shrunk(surface: Array, scale: float) -> tuple[Array, float]:
    """No finer than two texels for a px, and its texels a px."""
    factor = min(1.0, 2 / scale)
    if factor == 1:
        return surface, scale
    height, width = (max(2, round(side * factor)) for side in surface.shape[:2])
    small = cv2.resize(surface, (width, height), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32), scale * width / surface.shape[1]


def _tinted(rng: np.random.Generator, colour: Array) -> Array:
    tinted = colour * rng.uniform(0.75, 1.25, 3) + rng.uniform(-30, 30)
    return np.asarray(tinted.clip(0, 255), np.float32)


def _plain(rng: np.random.Generator, layer: Layer) -> Array:
    """A layer's colours, by chance blown out or pale, those of a cut-out black or white."""
    colour, kind = layer.colour, rng.random()
    if layer.alpha is None:
        if kind < 0.25:
            colour = colour * rng.uniform(1.8, 4)
        elif kind < 0.33:
            mean = colour.mean(axis=(0, 1))
            colour = mean + rng.uniform(0.02, 0.2) * (colour - mean)
    elif kind < 0.2:
        colour = colour * rng.uniform(0, 0.2)
    elif kind < 0.28:
        colour = 255 - (255 - colour) * rng.uniform(0, 0.2)
    return np.asarray(np.clip(colour, 0, 255), np.float32)


def _lit(rng: np.random.Generator, colour: Array, strength: float) -> Array:
    coarse = rng.normal(0, 1, (4, 4)).astype(np.float32)
    field = cv2.resize(coarse, colour.shape[1::-1], interpolation=cv2.INTER_CUBIC)
    return np.asarray((colour * np.exp(strength * field)[..., None]).clip(0, 255), np.float32)


def _motion(
    rng: np.random.Generator,
    means: tuple[float, ...],
    shares: tuple[float, ...],
    turn: float,
    zoom: float,
    perspective: float,
) -> Matrix:
    """A homography about 0: shift in px (a mixture of exponentials), turn in degrees, zoom."""
    far = rng.exponential(means[rng.choice(len(means), p=shares)])
    way = rng.uniform(0, 2 * np.pi)
    angle, scale = np.deg2rad(rng.laplace(0, turn)), np.exp(rng.laplace(0, zoom))
    sine, cosine = scale * np.sin(angle), scale * np.cos(angle)
    wide, high = 1 + rng.normal(0, zoom / 2, 2)
    return np.array(
        [
            [cosine * wide, -sine, far * np.cos(way)],
            [sine, cosine * high, far * np.sin(way)],
            [*rng.normal(0, perspective, 2), 1],
        ]
    )


def outline(rng: np.random.Generator, side: int = 256) -> NDArray[np.uint8]:
    """A drawn shape, uint8 ``(side, side)``: polygon, ellipse, or crossing bars."""
    mask = np.zeros((side, side), np.uint8)
    middle, kind = side // 2, rng.integers(4)
    if kind == 0:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 10)))
        radii = rng.uniform(0.4, 0.95, len(angles)) * middle
        points = middle + np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
        cv2.fillPoly(mask, [points.astype(np.int32)], (255,), cv2.LINE_AA)
    elif kind == 1:
        axes = int(0.48 * side), int(rng.uniform(0.1, 0.48) * side)
        turn = rng.uniform(0, 180)
        cv2.ellipse(mask, (middle, middle), axes, turn, 0, 360, (255,), -1, cv2.LINE_AA)
    else:
        for _ in range(rng.integers(1, 7)):
            (x1, y1), (x2, y2) = rng.integers(8, side - 8, (2, 2)).tolist()
            cv2.line(mask, (x1, y1), (x2, y2), (255,), int(rng.integers(3, 22)), cv2.LINE_AA)
        if kind == 3:
            (x1, y1), (x2, y2) = rng.integers(20, 120, (2, 2)).tolist()
            cv2.rectangle(mask, (x1, y1), (x2 + side // 2 - 10, y2 + side // 2 - 10), (255,), -1)
    return mask


def draw(layers: list[Layer], second: bool) -> tuple[Array, NDArray[np.int16]]:
    """A frame, float32 ``(H, W, 3)``, and the layer on top of each px, int16 ``(H, W)``."""
    # From px of the doubled frame to px.
    halved = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    top = np.zeros((HEIGHT, WIDTH), np.int16)
    frame = np.zeros((2 * HEIGHT, 2 * WIDTH, 3), np.float32)
    for number, layer in enumerate(layers):
        place = layer.place @ np.linalg.inv(layer.motion) if second else layer.place
        if layer.alpha is None:
            frame[:] = cv2.warpPerspective(
                layer.colour, place @ halved, frame.shape[1::-1], flags=how,
                borderMode=cv2.BORDER_REFLECT_101,
            )  # fmt: skip
            continue
        height, width = layer.alpha.shape
        corners = np.array([[0, 0, 1], [width, 0, 1], [0, height, 1], [width, height, 1]])
        corners = corners @ np.linalg.inv(place).T
        if (corners[:, 2] < 0.2).any():
            continue
        ends = corners[:, :2] / corners[:, 2:]
        x1, y1 = np.maximum(np.floor(ends.min(axis=0)).astype(int) - 2, 0)
        x2, y2 = np.minimum(np.ceil(ends.max(axis=0)).astype(int) + 2, (WIDTH, HEIGHT))
        if x2 <= x1 or y2 <= y1:
            continue
        to_texels, size = place @ _shift(x1, y1) @ halved, (2 * (x2 - x1), 2 * (y2 - y1))
        colour = cv2.warpPerspective(
            layer.colour, to_texels, size, flags=how, borderMode=cv2.BORDER_REPLICATE
        )
        alpha = cv2.warpPerspective(layer.alpha, to_texels, size, flags=how) / np.float32(255)
        part = frame[2 * y1 : 2 * y2, 2 * x1 : 2 * x2]
        part += alpha[..., None] * (colour - part)
        small = cv2.resize(alpha, (x2 - x1, y2 - y1), interpolation=cv2.INTER_AREA)
        top[y1:y2, x1:x2][small > 0.5] = number
    small = cv2.resize(frame, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
    return np.asarray(small, np.float32), top


def exact_flow(layers: list[Layer], top: NDArray[np.int16]) -> Array:
    """Flow of the layers on top, float32 ``(H, W, 2)`` px."""
    flow = np.zeros((*top.shape, 2), np.float32)
    for number in np.unique(top):
        y, x = np.nonzero(top == number)
        there = layers[number].motion @ np.stack([x, y, np.ones_like(x)])
        # What would pass behind the camera has left the picture long before.
        there = there[:2] / np.maximum(there[2], 1e-2)
        flow[y, x] = (there - (x, y)).T
    return flow


def occlusion(flow: Array, top: NDArray[np.int16], later: NDArray[np.int16]) -> NDArray[np.bool_]:
    """Pixels ``(H, W)`` whose layer is not on top where they go, or that leave the picture."""
    height, width = top.shape
    y, x = np.mgrid[:height, :width]
    x = np.rint(x + flow[..., 0]).astype(int)
    y = np.rint(y + flow[..., 1]).astype(int)
    outside = (x < 0) | (x >= width) | (y < 0) | (y >= height)
    return outside | (later[y.clip(0, height - 1), x.clip(0, width - 1)] != top)
