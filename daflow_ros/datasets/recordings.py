# SPDX-License-Identifier: Apache-2.0
"""Recordings of one camera: rosbag2, ROS 1 bag, video file or folder of images, without ROS.

>>> recording = open_recording('drive.mcap')
>>> for frame in recording.frames():
...     frame.image, frame.stamp_ns

A recording is read as often as one likes; no file stays open between two passes. Everything that
is wrong with a file is a :class:`RecordingError` that names it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from daflow_ros.datasets.encodings import EncodingError, decode_compressed, decode_image

__all__ = [
    'CompressedImageData',
    'Frame',
    'ImageData',
    'Recording',
    'RecordingError',
    'open_recording',
]

#: Rate of a folder of images without times.txt, Hz.
FOLDER_RATE = 15.0

VIDEO_SUFFIXES = frozenset({
    '.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.ts', '.wmv', '.flv',
    '.ogv', '.mjpeg', '.mjpg', '.3gp'})


class RecordingError(ValueError):
    """A recording that cannot be read; the message begins with the name of the file."""

    def __init__(self, path: str | os.PathLike[str], problem: str) -> None:
        super().__init__(f'{os.fspath(path)}: {problem}')
        self.path = Path(path)
        self.problem = problem


@dataclass(frozen=True)
class ImageData:
    """What a ``sensor_msgs/Image`` carries, as it was recorded."""

    time_ns: int  # when it was recorded; paces a replay
    stamp_ns: int  # header.stamp
    frame_id: str
    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: bytes | memoryview | NDArray[np.uint8]


@dataclass(frozen=True)
class CompressedImageData:
    """What a ``sensor_msgs/CompressedImage`` carries, as it was recorded."""

    time_ns: int
    stamp_ns: int
    frame_id: str
    format: str
    data: bytes | memoryview | NDArray[np.uint8]


@dataclass(frozen=True)
class Frame:
    """A decoded frame.

    ``image`` is uint8 (H, W, 3) RGB. ``flow`` is the true flow from this frame to the next one,
    float32 (H, W, 2) px (NaN where unknown), and ``valid`` bool (H, W) says where it is known;
    both are None where the recording has none for this frame.
    """

    stamp_ns: int
    image: NDArray[np.uint8]
    frame_id: str = ''
    flow: NDArray[np.float32] | None = None
    valid: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Recording:
    """The pictures of one camera in the order they were recorded.

    Args:
        path: file or folder.
        topic: topic of the pictures; for a video or folder the one they are played on.
        compressed: whether the messages are ``CompressedImage``.
        topics: every topic of the recording and its message type.
        count: number of pictures; for some video containers an estimate.
        flow_topic: topic of the ground-truth flow, or None.
    """

    path: Path
    topic: str
    compressed: bool
    topics: dict[str, str]
    count: int
    read_messages: Callable[[], Iterator[ImageData | CompressedImageData]]
    flow_topic: str | None = None
    read_flow: Callable[[], Callable[[int], NDArray[np.float32] | None]] | None = None

    def __len__(self) -> int:
        return self.count

    def messages(self) -> Iterator[ImageData | CompressedImageData]:
        """Yield every picture as it was recorded, not decoded.

        Raises:
            RecordingError: the file breaks off or is corrupt.
        """
        return self.read_messages()

    def frames(self) -> Iterator[Frame]:
        """Yield every picture decoded, with its ground truth where the recording has it.

        Raises:
            RecordingError: the file breaks off, or a picture in it cannot be decoded.
        """
        flow_at = self.read_flow() if self.read_flow is not None else lambda stamp_ns: None
        for index, message in enumerate(self.messages()):
            try:
                image = (decode_compressed(message) if isinstance(message, CompressedImageData)
                         else decode_image(message))
            except EncodingError as error:
                raise RecordingError(
                    self.path, f'picture {index} (stamp {message.stamp_ns} ns): {error}'
                ) from error
            flow = flow_at(message.stamp_ns)
            valid = None
            if flow is not None:
                if flow.shape[:2] != image.shape[:2]:
                    raise RecordingError(
                        self.path, f'picture {index} is {image.shape[1]}x{image.shape[0]}, its'
                        f' ground-truth flow {flow.shape[1]}x{flow.shape[0]}')
                valid = np.asarray(np.isfinite(flow).all(axis=-1))
            yield Frame(message.stamp_ns, image, message.frame_id, flow, valid)


def open_recording(
    path: str | os.PathLike[str], topic: str | None = None, *, flow_topic: str | None = None,
    rate: float = FOLDER_RATE,
) -> Recording:
    """Open a recording of any kind.

    Args:
        path: a rosbag2 (folder, .mcap or .db3), a ROS 1 .bag, a video file, or a folder of
            images with an optional ``times.txt``.
        topic: the topic of the pictures; needed only where a bag has several cameras.
        flow_topic: the topic of the ground-truth flow (``sensor_msgs/Image`` 32FC2 or
            ``daflow_ros/FlowField``); by default one whose name says ``ground_truth`` or ``gt``.
        rate: Hz, for a folder of images without times.

    Raises:
        RecordingError: no such file, unknown kind, corrupt, no pictures, or several topics to
            choose from.
    """
    path = Path(path)
    if not path.exists():
        raise RecordingError(path, 'no such file or folder')
    if path.is_dir():
        bags = [*path.glob('*.mcap*'), *path.glob('*.db3*')]
        if (path / 'metadata.yaml').exists() or bags:
            from daflow_ros.datasets.recordings_bag import open_bag
            return open_bag(path, topic, flow_topic)
        from daflow_ros.datasets.recordings_images import open_image_folder
        return open_image_folder(path, rate)
    if path.suffix in ('.mcap', '.db3', '.bag'):
        from daflow_ros.datasets.recordings_bag import open_bag
        return open_bag(path, topic, flow_topic)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        from daflow_ros.datasets.recordings_video import open_video
        return open_video(path)
    raise RecordingError(
        path, f'{path.suffix or "a file without suffix"} is no kind of recording that is read here'
        ' (rosbag2: .mcap, .db3 or its folder; ROS 1 .bag; a video; a folder of images)')
