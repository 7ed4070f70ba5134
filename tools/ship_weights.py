#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Put a trained model into the package: tools/ship_weights.py runs/daflow_tiny/model daflow_tiny.

Weights are stored in half precision; the model card beside them is kept.
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

from daflow_ros.training.networks import load_folder


def main() -> int:
    """Convert and copy; the exit status."""
    if len(sys.argv) != 3:
        print(__doc__, file=sys.stderr)
        return 2
    source, name = sys.argv[1:]
    target = Path(__file__).resolve().parents[1] / 'daflow_ros' / 'weights' / name
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        load_folder(source).half().save_pretrained(folder)
        config = Path(folder, 'config.json')
        # Where the run lay means nothing to a user.
        settings = json.loads(config.read_text())
        settings.pop('_name_or_path', None)
        config.write_text(json.dumps(settings, indent=2) + '\n')
        for file in Path(folder).iterdir():
            shutil.copyfile(file, target / file.name)
            print(f'{target / file.name}: {file.stat().st_size / 1e6:.2f} MB')
    return 0


if __name__ == '__main__':
    sys.exit(main())
