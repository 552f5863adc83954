"""The dashboard's doors, without a browser: cookies, forged forms, headers, errors, and what it leaves out."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from moss_voice.cloud.objects import open_objects
from moss_voice.cloud.store import ObjectLog
from moss_voice.server.app import create_app
from moss_voice.server.settings import Limits, Settings
from tests.server_process import Server, serve, serve_here
from tests.server_samples import Door, code

HERE = {"Sec-Fetch-Site": "same-origin"}
QUERY = "what the caller said"
PAGES = [
    "/ui/index?name=call",
    "/ui/index/history?name=call",
    "/ui/index/restore?name=call&version=1",
    "/ui/index/delete?name=call",
    "/ui/jobs",
    "/ui/requests",
    "/ui/project",
]
FORMS = [
    "/ui/index/find",
    "/ui/index/documents/confirm",
    "/ui/index/documents/delete",
    "/ui/index/restore",
    "/ui/index/delete",
    "/ui/sign-out",
]


class Site(NamedTuple):
    """A server with a project of one index, `call`, of three documents in two versions."""

    server: Server
    project: str
    key: str
    reader: str

    @contextmanager
    def visitor(self, key: str | None = None) -> Iterator[httpx.Client]:
        """Give a client that has signed in."""
        with httpx.Client(base_url=self.server.url, headers=HERE, timeout=30) as client:
            assert enter(client, self.project, key or self.key).status_code == 303
            yield client


def enter(client: httpx.Client, project: str, key: str) -> httpx.Response:
    return client.post("/ui/sign-in", data={"project": project, "key": key})


def proof(client: httpx.Client) -> str:
    """Return what every form of a session carries."""
    found = re.search('name="proof" value="([0-9a-f]{64})"', client.get("/").text)
    assert found is not None
    return found[1]


def push(url: str, project: str, key: str) -> None:
    door = Door(url, project, key)
    first = door.push("call", "a", "b")
    door.push("call", "c", on=first)
    door.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with serve(
        tmp_path_factory.mktemp("doors") / "store", "--trusted-proxies", "127.0.0.1"
    ) as server:
        project, key = server.project()
        _, reader = server.project(project, read_only=True)
        push(server.url, project, key)
        yield Site(server, project, key, reader)


def documents(site: Site) -> list[str]:
    """Return the ids of what is there."""
    door = Door(site.server.url, site.project, site.key)
    answer = door.http.get(door.path("call", "/documents"))
    door.close()
    return [doc["id"] for doc in answer.json()["documents"]]


# --- sessions --------------------------------------------------------------------------------------


def test_nothing_is_shown_without_a_session(site: Site) -> None:
    """Every page and form leads to the door, with no cookie, a made-up one, and one of another signature."""
    with site.visitor() as visitor:
        token = next(iter(visitor.cookies.jar)).value or ""
    forged = token[:-4] + ("AAAA" if not token.endswith("AAAA") else "BBBB")
    for cookie in (None, "mt1.a.b", "x", forged):
        headers = {**HERE, **({"Cookie": f"moss_voice={cookie}"} if cookie else {})}
        with httpx.Client(base_url=site.server.url, headers=headers) as client:
            for path in PAGES if cookie in (None, "x") else PAGES[:1]:
                answer = client.get(path)
                assert answer.status_code == 303, (path, cookie)
                assert answer.headers["location"].partition("?")[0] == "/"
                assert b"call" not in answer.content
            for path in FORMS if cookie is None else FORMS[:1]:
                assert client.post(path, data={"name": "call"}).status_code == 303, (path, cookie)
            assert client.get("/").status_code in (200, 303)


def test_the_cookie_is_for_this_browser_and_host_alone(site: Site) -> None:
    """HttpOnly, SameSite=Strict, no domain; over TLS (as a trusted proxy tells) Secure and bound to the host."""
    told = []
    for headers in ({}, {"X-Forwarded-Proto": "https"}):
        with httpx.Client(base_url=site.server.url, headers={**HERE, **headers}) as client:
            answer = enter(client, site.project, site.key)
            assert (answer.status_code, answer.headers["location"]) == (303, "/")
            told.append(answer.headers["set-cookie"])
    for cookie in told:
        parts = cookie.lower().split("; ")
        assert {"httponly", "samesite=strict", "path=/"} <= set(parts)
        assert "max-age=28800" in parts or "max-age=28799" in parts
        assert "domain" not in cookie.lower()
        assert site.key.rpartition("_")[2] not in cookie
    assert told[0].startswith("moss_voice=mt1.")
    assert "secure" not in told[0].lower()
    assert told[1].startswith("__Host-moss_voice=mt1.")
    assert "; Secure" in told[1]


def test_a_token_is_a_key_too_and_ends_when_it_ends(site: Site) -> None:
    """Who has but a token may look with it: the session is that token, no longer and no mightier."""
    with httpx.Client(base_url=site.server.url, headers=HERE) as client:
        issued = client.post(
            f"/v1/projects/{site.project}/tokens",
            json={"expires_in_s": 60},
            headers=site.server.bearer(site.key),
        ).json()
        answer = enter(client, site.project, issued["token"])
        age = re.search("Max-Age=([0-9]+)", answer.headers["set-cookie"])
        assert age is not None
        assert int(age[1]) <= 60
        assert "read only" in client.get("/").text


def test_a_session_ends_with_its_key(tmp_path: Path) -> None:
    """Revoked, or over by its time: the next page and the next form lead to the door, and change nothing."""
    log = ObjectLog(open_objects(tmp_path / "store"))
    revoked, expired = (asyncio.run(log.keys.create("p")) for _ in range(2))
    with serve_here(log, Settings(key_cache_s=0.01)) as (url, _):
        push(url, "p", revoked.key)
        clients = [httpx.Client(base_url=url, headers=HERE) for _ in range(2)]
        for client, made in zip(clients, (revoked, expired), strict=True):
            enter(client, "p", made.key)
        proofs = [proof(client) for client in clients]
        asyncio.run(log.keys.revoke("p", revoked.info.id))
        asyncio.run(log.keys.end("p", expired.info.id, in_s=0.001))
        for client, form in zip(clients, proofs, strict=True):
            cookies = dict(client.cookies)
            answer = client.get("/ui/jobs")
            assert (answer.status_code, answer.headers["location"]) == (303, "/?ended=1")
            assert 'moss_voice=""; ' in answer.headers["set-cookie"]
            body = {"name": "call", "typed": "call", "proof": form}
            header = {"Cookie": f"moss_voice={cookies['moss_voice']}"}
            answer = client.post("/ui/index/delete", data=body, headers=header)
            assert (answer.status_code, answer.headers["location"]) == (303, "/?ended=1")
            client.close()
        assert asyncio.run(log.head("p", "call")).alive is not None


def test_wrong_keys_are_slowed_down_at_this_door_too(tmp_path: Path) -> None:
    """After a few wrong keys the door says when to try again; the right key of the API is let in still."""
    log = ObjectLog(open_objects(tmp_path / "store"))
    key = asyncio.run(log.keys.create("p")).key
    settings = Settings(failures_burst=3, failures_per_s=0.001, failure_s=0.0)
    with (
        serve_here(log, settings) as (url, _),
        httpx.Client(base_url=url, headers=HERE) as client,
    ):
        bearer = {"Authorization": f"Bearer {key}"}
        assert client.get("/v1/projects/p", headers=bearer).status_code == 200
        for n in range(3):
            assert enter(client, "p", f"mv_wrong{n}").status_code == 401
        answer = enter(client, "p", "mv_wrong")
        assert answer.status_code == 429
        assert re.search("Wait [0-9]+ s", answer.text)
        assert client.get("/v1/projects/p", headers=bearer).status_code == 200
        assert enter(client, "p", "").status_code == 401
        for odd in ("", " ", "a\nb", "x" * 300):
            assert enter(client, odd, key).status_code in (400, 401, 429)


# --- forged forms ----------------------------------------------------------------------------------

FORGED: list[tuple[dict[str, str], bool]] = [
    ({}, True),  # nobody says where it comes from
    ({"Sec-Fetch-Site": "cross-site"}, True),
    ({"Sec-Fetch-Site": "same-site"}, True),
    ({"Sec-Fetch-Site": "none"}, True),
    ({"Origin": "https://evil.example"}, True),
    ({"Origin": "null"}, True),
    ({"Origin": "http://127.0.0.1:1"}, True),
    ({"Sec-Fetch-Site": "same-origin"}, False),  # from here, but without the session's secret
]


@pytest.mark.parametrize(("headers", "with_proof"), FORGED)
def test_a_forged_form_changes_nothing(
    site: Site, headers: dict[str, str], with_proof: bool
) -> None:
    """With the cookie, but from elsewhere or without the secret, each form is a 403, and all stays."""
    with site.visitor() as visitor:
        body = {"name": "call", "typed": "call", "version": "1", "id": '"a"', "query": QUERY}
        if with_proof:
            body["proof"] = proof(visitor)
        else:
            body["proof"] = "0" * 64
        cookies = dict(visitor.cookies)
    before = documents(site)
    with httpx.Client(base_url=site.server.url, headers=headers, cookies=cookies) as client:
        for path in FORMS:
            answer = client.post(path, data=body)
            assert answer.status_code == 403, path
            assert answer.headers["content-type"].startswith("text/html")
        if with_proof:
            answer = enter(client, site.project, site.key)
            assert answer.status_code == 403, "nobody is signed in by another's page"
            assert "set-cookie" not in answer.headers
        assert client.get("/ui/jobs").status_code == 200, "nor signed out"
    assert documents(site) == before


def test_a_form_from_here_is_taken(site: Site) -> None:
    """By the browser's word, or by the origin where it gives none, with the secret: else the test above shows nothing."""
    for headers in (HERE, {"Origin": site.server.url, "Sec-Fetch-Site": ""}):
        with site.visitor() as visitor:
            given = {name: value for name, value in headers.items() if value}
            cookies, form = dict(visitor.cookies), {"name": "call", "proof": proof(visitor)}
        with httpx.Client(base_url=site.server.url, headers=given, cookies=cookies) as client:
            assert client.post("/ui/index/find", data={**form, "query": QUERY}).status_code == 200


