# SPDX-License-Identifier: Apache-2.0
"""DiT4SR and its lifting against diffusers' SD3 and against properties that define them."""

import pytest

torch = pytest.importorskip('torch')

from daflow_ros.models.dit4sr import DiT4SRTransformer  # noqa: E402
from daflow_ros.models.latent import autoencoder_class  # noqa: E402
from daflow_ros.models.lifting import lifted_attention  # noqa: E402

CONFIG = {
    'sample_size': 16,
    'num_layers': 4,
    'num_attention_heads': 2,
    'attention_head_dim': 16,
    'joint_attention_dim': 24,
    'caption_projection_dim': 32,
    'pooled_projection_dim': 20,
    'pos_embed_max_size': 24,
    'dual_attention_layers': (0, 1),
}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return DiT4SRTransformer(**CONFIG).eval()


def inputs(frames=2, height=12, width=20, seed=1):
    g = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    return {
        'hidden_states': draw(frames, 16, height, width),
        'lq': draw(frames, 16, height, width),
        'encoder_hidden_states': draw(1, 5, 24),
        'pooled_projections': draw(1, 20),
        'timestep': torch.tensor([1000.0]),
    }


@torch.inference_mode()
def test_without_the_lq_stream_it_is_sd3(model, monkeypatch):
    """With LQ keys masked out and no control convolution, HQ sees what SD3 computes."""
    autoencoder_class()  # imports diffusers past a torchvision of another build
    from diffusers import SD3Transformer2DModel

    import daflow_ros.models.dit4sr_blocks as module

    sd3 = SD3Transformer2DModel(**CONFIG, qk_norm='rms_norm').eval()
    state = model.state_dict()
    own = sd3.state_dict()
    assert set(own) - set(state) == set()
    sd3.load_state_dict({k: state[k] for k in own})
    x = inputs()
    count = 6 * 10

    def without_lq(query, key, value, num_frames):
        kept = [torch.cat([t[:, :count], t[:, 2 * count :]], 1) for t in (query, key, value)]
        out = lifted_attention(*kept, num_frames)
        return torch.cat([out[:, :count], torch.zeros_like(out[:, :count]), out[:, count:]], 1)

    monkeypatch.setattr(module, 'lifted_attention', without_lq)
    ours = model(**x, control_scale=0.0).sample
    reference = sd3(
        x['hidden_states'],
        x['encoder_hidden_states'].expand(2, -1, -1),
        x['pooled_projections'].expand(2, -1),
        x['timestep'].expand(2),
    ).sample
    assert reference.abs().max() > 0.1
    assert (ours - reference).abs().max() <= 1e-5 * reference.abs().max()


@torch.inference_mode()
def test_the_lq_stream_matters(model):
    x = inputs()
    changed = {**x, 'lq': x['lq'] + 1}
    assert (model(**x).sample - model(**changed).sample).abs().max() > 1e-3


