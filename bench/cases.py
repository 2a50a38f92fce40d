"""What is measured, and the aims (two cores, 8+8; CPU is the sum over all server processes)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One measurement: arguments for bench.s3load, or a kind that run.py does itself.

    `metric` is the figure that the aim is about: server_cpu_ms_per_mib, server_cpu_ms_per_op or
    node_pss_mib.
    """

    name: str
    durability: str
    load: tuple[str, ...] = ()
    kind: str = "load"
    metric: str = "server_cpu_ms_per_op"
    aim: float | None = None
    full: bool = False
    frozen_node: int | None = None  # SIGSTOP for the length of the case: dark to its peers
    clear: bool = False  # delete what it wrote: big objects would fill a tmpfs


PER_MIB = "server_cpu_ms_per_mib"


def _load(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _sizes() -> list[Case]:
    """The other sizes of the full set, PUT and GET, one connection and 32."""
    found = []
    for name, size, one, many in [
        ("64k", "64K", 300, 2000),
        ("1m", "1M", 100, 400),
        ("64m", "64M", 0, 32),
        ("1g", "1G", 3, 0),
    ]:
        for conns, count in ((1, one), (32, many)):
            if count:
                common = f"--size {size} --conns {conns} --count {count}"
                put = _load(f"--op put {common}")
                get = _load(f"--op get --prepare {common} --keys {min(count, 64)}")
                big = size in ("64M", "1G")
                for op, load in (("put", put), ("get", get)):
                    found.append(
                        Case(
                            name=f"{op}-{name}-{conns}",
                            durability="relaxed",
                            load=load,
                            metric=PER_MIB,
                            full=True,
                            clear=big,
                        )
                    )
    return found


CASES: tuple[Case, ...] = (
    Case(name="idle", durability="relaxed", kind="memory", metric="node_pss_mib", aim=120),
    Case(
        name="put-64m",
        durability="relaxed",
        load=_load("--op put --size 64M --conns 2 --count 12"),
        metric=PER_MIB,
        aim=6.5,
        clear=True,
    ),
    Case(
        name="get-64m",
        durability="relaxed",
        load=_load("--op get --prepare --keys 4 --size 64M --conns 2 --count 24"),
        metric=PER_MIB,
        aim=2.0,
        clear=True,
    ),
    *_sizes(),
    Case(
        name="multipart-1g",
        durability="relaxed",
        kind="multipart",
        metric=PER_MIB,
        full=True,
    ),
    Case(
        name="put-4k-32",
        durability="strict",
        load=_load("--op put --size 4K --conns 32 --duration 8"),
        aim=1.2,
    ),
    Case(
        name="get-4k-32",
        durability="strict",
        load=_load("--op get --prepare --prepare-conns 32 --keys 2000 --random --size 4K --conns 32 --duration 6"),
        aim=0.8,
    ),
    Case(
        name="put-4k-1",
        durability="strict",
        load=_load("--op put --size 4K --conns 1 --count 500"),
    ),
    Case(
        name="get-4k-1",
        durability="strict",
        load=_load("--op get --prepare --keys 200 --size 4K --conns 1 --count 1000 --warmup 50"),
    ),
    Case(
        name="head-4k-32",
        durability="strict",
        load=_load("--op head --prepare --prepare-conns 32 --keys 1000 --size 4K --conns 32 --count 5000"),
    ),
    Case(
        name="delete-4k-32",
        durability="strict",
        load=_load("--op delete --prepare --prepare-conns 32 --size 4K --conns 32 --count 2000"),
    ),
    Case(
        name="list-10k",
        durability="strict",
        kind="list",
        load=_load("--keys 10000"),
    ),
    Case(
        name="list-100k",
        durability="strict",
        kind="list",
        load=_load("--keys 100000"),
        full=True,
    ),
    Case(
        name="mixed-4k-32",
        durability="strict",
        load=_load("--op mixed --prepare --prepare-conns 32 --keys 1000 --size 4K --conns 32 --duration 15"),
        full=True,
    ),
    Case(
        name="put-4k-32-relaxed",
        durability="relaxed",
        load=_load("--op put --size 4K --conns 32 --duration 8"),
        full=True,
    ),
    Case(
        name="put-4k-32-dark",
        durability="strict",
        load=_load("--op put --size 4K --conns 32 --duration 12"),
        full=True,
        frozen_node=4,
    ),
    Case(
        name="get-64m-dark",
        durability="relaxed",
        load=_load("--op get --prepare --keys 2 --size 64M --conns 2 --count 12"),
        metric=PER_MIB,
        full=True,
        frozen_node=4,
        clear=True,
    ),
)  # fmt: skip
