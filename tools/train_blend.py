# SPDX-License-Identifier: Apache-2.0
"""Train the blend of raft_tiny and daflow_tiny on cues that are computed once (runs 28 to 33).

    python tools/train_blend.py match pairs imagery --count 800 --seed 0      # one for each core
    python tools/train_blend.py train pairs runs/blend --minutes 60
    python tools/train_blend.py mean runs/mean runs/blend/raft_tiny daflow_ros/weights/raft_tiny
    python tools/ship_weights.py runs/blend/raft_tiny raft_tiny               # daflow_tiny, too

`match` draws and degrades pairs, matches them with the packaged raft_tiny as its estimator does it
and writes what its blend is shown (11 MB a pair of 512x384 px). `train` goes on from the packaged
blend, or from nothing, on crops of that; with `torchrun --nproc-per-node N` in N processes, which
on a CPU are faster with one thread each than one process with N. It writes a log, and both models.
`mean` takes the mean of the blends' weights of several runs of which one started from the other.
"""

from __future__ import annotations

import argparse
import copy
import csv
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from daflow_ros.degradation import apply_degradation, random_degradation
from daflow_ros.estimators import load_estimator
from daflow_ros.models.blend_cues import COLOUR, EVEN
from daflow_ros.models.blending import FlowBlend, cut_off
from daflow_ros.models.cues import appearance
from daflow_ros.models.spatial_propagation import Pictures
from daflow_ros.training.flow_training import FASTEST
from daflow_ros.training.losses import blend_weight, laplace_nll
from daflow_ros.training.networks import load_folder, raft_of
from daflow_ros.training.window_stream import WindowDrawer, WindowSize, window

Array = NDArray[Any]

#: Of the pairs: share that are scenes, and their side in px.
SCENES, SCENE_SIDE = 0.4, 384
#: Of the scenes: share that get one of these, of which pale and plain ones come more often than in
#: the training mix, and its severities.
WEATHERED, SEVERITIES = 0.55, (1.0, 4.0)
WEATHER = (
    *('fog', 'rain') * 4, 'snow', 'snow', 'dust', 'wet_lens', 'night', 'glare', 'contrast',
    'brightness',
)  # fmt: skip
#: Crops of a step, px of half the resolution, and how many.
CROPS = (128, 8)
#: Steps of warm-up; part of the time over which the rate falls; norm that gradients are cut to.
WARM_UP, FALL, NORM = 150, 0.7, 0.4
#: px; a crop that errs by as much counts half as much as one that hardly does.
SOFT = 3.0
CONFIDENCE_WEIGHT, EMA, HELD_OUT = 0.05, 0.998, 100
PARTS = ('cues', 'hidden', 'flows', 'second')
WEIGHTS = Path(__file__).resolve().parents[1] / 'daflow_ros' / 'weights'


def rows(x: Tensor) -> Array:
    """``(1, C, h, w)`` as float16 ``(h, w, C)``."""
    levels: Array = x[0].permute(1, 2, 0).clamp(-6e4, 6e4).half().contiguous().numpy()
    return levels


