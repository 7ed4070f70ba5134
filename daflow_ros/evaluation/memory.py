# SPDX-License-Identifier: Apache-2.0
"""Peak memory of a piece of work: CUDA's own count, or the process's on Linux."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType

from daflow_ros.allocator import give_back_freed_memory

_STATUS = Path('/proc/self/status')
_RESET = Path('/proc/self/clear_refs')


def _resident(field: str) -> float | None:
    """VmRSS (now) or VmHWM (peak) of this process in MB."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return None
    found = [line for line in lines if line.startswith(f'{field}:')]
    return int(found[0].split()[1]) / 1024 if found else None


class PeakMemory:
    """Context that measures what its body adds at its peak.

    `megabytes` afterwards: on CUDA, the peak of allocated memory, weights included; on the CPU,
    the growth of the resident set above what it was before (the weights of a model that is
    already loaded are not in it). None where the system does not tell.
    """

    def __init__(self, device: str = 'cpu') -> None:
        self.device = device
        self.megabytes: float | None = None

    def __enter__(self) -> PeakMemory:
        """Forget the peak so far."""
        if self.device.startswith('cuda'):
            import torch

            torch.cuda.reset_peak_memory_stats(self.device)
            return self
        give_back_freed_memory()
        try:
            _RESET.write_text('5')
        except OSError:
            # Without the reset, VmHWM is the peak of the process's whole life.
            self.before = None
            return self
        self.before = _resident('VmRSS')
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Read the peak."""
        if self.device.startswith('cuda'):
            import torch

            self.megabytes = torch.cuda.max_memory_allocated(self.device) / 2**20
            return
        peak = _resident('VmHWM')
        if self.before is not None and peak is not None:
            self.megabytes = max(0.0, peak - self.before)
