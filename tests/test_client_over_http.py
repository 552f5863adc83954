"""The whole client against a real server process: calls, live refresh, keys and tokens, outages."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from moss_voice import DocumentInfo, MossClient, QueryOptions
from moss_voice.errors import (
    AuthenticationError,
    CloudUnavailableError,
    IndexNotFoundError,
    PermissionDeniedError,
)
from moss_voice.session import SessionIndex
from tests.server_process import Server, serve

PATIENCE_S = 20.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("store")) as running:
        yield running


Make = Callable[..., MossClient]


@pytest.fixture
async def make(server: Server, tmp_path: Path) -> AsyncIterator[Make]:
    """Return what makes clients of one project, each on a machine of its own, closed at the end."""
    project, key = await asyncio.to_thread(server.project)
    async with AsyncExitStack() as stack:

        def client(machine: str = "one", **options: Any) -> MossClient:
            made = MossClient(
                options.pop("project", project),
                None if "authenticator" in options else options.pop("key", key),
                cloud=server.url,
                cache_path=tmp_path / machine / "cache",
                journal_path=tmp_path / machine / "journal",
                **options,
            )
            stack.push_async_callback(made.close)
            return made

        yield client


def docs(*numbers: int) -> list[DocumentInfo]:
    return [DocumentInfo(f"doc-{n}", f"the gate code of house {n} is {n}{n}") for n in numbers]


async def until(holds: Callable[[], object | Awaitable[object]]) -> float:
    """Wait until something holds; returns how many seconds that took."""
    started = time.monotonic()
    async with asyncio.timeout(PATIENCE_S):
        while True:
            value = holds()
            if await value if isinstance(value, Awaitable) else value:
                return time.monotonic() - started
            await asyncio.sleep(0.005)


def has_docs(index: SessionIndex, n: int) -> bool:
    return index.doc_count == n


def loaded(client: MossClient, name: str) -> SessionIndex:
    return client._loaded[name]


# --- calls -----------------------------------------------------------------------------------------


async def test_a_call_is_handed_from_agent_to_agent(make: Make) -> None:
    """One agent's call is pushed through the server and resumed by another on another machine."""
    one, other = make(), make("other")
    await one.create_index("faq", docs(1, 2))
    call = await one.call("call-42", knowledge=["faq"])
    await call.heard("I was charged twice in March, forty nine ninety nine", id="turn-1")
    result = await call.end()
    assert result is not None
    assert (result.status, result.version) == ("completed", 1)
    taken_up = await other.call("call-42", knowledge=["faq"])
    assert taken_up.counters.turns == 1
    hits = await taken_up.recall("how much was I charged?")
    assert [hit.id for hit in hits] == ["turn-1"]
    await taken_up.heard("it was refunded", speaker="agent", id="turn-2")
    await taken_up.end()
    assert (await one.get_index("call-42")).doc_count == 2
    assert (await one.get_job_status(result.job_id)).status == "completed"


async def test_what_goes_and_comes_is_told(make: Make) -> None:
    """A push tells of each part as it is sent, a load as it comes; what is there is not sent again."""
    sent: list[tuple[int, int]] = []
    received: list[tuple[str, int, int]] = []
    client = make(on_sent=lambda *told: sent.append(told))
    await client.create_index("faq", docs(*range(50)))
    assert sent[-1][0] == sent[-1][1] > 50 * 384 * 4
    sent.clear()
    session = await client.session("faq")
    await session.push_index()
    assert sent == []
    other = make("other", on_received=lambda *told: received.append(told))
    await other.load_index("faq")
    assert [name for name, _, _ in received] == ["faq"] * len(received)
    assert received[-1][1] == received[-1][2] > 50 * 384 * 4
    received.clear()
    await other.unload_index("faq")
    await other.load_index("faq")
    assert received == []


async def test_the_doctor_looks_at_a_server(make: Make, server: Server, tmp_path: Path) -> None:
    """It tries who wins a commit where the key may write, and says so where it may not."""
    project = make()._project_id
    _, key = await asyncio.to_thread(server.project, project)
    _, read_only = await asyncio.to_thread(server.project, project, read_only=True)
    for credential, expected in ((key, "the first one wins"), (read_only, "may read, and no more")):
        done = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "moss_voice.cli", "--json", "--cloud", server.url, "doctor"),
            env={
                **os.environ,
                "MOSS_PROJECT_ID": str(project),
                "MOSS_PROJECT_KEY": credential,
                "XDG_DATA_HOME": str(tmp_path),
            },
            cwd=Path(__file__).parents[1],
            stdout=asyncio.subprocess.PIPE,
        )
        told, _ = await done.communicate()
        checks = {check["name"]: check for check in json.loads(told)["checks"]}
        assert checks["cloud"]["status"] == "ok"
        assert expected in checks["cloud"]["told"]
    assert await make().list_indexes() == []


