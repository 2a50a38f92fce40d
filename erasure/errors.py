"""What erasure coding can refuse. Errors that callers act on carry their figures."""

from __future__ import annotations


class ErasureError(Exception):
    """Root of every error that this package raises."""


class GeometryError(ErasureError):
    """A shape of cluster, or a k of n, that is not supported; the text says what to do instead."""


class LayoutError(ErasureError):
    """A stripe layout, or a position in it, that cannot exist."""


class RowsError(ErasureError):
    """Rows given to the codec do not fit the geometry or each other."""


class BackendUnavailable(ErasureError):
    """The coding library that was asked for by name is not on this machine or failed its check."""

    def __init__(self, backend: str) -> None:
        super().__init__(f"the {backend} coding library is not available")
        self.backend = backend


class NotEnoughShards(ErasureError):
    """Fewer shards at hand than the code needs.

    `have` and `need` count distinct shards of one stripe.
    """

    def __init__(self, have: int, need: int) -> None:
        super().__init__(f"{have} shards at hand, {need} needed")
        self.have = have
        self.need = need


class ShardHeaderError(ErasureError):
    """Bytes that are not the header of a shard file which this version can read."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"bad shard header: {reason}")
        self.reason = reason


class FrameError(ErasureError):
    """A frame that cannot be sealed: wrong length of the data id, or no room for the checksum."""
