# SPDX-License-Identifier: Apache-2.0
"""``daflow demo``: a street in the rain, rendered and replayed through the live node."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from daflow_ros.commands.replay import add_replay_arguments, replay_source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """As of ``daflow replay``; the source may be left out."""
    parser.add_argument(
        'source', nargs='?', help='your own recording instead of the rendered street')
    parser.add_argument('--topic', help='topic of the pictures, where a bag has several cameras')
    add_replay_arguments(parser, rate=0.0)


def run(args: argparse.Namespace) -> int:
    """Render if need be, replay, print the table."""
    source = args.source
    if source is None:
        from daflow_ros.estimators import ESTIMATORS, default_estimator

        name = default_estimator() if args.model == 'auto' else args.model
        if not args.looks and name in ESTIMATORS and ESTIMATORS[name].weights == 'shipped':
            # In this rain more looks change nothing, and take their time (docs/training.md).
            args.looks = 1
        from daflow_ros.datasets.demo_sequence import demo_bag

        try:
            source = demo_bag(progress=True)
        except OSError as error:
            print(f'daflow demo: {error}', file=sys.stderr)
            return 1
    return replay_source(args, source, args.topic, args.output or Path('daflow_demo'))
