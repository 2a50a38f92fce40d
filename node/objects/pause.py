"""Whether repair is paused: one word for the whole cluster, kept in a document, so that restarts do not forget it.

Each node reads it at its start and now and then; whoever changes it tells the others at once besides. Until
a node has read it once it repairs nothing (it cannot: what keeps it from reading would keep it from repairing).
"""

from __future__ import annotations

import msgspec

from node.objects.documents import Documents

_NAME = "config/repair.json"


class _Stored(msgspec.Struct, frozen=True):
    paused: bool = False


_decoder = msgspec.json.Decoder(_Stored)


class PauseSwitch:
    """`paused` as this node knows it; `known` once it was read."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self.paused = False
        self.known = False

    async def refresh(self, *, deadline: float) -> None:
        """Unavailable when it cannot be known now: what was known goes on to count."""
        document = await self._documents.read(_NAME, deadline=deadline)
        self.heard(_decoder.decode(document.data).paused if document is not None else False)

    async def store(self, paused: bool, *, deadline: float) -> None:
        """Durable when it returns; Unavailable when it may not be."""
        data = msgspec.json.encode(_Stored(paused))
        await self._documents.write(_NAME, data, expected=None, deadline=deadline)
        self.heard(paused)

    def heard(self, paused: bool) -> None:
        self.paused, self.known = paused, True
