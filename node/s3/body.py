"""A request's payload over ASGI, framing removed, digests checked: node.objects.api.Body.

Theory of operation. `readinto` fills the stripe buffers that the object layer gives. Our own server
reads the socket into them (node.s3.inlet); what carries framing, and what comes by another server, is
pulled as ASGI messages, whose chunks are copied once. Nothing is hashed there: the object layer calls
`digest` on the filled buffer in a worker thread. `finish` drains what the framing still holds (the last
chunk, trailers), then compares every digest that was claimed. The first `receive()` or `into()` is what
sends 100 Continue, so a body is built freely and read only when its request was admitted.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections import deque
from collections.abc import Mapping

from iam.chunked import ChunkedDecoder
from iam.errors import AuthError
from iam.sigv4 import Authentication, PayloadKind, Verified
from node import limits
from node.errors import CodedError
from node.objects.api import BodyResult
from node.objects.checksums import Digest, new_digest
from node.s3 import headers as wire
from node.s3.ports import Message, Receive, ReceiveInto

STALLED = "holdfast.stalled"  # message type: the client sent nothing for BODY_PROGRESS_TIMEOUT_S


def bounded(receive: Receive) -> Receive:
    """`receive` of a server that would wait for ever. Our own bounds its waits itself, at less cost."""

    async def receive_in_time() -> Message:
        try:
            async with asyncio.timeout(limits.BODY_PROGRESS_TIMEOUT_S):
                return await receive()
        except TimeoutError:
            return {"type": STALLED}

    return receive_in_time


class RequestBody:
    """See the module. `size` is the decoded size in bytes."""

    __slots__ = (
        "_claimed",
        "_decoder",
        "_digests",
        "_ended",
        "_into",
        "_kept",
        "_md5",
        "_md5_claim",
        "_pieces",
        "_receive",
        "_received",
        "_sha256_claim",
        "_trailer_algorithm",
        "size",
    )

    def __init__(
        self,
        receive: Receive,
        *,
        size: int,
        decoder: ChunkedDecoder | None = None,
        md5_claim: bytes | None = None,
        sha256_claim: str = "",
        claimed: Mapping[str, str] | None = None,
        trailer_algorithm: str = "",
        wanted_algorithm: str = "",
        into: ReceiveInto | None = None,
    ) -> None:
        """`into`: the way past ASGI messages, for a body without framing."""
        self.size = size
        self._receive = receive
        self._into = into
        self._decoder = decoder
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._md5_claim = md5_claim
        self._sha256_claim = sha256_claim
        self._claimed = dict(claimed or {})
        self._trailer_algorithm = trailer_algorithm
        self._digests: dict[str, Digest] = {}
        self._kept: set[str] = set()
        for algorithm in (*self._claimed, trailer_algorithm, wanted_algorithm):
            self.want(algorithm)
        if sha256_claim and "SHA256" not in self._digests:
            self._digests["SHA256"] = hashlib.sha256()
        self._pieces: deque[memoryview] = deque()
        self._received = 0
        self._ended = False

    def want(self, algorithm: str) -> None:
        """Compute `algorithm` too (the one a multipart upload was created with). Before any byte is read."""
        if not algorithm:
            return
        self._kept.add(algorithm)
        if algorithm not in self._digests:
            self._digests[algorithm] = new_digest(algorithm)

    async def readinto(self, view: memoryview) -> int:
        if self._into is not None:
            return await self._take_into(self._into, view)
        filled = 0
        room = len(view)
        while filled < room:
            if not self._pieces:
                if self._received >= self.size or self._ended:
                    break
                await self._pull()
                continue
            piece = self._pieces[0]
            take = min(len(piece), room - filled)
            view[filled : filled + take] = piece[:take]
            filled += take
            if take == len(piece):
                self._pieces.popleft()
            else:
                self._pieces[0] = piece[take:]
        if filled < room and self._received < self.size:
            raise _incomplete(self._received, self.size)
        return filled

    async def _take_into(self, into: ReceiveInto, view: memoryview) -> int:
        wanted = min(len(view), self.size - self._received)
        if not wanted:
            return 0
        try:
            filled = await into(view[:wanted])
        except TimeoutError:
            raise _stalled() from None
        self._received += filled
        if filled < wanted:
            raise _incomplete(self._received, self.size)
        return filled

    def digest(self, view: memoryview) -> None:
        self._md5.update(view)
        for digest in self._digests.values():
            digest.update(view)

    async def finish(self) -> BodyResult:
        while not self._ended:
            await self._pull()
        if self._received != self.size:
            raise _incomplete(self._received, self.size)
        trailers = self._finish_framing()
        found = {
            name: base64.b64encode(digest.digest()).decode()
            for name, digest in self._digests.items()
        }
        self._compare(found, trailers)
        # A SHA-256 that only the signature asked for is no checksum of the object.
        kept = {name: value for name, value in found.items() if name in self._kept}
        return BodyResult(md5_hex=self._md5.hexdigest(), checksums=kept)

    def _finish_framing(self) -> dict[str, str]:
        if self._decoder is None:
            return {}
        try:
            return self._decoder.finish()
        except AuthError as error:
            raise _as_client_error(error) from None

    def _compare(self, found: Mapping[str, str], trailers: Mapping[str, str]) -> None:
        if self._sha256_claim:
            computed = base64.b64decode(found["SHA256"]).hex()
            if not hmac.compare_digest(computed, self._sha256_claim):
                raise CodedError(
                    "XAmzContentSHA256Mismatch",
                    "The provided 'x-amz-content-sha256' header does not match what was computed.",
                    ClientComputedContentSHA256=self._sha256_claim,
                    S3ComputedContentSHA256=computed,
                )
        if self._md5_claim is not None and self._md5_claim != self._md5.digest():
            raise CodedError(
                "BadDigest",
                "The Content-MD5 you specified did not match what we received.",
                ExpectedDigest=self._md5_claim.hex(),
                CalculatedDigest=self._md5.hexdigest(),
            )
        claimed = dict(self._claimed)
        if self._trailer_algorithm:
            header = f"x-amz-checksum-{self._trailer_algorithm.lower()}"
            value = trailers.get(header, "")
            if not wire.valid_checksum(self._trailer_algorithm, value):
                raise CodedError(
                    "InvalidRequest", f"Value for {header} trailing header is invalid."
                )
            claimed[self._trailer_algorithm] = value
        for algorithm, value in claimed.items():
            if value != found[algorithm]:
                raise CodedError(
                    "BadDigest",
                    f"The {algorithm} you specified did not match the calculated checksum.",
                )

    async def _pull(self) -> None:
        """One more ASGI message. `receive` is bounded: it says STALLED when the client sends nothing."""
        message = await self._receive()
        if message["type"] != "http.request":
            if message["type"] == STALLED:
                raise _stalled()
            raise _incomplete(self._received, self.size)
        data = message.get("body", b"")
        self._ended = not message.get("more_body", False)
        if not data:
            return
        if self._decoder is None:
            self._received += len(data)
            if self._received > self.size:
                raise _too_long(self.size)
            self._pieces.append(memoryview(data))
            return
        try:
            pieces = self._decoder.feed(data)
        except AuthError as error:
            raise _as_client_error(error) from None
        self._pieces.extend(pieces)
        self._received = self._decoder.received


def _as_client_error(error: AuthError) -> CodedError:
    return CodedError(error.code, error.message, **dict(error.details))


def _stalled() -> CodedError:
    return CodedError(
        "RequestTimeout",
        "Your socket connection to the server was not read from or written to within the "
        "timeout period. Idle connections will be closed.",
    )


def _incomplete(received: int, size: int) -> CodedError:
    return CodedError(
        "IncompleteBody",
        "You did not provide the number of bytes specified by the Content-Length HTTP header",
        NumberBytesExpected=str(size),
        NumberBytesReceived=str(received),
    )


def _too_long(size: int) -> CodedError:
    return CodedError(
        "IncompleteBody",
        "You provided more bytes than the Content-Length HTTP header announced",
        NumberBytesExpected=str(size),
    )


def open_body(
    receive: Receive,
    headers: Mapping[str, str],
    auth: Authentication,
    verification: Verified | None,
    *,
    max_bytes: int,
    wanted_algorithm: str = "",
    into: ReceiveInto | None = None,
) -> RequestBody:
    """The body that `headers` announce. Reads nothing; raises ClientError for contradictions."""
    streaming = auth.payload.streaming
    size = _announced_size(headers, streaming)
    if size > max_bytes:
        raise CodedError(
            "EntityTooLarge",
            "Your proposed upload exceeds the maximum allowed size",
            ProposedSize=str(size),
            MaxSizeAllowed=str(max_bytes),
        )
    claimed = wire.claimed_checksums(headers)
    trailer_names = tuple(
        name
        for item in headers.get("x-amz-trailer", "").lower().split(",")
        if (name := item.strip())
    )
    trailer_algorithm = _trailer_algorithm(trailer_names) if streaming else ""
    if trailer_algorithm and claimed:
        raise CodedError(
            "InvalidRequest", "Expecting a single x-amz-checksum- header. Multiple were provided."
        )
    decoder = None
    if streaming:
        decoder = ChunkedDecoder(
            auth.payload,
            verification.signing_key if verification else b"",
            verification.seed_signature if verification else "",
            auth.scope,
            auth.amz_date,
            size,
            trailer_names,
        )
    signed = auth.payload_sha256 if auth.payload is PayloadKind.SIGNED else ""
    return RequestBody(
        receive,
        size=size,
        decoder=decoder,
        md5_claim=_content_md5(headers.get("content-md5")),
        sha256_claim=signed,
        claimed=claimed,
        trailer_algorithm=trailer_algorithm,
        wanted_algorithm=wanted_algorithm,
        # By Content-Length, or the server does not know the end; and large, or it is all here by now.
        into=into if decoder is None and size > limits.SMALL_BODY_BYTES else None,
    )


def _announced_size(headers: Mapping[str, str], streaming: bool) -> int:
    name = "x-amz-decoded-content-length" if streaming else "content-length"
    text = headers.get(name)
    if text is None:
        raise CodedError(
            "MissingContentLength",
            "You must provide the Content-Length HTTP header."
            if not streaming
            else "You must provide the x-amz-decoded-content-length HTTP header.",
        )
    if not (text.isascii() and text.isdigit()) or len(text) > 19:
        raise CodedError("InvalidArgument", f"The {name} header is invalid", ArgumentName=name)
    return int(text)


def _trailer_algorithm(names: tuple[str, ...]) -> str:
    found = [wire.CHECKSUM_HEADERS[name] for name in names if name in wire.CHECKSUM_HEADERS]
    unknown = [name for name in names if name not in wire.CHECKSUM_HEADERS]
    if unknown or len(found) > 1:
        raise CodedError(
            "InvalidRequest", "The value specified in the x-amz-trailer header is not supported"
        )
    return found[0] if found else ""


def _content_md5(text: str | None) -> bytes | None:
    if text is None:
        return None
    try:
        value = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        value = b""
    if len(value) != 16:
        raise CodedError("InvalidDigest", "The Content-MD5 you specified is not valid.")
    return value
