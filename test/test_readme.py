# SPDX-License-Identifier: Apache-2.0
"""The examples of the README, as a reader runs them."""

import os
import re
import select
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

README = Path(__file__).resolve().parents[1] / 'README.md'


def example(word):
    """The one Python block of the README that has a word."""
    blocks = re.findall(r'```python\n(.*?)```', README.read_text(), re.DOTALL)
    [block] = [block for block in blocks if word in block]
    return block


def test_python_example():
    rng = np.random.default_rng(0)
    image1, image2 = (rng.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(2))
    names = {'image1': image1, 'image2': image2}
    exec(example('load_estimator'), names)
    estimate = names['estimate']
    assert estimate.flow.shape == (64, 96, 2) and estimate.flow.dtype == np.float32
    assert estimate.confidence.shape == (64, 96)


def test_reader_of_a_live_node():
    pytest.importorskip('rclpy')
    pytest.importorskip('daflow_ros.msg')
    from node_harness import NodeProcess, image_message, texture, view

    world = texture()
    with NodeProcess('--model', 'dis') as node:
        remap = f'/daflow/flow:={node.client.namespace}/daflow/flow'
        reader = subprocess.Popen(
            [sys.executable, '-u', '-c', example('FlowField'), '--ros-args', '-r', remap],
            env={**os.environ, 'ROS_DOMAIN_ID': str(node.domain)},
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            # The first frames pass by: nothing is computed before the reader is there.
            for index in range(60):
                node.client.publish(image_message(view(world, index % 2), 10.0 + index / 10))
                if select.select([reader.stdout], [], [], 0.5)[0]:
                    break
            line = reader.stdout.readline()
        finally:
            reader.kill()
            reader.wait()
    u, v = map(float, re.findall(r'-?\d+\.?\d*', line))
    # To and fro.
    assert (u, v) == pytest.approx((2, 1) if u > 0 else (-2, -1), abs=0.5), line
