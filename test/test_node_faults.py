# SPDX-License-Identifier: Apache-2.0
"""A flow node whose model fails, hangs or is interrupted, and inputs that never come."""

import itertools
import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('torch')

import rclpy
from daflow_ros.msg import FlowField
from faulty_node import HELD, MEMORY, MEMORY_ONCE, NO_MESSAGE, NOT_FINITE, RAISE, SIZE, SLOW
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from node_harness import NodeProcess, image_message, pixels, seconds_of, texture, view
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

from daflow_ros import load_estimator
from daflow_ros.ros.transport import SHARED_MEMORY, own_segments

WORLD = texture()
FAST_STATUS = ('--ros-args', '-p', 'status_period:=0.2')


def picture(index, fault=0):
    image = view(WORLD, index)
    image[0, 0] = fault or 200
    return image


@pytest.fixture(scope='module')
def gate(tmp_path_factory):
    """A pair that is HELD goes on when this file is there."""
    file = tmp_path_factory.mktemp('gate') / 'open'
    os.environ['DAFLOW_TEST_GATE'] = str(file)
    yield file
    del os.environ['DAFLOW_TEST_GATE']


@pytest.fixture(scope='module')
def node(gate):
    with NodeProcess(*FAST_STATUS, faulty=True) as process:
        process.client.listen('flow', 'stats')
        yield process


@pytest.mark.parametrize(
    ('fault', 'told'),
    [
        (RAISE, 'a fault that was asked for'),
        (MEMORY, 'out of device memory at 128x96, twice'),
        (NOT_FINITE, 'not finite'),
        (SIZE, '(95, 128, 2)'),
        (NO_MESSAGE, 'bool'),
    ],
    ids=['exception', 'memory', 'not finite', 'size', 'no message'],
)
def test_a_failing_model_is_counted_and_told(node, fault, told):
    client = node.client
    before = client.stats()
    failed = before.dropped_failed
    begin = 100.0 * fault
    client.publish(image_message(picture(0, fault), begin))
    client.publish(image_message(picture(1), begin + 0.1))
    assert client.wait(lambda: client.got['stats'][-1].dropped_failed == failed + 1)
    assert client.wait(lambda: told in client.told('camera')), client.status
    assert client.status['camera'].level == b'\2'
    assert client.got['stats'][-1].processed == before.processed
    # No flow of that pair was published, and the next pair is good.
    field = client.flow_of(image_message(picture(2), begin + 0.2))
    assert seconds_of(field.header.stamp) == begin + 0.1
    expected = load_estimator('dis_fast').estimate(picture(1), picture(2)).flow
    np.testing.assert_array_equal(pixels(field.flow), expected)


def test_memory_that_runs_out_once_is_tried_again(node):
    client = node.client
    failed = client.stats().dropped_failed
    client.publish(image_message(picture(0, MEMORY_ONCE), 50.0))
    field = client.flow_of(image_message(picture(1), 50.1))
    assert seconds_of(field.header.stamp) == 50.0
    assert client.stats().dropped_failed == failed


def busy_for(client):
    values = {item.key: item.value for item in client.status['model'].values}
    return float(values['time on this pair (s)'])


def test_services_answer_while_the_model_works(node, gate):
    """And the newest pair, not the oldest, is worked on next."""
    client = node.client
    before, count = client.stats(), len(client.got['flow'])
    client.publish(image_message(picture(0, HELD), 60.0))
    client.publish(image_message(picture(1), 60.1))
    assert client.wait(lambda: busy_for(client) > 0)
    assert client.get('stride') == 1
    assert client.set(viz_arrows=8) == ''
    assert client.state() == 'active'
    for index in range(2, 5):
        client.publish(image_message(picture(index), 60 + index / 10))
    assert client.wait(lambda: client.stats().received == before.received + 5)
    assert len(client.got['flow']) == count
    gate.touch()
    assert client.wait(lambda: len(client.got['flow']) == count + 2)
    gate.unlink()
    stamps = [seconds_of(field.header.stamp) for field in client.got['flow'][-2:]]
    assert stamps == [60.0, 60.3]
    assert client.stats().dropped_superseded == before.dropped_superseded + 2


