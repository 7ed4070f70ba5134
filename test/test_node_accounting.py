# SPDX-License-Identifier: Apache-2.0
"""What the node says it did with every image, over activations and without subscribers."""

import pytest

pytest.importorskip('rclpy')

from node_harness import NodeProcess

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
