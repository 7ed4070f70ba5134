# SPDX-License-Identifier: Apache-2.0
"""Camera images between two processes over the shipped Fast DDS profile."""

import array
import fcntl
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')

from daflow_ros.ros import transport

PEER = Path(__file__).with_name('transport_peer.py')


@pytest.fixture
def domain(monkeypatch):
    """A DDS domain of this test's own, and no profile named by the user."""
    monkeypatch.setenv('ROS_DOMAIN_ID', str(random.randint(1, 100)))
    monkeypatch.delenv(transport.PROFILE_VARIABLE, raising=False)
    monkeypatch.delenv(transport.OLD_PROFILE_VARIABLE, raising=False)
    monkeypatch.delenv('RMW_IMPLEMENTATION', raising=False)


@pytest.mark.parametrize(('width', 'height'), [(640, 480), (1280, 720)])
def test_every_image_arrives(domain, width, height):
    """Best effort at 30 Hz; each image whole, in order, and none missing."""
    count = 60
    code = f"""
import sys, time
import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import Image
from daflow_ros.ros import transport

transport.use_shipped_profile()
rclpy.init()
node = rclpy.create_node('reader')
got = []

def receive(message):
    data = memoryview(message.data)
    whole = len(data) == {3 * width * height} and data[0] == data[-1] == len(got) % 256
    got.append((message.header.stamp.sec, whole))

node.create_subscription(Image, 'image_raw', receive, qos_profile_sensor_data)
deadline = time.monotonic() + 60
quiet = deadline
while time.monotonic() < min(deadline, quiet) and len(got) < {count}:
    before = len(got)
    rclpy.spin_once(node, timeout_sec=0.2)
    if len(got) > before:
        quiet = time.monotonic() + 10
assert transport.own_segment_size() >= 64 * 2**20, transport.own_segment_size()
print(sum(whole for _, whole in got), [stamp for stamp, _ in got] == list(range({count})))
"""
    arguments = [str(value) for value in (width, height, 30, count)]
    with subprocess.Popen(
        [sys.executable, str(PEER), *arguments], stdin=subprocess.PIPE, text=True
    ) as sender:
        try:
            reader = subprocess.run(
                [sys.executable, '-c', code], capture_output=True, text=True, timeout=120
            )
        finally:
            sender.communicate('\n', timeout=60)
    assert reader.returncode == 0, reader.stderr
    assert reader.stdout.split() == [str(count), 'True']
    assert sender.returncode == 0


def test_filling_a_flow_field_is_quick():
    """array.array from a memoryview against assigning the ndarray: under 5 % in the same run."""
    field = pytest.importorskip('daflow_ros.msg').FlowField()
    flow = np.random.default_rng(0).normal(size=(720, 1280, 2)).astype(np.float32)

    started = time.perf_counter()
    data = array.array('B')
    data.frombytes(memoryview(flow).cast('B'))
    field.flow.data = data
    quick = time.perf_counter() - started
    assert bytes(field.flow.data[-8:]) == flow[-1, -1].tobytes()
    assert len(field.flow.data) == flow.nbytes

    started = time.perf_counter()
    field.flow.data = flow.view(np.uint8).ravel()
    slow = time.perf_counter() - started
    assert bytes(field.flow.data) == data.tobytes()
    print(f'filled in {quick * 1e3:.2f} ms, ndarray assigned in {slow * 1e3:.1f} ms')
    assert quick < 0.05 * slow


def test_profile_of_the_user_is_kept(tmp_path):
    own = tmp_path / 'own.xml'
    for variable in (transport.PROFILE_VARIABLE, transport.OLD_PROFILE_VARIABLE):
        environ = {variable: str(own)}
        assert transport.use_shipped_profile(environ) == own
        assert environ == {variable: str(own)}
    environ = {}
    shipped = transport.use_shipped_profile(environ)
    assert environ == {transport.profile_variable(): str(shipped)}
    assert shipped.is_file()


