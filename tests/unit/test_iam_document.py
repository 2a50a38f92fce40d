"""Policy documents: what is taken, what is refused when it is written, and what is kept."""

from __future__ import annotations

import json

import pytest

from iam.document import MAX_DOCUMENT_BYTES, Effect, PolicyKind, parse
from iam.errors import MalformedPolicy

ALLOW = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::b/*"}


def text(*statements: object, **top: object) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": list(statements)} | top)


def refused(source: bytes | str, kind: PolicyKind = PolicyKind.IDENTITY, bucket: str = "") -> str:
    with pytest.raises(MalformedPolicy) as caught:
        parse(source, kind, bucket=bucket)
    return str(caught.value)


def test_a_document_keeps_its_text_and_tells_its_meaning() -> None:
    source = """{
      "Version": "2012-10-17", "Id": "one",
      "Statement": {"Sid": "S1", "Effect": "Deny", "NotAction": ["s3:Get*", "s3:List*"],
        "NotResource": "arn:aws:s3:::logs/${aws:username}/*",
        "Condition": {"NumericLessThan": {"s3:max-keys": 10.50}, "Bool": {"aws:SecureTransport": false}}}
    }"""
    document = parse(source.encode())
    assert document.text == source and document.id == "one" and document.variables
    (statement,) = document.statements
    assert (statement.sid, statement.effect) == ("S1", Effect.DENY)
    assert statement.not_action and statement.actions == ("s3:Get*", "s3:List*")
    assert statement.not_resource
    values = [(c.operator, c.key, c.values) for c in statement.conditions]
    assert values == [
        ("NumericLessThan", "s3:max-keys", ("10.50",)),
        ("Bool", "aws:SecureTransport", ("false",)),
    ]
    assert document == parse(source) and hash(document) == hash(parse(source))


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("", "not JSON"),
        ("[]", "object"),
        ("null", "object"),
        ("{} x", "not JSON"),
        (b"\xff\xfe", "UTF-8"),
        ("[" * 15000, "nested"),
        ('{"Version": NaN}', "not JSON"),
        (" " * (MAX_DOCUMENT_BYTES + 1), "larger"),
        ('{"Version": "2012-10-17", "Version": "2012-10-17"}', "twice"),
        (text(), "no statement"),
        (json.dumps({"Version": "2012-10-17"}), "no statement"),
        (text(ALLOW, Version="2020-01-01"), "Version"),
        (text(ALLOW, Comment="x"), "'Comment' is not known"),
        (text(ALLOW, Id=7), "Id"),
        (text("x"), "Statement[0]"),
        (text(ALLOW, ALLOW | {"Priority": 1}), "Statement[1]: the element 'Priority'"),
        (text(ALLOW | {"Effect": "allow"}), "Statement[0].Effect"),
        (text({k: v for k, v in ALLOW.items() if k != "Effect"}), "Effect"),
        (text({k: v for k, v in ALLOW.items() if k != "Action"}), "Action"),
        (text({k: v for k, v in ALLOW.items() if k != "Resource"}), "Resource"),
        (text(ALLOW | {"NotAction": "s3:*"}), "Action and NotAction"),
        (text(ALLOW | {"NotResource": "*"}), "Resource and NotResource"),
        (text(ALLOW | {"Action": []}), "empty"),
        (text(ALLOW | {"Action": 5}), "string"),
        (text(ALLOW | {"Action": "GetObject"}), "not a valid action"),
        (text(ALLOW | {"Action": "s3:Get Object"}), "not a valid action"),
        (text(ALLOW | {"Resource": "bucket/*"}), "not an ARN"),
        (text(ALLOW | {"Resource": "arn:aws:s3"}), "not an ARN"),
        (text(ALLOW | {"Resource": "arn:aws:s3:::b/${aws:nonsense}"}), "no policy variable"),
        (text(ALLOW | {"Resource": "arn:aws:s3:::b/${aws:username"}), "not closed"),
        (text(ALLOW | {"Resource": "arn:aws:s3:::b/${a b}"}), "condition key"),
        (text(ALLOW | {"Sid": 3}), "Sid"),
        (text(ALLOW | {"Sid": "a"}, ALLOW | {"Sid": "a"}), "unique"),
        (text(ALLOW | {"Principal": "*"}), "no Principal"),
    ],
)
def test_what_is_refused(source: bytes | str, says: str) -> None:
    assert says in refused(source)


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        ([], "object"),
        ({"StringEquals": {}}, "empty"),
        ({"StringSame": {"aws:username": "a"}}, "no condition operator"),
        ({"ForSomeValues:StringEquals": {"aws:username": "a"}}, "no condition operator"),
        ({"NullIfExists": {"aws:username": "true"}}, "no condition operator"),
        ({"ForAnyValue:Null": {"aws:username": "true"}}, "no condition operator"),
        ({"StringEquals": {"aws:nonsense": "a"}}, "no condition key"),
        ({"StringEquals": {"s3:ExistingObjectTag/": "a"}}, "no condition key"),
        ({"StringEquals": {"aws:username": []}}, "empty"),
        ({"StringEquals": {"aws:username": {"a": 1}}}, "strings, numbers"),
        ({"StringEquals": {"aws:username": "a", "AWS:Username": "b"}}, "twice"),
        ({"StringLike": {"aws:username": "${aws:nonsense}"}}, "no policy variable"),
        ({"NumericEquals": {"s3:max-keys": "ten"}}, "numbers"),
        ({"NumericEquals": {"s3:max-keys": "1e999"}}, "numbers"),
        ({"DateLessThan": {"aws:CurrentTime": "tomorrow"}}, "dates"),
        ({"Bool": {"aws:SecureTransport": "yes"}}, "true or false"),
        ({"Null": {"aws:username": "maybe"}}, "true or false"),
        ({"IpAddress": {"aws:SourceIp": "10.0.0.0/99"}}, "CIDR"),
        ({"BinaryEquals": {"aws:username": "*"}}, "base64"),
        ({"ArnLike": {"aws:PrincipalArn": "user/me"}}, "not an ARN"),
    ],
)
def test_conditions_that_are_refused(condition: object, says: str) -> None:
    assert says in refused(text(ALLOW | {"Condition": condition}))


def test_tag_keys_differ_by_case_and_other_keys_do_not() -> None:
    pairs = {"s3:ExistingObjectTag/a": "1", "s3:ExistingObjectTag/A": "2"}
    document = parse(text(ALLOW | {"Condition": {"StringEquals": pairs}}))
    assert len(document.statements[0].conditions) == 2


def test_principals_of_a_bucket_policy() -> None:
    def principals_of(value: object, effect: str = "Allow", name: str = "Principal") -> object:
        source = text(ALLOW | {name: value, "Effect": effect})
        return parse(source, PolicyKind.RESOURCE, bucket="b").statements[0].principals

    everyone = principals_of("*")
    assert everyone is not None and principals_of({"AWS": ["*"]}).everyone  # type: ignore[attr-defined]
    named = principals_of(
        {"AWS": ["123456789012", "arn:aws:iam::123456789012:user/a"], "CanonicalUser": "abc"},
        "Deny",
        "NotPrincipal",
    )
    assert named.negated and not named.everyone  # type: ignore[attr-defined]
    assert len(named.entries) == 3  # type: ignore[attr-defined]
    for wrong in ("x", {"AWS": "user"}, {"AWS": "arn:aws:iam::1:user/*"}, {"LDAP": "x"}, {}, []):
        refused(text(ALLOW | {"Principal": wrong}), PolicyKind.RESOURCE)
    assert "Deny only" in refused(text(ALLOW | {"NotPrincipal": "*"}), PolicyKind.RESOURCE)
    assert "one of Principal" in refused(text(ALLOW), PolicyKind.RESOURCE)


def test_a_bucket_policy_speaks_of_its_bucket_only() -> None:
    def put(resource: str) -> None:
        source = text(ALLOW | {"Principal": "*", "Resource": resource})
        parse(source, PolicyKind.RESOURCE, bucket="b")

    put("arn:aws:s3:::b")
    put("arn:aws:s3:::b/x/*")
    for other in ("*", "arn:aws:s3:::bb", "arn:aws:s3:::b*", "arn:aws:s3:::c/*"):
        with pytest.raises(MalformedPolicy, match="invalid resource"):
            put(other)
    other_service = text(ALLOW | {"Principal": "*", "Action": "iam:GetUser"})
    assert "not a valid action" in refused(other_service, PolicyKind.RESOURCE, "b")


def test_a_trust_policy_has_principals_and_no_resource() -> None:
    statement = {
        "Effect": "Allow",
        "Principal": {"Federated": "idp.example.com"},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {"StringEquals": {"idp.example.com:aud": "holdfast"}},
    }
    document = parse(text(statement), PolicyKind.TRUST)
    assert document.statements[0].resources == ()
    assert "no resources" in refused(text(statement | {"Resource": "*"}), PolicyKind.TRUST)
    assert "not a valid action" in refused(
        text(statement | {"Action": "s3:GetObject"}), PolicyKind.TRUST
    )


def test_the_old_version_has_no_variables() -> None:
    source = text(ALLOW | {"Resource": "arn:aws:s3:::b/${anything"}, Version="2008-10-17")
    assert not parse(source).variables