def test_lifecycle_while_the_model_works(node, gate):
    """Transitions do not wait for a long pair for ever, and its flow is not published."""
    client = node.client
    client.publish(image_message(picture(0, HELD), 70.0))
    client.publish(image_message(picture(1), 70.1))
    assert client.wait(lambda: busy_for(client) > 0)
    count = len(client.got['flow'])
    for transition in ('deactivate', 'cleanup', 'configure', 'activate'):
        assert client.change(transition)
    assert client.state() == 'active'
    client.wait(lambda: client.node.count_subscribers('image_raw'))
    client.settle()
    gate.touch()
    client.publish(image_message(picture(0), 71.0))
    field = client.flow_of(image_message(picture(1), 71.1))
    assert seconds_of(field.header.stamp) == 71.0
    assert len(client.got['flow']) == count + 1
    gate.unlink()


def test_every_image_is_counted_once(gate):
    """Over a pair that outlives its activation, one that waits, and the last subscriber's end."""
    with NodeProcess(*FAST_STATUS, faulty=True) as node:
        client = node.client
        client.listen('flow', 'stats')
        faults = {0: HELD, 6: NO_MESSAGE, 8: HELD}

        def publish(index):
            client.publish(image_message(picture(index, faults.get(index)), 40 + index / 10))

        def hold(index):
            publish(index)
            publish(index + 1)
            assert client.wait(lambda: busy_for(client) > 0)
            publish(index + 2)

        hold(0)
        publish(3)
        assert client.wait(lambda: client.stats().received == 4)
        assert client.change('deactivate') and client.change('activate')
        client.wait(lambda: client.node.count_subscribers('image_raw'))
        client.settle()
        gate.touch()
        # The flow of the first activation is not published in the second.
        assert client.wait(lambda: client.stats().processed == 1)
        assert (client.got['flow'], client.got['stats'][-1].published) == ([], 0)
        gate.unlink()
        for index in range(4, 8):
            publish(index)
            assert client.wait(lambda index=index: client.stats().received == index + 1)
            assert client.wait(lambda: busy_for(client) == 0)
        client.stats()
        hold(8)
        client.node.destroy_subscription(client._subscriptions.pop('flow'))
        client.settle(1)
        publish(11)
        assert client.wait(lambda: client.stats().received == 12)
        gate.touch()
        assert client.wait(lambda: client.stats().processed == 5)
        gate.unlink()
        # 0 and 4 only begin; 1, 5, 6, 8 and 9 are the newer images of pairs that are done.
        stats = client.stats()
        drops = {name: getattr(stats, name) for name in dir(stats) if name.startswith('dropped_')}
        assert {name: count for name, count in drops.items() if count} == {
            'dropped_superseded': 1,  # 2
            'dropped_failed': 1,  # 7
            'dropped_idle': 3,  # 3, 10, 11
        }
        assert (stats.received, stats.processed, stats.published) == (12, 5, 4)
        stamps = [seconds_of(field.target_stamp) for field in client.got['flow']]
        assert stamps == [40.5, 40.6, 40.8]


@pytest.mark.parametrize(
    'signals', [(signal.SIGINT,), (signal.SIGINT, signal.SIGINT), (signal.SIGTERM,)],
    ids=['once', 'twice', 'term'],
)  # fmt: skip
def test_stopped_in_the_middle_of_a_pair(signals):
    with NodeProcess(*FAST_STATUS, faulty=True) as node:
        node.client.listen('flow', 'stats')
        node.client.publish(image_message(picture(0, SLOW), 80.0))
        node.client.publish(image_message(picture(1), 80.1))
        node.client.settle()
        assert node.stop(*signals) == 0
    assert 'Traceback' not in node.output
    assert 'rror' not in node.output


