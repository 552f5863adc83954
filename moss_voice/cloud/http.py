"""The log behind a moss-voice server, by its REST API (docs/server-api.md).

What is promised: every call may be repeated without harm, so one whose answer was lost is repeated, for a
while; what comes back is decoded by `log`, or is an error; an answer that no moss-voice server gave is not
taken for one. Nothing is opened before the first call. Each event loop has connections of its own, which
end with it. The key is sent to this one address: a redirect is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import errno
import functools
import json
import os
import re
import secrets
import ssl
import time
import weakref
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import httpx
import pydantic
from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from moss_voice.cloud import log
from moss_voice.cloud.log import FRESH_S, Commit, Head, StoredSegment
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
from moss_voice.types import JobStatusResponse

__all__ = ["EventStream", "HttpLog", "Timeouts"]

T = TypeVar("T")

# Returns a token; asked again when one is refused.
Authenticator = Callable[[], Awaitable[str]]
# Told how many bytes of how many were sent.
Sent = Callable[[int, int], None]

_REMEMBERED: Final = 1024
_PART_BYTES: Final = 1 << 18
# A download that got this much further may fail as often again.
_PROGRESS_BYTES: Final = 1 << 20
# More is no answer of ours: an error, a document of JSON, an event.
_MAX_ERROR_BYTES: Final = 1 << 16
_MAX_JSON_BYTES: Final = 1 << 27
_MAX_EVENT_BYTES: Final = 1 << 16
# JSON above this is read in a thread: it would hold up the event loop.
_LARGE_JSON_BYTES: Final = 1 << 16
_LARGE_SEGMENT_BYTES: Final = 1 << 23
_MAX_MESSAGE: Final = 300
_FIRST_PAUSE_S: Final = 0.2

_VISIBLE: Final = re.compile(r"[\x21-\x7e]+")
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_JOB: Final = TypeAdapter(JobStatusResponse)
# What may pass: a server that is restarted, a proxy before it, a store behind it.
_PASSING: Final = frozenset({408, 429, 500, 502, 503, 504})
_SUCCESS: Final = frozenset({200, 201})
# Without a body: a page of somebody else's cannot be taken for it.
_DONE: Final = frozenset({204})
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
class Timeouts:
    """How long each step of a call may take before the server counts as not answering.

    Attributes:
        connect_s: To connect.
        read_s: From one part of an answer to the next.
        write_s: From one part of a request to the next.
        pool_s: To wait for others' calls, where too many are under way.
        slow_s: In place of `read_s`, where the server goes through a whole index or stores a large segment.
        silence_s: On the line that tells of new versions; the server says something every 15 s.
    """

    connect_s: float = 3.0
    read_s: float = 30.0
    write_s: float = 30.0
    pool_s: float = 5.0
    slow_s: float = 300.0
    silence_s: float = 25.0


class HttpLog:
    """The logs of many projects behind one server. Safe to share between tasks and event loops.

    Every method raises `CloudUnavailableError` where the server does not answer, `RateLimitedError` where
    it takes no more for now, and `AuthenticationError` where it refuses the credentials.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        authenticator: Authenticator | None = None,
        timeouts: Timeouts = Timeouts(),
        retries: int = 3,
        retry_budget_s: float = 10.0,
        on_sent: Sent | None = None,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Note where the server is; nothing is opened.

        Args:
            url: `http(s)://HOST:PORT/PREFIX`.
            key: The project's key.
            authenticator: Gives a token in place of the key. It is asked when one is first needed, and
                again when the server refuses the one it gave.
            timeouts: See `Timeouts`.
            retries: How often a call that failed is made again at most; a download that gets on may fail
                more often.
            retry_budget_s: No call is made again later than this after it was first made.
            on_sent: Told of the progress of each segment that is sent: bytes so far, bytes in all.
            sleep: Waits between tries.
            clock: Seconds, for the budget.

        Raises:
            InvalidArgumentError: If the URL is no such URL, or holds credentials.
            AuthenticationError: If the key cannot be one.
        """
        self._name = _checked_url(url)
        self._key = None if not key else _checked_credential(key, "the project key")
        self._authenticator = authenticator
        self._token: str | None = None
        self._timeouts = timeouts
        self._patience = _Patience(retries, retry_budget_s, sleep, clock)
        self._on_sent = on_sent
        self._heads: dict[tuple[str, str], tuple[str, Head]] = {}
        # By event loop; not weakly, since connections refer to their loop and would keep it alive.
        self._lines: dict[asyncio.AbstractEventLoop, _Line] = {}
        self._tells = True

    def __repr__(self) -> str:
        return f"<HttpLog {self.name}>"

    @property
    def name(self) -> str:
        """Where it is, without credentials."""
        return self._name

    async def close(self) -> None:
        """Let go of the connections of this event loop; the next call opens them anew."""
        line = self._lines.pop(asyncio.get_running_loop(), None)
        if line is not None:
            await line.close()

    async def check_credentials(self, project_id: str | None, project_key: str | None) -> str:
        """Return the project that the credentials open.

        Args:
            project_id: Required.
            project_key: The key given to this log where None. An authenticator goes before both.

        Raises:
            AuthenticationError: If the server refuses them, or some are missing.
        """
        if not project_id:
            raise AuthenticationError(
                f"{self.name} needs a project id; give project_id or set MOSS_PROJECT_ID"
            )
        key = _checked_credential(project_key, "the project key") if project_key else self._key
        if key is None and self._authenticator is None:
            raise AuthenticationError(
                f"project {project_id!r} at {self.name} needs its project key; give project_key or set"
                " MOSS_PROJECT_KEY"
            )
        answer = await self._ask("GET", _project_path(project_id), key=key)
        if (await self._json(answer)).get("project") != project_id:
            raise CorruptDataError(f"{self.name} answered for another project than was asked for")
        return project_id

    # --- reading -----------------------------------------------------------------------------------

    async def head(self, project: str, index: str) -> Head:
        """Return the end of an index's log; one small answer where nothing changed since the last time.

        Raises:
            CorruptDataError: If the newest commit is damaged.
        """
        path = f"{_index_path(project, index)}/head"
        tag, known = self._heads.get((project, index), (None, None))
        headers = {"If-None-Match": tag} if tag is not None else {}
        answer = await self._ask("GET", path, headers=headers, expected=_SUCCESS | {304})
        if answer.status == 304:
            if known is None:
                raise self._stranger("304 to a question that allowed none")
            return known
        fields = await self._json(answer)
        commit, newest = fields.get("commit"), fields.get("newest")
        head = Head(None if commit is None else _commit(commit, index), _count(newest, "newest"))
        if head.commit is not None and head.commit.version > head.newest:
            raise CorruptDataError(f"head of index {index!r}: newest is below its own commit")
        self._heads.pop((project, index), None)
        if (tag := answer.headers.get("ETag")) is not None:
            self._heads[project, index] = (tag, head)
            if len(self._heads) > _REMEMBERED:
                # Another thread may be as quick.
                self._heads.pop(next(iter(self._heads)), None)
        return head

    async def heads(self, project: str) -> list[Commit]:
        """Return the newest commit of each index, by name.

        Raises:
            CorruptDataError: If one of them is damaged.
        """
        answer = await self._ask("GET", f"{_project_path(project)}/indexes")
        commits = await self._items(answer, "indexes", _commit)
        return sorted(commits, key=lambda commit: commit.index)

    async def history(self, project: str, index: str) -> list[Commit]:
        """Return the versions that are still kept, oldest first; none where the index is deleted.

        Raises:
            CorruptDataError: If one of them is damaged.
        """
        answer = await self._find("GET", f"{_index_path(project, index)}/commits")
        if answer is None:
            return []
        commits = await self._items(answer, "commits", lambda item: _commit(item, index))
        return sorted(commits, key=lambda commit: commit.version)

    async def read_commit(self, project: str, index: str, version: int) -> Commit | None:
        """Return one version, or None where it was never made, is collected, or is over.

        Raises:
            CorruptDataError: If it is damaged, or another's.
        """
        answer = await self._find("GET", f"{_index_path(project, index)}/commits/{version}")
        if answer is None:
            return None
        self._check_is_json(answer)
        commit = log.decode_commit(answer.body)
        if (commit.index, commit.version) != (index, version):
            raise CorruptDataError(
                f"commit {version} of index {index!r} at {self.name} is another's: version"
                f" {commit.version} of index {commit.index!r}"
            )
        return commit

    async def read_segment(
        self, project: str, index: str, sha256: str
    ) -> AsyncGenerator[bytes] | None:
        """Return a segment's bytes in parts, unchecked, or None where there is none.

        A download that breaks off is continued: it asks for the rest, and passes over what it has where
        the server sends all of it again.
        """
        parts = self._download(_segment_path(project, index, sha256))
        # Started here, so that the loop ends it should nobody read on.
        with contextlib.suppress(StopAsyncIteration):
            await anext(parts)
            return parts
        return None

    async def segment_stored_at(self, project: str, index: str, sha256: str) -> datetime | None:
        """Return when a segment was stored, or None where there is none."""
        stored = await self._stat(_segment_path(project, index, sha256))
        return stored.at if stored is not None else None

    async def names(self, project: str) -> list[str]:
        """Return the names under which anything is stored: of deleted indexes and unfinished pushes too."""
        answer = await self._ask("GET", f"{_project_path(project)}/names")
        return await self._items(answer, "names", _stored_name)

    async def segments(self, project: str, index: str) -> list[StoredSegment]:
        """Return all segments that are stored of an index, also what no commit names."""
        answer = await self._find("GET", f"{_index_path(project, index)}/segments")
        return [] if answer is None else await self._items(answer, "segments", _stored_segment)

    # --- writing -----------------------------------------------------------------------------------

    async def write_segment(
        self, project: str, index: str, sha256: str, data: bytes | memoryview
    ) -> bool:
        """Store a segment unless it is there, young; tells whether it was sent."""
        path = _segment_path(project, index, sha256)
        stored = await self._stat(path)
        # See `ObjectLog.write_segment`. By the server's clock: ours may be wrong by days.
        if stored is not None and stored.now - stored.at < timedelta(seconds=FRESH_S):
            return False
        answer = await self._ask(
            "PUT",
            path,
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(len(data))},
            # Made anew for each try.
            content=lambda: self._parts(memoryview(data)),
            # The server stores it somewhere, too, before it answers.
            read_s=self._timeouts.slow_s if len(data) > _LARGE_SEGMENT_BYTES else None,
        )
        if (await self._json(answer)).get("sha256") != sha256:
            raise self._stranger("another segment than was sent")
        return True

    async def _parts(self, data: memoryview) -> AsyncIterator[bytes]:
        for start in range(0, len(data), _PART_BYTES):
            part = bytes(data[start : start + _PART_BYTES])
            yield part
            if self._on_sent is not None:
                self._on_sent(start + len(part), len(data))

    async def write_commit(self, project: str, commit: Commit) -> bool:
        """Store a commit if its number is free; False where somebody else was first.

        True also where the commit there is this very one: the answer to an earlier try was lost.
        """
        answer = await self._ask(
            "PUT",
            f"{_index_path(project, commit.index)}/commits/{commit.version}",
            headers={"Content-Type": "application/json"},
            content=commit.encode,
            expected=_SUCCESS | {409},
        )
        if answer.status == 409:
            return False
        if (await self._json(answer)).get("version") != commit.version:
            raise self._stranger("another version than was sent")
        return True

    async def delete_segment(self, project: str, index: str, sha256: str) -> bool:
        """Remove a segment that has lain about unnamed for an hour; tells whether it is gone."""
        answer = await self._find("DELETE", _segment_path(project, index, sha256))
        if answer is None or answer.status == 204:
            return True
        gone = (await self._json(answer)).get("gone")
        if not isinstance(gone, bool):
            raise CorruptDataError(f"{self.name}: gone: expected true or false")
        return gone

    async def delete_index(self, project: str, index: str) -> None:
        """Delete an index with all its versions.

        Raises:
            IndexNotFoundError: If there is no such index (any more).
        """
        answer = await self._find(
            "DELETE",
            _index_path(project, index),
            expected=_DONE,
            read_s=self._timeouts.slow_s,
        )
        if answer is None:
            raise IndexNotFoundError(f"there is no index {index!r} in {self.name}")

    async def collect(self, project: str, index: str, *, grace_s: float, keep: int) -> int:
        """Remove what nobody can still need; returns how many objects that were.

        Raises:
            CorruptDataError: If a commit that is kept is damaged: then nothing is removed.
        """
        answer = await self._ask(
            "POST",
            f"{_index_path(project, index)}/collect",
            headers={"Content-Type": "application/json"},
            content=json.dumps({"grace_s": grace_s, "keep": keep}).encode,
            read_s=self._timeouts.slow_s,
        )
        return _count((await self._json(answer)).get("removed"), "removed")

    # --- jobs --------------------------------------------------------------------------------------

    async def put_job(self, project: str, job: JobStatusResponse) -> None:
        """Store how far a job has come, over what was stored before."""
        data = _JOB.dump_json(job)
        await self._ask(
            "PUT",
            _job_path(project, job.job_id),
            headers={"Content-Type": "application/json"},
            content=lambda: data,
            expected=_DONE,
        )

    async def get_job(self, project: str, job_id: str) -> JobStatusResponse:
        """Return how far a job has come.

        Raises:
            JobNotFoundError: If there is no such job.
            CorruptDataError: If its record is damaged.
        """
        answer = await self._find("GET", _job_path(project, job_id))
        if answer is None:
            raise JobNotFoundError(f"there is no job {job_id!r} in {self.name}")
        self._check_is_json(answer)
        try:
            return _JOB.validate_json(answer.body)
        except pydantic.ValidationError:
            raise CorruptDataError(f"the record of job {job_id!r} is damaged") from None

    # --- being told --------------------------------------------------------------------------------

    def watch(self, project: str, index: str) -> AsyncGenerator[int] | None:
        """Return the versions of an index as they are made, the current one first.

        Ends, or raises `CloudUnavailableError`, when the line is cut, also where nothing has come for
        longer than a server is ever silent. Whoever waits comes again, after a pause.

        Returns:
            None once the server has been found to tell nobody.
        """
        return self._versions(f"{_index_path(project, index)}/events") if self._tells else None

    async def _versions(self, path: str) -> AsyncGenerator[int]:
        call = _Call(
            "GET",
            path,
            headers={"Accept": "text/event-stream"},
            read_s=self._timeouts.silence_s,
            watches=True,
        )
        stream = EventStream()
        try:
            async with self._opened(call) as answer:
                assert answer is not None  # noqa: S101 - only where `missing`
                kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
                if kind != "text/event-stream":
                    raise self._stranger("other things than events")
                async for part in answer.aiter_bytes():
                    for event, data in stream.feed(part):
                        if event == "version":
                            yield _version_of(data)
        except _FailedError as failure:
            if failure.status in (405, 501) or failure.code == "not_found":
                self._tells = False
            elif failure.status != 404:
                raise failure.error from failure.__cause__

    # --- one call ----------------------------------------------------------------------------------

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], bytes | AsyncIterator[bytes]] | None = None,
        expected: frozenset[int] = _SUCCESS,
        key: str | None = None,
        read_s: float | None = None,
    ) -> _Answer:
        """Make a call until it is answered, or there is no point in going on."""
        call = _Call(method, path, headers or {}, content, expected, key, read_s)
        answer = await self._answered(call)
        assert answer is not None  # noqa: S101 - only where `missing`
        return answer

    async def _find(
        self,
        method: str,
        path: str,
        *,
        expected: frozenset[int] = _SUCCESS,
        read_s: float | None = None,
    ) -> _Answer | None:
        """Make a call in the same way; None where the server says that there is no such thing."""
        call = _Call(method, path, expected=expected, read_s=read_s, missing=True)
        return await self._answered(call)

    async def _answered(self, call: _Call) -> _Answer | None:
        tries = _Tries(self._patience)
        while True:
            try:
                async with self._opened(call) as response:
                    if response is not None:
                        body = await _body(response, _MAX_JSON_BYTES)
                        return _Answer(response.status_code, response.headers, body)
                # A deletion may have been done by the try whose answer was lost.
                gone = call.method == "DELETE" and tries.may_have_arrived
                return _Answer(204, httpx.Headers(), b"") if gone else None
            except _FailedError as failure:
                await tries.wait_after(failure)

    async def _download(self, path: str) -> AsyncGenerator[bytes]:
        """Yield nothing once the first answer is there, then the parts; ends at once where there is none."""
        done = counted = 0
        begun = False
        tries = _Tries(self._patience)
        while True:
            headers = {"Range": f"bytes={done}-"} if done else {}
            # 416: all had come but the end of the answer.
            expected = frozenset({200, 206, 416} if done else {200})
            try:
                async with self._opened(
                    _Call("GET", path, headers, expected=expected, missing=True)
                ) as answer:
                    if answer is None:
                        if begun:
                            raise CorruptDataError(
                                f"a segment vanished from {self.name} while it was read"
                            )
                        return
                    if not begun:
                        begun = True
                        yield b""
                    if answer.status_code == 416:
                        return
                    passed = done
                    if answer.status_code == 206:
                        self._check_range(answer, done)
                        passed = 0
                    async for part in answer.aiter_bytes():
                        new = part[passed:]
                        passed -= min(passed, len(part))
                        done += len(new)
                        if new:
                            yield new
                    return
            except _FailedError as failure:
                if done - counted >= _PROGRESS_BYTES:
                    tries, counted = _Tries(self._patience), done
                await tries.wait_after(failure)

    def _check_range(self, answer: httpx.Response, start: int) -> None:
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise self._stranger("another part than was asked for")

    async def _stat(self, path: str) -> _Stat | None:
        answer = await self._find("HEAD", path)
        if answer is None:
            return None
        now = _http_date(answer.headers.get("Date")) or datetime.now(UTC)
        exact = answer.headers.get("X-Stored-At")
        try:
            at = datetime.fromisoformat(exact) if exact else None
        except ValueError:
            at = None
        if at is None or at.tzinfo is None:
            at = _http_date(answer.headers.get("Last-Modified"))
        if at is None:
            raise self._stranger("no time at which a segment was stored")
        return _Stat(at, now)

    # --- one try -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def _opened(self, call: _Call) -> AsyncIterator[httpx.Response | None]:
        """Try a call once, and hand out the answer while it is being read.

        Yields:
            An expected answer, its body unread; None where the server knows no such thing and the call
            takes that for an answer.

        Raises:
            _FailedError: Whatever else came, also in the middle of the body.
        """
        refused: str | None = None
        with self._translated():
            while True:
                credential = await self._credential(call, refused)
                response = await self._sent(call, credential)
                try:
                    status = response.status_code
                    renewable = self._authenticator is not None and refused is None
                    if status == 401 and renewable:
                        refused = credential
                        continue
                    if status in call.expected:
                        yield response
                        return
                    failure = await self._failure(response, call)
                finally:
                    await response.aclose()
                if failure is not None:
                    raise failure
                yield None
                return

    async def _sent(self, call: _Call, credential: str | None) -> httpx.Response:
        line = await self._line()
        times = self._timeouts
        # Compressed, parts would have no place, and could be larger than anybody asked for.
        headers = {"Accept-Encoding": "identity", **call.headers}
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential}"
        client = line.watching if call.watches else line.asking
        request = client.build_request(
            call.method,
            f"{self._name}{call.path}",
            headers=headers,
            content=call.content() if call.content is not None else None,
            timeout=httpx.Timeout(
                connect=times.connect_s,
                read=times.read_s if call.read_s is None else call.read_s,
                write=times.write_s,
                pool=times.pool_s,
            ),
        )
        return await client.send(request, stream=True)

    async def _line(self) -> _Line:
        """Return the connections of this event loop."""
        loop = asyncio.get_running_loop()
        line = self._lines.get(loop)
        if line is not None and not line.asking.is_closed:
            return line
        for other in [loop, *self._lines]:
            if other is loop or other.is_closed():
                self._lines.pop(other, None)
        # It reads files and imports, for longer than an event loop should wait.
        made = await asyncio.to_thread(_Line)
        line = self._lines.setdefault(loop, made)
        if line is made:
            await line.settle(self, loop)
        return line

    async def _credential(self, call: _Call, refused: str | None) -> str | None:
        """Return the key or a token to send, another one than was refused."""
        if self._authenticator is None:
            return call.key if call.key is not None else self._key
        line = await self._line()
        async with line.renewing:
            # Of many that were refused the same token, one asks.
            if self._token is None or self._token == refused:
                self._token = None
                self._token = await self._new_token(self._authenticator)
            return self._token

    async def _new_token(self, authenticator: Authenticator) -> str:
        try:
            token = await authenticator()
        except Exception as error:  # noqa: BLE001 - the user's own
            # What it says may hold a token.
            raise AuthenticationError(
                f"the authenticator raised {type(error).__name__} in place of a token"
            ) from None
        if not isinstance(token, str):
            raise AuthenticationError(
                f"the authenticator returned a {type(token).__name__}; expected a token, a str"
            )
        return _checked_credential(token, "the authenticator's token")

    # --- what went wrong ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what httpx raises into a failure, once, here."""
        try:
            yield
        except MossError:
            raise  # some are OSErrors
        except httpx.TimeoutException as error:
            unavailable = CloudUnavailableError(self._too_slow(error))
            before = isinstance(error, httpx.ConnectTimeout | httpx.PoolTimeout)
            raise _FailedError(unavailable, again=True, arrived=not before) from error
        except (httpx.RequestError, OSError) as error:
            unavailable = CloudUnavailableError(f"could not reach {self.name}: {_reason(error)}")
            again = not isinstance(error, httpx.LocalProtocolError | httpx.UnsupportedProtocol)
            again = again and _cause(error, ssl.SSLCertVerificationError) is None
            before = isinstance(error, httpx.ConnectError | httpx.ProxyError)
            raise _FailedError(unavailable, again=again, arrived=not before) from error

    def _too_slow(self, error: httpx.TimeoutException) -> str:
        times = self._timeouts
        if isinstance(error, httpx.ConnectTimeout):
            return f"{self.name} took no connection within {times.connect_s:g} s"
        if isinstance(error, httpx.PoolTimeout):
            return f"other calls kept {self.name} busy for more than {times.pool_s:g} s"
        if isinstance(error, httpx.WriteTimeout):
            return f"{self.name} took no data for {times.write_s:g} s"
        limits = error.request.extensions.get("timeout", {})
        return f"{self.name} did not answer within {limits.get('read', times.read_s):g} s"

    async def _failure(self, response: httpx.Response, call: _Call) -> _FailedError | None:
        """Return what an answer that was not expected means; None where it says that nothing is there."""
        status = response.status_code
        code, said = _told(await _body(response, _MAX_ERROR_BYTES, cut=True))
        # The answer to a HEAD has no body that could tell.
        if status == 404 and call.missing and (code in _MISSING or call.method == "HEAD"):
            return None
        wait_s = _retry_after_s(response)
        error = self._error(status, code, said, response, wait_s)
        again = status in _PASSING and isinstance(error, CloudUnavailableError)
        return _FailedError(error, again=again, status=status, code=code, after_s=wait_s or 0.0)

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
            told = f"{self._refusal()} ({told})" if said else self._refusal()
        if status == 408:
            kind = CloudUnavailableError  # it may pass
        if 300 <= status < 400:
            told = (
                f"{self.name} answered {status}: it is elsewhere{_elsewhere(response)}; give that URL,"
                " since the key is not sent to where a server points"
            )
        elif not said and (status == 404 or status < 300):
            return self._stranger(str(status))
        return kind(told)

    def _refusal(self) -> str:
        if self._authenticator is not None:
            return f"{self.name} refused the authenticator's token"
        return (
            f"{self.name} refused the project key; check project_id and project_key, or MOSS_PROJECT_ID"
            " and MOSS_PROJECT_KEY"
        )

    # --- what came ---------------------------------------------------------------------------------

    def _check_is_json(self, answer: _Answer) -> None:
        if answer.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise self._stranger("something else than JSON")

    def _stranger(self, what: str) -> CloudUnavailableError:
        """Return the error for an answer of a gate to the network, say, that answers for everybody."""
        return CloudUnavailableError(
            f"{self.name} answered with {what}, as no moss-voice server does; is the URL right?"
        )

    async def _json(self, answer: _Answer) -> dict[str, Any]:
        self._check_is_json(answer)
        if len(answer.body) > _LARGE_JSON_BYTES:
            return await asyncio.to_thread(_object, answer.body)
        return _object(answer.body)

    async def _items(self, answer: _Answer, field_: str, read: Callable[[Any], T]) -> list[T]:
        """Return each item of a list, read; in a thread where there are many."""
        self._check_is_json(answer)

        def all_of() -> list[T]:
            items = _object(answer.body).get(field_)
            if not isinstance(items, list):
                raise CorruptDataError(f"answer of the server: {field_}: expected a list")
            return [read(item) for item in items]

        if len(answer.body) > _LARGE_JSON_BYTES:
            return await asyncio.to_thread(all_of)
        return all_of()


