# SPDX-License-Identifier: Apache-2.0
"""Restoration pre-training of the diffusion transformer (stage 1 of DA-Flow, section 3.4).

Flow matching from degraded to clean clips: x_sigma = (1 - sigma) x_0 + sigma noise, the network
sees x_sigma and the degraded latent and predicts the clean latent (or the velocity), with lifted
attention over the clip. Only features of the first step, from pure noise, are used for flow, so
half of the clips are trained at sigma = 1 and the rest logit-normally.
"""

from __future__ import annotations

import torch
from torch import Tensor

from daflow_ros.models.daflow import DAFlow
from daflow_ros.training.flow_training import FlowTrainer, degrade_batch
from daflow_ros.training.trainer import TrainingConfig


def noise_levels(count: int, pure: float, generator: torch.Generator) -> Tensor:
    """Sigma ``(count,)`` in (0, 1]: 1 for a share ``pure``, else logit-normal (SD3)."""
    device = generator.device
    normal = torch.randn((count,), generator=generator, device=device)
    at_one = torch.rand((count,), generator=generator, device=device) < pure
    return torch.where(at_one, torch.ones_like(normal), torch.sigmoid(normal).clamp(min=0.02))


def flow_matching_loss(
    model: DAFlow, clean: Tensor, degraded: Tensor, sigma: Tensor, noise: Tensor
) -> tuple[Tensor, Tensor]:
    """Loss on the velocity, and the mean absolute error of the clean latent at each clip.

    Args:
        model: whose ``denoise`` is trained.
        clean, degraded: ``(B, F, 3, H, W)`` in [-1, 1].
        sigma: ``(B,)``; noise: ``(B F, C, h, w)`` standard normal.
    """
    frames = clean.shape[1]
    target = model.latent.encode(clean.flatten(0, 1))
    lq = model.latent.encode(degraded.flatten(0, 1))
    level = sigma.repeat_interleave(frames)
    s = level[:, None, None, None]
    noisy = (1 - s) * target + s * noise
    sample = model.denoise(noisy, lq, level, frames).sample
    assert sample is not None  # the whole transformer was run
    sample = sample.float()
    # Divided by sigma an error of the sample is an error of the velocity; the floor keeps
    # nearly clean inputs from ruling the loss.
    weight = 1 / s.clamp(min=0.2)
    if model.config.prediction == 'sample':
        error = weight * (sample - target)
        restored = sample
    else:
        error = sample - (noise - target)
        restored = noisy - s * sample
    loss = error.square().mean()
    clip_error = (restored - target).abs().mean(dim=(1, 2, 3)).unflatten(0, (-1, frames)).mean(1)
    return loss, clip_error.detach()


class RestorationTrainer(FlowTrainer):
    """As :class:`FlowTrainer`, with the restoration loss; trains the transformer alone."""

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        if not isinstance(self.network, DAFlow):
            raise ValueError('only a DA-Flow has a transformer to pre-train')

    def trains(self, name: str) -> bool:
        """The transformer and, unless ``control_only``, the null text."""
        if name.startswith('transformer.'):
            return super().trains(name)
        return name.startswith('null_') and not self.config.control_only

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        """Flow-matching loss; logs the error of the input and of the restored clip."""
        frames = self.clip().frames
        clean = 2 * frames - 1
        degraded = 2 * degrade_batch(frames, self.config.degraded, self.generator) - 1
        model: DAFlow = getattr(self.model, 'module', self.model)
        shape = model.latent.encode(clean.flatten(0, 1)).shape
        noise = torch.randn(shape, generator=self.generator, device=clean.device)
        sigma = noise_levels(len(clean), 0.5, self.generator)
        with self.accelerator.autocast():
            loss, error = flow_matching_loss(model, clean, degraded, sigma, noise)
        figures = {
            'restoration': float(loss.detach()),
            'input_error': float((degraded - clean).abs().mean()),
            'restored_error': float(error[sigma == 1].mean()) if bool((sigma == 1).any()) else 0.0,
        }
        return loss, figures
