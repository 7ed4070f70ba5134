# SPDX-License-Identifier: Apache-2.0
"""OpenCV's dense flow: DIS (Kroeger et al., ECCV 2016) and Farneback (SCIA 2003)."""

from __future__ import annotations

import time
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from daflow_ros.estimators.estimate import (
    EstimatorError,
    FlowEstimate,
    check_initial_flow,
    check_pair,
)

DIS_PRESETS = {
    'ultrafast': cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
    'fast': cv2.DISOPTICAL_FLOW_PRESET_FAST,
    'medium': cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
}


class OpenCVEstimator:
    """DIS or Farneback on grey images, on the CPU.

    Args:
        name: as in ``ESTIMATORS``.
        preset: of DIS ('ultrafast', 'fast', 'medium'), or 'farneback'.

    Raises:
        EstimatorError: unknown preset.
    """

    device = 'cpu'
    default_iterations = 0

    def __init__(self, name: str, preset: str) -> None:
        if preset not in (*DIS_PRESETS, 'farneback'):
            raise EstimatorError(
                f'preset {preset!r} is none of {", ".join((*DIS_PRESETS, "farneback"))}'
            )
        self.name = name
        self.revision = f'opencv-{cv2.__version__}'
        self._dis: Any = None
        if preset in DIS_PRESETS:
            self._dis = cv2.DISOpticalFlow.create(DIS_PRESETS[preset])

    def estimate(
        self,
        image1: NDArray[np.uint8],
        image2: NDArray[np.uint8],
        *,
        iterations: int | None = None,
        initial_flow: NDArray[np.float32] | None = None,
    ) -> FlowEstimate:
        """See :class:`FlowEstimator`; ``iterations`` has no meaning here and is not used."""
        begin = time.perf_counter()
        height, width = check_pair(image1, image2)
        check_initial_flow(initial_flow, height, width)
        grey1 = cv2.cvtColor(image1, cv2.COLOR_RGB2GRAY)
        grey2 = cv2.cvtColor(image2, cv2.COLOR_RGB2GRAY)
        start: Any = None
        if initial_flow is not None:
            start = np.array(initial_flow, dtype=np.float32, order='C')
        if self._dis is not None:
            flow = self._dis.calc(grey1, grey2, start)
        else:
            flags = 0 if start is None else cv2.OPTFLOW_USE_INITIAL_FLOW
            flow = cv2.calcOpticalFlowFarneback(grey1, grey2, start, 0.5, 5, 15, 3, 5, 1.2, flags)
        if not np.isfinite(flow).all():
            raise EstimatorError(f'{self.name}: the flow is not finite')
        return FlowEstimate(
            np.asarray(flow, dtype=np.float32), None, 0, 0, time.perf_counter() - begin
        )
