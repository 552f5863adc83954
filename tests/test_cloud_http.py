"""What the log behind a server does with whatever a server, a proxy or a line may do to it.

The server of these tests answers byte for byte as it is told. What a real one does is in
`test_cloud_store`.
"""

from __future__ import annotations

import asyncio
import gc
import hashlib
import json
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
import pytest

from moss_voice.cloud.cloud import Cloud
from moss_voice.cloud.http import EventStream, HttpLog, Timeouts
from moss_voice.cloud.log import Commit, Head, SegmentRef, StoredSegment
from moss_voice.errors import (
    AuthenticationError,
    CloudUnavailableError,
    ConflictError,
    CorruptDataError,
    EncryptionKeyError,
    FormatVersionError,
    IndexNotFoundError,
    InvalidArgumentError,
    JobNotFoundError,
    ModelMismatchError,
    MossError,
    PermissionDeniedError,
    RateLimitedError,
    TooLargeError,
)
from moss_voice.types import JobStatusResponse
from tests.faulty_proxy import Faults, FaultyProxy

NOW = datetime(2026, 11, 20, tzinfo=UTC)
SHA = "a" * 64
KEY = "mv_0123456789ab_secret-secret-secret"
IDLE_S = 0.05

# --- the server ------------------------------------------------------------------------------------


@dataclass
class Asked:
    """A request as it came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def bearer(self) -> str | None:
        return self.headers.get("authorization")


@dataclass
class Cut:
    """An answer after which, whole or not, the connection is closed."""

    raw: bytes = b""


@dataclass
class Early:
    """An answer before the request's body was read, after which the connection is closed."""

    raw: bytes


@dataclass
class Held:
    """An answer that waits."""

    raw: bytes
    until: asyncio.Event = field(default_factory=asyncio.Event)


Step = bytes | Cut | Early | Held | Callable[[Asked], bytes]


class Scripted:
    """A server that gives each request the next answer of its script; the last one again and again."""

    def __init__(self, *script: Step, tls: ssl.SSLContext | None = None) -> None:
        self.script = list(script)
        self.asked: list[Asked] = []
        self.connections = 0
        self.open = 0
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self.open += 1
        try:
            while await self._answer(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self.open -= 1
            self._tasks.discard(task)
            writer.close()
            with suppress(OSError, ssl.SSLError):
                await writer.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")[:-2]
        method, target, _ = first.split(" ")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines)
        }
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Early):
            self.asked.append(Asked(method, target, headers, b""))
            writer.write(step.raw)
            await writer.drain()
            return False
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        self.asked.append(asked := Asked(method, target, headers, body))
        if isinstance(step, Held):
            await step.until.wait()
            step = step.raw
        raw = (
            step.raw if isinstance(step, Cut) else step if isinstance(step, bytes) else step(asked)
        )
        if method == "HEAD":
            raw = raw.partition(b"\r\n\r\n")[0] + b"\r\n\r\n" if b"\r\n\r\n" in raw else raw
        writer.write(raw)
        await writer.drain()
        return not isinstance(step, Cut)


def reply(status: int, body: bytes | dict[str, Any] = b"", **headers: str) -> bytes:
    """Return an answer as bytes; a dict is sent as JSON."""
    if isinstance(body, dict):
        body = json.dumps(body).encode()
        headers.setdefault("Content_Type", "application/json")
    lines = [f"HTTP/1.1 {status} Whatever"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if status not in (204, 304) and "Content_Length" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if status in (204, 304) else body)


def refusal(status: int, code: str, message: str = "no", **headers: str) -> bytes:
    return reply(status, {"error": {"code": code, "message": message}}, **headers)


SENT = reply(201, {"sha256": SHA, "size_bytes": 1, "sent": True})
NOT_FOUND = refusal(404, "not_found")


class Waits:
    """Sleeps that take no time, on a clock of their own."""

    def __init__(self) -> None:
        self.slept: list[float] = []
        self.time = 1000.0

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds

    def clock(self) -> float:
        return self.time


@asynccontextmanager
async def talking(*script: Step, **options: Any) -> AsyncIterator[tuple[Scripted, HttpLog]]:
    """Start a scripted server and a log that talks to it."""
    waits = Waits()
    options = {"key": KEY, "sleep": waits.sleep, "clock": waits.clock, **options}
    async with Scripted(*script) as server:
        log = HttpLog(server.url, **options)
        try:
            yield server, log
        finally:
            await log.close()


def commit(version: int = 1, index: str = "call-42", **changes: Any) -> Commit:
    made = Commit(
        index=index,
        index_id="id",
        version=version,
        parent=version - 1,
        changed=version,
        replaced=None,
        model_id="m",
        dim=4,
        analyzer="en-1",
        segments=(),
        doc_count=0,
        created_at=NOW,
        updated_at=NOW,
        job_id="job",
    )
    return replace(made, **changes)


def plain(made: Commit) -> dict[str, Any]:
    fields: dict[str, Any] = json.loads(made.encode())
    return fields


def job(job_id: str = "job-1") -> JobStatusResponse:
    return JobStatusResponse(job_id, "running", 0.5, "embedding", None, NOW, NOW, None)


# Every call, with an answer that it takes.
CALLS: dict[str, tuple[Callable[[HttpLog], Awaitable[Any]], bytes]] = {
    "check": (lambda log: log.check_credentials("p", None), reply(200, {"project": "p"})),
    "head": (lambda log: log.head("p", "i"), reply(200, {"commit": None, "newest": 0})),
    "heads": (lambda log: log.heads("p"), reply(200, {"indexes": []})),
    "history": (lambda log: log.history("p", "i"), reply(200, {"commits": []})),
    "read_commit": (lambda log: log.read_commit("p", "call-42", 1), reply(200, plain(commit()))),
    "write_commit": (lambda log: log.write_commit("p", commit()), reply(201, {"version": 1})),
    "read_segment": (lambda log: read(log), reply(200, b"bytes")),  # noqa: PLW0108 - defined below
    "stored_at": (
        lambda log: log.segment_stored_at("p", "i", SHA),
        reply(200, X_Stored_At="2026-11-20T10:00:00.123456+00:00"),
    ),
    "segments": (lambda log: log.segments("p", "i"), reply(200, {"segments": []})),
    "delete_segment": (lambda log: log.delete_segment("p", "i", SHA), reply(200, {"gone": True})),
    "delete_index": (lambda log: log.delete_index("p", "i"), reply(204)),
    "collect": (lambda log: log.collect("p", "i", grace_s=86400.0, keep=10), reply(200, {"removed": 3})),
    "put_job": (lambda log: log.put_job("p", job()), reply(204)),
    "get_job": (
        lambda log: log.get_job("p", "job-1"),
        reply(
            200,
            {"job_id": "job-1", "status": "running", "progress": 0.5, "current_phase": "embedding",
             "error": None, "created_at": NOW.isoformat(), "updated_at": NOW.isoformat(),
             "completed_at": None},
        ),
    ),
}  # fmt: skip
EVERY = pytest.mark.parametrize(("call", "good"), CALLS.values(), ids=list(CALLS))


async def until(holds: Callable[[], object]) -> None:
    """Let others run until something has come about."""
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - what is waited for happens on the other side of a socket
            await asyncio.sleep(0.001)


def wait_until(holds: Callable[[], object]) -> None:
    """Do the same where there is no loop."""
    asyncio.run(until(holds))


async def read(log: HttpLog) -> bytes | None:
    parts = await log.read_segment("p", "i", SHA)
    return None if parts is None else b"".join([part async for part in parts])


