"""Wildcards and policy variables: ``*``, ``?``, ``${aws:username}``, ``${key, 'default'}``, ``${*}``.

Matching takes time proportional to pattern times value at the worst, whatever the pattern: the
pieces between stars are searched from left to right, and nothing ever backtracks. A pattern comes
from a person who may write policies, the value from anybody.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import TypeAlias

from .errors import MalformedPolicy

RESOLVED_KEPT = 8192

_VARIABLE = re.compile(r"\$\{([^}]*)\}")
_VARIABLE_BODY = re.compile(r"\s*([A-Za-z0-9:/_.@=+\-]+)\s*(?:,\s*'([^']*)'\s*)?")

Matcher: TypeAlias = Callable[[str], bool]
ContextValue: TypeAlias = str | Sequence[str]


class Wild(Enum):
    ANY = auto()  # *
    ONE = auto()  # ?


@dataclass(frozen=True, slots=True)
class Variable:
    key: str  # normalised
    default: str | None


Token: TypeAlias = str | Wild | Variable


def normal_key(key: str) -> str:
    """A condition key as it is compared: case counts only in a tag's name, after the slash."""
    head, slash, tail = key.partition("/")
    return head.lower() + slash + tail


class Context:
    """The condition keys of one request, normalised when the first condition asks for one."""

    __slots__ = ("_given", "_values")

    def __init__(self, given: Mapping[str, ContextValue]) -> None:
        self._given = given
        self._values: dict[str, tuple[str, ...]] | None = None

    def get(self, key: str) -> tuple[str, ...]:
        """The values of a normalised key; empty when the request does not have it."""
        values = self._values
        if values is None:
            values = self._values = {
                normal_key(name): (value,) if isinstance(value, str) else tuple(value)
                for name, value in self._given.items()
            }
        return values.get(key, ())


# ---- parsing ------------------------------------------------------------------------------------


def parse_tokens(text: str, *, wildcards: bool, variables: bool) -> tuple[Token, ...]:
    """Split a pattern. Raises MalformedPolicy for a ``${`` that is no variable."""
    tokens: list[Token] = []
    position = 0
    while variables and (start := text.find("${", position)) >= 0:
        _add_text(tokens, text[position:start], wildcards)
        found = _VARIABLE.match(text, start)
        if found is None:
            raise MalformedPolicy(f"the variable in {text!r} is not closed")
        tokens.append(_variable(found[1], text))
        position = found.end()
    _add_text(tokens, text[position:], wildcards)
    return tuple(tokens)


def _add_text(tokens: list[Token], text: str, wildcards: bool) -> None:
    if not wildcards:
        tokens.extend([text] if text else [])
        return
    for piece in re.split(r"([*?])", text):
        if piece == "*":
            tokens.append(Wild.ANY)
        elif piece == "?":
            tokens.append(Wild.ONE)
        elif piece:
            tokens.append(piece)


def _variable(body: str, text: str) -> Token:
    if body in ("*", "?", "$"):
        return body
    found = _VARIABLE_BODY.fullmatch(body)
    if found is None:
        raise MalformedPolicy(f"the variable ${{{body}}} in {text!r} is not a condition key")
    return Variable(normal_key(found[1]), found[2])


# ---- matching -----------------------------------------------------------------------------------


def glob(tokens: Sequence[str | Wild]) -> Matcher:
    """A matcher for a whole value out of literals and wildcards."""
    if all(isinstance(token, str) for token in tokens):
        return "".join(str(token) for token in tokens).__eq__
    pieces: list[list[str | Wild]] = [[]]
    for token in tokens:
        if token is Wild.ANY:
            pieces.append([])
        else:
            pieces[-1].append(token)
    if len(pieces) == 1:
        return _one_piece(pieces[0])
    if all(isinstance(token, str) for piece in pieces for token in piece):
        texts = ["".join(str(token) for token in piece) for piece in pieces]
        return _between_stars(texts)
    return _between_stars_with_marks(pieces)


def _one_piece(piece: Sequence[str | Wild]) -> Matcher:
    pattern = re.compile(_expression(piece), re.DOTALL)
    return lambda value: pattern.fullmatch(value) is not None


def _expression(piece: Sequence[str | Wild]) -> str:
    return "".join(re.escape(token) if isinstance(token, str) else "." for token in piece)


def _between_stars(texts: Sequence[str]) -> Matcher:
    first, last = texts[0], texts[-1]
    middle = tuple(text for text in texts[1:-1] if text)
    if not middle and not last:
        return (lambda value: value.startswith(first)) if first else (lambda value: True)
    shortest = len(first) + len(last)

    def matches(value: str) -> bool:
        if len(value) < shortest or not (value.startswith(first) and value.endswith(last)):
            return False
        position, end = len(first), len(value) - len(last)
        for text in middle:
            found = value.find(text, position, end)
            if found < 0:
                return False
            position = found + len(text)
        return True

    return matches


def _between_stars_with_marks(pieces: Sequence[Sequence[str | Wild]]) -> Matcher:
    # "?" has a fixed length, so each piece still has one; each search is for a fixed length.
    first = re.compile(_expression(pieces[0]), re.DOTALL)
    last = re.compile(_expression(pieces[-1]), re.DOTALL)
    last_length = sum(len(t) if isinstance(t, str) else 1 for t in pieces[-1])
    middle = [re.compile(_expression(piece), re.DOTALL) for piece in pieces[1:-1] if piece]

    def matches(value: str) -> bool:
        found = first.match(value)
        end = len(value) - last_length
        if found is None or found.end() > end or last.match(value, end) is None:
            return False
        position = found.end()
        for pattern in middle:
            found = pattern.search(value, position, end)
            if found is None:
                return False
            position = found.end()
        return True

    return matches


_resolved_glob = lru_cache(maxsize=RESOLVED_KEPT)(glob)


class Pattern:
    """A pattern ready to match; one with variables is completed from each request's context."""

    __slots__ = ("_static", "_tokens")

    def __init__(self, tokens: tuple[Token, ...]) -> None:
        self._tokens = tokens
        plain = [token for token in tokens if not isinstance(token, Variable)]
        self._static = glob(plain) if len(plain) == len(tokens) else None

    @property
    def has_variables(self) -> bool:
        return self._static is None

    @property
    def literal(self) -> str | None:
        """The only value that matches; None when there is more than one, or a variable."""
        if all(isinstance(token, str) for token in self._tokens):
            return "".join(str(token) for token in self._tokens)
        return None

    @property
    def variables(self) -> list[str]:
        return [token.key for token in self._tokens if isinstance(token, Variable)]

    def matches(self, value: str, context: Context) -> bool | None:
        """Whether the whole value matches; None when a variable of it has no single value."""
        matcher = self._static or self.resolve(context)
        return None if matcher is None else matcher(value)

    def resolve(self, context: Context) -> Matcher | None:
        """The matcher for one request; None when a variable of it has no single value."""
        if self._static is not None:
            return self._static
        tokens: list[str | Wild] = []
        for token in self._tokens:
            if not isinstance(token, Variable):
                tokens.append(token)
                continue
            values = context.get(token.key)
            if len(values) == 1:
                tokens.append(values[0])
            elif not values and token.default is not None:
                tokens.append(token.default)
            else:
                return None
        return _resolved_glob(tuple(tokens))
