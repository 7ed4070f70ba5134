# SPDX-License-Identifier: Apache-2.0
"""`daflow doctor` on machines with faults: each is found, and told with its cure."""

import os
import subprocess
import sys

import pytest

pytest.importorskip('rclpy')

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from daflow_ros.ros import doctor, transport
from daflow_ros.ros.doctor import Level


def run_doctor(*arguments, **environ):
    """Exit status and output of the command, in a process of its own."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in (transport.PROFILE_VARIABLE, transport.OLD_PROFILE_VARIABLE)
    }
    done = subprocess.run(
        [sys.executable, '-c', 'import sys; from daflow_ros.cli import main; sys.exit(main())',
         'doctor', *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**environment, 'ROS_DOMAIN_ID': '95', **environ},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope='module')
def camera():
    """A node with publishers that a camera may have."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=95)
    node = rclpy.create_node('camera', namespace='front', context=context)
    node.create_publisher(Image, 'image_raw', qos_profile_sensor_data)
    node.create_publisher(CameraInfo, 'camera_info', 5)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_healthy_machine(camera):
    status, output = run_doctor('--topic', '/front/image_raw', '--wait', '20')
    assert status == 0, output
    assert 'ERROR' not in output
    assert 'OK     publisher: /front/camera: best_effort, volatile' in output
    assert 'OK     segment: 67' in output
    # The shell has named no profile, which the camera driver will need.
    assert f'export {transport.profile_variable()}=' in output


def test_wrong_topic_and_broken_profile(camera, tmp_path):
    status, output = run_doctor('--topic', '/front/camera_info', '--wait', '20')
    assert status == 1
    assert '/front/camera publishes sensor_msgs/msg/CameraInfo, not images' in output

    profile = tmp_path / 'broken.xml'
    profile.write_text('<dds>')
    status, output = run_doctor('--wait', '6', **{transport.profile_variable(): str(profile)})
    assert status == 1
    assert f'ERROR  Fast DDS profile: {profile}: cannot read' in output
    assert 'images come on /front/image_raw' in output, output


def test_incompatible_qos_is_an_error(camera):
    [endpoint] = camera.get_publishers_info_by_topic('/front/image_raw')
    assert doctor.publisher_finding(endpoint, qos_profile_sensor_data).level == Level.OK
    reliable = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
    finding = doctor.publisher_finding(endpoint, reliable)
    assert finding.level == Level.ERROR
    assert 'not matched' in finding.text and 'QoS' in finding.cure


@pytest.mark.parametrize(
    ('text', 'level', 'words'),
    [
        (None, Level.WARN, 'none named'),
        ('<dds><participant/></dds>', Level.WARN, '0.5 MB is smaller'),
        (
            '<dds><useBuiltinTransports>false</useBuiltinTransports></dds>',
            Level.WARN,
            'switches shared memory off',
        ),
    ],
)
def test_profiles(text, level, words, tmp_path, monkeypatch):
    monkeypatch.delenv(transport.OLD_PROFILE_VARIABLE, raising=False)
    monkeypatch.delenv(transport.PROFILE_VARIABLE, raising=False)
    if text:
        (tmp_path / 'profile.xml').write_text(text)
        monkeypatch.setenv(transport.profile_variable(), str(tmp_path / 'profile.xml'))
    [finding] = doctor.check_profile()
    assert finding.level == level
    assert words in finding.text
    assert 'fastdds.xml' in finding.cure


def test_variable_that_is_not_read(tmp_path, monkeypatch):
    both = {transport.PROFILE_VARIABLE, transport.OLD_PROFILE_VARIABLE}
    [other] = both - {transport.profile_variable()}
    monkeypatch.delenv(transport.profile_variable(), raising=False)
    monkeypatch.setenv(other, str(transport.share_file('config', 'fastdds.xml')))
    first, second = doctor.check_profile()
    assert first.level == Level.WARN and 'does not read' in first.text
    assert second.level == Level.OK


def test_stale_segments_are_told(tmp_path):
    (tmp_path / ('fastdds_' + 'a' * 16)).write_bytes(bytes(1024))
    findings = list(doctor.check_shared_memory(tmp_path))
    assert findings[-1].subject == 'stale segments'
    assert 'a' * 16 in findings[-1].cure


def test_missing_and_truncated_weights(tmp_path, monkeypatch):
    from daflow_ros.estimators import registry

    monkeypatch.setattr(registry, 'WEIGHTS', tmp_path)
    (tmp_path / 'daflow_tiny').mkdir()
    (tmp_path / 'daflow_tiny' / 'config.json').write_text('{}')
    (tmp_path / 'daflow_tiny' / 'model.safetensors').write_bytes(bytes(100))
    findings = [item for item in doctor.check_weights() if item.subject == 'weights']
    levels = {item.text.split(':')[0]: item.level for item in findings}
    assert levels['daflow_tiny'] == Level.ERROR
    assert levels['raft_tiny'] == Level.WARN


def test_a_failing_check_does_not_end_the_examination():
    def fails():
        yield doctor.Finding(Level.OK, 'first', 'fine')
        raise OSError('disk on fire')

    first, second = doctor._guarded('thing', fails)
    assert first.text == 'fine'
    assert second.level == Level.ERROR and 'disk on fire' in second.text
