# SPDX-License-Identifier: Apache-2.0
"""Train the matchers of raft_tiny and daflow_tiny in so many seconds of one GPU.

    python tools/train_matchers.py imagery runs/matchers --trunk 305 --each 190 --workers 13

A trunk (`RAFT_MATCHER`) first; then it goes on by itself and, beside it, with diffusion features,
step by step on the same windows' stream. Every other core draws and degrades windows; a step is
one CUDA graph. Learning rates go by the clock, so that the run ends when a lease does.
Writes trunk, raft and daflow (`.safetensors` of averaged weights) and a log of each.
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from daflow_ros.models.daflow import DAFlow
from daflow_ros.models.raft import RAFT
from daflow_ros.training.disturbed import disturbed
from daflow_ros.training.losses import laplace_nll, sequence_loss
from daflow_ros.training.networks import build_network, load_folder
from daflow_ros.training.window_stream import Windows, WindowStore, WindowStream

#: Share of a stage and of the peak rate.
TRUNK_RATES = ((0.0, 0.02), (0.04, 1.0), (0.5, 1.0), (1.0, 0.35))
BRANCH_RATES = ((0.0, 0.1), (0.05, 0.45), (1.0, 0.0))
#: px; what moves further is left out.
FASTEST = 200.0
EMA = 0.998
LOG_SECONDS = 10.0


@dataclass
class Settings:
    """Of a run: arguments of the command line."""

    imagery: str
    output: str
    trunk: float
    each: float
    total: float
    workers: int
    slots: int
    batch: int
    iterations: int
    rate: float
    cold: float
    start: str | None
    transformer: str
    device: str


def build(kind: str, settings: Settings, start: str | None) -> RAFT | DAFlow:
    """A matcher; the diffusion branch begins from a trained transformer and its heads."""
    torch.manual_seed(0)
    if kind == 'raft':
        return build_network('raft_matcher', start)
    network = build_network('daflow_matcher')
    given = load_folder(settings.transformer).float().state_dict()
    rest = {name: value for name, value in given.items() if not name.startswith('raft.')}
    kept = {**network.state_dict(), **rest}
    network.load_state_dict(kept)
    return network


class Stage:
    """Steps of one network; where there is CUDA, as one graph."""

    def __init__(self, network: RAFT | DAFlow, store: WindowStore, settings: Settings) -> None:
        self.device = torch.device(settings.device)
        self.cuda = self.device.type == 'cuda'
        self.network = network.to(self.device).train()
        self.store, self.settings = store, settings
        self.generator = torch.Generator(device=self.device).manual_seed(11)
        self.parameters = [p for p in network.parameters() if p.requires_grad]
        self.rate = torch.tensor(0.0, device=self.device)
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=self.rate if self.cuda else 0.0, weight_decay=1e-4,
            fused=self.cuda or None, capturable=self.cuda,
        )  # fmt: skip
        self.averaged = [p.detach().clone() for p in self.parameters]
        size = store.windows.size
        shape = (settings.batch, 2, size.height, size.width)
        self.flow = torch.zeros(shape, device=self.device)
        self.start = torch.zeros_like(self.flow)
        self.frames = torch.zeros((*shape[:2], 3, *shape[2:]), device=self.device)
        self.noise: Tensor | None = None
        if isinstance(network, DAFlow):
            factor = network.latent.factor
            low = (size.height // factor, size.width // factor)
            self.noise = self.flow.new_zeros((2 * shape[0], network.latent.channels, *low))
        self.figures: dict[str, Tensor] = {}
        self.graph: Any = None
        self.steps = 0
        if self.cuda:
            self._capture()

    def _capture(self) -> None:
        self.frames.uniform_(-1, 1)
        self.flow.normal_()
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.optimizer.zero_grad(set_to_none=True)
                self._forward_backward()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)
        self.figures = {}
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode='thread_local'):
            self._forward_backward()
        self.graph = graph
        self.forget()

    def forget(self) -> None:
        """Begin anew from the network's weights as they are now."""
        for state in self.optimizer.state.values():
            for value in state.values():
                if torch.is_tensor(value):
                    value.zero_()
        torch._foreach_copy_(self.averaged, [p.detach() for p in self.parameters])

    def _draw(self) -> None:
        g, device = self.generator, self.device
        frames, flow = self.store.batch(self.settings.batch, g)

        def normal(*shape: int) -> Tensor:
            return torch.randn((len(frames), *shape), generator=g, device=device)

        def uniform() -> Tensor:
            return torch.rand((len(frames), 1, 1, 1, 1), generator=g, device=device)

        # Colour, exposure that differs from frame to frame, and in a fifth a little more noise.
        gain = (1 + 0.05 * normal(1, 3, 1, 1)) * (1 + 0.04 * normal(2, 1, 1, 1))
        amount = 0.1 * uniform() * (uniform() < 0.2)
        frames = (frames + 1) * gain - 1 + amount * normal(*frames.shape[1:])
        self.frames.copy_(frames.clamp(-1, 1))
        self.flow.copy_(flow)
        self.start.copy_(disturbed(flow, g, self.settings.cold))
        if self.noise is not None:
            self.noise.normal_(generator=g)

    def _forward_backward(self) -> None:
        count = self.settings.iterations
        with torch.autocast('cuda', torch.bfloat16, enabled=self.cuda, cache_enabled=False):
            if isinstance(self.network, DAFlow):
                out = self.network(
                    self.frames, count, self.start, noise=self.noise, last_pair_only=True
                )
            else:
                out = self.network(self.frames[:, 0], self.frames[:, 1], count, self.start)
        valid = (self.flow.abs().amax(dim=1, keepdim=True) < FASTEST).float()
        loss, error = sequence_loss(out, self.flow, valid, balance=2.0)
        nll = laplace_nll(out.laplace, out.flow, self.flow, valid)
        (loss + 0.05 * nll).backward()
        for p in self.parameters:
            if p.grad is not None:
                p.grad.nan_to_num_(0.0, 0.0, 0.0)
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        torch._foreach_lerp_(self.averaged, [p.detach() for p in self.parameters], 1 - EMA)
        cold = (self.start.abs().amax(dim=(1, 2, 3)) == 0).float()
        mean = (error * valid[:, 0]).mean(dim=(1, 2))
        before = ((self.start - self.flow).norm(dim=1) * valid[:, 0]).mean(dim=(1, 2))

        def among(values: Tensor, share: Tensor) -> Tensor:
            return (values * share).sum() / share.sum().clamp(min=1)

        self.figures = {
            'loss': loss.detach(), 'nll': nll.detach(), 'epe_cold': among(mean, cold),
            'epe_warm': among(mean, 1 - cold), 'start_warm': among(before, 1 - cold),
        }  # fmt: skip

    def step(self, rate: float) -> None:
        """One step at a learning rate."""
        if self.cuda:
            self.rate.fill_(rate)
        else:
            for group in self.optimizer.param_groups:
                group['lr'] = rate
        self._draw()
        if self.graph is not None:
            self.graph.replay()
        else:
            self.optimizer.zero_grad(set_to_none=True)
            self._forward_backward()
        self.steps += 1
        if self.steps == 100:
            torch._foreach_copy_(self.averaged, [p.detach() for p in self.parameters])

    def weights(self) -> dict[str, Tensor]:
        """Averaged weights, on the CPU."""
        state = {name: value.detach() for name, value in self.network.state_dict().items()}
        names = [name for name, p in self.network.named_parameters() if p.requires_grad]
        state.update(zip(names, self.averaged, strict=True))
        return {name: value.clone().contiguous().cpu() for name, value in state.items()}