# --- where it goes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sent"),
    [
        ("call-42", "call-42"),
        ("a/b", "a%2Fb"),
        (".", "%2E"),
        ("..", "%2E%2E"),
        ("...", "..."),
        ("a.b", "a.b"),
        ("%2e%2e", "%252e%252e"),
        ("a?b#c*", "a%3Fb%23c%2A"),
        ("a\\b", "a%5Cb"),
        (" con ", "%20con%20"),
        ("~x", "~x"),
        ("Ünï", "%C3%9Cn%C3%AF"),
        ("\U0001f44b", "%F0%9F%91%8B"),
        ("a;b&c=d+e", "a%3Bb%26c%3Dd%2Be"),
    ],
)
async def test_a_name_is_one_component(name: str, sent: str) -> None:
    """Any name arrives as one component of the path, whatever is in it, also behind a prefix."""
    async with Scripted(CALLS["head"][1]) as server:
        log = HttpLog(f"{server.url}/moss/", key=KEY)
        await log.head(name, name)
        assert server.asked[0].target == f"/moss/v1/projects/{sent}/indexes/{sent}/head"
        assert log.name == f"{server.url}/moss"
        await log.close()


async def test_names_that_cannot_be_are_not_sent() -> None:
    """What no server could hold, or no job could be called, is refused here."""
    async with talking(NOT_FOUND) as (server, log):
        for name in ("", " ", "a\nb", "x" * 201, "\ud800"):
            with pytest.raises(InvalidArgumentError, match="index name"):
                await log.head("p", name)
            with pytest.raises(InvalidArgumentError, match="project id"):
                await log.heads(name)
            with pytest.raises(InvalidArgumentError):
                log.watch("p", name)
        for job_id in ("", "../x", "a/b", "\ud800", "x" * 101):
            with pytest.raises(JobNotFoundError):
                await log.get_job("p", job_id)
        assert server.asked == []


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host",
        "host:8000",
        "http://",
        "https:///path",
        "http://host:port",
        "http://host:99999",
        "http://[::1",
        "https://host/?key=hunter2",
        "https://host/#hunter2",
        "https://me:hunter2@host/",
        "https://hunter2@host",
        "https://hunter2@",
        "http://ho\nst/hunter2",
    ],
)
def test_urls_that_are_refused(url: str) -> None:
    """What is no address of a server, or holds a secret, is refused and not quoted."""
    with pytest.raises(InvalidArgumentError, match="cloud: expected http") as caught:
        HttpLog(url)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://moss.example.com", "https://moss.example.com"),
        ("HTTPS://Moss.Example.com/", "https://moss.example.com"),
        ("http://127.0.0.1:8765/a/b/", "http://127.0.0.1:8765/a/b"),
        ("http://[::1]:8765", "http://[::1]:8765"),
    ],
)
def test_names_of_servers(url: str, name: str) -> None:
    """A log is called by its server's address, and opening it touches nothing."""
    log = HttpLog(url, key=KEY)
    assert log.name == name
    assert repr(log) == f"<HttpLog {name}>"
    assert KEY not in repr(vars(log).keys())


async def test_the_users_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that the environment names is gone through: it may be the only way out."""
    async with Scripted(CALLS["head"][1]) as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        log = HttpLog("http://moss.invalid", key=KEY)
        assert await log.head("p", "i") == Head(None, 0)
        assert proxy.asked[0].target == "http://moss.invalid/v1/projects/p/indexes/i/head"
        await log.close()


@EVERY
async def test_a_redirect_is_an_error_and_takes_no_key_along(
    call: Callable[[HttpLog], Awaitable[Any]], good: bytes
) -> None:
    """The key goes to one address alone: who points elsewhere is told of, by host and no more."""
    async with Scripted(good) as elsewhere:
        away = reply(307, Location=f"{elsewhere.url}/hunter2?token=hunter2")
        async with talking(away) as (_, log):
            with pytest.raises(CloudUnavailableError, match=r"307.*127\.0\.0\.1") as caught:
                await call(log)
            assert "hunter2" not in str(caught.value)
        assert elsewhere.asked == []


async def test_an_untrusted_certificate_is_told_at_once(tmp_path: Path) -> None:
    """A server that cannot show who it is gets nothing, and is not asked again."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(self_signed(tmp_path))
    waits = Waits()
    async with Scripted(CALLS["head"][1], tls=tls) as server:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # the server's complaint
        log = HttpLog(server.url, key=KEY, sleep=waits.sleep)
        with pytest.raises(CloudUnavailableError, match="certificate is not trusted: self"):
            await log.head("p", "i")
        assert (server.asked, waits.slept) == ([], [])
        await log.close()


def self_signed(folder: Path) -> Path:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = folder / "both.pem"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


# --- who asks --------------------------------------------------------------------------------------


@EVERY
async def test_the_key_goes_along(call: Callable[[HttpLog], Awaitable[Any]], good: bytes) -> None:
    """Every call carries the key, asks for bytes as they are, and is answered."""
    async with talking(good) as (server, log):
        await call(log)
        assert [asked.bearer for asked in server.asked] == [f"Bearer {KEY}"] * len(server.asked)
        assert server.asked[0].headers["accept-encoding"] == "identity"


@pytest.mark.parametrize(
    "key", ["a b", " a", "a\n", "a\r\nX: y", "schlüssel", "\ud800", "\0", "a\x7f"]
)
async def test_keys_that_no_header_carries(key: str) -> None:
    """A key that would be cut, changed, or read as another header is refused, and not quoted."""
    with pytest.raises(AuthenticationError, match="the project key: expected") as caught:
        HttpLog("http://host", key=key)
    assert key.strip() not in str(caught.value).partition("expected")[0]
    async with talking(NOT_FOUND) as (server, log):
        with pytest.raises(AuthenticationError, match="the project key: expected"):
            await log.check_credentials("p", key)
        assert server.asked == []


async def test_check_credentials() -> None:
    """The server says whom a key opens; without a project or a key it is told what to set."""
    async with talking(CALLS["check"][1]) as (server, log):
        assert await log.check_credentials("p", None) == "p"
        assert await log.check_credentials("p", "mv_other") == "p"
        assert [asked.bearer for asked in server.asked] == [f"Bearer {KEY}", "Bearer mv_other"]
        assert {asked.target for asked in server.asked} == {"/v1/projects/p"}
        for missing in (None, ""):
            with pytest.raises(AuthenticationError, match="MOSS_PROJECT_ID"):
                await log.check_credentials(missing, "mv_other")
        with pytest.raises(CorruptDataError, match="another project"):
            await log.check_credentials("q", None)
    async with talking(CALLS["check"][1], key=None) as (server, log):
        for absent in (None, ""):
            with pytest.raises(AuthenticationError, match="MOSS_PROJECT_KEY"):
                await log.check_credentials("p", absent)
        assert server.asked == []
    async with talking(refusal(401, "authentication", "expected a valid key")) as (server, log):
        with pytest.raises(AuthenticationError, match=r"MOSS_PROJECT_KEY.*expected a valid key"):
            await log.check_credentials("p", None)
        assert len(server.asked) == 1


