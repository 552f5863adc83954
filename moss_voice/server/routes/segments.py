"""Segments: in, checked; out, streamed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import format_datetime

from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from moss_voice.server.answers import Gone, SegmentStored, StoredSegments
from moss_voice.server.bodies import chunks
from moss_voice.server.names import IndexName, ProjectName, Sha256
from moss_voice.server.refusals import Refusal
from moss_voice.server.state import Here, Reader, State, Writer, errors

__all__ = ["router"]

router = APIRouter(prefix="/v1/projects/{project}/indexes/{index}/segments", tags=["segments"])

_BYTES = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


@router.get("", response_model=StoredSegments, responses=errors())
async def list_segments(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
) -> StoredSegments:
    """List the segments that are stored, also what no commit names."""
    found = await here.log.segments(project, index)
    return StoredSegments.model_validate({"segments": [s._asdict() for s in found]})


def _times(at: datetime) -> dict[str, str]:
    at = at.astimezone(UTC)
    return {
        "Last-Modified": format_datetime(at, usegmt=True),
        "X-Stored-At": at.isoformat(timespec="microseconds"),
    }


_TIMES = {
    name: {"schema": {"type": "string"}, "description": told}
    for name, told in (
        ("Last-Modified", "When it was stored."),
        ("X-Stored-At", "The same in ISO 8601, to the microsecond."),
    )
}


@router.head(
    "/{sha256}",
    response_class=Response,
    responses={
        200: {"description": "It is stored.", "headers": _TIMES},
        # Without bodies, as every answer to a HEAD.
        **{status: {"description": told["description"]} for status, told in errors(404).items()},
    },
)
async def head_segment(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
    sha256: Sha256,
) -> Response:
    """Tell when a segment was stored."""
    at = await here.log.segment_stored_at(project, index, sha256)
    if at is None:
        raise Refusal(404, "not_found", "there is no such segment")
    return Response(headers=_times(at), media_type="application/octet-stream")


@router.get(
    "/{sha256}",
    response_class=Response,
    responses={200: {"content": _BYTES, "description": "The bytes."}, **errors(404)},
)
async def get_segment(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
    sha256: Sha256,
) -> Response:
    """Return a segment's bytes."""
    parts = await here.log.read_segment(project, index, sha256)
    if parts is None:
        raise Refusal(404, "not_found", "there is no such segment")
    return StreamingResponse(_counted(here, parts), media_type="application/octet-stream")


async def _counted(here: State, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    out = here.metrics.segment_bytes.labels("out")
    async for part in parts:
        out.inc(len(part))
        yield part


@router.put(
    "/{sha256}",
    status_code=201,
    responses={
        200: {"model": SegmentStored, "description": "It was there, young."},
        **errors(403, 408, 413),
    },
    openapi_extra={"requestBody": {"required": True, "content": _BYTES}},
)
async def put_segment(
    request: Request,
    response: Response,
    here: Here,
    access: Writer,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
    sha256: Sha256,
) -> SegmentStored:
    """Store a segment, once all of it was checked."""
    body = chunks(request, most=here.limits.max_segment_bytes, idle_s=here.settings.body_idle_s)
    try:
        taken = await here.intake.take_segment(project, index, sha256, body)
    except Refusal as refused:
        here.metrics.rejected.labels("segment", refused.code).inc()
        raise
    here.metrics.segment_bytes.labels("in").inc(taken.size_bytes)
    if not taken.sent:
        response.status_code = 200
    return SegmentStored(sha256=sha256, size_bytes=taken.size_bytes, sent=taken.sent)


@router.delete("/{sha256}", responses=errors(403))
async def delete_segment(
    here: Here,
    access: Writer,  # noqa: ARG001 - lets in
    project: ProjectName,
    index: IndexName,
    sha256: Sha256,
) -> Gone:
    """Remove a segment that nothing names and that is older than an hour."""
    return Gone(gone=await here.log.delete_segment(project, index, sha256))
