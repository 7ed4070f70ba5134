# SPDX-License-Identifier: Apache-2.0
"""Which of several flow hypotheses to trust where, from the cues of `cues.py`.

A small U-Net over all cues of all hypotheses. It needs no features of the images and so trains
by itself, far faster than a flow network. What it chooses is propagated from where it is sure of
it to where it is not, over what looks alike (GMFlow, CVPR 2022, section 3.3, in a window): this
is what mends the edges of objects and what they hide. Ours; nothing of it is in the DA-Flow paper.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daflow_ros.models.agreement import GROUPS, MATCH_DIM, agreement
from daflow_ros.models.cues import PER_HYPOTHESIS, PER_IMAGE
from daflow_ros.models.share_refiner import ShareRefiner
from daflow_ros.models.unet import UNet

#: Of the windows of propagation, in steps of each of `DILATIONS` cells in turn: plain areas are
#: wide.
RADIUS = 2
DILATIONS = (8, 4, 2)


def propagate(flow: Tensor, keys: Tensor, trust: Tensor) -> Tensor:
    """Flow drawn from the neighbours whose keys are alike, those most that are trusted.

    Args:
        flow: ``(B, 2, h, w)``; keys: ``(B, C, h, w)``; trust: ``(B, 1, h, w)`` logits.
    """
    h, w = flow.shape[-2:]
    # Squared distance of keys, without the part that all neighbours share; nothing beyond the
    # border is trusted.
    bias = trust - keys.square().sum(dim=1, keepdim=True)
    for dilation in DILATIONS:
        reach = RADIUS * dilation
        border = (reach,) * 4
        shifts = [
            (..., slice(i, i + h), slice(j, j + w))
            for i in range(0, 2 * reach + 1, dilation)
            for j in range(0, 2 * reach + 1, dilation)
        ]
        near, weight = F.pad(keys, border), F.pad(bias, border, value=-1e4)
        alike = [2 * (keys * near[at]).sum(dim=1, keepdim=True) + weight[at] for at in shifts]
        shares = torch.cat(alike, dim=1).softmax(dim=1)
        wide = F.pad(flow, border)
        values = torch.stack([wide[at] for at in shifts], dim=1)
        flow = (shares[:, :, None] * values).sum(dim=1)
    return flow


class Choice(NamedTuple):
    """Of K hypotheses and the flow propagated from them, which comes last.

    Attributes:
        log_shares: ``(B, K + 1, h, w)``.
        candidates: ``(B, K + 1, 2, h, w)`` px.
        coarse: ``(B, K + 1, h, w)``, log-shares before they were sharpened.
    """

    log_shares: Tensor
    candidates: Tensor
    coarse: Tensor


class HypothesisSelector(nn.Module):
    """Shares of ``num_hypotheses`` hypotheses, and of one propagated from them, at 1/4.

    The U-Net sees the cues at half of that: further about, in a quarter of the time.

    Args:
        num_hypotheses: K.
        dims: channels of the U-Net's levels.
        key_dim: channels that propagation compares.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        num_hypotheses: int,
        dims: tuple[int, int, int] = (32, 48, 64),
        key_dim: int = 8,
    ) -> None:
        super().__init__()
        cues = num_hypotheses * PER_HYPOTHESIS + PER_IMAGE
        # Of the cues over the training clips.
        self.register_buffer('mean', torch.zeros(cues))
        self.register_buffer('deviation', torch.ones(cues))
        self.unet = UNet(cues + num_hypotheses * GROUPS + MATCH_DIM, dims)
        # One logit more: of the propagated flow.
        self.head = nn.Conv2d(dims[0], num_hypotheses + 1, 3, padding=1)
        # A share of the logits is linear in each hypothesis's own cues.
        self.linear = nn.Parameter(torch.zeros(num_hypotheses, PER_HYPOTHESIS))
        self.keys = nn.Conv2d(dims[0] + PER_IMAGE + MATCH_DIM, key_dim, 1)
        self.trust = nn.Conv2d(dims[0], 1, 1)
        self.refiner = ShareRefiner()
        for layer in (self.head, self.trust):
            nn.init.zeros_(layer.weight)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)

    def forward(
        self, cues: Tensor, about: Tensor, hypotheses: Tensor, first: Tensor, second: Tensor
    ) -> Choice:
        """Choose.

        Args:
            cues: ``(B, K, PER_HYPOTHESIS, h, w)``; about: ``(B, PER_IMAGE, h, w)``.
            hypotheses: ``(B, K, 2, h, w)``.
            first, second: ``(B, MATCH_DIM, h, w)`` of `MatchingFeatures`.
        """
        count, full = hypotheses.shape[1], hypotheses.shape[-2:]
        cells = self._normalised(torch.cat([cues.flatten(1, 2), about], dim=1).float())
        cells = cells.clamp(-5, 5)
        agreed = agreement(first, second, hypotheses)
        # The U-Net's levels divide by 4.
        size = [-(-side // 8) * 4 for side in full]

        def reduced(x: Tensor) -> Tensor:
            return F.interpolate(x, size=size, mode='area')

        x, features, coarse = reduced(cells), reduced(first), reduced(hypotheses.flatten(1, 2))
        image = torch.cat([x[:, -about.shape[1] :], features], dim=1)
        own = x[:, : -about.shape[1]].unflatten(1, cues.shape[1:3])
        linear = (own * self.linear[:, :, None, None]).sum(dim=2)
        dtype = self.head.weight.dtype
        x = self.unet(torch.cat([x, reduced(agreed.flatten(1, 2)), features], dim=1).to(dtype))
        logits, gate = self.head(x).float().split([count, 1], dim=1)
        logits = (linear + logits).log_softmax(dim=1)
        blend = (logits.exp()[:, :, None] * coarse.unflatten(1, (count, 2))).sum(dim=1)
        keys = self.keys(torch.cat([x, image.to(dtype)], dim=1)).float()
        spread = propagate(blend, keys, self.trust(x).float())
        shares = torch.cat([logits + F.logsigmoid(-gate), F.logsigmoid(gate)], dim=1).exp()
        shares, spread = (
            F.interpolate(each, size=full, mode='bilinear') for each in (shares, spread)
        )
        candidates = torch.cat([hypotheses, spread[:, None]], dim=1)
        log_shares = shares.clamp(min=1e-6).log()
        agreed = torch.cat([agreed, agreement(first, second, spread[:, None])], dim=1)
        own, about = cells[:, : -about.shape[1]], cells[:, -about.shape[1] :]
        own = own.unflatten(1, cues.shape[1:3])
        refined = self.refiner(log_shares, candidates, own, agreed, about)
        return Choice(refined, candidates, log_shares)

    def _normalised(self, x: Tensor) -> Tensor:
        return (x - self.mean[:, None, None]) / self.deviation[:, None, None]
