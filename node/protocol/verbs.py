"""The verbs of a drive: what may be asked of a drive process, and what it answers.

One message is a MessagePack array whose first element is its tag. Verbs travel unchanged from a
coordinator over a peer to the drive process, so a peer forwards bytes it never decodes. Bulk bytes
do not travel here: they lie in the node's arena (shared memory), and verbs name offsets in it.

`sync`: the drive answers only after what the verb changed is durable (relaxed durability aside).
"""

from __future__ import annotations

import enum
from collections.abc import Sequence

import msgspec


class DriveFault(enum.StrEnum):
    """Closed set of reasons why a drive could not do as asked."""

    WRONG_DRIVE = "wrong_drive"  # the drive behind this id is another one
    FOREIGN = "foreign"  # the directory holds something that is not ours
    UNFORMATTED = "unformatted"
    NO_SPACE = "no_space"
    IO = "io"  # EIO, EROFS, a failed sync: the drive is sick
    CORRUPT = "corrupt"  # the catalog or a record fails its checks
    NOT_FOUND = "not_found"  # no such staged or shard file
    CONDEMNED = "condemned"  # an earlier sync failed; nothing is acknowledged until it is checked
    BAD_REQUEST = "bad_request"
    OLD_VIEW = "old_view"  # the commit was sent before a drive of the set was replaced
    FILLING = "filling"  # a replaced drive that has not got this key back yet: it may have had it


# ---- the commit protocol ---------------------------------------------------------------------------
class Read(msgspec.Struct, array_like=True, frozen=True, tag=1):
    """-> State. `inline`: send inline shards along."""

    key: bytes
    inline: bool = False


class Fence(msgspec.Struct, array_like=True, frozen=True, tag=2):
    """sync -> State (without inline shards)."""

    key: bytes
    epoch: bytes


class Commit(msgspec.Struct, array_like=True, frozen=True, tag=3):
    """sync -> Committed. `record` is encoded (node.protocol.record); data files it names are staged here.

    `view`: how often drives of the set were replaced, as the sender knows; OLD_VIEW below what was adopted.
    """

    key: bytes
    record: bytes
    shard: bytes = b""  # framed inline shard
    view: int = 0


class Mark(msgspec.Struct, array_like=True, frozen=True):
    """An epoch of a key is decided. `missed`: slots that lack the version, kept as repair entry."""

    key: bytes
    epoch: bytes
    missed: tuple[int, ...] = ()


class Decided(msgspec.Struct, array_like=True, frozen=True, tag=4):
    """Not synced at once (within 1 s) -> Done. `also`: further marks; a failed one stops no other."""

    key: bytes
    epoch: bytes
    missed: tuple[int, ...] = ()
    also: tuple[Mark, ...] = ()

    @classmethod
    def of(cls, marks: Sequence[Mark]) -> Decided:
        """`marks`: at least one."""
        first = marks[0]
        return cls(first.key, first.epoch, first.missed, tuple(marks[1:]))


class Discard(msgspec.Struct, array_like=True, frozen=True, tag=5):
    """-> Done."""

    key: bytes
    epoch: bytes


class Repair(msgspec.Struct, array_like=True, frozen=True, tag=6):
    """sync -> RepairDone. A decided version for a drive that missed it; its data files are staged here.

    `top` rebuilds a register that the drive has lost (a rotten row, or with `refill` that of a replaced drive):
    what it may have promised. Without them such a drive answers CORRUPT or FILLING. Others ignore both.
    """

    key: bytes
    record: bytes
    shard: bytes = b""
    top: bytes = b""
    refill: bool = False


class Collect(msgspec.Struct, array_like=True, frozen=True, tag=7):
    """sync -> Done. Lets a decided tombstone that stands alone go.

    `also`: further ones; a failed one stops no other.
    """

    key: bytes
    epoch: bytes
    also: tuple[tuple[bytes, bytes], ...] = ()


class Tombstones(msgspec.Struct, array_like=True, frozen=True, tag=9):
    """-> TombstonePage. Decided tombstones that stand alone here since before `before_s` (this drive's wall clock)."""

    after: bytes = b""
    limit: int = 256
    before_s: float = 0.0


class Standing(msgspec.Struct, array_like=True, frozen=True, tag=17):
    """sync -> Standings, by tombstone (key, epoch). FILLING from a replaced drive.

    Answered after a flush, so that no power-off takes back what it says: flags are not synced by themselves.
    """

    tombstones: tuple[tuple[bytes, bytes], ...]


