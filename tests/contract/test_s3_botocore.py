"""The S3 face against the real client: botocore's model is the oracle, boto3 drives real sockets."""

from __future__ import annotations

import hashlib
import io
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import botocore.session
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from node.s3.operations import IMPLEMENTED, OPERATIONS
from node.s3.shapes import Level
from tests.fakes.memory_store import checksum
from tests.fakes.s3_world import (
    GUEST,
    GUEST_SECRET,
    ROOT,
    ROOT_SECRET,
    FakeSettings,
    World,
    listening,
)

MIB = 1 << 20

# Superseded names of the same request, and two that have no place on a bucket's endpoint.
_ALIASES = {
    "GetBucketLifecycle",
    "PutBucketLifecycle",
    "GetBucketNotification",
    "PutBucketNotification",
    "ListDirectoryBuckets",
    "WriteGetObjectResponse",
}
# Names of ours that botocore has no operation for.
_NOT_IN_BOTOCORE = {"PostObject", "ListenBucketNotification"}

ODD_KEYS = [
    "a//b",
    "/leading",
    "trailing/",
    "//",
    "./.",
    "a/../b",
    "plus+and space",
    "per%2Fcent%",
    "ünï/çødé/日本語/🙂",
    "ctrl\x01\x1f\x7f",
    "line\nbreak\r\ttab",
    "quote\"'<&>;?#=",
    "k" * 1024,
    "é" * 512,
]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with listening(World()) as found:
        yield found


def client_of(world: World, key: str = ROOT, secret: str = ROOT_SECRET, **config: Any) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{world.port}",
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        config=Config(retries={"max_attempts": 0}, connect_timeout=10, read_timeout=30, **config),
    )


@pytest.fixture(scope="module")
def s3(world: World) -> Any:
    return client_of(world)


@pytest.fixture
def bucket(world: World, s3: Any, request: pytest.FixtureRequest) -> str:
    name = "b-" + hashlib.sha256(request.node.name.encode()).hexdigest()[:20]
    s3.create_bucket(Bucket=name)
    return name


def code_of(error: pytest.ExceptionInfo[ClientError]) -> tuple[str, int]:
    response = error.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


# ---- the table against the model ----------------------------------------------------------------


def _model_rows() -> dict[str, tuple[str, Level, frozenset[str]]]:
    model = botocore.session.get_session().get_service_model("s3")
    rows = {}
    for name in model.operation_names:
        if name in _ALIASES:
            continue
        operation = model.operation_model(name)
        path, _, query = operation.http["requestUri"].partition("?")
        keys = {item.partition("=")[0] for item in query.split("&") if item}
        shape = operation.input_shape
        if shape is not None:
            for member, value in shape.members.items():
                if (
                    member in shape.required_members
                    and value.serialization.get("location") == "querystring"
                ):
                    keys.add(value.serialization["name"])
        level = (
            Level.OBJECT
            if "{Key+}" in path
            else Level.BUCKET
            if "{Bucket}" in path
            else Level.SERVICE
        )
        rows[name] = (operation.http["method"], level, frozenset(keys))
    return rows


def test_every_operation_of_the_model_has_its_row() -> None:
    ours = {row.name: row for row in OPERATIONS}
    model = _model_rows()
    assert model.keys() - ours.keys() == set()
    assert ours.keys() - model.keys() == _NOT_IN_BOTOCORE
    for name, (method, level, keys) in model.items():
        row = ours[name]
        assert (row.method, row.level) == (method, level), name
        # A row may do with fewer keys where S3 itself tells two operations apart by one of them.
        optional = {"id", "annotationName", "select-type"}
        assert keys - optional <= row.required_keys <= keys, name


def test_optional_query_keys_are_those_of_the_model() -> None:
    model = botocore.session.get_session().get_service_model("s3")
    for row in IMPLEMENTED:
        shape = model.operation_model(row.name).input_shape
        known = {
            value.serialization["name"]
            for value in (shape.members.values() if shape is not None else ())
            if value.serialization.get("location") == "querystring"
        }
        unknown = known - row.optional - row.required_keys
        assert unknown == set(), f"{row.name} does not know {unknown}"


# ---- buckets ----------------------------------------------------------------------------------------


