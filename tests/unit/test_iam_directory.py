"""Operations on the directory, what they refuse, and the decisions it leads to."""

from __future__ import annotations

import json
from collections.abc import Callable

import msgspec
import pytest

from iam import directory as ops
from iam.document import PolicyKind, parse
from iam.errors import (
    AccessKeyExists,
    CorruptDirectory,
    DirectoryError,
    GroupExists,
    GroupInUse,
    InvalidName,
    LimitExceeded,
    MalformedPolicy,
    NoSuchAccessKey,
    NoSuchGroup,
    NoSuchPolicy,
    NoSuchUser,
    NotAMember,
    NotAttached,
    PolicyInUse,
    PolicyIsBuiltIn,
    UserExists,
)
from iam.evaluate import Decision, Request
from iam.model import (
    ANONYMOUS,
    BUILT_IN_POLICIES,
    ROOT,
    AccessKey,
    Directory,
    KeyStatus,
    Principal,
    PrincipalKind,
)

GET = Request("s3:GetObject", "arn:aws:s3:::b/k")
PUT = Request("s3:PutObject", "arn:aws:s3:::b/k")
HOME = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": {
            "Effect": "Allow",
            "Action": "s3:*",
            "Resource": "arn:aws:s3:::home/${aws:username}/*",
        },
    }
)
DENY_PUT = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": {"Effect": "Deny", "Action": "s3:Put*", "Resource": "*"},
    }
)


def key(name: str, **more: object) -> AccessKey:
    return AccessKey(id=f"HF{name}", secret="s" * 40, created_s=2.0, **more)  # type: ignore[arg-type]


def ann_and_bob() -> Directory:
    directory = Directory()
    for name in ("ann", "bob"):
        directory = ops.add_user(directory, name, now_s=1.0)
        directory = ops.add_access_key(directory, name, key(name.upper()))
    return directory


def principal(directory: Directory, key_id: str) -> Principal:
    found = ops.lookup(directory, key_id)
    assert found is not None
    return found.principal


def test_an_operation_leaves_the_old_directory_as_it_was() -> None:
    before = ann_and_bob()
    after = ops.attach(ops.add_user(before, "eve", now_s=3.0), "readonly", user="ann")
    assert after.version == before.version + 2
    assert "eve" not in before.user_index and "eve" in after.user_index
    assert before.user_index["ann"].policies == ()
    assert after.user_index["ann"].policies == ("readonly",)


def test_lookup_finds_active_keys_of_enabled_users_only() -> None:
    directory = ann_and_bob()
    found = ops.lookup(directory, "HFANN")
    assert found is not None and found.secret == "s" * 40
    assert found.principal == Principal(
        kind=PrincipalKind.USER, name="ann", arn="arn:aws:iam::000000000000:user/ann"
    )
    assert ops.lookup(directory, "HFNONE") is None
    inactive = ops.set_access_key_status(directory, "HFANN", KeyStatus.INACTIVE)
    disabled = ops.set_user_enabled(directory, "ann", False)
    removed = ops.remove_access_key(directory, "HFANN")
    gone = ops.remove_user(directory, "ann")
    for without in (inactive, disabled, removed, gone):
        assert ops.lookup(without, "HFANN") is None
        assert ops.lookup(without, "HFBOB") is not None
    back = ops.set_access_key_status(inactive, "HFANN", KeyStatus.ACTIVE)
    assert ops.lookup(back, "HFANN") == found
    assert ops.lookup(ops.set_user_enabled(disabled, "ann", True), "HFANN") == found


def test_several_keys_for_one_user() -> None:
    directory = ops.add_access_key(ann_and_bob(), "ann", key("SECOND"))
    first, second = (ops.lookup(directory, name) for name in ("HFANN", "HFSECOND"))
    assert first is not None and second is not None and first.principal == second.principal


