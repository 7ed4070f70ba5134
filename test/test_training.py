# SPDX-License-Identifier: Apache-2.0
"""Training repeats from a seed, resumes to the step, and its losses are what they claim."""

import csv
import math

import numpy as np
import pytest
import torch

from daflow_ros.models.raft import FlowOutput
from daflow_ros.training.flow_training import (
    FlowTrainer,
    FlowTrainingConfig,
    learning_rate_factor,
    warm_start,
)
from daflow_ros.training.losses import laplace_nll, matching_loss, sequence_loss


def config(folder, **changes):
    settings = {
        'model': 'raft_tiny',
        'output': str(folder),
        'steps': 4,
        'decay': 2,
        'batch': 1,
        'size': 64,
        'iterations': 2,
        'save_every': 2,
        'log_every': 1,
        'warmup': 2,
        'precision': 'no',
    }
    return FlowTrainingConfig(**{**settings, **changes})


def losses(folder):
    with (folder / 'log.csv').open() as file:
        return [float(row['sequence']) for row in csv.DictReader(file)]


def test_a_seed_gives_the_same_losses_and_a_resumed_run_continues_them(tmp_path):
    FlowTrainer(config(tmp_path / 'whole')).run()
    FlowTrainer(config(tmp_path / 'again')).run()
    whole = losses(tmp_path / 'whole')
    assert len(whole) == 4
    assert losses(tmp_path / 'again') == whole
    # Stop after two of the four steps of the same schedule, then go on in a new trainer.
    first = FlowTrainer(config(tmp_path / 'parts'))
    rows = []
    for _ in range(2):
        rows.append(first.train_step()['sequence'])
    first.save()
    second = FlowTrainer(config(tmp_path / 'parts'))
    assert second.step == 2
    second.run()
    np.testing.assert_allclose([*rows, *losses(tmp_path / 'parts')], whole, rtol=1e-3)
    a = torch.load(tmp_path / 'whole' / 'state.pt', weights_only=True)['averaged']
    b = torch.load(tmp_path / 'parts' / 'state.pt', weights_only=True)['averaged']
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=1e-3, atol=1e-5)


def test_state_of_another_model_is_refused(tmp_path):
    FlowTrainer(config(tmp_path)).save()
    with pytest.raises(ValueError, match='a run of raft_tiny'):
        FlowTrainer(config(tmp_path, model='daflow_tiny'))


def test_restoration_learns(tmp_path):
    from daflow_ros.training.restoration import RestorationTrainer

    trainer = RestorationTrainer(
        config(tmp_path, model='daflow_tiny', degraded=0.0, learning_rate=2e-3, size=64, reuse=100)
    )
    before = trainer.train_step()['restoration']
    for _ in range(14):
        last = trainer.train_step()['restoration']
    assert last < 0.9 * before


def test_schedule():
    settings = FlowTrainingConfig(steps=1000, decay=200, warmup=100)
    assert learning_rate_factor(0, settings) == pytest.approx(0.01)
    assert learning_rate_factor(500, settings) == 1.0
    assert learning_rate_factor(900, settings) == pytest.approx(0.5)
    assert learning_rate_factor(1000, settings) == 0.0


def test_sequence_loss_of_the_truth_is_zero_and_weights_later_iterations_more():
    flow = torch.full((1, 2, 32, 32), 4.0)
    valid = torch.ones(1, 1, 32, 32)
    low = torch.full((1, 2, 4, 4), 0.5)
    exact = FlowOutput(flow, [low, low, low])
    assert float(sequence_loss(exact, flow, valid)[0]) == 0
    early = FlowOutput(flow, [low + 1, low, low])
    late = FlowOutput(flow, [low, low + 1, low])
    # One cell is 8 px; gamma^2 and gamma^1.
    assert float(sequence_loss(early, flow, valid)[0]) == pytest.approx(8 * 0.64)
    assert float(sequence_loss(late, flow, valid)[0]) == pytest.approx(8 * 0.8)


def test_matching_loss_against_a_plain_cross_entropy():
    h = w = 4
    flow = torch.zeros(1, 2, 32, 32)
    flow[:, 0] = 8.0  # exactly one cell to the right
    logits = torch.randn(1, h * w, h * w, generator=torch.Generator().manual_seed(0))
    visible = torch.ones(1, 1, 32, 32)
    index = torch.arange(h * w).reshape(h, w)
    source, target = index[:, :-1].flatten(), index[:, 1:].flatten()
    expected = torch.nn.functional.cross_entropy(logits[0, source], target)
    assert float(matching_loss(logits, flow, visible)) == pytest.approx(float(expected), rel=1e-4)


