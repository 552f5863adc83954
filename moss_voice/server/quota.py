"""How many indexes a project may have, without counting them for every push.

Each server counts for itself, once a minute at most: several together, or one in a burst, may let a few
more through.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic
from typing import Final

from moss_voice.cloud.names import encode_name
from moss_voice.cloud.store import ObjectLog
from moss_voice.server.refusals import Refusal

__all__ = ["Quota"]

_BELIEVED_S: Final = 60.0
_REMEMBERED: Final = 10_000


class Quota:
    """Lets a project begin new indexes until it has enough."""

    def __init__(
        self, log: ObjectLog, *, most: int, clock: Callable[[], float] = monotonic
    ) -> None:
        """Take the log to count in, and how many indexes a project may have."""
        self._log = log
        self._most = most
        self._clock = clock
        # Until when an index is known to be there, and how many a project has.
        self._there: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Quota of {self._most} indexes>"

    async def admit(self, project: str, index: str) -> None:
        """Make sure that a project has this index, or may have one more.

        Raises:
            Refusal: 429 if it has as many as it may have.
        """
        key = (project, index)
        now = self._clock()
        if self._there.get(key, now) > now:
            return
        if (await self._log.head(project, index)).alive is None:
            count = await self._count(project)
            if count >= self._most:
                raise Refusal(
                    429,
                    "too_large",
                    f"the project has {count} indexes, as many as it may have; delete some",
                    retry_after_s=_BELIEVED_S,
                )
            self._counts[project] = (count + 1, self._counts[project][1])
        self._there[key] = now + _BELIEVED_S
        self._there.move_to_end(key)
        if len(self._there) > _REMEMBERED:
            self._there.popitem(last=False)

    def forget(self, project: str, index: str) -> None:
        """Note that an index was deleted."""
        self._there.pop((project, index), None)
        self._counts.pop(project, None)

    async def _count(self, project: str) -> int:
        count, until = self._counts.get(project, (0, 0.0))
        if until > self._clock():
            return count
        folders = await self._log.objects.folders(encode_name(project, what="project id"))
        count = sum(not folder.rpartition("/")[2].startswith("~") for folder in folders)
        # Deleted ones leave a folder behind, so there may be fewer indexes than folders.
        if count >= self._most:
            count = len(await self._log.heads(project))
        self._counts[project] = (count, self._clock() + _BELIEVED_S)
        self._counts.move_to_end(project)
        if len(self._counts) > _REMEMBERED:
            self._counts.popitem(last=False)
        return count
