# SPDX-License-Identifier: Apache-2.0
"""Flow to a higher resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.models.cues import length

#: Power of the shares at full resolution, after which they add up to 1 again.
SHARPENING = 2.0


def upsample2(flow: Tensor) -> Tensor:
    """Flow at twice the resolution and in its px."""
    return 2 * F.interpolate(flow, scale_factor=2, mode='bilinear', align_corners=False)


def convex_upsample(
    field: Tensor,
    mask: Tensor,
    factor: int = 8,
    magnitude: float | None = None,
) -> Tensor:
    """Upsample ``(B, C, h, w)`` by learned convex weights (RAFT section 3.3).

    Args:
        field: values at 1/factor resolution.
        mask: ``(B, 9 factor^2, h, w)`` logits.
        factor: of the size.
        magnitude: what the values are multiplied by; None for ``factor``, as flow needs.
    """
    b, c, h, w = field.shape
    weights = mask.float().view(b, 1, 9, factor, factor, h, w).softmax(dim=2)
    scaled = (factor if magnitude is None else magnitude) * field.float()
    patches = F.unfold(scaled, 3, padding=1).view(b, c, 9, 1, 1, h, w)
    up = (weights * patches).sum(dim=2)
    return up.permute(0, 1, 4, 2, 5, 3).reshape(b, c, factor * h, factor * w)


def convex_upsample_start(
    flow: Tensor, mask: Tensor, first: Tensor, start: Tensor, factor: int = 8
) -> Tensor:
    """As :func:`convex_upsample`, but the start of the refinement is a tenth candidate.

    Args:
        flow: ``(B, 2, h, w)`` at 1/factor resolution; first: what it was refined from.
        mask: ``(B, 10 factor^2, h, w)`` logits.
        start: ``(B, 2, factor h, factor w)`` px, the start at full resolution; it is moved by
            ``flow - first``.
        factor: of the size.
    """
    b, _, h, w = flow.shape
    moved = F.interpolate(flow - first, scale_factor=factor, mode='bilinear', align_corners=False)
    moved = (start + factor * moved).view(b, 2, 1, h, factor, w, factor)
    patches = F.unfold(factor * flow.float(), 3, padding=1).view(b, 2, 9, 1, 1, h, w)
    weights = mask.float().view(b, 1, 10, factor, factor, h, w).softmax(dim=2)
    up = (weights[:, :, :9] * patches).sum(dim=2)
    up = up + (weights[:, :, 9:] * moved.permute(0, 1, 2, 4, 6, 3, 5)).sum(dim=2)
    return up.permute(0, 1, 4, 2, 5, 3).reshape(b, 2, factor * h, factor * w)


def guided_upsample(
    field: Tensor, image: Tensor, factor: int = 4, colour: float = 0.12, reach: float = 0.7
) -> Tensor:
    """Upsample along the edges of an image (joint bilateral, Kopf et al., SIGGRAPH 2007).

    A pixel takes from the 3x3 cells about its own, each by distance and by how much its mean
    colour is the pixel's.

    Args:
        field: ``(B, C, h, w)``; image: ``(B, 3, factor h, factor w)`` in [-1, 1].
        factor: of the size.
        colour: standard deviation of the colour's weight (0.12: 15 grey values).
        reach: the same of the distance's, cells.
    """
    h, w = field.shape[-2:]
    low = F.pad(F.avg_pool2d(image, factor), (1,) * 4, mode='replicate')
    field = F.pad(field.to(image.dtype), (1,) * 4, mode='replicate')
    # Where the pixels of a cell lie about its centre, in cells.
    inner = (torch.arange(factor, device=image.device) + 0.5) / factor - 0.5
    y, x = inner.repeat(h)[:, None], inner.repeat(w)[None]
    total, weights = torch.zeros_like(image[:, :1]), torch.zeros_like(image[:, :1])
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            at = (..., slice(1 + dy, 1 + dy + h), slice(1 + dx, 1 + dx + w))
            cells = F.interpolate(low[at], scale_factor=factor)
            unlike = (cells - image).square().sum(dim=1, keepdim=True) / (2 * colour**2)
            far = ((y - dy) ** 2 + (x - dx) ** 2) / (2 * reach**2)
            # A pixel like none of the cells still gets what lies near.
            weight = (-far).exp() * ((-unlike).exp() + 1e-6)
            total = total + weight * F.interpolate(field[at], scale_factor=factor)
            weights = weights + weight
    return total / weights


def blend_along_edges(
    shares: Tensor, others: Tensor, hypotheses: Tensor, image: Tensor
) -> tuple[Tensor, Tensor]:
    """Flow at full resolution, where the hypotheses have kept their detail.

    Along the edges of the image, by no learned weights: a convex upsampling needs more clips than
    the networks have seen. The shares are sharpened, for a mean of all the likely flows lies
    between them, where none is.

    Args:
        shares: ``(B, K + N, h, w)`` of the hypotheses and of ``others``.
        others: ``(B, N, 2, h, w)``, known at a quarter of the resolution only, in its px.
        hypotheses: ``(B, K, 2, 4h, 4w)`` px; image: ``(B, 3, 4h, 4w)`` in [-1, 1].

    Returns:
        Flow ``(B, 2, 4h, 4w)`` px and ``(B, 1, 4h, 4w)``, the mean distance of what it was
        blended from.
    """
    count, more = hypotheses.shape[1], others.shape[1]
    weighted = 4 * others * shares[:, -more:, None]
    parts = guided_upsample(torch.cat([shares, weighted.flatten(1, 2)], dim=1), image)
    shares, weighted = parts.split([count + more, 2 * more], dim=1)
    shares = shares.clamp(min=1e-6)
    found = weighted.unflatten(1, (more, 2)) / shares[:, -more:, None]
    shares = (SHARPENING * shares.log()).softmax(dim=1)
    candidates = torch.cat([hypotheses, found], dim=1)
    flow = (shares[:, :, None] * candidates).sum(dim=1)
    spread = (shares * length(candidates - flow[:, None], 2)).sum(dim=1, keepdim=True)
    return flow, spread
