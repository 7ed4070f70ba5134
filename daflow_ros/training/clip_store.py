# SPDX-License-Identifier: Apache-2.0
"""Generated clips on disk, so that idle cores can draw and match them ahead of the training.

A shard is an uncompressed ``.npz`` of `SHARD` clips. Clean: ``frames`` uint8 (N, F, 3, H, W);
``flow`` float16 (N, 2, H, W) px of the last pair; ``occluded`` its packed mask; ``toned`` (N,)
where clips are as sharp, and as badly exposed, as they should be. Degraded: the same, with
``hypotheses`` float16 (N, K + M, 2, H, W) px of the degraded last pair.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from daflow_ros.degradation import random_degradation
from daflow_ros.training.flying import FlyingPairs
from daflow_ros.training.networks import matched_clips
from daflow_ros.training.scenes import SceneGenerator
from daflow_ros.training.sprites import open_imagery
from daflow_ros.training.tone import random_tone

SHARD = 32
#: Largest camera translation as a share of the side, of the quarters of a shard.
REACHES = (0.02, 0.04, 0.07, 0.11)


@dataclass
class Sample:
    """A batch to train flow on.

    Attributes:
        frames: ``(B, F, 3, H, W)`` in [-1, 1].
        flow: ``(B, 2, H, W)`` px of the last pair.
        occluded: ``(B, 1, H, W)`` bool.
        hypotheses: ``(B, K + M, 2, H, W)`` px, or None.
    """

    frames: Tensor
    flow: Tensor
    occluded: Tensor
    hypotheses: Tensor | None

    def crop(self, size: int, generator: torch.Generator) -> Sample:
        """A random window of ``size`` px a side, or the whole where it is no larger."""
        height, width = self.flow.shape[-2:]
        draws = torch.rand((2,), generator=generator, device=generator.device).tolist()
        top = int(draws[0] * (max(height - size, 0) + 1))
        left = int(draws[1] * (max(width - size, 0) + 1))
        window = (..., slice(top, top + size), slice(left, left + size))
        others = None if self.hypotheses is None else self.hypotheses[window]
        return Sample(self.frames[window], self.flow[window], self.occluded[window], others)


def flip(sample: Sample, generator: torch.Generator) -> Sample:
    """Mirror a batch left-right and/or upside down."""
    draws = torch.rand((2,), generator=generator, device=generator.device).tolist()
    for axis, chance in enumerate((0.5, 0.25)):
        if draws[axis] < chance:
            dims = (-1 - axis,)
            signs = torch.ones(2, 1, 1, device=sample.flow.device)
            signs[axis] = -1
            others = sample.hypotheses
            sample = replace(
                sample,
                frames=sample.frames.flip(dims),
                occluded=sample.occluded.flip(dims),
                flow=sample.flow.flip(dims) * signs,
                hypotheses=None if others is None else others.flip(dims) * signs,
            )
    return sample


def write_shard(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """A shard, whole or not at all."""
    part = path.with_suffix('.part')
    with part.open('wb') as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]
    os.replace(part, path)


def write_clips(
    folder: str | Path,
    imagery: str | None,
    shards: int,
    size: int = 384,
    frames: int = 2,
    seed: int = 1,
    device: str = 'cpu',
) -> None:
    """Draw ``shards`` shards of clean clips into ``folder``; those that are there are kept.

    Several processes with seeds of their own may write into one folder. A run that was broken
    off begins its missing shards from the seed and the shard's number, so that nothing repeats.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    bank, sprites = open_imagery(imagery, device)
    scenes = [
        SceneGenerator(bank, size, frames, reach=reach, sprites=sprites) for reach in REACHES
    ]
    generator = torch.Generator(device=device)
    for number in tqdm(range(shards), unit='shard'):
        path = out / f'{seed:03d}_{number:05d}.npz'
        if path.exists():
            continue
        generator.manual_seed(seed * 1_000_003 + number)
        clips = [scene(SHARD // len(scenes), generator) for scene in scenes]
        images = torch.cat([clip.frames for clip in clips]) * 255
        occluded = torch.cat([clip.occluded[:, -1] for clip in clips]).cpu().numpy()
        write_shard(
            path,
            {
                'frames': images.round().clamp(0, 255).to(torch.uint8).cpu().numpy(),
                'flow': torch.cat([clip.flow[:, -1] for clip in clips]).half().cpu().numpy(),
                'occluded': np.packbits(occluded, axis=-1),
            },
        )


def write_flying_clips(
    folder: str | Path, imagery: str | Path, shards: int, seed: int = 1
) -> None:
    """Shards of :class:`FlyingPairs`, otherwise as :func:`write_clips`."""
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    flying = FlyingPairs(imagery)
    for number in tqdm(range(shards), unit='shard'):
        path = out / f'flying_{seed:03d}_{number:05d}.npz'
        if path.exists():
            continue
        rng = np.random.default_rng([seed, number])
        frames, flows, hidden = zip(*(flying(rng) for _ in range(SHARD)), strict=True)
        write_shard(
            path,
            {
                'frames': np.stack(frames).transpose(0, 1, 4, 2, 3),
                'flow': np.stack(flows).transpose(0, 3, 1, 2).clip(-6e4, 6e4).astype(np.float16),
                'occluded': np.packbits(np.stack(hidden)[:, None], axis=-1),
                'toned': np.ones(SHARD, bool),
            },
        )


def degrade_clips(
    source: str | Path,
    folder: str | Path,
    seed: int = 1,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Degrade and match stored clean clips, shard by shard; what is there is kept.

    Args:
        source: folder of :func:`write_clips`; folder: where the degraded ones go.
        seed: of the degradations; another one gives further shards of the same clips.
        part: (i, n) treats every n-th shard from the i-th, for n processes.

    Raises:
        FileNotFoundError: no shard in the source.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    paths = _shards(source)
    generator = torch.Generator()
    for index in tqdm(range(part[0], len(paths), part[1]), unit='shard'):
        path = out / f'{paths[index].stem}_{seed:03d}.npz'
        if path.exists():
            continue
        with np.load(paths[index], allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        generator.manual_seed(seed * 1_000_003 + index)
        clean = torch.from_numpy(arrays['frames']).float() / 255
        if not arrays.pop('toned', np.zeros(1, bool)).all():
            clean = random_tone(clean, generator)
        bad = 2 * random_degradation(clean, generator) - 1
        shown, hypotheses = matched_clips(bad)
        arrays['frames'] = ((shown + 1) * 127.5).round().to(torch.uint8).numpy()
        arrays['hypotheses'] = hypotheses.clamp(-6e4, 6e4).half().numpy()
        write_shard(path, arrays)


def _shards(folder: str | Path) -> list[Path]:
    paths = sorted(Path(folder).glob('*.npz'), key=lambda path: path.stem[::-1])
    if not paths:
        raise FileNotFoundError(f'{folder}: no clips (`daflow clips` writes them)')
    return paths


class StoredClips:
    """Batches of stored clips in the order of their shards, over and over.

    Args:
        folder: of :func:`write_clips` or :func:`degrade_clips`.
        rank, world: this process reads every ``world``-th shard.

    Raises:
        FileNotFoundError: no shard in the folder.
    """

    def __init__(self, folder: str | Path, rank: int = 0, world: int = 1) -> None:
        self.paths = _shards(folder)
        self.rank, self.world = rank, world
        self._held: tuple[int, dict[str, np.ndarray]] | None = None

    def shard(self, index: int) -> dict[str, np.ndarray]:
        """Arrays of one shard."""
        if self._held is None or self._held[0] != index:
            with np.load(self.paths[index], allow_pickle=False) as file:
                self._held = index, {name: file[name] for name in file.files}
        return self._held[1]

    def rows(self, number: int, size: int) -> dict[str, np.ndarray]:
        """Arrays of batch ``number`` (from 0) of ``size`` clips.

        Raises:
            ValueError: a batch larger than a shard.
        """
        per_shard = SHARD // size
        if not per_shard:
            raise ValueError(f'a batch of {size} is larger than a shard of {SHARD} clips')
        index = (number // per_shard * self.world + self.rank) % len(self.paths)
        # A clip from each part of the shard: the reach of the motion grows from part to part.
        rows = number % per_shard + per_shard * np.arange(size)
        return {name: array[rows] for name, array in self.shard(index).items()}

    def batch(self, number: int, size: int, device: torch.device) -> Sample:
        """Batch ``number`` of degraded clips; the same however often it is asked for.

        Raises:
            ValueError: the shard holds clean clips.
        """
        rows = self.rows(number, size)
        if 'hypotheses' not in rows:
            raise ValueError('clean clips: `daflow clips --degrade` makes those to train on')

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array.astype(np.float32)).to(device)

        width = rows['flow'].shape[-1]
        occluded = np.unpackbits(rows['occluded'], axis=-1)[..., :width].astype(bool)
        return Sample(
            tensor(rows['frames']) / 127.5 - 1,
            tensor(rows['flow']),
            torch.from_numpy(occluded).to(device),
            tensor(rows['hypotheses']),
        )