@torch.inference_mode()
def test_lq_keys_are_hq_keys_normed_twice(model):
    """The quirk: LQ content must not reach the keys, and `to_k_control` is not even stored."""
    assert not any('to_k_control' in k for k in model.state_dict())
    attn = model.transformer_blocks[2].attn
    attn.norm_k.weight.data = torch.linspace(0.5, 2.0, 16)
    seen = {}

    def spy(query, key, value, num_frames):
        seen['key'] = key
        return lifted_attention(query, key, value, num_frames)

    import daflow_ros.models.dit4sr_blocks as module

    original, module.lifted_attention = module.lifted_attention, spy
    try:
        tokens = torch.randn(1, 12, 32)
        attn(tokens, None, 1)
    finally:
        module.lifted_attention = original
    hq = attn.to_k(tokens[:, :6]).unflatten(-1, (2, 16))

    def rms(t):
        return t * (t.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt() * attn.norm_k.weight

    assert torch.allclose(seen['key'][:, :6], rms(hq), atol=1e-5)
    assert torch.allclose(seen['key'][:, 6:], rms(rms(hq)), atol=1e-5)


def test_own_lq_keys_when_asked_for():
    model = DiT4SRTransformer(**CONFIG, lq_keys='own')
    assert 'transformer_blocks.0.attn.to_k_control.weight' in model.state_dict()


@torch.inference_mode()
def test_one_frame_lifted_is_unlifted_bit_for_bit(model):
    """A batch of two frames as F = 1 twice equals each frame run alone."""
    x = inputs()
    together = model(**x, num_frames=1, taps=(1, 3), stop_after_last_tap=False)
    q, k, v = (torch.randn(2, 7, 2, 16) for _ in range(3))
    plain = torch.nn.functional.scaled_dot_product_attention(
        q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    )
    assert torch.equal(lifted_attention(q, k, v, 1), plain.transpose(1, 2).flatten(2))
    for i in range(2):
        one = {n: t[i : i + 1] if len(t) == 2 else t for n, t in x.items()}
        alone = model(**one, num_frames=1, taps=(1, 3), stop_after_last_tap=False)
        assert torch.allclose(alone.sample[0], together.sample[i], atol=1e-5)


def test_lifted_attention_is_one_softmax_over_all_frames():
    """Against attention written out over all frames' tokens."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(6, 5, 2, 8, dtype=torch.float64) for _ in range(3))
    ours = lifted_attention(q, k, v, 3)
    for clip in range(2):
        frames = slice(3 * clip, 3 * clip + 3)
        for head in range(2):
            qq, kk, vv = (t[frames, :, head].reshape(15, 8) for t in (q, k, v))
            weight = ((qq @ kk.T) / 8**0.5).softmax(-1)
            mine = ours[frames].unflatten(-1, (2, 8))[:, :, head].reshape(15, 8)
            assert torch.allclose(mine, weight @ vv)


@torch.inference_mode()
def test_permuting_frames_permutes_features(model):
    x = inputs(frames=3)
    order = torch.tensor([2, 0, 1])
    permuted = {**x, 'hidden_states': x['hidden_states'][order], 'lq': x['lq'][order]}
    a = model(**x, num_frames=3, taps=(0, 3), stop_after_last_tap=False)
    b = model(**permuted, num_frames=3, taps=(0, 3), stop_after_last_tap=False)
    assert torch.allclose(a.sample[order], b.sample, atol=1e-5)
    for i in (0, 3):
        assert torch.allclose(a.queries[i][order], b.queries[i], atol=1e-5)
        assert torch.allclose(a.keys[i][order], b.keys[i], atol=1e-5)


@torch.inference_mode()
def test_lifting_lets_frames_see_each_other(model):
    x = inputs(frames=2)
    apart = model(**x, num_frames=1, taps=(3,)).queries[3]
    lifted = model(**x, num_frames=2, taps=(3,)).queries[3]
    changed = {**x, 'lq': torch.cat([x['lq'][:1], x['lq'][1:] + 2])}
    assert not torch.allclose(apart, lifted, atol=1e-3)
    moved = model(**changed, num_frames=2, taps=(3,)).queries[3]
    assert (moved[0] - lifted[0]).abs().max() > 1e-3
    assert torch.equal(model(**changed, num_frames=1, taps=(3,)).queries[3][0], apart[0])


@torch.inference_mode()
@pytest.mark.parametrize('taps', [(0,), (1, 2), (3,), (0, 3)])
def test_stopping_early_changes_nothing_and_runs_nothing_more(model, taps):
    x = inputs()
    whole = model(**x, taps=taps, stop_after_last_tap=False)
    ran = []
    last = model.transformer_blocks[max(taps)]
    for name in ('to_v', 'to_q_control', 'add_q_proj'):
        getattr(last.attn, name).register_forward_hook(lambda *_: ran.append(1))
    last.ff.register_forward_hook(lambda *_: ran.append(1))
    stopped = model(**x, taps=taps)
    assert stopped.sample is None and not ran
    for i in taps:
        torch.testing.assert_close(stopped.queries[i], whole.queries[i], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(stopped.keys[i], whole.keys[i], rtol=1e-5, atol=1e-5)
        assert stopped.queries[i].shape == (2, 2, 60, 16)


@torch.inference_mode()
def test_a_truncated_network_taps_the_same(model):
    small = DiT4SRTransformer(**CONFIG, truncate_at=2).eval()
    state = model.state_dict()
    small.load_state_dict({k: state[k] for k in small.state_dict()})
    x = inputs()
    # Not bit by bit: threads may split the sums of two runs in two ways.
    torch.testing.assert_close(
        small(**x, taps=(1, 2)).keys[2], model(**x, taps=(1, 2)).keys[2], rtol=1e-5, atol=1e-5
    )
    assert sum(p.numel() for p in small.parameters()) < 0.75 * sum(
        p.numel() for p in model.parameters()
    )
    with pytest.raises(ValueError, match='truncated'):
        small(**x)


def test_gradient_reaches_every_parameter():
    torch.manual_seed(0)
    model = DiT4SRTransformer(**CONFIG, lq_keys='own')
    model(**inputs(), num_frames=2).sample.square().mean().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []


@torch.inference_mode()
def test_initialised_network_keeps_its_signal():
    """Training from nothing: unit-scale tokens stay within a small factor through the blocks."""
    torch.manual_seed(0)
    model = DiT4SRTransformer(**{**CONFIG, 'num_layers': 8, 'dual_attention_layers': ()}).eval()
    model.initialise()
    scales = []
    for block in model.transformer_blocks:
        block.register_forward_hook(lambda m, i, o: scales.append(float(o[0].std())))
    assert model(**inputs()).sample.abs().max() == 0
    assert scales[0] > 0.3 and scales[-1] < 10


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'caption_projection_dim': 48}, 'caption_projection_dim 48'),
        ({'qk_norm': None}, 'rms_norm'),
        ({'dual_attention_layers': (4,)}, 'dual_attention_layers'),
        ({'truncate_at': 9}, 'truncate_at'),
        ({'lq_keys': 'both'}, 'lq_keys'),
        ({'sample_size': 15}, 'sample_size'),
    ],
)
def test_wrong_configurations_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DiT4SRTransformer(**{**CONFIG, **change})


def test_wrong_shapes_are_refused(model):
    x = inputs()
    with pytest.raises(ValueError, match='lq'):
        model(**{**x, 'lq': x['lq'][:, :, :-2]})
    with pytest.raises(ValueError, match='patch'):
        model(**inputs(height=11))
    with pytest.raises(ValueError, match='taps'):
        model(**x, taps=(4,))
    with pytest.raises(ValueError, match='clips of 3'):
        model(**x, num_frames=3)
