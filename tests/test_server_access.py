"""Who is let in, and to what: every path of a real server with every kind of wrong key; time on a fake clock."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from obstore.store import MemoryStore

from moss_voice.cloud.keys import ProjectKeys
from moss_voice.cloud.objects import Objects, open_objects
from moss_voice.server import tokens
from moss_voice.server.access import Access, Gate
from moss_voice.server.rates import Buckets
from moss_voice.server.refusals import Refusal
from moss_voice.server.settings import Limits, Settings
from tests.server_process import Server, serve
from tests.server_samples import Door, code, commit, made

SHA = "0" * 64
# Posted, and open to a key that may only read.
TOKENS = ("post", "/v1/projects/{project}/tokens")
SEARCH = ("post", "/v1/projects/{project}/indexes/{index}/search")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture(scope="module")
def operations(server: Server) -> list[tuple[str, str]]:
    """Return every method and path below /v1, from the server's own description."""
    document = httpx.get(f"{server.url}/openapi.json").json()
    found = [
        (method, path)
        for path, methods in document["paths"].items()
        for method in methods
        if path.startswith("/v1")
    ]
    assert len(found) > 20
    return found


def ask(
    url: str,
    method: str,
    path: str,
    project: str,
    key: str | None,
    *,
    http: httpx.Client | None = None,
) -> httpx.Response:
    filled = (
        path.replace("{project}", project)
        .replace("{index}", "call-1")
        .replace("{version}", "1")
        .replace("{sha256}", SHA)
        .replace("{job_id}", "job-1")
    )
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    content = b"{}" if method in {"put", "post"} else None
    request = http.request if http is not None else httpx.request
    return request(method, url + filled, headers=headers, timeout=30, content=content)


def ask_all(
    server: Server, operations: list[tuple[str, str]], project: str, key: str | None
) -> dict[tuple[str, str], httpx.Response]:
    """Ask everything at once."""
    with ThreadPoolExecutor(8) as pool, httpx.Client(timeout=30) as http:
        answers = pool.map(
            lambda op: ask(server.url, op[0], op[1], project, key, http=http), operations
        )
        return dict(zip(operations, answers, strict=True))


def expired_key(server: Server, project: str, **options: Any) -> str:
    keys = ProjectKeys(
        open_objects(server.store), now=lambda: datetime.now(UTC) - timedelta(hours=2)
    )
    return asyncio.run(keys.create(project, expires_in_s=3600, **options)).key


def revoked_key(server: Server, project: str) -> str:
    _, key = server.project(project)
    revoked = asyncio.run(
        ProjectKeys(open_objects(server.store)).revoke(project, key.split("_")[1])
    )
    assert revoked
    return key


def issue(server: Server, project: str, key: str, **wanted: Any) -> str:
    door = Door(server.url, project, key)
    answer = door.http.post(door.path(rest="/tokens"), json=wanted)
    door.close()
    assert answer.status_code == 201, answer.text
    token: str = answer.json()["token"]
    return token


def tampered(token: str, **claims: Any) -> str:
    """Return a token that says something else under the old signature."""
    head, payload, signature = token.split(".")
    fields = json.loads(base64.urlsafe_b64decode(payload + "=="))
    changed = base64.urlsafe_b64encode(json.dumps({**fields, **claims}).encode()).decode()
    return f"{head}.{changed.rstrip('=')}.{signature}"


def wrong_credentials(server: Server) -> dict[str, tuple[str, str | None]]:
    """Return projects and credentials that do not open them."""
    made_: dict[str, tuple[str, str | None]] = {}
    other, other_key = server.project()
    project, key = server.project()
    token = issue(server, other, other_key)
    made_["no key"] = (project, None)
    made_["a word"] = (server.project()[0], "secret")
    made_["another project's key"] = (server.project()[0], other_key)
    made_["another project's token"] = (server.project()[0], token)
    made_["a token that names this project"] = (project, tampered(token, project=project))
    project, key = server.project()
    made_["a key with another secret"] = (project, f"{key[:-4]}aaaa")
    made_["a key that is too long"] = (server.project()[0], key + "a" * 5000)
    made_["an expired key"] = ("expired", expired_key(server, "expired"))
    made_["a revoked key"] = ("revoked", revoked_key(server, "revoked"))
    made_["a project without keys"] = ("nobodys", key)
    made_["a project that cannot be found"] = ("%C3%A9", key)
    return made_


