"""Everyday work with minio-py. Run by its own environment's Python: HOST ACCESS_KEY SECRET_KEY."""

from __future__ import annotations

import hashlib
import io
import sys
import urllib.request

from minio import Minio
from minio.commonconfig import ComposeSource, CopySource
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

MIB = 1024 * 1024
BUCKET, LARGE = "minio-bucket", "large ü+x"


def read(client: Minio, key: str, **more: int) -> bytes:
    answer = client.get_object(BUCKET, key, **more)
    try:
        return bytes(answer.read())
    finally:
        answer.close()


def main(host: str, access_key: str, secret_key: str) -> None:
    client = Minio(host, access_key=access_key, secret_key=secret_key, secure=False)
    data = hashlib.shake_128(b"minio").digest(12 * MIB + 1)
    assert not client.bucket_exists(BUCKET)
    client.make_bucket(BUCKET)
    client.put_object(BUCKET, "small", io.BytesIO(b"hello"), 5, metadata={"a": "b"})
    assert client.stat_object(BUCKET, "small").metadata["x-amz-meta-a"] == "b"
    client.put_object(BUCKET, LARGE, io.BytesIO(data), -1, part_size=5 * MIB)
    assert read(client, LARGE) == data
    assert read(client, LARGE, offset=1000, length=5000) == data[1000:6000]
    client.copy_object(BUCKET, "copied", CopySource(BUCKET, LARGE))
    assert read(client, "copied") == data
    sources = [ComposeSource(BUCKET, LARGE), ComposeSource(BUCKET, "small")]
    client.compose_object(BUCKET, "composed", sources)
    assert read(client, "composed") == data + b"hello"
    url = client.presigned_put_object(BUCKET, "presigned")
    urllib.request.urlopen(urllib.request.Request(url, data=b"xyz", method="PUT"), timeout=30)
    with urllib.request.urlopen(
        client.presigned_get_object(BUCKET, "presigned"), timeout=30
    ) as got:
        assert got.read() == b"xyz"
    try:
        client.stat_object(BUCKET, "none")
    except S3Error as error:
        assert error.code == "NoSuchKey"
    else:
        raise AssertionError("there is no such key")
    names = [found.object_name for found in client.list_objects(BUCKET, recursive=True)]
    assert names == ["composed", "copied", LARGE, "presigned", "small"], names
    assert not list(client.remove_objects(BUCKET, [DeleteObject(name) for name in names]))
    client.remove_bucket(BUCKET)


if __name__ == "__main__":
    main(*sys.argv[1:])