def test_decisions_of_attached_policies() -> None:
    directory = ann_and_bob()
    ann = principal(directory, "HFANN")
    assert ops.authorize(directory, ann, GET) is Decision.IMPLICIT_DENY
    directory = ops.attach(directory, "readonly", user="ann")
    assert ops.authorize(directory, ann, GET) is Decision.ALLOW
    assert ops.authorize(directory, ann, PUT) is Decision.IMPLICIT_DENY
    assert ops.authorize(directory, principal(directory, "HFBOB"), GET) is Decision.IMPLICIT_DENY
    directory = ops.attach(directory, "readwrite", user="ann")
    assert ops.authorize(directory, ann, PUT) is Decision.ALLOW
    directory = ops.detach(directory, "readwrite", user="ann")
    assert ops.authorize(directory, ann, PUT) is Decision.IMPLICIT_DENY


def test_groups_give_and_deny() -> None:
    directory = ops.add_group(ann_and_bob(), "team", now_s=1.0)
    directory = ops.attach(directory, "readwrite", group="team")
    ann = principal(directory, "HFANN")
    assert ops.authorize(directory, ann, PUT) is Decision.IMPLICIT_DENY
    directory = ops.add_member(directory, "team", "ann")
    assert ops.authorize(directory, ann, PUT) is Decision.ALLOW
    directory = ops.put_policy(directory, "no-put", DENY_PUT)
    denied = ops.attach(directory, "no-put", user="ann")
    assert ops.authorize(denied, ann, PUT) is Decision.EXPLICIT_DENY
    assert ops.authorize(denied, ann, GET) is Decision.ALLOW
    left = ops.remove_member(directory, "team", "ann")
    assert ops.authorize(left, ann, PUT) is Decision.IMPLICIT_DENY


def test_a_replaced_policy_counts_at_once() -> None:
    directory = ops.put_policy(ann_and_bob(), "mine", DENY_PUT)
    directory = ops.attach(directory, "mine", user="ann")
    ann = principal(directory, "HFANN")
    home = Request("s3:PutObject", "arn:aws:s3:::home/ann/x")
    assert ops.authorize(directory, ann, home) is Decision.EXPLICIT_DENY
    directory = ops.put_policy(directory, "mine", HOME)
    assert ops.authorize(directory, ann, home) is Decision.ALLOW


def test_a_request_cannot_say_who_it_is() -> None:
    directory = ops.put_policy(ann_and_bob(), "home", HOME)
    directory = ops.attach(directory, "home", user="ann")
    ann = principal(directory, "HFANN")
    context = {"AWS:UserName": "bob", "aws:username": "bob"}
    bobs = Request("s3:GetObject", "arn:aws:s3:::home/bob/x", context)
    anns = Request("s3:GetObject", "arn:aws:s3:::home/ann/x", context)
    assert ops.authorize(directory, ann, bobs) is Decision.IMPLICIT_DENY
    assert ops.authorize(directory, ann, anns) is Decision.ALLOW


def test_root_is_above_policies_and_the_disabled_below() -> None:
    directory = ops.attach(ann_and_bob(), "admin", user="ann")
    ann = principal(directory, "HFANN")
    anything = Request("admin:RestartNode", "*")
    assert ops.authorize(directory, ROOT, anything) is Decision.ALLOW and ROOT.is_root
    assert ops.authorize(directory, ann, anything) is Decision.ALLOW
    everyone = bucket_policy("Allow", "*")
    for without in (
        ops.set_user_enabled(directory, "ann", False),
        ops.remove_user(directory, "ann"),
    ):
        found = ops.authorize(without, ann, GET, resource_policy=everyone)
        assert found is Decision.IMPLICIT_DENY


def bucket_policy(effect: str, who: object) -> object:
    statement = {
        "Effect": effect,
        "Principal": who,
        "Action": "s3:GetObject",
        "Resource": "arn:aws:s3:::b/*",
    }
    source = json.dumps({"Version": "2012-10-17", "Statement": statement})
    return parse(source, PolicyKind.RESOURCE, bucket="b")


