# SPDX-License-Identifier: Apache-2.0
"""Which of three flows holds, pixel by pixel: chosen hypotheses, the matcher, the dominant plane.

Flows found in different ways err at different places (FusionFlow: Lempitsky et al., CVPR 2008).
A small U-Net at half the resolution is shown what tells them apart (`blend_cues.py`), weighs them
and says from where around the result is to be taken (`spatial_propagation.py`). A second one looks
at what came of it (`second_look.py`); both tell its error. Ours; nothing of it is in the DA-Flow
paper.

Shapes: images ``(B, 3, H, W)`` in [-1, 1], flow in px of full resolution, H and W divisible by 16.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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
from daflow_ros.models.cues import appearance, box
from daflow_ros.models.second_look import NUM_SEEN, SecondLook, seen
from daflow_ros.models.spatial_propagation import (
    NUM_GUIDES,
    NUM_HELD,
    RINGS,
    Pictures,
    propagate,
)
from daflow_ros.models.unet import SLOPE, ResidualUnit, act, double

#: Grey values, in all channels, from which on and up to which nothing is told apart.
BLOWN_OUT, BLACK = 253, 2
#: Taken off the matcher's logit where all about a pixel is blown out or black.
DISTRUST = 10.0
#: Guides of each propagation: of two before flow is looked at again, and of one after that.
GUIDES = (NUM_GUIDES, NUM_GUIDES, NUM_HELD)
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
    """The mean of three flows, taken from where it holds, and its error, from `blend_cues`.

    Args:
        hidden_dim: of the matcher's GRU, whose last state is shown at 1/8.
        dims: channels at 1/2, 1/4, 1/8 and 1/16 of the resolution.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(
        self, hidden_dim: int, dims: tuple[int, int, int, int] = (48, 64, 96, 128)
    ) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, stride: int = 1) -> nn.Conv2d:
            return nn.Conv2d(inputs, outputs, 3, stride, 1)

        self.register_buffer('mean', torch.zeros(NUM_CUES))
        self.register_buffer('deviation', torch.ones(NUM_CUES))
        first, steps = dims[0], list(pairwise(dims))
        self.enter = nn.ModuleList([block(NUM_CUES, first), block(first, first)])
        self.down = nn.ModuleList([block(fine, coarse, 2) for fine, coarse in steps])
        self.hidden = nn.Conv2d(hidden_dim, dims[2], 1)
        self.middle = nn.ModuleList([block(coarse, coarse) for _, coarse in steps])
        self.unit = nn.ModuleList([ResidualUnit(coarse) for _, coarse in steps])
        self.up = nn.ModuleList([block(fine + coarse, fine) for fine, coarse in reversed(steps)])
        self.weight = block(first, 2)
        nn.init.zeros_(self.weight.weight)
        assert self.weight.bias is not None
        nn.init.constant_(self.weight.bias, -2.0)
        self.guide = block(first, sum(GUIDES))
        nn.init.normal_(self.guide.weight, std=0.01)
        self.look = SecondLook(first)
        assert self.guide.bias is not None and self.look.say.bias is not None
        # Each pixel its own flow, at first.
        own = torch.tensor([0.0] + [-7.0] * len(RINGS) + [0.0, 2.0])
        nn.init.zeros_(self.guide.bias)
        for bias in (*self.guide.bias.data.split(GUIDES), self.look.say.bias.data[NUM_HELD:]):
            bias[: len(own)] = own
        # Features that its steep loss leaves alone, as in `FlowFusion`.
        told = first + 2 + len(DOUBT) + self.look.say.in_channels + NUM_SEEN
        self.laplace = nn.Sequential(block(told, 32), nn.LeakyReLU(SLOPE), block(32, 4))

    def forward(
        self,
        cues: Tensor,
        hidden: Tensor,
        flows: Tensor,
        cut: Tensor,
        image: Tensor,
        pictures: Pictures,
    ) -> tuple[Tensor, Tensor]:
        """Blend.

        Args:
            cues: ``(B, NUM_CUES, h, w)``, h and w divisible by 8.
            hidden: ``(B, hidden_dim, h/4, w/4)``, state of the matcher's GRU.
            flows: ``(B, 3, 2, fh, fw)`` px, f 1 or 2.
            cut: of :func:`cut_off`, ``(B, 1, h, w)``.
            image: the first, ``(B, 3, fh, fw)`` in [-1, 1].
            pictures: both, ``(B, ..., h, w)``.

        Returns:
            Flow ``(B, 2, fh, fw)`` px, and ``(B, 4, h, w)`` parameters of the distribution of its
            error, see `FlowOutput.laplace`.
        """
        normal = (cues - self.mean[:, None, None]) / self.deviation[:, None, None]
        x = self._features(normal, hidden)
        logits = self.weight(x)
        flow = weighed(logits.float(), flows, cut)
        *guides, held = self.guide(x).float().split(GUIDES, dim=1)
        for guide in guides:
            flow = propagate(flow, image, guide)
        factor = flow.shape[-1] // cues.shape[-1]
        low = F.avg_pool2d(flows.flatten(1, 2), factor).unflatten(1, (-1, 2))
        more, last, shift, y = self.look(x, seen(F.avg_pool2d(flow, factor), low, pictures))
        flow = propagate(flow, image, held + more.float(), pictures)
        flow = propagate(flow, image, last.float(), pictures)
        if factor > 1:
            shift = F.interpolate(shift, scale_factor=factor, mode='bilinear', align_corners=False)
        flow = flow + shift.float()
        after = seen(F.avg_pool2d(flow, factor), low, pictures)
        told = [x.detach(), logits.detach(), normal[:, DOUBT], y.detach(), after]
        return flow, self.laplace(torch.cat(told, dim=1))

    def _features(self, normal: Tensor, hidden: Tensor) -> Tensor:
        """``(B, dims[0], h, w)`` from cues of zero mean and the state."""
        x = normal
        for layer in self.enter:
            x = act(layer(x))
        levels = [x]
        for down, middle, unit in zip(self.down, self.middle, self.unit, strict=True):
            x = down(x)
            if len(levels) == 2:  # at 1/8, where the state lives
                x = x + self.hidden(hidden.to(x.dtype))
            x = unit(act(middle(act(x))))
            levels.append(x)
        levels.pop()
        for up in self.up:
            x = act(up(torch.cat([levels.pop(), double(x)], dim=1)))
        return x


