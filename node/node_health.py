"""The snapshot that the health pages of a node are judged from: membership and own drives, no peer asked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from node.observe.health import SetShape, Snapshot

if TYPE_CHECKING:
    from node.compose import Node


def snapshot(node: Node) -> Snapshot:
    """What this node knows now (node.observe.health says what it means)."""
    me, names = node.settings.node, node.settings.node_names
    # Heartbeats have a lane of their own: a peer that beats but is not linked yet answers no read.
    linked = (peer for peer in node.membership.alive() if node.peers.linked(peer))
    alive = frozenset((me, *linked))
    engine = node.engine
    differences = node.acquaintance.differences()
    hindrance = ""
    if differences:
        peer, why = next(iter(differences.items()))
        hindrance = f"{peer} disagrees with this node: {'; '.join(why)}"
    if engine is None or not engine.started:
        awaited = node.forming.waiting_for
        hindrance = f"waiting for the cluster: {awaited[0]}" if awaited else "starting"
        return Snapshot(me=me, nodes=names, alive=alive, sets=(), hindrance=hindrance)
    cluster = engine.cluster
    shapes, offline = [], {}
    for view in cluster.views:
        online = cluster.online(view)
        counts = {member.node: len(member.slots) for member in view.members}
        shapes.append(SetShape(index=view.index, k=view.geometry.k, drives=counts))
        for member in view.members:
            missing = sum(slot not in online for slot in member.slots)
            if missing and member.node in alive:
                offline[member.node, view.index] = missing
    return Snapshot(
        me=me,
        nodes=names,
        alive=alive,
        sets=tuple(shapes),
        offline=offline,
        lock_servers=engine.lock_servers(),
        identity_ready=engine.identity.ready,
        hindrance=hindrance,
    )
