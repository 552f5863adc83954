"""Documents: read, merged and deleted without a word of segments."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import Annotated

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from moss_voice.server.answers import (
    DeleteDocuments,
    Documents,
    DocumentsDeleted,
    DocumentsMerged,
    MergeDocuments,
    SearchAnswer,
    SearchRequest,
)
from moss_voice.server.bodies import json_body, of_json, read_small
from moss_voice.server.documents import MAX_PAGE_BYTES, shown
from moss_voice.server.names import IndexName, ProjectName
from moss_voice.server.refusals import Refusal
from moss_voice.server.search import Found
from moss_voice.server.state import Here, Reader, Writer, errors

__all__ = ["router"]

router = APIRouter(prefix="/v1/projects/{project}/indexes/{index}", tags=["documents"])


@router.get("/documents", response_model=Documents, responses=errors(404, 409))
async def list_documents(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
    offset: Annotated[int, Query(ge=0, lt=1 << 53, description="How many to pass over.")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000, description="The most to return.")] = 100,
    id: Annotated[  # noqa: A002 - the published name
        list[str] | None, Query(max_length=1000, description="These alone, in this order.")
    ] = None,
    filter: Annotated[  # noqa: A002 - the published name
        str | None,
        Query(
            description="A metadata filter in JSON; what it does not let pass is not counted either.",
            examples=['{"field": "speaker", "condition": {"$eq": "caller"}}'],
        ),
    ] = None,
) -> Response:
    """Return documents in the order in which they were first added, without embeddings."""
    page = await here.library.page(
        project, index, offset=offset, limit=limit, ids=id, filter=filter
    )
    after = b"null" if page.next_offset is None else str(page.next_offset).encode()
    body = b'{"documents":[%s],"total":%d,"version":%d,"next_offset":%s}' % (
        b",".join(page.documents),
        page.total,
        page.version,
        after,
    )
    return Response(body, media_type="application/json")


@router.post(
    "/documents",
    status_code=201,
    responses=errors(403, 408, 409, 413),
    openapi_extra=json_body(MergeDocuments),
)
async def merge_documents(
    request: Request,
    here: Here,
    access: Writer,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
) -> DocumentsMerged:
    """Add documents with their embeddings, or put them in the place of those of the same id.

    An index that is not there is made.
    """
    async with here.large_bodies:
        data = await read_small(
            request, most=here.limits.max_request_bytes, idle_s=here.settings.body_idle_s
        )
        await here.quota.admit(project, index)
        commit = await here.library.merge(project, index, data)
    here.metrics.commits.labels("documents").inc()
    return DocumentsMerged(version=commit.version, doc_count=commit.doc_count, job_id=commit.job_id)


@router.post(
    "/documents/delete",
    responses=errors(403, 404, 408, 409, 413),
    openapi_extra=json_body(DeleteDocuments),
)
async def delete_documents(
    request: Request,
    here: Here,
    access: Writer,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
) -> DocumentsDeleted:
    """Delete documents by id."""
    wanted = of_json(
        await read_small(request, most=1 << 20, idle_s=here.settings.body_idle_s), DeleteDocuments
    )
    if len(wanted.ids) > here.limits.max_request_documents:
        most = here.limits.max_request_documents
        raise Refusal(413, "too_large", f"ids: expected at most {most}")
    commit, deleted = await here.library.delete(project, index, wanted.ids)
    if deleted:
        here.metrics.commits.labels("documents").inc()
    return DocumentsDeleted(version=commit.version, doc_count=commit.doc_count, deleted=deleted)


@router.post(
    "/search",
    response_model=SearchAnswer,
    responses=errors(404, 408, 409, 413),
    openapi_extra=json_body(SearchRequest),
)
async def search(
    request: Request,
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
) -> Response:
    """Search an index: what a client's `query` finds, without a client.

    The first search of a version reads it whole. Without its model on this server an index is searched by
    keywords, unless an embedding is given.
    """
    wanted = of_json(
        await read_small(request, most=4 << 20, idle_s=here.settings.body_idle_s), SearchRequest
    )
    found = await here.searcher.search(project, index, wanted)
    return Response(await asyncio.to_thread(_answer, found), media_type="application/json")


def _answer(found: Found) -> bytes:
    documents: list[bytes] = []
    size = 0
    for match in found.matches:
        size += len(match.line)
        if size > MAX_PAGE_BYTES and documents:
            break
        rank = {"score": match.score, "parts": asdict(match.parts)}
        # Two objects made one.
        documents.append(shown(match.line)[:-1] + b"," + json.dumps(rank).encode()[1:])
    return b'{"documents":[%s],"version":%d,"by":"%s","took_ms":%.3f}' % (
        b",".join(documents),
        found.version,
        found.by.encode(),
        found.took_ms,
    )
