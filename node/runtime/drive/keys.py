"""The verbs of the commit protocol on a catalog: the pure register, applied inside the gathered batch.

Each function answers one verb: (reply, wait). `wait`: the answer goes out only after a flush that
began after this batch was written. Whatever can fail is done before the first row is changed.
"""

from __future__ import annotations

import msgspec

from node.limits import DRIVE_EMBEDDED_SHARD_BYTES
from node.protocol import record as rec
from node.protocol import register as reg
from node.protocol import verbs
from node.protocol.register import Entry, Register
from node.protocol.verbs import DriveFault
from node.runtime.drive import rows
from node.runtime.drive.catalog import Catalog
from node.runtime.drive.faults import DriveError
from node.runtime.drive.layout import Space

Answer = tuple[verbs.Reply, bool]

MAX_CATALOG_KEY_BYTES = 4096


class Keys:
    """Answers for the keys of one drive."""

    def __init__(self, catalog: Catalog, space: Space) -> None:
        self._catalog = catalog
        self._space = space

    # ---- reading ---------------------------------------------------------------------------------
    def read(self, verb: verbs.Read) -> Answer:
        register, bases = self._known(_key(verb.key))
        return (
            self._state(verb.key, register, bases, inline=verb.inline),
            self._waits(verb.key, register),
        )

    def fence(self, verb: verbs.Fence) -> Answer:
        catalog = self._catalog
        register, bases = self._known(_key(verb.key))
        fenced = reg.fence(register, verb.epoch)
        if fenced is not register:
            catalog.store(verb.key, fenced, bases)
            catalog.mark(rows.REGISTER + verb.key)
        return (
            self._state(verb.key, fenced, bases, inline=False),
            self._waits(verb.key, fenced),
        )

    def _known(self, key: bytes) -> tuple[Register, dict[bytes, bytes]]:
        """The register of a key; FILLING where a replaced drive may have had one and has lost it.

        Such a drive counts as unanswered: it neither says that the key is absent nor votes on it, since
        it does not know any more what it accepted or promised before.
        """
        register, bases = self._catalog.load(key)
        if self._catalog.filling and not register.entries:
            raise DriveError(DriveFault.FILLING, "this drive was replaced and is being rebuilt")
        return register, bases

    def filled(self, verb: verbs.Filled) -> Answer:
        catalog = self._catalog
        if catalog.filling:
            catalog.raise_floor(verb.floor)
            catalog.delete(rows.ROW_FILLING)
            catalog.filling = False
            return verbs.Done(), True
        return verbs.Done(), catalog.anything_unsynced()

    def adopt(self, verb: verbs.Adopt) -> Answer:
        catalog = self._catalog
        if verb.view > catalog.view:
            catalog.view = verb.view
            catalog.put(rows.ROW_VIEW, rows.encode_generation(rows.ROW_VIEW, verb.view))
            catalog.mark(rows.ROW_VIEW)
        found = ((name.decode(), number) for name, number in catalog.generations.items())
        return verbs.Promised(catalog.floor, tuple(found)), catalog.anything_unsynced()

    def promise(self, verb: verbs.Promise) -> Answer:
        """Only of a register that this drive has lost; others know themselves what they promised."""
        catalog, key = self._catalog, _key(verb.key)
        register, bases, lost = self._perhaps_lost(key)
        if lost and verb.top > register.top:
            self._forget_lost(key)
            catalog.store(key, Register(verb.top), bases)
            catalog.mark(rows.REGISTER + key)
        return verbs.Done(), catalog.unsynced(rows.REGISTER + key)

    def _perhaps_lost(self, key: bytes) -> tuple[Register, dict[bytes, bytes], bool]:
        """A key's register, and whether this drive may have had another one that is gone."""
        try:
            register, bases = self._catalog.load(key)
        except DriveError as error:
            if error.fault is not DriveFault.CORRUPT:
                raise
            return Register(), {}, True
        return register, bases, self._catalog.filling and not register.entries

    def _forget_lost(self, key: bytes) -> None:
        """Undecided entries of a row that rotted."""
        for epoch in tuple(self._catalog.undecided.get(key, ())):
            self._catalog.drop_undecided(key, epoch)

    def _state(
        self, key: bytes, register: Register, bases: dict[bytes, bytes], *, inline: bool
    ) -> verbs.State:
        catalog = self._catalog
        entries = tuple(
            verbs.HeldEntry(
                e.epoch,
                bases[e.epoch],
                e.decided,
                e.payload[0],
                catalog.shard_of(key, e) if inline else b"",
            )
            for e in register.entries
        )
        return verbs.State(reg.effective_top(register, catalog.floor), catalog.floor, entries)

    def _waits(self, key: bytes, register: Register) -> bool:
        """An answer that names this register's top, entries or (where it is empty) the floor waits."""
        catalog = self._catalog
        return catalog.unsynced(rows.REGISTER + key) or (
            not register.entries and catalog.unsynced(rows.ROW_FLOOR)
        )

    # ---- writing ---------------------------------------------------------------------------------
    def commit(self, verb: verbs.Commit) -> Answer:
        catalog, key = self._catalog, _key(verb.key)
        record = _record(verb.record)
        register, bases = self._known(key)
        if verb.view < catalog.view:
            raise DriveError(
                DriveFault.OLD_VIEW, "a drive of the set was replaced since this commit was sent"
            )
        if register.find(record.epoch) is not None:
            return verbs.Committed(True, register.top), self._waits(key, register)
        bucket = key.partition(b"\0")[0]
        if record.bucket_generation <= catalog.generations.get(bucket, -1):
            top = reg.effective_top(register, catalog.floor)
            waits = self._waits(key, register) or catalog.unsynced(rows.BUCKET + bucket)
            return verbs.Committed(False, top, bucket_gone=True), waits
        entry = Entry(record.epoch, False, (verb.record, _shard_field(verb.shard)))
        after, accepted = reg.commit(register, catalog.floor, record.base, entry)
        if not accepted:
            top = reg.effective_top(register, catalog.floor)
            return verbs.Committed(False, top), self._waits(key, register)
        self._need_space(record, verb.shard)
        plan = catalog.plan_references(record, ())
        bases[record.epoch] = record.base
        catalog.store(key, after, bases)
        self._put_shard(key, record.epoch, verb.shard)
        if record.kind == rec.Kind.TOMBSTONE:
            catalog.note_tombstone(key)
        catalog.add_undecided(key, record.epoch)
        if not register.entries:
            catalog.alone[key] = record.epoch
        catalog.apply_references(plan)
        catalog.mark(rows.REGISTER + key)
        return verbs.Committed(True, after.top), True

    def repair(self, verb: verbs.Repair) -> Answer:
        catalog, key = self._catalog, _key(verb.key)
        record = _record(verb.record)
        # A rotten row is a key this drive has lost, as a replaced drive has: repair rebuilds both.
        register, bases, lost = self._perhaps_lost(key)
        if lost:
            if not verb.top or (catalog.filling and not verb.refill):
                self._known(key)  # says why not
            register = reg.fence(register, verb.top)
        known = register.find(record.epoch)
        field = _shard_field(verb.shard)
        if not verb.shard and known is not None:
            field = known.payload[1]
        entry = Entry(record.epoch, True, (verb.record, field))
        after, gone, verdict = reg.repair(register, catalog.floor, entry)
        if verdict in (reg.Repaired.BELOW_FLOOR, reg.Repaired.SUPERSEDED):
            waits = self._waits(key, register) or catalog.unsynced(rows.ROW_FLOOR)
            return verbs.RepairDone(verdict), waits
        self._need_space(record, verb.shard)
        if known is not None:
            gone = (*gone, known)  # its references are counted anew, with those of the record
        plan = catalog.plan_references(record, gone)
        catalog.alone.pop(key, None)  # an older version may come in below an undecided one
        bases[record.epoch] = record.base
        if lost:
            self._forget_lost(key)
        self._forget(key, gone, keep=record.epoch)
        catalog.store(key, after, bases)
        catalog.drop_undecided(key, record.epoch)
        if verb.shard:
            self._put_shard(key, record.epoch, verb.shard)
        if record.kind == rec.Kind.TOMBSTONE:
            catalog.note_tombstone(key)
        catalog.apply_references(plan)
        catalog.mark(rows.REGISTER + key)
        return verbs.RepairDone(verdict), True

    def decided(self, verb: verbs.Decided) -> Answer:
        failed: DriveError | None = None
        for mark in (verbs.Mark(verb.key, verb.epoch, verb.missed), *verb.also):
            try:
                self._mark(_key(mark.key), mark.epoch, mark.missed)
            except DriveError as error:
                if error.condemns:
                    raise
                failed = failed or error
        if failed is not None:
            raise failed
        return verbs.Done(), False

    def _mark(self, key: bytes, epoch: bytes, missed: tuple[int, ...]) -> None:
        catalog = self._catalog
        if catalog.alone.get(key) == epoch:  # most writes: there is nothing older
            if missed:
                catalog.enqueue(key, epoch, missed)
            catalog.drop_undecided(key, epoch)
        elif epoch in catalog.undecided.get(key, ()):
            register, bases = catalog.load(key)
            after, gone = reg.decided(register, epoch)
            plan = catalog.plan_references(None, gone) if gone else []
            if missed:
                catalog.enqueue(key, epoch, missed)
            catalog.drop_undecided(key, epoch)
            if gone:
                self._forget(key, gone)
                catalog.store(key, after, bases)
                catalog.apply_references(plan)
        elif missed:
            catalog.enqueue(key, epoch, missed)

    def discard(self, verb: verbs.Discard) -> Answer:
        catalog, key = self._catalog, _key(verb.key)
        register, bases = catalog.load(key)
        found = register.find(verb.epoch)
        if found is None:
            return verbs.Done(), False
        if found.decided:
            raise DriveError(DriveFault.BAD_REQUEST, "a decided version is never dead")
        after, gone = reg.discard(register, verb.epoch)
        plan = catalog.plan_references(None, gone)
        self._forget(key, gone)
        catalog.store(key, after, bases)
        catalog.apply_references(plan)
        return verbs.Done(), False

    def collect(self, verb: verbs.Collect) -> Answer:
        failed: DriveError | None = None
        wait = False
        for key, epoch in ((verb.key, verb.epoch), *verb.also):
            try:
                wait |= self._collect(_key(key), epoch)
            except DriveError as error:
                failed = failed or error
        if failed is not None:
            raise failed
        return verbs.Done(), wait

    def _collect(self, key: bytes, epoch: bytes) -> bool:
        """-> whether the answer waits for a flush."""
        catalog = self._catalog
        register, _ = catalog.load(key)
        found = register.find(epoch)
        if found is not None and _record(found.payload[0]).kind != rec.Kind.TOMBSTONE:
            raise DriveError(DriveFault.BAD_REQUEST, "only tombstones are collected")
        after, floor = reg.collect(register, catalog.floor, epoch)
        if after is None:
            catalog.delete(rows.REGISTER + key)
            catalog.mark(rows.REGISTER + key)
            catalog.drop_tombstone(key)
            catalog.raise_floor(floor)
        return self._waits(key, Register())

    def standing(self, verb: verbs.Standing) -> Answer:
        catalog = self._catalog
        if catalog.filling:
            raise DriveError(DriveFault.FILLING, "this drive was replaced and is being rebuilt")
        kinds = bytes(self._standing(_key(key), epoch) for key, epoch in verb.tombstones)
        # Waits for a flush whatever is marked: flags, and what they let go, are durable with the answer.
        return verbs.Standings(kinds), True

    def _standing(self, key: bytes, epoch: bytes) -> verbs.StandingKind:
        try:
            register, _ = self._catalog.load(key)
        except DriveError:
            return verbs.StandingKind.LACKING  # the row is rotten; repair rebuilds it
        if not register.entries:
            # Its own promise is not enough: only a floor refuses a repair, too.
            gone = epoch <= self._catalog.floor
            return verbs.StandingKind.GONE if gone else verbs.StandingKind.LACKING
        if register.entries[0].epoch > epoch:
            return verbs.StandingKind.NEWER
        only = register.entries[0]
        if len(register.entries) == 1 and only.epoch == epoch and only.decided:
            return verbs.StandingKind.ALONE
        return verbs.StandingKind.LACKING

    def bucket_fence(self, verb: verbs.BucketFence) -> Answer:
        catalog = self._catalog
        bucket = verb.bucket.encode()
        row = rows.BUCKET + bucket
        if verb.generation > catalog.generations.get(bucket, -1):
            catalog.generations[bucket] = verb.generation
            catalog.put(row, rows.encode_generation(row, verb.generation))
            catalog.mark(row)
        return verbs.Done(), catalog.unsynced(row)

    # ---- the repair queue ------------------------------------------------------------------------
    def repaired(self, verb: verbs.Repaired) -> Answer:
        self._catalog.dequeue(_key(verb.key), verb.epoch, verb.slots)
        return verbs.Done(), False

    def enqueue(self, verb: verbs.Enqueue) -> Answer:
        self._catalog.enqueue(_key(verb.key), verb.epoch, verb.missed)
        return verbs.Done(), False

    # ---- parts of the above ----------------------------------------------------------------------
    def _need_space(self, record: rec.Record, shard: bytes) -> None:
        if record.kind != rec.Kind.TOMBSTONE:
            self._space.need(len(shard) + _row_bytes(record))

    def _put_shard(self, key: bytes, epoch: bytes, shard: bytes) -> None:
        if len(shard) > DRIVE_EMBEDDED_SHARD_BYTES:
            self._catalog.put_shard(key + epoch, shard)

    def _forget(self, key: bytes, gone: tuple[Entry, ...], *, keep: bytes = b"") -> None:
        """Drops what belongs to entries that go: their flags and their shards in rows of their own."""
        for entry in gone:
            if entry.epoch == keep:
                continue
            self._catalog.drop_undecided(key, entry.epoch)
            if entry.payload[1] == rows.SHARD_APART:
                self._catalog.delete_shard(key + entry.epoch)


def _row_bytes(record: rec.Record) -> int:
    """Roughly what a record's rows take."""
    return 1024 + 64 * len(record.parts)


def _key(key: bytes) -> bytes:
    if not 0 < len(key) <= MAX_CATALOG_KEY_BYTES:
        raise DriveError(DriveFault.BAD_REQUEST, f"a key of {len(key)} bytes")
    return key


def _record(data: bytes) -> rec.Record:
    try:
        return rec.decode(data)
    except (rec.RecordError, msgspec.MsgspecError) as error:
        raise DriveError(DriveFault.CORRUPT, str(error)) from error


def _shard_field(shard: bytes) -> bytes:
    if not shard:
        return rows.SHARD_NONE
    if len(shard) > DRIVE_EMBEDDED_SHARD_BYTES:
        return rows.SHARD_APART
    return rows.embed(shard)
