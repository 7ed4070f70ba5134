# SPDX-License-Identifier: Apache-2.0
"""Pictures of the best, the median and the worst pair, as small JPEG data URIs.

The flows of a run are not kept: the few pairs shown are estimated once more.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from daflow_ros.estimators import EstimatorError
from daflow_ros.evaluation.corruptions import CLEAN, Corruption, corrupt_clip
from daflow_ros.evaluation.proxies import PHOTOMETRIC_LIMIT
from daflow_ros.evaluation.runner import Settings
from daflow_ros.evaluation.sources import Clip, open_source
from daflow_ros.evaluation.summary import label
from daflow_ros.flow.colorwheel import flow_to_color
from daflow_ros.flow.consistency import warp
from daflow_ros.flow.metrics import endpoint_error

Record = dict[str, Any]
Image = npt.NDArray[np.uint8]

TILE_WIDTH = 240
_QUALITY = 68


@dataclass
class Tile:
    """A picture and the words under it."""

    uri: str
    caption: str


@dataclass
class Strip:
    """A row of the filmstrip: what pair it is, and its pictures, model by model."""

    title: str
    inputs: list[Tile]
    models: list[tuple[str, list[Tile]]] = field(default_factory=list)


def _value(record: Record, metric: str) -> float | None:
    found = record.get('accuracy', {}).get(metric)
    value: float | None = record['proxies'].get(metric) if found is None else found
    return value


def pick(records: list[Record], model: str, metric: str) -> list[tuple[str, Record]]:
    """Best, median and worst record of a model by a metric, as (word, record); may be fewer."""
    mine = [r for r in records if r['model'] == model and _value(r, metric) is not None]
    mine.sort(key=lambda r: (_value(r, metric), r['pair'], label(r)))
    places = {'best': 0, 'median': (len(mine) - 1) // 2, 'worst': len(mine) - 1}
    chosen: list[tuple[str, Record]] = []
    for word, place in places.items():
        if 0 <= place < len(mine) and all(mine[place] is not r for _, r in chosen):
            chosen.append((word, mine[place]))
    return chosen


def _uri(image: Image) -> str:
    height, width = image.shape[:2]
    size = (TILE_WIDTH, max(1, round(height * TILE_WIDTH / width)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    done, data = cv2.imencode('.jpg', small[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    if not done:
        raise ValueError('OpenCV could not encode a JPEG')
    return 'data:image/jpeg;base64,' + base64.b64encode(data.tobytes()).decode()


def _heat_map(values: npt.NDArray[np.floating], top: float) -> Image:
    """Dark to light for 0 to `top`; grey where the value is NaN."""
    share = np.nan_to_num(np.clip(values / top, 0, 1))
    image = cv2.applyColorMap((255 * share).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
    image = np.ascontiguousarray(image)
    image[~np.isfinite(values)] = 128
    return np.asarray(image, dtype=np.uint8)


def _dilated(error: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Sparse ground truth (KITTI) is spread over its neighbours, or the picture shows none."""
    if np.isfinite(error).mean() > 0.5:
        return error
    filled = np.where(np.isfinite(error), error, -1).astype(np.float32)
    spread = cv2.dilate(filled, np.ones((5, 5), np.uint8))
    return np.asarray(np.where(spread < 0, np.nan, spread), dtype=np.float32)


def _scale(flow: npt.NDArray[np.floating]) -> float:
    length = np.hypot(flow[..., 0], flow[..., 1])
    length = length[np.isfinite(length)]
    return max(float(np.percentile(length, 98)), 1.0) if length.size else 1.0


def _strip(
    title: str, clip: Clip, index: int, corruption: Corruption, estimators: dict[str, Any],
    settings: Settings, show_frames: bool,
) -> Strip:
    frames = corrupt_clip(clip.frames, clip.name, corruption, settings.seed)
    image1, image2, truth = frames[index], frames[index + 1], clip.truths[index]
    inputs = [Tile(_uri(image1), 'first frame')] if show_frames else []
    scale = None
    if truth is not None:
        scale = _scale(truth.flow)
        inputs.append(Tile(
            _uri(flow_to_color(truth.flow, scale)), f'true flow, full colour {scale:.3g} px'
        ))
    strip = Strip(title, inputs)
    for name, estimator in estimators.items():
        try:
            estimate = estimator.estimate(image1, image2, iterations=settings.iterations)
        except EstimatorError:
            continue
        flow = estimate.flow
        scale = scale or _scale(flow)
        tiles = [Tile(_uri(flow_to_color(flow, scale)), 'flow')]
        if truth is not None:
            error = np.where(truth.valid, endpoint_error(flow, truth.flow), np.nan)
            mean = float(np.nanmean(error)) if truth.valid.any() else float('nan')
            tiles.append(Tile(
                _uri(_heat_map(_dilated(error.astype(np.float32)), 10.0)),
                f'error, 0 to 10 px; EPE {mean:.2f}',
            ))
        elif show_frames:
            warped = warp(image2.astype(np.float32), flow)
            difference = np.abs(image1.astype(np.float32) - warped).mean(axis=-1)
            tiles.append(Tile(
                _uri(_heat_map(difference, PHOTOMETRIC_LIMIT)),
                'photometric difference (proxy), 0 to 50 levels',
            ))
        if estimate.confidence is not None:
            tiles.append(Tile(
                _uri(_heat_map(estimate.confidence, 1.0)),
                f'confidence, 0 to 1; mean {float(estimate.confidence.mean()):.2f}',
            ))
        strip.models.append((name, tiles))
    return strip


def filmstrips(
    path: str | Path, settings: Settings, chosen: list[tuple[str, Record]], metric: str, unit: str,
    show_frames: bool = True,
) -> list[Strip]:
    """Pictures of chosen pairs of one source, in the order of `chosen`.

    Args:
        path: of the source.
        settings: of the run.
        chosen: see `pick`.
        metric: that they were picked by; unit: its unit.
        show_frames: False leaves out the frames and what shows them, for recordings that must
            not be passed on.

    """
    wanted: dict[str, list[int]] = {}
    for place, (_, record) in enumerate(chosen):
        wanted.setdefault(record['pair'], []).append(place)
    source = open_source(path, topic=settings.topic, every=settings.every, limit=settings.limit)
    estimators = {s.label: s.load(settings.device) for s in settings.models}
    strips: dict[int, Strip] = {}
    for clip in source.clips():
        for index, pair in enumerate(clip.pairs):
            for place in wanted.pop(pair, []):
                word, record = chosen[place]
                corruption = CLEAN if record['corruption'] == 'clean' else Corruption(
                    record['corruption'], record['severity']
                )
                shown = 'as it is' if corruption == CLEAN else corruption.label
                title = (f'{word}: {pair}, {shown}, '
                         f'{record["model"]} {_value(record, metric):.3g} {unit}')
                strips[place] = _strip(
                    title, clip, index, corruption, estimators, settings, show_frames
                )
        if not wanted:
            break
    return [strips[place] for place in sorted(strips)]
