# SPDX-License-Identifier: Apache-2.0
"""The flow node in a process of its own, over real DDS: images in, flow out."""

import io
import re
import signal

import numpy as np
import pytest

pytest.importorskip('rclpy')

from node_harness import (
    NodeProcess,
    compressed_message,
    image_message,
    pixels,
    seconds_of,
    texture,
    view,
)

from daflow_ros import load_estimator
from daflow_ros.flow.colorwheel import flow_to_color
from daflow_ros.ros.point_cloud2 import read_points

OUTPUTS = (
    'flow', 'flow_image', 'confidence', 'flow_viz', 'flow_viz/compressed', 'flow_points', 'stats',
)  # fmt: skip
WORLD = texture()


@pytest.fixture(scope='module')
def node():
    with NodeProcess('--model', 'dis_fast', '--ros-args', '-p', 'status_period:=0.2') as process:
        yield process


@pytest.fixture
def client(node):
    """The client, with the node as if it had just been started."""
    client = node.client
    if client.state() == 'active':
        assert client.change('deactivate')
    if client.state() == 'inactive':
        assert client.change('cleanup')
    assert client.set(direction='forward', stride=1, viz_max_flow=0.0, points_step=16) == ''
    assert client.change('configure')
    assert client.change('activate')
    client.listen('stats')
    client.wait(lambda: client.node.count_subscribers('image_raw'))
    client.settle()
    yield client
    client.forget()


def direct(index1, index2):
    return load_estimator('dis_fast').estimate(view(WORLD, index1), view(WORLD, index2)).flow


def test_images_in_flow_out(client):
    client.listen(*OUTPUTS[:-1])
    client.publish(image_message(view(WORLD, 0), 100.0))
    for index in range(1, 5):
        field = client.flow_of(image_message(view(WORLD, index), 100 + index / 10))
        expected = direct(index - 1, index)
        np.testing.assert_array_equal(pixels(field.flow), expected)
        assert np.abs(np.median(expected, axis=(0, 1)) - (2, 1)).max() < 0.2
        assert seconds_of(field.header.stamp) == 100 + (index - 1) / 10
        assert seconds_of(field.target_stamp) == 100 + index / 10
        assert field.header.frame_id == field.flow.header.frame_id == 'camera_optical'
        assert field.flow.header.stamp == field.header.stamp
        assert (field.flow.encoding, field.flow.step) == ('32FC2', 8 * 128)
        assert (field.confidence.width, len(field.confidence.data)) == (0, 0)
        assert field.direction == field.FORWARD
        assert field.model == 'dis_fast' and field.weights_revision.startswith('opencv')
        assert (field.refinement_iterations, field.diffusion_steps) == (0, 0)
        assert 0 < field.processing_latency < 60
        assert field.end_to_end_latency > 1e9  # the stamps are of 1970
    others = [name for name in OUTPUTS[1:-1] if name != 'confidence']
    assert client.wait(lambda: all(len(client.got[name]) == 4 for name in others))
    assert client.got['confidence'] == []
    assert pixels(client.got['flow_image'][-1]).tobytes() == expected.tobytes()

    picture = client.got['flow_viz'][-1]
    assert (picture.encoding, picture.height, picture.width) == ('rgb8', 96, 128)
    drawn = np.frombuffer(bytes(picture.data), np.uint8).reshape(96, 128, 3)
    np.testing.assert_array_equal(drawn, flow_to_color(expected))
    pil = pytest.importorskip('PIL.Image')
    packed = client.got['flow_viz/compressed'][-1]
    unpacked = np.asarray(pil.open(io.BytesIO(bytes(packed.data)))).astype(int)
    assert np.abs(unpacked - drawn).mean() < 12

    points = read_points(client.got['flow_points'][-1])
    assert client.got['flow_points'][-1].header == field.header
    assert len(points) == 6 * 8
    assert (points['z'] == 0).all() and np.isnan(points['confidence']).all()
    x, y = points['x'].astype(int), points['y'].astype(int)
    assert (x.min(), y.min(), x.max(), y.max()) == (8, 8, 120, 88)
    np.testing.assert_array_equal(np.stack([points['u'], points['v']], -1), expected[y, x])

    stats = client.stats()
    assert (stats.received, stats.processed, stats.published) == (5, 4, 4)
    assert sum(getattr(stats, name) for name in dir(stats) if name.startswith('dropped_')) == 0
    assert stats.header.frame_id == 'camera_optical'
    assert abs(stats.mean_flow - 5**0.5) < 0.3 and np.isnan(stats.mean_confidence)
    assert client.status['camera'].level == b'\0', client.status['camera']
    assert client.told('model') == 'active'


