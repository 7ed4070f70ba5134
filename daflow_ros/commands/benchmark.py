# SPDX-License-Identifier: Apache-2.0
"""``daflow benchmark``: time, memory, work and accuracy of the models in one run."""

from __future__ import annotations

import argparse
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        '--models', metavar='NAME[@WEIGHTS],...', default='dis_fast,dis,farneback,raft_small',
        help='names of `daflow models`; RAFTs without weights are timed with random ones '
        '(default: %(default)s)',
    )
    parser.add_argument('--size', default='640x480', metavar='WxH', help='(default: %(default)s)')
    parser.add_argument('--repeats', type=int, default=10, metavar='N',
                        help='runs of each model, in turns (default: %(default)s)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--dtype', default='float32', choices=('float32', 'float16', 'bfloat16'))
    parser.add_argument('--iterations', type=int, metavar='N',
                        help="of all networks (default: each model's own)")
    parser.add_argument('--pairs', metavar='DIR',
                        help='benchmark folder: adds the EPE, clean and corrupted')
    parser.add_argument(
        '--corrupt', metavar='NAME[:SEVERITY],...',
        default='severe:3,night:3,fog:3,rain:3,snow:3',
        help='corruptions of the EPE (default: %(default)s)',
    )
    parser.add_argument(
        '--evaluation', metavar='DIR',
        help='output folder of a `daflow evaluate` of the pairs to take the EPE from and go on '
        'with (default: measure all of it)',
    )
    parser.add_argument('--output', '-o', default='benchmark', metavar='DIR',
                        help='benchmark.csv and benchmark.png (default: %(default)s)')


def run(args: argparse.Namespace) -> int:
    """Benchmark; 0, or 2 where something cannot be run."""
    import re
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from daflow_ros.evaluation import benchmark
    from daflow_ros.evaluation.corruptions import parse_corruptions
    from daflow_ros.evaluation.models import parse_models

    size = re.fullmatch(r'(\d{2,5})x(\d{2,5})', args.size)
    if size is None or args.repeats < 1:
        print(f'daflow benchmark: size {args.size!r} is not WxH, or no repeats', file=sys.stderr)
        return 2
    setup = benchmark.Setup(
        int(size[1]), int(size[2]), args.repeats, args.device, args.dtype, args.iterations
    )
    folder = Path(args.output)
    try:
        specs = parse_models(args.models)
        rows = benchmark.benchmark(specs, setup, _progress)
        if args.pairs:
            with TemporaryDirectory() as aside:
                benchmark.add_accuracy(
                    rows, specs, args.pairs, parse_corruptions(args.corrupt), setup,
                    Path(args.evaluation or aside), _progress,
                )
    except ValueError as error:
        print(f'daflow benchmark: {error}', file=sys.stderr)
        return 2
    benchmark.write_csv(folder / 'benchmark.csv', rows)
    benchmark.draw_figure(folder / 'benchmark.png', rows)
    print((folder / 'benchmark.csv').read_text(), end='')
    return 0


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