class Tokens:
    """An authenticator that counts."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked = 0

    async def __call__(self) -> str:
        self.asked += 1
        await asyncio.sleep(0.01)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, BaseException):
            raise answer
        token: str = answer
        return token


def only(token: str, good: bytes) -> Callable[[Asked], bytes]:
    """Answer those who bring a token."""
    return lambda asked: (
        good if asked.bearer == f"Bearer {token}" else refusal(401, "authentication")
    )


async def test_a_token_is_kept_until_it_is_refused() -> None:
    """The authenticator is asked once, and once more when its token has run out."""
    tokens = Tokens("one", "two")
    good = CALLS["head"][1]
    async with talking(only("one", good), only("one", good), only("two", good),
                       authenticator=tokens, key=None) as (server, log):  # fmt: skip
        for _ in range(4):
            await log.head("p", "i")
        assert tokens.asked == 2
        bearers = [asked.bearer for asked in server.asked]
        assert bearers == ["Bearer one"] * 3 + ["Bearer two"] * 2


async def test_many_that_are_refused_ask_once() -> None:
    """Of thirty calls whose token has run out, one asks for another, and all go on with it."""
    tokens = Tokens("one", "two")
    async with talking(only("two", CALLS["head"][1]), authenticator=tokens) as (_, log):
        await asyncio.gather(*(log.head("p", f"i-{n}") for n in range(30)))
        assert tokens.asked == 2


async def test_a_token_that_stays_refused_is_an_error() -> None:
    """A new token that is refused too ends the call; the next call begins anew."""
    tokens = Tokens("one", "two", "three", "four")
    async with talking(only("four", CALLS["head"][1]), authenticator=tokens) as (server, log):
        with pytest.raises(AuthenticationError, match="refused the authenticator's token"):
            await log.head("p", "i")
        assert (tokens.asked, len(server.asked)) == (2, 2)
        with pytest.raises(AuthenticationError):
            await log.head("p", "i")
        assert await log.head("p", "i") == Head(None, 0)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (ValueError("hunter2"), "raised ValueError"),
        (ConnectionError("hunter2"), "raised ConnectionError"),
        (CloudUnavailableError("hunter2"), "raised CloudUnavailableError"),
        (None, "returned a NoneType"),
        (b"hunter2", "returned a bytes"),
        ("", "token: expected"),
        ("hunter2\r\nX: y", "token: expected"),
    ],
)
async def test_authenticators_that_fail(answer: Any, told: str) -> None:
    """One that raises, or returns no token, is told of by kind; what it said is not."""
    async with talking(NOT_FOUND, authenticator=Tokens(answer, "good")) as (server, log):
        with pytest.raises(AuthenticationError, match=told) as caught:
            await log.head("p", "i")
        assert "hunter2" not in str(caught.value)
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
        assert server.asked == []


async def test_cancelling_the_one_who_asks_for_a_token_stops_nobody_else() -> None:
    """Whoever waited for the cancelled one's token asks in its place."""
    tokens = Tokens("one")
    async with talking(CALLS["head"][1], authenticator=tokens) as (_, log):
        first = asyncio.create_task(log.head("p", "i"))
        second = asyncio.create_task(log.head("p", "i"))
        await until(lambda: tokens.asked)
        first.cancel()
        assert await second == Head(None, 0)
        with pytest.raises(asyncio.CancelledError):
            await first


# --- what comes back -------------------------------------------------------------------------------


async def test_head_is_cheap_where_nothing_changed() -> None:
    """What was answered once is known by its tag; a 304 gives it, a new answer replaces it."""
    one, two = commit(1), commit(2)
    async with talking(
        reply(200, {"commit": plain(one), "newest": 1}, ETag='"a"'),
        reply(304, ETag='"a"'),
        reply(200, {"commit": plain(two), "newest": 3}, ETag='"b"'),
        reply(304),
    ) as (server, log):
        assert await log.head("p", "call-42") == Head(one, 1)
        assert await log.head("p", "call-42") == Head(one, 1)
        assert await log.head("p", "call-42") == Head(two, 3)
        assert await log.head("p", "call-42") == Head(two, 3)
        tags = [asked.headers.get("if-none-match") for asked in server.asked]
        assert tags == [None, '"a"', '"a"', '"b"']


