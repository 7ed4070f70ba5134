# SPDX-License-Identifier: Apache-2.0
"""Optical-flow benchmarks in their official layouts, as pairs with ground truth.

>>> benchmark = open_benchmark('Sintel')
>>> for pair in benchmark.pairs:
...     sample = pair.load()

Nothing but names is read until a pair is loaded, so that one damaged file costs one pair.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]
Flow = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


class BenchmarkError(ValueError):
    """A benchmark folder or one of its files cannot be read; the message names it."""


@dataclass(frozen=True)
class GroundTruth:
    """True flow of a pair.

    flow: float32 (H, W, 2) px, NaN where unknown; valid: bool (H, W), where it is known;
    occlusion: bool (H, W), True where the pixel is not seen in the second image, or None where
    the benchmark has no such mask.
    """

    flow: Flow
    valid: Mask
    occlusion: Mask | None = None


@dataclass(frozen=True)
class FlowSample:
    """A pair as loaded: images uint8 (H, W, 3) RGB, ground truth as in `GroundTruth`."""

    image1: Image
    image2: Image
    flow: Flow
    valid: Mask
    occlusion: Mask | None
    name: str
    sequence: str
    index: int


@dataclass(frozen=True)
class Pair:
    """Where the files of one pair lie.

    Args:
        name: unique within the benchmark.
        sequence: pairs of a sequence with successive `index` share a frame: the second image of
            one is the first of the next. Lone pairs are sequences of their own.
        index: place in the sequence.
        image1, image2: files of the two images.
        read_truth: reads the ground truth.

    """

    name: str
    sequence: str
    index: int
    image1: Path
    image2: Path
    read_truth: Callable[[], GroundTruth]

    def load(self) -> FlowSample:
        """Read images and ground truth.

        Raises:
            BenchmarkError: a file is missing, damaged, or of another size than the others.

        """
        image1, image2 = read_image(self.image1), read_image(self.image2)
        try:
            truth = self.read_truth()
        except (ValueError, OSError) as error:
            raise BenchmarkError(f'{self.name}: {error}') from error
        shapes = [image2.shape[:2], truth.flow.shape[:2], truth.valid.shape]
        if truth.occlusion is not None:
            shapes.append(truth.occlusion.shape)
        if any(shape != image1.shape[:2] for shape in shapes):
            raise BenchmarkError(
                f'{self.image1}: {image1.shape[:2]}, but the second image, the flow or a mask of'
                f' {self.name} differ: {shapes}'
            )
        return FlowSample(
            image1, image2, truth.flow, truth.valid, truth.occlusion,
            self.name, self.sequence, self.index,
        )


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's name and its pairs, in the order of their names."""

    name: str
    path: Path
    pairs: tuple[Pair, ...]

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[FlowSample]:
        """Load pair after pair.

        Raises:
            BenchmarkError: at the first damaged one; go through `pairs` to leave it out.

        """
        return (pair.load() for pair in self.pairs)


def read_image(path: Path) -> Image:
    """Read an image as uint8 (H, W, 3) RGB.

    Pillow, for it refuses truncated files where OpenCV fills them with grey.

    Raises:
        BenchmarkError: missing or damaged.

    """
    from PIL import Image as Pillow

    try:
        with Pillow.open(io.BytesIO(path.read_bytes())) as image:
            if image.mode not in ('RGB', 'RGBA', 'L', 'P'):
                raise BenchmarkError(f'{path}: image of mode {image.mode}, not 8 bits a channel')
            return np.array(image.convert('RGB'))
    except (OSError, SyntaxError, Pillow.DecompressionBombError) as error:
        raise BenchmarkError(f'{path}: {error}') from error


def read_mask(path: Path) -> Mask:
    """Read a grey image as a mask, (H, W) bool: True where it is not black."""
    return np.asarray(read_image(path).max(axis=2) > 0)


def open_benchmark(path: str | Path) -> Benchmark:
    """Recognise a benchmark by its official folders.

    Args:
        path: root of Sintel, Spring, TartanAir v1, KITTI 2012 or 2015, Middlebury or
            FlyingChairs as their archives unpack; or a folder of `NAME.npz` with
            `NAME_clean_1.jpg` and `NAME_clean_2.jpg`. Sintel also at `training/clean` or
            `training/final`, for one pass only.

    Raises:
        BenchmarkError: none of them.

    """
    from daflow_ros.datasets.benchmark_layouts import LAYOUTS

    path = Path(path)
    if not path.is_dir():
        raise BenchmarkError(f'{path}: no such folder')
    for name, find in LAYOUTS.items():
        pairs = find(path)
        if pairs:
            return Benchmark(name, path, tuple(pairs))
    raise BenchmarkError(
        f'{path}: none of the layouts known here: {", ".join(LAYOUTS)} (pairs with ground truth)'
    )


def is_benchmark(path: str | Path) -> bool:
    """Say whether `open_benchmark` would recognise the folder."""
    try:
        open_benchmark(path)
    except BenchmarkError:
        return False
    return True