def test_backward_and_stride_at_run_time(client):
    client.listen('flow')
    assert client.set(direction='backward', stride=2) == ''
    for index in range(2):
        client.publish(image_message(view(WORLD, index), 10 + index / 10))
    field = client.flow_of(image_message(view(WORLD, 2), 10.2))
    np.testing.assert_array_equal(pixels(field.flow), direct(2, 0))
    assert (seconds_of(field.header.stamp), seconds_of(field.target_stamp)) == (10.2, 10.0)
    assert field.direction == field.BACKWARD


def test_run_time_parameters_are_vetoed(client):
    client.listen('flow_viz')
    assert 'at least' in client.set(stride=0) or 'range' in client.set(stride=0).lower()
    assert 'sideways' in client.set(direction='sideways')
    assert 'min_interval' in client.set(min_interval=5.0)
    assert 'unconfigured' in client.set(model='dis')
    assert client.set(model=3) and client.set(autostart=False) and client.set(nonsense=1)
    assert client.set(viz_max_flow=float('nan'))
    assert (client.get('stride'), client.get('direction')) == (1, 'forward')
    assert client.get('model') == 'dis_fast'
    assert client.set(viz_max_flow=50.0) == ''
    client.publish(image_message(view(WORLD, 0), 20.0))
    picture = client.flow_of(image_message(view(WORLD, 1), 20.1), output='flow_viz')
    drawn = np.frombuffer(bytes(picture.data), np.uint8).reshape(96, 128, 3)
    np.testing.assert_array_equal(drawn, flow_to_color(direct(0, 1), 50.0))


def test_descriptors(client):
    stride, model, autostart = client.describe('stride', 'model', 'autostart')
    assert stride.integer_range[0].to_value == 32 and 'Frames' in stride.description
    assert 'unconfigured' in model.additional_constraints
    assert autostart.read_only


def test_malformed_images_are_counted_and_told(client):
    client.listen('flow')
    good = image_message(view(WORLD, 0), 30.0)
    client.publish(good)
    short, step, unknown, empty, zero = (image_message(view(WORLD, 1), 30.1) for _ in range(5))
    short.data = short.data[:-1]
    step.step = 17
    unknown.encoding = 'rgb565'
    empty.data = []
    zero.width = 0
    for message in (short, step, unknown, empty, zero):
        client.publish(message)
        client.settle(0.05)  # a queue of sensor data holds five
    told = r'[1-5] (malformed images|images of an encoding that is not known) \(.+\)'
    assert client.wait(lambda: re.search(told, client.told('camera')))
    assert client.status['camera'].level != b'\0'
    stats = client.stats()
    assert (stats.dropped_malformed, stats.dropped_unknown_encoding) == (4, 1)
    values = {item.key: item.value for item in client.status['camera'].values}
    assert 'rgb565' in values['last unknown_encoding'] and values['dropped malformed'] == '4'
    # The node lives, and pairs the good images on both sides of the bad ones.
    field = client.flow_of(image_message(view(WORLD, 1), 30.2))
    np.testing.assert_array_equal(pixels(field.flow), direct(0, 1))
    assert client.wait(lambda: client.status['camera'].level == b'\0')


