"""Uploads by a form, with forms as boto3 makes them."""

from __future__ import annotations

import base64
import datetime
import json
from unittest import mock

import pytest
from botocore.auth import S3SigV4PostAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from iam import sigv4
from iam.canonical import date_seconds, sign_string, signing_key
from iam.errors import AuthError
from iam.sigv4 import AuthKind, PostPolicy

SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
NOW_S = date_seconds("20151229T000000Z")
CONDITIONS: list[object] = [
    {"bucket": "b"},
    ["starts-with", "$key", "user/"],
    {"acl": "public-read"},
    ["starts-with", "$Content-Type", "image/"],
    ["Content-Length-Range", 1, "100"],
]
FIELDS = {"bucket": "b", "key": "user/1", "acl": "public-read", "content-type": "image/png"}
EXPIRATION = "2015-12-30T12:00:00.000Z"


def form(conditions: object = None, expiration: object = EXPIRATION, **more: str) -> dict[str, str]:
    """A form that botocore has signed."""
    policy = {
        "expiration": expiration,
        "conditions": list(CONDITIONS) if conditions is None else conditions,
    }
    request = AWSRequest("POST", "http://node:9000/b")
    fields: dict[str, str] = {}
    request.context = {"s3-presign-post-fields": fields, "s3-presign-post-policy": policy}
    moment = datetime.datetime.fromtimestamp(NOW_S, datetime.UTC)
    with mock.patch("botocore.auth.get_current_datetime", lambda: moment):
        S3SigV4PostAuth(Credentials("AKID", SECRET), "s3", "us-east-1").add_auth(request)
    return FIELDS | {name.lower(): value for name, value in fields.items()} | more


def signed(document: bytes) -> dict[str, str]:
    """A form around any bytes, with a signature that holds."""
    fields = form()
    fields["policy"] = base64.b64encode(document).decode()
    key = signing_key(SECRET, "20151229", "us-east-1", "s3")
    return fields | {"x-amz-signature": sign_string(key, fields["policy"])}


def verify(fields: dict[str, str], now_s: float = NOW_S, region: str = "us-east-1") -> PostPolicy:
    return sigv4.verify_post_policy(fields, SECRET, now_s, region=region)


def refused(fields: dict[str, str], **options: object) -> AuthError:
    with pytest.raises(AuthError) as caught:
        verify(fields, **options)  # type: ignore[arg-type]
    return caught.value


def test_a_form_of_boto_holds() -> None:
    fields = form()
    auth = sigv4.parse_post_form(fields)
    assert auth.kind is AuthKind.POST_POLICY and auth.access_key == "AKID"
    policy = verify(fields | {"file": "f", "x-ignore-me": "1"})
    assert (policy.min_bytes, policy.max_bytes) == (1, 100)
    policy.check_size(1)
    policy.check_size(100)
    for size, code in ((0, "EntityTooSmall"), (101, "EntityTooLarge")):
        with pytest.raises(AuthError) as caught:
            policy.check_size(size)
        assert caught.value.code == code


def test_the_signature_covers_the_policy() -> None:
    fields = form()
    other = json.loads(base64.b64decode(fields["policy"]))
    other["expiration"] = "2035-01-01T00:00:00Z"
    fields["policy"] = base64.b64encode(json.dumps(other).encode()).decode()
    assert refused(fields).code == "SignatureDoesNotMatch"
    assert refused(form() | {"x-amz-signature": "0" * 64}).code == "SignatureDoesNotMatch"
    assert refused(form() | {"x-amz-signature": "é"}).code == "SignatureDoesNotMatch"


@pytest.mark.parametrize(
    "change",
    [
        {"bucket": "other"},
        {"key": "elsewhere"},
        {"acl": "private"},
        {"content-type": "text/html"},
        {"x-amz-meta-extra": "1"},
    ],
)
def test_fields_outside_the_policy_are_refused(change: dict[str, str]) -> None:
    error = refused(form() | change)
    assert error.code == "AccessDenied" and "according to Policy" in error.message


def test_an_expired_policy_is_refused() -> None:
    expires_s = date_seconds("20151230T120000Z")
    verify(form(), now_s=expires_s - 1)
    assert "expired" in refused(form(), now_s=expires_s).message


@pytest.mark.parametrize(
    "conditions",
    [
        "x",
        [],
        [[]],
        [["like", "$key", "a"]],
        [["eq", "key", "a"]],
        [["eq", "$key"]],
        [{"acl": 5}],
        [{"a": "b", "c": "d"}],
        [["content-length-range", -1, 5]],
        [["content-length-range", True, 5]],
        [["content-length-range", 0, "many"]],
        [{"acl": "public-read"}] * 300,
    ],
)
def test_policies_that_make_no_sense(conditions: object) -> None:
    document = {"expiration": EXPIRATION, "conditions": conditions}
    assert refused(signed(json.dumps(document).encode())).code == "InvalidPolicyDocument"


@pytest.mark.parametrize("document", [b"", b"{", b"[]", b"\xff", b"[" * 15000, b" " * 30000])
def test_documents_that_are_none(document: bytes) -> None:
    assert refused(signed(document)).code == "InvalidPolicyDocument"


@pytest.mark.parametrize("expiration", [None, 5, "soon", "0000-00-00T00:00:00Z"])
def test_expirations_that_make_no_sense(expiration: object) -> None:
    assert refused(form(expiration=expiration)).code == "InvalidPolicyDocument"


def test_incomplete_forms() -> None:
    for name in ("x-amz-algorithm", "x-amz-credential", "x-amz-date"):
        fields = form()
        del fields[name]
        assert refused(fields).code == "InvalidArgument"
    for change in (
        {"x-amz-algorithm": "AWS4-HMAC-SHA1"},
        {"x-amz-date": "20150101T000000Z"},
        {"x-amz-credential": "AKID/20151229/us-east-1/s3"},
    ):
        assert refused(form() | change).code == "InvalidArgument"
    assert refused(form(), region="eu-1").code == "InvalidArgument"
    assert "SigV2" in refused({"policy": "x", "signature": "y"}).message
    assert refused({"x-amz-signature": "y"}).code == "InvalidArgument"


def test_a_form_without_a_policy_is_anonymous() -> None:
    assert sigv4.parse_post_form(FIELDS).kind is AuthKind.ANONYMOUS
    assert refused(dict(FIELDS)).code == "AccessDenied"
