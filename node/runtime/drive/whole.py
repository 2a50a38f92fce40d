"""Reads a shard file from end to end and holds every block against its checksum."""

from __future__ import annotations

import os

from erasure import frame
from erasure.errors import ErasureError
from node.protocol.verbs import DriveFault
from node.runtime.drive.faults import DriveError


def check_blocks(descriptor: int, data_id: bytes) -> None:
    """DriveError(CORRUPT) unless the header and each frame are what `data_id` says. Reads a frame at a time."""
    try:
        header = frame.ShardHeader.decode(os.pread(descriptor, frame.HEADER_BYTES, 0))
    except ErasureError as error:
        raise DriveError(DriveFault.CORRUPT, f"{data_id.hex()}: {error}") from error
    if header.data_id != data_id:
        raise DriveError(DriveFault.CORRUPT, f"{data_id.hex()}: another file's header")
    buffer = bytearray(header.block_bytes + frame.CHECKSUM_BYTES)
    offset = frame.HEADER_BYTES
    for block in range(header.layout.stripes):
        length = header.layout.block_bytes(block) + frame.CHECKSUM_BYTES
        view = memoryview(buffer)[:length]
        count = os.preadv(descriptor, [view], offset)
        if count != length or not frame.verify(
            view, data_id=data_id, shard=header.shard, block=block
        ):
            raise DriveError(DriveFault.CORRUPT, f"{data_id.hex()}: block {block}")
        offset += length
