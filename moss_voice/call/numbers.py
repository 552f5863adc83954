"""Numbers and codes as they are said and as they are written.

The law: one number has one digit form. "Nine four one zero two" is 94102 and "b as in boy, two" is b2,
and who asks in one form finds what was said in the other. Only a query is read so: what is stored stays
as it was said.
"""

from __future__ import annotations

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


def other_forms(text: str) -> list[str]:
    """Return the words that stand for the numbers and codes of a text in their other form.

    Args:
        text: A turn or a query.

    Returns:
        For what was said, digits ("94102", and for letters and digits "wo8btx"); for digits, the words
        that they are read out with, if there are three or more. Empty for most turns.
    """
    if not _may_hold_numbers(text):
        return []
    forms: dict[str, None] = {}
    for run in _runs(read(text)):
        joined = "".join(item.value for item in run)
        if len(joined) > _MOST or joined.isalpha():
            continue
        spoken = [item for item in run if item.spoken or item.kind == "word"]
        if len(run) > 1 or spoken:
            forms[joined] = None
        if len(run) > 1:
            forms.update(dict.fromkeys(item.value for item in spoken if len(item.value) > 1))
        if not spoken and joined.isdecimal() and len(joined) >= _LEAST_SPELLED:
            forms.update(dict.fromkeys(_DIGITS[int(digit)] for digit in joined))
    return list(forms)


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
                if part and item.gap == Gap.BREAK:
                    yield part
                    part = []
                part.append(item)
            yield part


def _is_code(item: Item) -> bool:
    if item.kind in {"number", "amount"}:
        return True
    return item.kind == "word" and len(item.value) == 1 and item.value not in {"i", "a"}
