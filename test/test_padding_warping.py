# SPDX-License-Identifier: Apache-2.0
"""Padding and warping against analytic flow and a per-pixel loop."""

import numpy as np
import pytest
import torch

from daflow_ros.flow.padding import InputPadder
from daflow_ros.flow.warping import forward_splat, upsample_flow, warp_backward


@pytest.mark.parametrize('mode', ['centre', 'bottom'])
@pytest.mark.parametrize('size', [(370, 1226), (64, 64), (1, 3), (436, 1024)])
def test_padding_is_undone_and_replicates(size, mode):
    height, width = size
    padder = InputPadder(height, width, 8, mode)
    image = torch.rand(2, 3, height, width)
    (padded,) = padder.pad(image)
    assert padded.shape[-2] % 8 == 0 and padded.shape[-1] % 8 == 0
    assert padded.shape[-2:] == padder.padded_size
    assert torch.equal(padder.unpad(padded), image)
    expected = np.pad(
        image.numpy(),
        ((0, 0), (0, 0), (padder.top, padder.bottom), (padder.left, padder.right)),
        mode='edge',
    )
    assert np.array_equal(padded.numpy(), expected)


def test_padding_of_the_two_modes():
    # RAFT's: Sintel 436 -> 440 with 2 + 2 rows, KITTI 370 x 1226 -> 376 x 1232 with 0 + 6.
    centre, bottom = InputPadder(436, 1024), InputPadder(370, 1226, mode='bottom')
    assert (centre.top, centre.bottom, centre.left, centre.right) == (2, 2, 0, 0)
    assert (bottom.top, bottom.bottom, bottom.left, bottom.right) == (0, 6, 3, 3)


def test_padding_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match='mode'):
        InputPadder(8, 8, mode='sintel')
    with pytest.raises(ValueError, match='made for'):
        InputPadder(8, 8).pad(torch.zeros(1, 3, 9, 8))


def smooth(x, y):
    return torch.stack((x, y, 0.3 * x - 0.2 * y))


def test_warp_follows_an_analytic_flow():
    # Bilinear sampling of a plane is exact, whatever the flow.
    height, width = 31, 47
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    x, y = x.float(), y.float()
    flow = torch.stack((3 * torch.sin(y / 7), 2.5 * torch.cos(x / 5)))[None]
    warped, inside = warp_backward(smooth(x, y)[None], flow)
    target_x, target_y = x + flow[0, 0], y + flow[0, 1]
    expected = smooth(target_x, target_y)[None]
    within = (target_x >= 0) & (target_x <= width - 1) & (target_y >= 0)
    within &= target_y <= height - 1
    assert torch.equal(inside[0, 0], within)
    assert 0.5 < within.float().mean() < 1
    error = (warped - expected).abs().max(dim=1)[0]
    assert error[0][within].max() < 1e-3
    assert torch.isfinite(warped).all()


def test_warp_of_integer_shift_and_nan():
    image = torch.rand(1, 3, 10, 12)
    flow = torch.zeros(1, 2, 10, 12)
    flow[:, 0] = 2
    flow[0, :, 4, 5] = float('nan')
    warped, inside = warp_backward(image, flow)
    assert not inside[0, 0, 4, 5] and not inside[..., -2:].any() and inside[..., :4, :-2].all()
    assert torch.allclose(warped[..., :4, :-2], image[..., :4, 2:], atol=1e-6)


def test_splat_carries_vectors_to_where_they_point():
    # Two rigid regions that part, vectors of half pixels included: a gap opens between them.
    flow = torch.zeros(1, 2, 40, 60)
    flow[0, 0, :, 30:] = 6.5
    flow[0, 1, :, 30:] = 2.0
    moved = forward_splat(flow)
    assert torch.allclose(moved[0, 0, 5:, 37:], torch.full((35, 23), 6.5))
    assert torch.allclose(moved[0, 1, 5:, 37:], torch.full((35, 23), 2.0))
    assert moved[0, :, 5:, :30].abs().max() == 0
    assert moved.min() >= 0 and moved.max() <= 6.5 + 1e-4


def test_splat_of_constant_flow_is_constant_and_fills_holes():
    flow = torch.full((2, 2, 33, 57), 5.25)
    flow[0, :, 3, 4] = float('nan')
    flow[1] *= -2
    moved = forward_splat(flow)
    assert torch.allclose(moved[0], torch.full_like(moved[0], 5.25), atol=1e-4)
    assert torch.allclose(moved[1], torch.full_like(moved[1], -10.5), atol=1e-4)
    unknown = torch.full((1, 2, 9, 9), float('nan'))
    assert torch.equal(forward_splat(unknown), torch.zeros(1, 2, 9, 9))


def test_upsampling_scales_vectors():
    flow = torch.full((1, 2, 4, 5), 1.5)
    up = upsample_flow(flow, 8)
    assert up.shape == (1, 2, 32, 40) and torch.allclose(up, torch.full_like(up, 12.0))
