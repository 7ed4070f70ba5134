# SPDX-License-Identifier: Apache-2.0
"""Charts of the report as inline SVG: bars, strips over time, sparsification curves.

Plain strings and no plotting library: the report stays small, sharp in print and opens at once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

#: Okabe and Ito's colours, told apart by the colour-blind and in grey; the eighth repeats.
PALETTE = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9', '#4d4d4d')

WIDTH = 760
_LABEL = 150


def color(index: int) -> str:
    """Colour of the index-th model, the same in all charts."""
    return PALETTE[index % len(PALETTE)]


def _ticks(top: float) -> list[float]:
    """Three to six round values from 0 to at least `top`."""
    if not top > 0:
        return [0.0, 1.0]
    raw = top / 4
    power = 10 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    return [i * step for i in range(math.ceil(top / step - 1e-9) + 1)]


def _svg(height: float, body: list[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
        f'{"".join(body)}</svg>'
    )


def _text(x: float, y: float, text: str, anchor: str = 'start', kind: str = '') -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'
    )


def bars(
    rows: Sequence[tuple[str, Sequence[float | None]]], models: Sequence[str], unit: str,
    best: Sequence[int | None],
) -> str:
    """Horizontal bars, grouped: one group a row, one bar a model.

    Args:
        rows: label, and a value per model or None.
        models: names, in the order of the values.
        unit: of the values.
        best: index of the winner of each row.

    """
    top = max((v for _, values in rows for v in values if v is not None), default=1.0)
    ticks = _ticks(top)
    thick, gap = 11, 12
    group = thick * len(models) + gap
    height = 24 + group * len(rows) + 4
    scale = (WIDTH - _LABEL - 60) / ticks[-1]
    body = []
    for tick in ticks:
        x = _LABEL + tick * scale
        body.append(f'<line x1="{x:g}" x2="{x:g}" y1="18" y2="{height - 4:g}" class="grid"/>')
        body.append(_text(x, 12, f'{tick:g}', 'middle', 'tick'))
    body.append(_text(WIDTH, 12, unit, 'end', 'tick'))
    for row, (name, values) in enumerate(rows):
        y = 24 + row * group
        body.append(_text(_LABEL - 10, y + (group - gap) / 2 + 4, name, 'end'))
        for index, value in enumerate(values):
            if value is None:
                continue
            top_edge = y + index * thick
            length = max(value * scale, 1)
            body.append(
                f'<rect x="{_LABEL}" y="{top_edge:g}" width="{length:.1f}" height="{thick - 2}"'
                f' fill="{color(index)}"><title>{escape(models[index])}, {escape(name)}: '
                f'{value:.3g} {escape(unit)}</title></rect>'
            )
            mark = ' ★' if best[row] == index else ''
            body.append(_text(
                _LABEL + length + 4, top_edge + thick - 3, f'{value:.3g}{mark}', 'start',
                'value best' if mark else 'value',
            ))
    return _svg(height, body, f'bars of {", ".join(models)} in {unit}')


def _heat(share: float) -> str:
    """White over orange to dark red for 0 to 1: in grey still from light to dark."""
    stops = ((255, 247, 236), (253, 187, 132), (239, 101, 72), (127, 0, 0))
    position = min(max(share, 0.0), 1.0) * (len(stops) - 1)
    index = min(int(position), len(stops) - 2)
    part = position - index
    mixed = (
        round(a + (b - a) * part) for a, b in zip(stops[index], stops[index + 1], strict=True)
    )
    return '#{:02x}{:02x}{:02x}'.format(*mixed)


def strip(
    rows: Sequence[tuple[str, Sequence[float | None]]], names: Sequence[str], unit: str,
    top: float,
) -> str:
    """One row of cells a model, a cell a pair in the order of time, coloured by the error.

    More pairs than cells fit are joined, the worst of them shown.

    Args:
        rows: model, and one value a pair, None where it is missing.
        names: of the pairs.
        unit: of the values; top: value of the darkest colour.

    """
    count = max(len(names), 1)
    cells = min(count, 200)
    thick = 18
    width = (WIDTH - _LABEL) / cells
    height = thick * len(rows) + 20
    body = []
    for row, (label, values) in enumerate(rows):
        y = row * thick
        body.append(_text(_LABEL - 10, y + 13, label, 'end'))
        for cell in range(cells):
            low, high = cell * count // cells, (cell + 1) * count // cells
            known = [(v, names[low + i]) for i, v in enumerate(values[low:high]) if v is not None]
            if not known:
                continue
            value, name = max(known)
            body.append(
                f'<rect x="{_LABEL + cell * width:.2f}" y="{y}" width="{width + 0.05:.2f}"'
                f' height="{thick - 2}" fill="{_heat(value / top if top else 0)}">'
                f'<title>{escape(label)}, {escape(name)}: {value:.3g} {escape(unit)}</title>'
                '</rect>'
            )
    y = thick * len(rows) + 12
    body.append(_text(_LABEL, y, f'first pair: {names[0] if names else ""}', 'start', 'tick'))
    body.append(_text(WIDTH, y, f'dark: {top:.3g} {unit} and more', 'end', 'tick'))
    return _svg(height, body, f'error over time in {unit}')


def sparsification(curves: Sequence[tuple[str, int, Sequence[float], Sequence[float]]]) -> str:
    """Mean error of the rest over the share of pixels removed, and the oracle's dashed.

    Args:
        curves: model, its colour's index, curve and oracle, both divided by the mean error.

    """
    height, left, right, top, bottom = 250, 44, 420, 12, 210

    def points(curve: Sequence[float]) -> str:
        span = max(len(curve), 1)
        return ' '.join(
            f'{left + (right - left) * i / span:.1f},'
            f'{bottom - (bottom - top) * min(value, 1.2) / 1.2:.1f}'
            for i, value in enumerate(curve)
        )

    body = []
    for tick in (0, 0.25, 0.5, 0.75, 1):
        y = bottom - (bottom - top) * tick / 1.2
        body.append(f'<line x1="{left}" x2="{right}" y1="{y:g}" y2="{y:g}" class="grid"/>')
        body.append(_text(left - 6, y + 4, f'{tick:g}', 'end', 'tick'))
    for share in (0, 25, 50, 75, 100):
        x = left + (right - left) * share / 100
        body.append(_text(x, bottom + 15, f'{share} %', 'middle', 'tick'))
    body.append(_text(
        (left + right) / 2, bottom + 32, 'least confident pixels removed', 'middle', 'tick'
    ))
    for row, (name, index, curve, oracle) in enumerate(curves):
        body.append(
            f'<polyline points="{points(oracle)}" class="line dashed" stroke="{color(index)}"/>'
            f'<polyline points="{points(curve)}" class="line" stroke="{color(index)}"/>'
        )
        y = top + 20 + 20 * row
        body.append(
            f'<line x1="450" x2="474" y1="{y}" y2="{y}" class="line" stroke="{color(index)}"/>'
        )
        body.append(_text(482, y + 4, name))
    y = top + 20 + 20 * len(curves)
    body.append(f'<line x1="450" x2="474" y1="{y}" y2="{y}" class="line dashed" stroke="#777"/>')
    body.append(_text(482, y + 4, 'oracle: largest errors removed first'))
    return _svg(height, body, 'sparsification curves')
