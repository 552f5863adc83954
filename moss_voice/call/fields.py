"""Which metadata fields name the things that passages are about.

The law: a name's own words are in the passages about it and hardly in any other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

from moss_voice.call.ordinary import ORDINARY
from moss_voice.call.spelling import SILENT, spell
from moss_voice.text import words as words_of
from moss_voice.types import Metadata

__all__ = ["name_fields"]

# Documents looked at, spread over all: tens of milliseconds.
_SAMPLE: Final = 1500
_FEWEST_NAMES: Final = 5
_MOST_WORDS: Final = 6
# The least share of values that look like a name: short, without punctuation, in capitals.
_NAMELIKE: Final = 0.7
# The least share of values with a word that is not said of anything: .84 and .79 in two sets of
# business names.
_DISTINCTIVE: Final = 0.6
# The least share of passages that hold such words of their own value, and how many times as often as
# they hold those of another value. Business names reach 58 times and more, support titles 6.
_OWN: Final = 0.05
_TIMES_OTHERS: Final = 20
_OTHERS: Final = (1, 7, 31, 101)
_NO_NAME: Final = frozenset("_?\\<>{}[]@=|;:")


class _Document(Protocol):
    @property
    def text(self) -> str: ...
    @property
    def metadata(self) -> Metadata | None: ...


def name_fields(documents: Iterable[_Document]) -> list[str]:
    """Return the metadata fields that hold names, the most convincing first.

    Ids, categories, labels, speakers and titles are none: names are several, short, written like names,
    hold words that are not said of anything, and those words are in the passages of that value.

    Args:
        documents: All of an index, in any order. Some 1,500 are looked at.
    """
    every = list(documents)
    sample = every[:: max(1, len(every) // _SAMPLE)]
    texts = [frozenset(spell(words_of(doc.text))) for doc in sample]
    rows: dict[str, list[tuple[int, str]]] = {}
    other: Counter[str] = Counter()
    for row, doc in enumerate(sample):
        for field, value in (doc.metadata or {}).items():
            if isinstance(value, str) and value.strip():
                rows.setdefault(field, []).append((row, value))
            else:
                other[field] += 1
    scores = {
        field: _convincing(of_field, texts)
        for field, of_field in rows.items()
        if other[field] * 10 <= len(of_field)
    }
    return sorted((field for field, score in scores.items() if score), key=lambda f: -scores[f])


def _convincing(rows: Sequence[tuple[int, str]], texts: Sequence[frozenset[str]]) -> float:
    """Return the share of passages that hold the telling words of their own value, 0 if these are no names."""
    values = {value for _, value in rows}
    telling = {value: _telling(value) for value in values if _is_namelike(value)}
    if (
        len(values) < _FEWEST_NAMES
        or len(telling) < _NAMELIKE * len(values)
        or sum(map(bool, telling.values())) < _DISTINCTIVE * len(values)
    ):
        return 0.0
    own = _held(rows, telling, texts, 0)
    others = sum(_held(rows, telling, texts, ahead) for ahead in _OTHERS) / len(_OTHERS)
    return own if own >= _OWN and own >= _TIMES_OTHERS * others else 0.0


def _held(
    rows: Sequence[tuple[int, str]],
    telling: Mapping[str, frozenset[str]],
    texts: Sequence[frozenset[str]],
    ahead: int,
) -> float:
    """Return the share of passages that hold the telling words of the value so many rows ahead of theirs."""
    tried = held = 0
    for at, (row, own) in enumerate(rows):
        value = rows[(at + ahead) % len(rows)][1]
        if not ahead or value != own:
            tried += 1
            words = telling.get(value, frozenset())
            held += bool(words) and words <= texts[row]
    return held / max(tried, 1)


def _telling(value: str) -> frozenset[str]:
    """Return the words of a value that are not said of anything."""
    return frozenset(
        token for token in spell(words_of(value)) if len(token) > 1 and token not in ORDINARY
    )


def _is_namelike(value: str) -> bool:
    if not _NO_NAME.isdisjoint(value) or sum(map(str.isdigit, value)) * 2 > len(value):
        return False
    words = [word for word in value.split() if word[0].isalpha() and word.lower() not in SILENT]
    lower = sum(word[0].islower() for word in words)
    return 0 < len(words) <= _MOST_WORDS and lower * 2 < len(words)
