# SPDX-License-Identifier: Apache-2.0
"""Deadline mode: how many refinement iterations fit into the time that a pair may take."""

from __future__ import annotations

from collections import deque
from itertools import islice
from math import floor
from statistics import median

import numpy as np

#: Pairs that are remembered, and how many of the same iterations say how long those take now.
_MEMORY, _NOW = 12, 3


class IterationBudget:
    """Chooses iterations from the time that the last pairs took.

    A number of iterations that was measured needs no guess: one that was too slow is not tried
    again, nor any above it, before its pairs are forgotten, and one that was in time can be
    chosen. Beyond those, time is taken as ``a + b * iterations``. The last pairs anchor the line;
    its slope ``b`` comes from pairs with other numbers of iterations, and is at most
    time / iterations (``a`` = 0), which errs on the side of fewer iterations. Time may be no
    line, and one more iteration take many times as long, so the line leads up by one at a time.
    """

    def __init__(self) -> None:
        self._pairs: deque[tuple[int, float]] = deque(maxlen=_MEMORY)

    def choose(self, full: int, deadline: float) -> int:
        """Iterations, 1 to ``full``, that should take at most ``deadline`` seconds."""
        if not self._pairs:
            return full
        last = self._pairs[-1][0]
        times = {count: self._time(count) for count, _ in self._pairs}
        change = floor((deadline - times[last]) / self._slope(times[last] / last))
        too_slow = min((n for n, time in times.items() if time > deadline), default=full + 1)
        in_time = max((n for n in times if n < too_slow), default=1)
        return max(min(max(last + min(change, 1), in_time), too_slow - 1, full), 1)

    def measured(self, iterations: int, seconds: float) -> None:
        """Tell how long a pair took; both positive."""
        self._pairs.append((iterations, seconds))

    def _time(self, iterations: int) -> float:
        """Seconds that the last pairs of this many iterations took."""
        times = (seconds for count, seconds in reversed(self._pairs) if count == iterations)
        return median(islice(times, _NOW))

    def _slope(self, most: float) -> float:
        counts, times = np.array(self._pairs).T
        if (counts == counts[0]).all():
            return most
        # Old measurements may contradict the new ones (another load, another image size).
        return min(max(float(np.polyfit(counts, times, 1)[0]), most / 20), most)
