# SPDX-License-Identifier: Apache-2.0
"""What is evaluated: a recording or a benchmark, as clips of successive frames.

A clip is what is degraded at once, so that rain falls on from frame to frame. Long sequences
are cut into clips that overlap by one frame: every pair lies in one clip.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from daflow_ros.datasets.benchmarks import (
    Benchmark,
    BenchmarkError,
    FlowSample,
    GroundTruth,
    is_benchmark,
    open_benchmark,
)
from daflow_ros.datasets.recordings import RecordingError, open_recording

#: Frames of a clip at most: 16 frames of 1920x1080 are 0.1 GB, and 0.4 GB while degraded.
CLIP_FRAMES = 16


class SourceError(ValueError):
    """A source cannot be opened at all; the message names it."""


@dataclass(frozen=True)
class Clip:
    """Successive frames and what is known of them.

    Args:
        name: unique within the source, the same in every run; seeds derive from it.
        frames: F images, uint8 (H, W, 3) RGB, of one size.
        truths: F - 1 ground truths of the pairs, None where there is none.
        pairs: F - 1 names of the pairs.
        times: F times in s since the first frame of the source, or None.

    """

    name: str
    frames: tuple[npt.NDArray[np.uint8], ...]
    truths: tuple[GroundTruth | None, ...]
    pairs: tuple[str, ...]
    times: tuple[float, ...] | None = None


@dataclass
class Source:
    """A recording or benchmark that can be gone through repeatedly.

    `failures` collects what could not be read in the last pass; the rest is evaluated.
    """

    path: Path
    name: str
    kind: str
    pair_count: int
    topic: str | None = None
    every: int = 1
    limit: int | None = None
    failures: list[str] = field(default_factory=list)

    def clips(self) -> Iterator[Clip]:
        """Go through the source once, in its order."""
        self.failures.clear()
        clips = self._benchmark() if self.kind != 'recording' else self._recording()
        left = self.limit
        for clip in clips:
            if left is None:
                yield clip
                continue
            if left <= 0:
                return
            keep = min(left, len(clip.pairs))
            left -= keep
            yield Clip(
                clip.name, clip.frames[: keep + 1], clip.truths[:keep], clip.pairs[:keep],
                clip.times,
            )

    def _benchmark(self) -> Iterator[Clip]:
        benchmark = open_benchmark(self.path)
        run: list[FlowSample] = []
        for pair in benchmark.pairs[:: self.every]:
            try:
                sample = pair.load()
            except BenchmarkError as error:
                self.failures.append(str(error))
                continue
            follows = (
                run
                and run[-1].sequence == sample.sequence
                and run[-1].index + 1 == sample.index
                and run[-1].image1.shape == sample.image1.shape
                and len(run) < CLIP_FRAMES - 1
            )
            if run and not follows:
                yield _joined(run)
                run = []
            run.append(sample)
        if run:
            yield _joined(run)

    def _recording(self) -> Iterator[Clip]:
        frames: list[npt.NDArray[np.uint8]] = []
        truths: list[GroundTruth | None] = []
        times: list[float] = []
        start, first = 0, None
        try:
            for index, frame in enumerate(open_recording(self.path, self.topic).frames()):
                if index % self.every:
                    continue
                first = frame.stamp_ns if first is None else first
                new_size = frames and frames[-1].shape != frame.image.shape
                if len(frames) == CLIP_FRAMES or new_size:
                    if len(frames) > 1:
                        yield _cut(start, self.every, frames, truths, times)
                    # The last frame is the next clip's first, unless the camera changed.
                    keep = 0 if new_size else 1
                    start = index - keep * self.every
                    frames, truths, times = (
                        frames[-keep:] if keep else [], truths[-keep:] if keep else [],
                        times[-keep:] if keep else [],
                    )
                frames.append(frame.image)
                times.append((frame.stamp_ns - first) / 1e9)
                known = frame.flow is not None and frame.valid is not None and self.every == 1
                truths.append(
                    GroundTruth(frame.flow, frame.valid)  # type: ignore[arg-type]
                    if known else None
                )
        except RecordingError as error:
            self.failures.append(str(error))
        if len(frames) > 1:
            yield _cut(start, self.every, frames, truths, times)


def _joined(run: list[FlowSample]) -> Clip:
    return Clip(
        run[0].name,
        (*(sample.image1 for sample in run), run[-1].image2),
        tuple(GroundTruth(s.flow, s.valid, s.occlusion) for s in run),
        tuple(sample.name for sample in run),
    )


def _cut(
    start: int, every: int, frames: list[npt.NDArray[np.uint8]],
    truths: list[GroundTruth | None], times: list[float],
) -> Clip:
    names = tuple(f'frame_{start + i * every:06d}' for i in range(len(frames) - 1))
    return Clip(names[0], tuple(frames), tuple(truths[:-1]), names, tuple(times))


def open_source(
    path: str | Path, *, topic: str | None = None, every: int = 1, limit: int | None = None
) -> Source:
    """Open a benchmark folder or a recording.

    Args:
        path: benchmark folder, bag, video or folder of images.
        topic: of a bag with several cameras.
        every: benchmark: every n-th pair; recording: every n-th frame (flow spans n frames, and
            a recorded ground truth no longer applies).
        limit: pairs at most, None for all.

    Raises:
        SourceError: nothing there that can be read.

    """
    path = Path(path)
    if not path.exists():
        raise SourceError(f'{path}: no such file or folder')
    name = path.resolve().name
    if path.is_dir() and is_benchmark(path):
        benchmark: Benchmark = open_benchmark(path)
        count = len(benchmark.pairs[::every])
        return Source(path, name, benchmark.name, count, None, every, limit)
    try:
        frames = len(open_recording(path, topic))
    except RecordingError as error:
        raise SourceError(str(error)) from error
    return Source(path, name, 'recording', max(0, -(-frames // every) - 1), topic, every, limit)
