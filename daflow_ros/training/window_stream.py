# SPDX-License-Identifier: Apache-2.0
"""Degraded windows of generated pairs, drawn by worker processes into memory they share.

A GPU trains on far more clips than one process can draw and degrade: here every other core does,
and the trainer keeps the last few thousand windows on its device.
"""

from __future__ import annotations

import atexit
import multiprocessing
import multiprocessing.connection
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from daflow_ros.degradation import random_degradation
from daflow_ros.training.flying import HEIGHT, WIDTH, FlyingPairs
from daflow_ros.training.scenes import SceneGenerator
from daflow_ros.training.sprites import SpriteBank
from daflow_ros.training.textures import TextureBank
from daflow_ros.training.tone import random_tone

#: Windows of a flying pair, and of a generated scene.
PAIR_WINDOWS, SCENE_WINDOWS = 6, 4
#: Every so many-th worker draws scenes, the others flying pairs.
SCENES_EVERY = 5
#: Share of flying pairs that are bent, mean of the largest bend in px.
BENT, BEND = 0.35, 3.0

Array = NDArray[Any]


@dataclass
class WindowSize:
    """Of the windows in px, multiples of 32."""

    height: int = 256
    width: int = 320


def bend(
    rng: np.random.Generator, frames: Array, flow: NDArray[np.float32]
) -> tuple[Array, NDArray[np.float32]]:
    """Move the second frame by a smooth field as well; the flow stays exact but for sampling.

    Args:
        frames: uint8 ``(2, H, W, 3)``; flow: ``(H, W, 2)`` px.

    Returns:
        The same, new.
    """
    height, width = flow.shape[:2]
    cells = int(rng.integers(3, 7))
    amount = min(rng.exponential(BEND), 12.0)
    coarse = rng.normal(0, amount / 2, (cells, cells, 2)).astype(np.float32)
    field = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    y, x = np.mgrid[:height, :width].astype(np.float32)
    # The new frame shows at p what the old one shows at p + field(p).
    second = cv2.remap(
        frames[1], x + field[..., 0], y + field[..., 1], cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )  # fmt: skip
    target = np.stack([x, y], axis=2) + flow
    there = target.copy()
    for _ in range(6):
        at = cv2.remap(field, there[..., 0], there[..., 1], cv2.INTER_LINEAR,
                       borderMode=cv2.BORDER_REPLICATE)  # fmt: skip
        there = target - at
    return np.stack([frames[0], second]), np.asarray(there - (target - flow), np.float32)


def window(
    rng: np.random.Generator, frames: Array, flow: NDArray[np.float32], size: WindowSize
) -> tuple[Array, NDArray[np.float32]]:
    """A random window, a third of them resampled: uint8 ``(2, h, w, 3)`` and ``(h, w, 2)`` px."""
    height, width = flow.shape[:2]
    scale = float(np.exp(rng.uniform(np.log(0.75), np.log(1.5)))) if rng.random() < 0.35 else 1.0
    rows = min(height, round(size.height / scale))
    columns = min(width, round(size.width / scale))
    top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
    at = (slice(top, top + rows), slice(left, left + columns))
    images, part = frames[(slice(None), *at)], flow[at]
    if (rows, columns) != (size.height, size.width):
        shape = (size.width, size.height)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        images = np.stack([cv2.resize(image, shape, interpolation=how) for image in images])
        # Flow of a pixel next to it, never a mean of two motions.
        ratio = np.array([size.width / columns, size.height / rows], np.float32)
        part = ratio * np.asarray(cv2.resize(part, shape, interpolation=cv2.INTER_NEAREST_EXACT))
    return images, np.asarray(part, np.float32)


@dataclass
class _Arrays:
    """What workers write: frames (W, N, 2, h, w, 3), flow (W, N, 2, h, w), windows so far (W,)."""

    frames: Array
    flow: Array
    written: Array


