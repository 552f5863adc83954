"""A server, asked: each call is made until it is answered, or until there is no point in going on.

Every call may be repeated without harm, so one whose answer was lost is repeated, for a while. An answer
that no moss-voice server gave is not taken for one. Credentials go to this one address: a redirect is an
error.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from typing import Any, Final, TypeVar

import httpx

from moss_voice.cloud.http.answers import json_object, read_body
from moss_voice.cloud.http.calls import (
    SUCCESS,
    Answer,
    Call,
    FailedError,
    Patience,
    Timeouts,
    Tries,
)
from moss_voice.cloud.http.connections import Lines
from moss_voice.cloud.http.credentials import Credentials
from moss_voice.cloud.http.failures import Failures
from moss_voice.errors import CloudUnavailableError, CorruptDataError

__all__ = ["Asker"]

T = TypeVar("T")

# A download that got this much further may fail as often again.
_PROGRESS_BYTES: Final = 1 << 20
# More is no answer of ours.
_MAX_JSON_BYTES: Final = 1 << 27
# JSON above this is read in a thread: it would hold up the event loop.
_LARGE_JSON_BYTES: Final = 1 << 16


class Asker:
    """Asks one server, with what it is to be shown. Safe to share between tasks and event loops."""

    def __init__(
        self,
        name: str,
        *,
        credentials: Credentials,
        lines: Lines,
        timeouts: Timeouts,
        patience: Patience,
    ) -> None:
        """Take where it is and what to ask it with; nothing is opened."""
        self.name = name
        self._credentials = credentials
        self._lines = lines
        self._timeouts = timeouts
        self._patience = patience
        refusal = (
            f"{name} refused the authenticator's token"
            if credentials.renewable
            else f"{name} refused the project key; check project_id and project_key, or MOSS_PROJECT_ID"
            " and MOSS_PROJECT_KEY"
        )
        self._failures = Failures(name, timeouts, refusal)

    def __repr__(self) -> str:
        return f"<Asker {self.name}>"

    async def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], bytes | AsyncIterator[bytes]] | None = None,
        expected: frozenset[int] = SUCCESS,
        key: str | None = None,
        read_s: float | None = None,
    ) -> Answer:
        """Make a call until it is answered, or there is no point in going on."""
        call = Call(method, path, headers or {}, content, expected, key, read_s)
        answer = await self._answered(call)
        assert answer is not None  # noqa: S101 - only where `missing`
        return answer

    async def find(
        self,
        method: str,
        path: str,
        *,
        expected: frozenset[int] = SUCCESS,
        read_s: float | None = None,
    ) -> Answer | None:
        """Make a call in the same way; None where the server says that there is no such thing."""
        call = Call(method, path, expected=expected, read_s=read_s, missing=True)
        return await self._answered(call)

    async def _answered(self, call: Call) -> Answer | None:
        tries = Tries(self._patience)
        while True:
            try:
                async with self.opened(call) as response:
                    if response is not None:
                        body = await read_body(response, _MAX_JSON_BYTES)
                        return Answer(response.status_code, response.headers, body)
                # A deletion may have been done by the try whose answer was lost.
                gone = call.method == "DELETE" and tries.may_have_arrived
                return Answer(204, httpx.Headers(), b"") if gone else None
            except FailedError as failure:
                await tries.wait_after(failure)

    async def download(self, path: str) -> AsyncGenerator[bytes]:
        """Yield nothing once the first answer is there, then the parts; ends at once where there is none."""
        done = counted = 0
        begun = False
        tries = Tries(self._patience)
        while True:
            headers = {"Range": f"bytes={done}-"} if done else {}
            # 416: all had come but the end of the answer.
            expected = frozenset({200, 206, 416} if done else {200})
            try:
                async with self.opened(
                    Call("GET", path, headers, expected=expected, missing=True)
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
            except FailedError as failure:
                if done - counted >= _PROGRESS_BYTES:
                    tries, counted = Tries(self._patience), done
                await tries.wait_after(failure)

    def _check_range(self, answer: httpx.Response, start: int) -> None:
        if not answer.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise self.stranger("another part than was asked for")

    # --- one try -----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def opened(self, call: Call) -> AsyncIterator[httpx.Response | None]:
        """Try a call once, and hand out the answer while it is being read.

        Yields:
            An expected answer, its body unread; None where the server knows no such thing and the call
            takes that for an answer.

        Raises:
            FailedError: Whatever else came, also in the middle of the body.
        """
        refused: str | None = None
        with self._failures.translated():
            while True:
                credential = await self._credential(call, refused)
                response = await self._sent(call, credential)
                try:
                    status = response.status_code
                    renewable = self._credentials.renewable and refused is None
                    if status == 401 and renewable:
                        refused = credential
                        continue
                    if status in call.expected:
                        yield response
                        return
                    failure = await self._failures.of(response, call)
                finally:
                    await response.aclose()
                if failure is not None:
                    raise failure
                yield None
                return

    async def _sent(self, call: Call, credential: str | None) -> httpx.Response:
        line = await self._lines.here()
        times = self._timeouts
        # Compressed, parts would have no place, and could be larger than anybody asked for.
        headers = {"Accept-Encoding": "identity", **call.headers}
        if credential is not None:
            headers["Authorization"] = f"Bearer {credential}"
        client = line.watching if call.watches else line.asking
        request = client.build_request(
            call.method,
            f"{self.name}{call.path}",
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

    async def _credential(self, call: Call, refused: str | None) -> str | None:
        """Return the key or a token to send, another one than was refused."""
        if not self._credentials.renewable:
            return call.key if call.key is not None else self._credentials.key
        line = await self._lines.here()
        async with line.renewing:
            return await self._credentials.token(refused)

    # --- what came ---------------------------------------------------------------------------------

    def check_is_json(self, answer: Answer) -> None:
        """Raise `CloudUnavailableError` for an answer that is no JSON: none of ours, then."""
        if answer.headers.get("Content-Type", "").partition(";")[0].strip() != "application/json":
            raise self.stranger("something else than JSON")

    def stranger(self, what: str) -> CloudUnavailableError:
        """Return the error for an answer that no moss-voice server gives."""
        return self._failures.stranger(what)

    async def fields(self, answer: Answer) -> dict[str, Any]:
        """Return the fields of a JSON object; read in a thread where there are many."""
        self.check_is_json(answer)
        if len(answer.body) > _LARGE_JSON_BYTES:
            return await asyncio.to_thread(json_object, answer.body)
        return json_object(answer.body)

    async def items(self, answer: Answer, field_: str, read: Callable[[Any], T]) -> list[T]:
        """Return each item of a list, read; in a thread where there are many."""
        self.check_is_json(answer)

        def all_of() -> list[T]:
            items = json_object(answer.body).get(field_)
            if not isinstance(items, list):
                raise CorruptDataError(f"answer of the server: {field_}: expected a list")
            return [read(item) for item in items]

        if len(answer.body) > _LARGE_JSON_BYTES:
            return await asyncio.to_thread(all_of)
        return all_of()
