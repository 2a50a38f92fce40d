"""RocksDB behind one narrow class: the only module that imports rocksdict, the seam where its errors end.

rocksdict holds the GIL in everything but `flush_wal`; that is why a drive has a process of its own,
and why writes go without sync and the flush follows in a thread (node.runtime.drive.syncer).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import rocksdict

from node import limits
from node.protocol.verbs import DriveFault
from node.runtime.drive.faults import DriveError

SHARDS = "shards"


class LockedError(DriveError):
    """Another process still has the catalog open (a hung predecessor, perhaps)."""


class Engine:
    """An open catalog. Thread-safe; a failed write or flush leaves it unusable, on purpose."""

    def __init__(self, path: str) -> None:
        """Opens or creates the database. DriveError: CORRUPT, IO, or LockedError."""
        cache = rocksdict.Cache(limits.DRIVE_BLOCK_CACHE_BYTES)
        try:
            self._db = rocksdict.Rdict(
                path, _options(cache, blobs=False), {SHARDS: _options(cache, blobs=True)}
            )
            self._shards = self._db.get_column_family(SHARDS)
            self._shards_handle = self._db.get_column_family_handle(SHARDS)
        except Exception as error:
            raise _unopened(_mapped(error, "open")) from error

    @staticmethod
    def there(path: str) -> bool:
        """Whether a database was ever made here."""
        return os.path.exists(os.path.join(path, "CURRENT"))

    def get(self, row: bytes) -> bytes | None:
        try:
            value: bytes | None = self._db.get(row)
        except Exception as error:
            raise _mapped(error, "get") from error
        return value

    def get_shard(self, row: bytes) -> bytes | None:
        try:
            value: bytes | None = self._shards.get(row)
        except Exception as error:
            raise _mapped(error, "get") from error
        return value

    def write(
        self, rows: Mapping[bytes, bytes | None], shards: Mapping[bytes, bytes | None]
    ) -> None:
        """One atomic batch, not synced; None deletes."""
        batch = rocksdict.WriteBatch(raw_mode=True)
        try:
            for row, value in rows.items():
                if value is None:
                    batch.delete(row)
                else:
                    batch.put(row, value)
            for row, value in shards.items():
                if value is None:
                    batch.delete(row, self._shards_handle)
                else:
                    batch.put(row, value, self._shards_handle)
            self._db.write(batch)
        except Exception as error:
            raise _mapped(error, "write", writing=True) from error

    def flush(self) -> None:
        """Syncs the log: everything written before the call is durable when it returns. Frees the GIL."""
        try:
            self._db.flush_wal(True)
        except Exception as error:
            raise _mapped(error, "log sync", writing=True) from error

    def scan(self, start: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows from `start` (inclusive) up to `end` (exclusive)."""
        cursor = self.cursor(end)
        cursor.seek(start)
        while (item := cursor.item()) is not None:
            yield item
            cursor.next()

    def cursor(self, end: bytes) -> Cursor:
        options = rocksdict.ReadOptions()
        options.set_iterate_upper_bound(end)
        return Cursor(self._db.iter(options), options)

    def keys_estimate(self) -> int:
        return int(self._db.property_int_value("rocksdb.estimate-num-keys") or 0)

    def close(self) -> None:
        """Again is harmless. Walks that are still held keep the database open until they go."""
        try:
            self._shards.close()
            del self._shards_handle  # it holds the database open, too
            self._db.close()
        except (rocksdict.DbClosedError, AttributeError):
            return


class Cursor:
    """A seekable walk over rows; it does not see what is written after it was made."""

    def __init__(self, cursor: rocksdict.RdictIter, options: rocksdict.ReadOptions) -> None:
        self._cursor = cursor
        self._options = options  # the bound lies in there, and RocksDB only points at it
        self.next = cursor.next

    def seek(self, row: bytes) -> None:
        self._cursor.seek(row)

    def item(self) -> tuple[bytes, bytes] | None:
        """(row, value) under the cursor, None at the end; DriveError when the walk broke off."""
        cursor = self._cursor
        if cursor.valid():
            return cursor.key(), cursor.value()
        try:
            cursor.status()
        except Exception as error:
            raise _mapped(error, "scan") from error
        return None


def _unopened(error: DriveError) -> DriveError:
    if error.fault is not DriveFault.CORRUPT:
        return error
    detail = f"{error.detail}; to take the drive as a new one: `holdfast drive rebuild`"
    return DriveError(DriveFault.CORRUPT, detail)


def _options(cache: rocksdict.Cache, *, blobs: bool) -> rocksdict.Options:
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.create_missing_column_families(True)
    # A torn tail is what a power-off leaves; what was synced lies before it.
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.point_in_time())
    options.set_write_buffer_size(
        limits.DRIVE_SHARD_MEMTABLE_BYTES if blobs else limits.DRIVE_MEMTABLE_BYTES
    )
    options.set_max_write_buffer_number(3)
    options.set_max_total_wal_size(4 * limits.DRIVE_SHARD_MEMTABLE_BYTES)
    options.set_max_background_jobs(2)
    options.set_max_open_files(limits.DRIVE_CATALOG_FILES)
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(limits.MIB)
    options.set_level_compaction_dynamic_level_bytes(True)
    options.set_bytes_per_sync(limits.MIB)
    options.set_stats_dump_period_sec(0)
    options.set_stats_persist_period_sec(0)
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(cache)
    table.set_bloom_filter(10, False)
    table.set_cache_index_and_filter_blocks(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    table.set_format_version(5)
    options.set_block_based_table_factory(table)
    options.set_compression_type(
        rocksdict.DBCompressionType.none() if blobs else rocksdict.DBCompressionType.lz4()
    )
    if blobs:
        options.set_enable_blob_files(True)
        options.set_min_blob_size(limits.DRIVE_EMBEDDED_SHARD_BYTES)
        options.set_blob_file_size(64 * limits.MIB)
        options.set_enable_blob_gc(True)
    return options


def _mapped(error: Exception, doing: str, *, writing: bool = False) -> DriveError:
    text = f"catalog {doing}: {error}"
    lowered = text.lower()
    if "corruption" in lowered or "sst file is ahead" in lowered or "invalid argument" in lowered:
        return DriveError(DriveFault.CORRUPT, text, condemns=writing)
    if "lock hold" in lowered or "/lock:" in lowered:
        return LockedError(DriveFault.IO, text)
    # Out of space inside RocksDB leaves it read-only: only reopening helps, so it condemns as well.
    return DriveError(DriveFault.IO, text, condemns=writing)
