# SPDX-License-Identifier: Apache-2.0
"""Fusion of flow hypotheses at a quarter of the resolution, and upsampling to the full one.

After RAFT's iterations at 1/8 the flow is one hypothesis among several: others come from outside
(classical matching, `daflow_ros/flow/hypotheses.py`). Each is judged by how well the features of
the second frame, warped by it, agree with those of the first (FlowNet 2.0, section 5, with
PWC-Net's feature warping and local cost volume in place of brightness errors); a small U-Net
weighs them and adds a correction. Ours; nothing of it is in the DA-Flow paper.

Shapes: features ``(B, C, h, w)`` with h = H/4, w = W/4, divisible by 4; flow in 1/4-resolution px.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daflow_ros.models.cues import forward_backward_error, length, warp
from daflow_ros.models.unet import SLOPE, UNet, double


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
        weights: the last round's, of the hypotheses, ``(B, K, h, w)``.
        rest: what they leave over, the weighted own flow and the correction ``(B, 2, h, w)``.
        mask: logits of the upsampling ``(B, 144, h, w)``.
        laplace: ``(B, 4, h, w)`` parameters of the error's distribution.
        selections: of each round, log-weights ``(B, K + 1, h, w)`` of the candidates
            ``(B, K + 1, 2, h, w)``, the own flow first.
    """

    flows: list[Tensor]
    weights: Tensor
    rest: Tensor
    mask: Tensor
    laplace: Tensor
    selections: list[tuple[Tensor, Tensor]]


class FlowFusion(nn.Module):
    """Weighs hypotheses and corrects the result, a few times over with the same weights.

    Args:
        feature_dim: C of the features.
        context_dim: channels of the 1/8-resolution state that comes with the first hypothesis.
        num_hypotheses: how many.
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
        dims: tuple[int, int, int] = (48, 64, 96),
        match_dim: int = 24,
        groups: int = 6,
        radius: int = 3,
    ) -> None:
        super().__init__()
        self.num_hypotheses = num_hypotheses
        self.match_dim = match_dim
        self.groups = groups
        self.radius = radius
        self.project = nn.Conv2d(feature_dim, match_dim, 1)
        self.enter = nn.Conv2d(context_dim, dims[0], 1)
        inputs = feature_dim + dims[0] + 2 + (2 * radius + 1) ** 2
        inputs += (num_hypotheses + 1) * (groups + 2 + num_backward) + num_hypotheses * 2
        self.unet = UNet(inputs, dims)
        self.state = nn.Conv2d(dims[0], dims[0], 1)
        self.head = nn.Conv2d(dims[0], num_hypotheses + 1 + 2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)
        self.mask = nn.Conv2d(dims[0], 16 * 9, 1)
        # Two logits of the mixture and two log scales, from features that its loss leaves alone:
        # through them its steep gradients would drown those of the flow.
        self.laplace = nn.Sequential(
            nn.Conv2d(dims[0] + 1 + num_backward, 32, 3, padding=1),
            nn.LeakyReLU(SLOPE),
            nn.Conv2d(32, 4, 3, padding=1),
        )

    def agreement(self, first: Tensor, second: Tensor, flow: Tensor) -> Tensor:
        """How well each group of features agrees, ``(B, groups, h, w)``."""
        product = first * warp(second, flow)
        return product.unflatten(1, (self.groups, -1)).mean(dim=2)

    def forward(
        self,
        first: Tensor,
        second: Tensor,
        flow: Tensor,
        context: Tensor,
        hypotheses: Tensor,
        prior: Tensor,
        evidence: Tensor,
        backward: Tensor,
        steps: int = 2,
    ) -> Fused:
        """Fuse.

        Args:
            first, second: ``(B, C, h, w)`` features of the frames.
            flow: ``(B, 2, h, w)`` of the network's own iterations.
            context: ``(B, context_dim, h/2, w/2)``.
            hypotheses: ``(B, K, 2, h, w)``.
            prior: ``(B, K + 1, h, w)`` logits of ``flow`` and of each hypothesis to start from.
            evidence: ``(B, K + 1, h/2, w/2)`` log-probability of ``flow`` and of each hypothesis
                under the all-pairs correlation.
            backward: ``(B, M, 2, h, w)`` flows from the second frame to the first.
            steps: rounds, 1 or more.

        """
        state = double(self.enter(context))
        # Over a window: one cell's own best match is right too seldom.
        evidence = F.avg_pool2d(evidence.clamp(min=-16), 5, 1, 2, count_include_pad=False)
        evidence = double(evidence)
        others = list(hypotheses.unbind(dim=1))
        seen = first
        # Directions alone are compared: contrast is what bad weather takes away.
        first, second = (
            self.match_dim**0.5 * F.normalize(self.project(x), dim=1)
            for x in (first, second)
        )
        judged = [self.agreement(first, second, other) for other in others]
        checks = [forward_backward_error(other, backward) for other in others]
        flows, selections = [], []
        for _ in range(steps):
            flow = flow.detach()
            warped = warp(second, flow)
            own = (first * warped).unflatten(1, (self.groups, -1)).mean(dim=2)
            # The size of the difference matters over three orders of magnitude.
            away = [
                torch.sign(d) * torch.log1p(d.abs()) for d in (other - flow for other in others)
            ]
            check = torch.stack([forward_backward_error(flow, backward), *checks], dim=1)
            x = self.unet(
                torch.cat(
                    [
                        seen,
                        state,
                        flow / 16,
                        local_correlation(first, warped, self.radius),
                        own,
                        *judged,
                        *away,
                        prior.clamp(min=-8) / 4,
                        evidence / 4,
                        check.flatten(1, 2),
                    ],
                    dim=1,
                ).to(state.dtype)
            )
            logits, delta = self.head(x).float().split([self.num_hypotheses + 1, 2], dim=1)
            logits = logits + prior
            candidates = torch.cat([flow[:, None], hypotheses], dim=1)
            selections.append((logits.log_softmax(dim=1), candidates))
            own_weight, weights = logits.softmax(dim=1).split([1, self.num_hypotheses], dim=1)
            rest = own_weight * flow + delta
            flow = rest + (weights[:, :, None] * hypotheses).sum(dim=1)
            flows.append(flow)
            state = torch.tanh(self.state(x))
        apart = length(candidates - flow[:, None], 2)
        spread = 4 * (logits.softmax(dim=1) * apart).sum(dim=1, keepdim=True)
        doubt = torch.cat([forward_backward_error(flow, backward), spread.detach()], dim=1)
        laplace = self.laplace(torch.cat([x.detach(), (doubt + 0.2).log().to(x.dtype)], dim=1))
        return Fused(flows, weights, rest, 0.25 * self.mask(x), laplace, selections)
