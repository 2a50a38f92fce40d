"""Wrong queries, documents and keys against the real store: what a store in memory may forgive, drives may not."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from tests.fakes.s3_abuse import Asker, odd_paths, query_cases, rows

from .dev_world import CREDENTIALS, DevWorld

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def world() -> Iterator[DevWorld]:
    world = DevWorld(nodes=1, drives=4)
    try:
        world.up()
        yield world
    finally:
        world.down()


def test_nothing_a_client_asks_is_an_error_of_the_server(world: DevWorld) -> None:
    address = urlsplit(world.s3_url(1))
    assert address.hostname is not None and address.port is not None
    asker = Asker(address.hostname, address.port, CREDENTIALS.user, CREDENTIALS.password)
    for row in rows():
        if not row.implemented:
            continue
        upload = asker.prepare()
        for case in query_cases(row, upload):
            answer = asker.judge(case)
            if row.method == "DELETE" and answer is not None and answer.status < 300:
                upload = asker.prepare()
    asker.prepare()
    for case in odd_paths():
        asker.judge(case)
    assert not asker.wrong, "\n".join(asker.wrong[:20])
    assert asker.asked > 2000
    assert "Traceback" not in world.log(1) and '"unexpected"' not in world.log(1)
