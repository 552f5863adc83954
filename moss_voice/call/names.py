"""The names that a knowledge index knows, found in what a recogniser wrote.

The law: a name said in full is always found; a part of one, or what only sounds like it, is found where
it can hardly mean anything else, and says how certain that is.

Pure and without locks; a `Names` never changes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import Final, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from moss_voice.call.ordinary import ORDINARY
from moss_voice.call.sounds import SILENT, silences, spans, spell
from moss_voice.text import words as words_of

__all__ = ["Named", "Names"]

I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
Rows = TypeVar("Rows")

# The most words of a turn that can be one name, and of a name that can be a part said for it.
_NAME_WORDS: Final = 10
_PART_WORDS: Final = 3
# A part that more names share names none of them.
_SHARED: Final = 3
_ARTICLES: Final = frozenset(("the", "a", "an"))


class Named(NamedTuple):
    """A value that was named.

    Attributes:
        value: As it was given.
        certainty: How likely it was meant, in (0, 1]: 1 where its own words were said in full.
        how: What was said of it.
    """

    value: str
    certainty: float
    how: Literal["exact", "partial", "sound"]


class _Span(NamedTuple):
    start: int
    stop: int
    ids: tuple[int, ...]


class _Table:
    """Which names have a spelling, looked up for all spans of a turn at once.

    Spellings are kept as their hashes: 12 bytes each, where a dict of strings takes 200. Two of a
    million spellings have the same 64-bit hash once in 40 million indexes.
    """

    def __init__(self, spellings: Sequence[int], ids: Sequence[int], *, most: int) -> None:
        keys = np.array(spellings, np.int64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        self._keys, starts, counts = np.unique(keys, return_index=True, return_counts=True)
        self._starts = starts.astype(np.int32)
        self._counts = counts.astype(np.int32)
        self._ids: I32 = np.array(ids, np.int32)[order]
        del most

    def find(self, spellings: I64) -> list[tuple[int, tuple[int, ...]]]:
        """Return the positions of the spellings that names have, with the names."""
        if not len(self._keys):
            return []
        at = np.searchsorted(self._keys, spellings)
        at[at == len(self._keys)] = 0
        hits = np.flatnonzero(self._keys[at] == spellings)
        found = []
        for hit, row in zip(hits.tolist(), at[hits].tolist(), strict=True):
            start, count = int(self._starts[row]), int(self._counts[row])
            found.append((hit, tuple(self._ids[start : start + count].tolist())))
        return found


def _never(_: str) -> bool:
    return False


class Names(Generic[Rows]):
    """The names that one metadata field of a knowledge index knows, found in spoken words.

    Args:
        groups: Each value of the field, and whatever the caller wants back for it: its rows.
        common: Tells whether a word is said of many things, so that it alone cannot name one.
    """

    def __init__(
        self, groups: Mapping[str, Rows], *, common: Callable[[str], bool] = _never
    ) -> None:
        self._groups = dict(groups)
        self._values = list(self._groups)
        self._common = common
        wholes: list[int] = []
        whole_ids: list[int] = []
        parts: list[int] = []
        part_ids: list[int] = []
        for id_, value in enumerate(self._values):
            tokens = _tokens(value)
            if not tokens:
                continue
            wholes.append(hash("".join(tokens)))
            whole_ids.append(id_)
            own = {
                "".join(tokens[start : start + length])
                for length in range(1, min(len(tokens) - 1, _PART_WORDS) + 1)
                for start in range(len(tokens) - length + 1)
            }
            parts.extend(map(hash, own))
            part_ids.extend([id_] * len(own))
        self._wholes = _Table(wholes, whole_ids, most=len(self._values))
        self._parts = _Table(parts, part_ids, most=_SHARED)

    def __len__(self) -> int:
        return len(self._groups)

    def __repr__(self) -> str:
        return f"<Names {len(self)} values>"

    def rows(self, value: str) -> Rows:
        """Return what was given for a value.

        Raises:
            KeyError: If the field has no such value.
        """
        return self._groups[value]

    def find(self, words: Sequence[str]) -> list[Named]:
        """Return the values named in a turn, the most certain first, then as spoken; each once.

        A word counts for the longest name that it is in: `Astoria Grand Hotel` does not name the
        `Grand Hotel`. Values with the same words are all named.

        Args:
            words: The turn's words, by `moss_voice.text.words`.
        """
        said = list(spans(words, most=_NAME_WORDS))
        if not said:
            return []
        hashes = np.fromiter((hash(spelling) for _, _, spelling in said), np.int64, len(said))
        taken = [False] * len(words)
        found: dict[int, Named] = {}
        for span in self._free(said, self._wholes.find(hashes), taken):
            for id_ in self._closest(span, words):
                found.setdefault(id_, Named(self._values[id_], 1.0, "exact"))
        scored: dict[int, list[tuple[float, int]]] = {}
        parts = []
        for at, ids in self._parts.find(hashes):
            meant = self._meant(said[at], words, ids)
            if meant:
                scored[at] = meant
                parts.append((at, tuple(id_ for _, id_ in meant)))
        sure = {(said[at][0], id_): certainty for at, meant in scored.items() for certainty, id_ in meant}
        for span in self._free(said, parts, taken):
            for id_ in span.ids:
                if id_ not in found:
                    found[id_] = Named(self._values[id_], max(c for (st, i), c in sure.items() if i == id_), "partial")
        return list(found.values())

    def _free(
        self,
        said: Sequence[tuple[int, int, str]],
        hits: Sequence[tuple[int, tuple[int, ...]]],
        taken: list[bool],
    ) -> list[_Span]:
        """Take the longest spans first, then from the left, using each word once."""
        kept = []
        spans_ = (_Span(said[at][0], said[at][1], ids) for at, ids in hits)
        for span in sorted(spans_, key=lambda span: (span.start - span.stop, span.start)):
            if not any(taken[span.start : span.stop]):
                taken[span.start : span.stop] = [True] * (span.stop - span.start)
                kept.append(span)
        return kept

    def _closest(self, span: _Span, words: Sequence[str]) -> Sequence[int]:
        """Of values that are spelled alike, return those whose very words were said, if any were."""
        if len(span.ids) == 1:
            return span.ids
        own = [id_ for id_ in span.ids if words_of(self._values[id_]) == [*words[span.start : span.stop]]]
        return own or span.ids

    def _meant(self, span: tuple[int, int, str], words: Sequence[str], ids: Sequence[int]) -> list[tuple[float, int]]:
        start, stop, spelling = span
        if len(ids) > SHARED or len(spelling) < 4:
            return []
        if stop < len(words) and words[stop] in THROUGHFARE:
            return []
        scored = []
        for id_ in ids:
            tokens = _tokens(self._values[id_])
            weights = [0.15 if self._ordinary(token) else 1.0 for token in tokens]
            for length, first in ((n, k) for n in range(1, _PART_WORDS + 1) for k in range(len(tokens) - n + 1)):
                if "".join(tokens[first:first + length]) == spelling:
                    part = sum(weights[first:first + length])
                    if part >= 1.0:
                        rest = set(tokens) & set(words) - set(words[start:stop])
                        scored.append((part / sum(weights) , len(rest), id_))
        if not scored: return []
        best = max(n for _, n, _ in scored)
        scored = [(c, i) for c, n, i in scored if n == best]
        return [(c / len(scored), i) for c, i in scored if c > COVER]

    def _ordinary(self, token: str) -> bool:
        return token in ORDINARY or self._common(token)


COVER = 0.0
SHARED = 3
THROUGHFARE = frozenset("street avenue road boulevard lane drive way highway st ave square valley district height heights area county".split())


def _tokens(value: str) -> list[str]:
    """Return the words that make a name, in their one spelling: no article first, no joints inside."""
    words = words_of(value)
    while len(words) > 1 and words[0] in _ARTICLES and words[1] != "and" and len(words[1]) > 1:
        del words[0]
    silent = silences(words)
    last = len(words) - 1
    return [
        token
        for at, token in enumerate(spell(words))
        if token and (at in (0, last) or not silent[at])
    ]
