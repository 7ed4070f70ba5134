# SPDX-License-Identifier: Apache-2.0
"""Sensor noise: Gaussian, shot (Poisson), speckle and impulse."""

from __future__ import annotations

import torch

from daflow_ros.degradation.sampling import Sampler


def _normal(clip: torch.Tensor, sampler: Sampler, grey: bool) -> torch.Tensor:
    frames, channels, height, width = clip.shape
    return sampler.normal_noise(frames, 1 if grey else channels, height, width)


def gaussian_noise(clip: torch.Tensor, sigma: torch.Tensor | float, sampler: Sampler,
                   grey: bool = False) -> torch.Tensor:
    """Add Gaussian noise, independent in each frame; sigma in [0, 1], one or (F,)."""
    sigmas = torch.as_tensor(sigma, device=clip.device).reshape(-1, 1, 1, 1)
    return (clip + sigmas * _normal(clip, sampler, grey)).clamp_(0, 1)


def shot_noise(clip: torch.Tensor, gain: torch.Tensor | float, sampler: Sampler,
               grey: bool = False) -> torch.Tensor:
    """Add noise of standard deviation gain * sqrt(value): Poisson's, in its normal limit."""
    gains = torch.as_tensor(gain, device=clip.device).reshape(-1, 1, 1, 1)
    level = clip.mean(1, keepdim=True) if grey else clip
    return (clip + gains * level.clamp(min=0).sqrt() * _normal(clip, sampler, grey)).clamp_(0, 1)


def speckle_noise(clip: torch.Tensor, sigma: float, sampler: Sampler) -> torch.Tensor:
    """Multiplicative Gaussian noise."""
    return (clip * (1 + sigma * _normal(clip, sampler, False))).clamp_(0, 1)


def impulse_noise(clip: torch.Tensor, share: float, sampler: Sampler) -> torch.Tensor:
    """Black and white pixels; share of the pixels in [0, 1]."""
    frames, _, height, width = clip.shape
    draw = sampler.uniform_noise(frames, 1, height, width)
    clip = torch.where(draw < share / 2, torch.zeros_like(clip), clip)
    return torch.where(draw > 1 - share / 2, torch.ones_like(clip), clip)
