# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics says of counters and sources, case by case."""

import time
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip('rclpy')

from daflow_ros.ros import flow_statistics
from daflow_ros.ros.diagnostics import ERROR, OK, WARN, Input, camera_status, model_status
from daflow_ros.ros.flow_statistics import FlowStatistics
from daflow_ros.ros.frame_buffer import Drop, Frame, FrameBuffer

SOURCE = Input('/image_raw', 1, '', 64 << 20, False)


def status(now, before=None, source=SOURCE, timeout=10.0):
    return camera_status('/daflow: camera', now, before, source, timeout, 0.1)


def streaming():
    statistics = FlowStatistics()
    for _ in range(5):
        statistics.received('optical')
        statistics.processed(0.05, 0.1)
        statistics.published(0.07, 3.0, 0.5)
    return statistics


def test_a_healthy_stream():
    message = status(streaming().snapshot())
    assert message.level == OK and 'flow fields/s' in message.message
    values = {item.key: item.value for item in message.values}
    assert values['received'] == values['published'] == '5'
    assert values['latency p50, p95, p99 (s)'] == '0.0700, 0.0700, 0.0700'


@pytest.mark.parametrize(('count', 'level'), [(2, OK), (3, WARN), (30, ERROR)])
def test_overruns_in_a_row(count, level):
    statistics = streaming()
    for _ in range(count):
        statistics.processed(0.11, 0.1)
    assert status(statistics.snapshot()).level == level
    statistics.processed(0.09, 0.1)
    assert status(statistics.snapshot()).level == OK
    statistics.processed(99.0, 0.0)
    assert statistics.snapshot().overruns == 0


@pytest.mark.parametrize('cause', [Drop.MALFORMED, Drop.UNKNOWN_ENCODING, Drop.FAILED])
def test_drops_are_told_once_and_worse_if_nothing_comes_out(cause):
    statistics = streaming()
    before = statistics.snapshot()
    statistics.dropped(cause, 'the reason')
    now = statistics.snapshot()
    assert status(now, before).level == ERROR and 'the reason' in status(now, before).message
    statistics.published(0.1, 1.0, 1.0)
    assert status(statistics.snapshot(), before).level == WARN
    assert status(statistics.snapshot(), now).level == OK


@pytest.mark.parametrize('cause', [Drop.SUPERSEDED, Drop.INTERVAL])
def test_drops_by_design_are_no_problem(cause):
    statistics = streaming()
    statistics.dropped(cause, 'so')
    assert status(statistics.snapshot()).level == OK


def test_frames_too_far_apart_are_told_if_nothing_comes_out():
    """With the lines of a real frame buffer; min_interval thins by design."""
    statistics = FlowStatistics()
    buffer = FrameBuffer(statistics.dropped, min_interval=0.1, max_interval=1.0)
    for index in range(3):
        buffer.push(Frame(index * 2 * 10**9, np.zeros((4, 6, 3), np.uint8)))
    before = statistics.snapshot()
    assert before.dropped[Drop.INTERVAL] == 2
    assert status(before).level == WARN
    assert 'no image for 2.000 s, max_interval is 1 s' in status(before).message
    assert status(before, before).level == OK
    buffer.push(Frame(10 * 10**9, np.zeros((4, 6, 3), np.uint8)))
    assert status(statistics.snapshot(), before).level == WARN
    statistics.processed(0.05, 0.1)
    now = statistics.snapshot()
    assert status(now, before).level == OK
    buffer.push(Frame(10 * 10**9 + 1, np.zeros((4, 6, 3), np.uint8)))
    thinned = statistics.snapshot()
    assert thinned.dropped[Drop.INTERVAL] == 4
    assert status(thinned, now).level == OK


def test_idle_is_told():
    statistics = streaming()
    statistics.dropped(Drop.IDLE)
    assert 'idle' in status(statistics.snapshot()).message


