# SPDX-License-Identifier: Apache-2.0
"""Which of two flows holds, pixel by pixel: the chosen hypotheses or the matcher's.

Two flows found in different ways err at different places (FusionFlow: Lempitsky et al., CVPR
2008). How well the images fit along each, what errors each network expects of itself, and which
classical hypotheses say the same is shown to a small U-Net at half the resolution; it weighs the
two and tells the error of the result. Ours; nothing of it is in the DA-Flow paper.

Shapes: images ``(B, 3, H, W)`` in [-1, 1], flow in px of full resolution, H and W divisible by 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daflow_ros.flow.hypotheses import HYPOTHESES
from daflow_ros.models.agreement import agreement
from daflow_ros.models.cues import box, length, mismatch, warp
from daflow_ros.models.unet import SLOPE, act

#: Cues of each of the two flows, of both together and of the images; means over the whole image
#: of some of them; agreement of the matcher's features at two resolutions in so many groups.
PER_FLOW, OF_BOTH, PER_IMAGE, MEANS, GROUPS = 11, 6, 6, 11, 4
#: px, of the errors expected.
LEAST_ERROR = 0.02
#: Grey values, in all channels, from which on and up to which nothing is told apart.
BLOWN_OUT, BLACK = 253, 2
#: Taken off the logit where all about a pixel is blown out or black.
DISTRUST = 10.0
NUM_CUES = 2 * PER_FLOW + OF_BOTH + PER_IMAGE + MEANS + 2 * 2 * GROUPS


def _evened(grey: Tensor) -> Tensor:
    """Grey values ``(B, 1, h, w)`` with their local mean and contrast evened out."""
    away = grey - box(grey, 13)
    return away / (box(away.square(), 13).sqrt() + 4)


def _feature_cues(first: Tensor, second: Tensor, flows: Tensor) -> Tensor:
    """How well features ``(B, C, h, w)`` agree along the flows, ``(B, 2 GROUPS, H/2, W/2)``.

    ``flows``: ``(B, 2, 2, H/2, W/2)``, px of full resolution.
    """
    size = flows.shape[-2:]
    factor = size[0] // first.shape[-2]
    low = F.avg_pool2d(flows.flatten(1, 2), factor).unflatten(1, (2, 2)) / (2 * factor)
    # Directions about the image's mean: features after a ReLU all point the same way.
    first, second = (x.float() - x.float().mean(dim=(2, 3), keepdim=True) for x in (first, second))
    first, second = (x.shape[1] ** 0.5 * F.normalize(x, dim=1) for x in (first, second))
    agreed = agreement(first, second, low, GROUPS).flatten(1, 2)
    return F.interpolate(agreed, size=size, mode='bilinear', align_corners=False)


@torch.no_grad()
def blend_cues(
    image1: Tensor,
    image2: Tensor,
    flows: Tensor,
    errors: Tensor,
    hypotheses: Tensor,
    features: Sequence[tuple[Tensor, Tensor]],
) -> Tensor:
    """What tells which of two flows holds.

    Args:
        image1, image2: ``(B, 3, H, W)``.
        flows: ``(B, 2, 2, H, W)`` the two.
        errors: ``(B, 2, H, W)`` px, that their networks expect.
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
    h, w = image1.shape[-2:]
    colour1, colour2 = 127.5 * (image1 + 1), 127.5 * (image2 + 1)
    grey1, grey2 = (x.mean(dim=1, keepdim=True) for x in (colour1, colour2))
    even1, even2 = _evened(grey1), _evened(grey2)
    y, x = torch.meshgrid(
        torch.arange(h, device=flows.device), torch.arange(w, device=flows.device), indexing='ij'
    )
    second = torch.cat([colour2 + 1, even2, grey2 / 255], dim=1)
    every = []
    for index in range(2):
        flow = flows[:, index]
        # What leads out of the image meets 0.
        warped = warp(second, flow / 2)
        unlike = (even1 - warped[:, 3:4]).abs()
        colours = (colour1 + 1 - warped[:, :3]).abs().mean(dim=1, keepdim=True)
        to = torch.stack([x, y]) + flow / 2
        out = (to < 0).any(1, True) | (to[:, :1] > w - 1) | (to[:, 1:] > h - 1)
        apart = length(flow[:, None] - hypotheses, 2)
        rough = length(flow - box(flow, 3), 1)[:, None]
        every.append(
            torch.cat(
                [
                    (box(unlike, 3) + 0.05).log(),
                    (box(unlike, 11) + 0.05).log(),
                    (box(colours, 5) + 1).log(),
                    mismatch(grey1 / 255, warped[:, 4:]),
                    out.float(),
                    (box(rough, 3) + 0.05).log(),
                    log_errors[:, index : index + 1],
                    (apart.amin(dim=1, keepdim=True) + 0.1).log(),
                    (apart[:, len(HYPOTHESES)][:, None] + 0.1).log(),
                    (-apart).exp().mean(dim=1, keepdim=True),
                    (length(flow, 1)[:, None] + 0.3).log(),
                ],
                dim=1,
            )
        )
    one, other = every
    apart = length(flows[:, 0] - flows[:, 1], 1)[:, None]
    both = [(apart + 0.1).log(), (box(apart, 9) + 0.05).log(), one[:, :4] - other[:, :4]]
    detail = (grey1 - box(grey1, 3)).abs()
    about = [(box(detail, 5) + 0.3).log(), even1, image1, (detail + 0.3).log()]
    cues = torch.cat([one, other, *both, *about], dim=1)
    local = torch.cat([one[:, [0, 1, 6, 7]], other[:, [0, 1, 6, 7]], *both[:2], about[0]], dim=1)
    means = local.mean(dim=(2, 3), keepdim=True).expand(-1, -1, h, w)
    agreed = [_feature_cues(first, other, flows) for first, other in features]
    return torch.cat([cues, means, *agreed], dim=1)


