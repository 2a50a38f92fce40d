"""Explicit-state model checker of the quorum commit protocol for ONE key (built by node/protocol).

usage:  python -m tests.model.commit_model            whole suite, prints a table, exit 1 if anything is not as expected
        python -m tests.model.commit_model --quick    the same with a tenth of the state budget
        python -m tests.model.commit_model --only S   only the runs whose name contains S
        python -m tests.model.commit_model --trace    also print every counterexample, the shortest first

What is abstracted, and why nothing is lost for safety:
  * no lock at all: every writer, reader and settler may run at any time (worse than any number of lock holders);
  * a crash, a freeze or a lost message is "this step never happens": every prefix of a run is explored and checked,
    and commit / decided / discard / repair messages stay deliverable for ever (late messages);
  * a drive that is dark is a drive that does not answer: every reader may act on any R or more answers. Coming back
    without what was not synced is `blink` (decided flags of one drive vanish). `wipe` is an empty replacement drive:
    what was sent to the old one is gone, what is sent from then on may arrive at any time, also after a `rebuild`;
  * a drive has one floor for all its keys: `floor` is the collection of another key's tombstone there, at any time and
    with any epoch, so that this key's own floor is never known to be its own;
  * an acknowledgement is sent the moment W "yes" are in, an operation begins with its first drive access: the tightest
    real-time order. The monitor is an exact linearizability check (set of possible abstract states), unknown to epochs.
Drives are interchangeable: a state is a sorted tuple of per-drive columns (symmetry reduction by n!).
"""

import random
import sys
import time
from functools import lru_cache
from itertools import combinations, pairwise

# ---------------------------------------------------------------- rules: 1 = corrected protocol; each may be removed
FIXED = {
    "base_check": 1,  # drive: accept only if its top is not newer than the base
    "decided_check": 1,  # reader: newest record counts only when decided, or held by W
    "refuse": 1,  # reader: unknown outcome -> refuse (0: serve the older version)
    "keep_old": 2,  # drive: 2 keep all down to the newest decided, 1 keep one old version, 0 keep none
    "fence": 1,  # roll back only after R or more drives durably promised not to accept the epoch any more
    "fence_synced": 1,  # the promise is synced before the answer (0: a power-off forgets it)
    "monotone": 1,  # a drive's top never falls (0: top is the newest record it stores now)
    "cond_fence": 1,  # conditional writer whose base is above the version it judged fences first
    "cond_settled": 1,  # conditional is judged on a settled version (0: on the newest record seen)
    "gc_floor": 1,  # dropping a tombstone leaves a floor
    "gc_alone": 1,  # tombstone may go when every drive has it decided, synced, alone (0: when every drive has it)
    "gc_reask": 1,  # a record at or below a floor that another answer names is asked for again
    "gc_vouch": 1,  # asked again after that very answer (0: once per epoch, whatever answers come later)
    "repair_floor": 1,  # repair of a version at or below the floor is refused
    "forward_checked": 1,  # completing forward obeys the base check
    "strict_retry": 1,  # retry under a new epoch only after more than n-W refusals (0: after one)
    "unique_epoch": 1,  # tie-break unique per attempt (0: by node id; all coordinators here on one node)
    "wiped_unknown": 1,  # an empty replacement drive counts as "may have it" (0: it answers "without it")
    # Argued, and kept though no run misses them: whoever is proved dead was refused by more than n-W drives, so one
    # of any W others; such a run needs n=5, too wide for a search that ends.
    "rebuild_top": 1,  # a rebuilt drive promises the highest top of those who answered (0: the version's epoch)
    "rebuild_quorum": 1,  # W others must have answered a rebuild (0: R)
    "rebuild_view": 1,  # who answers a rebuild refuses commits that were sent before the replacement (0: takes them)
    "rebuild_asked": 1,  # the rebuilder's answers are younger than the replacement (0: they may be older)
}
AS_WRITTEN = dict(
    FIXED,
    fence=0,
    monotone=0,
    cond_fence=0,
    gc_floor=0,
    gc_alone=0,
    gc_reask=0,
    repair_floor=0,
    strict_retry=0,
)

FOREIGN = (31, 47)  # epochs of another key: above number 1, above number 2; 15 is no attempt here
INIT = 16  # epoch of the version every run may start with: number 1, attempt 0
# Commit of an attempt at a drive: in flight, answered yes / no, forced, in flight since before a replacement.
FLY, YES, NO, FORCE, OLD = 1, 2, 4, 8, 16


class Violation(Exception):
    pass


# ---------------------------------------------------------------- exact linearizability monitor (interned, memoized)
class Monitor:
    """A configuration is (current value, {(op, outcome) linearized but not yet answered}). Values: 0 absent,
    1 initial, 2 + p what operation p writes."""

    def __init__(self, kinds, start):
        self.kinds, self.tab, self.ids = kinds, [], {}
        self.start = self._id(frozenset(), frozenset([(start, frozenset())]))
        self.invoke, self.respond = lru_cache(None)(self._invoke), lru_cache(None)(self._respond)
        self.values, self.closure = lru_cache(None)(self._values), lru_cache(None)(self._closure)

    def _id(self, pending, configs):
        key = (pending, configs)
        if key not in self.ids:
            self.ids[key] = len(self.tab)
            self.tab.append(key)
        return self.ids[key]

    def _invoke(self, m, p):
        pending, configs = self.tab[m]
        return self._id(pending | {p}, configs)

    def _step(self, cur, p):
        kind = self.kinds[p]
        if kind == "read":
            return cur, cur
        if kind in ("del", "guessdel"):
            return 0, "ok"
        if (kind == "cnone" and cur != 0) or (kind == "cmatch" and cur != 1):
            return cur, "fail"
        return 2 + p, "ok"

    def _closure(self, m):
        pending, configs = self.tab[m]
        seen, todo = set(configs), list(configs)
        while todo:
            cur, lin = todo.pop()
            done = {p for p, _ in lin}
            for p in pending - done:
                cur2, out = self._step(cur, p)
                c = (cur2, lin | {(p, out)})
                if c not in seen:
                    seen.add(c)
                    todo.append(c)
        return seen

    def _respond(self, m, p, out):
        pending, _ = self.tab[m]
        keep = frozenset((cur, lin - {(p, out)}) for cur, lin in self.closure(m) if (p, out) in lin)
        return self._id(pending - {p}, keep) if keep else None

    def _values(self, m):  # what an instantaneous read may return now
        return frozenset(cur for cur, _ in self.closure(m))


