# SPDX-License-Identifier: Apache-2.0
"""`daflow imagery`: fetch the freely licensed photographs that training scenes are made of."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument('output', type=Path, metavar='OUTPUT_DIR',
                        help='folder for photos/, sprites/, textures/ and sources.csv')
    parser.add_argument('--scratch', type=Path,
                        help='keep downloaded packages here (default: a temporary folder; '
                             'about 4 GB)')


def run(args: argparse.Namespace) -> int:
    """Run the verb; returns the exit status."""
    from daflow_ros.training.imagery import ImageryError, collect

    try:
        if args.scratch is not None:
            counts = collect(args.output, args.scratch)
        else:
            with tempfile.TemporaryDirectory(prefix='daflow_imagery_') as scratch:
                counts = collect(args.output, Path(scratch))
    except ImageryError as error:
        print(f'daflow imagery: {error}', file=sys.stderr)
        return 1
    print(', '.join(f'{count} {name}' for name, count in counts.items()), f'-> {args.output}')
    return 0
