# SPDX-License-Identifier: Apache-2.0
"""The node with a network (RAFT of random weights): confidence, deadline, stops inside torch."""

import signal

import numpy as np
import pytest

pytest.importorskip('rclpy')
pytest.importorskip('torch')

import torch
from node_harness import NodeProcess, image_message, pixels, texture, view

from daflow_ros import load_estimator
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_sizes import RAFT_TINY

WORLD = texture(128, 160)


@pytest.fixture(scope='module')
def weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp('raft_tiny')
    torch.manual_seed(0)
    RAFT(**RAFT_TINY).save_pretrained(folder)
    return folder


def start(weights, *parameters):
    flags = [part for parameter in parameters for part in ('-p', parameter)]
    return NodeProcess('--model', 'raft_tiny', '--weights', str(weights), '--ros-args', *flags)


def test_flow_confidence_and_iterations(weights):
    with start(weights, 'iterations:=3', 'device:=cpu', 'consistency:=true') as node:
        client = node.client
        client.listen('flow', 'confidence')
        client.publish(image_message(view(WORLD, 0), 10.0))
        field = client.flow_of(image_message(view(WORLD, 1), 10.1))
        direct = load_estimator('raft_tiny', device='cpu', weights=weights, consistency=True)
        expected = direct.estimate(view(WORLD, 0), view(WORLD, 1), iterations=3)
        # Sums in another order on another number of threads.
        np.testing.assert_allclose(pixels(field.flow), expected.flow, rtol=1e-3, atol=1e-2)
        told = pixels(field.confidence)[..., 0]
        assert field.confidence.encoding == '32FC1' and told.shape == expected.confidence.shape
        assert np.abs(told - expected.confidence).mean() < 0.02
        assert client.wait(lambda: client.got['confidence'])
        assert client.got['confidence'][0] == field.confidence
        assert (field.refinement_iterations, field.model) == (3, 'raft_tiny')
        assert field.weights_revision == direct.revision

        # No pair can be done in this time: the least number of iterations is what remains.
        assert client.set(deadline=0.0001) == ''
        for index in range(2, 5):
            field = client.flow_of(image_message(view(WORLD, index), 10 + index / 10))
        assert field.refinement_iterations == 1
        assert client.wait(lambda: 'over the deadline' in client.told('camera'))
        assert client.set(deadline=0.0) == ''
        field = client.flow_of(image_message(view(WORLD, 5), 10.5))
        assert field.refinement_iterations == 3


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_stopped_inside_torch(weights, number):
    with start(weights, 'iterations:=64') as node:
        world = texture(512, 640)
        node.client.listen('flow')
        node.client.publish(image_message(view(world, 0), 10.0))
        node.client.publish(image_message(view(world, 1), 10.1))
        node.client.settle()
        assert node.stop(number) == 0
    assert 'rror' not in node.output and 'Traceback' not in node.output


def test_options_of_networks_do_not_stop_dis():
    with NodeProcess('--model', 'dis', '--ros-args', '-p', 'dtype:=float16') as node:
        assert node.client.state() == 'active'


def test_weights_that_the_model_lacks_are_told():
    with NodeProcess('--model', 'dis', '--weights', 'a.pth', wait=False) as node:
        client = node.client
        assert client.wait(lambda: 'model' in client.status)
        assert client.wait(lambda: 'dis has no weights' in client.told('model'))
        assert client.state() == 'unconfigured'
