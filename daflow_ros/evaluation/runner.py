# SPDX-License-Identifier: Apache-2.0
"""Runs models over a source and its corruptions; keeps what is done, so that it can go on."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

import daflow_ros
from daflow_ros.estimators import EstimatorError, FlowEstimate, FlowEstimator
from daflow_ros.evaluation import measures, proxies
from daflow_ros.evaluation.corruptions import CLEAN, Corruption, corrupt_clip
from daflow_ros.evaluation.memory import PeakMemory
from daflow_ros.evaluation.models import ModelSpec
from daflow_ros.evaluation.sources import Clip, Source, SourceError, open_source

Record = dict[str, Any]
Images = tuple[npt.NDArray[np.uint8], ...]

PACKAGE = Path(__file__).resolve().parents[1]
#: Results do not outlive a change of these.
SOURCES = (
    'degradation/*.py', 'flow/*.py', 'models/*.py', 'estimators/*.py', 'datasets/*.py',
    'evaluation/measures.py', 'evaluation/proxies.py', 'evaluation/corruptions.py',
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What is run; part of every result.

    Args:
        models: in the order of the tables.
        corruptions: `clean` first.
        seed: of the corruptions.
        proxies: measure the proxies also where there is ground truth (a second estimation).
        device, iterations: of the networks; None is each model's default.
        topic, every, limit: see `open_source`.

    """

    models: tuple[ModelSpec, ...]
    corruptions: tuple[Corruption, ...] = (CLEAN,)
    seed: int = 0
    proxies: bool = False
    device: str = 'auto'
    iterations: int | None = None
    topic: str | None = None
    every: int = 1
    limit: int | None = None


@dataclass
class SourceResult:
    """All records of one source, failures included; fresh: something was estimated now."""

    source: str
    path: str
    kind: str
    records: list[Record]
    failures: list[str]
    models: dict[str, dict[str, Any]]
    fresh: bool = True


def rounded(value: Any) -> Any:
    """Seven significant digits and no NaN, as the JSON files have them."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(item) for item in value]
    if isinstance(value, float):
        return float(f'{value:.7g}') if math.isfinite(value) else None
    return value


def write_json(path: Path, content: Any) -> None:
    """Write a file at once: a reader or a killed run never leaves half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f'{path.name}.part')
    draft.write_text(json.dumps(rounded(content), indent=1, allow_nan=False) + '\n')
    draft.replace(path)


def code_revision(package: Path = PACKAGE) -> str:
    """Hash of the sources that make a result: pixels, flow and figures."""
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for file in sorted(package.glob(pattern)):
            digest.update(f'{file.relative_to(package)}\0'.encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _fingerprint(source: Source, estimator: FlowEstimator, settings: Settings) -> dict[str, Any]:
    """All that a stored result depends on, but for the corruptions, which are stored apart."""
    return {
        'path': str(source.path.resolve()), 'kind': source.kind, 'pairs': source.pair_count,
        'topic': source.topic, 'every': source.every, 'limit': source.limit,
        'model': estimator.name, 'revision': estimator.revision,
        'iterations': settings.iterations or estimator.default_iterations,
        'device': estimator.device.split(':')[0], 'seed': settings.seed,
        'proxies': settings.proxies, 'code': code_revision(), 'opencv': cv2.__version__,
        'version': daflow_ros.__version__,
    }


def slug(text: str) -> str:
    """A text as a file's name."""
    return re.sub(r'[^\w.-]+', '_', text)


def result_folder(output: Path, path: Path) -> Path:
    """Folder of a source's results; two sources of one name do not share it."""
    key = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:6]
    return output / 'runs' / f'{slug(path.resolve().name)}-{key}'


