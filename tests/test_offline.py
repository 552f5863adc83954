"""A cloud that is away: what is kept of it is used, what is pushed waits, and all of it heals."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from moss_voice import DocumentInfo, MossClient
from moss_voice.cloud.log import SegmentRef
from moss_voice.cloud.outbox import Entry, Outbox
from moss_voice.cloud.sealing import new_key
from moss_voice.errors import (
    CloudUnavailableError,
    CorruptDataError,
    FormatVersionError,
    JournalError,
)

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., MossClient]:
    """Return what makes clients of one cloud; each `machine` has a cache and an outbox of its own."""

    def client(machine: str = "one", **options: Any) -> MossClient:
        return MossClient(
            cloud=tmp_path / "cloud",
            cache_path=tmp_path / machine / "cache",
            journal_path=tmp_path / machine / "journal",
            **options,
        )

    return client


@contextmanager
def away(tmp_path: Path) -> Iterator[None]:
    """Take the project's directory away: nothing can be read from it or written to it."""
    project, hidden = tmp_path / "cloud" / "default", tmp_path / "hidden"
    project.parent.mkdir(exist_ok=True)
    if project.exists():
        project.rename(hidden)
    project.write_text("no directory")
    try:
        yield
    finally:
        project.unlink()
        if hidden.exists():
            hidden.rename(project)


def docs(*numbers: int) -> list[DocumentInfo]:
    return [DocumentInfo(f"doc-{n}", f"the gate code of house {n} is {n}{n}") for n in numbers]


def waiting(tmp_path: Path, machine: str = "one") -> list[Path]:
    return list((tmp_path / machine / "journal" / "~outbox").rglob("*.push"))


async def settled(client: MossClient) -> None:
    """Wait until what waited to be sent is sent."""
    await client.list_indexes()
    if client._sending is not None:
        await client._sending


# --- reading ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
async def test_what_was_loaded_here_can_be_opened_while_the_cloud_is_away(
    make: Callable[..., MossClient], tmp_path: Path, sealed: bool
) -> None:
    """Sessions and knowledge come from the cache, by a new process too, and say that they are stale."""
    options: dict[str, Any] = {"encryption_key": new_key()} if sealed else {}
    async with make(**options) as client:
        await client.create_index("faq", docs(1, 2, 3))
        await client.create_index("calls", docs(4))
    with away(tmp_path):
        async with make(**options) as client:
            assert await client.load_index("faq") == 3
            found = await client.query("faq", "what is the gate code of house 2?")
            assert found.docs[0].id == "doc-2"
            session = await client.session("calls")
            assert (session.doc_count, session.stale) == (1, True)
            assert "stale" in repr(session)
            with pytest.raises(CloudUnavailableError):
                await client.session("never seen here")
    async with make("another machine", **options) as client:
        assert not (await client.session("calls")).stale


