# SPDX-License-Identifier: Apache-2.0
"""Losses of flow training."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.models.correlation import coords_grid
from daflow_ros.models.raft import FlowOutput


def sequence_loss(
    output: FlowOutput, flow: Tensor, valid: Tensor, gamma: float = 0.8
) -> tuple[Tensor, Tensor]:
    """RAFT's loss, sum of gamma^(M - i) |f_i - f*|_1 over the iterations (DA-Flow section 3.4).

    All but the last prediction are compared at the resolution where they live: upsampling each
    would cost more than the update itself.

    Args:
        output: of the network.
        flow: ``(B, 2, H, W)`` px; valid: ``(B, 1, H, W)`` in {0, 1}.

    Returns:
        The loss in px, and the end-point error ``(B, H, W)`` of the last prediction.
    """
    stages = [(8, low) for low in output.flows_low]
    stages += [(4, fine) for fine in output.flows_quarter]
    # Without a fusion the last prediction at 1/8 is the one that is compared at full size; with
    # one it is the last round's.
    last = len(stages) - 1
    loss = flow.new_zeros(())
    truths: dict[int, tuple[Tensor, Tensor]] = {}
    for i, (factor, prediction) in enumerate(stages[:-1]):
        if factor not in truths:
            share = F.avg_pool2d(valid, factor)
            low = F.avg_pool2d(flow * valid, factor) / share.clamp(min=1e-3)
            truths[factor] = low, (share > 0.5).float()
        low, weight = truths[factor]
        error = (factor * prediction - low).abs() * weight
        loss = loss + gamma ** (last - i) * error.sum() / (2 * weight.sum().clamp(min=1))
    error = output.flow - flow
    loss = loss + (error.abs() * valid).sum() / (2 * valid.sum().clamp(min=1))
    return loss, error.detach().norm(dim=1)


def matching_loss(correlation: Tensor, flow: Tensor, visible: Tensor) -> Tensor:
    """Cross-entropy of the all-pairs correlation against the true correspondence.

    The target of a cell of the first frame is spread bilinearly over the four cells about where it
    goes in the second (the dense supervision of detector-free matching, LoFTR, CVPR 2021).

    Args:
        correlation: ``(B, hw, hw)`` logits.
        flow: ``(B, 2, H, W)`` px; visible: ``(B, 1, H, W)`` in {0, 1}, false where occluded.
    """
    seen = F.avg_pool2d(visible, 8)
    low = F.avg_pool2d(flow * visible, 8) / seen.clamp(min=1e-3) / 8
    b, _, h, w = low.shape
    target = coords_grid(b, h, w, flow.device) + low
    inside = (target[:, 0] >= 0) & (target[:, 0] <= w - 1)
    inside &= (target[:, 1] >= 0) & (target[:, 1] <= h - 1) & (seen[:, 0] > 0.6)
    corner = target.floor()
    fraction = target - corner
    log_p = correlation.log_softmax(dim=-1)
    loss = correlation.new_zeros((b, h * w))
    for dx in (0, 1):
        for dy in (0, 1):
            x = (corner[:, 0] + dx).clamp(0, w - 1)
            y = (corner[:, 1] + dy).clamp(0, h - 1)
            share = (fraction[:, 0] if dx else 1 - fraction[:, 0]) * (
                fraction[:, 1] if dy else 1 - fraction[:, 1]
            )
            index = (y * w + x).long().flatten(1)[..., None]
            loss = loss - share.flatten(1) * log_p.gather(-1, index)[..., 0]
    mask = inside.flatten(1).float()
    return (loss * mask).sum() / mask.sum().clamp(min=1)


def laplace_nll(laplace: Tensor, flow: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Negative log-likelihood of a mixture of two Laplace distributions (SEA-RAFT section 3.2).

    One component has the fixed scale 1 px (log b2 = 0), the other a predicted one, at least as
    wide. The flow is not moved by this loss: it only learns to tell its own error.

    Args:
        laplace: ``(B, 3, H, W)``, two weight logits and raw log b1 (clamped to 0-10).
        flow, target: ``(B, 2, H, W)`` px; valid: ``(B, 1, H, W)`` in {0, 1}.
    """
    error = (flow.detach() - target).abs()
    log_weights = laplace[:, :2].log_softmax(dim=1)
    log_b = torch.cat([laplace[:, 2:].clamp(0, 10), torch.zeros_like(laplace[:, 2:])], dim=1)
    # u and v share the weights and scales.
    terms = (
        log_weights[:, :, None]
        - math.log(2)
        - log_b[:, :, None]
        - error[:, None] / log_b[:, :, None].exp()
    )
    nll = -terms.logsumexp(dim=1).sum(dim=1, keepdim=True)
    return (nll * valid).sum() / valid.sum().clamp(min=1)