@pytest.mark.parametrize(
    ('changes', 'level', 'words'),
    [
        ({'publishers': 0}, WARN, 'nothing publishes it'),
        ({'incompatible_qos': 'RELIABILITY'}, ERROR, 'qos_overrides./image_raw.subscription'),
        ({}, ERROR, 'less in the publisher'),
        ({'segment_size': 500_000}, ERROR, 'FASTDDS_DEFAULT_PROFILES_FILE in both'),
        ({'segment_size': None}, ERROR, 'larger than the transport carries'),
    ],
)
def test_no_images(changes, level, words):
    now = replace(streaming().snapshot(), silence=11.0)
    message = status(now, source=replace(SOURCE, **changes))
    assert message.level == level and words in message.message


@pytest.mark.parametrize('size', [500_000, 64 << 20])
@pytest.mark.parametrize(
    ('package', 'variable'),
    [
        ('fastdds', 'FASTDDS_DEFAULT_PROFILES_FILE'),
        ('fastrtps', 'FASTRTPS_DEFAULT_PROFILES_FILE'),
    ],
    ids=['kilted', 'jazzy'],
)
def test_the_variable_that_is_named_is_the_one_that_is_read(
    package, variable, size, tmp_path, monkeypatch
):
    (tmp_path / 'share' / package).mkdir(parents=True)
    monkeypatch.setenv('AMENT_PREFIX_PATH', str(tmp_path))
    now = replace(streaming().snapshot(), silence=11.0)
    message = status(now, source=replace(SOURCE, segment_size=size)).message
    assert f'et {variable} ' in message


def test_lost_images():
    statistics = streaming()
    before = statistics.snapshot()
    statistics.dropped(Drop.LOST, '', 28)
    message = status(replace(statistics.snapshot(), silence=11.0), before)
    assert message.level == ERROR and message.message.startswith('28 images lost')
    statistics.received('optical')
    assert status(statistics.snapshot(), before).level == WARN


def test_a_missing_clock():
    message = status(streaming().snapshot(), source=replace(SOURCE, clock_missing=True))
    assert message.level == WARN and '/clock' in message.message


def test_the_model():
    assert model_status('model', 'active', '', {}, 0.1, 0.1).level == OK
    failed = model_status('model', 'unconfigured', 'no weights', {}, 0.0, 0.0)
    assert failed.level == ERROR and 'no weights' in failed.message


@pytest.mark.parametrize(
    ('busy_for', 'longest', 'level'),
    [
        (59.0, 0.0, OK),
        (61.0, 0.0, ERROR),
        (61.0, 0.05, ERROR),
        (61.0, 18.0, OK),
        (91.0, 18.0, ERROR),
    ],
)
def test_a_stuck_model_is_told_from_a_slow_one(busy_for, longest, level):
    status = model_status('model', 'active', '', {}, busy_for, longest)
    assert status.level == level
    assert ('stuck?' in status.message) is (level == ERROR)


def test_rates_are_over_the_window(monkeypatch):
    """Clock in hand: 10 Hz for ten seconds, then silence."""
    now = 1000.0
    monkeypatch.setattr(time, 'monotonic', lambda: now)
    statistics = FlowStatistics()
    assert np.isnan(statistics.snapshot().latency).all()
    for index in range(100):
        now = 1000 + index / 10
        statistics.received('optical')
        statistics.published(index / 100, 2.0, float('nan'))
    snapshot = statistics.snapshot()
    assert abs(snapshot.input_rate - 10) <= 0.2 and abs(snapshot.rate - 10) <= 0.2
    window = np.arange(100 - 10 * flow_statistics.WINDOW - 1, 100) / 100
    np.testing.assert_allclose(snapshot.latency, np.percentile(window, (50, 95, 99)), atol=0.011)
    assert snapshot.mean_flow == 2 and np.isnan(snapshot.mean_confidence)
    now += 3
    assert abs(statistics.snapshot().silence - 3) < 1e-6
    now += 3
    snapshot = statistics.snapshot()
    assert (snapshot.rate, snapshot.input_rate, snapshot.received) == (0, 0, 100)
    statistics.subscribed()
    now += 2
    assert abs(statistics.snapshot().silence - 2) < 1e-6
