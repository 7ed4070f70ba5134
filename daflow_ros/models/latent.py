# SPDX-License-Identifier: Apache-2.0
"""Latent encoders: image (B, 3, H, W) in [-1, 1] to the latent the transformer denoises.

At the paper's size this is SD3.5's VAE (DA-Flow, section 3.1): 16 channels at H/8, the mode of
the posterior rather than a sample, so that runs repeat. At the size that ships it has no
parameters: space to depth, 3 * 8 * 8 = 192 channels at H/8, exactly invertible. Transformers that
denoise plain pixel patches do without a VAE ("Back to Basics: Let Denoising Generative Models
Denoise", 2025), and a VAE encoder alone costs more than the whole of a robot's budget.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

SD35_VAE: dict[str, Any] = {
    'in_channels': 3,
    'out_channels': 3,
    'down_block_types': ('DownEncoderBlock2D',) * 4,
    'up_block_types': ('UpDecoderBlock2D',) * 4,
    'block_out_channels': (128, 256, 512, 512),
    'layers_per_block': 2,
    'latent_channels': 16,
    'norm_num_groups': 32,
    'sample_size': 1024,
    'scaling_factor': 1.5305,
    'shift_factor': 0.0609,
    'use_quant_conv': False,
    'use_post_quant_conv': False,
}


def autoencoder_class() -> Any:
    """`AutoencoderKL` of diffusers, imported when asked for: the shipped size does without.

    Importing it makes diffusers import torchvision wherever that is installed, and a torchvision
    built for another torch (a common pairing on machines without a GPU) raises; nothing here
    needs it, so diffusers is then told to do without.
    """
    from diffusers.utils import import_utils

    try:
        import torchvision  # noqa: F401
    except ImportError:
        pass
    except RuntimeError:
        import_utils._torchvision_available = False
    from diffusers import AutoencoderKL

    return AutoencoderKL


class PixelUnshuffleEncoder(nn.Module):
    """Space to depth: (B, 3, H, W) -> (B, 3 * factor^2, H / factor, W / factor)."""

    def __init__(self, factor: int = 8) -> None:
        super().__init__()
        self.factor = factor
        self.channels = 3 * factor * factor

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """Latent of an image."""
        return functional.pixel_unshuffle(image, self.factor)

    def decode(self, latent: torch.Tensor) -> torch.Tensor:
        """Exact inverse of `encode`."""
        return functional.pixel_shuffle(latent, self.factor)


class VAEEncoder(nn.Module):
    """The encoder half of an `AutoencoderKL` (its decoder is not kept: no feature needs it).

    Args:
        config: configuration of the `AutoencoderKL`; SD3.5's by default.
    """

    def __init__(self, config: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.vae = autoencoder_class().from_config(dict(SD35_VAE) if config is None else config)
        del self.vae.decoder
        self.factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        self.channels = self.vae.config.latent_channels
        self.shift = self.vae.config.shift_factor or 0.0
        self.scale = self.vae.config.scaling_factor

    def encode(self, image: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) in [-1, 1] -> (B, 16, H/8, W/8), (mode - 0.0609) * 1.5305."""
        mode = self.vae.encode(image).latent_dist.mode()
        return (mode - self.shift) * self.scale
