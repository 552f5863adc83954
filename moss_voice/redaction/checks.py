"""Which digits and letters are a card's or an id's, by the rule of those who give them out.

The law: a check reads nothing but its text, in ASCII capitals and of the length that its scheme has,
and knows nothing of what was said around it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

__all__ = [
    "Check",
    "is_aadhaar",
    "is_codice_fiscale",
    "is_cpf",
    "is_dni",
    "is_luhn",
    "is_nino",
    "is_nir",
    "is_sin",
    "is_ssn",
    "is_steuer_id",
]

Check = Callable[[str], bool]

# Twice a digit, and the digits of that added.
_DOUBLED: Final = str.maketrans("0123456789", "0246813579")


def is_luhn(digits: str) -> bool:
    """Check ISO/IEC 7812-1: a card's digits, from the right every other one doubled, add up to tens."""
    return sum(map(int, digits[-1::-2] + digits[-2::-2].translate(_DOUBLED))) % 10 == 0


# --- Ids of digits alone -------------------------------------------------------------------------


def is_ssn(digits: str) -> bool:
    """Tell whether an area, a group and a serial are of those that are given out in the US."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in {"000", "666"} and area[0] != "9" and group != "00" and serial != "0000"


def is_sin(digits: str) -> bool:
    """Check a Canadian SIN; none begins with an eight."""
    return digits[0] != "8" and is_luhn(digits)


def is_cpf(digits: str) -> bool:
    """Check both check digits of a Brazilian CPF; of one digit eleven times they pass, but none is."""
    if digits == digits[0] * 11:
        return False
    for length in (9, 10):
        total = sum(
            int(digit) * weight
            for digit, weight in zip(digits[:length], range(length + 1, 1, -1), strict=True)
        )
        if total * 10 % 11 % 10 != int(digits[length]):
            return False
    return True


def is_steuer_id(digits: str) -> bool:
    """Check a German tax id: ISO 7064 (11, 10), and one digit alone is there twice or three times in ten."""
    repeats = [count for digit in set(digits[:10]) if (count := digits.count(digit, 0, 10)) > 1]
    if digits[0] == "0" or len(repeats) != 1 or repeats[0] > 3:
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def is_aadhaar(digits: str) -> bool:
    """Check an Indian Aadhaar; none begins with zero or one."""
    return digits[0] not in "01" and _is_verhoeff(digits)


_VERHOEFF: Final = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _is_verhoeff(digits: str) -> bool:
    check = 0
    for place, character in enumerate(reversed(digits)):
        digit = int(character)
        for _ in range(place % 8):
            digit = _VERHOEFF[digit]
        check = _dihedral(check, digit)
    return check == 0


def _dihedral(left: int, right: int) -> int:
    """Multiply in the dihedral group of the pentagon, by which Verhoeff's check is defined."""
    if left < 5:
        return (left + right) % 5 if right < 5 else (left + right - 5) % 5 + 5
    return (left - 5 - right) % 5 + 5 if right < 5 else (left - right) % 5


# --- Ids with letters ----------------------------------------------------------------------------


def is_nir(text: str) -> bool:
    """Check a French NIR: 13 characters, of which Corsica's department has a letter, and a key."""
    digits = text.replace("2A", "19").replace("2B", "18")
    return digits[0] in "12" and 97 - int(digits[:13]) % 97 == int(digits[13:])


def is_nino(text: str) -> bool:
    """Tell whether a UK National Insurance number begins as one that is given out."""
    return text[:2] not in {"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"}


def is_dni(text: str) -> bool:
    """Check the letter of a Spanish DNI or NIE."""
    number = str("XYZ".find(text[0])) + text[1:8] if text[0] in "XYZ" else text[:8]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[8]


# What A to Z count in odd places.
_CODICE_ODD: Final = (
    *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18),
    *(20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
)


def is_codice_fiscale(text: str) -> bool:
    """Check the last letter of an Italian codice fiscale."""
    # A to J count as 0 to 9 do.
    letters = [int(character) if character.isdigit() else ord(character) - 65 for character in text]
    total = sum(_CODICE_ODD[rank] for rank in letters[:15:2]) + sum(letters[1:15:2])
    return total % 26 == letters[15]
