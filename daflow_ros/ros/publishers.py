# SPDX-License-Identifier: Apache-2.0
"""Messages made of flow, each only for the topics that somebody subscribes to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField
from std_msgs.msg import Header

from daflow_ros.estimators import FlowEstimate
from daflow_ros.flow.colorwheel import draw_arrows, flow_to_color, overlay
from daflow_ros.msg import FlowField, FlowStats
from daflow_ros.ros.conversions import array_to_image, point_cloud2, rgb_to_compressed
from daflow_ros.ros.flow_statistics import Snapshot
from daflow_ros.ros.frame_buffer import Pair
from daflow_ros.ros.parameters import NodeParameters

#: Reliable, so that subscribers of either kind match; recorders of images ask for best effort.
OUTPUT_QOS = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)

_OUTPUTS: dict[str, Any] = {
    'flow': FlowField,
    'flow_image': Image,
    'confidence': Image,
    'flow_viz': Image,
    'flow_viz/compressed': CompressedImage,
    'flow_points': PointCloud2,
}
_POINT_FIELDS = ('x', 'y', 'z', 'u', 'v', 'confidence')


@dataclass(frozen=True)
class FlowResult:
    """Flow of a pair with what else its messages tell."""

    pair: Pair
    estimate: FlowEstimate
    model: str
    revision: str
    end_to_end_latency: float


class FlowPublishers:
    """Publishers of one camera; silent until the lifecycle node is active.

    Args:
        node: a LifecycleNode.
        prefix: '' or 'NAME/', put between the node's name and the topic.
    """

    def __init__(self, node: Any, prefix: str) -> None:
        self._node = node
        self._publishers = {
            name: self._create(kind, f'~/{prefix}{name}') for name, kind in _OUTPUTS.items()
        }
        self._stats = self._create(FlowStats, f'~/{prefix}stats')

    def _create(self, kind: Any, topic: str) -> Any:
        return self._node.create_lifecycle_publisher(
            kind,
            topic,
            # A copy each: overrides are written into the profile.
            QoSProfile(depth=OUTPUT_QOS.depth, reliability=OUTPUT_QOS.reliability),
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    @property
    def flow_topic(self) -> str:
        """Resolved name of the topic of the flow itself."""
        return str(self._publishers['flow'].topic_name)

    def wanted(self, *names: str) -> bool:
        """Whether somebody subscribes to one of these outputs; to any, without names."""
        chosen = names or tuple(self._publishers)
        return any(self._publishers[name].get_subscription_count() > 0 for name in chosen)

    def stats_wanted(self) -> bool:
        """Whether somebody subscribes to the statistics."""
        return bool(self._stats.get_subscription_count())

    def publish(self, result: FlowResult, parameters: NodeParameters) -> None:
        """Publish a result on every topic that is listened to, the flow itself first."""
        estimate, reference = result.estimate, result.pair.reference
        header = Header(stamp=stamp(reference.stamp_ns), frame_id=reference.frame_id)
        confidence = Image()
        if estimate.confidence is not None and self.wanted('flow', 'confidence'):
            confidence = array_to_image(estimate.confidence, '32FC1', header)
        if self.wanted('flow', 'flow_image'):
            flow = array_to_image(estimate.flow, '32FC2', header)
            if self.wanted('flow'):
                self._send('flow', flow_field(result, header, flow, confidence))
            if self.wanted('flow_image'):
                self._send('flow_image', flow)
        if confidence.data and self.wanted('confidence'):
            self._send('confidence', confidence)
        if self.wanted('flow_points'):
            self._send('flow_points', flow_points(estimate, header, parameters.points_step))
        if self.wanted('flow_viz', 'flow_viz/compressed'):
            picture = draw_flow(estimate.flow, reference.image, parameters)
            if self.wanted('flow_viz'):
                self._send('flow_viz', array_to_image(picture, 'rgb8', header))
            if self.wanted('flow_viz/compressed'):
                jpeg = rgb_to_compressed(picture, header, parameters.viz_jpeg_quality)
                self._send('flow_viz/compressed', jpeg)

    def publish_stats(self, snapshot: Snapshot, now: Any) -> None:
        """Publish the counters; ``now`` is a builtin_interfaces/Time."""
        self._stats.publish(flow_stats(snapshot, now))

    def destroy(self) -> None:
        """Take the topics down."""
        for publisher in (*self._publishers.values(), self._stats):
            self._node.destroy_lifecycle_publisher(publisher)

    def _send(self, name: str, message: Any) -> None:
        self._publishers[name].publish(message)


def stamp(nanoseconds: int) -> Any:
    """``builtin_interfaces/Time`` of a time in ns."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return Time(sec=seconds, nanosec=rest)


