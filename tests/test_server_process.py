"""The server as a process: how it starts and ends, what it says, and what it never says."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import http.client
import ipaddress
import json
import logging
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import pytest
import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer.testing import CliRunner

from moss_voice.cloud.objects import open_objects
from moss_voice.cloud.store import ObjectLog
from moss_voice.server import run
from moss_voice.server.app import create_app
from moss_voice.server.labels import project_hash
from moss_voice.server.observe import JsonLines
from moss_voice.server.settings import Settings
from tests.server_process import Server, serve, serve_here
from tests.server_samples import DIM, MODEL, Door, commit, document, made

ROOT = Path(__file__).resolve().parent.parent
CLI = (sys.executable, "-m", "moss_voice.cli")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("store"), "--log-level", "debug") as running:
        yield running


# --- starting --------------------------------------------------------------------------------------


def test_the_command_says_where_it_serves(tmp_path: Path) -> None:
    """`moss-voice serve` prints one line, which names the store and an address that answers; Ctrl-C is 0."""
    store = tmp_path / "store"
    process = subprocess.Popen(
        [*CLI, "serve", "--port", "0"],
        cwd=ROOT,
        env={**os.environ, "MOSS_VOICE_STORE": str(store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert str(store) in line
        url = re.findall(r"http://127\.0\.0\.1:\d+", line)[0]
        assert httpx.get(f"{url}/readyz").json() == {"status": "ok"}
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert process.stdout.read() == ""
    finally:
        process.kill()
        process.communicate()


def test_a_port_that_is_taken_is_told_in_a_line() -> None:
    """A second server on a port says so, without a traceback."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = _run("serve", "--store", "memory://x", "--port", port)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: cannot listen on 127.0.0.1 port {port}: ")
    assert "Traceback" not in done.stderr


def _run(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*CLI, *arguments],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def _invoke(*arguments: str) -> Any:
    """Run a command in this process, where it ends by itself."""
    from moss_voice.cli.app import app

    return CliRunner().invoke(app, list(arguments))


def test_without_the_extra_the_command_says_what_to_install(tmp_path: Path) -> None:
    """Where fastapi is not installed `serve` names the extra; keys are made all the same."""
    hidden = tmp_path / "fastapi.py"
    hidden.write_text("raise ModuleNotFoundError('No module named fastapi', name='fastapi')\n")
    path = f"{tmp_path}{os.pathsep}{ROOT}"
    done = _run("serve", "--store", str(tmp_path / "store"), PYTHONPATH=path)
    assert done.returncode == 1
    assert 'pip install "moss-voice[server]"' in done.stderr
    done = _run("project", "create", "p", "--store", str(tmp_path / "store"), PYTHONPATH=path)
    assert done.returncode == 0


@pytest.mark.parametrize(
    "options",
    [
        ("--store", "http://localhost:1"),
        ("--store", "ftp://x"),
        ("--log-level", "loud"),
        ("--port", "70000"),
        ("--burst", "0"),
        ("--tls-cert", __file__),
    ],
)
def test_options_that_make_no_sense_are_told(options: tuple[str, ...]) -> None:
    """Wrong options end with a message and a code, before anything listens."""
    store = () if "--store" in options else ("--store", "memory://x")
    done = _invoke("serve", *store, "--port", "0", *options)
    assert done.exit_code in (1, 2)
    assert "Traceback" not in done.stderr


