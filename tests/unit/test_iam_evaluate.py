"""The evaluator: deny over allow, wildcards, variables, principals and every operator."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from iam.conditions import OPERATORS
from iam.document import Document, PolicyKind, parse
from iam.evaluate import Decision, Request, evaluate, load
from iam.patterns import ContextValue

ALLOW, DENIED, SILENT = Decision.ALLOW, Decision.EXPLICIT_DENY, Decision.IMPLICIT_DENY


def policy(*statements: dict[str, object], kind: PolicyKind = PolicyKind.IDENTITY) -> Document:
    full = []
    for statement in statements:
        defaults: dict[str, object] = {"Effect": "Allow"}
        if "NotAction" not in statement:
            defaults["Action"] = "s3:*"
        if "NotResource" not in statement and kind is not PolicyKind.TRUST:
            defaults["Resource"] = "*" if kind is PolicyKind.IDENTITY else "arn:aws:s3:::b/*"
        full.append(defaults | statement)
    return parse(json.dumps({"Version": "2012-10-17", "Statement": full}), kind)


def ask(
    *policies: Document,
    action: str = "s3:GetObject",
    resource: str = "arn:aws:s3:::b/k",
    context: Mapping[str, ContextValue] | None = None,
    principal: str = "",
    principal_type: str = "AWS",
) -> Decision:
    request = Request(action, resource, context or {}, principal, principal_type)
    return evaluate(policies, request)


def test_deny_over_allow_over_nothing() -> None:
    allow = policy({"Action": "s3:GetObject"})
    deny = policy({"Effect": "Deny", "Resource": "arn:aws:s3:::b/secret/*"})
    assert ask() is SILENT
    assert ask(allow) is ALLOW
    assert ask(allow, action="s3:PutObject") is SILENT
    assert ask(allow, deny) is ALLOW
    for order in ((allow, deny), (deny, allow)):
        assert ask(*order, resource="arn:aws:s3:::b/secret/x") is DENIED
    both = policy({}, {"Effect": "Deny", "Action": "s3:Delete*"})
    assert ask(both, action="s3:DeleteObject") is DENIED


def test_actions_ignore_case_and_take_wildcards() -> None:
    document = policy({"Action": ["S3:getobject", "s3:Put*Tagging", "s3:List?ucket"]})
    assert ask(document) is ALLOW
    assert ask(document, action="s3:PutObjectTagging") is ALLOW
    assert ask(document, action="s3:ListBucket") is ALLOW
    assert ask(document, action="s3:ListBucketVersions") is SILENT
    assert ask(document, action="s3:PutObject") is SILENT


def test_not_action_and_not_resource() -> None:
    document = policy({"NotAction": "s3:Delete*", "NotResource": "arn:aws:s3:::b/private/*"})
    assert ask(document) is ALLOW
    assert ask(document, action="s3:DeleteObject") is SILENT
    assert ask(document, resource="arn:aws:s3:::b/private/x") is SILENT


@pytest.mark.parametrize(
    ("pattern", "key", "matches"),
    [
        ("k", "k", True),
        ("k", "K", False),
        ("*", "", True),
        ("a*", "a", True),
        ("a*a", "a", False),
        ("a*a", "aa", True),
        ("a*b*c", "a/b/x/c", True),
        ("a*b*c", "acb", False),
        ("*ab*ab", "ab", False),
        ("*ab*ab", "abab", True),
        ("?", "ü", True),
        ("?", "", False),
        ("a?c*", "abcd", True),
        ("*?b", "b", False),
        ("*?b", "ab", True),
        ("*a?*c", "xabzc", True),
        ("*a?*c", "xac", False),
        ("a.c", "abc", False),
        ("a*\n", "ab\n", True),
        ("x*", "x\ny", True),
        ("${*}", "*", True),
        ("${*}", "a", False),
        ("${?}${$}", "?$", True),
        ("[a]", "a", False),
    ],
)
def test_wildcards_in_resources(pattern: str, key: str, matches: bool) -> None:
    document = policy({"Resource": f"arn:aws:s3:::b/{pattern}"})
    assert (ask(document, resource=f"arn:aws:s3:::b/{key}") is ALLOW) is matches


def test_a_hostile_pattern_is_decided_without_backtracking() -> None:
    # A backtracking matcher would need longer than the age of the universe for these.
    for pattern in ("*a" * 200 + "b", "*a?" * 200 + "b"):
        document = policy({"Resource": f"arn:aws:s3:::b/{pattern}"})
        assert ask(document, resource="arn:aws:s3:::b/" + "a" * 1000) is SILENT


def test_variables_in_resources() -> None:
    document = policy({"Resource": "arn:aws:s3:::home/${aws:username}/*"})
    own = "arn:aws:s3:::home/ann/x"
    assert ask(document, resource=own, context={"aws:username": "ann"}) is ALLOW
    assert ask(document, resource=own, context={"AWS:UserName": ["ann"]}) is ALLOW
    assert ask(document, resource=own, context={"aws:username": "bob"}) is SILENT
    assert ask(document, resource=own) is SILENT
    # The value of a variable is text: its star is no wildcard.
    assert ask(document, resource=own, context={"aws:username": "*"}) is SILENT
    assert ask(document, resource=own, context={"aws:username": ["ann", "bob"]}) is SILENT
    default = policy({"Resource": "arn:aws:s3:::home/${aws:username, 'guest'}/*"})
    assert ask(default, resource="arn:aws:s3:::home/guest/x") is ALLOW
    assert ask(default, resource="arn:aws:s3:::home/x", context={"aws:username": "x"}) is SILENT
    old = parse(document.text.replace("2012-10-17", "2008-10-17"))
    assert ask(old, resource=own, context={"aws:username": "ann"}) is SILENT
    assert ask(old, resource="arn:aws:s3:::home/${aws:username}/x") is ALLOW


def test_an_unknown_variable_never_widens() -> None:
    outside = {"NotResource": "arn:aws:s3:::b/${aws:username}/*"}
    assert ask(policy(outside)) is SILENT
    assert ask(policy(outside), context={"aws:username": "ann"}) is ALLOW
    assert ask(policy(outside | {"Effect": "Deny"})) is DENIED
    other = {"Condition": {"StringNotEquals": {"s3:prefix": "${aws:username}"}}}
    assert ask(policy(other), context={"s3:prefix": "x"}) is SILENT
    assert ask(policy(other | {"Effect": "Deny"}), context={"s3:prefix": "x"}) is DENIED


# ---- conditions ---------------------------------------------------------------------------------

IP, NAME, KEYS, TIME = "aws:SourceIp", "aws:username", "s3:max-keys", "aws:CurrentTime"
ARN, TLS, TAGS = "aws:PrincipalArn", "aws:SecureTransport", "aws:TagKeys"
EPOCH = "aws:EpochTime"

CASES: list[tuple[str, str, object, ContextValue | None, bool]] = [
    ("StringEquals", NAME, ["a", "b"], "b", True),
    ("StringEquals", NAME, "a", "A", False),
    ("StringEquals", NAME, "a*", "ab", False),
    ("StringEquals", NAME, "${*}", "*", True),
    ("StringEquals", NAME, "a", None, False),
    ("StringNotEquals", NAME, ["a", "b"], "c", True),
    ("StringNotEquals", NAME, ["a", "b"], "b", False),
    ("StringNotEquals", NAME, "a", None, True),
    ("StringEqualsIgnoreCase", NAME, "ANN", "ann", True),
    ("StringEqualsIgnoreCase", NAME, "ANN", "bob", False),
    ("StringNotEqualsIgnoreCase", NAME, "ANN", "ann", False),
    ("StringNotEqualsIgnoreCase", NAME, "ANN", "bob", True),
    ("StringLike", NAME, "a?c*", "abcd", True),
    ("StringLike", NAME, "a?c*", "acd", False),
    ("StringNotLike", NAME, "a*", "ab", False),
    ("StringNotLike", NAME, "a*", "b", True),
    ("NumericEquals", KEYS, 10, "10.0", True),
    ("NumericEquals", KEYS, "10", "11", False),
    ("NumericEquals", KEYS, "10", "x", False),
    ("NumericNotEquals", KEYS, 10, "11", True),
    ("NumericNotEquals", KEYS, 10, "1e1", False),
    ("NumericLessThan", KEYS, 10, "9", True),
    ("NumericLessThan", KEYS, 10, "10", False),
    ("NumericLessThanEquals", KEYS, 10, "10", True),
    ("NumericLessThanEquals", KEYS, 10, "11", False),
    ("NumericGreaterThan", KEYS, 10, "11", True),
    ("NumericGreaterThan", KEYS, 10, "10", False),
    ("NumericGreaterThanEquals", KEYS, 10, "10", True),
    ("NumericGreaterThanEquals", KEYS, 10, "9", False),
    ("DateEquals", TIME, "2026-01-01", "2026-01-01T00:00:00Z", True),
    ("DateEquals", TIME, "1970-01-01T01:00:00+01:00", "0", True),
    ("DateEquals", EPOCH, 1767225600, "2026-01-01T00:00:00Z", True),
    ("DateNotEquals", TIME, "2026-01-01", "2026-01-02T00:00:00Z", True),
    ("DateNotEquals", TIME, "2026-01-01", "2026-01-01T00:00:00Z", False),
    ("DateLessThan", TIME, "2026-01-01T00:00:00Z", "2025-12-31T23:59:59Z", True),
    ("DateLessThan", TIME, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", False),
    ("DateLessThanEquals", TIME, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", True),
    ("DateLessThanEquals", TIME, "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", False),
    ("DateGreaterThan", TIME, "2026-01-01T00:00:00Z", "2026-01-01T00:00:01Z", True),
    ("DateGreaterThan", TIME, "2026-01-01T00:00:00Z", "nonsense", False),
    ("DateGreaterThanEquals", TIME, "2026-01-01T00:00:00Z", "2026-01-01T00:00:00Z", True),
    ("DateGreaterThanEquals", TIME, "2026-01-01T00:00:00Z", "2025-01-01T00:00:00Z", False),
    ("Bool", TLS, True, "true", True),
    ("Bool", TLS, "false", "true", False),
    ("Bool", TLS, "false", None, False),
    ("BinaryEquals", NAME, "QmluYXJ5", "QmluYXJ5", True),
    ("BinaryEquals", NAME, "QmluYXJ5", "T3RoZXI=", False),
    ("BinaryEquals", NAME, "QmluYXJ5", "?", False),
    ("IpAddress", IP, ["10.0.0.0/8", "2001:db8::/32"], "10.255.0.1", True),
    ("IpAddress", IP, ["10.0.0.0/8", "2001:db8::/32"], "2001:db8:1::1", True),
    ("IpAddress", IP, "10.0.0.0/8", "::ffff:10.1.2.3", True),
    ("IpAddress", IP, "10.0.0.1", "10.0.0.2", False),
    ("IpAddress", IP, "10.0.0.0/8", "localhost", False),
    ("NotIpAddress", IP, "10.0.0.0/8", "11.0.0.1", True),
    ("NotIpAddress", IP, "10.0.0.0/8", "10.0.0.1", False),
    ("ArnEquals", ARN, "arn:aws:iam::1:user/*", "arn:aws:iam::1:user/ann", True),
    ("ArnLike", ARN, "arn:*:iam:*:*:user/a?n", "arn:aws:iam::1:user/ann", True),
    ("ArnLike", ARN, "*", "arn:aws:iam::1:user/ann", True),
    ("ArnLike", ARN, "arn:aws:*:user/ann:x:y", "arn:aws:iam::1:user/ann", False),
    ("ArnLike", ARN, "arn:aws:iam::1:user/*", "ann", False),
    ("ArnNotEquals", ARN, "arn:aws:iam::1:user/ann", "arn:aws:iam::1:user/bob", True),
    ("ArnNotLike", ARN, "arn:aws:iam::1:user/*", "arn:aws:iam::1:user/bob", False),
    ("Null", NAME, "true", None, True),
    ("Null", NAME, "true", "a", False),
    ("Null", NAME, False, "a", True),
    ("Null", NAME, "true", [], True),
    # IfExists
    ("StringEqualsIfExists", NAME, "a", None, True),
    ("StringEqualsIfExists", NAME, "a", "b", False),
    ("BoolIfExists", TLS, "true", None, True),
    ("NumericLessThanIfExists", KEYS, 10, "10", False),
    # sets
    ("ForAllValues:StringEquals", TAGS, ["a", "b"], ["a", "b", "a"], True),
    ("ForAllValues:StringEquals", TAGS, ["a", "b"], ["a", "c"], False),
    ("ForAllValues:StringEquals", TAGS, ["a", "b"], None, True),
    ("ForAllValues:StringNotEquals", TAGS, ["a", "b"], ["c", "d"], True),
    ("ForAllValues:StringNotEquals", TAGS, ["a", "b"], ["c", "a"], False),
    ("ForAnyValue:StringLike", TAGS, ["a*"], ["x", "ab"], True),
    ("ForAnyValue:StringLike", TAGS, ["a*"], ["x", "y"], False),
    ("ForAnyValue:StringLike", TAGS, ["a*"], None, False),
    ("ForAnyValue:StringNotEquals", TAGS, ["a", "b"], ["a", "c"], True),
    ("ForAnyValue:StringNotEquals", TAGS, ["a", "b"], ["a", "b"], False),
    ("ForAnyValue:StringNotEquals", TAGS, ["a", "b"], None, False),
    ("ForAnyValue:StringEqualsIfExists", TAGS, ["a"], None, True),
]


@pytest.mark.parametrize(("name", "key", "values", "given", "holds"), CASES)
def test_condition_operators(
    name: str, key: str, values: object, given: ContextValue | None, holds: bool
) -> None:
    document = policy({"Condition": {name: {key: values}}})
    context: dict[str, ContextValue] = {} if given is None else {key.upper(): given}
    assert (ask(document, context=context) is ALLOW) is holds


def test_every_operator_has_a_case() -> None:
    tested = {name.partition(":")[2] or name for name, *_ in CASES}
    assert {name.removesuffix("IfExists") for name in tested} == OPERATORS


def test_all_conditions_must_hold() -> None:
    document = policy(
        {
            "Condition": {
                "StringEquals": {NAME: "ann", "s3:prefix": "x"},
                "IpAddress": {IP: "10.0.0.0/8"},
            }
        }
    )
    full = {NAME: "ann", "s3:prefix": "x", IP: "10.1.1.1"}
    assert ask(document, context=full) is ALLOW
    for key in full:
        assert ask(document, context=full | {key: "11.0.0.1"}) is SILENT


def test_variables_in_conditions() -> None:
    document = policy({"Condition": {"StringLike": {"s3:prefix": ["", "home/${aws:username}/*"]}}})
    assert ask(document, context={NAME: "ann", "s3:prefix": "home/ann/x"}) is ALLOW
    assert ask(document, context={NAME: "ann", "s3:prefix": "home/bob/x"}) is SILENT
    assert ask(document, context={"s3:prefix": ""}) is ALLOW
    blind = policy(
        {
            "Condition": {
                "StringEqualsIgnoreCase": {
                    "s3:ExistingObjectTag/Owner": "${aws:PrincipalTag/Team}-X"
                }
            }
        }
    )
    tags = {"s3:ExistingObjectTag/Owner": "Red-x", "aws:PrincipalTag/Team": "RED"}
    assert ask(blind, context=tags) is ALLOW
    assert ask(blind, context=tags | {"s3:ExistingObjectTag/Owner": "blue-x"}) is SILENT
    arn = policy({"Condition": {"ArnEquals": {ARN: "arn:aws:iam::1:user/${aws:username}"}}})
    assert ask(arn, context={ARN: "arn:aws:iam::1:user/ann", NAME: "ann"}) is ALLOW
    assert ask(arn, context={ARN: "arn:aws:iam::1:user/ann", NAME: "bob"}) is SILENT


def test_tag_names_keep_their_case() -> None:
    document = policy({"Condition": {"StringEquals": {"s3:ExistingObjectTag/Kind": "x"}}})
    assert ask(document, context={"S3:existingobjecttag/Kind": "x"}) is ALLOW
    assert ask(document, context={"s3:ExistingObjectTag/kind": "x"}) is SILENT


# ---- principals ---------------------------------------------------------------------------------

ANN = "arn:aws:iam::123456789012:user/ann"
BOB = "arn:aws:iam::123456789012:user/bob"


def bucket_policy(**statement: object) -> Document:
    return policy(statement, kind=PolicyKind.RESOURCE)


def test_principals_of_resource_policies() -> None:
    everyone = bucket_policy(Principal="*")
    assert ask(everyone) is ALLOW and ask(everyone, principal=ANN) is ALLOW
    ann = bucket_policy(Principal={"AWS": ANN})
    assert ask(ann, principal=ANN) is ALLOW
    assert ask(ann, principal=BOB) is SILENT and ask(ann) is SILENT
    for whole in ("123456789012", "arn:aws:iam::123456789012:root"):
        account = bucket_policy(Principal={"AWS": whole})
        assert ask(account, principal=BOB) is ALLOW
        assert ask(account, principal="arn:aws:iam::000000000000:user/bob") is SILENT
        assert ask(account) is SILENT


def test_not_principal_denies_all_others() -> None:
    others = bucket_policy(NotPrincipal={"AWS": ANN}, Effect="Deny")
    assert ask(others, principal=ANN) is SILENT
    assert ask(others, principal=BOB) is DENIED
    assert ask(others) is DENIED


def test_trust_policies() -> None:
    trust = policy(
        {
            "Principal": {"Federated": "idp.example.com"},
            "Action": "sts:AssumeRoleWithWebIdentity",
            "Condition": {"StringEquals": {"idp.example.com:sub": "ann"}},
        },
        kind=PolicyKind.TRUST,
    )
    action = "sts:AssumeRoleWithWebIdentity"
    claims = {"idp.example.com:sub": "ann"}

    def assume(principal: str, kind: str, context: Mapping[str, str]) -> Decision:
        return ask(
            trust,
            action=action,
            resource="",
            context=context,
            principal=principal,
            principal_type=kind,
        )

    assert assume("idp.example.com", "Federated", claims) is ALLOW
    assert assume("idp.example.com", "AWS", claims) is SILENT
    assert assume("other.example.com", "Federated", claims) is SILENT
    assert assume("idp.example.com", "Federated", {}) is SILENT


def test_loading_compiles_once() -> None:
    text = policy({"Action": "s3:GetObject"}).text
    assert load(text) is load(text)
    assert evaluate([load(text)], Request("s3:GetObject", "arn:aws:s3:::b/k")) is ALLOW