@functools.cache
def _trust() -> ssl.SSLContext:
    """Return whom we trust; all connections of this process share it, since it costs 40 ms to make."""
    return httpx.create_ssl_context()


class _Line:
    """The connections of one event loop. Whoever forgets to close them need not."""

    def __init__(self) -> None:
        trust = _trust()
        # Idle ones go before a router forgets them.
        limits = httpx.Limits(
            max_connections=64, max_keepalive_connections=16, keepalive_expiry=30.0
        )
        self.asking = httpx.AsyncClient(verify=trust, limits=limits, headers=_AGENT)
        # Each watch holds a connection, and there may be many.
        unlimited = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        self.watching = httpx.AsyncClient(verify=trust, limits=unlimited, headers=_AGENT)
        self.renewing = asyncio.Lock()
        self._keeper = self._kept()
        self._closing: asyncio.Task[None] | None = None

    async def settle(self, owner: HttpLog, loop: asyncio.AbstractEventLoop) -> None:
        """Close at the end of the loop, or when the owner is let go of, if not before."""
        self._let_go = weakref.finalize(owner, self._close_soon, loop)
        self._let_go.atexit = False
        await anext(self._keeper)

    async def _kept(self) -> AsyncGenerator[None]:
        """Close at the end of this generator: `asyncio.run` ends those that were begun in its loop."""
        try:
            yield
        finally:
            await self.close()

    def _close_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        def begin() -> None:
            self._closing = loop.create_task(self.close())

        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(begin)

    async def close(self) -> None:
        """Close the connections; again does nothing."""
        self._let_go.detach()
        await self.asking.aclose()
        await self.watching.aclose()