def test_metrics_move_to_a_port_of_their_own(tmp_path: Path) -> None:
    """With `--metrics-port` numbers are told there alone."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with serve(tmp_path / "store", "--metrics-port", str(port)) as server:
        assert httpx.get(f"{server.url}/metrics").status_code == 404
        told = httpx.get(f"http://127.0.0.1:{port}/metrics").text
        assert 'moss_voice_requests_total{method="GET",route="none",status="404"} 1.0' in told


# --- ending ----------------------------------------------------------------------------------------


def test_a_server_ends_in_time_with_streams_open(tmp_path: Path) -> None:
    """SIGTERM ends every event stream and idle connection, and the process with 0, at once."""
    with serve(tmp_path / "store") as server:
        project, key = server.project()
        door = Door(server.url, project, key)
        ended: list[bool] = []
        ready = threading.Barrier(4)

        def listen(index: str) -> None:
            path = door.path(index, "/events")
            with httpx.stream(
                "GET", server.url + path, headers=Server.bearer(key), timeout=60
            ) as answer:
                lines = answer.iter_lines()
                next(lines)
                ready.wait(30)
                for _ in lines:
                    pass
                ended.append(True)  # by its end, not by a broken line

        threads = [threading.Thread(target=listen, args=(f"call-{n}",)) for n in range(3)]
        for thread in threads:
            thread.start()
        ready.wait(30)
        begun = time.monotonic()
        assert server.terminate() == 0
        assert time.monotonic() - begun < 20, "it waited for its streams"
        for thread in threads:
            thread.join(10)
        assert ended == [True] * 3
        door.close()


def test_an_upload_under_way_is_finished(tmp_path: Path) -> None:
    """What is being sent when the server is asked to end is taken whole, answered and stored."""
    with serve(tmp_path / "store") as server:
        project, key = server.project()
        sent = made("a", "b")
        door = Door(server.url, project, key)
        path = door.path("call", f"/segments/{sent.ref.sha256}")
        asked = threading.Event()
        ended: list[int] = []

        def slow() -> Iterator[bytes]:
            yield sent.data[:100]
            ender.start()
            # The signal is on its way, and the server refuses new connections before we go on.
            assert asked.wait(30)
            wait_until(lambda: not _connects(server.url))
            yield sent.data[100:]

        def end() -> None:
            asked.set()
            ended.append(server.terminate())

        ender = threading.Thread(target=end)
        answer = door.http.put(path, content=slow())
        assert answer.status_code == 201
        ender.join(60)
        assert ended == [0]
        stored = tmp_path / "store" / project / "call" / "segments" / sent.ref.sha256
        assert stored.read_bytes() == sent.data
        door.close()


def _connects(url: str) -> bool:
    port = urlsplit(url).port
    try:
        socket.create_connection(("127.0.0.1", port or 0), timeout=5).close()
    except OSError:
        return False
    return True


def wait_until(holds: Any, *, within_s: float = 30.0) -> None:
    pause = threading.Event()
    for _ in range(int(within_s / 0.05)):
        if holds():
            return
        pause.wait(0.05)
    pytest.fail("it did not come about in time")


def test_an_upload_that_stalls_is_given_up_at_the_end(tmp_path: Path) -> None:
    """A body that never comes does not keep a server from ending; nothing of it is stored."""
    with serve(tmp_path / "store", "--shutdown-s", "0.5") as server:
        project, key = server.project()
        connection = http.client.HTTPConnection(urlsplit(server.url).netloc, timeout=30)
        connection.putrequest("PUT", f"/v1/projects/{project}/indexes/i/segments/{'0' * 64}")
        connection.putheader("Authorization", f"Bearer {key}")
        connection.putheader("Content-Length", "1000000")
        connection.endheaders()
        connection.send(b"x" * 1000)
        wait_until(lambda: _in_flight(server))
        assert server.terminate() == 0
        connection.close()
        assert not list(Path(server.store).rglob("segments"))


def _in_flight(server: Server) -> bool:
    # By the time that another request is answered, the one before it has begun.
    return httpx.get(f"{server.url}/readyz").status_code == 200


def test_a_body_that_stops_coming_is_a_408(tmp_path: Path) -> None:
    """Who sends half a body and no more is answered, and let go."""
    log = ObjectLog(open_objects(tmp_path))
    key = asyncio.run(log.keys.create("p")).key
    with serve_here(log, Settings(body_idle_s=0.2)) as (url, _):
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=30)
        connection.putrequest("PUT", f"/v1/projects/p/indexes/i/segments/{'0' * 64}")
        connection.putheader("Authorization", f"Bearer {key}")
        connection.putheader("Content-Length", "1000")
        connection.endheaders()
        connection.send(b"x" * 10)
        answer = connection.getresponse()
        assert answer.status == 408
        assert json.loads(answer.read())["error"]["code"] == "invalid_argument"
        assert answer.headers["connection"] == "close"
        connection.close()


def test_a_connection_that_says_nothing_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Connections without a request are let go after a while; those with one are not."""
    monkeypatch.setattr(run, "_SILENT_S", 0.0)

    class Transport:
        closed = False

        def close(self) -> None:
            self.closed = True

    class Connection:
        def __init__(self, cycle: object) -> None:
            self.cycle = cycle
            self.transport = Transport()

    async def look() -> None:
        app = create_app(ObjectLog(open_objects(tmp_path)))
        server = run.Server(uvicorn.Config(app), app, lambda: None)
        silent, busy = Connection(None), Connection(object())
        connections: Any = {silent, busy}
        server.server_state.connections = connections
        for _ in range(3):
            await server.on_tick(50)
            await asyncio.sleep(0.01)
        assert (silent.transport.closed, busy.transport.closed) == (True, False)

    asyncio.run(look())


