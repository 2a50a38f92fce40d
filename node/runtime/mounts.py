"""Whether a drive's path is really a drive, or a directory of the disk around it."""

from __future__ import annotations

import os


def is_own_mount(path: str) -> bool:
    """Its device differs from its parent's. False where that cannot be told. May block on a hung mount."""
    try:
        return os.stat(path).st_dev != os.stat(os.path.join(path, os.pardir)).st_dev
    except OSError:
        return False
