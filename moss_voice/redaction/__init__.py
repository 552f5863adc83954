"""Numbers and addresses that name a person, replaced before a turn is embedded, journaled or pushed.

The law: what is replaced is found where it was said, as people type it ("415-555-2671") and as speech
recognisers write it ("four one five, five five five, two six seven one"); every other character stays.

A turn is read in one pass into words and numbers (`lexing`, `numerals`). First the addresses (`emails`)
and the ids with letters (`lettered_ids`) are taken out of it. Of the other numbers those that follow
each other make a run, and each stretch of a run (`runs`, `stretches`) is judged by its digits, by how
they are grouped, by a check digit where there is one (`checks`), and by what was said just before
(`cues`): as a card (`cards`), a phone (`phones`) or an id (`national_ids`), whichever has the strongest
evidence (`evidence`). Nothing is learnt and nothing is remembered between turns, so that a number said
in two turns is judged by halves.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from moss_voice.errors import InvalidArgumentError
from moss_voice.redaction.emails import addresses, may_hold_address
from moss_voice.redaction.kinds import KINDS, PLACEHOLDERS, Found, Kind
from moss_voice.redaction.lettered_ids import spelled_ids
from moss_voice.redaction.lexing import Item
from moss_voice.redaction.numerals import may_hold_numbers, read
from moss_voice.redaction.runs import numbers

__all__ = ["Kind", "PiiRedactor", "Redactor", "redact_pii"]

Redactor = Callable[[str], str]
"""Takes a turn as it was said and returns what may be kept of it.

It may be called from several threads at once, once for each turn.
"""


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

    kinds: Collection[Kind] = KINDS

    def __post_init__(self) -> None:
        if isinstance(self.kinds, str) or not isinstance(self.kinds, Collection):
            raise InvalidArgumentError(
                f"kinds must be a collection of {', '.join(KINDS)}; got {type(self.kinds).__name__}"
            )
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown or not self.kinds:
            raise InvalidArgumentError(
                f"kinds must be some of {', '.join(KINDS)}; got {unknown or 'none'}"
            )
        object.__setattr__(self, "kinds", frozenset(self.kinds))

    def __repr__(self) -> str:
        return f"<PiiRedactor {', '.join(kind for kind in KINDS if kind in self.kinds)}>"

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


redact_pii: Final = PiiRedactor()
"""The redactor of every kind."""


_WORD_OR_DIGIT: Final = re.compile(r"\d|[^\W\d_]+")


def _find(text: str, kinds: frozenset[Kind]) -> list[Found]:
    words = _WORD_OR_DIGIT.findall(text.lower())
    email = "email" in kinds and may_hold_address(text, words)
    number = may_hold_numbers(words)
    if not (email or number):
        return []
    found: list[Found] = []
    items = read(text)
    if email:
        items = _marked(items, addresses(text, items), "email", found)
    if number:
        if "national_id" in kinds:
            items = _marked(items, spelled_ids(text, items), "national_id", found)
        found += (each for each in numbers(text, items) if each.kind in kinds)
    return sorted(found)


def _marked(
    items: list[Item], spans: Iterator[tuple[int, int]], kind: Kind, found: list[Found]
) -> list[Item]:
    """Return the items with one mark in place of each span, and note where the spans were."""
    left: list[Item] = []
    done = 0
    for first, after in spans:
        left += items[done:first]
        start, end = items[first].start, items[after - 1].end
        found.append(Found(start, end, kind))
        left.append(Item(start, end, "mark", "", items[first].gap))
        done = after
    left += items[done:]
    return left


def _replaced(text: str, found: Sequence[Found]) -> str:
    parts = []
    done = 0
    for start, end, kind in found:
        parts += [text[done:start], PLACEHOLDERS[kind]]
        done = end
    return "".join([*parts, text[done:]])
