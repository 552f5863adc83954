"""Indexes, and the commits that they are made of."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence

from fastapi import APIRouter, Request
from starlette.responses import Response

from moss_voice.cloud.log import Commit
from moss_voice.server.answers import (
    Collected,
    CollectRequest,
    Commits,
    HeadAnswer,
    Index,
    Indexes,
    Stored,
)
from moss_voice.server.bodies import json_body, of_json, read_small
from moss_voice.server.events import EventStream
from moss_voice.server.names import IndexName, ProjectName, Version
from moss_voice.server.refusals import Refusal
from moss_voice.server.state import Here, Reader, State, Writer, errors

__all__ = ["router"]

router = APIRouter(prefix="/v1/projects/{project}/indexes", tags=["indexes"])


def _json(data: bytes, *, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return Response(data, status, media_type="application/json", headers=headers)


async def _listed(name: str, commits: Sequence[Commit]) -> Response:
    """Answer with commits as they are stored: canonical JSON."""
    made = await asyncio.to_thread(lambda: b",".join(c.encode() for c in commits))
    return _json(b'{"%s":[%s]}' % (name.encode(), made))


@router.get("", response_model=Indexes, responses=errors())
async def list_indexes(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
) -> Response:
    """List the indexes that are there: the newest commit of each, by name."""
    return await _listed("indexes", await here.log.heads(project))


@router.get("/{index}", responses=errors(404))
async def get_index(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
) -> Index:
    """Tell about one index."""
    commit = (await here.log.head(project, index)).alive
    if commit is None:
        raise Refusal(404, "index_not_found", "there is no such index")
    return Index(
        id=commit.index_id,
        name=commit.index,
        version=commit.version,
        status="ready",
        doc_count=commit.doc_count,
        created_at=commit.created_at,
        updated_at=commit.updated_at,
        model=commit.model_id,
        ttl_s=commit.ttl_s,
        encrypted=bool(commit.key_ids),
    )


@router.delete(
    "/{index}",
    status_code=204,
    response_model=None,
    response_class=Response,
    responses=errors(403, 404),
)
async def delete_index(
    here: Here,
    access: Writer,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
) -> None:
    """Delete an index with all its versions."""
    await here.log.delete_index(project, index)
    here.quota.forget(project, index)
    here.metrics.commits.labels("delete").inc()
    await _tell(here, project, index)


async def _tell(here: State, project: str, index: str) -> None:
    commit = (await here.log.head(project, index)).commit
    if commit is not None:
        here.hub.notify(project, index, commit.version)


@router.get(
    "/{index}/head",
    response_model=HeadAnswer,
    responses={**errors(), 304: {"description": "It is what `If-None-Match` says."}},
    tags=["commits"],
)
async def get_head(
    request: Request,
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
) -> Response:
    """Return the newest commit, that of a deletion too, and the highest number in use.

    Null and 0 where there never was such an index.
    """
    head = await here.log.head(project, index)
    said = head.commit.encode() if head.commit is not None else b"null"
    body = b'{"commit":%s,"newest":%d}' % (said, head.newest)
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    if _matches(request.headers.get("if-none-match"), tag):
        return Response(status_code=304, headers={"ETag": tag})
    return _json(body, headers={"ETag": tag})


def _matches(given: str | None, tag: str) -> bool:
    tags = [part.strip().removeprefix("W/") for part in (given or "").split(",")]
    return tag in tags or "*" in tags


@router.get("/{index}/commits", response_model=Commits, responses=errors(), tags=["commits"])
async def list_commits(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
) -> Response:
    """List the versions that are still kept, oldest first; none where the index is deleted."""
    return await _listed("commits", await here.log.history(project, index))


@router.get(
    "/{index}/commits/{version}", response_model=Commit, responses=errors(404), tags=["commits"]
)
async def get_commit(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
    version: Version,
) -> Response:
    """Return one version, as it is stored."""
    commit = await here.log.read_commit(project, index, version)
    if commit is None:
        raise Refusal(404, "not_found", "there is no such version (any more)")
    return _json(commit.encode())


@router.put(
    "/{index}/commits/{version}",
    status_code=201,
    response_model=Stored,
    responses={
        200: {"model": Stored, "description": "This very commit was there."},
        **errors(403, 408, 409, 413),
    },
    openapi_extra=json_body(Commit),  # type: ignore[arg-type]
    tags=["commits"],
)
async def put_commit(
    request: Request,
    response: Response,
    here: Here,
    access: Writer,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
    version: Version,
) -> Stored:
    """Store the next version, if nobody else was first.

    Every segment that it adds must be stored, and be what the commit says of it.
    """
    data = await read_small(
        request, most=here.limits.max_commit_bytes, idle_s=here.settings.body_idle_s
    )
    try:
        made = await here.intake.take_commit(project, index, version, data)
    except Refusal as refused:
        if refused.status == 409:
            here.metrics.conflicts.inc()
        else:
            here.metrics.rejected.labels("commit", refused.code).inc()
        raise
    if made:
        here.metrics.commits.labels("put").inc()
        here.hub.notify(project, index, version)
    else:
        response.status_code = 200
    return Stored(version=version)


@router.post(
    "/{index}/collect", responses=errors(403, 408, 413), openapi_extra=json_body(CollectRequest)
)
async def collect(
    request: Request,
    here: Here,
    access: Writer,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
) -> Collected:
    """Remove what no reader or writer can still need."""
    wanted = of_json(await read_small(request, idle_s=here.settings.body_idle_s), CollectRequest)
    removed = await here.log.collect(project, index, grace_s=wanted.grace_s, keep=wanted.keep)
    return Collected(removed=removed)


@router.get(
    "/{index}/events",
    response_class=Response,
    responses={
        200: {
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
            "description": '`event: version` with `{"version": n}`: the current one, then each new one.',
        },
        **errors(),
    },
    tags=["events"],
)
async def watch(
    here: Here,
    access: Reader,
    project: ProjectName,
    index: IndexName,
) -> Response:
    """Tell of new versions as they are made; the stream ends with the server, or with the key."""
    return EventStream(
        await here.hub.subscribe(project, index, stands=lambda: here.gate.stands(access))
    )
