# SPDX-License-Identifier: Apache-2.0
"""Weather, coherent in time: rain, fog, snow, dust, glare and dirt on the lens.

Scattering follows Koschmieder's law, I = J t + A (1 - t) with t = exp(-beta d). Particles have
velocities of their own and what sits on the lens stays there, so that no corruption moves with
the scene. Lengths in px grow with the root of the image's shorter side (1 at 256 px).
"""

from __future__ import annotations

import math

import torch

from daflow_ros.degradation import filters, noise
from daflow_ros.degradation.particles import cloud_field, lens_drops, moving_layer
from daflow_ros.degradation.sampling import Sampler, at_severity


def _scale(clip: torch.Tensor) -> float:
    return math.sqrt(min(clip.shape[-2:]) / 256)


def _colour(values: tuple[float, float, float], clip: torch.Tensor) -> torch.Tensor:
    return torch.tensor(values, device=clip.device).view(1, 3, 1, 1)


def _drifting_field(clip: torch.Tensor, cell: float, speed: float,
                    sampler: Sampler) -> torch.Tensor:
    """(F, 1, H, W) smooth field in [0, 1] that drifts `speed` px a frame."""
    angle = sampler.uniform(0, 2 * math.pi)
    velocity = torch.tensor([speed * math.cos(angle), speed * math.sin(angle)],
                            device=clip.device)
    offsets = velocity * sampler.times(len(clip))[:, None]
    return cloud_field((clip.shape[-2], clip.shape[-1]), cell, offsets, sampler)


def _travelled(step: torch.Tensor, frames: int) -> torch.Tensor:
    """(F, 2) displacement since frame 0 of the last F frames; step: (start + F, 2) px a frame."""
    return (torch.cumsum(step, 0) - step[:1])[-frames:]


def _distance(clip: torch.Tensor, depth: torch.Tensor | None, sampler: Sampler,
              speed: float) -> torch.Tensor:
    """(F, 1, H, W) relative distance, about 0.2 near to 2 far.

    From depth where it is given; else a ground plane seen to a horizon, with smooth structure
    that drifts slowly: like depth, but not bound to the scene.
    """
    cell = sampler.uniform(0.3, 0.9) * min(clip.shape[-2:])
    field = _drifting_field(clip, cell, speed, sampler)
    horizon = sampler.uniform(0.15, 0.5)
    flat = sampler.uniform(0, 0.5)
    if depth is not None:
        relative = depth / depth.median().clamp(min=1e-6)
        return relative.clamp(0.05, 3) * (0.85 + 0.3 * field)
    rows = (torch.arange(clip.shape[-2], device=clip.device) + 0.5) / clip.shape[-2]
    below = 0.06 * torch.nn.functional.softplus((rows - horizon) / 0.06)  # smooth at the horizon
    ramp = flat + (1 - flat) * 0.24 / (below + 0.12)
    return ramp[None, None, :, None] * (0.55 + 0.9 * field)


def _through_air(clip: torch.Tensor, optical_depth: torch.Tensor,
                 airlight: torch.Tensor) -> torch.Tensor:
    transmission = torch.exp(-optical_depth)
    return airlight + (clip - airlight) * transmission


def fog(clip: torch.Tensor, severity: float, sampler: Sampler,
        depth: torch.Tensor | None = None) -> torch.Tensor:
    """Fog with patches that drift; distant detail is softened, and the sensor is at its floor."""
    level = sampler.uniform(0.72, 0.92) + 0.02 * sampler.walk(len(clip), -1, 1)
    tint = sampler.uniform(-0.03, 0.03)
    airlight = _colour((1 - tint, 1.0, 1 + tint), clip) * level.view(-1, 1, 1, 1)
    density = at_severity(severity, 0.4, 1.6) * sampler.walk(len(clip), 0.96, 1.04)
    distance = _distance(clip, depth, sampler, sampler.uniform(0.1, 0.8) * _scale(clip))
    # Even near things are hazy: there is fog between the camera and the nearest of them.
    optical = density.view(-1, 1, 1, 1) * (0.35 + distance)
    soft = filters.blur(clip, 0.2 + 0.25 * severity)
    share = 1 - torch.exp(-0.5 * optical)
    hazy = _through_air(clip + share * (soft - clip), optical, airlight)
    hazy = noise.gaussian_noise(hazy, 0.004, sampler)
    return wet_lens(hazy, at_severity(severity, 1, 3), sampler) if sampler.chance(0.2) else hazy


