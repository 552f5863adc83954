"""E-mail addresses: "j.smith@example.com", "j dot smith at example dot com".

The law: an address has an at sign, written or said, between a name and a domain. A plain "at" is one
only where something else speaks for an address, since people are at places and buy at shops.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final, Literal

from moss_voice.redaction.lexing import DIGITS, FILLERS, Gap, Item, gap_of, word_set

__all__ = ["addresses", "may_hold_address"]

_DOTS: Final = word_set("dot period point")
_HYPHENS: Final = word_set("dash hyphen minus underscore")
_JOINERS: Final = _DOTS | _HYPHENS | {"plus"}
_WRITING: Final = word_set(
    "email emails emailed e-mail mail mails mailed address addresses write contact reach send message"
    " forward cc"
)
# Before an "at" these announce an address.
_CUES: Final = _WRITING | {"gmail"}
_PROVIDERS: Final = word_set(
    "gmail googlemail yahoo ymail hotmail outlook live msn icloud aol proton protonmail gmx zoho"
    " fastmail comcast verizon att sbcglobal btinternet mailinator hey"
)
_COMMON_ENDS: Final = word_set("com net org co edu gov")
_ENDS: Final = _COMMON_ENDS | word_set(
    "io ai app dev me info biz mil int xyz online tech cloud uk de fr es it nl eu us ca au in tv ch"
    " at be br jp cn ie nz za se no dk fi pl pt mx ar cl gg ru ua tr gr cz hu ro sg hk kr il ae pk"
)
# A dot and an ending in one word.
_DOTTED_ENDS: Final = word_set("dotcom dotnet dotorg")
# No name before "at" and no part of one: the sentence goes on without an address.
_NO_NAMES: Final = _WRITING | word_set(
    "a an the and or but if so as of at by for from in into on onto to with about than then"
    " i i'm i'd i've i'll me my mine you your yours he him his she her hers it its it's we us our they"
    " them their this that that's these those there here there's where what who when which how"
    " is are was were be been am do does did done have has had will would can could shall should may"
    " might must not no yes yeah yep ok okay sure right just also now still only please thanks"
    " uh uhh um umm er erm ah hmm mm like well"
    " account name username sent reply get got give gave use using type enter"
    " look looks looking looked meet meeting meets met work works working worked find found see saw"
    " visit check sign signed log logged go going went come comes order ordered shop buy bought book"
    " booked stay staying live living available arrive up out down over back again everything all"
    " call calls phone text website site page online store dot"
)
# How a name is spelled, said after it; "one" was read as a number.
_REMARKS: Final = tuple(
    tuple(remark.split())
    for remark in (
        "all 1 word",
        "1 word",
        "all lowercase",
        "all lower case",
        "lowercase",
        "lower case",
        "no spaces",
        "no caps",
        "all together",
    )
)
_ARTICLES: Final = word_set("a an the my your our this that")
_POINTING: Final = word_set("is it's its it to that's as be was yes yeah sure okay ok uh um so and")
# The kinds of items that names and domains are made of.
_ATOMS: Final = DIGITS | {"word"}
_SPACE: Final = " \t\n\r\u00a0()[]{}<>,"
_TIGHT: Final = frozenset(["", ".", "_", "-", "+", "'", "%", "&", "._", "__", "--"])
# In items; no address has more, and a search that ends keeps the whole linear.
_LONGEST_LOCAL: Final = 40
_LONGEST_DOMAIN: Final = 24

_DOTTED: Final = _DOTS | _COMMON_ENDS | _DOTTED_ENDS
_FULL_STOP: Final = re.compile(r"\.\w")


def may_hold_address(text: str, words: Sequence[str]) -> bool:
    """Whether a text may hold an address: most turns do not.

    Args:
        text: The turn.
        words: Its words in lower case.
    """
    sign = "@" in text or "\uff20" in text or "at" in words
    return sign and (not _DOTTED.isdisjoint(words) or _FULL_STOP.search(text) is not None)


def addresses(text: str, items: Sequence[Item]) -> Iterator[tuple[int, int]]:
    """Yield the items, from and to, of each address in order. O(items)."""
    return _Mails(text, items).found()


class _Mails:
    """Reads to both sides of each at sign of a turn."""

    def __init__(self, text: str, items: Sequence[Item]) -> None:
        self._text = text
        self._items = items

    def found(self) -> Iterator[tuple[int, int]]:
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
        return not self._between(at).strip(_SPACE)

    def _follows_name(self, at: int) -> bool:
        """Whether an at sign comes right after a name; a letter may have a full stop."""
        return self._is_near(at) or (self._between(at) == ". " and self._is_short(at - 1))

    def _value(self, at: int) -> str:
        return self._items[at].value if 0 <= at < len(self._items) else ""

    def _is_atom(self, at: int) -> bool:
        if not 0 <= at < len(self._items):
            return False
        return self._items[at].kind in _ATOMS

    def _is_short(self, at: int) -> bool:
        """Whether an item is a letter or a number, as in a name that is spelled."""
        item = self._items[at]
        return item.kind in DIGITS or len(item.value) == 1

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
        cued = not _CUES.isdisjoint(item.value for item in self._items[max(floor, at - 12) : at])
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
        return self._items[start].gap >= Gap.COMMA

    # --- The name ---

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
        if value in FILLERS and not tight:
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
            return (letters or not tight) and gap_of(between) <= Gap.COMMA
        initial = self._items[place].kind == "word" and value not in {"a", "i"}
        return initial and not tight and between.strip() in {"", "."}

    # --- The domain ---

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
            if self._value(at) in _DOTTED_ENDS:
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
        if between == "." or (between.strip(_SPACE) == "." and self._value(at) in _COMMON_ENDS):
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
            else:
                if not (letters and len(value) == 1):
                    letters = False
                    words += 1
                    if words > max(most, 2 if len(label) < 4 and most else 0):
                        break
                label += value
            at += 1
        return label, min(at, len(self._items))