def test_a_read_only_session_cannot_change_anything(site: Site) -> None:
    """Its own forms, sent by hand, are a 403; a search is not."""
    before = documents(site)
    with site.visitor(site.reader) as visitor:
        body = {
            "name": "call",
            "typed": "call",
            "version": "1",
            "id": '"a"',
            "proof": proof(visitor),
        }
        for path in FORMS[1:-1]:
            assert visitor.post(path, data=body).status_code == 403, path
        assert visitor.post("/ui/index/find", data=body).status_code == 200
    assert documents(site) == before


def test_projects_do_not_see_each_other(site: Site) -> None:
    """A session shows its own project's indexes, whatever an address names."""
    other, key = site.server.project()
    with httpx.Client(base_url=site.server.url, headers=HERE) as client:
        enter(client, other, key)
        assert "no index yet" in client.get("/").text
        for path in PAGES[:4]:
            assert client.get(path).status_code == 404, path
        form = {"name": "call", "typed": "call", "version": "1", "proof": proof(client)}
        for path in ("/ui/index/find", "/ui/index/restore", "/ui/index/delete"):
            assert client.post(path, data=form).status_code == 404, path


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/ui/index/find", {"name": "call", "query": "a", "alpha": "2"}),
        ("/ui/index/find", {"name": "call", "query": "a", "alpha": "nan"}),
        ("/ui/index/find", {"name": "call", "query": "a", "top_k": "1000"}),
        ("/ui/index/find", {"name": "call", "query": "a", "min_score": "x"}),
        ("/ui/index/find", {"name": "call", "filter": "null"}),
        ("/ui/index/find", {"name": "call", "filter": "[" * 9000}),
        ("/ui/index/find", {"name": "a\x00b"}),
        ("/ui/index/documents/confirm", {"name": "call", "id": "a"}),
        ("/ui/index/documents/delete", {"name": "call", "id": '[""]'}),
        ("/ui/index/delete", {"name": "call", "typed": "other"}),
    ],
)
def test_what_is_not_sound_is_told_on_a_page(site: Site, path: str, body: dict[str, str]) -> None:
    """A form that makes no sense is a 400 with a page, and nothing happens."""
    before = documents(site)
    with site.visitor() as visitor:
        answer = visitor.post(path, data={**body, "proof": proof(visitor)})
        assert answer.status_code == 400
        assert 'role="alert"' in answer.text
        answer = visitor.post(path, content=b"\xff\xfe", headers={"Content-Type": "x"})
        assert answer.status_code == 400
    assert documents(site) == before


