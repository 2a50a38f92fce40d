"""Every bound of the node, in one place. Units are in the names.

A number here is a promise about memory or time; a module that needs a new bound adds it here.
"""

from __future__ import annotations

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# ---- objects -------------------------------------------------------------------------------------
MAX_OBJECT_BYTES = 5 * 1024 * GIB
MAX_PART_BYTES = 5 * GIB
MIN_PART_BYTES = 5 * MIB  # every part but the last
MAX_PARTS = 10_000
MAX_KEY_BYTES = 1024
MAX_METADATA_BYTES = 2 * KIB  # user metadata, names and values, as S3 counts it
MAX_LIST_KEYS = 1000
MAX_DELETE_KEYS = 1000
PARTS_MENDED_AT_ONCE = 4  # of an upload that is completed, brought to drives that lack them
SWEEP_AT_ONCE = 8  # clean-up writes beside each other
SWEEP_DEADLINE_S = 30.0
UPLOAD_SWEEP_S = 300.0  # what ended uploads left is looked for this often
MAX_XML_BYTES = 2 * MIB  # DeleteObjects and CompleteMultipartUpload bodies are the largest

BUCKET_MEMORY_S = 10.0
BUCKET_MEMORY_ENTRIES = 10_000

# ---- stripes -------------------------------------------------------------------------------------
STRIPE_DATA_BYTES = 1 * MIB  # data bytes a stripe, objects below LARGE_OBJECT_BYTES
LARGE_STRIPE_DATA_BYTES = 4 * MIB
LARGE_OBJECT_BYTES = 32 * MIB
INLINE_SHARD_BYTES = 128 * KIB  # shards up to this size live in the catalog, not in a file
LARGE_STRIPE_UPLOADS = 4  # beyond so many uploads at once on a node, stripes are of the small size
UPLOADS_AT_ONCE = 32  # uploads of a node that hold stripe buffers
UPLOADS_WAITING = 256
UPLOAD_TURN_S = 15.0
TRANSFER_LIMIT_S = 7 * 86400.0  # an upload or download is bounded by progress, and by this in all
SYNC_BUDGET_S = 30.0  # checking or syncing a rebuilt shard file
BUFFER_WAIT_S = 10.0  # for stripe buffers when the node's memory is in use
BUFFER_PATIENCE_S = 60.0  # the same for an upload that has begun: it is slowed down, not refused
SMALL_BODY_BYTES = 64 * KIB  # digested and encoded on the loop, a thread would cost more
STRIPES_IN_FLIGHT = 3  # stripe buffers an upload or download holds at the most

# ---- memory --------------------------------------------------------------------------------------
ARENA_BYTES = 256 * MIB  # shared stripe-buffer memory of a node; pages are touched only when used
ARENA_WAITERS = 1024
FREED_MEMORY_KEPT_BYTES = 32 * MIB  # that the node's heap does not give back to the kernel

# ---- requests ------------------------------------------------------------------------------------
MAX_HEADER_BYTES = 32 * KIB
HEADER_TIMEOUT_S = 10.0
BODY_PROGRESS_TIMEOUT_S = 30.0  # a client that sends or takes nothing for so long is dropped
KEEPALIVE_IDLE_S = 75.0
CLIENT_READ_AHEAD_BYTES = 256 * KIB  # of an upload, received and not yet taken by its request
DISCARDED_BODY_BYTES = 64 * KIB  # the rest of a refused upload that a kept connection may skip
MAX_CONNECTIONS = 4096
MAX_RUNNING_REQUESTS = 512
MAX_WAITING_REQUESTS = 512
CLOCK_SKEW_S = 15 * 60
MIN_CLIENT_BYTES_PER_S = 32 * KIB  # a transfer's deadline grows with its size at this rate
ADMISSION_WAIT_S = 2.0  # how long a request may wait for its turn before SlowDown
TRANSFER_BASE_S = 60.0  # what a transfer may take beyond its bytes
SLOW_REQUEST_S = 3.0  # beyond it a request is logged though it went well
SLOW_BYTES_PER_S = 4 * MIB  # and a transfer below this rate
OPEN_TIMEOUT_S = 15.0  # from a GET's admission to its first bytes
LINGER_S = 2.0  # after an early answer: how long the rest of the upload is thrown away
MAX_XML_ELEMENTS = 65_536
MAX_XML_DEPTH = 16
MAX_TAGS = 10
MAX_BUCKETS_LISTED = 10_000
DELETES_IN_FLIGHT = 16  # keys of one DeleteObjects request that are deleted at the same time

