# SPDX-License-Identifier: Apache-2.0
"""`daflow clips`: draw training clips, take rendered ones, or degrade what is stored."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this verb."""
    parser.add_argument('output', type=Path, metavar='OUTPUT_DIR', help='folder of shards')
    parser.add_argument('--imagery',
                        help='folder of `daflow imagery`, or of photographs (default: procedural '
                             'textures)')
    parser.add_argument('--shards', type=int, default=200,
                        help='shards of 32 clips, about 47 MB each (default: %(default)s)')
    parser.add_argument('--size', type=int, default=384, help='side in px (default: %(default)s)')
    parser.add_argument('--frames', type=int, default=2, help='of a clip (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=1,
                        help='one for each process that writes (default: %(default)s)')
    parser.add_argument('--flying', action='store_true',
                        help='photographs with things that move before them, 512x384 px, two '
                             'frames')
    parser.add_argument('--degrade', type=Path, metavar='CLIPS_DIR',
                        help='degrade and match the clean clips of this folder instead of drawing '
                             '(about 300 MB a shard)')
    parser.add_argument('--rendered', type=Path, metavar='PAIRS_DIR',
                        help='take the pairs that tools/render_scenes.py drew, forth and back')
    parser.add_argument('--part', default='0/1', metavar='I/N',
                        help='with --degrade: every N-th shard from the I-th')
    parser.add_argument('--threads', type=int, help='CPU threads of torch')


def run(args: argparse.Namespace) -> int:
    """Write the shards that are missing; 2 where there is no imagery."""
    import torch

    from daflow_ros.training.clip_store import degrade_clips, write_clips, write_flying_clips
    from daflow_ros.training.rendered_pairs import write_rendered_clips

    if args.threads:
        torch.set_num_threads(args.threads)
    try:
        if args.rendered is not None:
            write_rendered_clips(args.rendered, args.output)
        elif args.degrade is not None:
            first, _, count = args.part.partition('/')
            part = int(first), int(count)
            degrade_clips(args.degrade, args.output, args.seed, part)
        elif args.flying:
            if args.imagery is None:
                raise ValueError('--flying needs --imagery')
            write_flying_clips(args.output, args.imagery, args.shards, args.seed)
        else:
            write_clips(
                args.output, args.imagery, args.shards, args.size, args.frames, args.seed
            )
    except (ValueError, OSError) as error:
        print(f'daflow clips: {error}', file=sys.stderr)
        return 2
    return 0