def test_bucket_policies_join_in() -> None:
    directory = ops.attach(ann_and_bob(), "readonly", user="ann")
    ann, bob = principal(directory, "HFANN"), principal(directory, "HFBOB")

    def decide(who: Principal, policy: object) -> Decision:
        return ops.authorize(directory, who, GET, resource_policy=policy)  # type: ignore[arg-type]

    public = bucket_policy("Allow", "*")
    assert decide(ANONYMOUS, public) is Decision.ALLOW
    assert decide(ANONYMOUS, None) is Decision.IMPLICIT_DENY
    assert decide(bob, public) is Decision.ALLOW
    assert decide(ann, bucket_policy("Deny", {"AWS": ann.arn})) is Decision.EXPLICIT_DENY
    assert decide(bob, bucket_policy("Allow", {"AWS": bob.arn})) is Decision.ALLOW
    assert decide(ANONYMOUS, bucket_policy("Allow", {"AWS": bob.arn})) is Decision.IMPLICIT_DENY
    assert ops.is_public(public, GET)  # type: ignore[arg-type]
    assert not ops.is_public(bucket_policy("Allow", {"AWS": bob.arn}), GET)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "allowed", "not_allowed"),
    [
        ("readonly", ["s3:GetObject", "s3:ListBucket"], ["s3:PutObject", "s3:DeleteObject"]),
        ("readwrite", ["s3:GetObject", "s3:DeleteBucket"], ["iam:CreateUser", "admin:GetInfo"]),
        ("writeonly", ["s3:PutObject", "s3:AbortMultipartUpload"], ["s3:GetObject"]),
        ("admin", ["s3:GetObject", "iam:CreateUser", "admin:SetConfig"], []),
        ("diagnostics", ["admin:GetInfo", "admin:ListLocks"], ["s3:GetObject", "admin:SetConfig"]),
    ],
)
def test_built_in_policies(name: str, allowed: list[str], not_allowed: list[str]) -> None:
    directory = ops.attach(ann_and_bob(), name, user="ann")
    ann = principal(directory, "HFANN")
    for actions, expected in ((allowed, Decision.ALLOW), (not_allowed, Decision.IMPLICIT_DENY)):
        for action in actions:
            request = Request(action, "arn:aws:s3:::b/k")
            assert ops.authorize(directory, ann, request) is expected


def full() -> Directory:
    directory = ops.put_policy(ann_and_bob(), "mine", HOME)
    directory = ops.attach(directory, "mine", user="ann")
    directory = ops.add_group(directory, "team", now_s=1.0)
    directory = ops.attach(directory, "mine", group="team")
    return ops.add_member(directory, "team", "bob")


REFUSALS: list[tuple[type[DirectoryError], Callable[[Directory], object]]] = [
    (UserExists, lambda d: ops.add_user(d, "ann", now_s=0)),
    (InvalidName, lambda d: ops.add_user(d, "a/b", now_s=0)),
    (InvalidName, lambda d: ops.add_user(d, "", now_s=0)),
    (InvalidName, lambda d: ops.add_user(d, "ann\n", now_s=0)),
    (NoSuchUser, lambda d: ops.remove_user(d, "eve")),
    (NoSuchUser, lambda d: ops.set_user_enabled(d, "eve", True)),
    (NoSuchUser, lambda d: ops.add_access_key(d, "eve", key("EVE"))),
    (AccessKeyExists, lambda d: ops.add_access_key(d, "bob", key("ANN"))),
    (InvalidName, lambda d: ops.add_access_key(d, "bob", key("/"))),
    (
        InvalidName,
        lambda d: ops.add_access_key(d, "bob", AccessKey(id="HFX", secret="short", created_s=0)),
    ),
    (NoSuchAccessKey, lambda d: ops.remove_access_key(d, "HFEVE")),
    (NoSuchAccessKey, lambda d: ops.set_access_key_status(d, "HFEVE", KeyStatus.ACTIVE)),
    (InvalidName, lambda d: ops.put_policy(d, "a b", HOME)),
    (PolicyIsBuiltIn, lambda d: ops.put_policy(d, "readonly", HOME)),
    (PolicyIsBuiltIn, lambda d: ops.remove_policy(d, "admin")),
    (NoSuchPolicy, lambda d: ops.remove_policy(d, "none")),
    (PolicyInUse, lambda d: ops.remove_policy(d, "mine")),
    (NoSuchPolicy, lambda d: ops.attach(d, "none", user="ann")),
    (NoSuchUser, lambda d: ops.attach(d, "mine", user="eve")),
    (NoSuchGroup, lambda d: ops.attach(d, "mine", group="none")),
    (NotAttached, lambda d: ops.detach(d, "mine", user="bob")),
    (GroupExists, lambda d: ops.add_group(d, "team", now_s=0)),
    (GroupInUse, lambda d: ops.remove_group(d, "team")),
    (NoSuchGroup, lambda d: ops.remove_group(d, "none")),
    (NoSuchUser, lambda d: ops.add_member(d, "team", "eve")),
    (NotAMember, lambda d: ops.remove_member(d, "team", "ann")),
]


