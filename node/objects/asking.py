"""Several verbs to each of several slots of a set, in one message to each node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from node.objects.gathering import Gathering
from node.objects.sets import Cluster, SetView, replies
from node.protocol import verbs


async def ask_slots(
    cluster: Cluster,
    view: SetView,
    wanted: Mapping[int, Sequence[verbs.Verb]],
    *,
    deadline: float,
) -> dict[int, list[verbs.Reply]]:
    """The answers that came, in the order of each slot's verbs. A slot whose node did not answer is left out."""
    gathering: Gathering[str, tuple[bytes, ...] | bytes] = Gathering()
    asked: dict[str, list[int]] = {}
    for member in cluster.reachable(view):
        slots = [slot for slot in member.slots for _ in wanted.get(slot, ())]
        if slots:
            asked[member.node] = slots
            items = tuple(
                (view.drive_of[slot], verbs.encode(verb))
                for slot in member.slots
                for verb in wanted.get(slot, ())
            )
            gathering.add(member.node, cluster.verbs_at(member, items, deadline=deadline))
    await gathering.until(lambda: False, deadline - cluster.clock.monotonic())
    found: dict[int, list[verbs.Reply]] = {}
    for node, answer in gathering.results.items():
        for slot, data in zip(asked[node], replies(answer), strict=False):
            found.setdefault(slot, []).append(verbs.decode_reply(data))
    return found