def test_nothing_answers_without_a_key_of_the_project(
    server: Server, operations: list[tuple[str, str]]
) -> None:
    """Every path is a 401 to everything but a valid key of that very project, in one and the same words."""
    said = set()
    for kind, (project, credential) in wrong_credentials(server).items():
        for operation, answer in ask_all(server, operations, project, credential).items():
            assert answer.status_code == 401, (kind, operation)
            assert answer.headers["www-authenticate"] == "Bearer"
            if operation[0] != "head":
                assert code(answer) == "authentication"
                said.add(answer.text)
    project, key = server.project()
    for header in (f"Basic {key}", key, f"Token {key}", "Bearer"):
        answer = httpx.get(f"{server.url}/v1/projects/{project}", headers={"Authorization": header})
        assert answer.status_code == 401
        said.add(answer.text)
    assert len(said) == 1


def test_no_project_is_made_or_claimed_through_a_server(server: Server) -> None:
    """A first key does not claim a project here, as it does in an embedded cloud."""
    before = sorted(Path(server.store).rglob("*"))
    answer = ask(server.url, "get", "/v1/projects/{project}", "new-project", "my-first-key")
    assert answer.status_code == 401
    assert sorted(Path(server.store).rglob("*")) == before


def test_a_key_that_was_chosen_opens_its_project(server: Server) -> None:
    """A key that a client of the embedded cloud chose works on the server as well, and a wrong one not."""
    asyncio.run(ProjectKeys(open_objects(server.store)).check("chosen-one", "hunter2"))
    answer = ask(server.url, "get", "/v1/projects/{project}", "chosen-one", "hunter2")
    assert answer.json()["key_id"] == "chosen"
    assert (
        ask(server.url, "get", "/v1/projects/{project}", "chosen-one", "hunter3").status_code == 401
    )


def test_a_read_only_key_reads_and_changes_nothing(
    server: Server, operations: list[tuple[str, str]]
) -> None:
    """Every change is a 403 to a read-only key and to a read-only token, and every read is not."""
    project, full = server.project()
    door = Door(server.url, project, full)
    door.push("call-1", "a")
    door.close()
    _, key = server.project(project, read_only=True)
    token = issue(server, project, key)
    by_full_key = issue(server, project, full, read_only=True)
    before = sorted(Path(server.store).rglob("*"))
    for credential in (key, token, by_full_key):
        readable = [op for op in operations if not op[1].endswith("/events")]
        for (method, path), answer in ask_all(server, readable, project, credential).items():
            if method in {"get", "head"} or (method, path) == SEARCH:
                assert answer.status_code in (200, 404), (path, answer.text, server.log()[-2000:])
            elif (method, path) == TOKENS:
                assert answer.status_code == (201 if credential == key else 403)
            else:
                assert (answer.status_code, code(answer)) == (403, "permission_denied"), path
    assert sorted(Path(server.store).rglob("*")) == before
    answer = httpx.get(f"{server.url}/v1/projects/{project}", headers=Server.bearer(key))
    assert answer.json()["read_only"] is True


def test_a_token_does_what_its_key_does_and_no_more(server: Server) -> None:
    """Tokens read, write where that was asked for, never outlive or outrank their key, and issue none."""
    project, key = server.project()
    door = Door(server.url, project, key)
    reads = door.http.post(door.path(rest="/tokens"), json={"expires_in_s": 60}).json()
    assert reads["read_only"] is True
    ends = datetime.fromisoformat(reads["expires_at"])
    assert timedelta(seconds=50) < ends - datetime.now(UTC) <= timedelta(seconds=60)
    writer = Door(server.url, project, issue(server, project, key, read_only=False))
    assert writer.put_segment("call", made("a")).status_code == 201
    assert writer.http.get(writer.path()).json()["expires_at"] is not None
    answer = writer.http.post(writer.path(rest="/tokens"), json={})
    assert (answer.status_code, code(answer)) == (403, "permission_denied")
    # Of a read-only key and of one that ends soon.
    _, weak = server.project(project, read_only=True, expires_in_s=30)
    weak_door = Door(server.url, project, weak)
    token = weak_door.http.post(
        weak_door.path(rest="/tokens"), json={"expires_in_s": 600, "read_only": False}
    ).json()
    assert token["read_only"] is True
    assert datetime.fromisoformat(token["expires_at"]) - datetime.now(UTC) <= timedelta(seconds=30)
    for wanted in (
        {"expires_in_s": 0}, {"expires_in_s": -1}, {"expires_in_s": 86401}, {"expires_in_s": "x"},
        {"read_only": "no"}, {"read_only": 1}, {"project": "other"},
    ):  # fmt: skip
        answer = door.http.post(door.path(rest="/tokens"), json=wanted)
        assert (answer.status_code, code(answer)) == (400, "invalid_argument"), wanted
    for opened in (door, writer, weak_door):
        opened.close()


