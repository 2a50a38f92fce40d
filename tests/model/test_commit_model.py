"""The model's own runs: the rules as built hold, and each rule that is taken away is missed."""

from __future__ import annotations

import pytest

from tests.model.commit_model import job, main, suite

QUICK_STATES = 3_000
# Found only after more states than a quick run has time for; the full run has them.
SLOW = {
    "AS WRITTEN: 2 if-match both acknowledged",
    "conditional with a higher base, no fence",
    "forward overrides the base check",
    "carry to a new epoch while a rival may have W",
    "tombstone gc without floor",
    "asked again once per epoch, not after each answer",
    "record below a floor not asked again",
    "carry to a new epoch while writers retry",
}
SAFE = [(name, kw, limit) for name, kw, bad, limit in suite() if not bad]
BROKEN = [(name, kw, limit) for name, kw, bad, limit in suite() if bad and name not in SLOW]


@pytest.mark.parametrize(("name", "kw", "limit"), SAFE, ids=[s[0] for s in SAFE])
def test_the_rules_hold(name: str, kw: dict, limit: int) -> None:
    _, _, states, _, why, trace, *_ = job((name, kw, False, QUICK_STATES if limit > 0 else -0.3))
    assert why is None, "\n".join(map(str, [why, *trace]))
    assert states > 10


@pytest.mark.parametrize(("name", "kw", "limit"), BROKEN, ids=[b[0] for b in BROKEN])
def test_without_the_rule_a_counterexample_is_found(name: str, kw: dict, limit: int) -> None:
    *_, why, trace, _, _ = job((name, kw, True, limit))
    assert why, "nothing found"
    assert len(trace) >= 3


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_the_whole_suite(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["commit_model"])
    with capsys.disabled():
        assert main() == 0