async def test_the_management_of_indexes(make: Make) -> None:
    """History, restore, retention, collection, encryption and forgetting go through the server too."""
    client = make()
    await client.create_index("calls", docs(1), ttl=3600)
    await client.add_docs("calls", docs(2))
    assert (await client.get_index("calls")).ttl_s == 3600
    assert [v.version for v in await client.history("calls")] == [2, 1]
    assert (await client.restore_index("calls", 1)).doc_count == 1
    assert (await client.set_ttl("calls", None)).ttl_s is None
    assert await client.collect_index("calls") == 0
    await client.add_docs("calls", [DocumentInfo("x", "private words", {"caller": "c-1"})])
    found = await client.forget({"field": "caller", "condition": {"$eq": "c-1"}})
    assert [(one.index, one.documents, one.pending) for one in found] == [("calls", 1, 0)]
    assert [v.current for v in await client.history("calls")] == [True]
    await client.delete_index("calls")
    with pytest.raises(IndexNotFoundError):
        await client.history("calls")
    assert await client.list_indexes() == []
    # Its last commit says that it is deleted, and so it is still to be looked into.
    assert await client.list_names() == ["calls"]
    assert await client.forget({"field": "caller", "condition": {"$eq": "c-1"}}) == []


# --- who may -----------------------------------------------------------------------------------------


async def test_keys(make: Make, server: Server) -> None:
    """A wrong key, none, and another project's open nothing; a read-only one reads and does not push."""
    client = make()
    await client.create_index("faq", docs(1))
    _, foreign = await asyncio.to_thread(server.project)
    for key in ("mv_000000000000_" + "x" * 32, "secret", foreign):
        with pytest.raises(AuthenticationError) as caught:
            await make(key=key).session("faq")
        assert key not in str(caught.value)
    nobody = MossClient("project-1", None, cloud=server.url)
    with pytest.raises(AuthenticationError):
        await nobody.session("faq")
    await nobody.close()
    project = client._project_id
    _, read_only = await asyncio.to_thread(server.project, project, read_only=True)
    reader = make("reader", key=read_only)
    assert await reader.load_index("faq") == 1
    session = await reader.session("faq")
    await session.add_docs(docs(2))
    with pytest.raises(PermissionDeniedError):
        await session.push_index()
    assert session.unpushed == 1
    with pytest.raises(PermissionDeniedError):
        await reader.delete_index("faq")
    assert (await client.get_index("faq")).doc_count == 1


async def test_tokens_of_an_authenticator(make: Make, server: Server) -> None:
    """A token stands for a key where none may be: it is asked for anew when it is refused."""
    client = make()
    await client.create_index("faq", docs(1))
    project, key = client._project_id, client._project_key
    assert key is not None
    asked: list[str] = []

    async def authenticator() -> str:
        async with httpx.AsyncClient(base_url=server.url, headers=server.bearer(key)) as http:
            answer = await http.post(
                f"/v1/projects/{project}/tokens",
                json={"expires_in_s": 60, "read_only": True},
            )
        answer.raise_for_status()
        asked.append("stale" if not asked else answer.json()["token"])
        return asked[-1]

    with_token = make("browser", authenticator=authenticator)
    assert await with_token.load_index("faq") == 1
    assert len(asked) == 2
    assert (await with_token.get_index("faq")).doc_count == 1
    assert len(asked) == 2
    with pytest.raises(AuthenticationError, match="authenticator"):
        await with_token.session("faq")
    with pytest.raises(PermissionDeniedError):
        await with_token.delete_index("faq")


# --- live refresh ------------------------------------------------------------------------------------


async def test_a_new_version_is_there_at_once(make: Make) -> None:
    """The server tells of a push, and the loaded copy has it, long before anybody would have looked."""
    writer, reader = make(), make("reader")
    await writer.create_index("faq", docs(1))
    await reader.load_index("faq", auto_refresh=True, polling_interval_in_seconds=3600)
    index = loaded(reader, "faq")
    took: list[float] = []
    for n in range(2, 7):
        await writer.add_docs("faq", docs(n))
        took.append(await until(partial(has_docs, index, n)))
    assert index.version == 6
    # An hour was the interval: nothing but the server's word can have been so quick.
    assert max(took) < 5.0
    found = await reader.query("faq", "gate code of house 6", QueryOptions(top_k=1))
    assert found.docs[0].id == "doc-6"


async def test_unpushed_edits_pause_it(make: Make) -> None:
    """A session with edits of its own is left alone, and catches up once it has pushed."""
    writer, agent = make(), make("agent")
    await writer.create_index("faq", docs(1))
    session = await agent.session("notes")
    await session.load_index("faq", auto_refresh=True, polling_interval_in_seconds=3600)
    await session.push_index()
    await session.add_docs(docs(100))
    await writer.add_docs("faq", docs(2))
    source = session._following["faq"]
    await until(lambda: source.missed)
    assert session.doc_count == 2
    await session.push_index()
    await session.get_docs()
    await until(lambda: session.doc_count == 3)
    await session.close()


