"""What every store promises: whole pushes or none, one winner per version, nothing lost, nothing mixed.

The suite runs over each kind of cloud; its raw access goes around `Cloud`, so that what it checks and
what it breaks is what is really stored. Behind a server that is the directory which the server serves.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import runpy
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, cast

import httpx
import numpy as np
import obstore
import pytest
from obstore.store import LocalStore, MemoryStore, ObjectStore

from moss_voice.cloud.cloud import Cloud, Log, Pushed, open_cloud
from moss_voice.cloud.http import HttpLog
from moss_voice.cloud.keys import ProjectKeys
from moss_voice.cloud.log import (
    MAX_SEGMENTS,
    Commit,
    Segment,
    SegmentRef,
    decode_commit,
    decode_segment,
    encode_segment,
    resolve,
)
from moss_voice.cloud.names import encode_name
from moss_voice.cloud.objects import Objects, Store, open_objects
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import (
    AuthenticationError,
    CloudUnavailableError,
    ConflictError,
    CorruptDataError,
    IndexNotFoundError,
    InvalidArgumentError,
    JobNotFoundError,
    ModelMismatchError,
    PermissionDeniedError,
)
from moss_voice.keywords import Postings
from moss_voice.types import JobStatusResponse
from tests.faulty_proxy import Faults, FaultyProxy
from tests.s3_server import S3Server, s3_server

NOW = datetime(2026, 11, 20, tzinfo=UTC)
ROOT = Path(__file__).parents[1]


class Stage(Protocol):
    """A kind of cloud, and raw access to what it stores."""

    def cloud(self) -> Cloud:
        """Return another door to the same store, as another process would have."""

    def put(self, path: str, data: bytes) -> None: ...
    def get(self, path: str) -> bytes: ...
    def delete(self, path: str) -> None: ...
    def paths(self) -> list[str]: ...
    def empty(self) -> None: ...

    async def collect(self, cloud: Cloud, *, keep: int) -> int:
        """Collect the index `call-42` as if all that is stored of it were old."""
        ...

    def where(self, project: str) -> tuple[str, dict[str, str]]:
        """Return what another process calls this store, and the environment that it needs for it."""
        ...


class Directory:
    def __init__(self, path: Path) -> None:
        self.path = path

    def cloud(self) -> Cloud:
        return open_cloud(self.path)

    def put(self, path: str, data: bytes) -> None:
        (self.path / path).parent.mkdir(parents=True, exist_ok=True)
        (self.path / path).write_bytes(data)

    def get(self, path: str) -> bytes:
        return (self.path / path).read_bytes()

    def delete(self, path: str) -> None:
        (self.path / path).unlink()

    def paths(self) -> list[str]:
        files = (path for path in self.path.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.path)) for path in files)

    def empty(self) -> None:
        for path in self.paths():
            self.delete(path)

    async def collect(self, cloud: Cloud, *, keep: int) -> int:
        return await cloud.collect("p", "call-42", grace_s=0.0, keep=keep)

    def where(self, project: str) -> tuple[str, dict[str, str]]:
        return str(self.path), {}


class Memory:
    def __init__(self, store: ObjectStore | None = None) -> None:
        self.store = store or MemoryStore()

    def cloud(self) -> Cloud:
        return Cloud(ObjectLog(Objects(self.store, name="memory://test")))

    def put(self, path: str, data: bytes) -> None:
        obstore.put(self.store, path, data)

    def get(self, path: str) -> bytes:
        return bytes(obstore.get(self.store, path).bytes())

    def delete(self, path: str) -> None:
        obstore.delete(self.store, path)

    def paths(self) -> list[str]:
        return sorted(meta["path"] for meta in obstore.list(self.store).collect())

    def empty(self) -> None:
        for path in self.paths():
            self.delete(path)

    async def collect(self, cloud: Cloud, *, keep: int) -> int:
        return await cloud.collect("p", "call-42", grace_s=0.0, keep=keep)

    def where(self, project: str) -> tuple[str, dict[str, str]]:
        raise NotImplementedError("memory is of one process")


class S3(Memory):
    """A place of one test's own in a bucket of a real server; the environment tells where that is."""

    def __init__(self, server: S3Server) -> None:
        self.server = server
        self.url = f"s3://{server.bucket}/{uuid.uuid4().hex}"
        super().__init__(obstore.store.from_url(self.url))

    def cloud(self) -> Cloud:
        return open_cloud(self.url)

    def where(self, project: str) -> tuple[str, dict[str, str]]:
        return self.url, self.server.environ()


def own_store(path: Path | str) -> Store:
    """Open the store that `examples/own_store.py` shows how to write."""
    made: Store = runpy.run_path(str(ROOT / "examples" / "own_store.py"))["SqliteStore"](Path(path))
    return made


