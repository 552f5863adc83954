"""What is looked for in a turn, and what is left in its place.

The law: a placeholder is nobody's data. It is read as one mark, so that redacting twice changes
nothing more.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple, get_args

__all__ = ["KINDS", "PLACEHOLDERS", "Found", "Kind"]

Kind = Literal["card", "email", "phone", "national_id"]

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
PLACEHOLDERS: Final[dict[Kind, str]] = {
    "card": "[card number]",
    "email": "[email]",
    "phone": "[phone number]",
    "national_id": "[id number]",
}


class Found(NamedTuple):
    """Where something of a kind stands in a text; the order is that of the text."""

    start: int
    end: int
    kind: Kind
