# SPDX-License-Identifier: Apache-2.0
"""The C library's allocator, told to keep what is freed.

On a CPU every layer of a network asks for tensors of tens of megabytes and frees them again. As
it comes, glibc hands such blocks back to the kernel, which clears each page anew the next time: a
fifth of an estimate's time. The process holds its peak of memory instead (mallopt(3)).
"""

from __future__ import annotations

import contextlib
import ctypes

#: mallopt(3): free memory at the heap's top is given back from so many bytes on; blocks from so
#: many bytes on are not taken from the heap.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Apply to this whole process; False where the C library is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    kept: int = mallopt(_TRIM_THRESHOLD, 2**31 - 1) and mallopt(_MMAP_THRESHOLD, 2**30)
    return bool(kept)


def give_back_freed_memory() -> None:
    """Once, all that is free by now, so that what follows can be measured."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
