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
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from daflow_ros.models.agreement import MatchingFeatures
from daflow_ros.models.blending import FlowBlend, blend_flows
from daflow_ros.models.correlation import CorrelationPyramid, coords_grid
from daflow_ros.models.cues import hypothesis_cues, opening
from daflow_ros.models.dominant_plane import dominant_plane
from daflow_ros.models.encoder import Encoder
from daflow_ros.models.flow_output import FlowOutput, expected_error
from daflow_ros.models.fusion import FlowFusion, Fused
from daflow_ros.models.mirrored import mean_of_mirrored
from daflow_ros.models.selector import Choice, HypothesisSelector
from daflow_ros.models.update import Head, MotionEncoder, UpdateBlock
from daflow_ros.models.upsampling import (
    blend_along_edges,
    convex_upsample,
    convex_upsample_start,
    upsample2,
)
from daflow_ros.models.weighted_median import median_along_edges


@dataclass
class PairFeatures:
    """What the encoders make of the successive pairs of a clip, N = B (F - 1) of them.

    Attributes:
        fmap1, fmap2: ``(N, feature_dim, H/8, W/8)``.
        net, inp: ``(N, hidden_dim, ...)`` and ``(N, context_dim, H/8, W/8)``.
        quarter1, quarter2: ``(N, C, H/4, W/4)`` for the fusion.
        image1, image2: ``(N, 3, H, W)``, for its cues.
    """

    fmap1: Tensor
    fmap2: Tensor
    net: Tensor
    inp: Tensor
    quarter1: Tensor
    quarter2: Tensor
    image1: Tensor
    image2: Tensor


