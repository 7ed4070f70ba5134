# SPDX-License-Identifier: Apache-2.0
"""Pairing of successive frames of one camera. Knows neither ROS nor clocks: stamps are enough.

Every frame that is pushed meets one end as the newer image of a pair: it is taken in a pair, or
dropped for one :class:`Drop` cause. The first ``stride`` frames of a sequence have no partner and
only begin it; one that is dropped because it does not fit the sequence before is among them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from threading import Lock

import numpy as np
from numpy.typing import NDArray


class Drop(Enum):
    """Why a frame gives no flow; the values are those of ``FlowStats.dropped_*``."""

    SUPERSEDED = 'superseded'
    MALFORMED = 'malformed'
    UNKNOWN_ENCODING = 'unknown_encoding'
    INTERVAL = 'interval'
    TIME_JUMP = 'time_jump'
    FORMAT_CHANGE = 'format_change'
    LOST = 'lost'
    FAILED = 'failed'
    IDLE = 'idle'


@dataclass(frozen=True)
class Frame:
    """One decoded image.

    Attributes:
        stamp_ns: of the exposure, as the driver gave it.
        image: uint8 (H, W, 3) RGB.
        frame_id: optical frame.
        encoding: of the message, before decoding.
    """

    stamp_ns: int
    image: NDArray[np.uint8]
    frame_id: str = ''
    encoding: str = 'rgb8'

    @property
    def format(self) -> tuple[int, int, str, str]:
        """What must not change within a pair."""
        height, width = self.image.shape[:2]
        return width, height, self.encoding, self.frame_id


@dataclass(frozen=True)
class Pair:
    """Two frames to estimate flow between: from the reference's pixels to the target's."""

    reference: Frame
    target: Frame

    @property
    def newer(self) -> Frame:
        """The frame with the later stamp."""
        return max(self.reference, self.target, key=lambda frame: frame.stamp_ns)


class FrameBuffer:
    """Keeps the last frames of a camera and offers the newest pair.

    Thread-safe: frames are pushed by the subscription, pairs taken by the worker.

    Args:
        on_drop: called with the cause and a line for people, for every dropped frame.
        stride: frames from one image of a pair to the other, at least 1.
        min_interval: frames closer than this to the one before are not used, s.
        max_interval: longest time between the images of a pair, s.
        backward: pairs from the newer to the older frame.
    """

    def __init__(
        self,
        on_drop: Callable[[Drop, str], None],
        stride: int = 1,
        min_interval: float = 0.0,
        max_interval: float = 1.0,
        backward: bool = False,
    ) -> None:
        self._on_drop = on_drop
        self._lock = Lock()
        self._pending: Pair | None = None
        self._late: Frame | None = None
        self._frames: deque[Frame] = deque()
        self.configure(stride, min_interval, max_interval, backward)

    def configure(
        self, stride: int, min_interval: float, max_interval: float, backward: bool
    ) -> None:
        """Change the rules of pairing; frames already there are kept as far as they serve."""
        with self._lock:
            self._min_ns = round(min_interval * 1e9)
            self._max_ns = round(max_interval * 1e9)
            self._backward = backward
            self._stride = stride
            self._frames = deque(self._frames, maxlen=stride + 1)

    def clear(self, reason: str) -> None:
        """Forget all frames, a pair that waits among them; the next one begins a sequence."""
        with self._lock:
            if self._pending is not None:
                self._on_drop(Drop.IDLE, reason)
            self._frames.clear()
            self._late = None
            self._pending = None

    def push(self, frame: Frame) -> None:
        """Take a frame in; after it :meth:`take` may have a new pair."""
        with self._lock:
            if self._frames and not self._follows(self._frames[-1], frame):
                return
            self._late = None
            self._frames.append(frame)
            if len(self._frames) <= self._stride:
                return
            older = self._frames[-1 - self._stride]
            interval = frame.stamp_ns - older.stamp_ns
            if interval > self._max_ns:
                self._on_drop(
                    Drop.INTERVAL,
                    f'{interval * 1e-9:.3f} s to the other image of the pair, '
                    f'max_interval is {self._max_ns * 1e-9:g} s',
                )
                return
            self._supersede()
            self._pending = Pair(frame, older) if self._backward else Pair(older, frame)

    def take(self) -> Pair | None:
        """The newest pair that was not taken yet, or None."""
        with self._lock:
            pair, self._pending = self._pending, None
            return pair

    def _follows(self, last: Frame, frame: Frame) -> bool:
        """Whether a frame can join those in the buffer; counts it and resets if not."""
        if frame.format != last.format:
            self._restart(
                frame,
                Drop.FORMAT_CHANGE,
                'from {}x{} {} in {!r}'.format(*last.format)
                + ' to {}x{} {} in {!r}'.format(*frame.format),
            )
            return False
        interval = frame.stamp_ns - last.stamp_ns
        if interval == 0:
            zero = ', and is zero: does the driver stamp its images?' if not frame.stamp_ns else ''
            self._on_drop(Drop.TIME_JUMP, f'the stamp was repeated{zero}')
            return False
        if interval < 0:
            line = f'the stamp went back by {-interval * 1e-9:.3f} s'
            # One frame a little late is out of order; a second one means that time itself went
            # back, as in a bag that is played in a loop.
            if self._late is None and -interval <= self._max_ns:
                self._late = frame
                self._on_drop(Drop.TIME_JUMP, line)
            else:
                self._restart(frame, Drop.TIME_JUMP, line)
            return False
        if interval < self._min_ns:
            self._on_drop(
                Drop.INTERVAL,
                f'{interval * 1e-9:.3f} s after the frame before, '
                f'min_interval is {self._min_ns * 1e-9:g} s',
            )
            return False
        if interval > self._max_ns:
            self._restart(
                frame,
                Drop.INTERVAL,
                f'no image for {interval * 1e-9:.3f} s, max_interval is {self._max_ns * 1e-9:g} s',
            )
            return False
        return True

    def _restart(self, frame: Frame, cause: Drop, line: str) -> None:
        """Begin anew with a frame that does not fit those in the buffer."""
        self._on_drop(cause, line)
        # The pair that waits is whole and stays; only what is paired later begins anew.
        self._frames.clear()
        self._frames.append(frame)
        self._late = None

    def _supersede(self) -> None:
        if self._pending is not None:
            self._on_drop(Drop.SUPERSEDED, 'a newer frame came before its pair was begun')
