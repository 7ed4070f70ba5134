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

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


def local_correlation(first: Tensor, second: Tensor, radius: int) -> Tensor:
    """Mean product of ``first`` with ``second`` shifted by up to ``radius`` px each way.

    ``(B, C, h, w)`` twice to ``(B, (2 radius + 1)^2, h, w)`` (PWC-Net, section 3).
    """
    h, w = first.shape[-2:]
    side = 2 * radius + 1
    padded = F.pad(second, (radius,) * 4)
    shifted = (padded[..., i : i + h, j : j + w] for i in range(side) for j in range(side))
    return torch.stack([(first * other).mean(dim=1) for other in shifted], dim=1)


#: Of leaky ReLUs (PWC-Net's): plain ones died within 2,000 steps of training.
SLOPE = 0.1


def _act(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE)


def _double(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)


def forward_backward_error(flow: Tensor, backward: Tensor) -> Tensor:
    """Distance, at most 10 px of full resolution, from where a pixel goes there and back.

    ``flow`` and ``backward`` (B, 2, h, w) in 1/4-resolution px; ``(B, 1, h, w)`` in px.
    """
    error = 4 * (flow + warp(backward, flow)).norm(dim=1, keepdim=True)
    return error.detach().clamp(max=10)


class ResidualUnit(nn.Module):
    """Two 3x3 convolutions added to their input."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, channels, h, w)`` to the same."""
        y: Tensor = x + self.conv2(_act(self.conv1(_act(x))))
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
        x = _act(self.enter(_act(self.squeeze(x))))
        a = self.middle1(_act(self.down1(x)))
        b = self.middle2(_act(self.down2(_act(a))))
        a = a + _double(self.up2(_act(b)))
        a = self.merge2(_act(a))
        x = x + _double(self.up1(_act(a)))
        y: Tensor = self.merge1(x)
        return _act(y)


class FlowFusion(nn.Module):
    """Weighs hypotheses and corrects the result, a few times over with the same weights.

    Args:
        feature_dim: C of the features.
        context_dim: channels of the 1/8-resolution state that comes with the first hypothesis.
        num_hypotheses: how many.
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
        inputs += (num_hypotheses + 1) * (groups + 2) + num_hypotheses * 2
        self.unet = UNet(inputs, dims)
        self.state = nn.Conv2d(dims[0], dims[0], 1)
        self.head = nn.Conv2d(dims[0], num_hypotheses + 1 + 2, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        # Training starts from a rule: the first hypothesis, but where the features' own matching
        # or the forward-backward check speak against it. The best match comes last.
        bias = self.head.bias
        assert bias is not None
        with torch.no_grad():
            start = torch.linspace(3.0, 0.0, num_hypotheses)
            bias.zero_()
            bias[: num_hypotheses + 1] = torch.cat([start[1:2], start])
        self.gain = nn.Parameter(torch.tensor([0.5, 1.0]))
        self.mask = nn.Conv2d(dims[0], 16 * 9, 1)
        self.laplace = nn.Conv2d(dims[0], 3, 3, padding=1)

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
        evidence: Tensor,
        backward: Tensor,
        steps: int = 2,
    ) -> tuple[list[Tensor], Tensor, Tensor, Tensor, Tensor]:
        """Fuse.

        Args:
            first, second: ``(B, C, h, w)`` features of the frames.
            flow: ``(B, 2, h, w)`` of the network's own iterations.
            context: ``(B, context_dim, h/2, w/2)``.
            hypotheses: ``(B, K, 2, h, w)``.
            evidence: ``(B, K + 1, h/2, w/2)`` log-probability of ``flow`` and of each hypothesis
                under the all-pairs correlation.
            backward: ``(B, 2, h, w)`` flow from the second frame to the first.
            steps: rounds, 1 or more.

        Returns:
            The flow after each round, ``(B, 2, h, w)``; the last round's weights of the
            hypotheses ``(B, K, h, w)`` and what they leave over: the weighted own flow and the
            correction ``(B, 2, h, w)``; logits of the upsampling mask ``(B, 144, h, w)``;
            ``(B, 3, h, w)`` parameters of the error's distribution.
        """
        state = _double(self.enter(context))
        # Over a window: one cell's own best match is right too seldom.
        evidence = F.avg_pool2d(evidence.clamp(min=-16), 5, 1, 2, count_include_pad=False)
        evidence = _double(evidence)
        others = list(hypotheses.unbind(dim=1))
        seen = first
        # Directions alone are compared: contrast is what bad weather takes away.
        first, second = (
            self.match_dim**0.5 * F.normalize(self.project(x), dim=1)
            for x in (first, second)
        )
        judged = [self.agreement(first, second, other) for other in others]
        checks = [forward_backward_error(other, backward) for other in others]
        flows = []
        for _ in range(steps):
            flow = flow.detach()
            warped = warp(second, flow)
            own = (first * warped).unflatten(1, (self.groups, -1)).mean(dim=2)
            # The size of the difference matters over three orders of magnitude.
            away = [
                torch.sign(d) * torch.log1p(d.abs()) for d in (other - flow for other in others)
            ]
            check = torch.cat([forward_backward_error(flow, backward), *checks], dim=1)
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
                        evidence / 4,
                        check,
                    ],
                    dim=1,
                ).to(state.dtype)
            )
            logits, delta = self.head(x).float().split([self.num_hypotheses + 1, 2], dim=1)
            against = F.avg_pool2d(check, 5, 1, 2, count_include_pad=False)
            logits = logits + self.gain[0] * evidence - self.gain[1] * against
            own_weight, weights = logits.softmax(dim=1).split([1, self.num_hypotheses], dim=1)
            rest = own_weight * flow + delta
            flow = rest + (weights[:, :, None] * hypotheses).sum(dim=1)
            flows.append(flow)
            state = torch.tanh(self.state(x))
        return flows, weights, rest, 0.25 * self.mask(x), self.laplace(x)
