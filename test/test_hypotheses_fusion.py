# SPDX-License-Identifier: Apache-2.0
"""Classical hypotheses find known motion, and the fusion judges and weighs them."""

import cv2
import numpy as np
import pytest
import torch

from daflow_ros import load_estimator
from daflow_ros.flow.dominant_motion import dominant_motion
from daflow_ros.flow.hypotheses import (
    BACKWARD,
    BLOCKY,
    HYPOTHESES,
    NOISY,
    NUM_HYPOTHESES,
    dis_hypotheses,
    even_contrast,
)
from daflow_ros.flow.motion_layers import motion_layers
from daflow_ros.flow.preparation import noise_level
from daflow_ros.models.agreement import GROUPS, MATCH_DIM, MatchingFeatures, agreement
from daflow_ros.models.cues import (
    box,
    forward_backward_error,
    hypothesis_cues,
    mismatch,
    opening,
    warp,
)
from daflow_ros.models.fusion import FlowFusion, local_correlation
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_sizes import RAFT_TINY
from daflow_ros.models.selector import HypothesisSelector, propagate
from daflow_ros.models.unet import UNet
from daflow_ros.models.upsampling import convex_upsample


def moved(height=160, width=200, dx=6, dy=-3):
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 255, (height // 4 + 20, width // 4 + 20, 3), np.uint8)
    big = cv2.resize(grain, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    first = big[30 : 30 + height, 30 : 30 + width]
    second = big[30 - dy : 30 - dy + height, 30 - dx : 30 - dx + width]
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


def blind(height, width):
    """Matching features that say nothing."""
    return torch.zeros(2, 1, MATCH_DIM, height, width).unbind()


def test_every_hypothesis_finds_a_shift_at_its_scale():
    flows = dis_hypotheses(*moved()).flows
    assert flows.shape == (NUM_HYPOTHESES + len(BACKWARD), 160, 200, 2)
    assert flows.dtype == np.float32
    for flow, how in zip(flows, HYPOTHESES, strict=False):
        inner = flow[30:-30, 30:-30]
        assert np.abs(np.median(inner, axis=(0, 1)) - [6, -3]).max() < 0.25 * how.factor
    # The dominant motion, and layers of what little does not follow it.
    assert np.abs(flows[len(HYPOTHESES)] - [6, -3]).mean() < 0.5
    assert np.isfinite(flows[len(HYPOTHESES) + 1 : NUM_HYPOTHESES]).all()
    for flow in flows[NUM_HYPOTHESES:]:
        back = np.median(flow[30:-30, 30:-30], axis=(0, 1))
        assert np.abs(back - [-6, 3]).max() < 1


def test_opening_sees_through_falling_snow():
    first, second = moved(dx=4, dy=1)
    first, second = (np.uint8(0.2 * image + 100) for image in (first, second))  # veiled
    for y, x in np.random.default_rng(1).integers(3, 150, (300, 2)):  # all fall by 7 px
        first[y : y + 4, x : x + 4] = 230
        second[y + 7 : y + 11, x : x + 4] = 230
    flows = dis_hypotheses(first, second).flows
    errors = np.abs(flows[:, 30:-30, 30:-30] - [4, 1]).sum(axis=-1).mean(axis=(1, 2))
    assert errors[3] < 0.5 * errors[4]  # the same preparation without the opening


def test_larger_flakes_are_taken_where_they_fall_and_nothing_changes_where_none_do(monkeypatch):
    random = np.random.default_rng(3)
    clear = [  # with as little grain as cameras have
        np.clip(image + random.normal(0, 1.5, image.shape), 0, 255).astype(np.uint8)
        for image in moved(dx=4, dy=1)
    ]
    falling = [np.uint8(0.6 * image + 50) for image in clear]
    for y, x in np.random.default_rng(1).integers(3, 140, (60, 2)):
        cv2.circle(falling[0], (int(x), int(y)), 6, (230, 230, 230), -1)
        cv2.circle(falling[1], (int(x) - 5, int(y) + 11), 6, (230, 230, 230), -1)
    flows, found = dis_hypotheses(*falling)
    same, none_found = dis_hypotheses(*clear)
    assert found and not none_found
    monkeypatch.setattr('daflow_ros.flow.hypotheses.AGREEMENT', -2.0)
    opened = [i for i, how in enumerate(HYPOTHESES) if how.opening]
    mine, plain = (
        np.abs(each[:, 30:-30, 30:-30] - [4, 1]).sum(axis=-1).mean(axis=(1, 2))
        for each in (flows, dis_hypotheses(*falling).flows)
    )
    assert (mine[opened] < 0.3 * plain[opened]).all()
    assert np.array_equal(same, dis_hypotheses(*clear).flows)


def test_smoothing_survives_noise(monkeypatch):
    random = np.random.default_rng(2)
    noisy = [
        np.clip(image + random.normal(0, 40, image.shape), 0, 255).astype(np.uint8)
        for image in moved()
    ]

    def error():
        flows = dis_hypotheses(*noisy).flows[:, 30:-30, 30:-30]
        return np.linalg.norm(flows - [6, -3], axis=-1).mean(axis=(1, 2))

    smoothed = error()
    monkeypatch.setattr('daflow_ros.flow.hypotheses.SMOOTHING', 0.01)
    plain = error()
    assert smoothed[0] < 0.8 * plain[0]
    # Between clear and noisy, and in a veil of streaks, nothing is smoothed.
    assert noise_level(cv2.cvtColor(noisy[0], cv2.COLOR_RGB2GRAY)) > NOISY
    clear = moved()[0]
    grain = np.clip(clear + random.normal(0, 3, clear.shape), 0, 255).astype(np.uint8)
    assert BLOCKY < noise_level(cv2.cvtColor(grain, cv2.COLOR_RGB2GRAY)) < NOISY
    opened = [i for i, how in enumerate(HYPOTHESES) if how.opening]
    assert np.array_equal(smoothed[opened], plain[opened])


@pytest.mark.parametrize('sigma', [2, 8, 30])
def test_the_level_of_noise_is_found_beside_a_ramp_and_a_few_streaks(sigma):
    random = np.random.default_rng(4)
    grey = np.tile(np.linspace(90, 160, 200), (160, 1)) + random.normal(0, sigma, (160, 200))
    grey[20:60, ::25] += 60
    found = noise_level(np.clip(grey, 0, 255).round().astype(np.uint8))
    # Rounding to 8 bits is noise of 0.3.
    assert 0.9 * sigma < found < 1.2 * sigma
    assert noise_level(np.uint8(np.tile(np.arange(200), (160, 1)))) == 0


def test_even_contrast_undoes_a_veil():
    image = cv2.cvtColor(moved()[0], cv2.COLOR_RGB2GRAY)
    veiled = (0.25 * image + 140).astype(np.uint8)
    assert np.abs(image.astype(int) - veiled).mean() > 40
    difference = np.abs(even_contrast(image).astype(int) - even_contrast(veiled).astype(int))
    assert difference.mean() < 12
    plain = np.full((64, 64), 90, np.uint8)
    assert np.ptp(even_contrast(plain)) == 0


@pytest.mark.parametrize('size', [(16, 16), (20, 90), (32, 40), (32, 2000)])
def test_images_of_any_size_are_matched(size):
    flows = dis_hypotheses(*moved(*size, dx=1, dy=0)).flows
    assert flows.shape == (NUM_HYPOTHESES + len(BACKWARD), *size, 2) and np.isfinite(flows).all()
    assert np.abs(np.median(flows[0], axis=(0, 1)) - [1, 0]).max() < 0.5


def test_shipped_models_take_the_smallest_images():
    for name in ('raft_tiny', 'daflow_tiny'):
        estimate = load_estimator(name, device='cpu').estimate(*moved(16, 16, dx=1, dy=0))
        assert estimate.flow.shape == (16, 16, 2) and np.isfinite(estimate.flow).all()


def test_warp_and_local_correlation_against_plain_loops():
    generator = torch.Generator().manual_seed(0)
    second = torch.randn(1, 5, 6, 7, generator=generator)
    flow = torch.zeros(1, 2, 6, 7)
    flow[:, 0], flow[:, 1] = 2.0, -1.0
    warped = warp(second, flow)
    torch.testing.assert_close(warped[..., 1:, :-2], second[..., :-1, 2:])
    assert float(warped[..., 0, :].abs().max()) < 1e-5  # what lies outside is nothing
    assert float(warped[..., -2:].abs().max()) < 1e-5
    first = torch.randn(1, 5, 6, 7, generator=generator)
    volume = local_correlation(first, second, 1)
    for index, (dy, dx) in enumerate((y, x) for y in (-1, 0, 1) for x in (-1, 0, 1)):
        for y in range(1, 5):
            for x in range(1, 6):
                expected = (first[0, :, y, x] * second[0, :, y + dy, x + dx]).mean()
                assert float(volume[0, index, y, x]) == pytest.approx(float(expected), abs=1e-5)


def test_untrained_fusion_mixes_by_the_shares():
    torch.manual_seed(0)
    fusion = FlowFusion(8, 4, 2)
    flow = torch.full((1, 2, 8, 8), 3.0)
    values = torch.tensor([0.0, -6.0, 2.0])  # two hypotheses and the propagated flow
    candidates = values[None, :, None, None, None].expand(1, 3, 2, 8, 8)
    features, context = torch.randn(2, 1, 8, 8, 8), torch.zeros(1, 4, 4, 4)
    back = torch.zeros_like(flow)[:, None]
    shares = torch.tensor([0.5, 0.3, 0.2])
    given = shares.log()[None, :, None, None].expand(1, 3, 8, 8)
    out = fusion(*features, flow, context, given, candidates, back, 1)
    own = 0.1 / 1.1
    shares = shares / 1.1
    mixed = 3 * own + float((shares * values).sum())
    torch.testing.assert_close(out.flows[0], torch.full_like(flow, mixed))
    expected = torch.tensor([*shares[:2], own, shares[2]])
    torch.testing.assert_close(out.shares[0, :, 4, 4], expected)
    assert torch.equal(out.others, torch.stack([flow, candidates[:, 2]], dim=1))
    assert not out.correction.any()
    assert out.laplace.shape == (1, 4, 8, 8)
    log_shares, every = out.selections[0]
    torch.testing.assert_close(log_shares[0, 1:, 4, 4].exp(), shares)
    assert torch.equal(every, torch.cat([flow[:, None], candidates], dim=1))


def test_forward_backward_error_in_px_of_full_resolution():
    flow, back = torch.full((1, 2, 8, 8), 1.0), torch.full((1, 1, 2, 8, 8), -1.0)
    error = forward_backward_error(flow, torch.cat([back, 0 * back, 9 * back], dim=1))
    assert error.shape == (1, 3, 8, 8)
    assert float(error[:, 0, :-1, :-1].max()) < 1e-4
    assert float(error[:, 1].mean()) == pytest.approx(4 * 2**0.5)
    assert float(error[0, 2, 2, 2]) == 10


def test_all_hypotheses_right_gives_the_truth_at_full_resolution():
    """A step that a quarter of the resolution cannot hold comes out unharmed."""
    torch.manual_seed(0)
    network = RAFT(**RAFT_TINY).eval()
    truth = torch.zeros(1, 2, 64, 64)
    truth[:, 0, :, 33:] = 2.0
    others = torch.stack([truth] * NUM_HYPOTHESES + [-truth] * len(BACKWARD), dim=1)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        network.fusion.head.bias[0] = -50.0
        network.selector.head.bias[-1] = -50.0
        flow = network(image, image, 1, None, others).flow
    torch.testing.assert_close(flow, truth, atol=1e-4, rtol=0)


def test_agreement_is_highest_at_the_true_flow():
    second = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    truth = torch.zeros(1, 2, 12, 12)
    truth[:, 0] = 2.0
    first = warp(second, truth)
    right, wrong = agreement(first, second, torch.stack([truth, truth + 1], 1), 2)[0, ..., :-3]
    assert float(right.mean()) > float(wrong.mean()) + 0.5


def test_unet_keeps_the_size_and_sees_far():
    net = UNet(3, (8, 8, 8))
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    y = net(x)
    assert y.shape == (1, 8, 32, 32)
    y[0, :, 16, 16].sum().backward()
    assert float(x.grad[0, :, 16, 2].abs().max()) > 0


def test_convex_upsampling_of_a_constant_keeps_it_inside():
    field = torch.full((1, 2, 5, 6), 2.0)
    mask = torch.randn(1, 144, 5, 6, generator=torch.Generator().manual_seed(0))
    up = convex_upsample(field, mask, 4)
    torch.testing.assert_close(up[..., 4:-4, 4:-4], torch.full((1, 2, 12, 16), 8.0))
    assert float(up[..., 0, :].min()) < 7  # RAFT's zeros beyond the border


def test_a_network_that_fuses_asks_for_its_hypotheses():
    network = RAFT(**RAFT_TINY).eval()
    count = NUM_HYPOTHESES + len(BACKWARD)
    image = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match=f'0 flow hypotheses, not {count}'):
        network(image, image, 1)
    with pytest.raises(ValueError, match='divide by 16'):
        network(image[..., :56], image[..., :56], 1, None, torch.zeros(1, count, 2, 64, 56))
    with torch.no_grad():
        start = torch.zeros(1, count, 2, 64, 64)
        start[:, :, 0] = 8.0  # the chosen ones start the iterations
        output = network(image, image, 0, None, start)
    torch.testing.assert_close(output.flows_low[0][:, 0], torch.ones(1, 8, 8))
    assert output.flow.shape == (1, 2, 64, 64) and output.laplace.shape == (1, 4, 64, 64)


def test_opening_against_opencv():
    image = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    expected = cv2.morphologyEx(image, cv2.MORPH_OPEN, np.ones((9, 9), np.uint8))
    ours = opening(torch.from_numpy(image)[None, None].float(), 9)
    assert np.array_equal(ours[0, 0].numpy().astype(np.uint8), expected)


def test_mismatch_is_one_minus_the_correlation_of_windows():
    first, second = torch.rand(2, 1, 1, 20, 24, generator=torch.Generator().manual_seed(0))
    ours = mismatch(first, second, 7)
    a, b = (x[0, 0, 5:12, 8:15].flatten().numpy() for x in (first, second))
    assert float(ours[0, 0, 8, 11]) == pytest.approx(1 - np.corrcoef(a, b)[0, 1], abs=0.02)
    assert float(mismatch(first, 0.3 * first + 0.4).abs().max()) < 0.05  # a veil changes nothing
    plain = torch.full_like(first, 0.5)
    assert float((mismatch(plain, plain) - 1).abs().max()) < 1e-3


def test_cues_speak_for_the_true_flow():
    images = moved(128, 160, dx=8, dy=-4)
    first, second = (
        torch.from_numpy(x).permute(2, 0, 1)[None].float() / 127.5 - 1 for x in images
    )
    true = torch.tensor([2.0, -1.0]).reshape(1, 1, 2, 1, 1).expand(1, 1, 2, 32, 40)
    hypotheses = torch.cat([true, true, true + 1.0, torch.zeros_like(true)], dim=1)
    cues, about = hypothesis_cues(first, second, hypotheses, -true.expand(1, 2, 2, 32, 40))
    assert cues.shape == (1, 4, 13, 32, 40) and about.shape == (1, 7, 32, 40)
    inner = cues[0, :, :, 8:-8, 8:-8].mean(dim=(2, 3))
    for wrong in (2, 3):
        assert (inner[0, :12] < inner[wrong, :12]).all()  # all but roughness, which is the same
    torch.testing.assert_close(inner[0], inner[1])


def test_box_against_pooling():
    x = torch.rand(2, 3, 20, 5, generator=torch.Generator().manual_seed(0))
    for side in (3, 5, 9):
        pooled = torch.nn.functional.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)
        torch.testing.assert_close(box(x, side), pooled)


