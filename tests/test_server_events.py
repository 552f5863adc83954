"""Whoever watches an index is told of new versions: at once, from anywhere, and by one look for all."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from obstore.store import MemoryStore

from moss_voice.cloud.log import Head
from moss_voice.cloud.objects import Objects, open_objects
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import CloudUnavailableError
from moss_voice.server.events import Hub
from moss_voice.server.refusals import Refusal
from moss_voice.server.settings import Limits, Settings
from moss_voice.server.state import State
from tests.server_process import serve, serve_here
from tests.server_samples import MODEL, Door, code, commit, made

# So long that no test waits for it: what is told before was not found by looking.
NEVER_S = 3600.0


class Reader:
    """Reads an event stream line by line."""

    def __init__(self, lines: Iterator[str]) -> None:
        self.lines = lines

    def version(self) -> int:
        """Return the next version, passing over signs of life."""
        for line in self.lines:
            if line.startswith("data: "):
                assert line.startswith('data: {"version": ')
                return int(line.removeprefix('data: {"version": ').removesuffix("}"))
        raise EOFError


@contextmanager
def watching(door: Door, index: str) -> Iterator[Reader]:
    with door.http.stream("GET", door.path(index, "/events")) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Reader(answer.iter_lines())


@contextmanager
def here(tmp_path: Path, **settings: Any) -> Iterator[tuple[Door, State]]:
    """Give a project behind a server in this process."""
    log = ObjectLog(open_objects(tmp_path / "store"))
    key = asyncio.run(log.keys.create("p")).key
    with serve_here(log, Settings(**settings)) as (url, state):
        door = Door(url, "p", key)
        try:
            yield door, state
        finally:
            door.close()


def wait_until(holds: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(400):
        if holds():
            return
        pause.wait(0.05)
    pytest.fail("it did not come about in time")


def test_a_version_made_here_is_told_at_once(tmp_path: Path) -> None:
    """Commits, changes of documents and deletions are told by the server that took them, unlooked for."""
    with here(tmp_path, watch_interval_s=NEVER_S) as (door, _), watching(door, "call") as reader:
        assert reader.version() == 0
        first = door.push("call", "a")
        assert reader.version() == 1
        door.put_commit(commit("call", on=first))
        assert reader.version() == 2
        body = {
            "model_id": MODEL,
            "documents": [{"id": "b", "text": "t", "embedding": [1, 0, 0, 0]}],
        }
        door.http.post(door.path("call", "/documents"), json=body)
        assert reader.version() == 3
        door.http.post(door.path("call", "/documents/delete"), json={"ids": ["b"]})
        assert reader.version() == 4
        door.http.delete(door.path("call"))
        assert reader.version() == 5
        # Who comes later is told what there is.
        with watching(door, "call") as late:
            assert late.version() == 5


def test_a_refused_commit_is_no_news(tmp_path: Path) -> None:
    """What was not stored is not told, nor what was there already."""
    with here(tmp_path, watch_interval_s=NEVER_S) as (door, _):
        first = door.push("call", "a")
        with watching(door, "call") as reader:
            assert reader.version() == 1
            assert door.put_commit(first).status_code == 200
            sent = made("b")
            assert door.put_commit(commit("call", sent.ref, on=first)).status_code == 409
            other = door.push("other", "a")
            assert other.version == 1
            door.push("call", "b", on=first)
            assert reader.version() == 2


def test_a_version_from_elsewhere_is_told_too(tmp_path: Path) -> None:
    """What came through another server, or straight into the store, is found by looking."""
    with serve(tmp_path / "store") as one, serve(tmp_path / "store") as two:
        project, key = one.project()
        doors = Door(one.url, project, key), Door(two.url, project, key)
        with watching(doors[0], "call") as reader:
            assert reader.version() == 0
            first = doors[1].push("call", "a")
            assert reader.version() == 1
            log = ObjectLog(open_objects(one.store))
            assert asyncio.run(log.write_commit(project, commit("call", on=first)))
            assert reader.version() == 2
        for door in doors:
            door.close()


def test_a_quiet_stream_shows_signs_of_life(tmp_path: Path) -> None:
    """Where nothing happens comments come, so that nobody takes the line for dead."""
    with (
        here(tmp_path, heartbeat_s=0.05, watch_interval_s=NEVER_S) as (door, _),
        door.http.stream("GET", door.path("call", "/events")) as answer,
    ):
        lines = answer.iter_lines()
        said = [next(lines) for _ in range(9)]
    assert said[:3] == ["event: version", 'data: {"version": 0}', ""]
    assert said[3:] == [": still here", ""] * 3


def test_a_project_watches_so_much_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Beyond the limit a stream is a 429; who leaves makes room, and the last one ends the looking."""
    limits = Limits(max_subscribers=2)
    with here(tmp_path, limits=limits, watch_interval_s=0.05) as (door, state):
        with watching(door, "a") as one, watching(door, "a") as two:
            assert (one.version(), two.version()) == (0, 0)
            answer = door.http.get(door.path("b", "/events"))
            assert (answer.status_code, code(answer)) == (429, "rate_limited")
            assert int(answer.headers["retry-after"]) >= 1
            assert repr(state.hub) == "<Hub 2 subscribers of 1 indexes>"
        wait_until(lambda: repr(state.hub) == "<Hub 0 subscribers of 0 indexes>")
        with watching(door, "b") as three:
            assert three.version() == 0
            door.push("b", "a")
            assert three.version() == 1


