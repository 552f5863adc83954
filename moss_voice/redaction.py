"""Numbers and addresses that name a person, replaced before a turn is embedded, journaled or pushed.

The law: what is replaced is found where it was said, as people type it ("415-555-2671") and as speech
recognisers write it ("four one five, five five five, two six seven one"); every other character stays.

A turn is read in one pass into words and numbers. Numbers that follow each other make a run, and each
stretch of a run is judged by its digits, by how they are grouped, by a check digit where there is one,
and by what was said just before ("my phone number is", "order"). Nothing is learnt and nothing is
remembered between turns, so that a number said in two turns is judged by halves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import Final, Literal, NamedTuple, get_args

from moss_voice.errors import InvalidArgumentError

__all__ = ["Kind", "PiiRedactor", "Redactor", "redact_pii"]

Kind = Literal["card", "email", "phone", "national_id"]

Redactor = Callable[[str], str]
"""Takes a turn as it was said and returns what may be kept of it.

It may be called from several threads at once, once for each turn.
"""

_KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
_PLACEHOLDERS: Final[dict[Kind, str]] = {
    "card": "[card number]",
    "email": "[email]",
    "phone": "[phone number]",
    "national_id": "[id number]",
}


def _set(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _values(text: str, first: int) -> dict[str, str]:
    """Return the value of each word of a text that counts from `first`."""
    return {word: str(value) for value, word in enumerate(text.split(), first)}


# --- Words ---------------------------------------------------------------------------------------

_UNITS: Final = {
    **_values("zero one two three four five six seven eight nine", 0),
    "nought": "0",
    "naught": "0",
    "niner": "9",
}
_TEENS: Final = _values(
    "ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen", 10
)
_TENS: Final = _values("twenty thirty forty fifty sixty seventy eighty ninety", 2)
_OHS: Final = _set("oh o")
_REPEATS: Final = {"double": 2, "triple": 3, "treble": 3, "quadruple": 4}
_MAGNITUDES: Final = {"hundred": 100, "thousand": 1000}
# A number before one of these counts or costs something.
_COUNTED: Final = _set(
    "dollar dollars buck bucks euro euros pound pounds cent cents pence quid percent yen rupees"
    " hundred hundreds thousand thousands million millions billion billions trillion points miles"
)
_FILLERS: Final = _set(
    "uh uhh um umm ummm uhm er erm ah ahh oh eh hm hmm hmmm mm mhm like so well okay ok"
)
_NATO: Final = {
    word: word[0]
    for word in _set(
        "alpha alfa bravo charlie delta echo foxtrot golf hotel india juliet juliett kilo lima mike"
        " november oscar papa quebec romeo sierra tango uniform victor whiskey whisky xray yankee zulu"
    )
}

_NUMERIC: Final = frozenset({*_UNITS, *_TEENS, *_TENS, *_OHS, *_REPEATS, *_MAGNITUDES})
# The most digits that a word adds to a number.
_WEIGHTS: Final = {
    **dict.fromkeys((*_UNITS, *_OHS), 1),
    **dict.fromkeys((*_TEENS, *_TENS, "hundred"), 2),
    **dict.fromkeys((*_REPEATS, "thousand"), 3),
}
_WORD_OR_DIGIT: Final = re.compile(r"\d|[^\W\d_]+")

# Dates, times, prices and addresses of machines are read whole, so that their digits join no run. No
# alternative can be read in two ways over more than a few characters, so matching stays linear.
_MARK: Final = "|".join(map(re.escape, _PLACEHOLDERS.values()))
_OCTET: Final = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
_DAY: Final = r"(?:0?[1-9]|[12]\d|3[01])"
_TOKEN: Final = re.compile(
    rf"""
      (?P<word>[^\W\d_]+(?:['\u2019][^\W\d_]+)*)
    | (?=[\d\[@\uff20$\u20ac\u00a3\u00a5\u20b9])(?:
        (?P<mark>{_MARK})
      | (?P<amount>
            [$\u20ac\u00a3\u00a5\u20b9]\s?\d+(?:,\d{{3}})*(?:\.\d+)?
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
      | (?P<at>[@\uff20])
      )
    """,
    re.VERBOSE,
)

_DASHES: Final = "-\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_JOINING: Final = frozenset(
    " \t\n\r\u00a0\u2007\u2009\u202f\u200b\ufeff.\u00b7\u2022(),;?!\u2026" + _DASHES
)
_PAUSE: Final = re.compile(rf"[.?!](?=\s)|[?!\u2026\n\r]|\.\.|\s[{_DASHES}]+\s")


class _Gap(IntEnum):
    """How far apart two neighbours were said or written; the order is that of distance."""

    SPACE = 0
    FILLER = 1
    HYPHEN = 2
    COMMA = 3
    BREAK = 4


_BRIDGES: Final = {
    **dict.fromkeys(_FILLERS | _set("yes yeah yep right next sorry"), _Gap.FILLER),
    **dict.fromkeys(_set("dash hyphen dot period space minus"), _Gap.HYPHEN),
    **dict.fromkeys(_set("and then comma"), _Gap.COMMA),
}


def _gap(between: str) -> _Gap:
    if between in {"", " "}:
        return _Gap.SPACE
    if not _JOINING.issuperset(between):
        return _Gap.BREAK
    if "," in between or ";" in between or _PAUSE.search(between):
        return _Gap.COMMA
    return _Gap.SPACE if between.isspace() or between == "\u200b" else _Gap.HYPHEN


@dataclass(slots=True)
class _Item:
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
    gap: _Gap
    spoken: bool = False
    plus: bool = False

    @property
    def loose(self) -> bool:
        """Whether this is a number said digit by digit, whose grouping tells nothing."""
        return self.spoken or len(self.value) == 1


# --- Reading -------------------------------------------------------------------------------------


def _ascii_digits(text: str) -> str:
    if text.isascii() and text.isdigit():
        return text
    return "".join(str(int(character)) for character in text if character.isdecimal())


def _lex(text: str) -> list[_Item]:
    items: list[_Item] = []
    end = 0
    for match in _TOKEN.finditer(text):
        kind = match.lastgroup or ""
        start = match.start()
        value = match.group()
        if kind == "word":
            value = value.lower().replace("\u2019", "'")
        elif kind in {"number", "amount"}:
            value = _ascii_digits(value)
        between = text[end:start]
        gap = _gap(between)
        if between == "/" and kind == "number" and items and items[-1].kind == "number":
            # "030/1234567"; dates and fractions have fewer digits.
            gap = _Gap.HYPHEN if min(len(items[-1].value), len(value)) > 2 else gap
        items.append(_Item(start, match.end(), kind, value, gap))
        end = match.end()
    return items


class _Reader:
    """Reads number words into digits: "forty two" is 42, "double four" 44, "eight hundred" 800."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._raw = _lex(text)
        self._read: list[_Item] = []
        self._has_plus = "+" in text or any(item.value == "plus" for item in self._raw)

    def items(self) -> list[_Item]:
        """Return words and numbers in order. O(length of the text)."""
        raw = self._raw
        at = 0
        while at < len(raw):
            item = raw[at]
            if item.kind == "word" and len(item.value) > 1 and item.value not in _NUMERIC:
                self._read.append(item)
                at += 1
                continue
            number = self._number(at)
            if number is not None:
                digits, after = number
                kind = "amount" if self._value(after) in _COUNTED else "number"
                spoken = item.kind == "word"
                self._read.append(
                    _Item(item.start, raw[after - 1].end, kind, digits, item.gap, spoken)
                )
                if self._has_plus:
                    self._mark_plus(self._read[-1])
            else:
                after = self._spelling(at)
                self._read.append(item)
                item.end = raw[after - 1].end
            at = after
        return self._read

    def _value(self, at: int) -> str:
        """Return the word at a place, or "" if it does not follow at once."""
        if not 0 < at < len(self._raw):
            return ""
        item = self._raw[at]
        near = item.gap == _Gap.SPACE or self._text[self._raw[at - 1].end : item.start] == "-"
        return item.value if near and item.kind in {"word", "number"} else ""

    def _mark_plus(self, item: _Item) -> None:
        head = self._text[max(0, item.start - 3) : item.start].rstrip(" (")
        if head.endswith("+"):
            item.plus = True
            item.start = self._text.rindex("+", 0, item.start)
        elif len(self._read) > 1 and self._read[-2].value == "plus" and item.gap == _Gap.SPACE:
            item.plus = True
            item.start = self._read[-2].start

    def _number(self, at: int) -> tuple[str, int] | None:
        item = self._raw[at]
        if item.kind == "number":
            times = _MAGNITUDES.get(self._value(at + 1), 0) if len(item.value) < 4 else 0
            return (str(int(item.value) * times), at + 2) if times else (item.value, at + 1)
        if item.kind != "word":
            return None
        word = item.value
        if word in _UNITS and self._value(at + 1) not in _MAGNITUDES:
            return _UNITS[word], at + 1
        if word in _REPEATS:
            return self._repeated(at)
        if word in _OHS:
            return ("0", at + 1) if self._is_zero(at) else None
        return self._cardinal(at)

    def _is_number(self, at: int) -> bool:
        """Whether a number follows, at once or after a comma."""
        if at >= len(self._raw) or self._raw[at].gap == _Gap.BREAK:
            return False
        return self._raw[at].kind == "number" or self._raw[at].value in _NUMERIC

    def _repeated(self, at: int) -> tuple[str, int] | None:
        word = self._value(at + 1)
        digit = "0" if word in _OHS else _UNITS.get(word, word)
        if len(digit) == 1 and digit.isdigit():
            return digit * _REPEATS[self._raw[at].value], at + 2
        return None

    def _is_zero(self, at: int) -> bool:
        """Tell a digit from an exclamation: it stands among digits, without a pause."""
        before = self._read[-1] if self._read else None
        if before is not None and before.kind == "number" and self._raw[at].gap < _Gap.BREAK:
            if (before.loose or len(before.value) == 2) and self._value(at):
                return True
            if self._raw[at].gap == _Gap.COMMA and self._is_number(at + 1):
                return True
        for ahead in range(at + 1, at + 4):
            word = self._value(ahead)
            if word not in _OHS:
                return word in _UNITS or word in _TEENS or word in _TENS or word in _REPEATS
        return False

    def _small(self, at: int) -> tuple[str, int] | None:
        """Read what is below a hundred: "four", "fourteen", "forty", "forty two"."""
        word = self._raw[at].value if at < len(self._raw) else ""
        if word in _UNITS:
            return _UNITS[word], at + 1
        if word in _TEENS:
            return _TEENS[word], at + 1
        if word not in _TENS:
            return None
        unit = _UNITS.get(self._value(at + 1), "0")
        return (_TENS[word] + unit, at + 2) if unit != "0" else (_TENS[word] + "0", at + 1)

    def _hundreds(self, at: int) -> tuple[str, int, bool] | None:
        """Read what is below a thousand, and tell whether "hundred" was said."""
        small = self._small(at)
        if small is None:
            return None
        digits, at = small
        if self._value(at) != "hundred":
            return digits, at, False
        rest, after = self._rest(at + 1, self._small)
        return str(int(digits) * 100 + rest), after, True

    def _cardinal(self, at: int) -> tuple[str, int] | None:
        read = self._hundreds(at)
        if read is None:
            return None
        digits, at, _ = read
        if self._value(at) != "thousand":
            return digits, at
        rest, after = self._rest(at + 1, self._hundreds)
        return str(int(digits) * 1000 + rest), after

    def _rest(
        self, at: int, read: Callable[[int], tuple[str, int] | tuple[str, int, bool] | None]
    ) -> tuple[int, int]:
        """Read "and forty two" or "forty two" after "hundred" or "thousand", or nothing.

        A lone digit is the next digit of a number: "one eight hundred five five five".
        """
        anded = self._value(at) == "and"
        start = at + anded
        more = read(start) if self._value(start) else None
        if more is None or (len(more[0]) < 2 and not anded):
            return 0, at
        return int(more[0]), more[1]

    def _spelling(self, at: int) -> int:
        """Return where an item ends: "b as in bravo" and "b for bravo" are one letter."""
        letter = self._raw[at].value
        if len(letter) == 1 and self._raw[at].kind == "word":
            for bridge in (("as", "in"), ("for",), ("like",)):
                example = at + 1 + len(bridge)
                words = tuple(self._value(place) for place in range(at + 1, example))
                name = self._value(example)
                named = len(name) > 1 and name[0] == letter and name not in _NUMERIC
                if named and words == bridge:
                    return example + 1
        return at + 1


# --- Check digits --------------------------------------------------------------------------------

# Twice a digit, and the digits of that added.
_DOUBLED: Final = str.maketrans("0123456789", "0246813579")


def _luhn(digits: str) -> bool:
    return sum(map(int, digits[-1::-2] + digits[-2::-2].translate(_DOUBLED))) % 10 == 0


def _dihedral(left: int, right: int) -> int:
    """Multiply in the dihedral group of the pentagon, by which Verhoeff's check is defined."""
    if left < 5:
        return (left + right) % 5 if right < 5 else (left + right - 5) % 5 + 5
    return (left - 5 - right) % 5 + 5 if right < 5 else (left - right) % 5


_VERHOEFF: Final = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _verhoeff(digits: str) -> bool:
    check = 0
    for place, character in enumerate(reversed(digits)):
        digit = int(character)
        for _ in range(place % 8):
            digit = _VERHOEFF[digit]
        check = _dihedral(check, digit)
    return check == 0


def _is_ssn(digits: str) -> bool:
    """Tell whether an area, a group and a serial are of those that are given out."""
    area, group, serial = digits[:3], digits[3:5], digits[5:]
    return area not in {"000", "666"} and area[0] != "9" and group != "00" and serial != "0000"


def _is_sin(digits: str) -> bool:
    return digits[0] != "8" and _luhn(digits)


def _is_cpf(digits: str) -> bool:
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


def _is_steuer_id(digits: str) -> bool:
    """Check ISO 7064 (11, 10), and that one digit alone is there twice or three times in ten."""
    repeats = [count for digit in set(digits[:10]) if (count := digits.count(digit, 0, 10)) > 1]
    if digits[0] == "0" or len(repeats) != 1 or repeats[0] > 3:
        return False
    product = 10
    for digit in digits[:10]:
        product = ((int(digit) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(digits[10])


def _is_aadhaar(digits: str) -> bool:
    return digits[0] not in "01" and _verhoeff(digits)


def _is_nir(text: str) -> bool:
    """Check a French NIR: 13 characters, of which Corsica's department has a letter, and a key."""
    digits = text.replace("2A", "19").replace("2B", "18")
    return digits[0] in "12" and 97 - int(digits[:13]) % 97 == int(digits[13:])


def _is_nino(text: str) -> bool:
    return text[:2] not in {"BG", "GB", "KN", "NK", "NT", "TN", "ZZ"}


def _is_dni(text: str) -> bool:
    number = str("XYZ".find(text[0])) + text[1:8] if text[0] in "XYZ" else text[:8]
    return "TRWAGMYFPDXBNJZSQVHLCKE"[int(number) % 23] == text[8]


# What A to Z count in odd places.
_CODICE_ODD: Final = (
    *(1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18),
    *(20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23),
)


def _is_codice_fiscale(text: str) -> bool:
    # A to J count as 0 to 9 do.
    letters = [int(character) if character.isdigit() else ord(character) - 65 for character in text]
    total = sum(_CODICE_ODD[rank] for rank in letters[:15:2]) + sum(letters[1:15:2])
    return total % 26 == letters[15]


# --- Ids with letters ----------------------------------------------------------------------------

_CODES: Final[tuple[tuple[re.Pattern[str], Callable[[str], bool]], ...]] = (
    (re.compile(r"[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]"), _is_nino),
    (re.compile(r"(?:\d{8}|[XYZ]\d{7})[A-Z]"), _is_dni),
    (
        re.compile(r"[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPRST][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z]"),
        _is_codice_fiscale,
    ),
    (re.compile(r"[12]\d{4}2[AB]\d{8}"), _is_nir),
)
# After "National Insurance" the last letter may be left out, and any letters may be misheard.
_NINO_ANNOUNCED: Final = re.compile(r"[A-Z]{2}\d{6}")
_TWO_LETTERS: Final = _set(
    "ah am an as at be by do eh er go he hi if in is it me mm mr ms my no of oh ok on or pm so to uh"
    " um up us we"
)
_INSURANCE: Final = _set("national nino ni")


class _Piece(NamedTuple):
    """What an item adds to a code that is spelled."""

    at: int
    text: str


def _spelled(text: str, items: Sequence[_Item], at: int) -> str:
    """Return what an item adds to a code, in capitals, or "" if it belongs to none."""
    item = items[at]
    if item.kind in {"number", "amount"}:
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


def _code_at(text: str, items: Sequence[_Item], pieces: Sequence[_Piece], first: int) -> int:
    """Return after which piece a code that begins with one ends, or 0."""
    spelled = ""
    after = first
    began = pieces[first].at
    insured = any(item.value in _INSURANCE for item in items[max(0, began - 8) : began])
    while after < len(pieces) and len(spelled) < 16:
        spelled += pieces[after].text
        after += 1
        for pattern, check in _CODES:
            if pattern.fullmatch(spelled) and check(spelled):
                last = items[pieces[after - 1].at]
                article = last.end - last.start == 1 and text[last.start] == "a"
                if not (article and last.gap == _Gap.SPACE and pattern is _CODES[1][0]):
                    return after
        if insured and _NINO_ANNOUNCED.fullmatch(spelled):
            following = pieces[after].text if after < len(pieces) else ""
            return after + (following in {"A", "B", "C", "D"})
    return 0


def _codes(text: str, items: Sequence[_Item]) -> Iterator[tuple[int, int]]:
    """Yield the items, from and to, of each id that has letters in it. O(items)."""
    done = 0
    for at, item in enumerate(items):
        if at < done or item.kind not in {"number", "amount"}:
            continue
        first, after = at, at + 1
        while first > done and items[first].gap < _Gap.BREAK and _is_part(text, items, first - 1):
            first -= 1
        while after < len(items) and items[after].gap < _Gap.BREAK and _is_part(text, items, after):
            after += 1
        done = after
        if all(item.kind == "number" for item in items[first:after]):
            continue
        pieces = [
            _Piece(place, spelled)
            for place in range(first, after)
            if items[place].value not in _BRIDGES and (spelled := _spelled(text, items, place))
        ]
        yield from _codes_in(text, items, pieces)


def _is_part(text: str, items: Sequence[_Item], at: int) -> bool:
    return items[at].value in _BRIDGES or _spelled(text, items, at) != ""


def _codes_in(
    text: str, items: Sequence[_Item], pieces: Sequence[_Piece]
) -> Iterator[tuple[int, int]]:
    spelled = "".join(piece.text for piece in pieces)
    if len(spelled) < 8 or spelled.isdigit():
        return
    first = 0
    while first < len(pieces):
        inside = first > 0 and (pieces[first - 1].text[-1] + pieces[first].text[0]).isdigit()
        after = 0 if inside else _code_at(text, items, pieces, first)
        if after:
            yield pieces[first].at, pieces[after - 1].at + 1
        first = after or first + 1


# --- E-mail --------------------------------------------------------------------------------------

_DOTS: Final = _set("dot period point")
_HYPHENS: Final = _set("dash hyphen minus underscore")
_JOINERS: Final = _DOTS | _HYPHENS | {"plus"}
_MAIL_WORDS: Final = _set(
    "email emails emailed e-mail mail mails mailed gmail address addresses write contact reach send"
    " message forward cc"
)
_PROVIDERS: Final = _set(
    "gmail googlemail yahoo ymail hotmail outlook live msn icloud aol proton protonmail gmx zoho"
    " fastmail comcast verizon att sbcglobal btinternet mailinator hey"
)
_COMMON_ENDS: Final = _set("com net org co edu gov")
_ENDS: Final = _COMMON_ENDS | _set(
    "io ai app dev me info biz mil int xyz online tech cloud uk de fr es it nl eu us ca au in tv ch"
    " at be br jp cn ie nz za se no dk fi pl pt mx ar cl gg ru ua tr gr cz hu ro sg hk kr il ae pk"
)
# No name before "at" and no part of one: the sentence goes on without an address.
_NO_NAMES: Final = _set(
    "a an the and or but if so as of at by for from in into on onto to with about than then"
    " i i'm i'd i've i'll me my mine you your yours he him his she her hers it its it's we us our they"
    " them their this that that's these those there here there's where what who when which how"
    " is are was were be been am do does did done have has had will would can could shall should may"
    " might must not no yes yeah yep ok okay sure right just also now still only please thanks"
    " uh uhh um umm er erm ah hmm mm like well"
    " email emails emailed mail mails mailed e-mail address addresses account name username"
    " write contact reach send sent message forward cc reply get got give gave use using type enter"
    " look looks looking looked meet meeting meets met work works working worked find found see saw"
    " visit check sign signed log logged go going went come comes order ordered shop buy bought book"
    " booked stay staying live living available arrive up out down over back again everything all"
    " call calls phone text website site page online store dot"
)
_REMARKS: Final = tuple(
    tuple(remark.split())
    for remark in (
        "all 1 word",
        "1 word",
        "all lowercase",
        "all lower case",
        "lowercase",
        "lower case",
    )
    + ("no spaces", "no caps", "all together")
)
_DOTTED: Final = _DOTS | _COMMON_ENDS | _set("dotcom dotnet dotorg")
_FULL_STOP: Final = re.compile(r"\.\w")
_ARTICLES: Final = _set("a an the my your our this that")
_POINTING: Final = _set("is it's its it to that's as be was yes yeah sure okay ok uh um so and")
_EMAIL_SPACE: Final = " \t\n\r\u00a0()[]{}<>,"
_TIGHT: Final = frozenset(["", ".", "_", "-", "+", "'", "%", "&", "._", "__", "--"])
_LONGEST_LOCAL: Final = 40
_LONGEST_DOMAIN: Final = 24


class _Mails:
    """Finds e-mail addresses: "j.smith@example.com", "j dot smith at example dot com"."""

    def __init__(self, text: str, items: Sequence[_Item]) -> None:
        self._text = text
        self._items = items

    def found(self) -> Iterator[tuple[int, int]]:
        """Yield the items, from and to, of each address in order. O(items)."""
        floor = 0
        for at, item in enumerate(self._items):
            if at < floor or not (item.kind == "at" or item.value == "at"):
                continue
            span = self._address(at, floor)
            if span is not None:
                floor = span[1]
                yield span

    def _between(self, at: int) -> str:
        """Return what is written before an item."""
        return self._text[self._items[at - 1].end if at else 0 : self._items[at].start]

    def _is_near(self, at: int) -> bool:
        return not self._between(at).strip(_EMAIL_SPACE)

    def _follows_name(self, at: int) -> bool:
        """Whether an at sign comes right after a name; a letter may have a full stop."""
        return self._is_near(at) or (self._between(at) == ". " and self._is_short(at - 1))

    def _value(self, at: int) -> str:
        return self._items[at].value if 0 <= at < len(self._items) else ""

    def _is_atom(self, at: int) -> bool:
        if not 0 <= at < len(self._items):
            return False
        return self._items[at].kind in {"word", "number", "amount"}

    def _is_short(self, at: int) -> bool:
        """Whether an item is a letter or a number, as in a name that is spelled."""
        item = self._items[at]
        return item.kind in {"number", "amount"} or len(item.value) == 1

    def _address(self, at: int, floor: int) -> tuple[int, int] | None:
        sign = self._items[at].kind == "at"
        host = at + 1
        if not sign and self._value(host) in {"sign", "symbol"}:
            sign, host = True, host + 1
        elif not sign and (self._value(host), self._value(host + 1)) == ("the", "rate"):
            sign, host = True, host + 2 + (self._value(host + 2) == "of")
        if not (at > floor and self._is_atom(at - 1) and self._follows_name(at)):
            return None
        if not (self._is_atom(host) and self._is_near(host)) or self._value(host) in _DOTS:
            return None
        cued = not _MAIL_WORDS.isdisjoint(
            item.value for item in self._items[max(floor, at - 12) : at]
        )
        start, structured = self._local(at, floor, most=3 if cued or sign else 2)
        said_sign = sign and self._items[at].kind == "word"
        if start == at and (said_sign or (cued and self._value(at - 2) in {"is", "it's"})):
            # "My address is me at example dot com": what follows "is" is a name, whatever it is.
            start = at - 1
        end = self._domain(host, most=4 if sign else 3 if cued or structured else 1, sign=sign)
        if not end or start == at:
            return None
        known = self._value(host) in _PROVIDERS or self._value(host) == "g"
        if sign or cued or structured or known or self._is_pointed_at(start, floor):
            return start, end
        return None

    def _is_pointed_at(self, start: int, floor: int) -> bool:
        """Whether a name begins the turn or a sentence, or follows "it's" and the like."""
        if start <= floor or self._value(start - 1) in _POINTING:
            return True
        return self._items[start].gap >= _Gap.COMMA

    def _local(self, at: int, floor: int, *, most: int) -> tuple[int, bool]:
        """Return where the name before an at sign begins, and whether it is more than words."""
        start = at
        words = 0
        structured = False
        place = at - 1 - self._remark(at - 1)
        while place >= max(floor, at - _LONGEST_LOCAL) and self._is_atom(place):
            part = self._part(place, start, at)
            words += part == "word"
            if not part or words > most:
                break
            structured = structured or part in {"joiner", "joined", "short"}
            if part not in {"joiner", "filler"}:
                start = place
            place -= 1
        return start, structured

    def _remark(self, last: int) -> int:
        """Return how many items that end at one tell how a name is spelled: "all one word"."""
        for remark in _REMARKS:
            if tuple(self._value(last - back) for back in range(len(remark))) == remark[::-1]:
                return len(remark)
        return 0

    def _part(
        self, place: int, start: int, at: int
    ) -> Literal["joiner", "joined", "filler", "short", "word", ""]:
        """Return what an item adds to a name that begins after it, or "" if the name ends there."""
        value, near = self._value(place), self._is_near(place + 1)
        between = self._between(place + 1)
        tight = self._items[at].kind == "at" and self._between(at) == ""
        if value in _JOINERS and near and place > 0:
            return "joiner"
        spoken_joint = place + 1 < at and self._value(place + 1) in _JOINERS and near
        if spoken_joint or (between in _TIGHT and (start < at or tight)):
            return "joined"
        if value in _FILLERS and not tight:
            return "filler"
        if self._is_short(place):
            return "short" if self._continues(place, start, at, tight=tight) else ""
        known = value in _NO_NAMES or value.removesuffix("'s") in _NO_NAMES
        return "" if tight or known or not near or ("," in between and start < at) else "word"

    def _continues(self, place: int, start: int, at: int, *, tight: bool) -> bool:
        """Whether a letter or a number belongs to a name that begins after it."""
        value, between = self._value(place), self._between(place + 1)
        if start == at or self._is_short(start):
            letters = len(value) == len(self._value(start)) == 1
            return (letters or not tight) and _gap(between) <= _Gap.COMMA
        initial = self._items[place].kind == "word" and value not in {"a", "i"}
        return initial and not tight and between.strip() in {"", "."}

    def _domain(self, host: int, *, most: int, sign: bool) -> int:
        """Return after which item the domain that begins with one ends, or 0 if it is none.

        Args:
            host: Where it begins.
            most: How many words its first label may have.
            sign: Whether an at sign was before it, so that any ending is one.
        """
        spelled = len(self._value(host)) == len(self._value(host + 1)) == 1
        if most == 1 and not spelled and self._value(host) in _ARTICLES:
            return 0
        label, at = self._label(host, most=most)
        if label in _PROVIDERS and self._value(at) == "com" and self._is_near(at):
            return at + 1
        end = 0
        while at < min(len(self._items), host + _LONGEST_DOMAIN):
            if self._value(at) in {"dotcom", "dotnet", "dotorg"}:
                return at + 1
            after = self._after_dot(at)
            if not self._is_atom(after):
                break
            label, at = self._label(after, most=0)
            if label.split("'")[0] in _ENDS or (sign and len(label) > 1 and label.isalpha()):
                end = at
                if label == "co" and self._value(at) == "uk":
                    end = at = at + 1
        return end

    def _after_dot(self, at: int) -> int:
        """Return the item after a dot that comes next, or -1."""
        between = self._between(at)
        if between == "." or (
            between.strip(_EMAIL_SPACE) == "." and self._value(at) in _COMMON_ENDS
        ):
            return at
        if self._value(at) in _DOTS and self._is_near(at):
            following = at + 1
            return following if following < len(self._items) and self._is_near(following) else -1
        return -1

    def _label(self, at: int, *, most: int) -> tuple[str, int]:
        """Return a label of a domain, its letters joined, and the item after it.

        Args:
            at: Where it begins.
            most: How many words it may have beside those that are spelled or joined by hyphens.
        """
        label = self._value(at)
        letters = len(label) == 1
        if letters and not most:
            for length in (3, 2):
                end = "".join(self._value(place) for place in range(at, at + length))
                if len(end) == length and end in _ENDS:
                    return end, at + length
        words = 1
        stop = at + _LONGEST_DOMAIN
        at += 1
        while at < stop and self._is_atom(at):
            value = self._value(at)
            between = self._between(at)
            if value in _DOTS:
                break
            if value in _HYPHENS:
                at += 1
                label += "-" + self._value(at) if self._is_atom(at) else ""
            elif between in {"", "-", "_"}:
                label += between + value
            elif between.strip(" \u00a0"):
                break
            elif not (letters and len(value) == 1):
                letters = False
                words += 1
                if words > max(most, 2 if len(label) < 4 and most else 0):
                    break
                label += value
            else:
                label += value
            at += 1
        return label, min(at, len(self._items))


# --- What was said before ------------------------------------------------------------------------

_Cue = Literal["card", "phone", "national_id", "other", ""]

_CUES: Final[dict[str, _Cue]] = {
    **dict.fromkeys(
        _set(
            "phone telephone tel cell cellphone mobile landline whatsapp fax callback voicemail dial"
            " call ring text reach sms"
        ),
        "phone",
    ),
    **dict.fromkeys(_set("card visa mastercard amex credit debit maestro"), "card"),
    **dict.fromkeys(
        _set(
            "ssn social nino sin nir dni nie nif cpf bsn burgerservicenummer aadhaar aadhar adhaar"
            " steuer steuernummer steueridentifikationsnummer tin itin taxpayer identity"
            " identification codice fiscale"
        ),
        "national_id",
    ),
    **dict.fromkeys(
        _set(
            "order orders tracking account acct reference ref confirmation booking reservation invoice"
            " ticket serial model sku isbn imei policy claim membership flight zip zipcode postal"
            " postcode transaction receipt shipment parcel package routing iban barcode po purchase"
        ),
        "other",
    ),
}
_CUE_PAIRS: Final[dict[tuple[str, str], _Cue]] = {
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
            for thing in _set(
                "case part item product batch lot job request session device meter customer member"
                " employee user client loyalty file agent patient student version"
            )
            for what in ("number", "id", "code")
        ),
        "other",
    ),
}
# Whose number is said, where "number" alone tells that it is a phone's.
_WHOSE: Final = _set(
    "my your our his her their the is best home work office daytime direct contact"
    " another other new old same good me at on"
)
_ID_OF: Final = _set("my your his her their the an is government photo state citizen personal")
# For how many words a cue counts.
_REACH: Final[dict[_Cue, int]] = {"card": 8, "phone": 8, "national_id": 8, "other": 4, "": 0}
# For how many words it still counts after a number was found: "... or ...".
_LEFT: Final = 2


class _Context:
    """What the words just before a number say about it. Placeholders and numbers are no words."""

    def __init__(self) -> None:
        self._cue: _Cue = ""
        self._age = 0
        self._before = ""

    @property
    def cue(self) -> _Cue:
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


# --- Runs of digits ------------------------------------------------------------------------------

# More digits than these are none of ours, whatever was said before.
_MOST_DIGITS: Final = 24
_FEWEST_DIGITS: Final = 7


def _shapes(text: str) -> frozenset[tuple[int, ...]]:
    return frozenset(tuple(map(int, shape.split("-"))) for shape in text.split())


_NETWORK: Final = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3[0689]\d{12}|3[05689]\d{14}"
    r"|(?:5[0678]|6\d)\d{11,17}"
)
_MISSPOKEN: Final = re.compile(r"(?:4\d|5[1-5]|2[2-7]|6\d|35)\d{14}|3[47]\d{13}")
_COUNTRY: Final = re.compile(
    r"7|20|27|3[0-469]|4[0134-9]|5[1-8]|6[0-6]|8[1246]|9[0-58]|2[1-6]\d|35\d|37\d|38\d|42\d|97\d"
)
_PAUSED: Final = _shapes("3-3-4 1-3-3-4 3-7 1-3-7 3-3-2-2 6-4 3-4-4 4-3-4 5-6 5-3-3 4-3-3")
_TEN: Final = _shapes("10 3-3-4 3-7 6-4 3-3-2-2 3-3-1-3")
# North America and China, Russia, Brazilian mobile numbers.
_ELEVEN_BEGIN: Final = re.compile(r"1[2-9]|[78]|[1-9]{2}9")
_ELEVEN: Final = _shapes("11 1-3-3-4 1-10 1-3-7 4-3-4 3-4-4 2-5-4 2-9 7-4")
_AMERICAN: Final = _shapes("3-3-4 1-3-3-4")
_NATIONWIDE: Final = _shapes("4-3-3 4-6")
_WRITTEN_CARD: Final = _shapes("4-4-4-4 4-6-5")
_Check = Callable[[str], bool]
_CHECKED: Final[dict[int, tuple[tuple[_Check, frozenset[tuple[int, ...]]], ...]]] = {
    9: ((_is_sin, _shapes("3-3-3")),),
    11: ((_is_cpf, _shapes("11 3-3-3-2 9-2")), (_is_steuer_id, _shapes("11 2-3-3-3"))),
    12: ((_is_aadhaar, _shapes("12 4-4-4")),),
    15: ((_is_nir, _shapes("15 13-2 1-2-2-2-3-3-2")),),
}
_LEAD_IN: Final = _FILLERS | _set(
    "and dash hyphen space then it it's its is that that's this my the yes yeah yep sure right here"
    " hi hello please thanks"
)


class _Edge(IntEnum):
    """How sure it is that a number begins or ends at a place of a run."""

    INSIDE = 0
    GROUP = 1
    SURE = 2


@dataclass(slots=True)
class _Stretch:
    """Some neighbours of a run, looked at as one number."""

    digits: str
    shape: tuple[int, ...]
    widest: _Gap
    hyphened: bool
    spoken: bool
    edge: _Edge
    cue: _Cue
    first: bool
    numbers: Sequence[_Item]
    text: str

    @property
    def plus(self) -> bool:
        """Whether this is written as an international number."""
        return self.numbers[0].plus

    @property
    def singly(self) -> bool:
        """Whether this was read out digit by digit for the most part."""
        single = sum(len(number.value) == 1 for number in self.numbers)
        return len(self.shape) == 1 and single * 2 >= len(self.numbers) > 1

    @property
    def code(self) -> bool:
        """Whether letters or a path stick to this."""
        return _is_code(self.text, self.numbers[0].start, self.numbers[-1].end)

    @property
    def paused(self) -> bool:
        """Whether there is a comma or an "and" inside."""
        return self.widest >= _Gap.COMMA

    @property
    def counts(self) -> bool:
        """Whether this counts in equal steps or names years, as no number of a person does."""
        years = len(self.digits) % 4 == 0 and all(
            self.digits[at : at + 2] in {"19", "20"} for at in range(0, len(self.digits), 4)
        )
        if years or len(self.numbers) < 4:
            return years
        if any(len(number.value) > 1 and number.value[0] == "0" for number in self.numbers):
            return False
        counted = [int(number.value) for number in self.numbers]
        steps = [after - before for before, after in pairwise(counted)]
        # Who counts aloud may say a number twice, or start again.
        return any(step and 5 * steps.count(step) >= 4 * len(steps) for step in set(steps))


# A rank tells how strong the evidence is: of the stretches that begin at one number the strongest is
# replaced, and of equals the longest.
# Digits of a card that goes on before or after; many of other lengths would pass by chance.
_CHANCE: Final = frozenset([15, 16])


def _may_be_chance(digits: str) -> bool:
    return len(digits) in _CHANCE and _NETWORK.fullmatch(digits) is not None


def _chance_rank(stretch: _Stretch) -> int:
    return 30 * _luhn(stretch.digits)


def _card_rank(stretch: _Stretch) -> int:
    digits = stretch.digits
    size = len(digits)
    if size < 8 or (size < 16 and stretch.cue == "phone"):
        return 0
    sure = stretch.edge == _Edge.SURE
    if 13 <= size <= 19 and digits[0] != "0" and _luhn(digits) and not stretch.counts:
        return 80 if _NETWORK.fullmatch(digits) else 62 * (sure and stretch.cue != "other")
    read_out = stretch.spoken or (stretch.shape in _WRITTEN_CARD and not stretch.paused)
    if sure and read_out and _MISSPOKEN.fullmatch(digits):
        # One digit said or heard wrong.
        return 66 * (stretch.cue != "other" and not stretch.counts)
    return 55 * (sure and stretch.cue == "card")


def _id_rank(stretch: _Stretch) -> int:
    digits = stretch.digits
    sure = stretch.edge == _Edge.SURE
    if stretch.cue == "phone" or not (sure or stretch.hyphened):
        return 0
    if stretch.shape == (3, 2, 4) and _is_ssn(digits):
        return 75
    if (stretch.spoken or not stretch.paused) and not stretch.code:
        for check, shapes in _CHECKED.get(len(digits), ()):
            if stretch.shape in shapes and check(digits):
                return 65
    return 55 * (sure and stretch.cue == "national_id" and 8 <= len(digits) <= 15)


def _phone_rank(stretch: _Stretch) -> int:
    size = len(stretch.digits)
    other = stretch.cue == "other" and stretch.first
    rank = 0
    if stretch.plus and 8 <= size <= 15:
        rank = 60 if stretch.paused else 90
    elif _is_american(stretch) and (stretch.hyphened or not other):
        rank = 70
    elif stretch.edge < _Edge.SURE or other:
        rank = 0
    elif stretch.cue == "phone" and not stretch.digits.endswith("00000"):
        rank = 45 if stretch.paused or size > 15 else 50
    elif size >= 10 or not stretch.cue:
        rank = 35 * (_is_phone(stretch) and not stretch.counts)
    return rank * (rank > 0 and not stretch.code)


def _is_american(stretch: _Stretch) -> bool:
    """Tell a number written as in North America, whose grouping is evidence enough."""
    digits = stretch.digits
    return (
        stretch.shape in _AMERICAN
        and not stretch.paused
        and digits[-10] > "1"
        and digits[:-10] in {"", "1"}
    )


def _is_phone(stretch: _Stretch) -> bool:
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


def _is_local(stretch: _Stretch) -> bool:
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


def _is_grouped(digits: str, shape: tuple[int, ...]) -> bool:
    if len(digits) == 10:
        return _is_ten(digits, shape)
    if len(digits) == 11:
        return shape in _ELEVEN and _ELEVEN_BEGIN.match(digits) is not None
    # A country code comes first; these are not many small numbers.
    abroad = len(shape) == 1 or (shape[0] <= 3 and max(shape) > 2)
    return abroad and len(digits) in {12, 13} and _COUNTRY.match(digits) is not None


def _is_ten(digits: str, shape: tuple[int, ...]) -> bool:
    if digits[0] == "1":
        return shape in _NATIONWIDE and digits.startswith(("1300", "1800"))
    if shape == (5, 5):
        # Two zip codes of one town begin alike; so do not the halves of an Indian mobile number.
        return digits[0] in "6789" and digits[:2] != digits[5:7]
    return shape in _TEN


class _Found(NamedTuple):
    """Where something of a kind stands in a text."""

    start: int
    end: int
    kind: Kind


class _Run:
    """Numbers that follow each other with nothing but joints between them."""

    def __init__(self, text: str, first: int) -> None:
        self.first = first
        """Which item of the turn begins the run."""
        self.size = 0
        """How many digits there are."""
        self._text = text
        self._numbers: list[_Item] = []
        self._gaps: list[_Gap] = []
        self._loose: list[bool] = []
        self._edges: list[_Edge] = []

    def append(self, number: _Item, gap: _Gap) -> None:
        """Add a number at a distance from the one before."""
        loose = bool(
            self._numbers and gap <= _Gap.FILLER and number.loose and self._numbers[-1].loose
        )
        if not self._numbers or gap >= _Gap.COMMA:
            edge = _Edge.SURE
        else:
            edge = _Edge.INSIDE if loose or gap == _Gap.HYPHEN else _Edge.GROUP
        self._numbers.append(number)
        self._gaps.append(gap)
        self._loose.append(loose)
        self._edges.append(edge)
        self.size += len(number.value)

    def found(self, context: _Context, *, bare: bool) -> Iterator[_Found]:
        """Yield what the run holds, from left to right. O(numbers)."""
        first = 0
        edge = _Edge.SURE
        left = self.size
        while left >= _FEWEST_DIGITS:
            last, kind = self._strongest(first, edge, context.cue, bare=bare)
            if kind is None:
                last = first
            else:
                yield self._place(first, last, kind)
                context.spend()
            left -= sum(len(number.value) for number in self._numbers[first : last + 1])
            first = last + 1
            edge = self._edge(first) if kind is None else _Edge.SURE

    def _edge(self, at: int) -> _Edge:
        """Return how sure a number begins, or one before it ends, at a place."""
        return self._edges[at] if at < len(self._edges) else _Edge.SURE

    def _strongest(
        self, first: int, begins: _Edge, cue: _Cue, *, bare: bool
    ) -> tuple[int, Kind | None]:
        """Return where the best-evidenced number that begins at a place ends, and its kind."""
        best, best_last, best_kind = 0, -1, None
        for last, stretch in self._stretches(first, begins, cue):
            for rank, kind in _ranks(stretch, bare=bare):
                if rank and rank >= best:
                    best, best_last, best_kind = rank, last, kind
        return best_last, best_kind

    def _stretches(self, first: int, begins: _Edge, cue: _Cue) -> Iterator[tuple[int, _Stretch]]:
        """Yield what begins at a place and is neither too short nor too long, and where it ends."""
        most = _MOST_DIGITS if begins > _Edge.INSIDE else max(_CHANCE)
        digits = ""
        shape: list[int] = []
        widest, closest = _Gap.SPACE, _Gap.BREAK
        spoken = True
        for last in range(first, len(self._numbers)):
            number = self._numbers[last]
            digits += number.value
            if len(digits) > most:
                return
            spoken = spoken and number.loose
            if last > first:
                widest, closest = max(widest, self._gaps[last]), min(closest, self._gaps[last])
            if last > first and self._loose[last]:
                shape[-1] += len(number.value)
            else:
                shape.append(len(number.value))
            if len(digits) < _FEWEST_DIGITS:
                continue
            edge = min(begins, self._edge(last + 1))
            if edge == _Edge.INSIDE and not _may_be_chance(digits):
                continue
            yield (
                last,
                _Stretch(
                    digits=digits,
                    shape=tuple(shape),
                    widest=widest,
                    hyphened=widest == closest == _Gap.HYPHEN,
                    spoken=spoken,
                    edge=edge,
                    cue=cue,
                    first=first == 0,
                    numbers=self._numbers[first : last + 1],
                    text=self._text,
                ),
            )

    def _place(self, first: int, last: int, kind: Kind) -> _Found:
        start, end = self._numbers[first].start, self._numbers[last].end
        if start and self._text[start - 1] == "(" and ")" in self._text[start:end]:
            start -= 1
        return _Found(start, end, kind)


def _ranks(stretch: _Stretch, *, bare: bool) -> list[tuple[int, Kind]]:
    if stretch.edge == _Edge.INSIDE:
        return [(_chance_rank(stretch), "card")]
    ranks: list[tuple[int, Kind]] = [
        (_phone_rank(stretch), "phone"),
        (_id_rank(stretch), "national_id"),
        (_card_rank(stretch), "card"),
    ]
    if bare and len(stretch.digits) == 9 and stretch.shape != (5, 4):
        ranks.append((20 * (_is_ssn(stretch.digits) and not stretch.counts), "national_id"))
    return ranks


def _is_code(text: str, start: int, end: int) -> bool:
    """Whether letters or a path stick to a number, as in "ABC-1234567" or "/items/1234567"."""
    before = text[max(0, start - 2) : start]
    after = text[end : end + 2]
    if before and (before[-1].isalpha() or before[-1] in "_/=&#@"):
        return True
    if before == "# " or (len(before) == 2 and before[0].isalpha() and before[1] in _DASHES):
        return True
    if after and (after[0].isalpha() or after[0] == "_"):
        return after[0] not in "xX"
    return len(after) == 2 and after[0] in _DASHES and after[1].isalpha()


def _runs(text: str, items: Sequence[_Item]) -> Iterator[_Run]:
    """Yield each run of numbers of a turn."""
    run: _Run | None = None
    gap = _Gap.BREAK
    for at, item in enumerate(items):
        if item.kind == "number":
            gap = max(gap, item.gap)
            if run is None or gap == _Gap.BREAK or item.plus:
                if run is not None:
                    yield run
                run = _Run(text, at)
            run.append(item, gap)
            gap = _Gap.SPACE
        elif run is not None:
            gap = max(gap, item.gap, _BRIDGES.get(item.value, _Gap.BREAK))
            if gap == _Gap.BREAK:
                yield run
                run = None
    if run is not None:
        yield run


def _numbers(text: str, items: Sequence[_Item]) -> Iterator[_Found]:
    """Yield the cards, phones and ids among the numbers of a turn, in order."""
    context = _Context()
    heard = 0
    for run in _runs(text, items):
        if run.size >= _FEWEST_DIGITS:
            for item in items[heard : run.first]:
                if item.kind == "mark":
                    context.spend()
                elif item.kind == "word" and item.value not in _BRIDGES:
                    context.hear(item.value)
            heard = run.first
            yield from run.found(context, bare=_is_bare(items))


def _is_bare(items: Sequence[_Item]) -> bool:
    """Whether a turn says nine digits and nothing else, as the answer to a question does."""
    digits = 0
    for item in items:
        if item.kind == "number":
            digits += len(item.value)
        elif item.kind != "word" or item.value not in _LEAD_IN:
            return False
    return digits == 9


# --- The whole -----------------------------------------------------------------------------------


def _has_numbers(words: Sequence[str]) -> bool:
    """Whether a text may have six digits in it."""
    if _NUMERIC.isdisjoint(words) and not any(map(str.isdecimal, words)):
        return False
    return sum(_WEIGHTS.get(word, 0) or word.isdecimal() for word in words) > 5


def _has_address(text: str, words: Sequence[str]) -> bool:
    sign = "@" in text or "\uff20" in text or "at" in words
    return sign and (not _DOTTED.isdisjoint(words) or _FULL_STOP.search(text) is not None)


def _marked(
    items: Sequence[_Item], spans: Iterator[tuple[int, int]], kind: Kind, found: list[_Found]
) -> list[_Item]:
    """Return the items with one mark in place of each span, and note where the spans were."""
    left: list[_Item] = []
    done = 0
    for first, after in spans:
        left += items[done:first]
        start, end = items[first].start, items[after - 1].end
        found.append(_Found(start, end, kind))
        left.append(_Item(start, end, "mark", "", items[first].gap))
        done = after
    left += items[done:]
    return left


def _find(text: str, kinds: frozenset[Kind]) -> list[_Found]:
    words = _WORD_OR_DIGIT.findall(text.lower())
    email = "email" in kinds and _has_address(text, words)
    number = _has_numbers(words)
    if not (email or number):
        return []
    found: list[_Found] = []
    items = _Reader(text).items()
    if email:
        items = _marked(items, _Mails(text, items).found(), "email", found)
    if number:
        if "national_id" in kinds:
            items = _marked(items, _codes(text, items), "national_id", found)
        found += (each for each in _numbers(text, items) if each.kind in kinds)
    return sorted(found)


@dataclass(frozen=True, slots=True, repr=False)
class PiiRedactor:
    """Replaces what names a person in a turn: card numbers, e-mail addresses, phone and id numbers.

    ```python
    redact = PiiRedactor(("card", "phone"))
    redact("it's four one five, five five five, two six seven one")  # "it's [phone number]"
    ```

    Numbers and addresses are found as they are typed and as they are spoken in English ("4242 uh
    4242", "double four", "j dot smith at gmail dot com"). What counts as evidence:

    - **card**: 13 to 19 digits that pass the Luhn check; 16 digits that fail it (15 of an American
      Express card) but begin as a card does and are grouped as on a card or read out one by one, since
      callers misspeak and recognisers mishear; 8 or more digits after "card".
    - **email**: an at sign, written or said. A plain "at" counts where the domain is a mail
      provider's, where the name is more than words, or where an address was announced; nobody's
      address is in "I bought it at example dot com".
    - **phone**: ten to fifteen digits in a plausible grouping, fewer after a plus sign; seven as
      "555-2671", or in any grouping after "phone", "call me", "my number" and the like.
    - **national_id**: a grouping or a check digit that few other numbers have (US SSN, Canadian SIN,
      UK National Insurance, Spanish DNI and NIE, German tax id, Indian Aadhaar, Brazilian CPF, French
      NIR, Italian codice fiscale); 8 to 15 digits after "social security", "id number" and the like;
      nine digits that a turn says and nothing else, as one answers. The last four digits stay.

    Prices, dates, times, years, zip codes, counting and shorter numbers stay. Of numbers announced as
    an order, a flight, an account and the like only those are replaced that pass for a card or an id.

    Not found: numbers said over two turns or in words of another language, words that sound like a
    digit ("for"), names and postal addresses, the expiry date and security code of a card.

    Thread-safe. Redacting twice changes nothing more. A turn of 30 words takes about 10 us, one that
    holds several numbers 0.15 ms; linear in the length.

    Attributes:
        kinds: What is replaced: any of "card", "email", "phone", "national_id".

    Raises:
        InvalidArgumentError: If `kinds` is empty or names another kind.
    """

    kinds: Collection[Kind] = _KINDS

    def __post_init__(self) -> None:
        if isinstance(self.kinds, str) or not isinstance(self.kinds, Collection):
            raise InvalidArgumentError(
                f"kinds must be a collection of {', '.join(_KINDS)}; got {type(self.kinds).__name__}"
            )
        unknown = [kind for kind in self.kinds if kind not in _KINDS]
        if unknown or not self.kinds:
            raise InvalidArgumentError(
                f"kinds must be some of {', '.join(_KINDS)}; got {unknown or 'none'}"
            )
        object.__setattr__(self, "kinds", frozenset(self.kinds))

    def __repr__(self) -> str:
        return f"<PiiRedactor {', '.join(kind for kind in _KINDS if kind in self.kinds)}>"

    def __call__(self, text: str) -> str:
        """Return a turn with a placeholder in place of each number and address found.

        Args:
            text: A turn, as typed or as a recogniser wrote it.

        Returns:
            The text, itself where nothing was found; placeholders are `[card number]`, `[email]`,
            `[phone number]` and `[id number]`.
        """
        kinds = frozenset(self.kinds)
        # What is left beside a placeholder is judged again, by itself.
        while found := _find(text, kinds):
            text = _replaced(text, found)
        return text


def _replaced(text: str, found: Sequence[_Found]) -> str:
    parts = []
    done = 0
    for start, end, kind in found:
        parts += [text[done:start], _PLACEHOLDERS[kind]]
        done = end
    return "".join([*parts, text[done:]])


redact_pii: Final = PiiRedactor()
"""The redactor of every kind."""
