# SPDX-License-Identifier: Apache-2.0
"""Lifting: full spatio-temporal MM-attention (DA-Flow, section 3.1).

The restoration transformer attends within one frame. DA-Flow lifts it to F frames without any
new parameter: only inside the attention call, each stream (noisy, degraded, text) goes
(B F) x T x C -> B x (F T) x C, and one softmax runs over all frames and all streams. Norms,
projections, MLP and convolutions stay per frame. There is no temporal position: each frame
keeps the same spatial position, so permuting the frames permutes the outputs.

The streams of a frame come here already concatenated along the token axis. A softmax does not
depend on the order of its keys, so folding (B F) x N -> B x (F N) is the paper's operation, and
for F = 1 it is the unlifted attention bit for bit. The F*N x F*N matrix is never stored:
`scaled_dot_product_attention` works block by block.
"""

from __future__ import annotations

import torch
from torch.nn import functional


def lifted_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_frames: int = 1
) -> torch.Tensor:
    """Attend over the tokens of all frames of a clip at once.

    Args:
        query: (B * F, N, heads, head_dim), the frames of a clip adjacent in the batch.
        key: likewise.
        value: likewise.
        num_frames: F, at least 1.

    Returns:
        (B * F, N, heads * head_dim). Scale 1 / sqrt(head_dim).

    Raises:
        ValueError: the batch is not a multiple of `num_frames`.
    """
    batch, tokens, heads, head_dim = query.shape
    if num_frames < 1 or batch % num_frames:
        raise ValueError(f'a batch of {batch} frames does not divide into clips of {num_frames}')
    clips = batch // num_frames
    lifted = (clips, num_frames * tokens, heads, head_dim)
    query, key, value = (x.reshape(lifted).transpose(1, 2) for x in (query, key, value))
    out = functional.scaled_dot_product_attention(query, key, value)
    return out.transpose(1, 2).reshape(batch, tokens, heads * head_dim)
