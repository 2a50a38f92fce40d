"""The operations clients use, end to end: boto3 against four nodes of four drives, real processes and files."""

from __future__ import annotations

import hashlib
import http.client
import io
import signal
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError

from .dev_world import DevWorld

pytestmark = pytest.mark.timeout(300)
KIB, MIB = 1024, 1024 * 1024


def content(size: int, seed: int = 0) -> bytes:
    return hashlib.shake_128(seed.to_bytes(8, "big")).digest(size)


@pytest.fixture(scope="module")
def world() -> Iterator[DevWorld]:
    world = DevWorld()
    try:
        world.up()
        yield world
    finally:
        world.down()


@pytest.fixture
def bucket(world: DevWorld, request: pytest.FixtureRequest) -> str:
    name = request.node.name.replace("_", "-").replace("[", "-").replace("]", "").lower()[:60]
    world.client(1).create_bucket(Bucket=name.strip("-"))
    return name.strip("-")


def code(error: pytest.ExceptionInfo[ClientError]) -> tuple[int, str]:
    answer: Any = error.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


# ---- everyday ----------------------------------------------------------------------------------------
SIZES = [0, 1, 4 * KIB, 128 * KIB, MIB, MIB + 1, 5 * MIB, 32 * MIB - 1, 32 * MIB, 40 * MIB]