def rain(clip: torch.Tensor, severity: float, sampler: Sampler,
         depth: torch.Tensor | None = None) -> torch.Tensor:
    """Streaks in three depths, a veil of distant drops, and a wet lens when heavy."""
    frames, _, height, width = clip.shape
    scale = _scale(clip) * sampler.uniform(0.8, 1.3)
    device = clip.device
    # Overcast: darker, less colourful, veiled.
    grey = clip.mean(1, keepdim=True)
    dull = at_severity(severity, 0.1, 0.4)
    clip = (clip + dull * (grey - clip)) * (1 - 0.4 * dull)
    sky = sampler.uniform(0.55, 0.75)
    airlight = _colour((0.97 * sky, sky, 1.03 * sky), clip)
    distance = _distance(clip, depth, sampler, 0.4 * scale)
    clip = _through_air(clip, at_severity(severity, 0.06, 0.6) * (0.3 + distance), airlight)
    drops_chance, slide = sampler.uniform(0, 1), sampler.uniform(0, 3) * scale
    drop_count = sampler.uniform(2, 9)

    heading = math.pi / 2 + sampler.uniform(-0.45, 0.45)
    gust = sampler.walk(frames, -0.04, 0.04, 0.5, history=True)
    exposure = sampler.uniform(0.45, 1.0)
    opacity = torch.zeros(frames, 1, height, width, device=device)
    #            speed px/frame, sigma, density per px, opacity
    for speed, radius, crowd, alpha in ((14.0, 0.55, 0.0042, 0.30), (30.0, 0.75, 0.0015, 0.42),
                                        (62.0, 1.25, 0.00035, 0.38)):
        speed *= scale * sampler.uniform(0.85, 1.2)
        angle = heading + sampler.uniform(-0.05, 0.05)
        directions = angle + gust
        step = speed * torch.stack([directions.cos(), directions.sin()], 1)
        offsets = _travelled(step, frames)
        crowd *= at_severity(severity, 0.5, 2.2) / scale ** 2
        layer = moving_layer((height, width), crowd, offsets, sampler,
                             radius=radius * max(0.8, scale),
                             streak=speed * exposure, angle=angle)
        layer = layer * (alpha * at_severity(severity, 0.7, 1.5))
        opacity = opacity + layer - opacity * layer
    bright = airlight * 1.12 + 0.08
    clip = (clip + opacity.clamp_(max=0.9) * (bright - clip)).clamp_(0, 1)
    if drops_chance < at_severity(severity, 0.0, 0.8):
        if sampler.chance(0.5):
            return wet_lens(clip, at_severity(severity, 1, 3.5), sampler)
        count = round(drop_count * at_severity(severity, 0.4, 1.6))
        clip = lens_drops(clip, count, (3.0 * scale, 11 * scale), sampler, slide)
    return clip


