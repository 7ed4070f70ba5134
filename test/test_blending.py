# SPDX-License-Identifier: Apache-2.0
"""The blend of chosen flow, matcher's and dominant plane's: cues, ends, that it can learn."""

from __future__ import annotations

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from pictures import photograph

from daflow_ros.estimators import load_estimator
from daflow_ros.flow.hypotheses import BACKWARD, HYPOTHESES, NUM_HYPOTHESES, dis_hypotheses
from daflow_ros.models.blend_cues import (
    COLOUR,
    GROUPS,
    MEANS,
    NEAR,
    NUM_CUES,
    OF_BOTH,
    PER_FLOW,
    PLANE,
    PLANE_ALONE,
    PLANE_BESIDE,
    blend_cues,
)
from daflow_ros.models.blending import DOUBT, GUIDES, FlowBlend, blend_flows
from daflow_ros.models.dominant_plane import dominant_plane
from daflow_ros.models.flow_output import FlowOutput, expected_error
from daflow_ros.models.mirrored import mean_of_mirrored
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_sizes import RAFT_TINY
from daflow_ros.models.spatial_propagation import NUM_HELD, RINGS
from daflow_ros.training import flow_training
from daflow_ros.training.clip_store import write_shard
from daflow_ros.training.flow_training import FlowTrainer
from daflow_ros.training.losses import blend_weight, sequence_loss
from daflow_ros.training.networks import build_network, load_folder, with_matcher
from daflow_ros.training.trainer import TrainingConfig

#: A RAFT without hypotheses, small enough for a test.
SMALL_MATCHER = {
    'encoder_dims': (8, 12, 16),
    'encoder_depths': (1, 1, 1),
    'feature_dim': 16,
    'context_norm': 'instance',
    'hidden_dim': 16,
    'context_dim': 16,
    'corr_dims': (16,),
    'flow_dims': (8, 8),
    'motion_dim': 16,
    'head_dim': 16,
    'mask_dim': 16,
    'confidence_head': True,
    'start_detail': True,
}
COUNT = NUM_HYPOTHESES + len(BACKWARD)


@pytest.fixture(scope='module')
def blended() -> RAFT:
    """A network with a matcher; what the blend says is random."""
    torch.manual_seed(1)
    network = with_matcher(RAFT(**RAFT_TINY), RAFT(**SMALL_MATCHER)).eval()
    torch.nn.init.normal_(network.blend.weight.weight, std=0.1)
    return network


@pytest.fixture(scope='module')
def pair() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    coarse = torch.randn((2, 3, 12, 16), generator=g)
    first = torch.nn.functional.interpolate(coarse, scale_factor=8, mode='bicubic').tanh()
    return first, first.roll(3, dims=-1), 4 * torch.randn((2, COUNT, 2, 96, 128), generator=g)


def keep_own_flow(blend: FlowBlend) -> None:
    """Nothing is taken from around."""
    torch.nn.init.zeros_(blend.guide.weight)
    last = blend.look.say.bias.data[NUM_HELD : 2 * NUM_HELD]
    for bias in (*blend.guide.bias.data.split(GUIDES), last):
        bias[1 : 1 + len(RINGS)] = -60.0


