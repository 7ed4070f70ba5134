# SPDX-License-Identifier: Apache-2.0
"""The benchmark table: columns that can be checked without a clock."""

import csv

import cv2
import numpy as np
import pytest
from test_evaluation import chairs

from daflow_ros.cli import main
from daflow_ros.evaluation.benchmark import Setup, moving_pair, peak_memory
from daflow_ros.evaluation.memory import PeakMemory
from daflow_ros.evaluation.models import ModelSpec


def test_table_and_figure(tmp_path):
    chairs(tmp_path / 'chairs', 2)
    status = main([
        'benchmark', '--models', 'dis,raft_small', '--size', '128x128', '--repeats', '2',
        '--pairs', str(tmp_path / 'chairs'), '--corrupt', 'severe:5', '-o', str(tmp_path),
    ])
    assert status == 0
    rows = {r['model']: r for r in csv.DictReader((tmp_path / 'benchmark.csv').open())}
    assert set(rows) == {'dis', 'raft_small'}
    dis, raft = rows['dis'], rows['raft_small']
    assert float(raft['relative']) == 1 and float(dis['relative']) < 1
    assert float(dis['relative']) == pytest.approx(
        float(dis['ms_median']) / float(raft['ms_median']), rel=0.01)
    assert float(dis['epe_clean']) < float(dis['epe_corrupted'])
    # Random weights have no accuracy, and a model outside of torch no counted work.
    assert raft['weights'] == 'random' and raft['epe_clean'] == '' and dis['gflops'] == ''
    assert 1 < float(raft['gflops']) < 100
    image = cv2.imread(str(tmp_path / 'benchmark.png'))
    assert image is not None and image.std() > 5


def test_work_grows_with_the_image(tmp_path):
    import torch
    from torch import nn
    from torch.utils.flop_counter import FlopCounterMode

    # What the counter counts: 2 operations a weight and output pixel.
    layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(torch.zeros(1, 3, 10, 12))
    assert counter.get_total_flops() == 2 * 3 * 8 * 9 * 10 * 12


def test_memory_of_an_allocation():
    with PeakMemory() as memory:
        block = np.ones(64 * 2**20, np.uint8)
        del block
    if memory.megabytes is None:
        pytest.skip('this system does not tell')
    assert 60 <= memory.megabytes <= 100


def test_memory_is_measured_in_a_process_of_its_own():
    small, large = (
        peak_memory(ModelSpec('dis', None, 'dis'), Setup(side, side, 1, 'cpu', 'float32', None))
        for side in (64, 1024)
    )
    if small is None:
        pytest.skip('this system does not tell')
    assert large > small + 5


def test_texture_moves_as_it_says():
    first, second = moving_pair(160, 120)
    assert first.shape == (120, 160, 3)
    assert np.array_equal(first[:-2, :-5], second[2:, 5:])


def test_nonsense_is_refused(tmp_path, capsys):
    for words in (['--size', 'big'], ['--models', 'nothing'], ['--models', 'raft@missing.pth']):
        assert main(['benchmark', *words, '-o', str(tmp_path)]) == 2
    assert 'missing.pth' in capsys.readouterr().err