async def test_a_stale_copy_heals_when_the_cloud_is_back(
    make: Callable[..., MossClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next reads bring in what was pushed meanwhile, without being asked to."""
    async with make() as client, make("elsewhere") as other:
        await client.create_index("faq", docs(1))
        await client.load_index("faq")
        await client.unload_index("faq")
        with away(tmp_path):
            async with make() as late:
                await late.load_index("faq")
                stale = late._loaded["faq"]
                assert stale.stale
        await other.add_docs("faq", docs(2))
        with away(tmp_path):
            late = make()
            await late.load_index("faq")
        stale = late._loaded["faq"]
        later = stale._now() + 60.0
        monkeypatch.setattr(stale, "_now", lambda: later)
        await late.query("faq", "gate code")
        task = stale._following["faq"].task
        assert task is not None
        await task
        assert (stale.doc_count, stale.stale) == (2, False)
        await late.close()


async def test_what_others_pushed_meanwhile_is_merged(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """A stale session's push finds out what it missed, and loses nothing of it."""
    async with make() as client, make("elsewhere") as other:
        await client.create_index("calls", docs(1))
        with away(tmp_path):
            late = make()
            session = await late.session("calls")
        await other.add_docs("calls", docs(2))
        await session.add_docs(docs(3))
        pushed = await session.push_index("merge")
        assert pushed.merged is not None
        assert pushed.merged.added == ("doc-2",)
        assert {d.id for d in await client.get_docs("calls")} == {"doc-1", "doc-2", "doc-3"}
        assert not session.stale
        await late.close()


async def test_a_cache_that_lacks_a_segment_is_not_half_an_index(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """An index is opened from the cache whole or not at all."""
    async with make() as client:
        await client.create_index("faq", docs(1))
        await client.add_docs("faq", docs(2))
        await client.load_index("faq")
    segments = sorted((tmp_path / "one/cache/segments").iterdir())
    segments[0].unlink()
    with away(tmp_path):
        async with make() as client:
            with pytest.raises(CloudUnavailableError):
                await client.load_index("faq")


# --- the outbox ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_push_that_the_cloud_does_not_take_waits_for_the_next_client(
    make: Callable[..., MossClient], tmp_path: Path, sealed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is on disk when the push returns, and sent by whoever opens the cloud next, once."""
    options: dict[str, Any] = {"encryption_key": new_key()} if sealed else {}
    async with make(**options) as client:
        session = await client.session("calls")
        await session.add_docs(docs(1))
        await session.push_index()
        await session.add_docs(docs(2, 3))
        await session.delete_docs(["doc-1"])
        with away(tmp_path):
            pushed = await session.push_index()
            assert (pushed.status, pushed.doc_count, pushed.version) == ("pending", 2, 1)
            assert session.unpushed == 3
            assert (await client.get_job_status(pushed.job_id)).status == "pending"
    [path] = waiting(tmp_path)
    assert (b"gate code" in path.read_bytes()) is not sealed
    assert path.stat().st_mode & 0o077 == 0
    async with make("another machine", **options) as other:
        assert (await other.get_index("calls")).doc_count == 1
    async with make(**options) as client:
        await settled(client)
        assert [d.id for d in await client.get_docs("calls")] == ["doc-2", "doc-3"]
        assert waiting(tmp_path) == []
        assert (await client.get_job_status(pushed.job_id)).status == "completed"
    assert "gate code" not in caplog.text


async def test_recover_sends_what_waits(make: Callable[..., MossClient], tmp_path: Path) -> None:
    """`recover` tells of each push that waited, and leaves those of another cloud alone."""
    async with make() as client:
        session = await client.session("calls", "custom")
        await session.add_docs([DocumentInfo("a", "x", None, (1.0, 0.0))])
        with away(tmp_path):
            assert (await session.push_index()).status == "pending"
            assert (await session.push_index()).status == "pending"
            [waits] = waiting(tmp_path)
            [failed] = await client.recover()
            assert failed.status == "failed"
            assert failed.detail.startswith("cloud_unavailable")
    elsewhere = MossClient(
        cloud=tmp_path / "other cloud",
        cache_path=tmp_path / "one/cache",
        journal_path=tmp_path / "one/journal",
    )
    async with elsewhere:
        [found] = await elsewhere.recover()
        assert (found.index_name, found.turns, found.status) == ("calls", 1, "elsewhere")
    assert waits.exists()
    done = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moss_voice.cli", "--json", "recover"),
        *("--journal", str(tmp_path / "one/journal")),
        env={**os.environ, "MOSS_VOICE_CLOUD": str(tmp_path / "cloud")},
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    out, _ = await done.communicate()
    assert done.returncode == 0
    assert all(row["status"] == "pushed" for row in json.loads(out))
    assert waiting(tmp_path) == []
    async with make() as client:
        assert (await client.get_index("calls")).doc_count == 1


async def test_the_session_itself_gets_through_later(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """A later push of the same session takes the place of the one that waits."""
    async with make() as client:
        session = await client.session("calls")
        await session.add_docs(docs(1))
        with away(tmp_path):
            await session.push_index()
            await session.add_docs(docs(2))
            await session.push_index()
            assert len(waiting(tmp_path)) == 1
        pushed = await session.push_index()
        assert (pushed.status, pushed.doc_count, session.unpushed) == ("completed", 2, 0)
        assert waiting(tmp_path) == []


async def test_a_push_that_is_sent_late_discards_nothing(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """What others pushed while it waited stays, even if it was to replace; the newer write wins."""
    async with make() as client, make("elsewhere") as other:
        await client.create_index("calls", docs(1))
        session = await client.session("calls")
        await session.add_docs([DocumentInfo("doc-1", "old"), *docs(2)])
        with away(tmp_path):
            await session.push_index("replace")
        newer = await other.session("calls")
        await newer.add_docs([DocumentInfo("doc-1", "new"), *docs(3)])
        await newer.push_index()
    async with make() as client:
        await settled(client)
        texts = {doc.id: doc.text for doc in await client.get_docs("calls")}
        assert texts["doc-1"] == "new"
        assert set(texts) == {"doc-1", "doc-2", "doc-3"}


async def test_who_wants_to_know_at_once_is_told(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """`error` and `if_unreachable="raise"` raise and keep nothing; nor does a call with a journal."""
    async with make() as client:
        session = await client.session("calls")
        await session.add_docs(docs(1))
        call = await client.call("call-1")
        await call.heard("the gate code is 8842")
        with away(tmp_path):
            for options in ({"on_conflict": "error"}, {"if_unreachable": "raise"}):
                with pytest.raises(CloudUnavailableError):
                    await session.push_index(**options)  # type: ignore[arg-type]
            with pytest.raises(CloudUnavailableError):
                await call.push()
            with pytest.raises(CloudUnavailableError):
                await client.add_docs("calls", docs(2))
        assert waiting(tmp_path) == []
        assert session.unpushed == 1
        await call.discard()


async def test_a_call_without_a_journal_waits_in_the_outbox(
    make: Callable[..., MossClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be journaled is not lost at the end of its call either."""
    monkeypatch.setattr("moss_voice.call.memory._PUSH_PAUSES_S", (0.0,))
    async with make() as client:
        call = await client.call("call-1", journal=False)
        await call.heard("the gate code is 8842", id="turn-1")
        with away(tmp_path):
            result = await call.end()
            assert result is not None
            assert result.status == "pending"
    async with make() as client:
        await settled(client)
        assert [d.id for d in await client.get_docs("call-1")] == ["turn-1"]


async def test_a_disk_that_is_full_too_is_told(
    make: Callable[..., MossClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the push can be kept nowhere the caller hears of it, and the session has its edits."""
    async with make() as client:
        session = await client.session("calls")
        await session.add_docs(docs(1))
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / "journal").write_text("no directory")
        with away(tmp_path), pytest.raises(JournalError, match="outbox"):
            await session.push_index()
        assert session.unpushed == 1
        (tmp_path / "one" / "journal").unlink()
        assert (await session.push_index()).status == "completed"


def entry(**changes: Any) -> Entry:
    told: dict[str, Any] = {
        "project_id": "p",
        "cloud": None,
        "index_name": "Call/42 ü",
        "model_id": "m",
        "dim": 4,
        "analyzer": "en-1",
        "job_id": "j",
        "created_at_ms": 5,
        "base_version": 3,
        "segment": SegmentRef.of(b"segment", rows=1, tombstones=0),
    }
    return Entry(**(told | changes))


def test_an_outbox_gives_back_what_it_was_given_or_an_error(tmp_path: Path) -> None:
    """Any flipped byte or length is an error of ours; what is gone is None; a newer format says so."""
    box = Outbox(tmp_path)
    path = box.place_for("p", "Call/42 ü")
    box.keep(path, entry(), b"segment")
    assert box.find() == box.find("p") == box.find("p", "Call/42 ü") == [path]
    assert box.find("q") == box.find("p", "other") == []
    kept = box.read(path)
    assert kept == (entry(), b"segment")
    whole = path.read_bytes()
    for at in range(len(whole)):
        path.write_bytes(whole[:at])
        with pytest.raises((CorruptDataError, FormatVersionError)):
            box.read(path)
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises((CorruptDataError, FormatVersionError)):
            box.read(path)
    path.write_bytes(whole.replace(b"outbox 1 ", b"outbox 9 "))
    with pytest.raises(FormatVersionError, match="upgrade"):
        box.read(path)
    box.drop(path)
    box.drop(path)
    assert box.read(path) is None
    assert (GOLDEN / "outbox-1.push").read_bytes() == whole


def test_golden_outbox_is_read(tmp_path: Path) -> None:
    """A push that this version kept can be sent by every later one."""
    kept = Outbox(tmp_path).read(GOLDEN / "outbox-1.push")
    assert kept is not None
    assert (kept.entry, kept.data) == (entry(), b"segment")


async def test_a_damaged_push_does_not_hold_up_the_others(
    make: Callable[..., MossClient], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It stays, is told of, and what else waits is sent."""
    caplog.set_level(logging.INFO)
    async with make() as client:
        for name in ("one", "two"):
            session = await client.session(name)
            await session.add_docs(docs(1))
            with away(tmp_path):
                await session.push_index()
    first, _ = sorted(waiting(tmp_path))
    first.write_bytes(first.read_bytes()[:-1])
    async with make() as client:
        await settled(client)
        assert [index.name for index in await client.list_indexes()] == ["two"]
        assert [one.status for one in await client.recover()] == ["failed"]
    assert waiting(tmp_path) == [first]
