# SPDX-License-Identifier: Apache-2.0
"""Official RAFT checkpoints: princeton-vl (``.pth``) and torchvision, read into :class:`RAFT`.

The two publishers name the same tensors differently; torchvision's names are a bijection of
princeton's, except that princeton stores the shortcut's norm twice (``norm3``, ``downsample.1``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_sizes import RAFT_SMALL


class CheckpointError(ValueError):
    """A checkpoint is missing, unreadable, unsafe or of another model."""


_TORCHVISION = (
    (r'^feature_encoder\.', 'fnet.'),
    (r'^context_encoder\.', 'cnet.'),
    (r'^(fnet|cnet)\.convnormrelu\.0\.', r'\1.conv1.'),
    (r'^(fnet|cnet)\.convnormrelu\.1\.', r'\1.norm1.'),
    (r'\.convnormrelu(\d)\.0\.', r'.conv\1.'),
    (r'\.convnormrelu(\d)\.1\.', r'.norm\1.'),
    (r'^(fnet|cnet)\.conv\.', r'\1.conv2.'),
    (r'\.motion_encoder\.convcorr(\d)\.0\.', r'.encoder.convc\1.'),
    (r'\.motion_encoder\.convflow(\d)\.0\.', r'.encoder.convf\1.'),
    (r'\.motion_encoder\.conv\.0\.', '.encoder.conv.'),
    (r'\.recurrent_block\.convgru(\d)\.conv([zrq])\.', r'.gru.conv\g<2>\1.'),
    (r'^mask_predictor\.convrelu\.0\.', 'update_block.mask.0.'),
    (r'^mask_predictor\.conv\.', 'update_block.mask.2.'),
)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` or ``.pth`` file, without running any pickled code.

    Raises:
        CheckpointError: the file is missing, truncated, or holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f'{path}: no such file')
    try:
        if path.suffix == '.safetensors':
            from safetensors.torch import load_file

            return load_file(path)
        state: Any = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch and safetensors raise a dozen kinds
        raise CheckpointError(
            f'{path}: not a readable safetensors or weights-only checkpoint ({error})'
        ) from error
    for key in ('state_dict', 'model'):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        raise CheckpointError(f'{path}: expected a state dict of tensors')
    return dict(state)


def to_princeton_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename torchvision or data-parallel names to this package's; drop duplicates."""
    state = {key.removeprefix('module.'): value for key, value in state.items()}
    if any(key.startswith('feature_encoder.') for key in state):
        small = 'mask_predictor.conv.weight' not in state
        renamed = {}
        for key, value in state.items():
            for pattern, replacement in _TORCHVISION:
                key = re.sub(pattern, replacement, key)
            if small:  # the small model has one GRU, princeton does not number it
                key = re.sub(r'\.gru\.conv([zrq])1\.', r'.gru.conv\1.', key)
            renamed[key] = value
        state = renamed
    shortcuts = {k.rsplit('.', 2)[0] for k in state if '.downsample.1.' in k}
    shortcuts = {k.removesuffix('.downsample') for k in shortcuts}
    return {
        key: value
        for key, value in state.items()
        if not ('.norm3.' in key and key.split('.norm3.')[0] in shortcuts)
    }


def load_state(model: torch.nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Strict loading with one message that names file, keys and shapes.

    Raises:
        CheckpointError: keys are missing, unexpected or of another shape.
    """
    own = model.state_dict()
    missing = sorted(set(own) - set(state))
    extra = sorted(set(state) - set(own))
    shapes = [
        f'{k}: {tuple(state[k].shape)} instead of {tuple(own[k].shape)}'
        for k in own
        if k in state and state[k].shape != own[k].shape
    ]
    faults = [
        f'{len(keys)} {what}, first {keys[0]}'
        for what, keys in (('missing', missing), ('unexpected', extra), ('mis-shaped', shapes))
        if keys
    ]
    if faults:
        raise CheckpointError(f'{source}: not a {type(model).__name__}: ' + '; '.join(faults))
    model.load_state_dict(dict(state))


def load_raft(path: str | Path) -> RAFT:
    """RAFT, large or small by its keys, from a princeton-vl or torchvision checkpoint.

    Raises:
        CheckpointError: see :func:`read_state_dict` and :func:`load_state`.
    """
    state = to_princeton_names(read_state_dict(path))
    small = 'fnet.layer1.0.conv3.weight' in state
    model = RAFT(**RAFT_SMALL) if small else RAFT()
    load_state(model, state, path)
    return model.eval()
