"""A bad line: a TCP proxy on loopback that delays, drops, truncates, fails and repeats by a seeded plan.

    with FaultyProxy("127.0.0.1", port, seed=7, rates=Faults(drop=0.05, lose=0.05)) as proxy:
        log = HttpLog(proxy.url, key=key)
        ...
    print(proxy.counts)

It runs in a thread and a loop of its own, so it serves async tests, threads and benchmarks alike. What
happens to request number n is decided by the seed and n alone; requests are numbered as they come.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, fields
from types import TracebackType
from typing import NamedTuple, Self

__all__ = ["Faults", "FaultyProxy"]


@dataclass(frozen=True, slots=True)
class Faults:
    """How often what goes wrong, each in [0, 1], together at most 1; a delay comes on top of them.

    Attributes:
        drop: The connection is cut before the server has seen the request.
        lose: The server does what is asked, and the connection is cut before its answer.
        truncate: The connection is cut in the middle of the answer.
        refuse: The proxy answers 429, 500, 502 or 503 itself; the server does not hear of it.
        fail: The server does what is asked, and the proxy answers 502 or 504.
        duplicate: The server gets the request twice; the second answer comes back.
        delay: The request waits for up to `delay_s`.
        delay_s: Seconds.
    """

    drop: float = 0.0
    lose: float = 0.0
    truncate: float = 0.0
    refuse: float = 0.0
    fail: float = 0.0
    duplicate: float = 0.0
    delay: float = 0.0
    delay_s: float = 0.05

    def plan(self, dice: random.Random) -> str:
        """Return what befalls a request: the name of a fault, or `pass`."""
        point = dice.random()
        for each in fields(self)[:6]:
            point -= getattr(self, each.name)
            if point < 0:
                return each.name
        return "pass"


class _CutError(Exception):
    """A connection is to be cut now."""


class _Request(NamedTuple):
    method: str
    raw: bytes
    endless: bool


class FaultyProxy:
    """A proxy between clients and one server. Use it as a context manager.

    Attributes:
        counts: How many requests came (`requests`), and how many met with each fault.
    """

    def __init__(
        self, target_host: str, target_port: int, seed: int = 0, rates: Faults | None = None
    ) -> None:
        self.counts: Counter[str] = Counter()
        self.rates = rates or Faults()
        self._target = (target_host, target_port)
        self._seed = seed
        self._port = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._over: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where clients are to go."""
        return f"http://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(30):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._loop is not None
        assert self._over is not None
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(30)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        clients: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            clients.add(task)
            try:
                await self._serve(reader, writer)
            except (OSError, EOFError, asyncio.IncompleteReadError):
                pass  # an end went away
            except asyncio.CancelledError:
                pass  # the proxy is over
            finally:
                clients.discard(task)
                writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._over.wait()
        server.close()
        for task in [*clients]:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Pass on the requests of one client, one after the other, over one connection to the server."""
        async with _Upstream(*self._target) as upstream:
            while True:
                request = await _read_request(reader)
                if request is None:
                    return
                try:
                    await self._pass_on(request, writer, upstream)
                except _CutError:
                    _reset(writer)
                    return
                if upstream.ended:
                    return

    async def _pass_on(
        self, request: _Request, writer: asyncio.StreamWriter, upstream: _Upstream
    ) -> None:
        dice = random.Random(f"{self._seed}-{self.counts['requests']}")
        self.counts["requests"] += 1
        fault = self.rates.plan(dice)
        if request.endless and fault in ("lose", "fail", "duplicate"):
            fault = "drop"  # there is no end of the answer to wait for
        if dice.random() < self.rates.delay:
            self.counts["delay"] += 1
            await asyncio.sleep(dice.uniform(0.0, self.rates.delay_s))
        self.counts[fault] += 1
        if fault == "drop":
            raise _CutError
        if fault == "refuse":
            await _answer(writer, dice.choice([429, 500, 502, 503]))
            return
        for _ in range({"lose": 1, "fail": 1, "duplicate": 1}.get(fault, 0)):
            async for _ in upstream.ask(request):
                pass
        if fault == "lose":
            raise _CutError
        if fault == "fail":
            await _answer(writer, dice.choice([502, 504]))
            return
        if fault == "truncate":
            await self._pass_part(request, writer, upstream, dice)
        async for part in upstream.ask(request):
            writer.write(part)
            await writer.drain()

    async def _pass_part(
        self,
        request: _Request,
        writer: asyncio.StreamWriter,
        upstream: _Upstream,
        dice: random.Random,
    ) -> None:
        """Pass on the beginning of an answer, and cut."""
        if request.endless:
            async for part in upstream.ask(request):
                writer.write(part)
                await writer.drain()
                if dice.random() < 0.5:
                    break
            raise _CutError
        whole = b"".join([part async for part in upstream.ask(request)])
        writer.write(whole[: dice.randrange(len(whole))])
        await writer.drain()
        # An end that looks like one, in place of a reset.
        writer.close()
        raise _CutError


class _Upstream:
    """A connection to the server, opened when it is needed.

    Attributes:
        ended: Whether the server has closed it.
    """

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._pair: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.ended = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._pair is not None:
            self._pair[1].close()

    async def ask(self, request: _Request) -> AsyncIterator[bytes]:
        """Yield the parts of the answer, as they are on the line; the head is one part."""
        # One that the server closed because it was idle is no fault of this proxy's plan.
        if self._pair is None or self.ended or self._pair[0].at_eof():
            if self._pair is not None:
                self._pair[1].close()
            self._pair = await asyncio.open_connection(*self._address)
            self.ended = False
        reader, writer = self._pair
        writer.write(request.raw)
        await writer.drain()
        head = await reader.readuntil(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        headers = _headers(head)
        self.ended = headers.get("connection", "").lower() == "close"
        yield head
        if request.method == "HEAD" or status in (204, 304):
            return
        if headers.get("transfer-encoding", "").lower() == "chunked":
            async for part in _chunks(reader):
                yield part
        elif "content-length" in headers:
            left = int(headers["content-length"])
            while left:
                part = await reader.read(min(left, 1 << 16))
                if not part:
                    raise EOFError
                left -= len(part)
                yield part
        else:
            self.ended = True
            while part := await reader.read(1 << 16):
                yield part


async def _chunks(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    while True:
        line = await reader.readuntil(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if size == 0:
            yield line + await reader.readuntil(b"\r\n")  # no trailers here
            return
        yield line + await reader.readexactly(size + 2)


async def _read_request(reader: asyncio.StreamReader) -> _Request | None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    headers = _headers(head)
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body = b"".join([part async for part in _chunks(reader)])
    else:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
    endless = "text/event-stream" in headers.get("accept", "")
    return _Request(head.split(b" ", 1)[0].decode(), head + body, endless)


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.lower(): value.strip() for name, _, value in pairs}


async def _answer(writer: asyncio.StreamWriter, status: int) -> None:
    body = b"<html>a proxy's page</html>"
    wait = "Retry-After: 0\r\n" if status == 429 else ""
    head = f"HTTP/1.1 {status} Fault\r\nContent-Type: text/html\r\n{wait}Content-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Cut a connection so that the other end gets a reset, unless it was closed in good order."""
    if writer.is_closing():
        return
    with contextlib.suppress(OSError):
        opened: socket.socket = writer.get_extra_info("socket")
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
