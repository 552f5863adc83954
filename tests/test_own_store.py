"""A store that its user wrote, given to `MossClient` as it is: the one of `examples/own_store.py`.

That it keeps what every store promises is shown by the suite in `test_cloud_store.py`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from moss_voice import DocumentInfo, MossClient, Store
from moss_voice.errors import InvalidArgumentError, MossError
from tests.test_cloud_store import own_store


def door(tmp_path: Path, store: Store, **options: Any) -> MossClient:
    return MossClient(
        cloud=store, cache_path=tmp_path / "cache", journal_path=tmp_path / "journal", **options
    )


def turn(id_: str) -> DocumentInfo:
    return DocumentInfo(id_, id_, embedding=(1.0, 0.0))


async def test_a_push_waits_while_the_store_is_away(tmp_path: Path) -> None:
    """What a user's store refuses as away goes to the outbox, and to the store of that name alone."""
    disk = tmp_path / "disk"
    disk.mkdir()
    async with door(tmp_path, own_store(disk / "cloud.db")) as client:
        session = await client.session("call-1", "custom")
        await session.add_docs([turn("a")])
        disk.rename(tmp_path / "unmounted")
        assert (await session.push_index()).status == "pending"
    (tmp_path / "unmounted").rename(disk)
    async with door(tmp_path, own_store(tmp_path / "other.db")) as other:
        assert [one.status for one in await other.recover()] == ["elsewhere"]
        assert await other.list_names() == []
    async with door(tmp_path, own_store(disk / "cloud.db")) as client:
        await client.recover()
        assert [doc.id for doc in await client.get_docs("call-1")] == ["a"]


async def test_projects_in_a_store_have_keys(tmp_path: Path) -> None:
    """The first key of a project is its key in a user's store too."""
    store = own_store(tmp_path / "cloud.db")
    async with door(tmp_path, store, project_id="acme", project_key="right") as client:
        await client.create_index("faq", [turn("a")], "custom")
    async with door(tmp_path, store, project_id="acme", project_key="wrong") as client:
        with pytest.raises(MossError) as refused:
            await client.list_indexes()
    assert refused.value.code == "authentication"


def test_a_client_tells_where_its_store_is(tmp_path: Path) -> None:
    """A store is known by its name, wherever a path or URL would be."""
    store = own_store(tmp_path / "cloud.db")
    assert f"on sqlite://{tmp_path}/cloud.db" in repr(MossClient(cloud=store))


def test_what_is_no_store_is_refused() -> None:
    """A thing that is no path, URL or store is an error, and no directory of its name."""
    for wrong in (object(), 5, b"cloud"):
        with pytest.raises(
            InvalidArgumentError, match=r"expected a path, a URL or a moss_voice\.Store"
        ):
            MossClient(cloud=wrong)  # type: ignore[arg-type]


def test_a_store_that_is_not_whole_is_told_at_once() -> None:
    """A class that lacks a method of the contract cannot be made."""

    class Half(Store):
        pass

    with pytest.raises(TypeError, match="delete, folders, get, listing, put, stored_at"):
        Half()  # type: ignore[abstract]
