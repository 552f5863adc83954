"""What a host's plugin needs for a live call besides its memory: to begin it, to listen, to end it in time.

The law: a caller is on the line. Whatever does not answer in time is done without, and made good later by
the journal; only a mistake in the code is raised, before the call begins.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

from moss_voice.call import observe
from moss_voice.call.memory import CallMemory
from moss_voice.client import MossClient
from moss_voice.errors import JournalError, MossError
from moss_voice.types import Hit, MetadataValue

__all__ = [
    "OPEN_TIMEOUT_S",
    "PUSH_TIMEOUT_S",
    "Listener",
    "begin_call",
    "end_call",
    "guarded",
    "look_up",
]

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")

# A call begins: the caller waits for a greeting.
OPEN_TIMEOUT_S = 3.0
PUSH_TIMEOUT_S = 30.0
# What is left for opening a call at least, where its recovery has used up the time.
_LEAST_OPEN_S = 0.5
# No recogniser pauses longer between two finals of one turn.
_FORGOTTEN_S = 10.0


def guarded(function: Callable[_P, None]) -> Callable[_P, None]:
    """Keep an event handler's faults from the host, which some of them would cost a reply."""

    @wraps(function)
    def handle(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - the host must not hear of it
            logger.error("%s failed (%s)", function.__name__, type(error).__name__)

    return handle


async def begin_call(
    client: MossClient,
    call_id: str,
    *,
    open_timeout_s: float = OPEN_TIMEOUT_S,
    host: str = "other",
    **options: Any,
) -> CallMemory:
    """Open a call while its caller is on the line.

    First what an agent that died in this call has left behind is brought in. A cloud that does not
    answer in time, or a journal that cannot be written, is logged and done without.

    Args:
        client: Where the call is kept.
        call_id: Names the call and its index.
        open_timeout_s: See `MossClient.call`.
        host: What the call is counted under in metrics: a short name, the same for all calls.
        options: See `MossClient.call`.

    Raises:
        MossError: If an argument, the credentials, a model or a knowledge index is wrong.
    """
    left_s, started = open_timeout_s, time.monotonic()
    is_whole = await _recover(client, call_id, open_timeout_s, host)
    if not is_whole:
        # The caller does not wait for the same cloud twice.
        left_s = max(min(_LEAST_OPEN_S, open_timeout_s), left_s - (time.monotonic() - started))
    try:
        try:
            memory = await client.call(call_id, open_timeout_s=left_s, **options)
        except JournalError as error:
            logger.error(
                "call %r is not journaled and would not survive a crash: %s", call_id, error
            )
            is_whole, options = False, {**options, "journal": False}
            memory = await client.call(call_id, open_timeout_s=left_s, **options)
    except Exception:
        observe.call_opened(None, _ms_since(started), host=host)
        raise
    is_whole = is_whole and len(memory.knowledge) == len(options.get("knowledge", ()))
    observe.call_opened(memory, _ms_since(started), host=host, degraded=not is_whole)
    return memory


async def _recover(client: MossClient, call_id: str, limit_s: float, host: str) -> bool:
    """Bring in what is left of a call; False where its cloud cannot be asked now."""
    try:
        async with asyncio.timeout(limit_s):
            found = await client.recover(call_id)
    except (MossError, TimeoutError) as error:
        logger.warning("call %r: not recovered now (%s)", call_id, type(error).__name__)
        observe.not_recovered(host=host, late=isinstance(error, TimeoutError))
        return False
    observe.recovered(found, host=host)
    return True


def _ms_since(started_s: float) -> float:
    return (time.monotonic() - started_s) * 1000.0


async def end_call(
    memory: CallMemory,
    *,
    keeping: set[asyncio.Task[None]],
    push_timeout_s: float = PUSH_TIMEOUT_S,
    host: str = "other",
) -> None:
    """End a call at its hang-up, for as long as the host can wait. Never raises but for cancellation.

    Args:
        memory: The call.
        keeping: Turns still on their way to it.
        push_timeout_s: What is not pushed by then is left to the journal.
        host: As in `begin_call`.
    """
    started, pushed = time.monotonic(), None
    missed: observe.Missed = "nothing"
    try:
        async with asyncio.timeout(push_timeout_s):
            if keeping:
                await asyncio.wait(keeping)
            pushed = await memory.end()
            if memory.ending in ("failed", "discarded"):
                missed = memory.ending
    except TimeoutError:
        missed = "late"
        logger.error(
            "call %r: not pushed within %g s; its journal is kept", memory.name, push_timeout_s
        )
    except Exception as error:  # noqa: BLE001 - the host is hanging up and must be let go
        missed = "failed"
        logger.error("call %r: its end failed (%s)", memory.name, type(error).__name__)
    observe.call_ended(memory, pushed, _ms_since(started), host=host, missed=missed)


async def look_up(
    search: Callable[[str], Awaitable[list[Hit]]], query: str, tool: observe.Tool, *, host: str
) -> list[Hit]:
    """Search for a language model that asked for it by a tool, and count that."""
    started = time.monotonic()
    hits = await search(query)
    observe.looked_up(tool, len(hits), _ms_since(started), host=host)
    return hits


class Listener:
    """Feeds a memory with what a host hears: a recogniser's results, and turns.

    Turns are kept one after another in tasks that `keeping` holds; a fault costs a turn and is logged.
    """

    def __init__(self, memory: CallMemory, *, host: str = "other") -> None:
        self.memory = memory
        self._host = host
        self.keeping: set[asyncio.Task[None]] = set()
        # What the recogniser has finished of the turn that goes on: its interims leave that out.
        self.finals: list[str] = []
        self._last_final_s = 0.0

    def interim(self, text: str, *, at: float) -> str:
        """Take note of an interim result; returns the turn so far."""
        if at - self._last_final_s > _FORGOTTEN_S:
            self.finals.clear()  # of a turn that the host dropped
        said = " ".join([*self.finals, text])
        self.memory.hearing(said)
        return said

    def final(
        self,
        text: str,
        *,
        at: float,
        metadata: Mapping[str, MetadataValue] | None = None,
        is_turn: bool = False,
    ) -> str:
        """Take note of a final result; returns the turn so far.

        It is on disk before its turn ends, unless the host says that it is a turn already.
        """
        said = self.interim(text, at=at)
        self.finals.append(text)
        self._last_final_s = at
        if not is_turn:
            self.memory.uttered(text, at=at, metadata=metadata)
        return said

    def turn(self, text: str, speaker: str, **told: Any) -> None:
        """Keep a finished turn; the arguments are those of `CallMemory.heard`."""
        if speaker == "caller" and not told.get("typed"):
            self.finals.clear()
        task = asyncio.get_running_loop().create_task(self._keep(text, speaker, **told))
        self.keeping.add(task)
        task.add_done_callback(self.keeping.discard)

    async def _keep(self, text: str, speaker: str, **told: Any) -> None:
        started, failed = time.monotonic(), False
        try:
            await self.memory.heard(text, speaker, **told)
        except Exception as error:  # noqa: BLE001 - nobody awaits this
            failed = True
            name = error.code if isinstance(error, MossError) else type(error).__name__
            logger.error("call %r: a turn was not kept (%s)", self.memory.name, name)
        observe.turn_kept(speaker, _ms_since(started), host=self._host, failed=failed)
