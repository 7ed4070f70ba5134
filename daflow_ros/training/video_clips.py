# SPDX-License-Identifier: Apache-2.0
"""Clips of clean video with a teacher's flow (DA-Flow section 3.4: SEA-RAFT on YouHQ).

The teacher sees the clean frames; the student will see their degraded copies.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from daflow_ros.datasets.recordings import RecordingError, open_recording
from daflow_ros.estimators import FlowEstimator
from daflow_ros.training.scenes import Clip


class VideoClips:
    """Random crops of random clips, in place of :class:`SceneGenerator`.

    Args:
        folder: its videos, bags and folders of images, one recording each.
        teacher: gives the flow, for example ``load_estimator('sea_raft_m', weights=...)``.
        size: side of the crops, px; frames that are smaller are left out.
        frames: of a clip.
        most: frames kept in memory of each recording.

    Raises:
        FileNotFoundError: no recording in the folder has ``frames`` frames of ``size``.
    """

    def __init__(
        self,
        folder: str | Path,
        teacher: FlowEstimator,
        size: int = 512,
        frames: int = 3,
        most: int = 120,
    ) -> None:
        self.teacher = teacher
        self.size = size
        self.frames = frames
        self.recordings: list[list[np.ndarray]] = []
        self.skipped: list[str] = []
        for path in sorted(Path(folder).iterdir()):
            try:
                images = []
                for frame in open_recording(path).frames():
                    if min(frame.image.shape[:2]) >= size:
                        images.append(frame.image)
                    if len(images) == most:
                        break
            except RecordingError as error:
                self.skipped.append(str(error))
                continue
            if len(images) >= frames:
                self.recordings.append(images)
        if not self.recordings:
            detail = f' ({self.skipped[0]})' if self.skipped else ''
            raise FileNotFoundError(
                f'{folder}: no recording with {frames} frames of {size} px{detail}'
            )

    def __call__(self, batch: int, generator: torch.Generator) -> Clip:
        """A batch of clips on the generator's device; the teacher's flow stands as the truth."""
        clips, flows = [], []
        draws = torch.rand((batch, 4), generator=generator, device=generator.device).tolist()
        for which, start, down, right in draws:
            images = self.recordings[int(which * len(self.recordings))]
            first = int(start * (len(images) - self.frames + 1))
            height, width = images[first].shape[:2]
            y = int(down * (height - self.size + 1))
            x = int(right * (width - self.size + 1))
            clip = [
                np.ascontiguousarray(image[y : y + self.size, x : x + self.size])
                for image in images[first : first + self.frames]
            ]
            clips.append(np.stack(clip))
            pairs = itertools.pairwise(clip)
            flows.append(np.stack([self.teacher.estimate(a, b).flow for a, b in pairs]))
        device = generator.device
        frames = torch.from_numpy(np.stack(clips)).to(device).permute(0, 1, 4, 2, 3) / 255
        flow = torch.from_numpy(np.stack(flows)).to(device).permute(0, 1, 4, 2, 3)
        return Clip(frames, flow, self._outside(flow), torch.ones_like(frames[:, 0, :1]))

    def _outside(self, flow: Tensor) -> Tensor:
        """Pixels that leave the crop; the teacher tells nothing of occlusion within it."""
        axis = torch.arange(self.size, device=flow.device)
        y, x = torch.meshgrid(axis, axis, indexing='ij')
        u, v = x + flow[:, :, 0], y + flow[:, :, 1]
        last = self.size - 1
        return ((u < 0) | (u > last) | (v < 0) | (v > last))[:, :, None]
