"""Number words as digits: "forty two" is 42, "double four" 44, "eight hundred" 800.

The law: a number is read as long as it goes on in one breath. What is no number by itself is one only
among digits ("oh"), and what is counted or paid ("forty dollars") is no number of a person.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from moss_voice.redaction.lexing import Gap, Item, lex, word_set

__all__ = ["may_hold_numbers", "read"]


def _values(text: str, first: int) -> dict[str, str]:
    """Return the value of each word of a text that counts from `first`."""
    return {word: str(value) for value, word in enumerate(text.split(), first)}


_UNITS: Final = {
    **_values("zero one two three four five six seven eight nine", 0),
    "nought": "0",
    "naught": "0",
    "niner": "9",
}
_TEENS: Final = _values(
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen", 10
)
_TENS: Final = _values("twenty thirty forty fifty sixty seventy eighty ninety", 2)
_OHS: Final = word_set("oh o")
_REPEATS: Final = {"double": 2, "triple": 3, "treble": 3, "quadruple": 4}
_MAGNITUDES: Final = {"hundred": 100, "thousand": 1000}
# A number before one of these counts or costs something.
_COUNTED: Final = word_set(
    "dollar dollars buck bucks euro euros pound pounds cent cents pence quid percent yen rupees"
    " hundred hundreds thousand thousands million millions billion billions trillion points miles"
)
_NUMERIC: Final = frozenset({*_UNITS, *_TEENS, *_TENS, *_OHS, *_REPEATS, *_MAGNITUDES})
# The most digits that a word adds to a number.
_WEIGHTS: Final = {
    **dict.fromkeys((*_UNITS, *_OHS), 1),
    **dict.fromkeys((*_TEENS, *_TENS, "hundred"), 2),
    **dict.fromkeys((*_REPEATS, "thousand"), 3),
}


def may_hold_numbers(words: Sequence[str]) -> bool:
    """Whether words in lower case and single digits may come to six digits: most turns do not."""
    if _NUMERIC.isdisjoint(words) and not any(map(str.isdecimal, words)):
        return False
    return sum(_WEIGHTS.get(word, 0) or word.isdecimal() for word in words) > 5


def read(text: str) -> list[Item]:
    """Return the words and the numbers of a turn, in order. O(length of the text)."""
    return _Reader(text).items()


# The digits of a number, and the item after it.
_Number = tuple[str, int]


class _Reader:
    """Reads one turn from left to right; what was read tells how to read on."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._raw = lex(text)
        self._read: list[Item] = []
        self._has_plus = "+" in text or any(item.value == "plus" for item in self._raw)

    def items(self) -> list[Item]:
        raw = self._raw
        at = 0
        while at < len(raw):
            item = raw[at]
            if item.kind == "word" and len(item.value) > 1 and item.value not in _NUMERIC:
                self._read.append(item)
                at += 1
                continue
            number = self._number(at)
            if number is not None:
                digits, after = number
                kind = "amount" if self._value(after) in _COUNTED else "number"
                spoken = item.kind == "word"
                self._read.append(
                    Item(item.start, raw[after - 1].end, kind, digits, item.gap, spoken)
                )
                if self._has_plus:
                    self._mark_plus(self._read[-1])
            else:
                after = self._spelling(at)
                self._read.append(item)
                item.end = raw[after - 1].end
            at = after
        return self._read

    def _value(self, at: int) -> str:
        """Return the word at a place, or "" if it does not follow at once."""
        if not 0 < at < len(self._raw):
            return ""
        item = self._raw[at]
        near = item.gap == Gap.SPACE or self._text[self._raw[at - 1].end : item.start] == "-"
        return item.value if near and item.kind in {"word", "number"} else ""

    def _mark_plus(self, item: Item) -> None:
        head = self._text[max(0, item.start - 3) : item.start].rstrip(" (")
        if head.endswith("+"):
            item.plus = True
            item.start = self._text.rindex("+", 0, item.start)
        elif len(self._read) > 1 and self._read[-2].value == "plus" and item.gap == Gap.SPACE:
            item.plus = True
            item.start = self._read[-2].start

    def _number(self, at: int) -> _Number | None:
        item = self._raw[at]
        if item.kind == "number":
            times = _MAGNITUDES.get(self._value(at + 1), 0) if len(item.value) < 4 else 0
            return (str(int(item.value) * times), at + 2) if times else (item.value, at + 1)
        if item.kind != "word":
            return None
        word = item.value
        if word in _UNITS and self._value(at + 1) not in _MAGNITUDES:
            return _UNITS[word], at + 1
        if word in _REPEATS:
            return self._repeated(at)
        if word in _OHS:
            return ("0", at + 1) if self._is_zero(at) else None
        return self._cardinal(at)

    def _is_number(self, at: int) -> bool:
        """Whether a number follows, at once or after a comma."""
        if at >= len(self._raw) or self._raw[at].gap == Gap.BREAK:
            return False
        return self._raw[at].kind == "number" or self._raw[at].value in _NUMERIC

    def _repeated(self, at: int) -> _Number | None:
        word = self._value(at + 1)
        digit = "0" if word in _OHS else _UNITS.get(word, word)
        if len(digit) == 1 and digit.isdigit():
            return digit * _REPEATS[self._raw[at].value], at + 2
        return None

    def _is_zero(self, at: int) -> bool:
        """Tell a digit from an exclamation: it stands among digits, without a pause."""
        before = self._read[-1] if self._read else None
        if before is not None and before.kind == "number" and self._raw[at].gap < Gap.BREAK:
            if (before.loose or len(before.value) == 2) and self._value(at):
                return True
            if self._raw[at].gap == Gap.COMMA and self._is_number(at + 1):
                return True
        for ahead in range(at + 1, at + 4):
            word = self._value(ahead)
            if word not in _OHS:
                return word in _UNITS or word in _TEENS or word in _TENS or word in _REPEATS
        return False

    def _small(self, at: int) -> _Number | None:
        """Read what is below a hundred: "four", "fourteen", "forty", "forty two"."""
        word = self._raw[at].value if at < len(self._raw) else ""
        if word in _UNITS:
            return _UNITS[word], at + 1
        if word in _TEENS:
            return _TEENS[word], at + 1
        if word not in _TENS:
            return None
        unit = _UNITS.get(self._value(at + 1), "0")
        return (_TENS[word] + unit, at + 2) if unit != "0" else (_TENS[word] + "0", at + 1)

    def _hundreds(self, at: int) -> _Number | None:
        """Read what is below a thousand, or as many hundreds as are below a hundred."""
        return self._multiple(at, self._small, "hundred")

    def _cardinal(self, at: int) -> _Number | None:
        return self._multiple(at, self._hundreds, "thousand")

    def _multiple(
        self, at: int, part: Callable[[int], _Number | None], magnitude: str
    ) -> _Number | None:
        """Read one part, or two with a magnitude between them: "four hundred and forty two".

        A lone digit after it is the next digit of a number: "one eight hundred five five five".
        """
        number = part(at)
        if number is None or self._value(number[1]) != magnitude:
            return number
        digits, at = number
        after = at + 1
        anded = self._value(after) == "and"
        rest = part(after + anded) if self._value(after + anded) else None
        if rest is None or (len(rest[0]) < 2 and not anded):
            rest = "0", after
        return str(int(digits) * _MAGNITUDES[magnitude] + int(rest[0])), rest[1]

    def _spelling(self, at: int) -> int:
        """Return where an item ends: "b as in bravo" and "b for bravo" are one letter."""
        letter = self._raw[at].value
        if len(letter) == 1 and self._raw[at].kind == "word":
            for bridge in (("as", "in"), ("for",), ("like",)):
                example = at + 1 + len(bridge)
                words = tuple(self._value(place) for place in range(at + 1, example))
                name = self._value(example)
                named = len(name) > 1 and name[0] == letter and name not in _NUMERIC
                if named and words == bridge:
                    return example + 1
        return at + 1
