"""Which stretches are phone numbers.

The law: a plus sign, a grouping of North America or what was said before is evidence by itself; of
other digits the length and the grouping must be those of a number that somebody can dial.
"""

from __future__ import annotations

import re
from typing import Final

from moss_voice.redaction.evidence import Evidence
from moss_voice.redaction.stretches import Shape, Stretch, shapes

__all__ = ["phone_evidence"]

_AMERICAN: Final = shapes("3-3-4 1-3-3-4")
# Where pauses are heard between the groups.
_PAUSED: Final = shapes("3-3-4 1-3-3-4 3-7 1-3-7 3-3-2-2 6-4 3-4-4 4-3-4 5-6 5-3-3 4-3-3")
_TEN: Final = shapes("10 3-3-4 3-7 6-4 3-3-2-2 3-3-1-3")
_NATIONWIDE: Final = shapes("4-3-3 4-6")
# North America and China, Russia, Brazilian mobile numbers.
_ELEVEN_BEGIN: Final = re.compile(r"1[2-9]|[78]|[1-9]{2}9")
_ELEVEN: Final = shapes("11 1-3-3-4 1-10 1-3-7 4-3-4 3-4-4 2-5-4 2-9 7-4")
_COUNTRY: Final = re.compile(
    r"7|20|27|3[0-469]|4[0134-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-6]\d|35\d|37\d|38\d|42\d|97\d"
)


def phone_evidence(stretch: Stretch) -> Evidence | None:
    """Return what speaks for a phone number, if anything does."""
    evidence = _evidence_within(stretch)
    return None if evidence and stretch.code else evidence


def _evidence_within(stretch: Stretch) -> Evidence | None:
    """Return what speaks for a phone number, whatever sticks to it."""
    size = len(stretch.digits)
    other = stretch.cue == "other" and stretch.first
    if stretch.plus and 8 <= size <= 15:
        return Evidence.PLUS_PAUSED if stretch.paused else Evidence.PLUS
    if _is_american(stretch) and (stretch.hyphened or not other):
        return Evidence.AMERICAN_PHONE
    if other or not stretch.sure:
        return None
    if stretch.cue == "phone" and not stretch.digits.endswith("00000"):
        unsure = stretch.paused or size > 15
        return Evidence.ANNOUNCED_PHONE_PAUSED if unsure else Evidence.ANNOUNCED_PHONE
    likely = (size >= 10 or not stretch.cue) and _is_phone(stretch) and not stretch.counts
    return Evidence.LIKELY_PHONE if likely else None


def _is_american(stretch: Stretch) -> bool:
    """Tell a number written as in North America, whose grouping is evidence enough."""
    digits = stretch.digits
    return (
        stretch.shape in _AMERICAN
        and not stretch.paused
        and digits[-10] > "1"
        and digits[:-10] in {"", "1"}
    )


def _is_phone(stretch: Stretch) -> bool:
    """Tell a phone number of which nothing was said before, by its length and grouping."""
    digits, shape = stretch.digits, stretch.shape
    size = len(digits)
    # One digit, then a comma, and so on.
    ones = len(shape) == size
    seven = shape == (3, 4) and _is_local(stretch)
    halves = shape == (5, 5) and stretch.spoken
    if stretch.paused and not (shape in _PAUSED or ones or seven or halves):
        return False
    if digits[0] == "0":
        return _is_trunk(digits)
    if size == 7:
        return seven
    if ones or stretch.singly:
        return 10 <= size <= 15 and (size > 10 or digits[0] > "1")
    return _is_grouped(digits, shape)


def _is_local(stretch: Stretch) -> bool:
    """Tell three and four digits, joined by a hyphen or read out with a pause, from a range."""
    exchange, line = stretch.digits[:3], stretch.digits[3:]
    is_range = int(exchange) % 50 == int(line) % 50 == 0
    one_by_one = len(stretch.numbers) == 7
    return exchange > "2" and not is_range and (stretch.hyphened or (one_by_one and stretch.paused))


def _is_trunk(digits: str) -> bool:
    """Whether what begins with zero is dialled so: "00" or "011" abroad, "0" at home."""
    if digits.startswith(("00", "011")) and len(digits) > 10:
        return digits[2] != "0" and len(digits) <= 17
    return digits[1] != "0" and 9 <= len(digits) <= 12


def _is_grouped(digits: str, shape: Shape) -> bool:
    if len(digits) == 10:
        return _is_ten(digits, shape)
    if len(digits) == 11:
        return shape in _ELEVEN and _ELEVEN_BEGIN.match(digits) is not None
    # A country code comes first; these are not many small numbers.
    abroad = len(shape) == 1 or (shape[0] <= 3 and max(shape) > 2)
    return abroad and len(digits) in {12, 13} and _COUNTRY.match(digits) is not None


def _is_ten(digits: str, shape: Shape) -> bool:
    if digits[0] == "1":
        return shape in _NATIONWIDE and digits.startswith(("1300", "1800"))
    if shape == (5, 5):
        # Two zip codes of one town begin alike; so do not the halves of an Indian mobile number.
        return digits[0] in "6789" and digits[:2] != digits[5:7]
    return shape in _TEN
