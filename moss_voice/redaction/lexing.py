"""A turn as words and numbers, and how far apart they were said.

The law: every character is read once, and a price, a time, a date or the address of a machine is read
whole, so that its digits join no number of a person.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from moss_voice.redaction.kinds import PLACEHOLDERS

__all__ = ["BRIDGES", "DASHES", "DIGITS", "FILLERS", "Gap", "Item", "gap_of", "lex", "word_set"]


def word_set(text: str) -> frozenset[str]:
    """Return the words of a list that is written as a text."""
    return frozenset(text.split())


# --- Distances -----------------------------------------------------------------------------------


class Gap(IntEnum):
    """How far apart two neighbours were said or written; the order is that of distance."""

    SPACE = 0
    FILLER = 1
    HYPHEN = 2
    COMMA = 3
    BREAK = 4


FILLERS: Final = word_set(
    "uh uhh um umm ummm uhm er erm ah ahh oh eh hm hmm hmmm mm mhm like so well okay ok"
)
BRIDGES: Final = {
    **dict.fromkeys(FILLERS | word_set("yes yeah yep right next sorry"), Gap.FILLER),
    **dict.fromkeys(word_set("dash hyphen dot period space minus"), Gap.HYPHEN),
    **dict.fromkeys(word_set("and then comma"), Gap.COMMA),
}
"""The words that may stand inside a number, and how far apart they set what is around them."""

DASHES: Final = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_JOINING: Final = frozenset(
    " \t\n\r\u00a0\u2007\u2009\u202f\u200b\ufeff.\u00b7\u2022(),;?!\u2026" + DASHES
)
_PAUSE: Final = re.compile(rf"[.?!](?=\s)|[?!\u2026\n\r]|\.\.|\s[{DASHES}]+\s")
# Nearly all gaps are this one, and Python 3.11 takes longer to look up a member than for all the rest.
_SPACE: Final = Gap.SPACE


def gap_of(between: str) -> Gap:
    """Return how far apart two neighbours are by what is written between them."""
    if between in {"", " "}:
        return _SPACE
    if not _JOINING.issuperset(between):
        return Gap.BREAK
    if "," in between or ";" in between or _PAUSE.search(between):
        return Gap.COMMA
    return Gap.SPACE if between.isspace() or between == "\u200b" else Gap.HYPHEN


# --- Items ---------------------------------------------------------------------------------------

DIGITS: Final = frozenset(["number", "amount"])
"""The kinds of items whose value is digits."""


@dataclass(slots=True)
class Item:
    """A word or a number of a turn, and where it stands.

    Attributes:
        kind: "word"; "number"; "amount", digits that are no number of a person: a price, a time, a
            date; "at", an at sign; "mark", a placeholder or what will become one.
        value: A word in lower case; of a number or an amount its digits, in ASCII.
        gap: The distance to the item before.
        spoken: A number in words.
        plus: An international number begins here, and `start` is where its plus sign is.
    """

    start: int
    end: int
    kind: str
    value: str
    gap: Gap
    spoken: bool = False
    plus: bool = False

    @property
    def loose(self) -> bool:
        """Whether this is a number said digit by digit, whose grouping tells nothing."""
        return self.spoken or len(self.value) == 1


# No alternative can be read in two ways over more than a few characters, so matching stays linear.
_MARK: Final = "|".join(map(re.escape, PLACEHOLDERS.values()))
_CURRENCY: Final = r"$\u20ac\u00a3\u00a5\u20b9"
_AT: Final = r"@\uff20"
_OCTET: Final = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_DAY: Final = r"(?:0?[1-9]|[12]\d|3[01])"
_TOKEN: Final = re.compile(
    rf"""
      (?P<word>[^\W\d_]+(?:['\u2019][^\W\d_]+)*)
    | (?=[\d\[{_AT}{_CURRENCY}])(?:
        (?P<mark>{_MARK})
      | (?P<amount>
            [{_CURRENCY}]\s?\d+(?:,\d{{3}})*(?:\.\d+)?
          | (?<![\d:])\d{{1,2}}(?::\d{{2}}){{1,2}}(?![:\d])
          | (?<!\d)(?<!\d[-/.])(?:
                (?:19|20)\d\d(?P<_ymd>[-/.]){_DAY}(?P=_ymd){_DAY}
              | {_DAY}(?P<_dmy>[-/.]){_DAY}(?P=_dmy)(?:\d{{4}}|\d{{2}})
            )(?![-/.]?\d)
          | (?<![\d.]){_OCTET}(?:\.{_OCTET}){{3}}(?!\.?\d)
          | (?<![\d,])\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?(?!\d|,\d)
          | (?<![\d.])\d+\.\d{{1,2}}(?!\d|[.-]\d)
          | \d+(?:\.\d+)?\s?%
        )
      | (?P<number>\d+)
      | (?P<at>[{_AT}])
      )
    """,
    re.VERBOSE,
)


def lex(text: str) -> list[Item]:
    """Return the words of a turn and what is written in digits, in order. O(length of the text)."""
    items: list[Item] = []
    end = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        start = match.start()
        value = match.group()
        if kind == "word":
            value = value.lower().replace("\u2019", "'")
        elif kind in DIGITS:
            value = _ascii_digits(value)
        between = text[end:start]
        gap = gap_of(between)
        if between == "/" and kind == "number" and items and items[-1].kind == "number":
            # "030/1234567"; dates and fractions have fewer digits.
            gap = Gap.HYPHEN if min(len(items[-1].value), len(value)) > 2 else gap
        items.append(Item(start, match.end(), kind, value, gap))
        end = match.end()
    return items


def _ascii_digits(text: str) -> str:
    if text.isascii() and text.isdigit():
        return text
    return "".join(str(int(character)) for character in text if character.isdecimal())
