# SPDX-License-Identifier: Apache-2.0
"""Cut-outs for generated scenes: sprites with their own outline, and drawn shapes.

What moves in real pictures has thin parts, holes and shading: photographs and drawings of
animals, trees and things, cut out by their transparency, have them too.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from daflow_ros.training.textures import TextureBank, smooth_noise, uniform


def filled(image: np.ndarray) -> np.ndarray:
    """RGB of a BGRA picture, with the colours of the object carried on under what is clear."""
    alpha = image[..., 3:].astype(np.float32) / 255
    colour = cv2.cvtColor(image[..., :3], cv2.COLOR_BGR2RGB).astype(np.float32)
    side = max(image.shape[:2])
    wide = cv2.blur(np.concatenate([colour * alpha, alpha], axis=2), (side // 8 * 2 + 1,) * 2)
    mean = (colour * alpha).sum((0, 1)) / max(float(alpha.sum()), 1.0)
    around = (wide[..., :3] + 1e-3 * mean) / (wide[..., 3:] + 1e-3)
    return np.asarray(colour * alpha + around * (1 - alpha), dtype=np.float32)


def sprite_files(folder: str | Path) -> list[Path]:
    """PNG and WebP files of a folder, sorted."""
    return sorted(p for p in Path(folder).glob('*') if p.suffix.lower() in ('.png', '.webp'))


def read_cut_out(path: Path) -> np.ndarray | None:
    """BGRA, uint8 ``(h, w, 4)``; None for a picture that is opaque or cannot be read."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.ndim != 3 or image.shape[2] != 4:
        return None
    return np.asarray(image if image.dtype == np.uint8 else image // 256, np.uint8)


class SpriteBank:
    """Pictures with transparency, held on the device.

    Args:
        folder: of PNG or WebP files with an alpha channel; those without are passed over.
        size: side in px of the square that each is fitted into.
        device: where they are held (uint8, 4 * size^2 bytes each).

    Raises:
        FileNotFoundError: the folder holds no such picture.
    """

    def __init__(
        self, folder: str | Path, size: int = 256, device: torch.device | str = 'cpu'
    ) -> None:
        paths = sprite_files(folder)
        with ThreadPoolExecutor() as pool:
            read = pool.map(lambda path: self._square(path, size), paths)
            squares = list(tqdm(read, 'sprites', len(paths), unit='img'))
        sprites = [torch.from_numpy(square) for square in squares if square is not None]
        if not sprites:
            raise FileNotFoundError(f'{folder}: no pictures with transparency')
        self.pictures = torch.stack(sprites).permute(0, 3, 1, 2).to(device)

    @staticmethod
    def _square(path: Path, size: int) -> np.ndarray | None:
        """RGBA, uint8 ``(size, size, 4)``."""
        image = read_cut_out(path)
        if image is None:
            return None
        rgba = np.concatenate([filled(image), image[..., 3:]], axis=2)
        scale = (size - 4) / max(image.shape[:2])
        width, height = (max(4, round(n * scale)) for n in (image.shape[1], image.shape[0]))
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        rgba = cv2.resize(rgba, (width, height), interpolation=how)
        top, left = (size - height) // 2, (size - width) // 2
        borders = (top, size - height - top, left, size - width - left)
        square = cv2.copyMakeBorder(rgba, *borders, cv2.BORDER_REPLICATE)
        square[:top, :, 3] = square[top + height :, :, 3] = 0
        square[:, :left, 3] = square[:, left + width :, 3] = 0
        return np.asarray(square.clip(0, 255), np.uint8)

    def sample(self, count: int, size: int, generator: torch.Generator) -> Tensor:
        """RGBA ``(count, 4, size, size)`` in [0, 1], half of them mirrored, recoloured."""
        device = generator.device
        which = torch.randint(len(self.pictures), (count,), generator=generator, device=device)
        out = self.pictures[which.to(self.pictures.device)].to(device).float() / 255
        mirrored = torch.rand((count, 1, 1, 1), generator=generator, device=device) < 0.5
        out = torch.where(mirrored, out.flip(-1), out)
        out = F.interpolate(out, size=(size, size), mode='bilinear', antialias=True)
        gain = uniform((count, 3, 1, 1), 0.75, 1.25, generator)
        shift = uniform((count, 1, 1, 1), -0.12, 0.12, generator)
        colour = (out[:, :3] * gain + shift).clamp(0, 1)
        return torch.cat([colour, out[:, 3:].clamp(0, 1)], dim=1)


def open_imagery(
    folder: str | Path | None, device: torch.device | str = 'cpu'
) -> tuple[TextureBank, SpriteBank | None]:
    """Surfaces and cut-outs of what ``daflow imagery`` wrote, or of any folder of photographs.

    Raises:
        FileNotFoundError: the folder holds no image.
    """
    if folder is None:
        return TextureBank(None, device=device), None
    root = Path(folder)
    photos, cut_out = root / 'photos', root / 'sprites'
    bank = TextureBank(photos if photos.is_dir() else root, device=device)
    return bank, SpriteBank(cut_out, device=device) if cut_out.is_dir() else None


def shapes(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Object masks ``(count, 1, size, size)`` in [0, 1]: blobs, bars, rings, fences, unions."""
    device = generator.device
    axis = torch.linspace(-1.1, 1.1, size, device=device)
    y, x = torch.meshgrid(axis, axis, indexing='ij')
    turn = uniform((count, 1, 1), 0, 2 * math.pi, generator)
    u = x * turn.cos() + y * turn.sin()
    v = y * turn.cos() - x * turn.sin()
    radius, theta = torch.sqrt(u**2 + v**2), torch.atan2(v, u)
    edge = torch.full((count, 1, 1), 0.7, device=device).expand(count, size, size)
    for k in range(1, 6):
        weight = uniform((count, 1, 1), -0.35, 0.35, generator) / k
        edge = edge + weight * torch.cos(k * theta + uniform((count, 1, 1), 0, 6.28, generator))
    blob = edge - radius
    # Log-uniform, as motion is.
    slim = torch.exp(uniform((count, 1, 1), math.log(0.03), math.log(0.8), generator))
    bar = torch.minimum(slim - v.abs(), 0.95 - u.abs())
    ring = 0.06 + 0.2 * slim - (radius - 0.7).abs()
    fence = torch.minimum(torch.sin(uniform((count, 1, 1), 8, 30, generator) * u) * 0.05, blob)
    kind = torch.rand((count, 1, 1), generator=generator, device=device)
    field = torch.where(kind < 0.6, blob, bar)
    field = torch.where(kind > 0.85, ring, field)
    field = torch.where(kind > 0.92, fence, field)
    # A third have legs: two thin bars across.
    legs = torch.rand((count, 1, 1), generator=generator, device=device) < 0.33
    thin = uniform((count, 1, 1), 0.02, 0.06, generator)
    for offset in (-0.5, 0.4):
        leg = torch.minimum(thin - (u - offset * 0.8).abs(), 0.95 - v.abs())
        field = torch.where(legs, torch.maximum(field, leg), field)
    return (field * size / 2.2 + 0.5).clamp(0, 1)[:, None]


def shaded(colour: Tensor, generator: torch.Generator) -> Tensor:
    """Half of ``(N, 3, h, w)`` under light that falls unevenly, a quarter nearly of one colour."""
    count, _, size, _ = colour.shape
    draws = torch.rand((2, count, 1, 1, 1), generator=generator, device=generator.device)
    strength = 0.25 * draws[1] * (draws[0] < 0.5)
    light = (strength * smooth_noise(count, 1, 4, size, generator)).exp()
    plain = 0.15 + 0.85 * (draws[0] > 0.25)
    mean = colour.mean(dim=(2, 3), keepdim=True)
    return ((mean + plain * (colour - mean)) * light).clamp(0, 1)


def prefiltered(surface: Tensor, footprint: Tensor) -> Tensor:
    """``(N, C, t, t)`` smoothed so that it can be sampled every ``footprint`` (N,) texels."""
    levels = (footprint.clamp(min=1).log2() + 0.3).floor().clamp(max=5)
    out = surface
    for level in range(1, 6):
        chosen = (levels == level).nonzero()[:, 0]
        if len(chosen):
            if out is surface:
                out = surface.clone()
            small = F.avg_pool2d(surface[chosen], 2**level)
            size = surface.shape[-2:]
            out[chosen] = F.interpolate(small, size=size, mode='bilinear', align_corners=False)
    return out
