# SPDX-License-Identifier: Apache-2.0
"""The report: one self-contained HTML file, and the same as Markdown."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from daflow_ros.evaluation import charts
from daflow_ros.evaluation.filmstrip import filmstrips, pick
from daflow_ros.evaluation.live import sentence
from daflow_ros.evaluation.measures import SPLITS
from daflow_ros.evaluation.proxies import PROXIES
from daflow_ros.evaluation.runner import Settings, SourceResult
from daflow_ros.evaluation.summary import (
    ACCURACY,
    label,
    over_corruptions,
    proxy_correlations,
    ranking_metric,
    summarise,
    table,
    winner,
)
from daflow_ros.flow.metrics import trapezoid

Record = dict[str, Any]

_HERE = Path(__file__).resolve().parent
#: Rank correlations measured by the project, for runs that have no ground truth of their own.
KNOWN_CORRELATIONS = _HERE / 'proxy_correlations.csv'

_UNITS = {'epe': 'px', 'ause': '', **{name: unit for name, (_, unit) in PROXIES.items()},
          **dict.fromkeys(('outlier1', 'outlier3', 'outlier5', 'fl_all'), '%')}
_NAMES = {'epe': 'EPE', 'outlier1': '> 1 px', 'outlier3': '> 3 px', 'outlier5': '> 5 px',
          'fl_all': 'Fl-all', 'ause': 'AUSE', 'fb_error': 'forward-backward error',
          'fb_inconsistent': 'forward-backward disagreement', 'photometric': 'photometric',
          'smoothness': 'smoothness', 'drift': 'drift'}

#: Outliers above 3 px (percent) of the recommended model beyond which a condition is listed as
#: not to be trusted; where there is no ground truth, disagreement (percent).
DISTRUST = 25.0


def known_correlations() -> list[Record]:
    """Rows of the packaged table, as `proxy_correlations` gives them."""
    if not KNOWN_CORRELATIONS.exists():
        return []
    with KNOWN_CORRELATIONS.open() as file:
        return [
            {key: (value if key == 'proxy' else float(value) if value else None)
             for key, value in row.items()}
            for row in csv.DictReader(file)
        ]


def _shown(name: str) -> str:
    """Corruption as readers see it: a recording in fog is not clean."""
    return 'as it is' if name == 'clean' else name


def _no_advice(clean: dict[str, Record]) -> tuple[list[str], list[str]]:
    """What is said where nothing measured orders the models."""
    run = [
        'Nothing here tells which model is best: there is no ground truth, and of the measures'
        ' that need none only drift orders models as the true error does. Run again with'
        ' --corrupt weather, or choose by a benchmark.'
    ]
    known = {m: s['fb_inconsistent'] for m, s in clean.items()
             if s.get('fb_inconsistent') is not None}
    if not known:
        return run, []
    shares = ', '.join(f'{model} at {share:.0f} %' for model, share in known.items())
    return run, [
        'Do not trust a model where its forward and backward flow disagree: of the pixels,'
        f' {shares}. That they agree proves little: two flows of nothing do.'
    ]


def advice(records: list[Record]) -> tuple[list[str], list[str]]:
    """Sentences: what to run, and what not to trust."""
    metric = ranking_metric(records)
    unit = _UNITS[metric]
    rows = table(records)
    clean = rows.get('clean', {})
    corrupted = over_corruptions(records)
    best = winner(corrupted or clean, metric)
    if best is None:
        return _no_advice(clean)
    run, doubt = [], []

    def amount(summary: Record) -> str:
        value = summary.get(metric)
        return 'unknown' if value is None else f'{value:.3g} {unit}'

    where = []
    if clean.get(best, {}).get(metric) is not None:
        where.append(f'{amount(clean[best])} on the source as it is')
    where += [f'{amount(corrupted[best])} over its corruptions'] if corrupted else []
    run.append(f'Run {best}: {_NAMES[metric]} {", ".join(where)}, the lowest of'
               f' {len(clean or corrupted)} models.')
    best_clean = winner(clean, metric)
    if best_clean not in (None, best):
        run.append(f'Where nothing degrades the image, {best_clean} is better'
                   f' ({amount(clean[str(best_clean)])}).')
    times = {m: s['timing']['ms_median'] for m, s in (clean or corrupted).items()}
    fastest = min(times, key=lambda m: times[m])
    if fastest != best:
        run.append(
            f'It took {times[best]:.0f} ms a pair here; the fastest, {fastest}, took '
            f'{times[fastest]:.0f} ms at {amount((corrupted or clean)[fastest])}.'
        )
    if metric != 'epe':
        doubt.append(
            'There is no ground truth: the ranking rests on a proxy, how far the flow drifts when'
            ' the frames are corrupted, and a model that sees no motion at all would win it. Look'
            ' at the flow, and at the rank correlations below.'
        )
    limit = 'outlier3' if metric == 'epe' else 'fb_inconsistent'
    bad = [
        f'{_shown(name) if name != "clean" else "the source as it is"}'
        f' ({models[best][limit]:.0f} %)' for name, models in rows.items()
        if best in models and (models[best].get(limit) or 0) > DISTRUST
    ]
    what = 'it errs by more than 3 px' if metric == 'epe' else 'it contradicts itself'
    if bad:
        doubt.append(f'Do not trust {best} on: {", ".join(bad)}. There {what} at more than'
                     f' {DISTRUST:.0f} % of the pixels.')
    splits = (corrupted or clean)[best]['splits']
    slow, fast = splits.get('s0-10'), splits.get('s40+')
    # A handful of fast pixels says nothing.
    if fast is not None and fast > 5 and (corrupted or clean)[best]['shares']['s40+'] > 0.005:
        doubt.append(f'Fast motion (above 40 px) has an EPE of {fast:.1f} px'
                     + (f', slow (below 10 px) {slow:.1f} px.' if slow is not None else '.'))
    if 'occluded' in splits and splits['occluded'] > 2 * splits.get('visible', np.inf):
        doubt.append(f'Occluded pixels have an EPE of {splits["occluded"]:.1f} px against '
                     f'{splits["visible"]:.1f} px of visible ones.')
    quality = (corrupted or clean)[best]
    if quality['ause'] is not None:
        oracle = np.asarray(quality['oracle'])
        chance = float(trapezoid(1 - oracle, dx=1 / len(oracle)))
        hardly = '' if quality['ause'] < 0.7 * chance else 'hardly '
        doubt.append(f'Its confidence {hardly}ranks its errors: AUSE {quality["ause"]:.2f}, by'
                     f' chance {chance:.2f}, perfect 0.')
    elif metric == 'epe':
        doubt.append(f'{best} gives no confidence: check forward against backward flow instead.')
    return run, doubt


def _metric_table(
    summaries: dict[str, Record], names: list[str], peaks: dict[str, float | None]
) -> Record:
    """Rows of cells with the winner of each column marked."""
    best = {name: winner(summaries, name) for name in names}
    return {
        'columns': [{'name': _NAMES[n], 'unit': _UNITS[n], 'proxy': n in PROXIES} for n in names],
        'rows': [
            {'model': model, 'timing': {**s['timing'], 'peak_mb': peaks[model]},
             'cells': [(s[name], best[name] == model) for name in names]}
            for model, s in summaries.items()
        ],
    }


def _split_table(summaries: dict[str, Record]) -> Record | None:
    names = [name for name in SPLITS if any(name in s['splits'] for s in summaries.values())]
    if not names:
        return None
    best = {name: winner({m: s['splits'] for m, s in summaries.items()}, name) for name in names}
    return {
        'columns': names,
        'rows': [
            {'model': model,
             'cells': [(s['splits'].get(name), best[name] == model) for name in names]}
            for model, s in summaries.items()
        ],
    }


def _strip_charts(records: list[Record], metric: str, models: list[str]) -> list[Record]:
    """Error over time: clean, and up to three corruptions, the worst by mean first."""
    from daflow_ros.evaluation.filmstrip import _value

    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(label(record), []).append(record)

    def mean(name: str) -> float:
        values = [v for r in groups[name] if (v := _value(r, metric)) is not None]
        return float(np.mean(values)) if values else 0.0

    worst = sorted((name for name in groups if name != 'clean'), key=mean, reverse=True)[:3]
    known = [v for r in records if (v := _value(r, metric)) is not None]
    top = float(np.percentile(known, 95)) if known else 1.0
    found = []
    for name in [n for n in ('clean', *worst) if n in groups]:
        pairs = list(dict.fromkeys(r['pair'] for r in groups[name]))
        values = {(r['model'], r['pair']): _value(r, metric) for r in groups[name]}
        found.append({
            'title': _shown(name),
            'svg': charts.strip(
                [(m, [values.get((m, p)) for p in pairs]) for m in models], pairs,
                _UNITS[metric], top,
            ),
        })
    return found


def _section(
    result: SourceResult, settings: Settings, strips: bool, show_frames: bool = True
) -> Record:
    records = result.records
    metric = ranking_metric(records)
    rows = table(records)
    models = list(dict.fromkeys(r['model'] for r in records))
    corrupted = over_corruptions(records)
    summaries = corrupted or rows.get('clean', {})
    names = [n for n in (*ACCURACY, 'ause', *PROXIES)
             if any(s.get(n) is not None for s in [*summaries.values(),
                                                  *rows.get('clean', {}).values()])]
    bar_rows, best = [], []
    for name, by_model in rows.items():
        bar_rows.append((_shown(name), [by_model.get(m, {}).get(metric) for m in models]))
        first = winner(by_model, metric)
        best.append(models.index(first) if first else None)
    # Memory that one estimation has returned to the process is not seen growing in the next:
    # only the peak of all is worth showing.
    peaks = {m: summarise([r for r in records if r['model'] == m])['timing']['peak_mb']
             for m in models}
    tables = [('As recorded', _metric_table(rows.get('clean', {}), names, peaks))]
    if corrupted:
        many = ', '.join(name for name in rows if name != 'clean')
        tables.append((f'Corrupted: mean over {many}', _metric_table(corrupted, names, peaks)))
    curves = [
        (m, i, summaries[m]['sparsification'], summaries[m]['oracle'])
        for i, m in enumerate(models) if summaries.get(m, {}).get('sparsification')
    ]
    run, doubt = advice(records)
    film = []
    if strips:
        chosen = pick(records, winner(summaries, metric) or models[0], metric)
        film = filmstrips(
            result.path, settings, chosen, metric, _UNITS[metric], show_frames
        )
    sizes = sorted({tuple(r['size']) for r in records})
    return {
        'name': result.source, 'kind': result.kind, 'failures': result.failures,
        'pairs': len({r['pair'] for r in records}), 'metric': _NAMES[metric],
        'proxy': metric in PROXIES, 'run': run, 'doubt': doubt, 'tables': tables,
        'size': ', '.join(f'{w}x{h}' for w, h in sizes[:4]) + (' ...' if len(sizes) > 4 else ''),
        'splits': _split_table(summaries),
        'splits_of': 'all corruptions' if corrupted else 'the source as it is',
        'bars': charts.bars(bar_rows, models, _UNITS[metric], best),
        'bar_rows': [(name, values, first) for (name, values), first in
                     zip(bar_rows, best, strict=True)],
        'ranked': any(first is not None for first in best),
        'models': [(m, charts.color(i)) for i, m in enumerate(models)],
        'strips': _strip_charts(records, metric, models),
        'sparsification': charts.sparsification(curves) if curves else None,
        'film': film,
    }


def _number(value: float | None, digits: int = 3) -> str:
    if value is None:
        return '–'
    return f'{value:.0f}' if abs(value) >= 1000 else f'{value:.{digits}g}'


def write_report(
    folder: Path, run: Record, results: list[SourceResult], settings: Settings,
    show_frames: bool = True,
) -> None:
    """Write report.html and report.md.

    Args:
        folder: where to.
        run: see `describe_run`.
        results: of all sources that could be evaluated.
        settings: of the run; the pairs shown are estimated again with them.
        show_frames: see `filmstrips`.

    """
    records = [record for result in results for record in result.records]
    measured = proxy_correlations(records)
    own = bool(measured) and any(row['frames'] is not None and row['proxy'] == 'fb_error'
                                 for row in measured)
    overall = _section(
        SourceResult('all sources', '', f'{len(results)} sources', records, [], {}),
        settings, strips=False,
    ) if len(results) > 1 else None
    context = {
        'run': run,
        'live': [sentence(entry) for entry in run['live']],
        'sections': [_section(result, settings, True, show_frames) for result in results],
        'overall': overall,
        'correlations': measured if own else known_correlations(),
        'correlations_own': own,
        'proxy_names': {**{name: text for name, (text, _) in PROXIES.items()},
                        'mean_confidence': 'mean confidence, sign turned'},
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE), autoescape=jinja2.select_autoescape(['html', 'j2']),
        trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined,
    )
    environment.filters['number'] = _number
    (folder / 'report.html').write_text(
        environment.get_template('report.html.j2').render(context), encoding='utf-8'
    )
    # Markdown is text: what is escaped for HTML would be shown as it is.
    environment.autoescape = False
    (folder / 'report.md').write_text(
        environment.get_template('report.md.j2').render(context), encoding='utf-8'
    )
