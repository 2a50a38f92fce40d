from __future__ import annotations

import sys
import threading
from typing import Any

import pytest

from erasure import codec as module
from erasure.codec import Backend, Codec, backend_name, generator_matrix, get_codec
from erasure.errors import BackendUnavailable, GeometryError, NotEnoughShards, RowsError
from erasure.field import SingularMatrix, add, invert, multiply, times

BACKENDS = sorted({Backend.ZFEC, Backend(backend_name())})


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_backend_switch(backend: str) -> None:
    assert Codec(2, 4, backend=backend).backend == backend
    assert Codec(2, 4).backend == backend_name() == get_codec(2, 4).backend
    assert get_codec(2, 4) is get_codec(2, 4)


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(BackendUnavailable) as caught:
        Codec(2, 4, backend="jerasure")
    assert caught.value.backend == "jerasure"


def test_without_a_library_zfec_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_isal_candidates", lambda: iter(["libabsent.so.0", "libc.so.6"]))
    monkeypatch.setattr(module, "_isal", module._isal.__wrapped__)
    assert Codec(2, 4).backend == backend_name() == "zfec"
    with pytest.raises(BackendUnavailable):
        Codec(2, 4, backend="isa-l")


class Spoiled:
    """The real library, which now and then turns one bit: in every other call, from `first` on."""

    def __init__(self, first: int | None) -> None:
        self._library: Any = module._isal()
        self._calls = 0
        self._first = first

    def ec_init_tables(self, *arguments: Any) -> None:
        self._library.ec_init_tables(*arguments)

    def ec_encode_data(self, *arguments: Any) -> None:
        self._library.ec_encode_data(*arguments)
        if self._first is not None and self._calls % 2 == self._first:
            arguments[-1][0][0] ^= 1
        self._calls += 1


@pytest.mark.skipif(backend_name() != "isa-l", reason="no ISA-L here")
def test_a_library_that_disagrees_is_not_used() -> None:
    assert module._agrees_with_zfec(Spoiled(None))
    assert not module._agrees_with_zfec(Spoiled(0)), "encodes wrongly"
    assert not module._agrees_with_zfec(Spoiled(1)), "reconstructs wrongly"


@pytest.mark.skipif(backend_name() != "isa-l", reason="no ISA-L here")
def test_the_bundled_library_is_preferred() -> None:
    candidates = list(module._isal_candidates())
    assert candidates[-1] == "libisal.so.2"
    assert all("pyeclib" in name for name in candidates[:-1])


def test_rows_may_be_slices_of_one_buffer_with_gaps(backend: str) -> None:
    gap, length, k, n = 16, 100, 4, 6
    buffer = bytearray(b"\xee" * (n * (gap + length)))
    view = memoryview(buffer)
    rows = [view[i * (gap + length) + gap : (i + 1) * (gap + length)] for i in range(n)]
    for i in range(k):
        rows[i][:] = bytes((i * 31 + j) & 0xFF for j in range(length))
    Codec(k, n, backend=backend).encode([row.toreadonly() for row in rows[:k]], rows[k:])
    assert all(view[i * (gap + length) :][:gap] == b"\xee" * gap for i in range(n))
    out = [bytearray(length) for _ in range(2)]
    Codec(k, n, backend=backend).reconstruct({i: rows[i] for i in range(2, n)}, [0, 1], out)
    assert out == [bytearray(rows[0]), bytearray(rows[1])]


def test_more_than_k_prefers_data(backend: str) -> None:
    codec = Codec(2, 4, backend=backend)
    data, parity = [b"ab", b"cd"], [bytearray(2), bytearray(2)]
    codec.encode(data, parity)
    out = [bytearray(2) for _ in range(4)]
    rotten = {3: b"??", 1: data[1], 0: data[0]}
    codec.reconstruct(rotten, [0, 1, 2, 3], out)
    assert out == [*data, *parity]


