"""What ended uploads leave behind: the records of parts that keep their shard files alive.

Theory of operation. Complete, Abort and DeleteBucket answer first and clear away afterwards, so a power-off in
between leaves records that nobody will ever ask for. One node at a time (the first of those alive) walks all
uploads, every UPLOAD_SWEEP_S:

    the object says that it came from this upload        Complete was committed: clear all of it away
    the bucket is gone                                   as DeleteBucket would have
    parts without an upload                              it was aborted, or its last record went first

Upload ids that have parts are noted before the uploads are walked. A part is written only to an upload that is
there, so a noted id that the walk does not meet has ended for good.
"""

from __future__ import annotations

from collections.abc import AsyncIterator

from node.errors import NoSuchBucket
from node.objects.buckets import Buckets
from node.objects.listing import Lister
from node.objects.lookup import Lookup
from node.objects.multipart import PART_PREFIX, UPLOAD_PREFIX, Multipart, split_upload
from node.objects.sets import SYSTEM_BUCKET, Cluster
from node.protocol import record as records
from node.protocol.record import Kind

_PAGE = 1000


class UploadSweep:
    """Clears ended uploads away."""

    def __init__(
        self,
        cluster: Cluster,
        lookup: Lookup,
        lister: Lister,
        buckets: Buckets,
        multipart: Multipart,
    ) -> None:
        self._cluster = cluster
        self._lookup = lookup
        self._lister = lister
        self._buckets = buckets
        self._multipart = multipart
        self._parts_after = b""  # the walk over parts goes on here in the next round

    async def round(self, *, deadline: float) -> int:
        """-> how many ended uploads were cleared away. Unavailable: the rest waits for the next round."""
        alive = {self._cluster.me, *self._cluster.membership.alive()}
        if next(node for node in self._cluster.nodes if node in alive) != self._cluster.me:
            return 0
        orphans = await self._with_parts(deadline)
        ended: list[tuple[str, str, str]] = []
        async for bucket, key, upload_id in self._uploads(deadline):
            orphans.discard(upload_id)
            if await self._has_ended(bucket, key, upload_id, deadline):
                ended.append((bucket, key, upload_id))
        for bucket, key, upload_id in ended:
            await self._multipart.clean_up(self._cluster.view(bucket, key), bucket, key, upload_id)
        for upload_id in sorted(orphans):
            for view in self._cluster.views:
                await self._multipart.clean_up_parts(view, upload_id)
        return len(ended) + len(orphans)

    async def _with_parts(self, deadline: float) -> set[str]:
        """Ids of uploads that have parts, a page of them."""
        found, end = await self._lister.entries(
            SYSTEM_BUCKET,
            prefix=PART_PREFIX.encode(),
            delimiter=b"/",
            after=self._parts_after,
            limit=_PAGE,
            deadline=deadline,
        )
        self._parts_after = end or b""
        return {entry.key.decode().removeprefix(PART_PREFIX).rstrip("/") for entry in found}

    async def _uploads(self, deadline: float) -> AsyncIterator[tuple[str, str, str]]:
        """(bucket, key, upload id) of all uploads that have not been cleared away."""
        cursor = b""
        while True:
            found, end = await self._lister.entries(
                SYSTEM_BUCKET,
                prefix=UPLOAD_PREFIX.encode(),
                after=cursor,
                limit=_PAGE,
                deadline=deadline,
            )
            for entry in found:
                bucket = entry.key.decode().removeprefix(UPLOAD_PREFIX).partition("/")[0]
                yield bucket, *split_upload(bucket, entry.key)
            if end is None:
                return
            cursor = end

    async def _has_ended(self, bucket: str, key: str, upload_id: str, deadline: float) -> bool:
        view = self._cluster.view(bucket, key)
        found = await self._lookup.find(view, records.catalog_key(bucket, key), deadline=deadline)
        record = found.record
        if record is not None and record.kind == Kind.OBJECT:
            return record.system.get("upload_id") == upload_id
        try:
            await self._buckets.get(bucket, deadline=deadline)
        except NoSuchBucket:
            return True
        return False
