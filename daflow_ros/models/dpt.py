# SPDX-License-Identifier: Apache-2.0
"""DPT head: transformer tokens of several layers to one dense feature map (DA-Flow, section 3.2).

DA-Flow upsamples tapped queries and keys with three of these (queries of frame k, keys of frame
k + 1, context from the queries of frame k), with pyramid scales (1, 1, 2, 2) of the token grid,
so that tokens at H/16 become features at H/8. Structure after "Vision Transformers for Dense
Prediction" and VGGT's head: layer norm, 1x1 projection and resize per layer, then coarse-to-fine
fusion with residual units. The paper names no widths and no order of the scales; ours: one width
throughout, and the deepest layer coarsest, as in DPT.

Shapes: per tap (B, T, in_channels) with T = h * w; out (B, out_channels, s h, s w), s = max scale.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional


class ResidualUnit(nn.Module):
    """Two pre-activated 3x3 convolutions with a shortcut, (B, C, h, w) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the unit."""
        return x + self.conv2(functional.relu(self.conv1(functional.relu(x))))


class FusionBlock(nn.Module):
    """Add a finer level to the coarser path (where there is one) and refine the sum."""

    def __init__(self, channels: int, coarsest: bool) -> None:
        super().__init__()
        self.skip = None if coarsest else ResidualUnit(channels)
        self.refine = ResidualUnit(channels)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, level: torch.Tensor, path: torch.Tensor | None) -> torch.Tensor:
        """(B, C, h, w) of a level, and of the coarser path -> the path at the level's size."""
        if self.skip is not None and path is not None:
            path = functional.interpolate(
                path, size=level.shape[-2:], mode='bilinear', align_corners=True
            )
            level = path + self.skip(level)
        return self.out(self.refine(level))


class DPTHead(nn.Module):
    """Fuse the tokens of several layers into one map.

    Args:
        in_channels: width of the tokens.
        channels: width inside the head.
        out_channels: channels of the output.
        scales: resolution of each level in units of the token grid, coarsest first; level i is the
            (i + 1)-th deepest tap. Not decreasing.
        zero_output: start with an output of exactly zero.

    Raises:
        ValueError: `scales` empty, below 1 or decreasing.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        out_channels: int,
        scales: Sequence[int] = (1, 1, 2, 2),
        zero_output: bool = False,
    ) -> None:
        super().__init__()
        scales = tuple(scales)
        if not scales or min(scales) < 1 or list(scales) != sorted(scales):
            raise ValueError(f'scales {scales} must be at least 1 and not decrease')
        self.scales = scales
        self.norm = nn.LayerNorm(in_channels)
        self.project = nn.ModuleList(nn.Conv2d(in_channels, channels, 1) for _ in scales)
        self.resize = nn.ModuleList(
            nn.Identity() if s == 1 else nn.ConvTranspose2d(channels, channels, s, stride=s)
            for s in scales
        )
        self.level = nn.ModuleList(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in scales
        )
        self.fuse = nn.ModuleList(FusionBlock(channels, i == 0) for i in range(len(scales)))
        self.output = nn.Conv2d(channels, out_channels, 3, padding=1)
        if zero_output:
            self.zero_output()

    def zero_output(self) -> None:
        """Make the output exactly zero, as at the start of training."""
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def forward(self, taps: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
        """Run the head.

        Args:
            taps: one (B, T, in_channels) a level, shallowest layer first.
            grid: (h, w) with h * w = T.

        Returns:
            (B, out_channels, s h, s w), s the last of `scales`.
        """
        if len(taps) != len(self.scales):
            raise ValueError(f'{len(taps)} taps for a head of {len(self.scales)} levels')
        path: torch.Tensor | None = None
        for i, tokens in enumerate(reversed(taps)):
            image = self.norm(tokens).transpose(1, 2).unflatten(2, grid)
            level = self.level[i](self.resize[i](self.project[i](image)))
            path = self.fuse[i](level, path)
        out: torch.Tensor = self.output(path)
        return out
