"""No request, however wrong, gets a 500, a trace or silence: every row of the operation table, every parameter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from node.s3.headers import CHECKSUM_BYTES
from node.s3.shapes import Operation
from tests.fakes.memory_store import checksum
from tests.fakes.s3_abuse import BUCKET, Asker, Case, checksum_cases, ids, odd_paths, rows
from tests.fakes.s3_world import ROOT, ROOT_SECRET, World, listening


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    with listening(World()) as found:
        yield found


@pytest.fixture
def asker(world: World) -> Iterator[Asker]:
    found = Asker("127.0.0.1", world.port, ROOT, ROOT_SECRET)
    world.logged.clear()
    yield found
    unforeseen = [line for line in world.logged if line["event"] == "unexpected"]
    assert not unforeseen, unforeseen[:3]


@pytest.mark.parametrize("row", rows(), ids=ids)
def test_an_operation_asked_wrongly_in_every_way(row: Operation, asker: Asker) -> None:
    asker.abuse(row)
    assert not asker.wrong, "\n".join(asker.wrong[:20])
    assert asker.asked > 20


def test_odd_paths_and_methods(asker: Asker) -> None:
    asker.prepare()
    for case in odd_paths():
        asker.judge(case)
    assert not asker.wrong, "\n".join(asker.wrong[:20])


@pytest.mark.parametrize("algorithm", CHECKSUM_BYTES)
def test_every_checksum_in_headers_and_trailers(algorithm: str, asker: Asker) -> None:
    asker.prepare()
    right = checksum(algorithm, b"content")
    count = 0
    for number, (case, fine) in enumerate(
        checksum_cases(algorithm, right, f"/{BUCKET}/{algorithm}")
    ):
        path = f"/{BUCKET}/{algorithm}{number}"
        answer = asker.judge(dataclasses.replace(case, path=path))
        assert answer is not None and (answer.status == 200) is fine, (case.label, answer)
        there = asker.judge(Case(label="is it there", method="HEAD", path=path))
        assert there is not None and (there.status == 200) is fine, case.label
        count += fine
    assert count == 2
    assert not asker.wrong, "\n".join(asker.wrong[:20])
