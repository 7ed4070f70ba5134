# SPDX-License-Identifier: Apache-2.0
"""Textures for generated scenes: crops of photographs and procedural patterns.

Everything is a batched tensor operation on one device, so that data are generated where the
model trains.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp')


def uniform(
    shape: tuple[int, ...], low: float, high: float, generator: torch.Generator
) -> Tensor:
    """Uniform random tensor on the generator's device."""
    u = torch.rand(shape, generator=generator, device=generator.device)
    return low + (high - low) * u


def smooth_noise(
    batch: int, channels: int, cells: int, size: int, generator: torch.Generator
) -> Tensor:
    """Bicubic value noise ``(batch, channels, size, size)``, about unit variance."""
    coarse = torch.randn(
        (batch, channels, cells, cells), generator=generator, device=generator.device
    )
    return F.interpolate(coarse, size=(size, size), mode='bicubic', align_corners=True)


class TextureBank:
    """Photographs held on the device, cut into random square textures.

    Args:
        folder: searched recursively for JPEG and PNG files; None gives procedural textures only.
        size: side in px at which photographs are kept (shortest side; two octaves are kept, so
            that textures come fine and coarse without aliasing).
        device: where the photographs are held (uint8, 3 * size^2 bytes each).
        limit: most photographs read, None for all.

    Raises:
        FileNotFoundError: the folder holds no image.
    """

    def __init__(
        self,
        folder: str | Path | None,
        size: int = 512,
        device: torch.device | str = 'cpu',
        limit: int | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.levels: list[Tensor] = []
        if folder is None:
            return
        root = Path(folder)
        paths = sorted(p for p in root.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
        if not paths:
            raise FileNotFoundError(f'{folder}: no JPEG or PNG photographs')
        if limit is not None:
            paths = [paths[int(i)] for i in np.linspace(0, len(paths) - 1, limit)]
        squares = []
        for path in tqdm(paths, desc='photographs', unit='img'):
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            if image is None or min(image.shape[:2]) < size // 2:
                continue
            h, w = image.shape[:2]
            scale = size / min(h, w)
            image = cv2.resize(
                image,
                (max(round(w * scale), size), max(round(h * scale), size)),
                interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR,
            )
            h, w = image.shape[:2]
            # Wide pictures give several squares.
            count = max(1, round(max(h, w) / size))
            for i in range(count):
                y = round((h - size) * (i / max(count - 1, 1))) if h > w else 0
                x = round((w - size) * (i / max(count - 1, 1))) if w >= h else 0
                crop = cv2.cvtColor(image[y : y + size, x : x + size], cv2.COLOR_BGR2RGB)
                squares.append(torch.from_numpy(crop).permute(2, 0, 1))
        full = torch.stack(squares)
        half = torch.cat(
            [F.avg_pool2d(part.float(), 2).round().byte() for part in full.split(64)]
        )
        self.levels = [full.to(self.device), half.to(self.device)]

    def __len__(self) -> int:
        return len(self.levels[0]) if self.levels else 0

    def sample(
        self, count: int, size: int, generator: torch.Generator, procedural: float = 0.15
    ) -> Tensor:
        """Textures ``(count, 3, size, size)`` in [0, 1].

        Args:
            procedural: share of procedural textures (all without photographs).
        """
        device = generator.device
        photo = torch.rand(count, generator=generator, device=device) >= procedural
        if not self.levels:
            photo = torch.zeros_like(photo)
        out = torch.empty((count, 3, size, size), device=device)
        drawn = (~photo).nonzero()[:, 0]
        if len(drawn):
            out[drawn] = procedural_textures(len(drawn), size, generator)
        draws = torch.rand((count, 5), generator=generator, device=device).tolist()
        for i in photo.nonzero()[:, 0].tolist():
            octave, which, down, right, flip = draws[i]
            source = self.levels[int(octave < 0.5)]
            room = source.shape[-1] - size
            if room < 0:
                source = self.levels[0]
                room = source.shape[-1] - size
            if room < 0:
                raise ValueError(f'textures of {size} px from photographs of {size + room} px')
            y, x = int(down * (room + 1)), int(right * (room + 1))
            crop = source[int(which * len(self)), :, y : y + size, x : x + size]
            if flip < 0.5:
                crop = crop.flip(-1)
            if 0.4 < flip < 0.6:
                crop = crop.flip(-2)
            out[i] = crop.float() / 255
        gain = uniform((count, 3, 1, 1), 0.75, 1.25, generator)
        shift = uniform((count, 1, 1, 1), -0.12, 0.12, generator)
        return (out * gain + shift).clamp(0, 1)


def procedural_textures(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Noise, stripes, checks, gradients and nearly flat areas, ``(count, 3, size, size)``."""
    device = generator.device
    colours = torch.rand((count, 2, 3, 1, 1), generator=generator, device=device)
    noise = smooth_noise(count, 1, 6, size, generator) + 0.6 * smooth_noise(
        count, 1, 24, size, generator
    )
    noise = noise + 0.4 * smooth_noise(count, 1, max(size // 5, 25), size, generator)
    axis = torch.linspace(-1, 1, size, device=device)
    y, x = torch.meshgrid(axis, axis, indexing='ij')
    angle = uniform((count, 1, 1, 1), 0, 3.1416, generator)
    frequency = torch.exp(uniform((count, 1, 1, 1), 1.5, 4.2, generator))
    u = x * angle.cos() + y * angle.sin()
    v = y * angle.cos() - x * angle.sin()
    stripes = torch.sin(frequency * u)
    checks = torch.sign(stripes * torch.sin(frequency * v))
    kind = torch.randint(0, 5, (count, 1, 1, 1), generator=generator, device=device)
    field = torch.where(kind == 0, noise, 0.15 * noise)
    field = torch.where(kind == 1, 4 * stripes, field)
    field = torch.where(kind == 2, 4 * checks, field)
    field = torch.where(kind == 3, 1.5 * u + 0.05 * noise, field)
    mix = torch.sigmoid(1.5 * field)
    grain = torch.randn((count, 1, size, size), generator=generator, device=device)
    image = colours[:, 0] * mix + colours[:, 1] * (1 - mix) + 0.01 * grain
    return image.clamp(0, 1)
