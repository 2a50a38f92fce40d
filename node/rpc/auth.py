"""Who is on the other end: mutual challenge and response, then a sealed, counted session.

Theory of operation. Both ends know the cluster's secret; keys are derived from it, the secret itself
is never used directly. The caller says who it is, whom it means, which lane and a nonce (Hello). The
callee answers with its own name, incarnation, nonce and a session name, and proves for each secret it
knows (the current and, during a rotation, the previous one) that it knows it (Challenge). The caller
picks the proof it can check, answers with its own (Proof) and both derive the session's key from the
transcript of all of this. Nothing of an earlier conversation can be replayed: both nonces are in the
transcript, and every batch carries a counter under the session's MAC, one sequence per direction.

The MAC covers the counter, the length and the first SEALED_BYTES of a batch: all of it for the small
messages that decide things, the head of large ones, whose shard bytes have checksums of their own.
Against somebody who can change packets on the way, use TLS; this authenticates peers.

Pure: nonces and names come in as values.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from node.rpc.errors import BAD_MESSAGE, WRONG_SECRET, PeerRefused
from node.rpc.wire.holdfast import peer_pb2 as pb

PROTOCOL = 1
NONCE_BYTES = 16
SESSION_BYTES = 16
SEALED_BYTES = 16 * 1024
COUNTER_BYTES = 8
MAC_BYTES = 16
HEAD_BYTES = COUNTER_BYTES + MAC_BYTES
OPENINGS_KEPT = 4096
MAX_SECRETS = 2  # the current one and, during a rotation, the previous one

TO_CALLEE = b"to callee"
TO_CALLER = b"to caller"


class ClusterKeys:
    """Keys derived from the cluster's secrets: the current one and, during a rotation, the previous one.

    What is proved is proved with both, and either is believed: so a node that has the new secret already and
    one that has only the former understand each other, and one pass of restarts changes the secret.
    """

    def __init__(self, secret: bytes, previous: bytes | None = None) -> None:
        assert secret, "a cluster has a secret"
        secrets = (secret,) if previous is None or previous == secret else (secret, previous)
        self._links = tuple(_derive(each, b"holdfast link v1") for each in secrets)
        self._beats = tuple(_derive(each, b"holdfast beat v1") for each in secrets)

    @property
    def links(self) -> tuple[bytes, ...]:
        return self._links

    def seal_beat(self, body: bytes) -> list[bytes]:
        """The MACs of a heartbeat, one per known secret: whoever shares any of them believes it."""
        return [hmac.digest(key, body, "sha256") for key in self._beats]

    def beat_is_ours(self, body: bytes, macs: Sequence[bytes]) -> bool:
        return any(
            hmac.compare_digest(expected, mac)
            for expected in self.seal_beat(body)
            for mac in macs[:MAX_SECRETS]
        )


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return hmac.digest(secret, purpose, "sha256")


def _transcript(hello: pb.Hello, challenge: pb.Challenge) -> bytes:
    digest = hashlib.sha256()
    for part in (
        str(hello.protocol).encode(),
        hello.node.encode(),
        hello.target.encode(),
        str(hello.incarnation).encode(),
        hello.lane.encode(),
        hello.nonce,
        challenge.node.encode(),
        str(challenge.incarnation).encode(),
        challenge.nonce,
        challenge.session,
    ):
        digest.update(len(part).to_bytes(4, "big"))
        digest.update(part)
    return digest.digest()


def prove_callee(keys: ClusterKeys, hello: pb.Hello, challenge: pb.Challenge) -> list[bytes]:
    """One proof per known secret, for Challenge.proofs."""
    transcript = _transcript(hello, challenge)
    return [hmac.digest(key, b"callee" + transcript, "sha256") for key in keys.links]


def answer_challenge(
    keys: ClusterKeys, hello: pb.Hello, challenge: pb.Challenge
) -> tuple[bytes, bytes]:
    """Caller: (proof, session key) after checking the callee's; PeerRefused when it shares no secret."""
    transcript = _transcript(hello, challenge)
    for key in keys.links:
        expected = hmac.digest(key, b"callee" + transcript, "sha256")
        for offered in challenge.proofs[:MAX_SECRETS]:
            if hmac.compare_digest(expected, offered):
                proof = hmac.digest(key, b"caller" + transcript, "sha256")
                return proof, hmac.digest(key, b"session" + transcript, "sha256")
    raise wrong_secret(hello.target)


