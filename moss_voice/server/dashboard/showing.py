"""Values as pages show them, and a page as an answer."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import Request
from jinja2 import Environment
from starlette.responses import Response

from moss_voice import pages

__all__ = ["MAX_SHOWN", "address", "asset", "page", "told_ago", "version_of_assets", "visible"]

# Characters of a text that a list shows.
MAX_SHOWN: Final = 4000
_POLICY: Final = pages.policy(forms=True, files=True)
# Not to be told apart from nothing, or worse: a font shows them as it likes.
_CONTROLS: Final[dict[int, str | int]] = {
    **{
        code: f"\\x{code:02x}" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (9, 10)
    },
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}
# They turn around what comes after them; where no element holds them in, they are left out.
_TURNING: Final = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_FILES: Final = {
    "style.css": "text/css",
    "script.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}


def visible(value: object) -> str:
    """Return a text in which what cannot be seen can, but for tabs and ends of lines."""
    return str(value).replace("\r\n", "\n").translate(_CONTROLS)


def _one_way(value: object) -> str:
    return _TURNING.sub("", visible(value))


def told_ago(at: datetime, now: datetime | None = None) -> str:
    """Return how long ago a time was, as `3 h ago`."""
    seconds = ((now or datetime.now(UTC)) - at).total_seconds()
    if seconds < 0:
        return "in the future"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{int(seconds // size)} {unit} ago"
    return "just now"


def told_period(seconds: int) -> str:
    """Return a duration as `30 d`, `1 d 12 h` or `45 s`."""
    parts = []
    rest = seconds
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2]) or "0 s"


def told_json(value: object) -> str:
    """Return a value as JSON for people."""
    return json.dumps(value, ensure_ascii=False, indent=2)


def told_count(count: int) -> str:
    """Return a number as `12,345`."""
    return f"{count:,}"


def address(path: str, **values: object) -> str:
    """Return an address of ours; values that are None are left out."""
    given = {name: str(value) for name, value in values.items() if value is not None}
    return f"{path}?{urlencode(given)}" if given else path


@cache
def asset(name: str) -> tuple[bytes, str]:
    """Return a file that every page needs, and its media type."""
    if name == "style.css":
        shared = pages.asset("moss_voice.pages", "common/style.css")
        text = shared + pages.asset("moss_voice.server.dashboard", "templates/dashboard.css")
    else:
        text = pages.asset("moss_voice.server.dashboard", f"templates/{name}")
    return text.encode(), _FILES[name]


@cache
def version_of_assets() -> str:
    """Return what changes when they do."""
    return hashlib.sha256(b"".join(asset(name)[0] for name in sorted(_FILES))).hexdigest()[:12]


@cache
def _templates() -> Environment:
    made = pages.environment("moss_voice.server.dashboard")
    made.filters |= {
        "ago": told_ago,
        "count": told_count,
        "json": told_json,
        "one_way": _one_way,
        "period": told_period,
        "visible": visible,
    }
    made.globals |= {
        "address": address,
        "assets": version_of_assets(),
        "most_shown": MAX_SHOWN,
        "script_data": pages.script_data,
    }
    return made


async def page(
    request: Request,
    template: str,
    *,
    status: int = 200,
    headers: Mapping[str, str] | None = None,
    **values: Any,
) -> Response:
    """Return a page; who is looking at it is taken from the request."""
    visit = getattr(request.state, "visit", None)

    def render() -> bytes:
        made = _templates().get_template(template).render(visit=visit, **values)
        return made.encode("utf-8", "replace")

    return Response(
        # A page of long texts takes its time.
        await asyncio.to_thread(render),
        status,
        media_type="text/html",
        headers={
            **pages.HEADERS,
            # With none at all a browser does not tell where a form comes from.
            "Referrer-Policy": "same-origin",
            "Content-Security-Policy": _POLICY,
            **(headers or {}),
        },
    )
