# SPDX-License-Identifier: Apache-2.0
"""A small U-Net (Ronneberger et al., MICCAI 2015) with leaky ReLUs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

#: Of leaky ReLUs (PWC-Net's): plain ones died within 2,000 steps of training.
SLOPE = 0.1


def act(x: Tensor) -> Tensor:
    """The activation."""
    return F.leaky_relu(x, SLOPE)


def double(x: Tensor) -> Tensor:
    """``(B, C, h, w)`` to twice the size, bilinearly."""
    return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, h, w)`` to the same."""
        y: Tensor = x + self.conv2(act(self.conv1(act(x))))
        return y


class UNet(nn.Module):
    """Three levels, shortcuts added: ``(B, inputs, h, w)`` to ``(B, dims[0], h, w)``."""

    def __init__(self, inputs: int, dims: tuple[int, int, int]) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inputs, dims[0] * 3 // 2, 1)
        self.enter = nn.Conv2d(dims[0] * 3 // 2, dims[0], 3, padding=1)
        self.down1 = nn.Conv2d(dims[0], dims[1], 3, stride=2, padding=1)
        self.middle1 = ResidualUnit(dims[1])
        self.down2 = nn.Conv2d(dims[1], dims[2], 3, stride=2, padding=1)
        self.middle2 = ResidualUnit(dims[2])
        self.up2 = nn.Conv2d(dims[2], dims[1], 1)
        self.merge2 = nn.Conv2d(dims[1], dims[1], 3, padding=1)
        self.up1 = nn.Conv2d(dims[1], dims[0], 1)
        self.merge1 = ResidualUnit(dims[0])

    def forward(self, x: Tensor) -> Tensor:
        """Run it; h and w must divide by 4."""
        x = act(self.enter(act(self.squeeze(x))))
        a = self.middle1(act(self.down1(x)))
        b = self.middle2(act(self.down2(act(a))))
        a = a + double(self.up2(act(b)))
        a = self.merge2(act(a))
        x = x + double(self.up1(act(a)))
        y: Tensor = self.merge1(x)
        return act(y)
