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
from collections.abc import Awaitable, Callable
from contextlib import suppress

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import MossError
from moss_voice.server.refusals import Refusal
from moss_voice.server.settings import Settings

__all__ = ["EventStream", "Hub", "Subscription"]

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
        self.heartbeat_s = settings.heartbeat_s
        self.closing = False

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
        self.closing = True
        for channel in self._channels.values():
            channel.wake()

    async def subscribe(
        self, project: str, index: str, *, stands: Callable[[], Awaitable[bool]]
    ) -> Subscription:
        """Begin to watch an index, which need not exist yet.

        Args:
            project: The project's id.
            index: The index's name.
            stands: Tells whether the subscriber may still watch.

        Raises:
            Refusal: 429 if the project watches as much as it may.
        """
        if self._per_project[project] >= self._settings.limits.max_subscribers:
            raise Refusal(
                429, "rate_limited", "too many event streams of this project", retry_after_s=10
            )
        version = await self._look(project, index)
        key = (project, index)
        channel = self._channels.get(key)
        if channel is None:
            channel = self._channels[key] = _Channel(version)
            channel.poller = asyncio.create_task(self._poll(channel, project, index))
        else:
            channel.tell(max(version, channel.version))
        self._per_project[project] += 1
        return Subscription(self, channel, key, stands)

    def leave(self, subscription: Subscription) -> None:
        """End a subscription, and the looking where it was the last; once for each."""
        project = subscription.key[0]
        self._per_project[project] -= 1
        if not self._per_project[project]:
            del self._per_project[project]
        channel = subscription.channel
        channel.subscribers.discard(subscription.event)
        if not channel.subscribers and self._channels.get(subscription.key) is channel:
            del self._channels[subscription.key]
            if channel.poller is not None:
                channel.poller.cancel()

    async def _look(self, project: str, index: str) -> int:
        commit = (await self._log.head(project, index)).commit
        return commit.version if commit is not None else 0

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


class Subscription:
    """One who watches: an iterator over versions, with None now and then as a sign of life."""

    def __init__(
        self,
        hub: Hub,
        channel: _Channel,
        key: tuple[str, str],
        stands: Callable[[], Awaitable[bool]],
    ) -> None:
        self.channel = channel
        self.key = key
        self.event = asyncio.Event()
        self._hub = hub
        self._stands = stands
        self._told: int | None = None
        channel.subscribers.add(self.event)

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> int | None:
        if self._told == self.channel.version and not self._hub.closing:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._hub.heartbeat_s):
                    await self.event.wait()
        self.event.clear()
        if self._hub.closing or not await self._may_stay():
            raise StopAsyncIteration
        if self._told == self.channel.version:
            return None
        self._told = self.channel.version
        return self._told

    async def _may_stay(self) -> bool:
        try:
            return await self._stands()
        except MossError:
            return True  # the store does not answer now: that takes nobody's right away

    def close(self) -> None:
        """Watch no more."""
        self._hub.leave(self)


class EventStream(Response):
    """Server-sent events; ends when the versions do, or when nobody listens any more."""

    media_type = "text/event-stream"

    def __init__(self, subscription: Subscription) -> None:
        """Take what to tell; it is closed at the end."""
        self._subscription = subscription
        self.status_code = 200
        self.background = None
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
            self._subscription.close()

    async def _tell(self, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        async for version in self._subscription:
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