def test_format_change_and_time_going_back(client):
    client.listen('flow')
    client.publish(image_message(view(WORLD, 0), 40.0))
    client.flow_of(image_message(view(WORLD, 1), 40.1))
    small = [np.ascontiguousarray(view(WORLD, index)[:64, :80]) for index in range(3)]
    client.publish(image_message(small[0], 40.2))
    field = client.flow_of(image_message(small[1], 40.3))
    assert (field.flow.height, field.flow.width) == (64, 80)
    assert seconds_of(field.header.stamp) == 40.2
    client.publish(image_message(small[1], 40.3))
    client.publish(image_message(small[1], 12.0))
    field = client.flow_of(image_message(small[2], 12.1))
    assert seconds_of(field.header.stamp) == 12.0
    client.publish(image_message(small[0], 12.2, encoding='bgr8'))
    client.flow_of(image_message(small[1], 12.3, encoding='bgr8'))
    client.publish(image_message(small[0], 12.4, frame_id='other', encoding='bgr8'))
    stats = client.stats()
    assert stats.dropped_format_change == 3
    assert stats.dropped_time_jump == 2
    assert (stats.received, stats.published, len(client.got['flow'])) == (10, 4, 4)


def test_idle_without_subscribers(client):
    for index in range(4):
        client.publish(image_message(view(WORLD, index), 50 + index / 10))
    client.wait(lambda: client.got['stats'] and client.got['stats'][-1].received == 4)
    stats = client.stats()
    assert (stats.received, stats.dropped_idle, stats.processed) == (4, 4, 0)
    client.listen('flow_image')
    client.publish(image_message(view(WORLD, 4), 50.4))
    client.flow_of(image_message(view(WORLD, 5), 50.5), output='flow_image')


def test_images_too_small_are_failures_not_crashes(client):
    client.listen('flow')
    tiny = np.zeros((8, 8, 3), np.uint8)
    for index in range(2):
        client.publish(image_message(tiny, 60 + index / 10))
    assert client.wait(lambda: client.got['stats'] and client.got['stats'][-1].dropped_failed == 1)
    client.publish(image_message(view(WORLD, 0), 60.2))
    client.flow_of(image_message(view(WORLD, 1), 60.3))


def test_lifecycle_in_every_order(client):
    """A random walk against the specification of managed nodes, then flow."""
    allowed = {
        ('unconfigured', 'configure'): 'inactive',
        ('inactive', 'cleanup'): 'unconfigured',
        ('inactive', 'activate'): 'active',
        ('active', 'deactivate'): 'inactive',
    }
    rng = np.random.default_rng(5)
    state, tried = client.state(), set()
    for step in range(40):
        # Every other step is one that is allowed, else the walk would hardly leave a state.
        possible = [name for (source, name) in allowed if source == state]
        choices = possible if step % 2 else ['configure', 'activate', 'deactivate', 'cleanup']
        transition = str(rng.choice(choices))
        tried.add((state, transition))
        assert client.change(transition) is ((state, transition) in allowed)
        state = allowed.get((state, transition), state)
        assert client.state() == state
    assert set(allowed) <= tried
    while state != 'active':
        transition = 'configure' if state == 'unconfigured' else 'activate'
        assert client.change(transition)
        state = allowed[state, transition]
    client.listen('flow')
    client.wait(lambda: client.node.count_subscribers('image_raw'))
    client.settle()
    client.publish(image_message(view(WORLD, 0), 70.0))
    client.flow_of(image_message(view(WORLD, 1), 70.1))


def test_nothing_is_published_while_inactive(client):
    client.listen('flow')
    client.publish(image_message(view(WORLD, 0), 80.0))
    client.flow_of(image_message(view(WORLD, 1), 80.1))
    assert client.change('deactivate')
    client.publish(image_message(view(WORLD, 2), 80.2))
    client.settle()
    assert len(client.got['flow']) == 1
    assert client.wait(lambda: client.told('model') == 'inactive')
    assert client.change('activate')
    client.wait(lambda: client.node.count_subscribers('image_raw'))
    client.settle()
    # The image from before is forgotten.
    client.publish(image_message(view(WORLD, 3), 80.3))
    field = client.flow_of(image_message(view(WORLD, 4), 80.4))
    assert seconds_of(field.header.stamp) == 80.3


