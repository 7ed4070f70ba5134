# SPDX-License-Identifier: Apache-2.0
"""``daflow replay``: a recording played through the live node."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Source, output and what the node runs."""
    parser.add_argument(
        'source', help='rosbag2 (folder, .mcap, .db3), ROS 1 .bag, video or folder of images')
    parser.add_argument('--topic', help='topic of the pictures, where a bag has several cameras')
    add_replay_arguments(parser, rate=1.0)


def add_replay_arguments(parser: argparse.ArgumentParser, rate: float) -> None:
    """Arguments that the demo shares."""
    parser.add_argument('--model', default='auto', help='see `daflow models` (default: auto)')
    parser.add_argument('--device', default='auto', help='auto, cpu, cuda or cuda:N')
    parser.add_argument('--weights', default='', help='checkpoint file or folder of the model')
    parser.add_argument(
        '--looks', type=int, default=0, choices=range(9), metavar='N',
        help='how often daflow_tiny and raft_tiny estimate a pair in rain or snow, 1 to 8'
        ' (default: 0, as the model does; 1 for the street of `daflow demo`)')
    parser.add_argument('--output', type=Path, help='folder for the results')
    parser.add_argument(
        '--rate', type=float, default=rate, metavar='X',
        help='times the recorded speed; 0: as fast as the model answers, every pair gets its flow'
        f' (default: {rate:g})')
    parser.add_argument('--no-video', action='store_true', help='draw no film and no picture')


def run(args: argparse.Namespace) -> int:
    """Replay and print the summary."""
    name = Path(args.source).resolve().stem
    return replay_source(args, args.source, args.topic,
                         args.output or Path(f'daflow_replay_{name}'))


def replay_source(args: argparse.Namespace, source: str | Path, topic: str | None,
                  output: Path) -> int:
    """Replay a source and print what came of it; returns the exit status."""
    from daflow_ros.datasets.recordings import RecordingError, open_recording

    try:
        from daflow_ros.ros.node_process import NodeProcessError
        from daflow_ros.ros.replay import ReplayFiles, replay
    except ImportError as error:
        print(f'daflow {args.verb} needs ROS 2 (rclpy and its messages): {error}',
              file=sys.stderr)
        return 1
    if not args.rate >= 0:
        print(f'daflow {args.verb}: --rate {args.rate}: at least 0', file=sys.stderr)
        return 2
    try:
        recording = open_recording(source, topic)
        summary = replay(recording, output, model=args.model, device=args.device,
                         weights=args.weights, looks=args.looks, rate=args.rate,
                         video=not args.no_video)
    except (RecordingError, NodeProcessError, OSError) as error:
        print(f'daflow {args.verb}: {error}', file=sys.stderr)
        return 1
    files = ReplayFiles(output)
    print(summary.table())
    made = (files.flow_bag, files.video, files.picture, files.summary)
    print('written:', *(path for path in made if path.exists()), sep='\n  ')
    return 130 if summary.interrupted else 0
