# SPDX-License-Identifier: Apache-2.0
"""RAFT's convolutional encoders (section 3.1); parameter names of the official checkpoints."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _norm(kind: str, channels: int, groups: int) -> nn.Module:
    if kind == 'batch':
        return nn.BatchNorm2d(channels)
    if kind == 'instance':
        return nn.InstanceNorm2d(channels)
    if kind == 'group':
        return nn.GroupNorm(groups, channels)
    if kind == 'none':
        return nn.Identity()
    raise ValueError(f"norm must be 'batch', 'instance', 'group' or 'none', not {kind!r}")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (RAFT, encoder of the large model)."""

    def __init__(self, in_planes: int, planes: int, norm: str, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1)
        self.norm1 = _norm(norm, planes, planes // 8)
        self.norm2 = _norm(norm, planes, planes // 8)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride), _norm(norm, planes, planes // 8)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_planes, h, w)`` to ``(B, planes, h/stride, w/stride)``."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 with a quarter of the channels (RAFT, encoder of the small model)."""

    def __init__(self, in_planes: int, planes: int, norm: str, stride: int) -> None:
        super().__init__()
        inner = planes // 4
        self.conv1 = nn.Conv2d(in_planes, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1)
        self.conv3 = nn.Conv2d(inner, planes, 1)
        self.norm1 = _norm(norm, inner, max(inner // 8, 1))
        self.norm2 = _norm(norm, inner, max(inner // 8, 1))
        self.norm3 = _norm(norm, planes, planes // 8)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride), _norm(norm, planes, planes // 8)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_planes, h, w)`` to ``(B, planes, h/stride, w/stride)``."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = F.relu(self.norm3(self.conv3(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class Encoder(nn.Module):
    """Image ``(B, channels, H, W)`` to ``(B, output_dim, H/8, W/8)`` (RAFT section 3.1)."""

    def __init__(
        self,
        block: str,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        output_dim: int,
        norm: str,
        channels: int = 3,
    ) -> None:
        super().__init__()
        blocks = {'residual': ResidualBlock, 'bottleneck': BottleneckBlock}
        if block not in blocks:
            raise ValueError(f"block must be 'residual' or 'bottleneck', not {block!r}")
        kind = blocks[block]

        def stage(in_planes: int, planes: int, stride: int, depth: int) -> nn.Sequential:
            rest = [kind(planes, planes, norm, 1) for _ in range(depth - 1)]
            return nn.Sequential(kind(in_planes, planes, norm, stride), *rest)

        self.conv1 = nn.Conv2d(channels, dims[0], 7, stride=2, padding=3)
        self.norm1 = _norm(norm, dims[0], 8)
        self.layer1 = stage(dims[0], dims[0], 1, depths[0])
        self.layer2 = stage(dims[0], dims[1], 2, depths[1])
        self.layer3 = stage(dims[1], dims[2], 2, depths[2])
        self.conv2 = nn.Conv2d(dims[2], output_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the encoder."""
        return self.stages(x)[0]

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The output, and the last stages' own features at H/4 and H/8."""
        x = F.relu(self.norm1(self.conv1(x)))
        quarter = self.layer2(self.layer1(x))
        eighth = self.layer3(quarter)
        return self.conv2(eighth), quarter, eighth
