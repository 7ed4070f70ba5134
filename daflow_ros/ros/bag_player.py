# SPDX-License-Identifier: Apache-2.0
"""Plays a recording over DDS as a camera driver would, with /clock."""

from __future__ import annotations

import array
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage, Image

from daflow_ros.datasets.recordings import CompressedImageData, ImageData, Recording

#: Steps of /clock, s of wall time: what `ros2 bag play --clock` does.
CLOCK_PERIOD = 0.025


def to_time(time_ns: int) -> Time:
    """Time message of nanoseconds."""
    return Time(sec=time_ns // 1_000_000_000, nanosec=time_ns % 1_000_000_000)


def to_message(data: ImageData | CompressedImageData) -> Image | CompressedImage:
    """Message of a recorded picture; the bytes are copied once."""
    message: Image | CompressedImage
    if isinstance(data, CompressedImageData):
        message = CompressedImage(format=data.format)
    else:
        message = Image(
            height=data.height,
            width=data.width,
            encoding=data.encoding,
            is_bigendian=data.is_bigendian,
            step=data.step,
        )
    message.header.stamp = to_time(data.stamp_ns)
    message.header.frame_id = data.frame_id
    # An array of bytes is taken as it is; assigning an ndarray is checked element by element.
    payload = array.array('B')
    payload.frombytes(memoryview(data.data).cast('B'))
    message.data = payload
    return message


@dataclass
class PlayReport:
    """What was played.

    Attributes:
        sent: pictures published.
        late: pictures sent more than half a frame's time after their due, because this machine
            could not read or publish them sooner.
        unanswered: pictures given up on while waiting for an answer (rate 0 only).
        interrupted: stopped before the end.
        sent_at: time.monotonic() of sending by stamp (ns).
        elapsed: wall time of the playing, s.
    """

    sent: int
    late: int
    unanswered: int
    interrupted: bool
    sent_at: dict[int, float]
    elapsed: float


class BagPlayer:
    """Publishes the pictures of a recording and /clock.

    The pictures go out with SensorDataQoS (best effort), with the header they were recorded with,
    at the times they were recorded at.

    Args:
        node: node that publishes.
        recording: what is played.
        topic: topic of the pictures, by default the recording's own.
    """

    def __init__(self, node: Node, recording: Recording, topic: str | None = None) -> None:
        self.recording = recording
        self.topic = topic or recording.topic
        kind = CompressedImage if recording.compressed else Image
        self._pictures = node.create_publisher(kind, self.topic, qos_profile_sensor_data)
        self._clock = node.create_publisher(Clock, '/clock', 10)
        self._stop = threading.Event()

    @property
    def subscribers(self) -> int:
        """Subscribers matched with the pictures' publisher."""
        return int(self._pictures.get_subscription_count())

    def stop(self) -> None:
        """Make :meth:`play` return; from any thread."""
        self._stop.set()

    def tell_time(self, time_ns: int) -> None:
        """Publish /clock."""
        self._clock.publish(Clock(clock=to_time(time_ns)))

    def play(
        self,
        rate: float = 1.0,
        on_sent: Callable[[int], None] | None = None,
        wait_for_answer: Callable[[int], bool] | None = None,
    ) -> PlayReport:
        """Play the recording once; blocks until its end or :meth:`stop`.

        Args:
            rate: times the recorded speed; 0 sends each picture when the one before is answered.
            on_sent: called with the stamp (ns) of every picture sent.
            wait_for_answer: for rate 0: waits until the picture of a stamp is answered and
                returns False where it gave up.

        Raises:
            ValueError: a negative rate, or rate 0 without ``wait_for_answer``.
            RecordingError: the recording breaks off.
        """
        if not rate >= 0 or (rate == 0 and wait_for_answer is None):
            raise ValueError(f'rate {rate}: at least 0, and 0 needs answers to wait for')
        report = PlayReport(0, 0, 0, False, {}, 0.0)
        begin, first_ns, last_ns = time.monotonic(), -1, 0
        for data in self.recording.messages():
            # Filled before its time has come, so that it goes out on the dot.
            message = to_message(data)
            if first_ns < 0:
                first_ns = last_ns = data.time_ns
                begin = time.monotonic()
            if rate > 0:
                due = begin + (data.time_ns - first_ns) * 1e-9 / rate
                self._wait_until(due, begin, first_ns, rate)
                behind = time.monotonic() - due
                if behind > 0.5 * max(data.time_ns - last_ns, 1) * 1e-9 / rate and report.sent:
                    report.late += 1
            if self._stop.is_set():
                report.interrupted = True
                break
            last_ns = data.time_ns
            self.tell_time(data.time_ns)
            # Noted before, as the answer may come while publish() returns.
            report.sent_at[data.stamp_ns] = time.monotonic()
            self._pictures.publish(message)
            report.sent += 1
            if on_sent is not None:
                on_sent(data.stamp_ns)
            # The first picture has no partner yet, so no answer.
            if rate == 0 and wait_for_answer is not None and report.sent > 1:
                report.unanswered += not wait_for_answer(data.stamp_ns)
        report.elapsed = time.monotonic() - begin
        return report

    def _wait_until(self, due: float, begin: float, first_ns: int, rate: float) -> None:
        """Sleep until a time (monotonic, s), letting /clock run on."""
        while not self._stop.is_set():
            now = time.monotonic()
            if now >= due:
                return
            self.tell_time(first_ns + round((now - begin) * rate * 1e9))
            self._stop.wait(min(CLOCK_PERIOD, due - now))
