"""Shard files whose last record went: kept for a while, for whoever is reading them.

Theory of operation. A file may go once the change that let it go is durable, and DRIVE_UNLINK_AFTER_S later: a
GET that began before an overwrite goes on reading the old version. Before it goes the catalog is asked
again, since a repair may have brought the same file back meanwhile. All but the callback that tells of the
flush runs on the serving thread.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(slots=True)
class _Batch:
    data_ids: Sequence[bytes]
    durable_at: float | None = None  # None: not flushed yet


class Remains:
    """`owned(data_id)`: whether a record or a staged file has this id again."""

    def __init__(
        self,
        owned: Callable[[bytes], bool],
        keep_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._owned = owned
        self._keep_s = keep_s
        self._monotonic = monotonic
        self._batches: deque[_Batch] = deque()

    def add(self, data_ids: Sequence[bytes]) -> Callable[[], None]:
        """-> what is to be called, on any thread, once the change is durable."""
        batch = _Batch(data_ids)
        self._batches.append(batch)

        def flushed() -> None:
            batch.durable_at = self._monotonic()

        return flushed

    def due(self, *, all_of_them: bool = False) -> list[bytes]:
        """Takes out the files that may go now; `all_of_them`: every one that is durable, however young."""
        found: list[bytes] = []
        before = self._monotonic() - self._keep_s
        while self._batches:
            durable_at = self._batches[0].durable_at
            if durable_at is None or (durable_at > before and not all_of_them):
                break
            found += (d for d in self._batches.popleft().data_ids if not self._owned(d))
        return found

    def all(self) -> list[bytes]:
        """Takes out every file, at a tidy end: whatever let them go was flushed by then."""
        found = [d for batch in self._batches for d in batch.data_ids if not self._owned(d)]
        self._batches.clear()
        return found
