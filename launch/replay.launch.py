# SPDX-License-Identifier: Apache-2.0
"""Play a recording into a flow node and record the flow.

ros2 launch daflow_ros replay.launch.py source:=recording.mcap

The node, the player with /clock and the recorder are those of `daflow replay`; the launch ends
with the recording.
"""

import os

from ament_index_python.packages import get_package_prefix
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, ExecuteProcess, OpaqueFunction

from daflow_ros.estimators import ESTIMATORS

#: Arguments passed on as options of the same name when they are given.
OPTIONS = ('topic', 'model', 'device', 'weights', 'output', 'rate')


def start_replay(context):
    """The replay, once the arguments have values."""
    value = context.launch_configurations
    executable = os.path.join(
        get_package_prefix('daflow_ros'), 'lib', 'daflow_ros', 'daflow_replay'
    )
    command = [executable, value['source']]
    for name in OPTIONS:
        if value[name]:
            command += [f'--{name}', value[name]]
    return [ExecuteProcess(cmd=command, output='screen')]


def generate_launch_description():
    """Arguments and the replay."""
    return LaunchDescription([
        DeclareLaunchArgument(
            'source',
            description='rosbag2 (MCAP or sqlite3), ROS 1 bag, video file or folder of images',
        ),
        DeclareLaunchArgument(
            'model',
            default_value='',
            choices=['', 'auto', *ESTIMATORS],
            description='model, as `daflow models` lists them (default: the default model)',
        ),
        DeclareLaunchArgument(
            'topic', default_value='', description='image topic of a bag with several cameras'
        ),
        DeclareLaunchArgument(
            'device', default_value='', description='auto, cpu, cuda or cuda:N (default: auto)'
        ),
        DeclareLaunchArgument(
            'weights',
            default_value='',
            description='checkpoint file or folder of the model (default: what the package ships)',
        ),
        DeclareLaunchArgument(
            'output', default_value='', description='folder for the flow bag, video and summary'
        ),
        DeclareLaunchArgument(
            'rate', default_value='', description='speed of the replay, 1 is real time'
        ),
        OpaqueFunction(function=start_replay),
    ])  # fmt: skip