# ---------------------------------------------------------------- the model
# state  = (cols, procs, atts, dec, dead, budget, mon)
# col    = (top, gfl, recs, att, snaps)   recs: ascending tuple of epoch*2 + decided;  top = -1: wiped drive
# snap   = an answer that an operation has: (top,) of a plain writer, else (top, recs, gfl, vouched): its floor says
#          nothing about epochs up to `vouched`, whose holders were asked again after it
# procs  = per operation (phase, attempt, E): 0 idle, 1 reading, 2 commit sent, 3 over, 4 reading with fence at E,
#          5 rebuild sent: E is the version, `attempt` holds the top and the floor that go with it
# atts   = per attempt (epoch, base, value); epoch = number*16 + attempt index (1..)
# dec / dead = epochs that somebody knows to be decided / proved dead: those messages may arrive at any time
# budget = (blinks, wipes, tombstones that all drives had, attempts made before a replacement,
#          floors that other keys may still raise)
class Model:
    def __init__(
        self,
        n,
        k,
        w,
        ops,
        rules=FIXED,
        init="all",
        attempts=1,
        blinks=1,
        wipes=0,
        gc=0,
        repair=0,
        floors=0,
        probes=1,
    ):
        self.n, self.k, self.w, self.r = n, k, w, n - w + 1
        self.ops, self.rules, self.attempts, self.gc, self.repair = ops, rules, attempts, gc, repair
        self.F = type("Rules", (), rules)
        self.att_op = [None]
        self.first = {}
        for p, kind in enumerate(ops):
            if kind not in ("read", "settle", "rebuild"):
                self.first[p] = len(self.att_op)
                self.att_op += [p] * (1 if kind == "carry" else attempts)
        assert len(self.att_op) <= 15
        self.mon = Monitor(ops, 0 if init == "absent" else 1)
        na, npr = len(self.att_op), len(ops)
        have = {"absent": 0, "all": n, "w": w}[init]
        cols = [(INIT, 0, (INIT * 2 + 1,), (0,) * na, ((),) * npr)] * have
        cols += [(0, 0, (), (0,) * na, ((),) * npr)] * (n - have)
        self.init = self.canon(
            (
                tuple(cols),
                ((0, 0, 0),) * npr,
                ((INIT, 0, 1),) + ((0, 0, 0),) * (na - 1),
                (INIT,) if have else (),
                (),
                (blinks, wipes, (), (), floors),
                self.mon.start,
            )
        )
        self.probes, self.probing = {}, probes
        self.fenced = 0  # states where a rival or a fence costs readability while drives are dark

    @staticmethod
    def canon(s):
        return (tuple(sorted(s[0])), *s[1:])

    def value(self, e, atts):
        return atts[e & 15][2] if e else 0

    def writes(self, p):
        return 0 if self.ops[p] in ("del", "guessdel") else 2 + p

    # ------------------------------------------------------------ drive
    def accept(self, top, recs, e, base, force=False):
        F = self.F
        if any(x >> 1 == e for x in recs):
            return top, recs, YES
        if not F.unique_epoch and any(x >> 5 == e >> 4 for x in recs):
            return top, recs, YES  # "this very commit", judged by number and node id only
        if not ((top <= base if F.base_check else e > top) or force):
            return top, recs, NO
        old = recs if F.keep_old == 2 else recs[-1:] if F.keep_old == 1 else ()
        return max(top, e), tuple(sorted((*old, e * 2))), YES

    def decide(self, recs, e):  # flag it, let everything older go
        return tuple(x | 1 if x >> 1 == e else x for x in recs if x >> 1 >= e)

    def discard(self, top, recs, e):
        recs = tuple(x for x in recs if x >> 1 != e)
        return (top if self.F.monotone else max([x >> 1 for x in recs] or [0])), recs

    # ------------------------------------------------------------ what a set of answers says
    def resolve(self, snaps, atts):
        """-> ('serve', epoch, holders, dead epochs) or ('need' / 'stale', epoch, holders, acceptors)."""
        F, unknown = self.F, self.n - len(snaps)
        dead = []
        for e in sorted({x >> 1 for _, recs, *_ in snaps for x in recs}, reverse=True):
            held = sum(1 for _, recs, *_ in snaps if e * 2 in recs or e * 2 + 1 in recs)
            # An answer that holds nothing so old and names a floor: gone since, or of another key.
            if F.gc_reask and any(
                gfl >= e > vouched and (not recs or recs[0] >> 1 > e)
                for _, recs, gfl, vouched in snaps
            ):
                return "stale", e, held, 0
            if (
                not F.decided_check
                or held >= self.w
                or any(e * 2 + 1 in recs for _, recs, *_ in snaps)
            ):
                return "serve", e, held, dead
            base = atts[e & 15][1]
            can = sum(1 for top, recs, *_ in snaps if top <= base and e * 2 not in recs)
            if held + unknown + (can if F.fence else 0) < self.w:
                dead.append(e)
            elif F.refuse:
                return "need", e, held, can
        return "serve", 0, 0, dead

    # ------------------------------------------------------------ one reader alone, nothing else moves
    def settle_alone(self, drives, idx, atts, fence_first=False):
        """Drives idx answer. -> value served or None (refused), dead epochs."""
        d = list(drives)
        if fence_first:
            e = max([x >> 1 for i in idx for x in d[i][1]] or [0])
            for i in idx:
                d[i] = (max(d[i][0], e), *d[i][1:])
        for _ in range(40):
            got = self.resolve([d[i] for i in idx], atts)
            if got[0] == "serve":
                _, e, held, dead = got
                val = self.value(e, atts)
                return (None if val and held < self.k else val), e, dead
            what, e, held, can = got
            if what == "stale":
                d = [(*x[:3], e) for x in d]  # asked again at the same moment they say the same
                continue
            if held >= self.k and held + can >= self.w:
                for i in idx:
                    d[i] = (*self.accept(*d[i][:2], e, atts[e & 15][1])[:2], d[i][2], 0)
            elif held + self.n - len(idx) < self.w and self.F.fence:
                for i in idx:
                    d[i] = (max(d[i][0], e), *d[i][1:3], 0)
            else:
                return None, e, []
        raise Violation("settlement does not terminate")

    def probe(self, drives, atts):
        """All values an instantaneous reader could be served; the value with all drives back; smallest answer sets."""
        key = (drives, atts)
        hit = self.probes.get(key)
        if hit is None:
            alive = [i for i in range(self.n) if drives[i][0] >= 0]
            out, calm = set(), True
            seen = set()
            for m in range(self.r, len(alive) + 1):
                for idx in combinations(alive, m):
                    sub = tuple(drives[i] for i in idx)
                    if sub in seen:
                        continue
                    seen.add(sub)
                    got = self.resolve(sub, atts)
                    if got[0] == "serve" and not (self.value(got[1], atts) and got[2] < self.k):
                        out.add(self.value(got[1], atts))
                    vals = [
                        self.settle_alone(drives, idx, atts, f)[0]
                        for f in (0, 1)[: 1 + self.F.fence]
                    ]
                    out.update(v for v in vals if v is not None)
                    if vals[0] is None and self.n - m <= min(self.w - self.k, self.n - self.w):
                        calm = False
            full = self.settle_alone(drives, tuple(alive), atts) if len(alive) == self.n else None
            hit = self.probes[key] = (out, full, calm)
        return hit

    def check(self, s):
        cols, _procs, atts, dec, _dead, budget, mon = s
        if not self.probing:  # only what the clients of this run themselves were told
            return
        # (Below a newer one it may be: `blink` takes a flag without bringing back what the flag let go.)
        if self.F.gc_alone and any(c[2] and c[2][-1] >> 1 < t for t in budget[2] for c in cols):
            raise Violation("a version older than a tombstone that all drives had is held")
        drives = tuple(sorted((c[0], c[2], c[1], 0) for c in cols))
        out, full, calm = self.probe(drives, atts)
        bad = out - self.mon.values(mon)
        if bad:
            raise Violation(
                f"a reader that starts now may be served value {sorted(bad)}, allowed are "
                f"{sorted(self.mon.values(mon))}"
            )
        if full is not None:
            if full[0] is None:
                raise Violation(
                    "all drives are back and settlement cannot answer: stuck or data let go too early"
                )
            for e in full[2]:
                if dec and e == max(dec) and e not in budget[2]:
                    raise Violation("a decided epoch is judged dead")
        if not dec or budget[1] < 0:
            return
        new = max(dec)  # the newest version anybody was told of
        have = [any(x >> 1 >= new for x in c[2]) for c in cols]
        if self.w > sum(have) + sum(c[0] < 0 for c in cols) and new not in budget[2]:
            raise Violation(f"the newest decided version {new} is on fewer than W drives")
        if all(c[0] >= 0 for c in cols) and not any(x >> 1 > new for c in cols for x in c[2]):
            if not any(
                c[0] > atts[new & 15][1] and not h for c, h in zip(cols, have, strict=False)
            ):
                if not calm:
                    raise Violation(
                        "not readable with min(W-k, n-W) drives dark, though nothing newer, no rival, no fence"
                    )
            elif not calm:
                self.fenced += 1

    # ------------------------------------------------------------ successors
    def successors(self, s):
        cols, procs, atts, dec, dead, budget, mon = s
        F, n, w, out = self.F, self.n, self.w, []

        def put(
            label, cols=cols, procs=procs, atts=atts, dec=dec, dead=dead, budget=budget, mon=mon
        ):
            out.append((label, (tuple(cols), procs, atts, dec, dead, budget, mon)))

        def setp(p, v):
            return (*procs[:p], v, *procs[p + 1 :])

        def col(i, **kw):
            top, gfl, recs, att, snaps = cols[i]
            new = (
                kw.get("top", top),
                kw.get("gfl", gfl),
                kw.get("recs", recs),
                kw.get("att", att),
                kw.get("snaps", snaps),
            )
            return (*cols[:i], new, *cols[i + 1 :])

        def clear(cs, p):
            return tuple(
                c if not c[4][p] else (*c[:4], (*c[4][:p], (), *c[4][p + 1 :])) for c in cs
            )

        distinct = [i for i in range(n) if i == 0 or cols[i] != cols[i - 1]]
        for p, kind in enumerate(self.ops):
            ph, a, E = procs[p]
            if ph == 0 and kind == "rebuild" and F.rebuild_asked and all(c[0] >= 0 for c in cols):
                continue  # nothing to rebuild yet
            plain = kind in ("put", "del", "guess", "guessdel")
            if kind in ("guess", "guessdel") and ph == 0:
                # Commits without reading, on a base of long ago or on one above all that there is.
                m2 = self.mon.invoke(mon, p)
                for base in (0, INIT, 2 * INIT + 8):
                    self.commit(put, p, a, base, cols, procs, atts, self.writes(p), mon=m2)
                continue
            if ph in (0, 1, 4):
                seen = [c[4][p] for c in cols if c[4][p]]
                if not (plain and len(seen) >= self.r):
                    m2 = (
                        self.mon.invoke(mon, p)
                        if ph == 0 and kind not in ("settle", "carry", "rebuild")
                        else mon
                    )
                    for i in distinct:
                        top, gfl, recs, att, snaps = cols[i]
                        if snaps[p] or top < 0:
                            continue
                        t2 = max(top, E) if ph == 4 else top
                        snap = (t2,) if plain else (t2, recs, gfl, 0 if F.gc_vouch else E)
                        if kind == "rebuild" and F.rebuild_view:
                            att = tuple(x & ~OLD for x in att)
                        put(
                            (self.name(p), "fences" if ph == 4 else "reads", i, snap),
                            col(i, top=t2, att=att, snaps=(*snaps[:p], snap, *snaps[p + 1 :])),
                            setp(p, (ph or 1, a, E)),
                            mon=m2,
                        )
                need = self.w if kind == "rebuild" and F.rebuild_quorum else self.r
                if len(seen) < need:
                    continue
                bare = clear(cols, p)
                if plain:
                    self.commit(
                        put, p, a, max(t for (t,) in seen), bare, procs, atts, self.writes(p)
                    )
                    continue
                maxtop = max(t for t, *_ in seen)
                got = self.resolve(seen, atts)
                if kind[0] == "c" and not F.cond_settled:
                    e = max([x >> 1 for _, recs, *_ in seen for x in recs] or [0])
                    got = ("serve", e, 0, [])
                if got[0] == "serve":
                    _, e, held, nd = got
                    val = self.value(e, atts)
                    dead2 = tuple(sorted(set(dead) | set(nd)))
                    dec2 = tuple(sorted(set(dec) | {e})) if held >= w else dec
                    if kind == "rebuild":
                        if not (val and held < self.k):
                            top = max(e, *(t for t, *_ in seen)) if F.rebuild_top else e
                            gfl = max(g for _, _, g, _ in seen)
                            put(
                                (self.name(p), "rebuilds", e, "top", top),
                                bare,
                                setp(p, (5, (top, gfl), e)),
                                dec=dec2,
                                dead=dead2,
                            )
                    elif kind in ("settle", "carry"):
                        put(
                            (self.name(p), "settles on", e, "dead", nd),
                            bare,
                            setp(p, (3, 0, 0)),
                            dec=dec2,
                            dead=dead2,
                        )
                    elif kind == "read":
                        if not (val and held < self.k):
                            put(
                                (self.name(p), "RETURNS", val, "dead", nd),
                                bare,
                                setp(p, (3, 0, 0)),
                                dec=dec2,
                                dead=dead2,
                                mon=self.mon.respond(mon, p, val),
                            )
                    elif val != (0 if kind == "cnone" else 1):
                        put(
                            (self.name(p), "412, sees", val),
                            bare,
                            setp(p, (3, 0, 0)),
                            dec=dec2,
                            dead=dead2,
                            mon=self.mon.respond(mon, p, "fail"),
                        )
                    elif maxtop > e and F.cond_fence and any(t < maxtop for t, *_ in seen):
                        put((self.name(p), "must fence at", maxtop), bare, setp(p, (4, a, maxtop)))
                    else:
                        self.commit(
                            put,
                            p,
                            a,
                            maxtop,
                            bare,
                            procs,
                            atts,
                            self.writes(p),
                            dec=dec2,
                            dead=dead2,
                        )
                elif got[0] == "stale":
                    put(
                        (self.name(p), "asks again", got[1]),
                        self.ask_again(cols, p, got[1]),
                        setp(p, (ph, a, E if F.gc_vouch else max(E, got[1]))),
                    )
                else:
                    _, e, held, _can = got
                    if held >= self.k:  # complete it forward: its commit again where it is missing
                        b = e & 15
                        again = FLY if F.forward_checked else FLY | FORCE
                        fly = tuple(
                            (*c[:3], (*c[3][:b], c[3][b] | again, *c[3][b + 1 :]), *c[4:])
                            if e * 2 not in c[2] and (c[0] <= atts[b][1] or not F.forward_checked)
                            else c
                            for c in bare
                        )
                        put((self.name(p), "completes forward", e), fly, setp(p, (1, a, 0)))
                    top = max(t for t, *_ in seen)
                    if F.fence and (ph != 4 or top > E):
                        put((self.name(p), "will fence", top), bare, setp(p, (4, a, top)))
                    if (
                        kind == "carry" and ph == 4 and top == E and held >= self.k
                    ):  # same value, new epoch
                        self.commit(put, p, a, top, bare, procs, atts, self.value(e, atts))
            elif ph == 5:
                for i in distinct:
                    if cols[i][0] < 0:
                        (top, gfl), recs = a, (E * 2 + 1,) if E else ()
                        top = top if recs else max(top, gfl)
                        put(
                            (self.name(p), "has rebuilt", E, "top", top, i),
                            col(i, top=top, gfl=gfl, recs=recs),
                            setp(p, (3, 0, 0)),
                        )
            elif ph == 2:  # refused by so many that it cannot have W: read again, new epoch
                b = self.first[p] + a
                no = sum(1 for c in cols if c[3][b] & NO)
                if (
                    kind != "carry"
                    and a + 1 < self.attempts
                    and no > (n - w if F.strict_retry else 0)
                ):
                    put((self.name(p), "retries"), self.forget(cols, b), setp(p, (1, a + 1, 0)))

        for i in distinct:
            top, gfl, recs, att, snaps = cols[i]
            if top < 0:
                continue
            for b in range(len(att)):
                for way in (FLY, OLD):
                    if att[b] & way:
                        self.deliver(put, col, s, i, b, way)
            for e in dec:
                if e * 2 in recs:
                    put(("decided", e, i), col(i, recs=self.decide(recs, e)))
                if (
                    self.repair
                    and (e > gfl or not F.repair_floor)
                    and not any(x >> 1 == e or (x & 1 and x >> 1 > e) for x in recs)
                ):
                    put(
                        ("repair", e, i),
                        col(
                            i,
                            top=max(top, e),
                            recs=tuple(x for x in sorted((*recs, e * 2 + 1)) if x >> 1 >= e),
                        ),
                    )
            for e in dead:
                if e * 2 in recs:
                    t2, r2 = self.discard(top, recs, e)
                    t2 = t2 if r2 else max(t2, gfl)
                    put(("discard", e, i), col(i, top=t2, recs=r2))
            if budget[0] and any(x & 1 for x in recs):
                put(
                    ("blink", i),
                    col(
                        i,
                        recs=tuple(
                            x if F.gc_alone and x >> 1 in budget[2] else x & ~1 for x in recs
                        ),
                        top=top if F.fence_synced else recs[-1] >> 1,
                    ),
                    budget=(budget[0] - 1, *budget[1:]),
                )
            if budget[1] and recs:
                gone = tuple(x & ~(FLY | OLD) for x in att)
                new = (-1 if F.wiped_unknown else 0, 0, (), gone, snaps)
                others, old = cols, budget[3]
                if "rebuild" in self.ops:  # what is in flight now carries the older view
                    old = tuple(b for b in range(len(atts)) if atts[b][0])
                    others = tuple(
                        (*c[:3], tuple(x & ~FLY | OLD if x & FLY else x for x in c[3]), *c[4:])
                        for c in cols
                    )
                put(
                    ("wipe", i),
                    (*others[:i], new, *others[i + 1 :]),
                    budget=(budget[0], budget[1] - 1, budget[2], old, budget[4]),
                )
            if self.gc:
                for e in budget[2]:
                    if recs and recs[-1] >> 1 == e:
                        put(
                            ("gc tombstone", e, i),
                            col(
                                i,
                                recs=(),
                                top=max(top, gfl) if F.gc_floor else gfl,
                                gfl=max(top, gfl) if F.gc_floor else gfl,
                            ),
                        )
            if budget[4]:
                for e in FOREIGN:
                    if e > gfl:
                        put(
                            ("floor", e, i),
                            col(i, gfl=e, top=top if recs else max(top, e)),
                            budget=(*budget[:4], budget[4] - 1),
                        )
        if self.gc:
            for e in dec:
                if (
                    e > INIT
                    and self.value(e, atts) == 0
                    and e not in budget[2]
                    and all(
                        (c[0] >= 0 and not c[2] and c[1] >= e)  # as if it had let it go already
                        or any(
                            x >> 1 == e and (not F.gc_alone or (j == 0 and x & 1))
                            for j, x in enumerate(c[2])
                        )
                        for c in cols
                    )
                ):
                    put(
                        ("all drives have tombstone", e),
                        budget=(*budget[:2], tuple(sorted(set(budget[2]) | {e})), *budget[3:]),
                    )
        return out

    def deliver(self, put, col, s, i, b, way):
        """The commit of attempt b comes to drive i; `way`: FLY, or OLD for one sent before a replacement."""
        cols, procs, atts, dec, _dead, budget, mon = s
        top, _, recs, att, _ = cols[i]
        e, base, _ = atts[b]
        t2, r2, ans = self.accept(top, recs, e, base, att[b] & FORCE)
        p = self.att_op[b]
        live = b > 0 and procs[p][0] == 2 and self.first[p] + procs[p][1] == b
        if way == FLY and b in budget[3]:  # from a settler: nothing that the writer hears of
            live, left = False, att[b] & ~(FLY | FORCE)
        else:
            left = ans if live else 0
        cs = col(i, top=t2, recs=r2, att=(*att[:b], left, *att[b + 1 :]))
        lab = (
            "commit",
            self.name(p) if b else "init",
            e,
            "base",
            base,
            "yes" if ans == YES else "NO",
            i,
        )
        if live and sum(1 for c in cs if c[3][b] & YES) >= self.w:
            put(
                (*lab, "ACK"),
                self.forget(cs, b),
                (*procs[:p], (3, 0, 0), *procs[p + 1 :]),
                dec=tuple(sorted(set(dec) | {e})),
                mon=mon if self.ops[p] == "carry" else self.mon.respond(mon, p, "ok"),
            )
        elif live or (t2, r2) != (top, recs):
            put(lab, cs)

    def commit(self, put, p, a, base, cols, procs, atts, value, **kw):
        b = self.first[p] + a
        e = ((base >> 4) + 1) * 16 + b
        cols = tuple(
            (*c[:3], (*c[3][:b], FLY, *c[3][b + 1 :]), *c[4:])
            if c[0] >= 0 or "rebuild" in self.ops
            else c
            for c in cols
        )
        put(
            (self.name(p), "commits", e, "base", base),
            cols,
            (*procs[:p], (2, a, 0), *procs[p + 1 :]),
            atts=(*atts[:b], (e, base, value), *atts[b + 1 :]),
            **kw,
        )

    @staticmethod
    def forget(cols, b):  # the coordinator stops listening; messages stay under way
        return tuple(
            c
            if not c[3][b] & (YES | NO)
            else (*c[:3], (*c[3][:b], c[3][b] & ~(YES | NO), *c[3][b + 1 :]), *c[4:])
            for c in cols
        )

    def ask_again(self, cols, p, e):
        """Rule 0: the answers that hold anything up to `e` are asked for anew, after those that name a floor."""
        out = []
        for c in cols:
            snap = c[4][p]
            if snap and any(x >> 1 <= e for x in snap[1]):
                snap = ()
            elif snap:
                snap = (*snap[:3], max(snap[3], e))
            out.append((*c[:4], (*c[4][:p], snap, *c[4][p + 1 :])))
        return tuple(out)

    def name(self, p):
        return f"{self.ops[p]}{p}"

    def tidy(self, s):  # a late commit that must be refused for ever is no state
        if not (
            self.F.monotone and self.F.base_check and self.F.forward_checked and self.F.unique_epoch
        ):
            return s
        cols, procs, atts = s[:3]
        gone = [
            b
            for b in range(len(atts))
            if atts[b][0]
            and not (
                b
                and procs[self.att_op[b]][0] == 2
                and self.first[self.att_op[b]] + procs[self.att_op[b]][1] == b
            )
        ]
        if gone:
            new = []
            for c in cols:
                att = c[3]
                for b in gone:
                    if att[b] and c[0] > atts[b][1]:
                        att = (*att[:b], 0, *att[b + 1 :])
                new.append(c if att is c[3] else (*c[:3], att, *c[4:]))
            s = (tuple(new), *s[1:])
        return s

    # ------------------------------------------------------------ search
    def bfs(self, limit):
        """-> (states, complete?, violation text or None, trace)."""
        seen, order, i = {self.init: None}, [self.init], 0
        try:
            self.check(self.init)
            while i < len(order):
                s = order[i]
                i += 1
                for label, raw in self.successors(s):
                    if raw[6] is None:
                        raise Violation(f"{label}: the history is not linearizable", s, label)
                    t = self.canon(self.tidy(raw))
                    if t in seen:
                        continue
                    seen[t] = s
                    try:
                        self.check(t)
                    except Violation as v:
                        raise Violation(str(v), t, None) from v
                    order.append(t)
                if len(order) >= limit:
                    return len(order), False, None, None
        except Violation as v:
            path, t = [], v.args[1]
            while t is not None:
                path.append(t)
                t = seen[t]
            return (
                len(order),
                False,
                v.args[0],
                self.replay(path[::-1]) + ([v.args[2]] if v.args[2] else []),
            )
        return len(order), True, None, None

    def walks(self, seconds, seed, max_steps=400):
        """Random deep runs; -> (steps, distinct-ish walks, violation, trace)."""
        rnd, steps, runs, end = random.Random(seed), 0, 0, time.monotonic() + seconds
        while time.monotonic() < end:
            runs += 1
            s, path = self.init, []
            bias = rnd.choice((0, 1, 2))
            for _ in range(max_steps):
                nxt = self.successors(s)
                if not nxt:
                    break
                if bias == 1 and rnd.random() < 0.7:  # let one operation run for a while
                    who = rnd.choice(sorted({step[0] for step, _ in nxt}))
                    nxt = [x for x in nxt if x[0][0] == who]
                label, raw = rnd.choice(nxt)
                path.append(label)
                steps += 1
                if raw[6] is None:
                    return steps, runs, "the history is not linearizable", path
                s = self.canon(self.tidy(raw))
                if len(self.probes) > 50_000:
                    self.probes.clear()
                try:
                    self.check(s)
                except Violation as v:
                    return steps, runs, str(v), path
        return steps, runs, None, None

    def replay(self, path):
        """Labels along a path of canonical states, with stable drive names."""
        names, out = [f"D{i + 1}" for i in range(self.n)], []
        for s, t in pairwise(path):
            for label, raw in self.successors(s):
                tid = self.tidy(raw)
                if self.canon(tid) == t:
                    pos = (
                        2
                        if label[1] in ("reads", "fences")
                        else 6
                        if label[0] == "commit"
                        else len(label) - 1
                        if label[0]
                        in (
                            "decided",
                            "repair",
                            "discard",
                            "blink",
                            "wipe",
                            "gc tombstone",
                            "floor",
                        )
                        else None
                    )
                    lab = tuple(names[x] if j == pos else x for j, x in enumerate(label))
                    out.append(lab)
                    left = list(zip(tid[0], names, strict=False))
                    names = []
                    for c in t[0]:
                        j = next(j for j, (cc, _) in enumerate(left) if cc == c)
                        names.append(left.pop(j)[1])
                    break
        return out


