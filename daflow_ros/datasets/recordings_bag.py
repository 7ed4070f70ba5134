# SPDX-License-Identifier: Apache-2.0
"""rosbag2 (MCAP, sqlite3) and ROS 1 bags as recordings, through rosbags."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag1 import Reader as Rosbag1Reader
from rosbags.rosbag2 import Reader as Rosbag2Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from daflow_ros.datasets.encodings import ENCODINGS, image_array
from daflow_ros.datasets.recordings import (
    CompressedImageData,
    ImageData,
    Recording,
    RecordingError,
)

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED_IMAGE = 'sensor_msgs/msg/CompressedImage'
FLOW_FIELD = 'daflow_ros/msg/FlowField'

_GROUND_TRUTH = re.compile(r'(^|[/_])(ground_?truth|gt)([/_]|$)', re.IGNORECASE)
# Pictures by their type, not by what they show.
_NO_CAMERA = re.compile(r'depth|dispar|mask|label|segment|flow|confidence', re.IGNORECASE)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn whatever a broken file brings up into a RecordingError.

    The readers check much, but a damaged index or record still ends in errors of struct, sqlite3,
    zstandard or plain lookups, which no list holds completely.
    """
    try:
        yield
    except RecordingError:
        raise
    except Exception as error:
        text = str(error) or 'breaks off'
        if 'end magic' in text:
            text = 'its end is missing: the recorder was killed or the copy was cut off'
        raise RecordingError(path, f'{type(error).__name__}: {text}') from error


class Bag:
    """An open bag of either generation; only camera messages are deserialised."""

    def __init__(self, path: Path) -> None:
        self.is2 = path.suffix != '.bag'
        self.reader: Any = Rosbag2Reader(path) if self.is2 else Rosbag1Reader(path)
        self.reader.open()
        self.typestore = get_typestore(Stores.ROS2_JAZZY if self.is2 else Stores.ROS1_NOETIC)

    def connections(self, topic: str) -> list[Connection]:
        """Every connection that recorded a topic."""
        return [x for x in self.reader.connections if x.topic == topic]

    def raw(self, topic: str, start: int | None = None, stop: int | None = None
            ) -> Iterator[tuple[Connection, int, bytes]]:
        """Serialized messages of a topic with the time (ns) they were recorded at."""
        yield from self.reader.messages(self.connections(topic), start, stop)

    def deserialize(self, connection: Connection, data: bytes) -> Any:
        """Message object of rosbags, with the fields of the ROS message."""
        kind = connection.msgtype
        if kind not in self.typestore.fielddefs:
            if connection.msgdef.format != MessageDefinitionFormat.MSG:
                raise ValueError(f'no definition of {kind} in the bag')
            self.typestore.register(get_types_from_msg(connection.msgdef.data, kind))
        if self.is2:
            return self.typestore.deserialize_cdr(memoryview(data), kind)
        return self.typestore.deserialize_ros1(memoryview(data), kind)

    def stamp_ns(self, data: bytes) -> int:
        """Stamp of a message that begins with a header, without reading the rest."""
        if self.is2:
            order: Any = 'little' if data[1] & 1 else 'big'
            fields = data[4:12]
        else:
            order, fields = 'little', data[4:12]  # behind the sequence number
        if len(fields) < 8:
            raise ValueError('a message too short for its header')
        return (int.from_bytes(fields[:4], order, signed=True) * 1_000_000_000
                + int.from_bytes(fields[4:], order))


@contextmanager
def open_reader(path: Path) -> Iterator[Bag]:
    """Open a bag; whatever is wrong with it while it is open is a RecordingError."""
    with _naming(path):
        bag = Bag(path)
        try:
            yield bag
        finally:
            bag.reader.close()


def _first(bag: Bag, topic: str) -> Any | None:
    for connection, _, data in bag.raw(topic):
        return bag.deserialize(connection, data)
    return None


def _is_camera(bag: Bag, topic: str, kind: str) -> bool:
    """Whether the first message of a topic is a picture rather than depth, labels or flow."""
    if _NO_CAMERA.search(topic):
        return False
    message = _first(bag, topic)
    if message is None:
        return False
    if kind == COMPRESSED_IMAGE:
        return 'compressedDepth' not in message.format
    return message.encoding in ENCODINGS


def _choose_topic(path: Path, bag: Bag, topics: dict[str, str], wanted: str | None) -> str:
    pictures = {t: kind for t, kind in topics.items() if kind in (IMAGE, COMPRESSED_IMAGE)}
    listing = ', '.join(f'{t} ({kind})' for t, kind in sorted(topics.items())) or 'none'
    if wanted is not None:
        wanted = '/' + wanted.lstrip('/')
        # image_transport's habit: the base name stands for whatever transport there is.
        for topic in (wanted, wanted + '/compressed'):
            if topic in pictures:
                return topic
        raise RecordingError(path, f'no pictures on topic {wanted}; topics: {listing}')
    cameras = [t for t, kind in pictures.items() if _is_camera(bag, t, kind)]
    # Both transports of one camera are no ambiguity: raw has lost nothing.
    cameras = [t for t in cameras if t.removesuffix('/compressed') == t
               or t.removesuffix('/compressed') not in cameras]
    if not cameras:
        raise RecordingError(path, f'no topic with pictures of a camera; topics: {listing}')
    if len(cameras) > 1:
        raise RecordingError(
            path, f'pictures on {len(cameras)} topics: {", ".join(sorted(cameras))}; name one'
            ' (--topic)')
    return cameras[0]


