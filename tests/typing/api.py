"""The public API as a type checker sees it: checked by mypy with the rest, never run."""

from collections.abc import Sequence
from typing import assert_type

from moss_voice import (
    CallContext,
    CallMemory,
    DocumentInfo,
    GetDocumentsOptions,
    Hit,
    IndexInfo,
    JobStatusResponse,
    MossClient,
    MutationOptions,
    MutationResult,
    PushIndexResult,
    QueryOptions,
    QueryResultDocumentInfo,
    RecoveredCall,
    SearchResult,
    SessionIndex,
    Store,
    StoredObject,
)


async def sessions(client: MossClient) -> None:
    session = await client.session("call-1")
    assert_type(session, SessionIndex)
    assert_type(await client.session(index_name="call-1", model_id="custom"), SessionIndex)
    docs = [
        DocumentInfo(
            "turn-1", "text", {"n": 1, "x": 0.5, "ok": True, "s": "s"}, [0.1, 0.2], {"a": []}
        )
    ]
    assert_type(await session.add_docs(docs), tuple[int, int])
    assert_type(await session.add_docs(docs, MutationOptions(upsert=False)), tuple[int, int])
    assert_type(await session.delete_docs(["turn-1"]), int)
    assert_type(await session.get_docs(), list[DocumentInfo])
    assert_type(await session.get_docs(GetDocumentsOptions(["turn-1"])), list[DocumentInfo])
    options = QueryOptions([0.1, 0.2], 5, 0.8, {"field": "n", "condition": {"$gt": 1}}, 0.5)
    result = await session.query("text", options)
    assert_type(result, SearchResult)
    assert_type(result.docs, list[QueryResultDocumentInfo])
    assert_type(result.docs[0].score, float)
    assert_type(await session.load_index("faqs", auto_refresh=True), int)
    assert_type(await session.push_index(), PushIndexResult)
    assert_type(await session.push_index(on_conflict="merge"), PushIndexResult)
    assert_type(session.name, str)
    assert_type(session.doc_count, int)
    assert_type(session.model_id, str)


async def calls(client: MossClient, visible: Sequence[str]) -> None:
    async with await client.call("call-1", knowledge=["faqs"], focus=["entity"], top_k=5) as call:
        assert_type(call, CallMemory)
        assert_type(await call.heard("text", speaker="caller", at=1.5, id="t1"), str | None)
        assert_type(call.hearing("te"), None)
        context = await call.context("text", visible=visible, budget=300)
        assert_type(context, CallContext)
        assert_type(context.hits, list[Hit])
        assert_type(await call.recall("text", top_k=3), list[Hit])
        assert_type(await call.push(), PushIndexResult)
        assert_type(await call.end(), PushIndexResult | None)
        assert_type(await call.discard(), None)


async def clouds(client: MossClient) -> None:
    assert_type(await client.create_index("faqs", [], "moss-minilm"), MutationResult)
    assert_type(await client.add_docs("faqs", []), MutationResult)
    assert_type(await client.delete_docs("faqs", ["a"]), MutationResult)
    assert_type(await client.get_docs("faqs"), list[DocumentInfo])
    assert_type(await client.get_index("faqs"), IndexInfo)
    assert_type(await client.list_indexes(), list[IndexInfo])
    assert_type(await client.load_index("faqs"), int)
    assert_type(await client.load_indexes(["faqs"]), dict[str, int])
    assert_type(await client.unload_index("faqs"), bool)
    assert_type(await client.refresh_index("faqs"), bool)
    assert_type(await client.query("faqs", "text"), SearchResult)
    assert_type(await client.query_multi_index(["faqs"], "text"), SearchResult)
    assert_type(await client.get_job_status("id"), JobStatusResponse)
    assert_type(await client.wait_for_job("id"), JobStatusResponse)
    assert_type(await client.recover(), list[RecoveredCall])


async def stores(store: Store) -> None:
    client = MossClient(cloud=store)
    assert_type(client, MossClient)
    assert_type(await store.put("a/b", b"", if_absent=True), bool)
    assert_type(await store.listing("a", after="b"), list[StoredObject])
