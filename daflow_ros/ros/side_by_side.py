# SPDX-License-Identifier: Apache-2.0
"""Video and picture of a replay: input, flow and confidence side by side."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from daflow_ros.datasets.recorded_flow import RecordedFlow, read_recorded_flow
from daflow_ros.datasets.recordings import Frame, Recording
from daflow_ros.flow.colorwheel import flow_to_color

Image = NDArray[np.uint8]

_FONT = cv2.FONT_HERSHEY_SIMPLEX
#: Widest panel of the video, px: players and browsers choke on wider films.
_PANEL_WIDTH = 960


def label(image: Image, text: str) -> Image:
    """Copy of an image with white text on a dark band at its top left."""
    out = image.copy()
    scale = max(0.45, image.shape[1] / 1100)
    (width, height), base = cv2.getTextSize(text, _FONT, scale, 1)
    pad = height // 2
    out[: height + base + pad, : width + 2 * pad] //= 4
    origin = (pad, height + pad // 2)
    cv2.putText(out, text, origin, _FONT, scale, (255, 255, 255), 1, cv2.LINE_AA)
    return out


def confidence_to_color(confidence: NDArray[np.float32]) -> Image:
    """Colour confidence in [0, 1]: dark violet is none, yellow is full (NaN black); RGB."""
    known = np.isfinite(confidence)
    level = np.where(known, np.clip(confidence, 0, 1), 0) * 255
    colours = cv2.applyColorMap(level.astype(np.uint8), cv2.COLORMAP_VIRIDIS)[..., ::-1]
    return np.ascontiguousarray(colours * known[..., None].astype(np.uint8))


def typical_length(flow: NDArray[np.float32]) -> float:
    """98th percentile of the vectors' lengths, px; NaN where none is known."""
    lengths = np.hypot(flow[::8, ::8, 0], flow[::8, ::8, 1])
    known = lengths[np.isfinite(lengths)]
    return float(np.percentile(known, 98)) if known.size else float('nan')


def compose(frame: Frame, field: RecordedFlow | None, max_flow: float, with_confidence: bool,
            with_truth: bool, error: float | None = None) -> Image:
    """One picture of the film: input | flow | confidence and true flow where there are such."""
    height, width = frame.image.shape[:2]
    empty = np.full((height, width, 3), 40, np.uint8)
    panels = [label(frame.image, 'input')]
    if field is None:
        panels.append(label(empty, 'no flow for this frame'))
    else:
        colours = flow_to_color(field.flow, max_flow)
        text = field.model if error is None else f'{field.model}: EPE {error:.1f} px'
        scale = '' if with_truth else f' (full colour {max_flow:.0f} px)'
        panels.append(label(colours, text + scale))
    if with_confidence:
        confidence = None if field is None else field.confidence
        panels.append(label(empty if confidence is None else confidence_to_color(confidence),
                            'confidence'))
    if with_truth:
        panels.append(label(empty if frame.flow is None else flow_to_color(frame.flow, max_flow),
                            f'ground truth (full colour {max_flow:.0f} px)'))
    if len(panels) == 4:
        rows = [np.concatenate(panels[:2], axis=1), np.concatenate(panels[2:], axis=1)]
        return np.concatenate(rows)
    return np.concatenate(panels, axis=1)


