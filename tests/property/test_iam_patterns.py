"""The matcher against the plain definition of the wildcards."""

from __future__ import annotations

import contextlib
import re

from hypothesis import given
from hypothesis import strategies as st

from iam.document import parse
from iam.errors import MalformedPolicy
from iam.patterns import Context, Pattern, parse_tokens

letters = st.text(st.sampled_from("ab/.\n"), max_size=10)
patterns = st.text(st.sampled_from("ab/.*?\n"), max_size=10)


def plainly_matches(pattern: str, value: str) -> bool:
    """What ``*`` and ``?`` mean, by the regular expression that says so."""
    expression = "".join(
        ".*" if char == "*" else "." if char == "?" else re.escape(char) for char in pattern
    )
    return re.fullmatch(expression, value, re.DOTALL) is not None


@given(patterns, letters)
def test_matches_as_defined(pattern: str, value: str) -> None:
    compiled = Pattern(parse_tokens(pattern, wildcards=True, variables=False))
    assert compiled.matches(value, Context({})) is plainly_matches(pattern, value)


@given(patterns, st.text(st.sampled_from("ab*?"), max_size=4), letters)
def test_a_variable_is_its_value_as_plain_text(pattern: str, name: str, value: str) -> None:
    compiled = Pattern(parse_tokens(pattern + "${aws:username}", wildcards=True, variables=True))
    found = compiled.matches(value + name, Context({"aws:username": name}))
    expected = any(
        (value + name)[cut:] == name and plainly_matches(pattern, (value + name)[:cut])
        for cut in [len(value + name) - len(name)]
    )
    assert found is expected


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda inner: (
            st.lists(inner)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "Version",
                        "Statement",
                        "Effect",
                        "Action",
                        "Resource",
                        "Condition",
                        "Principal",
                    ]
                )
                | st.text(),
                inner,
            )
        ),
    )
)
def test_any_json_is_taken_or_refused_properly(value: object) -> None:
    import json

    for source in (value, {"Version": "2012-10-17", "Statement": value}):
        with contextlib.suppress(MalformedPolicy):
            parse(json.dumps(source))
