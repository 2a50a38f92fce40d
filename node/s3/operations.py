"""The operation table: one row for each thing a client may ask, and nothing is decided elsewhere.

Start-up compares its policy names with node.guard.policy.S3_OPERATIONS; a contract test compares it
with botocore's model.
"""

from __future__ import annotations

from node.s3 import unsupported
from node.s3.handlers import attributes, buckets, copying, listing, multipart, objects
from node.s3.handlers.refused import not_implemented
from node.s3.shapes import BodyKind, Handler, Level, Operation

DEFAULT_POLICY = "DEFAULT"

_RESPONSE_OVERRIDES = (
    "response-cache-control response-content-disposition response-content-encoding "
    "response-content-language response-content-type response-expires"
)


def _row(
    name: str,
    method: str,
    level: Level,
    action: str,
    handler: Handler,
    *,
    body: BodyKind = BodyKind.NONE,
    query: str = "",
    headers: str = "",
    optional: str = "",
    version_action: str = "",
    policy: str = "",
) -> Operation:
    return Operation(
        name=name,
        method=method,
        level=level,
        action=action,
        handler=handler,
        policy=policy or name,
        body=body,
        query=tuple(query.split()),
        headers=tuple(headers.split()),
        optional=frozenset(optional.split()),
        version_action=version_action,
        implemented=True,
    )


_SERVICE, _BUCKET, _OBJECT = Level.SERVICE, Level.BUCKET, Level.OBJECT

IMPLEMENTED: tuple[Operation, ...] = (
    _row(
        "ListBuckets",
        "GET",
        _SERVICE,
        "s3:ListAllMyBuckets",
        buckets.list_buckets,
        optional="max-buckets continuation-token prefix bucket-region",
    ),
    _row("CreateBucket", "PUT", _BUCKET, "s3:CreateBucket", buckets.create, body=BodyKind.XML),
    _row("HeadBucket", "HEAD", _BUCKET, "s3:ListBucket", buckets.head),
    _row("DeleteBucket", "DELETE", _BUCKET, "s3:DeleteBucket", buckets.delete),
    _row(
        "GetBucketLocation",
        "GET",
        _BUCKET,
        "s3:GetBucketLocation",
        buckets.location,
        query="location",
    ),
    _row(
        "GetBucketVersioning",
        "GET",
        _BUCKET,
        "s3:GetBucketVersioning",
        buckets.versioning,
        query="versioning",
        policy=DEFAULT_POLICY,
    ),
    _row(
        "ListObjects",
        "GET",
        _BUCKET,
        "s3:ListBucket",
        listing.list_objects,
        optional="prefix delimiter marker max-keys encoding-type",
    ),
    _row(
        "ListObjectsV2",
        "GET",
        _BUCKET,
        "s3:ListBucket",
        listing.list_objects_v2,
        query="list-type=2",
        optional="prefix delimiter max-keys encoding-type start-after continuation-token fetch-owner",
    ),
    _row(
        "ListObjectVersions",
        "GET",
        _BUCKET,
        "s3:ListBucketVersions",
        listing.list_versions,
        query="versions",
        optional="prefix delimiter max-keys encoding-type key-marker version-id-marker",
        policy=DEFAULT_POLICY,
    ),
    _row(
        "ListMultipartUploads",
        "GET",
        _BUCKET,
        "s3:ListBucketMultipartUploads",
        multipart.list_uploads,
        query="uploads",
        optional="prefix delimiter max-uploads encoding-type key-marker upload-id-marker",
    ),
    _row(
        "DeleteObjects",
        "POST",
        _BUCKET,
        "",  # each key is authorized by itself
        objects.delete_many,
        query="delete",
        body=BodyKind.XML,
    ),
    _row("PutObject", "PUT", _OBJECT, "s3:PutObject", objects.put, body=BodyKind.PAYLOAD),
    _row(
        "CopyObject",
        "PUT",
        _OBJECT,
        "s3:PutObject",
        copying.copy_object,
        headers="x-amz-copy-source",
    ),
    _row(
        "GetObject",
        "GET",
        _OBJECT,
        "s3:GetObject",
        objects.get,
        body=BodyKind.STREAM,
        optional=f"partNumber versionId {_RESPONSE_OVERRIDES}",
        version_action="s3:GetObjectVersion",
    ),
    _row(
        "HeadObject",
        "HEAD",
        _OBJECT,
        "s3:GetObject",
        objects.head,
        optional=f"partNumber versionId {_RESPONSE_OVERRIDES}",
        version_action="s3:GetObjectVersion",
    ),
    _row(
        "DeleteObject",
        "DELETE",
        _OBJECT,
        "s3:DeleteObject",
        objects.delete,
        optional="versionId",
        version_action="s3:DeleteObjectVersion",
    ),
    _row(
        "GetObjectAttributes",
        "GET",
        _OBJECT,
        "s3:GetObjectAttributes",
        attributes.get_attributes,
        query="attributes",
        optional="versionId",
        version_action="s3:GetObjectVersionAttributes",
    ),
    _row(
        "GetObjectTagging",
        "GET",
        _OBJECT,
        "s3:GetObjectTagging",
        attributes.get_tagging,
        query="tagging",
        optional="versionId",
        version_action="s3:GetObjectVersionTagging",
        policy=DEFAULT_POLICY,
    ),
    _row(
        "CreateMultipartUpload",
        "POST",
        _OBJECT,
        "s3:PutObject",
        multipart.create,
        query="uploads",
    ),
    _row(
        "UploadPart",
        "PUT",
        _OBJECT,
        "s3:PutObject",
        multipart.upload_part,
        query="partNumber uploadId",
        body=BodyKind.PAYLOAD,
    ),
    _row(
        "UploadPartCopy",
        "PUT",
        _OBJECT,
        "s3:PutObject",
        copying.copy_part,
        query="partNumber uploadId",
        headers="x-amz-copy-source",
    ),
    _row(
        "CompleteMultipartUpload",
        "POST",
        _OBJECT,
        "s3:PutObject",
        multipart.complete,
        query="uploadId",
        body=BodyKind.XML,
    ),
    _row(
        "AbortMultipartUpload",
        "DELETE",
        _OBJECT,
        "s3:AbortMultipartUpload",
        multipart.abort,
        query="uploadId",
    ),
    _row(
        "ListParts",
        "GET",
        _OBJECT,
        "s3:ListMultipartUploadParts",
        multipart.list_parts,
        query="uploadId",
        optional="max-parts part-number-marker encoding-type",
    ),
)


def _refused(text: str, level: Level) -> tuple[Operation, ...]:
    rows = []
    for line in text.strip().splitlines():
        name, method, *query = line.split()
        rows.append(
            Operation(
                name=name,
                method=method,
                level=level,
                action="",
                handler=not_implemented,
                policy=DEFAULT_POLICY,
                body=BodyKind.NONE,
                query=tuple(query),
                headers=(),
                optional=unsupported.OPTIONAL_KEYS,
                version_action="",
                implemented=False,
            )
        )
    return tuple(rows)


UNSUPPORTED: tuple[Operation, ...] = (
    *_refused(unsupported.BUCKET_OPERATIONS, _BUCKET),
    *_refused(unsupported.OBJECT_OPERATIONS, _OBJECT),
)

OPERATIONS: tuple[Operation, ...] = (*IMPLEMENTED, *UNSUPPORTED)


def policy_names() -> frozenset[str]:
    """The rows that node.guard.policy.S3_OPERATIONS must have, no more and no fewer."""
    return frozenset(row.policy for row in OPERATIONS)
