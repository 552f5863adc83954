"""The dashboard's routes, put into an application."""

from __future__ import annotations

from fastapi import FastAPI

from moss_voice.server.dashboard import entrance, indexes
from moss_voice.server.dashboard.doors import Ended

__all__ = ["add_to"]


def add_to(app: FastAPI) -> None:
    """Serve the dashboard at `/` and below `/ui`."""
    app.state.ended_sessions = Ended()
    for router in (entrance.router, indexes.router):
        app.include_router(router)
    # Takes what no other route below `/ui` did.
    app.include_router(entrance.files)
