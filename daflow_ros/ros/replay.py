# SPDX-License-Identifier: Apache-2.0
"""A recording played through the live node: flow recorded, drawn and measured."""

from __future__ import annotations

import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from tqdm import tqdm

from daflow_ros.datasets.recordings import Recording
from daflow_ros.msg import FlowField, FlowStats
from daflow_ros.ros.bag_player import BagPlayer, PlayReport
from daflow_ros.ros.flow_recorder import FlowRecorder, RecordedTopic, target_stamp_ns
from daflow_ros.ros.node_process import NodeProcess, NodeProcessError
from daflow_ros.ros.replay_summary import ReplaySummary, add_flow
from daflow_ros.ros.side_by_side import write_side_by_side
from daflow_ros.ros.transport import use_shipped_profile

#: Seconds that the node gets to load its model and come up.
START_TIMEOUT = 300.0
#: Seconds that the first pair may take, which warms the model up.
FIRST_TIMEOUT = 300.0
#: Seconds without flow after which nothing more is expected, at least.
QUIET = 5.0
_NODE = 'daflow'
_DROPS = tuple(
    name for name in FlowStats.get_fields_and_field_types() if name.startswith('dropped_'))


@dataclass(frozen=True)
class ReplayFiles:
    """Where a replay puts what it makes."""

    folder: Path

    @property
    def flow_bag(self) -> Path:
        """Recorded FlowFields, a rosbag2 (MCAP)."""
        return self.folder / 'flow_bag'

    @property
    def video(self) -> Path:
        """Side-by-side film."""
        return self.folder / 'side_by_side.mp4'

    @property
    def picture(self) -> Path:
        """A typical frame of the film."""
        return self.folder / 'side_by_side.png'

    @property
    def summary(self) -> Path:
        """Figures."""
        return self.folder / 'summary.json'

    @property
    def log(self) -> Path:
        """What the node printed."""
        return self.folder / 'node.log'

    def prepare(self) -> None:
        """Make the folder, and clear away what an earlier replay left there.

        Raises:
            OSError: it cannot be made, or a bag of that name is none of a replay.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.flow_bag.exists():
            strange = [x.name for x in self.flow_bag.iterdir()
                       if x.name not in ('metadata.yaml', 'flow_bag.mcap')]
            if strange:
                raise OSError(f'{self.flow_bag} holds {strange[0]}, which no replay wrote')
            shutil.rmtree(self.flow_bag)
        for path in (self.video, self.picture, self.summary):
            path.unlink(missing_ok=True)


class _Answers:
    """What came back from the node; written by the executor's thread."""

    def __init__(self) -> None:
        self.arrived = threading.Condition()
        self.flow_at: dict[int, float] = {}  # time.monotonic() by target stamp (ns)
        self.longest_gap = 0.0
        self.stats: FlowStats | None = None
        self.problem = ''
        self._last = 0.0

    def on_flow(self, data: bytes, now: float) -> None:
        with self.arrived:
            if self._last:
                self.longest_gap = max(self.longest_gap, now - self._last)
            self._last = now
            self.flow_at[target_stamp_ns(data)] = now
            self.arrived.notify_all()

    def on_stats(self, message: FlowStats) -> None:
        with self.arrived:
            self.stats = message
            self.arrived.notify_all()

    def on_diagnostics(self, message: DiagnosticArray) -> None:
        with self.arrived:
            for status in message.status:
                if status.name == f'/{_NODE}: model' and 'cannot configure' in status.message:
                    self.problem = status.message
                    self.arrived.notify_all()

    def wait(self, done: Callable[[], bool], timeout: float,
             check: Callable[[], None], stop: threading.Event) -> bool:
        """Wait until something is so; False after the timeout or a stop.

        Raises:
            NodeProcessError: by ``check``, or the node cannot be configured.
        """
        limit = time.monotonic() + timeout
        with self.arrived:
            while not done():
                left = limit - time.monotonic()
                if left <= 0 or stop.is_set():
                    return False
                check()
                if self.problem:
                    raise NodeProcessError(f'the node: {self.problem}')
                self.arrived.wait(min(0.1, left))
        return True

    def settled(self, sent: int) -> bool:
        """Whether the node says that it is through with every picture it got."""
        stats = self.stats
        if stats is None or stats.received + stats.dropped_lost < sent:
            return False
        drops = sum(getattr(stats, name) for name in _DROPS if name != 'dropped_lost')
        # The first picture has no partner.
        return bool(stats.processed + drops >= stats.received - 1
                    and len(self.flow_at) >= stats.published)


