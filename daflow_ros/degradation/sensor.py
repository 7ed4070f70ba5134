# SPDX-License-Identifier: Apache-2.0
"""Degradations of optics, sensor and coding: blur, noise, compression, exposure.

Each function takes one clip (F, 3, H, W), RGB in [0, 1], a severity in [1, 5] and the clip's
sampler, and returns the degraded clip. None of them moves the image, so the flow of the clean
clip stays its ground truth.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from daflow_ros.degradation import compression, filters, noise
from daflow_ros.degradation.sampling import Sampler, at_severity


def blur(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Gaussian blur, isotropic or anisotropic, that walks through the clip."""
    frames = len(clip)
    sigma = sampler.walk(frames, 0.8, 1.25) * at_severity(severity, 0.9, 4.0)
    ratio = sampler.choice((1.0, sampler.uniform(0.35, 1)))
    angle = sampler.walk(frames, 0, math.pi)
    filter_ = filters.FrequencyFilter(clip, border=int(3 * float(sigma.max())))
    transfer = filters.gaussian(filter_.fx, filter_.fy, sigma, sigma * ratio, angle)
    return filter_(clip, transfer).clamp_(0, 1)


def defocus_blur(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Disc blur: the lens is out of focus, breathing slightly."""
    radius = sampler.walk(len(clip), 0.9, 1.15) * at_severity(severity, 1.2, 6.0)
    filter_ = filters.FrequencyFilter(clip, border=16)
    transfer = filters.disc(filter_.fx, filter_.fy, radius)
    return filter_(clip, transfer).clamp_(0, 1)


def motion_blur(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Camera shake during the exposure: a straight blur, its direction turning slowly."""
    frames = len(clip)
    length = sampler.walk(frames, 0.75, 1.25, 0.4) * at_severity(severity, 4, 22)
    angle = sampler.uniform(0, math.pi) + sampler.walk(frames, -0.5, 0.5, 0.3)
    filter_ = filters.FrequencyFilter(clip, border=16)
    transfer = filters.line(filter_.fx, filter_.fy, length, angle)
    return filter_(clip, transfer).clamp_(0, 1)


def zoom_blur(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """The mean over small zooms about a centre near the middle: fast forward motion."""
    device, steps = clip.device, 8
    reach = at_severity(severity, 0.03, 0.16)
    cx, cy = sampler.uniform(-0.2, 0.2), sampler.uniform(-0.2, 0.2)
    total = torch.zeros_like(clip)
    for index in range(steps):
        s = 1 + reach * (index / (steps - 1) - 0.5)
        theta = torch.tensor([[s, 0, cx * (1 - s)], [0, s, cy * (1 - s)]], device=device)
        grid = F.affine_grid(theta.expand(len(clip), 2, 3), list(clip.shape), align_corners=False)
        total += F.grid_sample(clip, grid, padding_mode='reflection', align_corners=False)
    return total / steps


def glass_blur(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Rough glass before the lens: pixels scattered by an offset that stays in place."""
    _, _, height, width = clip.shape
    reach = at_severity(severity, 0.8, 4.0)
    offset = filters.blur(sampler.fixed_normal(1, 2, height, width), 0.7)[0]
    offset = (offset / offset.std() * reach * 0.6).clamp(-2 * reach, 2 * reach)
    grid = F.affine_grid(torch.eye(2, 3, device=clip.device)[None], [1, 1, height, width],
                         align_corners=False)
    size = torch.tensor([width, height], device=clip.device)
    grid = (grid + offset.permute(1, 2, 0)[None] * 2 / size).expand(len(clip), -1, -1, -1)
    scattered = F.grid_sample(clip, grid, padding_mode='reflection', align_corners=False)
    return filters.blur(scattered, 0.25 * reach).clamp_(0, 1)


def gaussian_noise(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Gaussian noise, new in each frame and channel."""
    return noise.gaussian_noise(clip, at_severity(severity, 0.03, 0.20), sampler)


def shot_noise(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Photon noise: stronger where it is brighter."""
    return noise.shot_noise(clip, at_severity(severity, 0.05, 0.35), sampler)


def speckle_noise(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Multiplicative Gaussian noise."""
    return noise.speckle_noise(clip, at_severity(severity, 0.08, 0.5), sampler)


def impulse_noise(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Dead and hot pixels, new in each frame."""
    return noise.impulse_noise(clip, at_severity(severity, 0.01, 0.15), sampler)


def camera_noise(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Shot and read noise, grey in two of five clips (the paper's share), slowly varying."""
    grey = sampler.chance(0.4)
    strength = sampler.walk(len(clip), 0.85, 1.15)
    share = sampler.uniform(0.2, 1)
    clip = noise.shot_noise(clip, strength * share * at_severity(severity, 0.05, 0.27), sampler,
                            grey)
    return noise.gaussian_noise(clip, strength * (1.2 - share) * at_severity(severity, 0.03, 0.16),
                                sampler, grey)


def jpeg(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Each frame a JPEG, as cameras that stream motion JPEG send them."""
    quality = at_severity(severity, 42, 6) * sampler.walk(len(clip), 0.85, 1.15)
    return compression.jpeg(clip, quality)


def video(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """A video codec at a low bit rate."""
    step = at_severity(severity, 14, 75) * sampler.walk(len(clip), 0.85, 1.15)
    return compression.video(clip, step, group=sampler.integer(6, 18))


def rolling_compression(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """A codec whose bit rate swings, on top of an exposure that pumps."""
    step = at_severity(severity, 14, 80) * sampler.walk(len(clip), 0.35, 1.3, 0.8)
    gain = 1 + at_severity(severity, 0.04, 0.18) * sampler.walk(len(clip), -1, 1, 0.6)
    exposed = (clip * gain[:, None, None, None]).clamp_(0, 1)
    return compression.video(exposed, step, group=sampler.integer(4, 10))


def pixelate(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Shrunk and enlarged without interpolation."""
    _, _, height, width = clip.shape
    factor = at_severity(severity, 1.6, 6)
    small = filters.resize(clip, max(2, round(height / factor)), max(2, round(width / factor)),
                           'area')
    return F.interpolate(small, size=(height, width), mode='nearest-exact')


def brightness(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Over- or underexposure, with gain and gamma changing from frame to frame."""
    frames = len(clip)
    sign = sampler.choice((-1.0, 1.0))
    amount = at_severity(severity, 0.25, 1.0)
    walk = 1 + 0.25 * sampler.walk(frames, -1, 1, 0.5)
    stops = sign * amount * walk[:, None, None, None]
    if sign > 0:
        return (clip * 2 ** (1.4 * stops)).clamp_(0, 1)
    return clip.clamp(min=1e-4).pow(2 ** (-1.1 * stops)) * 2 ** (1.2 * stops)


def contrast(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Contrast lost about each frame's mean."""
    keep = at_severity(severity, 0.6, 0.1) * sampler.walk(len(clip), 0.9, 1.1)
    mean = clip.mean((1, 2, 3), keepdim=True)
    return (mean + (clip - mean) * keep[:, None, None, None]).clamp_(0, 1)


def saturation(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Colours faded or overdriven."""
    grey = clip.mean(1, keepdim=True)
    factor = sampler.choice((at_severity(severity, 0.6, 0.0), at_severity(severity, 1.6, 5.0)))
    return (grey + factor * (clip - grey)).clamp_(0, 1)


def flicker(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Brightness that jumps from frame to frame, and rolling bands of mains lighting."""
    frames, _, height, _ = clip.shape
    amount = at_severity(severity, 0.06, 0.4)
    gain = 1 + amount * sampler.walk(frames, -1, 1, 1.0)
    rows = torch.arange(height, device=clip.device) / height
    phase = sampler.uniform(0, 1) + sampler.uniform(0.1, 0.4) * sampler.times(frames)
    bands = torch.cos(2 * math.pi * (sampler.uniform(0.7, 2.5) * rows[None] + phase[:, None]))
    factor = gain[:, None] * (1 + 0.6 * amount * bands)
    gamma = 2 ** (amount * sampler.walk(frames, -1, 1, 0.8))
    exposed = (clip * factor[:, None, :, None]).clamp_(0, 1)
    return exposed.clamp_(min=1e-4).pow(gamma[:, None, None, None])