# ---- peers ---------------------------------------------------------------------------------------
PEER_FRAME_BYTES = 1 * MIB  # messages stay below this (several times dearer above)
GATHER_TURNS = 4  # of the event loop, that a batch of messages or verbs waits for company
PEER_MAX_MESSAGE_BYTES = 16 * MIB
PEER_QUEUE_FRAMES = 8192
TELL_WAIT_S = 0.005  # how long a message that wants no reply waits for one to travel with
HEARTBEAT_INTERVAL_S = 0.5
QUIET_AFTER_S = 0.8  # a peer so long without a sign of life is asked last and waited for by nobody
SUSPECT_AFTER_S = 1.5
DEAD_AFTER_S = 2.5
HEARTBEAT_MAX_LAG_S = 3.0  # a loop that lags more is as good as dead
CLOSED_CALLS_KEPT = 4096

PEER_FACTS_S = 1.0  # how often peers are asked what the console shows of them, while somebody looks
PEER_FACTS_QUIET_S = 5.0  # and when nobody has looked for so long and nothing is to be repaired

# ---- drives --------------------------------------------------------------------------------------
DRIVE_QUEUE_CALLS = 8192
DRIVE_STATE_CHECK_S = 3.0
DRIVE_SICK_CHECK_S = 1.5  # how often a drive that does not answer is looked at
LATE_DRIVE_S = (
    0.25  # what a drive may stay behind half of its neighbours before it counts as silent
)
DRIVE_RESERVE_FRACTION = 0.01
DRIVE_RESERVE_BYTES = 1 * GIB
DRIVE_SMALL_BYTES = 20 * GIB  # on drives below this size the reserve is the fraction alone
DRIVE_MESSAGE_BYTES = 16 * MIB  # the longest message to or from a drive process
DRIVE_EMBEDDED_SHARD_BYTES = 2 * KIB  # larger inline shards get a row of their own
DRIVE_MEMTABLE_BYTES = 4 * MIB  # of the catalog's rows; three at the most
DRIVE_SHARD_MEMTABLE_BYTES = 8 * MIB  # of inline shards that have rows of their own
DRIVE_BLOCK_CACHE_BYTES = 4 * MIB
DRIVE_CATALOG_FILES = 128  # files the catalog keeps open
DRIVE_FILE_THREADS = 4
DRIVE_WRITE_BEHIND_BYTES = 4 * MIB  # of a shard file, that may gather before they go to the device
DRIVE_BULK_VOLLEYS = 8  # stripes that a node's drives are given at once; others wait
DRIVE_OPEN_STAGES = 1024  # shard files being written at once
DRIVE_SYNC_HERE_S = 0.0005  # a log sync that takes less is not worth another thread
DRIVE_LAZY_SYNC_S = 0.5  # flags and queue rows are durable after this at the latest
DRIVE_STAGE_IDLE_S = 6 * 3600.0  # an unfinished shard file that nobody writes to is dropped
DRIVE_STAGED_KEEP_S = 24 * 3600.0  # a finished one that no record came for
DRIVE_QUARANTINE_KEEP_S = 24 * 3600.0
DRIVE_UNLINK_AFTER_S = (
    60.0  # a shard file outlives its last record by so much, for readers under way
)
DRIVE_TIGHT_FRACTION = 0.05  # with less room than this above the reserve, it goes at once
DRIVE_HOUSEKEEPING_S = 60.0
DRIVE_START_S = 10.0  # a process may take so long to answer for the first time
DRIVE_RESPAWN_MIN_S = 0.2
DRIVE_RESPAWN_MAX_S = 10.0

