"""One seed: clients at work, nemeses at theirs, then calm, and everything is held to the promises.

    calm start      four nodes form, a bucket is made
    storm           clients put, get, delete, list, put on conditions and in parts; one nemesis follows the other
    calm            faults off; within CALM_S nothing is undecided, queued or broken, every object has all shards
    reading         every key is read from every node, the listing shows what gets show

Checked: every key's history has one order (tests.sim.history), bodies are right bit by bit, no request
outlives its bound, no error is an internal one, and what `World.unrest` and the census say after the storm.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from hashlib import md5
from random import Random
from xml.etree import ElementTree

from tests.sim.client import Answer
from tests.sim.history import (
    ABSENT,
    Kind,
    Operation,
    Outcome,
    Verdict,
    body_of,
    linearizable,
    value_of,
)
from tests.sim.loop import START_S
from tests.sim.nemesis import NEMESES, Harm
from tests.sim.switches import off
from tests.sim.watch import LeaseWatch, collect_tombstones
from tests.sim.world import World, simulate

BUCKET = "bucket"
CALM_S = 240.0
XML = "{http://s3.amazonaws.com/doc/2006-03-01/}"
# What a request may take, by kind: its row in node.guard.policy (bodies: limits.TRANSFER_BASE_S), and a bit.
BOUND_S = {
    "get": 16.0,
    "head": 16.0,
    "delete": 16.0,
    "list": 21.0,
    "put": 61.5,
    "part": 61.5,
    "complete": 61.0,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How hard a seed is driven. `nemeses`: names of NEMESES, None: all of them."""

    storm_s: float = 45.0
    clients: int = 10
    keys: int = 10
    pace_s: float = 0.2  # a client's pause between two requests, on average
    large: float = 0.04  # share of objects with shard files
    mix: tuple[tuple[str, float], ...] = (
        ("get", 35),
        ("head", 10),
        ("put", 28),
        ("delete", 8),
        ("create", 6),
        ("replace", 8),
        ("multipart", 2),
        ("list", 3),
    )
    nemeses: tuple[str, ...] | None = None
    without: str = ""  # a rule of tests.sim.switches that does not hold during the storm
    collect: bool = False  # let tombstones go as early as the protocol allows
    calm: bool = True  # hold it to full redundancy afterwards


@dataclass(slots=True, kw_only=True)
class Result:
    """What one seed gave."""

    seed: int
    anomalies: list[str]
    story: list[str]
    trace: str = ""
    virtual_s: float = 0.0
    real_s: float = 0.0
    operations: int = 0
    failed: int = 0
    histories: int = 0
    undetermined: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    unsynced: Counter[str] = field(default_factory=Counter)


