# SPDX-License-Identifier: Apache-2.0
"""One camera, from its image messages to its flow messages."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks, UnsupportedEventTypeError
from rclpy.qos import QoSPresetProfiles, QoSProfile, qos_policy_name_from_kind
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image

from daflow_ros.datasets.encodings import EncodingError, UnknownEncodingError
from daflow_ros.estimators import FlowEstimate
from daflow_ros.ros.conversions import compressed_to_rgb, image_to_rgb
from daflow_ros.ros.flow_statistics import FlowStatistics
from daflow_ros.ros.frame_buffer import Drop, Frame, FrameBuffer, Pair
from daflow_ros.ros.model_server import ModelServer
from daflow_ros.ros.parameters import BACKWARD, NodeParameters
from daflow_ros.ros.publishers import FlowPublishers, FlowResult


class Camera:
    """Subscription, frame buffer, statistics and publishers of one camera.

    An image goes :meth:`on_image` -> frame buffer -> :meth:`take` -> model server ->
    :meth:`finished` -> publishers. The first step runs on the executor, the rest on the server's
    thread.

    Args:
        node: the LifecycleNode that owns it.
        name: see the parameter ``cameras``.
        server: runs the model.
        parameters: in force until :meth:`configure` is called.
    """

    def __init__(
        self, node: Any, name: str, server: ModelServer, parameters: NodeParameters
    ) -> None:
        prefix = f'{name}/' if name else ''
        self.name = name or 'camera'
        self.incompatible_qos = ''
        # Remapping applies to image_raw; the transports lie below what it is remapped to.
        self.topic = node.resolve_topic_name(f'{prefix}image_raw')
        if parameters.compressed:
            self.topic = node.resolve_topic_name(f'{self.topic}/compressed')
        self.statistics = FlowStatistics()
        self.publishers = FlowPublishers(node, prefix)
        self._node = node
        self._server = server
        self._subscription: Any = None
        # That a pair in work came over: the node may be deactivated and activated meanwhile.
        self._worked_for: Any = None
        self._idle_told = False
        self._group = MutuallyExclusiveCallbackGroup()
        self._buffer = FrameBuffer(self.statistics.dropped)
        self.configure(parameters)

    def configure(self, parameters: NodeParameters) -> None:
        """Put parameters that can change at run time in force."""
        self._parameters = parameters
        self._buffer.configure(
            parameters.stride,
            parameters.min_interval,
            parameters.max_interval,
            parameters.direction == BACKWARD,
        )

    def subscribe(self) -> None:
        """Begin to receive images."""
        kind = CompressedImage if self._parameters.compressed else Image
        create = partial(
            self._node.create_subscription,
            kind,
            self.topic,
            self.on_image,
            callback_group=self._group,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )
        events = SubscriptionEventCallbacks(
            message_lost=self._on_lost, incompatible_qos=self._on_incompatible_qos
        )
        try:
            self._subscription = create(qos_profile=_sensor_qos(), event_callbacks=events)
        except UnsupportedEventTypeError:  # not every middleware tells of lost messages
            self._subscription = create(qos_profile=_sensor_qos())
        self.statistics.subscribed()
        self._idle_told = False

    def unsubscribe(self) -> None:
        """Receive no more images, and forget those that wait."""
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        self._buffer.clear('the node was deactivated')

    def on_image(self, message: Any) -> None:
        """Decode an image message and put it into the frame buffer."""
        self.statistics.received(message.header.frame_id)
        if self._parameters.idle_without_subscribers and not self.publishers.wanted():
            reason = 'nobody subscribes to an output'
            self.statistics.dropped(Drop.IDLE, reason)
            self._buffer.clear(reason)
            self._tell_idle()
            return
        try:
            if self._parameters.compressed:
                image, encoding = compressed_to_rgb(message), message.format
            else:
                image, encoding = image_to_rgb(message), message.encoding
        except UnknownEncodingError as error:
            self.statistics.dropped(Drop.UNKNOWN_ENCODING, str(error))
        except (EncodingError, MemoryError) as error:
            self.statistics.dropped(Drop.MALFORMED, str(error))
        else:
            stamp = message.header.stamp
            # Not rclpy's Time, which raises on negative stamps.
            stamp_ns = stamp.sec * 1_000_000_000 + stamp.nanosec
            self._buffer.push(Frame(stamp_ns, image, message.header.frame_id, encoding))
            self._server.notify()

    def take(self) -> Pair | None:
        """See :class:`~daflow_ros.ros.model_server.Client`."""
        self._worked_for = self._subscription
        return self._buffer.take()

    def finished(self, pair: Pair, estimate: FlowEstimate) -> None:
        """Publish the flow of a pair, unless the node was deactivated meanwhile."""
        seconds, deadline = estimate.processing_time, self._parameters.deadline
        if self._worked_for is None or self._worked_for is not self._subscription:
            self.statistics.processed(seconds, deadline)
            return
        latency = (self._node.get_clock().now().nanoseconds - pair.newer.stamp_ns) * 1e-9
        model = self._server.estimator
        result = FlowResult(pair, estimate, model.name, model.revision, latency)
        self.publishers.publish(result, self._parameters)
        mean_flow = mean_confidence = float('nan')
        if self.publishers.stats_wanted():
            mean_flow = float(np.hypot(estimate.flow[..., 0], estimate.flow[..., 1]).mean())
            if estimate.confidence is not None:
                mean_confidence = float(estimate.confidence.mean())
        # Not before: a pair that cannot be published is counted as failed.
        self.statistics.processed(seconds, deadline)
        self.statistics.published(latency, mean_flow, mean_confidence)

    def failed(self, pair: Pair, error: Exception) -> None:
        """Count and tell what went wrong with a pair."""
        if not self._node.context.ok():
            return
        self.statistics.dropped(Drop.FAILED, f'{type(error).__name__}: {error}')
        self._node.get_logger().error(
            f'{self.name}: no flow for the image of {pair.newer.stamp_ns * 1e-9:.3f} s: {error}',
            throttle_duration_sec=5.0,
        )

    def _tell_idle(self) -> None:
        """Log, once an activation, why nothing comes."""
        if not self._idle_told:
            self._idle_told = True
            self._node.get_logger().info(
                f'{self.name}: idle until somebody subscribes to an output, such as '
                f'{self.publishers.flow_topic}'
            )

    def _on_lost(self, event: Any) -> None:
        lost = event.total_count_change
        self.statistics.dropped(Drop.LOST, f'the transport lost {lost} images', lost)

    def _on_incompatible_qos(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        self.incompatible_qos = str(policy).rpartition('.')[2]
        self._node.get_logger().error(
            f'{self.topic}: a publisher offers a {self.incompatible_qos} that does not serve what '
            'this node asks for; no images will come from it'
        )


def _sensor_qos() -> QoSProfile:
    # A copy: overrides are written into the profile.
    sensor = QoSPresetProfiles.SENSOR_DATA.value
    return QoSProfile(
        depth=sensor.depth,
        history=sensor.history,
        reliability=sensor.reliability,
        durability=sensor.durability,
    )