def match(folder: Path, imagery: Path, count: int, seed: int) -> None:
    """Draw, degrade and match so many pairs."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    folder.mkdir(parents=True, exist_ok=True)
    estimator: Any = load_estimator('raft_tiny', 'cpu')
    network = estimator.network
    seen: dict[str, Tensor] = {}

    def shown(_: Any, given: tuple[Any, ...]) -> None:
        seen['cues'], seen['hidden'] = given[:2]

    def gave(_: Any, given: tuple[Any, ...], output: Any) -> None:
        seen['flows'], seen['cut'] = output.blended, cut_off(given[0])
        seen['second'] = F.avg_pool2d(given[1].float(), 2)

    network.blend.register_forward_pre_hook(shown)
    network.register_forward_hook(gave)
    drawer = WindowDrawer(imagery)
    rng = np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(int(rng.integers(1 << 31)))
    for number in tqdm(range(count), unit='pair'):
        size, scene = WindowSize(384, 512), rng.random() < SCENES
        if scene:
            frames, flow, _ = drawer.scene(rng, generator)
            size = WindowSize(SCENE_SIDE, SCENE_SIDE)
        else:
            frames, flow, _ = drawer.pair(rng, generator)
        images, part = window(rng, frames, flow, size)
        clip = torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2)[None]
        clip = clip.float() / 255
        if scene and rng.random() < WEATHERED:
            name, severity = str(rng.choice(WEATHER)), float(rng.uniform(*SEVERITIES))
            clip = apply_degradation(clip, name, severity, generator)[0].clamp(0, 1)
        else:
            clip = random_degradation(clip, generator)[0]
        levels = (clip * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
        estimator.estimate(*levels)
        true = torch.from_numpy(np.ascontiguousarray(part)).permute(2, 0, 1)[None]
        valid = (true.norm(dim=1, keepdim=True) < FASTEST).float()
        share = F.avg_pool2d(valid, 2)
        true = F.avg_pool2d(true.where(valid > 0, 0), 2) / share.clamp(min=1e-3)
        flows = F.avg_pool2d(seen['flows'].float().flatten(1, 2), 2)
        seen['flows'] = torch.cat([flows, true, seen['cut'], (share > 0.5).float()], dim=1)
        for name in PARTS[::-1]:  # what has cues is whole
            path = folder / f'{seed:03d}_{number:05d}_{name}.npy'
            with path.with_suffix('.part').open('wb') as file:
                np.save(file, rows(seen[name]))
            path.with_suffix('.part').replace(path)


class Pairs:
    """What `match` wrote; flows are (chosen, matcher, plane, true), 2 channels each, and more."""

    def __init__(self, folder: Path, seed: int) -> None:
        names = sorted(path.name[:-9] for path in folder.glob('*_cues.npy'))
        if len(names) < 2:
            raise FileNotFoundError(f'{folder}: fewer than two pairs (`match` writes them)')
        self.folder, self.rng = folder, np.random.default_rng(seed)
        held = min(HELD_OUT, len(names) // 10 + 1)
        step = len(names) / held
        self.held = [names[int(step * i)] for i in range(held)]
        self.names = sorted({*names} - {*self.held})
        counts = np.array([self.weight(name) for name in self.names])
        self.chances = counts / counts.sum()

    def load(self, name: str) -> list[Array]:
        """Cues, hidden state, flows and second image, ``(h, w, C)``, mapped into memory."""
        return [np.load(self.folder / f'{name}_{part}.npy', mmap_mode='r') for part in PARTS]

    def weight(self, name: str) -> float:
        """See `blend_weight`."""
        flows = tensor([self.load(name)[2]])
        every = flows[:, :8].unflatten(1, (4, 2))
        return float(blend_weight(every[:, :3], every[:, 3], flows[:, 9:]))

    def crop(self, name: str, size: int) -> tuple[list[Array], list[int]]:
        """A random one, mirrored and transposed at random; where it lies in the second image."""
        cues, hidden, flows, second = self.load(name)
        (height, width), corner = cues.shape[:2], []
        size = min(size, 4 * (height // 4), 4 * (width // 4))
        for side in (width, height):
            corner.append(4 * int(self.rng.integers((side - size) // 4 + 1)))
        left, top = corner
        fine = np.s_[top : top + size, left : left + size]
        coarse = np.s_[top // 4 : (top + size) // 4, left // 4 : (left + size) // 4]
        parts = [cues[fine], hidden[coarse], np.array(flows[fine]), second]
        vectors = parts[2][..., :8]
        for axis, side in ((0, width), (1, height)):  # x, y
            if self.rng.random() < 0.5:
                vectors[..., axis::2] *= -1
                parts = [np.flip(part, 1 - axis) for part in parts]
                corner[axis] = side - size - corner[axis]
        if self.rng.random() < 0.5:
            parts = [part.swapaxes(0, 1) for part in parts]
            parts[2] = parts[2][..., [1, 0, 3, 2, 5, 4, 7, 6, 8, 9]]
            corner.reverse()
        return parts, corner

    def batch(self, size: int, count: int) -> tuple[list[Tensor], Pictures]:
        """Crops of pairs drawn by their weight."""
        chosen = self.rng.choice(self.names, count, p=self.chances)
        crops = [self.crop(name, size) for name in chosen]
        return tensors([parts for parts, _ in crops], [corner for _, corner in crops])


def tensors(crops: list[list[Array]], corners: list[list[int]]) -> tuple[list[Tensor], Pictures]:
    """Cues, hidden state and flows, and both pictures; the second ones padded to one size."""
    *maps, seconds = zip(*crops, strict=True)
    parts = [tensor(list(part)) for part in maps]
    height, width = (max(second.shape[axis] for second in seconds) for axis in (0, 1))
    whole = []
    for second in seconds:
        look = appearance(tensor([second]))
        ends = (0, width - look.shape[-1], 0, height - look.shape[-2])
        whole.append(F.pad(look, ends))
    first = torch.cat([127.5 * (parts[0][:, COLOUR] + 1) + 1, parts[0][:, EVEN]], dim=1)
    corner = torch.tensor(corners, dtype=torch.float32)
    return parts, Pictures(first.contiguous(), torch.cat(whole), corner)


def tensor(maps: list[Array]) -> Tensor:
    """``(B, C, h, w)`` float32, channels last."""
    stacked = torch.from_numpy(np.stack(maps)).permute(0, 3, 1, 2).float()
    return stacked.contiguous(memory_format=torch.channels_last)


def run(
    blend: FlowBlend, parts: list[Tensor], pictures: Pictures
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Flow ``(B, 2, h, w)``, Laplace parameters, true flow, valid."""
    cues, hidden, flows = parts
    three, cut = flows[:, :6].unflatten(1, (3, 2)), flows[:, 8:9]
    with torch.autocast('cpu', torch.bfloat16):
        flow, laplace = blend(cues, hidden, three, cut, cues[:, COLOUR], pictures)
    return flow, laplace.float(), flows[:, 6:8], flows[:, 9:]


