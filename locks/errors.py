"""Every way in which a lock operation can fail.

All carry data; none carries a resource's name, because names of keys belong neither in logs nor in
metrics.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from locks.messages import Owner


class LockError(Exception):
    """Root of this package's errors."""


class LockMessageError(LockError):
    """Bytes from a peer that are no lock message."""


class LockFailure(LockError):
    """A lock that was not to be had, or was had and lost."""

    def __init__(self, text: str, *, resource_class: str, attempts: int) -> None:
        super().__init__(f"{text} (class {resource_class}, attempts {attempts})")
        self.resource_class = resource_class
        self.attempts = attempts


class LockBusy(LockFailure):
    """Others held the lock through all attempts, or a bound was met: the client should slow down.

    `holder` is one of those who held it, where a server named one.
    """

    def __init__(self, *, resource_class: str, attempts: int, holder: Owner | None = None) -> None:
        super().__init__("lock is busy", resource_class=resource_class, attempts=attempts)
        self.holder = holder


class LockTimeout(LockFailure):
    """No quorum of lock servers answered in time; nobody is known to hold the lock."""

    def __init__(self, *, resource_class: str, attempts: int) -> None:
        super().__init__(
            "no quorum of lock servers", resource_class=resource_class, attempts=attempts
        )


class LockLost(LockFailure):
    """The lease of a lock that was held is over or was broken: its holder must stop."""

    def __init__(self, *, resource_class: str, attempts: int) -> None:
        super().__init__("lock is lost", resource_class=resource_class, attempts=attempts)
