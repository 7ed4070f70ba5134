# SPDX-License-Identifier: Apache-2.0
"""Configurations of :class:`~daflow_ros.models.raft.RAFT` beside the official large one."""

from __future__ import annotations

from typing import Any

from daflow_ros.flow.hypotheses import BACKWARD, NUM_HYPOTHESES

#: The official small one (princeton-vl/RAFT).
RAFT_SMALL: dict[str, Any] = {
    'block': 'bottleneck',
    'encoder_dims': (32, 64, 96),
    'feature_dim': 128,
    'context_norm': 'none',
    'hidden_dim': 96,
    'context_dim': 64,
    'corr_radius': 3,
    'corr_dims': (96,),
    'flow_dims': (64, 32),
    'motion_dim': 82,
    'head_dim': 128,
    'gru': 'conv',
    'mask_dim': 0,
}

#: Finds flow by itself, from no motion, and tells its confidence.
RAFT_MATCHER: dict[str, Any] = {
    'block': 'residual',
    'encoder_dims': (64, 96, 128),
    'encoder_depths': (1, 1, 2),
    'feature_dim': 128,
    'context_norm': 'instance',
    'hidden_dim': 96,
    'context_dim': 96,
    'corr_dims': (192, 128),
    'flow_dims': (64, 32),
    'motion_dim': 112,
    'head_dim': 192,
    'mask_dim': 192,
    'negative_slope': 0.1,
    'confidence_head': True,
    'opening': 9,
    'start_detail': True,
}

#: That of ``raft_tiny``: fuses hypotheses.
RAFT_TINY: dict[str, Any] = {
    'block': 'residual',
    'encoder_dims': (16, 48, 96),
    'encoder_depths': (1, 1, 2),
    'feature_dim': 96,
    'shared_encoder': True,
    'hidden_dim': 64,
    'context_dim': 48,
    'corr_radius': 3,
    'corr_dims': (64,),
    'flow_dims': (32, 16),
    'motion_dim': 50,
    'head_dim': 64,
    'gru': 'sep',
    'mask_dim': 0,
    'negative_slope': 0.1,
    'opening': 9,
    'num_hypotheses': NUM_HYPOTHESES,
    'num_backward': len(BACKWARD),
}
