# SPDX-License-Identifier: Apache-2.0
"""``daflow evaluate --live``: a recording through the node over DDS, beside the direct run."""

import json
import os
import random

import pytest
import torch
from test_evaluation import frames, without_times

from daflow_ros.cli import main
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_sizes import RAFT_SMALL

pytest.importorskip('rclpy')
pytest.importorskip('daflow_ros.msg')

COUNT = 20


@pytest.fixture
def domain(monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', str(random.randint(1, 100)))
    monkeypatch.setenv('ROS_LOCALHOST_ONLY', '1')
    return os.environ['ROS_DOMAIN_ID']


@pytest.mark.timeout(280)
def test_live_beside_direct(tmp_path, domain, capsys):
    status = main([
        'evaluate', str(frames(tmp_path / 'frames', COUNT)), '--models', 'dis_fast', '--live',
        '-o', str(tmp_path / 'out'),
    ])
    assert status == 0
    content = json.loads((tmp_path / 'out' / 'results.json').read_text())
    [entry] = content['run']['live']
    live = entry['timing']
    assert live['sent'] == COUNT and live['expected'] == COUNT - 1
    # A busy machine may drop pairs, but each is accounted for and none is another flow.
    assert live['received'] >= 1
    assert live['received'] + sum(live['dropped'].values()) + live['lost'] >= COUNT - 1
    assert live['pairs'] == live['received'] and live['unmatched'] == 0
    assert live['different'] == 0 and live['difference'] < 0.01
    assert live['rate'] > 0 and live['latency_ms_p50'] <= live['latency_ms_p95']
    assert 'timing' not in json.dumps(without_times(content))
    report = (tmp_path / 'out' / 'report.md').read_text()
    assert 'Live, through the node' in report and 'those of the direct run' in report
    assert 'Hz' in capsys.readouterr().out


@pytest.mark.timeout(280)
def test_the_node_gets_the_iterations_of_the_direct_run(tmp_path, domain):
    """Random weights: every iteration moves the flow."""
    torch.manual_seed(0)
    torch.save(RAFT(**RAFT_SMALL).state_dict(), tmp_path / 'small.pth')
    words = ['--models', f'raft_small@{tmp_path / "small.pth"}', '--iterations', '2', '--live']
    source = str(frames(tmp_path / 'frames', 6))
    assert main(['evaluate', source, *words, '--no-report', '-o', str(tmp_path / 'out')]) == 0
    [entry] = json.loads((tmp_path / 'out' / 'results.json').read_text())['run']['live']
    assert entry['timing']['received'] >= 1 and entry['timing']['different'] == 0


def test_benchmarks_are_not_played(tmp_path, capsys):
    from test_evaluation import chairs

    words = ['evaluate', str(chairs(tmp_path / 'c', 1)), '--models', 'dis_fast', '--live',
             '--no-report', '-o', str(tmp_path / 'out')]
    assert main(words) == 0
    assert 'not played' in capsys.readouterr().err