class _ModelRun:
    """One model on one source: what is stored, what is missing, what is new."""

    def __init__(
        self, spec: ModelSpec, estimator: FlowEstimator, file: Path,
        fingerprint: dict[str, Any], settings: Settings,
    ) -> None:
        self.spec, self.estimator, self.file = spec, estimator, file
        self.iterations = settings.iterations
        self.content: dict[str, Any] = {
            'fingerprint': rounded(fingerprint), 'corruptions': {}, 'failures': [],
        }
        try:
            stored = json.loads(file.read_text())
            found = dict(stored['fingerprint'])
            # A run with the proxies holds all that one without them would, and stays one.
            found['proxies'] = found['proxies'] and settings.proxies
            if found == self.content['fingerprint']:
                self.content = stored
        except (OSError, ValueError, KeyError, TypeError):
            pass
        done = self.content['corruptions']
        self.missing = [c for c in settings.corruptions if c.label not in done]
        self.new: dict[str, list[Record]] = {c.label: [] for c in self.missing}
        self.failures: list[str] = []
        self.clean_flows: dict[int, npt.NDArray[np.float32]] = {}

    def store(self, source_failures: list[str]) -> None:
        self.content['corruptions'].update(self.new)
        self.content['failures'] = sorted(
            {*self.content['failures'], *self.failures, *source_failures}
        )
        write_json(self.file, self.content)

    def one(self, clip: Clip, corruption: Corruption, frames: Images, masks: list[Any]) -> None:
        """Estimate and measure every pair of a clip under one corruption, `clean` first."""
        if corruption == CLEAN:
            self.clean_flows = {}
        if corruption not in self.missing and corruption != CLEAN:
            return
        for index, pair in enumerate(clip.pairs):
            try:
                record, flow = self._pair(clip, frames, index, masks[index])
            except EstimatorError as error:
                self.failures.append(f'{self.spec.label}, {pair}, {corruption.label}: {error}')
                continue
            if corruption == CLEAN:
                self.clean_flows[index] = flow
            elif index in self.clean_flows:
                record['proxies']['drift'] = proxies.drift(self.clean_flows[index], flow)
            # The clean flow is also estimated only for the drift, where it is stored already.
            if corruption in self.missing:
                record = {'pair': pair, 'clip': clip.name, 'index': index, **record}
                self.new[corruption.label].append(rounded(record))

    def _estimate(self, image1: Any, image2: Any) -> FlowEstimate:
        return self.estimator.estimate(image1, image2, iterations=self.iterations)

    def _pair(
        self, clip: Clip, frames: Images, index: int, masks: Any
    ) -> tuple[Record, npt.NDArray[np.float32]]:
        image1, image2, truth = frames[index], frames[index + 1], clip.truths[index]
        with PeakMemory(self.estimator.device) as memory:
            estimate = self._estimate(image1, image2)
        flow = estimate.flow
        record: Record = {'size': [image1.shape[1], image1.shape[0]], 'proxies': {}}
        if clip.times is not None:
            record['time'] = clip.times[index]
        length = np.hypot(flow[..., 0], flow[..., 1])
        record['mean_flow'] = float(np.nanmean(length, dtype=np.float64))
        if truth is not None:
            record['accuracy'] = measures.accuracy(flow, truth, masks)
            if estimate.confidence is not None:
                record['confidence'] = measures.confidence_quality(
                    flow, estimate.confidence, truth
                )
        if estimate.confidence is not None:
            record['mean_confidence'] = float(np.nanmean(estimate.confidence, dtype=np.float64))
        if truth is None or self.content['fingerprint']['proxies']:
            backward = self._estimate(image2, image1)
            record['proxies'] |= proxies.proxies(image1, image2, flow, backward.flow)
        record['timing'] = {'ms': 1000 * estimate.processing_time, 'peak_mb': memory.megabytes}
        return record, flow


def evaluate_source(
    path: str | Path, settings: Settings, output: str | Path,
    progress: Callable[[str], None] = lambda message: None,
) -> SourceResult:
    """Evaluate all models on one source; what `output` holds already is not run again.

    All models see the same pixels: each clip is degraded once per corruption.

    Raises:
        SourceError: the source cannot be opened, or no pair of it could be read.
        EstimatorError: a model cannot be made.

    """
    source = open_source(
        path, topic=settings.topic, every=settings.every, limit=settings.limit
    )
    folder = result_folder(Path(output), source.path)
    runs = []
    for spec in settings.models:
        estimator = spec.load(settings.device)
        file = folder / f'{slug(spec.label)}.json'
        runs.append(
            _ModelRun(spec, estimator, file, _fingerprint(source, estimator, settings), settings)
        )
    pending = [run for run in runs if run.missing]
    if pending:
        wanted = [c for c in settings.corruptions if any(c in run.missing for run in pending)]
        done = 0
        for clip in source.clips():
            masks = [
                None if truth is None else measures.region_masks(truth) for truth in clip.truths
            ]
            for corruption in [CLEAN, *(c for c in wanted if c != CLEAN)]:
                frames = corrupt_clip(clip.frames, clip.name, corruption, settings.seed)
                for run in pending:
                    run.one(clip, corruption, frames, masks)
            done += len(clip.pairs)
            progress(f'{source.name}: {done}/{source.pair_count} pairs')
        if not done:
            raise SourceError(
                f'{source.path}: no pair could be read: ' + '; '.join(source.failures[:3])
            )
        for run in pending:
            run.store(source.failures)
    return _collect(source, runs, settings, bool(pending))


def _collect(
    source: Source, runs: list[_ModelRun], settings: Settings, fresh: bool
) -> SourceResult:
    records, failures, models = [], set(), {}
    for run in runs:
        failures |= set(run.content['failures'])
        models[run.spec.label] = {
            'name': run.estimator.name, 'revision': run.estimator.revision,
            'device': run.estimator.device,
            'iterations': settings.iterations or run.estimator.default_iterations,
        }
        for corruption in settings.corruptions:
            for record in run.content['corruptions'][corruption.label]:
                records.append({
                    'source': source.name, 'model': run.spec.label,
                    'corruption': corruption.name, 'severity': corruption.severity, **record,
                })
    return SourceResult(
        source.name, str(source.path), source.kind, records, sorted(failures), models, fresh
    )