def test_bucket_life(s3: Any, bucket: str) -> None:
    assert s3.head_bucket(Bucket=bucket)["BucketRegion"] == "us-east-1"
    assert s3.get_bucket_location(Bucket=bucket).get("LocationConstraint") is None
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    listed = s3.list_buckets()
    assert bucket in [one["Name"] for one in listed["Buckets"]]
    assert len(listed["Owner"]["ID"]) == 64
    s3.create_bucket(Bucket=bucket)  # us-east-1: the owner's second creation succeeds
    s3.put_object(Bucket=bucket, Key="k", Body=b"")
    with pytest.raises(ClientError) as error:
        s3.delete_bucket(Bucket=bucket)
    assert code_of(error) == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket=bucket, Key="k")
    s3.delete_bucket(Bucket=bucket)
    with pytest.raises(ClientError) as error:
        s3.head_bucket(Bucket=bucket)
    assert code_of(error)[1] == 404


def test_list_buckets_is_paged(s3: Any) -> None:
    for name in ("page-1", "page-2", "page-3"):
        s3.create_bucket(Bucket=name)
    names: list[str] = []
    for page in s3.get_paginator("list_buckets").paginate(
        Prefix="page-", PaginationConfig={"PageSize": 2}
    ):
        names += [one["Name"] for one in page["Buckets"]]
    assert names == ["page-1", "page-2", "page-3"]


def test_another_region_is_refused_and_own_is_taken() -> None:
    with listening(World(FakeSettings(region="eu-west-1"))) as world:
        s3 = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{world.port}",
            aws_access_key_id=ROOT,
            aws_secret_access_key=ROOT_SECRET,
            region_name="eu-west-1",
        )
        s3.create_bucket(
            Bucket="here", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
        )
        assert s3.get_bucket_location(Bucket="here")["LocationConstraint"] == "eu-west-1"
        with pytest.raises(ClientError) as error:
            s3.create_bucket(
                Bucket="there", CreateBucketConfiguration={"LocationConstraint": "eu-central-1"}
            )
        assert code_of(error) == ("IllegalLocationConstraintException", 400)
        with pytest.raises(ClientError) as error:
            s3.create_bucket(
                Bucket="here", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
            )
        assert code_of(error) == ("BucketAlreadyOwnedByYou", 409)


def test_virtual_host_style_reaches_the_same_objects() -> None:
    with listening(World(FakeSettings(domain="s3.test"))) as world:
        s3 = client_of(world)
        s3.create_bucket(Bucket="vhost")
        s3.put_object(Bucket="vhost", Key="health/live", Body=b"an object")
        url = s3.generate_presigned_url("get_object", Params={"Bucket": "vhost", "Key": "x"})
        assert "/vhost/x" in url
        # Signed for the virtual host, sent to the loopback with that Host header.
        virtual = boto3.client(
            "s3",
            endpoint_url=f"http://s3.test:{world.port}",
            aws_access_key_id=ROOT,
            aws_secret_access_key=ROOT_SECRET,
            region_name="us-east-1",
            config=Config(s3={"addressing_style": "virtual"}, signature_version="s3v4"),
        )
        url = virtual.generate_presigned_url(
            "get_object", Params={"Bucket": "vhost", "Key": "health/live"}
        )
        host = f"vhost.s3.test:{world.port}"
        assert url.startswith(f"http://{host}/health/live?")
        ask = urllib.request.Request(
            url.replace(host, f"127.0.0.1:{world.port}", 1), headers={"Host": host}
        )
        assert urllib.request.urlopen(ask, timeout=10).read() == b"an object"


# ---- objects ----------------------------------------------------------------------------------------