def weighed(logits: Tensor, flows: Tensor, cut: Tensor) -> Tensor:
    """The mean of three flows.

    Args:
        logits: of the second and the third flow's weight beside 0 of the first's, ``(B, 2, h,
            w)``.
        flows: ``(B, 3, 2, fh, fw)``, f 1 or 2.
        cut: of :func:`cut_off`, ``(B, 1, h, w)``.

    Returns:
        ``(B, 2, fh, fw)``.
    """
    matched, plane = logits.split(1, dim=1)
    scores = torch.cat([torch.zeros_like(matched), matched - DISTRUST * cut, plane], dim=1)
    if flows.shape[-2:] != scores.shape[-2:]:
        scores = F.interpolate(scores, size=flows.shape[-2:], mode='bilinear', align_corners=False)
    return (scores.softmax(dim=1)[:, :, None] * flows).sum(dim=1)


def blend_flows(
    blend: FlowBlend,
    images: tuple[Tensor, Tensor],
    flows: Tensor,
    errors: Tensor,
    hypotheses: Tensor,
    features: Sequence[tuple[Tensor, Tensor]],
    hidden: Tensor,
) -> tuple[Tensor, Tensor]:
    """Blend three flows; see `blend_cues` and `FlowBlend` for the arguments.

    The second has no weight where the first image is blown out or black (:func:`cut_off`).

    Returns:
        Flow ``(B, 2, H, W)`` px and ``(B, 4, H, W)``, see `FlowOutput.laplace`.
    """
    cues = blend_cues(*images, flows, errors, hypotheses, features)
    first, second = (appearance(F.avg_pool2d(image.float(), 2)) for image in images)
    pictures = Pictures(first, second, first.new_zeros(len(first), 2))
    flow, laplace = blend(cues, hidden, flows, cut_off(images[0]), images[0].float(), pictures)
    laplace = F.interpolate(laplace.float(), scale_factor=2, mode='bilinear', align_corners=False)
    return flow, laplace
