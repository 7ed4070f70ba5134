# SPDX-License-Identifier: Apache-2.0
"""Classical hypotheses find known motion, and the fusion judges and weighs them."""

import cv2
import numpy as np
import pytest
import torch

from daflow_ros import load_estimator
from daflow_ros.flow.hypotheses import HYPOTHESES, dis_hypotheses, even_contrast
from daflow_ros.models.correlation import CorrelationPyramid
from daflow_ros.models.fusion import (
    FlowFusion,
    UNet,
    forward_backward_error,
    local_correlation,
    warp,
)
from daflow_ros.models.raft import RAFT, RAFT_TINY, convex_upsample


def moved(height=160, width=200, dx=6, dy=-3):
    rng = np.random.default_rng(0)
    grain = rng.integers(0, 255, (height // 4 + 20, width // 4 + 20, 3), np.uint8)
    big = cv2.resize(grain, None, fx=4, fy=4, interpolation=cv2.INTER_CUBIC)
    first = big[30 : 30 + height, 30 : 30 + width]
    second = big[30 - dy : 30 - dy + height, 30 - dx : 30 - dx + width]
    return np.ascontiguousarray(first), np.ascontiguousarray(second)


def test_every_hypothesis_finds_a_shift_at_its_scale():
    flows = dis_hypotheses(*moved())
    assert flows.shape == (len(HYPOTHESES) + 1, 160, 200, 2) and flows.dtype == np.float32
    for flow, how in zip(flows, HYPOTHESES, strict=False):
        inner = flow[30:-30, 30:-30]
        assert np.abs(np.median(inner, axis=(0, 1)) - [6, -3]).max() < 0.25 * how.factor
    back = np.median(flows[-1][30:-30, 30:-30], axis=(0, 1))
    assert np.abs(back - [-6, 3]).max() < 1


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
    flows = dis_hypotheses(*moved(*size, dx=1, dy=0))
    assert flows.shape == (len(HYPOTHESES) + 1, *size, 2) and np.isfinite(flows).all()
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


def test_untrained_fusion_prefers_the_first_hypothesis_and_listens_to_evidence():
    torch.manual_seed(0)
    fusion = FlowFusion(8, 4, 2)
    flow = torch.full((1, 2, 8, 8), 3.0)
    others = torch.stack([torch.zeros_like(flow), torch.full_like(flow, -6.0)], dim=1)
    features, context = torch.randn(2, 1, 8, 8, 8), torch.zeros(1, 4, 4, 4)
    evidence, back = torch.zeros(1, 3, 4, 4), torch.zeros_like(flow)
    # 3 and 6 quarter pixels, each way: far more than the 10 px where the check ends.
    logits = torch.tensor([0.0 - 10, 3.0 - 0, 0.0 - 10])
    out = fusion(*features, flow, context, others, evidence, back, 1)
    share = logits.softmax(0)
    mixed = float(3 * share[0] - 6 * share[2])
    torch.testing.assert_close(out[0][0], torch.full_like(flow, mixed))
    torch.testing.assert_close(out[1][0, :, 4, 4], share[1:])
    torch.testing.assert_close(out[2], torch.full_like(flow, float(3 * share[0])))
    assert out[3].shape == (1, 144, 8, 8) and out[4].shape == (1, 3, 8, 8)
    evidence[:, 2] = 40.0  # the features are sure of the last one
    flows = fusion(*features, flow, context, others, evidence, back, 1)[0]
    assert float((flows[0] + 6).abs().max()) < 0.1


def test_forward_backward_error_in_px_of_full_resolution():
    flow, back = torch.full((1, 2, 8, 8), 1.0), torch.full((1, 2, 8, 8), -1.0)
    error = forward_backward_error(flow, back)
    assert float(error[..., :-1, :-1].max()) < 1e-4
    assert float(forward_backward_error(flow, 0 * back).mean()) == pytest.approx(4 * 2**0.5)
    assert float(forward_backward_error(flow, 9 * back)[..., 2, 2]) == 10


def test_all_hypotheses_right_gives_the_truth_at_full_resolution():
    """A step that a quarter of the resolution cannot hold comes out unharmed."""
    torch.manual_seed(0)
    network = RAFT(**RAFT_TINY).eval()
    truth = torch.zeros(1, 2, 64, 64)
    truth[:, 0, :, 33:] = 2.0
    others = torch.stack([truth, truth, truth, -truth], dim=1)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        network.fusion.gain.zero_()
        network.fusion.head.bias[1:4] = 50.0
        flow = network(image, image, 1, None, others).flow
    torch.testing.assert_close(flow, truth, atol=1e-4, rtol=0)


def test_log_probability_and_peak_against_the_whole_softmax():
    torch.manual_seed(0)
    features = torch.nn.functional.normalize(torch.randn(1, 16, 8, 10), dim=1)
    moved = torch.roll(features, (2, -1), dims=(3, 2))  # 2 cells right, 1 up
    pyramid = CorrelationPyramid(features, moved, 2, 3, 40.0)
    at = torch.tensor([5.0, 3.0]).reshape(1, 1, 2, 1, 1).expand(1, 1, 2, 8, 10)
    expected = pyramid.volume.log_softmax(-1)[0, :, 3 * 10 + 5].reshape(8, 10)
    torch.testing.assert_close(pyramid.log_probability(at)[0, 0], expected, atol=1e-4, rtol=0)
    peak = RAFT(**RAFT_TINY).peak_flow(pyramid)[0, :, 2:-2, 2:-3]
    torch.testing.assert_close(peak[0], torch.full_like(peak[0], 2.0), atol=0.05, rtol=0)
    torch.testing.assert_close(peak[1], torch.full_like(peak[1], -1.0), atol=0.05, rtol=0)


def test_agreement_is_highest_at_the_true_flow():
    fusion = FlowFusion(8, 4, 2, match_dim=8, groups=2)
    second = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(0))
    truth = torch.zeros(1, 2, 12, 12)
    truth[:, 0] = 2.0
    first = warp(second, truth)
    right = fusion.agreement(first, second, truth)[..., :-3]
    wrong = fusion.agreement(first, second, truth + 1)[..., :-3]
    assert float(right.mean()) > float(wrong.mean()) + 0.5


def test_unet_keeps_the_size_and_sees_far():
    net = UNet(3, (8, 8, 8))
    x = torch.zeros(1, 3, 32, 32, requires_grad=True)
    y = net(x)
    assert y.shape == (1, 8, 32, 32)
    y[0, :, 16, 16].sum().backward()
    assert float(x.grad[0, :, 16, 2].abs().max()) > 0


def test_convex_upsampling_of_a_constant_keeps_it_up_to_the_border():
    field = torch.full((1, 2, 5, 6), 2.0)
    mask = torch.randn(1, 144, 5, 6, generator=torch.Generator().manual_seed(0))
    up = convex_upsample(field, mask, 4, border='replicate')
    torch.testing.assert_close(up, torch.full((1, 2, 20, 24), 8.0))
    assert float(convex_upsample(field, mask, 4)[..., 0, :].min()) < 7


def test_a_network_that_fuses_asks_for_its_hypotheses():
    network = RAFT(**RAFT_TINY).eval()
    image = torch.zeros(1, 3, 64, 64)
    with pytest.raises(ValueError, match='0 flow hypotheses, not 3'):
        network(image, image, 1)
    with pytest.raises(ValueError, match='divide by 16'):
        network(image[..., :56], image[..., :56], 1, None, torch.zeros(1, 4, 2, 64, 56))
    with torch.no_grad():
        start = torch.zeros(1, 4, 2, 64, 64)
        start[:, 0, 0] = 8.0  # the first one starts the iterations
        output = network(image, image, 0, None, start)
    torch.testing.assert_close(output.flows_low[0][:, 0], torch.ones(1, 8, 8))
    assert output.flow.shape == (1, 2, 64, 64) and output.laplace.shape == (1, 3, 64, 64)