def test_put_get_head_delete_with_everything(s3: Any, bucket: str) -> None:
    body = b"hello world"
    put = s3.put_object(
        Bucket=bucket,
        Key="k",
        Body=body,
        ContentType="text/plain",
        CacheControl="max-age=1",
        ContentDisposition="inline",
        ContentEncoding="gzip",
        ContentLanguage="en",
        Metadata={"colour": "blue", "Upper": "X"},
        Tagging="a=1&b=2%20c",
    )
    etag = f'"{hashlib.md5(body).hexdigest()}"'
    assert put["ETag"] == etag
    assert put["ChecksumCRC32"] == checksum("CRC32", body)
    head = s3.head_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    got = s3.get_object(Bucket=bucket, Key="k", VersionId="null")
    assert got["Body"].read() == body
    for answer in (head, got):
        assert answer["ETag"] == etag
        assert answer["ContentLength"] == len(body)
        assert answer["ContentType"] == "text/plain"
        assert answer["CacheControl"] == "max-age=1"
        assert answer["ContentEncoding"] == "gzip"
        assert answer["ContentLanguage"] == "en"
        assert answer["Metadata"] == {"colour": "blue", "upper": "X"}
        assert answer["ChecksumCRC32"] == checksum("CRC32", body)
        assert answer["ChecksumType"] == "FULL_OBJECT"
        assert answer["TagCount"] == 2
        assert abs(answer["LastModified"] - datetime.now(UTC)) < timedelta(minutes=5)
    tags = s3.get_object_tagging(Bucket=bucket, Key="k")["TagSet"]
    assert tags == [{"Key": "a", "Value": "1"}, {"Key": "b", "Value": "2 c"}]
    s3.delete_object(Bucket=bucket, Key="k")
    s3.delete_object(Bucket=bucket, Key="k")  # what is not there is deleted as well
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key="k")
    assert code_of(error) == ("NoSuchKey", 404)
    with pytest.raises(ClientError) as error:
        s3.head_object(Bucket=bucket, Key="k")
    assert code_of(error)[1] == 404


@pytest.mark.parametrize("key", ODD_KEYS, ids=range(len(ODD_KEYS)))
def test_odd_keys_are_kept_exactly(s3: Any, bucket: str, key: str) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert s3.get_object(Bucket=bucket, Key=key)["Body"].read() == key.encode()
    listed = s3.list_objects_v2(Bucket=bucket)["Contents"]
    assert [one["Key"] for one in listed] == [key]
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": key})
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == key.encode()
    deleted = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "copy"}]})
    assert deleted["Deleted"] == [{"Key": "copy"}]
    s3.delete_object(Bucket=bucket, Key=key)
    assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "CRC64NVME", "SHA1", "SHA256"])
@pytest.mark.parametrize("streamed", [False, True])
def test_checksums_of_all_algorithms(s3: Any, bucket: str, algorithm: str, streamed: bool) -> None:
    data = bytes(range(256)) * 1500
    body: Any = io.BytesIO(data) if streamed else data
    field = f"Checksum{algorithm}"
    put = s3.put_object(Bucket=bucket, Key="k", Body=body, ChecksumAlgorithm=algorithm)
    assert put[field] == checksum(algorithm, data)
    got = s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")
    assert got[field] == checksum(algorithm, data)
    assert got["Body"].read() == data  # botocore checks the checksum itself as well
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="k", Body=b"x", **{field: checksum(algorithm, b"y")})
    assert code_of(error) == ("BadDigest", 400)
    assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == data


def test_bodies_in_every_signed_form(world: World, bucket: str) -> None:
    data = b"0123456789" * 30_000
    for config in (
        {"request_checksum_calculation": "when_required"},
        {"s3": {"payload_signing_enabled": True}},
        {"s3": {"payload_signing_enabled": False}},
        {"request_checksum_calculation": "when_supported"},
    ):
        s3 = client_of(world, **config)
        for body in (data, io.BytesIO(data)):
            s3.put_object(Bucket=bucket, Key="k", Body=body)
            assert s3.get_object(Bucket=bucket, Key="k")["Body"].read() == data


def test_ranges(s3: Any, bucket: str) -> None:
    data = bytes(range(200))
    s3.put_object(Bucket=bucket, Key="k", Body=data)
    for text, want, shown in (
        ("bytes=0-9", data[:10], "bytes 0-9/200"),
        ("bytes=190-", data[190:], "bytes 190-199/200"),
        ("bytes=-5", data[-5:], "bytes 195-199/200"),
        ("bytes=-500", data, "bytes 0-199/200"),
        ("bytes=100-9999", data[100:], "bytes 100-199/200"),
    ):
        got = s3.get_object(Bucket=bucket, Key="k", Range=text)
        assert (got["Body"].read(), got["ContentRange"]) == (want, shown)
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 206
        head = s3.head_object(Bucket=bucket, Key="k", Range=text)
        assert (head["ContentLength"], head["ContentRange"]) == (len(want), shown)
    for text in ("bytes=9-1", "lines=1-2", "bytes=a-b", "bytes=0-1,5-6", "bytes="):
        got = s3.get_object(Bucket=bucket, Key="k", Range=text)
        assert got["Body"].read() == data
        assert got["ResponseMetadata"]["HTTPStatusCode"] == 200
    for text in ("bytes=200-", "bytes=-0", "bytes=500-600"):
        with pytest.raises(ClientError) as error:
            s3.get_object(Bucket=bucket, Key="k", Range=text)
        assert code_of(error) == ("InvalidRange", 416)
        assert error.value.response["ResponseMetadata"]["HTTPHeaders"]["content-range"] == (
            "bytes */200"
        )
        with pytest.raises(ClientError) as error:
            s3.head_object(Bucket=bucket, Key="k", Range=text)
        assert code_of(error)[1] == 416


