"""Replays a breaker's story: what happens is left of the bar, what the breaker makes of it right of it.

    0.000  ask             | pass, closed
    0.010  fail            | closed

`ask` admits a call and remembers its ticket under the name given (or as the last one); `ok SECONDS`,
`fail` and `cancel` end it; `dead` and `heartbeat` are membership's verdicts;
`linked` is a link that opened; `permit no` withholds the
permission to open. Lines that begin with # and empty lines are prose.
"""

from __future__ import annotations

from node.guard.breaker import PASS, REFUSED, Breaker, BreakerRules

RULES = BreakerRules(slow_s=1.0, slow_window=4)
JITTER = 0.0


class Storyteller:
    def __init__(self) -> None:
        self._permit = True
        self._breaker = Breaker(RULES, lambda: self._permit)
        self._tickets: dict[str, int] = {}

    def replay(self, story: str) -> str:
        told = [
            line if not line.strip() or line.startswith("#") else self._line(line)
            for line in story.splitlines()
        ]
        return "\n".join(told) + "\n"

    def _line(self, line: str) -> str:
        event = line.partition("|")[0].rstrip()
        when, what, *more = event.split()
        outcome = self._happen(float(when), what, more)
        state = self._breaker.state.name.lower().replace("_", "-")
        return f"{event:<28}| {outcome + ', ' if outcome else ''}{state}"

    def _happen(self, now: float, what: str, more: list[str]) -> str:
        breaker = self._breaker
        if what == "ask":
            ticket = breaker.admit(now)
            if ticket == REFUSED:
                wait_s = breaker.reopens_in(now)
                return "refused" if wait_s == 0 else f"refused for {wait_s:.3f}"
            self._tickets[more[0] if more else ""] = ticket
            return "pass" if ticket == PASS else f"probe {ticket}"
        if what == "permit":
            self._permit = more[0] == "yes"
        elif what == "dead":
            breaker.force_open()
        elif what == "heartbeat":
            breaker.release()
        elif what == "linked":
            breaker.proved_well()
        elif what == "ok":
            breaker.succeeded(self._ticket(more[1:]), now, float(more[0]))
        elif what == "fail":
            breaker.failed(self._ticket(more), now, JITTER)
        elif what == "cancel":
            breaker.neutral(self._ticket(more))
        else:
            raise AssertionError(f"unknown event: {what}")
        return ""

    def _ticket(self, name: list[str]) -> int:
        return self._tickets[name[0] if name else ""]
