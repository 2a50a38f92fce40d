"""Buckets: list, create, look, delete, location, versioning state."""

from __future__ import annotations

from node import limits
from node.errors import BucketAlreadyExists, CodedError
from node.s3 import codec, documents
from node.s3 import headers as wire
from node.s3.codec import NAMESPACE, XML_DECLARATION, escape
from node.s3.replies import owner_element
from node.s3.shapes import Reply, Request, xml_reply

_DEFAULT_REGION = "us-east-1"


async def list_buckets(request: Request) -> Reply:
    query = request.query
    prefix = query.get("prefix", "")
    limit = limits.MAX_BUCKETS_LISTED
    if "max-buckets" in query:
        limit = codec.integer(query["max-buckets"], "max-buckets", 1, limits.MAX_BUCKETS_LISTED)
    after = codec.parse_list_token(token) if (token := query.get("continuation-token")) else ""
    region = query.get("bucket-region")
    found = sorted(
        (
            bucket
            for bucket in await request.store.list_buckets(deadline=request.deadline)
            if bucket.name > after and bucket.name.startswith(prefix)
        ),
        key=lambda bucket: bucket.name,
    )
    if region and region != request.services.region:
        found = []
    page, more = found[:limit], len(found) > limit
    rows = "".join(
        f"<Bucket><Name>{escape(bucket.name)}</Name>"
        f"<CreationDate>{codec.iso_date(round(bucket.created_s * 1e9))}</CreationDate>"
        f"<BucketRegion>{escape(request.services.region)}</BucketRegion></Bucket>"
        for bucket in page
    )
    token_element = (
        f"<ContinuationToken>{codec.list_token(page[-1].name)}</ContinuationToken>" if more else ""
    )
    prefix_element = f"<Prefix>{escape(prefix)}</Prefix>" if prefix else ""
    return xml_reply(
        f'{XML_DECLARATION}<ListAllMyBucketsResult xmlns="{NAMESPACE}">'
        f"{owner_element(request.owner)}<Buckets>{rows}</Buckets>{token_element}{prefix_element}"
        "</ListAllMyBucketsResult>"
    )


async def create(request: Request) -> Reply:
    wire.refuse_unsupported(request.headers)
    _check_location(documents.location_constraint(request.document), request.services.region)
    store, bucket, owner = request.store, request.bucket, request.owner
    try:
        await store.create_bucket(bucket, owner, deadline=request.deadline)
    except BucketAlreadyExists:
        info = await store.head_bucket(bucket, deadline=request.deadline)
        if info.owner != owner:
            raise CodedError(
                "BucketAlreadyExists",
                "The requested bucket name is not available. The bucket namespace is shared by all "
                "users of the system. Please select a different name and try again.",
                BucketName=bucket,
            ) from None
        if request.services.region != _DEFAULT_REGION:
            raise CodedError(
                "BucketAlreadyOwnedByYou",
                "Your previous request to create the named bucket succeeded and you already own it.",
                BucketName=bucket,
            ) from None
        # S3 in us-east-1 answers 200 to the owner's second creation, and clients rely on it.
    return Reply(headers=[(b"Location", f"/{bucket}".encode("ascii"))])


def _check_location(wanted: str, region: str) -> None:
    if not wanted or wanted == region or (wanted == "EU" and region == "eu-west-1"):
        return
    if region == _DEFAULT_REGION:
        raise CodedError(
            "InvalidLocationConstraint",
            "The specified location-constraint is not valid",
            LocationConstraint=wanted[:100],
        )
    raise CodedError(
        "IllegalLocationConstraintException",
        f"The {wanted[:100]} location constraint is incompatible for the region specific endpoint "
        "this request was sent to.",
    )


async def head(request: Request) -> Reply:
    await request.store.head_bucket(request.bucket, deadline=request.deadline)
    return Reply(headers=[(b"x-amz-bucket-region", request.services.region.encode("latin-1"))])


async def delete(request: Request) -> Reply:
    await request.store.delete_bucket(request.bucket, deadline=request.deadline)
    return Reply(status=204)


async def location(request: Request) -> Reply:
    await request.store.head_bucket(request.bucket, deadline=request.deadline)
    region = request.services.region
    text = "" if region == _DEFAULT_REGION else escape(region)
    return xml_reply(
        f'{XML_DECLARATION}<LocationConstraint xmlns="{NAMESPACE}">{text}</LocationConstraint>'
    )


async def versioning(request: Request) -> Reply:
    """Never enabled: the empty document."""
    await request.store.head_bucket(request.bucket, deadline=request.deadline)
    return xml_reply(f'{XML_DECLARATION}<VersioningConfiguration xmlns="{NAMESPACE}"/>')
