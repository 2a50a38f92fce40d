"""The handshake, the seals and the numbers on openings, without a wire."""

from __future__ import annotations

import pytest

from node import errors
from node.errors import TargetFailed
from node.rpc import auth
from node.rpc.errors import BAD_MESSAGE, WRONG_SECRET, PeerRefused, decode_error, encode_error
from node.rpc.wire.holdfast import peer_pb2 as pb

KEY = bytes(32)


def handshake(
    caller: auth.ClusterKeys, callee: auth.ClusterKeys, **tampered: object
) -> tuple[bytes, bytes]:
    """The session keys of both ends. `tampered`: fields of the Hello that a third party changed on the way."""
    hello = pb.Hello(protocol=1, node="a", target="b", incarnation=1, lane="fast", nonce=b"n" * 16)
    seen = pb.Hello()
    seen.CopyFrom(hello)
    for name, value in tampered.items():
        setattr(seen, name, value)
    challenge = pb.Challenge(node="b", incarnation=2, nonce=b"m" * 16, session=b"s" * 16)
    challenge.proofs.extend(auth.prove_callee(callee, seen, challenge))
    proof, at_caller = auth.answer_challenge(caller, hello, challenge)
    return at_caller, auth.check_caller(callee, seen, challenge, proof)


def test_both_ends_get_the_same_key() -> None:
    keys = auth.ClusterKeys(b"secret")
    at_caller, at_callee = handshake(keys, auth.ClusterKeys(b"secret"))
    assert at_caller == at_callee and len(at_caller) == 32
    assert at_caller != keys.links[0]


@pytest.mark.parametrize(
    ("caller", "callee"),
    [
        (auth.ClusterKeys(b"new", b"old"), auth.ClusterKeys(b"old")),
        (auth.ClusterKeys(b"old"), auth.ClusterKeys(b"new", b"old")),
        (auth.ClusterKeys(b"new", b"old"), auth.ClusterKeys(b"new", b"old")),
    ],
)
def test_a_rotation_works_in_any_order(caller: auth.ClusterKeys, callee: auth.ClusterKeys) -> None:
    at_caller, at_callee = handshake(caller, callee)
    assert at_caller == at_callee


def test_other_secrets_and_changed_words_are_refused() -> None:
    keys = auth.ClusterKeys(b"secret")
    with pytest.raises(PeerRefused, match="HOLDFAST_CLUSTER_SECRET") as refused:
        handshake(keys, auth.ClusterKeys(b"other"))
    assert refused.value.reason == WRONG_SECRET
    for tampered in ({"incarnation": 9}, {"node": "c"}, {"lane": "bulk"}, {"nonce": b"x" * 16}):
        with pytest.raises(PeerRefused):
            handshake(keys, keys, **tampered)


def test_a_proof_of_one_handshake_is_none_in_another() -> None:
    keys = auth.ClusterKeys(b"secret")
    hello = pb.Hello(protocol=1, node="a", target="b", lane="fast", nonce=b"n" * 16)
    first = pb.Challenge(node="b", nonce=b"1" * 16, session=b"s" * 16)
    first.proofs.extend(auth.prove_callee(keys, hello, first))
    proof, _ = auth.answer_challenge(keys, hello, first)
    second = pb.Challenge(node="b", nonce=b"2" * 16, session=b"s" * 16)
    with pytest.raises(PeerRefused):
        auth.check_caller(keys, hello, second, proof)
    # Nor does the callee's own proof serve as the caller's.
    with pytest.raises(PeerRefused):
        auth.check_caller(keys, hello, first, first.proofs[0])


@pytest.mark.parametrize("size", [0, 1, auth.SEALED_BYTES, auth.SEALED_BYTES + 1, 1 << 20])
def test_sealed_messages_open_in_order(size: int) -> None:
    sender, receiver = auth.Seal(KEY, auth.TO_CALLEE), auth.Seal(KEY, auth.TO_CALLEE)
    for number in range(3):
        body = bytes([number]) * size
        assert receiver.open(sender.seal(body)) == body


def test_replayed_dropped_changed_cut_and_turned_messages_are_refused() -> None:
    sender = auth.Seal(KEY, auth.TO_CALLEE)
    first, second = sender.seal(b"first" * 10), sender.seal(b"second" * 10)

    def receiver(direction: bytes = auth.TO_CALLEE) -> auth.Seal:
        return auth.Seal(KEY, direction)

    after_first = receiver()
    after_first.open(first)
    changed = bytearray(first)
    changed[40] ^= 1
    for opener, message in (
        (after_first, first),
        (receiver(), second),
        (receiver(), bytes(changed)),
        (receiver(), first[:-1]),
        (receiver(), first + b"x"),
        (receiver(), b""),
        (receiver(auth.TO_CALLER), first),
        (auth.Seal(b"another key", auth.TO_CALLEE), first),
    ):
        with pytest.raises(PeerRefused) as refused:
            opener.open(message)
        assert refused.value.reason == BAD_MESSAGE


def opening(seal: auth.OpeningSeal, header: bytes = b"h") -> pb.Opening:
    made = pb.Opening(session=b"s" * 16, bound_ms=5, request_id="r", header=header)
    seal.seal(made)
    return made


def test_openings_come_in_any_order_but_each_once() -> None:
    sender, receiver = auth.OpeningSeal(KEY), auth.OpeningSeal(KEY)
    openings = [opening(sender) for _ in range(10)]
    for each in reversed(openings):
        receiver.check(each)
    for each in openings:
        with pytest.raises(PeerRefused, match="seen before"):
            receiver.check(each)
    forged = opening(sender)
    forged.header = b"other"
    with pytest.raises(PeerRefused, match="MAC"):
        receiver.check(forged)


def test_what_is_remembered_of_openings_is_bounded() -> None:
    sender, receiver = auth.OpeningSeal(KEY), auth.OpeningSeal(KEY)
    first = opening(sender)
    receiver.check(first)
    for _ in range(3 * auth.OPENINGS_KEPT):
        receiver.check(opening(sender))
    assert len(receiver._seen) <= auth.OPENINGS_KEPT
    with pytest.raises(PeerRefused):
        receiver.check(first)


def test_the_roster_refuses_the_past() -> None:
    roster = auth.Roster()
    assert roster.current("a") == 0
    assert roster.heard("a", 5) and roster.heard("a", 5) and roster.heard("a", 7)
    assert not roster.heard("a", 6)
    assert roster.current("a") == 7 and roster.heard("b", 1)


# ---- errors over the wire -------------------------------------------------------------------------------------
def test_every_error_class_survives_the_wire() -> None:
    for cls in vars(errors).values():
        if not (isinstance(cls, type) and issubclass(cls, errors.HoldfastError)):
            continue
        made = (
            cls("NoSuchTagSet", "text")
            if cls in (errors.DriveFailed, errors.CodedError)
            else cls("text")
        )
        back = decode_error("peer:1", *encode_error(made))
        known = issubclass(cls, errors.Unavailable | errors.ClientError)
        assert type(back) is (cls if known else TargetFailed), cls
        assert "text" in str(back) and back.answered  # type: ignore[attr-defined]
        if isinstance(back, errors.ClientError):
            assert back.code == made.code  # type: ignore[attr-defined]


def test_what_nobody_expected_is_named_and_not_described() -> None:
    name, detail = encode_error(KeyError("a secret"))
    assert (name, detail) == ("TargetFailed", "internal error (KeyError)")
    assert type(decode_error("p", "NoSuchClass", "x")) is TargetFailed
    assert type(decode_error("p", "__doc__", "x")) is TargetFailed
