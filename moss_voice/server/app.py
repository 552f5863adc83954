"""The application: its parts put together, and nothing decided."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter
from starlette.exceptions import HTTPException

from moss_voice.cloud.cloud import Cloud
from moss_voice.cloud.log import Commit
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import MossError
from moss_voice.server import answers, page
from moss_voice.server.access import Gate
from moss_voice.server.dashboard import faults
from moss_voice.server.dashboard import site as dashboard
from moss_voice.server.dashboard.faults import Handler
from moss_voice.server.documents import Library
from moss_voice.server.events import Hub
from moss_voice.server.intake import Intake
from moss_voice.server.lingering import Lingering
from moss_voice.server.names import RawPaths
from moss_voice.server.observe import Metrics, Observer
from moss_voice.server.quota import Quota
from moss_voice.server.readiness import Readiness
from moss_voice.server.refusals import (
    Refusal,
    on_http_error,
    on_invalid_request,
    on_moss_error,
    on_refusal,
)
from moss_voice.server.routes import documents, health, indexes, projects, segments
from moss_voice.server.search import Searcher
from moss_voice.server.settings import Settings
from moss_voice.server.state import State
from moss_voice.server.traffic import Traffic

__all__ = ["create_app"]

# Requests with documents that are in memory at a time; the others wait unread.
_LARGE_BODIES: Final = 4
# Bodies that a route reads itself, once it has looked at the key.
_BODIES = (
    answers.CollectRequest,
    answers.DeleteDocuments,
    answers.JobRecord,
    answers.MergeDocuments,
    answers.SearchRequest,
    answers.TokenRequest,
    Commit,
)


def create_app(
    log: ObjectLog,
    settings: Settings | None = None,
    *,
    with_metrics: bool = True,
    with_dashboard: bool = True,
) -> FastAPI:
    """Make a server's application.

    Args:
        log: Where everything is kept; nothing else is, so several may serve one store.
        settings: What it takes, and how long it waits.
        with_metrics: False where `/metrics` is served on a port of its own.
        with_dashboard: False for the API alone.

    Returns:
        The application; `app.state.moss_voice` holds its parts.
    """
    settings = settings or Settings()
    cloud = Cloud(log)
    quota = Quota(log, most=settings.limits.max_indexes)
    hub = Hub(log, settings)
    library = Library(cloud, settings.limits, on_version=hub.notify)
    here = State(
        log=log,
        cloud=cloud,
        settings=settings,
        gate=Gate(log.keys, settings),
        quota=quota,
        intake=Intake(log, settings, quota=quota),
        hub=hub,
        library=library,
        searcher=Searcher(library, most_bytes=settings.search_bytes),
        readiness=Readiness(log),
        metrics=Metrics(subscribers=lambda: len(hub)),
        traffic=Traffic(),
        large_bodies=asyncio.Semaphore(_LARGE_BODIES),
    )

    @asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:  # noqa: ARG001
        yield
        here.hub.close()
        here.intake.close()
        await here.library.close()
        await log.close()

    app = FastAPI(
        title="moss-voice server",
        version="1",
        description="The self-hosted cloud of moss_voice: the logs of indexes, over any store.",
        openapi_url="/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        separate_input_output_schemas=False,
        lifespan=life,
        # Its spans would hold paths, and so names, wherever a tracer is set up in this process.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.moss_voice = here
    for router in (
        projects.router,
        indexes.router,
        segments.router,
        documents.router,
        health.router,
        *((health.metrics,) if with_metrics else ()),
    ):
        app.include_router(router)
    page.add_to(app)
    handlers: dict[type[Exception], Handler] = {
        Refusal: on_refusal,
        MossError: on_moss_error,
        HTTPException: on_http_error,
        RequestValidationError: on_invalid_request,
    }
    if with_dashboard:
        dashboard.add_to(app, with_metrics=with_metrics)
    for kind, handler in handlers.items():
        app.add_exception_handler(kind, faults.as_page(handler) if with_dashboard else handler)
    app.add_middleware(Lingering)
    app.add_middleware(
        Observer,
        metrics=here.metrics,
        traffic=here.traffic,
        on_fault=faults.on_fault if with_dashboard else None,
    )
    app.add_middleware(RawPaths)
    app.openapi = _described(app)  # type: ignore[method-assign]
    return app


def _tidy(schema: Any) -> None:
    """Write the end of a pattern as every reader of JSON Schema knows it."""
    for value in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(value, dict) and isinstance(value.get("pattern"), str):
            value["pattern"] = value["pattern"].replace(r"\z", "$")
        if isinstance(value, dict | list):
            _tidy(value)


def _described(app: FastAPI) -> Any:
    """Return the maker of the OpenAPI document: FastAPI's, with the bodies that it does not know."""
    made = app.openapi

    def openapi() -> dict[str, Any]:
        document = app.openapi_schema
        if document is None:
            document = made()
            schemas = document["components"]["schemas"]
            for body in _BODIES:
                schema = TypeAdapter(body).json_schema(ref_template="#/components/schemas/{model}")
                schemas.update(schema.pop("$defs", {}))
                schemas[body.__name__] = schema
            _tidy(schemas)
            # Nothing here answers 422; see `refusals`.
            for name in ("HTTPValidationError", "ValidationError"):
                schemas.pop(name, None)
            for path in document["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
        return document

    return openapi
