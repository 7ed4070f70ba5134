# SPDX-License-Identifier: Apache-2.0
"""Time, memory and work of the models in one run, and their accuracy beside it.

Models take turns, repeat by repeat, so that a machine that slows down slows all of them; times
are also given as a ratio to RAFT-small's in the same run, which compares across machines.
"""

from __future__ import annotations

import csv
import importlib
import multiprocessing
import tempfile
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from daflow_ros.estimators import ESTIMATORS, EstimatorError, FlowEstimator, load_estimator
from daflow_ros.evaluation.corruptions import Corruption
from daflow_ros.evaluation.memory import PeakMemory
from daflow_ros.evaluation.models import ModelSpec
from daflow_ros.evaluation.runner import Settings, evaluate_source
from daflow_ros.evaluation.summary import over_corruptions, table

#: The model that times are compared with.
REFERENCE = 'raft_small'
#: Architectures of which a random state can be made: speed does not depend on the weights.
_RANDOM = ('raft', 'raft_small', 'raft_tiny')

Pair = tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]


@dataclass
class Row:
    """A line of the table; None is not measured or has no meaning for the model.

    ms: of a pair, images in memory to flow in memory; relative: to RAFT-small's median;
    peak_mb: CUDA's peak, or the growth of a fresh process from before the model was loaded;
    gflops: multiply and add counted apart, convolutions, matrix products and attention only;
    epe: px, mean over pairs.
    """

    model: str
    width: int
    height: int
    iterations: int
    steps: int
    device: str
    dtype: str
    ms_median: float
    ms_p95: float
    relative: float
    peak_mb: float | None
    gflops: float | None
    weights: str
    epe_clean: float | None = None
    epe_corrupted: float | None = None


@dataclass(frozen=True)
class Setup:
    """How all models are run."""

    width: int
    height: int
    repeats: int
    device: str
    dtype: str
    iterations: int | None


def moving_pair(width: int, height: int) -> Pair:
    """Build a smooth random texture and the same moved by 5 px right and 2 px down."""
    import cv2

    noise = np.random.default_rng(0).random((height + 8, width + 8, 3)).astype(np.float32)
    wide = cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)  # type: ignore[call-overload]
    image = wide.astype(np.uint8)
    first = np.ascontiguousarray(image[4 : 4 + height, 6 : 6 + width])
    second = np.ascontiguousarray(image[2 : 2 + height, 1 : 1 + width])
    return first, second


def _random_weights(name: str, folder: Path) -> Path:
    """A state of a RAFT as it is before training."""
    import torch

    from daflow_ros.models.raft import RAFT
    from daflow_ros.models.raft_sizes import RAFT_SMALL, RAFT_TINY

    torch.manual_seed(0)
    if name == 'raft_tiny':
        RAFT(**RAFT_TINY).save_pretrained(folder / name)
        return folder / name
    network = RAFT(**RAFT_SMALL) if name == 'raft_small' else RAFT()
    path = folder / f'{name}.pth'
    torch.save(network.state_dict(), path)
    return path


def with_weights(specs: Sequence[ModelSpec], folder: Path) -> tuple[list[ModelSpec], set[str]]:
    """Give random weights to models without any; returns them and the labels that got some."""
    ready, random = [], set()
    for spec in specs:
        try:
            spec.load('cpu')
            ready.append(spec)
        except EstimatorError:
            if spec.weights is not None or spec.name not in _RANDOM:
                raise
            ready.append(replace(spec, weights=str(_random_weights(spec.name, folder))))
            random.add(spec.label)
    return ready, random


def _load(spec: ModelSpec, setup: Setup) -> FlowEstimator:
    options: dict[str, Any] = {}
    if ESTIMATORS[spec.name].weights != 'none':
        options['dtype'] = setup.dtype
        if setup.iterations is not None:
            options['iterations'] = setup.iterations
    return load_estimator(spec.name, setup.device, spec.weights, **options)


def _peak(spec: ModelSpec, setup: Setup) -> float | None:
    """Peak memory of loading and running a model, in a process of its own."""
    images = moving_pair(setup.width, setup.height)
    if ESTIMATORS[spec.name].weights != 'none':
        # What torch itself takes is no model's.
        importlib.import_module('daflow_ros.estimators.raft')
    device = setup.device
    if device == 'auto':
        from daflow_ros.estimators.network import choose_device

        device = str(choose_device('auto'))
    with PeakMemory(device if ESTIMATORS[spec.name].weights != 'none' else 'cpu') as memory:
        _load(spec, setup).estimate(*images)
    return memory.megabytes


def peak_memory(spec: ModelSpec, setup: Setup) -> float | None:
    """See `_peak`; None where the process dies, of memory for example."""
    context = multiprocessing.get_context('spawn')
    try:
        with ProcessPoolExecutor(1, mp_context=context) as child:
            return child.submit(_peak, spec, setup).result()
    except BrokenProcessPool:
        return None