def test_conditional_reads_and_writes(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1")["ETag"]
    past, future = datetime(2001, 1, 1, tzinfo=UTC), datetime.now(UTC) + timedelta(hours=1)
    for call in (s3.get_object, s3.head_object):
        call(Bucket=bucket, Key="k", IfMatch=etag)
        call(Bucket=bucket, Key="k", IfNoneMatch='"other"', IfModifiedSince=future)
        call(Bucket=bucket, Key="k", IfMatch=etag, IfUnmodifiedSince=past)
        for condition, status in (
            ({"IfMatch": '"other"'}, 412),
            ({"IfUnmodifiedSince": past}, 412),
            ({"IfNoneMatch": etag}, 304),
            ({"IfModifiedSince": future}, 304),
        ):
            with pytest.raises(ClientError) as error:
                call(Bucket=bucket, Key="k", **condition)
            assert code_of(error)[1] == status
            if status == 304:
                assert error.value.response["ResponseMetadata"]["HTTPHeaders"]["etag"] == etag
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*")
    assert code_of(error) == ("PreconditionFailed", 412)
    with pytest.raises(ClientError) as error:
        s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch='"other"')
    assert code_of(error) == ("PreconditionFailed", 412)
    with pytest.raises(ClientError) as error:
        s3.delete_object(Bucket=bucket, Key="k", IfMatch='"other"')
    assert code_of(error) == ("PreconditionFailed", 412)
    s3.put_object(Bucket=bucket, Key="k", Body=b"2", IfMatch=etag)
    s3.put_object(Bucket=bucket, Key="new", Body=b"2", IfNoneMatch="*")


def test_copy_with_its_directives_and_conditions(s3: Any, bucket: str) -> None:
    etag = s3.put_object(
        Bucket=bucket,
        Key="a",
        Body=b"data",
        Metadata={"m": "1"},
        ContentType="text/a",
        Tagging="t=1",
    )["ETag"]
    source = {"Bucket": bucket, "Key": "a"}
    copied = s3.copy_object(Bucket=bucket, Key="b", CopySource=source)
    assert copied["CopyObjectResult"]["ETag"] == etag
    head = s3.head_object(Bucket=bucket, Key="b")
    assert (head["Metadata"], head["ContentType"]) == ({"m": "1"}, "text/a")
    s3.copy_object(
        Bucket=bucket, Key="a", CopySource=source, MetadataDirective="REPLACE", Metadata={"m": "2"}
    )
    assert s3.head_object(Bucket=bucket, Key="a")["Metadata"] == {"m": "2"}
    assert s3.get_object_tagging(Bucket=bucket, Key="a")["TagSet"] == [{"Key": "t", "Value": "1"}]
    s3.copy_object(
        Bucket=bucket, Key="c", CopySource=source, TaggingDirective="REPLACE", Tagging="n=2"
    )
    assert s3.head_object(Bucket=bucket, Key="c")["Metadata"] == {"m": "2"}
    assert s3.get_object_tagging(Bucket=bucket, Key="c")["TagSet"] == [{"Key": "n", "Value": "2"}]
    with pytest.raises(ClientError) as error:
        s3.copy_object(Bucket=bucket, Key="a", CopySource=source)
    assert code_of(error) == ("InvalidRequest", 400)
    for condition in ({"CopySourceIfMatch": '"no"'}, {"CopySourceIfNoneMatch": etag}):
        with pytest.raises(ClientError) as error:
            s3.copy_object(Bucket=bucket, Key="d", CopySource=source, **condition)
        assert code_of(error) == ("PreconditionFailed", 412)
    with pytest.raises(ClientError) as error:
        s3.copy_object(Bucket=bucket, Key="d", CopySource={"Bucket": bucket, "Key": "none"})
    assert code_of(error) == ("NoSuchKey", 404)