def test_sizes_and_ranges(world: DevWorld, bucket: str) -> None:
    for number, size in enumerate(SIZES):
        data = content(size)
        writer, reader = world.client(1 + number % 4), world.client(1 + (number + 1) % 4)
        put = writer.put_object(Bucket=bucket, Key=f"k{size}", Body=data, Metadata={"m": "1"})
        assert put["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
        head = reader.head_object(Bucket=bucket, Key=f"k{size}")
        assert (head["ContentLength"], head["Metadata"]) == (size, {"m": "1"})
        assert reader.get_object(Bucket=bucket, Key=f"k{size}")["Body"].read() == data
        for first, last in ((0, 0), (size // 2, size // 2 + 70_000), (size - 3, size + 9)):
            if 0 <= first < size:
                part = reader.get_object(
                    Bucket=bucket, Key=f"k{size}", Range=f"bytes={first}-{last}"
                )
                assert part["Body"].read() == data[first : last + 1]
                assert part["ResponseMetadata"]["HTTPStatusCode"] == 206
        if size:
            part = reader.get_object(Bucket=bucket, Key=f"k{size}", Range="bytes=-5")
            assert part["Body"].read() == data[-5:]
        with pytest.raises(ClientError) as refused:
            reader.get_object(Bucket=bucket, Key=f"k{size}", Range=f"bytes={size}-")
        assert code(refused) == (416, "InvalidRange")


def test_multipart_by_the_transfer_manager(world: DevWorld, bucket: str) -> None:
    data = content(23 * MIB)
    config = TransferConfig(multipart_threshold=5 * MIB, multipart_chunksize=5 * MIB)
    world.client(2).upload_fileobj(io.BytesIO(data), bucket, "big", Config=config)
    back = io.BytesIO()
    world.client(3).download_fileobj(bucket, "big", back, Config=config)
    assert back.getvalue() == data
    assert world.client(4).head_object(Bucket=bucket, Key="big")["ETag"].endswith('-5"')
    part = world.client(1).get_object(Bucket=bucket, Key="big", PartNumber=5)
    assert part["Body"].read() == data[20 * MIB :]
    assert part["PartsCount"] == 5
    copied = world.client(1).copy_object(
        Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": "big"}
    )
    assert copied["CopyObjectResult"]["ETag"] == f'"{hashlib.md5(data).hexdigest()}"'
    assert world.client(2).get_object(Bucket=bucket, Key="copy")["Body"].read() == data


def test_multipart_by_hand_over_all_nodes(world: DevWorld, bucket: str) -> None:
    one, two = content(5 * MIB, 1), content(MIB + 7, 2)
    upload = world.client(1).create_multipart_upload(Bucket=bucket, Key="k", Metadata={"a": "b"})
    named = {"Bucket": bucket, "Key": "k", "UploadId": upload["UploadId"]}
    etags = [
        world.client(node).upload_part(PartNumber=number, Body=body, **named)["ETag"]
        for node, number, body in ((2, 2, two), (3, 1, one))
    ][::-1]
    listed = world.client(4).list_parts(**named)
    assert [(p["PartNumber"], p["Size"]) for p in listed["Parts"]] == [(1, len(one)), (2, len(two))]
    uploads = world.client(2).list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [u["UploadId"] for u in uploads] == [upload["UploadId"]]
    parts = {"Parts": [{"PartNumber": i + 1, "ETag": e} for i, e in enumerate(etags)]}
    done = world.client(4).complete_multipart_upload(MultipartUpload=parts, **named)
    assert done["ETag"].endswith('-2"')
    again = world.client(3).complete_multipart_upload(MultipartUpload=parts, **named)
    assert again["ETag"] == done["ETag"]
    assert world.client(1).get_object(Bucket=bucket, Key="k")["Body"].read() == one + two
    other = world.client(1).create_multipart_upload(Bucket=bucket, Key="k")
    world.client(2).upload_part_copy(
        Bucket=bucket,
        Key="k",
        UploadId=other["UploadId"],
        PartNumber=1,
        CopySource={"Bucket": bucket, "Key": "k"},
        CopySourceRange="bytes=5-104",
    )
    world.client(3).abort_multipart_upload(Bucket=bucket, Key="k", UploadId=other["UploadId"])
    with pytest.raises(ClientError) as gone:
        world.client(4).list_parts(Bucket=bucket, Key="k", UploadId=other["UploadId"])
    assert code(gone) == (404, "NoSuchUpload")


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
def test_checksums(world: DevWorld, bucket: str, algorithm: str) -> None:
    field = f"Checksum{algorithm}"
    for size in (10, 3 * MIB):
        data = content(size)
        put = world.client(1).put_object(
            Bucket=bucket, Key="k", Body=io.BytesIO(data), ChecksumAlgorithm=algorithm
        )
        got = world.client(3).get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
        assert got["Body"].read() == data  # botocore compares the checksum while it reads
        assert got[field] == put[field]
    with pytest.raises(ClientError) as refused:
        wrong = put[field][:-6] + ("A" if put[field][-6] != "A" else "B") + put[field][-5:]
        world.client(2).put_object(Bucket=bucket, Key="k", Body=b"other", **{field: wrong})
    assert code(refused)[0] == 400 and code(refused)[1] in ("BadDigest", "InvalidRequest")
    assert world.client(2).get_object(Bucket=bucket, Key="k")["Body"].read() == data


def test_presigned(world: DevWorld, bucket: str) -> None:
    named = {"Bucket": bucket, "Key": "p q/ü+%"}
    put = world.client(1, signature_version="s3v4").generate_presigned_url(
        "put_object", Params=named, ExpiresIn=60
    )
    request = urllib.request.Request(put, data=b"by url", method="PUT")
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status == 200
    get = world.client(2, signature_version="s3v4").generate_presigned_url(
        "get_object", Params=named, ExpiresIn=60
    )
    with urllib.request.urlopen(get, timeout=30) as answer:
        assert answer.read() == b"by url"
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(get.replace("X-Amz-Expires=60", "X-Amz-Expires=61"), timeout=30)
    assert refused.value.code == 403 and b"SignatureDoesNotMatch" in refused.value.read()


ODD_KEYS = [
    "a//b",
    "/leading",
    "trailing/",
    "..",
    "../up",
    ".",
    "a/./b/../c",
    "a b+c%20d&e=f?g#h",
    "é\U0001f600\u200b",
    "quote\"'<&>",
    "tab\tnewline\nbell\x07",
    "\\back",
    "a" * 1024,
    "~!@$^*()[]{}|;:,",
    "metrics",
    "health/live",
]


def test_odd_keys(world: DevWorld, bucket: str) -> None:
    for number, key in enumerate(ODD_KEYS):
        world.client(1 + number % 4).put_object(Bucket=bucket, Key=key, Body=key.encode())
    for number, key in enumerate(ODD_KEYS):
        got = world.client(1 + (number + 1) % 4).get_object(Bucket=bucket, Key=key)
        assert got["Body"].read() == key.encode()
    listed = world.client(2).list_objects_v2(Bucket=bucket)["Contents"]
    assert [o["Key"] for o in listed] == sorted(ODD_KEYS, key=str.encode)
    deleted = world.client(3).delete_objects(
        Bucket=bucket, Delete={"Objects": [{"Key": key} for key in ODD_KEYS if "\x07" not in key]}
    )
    assert len(deleted["Deleted"]) == len(ODD_KEYS) - 1
    for key in ODD_KEYS:  # XML has no way to name a bell
        world.client(2).delete_object(Bucket=bucket, Key=key)
    assert world.client(4).list_objects_v2(Bucket=bucket)["KeyCount"] == 0
    for key, want in (("a" * 1025, "KeyTooLongError"), ("nul\0", "InvalidURI")):
        with pytest.raises(ClientError) as refused:
            world.client(1).put_object(Bucket=bucket, Key=key, Body=b"")
        assert code(refused) == (400, want)


def test_lists_page_by_page(world: DevWorld, bucket: str) -> None:
    keys = sorted(f"{group}/{number:03}" for group in "abc" for number in range(12))
    for number, key in enumerate(keys):
        world.client(1 + number % 4).put_object(Bucket=bucket, Key=key, Body=b"")
    for operation in ("list_objects", "list_objects_v2"):
        pages = world.client(2).get_paginator(operation)
        found = [
            o["Key"]
            for page in pages.paginate(Bucket=bucket, PaginationConfig={"PageSize": 7})
            for o in page.get("Contents", ())
        ]
        assert found == keys
        groups = [
            p["Prefix"]
            for page in pages.paginate(
                Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1}
            )
            for p in page.get("CommonPrefixes", ())
        ]
        assert groups == ["a/", "b/", "c/"]
    inner = world.client(3).list_objects_v2(Bucket=bucket, Prefix="b/01", StartAfter="b/010")
    assert [o["Key"] for o in inner["Contents"]] == ["b/011"]


def test_conditions_and_buckets(world: DevWorld, bucket: str) -> None:
    client = world.client(3)
    client.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError) as refused:
        world.client(4).put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    assert code(refused) == (412, "PreconditionFailed")
    etag = client.head_object(Bucket=bucket, Key="k")["ETag"]
    world.client(4).put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch=etag)
    with pytest.raises(ClientError) as refused:
        client.get_object(Bucket=bucket, Key="k", IfMatch=etag)
    assert code(refused)[0] == 412
    with pytest.raises(ClientError) as refused:
        client.delete_bucket(Bucket=bucket)
    assert code(refused) == (409, "BucketNotEmpty")
    client.delete_object(Bucket=bucket, Key="k")
    assert bucket in [b["Name"] for b in world.client(2).list_buckets()["Buckets"]]
    client.delete_bucket(Bucket=bucket)
    with pytest.raises(ClientError) as refused:
        world.client(1).put_object(Bucket=bucket, Key="k", Body=b"")
    assert code(refused) == (404, "NoSuchBucket")


