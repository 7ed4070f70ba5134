# SPDX-License-Identifier: Apache-2.0
"""What a replay showed, as figures: counts, rate, latency and error."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from daflow_ros.datasets.recorded_flow import read_recorded_flow
from daflow_ros.datasets.recordings import Recording
from daflow_ros.flow.metrics import epe, outlier_rate


@dataclass
class ReplaySummary:
    """Figures of a replay.

    Attributes:
        source, topic: what was played.
        model, weights_revision: what computed the flow.
        playback: times the recorded speed; 0 for as fast as the model answered.
        frames: pictures in the recording; sent: of those played.
        received: pictures that reached the node.
        flow_expected: pairs of successive pictures sent; flow_received: FlowFields recorded.
        stamps_match: every FlowField has the stamps of two successive pictures of the source.
        late: pictures that this machine sent late.
        dropped: by cause as the node counted them (none left out that is not zero).
        lost_pictures: pictures sent that neither reached the node.
        lost_flow: FlowFields published that were not recorded.
        interrupted: stopped before the end.
        rate: FlowFields a second of wall time.
        latency_p50, latency_p95: from sending the newer picture to recording its flow, ms.
        processing_p50, processing_p95: in the estimator, ms.
        epe, outliers_3px: mean end-point error (px) and share above 3 px (%) of the recorded
            flow against ground truth; epe_zero_motion: error of no flow at all on the same
            frames; frames_with_truth: how many these are. None without ground truth.
        epe_by_stamp: error of each frame, px by stamp (ns).
    """

    source: str
    topic: str
    playback: float
    frames: int
    model: str = ''
    weights_revision: str = ''
    sent: int = 0
    received: int = 0
    flow_expected: int = 0
    flow_received: int = 0
    stamps_match: bool = True
    late: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    lost_pictures: int = 0
    lost_flow: int = 0
    interrupted: bool = False
    rate: float = math.nan
    latency_p50: float = math.nan
    latency_p95: float = math.nan
    processing_p50: float = math.nan
    processing_p95: float = math.nan
    epe: float | None = None
    outliers_3px: float | None = None
    epe_zero_motion: float | None = None
    frames_with_truth: int = 0
    epe_by_stamp: dict[int, float] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write JSON; what is not known is null."""
        values = {key: None if isinstance(value, float) and not math.isfinite(value) else value
                  for key, value in asdict(self).items()}
        path.write_text(json.dumps(values, indent=2) + '\n', encoding='utf-8')

    def table(self) -> str:
        """Two columns for people."""
        rows: list[tuple[str, str]] = [
            ('source', self.source),
            ('model', f'{self.model or "none"} {self.weights_revision}'.strip()),
            ('frames', f'{self.sent} sent of {self.frames}, {self.received} reached the node'),
            ('flow fields', f'{self.flow_received} of {self.flow_expected} pairs'),
        ]
        drops = [f'{count} {cause}' for cause, count in self.dropped.items()]
        if self.lost_pictures:
            drops.append(f'{self.lost_pictures} lost by the transport')
        if self.lost_flow:
            drops.append(f'{self.lost_flow} flow fields lost by the transport')
        rows.append(('dropped', ', '.join(drops) or 'none'))
        if self.late:
            rows.append(('sent late', f'{self.late} frames: this machine was too busy'))
        speed = 'as fast as the model answers'
        if self.playback:
            speed = f'played at {self.playback:g} x'
        rows.append(('rate', f'{self.rate:.1f} Hz ({speed})'))
        rows.append(('latency', f'{self.latency_p50:.0f} ms median, {self.latency_p95:.0f} ms 95 %'
                     ' (picture sent to flow received)'))
        rows.append(('processing', f'{self.processing_p50:.0f} ms median,'
                     f' {self.processing_p95:.0f} ms 95 % (in the model)'))
        if self.epe is not None:
            rows.append(('EPE', f'{self.epe:.2f} px on {self.frames_with_truth} frames'
                         f' (no motion: {self.epe_zero_motion:.2f} px)'))
            rows.append(('above 3 px', f'{self.outliers_3px:.1f} % of the pixels'))
        if not self.stamps_match:
            rows.append(('stamps', 'some flow is not between two successive frames'))
        if self.interrupted:
            rows.append(('', 'interrupted before the end'))
        width = max(len(name) for name, _ in rows)
        return '\n'.join(f'{name:<{width}}  {value}' for name, value in rows)


def add_flow(
    summary: ReplaySummary, recording: Recording, flow_bag: Path, stamps: list[int],
) -> None:
    """Fill in what follows from the recorded flow itself.

    Args:
        summary: is changed.
        recording: what was played.
        flow_bag: what was recorded.
        stamps: of the pictures sent, in order, ns.

    Raises:
        RecordingError: the bag or the ground truth cannot be read.
    """
    successors = set(pairwise(stamps))
    truth_at = recording.read_flow() if recording.read_flow is not None else None
    processing, zero, outliers = [], [], []
    for field_ in read_recorded_flow(flow_bag):
        summary.model, summary.weights_revision = field_.model, field_.weights_revision
        processing.append(1e3 * field_.processing_latency)
        if (field_.stamp_ns, field_.target_stamp_ns) not in successors:
            summary.stamps_match = False
            continue  # the truth is that of successive frames
        truth = truth_at(field_.stamp_ns) if truth_at is not None else None
        if truth is None or truth.shape != field_.flow.shape:
            continue
        # A pixel without an answer counts as if it had answered "no motion".
        flow = np.where(np.isfinite(field_.flow).all(axis=-1, keepdims=True), field_.flow, 0.0)
        valid = np.isfinite(truth).all(axis=-1)
        if not valid.any():
            continue
        summary.epe_by_stamp[field_.stamp_ns] = float(epe(flow, truth, valid))
        zero.append(float(epe(np.zeros_like(truth), truth, valid)))
        outliers.append(float(outlier_rate(flow, truth, 3.0, valid)))
    if processing:
        summary.processing_p50, summary.processing_p95 = map(
            float, np.percentile(processing, (50, 95)))
    if zero:
        summary.frames_with_truth = len(zero)
        summary.epe = float(np.mean(list(summary.epe_by_stamp.values())))
        summary.epe_zero_motion = float(np.mean(zero))
        summary.outliers_3px = float(np.mean(outliers))
