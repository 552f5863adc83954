"""The door: credentials, sessions by name, knowledge that is loaded, and the cloud's indexes.

Every client here has a cloud of its own in memory or in a directory; two clients on one cloud stand for
two machines, and where it matters two processes are two processes.
"""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from pydantic import ValidationError

from moss_voice import MossClient
from moss_voice.cloud.cloud import open_cloud
from moss_voice.embedding import OnnxEmbedder
from moss_voice.errors import (
    AuthenticationError,
    CloudUnavailableError,
    ConflictError,
    CorruptDataError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidArgumentError,
    JobNotFoundError,
    ModelMismatchError,
    MossError,
    SessionClosedError,
)
from moss_voice.types import (
    DocumentInfo,
    GetDocumentsOptions,
    JobStatusResponse,
    MutationOptions,
    QueryOptions,
)

ROOT = Path(__file__).parents[1]


@pytest.fixture
def where() -> str:
    return f"memory://{uuid4().hex}"


def doc(id_: str, *vector: float, text: str = "", **metadata: Any) -> DocumentInfo:
    return DocumentInfo(id_, text or f"text of {id_}", metadata or None, vector or (1.0, 0.0, 0.0))


async def stored(client: MossClient, name: str, *docs: DocumentInfo) -> None:
    await client.create_index(name, docs, "custom")


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that gets an entry for each run of a model, with how many texts it has."""
    runs: list[int] = []
    run = OnnxEmbedder._run

    def counted(self: OnnxEmbedder, batch: list[list[int]]) -> Any:
        runs.append(len(batch))
        return run(self, batch)

    monkeypatch.setattr(OnnxEmbedder, "_run", counted)
    return runs


# --- the guide, step by step -----------------------------------------------------------------------


async def test_a_call_is_handed_from_one_agent_to_another(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Agent A adds and pushes; agent B opens the same name, has it all without a model run, and goes on."""
    async with MossClient(cloud=where) as a:
        session = await a.session(index_name="conv-123")
        assert session.doc_count == 0
        added, updated = await session.add_docs(
            [
                DocumentInfo(id="turn-1", text="Customer reported a duplicate $49.99 charge."),
                DocumentInfo(id="turn-2", text="Agent confirmed a refund in 3-5 business days."),
            ]
        )
        assert (added, updated) == (2, 0)
        result = await session.push_index()
        assert (result.index_name, result.doc_count, result.status) == ("conv-123", 2, "completed")
        vectors = session.vectors_of(["turn-1", "turn-2"])

    async with MossClient(cloud=where) as b:
        runs = count_runs(monkeypatch)
        session = await b.session(index_name="conv-123")
        assert session.doc_count == 2
        np.testing.assert_array_equal(session.vectors_of(["turn-1", "turn-2"]), vectors)
        assert runs == []
        results = await session.query("status of the refund", QueryOptions(top_k=3))
        assert [hit.id for hit in results.docs] == ["turn-2", "turn-1"]
        assert len(runs) == 1
        await session.add_docs([DocumentInfo(id="turn-3", text="The refund has posted.")])
        assert (await session.push_index()).doc_count == 3
        assert (await b.get_index("conv-123")).doc_count == 3


async def test_a_live_call_asks_the_session_and_the_knowledge(where: str) -> None:
    """A loaded index for all times, a session for this call: both answer, each under its own name."""
    async with MossClient(cloud=where) as client:
        await client.create_index(
            "support-faqs",
            [
                DocumentInfo("refunds", "Refunds take three to five business days."),
                DocumentInfo("parking", "Parking is free for guests."),
            ],
        )
        assert await client.load_index("support-faqs") == 2
        session = await client.session(index_name="call-abc")
        await session.add_docs([DocumentInfo("turn-1", "Customer was billed twice.")])
        turn = "how long does a refund take"
        recent, knowledge = await asyncio.gather(
            session.query(turn, QueryOptions(top_k=3)),
            client.query("support-faqs", turn, QueryOptions(top_k=1)),
        )
        assert [(hit.id, hit.index_name) for hit in recent.docs] == [("turn-1", "call-abc")]
        assert [(hit.id, hit.index_name) for hit in knowledge.docs] == [("refunds", "support-faqs")]
        await session.push_index()
        assert await client.unload_index("support-faqs") is True
        assert await client.unload_index("support-faqs") is False