def gflops(estimator: FlowEstimator, images: Pair) -> float | None:
    """Work of one estimation by torch's counter; None for models outside of torch."""
    if ESTIMATORS[estimator.name].weights == 'none':
        return None
    from torch.utils.flop_counter import FlopCounterMode

    with warnings.catch_warnings(), FlopCounterMode(display=False) as counter:
        warnings.simplefilter('ignore')
        estimator.estimate(*images)
    return counter.get_total_flops() / 1e9


def benchmark(
    specs: Sequence[ModelSpec], setup: Setup,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Row]:
    """Time the models in turns.

    Args:
        specs: models; RAFT-small is added where it is missing.
        setup: size, repeats, device and precision of all.
        progress: told what is going on.

    Raises:
        EstimatorError: a model cannot be made; only RAFTs can be timed without weights.

    """
    wanted = list(specs)
    if all(spec.name != REFERENCE for spec in wanted):
        wanted.append(ModelSpec(REFERENCE, None, REFERENCE))
    images = moving_pair(setup.width, setup.height)
    with tempfile.TemporaryDirectory() as folder:
        ready, random = with_weights(wanted, Path(folder))
        estimators = {spec.label: _load(spec, setup) for spec in ready}
        peaks, work, info = {}, {}, {}
        for spec in ready:
            progress(f'{spec.label}: memory and work')
            peaks[spec.label] = peak_memory(spec, setup)
            info[spec.label] = estimators[spec.label].estimate(*images)
            work[spec.label] = gflops(estimators[spec.label], images)
        times: dict[str, list[float]] = {label: [] for label in estimators}
        for repeat in range(setup.repeats):
            progress(f'repeat {repeat + 1}/{setup.repeats}')
            for label, estimator in estimators.items():
                times[label].append(1000 * estimator.estimate(*images).processing_time)
    reference = next(spec.label for spec in ready if spec.name == REFERENCE)
    base = float(np.median(times[reference]))
    return [
        Row(
            spec.label, setup.width, setup.height, info[spec.label].iterations,
            info[spec.label].diffusion_steps, estimators[spec.label].device,
            setup.dtype if ESTIMATORS[spec.name].weights != 'none' else 'uint8',
            float(np.median(times[spec.label])), float(np.percentile(times[spec.label], 95)),
            float(np.median(times[spec.label])) / base, peaks[spec.label], work[spec.label],
            'random' if spec.label in random else estimators[spec.label].revision,
        )
        for spec in ready
    ]


def add_accuracy(
    rows: list[Row], specs: Sequence[ModelSpec], pairs: str | Path,
    corruptions: Sequence[Corruption], setup: Setup, output: Path,
    progress: Callable[[str], None] = lambda message: None,
) -> None:
    """Fill in the EPE of the models with weights, on pairs at their own size.

    What an earlier run has left under `output` is used.
    """
    known = tuple(spec for spec in specs
                  if any(r.model == spec.label and r.weights != 'random' for r in rows))
    settings = Settings(
        known, tuple(corruptions), device=setup.device, iterations=setup.iterations
    )
    result = evaluate_source(pairs, settings, output, progress)
    clean, corrupted = table(result.records)['clean'], over_corruptions(result.records)
    for row in rows:
        if row.model in clean:
            row.epe_clean = clean[row.model]['epe']
        if row.model in corrupted:
            row.epe_corrupted = corrupted[row.model]['epe']


def write_csv(path: Path, rows: list[Row]) -> None:
    """One line a row, four significant digits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator='\n')
        writer.writeheader()
        for row in rows:
            writer.writerow({
                key: '' if value is None else f'{value:.4g}' if isinstance(value, float) else value
                for key, value in asdict(row).items()
            })


def draw_figure(path: Path, rows: list[Row]) -> bool:
    """Draw EPE over time, clean and corrupted joined by a line; False where no row has an EPE."""
    shown = [row for row in rows if row.epe_clean is not None]
    if not shown:
        return False
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot, ticker

    from daflow_ros.evaluation.charts import color

    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout='constrained')
    for index, row in enumerate(shown):
        clean = float('nan') if row.epe_clean is None else row.epe_clean
        top = clean if row.epe_corrupted is None else row.epe_corrupted
        axes.plot([row.ms_median] * 2, [clean, top], color=color(index), linewidth=1, alpha=0.5)
        if row.epe_corrupted is not None:
            axes.scatter(row.ms_median, top, s=60, color=color(index), zorder=3)
        axes.scatter(row.ms_median, clean, s=60, facecolor='white',
                     edgecolor=color(index), linewidth=1.8, zorder=3)
        axes.annotate(row.model, (row.ms_median, top), xytext=(7, 4),
                      textcoords='offset points', color=color(index), fontweight='bold')
    axes.set_xscale('log')
    axes.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f'{value:g}'))
    axes.margins(x=0.22, y=0.12)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f'ms per pair of {shown[0].width}x{shown[0].height}, '
                    f'{shown[0].device} (log), median')
    axes.set_ylabel('EPE, px (low is good)')
    axes.set_title('Filled: corrupted; open: clean', fontsize=10, loc='left')
    axes.grid(alpha=0.25)
    axes.spines[['top', 'right']].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    pyplot.close(figure)
    return True
