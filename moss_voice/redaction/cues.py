"""What the words just before a number say about it.

The law: the last cue counts, for a few words; a number that was found uses it up. Placeholders and
numbers are no words.
"""

from __future__ import annotations

from typing import Final, Literal

from moss_voice.redaction.lexing import word_set

__all__ = ["Context", "Cue"]

Cue = Literal["card", "phone", "national_id", "other", ""]

_CUES: Final[dict[str, Cue]] = {
    **dict.fromkeys(
        word_set(
            "phone telephone tel cell cellphone mobile landline whatsapp fax callback voicemail dial"
            " call ring text reach sms"
        ),
        "phone",
    ),
    **dict.fromkeys(word_set("card visa mastercard amex credit debit maestro"), "card"),
    **dict.fromkeys(
        word_set(
            "ssn social nino sin nir dni nie nif cpf bsn burgerservicenummer aadhaar aadhar adhaar"
            " steuer steuernummer steueridentifikationsnummer tin itin taxpayer identity"
            " identification codice fiscale"
        ),
        "national_id",
    ),
    **dict.fromkeys(
        word_set(
            "order orders tracking account acct reference ref confirmation booking reservation invoice"
            " ticket serial model sku isbn imei policy claim membership flight zip zipcode postal"
            " postcode transaction receipt shipment parcel package routing iban barcode po purchase"
        ),
        "other",
    ),
}
_CUE_PAIRS: Final[dict[tuple[str, str], Cue]] = {
    ("area", "code"): "phone",
    ("national", "insurance"): "national_id",
    ("insurance", "number"): "national_id",
    ("ni", "number"): "national_id",
    ("tax", "id"): "national_id",
    ("tax", "number"): "national_id",
    ("national", "id"): "national_id",
    ("id", "card"): "national_id",
    ("identity", "card"): "national_id",
    **dict.fromkeys(
        (
            (thing, what)
            for thing in word_set(
                "case part item product batch lot job request session device meter customer member"
                " employee user client loyalty file agent patient student version"
            )
            for what in ("number", "id", "code")
        ),
        "other",
    ),
}
# Whose number is said, where "number" alone tells that it is a phone's.
_WHOSE: Final = word_set(
    "my your our his her their the is best home work office daytime direct contact"
    " another other new old same good me at on"
)
_ID_OF: Final = word_set("my your his her their the an is government photo state citizen personal")
# For how many words a cue counts.
_REACH: Final[dict[Cue, int]] = {"card": 8, "phone": 8, "national_id": 8, "other": 4, "": 0}
# For how many words it still counts after a number was found: "... or ...".
_LEFT: Final = 2


class Context:
    """The cue that counts at a place of a turn. Each word is O(1)."""

    def __init__(self) -> None:
        self._cue: Cue = ""
        self._age = 0
        self._before = ""

    @property
    def cue(self) -> Cue:
        """What a number that is said now would be."""
        return self._cue if self._age <= _REACH[self._cue] else ""

    def hear(self, word: str) -> None:
        """Take in a word that is no number."""
        before, self._before = self._before, word
        self._age += 1
        # "my number's" is "my number is".
        word = word.removesuffix("'s")
        cue = _CUES.get(word) or _CUE_PAIRS.get((before, word))
        if cue:
            self._cue, self._age = cue, 0
        elif word in {"number", "numbers", "no"}:
            if self.cue:
                self._age = 0
            elif before in _WHOSE or before.endswith("'s"):
                self._cue, self._age = "phone", 0
        elif word == "id":
            if self.cue == "other" and self._age <= 1:
                self._age = 0
            elif before in _ID_OF or not before:
                self._cue, self._age = "national_id", 0

    def spend(self) -> None:
        """A number was found: the cue counts for a few words more."""
        self._age = max(self._age, _REACH[self._cue] - _LEFT)
