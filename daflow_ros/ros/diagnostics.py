# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics tells of a camera and of the model: what is wrong and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from daflow_ros.ros.flow_statistics import Snapshot
from daflow_ros.ros.frame_buffer import Drop
from daflow_ros.ros.transport import profile_variable

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
#: Pairs in a row over the deadline that make a warning and an error.
OVERRUNS_WARN, OVERRUNS_ERROR = 3, 30
#: A model is said to be stuck after this many times its longest pair so far, and at least s.
STUCK_TIMES, STUCK = 5, 60.0
#: Shared-memory segment of Fast DDS that loses large images, bytes.
SMALL_SEGMENT = 8 << 20


@dataclass(frozen=True)
class Input:
    """What the node knows of a camera's topic beside what came over it.

    Attributes:
        topic: resolved name.
        publishers: count of matched and unmatched publishers, as discovered.
        incompatible_qos: policy that a publisher offers too little of, '' for none.
        segment_size: own shared-memory segment of Fast DDS, bytes, None where not used.
        clock_missing: ``use_sim_time`` is set and no /clock came.
    """

    topic: str
    publishers: int
    incompatible_qos: str
    segment_size: int | None
    clock_missing: bool


def camera_status(
    name: str,
    now: Snapshot,
    before: Snapshot | None,
    source: Input,
    image_timeout: float,
    deadline: float,
) -> DiagnosticStatus:
    """Health of a camera's stream.

    Args:
        name: of the status.
        now: statistics.
        before: statistics of the report before, None for the first.
        source: see :class:`Input`.
        image_timeout: s without images that make a warning.
        deadline: s a pair may take, 0 for no limit.
    """
    problems = []
    if source.clock_missing:
        problems.append((WARN, 'use_sim_time is set but nothing publishes /clock'))
    lost = _news(Drop.LOST, now, before)
    if lost:
        none_came = before is not None and now.received == before.received
        line = f'{lost} images lost by the transport: {_transport_cure(source)}'
        problems.append((ERROR if none_came else WARN, line))
    elif now.silence > image_timeout:
        problems.append(_silence(now, source))
    elif source.incompatible_qos:
        problems.append((WARN, f'a publisher offers an incompatible {source.incompatible_qos}'))
    problems += _drops(now, before)
    if now.overruns >= OVERRUNS_WARN:
        level = ERROR if now.overruns >= OVERRUNS_ERROR else WARN
        line = f'{now.overruns} pairs in a row over the deadline of {deadline} s'
        problems.append((level, line))
    level = max((level for level, _ in problems), default=OK)
    problems.sort(key=lambda problem: problem[0], reverse=True)
    message = '; '.join(line for _, line in problems)
    values = {
        'topic': source.topic,
        'input rate (Hz)': f'{now.input_rate:.2f}',
        'flow rate (Hz)': f'{now.rate:.2f}',
        'received': now.received,
        'processed': now.processed,
        'published': now.published,
        'latency p50, p95, p99 (s)': ', '.join(f'{value:.4f}' for value in now.latency),
        'processing p50, p95 (s)': ', '.join(f'{value:.4f}' for value in now.processing),
        'consecutive overruns': now.overruns,
    }
    for cause, count in now.dropped.items():
        values[f'dropped {cause.value}'] = count
        if count and now.reasons.get(cause):
            values[f'last {cause.value}'] = now.reasons[cause]
    return _status(level, name, message or _fine(now, before), values)


def model_status(
    name: str, state: str, error: str, model: dict[str, str], busy_for: float, longest: float
) -> DiagnosticStatus:
    """Health of the model: whether it is loaded, and whether it is stuck on a pair.

    Args:
        name: of the status.
        state: of the lifecycle.
        error: why configuring failed, '' for no failure.
        model: shown as key and value.
        busy_for: s spent on the pair in work.
        longest: s that a pair has taken at most since the model was loaded, 0 before the first.
    """
    values = {
        'state': state,
        'time on this pair (s)': f'{busy_for:.2f}',
        'longest pair (s)': f'{longest:.2f}',
        **model,
    }
    if error:
        return _status(ERROR, name, f'cannot configure: {error}', values)
    if busy_for > max(STUCK, STUCK_TIMES * longest):
        line = f'on one pair for {busy_for:.0f} s, the longest so far took {longest:.0f} s: stuck?'
        return _status(ERROR, name, line, values)
    return _status(OK, name, state, values)


