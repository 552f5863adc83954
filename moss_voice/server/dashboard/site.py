"""The dashboard's routes, put into an application."""

from __future__ import annotations

from fastapi import FastAPI

from moss_voice.server.dashboard import entrance, indexes, project
from moss_voice.server.dashboard.doors import Ended

__all__ = ["add_to"]


def add_to(app: FastAPI, *, with_metrics: bool) -> None:
    """Serve the dashboard at `/` and below `/ui`; with a link to `/metrics` if that is there."""
    app.state.links_metrics = with_metrics
    app.state.ended_sessions = Ended()
    for router in (entrance.router, indexes.router, project.router):
        app.include_router(router)
    # Takes what no other route below `/ui` did.
    app.include_router(entrance.files)
