"""Numbers and codes as they are said and as they are written.

The law: one number has one digit form. "Nine four one zero two" is 94102 and "b as in boy, two" is b2,
and who asks in one form finds what was said in the other. Only a query is read so: what is stored stays
as it was said.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from moss_voice.redaction.lexing import Gap, Item, word_set
from moss_voice.redaction.numerals import read
from moss_voice.text import words

__all__ = ["other_forms"]

_DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
# A shorter number is a count or a time: its digits alone would be found anywhere.
_LEAST_SPELLED = 3
# Longer runs are no code: someone reads out more than one.
_MOST = 24
# Two of its characters are worth a word: a number is what was asked for, whatever is said around it.
_WORTH = 0.5
_PLAIN = re.compile(r"[\d\s-]+")


def other_forms(text: str) -> dict[str, float]:
    """Return the words that stand for the numbers and codes of a text in their other form.

    Args:
        text: A turn or a query.

    Returns:
        Words and what they count, a word of the text itself being 1. For what was said, digits
        ("94102", and for letters and digits "wo8btx"), by their length; for a plain number of three
        digits or more, the words that it is read out with. Empty for most turns.
    """
    if not _may_hold_numbers(text):
        return {}
    forms: dict[str, float] = {}
    for run in _runs(read(text)):
        said = any(item.spoken or item.kind == "word" for item in run)
        for joined in {"".join(item.value for item in run), _with_letter(run, text)}:
            if (said or len(run) > 1) and 1 < len(joined) <= _MOST and not joined.isalpha():
                forms[joined] = max(1.0, _WORTH * len(joined))
        if len(run) > 1:
            tens = (item.value for item in run if item.spoken and len(item.value) > 1)
            forms.update(dict.fromkeys((form for form in tens if form not in forms), 1.0))
        digits = "".join(item.value for item in run)
        plain = _PLAIN.fullmatch(text, run[0].start, run[-1].end) is not None
        if plain and _LEAST_SPELLED <= len(digits) <= _MOST and digits.isdecimal():
            forms.update(dict.fromkeys((_DIGITS[int(digit)] for digit in digits), 1.0))
    return forms


def _with_letter(run: Sequence[Item], text: str) -> str:
    """Return a run with an "o" as the letter that it may be, in the midst of letters."""
    return "".join(
        "o"
        if item.value == "0" and text[item.start : item.end].lower().strip(".") == "o"
        else item.value
        for item in run
    )


def _may_hold_numbers(text: str) -> bool:
    said = words(text)
    return any(word in _NUMBER_WORDS or any(map(str.isdecimal, word)) for word in said)


_NUMBER_WORDS = word_set(
    " ".join(_DIGITS)
    + " oh double triple hundred thousand niner nought ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety"
)


def _runs(items: Sequence[Item]) -> Iterator[list[Item]]:
    """Yield the numbers and lone letters that follow one another without another word between."""
    for is_code, run in groupby(items, key=_is_code):
        if is_code:
            part: list[Item] = []
            for item in run:
                if part and (item.gap == Gap.BREAK or _is_apart(item)):
                    yield part
                    part = []
                part.append(item)
            yield part


def _is_apart(item: Item) -> bool:
    """Whether a written number after a comma is one of its own: "rooms 104, 105"."""
    return item.gap == Gap.COMMA and not item.spoken and len(item.value) > 2


def _is_code(item: Item) -> bool:
    if item.kind == "number":
        return True
    return item.kind == "word" and len(item.value) == 1 and item.value not in {"i", "a"}