# ---- listings ---------------------------------------------------------------------------------------


def test_listings_page_and_group(s3: Any, bucket: str) -> None:
    keys = sorted([f"d{n}/x{m}" for n in range(3) for m in range(3)] + ["top", "zoo é+&"])
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")
    for operation, size in (
        ("list_objects_v2", 2),
        ("list_objects", 3),
        ("list_object_versions", 2),
    ):
        pages = s3.get_paginator(operation).paginate(
            Bucket=bucket, PaginationConfig={"PageSize": size}
        )
        found = [
            one["Key"] for page in pages for one in page.get("Contents", page.get("Versions", []))
        ]
        assert found == keys, operation
        grouped = list(
            s3.get_paginator(operation).paginate(
                Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1}
            )
        )
        prefixes = [one["Prefix"] for page in grouped for one in page.get("CommonPrefixes", [])]
        assert prefixes == ["d0/", "d1/", "d2/"], operation
    got = s3.list_objects_v2(Bucket=bucket, Prefix="d1/", StartAfter="d1/x0", FetchOwner=True)
    assert [one["Key"] for one in got["Contents"]] == ["d1/x1", "d1/x2"]
    assert got["Contents"][0]["Owner"]["DisplayName"] == "root"
    none = s3.list_objects_v2(Bucket=bucket, MaxKeys=0)
    assert (none["KeyCount"], none["IsTruncated"]) == (0, False)
    with pytest.raises(ClientError) as error:
        s3.list_objects_v2(Bucket=bucket, ContinuationToken="nonsense!")
    assert code_of(error) == ("InvalidArgument", 400)
    with pytest.raises(ClientError) as error:
        s3.list_objects_v2(Bucket="no-such-bucket-here")
    assert code_of(error) == ("NoSuchBucket", 404)


def test_delete_objects_reports_each_key(s3: Any, bucket: str) -> None:
    keys = [f"k{n}" for n in range(40)]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    wanted = [{"Key": key} for key in [*keys, "absent"]]
    wanted += [{"Key": "k1", "VersionId": "other"}, {"Key": "n" * 1025}]
    got = s3.delete_objects(Bucket=bucket, Delete={"Objects": wanted})
    assert [one["Key"] for one in got["Deleted"]] == [*keys, "absent"]
    assert [one["Code"] for one in got["Errors"]] == ["NoSuchVersion", "KeyTooLongError"]
    quiet = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}], "Quiet": True})
    assert "Deleted" not in quiet


# ---- multipart --------------------------------------------------------------------------------------


