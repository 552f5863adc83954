"""Two ways to recall the same call, side by side.

The law: pure; contexts are paired by their place in the call, hits by what they are (id and index). What
cannot be paired is an error, never a guess.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal

from moss_voice.call.recording import Candidate, RecordedContext
from moss_voice.errors import InvalidArgumentError

__all__ = ["Change", "Compared", "Comparison", "Moved", "compare"]

Change = Literal["same", "up", "down", "new", "gone"]


@dataclass(frozen=True, slots=True)
class Moved:
    """A hit of one side or both.

    Attributes:
        before, after: As it was on each side; None where it was not in that block.
        rank_before, rank_after: Its place there, from 1.
    """

    before: Candidate | None
    after: Candidate | None
    rank_before: int | None
    rank_after: int | None

    @property
    def by(self) -> int:
        """How many places it went up; below 0 where it went down, 0 where it is on one side only."""
        if self.rank_before is None or self.rank_after is None:
            return 0
        return self.rank_before - self.rank_after

    @property
    def change(self) -> Change:
        """What became of it."""
        if self.before is None:
            return "new"
        if self.after is None:
            return "gone"
        return "up" if self.by > 0 else "down" if self.by < 0 else "same"


@dataclass(frozen=True, slots=True)
class Compared:
    """One context on both sides.

    Attributes:
        hits: Those of the second side in its order, then those that are gone, best first.
    """

    before: RecordedContext
    after: RecordedContext
    hits: tuple[Moved, ...]

    @property
    def block_changed(self) -> bool:
        """True where the LLM got other words."""
        return self.before.text != self.after.text

    @property
    def changed(self) -> bool:
        """True where a hit came, went or moved, or the block or the outcome is another."""
        return (
            self.block_changed
            or self.before.outcome != self.after.outcome
            or any(hit.change != "same" for hit in self.hits)
        )

    @property
    def gate(self) -> Literal["", "opened", "closed"]:
        """Whether the knowledge is asked on one side only."""
        asked = [each.need is not None and each.need >= 1.0 for each in (self.before, self.after)]
        if self.before.need is None or self.after.need is None or asked[0] == asked[1]:
            return ""
        return "opened" if asked[1] else "closed"

    def count(self, change: Change) -> int:
        """Return how many hits this happened to."""
        return sum(hit.change == change for hit in self.hits)


@dataclass(frozen=True, slots=True)
class Comparison:
    """All contexts of a call on both sides, in the order of the call."""

    contexts: tuple[Compared, ...]

    @property
    def changed(self) -> tuple[Compared, ...]:
        """The contexts that are not the same."""
        return tuple(each for each in self.contexts if each.changed)

    @property
    def blocks_changed(self) -> int:
        """In how many contexts the LLM got other words."""
        return sum(each.block_changed for each in self.contexts)

    def count(self, change: Change) -> int:
        """Return to how many hits this happened, over all contexts."""
        return sum(each.count(change) for each in self.contexts)

    @property
    def tokens(self) -> tuple[float, float]:
        """The mean tokens of a block on each side, over what recalled anything on either."""
        shown = [each for each in self.contexts if each.before.text or each.after.text]
        if not shown:
            return 0.0, 0.0
        return (
            fmean(each.before.tokens for each in shown),
            fmean(each.after.tokens for each in shown),
        )

    @property
    def gates(self) -> tuple[int, int]:
        """For how many contexts the knowledge is asked only on the second side, and on the first."""
        found = [each.gate for each in self.contexts]
        return found.count("opened"), found.count("closed")


def compare(before: Sequence[RecordedContext], after: Sequence[RecordedContext]) -> Comparison:
    """Pair two series of contexts of the same call.

    Args:
        before: One side, in the order of the call.
        after: The other side, of the same contexts.

    Raises:
        InvalidArgumentError: If they are not of the same contexts.
    """
    if [each.number for each in before] != [each.number for each in after]:
        raise InvalidArgumentError(
            f"compare: expected the same contexts on both sides, got {len(before)} and {len(after)}"
            " or other numbers"
        )
    return Comparison(
        tuple(
            Compared(one, other, _moved(one.hits, other.hits))
            for one, other in zip(before, after, strict=True)
        )
    )


def _moved(before: Sequence[Candidate], after: Sequence[Candidate]) -> tuple[Moved, ...]:
    was = {(hit.index_name, hit.id): (rank, hit) for rank, hit in enumerate(before, start=1)}
    found = []
    for rank, hit in enumerate(after, start=1):
        rank_before, earlier = was.pop((hit.index_name, hit.id), (None, None))
        found.append(Moved(earlier, hit, rank_before, rank))
    gone = [Moved(hit, None, rank, None) for rank, hit in was.values()]
    return (*found, *gone)