def cut_off(image: Tensor) -> Tensor:
    """Share of the pixels about each that are blown out or black, ``(B, 1, H/2, W/2)``.

    There is nothing to be matched there, and a matcher makes up a motion.
    """
    colour = F.avg_pool2d(127.5 * (image.float() + 1), 2)
    darkest, brightest = colour.amin(dim=1, keepdim=True), colour.amax(dim=1, keepdim=True)
    return box(((darkest >= BLOWN_OUT) | (brightest <= BLACK)).float(), 5)


class FlowBlend(nn.Module):
    """Weights of two flows and the error of their mean, from :func:`blend_cues`.

    Args:
        dim: channels.
        deep: channels at the coarsest of the four levels.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, dim: int = 32, deep: int = 64) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, stride, 1)

        self.register_buffer('mean', torch.zeros(NUM_CUES))
        self.register_buffer('deviation', torch.ones(NUM_CUES))
        self.enter = nn.ModuleList([block(NUM_CUES, dim), block(dim, dim)])
        dims = (dim, dim, deep)
        self.down = nn.ModuleList([block(dim, d, 2) for d in dims])
        self.middle = nn.ModuleList([block(d, dim) for d in dims])
        self.up = nn.ModuleList([block(2 * dim, dim) for _ in dims])
        self.weight = block(dim, 1)
        nn.init.zeros_(self.weight.weight)
        assert self.weight.bias is not None
        nn.init.constant_(self.weight.bias, -2.0)
        # Features that its steep loss leaves alone, as in `FlowFusion`.
        self.laplace = nn.Sequential(block(dim + 1 + 4, 32), nn.LeakyReLU(SLOPE), block(32, 4))

    def forward(self, cues: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh.

        Args:
            cues: ``(B, NUM_CUES, h, w)``, h and w divisible by 8.

        Returns:
            Logit of the second flow's weight ``(B, 1, h, w)``, and ``(B, 4, h, w)`` parameters of
            the distribution of the error, see `FlowOutput.laplace`.
        """
        normal = (cues - self.mean[:, None, None]) / self.deviation[:, None, None]
        x = normal
        for layer in self.enter:
            x = act(layer(x))
        levels = [x]
        for down, middle in zip(self.down, self.middle, strict=True):
            levels.append(act(middle(act(down(levels[-1])))))
        x = levels.pop()
        for up in self.up:
            x = F.interpolate(x, scale_factor=2, mode='bilinear', align_corners=False)
            x = act(up(torch.cat([levels.pop(), x], dim=1)))
        logit = self.weight(x)
        doubt = normal[:, [6, PER_FLOW + 6, 2 * PER_FLOW, 2 * PER_FLOW + 1]]
        laplace = self.laplace(torch.cat([x.detach(), logit.detach(), doubt], dim=1))
        return logit, laplace


def blend_flows(
    blend: FlowBlend,
    images: tuple[Tensor, Tensor],
    flows: Tensor,
    errors: Tensor,
    hypotheses: Tensor,
    features: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Blend two flows; see :func:`blend_cues` for the arguments.

    The second has no weight where the first image is blown out or black (:func:`cut_off`).

    Returns:
        Flow ``(B, 2, H, W)`` px and ``(B, 4, H, W)``, see `FlowOutput.laplace`.
    """
    cues = blend_cues(*images, flows, errors, hypotheses, features)
    logit, laplace = blend(cues)
    logit = logit.float() - DISTRUST * cut_off(images[0])
    logit, laplace = (
        F.interpolate(x.float(), scale_factor=2, mode='bilinear', align_corners=False)
        for x in (logit, laplace)
    )
    return torch.lerp(flows[:, 0], flows[:, 1], logit.sigmoid()), laplace
