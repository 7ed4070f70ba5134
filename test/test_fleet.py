# SPDX-License-Identifier: Apache-2.0
"""Ten bags on Ray: killed half way, gone on with; a broken one costs only itself."""

import json
import os
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest

from daflow_ros.evaluation.fleet import expand_sources

pytest.importorskip('ray')
rosbag2 = pytest.importorskip('rosbags.rosbag2')
from rosbags.typesys import Stores, get_typestore  # noqa: E402

FRAMES, BAGS = 6, 10


def write_bag(path, seed):
    noise = np.random.default_rng(seed).random((120, 200, 3)).astype(np.float32)
    wide = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)
    types = get_typestore(Stores.ROS2_HUMBLE)
    Image = types.types['sensor_msgs/msg/Image']
    Header = types.types['std_msgs/msg/Header']
    Time = types.types['builtin_interfaces/msg/Time']
    with rosbag2.Writer(path, version=9, storage_plugin=rosbag2.StoragePlugin.MCAP) as writer:
        topic = writer.add_connection('/image_raw', Image.__msgtype__, typestore=types)
        for i in range(FRAMES):
            frame = np.ascontiguousarray(wide[:96, 2 * i:2 * i + 160]).astype(np.uint8)
            stamp = 1_000_000_000 + i * 66_000_000
            message = Image(
                Header(Time(stamp // 10**9, stamp % 10**9), 'camera'), 96, 160, 'bgr8', 0, 480,
                frame.reshape(-1))
            writer.write(topic, stamp, types.serialize_cdr(message, Image.__msgtype__))


def command(folder, *words):
    return [
        sys.executable, '-m', 'daflow_ros.cli', 'evaluate', str(folder / 'bags'), '--models',
        'dis,farneback', '--corrupt', 'night:3,rain:3', '--proxies', '--ray-address', 'local',
        '-o', str(folder / 'out'), '--no-report', *words,
    ]


def finished(folder):
    """Times of the finished model runs: who wrote them, and when."""
    return {
        str(file.relative_to(folder)): file.stat().st_mtime_ns
        for file in folder.glob('out/runs/*/*.json')
    }


def test_a_folder_of_recordings_is_taken_apart(tmp_path):
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        (tmp_path / name / 'metadata.yaml').touch()
    (tmp_path / 'c.mp4').touch()
    (tmp_path / 'notes.txt').touch()
    found = expand_sources([str(tmp_path), 'other', str(tmp_path / 'a')])
    assert found == [str(tmp_path / n) for n in ('a', 'b', 'c.mp4')] + ['other']


@pytest.mark.timeout(600)
def test_killed_half_way_the_second_run_does_only_the_rest(tmp_path):
    (tmp_path / 'bags').mkdir()
    for i in range(BAGS):
        write_bag(tmp_path / 'bags' / f'bag{i}', i)
    broken = tmp_path / 'bags' / 'bag3' / 'bag3.mcap'
    broken.write_bytes(broken.read_bytes()[:200])

    first = subprocess.Popen(
        command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    end = time.monotonic() + 240
    while len(finished(tmp_path)) < 8 and first.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    assert first.poll() is None, 'it was over before it could be killed'
    # The driver and what it started, Ray's processes included.
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    # Ray's workers have sessions of their own and may finish what they are at before they
    # notice that the driver is gone.
    before = None
    while before != (before := finished(tmp_path)):
        time.sleep(5)
    assert 8 <= len(before) < 2 * (BAGS - 1)
    complete = sum(
        {'dis.json', 'farneback.json'} <= {file.name for file in folder.iterdir()}
        for folder in (tmp_path / 'out' / 'runs').iterdir()
    )

    second = subprocess.run(command(tmp_path), capture_output=True, text=True, timeout=300)
    assert second.returncode == 0, second.stderr
    after = finished(tmp_path)
    assert len(after) == 2 * (BAGS - 1)
    assert all(after[name] == stamp for name, stamp in before.items()), 'it was run again'
    assert second.stderr.count('done before') == complete >= 4
    assert 'bag3' in second.stderr and 'not evaluated' in second.stderr
    content = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert list(content['run']['failed']) == [str(tmp_path / 'bags' / 'bag3')]
    assert len(content['records']) == (BAGS - 1) * (FRAMES - 1) * 2 * 3
