# SPDX-License-Identifier: Apache-2.0
"""The one table of estimators, and how each is made."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from daflow_ros.estimators.estimate import EstimatorError, FlowEstimator

WEIGHTS = Path(__file__).resolve().parents[1] / 'weights'


@dataclass(frozen=True)
class EstimatorInfo:
    """A row of the table.

    Attributes:
        name: given to :func:`load_estimator`.
        summary: one line.
        licence: of the weights (or of the algorithm's implementation).
        weights: where they come from: 'none', 'shipped', or what the user has to give.
        needs: what ``weights`` must point to, '' for nothing.
        confidence: whether it tells its confidence; diffusion: whether it runs the transformer.
    """

    name: str
    summary: str
    licence: str
    weights: str
    needs: str
    confidence: bool
    diffusion: bool


_ROWS = (
    EstimatorInfo(
        'daflow_tiny', 'DA-Flow at a size for robots, trained by this project', 'Apache-2.0',
        'shipped', '', True, True,
    ),
    EstimatorInfo(
        'raft_tiny', 'daflow_tiny without its diffusion branch: the control, and the faster one',
        'Apache-2.0', 'shipped', '', True, False,
    ),
    EstimatorInfo(
        'dis', 'OpenCV DIS, medium preset', 'Apache-2.0 (OpenCV)', 'none', '', False, False
    ),
    EstimatorInfo(
        'dis_fast', 'OpenCV DIS, ultrafast preset', 'Apache-2.0 (OpenCV)', 'none', '', False, False
    ),
    EstimatorInfo(
        'farneback', 'OpenCV Farneback', 'Apache-2.0 (OpenCV)', 'none', '', False, False
    ),
    EstimatorInfo(
        'raft', 'RAFT, official checkpoints', 'BSD-3-Clause', 'user',
        'princeton-vl raft-*.pth or torchvision raft_large', False, False,
    ),
    EstimatorInfo(
        'raft_small', 'RAFT small, official checkpoints', 'BSD-3-Clause', 'user',
        'princeton-vl raft-small.pth or torchvision raft_small', False, False,
    ),
    EstimatorInfo(
        'sea_raft_s', 'SEA-RAFT S, official checkpoints', 'BSD-3-Clause', 'user',
        'princeton-vl SEA-RAFT S, .pth or safetensors', True, False,
    ),
    EstimatorInfo(
        'sea_raft_m', 'SEA-RAFT M, official checkpoints', 'BSD-3-Clause', 'user',
        'princeton-vl SEA-RAFT M, .pth or safetensors', True, False,
    ),
    EstimatorInfo(
        'sea_raft_l', 'SEA-RAFT L: the weights of M, 12 iterations', 'BSD-3-Clause', 'user',
        'princeton-vl SEA-RAFT M, .pth or safetensors', True, False,
    ),
    EstimatorInfo(
        'daflow', 'DA-Flow at the size of the paper',
        'DiT4SR (non-commercial), SD3.5 (Stability Community), RAFT (BSD-3-Clause)', 'user',
        'a folder that `daflow convert` made and training finished', True, True,
    ),
    EstimatorInfo(
        'daflow_zero_shot', "matching by the transformer's queries and keys alone, untrained",
        'DiT4SR (non-commercial), SD3.5 (Stability Community)', 'user',
        'a folder that `daflow convert` made', False, True,
    ),
)  # fmt: skip

#: Every estimator by name.
ESTIMATORS: dict[str, EstimatorInfo] = {row.name: row for row in _ROWS}


def shipped_weights(name: str) -> Path | None:
    """Folder of the weights shipped for ``name``, or None where the package has none."""
    folder = WEIGHTS / name
    return folder if (folder / 'config.json').is_file() else None


def default_estimator() -> str:
    """'daflow_tiny' where its weights are in the package, else 'dis'."""
    return 'daflow_tiny' if shipped_weights('daflow_tiny') else 'dis'


def revision_of(path: Path) -> str:
    """First 12 hexadecimal digits of the SHA-256 of a checkpoint (a folder: of its safetensors).

    Raises:
        EstimatorError: a folder without any, whose revision would be that of nothing.
    """
    digest = hashlib.sha256()
    files = [path] if path.is_file() else sorted(path.rglob('*.safetensors'))
    if not files:
        raise EstimatorError(f'{path}: no safetensors in this folder')
    for file in files:
        with file.open('rb') as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:12]


def _weights_path(info: EstimatorInfo, weights: str | Path | None) -> Path:
    if weights is not None:
        path = Path(weights).expanduser()
        if not path.exists():
            raise EstimatorError(f'{info.name}: weights {path} do not exist')
        return path
    shipped = shipped_weights(info.name)
    if shipped is not None:
        return shipped
    if info.weights == 'shipped':
        raise EstimatorError(f'{info.name}: its weights are not in this installation ({WEIGHTS})')
    raise EstimatorError(f'{info.name} needs weights={info.needs}; nothing is downloaded')


def load_estimator(
    name: str, device: str = 'auto', weights: str | Path | None = None, **options: Any
) -> FlowEstimator:
    """Make an estimator ready to run.

    Args:
        name: a key of ``ESTIMATORS``.
        device: 'auto', 'cpu', 'cuda' or 'cuda:N'; OpenCV's run on the CPU whatever it says.
        weights: checkpoint file or folder, None for what the package ships; OpenCV's have none.
        options: of the estimator, for example ``iterations``, ``dtype``, ``pyramid``; see
            :class:`OpenCVEstimator` and :class:`NetworkEstimator`.

    Raises:
        EstimatorError: unknown name or option, missing, unreadable or wrong weights, no such
            device.
    """
    info = ESTIMATORS.get(name)
    if info is None:
        raise EstimatorError(f'unknown model {name!r}; there are {", ".join(ESTIMATORS)}')
    try:
        if info.weights == 'none':
            from daflow_ros.estimators.opencv import OpenCVEstimator

            if weights is not None:
                raise EstimatorError(f'{name} has no weights to load {weights} into')
            preset = {'dis': 'medium', 'dis_fast': 'ultrafast'}.get(name, 'farneback')
            return OpenCVEstimator(name, **{'preset': preset, **options})
        path = _weights_path(info, weights)
        if name in ('raft', 'raft_small', 'raft_tiny'):
            from daflow_ros.estimators.raft import raft_estimator

            return raft_estimator(name, path, device, **options)
        from daflow_ros.estimators.daflow import daflow_estimator, sea_raft_estimator

        make = sea_raft_estimator if name.startswith('sea_raft') else daflow_estimator
        return make(name, path, device, **options)
    except EstimatorError:
        raise
    except TypeError as error:
        option = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        problem = f' has no option {option[1]}' if option else f': {error}'
        raise EstimatorError(f'{name}{problem}') from error
    except (ValueError, OSError) as error:
        raise EstimatorError(f'{name}: {error}') from error
