# SPDX-License-Identifier: Apache-2.0
"""Counters since the start and rates of the last seconds, for ``FlowStats`` and diagnostics."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

import numpy as np

from daflow_ros.ros.frame_buffer import Drop

#: Seconds that rates, percentiles and means look back.
WINDOW = 5.0


@dataclass(frozen=True)
class Snapshot:
    """Statistics of one camera at one time.

    Counters are since the start, rates (Hz), percentiles (s) and means over :data:`WINDOW`; NaN
    where the window is empty.

    Attributes:
        dropped: count by cause, every cause present.
        reasons: last line for people by cause.
        silence: seconds since the last image, or since the subscription if none came over it.
        overruns: processed pairs in a row that took longer than their limit.
        latency: end to end, percentiles 50, 95, 99; processing: percentiles 50, 95.
    """

    received: int
    processed: int
    published: int
    dropped: dict[Drop, int]
    reasons: dict[Drop, str]
    frame_id: str
    silence: float
    overruns: int
    input_rate: float
    rate: float
    latency: tuple[float, float, float]
    processing: tuple[float, float]
    mean_flow: float
    mean_confidence: float


class FlowStatistics:
    """Gathers what happens to the frames of one camera. Thread-safe."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._start = time.monotonic()
        self._last_image = self._start
        self._frame_id = ''
        self._overruns = 0
        self._counts: Counter[str] = Counter()
        self._dropped: Counter[Drop] = Counter()
        self._reasons: dict[Drop, str] = {}
        self._inputs: deque[tuple[float]] = deque()
        self._processing: deque[tuple[float, float]] = deque()
        self._outputs: deque[tuple[float, float, float, float]] = deque()

    def subscribed(self) -> None:
        """Images may come from now on: the silence begins anew."""
        with self._lock:
            self._last_image = time.monotonic()

    def received(self, frame_id: str) -> None:
        """Count an image from the transport."""
        with self._lock:
            self._counts['received'] += 1
            self._frame_id = frame_id
            self._last_image = time.monotonic()
            self._inputs.append((self._last_image,))
            _forget(self._inputs, self._last_image)

    def dropped(self, cause: Drop, reason: str = '', count: int = 1) -> None:
        """Count frames that give no flow, and why."""
        with self._lock:
            self._dropped[cause] += count
            self._reasons[cause] = reason

    def processed(self, seconds: float, limit: float) -> None:
        """Count a pair that is done with; ``limit`` in s, 0 for none."""
        now = time.monotonic()
        with self._lock:
            self._counts['processed'] += 1
            self._overruns = self._overruns + 1 if 0 < limit < seconds else 0
            self._processing.append((now, seconds))
            _forget(self._processing, now)

    def published(self, latency: float, mean_flow: float, mean_confidence: float) -> None:
        """Count a published flow field; latency end to end in s, flow in px."""
        now = time.monotonic()
        with self._lock:
            self._counts['published'] += 1
            self._outputs.append((now, latency, mean_flow, mean_confidence))
            _forget(self._outputs, now)

    def snapshot(self) -> Snapshot:
        """Everything at this moment."""
        now = time.monotonic()
        with self._lock:
            for window in (self._inputs, self._processing, self._outputs):
                _forget(window, now)
            span = max(min(WINDOW, now - self._start), 1e-3)
            p50, p95, p99 = _percentiles([item[1] for item in self._outputs], (50, 95, 99))
            t50, t95 = _percentiles([item[1] for item in self._processing], (50, 95))
            return Snapshot(
                received=self._counts['received'],
                processed=self._counts['processed'],
                published=self._counts['published'],
                dropped={cause: self._dropped[cause] for cause in Drop},
                reasons=dict(self._reasons),
                frame_id=self._frame_id,
                silence=now - self._last_image,
                overruns=self._overruns,
                input_rate=len(self._inputs) / span,
                rate=len(self._outputs) / span,
                latency=(p50, p95, p99),
                processing=(t50, t95),
                mean_flow=_mean(item[2] for item in self._outputs),
                mean_confidence=_mean(item[3] for item in self._outputs),
            )


def _forget(window: deque, now: float) -> None:
    while window and now - window[0][0] > WINDOW:
        window.popleft()


def _percentiles(values: Iterable[float], ranks: tuple[int, ...]) -> tuple[float, ...]:
    known = np.asarray(list(values), dtype=float)
    if not known.size:
        return (float('nan'),) * len(ranks)
    return tuple(float(value) for value in np.percentile(known, ranks))


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return sum(known) / len(known) if known else float('nan')
