"""The console and the admin API over HTTP: who gets in, what is refused, and what is said then."""

from __future__ import annotations

import asyncio
import html.parser
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import httpx
import pytest

from node import limits
from node.console import models
from node.console.edge import row_of
from node.errors import QuorumLost
from node.guard.policy import ADMIN
from tests.fakes.console_world import Console, one_dark
from tests.unit.identity_world import ROOT_PASSWORD, ROOT_USER
from tests.unit.identity_world import World as Identities

ADMIN_V1 = "/admin/v1"
KEYS = {"access_key": ROOT_USER, "secret_key": ROOT_PASSWORD}


@pytest.fixture
def console() -> Console:
    return Console()


async def _user(console: Console, name: str, policy: str = "") -> tuple[str, str]:
    key = await console.identities.new_key(name)
    if policy:
        deadline = console.identities.by(5)
        await console.identities.identity().attach(policy, name, deadline=deadline)
    return key


def _code(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


# ---- sessions ---------------------------------------------------------------------------------------
async def test_log_in_look_and_log_out(console: Console) -> None:
    async with console.client() as client:
        assert _code(await client.get("/api/cluster")) == (401, "NotLoggedIn")
        answer = await client.post("/api/login", json=KEYS)
        assert answer.status_code == 200
        assert answer.json()["root"] is True and ROOT_PASSWORD not in answer.text
        cookie = answer.headers["set-cookie"].lower()
        assert "httponly" in cookie and "samesite=strict" in cookie
        assert (await client.get("/api/cluster")).json()["nodes"][0]["self"] is True
        token = {"X-CSRF-Token": answer.json()["csrf"]}
        assert (await client.post("/api/logout", headers=token)).status_code == 204
        assert _code(await client.get("/api/cluster")) == (401, "NotLoggedIn")


async def test_a_session_of_one_node_is_good_on_another() -> None:
    identities = Identities()
    client = await Console(identities, 1).logged_in()
    cookies = dict(client.cookies)
    async with Console(identities, 2).client() as other:
        other.cookies.update(cookies)
        assert (await other.get("/api/cluster")).status_code == 200


async def test_wrong_key_and_wrong_secret_look_the_same(console: Console) -> None:
    async with console.client() as client:
        answers = [
            await client.post("/api/login", json=KEYS | change)
            for change in ({"access_key": "nobody"}, {"secret_key": "wrong-password"})
        ]
    assert [_code(each) for each in answers] == [(401, "LoginRefused")] * 2
    assert answers[0].content == answers[1].content
    assert "set-cookie" not in answers[0].headers


async def test_guessing_is_braked_and_people_are_not(console: Console) -> None:
    wrong = KEYS | {"secret_key": "wrong-password"}
    async with console.client("198.51.100.9") as client:
        for _ in range(3 * limits.LOGIN_BURST):
            assert (await client.post("/api/login", json=KEYS)).status_code == 200
        for _ in range(limits.LOGIN_BURST):
            assert (await client.post("/api/login", json=wrong)).status_code == 401
        answer = await client.post("/api/login", json=KEYS)
        assert _code(answer) == (429, "TooManyAttempts")
        assert 0 < int(answer.headers["retry-after"]) <= limits.LOGIN_REFILL_S
        async with console.client("198.51.100.10") as other:
            assert (await other.post("/api/login", json=KEYS)).status_code == 200
        console.clock.shift_s += limits.LOGIN_REFILL_S
        assert (await client.post("/api/login", json=KEYS)).status_code == 200


async def test_unknown_identities_are_503_and_no_failed_guess(console: Console) -> None:
    console.identities.store.hanging = True
    given = {"access_key": "HFSOMEBODY", "secret_key": "some-secret"}
    async with console.client() as client:
        for _ in range(2):
            begun = console.clock.monotonic()
            answer = await client.post("/api/login", json=given)
            assert _code(answer) == (503, "ServiceUnavailable")
            assert console.clock.monotonic() - begun < limits.CONSOLE_ANSWER_S + 2
        assert (await client.post("/api/login", json=KEYS)).status_code == 200


async def test_a_session_ends_with_its_key(console: Console) -> None:
    access_key, secret = await _user(console, "ann", "readwrite")
    client = await console.logged_in(access_key, secret)
    assert (await client.get("/api/buckets")).status_code == 200
    deadline = console.identities.by(5)
    await console.identities.identity(3).set_user_enabled("ann", False, deadline=deadline)
    assert _code(await client.get("/api/buckets")) == (401, "NotLoggedIn")


async def test_changes_need_the_token_of_the_session(console: Console) -> None:
    client = await console.logged_in()
    good = client.headers["X-CSRF-Token"]
    new = {"name": "bucket-one"}
    for headers in (
        {"X-CSRF-Token": ""},
        {"X-CSRF-Token": "0" * len(good)},
        {"X-CSRF-Token": "ü"},
        {"X-CSRF-Token": good, "Sec-Fetch-Site": "cross-site"},
    ):
        sent = [(k.encode(), v.encode()) for k, v in headers.items()]
        assert _code(await client.post("/api/buckets", json=new, headers=sent)) == (
            403,
            "AccessDenied",
        )
    cross = {"Sec-Fetch-Site": "cross-site"}
    assert _code(await client.post("/api/login", json=KEYS, headers=cross))[0] == 403
    assert (await client.get("/api/buckets")).json() == {"buckets": []}
    assert (await client.post("/api/buckets", json=new)).status_code == 201


# ---- signed requests ----------------------------------------------------------------------------------
async def test_signed_requests_need_no_session(console: Console) -> None:
    answer = await console.signed("GET", f"{ADMIN_V1}/cluster")
    assert answer.status_code == 200 and answer.json()["write_ready"] is True
    wrong = await console.signed("GET", f"{ADMIN_V1}/cluster", secret="another-secret")
    assert _code(wrong) == (403, "SignatureDoesNotMatch")
    unknown = await console.signed("GET", f"{ADMIN_V1}/cluster", access_key="HFNOBODY")
    assert _code(unknown) == (403, "InvalidAccessKeyId")


async def test_the_body_is_under_the_signature(console: Console) -> None:
    path = f"{ADMIN_V1}/users"
    swapped = await console.signed("POST", path, {"name": "ann"}, sends=b'{"name": "eve"}')
    assert _code(swapped) == (400, "XAmzContentSHA256Mismatch")
    unsigned = await console.signed("POST", path, {"name": "ann"}, payload="UNSIGNED-PAYLOAD")
    assert _code(unsigned) == (403, "AccessDenied")
    assert (await console.signed("GET", path)).json() == {"users": []}


async def test_identities_that_are_not_known_are_503_within_a_second(console: Console) -> None:
    console.identities.store.reachable = False
    begun = console.clock.monotonic()
    answer = await console.signed("GET", f"{ADMIN_V1}/cluster", access_key="HFSOMEBODY")
    assert _code(answer) == (503, "ServiceUnavailable") and answer.headers["retry-after"]
    assert console.clock.monotonic() - begun < limits.CONSOLE_ANSWER_S + 2
    assert (await console.signed("GET", f"{ADMIN_V1}/cluster")).status_code == 200


@pytest.mark.parametrize(
    ("policy", "reads", "changes"),
    [("", 403, 403), ("readwrite", 403, 403), ("diagnostics", 200, 403), ("admin", 200, 201)],
)
async def test_admin_actions_need_a_policy(
    console: Console, policy: str, reads: int, changes: int
) -> None:
    access_key, secret = await _user(console, "ann", policy)
    for path in ("cluster", "users", "policies", "locks", "config", "heal", "heal/census"):
        answer = await console.signed(
            "GET", f"{ADMIN_V1}/{path}", access_key=access_key, secret=secret
        )
        assert answer.status_code == reads, path
    answer = await console.signed(
        "POST", f"{ADMIN_V1}/users", {"name": "bob"}, access_key=access_key, secret=secret
    )
    assert answer.status_code == changes


# ---- the admin API --------------------------------------------------------------------------------------
async def test_users_keys_and_policies_from_end_to_end(console: Console) -> None:
    def ask(method: str, path: str, body: object = None) -> Awaitable[httpx.Response]:
        return console.signed(method, ADMIN_V1 + path, body)

    assert (await ask("POST", "/users", {"name": "ann"})).status_code == 201
    key = (await ask("POST", "/users/ann/keys", {})).json()
    assert set(key) == {"access_key", "secret_key"}
    statement = {"Effect": "Allow", "Action": "s3:ListAllMyBuckets", "Resource": "*"}
    document = {"Version": "2012-10-17", "Statement": [statement]}
    put = await ask("POST", "/policies", {"name": "looks", "document": document})
    assert put.status_code == 201 and put.json()["document"] == document
    assert (await ask("PUT", "/users/ann/policies/looks")).status_code == 204
    users = (await ask("GET", "/users")).json()["users"]
    assert [(u["name"], u["keys"], u["policies"]) for u in users] == [
        ("ann", [key["access_key"]], ["looks"])
    ]
    assert key["secret_key"] not in json.dumps(users)
    client = await console.logged_in(key["access_key"], key["secret_key"])
    assert (await client.get("/api/buckets")).status_code == 200
    assert (await client.get(f"{ADMIN_V1}/users")).status_code == 403

    assert _code(await ask("DELETE", "/policies/looks")) == (409, "PolicyInUse")
    assert (await ask("DELETE", "/users/ann/policies/looks")).status_code == 204
    assert _code(await ask("DELETE", "/users/ann/policies/looks")) == (404, "NotAttached")
    assert (await ask("DELETE", "/policies/looks")).status_code == 204
    path = f"/users/ann/keys/{key['access_key']}"
    assert (await ask("PATCH", path, {"enabled": False})).status_code == 204
    assert (await client.get("/api/buckets")).status_code == 401
    assert (await ask("DELETE", path)).status_code == 204
    assert (await ask("DELETE", "/users/ann")).status_code == 204
    assert (await ask("GET", "/users")).json() == {"users": []}


@pytest.mark.parametrize(
    ("method", "path", "body", "expected"),
    [
        ("POST", "/users", {"name": "a b"}, (400, "InvalidName")),
        ("POST", "/users", {"nom": "ann"}, (400, "InvalidRequest")),
        ("DELETE", "/users/nobody", None, (404, "NoSuchUser")),
        ("PUT", "/users/nobody/policies/admin", None, (404, "NoSuchUser")),
        ("DELETE", "/policies/admin", None, (400, "PolicyIsBuiltIn")),
        (
            "POST",
            "/policies",
            {"name": "p", "document": {"Statement": 1}},
            (400, "MalformedPolicy"),
        ),
        ("POST", "/policies", {"name": "p", "document": "{no json"}, (400, "MalformedPolicy")),
        ("DELETE", "/users/nobody/keys/HFNONE", None, (404, "NoSuchAccessKey")),
        ("POST", "/locks/release", {"resource": "object:b/k"}, (404, "NoSuchLock")),
        ("POST", "/drives/accept", {"node": "n", "path": "/nowhere"}, (400, "NoSuchDrive")),
        ("GET", "/unknown", None, (404, "NoSuchPage")),
        ("POST", "/cluster", None, (405, "MethodNotAllowed")),
    ],
)
async def test_what_is_wrong_is_named(
    console: Console, method: str, path: str, body: object, expected: tuple[int, str]
) -> None:
    assert _code(await console.signed(method, ADMIN_V1 + path, body)) == expected


async def test_users_are_paged(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "ADMIN_PAGE", 2)
    for name in ("ann", "cid", "bob"):
        await console.signed("POST", f"{ADMIN_V1}/users", {"name": name})
    found: list[str] = []
    while True:
        query = (("after", found[-1] if found else ""),)
        page = (await console.signed("GET", f"{ADMIN_V1}/users", query=query)).json()["users"]
        if not page:
            break
        assert len(page) <= 2
        found += [user["name"] for user in page]
    assert found == ["ann", "bob", "cid"]


async def test_repair_locks_drives_and_config(console: Console) -> None:
    census = (await console.signed("GET", f"{ADMIN_V1}/heal/census")).json()
    assert census["by_shards"] == {"16": 2, "12": 1} and census["complete"] is True
    started = (await console.signed("POST", f"{ADMIN_V1}/heal/census")).json()
    assert started["running"] and started["counted"] == 2
    progress = (await console.signed("GET", f"{ADMIN_V1}/heal/census/progress")).json()
    assert progress["sets"][0]["by_shards"] == {"7": 1, "12": 1, "16": 2}
    paused = await console.signed("POST", f"{ADMIN_V1}/heal", {"paused": True})
    assert paused.json()["paused"] is True and console.view.repair().paused
    for way in ("DELETE", "POST"):
        console.view.held["object:b/a b"] = models.Lock(
            resource="object:b/a b", holder="node2:9002", age_s=3.5
        )
        locks = (await console.signed("GET", f"{ADMIN_V1}/locks")).json()["locks"]
        assert [lock["resource"] for lock in locks] == ["object:b/a b"]
        if way == "DELETE":
            query = (("resource", "object:b/a b"),)
            answer = await console.signed("DELETE", f"{ADMIN_V1}/locks", query=query)
        else:
            body = {"resource": "object:b/a b"}
            answer = await console.signed("POST", f"{ADMIN_V1}/locks/release", body)
        assert answer.status_code == 204 and not console.view.held
    drive = {"node": "node2:9002", "path": "/data/disk9"}
    answer = await console.signed("POST", f"{ADMIN_V1}/drives/accept", drive)
    assert answer.status_code == 204 and console.view.accepted == [("node2:9002", "/data/disk9")]
    values = (await console.signed("GET", f"{ADMIN_V1}/config")).json()["values"]
    assert values[0]["value"] == "********"
    changes = [each["action"] for each in console.logged if each["event"] == "admin change"]
    assert changes == ["StartCensus", "PauseRepair", "ReleaseLock", "ReleaseLock", "AcceptDrive"]


async def test_openapi_names_every_admin_route(console: Console) -> None:
    async with console.client() as client:
        schema = (await client.get(f"{ADMIN_V1}/openapi.json")).json()
        assert (await client.get("/docs")).status_code == 404
    routes = {(method, path) for path, methods in schema["paths"].items() for method in methods}
    for route in (
        ("get", "/admin/v1/cluster"),
        ("post", "/admin/v1/users/{name}/keys"),
        ("put", "/admin/v1/users/{name}/policies/{policy}"),
        ("get", "/admin/v1/heal/census"),
        ("post", "/admin/v1/locks/release"),
        ("put", "/api/buckets/{bucket}/object"),
    ):
        assert route in routes
    assert "self" in schema["components"]["schemas"]["Node"]["properties"]


# ---- buckets and objects ----------------------------------------------------------------------------------
async def test_buckets_and_objects(console: Console) -> None:
    client = await console.logged_in()
    url = "/api/buckets/photos/object"
    assert (await client.post("/api/buckets", json={"name": "photos"})).status_code == 201
    assert _code(await client.post("/api/buckets", json={"name": "photos"}))[0] == 409
    refused = await client.post("/api/buckets", json={"name": ".holdfast.sys"})
    assert _code(refused) == (400, "InvalidBucketName")
    key = 'a//b/../ü "x"+%2F.txt'
    data = bytes(range(256)) * 3000
    stored = await client.put(url, params={"key": key}, content=data)
    assert stored.status_code == 201 and stored.json()["size"] == len(data)
    await client.put(url, params={"key": "empty"}, content=b"")
    top = (await client.get("/api/buckets/photos/objects")).json()
    assert top["prefixes"] == ["a/"] and [o["key"] for o in top["objects"]] == ["empty"]
    inner = await client.get("/api/buckets/photos/objects", params={"prefix": "a//b/../"})
    assert [o["key"] for o in inner.json()["objects"]] == [key]
    back = await client.get(url, params={"key": key})
    assert back.content == data and back.headers["content-length"] == str(len(data))
    disposition = back.headers["content-disposition"]
    assert disposition.startswith("attachment;") and "\n" not in disposition
    assert "filename*=UTF-8''%C3%BC%20%22x%22%2B%252F.txt" in disposition
    assert back.headers["content-type"] == "application/octet-stream"
    assert (await client.get(url, params={"key": "empty"})).content == b""
    assert _code(await client.delete("/api/buckets/photos")) == (409, "BucketNotEmpty")
    assert _code(await client.get(url, params={"key": "none"})) == (404, "NoSuchKey")
    assert _code(await client.get(url)) == (400, "InvalidRequest")
    long = await client.put(url, params={"key": "k" * 1025}, content=b"x")
    assert _code(long) == (400, "KeyTooLongError")
    for each in (key, "empty"):
        assert (await client.delete(url, params={"key": each})).status_code == 204
    assert (await client.delete("/api/buckets/photos")).status_code == 204
    assert all(reading.closed for reading in console.store.readings)


async def test_what_a_user_may_not_is_refused(console: Console) -> None:
    root = await console.logged_in()
    await root.post("/api/buckets", json={"name": "photos"})
    await root.put("/api/buckets/photos/object", params={"key": "a"}, content=b"a")
    client = await console.logged_in(*await _user(console, "ann", "readonly"))
    assert (await client.get("/api/buckets/photos/object", params={"key": "a"})).content == b"a"
    for answer in (
        await client.post("/api/buckets", json={"name": "others"}),
        await client.delete("/api/buckets/photos"),
        await client.put("/api/buckets/photos/object", params={"key": "b"}, content=b"b"),
        await client.delete("/api/buckets/photos/object", params={"key": "a"}),
    ):
        assert _code(answer) == (403, "AccessDenied")
    blind = await console.logged_in(*await _user(console, "bob"))
    for path in ("/api/buckets", "/api/buckets/photos/objects", "/api/buckets/photos/object?key=a"):
        assert _code(await blind.get(path)) == (403, "AccessDenied")


async def test_uploads_of_unknown_or_wrong_length_are_refused(console: Console) -> None:
    client = await console.logged_in()
    await client.post("/api/buckets", json={"name": "photos"})
    url = "/api/buckets/photos/object?key=a"

    async def pieces() -> AsyncIterator[bytes]:
        yield b"abc"
        yield b"def"

    assert _code(await client.put(url, content=pieces())) == (411, "MissingContentLength")
    for length in ("5", "7"):
        answer = await client.put(url, content=pieces(), headers={"content-length": length})
        assert _code(answer) == (400, "IncompleteBody")
    assert _code(await client.get(url)) == (404, "NoSuchKey")
    answer = await client.put(url, content=pieces(), headers={"content-length": "6"})
    assert answer.status_code == 201
    assert (await client.get(url)).content == b"abcdef"


async def test_large_bodies_are_refused_everywhere_but_in_uploads(console: Console) -> None:
    client = await console.logged_in()
    body = b'{"name": "' + b"x" * limits.ADMIN_BODY_BYTES + b'"}'
    answer = await client.post("/api/buckets", content=body)
    assert _code(answer) == (413, "RequestTooLarge")

    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield body

    assert (await client.post("/api/buckets", content=pieces())).status_code in (400, 413)


# ---- faults -------------------------------------------------------------------------------------------------
async def test_a_lost_quorum_is_503_and_says_so(console: Console) -> None:
    client = await console.logged_in()
    await client.post("/api/buckets", json={"name": "photos"})
    console.store.failure = QuorumLost("7 of 9 drives")
    for answer in (
        await client.get("/api/buckets"),
        await client.get("/api/buckets/photos/objects"),
        await client.get("/api/buckets/photos/object?key=a"),
        await client.put("/api/buckets/photos/object?key=a", content=b"a"),
    ):
        assert _code(answer) == (503, "ServiceUnavailable")
        assert answer.headers["retry-after"] == "1"
    page = await client.get("/buckets")
    assert page.status_code == 503 and "7 of 9 drives" in page.text
    assert (await client.get("/cluster")).status_code == 200


async def test_nothing_outlives_its_deadline(
    console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(**_: object) -> tuple[()]:
        await asyncio.Event().wait()
        return ()

    monkeypatch.setattr(console.store, "list_buckets", never)
    monkeypatch.setitem(ADMIN, "DEFAULT", replace(ADMIN["DEFAULT"], attempt_s=0.05, total_s=0.05))
    client = await console.logged_in()
    assert _code(await client.get("/api/buckets")) == (503, "ServiceUnavailable")


async def test_the_unforeseen_is_500_without_a_trace(console: Console) -> None:
    client = await console.logged_in()
    console.view.failure = ZeroDivisionError("secret detail")
    for path in ("/api/cluster", "/cluster"):
        answer = await client.get(path)
        assert answer.status_code == 500 and "secret detail" not in answer.text
    logged = [each for each in console.logged if each["event"] == "unexpected"]
    assert len(logged) == 2 and logged[0]["level"] == "error"


# ---- pages ------------------------------------------------------------------------------------------------
class _Page(html.parser.HTMLParser):
    """What a page loads, and whether it is clean of inline script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.inline: list[str] = []
        self.forms = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = dict(attributes)
        self.loads += [v for k in ("src",) if (v := found.get(k))]
        if tag == "link":
            self.loads.append(found["href"] or "")
        if tag == "style" or (tag == "script" and "src" not in found):
            self.inline.append(tag)
        self.inline += [k for k in found if k == "style" or k.startswith("on")]
        self.forms += tag == "form"


async def test_every_page_is_clean_and_loads_only_from_here(console: Console) -> None:
    client = await console.logged_in()
    await client.post("/api/buckets", json={"name": "photos"})
    await client.put("/api/buckets/photos/object?key=a<b>%26'/c", content=b"1")
    await client.put("/api/buckets/photos/object?key=<script>", content=b"1")
    await client.post(f"{ADMIN_V1}/users", json={"name": "ann"})
    await client.post(f"{ADMIN_V1}/users/ann/keys", json={})
    console.view.facts = one_dark()
    loads: set[str] = set()
    for path in ("/login", "/cluster", "/buckets", "/buckets/photos", "/users", "/nowhere"):
        answer = await client.get(path)
        assert answer.status_code == (404 if path == "/nowhere" else 200), path
        page = _Page(answer.text)
        assert page.inline == [], path
        loads |= set(page.loads)
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
    assert "<script>" not in re.sub(
        r"<script src[^>]*>", "", (await client.get("/buckets/photos")).text
    )
    assert all(each.startswith("/static/") for each in loads) and len(loads) == 3
    async with console.client() as stranger:
        for each in loads:
            answer = await stranger.get(each)
            assert answer.status_code == 200 and "http://" not in answer.text.replace(
                "http://www.w3.org/2000/svg", ""
            )


async def test_a_stranger_is_led_to_the_login_page(console: Console) -> None:
    async with console.client() as client:
        for path in ("/", "/cluster", "/buckets", "/buckets/photos", "/users"):
            answer = await client.get(path)
            assert (answer.status_code, answer.headers["location"]) == (303, "/login"), path
        assert _code(await client.get("/cluster/part")) == (401, "NotLoggedIn")


async def test_the_cluster_page_names_what_is_dark(console: Console) -> None:
    client = await console.logged_in()
    assert "Healthy" in (await client.get("/cluster")).text
    console.view.facts = one_dark()
    text = (await client.get("/cluster/part")).text
    assert "<html" not in text
    for said in (
        "node4:9002 is dark since 3 min",
        "node2:9002/data/disk2 is hung",
        "1,234",
        "all open",
        "what is said of the drives of node4:9002 is 3 min old",
    ):
        assert said in text
    assert text.count('class="drive lost"') == 5
    relaxed = one_dark().model_copy(update={"durability": "relaxed"})
    console.view.facts = relaxed
    assert '<dd class="bad">relaxed</dd>' in (await client.get("/cluster/part")).text


async def test_pages_show_what_a_visitor_may_see(console: Console) -> None:
    client = await console.logged_in(*await _user(console, "ann", "readonly"))
    home = await client.get("/")
    assert home.headers["location"] == "/buckets"
    text = (await client.get("/buckets")).text
    assert 'href="/cluster"' not in text and 'href="/users"' not in text
    assert (await client.get("/cluster")).status_code == 403
    root = await console.logged_in()
    assert (await root.get("/")).headers["location"] == "/cluster"


async def test_objects_are_paged(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONSOLE_PAGE", 2)
    client = await console.logged_in()
    await client.post("/api/buckets", json={"name": "photos"})
    for name in ("a", "b", "c d", "e"):
        await client.put("/api/buckets/photos/object", params={"key": name}, content=b"")
    first = (await client.get("/buckets/photos")).text
    link = re.search(r'href="([^"]*after=[^"]*)"', first)
    assert link is not None
    second = (await client.get(link[1].replace("&amp;", "&"))).text
    assert ">c d</a>" in second and ">a</a>" not in second and "First page" in second


def test_every_row_of_the_edge_is_a_policy() -> None:
    rows: Callable[[str, str], str] = row_of
    assert (
        rows("PUT", "/api/buckets/b/object") == rows("GET", "/api/buckets/b/object") == "transfer"
    )
    assert rows("DELETE", "/api/buckets/b/object") == rows("POST", "/api/login") == "change"
    assert rows("GET", "/admin/v1/heal/census") == "census"
    assert rows("GET", "/cluster") == "DEFAULT"
    assert {"transfer", "change", "census", "DEFAULT"} <= ADMIN.keys()


async def test_the_page_shows_the_census_by_set_and_the_drives_that_are_filled(
    console: Console,
) -> None:
    client = await console.logged_in()
    assert "No census has been taken" in (await client.get("/cluster/part")).text
    fill = models.Fill(node="node2:9002", path="/d1", keys=5, expected=9, rate_per_s=2.0, eta_s=2.0)
    repair = models.Repair(fills=(fill,), census=console.view.own_census(), paused=True)
    console.view.facts = console.view.facts.model_copy(update={"repair": repair})
    text = " ".join((await client.get("/cluster/part")).text.split())
    for row in (
        '<td>16 / 16</td><td class="number">2</td><td>whole</td>',
        '<td>12 / 16</td><td class="number warn">1</td><td>may lose 4 more</td>',
        '<td>7 / 16</td><td class="number bad">1</td><td>cannot be read now</td>',
        "Filling node2:9002/d1: 5 of 9 keys at the most, 2 a second, about 2 s left.",
        "not every object is whole",
        "Resume repair",
    ):
        assert row in text, row
