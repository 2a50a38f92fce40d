"""aws-chunked bodies without I/O: bytes in, payload slices out, the signature chain checked.

Theory of operation. The body is a run of chunks ``size[;chunk-signature=hex]CRLF data CRLF``, then
one of size zero without data, then (in the trailer forms) header lines, then CRLF:

    state     input                     next
    HEADER    size line, size > 0       DATA
    HEADER    size line, size = 0       TRAILER (trailer forms) or LAST
    DATA      size bytes                DATA_END
    DATA_END  CRLF                      HEADER      (the chunk's signature is checked here)
    TRAILER   name:value line           TRAILER
    TRAILER   empty line                DONE        (the trailer's signature is checked here)
    LAST      CRLF                      DONE
    DONE      anything                  refused

A chunk's bytes are handed out before its signature can be known, since a chunk may be as long as
the object: whoever stores them commits only after ``finish()``. Line ends are CRLF and nothing
else, with one exception: Amazon's published form of a trailer line ends in LF CRLF, some clients
send it so, and in a trailer (where nothing can hide behind it) it is accepted.

Source: "Transferring Payload in Multiple Chunks" and "Including Trailing Headers" in the Amazon S3
API reference.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable
from enum import Enum, auto

from .canonical import ALGORITHM, EMPTY_SHA256, sign_string
from .claim import PayloadKind
from .errors import AuthError

MAX_CHUNK_BYTES = 5 * 1024**3
MAX_CHUNK_HEADER_BYTES = 128  # 16 digits, ";chunk-signature=", 64 digits, with room to spare
MAX_TRAILER_BYTES = 8192
MAX_TRAILERS = 16
TRAILER_SIGNATURE = "x-amz-trailer-signature"

_SIZE = rb"([0-9a-fA-F]{1,16})"
_PLAIN_HEADER = re.compile(_SIZE)
_SIGNED_HEADER = re.compile(_SIZE + rb";chunk-signature=([0-9a-f]{64})")
_TRAILER_NAME = re.compile(rb"[A-Za-z0-9\-]{1,128}")
# Visible ASCII and inner spaces, with or without spaces around.
_TRAILER_VALUE = re.compile(rb"[ \t]*([!-~](?:[ -~]*[!-~])?)?[ \t]*")


class _State(Enum):
    HEADER = auto()
    DATA = auto()
    DATA_END = auto()
    TRAILER = auto()
    LAST = auto()
    DONE = auto()
    FAILED = auto()


def _bad_framing(message: str) -> AuthError:
    return AuthError("InvalidRequest", f"The aws-chunked body is malformed: {message}")


def _incomplete(message: str) -> AuthError:
    return AuthError(
        "IncompleteBody",
        "You did not provide the number of bytes specified by the x-amz-decoded-content-length "
        f"HTTP header: {message}",
    )


def _bad_trailer(message: str) -> AuthError:
    return AuthError(
        "MalformedTrailerError",
        "The request contained trailing data that was not well-formed or did not conform to our "
        f"published schema: {message}",
    )


class ChunkedDecoder:
    """Decodes one body. After an error it stays failed: every further call raises.

    ``signing_key`` and ``seed_signature`` come from ``sigv4.verify``; they are unused (and may be
    empty) for STREAMING_UNSIGNED_TRAILER. ``decoded_length`` is x-amz-decoded-content-length, in
    bytes. ``trailer_names`` are the names that the x-amz-trailer header announced.
    """

    def __init__(
        self,
        payload_kind: PayloadKind,
        signing_key: bytes,
        seed_signature: str,
        scope: str,
        amz_date: str,
        decoded_length: int,
        trailer_names: Iterable[str] = (),
    ) -> None:
        if not payload_kind.streaming:
            raise ValueError(f"{payload_kind} is not an aws-chunked form")
        if decoded_length < 0:
            raise ValueError("decoded_length must not be negative")
        self._signed = payload_kind is not PayloadKind.STREAMING_UNSIGNED_TRAILER
        if self._signed and not (signing_key and seed_signature):
            raise ValueError("a signed body needs the signing key and the seed signature")
        self._has_trailer = payload_kind is not PayloadKind.STREAMING_SIGNED
        self._key = signing_key
        self._previous = seed_signature
        self._context = f"{amz_date}\n{scope}"
        self._expected_trailers = frozenset(name.lower() for name in trailer_names)
        self._length = decoded_length
        self._received = 0
        self._left = 0  # bytes of the current chunk still to come
        self._line = bytearray()  # a line of which only the beginning has come
        self._state = _State.HEADER
        self._hash = hashlib.sha256()
        self._chunk_signature = ""
        self._trailers: dict[str, str] = {}
        self._trailer_text = b""
        self._trailer_bytes = 0
        self._trailer_signature = ""

    @property
    def received(self) -> int:
        """Payload bytes given out so far."""
        return self._received

    @property
    def done(self) -> bool:
        return self._state is _State.DONE

    def feed(self, data: bytes | memoryview) -> list[memoryview]:
        """Take the next bytes of the body; returns the payload in them as slices of ``data``."""
        view = memoryview(data)
        out: list[memoryview] = []
        position = 0
        end = len(view)
        try:
            while position < end:
                if self._state is _State.DATA:
                    take = min(self._left, end - position)
                    piece = view[position : position + take]
                    position += take
                    self._take_data(piece)
                    out.append(piece)
                else:
                    position = self._take_line(view, position)
        except AuthError:
            self._state = _State.FAILED
            raise
        return out

    def finish(self) -> dict[str, str]:
        """The end of the body has come: its trailers (lower-case names), or an error."""
        if self._state is _State.FAILED:
            raise _bad_framing("it was refused before")
        if self._state is not _State.DONE:
            self._state = _State.FAILED
            raise _incomplete(f"the body ended after {self._received} of {self._length} bytes")
        return dict(self._trailers)

    # ---- data -----------------------------------------------------------------------------------

    def _take_data(self, piece: memoryview) -> None:
        if self._signed:
            self._hash.update(piece)
        self._left -= len(piece)
        self._received += len(piece)
        if self._left == 0:
            self._state = _State.DATA_END

    # ---- lines ----------------------------------------------------------------------------------

    def _take_line(self, view: memoryview, position: int) -> int:
        """Use one line of ``view``, or keep its beginning; returns the position after it."""
        if self._state is _State.DONE or self._state is _State.FAILED:
            raise _bad_framing("there are bytes after its end")
        limit = MAX_TRAILER_BYTES if self._state is _State.TRAILER else MAX_CHUNK_HEADER_BYTES
        room = limit + 2 - len(self._line)
        before = len(self._line)
        self._line += view[position : position + room]
        found = self._line.find(b"\r\n", max(before - 1, 0))
        if found < 0:
            self._check_open_line(limit)
            return position + len(self._line) - before
        line = bytes(self._line[:found])
        self._line.clear()
        self._on_line(line)
        return position + found + 2 - before

    def _check_open_line(self, limit: int) -> None:
        if self._state is _State.DATA_END or self._state is _State.LAST:
            if not b"\r\n".startswith(self._line):
                raise _bad_framing("a chunk is not followed by CRLF")
        elif len(self._line) > limit + 1:
            if self._state is _State.TRAILER:
                raise _bad_trailer(f"a line is longer than {limit} bytes")
            raise _bad_framing(f"a chunk header is longer than {limit} bytes")
        elif self._state is _State.HEADER and b"\n" in self._line:
            raise _bad_framing("a chunk header does not end in CRLF")

    def _on_line(self, line: bytes) -> None:
        if self._state is _State.HEADER:
            self._on_header(line)
        elif self._state is _State.TRAILER:
            self._on_trailer(line)
        elif line:
            raise _bad_framing("a chunk is not followed by CRLF")
        elif self._state is _State.DATA_END:
            self._check_chunk()
            self._state = _State.HEADER
        else:
            self._end()

    def _on_header(self, line: bytes) -> None:
        match = (_SIGNED_HEADER if self._signed else _PLAIN_HEADER).fullmatch(line)
        if match is None:
            raise _bad_framing("a chunk header is not of the form announced")
        size = int(match[1], 16)
        if size > MAX_CHUNK_BYTES:
            raise _bad_framing(f"a chunk is larger than {MAX_CHUNK_BYTES} bytes")
        if self._signed:
            self._chunk_signature = match[2].decode("ascii")
        if size > self._length - self._received:
            raise _incomplete(f"the chunks hold more than {self._length} bytes")
        if size:
            self._left = size
            self._state = _State.DATA
            return
        self._check_chunk()
        if self._received != self._length:
            raise _incomplete(f"the chunks hold {self._received} of {self._length} bytes")
        self._state = _State.TRAILER if self._has_trailer else _State.LAST

    # ---- trailers -------------------------------------------------------------------------------

    def _on_trailer(self, line: bytes) -> None:
        if not line:
            self._check_trailers()
            self._end()
            return
        self._trailer_bytes += len(line)
        if self._trailer_bytes > MAX_TRAILER_BYTES:
            raise _bad_trailer(f"it is longer than {MAX_TRAILER_BYTES} bytes")
        if line.endswith(b"\n"):  # the published form, see above
            line = line[:-1]
        for one in line.split(b"\n"):
            self._on_trailer_field(one)

    def _on_trailer_field(self, line: bytes) -> None:
        if self._trailer_signature:
            raise _bad_trailer(f"there are lines after {TRAILER_SIGNATURE}")
        raw_name, colon, raw_value = line.partition(b":")
        value = _TRAILER_VALUE.fullmatch(raw_value)
        if not colon or not _TRAILER_NAME.fullmatch(raw_name) or value is None:
            raise _bad_trailer("a line is not of the form name:value")
        name = raw_name.decode("ascii").lower()
        text = (value[1] or b"").decode("ascii")
        if self._signed and name == TRAILER_SIGNATURE:
            self._trailer_signature = text
            return
        if name not in self._expected_trailers:
            raise _bad_trailer(f"{name} was not announced by x-amz-trailer")
        if name in self._trailers or len(self._trailers) >= MAX_TRAILERS:
            raise _bad_trailer(f"{name} is there twice, or there are too many")
        self._trailers[name] = text
        self._trailer_text += f"{name}:{text}\n".encode()

    def _check_trailers(self) -> None:
        missing = self._expected_trailers - self._trailers.keys()
        if missing:
            raise _bad_trailer(f"{', '.join(sorted(missing))} was announced and is not there")
        # Without announced trailers there is nothing to sign; some clients then leave it out.
        if not self._signed or (not self._trailers and not self._trailer_signature):
            return
        digest = hashlib.sha256(self._trailer_text).hexdigest()
        text = f"{ALGORITHM}-TRAILER\n{self._context}\n{self._previous}\n{digest}"
        self._compare(sign_string(self._key, text), self._trailer_signature)

    # ---- the chain ------------------------------------------------------------------------------

    def _check_chunk(self) -> None:
        if not self._signed:
            return
        text = (
            f"{ALGORITHM}-PAYLOAD\n{self._context}\n{self._previous}\n{EMPTY_SHA256}\n"
            f"{self._hash.hexdigest()}"
        )
        expected = sign_string(self._key, text)
        self._compare(expected, self._chunk_signature)
        self._previous = expected
        self._hash = hashlib.sha256()

    def _compare(self, expected: str, given: str) -> None:
        if not hmac.compare_digest(expected, given):
            raise AuthError(
                "SignatureDoesNotMatch",
                "The signature of a chunk does not match the one we calculated.",
                {"SignatureProvided": given},
            )

    def _end(self) -> None:
        self._state = _State.DONE
