"""Words as they may be heard and written: one spelling for what sounds and counts as the same.

The law: two ways to say a name that a listener would not tell apart are spelled alike. Pure functions
of words; the same in every process.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Final

__all__ = ["SILENT", "silences", "spans", "spell"]

_CACHED_WORDS: Final = 1 << 14

# Inside a name these may be said, left out or added, and so may a hesitation.
_SILENT_TEXT: Final = "the a an and of in at on uh uhh uhm um umm ummm er erm hm hmm mm"
SILENT: Final = frozenset(_SILENT_TEXT.split())

_UNITS_TEXT: Final = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
    " sixteen seventeen eighteen nineteen"
)
_TENS_TEXT: Final = "twenty thirty forty fifty sixty seventy eighty ninety"
_ORDINALS_TEXT: Final = (
    "first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth"
    " fourteenth fifteenth sixteenth seventeenth eighteenth nineteenth twentieth"
)
_UNITS: Final = _UNITS_TEXT.split()
_TENS: Final = _TENS_TEXT.split()
_ORDINALS: Final = _ORDINALS_TEXT.split()
_SUFFIX: Final = {1: "st", 2: "nd", 3: "rd"}
_DIGITS: Final = {
    **{word: str(n) for n, word in enumerate(_UNITS)},
    **{word: str(10 * n) for n, word in enumerate(_TENS, start=2)},
    **{word: f"{n}{_SUFFIX.get(n, 'th')}" for n, word in enumerate(_ORDINALS, start=1)},
}
# What may follow "twenty" to make one number of the two.
_AFTER_TENS: Final = frozenset([*_UNITS[1:10], *_ORDINALS[:9]])
_TIMES: Final = {"double": 2, "triple": 3}


@lru_cache(_CACHED_WORDS)
def _plain(word: str) -> str:
    """Return a word without its possessive or plural, and a number word as digits."""
    digits = _DIGITS.get(word)
    if digits is not None:
        return digits
    word = word.removesuffix("'s").replace("'", "")
    if len(word) > 3 and word[-1] == "s" and word[-2] != "s" and not word[-2].isdigit():
        return word[:-1]
    return word


def spell(words: Sequence[str]) -> list[str]:
    """Return each word in its one spelling; "" for one that another has taken up.

    Plurals and possessives lose their s; number words become digits, so that the digits of "four
    thirty two" join to "432"; "b as in boy", "d for delta" and "double l" become letters.

    Args:
        words: By `moss_voice.text.words`.
    """
    plain = [_plain(word) for word in words]
    last = len(words) - 1
    for at, word in enumerate(words):
        if len(word) == 1 and at < last:
            _letter(words, plain, at)
        elif word in _TIMES and at < last and len(words[at + 1]) == 1:
            plain[at], plain[at + 1] = "", words[at + 1] * _TIMES[word]
        elif word in _TENS and at < last and words[at + 1] in _AFTER_TENS:
            plain[at] = plain[at][0]
        elif word == "hundred" and at > 0 and plain[at - 1].isdigit():
            joins = at < last and words[at + 1] in _DIGITS
            plain[at] = "" if joins else "00"
        elif word == "oh" and 0 < at < last and plain[at - 1].isdigit() and plain[at + 1].isdigit():
            plain[at] = "0"
    return plain


def _letter(words: Sequence[str], plain: list[str], at: int) -> None:
    """Blank out the word that only tells which letter was said."""
    for cue in (("as", "in"), ("for",), ("like",)):
        after = at + 1 + len(cue)
        if (
            after < len(words)
            and tuple(words[at + 1 : after]) == cue
            and len(words[after]) > 1
            and words[after][0] == words[at]
        ):
            plain[at + 1 : after + 1] = [""] * (len(cue) + 1)


def silences(words: Sequence[str], spelled: Sequence[str]) -> list[bool]:
    """Tell for each word whether it may be passed over inside a name; an "a" among letters may not."""
    silent = [word in SILENT for word in words]
    if "a" in words:
        heard = [at for at, token in enumerate(spelled) if token]
        for before, at, after in zip([-1, *heard], heard, [*heard[1:], -1], strict=False):
            if words[at] == "a":
                silent[at] = not any(len(spelled[i]) == 1 for i in (before, after) if i >= 0)
    return silent


def spans(
    spelled: Sequence[str], silent: Sequence[bool], *, most: int, letters: int
) -> list[tuple[int, int, str]]:
    """Return the spelling of every run of words, without spaces or the silent words inside it.

    Args:
        spelled: By `spell`.
        silent: By `silences`.
        most: The most words that a run may have; those that are "" do not count.
        letters: The most letters of a spelling.

    Returns:
        First word, word after the last, and the spelling, never blank.
    """
    heard = [at for at, token in enumerate(spelled) if token]
    found = []
    for number, start in enumerate(heard):
        inner = spelled[start]
        found.append((start, start + 1, inner))
        for end in heard[number + 1 : number + most]:
            spelling = inner + spelled[end]
            if len(spelling) > letters:
                break
            found.append((start, end + 1, spelling))
            if not silent[end]:
                inner = spelling
    return found
