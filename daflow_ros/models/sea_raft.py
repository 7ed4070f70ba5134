# SPDX-License-Identifier: Apache-2.0
"""SEA-RAFT (Wang, Lipson and Deng, ECCV 2024): baseline, and the paper's source of pseudo labels.

Differences from RAFT that matter here: the context network sees both frames and regresses a first
flow, ConvNeXt blocks replace the GRU, and a head predicts a mixture of two Laplace distributions
of the error (its section 3.2), from which the confidence comes.

Shapes: images ``(B, 3, H, W)`` in [-1, 1] with H and W divisible by 8; flow ``(B, 2, H, W)`` px.
Encoders, motion encoder, correlation and upsampling are those of RAFT; `load_sea_raft`
renames the parameters of the official checkpoints (princeton-vl/SEA-RAFT, pth or safetensors).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from daflow_ros.models.correlation import CorrelationPyramid, coords_grid
from daflow_ros.models.encoder import Encoder
from daflow_ros.models.flow_output import FlowOutput
from daflow_ros.models.raft_checkpoints import load_state, read_state_dict
from daflow_ros.models.update import MotionEncoder
from daflow_ros.models.upsampling import convex_upsample

DEPTHS = {'resnet18': (2, 2, 2), 'resnet34': (3, 4, 6)}


class ConvNeXtBlock(nn.Module):
    """Depthwise 7x7, norm, MLP with layer scale, then 1x1 to the hidden width."""

    def __init__(self, input_dim: int, output_dim: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(input_dim, input_dim, 7, padding=3, groups=input_dim)
        self.norm = nn.LayerNorm(input_dim, eps=1e-6)
        self.pwconv1 = nn.Linear(input_dim, 4 * output_dim)
        self.pwconv2 = nn.Linear(4 * output_dim, input_dim)
        self.gamma = nn.Parameter(torch.full((input_dim,), 1e-6))
        self.final = nn.Conv2d(input_dim, output_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, input_dim, h, w)`` -> ``(B, output_dim, h, w)``."""
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        y = self.gamma * self.pwconv2(F.gelu(self.pwconv1(y)))
        out: Tensor = self.final(x + y.permute(0, 3, 1, 2))
        return out


