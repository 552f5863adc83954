"""A project: who is asking, tokens, jobs."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter, Request
from pydantic import TypeAdapter
from starlette.responses import Response

from moss_voice.server.answers import JobRecord, Names, Project, Token, TokenRequest
from moss_voice.server.bodies import json_body, of_json, read_small
from moss_voice.server.names import JobId, ProjectName
from moss_voice.server.refusals import Refusal
from moss_voice.server.state import Here, Reader, Writer, errors
from moss_voice.types import JobStatusResponse

__all__ = ["router"]

_JOB: Final = TypeAdapter(JobStatusResponse)

router = APIRouter(prefix="/v1/projects/{project}", tags=["projects"])


@router.get("", responses=errors())
async def get_project(here: Here, access: Reader, project: ProjectName) -> Project:
    """Tell what the key or token in use may do."""
    return Project(
        project=project,
        key_id=access.key_id,
        read_only=access.read_only,
        expires_at=access.expires_at,
        limits=here.limits,
    )


@router.post(
    "/tokens",
    status_code=201,
    responses=errors(403, 408, 413),
    openapi_extra=json_body(TokenRequest),
)
async def issue_token(
    request: Request,
    here: Here,
    access: Reader,
    project: ProjectName,  # noqa: ARG001 - described
) -> Token:
    """Issue a token that ends by itself, for a client that is not to hold the key.

    It ends with its key at the latest, and may do no more than its key. A token issues no tokens.
    """
    if access.is_token:
        raise Refusal(403, "permission_denied", "a token issues no tokens; use a key")
    wanted = of_json(await read_small(request, idle_s=here.settings.body_idle_s), TokenRequest)
    token, claims = await here.gate.issue(
        access, expires_in_s=wanted.expires_in_s, read_only=wanted.read_only
    )
    return Token(token=token, expires_at=claims.ends_at, read_only=claims.read_only)


@router.get("/names", responses=errors())
async def list_names(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
) -> Names:
    """List the names under which anything is stored: of deleted indexes and unfinished pushes too."""
    return Names(names=await here.log.names(project))


@router.get("/jobs/{job_id}", response_model=JobRecord, responses=errors(404), tags=["jobs"])
async def get_job(
    here: Here,
    access: Reader,  # noqa: ARG001 - lets in
    project: ProjectName,
    job_id: JobId,
) -> Response:
    """Tell how far a job has come."""
    job = await here.log.get_job(project, job_id)
    return Response(_JOB.dump_json(job), media_type="application/json")


@router.put(
    "/jobs/{job_id}",
    status_code=204,
    response_model=None,
    response_class=Response,
    responses=errors(403, 408, 413),
    openapi_extra=json_body(JobRecord),
    tags=["jobs"],
)
async def put_job(
    request: Request,
    here: Here,
    access: Writer,  # noqa: ARG001 - lets in
    project: ProjectName,
    job_id: JobId,
) -> None:
    """Store how far a job has come, over what was stored before."""
    record = of_json(await read_small(request, idle_s=here.settings.body_idle_s), JobRecord)
    if record.job_id != job_id:
        raise Refusal(400, "invalid_argument", "job_id: expected the job of the path")
    await here.log.put_job(project, JobStatusResponse(**record.model_dump()))