class Own:
    """A store that its user wrote, behind the contract alone; SQL is the way around it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        asyncio.run(own_store(path).check())

    def _run(self, sql: str, *values: object) -> list[Any]:
        with closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as db:
            return db.execute(sql, values).fetchall()

    def cloud(self) -> Cloud:
        return open_cloud(own_store(self.path))

    def put(self, path: str, data: bytes) -> None:
        folder, _, name = path.rpartition("/")
        put = "INSERT OR REPLACE INTO objects (folder, name, at, data) VALUES (?, ?, ?, ?)"
        self._run(put, folder, name, time.time(), data)

    def get(self, path: str) -> bytes:
        ((data,),) = self._run("SELECT data FROM objects WHERE folder || '/' || name = ?", path)
        return bytes(data)

    def delete(self, path: str) -> None:
        self._run("DELETE FROM objects WHERE folder || '/' || name = ?", path)

    def paths(self) -> list[str]:
        return sorted(path for (path,) in self._run("SELECT folder || '/' || name FROM objects"))

    def empty(self) -> None:
        self._run("DELETE FROM objects")

    async def collect(self, cloud: Cloud, *, keep: int) -> int:
        return await cloud.collect("p", "call-42", grace_s=0.0, keep=keep)

    def where(self, project: str) -> tuple[str, dict[str, str]]:
        return f"own:{self.path}", {}


class Behind(Directory):
    """A server over a directory, which is emptied for each test and then touched around the server.

    Keys are made in the store, as they are needed, and are left out of what tests see of it.
    """

    def __init__(self, url: str, path: Path) -> None:
        super().__init__(path)
        self.url = url
        for left in path.iterdir():
            shutil.rmtree(left)

    def cloud(self) -> Cloud:
        return Cloud(cast("Log", Doors(self)))

    async def key(self, project: str) -> str:
        return (await ProjectKeys(open_objects(self.path)).create(project)).key

    def paths(self) -> list[str]:
        return [path for path in super().paths() if path.split("/")[1] != "~keys"]

    async def collect(self, cloud: Cloud, *, keep: int) -> int:
        """Let two days pass for what is stored, and two hours between two collections.

        No client of a server may ask for less; see `ObjectLog.collect`.
        """
        then = time.time() - 2 * 86400.0
        for path in self.paths():
            os.utime(self.path / path, (then, then))
        removed = await cloud.collect("p", "call-42", grace_s=3600.0, keep=keep)
        noted = self.path / "p/call-42/gc.json"
        if noted.exists():
            note = json.loads(noted.read_bytes())
            note["unnamed"] = {
                name: (datetime.fromisoformat(at) - timedelta(hours=2)).isoformat()
                for name, at in note["unnamed"].items()
            }
            noted.write_text(json.dumps(note))
        return removed + await cloud.collect("p", "call-42", grace_s=3600.0, keep=keep)

    def where(self, project: str) -> tuple[str, dict[str, str]]:
        return self.url, {"MOSS_PROJECT_KEY": asyncio.run(self.key(project))}


class Doors:
    """One log for tests of many projects: each is entered with a key of its own."""

    def __init__(self, stage: Behind) -> None:
        self.name = stage.url
        self._stage = stage
        self._logs: dict[str, HttpLog] = {}

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(project: str, *arguments: Any, **options: Any) -> Any:
            log = self._logs.get(project)
            if log is None:
                key = functools.partial(self._stage.key, project)
                log = self._logs[project] = HttpLog(self.name, authenticator=key)
            return getattr(log, name)(project, *arguments, **options)

        return call

    async def close(self) -> None:
        for log in self._logs.values():
            await log.close()


@pytest.fixture(scope="module")
def s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


SERVER = """
import os, sys, threading
from moss_voice.cloud.objects import open_objects
from moss_voice.cloud.store import ObjectLog
from moss_voice.server import run
from moss_voice.server.settings import Limits, Settings

def watch():
    os.read(0, 1)
    os._exit(0)

