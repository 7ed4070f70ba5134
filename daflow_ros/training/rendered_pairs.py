# SPDX-License-Identifier: Apache-2.0
"""Pairs that `tools/render_scenes.py` drew, as shards of clean clips.

Blender runs in an environment of its own, so the pairs come as files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path

import numpy as np
from tqdm import tqdm

from daflow_ros.flow.consistency import forward_backward_mask
from daflow_ros.training.clip_store import SHARD, write_shard


def read_rendered_pair(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Frames uint8 ``(2, H, W, 3)`` and flow float32 ``(2, H, W, 2)`` px, forth and back.

    Raises:
        ValueError: the file is not such a pair.
    """
    with np.load(path, allow_pickle=False) as file:
        if not {'frames', 'flow'} <= set(file.files):
            raise ValueError(f'{path}: no pair of tools/render_scenes.py')
        frames, flow = file['frames'], file['flow']
    square = frames.ndim == 4 and frames.shape[1] == frames.shape[2]
    if frames.dtype != np.uint8 or not square or frames.shape[::3] != (2, 3):
        raise ValueError(f'{path}: frames {frames.dtype} {frames.shape}, not uint8 (2, S, S, 3)')
    if flow.shape != (*frames.shape[:3], 2) or not np.isfinite(flow).all():
        raise ValueError(f'{path}: flow {flow.shape} is not finite (2, S, S, 2)')
    return frames, flow.astype(np.float32)


def write_rendered_clips(source: str | Path, folder: str | Path) -> None:
    """Shards of the pairs in ``source`` and of the same pairs the other way round.

    A shard takes pairs of one seed whose numbers follow each other, so that it stays the same
    while more are drawn; what fills no whole shard is left for later, and shards that are there
    are kept. A pixel is occluded where the flow back does not lead from its target to where it
    came from.

    Raises:
        FileNotFoundError: no shard's worth of pairs.
        ValueError: a file that is no pair, or pairs of several sizes.
    """
    out = Path(folder)
    out.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[int, int], list[Path]] = defaultdict(list)
    for path in sorted(Path(source).glob('*.npz')):
        name = re.fullmatch(r'(\d+)_(\d+)', path.stem)
        if name is None:
            raise ValueError(f'{path}: no pair of tools/render_scenes.py (SEED_NUMBER.npz)')
        groups[int(name[1]), int(name[2]) // SHARD].append(path)
    whole = {key: group for key, group in groups.items() if len(group) == SHARD}
    if not whole:
        raise FileNotFoundError(f'{source}: no {SHARD} pairs of one seed in a row')
    for (seed, block), group in tqdm(whole.items(), unit='shard'):
        # A quarter of a shard for each reach of the motion, as `StoredClips.rows` expects.
        group = [path for first in range(4) for path in group[first::4]]
        shards = [out / f'rendered_{seed:03d}_{block:05d}_{way}.npz' for way in ('forth', 'back')]
        if all(shard.exists() for shard in shards):
            continue
        pairs = [read_rendered_pair(path) for path in group]
        if len({frames.shape for frames, _ in pairs}) > 1:
            raise ValueError(f'{source}: pairs of several sizes')
        for way, shard in enumerate(shards):
            step = 1 - 2 * way
            seen = [forward_backward_mask(*flow[::step]) for _, flow in pairs]
            write_shard(
                shard,
                {
                    'frames': np.stack(
                        [frames[::step].transpose(0, 3, 1, 2) for frames, _ in pairs]
                    ),
                    # Half precision ends at 65504, and what is passed at arm's length does not.
                    'flow': np.stack([flow[way].transpose(2, 0, 1) for _, flow in pairs])
                    .clip(-6e4, 6e4)
                    .astype(np.float16),
                    'occluded': np.packbits(~np.stack(seen)[:, None], axis=-1),
                },
            )
