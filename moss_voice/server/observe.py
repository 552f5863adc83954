"""What an operator sees: one line of JSON per request, and Prometheus metrics.

The law: methods, routes as they are written in the code, statuses, times, sizes, counts, hashes and ids of
requests and keys. Never a path, a query, a header, a body, a name or a key.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.process_collector import ProcessCollector
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moss_voice.server.refusals import answer
from moss_voice.server.traffic import Traffic

__all__ = ["JsonLines", "Metrics", "Observer"]

_METHODS: Final = frozenset({"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "PATCH"})
_REQUEST_ID: Final = re.compile(r"[A-Za-z0-9-]{8,64}")
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_HEADERS: Final = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)

# Told the scope and a message; None for the usual answer.
OnFault = Callable[[Scope, str], Awaitable[Response | None]]

requests = logging.getLogger("moss_voice.server.requests")
faults = logging.getLogger("moss_voice.server.faults")


class Metrics:
    """The numbers of one server, in a registry of its own."""

    def __init__(self, *, subscribers: Callable[[], float]) -> None:
        """Take what tells how many event streams are open."""
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "moss_voice_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "moss_voice_request_seconds",
            "From the request's head to the end of its answer; event streams are left out.",
            ("method", "route"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self.segment_bytes = Counter(
            "moss_voice_segment_bytes",
            "Bytes of segments taken in and given out.",
            ("direction",),
            registry=self.registry,
        )
        self.commits = Counter(
            "moss_voice_commits",
            "Commits stored, by what made them.",
            ("by",),
            registry=self.registry,
        )
        self.conflicts = Counter(
            "moss_voice_conflicts",
            "Commits that were not stored because somebody else was first.",
            registry=self.registry,
        )
        self.rejected = Counter(
            "moss_voice_rejected",
            "Segments and commits that were refused, by code.",
            ("what", "code"),
            registry=self.registry,
        )
        self.denied = Counter(
            "moss_voice_denied",
            "Requests that were not let in, by code.",
            ("code",),
            registry=self.registry,
        )
        self.subscribers = Gauge(
            "moss_voice_subscribers", "Open event streams.", registry=self.registry
        )
        self.subscribers.set_function(subscribers)
        ProcessCollector(registry=self.registry)


class Observer:
    """Watches every request from outside: counts it, logs it, gives it an id and safe headers.

    What nobody caught ends here, as an answer that tells nothing.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, traffic: Traffic, on_fault: OnFault | None = None
    ) -> None:
        """Take the application to watch.

        Args:
            app: The application.
            metrics: What counts for the operator.
            traffic: What counts for each project.
            on_fault: Returns the answer to a request whose id is given, once something unexpected came
                of it; None for the usual one.
        """
        self._app = app
        self._metrics = metrics
        self._traffic = traffic
        self._on_fault = on_fault

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and watch."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        watched = _Watched(scope, receive, send)
        start = time.perf_counter()
        try:
            await self._app(scope, watched.receive, watched.send)
        except Exception as error:  # noqa: BLE001 - the last door
            told = {"request": watched.id, "kind": type(error).__name__, "where": _where(error)}
            faults.error("unexpected", extra={"told": told})
            if not watched.status:
                refused = await self._refused(scope, watched.id)
                await refused(scope, receive, watched.send)
        finally:
            self._note(watched, time.perf_counter() - start)

    async def _refused(self, scope: Scope, id_: str) -> Response:
        message = f"a fault of the server; its log tells of request {id_}"
        if self._on_fault is not None:
            try:
                found = await self._on_fault(scope, message)
            except Exception:  # noqa: BLE001 - a page may have failed over what every page holds
                found = None
            if found is not None:
                return found
        return answer(500, "error", message)

    def _note(self, watched: _Watched, took_s: float) -> None:
        scope = watched.scope
        method = scope["method"] if scope["method"] in _METHODS else "other"
        route = getattr(scope.get("route"), "path", "none")
        status = watched.status or 499  # the client went away before there was an answer
        self._metrics.requests.labels(method, route, str(status)).inc()
        is_stream = route.endswith("/events")
        if not is_stream:
            self._metrics.seconds.labels(method, route).observe(took_s)
        state = scope.get("state", {})
        let_in = state.get("told", {}).get("project")
        asked = let_in or state.get("asked")
        # Who looks at the numbers does not change them.
        if asked is not None and route.startswith("/v1"):
            self._traffic.count(
                asked, status, None if is_stream else took_s, is_known=let_in is not None
            )
        told: dict[str, Any] = {
            "request": watched.id,
            "method": method,
            "route": route,
            "status": status,
            "ms": round(took_s * 1000, 2),
            "bytes_in": watched.bytes_in,
            "bytes_out": watched.bytes_out,
        }
        told.update(state.get("told", {}))
        requests.info("request", extra={"told": told})


def _where(error: BaseException) -> str:
    """Return the place in our code that an error came from."""
    ours = [
        f"{frame.f_globals['__name__']}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__")).startswith("moss_voice.")
    ]
    return ours[-1] if ours else "elsewhere"


class _Watched:
    """One request, and what has gone in and out."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self.status = 0
        self.bytes_in = 0
        self.bytes_out = 0
        given = dict(scope["headers"]).get(b"x-request-id", b"").decode("latin-1")
        self.id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(8)

    async def receive(self) -> Message:
        message = await self._receive()
        self.bytes_in += len(message.get("body", b""))
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            there = {name.lower() for name, _ in headers}
            headers += [header for header in _HEADERS if header[0] not in there]
            headers.append((b"x-request-id", self.id.encode()))
            message = {**message, "headers": headers}
        self.bytes_out += len(message.get("body", b""))
        await self._send(message)


class JsonLines(logging.Formatter):
    """One object per record: what we wrote ourselves, and of others' records their kind alone.

    A message of theirs may quote an error, and that a transcript.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return a line."""
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {"at": at, "level": record.levelname.lower()}
        ours = record.name.partition(".")[0] in {"moss_voice", "uvicorn"}
        line["event"] = record.getMessage().strip() if ours else "foreign"
        told = getattr(record, "told", None)
        line.update({"logger": record.name} if told is None else told)
        if record.exc_info and record.exc_info[0] is not None:
            line["kind"] = record.exc_info[0].__name__
        return json.dumps(line, ensure_ascii=True, default=str)
