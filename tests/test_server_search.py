"""Search on the server: what a client finds, without a client; and documents listed through a filter."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import pytest

from moss_voice import DocumentInfo, MossClient, QueryOptions
from moss_voice.cloud.objects import open_objects
from moss_voice.cloud.sealing import new_key
from moss_voice.cloud.store import ObjectLog
from moss_voice.demo import faq_documents
from moss_voice.server.settings import Settings
from tests.server_process import Server, serve, serve_here
from tests.server_samples import Door, code

INDEX = "faq"


class Setting(NamedTuple):
    """A server with an FAQ that a client pushed, and a client of the same store."""

    server: Server
    door: Door
    cloud: dict[str, Any]


@pytest.fixture(scope="module")
def setting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setting]:
    where = tmp_path_factory.mktemp("search")
    with serve(where / "store") as server:
        project, key = server.project()
        cloud: dict[str, Any] = {
            "project_id": project,
            "project_key": key,
            "cloud": server.url,
            "cache_path": where / "cache",
            "journal_path": where / "journal",
        }

        async def push() -> None:
            documents = [
                DocumentInfo(doc.id, doc.text, {**(doc.metadata or {}), "place": at}, payload=[at])
                for at, doc in enumerate(faq_documents())
            ]
            custom = [
                DocumentInfo(f"c{at}", f"number {at}", embedding=row)
                for at, row in enumerate(np.eye(4).tolist())
            ]
            async with MossClient(**cloud) as client:
                await client.create_index(INDEX, documents)
                # Several segments, a changed and a deleted document: what a search must put together.
                await client.add_docs(
                    INDEX, [DocumentInfo("new", "Bring your own modem", {"place": -1})]
                )
                await client.delete_docs(INDEX, [documents[3].id])
                await client.create_index("custom", custom, "custom")
            async with MossClient(**cloud, encryption_key=new_key()) as client:
                await client.create_index("sealed", documents[:2])

        asyncio.run(push())
        door = Door(server.url, project, key)
        yield Setting(server, door, cloud)
        door.close()


def search(setting: Setting, index: str = INDEX, **body: Any) -> httpx.Response:
    return setting.door.http.post(setting.door.path(index, "/search"), json=body)


CASES: list[dict[str, Any]] = [
    {"query": "how do I use my phone abroad"},
    {"query": "router lights", "top_k": 12, "alpha": 0.3},
    {"query": "router lights", "alpha": 1.0, "min_score": 0.6},
    {"query": "modem", "alpha": 0.0},
    {"query": "bill", "top_k": 100, "filter": {"field": "place", "condition": {"$lt": 9}}},
    {"query": "", "top_k": 3},
    {"query": "", "embedding": [1.0] + [0.25] * 383, "alpha": 1.0},
    {"query": "fee", "embedding": [1e200] + [-3e199] * 383, "alpha": 0.5},
]


def test_a_search_finds_what_a_client_finds(setting: Setting) -> None:
    """Ids, scores, parts, texts, metadata and payloads are those of `MossClient.query`, for every option."""

    async def ask() -> list[Any]:
        async with MossClient(**setting.cloud) as client:
            await client.load_index(INDEX)
            return [
                await client.query(
                    INDEX,
                    case["query"],
                    QueryOptions(**{k: v for k, v in case.items() if k != "query"}),
                )
                for case in CASES
            ]

    for case, expected in zip(CASES, asyncio.run(ask()), strict=True):
        answer = search(setting, **case)
        assert answer.status_code == 200, answer.text
        found = answer.json()["documents"]
        assert [doc["id"] for doc in found] == [doc.id for doc in expected.docs], case
        assert [doc["score"] for doc in found] == pytest.approx(
            [d.score for d in expected.docs], abs=1e-6
        )
        for doc, like in zip(found, expected.docs, strict=True):
            assert (doc["text"], doc["metadata"], doc["payload"]) == (
                like.text,
                like.metadata,
                like.payload,
            )
            assert doc["parts"]["semantic"] == pytest.approx(like.parts.semantic, abs=1e-6)
            assert doc["parts"]["keyword"] == pytest.approx(like.parts.keyword, abs=1e-6)
    assert search(setting, query="modem").json()["by"] == "both"
    assert search(setting, query="modem", alpha=1).json()["by"] == "meaning"
    assert search(setting, query="modem", alpha=0).json()["by"] == "keywords"


def test_many_search_at_once(setting: Setting) -> None:
    """Searches of several indexes at a time, each for the first time or not, find what they find alone."""
    asked = [
        (index, query) for index in (INDEX, "custom") for query in ("number 1", "modem", "bill")
    ]

    def ids(one: tuple[str, str]) -> list[str]:
        found = search(setting, one[0], query=one[1], alpha=0.0).json()["documents"]
        return [doc["id"] for doc in found]

    alone = {one: ids(one) for one in asked}
    assert alone["custom", "number 1"]
    with ThreadPoolExecutor(8) as pool:
        for one, found in zip(asked * 8, pool.map(ids, asked * 8), strict=True):
            assert found == alone[one]


def test_a_search_sees_the_newest_version(setting: Setting) -> None:
    """What was pushed after an index was read into memory is found, under its version."""
    before = search(setting, query="a walrus in the cellar", alpha=0).json()
    assert before["documents"] == []

    async def push() -> None:
        async with MossClient(**setting.cloud) as client:
            await client.add_docs(INDEX, [DocumentInfo("w", "a walrus sits in the cellar")])

    asyncio.run(push())
    after = search(setting, query="a walrus in the cellar", alpha=0).json()
    assert [doc["id"] for doc in after["documents"]] == ["w"]
    assert after["version"] > before["version"]


def test_without_its_model_an_index_is_searched_by_keywords(setting: Setting) -> None:
    """`custom`, and a model that is not here, are searched by words, which is told; by an embedding where given."""
    found = search(setting, "custom", query="number 2").json()
    assert (found["by"], found["documents"][0]["id"]) == ("keywords", "c2")
    found = search(setting, "custom", query="", embedding=[0, 0, 0, 7], alpha=1).json()
    assert (found["by"], found["documents"][0]["id"]) == ("meaning", "c3")
    for model in ("moss-mediumlm", "path:../../etc@0123456789ab", "/", "moss-minilm"):
        # The bundled model's name, too, where the vectors cannot be of it.
        name = f"of {model}"
        body = {"model_id": model, "documents": [{"id": "a", "text": "b", "embedding": [1, 0, 0]}]}
        assert (
            setting.door.http.post(setting.door.path(name, "/documents"), json=body).status_code
            == 201
        )
        found = search(setting, name, query="b").json()
        assert (found["by"], [doc["id"] for doc in found["documents"]]) == ("keywords", ["a"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"filter": {"$and": [{"field": "a", "condition": {"$gt": "x"}}]}},
            "$and[0].condition.$gt",
        ),
        ({"filter": {}}, "filter"),
        ({"filter": {"field": "a", "condition": {"$eqq": 1}}}, "condition.$eqq"),
        (
            {"filter": {"$or": [{"field": f"f{n}", "condition": {"$eq": 1}} for n in range(33)]}},
            "filter: expected at most 32 fields",
        ),
        ({"embedding": [1.0, 2.0]}, "embedding: expected 384 numbers"),
        ({"embedding": [0.0] * 384}, "embedding: expected finite"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": 101}, "top_k"),
        ({"alpha": 1.5}, "alpha"),
        ({"min_score": "x"}, "min_score"),
        ({"more": 1}, "body"),
    ],
)
def test_a_malformed_search_is_a_400(setting: Setting, body: dict[str, Any], message: str) -> None:
    """What is not sound is told by its path, and nothing of it is quoted."""
    answer = search(setting, **{"query": "secret words", **body})
    assert answer.status_code == 400
    told = answer.json()["error"]["message"]
    assert told.startswith(message)
    assert "secret" not in told


def test_what_is_not_there_or_not_readable(setting: Setting) -> None:
    """No index is a 404 and an encrypted one a 409, for a blank query too; a filter changes nothing in it."""
    for query in ("a", ""):
        assert code(search(setting, "nothing", query=query)) == "index_not_found"
        answer = search(setting, "sealed", query=query)
        assert (answer.status_code, code(answer)) == (409, "encrypted")
    assert "modem" not in setting.server.log()


def test_documents_are_listed_through_a_filter(setting: Setting) -> None:
    """A filter comes before the pages: counts, offsets and ids are of what passes, in the usual order."""
    path = setting.door.path(INDEX, "/documents")
    everything = setting.door.http.get(path, params={"limit": 1000}).json()["documents"]
    expected = [d["id"] for d in everything if (d["metadata"] or {}).get("place", 99) < 7]
    raw = json.dumps({"field": "place", "condition": {"$lt": 7}})
    found: list[str] = []
    offset: int | None = 0
    while offset is not None:
        page = setting.door.http.get(
            path, params={"filter": raw, "limit": 3, "offset": offset}
        ).json()
        assert page["total"] == len(expected)
        found += [doc["id"] for doc in page["documents"]]
        offset = page["next_offset"]
    assert found == expected
    ids = [everything[-1]["id"], expected[2], expected[0]]
    page = setting.door.http.get(path, params={"filter": raw, "id": ids}).json()
    assert [doc["id"] for doc in page["documents"]] == [expected[2], expected[0]]
    for wrong in ("{", "[]", "null", '{"$or": []}'):
        answer = setting.door.http.get(path, params={"filter": wrong})
        assert (answer.status_code, code(answer)) == (400, "invalid_filter"), wrong


def test_memory_has_a_budget(tmp_path: Path) -> None:
    """The least recently searched index goes first, and what exceeds the whole budget is not searched."""
    log = ObjectLog(open_objects(tmp_path / "store"))

    key = asyncio.run(log.keys.create("p")).key
    with serve_here(log, Settings(search_bytes=7000)) as (url, here):
        door = Door(url, "p", key)
        names = {door.push(name, f"{name}1").segments: name for name in ("a", "b", "c")}

        def find(name: str) -> int:
            return door.http.post(door.path(name, "/search"), json={"query": "printer"}).status_code

        def kept() -> list[str]:
            return [names[segments] for _, _, segments in here.searcher._kept]

        assert [find(name) for name in ("a", "b", "a", "c")] == [200] * 4
        assert kept() == ["a", "c"]
        door.push("large", *(f"id {n}" for n in range(30)))
        assert find("large") == 413
        assert kept() == ["a", "c"]
        door.close()


def test_columns_of_filters_do_not_pile_up(setting: Setting) -> None:
    """Any number of fields may be asked for, a few at a time: the answers stay right."""
    for start in range(0, 200, 20):
        conditions = [{"field": f"f{start + n}", "condition": {"$eq": 1}} for n in range(20)]
        wanted = {"$or": [*conditions, {"field": "place", "condition": {"$eq": 5}}]}
        found = search(setting, query="a", filter=wanted).json()["documents"]
        assert [doc["payload"] for doc in found] == [[5]]