def test_variable_is_the_one_that_fast_dds_reads(tmp_path):
    kilted, jazzy = tmp_path / 'kilted', tmp_path / 'jazzy'
    (kilted / 'share' / 'fastdds').mkdir(parents=True)
    (jazzy / 'share' / 'fastrtps').mkdir(parents=True)
    variable = transport.profile_variable
    assert variable([str(tmp_path), str(kilted)]) == 'FASTDDS_DEFAULT_PROFILES_FILE'
    assert variable([str(tmp_path), str(jazzy)]) == 'FASTRTPS_DEFAULT_PROFILES_FILE'


def test_segment_size_is_read(tmp_path):
    assert transport.segment_size(transport.use_shipped_profile({})) == 64 * 2**20
    assert transport.segment_size(None) == transport.DEFAULT_SEGMENT_SIZE
    profile = tmp_path / 'profile.xml'
    profile.write_text(
        '<dds><profiles><transport_descriptors><transport_descriptor>'
        '<transport_id>u</transport_id><type>UDPv4</type>'
        '</transport_descriptor></transport_descriptors><participant><rtps>'
        '<userTransports><transport_id>u</transport_id></userTransports>'
        '<useBuiltinTransports>false</useBuiltinTransports></rtps></participant></profiles></dds>'
    )
    assert transport.segment_size(profile) is None
    profile.write_text('<dds><profiles>')
    with pytest.raises(ValueError, match='profile.xml'):
        transport.segment_size(profile)
    with pytest.raises(ValueError, match='absent.xml'):
        transport.segment_size(tmp_path / 'absent.xml')


def test_stale_segments_are_told_from_held_ones(tmp_path):
    for name in ('fastdds_' + '1' * 16, 'fastrtps_' + '2' * 16, 'fastdds_' + '3' * 16):
        (tmp_path / name).write_bytes(bytes(100))
        (tmp_path / (name + '_el')).touch()
    (tmp_path / ('fastdds_' + '3' * 16 + '_el')).unlink()
    (tmp_path / 'fastdds_port7400').touch()
    with (tmp_path / ('fastdds_' + '1' * 16 + '_el')).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        memory = transport.shared_memory(tmp_path)
    assert [path.name[:9] for path in memory.segments] == ['fastdds_1', 'fastdds_3', 'fastrtps_']
    assert [path.name[:9] for path in memory.stale] == ['fastdds_3', 'fastrtps_']
    assert memory.stale_bytes == 200
    assert transport.shared_memory(tmp_path / 'absent') is None


def test_only_what_this_process_has_locked_is_removed(tmp_path):
    mine, port = 'fastdds_' + '1' * 16, 'fastrtps_port7411'
    others, dead = 'fastdds_' + '2' * 16, 'fastdds_port7413'
    for name in (mine, port, others, dead):
        (tmp_path / name).write_bytes(bytes(100))
        (tmp_path / f'{name}_el').touch()
    for name in (port, dead):
        (tmp_path / f'sem.{name}_mutex').touch()
    (tmp_path / 'own_el').touch()
    hold = 'import fcntl, sys; fcntl.flock(open(sys.argv[1]), 2); print(flush=True); input()'
    with ExitStack() as stack:
        for name in (mine, port, 'own'):
            lock = stack.enter_context((tmp_path / f'{name}_el').open())
            fcntl.flock(lock, fcntl.LOCK_EX)
        # Open here as well, as Fast DDS opens it to see whether its process lives.
        stack.enter_context((tmp_path / f'{others}_el').open())
        holder = stack.enter_context(
            subprocess.Popen(
                [sys.executable, '-c', hold, str(tmp_path / f'{others}_el')],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
        )  # fmt: skip
        holder.stdout.readline()
        assert transport.own_segments(tmp_path) == [tmp_path / mine]
        transport.remove_own_files(tmp_path)
        holder.communicate(b'\n', timeout=60)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == sorted(
        [others, f'{others}_el', dead, f'{dead}_el', f'sem.{dead}_mutex', 'own_el']
    )
