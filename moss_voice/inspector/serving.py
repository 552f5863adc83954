"""The live inspector: a page of one call on this machine alone, and a server that answers its questions.

The law: only who was told the secret address gets anything, and only from this machine; no other page that
is open in the same browser can ask; nothing that is asked is logged; nothing is left running after `close`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError, Future
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, Self, TypeVar

from moss_voice import pages
from moss_voice.call.recording import Recording, Settings
from moss_voice.errors import InvalidArgumentError, MossError
from moss_voice.inspector import page, wording
from moss_voice.inspector.comparing import Comparison, compare
from moss_voice.inspector.engine import Engine, Question

__all__ = ["InspectorServer"]

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

_MOST_BYTES: Final = 64 * 1024
_MOST_CHARS: Final = 4000
# A client that begins a request and does not go on.
_IDLE_S: Final = 15.0
_SEARCH_S: Final = 60.0
# A long call is asked again turn by turn.
_COMPARE_S: Final = 900.0


class InspectorServer:
    """Serves one recorded call on 127.0.0.1, below an address that cannot be guessed.

    Its threads wait for the engine, which works on its own loop: do not call `close` while that loop waits
    for one of them.
    """

    def __init__(
        self,
        shown: Engine | Recording,
        loop: asyncio.AbstractEventLoop,
        *,
        port: int = 0,
        note: str = "",
        comparison: tuple[str, Comparison] | None = None,
    ) -> None:
        """Take a call and a port, and listen; nothing is answered before `start`.

        Args:
            shown: What answers; or a recording that can only be looked at.
            loop: The running loop that the engine belongs to.
            port: 0 for a free one.
            note: Said at the head of the page.
            comparison: Shown in the page; see `page.page`.

        Raises:
            InvalidArgumentError: If the port is taken or not ours to use.
        """
        self.engine = None if isinstance(shown, Recording) else shown
        self.recording = shown if isinstance(shown, Recording) else shown.recording
        self.loop = loop
        self._secret = secrets.token_urlsafe(24)
        self._page = page.page(
            self.recording,
            live=self.engine is not None,
            missing={} if self.engine is None else self.engine.missing,
            changed={} if self.engine is None else self.engine.changed,
            fields=() if self.engine is None else self.engine.fields,
            values=() if self.engine is None else self.engine.values,
            note=note,
            comparison=comparison,
        ).encode("utf-8", "replace")
        self._state = threading.Lock()
        self._working: set[Future[Any]] = set()
        self._closing = False
        # One question at a time: states of the call that one still reads must not be dropped by another.
        self._turn = asyncio.Lock()
        try:
            self._server = _Server(self, port)
        except OSError as error:
            raise InvalidArgumentError(
                f"port {port}: cannot listen there ({error.strerror}); 0 takes a free one"
            ) from None
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="moss_voice inspector"
        )

    def __repr__(self) -> str:
        # Not its address: whoever reads a log would be let in.
        return f"<InspectorServer of {self.recording.call!r} on port {self.port}>"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """Where the page is; whoever knows it may look."""
        return f"http://127.0.0.1:{self.port}/{self._secret}/"

    def start(self) -> None:
        """Answer from now on."""
        self._thread.start()

    def close(self) -> None:
        """Answer nothing more; returns once no thread and no connection of its is left."""
        with self._state:
            if self._closing:
                return
            self._closing = True
            working = [*self._working]
        for future in working:
            future.cancel()
        if self._thread.ident is not None:
            self._server.shutdown()
            self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    # --- for the handlers --------------------------------------------------------------------------

    def is_host(self, told: str) -> bool:
        """True for our own names: any other one was made to lead here."""
        return told in {f"127.0.0.1:{self.port}", f"localhost:{self.port}"}

    def place(self, path: str) -> str | None:
        """Return what a path names below the secret; None where the secret is wrong."""
        _, _, rest = path.partition("/")
        secret, slash, name = rest.partition("/")
        known = hmac.compare_digest(secret.encode("utf-8", "replace"), self._secret.encode())
        return name.partition("?")[0] if slash and known else None

    @property
    def body(self) -> bytes:
        """The page."""
        return self._page

    def answer(self, name: str, told: Mapping[str, Any]) -> str:
        """Answer a question as a fragment; what is wrong with it is said in one too."""
        try:
            if name == "search":
                return self._search(told)
            return self._compare(told)
        except MossError as error:
            return page.fault(str(error))
        except (CancelledError, TimeoutError):
            return page.fault("This was not answered in time, or the inspector is being closed.")
        except Exception as error:  # noqa: BLE001 - whoever asks is told, and no text of the call with it
            logger.error("the inspector could not answer (%s)", type(error).__name__)
            return page.fault(f"This could not be answered ({type(error).__name__}).")

    def _search(self, told: Mapping[str, Any]) -> str:
        question = _question(told, self.recording)
        engine = self._engine()
        found = self._ask(lambda: engine.ask(question), _SEARCH_S)
        return page.answer(found, question, self.recording)

    def _compare(self, told: Mapping[str, Any]) -> str:
        engine, own = self._engine(), self.recording.settings
        settings = _settings(_object("b", told.get("b", {})), own)
        before, name = self.recording.contexts, "as recorded"
        if told.get("a") is not None:
            other = _settings(_object("a", told["a"]), own)
            before = self._ask(lambda: engine.rerun(other), _COMPARE_S)
            name = wording.difference(other, own)
        after = self._ask(lambda: engine.rerun(settings), _COMPARE_S)
        names = name, wording.difference(settings, own)
        return page.comparison(compare(before, after), self.recording, names=names)

    def _engine(self) -> Engine:
        if self.engine is None:
            raise InvalidArgumentError("this call can be looked at, not asked again")
        return self.engine

    def _ask(self, what: Callable[[], Awaitable[_T]], timeout_s: float) -> _T:
        """Wait for something on the engine's loop."""

        async def in_turn() -> _T:
            async with self._turn:
                return await what()

        with self._state:
            if self._closing:
                raise CancelledError
            future = asyncio.run_coroutine_threadsafe(in_turn(), self.loop)
            self._working.add(future)
        try:
            return future.result(timeout_s)
        finally:
            future.cancel()
            with self._state:
                self._working.discard(future)