def write(path: Path, weights: dict[str, Tensor]) -> None:
    """A file of weights, whole or not at all."""
    part = path.with_suffix('.part')
    save_file(weights, part)
    os.replace(part, path)


def train(
    kind: str, windows: Windows, settings: Settings, begin: float, barrier: Barrier | None,
    over: Any,
) -> None:  # fmt: skip
    """The trunk (no barrier), or one of the two that go on from it."""
    torch.backends.cuda.matmul.allow_tf32 = True
    output = Path(settings.output)
    trunk = output / 'trunk.safetensors'
    network = build(kind, settings, settings.start if barrier is None else None)
    store = WindowStore(windows, torch.device(settings.device))
    stage = Stage(network, store, settings)
    if barrier is not None:
        # Made ready while the trunk trains; weights are exchanged where the graph reads them.
        while not trunk.exists():
            time.sleep(0.2)
        given = build_network('raft_matcher')
        given.load_state_dict(load_file(trunk))
        given.to(settings.device)
        if isinstance(network, DAFlow):
            network.dpt_query.zero_output()
            network.load_raft(given)
            network.zero_context_columns()
        else:
            network.load_state_dict(given.state_dict())
        stage.forget()
    while store.refresh() < 2 * settings.batch:
        time.sleep(0.2)
    rates = np.array(TRUNK_RATES if barrier is None else BRANCH_RATES)
    start = time.monotonic()
    seconds = settings.trunk
    if barrier is not None:
        seconds = min(settings.each, settings.total - (start - begin) - 8)
    name = 'trunk' if barrier is None else kind
    sums: dict[str, Tensor] = {}
    last, count = start, 0
    with (output / f'{name}.csv').open('w', newline='') as file:
        rows = csv.writer(file)
        while True:
            share = (time.monotonic() - start) / seconds
            if barrier is None or kind == 'daflow':
                over.value = int(share >= 1)
            barrier = meet(barrier)
            if over.value or share > 1.2:
                break
            rate = settings.rate * float(np.interp(share, rates[:, 0], rates[:, 1]))
            stage.step(rate)
            barrier = meet(barrier)
            if stage.steps % 25 == 0:
                store.refresh()
            for key, value in stage.figures.items():
                sums[key] = sums.get(key, 0) + value.clone()
            count += 1
            now = time.monotonic()
            if now - last > LOG_SECONDS or stage.steps == 1:
                figures = {key: round(float(value) / count, 4) for key, value in sums.items()}
                if stage.steps == 1:
                    rows.writerow(['step', 'seconds', 'rate', 'windows', *figures])
                else:
                    drawn = int(store.taken.sum())
                    line = [stage.steps, round(now - start, 1), rate, drawn]
                    rows.writerow([*line, *figures.values()])
                    file.flush()
                    print(name, *line, figures, flush=True)
                sums, last, count = {}, now, 0
    write(output / f'{name}.safetensors', stage.weights())


