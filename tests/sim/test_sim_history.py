"""The checker of histories finds what it is there for, and nothing else."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.sim.history import (
    ABSENT,
    Kind,
    Operation,
    Outcome,
    applied,
    body_of,
    linearizable,
    value_of,
)


def op(text: str) -> Operation:
    """kind value[/expected] start end [refused|unknown]"""
    kind, value, start, end, *rest = text.split()
    written, _, expected = value.partition("/")
    unknown = end == "-"
    outcome = Outcome.UNKNOWN if unknown else Outcome.REFUSED if rest else Outcome.DONE
    return Operation(
        key="k",
        kind=Kind(kind),
        client="c",
        start=float(start),
        value=int(written),
        expected=int(expected or 0),
        end=math.inf if unknown else float(end),
        outcome=outcome,
    )


def judged(*texts: str) -> bool | None:
    return linearizable([op(text) for text in texts]).fine


GOOD = {
    "nothing": (),
    "absent at first": ("read 0 0 1",),
    "a write is read": ("put 1 0 1", "read 1 2 3"),
    "a read beside a write sees either": ("put 1 0 9", "read 0 1 2", "read 1 3 4"),
    "an unknown write takes effect late": ("put 1 0 -", "read 0 2 3", "read 1 4 5"),
    "an unknown write never takes effect": ("put 1 0 1", "put 2 2 -", "read 1 3 4"),
    "an unknown delete explains absence": ("put 1 0 1", "delete 0 2 -", "read 0 3 4"),
    "a create is refused by a value": ("put 1 0 1", "create 2 2 3 refused", "read 1 4 5"),
    "an unknown write refuses a create": ("put 1 0 -", "create 2 2 3 refused", "read 1 4 5"),
    "a replace in its turn": ("put 1 0 1", "replace 2/1 2 3", "read 2 4 5"),
    "two at once, one replaces": ("put 1 0 1", "replace 2/1 2 4", "replace 3/1 2 4 refused"),
}

BAD = {
    "an acknowledged write is lost": ("put 1 0 1", "read 0 2 3"),
    "a value comes back": ("put 1 0 1", "put 2 2 3", "read 2 4 5", "read 1 6 7"),
    "an older value is served": ("put 1 0 1", "put 2 2 3", "read 1 4 5"),
    "an unknown write is seen and gone": (
        "put 1 0 1",
        "put 2 2 -",
        "read 2 3 4",
        "read 1 5 6",
    ),
    "a value nobody wrote": ("read 7 0 1",),
    "a deleted object comes back": ("put 1 0 1", "delete 0 2 3", "read 1 4 5"),
    "both replace the same value": ("put 1 0 1", "replace 2/1 2 4", "replace 3/1 2 4"),
    "both create": ("create 1 0 3", "create 2 0 3"),
    "two readers disagree on the order": (
        "put 1 0 9",
        "put 2 0 9",
        "read 1 1 2",
        "read 2 3 4",
        "read 1 5 6",
    ),
    "a refused create of an absent key": ("create 1 0 1 refused",),
}


@pytest.mark.parametrize("name", GOOD)
def test_what_has_an_order_is_fine(name: str) -> None:
    assert judged(*GOOD[name]) is True


@pytest.mark.parametrize("name", BAD)
def test_what_has_no_order_is_found(name: str) -> None:
    assert judged(*BAD[name]) is False


_operation = st.builds(
    lambda kind, value, expected, start, length, outcome: Operation(
        key="k",
        kind=kind,
        client="c",
        start=float(start),
        value=ABSENT if kind is Kind.DELETE else value if kind is Kind.READ else max(value, 1),
        expected=expected,
        end=math.inf if outcome is Outcome.UNKNOWN else start + length + 0.5,
        outcome=outcome
        if kind in (Kind.CREATE, Kind.REPLACE)
        else (Outcome.UNKNOWN if outcome is Outcome.UNKNOWN else Outcome.DONE),
    ),
    st.sampled_from(list(Kind)),
    st.integers(0, 3),
    st.integers(1, 3),
    st.integers(0, 6),
    st.integers(0, 4),
    st.sampled_from(list(Outcome)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(_operation, max_size=5))
def test_it_says_what_trying_every_order_says(operations: list[Operation]) -> None:
    def explains(order: tuple[Operation, ...]) -> bool:
        state = ABSENT
        for index, one in enumerate(order):
            if any(later.end < one.start for later in order[index + 1 :]):
                return False
            after = applied(one, state)
            if after is None:
                return False
            state = after
        return True

    certain = [o for o in operations if o.outcome is not Outcome.UNKNOWN]
    maybe = [o for o in operations if o.outcome is Outcome.UNKNOWN]
    expected = any(
        explains(order)
        for count in range(len(maybe) + 1)
        for chosen in itertools.combinations(maybe, count)
        for order in itertools.permutations([*certain, *chosen])
    )
    assert linearizable(operations).fine is expected


def test_a_body_is_held_to_every_bit() -> None:
    body = body_of("a key", 3, 100)
    assert value_of("a key", body) == 3
    with pytest.raises(ValueError, match="damaged"):
        value_of("a key", body[:-1] + bytes([body[-1] ^ 1]))
    with pytest.raises(ValueError, match="another key"):
        value_of("b key", body)
