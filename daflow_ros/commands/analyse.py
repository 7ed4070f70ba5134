# SPDX-License-Identifier: Apache-2.0
"""``daflow analyse``: which layer and denoising step matches best (DA-Flow, section 3.2).

The probe the paper chose its taps by: zero-shot flow from the queries and keys of every layer at
every step, its end-point error averaged over the pairs of a benchmark, as a table and a map.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

    from daflow_ros.datasets.benchmarks import Benchmark
    from daflow_ros.models.daflow import DAFlow


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument('pairs', type=Path, metavar='BENCHMARK',
                        help='Sintel, Spring, TartanAir, KITTI, Middlebury or FlyingChairs as '
                             'unpacked, or a folder of NAME.npz with NAME_clean_{1,2}.jpg')
    parser.add_argument('--weights', type=Path, metavar='FOLDER',
                        help='of daflow or daflow_tiny (default: the shipped daflow_tiny)')
    parser.add_argument('--output', type=Path, default=Path('analysis'),
                        help='layers.csv and layers.png go here (default: %(default)s)')
    parser.add_argument('--layers', type=int, nargs='+', help='0-based (default: all)')
    parser.add_argument('--steps', type=int, default=1,
                        help='denoising steps, each of which is measured (default: %(default)s)')
    parser.add_argument('--degradation', help='degrade the pairs first, e.g. rain')
    parser.add_argument('--severity', type=float, default=4.0,
                        help='1 to 5 (default: %(default)s)')
    parser.add_argument('--limit', type=int, help='pairs at most')
    parser.add_argument('--radius', type=int, default=2,
                        help='half-width of the soft-argmax, tokens (default: %(default)s)')
    parser.add_argument('--device', default='auto')


def measure(
    model: DAFlow,
    benchmark: Benchmark,
    layers: list[int],
    steps: int,
    device: str,
    radius: int = 2,
    limit: int | None = None,
    degradation: str | None = None,
    severity: float = 4.0,
) -> tuple[np.ndarray, int]:
    """Mean end-point error in px, ``(steps, layers)``, and the number of pairs.

    Raises:
        BenchmarkError: a damaged pair; ValueError: unknown degradation.
    """
    import numpy as np
    import torch

    from daflow_ros.flow.metrics import epe
    from daflow_ros.flow.padding import InputPadder
    from daflow_ros.models.zero_shot import layer_flows

    total, count = np.zeros((steps, len(layers))), 0
    for sample in benchmark:
        if limit is not None and count >= limit:
            break
        clip = np.stack([sample.image1, sample.image2])
        if degradation is not None:
            from daflow_ros.degradation import degrade

            clip = degrade(clip, degradation, severity, seed=count)
        frames = torch.from_numpy(clip).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1
        padder = InputPadder(frames.shape[-2], frames.shape[-1], model.multiple)
        (padded,) = padder.pad(frames)
        for step, layer, flow in layer_flows(model, padded[None], layers, steps, radius):
            estimate = padder.unpad(flow)[0].permute(1, 2, 0).cpu().numpy()
            total[step, layers.index(layer)] += epe(estimate, sample.flow, sample.valid)
        count += 1
    return total / max(count, 1), count


def draw(error: np.ndarray, layers: list[int], title: str, path: Path) -> None:
    """Heat map of ``(steps, layers)``, the figures written in, the best one marked."""
    import numpy as np
    from PIL import Image, ImageDraw

    steps = len(error)
    cell, margin, top = 56, 60, 48
    size = (margin + cell * len(layers) + 12, top + cell * steps + 28)
    image = Image.new('RGB', size, 'white')
    pen = ImageDraw.Draw(image)
    pen.text((8, 8), title, fill='black')
    low, high = float(error.min()), float(error.max())
    best = np.unravel_index(error.argmin(), error.shape)
    for step in range(steps):
        pen.text((8, top + cell * step + cell // 2 - 6), f'step {step}', fill='black')
        for column, _ in enumerate(layers):
            value = float(error[step, column])
            share = (value - low) / (high - low) if high > low else 0.0
            colour = (int(40 + 215 * share), int(140 + 70 * (1 - share)), int(200 - 160 * share))
            left, upper = margin + cell * column, top + cell * step
            box = (left, upper, left + cell - 2, upper + cell - 2)
            marked = (step, column) == tuple(int(i) for i in best)
            pen.rectangle(box, fill=colour, outline='black' if marked else None, width=3)
            pen.text((left + 8, upper + cell // 2 - 6), f'{value:.2f}', fill='black')
    for column, layer in enumerate(layers):
        where = (margin + cell * column + 8, top + cell * steps + 6)
        pen.text(where, f'layer {layer}', fill='black')
    image.save(path)


def run(args: argparse.Namespace) -> int:
    """Measure, write the table and the map."""
    import csv

    from daflow_ros.datasets.benchmarks import BenchmarkError, open_benchmark
    from daflow_ros.estimators import EstimatorError
    from daflow_ros.estimators.network import choose_device
    from daflow_ros.estimators.registry import shipped_weights
    from daflow_ros.models.loading import load_daflow
    from daflow_ros.models.raft_checkpoints import CheckpointError

    weights = args.weights or shipped_weights('daflow_tiny')
    if weights is None:
        print('analyse: no daflow_tiny in this installation; give --weights', file=sys.stderr)
        return 1
    if not 1 <= args.steps <= 50 or args.radius < 0:
        print('analyse: --steps must be 1 to 50, --radius at least 0', file=sys.stderr)
        return 2
    try:
        device = str(choose_device(args.device))
        model = load_daflow(weights).to(device)
        config = model.transformer.config
        last = config.num_layers - 1 if config.truncate_at is None else config.truncate_at
        layers = sorted(set(args.layers)) if args.layers else list(range(last + 1))
        if any(not 0 <= layer <= last for layer in layers):
            print(f'analyse: --layers must lie in 0 to {last}', file=sys.stderr)
            return 2
        if args.steps > 1 and config.truncate_at is not None:
            print(f'analyse: {weights} holds what one step needs', file=sys.stderr)
            return 2
        error, count = measure(
            model, open_benchmark(args.pairs), layers, args.steps, device, args.radius, args.limit,
            args.degradation, args.severity,
        )
    except (BenchmarkError, CheckpointError, EstimatorError, ValueError) as failure:
        print(f'analyse: {failure}', file=sys.stderr)
        return 1
    args.output.mkdir(parents=True, exist_ok=True)
    with (args.output / 'layers.csv').open('w', newline='') as stream:
        writer = csv.writer(stream)
        writer.writerow(['step', 'layer', 'epe_px', 'pairs'])
        for step in range(args.steps):
            for column, layer in enumerate(layers):
                writer.writerow([step, layer, f'{error[step, column]:.4f}', count])
    state = f'{args.degradation} {args.severity:g}' if args.degradation else 'as they are'
    title = f'zero-shot EPE in px, {count} pairs of {args.pairs.name}, {state}'
    draw(error, layers, title, args.output / 'layers.png')
    step, column = divmod(int(error.argmin()), len(layers))
    print(f'{title}\nbest: layer {layers[column]}, step {step}: {error.min():.3f} px')
    print(f'written: {args.output / "layers.csv"}, {args.output / "layers.png"}')
    return 0
