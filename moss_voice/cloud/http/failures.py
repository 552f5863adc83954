"""What went wrong with a call: answers that were not expected, and what httpx raises, as our errors.

Foreign errors are translated here and nowhere else; each failure tells whether another try may go better.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, TypeVar

import httpx

from moss_voice.cloud.http.answers import http_date, read_body
from moss_voice.cloud.http.calls import Call, FailedError, Timeouts
from moss_voice.errors import (
    AuthenticationError,
    CloudUnavailableError,
    ConflictError,
    CorruptDataError,
    EncryptionKeyError,
    FilterError,
    FormatVersionError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidArgumentError,
    JobNotFoundError,
    ModelMismatchError,
    ModelNotFoundError,
    MossError,
    PermissionDeniedError,
    RateLimitedError,
    TooLargeError,
)

__all__ = ["Failures"]

_Cause = TypeVar("_Cause", bound=BaseException)

# More is no error of ours.
_MAX_ERROR_BYTES: Final = 1 << 16
_MAX_MESSAGE: Final = 300

# What may pass: a server that is restarted, a proxy before it, a store behind it.
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_MISSING: Final = frozenset({"not_found", "index_not_found", "job_not_found"})
_BY_CODE: Final[Mapping[str, type[MossError]]] = {
    kind.code: kind
    for kind in (
        AuthenticationError,
        CloudUnavailableError,
        ConflictError,
        CorruptDataError,
        EncryptionKeyError,
        FilterError,
        FormatVersionError,
        IndexExistsError,
        IndexNotFoundError,
        InvalidArgumentError,
        JobNotFoundError,
        ModelMismatchError,
        ModelNotFoundError,
        PermissionDeniedError,
        RateLimitedError,
        TooLargeError,
    )
} | {"encrypted": EncryptionKeyError}
_BY_STATUS: Final[Mapping[int, type[MossError]]] = {
    400: InvalidArgumentError,
    401: AuthenticationError,
    403: PermissionDeniedError,
    413: TooLargeError,
    429: RateLimitedError,
}


@dataclass(frozen=True, slots=True)
class Failures:
    """How the failures of one server's calls are told.

    Attributes:
        name: The server's URL.
        times: How long each step may take.
        refusal: What is said where it refuses the credentials.
    """

    name: str
    times: Timeouts
    refusal: str

    @contextlib.contextmanager
    def translated(self) -> Iterator[None]:
        """Turn what httpx raises into a failure, once, here."""
        try:
            yield
        except MossError:
            raise  # some are OSErrors
        except httpx.TimeoutException as error:
            unavailable = CloudUnavailableError(self._too_slow(error))
            before = isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
            raise FailedError(unavailable, again=True, arrived=not before) from error
        except (httpx.RequestError, OSError) as error:
            unavailable = CloudUnavailableError(f"could not reach {self.name}: {_reason(error)}")
            again = not isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
            again = again and _cause(error, ssl.SSLCertVerificationError) is None
            before = isinstance(error, httpx.ConnectError | httpx.ProxyError)
            raise FailedError(unavailable, again=again, arrived=not before) from error

    def _too_slow(self, error: httpx.TimeoutException) -> str:
        times = self.times
        if isinstance(error, httpx.ConnectTimeout):
            return f"{self.name} took no connection within {times.connect_s:g} s"
        if isinstance(error, httpx.PoolTimeout):
            return f"other calls kept {self.name} busy for more than {times.pool_s:g} s"
        if isinstance(error, httpx.WriteTimeout):
            return f"{self.name} took no data for {times.write_s:g} s"
        limits = error.request.extensions.get("timeout", {})
        return f"{self.name} did not answer within {limits.get('read', times.read_s):g} s"

    async def of(self, response: httpx.Response, call: Call) -> FailedError | None:
        """Return what an answer that was not expected means; None where it says that nothing is there."""
        status = response.status_code
        code, said = _told(await read_body(response, _MAX_ERROR_BYTES, cut=True))
        # The answer to a HEAD has no body that could tell.
        if status == 404 and call.missing and (code in _MISSING or call.method == "HEAD"):
            return None
        wait_s = _retry_after_s(response)
        error = self._error(status, code, said, response, wait_s)
        again = status in _PASSING and isinstance(error, CloudUnavailableError)
        return FailedError(error, again=again, status=status, code=code, after_s=wait_s or 0.0)

    def _error(
        self,
        status: int,
        code: str,
        said: str,
        response: httpx.Response,
        wait_s: float | None,
    ) -> MossError:
        told = f"{self.name}: {said}" if said else f"{self.name} answered {status}"
        kind = _BY_CODE.get(code) or _BY_STATUS.get(status, CloudUnavailableError)
        if kind is RateLimitedError:
            return RateLimitedError(told, retry_after_s=1.0 if wait_s is None else wait_s)
        if kind is ConflictError:
            return ConflictError(told, base_version=0, head_version=0)
        if kind is AuthenticationError:
            told = f"{self.refusal} ({told})" if said else self.refusal
        if status == 408:
            kind = CloudUnavailableError  # it may pass
        if 300 <= status < 400:
            told = (
                f"{self.name} answered {status}: it is elsewhere{_elsewhere(response)}; give that URL,"
                " since the key is not sent to where a server points"
            )
        elif not said and (status == 404 or status < 300):
            return self.stranger(str(status))
        return kind(told)

    def stranger(self, what: str) -> CloudUnavailableError:
        """Return the error for an answer of a gate to the network, say, that answers for everybody."""
        return CloudUnavailableError(
            f"{self.name} answered with {what}, as no moss-voice server does; is the URL right?"
        )


def _told(body: bytes) -> tuple[str, str]:
    """Return the code and the message of an error; empty where the body is none of ours."""
    try:
        error = json.loads(body)["error"]
        code, message = error["code"], error["message"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return "", ""
    if not isinstance(code, str) or not isinstance(message, str):
        return "", ""
    # A terminal or a log is to show it: one line, without what steers it.
    printable = "".join(c if c.isprintable() else " " for c in message[:_MAX_MESSAGE])
    return code, printable.strip()


def _retry_after_s(response: httpx.Response) -> float | None:
    """Return how long the server wants to be left alone, if it tells."""
    value = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    until = http_date(value)
    return None if until is None else max((until - datetime.now(UTC)).total_seconds(), 0.0)


def _elsewhere(response: httpx.Response) -> str:
    """Return at which host, without the rest, which may hold anything."""
    try:
        url = httpx.URL(response.headers.get("Location", ""))
    except httpx.InvalidURL:
        return ""
    return f" ({url.scheme}://{url.host})" if url.host else ""


def _cause(error: BaseException, kind: type[_Cause]) -> _Cause | None:
    """Return the first of a kind among what an error comes from."""
    seen: BaseException | None = error
    for _ in range(20):
        if isinstance(seen, kind):
            return seen
        if isinstance(seen, BaseExceptionGroup):
            seen = seen.exceptions[0]
        elif seen is not None:
            seen = seen.__cause__ or seen.__context__
    return None


def _reason(error: BaseException) -> str:
    """Say in a few words why there is no answer."""
    untrusted = _cause(error, ssl.SSLCertVerificationError)
    if untrusted is not None:
        return f"its certificate is not trusted: {untrusted.verify_message}"
    system = _cause(error, OSError)
    while system is not None and system.strerror is None:
        below = system.__cause__ or system.__context__
        system = _cause(below, OSError) if below is not None else None
    if system is not None and system.strerror:
        known = errno.errorcode.get(system.errno or 0)
        return os.strerror(system.errno) if known and system.errno else system.strerror
    if isinstance(error, httpx.ReadError | httpx.RemoteProtocolError | httpx.WriteError):
        return "the connection was cut, or what came was no HTTP"
    return type(error).__name__
