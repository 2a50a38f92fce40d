"""GF(2^8) with the polynomial 0x11D, which zfec and ISA-L share: just enough to invert a matrix.

A matrix is a tuple of rows, a row is bytes. Rows are scaled with bytes.translate and added as
integers, which makes inverting a 16 x 16 matrix a matter of a few hundred microseconds.
"""

from __future__ import annotations

from functools import lru_cache

from erasure.errors import ErasureError

POLYNOMIAL = 0x11D

Matrix = tuple[bytes, ...]


class SingularMatrix(ErasureError):
    """The matrix has no inverse; no k rows of a generator matrix of an MDS code give one."""


def _powers() -> tuple[bytes, bytes]:
    exp, log, value = bytearray(510), bytearray(256), 1
    for power in range(255):
        exp[power] = exp[power + 255] = value
        log[value] = power
        value <<= 1
        if value & 0x100:
            value ^= POLYNOMIAL
    return bytes(exp), bytes(log)


_EXP, _LOG = _powers()


@lru_cache(maxsize=256)
def times(factor: int) -> bytes:
    """The table of products with `factor`, for bytes.translate."""
    if factor == 0:
        return bytes(256)
    log = _LOG[factor]
    return b"\0" + bytes(_EXP[log + _LOG[value]] for value in range(1, 256))


def inverse(value: int) -> int:
    """The multiplicative inverse of a value that is not zero."""
    if value == 0:
        raise SingularMatrix("zero has no inverse")
    return _EXP[255 - _LOG[value]]


def add(left: bytes, right: bytes) -> bytes:
    """The sum (and difference) of two rows of equal length."""
    total = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
    return total.to_bytes(len(left), "little")


def multiply(left: Matrix, right: Matrix) -> Matrix:
    """The product; rows of `left` are as long as `right` has rows."""
    product = []
    for row in left:
        total = bytes(len(right[0]))
        for factor, other in zip(row, right, strict=True):
            if factor:
                total = add(total, other.translate(times(factor)))
        product.append(total)
    return tuple(product)


def invert(matrix: Matrix) -> Matrix:
    """The inverse of a square matrix, by Gauss and Jordan; raises SingularMatrix."""
    size = len(matrix)
    rows = [row + bytes(int(i == j) for j in range(size)) for i, row in enumerate(matrix)]
    for column in range(size):
        pivot = next((i for i in range(column, size) if rows[i][column]), None)
        if pivot is None:
            raise SingularMatrix(f"no pivot in column {column} of {size}")
        rows[column], rows[pivot] = rows[pivot], rows[column]
        rows[column] = rows[column].translate(times(inverse(rows[column][column])))
        for i in range(size):
            if i != column and rows[i][column]:
                rows[i] = add(rows[i], rows[column].translate(times(rows[i][column])))
    return tuple(row[size:] for row in rows)
