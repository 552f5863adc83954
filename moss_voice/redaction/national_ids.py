"""Which stretches are numbers that a state gives a person.

The law: an id has a grouping or a check digit that few other numbers have, or was announced, or is the
whole of an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from moss_voice.redaction.checks import (
    Check,
    is_aadhaar,
    is_cpf,
    is_nir,
    is_sin,
    is_ssn,
    is_steuer_id,
)
from moss_voice.redaction.evidence import Evidence
from moss_voice.redaction.lexing import FILLERS, Item, word_set
from moss_voice.redaction.stretches import Shape, Stretch, shapes

__all__ = ["id_evidence", "is_answer"]

_SSN_SIZE: Final = 9
_SSN_SHAPE: Final = (3, 2, 4)
# A zip code with its extension has as many digits.
_ZIP_SHAPE: Final = (5, 4)
# By how many digits there are: the check, and the groupings that it is tried on.
_CHECKED: Final[dict[int, tuple[tuple[Check, frozenset[Shape]], ...]]] = {
    9: ((is_sin, shapes("3-3-3")),),
    11: ((is_cpf, shapes("11 3-3-3-2 9-2")), (is_steuer_id, shapes("11 2-3-3-3"))),
    12: ((is_aadhaar, shapes("12 4-4-4")),),
    15: ((is_nir, shapes("15 13-2 1-2-2-2-3-3-2")),),
}
_LEAD_IN: Final = FILLERS | word_set(
    "and dash hyphen space then it it's its is that that's this my the yes yeah yep sure right here"
    " hi hello please thanks"
)


def id_evidence(stretch: Stretch, *, answer: bool) -> Evidence | None:
    """Return what speaks for an id, if anything does.

    Args:
        stretch: Digits without letters among them.
        answer: Whether the turn says an SSN's digits and nothing else; see `is_answer`.
    """
    return _evidence_within(stretch) or (_evidence_of_answer(stretch) if answer else None)


def _evidence_within(stretch: Stretch) -> Evidence | None:
    """Return what speaks for an id, whatever else the turn says."""
    digits = stretch.digits
    if stretch.cue == "phone" or not (stretch.sure or stretch.hyphened):
        return None
    if stretch.shape == _SSN_SHAPE and is_ssn(digits):
        return Evidence.SSN
    if (stretch.spoken or not stretch.paused) and not stretch.code:
        for check, shapes_of_id in _CHECKED.get(len(digits), ()):
            if stretch.shape in shapes_of_id and check(digits):
                return Evidence.CHECKED_ID
    announced = stretch.sure and stretch.cue == "national_id" and 8 <= len(digits) <= 15
    return Evidence.ANNOUNCED if announced else None


def _evidence_of_answer(stretch: Stretch) -> Evidence | None:
    """Return what speaks for an SSN as the whole of an answer."""
    if len(stretch.digits) != _SSN_SIZE or stretch.shape == _ZIP_SHAPE:
        return None
    if is_ssn(stretch.digits) and not stretch.counts:
        return Evidence.ANSWERED_ID
    return None


def is_answer(items: Sequence[Item]) -> bool:
    """Whether a turn says nine digits and nothing else, as the answer to a question does. O(items)."""
    digits = 0
    for item in items:
        if item.kind == "number":
            digits += len(item.value)
        elif item.kind != "word" or item.value not in _LEAD_IN:
            return False
    return digits == _SSN_SIZE