def test_a_stream_ends_with_its_key(tmp_path: Path) -> None:
    """A key that was revoked hears no more, not even on a line that was open."""
    settings = {"heartbeat_s": 0.05, "key_cache_s": 0.2, "watch_interval_s": NEVER_S}
    with here(tmp_path, **settings) as (door, state):
        (key,) = asyncio.run(ObjectLog(open_objects(tmp_path / "store")).keys.list_keys("p"))
        with door.http.stream("GET", door.path("call", "/events")) as answer:
            lines = answer.iter_lines()
            next(lines)
            log = ObjectLog(open_objects(tmp_path / "store"))
            assert asyncio.run(log.keys.revoke("p", key.id))
            assert sum(1 for _ in lines) < 100
        wait_until(lambda: len(state.hub) == 0)


# --- the hub alone ---------------------------------------------------------------------------------


class Looks(ObjectLog):
    """A log that counts how often it is looked at, and says what it is told to."""

    def __init__(self) -> None:
        super().__init__(Objects(MemoryStore(), name="memory://test"))
        self.count = 0
        self.version = 0
        self.fails = False
        self.looking = asyncio.Event()
        self.gate = asyncio.Event()
        self.gate.set()

    async def head(self, project: str, index: str) -> Head:
        self.count += 1
        self.looking.set()
        version = self.version
        await self.gate.wait()
        if self.fails:
            raise CloudUnavailableError("not now")
        return Head(None if not version else commit("i", version=version, changed=1), version)


async def always() -> bool:
    return True


async def test_one_look_serves_all() -> None:
    """However many watch an index, it is looked at as if one did, and not at all when none does."""
    log = Looks()
    hub = Hub(log, Settings(watch_interval_s=0.01))
    everybody = [await hub.subscribe("p", "i", stands=always) for _ in range(50)]
    assert [await anext(one) for one in everybody] == [0] * 50
    begun = log.count
    await asyncio.sleep(0.1)
    assert log.count - begun <= 11
    log.version = 3
    assert [await anext(one) for one in everybody] == [3] * 50
    for one in everybody:
        one.close()
    await asyncio.sleep(0.03)
    begun = log.count
    await asyncio.sleep(0.05)
    assert log.count == begun


async def test_what_is_told_does_not_go_back() -> None:
    """A look that began before a version was made does not take it back when it ends."""
    log = Looks()
    log.version = 1
    hub = Hub(log, Settings(watch_interval_s=0.01))
    one = await hub.subscribe("p", "i", stands=always)
    assert await anext(one) == 1
    log.gate.clear()
    log.looking.clear()
    await log.looking.wait()
    hub.notify("p", "i", 2)
    assert await anext(one) == 2
    log.version = 2
    log.gate.set()
    await asyncio.sleep(0.05)
    log.version = 3
    assert await anext(one) == 3
    one.close()


async def test_who_is_slow_hears_the_last() -> None:
    """Of many versions at once the newest is told, and none is kept for who does not listen."""
    hub = Hub(Looks(), Settings(watch_interval_s=NEVER_S))
    one = await hub.subscribe("p", "i", stands=always)
    assert await anext(one) == 0
    for version in range(1, 1000):
        hub.notify("p", "i", version)
    assert await anext(one) == 999
    one.close()


async def test_a_store_that_fails_ends_no_stream() -> None:
    """While the store does not answer nothing is told; when it does again, what was made meanwhile is."""
    log = Looks()
    hub = Hub(log, Settings(watch_interval_s=0.01))
    one = await hub.subscribe("p", "i", stands=always)
    assert await anext(one) == 0
    log.fails = True
    await asyncio.sleep(0.05)
    log.version = 4
    log.fails = False
    assert await anext(one) == 4
    one.close()
    log.fails = True
    with pytest.raises(CloudUnavailableError):
        await hub.subscribe("p", "i", stands=always)
    assert len(hub) == 0


async def test_a_closing_hub_ends_every_stream() -> None:
    """All streams end when the hub does, and one that begins then ends at once."""
    hub = Hub(Looks(), Settings(watch_interval_s=NEVER_S, heartbeat_s=NEVER_S))
    streams = [await hub.subscribe("p", str(n), stands=always) for n in range(5)]
    waiting = [asyncio.create_task(_all(stream)) for stream in streams]
    await asyncio.sleep(0)
    hub.close()
    streams.append(await hub.subscribe("p", "late", stands=always))
    waiting.append(asyncio.create_task(_all(streams[-1])))
    async with asyncio.timeout(10):
        assert [len(await told) <= 1 for told in waiting] == [True] * 6
    for stream in streams:
        stream.close()
    assert len(hub) == 0


async def _all(versions: Any) -> list[Any]:
    return [version async for version in versions]


async def test_no_more_than_allowed_at_once() -> None:
    """The limit holds for each project by itself."""
    hub = Hub(Looks(), Settings(limits=Limits(max_subscribers=1), watch_interval_s=NEVER_S))
    one = await hub.subscribe("p", "i", stands=always)
    with pytest.raises(Refusal):
        await hub.subscribe("p", "j", stands=always)
    other = await hub.subscribe("q", "i", stands=always)
    one.close()
    again = await hub.subscribe("p", "j", stands=always)
    for stream in (other, again):
        stream.close()


def test_who_hangs_up_is_noticed(tmp_path: Path) -> None:
    """A client that goes away in the middle of a stream leaves nothing behind, however many do."""
    with here(tmp_path, watch_interval_s=NEVER_S) as (door, state):
        for _ in range(5):
            with httpx.stream(
                "GET", httpx.URL(door.http.base_url).join(door.path("call", "/events")),
                headers=door.http.headers,
            ) as answer:  # fmt: skip
                next(answer.iter_lines())
        wait_until(lambda: len(state.hub) == 0)
        assert door.http.get(door.path()).status_code == 200
