# SPDX-License-Identifier: Apache-2.0
"""Records topics of the flow node into an MCAP bag, serialized as they come."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from daflow_ros.ros.share import share_file

#: Messages that may wait while one is written; the memory is bounded by so many.
DEPTH = 20


def target_stamp_ns(data: bytes) -> int:
    """``target_stamp`` (ns) of a serialized FlowField."""
    order = '<' if data[1] & 1 else '>'
    (length,) = struct.unpack_from(order + 'I', data, 12)
    at = 4 + (12 + length + 3) // 4 * 4
    sec, nanosec = struct.unpack_from(order + 'iI', data, at)
    return int(sec) * 1_000_000_000 + int(nanosec)


@dataclass(frozen=True)
class RecordedTopic:
    """A topic to record.

    Attributes:
        topic: its name.
        kind: its message class.
        on_message: called with every serialized message and the time.monotonic() it came at.
    """

    topic: str
    kind: type
    on_message: Callable[[bytes, float], None] | None = None


class FlowRecorder:
    """Streams serialized messages to a bag; nothing is deserialized, nothing kept in memory.

    The bag is not compressed: that would take a core of its own from the model, for a third of
    the space at best.

    The subscriptions are best effort, which matches publishers of both kinds, unless every
    publisher that is there offers reliable delivery. What the transport loses is counted.

    Args:
        node: node that subscribes.
        bag: folder of the bag, must not exist.
        topics: what is recorded.
        reliable: subscribe reliable; only for publishers that offer it.

    Raises:
        rosbags.rosbag2.WriterError: the folder exists.
    """

    def __init__(
        self, node: Node, bag: Path, topics: Sequence[RecordedTopic], reliable: bool = False
    ) -> None:
        self._node = node
        self._lock = threading.Lock()
        self.counts: dict[str, int] = {item.topic: 0 for item in topics}
        #: Messages that the middleware says were lost on their way, by topic.
        self.lost: dict[str, int] = {item.topic: 0 for item in topics}
        self._writer: Writer | None = Writer(bag, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        profile = QoSProfile(
            depth=DEPTH,
            reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        )
        store = get_typestore(Stores.ROS2_JAZZY)
        self._subscriptions = []
        for item in topics:
            package, name = item.kind.__module__.split('.')[0], item.kind.__name__
            type_name = f'{package}/msg/{name}'
            if type_name not in store.fielddefs:
                text = share_file('msg', f'{name}.msg').read_text(encoding='utf-8')
                store.register(get_types_from_msg(text, type_name))
            topic = node.resolve_topic_name(item.topic)
            connection = self._writer.add_connection(topic, type_name, typestore=store)
            create = partial(
                node.create_subscription,
                item.kind,
                item.topic,
                self._recorder(item, connection),
                profile,
                raw=True,
            )
            events = SubscriptionEventCallbacks(message_lost=self._counter(item.topic))
            try:
                self._subscriptions.append(create(event_callbacks=events))
            except UnsupportedEventTypeError:  # not every middleware tells of lost messages
                self._subscriptions.append(create())

    def publishers(self, topic: str) -> int:
        """Publishers of a recorded topic that are there."""
        return int(self._node.count_publishers(topic))

    def close(self) -> None:
        """Finish the bag; what comes later is not recorded. May be called twice."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        with self._lock:
            writer, self._writer = self._writer, None
            if writer is not None:
                if not any(self.counts.values()):
                    # An empty bag has no first time; readers want a sane one.
                    writer.min_timestamp = 0
                writer.close()

    def _counter(self, topic: str) -> Callable[[Any], None]:
        def count(event: Any) -> None:
            self.lost[topic] += int(event.total_count_change)

        return count

    def _recorder(self, item: RecordedTopic, connection: Any) -> Callable[[bytes], None]:
        def record(data: bytes) -> None:
            now = time.monotonic()
            with self._lock:
                if self._writer is None:
                    return
                self._writer.write(connection, self._node.get_clock().now().nanoseconds, data)
                self.counts[item.topic] += 1
            if item.on_message is not None:
                item.on_message(data, now)

        return record
