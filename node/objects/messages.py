"""What coordinators and members of a set say to each other (node.rpc.methods PREPARE, COMMIT, FINISH, VERBS).

A message names the drives of one node; the answer has one encoded node.protocol.verbs reply a drive,
in the same order. Verbs and records travel as bytes that the member passes on without decoding.
"""

from __future__ import annotations

import msgspec


class Prepare(msgspec.Struct, array_like=True, frozen=True):
    """Lock the key, then read it at these drives: one round for both. `lock` is a locks.messages request."""

    lock: bytes
    key: bytes
    drives: tuple[bytes, ...]


class Prepared(msgspec.Struct, array_like=True, frozen=True):
    """`lock`: the lock server's answer; `states`: empty when the lock was refused."""

    lock: bytes
    states: tuple[bytes, ...] = ()


class CommitAt(msgspec.Struct, array_like=True, frozen=True):
    """One commit at these drives: (drive id, framed inline shard or b"").

    `lock`: b"" or a locks.messages request; then the drives are asked only where the lock is granted.
    """

    key: bytes
    record: bytes
    drives: tuple[tuple[bytes, bytes], ...]
    view: int = 0  # of the set, as the sender knows it now
    lock: bytes = b""


class Finish(msgspec.Struct, array_like=True, frozen=True):
    """One way: the epoch is decided (b"": it is not, only unlock); `release` is a locks.messages request or b""."""

    key: bytes
    epoch: bytes
    missed: tuple[int, ...]
    drives: tuple[bytes, ...]
    release: bytes = b""


class VerbsAt(msgspec.Struct, array_like=True, frozen=True):
    """(drive id, encoded verb) each."""

    items: tuple[tuple[bytes, bytes], ...]


class Replies(msgspec.Struct, array_like=True, frozen=True):
    """`lock`: the lock server's answer to a commit that asked for one; `replies` is empty when it refused."""

    replies: tuple[bytes, ...]
    lock: bytes = b""


class ShardWriteHeader(msgspec.Struct, array_like=True, frozen=True):
    """Opens a shard upload: this node's rows of every stripe, each row a frame (checksum + block).

    `rows`: (drive id, shard file header); an empty drive id: the row travels, nobody writes it.
    Stripe i's rows follow each other in this order, `size` bytes of data in stripes of `stripe_bytes`
    over k data shards (erasure.stripe.StripeLayout gives each frame's length).
    """

    data_id: bytes
    size: int
    k: int
    stripe_bytes: int
    rows: tuple[tuple[bytes, bytes], ...]


class ShardReadHeader(msgspec.Struct, array_like=True, frozen=True):
    """Opens a shard download: frames of stripes [first, last) from these drives."""

    data_id: bytes
    size: int
    k: int
    stripe_bytes: int
    first: int
    last: int
    drives: tuple[bytes, ...]


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
decode_prepare = msgspec.msgpack.Decoder(Prepare).decode
decode_prepared = msgspec.msgpack.Decoder(Prepared).decode
decode_commit = msgspec.msgpack.Decoder(CommitAt).decode
decode_finish = msgspec.msgpack.Decoder(Finish).decode
decode_verbs = msgspec.msgpack.Decoder(VerbsAt).decode
decode_replies = msgspec.msgpack.Decoder(Replies).decode
decode_shard_write = msgspec.msgpack.Decoder(ShardWriteHeader).decode
decode_shard_read = msgspec.msgpack.Decoder(ShardReadHeader).decode
