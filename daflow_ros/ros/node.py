# SPDX-License-Identifier: Apache-2.0
"""The flow node: parameters, lifecycle and timers around cameras and one model.

What happens to an image is in :mod:`daflow_ros.ros.camera`.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from daflow_ros.estimators import FlowEstimator, default_estimator, load_estimator
from daflow_ros.ros import parameters as params
from daflow_ros.ros.camera import Camera
from daflow_ros.ros.conversions import bridge_choice
from daflow_ros.ros.diagnostics import OK, WARN, Input, camera_status, model_status
from daflow_ros.ros.executor import CallbackExecutor
from daflow_ros.ros.flow_statistics import Snapshot
from daflow_ros.ros.model_server import ModelServer
from daflow_ros.ros.parameters import NodeParameters, ParameterError
from daflow_ros.ros.transport import own_segment_size, remove_own_files

#: Seconds that a transition or the end of the process waits for the pair in work.
STOP_TIMEOUT = 5.0
#: Least time between log lines about the same camera, s.
TELL_PERIOD = 10.0

Load = Callable[..., FlowEstimator]
SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class FlowNode(LifecycleNode):
    """Dense optical flow of one or more cameras.

    Args:
        load: makes the estimator, as :func:`daflow_ros.load_estimator`.
        options: of the LifecycleNode.
    """

    def __init__(self, load: Load = load_estimator, **options: Any) -> None:
        super().__init__('daflow', **options)
        self._load = load
        self._server: ModelServer | None = None
        self._cameras: list[Camera] = []
        self._reported: dict[str, Snapshot] = {}
        self._told: dict[str, float] = {}
        self._state = 'unconfigured'
        self._configure_error = ''
        self._refused = params.declare(self)
        for line in params.unknown_overrides(self):
            self.get_logger().warning(line)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # A steady clock and a group of its own: reports come even if the rest is stuck, or
        # use_sim_time waits for a /clock that never comes.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._report_timer = self.create_timer(
            self.get_parameter('status_period').value,
            self._report,
            callback_group=MutuallyExclusiveCallbackGroup(),
            clock=steady,
        )
        self._start_timer = None
        if self.get_parameter('autostart').value:
            # In the group of the lifecycle services: two transitions at once are not possible.
            self._start_timer = self.create_timer(0.0, self._autostart, clock=steady)

    # Lifecycle

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Check the parameters, load the model, create the topics."""
        self._state = 'configuring'
        try:
            parameters = params.read(self, refused=self._refused)
            auto = parameters.model == params.AUTO_MODEL
            model = self._load(
                default_estimator() if auto else parameters.model,
                device=parameters.device,
                weights=parameters.weights or None,
                **parameters.estimator_options,
            )
            self._server = ModelServer(model)
            for camera_name in parameters.cameras:
                camera = Camera(self, camera_name, self._server, parameters)
                self._cameras.append(camera)
                self._server.add(camera)
        except Exception as error:  # rclpy would swallow what a transition raises
            if self.context.ok():  # else the process is about to end, and the error comes of it
                self._configure_error = str(error)
                self.get_logger().error(f'cannot configure: {error}')
            self._tear_down()
            self._state = 'unconfigured'
            return FAILURE
        self._configure_error = ''
        self._apply(parameters)
        self._server.start()
        self._state = 'inactive'
        self.get_logger().info(
            f'model {model.name} ({model.revision or "no weights"}) on {model.device}; '
            f'{bridge_choice().reason}'
        )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Begin to receive images."""
        try:
            for camera in self._cameras:
                # What was dropped before is no news for the first report.
                self._reported[camera.name] = camera.statistics.snapshot()
                camera.subscribe()
                self.get_logger().info(f'{camera.name}: images from {camera.topic}')
        except Exception as error:  # as above: a QoS override that is none, for example
            self.get_logger().error(f'cannot activate: {error}')
            for camera in self._cameras:
                camera.unsubscribe()
            return FAILURE
        self._state = 'active'
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Receive and publish no more; the model stays loaded."""
        for camera in self._cameras:
            camera.unsubscribe()
        self._state = 'inactive'
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and take the topics down."""
        self._tear_down()
        self._state = 'unconfigured'
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As cleaning up, for good."""
        self._tear_down()
        self._state = 'finalized'
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Return to unconfigured after a transition raised."""
        self._tear_down()
        self._state = 'unconfigured'
        return SUCCESS

    def _LifecycleNodeMixin__change_state(  # noqa: N802
        self, transition_id: int
    ) -> TransitionCallbackReturn:
        """Refuse a transition that the state does not allow.

        Up to Jazzy, rclpy lets the error out of the service: no answer, and the end of the node.
        """
        try:
            return super()._LifecycleNodeMixin__change_state(transition_id)
        except RuntimeError as error:
            if self.context.ok():
                self.get_logger().error(f'transition {transition_id} is not possible: {error}')
            return TransitionCallbackReturn.ERROR

    def stop(self) -> bool:
        """Stop the model at the end of the process; False while it loads or has a pair in work."""
        for timer in (self._report_timer, self._start_timer):
            if timer is not None:
                timer.cancel()
        if self._state == 'configuring':
            return False
        return self._server is None or self._server.stop(STOP_TIMEOUT)

    def _autostart(self) -> None:
        self._start_timer.cancel()
        if self.trigger_configure() == SUCCESS:
            self.trigger_activate()

    def _tear_down(self) -> None:
        for camera in self._cameras:
            camera.unsubscribe()
        if self._server is not None and not self._server.stop(STOP_TIMEOUT):
            self.get_logger().warning('the model is still at work on a pair; its flow is lost')
        self._server = None
        for camera in self._cameras:
            camera.publishers.destroy()
        self._cameras = []
        self._reported = {}

    # Parameters

    def _on_set_parameters(self, changes: Sequence[Any]) -> SetParametersResult:
        """Refuse values that the node cannot work with, or not in its present state."""
        known = {item.name: item.value for item in changes if item.name in params.PARAMETERS}
        try:
            for name, value in known.items():
                params.check(name, value)
                if params.PARAMETERS[name].needs_cleanup and self._server is not None:
                    raise ParameterError(
                        f'{name} can be set only while the node is unconfigured: '
                        'deactivate it and clean it up first'
                    )
            if params.is_valid(self):
                params.read(self, known)  # what the values mean together
        except ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_parameters_set(self, changes: Sequence[Any]) -> None:
        for change in changes:
            self._refused.pop(change.name, None)
        if self._server is not None:
            self._apply(params.read(self))

    def _apply(self, parameters: NodeParameters) -> None:
        assert self._server is not None
        self._server.iterations = parameters.iterations
        self._server.deadline = parameters.deadline
        for camera in self._cameras:
            camera.configure(parameters)

    # Reports

    def _report(self) -> None:
        try:
            self._publish_report()
        except RuntimeError:
            if self.context.ok():
                raise

    def _publish_report(self) -> None:
        """Publish /diagnostics and, while active, ~/stats."""
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        array.status.append(self._model_status())
        if self._state == 'active':
            for camera in list(self._cameras):
                snapshot = camera.statistics.snapshot()
                camera.publishers.publish_stats(snapshot, array.header.stamp)
                status = self._camera_status(camera, snapshot)
                array.status.append(status)
                self._reported[camera.name] = snapshot
                self._tell(camera.name, status)
        self._diagnostics.publish(array)

    def _tell(self, name: str, status: Any) -> None:
        """Log a problem of a camera too, for those who watch no /diagnostics."""
        now = time.monotonic()
        if status.level == OK or now - self._told.get(name, -TELL_PERIOD) < TELL_PERIOD:
            return
        self._told[name] = now
        # Two calls, since rclpy refuses another severity at the same line of source.
        if status.level == WARN:
            self.get_logger().warning(f'{name}: {status.message}')
        else:
            self.get_logger().error(f'{name}: {status.message}')

    def _model_status(self) -> Any:
        server, model, busy_for, longest = self._server, {}, 0.0, 0.0
        if server is not None:
            estimator = server.estimator
            busy_for, longest = server.busy_for, server.longest
            model = {
                'model': estimator.name,
                'weights revision': estimator.revision,
                'device': estimator.device,
                'conversions': bridge_choice().reason,
            }
        name = f'{self.get_fully_qualified_name()}: model'
        return model_status(name, self._state, self._configure_error, model, busy_for, longest)

    def _camera_status(self, camera: Camera, snapshot: Snapshot) -> Any:
        clock_missing = (
            self.get_parameter('use_sim_time').value and not self.get_clock().now().nanoseconds
        )
        source = Input(
            topic=camera.topic,
            publishers=self.count_publishers(camera.topic),
            incompatible_qos=camera.incompatible_qos,
            segment_size=own_segment_size(),
            clock_missing=bool(clock_missing),
        )
        return camera_status(
            f'{self.get_fully_qualified_name()}: {camera.name}',
            snapshot,
            self._reported.get(camera.name),
            source,
            self.get_parameter('image_timeout').value,
            self.get_parameter('deadline').value,
        )


def run_node(arguments: Sequence[str], load: Load = load_estimator) -> int:
    """Run the node until it is told to stop (SIGINT, SIGTERM, shutdown of the context).

    Args:
        arguments: of the process, program name first, ``--ros-args`` and on among them.
        load: see :class:`FlowNode`.

    Returns:
        Exit status: 0 after a stop that was asked for.
    """
    rclpy.init(args=list(arguments))
    node = FlowNode(load)
    executor = CallbackExecutor(num_threads=4)
    executor.add_node(node)
    while node.context.ok():
        try:
            executor.spin_once()
        except (KeyboardInterrupt, ExternalShutdownException):
            break
        except Exception as error:  # one callback's fault must not end the node
            if node.context.ok():  # else the executor found the context gone
                node.get_logger().error(f'a callback failed: {type(error).__name__}: {error}')
    # A second Ctrl-C must not break the clean-up, which takes at most STOP_TIMEOUT.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not node.stop():
        # Python would wait for a model that is being loaded or has a long pair, or crash under it.
        rclpy.try_shutdown()
        remove_own_files()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
    executor.shutdown(timeout_sec=STOP_TIMEOUT)
    node.destroy_node()
    rclpy.try_shutdown()
    return 0
