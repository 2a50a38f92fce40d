"""Forming's questions on their way: to my drives by the gate, to other nodes' drives by FORMING calls.

The answering side admits only what cannot do harm: a peer may read a format, and may write one only to
the drive it is meant for, never another cluster's, and never to an empty drive of a formed cluster
(only its own node takes such a drive in).
"""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from node.cluster.forming import Forming
from node.cluster.topology import Fingerprint, compare, fingerprint
from node.errors import ClientError, DriveFailed, TargetFailed
from node.protocol import verbs
from node.protocol.verbs import DriveFault
from node.rpc.methods import Method
from node.store.format import Format, FormatError, decode_format, encode_format


class Gate(Protocol):
    """Of node.store.drive_gate."""

    async def ask_at(
        self, index: int, verb: verbs.FormatRead | verbs.FormatWrite, *, deadline: float
    ) -> verbs.Reply: ...


class Calls(Protocol):
    """Of node.rpc.client.Peers."""

    def call(
        self, peer: str, method: Method, payload: bytes, *, deadline: float
    ) -> asyncio.Future[bytes]: ...


class AskRead(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """-> an encoded verbs reply: Blob or Failed."""

    drive: int


class AskWrite(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """-> an encoded verbs reply: Done or Failed."""

    drive: int
    data: bytes


class Greet(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """-> Greet of the other side, without a fingerprint while it knows no cluster."""

    fingerprint: Fingerprint | None
    format: bytes = b""


_encoder = msgspec.msgpack.Encoder()
_question = msgspec.msgpack.Decoder(AskRead | AskWrite | Greet)
_greeting = msgspec.msgpack.Decoder(Greet)


class NodeDrives:
    """node.cluster.forming.DriveAccess over the gate and the peers."""

    def __init__(self, me: str, gate: Gate, peers: Calls) -> None:
        self._me = me
        self._gate = gate
        self._peers = peers

    async def read(self, node: str, drive: int, *, deadline: float) -> bytes:
        if node == self._me:
            reply = await self._gate.ask_at(drive, verbs.FormatRead(), deadline=deadline)
        else:
            reply = await self._ask(node, AskRead(drive), deadline)
        if not isinstance(reply, verbs.Blob):
            raise TargetFailed(f"{node} answered {type(reply).__name__} to a question for a format")
        return reply.data

    async def write(self, node: str, drive: int, data: bytes, *, deadline: float) -> None:
        if node == self._me:
            await self._gate.ask_at(drive, verbs.FormatWrite(data), deadline=deadline)
        else:
            await self._ask(node, AskWrite(drive, data), deadline)

    async def _ask(self, node: str, question: AskRead | AskWrite, deadline: float) -> verbs.Reply:
        payload = _encoder.encode(question)
        data = await self._peers.call(node, Method.FORMING, payload, deadline=deadline)
        try:
            reply = verbs.decode_reply(data)
        except msgspec.MsgspecError as error:
            raise TargetFailed(f"{node} answered nonsense: {error}") from error
        if isinstance(reply, verbs.Failed):
            raise DriveFailed(reply.fault, reply.detail)
        return reply


class Acquaintance:
    """What this node and each peer found when they compared themselves; and the FORMING handler."""

    def __init__(self, me: str, gate: Gate, forming: Forming) -> None:
        self._me = me
        self._gate = gate
        self._forming = forming
        self._differences: dict[str, tuple[str, ...]] = {}

    def differences(self) -> dict[str, tuple[str, ...]]:
        """Peers that must not work with this node, and why. While there are any, it is not ready."""
        return {peer: found for peer, found in self._differences.items() if found}

    async def greet(self, peer: str, peers: Calls, *, deadline: float) -> tuple[str, ...]:
        """At each connect: compares with a peer, learns its replaced drives; -> the differences."""
        mine = _encoder.encode(self._greeting())
        data = await peers.call(peer, Method.FORMING, mine, deadline=deadline)
        try:
            self._meet(peer, _greeting.decode(data))
        except msgspec.MsgspecError as error:
            raise TargetFailed(f"{peer} answered nonsense: {error}") from error
        return self._differences.get(peer, ())

    async def handle(self, peer: str, payload: bytes, *, deadline: float) -> bytes:
        """Answers one FORMING call."""
        try:
            question = _question.decode(payload)
        except msgspec.MsgspecError as error:
            raise ClientError(f"no question of forming: {error}") from error
        if isinstance(question, Greet):
            self._meet(peer, question)
            return _encoder.encode(self._greeting())
        verb: verbs.FormatRead | verbs.FormatWrite = verbs.FormatRead()
        if isinstance(question, AskWrite):
            refusal = self._refuse(question)
            if refusal:
                return verbs.encode(verbs.Failed(DriveFault.BAD_REQUEST, refusal))
            verb = verbs.FormatWrite(question.data)
        if not 0 <= question.drive < self._forming.drive_count:
            return verbs.encode(
                verbs.Failed(DriveFault.BAD_REQUEST, "this node lists fewer drives")
            )
        try:
            return verbs.encode(await self._gate.ask_at(question.drive, verb, deadline=deadline))
        except DriveFailed as error:
            return verbs.encode(verbs.Failed(error.fault, error.detail))

    def _greeting(self) -> Greet:
        cluster = self._forming.cluster
        if cluster is None:
            return Greet(None)
        return Greet(fingerprint(cluster, self._me), encode_format(cluster))

    def _meet(self, peer: str, greeting: Greet) -> None:
        cluster = self._forming.cluster
        if cluster is None or greeting.fingerprint is None:
            return
        found = compare(fingerprint(cluster, self._me), greeting.fingerprint)
        self._differences[peer] = tuple(found)
        if not found:
            try:
                self._forming.learn(decode_format(greeting.format))
            except FormatError as error:
                self._differences[peer] = (f"{peer}: {error}",)

    def _refuse(self, question: AskWrite) -> str:
        """Why a peer may not write this format here; empty when it may."""
        try:
            written = decode_format(question.data)
        except FormatError as error:
            return str(error)
        if (written.node, written.drive) != (self._me, question.drive):
            return f"it is for drive {written.drive + 1} of {written.node}"
        known: Format | None = self._forming.cluster or self._forming.half_formed
        if known is not None and known.cluster_id != written.cluster_id:
            return f"this node belongs to cluster {known.cluster_id}"
        if known is not None and known.drive_at(self._me, question.drive) != written.drive_id:
            return "that drive has another id here"
        if self._forming.cluster is not None and self._forming.is_empty(question.drive):
            return "the cluster is formed; this node takes in its empty drives itself"
        return ""
