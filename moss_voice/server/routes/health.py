"""Whether the process works, whether its store does, and numbers."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import generate_latest
from starlette.responses import PlainTextResponse, Response

from moss_voice.server.answers import ErrorAnswer, Status
from moss_voice.server.refusals import Refusal
from moss_voice.server.state import Here

__all__ = ["metrics", "router"]

router = APIRouter(tags=["health"])
metrics = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> Status:
    """Tell that the process answers."""
    return Status(status="ok")


@router.get(
    "/readyz",
    responses={503: {"model": ErrorAnswer, "description": "The store behind the server fails."}},
)
async def readyz(here: Here) -> Status:
    """Tell whether the store answers."""
    if not await here.readiness.look():
        raise Refusal(
            503, "cloud_unavailable", "the store behind this server fails", retry_after_s=1
        )
    return Status(status="ok")


@metrics.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def get_metrics(here: Here) -> Response:
    """Tell numbers to Prometheus."""
    return Response(generate_latest(here.metrics.registry), media_type="text/plain; version=0.0.4")
