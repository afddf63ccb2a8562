"""Memory settings of the process that training on a CPU profits from."""

from __future__ import annotations

import ctypes
import sys

#: Parameters of glibc's mallopt(3).
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep the memory of freed tensors instead of handing it back to the system.

    Glibc maps every block above 32 MB anew, and the system clears it page by page: with large batches, that
    takes longer than the arithmetic. It holds for the whole process, whose memory then stays at its peak.

    Returns:
        Whether the setting was made: False outside of Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has no mallopt
        return False
    return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
