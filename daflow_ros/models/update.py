# SPDX-License-Identifier: Apache-2.0
"""RAFT's refinement step (section 3.3): motion encoder, GRU, flow head; official names."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvGRU(nn.Module):
    """Convolutional GRU, one 3x3 update (RAFT small)."""

    def __init__(self, hidden_dim: int, input_dim: int) -> None:
        super().__init__()
        self.convz = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convr = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convq = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """New state from state ``(B, hidden_dim, h, w)`` and input ``(B, input_dim, h, w)``."""
        hx = torch.cat([h, x], dim=1)
        z = torch.sigmoid(self.convz(hx))
        r = torch.sigmoid(self.convr(hx))
        q = torch.tanh(self.convq(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * q


class SepConvGRU(nn.Module):
    """Convolutional GRU as a 1x5 and a 5x1 update (RAFT large)."""

    def __init__(self, hidden_dim: int, input_dim: int) -> None:
        super().__init__()
        for i, (kernel, padding) in enumerate((((1, 5), (0, 2)), ((5, 1), (2, 0))), start=1):
            for gate in 'zrq':
                conv = nn.Conv2d(hidden_dim + input_dim, hidden_dim, kernel, padding=padding)
                self.add_module(f'conv{gate}{i}', conv)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """New state from state ``(B, hidden_dim, h, w)`` and input ``(B, input_dim, h, w)``."""
        for i in (1, 2):
            convz, convr, convq = (getattr(self, f'conv{gate}{i}') for gate in 'zrq')
            hx = torch.cat([h, x], dim=1)
            z = torch.sigmoid(convz(hx))
            r = torch.sigmoid(convr(hx))
            q = torch.tanh(convq(torch.cat([r * h, x], dim=1)))
            h = (1 - z) * h + z * q
        return h


class MotionEncoder(nn.Module):
    """Looked-up correlation and current flow to motion features (RAFT section 3.3)."""

    def __init__(
        self,
        corr_channels: int,
        corr_dims: tuple[int, ...],
        flow_dims: tuple[int, ...],
        out: int,
        negative_slope: float = 0.0,
    ) -> None:
        super().__init__()
        self.activation = partial(F.leaky_relu, negative_slope=negative_slope)
        self.convc1 = nn.Conv2d(corr_channels, corr_dims[0], 1)
        self.convc2: nn.Module | None = None
        if len(corr_dims) > 1:
            self.convc2 = nn.Conv2d(corr_dims[0], corr_dims[1], 3, padding=1)
        self.convf1 = nn.Conv2d(2, flow_dims[0], 7, padding=3)
        self.convf2 = nn.Conv2d(flow_dims[0], flow_dims[1], 3, padding=1)
        self.conv = nn.Conv2d(corr_dims[-1] + flow_dims[1], out - 2, 3, padding=1)

    def forward(self, flow: Tensor, corr: Tensor) -> Tensor:
        """``(B, 2, h, w)`` and ``(B, corr_channels, h, w)`` to ``(B, out, h, w)``."""
        c = self.activation(self.convc1(corr))
        if self.convc2 is not None:
            c = self.activation(self.convc2(c))
        f = self.activation(self.convf2(self.activation(self.convf1(flow))))
        y = self.activation(self.conv(torch.cat([c, f], dim=1)))
        return torch.cat([y, flow.to(y.dtype)], dim=1)


class Head(nn.Module):
    """Two 3x3 convolutions from the hidden state to a flow update (or to confidence)."""

    def __init__(
        self, input_dim: int, hidden_dim: int, output_dim: int = 2, negative_slope: float = 0.0
    ) -> None:
        super().__init__()
        self.activation = partial(F.leaky_relu, negative_slope=negative_slope)
        self.conv1 = nn.Conv2d(input_dim, hidden_dim, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden_dim, output_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, input_dim, h, w)`` to ``(B, output_dim, h, w)``."""
        y: Tensor = self.conv2(self.activation(self.conv1(x)))
        return y


class UpdateBlock(nn.Module):
    """One refinement step: motion features, GRU, flow update, upsampling mask."""

    def __init__(
        self,
        motion: MotionEncoder,
        motion_dim: int,
        hidden_dim: int,
        context_dim: int,
        head_dim: int,
        gru: str,
        mask_dim: int,
        negative_slope: float = 0.0,
        candidates: int = 9,
    ) -> None:
        super().__init__()
        grus = {'conv': ConvGRU, 'sep': SepConvGRU}
        if gru not in grus:
            raise ValueError(f"gru must be 'conv' or 'sep', not {gru!r}")
        self.encoder = motion
        self.gru = grus[gru](hidden_dim, motion_dim + context_dim)
        self.flow_head = Head(hidden_dim, head_dim, negative_slope=negative_slope)
        self.mask: nn.Module | None = None
        if mask_dim:
            self.mask = nn.Sequential(
                nn.Conv2d(hidden_dim, mask_dim, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(mask_dim, 64 * candidates, 1),
            )

    def forward(
        self, net: Tensor, inp: Tensor, corr: Tensor, flow: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New hidden state and flow update, all ``(B, C, h, w)``."""
        motion = self.encoder(flow, corr)
        net = self.gru(net, torch.cat([inp, motion], dim=1))
        return net, self.flow_head(net)
