# SPDX-License-Identifier: Apache-2.0
"""One small interface over networks and OpenCV."""

from daflow_ros.estimators.estimate import EstimatorError, FlowEstimate, FlowEstimator
from daflow_ros.estimators.registry import (
    ESTIMATORS,
    EstimatorInfo,
    default_estimator,
    load_estimator,
)

__all__ = [
    'ESTIMATORS',
    'EstimatorError',
    'EstimatorInfo',
    'FlowEstimate',
    'FlowEstimator',
    'default_estimator',
    'load_estimator',
]
