# SPDX-License-Identifier: Apache-2.0
"""Flow taken over from pixels around: one step of non-local spatial propagation.

A thin thing that nothing matched often moves as what it hangs on, which looks alike and was
matched. So each pixel takes a mean of the flow of fixed pixels around it, weighed by how sure the
flow there is, by how much colour there is like its own and by where it lies, all as a network says
(after Park et al., Non-Local Spatial Propagation Network, ECCV 2020, with neighbours that are not
moved). What is taken over can be held against the images first, as PatchMatch does it (Bleyer et
al., PatchMatch Stereo, BMVC 2011): whether the pixel itself is found again along that flow.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.models.correlation import coords_grid
from daflow_ros.models.cues import box, length

#: Distances of the neighbours, px of half the resolution; as many directions at each.
RINGS, DIRECTIONS = (2, 6, 14, 28), 8
#: What a network has to say: the pixel itself and each ring, surety, how much colour counts, and
#: each neighbour.
NUM_GUIDES = 1 + len(RINGS) + 2 + len(RINGS) * DIRECTIONS
#: And where flow is held against the images: how much each of three fits counts, and the distance.
NUM_FITS, NUM_HELD = 3, NUM_GUIDES + 3 + 1
#: Logarithm of what colour counts at most: a tenth of the range of a channel is then 30 logits.
MOST = 6.6
#: px of the flow to one of the guides.
SCALE = 2


def _neighbours() -> list[tuple[int, int, int]]:
    """Ring (0 the pixel itself), dy and dx; every other ring is turned by half a step."""
    every = [(0, 0, 0)]
    for ring, radius in enumerate(RINGS):
        for direction in range(DIRECTIONS):
            angle = 2 * math.pi * (direction + 0.5 * (ring % 2)) / DIRECTIONS
            dy, dx = round(radius * math.sin(angle)), round(radius * math.cos(angle))
            every.append((1 + ring, dy, dx))
    return every


NEIGHBOURS = _neighbours()
_REACH = max(RINGS) + 1


class Pictures(NamedTuple):
    """What flow is held against, at the resolution of the guides.

    Attributes:
        first: `appearance` of the first picture or of a part of it, ``(B, 4, h, w)``.
        second: of the whole second one, ``(B, 4, H, W)``, 0 beyond its end.
        corner: where the part lies, ``(B, 2)`` px, x first.
    """

    first: Tensor
    second: Tensor
    corner: Tensor

    @property
    def last(self) -> Tensor:
        """Of the second picture's pixels, x first."""
        return self.corner.new_tensor([self.second.shape[-1] - 1, self.second.shape[-2] - 1])

    def targets(self, flows: Tensor) -> Tensor:
        """Where flows ``(B, K, 2, h, w)`` px lead to in the second picture, the same shape."""
        height, width = flows.shape[-2:]
        here = coords_grid(len(flows), height, width, flows.device) + self.corner[..., None, None]
        return here[:, None] + flows / SCALE

    @torch.no_grad()
    def fits(self, flows: Tensor) -> Tensor:
        """How ill each pixel is found again along flows ``(B, K, 2, h, w)`` px.

        Returns:
            ``(B, K, NUM_FITS, h, w)`` logarithms.
        """
        count, height = flows.shape[1], flows.shape[-2]
        to = self.targets(flows).permute(0, 1, 3, 4, 2) * (2 / self.last) - 1
        found = F.grid_sample(self.second, to.flatten(1, 2), align_corners=True)
        found = found.unflatten(2, (count, height))
        unlike = box((self.first[:, 3, None] - found[:, 3]).abs(), 3)
        colours = (self.first[:, :3, None] - found[:, :3]).abs().mean(dim=1)
        fits = [unlike + 0.05, box(unlike, 5) + 0.05, box(colours, 3) + 1]
        return torch.stack(fits, dim=2).log()


def propagate(
    flow: Tensor, image: Tensor, guides: Tensor, pictures: Pictures | None = None
) -> Tensor:
    """Mean of the flow of each pixel and of those around it.

    Beyond the border lies what lies on it.

    Args:
        flow: ``(B, 2, fh, fw)`` px, f 1 or 2.
        image: ``(B, 3, fh, fw)`` in [-1, 1], of whose colours the likeness is told.
        guides: ``(B, NUM_GUIDES, h, w)``: logits of the pixel itself and of each ring, a logit
            of the flow at a pixel wherever it is taken to, the logarithm of what a squared
            difference of colour takes off, and what is added to each neighbour's logit. With
            ``pictures`` ``NUM_HELD`` of them: what it counts that the logarithm of each fit is
            better than that of the pixel's own flow, and how far away from that a flow is.
        pictures: what to hold the flow against.

    Returns:
        ``(B, 2, fh, fw)`` px.
    """
    height, width = guides.shape[-2:]
    factor = flow.shape[-1] // width
    shares = _logits(F.avg_pool2d(flow, factor), F.avg_pool2d(image, factor), guides, pictures)
    if factor > 1:
        shares = F.interpolate(shares, scale_factor=factor, mode='bilinear', align_corners=False)
    shares = shares.softmax(dim=1)
    padded = F.pad(flow, (factor * _REACH,) * 4, mode='replicate')
    mean = torch.zeros_like(flow)
    for share, (_, dy, dx) in zip(shares.split(1, dim=1), NEIGHBOURS, strict=True):
        y, x = factor * (_REACH + dy), factor * (_REACH + dx)
        part = padded[..., y : y + factor * height, x : x + factor * width]
        mean = mean + share * part
    return mean


def _logits(flow: Tensor, colour: Tensor, guides: Tensor, pictures: Pictures | None) -> Tensor:
    """Of each neighbour ``(B, len(NEIGHBOURS), h, w)``, all at the resolution of the guides."""
    parts = (1 + len(RINGS), 1, 1, len(NEIGHBOURS) - 1, guides.shape[1] - NUM_GUIDES)
    rings, sure, colour_counts, towards, held = guides.split(parts, dim=1)
    counts = colour_counts.clamp(max=MOST).exp()
    height, width = guides.shape[-2:]
    logits = [rings[:, :1] + sure]
    # What lies around has no gradient but for the logit of its flow.
    padded_sure = F.pad(sure, (_REACH,) * 4, mode='replicate')
    padded = F.pad(torch.cat([colour, flow], dim=1).detach(), (_REACH,) * 4, mode='replicate')
    own = None if pictures is None else pictures.fits(flow[:, None])
    for ring in range(1, 1 + len(RINGS)):
        # All of a ring at once: more at a time takes no less time, and memory.
        places = [
            np.s_[..., _REACH + dy : _REACH + dy + height, _REACH + dx : _REACH + dx + width]
            for number, dy, dx in NEIGHBOURS
            if number == ring
        ]
        there = torch.stack([padded[place] for place in places], dim=1)
        colour_there, flow_there = there.split((3, 2), dim=2)
        unlike = (colour_there - colour[:, None]).square().sum(dim=2)
        logit = torch.cat([padded_sure[place] for place in places], dim=1) - counts * unlike
        towards_ring = towards[:, (ring - 1) * DIRECTIONS : ring * DIRECTIONS]
        logit = logit + rings[:, ring : ring + 1] + towards_ring
        if pictures is not None and own is not None:
            better = own - pictures.fits(flow_there)
            apart = (10 * length(flow_there - flow[:, None], 2) + 1).log()
            logit = logit + (held[:, None, :-1] * better).sum(dim=2) + held[:, -1:] * apart
        logits.append(logit)
    return torch.cat(logits, dim=1)
