# SPDX-License-Identifier: Apache-2.0
"""Where the package's shared files (configuration, launch files) lie."""

from __future__ import annotations

import os
from pathlib import Path

PACKAGE = 'daflow_ros'


def share_directories() -> list[Path]:
    """Folders that may hold the shared files, likeliest first.

    The source tree comes first when the package is imported from it, then the prefix that the
    package is installed in (``lib/pythonX.Y/site-packages`` of a colcon workspace or a virtual
    environment), then the prefixes of a sourced ROS environment.
    """
    package = Path(__file__).absolute().parents[1]
    candidates = []
    if (package.parent / 'package.xml').is_file():
        candidates.append(package.parent)
    if len(package.parents) >= 4:
        candidates.append(package.parents[3] / 'share' / PACKAGE)
    for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep):
        if prefix:
            candidates.append(Path(prefix) / 'share' / PACKAGE)
    return candidates


def share_file(*parts: str) -> Path:
    """Path of a shared file, for example ``share_file('config', 'daflow.yaml')``.

    Raises:
        FileNotFoundError: the file is in none of the folders; the message names them.
    """
    candidates = share_directories()
    for folder in candidates:
        path = folder.joinpath(*parts)
        if path.is_file():
            return path
    looked = ', '.join(str(folder) for folder in candidates)
    raise FileNotFoundError(f'{Path(*parts)} is not in the share folders of {PACKAGE}: {looked}')
