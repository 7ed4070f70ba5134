# SPDX-License-Identifier: Apache-2.0
"""Sharpness, contrast and exposure of training clips, as a camera's own processing leaves them.

Rendered and magnified textures are softer than photographs, and nothing in them is blown out,
where a real sky often is. Clip by clip and the same for all frames, before weather and noise.
"""

from __future__ import annotations

import torch

from daflow_ros.degradation.filters import blur
from daflow_ros.degradation.sampling import Sampler


def _one(clip: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    if sampler.chance(0.7):
        amount, sigma = sampler.uniform(0.3, 1.6), sampler.uniform(0.7, 1.6)
        clip = clip + amount * (clip - blur(clip, sigma))
    if sampler.chance(0.5):
        mean = clip.mean()
        clip = (clip - mean) * sampler.uniform(1.0, 1.6) + mean
    clip = clip.clamp(0, 1)
    if sampler.chance(0.15):
        clip = clip * sampler.uniform(1.3, 2.8)
    elif sampler.chance(0.05):
        clip = (clip - sampler.uniform(0.12, 0.43)) * sampler.uniform(1.0, 1.6)
    return clip.clamp(0, 1)


@torch.no_grad()
def random_tone(clips: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Sharpened, of higher contrast, over- or underexposed, each by chance.

    Args:
        clips: ``(B, F, 3, H, W)`` RGB in [0, 1], not changed.
        generator: gives one seed for each clip.

    Returns:
        The same shape, in [0, 1].
    """
    seeds = torch.randint(2**31, (len(clips),), generator=generator, device=generator.device)
    return torch.stack(
        [
            _one(clip, Sampler(seed, clips.device))
            for clip, seed in zip(clips, seeds.tolist(), strict=True)
        ]
    )
