# SPDX-License-Identifier: Apache-2.0
"""Costs counted on the meta device, against figures worked out by hand."""

import pytest

torch = pytest.importorskip('torch')

from daflow_ros.models.costs import model_costs  # noqa: E402
from daflow_ros.models.daflow import DAFLOW_TINY, DAFlow  # noqa: E402


@pytest.fixture(scope='module')
def paper():
    return model_costs({})


def test_full_size_parameters(paper):
    """DiT4SR's blocks by hand: dual 0-12, then plain, the last without a text output."""
    c = 1536
    linear = c * c + c
    attn = linear * (4 + 3) + 2 * 64  # q, k, v, out; control q, v, out; norms
    text = 3 * linear + 2 * 64
    ff = 8 * c * c + 5 * c
    hidden_conv = 4 * c * 10
    blocks = 0
    for i in range(24):
        last = i == 23
        blocks += (9 if i < 13 else 6) * linear + (2 if last else 6) * linear
        blocks += attn + text + (0 if last else linear) + (attn if i < 13 else 0)
        blocks += ff + hidden_conv + (0 if last else ff)
    embedders = 64 * c + c + (256 * c + c) + (2048 * c + c) + 2 * linear + 4096 * c + c
    position = 384 * 384 * c
    out = 2 * linear + c * 64 + 64
    assert paper.parameters['transformer'] == blocks + embedders + position + out
    assert paper.parameters['raft'] > 5.26e6 and paper.parameters['null_text'] == 154 * 4096 + 2048


def test_full_size_flops_of_one_step(paper):
    """Blocks 0-16 and the tap of 17 at 480 x 640, F = 2, by hand; upstream's dead layers left out.

    With them (LQ keys, LQ and text outputs before the last tap) the figure is 11.4e12.
    """
    c, frames, tokens, text = 1536, 2, 1200, 154
    n = frames * tokens  # of each of HQ and LQ
    flops = 2 * frames * 2 * tokens * 64 * c  # patches
    for i in range(17):
        dual = 2 if i < 13 else 1
        flops += dual * 2 * c * c * n * (4 + 5)  # HQ q k v out; LQ q v, control q v out
        flops += 2 * c * c * frames * text * (3 + 1)
        everything = frames * (2 * tokens + text)
        flops += 4 * c * everything**2
        flops += (4 * c * (2 * n) ** 2) if dual == 2 else 0
        flops += 2 * 8 * c * c * n * 2 + 2 * 9 * 4 * c * n  # MLP of both, control conv
        flops += 2 * 8 * c * c * frames * text
    flops += 2 * c * c * n * 2
    assert paper.flops['transformer'] == pytest.approx(flops, rel=0.01)
    assert 10.5e12 < paper.flops['transformer'] < 11.6e12


def test_full_size_memory(paper):
    assert 3.4 < paper.touched_bytes / 2**30 < 4.2
    assert paper.touched_bytes < paper.weights_bytes
    # At least the VAE's first maps (2 x 128 x 480 x 640, twice), and no attention matrix.
    assert 0.3 < paper.activation_bytes / 2**30 < 2


def test_ten_steps_cost_nine_whole_ones_more():
    one, three = (
        model_costs(DAFLOW_TINY, 64, 64, diffusion_steps=n, iterations=1).flops['transformer']
        for n in (1, 3)
    )
    two = model_costs(DAFLOW_TINY, 64, 64, diffusion_steps=2, iterations=1).flops['transformer']
    assert three - two == two - one > one


def test_peak_memory_agrees_with_a_real_run():
    """The calculated peak of activations against the allocator's own count on the CPU."""
    from torch.profiler import ProfilerActivity, profile

    config = DAFLOW_TINY
    costs = model_costs(config, 128, 192, iterations=2, dtype=torch.float32)
    model = DAFlow(**config).eval()
    x = torch.rand(1, 2, 3, 128, 192)
    with torch.inference_mode():
        raft = model.raft.config
        count = raft.num_hypotheses + raft.num_backward
        others = torch.zeros(1, count, 2, 128, 192)
        model(x, 2, hypotheses=others)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
            model(x, 2, hypotheses=others)
    live = peak = 0
    for event in record.profiler.kineto_results.events():
        if event.name() == '[memory]':
            live += event.nbytes()
            peak = max(peak, live)
    assert costs.activation_bytes == pytest.approx(peak, rel=0.5)
