# SPDX-License-Identifier: Apache-2.0
"""Loading of model folders (``config.json`` and safetensors) that nobody vouches for.

Everything is checked before it is used: the configuration has to build the network (on the meta
device, so that a wrong size costs nothing), file names of a sharded folder have to stay inside it,
and every key and shape has to be the network's own. Pickles are never read. All faults become a
`CheckpointError` that names the file, the key and what was expected.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from daflow_ros.models.daflow import DAFlow
from daflow_ros.models.raft import RAFT
from daflow_ros.models.raft_checkpoints import CheckpointError

WEIGHTS = 'diffusion_pytorch_model.safetensors'
#: Blocks of the largest network anyone has trained are far below; a hostile file's are not.
MAX_LAYERS = 256

Model = TypeVar('Model', bound=nn.Module)


def read_config(folder: str | Path, class_names: Sequence[str]) -> dict[str, Any]:
    """Constructor arguments from a folder's ``config.json``.

    Args:
        folder: the model's.
        class_names: accepted values of ``_class_name``.

    Raises:
        CheckpointError: no such file, not JSON, or of another class.
    """
    file = Path(folder) / 'config.json'
    try:
        config = json.loads(file.read_text(encoding='utf-8'))
    except OSError as error:
        raise CheckpointError(f'{file}: cannot be read ({error.strerror})') from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f'{file}: not JSON ({error})') from error
    kind = config.get('_class_name') if isinstance(config, dict) else None
    if kind not in class_names:
        raise CheckpointError(f'{file}: expected _class_name {class_names[0]}, found {kind!r}')
    for part in (config, config.get('transformer_config')):
        layers = part.get('num_layers', 0) if isinstance(part, dict) else 0
        if not isinstance(layers, int) or layers > MAX_LAYERS:
            raise CheckpointError(f'{file}: num_layers {layers!r}, expected at most {MAX_LAYERS}')
    return {k: v for k, v in config.items() if not k.startswith('_')}


def weight_files(folder: str | Path, stem: str = WEIGHTS) -> list[Path]:
    """Safetensors files of a folder, one or the shards that its index names.

    Raises:
        CheckpointError: none there, an unreadable index, or an index that points elsewhere.
    """
    folder = Path(folder)
    single, index = folder / stem, folder / f'{stem}.index.json'
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(f'{folder}: expected {stem} (or its index); pickles are not read')
    try:
        names = set(json.loads(index.read_text(encoding='utf-8'))['weight_map'].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{index}: not an index of shards ({error!r})') from error
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r'[\w.-]+\.safetensors', name):
            raise CheckpointError(f'{index}: shard {name!r}, expected a file of this folder')
        if not (folder / name).is_file():
            raise CheckpointError(f'{folder / name}: missing, expected by {index.name}')
    return sorted(folder / name for name in names)


def load_tensors(
    files: Sequence[Path],
    expected: dict[str, torch.Size],
    ignore: Sequence[str] = (),
    keep: Callable[[str], bool] = lambda key: True,
) -> dict[str, Tensor]:
    """Read tensors, each of which has to be expected and of the expected shape.

    Args:
        files: safetensors.
        expected: key -> shape; all have to be there.
        ignore: patterns of keys that are not read.
        keep: keys it refuses are not read either.

    Raises:
        CheckpointError: names the file, the key and the expectation.
    """
    state: dict[str, Tensor] = {}
    for file in files:
        try:
            with safe_open(file, framework='pt') as tensors:
                for key in tensors.keys():  # noqa: SIM118 (not a dict)
                    if not keep(key) or any(re.search(p, key) for p in ignore):
                        continue
                    if key not in expected:
                        raise CheckpointError(f'{file}: {key}: not a parameter of this model')
                    shape = tuple(tensors.get_slice(key).get_shape())
                    if shape != tuple(expected[key]):
                        raise CheckpointError(
                            f'{file}: {key}: shape {shape}, expected {tuple(expected[key])}'
                        )
                    state[key] = tensors.get_tensor(key)
                    if not state[key].is_floating_point() and not key.endswith('_tracked'):
                        raise CheckpointError(
                            f'{file}: {key}: {state[key].dtype}, expected floating point'
                        )
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f'{file}: truncated or not safetensors ({error})') from error
    missing = sorted(set(expected) - set(state))
    if missing:
        raise CheckpointError(
            f'{files[0]}: {len(missing)} keys missing, first {missing[0]}, expected shape'
            f' {tuple(expected[missing[0]])}'
        )
    return state


def build(kind: Callable[..., Model], config: dict[str, Any], folder: str | Path) -> Model:
    """A network on the meta device.

    Raises:
        CheckpointError: a configuration that its constructor refuses.
    """
    try:
        with torch.device('meta'):
            return kind(**config)
    except (
        ValueError, TypeError, LookupError, ArithmeticError, RuntimeError, AttributeError
    ) as error:  # fmt: skip
        raise CheckpointError(f'{Path(folder) / "config.json"}: {error}') from error


def _load_folder(
    kind: type[Model],
    folder: str | Path,
    dtype_of: Callable[[str], torch.dtype] = lambda key: torch.float32,
) -> Model:
    """A network by its class's name, with the folder's weights in the type told for each key."""
    if not Path(folder).is_dir():
        raise CheckpointError(f'{folder}: expected a folder written by save_pretrained')
    model = build(kind, read_config(folder, [kind.__name__]), folder)
    # Every buffer of these networks is in the state: nothing stays on the meta device.
    expected = {k: v.shape for k, v in model.state_dict().items()}
    state = load_tensors(weight_files(folder), expected)
    for key, value in state.items():
        if value.is_floating_point():
            state[key] = value.to(dtype_of(key))
    model.load_state_dict(state, assign=True)
    return model.eval().requires_grad_(False)


def load_raft_folder(folder: str | Path) -> RAFT:
    """RAFT from a ``save_pretrained`` folder, float32, in evaluation mode, on the CPU.

    Raises:
        CheckpointError: missing, truncated, mis-shaped or hostile files.
    """
    return _load_folder(RAFT, folder)


def load_daflow(folder: str | Path, transformer_dtype: torch.dtype = torch.float32) -> DAFlow:
    """DA-Flow from a ``save_pretrained`` folder, in evaluation mode, on the CPU.

    Args:
        folder: with ``config.json`` and safetensors.
        transformer_dtype: of the transformer and the VAE; the rest is float32.

    Raises:
        CheckpointError: missing, truncated, mis-shaped or hostile files.
    """

    def dtype_of(key: str) -> torch.dtype:
        large = key.startswith(('transformer.', 'latent.'))
        return transformer_dtype if large else torch.float32

    return _load_folder(DAFlow, folder, dtype_of)
