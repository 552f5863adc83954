"""One search of one state of an index: what needs no vector first, the rest once it is there.

The law: candidates may be proposed by a graph, by words and by what the call is about; every candidate is
scored exactly, by the same few lines, and a hit can tell the parts that it was ranked by.

`prepare` does what can be done while the model still embeds the query, `rank` the rest; whoever has the
vector already calls both. Nothing here changes anything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from moss_voice.ranking import best, diverse, fuse, keyword_unit, lent, newer, to_score
from moss_voice.types import HitParts, Metadata
from moss_voice.vectors import EF, EXACT_ROWS, Graph, Vectors

__all__ = [
    "CANDIDATES",
    "EXACT_TURNS",
    "PLAIN",
    "Manner",
    "Match",
    "Places",
    "Prepared",
    "Scope",
    "StoredDocument",
    "decode_document",
    "prepare",
    "rank",
]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]

# What the graph and the keywords each propose before the exact scores decide. With fewer, a document
# that is good in both but best in neither is missed.
CANDIDATES: Final = 64
# Turns are scored one and all while there are not more of them: a longer call than any.
EXACT_TURNS: Final = 4 * EXACT_ROWS
# Of how many candidates the diverse ones are chosen: the same for small `top_k`, so that a shorter list
# begins like a longer one. The products of 24 with each other are small enough that no BLAS threads them.
_POOL: Final = 24
# Of how many groups it is asked whether the turn can be about them: those that gain most.
_CHECKED_GROUPS: Final = 3

_NO_ROWS: Final = np.empty(0, np.int64)
_NO_SCORES: Final = np.empty(0, np.float32)


class StoredDocument(NamedTuple):
    """A document as it is kept: without its vector, which sits in a row of the matrix."""

    id: str
    text: str
    metadata: Metadata | None
    payload: Any


def decode_document(line: bytes) -> StoredDocument:
    """Read back what `encode_document` wrote."""
    fields = json.loads(line.decode())  # bytes would have their encoding guessed first
    return StoredDocument(
        fields["id"], fields["text"], fields.get("metadata"), fields.get("payload")
    )


class Match(NamedTuple):
    """A row that a search found.

    Attributes:
        line: The encoded document.
        score: In [0, 1]: the cosine mapped, or the share of the best keyword score at alpha 0.
        parts: What it was ranked by.
    """

    row: int
    id: str
    line: bytes
    score: float
    parts: HitParts

    @property
    def fused(self) -> float:
        """The sum of its parts; comparable within one search only."""
        return self.parts.total

    @property
    def document(self) -> StoredDocument:
        """The document, decoded anew each time: of many candidates only the best are looked at."""
        return decode_document(self.line)


class Manner(NamedTuple):
    """How a search ranks beyond meaning and words.

    Attributes:
        keyword_weight: How much more than usual a word counts.
        neighbours: Documents are turns, in order of insertion, and lend to those beside them.
        recency: Later ones gain a little.
        spread: Turns close to a better one lose a little.
        near_duplicates: Documents that say what a better one says lose a little.
        ef: See `Graph.near`.
    """

    keyword_weight: float = 1.0
    neighbours: bool = False
    recency: bool = False
    spread: bool = False
    near_duplicates: bool = False
    ef: int = EF

    @property
    def of_turns(self) -> bool:
        """True where documents stand in an order that counts."""
        return self.neighbours or self.recency or self.spread

    @property
    def picky(self) -> bool:
        """True where what is chosen first takes something from the rest."""
        return self.spread or self.near_duplicates


PLAIN: Final = Manner()


class Places(NamedTuple):
    """Where groups of documents lie, for as long as the rows are not swept together.

    Attributes:
        rows: (n,) int64 rows, ascending, per group.
        matter: What the rows are of.
    """

    rows: Mapping[str, I64]
    matter: object


class Scope(NamedTuple):
    """One state of an index, as a search sees it.

    Attributes:
        ids, documents: Of its rows, and maybe of later ones.
        ordinals: (n_rows,) int64, the place in the order of first insertion.
        alive: (n_rows,) bool.
        n_alive: How many of them are.
        matter: What its rows are of: equal for states whose rows have the same numbers.
    """

    vectors: Vectors
    ids: Sequence[str]
    documents: Sequence[bytes]
    ordinals: I64
    alive: Bool
    n_alive: int
    n_rows: int
    graph: Graph | None
    matter: object


class Prepared(NamedTuple):
    """A search that waits for its vector.

    Attributes:
        allowed: (n_rows,) bool, what may be found.
        n_allowed: How many that are.
        words: (w,) int64 rows that share a word and may be found, ascending.
        scores: (w,) float32 BM25 scores of those.
        rows: (r,) int64, ascending: candidates so far. None where every row is scored.
        vectors: (r, dim) float32, theirs.
        keyword: (r,) float32, their BM25 scores, or those of all rows.
        gains: Positions among the candidates that gain something, by group, the least gain first.
        wanted: How many more a graph is asked for; 0 where it need not be.
        order: The living rows in the order of insertion, where that counts.
    """

    scope: Scope
    allowed: Bool
    n_allowed: int
    words: I64
    scores: F32
    rows: I64 | None
    vectors: F32 | None
    keyword: F32
    gains: Sequence[tuple[I64, float]]
    wanted: int
    manner: Manner
    order: I64


def prepare(
    scope: Scope,
    words: tuple[I64, F32] | None,
    *,
    allowed: Bool,
    boost: Mapping[str, float] | None = None,
    places: Places | None = None,
    manner: Manner = PLAIN,
    top_k: int = 1,
) -> Prepared:
    """Do what needs no vector.

    Args:
        scope: What is searched.
        words: Rows that share a word with the query, ascending, and their scores.
        allowed: (n_rows,) bool.
        boost: Added to the rank score of these groups of `places`.
        places: Where groups lie; groups whose rows were moved gain nothing.
        manner: What else counts.
        top_k: How many are wanted.
    """
    rows, scores = words if words is not None else (_NO_ROWS, _NO_SCORES)
    n_allowed = int(np.count_nonzero(allowed))
    if n_allowed < scope.n_rows:
        passing = allowed[rows]
        rows, scores = rows[passing], scores[passing]
    boosted = _boosted(scope, allowed, boost, places)
    of_turns = manner.of_turns and scope.n_rows <= EXACT_TURNS
    candidates: I64 | None = None
    wanted = 0
    if not of_turns and scope.n_rows > EXACT_ROWS:
        # Gathering rows costs about three times as much as scanning them in place.
        if 3 * n_allowed < scope.n_rows:
            candidates = np.flatnonzero(allowed)
        elif scope.graph is not None and max(CANDIDATES, 4 * top_k) <= scope.graph.n_rows:
            wanted = max(CANDIDATES, 4 * top_k)
            candidates = _proposed(scope, rows, scores, boosted, allowed, wanted)
    vectors = scope.vectors.take(candidates) if candidates is not None else None
    gains = [
        (members if candidates is None else np.searchsorted(candidates, members), weight)
        for members, weight in boosted
    ]
    order = _in_order(scope) if of_turns else _NO_ROWS
    keyword = _keywords_of(rows, scores, candidates, scope.n_rows)
    return Prepared(
        scope,
        allowed,
        n_allowed,
        rows,
        scores,
        candidates,
        vectors,
        keyword,
        gains,
        wanted,
        manner,
        order,
    )


def rank(
    search: Prepared,
    vector: F32 | None,
    *,
    top_k: int,
    alpha: float,
    min_score: float | None = None,
    own: F32 | None = None,
    least: float = -1.0,
) -> list[Match]:
    """Do the rest.

    Args:
        search: What was prepared.
        vector: (dim,) float32 unit vector; None only at alpha 0.
        top_k: The most to return.
        alpha: See `ranking.fuse`.
        min_score: Documents of a lower score are left out.
        own: (dim,) float32 unit vector of the turn alone, where `vector` has more in it.
        least: Groups of which no row comes as near to `own` gain nothing.

    Returns:
        Best first, equal ones in order of insertion.
    """
    scope, manner = search.scope, search.manner
    if search.n_allowed == 0 or top_k < 1:
        return []
    if alpha == 0.0 or vector is None:
        return _by_words(search, top_k, min_score)
    rows, dense = _scored(search, vector, top_k)
    keyword = search.keyword
    if rows is not search.rows:
        keyword = _keywords_of(search.words, search.scores, rows, scope.n_rows)
    weight = manner.keyword_weight / keyword_unit(scope.n_alive)
    fused = fuse(dense, keyword, alpha=alpha, keyword_weight=weight)
    score = to_score(dense)
    focus = _focus(search, rows, own, least, dense.size)
    ranked = fused if focus is None else fused + focus
    neighbour = recency = None
    if search.order.size:
        neighbour, recency = _among_turns(search, fused)
        for part in (neighbour, recency):
            if part is not None:
                ranked = ranked + part
    if ranked is fused:
        ranked = fused.copy()
    if min_score is not None:
        ranked[score < min_score] = -np.inf
    if rows is None and search.n_allowed < scope.n_rows:
        ranked[~search.allowed] = -np.inf
    pool = max(_POOL, 2 * top_k) if manner.picky else top_k
    ordinals = scope.ordinals if rows is None else scope.ordinals[rows]
    chosen = best(ranked, ordinals, k=pool)
    losses = [0.0] * chosen.size
    if manner.picky and chosen.size > 1:
        chosen, losses = _diverse(search, ranked, chosen, rows, top_k)
    semantic = np.float32(alpha) * dense
    return [
        Match(
            row := int(at if rows is None else rows[at]),
            scope.ids[row],
            scope.documents[row],
            float(score[at]),
            HitParts(
                float(semantic[at]),
                float(fused[at] - semantic[at]) if keyword[at] > 0.0 else 0.0,
                _part(focus, at),
                _part(neighbour, at),
                _part(recency, at),
                loss,
            ),
        )
        for at, loss in zip(chosen[:top_k].tolist(), losses, strict=False)
    ]


def _part(of: F32 | None, at: int) -> float:
    return 0.0 if of is None else float(of[at])


def _boosted(
    scope: Scope, allowed: Bool, boost: Mapping[str, float] | None, places: Places | None
) -> list[tuple[I64, float]]:
    """Return the groups of this state that gain something, the least gain first."""
    if not boost or places is None or places.matter is not scope.matter:
        return []
    groups = []
    for value, weight in boost.items():
        rows = places.rows.get(value)
        if rows is not None:
            if rows[-1] >= scope.n_rows:
                rows = rows[rows < scope.n_rows]
            groups.append((rows[allowed[rows]], weight))
    groups.sort(key=lambda group: group[1])
    return groups


def _proposed(
    scope: Scope,
    words: I64,
    scores: F32,
    boosted: Sequence[tuple[I64, float]],
    allowed: Bool,
    wanted: int,
) -> I64:
    """Return the rows that words, focus and newness propose, ascending."""
    assert scope.graph is not None  # noqa: S101 - prepare() looked
    if words.size > wanted:
        words = words[np.argpartition(scores, words.size - wanted)[words.size - wanted :]]
    fresh = np.arange(scope.graph.n_rows, scope.n_rows)
    if fresh.size:
        fresh = fresh[allowed[fresh]]
    return np.unique(np.concatenate([words, fresh, *(rows for rows, _ in boosted)]))


def _scored(search: Prepared, vector: F32, top_k: int) -> tuple[I64 | None, F32]:
    """Return the rows worth an exact score, None for all of them, and their cosines.

    The candidates that were prepared come first, in their order, then those of the graph.
    """
    scope, rows, known = search.scope, search.rows, search.vectors
    if rows is None or known is None:
        return None, scope.vectors.scan(vector, n_rows=scope.n_rows)
    dense = scope.vectors.product(known, vector)
    if not search.wanted or scope.graph is None:
        return rows, dense
    near = scope.graph.near(vector, search.wanted, ef=search.manner.ef)
    near = near[search.allowed[near]]
    if rows.size:
        at = np.minimum(np.searchsorted(rows, near), rows.size - 1)
        near = near[rows[at] != near]
    if rows.size + near.size < min(search.n_allowed, 2 * top_k):
        return None, scope.vectors.scan(vector, n_rows=scope.n_rows)
    return np.concatenate([rows, near]), np.concatenate([dense, scope.vectors.dot(vector, near)])


def _keywords_of(words: I64, scores: F32, rows: I64 | None, n_rows: int) -> F32:
    """Return the keyword scores of some rows, or of all, given those of the rows that share a word."""
    if rows is None:
        keyword = np.zeros(n_rows, np.float32)
        keyword[words] = scores
    elif words.size:
        # Look the candidates up among the rows that share a word, which ascend.
        at = np.minimum(np.searchsorted(words, rows), words.size - 1)
        keyword = np.where(words[at] == rows, scores[at], np.float32(0.0))
    else:
        keyword = np.zeros(rows.size, np.float32)
    return keyword


def _focus(
    search: Prepared, rows: I64 | None, own: F32 | None, least: float, size: int
) -> F32 | None:
    """Return each row's gain, the largest of those of its groups; None where none gains anything."""
    if not search.gains:
        return None
    vectors = search.scope.vectors
    gains = np.zeros(size, np.float32)
    left = len(search.gains)
    for places, weight in search.gains:
        left -= 1
        # Where candidates were prepared and every row is scored after all, they are rows of theirs.
        at = places if rows is not None or search.rows is None else search.rows[places]
        if own is not None and at.size and left < _CHECKED_GROUPS:
            held = vectors.take(at) if search.vectors is None else search.vectors[places]
            if float(vectors.product(held, own).max()) < least:
                continue
        gains[at] = weight
    return gains


