# SPDX-License-Identifier: Apache-2.0
"""A blended flow held against the images once more, and what is to be mended of it.

The blend judges three flows before it knows what comes of them. Here a small U-Net sees how well
what came of them fits, as RAFT looks again after each step, and says anew from where around flow
is to be taken (`spatial_propagation.py`), and by how much it is to be moved. Ours; nothing of it
is in the DA-Flow paper.

Shapes: at half the resolution, ``(B, ..., h, w)``; flow in px of full resolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from daflow_ros.models.cues import box, length
from daflow_ros.models.spatial_propagation import NUM_FITS, NUM_HELD, Pictures
from daflow_ros.models.unet import UNet

#: Cues of a flow, see `seen`.
NUM_SEEN = NUM_FITS + 1 + 3 + 1 + 1 + 2
#: px; how far a flow is from that around it, above which more is hardly told apart.
STEP = 2.0


@torch.no_grad()
def seen(flow: Tensor, flows: Tensor, pictures: Pictures) -> Tensor:
    """Fits, what leads out, how far from each of three, length, roughness, step.

    Args:
        flow: ``(B, 2, h, w)``.
        flows: those that it was blended from, ``(B, 3, 2, h, w)``.
        pictures: to hold it against.

    Returns:
        ``(B, NUM_SEEN, h, w)``.
    """
    to = pictures.targets(flow[:, None])[:, 0]
    out = ((to < 0) | (to > pictures.last[:, None, None])).any(dim=1, keepdim=True)
    apart = length(flow[:, None] - flows, 2)
    rough = length(flow - box(flow, 3), 1)[:, None]
    step = flow - box(flow, 9)
    return torch.cat(
        [
            pictures.fits(flow[:, None])[:, 0],
            out.float(),
            (apart + 0.1).log(),
            (length(flow, 1)[:, None] + 0.3).log(),
            (box(rough, 3) + 0.05).log(),
            step / (STEP + length(step, 1)[:, None]),
        ],
        dim=1,
    )


class SecondLook(nn.Module):
    """Guides of two more propagations, and what is added to flow, from `seen` and features.

    Args:
        features: channels of the blend's at half the resolution.
        dims: channels at 1/2, 1/4 and 1/8 of the resolution.
    """

    def __init__(self, features: int, dims: tuple[int, int, int] = (32, 64, 96)) -> None:
        super().__init__()
        self.unet = UNet(features + NUM_SEEN, dims)
        self.say = nn.Conv2d(dims[0], 2 * NUM_HELD + 2, 3, padding=1)
        nn.init.zeros_(self.say.weight)
        assert self.say.bias is not None
        nn.init.zeros_(self.say.bias)

    def forward(self, features: Tensor, seen: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Look.

        Args:
            features: ``(B, features, h, w)``, h and w divisible by 4.
            seen: ``(B, NUM_SEEN, h, w)``.

        Returns:
            What is added to the guides of a propagation that is held against the images, the
            guides of another, each ``(B, NUM_HELD, h, w)``, px to be added ``(B, 2, h, w)``, and
            features ``(B, dims[0], h, w)``.
        """
        x = self.unet(torch.cat([features, seen.to(features.dtype)], dim=1))
        more, last, shift = self.say(x).split((NUM_HELD, NUM_HELD, 2), dim=1)
        return more, last, shift, x
