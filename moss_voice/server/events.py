"""New versions, told as they are made: one look at the store for all who watch an index.

A version that was made through this server is told at once; one that came through another, or straight
into the store, at the next look. Numbers alone are told, the newest for certain: whoever is slow may miss
one in between. An index that nobody watches is not looked at.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import MossError
from moss_voice.server.refusals import Refusal
from moss_voice.server.settings import Settings

__all__ = ["EventStream", "Hub"]

logger = logging.getLogger(__name__)


class _Channel:
    """One index that somebody watches."""

    def __init__(self, version: int) -> None:
        self.version = version
        self.told = 0  # how often somebody here said what is newest
        self.subscribers: set[asyncio.Event] = set()
        self.poller: asyncio.Task[None] | None = None

    def tell(self, version: int) -> None:
        if version != self.version:
            self.version = version
            self.wake()

    def wake(self) -> None:
        for event in self.subscribers:
            event.set()


class Hub:
    """Who watches what. Belongs to one event loop."""

    def __init__(self, log: ObjectLog, settings: Settings) -> None:
        """Take the log to look at."""
        self._log = log
        self._settings = settings
        self._channels: dict[tuple[str, str], _Channel] = {}
        self._per_project: Counter[str] = Counter()
        self._closing = False

    def __repr__(self) -> str:
        return f"<Hub {len(self)} subscribers of {len(self._channels)} indexes>"

    def __len__(self) -> int:
        return sum(self._per_project.values())

    def notify(self, project: str, index: str, version: int) -> None:
        """Tell of a version that was just made."""
        channel = self._channels.get((project, index))
        if channel is not None:
            channel.told += 1
            channel.tell(version)

    def close(self) -> None:
        """End every stream, now and from now on."""
        self._closing = True
        for channel in self._channels.values():
            channel.wake()

    async def subscribe(
        self, project: str, index: str, *, stands: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[int | None]:
        """Begin to watch: what is returned yields versions, and None as a sign of life.

        Args:
            project: The project's id.
            index: The index's name; it need not exist yet.
            stands: Tells whether the subscriber may still watch.

        Raises:
            Refusal: 429 if the project watches as much as it may.
        """
        if self._per_project[project] >= self._settings.limits.max_subscribers:
            raise Refusal(
                429, "rate_limited", "too many event streams of this project", retry_after_s=10
            )
        self._per_project[project] += 1
        try:
            version = await self._look(project, index)
        except BaseException:
            self._leave(project)
            raise
        return self._versions(project, index, version, stands)

    def _leave(self, project: str) -> None:
        self._per_project[project] -= 1
        if not self._per_project[project]:
            del self._per_project[project]

    async def _look(self, project: str, index: str) -> int:
        commit = (await self._log.head(project, index)).commit
        return commit.version if commit is not None else 0

    async def _versions(
        self, project: str, index: str, version: int, stands: Callable[[], Awaitable[bool]]
    ) -> AsyncIterator[int | None]:
        key = (project, index)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = _Channel(version)
            channel.poller = asyncio.create_task(self._poll(channel, project, index))
        else:
            channel.tell(max(version, channel.version))
        event = asyncio.Event()
        channel.subscribers.add(event)
        told: int | None = None
        try:
            while not self._closing and await self._may(stands):
                event.clear()
                if told != channel.version:
                    told = channel.version
                    yield told
                    continue
                try:
                    async with asyncio.timeout(self._settings.heartbeat_s):
                        await event.wait()
                except TimeoutError:
                    yield None
        finally:
            channel.subscribers.discard(event)
            self._leave(project)
            if not channel.subscribers:
                self._channels.pop(key, None)
                if channel.poller is not None:
                    channel.poller.cancel()

    async def _may(self, stands: Callable[[], Awaitable[bool]]) -> bool:
        try:
            return await stands()
        except MossError:
            return True  # the store does not answer now: that takes nobody's right away

    async def _poll(self, channel: _Channel, project: str, index: str) -> None:
        """Look for versions that came another way."""
        while True:
            await asyncio.sleep(self._settings.watch_interval_s)
            told = channel.told
            try:
                version = await self._look(project, index)
            except MossError as error:
                logger.warning("a watched index could not be looked at (%s)", error.code)
                continue
            if told == channel.told:  # else what was seen may be older than what was told
                channel.tell(version)


class EventStream(Response):
    """Server-sent events; ends when the versions do, or when nobody listens any more."""

    media_type = "text/event-stream"

    def __init__(
        self, versions: AsyncIterator[int | None], *, background: BackgroundTask | None = None
    ) -> None:
        """Take what to tell."""
        self._versions = versions
        self.status_code = 200
        self.background = background
        # Proxies such as nginx would else hold back what they take for a small page.
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Tell, until one side ends."""
        gone = asyncio.create_task(_gone(receive))
        telling = asyncio.create_task(self._tell(send))
        try:
            await asyncio.wait({gone, telling}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (gone, telling):
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            await self._versions.aclose()  # type: ignore[attr-defined]

    async def _tell(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async for version in self._versions:
            said = (
                ": still here\n\n"
                if version is None
                else f"event: version\ndata: {json.dumps({'version': version})}\n\n"
            )
            await send({"type": "http.response.body", "body": said.encode(), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