def test_laplace_nll_against_the_density():
    raw = torch.tensor([0.3, -0.2, 1.1]).reshape(1, 3, 1, 1)
    flow, target = torch.zeros(1, 2, 1, 1), torch.tensor([0.7, -2.0]).reshape(1, 2, 1, 1)
    weight = math.exp(0.3) / (math.exp(0.3) + math.exp(-0.2))
    b = math.exp(1.1)

    def one(scale):
        return math.exp(-(0.7 + 2.0) / scale) / (2 * scale) ** 2

    joint = weight * one(b) + (1 - weight) * one(1.0)
    nll = float(laplace_nll(raw, flow, target, torch.ones(1, 1, 1, 1)))
    independent = -sum(
        math.log(
            weight * math.exp(-e / b) / (2 * b) + (1 - weight) * math.exp(-e) / 2
        )
        for e in (0.7, 2.0)
    )
    assert nll == pytest.approx(independent, rel=1e-5)
    assert nll != pytest.approx(-math.log(joint), rel=1e-3)


def test_warm_start_is_the_true_flow_disturbed():
    flow = torch.full((8, 2, 64, 64), 16.0)
    start = warm_start(flow, torch.Generator().manual_seed(1))
    assert start.shape == (8, 2, 8, 8)
    assert 0.5 < float(start.median()) / 2 < 1.5
    assert float(start.std()) > 0.05


def test_paper_recipe_on_video_with_a_teacher(tmp_path):
    cv2 = pytest.importorskip('cv2')
    folder = tmp_path / 'videos' / 'one'
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    big = cv2.resize(rng.integers(0, 255, (30, 40, 3), np.uint8), (160, 120))
    for i in range(4):
        cv2.imwrite(str(folder / f'{i:03d}.png'), big[8 : 8 + 80, 20 - 2 * i : 120 - 2 * i])
    trainer = FlowTrainer(
        config(
            tmp_path / 'run',
            model='daflow_tiny',
            video=str(tmp_path / 'videos'),
            teacher='dis',
            frames=3,
            steps=1,
        )
    )
    clip = trainer.scenes(2, trainer.generator)
    assert clip.frames.shape == (2, 3, 3, 64, 64) and clip.flow.shape == (2, 2, 2, 64, 64)
    # The picture window moves left, so the picture moves right by 2 px a frame.
    inner = clip.flow[..., 20:44, 20:44].mean(dim=(0, 1, 3, 4))
    np.testing.assert_allclose(inner, [2, 0], atol=0.2)
    figures = trainer.train_step()
    assert math.isfinite(figures['sequence'])
    with pytest.raises(FileNotFoundError, match='no recording with'):
        videos = str(tmp_path / 'videos')
        FlowTrainer(config(tmp_path / 'other', video=videos, teacher='dis', size=96))


def test_stored_clips_are_those_of_the_generator_and_train(tmp_path):
    from daflow_ros.training.clip_store import SHARD, StoredClips, write_clips

    write_clips(tmp_path / 'clips', None, 1, size=64, seed=3)
    [shard] = (tmp_path / 'clips').glob('*.npz')
    written = shard.stat().st_mtime_ns
    write_clips(tmp_path / 'clips', None, 1, size=64, seed=3)  # what is there is kept
    assert shard.stat().st_mtime_ns == written
    write_clips(tmp_path / 'again', None, 1, size=64, seed=3)
    stored = StoredClips(tmp_path / 'clips')
    clip = stored.batch(1, 8, torch.device('cpu'))
    again = StoredClips(tmp_path / 'again').batch(1, 8, torch.device('cpu'))
    assert clip.frames.shape == (8, 2, 3, 64, 64) and clip.flow.shape == (8, 1, 2, 64, 64)
    assert torch.equal(clip.frames, again.frames) and torch.equal(clip.flow, again.flow)
    assert clip.occluded.shape == (8, 1, 1, 64, 64) and clip.occluded.any()
    later = stored.batch(1 + SHARD // 8, 8, torch.device('cpu'))  # one shard: around again
    assert torch.equal(later.frames, clip.frames)
    # The flow belongs to the frames: more of them agree along it than against it.
    whole = stored.batch(0, SHARD, torch.device('cpu'))
    axis = torch.linspace(-1, 1, 64)
    y, x = torch.meshgrid(axis, axis, indexing='ij')

    def mismatch(sign):
        grid = sign * whole.flow[:, 0].permute(0, 2, 3, 1) * (2 / 63) + torch.stack([x, y], -1)
        found = torch.nn.functional.grid_sample(whole.frames[:, 1], grid, align_corners=True)
        return ((found - whole.frames[:, 0]).abs() * ~whole.occluded[:, 0]).mean(dim=(1, 2, 3))

    assert float((mismatch(1) < mismatch(-1)).float().mean()) > 0.8
    settings = config(tmp_path / 'run', clips=str(tmp_path / 'clips'), batch=2, steps=2)
    FlowTrainer(settings).run()
    assert all(math.isfinite(loss) for loss in losses(tmp_path / 'run'))
    with pytest.raises(FileNotFoundError, match='daflow clips'):
        StoredClips(tmp_path)
    with pytest.raises(ValueError, match='larger than a shard'):
        stored.batch(0, 64, torch.device('cpu'))
