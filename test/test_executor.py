# SPDX-License-Identifier: Apache-2.0
"""The node's executor leaves the interpreter to its callbacks."""

import random
import threading
import time

import pytest

pytest.importorskip('rclpy')

import rclpy
from rclpy.task import Future

from daflow_ros.ros import executor as executor_module
from daflow_ros.ros.executor import CallbackExecutor


@pytest.fixture
def node():
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=random.randint(1, 100))
    node = rclpy.create_node('busy', context=context, enable_rosout=False)
    yield node
    node.destroy_node()
    context.try_shutdown()


def test_a_callback_that_waits_for_a_thread_is_offered_again_after_a_pause(node, monkeypatch):
    monkeypatch.setattr(executor_module, 'PAUSE', 0.3)
    executor = CallbackExecutor(num_threads=2, context=node.context)
    executor.add_node(node)
    done = []
    timer = node.create_timer(0.01, lambda: done.append(timer.cancel()))
    handler = executor.wait_for_ready_callbacks(5.0)[0]
    for _ in range(2):
        executor.wake()
        start = time.monotonic()
        assert executor.wait_for_ready_callbacks(5.0)[0] is handler
        assert time.monotonic() - start >= 0.3
    handler()
    assert len(done) == 1
    # What has run is not remembered, and what is new is not delayed for it.
    timer.reset()
    second = executor.wait_for_ready_callbacks(5.0)[0]
    assert second is not handler
    assert executor._offered == {second}
    second()
    executor.shutdown(timeout_sec=5)


def test_callbacks_and_coroutines_run(node):
    executor = CallbackExecutor(num_threads=2, context=node.context)
    executor.add_node(node)
    spinning = threading.Thread(target=executor.spin, daemon=True)
    spinning.start()
    gate, events = Future(executor=executor), []

    async def patient():
        events.append('begin')
        events.append(await gate)

    task = executor.create_task(patient)
    ticks = node.create_timer(0.01, lambda: events.append('tick'))
    limit = time.monotonic() + 20
    while events.count('tick') < 5 and time.monotonic() < limit:
        time.sleep(0.01)
    assert not task.done()
    gate.set_result('end')
    while not task.done() and time.monotonic() < limit:
        time.sleep(0.01)
    ticks.cancel()
    assert [event for event in events if event != 'tick'] == ['begin', 'end']
    # As the node does: the end of the context ends the spinning, and then the threads end.
    node.context.try_shutdown()
    spinning.join(5)
    executor.shutdown(timeout_sec=5)
