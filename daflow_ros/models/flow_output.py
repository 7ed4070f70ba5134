# SPDX-License-Identifier: Apache-2.0
"""What a refinement network returns, and the errors that its mixture of Laplace tells."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from daflow_ros.models.selector import Choice


@dataclass
class FlowOutput:
    """What a refinement network returns.

    Attributes:
        flow: ``(B, 2, H, W)`` px, after the last iteration, at the input's resolution.
        flows_low: one ``(B, 2, H/8, W/8)`` per iteration, in 1/8-resolution px (the start first).
        flows_quarter: one ``(B, 2, H/4, W/4)`` per round of the fusion, in 1/4-resolution px;
            empty without one.
        selections: of the same rounds, log-weights and candidates (`Fused`).
        choice: of the selector, or None without one.
        laplace: parameters of a mixture of two Laplace distributions of the end-point error,
            or None without a confidence head: ``(B, 4, H, W)`` two weight logits and two log
            scales from a fusion or with ``start_detail``, ``(B, 3, H, W)`` with log b1 alone
            (log b2 = 0) else.
        blended: ``(B, 3, 2, H, W)`` px, the chosen flow, the matcher's and the dominant plane's
            where they were blended.
        hidden: ``(B, hidden_dim, H/8, W/8)``, the GRU's last state, where nothing is fused.
        correlation: ``(B, H/8 * W/8, H/8 * W/8)`` all-pairs correlation (training only).
    """

    flow: Tensor
    flows_low: list[Tensor]
    laplace: Tensor | None = None
    correlation: Tensor | None = None
    flows_quarter: list[Tensor] = field(default_factory=list)
    selections: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    choice: Choice | None = None
    blended: Tensor | None = None
    hidden: Tensor | None = None


def laplace_scales(laplace: Tensor) -> Tensor:
    """Log scales ``(B, 2, ...)`` of a mixture with 3 or 4 channels, see :class:`FlowOutput`."""
    if laplace.shape[1] == 3:
        raw = laplace[:, 2:].clamp(0, 10)
        return torch.cat([raw, torch.zeros_like(raw)], dim=1)
    return laplace[:, 2:].clamp(-3, 6)


def expected_error(laplace: Tensor) -> Tensor:
    """Mean of the mixture that ``laplace`` describes, ``(B, H, W)`` px."""
    return (laplace[:, :2].softmax(dim=1) * laplace_scales(laplace).exp()).sum(dim=1)