class _Server(ThreadingHTTPServer):
    """Keeps hold of its connections, so that it can end them."""

    daemon_threads = False
    block_on_close = True
    request_queue_size = 32

    def __init__(self, inspector: InspectorServer, port: int) -> None:
        self.inspector = inspector
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def hang_up(self) -> None:
        """End the connections that somebody opened and says nothing on."""
        with self._lock:
            for request in self._open:
                try:
                    request.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Let a connection that broke go; the default prints a traceback."""


class _Handler(BaseHTTPRequestHandler):
    """One request. What is refused is refused in a word, whatever it was."""

    server: _Server
    timeout = _IDLE_S
    server_version = "moss-voice"
    sys_version = ""

    def do_GET(self) -> None:
        """Serve the page."""
        if self._let_in() == "":
            self._send(HTTPStatus.OK, self.server.inspector.body, "text/html; charset=utf-8")

    def do_POST(self) -> None:
        """Answer a question."""
        name = self._let_in()
        if name is None:
            return
        if name not in {"search", "compare"}:
            self._refuse(HTTPStatus.NOT_FOUND)
            return
        if not self._is_ours():
            self._refuse(HTTPStatus.FORBIDDEN)
            return
        told = self._told()
        if told is not None:
            body = self.server.inspector.answer(name, told).encode("utf-8", "replace")
            self._send(HTTPStatus.OK, body, "text/html; charset=utf-8")

    def _let_in(self) -> str | None:
        """Return what is asked for; None where it has been refused."""
        hosts = self.headers.get_all("Host", [])
        if len(hosts) != 1 or not self.server.inspector.is_host(hosts[0]):
            self._refuse(HTTPStatus.MISDIRECTED_REQUEST)
            return None
        name = self.server.inspector.place(self.path)
        if name is None or (name and self.command == "GET"):
            self._refuse(HTTPStatus.NOT_FOUND)
            return None
        return name

    def _is_ours(self) -> bool:
        """True where no other page asks. A browser always tells by whom, others have no page."""
        site = self.headers.get("Sec-Fetch-Site")
        origin = self.headers.get("Origin")
        return site in {None, "same-origin"} and (
            origin is None or origin == f"http://{self.headers['Host']}"
        )

    def _told(self) -> Mapping[str, Any] | None:
        """Return the body as a JSON object; None where it has been refused."""
        fault, told = self._read()
        if fault is not None:
            self._refuse(fault)
        return told

    def _read(self) -> tuple[HTTPStatus | None, Mapping[str, Any] | None]:
        # A form of another page cannot send this type without being asked first.
        if self.headers.get_content_type() != "application/json":
            return HTTPStatus.UNSUPPORTED_MEDIA_TYPE, None
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            return HTTPStatus.LENGTH_REQUIRED, None
        if len(length) > 9 or int(length) > _MOST_BYTES:
            return HTTPStatus.REQUEST_ENTITY_TOO_LARGE, None
        try:
            told = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError):
            told = None
        return (None, told) if isinstance(told, dict) else (HTTPStatus.BAD_REQUEST, None)

    def _refuse(self, status: HTTPStatus) -> None:
        self._send(status, f"{status.value} {status.phrase}\n".encode(), "text/plain")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in pages.HEADERS.items():
            self.send_header(name, value)
        self.send_header("Content-Security-Policy", page.policy(live=True))
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def send_error(self, code: int, *_: object, **__: object) -> None:
        """Refuse what is no request, without repeating it."""
        self._refuse(HTTPStatus(code))

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
        """Log nothing: a path holds the secret."""


# --- what is told, as questions --------------------------------------------------------------------


def _question(told: Mapping[str, Any], recording: Recording) -> Question:
    scope = told.get("scope", "all")
    if scope not in {"all", "call", "knowledge"}:
        raise InvalidArgumentError("scope: expected all, call or knowledge")
    until = told.get("until")
    return Question(
        _text("text", told.get("text", "")),
        _settings(told, recording.settings),
        _filter(told.get("filter")),
        None if told.get("focus_on") is None else _names("focus_on", told["focus_on"]),
        scope,
        None if until is None else _whole("until", until),
        told.get("is_turn") is True,
    )


def _settings(told: Mapping[str, Any], own: Settings) -> Settings:
    """Return the call's own settings with those that are told."""
    changes: dict[str, Any] = {}
    for name in ("top_k", "max_tokens"):
        if told.get(name) is not None:
            changes[name] = _whole(name, told[name])
    for name in ("alpha", "min_score"):
        if told.get(name) is not None:
            changes[name] = _number(name, told[name])
    if "focus" in told:
        changes["focus"] = None if told["focus"] is None else _names("focus", told["focus"])
    if told.get("without") is not None:
        changes["without"] = _names("without", told["without"])
    return replace(own, **changes)


