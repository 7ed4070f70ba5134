# SPDX-License-Identifier: Apache-2.0
"""The choice between hypotheses, made at 1/8 of the resolution, sharpened at 1/4.

Most of what the choice misses lies within a few px of the edges of what moves, where the cells
of 1/8 hold two motions. Ours; nothing of it is in the DA-Flow paper.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daflow_ros.models.agreement import GROUPS
from daflow_ros.models.cues import PER_HYPOTHESIS, PER_IMAGE
from daflow_ros.models.unet import SLOPE


class ShareRefiner(nn.Module):
    """One small network that judges every candidate by its own cues, each by the same weights.

    Args:
        width: channels.
    """

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        # Beside cues and agreement: log-share, distance from the blend, which was propagated.
        self.enter = nn.Conv2d(PER_HYPOTHESIS + GROUPS + 3 + PER_IMAGE, width, 1)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)
        self.head = nn.Conv2d(width, 1, 3, padding=1)
        nn.init.zeros_(self.head.weight)
        assert self.head.bias is not None
        nn.init.zeros_(self.head.bias)

    def forward(
        self,
        log_shares: Tensor,
        candidates: Tensor,
        cues: Tensor,
        agreed: Tensor,
        about: Tensor,
    ) -> Tensor:
        """Log-shares ``(B, K + 1, h, w)``; before training those that came in.

        Args:
            log_shares: ``(B, K + 1, h, w)``; candidates: ``(B, K + 1, 2, h, w)``, the propagated
                flow last.
            cues: ``(B, K, PER_HYPOTHESIS, h, w)``; about: ``(B, PER_IMAGE, h, w)``; normalised.
            agreed: ``(B, K + 1, GROUPS, h, w)`` of learned features.
        """
        share = log_shares.exp()[:, :, None]
        # The propagated flow has no cues of its own: it gets the mean of what it came from.
        known = (share[:, :-1] * cues).sum(dim=1, keepdim=True) / (1.05 - share[:, -1:])
        blend = (share * candidates).sum(dim=1, keepdim=True)
        away = (4 * (candidates - blend).norm(dim=2, keepdim=True) + 0.1).log()
        last = torch.zeros_like(away)
        last[:, -1] = 1
        everything = [
            torch.cat([cues, known], dim=1),
            agreed,
            log_shares.clamp(min=-12)[:, :, None] / 4,
            away,
            last,
            about[:, None].expand(-1, log_shares.shape[1], -1, -1, -1),
        ]
        x = torch.cat(everything, dim=2).flatten(0, 1).to(self.head.weight.dtype)
        x = F.leaky_relu(self.enter(x), SLOPE)
        x = x + F.leaky_relu(self.first(x), SLOPE)
        x = x + F.leaky_relu(self.second(x), SLOPE)
        logits = self.head(x).float().unflatten(0, log_shares.shape[:2])[:, :, 0]
        return (log_shares + logits).log_softmax(dim=1)
