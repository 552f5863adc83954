"""Which stretches are card numbers.

The law: digits that pass a card's check are a card's. Those that fail it are taken for one where they
were said as a card is, since callers misspeak and recognisers mishear.
"""

from __future__ import annotations

import re
from typing import Final

from moss_voice.redaction.checks import is_luhn
from moss_voice.redaction.evidence import Evidence
from moss_voice.redaction.stretches import Stretch, shapes

__all__ = ["MOST_DIGITS_INSIDE", "card_evidence", "card_inside_evidence", "may_be_inside"]

# How the numbers begin that are given out, and how long they are.
_NETWORK: Final = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3[0689]\d{12}|3[05689]\d{14}"
    r"|(?:5[0678]|6\d)\d{11,17}"
)
_MISSPOKEN: Final = re.compile(r"(?:4\d|5[1-5]|2[2-7]|6\d|35)\d{14}|3[47]\d{13}")
_WRITTEN: Final = shapes("4-4-4-4 4-6-5")
# Of a card that goes on before or after; many of other lengths would pass by chance.
_SIZES_INSIDE: Final = frozenset([15, 16])
MOST_DIGITS_INSIDE: Final = max(_SIZES_INSIDE)


def card_evidence(stretch: Stretch) -> Evidence | None:
    """Return what speaks for a card number, if anything does."""
    digits = stretch.digits
    size = len(digits)
    if size < 8 or (size < 16 and stretch.cue == "phone"):
        return None
    sure, other = stretch.sure, stretch.cue == "other"
    if 13 <= size <= 19 and digits[0] != "0" and is_luhn(digits) and not stretch.counts:
        if _NETWORK.fullmatch(digits):
            return Evidence.CARD
        return Evidence.CHECKED if sure and not other else None
    read_out = stretch.spoken or (stretch.shape in _WRITTEN and not stretch.paused)
    if sure and read_out and _MISSPOKEN.fullmatch(digits):
        return None if other or stretch.counts else Evidence.MISSPOKEN_CARD
    return Evidence.ANNOUNCED if sure and stretch.cue == "card" else None


def may_be_inside(digits: str) -> bool:
    """Whether digits may be a card's although others were said in one breath with them."""
    return len(digits) in _SIZES_INSIDE and _NETWORK.fullmatch(digits) is not None


def card_inside_evidence(stretch: Stretch) -> Evidence | None:
    """Return what speaks, if anything does, for a card number where `may_be_inside` holds."""
    return Evidence.CARD_INSIDE if is_luhn(stretch.digits) else None
