"""How the tasks of a cloud go about together: a few at a time, and a step back after a race that was lost."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Iterable
from itertools import islice
from typing import Final, TypeVar

__all__ = ["TRIES", "stand_back", "together"]

T = TypeVar("T")

# How often something is tried anew because somebody else was first. Each round somebody wins, so this
# many lost in a row means a storm.
TRIES: Final = 50
_PARALLEL: Final = 16


async def together(work: Iterable[Awaitable[T]]) -> list[T]:
    """Return the results of awaitables, of which a few are under way at a time, in their order."""
    results: list[T] = []
    rest = iter(work)
    while part := list(islice(rest, _PARALLEL)):
        results += await asyncio.gather(*part)
    return results


async def stand_back(attempt: int) -> None:
    """Let others go first for a random moment, longer from try to try."""
    await asyncio.sleep(secrets.SystemRandom().uniform(0.0, 0.005 * 2 ** min(attempt, 6)))
