# SPDX-License-Identifier: Apache-2.0
"""``daflow replay`` as users run it: a node process, real DDS, files to look at."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip('rclpy')

from daflow_ros.datasets.demo_sequence import render_sequence, write_sequence
from daflow_ros.datasets.recorded_flow import read_recorded_flow
from daflow_ros.datasets.recordings import open_recording

FOG = Path(__file__).resolve().parents[2] / 'shared' / 'clips' / 'radiate_fog'
COUNT = 6


@pytest.fixture
def environment():
    return {**os.environ, 'ROS_DOMAIN_ID': str(random.randint(1, 100)), 'OMP_NUM_THREADS': '1'}


@pytest.fixture(scope='module')
def street(tmp_path_factory):
    """A short bag with ground truth."""
    bag = tmp_path_factory.mktemp('street') / 'bag'
    frames = list(render_sequence(COUNT, (180, 240)))
    write_sequence(bag, np.stack([f.image for f in frames]), [f.flow for f in frames[:-1]],
                   np.eye(3))
    return bag


def daflow(environment, *arguments, timeout=200):
    return subprocess.run([sys.executable, '-m', 'daflow_ros.cli', *map(str, arguments)],
                          env=environment, capture_output=True, text=True, timeout=timeout)


def frames_of(video):
    capture, count = cv2.VideoCapture(str(video)), 0
    while True:
        got, image = capture.read()
        if not got:
            return count
        assert image.std() > 5
        count += 1


def test_every_pair_gets_its_flow(environment, street, tmp_path):
    output = tmp_path / 'out'
    result = daflow(environment, 'replay', street, '--model', 'dis', '--rate', '0',
                    '--output', output)
    assert result.returncode == 0, result.stderr
    assert f'{COUNT - 1} of {COUNT - 1} pairs' in result.stdout
    summary = json.loads((output / 'summary.json').read_text())
    assert summary['flow_received'] == summary['flow_expected'] == COUNT - 1
    assert summary['sent'] == summary['received'] == COUNT
    assert summary['stamps_match'] and not summary['dropped'] and summary['model'] == 'dis'
    # Figures against what the bag holds, computed here.
    recording = open_recording(street)
    truth = {frame.stamp_ns: frame.flow for frame in recording.frames()}
    stamps = list(truth)
    fields = list(read_recorded_flow(output / 'flow_bag'))
    assert [f.stamp_ns for f in fields] == stamps[:-1]
    assert [f.target_stamp_ns for f in fields] == stamps[1:]
    errors = [np.sqrt(((f.flow - truth[f.stamp_ns]) ** 2).sum(-1)).mean() for f in fields]
    assert summary['epe'] == pytest.approx(np.mean(errors), rel=1e-4)
    still = [np.sqrt((truth[f.stamp_ns] ** 2).sum(-1)).mean() for f in fields]
    assert summary['epe_zero_motion'] == pytest.approx(np.mean(still), rel=1e-4)
    # Clear weather and textured: DIS follows it well.
    assert summary['epe'] < 0.5 * summary['epe_zero_motion']
    assert frames_of(output / 'side_by_side.mp4') == COUNT - 1
    # Input, flow and ground truth beside each other.
    assert cv2.imread(str(output / 'side_by_side.png')).shape == (180, 3 * 240, 3)
    # Again into the same folder, in recorded time, without a film: the old one does not stay.
    again = daflow(environment, 'replay', street, '--model', 'dis_fast', '--output', output,
                   '--no-video')
    assert again.returncode == 0, again.stderr
    summary = json.loads((output / 'summary.json').read_text())
    assert summary['model'] == 'dis_fast' and summary['playback'] == 1.0
    # On a busy machine pictures may be lost: then they are counted.
    accounted = summary['received'] + summary['lost_pictures']
    assert accounted == summary['sent'] == COUNT
    assert not (output / 'side_by_side.mp4').exists()


def test_what_cannot_be_replayed_is_said(environment, street, tmp_path):
    missing = daflow(environment, 'replay', tmp_path / 'none.mcap')
    assert missing.returncode == 1 and 'none.mcap: no such file' in missing.stderr
    model = daflow(environment, 'replay', street, '--model', 'disco', '--output', tmp_path / 'a')
    assert model.returncode == 1 and 'disco' in model.stderr
    assert 'Traceback' not in missing.stderr + model.stderr
    strange = tmp_path / 'b' / 'flow_bag'
    strange.mkdir(parents=True)
    (strange / 'thesis.txt').touch()
    refused = daflow(environment, 'replay', street, '--output', tmp_path / 'b')
    assert refused.returncode == 1 and 'thesis.txt' in refused.stderr
    assert (strange / 'thesis.txt').exists()


def test_ctrl_c_ends_cleanly(environment, street, tmp_path):
    output = tmp_path / 'out'
    process = subprocess.Popen(
        [sys.executable, '-m', 'daflow_ros.cli', 'replay', str(street), '--model', 'dis_fast',
         '--rate', '0.01', '--output', str(output)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    # Frames are 6.7 s apart: two have been sent when there is a progress of 1.
    limit = time.monotonic() + 100
    log = output / 'node.log'
    while not (log.exists() and 'images from' in log.read_text()):
        assert time.monotonic() < limit and process.poll() is None
        time.sleep(0.1)
    time.sleep(3)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130, error
    assert 'Traceback' not in error
    assert 'interrupted' in out
    summary = json.loads((output / 'summary.json').read_text())
    assert summary['interrupted'] and summary['sent'] < COUNT
    # The bag is whole, whatever is in it.
    list(read_recorded_flow(output / 'flow_bag'))


@pytest.mark.skipif(not FOG.exists(), reason='the shared clip is absent')
def test_the_fog_clip_gives_49_fields(environment, tmp_path):
    result = daflow(environment, 'replay', FOG, '--model', 'dis_fast', '--rate', '0',
                    '--output', tmp_path / 'out', '--no-video')
    assert result.returncode == 0, result.stderr
    stamps = [message.stamp_ns for message in open_recording(FOG).messages()]
    fields = list(read_recorded_flow(tmp_path / 'out' / 'flow_bag'))
    assert len(fields) == 49
    assert [(f.stamp_ns, f.target_stamp_ns) for f in fields] == list(pairwise(stamps))