def test_tls_is_served_with_a_certificate(tmp_path: Path) -> None:
    """With --tls-cert and --tls-key the server speaks TLS alone."""
    cert, key = _certificate(tmp_path)
    with serve(tmp_path / "store", "--tls-cert", cert, "--tls-key", key) as server:
        assert server.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=cert)
        assert httpx.get(f"{server.url}/healthz", verify=context).status_code == 200
        with pytest.raises(httpx.HTTPError):
            httpx.get(server.url.replace("https", "http") + "/healthz")


def _certificate(folder: Path) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made_ = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    cert_file, key_file = folder / "cert.pem", folder / "key.pem"
    cert_file.write_bytes(made_.public_bytes(serialization.Encoding.PEM))
    key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return str(cert_file), str(key_file)


def test_a_killed_server_comes_back_with_all_that_it_acknowledged(tmp_path: Path) -> None:
    """After kill -9 and a restart on the same port every acknowledged version is there."""
    with serve(tmp_path / "store") as server:
        project, key = server.project()
        door = Door(server.url, project, key)
        url = server.url
        new = door.push("call", "a")
        for n in range(2):
            server.restart()
            assert server.url == url
            new = door.push("call", f"b{n}", on=new)
        server.restart()
        head = door.http.get(door.path("call", "/head")).json()
        assert head["commit"] == json.loads(new.encode())
        assert len(door.http.get(door.path("call", "/documents")).json()["documents"]) == 3
        door.close()


# --- what it says ----------------------------------------------------------------------------------


class _Page(HTMLParser):
    """Collects what a page would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.tags: set[str] = set()
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        for name, value in attrs:
            assert not name.startswith("on"), "a handler would be run"
            assert name != "style", "the policy lets no such style through"
            if name in {"src", "href", "action", "data", "poster", "srcset"}:
                self.fetched.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_needs_no_other_host(server: Server) -> None:
    """/docs shows every path, has no script, and its policy lets nothing in but its own style."""
    answer = httpx.get(f"{server.url}/docs")
    page = _Page()
    page.feed(answer.text)
    assert page.tags.isdisjoint({"script", "iframe", "img", "link", "object", "form", "base"})
    assert {ref for ref in page.fetched if not ref.startswith("#")} == {"/openapi.json"}
    for foreign in ("://", 'src="//', "url(", "@import"):
        assert foreign not in answer.text
    policy = dict(
        part.strip().partition(" ")[::2]
        for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["style-src"].startswith("'sha256-")
    assert set(policy) == {
        "default-src", "style-src", "base-uri", "form-action", "frame-ancestors"
    }  # fmt: skip
    paths = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    shown = "".join(page.text)
    for path in paths:
        assert path in shown


def test_the_style_is_the_one_that_the_policy_names(server: Server) -> None:
    """The hash in the policy is that of the page's one style, so a browser shows it."""
    answer = httpx.get(f"{server.url}/docs")
    (style,) = re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in answer.headers["content-security-policy"]


