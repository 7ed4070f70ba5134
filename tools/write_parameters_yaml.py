#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes config/daflow.yaml from the parameters that the node declares.

Usage: tools/write_parameters_yaml.py > config/daflow.yaml
"""

import json
import textwrap

from daflow_ros.ros.parameters import PARAMETERS, ParameterInfo

HEAD = """\
# SPDX-License-Identifier: Apache-2.0
#
# Parameters of the flow node, every one at its default. Written by tools/write_parameters_yaml.py
# from daflow_ros/ros/parameters.py.

/**:
  ros__parameters:
"""


def notes(info: ParameterInfo) -> str:
    """Range, choices and when it may be set, in one line."""
    parts = []
    if info.minimum is not None:
        parts.append(f'Range {info.minimum} to {info.maximum}.')
    if info.choices:
        parts.append(f'One of {", ".join(info.choices)}.')
    if info.read_only:
        parts.append('Set at start only.')
    elif info.needs_cleanup:
        parts.append('Set while the node is unconfigured.')
    else:
        parts.append('May change at run time.')
    return ' '.join(parts)


def parameters_yaml() -> str:
    """Text of config/daflow.yaml."""
    blocks = []
    for name, info in PARAMETERS.items():
        text = textwrap.wrap(f'{info.description} {notes(info)}', 92)
        value = list(info.default) if isinstance(info.default, tuple) else info.default
        # JSON is YAML.
        lines = [*(f'# {row}' for row in text), f'{name}: {json.dumps(value)}']
        blocks.append(''.join(f'    {line}\n' for line in lines))
    return HEAD + '\n'.join(blocks)


if __name__ == '__main__':
    print(parameters_yaml(), end='')
