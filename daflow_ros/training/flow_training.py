# SPDX-License-Identifier: Apache-2.0
"""Flow training on generated clips (stage 2 of DA-Flow, section 3.4, and the RAFT control).

Data are generated and degraded on the device that trains, and never repeat. The run resumes to
the step from one file, ``state.pt``.
"""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from tqdm import tqdm

from daflow_ros.estimators import load_estimator
from daflow_ros.models.raft import FlowOutput
from daflow_ros.training.clip_store import StoredClips
from daflow_ros.training.losses import laplace_nll, matching_loss, sequence_loss
from daflow_ros.training.networks import build_network, clip_hypotheses, predict, raft_of
from daflow_ros.training.scenes import Clip, SceneGenerator
from daflow_ros.training.textures import TextureBank
from daflow_ros.training.video_clips import VideoClips


@dataclass
class FlowTrainingConfig:
    """Settings of a run; the YAML given to ``daflow train flow --config`` has these keys.

    Attributes:
        model: 'raft_tiny', 'daflow_tiny' or a folder written by ``save_pretrained``.
        start: folder whose weights start the run (a RAFT also starts a DA-Flow), or None.
        backbone: folder of a DA-Flow whose transformer is taken over, after ``start``, or None.
        imagery: folder of photographs (``daflow imagery``), or None for procedural textures.
        clips: folder of degraded clips that ``daflow clips`` wrote, or None to draw them
            while training; ``imagery``, ``reach``, ``degraded`` and ``reuse`` then have no part.
        video: folder of clean recordings to train on instead of generated scenes, or None.
        teacher, teacher_weights: estimator that gives the flow of such video.
        frames: of a clip; the flow of its last pair is trained.
        output: folder of the run.
        steps: last step; decay: steps before it over which the learning rate falls to zero.
        batch, size: clips a step and device, and their side in px.
        iterations: GRU updates.
        learning_rate, backbone_rate: of the flow network, and of the diffusion transformer
            (0 freezes it, as the paper does).
        control_only: of the transformer train only the parameters named ``*control*``, as
            DiT4SR's recipe does.
        warmup: steps of rising learning rate.
        reach: largest camera translation as a share of the side.
        degraded: share of batches that are degraded (the mix is degradation.random_degradation's).
        warm_starts: share of steps that start from a disturbed true flow, as the finer levels of
            coarse-to-fine inference do.
        reuse: steps that share a generated batch, each with its own degradation and flips.
        matching_weight, confidence_weight: of the two further losses.
        ema: decay of the averaged weights that are saved as the model.
        seed: of data and weights.
        precision: 'bf16' or 'no'.
        save_every, log_every: steps.
    """

    model: str = 'raft_tiny'
    start: str | None = None
    backbone: str | None = None
    imagery: str | None = None
    clips: str | None = None
    video: str | None = None
    teacher: str = 'sea_raft_m'
    teacher_weights: str | None = None
    frames: int = 2
    output: str = 'runs/flow'
    steps: int = 20000
    decay: int = 4000
    batch: int = 6
    size: int = 192
    iterations: int = 5
    learning_rate: float = 6e-4
    backbone_rate: float = 3e-4
    control_only: bool = False
    weight_decay: float = 1e-4
    warmup: int = 200
    reach: float = 0.25
    degraded: float = 0.85
    warm_starts: float = 0.3
    reuse: int = 2
    matching_weight: float = 1.0
    confidence_weight: float = 0.1
    ema: float = 0.999
    seed: int = 0
    precision: str = 'bf16'
    save_every: int = 250
    log_every: int = 20