def test_every_answer_is_safe_to_show(server: Server) -> None:
    """No answer may be sniffed, framed, cached or tell what serves it; each has an id."""
    project, key = server.project()
    door = Door(server.url, project, key)
    answers = [
        door.http.get(path)
        for path in ("/docs", "/openapi.json", "/healthz", "/metrics", "/nothing", door.path())
    ]
    answers += [httpx.get(server.url + door.path()), door.http.delete("/healthz")]
    for answer in answers:
        headers = answer.headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "default-src 'none'" in headers["content-security-policy"]
        assert re.fullmatch("[0-9a-f]{16}", headers["x-request-id"])
        assert "server" not in headers
    answer = door.http.get(door.path(), headers={"X-Request-Id": "from-the-balancer-1"})
    assert answer.headers["x-request-id"] == "from-the-balancer-1"
    answer = door.http.get(door.path(), headers={"X-Request-Id": "x" * 65})
    assert answer.headers["x-request-id"] != "x" * 65
    door.close()


def test_a_request_is_told_in_a_line(server: Server) -> None:
    """The log has a line of JSON per request: route, status, time, bytes, project's hash, key and id."""
    project, key = server.project()
    door = Door(server.url, project, key)
    sent = made("a")
    answer = door.put_segment("call", sent)
    wait_until(lambda: answer.headers["x-request-id"] in server.log())
    (line,) = [
        line for line in server.log_lines() if line.get("request") == answer.headers["x-request-id"]
    ]
    assert line.pop("ms") > 0
    assert line.pop("at")
    assert line == {
        "level": "info",
        "event": "request",
        "request": answer.headers["x-request-id"],
        "method": "PUT",
        "route": "/v1/projects/{project}/indexes/{index}/segments/{sha256}",
        "status": 201,
        "bytes_in": len(sent.data),
        "bytes_out": len(answer.content),
        "project": project_hash(project),
        "key": key.split("_")[1],
    }
    door.close()


def test_numbers_count_what_happened(server: Server) -> None:
    """Requests, bytes, commits, conflicts and refusals are counted by route, never by name."""

    def numbers() -> dict[str, float]:
        lines = httpx.get(f"{server.url}/metrics").text.splitlines()
        parts = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in parts}

    project, key = server.project()
    door = Door(server.url, project, key)
    before = numbers()
    new = door.push("call", "a")
    door.put_commit(commit("call", on=new, parent=0))
    door.http.get(door.path("call", f"/segments/{new.segments[0].sha256}"))
    door.http.put(door.path("call", f"/segments/{'0' * 64}"), content=b"x")
    httpx.get(server.url + door.path())
    httpx.request("PROPFIND", server.url + "/coffee")
    after = numbers()
    route = "/v1/projects/{project}/indexes/{index}"
    size = new.segments[0].size_bytes
    for name, more in {
        'moss_voice_segment_bytes_total{direction="in"}': size,
        'moss_voice_segment_bytes_total{direction="out"}': size,
        'moss_voice_commits_total{by="put"}': 1,
        "moss_voice_conflicts_total": 1,
        'moss_voice_rejected_total{code="corrupt_data",what="segment"}': 1,
        'moss_voice_denied_total{code="authentication"}': 1,
        f'moss_voice_requests_total{{method="PUT",route="{route}/commits/{{version}}",status="409"}}': 1,
        'moss_voice_requests_total{method="other",route="none",status="404"}': 1,
    }.items():
        assert after.get(name, 0) - before.get(name, 0) == more, name
    assert after["process_resident_memory_bytes"] > 0
    door.close()


