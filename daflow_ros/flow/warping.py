# SPDX-License-Identifier: Apache-2.0
"""Warping of images and flow on the device, in torch.

Flow is (B, 2, H, W) in pixels, u (right) first, v (down) second; pixel centres are at integers
(`align_corners=True`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def pixel_grid(
    height: int, width: int, *, device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Coordinates of the pixel centres, (1, 2, H, W), x first."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device, dtype=dtype),
        torch.arange(width, device=device, dtype=dtype),
        indexing='ij',
    )
    return torch.stack((x, y))[None]


def warp_backward(image: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sample `image` at p + flow(p), bilinearly.

    Args:
        image: (B, C, H, W), float; the second image when `flow` goes from first to second.
        flow: (B, 2, H, W) px.

    Returns:
        The warped image (B, C, H, W) and `inside` (B, 1, H, W) bool: False where the sample
        lies outside the image (the border is repeated there) or the flow is not finite.

    """
    height, width = image.shape[-2:]
    if flow.shape[-2:] != (height, width) or flow.shape[1] != 2:
        raise ValueError(f'flow {tuple(flow.shape)} does not fit image {tuple(image.shape)}')
    finite = torch.isfinite(flow).all(dim=1, keepdim=True)
    # float32 even under autocast: bf16 has no sub-pixel digits left at x = 500.
    target = torch.where(finite, flow, 0.0).float()
    target = target + pixel_grid(height, width, device=flow.device)
    x, y = target[:, 0], target[:, 1]
    inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
    grid = torch.stack(
        (2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1
    )
    warped = F.grid_sample(
        image, grid.to(image.dtype), mode='bilinear', padding_mode='border', align_corners=True
    )
    return warped, inside[:, None] & finite


def _splat(values: torch.Tensor, flow: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sum `values` (B, C, H, W) at p + flow(p) with bilinear weights; also the weights' sum."""
    batch, channels, height, width = values.shape
    target = flow + pixel_grid(height, width, device=flow.device, dtype=flow.dtype)
    corner = target.floor()
    fraction = target - corner
    sums = values.new_zeros(batch, channels + 1, height * width)
    stacked = torch.cat((values, torch.ones_like(values[:, :1])), dim=1)
    for dx in (0, 1):
        for dy in (0, 1):
            x, y = corner[:, 0] + dx, corner[:, 1] + dy
            weight = (fraction[:, 0] if dx else 1 - fraction[:, 0]) * (
                fraction[:, 1] if dy else 1 - fraction[:, 1]
            )
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            index = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).long()
            weighted = stacked * (weight * inside)[:, None]
            sums.scatter_add_(
                2, index.view(batch, 1, -1).expand(-1, channels + 1, -1), weighted.flatten(2)
            )
    sums = sums.view(batch, channels + 1, height, width)
    return sums[:, :-1], sums[:, -1:]


def forward_splat(flow: torch.Tensor) -> torch.Tensor:
    """Carry a flow field along itself: the warm start of the next pair.

    RAFT does this with nearest-neighbour interpolation on the CPU; here the vectors are splat
    bilinearly on the device and the holes are filled from coarser levels of a pyramid
    (push-pull). Vectors that are not finite or leave the image contribute nothing.

    Args:
        flow: (B, 2, H, W) px from frame t to t + 1.

    Returns:
        (B, 2, H, W) float32, a guess of the flow from t + 1 to t + 2 (constant velocity);
        0 where nothing at all is known.

    """
    flow = flow.float()
    finite = torch.isfinite(flow).all(dim=1, keepdim=True)
    # A vector that is not finite is sent far outside, where it counts for nothing.
    path = torch.where(finite, flow, float(2 * (flow.shape[-1] + flow.shape[-2])))
    sums, weight = _splat(torch.where(finite, flow, 0.0), path)
    return _fill(sums, weight)


def _fill(sums: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean where there is weight, a coarser level's where there is not.

    Always goes down to one pixel: to stop early would wait for the device.
    """
    mean = torch.where(weight > 1e-6, sums / weight.clamp(min=1e-6), 0.0)
    height, width = weight.shape[-2:]
    if height == 1 and width == 1:
        return mean
    # The area's weight is its best pixels', not their mean: one vector fills a large hole.
    weight = weight.clamp(max=1.0)
    coarse = _fill(
        4 * F.avg_pool2d(mean * weight, 2, ceil_mode=True),
        4 * F.avg_pool2d(weight, 2, ceil_mode=True),
    )
    coarse = F.interpolate(coarse, size=(height, width), mode='nearest')
    # Below this a pixel has only been brushed by a neighbour's vector.
    return torch.where(weight > 0.1, mean, coarse)


def upsample_flow(flow: torch.Tensor, factor: int) -> torch.Tensor:
    """Enlarge a (B, 2, H, W) flow `factor` times, bilinearly, and its vectors with it."""
    return factor * F.interpolate(
        flow, scale_factor=float(factor), mode='bilinear', align_corners=True
    )
