# SPDX-License-Identifier: Apache-2.0
"""A flow node in a process of its own, and a client that speaks to it over DDS."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import rclpy
from daflow_ros.msg import FlowField, FlowStats
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import DescribeParameters, GetParameters, SetParameters
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image, PointCloud2
from std_msgs.msg import Header

from daflow_ros.ros.image_bridge import byte_array
from daflow_ros.ros.publishers import stamp
from daflow_ros.ros.transport import use_shipped_profile

FAULTY_NODE = Path(__file__).with_name('faulty_node.py')
TRANSITIONS = {
    'configure': Transition.TRANSITION_CONFIGURE,
    'activate': Transition.TRANSITION_ACTIVATE,
    'deactivate': Transition.TRANSITION_DEACTIVATE,
    'cleanup': Transition.TRANSITION_CLEANUP,
}
TOPICS = {
    'flow': FlowField, 'flow_image': Image, 'confidence': Image, 'flow_viz': Image,
    'flow_viz/compressed': CompressedImage, 'flow_points': PointCloud2, 'stats': FlowStats,
}  # fmt: skip
#: Long, since machines that run tests may be busy; only a failure takes it.
TIMEOUT = 120.0


def texture(height=96, width=128, seed=0):
    """Smooth random uint8 (H, W, 3) RGB, larger by 32 px on each side than asked for."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 255, (height // 4 + 16, width // 4 + 16, 3), dtype=np.uint8)
    return cv2.resize(noise, (width + 64, height + 64), interpolation=cv2.INTER_CUBIC)


def view(world, index, shift=(2, 1)):
    """The world as a camera that moves by ``shift`` px a frame sees it."""
    x, y = 32 - index * shift[0], 32 - index * shift[1]
    return np.ascontiguousarray(world[y : y + world.shape[0] - 64, x : x + world.shape[1] - 64])


def image_message(rgb, seconds, frame_id='camera_optical', encoding='rgb8'):
    return Image(
        header=Header(stamp=stamp(round(seconds * 1e9)), frame_id=frame_id),
        height=rgb.shape[0], width=rgb.shape[1], encoding=encoding, step=rgb.strides[0],
        data=byte_array(rgb),
    )  # fmt: skip


def compressed_message(rgb, seconds, kind='.png'):
    packed = cv2.imencode(kind, rgb[..., ::-1])[1]
    return CompressedImage(
        header=Header(stamp=stamp(round(seconds * 1e9)), frame_id='camera_optical'),
        format=kind[1:], data=byte_array(packed),
    )  # fmt: skip


def pixels(message):
    """(H, W, 2) of a 32FC2 message, read without the package."""
    flat = np.frombuffer(bytes(message.data), '<f4')
    return flat.reshape(message.height, message.width, -1)


def seconds_of(time_message):
    return round(time_message.sec + time_message.nanosec * 1e-9, 6)