def flow_field(result: FlowResult, header: Header, flow: Image, confidence: Image) -> FlowField:
    """``FlowField`` of a result; its images are given since other topics share them."""
    reference, target = result.pair.reference, result.pair.target
    # The pair tells, not the parameter, which may have changed since the pair was made.
    backward = target.stamp_ns < reference.stamp_ns
    return FlowField(
        header=header,
        target_stamp=stamp(target.stamp_ns),
        flow=flow,
        confidence=confidence,
        direction=FlowField.BACKWARD if backward else FlowField.FORWARD,
        model=result.model,
        weights_revision=result.revision,
        refinement_iterations=result.estimate.iterations,
        diffusion_steps=result.estimate.diffusion_steps,
        processing_latency=result.estimate.processing_time,
        end_to_end_latency=result.end_to_end_latency,
    )


def flow_points(estimate: FlowEstimate, header: Header, step: int) -> PointCloud2:
    """Flow on a grid: float32 x, y (px), z (0), u, v (px), confidence (NaN where none is told)."""
    height, width = estimate.flow.shape[:2]
    start_y, start_x = min(step // 2, height // 2), min(step // 2, width // 2)
    y, x = np.mgrid[start_y:height:step, start_x:width:step]
    points = np.zeros((y.size, len(_POINT_FIELDS)), dtype=np.float32)
    points[:, 0], points[:, 1] = x.ravel(), y.ravel()
    points[:, 3:5] = estimate.flow[y, x].reshape(-1, 2)
    points[:, 5] = np.nan if estimate.confidence is None else estimate.confidence[y, x].ravel()
    fields = [
        PointField(name=name, offset=4 * index, datatype=PointField.FLOAT32, count=1)
        for index, name in enumerate(_POINT_FIELDS)
    ]
    return point_cloud2().create_cloud(header, fields, points)


def draw_flow(
    flow: NDArray[np.float32], image: NDArray[np.uint8], parameters: NodeParameters
) -> NDArray[np.uint8]:
    """Colour wheel, over the camera image and with arrows where the parameters ask for them.

    Returns:
        uint8 (H, W, 3) RGB.
    """
    picture = flow_to_color(flow, parameters.viz_max_flow or None)
    if parameters.viz_overlay > 0:
        picture = overlay(image, picture, 1 - parameters.viz_overlay)
    if parameters.viz_arrows > 0:
        color = (0, 255, 0) if parameters.viz_overlay > 0 else (0, 0, 0)
        picture = draw_arrows(picture, flow, parameters.viz_arrows, color)
    return picture


def flow_stats(snapshot: Snapshot, now: Any) -> FlowStats:
    """``FlowStats`` of a camera's statistics."""
    message = FlowStats(
        header=Header(stamp=now, frame_id=snapshot.frame_id),
        rate=snapshot.rate,
        input_rate=snapshot.input_rate,
        received=snapshot.received,
        processed=snapshot.processed,
        published=snapshot.published,
        mean_flow=snapshot.mean_flow,
        mean_confidence=snapshot.mean_confidence,
    )
    for cause, count in snapshot.dropped.items():
        setattr(message, f'dropped_{cause.value}', count)
    message.latency_p50, message.latency_p95, message.latency_p99 = snapshot.latency
    message.processing_p50, message.processing_p95 = snapshot.processing
    return message
