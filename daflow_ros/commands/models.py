# SPDX-License-Identifier: Apache-2.0
"""``daflow models``: the table of estimators."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments."""


def run(args: argparse.Namespace) -> int:
    """Print the table."""
    from daflow_ros.estimators import ESTIMATORS, default_estimator
    from daflow_ros.estimators.registry import shipped_weights

    default = default_estimator()
    for info in ESTIMATORS.values():
        if info.weights == 'none':
            state = 'ready, needs no weights'
        elif shipped_weights(info.name):
            state = 'ready, weights shipped'
        elif info.weights == 'shipped':
            state = 'weights are not in this installation'
        else:
            state = f'weights from you: {info.needs}'
        extras = ['confidence'] * info.confidence + ['diffusion'] * info.diffusion
        mark = '*' if info.name == default else ' '
        print(f'{mark} {info.name:17} {info.summary}')
        print('    ' + '; '.join([state, f'licence {info.licence}', *extras]))
    print('* the default')
    return 0
