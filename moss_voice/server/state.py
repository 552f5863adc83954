"""What the routes of one server share, and who is at the door: the dependencies of every route."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from moss_voice.cloud.cloud import Cloud
from moss_voice.cloud.store import ObjectLog
from moss_voice.server.access import Access, Gate
from moss_voice.server.answers import ErrorAnswer
from moss_voice.server.documents import Library
from moss_voice.server.events import Hub
from moss_voice.server.intake import Intake
from moss_voice.server.labels import project_hash
from moss_voice.server.names import named
from moss_voice.server.observe import Metrics
from moss_voice.server.quota import Quota
from moss_voice.server.readiness import Readiness
from moss_voice.server.refusals import Refusal, note
from moss_voice.server.search import Searcher
from moss_voice.server.settings import Limits, Settings
from moss_voice.server.traffic import Traffic

__all__ = ["Here", "Reader", "State", "Writer", "errors"]


@dataclass(frozen=True, eq=False)
class State:
    """The parts of one server."""

    log: ObjectLog
    cloud: Cloud
    settings: Settings
    gate: Gate
    quota: Quota
    intake: Intake
    hub: Hub
    library: Library
    searcher: Searcher
    readiness: Readiness
    metrics: Metrics
    traffic: Traffic
    large_bodies: asyncio.Semaphore

    @property
    def limits(self) -> Limits:
        """What a project may ask for."""
        return self.settings.limits


def _state(request: Request) -> State:
    state: State = request.app.state.moss_voice
    return state


Here = Annotated[State, Depends(_state)]

_bearer = HTTPBearer(
    auto_error=False,
    scheme_name="key",
    description="A key of the project, as `moss-voice project create` makes it, or a token.",
)


async def _enter(
    request: Request,
    here: Here,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)],
) -> Access:
    address = request.client.host if request.client is not None else ""
    project = named(request.path_params["project"])
    # Not for the log: nobody has been let in.
    request.scope.setdefault("state", {})["asked"] = project_hash(project)
    credential = None
    if credentials is not None:
        raw = credentials.credentials.encode("latin-1", "replace")
        credential = raw.decode("utf-8", "surrogateescape")
    try:
        access = await here.gate.enter(project, credential, address)
    except Refusal as refused:
        here.metrics.denied.labels(refused.code).inc()
        raise
    note(request, project=project_hash(project), key=access.key_id)
    return access


async def _enter_to_write(here: Here, access: Annotated[Access, Depends(_enter)]) -> Access:
    if access.read_only:
        here.metrics.denied.labels("permission_denied").inc()
        raise Refusal(403, "permission_denied", "this key may only read")
    return access


Reader = Annotated[Access, Depends(_enter)]
Writer = Annotated[Access, Depends(_enter_to_write)]


_TOLD = {
    400: "What was sent is not what this path takes.",
    401: "No key, or one that does not open this project.",
    403: "The key may only read, or a token came where a key is due.",
    404: "There is no such thing.",
    408: "The body stopped coming.",
    409: "Somebody else was first, or the index is encrypted.",
    413: "It is larger than this server takes.",
    429: "Too many; try again after `Retry-After` seconds.",
    500: "A fault of the server, or what it stores is damaged.",
    503: "The store behind this server fails.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the error answers of a route below `/v1`, for its description."""
    usual = (400, 401, 429, 500, 503)
    return {
        status: {"model": ErrorAnswer, "description": _TOLD[status]}
        for status in sorted({*usual, *statuses})
    }
