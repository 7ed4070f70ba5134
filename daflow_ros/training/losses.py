# SPDX-License-Identifier: Apache-2.0
"""Losses of flow training."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from daflow_ros.models.correlation import coords_grid
from daflow_ros.models.flow_output import FlowOutput, laplace_scales


def sequence_loss(
    output: FlowOutput,
    flow: Tensor,
    valid: Tensor,
    gamma: float = 0.8,
    balance: float = 0.0,
    weight: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """RAFT's loss, sum of gamma^(M - i) |f_i - f*|_1 over the iterations (DA-Flow section 3.4).

    All but the last prediction are compared at the resolution where they live: upsampling each
    would cost more than the update itself.

    Args:
        output: of the network.
        flow: ``(B, 2, H, W)`` px; valid: ``(B, 1, H, W)`` in {0, 1}.
        gamma: weight of an iteration relative to the next.
        balance: px; a clip with mean error e counts 1 / (1 + e / balance), so that the few that
            nothing can match do not drown the others. 0 counts all alike.
        weight: ``(B,)`` of the clips, or None for 1.

    Returns:
        The loss in px, and the end-point error ``(B, H, W)`` of the last prediction.
    """
    final = output.flow - flow
    error = final.detach().norm(dim=1)
    counts = flow.new_ones(len(flow))
    if balance:
        mean = (error * valid[:, 0]).mean(dim=(1, 2))
        counts = 1 / (1 + mean / balance)
    if weight is not None:
        counts = counts * weight

    def mean_of(errors: Tensor, weight: Tensor) -> Tensor:
        total = weight.sum(dim=(1, 2, 3)).clamp(min=1)
        return (counts * (errors * weight).abs().sum(dim=(1, 2, 3)) / (2 * total)).mean()

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
        loss = loss + gamma ** (last - i) * mean_of(factor * prediction - low, weight)
    return loss + mean_of(final, valid), error


def blend_weight(flows: Tensor, flow: Tensor, valid: Tensor) -> Tensor:
    """What each clip counts when a blend is trained, ``(B,)``, 0.1 to 3.

    On generated clips the matcher is as often right as the chosen flow, on real pairs less often.
    Clips where the chosen flow is the better one, and good, count more, so that the blend learns
    when to trust the matcher among pairs like those that it is for.

    Args:
        flows: ``(B, K, 2, H, W)`` px, the chosen one first, then the matcher's.
        flow: ``(B, 2, H, W)`` px; valid: ``(B, 1, H, W)`` in {0, 1}.
    """
    error = ((flows[:, :2].detach().float() - flow[:, None]).norm(dim=2) * valid).mean(dim=(2, 3))
    chosen, matched = error.clamp(min=1e-3).unbind(dim=1)
    better = ((matched / chosen).log() / 0.15).sigmoid()
    return (0.1 + 0.9 * better) * (1 + 2 * (chosen < 2))


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


def selection_loss(selections: list[tuple[Tensor, Tensor]], flow: Tensor, valid: Tensor) -> Tensor:
    """Cross-entropy of a fusion's weights against a soft choice of the best candidate.

    Where the blend is off, the loss of the flow says only that; this one says which candidate
    was right. Pixels count by how much there is to choose, full from 3 px on.

    Args:
        selections: of each round, log-weights ``(B, K, h, w)`` and candidates
            ``(B, K, 2, h, w)`` in 1/4-resolution px.
        flow: ``(B, 2, H, W)`` px; valid: ``(B, 1, H, W)`` in {0, 1}.
    """
    share = F.avg_pool2d(valid, 4)
    low = F.avg_pool2d(flow * valid, 4) / share.clamp(min=1e-3)
    loss = flow.new_zeros(())
    for log_weights, candidates in selections:
        error = (4 * candidates.detach().float() - low[:, None]).norm(dim=2)
        least = error.min(dim=1, keepdim=True).values
        target = (-(error - least) / (0.04 + 0.15 * least)).softmax(dim=1)
        worth = ((error.max(dim=1).values - least[:, 0]) / 3).clamp(max=1) * (share[:, 0] > 0.5)
        entropy = -(target * log_weights.clamp(min=-30)).sum(dim=1)
        loss = loss + (entropy * worth).sum() / worth.sum().clamp(min=1)
    return loss / max(len(selections), 1)


def choice_loss(
    log_shares: Tensor, candidates: Tensor, flow: Tensor, valid: Tensor
) -> tuple[Tensor, Tensor]:
    """What a choice and the blend of candidates miss the flow by; a clip that is lost counts less.

    Args:
        log_shares: ``(B, K + 1, h, w)``; candidates: ``(B, K + 1, 2, h, w)`` in 1/4-resolution
            px, the propagated flow last.
        flow: ``(B, 2, 4h, 4w)`` px; valid: ``(B, 1, 4h, 4w)`` in {0, 1}.

    Returns:
        The loss, and the mean end-point error of the blend ``(B,)`` in px.
    """
    part = F.avg_pool2d(valid, 4)
    low = F.avg_pool2d(flow * valid, 4) / part.clamp(min=1e-3) / 4
    seen = part[:, 0] > 0.5
    share = log_shares.exp()
    each = 4 * (candidates - low[:, None]).norm(dim=2) * seen[:, None]
    expected = (share * each).sum(dim=1).mean(dim=(1, 2))
    propagated = each[:, -1].mean(dim=(1, 2))
    blend = (share[:, :, None] * candidates).sum(dim=1) - low
    blend = (4 * blend.norm(dim=1) * seen).mean(dim=(1, 2))
    counts = 1 / (1 + blend.detach())
    loss = (counts * (0.4 * expected + blend + 0.3 * propagated)).mean()
    loss = loss + 0.1 * selection_loss([(log_shares, candidates)], flow, valid)
    return loss, blend.detach()


def laplace_nll(laplace: Tensor, flow: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    """Negative log-likelihood of a mixture of two Laplace distributions (SEA-RAFT section 3.2).

    The flow is not moved by this loss: it only learns to tell its own error.

    Args:
        laplace: ``(B, 4, H, W)`` two weight logits and two log scales, or ``(B, 3, H, W)`` as
            SEA-RAFT has it: log b1 is at least 0, log b2 = 0.
        flow, target: ``(B, 2, H, W)`` px; valid: ``(B, 1, H, W)`` in {0, 1}.
    """
    error = (flow.detach() - target).abs()
    log_weights = laplace[:, :2].log_softmax(dim=1)
    log_b = laplace_scales(laplace)
    # u and v share the weights and scales.
    terms = (
        log_weights[:, :, None]
        - math.log(2)
        - log_b[:, :, None]
        - error[:, None] / log_b[:, :, None].exp()
    )
    nll = -terms.logsumexp(dim=1).sum(dim=1, keepdim=True)
    return (nll * valid).sum() / valid.sum().clamp(min=1)
