# SPDX-License-Identifier: Apache-2.0
"""Means over pairs, winners, acceptance limits, and the proxies' rank correlation with EPE."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from daflow_ros.evaluation.measures import SPEEDS, SPLITS
from daflow_ros.evaluation.proxies import PROXIES, rank_correlation

Record = dict[str, Any]

#: Proxies that order models as the truth does; the others find no winner.
RANKING = ('drift',)
#: Metrics that need ground truth; means over pairs.
ACCURACY = ('epe', 'outlier1', 'outlier3', 'outlier5', 'fl_all')


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _curve(records: list[Record], key: str) -> list[float] | None:
    curves = [r['confidence'][key] for r in records if r.get('confidence')]
    return [float(v) for v in np.mean(curves, axis=0)] if curves else None


def summarise(records: list[Record]) -> Record:
    """Means of a set of records.

    EPE, outliers, proxies and AUSE are means over pairs; the splits are means over all pixels of
    the region in all pairs, since a region may be empty in a pair (`shares`: its part of all).
    `timing` has the median and 95th percentile of ms per pair and the highest peak of memory.
    """
    summary: Record = {'pairs': len(records)}
    for name in ACCURACY:
        summary[name] = _mean(r.get('accuracy', {}).get(name) for r in records)
    summary['splits'], summary['shares'] = {}, {}
    pixels = 0
    for name in SPLITS:
        parts = [r['accuracy']['splits'][name] for r in records
                 if name in r.get('accuracy', {}).get('splits', {})]
        count = sum(part[1] for part in parts)
        if count:
            summary['splits'][name] = sum(part[0] for part in parts) / count
            # Every pixel has one of the speeds, which come first.
            pixels += count if name in SPEEDS else 0
            summary['shares'][name] = count
    summary['shares'] = {n: c / max(pixels, 1) for n, c in summary['shares'].items()}
    summary['ause'] = _mean(r.get('confidence', {}).get('ause') for r in records)
    summary['sparsification'] = _curve(records, 'sparsification')
    summary['oracle'] = _curve(records, 'oracle')
    for name in PROXIES:
        summary[name] = _mean(r['proxies'].get(name) for r in records)
    summary['mean_flow'] = _mean(r.get('mean_flow') for r in records)
    summary['mean_confidence'] = _mean(r.get('mean_confidence') for r in records)
    times = [r['timing']['ms'] for r in records]
    peaks = [r['timing']['peak_mb'] for r in records if r['timing']['peak_mb'] is not None]
    summary['timing'] = {
        'ms_median': float(np.median(times)) if times else None,
        'ms_p95': float(np.percentile(times, 95)) if times else None,
        'peak_mb': max(peaks) if peaks else None,
    }
    return summary


def label(record: Record) -> str:
    """Corruption as on the command line: clean, rain:3."""
    if record['corruption'] == 'clean':
        return 'clean'
    return f'{record["corruption"]}:{record["severity"]:g}'


def table(records: list[Record]) -> dict[str, dict[str, Record]]:
    """Summaries by corruption label, then model, in the order of the records."""
    groups: dict[str, dict[str, list[Record]]] = {}
    for record in records:
        groups.setdefault(label(record), {}).setdefault(record['model'], []).append(record)
    return {
        corruption: {model: summarise(rows) for model, rows in models.items()}
        for corruption, models in groups.items()
    }


def over_corruptions(records: list[Record]) -> dict[str, Record]:
    """Summaries by model over all corrupted records, empty where only clean was run."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        if record['corruption'] != 'clean':
            groups.setdefault(record['model'], []).append(record)
    return {model: summarise(rows) for model, rows in groups.items()}


def ranking_metric(records: list[Record]) -> str:
    """What the models are compared by: EPE where any record has ground truth, else a proxy.

    Measured over the models of one pair (docs/evaluation.md), drift follows the true error, but
    needs corruptions. Without them forward-backward error is left: it tells a model's good
    frames from its bad ones, and does not rank models (see `RANKING`).
    """
    if any(r.get('accuracy') for r in records):
        return 'epe'
    return 'drift' if any(r['corruption'] != 'clean' for r in records) else 'fb_error'


def winner(summaries: dict[str, Record], metric: str) -> str | None:
    """Model with the lowest value; None where nobody has one, or the metric ranks no models."""
    if metric in PROXIES and metric not in RANKING:
        return None
    known = {model: s[metric] for model, s in summaries.items() if s.get(metric) is not None}
    return min(known, key=lambda model: known[model]) if known else None


