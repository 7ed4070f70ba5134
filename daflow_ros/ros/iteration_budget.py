# SPDX-License-Identifier: Apache-2.0
"""Deadline mode: how many refinement iterations fit into the time that a pair may take."""

from __future__ import annotations

from collections import deque
from itertools import takewhile
from math import floor
from statistics import median

import numpy as np

#: Pairs that are remembered, and how many of the same iterations say how long those take now.
_MEMORY, _NOW = 12, 3


class IterationBudget:
    """Chooses iterations from the time that the last pairs took.

    Time is taken as ``a + b * iterations``. The last pairs anchor the line; its slope ``b`` comes
    from pairs with other numbers of iterations, and is at most time / iterations (``a`` = 0),
    which errs on the side of fewer iterations.
    """

    def __init__(self) -> None:
        self._pairs: deque[tuple[int, float]] = deque(maxlen=_MEMORY)

    def choose(self, full: int, deadline: float) -> int:
        """Iterations, 1 to ``full``, that should take at most ``deadline`` seconds."""
        if not self._pairs:
            return full
        last = self._pairs[-1][0]
        same = takewhile(lambda pair: pair[0] == last, reversed(self._pairs))
        time = median([seconds for _, seconds in same][:_NOW])
        change = floor((deadline - time) / self._slope(time / last))
        return min(max(last + change, 1), full)

    def measured(self, iterations: int, seconds: float) -> None:
        """Tell how long a pair took; both positive."""
        self._pairs.append((iterations, seconds))

    def _slope(self, most: float) -> float:
        counts, times = np.array(self._pairs).T
        if (counts == counts[0]).all():
            return most
        # Old measurements may contradict the new ones (another load, another image size).
        return min(max(float(np.polyfit(counts, times, 1)[0]), most / 20), most)
