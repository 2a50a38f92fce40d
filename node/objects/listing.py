"""Listing: ordered scans of R drives of every set, merged.

Any acknowledged write is on one of R drives of its set, so the newest entry of a key among them is the one to
believe, once it is decided; an entry that is not is looked up as a read would. A page is never called
complete after an error: too few drives, and the listing fails (503). The cursor is the last key itself,
so it survives the loss of a node between pages.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from node.errors import QuorumLost
from node.limits import HEDGE_CEILING_S
from node.objects.api import ListedObject, Listing
from node.objects.gathering import Gathering
from node.objects.lookup import Lookup
from node.objects.sets import Cluster, Members, SetView, replies
from node.protocol import record as records
from node.protocol import verbs
from node.protocol.record import Kind

_GROUP = 0  # the kind of a common prefix


Slots = Mapping[int, Collection[int]]  # by the index of their set
_Name = tuple[bytes, bool]  # a key, or a group: a key may be named as the group that it lies in


@dataclass(frozen=True, slots=True)
class _Reach:
    """How far a page goes: up to this key, or to the end of this group."""

    key: bytes
    group: bool

    @property
    def position(self) -> tuple[bytes, int]:
        """In the order of keys. A group stands behind all its keys, where its scan goes on."""
        return (_behind(self.key), 0) if self.group else (self.key, 1)

    def covers(self, key: bytes, group: bool) -> bool:
        """A group counts from its first key on: one that lies in front of the reach may prove it alive."""
        if group:
            return key <= self.key
        return (key, 1) <= self.position

    def cursor(self, prefix: bytes, delimiter: bytes) -> bytes:
        """Where a scan goes on. A key named as a group must not be taken for the whole of it."""
        if not self.group and _group_of(self.key, prefix, delimiter) == self.key:
            return self.key + b"\0"  # between it and the next: no key has a NUL in it
        return self.key


@dataclass(slots=True)
class _Scanned:
    """Merged entries of one set up to `reach` (None: to the end)."""

    newest: dict[_Name, verbs.Listed]
    reach: _Reach | None
    proven: set[bytes]  # groups that all answers agree to be alive


class Lister:
    """Pages of keys."""

    def __init__(self, cluster: Cluster, lookup: Lookup) -> None:
        self._cluster = cluster
        self._clock = cluster.clock
        self._lookup = lookup

    async def page(
        self,
        bucket: str,
        *,
        prefix: str = "",
        delimiter: str = "",
        after: str = "",
        limit: int = 1000,
        deadline: float,
    ) -> Listing:
        """Up to `limit` keys and common prefixes behind `after`, in the order of their UTF-8 bytes."""
        if limit <= 0:
            return Listing(objects=(), common_prefixes=(), next_after=None)
        objects: list[ListedObject] = []
        prefixes: list[str] = []
        last = ""
        cursor = after.encode()
        while True:
            entries, end = await self.entries(
                bucket,
                prefix=prefix.encode(),
                delimiter=delimiter.encode(),
                after=cursor,
                limit=max(limit + 1 - len(objects) - len(prefixes), 2),
                deadline=deadline,
            )
            for entry in entries:
                name = entry.key.decode()
                if entry.kind == _GROUP and (name in prefixes[-1:] or name == after):
                    continue  # a drive named it again behind a cursor in its middle
                if len(objects) + len(prefixes) == limit:
                    return Listing(
                        objects=tuple(objects), common_prefixes=tuple(prefixes), next_after=last
                    )
                last = name
                if entry.kind == _GROUP:
                    prefixes.append(name)
                else:
                    objects.append(_shown(name, entry))
            if end is None:
                return Listing(
                    objects=tuple(objects), common_prefixes=tuple(prefixes), next_after=None
                )
            cursor = end

    async def entries(
        self,
        bucket: str,
        *,
        prefix: bytes,
        delimiter: bytes = b"",
        after: bytes,
        limit: int,
        with_records: bool = False,
        only: Slots | None = None,
        deadline: float,
    ) -> tuple[list[verbs.Listed], bytes | None]:
        """Live entries in order, all that there are up to the cursor that comes with them (None: the end).

        `only`: the slots of each set whose drives may answer.
        """
        scan = verbs.Scan(bucket, prefix, after, delimiter, min(limit, 1000), with_records)
        scanned = await asyncio.gather(
            *(self._scan(view, scan, only, deadline) for view in self._cluster.views)
        )
        reach = _nearest(s.reach for s in scanned if s.reach is not None)
        found: dict[_Name, tuple[SetView, verbs.Listed]] = {}
        proven: set[bytes] = set()
        for view, one in zip(self._cluster.views, scanned, strict=True):
            proven |= one.proven
            for name, entry in one.newest.items():
                if reach is None or reach.covers(*name):
                    known = found.get(name)
                    if known is None or entry.epoch > known[1].epoch:
                        found[name] = (view, entry)
        live: list[verbs.Listed] = []
        for name in sorted(found):
            key, (view, entry) = name[0], found[name]
            if entry.kind == _GROUP:
                # One drive's word is not enough: it may have missed the deletes.
                if key in proven or await self._alive_below(bucket, key, None, deadline):
                    live.append(entry)
                continue
            settled = await self._settled(view, bucket, entry, deadline)
            if settled is not None:
                live.append(_rolled_up(settled, prefix, delimiter))
        return live, None if reach is None else reach.cursor(prefix, delimiter)

    async def _settled(
        self, view: SetView, bucket: str, entry: verbs.Listed, deadline: float
    ) -> verbs.Listed | None:
        """The entry of a live object, or None."""
        if entry.decided:
            return entry if entry.kind == Kind.OBJECT else None
        key = bucket.encode() + b"\0" + entry.key
        found = await self._lookup.find(view, key, deadline=deadline)
        record = found.record
        if record is None or record.kind != Kind.OBJECT:
            return None
        return verbs.Listed(
            entry.key,
            Kind.OBJECT,
            record.epoch,
            True,
            record.size,
            record.mtime_ns,
            record.etag,
            record.owner,
            found.encoded,
        )

    async def _alive_below(
        self, bucket: str, prefix: bytes, only: Slots | None, deadline: float
    ) -> bool:
        cursor = b""
        while True:
            live, end = await self.entries(
                bucket, prefix=prefix, after=cursor, limit=32, only=only, deadline=deadline
            )
            if live:
                return True
            if end is None:
                return False
            cursor = end

    async def any_key(self, bucket: str, *, only: Slots | None = None, deadline: float) -> bool:
        return await self._alive_below(bucket, b"", only, deadline)

    async def _scan(
        self, view: SetView, scan: verbs.Scan, only: Slots | None, deadline: float
    ) -> _Scanned:
        verb = verbs.encode(scan)
        pages: dict[int, verbs.Page] = {}
        gathering: Gathering[str, tuple[bytes, ...] | bytes] = Gathering()
        queue = self._cluster.reachable(view)

        def enough() -> bool:
            while gathering.results:
                node = next(iter(gathering.results))
                answer = replies(gathering.results.pop(node))
                for slot, data in zip(view.by_node[node].slots, answer, strict=False):
                    reply = verbs.decode_reply(data)
                    if isinstance(reply, verbs.Page) and (only is None or slot in only[view.index]):
                        pages[slot] = reply
            return len(pages) >= view.read_quorum

        while not enough():
            asked = sum(len(m.slots) for m in view.members if gathering.is_pending(m.node))
            while queue and len(pages) + asked < view.read_quorum:
                asked += len(queue[0].slots)
                self._ask(gathering, queue.pop(0), verb, deadline)
            if not gathering.pending:
                break
            left = deadline - self._clock.monotonic()
            bound = min(left, HEDGE_CEILING_S) if queue else left
            if await gathering.until(enough, bound):
                break
            if queue:
                self._ask(gathering, queue.pop(0), verb, deadline)
            elif left <= bound:
                break
        if len(pages) < view.read_quorum:
            raise QuorumLost(
                f"{len(pages)} of {view.n} drives answered, {view.read_quorum} are needed to list"
            )
        return _merge(list(pages.values()))

    def _ask(
        self,
        gathering: Gathering[str, tuple[bytes, ...] | bytes],
        member: Members,
        verb: bytes,
        deadline: float,
    ) -> None:
        items = tuple((drive, verb) for drive in member.drives)
        gathering.add(member.node, self._cluster.verbs_at(member, items, deadline=deadline))


def _merge(pages: list[verbs.Page]) -> _Scanned:
    """The newest entry of each key, up to where every cut-off page reaches.

    A group is proven alive when every page names the same write as its first living object: an epoch is one
    write of one key, and R drives that hold it as the newest of its key make it the version.
    """
    reach = _nearest(
        _Reach(p.entries[-1].key, p.entries[-1].kind == _GROUP)
        for p in pages
        if p.more and p.entries
    )
    newest: dict[_Name, verbs.Listed] = {}
    witnesses: dict[bytes, list[bytes]] = {}
    for page in pages:
        for entry in page.entries:
            name = (entry.key, entry.kind == _GROUP)
            if reach is not None and not reach.covers(*name):
                continue
            if entry.kind == _GROUP:
                witnesses.setdefault(entry.key, []).append(entry.epoch)
            known = newest.get(name)
            if known is None or (entry.epoch, entry.decided) > (known.epoch, known.decided):
                newest[name] = entry
    proven = {
        key
        for key, epochs in witnesses.items()
        if epochs[0] and len(epochs) == len(pages) and len(set(epochs)) == 1
    }
    return _Scanned(newest, reach, proven)


def _nearest(reaches: Iterable[_Reach]) -> _Reach | None:
    return min(reaches, key=lambda reach: reach.position, default=None)


def _behind(group: bytes) -> bytes:
    """The smallest byte string above every key of a group. Keys are UTF-8, so a byte can be counted up."""
    return group[:-1] + bytes((group[-1] + 1,))


def _group_of(key: bytes, prefix: bytes, delimiter: bytes) -> bytes | None:
    cut = key.find(delimiter, len(prefix)) if delimiter else -1
    return key[: cut + len(delimiter)] if cut >= 0 else None


def _rolled_up(entry: verbs.Listed, prefix: bytes, delimiter: bytes) -> verbs.Listed:
    """A live key that its drives listed singly may still belong to a group."""
    group = _group_of(entry.key, prefix, delimiter)
    return entry if group is None else verbs.Listed(group, _GROUP)


def _shown(name: str, entry: verbs.Listed) -> ListedObject:
    return ListedObject(
        key=name,
        size=entry.size,
        etag=entry.etag,
        mtime_ns=entry.mtime_ns,
        owner=entry.owner,
    )


def decoded(entry: verbs.Listed) -> records.Record:
    """The record that a scan with records sent along."""
    return records.decode(entry.record)
