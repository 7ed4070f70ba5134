# SPDX-License-Identifier: Apache-2.0
"""Procedural textures of the demo's street: no photograph is used.

Every function draws uint8 RGB (H, W, 3), or premultiplied RGBA (H, W, 4) where the outline is not
a rectangle, from a numpy random generator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Random = np.random.Generator
Colour = tuple[float, float, float]


def _tone(colour: Sequence[float]) -> NDArray[Any]:
    return np.array(colour, np.float32)


def noise(random: Random, height: int, width: int, cell: float, octaves: int = 4,
          wrap: bool = False) -> NDArray[Any]:
    """Fractal value noise (H, W), about zero mean and unit variance; ``cell`` in px."""
    out = np.zeros((height, width), np.float32)
    for octave in range(octaves):
        step = cell / 2**octave
        grid = random.normal(size=(max(2, round(height / step)), max(2, round(width / step))))
        grid = grid.astype(np.float32)
        if wrap:
            grid = np.pad(grid, ((2, 2), (2, 2)), mode='wrap')
            rows, columns = grid.shape[0] - 4, grid.shape[1] - 4
            big = cv2.resize(
                grid, (round(width * grid.shape[1] / columns),
                       round(height * grid.shape[0] / rows)), interpolation=cv2.INTER_CUBIC)
            top, left = (big.shape[0] - height) // 2, (big.shape[1] - width) // 2
            layer = big[top : top + height, left : left + width]
        else:
            layer = cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
        out += layer * 0.6**octave
    return (out - out.mean()) / (out.std() + 1e-6)


def _rgb(height: int, width: int, colour: Colour) -> NDArray[Any]:
    return np.full((height, width, 3), colour, np.float32)


def _finish(image: NDArray[Any], alpha: NDArray[Any] | None = None) -> Image:
    if alpha is None:
        return np.clip(image, 0, 255).astype(np.uint8)
    both = np.concatenate([np.clip(image, 0, 255) * alpha[..., None], 255 * alpha[..., None]], -1)
    return np.clip(np.round(both), 0, 255).astype(np.uint8)


def asphalt(random: Random, length: int, width: int, scale: float) -> Image:
    """Road with worn markings; rows run along the road, ``scale`` px a metre, repeatable."""
    grey = 84 + 7 * noise(random, length, width, 3.0 * scale, 5, wrap=True)
    grey += 9 * random.normal(size=(length, width)).astype(np.float32)
    # Tyre tracks, polished by traffic.
    x = np.arange(width, dtype=np.float32) / scale
    for track in (1.4, 3.1, 5.9, 7.6):
        grey -= 10 * np.exp(-(((x - track) / 0.35) ** 2))[None]
    image = np.stack([grey, grey * 1.01, grey * 1.04], -1)
    for _ in range(5):  # repairs
        w, h = (random.uniform(0.6, 2.2, 2) * scale).astype(int)
        left, top = int(random.uniform(0, width - w)), int(random.uniform(0, length - h))
        image[top : top + h, left : left + w] *= random.uniform(0.72, 0.86)
    for _ in range(14):  # cracks
        points = np.cumsum(random.normal(0, 0.22 * scale, (18, 2)), axis=0)
        points += random.uniform((0, 0), (width, length))
        cv2.polylines(image, [points.astype(np.int32)], False, (38, 38, 40),
                      int(random.integers(1, 4)), cv2.LINE_AA)
    for _ in range(3):  # manholes
        centre = (int(random.uniform(0.2, 0.8) * width), int(random.uniform(0.1, 0.9) * length))
        cv2.circle(image, centre, int(0.33 * scale), (52, 50, 48), -1, cv2.LINE_AA)
        cv2.circle(image, centre, int(0.33 * scale), (30, 30, 30), 3, cv2.LINE_AA)
        for k in range(-2, 3):
            cv2.line(image, (centre[0] - int(0.2 * scale), centre[1] + int(k * 0.09 * scale)),
                     (centre[0] + int(0.2 * scale), centre[1] + int(k * 0.09 * scale)),
                     (36, 35, 34), 2)
    paint = np.zeros((length, width), np.float32)
    period = length / max(1, round(length / (6.0 * scale)))
    for k in range(round(length / period)):
        top = int(k * period)
        middle = width // 2
        half = int(0.07 * scale)
        paint[top : top + int(period / 2), middle - half : middle + half] = 1
    for edge in (0.35, width / scale - 0.35):
        paint[:, int((edge - 0.06) * scale) : int((edge + 0.06) * scale)] = 1
    worn = 0.78 + 0.22 * noise(random, length, width, 0.25 * scale, 4, wrap=True)
    paint *= np.clip(worn, 0, 0.95)
    image += paint[..., None] * (_tone([214, 214, 206]) - image)
    return _finish(image)


def paving(random: Random, length: int, width: int, slab: int) -> Image:
    """Pavement of slabs, repeatable."""
    image = _rgb(length, width, (150, 146, 140))
    for top in range(0, length, slab):
        for left in range(0, width, slab):
            image[top : top + slab, left : left + slab] += random.normal(0, 9)
    image += 6 * noise(random, length, width, 2.0 * slab, 5, wrap=True)[..., None]
    image += 6 * random.normal(size=(length, width, 1)).astype(np.float32)
    image[::slab] *= 0.62
    image[1::slab] *= 0.8
    image[:, ::slab] *= 0.62
    image[:, 1::slab] *= 0.8
    for _ in range(60):  # chewing gum, leaves
        centre = tuple((random.uniform(0, 1, 2) * (width, length)).astype(int).tolist())
        tone = random.choice([[90, 88, 86], [150, 104, 50], [120, 112, 60]]).tolist()
        cv2.circle(image, centre, int(random.integers(1, 4)), tone, -1, cv2.LINE_AA)
    return _finish(image)


def _bricks(random: Random, height: int, width: int, colour: Colour, scale: float) -> NDArray[Any]:
    """Wall of bricks in running bond; a brick is 25 cm by 8 cm."""
    brick_w, brick_h = max(4, round(0.25 * scale)), max(3, round(0.09 * scale))
    rows, columns = height // brick_h + 1, width // brick_w + 2
    tone = random.normal(0, 13, (rows, columns, 1)) + random.normal(0, 5, (rows, columns, 3))
    image = np.empty((height, width, 3), np.float32)
    x = np.arange(width)
    for row in range(rows):
        shift = (row % 2) * brick_w // 2
        index = (x + shift) // brick_w
        line = _tone(colour) + tone[row, index]
        line[(x + shift) % brick_w == 0] = (168, 160, 150)
        band = image[row * brick_h : (row + 1) * brick_h]
        band[:] = line
        band[:1] = (158, 150, 141)
    return image


def _window(random: Random, image: NDArray[Any], box: tuple[int, int, int, int],
            frame: Colour) -> None:
    """Draw a window into (left, top, width, height)."""
    left, top, width, height = box
    lit = random.random() < 0.3
    glass = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    pane = (_tone([250, 214, 150]) * (1 - 0.35 * glass) if lit
            else _tone([128, 140, 150]) * (1 - glass) + _tone([44, 52, 60]) * glass)
    pane = np.broadcast_to(pane, (height, width, 3)).copy()
    pane += 9 * noise(random, height, width, width / 2, 3)[..., None]
    if random.random() < 0.6:  # curtains
        share = int(random.uniform(0.14, 0.3) * width)
        folds = 0.8 + 0.2 * np.sin(np.arange(share) / 1.7)
        cloth = _tone([214, 206, 196]) * folds[None, :, None]
        pane[:, :share] = cloth
        pane[:, width - share :] = cloth[:, ::-1]
    if random.random() < 0.3:  # blind
        low = int(random.uniform(0.2, 0.6) * height)
        pane[:low] = _tone([196, 190, 176])
        pane[:low:4] *= 0.8
    image[top : top + height, left : left + width] = pane
    line = max(2, width // 14)
    cv2.rectangle(image, (left, top), (left + width, top + height), frame, line)
    cv2.line(image, (left + width // 2, top), (left + width // 2, top + height), frame, line)
    cv2.line(image, (left, top + height // 3), (left + width, top + height // 3), frame, line)
    sill = (178, 174, 166)
    cv2.rectangle(image, (left - line * 2, top + height), (left + width + line * 2,
                  top + height + 2 * line), sill, -1)
    shade = image[top + height + 2 * line : top + height + 5 * line, left : left + width]
    shade *= 0.72
    cv2.rectangle(image, (left - line * 2, top - 3 * line), (left + width + line * 2, top - line),
                  (170, 164, 154), -1)


def _shop(random: Random, image: NDArray[Any], top: int, scale: float) -> None:
    """Draw a shop front with sign and awning into the lowest storey."""
    height, width = image.shape[:2]
    hue = int(random.integers(0, 180))
    pure = np.array([[[hue, 170, 150]]], np.uint8)
    strong = cv2.cvtColor(pure, cv2.COLOR_HSV2RGB)[0, 0].astype(float)
    front = image[top:]
    front[:] = strong * 0.42 + 12
    sign = int(0.55 * scale)
    cv2.rectangle(image, (0, top), (width, top + sign), tuple(strong * 0.9), -1)
    x = int(0.8 * scale)
    while x < width - int(1.2 * scale) and x < 0.8 * width:  # letters of no alphabet
        w = int(random.uniform(0.14, 0.3) * scale)
        kind = int(random.integers(0, 3))
        low, high = top + int(0.13 * scale), top + int(0.42 * scale)
        if kind == 0:
            cv2.ellipse(image, (x + w // 2, (low + high) // 2), (w // 2, (high - low) // 2), 0, 0,
                        int(random.integers(200, 360)), (240, 234, 216), 4, cv2.LINE_AA)
        elif kind == 1:
            cv2.line(image, (x, high), (x + w // 2, low), (240, 234, 216), 4, cv2.LINE_AA)
            cv2.line(image, (x + w // 2, low), (x + w, high), (240, 234, 216), 4, cv2.LINE_AA)
        else:
            cv2.line(image, (x, low), (x, high), (240, 234, 216), 4, cv2.LINE_AA)
            cv2.line(image, (x, high), (x + w, high), (240, 234, 216), 4, cv2.LINE_AA)
        x += w + int(0.1 * scale)
    left = int(0.4 * scale)
    while left + 2.4 * scale < width:
        w = int(2.0 * scale)
        y0, y1 = top + sign + int(0.55 * scale), height - int(0.45 * scale)
        pane = np.linspace(1, 0.45, y1 - y0, dtype=np.float32)[:, None, None]
        image[y0:y1, left : left + w] = _tone([236, 206, 156]) * pane
        for _ in range(14):  # goods behind the glass
            gx = int(left + random.uniform(0.05, 0.85) * w)
            gy = int(random.uniform(y0 + (y1 - y0) * 0.35, y1 - 6))
            gw, gh = (random.uniform(0.08, 0.3, 2) * scale).astype(int)
            cv2.rectangle(image, (gx, max(gy - gh, y0)), (min(gx + gw, left + w), gy),
                          random.uniform(30, 230, 3).tolist(), -1)
        cv2.rectangle(image, (left, y0), (left + w, y1), tuple(strong * 0.55),
                      max(3, int(0.07 * scale)))
        left += int(2.5 * scale)
    stripe = max(4, int(0.28 * scale))
    y0, y1 = top + sign, top + sign + int(0.55 * scale)
    for k, x in enumerate(range(0, width, stripe)):
        tone = strong if k % 2 else np.array([232, 228, 218.0])
        image[y0:y1, x : x + stripe] = tone * np.linspace(1.0, 0.8, y1 - y0)[:, None, None]
    image[y1 : y1 + int(0.2 * scale)] *= 0.6


def facade(random: Random, height: int, width: int, scale: float, shop: bool) -> Image:
    """House front, ``scale`` px a metre: brick or render, storeys of windows, shop or door."""
    brick = random.random() < 0.6
    palette: list[Colour] = [(206, 190, 156), (176, 186, 190), (196, 164, 140), (170, 178, 150)]
    if brick:
        palette = [(146, 84, 66), (120, 74, 62), (164, 112, 84), (112, 96, 88)]
    colour = palette[int(random.integers(len(palette)))]
    if brick:
        image = _bricks(random, height, width, colour, scale)
    else:
        image = _rgb(height, width, colour)
        image += 5 * random.normal(size=(height, width, 1)).astype(np.float32)
    image += 8 * noise(random, height, width, 3 * scale, 5)[..., None]
    storey = int(3.1 * scale)
    ground = height - int(3.4 * scale)
    pitch = int(random.uniform(1.9, 2.5) * scale)
    count = max(1, (width - int(0.6 * scale)) // pitch)
    margin = (width - count * pitch) // 2
    frame: Colour = (232, 230, 224) if random.random() < 0.7 else (66, 62, 58)
    for top in range(ground - storey, -storey, -storey):
        if top + int(2.4 * scale) < 0:
            continue
        for k in range(count):
            w, h = int(1.05 * scale), int(1.65 * scale)
            _window(random, image, (margin + k * pitch + (pitch - w) // 2,
                                    max(top + int(0.7 * scale), 4), w, h), frame)
        band = max(top + storey - int(0.12 * scale), 0)
        image[band : band + int(0.12 * scale)] = (176, 170, 160)
        image[band + int(0.12 * scale) : band + int(0.18 * scale)] *= 0.7
    if shop:
        _shop(random, image, ground, scale)
    else:
        door = int(random.integers(count))
        for k in range(count):
            x = margin + k * pitch
            if k == door:
                left, w = x + pitch // 2 - int(0.55 * scale), int(1.1 * scale)
                tone = random.uniform(30, 110, 3).tolist()
                lintel = height - int(2.3 * scale)
                cv2.rectangle(image, (left, lintel), (left + w, height), tone, -1)
                cv2.rectangle(image, (left, lintel), (left + w, height),
                              (206, 200, 190), max(3, int(0.08 * scale)))
                for j in range(2):
                    y = height - int((2.05 - j) * scale)
                    cv2.rectangle(image, (left + int(0.2 * scale), y),
                                  (left + w - int(0.2 * scale), y + int(0.7 * scale)),
                                  [0.7 * c for c in tone], 3)
            else:
                _window(random, image, (x + (pitch - int(1.15 * scale)) // 2,
                                        height - int(2.5 * scale), int(1.15 * scale),
                                        int(1.45 * scale)), frame)
        image[height - int(0.5 * scale) :] *= 0.7
    gutter = int(0.1 * scale)
    image[:, width - 2 * gutter : width - gutter] = (70, 72, 74)
    image[: int(0.35 * scale)] = (92, 86, 82)
    image[int(0.35 * scale) : int(0.5 * scale)] *= 0.6
    # Rain and soot darken a wall towards the street.
    image *= np.linspace(1.02, 0.86, height, dtype=np.float32)[:, None, None]
    return _finish(image)


def tree(random: Random, size: int) -> Image:
    """Tree with trunk, RGBA."""
    y, x = np.mgrid[0:size, 0:size].astype(np.float32) / size
    alpha = np.zeros((size, size), np.float32)
    trunk = (abs(x - 0.5 - 0.015 * np.sin(9 * y)) < 0.022 + 0.02 * (y - 0.5)) & (y > 0.5)
    colour = _rgb(size, size, (74, 60, 48)) + 14 * noise(random, size, size, 12)[..., None]
    alpha[trunk] = 1
    for layer in range(3):
        crown = np.full((size, size), -1.0, np.float32)
        for _ in range(16):
            angle, radius = random.uniform(0, 2 * np.pi), 0.27 * np.sqrt(random.random())
            cx, cy = 0.5 + radius * np.cos(angle), 0.34 + 0.85 * radius * np.sin(angle)
            crown = np.maximum(crown, 1 - np.hypot(x - cx, y - cy) / random.uniform(0.08, 0.17))
        leaves = np.clip((crown + 0.32 * noise(random, size, size, size / 18, 4)) * 14 - 0.6, 0, 1)
        leaves *= crown > -0.2  # no leaf hangs in the air
        tone = _tone([64, 82, 38]) * (0.7 + 0.28 * layer)
        green = tone * (1.25 - 0.7 * y[..., None])
        green = green * (1 + 0.28 * noise(random, size, size, size / 40, 3)[..., None])
        colour += leaves[..., None] * (green - colour)
        alpha = np.maximum(alpha, leaves)
    return _finish(colour, alpha)


def lamp(height: int) -> Image:
    """Street lamp, RGBA, four times as high as wide."""
    width = height // 4
    colour, alpha = _rgb(height, width, (62, 68, 70)), np.zeros((height, width), np.float32)
    post = width // 4
    cv2.line(alpha, (post, height // 30), (post, height), 1.0, max(3, width // 18))
    cv2.line(alpha, (post, height // 30), (int(0.85 * width), height // 40), 1.0,
             max(3, width // 24))
    head = (int(0.6 * width), height // 60), (width - 3, height // 22)
    cv2.rectangle(alpha, *head, 1.0, -1)
    cv2.rectangle(colour, (head[0][0] + 4, head[1][1] - 8), (head[1][0] - 4, head[1][1]),
                  (255, 240, 200), -1)
    return _finish(colour, alpha)


def vehicle_end(random: Random, size: int, paint: Colour, rear: bool, wide: float) -> Image:
    """Rear or front of a van, ``size`` px high and ``wide`` times as wide, RGBA."""
    height, width = size, round(size * wide)
    image = _rgb(height, width, paint)
    image *= np.linspace(1.08, 0.8, height, dtype=np.float32)[:, None, None]
    image += 3 * noise(random, height, width, 60)[..., None]
    alpha = np.zeros((height, width), np.float32)
    body = int(0.9 * height)
    corner = int(0.06 * height)
    cv2.rectangle(alpha, (corner, 0), (width - corner, body), 1.0, -1)
    cv2.rectangle(alpha, (0, corner), (width, body), 1.0, -1)
    for cx in (corner, width - corner):
        cv2.circle(alpha, (cx, corner), corner, 1.0, -1, cv2.LINE_AA)
    dark = [0.5 * c for c in paint]
    for left, right in ((0.1, 0.48), (0.52, 0.9)) if rear else ((0.09, 0.91),):
        box = (int(left * width), int(0.12 * height)), (int(right * width), int(0.44 * height))
        cv2.rectangle(image, *box, (36, 42, 48), -1)
        shine = np.array([[box[0][0], box[1][1]], [box[0][0] + (box[1][0] - box[0][0]) // 2,
                         box[0][1]], [box[1][0], box[0][1]]], np.int32)
        cv2.fillPoly(image, [shine], (88, 98, 108))
        cv2.rectangle(image, *box, dark, 3)
    if rear:
        cv2.line(image, (width // 2, int(0.05 * height)), (width // 2, int(0.8 * height)), dark, 4)
        cv2.rectangle(image, (int(0.54 * width), int(0.52 * height)),
                      (int(0.6 * width), int(0.55 * height)), (30, 30, 30), -1)
    else:
        cv2.rectangle(image, (int(0.22 * width), int(0.55 * height)),
                      (int(0.78 * width), int(0.66 * height)), (34, 34, 36), -1)
        for k in range(4):
            y = int((0.57 + 0.025 * k) * height)
            cv2.line(image, (int(0.23 * width), y), (int(0.77 * width), y), (110, 110, 112), 2)
    for left in (0.03, 0.86):
        top, tone = (0.48, (206, 26, 20)) if rear else (0.56, (255, 250, 226))
        cv2.rectangle(image, (int(left * width), int(top * height)),
                      (int((left + 0.11) * width), int((top + 0.14) * height)), tone, -1)
        cv2.rectangle(image, (int(left * width), int((top + 0.1) * height)),
                      (int((left + 0.11) * width), int((top + 0.14) * height)), (226, 130, 30), -1)
    cv2.rectangle(image, (int(0.34 * width), int(0.69 * height)),
                  (int(0.66 * width), int(0.76 * height)), (236, 234, 226), -1)
    for k in range(6):
        x = int((0.37 + 0.047 * k) * width)
        cv2.rectangle(image, (x, int(0.705 * height)),
                      (x + int(0.026 * width), int(0.745 * height)), (30, 30, 40), -1)
    cv2.rectangle(image, (0, int(0.8 * height)), (width, body), (48, 48, 50), -1)
    for left in (0.06, 0.78):  # wheels
        box = (int(left * width), body - 4), (int((left + 0.16) * width), height)
        cv2.rectangle(alpha, *box, 1.0, -1)
        cv2.rectangle(image, *box, (22, 22, 23), -1)
    return _finish(image, alpha)


def vehicle_side(random: Random, size: int, paint: Colour, long: float, bus: bool) -> Image:
    """Side of a van or bus, ``size`` px high and ``long`` times as long, RGBA; drives to +u."""
    height, width = size, round(size * long)
    image = _rgb(height, width, paint)
    image *= np.linspace(1.05, 0.78, height, dtype=np.float32)[:, None, None]
    image += 3 * noise(random, height, width, 80)[..., None]
    alpha = np.zeros((height, width), np.float32)
    body = int(0.88 * height)
    cv2.rectangle(alpha, (0, 0), (width, body), 1.0, -1)
    dark = [0.55 * c for c in paint]
    stripe = random.uniform(30, 220, 3).tolist()
    if bus:
        x = 0.03 * height
        while x + 0.36 * height < width:
            box = (int(x), int(0.12 * height)), (int(x + 0.32 * height), int(0.46 * height))
            cv2.rectangle(image, *box, (40, 46, 54), -1)
            half = np.array([[box[0][0], box[1][1]], [box[0][0] + int(0.16 * height), box[0][1]],
                             [box[1][0], box[0][1]]], np.int32)
            cv2.fillPoly(image, [half], (96, 106, 114))
            x += 0.37 * height
        cv2.rectangle(image, (0, int(0.56 * height)), (width, int(0.68 * height)), stripe, -1)
    else:
        cab = width - int(0.42 * height)
        cv2.rectangle(image, (cab, int(0.12 * height)), (width - int(0.06 * height),
                      int(0.44 * height)), (40, 46, 54), -1)
        for x in (cab - int(0.05 * height), width // 3):
            cv2.line(image, (x, int(0.06 * height)), (x, int(0.8 * height)), dark, 3)
        cv2.rectangle(image, (int(0.1 * width), int(0.28 * height)),
                      (int(0.5 * width), int(0.36 * height)), stripe, -1)
        cv2.rectangle(image, (int(0.1 * width), int(0.4 * height)),
                      (int(0.36 * width), int(0.46 * height)), stripe, -1)
    cv2.rectangle(image, (0, int(0.8 * height)), (width, body), (46, 46, 48), -1)
    radius = int(0.15 * height)
    for x in (int(0.17 * width), int(0.81 * width)):
        centre = (x, height - radius)
        cv2.circle(alpha, centre, radius, 1.0, -1, cv2.LINE_AA)
        cv2.circle(image, centre, radius + 5, (24, 24, 26), -1, cv2.LINE_AA)
        cv2.circle(image, centre, int(0.62 * radius), (150, 152, 156), -1, cv2.LINE_AA)
        for k in range(5):
            angle = 2 * np.pi * k / 5
            spot = (int(x + 0.36 * radius * np.cos(angle)),
                    int(centre[1] + 0.36 * radius * np.sin(angle)))
            cv2.circle(image, spot, max(2, radius // 8), (60, 62, 66), -1, cv2.LINE_AA)
    return _finish(image, alpha)


def pedestrian(random: Random, size: int) -> Image:
    """Walker under an umbrella, RGBA, twice as high as wide."""
    height, width = size, size // 2
    image, alpha = _rgb(height, width, (60, 60, 70)), np.zeros((height, width), np.float32)

    def part(points: list[tuple[float, float]], tone: Colour) -> None:
        polygon = [np.array([(x * width, y * height) for x, y in points], np.int32)]
        cv2.fillPoly(alpha, polygon, 1.0, cv2.LINE_AA)
        cv2.fillPoly(image, polygon, tone)
        cv2.polylines(image, polygon, True, tone, 3)

    part([(0.42, 0.68), (0.52, 0.68), (0.44, 0.98), (0.30, 0.98)], (44, 48, 66))
    part([(0.5, 0.68), (0.6, 0.68), (0.72, 0.98), (0.58, 0.98)], (36, 40, 56))
    part([(0.4, 0.36), (0.6, 0.36), (0.68, 0.74), (0.34, 0.74)], (170, 60, 44))
    part([(0.45, 0.27), (0.56, 0.27), (0.57, 0.36), (0.44, 0.36)], (206, 160, 130))
    part([(0.56, 0.42), (0.62, 0.4), (0.56, 0.24), (0.53, 0.24)], (150, 52, 38))
    hue = int(random.integers(0, 180))
    for k in range(6):
        pure = np.array([[[hue, 190, 200 if k % 2 else 130]]], np.uint8)
        tone = cv2.cvtColor(pure, cv2.COLOR_HSV2RGB)
        a, b = np.pi * (1 + k / 6), np.pi * (1 + (k + 1) / 6)
        arc = [(0.5 + 0.46 * np.cos(t), 0.24 + 0.21 * np.sin(t)) for t in np.linspace(a, b, 8)]
        part([(0.5, 0.2), *arc], tuple(tone[0, 0].astype(float)))
    return _finish(image, alpha)


def clouds(random: Random, size: int) -> Image:
    """Overcast sky; the last row is the horizon."""
    grey = np.linspace(172, 212, size, dtype=np.float32)[:, None]
    stretched = cv2.resize(noise(random, size // 3, size, size / 6, 6), (size, size))
    grey = grey + 16 * stretched * np.linspace(1, 0.3, size, dtype=np.float32)[:, None]
    return _finish(np.stack([grey * 0.97, grey * 0.99, grey * 1.02], -1))


def skyline(random: Random, height: int, width: int) -> Image:
    """Far houses, a church and trees at the end of the street, RGBA."""
    image, alpha = _rgb(height, width, (110, 106, 104)), np.zeros((height, width), np.float32)
    x = 0
    while x < width:
        w, h = int(random.uniform(0.03, 0.07) * width), int(random.uniform(0.4, 0.8) * height)
        tone = [random.uniform(74, 140)] * 3
        cv2.rectangle(image, (x, height - h), (x + w, height), tone, -1)
        alpha[height - h :, x : x + w] = 1
        for wy in range(height - h + 12, height - 14, 22):
            for wx in range(x + 6, x + w - 10, 16):
                cv2.rectangle(image, (wx, wy), (wx + 7, wy + 11),
                              (226, 196, 140) if random.random() < 0.2 else (62, 64, 70), -1)
        x += w
    cx = int(0.56 * width)
    spire = np.array([[cx - 22, height // 3], [cx, 0], [cx + 22, height // 3]], np.int32)
    cv2.fillPoly(alpha, [spire], 1.0, cv2.LINE_AA)
    cv2.fillPoly(image, [spire], (84, 90, 92))
    cv2.rectangle(image, (cx - 22, height // 3), (cx + 22, height), (120, 112, 104), -1)
    alpha[height // 3 :, cx - 22 : cx + 22] = 1
    return _finish(image, alpha)


def shadow(size: int = 64) -> Image:
    """Soft contact shadow, RGBA."""
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j].astype(np.float32)
    alpha = 0.75 * np.clip(1.0 - np.maximum(abs(x), abs(y)) ** 4, 0, 1)
    return _finish(np.zeros((size, size, 3), np.float32), alpha)