def test_dominant_motion_is_that_of_the_larger_part():
    y, x = np.mgrid[:120, :160].astype(np.float32)
    affine = np.stack([3 + 0.01 * x - 0.02 * y, -2 + 0.015 * x], axis=-1)
    flow = affine + np.random.default_rng(0).normal(0, 0.1, affine.shape)
    flow[20:80, 30:100] = [-20, 9]  # an object
    found = dominant_motion(flow.astype(np.float32))
    assert found.dtype == np.float32 and found.shape == flow.shape
    assert np.abs(found - affine).max() < 0.25
    assert np.abs(dominant_motion(np.full((3, 5, 2), 4, np.float32)) - 4).max() < 0.01


def test_motion_layers_are_those_of_what_moves_otherwise():
    y, x = np.mgrid[:160, :240].astype(np.float32)
    camera = np.stack([2 + 0.01 * x, -1 + 0.01 * y], axis=-1)
    car = np.stack([-9 - 0.02 * (y - 60), 3 + 0.02 * (x - 60)], axis=-1)
    flow = camera + np.random.default_rng(0).normal(0, 0.2, camera.shape)
    flow[40:120, 20:110] = car[40:120, 20:110]
    flow[100:150, 170:220] = [14, 5]
    first, second, third = motion_layers(flow.astype(np.float32), [camera], 3)
    assert first.dtype == np.float32 and first.shape == flow.shape
    assert np.abs(first - car).max() < 0.2 and np.abs(second - [14, 5]).max() < 0.2
    assert np.array_equal(third, second)  # nothing more to find
    again = motion_layers(camera, [camera], 2)
    assert all(np.array_equal(layer, camera) for layer in again)
    assert np.isfinite(motion_layers(np.full((3, 5, 2), 9, np.float32), [camera[:3, :5]], 1)).all()


