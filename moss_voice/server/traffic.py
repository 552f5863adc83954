"""What a project asked of this process in the last hour, minute by minute: for its own people to look at.

Counts and times alone, in memory, of so many projects; whoever comes with a wrong key makes no entry. A
time is known to within an eighth: what is kept is how many there were of each size.
"""

from __future__ import annotations

import math
import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final, NamedTuple

__all__ = ["MINUTES", "Minute", "Traffic"]

MINUTES: Final = 60
_PROJECTS: Final = 500
# Sizes of times: the first up to 0.1 ms, each next one a quarter larger, the last a minute and more.
_FIRST_S: Final = 0.0001
_GROWTH: Final = math.log(1.25)
_SIZES: Final = 61


class Minute(NamedTuple):
    """A minute, or several together.

    Attributes:
        at: When it began.
        done: Answered with 1xx to 3xx.
        refused: Answered with 4xx, also because somebody else was first, or there were too many.
        failed: Answered with 5xx.
        conflicts: Of the refused: 409.
        limited: Of the refused: 429.
        median_ms: Of the times of all but event streams; None where there were none.
        p95_ms: Likewise.
    """

    at: datetime
    done: int
    refused: int
    failed: int
    conflicts: int
    limited: int
    median_ms: float | None
    p95_ms: float | None

    @property
    def requests(self) -> int:
        """All of them."""
        return self.done + self.refused + self.failed


@dataclass(eq=False, slots=True)
class _Slot:
    """A minute that is counted."""

    minute: int
    counts: array[int] = field(default_factory=lambda: array("Q", [0] * 5))
    times: array[int] = field(default_factory=lambda: array("Q", [0] * _SIZES))


class Traffic:
    """Counts requests by project; not for several threads."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        """Take the clock that tells the minute."""
        self._clock = clock
        self._rings: OrderedDict[str, dict[int, _Slot]] = OrderedDict()
        self.started_at = datetime.fromtimestamp(clock(), UTC)

    def __repr__(self) -> str:
        return f"<Traffic of {len(self._rings)} projects>"

    def count(
        self, project: str, status: int, took_s: float | None, *, is_known: bool = True
    ) -> None:
        """Count a request.

        Args:
            project: Its hash.
            status: Of the answer.
            took_s: None where that says nothing.
            is_known: False where nobody was let in: then only a project that is counted anyway counts it.
        """
        ring = self._rings.get(project)
        if ring is None:
            if not is_known:
                return
            ring = self._rings[project] = {}
            if len(self._rings) > _PROJECTS:
                self._rings.popitem(last=False)
        elif is_known:
            self._rings.move_to_end(project)
        minute = int(self._clock() // 60)
        slot = ring.get(minute % MINUTES)
        if slot is None or slot.minute != minute:
            slot = ring[minute % MINUTES] = _Slot(minute)
        slot.counts[0 if status < 400 else 1 if status < 500 else 2] += 1
        if status in (409, 429):
            slot.counts[3 if status == 409 else 4] += 1
        if took_s is not None:
            slot.times[_size(took_s)] += 1

    def minutes(self, project: str) -> list[Minute]:
        """Return the last hour, oldest first; the last minute is the one that is running."""
        ring = self._rings.get(project, {})
        now = int(self._clock() // 60)
        return [
            _told(minute, [slot] if slot is not None and slot.minute == minute else [])
            for minute in range(now - MINUTES + 1, now + 1)
            for slot in (ring.get(minute % MINUTES),)
        ]

    def hour(self, project: str) -> Minute:
        """Return the last hour together."""
        now = int(self._clock() // 60)
        ring = self._rings.get(project, {})
        first = now - MINUTES + 1
        return _told(first, [slot for slot in ring.values() if slot.minute >= first])


def _size(took_s: float) -> int:
    if took_s <= _FIRST_S:
        return 0
    return min(_SIZES - 1, math.ceil(math.log(took_s / _FIRST_S) / _GROWTH))


def _told(minute: int, slots: Sequence[_Slot]) -> Minute:
    done, refused, failed, conflicts, limited = (
        sum(slot.counts[which] for slot in slots) for which in range(5)
    )
    times = [sum(slot.times[size] for slot in slots) for size in range(_SIZES)]
    return Minute(
        datetime.fromtimestamp(minute * 60, UTC),
        *(done, refused, failed, conflicts, limited),
        *(_quantile(times, share) for share in (0.5, 0.95)),
    )


def _quantile(times: Sequence[int], share: float) -> float | None:
    """Return the time that this share of all did not exceed, in milliseconds."""
    total = sum(times)
    rank = math.ceil(share * total)
    seen = 0
    for size, count in enumerate(times):
        seen += count
        if count and seen >= rank:
            # The middle of the size, as times of it differ by factors.
            return _FIRST_S * math.exp(_GROWTH * (size - 0.5)) * 1000.0
    return None
