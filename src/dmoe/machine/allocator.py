"""What the C library does with memory that tensors give back."""

import ctypes
import platform

# Numbers of glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Keeps freed memory in this process for the next tensor, until the process ends.

    glibc gives a freed block of more than 32 MiB back to the system. A training step frees and asks for the same
    blocks again, and the system then clears each of their pages anew: a third of the time of a step on 513 fields.

    Returns: False, with nothing changed, where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_M_MMAP_MAX, 0) and mallopt(_M_TRIM_THRESHOLD, -1))
