# SPDX-License-Identifier: Apache-2.0
"""``daflow node``: the flow node without a launch system."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags for what is set most often; the rest goes behind ``--ros-args``."""
    parser.add_argument('--model', help='estimator, see `daflow models` (default: auto)')
    parser.add_argument('--device', help='auto, cpu, cuda or cuda:N (default: auto)')
    parser.add_argument('--weights', help='checkpoint file or folder of the model')
    parser.add_argument('--params-file', help='YAML file of parameters')
    parser.add_argument(
        '--ros-args',
        nargs=argparse.REMAINDER,
        default=[],
        help='everything behind it goes to ROS: -p NAME:=VALUE, -r image_raw:=/camera/image_raw',
    )


def ros_arguments(args: argparse.Namespace) -> list[str]:
    """Arguments for ``rclpy.init``; the flags come last, so that they win over the rest."""
    arguments = ['daflow', '--ros-args', *args.ros_args, '--ros-args']
    if args.params_file:
        arguments += ['--params-file', args.params_file]
    for name in ('model', 'device', 'weights'):
        value = getattr(args, name)
        if value is not None:
            quoted = value.replace("'", "''")
            arguments += ['-p', f"{name}:='{quoted}'"]
    return arguments


def run(args: argparse.Namespace) -> int:
    """Start the node and return when it has been stopped."""
    from daflow_ros.ros.transport import use_shipped_profile

    use_shipped_profile()
    try:
        from daflow_ros.ros.node import run_node
    except ImportError as error:
        print(f'daflow node needs ROS 2 (rclpy and its messages): {error}', file=sys.stderr)
        return 1
    return run_node(ros_arguments(args))