def mean_error(flow: Tensor, true: Tensor, valid: Tensor) -> Tensor:
    """Of each crop, ``(B,)`` px."""
    error = ((flow - true).square().sum(dim=1, keepdim=True) + 1e-4).sqrt() * valid
    return error.sum(dim=(1, 2, 3)) / valid.sum(dim=(1, 2, 3)).clamp(min=1)


@torch.no_grad()
def held_out(blend: FlowBlend, pairs: Pairs) -> tuple[float, float]:
    """Error e as e / (1 + e), and the confidence's NLL, of the pairs held out."""
    every = []
    for name in pairs.held:
        flow, laplace, true, valid = run(blend, *tensors([pairs.load(name)], [[0, 0]]))
        error = float(mean_error(flow, true, valid))
        every.append((error / (1 + error), float(laplace_nll(laplace, flow, true, valid))))
    score, nll = np.mean(every, axis=0)
    return float(score), float(nll)


def save(blend: FlowBlend, output: Path) -> None:
    """Both packaged models with this blend."""
    for name in ('raft_tiny', 'daflow_tiny'):
        model = load_folder(WEIGHTS / name)
        raft_of(model).blend.load_state_dict(blend.state_dict())
        model.save_pretrained(output / name)


def average(output: Path, models: list[Path]) -> None:
    """Both packaged models with the mean of these models' blends (arXiv:2203.05482)."""
    blends = [raft_of(load_folder(model)).blend.float() for model in models]
    weights = [blend.state_dict() for blend in blends]
    mean = {key: torch.stack([w[key] for w in weights]).mean(dim=0) for key in weights[0]}
    blends[0].load_state_dict(mean)
    save(blends[0], output)


