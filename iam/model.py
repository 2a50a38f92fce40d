"""Users, groups, access keys and policies as values, and the directory that holds them all.

A directory is never changed: ``directory`` makes new ones. Its indexes are built when they are
first asked for, once for each version, and are no part of its value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from functools import cached_property

import msgspec

from .evaluate import CompiledPolicy, load

ACCOUNT_ID = "000000000000"  # there is one account; ARNs and bucket policies need a name for it


class KeyStatus(StrEnum):
    ACTIVE = "Active"
    INACTIVE = "Inactive"


class AccessKey(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    secret: str
    status: KeyStatus = KeyStatus.ACTIVE
    created_s: float  # seconds since 1970, as all times here

    def __repr__(self) -> str:
        return f"AccessKey(id={self.id!r}, status={self.status.value})"


class User(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    access_keys: tuple[AccessKey, ...] = ()
    policies: tuple[str, ...] = ()  # names, in the order of attachment
    enabled: bool = True
    created_s: float

    @property
    def arn(self) -> str:
        return f"arn:aws:iam::{ACCOUNT_ID}:user/{self.name}"


class Group(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    members: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    created_s: float


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    document: str  # JSON as it was written
    built_in: bool = False


def _built_in(name: str, *actions: str) -> Policy:
    statement = {"Effect": "Allow", "Action": list(actions), "Resource": "*"}
    document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    return Policy(name=name, document=document, built_in=True)


# Not stored: every version of the software brings its own.
BUILT_IN_POLICIES: Mapping[str, Policy] = {
    policy.name: policy
    for policy in (
        _built_in("readonly", "s3:Get*", "s3:List*"),
        _built_in("readwrite", "s3:*"),
        _built_in(
            "writeonly",
            "s3:PutObject",
            "s3:PutObjectTagging",
            "s3:AbortMultipartUpload",
            "s3:ListMultipartUploadParts",
        ),
        _built_in("admin", "*"),
        _built_in("diagnostics", "admin:Get*", "admin:List*"),
    )
}


class PrincipalKind(StrEnum):
    ROOT = "Account"
    USER = "User"
    ANONYMOUS = "Anonymous"


class Principal(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks, once the signature was verified. ``arn`` is empty for nobody in particular."""

    kind: PrincipalKind
    name: str = ""
    arn: str = ""

    @property
    def is_root(self) -> bool:
        return self.kind is PrincipalKind.ROOT


ROOT = Principal(kind=PrincipalKind.ROOT, name="root", arn=f"arn:aws:iam::{ACCOUNT_ID}:root")
ANONYMOUS = Principal(kind=PrincipalKind.ANONYMOUS)


class Credential(msgspec.Struct, frozen=True, kw_only=True):
    """What ``lookup`` finds for an access key id: whom it proves, and with what."""

    principal: Principal
    access_key_id: str
    secret: str

    def __repr__(self) -> str:
        return f"Credential({self.access_key_id!r} of {self.principal.name!r})"


class Directory(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All identities of a cluster. ``version`` rises by one with each change."""

    version: int = 0
    users: tuple[User, ...] = ()
    policies: tuple[Policy, ...] = ()  # without the built-in ones
    groups: tuple[Group, ...] = ()

    @cached_property
    def user_index(self) -> Mapping[str, User]:
        return {user.name: user for user in self.users}

    @cached_property
    def group_index(self) -> Mapping[str, Group]:
        return {group.name: group for group in self.groups}

    @cached_property
    def policy_index(self) -> Mapping[str, Policy]:
        return {policy.name: policy for policy in self.policies} | dict(BUILT_IN_POLICIES)

    @cached_property
    def key_index(self) -> Mapping[str, tuple[User, AccessKey]]:
        return {key.id: (user, key) for user in self.users for key in user.access_keys}

    @cached_property
    def credential_index(self) -> Mapping[str, Credential]:
        """The credentials that may be used now: active keys of enabled users."""
        return {
            key.id: Credential(
                principal=Principal(kind=PrincipalKind.USER, name=user.name, arn=user.arn),
                access_key_id=key.id,
                secret=key.secret,
            )
            for user in self.users
            if user.enabled
            for key in user.access_keys
            if key.status is KeyStatus.ACTIVE
        }

    @cached_property
    def groups_of(self) -> Mapping[str, tuple[Group, ...]]:
        """The groups of each user that is in one."""
        found: dict[str, list[Group]] = {}
        for group in self.groups:
            for member in group.members:
                found.setdefault(member, []).append(group)
        return {name: tuple(groups) for name, groups in found.items()}

    @cached_property
    def _compiled(self) -> dict[str, tuple[CompiledPolicy, ...]]:
        return {}

    def compiled_policies(self, user: User) -> tuple[CompiledPolicy, ...]:
        """The policies that concern a user, its own and those of its groups, ready to evaluate."""
        found = self._compiled.get(user.name)
        if found is None:
            names = dict.fromkeys(user.policies)
            for group in self.groups_of.get(user.name, ()):
                names.update(dict.fromkeys(group.policies))
            found = tuple(load(self.policy_index[name].document) for name in names)
            self._compiled[user.name] = found
        return found
