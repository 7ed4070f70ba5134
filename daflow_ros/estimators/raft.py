# SPDX-License-Identifier: Apache-2.0
"""RAFT's family as estimators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from daflow_ros.estimators.estimate import EstimatorError
from daflow_ros.estimators.network import NetworkEstimator
from daflow_ros.estimators.registry import revision_of
from daflow_ros.models.flow_output import FlowOutput
from daflow_ros.models.loading import load_raft_folder
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_checkpoints import load_raft


def tiny_defaults(raft: RAFT) -> dict[str, Any]:
    """Options of the models that this project trains: iterations, and what starts them."""
    if raft.fusion is not None:
        return {'iterations': 2, 'multiple': 16, 'hypotheses': True, 'looks': 3}
    return {'iterations': 5, 'pyramid': 2}


def raft_estimator(name: str, path: Path, device: str, **options: Any) -> NetworkEstimator:
    """RAFT large, small (official checkpoints) or tiny (a ``save_pretrained`` folder).

    Raises:
        EstimatorError: a checkpoint of another size than ``name`` says.
        CheckpointError: see load_raft and load_raft_folder.
    """
    network = load_raft_folder(path) if path.is_dir() else load_raft(path)
    small = network.config.block == 'bottleneck'
    if name != 'raft_tiny' and small != (name == 'raft_small'):
        raise EstimatorError(f'{path} holds RAFT {"small" if small else "large"}, not {name}')

    def predict(
        frames: Tensor, iterations: int, initial_flow: Tensor | None, hypotheses: Tensor | None
    ) -> FlowOutput:
        output: FlowOutput = network(
            frames[:, -2], frames[:, -1], iterations, initial_flow, hypotheses
        )
        return output

    defaults = tiny_defaults(network) if name == 'raft_tiny' else {}
    return NetworkEstimator(
        name, network, predict, revision_of(path), device=device, **{**defaults, **options}
    )
