"""Epochs: (number, attempt id) as 24 bytes whose byte order is their order.

The number is eight bytes, big-endian; the attempt id is unique for every attempt ever made: four
bytes of node, six of the process's incarnation, six of a counter. Bytes compare as the pair does, are
hashable, and cost nothing to send.
"""

from __future__ import annotations

import hashlib

EPOCH_BYTES = 24
ATTEMPT_BYTES = 16
ZERO = bytes(EPOCH_BYTES)


def make(number: int, attempt: bytes) -> bytes:
    """The epoch with this number for this attempt."""
    assert len(attempt) == ATTEMPT_BYTES and number >= 0
    return number.to_bytes(8, "big") + attempt


def number(epoch: bytes) -> int:
    """The number of an epoch; 0 for ZERO."""
    assert len(epoch) == EPOCH_BYTES
    return int.from_bytes(epoch[:8], "big")


def text(epoch: bytes) -> str:
    """Short form for logs: number and the attempt's counter end."""
    return f"{number(epoch)}.{epoch[8:].hex()}"


class Attempts:
    """Gives out attempt ids that are never given out again.

    `incarnation` must grow with each start of the process (48 bits: milliseconds of the wall clock,
    raised above the last one used); uniqueness over restarts rests on it.
    """

    def __init__(self, node: str, incarnation: int) -> None:
        node_bytes = hashlib.blake2b(node.encode(), digest_size=4).digest()
        self._prefix = node_bytes + (incarnation & (1 << 48) - 1).to_bytes(6, "big")
        self._counter = 0

    def next(self) -> bytes:
        """A fresh attempt id, ATTEMPT_BYTES long."""
        self._counter += 1
        return self._prefix + self._counter.to_bytes(6, "big")
