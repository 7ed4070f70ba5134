# SPDX-License-Identifier: Apache-2.0
"""DA-Flow: degradation-aware optical flow with diffusion features (arXiv 2603.23499, section 3).

Latents of F successive degraded frames go through a restoration transformer lifted to video
(`dit4sr.py`, `lifting.py`); queries of frame k and keys of frame k + 1, tapped in several layers,
become dense features at H/8 (`dpt.py`) and join those of RAFT's CNN encoders, whose correlation,
GRU and upsampling (`raft.py`) give the flow:

    F_k   = cat(fnet(I_k),   DPT_Q({Q_k}))
    F_k+1 = cat(fnet(I_k+1), DPT_K({K_k+1}))
    ctx   = cat(cnet(I_k),   DPT_ctx({Q_k}))

The fusion starts at zero, so that an untrained DA-Flow is exactly the RAFT it was built on: the
last convolution of DPT_Q is zero (not DPT_K's as well, or neither would ever get a gradient), the
correlation keeps RAFT's 1 / sqrt(channels of fnet), and the columns of the GRU that read the
context features are zero. How the context enters the GRU is not in the paper; here
inp = cat(relu(cnet), relu(DPT_ctx)), net = tanh(cnet).

Shapes: images (B, F, 3, H, W) in [-1, 1], H and W multiples of `DAFlow.multiple`; flow
(B (F - 1), 2, H, W) in px, pair k of a clip from frame k to frame k + 1.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import nn

from daflow_ros.models.dit4sr import DiT4SROutput, DiT4SRTransformer
from daflow_ros.models.dpt import DPTHead
from daflow_ros.models.flow_output import FlowOutput
from daflow_ros.models.latent import PixelUnshuffleEncoder, VAEEncoder
from daflow_ros.models.raft import RAFT, PairFeatures
from daflow_ros.models.raft_sizes import RAFT_TINY


@dataclass
class DiffusionFeatures:
    """Queries and keys of the tapped layers, shallowest first, of one denoising step.

    queries, keys : each (B, F, T, width).
    grid : (h, w), h * w = T.
    sigma : noise level of the step, 1 = pure noise.
    """

    queries: list[torch.Tensor]
    keys: list[torch.Tensor]
    grid: tuple[int, int]
    sigma: float


class DAFlow(ModelMixin, ConfigMixin):
    """The whole model; the defaults are the paper's size, `DAFlow(**DAFLOW_TINY)` the shipped one.

    Args:
        transformer_config: of `DiT4SRTransformer`.
        raft_config: of `RAFT`.
        vae_config: of the `AutoencoderKL`; SD3.5's by default.
        unshuffle_factor: of space-to-depth latents, which then take the place of the VAE's.
        taps: layers, 0-based, increasing.
        text_tokens: length of the stored null text.
        head_channels, feature_channels: width inside the DPT heads, and of each one's output.
        head_scales: levels of the DPT heads in units of the token grid, coarsest first.
        num_frames: F the model is meant for (the network takes any F >= 2).
        prediction: what the transformer's output is, 'velocity' or the clean 'sample'.
        shift: timestep shift of the flow-matching schedule.
        noise_seed: of the fixed starting noise.

    Raises:
        ValueError: parts that do not fit each other.
    """

    @register_to_config
    def __init__(
        self,
        transformer_config: dict[str, Any] | None = None,
        raft_config: dict[str, Any] | None = None,
        vae_config: dict[str, Any] | None = None,
        unshuffle_factor: int | None = None,
        taps: Sequence[int] = (3, 13, 16, 17),
        text_tokens: int = 154,
        head_channels: int = 128,
        feature_channels: int = 128,
        head_scales: Sequence[int] = (1, 1, 2, 2),
        num_frames: int = 3,
        prediction: str = 'velocity',
        shift: float = 3.0,
        noise_seed: int = 0,
    ) -> None:
        super().__init__()
        self.latent: VAEEncoder | PixelUnshuffleEncoder = (
            VAEEncoder(vae_config)
            if unshuffle_factor is None
            else PixelUnshuffleEncoder(unshuffle_factor)
        )
        self.transformer = DiT4SRTransformer(**(transformer_config or {}))
        config = self.transformer.config
        if config.in_channels != self.latent.channels:
            raise ValueError(
                f'transformer.in_channels {config.in_channels} must equal the'
                f' {self.latent.channels} channels of the latent'
            )
        if prediction not in ('velocity', 'sample'):
            raise ValueError(f"prediction must be 'velocity' or 'sample', not {prediction!r}")
        if list(taps) != sorted(set(taps)) or not taps or max(taps) >= config.num_layers:
            raise ValueError(
                f'taps {tuple(taps)} must increase and lie in 0..{config.num_layers - 1}'
            )
        if len(head_scales) != len(taps):
            raise ValueError(f'{len(head_scales)} head_scales for {len(taps)} taps')
        token_stride = self.latent.factor * config.patch_size
        if max(head_scales) * 8 != token_stride:
            raise ValueError(
                f'tokens lie at H/{token_stride}: the finest of head_scales must be'
                f' {token_stride / 8:g} to reach H/8, not {max(head_scales)}'
            )
        raft = raft_config or {}
        #: Height and width must be multiples of this.
        self.multiple = math.lcm(16 if raft.get('num_hypotheses') else 8, token_stride)
        self.taps = tuple(taps)
        width = self.transformer.width
        self.null_text = nn.Parameter(torch.zeros(1, text_tokens, config.joint_attention_dim))
        self.null_pooled = nn.Parameter(torch.zeros(1, config.pooled_projection_dim))

        def head(zero_output: bool) -> DPTHead:
            return DPTHead(width, head_channels, feature_channels, head_scales, zero_output)

        self.dpt_query = head(zero_output=True)
        self.dpt_key = head(zero_output=False)
        self.dpt_context = head(zero_output=False)
        self.raft = RAFT(**{**raft, 'extra_context_dim': feature_channels})
        self.zero_context_columns()
        self._noise: dict[tuple[Any, ...], torch.Tensor] = {}

    def zero_context_columns(self) -> None:
        """Make GRU, choice and fusion deaf to the diffusion features, as at the start."""
        first = self.raft.hidden_dim + self.raft.context_dim
        columns = slice(first, first + self.config.feature_channels)
        for name, module in self.raft.update_block.gru.named_modules():
            if isinstance(module, nn.Conv2d) and name.startswith('conv'):
                with torch.no_grad():
                    module.weight[:, columns] = 0.0
        if self.raft.fusion is not None:
            with torch.no_grad():
                self.raft.fusion.enter.weight[:, self.raft.hidden_dim :] = 0.0
                self.raft.matching.eighth.weight[:, self.raft.config.feature_dim :] = 0.0

    def load_raft(self, raft: RAFT) -> None:
        """Take over the weights of a RAFT without fused features; fusion stays as it is.

        Raises:
            ValueError: a parameter has another shape than this configuration expects.
        """
        first = self.raft.hidden_dim + self.raft.context_dim
        own, given = self.raft.state_dict(), raft.state_dict()
        for name, value in given.items():
            if name not in own:
                raise ValueError(f'raft.{name}: not a parameter of this configuration')
            if name.startswith('update_block.gru.conv') and name.endswith('weight'):
                last = first + self.config.feature_channels
                value = torch.cat(
                    [value[:, :first], own[name][:, first:last], value[:, first:]], 1
                )
            if name == 'fusion.enter.weight':
                value = torch.cat([value, own[name][:, self.raft.hidden_dim :]], 1)
            if name == 'matching.eighth.weight':
                value = torch.cat([value, own[name][:, self.raft.config.feature_dim :]], 1)
            if own[name].shape != value.shape:
                raise ValueError(
                    f'raft.{name}: {tuple(value.shape)} instead of {tuple(own[name].shape)}'
                )
            own[name] = value
        missing = sorted(set(own) - set(given) - {n for n in own if n.startswith('laplace_head.')})
        if missing:
            raise ValueError(f'the RAFT lacks {len(missing)} parameters, first {missing[0]}')
        self.raft.load_state_dict(own)

    def starting_noise(self, latent: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Fixed standard normal noise for latents (B F, C, h, w), cached per shape.

        Drawn on the CPU from `noise_seed`, so that it is the same on every device; the clips of a
        batch share it, the frames of a clip do not (shared noise would match at zero motion).
        """
        shape = (num_frames, *latent.shape[1:])
        key = (shape, latent.device, latent.dtype)
        if key not in self._noise:
            generator = torch.Generator().manual_seed(self.config.noise_seed)
            noise = torch.randn(shape, generator=generator)
            if len(self._noise) >= 8:
                self._noise.clear()
            self._noise[key] = noise.to(latent.device, latent.dtype)
        return self._noise[key].repeat(latent.shape[0] // num_frames, 1, 1, 1)

    def denoise(
        self,
        noisy: torch.Tensor,
        lq: torch.Tensor,
        sigma: torch.Tensor,
        num_frames: int,
        taps: Sequence[int] = (),
        stop_after_last_tap: bool = False,
    ) -> DiT4SROutput:
        """One pass of the transformer under the null text.

        Args:
            noisy: (B F, C, h, w) latent, (1 - sigma) * clean + sigma * noise.
            lq: (B F, C, h, w) latent of the degraded frames.
            sigma: (B F,) or (1,), in (0, 1].
            num_frames: F.
            taps: layers to tap.
            stop_after_last_tap: see `DiT4SRTransformer.forward`.
        """
        output: DiT4SROutput = self.transformer(
            noisy,
            lq,
            self.null_text,
            self.null_pooled,
            1000.0 * sigma,
            num_frames=num_frames,
            taps=taps,
            stop_after_last_tap=stop_after_last_tap,
        )
        return output

    def iterate_features(
        self,
        latent: torch.Tensor,
        num_frames: int,
        steps: int = 1,
        noise: torch.Tensor | None = None,
        taps: Sequence[int] | None = None,
    ) -> Iterator[DiffusionFeatures]:
        """Features of each denoising step along the running trajectory (DA-Flow, section 3.2).

        Args:
            latent: (B F, C, h, w) of the degraded frames.
            num_frames: F.
            steps: 1 to 50; the last one stops at the last tap.
            noise: as `latent`; None for the fixed noise.
            taps: layers; None for the model's.
        """
        if not 1 <= steps <= 50:
            raise ValueError(f'diffusion steps must be 1 to 50, not {steps}')
        taps = self.taps if taps is None else tuple(taps)
        patch = self.transformer.config.patch_size
        grid = (latent.shape[-2] // patch, latent.shape[-1] // patch)
        x = self.starting_noise(latent, num_frames) if noise is None else noise
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.config.shift)
        scheduler.set_timesteps(steps)
        sigmas = [float(sigma) for sigma in scheduler.sigmas]
        for i, (sigma, following) in enumerate(pairwise(sigmas)):
            level = torch.full((1,), sigma, device=latent.device)
            out = self.denoise(x, latent, level, num_frames, taps, i == steps - 1)

            def tokens(tap: torch.Tensor) -> torch.Tensor:
                return tap.transpose(1, 2).flatten(2).unflatten(0, (-1, num_frames))

            yield DiffusionFeatures(
                [tokens(out.queries[j]) for j in taps],
                [tokens(out.keys[j]) for j in taps],
                grid,
                sigma,
            )
            if out.sample is not None:
                velocity = out.sample
                if self.config.prediction == 'sample':
                    velocity = (x - out.sample) / sigma
                x = x + ((following - sigma) * velocity).to(x.dtype)

    def features(
        self,
        latent: torch.Tensor,
        num_frames: int,
        steps: int = 1,
        noise: torch.Tensor | None = None,
    ) -> DiffusionFeatures:
        """Features averaged over the steps of the trajectory; see `iterate_features`."""
        iterator = self.iterate_features(latent, num_frames, steps, noise)
        total = next(iterator)
        for step in iterator:
            total.queries = [a + b for a, b in zip(total.queries, step.queries, strict=True)]
            total.keys = [a + b for a, b in zip(total.keys, step.keys, strict=True)]
        if steps > 1:
            total.queries = [q / steps for q in total.queries]
            total.keys = [k / steps for k in total.keys]
        return total

    def encode(
        self,
        images: torch.Tensor,
        diffusion_steps: int = 1,
        noise: torch.Tensor | None = None,
        last_pair_only: bool = False,
    ) -> PairFeatures:
        """Fused features of every successive pair of each clip; see :meth:`forward`."""
        frames = images.shape[1]
        latent = self.latent.encode(images.flatten(0, 1))
        features = self.features(latent, frames, diffusion_steps, noise)
        start = frames - 2 if last_pair_only else 0

        def first(x: torch.Tensor) -> torch.Tensor:
            return x[:, start : frames - 1].flatten(0, 1)

        def second(x: torch.Tensor) -> torch.Tensor:
            return x[:, start + 1 :].flatten(0, 1)

        queries = [first(q) for q in features.queries]
        keys = [second(k) for k in features.keys]
        pair = self.raft.encode(images[:, start:])
        context = self.dpt_context(queries, features.grid)
        pair.fmap1 = torch.cat([pair.fmap1, self.dpt_query(queries, features.grid)], dim=1)
        pair.fmap2 = torch.cat([pair.fmap2, self.dpt_key(keys, features.grid)], dim=1)
        pair.inp = torch.cat([pair.inp, context.relu()], dim=1)
        return pair

    def forward(
        self,
        images: torch.Tensor,
        iterations: int = 12,
        initial_flow: torch.Tensor | None = None,
        diffusion_steps: int = 1,
        noise: torch.Tensor | None = None,
        last_pair_only: bool = False,
        hypotheses: torch.Tensor | None = None,
    ) -> FlowOutput:
        """Flow of every successive pair of each clip.

        Args:
            images: (B, F, 3, H, W) in [-1, 1], F >= 2.
            iterations: GRU updates.
            initial_flow: (B (F - 1), 2, H, W) px, or None.
            diffusion_steps: 1 (from pure noise) to 50.
            noise: (B F, C, h, w) of the latent; None for the fixed noise.
            last_pair_only: only the pair of the last two frames; B takes the place of B (F - 1).
            hypotheses: (B (F - 1), K + M, 2, H, W) px, where the RAFT fuses some (`RAFT.refine`).

        Raises:
            ValueError: a size that is not a multiple of `multiple`, or fewer than two frames.
        """
        if images.ndim != 5 or images.shape[2] != 3 or images.shape[1] < 2:
            raise ValueError(f'images must be (B, F >= 2, 3, H, W), not {tuple(images.shape)}')
        if images.shape[-2] % self.multiple or images.shape[-1] % self.multiple:
            raise ValueError(
                f'height and width {tuple(images.shape[-2:])} must be multiples of {self.multiple}'
            )
        pair = self.encode(images, diffusion_steps, noise, last_pair_only)
        return self.raft.refine(pair, iterations, initial_flow, hypotheses)


DAFLOW_TINY: dict[str, Any] = {
    'transformer_config': {
        # Tokens of 32 px, a quarter of the paper's number: attention over 16 px tokens alone took
        # two thirds of RAFT-small's time. Positions one unit apart.
        'sample_size': 320,
        'patch_size': 4,
        'in_channels': 192,
        'num_layers': 4,
        'num_attention_heads': 2,
        'attention_head_dim': 64,
        'joint_attention_dim': 64,
        'caption_projection_dim': 128,
        'pooled_projection_dim': 64,
        'pos_embed_max_size': 80,
        'dual_attention_layers': (),
        'control_scale': 1.0,
        'lq_keys': 'own',
    },
    'raft_config': RAFT_TINY,
    'unshuffle_factor': 8,
    # Layer 0's queries and keys are those of the noise alone: nothing to tap.
    'taps': (1, 2, 3),
    'head_scales': (1, 2, 4),
    'text_tokens': 4,
    'head_channels': 48,
    'feature_channels': 48,
    'num_frames': 2,
    'prediction': 'sample',
}