# ---------------------------------------------------------------- the suite
S3, S4, S5 = {"n": 3, "w": 2}, {"n": 4, "k": 2, "w": 3}, {"n": 5, "k": 3}
BIG = 400_000


def suite():
    """(name, model arguments, expect a violation?, state limit or -seconds of random walks).

    Operations: put, del, read, guess and guessdel (put and del whose first attempt does not read, but guesses its
    base), cnone (If-None-Match: *), cmatch (If-Match: initial version), settle (reader that only settles), carry
    (NOT part of the protocol: settles by writing the same value under a new epoch)."""
    jobs = []
    for k in (1, 2):
        g = dict(S3, k=k)
        for name, ops, kw in (
            ("2 put", ("put", "put"), {}),
            ("put, read", ("put", "read"), {}),
            ("put, settle", ("put", "settle"), {}),
            ("2 if-none-match", ("cnone", "cnone"), {"init": "absent"}),
            ("2 if-match", ("cmatch", "cmatch"), {}),
            ("put, if-match", ("put", "cmatch"), {}),
            ("if-match, delete", ("cmatch", "del"), {}),
            ("put, delete, tombstone gc, repair", ("put", "del"), {"gc": 1, "repair": 1}),
            ("if-match, delete, gc, repair", ("cmatch", "del"), {"gc": 1, "repair": 1}),
            ("put, read, repair, old on W only", ("put", "read"), {"init": "w", "repair": 1}),
            ("2 put with retry", ("put", "put"), {"attempts": 2}),
            ("2 if-match with retry", ("cmatch", "cmatch"), {"attempts": 2}),
            ("put, 2 read", ("put", "read", "read"), {}),
            ("2 put, read", ("put", "put", "read"), {}),
            ("put, if-match, settle", ("put", "cmatch", "settle"), {}),
            ("put, wipe, settle", ("put", "settle"), {"wipes": 1}),
            ("put, wipe, rebuild", ("put", "rebuild"), {"wipes": 1}),
            ("put, settle, wipe, rebuild", ("put", "settle", "rebuild"), {"wipes": 1}),
            ("if-match, settle, wipe, rebuild", ("cmatch", "settle", "rebuild"), {"wipes": 1}),
            ("2 if-match, wipe, rebuild", ("cmatch", "cmatch", "rebuild"), {"wipes": 1}),
            (
                "2 if-none-match, wipe, rebuild",
                ("cnone", "cnone", "rebuild"),
                {"init": "absent", "wipes": 1},
            ),
            (
                "put, delete, gc, repair, wipe, rebuild",
                ("put", "del", "rebuild"),
                {"gc": 1, "repair": 1, "wipes": 1},
            ),
            ("put, read, other floors", ("put", "read"), {"floors": 2}),
            ("put, settle, other floors", ("put", "settle"), {"floors": 2}),
            ("2 if-none-match, other floors", ("cnone", "cnone"), {"init": "absent", "floors": 2}),
            (
                "read, old on W only, repair, other floors",
                ("put", "read"),
                {"init": "w", "repair": 1, "floors": 2, "blinks": 0},
            ),
            (
                "delete, read, gc, repair, other floors",
                ("del", "read"),
                {"gc": 1, "repair": 1, "floors": 1},
            ),
            (
                "put, delete, gc, repair, other floors",
                ("put", "del"),
                {"gc": 1, "repair": 1, "floors": 1, "blinks": 0},
            ),
            (
                "if-match, delete, gc, other floors",
                ("cmatch", "del"),
                {"gc": 1, "floors": 1, "blinks": 0},
            ),
            ("delete, wipe, gc, other floors", ("del", "read"), {"gc": 1, "wipes": 1, "floors": 1}),
            ("2 guess", ("guess", "guess"), {}),
            ("guess, put with retry", ("guess", "put"), {"attempts": 2}),
            ("guess, if-match with retry", ("guess", "cmatch"), {"attempts": 2}),
            ("guess, if-none-match", ("guess", "cnone"), {"init": "absent"}),
            ("2 guess, read", ("guess", "guess", "read"), {"init": "absent"}),
            ("guess, read, repair, old on W only", ("guess", "read"), {"init": "w", "repair": 1}),
            ("guess, guessed delete, gc, repair", ("guess", "guessdel"), {"gc": 1, "repair": 1}),
            ("guess, wipe, settle", ("guess", "settle"), {"wipes": 1}),
            ("guess, wipe, rebuild", ("guess", "rebuild"), {"wipes": 1}),
            ("guess, read, other floors", ("guess", "read"), {"floors": 2}),
            (
                "guess, delete, gc, other floors",
                ("guess", "del"),
                {"gc": 1, "floors": 1, "blinks": 0},
            ),
            ("2 guess, wipe, rebuild", ("guess", "guess", "rebuild"), {"wipes": 1}),
            ("guess, if-match, wipe, rebuild", ("guess", "cmatch", "rebuild"), {"wipes": 1}),
        ):
            jobs.append((f"n=3 k={k} W=2 {name}", dict(g, ops=ops, **kw), False, BIG))
    for name, ops, kw in (
        ("2 put", ("put", "put"), {}),
        ("put, read", ("put", "read"), {}),
        ("2 if-none-match", ("cnone", "cnone"), {"init": "absent"}),
        ("2 if-match", ("cmatch", "cmatch"), {}),
        ("if-match, delete, gc", ("cmatch", "del"), {"gc": 1}),
        ("2 put, read", ("put", "put", "read"), {}),
        ("put, read, old on W only, repair", ("put", "read"), {"init": "w", "repair": 1}),
        ("put, wipe, rebuild", ("put", "rebuild"), {"wipes": 1}),
        ("if-match, settle, wipe, rebuild", ("cmatch", "settle", "rebuild"), {"wipes": 1}),
        ("put, read, other floors", ("put", "read"), {"floors": 1}),
        ("delete, read, gc, other floors", ("del", "read"), {"gc": 1, "floors": 1}),
        ("2 guess", ("guess", "guess"), {}),
        ("guess, if-match", ("guess", "cmatch"), {}),
        ("guess, guessed delete, gc", ("guess", "guessdel"), {"gc": 1}),
    ):
        jobs.append((f"n=4 k=2 W=3 {name}", dict(S4, ops=ops, **kw), False, BIG))
    for w in (3, 4):
        for name, ops, kw in (
            ("2 put", ("put", "put"), {}),
            ("put, settle", ("put", "settle"), {}),
            ("2 if-none-match", ("cnone", "cnone"), {"init": "absent", "blinks": 0}),
        ):
            jobs.append((f"n=5 k=3 W={w} {name}", dict(S5, w=w, ops=ops, **kw), False, BIG))
    for n, k, w, ops, kw in (
        (
            3,
            1,
            2,
            ("put", "cmatch", "del", "read", "read", "settle"),
            {"attempts": 2, "blinks": 3, "gc": 1, "repair": 1},
        ),
        (
            3,
            2,
            2,
            ("put", "cnone", "del", "read", "read", "settle"),
            {"attempts": 2, "blinks": 3, "gc": 1, "repair": 1},
        ),
        (
            3,
            2,
            2,
            ("put", "cmatch", "del", "del", "read", "settle"),
            {"attempts": 2, "blinks": 2, "gc": 1, "repair": 1, "floors": 4},
        ),
        (
            4,
            2,
            3,
            ("put", "cmatch", "del", "read", "read", "settle"),
            {"attempts": 2, "blinks": 3, "gc": 1, "repair": 1},
        ),
        (
            4,
            2,
            3,
            ("cnone", "cmatch", "del", "read", "read", "settle"),
            {"blinks": 3, "repair": 1, "init": "w"},
        ),
        (
            5,
            3,
            4,
            ("put", "cmatch", "del", "read", "read", "settle"),
            {"attempts": 2, "blinks": 3, "gc": 1, "repair": 1, "floors": 3},
        ),
        (
            6,
            3,
            4,
            ("put", "cmatch", "del", "read", "read", "settle"),
            {"attempts": 2, "blinks": 4, "gc": 1, "repair": 1},
        ),
        (
            8,
            4,
            5,
            ("put", "cmatch", "del", "read", "read", "settle"),
            {"attempts": 2, "blinks": 4, "repair": 1},
        ),
        (
            4,
            2,
            3,
            ("guess", "guessdel", "cmatch", "read", "read", "settle"),
            {"attempts": 2, "blinks": 3, "gc": 1, "repair": 1},
        ),
        (
            5,
            3,
            4,
            ("guess", "guess", "guessdel", "read", "read", "settle"),
            {"attempts": 2, "blinks": 3, "gc": 1, "repair": 1},
        ),
    ):
        jobs.append(
            (
                f"n={n} k={k} W={w} {', '.join(ops)} (walks)",
                dict(n=n, k=k, w=w, ops=ops, **kw),
                False,
                -20,
            )
        )

    def broken(name, ops, n=3, k=1, w=2, rules=None, **kw):
        jobs.append((name, dict(n=n, k=k, w=w, ops=ops, rules=rules or FIXED, **kw), True, BIG))

    def off(**kw):
        return dict(FIXED, **kw)

    broken("AS WRITTEN: put, settle", ("put", "settle"), rules=AS_WRITTEN)
    broken("AS WRITTEN: put, settle n=4 k=2 W=3", ("put", "settle"), 4, 2, 3, rules=AS_WRITTEN)
    broken("AS WRITTEN: put, read n=3 k=2", ("put", "read"), 3, 2, 2, rules=AS_WRITTEN)
    broken(
        "AS WRITTEN: 2 if-match, settle n=4 k=2 W=3",
        ("cmatch", "cmatch", "settle"),
        4,
        2,
        3,
        rules=AS_WRITTEN,
    )
    broken(
        "AS WRITTEN: 2 if-match both acknowledged",
        ("cmatch", "cmatch", "settle"),
        rules=AS_WRITTEN,
        probes=0,
    )
    broken("AS WRITTEN: delete, tombstone gc", ("del",), rules=AS_WRITTEN, gc=1)
    broken("no base check", ("cnone", "cnone"), rules=off(base_check=0), init="absent")
    broken("no decided check of readers", ("put", "read"), rules=off(decided_check=0))
    broken("no refusal: serve old when unknown", ("put",), rules=off(refuse=0))
    broken("old version let go at accept", ("put",), k=2, rules=off(keep_old=0), init="w")
    broken("only one old version kept", ("put", "put"), k=2, rules=off(keep_old=1), init="w")
    broken("W <= n/2 (n=4 k=1 W=2)", ("cnone", "cnone"), 4, 1, 2, init="absent")
    broken("roll back without fence", ("put", "settle"), rules=off(fence=0))
    broken("fence not synced", ("put", "settle"), rules=off(fence_synced=0))
    broken(
        "conditional with a higher base, no fence",
        ("put", "cmatch", "settle"),
        rules=off(cond_fence=0),
    )
    broken(
        "conditional judged on an undecided record",
        ("put", "cnone"),
        rules=off(cond_settled=0),
        init="absent",
    )
    broken("tombstone gc without floor", ("put", "del"), rules=off(gc_floor=0), gc=1)
    broken("tombstone gc while a drive keeps older", ("del",), rules=off(gc_alone=0), gc=1)
    broken("record below a floor not asked again", ("cmatch", "del"), rules=off(gc_reask=0), gc=1)
    broken(
        "asked again once per epoch, not after each answer",
        ("del", "read"),
        rules=off(gc_vouch=0),
        gc=1,
        floors=1,
        probes=0,
    )
    broken(
        "tombstone gc while a drive keeps older, other floors",
        ("del",),
        rules=off(gc_alone=0),
        gc=1,
        floors=1,
    )
    broken("repair below the floor", ("del",), rules=off(repair_floor=0), gc=1, repair=1)
    broken(
        "forward overrides the base check",
        ("cnone", "cnone", "settle"),
        rules=off(forward_checked=0),
        init="absent",
    )
    broken(
        "retry after too few refusals", ("cmatch", "settle"), rules=off(strict_retry=0), attempts=2
    )
    broken("tie-break by node id only", ("put", "cmatch"), rules=off(unique_epoch=0))
    broken(
        'empty replacement answers "without it"',
        ("put", "settle"),
        rules=off(wiped_unknown=0),
        wipes=1,
    )
    broken("rebuilt without a new view", ("put", "rebuild"), rules=off(rebuild_view=0), wipes=1)
    broken(
        "rebuilt from answers older than the replacement",
        ("put", "settle", "settle", "rebuild"),
        rules=off(rebuild_asked=0),
        wipes=1,
        blinks=0,
    )
    broken("carry to a new epoch while a rival may have W", ("cmatch", "cmatch", "carry"), blinks=0)
    broken("carry to a new epoch while writers retry", ("cmatch", "carry"), attempts=2)
    return jobs


