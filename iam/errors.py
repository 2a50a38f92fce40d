"""Errors of the identity core. One root; each error carries what a caller needs to answer."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

_NO_DETAILS: Mapping[str, str] = MappingProxyType({})


class IamError(Exception):
    """Root of every error that the package raises on purpose."""


class AuthError(IamError):
    """A request cannot be authenticated, or its signed body does not hold.

    ``code`` and ``message`` are S3's; ``details`` are further elements of the S3 error document
    (``StringToSign``, ``Region``, ``Expires`` and so on), for the client and never for a log.
    """

    def __init__(self, code: str, message: str, details: Mapping[str, str] = _NO_DETAILS) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.details = details


class MalformedPolicy(IamError):
    """A policy document was refused. ``where`` is a path inside it, like ``Statement[0].Action``."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(f"{where}: {message}" if where else message)
        self.message = message
        self.where = where


class DirectoryError(IamError):
    """A change of the directory was refused. ``kind`` is what it concerns, ``name`` which one."""

    def __init__(self, kind: str, name: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.name = name
        self.message = message


class InvalidName(DirectoryError):
    """The name has a length or a character that is not allowed."""


class NoSuchUser(DirectoryError):
    def __init__(self, name: str) -> None:
        super().__init__("user", name, f"there is no user named {name!r}")


class UserExists(DirectoryError):
    def __init__(self, name: str) -> None:
        super().__init__("user", name, f"a user named {name!r} exists")


class NoSuchGroup(DirectoryError):
    def __init__(self, name: str) -> None:
        super().__init__("group", name, f"there is no group named {name!r}")


class GroupExists(DirectoryError):
    def __init__(self, name: str) -> None:
        super().__init__("group", name, f"a group named {name!r} exists")


class GroupInUse(DirectoryError):
    """The group still has members (``members``)."""

    def __init__(self, name: str, members: tuple[str, ...]) -> None:
        super().__init__("group", name, f"the group {name!r} still has {len(members)} members")
        self.members = members


class NoSuchPolicy(DirectoryError):
    def __init__(self, name: str) -> None:
        super().__init__("policy", name, f"there is no policy named {name!r}")


class PolicyInUse(DirectoryError):
    """The policy is still attached: ``users`` and ``groups`` name to whom."""

    def __init__(self, name: str, users: tuple[str, ...], groups: tuple[str, ...]) -> None:
        super().__init__(
            "policy",
            name,
            f"the policy {name!r} is still attached to {len(users)} users and {len(groups)} groups",
        )
        self.users = users
        self.groups = groups


class PolicyIsBuiltIn(DirectoryError):
    def __init__(self, name: str) -> None:
        super().__init__("policy", name, f"the policy {name!r} is built in and cannot be changed")


class NotAttached(DirectoryError):
    """The policy ``name`` is not attached to ``holder``."""

    def __init__(self, name: str, holder: str) -> None:
        super().__init__("policy", name, f"the policy {name!r} is not attached to {holder!r}")
        self.holder = holder


class NotAMember(DirectoryError):
    """The user ``name`` is not in ``group``."""

    def __init__(self, name: str, group: str) -> None:
        super().__init__("user", name, f"the user {name!r} is not in the group {group!r}")
        self.group = group


class NoSuchAccessKey(DirectoryError):
    def __init__(self, access_key_id: str) -> None:
        super().__init__("access key", access_key_id, f"there is no access key {access_key_id!r}")


class AccessKeyExists(DirectoryError):
    def __init__(self, access_key_id: str) -> None:
        super().__init__("access key", access_key_id, f"the access key {access_key_id!r} exists")


class LimitExceeded(DirectoryError):
    """A bound of the directory (``limit``) would be passed."""

    def __init__(self, kind: str, name: str, limit: int) -> None:
        super().__init__(kind, name, f"{name!r} has its limit of {limit} ({kind})")
        self.limit = limit


class CorruptDirectory(IamError):
    """The stored bytes are not a directory that this version can read."""


class SecretError(IamError):
    """Root of what can go wrong with keys and sealed bytes."""


class WrongSecret(SecretError):
    """The cluster secret does not open the wrapped key."""

    def __init__(self) -> None:
        super().__init__(
            "the cluster secret does not open the identity data of this cluster: start this node "
            "with the HOLDFAST_CLUSTER_SECRET the other nodes have; if it was just changed, give "
            "the former one in HOLDFAST_CLUSTER_SECRET_PREVIOUS as well"
        )


class SealBroken(SecretError):
    """Sealed bytes were altered, cut, moved to another place, or written by a newer version."""