# --- what a page is --------------------------------------------------------------------------------


def test_every_page_is_under_the_strict_policy(site: Site) -> None:
    """Nothing inline, nothing from elsewhere, no frame around it, no base, and no copy in a cache."""
    with site.visitor() as visitor:
        for path in ["/", *PAGES, "/ui/nothing", "/ui/index?name=no"]:
            answer = visitor.get(path)
            policy = dict(
                part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
            )
            assert policy == {
                "default-src": "'none'",
                "style-src": "'self'",
                "script-src": "'self'",
                "img-src": "'self'",
                "form-action": "'self'",
                "base-uri": "'none'",
                "frame-ancestors": "'none'",
            }, path
            for name, value in (
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
                ("x-frame-options", "DENY"),
                ("referrer-policy", "same-origin"),
                ("cross-origin-opener-policy", "same-origin"),
            ):
                assert answer.headers[name] == value, path
            assert answer.headers["content-type"] == "text/html; charset=utf-8"
            assert not re.search(
                r"""<style|\sstyle=|\son[a-z]+=|https?://|src="//|href="//""", answer.text
            ), path
            scripts = re.findall("<script[^>]*>", answer.text)
            assert all("src=" in one or "application/json" in one for one in scripts), path
            for name in re.findall('(?:src|href)="(/ui/[a-z]+[.][a-z]+[^"]*)"', answer.text):
                file = visitor.get(name)
                assert file.status_code == 200
                assert "immutable" in file.headers["cache-control"]
        style = visitor.get("/ui/style.css").text + visitor.get("/ui/script.js").text
        assert "url(" not in style
        assert "@import" not in style
        assert not re.search("https?://|innerHTML|eval|insertAdjacent", style)


