# SPDX-License-Identifier: Apache-2.0
"""Upsampling along the edges of an image, against a second implementation and a known edge."""

from __future__ import annotations

import math

import numpy as np
import torch

from daflow_ros.flow.hypotheses import NUM_HYPOTHESES
from daflow_ros.models.fusion import Fused
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_sizes import RAFT_TINY
from daflow_ros.models.upsampling import convex_upsample, convex_upsample_start, guided_upsample


def pixel_by_pixel(field: np.ndarray, image: np.ndarray, factor: int) -> np.ndarray:
    """Joint bilateral upsampling as it is written down."""
    c, h, w = field.shape
    cells = image.reshape(3, h, factor, w, factor).mean(axis=(2, 4))
    out = np.zeros((c, h * factor, w * factor))
    for y in range(h * factor):
        for x in range(w * factor):
            v, u = (y + 0.5) / factor - 0.5, (x + 0.5) / factor - 0.5
            total = 0.0
            for j in (-1, 0, 1):
                for i in (-1, 0, 1):
                    row, column = y // factor + j, x // factor + i
                    r, s = min(max(row, 0), h - 1), min(max(column, 0), w - 1)
                    far = ((row - v) ** 2 + (column - u) ** 2) / (2 * 0.7**2)
                    unlike = ((cells[:, r, s] - image[:, y, x]) ** 2).sum() / (2 * 0.12**2)
                    weight = math.exp(-far) * (math.exp(-unlike) + 1e-6)
                    out[:, y, x] += weight * field[:, r, s]
                    total += weight
            out[:, y, x] /= total
    return out


def test_guided_upsampling_is_the_joint_bilateral_one() -> None:
    generator = torch.Generator().manual_seed(2)
    field = torch.randn((2, 3, 4, 5), generator=generator)
    image = 0.3 * torch.randn((2, 3, 16, 20), generator=generator)
    found = guided_upsample(field, image)
    for b in range(2):
        expected = pixel_by_pixel(field[b].numpy(), image[b].numpy(), 4)
        np.testing.assert_allclose(found[b], expected, atol=1e-5)


def test_an_edge_within_cells_stays_where_the_image_has_it() -> None:
    # Black left of column 14, white from there on: the cells of columns 12 to 15 are grey.
    image = torch.full((1, 3, 24, 32), -1.0)
    image[..., 14:] = 1.0
    field = torch.zeros((1, 1, 6, 8))
    field[..., 4:] = 1.0
    field[..., 3] = 0.5
    up = guided_upsample(field, image)
    assert float(up[..., :14].max()) < 0.05 and float(up[..., 14:].min()) > 0.95
    bilinear = torch.nn.functional.interpolate(field, scale_factor=4, mode='bilinear')
    assert float(bilinear[..., 13].max()) > 0.4


def test_the_flow_at_full_resolution_leans_to_the_likeliest() -> None:
    """Shares of 0.6, 0.2 and 0.2 / 14 each count by their squares."""
    network = RAFT(**RAFT_TINY)
    values = torch.arange(NUM_HYPOTHESES + 2.0)
    shares = torch.full((NUM_HYPOTHESES + 2,), 0.2 / NUM_HYPOTHESES)
    shares[0], shares[-1] = 0.2, 0.6  # the first hypothesis and the propagated flow
    size = (1, NUM_HYPOTHESES + 2, 2, 32, 32)
    flows = values[None, :, None, None, None].expand(size)
    small = flows[..., :8, :8] / 4
    zero = torch.zeros(1, 2, 8, 8)
    fused = Fused(
        [], shares[None, :, None, None].expand(1, -1, 8, 8), small[:, -2:], zero + 0.5,
        torch.zeros(1, 4, 8, 8), [],
    )  # fmt: skip
    out = network._upsample(fused, [], flows[:, :-2], *torch.rand(2, 1, 3, 32, 32), None)
    expected = float((shares**2 * values).sum() / (shares**2).sum()) + 4 * 0.5
    torch.testing.assert_close(out.flow, torch.full((1, 2, 32, 32), expected))


def test_a_start_keeps_its_detail_where_the_mask_says_so() -> None:
    generator = torch.Generator().manual_seed(4)
    first = torch.randn(2, 2, 3, 4, generator=generator)
    flow = first + 0.5
    start = torch.randn(2, 2, 24, 32, generator=generator)
    mask = torch.randn(2, 640, 3, 4, generator=generator)
    # All weight on the start: it is moved by what the refinement changed, 0.5 cells of 8 px.
    mask[:, 576:] = 100.0
    up = convex_upsample_start(flow, mask, first, start)
    torch.testing.assert_close(up, start + 4.0, rtol=0, atol=1e-4)
    # None of it: RAFT's own upsampling.
    mask[:, 576:] = -100.0
    up = convex_upsample_start(flow, mask, first, start)
    torch.testing.assert_close(up, convex_upsample(flow, mask[:, :576]), rtol=0, atol=1e-4)
    # Half and half, pixel by pixel.
    mask[:, 576:] = mask[:, :576].view(2, 9, 64, 3, 4).logsumexp(dim=1)
    both = convex_upsample_start(flow, mask, first, start)
    torch.testing.assert_close(both, (up + start + 4.0) / 2, rtol=0, atol=1e-4)
