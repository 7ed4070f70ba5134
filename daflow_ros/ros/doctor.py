# SPDX-License-Identifier: Apache-2.0
"""What keeps flow from coming: each check says what it found, and how to cure what is wrong."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from daflow_ros.ros import transport

#: A 1280x720 rgb8 image, bytes: below this segment size camera images are lost.
IMAGE_SIZE = 1280 * 720 * 3
IMAGE_TYPES = ('sensor_msgs/msg/Image', 'sensor_msgs/msg/CompressedImage')
CLEAN_COMMAND = 'fastdds shm clean'


class Level(IntEnum):
    """How a finding is meant."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: ERROR where no flow will come, WARN where it may be late, lossy or slow.
        subject: what was looked at.
        text: what was found.
        cure: what to do about it, empty where all is well.
    """

    level: Level
    subject: str
    text: str
    cure: str = ''


def ros_distribution() -> str:
    """Name of the distribution, and whether it is sourced or from wheels; '' for none."""
    # The wheels' packages are named after their distribution; a sourced one says its name.
    prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
    sourced = [p for p in prefixes if (Path(p) / 'share' / 'rclpy').is_dir() and p != sys.prefix]
    if sourced:
        return f'{os.environ.get("ROS_DISTRO", "unnamed")} of {sourced[0]}'
    for distribution in importlib.metadata.distributions():
        parts = str(distribution.metadata['Name']).replace('_', '-').split('-')
        if len(parts) == 3 and parts[0] == 'ros' and parts[2] == 'rclpy':
            return f'{parts[1]} wheels of {sys.prefix}'
    return ''


def check_ros() -> Iterator[Finding]:
    """ROS, its messages, ours, and that wheels and a distribution are not mixed."""
    found = ros_distribution()
    try:
        importlib.import_module('rclpy')
    except ImportError as error:
        yield Finding(
            Level.ERROR, 'ROS', f'rclpy cannot be imported: {error}',
            'source a distribution (source /opt/ros/$ROS_DISTRO/setup.bash), or install the '
            'wheels: pip install -r requirements-ros.txt',
        )  # fmt: skip
        return
    rclpy_file = Path(sys.modules['rclpy'].__file__ or '').resolve()
    in_environment = rclpy_file.is_relative_to(Path(sys.prefix).resolve())
    if found and in_environment and not found.endswith(f'wheels of {sys.prefix}'):
        yield Finding(
            Level.WARN, 'ROS', f'a distribution is sourced ({found}), but rclpy is the wheel of '
            f'{sys.prefix}', 'use one of them: a new shell without sourcing, or no virtual '
            'environment with the wheels',
        )  # fmt: skip
    else:
        yield Finding(Level.OK, 'ROS', found or f'rclpy of {rclpy_file.parent}')
    try:
        importlib.import_module('daflow_ros.msg').FlowField()
    except Exception as error:
        # Type support is loaded here: what is wrong may be a library as well as a module.
        yield Finding(
            Level.ERROR, 'messages', f'daflow_ros.msg is not usable: {error}',
            'build the package: colcon build, pip install . or make develop; then source its '
            'setup file',
        )  # fmt: skip
    else:
        yield Finding(Level.OK, 'messages', 'daflow_ros.msg')


def check_rmw() -> Iterator[Finding]:
    """Which middleware is loaded."""
    from rclpy.utilities import get_rmw_implementation_identifier

    name = get_rmw_implementation_identifier()
    text = f'{name}, domain {os.environ.get("ROS_DOMAIN_ID") or 0}'
    if name.startswith('rmw_fastrtps'):
        yield Finding(Level.OK, 'middleware', text)
    else:
        yield Finding(
            Level.WARN, 'middleware', f'{text}: the shipped profile is for Fast DDS and has no '
            'effect on this one', 'see that its buffers hold an image, or '
            'export RMW_IMPLEMENTATION=rmw_fastrtps_cpp',
        )  # fmt: skip


def check_profile() -> Iterator[Finding]:
    """The Fast DDS profile in force and the shared-memory segment that it gives."""
    variable = transport.profile_variable()
    profile = transport.user_profile()
    own = f'export {variable}={transport.share_file("config", "fastdds.xml")}'
    if profile is None:
        yield Finding(
            Level.WARN, 'Fast DDS profile', f'none named: other processes of this shell have a '
            f'segment of {_megabytes(transport.DEFAULT_SEGMENT_SIZE)}, and images from them are '
            'lost (the launch files and `daflow` name the profile by themselves)',
            f'give it to the camera driver too: {own}',
        )  # fmt: skip
        return
    if not os.environ.get(variable):
        yield Finding(
            Level.WARN, 'Fast DDS profile', f'{profile} is named by a variable that this Fast DDS '
            'does not read or soon will not', own,
        )  # fmt: skip
    try:
        size = transport.segment_size(profile)
    except ValueError as error:
        yield Finding(Level.ERROR, 'Fast DDS profile', str(error), own)
        return
    if size is None:
        yield Finding(
            Level.WARN, 'Fast DDS profile', f'{profile} switches shared memory off: large images '
            'go through UDP and some are lost', own,
        )  # fmt: skip
    elif size < IMAGE_SIZE:
        yield Finding(
            Level.WARN, 'Fast DDS profile', f'{profile}: a segment of {_megabytes(size)} is '
            'smaller than a 1280x720 image, which will be lost', own,
        )  # fmt: skip
    else:
        yield Finding(Level.OK, 'Fast DDS profile', f'{profile}, segment {_megabytes(size)}')


def check_segment() -> Iterator[Finding]:
    """The segment that Fast DDS made for this process, which names the shipped profile."""
    size = transport.own_segment_size()
    if size is None:
        yield Finding(
            Level.WARN, 'segment', 'Fast DDS uses no shared memory in this process',
            f'see the profile, and that {transport.SHARED_MEMORY} can be written',
        )  # fmt: skip
    else:
        level = Level.OK if size >= IMAGE_SIZE else Level.WARN
        cure = '' if level == Level.OK else 'see the profile above'
        yield Finding(level, 'segment', f'{_megabytes(size)} in this process', cure)


def check_shared_memory(folder: Path = transport.SHARED_MEMORY) -> Iterator[Finding]:
    """Room for segments, and segments that killed processes have left."""
    memory = transport.shared_memory(folder)
    if memory is None:
        yield Finding(Level.WARN, 'shared memory', f'there is no {folder}')
        return
    text = (
        f'{_megabytes(memory.free)} free of {_megabytes(memory.total)}, '
        f'{len(memory.segments)} segments'
    )
    if memory.free < 2 * 64 * 2**20:
        yield Finding(
            Level.WARN, 'shared memory', f'{text}: not enough for a camera and the node',
            f'{CLEAN_COMMAND}; in a container: --shm-size=1g or --ipc=host',
        )  # fmt: skip
    else:
        yield Finding(Level.OK, 'shared memory', text)
    if memory.stale:
        names = ' '.join(f'{path}*' for path in memory.stale[:8])
        yield Finding(
            Level.WARN, 'stale segments', f'{len(memory.stale)} of killed processes hold '
            f'{_megabytes(memory.stale_bytes)}', f'{CLEAN_COMMAND}, or: rm {names}',
        )  # fmt: skip


def check_topic(topic: str, wait: float) -> Iterator[Finding]:
    """Publishers of an image topic as this process discovers them, and their QoS.

    Args:
        topic: raw image topic; ``topic/compressed`` is looked at too.
        wait: time for discovery, s.
    """
    import rclpy
    from rclpy.qos import qos_profile_sensor_data

    node = rclpy.create_node('daflow_doctor')
    try:
        endpoints = []
        # A subscription of ours would make drivers that publish on demand begin to.
        deadline = time.monotonic() + wait
        while time.monotonic() < deadline:
            names = (topic, f'{topic}/compressed')
            endpoints = [end for name in names for end in node.get_publishers_info_by_topic(name)]
            if endpoints:
                time.sleep(min(0.5, wait))
                endpoints = [e for name in names for e in node.get_publishers_info_by_topic(name)]
                break
            time.sleep(0.1)
        yield Finding(Level.OK, 'image topic', node.resolve_topic_name(topic))
        if not endpoints:
            others = [
                name
                for name, kinds in node.get_topic_names_and_types()
                if set(kinds) & set(IMAGE_TYPES) and node.count_publishers(name)
            ]
            seen = f'images come on {", ".join(sorted(others))}' if others else 'no images at all'
            yield Finding(
                Level.WARN, 'publishers', f'none found in {wait:g} s; {seen}',
                'start the camera, name its topic (--topic, image_topic:=) and see that '
                'ROS_DOMAIN_ID is the same',
            )  # fmt: skip
        for endpoint in endpoints:
            yield publisher_finding(endpoint, qos_profile_sensor_data)
    finally:
        node.destroy_node()


def publisher_finding(endpoint: object, subscription: object) -> Finding:
    """Whether a publisher's type and QoS suit the node's subscription.

    Args:
        endpoint: ``rclpy.topic_endpoint_info.TopicEndpointInfo`` of the publisher.
        subscription: ``rclpy.qos.QoSProfile`` of the subscription.
    """
    from rclpy.qos import QoSCompatibility, qos_check_compatible

    qos = endpoint.qos_profile
    name = f'{endpoint.node_namespace.rstrip("/")}/{endpoint.node_name}'
    text = f'{name}: {qos.reliability.name.lower()}, {qos.durability.name.lower()}'
    if endpoint.topic_type not in IMAGE_TYPES:
        return Finding(
            Level.ERROR, 'publisher', f'{name} publishes {endpoint.topic_type}, not images',
            'name the image topic: --topic, image_topic:=',
        )  # fmt: skip
    verdict, reason = qos_check_compatible(qos, subscription)
    if verdict == QoSCompatibility.ERROR:
        return Finding(
            Level.ERROR, 'publisher', f'{text}: not matched by the node: {reason}',
            "override the driver's QoS, or the node's (qos_overrides.<topic>.subscription...)",
        )  # fmt: skip
    return Finding(Level.OK, 'publisher', text)


def check_conversions() -> Iterator[Finding]:
    """Which implementations turn messages into arrays and back."""
    from daflow_ros.ros import conversions

    yield Finding(Level.OK, 'image conversion', conversions.bridge_choice().reason)
    yield Finding(Level.OK, 'point clouds', conversions.point_cloud2().__name__)


def check_device() -> Iterator[Finding]:
    """PyTorch and the device that 'auto' means."""
    try:
        torch = importlib.import_module('torch')
    except (ImportError, OSError) as error:
        yield Finding(
            Level.WARN, 'torch', f'cannot be imported, so only OpenCV models run: {error}',
            'pip install -r requirements.txt',
        )  # fmt: skip
        return
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name(0)
        free, total = torch.cuda.mem_get_info(0)
        text = f'{torch.__version__}, {name}, {_megabytes(free)} free of {_megabytes(total)}'
        yield Finding(Level.OK, 'torch', text)
    elif Path('/proc/driver/nvidia/version').exists():
        yield Finding(
            Level.WARN, 'torch', f'{torch.__version__} does not use the NVIDIA GPU of this '
            'machine: networks run on the CPU', 'install the CUDA build of torch that suits the '
            'driver',
        )  # fmt: skip
    else:
        threads = torch.get_num_threads()
        yield Finding(Level.OK, 'torch', f'{torch.__version__}, CPU, {threads} threads, no GPU')


def check_weights() -> Iterator[Finding]:
    """Weights that should be in the installation."""
    from safetensors import safe_open

    from daflow_ros.estimators import ESTIMATORS, default_estimator
    from daflow_ros.estimators.registry import WEIGHTS, shipped_weights

    for info in ESTIMATORS.values():
        if info.weights != 'shipped':
            continue
        folder = shipped_weights(info.name)
        if folder is None:
            yield Finding(
                Level.WARN, 'weights', f'{info.name}: not in {WEIGHTS}',
                'install the package again from a checkout that has its weights',
            )  # fmt: skip
            continue
        files = sorted(folder.rglob('*.safetensors'))
        try:
            for path in files:
                # Reads the header and compares the file's size with it.
                with safe_open(path, framework='np'):
                    pass
        except Exception as error:
            yield Finding(
                Level.ERROR, 'weights', f'{info.name}: {path} cannot be read: {error}',
                'install the package again',
            )  # fmt: skip
            continue
        size = sum(path.stat().st_size for path in files)
        yield Finding(Level.OK, 'weights', f'{info.name}: {_megabytes(size)}, {folder}')
    yield Finding(Level.OK, 'default model', default_estimator())


def examine(topic: str = 'image_raw', wait: float = 2.0) -> Iterator[Finding]:
    """Every check, in the order in which a fault keeps the later things from working.

    Args:
        topic: image topic of the camera.
        wait: time for discovery, s.
    """
    yield from _guarded('ROS', check_ros)
    if 'rclpy' in sys.modules:
        import rclpy

        yield from _guarded('Fast DDS profile', check_profile)
        # From here on as the node does it, so that the segment is the one the node gets.
        transport.use_shipped_profile()
        try:
            rclpy.init(args=[])
        except Exception as error:
            yield Finding(Level.ERROR, 'middleware', f'rclpy cannot start: {error}')
        else:
            yield from _guarded('middleware', check_rmw)
            yield from _guarded('image topic', lambda: _topic_and_segment(topic, wait))
            rclpy.try_shutdown()
        yield from _guarded('shared memory', check_shared_memory)
        yield from _guarded('image conversion', check_conversions)
    yield from _guarded('torch', check_device)
    yield from _guarded('weights', check_weights)


def _topic_and_segment(topic: str, wait: float) -> Iterator[Finding]:
    findings = check_topic(topic, wait)
    # The participant, and with it the segment, exists from the first finding to the last.
    first = next(findings)
    yield from check_segment()
    yield first
    yield from findings


def _guarded(subject: str, check: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """A check; one that fails is itself a finding, and the next ones still run."""
    try:
        yield from check()
    except Exception as error:
        text = f'the check failed: {type(error).__name__}: {error}'
        yield Finding(Level.ERROR, subject, text, 'report this as a fault of daflow_ros')


def _megabytes(size: int) -> str:
    return f'{size / 2**20:.1f} MB' if size < 2**30 else f'{size / 2**30:.1f} GB'
