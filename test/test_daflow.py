# SPDX-License-Identifier: Apache-2.0
"""DA-Flow: RAFT at the start, features of the trajectory, zero-shot, tiling, estimators."""

import copy
import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip('torch')

from daflow_ros.estimators import EstimatorError, load_estimator  # noqa: E402
from daflow_ros.models.daflow import DAFLOW_TINY, DAFlow  # noqa: E402
from daflow_ros.models.dpt import DPTHead  # noqa: E402
from daflow_ros.models.flow_output import FlowOutput  # noqa: E402
from daflow_ros.models.latent import PixelUnshuffleEncoder  # noqa: E402
from daflow_ros.models.raft import RAFT  # noqa: E402
from daflow_ros.models.raft_sizes import RAFT_SMALL, RAFT_TINY  # noqa: E402
from daflow_ros.models.tiling import predict_tiled, tile_starts  # noqa: E402
from daflow_ros.models.zero_shot import layer_flows, match  # noqa: E402

VAE = {
    'block_out_channels': (8, 8, 8, 8),
    'down_block_types': ('DownEncoderBlock2D',) * 4,
    'up_block_types': ('UpDecoderBlock2D',) * 4,
    'layers_per_block': 1,
    'latent_channels': 16,
    'norm_num_groups': 4,
    'scaling_factor': 1.5305,
    'shift_factor': 0.0609,
    'use_quant_conv': False,
    'use_post_quant_conv': False,
}
#: The paper's structure (VAE, dual blocks, quirk, official RAFT) at a size for tests.
PAPER_SHAPED = {
    'transformer_config': {
        'sample_size': 16,
        'num_layers': 5,
        'num_attention_heads': 2,
        'attention_head_dim': 16,
        'joint_attention_dim': 24,
        'caption_projection_dim': 32,
        'pooled_projection_dim': 20,
        'pos_embed_max_size': 24,
        'dual_attention_layers': (0, 1),
    },
    'vae_config': VAE,
    'taps': (0, 2, 3, 4),
    'text_tokens': 7,
    'head_channels': 16,
    'feature_channels': 24,
}

#: Hypotheses of the tiny networks, with the flows back.
COUNT = RAFT_TINY['num_hypotheses'] + RAFT_TINY['num_backward']


def images(frames=2, height=96, width=128, batch=1):
    g = torch.Generator().manual_seed(3)
    return torch.rand(batch, frames, 3, height, width, generator=g) * 2 - 1


def build(config, raft):
    torch.manual_seed(0)
    model = DAFlow(**config).eval()
    model.load_raft(raft)
    return model


@torch.inference_mode()
@pytest.mark.parametrize(
    ('config', 'raft_config'),
    [
        (PAPER_SHAPED, {}),
        ({**PAPER_SHAPED, 'raft_config': RAFT_SMALL}, RAFT_SMALL),
        (DAFLOW_TINY, RAFT_TINY),
    ],
    ids=['paper', 'paper-raft-small', 'tiny'],
)
def test_untrained_it_is_the_raft_it_was_built_on(config, raft_config):
    torch.manual_seed(1)
    raft = RAFT(**raft_config).eval()
    model = build(config, raft)
    x = images(frames=3)
    height, width = x.shape[-2:]
    count = raft_config.get('num_hypotheses', 0)
    count += raft_config.get('num_backward', 0)
    others = torch.randn(2 * len(x), count, 2, height, width) if count else None
    ours = model(x, 3, hypotheses=others)
    reference = raft(x[:, :2].flatten(0, 1), x[:, 1:].flatten(0, 1), 3, None, others)
    assert reference.flow.abs().max() > 0.01
    assert (ours.flow - reference.flow).abs().max() <= 1e-5
    if others is not None:
        others = others[1::2]
    last = model(x, 3, last_pair_only=True, hypotheses=others)
    reference = raft(x[:, 1], x[:, 2], 3, None, others)
    assert (last.flow - reference.flow).abs().max() <= 1e-5