class VideoWriter:
    """MP4 through OpenCV, in the best codec that this OpenCV has.

    H.264 plays everywhere but is rarely built in; MPEG-4 part 2, the fallback, plays in desktop
    players; VP9 would play in browsers too but takes a hundred times as long to write.

    Raises:
        OSError: no codec can write the file.
    """

    def __init__(self, path: Path, rate: float) -> None:
        self.path, self.rate = path, rate
        self._writer: cv2.VideoWriter | None = None
        self._size = (0, 0)

    def write(self, image: Image) -> None:
        """Append a picture uint8 (H, W, 3) RGB; all are brought to the size of the first."""
        if self._writer is None:
            height, width = image.shape[:2]
            shrink = min(1.0, 2 * _PANEL_WIDTH / width)
            # Codecs want even sides.
            self._size = (round(width * shrink / 2) * 2, round(height * shrink / 2) * 2)
            self._writer = self._open()
        if image.shape[1::-1] != self._size:
            image = np.asarray(
                cv2.resize(image, self._size, interpolation=cv2.INTER_AREA), np.uint8)
        self._writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))

    def close(self) -> None:
        """Finish the file."""
        if self._writer is not None:
            self._writer.release()

    def _open(self) -> cv2.VideoWriter:
        # A codec that is not there is no error to tell of; FFmpeg reads its level from here.
        os.environ.setdefault('OPENCV_FFMPEG_LOGLEVEL', '-8')
        previous = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            for codec in ('avc1', 'mp4v'):
                writer = cv2.VideoWriter(
                    str(self.path), cv2.VideoWriter.fourcc(*codec), self.rate, self._size)
                if writer.isOpened():
                    return writer
        finally:
            cv2.utils.logging.setLogLevel(previous)
        raise OSError(f'{self.path}: OpenCV cannot write this video')


def write_side_by_side(
    recording: Recording, flow_bag: Path, video: Path, picture: Path, rate: float,
    errors: Mapping[int, float] | None = None,
) -> None:
    """Write the film of a replay and its typical picture.

    Args:
        recording: what was played.
        flow_bag: what the node published.
        video: MP4 to write, a picture for every frame but the last, which begins no pair; also
            for one without flow.
        picture: PNG to write: the frame of median error where errors are known, else the middle
            one with flow.
        rate: pictures a second.
        errors: EPE (px) by stamp (ns).

    Raises:
        RecordingError: the recording or the bag breaks off.
        OSError: a file cannot be written.
    """
    stamps, scales, with_confidence = [], [1.0], False
    truth_at = recording.read_flow() if recording.read_flow is not None else None
    for index, field in enumerate(read_recorded_flow(flow_bag)):
        stamps.append(field.stamp_ns)
        with_confidence |= field.confidence is not None
        if truth_at is None:
            scales.append(typical_length(field.flow))
        elif index % 8 == 0:
            truth = truth_at(field.stamp_ns)
            scales.append(float('nan') if truth is None else typical_length(truth))
    # One scale for the whole film, or its colours would flicker.
    max_flow = max(float(np.nanpercentile(scales, 90)), 1.0)
    if errors:
        ranked = sorted(errors, key=lambda stamp: errors[stamp])
        chosen = ranked[len(ranked) // 2]
    else:
        chosen = stamps[len(stamps) // 2] if stamps else -1
    fields = read_recorded_flow(flow_bag)
    ahead = next(fields, None)
    writer = VideoWriter(video, rate)
    try:
        # The last frame begins no pair.
        pairs = pairwise(recording.frames())
        for frame, _ in tqdm(pairs, 'drawing', max(len(recording) - 1, 0), unit='frame'):
            # Both run in the order of time; a field that fits no frame is passed over.
            while ahead is not None and ahead.stamp_ns < frame.stamp_ns:
                ahead = next(fields, None)
            match = ahead if ahead is not None and ahead.stamp_ns == frame.stamp_ns else None
            if match is not None and match.flow.shape[:2] != frame.image.shape[:2]:
                match = None
            image = compose(frame, match, max_flow, with_confidence,
                            recording.flow_topic is not None,
                            (errors or {}).get(frame.stamp_ns))
            writer.write(image)
            wanted = frame.stamp_ns == chosen or (chosen < 0 and not picture.exists())
            if wanted and not cv2.imwrite(str(picture), cv2.cvtColor(image, cv2.COLOR_RGB2BGR)):
                raise OSError(f'{picture}: cannot be written')
    finally:
        writer.close()