class Workload:
    """The clients, and what they were told."""

    def __init__(self, world: World, plan: Plan) -> None:
        self.world, self.plan = world, plan
        self.rng = Random(f"{world.seed}/workload")
        self.history: dict[str, list[Operation]] = {f"key{n:02}": [] for n in range(plan.keys)}
        self.done: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.etags: dict[str, int] = {}
        self.values = 0
        self.storming = True

    # ---- clients -----------------------------------------------------------------------------------
    async def client(self, name: str) -> None:
        rng = Random(f"{self.world.seed}/{name}")
        home = rng.randrange(1, len(self.world.boxes) + 1)
        while self.storming:
            await asyncio.sleep(rng.expovariate(1 / self.plan.pace_s))
            if not self.world.boxes[home].powered or rng.random() < 0.15:
                home = rng.randrange(1, len(self.world.boxes) + 1)
            key = rng.choice(list(self.history))
            await self.one(rng, name, home, key)

    async def one(self, rng: Random, name: str, node: int, key: str) -> None:
        what = rng.choices([w for w, _ in self.plan.mix], [n for _, n in self.plan.mix])[0]
        match what:
            case "get":
                await self.read(name, node, key)
            case "head":
                await self.head(name, node, key)
            case "put":
                await self.put(rng, name, node, key, Kind.PUT)
            case "delete":
                await self.delete(name, node, key)
            case "create":
                await self.put(rng, name, node, key, Kind.CREATE)
            case "replace":
                await self.put(rng, name, node, key, Kind.REPLACE)
            case "multipart":
                await self.multipart(name, node, key)
            case _:
                await self.listing(name, node)

    def begin(self, key: str, kind: Kind, client: str, value: int = ABSENT) -> Operation:
        operation = Operation(key=key, kind=kind, client=client, start=self.world.now, value=value)
        self.history[key].append(operation)
        return operation

    def new_value(self) -> int:
        self.values += 1
        return self.values

    async def send(self, kind: str, node: int, method: str, path: str, **options: object) -> Answer:
        """One request, held to its bound where its node was well all the time."""
        world = self.world
        box = world.boxes[node]
        life, frozen, began = box.life, world.faults["freeze"], world.now
        answer = await world.client.request(node, method, f"/{BUCKET}{path}", **options)  # type: ignore[arg-type]
        took_s = world.now - began
        well = life is not None and life.running and world.faults["freeze"] == frozen
        if well and took_s > BOUND_S[kind]:
            world.wrong(f"{kind} {path} at {box.name} took {took_s:.1f} s")
        if answer.status == 500:
            world.wrong(f"{kind} {path} at {box.name}: internal error {answer.body[:300]!r}")
        self.done[kind] += 1
        if answer.status == 0 or answer.status >= 500:
            self.failed[kind] += 1
        return answer

    # ---- requests ----------------------------------------------------------------------------------
    async def read(self, name: str, node: int, key: str) -> Answer:
        operation = self.begin(key, Kind.READ, name)
        answer = await self.send("get", node, "GET", f"/{key}")
        if answer.status == 200:
            try:
                operation.value = value_of(key, answer.body)
            except ValueError as error:
                self.world.wrong(f"get {key} by {name}: wrong bytes: {error}")
                return answer
            self._ended(operation, Outcome.DONE)
        elif answer.status == 404 and answer.code == "NoSuchKey":
            self._ended(operation, Outcome.DONE)
        return answer

    async def head(self, name: str, node: int, key: str) -> None:
        """Reads the version by its ETag alone."""
        operation = self.begin(key, Kind.READ, name)
        answer = await self.send("head", node, "HEAD", f"/{key}")
        if answer.status == 200:
            operation.value = self.etags[answer.headers["etag"]]
        if answer.status in (200, 404):
            self._ended(operation, Outcome.DONE)

    def _ended(self, operation: Operation, outcome: Outcome) -> None:
        operation.end, operation.outcome = self.world.now, outcome
        seen = f" {operation.value}" if operation.kind is not Kind.DELETE else ""
        self.world.tell(operation.client, f"{operation.kind} {operation.key}{seen} {outcome}")

    async def put(self, rng: Random, name: str, node: int, key: str, kind: Kind) -> None:
        size = self._size(rng)
        value = self.new_value()
        headers: dict[str, str] = {}
        expected = ABSENT
        if kind is Kind.CREATE:
            headers["if-none-match"] = "*"
        elif kind is Kind.REPLACE:
            etag, expected = self._likely(rng, key)
            if not etag:
                return
            headers["if-match"] = etag
        operation = self.begin(key, kind, name, value)
        operation.expected = expected
        body = body_of(key, value, size)
        self.etags[_etag(body)] = value
        answer = await self.send("put", node, "PUT", f"/{key}", body=body, headers=headers)
        if answer.status == 200:
            self._ended(operation, Outcome.DONE)
        elif answer.status == 412 or (answer.status == 404 and answer.code == "NoSuchKey"):
            self._ended(operation, Outcome.REFUSED)
        elif 400 <= answer.status < 500:
            self._not_done(operation, answer)

    def _not_done(self, operation: Operation, answer: Answer) -> None:
        """Refused before anything was done, for a reason that a nemesis explains."""
        self.history[operation.key].remove(operation)
        if answer.code != "RequestTimeTooSkewed":
            self.world.wrong(f"{operation}: {answer.status} {answer.body[:300]!r}")

    def _size(self, rng: Random) -> int:
        if rng.random() < self.plan.large:
            return rng.randrange(1_100_000, 1_800_000)
        return rng.choice((0, 10, 700, 4000, 30_000, 120_000))

    def _likely(self, rng: Random, key: str) -> tuple[str, int]:
        """An ETag that the key has or had lately, and its value."""
        of = {value: etag for etag, value in self.etags.items()}
        recent = [o.value for o in self.history[key][-12:] if o.value in of]
        if not recent:
            return "", ABSENT
        value = recent[-1] if rng.random() < 0.8 else rng.choice(recent)
        return of[value], value

    async def delete(self, name: str, node: int, key: str) -> None:
        operation = self.begin(key, Kind.DELETE, name)
        answer = await self.send("delete", node, "DELETE", f"/{key}")
        if answer.status == 204:
            self._ended(operation, Outcome.DONE)
        elif 400 <= answer.status < 500:
            self._not_done(operation, answer)

    async def multipart(self, name: str, node: int, key: str) -> None:
        """An upload of one part; what completes it is one write."""
        answer = await self.send("part", node, "POST", f"/{key}", query=[("uploads", "")])
        if answer.status != 200:
            return
        upload = _text(answer.body, "UploadId")
        value = self.new_value()
        part = [("partNumber", "1"), ("uploadId", upload)]
        body = body_of(key, value, 20_000)
        answer = await self.send("part", node, "PUT", f"/{key}", query=part, body=body)
        if answer.status != 200:
            return
        etag = answer.headers["etag"]
        document = (
            "<CompleteMultipartUpload><Part><PartNumber>1</PartNumber>"
            f"<ETag>{etag}</ETag></Part></CompleteMultipartUpload>"
        ).encode()
        self.etags[f'"{md5(md5(body).digest()).hexdigest()}-1"'] = value
        operation = self.begin(key, Kind.PUT, name, value)
        for _ in range(2):  # what is not answered is asked again: the answer is the same
            query = [("uploadId", upload)]
            answer = await self.send(
                "complete", node, "POST", f"/{key}", query=query, body=document
            )
            if answer.status == 200 and b"<ETag>" in answer.body:
                self._ended(operation, Outcome.DONE)
                return
            if 400 <= answer.status < 500 and answer.code not in ("RequestTimeTooSkewed",):
                self.world.wrong(f"complete {key}: {answer.status} {answer.body[:300]!r}")
                return

    async def listing(self, name: str, node: int) -> dict[str, str] | None:
        """Every key of the bucket with its ETag, page by page; each is a read of its key."""
        began = self.world.now
        found: dict[str, str] = {}
        token = ""
        while True:
            query = [("list-type", "2"), ("max-keys", "4")]
            if token:
                query.append(("continuation-token", token))
            answer = await self.send("list", node, "GET", "", query=query)
            if answer.status != 200:
                return None
            tree = ElementTree.fromstring(answer.body)
            for item in tree.iter(f"{XML}Contents"):
                found[item.findtext(f"{XML}Key") or ""] = item.findtext(f"{XML}ETag") or ""
            token = tree.findtext(f"{XML}NextContinuationToken") or ""
            if not token:
                break
        ended = self.world.now
        for key, history in self.history.items():
            etag = found.get(key, "")
            value = self.etags[etag] if etag else ABSENT
            history.append(
                Operation(
                    key=key,
                    kind=Kind.READ,
                    client=f"{name} list",
                    start=began,
                    end=ended,
                    value=value,
                    outcome=Outcome.DONE,
                )
            )
        return found

    # ---- after the storm ---------------------------------------------------------------------------
    async def read_everything(self) -> None:
        """Every key from every node, and the listing from each."""
        for node in self.world.boxes:
            there = set()
            for key in self.history:
                answer = await self.read(f"final{node}", node, key)
                if answer.status not in (200, 404):
                    self.world.wrong(
                        f"get {key} at node {node} after the storm: {answer.status} "
                        f"{answer.error} {answer.body[:200]!r}"
                    )
                elif answer.status == 200:
                    there.add(key)
            listed = await self.listing(f"final{node}", node)
            if listed is None or set(listed) != there:
                self.world.wrong(f"node {node} lists {listed}, gets show {sorted(there)}")

    def judge(self) -> tuple[int, int]:
        """Checks every key's history; -> (histories, of these undetermined)."""
        undetermined = 0
        for key, history in self.history.items():
            verdict: Verdict = linearizable(history)
            if verdict.fine is None:
                undetermined += 1
            elif not verdict.fine:
                self.world.wrong(f"{key}: " + "\n".join(verdict.story))
        return len(self.history), undetermined


