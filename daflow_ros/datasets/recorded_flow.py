# SPDX-License-Identifier: Apache-2.0
"""Read back the flow that the node published, from the bag that it was recorded into."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from daflow_ros.datasets.encodings import image_array
from daflow_ros.datasets.recordings import RecordingError
from daflow_ros.datasets.recordings_bag import FLOW_FIELD, open_reader


@dataclass(frozen=True)
class RecordedFlow:
    """A FlowField.

    ``flow`` is float32 (H, W, 2) px, ``confidence`` float32 (H, W) in [0, 1] or None; stamps are
    of the reference and of the target frame, ns; latencies are as the node measured them, s.
    """

    stamp_ns: int
    target_stamp_ns: int
    flow: NDArray[np.float32]
    confidence: NDArray[np.float32] | None
    model: str
    weights_revision: str
    processing_latency: float
    end_to_end_latency: float


def _nanoseconds(stamp: Any) -> int:
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec)


def read_recorded_flow(
    path: str | os.PathLike[str], topic: str | None = None,
) -> Iterator[RecordedFlow]:
    """Yield every FlowField of a rosbag2 in the order they were recorded.

    Args:
        path: the bag.
        topic: topic of the FlowFields; needed only where there are several.

    Raises:
        RecordingError: unreadable, no FlowFields, or several topics with them.
    """
    path = Path(path)
    with open_reader(path) as bag:
        topics = sorted({x.topic for x in bag.reader.connections if x.msgtype == FLOW_FIELD})
        if topic is not None:
            topics = [x for x in topics if x == '/' + topic.lstrip('/')]
        if len(topics) != 1:
            raise RecordingError(
                path, f'FlowField on several topics: {", ".join(topics)}' if topics
                else 'no topic with FlowField')
        for connection, _, data in bag.raw(topics[0]):
            message = bag.deserialize(connection, data)
            confidence = None
            if message.confidence.width:
                confidence = np.array(image_array(message.confidence), np.float32)
            yield RecordedFlow(
                _nanoseconds(message.header.stamp), _nanoseconds(message.target_stamp),
                np.array(image_array(message.flow), np.float32), confidence, message.model,
                str(message.weights_revision),
                float(message.processing_latency), float(message.end_to_end_latency))
