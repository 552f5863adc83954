"""Answers that come before all of their request has: told so that the client hears them.

A server that closes a connection on which bytes still come resets it, and the answer may be lost with it; one
that goes on reading takes whatever anybody sends. So a little is read to its end, as if it had been wanted,
and of more the rest is passed over for a moment, after the answer, and the connection closed then.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

__all__ = ["Lingering"]

_LITTLE_BYTES: Final = 1 << 20
_LOT_BYTES: Final = 16 << 20
_MOMENT_S: Final = 2.0


class Lingering:
    """Sees to the rest of a request's body."""

    def __init__(self, app: ASGIApp) -> None:
        """Take the application that answers."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and _has_body(scope):
            rest = _Rest(scope, receive, send)
            await self._app(scope, rest.receive, rest.send)
        else:
            await self._app(scope, receive, send)


def _has_body(scope: Scope) -> bool:
    return any(
        name == b"transfer-encoding" or (name == b"content-length" and value != b"0")
        for name, value in scope["headers"]
    )


class _Rest:
    """What has not come yet of one request's body."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._more = True
        self._closes = False
        headers = dict(scope["headers"])
        # Who waits for leave to send is not given it by an answer that refuses.
        self._waits = headers.get(b"expect", b"").lower() == b"100-continue"
        length = headers.get(b"content-length", b"")
        self._is_little = length.isdigit() and int(length[:20]) <= _LITTLE_BYTES

    async def receive(self) -> Message:
        self._waits = False
        message = await self._receive()
        self._more = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._more:
            if self._is_little and not self._waits:
                await self._pass_over(_LITTLE_BYTES)
            self._closes = self._more and self._scope["http_version"].startswith("1")
            if self._closes:
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if self._closes and last and not self._waits:
            # All that is to be said is said, and the connection still open.
            await self._send({**message, "more_body": True})
            await self._pass_over(_LOT_BYTES)
            message = {"type": "http.response.body", "body": b"", "more_body": False}
        await self._send(message)

    async def _pass_over(self, most: int) -> None:
        """Read what comes in a moment, and no more than so many bytes."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_MOMENT_S):
                while self._more and most > 0:
                    most -= len((await self.receive()).get("body", b""))
