# SPDX-License-Identifier: Apache-2.0
"""Flow training on generated clips (stage 2 of DA-Flow, section 3.4, and the RAFT control)."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from daflow_ros.degradation import random_degradation
from daflow_ros.estimators import load_estimator
from daflow_ros.models.cues import hypothesis_cues
from daflow_ros.models.daflow import DAFlow
from daflow_ros.models.flow_output import FlowOutput
from daflow_ros.models.raft import MATCHER_FROM, RAFT
from daflow_ros.training.clip_store import Sample, StoredClips, flip
from daflow_ros.training.disturbed import disturbed
from daflow_ros.training.losses import (
    blend_weight,
    choice_loss,
    laplace_nll,
    matching_loss,
    selection_loss,
    sequence_loss,
)
from daflow_ros.training.networks import build_network, matched_clips, predict, raft_of
from daflow_ros.training.scenes import Clip, SceneGenerator
from daflow_ros.training.sprites import open_imagery
from daflow_ros.training.tone import random_tone
from daflow_ros.training.trainer import Trainer, TrainingConfig
from daflow_ros.training.video_clips import VideoClips
from daflow_ros.training.window_stream import WindowSize, WindowStore, WindowStream


def warm_start(flow: Tensor, generator: torch.Generator) -> Tensor:
    """True flow as a coarser level would have found it, ``(B, 2, H, W)`` px.

    Smoothed over a quarter-size grid, displaced by smooth noise and, in patches, left out.
    """
    b, _, h, w = flow.shape
    coarse = F.avg_pool2d(flow, 32) / 8
    g = generator
    amount = torch.exp(
        torch.empty((b, 1, 1, 1), device=flow.device).uniform_(-3.0, 0.5, generator=g)
    )
    noise = torch.randn(coarse.shape, generator=g, device=flow.device)
    kept = torch.rand((b, 1, *coarse.shape[-2:]), generator=g, device=flow.device) > 0.08
    start = 8 * (coarse + amount * noise) * kept
    return F.interpolate(start, size=(h, w), mode='bilinear', align_corners=False)


def clip_source(
    config: TrainingConfig, device: torch.device
) -> Callable[[int, torch.Generator], Clip]:
    """Generated scenes, or clips of the user's own video with a teacher's flow."""
    if config.video is None:
        bank, sprites = open_imagery(config.imagery, device)
        return SceneGenerator(
            bank, config.size, config.frames, reach=config.reach, sprites=sprites
        )
    teacher = load_estimator(config.teacher, str(device), config.teacher_weights)
    return VideoClips(config.video, teacher, config.size, config.frames)


def degrade_batch(frames: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """A batch ``(B, F, 3, H, W)`` in [0, 1], degraded, or left as it is by chance."""
    if float(torch.rand((1,), generator=generator, device=generator.device)) >= share:
        return frames
    return random_degradation(frames, generator)


#: px; what moves further, past a camera at arm's length, is left out of all losses.
FASTEST = 400.0
#: Batches over which the cues' mean and deviation are taken.
NORMALISING = 16
#: Steps from one look for new windows to the next.
REFRESH = 25


class ClipTrainer(Trainer):
    """A stage that trains on generated scenes or on the user's own video."""

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.scenes: Callable[[int, torch.Generator], Clip] | None = None
        self._clip: Clip | None = None

    def clip(self) -> Clip:
        """The next batch of clean clips; ``reuse`` steps share one."""
        if self.scenes is None:
            self.scenes = clip_source(self.config, self.device)
        if self._clip is None or self.step % self.config.reuse == 0:
            self._clip = self.scenes(self.config.batch, self.generator)
        return self._clip


