# SPDX-License-Identifier: Apache-2.0
"""Night: little light, lamps, a long exposure and an amplified sensor."""

from __future__ import annotations

import math

import torch

from daflow_ros.degradation import filters
from daflow_ros.degradation.sampling import Sampler, at_severity


def night(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Darken in linear light, then expose long, count photons, read out and amplify.

    Severity takes the scene from dusk to 5.5 stops down; the camera wins back a part by gain,
    which lifts shot and read noise alike.
    """
    frames, _, height, width = clip.shape
    device = clip.device
    linear = clip.clamp(min=1e-4).pow(2.2)
    # Street lamps and headlights: pools of light that stay or sweep slowly, bound to no object.
    ys = torch.arange(height, device=device)[None, :, None] / height
    xs = torch.arange(width, device=device)[None, None] / width
    pools = torch.zeros(frames, height, width, device=device)
    for _ in range(3):
        lit = sampler.uniform(0, 1) < 0.6
        cx = sampler.uniform(0, 1) + 0.04 * sampler.walk(frames, -1, 1, 0.2)
        cy = sampler.uniform(0, 1) + 0.04 * sampler.walk(frames, -1, 1, 0.2)
        extent, strength = sampler.uniform(0.12, 0.4), sampler.uniform(0.3, 1.2)
        if lit:
            squared = ((xs - cx[:, None, None]) ** 2 + (ys - cy[:, None, None]) ** 2) / extent ** 2
            pools += strength / (1 + squared) ** 2
    warmth = sampler.uniform(-0.12, 0.35)
    cast = torch.tensor([1 + warmth, 1.0, 1 - warmth], device=device).view(1, 3, 1, 1)
    ambient = 2 ** -at_severity(severity, 1.3, 5.5)
    flicker = sampler.walk(frames, 0.95, 1.05)[:, None, None]
    exposure = ambient * flicker * (0.8 + pools)
    linear = linear * exposure[:, None] * cast
    # At night eyes and sensors see less colour.
    grey = linear.mean(1, keepdim=True)
    linear = linear + at_severity(severity, 0.1, 0.5) * (grey - linear)

    length = at_severity(severity, 0.5, 9) * sampler.walk(frames, 0.3, 1.0, 0.4)
    angle = sampler.uniform(0, math.pi) + sampler.walk(frames, -0.6, 0.6, 0.3)
    filter_ = filters.FrequencyFilter(linear, border=10)
    linear = filter_(linear, filters.line(filter_.fx, filter_.fy, length, angle)).clamp_(min=0)

    # Photons: full scale is a well of `well` electrons; read noise in electrons.
    well, read = at_severity(severity, 2500, 500), at_severity(severity, 2, 5)
    deviation = torch.sqrt(linear / well + (read / well) ** 2)
    measured = linear + deviation * sampler.normal_noise(*clip.shape)
    rows = sampler.normal_noise(frames, 1, height, 1)  # read-out banding
    measured = measured + 0.12 * read / well * rows
    gain = ambient ** -at_severity(severity, 0.5, 0.62)
    return (measured * gain).clamp_(1e-5, 1).pow(1 / 2.2)