@dataclass
class Windows:
    """Where the windows of a stream lie; other processes may be given it.

    Attributes:
        folder: of the files that are mapped into memory.
        workers: processes that write, each into its own part.
        slots: windows kept for each.
        size: of a window.
    """

    folder: Path
    workers: int
    slots: int
    size: WindowSize

    def open(self, mode: Literal['r+', 'w+'] = 'r+') -> _Arrays:
        """Map the files."""

        def one(name: str, dtype: Any, *shape: int) -> Array:
            return np.memmap(self.folder / name, dtype, mode, shape=shape)

        counts, h, w = (self.workers, self.slots, 2), self.size.height, self.size.width
        return _Arrays(
            one('frames', np.uint8, *counts, h, w, 3),
            one('flow', np.float16, *counts, h, w),
            one('written', np.int64, self.workers),
        )

    @property
    def ended(self) -> Path:
        """A file that is there once the workers have ended."""
        return self.folder / 'ended'


class WindowStream:
    """Windows in files that are mapped into memory, and the processes that draw them.

    Args:
        imagery: folder of ``daflow imagery``.
        workers: processes.
        slots: windows kept for each worker, 0.8 MB each at the usual size.
        size: of a window.
        seed: of the first worker; the windows depend on it and on the number of workers.

    Raises:
        FileNotFoundError: no photographs or sprites there.
        ValueError: no worker or no slot.
    """

    def __init__(
        self,
        imagery: str | Path,
        workers: int,
        slots: int = 600,
        size: WindowSize | None = None,
        seed: int = 0,
    ) -> None:
        if workers < 1 or slots < 1:
            raise ValueError(f'{workers} workers with {slots} slots each')
        for part in ('photos', 'sprites'):
            if not (Path(imagery) / part).is_dir():
                raise FileNotFoundError(f'{imagery}: no folder {part} (`daflow imagery`)')
        self.folder = tempfile.TemporaryDirectory(prefix='daflow_windows_')
        self.windows = Windows(Path(self.folder.name), workers, slots, size or WindowSize())
        self.windows.open('w+')
        # A process forked from one with threads of its own may hang: a new one forks the workers.
        self.supervisor = multiprocessing.get_context('spawn').Process(
            target=_supervise, args=(self.windows, Path(imagery), seed)
        )
        self.supervisor.start()
        # Python would wait for the workers for ever.
        atexit.register(self.close)

    def close(self) -> None:
        """End the workers and delete the windows."""
        if self.supervisor.pid is not None and self.supervisor.is_alive():
            self.supervisor.terminate()
        self.supervisor.join()
        self.folder.cleanup()


