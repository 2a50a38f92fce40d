"""Operations on the directory. Each returns a new one, or raises an error that says what is wrong.

change:  add_user remove_user set_user_enabled, add_access_key remove_access_key
         set_access_key_status, put_policy remove_policy, attach detach,
         add_group remove_group add_member remove_member
use:     lookup (access key id -> credential), authorize (principal, request -> decision)
store:   encode, decode
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

from .document import Document, parse
from .errors import (
    AccessKeyExists,
    CorruptDirectory,
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
from .evaluate import CompiledPolicy, Decision, Request, evaluate, load
from .model import (
    ANONYMOUS,
    BUILT_IN_POLICIES,
    AccessKey,
    Credential,
    Directory,
    Group,
    KeyStatus,
    Policy,
    Principal,
    PrincipalKind,
    User,
)

FORMAT = 1
MAX_USERS = 10_000
MAX_GROUPS = 1_000
MAX_MEMBERS = 10_000
MAX_POLICIES = 2_000
MAX_ATTACHED = 20
MAX_ACCESS_KEYS = 20  # of one user

_USER_NAME = re.compile(r"[A-Za-z0-9_+=,.@\-]{1,64}")
_OTHER_NAME = re.compile(r"[A-Za-z0-9_+=,.@\-]{1,128}")
_KEY_ID = re.compile(r"[A-Za-z0-9_.@\-]{3,128}")
_SECRET = re.compile(r"[!-~]{8,128}")

_T = TypeVar("_T", User, Group, Policy)


# ---- users and access keys ----------------------------------------------------------------------


def add_user(directory: Directory, name: str, *, now_s: float) -> Directory:
    _check_name(_USER_NAME, "user", name)
    if name in directory.user_index:
        raise UserExists(name)
    _check_room("user", name, len(directory.users), MAX_USERS)
    return _changed(directory, users=(*directory.users, User(name=name, created_s=now_s)))


def remove_user(directory: Directory, name: str) -> Directory:
    """The user, its access keys, its attachments and its memberships go together."""
    _user(directory, name)
    groups = tuple(
        msgspec.structs.replace(group, members=_without(group.members, name))
        if name in group.members
        else group
        for group in directory.groups
    )
    users = tuple(user for user in directory.users if user.name != name)
    return _changed(directory, users=users, groups=groups)


def set_user_enabled(directory: Directory, name: str, enabled: bool) -> Directory:
    return _with_user(directory, name, lambda u: msgspec.structs.replace(u, enabled=enabled))


def add_access_key(directory: Directory, user_name: str, key: AccessKey) -> Directory:
    _check_name(_KEY_ID, "access key", key.id)
    if not _SECRET.fullmatch(key.secret):
        raise InvalidName(
            "access key", key.id, "a secret key has 8 to 128 visible ASCII characters"
        )
    if key.id in directory.key_index:
        raise AccessKeyExists(key.id)
    count = len(_user(directory, user_name).access_keys)
    _check_room("access key", user_name, count, MAX_ACCESS_KEYS)
    return _with_user(
        directory,
        user_name,
        lambda user: msgspec.structs.replace(user, access_keys=(*user.access_keys, key)),
    )


def remove_access_key(directory: Directory, access_key_id: str) -> Directory:
    return _with_keys(
        directory, access_key_id, lambda keys: tuple(k for k in keys if k.id != access_key_id)
    )


def set_access_key_status(directory: Directory, access_key_id: str, status: KeyStatus) -> Directory:
    return _with_keys(
        directory,
        access_key_id,
        lambda keys: tuple(
            msgspec.structs.replace(k, status=status) if k.id == access_key_id else k for k in keys
        ),
    )


# ---- policies -----------------------------------------------------------------------------------


def put_policy(directory: Directory, name: str, document: str | bytes) -> Directory:
    """Create or replace a policy. Raises MalformedPolicy for a document that is not one."""
    _check_name(_OTHER_NAME, "policy", name)
    if name in BUILT_IN_POLICIES:
        raise PolicyIsBuiltIn(name)
    policy = Policy(name=name, document=parse(document).text)
    if name in directory.policy_index:
        return _changed(directory, policies=_replaced(directory.policies, policy))
    _check_room("policy", name, len(directory.policies), MAX_POLICIES)
    return _changed(directory, policies=(*directory.policies, policy))


def remove_policy(directory: Directory, name: str) -> Directory:
    if name in BUILT_IN_POLICIES:
        raise PolicyIsBuiltIn(name)
    _policy(directory, name)
    users = tuple(user.name for user in directory.users if name in user.policies)
    groups = tuple(group.name for group in directory.groups if name in group.policies)
    if users or groups:
        raise PolicyInUse(name, users, groups)
    return _changed(directory, policies=tuple(p for p in directory.policies if p.name != name))


def attach(directory: Directory, policy: str, *, user: str = "", group: str = "") -> Directory:
    """Attach a policy to one user or one group; what is attached already stays as it is."""
    _policy(directory, policy)
    holder = _holder(directory, user, group)
    if policy in holder.policies:
        return directory
    _check_room("attached policy", holder.name, len(holder.policies), MAX_ATTACHED)
    return _with_policies(directory, holder, (*holder.policies, policy))


def detach(directory: Directory, policy: str, *, user: str = "", group: str = "") -> Directory:
    _policy(directory, policy)
    holder = _holder(directory, user, group)
    if policy not in holder.policies:
        raise NotAttached(policy, holder.name)
    return _with_policies(directory, holder, _without(holder.policies, policy))


# ---- groups -------------------------------------------------------------------------------------


def add_group(directory: Directory, name: str, *, now_s: float) -> Directory:
    _check_name(_OTHER_NAME, "group", name)
    if name in directory.group_index:
        raise GroupExists(name)
    _check_room("group", name, len(directory.groups), MAX_GROUPS)
    return _changed(directory, groups=(*directory.groups, Group(name=name, created_s=now_s)))


def remove_group(directory: Directory, name: str) -> Directory:
    group = _group(directory, name)
    if group.members:
        raise GroupInUse(name, group.members)
    return _changed(directory, groups=tuple(g for g in directory.groups if g.name != name))


def add_member(directory: Directory, group_name: str, user_name: str) -> Directory:
    _user(directory, user_name)
    group = _group(directory, group_name)
    if user_name in group.members:
        return directory
    _check_room("member", group_name, len(group.members), MAX_MEMBERS)
    return _with_group(
        directory, msgspec.structs.replace(group, members=(*group.members, user_name))
    )


def remove_member(directory: Directory, group_name: str, user_name: str) -> Directory:
    group = _group(directory, group_name)
    if user_name not in group.members:
        raise NotAMember(user_name, group_name)
    return _with_group(
        directory, msgspec.structs.replace(group, members=_without(group.members, user_name))
    )


# ---- use ----------------------------------------------------------------------------------------


def lookup(directory: Directory, access_key_id: str) -> Credential | None:
    """The credential of an active key of an enabled user, or None. The root's is not in here."""
    return directory.credential_index.get(access_key_id)


