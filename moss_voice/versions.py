"""Versions of an index in memory: found in a cloud or, while it is away, among what was kept of it.

Segments come from the local cache where they are there, else from the cloud and then into the cache. What
is sealed stays sealed on disk, and no graph is kept of it, since a graph holds the vectors.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import NamedTuple

import numpy as np

from moss_voice.cloud.cache import SegmentCache
from moss_voice.cloud.cloud import Cloud
from moss_voice.cloud.log import Commit, Segment, SegmentRef, decode_segment, resolve
from moss_voice.cloud.outbox import Outbox
from moss_voice.errors import CloudUnavailableError, CorruptDataError
from moss_voice.index import Block, Index, decode_document
from moss_voice.keywords import ByTerm, Postings
from moss_voice.text import ANALYZER, term_ids
from moss_voice.workers import in_worker

__all__ = [
    "Outage",
    "Remote",
    "Version",
    "built_keys",
    "fetch_version",
    "find_newest",
    "keep_newest",
    "read_graph",
    "read_segment",
    "share_version",
]

logger = logging.getLogger(__name__)

# For so long after it did not answer, a cloud is not asked for what is kept of it here.
OUTAGE_S = 5.0
# To put so many postings in order takes longer than to read them from a file.
_WORTH_KEEPING = 100_000


class Outage:
    """Whether the cloud was away a moment ago, so that not everybody waits for it to answer."""

    def __init__(self, *, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._until = -1.0

    def __repr__(self) -> str:
        return f"<Outage {'goes on' if self.lasts else 'over'}>"

    @property
    def lasts(self) -> bool:
        """True for some seconds after the cloud did not answer."""
        return self._now() < self._until

    def noticed(self) -> None:
        """Take note that the cloud did not answer."""
        self._until = self._now() + OUTAGE_S

    def over(self) -> None:
        """Take note that it answered."""
        self._until = -1.0


@dataclass(frozen=True, slots=True)
class Remote:
    """Where indexes live when nobody has them open, and what is kept of them here.

    Attributes:
        cloud: The cloud.
        project: The project in it.
        cache: Segments, graphs and newest commits on local disk; None to do without.
        outbox: Where a push waits that the cloud did not take; None to do without.
        where: The cloud as its user gave it; None for the embedded cloud.
        outage: Whether it was away a moment ago.
        on_received: Told of each download: the index, bytes that have come, bytes in all.
    """

    cloud: Cloud
    project: str
    cache: SegmentCache | None
    outbox: Outbox | None = None
    where: str | None = None
    outage: Outage = field(default_factory=Outage)
    on_received: Callable[[str, int, int], None] | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """A version of an index, in memory.

    Attributes:
        clock: The newest time of any of its changes, in milliseconds.
        tombstones: When each document that was deleted was, in milliseconds.
        prefixes: What a stored graph of its first rows is called, and how many those are; longest first;
            none for what is sealed.
    """

    commit: Commit
    index: Index
    clock: int
    tombstones: dict[str, int]
    prefixes: tuple[tuple[str, int], ...]


class Newest(NamedTuple):
    """The newest version that is known.

    Attributes:
        commit: None where there is no such index.
        stale: True where the cloud was away, and this is what was kept of it.
    """

    commit: Commit | None
    stale: bool


async def find_newest(remote: Remote, name: str) -> Newest:
    """Return the newest commit of an index; what is kept of it here where the cloud is away.

    Raises:
        CloudUnavailableError: If the cloud is away and nothing is kept.
    """
    if remote.outage.lasts:
        kept = await in_worker(_kept, remote, name)
        if kept is not None:
            return Newest(kept, stale=True)
    try:
        head = await remote.cloud.read_head(remote.project, name)
    except CloudUnavailableError:
        remote.outage.noticed()
        kept = await in_worker(_kept, remote, name)
        if kept is None:
            raise
        logger.warning("index %r: the cloud is away; using version %d", name, kept.version)
        return Newest(kept, stale=True)
    remote.outage.over()
    return Newest(head, stale=False)


def _kept(remote: Remote, name: str) -> Commit | None:
    if remote.cache is None:
        return None
    commit = remote.cache.read_head(remote.cloud.name, remote.project, name)
    if commit is None or not all(remote.cache.holds(ref) for ref in commit.segments):
        return None
    expires_at = commit.expires_at
    if expires_at is not None and expires_at <= datetime.now(UTC):
        return None
    return remote.cloud.checked(remote.project, commit)


def keep_newest(remote: Remote, commit: Commit) -> None:
    """Remember a commit whose segments are in the cache, for when the cloud is away; synchronous."""
    cache = remote.cache
    if cache is not None and all(cache.holds(ref) for ref in commit.segments):
        cache.write_head(remote.cloud.name, remote.project, commit)


async def read_segment(remote: Remote, index_name: str, ref: SegmentRef) -> Segment:
    """Read a segment through the cache.

    Raises:
        CorruptDataError: If it is damaged.
        EncryptionKeyError: If it is sealed with a key that is not here.
        CloudUnavailableError: If it is not in the cache and the cloud does not answer.
    """
    data: bytes | memoryview | None = None
    if remote.cache is not None:
        data = await in_worker(remote.cache.get, ref)
    if data is None:
        told = remote.on_received
        data = await remote.cloud.fetch_segment(
            remote.project,
            index_name,
            ref,
            on_received=None if told is None else partial(told, index_name),
        )
        if remote.cache is not None:
            await in_worker(remote.cache.put, ref, data)
            # From now on the rows stay in the file: processes share its pages.
            data = await in_worker(remote.cache.get, ref) or data
    return await in_worker(remote.cloud.decode, remote.project, index_name, ref, data)


# Versions that were loaded before this process was forked, by what they are made of. Never written to.
_shared: dict[tuple[str, ...], Version] = {}


def share_version(commit: Commit, cache: SegmentCache) -> bool:
    """Load a version from the cache for every process that will be forked from this one.

    They then read the same memory, graph included, where each would have held its own. Starts no thread
    and opens no store, neither of which would survive a fork.

    Returns:
        False where the cache lacks a segment of it, or it is encrypted.

    Raises:
        CorruptDataError: If what is cached is damaged.
    """
    segments = []
    for ref in commit.segments:
        data = cache.get(ref) if ref.key_id is None else None
        if data is None:
            return False
        segments.append(decode_segment(data))
    loaded = _restore(commit, segments, cache)
    read_graph(loaded.index, loaded.prefixes, cache)
    _shared[_content(commit)] = loaded
    return True


def _by_term(ref: SegmentRef, postings: Postings, cache: SegmentCache | None) -> ByTerm | None:
    """Return a large segment's postings by term, from the cache where they were ordered before."""
    size = postings.terms.size
    if cache is None or size < _WORTH_KEEPING:
        return None
    key = f"postings of {ref.sha256} {ANALYZER}"
    found = cache.read_built(key, partial(ByTerm.read, size=size))
    if found is None:
        found = ByTerm.of(postings.terms, postings.rows, postings.counts)
        cache.write_built(key, found.write)
    return found


