# SPDX-License-Identifier: Apache-2.0
"""The same recording through the node over DDS: rate, latency, drops, and where flow differs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from daflow_ros.datasets.recorded_flow import read_recorded_flow
from daflow_ros.datasets.recordings import Frame, Recording, RecordingError, open_recording
from daflow_ros.evaluation.models import ModelSpec
from daflow_ros.evaluation.runner import Settings, SourceResult, result_folder, slug

#: Mean distance in px up to which live and direct flow count as the same.
SAME = 0.01


class LiveError(ValueError):
    """The node cannot be run: no ROS, or it did not come up."""


#: Plays a recording through a node with the model, into a folder; returns the summary of the
#: replay and the bag of recorded flow. It comes from above: ROS is a floor of its own.
Play = Callable[[Recording, Path, ModelSpec, Settings], tuple[Any, Path]]


def compare_flow(
    flow_bag: Path, recording_path: Path, topic: str | None, spec: ModelSpec, settings: Settings
) -> dict[str, Any]:
    """Estimate every pair that the node published once more, directly, and compare.

    Returns:
        `pairs` compared; `different`: number whose flow is more than `SAME` px away on average;
        `difference`: mean distance in px; `worst`: the largest of the pairs' mean distances and
        `worst_at`, its time in s; `unmatched`: fields that are between no two successive frames.

    """
    estimator = spec.load(settings.device)
    fields = {(f.stamp_ns, f.target_stamp_ns): f.flow for f in read_recorded_flow(flow_bag)}
    total = len(fields)
    distances: list[tuple[float, float]] = []
    previous: Frame | None = None
    start = None
    for frame in open_recording(recording_path, topic).frames():
        start = frame.stamp_ns if start is None else start
        if previous is not None:
            live = fields.pop((previous.stamp_ns, frame.stamp_ns), None)
            if live is not None:
                direct = estimator.estimate(
                    previous.image, frame.image, iterations=settings.iterations
                ).flow
                step = np.nan_to_num(live) - direct
                distance = float(np.hypot(step[..., 0], step[..., 1]).mean(dtype=np.float64))
                distances.append((distance, (previous.stamp_ns - start) / 1e9))
        previous = frame
    worst, when = max(distances, default=(math.nan, math.nan))
    return {
        'pairs': len(distances),
        'different': sum(distance > SAME for distance, _ in distances),
        'difference': float(np.mean([d for d, _ in distances])) if distances else math.nan,
        'worst': worst, 'worst_at': when, 'unmatched': total - len(distances),
    }


def run_live(
    results: list[SourceResult], settings: Settings, output: Path, play: Play,
    progress: Callable[[str], None] = lambda message: None,
) -> list[dict[str, Any]]:
    """Play each recording at its own rate through the node, once for each model.

    Benchmarks are left out: their pairs have no times. Corruptions too: what is played is the
    recording as it is.

    Returns:
        One entry per recording and model; all of it lies under `timing`, since none of it is
        the same twice.

    Raises:
        LiveError: the node did not come up, or a file cannot be read or written.

    """
    entries = []
    for result in results:
        if result.kind != 'recording':
            progress(f'{result.source}: a benchmark, not played')
            continue
        for spec in settings.models:
            folder = result_folder(output, Path(result.path)) / f'live-{slug(spec.label)}'
            progress(f'{result.source}: live, {spec.label}')
            try:
                recording = open_recording(result.path, settings.topic)
                summary, flow_bag = play(recording, folder, spec, settings)
                same = compare_flow(
                    flow_bag, Path(result.path), settings.topic, spec, settings
                )
            except (LiveError, RecordingError, OSError) as error:
                raise LiveError(f'{result.path}, {spec.label}: {error}') from error
            entries.append({
                'source': result.source, 'model': spec.label,
                'timing': {
                    'sent': summary.sent, 'expected': summary.flow_expected,
                    'received': summary.flow_received, 'dropped': summary.dropped,
                    'lost': summary.lost_pictures + summary.lost_flow, 'late': summary.late,
                    'rate': summary.rate, 'latency_ms_p50': summary.latency_p50,
                    'latency_ms_p95': summary.latency_p95, 'epe': summary.epe, **same,
                },
            })
    return entries


def sentence(entry: dict[str, Any]) -> str:
    """One entry in words."""
    t = entry['timing']
    drops = [f'{count} {cause.removeprefix("dropped_")}' for cause, count in t['dropped'].items()]
    drops += [f'{t["lost"]} lost by the transport'] if t['lost'] else []
    text = (
        f'{entry["source"]}, {entry["model"]}: {t["received"]} of {t["expected"]} pairs at'
        f' {t["rate"]:.1f} Hz, latency {t["latency_ms_p50"]:.0f} ms (median),'
        f' {t["latency_ms_p95"]:.0f} ms (95 %); dropped: {", ".join(drops) or "none"}.'
    )
    if t['different']:
        return (
            f'{text} {t["different"]} of {t["pairs"]} flow fields differ from the direct run, by'
            f' {t["difference"]:.2g} px on average, at most {t["worst"]:.2g} px'
            f' {t["worst_at"]:.2f} s after the start.'
        )
    return f'{text} All {t["pairs"]} flow fields are those of the direct run.'
