"""The code, stripes and plans over generated geometries, lengths, losses and ranges."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from erasure.codec import Backend, Codec, backend_name, generator_matrix, get_codec
from erasure.frame import CHECKSUM_BYTES, ShardHeader, seal, verify
from erasure.plan import ShardSource, plan_read, replace
from erasure.stripe import HEADER_BYTES, StripeLayout

DATA_ID = bytes(range(16))
GEOMETRIES = [(k, n) for n in range(1, 17) for k in range(n - n // 2, n + 1)]
geometries = st.sampled_from(GEOMETRIES)


def pattern(size: int, salt: int) -> bytes:
    """Bytes that do not repeat with any row length, cheap to make."""
    return bytes((i * i // 7 + i * 13 + salt) & 0xFF for i in range(size))


@pytest.mark.skipif(backend_name() != "isa-l", reason="no ISA-L here")
@pytest.mark.parametrize(("k", "n"), GEOMETRIES)
def test_both_libraries_give_the_same_bytes(k: int, n: int) -> None:
    for length in (1, 15, 16, 31, 32, 63, 64, 65, 127, 129, 1000):
        data = [pattern(length, 31 * i + k) for i in range(k)]
        parities = []
        for backend in Backend:
            parity = [bytearray(length) for _ in range(n - k)]
            Codec(k, n, backend=backend).encode(data, parity)
            parities.append(parity)
        assert parities[0] == parities[1]


@given(st.data(), geometries, st.integers(1, 300), st.sampled_from(sorted(Backend)))
@settings(max_examples=150, deadline=None)
def test_any_k_shards_give_every_shard(
    data: st.DataObject, geometry: tuple[int, int], length: int, backend: Backend
) -> None:
    if backend not in (Backend.ZFEC, backend_name()):
        return
    k, n = geometry
    codec = Codec(k, n, backend=backend)
    rows: list[bytes | bytearray] = [data.draw(st.binary(min_size=length, max_size=length))]
    rows += [pattern(length, 7 * i) for i in range(1, k)]
    parity = [bytearray(length) for _ in range(n - k)]
    codec.encode(rows, parity)
    shards = [*rows, *parity]
    kept = data.draw(st.permutations(range(n)))[: data.draw(st.integers(k, n))]
    want = data.draw(st.lists(st.integers(0, n - 1), max_size=n, unique=True))
    out = [bytearray(length) for _ in want]
    codec.reconstruct({shard: shards[shard] for shard in kept}, want, out)
    assert out == [shards[shard] for shard in want]


def test_the_matrix_is_systematic_in_every_geometry() -> None:
    for k, n in GEOMETRIES:
        matrix = generator_matrix(k, n)
        assert len(matrix) == n
        assert matrix[:k] == tuple(bytes(int(i == j) for j in range(k)) for i in range(k))


class Stored(NamedTuple):
    layout: StripeLayout
    n: int
    content: bytes
    files: list[bytearray]


def store(content: bytes, k: int, n: int, stripe_data_bytes: int) -> Stored:
    """The n shard files of an object, written the way a PUT writes them."""
    layout = StripeLayout(len(content), k, stripe_data_bytes)
    headers = [ShardHeader.of(layout, data_id=DATA_ID, shard=shard, n=n) for shard in range(n)]
    files = [bytearray(header.encode()) for header in headers]
    for stripe in range(layout.stripes):
        frame_bytes = layout.frame_bytes(stripe)
        frames = [memoryview(bytearray(frame_bytes)) for _ in range(n)]
        taken = layout.stripe_start(stripe)
        for row, carried in layout.data_slices(stripe):
            payload = frames[row][CHECKSUM_BYTES:]
            payload[:carried] = content[taken : taken + carried]
            taken += carried
        assert taken - layout.stripe_start(stripe) == layout.stripe_bytes(stripe)
        payloads = [frame[CHECKSUM_BYTES:] for frame in frames]
        get_codec(k, n).encode(payloads[:k], payloads[k:])
        for shard, frame in enumerate(frames):
            seal(frame, data_id=DATA_ID, shard=shard, block=stripe)
            assert len(files[shard]) == layout.frame_offset(stripe)
            files[shard] += frame
    return Stored(layout, n, content, files)


def read(stored: Stored, shards: list[int], start: int, end: int) -> bytes:
    """Bytes [start, end) from the given shards only."""
    layout, found = stored.layout, bytearray()
    for stripe in layout.stripes_for(start, end):
        at, block = layout.frame_offset(stripe), layout.block_bytes(stripe)
        payloads: dict[int, memoryview] = {}
        for shard in shards:
            frame = memoryview(stored.files[shard])[at : at + layout.frame_bytes(stripe)]
            assert verify(frame, data_id=DATA_ID, shard=shard, block=stripe)
            payloads[shard] = frame[CHECKSUM_BYTES:]
        for row, first, past in layout.range_slices(stripe, start, end):
            if row not in payloads:
                out = memoryview(bytearray(block))
                get_codec(layout.k, stored.n).reconstruct(payloads, [row], [out])
                found += out[first:past]
            else:
                found += payloads[row][first:past]
    return bytes(found)


@given(st.data(), geometries, st.integers(0, 2000), st.integers(1, 700))
@settings(max_examples=150, deadline=None)
def test_any_range_reads_back_from_any_k_shards(
    data: st.DataObject, geometry: tuple[int, int], size: int, stripe_data_bytes: int
) -> None:
    k, n = geometry
    stored = store(pattern(size, 3), k, n, stripe_data_bytes)
    assert {len(file) for file in stored.files} == {stored.layout.shard_file_bytes}
    start = data.draw(st.integers(0, size))
    end = data.draw(st.integers(start, size))
    shards = data.draw(st.permutations(range(n)))[:k]
    assert read(stored, shards, start, end) == stored.content[start:end]


@given(geometries, st.integers(0, 1 << 45), st.integers(1, 1 << 26))
@settings(max_examples=200, deadline=None)
def test_layout_arithmetic(geometry: tuple[int, int], size: int, stripe_data_bytes: int) -> None:
    layout = StripeLayout(size, geometry[0], stripe_data_bytes)
    assert layout.full_block_bytes % 64 == 0
    assert layout.full_block_bytes * layout.k >= stripe_data_bytes
    if not size:
        assert layout.shard_file_bytes == HEADER_BYTES
        return
    last = layout.stripes - 1
    assert layout.stripe_start(last) + layout.stripe_bytes(last) == size
    for stripe in {0, last // 2, last}:
        slices = layout.data_slices(stripe)
        assert [row for row, _ in slices] == list(range(layout.k))
        assert sum(carried for _, carried in slices) == layout.stripe_bytes(stripe)
        assert 0 < layout.block_bytes(stripe) <= layout.full_block_bytes
        whole = layout.range_slices(stripe, 0, size)
        assert whole == [(row, 0, carried) for row, carried in slices if carried]


@given(st.data(), geometries, st.integers(1, 4))
@settings(max_examples=150, deadline=None)
def test_plans_choose_k_distinct_and_replace_the_failed(
    data: st.DataObject, geometry: tuple[int, int], drives: int
) -> None:
    k, n = geometry
    up = data.draw(st.permutations(range(n)))[: data.draw(st.integers(k, n))]
    available = [
        ShardSource(
            shard=shard,
            node=shard // drives,
            local=shard // drives == 0,
            cost=data.draw(st.sampled_from([0.0, 1.0, 2.0, 30.0])),
        )
        for shard in up
    ]
    plan = plan_read(available, k)
    assert len(set(plan.shards)) == k
    assert set(plan.shards) <= set(up)
    failed = data.draw(st.sets(st.sampled_from(plan.shards)))
    spare = {source.shard for source in replace(plan, failed, available)}
    assert len(spare) == min(len(failed), len(up) - k)
    assert not spare & set(plan.shards)
    assert plan_read(list(reversed(available)), k) == plan, "the order of answers does not matter"