def test_nothing_that_was_said_is_told(server: Server) -> None:
    """Texts, metadata, payloads, names, ids and keys are in no log, number or error, whatever goes wrong."""
    secret = "Xyzzy5149"
    project, key = server.project(f"p-{secret}")
    door = Door(server.url, project, key)
    line = document("a", secret, metadata={secret: secret}, payload={secret: secret})
    sent = made("a", lines=[line])
    errors: list[httpx.Response] = []
    index = f"call {secret}"
    assert door.put_segment(index, sent).status_code == 201
    assert door.put_commit(commit(index, sent.ref)).status_code == 201
    body: dict[str, Any] = {
        "model_id": MODEL,
        "documents": [{"id": secret, "text": secret, "embedding": [1] * DIM}],
    }
    assert door.http.post(door.path(index, "/documents"), json=body).status_code == 201
    bad = made(secret, lines=[document(secret, secret, metadata={secret: [secret]})])
    errors.append(door.put_segment(index, bad))
    errors.append(door.put_segment(f"{index}\x00", sent))
    errors.append(
        door.put_segment(f"{secret}\ud800".encode("utf-8", "ignore").decode() + "\x07", sent)
    )
    for content in (
        secret,
        f'{{"{secret}": "{secret}"}}',
        f'{{"index": "{secret}"}}',
        f'["{secret}"',
        commit(index, sent.ref).encode().replace(b'"dim":4', f'"dim":"{secret}"'.encode()),
        commit(index, sent.ref).encode()[:-1] + f',"{secret}":"{secret}"}}'.encode(),
        commit(secret, sent.ref, model_id=secret).encode(),
    ):
        errors.append(door.http.put(door.path(index, "/commits/3"), content=content))
        errors.append(door.http.post(door.path(index, "/documents"), content=content))
        errors.append(door.http.post(door.path(index, "/documents/delete"), content=content))
        errors.append(door.http.post(door.path(index, "/collect"), content=content))
        errors.append(door.http.post(door.path(rest="/tokens"), content=content))
        errors.append(door.http.put(door.path(rest=f"/jobs/{secret}"), content=content))
    for wrong in (
        {"id": secret, "text": 1, "embedding": [1] * DIM},
        {"id": "a", "text": secret, "embedding": [secret]},
        {"id": "a", "text": secret, "embedding": [1], secret: secret},
        {"id": "a", "text": secret, "embedding": [1] * DIM, "metadata": {secret: [secret]}},
        {"id": "a", "text": secret * 40_000, "embedding": [1] * DIM},
        {"id": secret, "text": "\ud800", "embedding": [1] * DIM},
    ):
        content = json.dumps({"model_id": MODEL, "documents": [wrong]})
        errors.append(door.http.post(door.path(index, "/documents"), content=content))
    paths = (
        door.path(f"no {secret}"), door.path(rest=f"/jobs/{secret}"), f"/{secret}",
        door.path(index, f"/commits/{secret}"), door.path(index, f"/segments/{secret}"),
        door.path(index, f"/documents?limit={secret}"), f"/v1/projects/{secret}",
    )  # fmt: skip
    errors += [door.http.get(path) for path in paths]
    errors.append(httpx.get(server.url + door.path(), headers=Server.bearer(secret)))
    errors.append(httpx.request(secret.upper(), server.url + "/healthz"))
    door.http.get(door.path(index, f"/documents?id={secret}"), headers={"X-Request-Id": secret})
    with socket.create_connection(("127.0.0.1", urlsplit(server.url).port or 0)) as raw:
        raw.sendall(f"{secret} {secret}\r\n\r\n".encode())
        raw.recv(1000)
    for answer in errors:
        assert answer.status_code >= 400
        assert secret not in answer.text, answer.text
        for name, value in answer.headers.items():
            assert secret not in value, name
    told = httpx.get(f"{server.url}/metrics").text
    logged = server.log()
    for key_part in (key, key.split("_", 2)[2]):
        assert key_part not in logged + told
    # A request's own id is repeated: it is what the balancer's log calls it.
    own = f'"request": "{secret}"'
    assert secret not in told + logged.replace(own, "")
    assert quote(secret) not in told
    door.close()


def test_records_of_others_are_told_by_their_kind_alone() -> None:
    """A library's message may quote an error, and that a transcript: so it is left out of the log."""
    try:
        raise RuntimeError("said: my secret")
    except RuntimeError:
        info = sys.exc_info()
    record = logging.LogRecord("asyncio", logging.ERROR, "x.py", 1, "my secret %s", ("too",), info)
    line = json.loads(JsonLines().format(record))
    assert line.pop("at")
    assert line == {
        "level": "error", "event": "foreign", "logger": "asyncio", "kind": "RuntimeError"
    }  # fmt: skip


