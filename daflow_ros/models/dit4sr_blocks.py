# SPDX-License-Identifier: Apache-2.0
"""The blocks of DiT4SR: attention and MLP over HQ, LQ and text tokens (see `dit4sr.py`).

Source: "DiT4SR: Taming Diffusion Transformer for Real-World Image Super-Resolution" and its
public checkpoints, whose parameter names are kept.

Shapes: hidden states (B F, 2 T, width), HQ first; text (B F, L, width).
"""

from __future__ import annotations

import torch
from diffusers.models.activations import GELU
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    RMSNorm,
    SD35AdaLayerNormZeroX,
)
from torch import nn

from daflow_ros.models.lifting import lifted_attention


class FeedForward(nn.Module):
    """MLP of the text stream: (B, L, width) -> (B, L, width), hidden width 4 x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.net = nn.ModuleList(
            [
                GELU(width, 4 * width, approximate='tanh'),
                nn.Identity(),
                nn.Linear(4 * width, width),
            ]
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Run the MLP."""
        return self.net[2](self.net[0](tokens))


class ControlFeedForward(FeedForward):
    """MLP of HQ and LQ; a depthwise 3x3 of the hidden LQ map is added to the hidden HQ."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        hidden = 4 * width
        self.control_conv = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)

    def forward(  # type: ignore[override]
        self, tokens: torch.Tensor, grid: tuple[int, int], control_scale: float, hq_only: bool
    ) -> torch.Tensor:
        """(B F, 2 T, width) on the token grid (h, w) -> the same, or its HQ half alone."""
        hidden = self.net[0](tokens)
        hq, lq = hidden.chunk(2, dim=1)
        batch, count, channels = lq.shape
        image = lq.reshape(batch, *grid, channels).permute(0, 3, 1, 2)
        control = self.control_conv(image).permute(0, 2, 3, 1).reshape(batch, count, channels)
        hq = hq + control_scale * control
        return self.net[2](hq if hq_only else torch.cat([hq, lq], dim=1))


class TapAttention(nn.Module):
    """The part of an attention layer that a tap reads: normed query and key projections."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        width = heads * head_dim
        self.heads = heads
        self.norm_q = RMSNorm(head_dim, eps=1e-6)
        self.norm_k = RMSNorm(head_dim, eps=1e-6)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)

    def _split(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.unflatten(-1, (self.heads, -1))

    def hq_query_key(self, hq: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Query and key of the HQ tokens alone: (B, T, width) -> 2 x (B, T, heads, head_dim)."""
        query = self.norm_q(self._split(self.to_q(hq)))
        return query, self.norm_k(self._split(self.to_k(hq)))


class ControlAttention(TapAttention):
    """Attention over HQ, LQ and, where `text` is set, the text tokens of all frames."""

    def __init__(
        self, heads: int, head_dim: int, text: bool, text_out: bool, lq_keys: str
    ) -> None:
        super().__init__(heads, head_dim)
        width = heads * head_dim
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        self.to_q_control = nn.Linear(width, width)
        self.to_k_control = nn.Linear(width, width) if lq_keys == 'own' else None
        self.to_v_control = nn.Linear(width, width)
        self.to_out_control = nn.Linear(width, width)
        if text:
            self.add_q_proj = nn.Linear(width, width)
            self.add_k_proj = nn.Linear(width, width)
            self.add_v_proj = nn.Linear(width, width)
            self.norm_added_q = RMSNorm(head_dim, eps=1e-6)
            self.norm_added_k = RMSNorm(head_dim, eps=1e-6)
        self.to_add_out = nn.Linear(width, width) if text and text_out else None

    def forward(
        self, tokens: torch.Tensor, text: torch.Tensor | None, num_frames: int
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor, torch.Tensor]:
        """Attend.

        Args:
            tokens: (B F, 2 T, width), HQ then LQ, normalised and modulated.
            text: (B F, L, width) or None.
            num_frames: F.

        Returns:
            tokens, text (None without its output projection), HQ query, HQ key (B F, T, heads, D).
        """
        count = tokens.shape[1] // 2
        hq, lq = tokens[:, :count], tokens[:, count:]
        q_hq, k_hq = self.hq_query_key(hq)
        v_hq = self._split(self.to_v(hq))
        q_lq = self.norm_q(self._split(self.to_q_control(self.to_q(lq))))
        v_lq = self._split(self.to_v_control(self.to_v(lq)))
        if self.to_k_control is None:
            k_lq = self.norm_k(k_hq)
        else:
            k_lq = self.norm_k(self._split(self.to_k_control(self.to_k(lq))))
        queries, keys, values = [q_hq, q_lq], [k_hq, k_lq], [v_hq, v_lq]
        if text is not None:
            queries.append(self.norm_added_q(self._split(self.add_q_proj(text))))
            keys.append(self.norm_added_k(self._split(self.add_k_proj(text))))
            values.append(self._split(self.add_v_proj(text)))
        out = lifted_attention(
            torch.cat(queries, 1), torch.cat(keys, 1), torch.cat(values, 1), num_frames
        )
        out_hq, out_lq, out_text = out[:, :count], out[:, count : 2 * count], out[:, 2 * count :]
        out = torch.cat([self.to_out[0](out_hq), self.to_out_control(out_lq + lq)], dim=1)
        text_out = None if self.to_add_out is None else self.to_add_out(out_text)
        return out, text_out, q_hq, k_hq


class TapBlock(nn.Module):
    """What remains of the last tapped block where nothing after it ever runs."""

    def __init__(self, heads: int, head_dim: int, dual_attention: bool) -> None:
        super().__init__()
        width = heads * head_dim
        self.norm1 = SD35AdaLayerNormZeroX(width) if dual_attention else AdaLayerNormZero(width)
        self.attn = TapAttention(heads, head_dim)

    def hq_query_key(
        self, hq: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tap only: norm1 and the query and key projections of the HQ tokens (B F, T, width)."""
        return self.attn.hq_query_key(self.norm1(hq, emb=temb)[0])


class DiT4SRBlock(nn.Module):
    """One MM-DiT block: adaptive norms, joint attention, optional second attention, MLPs."""

    def __init__(
        self, heads: int, head_dim: int, dual_attention: bool, last: bool, lq_keys: str
    ) -> None:
        super().__init__()
        width = heads * head_dim
        self.last = last
        self.norm1 = SD35AdaLayerNormZeroX(width) if dual_attention else AdaLayerNormZero(width)
        if last:
            self.norm1_context: nn.Module = AdaLayerNormContinuous(
                width, width, elementwise_affine=False, eps=1e-6
            )
        else:
            self.norm1_context = AdaLayerNormZero(width)
        self.attn = ControlAttention(heads, head_dim, True, not last, lq_keys)
        self.attn2 = (
            ControlAttention(heads, head_dim, False, False, lq_keys) if dual_attention else None
        )
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.ff = ControlFeedForward(width)
        self.norm2_context = (
            None if last else nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        )
        self.ff_context = None if last else FeedForward(width)

    def hq_query_key(
        self, hq: torch.Tensor, temb: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Tap only: norm1 and the query and key projections of the HQ tokens (B F, T, width)."""
        return self.attn.hq_query_key(self.norm1(hq, emb=temb)[0])

    def forward(
        self,
        tokens: torch.Tensor,
        text: torch.Tensor,
        temb: torch.Tensor,
        grid: tuple[int, int],
        num_frames: int,
        control_scale: float,
        hq_only: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Run the block; with `hq_only` only the HQ tokens come back (nothing reads the others).

        Returns tokens, text, HQ query, HQ key (B F, T, heads, head_dim).
        """
        if self.attn2 is not None:
            normed, gate, shift_mlp, scale_mlp, gate_mlp, normed2, gate2 = self.norm1(
                tokens, emb=temb
            )
        else:
            normed, gate, shift_mlp, scale_mlp, gate_mlp = self.norm1(tokens, emb=temb)
        if self.last:
            normed_text = self.norm1_context(text, temb)
        else:
            normed_text, text_gate, text_shift, text_scale, text_gate_mlp = self.norm1_context(
                text, emb=temb
            )
        attended, attended_text, query, key = self.attn(normed, normed_text, num_frames)
        tokens = tokens + gate[:, None] * attended
        if self.attn2 is not None:
            tokens = tokens + gate2[:, None] * self.attn2(normed2, None, num_frames)[0]
        normed = self.norm2(tokens) * (1 + scale_mlp[:, None]) + shift_mlp[:, None]
        if hq_only:
            tokens = tokens[:, : tokens.shape[1] // 2]
        tokens = tokens + gate_mlp[:, None] * self.ff(normed, grid, control_scale, hq_only)
        if not (hq_only or self.norm2_context is None or self.ff_context is None):
            text = text + text_gate[:, None] * attended_text
            normed_text = self.norm2_context(text) * (1 + text_scale[:, None])
            text = text + text_gate_mlp[:, None] * self.ff_context(
                normed_text + text_shift[:, None]
            )
        return tokens, text, query, key
