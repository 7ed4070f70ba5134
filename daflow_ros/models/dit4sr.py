# SPDX-License-Identifier: Apache-2.0
"""DiT4SR, the restoration transformer whose features DA-Flow uses (DA-Flow, sections 3.1 and 3.2).

SD3.5's MM-DiT with a third stream: tokens of the noisy latent ("HQ"), of the degraded image's
latent ("LQ") and of the text. HQ and LQ tokens share every projection; the LQ ones pass through
additional `*_control` layers. Source: "DiT4SR: Taming Diffusion Transformer for Real-World Image
Super-Resolution" and its public checkpoints, whose parameter names are kept.

Shapes: latents (B F, C, H', W'); tokens T = (H' / patch) * (W' / patch), any aspect ratio;
hidden states (B F, 2 T, width), HQ first. F frames of a clip are adjacent in the batch and meet
only in the attention (`lifting.py`).

The weights carry a quirk that has to be reproduced: the LQ keys are the HQ keys, normalised a
second time, and `to_k_control` is dead (`lq_keys='hq'`). A network trained from nothing may use
what was evidently meant, keys of the LQ tokens themselves (`lq_keys='own'`).

Parameters of the checkpoints that nothing reads are dropped on loading: `to_k_control` (with
`lq_keys='hq'`) and the text projections of `attn2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.embeddings import CombinedTimestepTextProjEmbeddings, PatchEmbed
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.normalization import (
    AdaLayerNormContinuous,
    AdaLayerNormZero,
    SD35AdaLayerNormZeroX,
)
from torch import nn

from daflow_ros.models.dit4sr_blocks import DiT4SRBlock, TapBlock


@dataclass
class DiT4SROutput:
    """What one pass returns.

    sample : (B F, out_channels, H', W'), the predicted velocity; None where the pass stopped at
        the last tap.
    queries, keys : layer -> (B F, heads, T, head_dim), of the HQ stream, after the RMS norm,
        before lifting.
    """

    sample: torch.Tensor | None
    queries: dict[int, torch.Tensor] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)


class DiT4SRTransformer(ModelMixin, ConfigMixin):
    """The DiT4SR denoiser, lifted to F frames; the defaults are the published size.

    Args:
        sample_size: latent side that the position grid is normalised to.
        patch_size, in_channels, out_channels: of the latents (out_channels None: as in_channels).
        num_layers, num_attention_heads, attention_head_dim: blocks; width = heads * head_dim.
        joint_attention_dim, pooled_projection_dim: widths of the text tokens and the pooled text.
        caption_projection_dim: has to equal the width.
        pos_embed_max_size: tokens a side that positions exist for.
        dual_attention_layers: blocks with the second attention over HQ and LQ.
        qk_norm: 'rms_norm', the only one that DiT4SR has.
        control_scale: weight of the convolved LQ hidden state in the MLP; upstream 1.0 in
            training, 1.2 at inference.
        lq_keys: 'hq' (the checkpoints' quirk) or 'own'.
        truncate_at: keep nothing that taps up to this layer do not need (such a network cannot
            denoise); None keeps all.

    Raises:
        ValueError: a configuration that is not a DiT4SR.
    """

    _keys_to_ignore_on_load_unexpected = [
        r'\.to_k_control\.',
        r'\.attn2\.add_[qkv]_proj\.',
        r'\.attn2\.to_add_out\.',
        r'\.attn2\.norm_added_[qk]\.',
    ]

    @register_to_config
    def __init__(
        self,
        sample_size: int = 128,
        patch_size: int = 2,
        in_channels: int = 16,
        num_layers: int = 24,
        attention_head_dim: int = 64,
        num_attention_heads: int = 24,
        joint_attention_dim: int = 4096,
        caption_projection_dim: int = 1536,
        pooled_projection_dim: int = 2048,
        out_channels: int | None = None,
        pos_embed_max_size: int = 384,
        dual_attention_layers: Sequence[int] = tuple(range(13)),
        qk_norm: str | None = 'rms_norm',
        control_scale: float = 1.2,
        lq_keys: str = 'hq',
        truncate_at: int | None = None,
    ) -> None:
        super().__init__()
        width = num_attention_heads * attention_head_dim
        if width < 4 or width % 4:
            raise ValueError(f'width {width} (heads x head_dim) must be a positive multiple of 4')
        if caption_projection_dim != width:
            raise ValueError(
                f'caption_projection_dim {caption_projection_dim} must equal the width {width}'
                f' = {num_attention_heads} heads x {attention_head_dim}'
            )
        if qk_norm != 'rms_norm':
            raise ValueError(f"qk_norm must be 'rms_norm', not {qk_norm!r}")
        if lq_keys not in ('hq', 'own'):
            raise ValueError(f"lq_keys must be 'hq' or 'own', not {lq_keys!r}")
        if num_layers < 1 or any(not 0 <= i < num_layers for i in dual_attention_layers):
            raise ValueError(
                f'dual_attention_layers {tuple(dual_attention_layers)} must lie in'
                f' 0..{num_layers - 1}'
            )
        if sample_size % patch_size or sample_size < patch_size:
            raise ValueError(f'sample_size {sample_size} must be a multiple of patch {patch_size}')
        self.width = width
        self.out_channels = in_channels if out_channels is None else out_channels
        self.pos_embed = PatchEmbed(
            height=sample_size,
            width=sample_size,
            patch_size=patch_size,
            in_channels=in_channels,
            embed_dim=width,
            pos_embed_max_size=pos_embed_max_size,
        )
        self.time_text_embed = CombinedTimestepTextProjEmbeddings(
            embedding_dim=width, pooled_projection_dim=pooled_projection_dim
        )
        self.context_embedder = nn.Linear(joint_attention_dim, caption_projection_dim)
        if truncate_at is not None and not 0 <= truncate_at < num_layers:
            raise ValueError(f'truncate_at {truncate_at} must lie in 0..{num_layers - 1}')
        heads, head_dim = num_attention_heads, attention_head_dim
        self.transformer_blocks = nn.ModuleList(
            DiT4SRBlock(heads, head_dim, i in dual_attention_layers, i == num_layers - 1, lq_keys)
            for i in range(num_layers if truncate_at is None else truncate_at)
        )
        if truncate_at is not None:
            dual = truncate_at in dual_attention_layers
            self.transformer_blocks.append(TapBlock(heads, head_dim, dual))
            return
        self.norm_out = AdaLayerNormContinuous(width, width, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(width, patch_size * patch_size * self.out_channels)

    def initialise(self) -> None:
        """Initial weights for training from nothing (upstream starts from SD3.5 instead).

        An ordinary pre-norm transformer: modulation starts as the identity with every gate at 1,
        linear layers Xavier, outputs onto the residual scaled by 1 / sqrt(2 x layers), the last
        projection at zero.
        """
        scale = (2 * len(self.transformer_blocks)) ** -0.5
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
                if name.endswith(('to_out.0', 'to_out_control', 'to_add_out', 'net.2')):
                    module.weight.data.mul_(scale)
        for module in self.modules():
            if isinstance(module, (AdaLayerNormZero, SD35AdaLayerNormZeroX)):
                nn.init.zeros_(module.linear.weight)
                parts = module.linear.bias.data.chunk(len(module.linear.bias) // self.width)
                for part in (parts[2], parts[5], *parts[8:]):  # gates, after shift and scale
                    part.fill_(1.0)
            elif isinstance(module, AdaLayerNormContinuous):
                nn.init.zeros_(module.linear.weight)
        if self.config.truncate_at is None:
            nn.init.zeros_(self.proj_out.weight)

    def forward(
        self,
        hidden_states: torch.Tensor,
        lq: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        num_frames: int = 1,
        taps: Sequence[int] = (),
        stop_after_last_tap: bool = True,
        control_scale: float | None = None,
    ) -> DiT4SROutput:
        """Predict the velocity of the noisy latent and tap queries and keys on the way.

        Args:
            hidden_states: (B F, in_channels, H', W') noisy latent.
            lq: (B F, in_channels, H', W') latent of the degraded frames.
            encoder_hidden_states: (B F or 1, L, joint_attention_dim) text tokens, L >= 1.
            pooled_projections: (B F or 1, pooled_projection_dim).
            timestep: (B F,) or (1,), 1000 x sigma.
            num_frames: F; the frames of a clip are adjacent in the batch.
            taps: layers, 0-based, whose HQ queries and keys are returned.
            stop_after_last_tap: with taps, run nothing that the last tap does not need: its block
                ends at norm1 and the two projections, and there is no `sample`.
            control_scale: overrides the configuration's.

        Raises:
            ValueError: shapes that do not fit each other, or taps outside the network.
        """
        batch, _, height, width = hidden_states.shape
        patch = self.config.patch_size
        layers = len(self.transformer_blocks)
        if lq.shape != hidden_states.shape:
            raise ValueError(f'lq {tuple(lq.shape)} against noise {tuple(hidden_states.shape)}')
        if height % patch or width % patch:
            raise ValueError(f'latent {height} x {width} does not divide by the patch {patch}')
        if any(not 0 <= i < layers for i in taps):
            raise ValueError(f'taps {tuple(taps)} must lie in 0..{layers - 1}')
        if control_scale is None:
            control_scale = self.config.control_scale
        grid = (height // patch, width // patch)
        text = self.context_embedder(encoder_hidden_states).expand(batch, -1, -1)
        temb = self.time_text_embed(timestep.expand(batch), pooled_projections.expand(batch, -1))
        tokens = torch.cat([self.pos_embed(hidden_states), self.pos_embed(lq)], dim=1)
        stop = max(taps) if taps and stop_after_last_tap else layers
        if self.config.truncate_at is not None and stop == layers:
            raise ValueError('a truncated network only taps: pass taps, stop_after_last_tap=True')
        out = DiT4SROutput(None)
        blocks: Any = self.transformer_blocks
        for i, block in enumerate(blocks):
            if i == stop:
                query, key = block.hq_query_key(tokens[:, : grid[0] * grid[1]], temb)
            else:
                tokens, text, query, key = block(
                    tokens,
                    text,
                    temb,
                    grid,
                    num_frames,
                    control_scale,
                    hq_only=i + 1 in (stop, layers),
                )
            if i in taps:
                out.queries[i] = query.transpose(1, 2)
                out.keys[i] = key.transpose(1, 2)
            if i == stop:
                return out
        tokens = self.proj_out(self.norm_out(tokens, temb))
        tokens = tokens.reshape(batch, *grid, patch, patch, self.out_channels)
        out.sample = tokens.permute(0, 5, 1, 3, 2, 4).reshape(batch, -1, height, width)
        return out
