# SPDX-License-Identifier: Apache-2.0
"""Launch files and the parameters file.

Where `launch` exists the launch files are run; everywhere what they name is looked up.
"""

import argparse
import ast
import importlib.util
import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / 'launch'
FILES = sorted(LAUNCH.glob('*.launch.py'))
ARGUMENTS = {
    'daflow.launch.py': {
        'params_file', 'image_topic', 'compressed', 'namespace', 'model', 'device', 'weights',
        'use_sim_time', 'autostart', 'log_level',
    },
    'replay.launch.py': {'source', 'topic', 'model', 'device', 'weights', 'output', 'rate'},
}  # fmt: skip


def calls(tree, name):
    """Calls of a function of that name in a syntax tree."""
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and getattr(node.func, 'id', None) == name
    ]


def keywords(call):
    return {keyword.arg: keyword.value for keyword in call.keywords}


def strings(node):
    return {
        part.value
        for part in ast.walk(node)
        if isinstance(part, ast.Constant) and isinstance(part.value, str)
    }


def constants(tree):
    """Module-level names bound to literals."""
    return {
        statement.targets[0].id: ast.literal_eval(statement.value)
        for statement in tree.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, (ast.Tuple, ast.Constant))
    }


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_arguments_are_declared_and_used(path):
    tree = ast.parse(path.read_text())
    declared = {}
    for call in calls(tree, 'DeclareLaunchArgument'):
        declared[call.args[0].value] = keywords(call)
    assert set(declared) == ARGUMENTS[path.name]
    for name, options in declared.items():
        assert 'description' in options, name
        assert 'default_value' in options or name == 'source', name
    functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    [start] = [node for node in functions if node.name.startswith('start_')]
    named = strings(start).union(*constants(tree).values())
    assert set(declared) <= named


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_what_is_named_exists(path):
    """Executables, files and packages that a launch file names."""
    tree = ast.parse(path.read_text())
    cmake = (ROOT / 'CMakeLists.txt').read_text()
    manifest = (ROOT / 'package.xml').read_text()
    for name in ('daflow', 'daflow_node', 'daflow_replay'):
        assert os.access(ROOT / 'scripts' / name, os.X_OK)
        assert re.search(rf'scripts/{name}\b', cmake), name
    for call in calls(tree, 'Node'):
        assert keywords(call)['package'].value == 'daflow_ros'
        assert (ROOT / 'scripts' / keywords(call)['executable'].value).is_file()
    for name in strings(tree):
        if name.startswith('daflow_') and name != 'daflow_ros' and ' ' not in name:
            assert (ROOT / 'scripts' / name).is_file(), name
        if re.fullmatch(r'[\w.]+\.(yaml|xml)', name):
            assert (ROOT / 'config' / name).is_file(), name
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split('.')[0] != 'daflow_ros':
            assert f'<exec_depend>{node.module.split(".")[0]}</exec_depend>' in manifest
        if isinstance(node, ast.ImportFrom) and node.module.startswith('daflow_ros'):
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)


def test_node_launch_overrides_are_parameters():
    parameters = pytest.importorskip('daflow_ros.ros.parameters')
    named = constants(ast.parse((LAUNCH / 'daflow.launch.py').read_text()))
    for name in named['TEXTS']:
        assert isinstance(parameters.PARAMETERS[name].default, str)
    for name in named['FLAGS']:
        assert isinstance(parameters.PARAMETERS[name].default, bool)


