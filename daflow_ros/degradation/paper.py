# SPDX-License-Identifier: Apache-2.0
"""The second-order degradation that DA-Flow is trained on, after RealBasicVSR.

Two passes of blur, resize, noise, JPEG and video coding, the second milder, then a final sinc
filter at a quarter of the size and bicubic enlargement back, so that sizes match the ground
truth. Ranges at severity 5 are RealBasicVSR's (DA-Flow, section on training: kernel 7-21, sigma
0.2-3, sinc 0.1, resize 0.15-1.5, Gaussian noise 1-30 or Poisson 0.05-3 with a grey share of 0.4,
JPEG 30-95); below it, they and the final factor shrink towards mild ones. Blur, noise and coding
walk through the clip; the resize factor stays, because a changing one would move the image.
"""

from __future__ import annotations

import math

import torch

from daflow_ros.degradation import compression, filters, noise
from daflow_ros.degradation.sampling import Sampler, at_severity


def _blurred(clip: torch.Tensor, sigma: float, sinc_share: float,
             sampler: Sampler) -> torch.Tensor:
    frames = len(clip)
    filter_ = filters.FrequencyFilter(clip, border=10)
    along = sampler.walk(frames, 0.2, sigma)
    across = sampler.walk(frames, 0.2, sigma)
    angle = sampler.walk(frames, -math.pi, math.pi)
    isotropic, ringing = sampler.chance(0.6), sampler.chance(sinc_share)
    cutoff = sampler.walk(frames, math.pi / 3, math.pi)
    kernel = 2 * sampler.integer(3, 10) + 1
    if ringing:
        transfer = filters.sinc(filter_.fx, filter_.fy, cutoff, kernel)
    else:
        transfer = filters.gaussian(filter_.fx, filter_.fy, along,
                                    along if isotropic else across, angle)
    return filter_(clip, transfer).clamp_(0, 1)


def _noisy(clip: torch.Tensor, gaussian: float, poisson: float, sampler: Sampler) -> torch.Tensor:
    """gaussian: largest sigma of 255; poisson: largest scale of 8-bit photon noise."""
    grey = sampler.chance(0.4)
    strength = sampler.walk(len(clip), 0, 1, 0.1)
    if sampler.chance(0.5):
        sigma = (1 + (gaussian - 1) * strength) / 255
        return noise.gaussian_noise(clip, sigma, sampler, grey)
    return noise.shot_noise(clip, (0.05 + (poisson - 0.05) * strength) / 16, sampler, grey)


def _resized(clip: torch.Tensor, factor: float, sampler: Sampler) -> torch.Tensor:
    mode = sampler.choice(('area', 'bilinear', 'bicubic'))
    height, width = (max(16, round(size * factor)) for size in clip.shape[-2:])
    return filters.resize(clip, height, width, mode).clamp_(0, 1)


def _coded(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    quality = sampler.walk(len(clip), at_severity(severity, 75, 30), 95, 0.1)
    step = sampler.walk(len(clip), 4, at_severity(severity, 12, 40), 0.1)
    clip = compression.jpeg(clip, quality)
    return compression.video(clip, step) if sampler.chance(0.5) else clip


def _factor(direction: str, low: float, high: float, sampler: Sampler) -> float:
    down, up = sampler.uniform(low, 1), sampler.uniform(1, high)
    return {'up': up, 'down': down, 'keep': 1.0}[direction]


def second_order(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """(F, 3, H, W) in [0, 1] degraded at a severity in [1, 5]."""
    _, _, height, width = clip.shape
    sigma = at_severity(severity, 0.9, 3.0)
    clip = _blurred(clip, sigma, 0.1, sampler)
    direction = sampler.choice(('up', 'down', 'keep'), (0.2, 0.7, 0.1))
    factor = _factor(direction, at_severity(severity, 0.8, 0.15), 1.5, sampler)
    clip = _resized(clip, factor, sampler)
    clip = _noisy(clip, at_severity(severity, 6, 30), at_severity(severity, 0.6, 3), sampler)
    clip = _coded(clip, severity, sampler)

    if sampler.chance(0.8):
        clip = _blurred(clip, at_severity(severity, 0.5, 1.5), 0.1, sampler)
    # The second resize, to 0.3-1.2 of the input, runs into the final size.
    final = at_severity(severity, 0.8, 0.25)
    direction = sampler.choice(('up', 'down', 'keep'), (0.3, 0.4, 0.3))
    factor = _factor(direction, 0.5, 1.2, sampler) * final
    clip = filters.resize(clip, max(16, round(height * factor)), max(16, round(width * factor)),
                          sampler.choice(('area', 'bilinear', 'bicubic'))).clamp_(0, 1)
    clip = _noisy(clip, at_severity(severity, 5, 25), at_severity(severity, 0.5, 2.5), sampler)
    small = max(16, round(height * final)), max(16, round(width * final))
    if sampler.chance(0.5):
        clip = _coded(filters.resize(clip, *small).clamp_(0, 1), severity, sampler)
        clip = _ringing(clip, sampler)
    else:
        clip = _ringing(filters.resize(clip, *small).clamp_(0, 1), sampler)
        clip = _coded(clip, severity, sampler)
    return filters.resize(clip, height, width, 'bicubic').clamp_(0, 1)


def _ringing(clip: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    applies = sampler.chance(0.8)
    cutoff = sampler.walk(len(clip), math.pi / 3, math.pi)
    if not applies:
        return clip
    filter_ = filters.FrequencyFilter(clip, border=10)
    return filter_(clip, filters.sinc(filter_.fx, filter_.fy, cutoff)).clamp_(0, 1)


def severe(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Blur, noise and JPEG together, all heavy."""
    frames = len(clip)
    sigma = sampler.walk(frames, 0.8, 1.2) * at_severity(severity, 1.2, 3.2)
    clip = filters.blur(clip, sigma).clamp_(0, 1)
    strength = sampler.walk(frames, 0.85, 1.15) * at_severity(severity, 0.05, 0.16)
    clip = noise.gaussian_noise(clip, strength, sampler, sampler.chance(0.4))
    return compression.jpeg(clip, sampler.walk(frames, 0.85, 1.15)
                            * at_severity(severity, 35, 9))