# ---- bad input ----------------------------------------------------------------------------------------
def raw(
    world: DevWorld, method: str, target: str, body: bytes = b"", **headers: str
) -> tuple[int, bytes]:
    """A signed request whose query, headers and body may be nonsense."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    from .dev_world import CREDENTIALS

    request = AWSRequest(method, world.s3_url(1) + target, data=body, headers=dict(headers))
    signer = S3SigV4Auth(Credentials(CREDENTIALS.user, CREDENTIALS.password), "s3", "us-east-1")
    signer.add_auth(request)
    address = urllib.parse.urlsplit(world.s3_url(1))
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=30)
    try:
        connection.request(method, target, body, dict(request.headers))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


BAD = [
    ("POST", "/{b}?delete", b"<Delete><Object>", 400, b"MalformedXML"),
    ("POST", "/{b}?delete", b"", 400, b"MalformedXML"),
    ("POST", "/{b}/k?uploadId=none", b"<x/>", 400, b"MalformedXML"),
    ("PUT", "/{b}?versioning", b"<VersioningConfiguration/>", 501, b"NotImplemented"),
    ("GET", "/{b}?list-type=2&max-keys=abc", b"", 400, b"InvalidArgument"),
    ("GET", "/{b}?list-type=2&max-keys=-1", b"", 400, b"InvalidArgument"),
    ("GET", "/{b}?list-type=2&continuation-token=%ff", b"", 400, b"Invalid"),
    ("GET", "/{b}/k?partNumber=0", b"", 400, b"InvalidArgument"),
    ("PUT", "/{b}/k?partNumber=10001&uploadId=x", b"", 400, b"InvalidArgument"),
    ("PUT", "/metrics", b"", 400, b"InvalidBucketName"),
    ("PUT", "/UPPER", b"", 400, b"InvalidBucketName"),
    ("PUT", "/ab", b"", 400, b"InvalidBucketName"),
    ("GET", "/{b}/k?unknownthing", b"", 501, b"NotImplemented"),
    ("GET", "/{b}/none", b"", 404, b"NoSuchKey"),
    ("GET", "/nowhere-at-all/none", b"", 404, b"NoSuchBucket"),
    ("PATCH", "/{b}/k", b"", 405, b"MethodNotAllowed"),
]


@pytest.mark.parametrize(("method", "target", "body", "status", "error"), BAD)
def test_bad_requests(
    world: DevWorld, method: str, target: str, body: bytes, status: int, error: bytes
) -> None:
    name = "bad-requests"
    try:
        world.client(1).head_bucket(Bucket=name)
    except ClientError:
        world.client(1).create_bucket(Bucket=name)
    got, answer = raw(world, method, target.format(b=name), body)
    assert (got, error in answer) == (status, True), answer
    assert b"Traceback" not in answer


def test_bodies_that_are_not_what_they_say(world: DevWorld, bucket: str) -> None:
    client = world.client(1)
    client.put_object(Bucket=bucket, Key="k", Body=b"there")
    for headers, want in (
        ({"Content-MD5": "AAAAAAAAAAAAAAAAAAAAAA=="}, b"BadDigest"),
        ({"Content-MD5": "nonsense"}, b"InvalidDigest"),
        ({"x-amz-copy-source": "/nowhere-at-all/k"}, b"NoSuchBucket"),
    ):
        status, answer = raw(world, "PUT", f"/{bucket}/k", b"new", **headers)
        assert 400 <= status < 500 and want in answer, answer
    for key, secret, want in (
        ("dev-root", "wrong-secret", "SignatureDoesNotMatch"),
        ("nobody", "wrong-secret", "InvalidAccessKeyId"),
    ):
        import boto3

        stranger = boto3.client(
            "s3",
            endpoint_url=world.s3_url(2),
            aws_access_key_id=key,
            aws_secret_access_key=secret,
            region_name="us-east-1",
        )
        with pytest.raises(ClientError) as refused:
            stranger.put_object(Bucket=bucket, Key="k", Body=b"new")
        assert code(refused) == (403, want)
    assert client.get_object(Bucket=bucket, Key="k")["Body"].read() == b"there"


# ---- nodes that fail ------------------------------------------------------------------------------------
class Load:
    """Writers and readers on some nodes; every value is unique, every failure is kept."""

    def __init__(self, world: DevWorld, bucket: str, nodes: tuple[int, ...], size: int) -> None:
        self.world, self.bucket, self.size = world, bucket, size
        self.acknowledged: dict[str, bytes] = {}
        self.failures: list[str] = []
        self.longest_s = 0.0
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=(node, lane), daemon=True)
            for node in nodes
            for lane in range(2)
        ]

    def _run(self, node: int, lane: int) -> None:
        client = self.world.client(node)
        number = 0
        while not self._stop.is_set():
            key, number = f"load/{node}-{lane}-{number}", number + 1
            data = content(self.size, hash(key) & 0xFFFFFFFF)
            began = time.monotonic()
            try:
                client.put_object(Bucket=self.bucket, Key=key, Body=data)
                self.acknowledged[key] = data
                assert client.get_object(Bucket=self.bucket, Key=key)["Body"].read() == data
            except Exception as error:
                self.failures.append(f"{key}: {error!r}")
            self.longest_s = max(self.longest_s, time.monotonic() - began)

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(90)

    def check(self, node: int) -> None:
        client = self.world.client(node)
        for key, data in self.acknowledged.items():
            assert client.get_object(Bucket=self.bucket, Key=key)["Body"].read() == data, key


def test_a_killed_node_costs_no_request_of_the_others_and_comes_back(
    world: DevWorld, bucket: str
) -> None:
    with Load(world, bucket, (1, 2, 3), 20 * KIB) as load:
        time.sleep(1.5)
        world.kill(4)
        time.sleep(4)
        world.start(4)
        world.wait_ready(4)
        time.sleep(1)
    print(f"killed node: {len(load.acknowledged)} writes, longest {load.longest_s:.2f} s")
    assert not load.failures, load.failures[:5]
    assert len(load.acknowledged) > 20
    load.check(4)


def test_a_frozen_node_costs_no_request_of_the_others(world: DevWorld, bucket: str) -> None:
    with Load(world, bucket, (1, 2, 3), 2 * MIB) as load:
        time.sleep(1.5)
        world.signal(4, signal.SIGSTOP)
        time.sleep(6)
        world.signal(4, signal.SIGCONT)
        time.sleep(2)
    print(f"frozen node: {len(load.acknowledged)} writes, longest {load.longest_s:.2f} s")
    assert not load.failures, load.failures[:5]
    load.check(1)
    world.wait_ready(1, 2, 3, 4)
    load.check(4)


def test_a_node_that_is_stopped_says_goodbye_in_time(world: DevWorld, bucket: str) -> None:
    world.client(3).put_object(Bucket=bucket, Key="k", Body=b"v")
    assert world.stop(3) == 0
    world.client(1).put_object(Bucket=bucket, Key="k", Body=b"w")
    world.start(3)
    world.wait_ready(3)
    assert world.client(3).get_object(Bucket=bucket, Key="k")["Body"].read() == b"w"
    assert "Traceback" not in "".join(world.log(node) for node in world.numbers)
