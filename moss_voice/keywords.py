"""Rows that share words with a query, scored by BM25, while rows are added.

Segments are immutable and hold every posting once, ordered by term; a small flat tail takes new rows.
One writer publishes the whole state by a single assignment; a reader takes it once, and sees of it
only the rows of its own generation, which it names with `n_rows` and `alive`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from moss_voice.errors import CorruptDataError

__all__ = ["ByTerm", "Keywords", "Postings"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U16 = npt.NDArray[np.uint16]
Bool = npt.NDArray[np.bool_]

_T = TypeVar("_T", bound=np.generic)

_MAX_COUNT: Final = 65_535
# Postings in the tail, which every query scans: some 80 turns, 14 kB, about 5 us.
_TAIL: Final = 1024
# A segment is merged with the one after it once it is less than this many times as large, so that
# there are at most log2(postings / _TAIL) of them and each posting is moved that often.
_RATIO: Final = 2


class Postings(NamedTuple):
    """Which row holds which term how often: the form that is stored.

    One entry per pair of row and term, ordered by row, then term.

    Attributes:
        terms: (m,) int64 term hashes.
        rows: (m,) int32.
        counts: (m,) uint16, at least 1; 65,535 means "as often or more".
    """

    terms: I64
    rows: I32
    counts: U16

    @classmethod
    def of(cls, term_ids_per_row: Sequence[I64], *, first_row: int = 0) -> Postings:
        """Count the terms of each row.

        Args:
            term_ids_per_row: One (k,) int64 array per row, as `text.term_ids` returns it.
            first_row: The number of the first of these rows.

        Returns:
            The postings. About 10 us for a row, 0.15 s for a million terms.
        """
        if len(term_ids_per_row) == 1:
            one, often = np.unique(term_ids_per_row[0], return_counts=True)
            return cls(one, np.full(one.size, first_row, np.int32), _saturated(often))
        lengths = np.fromiter(map(len, term_ids_per_row), np.int64, len(term_ids_per_row))
        terms = np.concatenate([np.empty(0, np.int64), *term_ids_per_row])
        rows = np.repeat(np.arange(len(term_ids_per_row), dtype=np.int64), lengths)
        order = np.argsort(terms)
        order = order[_stable_order(rows[order])]
        terms, rows = terms[order], rows[order]
        first = np.ones(terms.size, np.bool_)
        first[1:] = (terms[1:] != terms[:-1]) | (rows[1:] != rows[:-1])
        starts = np.flatnonzero(first)
        counts = np.diff(starts, append=terms.size)
        return cls(terms[starts], (rows[starts] + first_row).astype(np.int32), _saturated(counts))

    def check(self, lengths: I32) -> None:
        """Make sure of stored postings before they are used.

        Args:
            lengths: (r,) terms per row, the sum of the row's counts.

        Raises:
            CorruptDataError: If dtypes, shapes, order, rows or counts cannot be.
        """
        dtypes = [array.dtype.str for array in (self.terms, self.rows, self.counts, lengths)]
        if dtypes != ["<i8", "<i4", "<u2", "<i4"]:
            raise CorruptDataError(
                f"postings: expected dtypes <i8, <i4, <u2 and <i4, got {', '.join(dtypes)}"
            )
        if not (self.terms.ndim == lengths.ndim == 1) or not (
            self.terms.shape == self.rows.shape == self.counts.shape
        ):
            raise CorruptDataError("postings: expected one-dimensional arrays of equal length")
        if lengths.min(initial=0) < 0:
            raise CorruptDataError("postings: a length is negative")
        terms, rows = self.terms, self.rows
        if rows.min(initial=0) < 0 or rows.max(initial=-1) >= lengths.size:
            raise CorruptDataError(f"postings: a row is outside of the {lengths.size} there are")
        ascending = (rows[1:] > rows[:-1]) | ((rows[1:] == rows[:-1]) & (terms[1:] > terms[:-1]))
        if not ascending.all():
            raise CorruptDataError("postings: not ordered by row and term")
        if self.counts.min(initial=1) < 1:
            raise CorruptDataError("postings: a count is zero")
        sums = np.bincount(rows, weights=self.counts, minlength=lengths.size)
        full = np.zeros(lengths.size, np.bool_)
        full[rows[self.counts == _MAX_COUNT]] = True
        if not np.where(full, sums <= lengths, sums == lengths).all():
            raise CorruptDataError("postings: a row's counts do not add up to its length")


def _saturated(counts: I64) -> U16:
    return np.minimum(counts, _MAX_COUNT).astype(np.uint16)


def _stable_order(keys: I64) -> I64:
    """Return the stable order of keys in [0, 2**31); several times faster than a stable argsort."""
    packed = (keys << 32) | np.arange(keys.size)
    packed.sort()
    packed &= 0xFFFF_FFFF
    return packed


class ByTerm(NamedTuple):
    """Postings ordered by term: those of `terms[i]` are `[starts[i]:starts[i + 1]]`, in any order."""

    terms: I64
    starts: I32
    rows: I32
    counts: U16

    @classmethod
    def of(cls, terms: I64, rows: I32, counts: U16) -> ByTerm:
        """Order postings by term, O(m log m): 0.1 s for a million."""
        order = np.argsort(terms)
        terms = terms[order]
        first = np.ones(terms.size, np.bool_)
        first[1:] = terms[1:] != terms[:-1]
        starts = np.flatnonzero(first)
        return cls(
            terms[starts],
            np.append(starts, terms.size).astype(np.int32),
            rows[order],
            counts[order],
        )

    @property
    def size(self) -> int:
        """How many postings."""
        return self.rows.size

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        return self.terms.nbytes + self.starts.nbytes + self.rows.nbytes + self.counts.nbytes

    def shifted(self, n_rows: int) -> ByTerm:
        """Return the same postings of rows that are numbered higher."""
        return self if n_rows == 0 else self._replace(rows=self.rows + np.int32(n_rows))

    def write(self, path: Path) -> None:
        """Keep the order in a file, of which whoever keeps it must answer for the bytes."""
        safetensors.numpy.save_file(self._asdict(), path)

    @classmethod
    def read(cls, path: Path, *, size: int) -> ByTerm:
        """Read back what `write` kept of so many postings.

        Raises:
            CorruptDataError: If it is something else.
        """
        try:
            found = cls(**safetensors.numpy.load_file(path))
        except (safetensors.SafetensorError, TypeError, OSError) as error:
            raise CorruptDataError(f"postings by term: {type(error).__name__}") from None
        dtypes = [array.dtype.str for array in found]
        ends = (found.rows.size, found.counts.size, found.terms.size + 1)
        if dtypes != ["<i8", "<i4", "<i4", "<u2"] or ends != (size, size, found.starts.size):
            raise CorruptDataError("postings by term: expected those of another segment")
        return found

    def expanded(self) -> I64:
        """Return the term of each posting."""
        return np.repeat(self.terms, np.diff(self.starts))


class _State(NamedTuple):
    """All of the index at one moment. Slots at or beyond `n_tail` and `n_rows` belong to the writer."""

    segments: tuple[ByTerm, ...]
    tail_terms: I64
    tail_rows: I32
    tail_counts: U16
    n_tail: int
    lengths: I32
    n_rows: int


_EMPTY: Final = _State(
    (),
    np.empty(0, np.int64),
    np.empty(0, np.int32),
    np.empty(0, np.uint16),
    0,
    np.empty(0, np.int32),
    0,
)


class _Norms(NamedTuple):
    """BM25's length norms for one generation."""

    alive: Bool
    n_alive: int
    norms: F32