def test_multipart_from_create_to_parts_of_the_object(s3: Any, bucket: str) -> None:
    upload = s3.create_multipart_upload(
        Bucket=bucket, Key="m", ChecksumAlgorithm="CRC32", Metadata={"a": "b"}
    )
    assert (upload["ChecksumAlgorithm"], upload["ChecksumType"]) == ("CRC32", "COMPOSITE")
    upload_id = upload["UploadId"]
    pieces = [bytes([n]) * (5 * MIB) for n in range(2)] + [b"tail"]
    parts = []
    for number, piece in enumerate(pieces, 1):
        part = s3.upload_part(
            Bucket=bucket, Key="m", UploadId=upload_id, PartNumber=number, Body=piece
        )
        parts.append(
            {"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]}
        )
    uploads = s3.list_multipart_uploads(Bucket=bucket)["Uploads"]
    assert [(one["Key"], one["UploadId"]) for one in uploads] == [("m", upload_id)]
    listed = list(
        s3.get_paginator("list_parts").paginate(
            Bucket=bucket, Key="m", UploadId=upload_id, PaginationConfig={"PageSize": 2}
        )
    )
    assert [one["PartNumber"] for page in listed for one in page["Parts"]] == [1, 2, 3]
    assert listed[0]["ChecksumAlgorithm"] == "CRC32"
    done = s3.complete_multipart_upload(
        Bucket=bucket,
        Key="m",
        UploadId=upload_id,
        MultipartUpload={"Parts": parts},
        MpuObjectSize=10 * MIB + 4,
    )
    assert done["ETag"].endswith('-3"')
    assert done["ChecksumType"] == "COMPOSITE" and done["ChecksumCRC32"].endswith("-3")
    assert done["Location"].endswith(f"/{bucket}/m")
    got = s3.get_object(Bucket=bucket, Key="m", PartNumber=3)
    assert (got["Body"].read(), got["PartsCount"]) == (b"tail", 3)
    assert got["ContentRange"] == f"bytes {10 * MIB}-{10 * MIB + 3}/{10 * MIB + 4}"
    head = s3.head_object(Bucket=bucket, Key="m", PartNumber=1, ChecksumMode="ENABLED")
    assert (head["ContentLength"], head["PartsCount"]) == (5 * MIB, 3)
    assert head["ChecksumCRC32"] == checksum("CRC32", pieces[0])
    assert s3.get_object(Bucket=bucket, Key="m")["Body"].read() == b"".join(pieces)
    attributes = s3.get_object_attributes(
        Bucket=bucket,
        Key="m",
        ObjectAttributes=["ETag", "Checksum", "ObjectParts", "ObjectSize", "StorageClass"],
    )
    assert attributes["ETag"] == done["ETag"].strip('"')
    assert attributes["ObjectSize"] == 10 * MIB + 4
    assert attributes["ObjectParts"]["TotalPartsCount"] == 3
    assert [one["Size"] for one in attributes["ObjectParts"]["Parts"]] == [5 * MIB, 5 * MIB, 4]
    with pytest.raises(ClientError) as error:
        s3.get_object(Bucket=bucket, Key="m", PartNumber=4)
    assert code_of(error)[1] == 416


def test_multipart_by_the_transfer_manager(s3: Any, bucket: str) -> None:
    data = bytes(range(256)) * (18 * 4096)
    s3.upload_fileobj(io.BytesIO(data), bucket, "t")
    target = io.BytesIO()
    s3.download_fileobj(bucket, "t", target)
    assert target.getvalue() == data


def test_multipart_mistakes(s3: Any, bucket: str) -> None:
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    named = {"Bucket": bucket, "Key": "m", "UploadId": upload_id}
    etags = [s3.upload_part(**named, PartNumber=n, Body=b"small")["ETag"] for n in (1, 2)]

    def complete(parts: list[tuple[int, str]], **more: Any) -> Any:
        listed = [{"PartNumber": n, "ETag": etag} for n, etag in parts]
        return s3.complete_multipart_upload(**named, MultipartUpload={"Parts": listed}, **more)

    for parts, code in (
        ([(2, etags[1]), (1, etags[0])], "InvalidPartOrder"),
        ([(1, etags[0]), (1, etags[0])], "InvalidPartOrder"),
        ([(1, etags[0]), (2, etags[1])], "EntityTooSmall"),
        ([(1, '"0123"')], "InvalidPart"),
        ([(3, etags[0])], "InvalidPart"),
        ([], "MalformedXML"),
        ([(10_001, etags[0])], "InvalidArgument"),
    ):
        with pytest.raises(ClientError) as error:
            complete(parts)
        assert code_of(error) == (code, 400)
    with pytest.raises(ClientError) as error:
        complete([(1, etags[0])], MpuObjectSize=77)
    assert code_of(error) == ("InvalidRequest", 400)
    for number in (0, 10_001):
        with pytest.raises(ClientError) as error:
            s3.upload_part(**named, PartNumber=number, Body=b"x")
        assert code_of(error) == ("InvalidArgument", 400)
    s3.abort_multipart_upload(**named)
    for call in (
        lambda: s3.abort_multipart_upload(**named),
        lambda: s3.list_parts(**named),
        lambda: s3.upload_part(**named, PartNumber=1, Body=b"x"),
        lambda: complete([(1, etags[0])]),
    ):
        with pytest.raises(ClientError) as error:
            call()
        assert code_of(error) == ("NoSuchUpload", 404)


def test_upload_part_copy(s3: Any, bucket: str) -> None:
    data = bytes(range(256)) * (24 * 1024)
    s3.put_object(Bucket=bucket, Key="source", Body=data)
    upload_id = s3.create_multipart_upload(Bucket=bucket, Key="m")["UploadId"]
    named = {"Bucket": bucket, "Key": "m", "UploadId": upload_id}
    source = {"Bucket": bucket, "Key": "source"}
    first = s3.upload_part_copy(
        **named, PartNumber=1, CopySource=source, CopySourceRange=f"bytes=0-{5 * MIB - 1}"
    )["CopyPartResult"]["ETag"]
    second = s3.upload_part_copy(**named, PartNumber=2, CopySource=source)["CopyPartResult"]["ETag"]
    s3.complete_multipart_upload(
        **named,
        MultipartUpload={
            "Parts": [{"PartNumber": 1, "ETag": first}, {"PartNumber": 2, "ETag": second}]
        },
    )
    assert s3.get_object(Bucket=bucket, Key="m")["Body"].read() == data[: 5 * MIB] + data
    with pytest.raises(ClientError) as error:
        s3.upload_part_copy(**named, PartNumber=1, CopySource=source, CopySourceRange="bytes=5-")
    assert code_of(error) == ("InvalidArgument", 400)


# ---- who may --------------------------------------------------------------------------------------------


def test_presigned_urls(world: World, s3: Any, bucket: str) -> None:
    signer = client_of(world, signature_version="s3v4")
    name = {"Bucket": bucket, "Key": "p/ü +%"}
    url = signer.generate_presigned_url("put_object", Params=name)
    put = urllib.request.Request(url, data=b"by url", method="PUT")
    assert urllib.request.urlopen(put, timeout=10).status == 200
    url = signer.generate_presigned_url(
        "get_object", Params={**name, "ResponseContentType": "text/x-odd"}
    )
    with urllib.request.urlopen(url, timeout=10) as answer:
        assert answer.read() == b"by url"
        assert answer.headers["Content-Type"] == "text/x-odd"
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(url.replace("x-odd", "x-other"), timeout=10)
    assert error.value.code == 403
    assert b"<Code>SignatureDoesNotMatch</Code>" in error.value.read()


def test_denied_wrong_and_unavailable_are_three_things(world: World, s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"x")
    with pytest.raises(ClientError) as error:
        client_of(world, ROOT, "wrong-secret").get_object(Bucket=bucket, Key="k")
    assert code_of(error) == ("SignatureDoesNotMatch", 403)
    with pytest.raises(ClientError) as error:
        client_of(world, "nobody", "x").get_object(Bucket=bucket, Key="k")
    assert code_of(error) == ("InvalidAccessKeyId", 403)
    guest = client_of(world, GUEST, GUEST_SECRET)
    with pytest.raises(ClientError) as error:
        guest.get_object(Bucket=bucket, Key="k")
    assert code_of(error) == ("AccessDenied", 403)
    world.identity.guest_actions = {"s3:GetObject"}
    assert guest.get_object(Bucket=bucket, Key="k")["Body"].read() == b"x"
    with pytest.raises(ClientError) as error:
        guest.get_object(Bucket=bucket, Key="hidden")  # may not list, so may not learn
    assert code_of(error) == ("AccessDenied", 403)
    world.identity.guest_actions = {"s3:PutObject"}
    with pytest.raises(ClientError) as error:  # a copy reads its source
        guest.copy_object(Bucket=bucket, Key="l", CopySource={"Bucket": bucket, "Key": "k"})
    assert code_of(error) == ("AccessDenied", 403)
    got = guest.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "k"}]})
    assert [one["Code"] for one in got["Errors"]] == ["AccessDenied"]
    world.identity.guest_actions = set()


@pytest.mark.parametrize(
    "row", [row for row in OPERATIONS if not row.implemented], ids=lambda r: r.name
)
def test_what_is_not_done_says_so_by_name(world: World, s3: Any, bucket: str, row: Any) -> None:
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    path = f"/{bucket}" + ("/k" if row.level is Level.OBJECT else "")
    query = "&".join(f"{item}=1" if item == "id" else item for item in row.query)
    url = f"http://127.0.0.1:{world.port}{path}" + (f"?{query}" if query else "")
    signed = AWSRequest(row.method, url, data=b"")
    S3SigV4Auth(Credentials(ROOT, ROOT_SECRET), "s3", "us-east-1").add_auth(signed)
    ask = urllib.request.Request(url, method=row.method, headers=dict(signed.headers))
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(ask, timeout=10)
    body = error.value.read().decode()
    assert error.value.code == 501
    assert f"<Code>NotImplemented</Code><Message>{row.name} is not implemented</Message>" in body