def random_features() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """At 1/8 and 1/4; what the first has is found 8 px to the right in the second."""
    g = torch.Generator().manual_seed(6)
    every = [torch.randn((2, 8, 96 // n, 128 // n), generator=g) for n in (8, 4)]
    return [(x, x.roll(8 // n, dims=-1)) for x, n in zip(every, (8, 4), strict=True)]


def test_features_agree_along_the_true_flow(pair) -> None:
    first, second, flows = pair
    three = torch.zeros(2, 3, 2, 96, 128)
    three[:, 1:, 0] = 8.0
    cues = blend_cues(
        first, second, three, torch.ones(2, 2, 96, 128), flows[:, :NUM_HYPOTHESES],
        random_features(),
    )[..., 8:-8, 8:-16]  # fmt: skip
    agreed = cues[:, PLANE - 4 * GROUPS : PLANE].unflatten(1, (2, 2, GROUPS)).mean(dim=(3, 4, 5))
    # (B, resolution, flow): directions are compared, so that the same is 1.
    assert torch.allclose(agreed[:, :, 1], torch.ones(2, 2), atol=0.02)
    assert agreed[:, :, 0].abs().max() < 0.2
    plane = cues[:, -2 * GROUPS :].unflatten(1, (2, GROUPS)).mean(dim=(2, 3, 4))
    assert torch.allclose(plane, agreed[:, :, 1])


def test_cues_are_what_they_are_called(pair) -> None:
    first, second, flows = pair
    three, hypotheses = flows[:, :3].clone(), flows[:, :NUM_HYPOTHESES].clone()
    three[:] = torch.tensor([3.0, 0.0])[:, None, None]  # the true one
    three[:, 1] += torch.tensor([0.0, 4.0])[:, None, None]
    three[:, 2, 0, :, :96] += 0.75  # the plane's
    three[:, 2, 0, :, 96:] += 2.0
    hypotheses[:] = 50.0
    hypotheses[:, 5] = torch.tensor([3.0, 1.0])[:, None, None]
    hypotheses[:, len(HYPOTHESES)] = torch.tensor([0.0, 4.0])[:, None, None]
    errors = torch.tensor([0.5, 0.001])[None, :, None, None].expand(2, 2, 96, 128)
    features = random_features()
    cues = blend_cues(first, second, three, errors, hypotheses, features)
    assert cues.shape == (2, NUM_CUES, 48, 64)

    def level(index: int) -> float:
        return float(cues[:, index].median().exp())

    right, wrong = 0, PER_FLOW
    # Evened grey values fit along the true flow but for the half px between.
    assert level(right) < 0.5 * level(wrong) and level(right + 2) < 0.5 * level(wrong + 2)
    # 3 px lead out on the right, 4 px at the bottom as well.
    assert torch.equal(cues[:, right + 4, :, -1], torch.ones(2, 48))
    assert torch.equal(cues[:, right + 4, -1, :-2], torch.zeros(2, 62))
    assert torch.equal(cues[:, wrong + 4, -1], torch.ones(2, 64))
    assert np.isclose(level(right + 6), 0.5) and np.isclose(level(wrong + 6), 0.02)
    # Nearest hypothesis; dominant motion, (0, 4); support of all; length.
    assert np.isclose(level(right + 7), 1.1) and np.isclose(level(wrong + 7), 3.1)
    assert np.isclose(level(right + 8), 5.1) and np.isclose(level(wrong + 8), 3.1)
    support = (np.exp(-1) + np.exp(-5)) / NUM_HYPOTHESES
    assert np.isclose(float(cues[0, right + 9, 20, 20]), support, rtol=1e-3)
    assert np.isclose(level(wrong + 10), 5.3)
    assert np.isclose(level(2 * PER_FLOW), 4.1)
    both = slice(2 * PER_FLOW + 2, 2 * PER_FLOW + OF_BOTH)
    assert torch.allclose(cues[:, both], cues[:, :4] - cues[:, PER_FLOW : PER_FLOW + 4])
    assert torch.equal(cues[:, COLOUR], torch.nn.functional.avg_pool2d(first, 2))
    mean = cues[:, 6].mean(dim=(1, 2))
    assert torch.allclose(cues[:, PLANE - MEANS - 4 * GROUPS + 2, 7, 9], mean)
    # The plane's: as those of the others; how near they are, and for how much of the picture.
    assert 1.1 * level(right + 2) < level(PLANE + 2) < level(wrong + 2)
    assert np.isclose(level(PLANE + 5), 0.1 + np.hypot(0.75, 1))
    assert np.isclose(level(PLANE + 8), 0.3 + 3.75)
    beside = PLANE + PLANE_ALONE
    assert beside == DOUBT[4] and beside + PLANE_BESIDE == DOUBT[5]
    assert np.isclose(level(beside), 0.85)
    assert np.isclose(level(beside + PLANE_BESIDE), 0.1 + np.hypot(0.75, 4))
    shares = [cues[0, beside + 2 + k, 5, 7] for k in range(len(NEAR))]
    assert np.allclose(shares, [0, 0.75, 1])
    fit = slice(beside + 2 * PLANE_BESIDE, beside + 2 * PLANE_BESIDE + 4)
    assert torch.allclose(cues[:, fit], cues[:, :4] - cues[:, PLANE : PLANE + 4])


@pytest.mark.parametrize('sure', [(-40.0, -40.0), (40.0, 0.0), (0.0, 40.0)])
def test_a_sure_blend_gives_one_of_the_three(
    blended: RAFT, pair, sure: tuple[float, float], monkeypatch
) -> None:
    first, second, hypotheses = pair
    alone = RAFT(**RAFT_TINY).eval()
    alone.load_state_dict(
        {k: v for k, v in blended.state_dict().items() if not k.startswith(('matcher', 'blend'))}
    )
    blend = with_matcher(alone, blended.matcher).eval()
    blend.blend.weight.bias.data.copy_(torch.tensor(sure))
    keep_own_flow(blend.blend)
    calls = []
    refine = blend.matcher.refine

    def counted(features, count):
        calls.append(count)
        return refine(features, count)

    monkeypatch.setattr(blend.matcher, 'refine', counted)
    there = (first, second), (first.flip(-1), second.flip(-1))
    with torch.inference_mode():
        for iterations in (2, 7):
            found = blend(first, second, iterations, None, hypotheses)
            expected = alone(first, second, iterations, None, hypotheses).flow
            if sure[0] > 0:
                found_there = [blended.matcher(*pair, 12) for pair in there]
                expected = mean_of_mirrored(*found_there)
            elif sure[1] > 0:
                expected = dominant_plane(expected, first, second)
            assert torch.allclose(found.flow, expected, atol=1e-4)
            assert calls[-1] == 12
            assert found.laplace.shape == (2, 4, 96, 128)
        # Fewer: what was chosen, without waiting for the matcher.
        for iterations in (0, 1):
            found = blend(first, second, iterations, None, hypotheses)
            assert torch.equal(found.flow, alone(first, second, iterations, None, hypotheses).flow)
    assert len(calls) == 4


def test_weights_lie_between_the_flows(pair) -> None:
    first, second, flows = pair
    torch.manual_seed(3)
    blend = FlowBlend(16)
    torch.nn.init.normal_(blend.weight.weight, std=5)
    torch.nn.init.zeros_(blend.weight.bias)
    keep_own_flow(blend)
    with torch.inference_mode():
        flow, _ = blend_flows(
            blend, (first, second), flows[:, [0, 1, 0]], torch.ones(2, 2, 96, 128),
            flows[:, :NUM_HYPOTHESES], random_features(), torch.zeros(2, 16, 12, 16),
        )  # fmt: skip
    apart = (flows[:, 1] - flows[:, 0]).abs().amin(dim=1) > 0.5
    share = ((flow - flows[:, 0]) / (flows[:, 1] - flows[:, 0])).transpose(0, 1)[:, apart]
    assert share.min() > -1e-3 and share.max() < 1 + 1e-3 and share.std() > 0.05
    # The same weight for u and v.
    assert torch.allclose(*share, atol=1e-3)


def test_the_matchers_last_state_is_shown_where_it_belongs(blended: RAFT, pair) -> None:
    first, second, hypotheses = pair
    given = {}
    hook = blended.blend.register_forward_pre_hook(
        lambda _, arguments: given.update(every=arguments, hidden=arguments[1])
    )
    with torch.inference_mode():
        blended(first, second, 2, None, hypotheses)
        hook.remove()
        expected = blended.matcher(first, second, 12).hidden
        assert torch.equal(given['hidden'], expected)
        assert not torch.allclose(expected, blended.matcher(first, second, 11).hidden)
        cues, _, *rest = given['every']
        flow = blended.blend(cues, expected, *rest)[0]
        # A corner of it tells on that corner most.
        other = expected.clone()
        other[:, :, :3, :3] = 1 - other[:, :, :3, :3]
        change = (blended.blend(cues, other, *rest)[0] - flow).abs()
    assert change[:, :, :24, :24].mean() > 4 * change[:, :, 48:, 64:].mean() > 0


def test_nothing_is_matched_where_the_image_is_cut_off(pair) -> None:
    first, second, flows = pair
    first = 0.9 * first.clone()
    first[:, :, :, :40] = 1  # blown out
    first[:, :, :, 88:] = -1  # black
    first[:, 0, 60:, :40] = 0.5  # as bright, but of a colour
    blend = FlowBlend(16)
    blend.weight.bias.data.copy_(torch.tensor([3.0, -40.0]))
    keep_own_flow(blend)
    with torch.inference_mode():
        flow, _ = blend_flows(
            blend, (first, second), flows[:, :3], torch.ones(2, 2, 96, 128),
            flows[:, :NUM_HYPOTHESES], random_features(), torch.zeros(2, 16, 12, 16),
        )  # fmt: skip
    share = ((flow - flows[:, 0]) / (flows[:, 1] - flows[:, 0])).median(dim=1).values.mean(dim=0)
    trusted = 1 / (1 + np.exp(-3))
    assert share[:50, :30].max() < 0.01 and share[:, 98:].max() < 0.01
    assert torch.allclose(share[70:, :30], torch.tensor(trusted, dtype=torch.float32), atol=0.01)
    assert torch.allclose(share[:, 48:80], torch.tensor(trusted, dtype=torch.float32), atol=0.01)


def test_expected_error_is_the_mean_of_the_mixture() -> None:
    laplace = torch.tensor([0.0, 2.0, 0.5, -1.0])[None, :, None, None]
    p = 1 / (1 + np.exp(2))
    expected = p * np.exp(0.5) + (1 - p) * np.exp(-1)
    assert np.isclose(float(expected_error(laplace)), expected)


def test_a_folder_brings_the_matcher_back(blended: RAFT, pair, tmp_path) -> None:
    first, second, hypotheses = pair
    blended.save_pretrained(tmp_path)
    again = load_folder(tmp_path).eval()
    estimator = load_estimator('raft_tiny', 'cpu', weights=tmp_path, looks=1)
    with torch.inference_mode():
        expected = blended(first, second, 2, None, hypotheses)
        found = again(first, second, 2, None, hypotheses)
    assert torch.equal(expected.flow, found.flow) and torch.equal(expected.laplace, found.laplace)
    image = ((first[0].permute(1, 2, 0) + 1) * 127.5).byte().numpy()
    assert np.isfinite(estimator.estimate(image, np.roll(image, 2, axis=1)).flow).all()


def test_a_diffusion_network_has_the_same_matcher(blended: RAFT) -> None:
    network = with_matcher(build_network('daflow_tiny'), blended.matcher)
    own = network.raft.matcher.state_dict()
    assert all(torch.equal(own[k], v) for k, v in blended.matcher.state_dict().items())
    network.raft.load_state_dict(network.raft.state_dict())
    network.load_raft(blended)
    assert torch.equal(network.raft.blend.weight.weight, blended.blend.weight.weight)


def test_what_does_not_go_together_is_refused(tmp_path) -> None:
    with pytest.raises(ValueError, match='beside a RAFT with some'):
        RAFT(**SMALL_MATCHER, matcher_config=SMALL_MATCHER)
    with pytest.raises(ValueError, match='a matcher has no hypotheses'):
        RAFT(**RAFT_TINY, matcher_config=RAFT_TINY)
    build_network('daflow_tiny').save_pretrained(tmp_path / 'daflow')
    with pytest.raises(ValueError, match='a matcher is a RAFT'):
        build_network('raft_tiny', matcher=str(tmp_path / 'daflow'))


def test_training_changes_the_blend_alone(tmp_path, monkeypatch) -> None:
    rng = np.random.default_rng(5)
    first = photograph(rng, 64, 64)
    frames = np.stack([first, np.roll(first, 2, axis=1)])
    arrays = {
        'frames': frames.transpose(0, 3, 1, 2),
        'flow': np.tile(np.float16([2, 0])[:, None, None], (1, 64, 64)),
        'occluded': np.zeros((1, 64, 8), np.uint8),
        'hypotheses': dis_hypotheses(*frames).flows.transpose(0, 3, 1, 2).astype(np.float16),
    }
    clips = tmp_path / 'clips'
    clips.mkdir()
    write_shard(clips / 'a.npz', {k: np.stack([v] * 32) for k, v in arrays.items()})
    torch.manual_seed(4)
    RAFT(**RAFT_TINY).save_pretrained(tmp_path / 'fusing')
    RAFT(**SMALL_MATCHER).save_pretrained(tmp_path / 'matcher')
    config = TrainingConfig(
        model=str(tmp_path / 'fusing'), matcher=str(tmp_path / 'matcher'), clips=str(clips),
        output=str(tmp_path / 'run'), steps=16, decay=8, batch=2, size=64, iterations=2,
        learning_rate=2e-3, warmup=1, warm_starts=0.0, matching_weight=0.0, selection_weight=0.0,
        precision='no', log_every=3, ema=0.5,
    )  # fmt: skip
    trainer = FlowTrainer(config)
    before = {k: v.clone() for k, v in trainer.network.state_dict().items()}
    deviation = trainer.network.blend.deviation
    assert before['blend.mean'].abs().max() > 0.1 and deviation.min() > 0
    trainer.run()
    changed = {
        name.split('.')[0]
        for name, value in trainer.network.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert changed == {'blend'}
    with (tmp_path / 'run' / 'log.csv').open() as file:
        rows_logged = list(csv.DictReader(file))
    assert float(rows_logged[-1]['nll']) < float(rows_logged[0]['nll'])
    # Clips count by which of the two flows is right.
    monkeypatch.setattr(flow_training, 'blend_weight', lambda flows, *_: torch.zeros(len(flows)))
    assert trainer.loss()[1]['sequence'] == 0
    monkeypatch.undo()
    assert trainer.loss()[1]['sequence'] > 0
    with pytest.raises(ValueError, match='from 2 iterations on'):
        FlowTrainer(replace(config, iterations=1, output=str(tmp_path / 'other')))
    # Its own model folder is a network with a blend, and a run goes on from there.
    assert load_folder(tmp_path / 'run' / 'model').matcher is not None
    assert FlowTrainer(config).step == 16


def test_clips_count_by_which_flow_is_right() -> None:
    true = torch.zeros(4, 2, 8, 8)
    flows = torch.zeros(4, 2, 2, 8, 8)
    # (chosen, matcher): chosen better, matcher better, both far off, as good as each other.
    for index, (chosen, matched) in enumerate([(0.5, 2.0), (2.5, 0.5), (3.0, 9.0), (1.0, 1.0)]):
        flows[index, 0, 0], flows[index, 1, 0] = chosen, matched
    valid = torch.ones(4, 1, 8, 8)
    weight = blend_weight(flows, true, valid)
    assert torch.allclose(weight, torch.tensor([3.0, 0.1, 1.0, 1.65]), atol=2e-3)
    # What is not valid does not tell.
    true[0, :, :4], valid[0, :, :4] = 100, 0
    assert torch.allclose(blend_weight(flows, true, valid), weight, atol=2e-3)
    # And a clip's loss is multiplied by it.
    output = FlowOutput(flows[:, 1], [])
    one = [float(sequence_loss(output, true, valid)[0])]
    for index in range(4):
        of = torch.zeros(4)
        of[index] = 1
        one.append(float(sequence_loss(output, true, valid, weight=of)[0]))
    assert np.isclose(sum(one[1:]), one[0])
    assert np.isclose(one[4] / one[3], 1 / 9)
