# SPDX-License-Identifier: Apache-2.0
"""Start the flow node on the images of a camera.

ros2 launch daflow_ros daflow.launch.py image_topic:=/camera/image_raw
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction, SetEnvironmentVariable
from launch_ros.actions import Node

from daflow_ros.estimators import ESTIMATORS
from daflow_ros.ros.transport import use_shipped_profile

# Arguments that override the parameter of the same name when they are given.
TEXTS = ('model', 'device', 'weights')
FLAGS = ('compressed', 'autostart')
FROM_FILE = ' (default: as in params_file)'


def start_node(context):
    """The node, once the arguments have values."""
    value = context.launch_configurations
    parameters = {name: value[name] for name in TEXTS if value[name]}
    # use_sim_time is a parameter of every node, not of this one's own.
    for name in (*FLAGS, 'use_sim_time'):
        if value[name]:
            parameters[name] = value[name] == 'true'
    topic = value['image_topic']
    logger = '.'.join([*filter(None, value['namespace'].split('/')), 'daflow'])
    return [
        Node(
            package='daflow_ros',
            executable='daflow_node',
            name='daflow',
            namespace=value['namespace'],
            parameters=[value['params_file'], parameters],
            remappings=[
                ('image_raw', topic),
                ('image_raw/compressed', f'{topic}/compressed'),
            ],
            ros_arguments=['--log-level', f'{logger}:={value["log_level"]}'],
            output='screen',
        )
    ]


def generate_launch_description():
    """Arguments, the Fast DDS profile unless the user has named one, and the node."""
    share = get_package_share_directory('daflow_ros')
    # What use_shipped_profile would set in the environment, for the node only.
    environ = dict(os.environ)
    use_shipped_profile(environ)
    profile = {name: value for name, value in environ.items() if os.environ.get(name) != value}
    boolean = ['true', 'false']
    return LaunchDescription([
        DeclareLaunchArgument(
            'params_file',
            default_value=os.path.join(share, 'config', 'daflow.yaml'),
            description='YAML file with the parameters of the node',
        ),
        DeclareLaunchArgument(
            'image_topic',
            default_value='image_raw',
            description='raw image topic of the camera; relative to the namespace unless it '
            'begins with /. Without effect where params_file names cameras: those are read from '
            'NAME/image_raw',
        ),
        DeclareLaunchArgument(
            'compressed',
            default_value='',
            choices=['', *boolean],
            description='subscribe to IMAGE_TOPIC/compressed' + FROM_FILE,
        ),
        DeclareLaunchArgument(
            'namespace', default_value='', description='namespace of the node and its topics'
        ),
        DeclareLaunchArgument(
            'model',
            default_value='',
            choices=['', 'auto', *ESTIMATORS],
            description='model, as `daflow models` lists them' + FROM_FILE,
        ),
        DeclareLaunchArgument(
            'device',
            default_value='',
            description='auto, cpu, cuda or cuda:N' + FROM_FILE,
        ),
        DeclareLaunchArgument(
            'weights',
            default_value='',
            description='checkpoint file or folder of the model' + FROM_FILE,
        ),
        DeclareLaunchArgument(
            'use_sim_time',
            default_value='',
            choices=['', *boolean],
            description='take the time from /clock, as when a bag is played' + FROM_FILE,
        ),
        DeclareLaunchArgument(
            'autostart',
            default_value='',
            choices=['', *boolean],
            description='configure and activate at start; false leaves it to a lifecycle manager'
            + FROM_FILE,
        ),
        DeclareLaunchArgument(
            'log_level',
            default_value='info',
            choices=['debug', 'info', 'warn', 'error', 'fatal'],
            description='log level of the node',
        ),
        *(SetEnvironmentVariable(name, value) for name, value in profile.items()),
        OpaqueFunction(function=start_node),
    ])  # fmt: skip