class Scrub(msgspec.Struct, array_like=True, frozen=True, tag=18):
    """-> ScrubPage. Verifies rows and inline shards after `after`, and names the shard files to be verified.

    `slot` and `drives_per_node` of the drive's set say which shard of a record belongs here.
    """

    after: bytes
    slot: int
    drives_per_node: int
    keys: int = 100
    inline_bytes: int = 1 << 20


class ScrubState(msgspec.Struct, array_like=True, frozen=True):
    """How far the scrub of a drive is. Wall clock; `finished_s`: of the last full pass, or of the taking in."""

    after: bytes = b""
    started_s: float = 0.0  # of the pass under way; 0: none is
    finished_s: float = 0.0
    keys: int = 0  # of the pass under way, or of the last one
    size_bytes: int = 0
    faults: int = 0


class ScrubMark(msgspec.Struct, array_like=True, frozen=True, tag=19):
    """-> Done. Keeps the progress; not synced at once: what a power-off takes is verified again."""

    state: ScrubState


class BucketFence(msgspec.Struct, array_like=True, frozen=True, tag=8):
    """sync -> Done. Commits into `bucket` with a generation at or below `generation` are refused from now on."""

    bucket: str
    generation: int


class Adopt(msgspec.Struct, array_like=True, frozen=True, tag=15):
    """sync -> Promised. Commits that carry an older view of the set are refused from now on."""

    view: int


class Promise(msgspec.Struct, array_like=True, frozen=True, tag=16):
    """sync -> Done. Rebuilds the register of a key that nobody holds: what a lost drive may have promised."""

    key: bytes
    top: bytes


# ---- scans -----------------------------------------------------------------------------------------
class Scan(msgspec.Struct, array_like=True, frozen=True, tag=10):
    """-> Page. Keys of `bucket` with `prefix`, after `after` (exclusive), ascending by bytes.

    With a `delimiter`, keys that share a common prefix are rolled up into one entry of kind 0, and the
    scan seeks over them. Tombstones are listed too (kind 2): a reader that merges drives needs them.
    """

    bucket: str
    prefix: bytes = b""
    after: bytes = b""
    delimiter: bytes = b""
    limit: int = 1000
    records: bool = False  # send the newest entry's whole record along


class Entries(msgspec.Struct, array_like=True, frozen=True, tag=11):
    """-> RawPage. All catalog keys after `after`, with the newest epochs: the census and the full walk.

    `tops`: keys that have a promise alone are listed as well, with kind 0 and an empty `newest`.
    """

    after: bytes = b""
    limit: int = 1000
    tops: bool = False


class Pending(msgspec.Struct, array_like=True, frozen=True, tag=12):
    """-> PendingPage. Undecided writes and queued repairs on this drive, or one of both alone."""

    after: bytes = b""
    limit: int = 1000
    writes: bool = True
    repairs: bool = True


class Repaired(msgspec.Struct, array_like=True, frozen=True, tag=13):
    """-> Done. Takes `slots` (none named: all) out of a key's repair entry at this epoch or an older one.

    Drives may have queued different slots, so an entry goes only when none of its own are left.
    """

    key: bytes
    epoch: bytes
    slots: tuple[int, ...] = ()


class Enqueue(msgspec.Struct, array_like=True, frozen=True, tag=14):
    """-> Done. Adds a repair entry (rot met on a read, a drive that was replaced)."""

    key: bytes
    epoch: bytes
    missed: tuple[int, ...]


# ---- shard files -----------------------------------------------------------------------------------
class StageOpen(msgspec.Struct, array_like=True, frozen=True, tag=20):
    """-> Done. Creates the shard file of `data_id` and writes its header (erasure.frame)."""

    data_id: bytes
    header: bytes


class StageWrite(msgspec.Struct, array_like=True, frozen=True, tag=21):
    """-> Done. Copies `length` bytes at `arena_offset` of the node's arena to `offset` of the file."""

    data_id: bytes
    offset: int
    arena_offset: int
    length: int


class StageSync(msgspec.Struct, array_like=True, frozen=True, tag=22):
    """sync (file, directory entry, stage row) -> Done. `size` is the whole file's."""

    data_id: bytes
    size: int