def snow(clip: torch.Tensor, severity: float, sampler: Sampler,
         depth: torch.Tensor | None = None) -> torch.Tensor:
    """Flakes in four depths, each with its own drift, small and sharp to large and defocused."""
    frames, _, height, width = clip.shape
    scale = _scale(clip) * sampler.uniform(0.8, 1.25)
    sky = sampler.uniform(0.75, 0.92)
    airlight = _colour((0.98 * sky, sky, 1.02 * sky), clip)
    distance = _distance(clip, depth, sampler, 0.5 * scale)
    clip = _through_air(clip, at_severity(severity, 0.08, 0.75) * (0.3 + distance), airlight)
    wind = sampler.uniform(-1.0, 1.0)
    exposure = sampler.uniform(0.2, 0.6)
    sway = sampler.walk(frames, -0.3, 0.3, 0.3, history=True)
    opacity = torch.zeros(frames, 1, height, width, device=clip.device)
    #            fall px/frame, radius, density per px, opacity, defocused
    for fall, radius, crowd, alpha, defocused in (
            (2.5, 0.6, 0.010, 0.55, False), (5, 0.95, 0.0045, 0.75, False),
            (10, 1.7, 0.0012, 0.85, False), (20, 5.0, 0.00016, 0.6, True)):
        fall *= scale * sampler.uniform(0.7, 1.3)
        drift = fall * (wind + sampler.uniform(-0.3, 0.3) + sway)
        step = torch.stack([drift, torch.full_like(drift, fall)], 1)
        offsets = _travelled(step, frames)
        speed, angle = float(step[0].norm()), math.atan2(fall, float(drift[0]))
        crowd *= at_severity(severity, 0.35, 2.0) / scale ** 2
        layer = moving_layer((height, width), crowd, offsets, sampler,
                             radius=radius * max(0.8, scale),
                             streak=speed * exposure, angle=angle, disc=defocused)
        layer = layer * min(0.97, alpha * at_severity(severity, 0.85, 1.25))
        opacity = opacity + layer - opacity * layer
    flake = (airlight * 1.06).clamp(max=1)
    return (clip + opacity * (flake - clip)).clamp_(0, 1)


def dust(clip: torch.Tensor, severity: float, sampler: Sampler,
         depth: torch.Tensor | None = None) -> torch.Tensor:
    """A brown, patchy cloud blown by the wind, with grains before the camera."""
    frames, _, height, width = clip.shape
    scale = _scale(clip)
    level = sampler.uniform(0.5, 0.75)
    airlight = _colour((level * 1.12, level * 0.92, level * 0.62), clip)
    cell = sampler.uniform(0.25, 0.6) * min(height, width)
    cloud = _drifting_field(clip, cell, sampler.uniform(1, 5) * scale, sampler)
    distance = _distance(clip, depth, sampler, 0.4 * scale)
    optical = at_severity(severity, 0.35, 1.7) * (0.25 + 0.7 * distance) * (0.3 + 1.6 * cloud)
    clip = _through_air(clip, optical, airlight)
    heading = sampler.choice((0.0, math.pi)) + sampler.uniform(-0.5, 0.5)
    for shade, crowd, alpha in ((0.6, 0.001, 0.25), (1.2, 0.003, 0.4)):
        speed = sampler.uniform(4, 14) * scale
        step = torch.tensor([[speed * math.cos(heading), speed * math.sin(heading)]],
                            device=clip.device)
        offsets = step * sampler.times(frames)[:, None]
        layer = moving_layer((height, width), crowd * at_severity(severity, 0.3, 1.5), offsets,
                             sampler, radius=0.6, streak=0.5 * speed, angle=heading)
        clip = clip + alpha * layer * (airlight * shade - clip)
    return clip.clamp_(0, 1)


