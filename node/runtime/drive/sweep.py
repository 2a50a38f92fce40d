"""What an unclean shutdown leaves: shard files that no row of the catalog knows go to quarantine.

Nothing is deleted on suspicion: a file stays in quarantine/ for DRIVE_QUARANTINE_KEEP_S first. Only
unfinished rebuilds (".new"), copies by nature, are removed at once.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable

from node.limits import DRIVE_QUARANTINE_KEEP_S
from node.runtime.drive import layout
from node.runtime.drive.files import REBUILD_SUFFIX


def sweep(path: str, owned: Callable[[bytes], bool], rebuilding: Callable[[bytes], bool]) -> int:
    """Moves every shard file whose data id is not `owned` into quarantine; -> how many were moved."""
    moved = 0
    root = os.path.join(path, layout.SHARDS)
    for directory in sorted(os.listdir(root)):
        with (
            contextlib.suppress(NotADirectoryError),
            os.scandir(os.path.join(root, directory)) as entries,
        ):
            names = [entry.name for entry in entries]
            for name in names:
                moved += _judge(path, os.path.join(root, directory), name, owned, rebuilding)
    return moved


def _judge(
    path: str,
    directory: str,
    name: str,
    owned: Callable[[bytes], bool],
    rebuilding: Callable[[bytes], bool],
) -> int:
    stem = name.removesuffix(REBUILD_SUFFIX)
    try:
        data_id = bytes.fromhex(stem)
    except ValueError:
        return 0  # not a name of ours: left alone
    file = os.path.join(directory, name)
    with contextlib.suppress(OSError):
        if stem != name:
            if not rebuilding(data_id):
                os.unlink(file)
        elif not owned(data_id):
            os.rename(file, os.path.join(path, layout.QUARANTINE, name))
            os.utime(os.path.join(path, layout.QUARANTINE, name))
            return 1
    return 0


def purge_quarantine(path: str, now_s: float, keep_s: float = DRIVE_QUARANTINE_KEEP_S) -> int:
    """Deletes what has been in quarantine for longer than `keep_s` (by mtime); -> how many files."""
    removed = 0
    with contextlib.suppress(OSError), os.scandir(os.path.join(path, layout.QUARANTINE)) as entries:
        for entry in list(entries):
            with contextlib.suppress(OSError):
                if now_s - entry.stat(follow_symlinks=False).st_mtime > keep_s:
                    os.unlink(entry.path)
                    removed += 1
    return removed
