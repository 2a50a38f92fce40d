"""This node's copy of the directory of users, keys and policies, and how it changes.

Theory of operation. The directory is one system document, read and replaced by quorum; its version is
the document's. Every node holds the whole of it in memory and answers from there.

  changes   read - modify - replace if the version is still the one read - tell the other nodes.
            Acknowledged once a quorum of nodes has applied it.
  behind    heartbeats carry versions. A node that has seen a higher one than its own reads before it
            vouches for anybody; when it cannot, that is Unavailable (503), never "denied".
  refresh   every IDENTITY_REFRESH_S the document is read although nobody told of a change. A due
            read is counted as a timeout when none was answered for as long as one may take, whatever kept
            them from being answered: so an alert sees a fault that refuses at once as well.

  start     the quorum is asked. While it does not answer, the copy on this node's own drives counts,
            unverified: the first answer of the quorum takes its place, whatever version it has. A peer
            that is heard with a higher version makes it too old, as any copy.

Reads are shared: one is under way at a time, and whoever needs a newer one waits for the next. A
verified copy never goes back to an older version. When the quorum is lost, the copy goes on being used.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import structlog

from iam.errors import IamError, LimitExceeded
from iam.model import Directory
from node import limits
from node.errors import DeadlineExceeded, HoldfastError, OutcomeUnknown, Unavailable
from node.guard.guard import Guard
from node.guard.policy import ADMIN, JOBS
from node.identity.ports import Copies, Document, Documents, Metrics, Spread
from node.identity.vault import DOCUMENT, Opened, Vault
from node.objects.documents import DocumentConflict
from node.runtime.ports import Clock, Rng

VERSION_NAME = "identity"  # in heartbeats
_READ = JOBS["identity_refresh"]


class IdentityUnreadable(Unavailable):
    """The stored identities are there and this node cannot open them: the message says what to do."""


@dataclass(frozen=True, slots=True)
class Known:
    """One version of the directory. `version` is the document's, 0 before there is one."""

    directory: Directory
    version: int
    data_key: bytes | None = field(repr=False)