def test_fusion_can_learn_away_from_the_start():
    """After one step every part of the diffusion branch has a gradient (no dead start)."""
    torch.manual_seed(0)
    model = build(DAFLOW_TINY, RAFT(**RAFT_TINY)).train()
    optimiser = torch.optim.SGD(model.parameters(), lr=1e-3)
    x = images(height=64, width=64)
    for _ in range(2):
        optimiser.zero_grad()
        out = model(x, 2, hypotheses=torch.zeros(len(x), COUNT, 2, 64, 64))
        loss = sum((f - 1).abs().mean() for f in out.flows_low[1:])
        (loss + out.laplace.square().mean()).backward()
        optimiser.step()
    for part in (
        'dpt_query',
        'dpt_key',
        'dpt_context',
        'transformer.transformer_blocks.0',
        'raft',
    ):
        grads = [p.grad for n, p in model.named_parameters() if n.startswith(part)]
        assert any(g is not None and g.abs().max() > 0 for g in grads), part


@torch.inference_mode()
def test_noise_is_fixed_by_seed_and_shape_and_differs_between_frames():
    a, b = (DAFlow(**PAPER_SHAPED).eval() for _ in range(2))
    latent = torch.zeros(4, 16, 8, 8)
    noise = a.starting_noise(latent, 2)
    assert torch.equal(noise, b.starting_noise(latent, 2))
    assert torch.equal(noise[:2], noise[2:]) and not torch.equal(noise[0], noise[1])
    assert abs(float(noise.std()) - 1) < 0.1
    other = DAFlow(**PAPER_SHAPED, noise_seed=1).starting_noise(latent, 2)
    assert not torch.equal(noise, other)


@torch.inference_mode()
def test_the_schedule_is_sd35s(monkeypatch):
    model = build(PAPER_SHAPED, RAFT())
    steps = list(model.iterate_features(torch.zeros(2, 16, 8, 8), 2, 10))
    expected = [1, 0.9601, 0.9133, 0.8577, 0.7904, 0.7073, 0.6022, 0.4649, 0.278, 0.0089]
    assert [round(s.sigma, 4) for s in steps] == expected


@torch.inference_mode()
@pytest.mark.parametrize('prediction', ['velocity', 'sample'])
def test_the_trajectory_ends_at_what_the_network_predicts(prediction):
    """A network that always predicts one clean latent is led there by the Euler steps."""
    model = DAFlow(**PAPER_SHAPED, prediction=prediction).eval()
    clean = torch.randn(2, 16, 8, 8)
    seen = []
    inner = model.transformer.forward

    def perfect(x, *args, **kwargs):
        out = inner(x, *args, **kwargs)
        sigma = args[3] / 1000
        seen.append((float(sigma), x))
        if out.sample is not None:
            out.sample = clean if prediction == 'sample' else (x - clean) / sigma
        return out

    model.transformer.forward = perfect
    start = torch.randn(2, 16, 8, 8)
    features = model.features(torch.zeros(2, 16, 8, 8), 2, steps=6, noise=start)
    assert len(seen) == 6 and features.queries[0].shape == (1, 2, 16, 32)
    for sigma, x in seen:
        assert torch.allclose(x, (1 - sigma) * clean + sigma * start, atol=1e-4)


@torch.inference_mode()
def test_features_of_several_steps_are_their_mean():
    model = build(PAPER_SHAPED, RAFT())
    latent = torch.randn(2, 16, 8, 8)
    each = list(model.iterate_features(latent, 2, 3))
    mean = model.features(latent, 2, 3)
    for i in range(4):
        assert torch.allclose(mean.keys[i], sum(s.keys[i] for s in each) / 3, atol=1e-6)
    assert not torch.allclose(each[0].keys[3], each[2].keys[3], atol=1e-3)


@torch.inference_mode()
def test_the_vae_gives_the_normalised_mode():
    torch.manual_seed(0)
    latent = DAFlow(**PAPER_SHAPED).eval().latent
    x = images()[0]
    moments = latent.vae.encoder(x)
    assert torch.allclose(latent.encode(x), (moments[:, :16] - 0.0609) * 1.5305, atol=1e-6)
    assert torch.equal(latent.encode(x), latent.encode(x))
    assert not hasattr(latent.vae, 'decoder')


