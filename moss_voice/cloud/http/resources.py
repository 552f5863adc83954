"""The log as resources of a server: what each method asks, and what the answer is taken for.

What comes back is decoded by `log`, or is an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import pydantic
from pydantic import TypeAdapter

from moss_voice.cloud import log
from moss_voice.cloud.contract import Authenticator, Log
from moss_voice.cloud.http.answers import (
    commit_of,
    count_of,
    http_date,
    stored_name,
    stored_segment,
    version_of,
)
from moss_voice.cloud.http.asking import Asker
from moss_voice.cloud.http.calls import (
    DONE,
    SUCCESS,
    Call,
    FailedError,
    Patience,
    Timeouts,
)
from moss_voice.cloud.http.connections import Lines
from moss_voice.cloud.http.credentials import Credentials, checked_credential
from moss_voice.cloud.http.events import EventStream
from moss_voice.cloud.http.paths import (
    checked_url,
    index_path,
    is_in_the_clear,
    job_path,
    project_path,
    segment_path,
)
from moss_voice.cloud.log import FRESH_S, Commit, Head, StoredSegment
from moss_voice.errors import (
    AuthenticationError,
    CorruptDataError,
    IndexNotFoundError,
    JobNotFoundError,
)
from moss_voice.types import JobStatusResponse

__all__ = ["HttpLog"]

logger = logging.getLogger(__name__)

# Told how many bytes of how many were sent.
Sent = Callable[[int, int], None]

_TIMEOUTS: Final = Timeouts()
_REMEMBERED: Final = 1024
_PART_BYTES: Final = 1 << 18
_LARGE_SEGMENT_BYTES: Final = 1 << 23
_JOB: Final = TypeAdapter(JobStatusResponse)


class _Stat(NamedTuple):
    """When a segment was stored, and what time it is there now."""

    at: datetime
    now: datetime


class HttpLog(Log):
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
        timeouts: Timeouts = _TIMEOUTS,
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
        self._name = checked_url(url)
        if is_in_the_clear(self._name):
            logger.warning("%s: the key and all else go there unencrypted; use https", self._name)
        self._credentials = Credentials(key, authenticator)
        self._lines = Lines()
        self._timeouts = timeouts
        self._server = Asker(
            self._name,
            credentials=self._credentials,
            lines=self._lines,
            timeouts=timeouts,
            patience=Patience(retries, retry_budget_s, sleep, clock),
        )
        self._on_sent = on_sent
        self._heads: dict[tuple[str, str], tuple[str, Head]] = {}
        self._tells = True

    def __repr__(self) -> str:
        return f"<HttpLog {self.name}>"

    @property
    def name(self) -> str:
        """Where it is, without credentials."""
        return self._name

    async def close(self) -> None:
        """Let go of the connections of this event loop; the next call opens them anew."""
        await self._lines.close()

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
        key = (
            checked_credential(project_key, "the project key")
            if project_key
            else self._credentials.key
        )
        if key is None and not self._credentials.renewable:
            raise AuthenticationError(
                f"project {project_id!r} at {self.name} needs its project key; give project_key or set"
                " MOSS_PROJECT_KEY"
            )
        answer = await self._server.ask("GET", project_path(project_id), key=key)
        if (await self._server.fields(answer)).get("project") != project_id:
            raise CorruptDataError(f"{self.name} answered for another project than was asked for")
        return project_id

    # --- reading -----------------------------------------------------------------------------------

    async def head(self, project: str, index: str) -> Head:
        """Return the end of an index's log; one small answer where nothing changed since the last time.

        Raises:
            CorruptDataError: If the newest commit is damaged.
        """
        path = f"{index_path(project, index)}/head"
        tag, known = self._heads.get((project, index), (None, None))
        headers = {"If-None-Match": tag} if tag is not None else {}
        answer = await self._server.ask("GET", path, headers=headers, expected=SUCCESS | {304})
        if answer.status == 304:
            if known is None:
                raise self._server.stranger("304 to a question that allowed none")
            return known
        fields = await self._server.fields(answer)
        commit, newest = fields.get("commit"), fields.get("newest")
        head = Head(
            None if commit is None else commit_of(commit, index), count_of(newest, "newest")
        )
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
        answer = await self._server.ask("GET", f"{project_path(project)}/indexes")
        commits = await self._server.items(answer, "indexes", commit_of)
        return sorted(commits, key=lambda commit: commit.index)

    async def history(self, project: str, index: str) -> list[Commit]:
        """Return the versions that are still kept, oldest first; none where the index is deleted.

        Raises:
            CorruptDataError: If one of them is damaged.
        """
        answer = await self._server.find("GET", f"{index_path(project, index)}/commits")
        if answer is None:
            return []
        commits = await self._server.items(answer, "commits", lambda item: commit_of(item, index))
        return sorted(commits, key=lambda commit: commit.version)

    async def read_commit(self, project: str, index: str, version: int) -> Commit | None:
        """Return one version, or None where it was never made, is collected, or is over.

        Raises:
            CorruptDataError: If it is damaged, or another's.
        """
        answer = await self._server.find("GET", f"{index_path(project, index)}/commits/{version}")
        if answer is None:
            return None
        self._server.check_is_json(answer)
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
        parts = self._server.download(segment_path(project, index, sha256))
        # Started here, so that the loop ends it should nobody read on.
        with contextlib.suppress(StopAsyncIteration):
            await anext(parts)
            return parts
        return None

    async def segment_stored_at(self, project: str, index: str, sha256: str) -> datetime | None:
        """Return when a segment was stored, or None where there is none."""
        stored = await self._stat(segment_path(project, index, sha256))
        return stored.at if stored is not None else None

    async def names(self, project: str) -> list[str]:
        """Return the names under which anything is stored: of deleted indexes and unfinished pushes too."""
        answer = await self._server.ask("GET", f"{project_path(project)}/names")
        return await self._server.items(answer, "names", stored_name)

    async def segments(self, project: str, index: str) -> list[StoredSegment]:
        """Return all segments that are stored of an index, also what no commit names."""
        answer = await self._server.find("GET", f"{index_path(project, index)}/segments")
        return (
            [] if answer is None else await self._server.items(answer, "segments", stored_segment)
        )

    async def _stat(self, path: str) -> _Stat | None:
        answer = await self._server.find("HEAD", path)
        if answer is None:
            return None
        now = http_date(answer.headers.get("Date")) or datetime.now(UTC)
        exact = answer.headers.get("X-Stored-At")
        try:
            at = datetime.fromisoformat(exact) if exact else None
        except ValueError:
            at = None
        if at is None or at.tzinfo is None:
            at = http_date(answer.headers.get("Last-Modified"))
        if at is None:
            raise self._server.stranger("no time at which a segment was stored")
        return _Stat(at, now)

    # --- writing -----------------------------------------------------------------------------------

    async def write_segment(
        self, project: str, index: str, sha256: str, data: bytes | memoryview
    ) -> bool:
        """Store a segment unless it is there, young; tells whether it was sent."""
        path = segment_path(project, index, sha256)
        stored = await self._stat(path)
        # See `ObjectLog.write_segment`. By the server's clock: ours may be wrong by days.
        if stored is not None and stored.now - stored.at < timedelta(seconds=FRESH_S):
            return False
        answer = await self._server.ask(
            "PUT",
            path,
            headers={"Content-Type": "application/octet-stream", "Content-Length": str(len(data))},
            # Made anew for each try.
            content=lambda: self._parts(memoryview(data)),
            # The server stores it somewhere, too, before it answers.
            read_s=self._timeouts.slow_s if len(data) > _LARGE_SEGMENT_BYTES else None,
        )
        if (await self._server.fields(answer)).get("sha256") != sha256:
            raise self._server.stranger("another segment than was sent")
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
        answer = await self._server.ask(
            "PUT",
            f"{index_path(project, commit.index)}/commits/{commit.version}",
            headers={"Content-Type": "application/json"},
            content=commit.encode,
            expected=SUCCESS | {409},
        )
        if answer.status == 409:
            return False
        if (await self._server.fields(answer)).get("version") != commit.version:
            raise self._server.stranger("another version than was sent")
        return True

    async def delete_segment(self, project: str, index: str, sha256: str) -> bool:
        """Remove a segment that has lain about unnamed for an hour; tells whether it is gone."""
        answer = await self._server.find("DELETE", segment_path(project, index, sha256))
        if answer is None or answer.status == 204:
            return True
        gone = (await self._server.fields(answer)).get("gone")
        if not isinstance(gone, bool):
            raise CorruptDataError(f"{self.name}: gone: expected true or false")
        return gone

    async def delete_index(self, project: str, index: str) -> None:
        """Delete an index with all its versions.

        Raises:
            IndexNotFoundError: If there is no such index (any more).
        """
        answer = await self._server.find(
            "DELETE",
            index_path(project, index),
            expected=DONE,
            read_s=self._timeouts.slow_s,
        )
        if answer is None:
            raise IndexNotFoundError(f"there is no index {index!r} in {self.name}")

    async def collect(self, project: str, index: str, *, grace_s: float, keep: int) -> int:
        """Remove what nobody can still need; returns how many objects that were.

        Raises:
            CorruptDataError: If a commit that is kept is damaged: then nothing is removed.
        """
        answer = await self._server.ask(
            "POST",
            f"{index_path(project, index)}/collect",
            headers={"Content-Type": "application/json"},
            content=json.dumps({"grace_s": grace_s, "keep": keep}).encode,
            read_s=self._timeouts.slow_s,
        )
        return count_of((await self._server.fields(answer)).get("removed"), "removed")

    # --- jobs --------------------------------------------------------------------------------------

    async def put_job(self, project: str, job: JobStatusResponse) -> None:
        """Store how far a job has come, over what was stored before."""
        data = _JOB.dump_json(job)
        await self._server.ask(
            "PUT",
            job_path(project, job.job_id),
            headers={"Content-Type": "application/json"},
            content=lambda: data,
            expected=DONE,
        )

    async def get_job(self, project: str, job_id: str) -> JobStatusResponse:
        """Return how far a job has come.

        Raises:
            JobNotFoundError: If there is no such job.
            CorruptDataError: If its record is damaged.
        """
        answer = await self._server.find("GET", job_path(project, job_id))
        if answer is None:
            raise JobNotFoundError(f"there is no job {job_id!r} in {self.name}")
        self._server.check_is_json(answer)
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
        return self._versions(f"{index_path(project, index)}/events") if self._tells else None

    async def _versions(self, path: str) -> AsyncGenerator[int]:
        call = Call(
            "GET",
            path,
            headers={"Accept": "text/event-stream"},
            read_s=self._timeouts.silence_s,
            watches=True,
        )
        stream = EventStream()
        try:
            async with self._server.opened(call) as answer:
                assert answer is not None  # noqa: S101 - only where `missing`
                kind = answer.headers.get("Content-Type", "").partition(";")[0].strip()
                if kind != "text/event-stream":
                    raise self._server.stranger("other things than events")
                async for part in answer.aiter_bytes():
                    for event, data in stream.feed(part):
                        if event == "version":
                            yield version_of(data)
        except FailedError as failure:
            if failure.status in (405, 501) or failure.code == "not_found":
                self._tells = False
            elif failure.status != 404:
                raise failure.error from failure.__cause__
