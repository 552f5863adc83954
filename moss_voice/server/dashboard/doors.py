"""Who is looking: sessions in a cookie, and forms that can only come from our own pages.

A session is one of the server's own tokens, so it needs no store, is known to every server of the same one,
and ends with its key. A form carries a hash of it, which another site can neither read nor guess, and the
browser must say that it comes from here.
"""

from __future__ import annotations

import hashlib
import hmac
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, Final
from urllib.parse import parse_qsl, urlsplit

from fastapi import Depends, Request
from starlette.responses import Response

from moss_voice.server import tokens
from moss_voice.server.access import Access
from moss_voice.server.bodies import read_small
from moss_voice.server.labels import project_hash
from moss_voice.server.refusals import Refusal, note
from moss_voice.server.state import Here, State

__all__ = [
    "Ended",
    "Form",
    "Visit",
    "Visitor",
    "VisitorsForm",
    "WritersForm",
    "admit",
    "forget_cookie",
    "is_from_here",
    "read_form",
    "set_cookie",
    "signed_in",
]

SESSION_S: Final = 8 * 3600.0
_MAX_FIELDS: Final = 3000
_MAX_FORM_BYTES: Final = 2 << 20
_REMEMBERED: Final = 10_000


class Ended:
    """Sessions that were signed out of, on this server, until they would have ended anyway."""

    def __init__(self) -> None:
        self._digests: OrderedDict[bytes, None] = OrderedDict()

    def add(self, token: str) -> None:
        """End a session."""
        self._digests[_digest(token)] = None
        if len(self._digests) > _REMEMBERED:
            self._digests.popitem(last=False)

    def __contains__(self, token: str) -> bool:
        return _digest(token) in self._digests


@dataclass(frozen=True, slots=True)
class Visit:
    """Somebody who is signed in.

    Attributes:
        access: What they may do.
        token: The session; a secret.
    """

    access: Access
    token: str

    def __repr__(self) -> str:
        return f"<Visit by key {self.access.key_id}>"

    @property
    def project(self) -> str:
        """Whose pages these are."""
        return self.access.project

    @property
    def writes(self) -> bool:
        """Whether they may change anything."""
        return not self.access.read_only

    @property
    def proof(self) -> str:
        """What every form of theirs carries."""
        return hashlib.sha256(b"moss_voice form\0" + self.token.encode()).hexdigest()


class Form:
    """The fields of a form that was sent."""

    def __init__(self, fields: list[tuple[str, str]]) -> None:
        """Take names and values, in order."""
        self._fields = fields

    def one(self, name: str) -> str:
        """Return a field, blank where it is not there."""
        return next((value for key, value in self._fields if key == name), "")

    def all(self, name: str) -> list[str]:
        """Return every value of a field."""
        return [value for key, value in self._fields if key == name]


# --- cookies ---------------------------------------------------------------------------------------


def _is_secure(request: Request) -> bool:
    # Of a trusted proxy uvicorn has taken the scheme over by now.
    return request.scope.get("scheme") == "https"


def _cookie(request: Request) -> str:
    # No neighbour in the domain can set the first, which a browser takes over TLS alone.
    return "__Host-moss_voice" if _is_secure(request) else "moss_voice"


def set_cookie(request: Request, response: Response, access: Access, token: str) -> None:
    """Let a browser hold a session, no longer than it stands."""
    left = SESSION_S
    if access.expires_at is not None:
        left = min(left, (access.expires_at - datetime.now(UTC)).total_seconds())
    response.set_cookie(
        _cookie(request),
        token,
        max_age=max(1, int(left)),
        path="/",
        secure=_is_secure(request),
        httponly=True,
        samesite="strict",
    )


def forget_cookie(request: Request, response: Response) -> None:
    """Take a session out of a browser."""
    response.delete_cookie(
        _cookie(request), path="/", secure=_is_secure(request), httponly=True, samesite="strict"
    )


# --- who it is -------------------------------------------------------------------------------------


async def admit(request: Request, here: State, project: str, credential: str) -> Access:
    """Let in by a key or a token, slowed down as at the API's own door.

    Raises:
        Refusal: See `Gate.enter`.
    """
    address = request.client.host if request.client is not None else ""
    try:
        access = await here.gate.enter(project, credential, address)
    except Refusal as refused:
        here.metrics.denied.labels(refused.code).inc()
        raise
    note(request, project=project_hash(project), key=access.key_id)
    return access


def _session(request: Request) -> str | None:
    token = request.cookies.get(_cookie(request))
    if token is None or token in request.app.state.ended_sessions:
        return None
    return token


async def signed_in(request: Request, here: Here) -> Visit | None:
    """Return who is looking; None where nobody is signed in.

    Raises:
        Refusal: 401 where a session has ended, 429 where the project has used up its requests.
    """
    token = _session(request)
    claims = tokens.parse(token) if token is not None else None
    if token is None or claims is None:
        return None
    visit = Visit(await admit(request, here, claims.project, token), token)
    request.state.visit = visit
    return visit


async def _visitor(visit: Annotated[Visit | None, Depends(signed_in)]) -> Visit:
    if visit is None:
        raise Refusal(401, "authentication", "sign in first")
    return visit


Visitor = Annotated[Visit, Depends(_visitor)]


# --- forms -----------------------------------------------------------------------------------------


def is_from_here(request: Request) -> bool:
    """Tell whether the browser says that one of our own pages made a request."""
    site = request.headers.get("sec-fetch-site")
    if site is not None:
        return site == "same-origin"
    # Browsers tell the former over TLS and on loopback alone. A proxy may end TLS, so of the origin the
    # host alone counts.
    origin = urlsplit(request.headers.get("origin", ""))
    return origin.scheme in ("http", "https") and origin.netloc == request.headers.get("host")


async def read_form(request: Request, here: State) -> Form:
    """Read a form that one of our pages sent.

    Raises:
        Refusal: 403 where it comes from elsewhere, 400 where it is none, 413 where it is too large.
    """
    if not is_from_here(request):
        raise Refusal(403, "permission_denied", "this form was not sent by a page of this server")
    data = await read_small(request, most=_MAX_FORM_BYTES, idle_s=here.settings.body_idle_s)
    try:
        return Form(
            parse_qsl(
                data.decode("ascii"),
                keep_blank_values=True,
                errors="strict",
                max_num_fields=_MAX_FIELDS,
            )
        )
    except ValueError:
        raise Refusal(400, "invalid_argument", "the form cannot be read") from None


async def _form(request: Request, here: Here, visit: Visitor) -> Form:
    form = await read_form(request, here)
    if not hmac.compare_digest(form.one("proof").encode(), visit.proof.encode()):
        raise Refusal(
            403,
            "permission_denied",
            "this form belongs to another session; go back and load it anew",
        )
    return form


VisitorsForm = Annotated[Form, Depends(_form)]


async def _writers_form(here: Here, visit: Visitor, form: VisitorsForm) -> Form:
    if not visit.writes:
        here.metrics.denied.labels("permission_denied").inc()
        raise Refusal(403, "permission_denied", "this key may only read")
    return form


WritersForm = Annotated[Form, Depends(_writers_form)]


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
