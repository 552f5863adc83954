"""What the call is about.

The law: a thing once named stays in focus, and less so with each other thing named after it. It follows
from the turns as they are now: nothing is kept that a correction could leave behind.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from moss_voice.call.names import Named
from moss_voice.ranking import FOCUS_DECAY, FOCUS_WEIGHT

__all__ = ["TURNS", "merged", "weights"]

# How far back a call is read for what it is about.
TURNS = 32
# Beyond this many values a weight is under a twentieth of a cosine.
_KEPT_VALUES = 8


def merged(newest_first: Iterable[Iterable[Named]]) -> list[Named]:
    """Return the values that some turns name, newest first, each once and as certain as it ever was."""
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
