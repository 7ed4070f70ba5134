# SPDX-License-Identifier: Apache-2.0
"""Degradations of camera images, coherent in time: weather, optics, sensor and coding."""

from daflow_ros.degradation.pipeline import (
    DEGRADATIONS,
    apply_degradation,
    degrade,
    random_degradation,
)

__all__ = ['DEGRADATIONS', 'apply_degradation', 'degrade', 'random_degradation']
