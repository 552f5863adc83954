"""Cards, phones and ids among the numbers of a turn.

The law: numbers that follow each other make a run. Of the stretches that begin at one number of a run
the one with the strongest evidence is found, and of equals the longest; where none has any, the next
number may begin one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from moss_voice.redaction.cards import (
    MOST_DIGITS_INSIDE,
    card_evidence,
    card_inside_evidence,
    may_be_inside,
)
from moss_voice.redaction.cues import Context, Cue
from moss_voice.redaction.evidence import Evidence
from moss_voice.redaction.kinds import Found, Kind
from moss_voice.redaction.lexing import BRIDGES, Gap, Item
from moss_voice.redaction.national_ids import id_evidence, is_answer
from moss_voice.redaction.phones import phone_evidence
from moss_voice.redaction.stretches import Edge, Stretch

__all__ = ["numbers"]

_FEWEST_DIGITS: Final = 7
# More digits than these are none of ours, whatever was said before.
_MOST_DIGITS: Final = 24


def numbers(text: str, items: Sequence[Item]) -> Iterator[Found]:
    """Yield the cards, phones and ids among the numbers of a turn, in order. O(items)."""
    context = Context()
    answer = is_answer(items)
    heard = 0
    for run in _runs(text, items):
        if run.size >= _FEWEST_DIGITS:
            for item in items[heard : run.first]:
                if item.kind == "mark":
                    context.spend()
                elif item.kind == "word" and item.value not in BRIDGES:
                    context.hear(item.value)
            heard = run.first
            yield from run.found(context, answer=answer)


def _runs(text: str, items: Sequence[Item]) -> Iterator[_Run]:
    """Yield each run of numbers of a turn."""
    run: _Run | None = None
    gap = Gap.BREAK
    for at, item in enumerate(items):
        if item.kind == "number":
            gap = max(gap, item.gap)
            if run is None or gap == Gap.BREAK or item.plus:
                if run is not None:
                    yield run
                run = _Run(text, at)
            run.append(item, gap)
            gap = Gap.SPACE
        elif run is not None:
            gap = max(gap, item.gap, BRIDGES.get(item.value, Gap.BREAK))
            if gap == Gap.BREAK:
                yield run
                run = None
    if run is not None:
        yield run


class _Run:
    """Numbers that follow each other with nothing but joints between them."""

    def __init__(self, text: str, first: int) -> None:
        self.first = first
        """Which item of the turn begins the run."""
        self.size = 0
        """How many digits there are."""
        self._text = text
        self._numbers: list[Item] = []
        self._gaps: list[Gap] = []
        self._loose: list[bool] = []
        self._edges: list[Edge] = []

    def append(self, number: Item, gap: Gap) -> None:
        """Add a number at a distance from the one before."""
        loose = bool(
            self._numbers and gap <= Gap.FILLER and number.loose and self._numbers[-1].loose
        )
        if not self._numbers or gap >= Gap.COMMA:
            edge = Edge.SURE
        else:
            edge = Edge.INSIDE if loose or gap == Gap.HYPHEN else Edge.GROUP
        self._numbers.append(number)
        self._gaps.append(gap)
        self._loose.append(loose)
        self._edges.append(edge)
        self.size += len(number.value)

    def found(self, context: Context, *, answer: bool) -> Iterator[Found]:
        """Yield what the run holds, from left to right. O(numbers)."""
        first = 0
        edge = Edge.SURE
        left = self.size
        while left >= _FEWEST_DIGITS:
            last, kind = self._strongest(first, edge, context.cue, answer=answer)
            if kind is None:
                last = first
            else:
                yield self._place(first, last, kind)
                context.spend()
            left -= sum(len(number.value) for number in self._numbers[first : last + 1])
            first = last + 1
            edge = self._edge(first) if kind is None else Edge.SURE

    def _edge(self, at: int) -> Edge:
        """Return how sure a number begins, or one before it ends, at a place."""
        return self._edges[at] if at < len(self._edges) else Edge.SURE

    def _strongest(
        self, first: int, begins: Edge, cue: Cue, *, answer: bool
    ) -> tuple[int, Kind | None]:
        """Return where the best-evidenced number that begins at a place ends, and its kind."""
        best, best_last, best_kind = 0, -1, None
        for last, stretch in self._stretches(first, begins, cue):
            for evidence, kind in _readings(stretch, answer=answer):
                if evidence and evidence >= best:
                    best, best_last, best_kind = evidence, last, kind
        return best_last, best_kind

    def _stretches(self, first: int, begins: Edge, cue: Cue) -> Iterator[tuple[int, Stretch]]:
        """Yield what begins at a place and is neither too short nor too long, and where it ends."""
        most = _MOST_DIGITS if begins > Edge.INSIDE else MOST_DIGITS_INSIDE
        digits = ""
        shape: list[int] = []
        widest, closest = Gap.SPACE, Gap.BREAK
        spoken = True
        for last in range(first, len(self._numbers)):
            number = self._numbers[last]
            digits += number.value
            if len(digits) > most:
                return
            spoken = spoken and number.loose
            if last > first:
                widest, closest = max(widest, self._gaps[last]), min(closest, self._gaps[last])
            if last > first and self._loose[last]:
                shape[-1] += len(number.value)
            else:
                shape.append(len(number.value))
            if len(digits) < _FEWEST_DIGITS:
                continue
            edge = min(begins, self._edge(last + 1))
            if edge == Edge.INSIDE and not may_be_inside(digits):
                continue
            yield (
                last,
                Stretch(
                    digits=digits,
                    shape=tuple(shape),
                    widest=widest,
                    hyphened=widest == closest == Gap.HYPHEN,
                    spoken=spoken,
                    edge=edge,
                    cue=cue,
                    first=first == 0,
                    numbers=self._numbers[first : last + 1],
                    text=self._text,
                ),
            )

    def _place(self, first: int, last: int, kind: Kind) -> Found:
        start, end = self._numbers[first].start, self._numbers[last].end
        if start and self._text[start - 1] == "(" and ")" in self._text[start:end]:
            start -= 1
        return Found(start, end, kind)


def _readings(stretch: Stretch, *, answer: bool) -> tuple[tuple[Evidence | None, Kind], ...]:
    """Return what speaks for each kind; of equals the last one is meant."""
    if stretch.edge == Edge.INSIDE:
        return ((card_inside_evidence(stretch), "card"),)
    return (
        (phone_evidence(stretch), "phone"),
        (id_evidence(stretch, answer=answer), "national_id"),
        (card_evidence(stretch), "card"),
    )
