"""Transcripts of one lock server: commands and what they caused, as text that reads like a story.

A transcript is a text file. A line that begins with `#` is prose, an empty line is kept, and a command
is `<seconds> <verb> <arguments>`; below it, indented, stands what it caused. `replay` drops the indented
lines and writes them anew.

    start n1#1 peers=n2,n3       a server with incarnation 1 begins (a second one replaces the first)
    acquire n2#5.1 write object:b/k wait=1.5      owner: node#incarnation.attempt
    release, refresh, force, tick, incarnation, suspect, unsuspect, learn, fresh, list
"""

from __future__ import annotations

from locks.entries import Late, Queued
from locks.messages import (
    Acquire,
    ForceRelease,
    Granted,
    LockEntry,
    LockMode,
    Owner,
    Refresh,
    Refused,
    Release,
    resource_set,
)
from locks.table import LockTable


class Storyteller:
    def __init__(self) -> None:
        self._table = LockTable(0.0, 1)

    def replay(self, text: str) -> str:
        told: list[str] = []
        for line in text.splitlines():
            if line.startswith("    "):
                continue
            told.append(line)
            if line and not line.startswith("#"):
                told.extend(f"    {caused}" for caused in self._run(line))
        return "\n".join(told) + "\n"

    def _run(self, line: str) -> list[str]:
        seconds, verb, *words = line.split()
        now_s = float(seconds)
        named = dict(word.split("=", 1) for word in words if "=" in word)
        plain = [word for word in words if "=" not in word]
        said: list[str] = getattr(self, f"_{verb}")(now_s, plain, named)
        return said + [_late(late) for late in self._table.tick(now_s)]

    def _start(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        peers = [peer for peer in named.get("peers", "").split(",") if peer]
        self._table = LockTable(
            now_s,
            int(words[0].partition("#")[2]),
            peers=peers,
            max_waiters=int(named.get("waiters", "256")),
            max_entries=int(named.get("entries", "200000")),
        )
        return ["refuses until it knows what it granted before"]

    def _fresh(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        self._table.all_fresh()
        return ["open"]

    def _acquire(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        wait_s = float(named.get("wait", "0"))
        message = Acquire(
            resource_set(words[2:]),
            LockMode[words[1].upper()],
            _owner(words[0]),
            float(named.get("deadline", wait_s or 1.0)),
            wait_s > 0,
        )
        return [_reply(self._table.acquire(message, now_s))]

    def _release(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        late = self._table.release(Release(resource_set(words[1:]), _owner(words[0])), now_s)
        return ["released", *map(_late, late)]

    def _refresh(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        reply = self._table.refresh(Refresh(resource_set(words[1:]), _owner(words[0])), now_s)
        return ["refreshed" if reply.ok else f"lost {' '.join(reply.lost)}"]

    def _force(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        return [_late(late) for late in self._table.force_release(ForceRelease(words[0]), now_s)]

    def _tick(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        return []

    def _incarnation(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        node, _, incarnation = words[0].partition("#")
        return [_late(late) for late in self._table.node_incarnation(node, int(incarnation), now_s)]

    def _suspect(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        return [_late(late) for late in self._table.suspected(words[0], True, now_s)]

    def _unsuspect(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        return [_late(late) for late in self._table.suspected(words[0], False, now_s)]

    def _learn(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        entries = [LockEntry(r, LockMode.WRITE, _owner(words[1]), 0.0) for r in words[2:]]
        complete = named.get("complete", "yes") == "yes"
        self._table.learn(words[0], entries, now_s, complete=complete)
        return ["still recovering" if self._table.recovering else "open"]

    def _list(self, now_s: float, words: list[str], named: dict[str, str]) -> list[str]:
        return [
            f"{e.resource} {e.mode.name.lower()} {_name(e.owner)} age {e.age_s:g} waiters {e.waiters}"
            for e in self._table.snapshot(now_s)
        ] or ["nothing is held"]


def _owner(word: str) -> Owner:
    node, _, rest = word.partition("#")
    incarnation, _, attempt = rest.partition(".")
    return Owner(node, int(incarnation), int(attempt))


def _name(owner: Owner) -> str:
    return f"{owner.node}#{owner.incarnation}.{owner.attempt}"


def _reply(reply: Granted | Refused | Queued) -> str:
    if isinstance(reply, Granted):
        return f"granted for {reply.lease_s:g} s"
    if isinstance(reply, Queued):
        return f"stands in line, ticket {reply.ticket}"
    reason = f"refused: {reply.reason.name.lower().replace('_', ' ')}"
    return f"{reason} by {_name(reply.holder)}, {reply.age_s:g} s" if reply.holder else reason


def _late(late: Late) -> str:
    return f"-> {_name(late.owner)} (ticket {late.ticket}): {_reply(late.reply)}"
