"""What the health pages of a node answer: from membership and its own drives, never by asking a peer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from node.store.drive_gate import DriveState

if TYPE_CHECKING:
    from node.compose import Node

Answer = tuple[bool, dict[str, Any]]


class NodeHealth:
    """node.s3.ports.Health."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def live(self) -> Answer:
        return True, {"node": self._node.settings.node}

    def ready(self) -> Answer:
        """Reads can be served here."""
        details = self._details()
        return bool(details["readable"]) and not details["mismatch"], details

    def ready_write(self) -> Answer:
        """A write quorum can be reached from here."""
        details = self._details()
        return bool(details["writable"]) and not details["mismatch"], details

    def cluster(self, maintenance: bool) -> Answer:
        """Every set has its write quorum; `maintenance`: still without this node."""
        details = self._details()
        if not maintenance:
            return bool(details["writable"]), details
        sets = details["sets"]
        spared = all(s["online"] - s["mine"] >= s["write_quorum"] for s in sets)
        nodes = details["nodes_alive"] - 1 >= details["nodes"] // 2 + 1
        return bool(sets) and spared and nodes, details

    def cluster_read(self) -> Answer:
        details = self._details()
        return bool(details["readable"]), details

    def _details(self) -> dict[str, Any]:
        node = self._node
        engine = node.engine
        names = node.settings.node_names
        alive = 1 + len(node.membership.alive())
        details: dict[str, Any] = {
            "node": node.settings.node,
            "nodes": len(names),
            "nodes_alive": alive,
            "drives_online": sum(d.state is DriveState.ONLINE for d in node.gate.local_drives()),
            "mismatch": {peer: list(why) for peer, why in node.acquaintance.differences().items()},
            "waiting_for": list(node.forming.waiting_for),
            "sets": [],
            "readable": False,
            "writable": False,
        }
        if engine is None or not engine.started:
            return details
        cluster = engine.cluster
        for view in cluster.views:
            online = cluster.online(view)
            details["sets"].append(
                {
                    "set": view.index,
                    "online": len(online),
                    "mine": len(view.by_node[cluster.me].slots)
                    if cluster.me in view.by_node
                    else 0,
                    "drives": view.n,
                    "read_quorum": max(view.geometry.k, view.read_quorum),
                    "write_quorum": view.geometry.write_quorum,
                }
            )
        details["readable"] = all(s["online"] >= s["read_quorum"] for s in details["sets"])
        details["writable"] = (
            all(s["online"] >= s["write_quorum"] for s in details["sets"])
            and alive >= len(names) // 2 + 1
            and engine.locks_serve()
        )
        return details