_AGENT: Final = {"User-Agent": "moss-voice"}


@dataclass(frozen=True, slots=True)
class _Call:
    """What is asked.

    Attributes:
        path: Below the server's URL, encoded.
        content: Makes the body, for each try.
        expected: The statuses that answer it.
        key: In place of the log's own.
        read_s: In place of the usual timeout.
        missing: Whether "there is no such thing" answers it too.
        watches: Whether the answer goes on and on.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Callable[[], bytes | AsyncIterator[bytes]] | None = None
    expected: frozenset[int] = _SUCCESS
    key: str | None = None
    read_s: float | None = None
    missing: bool = False
    watches: bool = False


class _Answer(NamedTuple):
    status: int
    headers: httpx.Headers
    body: bytes


class _Stat(NamedTuple):
    """When a segment was stored, and what time it is there now."""

    at: datetime
    now: datetime


class _FailedError(Exception):
    """A try that failed; never leaves this module.

    Attributes:
        error: What the caller is told if it was the last.
        again: Whether another try may go better.
        status: Of the answer; 0 where there was none.
        code: Of the error that it told of, if it was one of ours.
        after_s: How long the server wants to be left alone.
        arrived: Whether the server may have done what was asked.
    """

    def __init__(
        self,
        error: MossError,
        *,
        again: bool,
        status: int = 0,
        code: str = "",
        after_s: float = 0.0,
        arrived: bool = True,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.again = again
        self.status = status
        self.code = code
        self.after_s = after_s
        self.arrived = arrived


class _Patience(NamedTuple):
    """How often and how long a call is tried."""

    retries: int
    budget_s: float
    sleep: Callable[[float], Awaitable[None]]
    clock: Callable[[], float]


class _Tries:
    """The tries of one call.

    Attributes:
        may_have_arrived: Whether one of those that failed may have done what was asked.
    """

    def __init__(self, patience: _Patience) -> None:
        self._patience = patience
        self._started = patience.clock()
        self._failed = 0
        self.may_have_arrived = False

    async def wait_after(self, failure: _FailedError) -> None:
        """Wait for the next try, for a random time that grows; raises the error where there is none."""
        retries, budget_s, sleep, clock = self._patience
        self._failed += 1
        self.may_have_arrived |= failure.arrived
        # Full jitter: those who failed together do not come again together.
        longest_s = _FIRST_PAUSE_S * 2 ** (self._failed - 1)
        pause_s = failure.after_s + secrets.SystemRandom().uniform(0.0, longest_s)
        in_time = clock() - self._started + pause_s <= budget_s
        if not failure.again or self._failed > retries or not in_time:
            raise failure.error from failure.__cause__
        await sleep(pause_s)


class EventStream:
    """Bytes in, server-sent events out, wherever the parts are cut."""

    def __init__(self) -> None:
        self._rest = b""
        self._event = ""
        self._data: list[str] = []
        self._size = 0

    def feed(self, part: bytes) -> list[tuple[str, str]]:
        """Return the events that are complete now: their types and data. Comments are passed over.

        Raises:
            CloudUnavailableError: If a line goes on for longer than any of ours.
        """
        text = self._rest + part
        # A carriage return at the end may be half of a line's end.
        held = text[-1:] == b"\r"
        lines = re.split(rb"\r\n|\n|\r", text[:-1] if held else text)
        self._rest = lines.pop() + (b"\r" if held else b"")
        events = []
        for raw in lines:
            line = raw.decode("utf-8", "replace").removeprefix("\ufeff")
            name, _, value = line.partition(":")
            value = value.removeprefix(" ")
            self._size += len(raw)
            if name == "event":
                self._event = value
            elif name == "data":
                self._data.append(value)
            elif not line:
                if self._data:
                    events.append((self._event or "message", "\n".join(self._data)))
                self._event, self._data, self._size = "", [], 0
        if len(self._rest) + self._size > _MAX_EVENT_BYTES:
            raise CloudUnavailableError("the server's events are longer than a moss-voice server's")
        return events


# --- paths -----------------------------------------------------------------------------------------


def _checked_url(url: str) -> str:
    """Return a server's URL without a slash at its end.

    Raises:
        InvalidArgumentError: If it is something else; what came is not quoted, since it may hold a key.
    """
    expected = "cloud: expected http(s)://HOST:PORT/PREFIX"
    try:
        parts = urlsplit(url)
        parsed = httpx.URL(url)
        _ = parts.port
    except (ValueError, httpx.InvalidURL):
        raise InvalidArgumentError(f"{expected}, got something that is no URL") from None
    if "@" in parts.netloc:
        raise InvalidArgumentError(
            f"{expected} without credentials: those go into project_key or MOSS_PROJECT_KEY"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidArgumentError(expected)
    if "?" in url or "#" in url:
        raise InvalidArgumentError(f"{expected}, without ? and #")
    return str(parsed).rstrip("/")


def _component(name: str) -> str:
    """Return a name as one component of a path: all but what is unreserved is percent-encoded.

    So are dots that stand alone, which would mean a folder.
    """
    return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="")


def _project_path(project: str) -> str:
    return f"/v1/projects/{_component(log.check_name(project, what='project id'))}"


def _index_path(project: str, index: str) -> str:
    path = _project_path(project)
    return f"{path}/indexes/{_component(log.check_name(index))}"


def _segment_path(project: str, index: str, sha256: str) -> str:
    return f"{_index_path(project, index)}/segments/{_component(sha256)}"


def _job_path(project: str, job_id: str) -> str:
    if not _JOB_ID.fullmatch(job_id):
        raise JobNotFoundError("there is no job of that id: job ids are letters, digits, - and _")
    return f"{_project_path(project)}/jobs/{job_id}"


def _checked_credential(text: str, what: str) -> str:
    """Return a key or token that a header can carry as it is; what came is never quoted."""
    if not _VISIBLE.fullmatch(text):
        raise AuthenticationError(
            f"{what}: expected letters, digits and signs of ASCII without spaces, as the server gives"
            " them out"
        )
    return text


# --- answers ---------------------------------------------------------------------------------------


async def _body(response: httpx.Response, most: int, *, cut: bool = False) -> bytes:
    """Return a body that is not too large; where `cut`, the beginning of one that is."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > most:
            if cut:
                break
            raise CloudUnavailableError("the server answered with more than any answer of ours")
    return bytes(body)


