"""Neighbouring numbers of a turn, looked at as one number.

The law: a stretch tells what can be seen and heard of it: its digits, how they are grouped, what was
said before. What it is, is judged by the kinds, each in its own module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Final

from moss_voice.redaction.cues import Cue
from moss_voice.redaction.lexing import DASHES, Gap, Item

__all__ = ["Edge", "Shape", "Stretch", "shapes"]

Shape = tuple[int, ...]
"""How many digits each group has; digits that were said one by one make one group."""

_CENTURIES: Final = frozenset(["19", "20"])


def shapes(text: str) -> frozenset[Shape]:
    """Return the shapes of a list that is written as a text: "3-3-4 3-7"."""
    return frozenset(tuple(map(int, shape.split("-"))) for shape in text.split())


class Edge(IntEnum):
    """How sure it is that a number begins or ends at a place of a run."""

    INSIDE = 0
    GROUP = 1
    SURE = 2


@dataclass(slots=True)
class Stretch:
    """Some neighbours of a run.

    Attributes:
        digits: All its digits.
        shape: How they are grouped.
        widest: The widest gap between two of its numbers.
        hyphened: Hyphens and the like stand between all its numbers.
        spoken: All its numbers were said digit by digit.
        edge: How sure it is that nothing belongs to it before or after.
        cue: What the words before say.
        first: It begins its run.
        numbers: What it is made of, at least one.
        text: The turn that it stands in.
    """

    digits: str
    shape: Shape
    widest: Gap
    hyphened: bool
    spoken: bool
    edge: Edge
    cue: Cue
    first: bool
    numbers: Sequence[Item]
    text: str

    @property
    def sure(self) -> bool:
        """Whether a number surely begins and ends with this."""
        return self.edge == Edge.SURE

    @property
    def plus(self) -> bool:
        """Whether this is written as an international number."""
        return self.numbers[0].plus

    @property
    def singly(self) -> bool:
        """Whether this was read out digit by digit for the most part."""
        single = sum(len(number.value) == 1 for number in self.numbers)
        return len(self.shape) == 1 and single * 2 >= len(self.numbers) > 1

    @property
    def code(self) -> bool:
        """Whether letters or a path stick to this."""
        return _is_code(self.text, self.numbers[0].start, self.numbers[-1].end)

    @property
    def paused(self) -> bool:
        """Whether there is a comma or an "and" inside."""
        return self.widest >= Gap.COMMA

    @property
    def counts(self) -> bool:
        """Whether this counts in equal steps or names years, as no number of a person does."""
        years = len(self.digits) % 4 == 0 and all(
            self.digits[at : at + 2] in _CENTURIES for at in range(0, len(self.digits), 4)
        )
        if years or len(self.numbers) < 4:
            return years
        if any(len(number.value) > 1 and number.value[0] == "0" for number in self.numbers):
            return False
        counted = [int(number.value) for number in self.numbers]
        steps = [after - before for before, after in pairwise(counted)]
        # Who counts aloud may say a number twice, or start again.
        return any(step and 5 * steps.count(step) >= 4 * len(steps) for step in set(steps))


def _is_code(text: str, start: int, end: int) -> bool:
    """Whether letters or a path stick to a number, as in "ABC-1234567" or "/items/1234567"."""
    before = text[max(0, start - 2) : start]
    after = text[end : end + 2]
    if before and (before[-1].isalpha() or before[-1] in "_/=&#@"):
        return True
    if before == "# " or (len(before) == 2 and before[0].isalpha() and before[1] in DASHES):
        return True
    if after and (after[0].isalpha() or after[0] == "_"):
        return after[0] not in "xX"
    return len(after) == 2 and after[0] in DASHES and after[1].isalpha()