def _silence(now: Snapshot, source: Input) -> tuple[bytes, str]:
    """No images: why, as far as can be told."""
    line = f'no image on {source.topic} for {now.silence:.1f} s'
    if source.incompatible_qos:
        policy = source.incompatible_qos
        return ERROR, (
            f'{line}: the publisher offers an incompatible {policy}; set qos_overrides.'
            f'{source.topic}.subscription.{policy.lower()} to what `ros2 topic info -v` shows'
        )
    if source.publishers == 0:
        return WARN, f'{line}: nothing publishes it; check the name, remapping and ROS_DOMAIN_ID'
    return ERROR, (
        f'{line}, though {source.publishers} publish it: the camera has stopped, or the transport '
        f'loses its images ({_transport_cure(source)})'
    )


def _transport_cure(source: Input) -> str:
    """What to do about images that are larger than Fast DDS carries by default."""
    if source.segment_size is None:
        return 'are they larger than the transport carries?'
    size, variable = source.segment_size / 1e6, profile_variable()
    if source.segment_size < SMALL_SEGMENT:
        return (
            f'Fast DDS has a shared-memory segment of {size:.1f} MB here; set '
            f'{variable} in both processes (see daflow doctor)'
        )
    return (
        f'Fast DDS has a shared-memory segment of {size:.0f} MB here, less in the publisher? '
        f'Set {variable} for it too'
    )


_TOLD = {
    Drop.MALFORMED: 'malformed images',
    Drop.UNKNOWN_ENCODING: 'images of an encoding that is not known',
    Drop.TIME_JUMP: 'stamps that went back or were repeated',
    Drop.FORMAT_CHANGE: 'changes of size, encoding or frame_id',
    Drop.FAILED: 'failures of the model',
}


def _news(cause: Drop, now: Snapshot, before: Snapshot | None) -> int:
    """Drops since the report before."""
    return now.dropped[cause] - (before.dropped[cause] if before else 0)


def _drops(now: Snapshot, before: Snapshot | None) -> list[tuple[bytes, str]]:
    """Problems with what came since the last report."""
    problems = []
    none_published = now.published == (before.published if before else 0)
    for cause, what in _TOLD.items():
        news = _news(cause, now, before)
        if news > 0:
            severe = cause in (Drop.MALFORMED, Drop.UNKNOWN_ENCODING, Drop.FAILED)
            level = ERROR if severe and none_published else WARN
            problems.append((level, f'{news} {what} ({now.reasons.get(cause, "")})'))
    apart = _news(Drop.INTERVAL, now, before)
    none_paired = now.processed == (before.processed if before else 0)
    reason = now.reasons.get(Drop.INTERVAL, '')
    # Frames thinned by min_interval are no problem, nor is a gap in a stream that flows.
    if apart > 0 and none_paired and 'max_interval' in reason:
        problems.append((WARN, f'{apart} images too far apart for a pair ({reason})'))
    return problems


def _fine(now: Snapshot, before: Snapshot | None) -> str:
    if _news(Drop.IDLE, now, before) > 0:
        return 'idle: nobody subscribes to an output'
    return f'{now.rate:.1f} flow fields/s from {now.input_rate:.1f} images/s'


def _status(level: bytes, name: str, message: str, values: dict[str, Any]) -> DiagnosticStatus:
    pairs = [KeyValue(key=key, value=str(value)) for key, value in values.items()]
    return DiagnosticStatus(
        level=level, name=name, message=message, hardware_id='daflow', values=pairs
    )