def job(args):
    name, kw, bad, limit = args
    t = time.monotonic()
    m = Model(**kw)
    if limit > 0:
        states, full, why, trace = m.bfs(limit)
        mode = "all" if full else "found" if why else "bounded"
    else:
        states, runs, why, trace = m.walks(-limit, 1)
        mode = f"{runs} walks"
    return name, bad, states, mode, why, trace, time.monotonic() - t, m.fenced


def main():
    import multiprocessing

    quick, show = "--quick" in sys.argv, "--trace" in sys.argv
    only = sys.argv[sys.argv.index("--only") + 1] if "--only" in sys.argv else ""
    jobs = [
        (a, b, c, (d // 10 if d > 0 else -2) if quick and not c else d)
        for a, b, c, d in suite()
        if only in a
    ]
    wrong, total = 0, 0
    print(f"{'run':72} {'states':>9} {'explored':>12} {'s':>6}  result")
    with multiprocessing.Pool(maxtasksperchild=1) as pool:
        for name, bad, states, mode, why, trace, secs, fenced in pool.imap(job, jobs, chunksize=1):
            good = bool(why) == bad
            wrong += not good
            total += states
            print(
                f"{name:72} {states:9} {mode:>12} {secs:6.1f}  {'as expected' if good else 'WRONG'}: "
                + (f"violation in {len(trace)} steps: {why}" if why else "safe")
                + (f" ({fenced} states less readable while drives are dark)" if fenced else ""),
                flush=True,
            )
            if why and (show or not good):
                for step in trace:
                    print("       ", *step)
    print(f"{len(jobs)} runs, {total} states or steps, {wrong} not as expected")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
