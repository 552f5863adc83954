"""Names in paths: one component each, percent-encoded, whatever is in them.

Starlette decodes a path before it looks for slashes, which would make two components of a name with a
slash in it. So the path is cut first and decoded then, here, before anything else sees it.
"""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import unquote_to_bytes

from fastapi import Path
from pydantic import AfterValidator, BeforeValidator
from starlette.types import ASGIApp, Receive, Scope, Send

from moss_voice.cloud.log import check_name
from moss_voice.errors import InvalidArgumentError

__all__ = ["NO_NAME", "IndexName", "JobId", "ProjectName", "RawPaths", "Sha256", "Version", "named"]

# Stands for a slash inside a component. A name may hold no control character, so it means nothing else;
# one that was sent as such becomes another, which no name may hold either.
_SLASH: Final = "\x1f"
_SENT: Final = "\x1e"
NO_NAME: Final = "expected 1 to 200 characters, not all blank, and none a control character"


class RawPaths:
    """Cuts the path of a request where it was cut by the client."""

    def __init__(self, app: ASGIApp) -> None:
        """Take the application that is to see such paths."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, its path cut anew."""
        raw = scope.get("raw_path")
        if scope["type"] == "http" and raw is not None:
            scope = {**scope, "path": "/".join(map(_component, raw.split(b"?")[0].split(b"/")))}
        await self._app(scope, receive, send)


def _component(raw: bytes) -> str:
    # Bytes that are no UTF-8 become lone surrogates, which no name may hold.
    text = unquote_to_bytes(raw).decode("utf-8", "surrogateescape")
    return text.replace(_SLASH, _SENT).replace("/", _SLASH)


def named(component: str) -> str:
    """Return the name that a path's component stands for, unchecked."""
    return component.replace(_SLASH, "/")


def _name(component: str) -> str:
    try:
        return check_name(named(component))
    except InvalidArgumentError:  # its message quotes the name
        raise ValueError(NO_NAME) from None


def _digits(text: object) -> object:
    """Refuse what Python takes for a number and nobody else does, such as 1_000."""
    if isinstance(text, str) and not (text.isascii() and text.isdigit()):
        raise ValueError("expected digits")
    return text


# What `check_name` says, for the description alone: here a slash still is `_SLASH`.
_PATTERN: Final = {
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*[^\u0000-\u001f\u007f-\u009f\s][^\u0000-\u001f\u007f-\u009f]*$"
}

ProjectName = Annotated[
    str,
    Path(
        description="The project's id.",
        min_length=1,
        max_length=200,
        examples=["support"],
        json_schema_extra=_PATTERN,
    ),
    AfterValidator(_name),
]
IndexName = Annotated[
    str,
    Path(
        description="The index's name; a slash in it is written %2F.",
        min_length=1,
        max_length=200,
        examples=["call-42"],
        json_schema_extra=_PATTERN,
    ),
    AfterValidator(_name),
]
Version = Annotated[
    int,
    Path(description="The number of the commit.", ge=1, lt=10**12),
    BeforeValidator(_digits),
]
Sha256 = Annotated[
    str,
    Path(
        description="Of the segment's bytes: 64 lower-case hexadecimal digits.",
        pattern="^[0-9a-f]{64}$",
        examples=["e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"],
    ),
]
JobId = Annotated[
    str,
    Path(description="The job's id.", pattern="^[A-Za-z0-9_-]{1,100}$", examples=["push-1"]),
]
