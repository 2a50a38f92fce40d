"""Early writing: dirty pages of a long file go to the device while more of it arrives.

Without it the kernel may keep gigabytes back, and the sync at the end of an upload takes seconds with nothing
that its client could see; with slow drives longer than a drive gets to answer. Durability does
not hang on this: only the sync counts.
"""

from __future__ import annotations

import ctypes
from typing import Any

_WRITE = 2  # SYNC_FILE_RANGE_WRITE: start writing what is dirty, wait for nothing


def _find() -> Any:
    try:
        call = ctypes.CDLL(None, use_errno=True).sync_file_range
    except (OSError, AttributeError):
        return None  # not Linux, or a C library without it: the sync does all the work
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    call.restype = ctypes.c_int
    return call


_sync_file_range = _find()


def start_writing(descriptor: int, offset: int, length: int) -> None:
    """Starts writing a range to the device. Its failures show at the sync."""
    if _sync_file_range is not None:
        _sync_file_range(descriptor, offset, length, _WRITE)