def test_space_to_depth_is_invertible():
    encoder = PixelUnshuffleEncoder(8)
    x = images()[0]
    assert encoder.encode(x).shape == (2, 192, 12, 16)
    assert torch.equal(encoder.decode(encoder.encode(x)), x)


@torch.inference_mode()
@pytest.mark.parametrize(('scales', 'finest'), [((1, 1, 2, 2), 2), ((1, 2, 2, 4), 4), ((1,), 1)])
def test_dpt_head_shapes_and_layer_order(scales, finest):
    torch.manual_seed(0)
    head = DPTHead(8, 12, 5, scales).eval()
    taps = [torch.randn(2, 6, 8) for _ in scales]
    out = head(taps, (2, 3))
    assert out.shape == (2, 5, 2 * finest, 3 * finest)
    for i in range(len(taps)):  # every level is read
        changed = [t + (j == i) for j, t in enumerate(taps)]
        changed[i] = torch.randn(2, 6, 8)
        assert not torch.allclose(head(changed, (2, 3)), out, atol=1e-4)
    with pytest.raises(ValueError, match='scales'):
        DPTHead(8, 12, 5, (2, 1))


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'taps': (0, 2, 3, 9)}, 'taps'),
        ({'head_scales': (1, 1, 1, 1)}, 'head_scales'),
        ({'head_scales': (1, 2)}, 'head_scales'),
        ({'unshuffle_factor': 8}, 'in_channels'),
        ({'prediction': 'noise'}, 'prediction'),
    ],
)
def test_parts_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DAFlow(**{**PAPER_SHAPED, **change})


def test_wrong_images_and_rafts_are_refused():
    model = DAFlow(**DAFLOW_TINY)
    with pytest.raises(ValueError, match='multiples'):
        model(images(height=100))
    with pytest.raises(ValueError, match='F >= 2'):
        model(images(frames=1))
    with pytest.raises(ValueError, match='raft'):
        model.load_raft(RAFT())


def test_match_finds_a_shift():
    """Keys that are the queries moved by (2, -1) tokens are found where both exist."""
    torch.manual_seed(0)
    h, w = 8, 10
    features = torch.nn.functional.normalize(torch.randn(1, h, w, 2, 16), dim=-1) * 16
    moved = torch.roll(features, (-1, 2), dims=(1, 2))
    flow = match(features.reshape(1, h * w, 2, 16), moved.reshape(1, h * w, 2, 16), (h, w), 1)
    inside = flow[0, :, 1:, : w - 2]
    assert torch.allclose(inside[0], torch.full_like(inside[0], 2.0), atol=1e-2)
    assert torch.allclose(inside[1], torch.full_like(inside[1], -1.0), atol=1e-2)


@torch.inference_mode()
def test_zero_shot_maps_every_layer_and_step():
    model = build(PAPER_SHAPED, RAFT())
    found = list(layer_flows(model, images(frames=3), [1, 4], steps=2))
    assert [(s, layer) for s, layer, _ in found] == [(0, 1), (0, 4), (1, 1), (1, 4)]
    assert all(f.shape == (1, 2, 96, 128) and f.isfinite().all() for _, _, f in found)


def test_tiles_cover_and_overlap():
    for length, tile, overlap in (
        (1000, 256, 64),
        (256, 256, 64),
        (264, 256, 128),
        (4096, 512, 0),
    ):
        starts = tile_starts(length, tile, overlap)
        assert starts[0] == 0 and starts[-1] + tile >= length
        assert all(s % 8 == 0 for s in starts)
        assert all(b - a <= tile - overlap for a, b in itertools.pairwise(starts))


