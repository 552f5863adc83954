"""An index searched on the server, for whoever has no client at hand: a browser, or another language.

The law: on one version the ids, scores and parts are those of `MossClient.query`. No model is ever
downloaded, and none is loaded because a push names it, but the bundled one and those that the operator put
into `MOSS_VOICE_MODEL_DIR`; without its model an index is searched by keywords, and the answer says so.

What was searched last stays in memory, within a budget.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from moss_voice.cloud.log import Commit, Segment, SegmentRef, resolve
from moss_voice.embedding import Embedder
from moss_voice.errors import ModelLoadError, ModelNotFoundError
from moss_voice.filters import Filter
from moss_voice.index import Block, Index, Match, decode_document
from moss_voice.keywords import Postings
from moss_voice.models import DEFAULT_MODEL, load_embedder
from moss_voice.server.answers import SearchRequest
from moss_voice.server.conditions import condition_of
from moss_voice.server.documents import Library, normalised
from moss_voice.server.refusals import Refusal
from moss_voice.text import ANALYZER, term_ids

__all__ = ["By", "Found", "Searcher"]

By = Literal["meaning", "both", "keywords"]
# The model, the numbers per vector, and the segments of a version.
_Key = tuple[str, int, tuple[SegmentRef, ...]]

_AT_ONCE: Final = 2
# What a list's places, a dictionary's entry and a few strings cost, per row.
_ROW_BYTES: Final = 500
# Columns that filters have asked for; an index that has more is built anew.
_MAX_COLUMNS: Final = 128
# A directory's portable id; see `moss_voice.models`.
_PORTABLE: Final = re.compile(r"path:\w[\w.-]*@[0-9a-f]{12}")


class Found(NamedTuple):
    """What a search found, best first.

    Attributes:
        by: What it was ranked by.
    """

    matches: list[Match]
    version: int
    by: By
    took_ms: float


@dataclass(eq=False)
class _Kept:
    """An index in memory, and the fields of which it has columns by now."""

    index: Index
    size_bytes: int
    fields: set[str] = field(default_factory=set)


class Searcher:
    """Searches indexes; one per server."""

    def __init__(self, library: Library, *, most_bytes: int) -> None:
        """Take what reads versions, and how much may stay in memory."""
        self._library = library
        self._most_bytes = most_bytes
        self._kept: OrderedDict[_Key, _Kept] = OrderedDict()
        self._busy = asyncio.Semaphore(_AT_ONCE)
        # Building one leaves room for a search of another.
        self._building = asyncio.Lock()

    def __repr__(self) -> str:
        held = sum(kept.size_bytes for kept in self._kept.values())
        return f"<Searcher {len(self._kept)} indexes, {held >> 20} MiB>"

    async def search(self, project: str, index: str, wanted: SearchRequest) -> Found:
        """Return the documents that fit a text, an embedding or both.

        Raises:
            Refusal: 400 for a malformed filter or embedding, 404 where there is no such index, 409 where
                only a client can read it, 413 where it is larger than the budget.
        """
        started = perf_counter()
        condition = condition_of(wanted.filter)
        commit = await self._library.readable(project, index)
        vector = None if wanted.embedding is None else _unit(wanted.embedding, commit.dim)
        if vector is None and not wanted.query.strip():
            return Found([], commit.version, _by(wanted.alpha), 0.0)
        kept = await self._loaded(project, commit, condition)
        async with self._busy:
            matches, alpha = await asyncio.to_thread(
                _search, kept.index, commit, wanted, condition, vector
            )
        return Found(matches, commit.version, _by(alpha), (perf_counter() - started) * 1000.0)

    async def _loaded(self, project: str, commit: Commit, condition: Filter | None) -> _Kept:
        key = (commit.model_id, commit.dim, commit.segments)
        size = 2 * sum(ref.size_bytes for ref in commit.segments)
        size += _ROW_BYTES * sum(ref.rows for ref in commit.segments)
        if size > self._most_bytes:
            raise Refusal(
                413, "too_large", "the index is larger than this server searches (--search-mb)"
            )
        fields = condition.fields if condition is not None else frozenset()
        kept = self._hit(key, fields)
        if kept is not None:
            return kept
        async with self._building:
            # Whoever waited may find that another has built it.
            kept = self._hit(key, fields)
            if kept is None:
                # Room first: of the old and the new together the budget knows nothing.
                self._kept.pop(key, None)
                while self._kept and self._held() + size > self._most_bytes:
                    self._kept.popitem(last=False)
                async with self._busy, self._library.opened(project, commit) as segments:
                    made = await asyncio.to_thread(_built, commit, segments)
                kept = self._kept[key] = _Kept(made, size, set(fields))
        return kept

    def _hit(self, key: _Key, fields: frozenset[str]) -> _Kept | None:
        """Return an index that is in memory, unless filters have asked it for too many columns by now."""
        kept = self._kept.get(key)
        if kept is None or len(kept.fields | fields) > _MAX_COLUMNS:
            return None
        kept.fields |= fields
        self._kept.move_to_end(key)
        return kept

    def _held(self) -> int:
        return sum(kept.size_bytes for kept in self._kept.values())


def _search(
    index: Index,
    commit: Commit,
    wanted: SearchRequest,
    condition: Filter | None,
    vector: npt.NDArray[np.float32] | None,
) -> tuple[list[Match], float]:
    """Search; returns the alpha that was used, too."""
    alpha = wanted.alpha
    if vector is None and alpha > 0.0:
        embedder = _embedder(commit)
        if embedder is None:
            alpha = 0.0
        else:
            vector = embedder.embed_query(wanted.query)
    matches = index.search(
        vector=vector if alpha > 0.0 else None,
        terms=term_ids(wanted.query),
        top_k=wanted.top_k,
        alpha=alpha,
        condition=condition,
        min_score=wanted.min_score,
    )
    return matches, alpha


def _embedder(commit: Commit) -> Embedder | None:
    """Return the index's model if it is on this machine."""
    name = commit.model_id
    if name != DEFAULT_MODEL and not _PORTABLE.fullmatch(name):
        return None
    try:
        embedder = load_embedder(name)
    except (ModelNotFoundError, ModelLoadError):
        if name == DEFAULT_MODEL:
            raise
        return None
    # Whoever pushes names the model, and may be wrong.
    return embedder if embedder.dim == commit.dim else None


def _built(commit: Commit, segments: Sequence[Segment]) -> Index:
    found = resolve(segments)
    blocks = []
    for segment, alive, ordinals in zip(segments, found.live, found.ordinals, strict=True):
        postings, lengths = segment.postings, segment.lengths
        if segment.analyzer != ANALYZER:
            terms = [term_ids(decode_document(line).text) for line in segment.documents]
            postings = Postings.of(terms)
            lengths = np.array([hashes.size for hashes in terms], np.int32)
        blocks.append(
            Block(
                segment.ids,
                segment.documents,
                segment.vectors,
                postings,
                lengths,
                segment.written_at,
                alive,
                ordinals,
            )
        )
    return Index(commit.dim, blocks=blocks)


def _by(alpha: float) -> By:
    if alpha == 0.0:
        return "keywords"
    return "meaning" if alpha == 1.0 else "both"


def _unit(values: Sequence[float], dim: int) -> npt.NDArray[np.float32]:
    if len(values) != dim:
        raise Refusal(400, "invalid_argument", f"embedding: expected {dim} numbers")
    rows, sound = normalised([values])
    if not sound[0]:
        raise Refusal(
            400, "invalid_argument", "embedding: expected finite numbers that are not all zero"
        )
    first: npt.NDArray[np.float32] = rows[0]
    return first
