"""Negative controls: with a rule of the protocol switched off, the simulation finds the fault.

A checker that has never been red counts for nothing. Each switch has a plan that drives seeds to where the rule
matters; the first seeds in order must find it. The same plans with every rule in place are clean.

Not noticed yet by any seed that was tried: "fence", "predecessors" and "tombstone floor" of tests.sim.switches. They
need rarer timing than storms give; tests/model removes the same rules and finds each.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.sim.scenario import Plan, run_seed

CONTENDED = (
    ("get", 20.0),
    ("head", 15.0),
    ("put", 15.0),
    ("delete", 15.0),
    ("create", 20.0),
    ("replace", 12.0),
    ("list", 3.0),
)


def contended(*nemeses: str, storm_s: float = 12.0) -> Plan:
    """Few keys, many conditions: writers meet."""
    return Plan(
        storm_s=storm_s,
        clients=8,
        keys=3,
        large=0.0,
        pace_s=0.12,
        mix=CONTENDED,
        nemeses=nemeses,
    )


# What a client or the census notices; a switch that only breaks the program proves nothing.
NOTICED = ("no order explains", "believes in a lock", "not calm", "after the storm", "lists")

# rule: (plan, seeds in the order they are tried)
CONTROLS: dict[str, tuple[Plan, tuple[int, ...]]] = {
    "base check": (contended("locks let go"), (1, 2, 3)),
    "sync before ack": (contended("all dark"), (1, 2, 3)),
    "decided check": (contended("locks let go"), (1, 2, 3)),
    "lease check": (contended("isolated for long", storm_s=20.0), (1, 2)),
    "refusal": (contended("two dark", "dark at a step"), (1, 2, 3)),
}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("rule", CONTROLS)
def test_a_rule_that_does_not_hold_is_noticed(rule: str) -> None:
    plan, seeds = CONTROLS[rule]
    broken = replace(plan, without=rule)
    found: list[str] = []
    for seed in seeds:
        found += run_seed(seed, broken).anomalies
        if any(sign in each for each in found for sign in NOTICED):
            return
    raise AssertionError(f"{rule}: nothing was noticed but {found}")


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("rule", CONTROLS)
def test_with_every_rule_in_place_the_same_plans_are_clean(rule: str) -> None:
    plan, seeds = CONTROLS[rule]
    for seed in seeds:
        assert run_seed(seed, plan).anomalies == []