def shared_memory_of(process):
    """Files of Fast DDS that a process holds the locks of, with their inodes."""
    links = [os.readlink(link) for link in Path(f'/proc/{process.pid}/fd').iterdir()]
    names = [Path(link).name.removesuffix('_el') for link in links if link.endswith('_el')]
    assert any(re.fullmatch('fastdds_[0-9a-f]{16}', name) for name in names), links
    paths = [
        SHARED_MEMORY / part
        for name in names
        for part in (name, f'{name}_el', f'sem.{name}_mutex')
    ]
    return [(path, path.stat().st_ino) for path in paths if path.exists()]


def left_of(files):
    """Others may use a port of the same number as soon as it is free."""
    return [path for path, inode in files if path.exists() and path.stat().st_ino == inode]


def test_a_pair_longer_than_the_stop_leaves_nothing_in_shared_memory(gate):
    """The process ends while the model works; what is others' stays."""
    with NodeProcess(*FAST_STATUS, faulty=True) as node:
        node.client.listen('flow')
        stamps = itertools.count(800)

        def at_work():
            node.client.publish(image_message(picture(0, HELD), next(stamps) / 10))
            return busy_for(node.client) > 0

        assert node.client.wait(at_work)
        files = shared_memory_of(node.process)
        others = own_segments()
        assert node.stop(signal.SIGINT) == 0
        assert not gate.exists()
        assert left_of(files) == []
        assert others and all(path.exists() for path in others)
    assert 'Traceback' not in node.output


def test_stopped_while_the_model_is_loaded():
    with NodeProcess(*FAST_STATUS, '-p', 'weights:=slow', faulty=True, wait=False) as node:
        assert node.client.wait(lambda: node.client.told('model') == 'configuring')
        files = shared_memory_of(node.process)
        assert node.stop(signal.SIGINT) == 0
        assert left_of(files) == []
    assert 'Traceback' not in node.output


def test_a_qos_override_that_is_none_is_told():
    override = 'qos_overrides.NAMESPACE/image_raw.subscription.reliability:=sometimes'
    with NodeProcess('--model', 'dis_fast', *FAST_STATUS, '-p', override, wait=False) as node:
        node.client.wait_for_state('inactive')
        assert node.client.wait(lambda: not node.client.change('activate'))
        assert node.client.state() == 'inactive'
    assert 'cannot activate' in node.output and 'sometimes' in node.output


def test_inputs_that_never_come():
    """No publisher, one with an incompatible QoS, and a clock that is missing."""
    topic = 'qos_overrides.NAMESPACE/image_raw.subscription.reliability:=reliable'
    arguments = (*FAST_STATUS, '-p', 'image_timeout:=0.5', '-p', topic, '-p', 'use_sim_time:=true')
    with NodeProcess('--model', 'dis_fast', *arguments) as node:
        client = node.client

        assert client.wait(lambda: 'nothing publishes it' in client.told('camera')), client.status
        assert 'nothing publishes /clock' in client.told('camera')
        qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        client.node.create_publisher(Image, 'image_raw', qos)
        assert client.wait(lambda: 'incompatible RELIABILITY' in client.told('camera'))
        parameter = f'qos_overrides.{client.namespace}/image_raw.subscription.reliability'
        assert parameter in client.told('camera')
        assert client.status['camera'].level == b'\2'
        assert client.get(parameter) == 'reliable'
    assert re.search(r'WARN.*: camera: use_sim_time is set', node.output)