class RefineBlock(nn.Module):
    """One refinement: motion features, then ConvNeXt blocks on the hidden state."""

    def __init__(self, corr_channels: int, dim: int, num_blocks: int) -> None:
        super().__init__()
        corr_dims, flow_dims = (2 * dim, dim + dim // 2), (dim, dim // 2)
        self.encoder = MotionEncoder(corr_channels, corr_dims, flow_dims, dim)
        self.refine = nn.ModuleList(ConvNeXtBlock(3 * dim, dim) for _ in range(num_blocks))

    def forward(self, net: Tensor, context: Tensor, corr: Tensor, flow: Tensor) -> Tensor:
        """Next hidden state ``(B, dim, h, w)``."""
        motion = self.encoder(flow, corr)
        for block in self.refine:
            net = block(torch.cat([net, context, motion], dim=1))
        return net


class SEARAFT(ModelMixin, ConfigMixin):
    """SEA-RAFT; the defaults are the official M (and, with 12 iterations, L).

    Args:
        pretrain: 'resnet18' (S) or 'resnet34' (M, L): depth of the encoders.
        dim: channels of hidden state and context; 2 dim of the matched features.
        radius: of the correlation lookup, on four levels.
        initial_dim: channels of the stem.
        block_dims: channels at 1/2, 1/4 and 1/8; the first equals ``initial_dim``.
        num_blocks: ConvNeXt blocks of a refinement.
        iters: default refinement iterations.
        var_min: lower bound of the small component's log scale, upper 0.
        var_max: upper bound of the large component's log scale, lower 0.
        use_var: whether the scales are predicted at all (else log b = 0).

    Raises:
        ValueError: unknown ``pretrain``, or ``block_dims`` that do not fit ``initial_dim``.
    """

    @register_to_config
    def __init__(
        self,
        pretrain: str = 'resnet34',
        dim: int = 128,
        radius: int = 4,
        initial_dim: int = 64,
        block_dims: Sequence[int] = (64, 128, 256),
        num_blocks: int = 2,
        iters: int = 4,
        var_min: float = 0.0,
        var_max: float = 10.0,
        use_var: bool = True,
    ) -> None:
        super().__init__()
        if pretrain not in DEPTHS:
            raise ValueError(f'pretrain must be one of {", ".join(DEPTHS)}, not {pretrain!r}')
        if len(block_dims) != 3 or block_dims[0] != initial_dim:
            raise ValueError(
                f'block_dims {tuple(block_dims)} must be three, starting with {initial_dim}'
            )
        self.dim, self.radius = dim, radius
        dims, depths = tuple(block_dims), DEPTHS[pretrain]
        self.fnet = Encoder('residual', dims, depths, 2 * dim, 'batch')
        self.cnet = Encoder('residual', dims, depths, 2 * dim, 'batch')
        self.cnet.conv1 = nn.Conv2d(6, initial_dim, 7, stride=2, padding=3)
        self.init_conv = nn.Conv2d(2 * dim, 2 * dim, 3, padding=1)
        self.upsample_weight = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * dim, 64 * 9, 1)
        )
        self.flow_head = nn.Sequential(
            nn.Conv2d(dim, 2 * dim, 3, padding=1), nn.ReLU(), nn.Conv2d(2 * dim, 6, 3, padding=1)
        )
        self.update_block = RefineBlock(4 * (2 * radius + 1) ** 2, dim, num_blocks)

    def log_scales(self, info: Tensor) -> Tensor:
        """Log b of the large and the small component, ``(B, 2, H, W)``, from ``info`` (B, 4, ...).

        The error of u and of v follows sum_i softmax(info[:, :2])_i Laplace(0, b_i), in px.
        """
        if not self.config.use_var:
            return torch.zeros_like(info[:, 2:])
        return torch.stack(
            [info[:, 2].clamp(0, self.config.var_max), info[:, 3].clamp(self.config.var_min, 0)], 1
        )

    def confidence(self, info: Tensor, threshold: float = 1.0) -> Tensor:
        """P(|error| < threshold px) of one flow component, ``(B, 1, H, W)`` in [0, 1]."""
        below = 1 - torch.exp(-threshold * torch.exp(-self.log_scales(info)))
        return (info[:, :2].softmax(1) * below).sum(1, keepdim=True)

    def forward(
        self,
        image1: Tensor,
        image2: Tensor,
        iterations: int | None = None,
        initial_flow: Tensor | None = None,
    ) -> FlowOutput:
        """Flow from ``image1`` to ``image2``.

        Args:
            image1: ``(B, 3, H, W)`` in [-1, 1], H and W divisible by 8.
            image2: likewise.
            iterations: refinements, 0 or more; None for the configuration's.
            initial_flow: ``(B, 2, H, W)`` px, instead of the regressed one.

        Returns:
            ``laplace`` is ``(B, 4, H, W)``: two weight logits, two raw log scales.

        Raises:
            ValueError: shapes that differ or do not divide by 8.
        """
        if image1.shape != image2.shape or image1.shape[-2] % 8 or image1.shape[-1] % 8:
            raise ValueError(
                'images must agree in shape and divide by 8, '
                f'got {tuple(image1.shape)} and {tuple(image2.shape)}'
            )
        count = self.config.iters if iterations is None else iterations
        both = self.init_conv(self.cnet(torch.cat([image1, image2], dim=1)))
        net, context = both.split(self.dim, dim=1)
        update = self.flow_head(net)
        flow = update[:, :2].float()
        if initial_flow is not None:
            flow = F.avg_pool2d(initial_flow.float(), 8) / 8
        flows = [flow]
        if count:
            fmap1, fmap2 = self.fnet(torch.cat([image1, image2])).chunk(2)
            scale = 1 / math.sqrt(2 * self.dim)
            pyramid = CorrelationPyramid(fmap1, fmap2, 4, self.radius, scale)
            grid = coords_grid(len(flow), flow.shape[-2], flow.shape[-1], flow.device)
        for _ in range(count):
            flow = flow.detach()
            corr = pyramid.lookup(grid + flow)
            net = self.update_block(net, context, corr.to(net.dtype), flow.to(net.dtype))
            update = self.flow_head(net)
            flow = flow + update[:, :2].float()
            flows.append(flow)
        mask = 0.25 * self.upsample_weight(net)
        laplace = convex_upsample(update[:, 2:], mask, magnitude=1)
        return FlowOutput(convex_upsample(flow, mask), flows, laplace)


def from_official_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename an official state dict to `SEARAFT`'s.

    The official ``.pth`` holds the shortcut's norm twice (``bn3``, ``downsample.1``), its
    safetensors only as ``bn3``; ours is ``downsample.1``.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        key = key.removeprefix('module.')
        if not re.match(r'(cnet|fnet)\.', key):
            renamed[key] = value
            continue
        key = re.sub(r'^(cnet|fnet)\.final_conv\.', r'\1.conv2.', key)
        key = key.replace('.bn3.', '.downsample.1.')
        renamed[re.sub(r'\.bn(\d)\.', r'.norm\1.', key)] = value
    return renamed


def load_sea_raft(path: str | Path) -> SEARAFT:
    """SEA-RAFT from an official checkpoint, S or M by its depth.

    Raises:
        CheckpointError: the file is missing, unreadable, unsafe or of another model.
    """
    state = from_official_names(read_state_dict(path))
    deep = any(key.startswith('fnet.layer3.2.') for key in state)
    model = SEARAFT('resnet34' if deep else 'resnet18')
    load_state(model, state, path)
    return model.eval()
