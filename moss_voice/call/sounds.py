"""The known words that an unknown one may stand for: misspelled by one letter, or sounding the same.

The law: a word is put right only to one that nearly all of its letters spell. Pure; a `Lexicon` never
changes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

__all__ = ["Lexicon", "Table", "closeness", "sound"]

I64 = npt.NDArray[np.int64]

# Shorter words have too many neighbours.
SHORTEST: Final = 4
CLOSE: Final = 0.6
_CACHED_WORDS: Final = 1 << 14

# Letters that sound as one, to the class of the consonant that is heard.
_GROUPS: Final = (
    (re.compile(r"^[kg]n"), "N"),
    (re.compile(r"^wr"), "R"),
    (re.compile(r"ph"), "F"),
    (re.compile(r"tch|[cs]h|[tcs]i(?=[ao])|j|dg(?=[eiy])|g(?=[eiy])"), "X"),
    (re.compile(r"s?c(?=[eiy])"), "S"),
    (re.compile(r"gh"), ""),
)
# Voiced and unvoiced are one; vowels, h, w and y say nothing.
_CLASSES: Final = str.maketrans(
    dict(zip("ckqgbpdtfvszlmnr", "KKKKPPTTFFSSLMNR", strict=True))
    | {"x": "KS"}
    | dict.fromkeys("aeiouhwyj", "")
)
# A t between consonants is not heard ("Leopold's"), nor one consonant twice.
_UNHEARD: Final = re.compile(r"(?<=[LNRSFK])T(?=[SKPFXMNL])|(.)(?=\1)")


@lru_cache(_CACHED_WORDS)
def sound(word: str) -> str:
    """Return the consonants that are heard in a word, voiced and unvoiced alike: its sound."""
    for letters, heard in _GROUPS:
        word = letters.sub(heard, word)
    return _UNHEARD.sub("", word.translate(_CLASSES))


def closeness(one: str, other: str) -> float:
    """Return the share of letters that two words have in common in order, in [0, 1].

    That is 1 - d / n with d the edit distance, two letters changing places being one edit, and n the
    longer one's length. O(letters squared), less what they begin and end with in common.
    """
    longest = max(len(one), len(other), 1)
    while one and other and one[0] == other[0]:
        one, other = one[1:], other[1:]
    while one and other and one[-1] == other[-1]:
        one, other = one[:-1], other[:-1]
    before: list[int] = []
    row = list(range(len(other) + 1))
    for i, a in enumerate(one):
        above, before, row = before, row, [i + 1]
        for j, b in enumerate(other):
            cost = min(before[j] + (a != b), before[j + 1] + 1, row[j] + 1)
            if i and j and a == other[j - 1] and b == one[i - 1]:
                cost = min(cost, above[j - 1] + 1)
            row.append(cost)
    return 1 - row[-1] / longest


class Table:
    """Which things have a key, looked up for many keys at once.

    Keys are kept as their hashes: some 24 bytes each, where a dict of strings takes 200. A million keys have
    a pair of equal 64-bit hashes once in 40 million tables.

    Args:
        hashes: The hash of each key, with repeats.
        ids: What has that key.
    """

    def __init__(self, hashes: Sequence[int], ids: Sequence[int]) -> None:
        keys = np.array(hashes, np.int64)
        order = np.argsort(keys, kind="stable")
        self._keys, starts = np.unique(keys[order], return_index=True)
        self._starts = np.append(starts, len(keys)).astype(np.int32)
        self._ids = np.array(ids, np.int32)[order]
        # Nearly all that is asked after is unknown: one look tells, where a search takes twenty.
        self._mask = (4 << len(self._keys).bit_length()) - 1
        self._maybe = np.zeros(self._mask + 1, np.bool_)
        self._maybe[self._keys & self._mask] = True

    def find(self, hashes: I64, *, most: int) -> list[tuple[int, list[int]]]:
        """Return the positions of the hashes that are known, with what has them if at most so many."""
        maybe = np.flatnonzero(self._maybe[hashes & self._mask])
        found = []
        for hit, row in zip(
            maybe.tolist(), self._keys.searchsorted(hashes[maybe]).tolist(), strict=True
        ):
            if row < len(self._keys) and self._keys[row] == hashes[hit]:
                start, stop = int(self._starts[row]), int(self._starts[row + 1])
                if stop - start <= most:
                    found.append((hit, self._ids[start:stop].tolist()))
        return found


class Lexicon:
    """Words, found by their spelling with one letter wrong or by their sound.

    Args:
        words: Spelled by `moss_voice.call.spelling.spell`.
        heard: Those of them that can be meant by what only sounds like them.
    """

    # A sound that more words share tells none of them.
    _MOST: Final = 12

    def __init__(self, words: Iterable[str], heard: Iterable[str]) -> None:
        self._words = [word for word in words if len(word) >= SHORTEST and word.isalpha()]
        self._heard = frozenset(heard)
        hashes: list[int] = []
        ids: list[int] = []
        for id_, word in enumerate(self._words):
            keys = list(map(hash, _deletions(word)))
            if word in self._heard and len(sound(word)) > 1:
                keys.append(hash((sound(word),)))
            hashes += keys
            ids += [id_] * len(keys)
        self._table = Table(hashes, ids)

    def near(self, words: Sequence[str]) -> list[list[tuple[float, str]]]:
        """Return for each word the known words that it may stand for and how close they are, closest first."""
        hashes: list[int] = []
        owners: list[int] = []
        for at, word in enumerate(words):
            keys = list(map(hash, _deletions(word)))
            keys.append(hash((sound(word),)))
            hashes += keys
            owners += [at] * len(keys)
        near: list[dict[str, float]] = [{} for _ in words]
        for at, ids in self._table.find(np.array(hashes, np.int64), most=self._MOST):
            word = words[owners[at]]
            for id_ in ids:
                known = self._words[id_]
                if known not in near[owners[at]] and _may_be_close(word, known):
                    near[owners[at]][known] = closeness(word, known)
        return [
            sorted(((c, known) for known, c in found.items() if c >= CLOSE), reverse=True)
            for found in near
        ]


def _may_be_close(one: str, other: str) -> bool:
    """Return False where closeness cannot reach CLOSE: each letter that one lacks is an edit."""
    letters, others = set(one), set(other)
    most = (1 - CLOSE) * max(len(one), len(other))
    return max(len(letters - others), len(others - letters), abs(len(one) - len(other))) <= most


def _deletions(word: str) -> list[str]:
    """Return a word and each that it is with one letter left out; words one edit apart share one."""
    return [word, *{word[:at] + word[at + 1 :] for at in range(len(word))}]
