"""Token buckets: so many at once, so many a second in the long run."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

__all__ = ["Buckets", "Failures"]


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

    def give_back(self, key: object) -> None:
        """Undo a `take`."""
        if self._per_s:
            self._left[key] = (min(self._burst, self._now(key) + 1.0), self._clock())

    def _now(self, key: object) -> float:
        left, at = self._left.get(key, (self._burst, 0.0))
        return min(self._burst, left + (self._clock() - at) * self._per_s)


class Failures:
    """Wrong keys, by the network that they come from and the project that they were tried on.

    A network may try ten times as many on all projects together, so that nobody tries one key on each, or
    has its tries on one forgotten by trying many.
    """

    def __init__(
        self, *, per_s: float, burst: float, clock: Callable[[], float] = monotonic
    ) -> None:
        """Take how many may be tried on a project in the long run, and at once."""
        self._on_one = Buckets(per_s=per_s, burst=burst, clock=clock)
        self._on_all = Buckets(per_s=10 * per_s, burst=10 * burst, clock=clock)

    def wait_s(self, network: str, project: str) -> float:
        """Return how long until one more may be tried; 0 for now."""
        return max(self._on_one.wait_s((network, project)), self._on_all.wait_s(network))

    def count(self, network: str, project: str) -> None:
        """Note a wrong key, or one that is being looked at."""
        self._on_one.take((network, project))
        self._on_all.take(network)

    def forgive(self, network: str, project: str) -> None:
        """Take back a note: the key was right."""
        self._on_one.give_back((network, project))
        self._on_all.give_back(network)
