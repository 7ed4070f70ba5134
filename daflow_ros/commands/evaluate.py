# SPDX-License-Identifier: Apache-2.0
"""``daflow evaluate``: models side by side on recordings and benchmarks, and a report."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from daflow_ros.datasets.recordings import Recording
    from daflow_ros.evaluation.live import Play
    from daflow_ros.evaluation.models import ModelSpec
    from daflow_ros.evaluation.runner import Settings


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of the verb."""
    parser.add_argument(
        'sources', nargs='+', metavar='SOURCE',
        help='rosbag2 (.mcap, .db3 or folder), ROS 1 .bag, video, folder of images, or the root '
        'of a benchmark (Sintel, Spring, TartanAir, KITTI, Middlebury, FlyingChairs); a folder of '
        'recordings stands for all of them',
    )
    parser.add_argument(
        '--models', metavar='NAME[@WEIGHTS],...',
        help='names of `daflow models`, with weights after @ (default: the default model and dis)',
    )
    parser.add_argument(
        '--corrupt', metavar='NAME[:SEVERITY],...', default='',
        help='degrade the source as well: rain:3,fog:2+4,paper; `weather` and `all` are groups '
        '(severity 1 to 5, default 3; see `daflow degrade`)',
    )
    parser.add_argument(
        '--output', '-o', metavar='DIR', default='evaluation',
        help='report.html, report.md, summary.csv, results.json; a second run goes on from what '
        'is there (default: %(default)s)',
    )
    parser.add_argument(
        '--require', metavar='CONDITIONS', default='',
        help="limits for CI, such as 'epe<2.0,dis/outlier3<10,epe[rain:3]<4': exit status 1 "
        'where one is not kept',
    )
    parser.add_argument('--topic', help='image topic, where a bag has several cameras')
    parser.add_argument('--every', type=_positive, default=1, metavar='N', help='every N-th pair')
    parser.add_argument('--limit', type=_positive, metavar='N', help='N pairs of a source at most')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument(
        '--iterations', type=int, choices=range(1, 65), metavar='N',
        help="refinement iterations of all networks, 1 to 64 (default: each model's own)",
    )
    parser.add_argument('--seed', type=int, default=0, help='of the corruptions')
    parser.add_argument(
        '--proxies', action='store_true',
        help='measure the proxies also where there is ground truth, and their rank correlation '
        'with EPE (twice the time)',
    )
    parser.add_argument(
        '--live', action='store_true',
        help='also play the recordings through the node over DDS, at their own rate: rate, '
        'latency, drops, and where its flow differs from the direct run (needs ROS 2)',
    )
    parser.add_argument(
        '--ray-address', metavar='ADDRESS',
        help='run the sources side by side on Ray: local (this machine), auto, or host:port of a '
        "cluster that sees the same files (pip install 'daflow_ros[fleet]')",
    )
    parser.add_argument(
        '--no-frames', action='store_true',
        help="leave the source's frames out of the report, where they must not be passed on",
    )
    parser.add_argument(
        '--no-report', action='store_true', help='print the table and write JSON and CSV only'
    )


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not at least 1')
    return value


def run(args: argparse.Namespace) -> int:
    """Evaluate; 0, 1 where a requirement is not kept, 2 where nothing could be evaluated."""
    from daflow_ros.estimators import EstimatorError, default_estimator
    from daflow_ros.evaluation import fleet, live, output, summary
    from daflow_ros.evaluation.corruptions import parse_corruptions
    from daflow_ros.evaluation.models import parse_models
    from daflow_ros.evaluation.runner import Settings, SourceResult, evaluate_source
    from daflow_ros.evaluation.sources import SourceError

    models = args.models or ','.join(dict.fromkeys((default_estimator(), 'dis')))
    try:
        settings = Settings(
            tuple(parse_models(models)), tuple(parse_corruptions(args.corrupt)), args.seed,
            args.proxies, args.device, args.iterations, args.topic, args.every, args.limit,
        )
    except ValueError as error:
        print(f'daflow evaluate: {error}', file=sys.stderr)
        return 2
    folder = Path(args.output)
    results: list[SourceResult] = []
    failed: dict[str, str] = {}
    sources = fleet.expand_sources(args.sources)
    try:
        # Before the work, not after it.
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f'daflow evaluate: --output: {error}', file=sys.stderr)
        return 2
    try:
        play = player() if args.live else None
    except ImportError as error:
        print(
            f'daflow evaluate: --live needs ROS 2 (rclpy and its messages): {error}',
            file=sys.stderr,
        )
        return 2
    try:
        if args.ray_address:
            results, failed = fleet.evaluate_fleet(
                sources, settings, folder, args.ray_address, _progress
            )
            sources = []
        for source in sources:
            try:
                results.append(evaluate_source(source, settings, folder, _progress))
            except SourceError as error:
                failed[source] = str(error)
    except (EstimatorError, fleet.FleetError) as error:
        print(f'daflow evaluate: {error}', file=sys.stderr)
        return 2
    for problem in [*failed.values(), *(f for result in results for f in result.failures)]:
        print(f'not evaluated: {problem}', file=sys.stderr)
    records = [record for result in results for record in result.records]
    if not records:
        return 2
    verdicts = []
    try:
        verdicts = summary.check_requirements(args.require, records)
    except summary.RequirementError as error:
        print(f'daflow evaluate: --require: {error}', file=sys.stderr)
        return 2
    played = []
    if play is not None:
        try:
            played = live.run_live(results, settings, folder, play, _progress)
        except live.LiveError as error:
            print(f'daflow evaluate: {error}', file=sys.stderr)
            return 2
    run_info = output.describe_run(settings, results, failed, sys.argv, verdicts, played)
    output.write_results(folder, run_info, results)
    if not args.no_report:
        from daflow_ros.evaluation.report import write_report

        write_report(folder, run_info, results, settings, not args.no_frames)
        _progress(f'report: {folder / "report.html"}')
    print(output.text_table(records))
    for entry in played:
        print(live.sentence(entry))
    for sentence, holds in verdicts:
        print(f'{"ok  " if holds else "FAIL"} {sentence}')
    return 0 if all(holds for _, holds in verdicts) else 1


def player() -> Play:
    """What plays recordings through the node.

    Raises:
        ImportError: no ROS here.
    """
    from daflow_ros.evaluation.live import LiveError
    from daflow_ros.ros.node_process import NodeProcessError
    from daflow_ros.ros.replay import ReplayFiles, replay

    def play(
        recording: Recording, folder: Path, spec: ModelSpec, settings: Settings
    ) -> tuple[Any, Path]:
        try:
            summary = replay(
                recording, folder, model=spec.name,
                weights=str(Path(spec.weights).resolve()) if spec.weights else '',
                device=settings.device, iterations=settings.iterations or 0, video=False,
            )  # fmt: skip
        except NodeProcessError as error:
            raise LiveError(str(error)) from error
        return summary, ReplayFiles(folder).flow_bag

    return play


def _progress(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