def check_caller(
    keys: ClusterKeys, hello: pb.Hello, challenge: pb.Challenge, proof: bytes
) -> bytes:
    """Callee: the session key after checking the caller's proof; PeerRefused when it is wrong."""
    transcript = _transcript(hello, challenge)
    for key in keys.links:
        if hmac.compare_digest(hmac.digest(key, b"caller" + transcript, "sha256"), proof):
            return hmac.digest(key, b"session" + transcript, "sha256")
    raise wrong_secret(hello.node)


def wrong_secret(peer: str) -> PeerRefused:
    return PeerRefused(
        WRONG_SECRET,
        f"peer {peer} does not share this cluster's secret (HOLDFAST_CLUSTER_SECRET)",
    )


class Seal:
    """One direction of a session: seals what is sent, or opens what is received, in order."""

    __slots__ = ("_counter", "_keyed")

    def __init__(self, key: bytes, direction: bytes) -> None:
        self._keyed = hashlib.blake2b(key=key, digest_size=MAC_BYTES, person=direction)
        self._counter = 0

    def seal(self, body: bytes) -> bytes:
        self._counter += 1
        head = self._counter.to_bytes(COUNTER_BYTES, "big")
        return head + self._mac(head, len(body), body[:SEALED_BYTES]) + body

    def open(self, message: bytes) -> bytes:
        """The body; PeerRefused when it is not the next message of this session."""
        head = message[:COUNTER_BYTES]
        body = message[HEAD_BYTES:]
        expected = self._mac(head, len(body), body[:SEALED_BYTES])
        if not hmac.compare_digest(expected, message[COUNTER_BYTES:HEAD_BYTES]):
            raise PeerRefused(BAD_MESSAGE, "a message of the session fails its MAC")
        self._counter += 1
        if int.from_bytes(head, "big") != self._counter:
            raise PeerRefused(BAD_MESSAGE, "a message of the session is out of order")
        return body

    def _mac(self, head: bytes, length: int, covered: bytes) -> bytes:
        digest = self._keyed.copy()
        digest.update(head + length.to_bytes(8, "big") + covered)
        return digest.digest()


class OpeningSeal:
    """Byte streams of a session open in any order: each opening has a fresh number, used once."""

    __slots__ = ("_counter", "_floor", "_key", "_seen")

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._counter = 0
        self._floor = 0
        self._seen: set[int] = set()

    def seal(self, opening: pb.Opening) -> None:
        self._counter += 1
        opening.counter = self._counter
        opening.mac = self._mac(opening)

    def check(self, opening: pb.Opening) -> None:
        """PeerRefused when it is forged or was seen before."""
        if not hmac.compare_digest(self._mac(opening), opening.mac):
            raise PeerRefused(BAD_MESSAGE, "the opening of a stream fails its MAC")
        if opening.counter <= self._floor or opening.counter in self._seen:
            raise PeerRefused(BAD_MESSAGE, "the opening of a stream was seen before")
        self._seen.add(opening.counter)
        if len(self._seen) > OPENINGS_KEPT:
            ordered: Sequence[int] = sorted(self._seen)
            self._floor = ordered[OPENINGS_KEPT // 2]
            self._seen = {each for each in ordered if each > self._floor}

    def _mac(self, opening: pb.Opening) -> bytes:
        digest = hashlib.blake2b(key=self._key, digest_size=MAC_BYTES, person=b"opening")
        for part in (
            opening.session,
            opening.counter.to_bytes(8, "big"),
            opening.bound_ms.to_bytes(8, "big"),
            opening.request_id.encode(),
            opening.header,
        ):
            digest.update(len(part).to_bytes(8, "big"))
            digest.update(part)
        return digest.digest()


class Roster:
    """The highest incarnation heard of each node; what comes from an older one is refused."""

    __slots__ = ("_highest",)

    def __init__(self) -> None:
        self._highest: dict[str, int] = {}

    def current(self, node: str) -> int:
        """0: none heard of yet."""
        return self._highest.get(node, 0)

    def heard(self, node: str, incarnation: int) -> bool:
        """Note an authenticated incarnation; False when it is stale."""
        highest = self._highest.get(node, 0)
        if incarnation < highest:
            return False
        if incarnation > highest:
            self._highest[node] = incarnation
        return True