def test_errors_are_pages_for_people_and_json_for_programs(site: Site) -> None:
    """Below `/ui` what is wrong is told on a page, elsewhere in JSON, with the same statuses as ever."""
    with site.visitor() as visitor:
        for method, path, status in (
            ("GET", "/ui/nothing", 404),
            ("GET", "/ui/index?name=no", 404),
            ("GET", "/ui/index", 400),
            ("GET", "/ui/index/restore?name=call&version=99", 404),
            ("POST", "/ui/jobs", 405),
            ("DELETE", "/", 405),
        ):
            answer = visitor.request(method, path)
            assert answer.status_code == status, path
            assert answer.headers["content-type"].startswith("text/html"), path
            assert "<h1>" in answer.text
        for path in ("/uix", "/nothing", "/v1/x", "/favicon.ico"):
            assert code(visitor.get(path)) == "not_found"
        assert visitor.get("/ui/index/find").headers["location"] == "/"


def test_a_fault_of_ours_is_a_page_that_tells_nothing(tmp_path: Path) -> None:
    """What nobody expected is a 500 with the request's id for the log: a page below `/ui`, JSON elsewhere."""

    async def broken(request: Request) -> Response:
        raise RuntimeError(f"the caller said {QUERY}")

    app = create_app(ObjectLog(open_objects(tmp_path / "store")))
    app.router.routes[:0] = [Route("/ui/broken", broken), Route("/broken", broken)]
    with TestClient(app) as client:
        id_ = "0123456789abcdef"
        for path, kind in (("/ui/broken", "text/html"), ("/broken", "application/json")):
            answer = client.get(path, headers={"X-Request-Id": id_})
            assert answer.status_code == 500
            assert answer.headers["content-type"].startswith(kind)
            assert id_ in answer.text
            assert QUERY not in answer.text