def _object(body: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise CorruptDataError("answer of the server: expected a JSON object")
    return fields


def _commit(item: Any, index: str | None = None) -> Commit:
    """Return a commit, checked as one that was read from a store."""
    commit = log.decode_commit(json.dumps(item).encode())
    if index is not None and commit.index != index:
        raise CorruptDataError(f"commit of index {index!r}: it is another's, {commit.index!r}")
    return commit


@checked_dataclass(config=ConfigDict(hide_input_in_errors=True), frozen=True)
class _Listed:
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
    size_bytes: Annotated[int, Field(ge=0)]
    at: AwareDatetime


_LISTED: Final = TypeAdapter(_Listed)


def _stored_name(item: Any) -> str:
    if not isinstance(item, str):
        raise CorruptDataError("answer of the server: names: expected text")
    return log.check_name(item)


def _stored_segment(item: Any) -> StoredSegment:
    try:
        listed = _LISTED.validate_python(item)
    except pydantic.ValidationError:
        raise CorruptDataError(
            "answer of the server: segments: expected sha256, size_bytes and at of each"
        ) from None
    return StoredSegment(listed.sha256, listed.size_bytes, listed.at)


def _count(number: Any, what: str) -> int:
    if type(number) is not int or number < 0:
        raise CorruptDataError(f"answer of the server: {what}: expected a number, 0 or more")
    return number


def _version_of(data: str) -> int:
    try:
        return _count(_object(data.encode()).get("version"), "version")
    except CorruptDataError as error:
        raise CloudUnavailableError(f"an event of the server makes no sense: {error}") from None


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
    until = _http_date(value)
    return None if until is None else max((until - datetime.now(UTC)).total_seconds(), 0.0)


def _http_date(value: str | None) -> datetime | None:
    try:
        date = email.utils.parsedate_to_datetime(value or "")
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _elsewhere(response: httpx.Response) -> str:
    """Return at which host, without the rest, which may hold anything."""
    try:
        url = httpx.URL(response.headers.get("Location", ""))
    except httpx.InvalidURL:
        return ""
    return f" ({url.scheme}://{url.host})" if url.host else ""


# --- causes ----------------------------------------------------------------------------------------

_Cause = TypeVar("_Cause", bound=BaseException)


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