threading.Thread(target=watch, daemon=True).start()
listener = run.listen("127.0.0.1", 0)
run.serve(
    ObjectLog(open_objects(sys.argv[1])),
    Settings(limits=Limits(requests_per_s=0)),
    listener=listener,
    on_ready=lambda: print(listener.getsockname()[1], flush=True),
    log_level="warning",
)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Start a server that takes any number of requests; it ends with its standard input."""
    path = tmp_path_factory.mktemp("served")
    command = [sys.executable, "-c", SERVER, str(path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port = process.stdout.readline().strip()
        assert port, "the server did not start"
        yield f"http://127.0.0.1:{port}", path
        process.stdin.close()


def staged(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, patch: pytest.MonkeyPatch
) -> Stage:
    if kind == "directory":
        return Directory(tmp_path / "cloud")
    if kind == "memory":
        return Memory()
    if kind == "own":
        return Own(tmp_path / "cloud.db")
    if kind == "s3":
        server: S3Server = request.getfixturevalue("s3")
        for variable in [*os.environ]:
            if variable.startswith("AWS_"):
                patch.delenv(variable)
        for variable, value in server.environ().items():
            patch.setenv(variable, value)
        return S3(server)
    return Behind(*request.getfixturevalue("served"))


@pytest.fixture(params=["directory", "memory", "own", "s3", "http"])
def stage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return staged(request.param, request, tmp_path, monkeypatch)


@pytest.fixture(params=["directory", "memory", "own", "s3"])
def open_stage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Stage:
    """Set up a store that whoever can read it may enter; a server lets in nobody without a key."""
    return staged(request.param, request, tmp_path, monkeypatch)


@pytest.fixture(params=["directory", "own", "s3", "http"])
def shared_stage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Stage:
    """Set up a store that several processes can reach."""
    return staged(request.param, request, tmp_path, monkeypatch)


def segment(*ids: str, at: int = 1, tombstones: dict[str, int] | None = None) -> Segment:
    """Make a segment whose lines tell who wrote them when."""
    n = len(ids)
    return Segment(
        model_id="m",
        analyzer="en-1",
        ids=ids,
        documents=[json.dumps({"id": id_, "text": f"secret {at}"}).encode() for id_ in ids],
        written_at=np.full(n, at, np.int64),
        vectors=np.eye(1, 4, dtype=np.float32).repeat(n, axis=0),
        postings=Postings.of([np.array([7])] * n),
        lengths=np.ones(n, np.int32),
        tombstones=tombstones or {},
    )


async def push(
    cloud: Cloud,
    delta: Segment | None,
    *,
    base: Commit | None = None,
    project: str = "p",
    index: str = "call-42",
    doc_count: int | None = None,
    **options: Any,
) -> Pushed:
    """Push with the usual options; the count is right where nothing is updated."""
    if doc_count is None:
        doc_count = (base.doc_count if base else 0) + (len(delta.ids) if delta else 0)
    defaults: dict[str, Any] = {
        "model_id": "m", "dim": 4, "analyzer": "en-1", "on_conflict": "merge"
    }  # fmt: skip
    return await cloud.push(
        project,
        index,
        base_version=base.version if base else 0,
        base_segments=base.segments if base else (),
        delta=delta,
        doc_count=doc_count,
        **{**defaults, **options},
    )


async def documents(
    cloud: Cloud, *, project: str = "p", index: str = "call-42", head: Commit | None = None
) -> dict[str, str]:
    """Read an index as a stranger would: id to text, in order; asserts that its count is right."""
    head = head or await cloud.read_head(project, index)
    if head is None:
        return {}
    segments = [
        decode_segment(await cloud.fetch_segment(project, index, ref), model_id="m", dim=4)
        for ref in head.segments
    ]
    live, ordinals, _, doc_count = resolve(segments)
    assert doc_count == head.doc_count
    rows = sorted(
        (int(ordinals[n][row]), s.documents[row])
        for n, s in enumerate(segments)
        for row in np.flatnonzero(live[n]).tolist()
    )
    lines = [json.loads(line) for _, line in rows]
    return {line["id"]: line["text"] for line in lines}


# --- pushing and reading ---------------------------------------------------------------------------


async def test_push_and_read_back(stage: Stage) -> None:
    """What one pushes, another reads; the next push uploads only what changed."""
    one, other = stage.cloud(), stage.cloud()
    assert await one.read_head("p", "call-42") is None
    first = await push(one, segment(*(f"turn-{n}" for n in range(200))))
    assert (first.commit.version, first.merged_from) == (1, None)
    assert await other.read_head("p", "call-42") == first.commit
    second = await push(other, segment("turn-200", at=2), base=first.commit)
    assert 0 < second.uploaded_bytes < first.uploaded_bytes / 3
    assert await one.read_head("p", "call-42") == second.commit
    assert len(await documents(one)) == 201
    assert await one.read_commit("p", "call-42", 1) == first.commit
    assert await one.read_commit("p", "call-42", 3) is None
    assert second.commit.created_at == first.commit.created_at


async def test_objects_are_where_the_design_says(stage: Stage) -> None:
    """The layout is the format: commits by number, segments by hash, under project and index."""
    pushed = await push(stage.cloud(), segment("a"), project="acme", index="call-42")
    sha256 = pushed.commit.segments[0].sha256
    assert stage.paths() == [
        "acme/call-42/log/000000000001.json",
        f"acme/call-42/segments/{sha256}",
    ]
    assert decode_commit(stage.get("acme/call-42/log/000000000001.json")) == pushed.commit
    assert stage.get(f"acme/call-42/segments/{sha256}") == encode_segment(segment("a"))


async def test_an_empty_index_exists(stage: Stage) -> None:
    """Pushing nothing makes the index, once; pushing nothing again makes no version."""
    cloud = stage.cloud()
    first = await push(cloud, None)
    assert (first.commit.version, first.commit.segments) == (1, ())
    again = await push(cloud, segment(), base=first.commit)
    assert (again.commit, again.uploaded_bytes) == (first.commit, 0)
    assert [head.index for head in await cloud.list_indexes("p")] == ["call-42"]


async def test_merge_loses_nothing(stage: Stage) -> None:
    """Two that started from the same version both find their documents, and the newer write wins."""
    one, other = stage.cloud(), stage.cloud()
    base = (await push(one, segment("a", "b", "c"))).commit
    first = await push(one, segment("a", "x", at=5), base=base, doc_count=4)
    second = await push(other, segment("a", "y", at=4, tombstones={"b": 6}), base=base, doc_count=3)
    assert (second.commit.version, second.merged_from) == (3, first.commit.version)
    assert second.commit.replaced is None
    assert await documents(one) == {
        "a": "secret 5", "c": "secret 1", "x": "secret 5", "y": "secret 4"
    }  # fmt: skip


async def test_replace_discards_what_others_pushed(stage: Stage) -> None:
    """Under `replace` the index is what the pusher had, and the commit says what it replaced."""
    one, other = stage.cloud(), stage.cloud()
    base = (await push(one, segment("a"))).commit
    await push(one, segment("x", at=5), base=base)
    pushed = await push(other, segment("y", at=4), base=base, on_conflict="replace")
    assert (pushed.merged_from, pushed.commit.replaced) == (2, 2)
    assert list(await documents(one)) == ["a", "y"]


async def test_error_refuses_and_uploads_nothing(stage: Stage) -> None:
    """Under `error` a conflict is told, and the cloud stays as it was."""
    one, other = stage.cloud(), stage.cloud()
    base = (await push(one, segment("a"))).commit
    await push(one, segment("x", at=5), base=base)
    before = stage.paths()
    with pytest.raises(ConflictError) as caught:
        await push(other, segment("y", at=4), base=base, on_conflict="error")
    assert (caught.value.base_version, caught.value.head_version) == (1, 2)
    with pytest.raises(ModelMismatchError):
        await push(other, segment("y", at=4), base=base, model_id="custom")
    assert stage.paths() == before


async def test_a_push_that_is_repeated_changes_nothing(stage: Stage) -> None:
    """The same change pushed again, after an answer was lost, is recognised."""
    cloud = stage.cloud()
    first = await push(cloud, segment("a"))
    again = await push(cloud, segment("a"))
    assert (again.commit, again.uploaded_bytes) == (first.commit, 0)
    assert await cloud.commit("p", first.commit)


async def test_one_of_many_wins_a_version(stage: Stage) -> None:
    """Of twenty commits of one number exactly one is stored, whole."""
    seed = (await push(stage.cloud(), None)).commit
    rivals = [
        replace(seed, version=2, parent=1, changed=2, job_id=f"job-{n}", analyzer="x" * n)
        for n in range(20)
    ]
    won = await asyncio.gather(*(stage.cloud().commit("p", rival) for rival in rivals))
    assert won.count(True) == 1
    assert await stage.cloud().read_head("p", "call-42") == rivals[won.index(True)]


def in_threads(*jobs: Callable[[], Any]) -> None:
    """Run each job in a thread of its own, and raise what one of them raised."""
    errors: list[BaseException] = []

    def guarded(job: Callable[[], Any]) -> None:
        try:
            job()
        except BaseException as error:  # noqa: BLE001 - handed on to the test
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
        assert not thread.is_alive()
    if errors:
        raise errors[0]


async def race(cloud: Cloud, who: str, *, pushes: int = 30) -> None:
    """Push again and again, each time from the copy of the time before, as a session does."""
    base: Commit | None = None
    for n in range(pushes):
        base = (await push(cloud, segment(f"{who}-{n}", at=n + 1), base=base)).commit
        if n % 10 == 9:
            base = await cloud.compact("p", "call-42") or base


def test_racing_writers_lose_nothing_and_readers_see_whole_pushes(stage: Stage) -> None:
    """Two writers of thirty pushes each, who also compact, and two readers who always see whole commits."""
    done = threading.Event()
    seen: list[int] = []

    async def read() -> None:
        cloud, last = stage.cloud(), 0
        while not done.is_set():
            head = await cloud.read_head("p", "call-42")
            if head is not None:
                assert head.version >= last
                last = head.version
                seen.append(len(await documents(cloud, head=head)))

    def write() -> None:
        try:
            in_threads(*(lambda who=who: asyncio.run(race(stage.cloud(), who)) for who in "ab"))
        finally:
            done.set()

    in_threads(write, lambda: asyncio.run(read()), lambda: asyncio.run(read()))
    found = asyncio.run(documents(stage.cloud()))
    assert set(found) == {f"{who}-{n}" for who in "ab" for n in range(30)}
    assert seen


async def test_a_crash_before_the_commit_is_no_push(stage: Stage) -> None:
    """A segment without its commit is seen by nobody, and taken up by the push that is tried again."""
    cloud = stage.cloud()
    first = await push(cloud, segment("a"))
    ref = await cloud.put_segment("p", "call-42", segment("b", at=2))
    assert await stage.cloud().read_head("p", "call-42") == first.commit
    again = await push(cloud, segment("b", at=2), base=first.commit)
    assert again.uploaded_bytes < ref.size_bytes
    assert await documents(cloud) == {"a": "secret 1", "b": "secret 2"}


# --- damage ----------------------------------------------------------------------------------------


async def test_damaged_segments_are_told(stage: Stage) -> None:
    """A segment with other bytes, another size, or none is our error, and quotes nothing."""
    cloud = stage.cloud()
    ref = (await push(cloud, segment("a"))).commit.segments[0]
    path = f"p/call-42/segments/{ref.sha256}"
    good = stage.get(path)
    for damage in (good[:-1] + b"\0", good[:-1], b""):
        stage.put(path, damage)
        with pytest.raises(CorruptDataError, match=ref.sha256[:12]) as caught:
            await cloud.fetch_segment("p", "call-42", ref)
        assert "secret" not in str(caught.value)
    stage.delete(path)
    with pytest.raises(CorruptDataError, match="gone"):
        await cloud.fetch_segment("p", "call-42", ref)


async def test_damaged_commits_are_told(stage: Stage) -> None:
    """A newest commit that is damaged, or another's, is our error rather than an older state."""
    cloud = stage.cloud()
    await push(cloud, segment("a"))
    good = stage.get("p/call-42/log/000000000001.json")
    stranger = good.replace(b'"version":1', b'"version":2').replace(b"call-42", b"call-43")
    for damage in (good[:-1], b"\0" * 100, good, stranger):
        stage.put("p/call-42/log/000000000002.json", damage)
        for door in (cloud, stage.cloud()):
            with pytest.raises(CorruptDataError):
                await door.read_head("p", "call-42")
        with pytest.raises(CorruptDataError):
            await cloud.list_indexes("p")
        with pytest.raises(CorruptDataError):
            await push(cloud, segment("b"))


