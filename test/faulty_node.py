# SPDX-License-Identifier: Apache-2.0
"""The flow node with the real DIS, made to fail by what the first image shows in its corner.

Usage: as ``daflow node``. The red value at (0, 0) of the reference image chooses the fault:
11 an exception, 12 CUDA out of memory once, 13 the same every time, 14 flow that is not finite,
15 a pair of three seconds, 16 flow of the wrong size, 17 a pair that takes until the file exists
that DAFLOW_TEST_GATE names (a minute at most), 18 a confidence that no message can hold. With the
parameter weights at 'slow', the model takes ten minutes to load.
"""

import dataclasses
import os
import sys
import time
from pathlib import Path

import numpy as np

from daflow_ros import load_estimator
from daflow_ros.ros.node import run_node

RAISE, MEMORY_ONCE, MEMORY, NOT_FINITE, SLOW, SIZE, HELD, NO_MESSAGE = range(11, 19)


GATE = Path(os.environ.get('DAFLOW_TEST_GATE', os.devnull))


class FaultyEstimator:
    def __init__(self, name, weights=None, **options):
        if weights == 'slow':
            time.sleep(600)
        self._real = load_estimator('dis_fast')
        self._failed = False
        self.name, self.revision = self._real.name, self._real.revision
        self.device, self.default_iterations = 'cpu', 0

    def estimate(self, image1, image2, **options):
        fault = int(image1[0, 0, 0])
        if fault == RAISE:
            raise RuntimeError('a fault that was asked for')
        if fault == MEMORY or (fault == MEMORY_ONCE and not self._failed):
            import torch

            self._failed = True
            raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 20.00 GiB')
        if fault == SLOW:
            time.sleep(3)
        end = time.monotonic() + 60
        while fault == HELD and not GATE.exists() and time.monotonic() < end:
            time.sleep(0.02)
        estimate = self._real.estimate(image1, image2)
        if fault == NOT_FINITE:
            estimate.flow[3, 3] = np.nan
        if fault == SIZE:
            return dataclasses.replace(estimate, flow=estimate.flow[1:])
        if fault == NO_MESSAGE:
            return dataclasses.replace(estimate, confidence=estimate.flow[..., 0] > 0)
        return estimate


if __name__ == '__main__':
    sys.exit(run_node(['daflow', *sys.argv[1:]], load=FaultyEstimator))
