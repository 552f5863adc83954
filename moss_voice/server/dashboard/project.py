"""A project beside its indexes: its jobs, what it asked of this server, and what its key may do."""

from __future__ import annotations

from typing import Final, NamedTuple

from fastapi import APIRouter, Request
from starlette.responses import Response

from moss_voice.server.dashboard.doors import Visitor
from moss_voice.server.dashboard.showing import page
from moss_voice.server.labels import project_hash
from moss_voice.server.state import Here
from moss_voice.server.traffic import MINUTES, Minute

__all__ = ["router"]

router = APIRouter(prefix="/ui", include_in_schema=False)

_JOBS: Final = 50
# Records of a project with very many: which are the newest is not known without listing them.
_LOOKED_AT: Final = 20_000


@router.get("/jobs")
async def jobs(request: Request, here: Here, visit: Visitor) -> Response:
    """Show jobs, the newest first."""
    asked = request.query_params.get("offset", "")
    offset = int(asked) if asked.isascii() and asked.isdigit() and len(asked) < 10 else 0
    found, total = await here.log.newest_jobs(
        visit.project, offset=offset, limit=_JOBS, most=_LOOKED_AT
    )
    return await page(
        request,
        "jobs.html",
        jobs=found,
        total=total,
        cut=total >= _LOOKED_AT,
        offset=offset,
        before=max(0, offset - _JOBS) if offset else None,
        after=offset + _JOBS if offset + _JOBS < total else None,
    )


class Bar(NamedTuple):
    """A minute of a chart: where its parts begin and how high they are, in the chart's units."""

    x: int
    minute: Minute
    parts: list[tuple[str, float, float]]


class Chart(NamedTuple):
    """Bars, and what the top of the chart stands for."""

    bars: list[Bar]
    most: float


_HEIGHT: Final = 100.0


def _stacked(minutes: list[Minute]) -> Chart:
    most = max((minute.requests for minute in minutes), default=0)
    bars = []
    for at, minute in enumerate(minutes):
        parts, top = [], _HEIGHT
        for name in ("done", "refused", "failed"):
            height = getattr(minute, name) / most * _HEIGHT if most else 0.0
            top -= height
            if height:
                parts.append((name, top, height))
        bars.append(Bar(at * 10, minute, parts))
    return Chart(bars, most)


def _times(minutes: list[Minute]) -> Chart:
    most = max((minute.p95_ms or 0.0 for minute in minutes), default=0.0)
    bars = []
    for at, minute in enumerate(minutes):
        parts = []
        for name, took_ms in (("p95", minute.p95_ms), ("median", minute.median_ms)):
            if took_ms is not None and most:
                height = took_ms / most * _HEIGHT
                parts.append((name, _HEIGHT - height, height))
        bars.append(Bar(at * 10, minute, parts))
    return Chart(bars, most)


@router.get("/requests")
async def requests(request: Request, here: Here, visit: Visitor) -> Response:
    """Show what this project asked of this server in the last hour."""
    project = project_hash(visit.project)
    minutes = here.traffic.minutes(project)
    return await page(
        request,
        "requests.html",
        started_at=here.traffic.started_at,
        hour=here.traffic.hour(project),
        minutes=minutes,
        counts=_stacked(minutes),
        times=_times(minutes),
        width=MINUTES * 10,
    )


_LIMITS: Final = {
    "max_indexes": "Indexes",
    "max_segment_bytes": "A push, as it is stored",
    "max_commit_segments": "Segments of a version",
    "max_request_bytes": "A request with documents",
    "max_request_documents": "Documents of one request",
    "max_document_bytes": "A document",
    "max_text_bytes": "A document's text",
    "max_metadata_bytes": "A document's metadata",
    "max_id_bytes": "A document's id",
    "max_subscribers": "Open event streams",
    "requests_per_s": "Requests a second, in the long run",
    "burst": "Requests at once",
}


@router.get("/project")
async def project(request: Request, here: Here, visit: Visitor) -> Response:
    """Show who is signed in, and what a project may ask for."""
    limits = [
        (told, getattr(here.limits, name), name.endswith("_bytes"))
        for name, told in _LIMITS.items()
    ]
    return await page(
        request,
        "project.html",
        limits=limits,
        hash=project_hash(visit.project),
        links_metrics=request.app.state.links_metrics,
    )
