"""SigV4 for the load client: a key derived once, signatures made before the clock starts."""

from __future__ import annotations

import hashlib
import hmac
import time
import urllib.parse
from collections.abc import Iterable

Query = Iterable[tuple[str, str]]
UNSIGNED = "UNSIGNED-PAYLOAD"
EMPTY_SHA = hashlib.sha256(b"").hexdigest()


def _escape(text: str) -> str:
    return urllib.parse.quote(text, safe="-_.~")


def query_string(pairs: Query) -> str:
    return "&".join(f"{_escape(k)}={_escape(v)}" for k, v in sorted(pairs))


class Signer:
    """Signs with the time of its making: a run must be shorter than 15 minutes with headers."""

    def __init__(self, access_key: str, secret_key: str, region: str) -> None:
        self.date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self.scope = f"{self.date[:8]}/{region}/s3/aws4_request"
        self.access_key, self.key = access_key, b"AWS4" + secret_key.encode()
        for part in self.scope.split("/"):
            self.key = hmac.digest(self.key, part.encode(), "sha256")

    def _signature(self, canonical: str) -> str:
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = f"AWS4-HMAC-SHA256\n{self.date}\n{self.scope}\n{digest}"
        return hmac.digest(self.key, text.encode(), "sha256").hex()

    def presign(self, method: str, host: str, path: str, query: Query = ()) -> tuple[str, str]:
        """Target of a presigned URL valid for a day, and no header lines."""
        text = query_string(
            [
                *query,
                ("X-Amz-Algorithm", "AWS4-HMAC-SHA256"),
                ("X-Amz-Credential", f"{self.access_key}/{self.scope}"),
                ("X-Amz-Date", self.date),
                ("X-Amz-Expires", "86400"),
                ("X-Amz-SignedHeaders", "host"),
            ]
        )
        canonical = f"{method}\n{path}\n{text}\nhost:{host}\n\nhost\n{UNSIGNED}"
        return f"{path}?{text}&X-Amz-Signature={self._signature(canonical)}", ""

    def header(
        self, method: str, host: str, path: str, query: Query = (), sha: str = UNSIGNED
    ) -> tuple[str, str]:
        """Target, and header lines that end in CRLF."""
        text = query_string(query)
        names = "host;x-amz-content-sha256;x-amz-date"
        canonical = (
            f"{method}\n{path}\n{text}\nhost:{host}\nx-amz-content-sha256:{sha}\n"
            f"x-amz-date:{self.date}\n\n{names}\n{sha}"
        )
        lines = (
            f"x-amz-content-sha256: {sha}\r\nx-amz-date: {self.date}\r\n"
            f"Authorization: AWS4-HMAC-SHA256 Credential={self.access_key}/{self.scope}, "
            f"SignedHeaders={names}, Signature={self._signature(canonical)}\r\n"
        )
        return path + (f"?{text}" if text else ""), lines
