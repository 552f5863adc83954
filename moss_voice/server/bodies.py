"""Bytes that come in: counted while they come, hashed, and kept out of memory where they are many."""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import tempfile
from collections.abc import AsyncIterator
from typing import IO, Any, Final, TypeVar

import pydantic
from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from moss_voice.server.refusals import Refusal, told

__all__ = [
    "IN_MEMORY_BYTES",
    "SMALL_BYTES",
    "Spool",
    "chunks",
    "json_body",
    "of_json",
    "read_small",
]

# Below this, bytes stay in memory; above, in a file without a name.
IN_MEMORY_BYTES: Final = 1 << 20
# Of a request that says what to do, and holds no documents.
SMALL_BYTES: Final = 256 << 10


async def chunks(request: Request, *, most: int, idle_s: float) -> AsyncIterator[bytes]:
    """Yield a request's body as it comes.

    Raises:
        Refusal: 413 as soon as it is known to be longer than allowed, 408 where it stops coming, 400
            where the client goes away.
    """
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length[:20]) > most:
        raise _too_large(most)
    came = 0
    body = request.stream().__aiter__()
    while True:
        try:
            async with asyncio.timeout(idle_s):
                chunk = await anext(body)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise Refusal(408, "invalid_argument", "the body stopped coming") from None
        except ClientDisconnect:
            raise Refusal(400, "invalid_argument", "the body was cut short") from None
        came += len(chunk)
        if came > most:
            raise _too_large(most)
        yield chunk


def _too_large(most: int) -> Refusal:
    return Refusal(413, "too_large", f"body: expected at most {most} bytes")


async def read_small(request: Request, *, idle_s: float, most: int = SMALL_BYTES) -> bytes:
    """Return a body whole."""
    return b"".join([chunk async for chunk in chunks(request, most=most, idle_s=idle_s)])


class Spool:
    """Collects bytes and their hash: in memory while they are few, in a file that has no name then.

    Not for two tasks at once. `data` is backed by the file, which lasts as long as anybody looks at it.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._waiting = bytearray()
        self._file: IO[bytes] | None = None
        self.size_bytes = 0

    async def write(self, chunk: bytes) -> None:
        """Take some more.

        Raises:
            Refusal: 503 where the disk takes no more.
        """
        self._waiting += chunk
        self.size_bytes += len(chunk)
        if len(self._waiting) > IN_MEMORY_BYTES:
            try:
                await asyncio.to_thread(self._flush)
            except OSError:  # its message names the file
                raise Refusal(
                    503,
                    "cloud_unavailable",
                    "the server has no room for this now",
                    retry_after_s=10,
                ) from None

    def _flush(self) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="moss-voice-")  # noqa: SIM115 - `close` does
        self._digest.update(self._waiting)
        self._file.write(self._waiting)
        self._waiting = bytearray()

    def finish(self) -> tuple[str, memoryview]:
        """Return the hash of all that came, and the bytes; synchronous, for a worker thread."""
        if self._file is None:
            self._digest.update(self._waiting)
            return self._digest.hexdigest(), memoryview(bytes(self._waiting))
        self._flush()
        self._file.flush()
        mapped = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        return self._digest.hexdigest(), memoryview(mapped)

    def close(self) -> None:
        """Let go of the file; what `finish` returned stays readable."""
        if self._file is not None:
            self._file.close()


# --- JSON ------------------------------------------------------------------------------------------

_M = TypeVar("_M", bound=BaseModel)


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """Return the description of a body that a route reads itself: once it has looked at the key."""
    reference = {"$ref": f"#/components/schemas/{model.__name__}"}
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": reference}}}
    }


def of_json(data: bytes, model: type[_M]) -> _M:
    """Return what a body holds.

    Raises:
        Refusal: 400 if it is not JSON, or not of that shape; nothing of it is quoted.
    """
    try:
        return model.model_validate_json(data)
    except pydantic.ValidationError as error:
        fault = told(error.errors(include_url=False, include_input=False, include_context=False))
        raise Refusal(400, "invalid_argument", fault) from None