def learning_rate_factor(step: int, config: FlowTrainingConfig) -> float:
    """Warm-up, constant, then a linear fall over the last ``decay`` steps."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    fall = min(1.0, (config.steps - step) / max(config.decay, 1))
    return max(0.0, min(rise, fall))


def warm_start(flow: Tensor, generator: torch.Generator) -> Tensor:
    """True flow as a coarser level would have found it, ``(B, 2, H/8, W/8)`` in 1/8 px.

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
    return F.interpolate(
        (coarse + amount * noise) * kept,
        size=(h // 8, w // 8),
        mode='bilinear',
        align_corners=False,
    )


def flip(clip: Clip, generator: torch.Generator) -> Clip:
    """Mirror a batch left-right and/or upside down."""
    draws = torch.rand((2,), generator=generator, device=generator.device).tolist()
    frames, flow, occluded, distance = clip.frames, clip.flow, clip.occluded, clip.distance
    for axis, (sign, draw) in enumerate((((-1.0, 1.0), draws[0]), ((1.0, -1.0), draws[1]))):
        if draw < (0.5, 0.25)[axis]:
            dims = (-1 - axis,)
            signs = torch.tensor(sign, device=flow.device)[:, None, None]
            frames, occluded = frames.flip(dims), occluded.flip(dims)
            flow, distance = flow.flip(dims) * signs, distance.flip(dims)
    return Clip(frames, flow, occluded, distance)


def degrade_batch(clip: Clip, share: float, generator: torch.Generator) -> Tensor:
    """Degraded frames ``(B, F, 3, H, W)`` of a clip."""
    if float(torch.rand((1,), generator=generator, device=generator.device)) >= share:
        return clip.frames
    from daflow_ros.degradation import random_degradation

    return random_degradation(clip.frames, generator)


def clip_source(
    config: FlowTrainingConfig, device: torch.device
) -> Callable[[int, torch.Generator], Clip]:
    """Generated scenes, or clips of the user's own video with a teacher's flow."""
    if config.video is None:
        bank = TextureBank(config.imagery, device=device)
        return SceneGenerator(bank, config.size, config.frames, reach=config.reach)
    teacher = load_estimator(config.teacher, str(device), config.teacher_weights)
    return VideoClips(config.video, teacher, config.size, config.frames)


class FlowTrainer:
    """One run; :meth:`run` trains to ``config.steps``.

    Raises:
        ValueError: ``state.pt`` in the output folder belongs to a run of another model.
    """

    def __init__(self, config: FlowTrainingConfig) -> None:
        self.config = config
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            # The transformer's last block is run only up to its tap.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        device = self.accelerator.device
        torch.manual_seed(config.seed)
        self.network = build_network(config.model, config.start, config.backbone).to(device)
        self.fuses = raft_of(self.network).fusion is not None
        self.averaged = copy.deepcopy(self.network).eval().requires_grad_(False)
        backbone: list[Tensor] = []
        other: list[Tensor] = []
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self.trains(name))
            if parameter.requires_grad:
                (backbone if name.startswith('transformer.') else other).append(parameter)
        groups: list[dict[str, Any]] = [
            {'params': params, 'base': rate}
            for params, rate in (
                (other, config.learning_rate),
                (backbone, config.backbone_rate),
            )
            if params
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        self.model, self.optimizer = self.accelerator.prepare(self.network, self.optimizer)
        self.stored: StoredClips | None = None
        if config.clips is not None:
            rank, world = self.accelerator.process_index, self.accelerator.num_processes
            self.stored = StoredClips(config.clips, rank, world)
        else:
            self.scenes = clip_source(config, device)
        self.generator = torch.Generator(device=device)
        self.generator.manual_seed(config.seed + 7919 * self.accelerator.process_index)
        self.step = 0
        self.seconds = 0.0
        self.folder = Path(config.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.clip: Clip | None = None
        self.state_file = self.folder / 'state.pt'
        if self.state_file.exists():
            self._resume()

    def trains(self, name: str) -> bool:
        """Whether this stage trains the parameter: all, or all but a frozen transformer."""
        if not name.startswith('transformer.'):
            return True
        if self.config.control_only and 'control' not in name:
            return False
        return self.config.backbone_rate > 0

    def _resume(self) -> None:
        state = torch.load(self.state_file, map_location='cpu', weights_only=True)
        if state['model'] != self.config.model:
            raise ValueError(f'{self.state_file}: a run of {state["model"]}')
        self.network.load_state_dict(state['network'])
        self.averaged.load_state_dict(state['averaged'])
        self.optimizer.load_state_dict(state['optimizer'])
        rank = self.accelerator.process_index
        if rank == 0:
            self.generator.set_state(state['generator'])
        else:  # one file holds one generator: the others start anew, each its own
            self.generator.manual_seed(self.config.seed + 7919 * rank + 104729 * state['step'])
        self.step, self.seconds = state['step'], state['seconds']

    def save(self) -> None:
        """Write ``state.pt`` (to resume) and ``model/`` (averaged weights)."""
        if not self.accelerator.is_main_process:
            return
        state = {
            'model': self.config.model,
            'network': self.network.state_dict(),
            'averaged': self.averaged.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'generator': self.generator.get_state(),
            'step': self.step,
            'seconds': self.seconds,
            'config': asdict(self.config),
        }
        part = self.state_file.with_suffix('.part')
        torch.save(state, part)
        part.replace(self.state_file)
        self.averaged.save_pretrained(self.folder / 'model')

    def _batch(self) -> Clip:
        if self.stored is not None:
            clip = self.stored.batch(self.step, self.config.batch, self.generator.device)
            return flip(clip, self.generator)
        if self.clip is None or self.step % self.config.reuse == 0:
            self.clip = self.scenes(self.config.batch, self.generator)
        return flip(self.clip, self.generator)

    def loss(self, clip: Clip) -> tuple[Tensor, dict[str, float]]:
        """Loss of one batch, and the figures that are logged."""
        config = self.config
        frames = clip.frames
        if self.stored is None:
            frames = degrade_batch(clip, config.degraded, self.generator)
        flow = clip.flow[:, -1]
        valid = (flow.norm(dim=1, keepdim=True) < 400).float()
        start = None
        draw = torch.rand((1,), generator=self.generator, device=self.generator.device)
        if float(draw) < config.warm_starts:
            start = warm_start(flow, self.generator)
        with self.accelerator.autocast():
            output: FlowOutput = predict(
                self.model,
                2 * frames - 1,
                config.iterations,
                start,
                self.generator,
                clip_hypotheses(frames) if self.fuses else None,
            )
        loss, error = sequence_loss(output, flow, valid)
        figures = {'sequence': float(loss.detach()), 'epe': float(error.mean())}
        figures['epe_cold' if start is None else 'epe_warm'] = figures['epe']
        if output.correlation is not None and config.matching_weight:
            visible = (~clip.occluded[:, -1]).float()
            matching = matching_loss(output.correlation, flow, visible)
            figures['matching'] = float(matching.detach())
            loss = loss + config.matching_weight * matching
        if output.laplace is not None and config.confidence_weight:
            nll = laplace_nll(output.laplace, output.flow, flow, valid)
            figures['nll'] = float(nll.detach())
            loss = loss + config.confidence_weight * nll
        return loss, figures

    def train_step(self) -> dict[str, float]:
        """One optimiser step."""
        factor = learning_rate_factor(self.step, self.config)
        for group in self.optimizer.param_groups:
            group['lr'] = group['base'] * factor
        self.model.train()
        loss, figures = self.loss(self._batch())
        self.optimizer.zero_grad(set_to_none=True)
        self.accelerator.backward(loss)
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), 1.0)
        figures['gradient'] = float(norm)
        if math.isfinite(figures['gradient']):
            self.optimizer.step()
        self.step += 1
        keep = min(self.config.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            mine = self.averaged.state_dict()
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    mine[name].lerp_(value, 1 - keep)
                else:
                    mine[name].copy_(value)
        return figures

    def run(self) -> None:
        """Train to the last step, logging to ``log.csv``."""
        names = ['step', 'seconds', 'rate', 'sequence', 'epe', 'epe_cold', 'epe_warm']
        names += ['matching', 'nll', 'restoration', 'input_error', 'restored_error', 'gradient']
        main = self.accelerator.is_main_process
        log = self.folder / 'log.csv' if main else Path(os.devnull)
        fresh = not log.exists()
        with log.open('a', newline='') as file:
            writer = csv.DictWriter(file, names, restval='')
            if fresh:
                writer.writeheader()
            sums: dict[str, list[float]] = {}
            bar = tqdm(
                total=self.config.steps,
                initial=self.step,
                unit='step',
                mininterval=5,
                disable=not main,
            )
            while self.step < self.config.steps:
                begin = time.monotonic()
                for name, value in self.train_step().items():
                    sums.setdefault(name, []).append(value)
                self.seconds += time.monotonic() - begin
                bar.update()
                if self.step % self.config.log_every == 0:
                    row = {k: round(sum(v) / len(v), 4) for k, v in sums.items()}
                    bar.set_postfix({k: v for k, v in row.items() if k != 'gradient'})
                    rate = self.optimizer.param_groups[0]['lr']
                    writer.writerow(
                        {'step': self.step, 'seconds': round(self.seconds), 'rate': rate, **row}
                    )
                    file.flush()
                    sums = {}
                if self.step % self.config.save_every == 0:
                    self.save()
            self.save()