# ---- the adaptive bound ----------------------------------------------------------------------------
STRAGGLER_BOUND_S = 0.25  # how long an acknowledgement waits for margin beyond the quorum
SHARD_WRITER_LAG_S = 1.0  # a shard writer that stays so far behind the others is dropped
SHARD_SYNC_GRACE_S = 1.0  # what slower drives get to sync once a quorum of shards is durable
SHARD_READ_AHEAD = 2  # stripes that a shard stream fetches before they are asked for
SHARD_READER_LAG_S = 0.5  # a shard stream that stays so long without a frame is replaced
HEDGE_FLOOR_S = 0.02
HEDGE_CEILING_S = 0.25

# ---- repair --------------------------------------------------------------------------------------
REPAIR_INTERVAL_S = 2.0
REPAIR_AT_ONCE = 8
REPAIR_PAGE = 1000
REPAIR_BATCH = 8192  # entries of one round: those with the smallest margin
REPAIR_TURN_S = 45.0
PAUSE_REFRESH_S = 30.0  # how often a node reads whether repair is paused
PAUSE_READ_S = 5.0
REPAIR_DEADLINE_S = 60.0
SETTLE_AFTER_S = 5.0  # an undecided write is its coordinator's business for so long
SETTLE_INTERVAL_S = 4.0
SETTLE_DEADLINE_S = 10.0  # of one key
SETTLE_TURN_S = 10.0  # what each node in line gets before the next one tries
COLLECT_AFTER_S = 300.0  # a tombstone is younger than this: nobody looks at it
COLLECT_STRAY_S = (
    3600.0  # one so old is anybody's, whosever turn it was: some drives have let it go, say
)
COLLECT_SETTLE_S = 60.0  # from when all drives were seen to have it until it goes
COLLECT_INTERVAL_S = 30.0
COLLECT_PAGE = 256  # tombstones of a set that a node lets go in one turn
COLLECT_WAITING = 4096  # that were seen everywhere and have not gone yet
COLLECT_PATIENCE_S = 3600.0  # how long the repair queue may keep them waiting
CENSUS_PAGE = 500
CENSUS_ASK_S = 5.0  # a page of one drive
CENSUS_CHECKS_AT_ONCE = 8  # shard files of one drive whose size is asked for in one message
CENSUS_DOUBTS = 20_000  # keys of a set that are looked at twice, because they seemed to lack shards
CENSUS_SECOND_LOOK_S = 2.0  # after the walk began, at the earliest: what was being written is there
CENSUS_SHORT_KEPT = 20_000  # keys that lack shards, handed to repair
CENSUS_TURN_S = 50.0
CENSUS_PAUSE_S = 1.0
CENSUS_FOLLOW_S = 0.5  # how often a command asks how far a census is
CENSUS_PATIENCE_S = 60.0  # a command gives up on a census that makes no progress for so long
FILL_AT_ONCE = 4  # keys brought to a replaced drive beside each other
FILL_LACKING = 10_000  # keys that a replaced drive still lacks after a walk, tried again one by one
FILL_TURN_S = 50.0
FILL_PAUSE_S = 3.0

PROOF_PAUSE_S = 15.0  # between two censuses that prove repair
PROOF_REST_FACTOR = 9.0  # and so many times what the last one took: a tenth of the time at the most
PROOF_QUEUE_AGE_S = 10.0  # repair has caught up when nothing in its queue is older
PACE_REST_FACTOR = (
    3.0  # while clients are served, background work rests so much longer than it worked
)
PACE_REST_MAX_S = 1.0

# ---- scrub -----------------------------------------------------------------------------------------
SCRUB_EVERY_S = 14 * 86400.0  # from the end of a pass over a drive to the next one
SCRUB_BYTES_PER_S = 16 * MIB  # of one drive; less while clients are served
SCRUB_CHUNK_BYTES = 4 * MIB  # verified in one go
SCRUB_PAGE_KEYS = 100
SCRUB_PAGE_PAUSE_S = 0.05  # after a page of rows, however few bytes it was
SCRUB_MARK_S = 5.0  # how often the progress is kept
SCRUB_TURN_S = 30.0
SCRUB_INTERVAL_S = 10.0