def test_tiling_is_seamless_where_the_network_is_local():
    """A pixel-wise network gives the same whole and in tiles, start included."""
    x = images(height=256, width=384)
    start = torch.randn(1, 2, 256, 384)
    others = torch.randn(1, 1, 2, 256, 384)

    def local(frames, iterations, initial, hypotheses):
        up = initial + hypotheses[:, 0]
        return FlowOutput(frames[:, -1, :2] + up, [], frames[:, -2])

    whole = predict_tiled(local, x, 1, start, others, 10**9, 16)
    tiled = predict_tiled(local, x, 1, start, others, 160 * 160, 16, overlap=32)
    assert torch.allclose(whole.flow, tiled.flow, atol=1e-5)
    assert torch.allclose(whole.laplace, tiled.laplace, atol=1e-5)
    sides = predict_tiled(local, x, 1, start, others, 10**9, 16, overlap=32, max_side=128)
    assert torch.allclose(whole.flow, sides.flow, atol=1e-5)
    with pytest.raises(ValueError, match='pixel budget'):
        predict_tiled(local, x, 1, start, others, 64 * 64, 16)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp('tiny')
    torch.manual_seed(0)
    DAFlow(**DAFLOW_TINY).save_pretrained(path)
    return path


def pair(height, width):
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(2)]


@pytest.mark.parametrize('size', [(64, 64), (67, 101), (96, 133)])
def test_any_size_goes_through_the_estimator(folder, size):
    estimator = load_estimator('daflow_tiny', device='cpu', weights=folder)
    out = estimator.estimate(*pair(*size), iterations=2)
    assert out.flow.shape == (*size, 2) and np.isfinite(out.flow).all()
    assert out.confidence.shape == size and 0 <= out.confidence.min() <= out.confidence.max() <= 1
    assert out.diffusion_steps == 1
    again = load_estimator('daflow_tiny', device='cpu', weights=folder)
    assert np.array_equal(again.estimate(*pair(*size), iterations=2).flow, out.flow)


def test_half_precision_steps_and_tiles(folder):
    exact = load_estimator('daflow_tiny', device='cpu', weights=folder, pyramid=1)
    reference = exact.estimate(*pair(96, 96), iterations=1).flow
    for dtype in ('bfloat16', 'float16'):
        half = load_estimator('daflow_tiny', device='cpu', weights=folder, dtype=dtype, pyramid=1)
        flow = half.estimate(*pair(96, 96), iterations=1).flow
        assert np.median(np.abs(flow - reference)) < 1.0
    tiled = load_estimator('daflow_tiny', device='cpu', weights=folder, pixel_budget=160 * 160)
    assert tiled.estimate(*pair(170, 210), iterations=1).flow.shape == (170, 210, 2)
    steps = load_estimator('daflow_tiny', device='cpu', weights=folder, diffusion_steps=3)
    assert steps.estimate(*pair(64, 64), iterations=1).diffusion_steps == 3
    zero = load_estimator('daflow_zero_shot', device='cpu', weights=folder, layer=1)
    out = zero.estimate(*pair(64, 96))
    assert out.flow.shape == (64, 96, 2) and out.confidence is None


def test_consistency_check_sets_confidence(folder):
    """Against the mask of the two flows, for a model with a head and for one without."""
    from daflow_ros.flow.consistency import forward_backward_mask

    first, second = pair(64, 96)
    for name, head in (('daflow_tiny', True), ('daflow_zero_shot', False)):
        plain = load_estimator(name, device='cpu', weights=folder, pyramid=1)
        checked = load_estimator(name, device='cpu', weights=folder, pyramid=1, consistency=True)
        forward = plain.estimate(first, second, iterations=1)
        backward = plain.estimate(second, first, iterations=1)
        mask = forward_backward_mask(forward.flow, backward.flow)
        out = checked.estimate(first, second, iterations=1)
        assert np.array_equal(out.flow, forward.flow) and out.confidence.dtype == np.float32
        assert np.allclose(out.confidence, mask * (forward.confidence if head else 1.0))