@contextmanager
def _ros_node(name: str) -> Iterator[Node]:
    """Run a node of ours on an executor's thread; signals stay ours."""
    context = rclpy.Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    node = rclpy.create_node(name, context=context, enable_rosout=False)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, name='replay', daemon=True)
    thread.start()
    try:
        yield node
    finally:
        executor.shutdown(timeout_sec=5.0)
        thread.join(5.0)
        node.destroy_node()
        context.try_shutdown()


@contextmanager
def _stop_on_signal(stop: threading.Event, on_stop: Callable[[], None]) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the playing rather than the process; the second one does."""

    def handle(number: int, _frame: Any) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        on_stop()

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _max_interval(recording: Recording, stamps: list[int]) -> float:
    """Longest interval (s) of a pair: the node's second, or more for a slower camera."""
    steps = np.diff(stamps) if len(stamps) > 1 else np.array([0])
    typical = float(np.median(steps[steps > 0])) * 1e-9 if (steps > 0).any() else 0.0
    return max(1.0, 2.5 * typical)


def replay(
    recording: Recording, output: Path, *, model: str = 'auto', weights: str = '',
    device: str = 'auto', iterations: int = 0, looks: int = 0, rate: float = 1.0,
    video: bool = True,
) -> ReplaySummary:
    """Play a recording through a node of its own and write what came of it.

    Files of an earlier replay in the folder are replaced: see :class:`ReplayFiles`.

    Args:
        recording: from :func:`~daflow_ros.datasets.recordings.open_recording`.
        output: folder for the results.
        model: of the node, see ``daflow models``; 'auto' is the node's default.
        weights: checkpoint file or folder of the model; empty for what the package ships.
        device: of the node.
        iterations, looks: of the node; 0 is the model's default.
        rate: times the recorded speed; 0 sends each picture when the last one is answered, so
            that every pair gets its flow however slow the model is.
        video: draw the film and the picture.

    Raises:
        RecordingError: the recording cannot be read.
        NodeProcessError: the node does not start or ends while it is needed.
        OSError: a file cannot be written.
    """
    use_shipped_profile()
    files = ReplayFiles(output)
    files.prepare()
    stamps = [message.stamp_ns for message in recording.messages()]
    summary = ReplaySummary(str(recording.path), recording.topic, rate, len(stamps))
    base = recording.topic.removesuffix('/compressed') if recording.compressed else recording.topic
    topic = base + '/compressed' if recording.compressed else base
    parameters = {
        'compressed': recording.compressed,
        'use_sim_time': True, 'status_period': 0.2, 'idle_without_subscribers': False,
        'max_interval': _max_interval(recording, stamps),
        **({'weights': weights} if weights else {}),
        **({'iterations': iterations} if iterations else {}),
        **({'looks': looks} if looks else {}),
    }
    arguments = ['--model', model, '--device', device]
    if weights:
        arguments += ['--weights', weights]
    stop, answers = threading.Event(), _Answers()
    with _ros_node('daflow_replay') as ros, NodeProcess(
        files.log, parameters, {'image_raw': base, '__node': _NODE, '__ns': '/'}, arguments
    ) as process:
        player = BagPlayer(ros, recording, topic)
        recorder = FlowRecorder(
            ros, files.flow_bag,
            [RecordedTopic(f'/{_NODE}/flow', FlowField, answers.on_flow)], reliable=True)
        ros.create_subscription(FlowStats, f'/{_NODE}/stats', answers.on_stats, 10)
        ros.create_subscription(DiagnosticArray, '/diagnostics', answers.on_diagnostics, 10)
        try:
            with _stop_on_signal(stop, player.stop):
                _wait_for_node(process, player, answers, stop)
                if recorder.publishers(f'/{_NODE}/flow') > 1:
                    raise NodeProcessError(
                        f'another node named {_NODE} runs in this ROS domain; give the replay a'
                        ' ROS_DOMAIN_ID of its own')
                report = _play(player, recording, process, answers, rate, stop)
        finally:
            recorder.close()
    _count(summary, report, answers, recorder)
    summary.interrupted |= stop.is_set()
    add_flow(summary, recording, files.flow_bag, stamps[: report.sent])
    summary.write(files.summary)
    if video and not summary.interrupted:
        write_side_by_side(recording, files.flow_bag, files.video, files.picture,
                           _film_rate(stamps), summary.epe_by_stamp)
    return summary