async def test_an_empty_commit_was_never_made(stage: Stage) -> None:
    """What a power failure left of an unacknowledged commit is passed over, and its number with it."""
    cloud = stage.cloud()
    stage.put("p/call-42/log/000000000001.json", b"")
    assert await cloud.read_head("p", "call-42") is None
    first = (await push(cloud, segment("a"))).commit
    assert first.version == 2
    stage.put("p/call-42/log/000000000003.json", b"")
    for door in (cloud, stage.cloud()):
        assert await door.read_head("p", "call-42") == first
    pushed = await push(cloud, segment("b", at=2), base=first, on_conflict="error")
    assert (pushed.commit.version, pushed.commit.parent) == (4, 2)
    assert list(await documents(stage.cloud())) == ["a", "b"]


async def test_an_emptied_store_is_noticed(stage: Stage) -> None:
    """Who knew an index that is gone from the store does not go on believing in it."""
    cloud = stage.cloud()
    base = (await push(cloud, segment("a"))).commit
    base = (await push(cloud, segment("b", at=2), base=base)).commit
    stage.empty()
    assert await cloud.read_head("p", "call-42") is None
    whole = segment("a", "b", at=2)
    pushed = await push(
        cloud,
        segment("c", at=3),
        base=base,
        on_conflict="replace",
        whole=lambda: whole,
        doc_count=2,
    )
    assert pushed.commit.version == 1
    assert list(await documents(cloud)) == ["a", "b"]


async def test_a_store_that_was_filled_anew_is_noticed(stage: Stage) -> None:
    """A commit of the same number in another store is not taken for the one that was known."""
    cloud = stage.cloud()
    await push(cloud, segment("a"))
    assert await cloud.read_head("p", "call-42") is not None
    stage.empty()
    other = (await push(stage.cloud(), segment("b"))).commit
    assert await cloud.read_head("p", "call-42") == other


async def test_files_of_others_do_no_harm(stage: Stage) -> None:
    """What does not look like ours is not taken for ours."""
    cloud = stage.cloud()
    first = (await push(cloud, segment("a"))).commit
    stage.put("p/call-42/log/.DS_Store", b"x")
    stage.put("p/call-42/log/9.json", b"x")
    stage.put("p/call-42/segments/README", b"x")
    assert await stage.cloud().read_head("p", "call-42") == first
    await stage.collect(cloud, keep=1)
    assert "p/call-42/segments/README" in stage.paths()


# --- names and projects ----------------------------------------------------------------------------

NAMES = ["a/b", "a", "b", "..", ".", "Ünï", "ünï", "50% off", "50%20off", "~x", "~jobs", " con ", "con",
         "~project.json", "Call", "call", "a\\b", "x" * 200, "\U0001f44b" * 200, "\U0001f44b" * 199, "a.b",
         "a?b#c*", "%2e%2e", "log", "segments", "e\u0301", "\xe9"]  # fmt: skip


async def test_odd_names_stay_apart(stage: Stage) -> None:
    """Any name works for an index and for a project, and no two meet, also where case is ignored."""
    cloud = stage.cloud()
    for n, name in enumerate(NAMES):
        await push(cloud, segment(f"doc-{n}"), index=name)
        await push(cloud, segment(f"doc-{n}"), project=name, index="i")
    for n, name in enumerate(NAMES):
        assert list(await documents(stage.cloud(), index=name)) == [f"doc-{n}"]
        assert list(await documents(stage.cloud(), project=name, index="i")) == [f"doc-{n}"]
    assert [head.index for head in await stage.cloud().list_indexes("p")] == sorted(NAMES)
    folders = {encode_name(name) for name in NAMES}
    assert len({folder.casefold() for folder in folders}) == len(NAMES)
    assert all(len(folder) < 255 and folder.isascii() for folder in folders)
    assert {path.split("/")[1] for path in stage.paths() if path.startswith("p/")} == folders