def train(folder: Path, output: Path, minutes: float, rate: float, new: bool) -> None:
    """Train by the clock; the first process writes."""
    world, rank = int(os.environ.get('WORLD_SIZE', 1)), int(os.environ.get('RANK', 0))
    if world > 1:
        torch.set_num_threads(1)
        dist.init_process_group('gloo')
    torch.manual_seed(0)
    pairs = Pairs(folder, rank)
    packaged = raft_of(load_folder(WEIGHTS / 'raft_tiny'))
    assert packaged.matcher is not None
    blend = FlowBlend(packaged.matcher.hidden_dim) if new else packaged.blend
    blend.mean.copy_(packaged.blend.mean)
    blend.deviation.copy_(packaged.blend.deviation)
    blend = blend.float().to(memory_format=torch.channels_last).train()
    averaged = copy.deepcopy(blend)
    optimiser = torch.optim.AdamW(blend.parameters(), lr=rate, weight_decay=1e-3)
    kinds = [
        [p for name, p in blend.named_parameters() if name.startswith('laplace') == confidence]
        for confidence in (False, True)
    ]
    output.mkdir(parents=True, exist_ok=True)
    begin, step, done, logged = time.monotonic(), 0, 0.0, -1e9
    with (output / f'log{rank or ""}.csv').open('w', newline='') as file:
        log = csv.writer(file)
        log.writerow(['step', 'seconds', 'held_out', 'held_out_nll'])
        while True:
            passed = time.monotonic() - begin
            clock = torch.tensor([passed / 60 / minutes])
            if world > 1:
                dist.broadcast(clock, 0)
            done = float(clock)
            if rank == 0 and (passed - logged > 60 * minutes / 6 or done >= 1):
                logged = passed
                score, nll = held_out(averaged, pairs)
                log.writerow([step, round(passed), round(score, 4), round(nll, 3)])
                file.flush()
                print(f'step {step}, {passed:.0f} s, held out {score:.4f}, NLL {nll:.3f}')
                save(averaged, output)
            if done >= 1:
                break
            flow, laplace, true, valid = run(blend, *pairs.batch(*CROPS))
            error = mean_error(flow, true, valid)
            loss = (SOFT * error / (SOFT + error.detach())).mean()
            loss = loss + CONFIDENCE_WEIGHT * laplace_nll(laplace, flow, true, valid)
            for group in optimiser.param_groups:
                group['lr'] = rate * min(1, (step + 1) / WARM_UP) * min(1, (1.002 - done) / FALL)
            optimiser.zero_grad()
            loss.backward()
            for parameters in kinds:
                for parameter in parameters if world > 1 else ():
                    dist.all_reduce(parameter.grad)
                    parameter.grad /= world
                torch.nn.utils.clip_grad_norm_(parameters, NORM, error_if_nonfinite=True)
            optimiser.step()
            step += 1
            with torch.no_grad():
                kept = min(EMA, step / (step + 20))
                for mean, now in zip(averaged.parameters(), blend.parameters(), strict=True):
                    mean.lerp_(now, 1 - kept)
    if world > 1:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    verbs = parser.add_subparsers(dest='verb', required=True)
    matching = verbs.add_parser('match', help='draw and match pairs')
    matching.add_argument('folder', type=Path, help='of the pairs')
    matching.add_argument('imagery', type=Path, help='folder of `daflow imagery`')
    matching.add_argument('--count', type=int, default=800, help='pairs')
    matching.add_argument('--seed', type=int, default=0, help='another one for each process')
    training = verbs.add_parser('train', help='train on them')
    training.add_argument('folder', type=Path, help='of the pairs')
    training.add_argument('output', type=Path, help='folder of the log and of both models')
    training.add_argument('--minutes', type=float, default=60)
    training.add_argument('--rate', type=float, default=6e-4, help='highest learning rate')
    training.add_argument('--new', action='store_true', help='from nothing')
    averaging = verbs.add_parser('mean', help='mean of the weights of several blends')
    averaging.add_argument('output', type=Path, help='folder of both models')
    averaging.add_argument('models', type=Path, nargs='+', help='folders of raft_tiny, trained')
    given = parser.parse_args()
    if given.verb == 'match':
        match(given.folder, given.imagery, given.count, given.seed)
    elif given.verb == 'mean':
        average(given.output, given.models)
    else:
        train(given.folder, given.output, given.minutes, given.rate, given.new)


if __name__ == '__main__':
    main()