def test_a_fault_of_ours_is_told_by_its_kind_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that nobody expected is a 500 with the request's id; the log has its kind and place."""

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("said: my secret")

    log = ObjectLog(open_objects(tmp_path))
    monkeypatch.setattr(log, "heads", broken)
    with serve_here(log, Settings()) as (url, state), caplog.at_level(logging.INFO):
        key = asyncio.run(ObjectLog(open_objects(tmp_path)).keys.create("p")).key
        answer = httpx.get(f"{url}/v1/projects/p/indexes", headers=Server.bearer(key))
        assert state.settings == Settings()
    assert answer.status_code == 500
    assert answer.json()["error"]["code"] == "error"
    assert answer.headers["x-request-id"] in answer.json()["error"]["message"]
    (record,) = [r for r in caplog.records if r.name == "moss_voice.server.faults"]
    line = json.loads(JsonLines().format(record))
    assert line["kind"] == "RuntimeError"
    assert line["where"].startswith("moss_voice.server.routes.indexes:")
    assert line["request"] == answer.headers["x-request-id"]
    assert "secret" not in answer.text + caplog.text


# --- keys on the command line ----------------------------------------------------------------------


def test_keys_are_made_rotated_listed_and_revoked(server: Server) -> None:
    """`moss-voice project` works on the store: a key is shown once, opens the server, and ends."""

    def project(*arguments: str) -> Any:
        done = _invoke("project", *arguments, "--store", server.store, "--json")
        assert done.exit_code == 0, done.stderr
        return json.loads(done.stdout)

    def status(key: str) -> int:
        return httpx.get(f"{server.url}/v1/projects/acme", headers=Server.bearer(key)).status_code

    first = project("create", "acme")
    assert status(first["key"]) == 200
    reader = project("create", "acme", "--read-only", "--expires-in", "30d")
    assert (reader["read_only"], status(reader["key"])) == (True, 200)
    rotated = project("rotate-key", "acme", "--revoke-old-in", "1h")
    assert [old["key_id"] for old in rotated["old"]] == [first["key_id"]]
    assert rotated["old"][0]["expires_at"] is not None
    assert status(first["key"]) == status(rotated["key"]) == 200
    listed = project("list", "acme")
    assert {key["key_id"] for key in listed} == {
        first["key_id"], reader["key_id"], rotated["key_id"]
    }  # fmt: skip
    assert {key["in_logs"] for key in listed} == {project_hash("acme")}
    assert not any("key" in key or "signing" in key for key in listed)
    assert any(key["project"] == "acme" for key in project("list"))
    assert project("revoke", "acme", first["key_id"])["revoked"] == [first["key_id"]]
    wait_until(lambda: status(first["key"]) == 401)
    assert status(rotated["key"]) == 200
    stored = b"".join(path.read_bytes() for path in Path(server.store).rglob("~keys/*"))
    for key in (first, reader, rotated):
        assert key["key"].split("_", 2)[2].encode() not in stored


def test_faults_on_the_command_line_are_told(tmp_path: Path) -> None:
    """A project without keys cannot be rotated, and what is no duration or key id is refused."""
    store = ("--store", str(tmp_path))
    for arguments, expected in (
        (("rotate-key", "nobody"), 3),
        (("revoke", "nobody", "0" * 12), 1),
        (("revoke", "nobody", "junk"), 1),
        (("create", "p", "--expires-in", "soon"), 2),
        (("create", "p", "--expires-in", "0"), 2),
        (("create", "bad\nname"), 1),
        (("list", *("--store", "http://x")), 1),
    ):
        done = _invoke("project", *arguments, *(store if "--store" not in arguments else ()))
        assert done.exit_code == expected, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    done = _invoke("project", "list", *store)
    assert "moss-voice project create" in done.stdout
