"""This node's own copies of the sealed directory, one on each of its drives.

The directory lies in the cluster, where only a quorum can read it. A node that starts while too few
others are there judges its users by these copies. They hold nothing that the cluster's secret does not
open, and every drive has the whole: any one that answers will do.
"""

from __future__ import annotations

import asyncio

from node import limits
from node.errors import HoldfastError
from node.protocol import verbs
from node.runtime.ports import Clock
from node.store.drive_gate import DriveGate, DriveState, LocalDrive


class DriveCopies:
    """node.identity.ports.Copies over the drives of this node."""

    def __init__(self, gate: DriveGate, clock: Clock) -> None:
        self._gate = gate
        self._clock = clock
        self._has: dict[bytes, bytes] = {}  # drive id -> what it is known to hold

    async def read(self) -> tuple[bytes, ...]:
        drives = [drive for drive in self._gate.local_drives() if drive.drive_id]
        replies = await asyncio.gather(*(self._ask(d, verbs.IdentityRead()) for d in drives))
        found = []
        for drive, reply in zip(drives, replies, strict=True):
            if isinstance(reply, verbs.Blob) and reply.data:
                self._has[drive.drive_id] = reply.data
                found.append(reply.data)
        return tuple(found)

    async def keep(self, version: int, data: bytes) -> None:
        drives = [
            drive
            for drive in self._gate.local_drives()
            if drive.state is DriveState.ONLINE and self._has.get(drive.drive_id) != data
        ]
        replies = await asyncio.gather(
            *(self._ask(drive, verbs.IdentityWrite(version, data)) for drive in drives)
        )
        for drive, reply in zip(drives, replies, strict=True):
            if isinstance(reply, verbs.Done):
                self._has[drive.drive_id] = data

    async def _ask(self, drive: LocalDrive, verb: verbs.Verb) -> verbs.Reply | HoldfastError:
        deadline = self._clock.monotonic() + limits.IDENTITY_COPY_S
        try:
            return await self._gate.ask(drive.drive_id, verb, deadline=deadline)
        except HoldfastError as error:
            return error
