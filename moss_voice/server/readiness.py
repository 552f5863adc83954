"""Whether the store behind us answers, looked at once a second at most, however many ask."""

from __future__ import annotations

import asyncio
from typing import Final

from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import MossError

__all__ = ["Readiness"]

_VALID_S: Final = 1.0
_PATIENCE_S: Final = 5.0


class Readiness:
    """What the last look at the store found."""

    def __init__(self, log: ObjectLog) -> None:
        """Take the log to look at."""
        self._log = log
        self._at = float("-inf")
        self._ready = False
        self._looking = asyncio.Lock()

    async def look(self) -> bool:
        """Tell whether the store answered in the last second."""
        async with self._looking:
            clock = asyncio.get_running_loop().time
            if clock() - self._at > _VALID_S:
                try:
                    async with asyncio.timeout(_PATIENCE_S):
                        await self._log.objects.check()
                    self._ready = True
                except (MossError, TimeoutError):
                    self._ready = False
                self._at = clock()
            return self._ready
