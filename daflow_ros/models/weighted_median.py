# SPDX-License-Identifier: Apache-2.0
"""A last word on the flow: the weighted median of what is about, along the image's edges.

Half of what the flow missed on clear images lay within 3 px of the edges of what moves, where the
right motion is mostly a few px aside. Each pixel takes the median of its neighbours' flow,
weighted by nearness, likeness of colour (Classic+NL: Sun, Roth and Black, CVPR 2010) and trust:
where the candidates agree and where the second image shows along the flow what the first does.
No learning.

Shapes: flow ``(B, 2, H, W)`` px, images ``(B, 3, H, W)`` in [-1, 1], H and W even.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.models.cues import box, warp

#: One grey value of 8 bits, images being in [-1, 1].
GREY = 2 / 255
#: Steps of the median's own iteration.
ROUNDS = 3


def noise_level(image: Tensor) -> Tensor:
    """Standard deviation of the noise of a channel, ``(B, 1, 1, 1)`` (Immerkaer 1996, by median).

    What a kernel blind to planes and straight edges finds in the mean of the channels, whose
    noise is taken to be independent.
    """
    side = image.new_tensor([1.0, -2.0, 1.0])
    kernel = (side[:, None] * side / 6)[None, None]
    # Half precision, where the caller chose it, would not go with the images below.
    found = F.conv2d(image.mean(dim=1, keepdim=True), kernel).float().abs().flatten(1)
    return (3**0.5 * 1.4826 * found.median(dim=1).values)[:, None, None, None]


def weighted_median(
    flow: Tensor,
    guide: Tensor,
    trust: Tensor,
    radius: int,
    step: int,
    colour: float,
    reach: float,
) -> Tensor:
    """Geometric median of the flow about each pixel, by iteratively reweighted means.

    Args:
        flow: ``(B, 2, h, w)`` px.
        guide: ``(B, 3, h, w)``, whose likeness counts.
        trust: ``(B, 1, h, w)``, positive.
        radius: of the window, (2 radius + 1)^2 samples, ``step`` px from each other.
        colour: standard deviation of the guide's weight.
        reach: the same of the distance's, px.
    """
    h, w = flow.shape[-2:]
    border = radius * step
    wide, likes, trusts = (
        F.pad(x, (border,) * 4, mode='replicate') for x in (flow, guide, trust)
    )
    samples = []
    steps = range(-radius, radius + 1)
    for i, j in ((i, j) for i in steps for j in steps):
        y, x = border + i * step, border + j * step
        at = (..., slice(y, y + h), slice(x, x + w))
        weight = (likes[at] - guide).square_().sum(dim=1, keepdim=True)
        weight.mul_(-0.5 / colour**2).sub_(0.5 * step**2 * (i * i + j * j) / reach**2)
        samples.append((weight.exp_().mul_(trusts[at]).add_(1e-12), wide[at]))
    # From the mean of all to their median.
    median: Tensor | None = None
    for _ in range(1 + ROUNDS):
        total, weights = torch.zeros_like(flow), torch.zeros_like(trust)
        for weight, value in samples:
            share = weight
            if median is not None:
                apart = (value - median).square_()
                # 0.05 px keeps a sample at the median from being all of it.
                share = weight / apart[:, :1].add_(apart[:, 1:]).sqrt_().add_(0.05)
            weights += share
            total.addcmul_(share.expand_as(value), value)
        median = total / weights
    assert median is not None
    return median


@torch.no_grad()
def median_along_edges(flow: Tensor, spread: Tensor, image1: Tensor, image2: Tensor) -> Tensor:
    """The flow, its edges drawn to those of the image.

    A wide window at half the resolution, then a close one.

    Args:
        flow: ``(B, 2, H, W)`` px.
        spread: ``(B, 1, H, W)`` px, mean distance of the candidates from the flow.
        image1, image2: ``(B, 3, H, W)``.
    """
    noise = noise_level(image1)
    # What the first image shows, against what the second one does where it leads; what leads
    # out of the image meets black.
    unlike = (warp(image2 + 1, flow) - image1 - 1).abs().mean(dim=1, keepdim=True)
    unlike = box(unlike, 5) / (5 * GREY + noise / 2)
    trust = (0.3 + spread).pow(-1.5) / (1 + unlike.square())
    # Noise in the guide would make everything unlike.
    share = noise.square() / (noise.square() + (8 * GREY) ** 2)
    guide = torch.lerp(image1, box(image1, 3), share)
    low, dim, sure = (F.avg_pool2d(x, 2) for x in (flow, guide, trust))
    coarse = weighted_median(low, dim, sure, radius=3, step=5, colour=10 * GREY, reach=15)
    coarse = F.interpolate(coarse, scale_factor=2, mode='bilinear', align_corners=False)
    fine = weighted_median(coarse, guide, trust, radius=3, step=3, colour=14 * GREY, reach=10)
    # What all candidates agree on is left alone.
    return torch.lerp(flow, fine, spread / (spread + 0.02))