_NOTHING: Final = (np.empty(0, np.int64), np.empty(0, np.float32))


class _Found(NamedTuple):
    """The postings of a query's terms, in runs of one term each; a term may have several runs.

    Attributes:
        rows: (m,) int64.
        counts: (m,) float32.
        of_run: (r,) int64, the position in the query of each run's term.
        sizes: (r,) int64, postings in each run, at least 1.
    """

    rows: I64
    counts: F32
    of_run: I64
    sizes: I64

    def before(self, n_rows: int) -> _Found:
        """Return only those of rows below `n_rows`."""
        known = self.rows < n_rows
        of_run = np.repeat(self.of_run, self.sizes)[known]
        return _Found(self.rows[known], self.counts[known], of_run, np.ones_like(of_run))


def _with(array: npt.NDArray[_T], used: int, new: npt.NDArray[_T]) -> npt.NDArray[_T]:
    """Return the array, or a larger copy of it, with `new` after its first `used` entries."""
    size = used + new.size
    if size > array.size:
        larger = np.empty(max(size, 2 * array.size, 64), array.dtype)
        larger[:used] = array[:used]
        array = larger
    array[used:size] = new
    return array


class Keywords:
    """BM25 over rows of term hashes, growing.

    One thread may write while any number read; nobody waits.
    """

    def __init__(self, *, k1: float = 0.9, b: float = 0.4) -> None:
        """Start empty.

        Args:
            k1: How slowly repetitions of a word stop counting, > 0. 0.9 beat 1.2 on turns of speech.
            b: How much long rows are held back, in [0, 1]. 0.4 beat 0.75 on turns of speech.
        """
        if not k1 > 0.0 or not 0.0 <= b <= 1.0:
            raise ValueError(f"expected k1 > 0 and b in [0, 1], got {k1} and {b}")
        self.k1 = k1
        self.b = b
        self._state = _EMPTY
        self._norms: _Norms | None = None

    @classmethod
    def from_postings(
        cls, postings: Postings, lengths: I32, *, k1: float = 0.9, b: float = 0.4
    ) -> Keywords:
        """Start with stored postings, checked.

        Raises:
            CorruptDataError: See `Postings.check`.
        """
        postings.check(lengths)
        keywords = cls(k1=k1, b=b)
        keywords.append(postings, lengths)
        return keywords

    def __repr__(self) -> str:
        state = self._state
        return f"<Keywords {state.n_rows} rows in {len(state.segments)} segments and a tail>"

    @property
    def n_rows(self) -> int:
        """Rows appended so far."""
        return self._state.n_rows

    @property
    def nbytes(self) -> int:
        """Bytes held by the arrays."""
        state = self._state
        norms = self._norms
        tail = state.tail_terms.nbytes + state.tail_rows.nbytes + state.tail_counts.nbytes
        return (
            sum(segment.nbytes for segment in state.segments)
            + tail
            + state.lengths.nbytes
            + (norms.norms.nbytes if norms else 0)
        )

    def append(self, postings: Postings, lengths: I32, *, by_term: ByTerm | None = None) -> None:
        """Add rows at the end; only one thread at a time may.

        Args:
            postings: Of the new rows, numbered from 0 (whatever their place here will be). Trusted:
                check what comes from outside.
            lengths: (r,) int32, terms per new row.
            by_term: The same postings in the order that they are needed in, where that is known: to make
                it is what costs.
        """
        state = self._state
        if by_term is not None:
            self._append_ordered(by_term, lengths)
            return
        rows = postings.rows + np.int32(state.n_rows)
        used, n_tail = state.n_tail, state.n_tail + rows.size
        if n_tail <= _TAIL:
            state = state._replace(
                tail_terms=_with(state.tail_terms, used, postings.terms),
                tail_rows=_with(state.tail_rows, used, rows),
                tail_counts=_with(state.tail_counts, used, postings.counts),
                n_tail=n_tail,
            )
        else:
            segment = ByTerm.of(
                np.concatenate([state.tail_terms[:used], postings.terms]),
                np.concatenate([state.tail_rows[:used], rows]),
                np.concatenate([state.tail_counts[:used], postings.counts]),
            )
            # Readers may still scan the old tail, so the new one gets arrays of its own.
            state = _EMPTY._replace(
                segments=_merged((*state.segments, segment)),
                lengths=state.lengths,
                n_rows=state.n_rows,
            )
        self._state = state._replace(
            lengths=_with(state.lengths, state.n_rows, lengths),
            n_rows=state.n_rows + lengths.size,
        )

    def _append_ordered(self, by_term: ByTerm, lengths: I32) -> None:
        state = self._state
        segments = state.segments
        if state.n_tail:
            used = state.n_tail
            tail = state.tail_terms[:used], state.tail_rows[:used], state.tail_counts[:used]
            segments = _merged((*segments, ByTerm.of(*tail)))
        self._state = _EMPTY._replace(
            segments=_merged((*segments, by_term.shifted(state.n_rows))),
            lengths=_with(state.lengths, state.n_rows, lengths),
            n_rows=state.n_rows + lengths.size,
        )

    def scores(
        self, query: Mapping[int, float] | I64, *, n_rows: int, alive: Bool
    ) -> tuple[I64, F32]:
        """Score the live rows of a generation by BM25.

        `sum over terms of weight * idf * tf / (tf + k1 * (1 - b + b * length / average))` with
        `idf = ln(1 + (N - df + 0.5) / (df + 0.5))` (Robertson and Zaragoza 2009, as in Lucene, which
        leaves out the constant factor k1 + 1). N, df and the average length count the generation's
        live rows, exactly.

        Args:
            query: Weight per term hash (those not above 0 are left out), or hashes, of which each
                occurrence counts 1.
            n_rows: Rows of the generation, at most `self.n_rows`.
            alive: (n_rows,) bool. One that is read-only is taken never to change.

        Returns:
            (m,) int64 rows, ascending, and their (m,) float32 scores > 0. O(n_rows + postings of the
            query's terms): 0.1 ms at 10,000 rows and 10 terms.
        """
        state = self._state
        terms, weights = _weighted(query)
        frame = self._frame(state, n_rows, alive)
        if terms.size == 0 or frame.n_alive == 0:
            return _NOTHING

        found = _found(state, terms)
        if state.n_rows > n_rows:
            found = found.before(n_rows)
        if found.rows.size == 0:
            return _NOTHING
        live = found.sizes
        if frame.n_alive < n_rows:
            living = alive[found.rows]
            live = np.add.reduceat(living, np.cumsum(found.sizes) - found.sizes, dtype=np.int64)
        df = np.bincount(found.of_run, weights=live, minlength=terms.size)
        gain = weights * np.log1p((frame.n_alive - df + 0.5) / (df + 0.5))
        parts = np.repeat(gain.astype(np.float32)[found.of_run], found.sizes)
        parts *= found.counts
        parts /= frame.norms[found.rows] + found.counts
        total = np.bincount(found.rows, weights=parts, minlength=n_rows)
        # Of booleans numpy finds the nonzero ones ten times faster than of floats.
        matched = np.flatnonzero(total > 0.0)
        return matched, total[matched].astype(np.float32)

    def _frame(self, state: _State, n_rows: int, alive: Bool) -> _Norms:
        cached = self._norms
        if cached is not None and cached.alive is alive:
            return cached
        if alive.shape != (n_rows,) or n_rows > state.n_rows:
            raise ValueError(
                f"expected alive of shape ({n_rows},) and at most {state.n_rows} rows,"
                f" got shape {alive.shape}"
            )
        lengths = state.lengths[:n_rows]
        n_alive = int(np.count_nonzero(alive))
        total = int(lengths.sum(dtype=np.int64, where=alive))
        # Rows without words alone have no postings either: any average does.
        average = total / n_alive if total else 1.0
        norms = lengths.astype(np.float32)
        norms *= np.float32(self.k1 * self.b / average)
        norms += np.float32(self.k1 * (1.0 - self.b))
        # What is divided by infinity counts nothing.
        norms[~alive] = np.inf
        frame = _Norms(alive, n_alive, norms)
        if not alive.flags.writeable:
            self._norms = frame
        return frame

    def lengths(self, rows: I64) -> I32:
        """Return the number of terms of each of these rows, (n,) int32."""
        state = self._state
        return state.lengths[: state.n_rows][rows]

    def postings(self, rows: I64) -> Postings:
        """Return the postings of these rows, to be stored.

        Args:
            rows: (n,) distinct rows, in any order.

        Returns:
            The postings, where `rows[i]` is row i. O(all postings): 0.1 s for a million taken.
        """
        state = self._state
        place = np.full(state.n_rows, -1, np.int32)
        place[rows] = np.arange(len(rows), dtype=np.int32)
        tail = slice(0, state.n_tail)
        pieces = [(s.expanded(), s.rows, s.counts) for s in state.segments]
        pieces.append((state.tail_terms[tail], state.tail_rows[tail], state.tail_counts[tail]))
        taken: list[tuple[I64, I32, U16]] = []
        for terms, held, counts in pieces:
            new = place[held]
            kept = np.flatnonzero(new >= 0)
            taken.append((terms[kept], new[kept], counts[kept]))
        terms, new, counts = (np.concatenate(arrays) for arrays in zip(*taken, strict=True))
        # Within a segment postings are ordered by term, within the tail by row and term, and a row is
        # in one of them only: a stable order by row is all that is left to do.
        order = _stable_order(new.astype(np.int64))
        return Postings(terms[order], new[order], counts[order])


