# SPDX-License-Identifier: Apache-2.0
"""Which of several flow hypotheses to trust where, from the cues of `cues.py`.

A small U-Net over all cues of all hypotheses. It needs no features of the images and so trains
by itself, far faster than a flow network. Ours; nothing of it is in the DA-Flow paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daflow_ros.models.cues import PER_HYPOTHESIS, PER_IMAGE
from daflow_ros.models.unet import UNet


class HypothesisSelector(nn.Module):
    """Logits of ``num_hypotheses`` hypotheses at 1/4 of the resolution.

    Args:
        num_hypotheses: K.
        dims: channels of the U-Net's levels.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, num_hypotheses: int, dims: tuple[int, int, int] = (32, 48, 64)) -> None:
        super().__init__()
        inputs = num_hypotheses * PER_HYPOTHESIS + PER_IMAGE
        # Of the cues over the training clips.
        self.register_buffer('mean', torch.zeros(inputs))
        self.register_buffer('deviation', torch.ones(inputs))
        self.unet = UNet(inputs, dims)
        self.head = nn.Conv2d(dims[0], num_hypotheses, 3, padding=1)
        # A share of the logits is linear in each hypothesis's own cues.
        self.linear = nn.Parameter(torch.zeros(num_hypotheses, PER_HYPOTHESIS))
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(self, cues: Tensor, about: Tensor) -> Tensor:
        """``(B, K, PER_HYPOTHESIS, h, w)``, ``(B, PER_IMAGE, h, w)`` to ``(B, K, h, w)``.

        h and w divide by 4.
        """
        x = torch.cat([cues.flatten(1, 2), about], dim=1).float()
        x = (x - self.mean[:, None, None]) / self.deviation[:, None, None]
        own = x[:, : -about.shape[1]].unflatten(1, cues.shape[1:3])
        linear = (own * self.linear[:, :, None, None]).sum(dim=2)
        x = x.clamp(-5, 5).to(self.head.weight.dtype)
        logits: Tensor = linear + self.head(self.unet(x)).float()
        return logits
