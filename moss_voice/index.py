"""Documents, their vectors and their words as one searchable whole.

One writer and many readers: a writer prepares rows beyond what any reader sees and publishes them by
a single assignment; a reader takes the published generation once and works on it undisturbed. Nothing
here embeds, waits, or knows where documents come from.
"""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from moss_voice.errors import InvalidArgumentError
from moss_voice.filters import Columns, Filter
from moss_voice.keywords import ByTerm, Keywords, Postings
from moss_voice.searching import (
    PLAIN,
    Manner,
    Match,
    Places,
    Prepared,
    Scope,
    StoredDocument,
    decode_document,
    prepare,
    rank,
)
from moss_voice.types import Metadata
from moss_voice.vectors import EXACT_ROWS, Graph, Vectors

__all__ = [
    "PLAIN",
    "Batch",
    "Block",
    "Index",
    "Manner",
    "Match",
    "Places",
    "StoredDocument",
    "decode_document",
    "encode_document",
]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

# Tombstones are swept out when they outnumber the living, but not for a handful.
SWEEP_ROWS: Final = 1024


def encode_document(id: str, text: str, metadata: Metadata | None, payload: Any) -> bytes:  # noqa: A002
    """Return a document as one line of JSON in UTF-8.

    Raises:
        InvalidArgumentError: If the text is not valid Unicode or the payload is not JSON; names the id.
    """
    fields: dict[str, Any] = {"id": id, "text": text}
    if metadata is not None:
        fields["metadata"] = metadata
    if payload is not None:
        fields["payload"] = payload
    try:
        line = json.dumps(fields, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
        return line.encode()
    except (TypeError, ValueError, RecursionError) as error:
        # The foreign message may quote the text, so it is dropped with its chain.
        raise InvalidArgumentError(
            f"document {id!r}: expected text in valid Unicode and a payload of plain JSON values"
            f" ({type(error).__name__})"
        ) from None


class Batch(NamedTuple):
    """Documents to add, ready for their rows.

    Attributes:
        ids: One per document; where one repeats, the last document wins.
        documents: One encoded line per document.
        vectors: (n, dim) float32 unit rows.
        terms: One (m,) int64 array of term hashes per document.
        written_at: (n,) int64 milliseconds since the epoch.
    """

    ids: Sequence[str]
    documents: Sequence[bytes]
    vectors: F32
    terms: Sequence[I64]
    written_at: I64


class Block(NamedTuple):
    """Rows that were stored, or are to be: what passes between an index and a segment.

    Attributes:
        ids: One per row.
        documents: One encoded line per row.
        vectors: (n, dim) float32 unit rows; may be backed by a file.
        postings: The rows' terms, rows numbered from 0.
        lengths: (n,) int32, terms per row.
        written_at: (n,) int64 milliseconds.
        alive: (n,) bool.
        ordinals: (n,) int64, the place in the order of first insertion.
        by_term: The postings in the order that a search needs, where that is known.
    """

    ids: Sequence[str]
    documents: Sequence[bytes]
    vectors: F32
    postings: Postings
    lengths: npt.NDArray[np.int32]
    written_at: I64
    alive: Bool
    ordinals: I64
    by_term: ByTerm | None = None


class _Column:
    """An int64 column that grows by doubling; a view of published rows never changes."""

    __slots__ = ("_data", "_size")

    def __init__(self, values: I64) -> None:
        self._data = values.astype(np.int64)
        self._size = values.size

    def append(self, values: I64) -> None:
        size = self._size + values.size
        if size > self._data.size:
            grown = np.empty(max(size, 2 * self._data.size, 16), np.int64)
            grown[: self._size] = self._data[: self._size]
            self._data = grown
        self._data[self._size : size] = values
        self._size = size

    def view(self, n_rows: int) -> I64:
        return self._data[:n_rows]


class _Matter:
    """The row arrays: append-only, replaced as a whole when tombstones are swept out."""

    __slots__ = (
        "columns",
        "documents",
        "earlier",
        "ids",
        "keywords",
        "ordinals",
        "row_of",
        "vectors",
        "written_at",
    )

    def __init__(self, blocks: Sequence[Block], *, dim: int) -> None:
        self.ids: list[str] = [id_ for block in blocks for id_ in block.ids]
        self.documents: list[bytes] = [line for block in blocks for line in block.documents]
        self.vectors = Vectors(dim, base=[block.vectors for block in blocks if len(block.ids)])
        self.keywords = Keywords()
        for block in blocks:
            if len(block.ids):
                self.keywords.append(block.postings, block.lengths, by_term=block.by_term)
        none = np.empty(0, np.int64)
        self.ordinals = _Column(np.concatenate([none, *(block.ordinals for block in blocks)]))
        self.written_at = _Column(np.concatenate([none, *(block.written_at for block in blocks)]))
        self.columns = Columns(self._metadata_of)
        # Each id's newest row, also once it is dead, and the row that a row took the place of: so that
        # a reader finds the row of its own generation, whatever is written meanwhile.
        self.row_of: dict[str, int] = {}
        self.earlier: dict[int, int] = {}

    def place(self, id_: str, row: int) -> None:
        """Note a document's new row, before it is published."""
        if id_ in self.row_of:
            self.earlier[row] = self.row_of[id_]
        self.row_of[id_] = row

    def _metadata_of(self, row: int) -> Mapping[str, Any] | None:
        return decode_document(self.documents[row]).metadata


class _Generation(NamedTuple):
    """What readers see: taken once per search."""

    matter: _Matter
    n_rows: int
    alive: Bool
    n_alive: int
    graph: Graph | None

    @property
    def scope(self) -> Scope:
        """What a search needs of it."""
        matter = self.matter
        return Scope(
            matter.vectors,
            matter.ids,
            matter.documents,
            matter.ordinals.view(self.n_rows),
            self.alive,
            self.n_alive,
            self.n_rows,
            self.graph,
            matter,
        )

    def row(self, id_: object) -> int | None:
        """Return the living row of a document in this generation."""
        row = self.matter.row_of.get(id_, -1)  # type: ignore[call-overload]
        while row >= self.n_rows:
            row = self.matter.earlier.get(row, -1)
        return row if row >= 0 and self.alive[row] else None

    def rows(self, ids: Iterable[str]) -> dict[str, int]:
        """Return the living rows of those documents that there are, in the order asked."""
        found = ((id_, self.row(id_)) for id_ in ids)
        return {id_: row for id_, row in found if row is not None}

    def allowed(self, condition: Filter | None, exclude: Collection[str]) -> Bool:
        """Return the mask of the living rows that pass the filter and are not excluded."""
        mask = self.alive
        if condition is not None:
            mask = mask & condition.mask(self.matter.columns, self.n_rows)
        if exclude:
            mask = mask.copy()
            mask[list(self.rows(exclude).values())] = False
        return mask


# No two states of any indexes have the same number.
_revisions = itertools.count()


class Words(NamedTuple):
    """The keyword half of a search: rows of one generation that share a word, and their scores."""

    generation: _Generation
    rows: I64
    scores: F32


class Index:
    """Rows of documents that can be searched while they change.

    `repr` tells its state. Every method is synchronous and thread-safe: writers take turns, readers
    never wait.
    """

    def __init__(self, dim: int, *, blocks: Sequence[Block] = ()) -> None:
        """Start from stored blocks, or empty.

        Args:
            dim: Numbers per vector.
            blocks: In the order of their rows; ids are distinct among the rows alive.

        Raises:
            InvalidArgumentError: If the blocks disagree with `dim` or with themselves.
        """
        if dim < 1:
            raise InvalidArgumentError(f"dim must be at least 1, got {dim}")
        self.dim = dim
        self._write = threading.Lock()
        matter = _Matter(blocks, dim=dim)
        alive = np.concatenate([np.empty(0, np.bool_), *(block.alive for block in blocks)])
        alive.flags.writeable = False
        rows = np.flatnonzero(alive).tolist()
        ids = matter.ids if len(rows) == len(matter.ids) else [matter.ids[row] for row in rows]
        matter.row_of = dict(zip(ids, rows, strict=True))
        if len(matter.row_of) != len(rows):
            raise InvalidArgumentError("two rows alive share an id")
        ordinals = matter.ordinals.view(alive.size)
        self._next_ordinal = int(ordinals.max(initial=-1)) + 1
        self.revision = next(_revisions)
        self._generation = _Generation(matter, alive.size, alive, len(matter.row_of), None)

    def __len__(self) -> int:
        return self._generation.n_alive

    def __repr__(self) -> str:
        now = self._generation
        graph = f", graph over {now.graph.n_rows}" if now.graph else ""
        return f"<Index {now.n_alive} docs in {now.n_rows} rows{graph}>"

    def __contains__(self, id_: object) -> bool:
        return self._generation.row(id_) is not None

    def upsert(self, batch: Batch) -> tuple[int, int]:
        """Add documents, replacing those whose id is known.

        Args:
            batch: See `Batch`.

        Returns:
            How many were added and how many updated. O(batch) but for a copy of the mask of live
            rows (one byte a row) and, now and then, a doubling.
        """
        if len(batch.ids) == 0:
            return 0, 0
        with self._write:
            now = self._generation
            matter = now.matter
            last = {id_: position for position, id_ in enumerate(batch.ids)}
            replaced = now.rows(last)
            added = len(last) - len(replaced)
            keep = sorted(last.values())
            ids = [batch.ids[position] for position in keep]
            terms = [batch.terms[position] for position in keep]
            ordinals = self._ordinals_for(ids, list(last), replaced, matter)

            # Whatever can fail comes before the first row is written.
            postings = Postings.of(terms)
            lengths = np.array([hashes.size for hashes in terms], np.int32)
            matter.vectors.append(np.ascontiguousarray(batch.vectors[keep], np.float32))
            matter.keywords.append(postings, lengths)
            matter.ids.extend(ids)
            matter.documents.extend(batch.documents[position] for position in keep)
            matter.ordinals.append(ordinals)
            matter.written_at.append(batch.written_at[keep])

            alive = np.ones(now.n_rows + len(ids), np.bool_)
            alive[: now.n_rows] = now.alive
            alive[list(replaced.values())] = False
            for row, id_ in enumerate(ids, start=now.n_rows):
                matter.place(id_, row)
            self._publish(matter, alive, now.n_alive + added, now.graph)
            return added, len(batch.ids) - added

    def _ordinals_for(
        self, ids: Sequence[str], given: Sequence[str], replaced: Mapping[str, int], matter: _Matter
    ) -> I64:
        """Return the ordinals of `ids`: a known document keeps its place, new ones follow as given."""
        places = matter.ordinals.view(len(matter.ids))
        ordinals = {id_: int(places[row]) for id_, row in replaced.items()}
        for id_ in given:
            if id_ not in ordinals:
                ordinals[id_] = self._next_ordinal
                self._next_ordinal += 1
        return np.array([ordinals[id_] for id_ in ids], np.int64)

    def delete(self, ids: Collection[str]) -> list[str]:
        """Remove documents; unknown ids are passed over. Returns the ids removed, in order."""
        with self._write:
            now = self._generation
            gone = now.rows(ids)
            if gone:
                alive = now.alive.copy()
                alive[list(gone.values())] = False
                self._publish(now.matter, alive, now.n_alive - len(gone), now.graph)
            return list(gone)

    def _publish(self, matter: _Matter, alive: Bool, n_alive: int, graph: Graph | None) -> None:
        alive.flags.writeable = False
        dead = alive.size - n_alive
        if dead > max(SWEEP_ROWS, n_alive):
            rows = np.flatnonzero(alive)
            block = _extract(matter, rows)
            matter = _Matter([block], dim=self.dim)
            for row, id_ in enumerate(block.ids):
                matter.place(id_, row)
            alive = block.alive
            alive.flags.writeable = False
            graph = None
        self._generation = _Generation(matter, alive.size, alive, n_alive, graph)
        self.revision = next(_revisions)

    def get(self, ids: Sequence[str] | None = None) -> list[StoredDocument]:
        """Return documents by id in the order asked (unknown ids are passed over), or all in order."""
        with self._write:
            now = self._generation
            rows = self._rows_of(now, ids)
            lines = [now.matter.documents[row] for row in rows]
        return [decode_document(line) for line in lines]

    def vectors_of(self, ids: Sequence[str]) -> F32:
        """Return the stored unit rows of known ids, (n, dim) float32, in the order asked."""
        with self._write:
            now = self._generation
            return now.matter.vectors.take(self._rows_of(now, ids))

    def written_at(self, ids: Iterable[str] | None = None) -> dict[str, int]:
        """Return when each of those documents that there are (all where None) was written, in ms."""
        with self._write:
            now = self._generation
            rows = now.rows(now.matter.row_of if ids is None else ids)
            times = now.matter.written_at.view(now.n_rows)[list(rows.values())]
            return dict(zip(rows, times.tolist(), strict=True))

    def extract(self, ids: Sequence[str] | None = None) -> Block:
        """Return the rows of these documents (all where None) as a block, in order of ordinal."""
        with self._write:
            now = self._generation
            rows = self._rows_of(now, ids)
            order = np.argsort(now.matter.ordinals.view(now.n_rows)[rows], kind="stable")
            return _extract(now.matter, rows[order])

    def _rows_of(self, now: _Generation, ids: Sequence[str] | None) -> I64:
        if ids is None:
            rows = np.flatnonzero(now.alive)
            return rows[np.argsort(now.matter.ordinals.view(now.n_rows)[rows], kind="stable")]
        living = now.rows(ids)
        return np.array([living[id_] for id_ in ids if id_ in living], np.int64)

    def words(self, terms: Mapping[int, float] | I64) -> Words:
        """Do the keyword half of a search, which needs no vector yet; see `search`."""
        now = self._generation
        rows, scores = now.matter.keywords.scores(terms, n_rows=now.n_rows, alive=now.alive)
        return Words(now, rows, scores)

    def prepare(
        self,
        terms: Mapping[int, float] | I64 | Words | None,
        *,
        top_k: int,
        condition: Filter | None = None,
        exclude: Collection[str] = (),
        boost: Mapping[str, float] | None = None,
        places: Places | None = None,
        manner: Manner = PLAIN,
    ) -> Prepared:
        """Do all of a search that needs no vector; see `search`, and `searching.rank` for the rest."""
        if terms is not None and not isinstance(terms, Words) and len(terms):
            terms = self.words(terms)
        now = terms.generation if isinstance(terms, Words) else self._generation
        return prepare(
            now.scope,
            (terms.rows, terms.scores) if isinstance(terms, Words) else None,
            allowed=now.allowed(condition, exclude),
            boost=boost,
            places=places,
            manner=manner,
            top_k=top_k,
        )

    def search(
        self,
        *,
        vector: F32 | None,
        terms: Mapping[int, float] | I64 | Words | None,
        top_k: int,
        alpha: float,
        condition: Filter | None = None,
        min_score: float | None = None,
        exclude: Collection[str] = (),
        boost: Mapping[str, float] | None = None,
        places: Places | None = None,
        manner: Manner = PLAIN,
    ) -> list[Match]:
        """Return the best documents, best first, equal ones in order of insertion.

        Args:
            vector: (dim,) float32 unit vector; None only at alpha 0.
            terms: The query's term hashes, or their weights, or what `words` made of them: then the
                search is of that moment's documents. None only at alpha 1.
            top_k: The most to return.
            alpha: See `ranking.fuse`.
            condition: Only documents that pass are ranked.
            min_score: Documents of a lower score are left out.
            exclude: Ids that are left out.
            boost: Added to the rank score of these groups of `places`.
            places: Where groups lie, by `places_of`; groups whose rows were moved gain nothing.
            manner: What else counts.

        Returns:
            As many as exist up to `top_k`, but for `min_score` and, at alpha 0, documents that share
            no word with the query. Exact while the index is small or the filter leaves few rows; else
            the graph and the keywords propose candidates, which are scored exactly.
        """
        prepared = self.prepare(
            terms if alpha < 1.0 or isinstance(terms, Words) else None,
            top_k=top_k,
            condition=condition,
            exclude=exclude,
            boost=boost,
            places=places,
            manner=manner,
        )
        return rank(prepared, vector, top_k=top_k, alpha=alpha, min_score=min_score)

    def places_of(self, fields: Sequence[str]) -> Places:
        """Return where the documents lie that have each text value of some metadata fields.

        Returns:
            The rows per value, in order of the first document that has it. Decodes every document:
            3 us each.
        """
        with self._write:
            now = self._generation
            rows = self._rows_of(now, None).tolist()
            lines = [(row, now.matter.documents[row]) for row in rows]
        groups: dict[str, list[int]] = {}
        for row, line in lines:
            metadata = decode_document(line).metadata or {}
            for value in dict.fromkeys(metadata.get(field) for field in fields):
                if isinstance(value, str) and value.strip():
                    groups.setdefault(value, []).append(row)
        found = {value: np.array(sorted(of), np.int64) for value, of in groups.items()}
        return Places(found, now.matter)

    def sample(self, most: int) -> tuple[list[StoredDocument], F32]:
        """Return documents from all over the index, and their (n, dim) float32 vectors; always the same."""
        with self._write:
            now = self._generation
            rows = np.flatnonzero(now.alive)
            if rows.size > most:
                rows = rows[np.sort(np.random.default_rng(0).permutation(rows.size)[:most])]
            lines = [now.matter.documents[row] for row in rows.tolist()]
            vectors = now.matter.vectors.take(rows)
        return [decode_document(line) for line in lines], vectors

    @property
    def wants_graph(self) -> bool:
        """True where enough rows are beyond the graph's reach to be worth a new one."""
        now = self._generation
        covered = now.graph.n_rows if now.graph else 0
        return now.n_rows - covered > max(EXACT_ROWS, covered // 4)

    @property
    def n_rows(self) -> int:
        """Rows, dead ones included: what a graph of this index covers."""
        return self._generation.n_rows

    def build_graph(
        self, *, threads: int = 1, should_stop: Callable[[], bool] | None = None
    ) -> Graph | None:
        """Build a graph over the present rows and use it from then on; searches go on meanwhile.

        Returns:
            The graph, or None where it was stopped or the rows were swept meanwhile. 50,000 rows take
            about 10 s of one core.
        """
        now = self._generation
        graph = Graph.build(
            now.matter.vectors, now.n_rows, threads=threads, should_stop=should_stop
        )
        return graph if graph is not None and self._adopt(graph, now.matter) else None

    def load_graph(self, path: Path, *, n_rows: int) -> bool:
        """Use a graph of this index's first rows that was written to a file.

        Returns:
            False where the rows were swept meanwhile.

        Raises:
            CorruptDataError: See `Graph.read`.
        """
        matter = self._generation.matter
        return self._adopt(Graph.read(path, matter.vectors, n_rows=n_rows), matter)

    def _adopt(self, graph: Graph, matter: _Matter) -> bool:
        with self._write:
            now = self._generation
            if now.matter is not matter or graph.n_rows > now.n_rows:
                return False
            self._generation = now._replace(graph=graph)
            return True

    def _check(self) -> None:
        """Assert every invariant: for tests, after each step of a random run."""
        with self._write:
            now = self._generation
            matter = now.matter
            assert now.alive.size == now.n_rows == len(matter.ids) == len(matter.documents)  # noqa: S101
            assert matter.vectors.n_rows == matter.keywords.n_rows == now.n_rows  # noqa: S101
            living = {matter.ids[row]: int(row) for row in np.flatnonzero(now.alive)}
            assert living == now.rows(matter.row_of)  # noqa: S101
            assert now.n_alive == len(living) == int(now.alive.sum())  # noqa: S101
            ordinals = matter.ordinals.view(now.n_rows)[now.alive]
            assert np.unique(ordinals).size == ordinals.size  # noqa: S101
            assert ordinals.max(initial=-1) < self._next_ordinal  # noqa: S101
            rows = np.flatnonzero(now.alive)
            norms = np.linalg.norm(matter.vectors.take(rows), axis=1)
            assert np.allclose(norms, 1.0, atol=1e-4)  # noqa: S101
            for row in rows:
                assert decode_document(matter.documents[row]).id == matter.ids[row]  # noqa: S101


def _extract(matter: _Matter, rows: I64) -> Block:
    n_rows = len(matter.ids)
    postings = matter.keywords.postings(rows)
    lengths = matter.keywords.lengths(rows)
    return Block(
        [matter.ids[row] for row in rows],
        [matter.documents[row] for row in rows],
        matter.vectors.take(rows),
        postings,
        lengths,
        matter.written_at.view(n_rows)[rows].copy(),
        np.ones(rows.size, np.bool_),
        matter.ordinals.view(n_rows)[rows].copy(),
    )