class Replica:
    """The directory as this node knows it."""

    def __init__(
        self,
        nodes: int,
        documents: Documents,
        copies: Copies,
        spread: Spread,
        vault: Vault,
        guard: Guard,
        clock: Clock,
        rng: Rng,
        metrics: Metrics,
        publish: Callable[[str, int], None],
        highest_seen: Callable[[], int],
    ) -> None:
        self._others_needed = nodes // 2  # with this node a majority
        self._documents = documents
        self._copies = copies
        self._spread = spread
        self._vault = vault
        self._guard = guard
        self._clock = clock
        self._rng = rng
        self._metrics = metrics
        self._publish = publish
        self._highest_seen = highest_seen
        self._log = structlog.get_logger("holdfast.identity")
        self._known: Known | None = None
        self._verified = False  # `known` is what a quorum said
        self._own: tuple[int, Opened] | None = None  # what this node's drives had at its start
        self._to_keep: tuple[int, bytes] | None = None  # what they are to have
        self._rewrap = False
        self._problem = ""
        self._begun = float("-inf")  # when the last read began
        self._fresh_at = float("-inf")  # when the last one that was answered began
        self._behind_since: float | None = None
        self._reading: asyncio.Task[Unavailable | None] | None = None
        self._ticking: asyncio.Task[None] | None = None
        self._beginning: asyncio.Task[None] | None = None
        self._keeping: asyncio.Task[None] | None = None
        self._changing = asyncio.Lock()

    # ---- life -----------------------------------------------------------------------------------------
    def start(self) -> None:
        """Begin to refresh. Returns at once; what is not known yet is waited for where it is needed."""
        if self._ticking is None:
            loop = asyncio.get_running_loop()
            self._ticking = loop.create_task(self._tick(), name="identity")
            self._beginning = loop.create_task(self._begin(), name="identity copy")

    async def close(self) -> None:
        every = (self._ticking, self._beginning, self._reading, self._keeping)
        tasks = [task for task in every if task is not None]
        self._ticking = self._beginning = None
        for task in tasks:
            task.cancel()
        for task in tasks:
            with contextlib.suppress(asyncio.CancelledError):
                await task

    # ---- reading --------------------------------------------------------------------------------------
    @property
    def known(self) -> Known | None:
        """The copy as it is, however old; None before the first read was answered."""
        return self._known

    @property
    def problem(self) -> str:
        """Why the stored directory cannot be opened, "" when it can."""
        return self._problem

    @property
    def lag_s(self) -> float:
        """For how long this node has known that its copy is not the newest."""
        known = self._known
        if known is not None and known.version >= self._highest_seen():
            self._behind_since = None
            return 0.0
        now = self._clock.monotonic()
        if self._behind_since is None:
            self._behind_since = now
        return now - self._behind_since

    async def current(self, *, deadline: float) -> Known:
        """A copy that is as new as any peer is known to have; Unavailable when there is none."""
        wanted = self._highest_seen()
        try:
            return await self.at_least(wanted, deadline=deadline)
        except Unavailable:
            known = self._known  # this node's own copy may have taken its place meanwhile
            if known is None or known.version < wanted:
                raise
            return known

    async def at_least(self, version: int, *, deadline: float) -> Known:
        known = self._known
        if known is not None and known.version >= version:
            return known
        found = await self.newest(deadline=deadline)
        if found.version < version:
            raise Unavailable(f"identities are at version {found.version}, {version} was announced")
        return found

    async def newest(self, *, deadline: float) -> Known:
        """A copy read after this call began."""
        since = self._clock.monotonic()
        while self._fresh_at < since:
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                raise self._late()
            bound = asyncio.timeout(left_s)
            try:
                async with bound:
                    failure = await asyncio.shield(self._read_soon())
            except TimeoutError:
                if not bound.expired():
                    raise
                raise self._late() from None
            if failure is not None:
                raise failure
        assert self._known is not None
        return self._known

    def _late(self) -> DeadlineExceeded:
        self._metrics.config_read_timeout("iam")
        return DeadlineExceeded("the identities could not be read in time")

    def _read_soon(self) -> asyncio.Task[Unavailable | None]:
        # A read that has just ended must not be joined: awaiting it again would never yield.
        if self._reading is None or self._reading.done():
            self._reading = asyncio.get_running_loop().create_task(self._read())
            self._reading.add_done_callback(self._read_ended)
        return self._reading

    def _read_ended(self, task: asyncio.Task[Unavailable | None]) -> None:
        if self._reading is task:
            self._reading = None
        if not task.cancelled() and (error := task.exception()) is not None:
            self._log.error("reading the identities failed", exc_info=error)

    async def _read(self) -> Unavailable | None:
        """One shared read; what made it fail, or None."""
        pause_s = self._begun + limits.IDENTITY_READ_SPACING_S - self._clock.monotonic()
        if pause_s > 0:
            await self._clock.sleep(pause_s)
        begun = self._begun = self._clock.monotonic()

        async def attempt(until: float) -> Document | None:
            return await self._documents.read(DOCUMENT, deadline=until)

        try:
            document = await self._guard.run(
                "job",
                "identity_refresh",
                _READ,
                None,
                attempt,
                deadline=begun + _READ.total_s,
                retry_on=(Unavailable,),
            )
            self._take(document)
            self._fresh_at = begun
        except Unavailable as error:
            self._fall_back()
            return error
        finally:
            self._metrics.config_read("iam", self._clock.monotonic() - begun)
        return None

    def _take(self, document: Document | None) -> None:
        """Make what was read the copy, unless it is older. IdentityUnreadable when it cannot be opened."""
        known = self._known if self._verified else None
        if document is None:
            if known is None:
                self._verified = True
                self._apply(Known(Directory(), 0, None))
            return
        if known is not None and document.version <= known.version:
            return
        try:
            remembered = self._known.data_key if self._known else None
            opened = self._vault.open(document.data, remembered)
        except IamError as error:
            if self._problem != str(error):
                self._problem = str(error)
                self._log.error("the stored identities cannot be opened", problem=self._problem)
            raise IdentityUnreadable(self._problem) from error
        self._problem = ""
        self._rewrap = opened.rewrap
        self._verified = True
        self._apply(Known(opened.directory, document.version, opened.data_key))
        self._keep(document.version, document.data, opened.data_key)

    def _apply(self, known: Known) -> None:
        self._known = known
        self._publish(VERSION_NAME, known.version)
        self._metrics.identity_version(known.version)

    # ---- this node's own copy --------------------------------------------------------------------------
    async def _begin(self) -> None:
        """Has this node's own copy at hand, and falls back on it when no quorum answers soon."""
        first = self._read_soon()
        for data in await self._copies.read():
            try:
                version, opened = self._vault.open_copy(data)
            except IamError as error:
                self._log.warning("a copy of the identities cannot be used", problem=str(error))
                continue
            if self._own is None or version > self._own[0]:
                self._own = version, opened
        await asyncio.wait({first}, timeout=limits.IDENTITY_QUORUM_FIRST_S)
        self._fall_back()

    def _fall_back(self) -> None:
        if self._known is not None or self._own is None:
            return
        version, opened = self._own
        self._rewrap = opened.rewrap
        self._apply(Known(opened.directory, version, opened.data_key))
        self._log.warning(
            "no quorum for the identities yet: using this node's copy", version=version
        )

    def _keep(self, version: int, document: bytes, data_key: bytes) -> None:
        self._own = None
        self._to_keep = version, self._vault.seal_copy(document, version, data_key)
        self._keep_soon()

    def _keep_soon(self) -> None:
        """Writes what is to be kept to the drives that lack it; called again with every refresh."""
        if self._to_keep is None or (self._keeping is not None and not self._keeping.done()):
            return
        self._keeping = asyncio.get_running_loop().create_task(
            self._copies.keep(*self._to_keep), name="identity copy"
        )

    # ---- the refresh ----------------------------------------------------------------------------------
    async def _tick(self) -> None:
        answered_at = self._clock.monotonic()
        while True:
            self._read_soon()
            pause_s = limits.IDENTITY_REFRESH_S * self._rng.uniform(0.9, 1.1)
            await self._clock.sleep(pause_s)
            answered_at = max(answered_at, self._fresh_at)
            if self._clock.monotonic() - answered_at >= _READ.attempt_s:
                self._metrics.config_read_timeout("iam")
            self._metrics.identity_lag(self.lag_s)
            self._keep_soon()
            if self._rewrap:
                with contextlib.suppress(HoldfastError):  # the next tick tries again
                    await self._wrap_anew()

    async def _wrap_anew(self) -> None:
        """The secret was changed: write the document once with the data key wrapped by the new one."""
        deadline = self._clock.monotonic() + limits.IDENTITY_CATCH_UP_S
        await self._replace(lambda directory: directory, deadline, rewrap=True)
        self._log.info("the identities are wrapped with the current secret")

    # ---- changing -------------------------------------------------------------------------------------
    async def change(
        self, modify: Callable[[Directory], Directory], *, deadline: float
    ) -> Directory:
        """Apply `modify` to the newest directory (several times, when others change it meanwhile).

        Returns once a quorum of nodes has applied it. Raises what `modify` raises; OutcomeUnknown when
        the change is stored and too few nodes have applied it yet, or when nobody knows.
        """

        async def attempt(until: float) -> Directory:
            return await self._replace(modify, until)

        return await self._guard.run(
            "admin", "change", ADMIN["change"], None, attempt, deadline=deadline
        )

    async def _replace(
        self,
        modify: Callable[[Directory], Directory],
        deadline: float,
        *,
        rewrap: bool = False,
    ) -> Directory:
        async with self._changing:
            for _ in range(limits.IDENTITY_CHANGE_ATTEMPTS):
                base = await self.newest(deadline=deadline)
                directory = modify(base.directory)
                if directory is base.directory and not (rewrap and self._rewrap):
                    return directory
                data_key = base.data_key or self._vault.new_data_key()
                data = self._vault.seal(directory, data_key)
                if len(data) > limits.IDENTITY_DOCUMENT_BYTES:
                    raise LimitExceeded("bytes", "directory", limits.IDENTITY_DOCUMENT_BYTES)
                try:
                    written = await self._documents.write(
                        DOCUMENT, data, expected=base.version, deadline=deadline
                    )
                except DocumentConflict:
                    continue
                self._rewrap = False
                if written.version > self._version():
                    self._apply(Known(directory, written.version, data_key))
                    self._keep(written.version, data, data_key)
                break
            else:
                raise Unavailable("the identities were changed by others again and again")
        await self._spread_to_quorum(written.version, deadline)
        return directory

    async def _spread_to_quorum(self, version: int, deadline: float) -> None:
        if not self._others_needed:
            return
        until = min(deadline, self._clock.monotonic() + limits.IDENTITY_CATCH_UP_S)
        applied = await self._spread.spread(version, deadline=until)
        if applied < self._others_needed:
            raise OutcomeUnknown(
                f"the change is stored, but only {applied + 1} nodes have applied it so far; "
                "the others do when they can be reached"
            )

    def _version(self) -> int:
        return -1 if self._known is None else self._known.version

    # ---- what peers say -------------------------------------------------------------------------------
    async def handle_announcement(self, payload: bytes) -> bytes:
        """A peer changed the directory: apply it, then answer with the version this node has."""
        version = _decode_version(payload)
        deadline = self._clock.monotonic() + limits.IDENTITY_CATCH_UP_S
        found = await self.at_least(version, deadline=deadline)
        return announcement(found.version)


def announcement(version: int) -> bytes:
    """What a node sends to tell of a change, and what it answers once it has applied one."""
    return msgspec.msgpack.encode(version)


def applied(answer: bytes, version: int) -> bool:
    """Whether the node that gave this answer has applied the version."""
    return _decode_version(answer) >= version


def _decode_version(payload: bytes) -> int:
    try:
        version: Any = msgspec.msgpack.decode(payload, type=int)
    except msgspec.DecodeError as error:
        raise HoldfastError(f"this is no version of identities: {error}") from None
    return int(version)
