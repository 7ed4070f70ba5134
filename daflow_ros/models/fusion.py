# SPDX-License-Identifier: Apache-2.0
"""Fusion of flow hypotheses at a quarter of the resolution.

After RAFT's iterations at 1/8 the flow is one candidate among several: the others are hypotheses
from outside (classical matching, `daflow_ros/flow/hypotheses.py`) with the shares that
`selector.py` gives them. How well the features of the second frame, warped by the flow and by the
selector's, agree with those of the first (FlowNet 2.0, section 5, with PWC-Net's feature warping
and local cost volume in place of brightness errors) is shown to a small U-Net; it weighs the
two and adds a correction. That it should shift the hypotheses' own shares as well was tried: with
the few clips it sees it makes them worse. Ours; nothing of it is in the DA-Flow paper.

Shapes: features ``(B, C, h, w)`` with h = H/4, w = W/4, divisible by 4; flow in 1/4-resolution px.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daflow_ros.models.agreement import agreement
from daflow_ros.models.cues import forward_backward_error, length, warp
from daflow_ros.models.unet import SLOPE, UNet, double

#: Weight of the own flow beside 1 of all that the selector chose, before training.
OWN_SHARE = 0.1


def local_correlation(first: Tensor, second: Tensor, radius: int) -> Tensor:
    """Mean product of ``first`` with ``second`` shifted by up to ``radius`` px each way.

    ``(B, C, h, w)`` twice to ``(B, (2 radius + 1)^2, h, w)`` (PWC-Net, section 3).
    """
    h, w = first.shape[-2:]
    side = 2 * radius + 1
    padded = F.pad(second, (radius,) * 4)
    shifted = (padded[..., i : i + h, j : j + w] for i in range(side) for j in range(side))
    return torch.stack([(first * other).mean(dim=1) for other in shifted], dim=1)


class Fused(NamedTuple):
    """What the fusion returns.

    Attributes:
        flows: after each round, ``(B, 2, h, w)``.
        shares: the last round's, of the hypotheses, own and propagated flow,
            ``(B, K + 2, h, w)``.
        others: own and propagated flow, ``(B, 2, 2, h, w)``.
        correction: of the sum of all, ``(B, 2, h, w)``.
        laplace: ``(B, 4, h, w)`` parameters of the error's distribution.
        selections: of each round, log-shares ``(B, K + 2, h, w)`` of the candidates
            ``(B, K + 2, 2, h, w)``, the own flow first.
    """

    flows: list[Tensor]
    shares: Tensor
    others: Tensor
    correction: Tensor
    laplace: Tensor
    selections: list[tuple[Tensor, Tensor]]


class FlowFusion(nn.Module):
    """Weighs own flow and hypotheses and corrects the result, in rounds of the same weights.

    Args:
        feature_dim: C of the features.
        context_dim: channels of the 1/8-resolution state that comes with the own flow.
        num_hypotheses: K.
        num_backward: flows back, for forward-backward checks.
        dims: channels of the U-Net's levels.
        match_dim: channels that are compared.
        groups: parts of the features that are compared apart.
        radius: of the local cost volume about the current flow, px.
    """

    def __init__(
        self,
        feature_dim: int,
        context_dim: int,
        num_hypotheses: int,
        num_backward: int = 1,
        dims: tuple[int, int, int] = (32, 48, 64),
        match_dim: int = 24,
        groups: int = 6,
        radius: int = 3,
    ) -> None:
        super().__init__()
        self.match_dim = match_dim
        self.groups = groups
        self.radius = radius
        self.project = nn.Conv2d(feature_dim, match_dim, 1)
        self.enter = nn.Conv2d(context_dim, dims[0], 1)
        inputs = feature_dim + dims[0] + 2 + (2 * radius + 1) ** 2
        inputs += 2 * (groups + num_backward) + 2 + num_hypotheses + 1
        self.unet = UNet(inputs, dims)
        self.state = nn.Conv2d(dims[0], dims[0], 1)
        # The share of the own flow against all else, and the correction.
        self.head = nn.Conv2d(dims[0], 1 + 2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        # Two logits of the mixture and two log scales, from features that its loss leaves alone:
        # through them its steep gradients would drown those of the flow.
        self.laplace = nn.Sequential(
            nn.Conv2d(dims[0] + 1 + num_backward, 32, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(32, 4, 3, padding=1),
        )

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        flow: Tensor,
        context: Tensor,
        log_shares: Tensor,
        candidates: Tensor,
        backward: Tensor,
        steps: int = 1,
    ) -> Fused:
        """Fuse.

        Args:
            first, second: ``(B, C, h, w)`` features of the frames.
            flow: ``(B, 2, h, w)`` of the network's own iterations.
            context: ``(B, context_dim, h/2, w/2)``.
            log_shares, candidates: of the selector, ``(B, K + 1, h, w)`` and
                ``(B, K + 1, 2, h, w)``, the hypotheses first.
            backward: ``(B, M, 2, h, w)`` flows from the second frame to the first.
            steps: rounds, 1 or more.

        """
        state = double(self.enter(context))
        chosen = (log_shares.exp()[:, :, None] * candidates).sum(dim=1)
        seen = first
        # Directions alone are compared: contrast is what bad weather takes away.
        first, second = (
            self.match_dim**0.5 * F.normalize(self.project(x), dim=1) for x in (first, second)
        )
        agreed = agreement(first, second, chosen[:, None], self.groups)[:, 0]
        check = forward_backward_error(chosen, backward)
        flows, selections = [], []
        for _ in range(steps):
            flow = flow.detach()
            warped = warp(second, flow)
            own_agreement = (first * warped).unflatten(1, (self.groups, -1)).mean(dim=2)
            away = chosen - flow
            # The size of the difference matters over three orders of magnitude.
            away = torch.sign(away) * torch.log1p(away.abs())
            x = self.unet(
                torch.cat(
                    [
                        seen,
                        state,
                        flow / 16,
                        local_correlation(first, warped, self.radius),
                        own_agreement,
                        agreed,
                        away,
                        log_shares.clamp(min=-8) / 4,
                        forward_backward_error(flow, backward),
                        check,
                    ],
                    dim=1,
                ).to(state.dtype)
            )
            logit, delta = self.head(x).float().split([1, 2], dim=1)
            own = math.log(OWN_SHARE) + logit
            log_p = torch.cat([own, log_shares], dim=1).log_softmax(dim=1)
            every = torch.cat([flow[:, None], candidates], dim=1)
            selections.append((log_p, every))
            parts = log_p.exp()[:, :, None] * every
            flow = parts.sum(dim=1) + delta
            flows.append(flow)
            state = torch.tanh(self.state(x))
        spread = (log_p.exp() * length(every - flow[:, None], 2)).sum(dim=1, keepdim=True)
        doubt = torch.cat([forward_backward_error(flow, backward), 4 * spread.detach()], dim=1)
        laplace = self.laplace(torch.cat([x.detach(), (doubt + 0.2).log().to(x.dtype)], dim=1))
        shares = log_p.exp()
        shares = torch.cat([shares[:, 1:-1], shares[:, :1], shares[:, -1:]], dim=1)
        others = every[:, [0, -1]]
        return Fused(flows, shares, others, delta, laplace, selections)
