# SPDX-License-Identifier: Apache-2.0
"""True flow disturbed as a flow chosen among hypotheses is: what refinement starts from.

Edges of motion are a few px off, small things move with what is about them, whole areas follow
something else, and all of it is a little wrong.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.training.textures import uniform


def _noise(batch: int, cells: int, flow: Tensor, g: torch.Generator) -> Tensor:
    """Smooth noise ``(B, 2, H, W)`` of about unit variance."""
    coarse = torch.randn((batch, 2, cells, cells), generator=g, device=flow.device)
    return F.interpolate(coarse, size=flow.shape[-2:], mode='bilinear', align_corners=True)


def _value_at(flow: Tensor, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Flow at one random px of each sample ``(B, 2, 1, 1)``, and the px ``(B, 2)``, x first."""
    b, _, h, w = flow.shape
    draws = torch.rand((b, 2), generator=g, device=flow.device)
    x, y = (draws[:, 0] * w).long(), (draws[:, 1] * h).long()
    value = flow[torch.arange(b, device=flow.device), :, y, x]
    return value[:, :, None, None], torch.stack([x, y], dim=1).float()


@torch.no_grad()
def disturbed(flow: Tensor, generator: torch.Generator, cold: float = 0.35) -> Tensor:
    """A start for each true flow ``(B, 2, H, W)`` px; a share ``cold`` of them is no motion."""
    g = generator
    b, _, h, w = flow.shape
    device = flow.device
    y, x = torch.meshgrid(
        torch.arange(h, device=device), torch.arange(w, device=device), indexing='ij'
    )
    grid = torch.stack([x, y]).float()
    shape = (b, 1, 1, 1)
    # Edges a few px aside.
    off = uniform(shape, 0, 1, g) ** 2 * 4.0 * _noise(b, 24, flow, g)
    place = grid + off
    place = 2 * place / place.new_tensor([w - 1, h - 1])[:, None, None] - 1
    start = F.grid_sample(
        flow, place.permute(0, 2, 3, 1), mode='nearest', padding_mode='border', align_corners=True
    )
    whole = flow.flatten(2).median(dim=2).values[..., None, None]
    for _ in range(3):
        # What moves alike about one px takes another motion: of all, of another px, or none.
        value, at = _value_at(flow, g)
        far = (grid - at[:, :, None, None]).norm(dim=1, keepdim=True)
        alike = (flow - value).norm(dim=1, keepdim=True) < 1.5
        alike &= far < uniform(shape, 10, 90, g)
        other, _ = _value_at(flow, g)
        kind = uniform(shape, 0, 1, g)
        wrong = torch.where(kind < 0.55, whole, torch.where(kind < 0.85, other, 0 * other))
        start = torch.where(alike & (uniform(shape, 0, 1, g) < 0.3), wrong, start)
    # Blobs anywhere follow something else.
    blob = _noise(b, 7, flow, g)[:, :1] > uniform(shape, 1.0, 2.2, g)
    other, _ = _value_at(flow, g)
    start = torch.where(blob & (uniform(shape, 0, 1, g) < 0.35), other, start)
    for cells, most in ((5, 1.2), (20, 0.7)):
        amount = torch.exp(uniform(shape, math.log(0.02), math.log(most), g))
        start = start + amount * _noise(b, cells, flow, g)
    start = start * (1 - 0.06 * torch.randn(shape, generator=g, device=device).abs())
    return torch.where(uniform(shape, 0, 1, g) < cold, 0 * start, start)