async def test_names_that_are_refused(stage: Stage) -> None:
    """A name that cannot be is refused before anything is touched."""
    cloud = stage.cloud()
    for name in ("", " ", "a\nb", "x" * 201):
        with pytest.raises(InvalidArgumentError, match="index name"):
            await cloud.read_head("p", name)
        with pytest.raises(InvalidArgumentError, match="project id"):
            await cloud.list_indexes(name)
    assert stage.paths() == []


async def test_projects_never_see_each_other(stage: Stage) -> None:
    """Indexes and jobs of one project are not there for another."""
    cloud = stage.cloud()
    await push(cloud, segment("a"), project="one")
    await cloud.put_job("one", job("job-1"))
    assert await cloud.read_head("two", "call-42") is None
    assert await cloud.list_indexes("two") == []
    assert await cloud.list_indexes("on") == []
    with pytest.raises(JobNotFoundError):
        await cloud.get_job("two", "job-1")
    with pytest.raises(IndexNotFoundError):
        await cloud.delete_index("two", "call-42")


def job(job_id: str, **changes: Any) -> JobStatusResponse:
    fields: dict[str, Any] = {
        "job_id": job_id,
        "status": "running",
        "progress": 0.5,
        "current_phase": "embedding",
        "error": None,
        "created_at": NOW,
        "updated_at": NOW,
        "completed_at": None,
    }
    return JobStatusResponse(**{**fields, **changes})


async def test_jobs(stage: Stage) -> None:
    """A job comes back as it was last stored; one that never was, or is damaged, is our error."""
    cloud = stage.cloud()
    await cloud.put_job("p", job("job-1"))
    done = job("job-1", status="completed", progress=1.0, completed_at=NOW)
    await cloud.put_job("p", done)
    assert await stage.cloud().get_job("p", "job-1") == done
    for unknown in ("job-2", "../job-1", "", "a/b"):
        with pytest.raises(JobNotFoundError):
            await cloud.get_job("p", unknown)
    stage.put("p/~jobs/job-1.json", b'{"job_id": 1}')
    with pytest.raises(CorruptDataError):
        await cloud.get_job("p", "job-1")
    assert await cloud.list_indexes("p") == []


async def test_credentials(open_stage: Stage) -> None:
    """A project belongs to its first key: any other, or none, is refused, and no key is stored."""
    one, other = open_stage.cloud(), open_stage.cloud()
    assert await one.check_credentials(None, None) == "default"
    assert await one.check_credentials("open", None) == "open"
    assert await one.check_credentials("acme", "key-1") == "acme"
    for cloud in (one, other):
        for _ in range(2):
            assert await cloud.check_credentials("acme", "key-1") == "acme"
        for wrong in ("key-2", "key-1 ", None, ""):
            with pytest.raises(AuthenticationError, match="acme"):
                await cloud.check_credentials("acme", wrong)
    with pytest.raises(AuthenticationError, match="project id"):
        await one.check_credentials(None, "key-1")
    assert open_stage.paths() == ["acme/~project.json"]
    assert b"key-1" not in open_stage.get("acme/~project.json")
    for damage in (b"", b"[]", b'{"keys":[{}]}', b'{"keys":[{"salt":1}]}'):
        open_stage.put("acme/~project.json", damage)
        with pytest.raises(CorruptDataError):
            await open_stage.cloud().check_credentials("acme", "key-1")


async def test_the_first_key_is_one_key(open_stage: Stage) -> None:
    """Of many keys that claim a project at the same time exactly one gets it."""
    answers = await asyncio.gather(
        *(open_stage.cloud().check_credentials("acme", f"key-{n}") for n in range(5)),
        return_exceptions=True,
    )
    assert answers.count("acme") == 1
    assert sum(isinstance(answer, AuthenticationError) for answer in answers) == 4


# --- deleting, joining, collecting -----------------------------------------------------------------


async def test_delete_leaves_nothing_and_versions_go_on(stage: Stage) -> None:
    """A deleted index is gone for every reader, its text too; made anew it is another index."""
    one, other = stage.cloud(), stage.cloud()
    first = (await push(one, segment("a"))).commit
    second = (await push(one, segment("b", at=2), base=first)).commit
    assert await other.read_head("p", "call-42") == second
    await one.delete_index("p", "call-42")
    for cloud in (one, other, stage.cloud()):
        assert await cloud.read_head("p", "call-42") is None
        assert await cloud.list_indexes("p") == []
        with pytest.raises(IndexNotFoundError):
            await cloud.delete_index("p", "call-42")
    assert stage.paths() == ["p/call-42/log/000000000003.json"]
    anew = (await push(other, segment("c", at=3), on_conflict="error")).commit
    assert anew.version == 4
    assert anew.index_id != second.index_id
    assert await documents(one) == {"c": "secret 3"}


async def test_pushing_after_a_deletion(stage: Stage) -> None:
    """Whoever still had the deleted index: `error` tells, `merge` adds its own, `replace` restores all."""
    cloud = stage.cloud()
    base = (await push(cloud, segment("a"))).commit
    await cloud.delete_index("p", "call-42")
    delta = segment("b", at=2)
    with pytest.raises(ConflictError):
        await push(cloud, delta, base=base, on_conflict="error")
    with pytest.raises(ConflictError, match="gone"):
        await push(cloud, delta, base=base, on_conflict="replace")
    await push(cloud, delta, base=base, on_conflict="merge", doc_count=2)
    assert await documents(cloud) == {"b": "secret 2"}
    await cloud.delete_index("p", "call-42")
    whole = segment("a", "b", at=2)
    await push(cloud, delta, base=base, on_conflict="replace", whole=lambda: whole, doc_count=2)
    assert await documents(cloud) == {"a": "secret 2", "b": "secret 2"}


async def test_a_deletion_that_was_cut_short_is_finished(stage: Stage) -> None:
    """Deleting again removes what a crash in the middle of a deletion left."""
    cloud = stage.cloud()
    base = (await push(cloud, segment("a"))).commit
    left = {path: stage.get(path) for path in stage.paths()}
    await cloud.delete_index("p", "call-42")
    for path, data in left.items():
        stage.put(path, data)
    assert await stage.cloud().read_head("p", "call-42") is None
    with pytest.raises(IndexNotFoundError):
        await stage.cloud().delete_index("p", "call-42")
    assert stage.paths() == [f"p/call-42/log/{base.version + 1:012d}.json"]


