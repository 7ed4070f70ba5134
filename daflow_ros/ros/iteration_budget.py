# SPDX-License-Identifier: Apache-2.0
"""Deadline mode: how many refinement iterations fit into the time that a pair may take."""

from __future__ import annotations

from math import floor

#: Weight of the newest measurement in the running means.
_NEWEST = 0.4


class IterationBudget:
    """Chooses iterations from the time that pairs took.

    Time is taken as ``a + b * iterations``. The last times anchor the line; its slope ``b`` comes
    from the numbers of iterations run so far, and is at most time / iterations (``a`` = 0), which
    errs on the side of fewer iterations.
    """

    def __init__(self) -> None:
        self._last: int | None = None
        self._times: dict[int, float] = {}

    def choose(self, full: int, deadline: float) -> int:
        """Iterations, 1 to ``full``, that should take at most ``deadline`` seconds."""
        if self._last is None:
            return full
        time = self._times[self._last]
        change = floor((deadline - time) / self._slope(self._last, time))
        return min(max(self._last + change, 1), full)

    def measured(self, iterations: int, seconds: float) -> None:
        """Tell how long a pair took; both positive."""
        before = self._times.get(iterations, seconds)
        self._times[iterations] = before + _NEWEST * (seconds - before)
        self._last = iterations

    def _slope(self, iterations: int, time: float) -> float:
        most = time / iterations
        fewest, largest = min(self._times), max(self._times)
        if fewest == largest:
            return most
        rise = (self._times[largest] - self._times[fewest]) / (largest - fewest)
        # Old measurements may contradict the new ones (another load, another image size).
        return min(max(rise, most / 20), most)
