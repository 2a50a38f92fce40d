"""One flush of the catalog's log for all who wrote meanwhile.

Theory of operation. The serving thread writes a batch without sync and hands over the answers that
must not go out before it is durable. The syncer takes all that wait, notes the newest batch written,
flushes, and only then sends. What arrives during a flush waits for the next one. Changes nobody waits
for are flushed by a timer, DRIVE_LAZY_SYNC_S after the first of them.

Where flushes are quick (a device with a protected cache), handing over costs more than the flush: then the
serving thread flushes by itself. Each flush is timed; when they take longer than DRIVE_SYNC_HERE_S, the
syncer's thread has them again, so that reads do not wait for the device.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from node import limits
from node.runtime.drive.catalog import Catalog
from node.runtime.drive.faults import DriveError

Encoded = tuple[int, bytes]  # call id, encoded reply

_WEIGHT = 1 / 8  # of one flush in the smoothed time


class Syncer:
    """Owns the flushing thread of one open catalog."""

    def __init__(
        self,
        catalog: Catalog,
        send: Callable[[Sequence[Encoded]], None],
        fail: Callable[[DriveError, Sequence[Encoded]], None],
    ) -> None:
        self._catalog = catalog
        self._send = send
        self._fail = fail
        self._wake = threading.Condition()
        self._answers: list[Encoded] = []
        self._afterwards: list[Callable[[], None]] = []
        self._lazy_until: float | None = None
        self._stopping = False
        self._flush_s = limits.DRIVE_SYNC_HERE_S  # smoothed; nothing is known yet
        self._thread = threading.Thread(target=self._run, name="syncer", daemon=True)
        self._thread.start()

    @property
    def is_quick(self) -> bool:
        """Whether flushes take so little time lately that the serving thread may do them."""
        return self._flush_s < limits.DRIVE_SYNC_HERE_S

    def flush_here(self) -> None:
        """For the serving thread: what it has written is durable on return. DriveError condemns."""
        written = self._catalog.written
        self._flush()
        # Never lowered by much: the syncer's thread may set an older one, which only means one flush more.
        self._catalog.durable = max(self._catalog.durable, written)

    def _flush(self) -> None:
        began = time.monotonic()
        self._catalog.engine.flush()
        self._flush_s += (time.monotonic() - began - self._flush_s) * _WEIGHT

    def answer(self, answers: Sequence[Encoded]) -> None:
        """Send these after a flush that begins from now on."""
        with self._wake:
            self._answers.extend(answers)
            self._wake.notify()

    def touch(self, afterwards: Sequence[Callable[[], None]] = ()) -> None:
        """Something unsynced was written: flush it soon, then call `afterwards`."""
        with self._wake:
            self._afterwards.extend(afterwards)
            if self._lazy_until is None:
                self._lazy_until = time.monotonic() + limits.DRIVE_LAZY_SYNC_S
                self._wake.notify()

    def stop(self, timeout_s: float) -> bool:
        """Ends the thread; -> False when it hangs in a flush."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _due(self) -> bool:
        if self._answers or self._stopping:
            return True
        return self._lazy_until is not None and time.monotonic() >= self._lazy_until

    def _run(self) -> None:
        while True:
            with self._wake:
                while not self._due():
                    left_s = None
                    if self._lazy_until is not None:
                        left_s = max(0.0, self._lazy_until - time.monotonic())
                    self._wake.wait(left_s)
                if self._stopping and not self._answers:
                    return
                answers, self._answers = self._answers, []
                afterwards, self._afterwards = self._afterwards, []
                self._lazy_until = None
                written = self._catalog.written
            try:
                self._flush()
            except DriveError as error:
                self._fail(error, answers)
                return
            self._catalog.durable = max(self._catalog.durable, written)
            if answers:
                self._send(answers)
            for action in afterwards:
                action()