# --- credentials -----------------------------------------------------------------------------------


async def test_a_wrong_key_raises_when_a_session_is_opened(where: str) -> None:
    """A project belongs to the first key it is used with; any other, or none, is refused at the door."""
    async with MossClient("acme", "right", cloud=where) as client:
        await (await client.session("s", "custom")).close()
    for key in ("wrong", None):
        client = MossClient("acme", key, cloud=where)
        opened: list[Callable[[MossClient], Awaitable[object]]] = [
            lambda client: client.session("s", "custom"),
            lambda client: client.call("s", model_id="custom"),
            lambda client: client.load_index("s"),
            lambda client: client.list_indexes(),
            lambda client: client.recover(),
        ]
        for call in opened:
            with pytest.raises(AuthenticationError, match="project key") as caught:
                await call(client)
            assert isinstance(caught.value, PermissionError)
            assert "right" not in str(caught.value)
            assert str(key) not in str(caught.value)
        await client.close()
    async with MossClient("acme", "right", cloud=where) as client:
        assert await client.session("s", "custom")  # type: ignore[truthy-bool]


async def test_credentials_come_from_the_environment(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MOSS_PROJECT_ID, MOSS_PROJECT_KEY and MOSS_VOICE_CLOUD stand in for what is not given."""
    monkeypatch.setenv("MOSS_PROJECT_ID", "acme")
    monkeypatch.setenv("MOSS_PROJECT_KEY", "right")
    monkeypatch.setenv("MOSS_VOICE_CLOUD", where)
    async with MossClient() as client:
        await stored(client, "faq", doc("a"))
        assert "'acme'" in repr(client)
    async with MossClient("acme", "right", cloud=where) as client:
        assert [info.name for info in await client.list_indexes()] == ["faq"]
    async with MossClient("acme", "wrong") as client:
        with pytest.raises(AuthenticationError):
            await client.session("faq")


async def test_a_key_without_a_project_is_refused(where: str) -> None:
    """Half of the credentials is an error that says which half is missing."""
    async with MossClient(project_key="key", cloud=where) as client:
        with pytest.raises(AuthenticationError, match="MOSS_PROJECT_ID"):
            await client.session("s", "custom")


async def test_a_client_with_an_authenticator_opens_no_sessions(where: str) -> None:
    """session() and call() need a key holder; looking things up does not."""

    async def authenticate() -> str:
        raise AssertionError("an embedded cloud asks nobody")

    async with MossClient(cloud=where) as owner:
        await stored(owner, "faq", doc("a"))
    async with MossClient(cloud=where, authenticator=authenticate) as client:
        for call in (client.session("s"), client.call("s")):
            with pytest.raises(AuthenticationError, match="not with an authenticator"):
                await call
        assert await client.load_index("faq") == 1


async def test_projects_never_see_each_other(where: str, tmp_path: Path) -> None:
    """Same cloud, same names, same cache, same journals: every project has its own."""
    paths: dict[str, Any] = {
        "cloud": where,
        "cache_path": tmp_path / "cache",
        "journal_path": tmp_path / "journal",
    }
    async with MossClient("one", "k1", **paths) as one, MossClient("two", "k2", **paths) as two:
        await stored(one, "faq", doc("a", text="of one"))
        result = await (await one.session("faq")).push_index()
        assert await two.list_indexes() == []
        with pytest.raises(IndexNotFoundError):
            await two.load_index("faq")
        with pytest.raises(IndexNotFoundError):
            await two.delete_index("faq")
        with pytest.raises(JobNotFoundError):
            await two.get_job_status(result.job_id)
        assert (await two.session("faq", "custom")).doc_count == 0
        await stored(two, "faq", doc("b", text="of two"))
        assert [d.text for d in await one.get_docs("faq")] == ["of one"]
        assert [d.text for d in await two.get_docs("faq")] == ["of two"]
        call = await one.call("call-1", model_id="custom")
        await call.heard("hello there", embedding=(1.0, 0.0))
        call._journal.close()  # type: ignore[union-attr]  # as the death of its process would
        assert await two.recover() == []
        recovered = await one.recover()
        assert [(r.index_name, r.turns, r.status) for r in recovered] == [("call-1", 1, "pushed")]
        assert [info.name for info in await two.list_indexes()] == ["faq"]


# --- clouds ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["path", "str", "url", "embedded"])
async def test_a_directory_is_a_cloud(tmp_path: Path, form: str) -> None:
    """A path, a string, a file:// URL, or nothing (the platform's data directory): all the same."""
    given: dict[str, Any] = {
        "path": tmp_path / "c",
        "str": str(tmp_path / "c"),
        "url": f"file://{tmp_path}/c",
    }
    async with MossClient(cloud=given.get(form)) as client:
        await stored(client, "faq", doc("a"))
    async with MossClient(cloud=given.get(form)) as client:
        assert await client.load_index("faq") == 1


async def test_an_unknown_cloud_is_refused(where: str) -> None:
    """A URL of another kind is an error, and so is a name that cannot be one."""
    async with MossClient(cloud="ftp://somewhere") as client:
        with pytest.raises(InvalidArgumentError, match="ftp"):
            await client.session("s", "custom")
    async with MossClient(cloud=where) as client:
        for name in ("", "  ", "a\nb", "x" * 201):
            with pytest.raises(InvalidArgumentError, match="index name"):
                await client.session(name, "custom")


async def test_a_failed_opening_is_tried_again(tmp_path: Path) -> None:
    """A cloud that could not be opened is opened by the next call that needs it."""
    root = tmp_path / "cloud"
    root.write_text("no directory")
    async with MossClient(cloud=root) as client:
        with pytest.raises(CloudUnavailableError):
            await client.session("s", "custom")
        root.unlink()
        assert (await client.session("s", "custom")).doc_count == 0


async def test_a_closed_client_says_so(where: str) -> None:
    """Closing unloads and closes everything; sessions too; a second close does nothing."""
    client = MossClient(cloud=where)
    await stored(client, "faq", doc("a"))
    await client.load_index("faq")
    session = await client.session("s", "custom")
    assert repr(client).endswith("1 loaded>")
    await client.close()
    await client.close()
    assert repr(client).endswith("closed>")
    with pytest.raises(SessionClosedError):
        await session.add_docs([doc("a")])
    for call in (client.session("s"), client.query("faq", "x"), client.list_indexes()):
        with pytest.raises(SessionClosedError, match="client is closed"):
            await call


# --- knowledge that is loaded ----------------------------------------------------------------------


async def test_a_query_loads_what_is_not_loaded_and_filters_it(where: str) -> None:
    """Queries of loaded indexes take the same options and filters as those of sessions."""
    async with MossClient(cloud=where) as client:
        await stored(
            client,
            "faq",
            doc("a", 1.0, 0.0, topic="wifi", price=3),
            doc("b", 0.9, 0.1, topic="parking", price="12.5"),
        )
        vector = (1.0, 0.0)
        assert repr(client).endswith("0 loaded>")
        plain = await client.query("faq", "", QueryOptions(vector))
        assert [hit.id for hit in plain.docs] == ["a", "b"]
        assert repr(client).endswith("1 loaded>")
        only = QueryOptions(vector, filter={"field": "price", "condition": {"$gt": 10}})
        loaded = await client.query("faq", "", only)
        session = await client.session("faq")
        assert [hit.id for hit in loaded.docs] == ["b"]
        assert (await session.query("", only)).docs == loaded.docs
        with pytest.raises(IndexNotFoundError):
            await client.query("nothing", "x")


async def test_loading_again_is_free_and_at_once_is_once(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many callers load an index at once, it is loaded once and shared."""
    async with MossClient(cloud=where) as client:
        await stored(client, "faq", doc("a"))
        assert await asyncio.gather(*(client.load_index("faq") for _ in range(5))) == [1] * 5
        assert len({id(await client._loaded_index("faq")) for _ in range(3)}) == 1
        assert await client.load_indexes(["faq"]) == {"faq": 1}
        for interval in (0, -5):
            with pytest.raises(InvalidArgumentError, match="polling_interval_in_seconds"):
                await client.load_index("faq", True, interval)


async def test_several_indexes_are_loaded_and_unloaded(where: str) -> None:
    """load_indexes tells the counts by name; unload_indexes tells how many it let go of."""
    async with MossClient(cloud=where) as client:
        await stored(client, "one", doc("a"))
        await stored(client, "two", doc("b"), doc("c"))
        assert await client.load_indexes(["one", "two"]) == {"one": 1, "two": 2}
        assert await client.unload_indexes(["one", "nothing"]) == 1
        assert await client.unload_indexes() == 1
        assert await client.unload_indexes() == 0


async def test_a_loaded_index_is_refreshed_when_asked(where: str) -> None:
    """Somebody else's push is seen after refresh_index, which tells whether there was one."""
    async with MossClient(cloud=where) as client, MossClient(cloud=where) as other:
        await stored(client, "faq", doc("a", text="hotel"))
        with pytest.raises(IndexNotFoundError, match="not loaded"):
            await client.refresh_index("faq")
        await client.load_index("faq")
        assert await client.refresh_index("faq") is False
        await other.add_docs("faq", [doc("b", text="hotel")])
        words = QueryOptions(alpha=0.0)
        assert len((await client.query("faq", "hotel", words)).docs) == 1
        assert await client.refresh_index("faq") is True
        assert len((await client.query("faq", "hotel", words)).docs) == 2


async def test_several_indexes_are_queried_as_one(where: str) -> None:
    """The hits of several indexes come merged, best first, each with its index's name, top_k in all."""
    async with MossClient(cloud=where) as client:
        await stored(client, "one", doc("a", 1.0, 0.0), doc("b", 0.0, 1.0))
        await stored(client, "two", doc("c", 0.8, 0.6), doc("a", 0.6, 0.8))
        found = await client.query_multi_index(["one", "two"], "", QueryOptions((1.0, 0.0), 3))
        hits = [(hit.id, hit.index_name) for hit in found.docs]
        assert hits == [("a", "one"), ("c", "two"), ("a", "two")]
        assert found.index_name == "one,two"
        wrong: list[Any] = [[], "one"]
        for names in wrong:
            with pytest.raises(InvalidArgumentError, match="index_names"):
                await client.query_multi_index(names, "x")
        with pytest.raises(IndexNotFoundError):
            await client.query_multi_index(["one", "nothing"], "", QueryOptions((1.0, 0.0)))


# --- the cloud's indexes ---------------------------------------------------------------------------


async def test_an_index_is_made_changed_told_about_and_deleted(where: str) -> None:
    """create, add, get, delete, list: each works on what is stored, at once."""
    before = datetime.now(UTC)
    async with MossClient(cloud=where) as client:
        told: list[tuple[int, int]] = []
        made = await client.create_index(
            "faq",
            [doc("a"), doc("b")],
            "custom",
            on_progress=lambda done, of: told.append((done, of)),
        )
        assert (made.index_name, made.doc_count, told[-1]) == ("faq", 2, (2, 2))
        with pytest.raises(IndexExistsError, match="2 documents") as caught:
            await client.create_index("faq", [doc("x")], "custom")
        assert isinstance(caught.value, ValueError)
        added = await client.add_docs("faq", [doc("c"), doc("a", text="newer")])
        assert added.doc_count == 3
        kept = await client.add_docs(
            "faq", [doc("a", text="no"), doc("d")], MutationOptions(upsert=False)
        )
        assert kept.doc_count == 4
        assert (await client.delete_docs("faq", ["d", "nobody"])).doc_count == 3
        docs = await client.get_docs("faq")
        assert [d.id for d in docs] == ["a", "b", "c"]
        assert docs[0].text == "newer"
        some = await client.get_docs("faq", GetDocumentsOptions(["c", "nobody", "a"]))
        assert [d.id for d in some] == ["c", "a"]
        assert await client.get_docs("faq", GetDocumentsOptions([])) == []
        info = await client.get_index("faq")
        assert (info.name, info.model, info.status, info.doc_count) == ("faq", "custom", "ready", 3)
        assert before <= info.created_at <= info.updated_at <= datetime.now(UTC)
        await stored(client, "another", doc("z"))
        assert [i.name for i in await client.list_indexes()] == ["another", "faq"]
        await client.load_index("faq")
        await client.delete_index("faq")
        assert repr(client).endswith("0 loaded>")
        assert [i.name for i in await client.list_indexes()] == ["another"]
        gone: list[Awaitable[object]] = [
            client.get_index("faq"),
            client.get_docs("faq"),
            client.add_docs("faq", [doc("a")]),
            client.delete_docs("faq", ["a"]),
            client.delete_index("faq"),
            client.load_index("faq"),
        ]
        for call in gone:
            with pytest.raises(IndexNotFoundError) as missing:
                await call
            assert isinstance(missing.value, LookupError)
        await stored(client, "faq", doc("new"))
        again = await client.get_index("faq")
        assert again.id != info.id
        assert again.version > info.version


async def test_nothing_is_made_of_documents_that_cannot_be_stored(where: str) -> None:
    """A refused document leaves no index behind, and a stored one as it was."""
    async with MossClient(cloud=where) as client:
        bad = [doc("a"), DocumentInfo("b", "no vector")]
        with pytest.raises(InvalidArgumentError, match="'b'"):
            await client.create_index("faq", bad, "custom")
        assert await client.list_indexes() == []
        await stored(client, "faq", doc("a"))
        with pytest.raises(InvalidArgumentError, match="'b'"):
            await client.add_docs("faq", bad)
        assert (await client.get_index("faq")).doc_count == 1


async def test_changes_from_many_sides_are_merged(where: str) -> None:
    """add_docs and delete_docs of several clients at once lose nothing."""
    async with MossClient(cloud=where) as one, MossClient(cloud=where) as two:
        await stored(one, "faq", *(doc(f"old{n}") for n in range(4)))
        await asyncio.gather(
            *(client.add_docs("faq", [doc(f"{n}")]) for n, client in enumerate([one, two] * 3)),
            one.delete_docs("faq", ["old1"]),
            two.delete_docs("faq", ["old3"]),
        )
        names = {d.id for d in await one.get_docs("faq")}
        assert names == {"old0", "old2", *map(str, range(6))}
        assert (await two.get_index("faq")).doc_count == 8


async def test_a_job_can_be_asked_for_anywhere(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The job of a push is known to every client of the project; waiting ends when it is done."""
    monkeypatch.setattr("moss_voice.client._POLL_S", 0.0)
    async with MossClient(cloud=where) as client, MossClient(cloud=where) as other:
        session = await client.session("s", "custom")
        await session.add_docs([doc("a")])
        result = await session.push_index()
        status = await other.get_job_status(result.job_id)
        assert (status.job_id, status.status, status.progress) == (result.job_id, "completed", 1.0)
        assert status.error is None
        assert status.completed_at is not None
        assert await other.wait_for_job(result.job_id) == status
        made = await client.create_index("faq", [doc("a")], "custom")
        assert (await other.wait_for_job(made.job_id)).status == "completed"
        for job_id in ("0" * 32, "../../etc/passwd", ""):
            with pytest.raises(JobNotFoundError):
                await other.get_job_status(job_id)
            with pytest.raises(JobNotFoundError):
                await other.wait_for_job(job_id)

        at = datetime.now(UTC)
        running = JobStatusResponse("j1", "running", 0.5, "embedding", None, at, at, None)
        failed = JobStatusResponse("j1", "failed", 0.5, None, "out of disk", at, at, at)
        cloud = open_cloud(where)
        await cloud.put_job("default", running)
        assert (await other.get_job_status("j1")).current_phase == "embedding"
        with pytest.raises(TimeoutError):
            await other.wait_for_job("j1", timeout_s=0.02)
        waiting = asyncio.create_task(other.wait_for_job("j1"))
        await asyncio.sleep(0)
        await cloud.put_job("default", failed)
        assert await waiting == failed


# --- two processes ---------------------------------------------------------------------------------

WRITER = """
import asyncio, sys
from moss_voice import DocumentInfo, MossClient

async def main(cloud, who):
    async with MossClient(cloud=cloud) as client:
        session = await client.session("calls", "custom")
        print("ready", flush=True)
        sys.stdin.readline()
        for push in range(6):
            docs = [
                DocumentInfo(f"{who}-{push}-{n}", "a turn", {"push": f"{who}-{push}"}, (1.0, n))
                for n in range(4)
            ]
            await session.add_docs([*docs, DocumentInfo("shared", f"{who} {push}", None, (1.0, 0.0))])
            await session.push_index("merge")

asyncio.run(main(*sys.argv[1:]))
"""


def _start_writer(cloud: Path, who: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, str(cloud), who],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


async def test_two_processes_push_at_once_and_lose_nothing(tmp_path: Path) -> None:
    """Both merge: every document of both is there in the end, and no reader ever sees half a push."""
    writers = [_start_writer(tmp_path, who) for who in ("one", "two")]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        looks = 0
        async with MossClient(cloud=tmp_path) as client:
            while any(writer.poll() is None for writer in writers):
                session = await client.session("calls", "custom")
                pushes: dict[str, int] = {}
                for each in await session.get_docs():
                    name = str((each.metadata or {}).get("push", ""))
                    pushes[name] = pushes.get(name, 0) + 1
                pushes.pop("", None)
                assert set(pushes.values()) <= {4}
                looks += 1
                await session.close()
            assert [writer.wait() for writer in writers] == [0, 0]
            assert looks > 1
            docs = {d.id: d.text for d in await client.get_docs("calls")}
    finally:
        for writer in writers:
            writer.kill()
            writer.wait()
            for stream in (writer.stdin, writer.stdout):
                if stream is not None:
                    stream.close()
    expected = {
        f"{who}-{push}-{n}" for who in ("one", "two") for push in range(6) for n in range(4)
    }
    assert set(docs) == {*expected, "shared"}
    assert docs["shared"] in ("one 5", "two 5")


# --- silence ---------------------------------------------------------------------------------------

CANARY = "zanzibar"


async def test_no_error_and_no_log_tells_what_was_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever goes wrong, messages and records have ids, names and counts, never a document's text."""
    said = f"the codeword is {CANARY}"
    nan = float("nan")
    root = tmp_path / "cloud"
    caplog.set_level(logging.DEBUG)
    told: list[str] = []

    async def fails(kind: type[BaseException], call: Callable[[], Any]) -> None:
        with pytest.raises(kind) as caught:  # noqa: PT012 - half of the calls are coroutines
            result = call()
            if asyncio.iscoroutine(result):
                await result
        told.append("".join(traceback.format_exception_only(caught.value)))
        cause: BaseException | None = caught.value
        while cause is not None:
            told.append(f"{cause!s} {cause!r}")
            cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)

    metadata: Any = {"note": {"nested": said}}
    await fails(ValidationError, lambda: DocumentInfo("a", said, metadata))
    await fails(ValidationError, lambda: DocumentInfo("", said))
    await fails(ValidationError, lambda: QueryOptions(embedding=said))  # type: ignore[arg-type]
    await fails(ValidationError, lambda: QueryOptions(filter=said))  # type: ignore[arg-type]

    client = MossClient(cloud=root, cache_path=tmp_path / "cache")
    session = await client.session("calls", "custom")
    good = DocumentInfo("a", said, {"note": said}, (1.0, 0.0), {"payload": said})
    await session.add_docs([good])
    bad = [
        DocumentInfo("b", said),
        DocumentInfo("b", said, None, (1.0,)),
        DocumentInfo("b", said, None, (nan, 1.0)),
        DocumentInfo("b", said, None, (0.0, 0.0)),
        DocumentInfo("b", said, None, (1.0, 0.0), {said: object()}),
        DocumentInfo("b", said + "\ud800", None, (1.0, 0.0)),
        DocumentInfo("b", said, {"note": said + "\udfff"}, (1.0, 0.0)),
    ]
    for each in bad:
        await fails(InvalidArgumentError, partial(session.add_docs, [good, each]))
    await fails(InvalidArgumentError, lambda: session.add_docs([said]))  # type: ignore[list-item]
    await fails(InvalidArgumentError, lambda: session.query(said))
    await fails(InvalidArgumentError, lambda: session.query(said, QueryOptions((nan, 0.0))))
    await fails(InvalidArgumentError, lambda: session.query([said]))  # type: ignore[arg-type]
    filters: list[Any] = [
        {"field": "note", "condition": {"$gt": said}},
        {"field": "note", "condition": {"$near": said}},
        {"field": "note", "condition": {"$in": said}},
        {"field": "note", "condition": {"$eq": {said: said}}},
        {"$and": [{"field": "note", "condition": said}]},
        {"$and": said},
    ]
    for condition in filters:
        options = QueryOptions((1.0, 0.0), filter=condition)
        await fails(InvalidArgumentError, partial(session.query, said, options))
    await session.push_index()
    other = await client.session("calls")
    await other.add_docs([good])
    await other.push_index()
    await session.add_docs([good])
    await fails(ConflictError, lambda: session.push_index("error"))
    await fails(IndexExistsError, lambda: client.create_index("calls", [good], "custom"))
    await fails(ModelMismatchError, lambda: client.session("calls", "moss-minilm"))

    segments = root / "default/calls/segments"
    log = max((root / "default/calls/log").iterdir())
    for path in segments.iterdir():
        data = path.read_bytes()
        assert CANARY.encode() in data
        path.write_bytes(data[:-40])
    nobody = MossClient(cloud=root, cache_path=tmp_path / "other cache")
    await fails(CorruptDataError, lambda: nobody.session("calls"))
    await fails(CorruptDataError, lambda: nobody.query("calls", said, QueryOptions((1.0, 0.0))))
    log.write_text(f'{{"format": 1, "index": "{CANARY}"}}')
    await fails(CorruptDataError, lambda: nobody.session("calls"))
    root.rename(tmp_path / "away")
    root.write_text("no directory")
    await fails(CloudUnavailableError, lambda: session.push_index(if_unreachable="raise"))
    assert (await session.push_index()).status == "pending"
    await fails(MossError, lambda: client.add_docs("calls", [good]))
    await client.close()
    await fails(SessionClosedError, lambda: session.add_docs([good]))
    await fails(SessionClosedError, lambda: session.query(said))
    await nobody.close()

    told += [record.getMessage() for record in caplog.records]
    told += [str(record.exc_info) for record in caplog.records if record.exc_info]
    assert len(told) > 40
    for text in told:
        assert CANARY not in text
    assert CANARY not in repr(session) + repr(client) + repr(other)
