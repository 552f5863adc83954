"""The versions of an index: told, opened, restored, merged and collected, by several sessions."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moss_voice import DocumentInfo, MossClient
from moss_voice.cloud.log import FRESH_S
from moss_voice.cloud.sealing import new_key
from moss_voice.errors import (
    ConflictError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidArgumentError,
)
from moss_voice.session import SessionIndex
from moss_voice.versions import fetch_version


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., MossClient]:
    """Return what makes clients of one cloud, each on a machine of its own."""

    def client(machine: str = "one") -> MossClient:
        return MossClient(
            cloud=tmp_path / "cloud",
            cache_path=tmp_path / machine / "cache",
            journal_path=tmp_path / machine / "journal",
        )

    return client


def docs(*numbers: int, text: str = "house") -> list[DocumentInfo]:
    return [DocumentInfo(f"doc-{n}", f"{text} {n}") for n in numbers]


async def ids(client: MossClient, name: str = "calls") -> list[str]:
    return [doc.id for doc in await client.get_docs(name)]


def age(path: Path, seconds: float) -> None:
    """Make a stored object as old as it will be."""
    at = time.time() - seconds
    os.utime(path, (at, at))


# --- merging ---------------------------------------------------------------------------------------


async def test_two_agents_that_push_keep_both_and_the_second_is_told(
    make: Callable[..., MossClient],
) -> None:
    """Under `merge` additions, corrections and deletions of both are there, and named to who merges."""
    async with make() as client, make("other") as other:
        await client.create_index("calls", docs(1, 2, 3, 4))
        one, two = await client.session("calls"), await other.session("calls")
        await one.add_docs([*docs(5), *docs(2, text="corrected by one")])
        await one.delete_docs(["doc-3"])
        assert (await one.push_index("merge")).merged is None
        await two.add_docs([*docs(6), *docs(1, text="corrected by two")])
        await two.delete_docs(["doc-4"])
        pushed = await two.push_index("merge")
        told = pushed.merged
        assert told is not None
        assert (told.base_version, told.head_version, pushed.version) == (1, 2, 3)
        assert (told.added, told.updated, told.deleted) == (("doc-5",), ("doc-2",), ("doc-3",))
        assert (pushed.merged_from, pushed.replaced, pushed.doc_count) == (2, None, 4)
        assert await ids(client) == ["doc-1", "doc-2", "doc-5", "doc-6"]
        assert [doc.id for doc in await two.get_docs()] == await ids(client)


async def test_of_two_corrections_of_one_document_the_later_stands(
    make: Callable[..., MossClient],
) -> None:
    """Whoever pushes last does not win by that: the newer write does, a deletion included."""
    async with make() as client, make("other") as other:
        await client.create_index("calls", docs(1, 2))
        one, two = await client.session("calls"), await other.session("calls")
        await two.add_docs([*docs(1, text="older"), *docs(2, text="older")])
        await asyncio.sleep(0.005)
        await one.add_docs(docs(1, text="newer"))
        await one.delete_docs(["doc-2"])
        await one.push_index("merge")
        pushed = await two.push_index("merge")
        assert pushed.merged is not None
        assert (pushed.merged.updated, pushed.merged.deleted) == (("doc-1",), ("doc-2",))
        assert [doc.text for doc in await client.get_docs("calls")] == ["newer 1"]


async def test_error_and_replace_tell_which_versions(make: Callable[..., MossClient]) -> None:
    """`error` raises with both versions and changes nothing; `replace` names what it discarded."""
    async with make() as client, make("other") as other:
        await client.create_index("calls", docs(1))
        one, two = await client.session("calls"), await other.session("calls")
        await one.add_docs(docs(2))
        await one.push_index()
        await two.add_docs(docs(3))
        with pytest.raises(ConflictError) as caught:
            await two.push_index("error")
        assert (caught.value.base_version, caught.value.head_version) == (1, 2)
        assert await ids(client) == ["doc-1", "doc-2"]
        pushed = await two.push_index("replace")
        assert (pushed.replaced, pushed.merged) == (2, None)
        assert await ids(client) == ["doc-1", "doc-3"]


# --- history ---------------------------------------------------------------------------------------


async def test_any_version_that_is_kept_can_be_opened_and_restored(
    make: Callable[..., MossClient],
) -> None:
    """History tells what each version was; an older one is read as it was, and brought back as a new one."""
    async with make() as client, make("other") as other:
        await client.create_index("calls", docs(1))
        await client.add_docs("calls", docs(2))
        await client.delete_docs("calls", ["doc-1"])
        stale = await other.session("calls", version=1)
        assert ([doc.id for doc in await stale.get_docs()], stale.version) == (["doc-1"], 1)
        info = await client.restore_index("calls", 2)
        assert (info.version, info.doc_count) == (4, 2)
        assert await ids(other) == ["doc-1", "doc-2"]
        told = await client.history("calls")
        assert [(v.version, v.kind, v.of, v.doc_count) for v in told] == [
            (4, "restore", 2, 2), (3, "push", None, 1), (2, "push", None, 2), (1, "push", None, 1)
        ]  # fmt: skip
        assert [v.current for v in told] == [True, False, False, False]
        assert all(v.size_bytes > 0 and v.segments > 0 for v in told)
        # What is pushed from an older version conflicts with what came after it.
        await stale.add_docs(docs(9))
        with pytest.raises(ConflictError):
            await stale.push_index("error")
        await stale.push_index("merge")
        assert await ids(client) == ["doc-1", "doc-2", "doc-9"]
        assert (await client.restore_index("calls", 5)).version == 5
        for missing in (0, 6, 99):
            with pytest.raises(IndexNotFoundError, match=f"no version {missing}"):
                await client.session("calls", version=missing)
            with pytest.raises(IndexNotFoundError):
                await client.restore_index("calls", missing)
        for call in (client.history("none"), client.restore_index("none", 1)):
            with pytest.raises(IndexNotFoundError):
                await call


async def test_a_deleted_index_has_no_history(make: Callable[..., MossClient]) -> None:
    """Its versions are gone for good, also when it is made anew."""
    async with make() as client:
        await client.create_index("calls", docs(1))
        await client.add_docs("calls", docs(2))
        await client.delete_index("calls")
        with pytest.raises(IndexNotFoundError):
            await client.history("calls")
        with pytest.raises(IndexNotFoundError):
            await client.session("calls", version=1)
        await client.create_index("calls", docs(3))
        assert [v.version for v in await client.history("calls")] == [4]


async def test_a_version_that_only_joins_segments_is_upkeep(
    make: Callable[..., MossClient],
) -> None:
    """After many pushes the cloud joins segments by itself; history says that no document changed."""
    async with make() as client:
        session = await client.session("calls")
        for n in range(20):
            await session.add_docs(docs(n))
            await session.push_index()
        kinds = {v.kind for v in await client.history("calls")}
        assert kinds == {"push", "upkeep"}
        assert await ids(client) == [f"doc-{n}" for n in range(20)]


# --- collecting ------------------------------------------------------------------------------------


async def test_what_nothing_refers_to_goes_after_its_time(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """Old versions and unnamed segments go, but only what was unnamed an hour ago; what is named stays."""
    async with make() as client:
        session = await client.session("calls")
        for n in range(34):
            await session.add_docs(docs(n))
            await session.push_index()
        folder = tmp_path / "cloud" / "default" / "calls"
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert await client.collect_index("calls") == 0
        for path in files:
            age(path, 3 * 24 * 3600)
        commits = len(list((folder / "log").iterdir()))
        removed = await client.collect_index("calls")
        assert removed == commits - 10
        note = folder / "gc.json"
        unnamed = note.read_text().count("T")
        assert unnamed > 5
        assert await client.collect_index("calls") == 0
        aged = time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime(time.time() - FRESH_S - 5))
        note.write_text(re.sub(r'"20\d\d-[^"]*"', f'"{aged}"', note.read_text()))
        assert await client.collect_index("calls") == unnamed
        assert not note.exists()
        for version in await client.history("calls"):
            assert (await client.session("calls", version=version.version)).doc_count > 0
        assert await ids(client) == [f"doc-{n}" for n in range(34)]
        for bad in ({"grace": 60}, {"keep": 0}, {"grace": timedelta(0)}):
            with pytest.raises(InvalidArgumentError):
                await client.collect_index("calls", **bad)


async def test_a_push_under_way_keeps_what_it_uses(
    make: Callable[..., MossClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collections between a push's segment and its commit, and a restore's, take nothing from under them."""
    async with make() as client, make("other") as other:
        await client.create_index("calls", docs(1))
        await client.add_docs("calls", docs(2))
        await client.restore_index("calls", 1)
        folder = tmp_path / "cloud" / "default" / "calls"
        remote = await client._remote()
        log = remote.cloud.log
        write = log.write_commit

        async def commit_later(project: str, commit: Any) -> bool:
            # The segments are there, and nothing names them yet.
            for path in folder.glob("log/*.json"):
                age(path, 9 * 24 * 3600)
            for _ in range(3):
                await other.collect_index("calls", grace=FRESH_S, keep=1)
            return await write(project, commit)

        monkeypatch.setattr(log, "write_commit", commit_later)
        session = await client.session("calls")
        await session.add_docs(docs(3))
        await session.push_index()
        # Version 2's own segment is unnamed, and as old as can be, when it is restored.
        monkeypatch.setattr(log, "write_commit", write)
    async with make("third") as client:
        assert await ids(client) == ["doc-1", "doc-3"]
        remote = await client._remote()
        head = await remote.cloud.read_head("default", "calls")
        assert head is not None
        assert len((await fetch_version(remote, head)).index) == 2


