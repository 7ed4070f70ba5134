# SPDX-License-Identifier: Apache-2.0
"""Windows drawn by worker processes, and the starts that refinement is trained from."""

import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pictures import photograph
from safetensors.torch import load_file

from daflow_ros.training.disturbed import disturbed
from daflow_ros.training.networks import build_network
from daflow_ros.training.window_stream import (
    WindowSize,
    WindowStore,
    WindowStream,
    bend,
    window,
)

CHECKPOINT = 'docs/training/checkpoints/raft_matcher'


def warp_error(frames, flow, inner=24):
    """Mean difference of the second frame, warped back by the flow, from the first."""
    height, width = flow.shape[:2]
    there = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1) + flow
    back = cv2.remap(frames[1], there.astype(np.float32), None, cv2.INTER_CUBIC)
    apart = np.abs(back.astype(float) - frames[0])
    return apart[inner:-inner, inner:-inner].mean()


@pytest.fixture
def moved():
    """A photograph that moves by (5, -3) px."""
    rng = np.random.default_rng(0)
    image = photograph(rng, 384, 512)
    shift = np.float32([[1, 0, 5], [0, 1, -3]])
    second = cv2.warpAffine(image, shift, (512, 384), borderMode=cv2.BORDER_REFLECT_101)
    return np.stack([image, second]), np.broadcast_to(np.float32([5, -3]), (384, 512, 2)).copy()


def test_flow_of_a_bent_pair_leads_to_what_the_first_frame_shows(moved):
    frames, flow = moved
    for seed in range(4):
        images, bent = bend(np.random.default_rng(seed), frames, flow)
        assert np.abs(bent - flow).max() > 0.3
        assert warp_error(images, bent) < 0.35 * warp_error(images, flow) + 0.5
        assert np.array_equal(images[0], frames[0])


def test_windows_of_any_scale_keep_the_flow_exact(moved):
    frames, flow = moved
    size = WindowSize(128, 160)
    scaled = 0
    for seed in range(12):
        images, part = window(np.random.default_rng(seed), frames, flow, size)
        assert images.shape == (2, 128, 160, 3) and part.shape == (128, 160, 2)
        scaled += not np.allclose(part[0, 0], (5, -3))
        assert warp_error(images, part, 16) < 4
        assert warp_error(images, part + 1, 16) > 2 * warp_error(images, part, 16)
    assert 1 <= scaled <= 9


def test_starts_are_the_truth_disturbed_or_no_motion():
    rng = torch.Generator().manual_seed(0)
    flow = torch.zeros(64, 2, 64, 96)
    flow[:, 0] = 6.0
    flow[:, :, 20:40, 30:60] = -4.0
    start = disturbed(flow, rng, cold=0.5)
    cold = (start == 0).flatten(1).all(dim=1)
    assert 20 <= int(cold.sum()) <= 44
    error = (start - flow).norm(dim=1).flatten(1).mean(dim=1)[~cold]
    assert 0.1 < float(error.median()) < 3.5 and float(error.min()) > 0
    # No worse than no motion in most of them.
    still = flow.norm(dim=1).flatten(1).mean(dim=1)[~cold]
    assert float((error < still).float().mean()) > 0.8
    assert torch.isfinite(start).all()
    again = disturbed(flow, torch.Generator().manual_seed(0), cold=0.5)
    assert torch.equal(start, again)


@pytest.fixture
def imagery(tmp_path):
    rng = np.random.default_rng(1)
    for name in ('photos', 'sprites'):
        (tmp_path / name).mkdir()
    for i in range(2):
        cv2.imwrite(str(tmp_path / 'photos' / f'{i}.png'), photograph(rng, 600, 800))
    mask = np.zeros((128, 128), np.uint8)
    cv2.circle(mask, (64, 64), 50, 255, -1)
    sprite = np.dstack([photograph(rng, 128, 128), mask])
    cv2.imwrite(str(tmp_path / 'sprites' / '0.webp'), sprite)
    return tmp_path


def test_workers_fill_the_store_and_end(imagery):
    stream = WindowStream(imagery, 1, slots=5, size=WindowSize(96, 128), seed=3)
    try:
        store = WindowStore(stream.windows, torch.device('cpu'))
        with pytest.raises(RuntimeError, match='no window'):
            store.batch(2, torch.Generator())
        deadline = time.monotonic() + 240
        while store.refresh() < 7:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        frames, flow = store.batch(16, torch.Generator().manual_seed(2))
        assert frames.shape == (16, 2, 3, 96, 128) and flow.shape == (16, 2, 96, 128)
        assert float(frames.min()) >= -1 and float(frames.max()) <= 1
        assert float(frames.std(dim=(1, 2, 3, 4)).min()) > 0.01
        # Each is a window that is stored, mirrored or not, and its flow mirrored with it.
        kept = store.flow[0].float()
        for one in flow:
            poses = [one, one.flip(2) * torch.tensor([-1.0, 1.0])[:, None, None]]
            poses += [pose.flip(1) * torch.tensor([1.0, -1.0])[:, None, None] for pose in poses]
            assert any(torch.equal(pose, other) for pose in poses for other in kept)
        stream.supervisor.terminate()
        stream.supervisor.join()
        with pytest.raises(RuntimeError, match='have ended'):
            store.refresh()
    finally:
        stream.close()


def test_a_program_that_closes_nothing_ends(imagery, tmp_path):
    program = tmp_path / 'program.py'
    program.write_text(
        'import sys\n'
        'from daflow_ros.training.window_stream import WindowStream\n'
        "if __name__ == '__main__':\n"
        '    stream = WindowStream(sys.argv[1], 1, slots=2)\n'
        '    print(stream.folder.name)\n'
    )
    command = [sys.executable, str(program), str(imagery)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert run.returncode == 0, run.stderr[-2000:]
    assert not Path(run.stdout.strip().splitlines()[-1]).exists()


def test_a_stream_without_imagery_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match='photos'):
        WindowStream(tmp_path, 1)
    with pytest.raises(ValueError, match='0 workers'):
        WindowStream(tmp_path, 0)


def test_matchers_train_side_by_side_from_one_trunk(imagery, tmp_path):
    root = Path(__file__).parents[1]
    out = tmp_path / 'out'
    command = [
        sys.executable, 'tools/train_matchers.py', str(imagery), str(out), '--device', 'cpu',
        '--trunk', '1', '--each', '1', '--workers', '1', '--slots', '4', '--batch', '1',
        '--iterations', '1', '--rate', '1e-5', '--start', CHECKPOINT,
    ]  # fmt: skip
    run = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=500)
    assert run.returncode == 0, run.stderr[-2000:]
    weights = {
        name: load_file(out / f'{name}.safetensors') for name in ('trunk', 'raft', 'daflow')
    }
    for name, kind in (('trunk', 'raft'), ('raft', 'raft'), ('daflow', 'daflow')):
        build_network(f'{kind}_matcher').load_state_dict(weights[name])
        assert (out / f'{name}.csv').read_text().startswith('step,seconds,rate,windows,loss')
    # Both went on from the trunk, and it from the checkpoint, by a few steps at a low rate.
    given = load_file(root / CHECKPOINT / 'diffusion_pytorch_model.safetensors')
    for name, prefix in (('trunk', ''), ('raft', ''), ('daflow', 'raft.')):
        for part in ('fnet.conv1.weight', 'update_block.flow_head.conv2.weight'):
            apart = (weights[name][prefix + part] - given[part].float()).abs()
            assert float(apart.max()) < 1e-3 < float(given[part].float().std())
