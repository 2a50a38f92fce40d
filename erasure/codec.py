"""The code itself: parity from data, lost shards from any k that are left.

zfec defines the code (systematic Reed-Solomon over GF(2^8), polynomial 0x11D). Its generator
matrix is read out of it with unit vectors and run by ISA-L, which is tens of times faster and gives
the same bytes. ISA-L is looked for in the libraries that the pyeclib wheel carries, then in the
system's. It must agree with zfec on a few geometries and lengths when it is loaded, or it is not
used. Without it zfec computes: the same bytes, slower, and with a new row for each output.

Buffers go to ISA-L by address. Both libraries release the GIL at work, so codecs may be used by
many threads at once; a codec has no state but caches. Rows must not overlap rows that are written.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import lru_cache
from typing import Any, Protocol

import cffi
from zfec import Decoder, Encoder  # type: ignore[attr-defined]

from erasure.errors import BackendUnavailable, NotEnoughShards, RowsError
from erasure.field import Matrix, invert, multiply
from erasure.geometry import Geometry

Buffer = bytes | bytearray | memoryview

# Patterns of lost shards whose tables are kept, per codec; at most 8 KiB each.
_PATTERNS = 256
_GEOMETRIES = 128
_TABLE_BYTES = 32  # per coefficient, fixed by ISA-L's interface
_MAX_ROW_BYTES = (1 << 31) - 1  # ISA-L takes the length as an int

_SYSTEM_LIBRARY = "libisal.so.2"

_ffi: Any = cffi.FFI()  # type: ignore[no-untyped-call]
_ffi.cdef(
    """
    void ec_init_tables(int k, int rows, unsigned char *a, unsigned char *gftbls);
    void ec_encode_data(int len, int k, int rows, unsigned char *gftbls,
                        unsigned char **data, unsigned char **coding);
    """
)


class Backend(StrEnum):
    """Which library does the arithmetic."""

    ISA_L = "isa-l"
    ZFEC = "zfec"


class Codec:
    """The k-of-n code. Shards 0 to k-1 are the data rows as they are, k to n-1 are parity.

    `backend` names the library to use, None for the best there is. Raises GeometryError, and
    BackendUnavailable for a library asked for by name.
    """

    def __init__(self, k: int, n: int, *, backend: str | None = None) -> None:
        self.geometry = Geometry(k=k, n=n)
        self.k = k
        self.n = n
        library = None if backend == Backend.ZFEC else _isal()
        if backend is not None and backend != Backend.ZFEC and library is None:
            raise BackendUnavailable(backend)
        if backend not in (None, *Backend):
            raise BackendUnavailable(str(backend))
        self._engine: _Engine = _Zfec(k, n) if library is None else _IsaL(k, n, library)

    @property
    def backend(self) -> str:
        """The library at work: "isa-l" or "zfec"."""
        return self._engine.name

    def encode(self, data: Sequence[Buffer], parity: Sequence[Buffer]) -> None:
        """Computes the n-k parity rows from the k data rows, in place.

        All rows are contiguous and equally long, and may lie anywhere; parity rows are writable
        and overlap nothing. Raises RowsError.
        """
        if len(data) != self.k or len(parity) != self.n - self.k:
            raise RowsError(
                f"{len(data)} data and {len(parity)} parity rows for {self.k} of {self.n}"
            )
        row_bytes = _row_bytes((*data, *parity))
        if row_bytes and parity:
            self._engine.encode(data, parity, row_bytes)

    def reconstruct(
        self, present: Mapping[int, Buffer], want: Sequence[int], out: Sequence[Buffer]
    ) -> None:
        """Computes the shards listed in `want` into the rows of `out`, in place.

        `present` maps shard indexes to rows, `want` names each shard once. Of more than k the data
        shards are preferred, then the lower parity shards; the others are not looked at. Raises
        NotEnoughShards for fewer than k, RowsError for rows that do not fit.
        """
        if len(want) != len(out):
            raise RowsError(f"{len(want)} shards wanted, {len(out)} rows to hold them")
        # zfec writes past its own arrays on the C stack if a parity shard is wanted repeatedly, and
        # loops for ever over repeated or unknown inputs; so both are excluded here, for any engine.
        if len(set(want)) != len(want):
            raise RowsError(f"a shard is wanted twice: {list(want)}")
        for shard in (*present, *want):
            if not 0 <= shard < self.n:
                raise RowsError(f"shard {shard} of {self.n}")
        if len(present) < self.k:
            raise NotEnoughShards(have=len(present), need=self.k)
        chosen = tuple(sorted(present)[: self.k])
        rows = [present[shard] for shard in chosen]
        row_bytes = _row_bytes((*rows, *out))
        if row_bytes and want:
            self._engine.reconstruct(chosen, rows, tuple(want), out, row_bytes)


@lru_cache(maxsize=_GEOMETRIES)
def get_codec(k: int, n: int) -> Codec:
    """The shared codec of a geometry, with the best backend there is."""
    return Codec(k, n)


def backend_name() -> str:
    """The library that `get_codec` uses in this process: "isa-l" or "zfec"."""
    return Backend.ZFEC if _isal() is None else Backend.ISA_L


@lru_cache(maxsize=_GEOMETRIES)
def generator_matrix(k: int, n: int) -> Matrix:
    """zfec's generator matrix, n rows of k coefficients; the first k rows are the identity."""
    # Byte j of the rows is the j-th unit vector, so byte j of the shards is column j.
    units = [bytes(int(i == j) for j in range(k)) for i in range(k)]
    matrix = tuple(bytes(row) for row in Encoder(k, n).encode(units, tuple(range(n))))
    assert matrix[:k] == tuple(units), "zfec's code is systematic"
    return matrix