async def test_heads_known_are_bounded_and_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tags belong to one index of one project, and only so many are kept."""
    monkeypatch.setattr("moss_voice.cloud.http.resources._REMEMBERED", 3)
    good = reply(200, {"commit": None, "newest": 0}, ETag='"a"')
    async with talking(good) as (server, log):
        for project, index in [("p", "0"), ("q", "0"), *(("p", str(n)) for n in range(1, 5))]:
            await log.head(project, index)
        assert all("if-none-match" not in asked.headers for asked in server.asked)
        await log.head("p", "4")
        await log.head("p", "0")
        assert [a.headers.get("if-none-match") for a in server.asked[-2:]] == ['"a"', None]


async def test_a_304_that_nobody_asked_for() -> None:
    """Where nothing is known, "nothing changed" is no answer."""
    async with talking(reply(304)) as (_, log):
        with pytest.raises(CloudUnavailableError):
            await log.head("p", "i")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"[" * 100_000,
        b"\xff\xfe",
        b'{"commit": null}',
        b'{"commit": null, "newest": -1}',
        b'{"commit": null, "newest": true}',
        b'{"commit": null, "newest": 1.0}',
        b'{"commit": null, "newest": "1"}',
        b'{"commit": 3, "newest": 3}',
        b'{"commit": {}, "newest": 3}',
        json.dumps({"commit": plain(commit(3)), "newest": 2}).encode(),
        json.dumps({"commit": plain(commit(3, "call-43")), "newest": 3}).encode(),
        json.dumps({"commit": {**plain(commit(3)), "version": 1e400}, "newest": 3}).encode(),
        json.dumps({"commit": {**plain(commit(3)), "index": "\ud800"}, "newest": 3}).encode(),
    ],
)
async def test_a_head_that_makes_no_sense(body: bytes) -> None:
    """An answer that is no head of this index is damage, and is not believed."""
    async with talking(reply(200, body, Content_Type="application/json")) as (_, log):
        with pytest.raises(CorruptDataError):
            await log.head("p", "call-42")


async def test_a_newer_format_is_told() -> None:
    """A commit of a format that is not known yet says so, whichever way it came."""
    fields = {**plain(commit()), "format": 99}
    async with talking(
        reply(200, {"commit": fields, "newest": 1}),
        reply(200, fields),
        reply(200, {"commits": [fields]}),
    ) as (_, log):
        for call in (log.head("p", "call-42"), log.read_commit("p", "call-42", 1),
                     log.history("p", "call-42")):  # fmt: skip
            with pytest.raises(FormatVersionError):
                await call


async def test_read_commit() -> None:
    """A version is the one that was asked for, or none, or an error."""
    async with talking(
        reply(200, plain(commit(7))), NOT_FOUND, reply(200, plain(commit(8))),
        reply(200, plain(commit(7, "call-43"))), reply(200, b"{}", Content_Type="application/json"),
    ) as (server, log):  # fmt: skip
        assert await log.read_commit("p", "call-42", 7) == commit(7)
        assert await log.read_commit("p", "call-42", 7) is None
        for _ in range(3):
            with pytest.raises(CorruptDataError):
                await log.read_commit("p", "call-42", 7)
        assert server.asked[0].target == "/v1/projects/p/indexes/call-42/commits/7"


async def test_lists_of_commits() -> None:
    """Lists are checked item by item, and come in their order; large ones are read beside the loop."""
    many = [commit(version) for version in range(1, 400)]
    async with talking(
        reply(200, {"commits": [plain(each) for each in many[::-1]]}),
        reply(200, {"indexes": [plain(commit(1, name)) for name in "ba"]}),
        reply(200, {"commits": [plain(commit(1, "other"))]}),
        reply(200, {"commits": None}),
        reply(200, {"commits": [1]}),
    ) as (_, log):
        assert await log.history("p", "call-42") == many
        assert [each.index for each in await log.heads("p")] == ["a", "b"]
        for _ in range(3):
            with pytest.raises(CorruptDataError):
                await log.history("p", "call-42")


async def test_segments_that_are_stored() -> None:
    """A listing tells hash, size and time of each segment, or is damage."""
    good: dict[str, Any] = {"sha256": SHA, "size_bytes": 5, "at": "2026-11-20T00:00:00Z", "more": 1}
    bad: list[dict[str, Any]] = [
        {"sha256": "../x"},
        {"at": "2026-11-20T00:00:00"},
        {"at": None},
        {"size_bytes": -1},
        {"sha256": 1},
    ]
    async with talking(
        reply(200, {"segments": [good]}),
        *(reply(200, {"segments": [{**good, **fault}]}) for fault in bad),
        reply(200, {"segments": [None]}),
    ) as (_, log):
        assert await log.segments("p", "i") == [StoredSegment(SHA, 5, NOW)]
        for _ in range(len(bad) + 1):
            with pytest.raises(CorruptDataError):
                await log.segments("p", "i")


async def test_jobs() -> None:
    """A job comes back as it was sent; none, or a record of something else, is our error."""
    async with talking(
        reply(204), CALLS["get_job"][1], refusal(404, "job_not_found"), reply(200, {"job_id": 1})
    ) as (server, log):
        await log.put_job("p", job())
        assert await log.get_job("p", "job-1") == job()
        with pytest.raises(JobNotFoundError, match="job-1"):
            await log.get_job("p", "job-1")
        with pytest.raises(CorruptDataError):
            await log.get_job("p", "job-1")
        assert (server.asked[0].method, server.asked[0].target) == (
            "PUT",
            "/v1/projects/p/jobs/job-1",
        )
        assert json.loads(server.asked[0].body)["status"] == "running"


async def test_collecting_and_deleting() -> None:
    """What was removed is told; what is not there is told too."""
    async with talking(
        reply(200, {"removed": 3}), reply(200, {"removed": None}), reply(200, {"gone": False}),
        reply(200, {"gone": 1}), reply(204), refusal(404, "index_not_found"),
    ) as (server, log):  # fmt: skip
        assert await log.collect("p", "i", grace_s=7200.0, keep=2) == 3
        assert json.loads(server.asked[0].body) == {"grace_s": 7200.0, "keep": 2}
        with pytest.raises(CorruptDataError):
            await log.collect("p", "i", grace_s=7200.0, keep=2)
        assert await log.delete_segment("p", "i", SHA) is False
        with pytest.raises(CorruptDataError):
            await log.delete_segment("p", "i", SHA)
        await log.delete_index("p", "i")
        with pytest.raises(IndexNotFoundError, match="'i'"):
            await log.delete_index("p", "i")


@pytest.mark.parametrize("name", [name for name in CALLS if name != "read_segment"])
async def test_a_page_is_no_answer(name: str) -> None:
    """A page of a gate to the network, which answers everybody with 200, is an outage: nothing is stored."""
    page = reply(200, b"<html>hunter2</html>", Content_Type="text/html")
    async with talking(page) as (_, log):
        with pytest.raises(CloudUnavailableError, match="is the URL right") as caught:
            await CALLS[name][0](log)
        assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in CALLS if name != "stored_at"])
async def test_a_strangers_404_is_no_answer(name: str) -> None:
    """Where the URL is wrong nothing is there, and that is an outage: not an index that is empty."""
    async with talking(reply(404, b"<html>hunter2</html>")) as (_, log):
        with pytest.raises(CloudUnavailableError, match="is the URL right"):
            await CALLS[name][0](log)


async def test_what_was_stored_is_confirmed() -> None:
    """An answer about another version or segment than was sent confirms nothing."""
    async with talking(reply(201, {"version": 2})) as (_, log):
        with pytest.raises(CloudUnavailableError):
            await log.write_commit("p", commit(1))
    async with talking(NOT_FOUND, reply(201, {"sha256": "b" * 64})) as (_, log):
        with pytest.raises(CloudUnavailableError):
            await log.write_segment("p", "i", SHA, b"x")


# --- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_argument", InvalidArgumentError),
        (400, "corrupt_data", CorruptDataError),
        (400, "format_version", FormatVersionError),
        (400, "model_mismatch", ModelMismatchError),
        (400, "something_new", InvalidArgumentError),
        (401, "authentication", AuthenticationError),
        (403, "permission_denied", PermissionDeniedError),
        (403, "something_new", PermissionDeniedError),
        (404, "something_new", CloudUnavailableError),
        (405, "method_not_allowed", CloudUnavailableError),
        (408, "invalid_argument", CloudUnavailableError),
        (409, "encrypted", EncryptionKeyError),
        (409, "conflict", ConflictError),
        (409, "something_new", CloudUnavailableError),
        (413, "too_large", TooLargeError),
        (413, "something_new", TooLargeError),
        (418, "something_new", CloudUnavailableError),
        (429, "rate_limited", RateLimitedError),
        (429, "too_large", TooLargeError),
        (500, "error", CloudUnavailableError),
        (500, "corrupt_data", CorruptDataError),
        (503, "cloud_unavailable", CloudUnavailableError),
        (302, "something_new", CloudUnavailableError),
        (206, "something_new", CloudUnavailableError),
    ],
)
async def test_errors_by_status_and_code(status: int, code: str, kind: type[MossError]) -> None:
    """Each refusal becomes the error that names it, with the server's own message and its address."""
    async with talking(refusal(status, code, "what to do")) as (server, log):
        with pytest.raises(kind) as caught:
            await log.heads("p")
        assert type(caught.value) is kind
        assert server.url in str(caught.value)
        if not 300 <= status < 400:
            assert "what to do" in str(caught.value)
        passing = status in (408, 429, 500, 503) and isinstance(caught.value, CloudUnavailableError)
        assert len(server.asked) == (4 if passing else 1)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>hunter2</html>",
        b"",
        b"hunter2" * 100_000,
        b'{"error": "hunter2"}',
        b'{"error": {"code": 1, "message": "hunter2"}}',
        b'{"error": {"code": "error", "message": ["hunter2"]}}',
        b'{"detail": "hunter2"}',
        b'["hunter2"]',
        b'"hunter2"',
        b"null",
        b"[" * 60_000,
        b"\xff\x00hunter2",
    ],
)
async def test_foreign_errors_are_not_quoted(body: bytes) -> None:
    """Of a body that is no error of ours nothing is told but the status."""
    for status, kind in ((400, InvalidArgumentError), (502, CloudUnavailableError),
                         (401, AuthenticationError), (413, TooLargeError)):  # fmt: skip
        async with talking(reply(status, body)) as (_, log):
            with pytest.raises(kind) as caught:
                await log.heads("p")
            assert "hunter2" not in str(caught.value)


