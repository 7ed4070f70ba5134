# SPDX-License-Identifier: Apache-2.0
"""What no test may leave behind for the next."""

import sys

import pytest


@pytest.fixture(autouse=True)
def _one_thread():
    """How many threads share a sum depends on the load; what is compared to the bit must not."""
    if 'torch' in sys.modules:
        sys.modules['torch'].set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_accelerator_state_left():
    """Accelerate keeps the first precision asked for until the process ends."""
    yield
    if 'accelerate' in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)