class FlowTrainer(ClipTrainer):
    """Trains the flow of the last pair of each clip."""

    network: RAFT | DAFlow

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        self.fuses = raft_of(self.network).fusion is not None
        self.stored: StoredClips | None = None
        self.stream: WindowStream | None = None
        self.store: WindowStore | None = None
        if config.workers:
            self.store = self._store(config)
        elif config.clips is not None:
            rank, world = self.accelerator.process_index, self.accelerator.num_processes
            self.stored = StoredClips(config.clips, rank, world)
        else:
            self.scenes = clip_source(config, self.device)
        if self.fuses and config.selector_rate and not raft_of(self.network).selector.mean.any():
            self._normalise()
        if config.matcher is not None and config.iterations < MATCHER_FROM:
            raise ValueError(f'a matcher joins in from {MATCHER_FROM} iterations on')
        if config.matcher is not None and not raft_of(self.network).blend.mean.any():
            self._normalise_blend()

    def _store(self, config: TrainingConfig) -> WindowStore:
        """Workers at their work, and the first windows.

        Raises:
            ValueError: clips of more than two frames, no imagery, or a network with hypotheses.
        """
        if config.frames != 2 or config.imagery is None or self.fuses:
            raise ValueError('workers draw windows of two frames from imagery, without hypotheses')
        rank = self.accelerator.process_index
        seed = config.seed + 7919 * rank + 104729 * self.step
        size = WindowSize(config.size, config.size)
        self.stream = WindowStream(config.imagery, config.workers, size=size, seed=seed)
        store = WindowStore(self.stream.windows, self.device)
        while store.refresh() < config.batch:
            time.sleep(0.2)
        return store

    def run(self) -> None:
        """Train to the last step; workers end with it."""
        try:
            super().run()
        finally:
            if self.stream is not None:
                self.stream.close()

    def _early(self, index: int) -> Sample:
        """A batch to take means of cues from."""
        if self.stored is not None:
            return self.stored.batch(index, self.config.batch, self.device)
        return self.sample()

    def _normalise(self) -> None:
        """Give a new selector mean and deviation of its cues."""
        every = []
        for index in range(NORMALISING):
            sample = self._early(index)
            assert sample.hypotheses is not None
            count = sample.hypotheses.shape[1]
            flows = F.avg_pool2d(sample.hypotheses.flatten(1, 2), 4).unflatten(1, (count, 2)) / 4
            kept = raft_of(self.network).config.num_hypotheses
            cues, about = hypothesis_cues(
                sample.frames[:, -2], sample.frames[:, -1], flows[:, :kept], flows[:, kept:]
            )
            every.append(torch.cat([cues.flatten(1, 2), about], dim=1))
        x = torch.cat(every)
        for network in (self.network, self.averaged):
            selector = raft_of(network).selector
            selector.mean.copy_(x.mean(dim=(0, 2, 3)))
            selector.deviation.copy_(x.std(dim=(0, 2, 3)) + 1e-3)

    @torch.no_grad()
    def _normalise_blend(self) -> None:
        """Give a new blend mean and deviation of its cues."""
        every: list[Tensor] = []
        blend = raft_of(self.network).blend
        hook = blend.register_forward_pre_hook(lambda _, given: every.append(given[0].cpu()))
        for index in range(NORMALISING):
            sample = self._early(index)
            count = self.config.iterations
            predict(self.network, sample.frames, count, None, self.generator, sample.hypotheses)
        hook.remove()
        cues = torch.cat(every)
        for network in (self.network, self.averaged):
            blend = raft_of(network).blend
            blend.mean.copy_(cues.mean(dim=(0, 2, 3)))
            blend.deviation.copy_(cues.std(dim=(0, 2, 3)) + 1e-2)

    def build(self) -> torch.nn.Module:
        """See :func:`build_network`."""
        config = self.config
        return build_network(config.model, config.start, config.backbone, config.matcher)

    def trains(self, name: str) -> bool:
        """All but a frozen transformer and selector; with a new matcher, the blend alone."""
        if self.config.matcher is not None:
            return name.removeprefix('raft.').startswith('blend.')
        if name.removeprefix('raft.').startswith('selector.'):
            return self.config.selector_rate > 0
        if not name.startswith('transformer.'):
            return True
        if self.config.control_only and 'control' not in name:
            return False
        return self.config.backbone_rate > 0

    def sample(self) -> Sample:
        """The next batch, degraded, with hypotheses where the network fuses some."""
        config = self.config
        if self.store is not None:
            if self.step % REFRESH == 0:
                self.store.refresh()
            frames, flow = self.store.batch(config.batch, self.generator)
            return Sample(frames, flow, torch.zeros_like(flow[:, :1], dtype=torch.bool), None)
        if self.stored is not None:
            sample = self.stored.batch(self.step, config.batch, self.device)
            return flip(sample.crop(config.size, self.generator), self.generator)
        clip = self.clip()
        frames = clip.frames
        if config.video is None:
            frames = random_tone(frames, self.generator)
        frames = 2 * degrade_batch(frames, config.degraded, self.generator) - 1
        hypotheses = None
        if self.fuses:
            frames, hypotheses = matched_clips(frames)
        sample = Sample(frames, clip.flow[:, -1], clip.occluded[:, -1], hypotheses)
        return flip(sample, self.generator)

    def start(self, flow: Tensor) -> Tensor | None:
        """What the refinement of a batch starts from, ``(B, 2, H, W)`` px or None."""
        if self.store is not None:
            return disturbed(flow, self.generator, 1 - self.config.warm_starts)
        draw = torch.rand((1,), generator=self.generator, device=self.generator.device)
        return warm_start(flow, self.generator) if float(draw) < self.config.warm_starts else None

    def loss(self) -> tuple[Tensor, dict[str, float]]:
        """Loss of the next batch, and the figures that are logged."""
        config = self.config
        sample = self.sample()
        flow = sample.flow
        valid = (flow.norm(dim=1, keepdim=True) < FASTEST).float()
        # Half precision may have made it infinite, and 0 times that is not 0.
        flow = flow.where(valid > 0, 0)
        start = self.start(flow)
        with self.accelerator.autocast():
            output: FlowOutput = predict(
                self.model,
                sample.frames,
                config.iterations,
                start,
                self.generator,
                sample.hypotheses if self.fuses else None,
            )
        weight = None
        if output.blended is not None and config.matcher is not None:
            weight = blend_weight(output.blended, flow, valid)
        loss, error = sequence_loss(output, flow, valid, balance=config.balance, weight=weight)
        figures = {'sequence': float(loss.detach()), 'epe': float(error.mean())}
        figures['epe_cold' if start is None else 'epe_warm'] = figures['epe']
        if output.correlation is not None and config.matching_weight:
            matching = matching_loss(output.correlation, flow, (~sample.occluded).float())
            figures['matching'] = float(matching.detach())
            loss = loss + config.matching_weight * matching
        if output.selections and config.selection_weight:
            selection = selection_loss(output.selections, flow, valid)
            figures['selection'] = float(selection.detach())
            loss = loss + config.selection_weight * selection
        if output.choice is not None and config.selector_rate:
            choice = output.choice
            # The coarse choice is trained by itself too, so that it stays one.
            for log_shares in (choice.log_shares, choice.coarse):
                part, chosen = choice_loss(
                    log_shares.float(), choice.candidates.float(), flow, valid
                )
                loss = loss + part
                figures.setdefault('chosen', float(chosen.mean()))
        if output.laplace is not None and config.confidence_weight:
            nll = laplace_nll(output.laplace, output.flow, flow, valid)
            figures['nll'] = float(nll.detach())
            loss = loss + config.confidence_weight * nll
        return loss, figures