def wet_lens(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """A wet, dirty or fogged window close before the lens: far out of focus.

    Large soft patches, fixed to the camera, in which the scene is blurred, veiled and a little
    displaced; what is seen through them moves, they do not.
    """
    height, width = clip.shape[-2:]
    size = min(height, width)
    still = torch.zeros(1, 2, device=clip.device)
    cell = sampler.uniform(0.12, 0.4) * size
    field = cloud_field((height, width), cell, still, sampler, 2)
    share = at_severity(severity, 0.12, 0.75)
    level = torch.quantile(field.flatten()[::7], 1 - share)
    softness = sampler.uniform(12, 40)
    patches = torch.sigmoid((field - level) * softness)
    strength = sampler.uniform(0.85, 1.0) * at_severity(severity, 0.6, 1.0)
    film = sampler.uniform(0, 0.5) * at_severity(severity, 0.3, 1.0)  # over the whole window
    mask = film + max(0.0, strength - film) * patches
    reach = sampler.uniform(0.6, 1.3) * at_severity(severity, 8, 18) * size / 256
    coarse = filters.resize(clip, max(4, round(height / reach)), max(4, round(width / reach)),
                            'area')
    blurred = filters.resize(coarse, height, width, 'bicubic')
    # Scattered light: the mean of a wide neighbourhood, lifted.
    wide = filters.resize(filters.resize(coarse, 3, 3, 'area'), height, width, 'bilinear')
    scatter = sampler.uniform(0.1, 0.4)
    seen = blurred + scatter * (wide * sampler.uniform(0.95, 1.25) - blurred)
    return (clip + mask * (seen - clip)).clamp_(0, 1)


def spatter(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """Water or mud on the lens, staying in place."""
    scale = _scale(clip)
    area = clip.shape[-2] * clip.shape[-1] / 256 ** 2
    count = max(1, round(at_severity(severity, 5, 34) * min(area, 4.0)))
    if sampler.chance(0.6):
        return lens_drops(clip, count, (2.5 * scale, 12 * scale), sampler,
                          sampler.uniform(0, 2) * scale)
    height, width = clip.shape[-2:]
    # Splashes have a ragged outline: large blobs cut out of a finer noise field.
    still = torch.zeros(1, 2, device=clip.device)
    field = cloud_field((height, width), 34 * scale, still, sampler, octaves=5)[0, 0]
    share = at_severity(severity, 0.04, 0.34)
    level = torch.quantile(field.flatten()[::7], 1 - share)
    mud = torch.sigmoid((field - level) * 90)[None, None] * sampler.uniform(0.8, 0.97)
    brown = _colour((0.26, 0.2, 0.13), clip) * (
        0.7 + 0.6 * cloud_field((height, width), 9, still, sampler, 2))
    return (clip + mud * (brown - clip)).clamp_(0, 1)


def glare(clip: torch.Tensor, severity: float, sampler: Sampler) -> torch.Tensor:
    """A low sun or headlight: bloom, rays, ghosts along the optical axis and lost contrast."""
    frames, _, height, width = clip.shape
    device = clip.device
    size = min(height, width)
    cx = sampler.uniform(0.1, 0.9) + 0.012 * sampler.walk(frames, -1, 1, 0.3)
    cy = sampler.uniform(0.05, 0.6) + 0.012 * sampler.walk(frames, -1, 1, 0.3)
    power = at_severity(severity, 0.35, 1.5) * sampler.walk(frames, 0.92, 1.08)
    warm = _colour((1.0, sampler.uniform(0.86, 0.98), sampler.uniform(0.68, 0.95)), clip)
    ys = torch.arange(height, device=device)[None, :, None]
    xs = torch.arange(width, device=device)[None, None]
    dx = (xs - cx[:, None, None] * width) / size
    dy = (ys - cy[:, None, None] * height) / size
    radius = torch.sqrt(dx ** 2 + dy ** 2)
    core = torch.exp(-(radius / at_severity(severity, 0.04, 0.09)) ** 2)
    bloom = 0.55 * torch.exp(-radius / at_severity(severity, 0.12, 0.35))
    blades, turn = sampler.choice((6, 8, 12)), sampler.uniform(0, math.pi)
    rays = torch.cos(blades / 2 * (torch.atan2(dy, dx) + turn)).abs() ** 40
    light = 1.3 * core + bloom + 0.35 * rays * torch.exp(-radius / 0.25)
    for _ in range(4):
        along, extent = sampler.uniform(-1.2, 0.7), sampler.uniform(0.03, 0.1)
        gx = (xs / width - 0.5 - along * (cx[:, None, None] - 0.5)) * width / size
        gy = (ys / height - 0.5 - along * (cy[:, None, None] - 0.5)) * height / size
        ghost = torch.sigmoid((extent - torch.sqrt(gx ** 2 + gy ** 2)) * 140)
        light = light + sampler.uniform(0.03, 0.1) * ghost
    light = power[:, None, None] * light + 0.14 * power[:, None, None]
    added = (light[:, None] * warm).clamp(0, 1)
    return (1 - (1 - clip) * (1 - added)).clamp_(0, 1)  # screen: light adds, white saturates
