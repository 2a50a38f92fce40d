"""Deciding a request by policies.

An explicit deny in any policy wins; else an allow in any policy allows; else the request is
denied implicitly. A statement applies when its principal (resource and trust policies), its
action, its resource and all its conditions match. Documents are compiled once and kept.

Source: "Policy evaluation logic" in the IAM user guide.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import lru_cache

from .conditions import CompiledCondition, compile_condition
from .document import Document, Effect, PolicyKind, Principals, Statement, parse
from .patterns import Context, ContextValue, Matcher, Pattern, Wild, glob, parse_tokens

COMPILED_KEPT = 4096


class Decision(StrEnum):
    ALLOW = "allowed"
    EXPLICIT_DENY = "explicitDeny"
    IMPLICIT_DENY = "implicitDeny"


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked: ``s3:GetObject`` on ``arn:aws:s3:::bucket/key`` by ``principal``.

    ``context`` has the condition keys (``aws:SourceIp``, ``s3:prefix``, ...; their case does not
    count). ``principal`` is the ARN or, for the type Federated, the provider; "" is anonymous.
    """

    action: str
    resource: str
    context: Mapping[str, ContextValue] = field(default_factory=dict)
    principal: str = ""
    principal_type: str = "AWS"


class Names:
    """A set of patterns without variables: exact names, prefixes, and the rest, fastest first."""

    __slots__ = ("_everything", "_exact", "_globs", "_prefixes")

    def __init__(self, patterns: Iterable[Sequence[str | Wild]]) -> None:
        exact: set[str] = set()
        prefixes: list[str] = []
        globs: list[Matcher] = []
        for tokens in patterns:
            literal = "".join(token for token in tokens if isinstance(token, str))
            wild = [token for token in tokens if isinstance(token, Wild)]
            if not wild:
                exact.add(literal)
            elif wild == [Wild.ANY] and tokens[-1] is Wild.ANY:
                prefixes.append(literal)
            else:
                globs.append(glob(tokens))
        self._everything = "" in prefixes
        self._exact = frozenset(exact)
        self._prefixes = tuple(prefixes)
        self._globs = tuple(globs)

    def __contains__(self, value: str) -> bool:
        if self._everything or value in self._exact or value.startswith(self._prefixes):
            return True
        return any(matches(value) for matches in self._globs)


def _plain(text: str) -> list[str | Wild]:
    tokens = parse_tokens(text, wildcards=True, variables=False)
    return [token for token in tokens if isinstance(token, str | Wild)]


class CompiledStatement:
    __slots__ = (
        "_actions",
        "_allow",
        "_conditions",
        "_not_action",
        "_not_resource",
        "_patterns",
        "_principals",
        "_resources",
        "_without_resource",
    )

    def __init__(self, statement: Statement, *, variables: bool, trust: bool) -> None:
        self._allow = statement.effect is Effect.ALLOW
        self._principals = statement.principals
        self._actions = Names(_plain(action.lower()) for action in statement.actions)
        self._not_action = statement.not_action
        self._without_resource = trust
        self._not_resource = statement.not_resource
        fixed: list[Sequence[str | Wild]] = []
        patterns: list[Pattern] = []
        for resource in statement.resources:
            tokens = parse_tokens(resource, wildcards=True, variables=variables)
            plain = [token for token in tokens if isinstance(token, str | Wild)]
            if len(plain) == len(tokens):
                fixed.append(plain)
            else:
                patterns.append(Pattern(tokens))
        self._resources = Names(fixed)
        self._patterns = tuple(patterns)
        self._conditions: tuple[CompiledCondition, ...] = tuple(
            compile_condition(c.operator, c.key, c.values, variables=variables)
            for c in statement.conditions
        )

    def applies(self, action: str, request: Request, context: Context) -> bool:
        """``action`` is the request's in lower case."""
        if (action in self._actions) is self._not_action:
            return False
        if self._principals is not None and not _is_principal(self._principals, request):
            return False
        if not self._without_resource and not self._is_resource(request.resource, context):
            return False
        return all(condition.holds(context, self._allow) for condition in self._conditions)

    def _is_resource(self, resource: str, context: Context) -> bool:
        found = resource in self._resources
        if not found:
            for pattern in self._patterns:
                matched = pattern.matches(resource, context)
                if matched is None:
                    # Unknown: under NotResource it must not widen what an Allow grants.
                    matched = self._not_resource and self._allow
                if matched:
                    found = True
                    break
        return found is not self._not_resource


def _is_principal(principals: Principals, request: Request) -> bool:
    return _names_principal(principals, request) is not principals.negated


def _names_principal(principals: Principals, request: Request) -> bool:
    if principals.everyone:
        return True
    if not request.principal:
        return False
    kind, name = request.principal_type, request.principal
    if (kind, name) in principals.entries:
        return True
    parts = name.split(":", 5)
    if kind != "AWS" or len(parts) != 6:
        return False
    account = parts[4]
    root = f"arn:{parts[1]}:iam::{account}:root"
    return ("AWS", account) in principals.entries or ("AWS", root) in principals.entries


class CompiledPolicy:
    __slots__ = ("_allows", "_denies")

    def __init__(self, document: Document) -> None:
        trust = document.kind is PolicyKind.TRUST
        allows: list[CompiledStatement] = []
        denies: list[CompiledStatement] = []
        for statement in document.statements:
            compiled = CompiledStatement(statement, variables=document.variables, trust=trust)
            (allows if statement.effect is Effect.ALLOW else denies).append(compiled)
        self._allows = tuple(allows)
        self._denies = tuple(denies)

    def denies(self, action: str, request: Request, context: Context) -> bool:
        return any(statement.applies(action, request, context) for statement in self._denies)

    def allows(self, action: str, request: Request, context: Context) -> bool:
        return any(statement.applies(action, request, context) for statement in self._allows)


@lru_cache(maxsize=COMPILED_KEPT)
def compiled(document: Document) -> CompiledPolicy:
    return CompiledPolicy(document)


@lru_cache(maxsize=COMPILED_KEPT)
def load(text: str, kind: PolicyKind = PolicyKind.IDENTITY) -> CompiledPolicy:
    """The compiled policy of a document's text; raises MalformedPolicy (and keeps nothing)."""
    return compiled(parse(text, kind))


def evaluate(policies: Iterable[Document | CompiledPolicy], request: Request) -> Decision:
    """Decide a request by all policies that concern it."""
    ready = [
        policy if isinstance(policy, CompiledPolicy) else compiled(policy) for policy in policies
    ]
    action = request.action.lower()
    context = Context(request.context)
    for policy in ready:
        if policy.denies(action, request, context):
            return Decision.EXPLICIT_DENY
    for policy in ready:
        if policy.allows(action, request, context):
            return Decision.ALLOW
    return Decision.IMPLICIT_DENY