def test_a_token_that_was_changed_opens_nothing(server: Server) -> None:
    """No claim of a token can be changed, and no part of it left out."""
    project, key = server.project()
    token = issue(server, project, key)
    head, payload, signature = token.split(".")
    forged = [
        tampered(token, read_only=False),
        tampered(token, exp=1 << 36),
        tampered(token, key_id="chosen"),
        tampered(token, format=2),
        f"{head}.{payload}.",
        f"{head}.{payload}",
        f"{head}..{signature}",
        f"mt2.{payload}.{signature}",
        f"{head}.{payload}.{signature[:-1]}",
        f"{head}.{payload}.{signature}=",
        f"{head}.{payload}.{signature}.{signature}",
        f"{head}.{payload}\u00e9.{signature}",
    ]
    with ThreadPoolExecutor(12) as pool, httpx.Client() as http:
        statuses = list(
            pool.map(
                lambda t: (
                    http.get(
                        f"{server.url}/v1/projects/{project}",
                        headers={b"Authorization": b"Bearer " + t.encode()},
                    ).status_code
                ),
                forged,
            )
        )
    assert statuses == [401] * len(forged)
    answer = httpx.get(f"{server.url}/v1/projects/{project}", headers=Server.bearer(token))
    assert answer.status_code == 200


def test_guessing_is_slowed_down_and_locks_nobody_out(server: Server) -> None:
    """After some wrong keys an address gets 429, also for a right key that is new; a known one works on."""
    project, known = server.project()

    http = httpx.Client(base_url=f"{server.url}/v1/projects/", timeout=30)

    def status(key: str) -> int:
        return http.get(project, headers=Server.bearer(key)).status_code

    assert status(known) == 200
    with ThreadPoolExecutor(16) as pool:
        guesses = list(pool.map(status, [f"guess-{n}" for n in range(60)]))
    assert set(guesses) == {401, 429}
    assert guesses.count(401) < 50
    for _ in range(5):  # a try comes free each second, perhaps just now
        while status("guess") != 429:
            pass
        _, fresh = server.project(project)
        answer = httpx.get(f"{server.url}/v1/projects/{project}", headers=Server.bearer(fresh))
        if answer.status_code == 429:
            break
    assert code(answer) == "rate_limited"
    assert int(answer.headers["retry-after"]) >= 1
    assert status(known) == 200
    http.close()


@pytest.mark.parametrize("trusted", [False, True])
def test_an_address_is_believed_of_a_trusted_proxy_alone(tmp_path: Path, trusted: bool) -> None:
    """Who guesses does not begin anew by claiming another address, unless a proxy of ours claims it."""
    options = ("--trusted-proxies", "127.0.0.1") if trusted else ()
    with serve(tmp_path / "store", *options) as server:
        project, _ = server.project()
        with httpx.Client(base_url=f"{server.url}/v1/projects/") as http:

            def guess(n: int) -> int:
                headers = {**Server.bearer(f"guess-{n}"), "X-Forwarded-For": f"203.0.113.{n}"}
                return http.get(project, headers=headers).status_code

            with ThreadPoolExecutor(16) as pool:
                statuses = set(pool.map(guess, range(60)))
        assert statuses == ({401} if trusted else {401, 429})