def _supervise(windows: Windows, imagery: Path, seed: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        cv2.setNumThreads(1)
        torch.set_num_threads(1)
        drawer = WindowDrawer(imagery)
        context = multiprocessing.get_context('fork')
        # They end with this process; it ends when one of them fails, or who asked for windows.
        processes = [
            context.Process(target=_work, args=(drawer, windows, number, seed), daemon=True)
            for number in range(windows.workers)
        ]
        for process in processes:
            process.start()
        parent = multiprocessing.parent_process()
        ends = [process.sentinel for process in (*processes, parent) if process is not None]
        multiprocessing.connection.wait(ends)
    finally:
        windows.ended.touch()
    sys.exit(1)


def _work(drawer: WindowDrawer, windows: Windows, number: int, seed: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    arrays = windows.open()
    rng = np.random.default_rng([seed, number])
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    draw = drawer.scene if number % SCENES_EVERY == SCENES_EVERY - 1 else drawer.pair
    while True:
        frames, flow, count = draw(rng, generator)
        for _ in range(count):
            images, part = window(rng, frames, flow, windows.size)
            clip = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)[None]
            clip = random_degradation(clip.float() / 255, generator)[0]
            slot = int(arrays.written[number]) % windows.slots
            levels = (clip * 255).round_().to(torch.uint8)
            arrays.frames[number, slot] = levels.permute(0, 2, 3, 1).numpy()
            arrays.flow[number, slot] = part.transpose(2, 0, 1).clip(-1e4, 1e4)
            arrays.written[number] += 1


class WindowDrawer:
    """Clean pairs: frames uint8 (2, H, W, 3), flow (H, W, 2) px, and how many windows to cut."""

    def __init__(self, imagery: Path) -> None:
        self.flying = FlyingPairs(imagery)
        self.textures = TextureBank(imagery / 'photos')
        self.sprites = SpriteBank(imagery / 'sprites')

    def pair(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Array, NDArray[np.float32], int]:
        """A flying pair, some bent."""
        frames, flow, _ = self.flying(rng)
        if rng.random() < BENT:
            frames, flow = bend(rng, frames, flow)
        return frames, flow, PAIR_WINDOWS

    def scene(
        self, rng: np.random.Generator, generator: torch.Generator
    ) -> tuple[Array, NDArray[np.float32], int]:
        """A driving or layered scene."""
        reach = float(np.exp(rng.uniform(np.log(0.02), np.log(0.12))))
        draw = SceneGenerator(
            self.textures, min(HEIGHT, WIDTH), 2, reach=reach, driving=0.7, sprites=self.sprites
        )
        clip = draw(1, generator)
        frames = random_tone(clip.frames, generator)[0]
        images = (frames * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        return images, clip.flow[0, 0].permute(1, 2, 0).numpy(), SCENE_WINDOWS


class WindowStore:
    """The windows of a stream on the device that trains.

    Args:
        windows: of a stream; several stores may share them.
        device: holds a copy of every slot.
    """

    def __init__(self, windows: Windows, device: torch.device) -> None:
        self.windows = windows
        self.arrays = windows.open()
        shape = self.arrays.frames.shape
        self.frames = torch.zeros(shape, dtype=torch.uint8, device=device)
        shape = self.arrays.flow.shape
        self.flow = torch.zeros(shape, dtype=torch.float16, device=device)
        self.taken = np.zeros(windows.workers, np.int64)

    def refresh(self) -> int:
        """Copy what is new; windows written so far.

        Raises:
            RuntimeError: the workers have ended.
        """
        if self.windows.ended.exists() or not self.windows.folder.exists():
            raise RuntimeError('the workers that draw windows have ended')
        slots = self.windows.slots
        for worker, done in enumerate(self.arrays.written.tolist()):
            first = max(int(self.taken[worker]), done - slots)
            new = [n % slots for n in range(first, done)]
            if new:
                for mine, theirs in (
                    (self.frames, self.arrays.frames), (self.flow, self.arrays.flow)
                ):  # fmt: skip
                    mine[worker, new] = torch.from_numpy(theirs[worker, new]).to(mine.device)
            self.taken[worker] = done
        return int(self.taken.sum())

    def batch(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Frames ``(count, 2, 3, h, w)`` in [-1, 1] and flow ``(count, 2, h, w)`` px.

        Mirrored at random, left to right and upside down.

        Raises:
            RuntimeError: no window yet.
        """
        slots, device = self.windows.slots, self.frames.device
        there = np.minimum(self.taken, slots)
        if not there.any():
            raise RuntimeError('no window has been drawn yet')
        known = np.concatenate([np.arange(n) + i * slots for i, n in enumerate(there)])
        draws = torch.rand((3, count), generator=generator, device=device)
        which = (draws[0] * len(known)).long().clamp(max=len(known) - 1)
        index = torch.from_numpy(known).to(device)[which]
        frames = self.frames.flatten(0, 1)[index].permute(0, 1, 4, 2, 3).float() / 127.5 - 1
        flow = self.flow.flatten(0, 1)[index].float()
        for axis, chance in ((3, 0.5), (2, 0.25)):
            flipped = (draws[axis - 1] < chance)[:, None, None, None]
            signs = flow.new_tensor([-1.0, 1.0] if axis == 3 else [1.0, -1.0])[:, None, None]
            flow = torch.where(flipped, flow.flip(axis) * signs, flow)
            frames = torch.where(flipped[..., None], frames.flip(axis + 1), frames)
        return frames, flow
