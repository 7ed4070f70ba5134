# SPDX-License-Identifier: Apache-2.0
"""Flow to a higher resolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def upsample2(flow: Tensor) -> Tensor:
    """Flow at twice the resolution and in its px."""
    return 2 * F.interpolate(flow, scale_factor=2, mode='bilinear', align_corners=False)


def convex_upsample(
    field: Tensor,
    mask: Tensor,
    factor: int = 8,
    magnitude: float | None = None,
) -> Tensor:
    """Upsample ``(B, C, h, w)`` by learned convex weights (RAFT section 3.3).

    Args:
        field: values at 1/factor resolution.
        mask: ``(B, 9 factor^2, h, w)`` logits.
        factor: of the size.
        magnitude: what the values are multiplied by; None for ``factor``, as flow needs.
    """
    b, c, h, w = field.shape
    weights = mask.float().view(b, 1, 9, factor, factor, h, w).softmax(dim=2)
    scaled = (factor if magnitude is None else magnitude) * field.float()
    patches = F.unfold(scaled, 3, padding=1).view(b, c, 9, 1, 1, h, w)
    up = (weights * patches).sum(dim=2)
    return up.permute(0, 1, 4, 2, 5, 3).reshape(b, c, factor * h, factor * w)