def test_agreement_of_features_against_warping_one_by_one():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, MATCH_DIM, 12, 16, generator=generator)
    flows = 3 * torch.randn(1, 3, 2, 12, 16, generator=generator)
    ours = agreement(first, second, flows)
    assert ours.shape == (1, 3, GROUPS, 12, 16)
    for k in range(3):
        product = first * warp(second, flows[:, k])
        expected = product.reshape(1, GROUPS, -1, 12, 16).mean(dim=2)
        torch.testing.assert_close(ours[:, k], expected)


def test_matching_features_have_one_length_whatever_the_contrast():
    torch.manual_seed(0)
    matching = MatchingFeatures(6, 10)
    quarter, eighth = torch.randn(1, 6, 8, 12), torch.randn(1, 10, 4, 6)
    for scale in (1, 10):
        length = matching(scale * quarter, scale * eighth).square().sum(dim=1)
        torch.testing.assert_close(length, torch.full((1, 8, 12), float(MATCH_DIM)))


def test_propagation_fills_what_is_alike_from_what_is_trusted():
    flow = torch.zeros(1, 2, 12, 16)
    flow[..., :8], flow[..., 8:] = 1.0, -1.0
    keys = torch.zeros(1, 3, 12, 16)
    keys[:, 0, :, 8:] = 5.0
    trust = torch.zeros(1, 1, 12, 16)
    wrong = flow.clone()
    wrong[..., 4:6, 6:8] = -1.0
    trust[..., 4:6, 6:8] = -30.0
    torch.testing.assert_close(propagate(wrong, keys, trust), flow, atol=1e-4, rtol=0)


