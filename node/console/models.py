"""What the console and the admin API say about the cluster: typed, and the JSON's very shape."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

BreakerName = Literal["closed", "half-open", "open"]
NodeState = Literal["up", "suspect", "dead", "unknown"]


class Facts(BaseModel):
    model_config = ConfigDict(frozen=True, populate_by_name=True)


class Drive(Facts):
    """`state`: a node.store.drive_gate.DriveState in lower case, or "unknown" for a dark node's drive.

    `scrub_age_s`: since the last full pass over it, or since it was taken in; None: not known.
    """

    index: int
    path: str
    drive_id: str
    set: int | None = None
    state: str
    total_bytes: int | None = None
    free_bytes: int | None = None
    scrub_age_s: float | None = None
    scrubbing: bool = False
    scrub_faults: int = 0


class Node(Facts):
    """`facts_age_s`: how old what is said of its drives is; None: nothing was ever heard of them."""

    name: str
    state: NodeState
    this: bool = Field(default=False, alias="self")
    incarnation: int = 0
    rtt_ms: float | None = None
    lag_ms: float | None = None
    since_s: float | None = None
    facts_age_s: float | None = None
    breakers: dict[str, BreakerName] = {}
    drives: tuple[Drive, ...] = ()


class Set(Facts):
    """Tolerances count drives that may go dark from now on: below 0, that many are missing."""

    index: int
    online: int
    n: int
    k: int
    write_quorum: int
    read_tolerance: int
    write_tolerance: int
    margin: int
    drives_per_node: int = 1


class SetCensus(Facts):
    """`by_shards`: number of whole shards (of `n`) -> number of objects. `unreadable`: fewer than their k."""

    index: int
    n: int
    k: int
    objects: int
    by_shards: dict[str, int]
    unreadable: int = 0
    tombstones: int = 0
    tombstones_short: int = 0
    complete: bool = True
    whole: bool = True


class Census(Facts):
    """The last count of shards, and how far the one under way is.

    `complete`: every catalog was read. `whole`: complete, and nothing lacks a shard. `expected` is an upper
    bound of the keys to count, and so is `eta_s` of the time left.
    """

    objects: int
    by_shards: dict[str, int]
    complete: bool
    whole: bool = False
    tombstones: int = 0
    finished_s: float | None = None
    sets: tuple[SetCensus, ...] = ()
    node: str = ""
    running: bool = False
    problem: str = ""
    counted: int = 0
    expected: int = 0
    rate_per_s: float = 0.0
    eta_s: float | None = None


class Fill(Facts):
    """A replaced drive that is being filled; `expected` keys at the most."""

    node: str
    path: str
    keys: int
    expected: int
    rate_per_s: float = 0.0
    eta_s: float | None = None


class Repair(Facts):
    """`eta_s`: an honest estimate, None when there is none. `census`: the newest any living node knows."""

    queue: int = 0
    oldest_s: float = 0.0
    undecided: int = 0
    undecided_oldest_s: float = 0.0
    repaired: int = 0
    rate_per_s: float = 0.0
    eta_s: float | None = None
    paused: bool = False
    fills: tuple[Fill, ...] = ()
    census: Census | None = None


class Cluster(Facts):
    cluster_id: str
    node: str
    version: str
    parity: int
    durability: Literal["strict", "relaxed"]
    ready: bool
    write_ready: bool
    notices: tuple[str, ...] = ()
    nodes: tuple[Node, ...] = ()
    sets: tuple[Set, ...] = ()
    repair: Repair = Repair()


class Lock(Facts):
    resource: str
    holder: str
    age_s: float
    waiters: int = 0
    mode: str = ""


class Locks(Facts):
    locks: tuple[Lock, ...]


class ConfigValue(Facts):
    """`value` of a secret is shown as stars."""

    name: str
    value: str
    origin: str


class Config(Facts):
    values: tuple[ConfigValue, ...]


# ---- users ----------------------------------------------------------------------------------------


class User(Facts):
    name: str
    enabled: bool
    policies: tuple[str, ...]
    keys: tuple[str, ...]
    created_s: float


class Users(Facts):
    users: tuple[User, ...]


class NewUser(Facts):
    name: str


class UserChange(Facts):
    enabled: bool


class NewKey(Facts):
    """Left out: random ones are made."""

    access_key: str = ""
    secret_key: str = ""


class Key(Facts):
    access_key: str
    secret_key: str


class Policy(Facts):
    """`document`: the policy's JSON; a text that holds it is taken as well."""

    name: str
    document: dict[str, object] | str
    built_in: bool = False


class Policies(Facts):
    policies: tuple[Policy, ...]


class Pause(Facts):
    paused: bool


class DriveToAccept(Facts):
    node: str
    path: str


class ResourceToRelease(Facts):
    resource: str


class Fault(Facts):
    """Every error of the API."""

    code: str
    message: str


# ---- the console's own ------------------------------------------------------------------------------


class Credentials(Facts):
    access_key: str = Field(max_length=256)
    secret_key: str = Field(max_length=256)


class Session(Facts):
    """`csrf` goes into the X-CSRF-Token header of every change."""

    name: str
    root: bool
    csrf: str
    expires_s: float


class Bucket(Facts):
    name: str
    created_s: float
    owner: str


class Buckets(Facts):
    buckets: tuple[Bucket, ...]


class NewBucket(Facts):
    name: str


class Object(Facts):
    key: str
    size: int
    etag: str
    modified_s: float


class Objects(Facts):
    """One page; `next_after` continues it."""

    prefixes: tuple[str, ...]
    objects: tuple[Object, ...]
    next_after: str | None


class Stored(Facts):
    key: str
    size: int
    etag: str
