# SPDX-License-Identifier: Apache-2.0
"""``daflow``: one subcommand a verb, each in its own module of ``daflow_ros.commands``."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from daflow_ros import __version__
from daflow_ros.allocator import keep_freed_memory

#: Verb and its one line; the module is imported only when the verb is asked for.
COMMANDS = {
    'node': 'start the flow node (what the launch file starts)',
    'replay': 'play a recording into the node, record and draw its flow',
    'demo': 'render a street in bad weather and replay it through the node',
    'doctor': 'check ROS, transport, device and weights, and say what to cure',
    'models': 'list the models, their licences and where their weights come from',
    'evaluate': 'measure models on a recording or benchmark and write a report',
    'benchmark': 'time the models against each other in one run',
    'degrade': 'draw every degradation of an image or clip',
    'analyse': 'map which layer and step of the transformer matches best',
    'convert': 'assemble a daflow folder from DiT4SR, SD3.5 VAE and RAFT weights',
    'imagery': 'collect freely licensed photographs for training',
    'clips': 'draw degraded training clips ahead of a run',
    'train': 'train a stage: restoration or flow',
}

#: Verbs whose process runs one network over and over.
LONG_RUNNING = ('node', 'benchmark', 'train')


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``daflow``; returns the exit status.

    Args:
        argv: arguments without the program's name, None for the process's own.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog='daflow', description='Degradation-aware optical flow: node, tools, evaluation.'
    )
    parser.add_argument('--version', action='version', version=f'daflow_ros {__version__}')
    verbs = parser.add_subparsers(dest='verb', metavar='VERB', required=True)
    chosen = next((a for a in arguments if not a.startswith('-')), None)
    for verb, help_line in COMMANDS.items():
        sub = verbs.add_parser(verb, help=help_line, description=help_line)
        if verb == chosen:
            module = importlib.import_module(f'daflow_ros.commands.{verb}')
            module.add_arguments(sub)
            sub.set_defaults(run=module.run)
    args = parser.parse_args(arguments)
    if args.verb in LONG_RUNNING:
        keep_freed_memory()
    try:
        return int(args.run(args))
    except KeyboardInterrupt:
        return 130


if __name__ == '__main__':
    sys.exit(main())
