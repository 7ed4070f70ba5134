# SPDX-License-Identifier: Apache-2.0
"""All-pairs correlation of two feature maps, and what is read off it (RAFT, section 3.2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def coords_grid(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """Pixel coordinates ``(B, 2, h, w)``, x first, float32."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing='ij'
    )
    return torch.stack([x, y]).float()[None].expand(batch, -1, -1, -1)


class CorrelationPyramid:
    """All-pairs correlation, average-pooled over the second image (RAFT section 3.2).

    Args:
        fmap1: ``(B, C, h, w)``.
        fmap2: ``(B, C, h, w)``.
        levels: pyramid levels; radius: lookup radius in px of each level.
        scale: factor of the inner product; 1/sqrt(C) in RAFT.
    """

    def __init__(
        self, fmap1: Tensor, fmap2: Tensor, levels: int, radius: int, scale: float
    ) -> None:
        b, _, h, w = fmap1.shape
        self.shape = (b, h, w)
        self.radius = radius
        # In full precision, as the official code: rounding would cost sub-pixel accuracy.
        fmap2 = fmap2.float()
        query = fmap1.float().flatten(2).transpose(1, 2) * scale
        # Costs are counted on the meta device, which knows no autocast.
        device = 'cpu' if query.is_meta else query.device.type
        self.pyramid: list[Tensor] = []
        for level in range(levels):
            # The mean of correlations is the correlation with the mean: pooling the features is
            # RAFT's pooled volume at a fraction of its memory traffic. Small images run out of
            # cells: repeat the last level rather than fail.
            if level and min(fmap2.shape[-2:]) >= 2:
                fmap2 = F.avg_pool2d(fmap2, 2, stride=2)
            with torch.autocast(device, enabled=False):
                volume = torch.matmul(query, fmap2.flatten(2))
            if level == 0:
                self.volume = volume  # (B, hw, hw)
            self.pyramid.append(volume.reshape(b * h * w, 1, *fmap2.shape[-2:]))
        r = torch.arange(-radius, radius + 1, device=fmap1.device, dtype=torch.float32)
        # The official code adds (dy, dx) to (x, y): the channel order is part of the weights.
        dy, dx = torch.meshgrid(r, r, indexing='ij')
        self.delta = torch.stack([dy, dx], dim=-1)

    def lookup(self, coords: Tensor, levels: int | None = None) -> Tensor:
        """Correlation ``(B, levels * (2r+1)^2, h, w)`` around ``coords`` (B, 2, h, w) px.

        Args:
            coords: where each cell of the first image looks in the second.
            levels: only so many of the finest levels.
        """
        b, h, w = self.shape
        centre = coords.permute(0, 2, 3, 1).reshape(b * h * w, 1, 1, 2)
        out = []
        for i, maps in enumerate(self.pyramid[:levels]):
            hh, ww = maps.shape[-2:]
            xy = centre / 2**i + self.delta
            # max() guards one-cell maps, where RAFT's normalisation divides by zero.
            # Filled on the device: a CUDA graph cannot capture a copy from the host.
            scale = torch.cat([xy.new_full((1,), 2.0 / max(n - 1, 1)) for n in (ww, hh)])
            grid = xy * scale - 1.0
            sampled = F.grid_sample(maps, grid, align_corners=True).reshape(b, h, w, -1)
            out.append(sampled)
        return torch.cat(out, dim=-1).permute(0, 3, 1, 2).contiguous()