def meet(barrier: Barrier | None) -> Barrier | None:
    """Wait for the other network's step; None once there is none to wait for."""
    if barrier is not None:
        try:
            barrier.wait(60)
        except threading.BrokenBarrierError:
            return None
    return barrier


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('imagery', help='folder of `daflow imagery`')
    parser.add_argument('output', help='folder of the weights and logs')
    parser.add_argument('--trunk', type=float, default=305, help='seconds of the trunk')
    parser.add_argument('--each', type=float, default=190, help='seconds of the two after it')
    parser.add_argument('--total', type=float, default=1e9, help='seconds of all at most')
    parser.add_argument('--workers', type=int, default=max(1, (os.cpu_count() or 4) - 3))
    parser.add_argument('--slots', type=int, default=600, help='windows kept for each worker')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--iterations', type=int, default=6)
    parser.add_argument('--rate', type=float, default=5e-4, help='highest learning rate')
    parser.add_argument('--cold', type=float, default=0.3, help='share that starts from no motion')
    parser.add_argument('--start', help='folder of a raft_matcher to go on from')
    parser.add_argument('--transformer', default='daflow_ros/weights/daflow_tiny')
    parser.add_argument('--device', default='cuda')
    settings = Settings(**vars(parser.parse_args()))
    begin = time.monotonic()
    Path(settings.output).mkdir(parents=True, exist_ok=True)
    (Path(settings.output) / 'trunk.safetensors').unlink(missing_ok=True)
    stream = WindowStream(settings.imagery, settings.workers, settings.slots)
    context = multiprocessing.get_context('spawn')
    barrier = context.Barrier(2)
    every = [('raft', None), ('raft', barrier), ('daflow', barrier)]
    overs = [context.Value('i', 0) for _ in range(2)]
    processes = [
        context.Process(
            target=train,
            args=(kind, stream.windows, settings, begin, meeting, overs[int(meeting is not None)]),
        )
        for kind, meeting in every
    ]
    try:
        for process in processes:
            process.start()
        processes[0].join()
        for process in processes[1:]:
            if processes[0].exitcode:  # there is no trunk to go on from
                process.terminate()
            process.join()
    finally:
        stream.close()
    raise SystemExit(any(process.exitcode for process in processes))


if __name__ == '__main__':
    main()
