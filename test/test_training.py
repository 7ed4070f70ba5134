# SPDX-License-Identifier: Apache-2.0
"""Training repeats from a seed, resumes to the step, and its losses are what they claim."""

import csv
import math

import numpy as np
import pytest
import torch

from daflow_ros.models.flow_output import FlowOutput
from daflow_ros.training.flow_training import FlowTrainer, warm_start
from daflow_ros.training.losses import (
    choice_loss,
    laplace_nll,
    matching_loss,
    selection_loss,
    sequence_loss,
)
from daflow_ros.training.networks import build_network
from daflow_ros.training.trainer import TrainingConfig, learning_rate_factor


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
    return TrainingConfig(**{**settings, **changes})


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
    settings = TrainingConfig(steps=1000, decay=200, warmup=100)
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


@pytest.mark.parametrize('scales', [(1.1,), (1.1, -1.5), (-2.0, 0.4)])
def test_laplace_nll_against_the_density(scales):
    """One log scale: the other is 0, as SEA-RAFT has it; two: both are free."""
    raw = torch.tensor([0.3, -0.2, *scales]).reshape(1, -1, 1, 1)
    flow, target = torch.zeros(1, 2, 1, 1), torch.tensor([0.7, -2.0]).reshape(1, 2, 1, 1)
    weight = math.exp(0.3) / (math.exp(0.3) + math.exp(-0.2))
    b1, b2 = (math.exp(scale) for scale in (*scales, 0.0)[:2])
    nll = float(laplace_nll(raw, flow, target, torch.ones(1, 1, 1, 1)))
    independent = -sum(
        math.log(
            weight * math.exp(-e / b1) / (2 * b1) + (1 - weight) * math.exp(-e / b2) / (2 * b2)
        )
        for e in (0.7, 2.0)
    )
    assert nll == pytest.approx(independent, rel=1e-5)