@pytest.mark.parametrize(("error", "operation"), REFUSALS)
def test_refusals(error: type[DirectoryError], operation: Callable[[Directory], object]) -> None:
    with pytest.raises(error) as caught:
        operation(full())
    assert caught.value.kind and isinstance(caught.value.name, str)


def test_errors_carry_what() -> None:
    with pytest.raises(PolicyInUse) as caught:
        ops.remove_policy(full(), "mine")
    assert (caught.value.users, caught.value.groups) == (("ann",), ("team",))
    with pytest.raises(MalformedPolicy):
        ops.put_policy(full(), "other", "{}")
    with pytest.raises(ValueError, match="one of them"):
        ops.attach(full(), "mine")


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ops, "MAX_ACCESS_KEYS", 1)
    monkeypatch.setattr(ops, "MAX_USERS", 2)
    monkeypatch.setattr(ops, "MAX_ATTACHED", 1)
    with pytest.raises(LimitExceeded):
        ops.add_access_key(full(), "ann", key("NEXT"))
    with pytest.raises(LimitExceeded):
        ops.add_user(full(), "eve", now_s=0)
    with pytest.raises(LimitExceeded):
        ops.attach(full(), "readonly", user="ann")


def test_doing_it_again_changes_nothing() -> None:
    directory = full()
    assert ops.attach(directory, "mine", user="ann") is directory
    assert ops.add_member(directory, "team", "bob") is directory


def test_removing_cleans_up() -> None:
    directory = ops.remove_user(full(), "bob")
    assert directory.group_index["team"].members == ()
    directory = ops.detach(directory, "mine", group="team")
    directory = ops.remove_group(directory, "team")
    directory = ops.remove_policy(ops.detach(directory, "mine", user="ann"), "mine")
    assert (directory.groups, directory.policies) == ((), ())


# ---- stored form --------------------------------------------------------------------------------


def test_encode_and_decode() -> None:
    directory = full()
    directory.key_index  # noqa: B018  (an index that was built is no part of the value)
    again = ops.decode(ops.encode(directory))
    assert again == directory
    assert again.policy_index["mine"].document == HOME
    assert ops.decode(ops.encode(Directory())) == Directory()
    assert not any(name.encode() in ops.encode(Directory()) for name in BUILT_IN_POLICIES)


def test_secrets_do_not_show() -> None:
    directory = full()
    assert "s" * 40 not in repr(directory)
    assert "s" * 40 not in repr(ops.lookup(directory, "HFANN"))


def test_bytes_that_are_no_directory() -> None:
    good = ops.encode(full())
    newer = msgspec.msgpack.encode({"format": 2, "directory": {}})
    for bad in (b"", b"x", good[:-1], good + b"x", newer, b"\x93" * 100_000):
        with pytest.raises(CorruptDirectory):
            ops.decode(bad)


@pytest.mark.parametrize(
    "change",
    [
        {"users": full().users * 2},
        {"groups": full().groups * 2},
        {"policies": full().policies * 2},
        {"policies": ()},
        {"policies": tuple(BUILT_IN_POLICIES.values())},
        {"users": full().users[:1]},
        {"policies": (msgspec.structs.replace(full().policies[0], document="{}"),)},
    ],
)
def test_a_stored_directory_keeps_its_invariants(change: dict[str, object]) -> None:
    broken = msgspec.structs.replace(full(), **change)
    with pytest.raises(CorruptDirectory):
        ops.decode(ops.encode(broken))
