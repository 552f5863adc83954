"""Token buckets: so many at once, so many a second in the long run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

__all__ = ["Buckets"]


class Buckets:
    """One bucket per key, of which the least recently used are forgotten: a full one says nothing.

    Forgetting a bucket that is not full lets its owner begin anew, so `most` should be far above the
    number of owners that are busy at a time.
    """

    def __init__(
        self,
        *,
        per_s: float,
        burst: float,
        most: int = 10_000,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Take the rate (0 lets everything through), the size of a bucket, and how many to remember."""
        self._per_s = per_s
        self._burst = burst
        self._most = most
        self._clock = clock
        self._left: OrderedDict[object, tuple[float, float]] = OrderedDict()

    def __repr__(self) -> str:
        return f"<Buckets {self._per_s}/s, {len(self._left)} in use>"

    def wait_s(self, key: object) -> float:
        """Return how long until there is one to take; 0 where there is. Takes nothing."""
        if not self._per_s:
            return 0.0
        left = self._now(key)
        return 0.0 if left >= 1.0 else (1.0 - left) / self._per_s

    def take(self, key: object) -> float:
        """Take one and return 0, or return how long until there is one."""
        if not self._per_s:
            return 0.0
        left = self._now(key)
        if left < 1.0:
            return (1.0 - left) / self._per_s
        self._left[key] = (left - 1.0, self._clock())
        self._left.move_to_end(key)
        if len(self._left) > self._most:
            self._left.popitem(last=False)
        return 0.0

    def _now(self, key: object) -> float:
        left, at = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - at) * self._per_s)