def _content(commit: Commit) -> tuple[str, ...]:
    return (commit.model_id, *(ref.sha256 for ref in commit.segments))


def read_graph(index: Index, prefixes: Sequence[tuple[str, int]], cache: SegmentCache) -> None:
    """Find the graph of the longest prefix in the cache, where one is wanted."""
    for key, n_rows in prefixes:
        if not index.wants_graph:
            return
        cache.read_built(key, partial(index.load_graph, n_rows=n_rows))


def built_keys(commit: Commit) -> list[str]:
    """Return the keys of all that the cache may hold that was built of a commit's segments."""
    postings = [f"postings of {ref.sha256} {ANALYZER}" for ref in commit.segments]
    return [*_graph_keys(commit), *postings]


def _graph_keys(commit: Commit) -> list[str]:
    """Return what the graphs of a commit's segments are called, of the first one, the first two, ..."""
    digest = hashlib.sha256()
    keys: list[str] = []
    for ref in commit.segments:
        digest.update(ref.sha256.encode())
        keys.append(digest.hexdigest())
    return keys


async def fetch_version(remote: Remote, commit: Commit, *, shared: bool = False) -> Version:
    """Read a version of an index into memory; raises before anything is changed."""
    loaded = _shared.get(_content(commit)) if shared else None
    if loaded is not None:
        return replace(loaded, commit=commit)
    segments = await asyncio.gather(
        *(read_segment(remote, commit.index, ref) for ref in commit.segments)
    )
    # What is built of a sealed segment would tell its words.
    cache = None if commit.key_ids else remote.cache
    return await in_worker(_restore, commit, segments, cache)


def _restore(commit: Commit, segments: Sequence[Segment], cache: SegmentCache | None) -> Version:
    live, ordinals, tombstones, _ = resolve(segments)
    blocks: list[Block] = []
    clock = max(tombstones.values(), default=0)
    prefixes: list[tuple[str, int]] = []
    n_rows = 0
    keys = _graph_keys(commit)
    for key, ref, segment, alive, places in zip(
        keys, commit.segments, segments, live, ordinals, strict=True
    ):
        if (segment.model_id, segment.dim) != (commit.model_id, commit.dim):
            raise CorruptDataError(
                f"index {commit.index!r}: segment {ref.sha256[:12]} was made with another model"
            )
        clock = max(clock, int(segment.written_at.max(initial=0)), *segment.tombstones.values(), 0)
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
                places,
                _by_term(ref, postings, cache),
            )
        )
        n_rows += len(segment)
        if not commit.key_ids:
            prefixes.append((key, n_rows))
    index = Index(commit.dim, blocks=blocks)
    return Version(commit, index, clock, tombstones, tuple(reversed(prefixes)))