def _flow_of(message: Any) -> NDArray[np.float32]:
    """Flow (H, W, 2) px of a FlowField or a 32FC2 image."""
    image = getattr(message, 'flow', message)
    if image.encoding != '32FC2':
        raise ValueError(f'ground-truth flow of encoding {image.encoding!r} instead of 32FC2')
    return np.array(image_array(image), dtype=np.float32)


def _choose_flow_topic(
    path: Path, bag: Bag, topics: dict[str, str], wanted: str | None,
) -> str | None:
    fields = [t for t, kind in topics.items() if kind in (IMAGE, FLOW_FIELD)]
    if wanted is not None:
        wanted = '/' + wanted.lstrip('/')
        if wanted not in fields:
            raise RecordingError(
                path, f'no flow on topic {wanted}; topics: {", ".join(sorted(fields)) or "none"}')
        return wanted
    found = []
    for topic in fields:
        if not _GROUND_TRUTH.search(topic):
            continue
        message = _first(bag, topic)
        if message is not None and getattr(message, 'flow', message).encoding == '32FC2':
            found.append(topic)
    if len(found) > 1:
        raise RecordingError(
            path, f'ground-truth flow on several topics: {", ".join(sorted(found))}; name one')
    return found[0] if found else None


def open_bag(path: Path, topic: str | None = None, flow_topic: str | None = None) -> Recording:
    """Open a rosbag2 (its folder, an .mcap or a .db3) or a ROS 1 .bag.

    Args:
        path: the bag.
        topic: topic of the pictures, ``Image`` or ``CompressedImage``; found where only one has
            pictures of a camera. The base name finds ``BASE/compressed`` too.
        flow_topic: topic of the true flow, ``Image`` 32FC2 or ``FlowField``, which belongs to the
            picture of the same stamp; found by a name with ``ground_truth`` or ``gt`` in it.

    Raises:
        RecordingError: unreadable, corrupt, no or several topics to choose from.
    """
    if path.is_dir() and not (path / 'metadata.yaml').exists():
        files = sorted([*path.glob('*.mcap'), *path.glob('*.db3')])
        if len(files) != 1:
            raise RecordingError(path, f'no metadata.yaml, and {len(files)} bag files in it')
        path = files[0]
    with open_reader(path) as bag:
        topics = {x.topic: x.msgtype for x in bag.reader.connections}
        chosen = _choose_topic(path, bag, topics, topic)
        compressed = topics[chosen] == COMPRESSED_IMAGE
        count = sum(x.msgcount for x in bag.connections(chosen))
        flow = _choose_flow_topic(path, bag, topics, flow_topic)

    def messages() -> Iterator[ImageData | CompressedImageData]:
        with open_reader(path) as bag:
            index = 0
            for connection, time_ns, data in bag.raw(chosen):
                yield _message_of(bag.deserialize(connection, data), time_ns)
                index += 1
            if index < count:
                raise RecordingError(path, f'{index} of {count} pictures on {chosen} are there')

    def flows() -> Callable[[int], NDArray[np.float32] | None]:
        assert flow is not None
        return _flow_reader(path, flow)

    return Recording(path, chosen, compressed, topics, count, messages, flow,
                     flows if flow is not None else None)


def _message_of(message: Any, time_ns: int) -> ImageData | CompressedImageData:
    stamp = message.header.stamp
    stamp_ns = int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)
    frame_id = str(message.header.frame_id)
    if hasattr(message, 'format'):
        return CompressedImageData(time_ns, stamp_ns, frame_id, message.format, message.data)
    return ImageData(time_ns, stamp_ns, frame_id, message.height, message.width, message.encoding,
                     message.is_bigendian, message.step, message.data)


def _flow_reader(path: Path, topic: str) -> Callable[[int], NDArray[np.float32] | None]:
    """Index the flow of a bag by stamp and return the look-up.

    Only stamps and times are kept: the field of a frame is read when it is asked for, as a bag of
    full-resolution flow does not fit in memory.
    """
    times: dict[int, int] = {}
    with open_reader(path) as bag:
        for _, time_ns, data in bag.raw(topic):
            times[bag.stamp_ns(data)] = time_ns

    def flow_at(stamp_ns: int) -> NDArray[np.float32] | None:
        if stamp_ns not in times:
            return None
        time_ns = times[stamp_ns]
        with open_reader(path) as bag:
            for connection, _, data in bag.raw(topic, time_ns, time_ns + 1):
                if bag.stamp_ns(data) == stamp_ns:
                    return _flow_of(bag.deserialize(connection, data))
        raise RecordingError(path, f'flow of stamp {stamp_ns} ns on {topic} cannot be read again')

    return flow_at