def test_no_parity(backend: str) -> None:
    codec = Codec(3, 3, backend=backend)
    codec.encode([b"a", b"b", b"c"], [])
    out = [bytearray(1)]
    codec.reconstruct({0: b"a", 1: b"b", 2: b"c"}, [1], out)
    assert out == [b"b"]


def test_empty_rows_and_nothing_wanted(backend: str) -> None:
    codec = Codec(2, 4, backend=backend)
    codec.encode([b"", b""], [bytearray(), bytearray()])
    codec.reconstruct({0: b"", 3: b""}, [1], [bytearray()])
    codec.reconstruct({0: b"x", 3: b"y"}, [], [])


def test_too_few_shards(backend: str) -> None:
    with pytest.raises(NotEnoughShards) as caught:
        Codec(4, 8, backend=backend).reconstruct({0: b"a", 5: b"b"}, [1], [bytearray(1)])
    assert (caught.value.have, caught.value.need) == (2, 4)


def test_rows_that_do_not_fit_are_refused(backend: str) -> None:
    codec = Codec(2, 4, backend=backend)
    with pytest.raises(RowsError, match="unequal"):
        codec.encode([b"ab", b"c"], [bytearray(2), bytearray(2)])
    with pytest.raises(RowsError, match="unequal"):
        codec.reconstruct({0: b"ab", 1: b"cd"}, [2], [bytearray(3)])
    with pytest.raises(RowsError, match="1 data"):
        codec.encode([b"ab"], [bytearray(2), bytearray(2)])
    with pytest.raises(RowsError, match="2 shards wanted"):
        codec.reconstruct({0: b"ab", 1: b"cd"}, [2, 3], [bytearray(2)])
    with pytest.raises(RowsError, match="wanted twice"):
        codec.reconstruct({0: b"ab", 1: b"cd"}, [3] * 50, [bytearray(2) for _ in range(50)])
    with pytest.raises(RowsError, match="shard 4 of 4"):
        codec.reconstruct({0: b"ab", 4: b"cd"}, [2], [bytearray(2)])
    with pytest.raises(GeometryError):
        Codec(1, 4, backend=backend)


def test_read_only_output_is_refused(backend: str) -> None:
    with pytest.raises((BufferError, TypeError)):
        Codec(1, 2, backend=backend).encode([b"a"], [b"b"])


def test_encoding_releases_the_interpreter_lock(backend: str) -> None:
    codec = Codec(8, 16, backend=backend)
    row = bytes(1 << 18)
    parity = [bytearray(1 << 18) for _ in range(8)]
    go, ran = threading.Semaphore(0), threading.Event()

    def other() -> None:
        go.acquire()
        ran.set()

    thread = threading.Thread(target=other)
    thread.start()
    before = sys.getswitchinterval()
    # With forced switches this far apart, the other thread runs only if encoding gives way.
    sys.setswitchinterval(1000)
    try:
        go.release()
        for _ in range(300):
            codec.encode([row] * 8, parity)
            if ran.is_set():
                break
        gave_way = ran.is_set()
    finally:
        sys.setswitchinterval(before)
        thread.join(10)
    assert gave_way


def test_field_agrees_with_the_polynomial() -> None:
    assert times(2)[0x80] == 0x1D
    assert times(7)[5] == 0b11011
    assert times(0) == bytes(256)
    assert times(1) == bytes(range(256))
    assert add(b"\x0f\xf0", b"\xff\xff") == b"\xf0\x0f"


def test_inverse_and_singular() -> None:
    square = generator_matrix(8, 16)[8:]
    identity = tuple(bytes(int(i == j) for j in range(8)) for i in range(8))
    assert multiply(square, invert(square)) == identity
    assert invert((b"\0\1", b"\1\0")) == (b"\0\1", b"\1\0")
    with pytest.raises(SingularMatrix):
        invert((b"\1\2", b"\1\2"))
