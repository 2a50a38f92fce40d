"""Identities on several nodes: who gets in, what is refused and how, and what a fault changes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import pytest

from iam.errors import AccessKeyExists, AuthError, LimitExceeded, NoSuchAccessKey, UserExists
from iam.model import KeyStatus
from iam.sigv4 import RequestParts
from node import limits
from node.errors import DeadlineExceeded, OutcomeUnknown, QuorumLost, Unavailable
from node.identity.replica import IdentityUnreadable
from node.identity.service import Caller
from node.identity.vault import DOCUMENT, Keks
from tests.unit.identity_world import KEKS, ROOT_PASSWORD, ROOT_USER, World
from tests.unit.locks_world import run_virtual

ARN = "arn:aws:s3:::bucket/key"
READ_ONLY = json.dumps(
    {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "s3:GetObject", "Resource": ARN}],
    }
)


def _in_world(story: Callable[[World], Awaitable[None]], nodes: int = 4) -> None:
    async def main() -> None:
        await story(World(nodes))

    run_virtual(main())


async def _caller(world: World, key: tuple[str, str], number: int = 1) -> Caller:
    parts = world.request(*key)
    found = await world.identity(number).authenticate(parts, deadline=world.by(5))
    return found.caller


async def _code(attempt: Awaitable[object]) -> str:
    with pytest.raises(AuthError) as caught:
        await attempt
    return caught.value.code


# ---- the root -------------------------------------------------------------------------------------
def test_root_needs_nobody() -> None:
    async def story(world: World) -> None:
        world.store.reachable = False
        caller = await _caller(world, (ROOT_USER, ROOT_PASSWORD))
        assert caller.is_root and caller.name == ROOT_USER and not caller.anonymous
        world.identity().authorize(caller, "admin:Anything", "*", {})
        wrong = world.request(ROOT_USER, "another-password")
        attempt = world.identity().authenticate(wrong, deadline=world.by(5))
        assert await _code(attempt) == "SignatureDoesNotMatch"
        assert world.store.reads == 0

    _in_world(story)


def test_log_in_by_secret() -> None:
    async def story(world: World) -> None:
        identity = world.identity()
        caller = await identity.log_in(ROOT_USER, ROOT_PASSWORD, deadline=world.by(1))
        assert caller.is_root
        wrong = identity.log_in(ROOT_USER, "röot", deadline=world.by(1))
        assert await _code(wrong) == "SignatureDoesNotMatch"
        unknown = identity.log_in("nobody", ROOT_PASSWORD, deadline=world.by(1))
        assert await _code(unknown) == "InvalidAccessKeyId"

    _in_world(story)


# ---- users ------------------------------------------------------------------------------------------
def test_a_user_made_on_one_node_works_on_all() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        for number in (1, 2, 3, 4):
            caller = await _caller(world, key, number)
            assert (caller.name, caller.is_root) == ("ann", False)

    _in_world(story)


def test_the_stored_directory_holds_no_secret_in_the_clear() -> None:
    async def story(world: World) -> None:
        access_key, secret = await world.new_key("ann")
        stored = world.store.documents[DOCUMENT].data
        for text in (access_key, secret, "ann", ROOT_PASSWORD):
            assert text.encode() not in stored
        assert secret not in repr(world.node(1).replica.known)

    _in_world(story)


def test_unknown_wrong_and_denied_are_told_apart() -> None:
    async def story(world: World) -> None:
        access_key, secret = await world.new_key("ann")
        identity = world.identity(2)

        def ask(parts: RequestParts) -> Awaitable[object]:
            return identity.authenticate(parts, deadline=world.by(5))

        assert await _code(ask(world.request("HFUNKNOWN", secret))) == "InvalidAccessKeyId"
        assert await _code(ask(world.request(access_key, secret[::-1]))) == "SignatureDoesNotMatch"
        caller = await _caller(world, (access_key, secret), 2)
        with pytest.raises(AuthError, match="AccessDenied"):
            identity.authorize(caller, "s3:GetObject", ARN, {})
        nobody = await identity.authenticate(
            RequestParts("GET", b"/bucket/key", b"", [(b"host", b"h")]), deadline=world.by(1)
        )
        assert nobody.caller.anonymous and nobody.verification is None
        with pytest.raises(AuthError, match="AccessDenied"):
            identity.authorize(nobody.caller, "s3:GetObject", ARN, {})

    _in_world(story)


def test_a_session_token_is_refused_rather_than_ignored() -> None:
    async def story(world: World) -> None:
        parts = world.request(ROOT_USER, ROOT_PASSWORD)
        headers = [*parts.headers, (b"x-amz-security-token", b"t")]
        attempt = world.identity().authenticate(
            RequestParts(parts.method, parts.raw_path, parts.raw_query, headers),
            deadline=world.by(1),
        )
        assert await _code(attempt) == "InvalidToken"

    _in_world(story)


def test_policies_grant_on_every_node_and_are_taken_back() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        await world.identity(1).put_policy("reads", READ_ONLY, deadline=world.by(5))
        await world.identity(3).attach("reads", "ann", deadline=world.by(5))
        caller = await _caller(world, key, 2)
        world.identity(2).authorize(caller, "s3:GetObject", ARN, {})
        assert not world.identity(2).allows(caller, "s3:PutObject", ARN, {})
        await world.identity(4).detach("reads", "ann", deadline=world.by(5))
        await _caller(world, key, 2)
        assert not world.identity(2).allows(caller, "s3:GetObject", ARN, {})

    _in_world(story)


def test_a_key_switched_off_or_deleted_is_unknown_everywhere() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        other = await world.identity(1).create_access_key("ann", deadline=world.by(5))
        await world.identity(1).set_access_key_status(
            "ann", key[0], KeyStatus.INACTIVE, deadline=world.by(5)
        )
        await world.identity(1).delete_access_key("ann", other.id, deadline=world.by(5))
        for each in (key, (other.id, other.secret)):
            assert await _code(_caller(world, each, 3)) == "InvalidAccessKeyId"
        await world.identity(1).set_access_key_status(
            "ann", key[0], KeyStatus.ACTIVE, deadline=world.by(5)
        )
        assert (await _caller(world, key, 3)).name == "ann"
        await world.identity(1).set_user_enabled("ann", False, deadline=world.by(5))
        assert await _code(_caller(world, key, 3)) == "InvalidAccessKeyId"

    _in_world(story)


def test_what_the_directory_refuses_is_passed_on() -> None:
    async def story(world: World) -> None:
        identity = world.identity()
        await identity.create_user("ann", deadline=world.by(5))
        with pytest.raises(UserExists):
            await identity.create_user("ann", deadline=world.by(5))
        with pytest.raises(AccessKeyExists):
            await identity.create_access_key(
                "ann", access_key=ROOT_USER, secret="12345678", deadline=world.by(5)
            )
        await identity.create_user("bob", deadline=world.by(5))
        key = await identity.create_access_key("ann", deadline=world.by(5))
        with pytest.raises(NoSuchAccessKey):
            await identity.delete_access_key("bob", key.id, deadline=world.by(5))

    _in_world(story)


def test_the_document_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "IDENTITY_DOCUMENT_BYTES", 300)

    async def story(world: World) -> None:
        with pytest.raises(LimitExceeded):
            for number in range(20):
                await world.identity().create_user(f"user{number}", deadline=world.by(5))

    _in_world(story)


# ---- changes that meet -----------------------------------------------------------------------------
def test_changes_at_the_same_time_are_all_kept() -> None:
    async def story(world: World) -> None:
        async def add(number: int, name: str) -> None:
            await world.identity(number).create_user(name, deadline=world.by(9))

        names = [f"user{number}" for number in range(8)]
        await asyncio.gather(*(add(1 + i % 2, name) for i, name in enumerate(names)))
        directory = await world.identity(3).directory(deadline=world.by(5))
        assert sorted(user.name for user in directory.users) == names

    _in_world(story)


def test_a_directory_that_never_stands_still_is_unavailable() -> None:
    async def story(world: World) -> None:
        await world.identity(1).create_user("ann", deadline=world.by(5))
        store = world.store
        found = store.documents[DOCUMENT]

        def overtake() -> None:
            version = store.documents[DOCUMENT].version
            store.documents[DOCUMENT] = type(found)(found.data, version + 1, 0)

        store.before_write = overtake
        with pytest.raises(Unavailable):
            await world.identity(1).create_user("bob", deadline=world.by(9))

    _in_world(story)


def test_a_change_is_acknowledged_by_a_majority_of_nodes() -> None:
    async def story(world: World) -> None:
        world.deaf = {world.names[3]}
        await world.identity(1).create_user("ann", deadline=world.by(5))
        assert world.node(3).replica.known is not None and world.node(4).replica.known is None
        world.deaf = set(world.names[2:])
        with pytest.raises(OutcomeUnknown, match="2 nodes"):
            await world.identity(1).create_user("bob", deadline=world.by(5))

    _in_world(story)


def test_a_single_node_needs_no_others() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        assert (await _caller(world, key)).name == "ann"

    _in_world(story, nodes=1)


# ---- nodes that lag --------------------------------------------------------------------------------
def test_a_node_that_missed_a_change_reads_before_it_authorises() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        await _caller(world, key, 4)
        world.deaf = {world.names[3]}
        await world.identity(1).set_user_enabled("ann", False, deadline=world.by(5))
        assert await _code(_caller(world, key, 4)) == "InvalidAccessKeyId"

    _in_world(story)


def test_a_lagging_node_that_cannot_read_is_unavailable_and_never_denies() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        await _caller(world, key, 4)
        world.deaf = {world.names[3]}
        await world.identity(1).create_user("bob", deadline=world.by(5))
        world.store.reachable = False
        with pytest.raises(QuorumLost):
            await _caller(world, key, 4)
        assert world.identity(4).lag_s >= 0
        await asyncio.sleep(2)
        assert world.identity(4).lag_s >= 2
        assert (await _caller(world, (ROOT_USER, ROOT_PASSWORD), 4)).is_root
        world.store.reachable = True
        assert (await _caller(world, key, 4)).name == "ann"
        assert world.identity(4).lag_s == 0

    _in_world(story)


def test_without_quorum_known_identities_go_on_and_unknown_ones_are_503() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        await _caller(world, key, 2)
        world.store.reachable = False
        assert (await _caller(world, key, 2)).name == "ann"
        with pytest.raises(QuorumLost):
            await _caller(world, ("HFOTHER", "secret-of-other"), 2)
        restarted = world.restart(world.names[3])
        with pytest.raises(QuorumLost):
            await restarted.identity.authenticate(world.request(*key), deadline=world.by(5))

    _in_world(story)


def test_no_wait_is_longer_than_the_callers_deadline() -> None:
    async def story(world: World) -> None:
        world.store.hanging = True
        begun = world.clock.monotonic()
        with pytest.raises(DeadlineExceeded):
            await world.identity().credential("HFSOMEBODY", deadline=world.by(0.8))
        assert world.clock.monotonic() - begun == pytest.approx(0.8, abs=0.01)
        with pytest.raises(Unavailable):
            await world.identity().create_user("ann", deadline=world.by(60))
        assert world.clock.monotonic() - begun <= 12  # ten seconds in all, whoever asks

    _in_world(story)


def test_unknown_keys_cause_no_storm_of_reads() -> None:
    async def story(world: World) -> None:
        await world.new_key("ann")
        before, begun = world.store.reads, world.clock.monotonic()

        async def guess(number: int) -> None:
            await asyncio.sleep(number * 0.001)
            parts = world.request(f"HFGUESS{number}", "secret-of-other")
            attempt = world.identity(2).authenticate(parts, deadline=world.by(5))
            assert await _code(attempt) == "InvalidAccessKeyId"

        await asyncio.gather(*(guess(number) for number in range(1000)))
        took_s = world.clock.monotonic() - begun
        assert world.store.reads - before <= took_s / limits.IDENTITY_READ_SPACING_S + 2

    _in_world(story)


def test_a_key_made_elsewhere_a_moment_ago_is_known_at_once() -> None:
    async def story(world: World) -> None:
        await world.identity(2).directory(deadline=world.by(5))
        world.deaf = {world.names[1]}
        key = await world.new_key("ann")
        world.node(1).published = world.node(3).published = world.node(4).published = 0
        assert (await _caller(world, key, 2)).name == "ann"

    _in_world(story)


# ---- the refresh -----------------------------------------------------------------------------------
def test_the_refresh_learns_what_nobody_told() -> None:
    async def story(world: World) -> None:
        node = world.node(4)
        node.identity.start()
        await asyncio.sleep(1)
        world.dark = {world.names[3]}
        await world.identity(1).create_user("ann", deadline=world.by(5))
        await asyncio.sleep(2 * limits.IDENTITY_REFRESH_S)
        known = node.replica.known
        assert known is not None and "ann" in known.directory.user_index
        assert node.seen.version == known.version and node.seen.lag_s == 0
        assert node.seen.timeouts == 0 and len(node.seen.reads_s) >= 2
        await node.identity.close()

    _in_world(story)


@pytest.mark.parametrize("fault", ["hanging", "unreachable"])
def test_each_due_read_that_is_not_answered_counts_as_a_timeout(fault: str) -> None:
    async def story(world: World) -> None:
        node = world.node(1)
        node.identity.start()
        await asyncio.sleep(3)
        world.store.hanging = fault == "hanging"
        world.store.reachable = fault != "unreachable"
        await asyncio.sleep(300)
        assert node.seen.timeouts / 300 > 0.5  # what the alert asks for
        assert max(node.seen.reads_s) <= 10.01
        world.store.hanging, world.store.reachable = False, True
        await asyncio.sleep(15)
        before = node.seen.timeouts
        await asyncio.sleep(15)
        assert node.seen.timeouts == before
        await node.identity.close()

    _in_world(story)


# ---- secrets that change ---------------------------------------------------------------------------
NEW = b"n" * 32


def test_a_changed_secret_is_taken_over_without_losing_anybody() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        old_node = world.node(1)
        await _caller(world, key, 1)
        rotating = world.restart(world.names[1], Keks(own=(NEW, *KEKS.own)))
        rotating.identity.start()
        await asyncio.sleep(4)
        await rotating.identity.close()
        only_new = world.restart(world.names[2], Keks(own=(NEW,)))
        only_old = world.restart(world.names[3])
        for node in (old_node, rotating, only_new, only_old):
            parts = world.request(*key)
            found = await node.identity.authenticate(parts, deadline=world.by(5))
            assert found.caller.name == "ann"

    _in_world(story)


def test_the_root_password_opens_what_was_written_before_there_was_a_secret() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        given = world.restart(world.names[1], Keks(own=(NEW,), fallback=KEKS.own))
        given.identity.start()
        await asyncio.sleep(4)
        await given.identity.close()
        later = world.restart(world.names[2], Keks(own=(NEW,)))
        found = await later.identity.authenticate(world.request(*key), deadline=world.by(5))
        assert found.caller.name == "ann"
        # A node that still has the former secret, and the data key in memory, does not undo it.
        world.node(1).identity.start()
        written = world.store.documents[DOCUMENT].version
        await asyncio.sleep(10)
        await world.node(1).identity.close()
        assert world.store.documents[DOCUMENT].version == written

    _in_world(story)


def test_a_wrong_secret_is_503_and_says_what_to_do() -> None:
    async def story(world: World) -> None:
        key = await world.new_key("ann")
        wrong = world.restart(world.names[1], Keks(own=(b"w" * 32,)))
        with pytest.raises(IdentityUnreadable, match="HOLDFAST_CLUSTER_SECRET"):
            await wrong.identity.authenticate(world.request(*key), deadline=world.by(5))
        with pytest.raises(IdentityUnreadable):
            await wrong.identity.create_user("bob", deadline=world.by(5))
        assert "HOLDFAST_CLUSTER_SECRET" in wrong.identity.problem
        parts = world.request(ROOT_USER, ROOT_PASSWORD)
        assert (await wrong.identity.authenticate(parts, deadline=world.by(5))).caller.is_root

    _in_world(story)


def test_session_keys_are_the_same_on_every_node_and_differ_by_purpose() -> None:
    async def story(world: World) -> None:
        first, other = world.identity(1), world.identity(2)
        assert first.session_keys("console") == other.session_keys("console")
        assert first.session_keys("console") != first.session_keys("other")
        rotating = world.restart(world.names[2], Keks(own=(NEW, *KEKS.own))).identity
        assert first.session_keys("console")[0] in rotating.session_keys("console")

    _in_world(story)
