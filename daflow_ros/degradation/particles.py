# SPDX-License-Identifier: Apache-2.0
"""Layers of falling particles, drifting clouds, and drops on the lens.

A layer is a sparse set of points on a canvas larger than the image, given its shape (streak,
flake) by a transfer function and its motion by a phase shift: every frame shows the same
particles, moved by their velocity, at sub-pixel accuracy.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from daflow_ros.degradation import filters
from daflow_ros.degradation.sampling import Sampler

_MARGIN = 48


def moving_layer(size: tuple[int, int], density: float, offsets: torch.Tensor, sampler: Sampler, *,
                 radius: float, streak: float = 0.0, angle: float = 0.0,
                 disc: bool = False) -> torch.Tensor:
    """(F, 1, H, W) opacity in [0, 1] of particles that move together.

    density: particles per px; offsets: (F, 2) displacement (x, y) in px of each frame; radius:
    Gaussian sigma of a particle, or the radius of its disc; streak: length in px that it smears
    during the exposure, in the direction `angle` (rad from x to y).
    """
    height, width = size
    rows, columns = (filters.fast_size(n + _MARGIN) for n in (height, width))
    count = max(1, round(density * rows * columns))
    points = torch.zeros(rows * columns, device=sampler.device)
    where = (sampler.fixed_uniform(count) * (rows * columns)).long()
    points.index_add_(0, where, 0.25 + 0.75 * sampler.fixed_uniform(count))
    fx, fy = filters.frequencies(rows, columns, sampler.device)
    extent = torch.tensor([radius], device=sampler.device)
    if disc:
        transfer = filters.disc(fx, fy, extent) * filters.gaussian(
            fx, fy, 0.3 * extent, 0.3 * extent, 0 * extent)
        peak = 1 / (math.pi * radius ** 2)
    else:
        transfer = filters.gaussian(fx, fy, extent, extent, 0 * extent)
        peak = 1 / (2 * math.pi * radius ** 2)
    if streak > 0:
        direction = torch.tensor([angle], device=sampler.device)
        transfer = transfer * filters.line(fx, fy, extent * 0 + streak, direction)
        peak = min(peak, 1 / (streak * radius * math.sqrt(2 * math.pi)))
    spectrum = torch.fft.rfft2(points.view(rows, columns)) * transfer[0] / peak
    return _shifted(spectrum, (rows, columns), size, offsets).clamp_(0, 1)


def _shifted(spectrum: torch.Tensor, canvas: tuple[int, int], size: tuple[int, int],
             offsets: torch.Tensor) -> torch.Tensor:
    """(F, 1, H, W) middle of a periodic canvas, displaced by offsets (F, 2)."""
    fx, fy = filters.frequencies(*canvas, spectrum.device)
    x, y = offsets[:, 0, None, None], offsets[:, 1, None, None]
    phase = -2 * math.pi * (fx * x + fy * y)
    moved = torch.fft.irfft2(spectrum * torch.polar(torch.ones_like(phase), phase), s=canvas)
    top, left = ((c - n) // 2 for c, n in zip(canvas, size, strict=True))
    return moved[:, None, top:top + size[0], left:left + size[1]]


def cloud_field(size: tuple[int, int], cell: float, offsets: torch.Tensor, sampler: Sampler,
                octaves: int = 3) -> torch.Tensor:
    """(F, 1, H, W) smooth random field about 0.5 in [0, 1], displaced by offsets (F, 2) in px.

    cell: size in px of the coarsest structure; each octave halves size and strength.
    """
    rows, columns = (filters.fast_size(n + _MARGIN) for n in size)
    fx, fy = filters.frequencies(rows, columns, sampler.device)
    squared = fx ** 2 + fy ** 2
    transfer = torch.zeros_like(squared)
    for octave in range(octaves):
        sigma = cell / 2.5 / 2 ** octave
        # A Gaussian of unit energy is 2 sqrt(pi) sigma times one of unit sum.
        transfer += 0.5 ** octave * sigma * torch.exp(-2 * math.pi ** 2 * sigma ** 2 * squared)
    transfer *= 2 * math.sqrt(math.pi) / math.sqrt(sum(0.25 ** o for o in range(octaves)))
    spectrum = torch.fft.rfft2(sampler.fixed_normal(rows, columns)) * transfer
    return _shifted(spectrum, (rows, columns), size, offsets).mul_(0.2).add_(0.5).clamp_(0, 1)


def lens_drops(clip: torch.Tensor, count: int, radius: tuple[float, float],
               sampler: Sampler, slide: float = 0.0) -> torch.Tensor:
    """Water drops on the lens: out-of-focus discs that show the scene turned and small.

    radius: px, smallest and largest; slide: px per frame that a few of them run down. The drops
    stay with the camera: they do not follow the scene.
    """
    frames, _, height, width = clip.shape
    device = clip.device
    ys = torch.arange(height, device=device)[:, None]
    xs = torch.arange(width, device=device)[None]
    grid_x = xs.expand(height, width).float().repeat(frames, 1, 1)
    grid_y = ys.expand(height, width).float().repeat(frames, 1, 1)
    cover = torch.zeros(frames, 1, height, width, device=device)
    shade = torch.ones(frames, 1, height, width, device=device)
    for _ in range(count):
        cx, cy = sampler.uniform(0, width), sampler.uniform(0, height)
        r = sampler.uniform(*radius)
        stretch = sampler.uniform(0.8, 1.3)
        wobble, turn = sampler.uniform(0, 0.1), sampler.uniform(0, 2 * math.pi)
        lobe, bend = sampler.uniform(0, 0.05), sampler.uniform(0, 2 * math.pi)
        speed = slide * sampler.uniform(0.3, 1) if sampler.chance(0.25) else 0.0
        reach = int(r * 1.6) + 2
        for index in range(frames):
            y0 = cy + speed * (sampler.start + index)
            top, bottom = max(0, int(y0) - reach), min(height, int(y0) + reach)
            left, right = max(0, int(cx) - reach), min(width, int(cx) + reach)
            if top >= bottom or left >= right:
                continue
            dy = (ys[top:bottom] - y0) / (r * stretch)
            dx = (xs[:, left:right] - cx) / r
            around = torch.atan2(dy, dx)
            edge = 1 + wobble * torch.cos(2 * around + turn) + lobe * torch.cos(3 * around + bend)
            distance = torch.sqrt(dx ** 2 + dy ** 2) / edge
            inside = torch.sigmoid((1 - distance) * min(8.0, 1.2 * r))
            box = (index, slice(top, bottom), slice(left, right))
            pick = distance < 1.3
            # A drop is a strong lens: it images about half of the view, upside down.
            grid_x[box] = torch.where(pick, cx - dx * 0.30 * width, grid_x[box])
            grid_y[box] = torch.where(pick, y0 - dy * 0.30 * height, grid_y[box])
            patch = (index, 0, slice(top, bottom), slice(left, right))
            cover[patch] = torch.maximum(cover[patch], inside)
            rim = 1 - 0.45 * torch.sigmoid((distance - 0.82) * 14) + 0.12 * (-dy).clamp(0, 1)
            shade[patch] = torch.where(pick, rim, shade[patch])
    scale = torch.tensor([2 / width, 2 / height], device=device)
    grid = torch.stack([grid_x + 0.5, grid_y + 0.5], -1) * scale - 1
    soft = filters.resize(clip, max(8, height // 4), max(8, width // 4), 'area')
    seen = F.grid_sample(soft, grid, padding_mode='reflection', align_corners=False) * shade
    return (clip + cover * (seen - clip)).clamp_(0, 1)