_METRICS: dict[str, Callable[[Record], Any]] = {
    **{name: (lambda s, n=name: s.get(n)) for name in (*ACCURACY, *PROXIES, 'ause')},  # type: ignore[misc]
    'ms': lambda s: s['timing']['ms_median'],
    'ms_p95': lambda s: s['timing']['ms_p95'],
}
_CONDITION = re.compile(
    r'(?:(?P<model>[\w@./-]+)/)?(?P<metric>\w+)(?:\[(?P<corruption>[\w.:]+)\])?'
    r'\s*(?P<sign><=?|>=?)\s*(?P<limit>[-+.\deE]+)'
)


class RequirementError(ValueError):
    """A --require that cannot be understood, or names what was not measured."""


def check_requirements(text: str, records: list[Record]) -> list[tuple[str, bool]]:
    """Compare the measured means with limits.

    Args:
        text: `epe<2.0,outlier3<10`, each for every model over all records; `dis/epe<3` for one
            model; `epe[rain:3]<4` for one corruption. Metrics: EPE and outliers, the proxies,
            ause, ms, ms_p95.
        records: of the run.

    Returns:
        One sentence per model and condition, and whether it holds. NaN never holds.

    Raises:
        RequirementError: not understood, an unknown metric, model or corruption, or a metric
            that this run has not measured.

    """
    verdicts = []
    for part in filter(None, (word.strip() for word in text.split(','))):
        match = _CONDITION.fullmatch(part)
        if match is None:
            raise RequirementError(f'{part!r} is not metric<number')
        metric, sign = match['metric'], match['sign']
        try:
            limit = float(match['limit'])
        except ValueError:
            raise RequirementError(f'{match["limit"]!r} in {part!r} is no number') from None
        if metric not in _METRICS:
            raise RequirementError(f'unknown metric {metric!r}; there are {", ".join(_METRICS)}')
        chosen = [
            r for r in records
            if match['model'] in (None, r['model']) and match['corruption'] in (None, label(r))
        ]
        if not chosen:
            raise RequirementError(f'{part!r}: no such model or corruption in this run')
        for model in dict.fromkeys(r['model'] for r in chosen):
            value = _METRICS[metric](summarise([r for r in chosen if r['model'] == model]))
            if value is None:
                raise RequirementError(f'{part!r}: {metric} was not measured for {model}')
            holds = {
                '<': value < limit, '<=': value <= limit, '>': value > limit, '>=': value >= limit,
            }[sign]
            where = f' [{match["corruption"]}]' if match['corruption'] else ''
            verdicts.append(
                (f'{model}{where}: {metric} {value:.4g} {"is" if holds else "is not"}'
                 f' {sign} {limit:g}', holds)
            )
    return verdicts


def proxy_correlations(records: list[Record]) -> list[dict[str, Any]]:
    """Spearman correlation of each proxy with EPE, on records that have both.

    Two questions, two columns:
        `frames`: of one model, which frames and conditions are bad? Correlation over all its
            records, mean over models.
        `models`: of one frame and condition, which model is best? Correlation over the models,
            mean over frames and conditions (needs 3 models).
        `conditions`: of one model and frame, which conditions are bad? Correlation over
            conditions, mean over models and frames (needs 3 conditions).
    """
    known = [r for r in records if r.get('accuracy')]
    rows = []
    for name in (*PROXIES, 'mean_confidence'):
        usable = [r for r in known if _proxy(r, name) is not None]
        if not usable:
            continue
        rows.append({
            'proxy': name,
            'frames': _grouped(usable, name, lambda r: r['model']),
            'models': _grouped(usable, name, lambda r: (r['source'], r['pair'], label(r))),
            'conditions': _grouped(usable, name, lambda r: (r['source'], r['pair'], r['model'])),
            'records': len(usable),
        })
    return rows


def _proxy(record: Record, name: str) -> float | None:
    # High confidence is good: its sign is turned, so that all read alike.
    if name == 'mean_confidence':
        value = record.get(name)
        return None if value is None else -value
    found: float | None = record['proxies'].get(name)
    return found


def _grouped(records: list[Record], name: str, key: Callable[[Record], Any]) -> float | None:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    values = [
        rank_correlation(
            np.array([_proxy(r, name) for r in rows], dtype=np.float64),
            np.array([r['accuracy']['epe'] for r in rows], dtype=np.float64),
        )
        for rows in groups.values()
    ]
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else None