async def test_compaction_is_no_conflict(stage: Stage) -> None:
    """Joining segments changes no document, disturbs no pusher, and keeps the segments few."""
    cloud, old = stage.cloud(), stage.cloud()
    base: Commit | None = None
    for n in range(MAX_SEGMENTS):
        base = (await push(cloud, segment(f"doc-{n}", at=n + 1), base=base)).commit
    assert await cloud.compact("p", "call-42") is None
    one = (await push(cloud, segment("one", at=50), base=base)).commit
    before = await documents(cloud)
    joined = await cloud.compact("p", "call-42")
    assert joined is not None
    assert (len(joined.segments), joined.version) == (1, one.version + 1)
    assert (joined.changed, joined.updated_at) == (one.changed, one.updated_at)
    assert await documents(stage.cloud()) == before
    pushed = await push(old, segment("two", at=51), base=one, on_conflict="error")
    assert pushed.merged_from is None
    assert list(await documents(cloud)) == [*before, "two"]


async def test_compaction_forgets_documents_that_are_all_deleted(stage: Stage) -> None:
    """An index whose documents all died stays an index, and their text is left out."""
    cloud = stage.cloud()
    base = (await push(cloud, segment("a", "b"))).commit
    await push(cloud, segment(tombstones={"a": 2, "b": 2}), base=base, doc_count=0)
    joined = await cloud.compact("p", "call-42")
    assert joined is not None
    assert joined.segments == ()  # deleted decades ago, by the clock of this test
    assert await documents(cloud) == {}


async def test_collecting_garbage(stage: Stage) -> None:
    """Collected is what no recent commit names; what is young, recent or named stays."""
    cloud = stage.cloud()
    base: Commit | None = None
    for n in range(MAX_SEGMENTS + 1):
        base = (await push(cloud, segment(f"doc-{n}", at=n + 1), base=base)).commit
    await cloud.put_segment("p", "call-42", segment("orphan"))
    await cloud.compact("p", "call-42")
    everything = stage.paths()
    assert await cloud.collect("p", "call-42") == 0
    assert await stage.collect(cloud, keep=2) > 0
    # The last two commits: the joined segment, and the seventeen of the commit before it.
    assert len(stage.paths()) == 2 + 1 + MAX_SEGMENTS + 1
    before = await documents(stage.cloud())
    removed = await stage.collect(cloud, keep=1)
    assert removed == MAX_SEGMENTS + 2
    assert len(stage.paths()) == 2 < len(everything)
    assert await documents(stage.cloud()) == before

    # A session that was opened long ago: its base is gone, but not what it knows.
    assert base is not None
    old = replace(base, version=1, parent=0, changed=1)
    with pytest.raises(ConflictError, match="gone"):
        await push(cloud, segment("late", at=99), base=old, on_conflict="replace")
    whole = segment("late", at=99)
    await push(
        cloud,
        None,
        base=old,
        on_conflict="replace",
        whole=lambda: whole,
        doc_count=1,
    )
    assert await documents(cloud) == {"late": "secret 99"}


async def test_collecting_stops_at_damage(stage: Stage) -> None:
    """Where it cannot be known what is needed, nothing is removed."""
    cloud = stage.cloud()
    await push(cloud, segment("a"))
    await cloud.put_segment("p", "call-42", segment("orphan"))
    stage.put("p/call-42/log/000000000002.json", b"{}")
    before = stage.paths()
    with pytest.raises(CorruptDataError):
        await stage.collect(cloud, keep=1)
    assert stage.paths() == before


# --- processes -------------------------------------------------------------------------------------

RACER = """
import asyncio, importlib.util, sys
spec = importlib.util.spec_from_file_location("suite", sys.argv[1])
suite = importlib.util.module_from_spec(spec)
sys.modules["suite"] = suite
spec.loader.exec_module(suite)
asyncio.run(suite.{function}(suite.door(sys.argv[2]), *sys.argv[3:]))
"""


def door(where: str) -> Cloud:
    """Open what `Stage.where` told."""
    if where.startswith("http"):
        return Cloud(HttpLog(where, key=os.environ["MOSS_PROJECT_KEY"]))
    if where.startswith("own:"):
        return open_cloud(own_store(where.removeprefix("own:")))
    return open_cloud(where)