def test_no_address_of_ours_leads_elsewhere(site: Site) -> None:
    """Whatever is added to an address, the door leads to a path of this server alone."""
    with httpx.Client(base_url=site.server.url, headers=HERE) as client:
        for addition in ("?next=https://evil.example", "?url=//evil.example", "//evil.example"):
            answer = client.post(
                f"/ui/sign-in{addition}" if addition.startswith("?") else "/ui/sign-in",
                data={"project": site.project, "key": site.key, "next": "https://evil.example"},
            )
            assert answer.headers["location"] == "/"
        for path in ("/ui//evil.example", "/ui/\\evil.example", "//evil.example"):
            answer = client.get(site.server.url + path)
            assert answer.headers.get("location", "/") == "/"
            assert answer.status_code in (303, 404)


def test_the_log_tells_of_visits_without_content(site: Site) -> None:
    """Routes, statuses, the project's hash and the key's id: no key, session, name or question."""
    with site.visitor() as visitor:
        form = proof(visitor)
        token = next(iter(visitor.cookies.jar)).value or ""
        visitor.post("/ui/index/find", data={"name": "call", "query": QUERY, "proof": form})
    log = site.server.log()
    lines = [line for line in site.server.log_lines() if line.get("route") == "/ui/index/find"]
    assert lines[-1]["status"] == 200
    assert lines[-1]["key"] == site.key.split("_")[1]
    for secret in (QUERY, site.key.rpartition("_")[2], token, form, "name=call"):
        assert secret not in log


# --- requests --------------------------------------------------------------------------------------


def test_requests_of_the_project_are_counted(tmp_path: Path) -> None:
    """Answers, refusals, conflicts and limits of the API count for their project; pages and strangers do not."""
    log = ObjectLog(open_objects(tmp_path / "store"))
    key = asyncio.run(log.keys.create("p")).key
    settings = Settings(limits=Limits(burst=12, requests_per_s=0.001), failure_s=0.0)
    with serve_here(log, settings) as (url, here):
        door = Door(url, "p", key)
        done = door.push("call", "a")  # three requests: a segment, a commit
        assert door.put_commit(done).status_code == 200
        assert door.http.get(door.path("none")).status_code == 404
        door.http.get(door.path(), headers={"Authorization": "Bearer mv_wrong"})
        with httpx.Client(base_url=url, headers=HERE) as visitor:
            enter(visitor, "p", key)
            page = visitor.get("/ui/requests").text
        told = dict(re.findall("<dt>([^<]+)</dt><dd[^>]*>([^<]+)", page))
        assert told["Requests"] == "5"
        assert told["Refused (4xx)"] == "2", "one was wrong, one not let in"
        while door.http.get(door.path()).status_code == 200:
            pass
        from moss_voice.server.labels import project_hash

        # A request is counted once its answer has gone out, which whoever asked may have first.
        until = time.monotonic() + 10.0
        while (hour := here.traffic.hour(project_hash("p"))).limited == 0:
            assert time.monotonic() < until
            time.sleep(0.01)
        assert hour.limited == 1
        assert hour.median_ms is not None
        door.http.get("/v1/projects/unknown")
        assert here.traffic.hour(project_hash("unknown")).requests == 0
        door.close()


# --- without it ------------------------------------------------------------------------------------


def test_the_dashboard_can_be_left_out(tmp_path: Path) -> None:
    """With `--no-dashboard` there is nothing at its addresses but the JSON of old."""
    with serve(tmp_path / "store", "--no-dashboard") as server:
        for path in ("/", "/ui", "/ui/style.css", "/ui/sign-in"):
            assert code(httpx.get(server.url + path)) == "not_found"
        assert httpx.get(f"{server.url}/healthz").status_code == 200


def test_the_server_says_where_its_dashboard_is(tmp_path: Path) -> None:
    """The line that `serve` prints for people names the dashboard, and the API's description."""
    command = [sys.executable, "-m", "moss_voice.cli", "serve", "--port", "0"]
    with subprocess.Popen(
        [*command, "--store", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline().decode()
        process.terminate()
    url = r"http://127\.0\.0\.1:[0-9]+"
    assert re.search(rf"\(dashboard: {url}/, API: {url}/docs\)", line)
