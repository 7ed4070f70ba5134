# SPDX-License-Identifier: Apache-2.0
"""What every stage of training shares: settings, optimiser, averaged weights, resuming, log.

Data are generated and degraded on the device that trains, and never repeat, or are read from
`daflow_ros/training/clip_store.py`. A run resumes to the step from one file, ``state.pt``.
"""

from __future__ import annotations

import copy
import csv
import math
import os
import time
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor
from tqdm import tqdm


@dataclass
class TrainingConfig:
    """Settings of a run; the YAML given to ``daflow train flow --config`` has these keys.

    Attributes:
        model: 'raft_tiny', 'daflow_tiny', 'raft_matcher', 'daflow_matcher', or a folder written by
            ``save_pretrained``.
        start: folder whose weights start the run (a RAFT also starts a DA-Flow), or None.
        backbone: folder of a DA-Flow whose transformer is taken over, after ``start``, or None.
        matcher: folder of a RAFT without hypotheses ('raft_matcher') to put beside the network,
            which has some; the blend of the two and the dominant plane's motion is all that is
            trained then. Or None.
        imagery: folder of photographs (``daflow imagery``), or None for procedural textures.
        clips: folder of degraded clips that ``daflow clips --degrade`` wrote, or None to draw
            them while training; ``imagery``, ``reach``, ``degraded`` and ``reuse`` then have no
            part.
        workers: processes that draw flying pairs and scenes from ``imagery`` and degrade them
            ahead of the trainer (``window_stream.py``, the training mix always); 0 for none.
            ``reach``, ``degraded`` and ``reuse`` then have no part.
        video: folder of clean recordings to train on instead of generated scenes, or None.
        teacher, teacher_weights: estimator that gives the flow of such video.
        frames: of a clip; the flow of its last pair is trained.
        output: folder of the run.
        steps: last step; decay: steps before it over which the learning rate falls to zero.
        batch, size: clips a step and device, and their side in px (stored ones are cropped).
        iterations: GRU updates.
        learning_rate, backbone_rate: of the flow network, and of the diffusion transformer
            (0 freezes it, as the paper does).
        selector_rate: of the choice between hypotheses; 0 keeps it as the start has it.
        control_only: of the transformer train only the parameters named ``*control*``, as
            DiT4SR's recipe does.
        warmup: steps of rising learning rate.
        reach: largest camera translation as a share of the side.
        degraded: share of batches that are degraded (the mix is degradation.random_degradation's).
        warm_starts: share of steps that start from a disturbed true flow, as the finer levels of
            coarse-to-fine inference do; with ``workers`` the share of windows that start from one
            as a choice among hypotheses leaves it (``disturbed.py``).
        reuse: steps that share a generated batch, each with its own degradation and flips.
        balance: px, of :func:`sequence_loss`.
        matching_weight, selection_weight, confidence_weight: of the further losses.
        ema: decay of the averaged weights that are saved as the model.
        seed: of data and weights.
        precision: 'bf16' or 'no'.
        save_every, log_every: steps.
    """

    model: str = 'raft_tiny'
    start: str | None = None
    backbone: str | None = None
    matcher: str | None = None
    imagery: str | None = None
    clips: str | None = None
    workers: int = 0
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
    selector_rate: float = 0.0
    control_only: bool = False
    weight_decay: float = 1e-4
    warmup: int = 200
    reach: float = 0.25
    degraded: float = 0.85
    warm_starts: float = 0.3
    reuse: int = 2
    balance: float = 0.0
    matching_weight: float = 1.0
    selection_weight: float = 0.3
    confidence_weight: float = 0.1
    ema: float = 0.999
    seed: int = 0
    precision: str = 'bf16'
    save_every: int = 250
    log_every: int = 20


def learning_rate_factor(step: int, config: TrainingConfig) -> float:
    """Warm-up, constant, then a linear fall over the last ``decay`` steps."""
    rise = min(1.0, (step + 1) / max(config.warmup, 1))
    fall = min(1.0, (config.steps - step) / max(config.decay, 1))
    return max(0.0, min(rise, fall))


class Trainer(ABC):
    """One run; :meth:`run` trains to ``config.steps``.

    Raises:
        ValueError: ``state.pt`` in the output folder belongs to a run of another model.
    """

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.accelerator = Accelerator(
            mixed_precision=config.precision,
            # The transformer's last block is run only up to its tap.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.device = self.accelerator.device
        torch.manual_seed(config.seed)
        self.network: Any = self.build().to(self.device)
        self.averaged: Any = copy.deepcopy(self.network).eval().requires_grad_(False)
        rates = {
            'transformer.': config.backbone_rate,
            'selector.': config.selector_rate,
            'raft.selector.': config.selector_rate,
        }
        # The network's own rate comes first: it is the one in the log.
        parts: dict[float, list[Tensor]] = {config.learning_rate: []}
        for name, parameter in self.network.named_parameters():
            parameter.requires_grad_(self.trains(name))
            if parameter.requires_grad:
                own = [rate for prefix, rate in rates.items() if name.startswith(prefix)]
                parts.setdefault(own[0] if own else config.learning_rate, []).append(parameter)
        groups: list[dict[str, Any]] = [
            {'params': params, 'base': rate} for rate, params in parts.items() if params
        ]
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
        )
        self.model, self.optimizer = self.accelerator.prepare(self.network, self.optimizer)
        self.generator = torch.Generator(device=self.device)
        self.generator.manual_seed(config.seed + 7919 * self.accelerator.process_index)
        self.step = 0
        self.seconds = 0.0
        self.folder = Path(config.output)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.state_file = self.folder / 'state.pt'
        if self.state_file.exists():
            self._resume()

    @abstractmethod
    def build(self) -> torch.nn.Module:
        """The network, with the weights it starts from."""

    @abstractmethod
    def trains(self, name: str) -> bool:
        """Whether this stage trains the parameter."""

    @abstractmethod
    def loss(self) -> tuple[Tensor, dict[str, float]]:
        """Loss of the next batch, and the figures that are logged."""

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
        self.save_model()

    def save_model(self) -> None:
        """Write ``model/``, the averaged weights."""
        self.averaged.save_pretrained(self.folder / 'model')

    def train_step(self) -> dict[str, float]:
        """One optimiser step."""
        factor = learning_rate_factor(self.step, self.config)
        for group in self.optimizer.param_groups:
            group['lr'] = group['base'] * factor
        self.model.train()
        loss, figures = self.loss()
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
        names += ['matching', 'selection', 'chosen', 'nll', 'restoration', 'input_error']
        names += ['restored_error', 'gradient']
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