def _merged(segments: tuple[ByTerm, ...]) -> tuple[ByTerm, ...]:
    """Merge the last segments until each is at least `_RATIO` times as large as the next."""
    last = len(segments) - 1
    size = segments[last].size
    while last > 0 and segments[last - 1].size < _RATIO * size:
        last -= 1
        size += segments[last].size
    if last == len(segments) - 1:
        return segments
    small = segments[last:]
    return (
        *segments[:last],
        ByTerm.of(
            np.concatenate([segment.expanded() for segment in small]),
            np.concatenate([segment.rows for segment in small]),
            np.concatenate([segment.counts for segment in small]),
        ),
    )


def _weighted(query: Mapping[int, float] | I64) -> tuple[I64, npt.NDArray[np.float64]]:
    """Return distinct terms and their weights."""
    weights = Counter(query.tolist()) if isinstance(query, np.ndarray) else query
    pairs = [(term, weight) for term, weight in weights.items() if weight > 0.0]
    return (
        np.array([term for term, _ in pairs], np.int64),
        np.array([weight for _, weight in pairs], np.float64),
    )


def _found(state: _State, terms: I64) -> _Found:
    """Return every posting of these terms."""
    rows, counts, of_run, sizes = [], [], [], []
    if state.n_tail:
        # One flat nonzero: numpy's is several times slower on two dimensions.
        same = np.flatnonzero(state.tail_terms[: state.n_tail] == terms[:, None])
        of_term, at = np.divmod(same, state.n_tail)
        rows.append(state.tail_rows[at])
        counts.append(state.tail_counts[at])
        of_run.append(of_term)
        sizes.append(np.ones(of_term.size, np.int64))
    for segment in state.segments:
        places = np.searchsorted(segment.terms, terms)
        places[places == segment.terms.size] = 0
        hits = np.flatnonzero(segment.terms[places] == terms)
        places = places[hits]
        starts, stops = segment.starts[places], segment.starts[places + 1]
        of_run.append(hits)
        sizes.append((stops - starts).astype(np.int64))
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            rows.append(segment.rows[start:stop])
            counts.append(segment.counts[start:stop])
    if not rows:
        return _Found(*_NOTHING, _NOTHING[0], _NOTHING[0])
    return _Found(
        np.concatenate(rows, dtype=np.int64),
        np.concatenate(counts, dtype=np.float32),
        np.concatenate(of_run),
        np.concatenate(sizes),
    )
