"""Ids with letters among their digits, written in one or spelled: "AB123456C", "a b one two ...".

The law: what is spelled passes for an id by its pattern and its check, wherever it stands. Only a
National Insurance number that was announced is taken by its pattern alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from moss_voice.redaction.checks import Check, is_codice_fiscale, is_dni, is_nino, is_nir
from moss_voice.redaction.lexing import BRIDGES, DIGITS, Gap, Item, word_set

__all__ = ["spelled_ids"]

_DNI: Final = re.compile(r"(?:\d{8}|[XYZ]\d{7})[A-Z]")
_IDS: Final[tuple[tuple[re.Pattern[str], Check], ...]] = (
    (re.compile(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]"), is_nino),
    (_DNI, is_dni),
    (
        re.compile(r"[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPRST][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z]"),
        is_codice_fiscale,
    ),
    (re.compile(r"[12]\d{4}2[AB]\d{8}"), is_nir),
)
_SHORTEST: Final = 8
_LONGEST: Final = 16
# After "National Insurance" the last letter may be left out, and any letters may be misheard.
_NINO_ANNOUNCED: Final = re.compile(r"[A-Z]{2}\d{6}")
_INSURANCE: Final = word_set("national nino ni")

_NATO: Final = word_set(
    "alpha alfa bravo charlie delta echo foxtrot golf hotel india juliet juliett kilo lima mike"
    " november oscar papa quebec romeo sierra tango uniform victor whiskey whisky xray yankee zulu"
)
# Two letters of an id are written as one word; these are words of a sentence.
_TWO_LETTERS: Final = word_set(
    "ah am an as at be by do eh er go he hi if in is it me mm mr ms my no of oh ok on or pm so to uh"
    " um up us we"
)


class _Piece(NamedTuple):
    """What an item adds to an id that is spelled."""

    at: int
    text: str


def spelled_ids(text: str, items: Sequence[Item]) -> Iterator[tuple[int, int]]:
    """Yield the items, from and to, of each id that has letters in it. O(items)."""
    done = 0
    for at, item in enumerate(items):
        if at < done or item.kind not in DIGITS:
            continue
        first, after = at, at + 1
        while first > done and items[first].gap < Gap.BREAK and _is_part(text, items, first - 1):
            first -= 1
        while after < len(items) and items[after].gap < Gap.BREAK and _is_part(text, items, after):
            after += 1
        done = after
        if all(item.kind == "number" for item in items[first:after]):
            continue
        pieces = [
            _Piece(place, spelled)
            for place in range(first, after)
            if items[place].value not in BRIDGES and (spelled := _spelled(text, items, place))
        ]
        yield from _ids_in(text, items, pieces)


def _is_part(text: str, items: Sequence[Item], at: int) -> bool:
    return items[at].value in BRIDGES or _spelled(text, items, at) != ""


def _spelled(text: str, items: Sequence[Item], at: int) -> str:
    """Return what an item adds to an id, in capitals, or "" if it belongs to none."""
    item = items[at]
    if item.kind in DIGITS:
        return item.value
    if item.kind != "word":
        return ""
    written = text[item.start : item.end]
    if len(item.value) == 1 or item.value in _NATO:
        letter = item.value[0].upper()
        return letter if letter.isascii() else ""
    if len(written) > 6 or not written.isascii() or not written.isalpha():
        return ""
    glued = (at > 0 and items[at - 1].end == item.start) or (
        at + 1 < len(items) and items[at + 1].start == item.end
    )
    two = len(written) == 2 and item.value not in _TWO_LETTERS
    return written.upper() if glued or two or written.isupper() else ""


def _ids_in(
    text: str, items: Sequence[Item], pieces: Sequence[_Piece]
) -> Iterator[tuple[int, int]]:
    spelled = "".join(piece.text for piece in pieces)
    if len(spelled) < _SHORTEST or spelled.isdigit():
        return
    first = 0
    while first < len(pieces):
        inside = first > 0 and (pieces[first - 1].text[-1] + pieces[first].text[0]).isdigit()
        after = 0 if inside else _end_of_id(text, items, pieces, first)
        if after:
            yield pieces[first].at, pieces[after - 1].at + 1
        first = after or first + 1


def _end_of_id(text: str, items: Sequence[Item], pieces: Sequence[_Piece], first: int) -> int:
    """Return after which piece an id that begins with one ends, or 0."""
    spelled = ""
    after = first
    began = pieces[first].at
    insured = any(item.value in _INSURANCE for item in items[max(0, began - 8) : began])
    while after < len(pieces) and len(spelled) < _LONGEST:
        spelled += pieces[after].text
        after += 1
        for pattern, check in _IDS:
            if pattern.fullmatch(spelled) and check(spelled):
                last = items[pieces[after - 1].at]
                # "12345678 a ...": the article of the next word is no letter of an id.
                article = last.end - last.start == 1 and text[last.start] == "a"
                if not (article and last.gap == Gap.SPACE and pattern is _DNI):
                    return after
        if insured and _NINO_ANNOUNCED.fullmatch(spelled):
            following = pieces[after].text if after < len(pieces) else ""
            return after + (following in {"A", "B", "C", "D"})
    return 0