@pytest.mark.parametrize('size', [(16, 16), (12, 20)])
def test_selector_is_even_handed_until_trained(size):
    torch.manual_seed(0)
    selector = HypothesisSelector(5)
    # The same everywhere: what is pooled and interpolated stays as it is.
    cues, about = torch.randn(1, 5, 13, 1, 1).expand(-1, -1, -1, *size), torch.randn(1, 7, *size)
    hypotheses = torch.full((1, 5, 2, *size), 2.0)
    shares, candidates, _ = selector(cues, about, hypotheses, *blind(*size))
    torch.testing.assert_close(shares.exp().sum(dim=1), torch.ones(1, *size))
    torch.testing.assert_close(shares[:, :5].exp(), torch.full((1, 5, *size), 0.1))
    torch.testing.assert_close(candidates, torch.full((1, 6, 2, *size), 2.0))
    with torch.no_grad():
        selector.linear[2, 4] = -2.0
    shares, _, coarse = selector(cues, about, hypotheses, *blind(*size))
    torch.testing.assert_close(shares, coarse)  # untrained, the refiner changes nothing
    torch.testing.assert_close(shares[:, 2] - shares[:, 1], -2 * cues[:, 2, 4])


def test_refiner_tells_apart_what_one_coarse_cell_holds():
    selector = HypothesisSelector(2)
    # Two motions a px apart, cell by cell; at half of the resolution they look the same.
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing='ij')
    odd = ((x + y) % 2).float()
    cues = torch.zeros(1, 2, 13, 16, 16)
    cues[0, 0, 4], cues[0, 1, 4] = odd, 1 - odd
    hypotheses = torch.zeros(1, 2, 2, 16, 16)
    hypotheses[0, 1] = 10
    right = torch.where(odd == 0, hypotheses[:, 0], hypotheses[:, 1])
    with torch.no_grad():
        selector.head.bias[-1] = -30  # nothing of what is propagated
        refiner = selector.refiner
        for layer in (refiner.enter, refiner.first, refiner.second):
            layer.weight.zero_()
            layer.bias.zero_()
        refiner.enter.weight[0, 4] = 1
        refiner.head.weight[0, 0, 1, 1] = -40
        choice = selector(cues, torch.zeros(1, 7, 16, 16), hypotheses, *blind(16, 16))
    for shares, worst in ((choice.log_shares, 0.01), (choice.coarse, None)):
        blend = (shares.exp()[:, :, None] * choice.candidates).sum(dim=1)
        off = (blend - right).norm(dim=1)
        assert off.max() < worst if worst else off.min() > 5


def test_refiner_trains_where_all_candidates_agree():
    selector = HypothesisSelector(3)
    torch.nn.init.normal_(selector.refiner.head.weight)
    still = torch.zeros(1, 3, 2, 8, 8)
    cues, about = torch.randn(1, 3, 13, 8, 8), torch.randn(1, 7, 8, 8)
    choice = selector(cues, about, still, *blind(8, 8))
    choice.log_shares[:, 0].sum().backward()
    # Their distance is 0, where a square root has no slope.
    assert all(p.grad is None or p.grad.isfinite().all() for p in selector.parameters())
    assert selector.refiner.first.weight.grad.abs().max() > 0