def test_a_project_sees_nothing_of_another(server: Server) -> None:
    """What one project stores is not there for another, under the same names and hashes."""
    (one, one_key), (two, two_key) = server.project(), server.project()
    mine, theirs = Door(server.url, one, one_key), Door(server.url, two, two_key)
    new = mine.push("call-1", "a")
    sha256 = new.segments[0].sha256
    assert theirs.http.get(theirs.path(rest="/indexes")).json() == {"indexes": []}
    assert theirs.http.get(theirs.path("call-1", "/head")).json() == {"commit": None, "newest": 0}
    assert theirs.http.get(theirs.path("call-1", f"/segments/{sha256}")).status_code == 404
    # To name another project's segment is no way to it.
    assert theirs.put_commit(commit("call-1", new.segments[0])).status_code == 409
    for door in (mine, theirs):
        door.close()


# --- on a fake clock -------------------------------------------------------------------------------


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def date(self) -> datetime:
        return datetime(2026, 11, 20, tzinfo=UTC) + timedelta(seconds=self.now_s)

    def seconds(self) -> float:
        return self.now_s


def gate(time: Time, **settings: Any) -> tuple[Gate, ProjectKeys]:
    keys = ProjectKeys(Objects(MemoryStore(), name="memory://test"), now=time.date)
    chosen = Settings(failure_s=0.0, **settings)
    return Gate(keys, chosen, now=time.date, clock=time.seconds), keys


async def outcome(door: Gate, project: str, credential: str, address: str = "10.0.0.1") -> Any:
    """Return what was opened, or the status of the refusal."""
    try:
        return await door.enter(project, credential, address)
    except Refusal as refused:
        return refused.status


async def test_a_revocation_is_noticed_within_seconds() -> None:
    """A revoked key, and a token in its name, open nothing once the cache's time is over."""
    time = Time()
    door, keys = gate(time)
    new = await keys.create("p")
    opened = await outcome(door, "p", new.key)
    assert isinstance(opened, Access)
    token, _ = await door.issue(opened, expires_in_s=1000, read_only=False)
    assert isinstance(await outcome(door, "p", token), Access)
    time.now_s = 3.0
    assert isinstance(await outcome(door, "p", new.key), Access)
    await keys.revoke("p", new.info.id)
    time.now_s = 5.1
    assert await outcome(door, "p", new.key) == 401
    assert await outcome(door, "p", token) == 401
    assert not await door.stands(opened)


async def test_keys_and_tokens_end_on_time() -> None:
    """An end is kept to the second, whatever is cached; a token of a key that ends ends with it."""
    time = Time()
    door, keys = gate(time, key_cache_s=1000)
    short = await keys.create("p", expires_in_s=100)
    long = await keys.create("p")
    opened = await outcome(door, "p", short.key)
    token, claims = await door.issue(opened, expires_in_s=500, read_only=False)
    assert claims.ends_at == time.date() + timedelta(seconds=100)
    by_token = await outcome(door, "p", token)
    assert (by_token.key_id, by_token.is_token) == (short.info.id, True)
    other, _ = await door.issue(
        await outcome(door, "p", long.key), expires_in_s=50, read_only=False
    )
    time.now_s = 49
    assert isinstance(await outcome(door, "p", other), Access)
    time.now_s = 50
    assert await outcome(door, "p", other) == 401
    time.now_s = 99
    assert isinstance(await outcome(door, "p", token), Access)
    time.now_s = 100
    for credential in (short.key, token):
        assert await outcome(door, "p", credential) == 401
    assert not await door.stands(opened)
    assert not await door.stands(by_token)


async def test_a_rotation_has_no_gap() -> None:
    """Old and new keys work side by side; an end that is set later is kept, and never put off."""
    time = Time()
    door, keys = gate(time)
    old, new = await keys.create("p"), await keys.create("p")
    ended = await keys.end("p", old.info.id, in_s=60)
    assert ended is not None
    assert ended.expires_at == time.date() + timedelta(seconds=60)
    later = await keys.end("p", old.info.id, in_s=600)
    assert later == ended
    for at, old_works in ((0, True), (59, True), (61, False)):
        time.now_s = at
        assert isinstance(await outcome(door, "p", new.key), Access)
        assert isinstance(await outcome(door, "p", old.key), Access) is old_works
    assert await keys.end("p", "0" * 12, in_s=60) is None
    with pytest.raises(ValueError, match="twelve hexadecimal digits"):
        await keys.end("p", "chosen", in_s=60)


