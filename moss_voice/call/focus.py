"""What the call is about.

The law: a thing once named stays in focus, and less so with each other thing named after it. What a
turn named is forgotten when the turn is corrected and names something else.

Pure and without locks: a call uses its own `Focus` under its own lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from moss_voice.call.names import Named
from moss_voice.ranking import FOCUS_DECAY, FOCUS_WEIGHT

__all__ = ["Focus", "merged", "weights"]

# Beyond this many values a weight is under a twentieth of a cosine.
_KEPT_VALUES = 8
_KEPT_TURNS = 64


class Focus:
    """The things named in a call, turn by turn."""

    def __init__(self) -> None:
        # The newest turn last; turns that name nothing are not kept.
        self._turns: dict[str, tuple[Named, ...]] = {}

    def __repr__(self) -> str:
        return f"<Focus on {len(self.recent())} values>"

    def heard(self, turn_id: str, named: Iterable[Named]) -> None:
        """Take note of what a turn names; of one that was heard before, in the place that it had."""
        values = tuple(named)
        if values:
            self._turns[turn_id] = values
            while len(self._turns) > _KEPT_TURNS:
                del self._turns[next(iter(self._turns))]
        else:
            self._turns.pop(turn_id, None)

    def read_again(self, named: Mapping[str, Sequence[Named]], order: Iterable[str]) -> None:
        """Take note of what some turns name, heard before or not, where they stand among all.

        Args:
            named: By turn; what other turns name stays as it was.
            order: All turns, the oldest first.
        """
        known = {**self._turns, **named}
        turns = [id_ for id_ in order if known.get(id_)][-_KEPT_TURNS:]
        self._turns = {id_: tuple(known[id_]) for id_ in turns}

    def recent(self, *, without: Collection[str] = ()) -> list[Named]:
        """Return the values named, newest first, each once and as certain as it ever was.

        Args:
            without: Turns that do not count.
        """
        turns = [named for id_, named in self._turns.items() if id_ not in without]
        return merged(*reversed(turns))


def merged(*newest_first: Iterable[Named]) -> list[Named]:
    """Return the values of some turns, each once, in its newest place and as certain as it ever was."""
    recent: dict[str, Named] = {}
    for named in newest_first:
        for each in named:
            known = recent.get(each.value)
            if known is None:
                recent[each.value] = each
            elif known.certainty < each.certainty:
                recent[each.value] = known._replace(certainty=each.certainty)
    return list(recent.values())[:_KEPT_VALUES]


def weights(recent: Sequence[Named]) -> dict[str, float]:
    """Return what to add to the score of each value's passages.

    `FOCUS_WEIGHT * FOCUS_DECAY**k * certainty` for the value that k others were named after.
    """
    return {
        named.value: FOCUS_WEIGHT * FOCUS_DECAY**k * named.certainty
        for k, named in enumerate(recent)
    }