def _filter(told: Any) -> Mapping[str, Any] | None:
    """Return a filter; in a page it is written as text."""
    if isinstance(told, str):
        if not told.strip():
            return None
        try:
            told = json.loads(_text("filter", told))
        except ValueError as error:
            where = (
                f", near character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
            )
            raise InvalidArgumentError(f"filter: expected JSON{where}") from None
        except RecursionError:
            raise InvalidArgumentError("filter: nested too deeply") from None
    return None if told is None else _object("filter", told)


def _object(name: str, told: Any) -> Mapping[str, Any]:
    if not isinstance(told, dict):
        raise InvalidArgumentError(f"{name}: expected an object in braces")
    return told


def _text(name: str, told: Any) -> str:
    if not isinstance(told, str) or len(told) > _MOST_CHARS:
        raise InvalidArgumentError(f"{name}: expected a text of at most {_MOST_CHARS} characters")
    return told


def _names(name: str, told: Any) -> tuple[str, ...]:
    if not isinstance(told, list) or not all(isinstance(each, str) for each in told):
        raise InvalidArgumentError(f"{name}: expected a list of names")
    return tuple(told)


def _whole(name: str, told: Any) -> int:
    if isinstance(told, bool) or not isinstance(told, int):
        raise InvalidArgumentError(f"{name}: expected a whole number")
    return told


def _number(name: str, told: Any) -> float:
    if isinstance(told, bool) or not isinstance(told, int | float):
        raise InvalidArgumentError(f"{name}: expected a number")
    return float(told)
