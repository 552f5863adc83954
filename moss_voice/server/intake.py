"""The way of a segment into the store, and what is known of those that are there.

What is promised: a segment is stored after all of it was checked, or not at all; a commit is stored only if
every segment that it adds is there and is what the commit says. What was found in a segment is remembered
by its hash, so the commit that follows costs no second look; a server that did not take it looks itself.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Final, NamedTuple

from moss_voice.cloud.keys import utc_now
from moss_voice.cloud.log import Commit, Head
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import CorruptDataError
from moss_voice.server import checks
from moss_voice.server.bodies import IN_MEMORY_BYTES, Spool
from moss_voice.server.checks import Facts
from moss_voice.server.quota import Quota
from moss_voice.server.refusals import Refusal, refusing
from moss_voice.server.settings import Settings

__all__ = ["Intake", "Taken"]

_REMEMBERED: Final = 10_000
# Segments that are too large for memory and are under way at a time.
_LARGE: Final = 32


class Taken(NamedTuple):
    """A segment that was checked; `sent` is false where it was stored already, young."""

    size_bytes: int
    sent: bool


class Intake:
    """Checks and stores; one per server."""

    def __init__(
        self,
        log: ObjectLog,
        settings: Settings,
        *,
        quota: Quota,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Take the log to store into, and what counts indexes."""
        self._log = log
        self._settings = settings
        self._quota = quota
        self._now = now
        self._large = 0
        self._facts: OrderedDict[str, Facts] = OrderedDict()
        # Checking computes: two at a time, so that requests that only wait are not held up.
        self._workers = ThreadPoolExecutor(2, thread_name_prefix="moss-voice-check")

    def close(self) -> None:
        """Let the workers end."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    # --- segments ----------------------------------------------------------------------------------

    async def take_segment(
        self, project: str, index: str, sha256: str, body: AsyncIterator[bytes]
    ) -> Taken:
        """Check a segment as it comes, and store it.

        Raises:
            Refusal: If it is not the segment of that hash, or not sound.
        """
        await self._quota.admit(project, index)
        async with self._spooled(body) as spool:
            with refusing():
                data, _ = await self._checked(spool, sha256)
            sent = await self._log.write_segment(project, index, sha256, data)
            return Taken(len(data), sent)

    @asynccontextmanager
    async def _spooled(self, parts: AsyncIterator[bytes]) -> AsyncIterator[Spool]:
        """Collect bytes; of many at a time that are large, some are refused."""
        spool = Spool()
        large = False
        try:
            async for part in parts:
                if not large and spool.size_bytes + len(part) > IN_MEMORY_BYTES:
                    if self._large >= _LARGE:
                        raise Refusal(
                            429, "rate_limited", "too many large segments at once", retry_after_s=1
                        )
                    large = True
                    self._large += 1
                await spool.write(part)
            yield spool
        finally:
            self._large -= large
            spool.close()

    async def _checked(self, spool: Spool, sha256: str) -> tuple[memoryview, Facts]:
        def check() -> tuple[memoryview, Facts]:
            digest, data = spool.finish()
            if digest != sha256:
                raise CorruptDataError("segment: SHA-256 differs from the one in the path")
            known = self._facts.get(sha256)
            return data, known or checks.check_segment(data, self._settings.limits)

        loop = asyncio.get_running_loop()
        data, facts = await loop.run_in_executor(self._workers, check)
        self._facts[sha256] = facts
        self._facts.move_to_end(sha256)
        if len(self._facts) > _REMEMBERED:
            self._facts.popitem(last=False)
        return data, facts

    async def _facts_of(self, project: str, index: str, sha256: str) -> Facts | None:
        """Return what is in a stored segment; None where there is none."""
        known = self._facts.get(sha256)
        if known is not None:
            there = await self._log.segment_stored_at(project, index, sha256) is not None
            return known if there else None
        parts = await self._log.read_segment(project, index, sha256)
        if parts is None:
            return None
        async with self._spooled(self._bounded(parts, sha256)) as spool:
            with refusing():
                _, facts = await self._checked(spool, sha256)
        return facts

    async def _bounded(self, parts: AsyncIterator[bytes], sha256: str) -> AsyncIterator[bytes]:
        size = 0
        async for part in parts:
            size += len(part)
            if size > self._settings.limits.max_segment_bytes:
                raise Refusal(413, "too_large", f"segment {sha256[:12]} is larger than allowed")
            yield part

    # --- commits -----------------------------------------------------------------------------------

    async def take_commit(self, project: str, index: str, version: int, data: bytes) -> bool:
        """Check a commit and store it; False where this very one was there already.

        Raises:
            Refusal: If it is not sound (400), is not the next one (409), or makes one index too many (429).
        """
        with refusing():
            commit = checks.decode(data)
            checks.check_commit(
                commit,
                index=index,
                version=version,
                limits=self._settings.limits,
                now=self._now(),
                max_ahead_s=self._settings.max_ahead_s,
            )
        head = await self._log.head(project, index)
        if version <= head.newest:
            there = await self._log.read_commit(project, index, version)
            if there is not None and there.encode() == commit.encode():
                return False
            raise _conflict(head)
        if version > head.newest + 1 or commit.parent != (
            head.commit.version if head.commit else 0
        ):
            raise _conflict(head)
        with refusing():
            checks.check_successor(commit, head)
        await self._quota.admit(project, index)
        await self._check_segments(project, commit, head)
        if not await self._log.write_commit(project, commit):
            raise _conflict(await self._log.head(project, index))
        return True

    async def _check_segments(self, project: str, commit: Commit, head: Head) -> None:
        known = set(head.alive.segments) if head.alive is not None else set()
        for ref in commit.segments:
            if ref in known:
                continue
            facts = await self._facts_of(project, commit.index, ref.sha256)
            if facts is None:
                raise Refusal(
                    409,
                    "conflict",
                    f"commit: segment {ref.sha256[:12]} is not stored; send it first",
                )
            with refusing():
                checks.check_reference(ref, facts, commit)


def _conflict(head: Head) -> Refusal:
    return Refusal(
        409, "conflict", f"somebody else pushed meanwhile: the newest version is {head.newest}"
    )
