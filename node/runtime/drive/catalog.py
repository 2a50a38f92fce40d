"""A drive's catalog in use: rows, the batch being gathered over them, and what is kept in memory.

Theory of operation. Everything that arrived in one read of the socket is applied in order to an
overlay and becomes one atomic RocksDB batch (`write_out`). A batch has a sequence number; the syncer
raises `durable` to the last batch that was written before its flush began. A row that a synced verb
changed is marked with the number of its batch: an answer that names such a row waits until `durable`
has reached it, so no answer ever tells what a power-off would forget. Decided flags, discards and
queue rows are not marked: they are facts about the world that hold even if this drive forgets them.

Only the serving thread calls in here, but for `durable`, which the syncer writes, and `add_staged`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator

from node.protocol import epoch as ep
from node.protocol import record as rec
from node.protocol import verbs
from node.protocol.register import Entry, Register
from node.protocol.verbs import DriveFault
from node.runtime.drive import rows
from node.runtime.drive.engine import Engine
from node.runtime.drive.faults import DriveError


class Catalog:
    """The rows of one drive. Loads its in-memory sets when made; raises DriveError(CORRUPT)."""

    def __init__(
        self,
        engine: Engine,
        drive_id: bytes,
        wall: Callable[[], float],
        *,
        new_cluster: bool = True,
        fresh: bool = True,
    ) -> None:
        """`new_cluster`: the cluster is being formed, so an empty catalog is one that missed nothing.

        `fresh`: the drive was just formatted; later an empty catalog is one that has lost everything.
        """
        self.engine = engine
        self.wall = wall
        self.undecided: dict[bytes, dict[bytes, float]] = {}
        # Keys that held nothing else when this epoch was accepted: nothing goes when it is decided.
        self.alone: dict[bytes, bytes] = {}
        self.queue_depth = 0
        self.tombstones = 0
        self.scrub = verbs.ScrubState()
        self.generations: dict[bytes, int] = {}
        self.staged: dict[bytes, rows.StagedRow] = {}
        self.floor = ep.ZERO
        self.view = 0
        self.unlinks: list[bytes] = []  # files that go once the batch is durable
        self.durable = 0
        self.written = 0
        self._rows: dict[bytes, bytes | None] = {}
        self._shards: dict[bytes, bytes | None] = {}
        self._unsynced: dict[bytes, int] = {}
        self._unsynced_order: deque[tuple[int, bytes]] = deque()
        self.was_clean = self._open(drive_id, new_cluster, fresh=fresh)
        self.filling = self.get(rows.ROW_FILLING) is not None
        self._load()

    # ---- opening and closing ---------------------------------------------------------------------
    def _open(self, drive_id: bytes, new_cluster: bool, *, fresh: bool) -> bool:
        known = self.get(rows.ROW_DRIVE)
        if known is None:
            if self.get(rows.ROW_FORMAT) is not None or not fresh:
                raise DriveError(
                    DriveFault.CORRUPT,
                    "the catalog has lost its drive id: put it back, or take the drive as a new one "
                    "with `holdfast drive rebuild`",
                )
            self.put(rows.ROW_DRIVE, rows.seal(rows.ROW_DRIVE, drive_id))
            self.put(rows.ROW_FORMAT, rows.encode_generation(rows.ROW_FORMAT, rows.CATALOG_FORMAT))
            if not new_cluster:
                self.put(rows.ROW_FILLING, rows.seal(rows.ROW_FILLING, b""))
            clean = True
        else:
            if rows.unseal(rows.ROW_DRIVE, known) != drive_id:
                raise DriveError(DriveFault.CORRUPT, "the catalog is another drive's")
            version = self.get(rows.ROW_FORMAT)
            if version is None or (
                rows.decode_generation(rows.ROW_FORMAT, version) != rows.CATALOG_FORMAT
            ):
                raise DriveError(
                    DriveFault.CORRUPT, "the catalog's format is not one of this program"
                )
            clean = self.get(rows.ROW_CLEAN) is not None
        self.delete(rows.ROW_CLEAN)
        self.write_out()
        self.engine.flush()
        return clean

    def _load(self) -> None:
        floor = self.get(rows.ROW_FLOOR)
        if floor is not None:
            self.floor = rows.unseal(rows.ROW_FLOOR, floor)
        view = self.get(rows.ROW_VIEW)
        if view is not None:
            self.view = rows.decode_generation(rows.ROW_VIEW, view)
        for row, value in self._all(rows.UNDECIDED):
            key, epoch = rows.split_undecided(row)
            self.undecided.setdefault(key, {})[epoch] = rows.decode_since(row, value)
        for row, value in self._all(rows.BUCKET):
            self.generations[row[1:]] = rows.decode_generation(row, value)
        for row, value in self._all(rows.STAGED):
            self.staged[row[1:]] = rows.decode_staged(row, value)
        self.queue_depth = sum(1 for _ in self._all(rows.QUEUE))
        self.tombstones = sum(1 for _ in self._all(rows.TOMBSTONE))
        self.scrub = self._load_scrub()

    def _load_scrub(self) -> verbs.ScrubState:
        row = self.get(rows.ROW_SCRUB)
        try:
            return verbs.ScrubState() if row is None else rows.decode_scrub(rows.ROW_SCRUB, row)
        except DriveError:
            return verbs.ScrubState()  # progress alone: the pass begins anew

    def _all(self, prefix: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self.engine.scan(prefix, rows.after(prefix))

    def close(self, *, clean: bool) -> None:
        """The last batch; `clean`: nothing on the drive needs a sweep at the next start."""
        if clean:
            self.put(rows.ROW_CLEAN, rows.seal(rows.ROW_CLEAN, b""))
        self.write_out()
        self.engine.flush()
        self.engine.close()

    # ---- rows ------------------------------------------------------------------------------------
    def get(self, row: bytes) -> bytes | None:
        if row in self._rows:
            return self._rows[row]
        return self.engine.get(row)

    def put(self, row: bytes, value: bytes) -> None:
        self._rows[row] = value

    def delete(self, row: bytes) -> None:
        self._rows[row] = None

    def get_shard(self, row: bytes) -> bytes:
        """An inline shard that has a row of its own; b"" when it is lost or rotten."""
        value = self._shards[row] if row in self._shards else self.engine.get_shard(row)
        if value is None:
            return b""
        try:
            return rows.unseal(row, value)
        except DriveError:
            return b""  # as good as lost: the reader takes another drive's and reports this one

    def put_shard(self, row: bytes, shard: bytes) -> None:
        self._shards[row] = rows.seal(row, shard)

    def delete_shard(self, row: bytes) -> None:
        self._shards[row] = None

    def write_out(self) -> bool:
        """Hands the gathered batch to RocksDB; -> False when there was nothing. DriveError condemns."""
        if not self._rows and not self._shards:
            return False
        batch, shards = self._rows, self._shards
        self._rows, self._shards = {}, {}
        self.engine.write(batch, shards)
        self.written += 1
        return True

    # ---- what is not durable yet -----------------------------------------------------------------
    def mark(self, row: bytes) -> None:
        """The gathered batch changes this row on behalf of a synced verb."""
        sequence = self.written + 1
        self._unsynced[row] = sequence
        self._unsynced_order.append((sequence, row))
        while self._unsynced_order and self._unsynced_order[0][0] <= self.durable:
            old, name = self._unsynced_order.popleft()
            if self._unsynced.get(name) == old:
                del self._unsynced[name]

    def unsynced(self, row: bytes) -> bool:
        """True when a power-off now could undo a change of this row that a synced verb made."""
        return self._unsynced.get(row, 0) > self.durable

    def anything_unsynced(self) -> bool:
        return bool(self._unsynced_order) and self._unsynced_order[-1][0] > self.durable

    # ---- registers -------------------------------------------------------------------------------
    def load(self, key: bytes) -> tuple[Register, dict[bytes, bytes]]:
        """A key's register, and the base of each of its entries."""
        row = rows.REGISTER + key
        value = self.get(row)
        if value is None:
            return Register(), {}
        data = rows.decode_register(row, value)
        undecided = self.undecided.get(key, ())
        entries = tuple(
            Entry(e.epoch, e.epoch not in undecided, (e.record, e.shard)) for e in data.entries
        )
        return Register(data.top, entries), {e.epoch: e.base for e in data.entries}

    def raise_floor(self, floor: bytes) -> None:
        if floor > self.floor:
            self.floor = floor
            self.put(rows.ROW_FLOOR, rows.seal(rows.ROW_FLOOR, floor))
            self.mark(rows.ROW_FLOOR)

    def store(self, key: bytes, register: Register, bases: dict[bytes, bytes]) -> None:
        row = rows.REGISTER + key
        if not register.entries and register.top <= self.floor:
            self.delete(row)
            return
        entries = tuple(
            rows.EntryRow(e.epoch, bases[e.epoch], e.payload[0], e.payload[1])
            for e in register.entries
        )
        self.put(row, rows.encode(row, rows.RegisterRow(register.top, entries)))

    def shard_of(self, key: bytes, entry: Entry) -> bytes:
        field = entry.payload[1]
        if field == rows.SHARD_NONE:
            return b""
        if field == rows.SHARD_APART:
            return self.get_shard(key + entry.epoch)
        return rows.embedded(field)

    def add_undecided(self, key: bytes, epoch: bytes) -> None:
        since_s = self.wall()
        row = rows.undecided_row(key, epoch)
        self.put(row, rows.encode_since(row, since_s))
        self.undecided.setdefault(key, {})[epoch] = since_s

    def drop_undecided(self, key: bytes, epoch: bytes) -> None:
        epochs = self.undecided.get(key)
        if epochs is None or epochs.pop(epoch, None) is None:
            return
        if not epochs:
            del self.undecided[key]
            self.alone.pop(key, None)
        self.delete(rows.undecided_row(key, epoch))

    # ---- tombstones ------------------------------------------------------------------------------
    def note_tombstone(self, key: bytes) -> None:
        """A tombstone came: the collector finds it by this row. One that came again is as young as its last."""
        row = rows.TOMBSTONE + key
        if self.get(row) is None:
            self.tombstones += 1
        self.put(row, rows.encode_since(row, self.wall()))

    def hint_tombstone(self, key: bytes) -> None:
        """The scrub met a tombstone: one whose hint went lost has it again."""
        if self.get(rows.TOMBSTONE + key) is None:
            self.note_tombstone(key)

    def drop_tombstone(self, key: bytes) -> None:
        row = rows.TOMBSTONE + key
        if self.get(row) is not None:
            self.tombstones -= 1
            self.delete(row)

    # ---- the repair queue ------------------------------------------------------------------------
    def queued(self, key: bytes) -> rows.QueueRow | None:
        row = rows.QUEUE + key
        value = self.get(row)
        return None if value is None else rows.decode_queue(row, value)

    def enqueue(self, key: bytes, epoch: bytes, missed: tuple[int, ...]) -> None:
        """Adds or widens a key's repair entry; an older epoch than the queued one adds nothing."""
        old = self.queued(key)
        since_s = self.wall()
        if old is None:
            self.queue_depth += 1
        elif old.epoch > epoch:
            return
        else:
            since_s = old.since_s
            if old.epoch == epoch:
                missed = tuple(sorted({*old.missed, *missed}))
        row = rows.QUEUE + key
        self.put(row, rows.encode(row, rows.QueueRow(epoch, since_s, missed)))

    def dequeue(self, key: bytes, epoch: bytes, slots: tuple[int, ...] = ()) -> None:
        """Takes `slots` out of a key's repair entry, all of them when none are named."""
        old = self.queued(key)
        if old is None or old.epoch > epoch:
            return
        row = rows.QUEUE + key
        left = tuple(slot for slot in old.missed if slots and slot not in slots)
        if left:
            self.put(row, rows.encode(row, rows.QueueRow(old.epoch, old.since_s, left)))
        else:
            self.queue_depth -= 1
            self.delete(row)

    # ---- shard files and who refers to them --------------------------------------------------------
    def data(self, data_id: bytes) -> rows.DataRow | None:
        row = rows.DATA + data_id
        value = self.get(row)
        return None if value is None else rows.decode_data(row, value)

    def add_staged(self, data_id: bytes, size: int) -> None:
        """A file became whole and synced. The one change that a file thread makes: in a batch of its own."""
        staged = rows.StagedRow(size, self.wall())
        row = rows.STAGED + data_id
        self.engine.write({row: rows.encode(row, staged)}, {})
        self.staged[data_id] = staged

    def drop_staged(self, data_id: bytes) -> None:
        if self.staged.pop(data_id, None) is not None:
            self.delete(rows.STAGED + data_id)

    def plan_references(
        self, added: rec.Record | None, gone: Iterable[Entry]
    ) -> list[tuple[bytes, rows.DataRow | None, bool]]:
        """What happens to shard files when a record comes and entries go: (data id, new row, staged used up).

        DriveError(NOT_FOUND) when `added` names a file that is not here.
        """
        delta: dict[bytes, int] = dict.fromkeys(data_ids(added), 1) if added is not None else {}
        for entry in gone:
            for data_id in data_ids(rec.decode(entry.payload[0])):
                delta[data_id] = delta.get(data_id, 0) - 1
        wanted = data_ids(added) if added is not None else frozenset()
        plan: list[tuple[bytes, rows.DataRow | None, bool]] = []
        for data_id, change in delta.items():
            known = self.data(data_id)
            staged = self.staged.get(data_id) if data_id in wanted else None
            if known is None and staged is None:
                if data_id in wanted:
                    raise DriveError(DriveFault.NOT_FOUND, f"shard file {data_id.hex()}")
                continue
            size = staged.size if staged is not None else known.size if known is not None else 0
            references = (known.references if known is not None else 0) + change
            row = rows.DataRow(size, references) if references > 0 else None
            plan.append((data_id, row, staged is not None))
        return plan

    def apply_references(self, plan: list[tuple[bytes, rows.DataRow | None, bool]]) -> None:
        for data_id, data, staged in plan:
            if staged:
                self.drop_staged(data_id)
            row = rows.DATA + data_id
            if data is not None:
                self.put(row, rows.encode(row, data))
            else:
                self.delete(row)
                if data_id not in self.staged:
                    self.unlinks.append(data_id)


def data_ids(record: rec.Record) -> frozenset[bytes]:
    """The shard files a record names."""
    if record.inline:
        return frozenset()
    return frozenset(part.data_id for part in record.parts if part.data_id)