async def test_queries_go_on_while_the_index_is_swapped(make: Make) -> None:
    """Every answer is of one whole version, however often it changes underneath."""
    writer, reader = make(), make("reader")
    await writer.create_index("faq", docs(*range(50)))
    await reader.load_index("faq", auto_refresh=True, polling_interval_in_seconds=3600)
    done = asyncio.Event()
    seen: set[int] = set()

    async def ask() -> None:
        while not done.is_set():
            found = await reader.query("faq", "gate code", QueryOptions(top_k=1000, alpha=0.0))
            ids = {doc.id for doc in found.docs}
            assert len(ids) % 50 == 0, len(ids)
            seen.add(len(ids))

    async def write() -> None:
        try:
            for n in range(1, 6):
                await writer.add_docs("faq", docs(*range(50 * n, 50 * n + 50)))
                await until(partial(has_docs, loaded(reader, "faq"), 50 * n + 50))
        finally:
            done.set()

    await asyncio.gather(write(), ask(), ask())
    assert 300 in seen
    assert len(seen) > 1


async def test_a_line_that_is_cut_is_taken_up_again(tmp_path: Path) -> None:
    """The server dies and comes back: the copy goes on answering, then hears of new versions again."""
    store = tmp_path / "store"
    with serve(store) as server:
        project, key = await asyncio.to_thread(server.project)
        options: dict[str, Any] = {"cloud": server.url, "cache_path": tmp_path / "cache"}
        async with (
            MossClient(project, key, **options, journal_path=tmp_path / "j") as client,
            MossClient(project, key, **options, journal_path=tmp_path / "k") as writer,
        ):
            await writer.create_index("faq", docs(1))
            await client.load_index("faq", auto_refresh=True, polling_interval_in_seconds=3600)
            await asyncio.to_thread(server.kill)
            assert (await client.query("faq", "gate code")).docs
            with pytest.raises(CloudUnavailableError):
                await writer.list_indexes()
            await asyncio.to_thread(server.start)
            await writer.add_docs("faq", docs(2))
            await until(lambda: loaded(client, "faq").doc_count == 2)


# --- outages -----------------------------------------------------------------------------------------


async def test_a_server_that_is_away_costs_nothing(tmp_path: Path) -> None:
    """What was loaded is opened from the cache, a push waits, and the next client sends it."""
    with serve(tmp_path / "store") as server:
        project, key = await asyncio.to_thread(server.project)

        def make_client() -> MossClient:
            return MossClient(
                project,
                key,
                cloud=server.url,
                cache_path=tmp_path / "cache",
                journal_path=tmp_path / "journal",
            )

        async with make_client() as client:
            await client.create_index("faq", docs(1))
            session = await client.session("calls")
            await session.add_docs(docs(1))
            await session.push_index()
        await asyncio.to_thread(server.kill)
        async with make_client() as client:
            assert await client.load_index("faq") == 1
            session = await client.session("calls")
            assert session.stale
            await session.add_docs(docs(2))
            assert (await session.push_index()).status == "pending"
            call = await client.call("call-1", knowledge=["faq"], open_timeout_s=2.0)
            await call.heard("the gate code is 8842", id="turn-1")
            assert await call.end() is None
            with pytest.raises(CloudUnavailableError):
                await client.list_indexes()
        await asyncio.to_thread(server.start)
        async with make_client() as client:
            recovered = await client.recover()
            assert {one.status for one in recovered} <= {"pushed"}
            await until(lambda: client._sending is None or client._sending.done())
            assert (await client.get_index("calls")).doc_count == 2
            assert [doc.id for doc in await client.get_docs("call-1")] == ["turn-1"]
            assert await client.recover() == []


async def test_a_server_that_dies_in_mid_push_leaves_the_last_version(tmp_path: Path) -> None:
    """Killed while segments are sent, again and again: readers see whole pushes, none acknowledged is lost."""
    with serve(tmp_path / "store") as server:
        project, key = await asyncio.to_thread(server.project)
        acknowledged: set[str] = set()
        stop = asyncio.Event()

        async def push_on() -> None:
            client = MossClient(
                project,
                key,
                cloud=server.url,
                cache_path=tmp_path / "cache",
                journal_path=tmp_path / "journal",
            )
            async with client:
                session = await client.session("calls", "custom")
                n = 0
                while not stop.is_set():
                    vector = tuple(float((n * 7 + i) % 11 + 1) for i in range(256))
                    new = [DocumentInfo(f"doc-{n}-{i}", "x" * 500, None, vector) for i in range(40)]
                    await session.add_docs(new)
                    pushed = await session.push_index("merge")
                    if pushed.status == "completed":
                        acknowledged.update(doc.id for doc in await session.get_docs())
                    n += 1

        async def kill_on() -> None:
            try:
                for _ in range(4):
                    await asyncio.sleep(0.4)
                    await asyncio.to_thread(server.kill)
                    await asyncio.to_thread(server.start)
                await asyncio.sleep(0.3)
            finally:
                stop.set()

        await asyncio.gather(push_on(), kill_on())
        reader = MossClient(
            project, key, cloud=server.url, cache_path=tmp_path / "b", journal_path=tmp_path / "bj"
        )
        async with reader:
            found = {doc.id for doc in await reader.get_docs("calls")}
        assert acknowledged
        assert acknowledged <= found
        # Whole pushes: of each, all forty or none.
        assert len(found) % 40 == 0