def _wait_for_node(
    process: NodeProcess, player: BagPlayer, answers: _Answers, stop: threading.Event,
) -> None:
    """Wait until the node receives pictures and its outputs arrive here."""
    ready = answers.wait(
        lambda: player.subscribers > 0 and answers.stats is not None, START_TIMEOUT,
        process.check, stop)
    if not ready and not stop.is_set():
        raise NodeProcessError(f'the node is not active after {START_TIMEOUT:.0f} s; its log says'
                           f'\n{process.log_tail()}')
    # Discovery runs both ways, and the other way may lag behind by a moment.
    stop.wait(0.5)


def _play(
    player: BagPlayer, recording: Recording, process: NodeProcess, answers: _Answers,
    rate: float, stop: threading.Event,
) -> PlayReport:
    """Play, then wait for the flow that is still to come."""
    def patience() -> float:
        return (QUIET + 5 * answers.longest_gap) if len(answers.flow_at) > 1 else FIRST_TIMEOUT

    with tqdm(total=len(recording), desc='playing', unit='frame') as bar:
        def on_sent(stamp_ns: int) -> None:
            process.check()
            bar.update()
            bar.set_postfix(flow=len(answers.flow_at))

        def answered(stamp_ns: int) -> bool:
            return answers.wait(lambda: stamp_ns in answers.flow_at, patience(), process.check,
                                stop)

        report = player.play(rate, on_sent, answered)
        last = max(report.sent_at, key=lambda stamp: report.sent_at[stamp], default=-1)
        while not stop.is_set() and report.sent > 1:
            count = len(answers.flow_at)
            answers.wait(
                lambda count=count: len(answers.flow_at) > count or answers.settled(report.sent),
                patience(), process.check, stop)
            bar.set_postfix(flow=len(answers.flow_at))
            if (last in answers.flow_at or answers.settled(report.sent)
                    or len(answers.flow_at) == count):
                break
        # A report that is later than the last flow.
        before = answers.stats
        answers.wait(lambda: answers.stats is not before and answers.settled(report.sent), 2.0,
                     process.check, stop)
    return report


def _count(summary: ReplaySummary, report: PlayReport, answers: _Answers,
           recorder: FlowRecorder) -> None:
    """Fill in counts, rate and latency."""
    summary.sent, summary.late = report.sent, report.late
    summary.interrupted = report.interrupted
    summary.flow_expected = max(report.sent - 1, 0)
    summary.flow_received = sum(recorder.counts.values())
    stats = answers.stats
    if stats is not None:
        summary.received = int(stats.received)
        summary.lost_pictures = max(report.sent - int(stats.received), 0)
        summary.lost_flow = max(int(stats.published) - summary.flow_received, 0)
        summary.dropped = {
            name.removeprefix('dropped_'): int(getattr(stats, name)) for name in _DROPS
            if name != 'dropped_lost' and getattr(stats, name)}
    arrivals = sorted(answers.flow_at.values())
    if len(arrivals) > 1:
        summary.rate = (len(arrivals) - 1) / max(arrivals[-1] - arrivals[0], 1e-9)
    latencies = [1e3 * (at - report.sent_at[stamp]) for stamp, at in answers.flow_at.items()
                 if stamp in report.sent_at]
    if latencies:
        median, high = np.percentile(latencies, (50, 95))
        summary.latency_p50, summary.latency_p95 = float(median), float(high)


def _film_rate(stamps: list[int]) -> float:
    """Frame rate (Hz) of the film: that of the recording."""
    steps = np.diff(stamps) if len(stamps) > 1 else np.array([0])
    steps = steps[steps > 0]
    return float(np.clip(1e9 / np.median(steps), 1.0, 60.0)) if steps.size else 15.0