async def test_messages_are_one_short_line() -> None:
    """What the server says is shown as text: no control character steers a terminal or splits a log."""
    said = "a\r\nb\x1b[31mc\0d\u202ee\x85f" + "x" * 1000
    async with talking(refusal(400, "invalid_argument", said)) as (_, log):
        with pytest.raises(InvalidArgumentError) as caught:
            await log.heads("p")
        message = str(caught.value)
        assert message.isprintable()
        assert "a  b [31mc d e f" in message
        assert len(message) < 400


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_answers_without_an_end(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an answer that goes on for ever so much is read as one of ours could be, and no more."""
    monkeypatch.setattr("moss_voice.cloud.http.asking._MAX_JSON_BYTES", 1 << 18)
    poured = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal poured
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(status, Content_Length="99999999999", Content_Type="application/json"))
        with suppress(OSError):
            while True:
                writer.write(b" " * 10_000)
                await writer.drain()
                poured += 10_000
        writer.close()

    async with await asyncio.start_server(pour, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        log = HttpLog(f"http://127.0.0.1:{port}", key=KEY, retries=0)
        with pytest.raises(CloudUnavailableError):
            await log.heads("p")
        await log.close()
    assert poured < 1 << 24


# --- trying again ----------------------------------------------------------------------------------


@EVERY
@pytest.mark.parametrize(
    "fault",
    [
        Cut(),
        Cut(b"HTTP/1.1 200 OK\r\n"),
        Cut(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"),
        Cut(b"SSH-2.0-OpenSSH_9.9\r\n"),
        reply(500),
        reply(503, b"<html>"),
        refusal(503, "cloud_unavailable"),
        reply(504),
        reply(429, Retry_After="0"),
        refusal(408, "invalid_argument"),
    ],
    ids=[
        "cut",
        "half a head",
        "no body",
        "no HTTP",
        "500",
        "503",
        "store",
        "504",
        "429",
        "408",
    ],
)
async def test_what_passes_is_tried_again(
    call: Callable[[HttpLog], Awaitable[Any]], good: bytes, fault: Step
) -> None:
    """Every call survives three faults that may pass, and does what it would have done at once."""
    async with talking(good) as (_, log):
        expected = await call(log)
    async with talking(fault, fault, fault, good) as (server, log):
        if CALLS["stored_at"][1] == good and isinstance(fault, Cut) and b"99" in fault.raw:
            return  # the whole answer to a HEAD
        assert await call(log) == expected
        assert len(server.asked) == 4
        assert len({(asked.method, asked.target, asked.body) for asked in server.asked}) == 1


@EVERY
async def test_no_fifth_try(call: Callable[[HttpLog], Awaitable[Any]], good: bytes) -> None:
    """A server that never answers is an outage, after growing, random waits of at most 1.4 s in all."""
    waits = Waits()
    async with talking(Cut(), sleep=waits.sleep, clock=waits.clock) as (server, log):
        with pytest.raises(CloudUnavailableError, match="connection was cut") as caught:
            await call(log)
        assert server.url in str(caught.value)
        assert len(server.asked) == 4
        assert all(0 <= s <= most for s, most in zip(waits.slept, (0.2, 0.4, 0.8), strict=True))


async def test_a_dead_host_is_told_fast() -> None:
    """Where nobody listens it is said so, by name, within the same short time."""
    async with Scripted(b"") as server:
        url = server.url
    waits = Waits()
    log = HttpLog(url, key=KEY, sleep=waits.sleep, clock=waits.clock)
    with pytest.raises(CloudUnavailableError, match=r"127\.0\.0\.1:\d+: Connection refused"):
        await log.head("p", "i")
    assert sum(waits.slept) <= 1.4
    await log.close()


async def test_the_server_says_how_long_to_wait() -> None:
    """`Retry-After` is waited for where there is time, and told where there is not."""
    waits = Waits()
    good = CALLS["head"][1]
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=4), usegmt=True)
    async with talking(
        refusal(429, "rate_limited", Retry_After="3"), refusal(503, "cloud_unavailable", Retry_After=soon),
        good, refusal(429, "rate_limited", Retry_After="60"), good,
        sleep=waits.sleep, clock=waits.clock,
    ) as (server, log):  # fmt: skip
        await log.head("p", "i")
        assert 3.0 <= waits.slept[0] <= 3.2
        assert 1.0 <= waits.slept[1] <= 4.5
        with pytest.raises(RateLimitedError) as caught:
            await log.head("p", "i")
        assert caught.value.retry_after_s == 60.0
        assert (len(server.asked), len(waits.slept)) == (4, 2)


@pytest.mark.parametrize("said", ["-1", "soon", "1e9", "9" * 400, "\xb2", ""])
async def test_a_wait_that_makes_no_sense(said: str) -> None:
    """A `Retry-After` that cannot be read counts as none."""
    async with talking(reply(429, Retry_After=said), CALLS["head"][1]) as (_, log):
        assert await log.head("p", "i") == Head(None, 0)


async def test_the_budget_bounds_all_tries() -> None:
    """Tries that take long leave less time for further ones."""
    waits = Waits()

    def slow(asked: Asked) -> bytes:
        waits.time += 6.0
        return reply(503)

    async with talking(slow, sleep=waits.sleep, clock=waits.clock) as (server, log):
        with pytest.raises(CloudUnavailableError):
            await log.head("p", "i")
        assert len(server.asked) == 2


async def test_no_retries_where_none_are_wanted() -> None:
    """Who tries again itself may switch it off."""
    async with talking(reply(503), retries=0) as (server, log):
        with pytest.raises(CloudUnavailableError):
            await log.head("p", "i")
        assert len(server.asked) == 1


async def test_write_commit() -> None:
    """A number that was free, or holds this very commit, is won; another's is lost, which is no error."""
    made = commit(7)
    async with talking(
        reply(201, {"version": 7}), reply(200, {"version": 7}), refusal(409, "conflict"),
        Cut(), reply(200, {"version": 7}), refusal(400, "model_mismatch"),
    ) as (server, log):  # fmt: skip
        assert [await log.write_commit("p", made) for _ in range(4)] == [True, True, False, True]
        with pytest.raises(ModelMismatchError):
            await log.write_commit("p", made)
        assert {asked.body for asked in server.asked} == {made.encode()}
        assert server.asked[0].target == "/v1/projects/p/indexes/call-42/commits/7"


async def test_a_deletion_whose_answer_was_lost_is_done() -> None:
    """What is gone after a try that may have arrived was deleted by it; else it was never there."""
    gone = refusal(404, "index_not_found")
    async with talking(Cut(), gone, reply(429), gone) as (_, log):
        await log.delete_index("p", "i")
        await log.delete_index("p", "i")
    async with talking(Cut(), NOT_FOUND) as (_, log):
        assert await log.delete_segment("p", "i", SHA) is True
    async with talking(gone) as (_, log):
        with pytest.raises(IndexNotFoundError):
            await log.delete_index("p", "i")


# --- time ------------------------------------------------------------------------------------------


async def test_a_silent_server_is_told() -> None:
    """A server that takes the request and says nothing counts as not answering, in the time given."""
    async with talking(Held(b""), retries=0, timeouts=Timeouts(read_s=IDLE_S)) as (server, log):
        with pytest.raises(CloudUnavailableError, match=r"did not answer within 0\.05 s"):
            await log.head("p", "i")
    half = Cut(reply(200, b"half", Content_Length="9"))
    waiting = Held(half.raw)
    async with talking(waiting, retries=0, timeouts=Timeouts(read_s=IDLE_S)) as (server, log):
        waiting.until.set()
        with pytest.raises(CloudUnavailableError, match="did not answer within"):
            await read(log)
        assert len(server.asked) == 1


async def test_slow_work_has_more_time() -> None:
    """A collection goes through a whole index, and is waited for."""
    waiting = Held(reply(200, {"removed": 1}))
    times = Timeouts(read_s=IDLE_S, slow_s=30.0)
    async with talking(waiting, retries=0, timeouts=times) as (_, log):
        asyncio.get_running_loop().call_later(4 * IDLE_S, waiting.until.set)
        assert await log.collect("p", "i", grace_s=86400.0, keep=10) == 1


# --- segments down ---------------------------------------------------------------------------------


def ranged(data: bytes, *cuts: int) -> Callable[[Asked], bytes]:
    """Answer with a segment and its ranges, as the server would; whole, whatever the script makes of it."""

    def answer(asked: Asked) -> bytes:
        span = asked.headers.get("range")
        if span is None:
            return reply(200, data)
        start = int(span.removeprefix("bytes=").removesuffix("-"))
        if start >= len(data):
            return reply(416, Content_Range=f"bytes */{len(data)}")
        told = f"bytes {start}-{len(data) - 1}/{len(data)}"
        return reply(206, data[start:], Content_Range=told)

    return answer


class Breaking(Scripted):
    """A server whose connections break after so many bytes of a body, again and again."""

    def __init__(self, data: bytes, every: int, *, ranges: bool, times: int = 10**9) -> None:
        super().__init__(b"")
        self.data, self.every, self.ranges, self.times = data, every, ranges, times

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        span = [line for line in head.split("\r\n") if line.lower().startswith("range: ")]
        start = int(span[0].split("=")[1].rstrip("-")) if span and self.ranges else 0
        self.asked.append(Asked("GET", head.split(" ")[1], {"range": str(span)}, b""))
        rest = self.data[start:]
        told = (
            {"Content_Range": f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"}
            if start
            else {}
        )
        raw = reply(206 if start else 200, rest, **told)
        length = len(raw) - len(rest)
        # Without ranges each answer goes further than the one before.
        reach = self.every if self.ranges else self.every * len(self.asked)
        breaks = len(self.asked) <= self.times and reach < len(rest)
        writer.write(raw[: length + reach] if breaks else raw)
        await writer.drain()
        return not breaks


DATA = bytes(range(256)) * 16


async def test_a_download_that_breaks_anywhere_goes_on() -> None:
    """Wherever a connection breaks, the rest is fetched, and what was had is not had twice."""
    whole = reply(200, DATA[:40])
    for cut in range(len(whole)):
        async with talking(Cut(whole[:cut]), ranged(DATA[:40])) as (server, log):
            assert await read(log) == DATA[:40]
            had = max(cut - (len(whole) - 40), 0)
            assert server.asked[1].headers.get("range") == (f"bytes={had}-" if had else None)


async def test_a_server_without_ranges_sends_all_again() -> None:
    """Where ranges are not known, what was had is passed over."""
    for cut in (1, 40, 400, 4000):
        broken = Cut(reply(200, DATA)[: -(len(DATA) - cut)])
        async with talking(broken, broken, reply(200, DATA)) as (_, log):
            assert await read(log) == DATA


async def test_a_download_whose_end_alone_was_lost() -> None:
    """All bytes came, and the end of the chunked answer did not: that is all there is."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with talking(Cut(head + b"5\r\nhello\r\n"), ranged(b"hello")) as (server, log):
        assert await read(log) == b"hello"
        assert server.asked[1].headers["range"] == "bytes=5-"


async def test_a_download_that_gets_on_may_break_often() -> None:
    """A long download over a bad line ends; one that gets no further does not go on for ever."""
    data = DATA * 1024  # 4 MiB
    for ranges in (True, False):
        async with Breaking(data, 700_000, ranges=ranges) as server:
            waits = Waits()
            log = HttpLog(server.url, key=KEY, sleep=waits.sleep, clock=waits.clock)
            assert await read(log) == data
            assert len(server.asked) > 4
            await log.close()
    async with Breaking(data, 1000, ranges=True) as server:
        waits = Waits()
        log = HttpLog(server.url, key=KEY, sleep=waits.sleep, clock=waits.clock)
        with pytest.raises(CloudUnavailableError):
            await read(log)
        assert len(server.asked) == 4
        await log.close()


async def test_another_part_than_was_asked_for() -> None:
    """A range from elsewhere is not taken for the rest."""
    half = Cut(reply(200, DATA)[:-100])
    for told in ("bytes 0-99/4096", "", "bytes 39-4095/4096", "pages 3996-4095/4096"):
        async with talking(half, reply(206, DATA[-100:], Content_Range=told)) as (_, log):
            with pytest.raises(CloudUnavailableError):
                await read(log)


async def test_a_segment_that_vanishes_while_it_is_read() -> None:
    """A segment that was collected in the middle of a download is gone, which is no outage."""
    async with talking(Cut(reply(200, DATA)[:-100]), NOT_FOUND) as (_, log):
        with pytest.raises(CorruptDataError, match="vanished"):
            await read(log)


async def test_a_segment_that_is_not_there() -> None:
    """None, and from a stranger's 404 an outage."""
    async with talking(NOT_FOUND, reply(404)) as (_, log):
        assert await read(log) is None
        with pytest.raises(CloudUnavailableError):
            await read(log)


async def test_a_download_that_is_left_lets_go() -> None:
    """Whoever stops reading, or never begins, leaves no connection behind."""
    async with talking(reply(200, DATA * 1000)) as (server, log):
        parts = await log.read_segment("p", "i", SHA)
        assert parts is not None
        async for _ in parts:
            break
        del parts
        never = await log.read_segment("p", "i", SHA)
        del never
        gc.collect()
        await until(lambda: not server.open)
        assert await read(log) == DATA * 1000


async def test_cloud_checks_what_was_fetched() -> None:
    """Through `Cloud` a broken download ends whole and checked, with its progress told."""
    data = DATA * 100
    ref = SegmentRef(hashlib.sha256(data).hexdigest(), len(data), 1, 0)
    seen: list[int] = []
    async with talking(Cut(reply(200, data)[:-1000]), ranged(data), reply(200, data[:-1] + b"x"),
                       reply(200, data + b"more")) as (_, log):  # fmt: skip
        cloud = Cloud(log)
        got = await cloud.fetch_segment("p", "i", ref, on_received=lambda n, _: seen.append(n))
        assert got == data
        assert seen == sorted(seen)
        assert seen[-1] == len(data)
        for _ in range(2):
            with pytest.raises(CorruptDataError, match=ref.sha256[:12]):
                await cloud.fetch_segment("p", "i", ref)


# --- segments up -----------------------------------------------------------------------------------


def stored(age_s: float, *, now: datetime = NOW) -> bytes:
    at = now - timedelta(seconds=age_s)
    return reply(200, X_Stored_At=at.isoformat(), Date=format_datetime(now, usegmt=True))


async def test_write_segment() -> None:
    """A segment goes up in parts, of a told length, with its progress, from whatever holds it."""
    data = DATA * 300
    told: list[tuple[int, int]] = []
    async with talking(NOT_FOUND, SENT, NOT_FOUND, reply(200, {"sha256": SHA}), NOT_FOUND, SENT,
                       on_sent=lambda sent, of: told.append((sent, of))) as (server, log):  # fmt: skip
        assert await log.write_segment("p", "i", SHA, memoryview(data))
        assert await log.write_segment("p", "i", SHA, b"small")
        assert await log.write_segment("p", "i", SHA, b"")
        head, put = server.asked[:2]
        assert (head.method, put.method) == ("HEAD", "PUT")
        assert head.target == put.target == f"/v1/projects/p/indexes/i/segments/{SHA}"
        assert put.headers["content-length"] == str(len(data))
        assert "transfer-encoding" not in put.headers
        assert put.body == data
        assert server.asked[3].body == b"small"
    assert told[-2] == (len(data), len(data))
    assert [sent for sent, _ in told[:-1]] == sorted({sent for sent, _ in told[:-1]})
    assert len(told) > 4


async def test_a_young_segment_is_not_sent_again() -> None:
    """One that is there is relied on for an hour, by the server's clock and not by ours."""
    for now in (NOW, datetime(2001, 1, 1, tzinfo=UTC), datetime(2090, 1, 1, tzinfo=UTC)):
        async with talking(stored(3500, now=now), stored(3700, now=now), SENT) as (
            server,
            log,
        ):
            assert await log.write_segment("p", "i", SHA, b"x") is False
            assert await log.write_segment("p", "i", SHA, b"x") is True
            assert [asked.method for asked in server.asked] == ["HEAD", "HEAD", "PUT"]


async def test_when_a_segment_was_stored() -> None:
    """The exact time where it is told, the header of all HTTP else, and never a guess."""
    about = format_datetime(NOW, usegmt=True)
    async with talking(
        reply(200, X_Stored_At="2026-11-20T10:00:00.123456+02:00"), reply(200, Last_Modified=about),
        reply(200, X_Stored_At="yesterday", Last_Modified=about),
        reply(200, X_Stored_At="2026-11-20T10:00:00", Last_Modified=about),
        reply(404), reply(200, {"sha256": SHA}), reply(200, Last_Modified="yesterday"),
    ) as (_, log):  # fmt: skip
        exact = await log.segment_stored_at("p", "i", SHA)
        assert exact == datetime(2026, 11, 20, 8, 0, 0, 123456, tzinfo=UTC)
        for _ in range(3):
            assert await log.segment_stored_at("p", "i", SHA) == NOW
        assert await log.segment_stored_at("p", "i", SHA) is None
        for _ in range(2):
            with pytest.raises(CloudUnavailableError):
                await log.segment_stored_at("p", "i", SHA)


async def test_an_upload_that_is_refused_early_is_told() -> None:
    """A server that does not want the bytes says so before they have all come, and is heard."""
    async with talking(NOT_FOUND, Early(refusal(413, "too_large", "at most 1 MiB"))) as (_, log):
        with pytest.raises(TooLargeError, match="at most 1 MiB"):
            await log.write_segment("p", "i", SHA, b"x" * 100_000)


async def test_an_upload_that_breaks_is_sent_again_whole() -> None:
    """A try after a broken upload begins at the beginning."""
    data = DATA * 300
    async with talking(NOT_FOUND, Cut(), reply(503), SENT) as (server, log):
        assert await log.write_segment("p", "i", SHA, data)
        assert [asked.body == data for asked in server.asked] == [False, True, True, True]


# --- being told ------------------------------------------------------------------------------------

EVENTS = (
    b'\xef\xbb\xbf: hello\r\n\r\nevent: version\ndata: {"version": 1}\n\n'
    b':\rid: 7\rretry: 10\revent:version\rdata:{\rdata:  "version": 2}\r\r'
    b"event: other\r\ndata: x\r\n\r\nevent: version\r\n\r\ndata: y\n\n"
    b'event: version\r\ndata: {"version": 3, "more": "\xc3\xa9"}\r\n\r\nevent: version\ndata: {"ver'
)
EXPECTED = [
    ("version", '{"version": 1}'),
    ("version", '{\n "version": 2}'),
    ("other", "x"),
    ("message", "y"),
    ("version", '{"version": 3, "more": "é"}'),
]


def test_events_are_the_same_wherever_they_are_cut() -> None:
    """The stream is read alike byte by byte, in two parts cut anywhere, and as a whole."""
    assert EventStream().feed(EVENTS) == EXPECTED
    parts: Sequence[Sequence[bytes]] = [
        [bytes([byte]) for byte in EVENTS],
        *([EVENTS[:cut], EVENTS[cut:]] for cut in range(len(EVENTS))),
    ]
    for each in parts:
        stream = EventStream()
        assert [event for part in each for event in stream.feed(part)] == EXPECTED


@pytest.mark.parametrize("flood", [b"x" * 1000, b"data\n", b"data: x\n", b"event: x\r", b": x\n"])
def test_events_without_an_end_are_refused(flood: bytes) -> None:
    """Whatever a stranger sends, no more is kept than an event of ours could be."""
    stream = EventStream()

    def pour() -> None:
        for _ in range(100_000):
            stream.feed(flood)

    with pytest.raises(CloudUnavailableError):
        pour()


def events(*parts: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\n"
    return (
        head
        + b"Transfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts)
    )


async def versions(log: HttpLog, index: str = "i") -> list[int]:
    watching = log.watch("p", index)
    assert watching is not None
    return [version async for version in watching]


async def test_watching() -> None:
    """Versions come as they are made, whatever else is on the line, until the server ends it."""
    told = EVENTS + b'sion": 4}\n\n'
    async with talking(events(told[:50], told[50:]) + b"0\r\n\r\n") as (server, log):
        assert await versions(log, "a/b") == [1, 2, 3, 4]
        asked = server.asked[0]
        assert asked.target == "/v1/projects/p/indexes/a%2Fb/events"
        assert (asked.headers["accept"], asked.bearer) == ("text/event-stream", f"Bearer {KEY}")


async def test_a_line_that_is_cut_is_told() -> None:
    """A cut, a silence longer than a server's, and words that make no sense end the watch as an outage."""
    one = b'event: version\ndata: {"version": 1}\n\n'
    for raw in (Cut(events(one)), events(one), events(one, b"event: version\ndata: {}\n\n"),
                events(one, b"event: version\ndata: -\n\n")):  # fmt: skip
        async with talking(raw, timeouts=Timeouts(silence_s=0.5)) as (server, log):
            watching = log.watch("p", "i")
            assert watching is not None
            assert await anext(watching) == 1
            with pytest.raises(CloudUnavailableError):
                await anext(watching)
            assert len(server.asked) == 1  # who waits comes again, after a pause of its own


async def test_signs_of_life_keep_a_watch() -> None:
    """Comments alone are life enough: the silence counts from the last of them."""
    one = b'event: version\ndata: {"version": 1}\n\n'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(events())
        for _ in range(5):
            writer.write(b"3\r\n:\n\n\r\n")
            await asyncio.sleep(0.3)
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(one), one))
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        log = HttpLog(f"http://127.0.0.1:{port}", timeouts=Timeouts(silence_s=1.0))
        assert await versions(log) == [1]
        await log.close()


async def test_refusals_of_a_watch() -> None:
    """A watch that is refused is told why; a token that ran out is renewed."""
    async with talking(refusal(401, "authentication")) as (_, log):
        with pytest.raises(AuthenticationError):
            await versions(log)
    async with talking(refusal(503, "cloud_unavailable")) as (server, log):
        with pytest.raises(CloudUnavailableError):
            await versions(log)
        assert len(server.asked) == 1
    async with talking(reply(200, b"<html>", Content_Type="text/html")) as (_, log):
        with pytest.raises(CloudUnavailableError):
            await versions(log)
    good = events(b'event: version\ndata: {"version": 5}\n\n') + b"0\r\n\r\n"
    async with talking(only("two", good), authenticator=Tokens("one", "two")) as (_, log):
        assert await versions(log) == [5]


async def test_a_server_that_tells_nobody() -> None:
    """One without events is found out once; an index that is not there is no such server."""
    for said in (refusal(404, "not_found"), reply(501), refusal(405, "method_not_allowed")):
        async with talking(said) as (_, log):
            assert await versions(log) == []
            assert log.watch("p", "i") is None
    async with talking(refusal(404, "index_not_found")) as (_, log):
        assert await versions(log) == []
        assert log.watch("p", "i") is not None


async def test_many_watches_hold_up_nobody() -> None:
    """More watches than connections for calls, and calls still go through; left, they let go."""
    good = CALLS["head"][1]

    def answer(asked: Asked) -> bytes:
        return good if asked.target.endswith("/head") else events(EVENTS)

    async with talking(answer) as (server, log):
        watching = [log.watch("p", f"i-{n}") for n in range(80)]
        for each in watching:
            assert each is not None
            assert await anext(each) == 1
        assert await log.head("p", "i") == Head(None, 0)
        for each in watching:
            assert each is not None
            await each.aclose()
        await until(lambda: server.open <= 1)


# --- connections -----------------------------------------------------------------------------------


async def test_connections_are_kept_and_let_go() -> None:
    """Calls one after another share a connection; closing ends it, and the next call opens another."""
    async with talking(CALLS["head"][1]) as (server, log):
        for _ in range(5):
            await log.head("p", "i")
        assert server.connections == 1
        await log.close()
        await log.close()
        await until(lambda: not server.open)
        await log.head("p", "i")
        assert server.connections == 2
        # As a loop does that is ended, and then used again.
        await log._lines[asyncio.get_running_loop()].close()
        await log.head("p", "i")
        assert server.connections == 3


async def test_cancelling_a_call() -> None:
    """A cancelled call ends at once, wherever it waits, and the next one finds all in order."""
    held = Held(CALLS["head"][1])
    async with talking(held, CALLS["head"][1]) as (server, log):
        waiting = asyncio.create_task(log.head("p", "i"))
        await until(lambda: server.asked)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert await log.head("p", "i") == Head(None, 0)
        held.until.set()
        await until(lambda: server.open <= 1)
    with pytest.raises(TimeoutError):
        async with talking(Held(b"")) as (_, log), asyncio.timeout(0.05):
            await log.head("p", "i")


class InThread:
    """A scripted server in a thread of its own, for tests with several event loops."""

    def __init__(self, *script: Step) -> None:
        self.server = Scripted(*script)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        async with self.server:
            self._ready.set()
            await self._over.wait()

    def __enter__(self) -> Scripted:
        self._thread.start()
        assert self._ready.wait(30)
        return self.server

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)