@torch.inference_mode()
def test_three_frames_come_from_successive_calls(folder, tmp_path):
    from daflow_ros.flow.hypotheses import HYPOTHESES, dis_hypotheses
    from daflow_ros.flow.mending import mended
    from daflow_ros.flow.preparation import stretch_range
    from daflow_ros.flow.variational import refine_variationally

    model = DAFlow.from_pretrained(folder).eval()
    model.dpt_query.output.weight.normal_(0, 3.0)  # at zero, features would not show in the flow
    model.raft.fusion.head.bias[0] = 50.0  # nor where the own flow is not chosen
    model.save_pretrained(tmp_path)
    rng = np.random.default_rng(5)
    images = [rng.integers(0, 256, (64, 64, 3), dtype=np.uint8) for _ in range(4)]

    def expected(*indices):
        clip = mended([images[i] for i in indices])
        flows = dis_hypotheses(*clip[-2:]).flows
        shown = stretch_range(clip, flows[: len(HYPOTHESES)])
        frames = torch.from_numpy(np.stack(shown)).permute(0, 3, 1, 2)[None] / 127.5 - 1
        others = torch.from_numpy(flows).permute(0, 3, 1, 2)[None]
        flow = model(frames, 2, last_pair_only=True, hypotheses=others).flow
        flow = np.ascontiguousarray(flow[0].permute(1, 2, 0).numpy())
        return refine_variationally(flow, *shown[-2:])

    options = {'device': 'cpu', 'weights': tmp_path, 'pyramid': 1, 'num_frames': 3}
    estimator = load_estimator('daflow_tiny', **options)
    buffer = images[1].copy()
    flow = estimator.estimate(images[0], buffer, iterations=2).flow
    assert np.allclose(flow, expected(0, 1), atol=1e-3)
    buffer[:] = 0  # the caller's memory may be used again
    flow = estimator.estimate(images[1], images[2], iterations=2).flow
    assert np.allclose(flow, expected(0, 1, 2), atol=1e-3)
    assert not np.allclose(flow, expected(1, 2), atol=1e-2)
    flow = estimator.estimate(images[2], images[3], iterations=2).flow
    assert np.allclose(flow, expected(1, 2, 3), atol=1e-3)
    flow = estimator.estimate(images[0], images[3], iterations=2).flow  # not successive
    assert np.allclose(flow, expected(0, 3), atol=1e-3)
    other = np.zeros((96, 64, 3), np.uint8)  # another size
    assert estimator.estimate(other, other, iterations=2).flow.shape == (96, 64, 2)


def test_not_a_number_is_an_error_and_never_a_flow(folder, tmp_path):
    model = DAFlow.from_pretrained(folder)
    with torch.no_grad():
        model.transformer.transformer_blocks[1].attn.to_q.weight[0, 0] = float('nan')
    model.save_pretrained(tmp_path)
    estimator = load_estimator('daflow_tiny', device='cpu', weights=tmp_path)
    with pytest.raises(EstimatorError, match='not finite'):
        estimator.estimate(*pair(64, 64), iterations=1)


@pytest.mark.parametrize(
    'options', [{'diffusion_steps': 0}, {'diffusion_steps': 51}, {'layer': 99}]
)
def test_options_out_of_range_are_refused(folder, options):
    name = 'daflow_zero_shot' if 'layer' in options else 'daflow_tiny'
    with pytest.raises(EstimatorError, match=next(iter(options))):
        load_estimator(name, device='cpu', weights=folder, **options)


@torch.inference_mode()
def test_save_and_load_keep_the_flow(folder, tmp_path):
    from daflow_ros.models.loading import load_daflow

    model = DAFlow.from_pretrained(folder).eval()
    x = images(height=64, width=64)
    others = torch.randn(len(x), COUNT, 2, 64, 64)
    expected = model(x, 2, hypotheses=others).flow
    torch.testing.assert_close(load_daflow(folder)(x, 2, hypotheses=others).flow, expected)
    assert json.loads((folder / 'config.json').read_text())['taps'] == list(DAFLOW_TINY['taps'])
    model.save_pretrained(tmp_path, max_shard_size='4MB')
    assert len(list(tmp_path.glob('*.safetensors'))) > 1
    torch.testing.assert_close(load_daflow(tmp_path)(x, 2, hypotheses=others).flow, expected)
    half = copy.deepcopy(model).half()
    half.save_pretrained(tmp_path / 'half')
    halved = load_daflow(tmp_path / 'half')(x, 2, hypotheses=others).flow
    assert torch.allclose(halved, expected, atol=1.0)