class _Engine(Protocol):
    """Arithmetic on rows that the codec has checked: at least one byte, at least one output."""

    @property
    def name(self) -> str: ...

    def encode(self, data: Sequence[Buffer], parity: Sequence[Buffer], row_bytes: int) -> None: ...

    def reconstruct(
        self,
        chosen: tuple[int, ...],
        rows: Sequence[Buffer],
        want: tuple[int, ...],
        out: Sequence[Buffer],
        row_bytes: int,
    ) -> None: ...


class _Zfec:
    """The definition of the code, and the fallback."""

    name = Backend.ZFEC

    def __init__(self, k: int, n: int) -> None:
        self._k = k
        self._parity = tuple(range(k, n))
        self._encoder = Encoder(k, n)
        self._decoder = Decoder(k, n)

    def encode(self, data: Sequence[Buffer], parity: Sequence[Buffer], row_bytes: int) -> None:
        computed = self._encoder.encode(tuple(data), self._parity)
        for target, row in zip(parity, computed, strict=True):
            memoryview(target).cast("B")[:] = row

    def reconstruct(
        self,
        chosen: tuple[int, ...],
        rows: Sequence[Buffer],
        want: tuple[int, ...],
        out: Sequence[Buffer],
        row_bytes: int,
    ) -> None:
        # The decoder reorders the sequence that it is given: hand it a list of its own.
        data = tuple(self._decoder.decode(list(rows), chosen))
        computed = self._encoder.encode(data, want)
        for target, row in zip(out, computed, strict=True):
            memoryview(target).cast("B")[:] = row


