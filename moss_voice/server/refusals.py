"""What goes wrong, as an answer: a status, a stable code, and a message without content.

Two kinds reach the door. A `Refusal` was decided here, about what somebody sent. Any other `MossError`
comes from the store behind us: of those only the kind is told, since their messages name paths.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from moss_voice.errors import (
    CloudUnavailableError,
    ConflictError,
    CorruptDataError,
    EncryptionKeyError,
    IndexNotFoundError,
    InvalidArgumentError,
    JobNotFoundError,
    MossError,
    TooLargeError,
)

__all__ = [
    "Refusal",
    "answer",
    "note",
    "on_http_error",
    "on_invalid_request",
    "on_moss_error",
    "on_refusal",
    "refusing",
]


class Refusal(Exception):  # noqa: N818 - an answer, not a fault of ours
    """A request that is answered with an error.

    Attributes:
        status: Of HTTP.
        code: Stable, as in `moss_voice.errors`.
        message: For people; holds nothing of what was sent but names of fields, numbers and hashes.
        retry_after_s: When to try again, where that may help.
    """

    def __init__(
        self, status: int, code: str, message: str, *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def headers(self) -> dict[str, str]:
        """What the answer says beside its body."""
        told: dict[str, str] = {}
        if self.retry_after_s is not None:
            told["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            told["WWW-Authenticate"] = "Bearer"
        return told


def answer(
    status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Response:
    """Return an error's answer."""
    body = json.dumps({"error": {"code": code, "message": message}}, ensure_ascii=False)
    return Response(
        body.encode("utf-8", "backslashreplace"),
        status,
        media_type="application/json",
        headers=headers,
    )


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what checks say about something that was sent into a refusal."""
    try:
        yield
    except TooLargeError as error:
        raise Refusal(413, error.code, str(error)) from None
    except (InvalidArgumentError, CorruptDataError) as error:
        raise Refusal(400, error.code, str(error)) from None


def note(request: Request, **told: Any) -> None:
    """Add to what the log tells of a request."""
    request.scope.setdefault("state", {}).setdefault("told", {}).update(told)


async def on_refusal(request: Request, error: Exception) -> Response:
    """Answer with what was decided here."""
    assert isinstance(error, Refusal)  # noqa: S101 - registered for this kind alone
    note(request, code=error.code)
    return answer(error.status, error.code, error.message, error.headers)


# What the store says, by kind: the first that fits.
_STORE: Final[tuple[tuple[type[MossError], int, str | None, str | None], ...]] = (
    (IndexNotFoundError, 404, "index_not_found", "there is no such index"),
    (JobNotFoundError, 404, "job_not_found", "there is no such job"),
    (ConflictError, 409, "conflict", "others pushed all the time; try again"),
    (EncryptionKeyError, 409, "encrypted", "the index is encrypted: only its clients can read it"),
    (CorruptDataError, 500, "corrupt_data", "what is stored of this is damaged"),
    (CloudUnavailableError, 503, "cloud_unavailable", "the store behind this server fails"),
    (InvalidArgumentError, 400, None, None),
)


async def on_moss_error(request: Request, error: Exception) -> Response:
    """Answer for the store behind us, telling no more than the kind."""
    assert isinstance(error, MossError)  # noqa: S101 - registered for this kind alone
    note(request, code=error.code)
    for kind, status, code, message in _STORE:
        if isinstance(error, kind):
            headers = {"Retry-After": "1"} if status == 503 else None
            return answer(status, code or error.code, message or str(error), headers)
    return answer(500, "error", "a fault of the server; its log has it under this request's id")


async def on_http_error(request: Request, error: Exception) -> Response:
    """Answer for the framework: no such path, or not with this method."""
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this kind alone
    if error.status_code == 404:
        return answer(404, "not_found", "there is nothing at this path; /docs shows what there is")
    if error.status_code == 405:
        # The framework names the methods of one route alone, and a path has several.
        path = getattr(request.scope.get("route"), "path", "")
        methods = request.app.openapi()["paths"].get(path, {"get": None})
        allowed = ", ".join(sorted(method.upper() for method in methods))
        return answer(
            405, "method_not_allowed", "this path does not take that method", {"Allow": allowed}
        )
    return answer(error.status_code, "invalid_argument", "the request cannot be understood")


async def on_invalid_request(request: Request, error: Exception) -> Response:  # noqa: ARG001
    """Answer for parameters that are not what the path takes, without quoting them."""
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this kind alone
    return answer(400, "invalid_argument", told(error.errors()))


# Parts of a path into a body that may be told: the names of fields, not keys that somebody made up.
_FIELDS: Final = frozenset(
    [
        "path",
        "query",
        "body",
        "header",
        "project",
        "index",
        "version",
        "sha256",
        "job_id",
        "documents",
        "document",
        "id",
        "ids",
        "text",
        "metadata",
        "payload",
        "embedding",
        "top_k",
        "alpha",
        "filter",
        "min_score",
        "model_id",
        "expires_in_s",
        "read_only",
        "grace_s",
        "keep",
        "offset",
        "limit",
        "status",
        "progress",
        "current_phase",
        "error",
        "created_at",
        "updated_at",
        "completed_at",
    ]
)


def told(errors: Any) -> str:
    """Return the first fault that pydantic found, without anything of the input."""
    first: Mapping[str, Any] = next(iter(errors), {})
    where: list[str] = []
    for part in first.get("loc", ()):
        if not isinstance(part, int) and part not in _FIELDS:
            break
        where.append(str(part))
    message = str(first.get("msg", "not what this path takes")).removeprefix("Value error, ")
    return f"{'.'.join(where) or 'body'}: {message}"
