# SPDX-License-Identifier: Apache-2.0
"""The results as JSON and CSV, and as a table on the terminal."""

from __future__ import annotations

import csv
import io
import platform
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import daflow_ros
from daflow_ros.evaluation.measures import SPLITS
from daflow_ros.evaluation.proxies import PROXIES
from daflow_ros.evaluation.runner import Settings, SourceResult, write_json
from daflow_ros.evaluation.summary import (
    ACCURACY,
    over_corruptions,
    proxy_correlations,
    ranking_metric,
    table,
    winner,
)

Record = dict[str, Any]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def describe_run(
    settings: Settings, results: list[SourceResult], failed: dict[str, str],
    command: Sequence[str], verdicts: Sequence[tuple[str, bool]] = (),
    played: Sequence[Record] = (),
) -> Record:
    """What was run, with what: everything needed to run it again."""
    names = ('numpy', 'opencv-python', 'torch')
    models: dict[str, Any] = {}
    for result in results:
        models |= result.models
    return {
        'command': shlex.join(['daflow', *command[1:]]),
        'versions': {
            'daflow_ros': daflow_ros.__version__, 'python': platform.python_version(),
            **{name: _version(name) for name in names if _version(name)},
        },
        'machine': f'{platform.system()} {platform.machine()}',
        'seed': settings.seed,
        'corruptions': [c.label for c in settings.corruptions],
        'every': settings.every,
        'models': models,
        'sources': [
            {'name': r.source, 'path': r.path, 'kind': r.kind,
             'pairs': len({record['pair'] for record in r.records}), 'failures': r.failures}
            for r in results
        ],
        'failed': failed,
        'live': list(played),
        'requirements': [{'sentence': s, 'holds': holds} for s, holds in verdicts],
    }


def write_results(folder: Path, run: Record, results: list[SourceResult]) -> None:
    """Write results.json (everything), summary.csv (means by source and corruption), proxies.csv.

    Times and memory lie under keys named `timing`; all else is the same in every run.
    """
    records = [record for result in results for record in result.records]
    correlations = proxy_correlations(records)
    content = {
        'run': run,
        'summary': {r.source: table(r.records) for r in results},
        'corrupted': over_corruptions(records),
        'proxy_correlations': correlations,
        'records': records,
    }
    write_json(folder / 'results.json', content)
    (folder / 'summary.csv').write_text(summary_csv(results))
    if correlations:
        (folder / 'proxies.csv').write_text(correlations_csv(correlations))


def correlations_csv(rows: list[Record]) -> str:
    """Rank correlations of the proxies with EPE, as `proxy_correlations` gives them."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\n')
    names = ('proxy', 'frames', 'models', 'conditions', 'records')
    writer.writerow(names)
    for row in rows:
        writer.writerow([
            f'{row[name]:.3f}' if isinstance(row[name], float) else row[name] for name in names
        ])
    return buffer.getvalue()


def summary_csv(results: list[SourceResult]) -> str:
    """One line per source, corruption and model."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator='\n')
    timing = ('ms_median', 'ms_p95', 'peak_mb')
    writer.writerow([
        'source', 'corruption', 'model', 'pairs', *ACCURACY,
        *(f'epe_{name}' for name in SPLITS), 'ause', *PROXIES, *timing,
    ])
    for result in results:
        for corruption, models in table(result.records).items():
            for model, row in models.items():
                values = [
                    *(row[name] for name in ACCURACY),
                    *(row['splits'].get(name) for name in SPLITS), row['ause'],
                    *(row[name] for name in PROXIES), *(row['timing'][name] for name in timing),
                ]
                writer.writerow([
                    result.source, corruption, model, row['pairs'],
                    *('' if value is None else f'{value:.5g}' for value in values),
                ])
    return buffer.getvalue()


def text_table(records: list[Record]) -> str:
    """Mean of the ranking metric by corruption and model, winners marked with *.

    With the means over all corruptions, the ratio of each model's to raft_small's and dis's
    where they are in the run, and AUSE and time.
    """
    metric = ranking_metric(records)
    rows = table(records)
    models = list(dict.fromkeys(record['model'] for record in records))
    overall = over_corruptions(records)
    if overall:
        rows = {**rows, 'all corrupted': overall}
    lines = [[f'{metric} ({PROXIES[metric][1] + ", proxy" if metric in PROXIES else "px"})',
              *models]]
    for corruption, summaries in rows.items():
        best = winner(summaries, metric)
        lines.append([corruption, *(
            _cell(summaries.get(model, {}).get(metric), model == best) for model in models
        )])
    for base in ('raft_small', 'dis'):
        for corruption in ('clean', 'all corrupted'):
            reference = rows.get(corruption, {}).get(base, {}).get(metric)
            if reference:
                lines.append([f'{corruption} / {base}', *(
                    _ratio(rows[corruption].get(model, {}).get(metric), reference)
                    for model in models
                )])
    for name in ('clean', 'all corrupted'):
        if any(s.get('ause') is not None for s in rows.get(name, {}).values()):
            lines.append([f'AUSE, {name}', *(
                _cell(rows[name].get(model, {}).get('ause'), False, 3) for model in models
            )])
    lines.append(['ms per pair (median)', *(
        _cell(rows[next(iter(rows))].get(m, {}).get('timing', {}).get('ms_median'), False, 0)
        for m in models
    )])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return '\n'.join(
        line[0].ljust(widths[0]) + ''.join(
            f'  {cell:>{width}}' for cell, width in zip(line[1:], widths[1:], strict=True)
        )
        for line in lines
    )


def _cell(value: float | None, best: bool, digits: int = 2) -> str:
    return '-' if value is None else f'{"*" if best else ""}{value:.{digits}f}'


def _ratio(value: float | None, reference: float) -> str:
    return '-' if value is None else f'{value / reference:.3f}'