async def test_restoring_makes_old_segments_young(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """What only an old version named is stored again before the new one names it."""
    async with make() as client:
        await client.create_index("calls", docs(1))
        session = await client.session("calls")
        await client.delete_docs("calls", ["doc-1"])
        folder = tmp_path / "cloud" / "default" / "calls"
        head = await (await client._remote()).cloud.read_commit("default", "calls", 1)
        assert head is not None
        # As `replace` from elsewhere would have made it: the old segment is named by version 1 alone.
        other = await SessionIndex.start(await client._remote(), "calls")
        await other.add_docs(docs(7))
        await other.push_index("replace")
        path = folder / "segments" / head.segments[0].sha256
        age(path, 9 * 24 * 3600)
        await client.restore_index("calls", 1)
        assert time.time() - path.stat().st_mtime < 60
        assert await ids(client) == ["doc-1"]
        await session.close()


# --- copying ---------------------------------------------------------------------------------------


async def test_an_index_is_copied_with_its_vectors(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """Between clouds, projects and keys, nothing embedded anew; never over what is there."""
    key = new_key()
    sealed = MossClient(
        cloud=tmp_path / "vault", cache_path=tmp_path / "v", journal_path=tmp_path / "vj", encryption_key=key
    )  # fmt: skip
    async with make() as client, sealed:
        await client.create_index("faq", docs(1, 2, 3), ttl=3600)
        await client.delete_docs("faq", ["doc-2"])
        copied = await client.copy_index("faq", to=sealed)
        assert (copied.index_name, copied.doc_count) == ("faq", 2)
        assert (await sealed.get_index("faq")).encrypted
        one, other = await client.session("faq"), await sealed.session("faq")
        assert [d.id for d in await other.get_docs()] == ["doc-1", "doc-3"]
        assert np.array_equal(one.vectors_of(["doc-3"]), other.vectors_of(["doc-3"]))
        with pytest.raises(IndexExistsError):
            await client.copy_index("faq", to=sealed)
        assert (await sealed.copy_index("faq", to=client, new_name="back")).doc_count == 2
        assert not (await client.get_index("back")).encrypted
        with pytest.raises(IndexNotFoundError):
            await client.copy_index("none", to=sealed)