def authorize(
    directory: Directory,
    principal: Principal,
    request: Request,
    *,
    resource_policy: Document | CompiledPolicy | None = None,
) -> Decision:
    """Decide a request of a verified principal.

    The root is always allowed, so that no policy can lock everybody out. The principal's own
    condition keys (aws:username and the like) are set here, over whatever the request has.
    """
    if principal.kind is PrincipalKind.ROOT:
        return Decision.ALLOW
    policies: list[Document | CompiledPolicy] = []
    own: dict[str, str] = {"aws:PrincipalType": principal.kind.value}
    if principal.kind is PrincipalKind.USER:
        user = directory.user_index.get(principal.name)
        if user is None or not user.enabled:
            return Decision.IMPLICIT_DENY
        policies.extend(directory.compiled_policies(user))
        own |= {
            "aws:username": user.name,
            "aws:userid": user.name,
            "aws:PrincipalArn": user.arn,
            "aws:PrincipalAccount": user.arn.split(":", 5)[4],
        }
    if resource_policy is not None:
        policies.append(resource_policy)
    context = {
        name: value
        for name, value in request.context.items()
        if name.lower() not in _PRINCIPAL_KEYS
    }
    full = Request(request.action, request.resource, context | own, principal.arn)
    return evaluate(policies, full)


_PRINCIPAL_KEYS = frozenset(
    {
        "aws:principaltype",
        "aws:username",
        "aws:userid",
        "aws:principalarn",
        "aws:principalaccount",
    }
)


def is_public(resource_policy: Document | CompiledPolicy, request: Request) -> bool:
    """Whether a bucket policy alone lets a stranger do this."""
    stranger = authorize(Directory(), ANONYMOUS, request, resource_policy=resource_policy)
    return stranger is Decision.ALLOW


# ---- stored form --------------------------------------------------------------------------------