class Client:
    """Publishes images, keeps what comes back, calls services; waits by spinning."""

    def __init__(self, domain, namespace):
        self.context = Context()
        rclpy.init(context=self.context, domain_id=domain)
        self.node = rclpy.create_node('client', context=self.context, namespace=namespace)
        self.namespace = namespace
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.got = {}
        self.status = {}
        self.reports = 0
        self._publishers = {}
        self._subscriptions = {}
        self._clients = {}
        self.node.create_subscription(DiagnosticArray, '/diagnostics', self._on_report, 10)

    def _on_report(self, message):
        # Others may use the domain at the same time.
        if message.status and message.status[0].name.startswith(self.namespace + '/'):
            self.reports += 1
            self.status = {item.name.rpartition(': ')[2]: item for item in message.status}

    def told(self, name):
        """The last diagnostic message of that name, '' before the first."""
        return self.status[name].message if name in self.status else ''

    def close(self):
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def wait(self, condition, timeout=TIMEOUT):
        """Spin until the condition holds; its last value."""
        end = time.monotonic() + timeout
        while not (value := condition()) and time.monotonic() < end:
            self.executor.spin_once(timeout_sec=0.05)
        return value

    def listen(self, *topics, prefix='daflow/'):
        """Subscribe to outputs of the node and wait until they are matched."""
        for topic in topics:
            full = prefix + topic
            messages = self.got.setdefault(topic, [])
            self._subscriptions[topic] = self.node.create_subscription(
                TOPICS[topic.rpartition('left/')[2].rpartition('right/')[2]], full,
                messages.append, QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT),
            )  # fmt: skip
            assert self.wait(lambda full=full: self.node.count_publishers(full)), full
        self.settle()

    def forget(self):
        for topic in list(self._subscriptions):
            self.node.destroy_subscription(self._subscriptions.pop(topic))
        self.got.clear()

    def settle(self, seconds=0.4):
        """The other side learns of a match a little later than this one."""
        self.wait(bool, seconds)

    def publish(self, message, topic='image_raw'):
        if topic not in self._publishers:
            publisher = self.node.create_publisher(type(message), topic, qos_profile_sensor_data)
            self._publishers[topic] = publisher
            assert self.wait(publisher.get_subscription_count), f'nobody reads {topic}'
            self.settle()
        self._publishers[topic].publish(message)

    def flow_of(self, message, topic='image_raw', output='flow'):
        """Publish an image and wait for the flow that it completes."""
        before = len(self.got[output])
        self.publish(message, topic)
        assert self.wait(lambda: len(self.got[output]) > before), self.status
        return self.got[output][-1]

    def stats(self):
        """Statistics made after this call."""
        count = len(self.got['stats'])
        assert self.wait(lambda: len(self.got['stats']) > count + 1)
        return self.got['stats'][-1]

    def call(self, kind, service, request, timeout=TIMEOUT):
        name = f'daflow/{service}'
        if name not in self._clients:
            self._clients[name] = self.node.create_client(kind, name)
            assert self.wait(self._clients[name].service_is_ready), name
            self.settle()  # or the answer may come before its reader is known there
        client = self._clients[name]
        assert self.wait(client.service_is_ready), name
        future = client.call_async(request)
        assert self.wait(future.done, timeout), f'no answer from {name}'
        return future.result()

    def set(self, **values):
        """Set parameters; '' for success, else the reason of the first refusal."""
        request = SetParameters.Request(
            parameters=[Parameter(n, value=v).to_parameter_msg() for n, v in values.items()]
        )
        results = self.call(SetParameters, 'set_parameters', request).results
        return next((one.reason or 'refused' for one in results if not one.successful), '')

    def get(self, name):
        response = self.call(GetParameters, 'get_parameters', GetParameters.Request(names=[name]))
        return Parameter.from_parameter_msg(_named(name, response.values[0])).value

    def describe(self, *names):
        request = DescribeParameters.Request(names=list(names))
        return self.call(DescribeParameters, 'describe_parameters', request).descriptors

    def change(self, transition):
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        return self.call(ChangeState, 'change_state', request).success

    def state(self):
        request, attempts = GetState.Request(), 3
        for attempt in range(attempts):
            try:
                return self.call(GetState, 'get_state', request, TIMEOUT / 4).current_state.label
            except AssertionError:  # the answer was lost while the two were still matching
                if attempt == attempts - 1:
                    raise
        return ''

    def wait_for_state(self, label):
        end = time.monotonic() + TIMEOUT
        while (state := self.state()) != label and time.monotonic() < end:
            self.settle(0.1)
        assert state == label, self.status


def _named(name, value):
    from rcl_interfaces.msg import Parameter as Message

    return Message(name=name, value=value)


class NodeProcess:
    """``daflow node`` (or the faulty one) and a client, in a namespace of their own.

    NAMESPACE in an argument becomes that namespace.
    """

    def __init__(self, *arguments, faulty=False, wait=True):
        self.domain, namespace = random.randint(1, 100), f'/test_{random.getrandbits(32):08x}'
        use_shipped_profile()
        env = {**os.environ, 'ROS_DOMAIN_ID': str(self.domain), 'OMP_NUM_THREADS': '1'}
        arguments = [argument.replace('NAMESPACE', namespace) for argument in arguments]
        if '--ros-args' not in arguments:
            arguments.append('--ros-args')
        arguments += ['-r', f'__ns:={namespace}']
        command = [str(FAULTY_NODE)] if faulty else ['-m', 'daflow_ros.cli', 'node']
        self.process = subprocess.Popen(
            [sys.executable, *command, *arguments],
            env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            # A job of a shell in the background ignores SIGINT, and its children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
        self.client = Client(self.domain, namespace)
        self.output = ''
        if wait:
            try:
                self.client.wait_for_state('active')
            except AssertionError:
                self.process.kill()
                print(self.process.communicate()[0])
                self.client.close()
                raise

    def stop(self, *signals):
        """Stop the process; its exit status."""
        for number in signals or (signal.SIGINT,):
            self.process.send_signal(number)
            time.sleep(0.2)
        try:
            self.output, _ = self.process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.output, _ = self.process.communicate()
            return 'did not stop'
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.client.close()
        if self.process.poll() is None:
            status = self.stop()
            if error[0] is None:
                assert status == 0, f'{status}: {self.output}'
        if error[0] is not None:
            print(self.output)