LOSSY_CAMERA = """
import array, os, sys, time
for name in ('FASTDDS_DEFAULT_PROFILES_FILE', 'FASTRTPS_DEFAULT_PROFILES_FILE'):
    os.environ.pop(name, None)
import rclpy
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node('camera', namespace=sys.argv[1])
publisher = node.create_publisher(Image, 'image_raw', qos_profile_sensor_data)
while not publisher.get_subscription_count():
    time.sleep(0.05)
time.sleep(0.5)
height, width, period = int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
image = Image(height=height, width=width, step=3 * width, encoding='rgb8')
image.data = array.array('B', os.urandom(3 * width) * height)
for index in range(100000):
    image.header.stamp.sec, image.header.stamp.nanosec = divmod(index * 10**7, 10**9)
    publisher.publish(image)
    time.sleep(period)
"""


@contextmanager
def camera_process(node, height, width, period):
    """Images of a process without the Fast DDS profile, every ``period`` s."""
    process = subprocess.Popen(
        [sys.executable, '-c', LOSSY_CAMERA, node.client.namespace,
         str(height), str(width), str(period)],
        env={**os.environ, 'ROS_DOMAIN_ID': str(node.domain)},
    )  # fmt: skip
    try:
        yield
    finally:
        process.kill()
        process.wait()


def test_images_lost_by_the_transport_are_counted_and_told():
    """A camera without the Fast DDS profile: its images do not fit its shared memory."""
    with NodeProcess('--model', 'dis_fast', *FAST_STATUS) as node:
        client = node.client
        client.listen('stats')
        with camera_process(node, 720, 1280, 0.05):
            lost = re.compile(r'\d+ images lost by the transport: .*FASTDDS_DEFAULT_PROFILES_FILE')
            assert client.wait(lambda: lost.match(client.told('camera'))), client.status
            assert client.stats().dropped_lost > 0


def test_lifecycle_under_a_stream_of_images():
    """Topics come and go while images are on their way."""
    with NodeProcess('--model', 'dis_fast', *FAST_STATUS) as node:
        client = node.client
        client.listen('flow')
        with camera_process(node, 64, 96, 0.004):
            assert client.wait(lambda: client.got['flow'])
            for round_ in range(8):
                walk = ['deactivate', 'activate'] if round_ % 2 else [
                    'deactivate', 'cleanup', 'configure', 'activate',
                ]  # fmt: skip
                for transition in walk:
                    assert client.change(transition), transition
                count = len(client.got['flow'])
                assert client.wait(lambda count=count: len(client.got['flow']) > count)
        assert node.stop(signal.SIGINT) == 0
    assert 'Traceback' not in node.output and 'rror' not in node.output


def test_a_subscriber_that_never_reads_does_not_hold_the_node(node):
    """A reliable subscription whose executor is stuck."""
    client = node.client
    stuck = rclpy.create_node('stuck', context=client.context, namespace=client.namespace)
    stuck.create_subscription(FlowField, 'daflow/flow', print, QoSProfile(depth=1))
    client.settle()
    client.publish(image_message(picture(0), 90.0))
    for index in range(1, 25):
        client.flow_of(image_message(picture(index % 10), 90 + index / 10))
    stuck.destroy_node()


def test_stamps_that_are_none(node):
    """Negative ones, and nanoseconds beyond a second."""
    client = node.client
    for index, (seconds, rest) in enumerate([(-7, 0), (-7, 10**8), (-8, 13 * 10**8)]):
        message = image_message(picture(index), 0.0)
        message.header.stamp.sec, message.header.stamp.nanosec = seconds, rest
        field = client.flow_of(message) if index else client.publish(message)
    assert (field.target_stamp.sec, field.target_stamp.nanosec) == (-7, 3 * 10**8)


def test_shutdown_is_final():
    with NodeProcess('--model', 'dis_fast', *FAST_STATUS) as node:
        client = node.client
        request = ChangeState.Request()
        request.transition.id = Transition.TRANSITION_ACTIVE_SHUTDOWN
        assert client.call(ChangeState, 'change_state', request).success
        assert client.state() == 'finalized'
        assert not client.change('configure')
        assert client.wait(lambda: client.told('model') == 'finalized')
        assert client.get('stride') == 1
        assert node.stop(signal.SIGINT) == 0
    assert 'Traceback' not in node.output
