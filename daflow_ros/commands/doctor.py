# SPDX-License-Identifier: Apache-2.0
"""``daflow doctor``: what is wrong with this machine, and how to cure it."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The camera to look for."""
    parser.add_argument(
        '--topic', default='image_raw', help='image topic of the camera (default: image_raw)'
    )
    parser.add_argument(
        '--wait', type=float, default=2.0, metavar='S', help='time to look for it, s (default: 2)'
    )


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 if one of them keeps flow from coming, else 0."""
    from daflow_ros.ros.doctor import Level, examine

    worst = Level.OK
    for finding in examine(args.topic, args.wait):
        print(f'{finding.level.name:5}  {finding.subject}: {finding.text}', flush=True)
        if finding.cure:
            print(f'       -> {finding.cure}', flush=True)
        worst = max(worst, finding.level)
    print({
        Level.OK: 'All is well.',
        Level.WARN: 'Flow will come; the warnings say what may cost images or time.',
        Level.ERROR: 'Something keeps flow from coming: see the errors.',
    }[worst])  # fmt: skip
    return 1 if worst == Level.ERROR else 0
