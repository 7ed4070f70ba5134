# SPDX-License-Identifier: Apache-2.0
"""How well learned features agree along each of several flows.

The features that RAFT matches at 1/8, with those of 1/4 for their detail, compared in groups
(group-wise correlation, Guo et al., CVPR 2019) where the flows lead: a cue that learns to see
through bad weather, beside the hand-made ones of `cues.py`. In a DA-Flow the 1/8 features hold
those of the diffusion transformer (section 3.3 of the paper); the use is ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daflow_ros.models.unet import act, double

#: Channels that are compared, in so many groups.
MATCH_DIM, GROUPS = 32, 8


class MatchingFeatures(nn.Module):
    """Directions to compare, from the features of both resolutions.

    Args:
        quarter_dim, eighth_dim: channels of the features at 1/4 and at 1/8.
    """

    def __init__(self, quarter_dim: int, eighth_dim: int) -> None:
        super().__init__()
        self.quarter = nn.Conv2d(quarter_dim, MATCH_DIM, 1)
        self.eighth = nn.Conv2d(eighth_dim, MATCH_DIM, 1)
        self.mix = nn.Conv2d(MATCH_DIM, MATCH_DIM, 3, padding=1)

    def forward(self, quarter: Tensor, eighth: Tensor) -> Tensor:
        """``(B, quarter_dim, h, w)``, ``(B, eighth_dim, h/2, w/2)`` to ``(B, 32, h, w)``.

        The length of every vector is sqrt(32): contrast is what bad weather takes away.
        """
        x = self.quarter(quarter) + double(self.eighth(eighth))
        x = x + self.mix(act(x))
        return MATCH_DIM**0.5 * F.normalize(x.float(), dim=1)


def agreement(
    first: Tensor, second: Tensor, flows: Tensor, groups: int = GROUPS
) -> Tensor:
    """Mean product in each group of channels along each flow, ``(B, K, groups, h, w)``.

    Args:
        first, second: ``(B, C, h, w)``; flows: ``(B, K, 2, h, w)`` px.
    """
    h, w = flows.shape[-2:]
    y, x = torch.meshgrid(
        torch.arange(h, device=flows.device), torch.arange(w, device=flows.device), indexing='ij'
    )
    scale = flows.new_tensor([2.0 / max(w - 1, 1), 2.0 / max(h - 1, 1)])
    grid = (torch.stack([x, y], dim=-1) + flows.permute(0, 1, 3, 4, 2)) * scale - 1
    # One look-up for all flows: the features are not repeated.
    # Half precision could not tell one pixel of the grid from the next.
    found = F.grid_sample(second.float(), grid.float().flatten(1, 2), align_corners=True)
    found = found.to(second.dtype).unflatten(2, (-1, h)).unflatten(1, (groups, -1))
    product = found * first.unflatten(1, (groups, -1))[:, :, :, None]
    return product.mean(dim=2).transpose(1, 2)
