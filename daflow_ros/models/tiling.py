# SPDX-License-Identifier: Apache-2.0
"""Tiles with overlap, for images above a pixel budget.

All-pairs attention and correlation grow with the square of the image; tiles bound them. A motion
that leaves its tile by more than the overlap cannot be matched there, so tiling is a fallback for
memory and not a way to save time. Where tiles overlap, their results are blended linearly.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from daflow_ros.models.flow_output import FlowOutput

#: frames (B, F, 3, H, W) in [-1, 1], iterations, initial flow (B, 2, H, W) px or None, hypotheses
#: (B, K + M, 2, H, W) px or None -> one pair each.
Predict = Callable[[Tensor, int, Tensor | None, Tensor | None], FlowOutput]


def tile_starts(length: int, tile: int, overlap: int) -> list[int]:
    """First pixels of the tiles along one side, multiples of 8, evenly spread, all covered.

    Args:
        length: px of the side, a multiple of 8.
        tile: px of a tile, a multiple of 8, more than ``overlap``.
        overlap: least px that neighbours share, a multiple of 8.

    Raises:
        ValueError: numbers that break these rules.
    """
    if length % 8 or tile % 8 or overlap % 8 or not 0 <= overlap < tile:
        raise ValueError(f'length {length}, tile {tile} and overlap {overlap} do not fit')
    if tile >= length:
        return [0]
    count = math.ceil((length - overlap) / (tile - overlap))
    last = length - tile
    return [last * i // (count - 1) // 8 * 8 for i in range(count)]


def _ramp(start: int, tile: int, length: int, overlap: int) -> Tensor:
    """Weights of a tile along one side: 1, falling towards borders that a neighbour shares."""
    at = torch.arange(tile) + 0.5
    weight = torch.ones(tile)
    if start > 0:
        weight = torch.minimum(weight, at / max(overlap, 1))
    if start + tile < length:
        weight = torch.minimum(weight, (tile - at) / max(overlap, 1))
    return weight


def predict_tiled(
    predict: Predict,
    frames: Tensor,
    iterations: int,
    initial_flow: Tensor | None,
    hypotheses: Tensor | None,
    pixel_budget: int,
    multiple: int,
    overlap: int = 128,
    max_side: int = 1 << 30,
) -> FlowOutput:
    """Run ``predict`` whole where the image fits into ``pixel_budget``, else in tiles.

    Args:
        predict: the network.
        frames: ``(B, F, 3, H, W)``, H and W multiples of ``multiple``.
        iterations: refinement iterations.
        initial_flow: ``(B, 2, H, W)`` px, or None.
        hypotheses: ``(B, K + M, 2, H, W)`` or None.
        pixel_budget: px of a tile at most.
        multiple: what a tile's sides have to divide by.
        overlap: px that neighbours share at least.
        max_side: px of a tile's side at most.

    Returns:
        Flow and ``laplace`` of the whole image; ``flows_low`` is empty where tiles were used.

    Raises:
        ValueError: a budget too small for one tile and its overlap.
    """
    height, width = frames.shape[-2:]
    if height * width <= pixel_budget and max(height, width) <= max_side:
        return predict(frames, iterations, initial_flow, hypotheses)
    # As square as the image allows: a side that is short already is kept whole.
    side = min(math.isqrt(pixel_budget), max_side) // multiple * multiple
    tile_h = min(height, side)
    tile_w = min(width, pixel_budget // max(tile_h, 1), max_side) // multiple * multiple
    tile_h = min(height, pixel_budget // max(tile_w, 1), max_side) // multiple * multiple
    if min(tile_h, tile_w) <= overlap and (tile_h < height or tile_w < width):
        raise ValueError(
            f'a pixel budget of {pixel_budget} gives tiles of {tile_w}x{tile_h}, '
            f'too small for an overlap of {overlap}'
        )
    flow: Tensor | None = None
    laplace: Tensor | None = None
    total = torch.zeros(1, 1, height, width, device=frames.device)
    for top in tile_starts(height, tile_h, overlap):
        for left in tile_starts(width, tile_w, overlap):
            rows, columns = slice(top, top + tile_h), slice(left, left + tile_w)
            start = None
            if initial_flow is not None:
                start = initial_flow[..., rows, columns]
            others = None if hypotheses is None else hypotheses[..., rows, columns]
            out = predict(frames[..., rows, columns], iterations, start, others)
            weight = _ramp(top, tile_h, height, overlap)[:, None] * _ramp(
                left, tile_w, width, overlap
            )
            weight = weight.to(frames.device)
            total[..., rows, columns] += weight
            if flow is None:
                flow = out.flow.new_zeros(*out.flow.shape[:2], height, width)
                if out.laplace is not None:
                    laplace = out.laplace.new_zeros(*out.laplace.shape[:2], height, width)
            flow[..., rows, columns] += weight * out.flow
            if laplace is not None and out.laplace is not None:
                laplace[..., rows, columns] += weight * out.laplace
    if flow is None:
        raise ValueError('no tile was run')
    return FlowOutput(flow / total, [], None if laplace is None else laplace / total)