class _Stored(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    directory: msgspec.Raw


class _StoredOut(msgspec.Struct, frozen=True, kw_only=True):
    format: int
    directory: Directory


def encode(directory: Directory) -> bytes:
    """The stored form: msgpack with a format number. Holds secrets in the clear: seal it."""
    return msgspec.msgpack.encode(_StoredOut(format=FORMAT, directory=directory))


def decode(raw: bytes) -> Directory:
    """Read and check the stored form, or raise CorruptDirectory."""
    try:
        stored = msgspec.msgpack.decode(raw, type=_Stored)
        if stored.format != FORMAT:
            raise CorruptDirectory(
                f"the identity data has format {stored.format}; this version reads {FORMAT}"
            )
        directory = msgspec.msgpack.decode(stored.directory, type=Directory)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CorruptDirectory(f"the identity data cannot be read: {error}") from None
    _check(directory)
    return directory


def _check(directory: Directory) -> None:
    """A directory out of storage has the invariants that the operations keep."""
    _check_unique("user", (user.name for user in directory.users))
    _check_unique("group", (group.name for group in directory.groups))
    _check_unique("policy", (*(policy.name for policy in directory.policies), *BUILT_IN_POLICIES))
    _check_unique("access key", (key.id for user in directory.users for key in user.access_keys))
    holders: tuple[User | Group, ...] = (*directory.users, *directory.groups)
    for holder in holders:
        for name in holder.policies:
            if name not in directory.policy_index:
                raise CorruptDirectory(f"{holder.name!r} has the policy {name!r}, which is missing")
    for group in directory.groups:
        for member in group.members:
            if member not in directory.user_index:
                raise CorruptDirectory(f"{group.name!r} has the member {member!r}, who is missing")
    for policy in directory.policies:
        try:
            load(policy.document)
        except MalformedPolicy as error:
            raise CorruptDirectory(f"the policy {policy.name!r} is malformed: {error}") from None


def _check_unique(kind: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise CorruptDirectory(f"the {kind} {name!r} is there twice")
        seen.add(name)


# ---- parts of operations ------------------------------------------------------------------------


def _changed(
    directory: Directory,
    *,
    users: tuple[User, ...] | None = None,
    policies: tuple[Policy, ...] | None = None,
    groups: tuple[Group, ...] | None = None,
) -> Directory:
    return Directory(
        version=directory.version + 1,
        users=directory.users if users is None else users,
        policies=directory.policies if policies is None else policies,
        groups=directory.groups if groups is None else groups,
    )


def _check_name(pattern: re.Pattern[str], kind: str, name: str) -> None:
    if not pattern.fullmatch(name):
        raise InvalidName(kind, name, f"{name!r} is not a valid {kind} name")


def _check_room(kind: str, name: str, count: int, limit: int) -> None:
    if count >= limit:
        raise LimitExceeded(kind, name, limit)


def _user(directory: Directory, name: str) -> User:
    user = directory.user_index.get(name)
    if user is None:
        raise NoSuchUser(name)
    return user


def _group(directory: Directory, name: str) -> Group:
    group = directory.group_index.get(name)
    if group is None:
        raise NoSuchGroup(name)
    return group


def _policy(directory: Directory, name: str) -> Policy:
    policy = directory.policy_index.get(name)
    if policy is None:
        raise NoSuchPolicy(name)
    return policy


def _holder(directory: Directory, user: str, group: str) -> User | Group:
    if bool(user) == bool(group):
        raise ValueError("name a user or a group, one of them")
    return _user(directory, user) if user else _group(directory, group)


def _with_policies(
    directory: Directory, holder: User | Group, policies: tuple[str, ...]
) -> Directory:
    if isinstance(holder, User):
        return _with_user(
            directory, holder.name, lambda u: msgspec.structs.replace(u, policies=policies)
        )
    return _with_group(directory, msgspec.structs.replace(holder, policies=policies))


def _with_user(directory: Directory, name: str, change: Callable[[User], User]) -> Directory:
    changed = change(_user(directory, name))
    return _changed(directory, users=_replaced(directory.users, changed))


def _with_group(directory: Directory, changed: Group) -> Directory:
    return _changed(directory, groups=_replaced(directory.groups, changed))


def _with_keys(
    directory: Directory,
    access_key_id: str,
    change: Callable[[tuple[AccessKey, ...]], tuple[AccessKey, ...]],
) -> Directory:
    found = directory.key_index.get(access_key_id)
    if found is None:
        raise NoSuchAccessKey(access_key_id)
    user = found[0]
    keys = change(user.access_keys)
    return _with_user(directory, user.name, lambda u: msgspec.structs.replace(u, access_keys=keys))


def _replaced(items: tuple[_T, ...], changed: _T) -> tuple[_T, ...]:
    return tuple(changed if item.name == changed.name else item for item in items)


def _without(names: tuple[str, ...], name: str) -> tuple[str, ...]:
    return tuple(other for other in names if other != name)
