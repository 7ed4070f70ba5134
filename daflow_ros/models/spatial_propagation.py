# SPDX-License-Identifier: Apache-2.0
"""Flow taken over from pixels around: one step of non-local spatial propagation.

A thin thing that nothing matched often moves as what it hangs on, which looks alike and was
matched. So each pixel takes a mean of the flow of fixed pixels around it, weighed by how sure the
flow there is and by how much colour there is like its own, both to a measure that a network learns
(after Park et al., Non-Local Spatial Propagation Network, ECCV 2020, with neighbours that are not
moved).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

#: Distances of the neighbours, px of half the resolution; as many directions at each.
RINGS, DIRECTIONS = (2, 6, 14, 28), 8
#: What a network has to say: the pixel itself and each ring, surety, how much colour counts.
NUM_GUIDES = 1 + len(RINGS) + 2
#: Logarithm of what colour counts at most: a tenth of the range of a channel is then 30 logits.
MOST = 6.6


def _neighbours() -> list[tuple[int, int, int]]:
    """Ring (0 the pixel itself), dy and dx; every other ring is turned by half a step."""
    every = [(0, 0, 0)]
    for ring, radius in enumerate(RINGS):
        for direction in range(DIRECTIONS):
            angle = 2 * math.pi * (direction + 0.5 * (ring % 2)) / DIRECTIONS
            dy, dx = round(radius * math.sin(angle)), round(radius * math.cos(angle))
            every.append((1 + ring, dy, dx))
    return every


NEIGHBOURS = _neighbours()
_REACH = max(RINGS) + 1


def propagate(flow: Tensor, image: Tensor, guides: Tensor) -> Tensor:
    """Mean of the flow of each pixel and of those around it.

    Beyond the border lies what lies on it.

    Args:
        flow: ``(B, 2, fh, fw)`` px, f 1 or 2.
        image: ``(B, 3, fh, fw)`` in [-1, 1], of whose colours the likeness is told.
        guides: ``(B, NUM_GUIDES, h, w)``: logits of the pixel itself and of each ring, a logit
            of the flow at a pixel wherever it is taken to, and the logarithm of what a squared
            difference of colour takes off.

    Returns:
        ``(B, 2, fh, fw)`` px.
    """
    rings, (sure, colour_counts) = guides[:, :-2], guides[:, -2:].split(1, dim=1)
    height, width = guides.shape[-2:]
    factor = flow.shape[-1] // width
    colour = F.avg_pool2d(image, factor)
    padded = F.pad(torch.cat([colour, sure], dim=1), (_REACH,) * 4, mode='replicate')
    counts = colour_counts.clamp(max=MOST).exp()
    logits = []
    for ring, dy, dx in NEIGHBOURS:
        y, x = _REACH + dy, _REACH + dx
        there = padded[..., y : y + height, x : x + width]
        logit = rings[:, ring : ring + 1] + there[:, 3:]
        if ring:
            unlike = (there[:, :3] - colour).square().sum(dim=1, keepdim=True)
            logit = logit - counts * unlike
        logits.append(logit)
    shares = torch.cat(logits, dim=1)
    if factor > 1:
        shares = F.interpolate(shares, scale_factor=factor, mode='bilinear', align_corners=False)
    shares = shares.softmax(dim=1)
    padded = F.pad(flow, (factor * _REACH,) * 4, mode='replicate')
    mean = torch.zeros_like(flow)
    for share, (_, dy, dx) in zip(shares.split(1, dim=1), NEIGHBOURS, strict=True):
        y, x = factor * (_REACH + dy), factor * (_REACH + dx)
        part = padded[..., y : y + factor * height, x : x + factor * width]
        mean = mean + share * part
    return mean
