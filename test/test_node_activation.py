# SPDX-License-Identifier: Apache-2.0
"""What the node tells after an activation: of images that do not come, and of nothing to do."""

import pytest

pytest.importorskip('rclpy')

from node_harness import NodeProcess, image_message, texture, view

FAST_STATUS = ('--ros-args', '-p', 'status_period:=0.2')


def test_silence_counts_from_the_activation():
    """A node that a lifecycle manager activates late has not missed images by then."""
    arguments = ('-p', 'autostart:=false', '-p', 'image_timeout:=3.0')
    with NodeProcess('--model', 'dis_fast', *FAST_STATUS, *arguments, wait=False) as node:
        client = node.client
        assert client.change('configure')
        client.settle(4)
        assert 'camera' not in client.status
        assert client.change('activate')
        assert client.wait(lambda: 'camera' in client.status)
        assert client.status['camera'].level == b'\0', client.told('camera')
        assert client.wait(lambda: 'no image' in client.told('camera'))


def test_being_idle_is_logged_once_an_activation():
    world = texture()
    with NodeProcess('--model', 'dis_fast', *FAST_STATUS) as node:
        client = node.client
        client.listen('stats')
        for count in (3, 6):
            for index in range(3):
                client.publish(image_message(view(world, index), 10 * count + index / 10))
            assert client.wait(lambda count=count: client.stats().dropped_idle == count)
            assert client.change('deactivate') and client.change('activate')
            client.wait(lambda: client.node.count_subscribers('image_raw'))
            client.settle()
        client.listen('flow')
        client.publish(image_message(view(world, 0), 100.0))
        client.flow_of(image_message(view(world, 1), 100.1))
        assert node.stop() == 0
    line = 'camera: idle until somebody subscribes to an output, such as '
    line += f'{client.namespace}/daflow/flow\n'
    assert node.output.count(line) == node.output.count('idle until') == 2
