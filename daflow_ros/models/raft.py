# SPDX-License-Identifier: Apache-2.0
"""RAFT: recurrent all-pairs field transforms (Teed and Deng, ECCV 2020).

DA-Flow (section 3.3) takes RAFT's CNN encoders, correlation pyramid, convolutional GRU and convex
upsampling and widens the features that enter them; the same class therefore serves three sizes by
its configuration: the official large and small RAFT and the small one this package trains.

Shapes: images ``(B, 3, H, W)`` in [-1, 1] with H and W divisible by 8; features at
``(B, C, H/8, W/8)``; flow ``(B, 2, H, W)`` in px, u right and v down.
Parameter names are those of the official checkpoints (princeton-vl/RAFT).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn


@dataclass
class FlowOutput:
    """What a refinement network returns.

    Attributes:
        flow: ``(B, 2, H, W)`` px, after the last iteration, at the input's resolution.
        flows_low: one ``(B, 2, H/8, W/8)`` per iteration, in 1/8-resolution px (the start first).
        laplace: ``(B, 3, H, W)`` parameters of a mixture of two Laplace distributions of the
            end-point error (two weight logits and log b1), or None without a confidence head.
        correlation: ``(B, H/8 * W/8, H/8 * W/8)`` all-pairs correlation (training only).
    """

    flow: Tensor
    flows_low: list[Tensor]
    laplace: Tensor | None = None
    correlation: Tensor | None = None


def _norm(kind: str, channels: int, groups: int) -> nn.Module:
    if kind == 'batch':
        return nn.BatchNorm2d(channels)
    if kind == 'instance':
        return nn.InstanceNorm2d(channels)
    if kind == 'group':
        return nn.GroupNorm(groups, channels)
    if kind == 'none':
        return nn.Identity()
    raise ValueError(f"norm must be 'batch', 'instance', 'group' or 'none', not {kind!r}")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (RAFT, encoder of the large model)."""

    def __init__(self, in_planes: int, planes: int, norm: str, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_planes, planes, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1)
        self.norm1 = _norm(norm, planes, planes // 8)
        self.norm2 = _norm(norm, planes, planes // 8)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_planes != planes:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride), _norm(norm, planes, planes // 8)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_planes, h, w)`` to ``(B, planes, h/stride, w/stride)``."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 with a quarter of the channels (RAFT, encoder of the small model)."""

    def __init__(self, in_planes: int, planes: int, norm: str, stride: int) -> None:
        super().__init__()
        inner = planes // 4
        self.conv1 = nn.Conv2d(in_planes, inner, 1)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride=stride, padding=1)
        self.conv3 = nn.Conv2d(inner, planes, 1)
        self.norm1 = _norm(norm, inner, max(inner // 8, 1))
        self.norm2 = _norm(norm, inner, max(inner // 8, 1))
        self.norm3 = _norm(norm, planes, planes // 8)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_planes, planes, 1, stride=stride), _norm(norm, planes, planes // 8)
            )

    def forward(self, x: Tensor) -> Tensor:
        """``(B, in_planes, h, w)`` to ``(B, planes, h/stride, w/stride)``."""
        y = F.relu(self.norm1(self.conv1(x)))
        y = F.relu(self.norm2(self.conv2(y)))
        y = F.relu(self.norm3(self.conv3(y)))
        if self.downsample is not None:
            x = self.downsample(x)
        return F.relu(x + y)


class Encoder(nn.Module):
    """Image ``(B, 3, H, W)`` to features ``(B, output_dim, H/8, W/8)`` (RAFT section 3.1)."""

    def __init__(
        self,
        block: str,
        dims: tuple[int, ...],
        depths: tuple[int, ...],
        output_dim: int,
        norm: str,
    ) -> None:
        super().__init__()
        blocks = {'residual': ResidualBlock, 'bottleneck': BottleneckBlock}
        if block not in blocks:
            raise ValueError(f"block must be 'residual' or 'bottleneck', not {block!r}")
        kind = blocks[block]

        def stage(in_planes: int, planes: int, stride: int, depth: int) -> nn.Sequential:
            rest = [kind(planes, planes, norm, 1) for _ in range(depth - 1)]
            return nn.Sequential(kind(in_planes, planes, norm, stride), *rest)

        self.conv1 = nn.Conv2d(3, dims[0], 7, stride=2, padding=3)
        self.norm1 = _norm(norm, dims[0], 8)
        self.layer1 = stage(dims[0], dims[0], 1, depths[0])
        self.layer2 = stage(dims[0], dims[1], 2, depths[1])
        self.layer3 = stage(dims[1], dims[2], 2, depths[2])
        self.conv2 = nn.Conv2d(dims[2], output_dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Run the encoder."""
        x = F.relu(self.norm1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        features: Tensor = self.conv2(x)
        return features


class ConvGRU(nn.Module):
    """Convolutional GRU, one 3x3 update (RAFT small)."""

    def __init__(self, hidden_dim: int, input_dim: int) -> None:
        super().__init__()
        self.convz = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convr = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)
        self.convq = nn.Conv2d(hidden_dim + input_dim, hidden_dim, 3, padding=1)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """New state from state ``(B, hidden_dim, h, w)`` and input ``(B, input_dim, h, w)``."""
        hx = torch.cat([h, x], dim=1)
        z = torch.sigmoid(self.convz(hx))
        r = torch.sigmoid(self.convr(hx))
        q = torch.tanh(self.convq(torch.cat([r * h, x], dim=1)))
        return (1 - z) * h + z * q


class SepConvGRU(nn.Module):
    """Convolutional GRU as a 1x5 and a 5x1 update (RAFT large)."""

    def __init__(self, hidden_dim: int, input_dim: int) -> None:
        super().__init__()
        for i, (kernel, padding) in enumerate((((1, 5), (0, 2)), ((5, 1), (2, 0))), start=1):
            for gate in 'zrq':
                conv = nn.Conv2d(hidden_dim + input_dim, hidden_dim, kernel, padding=padding)
                self.add_module(f'conv{gate}{i}', conv)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """New state from state ``(B, hidden_dim, h, w)`` and input ``(B, input_dim, h, w)``."""
        for i in (1, 2):
            convz, convr, convq = (getattr(self, f'conv{gate}{i}') for gate in 'zrq')
            hx = torch.cat([h, x], dim=1)
            z = torch.sigmoid(convz(hx))
            r = torch.sigmoid(convr(hx))
            q = torch.tanh(convq(torch.cat([r * h, x], dim=1)))
            h = (1 - z) * h + z * q
        return h


class MotionEncoder(nn.Module):
    """Looked-up correlation and current flow to motion features (RAFT section 3.3)."""

    def __init__(
        self, corr_channels: int, corr_dims: tuple[int, ...], flow_dims: tuple[int, ...], out: int
    ) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(corr_channels, corr_dims[0], 1)
        self.convc2: nn.Module | None = None
        if len(corr_dims) > 1:
            self.convc2 = nn.Conv2d(corr_dims[0], corr_dims[1], 3, padding=1)
        self.convf1 = nn.Conv2d(2, flow_dims[0], 7, padding=3)
        self.convf2 = nn.Conv2d(flow_dims[0], flow_dims[1], 3, padding=1)
        self.conv = nn.Conv2d(corr_dims[-1] + flow_dims[1], out - 2, 3, padding=1)

    def forward(self, flow: Tensor, corr: Tensor) -> Tensor:
        """``(B, 2, h, w)`` and ``(B, corr_channels, h, w)`` to ``(B, out, h, w)``."""
        c = F.relu(self.convc1(corr))
        if self.convc2 is not None:
            c = F.relu(self.convc2(c))
        f = F.relu(self.convf2(F.relu(self.convf1(flow))))
        y = F.relu(self.conv(torch.cat([c, f], dim=1)))
        return torch.cat([y, flow.to(y.dtype)], dim=1)


class Head(nn.Module):
    """Two 3x3 convolutions from the hidden state to a flow update (or to confidence)."""

    def __init__(self, input_dim: int, hidden_dim: int, output_dim: int = 2) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(input_dim, hidden_dim, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden_dim, output_dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, input_dim, h, w)`` to ``(B, output_dim, h, w)``."""
        y: Tensor = self.conv2(F.relu(self.conv1(x)))
        return y


class UpdateBlock(nn.Module):
    """One refinement step: motion features, GRU, flow update, upsampling mask."""

    def __init__(
        self,
        motion: MotionEncoder,
        motion_dim: int,
        hidden_dim: int,
        context_dim: int,
        head_dim: int,
        gru: str,
        mask_dim: int,
    ) -> None:
        super().__init__()
        grus = {'conv': ConvGRU, 'sep': SepConvGRU}
        if gru not in grus:
            raise ValueError(f"gru must be 'conv' or 'sep', not {gru!r}")
        self.encoder = motion
        self.gru = grus[gru](hidden_dim, motion_dim + context_dim)
        self.flow_head = Head(hidden_dim, head_dim)
        self.mask: nn.Module | None = None
        if mask_dim:
            self.mask = nn.Sequential(
                nn.Conv2d(hidden_dim, mask_dim, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(mask_dim, 64 * 9, 1),
            )

    def forward(
        self, net: Tensor, inp: Tensor, corr: Tensor, flow: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New hidden state and flow update, all ``(B, C, h, w)``."""
        motion = self.encoder(flow, corr)
        net = self.gru(net, torch.cat([inp, motion], dim=1))
        return net, self.flow_head(net)


class CorrelationPyramid:
    """All-pairs correlation, average-pooled over the second image (RAFT section 3.2).

    Args:
        fmap1: ``(B, C, h, w)``.
        fmap2: ``(B, C, h, w)``.
        levels: pyramid levels; radius: lookup radius in px of each level.
        scale: factor of the inner product; 1/sqrt(C) in RAFT.
    """

    def __init__(
        self, fmap1: Tensor, fmap2: Tensor, levels: int, radius: int, scale: float
    ) -> None:
        b, _, h, w = fmap1.shape
        self.shape = (b, h, w)
        self.radius = radius
        # In full precision, as the official code: rounding would cost sub-pixel accuracy.
        fmap2 = fmap2.float()
        query = fmap1.float().flatten(2).transpose(1, 2) * scale
        # Costs are counted on the meta device, which knows no autocast.
        device = 'cpu' if query.is_meta else query.device.type
        self.pyramid: list[Tensor] = []
        for level in range(levels):
            # The mean of correlations is the correlation with the mean: pooling the features is
            # RAFT's pooled volume at a fraction of its memory traffic. Small images run out of
            # cells: repeat the last level rather than fail.
            if level and min(fmap2.shape[-2:]) >= 2:
                fmap2 = F.avg_pool2d(fmap2, 2, stride=2)
            with torch.autocast(device, enabled=False):
                volume = torch.matmul(query, fmap2.flatten(2))
            if level == 0:
                self.volume = volume  # (B, hw, hw)
            self.pyramid.append(volume.reshape(b * h * w, 1, *fmap2.shape[-2:]))
        r = torch.arange(-radius, radius + 1, device=fmap1.device, dtype=torch.float32)
        # The official code adds (dy, dx) to (x, y): the channel order is part of the weights.
        dy, dx = torch.meshgrid(r, r, indexing='ij')
        self.delta = torch.stack([dy, dx], dim=-1)

    def lookup(self, coords: Tensor, displacement: bool = False) -> Tensor:
        """Correlation ``(B, levels * (2r+1)^2, h, w)`` around ``coords`` (B, 2, h, w) px.

        Args:
            coords: where each cell of the first image looks in the second.
            displacement: append the soft-argmax of each level's window, ``2 * levels`` channels
                in cells of that level.
        """
        b, h, w = self.shape
        centre = coords.permute(0, 2, 3, 1).reshape(b * h * w, 1, 1, 2)
        offsets = self.delta.reshape(-1, 2)
        out, peaks = [], []
        for i, maps in enumerate(self.pyramid):
            hh, ww = maps.shape[-2:]
            xy = centre / 2**i + self.delta
            # max() guards one-cell maps, where RAFT's normalisation divides by zero.
            grid = xy * torch.tensor(
                [2.0 / max(ww - 1, 1), 2.0 / max(hh - 1, 1)], device=xy.device
            ) - 1.0
            sampled = F.grid_sample(maps, grid, align_corners=True).reshape(b, h, w, -1)
            out.append(sampled)
            if displacement:
                peaks.append(sampled.softmax(dim=-1) @ offsets)
        return torch.cat(out + peaks, dim=-1).permute(0, 3, 1, 2).contiguous()


def coords_grid(batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """Pixel coordinates ``(B, 2, h, w)``, x first, float32."""
    y, x = torch.meshgrid(
        torch.arange(height, device=device), torch.arange(width, device=device), indexing='ij'
    )
    return torch.stack([x, y]).float()[None].expand(batch, -1, -1, -1)


def convex_upsample(field: Tensor, mask: Tensor, scale: float = 8.0) -> Tensor:
    """Upsample ``(B, C, h, w)`` eight times by learned convex weights (RAFT section 3.3).

    Args:
        field: values at 1/8 resolution, multiplied by ``scale`` (8 for flow, 1 otherwise).
        mask: ``(B, 576, h, w)`` logits.
    """
    b, c, h, w = field.shape
    weights = mask.float().view(b, 1, 9, 8, 8, h, w).softmax(dim=2)
    patches = F.unfold(scale * field.float(), 3, padding=1).view(b, c, 9, 1, 1, h, w)
    up = (weights * patches).sum(dim=2)
    return up.permute(0, 1, 4, 2, 5, 3).reshape(b, c, 8 * h, 8 * w)


class RAFT(ModelMixin, ConfigMixin):
    """RAFT with a configurable size.

    The defaults are the official large model. ``RAFT(**RAFT_SMALL)`` is the official small one and
    ``RAFT(**RAFT_TINY)`` this package's own.

    Args:
        block: 'residual' or 'bottleneck' encoder blocks.
        encoder_dims: channels of the stages at 1/2, 1/4, 1/8.
        encoder_depths: blocks of those stages.
        feature_dim: channels of the matched features.
        feature_norm: norm of the feature encoder; context_norm: of the context encoder.
        hidden_dim, context_dim: channels of the GRU's state and of its context input.
        extra_context_dim: further context channels given to :meth:`refine` (DA-Flow's ctx_up).
        corr_levels, corr_radius: correlation pyramid.
        corr_dims, flow_dims, motion_dim: channels of the motion encoder.
        head_dim: hidden channels of the flow head.
        gru: 'sep' or 'conv'.
        mask_dim: hidden channels of the convex mask head; 0 upsamples bilinearly.
        matching_start: start from the soft-argmax of the correlation (as GMFlow, CVPR 2022,
            section 3.1) instead of from zero.
        local_matching: give the motion encoder the soft-argmax of each level's window too, so
            that it need not learn to read a displacement off the correlation.
        confidence_head: predict a mixture of Laplace distributions of the error (SEA-RAFT,
            ECCV 2024, section 3.2).
    """

    config_name = 'config.json'

    @register_to_config
    def __init__(
        self,
        block: str = 'residual',
        encoder_dims: tuple[int, ...] = (64, 96, 128),
        encoder_depths: tuple[int, ...] = (2, 2, 2),
        feature_dim: int = 256,
        feature_norm: str = 'instance',
        context_norm: str = 'batch',
        hidden_dim: int = 128,
        context_dim: int = 128,
        extra_context_dim: int = 0,
        corr_levels: int = 4,
        corr_radius: int = 4,
        corr_dims: tuple[int, ...] = (256, 192),
        flow_dims: tuple[int, int] = (128, 64),
        motion_dim: int = 128,
        head_dim: int = 256,
        gru: str = 'sep',
        mask_dim: int = 256,
        matching_start: bool = False,
        local_matching: bool = False,
        confidence_head: bool = False,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.context_dim = context_dim
        self.corr_levels = corr_levels
        self.corr_radius = corr_radius
        self.correlation_scale = 1.0 / math.sqrt(feature_dim)
        self.matching_start = matching_start
        self.local_matching = local_matching
        dims, depths = tuple(encoder_dims), tuple(encoder_depths)
        self.fnet = Encoder(block, dims, depths, feature_dim, feature_norm)
        self.cnet = Encoder(block, dims, depths, hidden_dim + context_dim, context_norm)
        corr_channels = corr_levels * (2 * corr_radius + 1) ** 2
        if local_matching:
            corr_channels += 2 * corr_levels
        self.update_block = UpdateBlock(
            MotionEncoder(corr_channels, tuple(corr_dims), tuple(flow_dims), motion_dim),
            motion_dim,
            hidden_dim,
            context_dim + extra_context_dim,
            head_dim,
            gru,
            mask_dim,
        )
        self.laplace_head: Head | None = None
        if confidence_head:
            self.laplace_head = Head(hidden_dim, hidden_dim, 3)

    def encode_features(self, image: Tensor) -> Tensor:
        """Matched features ``(B, feature_dim, H/8, W/8)`` of an image in [-1, 1]."""
        features: Tensor = self.fnet(image)
        return features

    def encode_context(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """GRU start state and context input, each ``(B, C, H/8, W/8)``, of an image in [-1, 1]."""
        net, inp = self.cnet(image).split([self.hidden_dim, self.context_dim], dim=1)
        return torch.tanh(net), F.relu(inp)

    def matching_flow(self, pyramid: CorrelationPyramid) -> Tensor:
        """Expected displacement under the softmax of the correlation, ``(B, 2, h, w)``."""
        b, h, w = pyramid.shape
        grid = coords_grid(1, h, w, pyramid.volume.device)
        probability = pyramid.volume.softmax(dim=-1)
        expected = probability @ grid[0].flatten(1).T  # (B, hw, 2)
        return expected.transpose(1, 2).reshape(b, 2, h, w) - grid

    def refine(
        self,
        fmap1: Tensor,
        fmap2: Tensor,
        net: Tensor,
        inp: Tensor,
        iterations: int,
        initial_flow: Tensor | None = None,
    ) -> FlowOutput:
        """Iterative refinement (RAFT section 3.3).

        Args:
            fmap1, fmap2: ``(B, C, h, w)``; C may exceed ``feature_dim`` (DA-Flow's fusion): the
                correlation is scaled by 1/sqrt(feature_dim) regardless, so that channels that are
                zero leave RAFT unchanged.
            net: ``(B, hidden_dim, h, w)``; inp: ``(B, context_dim + extra_context_dim, h, w)``.
            iterations: number of GRU updates, 0 or more.
            initial_flow: ``(B, 2, h, w)`` in 1/8-resolution px, or None.
        """
        b, _, h, w = fmap1.shape
        pyramid = CorrelationPyramid(
            fmap1, fmap2, self.corr_levels, self.corr_radius, self.correlation_scale
        )
        grid = coords_grid(b, h, w, fmap1.device)
        if initial_flow is not None:
            flow = initial_flow.float()
        elif self.matching_start:
            flow = self.matching_flow(pyramid)
        else:
            flow = torch.zeros_like(grid)
        flows = [flow]
        for _ in range(iterations):
            flow = flow.detach()
            corr = pyramid.lookup(grid + flow, self.local_matching)
            net, delta = self.update_block(net, inp, corr.to(net.dtype), flow.to(net.dtype))
            flow = flow + delta.float()
            flows.append(flow)
        laplace = None
        if self.update_block.mask is None:
            up = 8 * F.interpolate(flow, scale_factor=8, mode='bilinear', align_corners=True)
            if self.laplace_head is not None:
                laplace = F.interpolate(self.laplace_head(net).float(), scale_factor=8)
        else:
            mask = 0.25 * self.update_block.mask(net)
            up = convex_upsample(flow, mask)
            if self.laplace_head is not None:
                laplace = convex_upsample(self.laplace_head(net), mask, scale=1.0)
        correlation = pyramid.volume if self.training else None
        return FlowOutput(up, flows, laplace, correlation)

    def forward(
        self,
        image1: Tensor,
        image2: Tensor,
        iterations: int = 12,
        initial_flow: Tensor | None = None,
    ) -> FlowOutput:
        """Flow from ``image1`` to ``image2``, both ``(B, 3, H, W)`` in [-1, 1], H, W % 8 == 0."""
        if image1.shape != image2.shape or image1.shape[-2] % 8 or image1.shape[-1] % 8:
            raise ValueError(
                'images must agree in shape and divide by 8, '
                f'got {tuple(image1.shape)} and {tuple(image2.shape)}'
            )
        fmap1, fmap2 = self.encode_features(torch.cat([image1, image2])).chunk(2)
        net, inp = self.encode_context(image1)
        return self.refine(fmap1, fmap2, net, inp, iterations, initial_flow)


RAFT_SMALL = {
    'block': 'bottleneck',
    'encoder_dims': (32, 64, 96),
    'feature_dim': 128,
    'context_norm': 'none',
    'hidden_dim': 96,
    'context_dim': 64,
    'corr_radius': 3,
    'corr_dims': (96,),
    'flow_dims': (64, 32),
    'motion_dim': 82,
    'head_dim': 128,
    'gru': 'conv',
    'mask_dim': 0,
}

RAFT_TINY = {
    'block': 'residual',
    'encoder_dims': (32, 64, 96),
    'encoder_depths': (1, 2, 2),
    'feature_dim': 128,
    'context_norm': 'instance',
    'hidden_dim': 64,
    'context_dim': 64,
    'corr_radius': 3,
    'corr_dims': (64,),
    'flow_dims': (32, 16),
    'motion_dim': 66,
    'head_dim': 96,
    'gru': 'sep',
    'mask_dim': 128,
    'matching_start': True,
    'local_matching': True,
    'confidence_head': True,
}
