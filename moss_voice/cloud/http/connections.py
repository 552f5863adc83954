"""The connections to a server: those of each event loop, which end with it.

Nothing is opened before the first call. Whoever forgets to close them need not.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import ssl
import weakref
from collections.abc import AsyncGenerator
from typing import Final

import httpx

__all__ = ["Line", "Lines"]

_AGENT: Final = {"User-Agent": "moss-voice"}


@functools.cache
def _trust() -> ssl.SSLContext:
    """Return whom we trust; all connections of this process share it, since it costs 40 ms to make."""
    return httpx.create_ssl_context()


class Line:
    """The connections of one event loop."""

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

    async def settle(self, owner: object, loop: asyncio.AbstractEventLoop) -> None:
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


class Lines(dict[asyncio.AbstractEventLoop, Line]):
    """The connections of each event loop that has made a call.

    Not held weakly: connections refer to their loop and would keep it alive.
    """

    async def here(self) -> Line:
        """Return the connections of this event loop."""
        loop = asyncio.get_running_loop()
        line = self.get(loop)
        if line is not None and not line.asking.is_closed:
            return line
        for other in [loop, *self]:
            if other is loop or other.is_closed():
                self.pop(other, None)
        # It reads files and imports, for longer than an event loop should wait.
        made = await asyncio.to_thread(Line)
        line = self.setdefault(loop, made)
        if line is made:
            await line.settle(self, loop)
        return line

    async def close(self) -> None:
        """Let go of the connections of this event loop."""
        line = self.pop(asyncio.get_running_loop(), None)
        if line is not None:
            await line.close()
