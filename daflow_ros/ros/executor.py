# SPDX-License-Identifier: Apache-2.0
"""The node's executor: rclpy's multi-threaded one without its busy loop."""

from __future__ import annotations

import time
from typing import Any

from rclpy.executors import MultiThreadedExecutor

#: Pause before a callback that still waits for a thread is looked at again, s.
PAUSE = 0.001


class CallbackExecutor(MultiThreadedExecutor):
    """Runs callbacks on a pool of threads and lets them run.

    rclpy's executor offers a callback that waits for a free thread again at once, and submits it
    again, as fast as it can. That loop holds Python's interpreter lock against the very threads
    it waits for: with images and /clock coming in it takes a whole core and delays each image by
    some hundred ms, so that the queue of a best-effort subscription overflows. A pause between
    two offers of the same callback cures it; callbacks that come new are not delayed.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._offered: set[Any] = set()

    def wait_for_ready_callbacks(self, *args: Any, **kwargs: Any) -> Any:
        """Next callback to run, as (handler, entity, node)."""
        ready = super().wait_for_ready_callbacks(*args, **kwargs)
        self._offered = {handler for handler in self._offered if not handler.done()}
        if ready[0] in self._offered:
            time.sleep(PAUSE)
        else:
            self._offered.add(ready[0])
        return ready