def start(
    function: str, cloud: Path | str, *arguments: str, environ: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """Run a function of this module on a cloud in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", RACER.format(function=function), __file__, str(cloud), *arguments],
        cwd=ROOT,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


async def make_numbers(cloud: Cloud, who: str) -> None:
    """Try to make each version that is called out, and tell whether it was won."""
    seed = Commit(
        index="race", index_id="race", version=1, parent=0, changed=1, replaced=None, model_id="m",
        dim=4, analyzer="en-1", segments=(), doc_count=0, created_at=NOW, updated_at=NOW, job_id=who,
    )  # fmt: skip
    for line in sys.stdin:
        version = int(line)
        made = replace(seed, version=version, parent=version - 1, changed=version)
        sys.stdout.write(f"{int(await cloud.commit('p', made))}\n")
        sys.stdout.flush()
    await cloud.close()


def test_of_two_processes_exactly_one_makes_a_version(shared_stage: Stage) -> None:
    """Two processes try to make the same version at the same time, 200 times: one wins, and its commit stands."""
    where, environ = shared_stage.where("p")
    racers = [start("make_numbers", where, who, environ=environ) for who in "ab"]
    winners = []
    for version in range(1, 201):
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write(f"{version}\n")
            racer.stdin.flush()
        won = [int(racer.stdout.readline()) for racer in racers if racer.stdout is not None]
        assert sorted(won) == [0, 1]
        winners.append("ab"[won.index(1)])
    for racer in racers:
        racer.communicate(timeout=60)
        assert racer.returncode == 0
    stands = asyncio.run(shared_stage.cloud().history("p", "race"))
    assert [commit.job_id for commit in stands] == winners
    assert {commit.version: commit.encode() for commit in stands} == {
        version: shared_stage.get(f"p/race/log/{version:012d}.json") for version in range(1, 201)
    }
    assert set(winners) == {"a", "b"}


# --- behind a server -------------------------------------------------------------------------------


@pytest.fixture
def behind(served: tuple[str, Path]) -> Behind:
    return Behind(*served)


async def test_who_may_do_what_behind_a_server(behind: Behind) -> None:
    """A key opens its own project; one that only reads changes nothing; none, or another's, opens nothing."""
    keys = ProjectKeys(open_objects(behind.path))
    full, reads = (await keys.create("p")).key, (await keys.create("p", read_only=True)).key
    elsewhere = (await keys.create("q")).key
    cloud = Cloud(HttpLog(behind.url, key=full))
    assert await cloud.check_credentials("p", None) == "p"
    assert await cloud.check_credentials("p", reads) == "p"
    for project, key in (("p", elsewhere), ("q", full), ("nobodys", full), ("p", full[:-1] + "!")):
        with pytest.raises(AuthenticationError, match="MOSS_PROJECT_KEY"):
            await cloud.check_credentials(project, key)
    head = (await push(cloud, segment("a"))).commit
    reader = Cloud(HttpLog(behind.url, key=reads))
    assert await documents(reader) == {"a": "secret 1"}
    before = behind.paths()
    for attempt in (
        push(reader, segment("b"), base=head),
        reader.put_segment("p", "call-42", segment("c")),
        reader.delete_index("p", "call-42"),
        reader.collect("p", "call-42"),
        reader.put_job("p", job("job-1")),
        reader.log.delete_segment("p", "call-42", head.segments[0].sha256),
    ):
        with pytest.raises(PermissionDeniedError):
            await attempt
    with pytest.raises(InvalidArgumentError, match="grace_s"):
        await cloud.collect("p", "call-42", grace_s=0.0)
    assert behind.paths() == before
    with pytest.raises(AuthenticationError):
        await Cloud(HttpLog(behind.url)).read_head("p", "call-42")


async def test_tokens_that_run_out(behind: Behind) -> None:
    """A client with an authenticator goes on when its token ends, and asks no more often than that."""
    key = await behind.key("p")
    lives_s = [1.0, 600.0]
    issued: list[float] = []

    async def authenticate() -> str:
        issued.append(lives_s[len(issued)])
        async with httpx.AsyncClient() as client:
            answer = await client.post(
                f"{behind.url}/v1/projects/p/tokens",
                json={"expires_in_s": issued[-1], "read_only": False},
                headers={"Authorization": f"Bearer {key}"},
            )
        token: str = answer.json()["token"]
        return token

    cloud = Cloud(HttpLog(behind.url, authenticator=authenticate))
    base: Commit | None = None
    for n in range(1000):
        base = (await push(cloud, segment(f"doc-{n}", at=n + 1), base=base)).commit
        if len(issued) == 2:
            break
    assert base is not None
    assert len(await documents(cloud)) == base.doc_count
    assert issued == lives_s


async def test_new_versions_are_told_of(behind: Behind) -> None:
    """Whoever watches hears of the version that is there, and of each new one, whoever made it."""
    key = await behind.key("p")
    watcher, writer = HttpLog(behind.url, key=key), HttpLog(behind.url, key=key)
    told = watcher.watch("p", "a/b")
    assert told is not None
    assert await anext(told) == 0
    base: Commit | None = None
    for n in range(3):
        base = (await push(Cloud(writer), segment(f"doc-{n}"), index="a/b", base=base)).commit
        assert await anext(told) == base.version
    await Cloud(writer).delete_index("p", "a/b")
    assert await anext(told) == 4
    await told.aclose()


async def test_a_large_segment_behind_a_server(behind: Behind) -> None:
    """Megabytes go up and down in parts, over a line that breaks, and come back as they were."""
    n = 3000
    dice = np.random.default_rng(1)
    vectors = dice.normal(size=(n, 384)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    large = replace(segment(*(f"doc-{row}" for row in range(n))), vectors=vectors)
    sent: list[int] = []
    port = int(behind.url.rpartition(":")[2])
    with FaultyProxy("127.0.0.1", port, seed=5, rates=Faults(truncate=0.4)) as proxy:
        log = HttpLog(
            proxy.url,
            key=await behind.key("p"),
            retries=20,
            sleep=lambda _: asyncio.sleep(0),
            on_sent=lambda done, _: sent.append(done),
        )
        cloud = Cloud(log)
        ref = await cloud.put_segment("p", "big", large)
        assert sent[-1] == ref.size_bytes > 4 << 20
        for _ in range(5):
            assert await cloud.fetch_segment("p", "big", ref) == encode_segment(large)
        await cloud.close()
    assert proxy.counts["truncate"] > 0


@pytest.mark.parametrize("seed", [1, 2, 3])
async def test_a_bad_line_loses_nothing_and_doubles_nothing(behind: Behind, seed: int) -> None:
    """Two writers and a reader over a line that drops, loses, repeats, truncates, fails and delays."""
    rates = Faults(
        drop=0.06, lose=0.06, truncate=0.06, refuse=0.06, fail=0.06, duplicate=0.06, delay=0.1, delay_s=0.01
    )  # fmt: skip
    key = await behind.key("p")
    port = int(behind.url.rpartition(":")[2])
    done = asyncio.Event()
    with FaultyProxy("127.0.0.1", port, seed=seed, rates=rates) as proxy:

        def opened() -> Cloud:
            return Cloud(HttpLog(proxy.url, key=key, sleep=lambda _: asyncio.sleep(0)))

        async def write(who: str) -> None:
            cloud, base = opened(), None
            for n in range(20):
                delta = segment(f"{who}-{n}", at=n + 1)
                for _ in range(20):
                    with suppress(CloudUnavailableError):  # tried again, as a call does at its end
                        base = (await push(cloud, delta, base=base)).commit
                        break
                else:
                    pytest.fail("a push failed twenty times")
            await cloud.close()

        async def read() -> None:
            cloud, known = opened(), 0
            while not done.is_set():
                with suppress(CloudUnavailableError):
                    head = await cloud.read_head("p", "call-42")
                    if head is not None:
                        assert head.version >= known
                        known = head.version
                        await documents(cloud, head=head)
            await cloud.close()

        reading = asyncio.create_task(read())
        await asyncio.gather(write("a"), write("b"))
        done.set()
        await reading
    for fault in ("drop", "lose", "truncate", "refuse", "fail", "duplicate"):
        assert proxy.counts[fault] > 0
    straight = open_cloud(behind.path)
    assert set(await documents(straight)) == {f"{who}-{n}" for who in "ab" for n in range(20)}
    history = await straight.history("p", "call-42")
    assert [commit.version for commit in history] == list(range(1, len(history) + 1))
    # Each push is there once: what was repeated was recognised.
    assert len(history) == 40


# --- directories -----------------------------------------------------------------------------------


def test_racing_processes_lose_nothing(tmp_path: Path) -> None:
    """Two processes of thirty pushes each to one index under `merge`: all sixty are there."""
    racers = [start("race", tmp_path, who) for who in "ab"]
    for racer in racers:
        racer.communicate(timeout=120)
        assert racer.returncode == 0
    found = asyncio.run(documents(open_cloud(tmp_path)))
    assert set(found) == {f"{who}-{n}" for who in "ab" for n in range(30)}


async def push_for_ever(cloud: Cloud) -> None:
    """Push until killed, telling of each push once it is acknowledged."""
    base: Commit | None = None
    for n in range(10_000):
        base = (await push(cloud, segment(f"doc-{n}", at=n + 1), base=base)).commit
        sys.stdout.write(f"doc-{n}\n")
        sys.stdout.flush()


async def test_kill_in_the_middle_of_a_push(tmp_path: Path) -> None:
    """After `kill -9` every acknowledged push is there, whole, and pushing goes on."""
    victim = start("push_for_ever", tmp_path)
    assert victim.stdout is not None
    told = [victim.stdout.readline().strip() for _ in range(5)]
    victim.send_signal(signal.SIGKILL)
    told += victim.communicate()[0].split()
    cloud = open_cloud(tmp_path)
    found = list(await documents(cloud))
    assert found[: len(told)] == told
    assert len(found) <= len(told) + 1
    head = await cloud.read_head("p", "call-42")
    await push(cloud, segment("after", at=10_000), base=head, on_conflict="error")
    assert list(await documents(open_cloud(tmp_path))) == [*found, "after"]


async def push_on_a_full_disk(cloud: Cloud) -> None:
    """Push where no file may grow beyond a few hundred bytes."""
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
    try:
        await push(cloud, segment(*"abc"), base=await cloud.read_head("p", "call-42"))
    except CloudUnavailableError as error:
        sys.stdout.write(f"refused {error}")


@pytest.mark.skipif(sys.platform == "win32", reason="needs setrlimit")
async def test_a_full_disk_is_told_and_harms_nothing(tmp_path: Path) -> None:
    """A push that cannot be written is an error without a debug dump; the index stays as it was."""
    cloud = open_cloud(tmp_path)
    first = await push(cloud, segment("a"))
    out, _ = start("push_on_a_full_disk", tmp_path).communicate(timeout=60)
    assert out.startswith("refused could not write")
    assert "\n" not in out
    assert await open_cloud(tmp_path).read_head("p", "call-42") == first.commit
    assert await documents(cloud) == {"a": "secret 1"}


async def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    """A file where a directory should be is a clear error, at opening and at writing."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(CloudUnavailableError, match="file"):
        open_cloud(tmp_path / "file")
    cloud = open_cloud(tmp_path / "cloud")
    (tmp_path / "cloud" / "p").write_text("x")
    with pytest.raises(CloudUnavailableError, match="Not a directory") as caught:
        await push(cloud, segment("a"))
    assert "Debug" not in str(caught.value)


def test_a_new_directory_is_private(tmp_path: Path) -> None:
    """Transcripts are for their owner, unless the directory was made for more."""
    open_cloud(tmp_path / "deep" / "cloud")
    assert (tmp_path / "deep" / "cloud").stat().st_mode & 0o077 == 0


async def test_open_cloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path, its file URL and the path as text are one place; memory is shared by name."""
    odd = tmp_path / "50% of ü"
    await push(open_cloud(odd), segment("a"))
    for where in (str(odd), odd.as_uri()):
        assert list(await documents(open_cloud(where))) == ["a"]
    await push(open_cloud("memory://one"), segment("m"))
    assert list(await documents(open_cloud("memory://one"))) == ["m"]
    assert await documents(open_cloud("memory://two")) == {}
    monkeypatch.chdir(tmp_path)
    await push(open_cloud("relative"), segment("r"))
    monkeypatch.chdir("/")
    assert list(await documents(open_cloud(tmp_path / "relative"))) == ["r"]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    if sys.platform == "linux":
        assert open_cloud().name == str(tmp_path / "data" / "moss_voice" / "cloud")


@pytest.mark.parametrize(
    "where",
    ["ftp://x", "file://host/x", "s3://", "s3://key:secret@b/p", "s3://b/p?x=1"],
)
def test_open_cloud_elsewhere(where: str) -> None:
    """A URL that this version cannot serve is refused, not taken for a path."""
    with pytest.raises(InvalidArgumentError, match="cloud: expected") as caught:
        open_cloud(where)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "environ"),
    [
        ("s3://bucket/agents", {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}),
        ("gs://bucket/agents", {"GOOGLE_BEARER_TOKEN": "t"}),
        ("az://container/agents", {"AZURE_STORAGE_ACCOUNT_NAME": "a", "AZURE_STORAGE_ACCOUNT_KEY": "YQ=="}),
    ],
)  # fmt: skip
def test_object_stores_are_opened_by_their_urls(
    where: str, environ: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the credentials of their usual environment, and without asking anybody yet."""
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    cloud = open_cloud(where)
    assert cloud.name == where
    assert repr(cloud) == f"<Cloud {where}>"


def test_put_if_absent_is_the_file_systems(tmp_path: Path) -> None:
    """A local directory has the guarantee that all else is built on: no object is replaced or torn."""
    stores = [LocalStore(tmp_path) for _ in range(8)]
    wins: list[int] = []

    def put(number: int) -> None:
        for version in range(20):
            try:
                obstore.put(stores[number], f"v{version}", bytes([number]) * 100_000, mode="create")
                wins.append(version)
            except obstore.exceptions.AlreadyExistsError:
                continue

    in_threads(*(lambda n=n: put(n) for n in range(8)))
    assert sorted(wins) == list(range(20))
    assert {path.name for path in tmp_path.iterdir()} == {f"v{version}" for version in range(20)}
    for version in range(20):
        data = (tmp_path / f"v{version}").read_bytes()
        assert data == data[:1] * 100_000


def test_refs_tell_what_is_inside() -> None:
    """A reference is made of the bytes alone."""
    data = encode_segment(segment("a", "b"))
    assert SegmentRef.of(data, rows=2, tombstones=0).size_bytes == len(data)
