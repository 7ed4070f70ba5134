# SPDX-License-Identifier: Apache-2.0
"""A recording played and flow recorded over real DDS, the other end in a process of its own."""

import os
import random
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

pytest.importorskip('rclpy')

import cv2
import rclpy
from daflow_ros.msg import FlowField
from rclpy.executors import SingleThreadedExecutor

from daflow_ros.datasets.recorded_flow import read_recorded_flow
from daflow_ros.datasets.recordings import RecordingError, open_recording
from daflow_ros.ros.bag_player import BagPlayer, to_message
from daflow_ros.ros.flow_recorder import FlowRecorder, RecordedTopic, target_stamp_ns
from daflow_ros.ros.transport import use_shipped_profile

# The other end: answers every picture, from the second on, with a FlowField whose flow is the
# picture's mean, and prints how /clock ran.
ANSWERER = '''
import array, signal, sys
import numpy as np
import rclpy
from daflow_ros.datasets.encodings import decode_compressed
from daflow_ros.msg import FlowField
from rclpy.qos import qos_profile_sensor_data
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CompressedImage

rclpy.init()
node = rclpy.create_node('answerer')
flow = node.create_publisher(FlowField, '/answerer/flow', qos_profile_sensor_data)
last, clocks = [], []

def answer(picture):
    if last:
        field = FlowField(header=last[-1].header, target_stamp=picture.header.stamp, model='mean')
        field.header.frame_id = 'odd' * (len(last) % 3)
        mean = decode_compressed(picture).mean()
        data = array.array('B')
        data.frombytes(np.full((48, 64, 2), mean, np.float32).tobytes())
        field.flow.height, field.flow.width, field.flow.step = 48, 64, 512
        field.flow.encoding, field.flow.data = '32FC2', data
        flow.publish(field)
    last.append(picture)

def tick(message):
    clocks.append(message.clock.sec * 10**9 + message.clock.nanosec)

node.create_subscription(CompressedImage, sys.argv[1], answer, qos_profile_sensor_data)
node.create_subscription(Clock, '/clock', tick, qos_profile_sensor_data)
# By short waits: on a busy machine a signal can come between rclpy's look at it and its wait.
try:
    while rclpy.ok():
        rclpy.spin_once(node, timeout_sec=0.2)
except BaseException:
    pass
backward = sum(b < a for a, b in zip(clocks, clocks[1:]))
print(len(last), len(clocks), backward, flush=True)
'''
COUNT = 12


@pytest.fixture
def domain(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(random.randint(1, 100)))
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    use_shipped_profile(os.environ)
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('player', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    thread = threading.Thread(target=executor.spin, daemon=True)
    thread.start()
    yield node
    executor.shutdown(timeout_sec=5)
    node.destroy_node()
    context.try_shutdown()
    thread.join(5)


@pytest.fixture
def clip(tmp_path):
    folder = tmp_path / 'clip'
    folder.mkdir()
    for index in range(COUNT):
        cv2.imwrite(str(folder / f'{index:03d}.png'), np.full((48, 64, 3), 10 * index, np.uint8))
    return open_recording(folder, rate=20.0)


def wait(condition, timeout=20.0):
    limit = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < limit, 'not in time'
        time.sleep(0.01)


@pytest.fixture
def answerer(clip):
    process = subprocess.Popen(
        [sys.executable, '-c', ANSWERER, clip.topic], stdout=subprocess.PIPE, text=True)
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


@pytest.mark.parametrize('rate', [1.0, 4.0, 0.0])
def test_play_and_record(domain, clip, answerer, tmp_path, rate):
    answered = threading.Event()
    targets = []

    def on_flow(data, _now):
        targets.append(target_stamp_ns(data))
        answered.set()

    def wait_for_answer(stamp_ns):
        wait(lambda: stamp_ns in targets)
        return True

    player = BagPlayer(domain, clip)
    recorder = FlowRecorder(
        domain, tmp_path / 'out', [RecordedTopic('/answerer/flow', FlowField, on_flow)])
    wait(lambda: player.subscribers and recorder.publishers('/answerer/flow'))
    # Both directions of both topics match a moment after the first of them.
    time.sleep(0.5)
    report = player.play(rate, wait_for_answer=wait_for_answer if rate == 0 else None)
    wait(lambda: recorder.counts['/answerer/flow'] == COUNT - 1)
    recorder.close()
    recorder.close()
    answerer.send_signal(2)
    images, clocks, backward = map(int, answerer.communicate(timeout=20)[0].split())
    assert report.sent == images == COUNT
    assert not report.interrupted and report.unanswered == 0
    stamps = [message.stamp_ns for message in clip.messages()]
    assert targets == stamps[1:] and list(report.sent_at) == stamps
    assert clocks >= COUNT - 1 and backward == 0
    if rate:
        # Never sooner than recorded.
        assert report.elapsed >= (stamps[-1] - stamps[0]) * 1e-9 / rate - 0.01
    fields = list(read_recorded_flow(tmp_path / 'out'))
    assert [field.stamp_ns for field in fields] == stamps[:-1]
    assert [field.target_stamp_ns for field in fields] == stamps[1:]
    for index, field in enumerate(fields, 1):
        assert (field.flow == 10 * index).all()
        assert field.confidence is None and field.model == 'mean'
    assert recorder.lost == {'/answerer/flow': 0}


def test_stop_ends_playing(domain, clip):
    player = BagPlayer(domain, clip)
    threading.Timer(0.2, player.stop).start()
    report = player.play(0.01)
    assert report.interrupted and report.sent == 1 and report.elapsed < 20
    with pytest.raises(ValueError, match='rate -1'):
        player.play(-1.0)
    with pytest.raises(ValueError, match='rate 0'):
        player.play(0.0)


def test_messages_are_filled_as_recorded(tmp_path):
    cv2.imwrite(str(tmp_path / '1.bmp'), np.arange(24, dtype=np.uint8).reshape(2, 4, 3))
    raw = to_message(next(open_recording(tmp_path).messages()))
    assert (raw.height, raw.width, raw.step, raw.encoding) == (2, 4, 12, 'rgb8')
    # BGR on disk.
    np.testing.assert_array_equal(
        np.frombuffer(raw.data, np.uint8).reshape(2, 4, 3),
        np.arange(24, dtype=np.uint8).reshape(2, 4, 3)[..., ::-1])
    assert (raw.header.stamp.sec, raw.header.stamp.nanosec) == (1, 0)


def test_an_empty_recording_of_flow(domain, tmp_path):
    FlowRecorder(domain, tmp_path / 'out', [RecordedTopic('/none/flow', FlowField)]).close()
    assert list(read_recorded_flow(tmp_path / 'out')) == []
    with pytest.raises(RecordingError, match='out'):
        list(read_recorded_flow(tmp_path / 'out', '/other'))
