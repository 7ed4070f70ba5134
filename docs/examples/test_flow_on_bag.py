# SPDX-License-Identifier: Apache-2.0
"""Numeric acceptance of flow on a robot's own recordings: copy it into your robot's tests.

Run it with ``DAFLOW_TEST_BAG=drive.mcap pytest docs/examples/test_flow_on_bag.py``.
"""

import json
import os
import subprocess
import sys

import pytest

BAG = os.environ.get('DAFLOW_TEST_BAG')
#: Without ground truth the limits are on proxies; with it they would be epe, outlier3, fl_all.
LIMITS = 'fb_inconsistent<35,photometric<15'


@pytest.mark.skipif(not BAG, reason='set DAFLOW_TEST_BAG to a recording')
def test_flow_holds_on_our_recording(tmp_path):
    """The limits hold on the first 50 pairs, and all of them could be read."""
    done = subprocess.run(
        [sys.executable, '-m', 'daflow_ros.cli', 'evaluate', BAG, '--models', 'dis',
         '--require', LIMITS, '--limit', '50', '--output', str(tmp_path), '--no-report'],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    run = json.loads((tmp_path / 'results.json').read_text())['run']
    # A bag that cannot be read to its end must not pass unnoticed.
    assert not run['failed'] and not any(source['failures'] for source in run['sources'])