class StageDrop(msgspec.Struct, array_like=True, frozen=True, tag=23):
    """-> Done. Removes a staged file that no record refers to; one that is referred to stays."""

    data_id: bytes


class ShardRead(msgspec.Struct, array_like=True, frozen=True, tag=24):
    """-> Count. Reads `length` bytes at `offset` of the shard file into the arena at `arena_offset`."""

    data_id: bytes
    offset: int
    length: int
    arena_offset: int


class ShardCheck(msgspec.Struct, array_like=True, frozen=True, tag=25):
    """-> Count of bytes if the file is whole (size and, with `deep`, each block's checksum); CORRUPT or NOT_FOUND."""

    data_id: bytes
    size: int
    deep: bool = False


class ShardScan(msgspec.Struct, array_like=True, frozen=True, tag=26):
    """-> ShardScanned. Verifies a shard file from `block` on, `max_bytes` or one block of it; CORRUPT, NOT_FOUND."""

    data_id: bytes
    size: int
    block: int
    max_bytes: int


# ---- the drive itself ------------------------------------------------------------------------------
class Check(msgspec.Struct, array_like=True, frozen=True, tag=30):
    """-> Usage. The drive state check: writes, syncs and reads back a small file."""


class FormatRead(msgspec.Struct, array_like=True, frozen=True, tag=31):
    """-> Blob: format.json as it is on the drive, empty when the drive is empty; FOREIGN otherwise."""


class FormatWrite(msgspec.Struct, array_like=True, frozen=True, tag=32):
    """sync -> Done. Writes format.json on an empty drive and opens its catalog.

    On a formatted drive it replaces format.json if `cluster_id` and `drive_id` in it stay the same (the
    same bytes again are fine; forming and accepted drives update the rest); else FOREIGN.
    """

    data: bytes


class Filled(msgspec.Struct, array_like=True, frozen=True, tag=33):
    """sync -> Done. A replaced drive has everything that it missed: its silence about a key counts again.

    `floor`: the highest floor of those it was rebuilt from.
    """

    floor: bytes = b""


class IdentityRead(msgspec.Struct, array_like=True, frozen=True, tag=40):
    """-> Blob: this drive's copy of the node's identities as it was written, empty when there is none."""


class IdentityWrite(msgspec.Struct, array_like=True, frozen=True, tag=41):
    """sync -> Done. Replaces the copy as a whole; one that is overtaken by a higher `version` does nothing."""

    version: int
    data: bytes


class Retire(msgspec.Struct, array_like=True, frozen=True, tag=36):
    """sync -> Done. Moves all that lies on a damaged drive aside; BAD_REQUEST on one that can be opened."""


Verb = (
    Read | Fence | Commit | Decided | Discard | Repair | Collect | BucketFence | Adopt | Promise
    | Tombstones | Standing | Scan | Entries | Pending | Repaired | Enqueue
    | StageOpen | StageWrite | StageSync | StageDrop | ShardRead | ShardCheck
    | ShardScan | Scrub | ScrubMark
    | Check | FormatRead | FormatWrite | Filled | IdentityRead | IdentityWrite | Retire
)  # fmt: skip


# ---- answers ---------------------------------------------------------------------------------------
class Failed(msgspec.Struct, array_like=True, frozen=True, tag=100):
    fault: str  # DriveFault
    detail: str = ""


class Done(msgspec.Struct, array_like=True, frozen=True, tag=101):
    pass


class HeldEntry(msgspec.Struct, array_like=True, frozen=True):
    epoch: bytes
    base: bytes
    decided: bool
    record: bytes
    shard: bytes = b""


class State(msgspec.Struct, array_like=True, frozen=True, tag=102):
    """A register: top (the floor where nothing is held), the drive's floor, entries ascending by epoch."""

    top: bytes
    floor: bytes
    entries: tuple[HeldEntry, ...] = ()


class Committed(msgspec.Struct, array_like=True, frozen=True, tag=103):
    """`accepted`, or the top that was in the way; `bucket_gone`: refused by the bucket's generation."""

    accepted: bool
    top: bytes
    bucket_gone: bool = False


class RepairDone(msgspec.Struct, array_like=True, frozen=True, tag=104):
    verdict: int  # node.protocol.register.Repaired


class Listed(msgspec.Struct, array_like=True, frozen=True):
    """kind 0: a common prefix, with the epoch of its first living object; 1 object; 2 tombstone."""

    key: bytes
    kind: int
    epoch: bytes = b""
    decided: bool = False
    size: int = 0
    mtime_ns: int = 0
    etag: str = ""
    owner: str = ""
    record: bytes = b""


