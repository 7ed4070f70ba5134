# SPDX-License-Identifier: Apache-2.0
"""The blend trained on pairs that were matched once: the tool in processes of its own."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import photograph
from safetensors.torch import load_file

from daflow_ros.models.blend_cues import PER_FLOW
from daflow_ros.training.flying import outline

ROOT = Path(__file__).parents[1]
FILE = 'diffusion_pytorch_model.safetensors'


@pytest.fixture
def imagery(tmp_path: Path) -> Path:
    rng = np.random.default_rng(1)
    for name in ('photos', 'sprites'):
        (tmp_path / name).mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / 'photos' / f'{i}.png'), photograph(rng, 500, 700))
    rgba = np.dstack([photograph(rng, 256, 256), outline(np.random.default_rng(2))])
    cv2.imwrite(str(tmp_path / 'sprites' / 'a.png'), rgba)
    return tmp_path


def tool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, 'tools/train_blend.py', *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)


def crops_are_held_against_the_right_places(folder: Path) -> None:
    """However a crop is mirrored its flows fit as the cues, of the whole picture, say."""
    spec = importlib.util.spec_from_file_location('train_blend', ROOT / 'tools' / 'train_blend.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    pairs = module.Pairs(folder, 1)
    for _ in range(4):
        (cues, _, flows), pictures = pairs.batch(96, 4)
        for index in range(2):
            flow = flows[:, None, 2 * index : 2 * index + 2]
            fit = pictures.fits(flow)[:, 0, 0]
            # But for the border of the crop, where the window's mean is of fewer.
            off = (fit - cues[:, index * PER_FLOW])[:, 2:-2, 2:-2].abs()
            assert off.mean(dim=(1, 2)).max() < 0.01


def test_the_packaged_blend_trains_on_and_nothing_else_changes(
    imagery: Path, tmp_path: Path
) -> None:
    pairs, out = tmp_path / 'pairs', tmp_path / 'out'
    refused = tool('train', pairs, out)
    assert refused.returncode and 'fewer than two pairs' in refused.stderr
    matched = tool('match', pairs, imagery, '--count', '3', '--seed', '4')
    assert matched.returncode == 0, matched.stderr[-2000:]
    flows = [np.load(path).astype(np.float32) for path in sorted(pairs.glob('004_*_flows.npy'))]
    assert len(flows) == 3
    # The chosen flow is near the true one on pairs of noise that the generator moved, most often.
    errors = [np.median(np.hypot(*(x[..., :2] - x[..., 6:8]).transpose(2, 0, 1))) for x in flows]
    still = [np.median(np.hypot(*x[..., 6:8].transpose(2, 0, 1))) for x in flows]
    assert np.median(np.array(errors) / np.array(still)) < 0.5
    crops_are_held_against_the_right_places(pairs)

    trained = tool('train', pairs, out, '--minutes', '0.1')
    assert trained.returncode == 0, trained.stderr[-2000:]
    with (out / 'log.csv').open() as file:
        log = list(csv.DictReader(file))
    assert log[0]['step'] == '0' and int(log[-1]['step']) > 0
    assert 0 < float(log[0]['held_out']) < 1
    blends = []
    for name, prefix in (('raft_tiny', 'blend.'), ('daflow_tiny', 'raft.blend.')):
        before = load_file(ROOT / 'daflow_ros' / 'weights' / name / FILE)
        after = load_file(out / name / FILE)
        assert before.keys() == after.keys()
        changed = {k for k, v in after.items() if not torch.equal(v, before[k].to(v.dtype))}
        assert changed and all(k.startswith(prefix) for k in changed)
        assert prefix + 'mean' not in changed
        blends.append({k[len(prefix) :]: v for k, v in after.items() if k.startswith(prefix)})
    one, other = blends
    assert all(torch.equal(one[k], other[k]) for k in one)

    packaged = ROOT / 'daflow_ros' / 'weights' / 'raft_tiny'
    averaged = tool('mean', tmp_path / 'mean', packaged, out / 'raft_tiny')
    assert averaged.returncode == 0, averaged.stderr[-2000:]
    before, after = load_file(packaged / FILE), load_file(out / 'raft_tiny' / FILE)
    for name, prefix in (('raft_tiny', ''), ('daflow_tiny', 'raft.')):
        halfway = load_file(tmp_path / 'mean' / name / FILE)
        for key, value in before.items():
            if key.startswith('blend.') or not prefix:
                expected = (value.double() + after[key].double()) / 2
                off = (halfway[prefix + key].double() - expected).abs().max()
                # Training changed them by little, and neither of the two may pass for the mean.
                assert off <= 0.1 * (after[key].double() - value.double()).abs().max(), key
