"""Policy documents: the JSON as it was written, checked, and its meaning as values.

A document is checked when it is written, not when it is used: an element, an operator or a
condition key that the evaluator does not know is refused, since ignoring it would grant or deny
something else than its author meant. The text is kept, so that what is read back is what was
written.

Source: "Grammar of the IAM JSON policy language" in the IAM user guide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeGuard

from .condition_keys import is_known_key
from .conditions import compile_condition
from .errors import MalformedPolicy
from .patterns import Pattern, parse_tokens

MAX_DOCUMENT_BYTES = 20 * 1024
VERSIONS = ("2012-10-17", "2008-10-17")

_ACTION = re.compile(r"\*|[A-Za-z0-9\-]+:[A-Za-z0-9*?]+")
_RESOURCE = re.compile(r"\*|arn:[^:]*:[^:]*:[^:]*:[^:]*:.+", re.DOTALL)
_ACCOUNT = re.compile(r"[0-9]{12}")
_PRINCIPAL_KINDS = ("AWS", "CanonicalUser", "Federated", "Service")
_S3_ARN = "arn:aws:s3:::"


class PolicyKind(StrEnum):
    IDENTITY = "identity"  # attached to a user, a group or a role
    RESOURCE = "resource"  # a bucket's policy: has principals
    TRUST = "trust"  # who may assume a role: has principals, no resources


class Effect(StrEnum):
    ALLOW = "Allow"
    DENY = "Deny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Principals:
    """A Principal or (``negated``) NotPrincipal element; ``everyone`` is "*"."""

    negated: bool
    everyone: bool
    entries: tuple[tuple[str, str], ...]  # ("AWS", arn), ("Federated", provider), ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    operator: str
    key: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    sid: str
    effect: Effect
    principals: Principals | None
    actions: tuple[str, ...]
    not_action: bool  # the actions come from NotAction
    resources: tuple[str, ...]  # empty in trust policies only
    not_resource: bool
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """A checked policy. ``text`` is the source and settles equality together with ``kind``."""

    text: str
    kind: PolicyKind
    version: str
    id: str
    statements: tuple[Statement, ...]

    @property
    def variables(self) -> bool:
        """Whether ``${...}`` has a meaning; in the version of 2008 it is plain text."""
        return self.version == VERSIONS[0]

    def __hash__(self) -> int:
        return hash(self.text)


def parse(
    source: bytes | str, kind: PolicyKind = PolicyKind.IDENTITY, *, bucket: str = ""
) -> Document:
    """Read and check a policy document, or raise MalformedPolicy.

    For a resource policy, ``bucket`` is the one it is to be put on: it may speak of no other.
    """
    text = _decode(source)
    top = _object(_load(text), "")
    _only(top, ("Version", "Id", "Statement"), "")
    version = top.get("Version", VERSIONS[1])
    if version not in VERSIONS:
        raise MalformedPolicy(f"must be {VERSIONS[0]} or {VERSIONS[1]}", "Version")
    variables = version == VERSIONS[0]
    listed = top.get("Statement")
    raw_statements = listed if isinstance(listed, list) else [listed]
    if listed is None or not raw_statements:
        raise MalformedPolicy("there is no statement", "Statement")
    statements = tuple(
        _statement(_object(raw, f"Statement[{n}]"), kind, variables, f"Statement[{n}]")
        for n, raw in enumerate(raw_statements)
    )
    sids = [statement.sid for statement in statements if statement.sid]
    if len(set(sids)) != len(sids):
        raise MalformedPolicy("Statement IDs (SID) in a single policy must be unique", "Statement")
    if bucket:
        _check_bucket(statements, bucket)
    identifier = top.get("Id", "")
    if not _is_text(identifier):
        raise MalformedPolicy("must be a string", "Id")
    return Document(
        text=text, kind=kind, version=str(version), id=identifier, statements=statements
    )


# ---- JSON ---------------------------------------------------------------------------------------


class _Number(str):
    """A JSON number in its own spelling: conditions compare "1.0" as it was written."""

    __slots__ = ()


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and not isinstance(value, _Number)


def _decode(source: bytes | str) -> str:
    raw = source.encode("utf-8", "surrogatepass") if isinstance(source, str) else source
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise MalformedPolicy(f"the document is larger than {MAX_DOCUMENT_BYTES} bytes")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedPolicy("the document is not UTF-8") from None


def _load(text: str) -> object:
    try:
        return json.loads(
            text,
            object_pairs_hook=_without_duplicates,
            parse_int=_Number,
            parse_float=_Number,
            parse_constant=_no_constant,
        )
    except RecursionError:
        raise MalformedPolicy("the document is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise MalformedPolicy(f"the document is not JSON: {error}") from None


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise MalformedPolicy(f"{twice!r} is there twice")
    return found


def _no_constant(name: str) -> object:
    raise MalformedPolicy(f"{name} is not JSON")


def _object(value: object, where: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise MalformedPolicy("must be an object", where or "the document")
    return value


def _only(found: dict[str, object], allowed: Iterable[str], where: str) -> None:
    for name in found:
        if name not in allowed:
            raise MalformedPolicy(f"the element {name!r} is not known here", where)


def _texts(value: object, where: str) -> tuple[str, ...]:
    """A string or a list of them, not empty."""
    listed = value if isinstance(value, list) else [value]
    if not listed:
        raise MalformedPolicy("must not be empty", where)
    for one in listed:
        if not _is_text(one):
            raise MalformedPolicy("must be a string or a list of strings", where)
    return tuple(listed)


# ---- statements ---------------------------------------------------------------------------------

_ELEMENTS = (
    "Sid",
    "Effect",
    "Principal",
    "NotPrincipal",
    "Action",
    "NotAction",
    "Resource",
    "NotResource",
    "Condition",
)


def _statement(raw: dict[str, object], kind: PolicyKind, variables: bool, where: str) -> Statement:
    _only(raw, _ELEMENTS, where)
    sid = raw.get("Sid", "")
    if not _is_text(sid):
        raise MalformedPolicy("must be a string", f"{where}.Sid")
    effect = raw.get("Effect")
    if effect not in ("Allow", "Deny"):
        raise MalformedPolicy("must be Allow or Deny", f"{where}.Effect")
    principals = _principals(raw, kind, where)
    if principals and principals.negated and effect == "Allow":
        raise MalformedPolicy("is for Deny only", f"{where}.NotPrincipal")
    actions, not_action = _either(raw, "Action", "NotAction", where)
    for action in actions:
        _check_action(action, kind, f"{where}.{'NotAction' if not_action else 'Action'}")
    resources: tuple[str, ...] = ()
    not_resource = False
    if kind is PolicyKind.TRUST:
        if "Resource" in raw or "NotResource" in raw:
            raise MalformedPolicy("a trust policy has no resources", where)
    else:
        resources, not_resource = _either(raw, "Resource", "NotResource", where)
    for resource in resources:
        element = f"{where}.{'NotResource' if not_resource else 'Resource'}"
        _check_resource(resource, variables, element)
    return Statement(
        sid=sid,
        effect=Effect(effect),
        principals=principals,
        actions=actions,
        not_action=not_action,
        resources=resources,
        not_resource=not_resource,
        conditions=_conditions(raw.get("Condition", {}), variables, f"{where}.Condition"),
    )


def _either(
    raw: dict[str, object], plain: str, negated: str, where: str
) -> tuple[tuple[str, ...], bool]:
    if (plain in raw) == (negated in raw):
        raise MalformedPolicy(f"there must be one of {plain} and {negated}", where)
    name = plain if plain in raw else negated
    return _texts(raw[name], f"{where}.{name}"), name == negated


def _check_action(action: str, kind: PolicyKind, where: str) -> None:
    service = {PolicyKind.RESOURCE: "s3:", PolicyKind.TRUST: "sts:"}.get(kind, "")
    if not _ACTION.fullmatch(action) or not (action == "*" or action.lower().startswith(service)):
        raise MalformedPolicy(f"{action!r} is not a valid action", where)


def _check_resource(resource: str, variables: bool, where: str) -> None:
    # Variables hold colons; what counts is the shape around them.
    shape = re.sub(r"\$\{[^}]*\}", "x", resource) if variables else resource
    if not _RESOURCE.fullmatch(shape):
        raise MalformedPolicy(f"{resource!r} is not an ARN", where)
    _check_variables(resource, variables, where)


def _check_variables(text: str, variables: bool, where: str) -> None:
    try:
        pattern = Pattern(parse_tokens(text, wildcards=True, variables=variables))
    except MalformedPolicy as error:
        raise MalformedPolicy(error.message, where) from None
    for key in pattern.variables:
        if not is_known_key(key):
            raise MalformedPolicy(f"there is no policy variable {key!r}", where)


def _check_bucket(statements: Iterable[Statement], bucket: str) -> None:
    own = _S3_ARN + bucket
    for number, statement in enumerate(statements):
        for resource in statement.resources:
            if resource != own and not resource.startswith(own + "/"):
                raise MalformedPolicy(
                    f"Policy has invalid resource {resource!r}: it must be {own} or below",
                    f"Statement[{number}]",
                )


# ---- principals and conditions ------------------------------------------------------------------


def _principals(raw: dict[str, object], kind: PolicyKind, where: str) -> Principals | None:
    present = [name for name in ("Principal", "NotPrincipal") if name in raw]
    if kind is PolicyKind.IDENTITY:
        if present:
            raise MalformedPolicy(f"an identity policy has no {present[0]}", where)
        return None
    if len(present) != 1:
        raise MalformedPolicy("there must be one of Principal and NotPrincipal", where)
    name = present[0]
    value = raw[name]
    inside = f"{where}.{name}"
    if value == "*":
        return Principals(negated=name != "Principal", everyone=True, entries=())
    entries = []
    mapping = _object(value, inside)
    _only(mapping, _PRINCIPAL_KINDS, inside)
    for key, listed in mapping.items():
        for text in _texts(listed, f"{inside}.{key}"):
            _check_principal(key, text, inside)
            entries.append((key, text))
    if not entries:
        raise MalformedPolicy("must not be empty", inside)
    return Principals(
        negated=name != "Principal",
        everyone=("AWS", "*") in entries,
        entries=tuple(entries),
    )


def _check_principal(kind: str, text: str, where: str) -> None:
    if kind == "AWS" and text == "*":
        return
    wrong = not text or "*" in text or "?" in text
    if kind == "AWS" and not wrong:
        wrong = not (_ACCOUNT.fullmatch(text) or _RESOURCE.fullmatch(text))
    if wrong:
        raise MalformedPolicy(f"Invalid principal in policy: {text!r}", where)


def _conditions(raw: object, variables: bool, where: str) -> tuple[Condition, ...]:
    found = []
    for name, pairs in _object(raw, where).items():
        inside = f"{where}.{name}"
        seen: set[str] = set()
        for key, listed in _object(pairs, inside).items():
            values = _condition_values(listed, f"{inside}.{key}")
            _check_condition(name, key, values, variables, f"{inside}.{key}")
            if key.lower() in seen and "/" not in key:
                raise MalformedPolicy(f"{key!r} is there twice", inside)
            seen.add(key.lower())
            found.append(Condition(operator=name, key=key, values=values))
        if not seen:
            raise MalformedPolicy("must not be empty", inside)
    return tuple(found)


def _condition_values(raw: object, where: str) -> tuple[str, ...]:
    listed = raw if isinstance(raw, list) else [raw]
    if not listed:
        raise MalformedPolicy("must not be empty", where)
    values = []
    for one in listed:
        if isinstance(one, bool):
            values.append("true" if one else "false")
        elif isinstance(one, str):
            values.append(str(one))
        else:
            raise MalformedPolicy("must be strings, numbers or booleans", where)
    return tuple(values)


def _check_condition(
    name: str, key: str, values: tuple[str, ...], variables: bool, where: str
) -> None:
    if not is_known_key(key):
        raise MalformedPolicy(f"there is no condition key {key!r}", where)
    try:
        compile_condition(name, key, values, variables=variables)
    except MalformedPolicy as error:
        raise MalformedPolicy(error.message, where) from None
    if "String" in name or "Arn" in name:
        for value in values:
            _check_variables(value, variables, where)
