# SPDX-License-Identifier: Apache-2.0
"""Rendered scenes: run where `DAFLOW_BLENDER` names a Python that has `bpy` (373 MB)."""

import os
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from daflow_ros.flow.consistency import forward_backward_mask, warp
from daflow_ros.training.rendered_pairs import read_rendered_pair

BLENDER = os.environ.get('DAFLOW_BLENDER')
TOOL = Path(__file__).parents[1] / 'tools' / 'render_scenes.py'


@pytest.mark.skipif(not BLENDER, reason='DAFLOW_BLENDER names no Python with bpy')
def test_rendered_flow_is_exact_both_ways(tmp_path):
    rng = np.random.default_rng(0)
    for kind, channels in (('photos', 3), ('sprites', 4)):
        (tmp_path / kind).mkdir()
        for number in range(3):
            coarse = rng.integers(0, 255, (12, 12, channels), dtype=np.uint8)
            if channels == 4:
                coarse[..., 3] = cv2.circle(np.zeros((12, 12), np.uint8), (6, 6), 4, 255, -1)
            smooth = cv2.resize(coarse, (384, 384), interpolation=cv2.INTER_CUBIC)
            cv2.imwrite(str(tmp_path / kind / f'{number}.png'), smooth)
    command = [BLENDER, TOOL, tmp_path, tmp_path / 'pairs', '--count', '6', '--size', '192']
    subprocess.run(command, check=True, timeout=600)
    pairs = [read_rendered_pair(path) for path in sorted((tmp_path / 'pairs').glob('*.npz'))]
    assert len(pairs) == 6
    moved, errors, still = [], [], []
    for frames, flow in pairs:
        first, second = frames.astype(np.float32)
        seen = forward_backward_mask(flow[0], flow[1])
        assert seen.mean() > 0.4
        back = warp(flow[1], flow[0])
        agree = np.linalg.norm(flow[0] + back, axis=-1)[seen]
        assert np.median(agree) < 0.02
        errors.append(np.abs(warp(second, flow[0]) - first).mean(axis=-1)[seen])
        still.append(np.abs(second - first).mean(axis=-1)[seen])
        moved.append(np.linalg.norm(flow[0], axis=-1).mean())
    assert max(moved) > 1
    # Shadows and edges move otherwise, surfaces as told.
    assert np.concatenate(errors).mean() < 0.35 * np.concatenate(still).mean()
    assert np.median(np.concatenate(errors)) < 1.0
