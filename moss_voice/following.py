"""Copies of stored indexes, kept up to date: when to look for a newer version, and who tells of one.

A copy is looked after when it is read, at its interval; a server tells of new versions besides, as they
are made. Both pause while the holder has edits of its own that are not pushed. Nobody who reads waits.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Final, Protocol

from moss_voice.errors import MossError

__all__ = ["Followed", "Following", "Holder"]

logger = logging.getLogger(__name__)

# How often a copy that was made while the cloud was away is compared with the cloud, when it is read.
HEAL_S: Final = 5.0
# How long to wait before listening to a server again, at first and at most.
LISTEN_PAUSES_S: Final = (0.5, 60.0)


@dataclass(slots=True)
class Followed:
    """An index of the cloud of which there is a copy, and when to look for a newer version.

    Attributes:
        version: The version that the copy is of.
        interval_s: How often to look; None for never.
        next_look: When, on the holder's clock.
        written_at: Milliseconds: when each document of the copy was written.
        heals: True while the copy was made without the cloud.
        missed: True where there was a newer version that unpushed edits kept out.
    """

    name: str
    version: int
    interval_s: float | None
    next_look: float
    written_at: dict[str, int] = field(default_factory=dict)
    heals: bool = False
    missed: bool = False
    task: asyncio.Task[None] | None = None
    listener: asyncio.Task[None] | None = None

    def stop(self) -> list[asyncio.Task[None]]:
        """Cancel what looks for newer versions, and return it."""
        tasks = {task for task in (self.task, self.listener) if task is not None}
        for task in tasks:
            task.cancel()
        return list(tasks)


class Holder(Protocol):
    """Who holds the copies."""

    @property
    def has_edits(self) -> bool:
        """True while edits of its own are not pushed."""
        ...

    def now(self) -> float:
        """Return seconds on a clock that never goes back."""
        ...

    def versions_of(self, name: str) -> AsyncGenerator[int] | None:
        """Return an index's versions as they are made; None where nobody tells."""
        ...

    async def bring_in(self, followed: Followed) -> bool:
        """Bring in the newest version, if there is a newer; tells whether there was."""
        ...


class Following:
    """The copies that a holder has, by the names of their indexes. One event loop's."""

    def __init__(self, holder: Holder) -> None:
        """Begin with none."""
        self._holder = holder
        self._by_name: dict[str, Followed] = {}

    def __repr__(self) -> str:
        return f"<Following {', '.join(map(repr, self._by_name)) or 'nothing'}>"

    def __getitem__(self, name: str) -> Followed:
        return self._by_name[name]

    @property
    def stale(self) -> bool:
        """True while a copy was made without the cloud, and has not been compared with it since."""
        return any(followed.heals for followed in self._by_name.values())

    def find(self, name: str, version: int) -> Followed:
        """Return what is known of a copy; of one that is not followed yet, something to begin with."""
        return self._by_name.get(name) or Followed(name, version, None, 0.0)

    def follow(self, followed: Followed, *, listening: bool) -> None:
        """Look after a copy, in the place of an earlier one of the same index.

        Args:
            followed: The copy.
            listening: True to listen to the server, too, if there is one.
        """
        before = self._by_name.get(followed.name)
        if before is not None and before is not followed:
            before.stop()
        self._by_name[followed.name] = followed
        if listening and (followed.listener is None or followed.listener.done()):
            task = asyncio.get_running_loop().create_task(self._listen(followed))
            followed.listener = task

    def went_stale(self, name: str, version: int) -> None:
        """Take note that a copy was made without the cloud, and compare them when it is back."""
        soon = self._holder.now() + HEAL_S
        followed = self._by_name.setdefault(name, Followed(name, version, None, soon))
        followed.heals = True
        followed.next_look = min(followed.next_look, soon)

    def healed(self, name: str) -> None:
        """Take note that a copy is what the cloud has, or was merged with it."""
        if name in self._by_name:
            self._by_name[name].heals = False

    def resume(self) -> None:
        """Look at once, at the next read, for what came while edits were not pushed."""
        for followed in self._by_name.values():
            if followed.missed:
                followed.missed, followed.next_look = False, self._holder.now()

    def look(self) -> None:
        """Start the looks that are due; the read that comes now does not wait for them."""
        if not self._by_name or self._holder.has_edits:
            return
        now = self._holder.now()
        for followed in self._by_name.values():
            interval_s = HEAL_S if followed.heals else followed.interval_s
            if interval_s is None or now < followed.next_look or followed.task is not None:
                continue
            followed.next_look = now + interval_s
            followed.task = asyncio.get_running_loop().create_task(self._bring_in(followed))

    async def close(self) -> None:
        """Stop looking and listening."""
        tasks = [task for followed in self._by_name.values() for task in followed.stop()]
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _bring_in(self, followed: Followed) -> None:
        try:
            await self._holder.bring_in(followed)
        except MossError as error:
            # Tried again at the next interval; the copy at hand goes on serving.
            logger.warning("refresh of index %r failed: %s", followed.name, error.code)
        finally:
            followed.task = None

    async def _listen(self, followed: Followed) -> None:
        shortest_s, longest_s = LISTEN_PAUSES_S
        pause_s = shortest_s
        while (versions := self._holder.versions_of(followed.name)) is not None:
            try:
                async with aclosing(versions):
                    async for version in versions:
                        pause_s = shortest_s
                        await self._told(followed, version)
            except MossError as error:
                # Looking now and then goes on meanwhile.
                logger.debug("index %r: the line is cut (%s)", followed.name, error.code)
            await asyncio.sleep(random.uniform(pause_s / 2, pause_s))  # noqa: S311 - not a secret
            pause_s = min(2 * pause_s, longest_s)

    async def _told(self, followed: Followed, version: int) -> None:
        if version <= followed.version:
            return
        if self._holder.has_edits:
            followed.missed = True
        elif followed.task is not None:
            # One that is under way may have read what was before.
            followed.next_look = self._holder.now()
        else:
            followed.task = asyncio.current_task()
            await self._bring_in(followed)
