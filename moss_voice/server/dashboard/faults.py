"""What goes wrong on a page, as a page: and a session that has ended leads to the door."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Final

from fastapi import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import Scope

from moss_voice.server.dashboard.doors import forget_cookie
from moss_voice.server.dashboard.showing import page

__all__ = ["as_page", "is_page", "on_fault"]

Handler = Callable[[Request, Exception], Awaitable[Response]]

_HEADINGS: Final = {
    400: "That cannot be done",
    403: "Not allowed",
    404: "There is nothing here",
    405: "Not in this way",
    409: "Not now",
    413: "Too large",
    429: "Too many requests",
    503: "The store does not answer",
}


def is_page(path: str) -> bool:
    """Tell whether people look at a path, in a browser."""
    return path in ("/", "/ui") or path.startswith("/ui/")


def as_page(handler: Handler) -> Handler:
    """Return a handler of errors that answers with a page where people look at pages."""

    async def handle(request: Request, error: Exception) -> Response:
        answer = await handler(request, error)
        if not is_page(request.scope["path"]):
            return answer
        if answer.status_code == 401:
            had = any(name.endswith("moss_voice") for name in request.cookies)
            leave = RedirectResponse("/?ended=1" if had else "/", 303)
            # Another site's form brings no cookie, and must not end a session.
            if had:
                forget_cookie(request, leave)
            return leave
        message = json.loads(bytes(answer.body))["error"]["message"]
        kept = {
            name: answer.headers[name]
            for name in ("retry-after", "allow")
            if name in answer.headers
        }
        return await page(
            request,
            "fault.html",
            status=answer.status_code,
            headers=kept,
            heading=_HEADINGS.get(answer.status_code, "Something went wrong"),
            message=message,
        )

    return handle


async def on_fault(scope: Scope, message: str) -> Response | None:
    """Tell of what nobody expected, where people look at pages."""
    if not is_page(scope["path"]):
        return None
    return await page(
        Request(scope), "fault.html", status=500, heading="Something went wrong", message=message
    )
