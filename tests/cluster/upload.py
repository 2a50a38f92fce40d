"""One big upload that reports its progress, and the bit-exact read-back.

    python -m tests.cluster.upload put    --endpoint H:P --key K --size-mb 256 [--streamed]
    python -m tests.cluster.upload verify --endpoint H:P --key K --size-mb 256

`put` prints a line `mark 45 <monotonic time>` when that share of the body has left, and ends with
one JSON line: the longest gap between two steps of progress (bytes accepted, parts answered).
The body is generated, never stored: MiB number i is the base block with i in front.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from .wire import S3, Credentials, WireError, endpoint

MIB = 1 << 20


def mebibyte(base: bytes, number: int) -> bytes:
    return number.to_bytes(16, "big") + base[16:]


def base_block(seed: str) -> bytes:
    return random.Random(seed).randbytes(MIB)


class Progress:
    """Steps of progress of all connections together, and the longest pause between two."""

    def __init__(self, total: int, mark_percent: float) -> None:
        self.total, self.mark_at = total, total * mark_percent / 100
        self.mark_percent = mark_percent
        self.sent, self.marked = 0, False
        self.begin = self.last = time.monotonic()
        self.gap_s, self.gap_at = 0.0, self.begin
        self.mutex = threading.Lock()

    def step(self, sent: int = 0) -> None:
        now = time.monotonic()
        with self.mutex:
            if now - self.last > self.gap_s:
                self.gap_s, self.gap_at = now - self.last, self.last
            self.last = now
            self.sent += sent
            if self.sent >= self.mark_at and not self.marked:
                self.marked = True
                print(f"mark {self.mark_percent:g} {now}", flush=True)


class Upload:
    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.path = args, f"/{args.bucket}/{args.key}"
        self.base = base_block(args.key)
        self.progress = Progress(args.size_mb * MIB, args.mark)
        self.etags: dict[int, str] = {}
        self.md5s: dict[int, bytes] = {}
        self.errors: list[str] = []

    def s3(self) -> S3:
        timeout_s = self.args.timeout
        return S3(endpoint(self.args.endpoint), Credentials.of_environment(), timeout_s=timeout_s)

    def streamed(self) -> str:
        """One PUT; returns its ETag."""
        digest = hashlib.md5(usedforsecurity=False)

        def body() -> Iterator[bytes]:
            for number in range(self.args.size_mb):
                block = mebibyte(self.base, number)
                digest.update(block)
                yield block

        with self.s3() as s3:
            length = self.args.size_mb * MIB
            answer = s3.call("PUT", self.path, (), body(), length=length, on_sent=self.sent)
        if answer.status != 200:
            raise WireError(f"{answer.status} {answer.body[:300]!r}")
        if answer.headers["etag"].strip('"') != digest.hexdigest():
            raise WireError(f"wrong ETag {answer.headers['etag']}")
        return answer.headers["etag"]

    def sent(self, count: int) -> None:
        self.progress.step(count)

    def multipart(self) -> str:
        """Parts over several connections, no retry of any; returns the object's ETag."""
        with self.s3() as s3:
            started = s3.expect("POST", self.path, [("uploads", "")])
            found = re.search(rb"<UploadId>([^<]+)</UploadId>", started.body)
            assert found, started.body
            upload_id = found[1].decode()
            starts = list(range(0, self.args.size_mb, self.args.part_mb))
            queue = list(enumerate(starts, 1))[::-1]
            mutex = threading.Lock()
            threads = [
                threading.Thread(target=self._parts, args=(queue, mutex, upload_id), daemon=True)
                for _ in range(self.args.conns)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            if self.errors:
                raise WireError("; ".join(self.errors[:3]))
            rows = "".join(
                f"<Part><PartNumber>{n}</PartNumber><ETag>{self.etags[n]}</ETag></Part>"
                for n in sorted(self.etags)
            )
            text = f"<CompleteMultipartUpload>{rows}</CompleteMultipartUpload>"
            ended = s3.expect("POST", self.path, [("uploadId", upload_id)], text.encode())
        self.progress.step()
        if b"<Error>" in ended.body:  # S3 may answer 200 and then fail
            raise WireError(ended.body[:300].decode())
        expected = hashlib.md5(b"".join(self.md5s[n] for n in sorted(self.md5s))).hexdigest()
        if f"{expected}-{len(starts)}".encode() not in ended.body:
            raise WireError(f"wrong ETag in {ended.body[:500]!r}")
        return f"{expected}-{len(starts)}"

    def _parts(self, queue: list[tuple[int, int]], mutex: threading.Lock, upload_id: str) -> None:
        try:
            with self.s3() as s3:
                while not self.errors:
                    with mutex:
                        if not queue:
                            return
                        number, start = queue.pop()
                    self._part(s3, number, start, upload_id)
        except (OSError, AssertionError) as error:
            self.errors.append(f"{time.monotonic():.3f} {error}")

    def _part(self, s3: S3, number: int, start: int, upload_id: str) -> None:
        end = min(start + self.args.part_mb, self.args.size_mb)
        blocks = [mebibyte(self.base, n) for n in range(start, end)]
        digest = hashlib.md5(usedforsecurity=False)
        for block in blocks:
            digest.update(block)
        query = [("partNumber", str(number)), ("uploadId", upload_id)]
        size = (end - start) * MIB
        answer = s3.call("PUT", self.path, query, blocks, length=size, on_sent=self.sent)
        if answer.status != 200:
            raise WireError(f"part {number}: {answer.status} {answer.body[:300]!r}")
        if answer.headers["etag"].strip('"') != digest.hexdigest():
            raise WireError(f"part {number}: wrong ETag {answer.headers['etag']}")
        self.etags[number], self.md5s[number] = answer.headers["etag"], digest.digest()
        self.progress.step()

    def put(self) -> dict[str, Any]:
        failure = etag = None
        try:
            etag = self.streamed() if self.args.streamed else self.multipart()
        except (OSError, AssertionError) as error:
            failure = str(error)
        progress = self.progress
        progress.step()
        took_s = progress.last - progress.begin
        return {
            "etag": etag,
            "failure": failure,
            "took_s": round(took_s, 3),
            "mib_s": round(progress.sent / MIB / took_s, 1),
            "longest_gap_s": round(progress.gap_s, 3),
            "gap_at": progress.gap_at,
            "end": progress.last,
        }

    def verify(self) -> dict[str, Any]:
        """Compare the object with what was sent, MiB by MiB."""
        held, number, wrong = bytearray(), 0, 0

        def take(data: bytes) -> None:
            nonlocal number, wrong
            held.extend(data)
            while len(held) >= MIB:
                wrong += held[:MIB] != mebibyte(self.base, number)
                del held[:MIB]
                number += 1

        failure = None
        try:
            with self.s3() as s3:
                answer = s3.call("GET", self.path, on_data=take)
            if answer.status != 200:
                failure = f"{answer.status} {answer.body[:300]!r}"
        except WireError as error:
            failure = str(error)
        if not failure and (number != self.args.size_mb or held):
            failure = f"{number} MiB and {len(held)} bytes came"
        return {"failure": failure, "mib": number, "wrong_mib": wrong}


def main(argv: list[str] | None = None) -> int:
    top = argparse.ArgumentParser(prog="python -m tests.cluster.upload", description=__doc__)
    top.formatter_class = argparse.RawDescriptionHelpFormatter
    top.add_argument("verb", choices=["put", "verify"])
    top.add_argument("--endpoint", required=True)
    top.add_argument("--bucket", default="ledger")
    top.add_argument("--key", default="big")
    top.add_argument("--size-mb", type=int, default=256)
    top.add_argument("--part-mb", type=int, default=8)
    top.add_argument("--conns", type=int, default=2)
    top.add_argument("--streamed", action="store_true", help="one PUT instead of parts")
    top.add_argument("--mark", type=float, default=45, help="per cent")
    top.add_argument("--timeout", type=float, default=900, help="seconds per request")
    args = top.parse_args(argv)
    upload = Upload(args)
    print(json.dumps(upload.put() if args.verb == "put" else upload.verify()), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
