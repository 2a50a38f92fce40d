"""Bodies without framing: bytes at hand, a plain stream, and another object's data (copies)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator

from node.errors import CodedError, TargetFailed
from node.objects.api import BodyResult, Reading
from node.objects.checksums import Digest, new_digest


class _Digested:
    """MD5, and the checksums that were asked for."""

    def __init__(self) -> None:
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._digests: dict[str, Digest] = {}

    def want(self, algorithm: str) -> None:
        if algorithm and algorithm not in self._digests:
            self._digests[algorithm] = new_digest(algorithm)

    def digest(self, view: memoryview) -> None:
        self._md5.update(view)
        for digest in self._digests.values():
            digest.update(view)

    async def finish(self) -> BodyResult:
        checksums = {
            name: base64.b64encode(digest.digest()).decode()
            for name, digest in self._digests.items()
        }
        return BodyResult(md5_hex=self._md5.hexdigest(), checksums=checksums)


class BytesBody(_Digested):
    """node.objects.api.Body over bytes."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self.size = len(data)
        self._data = memoryview(data)
        self._position = 0

    async def readinto(self, view: memoryview) -> int:
        take = min(len(view), self.size - self._position)
        view[:take] = self._data[self._position : self._position + take]
        self._position += take
        return take


class PlainBody(_Digested):
    """node.objects.api.Body over a stream of bytes that gives exactly `size` of them."""

    def __init__(self, size: int, chunks: AsyncIterator[bytes]) -> None:
        super().__init__()
        self.size = size
        self._chunks = chunks
        self._left = memoryview(b"")
        self._taken = 0

    async def readinto(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view) and self._taken < self.size:
            if not self._left:
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    raise CodedError(
                        "IncompleteBody", f"the body ended after {self._taken} of {self.size} bytes"
                    )
                self._left = memoryview(chunk)
            take = min(len(self._left), len(view) - filled, self.size - self._taken)
            view[filled : filled + take] = self._left[:take]
            self._left = self._left[take:]
            self._taken += take
            filled += take
        return filled

    async def finish(self) -> BodyResult:
        surplus = bool(self._left)
        while not surplus and (chunk := await anext(self._chunks, None)) is not None:
            surplus = bool(chunk)
        if surplus:
            raise CodedError("IncompleteBody", f"the body is longer than {self.size} bytes")
        return await super().finish()


class ReadingBody(_Digested):
    """node.objects.api.Body over an object that is being read."""

    def __init__(self, reading: Reading) -> None:
        super().__init__()
        self.size = reading.end - reading.start
        self._chunks: AsyncIterator[bytes | memoryview] = reading.chunks()
        self._left = memoryview(b"")

    async def readinto(self, view: memoryview) -> int:
        filled = 0
        while filled < len(view):
            if not self._left:
                chunk = await anext(self._chunks, None)
                if chunk is None:
                    raise TargetFailed("the source ended early")
                self._left = memoryview(chunk)
            take = min(len(self._left), len(view) - filled)
            view[filled : filled + take] = self._left[:take]
            self._left = self._left[take:]
            filled += take
        return filled
