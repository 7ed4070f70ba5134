# SPDX-License-Identifier: Apache-2.0
"""Generated, degraded clips on disk, so that idle cores can draw them ahead of the training.

A shard is an uncompressed ``.npz`` of `SHARD` clips: ``frames`` uint8 (N, F, 3, H, W), degraded;
``flow`` float16 (N, 2, H, W) px of the last pair; ``occluded`` its packed mask.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from daflow_ros.degradation import random_degradation
from daflow_ros.training.scenes import Clip, SceneGenerator
from daflow_ros.training.textures import TextureBank

SHARD = 32
#: Largest camera translation as a share of the side, of the quarters of a shard.
REACHES = (0.05, 0.08, 0.12, 0.16)


def write_clips(
    folder: str | Path,
    imagery: str | None,
    shards: int,
    size: int = 192,
    frames: int = 2,
    seed: int = 1,
    device: str = 'cpu',
) -> None:
    """Draw ``shards`` shards into ``folder``; those that are there already are kept.

    Several processes with seeds of their own may write into one folder. A run that was broken
    off begins its missing shards from the seed and the shard's number, so that nothing repeats.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    bank = TextureBank(imagery, device=device)
    scenes = [SceneGenerator(bank, size, frames, reach=reach) for reach in REACHES]
    generator = torch.Generator(device=device)
    for number in tqdm(range(shards), unit='shard'):
        path = out / f'{seed:03d}_{number:05d}.npz'
        if path.exists():
            continue
        generator.manual_seed(seed * 1_000_003 + number)
        parts: dict[str, list[np.ndarray]] = {'frames': [], 'flow': [], 'occluded': []}
        for scene in scenes:
            clip = scene(SHARD // len(scenes), generator)
            degraded = random_degradation(clip.frames, generator) * 255
            parts['frames'].append(degraded.round().clamp(0, 255).to(torch.uint8).cpu().numpy())
            parts['flow'].append(clip.flow[:, -1].half().cpu().numpy())
            parts['occluded'].append(np.packbits(clip.occluded[:, -1].cpu().numpy(), axis=-1))
        part = out / f'{path.stem}.part'
        with part.open('wb') as file:
            images, flow, occluded = (np.concatenate(parts[name]) for name in parts)
            np.savez(file, frames=images, flow=flow, occluded=occluded)
        os.replace(part, path)


class StoredClips:
    """Batches of stored clips in the order of their shards, over and over.

    Args:
        folder: of :func:`write_clips`.
        rank, world: this process reads every ``world``-th shard.

    Raises:
        FileNotFoundError: no shard in the folder.
    """

    def __init__(self, folder: str | Path, rank: int = 0, world: int = 1) -> None:
        self.paths = sorted(Path(folder).glob('*.npz'), key=lambda path: path.stem[::-1])
        if not self.paths:
            raise FileNotFoundError(f'{folder}: no clips (`daflow clips` writes them)')
        self.rank, self.world = rank, world
        self._held: tuple[int, dict[str, np.ndarray]] | None = None

    def _shard(self, index: int) -> dict[str, np.ndarray]:
        if self._held is None or self._held[0] != index:
            with np.load(self.paths[index], allow_pickle=False) as file:
                self._held = index, {name: file[name] for name in file.files}
        return self._held[1]

    def batch(self, number: int, size: int, device: torch.device) -> Clip:
        """Batch ``number`` (from 0) of ``size`` clips; the same however often it is asked for."""
        per_shard = SHARD // size
        if not per_shard:
            raise ValueError(f'a batch of {size} is larger than a shard of {SHARD} clips')
        index = (number // per_shard * self.world + self.rank) % len(self.paths)
        begin = number % per_shard * size
        shard = self._shard(index)
        rows = slice(begin, begin + size)
        flow = torch.from_numpy(shard['flow'][rows].astype(np.float32))[:, None]
        width = flow.shape[-1]
        occluded = np.unpackbits(shard['occluded'][rows], axis=-1)[..., :width].astype(bool)
        frames = torch.from_numpy(shard['frames'][rows]).float() / 255
        return Clip(
            frames.to(device),
            flow.to(device),
            torch.from_numpy(occluded).reshape(*flow.shape[:2], 1, *flow.shape[-2:]).to(device),
            torch.ones(size, 1, *flow.shape[-2:], device=device),
        )