def started_with(monkeypatch, **given):
    """Keywords of the Node that daflow.launch.py makes, by stand-ins for `launch`."""
    stand_in = MagicMock()
    for name in (
        'ament_index_python', 'ament_index_python.packages', 'launch', 'launch.actions',
        'launch_ros', 'launch_ros.actions',
    ):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, stand_in)
    spec = importlib.util.spec_from_file_location('daflow_launch', LAUNCH / 'daflow.launch.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    declared = calls(ast.parse((LAUNCH / 'daflow.launch.py').read_text()), 'DeclareLaunchArgument')
    defaults = {call.args[0].value: keywords(call)['default_value'] for call in declared}
    values = {
        name: value.value if isinstance(value, ast.Constant) else 'as computed'
        for name, value in defaults.items()
    }
    stand_in.launch_configurations = {**values, **given}
    module.start_node(stand_in)
    return stand_in.Node.call_args.kwargs


def test_what_is_not_given_is_left_to_the_parameters_file(monkeypatch):
    assert started_with(monkeypatch)['parameters'] == ['as computed', {}]


def test_what_is_given_wins(monkeypatch):
    given = {'use_sim_time': 'true', 'autostart': 'false', 'weights': 'a.pth', 'model': 'raft'}
    node = started_with(monkeypatch, params_file='mine.yaml', image_topic='/cam', **given)
    expected = {'use_sim_time': True, 'autostart': False, 'weights': 'a.pth', 'model': 'raft'}
    assert node['parameters'] == ['mine.yaml', expected]
    remappings = [('image_raw', '/cam'), ('image_raw/compressed', '/cam/compressed')]
    assert node['remappings'] == remappings


def test_replay_launch_options_are_those_of_the_verb():
    from daflow_ros.commands import replay

    parser = argparse.ArgumentParser()
    replay.add_arguments(parser)
    named = constants(ast.parse((LAUNCH / 'replay.launch.py').read_text()))
    options = {option for action in parser._actions for option in action.option_strings}
    assert {f'--{name}' for name in named['OPTIONS']} <= options


def test_parameters_file_is_what_the_node_declares():
    """Names, order, defaults and comments: the file is the generated one."""
    pytest.importorskip('daflow_ros.ros.parameters')
    path = ROOT / 'tools' / 'write_parameters_yaml.py'
    spec = importlib.util.spec_from_file_location('write_parameters_yaml', path)
    writer = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(writer)
    assert (ROOT / 'config' / 'daflow.yaml').read_text() == writer.parameters_yaml(), (
        'run tools/write_parameters_yaml.py > config/daflow.yaml'
    )


def test_parameters_file_is_read_by_a_node(tmp_path, monkeypatch):
    """rclpy reads the file, with other values than the defaults, into a node of any name."""
    rclpy = pytest.importorskip('rclpy')
    parameters = pytest.importorskip('daflow_ros.ros.parameters')
    monkeypatch.setenv('ROS_DOMAIN_ID', '93')
    text = (ROOT / 'config' / 'daflow.yaml').read_text()
    values = yaml.safe_load(text)['/**']['ros__parameters']
    assert parameters.NodeParameters(**values) == parameters.NodeParameters()
    values.update(model='dis', stride=3, deadline=0.25, cameras=['left', 'right'])
    path = tmp_path / 'mine.yaml'
    path.write_text(yaml.safe_dump({'/**': {'ros__parameters': values}}))
    context = rclpy.Context()
    rclpy.init(args=['--ros-args', '--params-file', str(path)], context=context)
    try:
        node = rclpy.create_node('any_name', namespace='robot', context=context)
        assert parameters.declare(node) == {}
        got = parameters.read(node)
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    assert got == parameters.NodeParameters(**values)
    assert (got.stride, got.deadline, got.cameras) == (3, 0.25, ('left', 'right'))


def test_launch_starts_and_stops_the_node(tmp_path):
    """The real `launch`: the node comes up with the arguments' values and ends cleanly."""
    pytest.importorskip('launch')
    pytest.importorskip('launch_ros')
    index = pytest.importorskip('ament_index_python.packages')
    try:
        share = Path(index.get_package_share_directory('daflow_ros'))
    except LookupError:
        pytest.skip('daflow_ros is not installed in a ROS prefix')
    script = tmp_path / 'run.py'
    script.write_text(textwrap.dedent("""
        import sys
        from launch import LaunchDescription, LaunchService
        from launch.actions import IncludeLaunchDescription
        from launch.launch_description_sources import PythonLaunchDescriptionSource

        arguments = [tuple(text.split(':=')) for text in sys.argv[2:]]
        source = PythonLaunchDescriptionSource(sys.argv[1])
        service = LaunchService()
        service.include_launch_description(
            LaunchDescription([IncludeLaunchDescription(source, launch_arguments=arguments)])
        )
        sys.exit(service.run())
        """))
    command = [sys.executable, str(script), str(share / 'launch' / 'daflow.launch.py')]
    arguments = ['model:=dis_fast', 'namespace:=robot', 'image_topic:=/camera/front']
    environment = dict(os.environ, ROS_DOMAIN_ID='94', ROS_LOG_DIR=str(tmp_path))
    with subprocess.Popen(
        command + arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        lines = []
        for line in process.stdout:
            lines.append(line)
            if '/camera/front' in line:
                process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    output = ''.join(lines)
    assert 'robot.daflow' in output and 'dis_fast' in output, output
    assert 'images from /camera/front' in output
    assert 'process has finished cleanly' in output
    assert 'XMLPARSER' not in output

    wrong = subprocess.run(
        [*command, 'model:=nonsense'], capture_output=True, text=True, env=environment, timeout=60
    )
    assert wrong.returncode != 0
    assert 'nonsense' in wrong.stdout + wrong.stderr
