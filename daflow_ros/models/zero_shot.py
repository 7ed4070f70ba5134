# SPDX-License-Identifier: Apache-2.0
"""Zero-shot flow: correspondence straight from the transformer (DA-Flow, section 3.2).

The probe by which the paper chose its layers: the cost of a layer is the inner product of the
queries of frame k and the keys of frame k + 1, its soft-argmax is the match, and the result is
upsampled; nothing is trained. The paper gives no temperature and no window. Ours: the attention's
own logits, q . k / sqrt(head_dim) averaged over the heads, and the softmax over a window around
the best match, since over all tokens the mean is pulled to the middle of the image.

Shapes: queries, keys (B, T, heads, head_dim); flow (B, 2, h, w) in tokens, then px.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from daflow_ros.models.correlation import coords_grid
from daflow_ros.models.daflow import DAFlow
from daflow_ros.models.flow_output import FlowOutput


def match(query: Tensor, key: Tensor, grid: tuple[int, int], radius: int = 2) -> Tensor:
    """Soft-argmax displacement of each token of the first frame.

    Args:
        query: ``(B, T, heads, head_dim)`` of frame k.
        key: the same of frame k + 1.
        grid: (h, w) with h * w = T.
        radius: half-width of the window around the best match, in tokens.

    Returns:
        ``(B, 2, h, w)`` in tokens, x first.
    """
    batch, tokens, heads, head_dim = query.shape
    height, width = grid
    scale = 1 / (heads * head_dim**0.5)
    position = coords_grid(1, height, width, query.device)[0].flatten(1).T  # (T, 2)
    out = query.new_empty(batch, tokens, 2, dtype=torch.float32)
    flat_key = key.flatten(2).float().transpose(1, 2)
    for first in range(0, tokens, 1024):  # bounds the cost volume held at once
        part = slice(first, first + 1024)
        cost = (query[:, part].flatten(2).float() @ flat_key) * scale
        best = position[cost.argmax(-1)]
        near = ((position - best[:, :, None]).abs() <= radius).all(-1)
        weight = cost.masked_fill(~near, float('-inf')).softmax(-1)
        out[:, part] = weight @ position - position[part]
    return out.transpose(1, 2).reshape(batch, 2, height, width)


def upsample(flow: Tensor, stride: int) -> Tensor:
    """Flow in tokens to flow in px: ``(B, 2, h, w)`` -> ``(B, 2, stride h, stride w)``."""
    return stride * functional.interpolate(
        flow, scale_factor=stride, mode='bilinear', align_corners=False
    )


@torch.inference_mode()
def layer_flows(
    model: DAFlow, images: Tensor, layers: Sequence[int], steps: int = 1, radius: int = 2
) -> Iterator[tuple[int, int, Tensor]]:
    """Zero-shot flow of the last pair of each clip, per denoising step and layer.

    Args:
        model: only its latent encoder and transformer are used.
        images: ``(B, F, 3, H, W)`` in [-1, 1], H and W multiples of ``model.multiple``.
        layers: 0-based.
        steps: denoising steps.
        radius: see `match`.

    Yields:
        (step, layer, flow ``(B, 2, H, W)`` px).
    """
    frames = images.shape[1]
    config = model.transformer.config
    stride = model.latent.factor * config.patch_size
    latent = model.latent.encode(images.flatten(0, 1))
    heads = config.num_attention_heads
    for step, features in enumerate(model.iterate_features(latent, frames, steps, taps=layers)):
        for layer, query, key in zip(layers, features.queries, features.keys, strict=True):
            flow = match(
                query[:, -2].unflatten(-1, (heads, -1)),
                key[:, -1].unflatten(-1, (heads, -1)),
                features.grid,
                radius,
            )
            yield step, layer, upsample(flow, stride)


def zero_shot_flow(model: DAFlow, images: Tensor, layer: int, steps: int = 1) -> FlowOutput:
    """Zero-shot flow of one layer at the last of ``steps``, as a network's output."""
    flow = next(f for s, _, f in layer_flows(model, images, [layer], steps) if s == steps - 1)
    return FlowOutput(flow, [])
