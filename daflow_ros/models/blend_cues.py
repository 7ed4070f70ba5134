# SPDX-License-Identifier: Apache-2.0
"""What tells which of three flows holds: the chosen one, the matcher's, the dominant plane's.

How well the images and the matcher's features fit along each, what errors two networks expect of
themselves, which classical hypotheses say the same and how much of the picture follows the plane.
What it is worth is for a network to learn (`blending.py`). Ours; nothing of it is in the DA-Flow
paper.

Shapes: images ``(B, 3, H, W)`` in [-1, 1], flow in px of full resolution, H and W divisible by 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.flow.hypotheses import HYPOTHESES
from daflow_ros.models.agreement import agreement
from daflow_ros.models.correlation import coords_grid
from daflow_ros.models.cues import appearance, box, length, mismatch, warp

#: Cues of each of two networks' flows, of both together and of the images; means over the whole
#: image of some of them; agreement of the matcher's features at two resolutions in so many groups.
PER_FLOW, OF_BOTH, PER_IMAGE, MEANS, GROUPS = 11, 6, 6, 11, 4
#: px; shares of the picture that lie so near to the plane's motion.
NEAR = (0.5, 1.0, 3.0)
#: Cues of the plane's motion: alone, beside each of the two flows, its fit beside the first's.
PLANE_ALONE, PLANE_BESIDE, PLANE_FIT = 9, 2 + len(NEAR), 4
#: The first of those.
PLANE = 2 * PER_FLOW + OF_BOTH + PER_IMAGE + MEANS + 2 * 2 * GROUPS
#: Where the evened grey values and the colours of the first image are among the cues.
EVEN = slice(2 * PER_FLOW + OF_BOTH + 1, 2 * PER_FLOW + OF_BOTH + 2)
COLOUR = slice(2 * PER_FLOW + OF_BOTH + 2, 2 * PER_FLOW + OF_BOTH + 5)
NUM_CUES = PLANE + PLANE_ALONE + 2 * PLANE_BESIDE + PLANE_FIT + 2 * GROUPS
#: px, of the errors expected.
LEAST_ERROR = 0.02


def _feature_cues(first: Tensor, second: Tensor, flows: Tensor) -> Tensor:
    """How well features ``(B, C, h, w)`` agree along the flows, ``(B, K GROUPS, H/2, W/2)``.

    ``flows``: ``(B, K, 2, H/2, W/2)``, px of full resolution.
    """
    size = flows.shape[-2:]
    factor = size[0] // first.shape[-2]
    low = F.avg_pool2d(flows.flatten(1, 2), factor).unflatten(1, (-1, 2)) / (2 * factor)
    # Directions about the image's mean: features after a ReLU all point the same way.
    first, second = (x.float() - x.float().mean(dim=(2, 3), keepdim=True) for x in (first, second))
    first, second = (x.shape[1] ** 0.5 * F.normalize(x, dim=1) for x in (first, second))
    agreed = agreement(first, second, low, GROUPS).flatten(1, 2)
    return F.interpolate(agreed, size=size, mode='bilinear', align_corners=False)


class _Look:
    """Two images and the hypotheses, as each flow is held against them."""

    def __init__(self, image1: Tensor, image2: Tensor, hypotheses: Tensor) -> None:
        first, second = appearance(image1), appearance(image2)
        self.image1, self.colour, self.even = image1, first[:, :3], first[:, 3:]
        self.grey, grey2 = (127.5 * (x + 1).mean(dim=1, keepdim=True) for x in (image1, image2))
        self._second = torch.cat([second, grey2 / 255], dim=1)
        self._hypotheses = hypotheses
        h, w = image1.shape[-2:]
        self._here, self._last = coords_grid(1, h, w, image1.device), (w - 1, h - 1)

    def along(self, flow: Tensor) -> list[Tensor]:
        """Fit (4 cues), what leads out, nearest hypothesis, dominant one, support, length."""
        # What leads out of the image meets 0.
        warped = warp(self._second, flow / 2)
        unlike = (self.even - warped[:, 3:4]).abs()
        colours = (self.colour - warped[:, :3]).abs().mean(dim=1, keepdim=True)
        to = self._here + flow / 2
        right, bottom = self._last
        out = (to < 0).any(1, True) | (to[:, :1] > right) | (to[:, 1:] > bottom)
        apart = length(flow[:, None] - self._hypotheses, 2)
        return [
            (box(unlike, 3) + 0.05).log(),
            (box(unlike, 11) + 0.05).log(),
            (box(colours, 5) + 1).log(),
            mismatch(self.grey / 255, warped[:, 4:]),
            out.float(),
            (apart.amin(dim=1, keepdim=True) + 0.1).log(),
            (apart[:, len(HYPOTHESES)][:, None] + 0.1).log(),
            (-apart).exp().mean(dim=1, keepdim=True),
            (length(flow, 1)[:, None] + 0.3).log(),
        ]


@torch.no_grad()
def blend_cues(
    image1: Tensor,
    image2: Tensor,
    flows: Tensor,
    errors: Tensor,
    hypotheses: Tensor,
    features: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """What tells which of three flows holds.

    Args:
        image1, image2: ``(B, 3, H, W)``.
        flows: ``(B, 3, 2, H, W)``, the plane's last.
        errors: ``(B, 2, H, W)`` px, that the networks of the first two expect.
        hypotheses: ``(B, K, 2, H, W)`` classical ones, in the order of `dis_hypotheses`.
        features: the matcher's, of the first and the second image, at 1/8 and at 1/4.

    Returns:
        ``(B, NUM_CUES, H/2, W/2)`` float32.
    """
    log_errors = errors.float().clamp(min=LEAST_ERROR).log()
    image1, image2, log_errors = (F.avg_pool2d(x.float(), 2) for x in (image1, image2, log_errors))
    flows, hypotheses = (
        F.avg_pool2d(x.float().flatten(1, 2), 2).unflatten(1, (-1, 2)) for x in (flows, hypotheses)
    )
    look = _Look(image1, image2, hypotheses)
    every = []
    for index in range(2):
        flow = flows[:, index]
        along = look.along(flow)
        rough = length(flow - box(flow, 3), 1)[:, None]
        own = [(box(rough, 3) + 0.05).log(), log_errors[:, index : index + 1]]
        every.append(torch.cat([*along[:5], *own, *along[5:]], dim=1))
    one, other = every
    apart = length(flows[:, 0] - flows[:, 1], 1)[:, None]
    both = [(apart + 0.1).log(), (box(apart, 9) + 0.05).log(), one[:, :4] - other[:, :4]]
    grey = look.grey
    detail = (grey - box(grey, 3)).abs()
    about = [(box(detail, 5) + 0.3).log(), look.even, image1, (detail + 0.3).log()]
    local = torch.cat([one[:, [0, 1, 6, 7]], other[:, [0, 1, 6, 7]], *both[:2], about[0]], dim=1)
    means = local.mean(dim=(2, 3), keepdim=True).expand_as(local)
    agreed = [_feature_cues(first, second, flows[:, :2]) for first, second in features]
    plane = _plane_cues(look, flows, one[:, :4])
    agreed_plane = [_feature_cues(first, second, flows[:, 2:]) for first, second in features]
    return torch.cat([one, other, *both, *about, means, *agreed, plane, *agreed_plane], dim=1)


def _plane_cues(look: _Look, flows: Tensor, fit: Tensor) -> Tensor:
    """Of the last of the three; ``fit`` is the first one's."""
    cues = look.along(flows[:, 2])
    beside = []
    for index in range(2):
        apart = length(flows[:, index] - flows[:, 2], 1)[:, None]
        beside += [(apart + 0.1).log(), (box(apart, 9) + 0.05).log()]
        # How much of the picture follows it: what a plane has to be trusted by.
        shares = [(apart < near).float().mean(dim=(2, 3), keepdim=True) for near in NEAR]
        beside += [share.expand_as(apart) for share in shares]
    return torch.cat([*cues, *beside, fit - torch.cat(cues[:4], dim=1)], dim=1)
