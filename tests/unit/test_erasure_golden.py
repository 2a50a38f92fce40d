"""Bytes that stored objects depend on. A change that alters them makes old data unreadable."""

from __future__ import annotations

import json
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest

from erasure.codec import Backend, Codec, backend_name
from erasure.frame import ShardHeader, seal, seal_inline, verify, verify_inline
from erasure.placement import rotation, set_of
from erasure.stripe import StripeLayout

GOLDEN = Path(__file__).parent.parent / "golden" / "erasure"


def load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((GOLDEN / name).read_text())
    return loaded


VECTORS = load("code.json")["vectors"]
BACKENDS = sorted({Backend.ZFEC, Backend(backend_name())})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['k']}of{v['n']}")
def test_golden_shards(vector: dict[str, Any], backend: str) -> None:
    k, n = vector["k"], vector["n"]
    shards = [bytes.fromhex(shard) for shard in vector["shards"]]
    codec = Codec(k, n, backend=backend)
    parity = [bytearray(len(shards[0])) for _ in range(n - k)]
    codec.encode(shards[:k], parity)
    assert [bytes(row) for row in parity] == shards[k:]
    for order in islice(permutations(range(n)), 0, 50_000, 977):
        kept, lost = order[:k], order[k:]
        out = [bytearray(len(shards[0])) for _ in lost]
        codec.reconstruct({shard: shards[shard] for shard in kept}, lost, out)
        assert [bytes(row) for row in out] == [shards[shard] for shard in lost]


def test_golden_frame_and_header() -> None:
    golden = load("frame.json")
    data_id, shard = bytes.fromhex(golden["data_id"]), golden["shard"]
    layout = StripeLayout(golden["size_bytes"], golden["k"], golden["stripe_data_bytes"])
    header = ShardHeader.of(layout, data_id=data_id, shard=shard, n=golden["n"])
    assert header.encode().hex() == golden["header"]
    assert ShardHeader.decode(bytes.fromhex(golden["header"])) == header

    payload = bytes.fromhex(golden["payload"])
    frame = bytearray(16) + payload
    seal(memoryview(frame), data_id=data_id, shard=shard, block=golden["block"])
    assert frame.hex() == golden["frame"]
    assert verify(frame, data_id=data_id, shard=shard, block=golden["block"])
    inline = seal_inline(payload, data_id=data_id, shard=shard)
    assert inline.hex() == golden["inline"]
    assert verify_inline(inline, data_id=data_id, shard=shard)


def test_golden_placement() -> None:
    golden = load("placement.json")
    cluster_id = bytes.fromhex(golden["cluster_id"])
    for row in golden["placements"]:
        assert set_of(cluster_id, row["bucket"], row["key"], row["sets"]) == row["set"]
        assert rotation(cluster_id, row["bucket"], row["key"], row["nodes"]) == row["rotation"]