async def storm(world: World, plan: Plan) -> None:
    """One nemesis after the other, now and then two at once, until the time is over."""
    rng = Random(f"{world.seed}/nemesis")
    harm = Harm(world, rng)
    await harm.pause(1, 3)  # some acknowledged writes to lose
    names = plan.nemeses if plan.nemeses is not None else tuple(NEMESES)
    if names:
        weights = [NEMESES[name][1] for name in names]
        until = world.now + plan.storm_s
        running: list[asyncio.Task[None]] = []
        while world.now < until:
            name = rng.choices(names, weights)[0]
            running = [task for task in running if not task.done()]
            if len(running) < 2:
                world.tell("nemesis", name)
                running.append(asyncio.ensure_future(_work(harm, name)))
            await harm.pause(0.5, 6)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    else:
        await asyncio.sleep(plan.storm_s)
    world.tell("nemesis", "calm")
    harm.heal()


async def _work(harm: Harm, name: str) -> None:
    await NEMESES[name][0](harm)


async def scenario(world: World, plan: Plan, result: Result) -> None:
    await world.start()
    answer = await world.client.request(1, "PUT", f"/{BUCKET}")
    assert answer.status == 200, answer
    work = Workload(world, plan)
    broken = off(plan.without) if plan.without else contextlib.nullcontext()
    with broken:
        await _storm_and_calm(world, plan, work)
    result.histories, result.undetermined = work.judge()
    result.operations = sum(work.done.values())
    result.failed = sum(work.failed.values())