def test_compressed_input():
    arguments = ('-p', 'compressed:=true', '-p', 'status_period:=0.2', '-r', 'image_raw:=cam/raw')
    with NodeProcess('--model', 'dis_fast', '--ros-args', *arguments) as node:
        client, topic = node.client, 'cam/raw/compressed'
        client.listen('flow', 'stats')
        client.publish(compressed_message(view(WORLD, 0), 5.0), topic)
        field = client.flow_of(compressed_message(view(WORLD, 1), 5.1), topic)
        np.testing.assert_array_equal(pixels(field.flow), direct(0, 1))
        broken = compressed_message(view(WORLD, 2), 5.2, '.jpg')
        broken.data = broken.data[: len(broken.data) // 2]
        garbage = compressed_message(view(WORLD, 2), 5.25)
        garbage.data = b'garbage'
        client.publish(broken, topic)
        client.publish(garbage, topic)
        assert client.wait(lambda: client.got['stats'][-1].dropped_malformed == 2)
        assert client.wait(lambda: 'malformed' in client.told('camera'))
        field = client.flow_of(compressed_message(view(WORLD, 2), 5.3), topic)
        np.testing.assert_array_equal(pixels(field.flow), direct(1, 2))


def test_garbage_at_start_fails_configuring_and_can_be_cured():
    arguments = ['-p', 'stride:=many', '-p', 'min_interval:=500.0', '-p', 'weigths:=x']
    with NodeProcess('--model', 'nope', '--ros-args', *arguments, wait=False) as node:
        client = node.client
        assert client.wait(lambda: 'model' in client.status)
        assert client.wait(lambda: client.status['model'].level == b'\2')
        told = client.told('model')
        assert all(word in told for word in ('cannot configure', 'stride', 'min_interval', 'nope'))
        assert client.state() == 'unconfigured'
        assert not client.change('configure')
        assert client.set(stride=1) == ''
        assert client.set(min_interval=0.0) == ''
        assert client.set(model='raft_small') == ''
        assert not client.change('configure')
        assert client.wait(lambda: 'raft_small needs weights' in client.told('model'))
        assert client.set(model='dis_fast') == ''
        assert client.change('configure') and client.change('activate')
        assert node.stop(signal.SIGTERM) == 0
    assert 'weigths is unknown and has no effect, did you mean weights?' in node.output
    assert 'Traceback' not in node.output


def test_cameras_share_one_model():
    arguments = ("cameras:=['left', 'right']", 'status_period:=0.2')
    flags = [part for argument in arguments for part in ('-p', argument)]
    with NodeProcess('--model', 'dis_fast', '--ros-args', *flags) as node:
        client = node.client
        client.listen('left/flow', 'right/flow', 'right/stats')
        other = texture(64, 80, seed=9)
        client.publish(image_message(view(WORLD, 0), 5.0), 'left/image_raw')
        client.publish(image_message(view(other, 0), 7.0, 'right_optical'), 'right/image_raw')
        left = client.flow_of(image_message(view(WORLD, 1), 5.1), 'left/image_raw', 'left/flow')
        right = client.flow_of(
            image_message(view(other, 1), 7.1, 'right_optical'), 'right/image_raw', 'right/flow'
        )
        np.testing.assert_array_equal(pixels(left.flow), direct(0, 1))
        assert (right.flow.height, right.header.frame_id) == (64, 'right_optical')
        assert (len(client.got['left/flow']), len(client.got['right/flow'])) == (1, 1)
        assert client.wait(lambda: client.got['right/stats'][-1].received == 2)
        assert {'left', 'right', 'model'} <= set(client.status)