class _IsaL:
    """zfec's matrix, run by ISA-L."""

    name = Backend.ISA_L

    def __init__(self, k: int, n: int, library: Any) -> None:
        self._k = k
        self._library = library
        self._matrix = generator_matrix(k, n)
        self._encode_tables = self._tables(self._matrix[k:]) if n > k else None
        # A method under lru_cache would share one bound between all codecs.
        self._decode_tables = lru_cache(maxsize=_PATTERNS)(self._build_decode_tables)

    def encode(self, data: Sequence[Buffer], parity: Sequence[Buffer], row_bytes: int) -> None:
        self._run(self._encode_tables, data, parity, row_bytes)

    def reconstruct(
        self,
        chosen: tuple[int, ...],
        rows: Sequence[Buffer],
        want: tuple[int, ...],
        out: Sequence[Buffer],
        row_bytes: int,
    ) -> None:
        self._run(self._decode_tables(chosen, want), rows, out, row_bytes)

    def _build_decode_tables(self, chosen: tuple[int, ...], want: tuple[int, ...]) -> Any:
        # shards = G * data; so data = inverse(G[chosen]) * chosen, and wanted = G[want] * data.
        to_data = invert(tuple(self._matrix[shard] for shard in chosen))
        return self._tables(multiply(tuple(self._matrix[shard] for shard in want), to_data))

    def _tables(self, coefficients: Matrix) -> Any:
        tables = _ffi.new("unsigned char[]", _TABLE_BYTES * self._k * len(coefficients))
        flat = _ffi.new("unsigned char[]", b"".join(coefficients))
        self._library.ec_init_tables(self._k, len(coefficients), flat, tables)
        return tables

    def _run(
        self, tables: Any, source: Sequence[Buffer], target: Sequence[Buffer], row_bytes: int
    ) -> None:
        # The from_buffer objects pin the buffers; they must outlive the call.
        sources = [_ffi.from_buffer("unsigned char[]", row) for row in source]
        targets = [_ffi.from_buffer("unsigned char[]", row, True) for row in target]
        self._library.ec_encode_data(
            row_bytes,
            len(sources),
            len(targets),
            tables,
            _ffi.new("unsigned char *[]", sources),
            _ffi.new("unsigned char *[]", targets),
        )


def _row_bytes(rows: Sequence[Buffer]) -> int:
    """The common length of rows, in bytes; raises RowsError."""
    lengths = {memoryview(row).nbytes for row in rows}
    if len(lengths) != 1:
        raise RowsError(f"rows of unequal lengths {sorted(lengths)}")
    length = lengths.pop()
    if length > _MAX_ROW_BYTES:
        raise RowsError(f"rows of {length} bytes")
    return length


@lru_cache(maxsize=1)
def _isal() -> Any | None:
    """The first ISA-L that can be loaded and agrees with zfec, or None."""
    for name in _isal_candidates():
        try:
            library = _ffi.dlopen(name)
            if _agrees_with_zfec(library):
                return library
        except (OSError, AttributeError):  # not there; or without one of the two functions
            continue
    return None


def _isal_candidates() -> Iterator[str]:
    try:
        files = importlib.metadata.files("pyeclib") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name.startswith("libisal") and ".so" in file.name:
            yield str(file.locate())
    yield _SYSTEM_LIBRARY


def _agrees_with_zfec(library: Any) -> bool:
    """Encodes and reconstructs a little with both. The lengths try tails of vectors."""
    for k, n in ((1, 2), (8, 16), (12, 16)):
        for length in (1, 33, 64, 517):
            data = [bytes((37 * i + 11 * j + k) & 0xFF for j in range(length)) for i in range(k)]
            engines: tuple[_Engine, _Engine] = (_IsaL(k, n, library), _Zfec(k, n))
            parity = [[bytearray(length) for _ in range(n - k)] for _ in engines]
            again = [bytearray(length) for _ in range(n - k)]
            for engine, rows in zip(engines, parity, strict=True):
                engine.encode(data, rows, length)
            kept = tuple(range(n - k, n))
            shards: list[Buffer] = [*data, *parity[1]]
            lost = tuple(range(n - k))
            engines[0].reconstruct(kept, [shards[i] for i in kept], lost, again, length)
            if parity[0] != parity[1] or again != shards[: n - k]:
                return False
    return True
