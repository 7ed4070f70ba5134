# SPDX-License-Identifier: Apache-2.0
"""How well flow hypotheses fit a pair of images, by measures that need no training.

For every hypothesis: forward-backward errors, normalised cross-correlation of the images along
it (as they are, and after a morphological opening, which takes rain and flakes away), brightness
difference, distance from the median of all, roughness. Of the first image: what an opening takes
away, detail, brightness and colour. What they are worth in which weather is for a network to
learn (`selector.py`). Ours; nothing of it is in the DA-Flow paper.

Shapes: images ``(B, 3, H, W)`` in [-1, 1]; flow ``(B, K, 2, H/4, W/4)`` in 1/4-resolution px.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

#: Cues of a hypothesis, and of the images.
PER_HYPOTHESIS, PER_IMAGE = 13, 7
#: Of `appearance`: px, windows in which contrast is evened; grey values that are plain.
WINDOW, PLAIN = 13, 4.0


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
    """Mean of a window of an odd side, smaller at the border, over the last two dimensions."""
    # Shifted sums along one direction, then the other: a fraction of the time of torch's
    # pooling on a CPU.
    for dim in (-2, -1):
        size = x.shape[dim]
        total = x.clone()
        count = x.new_ones(size)
        for shift in range(1, min(side // 2 + 1, size)):
            rest = size - shift
            total.narrow(dim, shift, rest).add_(x.narrow(dim, 0, rest))
            total.narrow(dim, 0, rest).add_(x.narrow(dim, shift, rest))
            count[shift:] += 1
            count[:rest] += 1
        x = total.mul_((1 / count) if dim == -1 else (1 / count)[:, None])
    return x


def evened(grey: Tensor, side: int, floor: float) -> Tensor:
    """Distance from the local mean in local standard deviations, ``(B, 1, h, w)``.

    Args:
        grey: ``(B, 1, h, w)``.
        side: of the windows, odd.
        floor: added to the deviation, in the units of ``grey``, so that plain areas stay plain.
    """
    away = grey - box(grey, side)
    return away / (box(away.square(), side).sqrt() + floor)


def appearance(image: Tensor) -> Tensor:
    """Colour, 1 to 256, and evened grey value, ``(B, 4, h, w)``, of an image in [-1, 1].

    No colour is 0, which is what a flow that leads out finds.
    """
    colour = 127.5 * (image + 1)
    return torch.cat([colour + 1, evened(colour.mean(dim=1, keepdim=True), WINDOW, PLAIN)], dim=1)


def mismatch(first: Tensor, second: Tensor, side: int = 7) -> Tensor:
    """1 - normalised cross-correlation in windows; 1 where all is plain.

    The shapes of ``first`` and ``second`` broadcast but for h and w.
    """
    mean1, mean2 = box(first, side), box(second, side)
    # A floor of 3.6 grey values keeps noise in plain areas from counting.
    variance1 = (box(first * first, side) - mean1 * mean1).clamp(min=0) + 2e-4
    variance2 = (box(second * second, side) - mean2 * mean2).clamp(min=0) + 2e-4
    return 1 - (box(first * second, side) - mean1 * mean2) * (variance1 * variance2).rsqrt()


@torch.no_grad()
def hypothesis_cues(
    image1: Tensor, image2: Tensor, hypotheses: Tensor, backward: Tensor
) -> tuple[Tensor, Tensor]:
    """Cues of hypotheses ``(B, K, 2, h, w)``, given flows back ``(B, M, 2, h, w)``, M = 2.

    Returns:
        ``(B, K, PER_HYPOTHESIS, h, w)`` and ``(B, PER_IMAGE, h, w)``.
    """
    b, count, _, h, w = hypotheses.shape
    grey1, grey2 = ((x.mean(dim=1, keepdim=True) + 1) / 2 for x in (image1, image2))
    opened = [opening(x, 9) for x in (grey1, grey2)]
    small1, small2 = (
        torch.cat([F.avg_pool2d(x, 4), F.avg_pool2d(opening(grey, 15), 4)], dim=1)
        for x, grey in zip(opened, (grey1, grey2), strict=True)
    )
    # All that is looked up at a quarter of the size comes in one go.
    each = hypotheses.flatten(0, 1)
    found = torch.cat([backward.flatten(1, 2), small2], dim=1)
    found = warp(found.repeat_interleave(count, dim=0), each)
    back, warped = found.split([found.shape[1] - 2, 2], dim=1)
    back = (4 * length(each[:, None] + back.unflatten(1, (-1, 2)), 2)).clamp(max=10)
    cost = mismatch(small1[:, None], warped.unflatten(0, (b, count))).flatten(0, 1)
    fine1, fine2 = F.avg_pool2d(grey1, 2), F.avg_pool2d(grey2, 2)
    double = 2 * F.interpolate(each, scale_factor=2, mode='bilinear')
    fine = warp(fine2.repeat_interleave(count, dim=0), double).unflatten(0, (b, count))[:, :, 0]
    fine_cost = F.avg_pool2d(mismatch(fine1, fine), 2).view(-1, 1, h, w)

    def brightness(first: Tensor, warped: Tensor) -> Tensor:
        contrast = first.std(dim=(1, 2, 3), keepdim=True) + 0.02
        return box((first - warped).abs(), 3) / contrast

    shades = F.avg_pool2d(brightness(fine1, fine), 2)
    opened_shades = brightness(small1[:, :1], warped[:, 0].unflatten(0, (b, count)))
    median = hypotheses.median(dim=1, keepdim=True).values
    apart = length(hypotheses - median, 2)
    smooth = box(each, 5)
    rough = box(length(each - smooth, 1)[:, None], 3)
    cues = [
        (back + 0.3).log(),
        box(back, 5),
        fine_cost,
        box(fine_cost, 5),
        box(shades, 3).view(-1, 1, h, w),
        cost,
        box(cost[:, :1], 5),
        box(opened_shades, 3).view(-1, 1, h, w),
        (4 * apart + 0.3).log().view(-1, 1, h, w),
        (4 * rough + 0.1).log(),
    ]
    detail = (grey1 - box(grey1, 3)).abs()
    about = F.avg_pool2d(torch.cat([grey1 - opened[0], detail, opened[0]], dim=1), 4)
    about = (box(about, 5) + 0.01).log()
    colour = F.avg_pool2d(image1, 4)
    about = torch.cat([about, colour, small1[:, :1]], dim=1)
    return torch.cat(cues, dim=1).unflatten(0, (b, count)), about
