"""The door: sign in with a key, sign out, and the files that every page needs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from starlette.responses import RedirectResponse, Response

from moss_voice.server.dashboard import showing
from moss_voice.server.dashboard.doors import (
    SESSION_S,
    Visit,
    Visitor,
    VisitorsForm,
    admit,
    forget_cookie,
    read_form,
    set_cookie,
    signed_in,
)
from moss_voice.server.dashboard.indexes import index_list
from moss_voice.server.refusals import Refusal
from moss_voice.server.state import Here

__all__ = ["files", "router"]

router = APIRouter(include_in_schema=False)
files = APIRouter(include_in_schema=False)


@router.get("/")
async def root(
    request: Request, here: Here, visit: Annotated[Visit | None, Depends(signed_in)]
) -> Response:
    """Show the indexes, or the door."""
    if visit is not None:
        return await index_list(request, here, visit)
    return await _door(request, ended="ended" in request.query_params)


async def _door(
    request: Request, *, status: int = 200, project: str = "", fault: str = "", ended: bool = False
) -> Response:
    return await showing.page(
        request, "sign_in.html", status=status, project=project, fault=fault, ended=ended
    )


@router.post("/ui/sign-in")
async def sign_in(request: Request, here: Here) -> Response:
    """Take a key, and give a session."""
    form = await read_form(request, here)
    project, key = form.one("project").strip(), form.one("key").strip()
    try:
        access = await admit(request, here, project, key)
        token = key
        if not access.is_token:
            token, _ = await here.gate.issue(
                access, expires_in_s=SESSION_S, read_only=access.read_only
            )
    except Refusal as refused:
        if refused.status == 429:
            fault = f"Too many tries. Wait {refused.headers['Retry-After']} s, then try again."
        elif refused.status in (400, 401):
            fault = "This key does not open this project. Check both; keys begin with mv_."
        else:
            raise
        return await _door(request, status=refused.status, project=project, fault=fault)
    answer = RedirectResponse("/", 303)
    set_cookie(request, answer, access, token)
    return answer


@router.post("/ui/sign-out")
async def sign_out(request: Request, visit: Visitor, form: VisitorsForm) -> Response:  # noqa: ARG001
    """End the session."""
    request.app.state.ended_sessions.add(visit.token)
    answer = RedirectResponse("/", 303)
    forget_cookie(request, answer)
    return answer


@files.get("/ui/{name:path}")
async def file(request: Request, name: str) -> Response:
    """Give a file that pages need; whatever else is asked for is not there."""
    if name not in ("style.css", "script.js", "icon.svg"):
        raise Refusal(404, "not_found", "there is no such page")
    data, media_type = showing.asset(name)
    # Its address tells its version.
    named = request.query_params.get("v") == showing.version_of_assets()
    keep = "public, max-age=31536000, immutable" if named else "no-store"
    return Response(data, media_type=media_type, headers={"Cache-Control": keep})
