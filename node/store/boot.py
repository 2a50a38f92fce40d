"""What this node's drives are at start-up: ours, empty, foreign, or silent. Pure; asks nothing itself.

A drive that is foreign or in the wrong slot is never written to. One bad drive never keeps the node
from starting; a contradiction between the drives and the configuration does (FormatError).
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from node.config import Settings
from node.errors import DriveFailed, HoldfastError
from node.protocol.verbs import DriveFault
from node.store.format import Format, FormatError, State, decode_format

Answer = bytes | HoldfastError
"""format.json of a drive, b"" when it is empty, or why there is none."""


class Kind(enum.StrEnum):
    OURS = "ours"
    EMPTY = "empty"
    FOREIGN = "foreign"  # another cluster's, another slot's, or not Holdfast's at all
    SILENT = "silent"  # failed or did not answer in time


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One drive. `reason` says why it is not ours and what to do."""

    node: str
    drive: int
    path: str
    kind: Kind
    reason: str = ""
    format: Format | None = None

    def __str__(self) -> str:
        return f"{self.node}{self.path}: {self.reason or self.kind}"


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Some drives judged together. `cluster`: what ours among them say, merged; None: none is ours."""

    findings: tuple[Finding, ...]
    cluster: Format | None

    def of_kind(self, kind: Kind) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.kind is kind)

    @property
    def formed(self) -> bool:
        return self.cluster is not None and self.cluster.state is State.FORMED


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a drive is listed: its slot and its path."""

    node: str
    drive: int
    path: str


def places(settings: Settings) -> tuple[Place, ...]:
    """Every listed drive, node by node."""
    return tuple(
        Place(node=node, drive=drive, path=path)
        for node in settings.node_names
        for drive, path in enumerate(v.path for v in settings.volumes if v.node == node)
    )


def judge(
    settings: Settings,
    listed: Sequence[Place],
    answers: Sequence[Answer],
    known: Format | None = None,
) -> View:
    """Judges drives by what they answered. `known`: what the cluster is, where that is known already.

    FormatError when drives that belong to this cluster contradict the configuration.
    """
    first = [_first_look(place, answer) for place, answer in zip(listed, answers, strict=True)]
    cluster_id = known.cluster_id if known else _majority(first)
    cluster = known
    for finding in first:
        if finding.format is None or finding.format.cluster_id != cluster_id:
            continue
        if cluster is None:
            check_against(settings, finding.format)
            cluster = finding.format
        elif cluster.same_cluster_shape(finding.format):
            cluster = cluster.merged(finding.format)
    findings = tuple(_second_look(finding, cluster, cluster_id) for finding in first)
    return View(findings=findings, cluster=cluster)


def check_against(settings: Settings, cluster: Format) -> None:
    """FormatError that names every difference between the configuration and the stored cluster."""
    problems = []
    stored, listed = cluster.pool.nodes, settings.node_names
    if stored != listed:
        problems.append(_nodes_differ(stored, listed))
    elif (cluster.pool.drives_per_node,) * len(listed) != settings.drives_per_node:
        problems.append(
            f"HOLDFAST_VOLUMES gives a node {settings.drives_per_node[0]} drives and the cluster was formed "
            f"with {cluster.pool.drives_per_node}: list the drives it was formed with"
        )
    if settings.parity is not None and settings.parity != cluster.parity:
        problems.append(
            f"HOLDFAST_PARITY={settings.parity} and the cluster was formed with parity {cluster.parity}: "
            f"unset it or set it to {cluster.parity}"
        )
    if settings.durability is not None and settings.durability != cluster.durability:
        problems.append(
            f"HOLDFAST_DURABILITY={settings.durability} and the cluster was formed with "
            f"{cluster.durability}: unset it or set it to {cluster.durability}"
        )
    if problems:
        raise FormatError("; ".join(problems))


def _nodes_differ(stored: tuple[str, ...], listed: tuple[str, ...]) -> str:
    added = [node for node in listed if node not in stored]
    missing = [node for node in stored if node not in listed]
    parts = []
    if missing:
        parts.append(f"it lacks {', '.join(missing)}")
    if added:
        parts.append(f"it adds {', '.join(added)}")
    if not parts:
        parts.append(f"the order was {', '.join(stored)}")
    return (
        f"HOLDFAST_VOLUMES does not list the nodes the cluster was formed with: {'; '.join(parts)}. "
        "Restore the list, with the same names in the same order"
    )


def _first_look(place: Place, answer: Answer) -> Finding:
    def found(kind: Kind, reason: str = "", value: Format | None = None) -> Finding:
        return Finding(
            node=place.node,
            drive=place.drive,
            path=place.path,
            kind=kind,
            reason=reason,
            format=value,
        )

    if isinstance(answer, DriveFailed) and answer.fault == DriveFault.FOREIGN:
        return found(
            Kind.FOREIGN,
            f"holds something that is not Holdfast's ({answer.detail}): use an empty directory",
        )
    if isinstance(answer, DriveFailed) and answer.fault == DriveFault.NOT_FOUND:
        return found(
            Kind.SILENT, "there is no such directory: mount the drive there, or make the directory"
        )
    if isinstance(answer, HoldfastError):
        return found(Kind.SILENT, f"does not answer ({answer or type(answer).__name__})")
    if not answer:
        return found(Kind.EMPTY, "is empty")
    try:
        return found(Kind.OURS, "", decode_format(answer))
    except FormatError as error:
        return found(Kind.FOREIGN, str(error))


def _majority(findings: Sequence[Finding]) -> str | None:
    """The cluster most drives belong to. Equally many of two: nobody can say which one is meant."""
    counts = Counter(f.format.cluster_id for f in findings if f.format is not None).most_common(2)
    if len(counts) == 2 and counts[0][1] == counts[1][1]:
        raise FormatError(
            f"as many drives belong to cluster {counts[0][0]} as to cluster {counts[1][0]}: "
            "take the drives of the wrong one out of HOLDFAST_VOLUMES' directories"
        )
    return counts[0][0] if counts else None


def _second_look(finding: Finding, cluster: Format | None, cluster_id: str | None) -> Finding:
    value = finding.format
    if value is None or cluster is None:
        return finding
    if value.cluster_id != cluster_id:
        return _foreign(
            finding,
            f"belongs to cluster {value.cluster_id}, not to {cluster_id}: put the right drive here",
        )
    if not cluster.same_cluster_shape(value):
        return _foreign(finding, "was formatted for other nodes: put the right drive here")
    if (value.node, value.drive) != (finding.node, finding.drive):
        return _foreign(
            finding,
            f"is drive {value.drive + 1} of {value.node} and stands in the place of drive "
            f"{finding.drive + 1} of {finding.node}: mount it in its own place",
        )
    if cluster.drive_at(value.node, value.drive) != value.drive_id:
        return _foreign(
            finding,
            "was replaced by another drive before: move its content away to use it as a new drive",
        )
    return finding


def _foreign(finding: Finding, reason: str) -> Finding:
    return Finding(
        node=finding.node, drive=finding.drive, path=finding.path, kind=Kind.FOREIGN, reason=reason
    )
