from __future__ import annotations

import pytest

from erasure.errors import ErasureError, GeometryError
from erasure.geometry import Geometry, Tolerance, default_parity, layout, tolerance


@pytest.mark.parametrize(
    ("k", "n", "write", "read"),
    [
        (8, 16, 9, 8),
        (12, 16, 12, 8),
        (2, 4, 3, 2),
        (1, 1, 1, 1),
        (1, 2, 2, 1),
        (2, 3, 2, 2),
        (4, 4, 4, 2),
    ],
)
def test_quorums(k: int, n: int, write: int, read: int) -> None:
    geometry = Geometry(k=k, n=n)
    assert (geometry.m, geometry.write_quorum, geometry.read_quorum) == (n - k, write, read)


def test_a_reader_of_any_parity_meets_a_writer_of_any_other() -> None:
    for n in range(1, 17):
        for k in range(n - n // 2, n + 1):
            geometry = Geometry(k=k, n=n)
            assert geometry.write_quorum + geometry.read_quorum > n
            assert 2 * geometry.write_quorum > n
            assert geometry.write_quorum >= k


@pytest.mark.parametrize(("k", "n"), [(0, 4), (5, 4), (1, 3), (7, 16), (9, 17), (0, 0), (-1, 2)])
def test_refused_geometries(k: int, n: int) -> None:
    with pytest.raises(GeometryError) as caught:
        Geometry(k=k, n=n)
    assert isinstance(caught.value, ErasureError)


@pytest.mark.parametrize(
    ("nodes", "drives", "parity"),
    [
        (4, 4, 8),
        (8, 2, 4),
        (1, 4, 2),
        (1, 1, 0),
        (3, 4, 6),
        (2, 1, 1),
        (4, 1, 2),
        (16, 1, 2),
        (3, 1, 1),
    ],
)
def test_default_parity(nodes: int, drives: int, parity: int) -> None:
    assert default_parity(nodes, drives) == parity


def test_default_parity_keeps_its_promise_from_four_nodes_on() -> None:
    for nodes in range(4, 17):
        for drives in range(1, 16 // nodes + 1):
            figures = tolerance(nodes, drives)
            assert figures.read_nodes_dark >= 2
            assert figures.write_nodes_dark >= 1
            spare = figures.write_drives_dark - drives
            # Of four drives a majority is three: four single drives can lose one node, no more.
            assert spare >= (1 if nodes * drives > 4 else 0), "one node and more drives dark"


def test_four_nodes_of_four_are_one_set() -> None:
    assert layout([4] * 4) == [[(node, drive) for node in range(4) for drive in range(4)]]


def test_one_node_of_four_is_one_set() -> None:
    assert layout([4]) == [[(0, drive) for drive in range(4)]]


def test_eight_nodes_of_four_are_two_sets_interleaved() -> None:
    assert layout([4] * 8) == [
        [(node, drive) for node in range(8) for drive in pair] for pair in ((0, 1), (2, 3))
    ]


@pytest.mark.parametrize(
    ("nodes", "drives", "sets", "set_drives"),
    [(3, 8, 2, 12), (5, 4, 2, 10), (1, 20, 2, 10), (32, 4, 8, 16), (18, 2, 4, 9), (1, 1, 1, 1)],
)
def test_set_sizes(nodes: int, drives: int, sets: int, set_drives: int) -> None:
    shape = layout([drives] * nodes)
    assert [len(drives_of_set) for drives_of_set in shape] == [set_drives] * sets


def test_every_drive_is_in_one_set_and_nodes_share_evenly() -> None:
    for nodes in (*range(1, 17), 18, 20, 24, 32, 48):
        for drives in range(1, 13):
            shape = layout([drives] * nodes)
            slots = [slot for drives_of_set in shape for slot in drives_of_set]
            assert sorted(slots) == [(i, j) for i in range(nodes) for j in range(drives)]
            for drives_of_set in shape:
                counts = [[node for node, _ in drives_of_set].count(i) for i in range(nodes)]
                assert len(set(counts) - {0}) == 1
                assert drives_of_set == sorted(drives_of_set)
                assert len(drives_of_set) <= 16


@pytest.mark.parametrize(
    ("drives", "advice"),
    [
        ([4, 4, 3], r"nodes \[2\] up to 4, or list only 3"),
        ([], "at least one node"),
        ([4, 0], "node 1 has no drives"),
        ([17], "use 16 or 18 drives"),
        ([2] * 17, "such as 20"),
    ],
)
def test_uneven_clusters_are_refused_with_advice(drives: list[int], advice: str) -> None:
    with pytest.raises(GeometryError, match=advice):
        layout(drives)


def figures(t: Tolerance) -> tuple[int, int, int, int]:
    return (t.read_nodes_dark, t.read_spare_drives, t.write_nodes_dark, t.write_spare_drives)


@pytest.mark.parametrize(
    ("nodes", "drives", "parity", "fraction", "expected"),
    [
        (4, 4, None, 0.5, (2, 0, 1, 3)),
        (4, 4, 4, 0.75, (1, 0, 1, 0)),
        (8, 2, None, 0.75, (2, 0, 2, 0)),
        (1, 4, None, 0.5, (0, 2, 0, 1)),
        (1, 1, None, 1.0, (0, 0, 0, 0)),
        (2, 4, None, 0.5, (1, 0, 0, 3)),
        (3, 1, None, 2 / 3, (1, 0, 1, 0)),
    ],
)
def test_tolerance(
    nodes: int,
    drives: int,
    parity: int | None,
    fraction: float,
    expected: tuple[int, int, int, int],
) -> None:
    result = tolerance(nodes, drives, parity)
    assert result.usable_fraction == fraction
    assert figures(result) == expected
    assert result.usable_bytes(16 << 40) == int((16 << 40) * fraction)


def test_tolerance_refuses_too_much_parity() -> None:
    with pytest.raises(GeometryError, match="at most 8"):
        tolerance(4, 4, 9)