# ---- commits -------------------------------------------------------------------------------------
COMMIT_ATTEMPTS = 5  # new epochs for one request, each only after the one before was proved dead
TOPS_KEPT = 8192  # keys whose top a coordinator remembers from its own writes
TOPS_GUESS_SHARE = 0.75  # a guessed base must have been right so often lately to be tried
FINISH_PATIENCE_S = 2.0  # how long late votes are waited for before "decided" names who missed it
UNLOCK_PATIENCE_S = 0.05  # how long the unlock waits for late votes to travel with "decided"
LOCK_ATTEMPT_S = 1.0
LOCK_LATE_S = 0.25  # once one lock server refused: what the others get to say more
DECIDED_GATHER_S = 0.02  # how long a member gathers "decided" flags before it tells its drives
DECIDED_RIDE_S = 0.03  # how long they then wait for a verb to travel with
DECIDED_GATHER = 256

# ---- locks ---------------------------------------------------------------------------------------
LOCK_LEASE_S = 9.0
LOCK_REFRESH_S = 3.0
LOCK_RETRY_DELAYS_S = (0.1, 0.2, 0.4)
LOCK_TICK_S = 0.1
LOCK_TABLE_ENTRIES = 200_000
LOCK_WAITERS_PER_KEY = 256

# ---- identity ------------------------------------------------------------------------------------
IDENTITY_REFRESH_S = 1.5  # how often a node reads the directory though nobody told of a change
IDENTITY_READ_SPACING_S = (
    0.1  # between two reads, so that unknown keys cannot cause a storm of them
)
IDENTITY_CATCH_UP_S = 3.0  # what a node that is told of a change takes to apply it, at the most
IDENTITY_COPY_S = 3.0  # reading or writing a drive's own copy of them
IDENTITY_QUORUM_FIRST_S = (
    2.0  # at its start a node waits so long for a quorum before its own copy counts
)
IDENTITY_CHANGE_ATTEMPTS = 5  # when others change the directory at the same time
IDENTITY_DOCUMENT_BYTES = 8 * MIB  # users, keys and policies together, sealed

# ---- console and admin API -----------------------------------------------------------------------
CONSOLE_ANSWER_S = (
    0.8  # what a page waits for identities before it says that they are not known now
)
SESSION_S = 12 * 3600.0
LOGIN_BURST = 10  # attempts of one address or for one access key
LOGIN_REFILL_S = 6.0  # seconds until one more attempt is free
LOGIN_SOURCES = 4096  # addresses and keys remembered
ADMIN_BODY_BYTES = 64 * KIB
ADMIN_PAGE = 1000  # users, policies or locks of one answer
CONSOLE_PAGE = 200  # objects of one page

# ---- start-up ------------------------------------------------------------------------------------
MAX_VOLUMES = 4096
MAX_ADMIN_ANSWER_BYTES = 64 * MIB  # what a command reads of one answer
MAX_CONFIG_BYTES = 1 * MIB  # the configuration file, and each file that a _FILE name points to
MAX_FORMAT_BYTES = 4 * MIB  # format.json of MAX_VOLUMES drives is a quarter of it
MIN_MEMORY_BYTES = 256 * MIB
MIN_USER_CHARACTERS = 3
MIN_PASSWORD_CHARACTERS = 8
MIN_CLUSTER_SECRET_CHARACTERS = 16
FORMING_ASK_S = 3.0  # one question to one drive of one node
FORMING_RETRY_S = 0.5
GREET_INTERVAL_S = 5.0  # how often a node compares itself with its peers
DRAIN_S = 8.0  # what in-flight requests get at SIGTERM
FORMING_REPORT_S = 5.0  # how often a waiting node says what it waits for

# ---- observation -----------------------------------------------------------------------------------
METRIC_CHILDREN = 2048  # time series of one family; labels beyond it are gathered as "other"
LOG_VALUE_CHARACTERS = 4096  # a longer text in a log line is cut
DEV_READY_S = 300.0  # `holdfast dev`: until every node takes writes
DEV_STOP_S = 10.0  # then SIGKILL
