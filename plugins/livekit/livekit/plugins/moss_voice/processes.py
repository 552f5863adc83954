"""What a worker's processes load before a call comes in, so that no caller waits for it.

Each LiveKit call is a process of its own. `prewarm` loads what it needs while it waits for a job; the module
`livekit.plugins.moss_voice.preload`, listed in `AgentServer(preload_modules=[...])`, loads what may be
shared once, in the server that these processes are forked from. `benchmarks/livekit_memory.py` measures
what that saves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, overload

from livekit.agents import JobContext, JobProcess
from livekit.plugins.moss_voice.log import HOST, logger

from moss_voice import MossClient, MossError
from moss_voice.call.observe import recovered
from moss_voice.models import CUSTOM_MODEL, DEFAULT_MODEL, load_embedder

__all__ = ["Prewarmed", "download", "prewarm", "prewarmed"]

MODELS_VARIABLE = "MOSS_VOICE_MODELS"
KNOWLEDGE_VARIABLE = "MOSS_VOICE_PRELOAD"

_KEY = "moss_voice"
# LiveKit kills a process that is not ready within its `initialize_process_timeout`: 10 s by default, of
# which the user's own setup wants some.
TIMEOUT_S = 7.0


@dataclass(frozen=True, slots=True)
class Prewarmed:
    """What a process has ready for its calls."""

    client: MossClient
    knowledge: tuple[str, ...]


@overload
def prewarm(
    proc: JobProcess,
    *,
    knowledge: Sequence[str] = ...,
    client: MossClient | None = ...,
    recover: bool = ...,
    timeout_s: float = ...,
) -> None: ...
@overload
def prewarm(
    proc: None = ...,
    *,
    knowledge: Sequence[str] = ...,
    recover: bool = ...,
    timeout_s: float = ...,
) -> Callable[[JobProcess], None]: ...
def prewarm(
    proc: JobProcess | None = None,
    *,
    knowledge: Sequence[str] = (),
    client: MossClient | None = None,
    recover: bool = True,
    timeout_s: float = TIMEOUT_S,
) -> Callable[[JobProcess], None] | None:
    """Load the model and knowledge indexes in a process that waits for a call.

    In a `setup_fnc`, `moss_voice.prewarm(proc, knowledge=["support-faqs"])`; or as one:
    `AgentServer(setup_fnc=moss_voice.prewarm(knowledge=["support-faqs"]))`. `attach` then finds them.
    Never raises but for bad arguments: a process that could not load something serves its calls all the
    same, and `attach` tries again.

    Args:
        proc: The process; the setup function itself is returned where None.
        knowledge: Names of indexes to load; what `attach` uses where it is given none.
        client: Where they are; made from the environment where None.
        recover: Push calls whose processes died, for as long as there is time.
        timeout_s: How long the cloud may take. LiveKit kills a process that is not ready within its
            `initialize_process_timeout`, 10 s by default: stay below that.
    """
    if isinstance(knowledge, str):
        raise TypeError("prewarm: knowledge: expected a list of names")
    if proc is None:
        return functools.partial(
            prewarm, knowledge=tuple(knowledge), recover=recover, timeout_s=timeout_s
        )
    warm = Prewarmed(client or MossClient(), tuple(knowledge))
    # The first thing, so that `attach` finds at least the client whatever fails below.
    proc.userdata[_KEY] = warm
    _to_end(_load(warm, recover=recover, timeout_s=timeout_s))
    return None


def prewarmed(job: JobContext | None) -> Prewarmed | None:
    """Return what `prewarm` made ready in this process, if anything."""
    found = job.proc.userdata.get(_KEY) if job is not None else None
    return found if isinstance(found, Prewarmed) else None


def download() -> None:
    """Fetch the models named in `MOSS_VOICE_MODELS`, for `python -m livekit.agents download-files`."""
    for name in named_in(os.environ.get(MODELS_VARIABLE, "")):
        if name != CUSTOM_MODEL:
            load_embedder(name)


def load_models() -> None:
    """Load the models named in `MOSS_VOICE_MODELS`, else the bundled one, and run each once.

    The first run sets up what later ones use. What cannot be loaded is logged.
    """
    for name in named_in(os.environ.get(MODELS_VARIABLE, "")) or [DEFAULT_MODEL]:
        if name == CUSTOM_MODEL:
            continue
        try:
            load_embedder(name).embed_query("hello")
        except MossError as error:
            logger.error("the model %r cannot be loaded: %s", name, error)


def named_in(variable: str) -> list[str]:
    """Return the names in a comma-separated list."""
    return [name for name in map(str.strip, variable.split(",")) if name]


async def _load(warm: Prewarmed, *, recover: bool, timeout_s: float) -> None:
    await _tried("the model", asyncio.to_thread(load_models))
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            # Together: what is missing or slow keeps nothing else from being loaded.
            await asyncio.gather(
                *(
                    _tried(f"the knowledge {name!r}", warm.client.load_index(name))
                    for name in warm.knowledge
                )
            )
            if recover:
                await _tried("recovery", _recover(warm.client))


async def _recover(client: MossClient) -> None:
    recovered(await client.recover(), host=HOST)


async def _tried(what: str, loading: Awaitable[object]) -> None:
    try:
        await loading
    except MossError as error:
        logger.error("prewarm: %s: %s; attach tries again", what, error)
    except asyncio.CancelledError:
        logger.error("prewarm: %s: not within the time; attach tries again", what)
        raise
    except Exception as error:  # noqa: BLE001 - a process without it serves its calls all the same
        logger.error("prewarm: %s failed (%s)", what, type(error).__name__)


def _to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, whether or not this thread's event loop is running."""
    thread = threading.Thread(target=asyncio.run, args=(work,), name="moss_voice-prewarm")
    thread.start()
    thread.join()
