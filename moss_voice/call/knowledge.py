"""What a call knows of a knowledge index beyond its documents: the names in it, and how near is near.

The law: an index is studied once for all calls of the process, and again when it changed; a call goes on
with what it has meanwhile.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from moss_voice.call.fields import name_fields
from moss_voice.call.names import Names
from moss_voice.call.spelling import spell
from moss_voice.index import Places
from moss_voice.ranking import GATE_ASKS, GATE_SAMPLE, GATE_WORDS, keyword_unit, threshold
from moss_voice.session import SessionIndex
from moss_voice.text import asks, words
from moss_voice.vectors import Vectors
from moss_voice.workers import submit

__all__ = ["Knowledge"]

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]

# How many passages tell how near the index's own passages are to each other.
_PROBES = 256
# How many tell what is said of many things, and of how many of the values a word must be said for that.
_READ = 4096
_COMMON_VALUES = 4
_COMMON_SHARE = 0.004


class _Study(NamedTuple):
    """What one state of an index holds.

    Attributes:
        fields: The metadata fields that hold names.
        names: Their values.
        places: Where the passages of each value lie.
        sample: Vectors from all over the index; None where it has none.
        threshold: The nearness from which on a turn needs the index.
        revision: Of the index, as studied.
    """

    fields: tuple[str, ...]
    names: Names[None]
    places: Places | None
    sample: Vectors | None
    threshold: float
    revision: int


_NOTHING_KNOWN = _Study((), Names({}), None, None, -1.0, -2)


class _Shared:
    """The study of an index and of one choice of fields, shared by the calls of the process."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.study: _Study | None = None
        self.due = False


_shared: WeakKeyDictionary[SessionIndex, dict[tuple[str, ...] | None, _Shared]] = (
    WeakKeyDictionary()
)
_shared_lock = threading.Lock()

# An index up to here is studied before a call begins; of a larger one the call has the names and the gate
# a moment later, since a caller waits.
_STUDIED_AT_ONCE = 2048


class Knowledge:
    """A loaded index, with what a call needs to know of it.

    Args:
        index: Loaded, shared.
        focus: Metadata fields that hold names of what a call can be about; None to find them by
            what they hold, () to look for no names.
    """

    def __init__(self, index: SessionIndex, *, focus: Sequence[str] | None = None) -> None:
        self.index = index
        self._focus = None if focus is None else tuple(focus)
        with _shared_lock:
            self._shared = _shared.setdefault(index, {}).setdefault(self._focus, _Shared())

    def __repr__(self) -> str:
        study = self._shared.study
        told = "not studied" if study is None else f"{len(study.names)} names in {study.fields}"
        return f"<Knowledge {self.index.name!r}, {told}>"

    def study(self) -> _Study:
        """Return what is known of the index, studying it first if nobody has; synchronous.

        Takes 0.2 s for 12,000 passages of 668 names. Where the index has changed since, what was known is
        returned and a new study begins beside it.
        """
        shared = self._shared
        study = shared.study
        if study is None:
            with shared.lock:
                study = shared.study
                if study is None:
                    study = shared.study = _studied(self.index, self._focus)
            return study
        return self.known()

    def known(self) -> _Study:
        """Return what is known of the index by now, which is nothing at first; never waits.

        Where it has changed since it was studied, a new study begins beside this.
        """
        study = self._shared.study
        if study is None:
            return _NOTHING_KNOWN
        if study.revision != self.index.revision:
            self.begin()
        return study

    def begin(self) -> None:
        """Begin to study the index on another thread, unless somebody does or nothing has changed."""
        shared = self._shared
        study = shared.study
        if (study is None or study.revision != self.index.revision) and not shared.due:
            shared.due = True
            submit(self._study_again)

    def prepare(self) -> bool:
        """Study a small index, if nobody has. Never raises.

        Returns:
            False where it is large, and `begin` is to be called once the caller has been answered.
        """
        if self._shared.study is None and self.index.doc_count <= _STUDIED_AT_ONCE:
            self._study_again()
        return self._shared.study is not None

    def _study_again(self) -> None:
        shared, revision = self._shared, self.index.revision
        with shared.lock:
            try:
                if shared.study is None or shared.study.revision != self.index.revision:
                    shared.study = _studied(self.index, self._focus)
            except Exception as error:  # noqa: BLE001 - a call goes on with what it has
                logger.error("index %r: not studied (%s)", self.index.name, type(error).__name__)
                # Not to be tried again before it changes.
                shared.study = (shared.study or _NOTHING_KNOWN)._replace(revision=revision)
            finally:
                shared.due = False

    def near(self, vector: F32) -> float:
        """Tell how near a turn comes to a sample of the index's passages.

        Args:
            vector: (dim,) float32 unit vector.

        Returns:
            A cosine; 0 where the index has nothing to be near to.
        """
        sample = self.known().sample
        if sample is None or vector.size != sample.dim:
            return 0.0
        return float(sample.scan(vector, n_rows=sample.n_rows).max())

    def need(self, near: float, text: str, terms: Mapping[int, float]) -> float:
        """Tell how much a turn needs the index, by what it takes: from 1 on it does.

        Args:
            near: What `near` says of the turn.
            text: The turn. One that asks is nearer.
            terms: Its words, which count where nearness alone is not enough.
        """
        least = self.known().threshold
        if least <= 0.0:
            return 1.0
        need = (near + GATE_ASKS * asks(text)) / least
        if need < 1.0:
            best = self.index.best_by_words(terms)
            need = max(need, best / (GATE_WORDS * keyword_unit(self.index.doc_count)))
        return need


def _studied(index: SessionIndex, focus: tuple[str, ...] | None) -> _Study:
    revision = index.revision
    docs, vectors = index.sample(GATE_SAMPLE)
    fields = tuple(name_fields(docs)) if focus is None else focus
    places, names = None, Names[None]({})
    if fields:
        places = index.places_of(fields)
        common = _common(index, fields, len(places.rows))
        names = Names(dict.fromkeys(places.rows), common=common.__contains__)
    sample, least = None, -1.0
    if len(vectors) > 1:
        sample = Vectors(vectors.shape[1], base=[np.ascontiguousarray(vectors)])
        probes = np.linspace(0, len(vectors) - 1, min(_PROBES, len(vectors)), dtype=np.int64)
        least = threshold(
            np.delete(sample.scan(vectors[row], n_rows=len(vectors)), row)
            for row in probes.tolist()
        )
    return _Study(fields, names, places, sample, least, revision)


def _common(index: SessionIndex, fields: Sequence[str], n_values: int) -> frozenset[str]:
    """Return the words, as names are spelled, that passages use of many values whose names lack them."""
    docs, _ = index.sample(_READ)
    values_of: dict[str, set[str]] = {}
    for doc in docs:
        said = set(spell(words(doc.text)))
        for value in (str((doc.metadata or {}).get(field, "")) for field in fields):
            for word in said.difference(spell(words(value))) if value else ():
                values_of.setdefault(word, set()).add(value)
    least = max(_COMMON_VALUES, _COMMON_SHARE * n_values)
    return frozenset(word for word, values in values_of.items() if len(values) >= least)
