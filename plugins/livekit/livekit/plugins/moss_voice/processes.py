"""What a worker's processes load before a call comes in, so that no caller waits for it.

Each LiveKit call is a process of its own. `prewarm` loads what it needs while it waits for a job; the module
`livekit.plugins.moss_voice.preload`, listed in `AgentServer(preload_modules=[...])`, loads what may be
shared once, in the server that these processes are forked from.
"""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, overload

from livekit.agents import JobContext, JobProcess
from livekit.plugins.moss_voice.log import logger

from moss_voice import MossClient, MossError
from moss_voice.models import CUSTOM_MODEL, load_embedder

__all__ = ["Prewarmed", "download", "prewarm", "prewarmed"]

MODELS_VARIABLE = "MOSS_VOICE_MODELS"

_KEY = "moss_voice"
# LiveKit gives up on a process that is not ready within 10 s.
_RECOVER_S = 4.0


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
) -> None: ...
@overload
def prewarm(
    proc: None = ...,
    *,
    knowledge: Sequence[str] = ...,
    recover: bool = ...,
) -> Callable[[JobProcess], None]: ...
def prewarm(
    proc: JobProcess | None = None,
    *,
    knowledge: Sequence[str] = (),
    client: MossClient | None = None,
    recover: bool = True,
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
    """
    if isinstance(knowledge, str):
        raise TypeError("prewarm: knowledge: expected a list of names")
    if proc is None:
        return functools.partial(prewarm, knowledge=tuple(knowledge), recover=recover)
    warm = Prewarmed(client or MossClient(), tuple(knowledge))
    # The first thing, so that `attach` finds at least the client whatever fails below.
    proc.userdata[_KEY] = warm
    _to_end(_load(warm, recover=recover))
    return None


def prewarmed(job: JobContext | None) -> Prewarmed | None:
    """Return what `prewarm` made ready in this process, if anything."""
    found = job.proc.userdata.get(_KEY) if job is not None else None
    return found if isinstance(found, Prewarmed) else None


def download() -> None:
    """Fetch the models named in `MOSS_VOICE_MODELS`, for `python -m livekit.agents download-files`."""
    for name in filter(None, map(str.strip, os.environ.get(MODELS_VARIABLE, "").split(","))):
        if name != CUSTOM_MODEL:
            load_embedder(name)


async def _load(warm: Prewarmed, *, recover: bool) -> None:
    try:
        await asyncio.to_thread(_first_run)
        for name in warm.knowledge:
            await warm.client.load_index(name)
        if recover:
            async with asyncio.timeout(_RECOVER_S):
                await warm.client.recover()
    except (MossError, TimeoutError, OSError) as error:
        logger.error("prewarm: %s; attach tries again", error)


def _first_run() -> None:
    """Load the default model and run it once: the first run sets up what later ones use."""
    load_embedder().embed_query("hello")


def _to_end(work: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, whether or not this thread's event loop is running."""
    thread = threading.Thread(target=asyncio.run, args=(work,), name="moss_voice-prewarm")
    thread.start()
    thread.join()