async def test_wrong_keys_are_counted_by_address_and_project() -> None:
    """Guesses on one project from one network wait; other projects, addresses and later times do not."""
    time = Time()
    door, keys = gate(time, failures_burst=5, failures_per_s=1.0)
    new = await keys.create("p")
    await keys.create("q")
    assert [await outcome(door, "p", f"x{n}") for n in range(7)] == [401] * 5 + [429] * 2
    assert await outcome(door, "p", new.key) == 429
    assert await outcome(door, "q", "x") == 401
    assert isinstance(await outcome(door, "p", new.key, "10.0.0.2"), Access)
    time.now_s += 1
    assert await outcome(door, "p", "x") == 401
    assert await outcome(door, "p", "x") == 429
    for n in range(5):
        assert await outcome(door, "p", "x", f"2001:db8::{n}") == 401
    assert await outcome(door, "p", "x", "2001:db8::ffff:1") == 429
    assert await outcome(door, "p", "x", "2001:db8:0:1::1") == 401
    # On all projects together, ten times as many.
    statuses = [await outcome(door, f"p{n}", "x", "10.0.0.9") for n in range(60)]
    assert statuses == [401] * 50 + [429] * 10


async def test_strangers_do_not_use_up_a_projects_requests() -> None:
    """Only who was let in is counted against a project's rate."""
    time = Time()
    door, keys = gate(time, limits=Limits(requests_per_s=1, burst=2), failures_burst=1000)
    new = await keys.create("p")
    for n in range(50):
        assert await outcome(door, "p", f"x{n}", f"10.0.0.{n}") == 401
    statuses = [await outcome(door, "p", new.key) for _ in range(3)]
    assert [status for status in statuses if isinstance(status, int)] == [429]
    time.now_s += 1
    assert isinstance(await outcome(door, "p", new.key), Access)


def test_buckets_fill_up_at_their_rate() -> None:
    """So many at once, so many a second in the long run, however the time is cut; 0 lets all through."""
    time = Time()
    buckets = Buckets(per_s=2.0, burst=4, clock=time.seconds)
    assert [buckets.take("a") for _ in range(6)] == [0, 0, 0, 0, 0.5, 0.5]
    passed = 0
    for _ in range(1000):
        time.now_s += 0.013
        passed += buckets.take("a") == 0.0
    assert passed in (25, 26)
    assert buckets.take("b") == 0.0
    time.now_s += 1e6
    assert [buckets.take("a") for _ in range(5)] == [0, 0, 0, 0, 0.5]
    free = Buckets(per_s=0.0, burst=1, clock=time.seconds)
    assert not any(free.take("a") for _ in range(1000))
    few = Buckets(per_s=1.0, burst=1, most=2, clock=time.seconds)
    for owner in "abcabc":
        few.take(owner)
    assert repr(few) == "<Buckets 1.0/s, 2 in use>"


def test_a_token_is_read_or_is_none() -> None:
    """Whatever is no token parses to None: nothing else escapes."""
    claims = tokens.Claims(project="p", key_id="k", exp=1, read_only=True)
    token = tokens.issue(claims, b"secret")
    assert tokens.parse(token) == claims
    assert tokens.is_signed(token, b"secret")
    assert not tokens.is_signed(token, b"other")
    for cut in range(len(token)):
        assert tokens.parse(token[:cut]) is None or not tokens.is_signed(token[:cut], b"secret")
    payloads: list[Any] = [
        None, [], 1, {}, {"project": "p"}, {**claims.model_dump(), "exp": "1"},
        {**claims.model_dump(), "exp": 1 << 60}, {**claims.model_dump(), "more": 1},
    ]  # fmt: skip
    for payload in payloads:
        packed = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
        assert tokens.parse(f"mt1.{packed}.x") is None
    for junk in ("", "mt1", "mt1..", "mt1.!.x", "mt1.\u00e9.x", "mt1." + "A" * 7 + ".x"):
        assert tokens.parse(junk) is None