def test_one_log_in_many_event_loops() -> None:
    """A log serves one loop after another, and several at once; each loop's end closes its own lines."""
    with InThread(CALLS["head"][1]) as server:
        log = HttpLog(server.url, key=KEY)

        async def use() -> None:
            await asyncio.gather(*(log.head("p", f"i-{n}") for n in range(3)))
            watching = log.watch("p", "i")
            assert watching is not None
            with suppress(CloudUnavailableError):
                await anext(watching)

        for _ in range(3):
            asyncio.run(use())
            assert [line.asking.is_closed for line in log._lines.values()] == [True]
        threads = [threading.Thread(target=lambda: asyncio.run(use())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert all(line.asking.is_closed for line in log._lines.values())
        wait_until(lambda: not server.open)


async def test_a_log_that_is_dropped_lets_go() -> None:
    """Connections of a log that nobody holds any more are closed, while its loop goes on."""
    async with Scripted(CALLS["head"][1]) as server:
        for _ in range(3):
            log = HttpLog(server.url, key=KEY)
            await log.head("p", "i")
            circle = [log]
            circle.append(circle)  # type: ignore[arg-type]
            del log, circle
            gc.collect()
            await until(lambda: not server.open)


def test_a_loop_that_ended_badly_is_forgotten() -> None:
    """The lines of a loop that was closed without its generators are dropped by the next loop's call."""
    with InThread(CALLS["head"][1]) as server:
        log = HttpLog(server.url, key=KEY)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(log.head("p", "i"))
        (line,) = log._lines.values()
        # What a program does that does not end its loop as asyncio does: the sockets are its own.
        loop.run_until_complete(line.asking._transport.aclose())
        loop.close()

        async def use() -> None:
            await log.head("p", "i")
            assert list(log._lines) == [asyncio.get_running_loop()]
            await log.close()
            assert log._lines == {}

        asyncio.run(use())
        assert not line._let_go.alive or line._let_go.detach()


def test_importing_and_opening_touch_nothing() -> None:
    """A log can be made without an event loop, and holds no client before its first call."""
    log = HttpLog("http://127.0.0.1:1", key=KEY)
    assert log._lines == {}
    assert not any(isinstance(value, httpx.AsyncClient) for value in vars(log).values())


# --- the bad line of other tests -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "arrive", "answers"),
    [
        ("drop", 0, {None}),
        ("lose", 1, {None}),
        ("truncate", 1, {None}),
        ("refuse", 0, {429, 500, 502, 503}),
        ("fail", 1, {502, 504}),
        ("duplicate", 2, {200}),
        ("delay", 1, {200}),
    ],
)
async def test_the_faulty_proxy_does_what_it_counts(
    fault: str, arrive: int, answers: set[int | None]
) -> None:
    """Each fault is what its name says, to the server, to the client, and in the counts."""
    rates = Faults(**{fault: 1.0}, delay_s=0.001)
    async with Scripted(reply(200, b"x" * 1000)) as server:
        with FaultyProxy("127.0.0.1", server.port, seed=1, rates=rates) as proxy:
            async with httpx.AsyncClient() as client:
                for _ in range(10):
                    try:
                        status = (await client.put(proxy.url, content=b"body")).status_code
                    except httpx.TransportError:
                        status = None
                    assert status in answers
        assert [asked.body for asked in server.asked] == [b"body"] * arrive * 10
        assert proxy.counts["requests"] == proxy.counts[fault] == 10


async def test_the_faulty_proxy_repeats_itself() -> None:
    """One seed is one plan, another seed another; without faults all passes, events as they come."""
    rates = Faults(drop=0.1, refuse=0.1, duplicate=0.1)
    one = b'event: version\ndata: {"version": 1}\n\n'

    def answer(asked: Asked) -> bytes:
        return events(one) if asked.target.endswith("/events") else reply(200, asked.body)

    async with Scripted(answer) as server:

        async def run(seed: int) -> list[int | None]:
            seen: list[int | None] = []
            with FaultyProxy("127.0.0.1", server.port, seed, rates) as proxy:
                async with httpx.AsyncClient() as client:
                    for _ in range(40):
                        try:
                            seen.append((await client.get(proxy.url)).status_code)
                        except httpx.TransportError:
                            seen.append(None)
            return seen

        first = await run(1)
        assert await run(1) == first != await run(2)
        assert first.count(200) > 20
        with FaultyProxy("127.0.0.1", server.port) as proxy:
            log = HttpLog(proxy.url, key=KEY)
            watching = log.watch("p", "i")
            assert watching is not None
            assert await anext(watching) == 1
            await log.close()
        assert proxy.counts == {"requests": 1, "pass": 1}


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("http://127.0.0.1:8333", False),
        ("http://localhost:8333/x", False),
        ("http://[::1]:8333", False),
        ("https://moss.example.com", False),
        ("http://moss.example.com", True),
        ("http://10.0.0.7:8333", True),
    ],
)
def test_a_key_in_the_clear_is_warned_of(
    url: str, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Plain HTTP to another machine is done as asked, and said aloud, without the key."""
    HttpLog(url, key="secret-key")
    assert ("unencrypted" in caplog.text) is told
    assert "secret-key" not in caplog.text
