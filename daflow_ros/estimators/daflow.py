# SPDX-License-Identifier: Apache-2.0
"""DA-Flow, its zero-shot mode, and SEA-RAFT as estimators."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daflow_ros.estimators.estimate import EstimatorError
from daflow_ros.estimators.network import DTYPES, NetworkEstimator
from daflow_ros.estimators.raft import tiny_defaults
from daflow_ros.estimators.registry import revision_of
from daflow_ros.models.flow_output import FlowOutput
from daflow_ros.models.loading import load_daflow
from daflow_ros.models.sea_raft import load_sea_raft
from daflow_ros.models.zero_shot import zero_shot_flow


def daflow_estimator(
    name: str,
    path: Path,
    device: str,
    *,
    diffusion_steps: int = 1,
    layer: int | None = None,
    dtype: str = 'float32',
    **options: Any,
) -> NetworkEstimator:
    """DA-Flow from a ``save_pretrained`` folder; 'daflow_zero_shot' uses its transformer alone.

    Args:
        name: 'daflow', 'daflow_tiny' or 'daflow_zero_shot'.
        path: the folder.
        device: see choose_device.
        diffusion_steps: 1 (from pure noise) to 50.
        layer: of the zero-shot mode; None for the deepest tap.
        dtype: of the transformer's weights as well as of autocast.
        options: of NetworkEstimator.

    Raises:
        EstimatorError: options out of range.
        CheckpointError: see load_daflow.
    """
    if not 1 <= diffusion_steps <= 50:
        raise EstimatorError(f'diffusion_steps must be 1 to 50, not {diffusion_steps}')
    network = load_daflow(path, DTYPES.get(dtype, torch.float32))
    if diffusion_steps > 1 and network.transformer.config.truncate_at is not None:
        raise EstimatorError(f'{path} holds what one step needs: diffusion_steps must be 1')
    side = network.transformer.config.pos_embed_max_size * network.latent.factor
    side *= network.transformer.config.patch_size
    layers = network.transformer.config.num_layers
    if layer is not None and not 0 <= layer < layers:
        raise EstimatorError(f'layer must be 0 to {layers - 1}, not {layer}')
    tapped = network.taps[-1] if layer is None else layer

    def predict(
        frames: Tensor, iterations: int, initial_flow: Tensor | None, hypotheses: Tensor | None
    ) -> FlowOutput:
        if name == 'daflow_zero_shot':
            return zero_shot_flow(network, frames, tapped, diffusion_steps)
        output: FlowOutput = network(
            frames,
            iterations,
            initial_flow,
            diffusion_steps,
            last_pair_only=True,
            hypotheses=hypotheses,
        )
        return output

    defaults = tiny_defaults(network.raft) if name == 'daflow_tiny' else {}
    defaults = {
        'num_frames': network.config.num_frames,
        **defaults,
        'multiple': network.multiple,
        'max_side': side,
    }
    return NetworkEstimator(
        name,
        network,
        predict,
        revision_of(path),
        device=device,
        dtype=dtype,
        diffusion_steps=diffusion_steps,
        **{**defaults, **options},
    )


def sea_raft_estimator(name: str, path: Path, device: str, **options: Any) -> NetworkEstimator:
    """SEA-RAFT S, M or L from an official checkpoint (L is M with 12 iterations).

    Raises:
        EstimatorError: a checkpoint of another size than ``name`` says.
        CheckpointError: see load_sea_raft.
    """
    network = load_sea_raft(path)
    small = network.config.pretrain == 'resnet18'
    if small != (name == 'sea_raft_s'):
        raise EstimatorError(f'{path} holds SEA-RAFT {"S" if small else "M or L"}, not {name}')

    def predict(
        frames: Tensor, iterations: int, initial_flow: Tensor | None, hypotheses: Tensor | None
    ) -> FlowOutput:
        output: FlowOutput = network(frames[:, -2], frames[:, -1], iterations, initial_flow)
        return output

    defaults = {'iterations': 12 if name == 'sea_raft_l' else 4}
    return NetworkEstimator(
        name, network, predict, revision_of(path), device=device, **{**defaults, **options}
    )
