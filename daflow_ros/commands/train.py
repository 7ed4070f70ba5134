# SPDX-License-Identifier: Apache-2.0
"""``daflow train STAGE``: restoration pre-training or flow training.

Started by ``accelerate launch`` it runs on many devices; resumes by itself from the output folder.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Stage, configuration file and overrides."""
    parser.add_argument('stage', choices=('restoration', 'flow'))
    parser.add_argument('--config', help='YAML with keys of TrainingConfig')
    parser.add_argument(
        '--set', nargs='*', default=[], metavar='KEY=VALUE', help='override single keys'
    )
    parser.add_argument('--threads', type=int, help='CPU threads of torch')


def settings(path: str | None, overrides: list[str]) -> dict[str, object]:
    """Keys of the YAML file and the overrides, checked.

    Raises:
        ValueError: unknown key, or a value of the wrong type.
    """
    import yaml

    from daflow_ros.training.trainer import TrainingConfig

    values: dict[str, object] = {}
    if path is not None:
        with open(path) as file:
            values = yaml.safe_load(file) or {}
    for item in overrides:
        key, sign, text = item.partition('=')
        if not sign:
            raise ValueError(f'{item!r} is not KEY=VALUE')
        values[key] = yaml.safe_load(text)
    fields = {f.name: f.default for f in dataclasses.fields(TrainingConfig)}
    for key, value in values.items():
        if key not in fields:
            raise ValueError(f'unknown key {key!r}; there are {", ".join(fields)}')
        default = fields[key]
        if isinstance(default, float) and isinstance(value, (int, str)):
            values[key] = float(value)  # YAML reads 1e-4 as a string
        elif default is not None and not isinstance(value, type(default)):
            raise ValueError(f'{key} must be {type(default).__name__}, not {value!r}')
    return values


def run(args: argparse.Namespace) -> int:
    """Train to the last step; 2 on a bad configuration."""
    import torch

    from daflow_ros.training.flow_training import FlowTrainer
    from daflow_ros.training.restoration import RestorationTrainer
    from daflow_ros.training.trainer import Trainer, TrainingConfig

    if args.threads:
        torch.set_num_threads(args.threads)
    kinds: dict[str, type[Trainer]] = {'flow': FlowTrainer, 'restoration': RestorationTrainer}
    try:
        config = TrainingConfig(**settings(args.config, args.set))  # type: ignore[arg-type]
        trainer = kinds[args.stage](config)
    except (ValueError, OSError) as error:
        print(f'daflow train: {error}', file=sys.stderr)
        return 2
    trainer.run()
    return 0
