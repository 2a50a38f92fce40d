"""Which shards a read asks for, first and when some of them fail or are late.

Theory of operation. A read needs any k shards of a stripe. What it costs is, in this order: asking
something that is slow, asking over the network, how many peers are asked (a stream each), and
decoding (cheap, and needed only if a data shard is not among the chosen). So: sources far slower
than the rest come last; then local shards; then whole peers, those with the most shards first, and
among equals those with more data shards, then the cheaper ones. A source's cost is any figure that
grows with its expected latency; only ratios count.

When shards fail, or are so late that the read hedges, `replace` names as many others, in the same
order but preferring peers that already answer over peers not asked yet, and both over peers whose
shards just failed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass

from erasure.errors import NotEnoughShards

# A source this many times dearer than the median one is asked only when nothing else is left.
SLOW_FACTOR = 4.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSource:
    """One shard that can be asked for: its index in the code, the node that has it, its cost."""

    shard: int
    node: Hashable
    local: bool
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadPlan:
    """The k sources a read asks first, in the order of preference."""

    chosen: tuple[ShardSource, ...]
    k: int

    @property
    def shards(self) -> tuple[int, ...]:
        """Indexes of the chosen shards, ascending."""
        return tuple(sorted(source.shard for source in self.chosen))

    @property
    def missing_data(self) -> tuple[int, ...]:
        """Data shards that are not chosen and so must be reconstructed, ascending."""
        chosen = {source.shard for source in self.chosen}
        return tuple(shard for shard in range(self.k) if shard not in chosen)

    def by_node(self) -> dict[Hashable, tuple[int, ...]]:
        """The shards to ask of each node, ascending: one request a node."""
        asked: dict[Hashable, list[int]] = {}
        for source in self.chosen:
            asked.setdefault(source.node, []).append(source.shard)
        return {node: tuple(sorted(shards)) for node, shards in asked.items()}


def plan_read(available: Sequence[ShardSource], k: int) -> ReadPlan:
    """Chooses k distinct shards out of `available`; raises NotEnoughShards if it has fewer."""
    distinct = _distinct(available)
    if len(distinct) < k:
        raise NotEnoughShards(have=len(distinct), need=k)
    return ReadPlan(chosen=_choose(distinct, k, k, lambda _node: 0), k=k)


def replace(
    plan: ReadPlan, failed: Collection[int], available: Sequence[ShardSource]
) -> tuple[ShardSource, ...]:
    """Other sources to ask, one for each chosen shard in `failed` (indexes, failed or late).

    Never one of the plan's or of `failed`, so that `available` may be the list that was planned
    from. Fewer than failed if that is all there is: fatal if the shards are lost, not if they are
    merely late, which is for the caller to tell.
    """
    lost = [source for source in plan.chosen if source.shard in failed]
    asked = {source.shard for source in plan.chosen}
    spare = [s for s in _distinct(available) if s.shard not in asked and s.shard not in failed]
    failing = {source.node for source in available if source.shard in failed}
    failing |= {source.node for source in lost}
    answering = {source.node for source in plan.chosen} - failing

    def standing(node: Hashable) -> int:
        return 2 if node in failing else 0 if node in answering else 1

    return _choose(spare, len(lost), plan.k, standing)


def _distinct(sources: Iterable[ShardSource]) -> list[ShardSource]:
    """One source for each shard, the best, in the order of shards."""
    best: dict[int, ShardSource] = {}
    for source in sources:
        rival = best.get(source.shard)
        if rival is None or (not source.local, source.cost) < (not rival.local, rival.cost):
            best[source.shard] = source
    return [best[shard] for shard in sorted(best)]


def _choose(
    sources: list[ShardSource], count: int, k: int, standing: Callable[[Hashable], int]
) -> tuple[ShardSource, ...]:
    """Up to `count` sources, best first. `standing` ranks nodes before anything but slowness."""
    if not sources:
        return ()
    limit = SLOW_FACTOR * sorted(source.cost for source in sources)[(len(sources) - 1) // 2]
    groups: dict[tuple[bool, int, bool], dict[Hashable, list[ShardSource]]] = {}
    for source in sources:
        # Local sources are one group however their node stands: a failed drive is not its node.
        rank = -1 if source.local else standing(source.node)
        group = groups.setdefault((source.cost > limit, rank, source.local), {})
        group.setdefault(source.node, []).append(source)
    chosen: list[ShardSource] = []
    for group_key in sorted(groups):
        nodes = groups[group_key]
        while nodes and len(chosen) < count:
            wanted = count - len(chosen)
            offers = {node: _offer(held, wanted, k) for node, held in nodes.items()}
            best = min(offers, key=lambda node: _node_rank(offers[node], k))
            chosen += offers[best]
            del nodes[best]
    return tuple(chosen)


def _offer(held: list[ShardSource], wanted: int, k: int) -> list[ShardSource]:
    """The best `wanted` of what one node holds: data shards first, then the cheaper."""
    return sorted(held, key=lambda s: (s.shard >= k, s.cost, s.shard))[:wanted]


def _node_rank(offer: list[ShardSource], k: int) -> tuple[int, int, float, int]:
    data = sum(source.shard < k for source in offer)
    cost = sum(source.cost for source in offer)
    return (-len(offer), -data, cost, min(source.shard for source in offer))
