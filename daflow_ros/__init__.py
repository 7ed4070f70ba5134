# SPDX-License-Identifier: Apache-2.0
"""Degradation-aware optical flow (DA-Flow, 2026) as a ROS 2 package and as a Python library."""

from __future__ import annotations

from pkgutil import extend_path
from typing import TYPE_CHECKING, Any

# The generated messages (daflow_ros.msg) may be installed in another folder than these
# sources, for example when Python is started from the repository root.
__path__ = extend_path(__path__, __name__)

__version__ = '0.1.0'

__all__ = ['ESTIMATORS', 'EstimatorError', 'FlowEstimate', 'load_estimator']

if TYPE_CHECKING:
    from daflow_ros.estimators import ESTIMATORS, EstimatorError, FlowEstimate, load_estimator


def __getattr__(name: str) -> Any:
    # Lazy, so that importing the package costs neither torch nor OpenCV.
    if name in __all__:
        from daflow_ros import estimators

        return getattr(estimators, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
