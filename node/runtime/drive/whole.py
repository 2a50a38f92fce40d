"""Reads a shard file and holds every block against its checksum, at once or a piece at a time."""

from __future__ import annotations

import contextlib
import os

from erasure import frame
from erasure.errors import ErasureError
from node.protocol.verbs import DriveFault
from node.runtime.drive.faults import DriveError


def check_blocks(descriptor: int, data_id: bytes) -> None:
    """DriveError(CORRUPT) unless the header and each frame are what `data_id` says. Reads a frame at a time."""
    block, _ = scan_blocks(descriptor, data_id, 0, 1 << 62)
    assert block == 0


def scan_blocks(descriptor: int, data_id: bytes, block: int, max_bytes: int) -> tuple[int, int]:
    """Verifies from `block` on, `max_bytes` or one block; -> (the next block, 0 at the end; bytes read)."""
    header = _header(descriptor, data_id)
    layout = header.layout
    full = header.block_bytes + frame.CHECKSUM_BYTES
    buffer = bytearray(full)
    begin = offset = frame.HEADER_BYTES + block * full
    while block < layout.stripes:
        length = layout.block_bytes(block) + frame.CHECKSUM_BYTES
        view = memoryview(buffer)[:length]
        count = os.preadv(descriptor, [view], offset)
        if count != length or not frame.verify(
            view, data_id=data_id, shard=header.shard, block=block
        ):
            raise DriveError(DriveFault.CORRUPT, f"{data_id.hex()}: block {block}")
        offset += length
        block += 1
        if offset - begin >= max_bytes:
            break
    with contextlib.suppress(OSError):  # what nobody asked for is not kept in the page cache
        os.posix_fadvise(descriptor, begin, offset - begin, os.POSIX_FADV_DONTNEED)
    return (0 if block >= layout.stripes else block), offset - begin


def _header(descriptor: int, data_id: bytes) -> frame.ShardHeader:
    try:
        header = frame.ShardHeader.decode(os.pread(descriptor, frame.HEADER_BYTES, 0))
    except ErasureError as error:
        raise DriveError(DriveFault.CORRUPT, f"{data_id.hex()}: {error}") from error
    if header.data_id != data_id:
        raise DriveError(DriveFault.CORRUPT, f"{data_id.hex()}: another file's header")
    return header