async def _storm_and_calm(world: World, plan: Plan, work: Workload) -> None:
    watches = [asyncio.ensure_future(LeaseWatch(world).run())]
    if plan.collect:
        watches.append(asyncio.ensure_future(collect_tombstones(world)))
    clients = [asyncio.ensure_future(work.client(f"client{n}")) for n in range(plan.clients)]
    await storm(world, plan)
    work.storming = False
    await asyncio.gather(*clients)
    for watch in watches:
        watch.cancel()
    await asyncio.gather(*watches, return_exceptions=True)
    if plan.calm:
        try:
            await world.settled(CALM_S)
        except TimeoutError as error:
            world.wrong(f"not calm within {CALM_S:.0f} s: {error}")
        else:
            await census(world)
            await work.read_everything()


async def census(world: World) -> None:
    """Every object has all its shards, and every drive was asked."""
    engine = world.engine(1)
    taken = await world.on(1, engine.census.take(deadline=world.now + 60))
    if not taken.whole:
        world.wrong(
            f"the census after the storm: {dict(taken.by_shards)} of {taken.objects} objects, "
            f"every drive: {taken.every_drive}, {taken.short[:5]}"
        )


def run_seed(seed: int, plan: Plan | None = None) -> Result:
    """Runs one seed; what breaks the run itself is an anomaly, too."""
    plan = plan or Plan()
    result = Result(seed=seed, anomalies=[], story=[])
    kept: list[World] = []

    async def whole(world: World) -> None:
        kept.append(world)
        await scenario(world, plan, result)

    began = time.perf_counter()
    try:
        simulate(whole, seed=seed)
    except Exception as error:
        result.anomalies.append(f"the run broke: {type(error).__name__}: {error}")
    result.real_s = time.perf_counter() - began
    for world in kept:
        result.anomalies += world.anomalies
        result.story = list(world.story)
        result.trace, result.faults = world.final_trace, world.faults
        result.virtual_s = world.virtual_s - START_S
        for drive in world.room.drives.values():
            result.unsynced.update(drive.disk.lost)
    return result


def _etag(body: bytes) -> str:
    return f'"{md5(body).hexdigest()}"'


def _text(document: bytes, name: str) -> str:
    return ElementTree.fromstring(document).findtext(f"{XML}{name}") or ""
