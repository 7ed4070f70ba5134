# SPDX-License-Identifier: Apache-2.0
"""Pairing of frames: which pairs come out, and what is counted for the others."""

import numpy as np
import pytest

from daflow_ros.ros.frame_buffer import Drop, Frame, FrameBuffer

IMAGE = np.zeros((4, 6, 3), np.uint8)


def frame(seconds, image=IMAGE, frame_id='camera', encoding='rgb8'):
    return Frame(round(seconds * 1e9), image, frame_id, encoding)


class Bench:
    """A buffer with a worker that is always fast enough."""

    def __init__(self, **rules):
        self.drops = []
        self.buffer = FrameBuffer(lambda cause, reason: self.drops.append(cause), **rules)

    def run(self, *frames):
        pairs = []
        for item in frames:
            self.buffer.push(item if isinstance(item, Frame) else frame(item))
            pair = self.buffer.take()
            if pair:
                pairs.append((pair.reference.stamp_ns / 1e9, pair.target.stamp_ns / 1e9))
        return pairs


def test_successive_frames_make_pairs():
    bench = Bench()
    assert bench.run(1.0, 1.1, 1.2) == [(1.0, 1.1), (1.1, 1.2)]
    assert bench.drops == []
    assert bench.buffer.take() is None


def test_backward_pairs_start_at_the_newer_frame():
    bench = Bench(backward=True)
    assert bench.run(1.0, 1.1) == [(1.1, 1.0)]
    bench.buffer.push(frame(1.2))
    assert bench.buffer.take().newer.stamp_ns == 1_200_000_000


def test_stride():
    bench = Bench(stride=3)
    assert bench.run(1.0, 1.1, 1.2, 1.3, 1.4) == [(1.0, 1.3), (1.1, 1.4)]
    assert bench.drops == []


def test_newest_pair_wins_and_the_others_are_counted():
    bench = Bench()
    for seconds in (1.0, 1.1, 1.2, 1.3):
        bench.buffer.push(frame(seconds))
    pair = bench.buffer.take()
    assert (pair.reference.stamp_ns, pair.target.stamp_ns) == (1_200_000_000, 1_300_000_000)
    assert bench.drops == [Drop.SUPERSEDED] * 2


def test_every_frame_is_accounted_for():
    """Pairs, drops and beginnings add up over a random stream with a slow worker."""
    rng = np.random.default_rng(3)
    bench = Bench(stride=2, min_interval=0.02, max_interval=0.5)
    stamp, taken, begun, count = 10.0, 0, 0, 400
    sizes = [IMAGE, np.zeros((8, 6, 3), np.uint8)]
    image = sizes[0]
    for _ in range(count):
        stamp += rng.choice([0.01, 0.1, 0.1, 0.1, 0.3, 0.0, -0.05, -3.0, 2.0])
        if rng.random() < 0.05:
            image = sizes[rng.integers(2)]
        before = len(bench.drops)
        pending = bench.buffer._pending
        bench.buffer.push(frame(stamp, image))
        own = [cause for cause in bench.drops[before:] if cause is not Drop.SUPERSEDED]
        if not own and bench.buffer._pending is pending:
            begun += 1
        if rng.random() < 0.5:
            taken += bench.buffer.take() is not None
        if rng.random() < 0.05:
            bench.buffer.clear('test')
    taken += bench.buffer.take() is not None
    assert taken + len(bench.drops) + begun == count
    assert taken > 30
    causes = {Drop.SUPERSEDED, Drop.INTERVAL, Drop.TIME_JUMP, Drop.FORMAT_CHANGE, Drop.IDLE}
    assert causes == set(bench.drops)


def test_min_interval_thins_the_stream():
    bench = Bench(min_interval=0.1)
    assert bench.run(1.0, 1.04, 1.08, 1.12, 1.16, 1.24) == [(1.0, 1.12), (1.12, 1.24)]
    assert bench.drops == [Drop.INTERVAL] * 3


def test_a_gap_begins_anew():
    bench = Bench(max_interval=0.5)
    assert bench.run(1.0, 1.1, 2.0, 2.1) == [(1.0, 1.1), (2.0, 2.1)]
    assert bench.drops == [Drop.INTERVAL]


def test_max_interval_is_that_of_the_pair():
    bench = Bench(stride=2, max_interval=0.5)
    assert bench.run(1.0, 1.2, 1.6, 1.7) == [(1.2, 1.7)]
    assert bench.drops == [Drop.INTERVAL]


def test_a_late_frame_is_left_out():
    bench = Bench()
    assert bench.run(1.0, 1.2, 1.1, 1.3) == [(1.0, 1.2), (1.2, 1.3)]
    assert bench.drops == [Drop.TIME_JUMP]


@pytest.mark.parametrize('begin', [5.0, 9.5], ids=['far', 'near'])
def test_a_bag_that_loops_goes_on(begin):
    """Far back at once, a little back with the second frame."""
    bench = Bench()
    pairs = bench.run(9.8, 9.9, begin, begin + 0.1, begin + 0.2, begin + 0.3)
    assert pairs[0] == (9.8, 9.9)
    assert pairs[-1] == (begin + 0.2, begin + 0.3)
    assert all(target > reference for reference, target in pairs)
    assert 1 <= bench.drops.count(Drop.TIME_JUMP) == len(bench.drops) <= 2


def test_repeated_and_zero_stamps():
    reasons = []
    buffer = FrameBuffer(lambda cause, reason: reasons.append((cause, reason)))
    for seconds in (1.0, 1.0, 1.1):
        buffer.push(frame(seconds))
    assert buffer.take().reference.stamp_ns == 1_000_000_000
    assert [cause for cause, _ in reasons] == [Drop.TIME_JUMP]
    buffer.clear('test')
    buffer.push(frame(0))
    buffer.push(frame(0))
    assert 'does the driver stamp' in reasons[-1][1]


@pytest.mark.parametrize(
    'changed',
    [
        {'image': np.zeros((6, 4, 3), np.uint8)},
        {'frame_id': 'other'},
        {'encoding': 'bgr8'},
    ],
    ids=['size', 'frame_id', 'encoding'],
)
def test_a_change_of_format_begins_anew(changed):
    bench = Bench()
    pairs = bench.run(1.0, 1.1, frame(1.2, **changed), frame(1.3, **changed))
    assert pairs == [(1.0, 1.1), (1.2, 1.3)]
    assert bench.drops == [Drop.FORMAT_CHANGE]


def test_clear_forgets_the_pair_that_waits():
    bench = Bench()
    bench.buffer.push(frame(1.0))
    bench.buffer.push(frame(1.1))
    bench.buffer.clear('test')
    assert bench.buffer.take() is None
    assert bench.drops == [Drop.IDLE]
    assert bench.run(1.2) == []
    bench.buffer.clear('no pair waits now')
    assert bench.drops == [Drop.IDLE]


def test_rules_change_while_running():
    bench = Bench()
    assert bench.run(1.0, 1.1) == [(1.0, 1.1)]
    bench.buffer.configure(2, 0.0, 1.0, True)
    assert bench.run(1.2, 1.3) == [(1.2, 1.0), (1.3, 1.1)]
    bench.buffer.configure(1, 0.0, 1.0, False)
    assert bench.run(1.4) == [(1.3, 1.4)]


def test_the_buffer_holds_no_more_than_it_needs():
    bench = Bench(stride=2)
    for index in range(100):
        bench.buffer.push(frame(1 + index / 100))
    assert len(bench.buffer._frames) == 3