def test_warm_start_is_the_true_flow_disturbed():
    flow = torch.full((8, 2, 64, 64), 16.0)
    start = warm_start(flow, torch.Generator().manual_seed(1))
    assert start.shape == (8, 2, 64, 64)
    assert 0.5 < float(start.median()) / 16 < 1.5
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
    from daflow_ros.training.clip_store import SHARD, StoredClips, degrade_clips, write_clips

    clean, degraded, cpu = tmp_path / 'clean', tmp_path / 'degraded', torch.device('cpu')
    write_clips(clean, None, 1, size=64, seed=3)
    [shard] = clean.glob('*.npz')
    written = shard.stat().st_mtime_ns
    write_clips(clean, None, 1, size=64, seed=3)  # what is there is kept
    assert shard.stat().st_mtime_ns == written
    degrade_clips(clean, degraded, seed=1)
    write_clips(tmp_path / 'again', None, 1, size=64, seed=3)
    degrade_clips(tmp_path / 'again', tmp_path / 'degraded_again', seed=1)
    degrade_clips(clean, degraded, seed=2)  # the same clips in other weather
    assert len(list(degraded.glob('*.npz'))) == 2
    stored = StoredClips(degraded)
    sample = stored.batch(1, 8, cpu)
    again = StoredClips(tmp_path / 'degraded_again').batch(1, 8, cpu)
    assert sample.frames.shape == (8, 2, 3, 64, 64) and sample.flow.shape == (8, 2, 64, 64)
    assert sample.hypotheses.shape == (8, 16, 2, 64, 64)
    assert torch.equal(sample.frames, again.frames) and torch.equal(sample.flow, again.flow)
    assert torch.equal(sample.hypotheses, again.hypotheses)
    assert sample.occluded.shape == (8, 1, 64, 64) and sample.occluded.any()
    later = stored.batch(1 + 2 * SHARD // 8, 8, cpu)  # two shards: around again
    assert torch.equal(later.frames, sample.frames)
    other = stored.batch(1 + SHARD // 8, 8, cpu)
    assert torch.equal(other.flow, sample.flow) and not torch.equal(other.frames, sample.frames)
    # Every clip comes up once.
    seen = torch.cat([stored.batch(i, 8, cpu).flow for i in range(SHARD // 8)])
    assert len(torch.unique(seen.flatten(1), dim=0)) == SHARD
    settings = config(tmp_path / 'run', clips=str(degraded), batch=2, steps=2, size=48)
    FlowTrainer(settings).run()
    assert all(math.isfinite(loss) for loss in losses(tmp_path / 'run'))
    # Flow beyond half precision is left out of the loss.
    for path in degraded.glob('*.npz'):
        with np.load(path) as file:
            arrays = dict(file)
        arrays['flow'][:, 0, 24:40, 24:40] = np.inf
        np.savez(path, **arrays)
    settings = config(
        tmp_path / 'far', clips=str(degraded), batch=2, steps=2, size=48, selector_rate=1e-4
    )
    FlowTrainer(settings).run()
    assert all(math.isfinite(loss) for loss in losses(tmp_path / 'far'))
    with pytest.raises(FileNotFoundError, match='daflow clips'):
        StoredClips(tmp_path)
    with pytest.raises(ValueError, match='larger than a shard'):
        stored.batch(0, 64, cpu)
    with pytest.raises(ValueError, match='--degrade'):
        StoredClips(clean).batch(0, 8, cpu)


def test_flow_and_hypotheses_belong_to_the_frames_after_crop_and_flip(tmp_path):
    from daflow_ros.training.clip_store import SHARD, StoredClips, degrade_clips, flip, write_clips

    write_clips(tmp_path / 'clean', None, 1, size=64, seed=5)
    degrade_clips(tmp_path / 'clean', tmp_path / 'degraded')
    whole = StoredClips(tmp_path / 'degraded').batch(0, SHARD, torch.device('cpu'))
    axis = torch.arange(48) / 23.5 - 1
    y, x = torch.meshgrid(axis, axis, indexing='ij')
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        sample = flip(whole.crop(48, generator), generator)
        assert sample.frames.shape[-2:] == (48, 48)

        def mismatch(flow, sign, sample=sample):
            grid = sign * flow.permute(0, 2, 3, 1) * (2 / 47) + torch.stack([x, y], -1)
            found = torch.nn.functional.grid_sample(
                sample.frames[:, 1], grid, align_corners=True, padding_mode='border'
            )
            difference = (found - sample.frames[:, 0]).abs()
            return (difference * ~sample.occluded).mean(dim=(1, 2, 3))

        for flow in (sample.flow, sample.hypotheses[:, 0]):
            assert float((mismatch(flow, 1) < mismatch(flow, -1)).float().mean()) > 0.7


def test_selection_loss_wants_the_right_candidate():
    flow = torch.full((1, 2, 32, 32), 8.0)
    candidates = torch.stack([torch.full((1, 2, 8, 8), v) for v in (0.0, 2.0, 5.0)], dim=1)
    valid = torch.ones(1, 1, 32, 32)

    def loss(*logits):
        weights = torch.tensor(logits).log_softmax(0).reshape(1, 3, 1, 1).expand(1, 3, 8, 8)
        return float(selection_loss([(weights, candidates)], flow, valid))

    assert loss(0.0, 20.0, 0.0) < 1e-3
    assert loss(0.0, 0.0, 0.0) == pytest.approx(math.log(3), rel=1e-3)
    assert loss(5.0, 0.0, 0.0) == pytest.approx(math.log(math.exp(5) + 2), rel=1e-3)
    same = candidates[:, 1:2].expand(-1, 3, -1, -1, -1)  # nothing to choose
    assert float(selection_loss([(torch.zeros(1, 3, 8, 8), same)], flow, valid)) == 0


def test_rendered_pairs_become_clips_both_ways(tmp_path):
    from daflow_ros.cli import main
    from daflow_ros.training.clip_store import SHARD, StoredClips, degrade_clips

    # Each pair: a plane that moves by (2, 1) px, and a patch in it that stands still.
    rng = np.random.default_rng(0)
    pairs = tmp_path / 'pairs'
    pairs.mkdir()
    for number in range(SHARD + 3):
        plane = rng.integers(0, 255, (72, 72, 3), dtype=np.uint8)
        first, second = plane[8:, 8:].copy(), plane[7:-1, 6:-2].copy()
        first[20:30, 20:30] = second[20:30, 20:30] = 255
        flow = np.zeros((2, 64, 64, 2), np.float32)
        flow[0], flow[1] = (2, 1), (-2, -1)
        flow[:, 20:30, 20:30] = 0
        flow[:, 2, 2] = 1e6  # beyond half precision
        path = pairs / f'001_{number:05d}.npz'
        np.savez(path, frames=np.stack([first, second]), flow=flow)
    clips = tmp_path / 'clips'
    assert main(['clips', str(clips), '--rendered', str(pairs)]) == 0
    stored = StoredClips(clips)
    assert len(stored.paths) == 2
    for way in range(2):
        rows = stored.shard(way)
        forth = 'forth' in stored.paths[way].stem
        dx, dy = (2, 1) if forth else (-2, -1)
        assert rows['frames'].shape == (SHARD, 2, 3, 64, 64)
        assert (rows['flow'][:, :, 40, 40] == (dx, dy)).all()
        assert np.isfinite(rows['flow']).all()
        hidden = np.unpackbits(rows['occluded'], axis=-1)[:, 0].astype(bool)
        y, x = np.mgrid[5:58, 5:58]
        moved = ~((y >= 20) & (y < 30) & (x >= 20) & (x < 30))
        target = (y + dy >= 20) & (y + dy < 30) & (x + dx >= 20) & (x + dx < 30)
        np.testing.assert_array_equal(hidden[0, 5:58, 5:58], moved & target)
        images = rows['frames'].astype(int)
        there = images[:, 1][..., y + dy, x + dx]
        here = images[:, 0][..., y, x]
        assert (there == here)[..., moved & ~target].all()
    # Pairs of another seed that come later leave the shards that are there as they are.
    for number in range(SHARD - 1):
        (pairs / f'000_{number:05d}.npz').write_bytes(path.read_bytes())
    before = {shard: shard.read_bytes() for shard in stored.paths}
    assert main(['clips', str(clips), '--rendered', str(pairs)]) == 0
    assert {shard: shard.read_bytes() for shard in StoredClips(clips).paths} == before
    (pairs / f'000_{SHARD - 1:05d}.npz').write_bytes(path.read_bytes())
    assert main(['clips', str(clips), '--rendered', str(pairs)]) == 0
    assert len(StoredClips(clips).paths) == 4
    degrade_clips(clips, tmp_path / 'degraded')
    assert StoredClips(tmp_path / 'degraded').batch(0, 4, torch.device('cpu')).frames.shape[0] == 4
    np.savez(pairs / '001_00000.npz', frames=np.zeros((2, 8, 8, 3), np.uint8), flow=np.zeros(3))
    assert main(['clips', str(tmp_path / 'other'), '--rendered', str(pairs)]) == 2


def test_balanced_loss_counts_a_hopeless_clip_less():
    flow = torch.zeros(2, 2, 16, 16)
    final = torch.zeros(2, 2, 16, 16)
    final[0], final[1] = 1.0, 20.0
    output = FlowOutput(final, [])
    valid = torch.ones(2, 1, 16, 16)
    assert float(sequence_loss(output, flow, valid)[0]) == pytest.approx(10.5)
    a, b = 2**0.5, 20 * 2**0.5
    expected = (1 / (1 + a / 2) + 20 / (1 + b / 2)) / 2
    assert float(sequence_loss(output, flow, valid, balance=2.0)[0]) == pytest.approx(expected)


def test_selector_learns_to_choose_and_starts_another_network(tmp_path):
    from daflow_ros.training.clip_store import degrade_clips, write_clips
    from daflow_ros.training.networks import load_folder

    write_clips(tmp_path / 'clean', None, 1, size=64, seed=3)
    degrade_clips(tmp_path / 'clean', tmp_path / 'clips')
    settings = config(
        tmp_path / 'raft', clips=str(tmp_path / 'clips'), batch=8, steps=24, iterations=1,
        learning_rate=2e-3, selector_rate=2e-3, ema=0.0,
    )  # fmt: skip
    trainer = FlowTrainer(settings)
    mean = trainer.network.selector.mean.clone()
    assert float(mean.abs().max()) > 0  # of the cues
    trainer.run()
    with open(tmp_path / 'raft' / 'log.csv') as file:
        course = [float(row['chosen']) for row in csv.DictReader(file)]
    assert np.mean(course[-4:]) < 0.95 * np.mean(course[:4])
    again = FlowTrainer(settings)
    assert again.step == 24 and torch.equal(again.network.selector.mean, mean)
    start = str(tmp_path / 'raft' / 'model')
    raft = load_folder(start)
    # A folder with a trained selector keeps its mean.
    settings = config(tmp_path / 'further', model=start, selector_rate=1e-3)
    further = FlowTrainer(settings)
    assert torch.equal(further.network.selector.mean, mean)
    flow = FlowTrainer(config(tmp_path / 'flow', model='daflow_tiny', start=start))
    torch.testing.assert_close(flow.network.raft.selector.mean, raft.selector.mean)
    frozen = {k: v.clone() for k, v in flow.network.raft.selector.state_dict().items()}
    before = flow.network.raft.fusion.head.bias.detach().clone()
    flow.train_step()
    flow.train_step()
    assert not torch.equal(flow.network.raft.fusion.head.bias, before)
    for name, value in flow.network.raft.selector.state_dict().items():
        assert torch.equal(value, frozen[name])


def test_choice_loss_against_known_errors():
    truth = torch.ones(1, 2, 16, 16)
    candidates = torch.stack([torch.full((1, 2, 4, 4), v) for v in (0.25, 1.0)], dim=1)
    shares = torch.tensor([9.0, -9.0])[None, :, None, None].log_softmax(dim=1).expand(1, 2, 4, 4)
    valid = torch.ones(1, 1, 16, 16)
    right = choice_loss(shares, torch.full((1, 2, 2, 4, 4), 0.25), truth, valid)
    assert float(right[0]) < 1e-3 and float(right[1]) < 1e-3
    even, blend = choice_loss(torch.full((1, 2, 4, 4), 0.5).log(), candidates, truth, valid)
    assert float(blend) == pytest.approx(1.5 * 2**0.5)  # halfway between 1 and 4 px
    assert float(even) > 1
    valid[..., 8:] = 0  # half of the cells
    _, half = choice_loss(torch.full((1, 2, 4, 4), 0.5).log(), candidates, truth, valid)
    assert float(half) == pytest.approx(0.75 * 2**0.5)


def test_tone_sharpens_and_overexposes_without_moving_anything():
    from daflow_ros.training.tone import random_tone

    ramp = torch.linspace(0.1, 0.9, 64).expand(1, 2, 3, 48, 64).repeat(64, 1, 1, 1, 1)
    ramp[..., 32:] += 0.1  # an edge
    before = ramp.clone()
    toned = random_tone(ramp, torch.Generator().manual_seed(0))
    assert torch.equal(ramp, before) and toned.shape == ramp.shape
    assert toned.min() >= 0 and toned.max() <= 1
    assert torch.equal(toned, random_tone(ramp, torch.Generator().manual_seed(0)))
    torch.testing.assert_close(toned[:, 0], toned[:, 1])  # all frames alike
    steps = toned[:, 0, 0, 24].diff(dim=1)
    inner = (toned[:, 0, 0, 24, 31] > 0) & (toned[:, 0, 0, 24, 32] < 1)
    assert (steps[inner, 31] >= steps[inner, 20] + 0.09).all()  # the edge stays where it is
    blown = (toned[:, 0, 0, 24] == 1).float().mean(dim=1)
    assert 3 < int((blown > 0.25).sum()) < 32


def test_workers_draw_what_a_matcher_is_trained_on(tmp_path):
    cv2 = pytest.importorskip('cv2')
    rng = np.random.default_rng(0)
    for name in ('photos', 'sprites'):
        (tmp_path / name).mkdir()
    picture = cv2.resize(rng.integers(0, 255, (60, 80, 3), np.uint8), (800, 600))
    cv2.imwrite(str(tmp_path / 'photos' / '0.png'), picture)
    alpha = np.zeros((96, 96), np.uint8)
    cv2.circle(alpha, (48, 48), 40, 255, -1)
    cv2.imwrite(str(tmp_path / 'sprites' / '0.png'), np.dstack([picture[:96, :96], alpha]))
    with pytest.raises(ValueError, match='hypotheses'):
        FlowTrainer(config(tmp_path / 'no', imagery=str(tmp_path), workers=1))
    settings = config(
        tmp_path / 'run', model='raft_matcher', imagery=str(tmp_path), workers=1, warm_starts=0.5,
        batch=2, steps=3,
    )  # fmt: skip
    trainer = FlowTrainer(settings)
    trainer.run()
    assert trainer.stream is not None and not trainer.stream.supervisor.is_alive()
    assert len(losses(tmp_path / 'run')) == 3 and np.isfinite(losses(tmp_path / 'run')).all()
    saved = build_network(str(tmp_path / 'run' / 'model'))
    image = torch.zeros(1, 3, 64, 96)
    output = saved.eval()(image, image, 2, torch.full((1, 2, 64, 96), 3.0))
    assert output.flow.shape == (1, 2, 64, 96) and output.laplace.shape == (1, 4, 64, 96)
