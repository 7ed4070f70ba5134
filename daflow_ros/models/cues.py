# SPDX-License-Identifier: Apache-2.0
"""How well flow hypotheses fit a pair of images, by measures that need no training.

For every hypothesis: forward-backward errors, normalised cross-correlation of the images along
it (as they are, and after a morphological opening, which takes rain and flakes away), brightness
difference, distance from the median of all, roughness. What they are worth in which weather is
for a network to learn (`selector.py`). Ours; nothing of it is in the DA-Flow paper.

Shapes: images ``(B, 3, H, W)`` in [-1, 1]; flow ``(B, K, 2, H/4, W/4)`` in 1/4-resolution px.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Cues of a hypothesis, and of the images.
PER_HYPOTHESIS, PER_IMAGE = 13, 3


def warp(features: Tensor, flow: Tensor) -> Tensor:
    """``features`` (B, C, h, w) found bilinearly at x + ``flow`` (B, 2, h, w) px, 0 outside."""
    h, w = features.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(h, device=flow.device), torch.arange(w, device=flow.device), indexing='ij'
    )
    scale = flow.new_tensor([2.0 / max(w - 1, 1), 2.0 / max(h - 1, 1)])
    grid = (torch.stack([x, y], dim=-1) + flow.permute(0, 2, 3, 1)) * scale - 1
    # Half precision could not tell one pixel of the grid from the next.
    found = F.grid_sample(features.float(), grid.float(), align_corners=True)
    return found.to(features.dtype)


def opening(x: Tensor, side: int) -> Tensor:
    """Morphological opening of ``(B, 1, H, W)`` by a square: the largest of the least about."""

    def largest(x: Tensor) -> Tensor:
        x = F.pad(x, (side // 2,) * 4, value=-torch.inf)
        for dim in (-1, -2):
            # Windows double and overlap: a tenth of the time of a maximum pooling on a CPU.
            width = 1
            while width < side:
                step = min(width, side - width)
                rest = x.shape[dim] - step
                x = torch.maximum(x.narrow(dim, 0, rest), x.narrow(dim, step, rest))
                width += step
        return x

    return largest(-largest(-x))


def length(vectors: Tensor, dim: int) -> Tensor:
    """Euclidean norm over a short dimension; several times as fast as torch's, no gradient."""
    return vectors.detach().square().sum(dim=dim).sqrt()


def forward_backward_error(flow: Tensor, backward: Tensor) -> Tensor:
    """Distance, at most 10 px of full resolution, from where a pixel goes there and back.

    ``flow`` (B, 2, h, w) and ``backward`` (B, M, 2, h, w) in 1/4-resolution px; ``(B, M, h, w)``
    in px.
    """
    back = warp(backward.flatten(1, 2), flow).unflatten(1, (-1, 2))
    return (4 * length(flow[:, None] + back, 2)).clamp(max=10)


def box(x: Tensor, side: int) -> Tensor:
    """Mean of a window, smaller at the border."""
    return F.avg_pool2d(x, side, 1, side // 2, count_include_pad=False)


def mismatch(first: Tensor, second: Tensor, side: int = 7) -> Tensor:
    """1 - normalised cross-correlation in windows, ``(B, C, h, w)``; 1 where all is plain."""
    mean1, mean2 = box(first, side), box(second, side)
    # A floor of 3.6 grey values keeps noise in plain areas from counting.
    variance1 = (box(first * first, side) - mean1 * mean1).clamp(min=0) + 2e-4
    variance2 = (box(second * second, side) - mean2 * mean2).clamp(min=0) + 2e-4
    return 1 - (box(first * second, side) - mean1 * mean2) * (variance1 * variance2).rsqrt()


@torch.no_grad()
def hypothesis_cues(
    image1: Tensor, image2: Tensor, hypotheses: Tensor, backward: Tensor
) -> tuple[Tensor, Tensor]:
    """Cues of hypotheses ``(B, K, 2, h, w)``, given flows back ``(B, 2, 2, h, w)``.

    Returns:
        ``(B, K, PER_HYPOTHESIS, h, w)`` and ``(B, PER_IMAGE, h, w)``.
    """
    count = hypotheses.shape[1]
    grey1, grey2 = ((x.mean(dim=1, keepdim=True) + 1) / 2 for x in (image1, image2))
    each = hypotheses.unbind(dim=1)
    back = torch.stack([forward_backward_error(flow, backward) for flow in each], dim=1)
    wide = box(back.flatten(1, 2), 5).unflatten(1, (count, 2))
    cues = [*(back + 0.3).log().unbind(dim=2), *wide.unbind(dim=2)]
    half = [2 * F.interpolate(f, scale_factor=2, mode='bilinear') for f in each]
    opened1, opened2 = (opening(x, 9) for x in (grey1, grey2))
    for first, second in ((grey1, grey2), (opened1, opened2)):
        small1, small2 = F.avg_pool2d(first, 2), F.avg_pool2d(second, 2)
        warped = torch.cat([warp(small2, flow) for flow in half], dim=1)
        cost = F.avg_pool2d(mismatch(small1.expand_as(warped), warped), 2)
        contrast = small1.std(dim=(1, 2, 3), keepdim=True) + 0.02
        brightness = box(F.avg_pool2d(box((small1 - warped).abs(), 3), 2) / contrast, 3)
        cues += [cost, box(cost, 5), brightness]
    coarse1, coarse2 = (F.avg_pool2d(opening(x, 15), 4) for x in (grey1, grey2))
    warped = torch.cat([warp(coarse2, flow) for flow in each], dim=1)
    cues.append(mismatch(coarse1.expand_as(warped), warped))
    median = hypotheses.median(dim=1, keepdim=True).values
    cues.append((4 * length(hypotheses - median, 2) + 0.3).log())
    smooth = box(hypotheses.flatten(1, 2), 5).unflatten(1, (count, 2))
    cues.append((4 * box(length(hypotheses - smooth, 2), 3) + 0.1).log())
    detail = (grey1 - box(grey1, 3)).abs()
    about = F.avg_pool2d(torch.cat([grey1 - opened1, detail, opened1], dim=1), 4)
    return torch.stack(cues, dim=2), (box(about, 5) + 0.01).log()
