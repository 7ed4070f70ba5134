# SPDX-License-Identifier: Apache-2.0
"""Which of three flows holds, pixel by pixel: chosen hypotheses, the matcher, the dominant plane.

Flows found in different ways err at different places (FusionFlow: Lempitsky et al., CVPR 2008).
A small U-Net at half the resolution is shown what tells them apart (`blend_cues.py`), weighs them
and tells the error of the result. Ours; nothing of it is in the DA-Flow paper.

Shapes: images ``(B, 3, H, W)`` in [-1, 1], flow in px of full resolution, H and W divisible by 16.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from daflow_ros.models.blend_cues import (
    NUM_CUES,
    PER_FLOW,
    PLANE,
    PLANE_ALONE,
    PLANE_BESIDE,
    blend_cues,
)
from daflow_ros.models.cues import box
from daflow_ros.models.unet import SLOPE, act

#: Grey values, in all channels, from which on and up to which nothing is told apart.
BLOWN_OUT, BLACK = 253, 2
#: Taken off the matcher's logit where all about a pixel is blown out or black.
DISTRUST = 10.0
#: Cues that the errors are told from as well: errors expected, and how far the flows are apart.
_BESIDE = PLANE + PLANE_ALONE
DOUBT = (6, PER_FLOW + 6, 2 * PER_FLOW, 2 * PER_FLOW + 1, _BESIDE, _BESIDE + PLANE_BESIDE)


def cut_off(image: Tensor) -> Tensor:
    """Share of the pixels about each that are blown out or black, ``(B, 1, H/2, W/2)``.

    There is nothing to be matched there, and a matcher makes up a motion.
    """
    colour = F.avg_pool2d(127.5 * (image.float() + 1), 2)
    darkest, brightest = colour.amin(dim=1, keepdim=True), colour.amax(dim=1, keepdim=True)
    return box(((darkest >= BLOWN_OUT) | (brightest <= BLACK)).float(), 5)


class FlowBlend(nn.Module):
    """Weights of three flows and the error of their mean, from `blend_cues`.

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
        self.weight = block(dim, 2)
        nn.init.zeros_(self.weight.weight)
        assert self.weight.bias is not None
        nn.init.constant_(self.weight.bias, -2.0)
        # Features that its steep loss leaves alone, as in `FlowFusion`.
        self.laplace = nn.Sequential(
            block(dim + 2 + len(DOUBT), 32), nn.LeakyReLU(SLOPE), block(32, 4)
        )

    def forward(self, cues: Tensor) -> tuple[Tensor, Tensor]:
        """Weigh.

        Args:
            cues: ``(B, NUM_CUES, h, w)``, h and w divisible by 8.

        Returns:
            Logits of the second and the third flow's weight beside 0 of the first's, ``(B, 2, h,
            w)``, and ``(B, 4, h, w)`` parameters of the distribution of the error, see
            `FlowOutput.laplace`.
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
        logits = self.weight(x)
        laplace = self.laplace(torch.cat([x.detach(), logits.detach(), normal[:, DOUBT]], dim=1))
        return logits, laplace


def blend_flows(
    blend: FlowBlend,
    images: tuple[Tensor, Tensor],
    flows: Tensor,
    errors: Tensor,
    hypotheses: Tensor,
    features: Sequence[tuple[Tensor, Tensor]],
) -> tuple[Tensor, Tensor]:
    """Blend three flows; see `blend_cues` for the arguments.

    The second has no weight where the first image is blown out or black (:func:`cut_off`).

    Returns:
        Flow ``(B, 2, H, W)`` px and ``(B, 4, H, W)``, see `FlowOutput.laplace`.
    """
    cues = blend_cues(*images, flows, errors, hypotheses, features)
    logits, laplace = blend(cues)
    matched, plane = logits.float().split(1, dim=1)
    matched = matched - DISTRUST * cut_off(images[0])
    scores = torch.cat([torch.zeros_like(matched), matched, plane], dim=1)
    scores, laplace = (
        F.interpolate(x.float(), scale_factor=2, mode='bilinear', align_corners=False)
        for x in (scores, laplace)
    )
    flow = (scores.softmax(dim=1)[:, :, None] * flows).sum(dim=1)
    return flow, laplace
