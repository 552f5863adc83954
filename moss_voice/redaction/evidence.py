"""How strong the evidence is that digits are a card's, a phone's or an id's.

The law: the evidence for all kinds stands on one scale, so that of two readings of the same digits the
stronger wins, whatever their kinds.
"""

from __future__ import annotations

from enum import IntEnum, auto

__all__ = ["Evidence"]


class Evidence(IntEnum):
    """What speaks for a number; only the order counts, and the weakest comes first."""

    # Nine digits that a turn says and nothing else.
    ANSWERED_ID = auto()
    # A card's digits, with others said in one breath before or after.
    CARD_INSIDE = auto()
    # A length and a grouping that phone numbers have.
    LIKELY_PHONE = auto()
    # A pause may part two numbers, and so may more digits than a phone number has.
    ANNOUNCED_PHONE_PAUSED = auto()
    ANNOUNCED_PHONE = auto()
    # A card or an id, by nothing but what was said before.
    ANNOUNCED = auto()
    # A plus sign before as many digits as an international number has.
    PLUS_PAUSED = auto()
    # The check of a card passes, but no cards begin so.
    CHECKED = auto()
    CHECKED_ID = auto()
    # Grouped or read out as on a card, with one digit said or heard wrong.
    MISSPOKEN_CARD = auto()
    AMERICAN_PHONE = auto()
    SSN = auto()
    # The check of a card passes, and cards begin so.
    CARD = auto()
    PLUS = auto()
