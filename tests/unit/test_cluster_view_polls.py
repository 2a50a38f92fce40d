"""How often peers are asked for what the console shows: seldom, unless somebody looks or something is wrong."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from node.cluster_view import ClusterView
from node.limits import PEER_FACTS_QUIET_S, PEER_FACTS_S
from node.repair_facts import NodeFacts

PEERS = ("b:1", "c:1")


class Node:
    """As much of a node as a view asks for; `now` is its clock."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.asked = 0
        self.facts = NodeFacts(())
        self.engine = None
        self.health = None
        self.settings = SimpleNamespace(node="a:1")
        self.membership = SimpleNamespace(alive=lambda: PEERS)
        self.gate = SimpleNamespace(local_drives=lambda: ())
        self.clock = SimpleNamespace(monotonic=lambda: self.now)
        self.peers = SimpleNamespace(call=self._call)

    def _call(self, *_: Any, **__: Any) -> asyncio.Future[bytes]:
        self.asked += 1
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        answer.set_result(msgspec.msgpack.encode(self.facts))
        return answer


async def rounds(view: ClusterView, node: Node, seconds: float) -> int:
    """-> how many rounds of questions went out in so long."""
    before = node.asked
    for _ in range(round(seconds / PEER_FACTS_S)):
        node.now += PEER_FACTS_S
        await view.poll(node.now + 2)
    return (node.asked - before) // len(PEERS)


@pytest.fixture
def node() -> Node:
    return Node()


async def test_a_quiet_cluster_is_asked_seldom(node: Node) -> None:
    view = ClusterView(node)  # type: ignore[arg-type]
    await view.poll(node.now + 2)
    assert node.asked == len(PEERS), "the first round comes at once"
    assert await rounds(view, node, 10 * PEER_FACTS_QUIET_S) == 10


async def test_who_looks_sees_what_is_a_second_old(node: Node) -> None:
    view = ClusterView(node)  # type: ignore[arg-type]
    await rounds(view, node, 20)
    view.repair()
    assert await rounds(view, node, PEER_FACTS_QUIET_S - PEER_FACTS_S) == 4
    view.repair()
    assert await rounds(view, node, PEER_FACTS_QUIET_S - PEER_FACTS_S) == 4


@pytest.mark.parametrize("wrong", [{"queue": 1}, {"undecided": 1}])
async def test_repair_is_watched_closely(node: Node, wrong: dict[str, int]) -> None:
    view = ClusterView(node)  # type: ignore[arg-type]
    node.facts = NodeFacts((), **wrong)
    assert await rounds(view, node, 20) == 20
    node.facts = NodeFacts(())
    assert await rounds(view, node, 20) <= 5


async def test_a_living_peer_that_was_never_heard_is_asked_again(node: Node) -> None:
    view = ClusterView(node)  # type: ignore[arg-type]
    node.membership.alive = lambda: PEERS[:1]
    await rounds(view, node, 5)
    node.membership.alive = lambda: PEERS
    before = node.asked
    node.now += PEER_FACTS_S
    await view.poll(node.now + 2)
    assert node.asked - before == len(PEERS)