class Page(msgspec.Struct, array_like=True, frozen=True, tag=105):
    entries: tuple[Listed, ...]
    more: bool


class RawEntry(msgspec.Struct, array_like=True, frozen=True):
    key: bytes
    top: bytes
    newest: bytes
    decided: bool
    kind: int
    alone: bool
    data: tuple[tuple[bytes, int], ...] = ()  # (data_id, shard file bytes) of the newest record


class RawPage(msgspec.Struct, array_like=True, frozen=True, tag=106):
    entries: tuple[RawEntry, ...]
    floor: bytes
    more: bool


class PendingEntry(msgspec.Struct, array_like=True, frozen=True):
    key: bytes
    epoch: bytes
    decided: bool  # False: an undecided write; True: a decided one that some slots missed
    since_s: float  # wall clock when it was queued
    missed: tuple[int, ...] = ()


class PendingPage(msgspec.Struct, array_like=True, frozen=True, tag=107):
    entries: tuple[PendingEntry, ...]
    more: bool
    depth_undecided: int
    depth_repair: int


class Count(msgspec.Struct, array_like=True, frozen=True, tag=108):
    count: int


class Usage(msgspec.Struct, array_like=True, frozen=True, tag=109):
    total_bytes: int
    free_bytes: int
    keys_estimate: int
    undecided: int
    repair_queue: int
    sync_seconds: float
    filling: bool = False  # a replaced drive that is not rebuilt yet
    scrub: ScrubState = ScrubState()


class Promised(msgspec.Struct, array_like=True, frozen=True, tag=111):
    """What a drive has promised beyond single keys: its floor, and (bucket, fenced generation) each."""

    floor: bytes
    generations: tuple[tuple[str, int], ...] = ()


class StandingKind(enum.IntEnum):
    """What a drive has of a tombstone."""

    LACKING = 0  # it has an older version, or may still take one in: not to be collected anywhere
    ALONE = 1  # decided, and nothing beside it
    GONE = 2  # nothing is held, and the floor refuses whatever is not newer: as if it had been collected
    NEWER = 3  # only newer versions are held: the key was written again


class Standings(msgspec.Struct, array_like=True, frozen=True, tag=113):
    """One StandingKind a byte, in the order of the question."""

    kinds: bytes


class TombstonePage(msgspec.Struct, array_like=True, frozen=True, tag=112):
    """(key, epoch, since when) by key. `next_after`: where to go on, b"" at the end; `depth`: young ones included."""

    entries: tuple[tuple[bytes, bytes, float], ...]
    next_after: bytes
    depth: int


class ScrubPage(msgspec.Struct, array_like=True, frozen=True, tag=114):
    """`faults`: (key, epoch, reason) of rows (epoch ZERO) and inline shards; `files`: (key, epoch, data id, size).

    `next_after`: where to go on, b"" at the end.
    """

    faults: tuple[tuple[bytes, bytes, str], ...]
    files: tuple[tuple[bytes, bytes, bytes, int], ...]
    next_after: bytes
    keys: int
    size_bytes: int


class ShardScanned(msgspec.Struct, array_like=True, frozen=True, tag=115):
    """`next_block` 0: that was the last."""

    next_block: int
    size_bytes: int


class Blob(msgspec.Struct, array_like=True, frozen=True, tag=110):
    data: bytes


Reply = (
    Failed | Done | State | Committed | RepairDone | Page | RawPage | PendingPage
    | Count | Usage | Blob | Promised | Standings | TombstonePage
    | ScrubPage | ShardScanned
)  # fmt: skip

_encoder = msgspec.msgpack.Encoder()
_verb_decoder: msgspec.msgpack.Decoder[Verb] = msgspec.msgpack.Decoder(Verb)
_reply_decoder: msgspec.msgpack.Decoder[Reply] = msgspec.msgpack.Decoder(Reply)


def encode(message: Verb | Reply) -> bytes:
    return _encoder.encode(message)


def decode_verb(data: bytes | memoryview) -> Verb:
    """msgspec.MsgspecError when it is none."""
    return _verb_decoder.decode(data)


def decode_reply(data: bytes | memoryview) -> Reply:
    """msgspec.MsgspecError when it is none."""
    return _reply_decoder.decode(data)
