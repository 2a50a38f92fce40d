"""Condition operators of policies: String, Numeric, Date, Bool, Binary, IpAddress, Arn and Null.

How one condition is decided (the operator's test says whether one value of the request matches
any value of the policy):

    the key is missing      IfExists: holds; ForAllValues: holds; ForAnyValue: fails;
                            else it holds exactly for the negated operators
    no set prefix           holds when any value matches; negated: when none does
    ForAllValues            holds when each value matches; negated: when none does
    ForAnyValue             holds when any value matches; negated: when any does not

A variable without a value matches nothing. That must not widen what an Allow grants, so a negated
operator over such a variable fails in an Allow and holds in a Deny.

Source: "IAM JSON policy elements: Condition operators" in the IAM user guide.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeAlias

from .errors import MalformedPolicy
from .patterns import Context, Pattern, Token, Variable, normal_key, parse_tokens

_NUMBER = re.compile(r"[+-]?[0-9]{1,40}(?:\.[0-9]{1,40})?(?:[eE][+-]?[0-9]{1,3})?")

# One value of the request against all values of the policy. None: it does not match, but one of
# the policy's values could not be known.
Test: TypeAlias = Callable[[str, Context], bool | None]
Maker: TypeAlias = Callable[[Sequence[str], bool], Test]


class Quantifier(StrEnum):
    NONE = ""
    FOR_ALL = "ForAllValues"
    FOR_ANY = "ForAnyValue"


# ---- tests --------------------------------------------------------------------------------------


def _patterns(wildcards: bool) -> Maker:
    def make(values: Sequence[str], variables: bool) -> Test:
        patterns = [
            Pattern(parse_tokens(value, wildcards=wildcards, variables=variables))
            for value in values
        ]
        literals = frozenset(pattern.literal for pattern in patterns)
        if None not in literals:
            return lambda value, context: value in literals
        return lambda value, context: _any_pattern(patterns, value, context)

    return make


def _any_pattern(patterns: Sequence[Pattern], value: str, context: Context) -> bool | None:
    outcome: bool | None = False
    for pattern in patterns:
        found = pattern.matches(value, context)
        if found:
            return True
        if found is None:
            outcome = None
    return outcome


def _ignoring_case(values: Sequence[str], variables: bool) -> Test:
    patterns = [
        Pattern(
            tuple(
                _folded(token)
                for token in parse_tokens(value, wildcards=False, variables=variables)
            )
        )
        for value in values
    ]
    if not any(pattern.has_variables for pattern in patterns):
        return lambda value, context: _any_pattern(patterns, value.casefold(), context)

    def test(value: str, context: Context) -> bool | None:
        return _any_pattern(patterns, value.casefold(), _Folded(context))

    return test


def _folded(token: Token) -> Token:
    if isinstance(token, str):
        return token.casefold()
    if isinstance(token, Variable) and token.default is not None:
        return Variable(token.key, token.default.casefold())
    return token


class _Folded(Context):
    """A context whose values are case-folded, for variables inside a case-blind comparison."""

    __slots__ = ("_inner",)

    def __init__(self, inner: Context) -> None:
        super().__init__({})
        self._inner = inner

    def get(self, key: str) -> tuple[str, ...]:
        return tuple(value.casefold() for value in self._inner.get(key))


def _arns(values: Sequence[str], variables: bool) -> Test:
    """Each of the six parts on its own, so that a star does not run over a colon."""
    compiled = []
    for value in values:
        parts = _split_arn(value)
        if len(parts) != 6 and value != "*":
            raise MalformedPolicy(f"{value!r} is not an ARN")
        compiled.append(
            [
                Pattern(parse_tokens(part, wildcards=True, variables=variables))
                for part in (parts if len(parts) == 6 else ["*"] * 6)
            ]
        )

    def test(value: str, context: Context) -> bool | None:
        parts = value.split(":", 5)
        if len(parts) != 6:
            return False
        outcome: bool | None = False
        for patterns in compiled:
            found = [
                pattern.matches(part, context)
                for pattern, part in zip(patterns, parts, strict=True)
            ]
            if all(found):
                return True
            if None in found and False not in found:
                outcome = None
        return outcome

    return test


def _split_arn(value: str) -> list[str]:
    """Split at the first five colons that are not inside a variable."""
    parts = [""]
    depth = 0
    for index, char in enumerate(value):
        if char == "{" and value[index - 1 : index] == "$":
            depth = 1
        elif char == "}":
            depth = 0
        if char == ":" and not depth and len(parts) < 6:
            parts.append("")
        else:
            parts[-1] += char
    return parts


def parse_number(text: str) -> float:
    """Raises ValueError for what is not a finite decimal number."""
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number")
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text!r} is out of range")
    return number


def parse_date(text: str) -> float:
    """Seconds since 1970 of an ISO 8601 date (UTC unless it says otherwise) or of such seconds."""
    if _NUMBER.fullmatch(text) and not (len(text) == 8 and text.isdigit()):
        return parse_number(text)
    when = datetime.fromisoformat(text)
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _compared(
    parse: Callable[[str], float], compare: Callable[[float, float], bool], what: str
) -> Maker:
    def make(values: Sequence[str], variables: bool) -> Test:
        try:
            bounds = [parse(value) for value in values]
        except (ValueError, OverflowError):
            raise MalformedPolicy(f"{list(values)} must be {what}") from None

        def test(value: str, context: Context) -> bool:
            try:
                number = parse(value)
            except (ValueError, OverflowError):
                return False
            return any(compare(number, bound) for bound in bounds)

        return test

    return make


def _boolean(text: str) -> bool:
    lowered = text.lower()
    if lowered not in ("true", "false"):
        raise MalformedPolicy(f"{text!r} must be true or false")
    return lowered == "true"


def _booleans(values: Sequence[str], variables: bool) -> Test:
    wanted = frozenset("true" if _boolean(value) else "false" for value in values)
    return lambda value, context: value.lower() in wanted


def _binaries(values: Sequence[str], variables: bool) -> Test:
    try:
        wanted = frozenset(base64.b64decode(value, validate=True) for value in values)
    except (binascii.Error, ValueError):
        raise MalformedPolicy(f"{list(values)} must be base64") from None

    def test(value: str, context: Context) -> bool:
        try:
            return base64.b64decode(value, validate=True) in wanted
        except (binascii.Error, ValueError):
            return False

    return test


def _addresses(values: Sequence[str], variables: bool) -> Test:
    try:
        networks = [ipaddress.ip_network(value, strict=False) for value in values]
    except ValueError:
        raise MalformedPolicy(f"{list(values)} must be IP addresses or CIDR ranges") from None

    def test(value: str, context: Context) -> bool:
        try:
            address = ipaddress.ip_address(value)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
            address = address.ipv4_mapped
        return any(address in network for network in networks)

    return test


# ---- operators ----------------------------------------------------------------------------------

_NUMERIC = "numbers"
_DATES = "dates in ISO 8601 or seconds since 1970"
_COMPARISONS: tuple[tuple[str, bool, Callable[[float, float], bool]], ...] = (
    ("Equals", False, operator.eq),
    ("NotEquals", True, operator.eq),
    ("LessThan", False, operator.lt),
    ("LessThanEquals", False, operator.le),
    ("GreaterThan", False, operator.gt),
    ("GreaterThanEquals", False, operator.ge),
)
_OPERATORS: dict[str, tuple[Maker, bool]] = {
    "StringEquals": (_patterns(False), False),
    "StringNotEquals": (_patterns(False), True),
    "StringEqualsIgnoreCase": (_ignoring_case, False),
    "StringNotEqualsIgnoreCase": (_ignoring_case, True),
    "StringLike": (_patterns(True), False),
    "StringNotLike": (_patterns(True), True),
    "ArnEquals": (_arns, False),
    "ArnLike": (_arns, False),
    "ArnNotEquals": (_arns, True),
    "ArnNotLike": (_arns, True),
    "Bool": (_booleans, False),
    "BinaryEquals": (_binaries, False),
    "IpAddress": (_addresses, False),
    "NotIpAddress": (_addresses, True),
    **{
        f"Numeric{name}": (_compared(parse_number, compare, _NUMERIC), negated)
        for name, negated, compare in _COMPARISONS
    },
    **{
        f"Date{name}": (_compared(parse_date, compare, _DATES), negated)
        for name, negated, compare in _COMPARISONS
    },
}
OPERATORS: frozenset[str] = frozenset(_OPERATORS) | {"Null"}


@dataclass(frozen=True, slots=True, kw_only=True)
class CompiledCondition:
    key: str
    quantifier: Quantifier
    if_exists: bool
    negated: bool
    test: Test | None  # None: the Null operator
    null_wanted: frozenset[bool] = frozenset()

    def holds(self, context: Context, allow: bool) -> bool:
        """Whether the condition holds; ``allow`` says what its statement does (see above)."""
        values = context.get(self.key)
        if self.test is None:
            return (not values) in self.null_wanted
        if not values:
            if self.if_exists or self.quantifier is Quantifier.FOR_ALL:
                return True
            return self.negated and self.quantifier is Quantifier.NONE
        unknown = self.negated and allow  # then an unknown value counts as a match
        outcomes = [
            unknown if outcome is None else outcome
            for outcome in (self.test(value, context) for value in values)
        ]
        if self.quantifier is Quantifier.FOR_ANY:
            return not all(outcomes) if self.negated else any(outcomes)
        if self.quantifier is Quantifier.FOR_ALL and not self.negated:
            return all(outcomes)
        return not any(outcomes) if self.negated else any(outcomes)


def compile_condition(
    name: str, key: str, values: Sequence[str], *, variables: bool
) -> CompiledCondition:
    """Compile ``{name: {key: values}}`` of a Condition element, or raise MalformedPolicy."""
    quantifier = Quantifier.NONE
    prefix, colon, base = name.partition(":")
    if not colon:
        base = name
    elif prefix in (Quantifier.FOR_ALL, Quantifier.FOR_ANY):
        quantifier = Quantifier(prefix)
    else:
        raise MalformedPolicy(f"there is no condition operator {name!r}")
    if base == "Null" and not colon:
        return CompiledCondition(
            key=normal_key(key),
            quantifier=quantifier,
            if_exists=False,
            negated=False,
            test=None,
            null_wanted=frozenset(_boolean(value) for value in values),
        )
    if_exists = base.endswith("IfExists")
    found = _OPERATORS.get(base.removesuffix("IfExists"))
    if found is None:
        raise MalformedPolicy(f"there is no condition operator {name!r}")
    maker, negated = found
    return CompiledCondition(
        key=normal_key(key),
        quantifier=quantifier,
        if_exists=if_exists,
        negated=negated,
        test=maker(values, variables),
    )