def _in_order(scope: Scope) -> I64:
    """Return the living rows in the order of insertion: that of their rows, but for updated ones."""
    rows = np.flatnonzero(scope.alive)
    ordinals = scope.ordinals[rows]
    if np.any(ordinals[1:] < ordinals[:-1]):
        rows = rows[np.argsort(ordinals)]
    return rows


def _among_turns(search: Prepared, fused: F32) -> tuple[F32 | None, F32 | None]:
    """Return what turns get from their places in the call; what is left out lends nothing."""
    order = search.order
    neighbour = recency = None
    if search.manner.neighbours:
        said = fused[order]
        lending = search.allowed[order]
        if not lending.all():
            said[~lending] = said[lending].mean()
        neighbour = np.zeros(fused.size, np.float32)
        neighbour[order] = lent(said)
    if search.manner.recency:
        recency = np.zeros(fused.size, np.float32)
        recency[order] = newer(order.size)
    return neighbour, recency


def _diverse(
    search: Prepared, ranked: F32, chosen: I64, rows: I64 | None, top_k: int
) -> tuple[I64, list[float]]:
    manner, places, held = search.manner, None, None
    if manner.spread and search.order.size:
        place = np.zeros(ranked.size, np.int64)
        place[search.order] = np.arange(search.order.size)
        places = place[chosen]
    if manner.near_duplicates:
        held = search.scope.vectors.take(chosen if rows is None else rows[chosen])
    kept = diverse(ranked[chosen], k=top_k, places=places, n_turns=search.order.size, vectors=held)
    return chosen[[at for at, _ in kept]], [loss for _, loss in kept]


def _by_words(search: Prepared, top_k: int, min_score: float | None) -> list[Match]:
    """Rank by keywords alone: only rows that share a word with the query are found."""
    scope, rows = search.scope, search.words
    share = search.scores / search.scores.max(initial=np.float32(1e-30))
    focus = np.zeros(share.size, np.float32)
    for at, weight in search.gains:
        members = at if search.rows is None else search.rows[at]
        places = np.searchsorted(rows, members)
        there = np.flatnonzero(places < rows.size)
        there = there[rows[places[there]] == members[there]]
        focus[places[there]] = weight
    ranked = share + focus
    if min_score is not None:
        ranked[share < min_score] = -np.inf
    return [
        Match(
            row := int(rows[at]),
            scope.ids[row],
            scope.documents[row],
            float(share[at]),
            HitParts(0.0, float(share[at]), float(focus[at])),
        )
        for at in best(ranked, scope.ordinals[rows], k=top_k).tolist()
    ]
