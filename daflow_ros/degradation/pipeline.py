# SPDX-License-Identifier: Apache-2.0
"""The table of degradations, one call for arrays and tensors, and the training mix."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from daflow_ros.degradation import night, paper, sensor, weather
from daflow_ros.degradation.sampling import Sampler


class Degradation(NamedTuple):
    """function: (clip (F, 3, H, W), severity, sampler) -> clip; with depth where it says so."""

    function: Callable[..., torch.Tensor]
    summary: str
    takes_depth: bool = False


TABLE: dict[str, Degradation] = {
    'paper': Degradation(paper.second_order, "RealBasicVSR's second-order pipeline"),
    'severe': Degradation(paper.severe, 'heavy blur, noise and JPEG together'),
    'blur': Degradation(sensor.blur, 'Gaussian blur'),
    'defocus_blur': Degradation(sensor.defocus_blur, 'lens out of focus'),
    'motion_blur': Degradation(sensor.motion_blur, 'camera shake'),
    'zoom_blur': Degradation(sensor.zoom_blur, 'radial blur of fast forward motion'),
    'glass_blur': Degradation(sensor.glass_blur, 'rough glass before the lens'),
    'noise': Degradation(sensor.camera_noise, 'shot and read noise'),
    'gaussian_noise': Degradation(sensor.gaussian_noise, 'Gaussian noise'),
    'shot_noise': Degradation(sensor.shot_noise, 'photon noise'),
    'speckle_noise': Degradation(sensor.speckle_noise, 'multiplicative noise'),
    'impulse_noise': Degradation(sensor.impulse_noise, 'black and white pixels'),
    'jpeg': Degradation(sensor.jpeg, 'JPEG on each frame'),
    'video': Degradation(sensor.video, 'video codec at a low bit rate'),
    'rolling_compression': Degradation(sensor.rolling_compression,
                                       'swinging bit rate and pumping exposure'),
    'pixelate': Degradation(sensor.pixelate, 'large pixels'),
    'rain': Degradation(weather.rain, 'streaks, veil and a wet lens', True),
    'fog': Degradation(weather.fog, 'airlight over a depth-like map', True),
    'snow': Degradation(weather.snow, 'falling flakes and veil', True),
    'dust': Degradation(weather.dust, 'brown clouds and grains', True),
    'wet_lens': Degradation(weather.wet_lens, 'wet or fogged window, far out of focus'),
    'spatter': Degradation(weather.spatter, 'water or mud on the lens'),
    'night': Degradation(night.night, 'low light, long exposure, amplified noise'),
    'glare': Degradation(weather.glare, 'low sun or headlight'),
    'brightness': Degradation(sensor.brightness, 'over- or underexposure that changes'),
    'contrast': Degradation(sensor.contrast, 'lost contrast'),
    'saturation': Degradation(sensor.saturation, 'faded or overdriven colours'),
    'flicker': Degradation(sensor.flicker, 'brightness jumps and rolling bands'),
}
DEGRADATIONS: tuple[str, ...] = tuple(TABLE)

# Training mix: a clip in seven stays clean, the others get any one degradation, these more often
# than the rest, and a fifth of them a light one on top.
_CLEAN = 0.15
_OFTEN = {'rain': 5, 'snow': 5, 'night': 3, 'fog': 2, 'noise': 2, 'gaussian_noise': 2,
          'severe': 2, 'paper': 2, 'dust': 2, 'spatter': 2}
_MIX = tuple(name for name in TABLE for _ in range(_OFTEN.get(name, 1)))
_ON_TOP = ('noise', 'jpeg', 'blur')


def _check(clip: torch.Tensor, name: str) -> None:
    if name not in TABLE:
        raise ValueError(f'unknown degradation {name!r}; there are {", ".join(DEGRADATIONS)}')
    if clip.ndim != 5 or clip.shape[2] != 3 or not clip.is_floating_point():
        raise ValueError(f'expected a float clip (B, F, 3, H, W), got {clip.dtype} '
                         f'{tuple(clip.shape)}')
    if clip.shape[1] < 1 or min(clip.shape[-2:]) < 32:
        raise ValueError(f'frames must be at least 32 px high and wide, got {clip.shape[-2:]}')


def _one(clip: torch.Tensor, name: str, severity: float, sampler: Sampler,
         depth: torch.Tensor | None = None) -> torch.Tensor:
    if not 1 <= severity <= 5:
        raise ValueError(f'severity must lie in [1, 5], got {severity}')
    entry = TABLE[name]
    if entry.takes_depth and depth is not None:
        return entry.function(clip, severity, sampler, depth=depth)
    return entry.function(clip, severity, sampler)


def _seeds(count: int, generator: torch.Generator) -> list[int]:
    seeds = torch.randint(2 ** 31 - 1, (count,), generator=generator, device=generator.device)
    return [int(seed) for seed in seeds.tolist()]


@torch.no_grad()
def apply_degradation(clip: torch.Tensor, name: str, severity: float | torch.Tensor,
                      generator: torch.Generator, depth: torch.Tensor | None = None,
                      start: int = 0) -> torch.Tensor:
    """Degrade a batch of clips.

    clip: (B, F, 3, H, W) float RGB in [0, 1], H and W at least 32; severity: in [1, 5], one or
    (B,); depth: (B, F, H, W) or (B, F, 1, H, W), larger is farther, any unit, used by rain, fog,
    snow and dust instead of an invented one. The generator gives one seed for each sample, so a
    sample does not depend on its neighbours. start: number of the first frame within a longer
    clip that is degraded piece by piece with the same seed. Returns the same shape, in [0, 1].
    Nothing moves the image: the flow of the clean clip stays the ground truth. Raises ValueError.
    """
    _check(clip, name)
    batch = clip.shape[0]
    severities = torch.as_tensor(severity, dtype=torch.float64).reshape(-1).expand(batch).tolist()
    if depth is not None:
        depth = depth.reshape(batch, clip.shape[1], 1, *clip.shape[-2:]).to(clip)
    clip32 = clip.float()
    degraded = [
        _one(clip32[index], name, severities[index], Sampler(seed, clip.device, start),
             None if depth is None else depth[index].float())
        for index, seed in enumerate(_seeds(batch, generator))]
    return torch.stack(degraded).to(clip.dtype)


def _random_chain(clip: torch.Tensor, sampler: Sampler) -> torch.Tensor:
    if sampler.chance(_CLEAN):
        return clip
    clip = _one(clip, sampler.choice(_MIX), sampler.uniform(1, 5), sampler)
    if sampler.chance(0.2):
        clip = _one(clip, sampler.choice(_ON_TOP), sampler.uniform(1, 2.5), sampler)
    return clip


@torch.no_grad()
def random_degradation(clip: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """The training mix: a seventh clean, the rest any degradation of severity 1 to 5.

    clip: (B, F, 3, H, W) float RGB in [0, 1]; each sample draws its own chain and severity.
    """
    _check(clip, 'paper')
    clip32 = clip.float()
    degraded = [_random_chain(clip32[index], Sampler(seed, clip.device))
                for index, seed in enumerate(_seeds(clip.shape[0], generator))]
    return torch.stack(degraded).clamp_(0, 1).to(clip.dtype)


def degrade(clip: np.ndarray, name: str, severity: float, seed: int,
            start: int = 0) -> np.ndarray:
    """Degrade a clip of images: uint8 (F, H, W, 3) RGB to the same, repeatable by seed.

    A single image (H, W, 3) is taken as a clip of one frame. A recording too long for memory is
    degraded in pieces: start is the number of a piece's first frame, and weather goes on where
    the last piece left it (a video codec begins anew). Raises ValueError.
    """
    single = clip.ndim == 3
    frames = clip[None] if single else clip
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8:
        raise ValueError(f'expected uint8 (F, H, W, 3), got {clip.dtype} {clip.shape}')
    tensor = torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2)[None].float() / 255
    generator = torch.Generator().manual_seed(seed)
    degraded = apply_degradation(tensor, name, severity, generator, start=start)[0]
    array = (degraded * 255).round_().clamp_(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(array[0] if single else array)
