from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from locks.messages import LockMode
from tests.property.locks_cluster import Cluster, Faults

_SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=40, deadline=None)
@given(seed=_SEEDS, servers=st.integers(1, 5), learn=st.booleans())
def test_never_two_holders_and_everybody_gets_a_turn_when_faults_end(
    seed: int, servers: int, learn: bool
) -> None:
    cluster = Cluster(seed, servers=servers, clients=6, faults=Faults(learn=learn))
    cluster.run(60.0)
    cluster.calm()
    cluster.run(75.0)
    wins = [client.wins for client in cluster.clients]
    cluster.run(200.0)
    assert all(client.wins > before for client, before in zip(cluster.clients, wins, strict=True))
    for client in cluster.clients:
        client.done = True
    cluster.run(240.0)
    for server in cluster.servers.values():
        assert server.front.table.size == 0
        assert not server.front._answers


@settings(max_examples=15, deadline=None)
@given(seed=_SEEDS)
def test_without_faults_no_grant_outlives_its_lock(seed: int) -> None:
    """All that is held at servers is wanted by somebody: late grants of lost rounds are given back."""
    cluster = Cluster(seed, servers=4, clients=8, faults=Faults())
    cluster.calm()
    cluster.run(20.0)
    for client in cluster.clients:
        client.done = True
        client.start()
    cluster.run(20.0 + 20.0 + 1.0)  # the longest hold; far less than a lease after it
    assert all(client.keeper is None for client in cluster.clients)
    assert sum(client.wins for client in cluster.clients) > 0
    for server in cluster.servers.values():
        assert server.front.table.size == 0


@pytest.mark.parametrize("fault", ["no recovery", "no settling", "read quorum too small"])
def test_the_checker_sees_a_broken_rule(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each rule is switched off once; some seed must then show two holders."""
    settle_s = 2.0
    if fault == "no recovery":
        monkeypatch.setattr("locks.recovery.Recovery.over", lambda self, now_s: True)
    elif fault == "no settling":
        settle_s = 0.0
    else:
        monkeypatch.setattr(
            "locks.round.quorum_of",
            lambda mode, servers: servers // 2 + 1 if mode is LockMode.WRITE else 1,
        )
    faults = Faults(restart_every_s=4.0, late=0.4)
    for seed in range(400):
        cluster = Cluster(seed, servers=3, clients=6, faults=faults, settle_s=settle_s)
        try:
            cluster.run(60.0)
        except AssertionError as error:
            assert "both hold" in str(error)
            return
    pytest.fail(f"{fault}: not seen")