#: GRU updates of the matcher, which joins in from so many of the network's own on: who asks for
#: fewer is short of time.
MATCHER_ITERATIONS, MATCHER_FROM = 12, 2


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
        extra_context_dim: further context channels given to :meth:`refine` (DA-Flow's ctx_up),
            for the GRU and the fusion.
        corr_levels, corr_radius: correlation pyramid.
        corr_dims, flow_dims, motion_dim: channels of the motion encoder.
        head_dim: hidden channels of the flow head.
        gru: 'sep' or 'conv'.
        mask_dim: hidden channels of the convex mask head; 0 upsamples bilinearly.
        negative_slope: of the motion encoder's and the flow head's ReLUs; RAFT's are 0.
        confidence_head: predict a mixture of Laplace distributions of the error (SEA-RAFT,
            ECCV 2024, section 3.2).
        opening: side in px, odd, of a morphological opening of the image's brightness that the
            encoders see as a fourth channel; 0 for none.
        start_detail: let the convex upsampling choose the start of the refinement as well, moved
            by what the iterations changed: it has detail that 1/8 of the resolution has not.
        num_hypotheses: flow hypotheses from outside that a :class:`FlowFusion` weighs against
            the refined flow, in ``fusion_rounds`` rounds; 0 for none. ``num_backward`` flows
            back come with them.
        matcher_config: of a second RAFT, which finds the flow of the same images from no motion
            and without hypotheses, and that of their mirror images; a :class:`FlowBlend` weighs
            the mean of both, and the motion of the dominant plane, against the fused flow. Needs
            ``num_hypotheses``. With one iteration all of them are left out.

    Raises:
        ValueError: a matcher beside nothing that is fused, or one that fuses itself.
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
        shared_encoder: bool = False,
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
        negative_slope: float = 0.0,
        confidence_head: bool = False,
        opening: int = 0,
        num_hypotheses: int = 0,
        num_backward: int = 0,
        fusion_rounds: int = 1,
        start_detail: bool = False,
        matcher_config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        self.context_dim = context_dim
        self.corr_levels = corr_levels
        self.corr_radius = corr_radius
        self.correlation_scale = 1.0 / math.sqrt(feature_dim)
        dims, depths = tuple(encoder_dims), tuple(encoder_depths)
        channels = 4 if opening else 3
        self.fnet = Encoder(block, dims, depths, feature_dim, feature_norm, channels)
        self.cnet: nn.Module
        if shared_encoder:
            self.cnet = nn.Conv2d(dims[2], hidden_dim + context_dim, 3, padding=1)
        else:
            self.cnet = Encoder(
                block, dims, depths, hidden_dim + context_dim, context_norm, channels
            )
        corr_channels = corr_levels * (2 * corr_radius + 1) ** 2
        self.update_block = UpdateBlock(
            MotionEncoder(
                corr_channels, tuple(corr_dims), tuple(flow_dims), motion_dim, negative_slope
            ),
            motion_dim,
            hidden_dim,
            context_dim + extra_context_dim,
            head_dim,
            gru,
            mask_dim,
            negative_slope,
            9 + start_detail,
        )
        self.fusion: FlowFusion | None = None
        if num_hypotheses:
            self.fusion = FlowFusion(
                dims[1], hidden_dim + extra_context_dim, num_hypotheses, num_backward
            )
            self.selector = HypothesisSelector(num_hypotheses)
            self.matching = MatchingFeatures(dims[1], feature_dim + extra_context_dim)
        self.matcher: RAFT | None = None
        if matcher_config is not None:
            self.matcher = RAFT(**matcher_config)
            if not num_hypotheses or self.matcher.fusion is not None:
                raise ValueError('a matcher has no hypotheses, and goes beside a RAFT with some')
            self.blend = FlowBlend(self.matcher.hidden_dim)
        self.laplace_head: Head | None = None
        if confidence_head and not num_hypotheses:
            self.laplace_head = Head(hidden_dim, hidden_dim, 4 if start_detail else 3)

    def encode(self, images: Tensor) -> PairFeatures:
        """Encode a clip ``(B, F, 3, H, W)`` in [-1, 1]; each frame is encoded once."""
        batch, frames = images.shape[:2]
        plain = images
        if self.config.opening:
            opened = opening(images.mean(dim=2).flatten(0, 1)[:, None], self.config.opening)
            images = torch.cat([images, opened.unflatten(0, (batch, frames))], dim=2)
        encoded = [x.unflatten(0, (batch, frames)) for x in self.fnet.stages(images.flatten(0, 1))]

        def first(x: Tensor) -> Tensor:
            return x[:, :-1].flatten(0, 1)

        def second(x: Tensor) -> Tensor:
            return x[:, 1:].flatten(0, 1)

        fmaps, quarters, eighths = encoded
        if isinstance(self.cnet, Encoder):
            context = self.cnet(first(images))
        else:
            context = self.cnet(first(eighths))
        net, inp = context.split([self.hidden_dim, self.context_dim], dim=1)
        return PairFeatures(
            first(fmaps), second(fmaps), torch.tanh(net), F.relu(inp), first(quarters),
            second(quarters), first(plain), second(plain),
        )  # fmt: skip

    def refine(
        self,
        features: PairFeatures,
        iterations: int,
        initial_flow: Tensor | None = None,
        hypotheses: Tensor | None = None,
    ) -> FlowOutput:
        """Iterative refinement (RAFT section 3.3), and fusion where there is one.

        Args:
            features: of :meth:`encode`. The channels of ``fmap1`` and ``fmap2`` may exceed
                ``feature_dim`` (DA-Flow's fusion): the correlation is scaled by
                1/sqrt(feature_dim) regardless, so that channels that are zero leave RAFT
                unchanged. ``inp`` has ``context_dim + extra_context_dim`` channels.
            iterations: number of GRU updates, 0 or more.
            initial_flow: ``(B, 2, 8h, 8w)`` px, or None for the chosen hypotheses, or
                for zero where there are none.
            hypotheses: ``(B, K + M, 2, 8h, 8w)`` px at full resolution, the flows back last.

        Raises:
            ValueError: hypotheses missing, or of another number than ``num_hypotheses``.
        """
        given = 0 if hypotheses is None else hypotheses.shape[1]
        expected = self.config.num_hypotheses + self.config.num_backward
        if given != expected:
            raise ValueError(f'{given} flow hypotheses, not {expected}')
        net, inp = features.net, features.inp
        b, _, h, w = features.fmap1.shape
        pyramid = CorrelationPyramid(
            features.fmap1,
            features.fmap2,
            self.corr_levels,
            self.corr_radius,
            self.correlation_scale,
        )
        grid = coords_grid(b, h, w, net.device)
        if self.fusion is not None and hypotheses is not None:
            backward, choice = self._judge(features, hypotheses)
            # The choice learns from its own loss alone.
            log_shares, candidates = choice.log_shares.detach(), choice.candidates.detach()
            chosen = (log_shares.exp()[:, :, None] * candidates).sum(dim=1)
        if initial_flow is not None:
            flow = F.avg_pool2d(initial_flow.float(), 8) / 8
        elif hypotheses is not None:
            flow = F.avg_pool2d(chosen, 2) / 2
        else:
            flow = torch.zeros_like(grid)
        flows = [flow]
        for _ in range(iterations):
            flow = flow.detach()
            corr = pyramid.lookup(grid + flow)
            net, delta = self.update_block(net, inp, corr.to(net.dtype), flow.to(net.dtype))
            flow = flow + delta.float()
            flows.append(flow)
        if self.fusion is not None and hypotheses is not None:
            own = torch.cat([net, inp[:, self.context_dim :]], dim=1)
            fused = self.fusion(
                features.quarter1,
                features.quarter2,
                upsample2(flow),
                own,
                log_shares,
                candidates,
                backward,
                self.config.fusion_rounds,
            )
            correlation = pyramid.volume if self.training else None
            output = self._upsample(
                fused, flows, hypotheses, features.image1, features.image2, correlation
            )
            output.choice = choice
            del pyramid  # the matcher builds one of its own
            if self.matcher is not None and iterations >= MATCHER_FROM:
                output = self._blend(output, features, hypotheses)
            return output
        laplace = None
        if self.update_block.mask is None:
            up = 8 * F.interpolate(flow, scale_factor=8, mode='bilinear', align_corners=True)
            if self.laplace_head is not None:
                laplace = F.interpolate(self.laplace_head(net).float(), scale_factor=8)
        else:
            mask = 0.25 * self.update_block.mask(net)
            if self.config.start_detail:
                start = torch.zeros_like(features.image1[:, :2])
                if initial_flow is not None:
                    start = initial_flow.float()
                up = convex_upsample_start(flow, mask, flows[0], start)
                mask = mask[:, : 9 * 64]
            else:
                up = convex_upsample(flow, mask)
            if self.laplace_head is not None:
                laplace = convex_upsample(self.laplace_head(net), mask, magnitude=1)
        correlation = pyramid.volume if self.training else None
        return FlowOutput(up, flows, laplace, correlation, hidden=net)

    def _judge(self, features: PairFeatures, hypotheses: Tensor) -> tuple[Tensor, Choice]:
        """Flows back at 1/4, and the choice."""
        k, count = self.config.num_hypotheses, hypotheses.shape[1]
        quarter = F.avg_pool2d(hypotheses.float().flatten(1, 2), 4).unflatten(1, (count, 2)) / 4
        forward, backward = quarter[:, :k], quarter[:, k:]
        cues, about = hypothesis_cues(
            features.image1.float(), features.image2.float(), forward, backward
        )
        first = self.matching(features.quarter1, features.fmap1)
        second = self.matching(features.quarter2, features.fmap2)
        return backward, self.selector(cues, about, forward, first, second)

    def _blend(self, output: FlowOutput, features: PairFeatures, hypotheses: Tensor) -> FlowOutput:
        """The fused flow, the matcher's and the dominant plane's, by what tells which holds."""
        assert self.matcher is not None and output.laplace is not None
        image1, image2 = features.image1, features.image2
        with torch.no_grad():  # trained by itself
            pair = torch.stack([image1, image2], dim=1)
            seen = self.matcher.encode(pair)
            matched = self.matcher.refine(seen, MATCHER_ITERATIONS)
            # One after the other: the correlation of a large image takes gigabytes.
            again = self.matcher.refine(self.matcher.encode(pair.flip(-1)), MATCHER_ITERATIONS)
        assert matched.laplace is not None and matched.hidden is not None
        plane = dominant_plane(output.flow.detach(), image1, image2)
        both = mean_of_mirrored(matched, again)
        flows = torch.stack([output.flow, both, plane], dim=1)
        flow, laplace = blend_flows(
            self.blend,
            (image1, image2),
            flows,
            torch.stack([expected_error(x) for x in (output.laplace, matched.laplace)], dim=1),
            hypotheses[:, : self.config.num_hypotheses],
            [(seen.fmap1, seen.fmap2), (seen.quarter1, seen.quarter2)],
            matched.hidden,
        )
        return replace(output, flow=flow, laplace=laplace, blended=flows)

    def _upsample(
        self,
        fused: Fused,
        flows: list[Tensor],
        hypotheses: Tensor,
        image1: Tensor,
        image2: Tensor,
        correlation: Tensor | None,
    ) -> FlowOutput:
        """From 1/4 to the full resolution, where the hypotheses have kept their detail."""
        full = hypotheses[:, : self.config.num_hypotheses].float()
        flow, spread = blend_along_edges(fused.shares, fused.others, full, image1.float())
        correction, laplace = (
            F.interpolate(x, scale_factor=4, mode='bilinear', align_corners=False)
            for x in (4 * fused.correction, fused.laplace)
        )
        flow = flow + correction
        median = median_along_edges(flow.detach(), spread.detach(), image1.float(), image2.float())
        return FlowOutput(
            # The gradient passes the median by.
            median if not flow.requires_grad else flow + (median - flow).detach(),
            flows,
            laplace,
            correlation,
            fused.flows,
            fused.selections,
        )

    def forward(
        self,
        image1: Tensor,
        image2: Tensor,
        iterations: int = 12,
        initial_flow: Tensor | None = None,
        hypotheses: Tensor | None = None,
    ) -> FlowOutput:
        """Flow from ``image1`` to ``image2``, both ``(B, 3, H, W)`` in [-1, 1], H, W % 8 == 0.

        With a fusion H and W must divide by 16. See :meth:`refine` for the other arguments.
        """
        multiple = 16 if self.fusion is not None else 8
        if (
            image1.shape != image2.shape
            or image1.shape[-2] % multiple
            or image1.shape[-1] % multiple
        ):
            raise ValueError(
                f'images must agree in shape and divide by {multiple}, '
                f'got {tuple(image1.shape)} and {tuple(image2.shape)}'
            )
        features = self.encode(torch.stack([image1, image2], dim=1))
        return self.refine(features, iterations, initial_flow, hypotheses)
