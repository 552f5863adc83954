"""The documents of an index, read and changed by whoever does not speak of segments.

An index is read whole to page through it, so what was read last is kept for the next page: texts alone,
without vectors, and no more than fits a budget.
"""

from __future__ import annotations

import asyncio
import json
import logging
from array import array
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moss_voice.cloud.cloud import Cloud
from moss_voice.cloud.keys import utc_now
from moss_voice.cloud.log import Commit, Segment, SegmentRef, decode_segment, resolve
from moss_voice.errors import CorruptDataError, MossError
from moss_voice.filters import Filter
from moss_voice.index import encode_document
from moss_voice.keywords import Postings
from moss_voice.server import checks
from moss_voice.server.answers import MergeDocuments
from moss_voice.server.bodies import Spool, of_json
from moss_voice.server.conditions import condition_of_text
from moss_voice.server.refusals import Refusal, refusing
from moss_voice.server.settings import Limits
from moss_voice.text import ANALYZER, term_ids
from moss_voice.types import JobStatusResponse, MetadataValue

__all__ = ["MAX_PAGE_BYTES", "Library", "Page", "normalised", "shown"]

logger = logging.getLogger(__name__)

# Told the project, the index and the number of a version that was just made.
OnVersion = Callable[[str, str, int], None]

_KEPT_BYTES: Final = 64 << 20
# An answer is built in memory.
MAX_PAGE_BYTES: Final = 8 << 20
# Of what reads an index whole.
_AT_ONCE: Final = 2
# Filters whose rows are known.
_FILTERS: Final = 4
# Documents, metadata fields and values of each that `Library.fields` looks at, or tells.
_LOOKED_AT: Final = 1000
_MOST_FIELDS: Final = 50
_MOST_VALUES: Final = 12
_SHORT: Final = 200


@dataclass(eq=False)
class _Texts:
    """The live documents of one version, in order.

    Attributes:
        passing: The rows that pass a filter, by its JSON, of the last few.
        fields: See `Library.fields`; None until somebody asks.
    """

    lines: list[bytes]
    row_of: dict[str, int]
    size_bytes: int
    passing: OrderedDict[str, Sequence[int]] = field(default_factory=OrderedDict)
    fields: dict[str, list[MetadataValue]] | None = None


@dataclass(frozen=True)
class Page:
    """Some documents of one version, as JSON objects."""

    documents: list[bytes]
    total: int
    version: int
    next_offset: int | None


class Library:
    """Reads and changes documents; one per server."""

    def __init__(
        self,
        cloud: Cloud,
        limits: Limits,
        *,
        on_version: OnVersion,
        now: Callable[[], datetime] = utc_now,
    ) -> None:
        """Take the cloud to read and to push to, and whom to tell of each version made."""
        self._cloud = cloud
        self._on_version = on_version
        self._limits = limits
        self._now = now
        self._kept: OrderedDict[tuple[SegmentRef, ...], _Texts] = OrderedDict()
        self._busy = asyncio.Semaphore(_AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Give up what is under way in the background: whoever pushes next does it."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- reading -----------------------------------------------------------------------------------

    async def page(
        self,
        project: str,
        index: str,
        *,
        offset: int,
        limit: int,
        ids: Sequence[str] | None = None,
        filter: str | None = None,  # noqa: A002 - the published name
    ) -> Page:
        """Return documents in order, or those asked for by id, in the order asked.

        Args:
            project: The project's id.
            index: The index's name.
            offset: How many to pass over, of those that pass the filter.
            limit: The most to return.
            ids: These alone, where given.
            filter: A metadata filter in JSON: what it does not let pass is not there.

        Raises:
            Refusal: 400 where the filter is malformed, 404 where there is no such index, 409 where only a
                client can read it.
        """
        condition = condition_of_text(filter)
        commit = await self.readable(project, index)
        texts = await self._texts(project, commit)
        found: Sequence[int] = range(len(texts.lines))
        if condition is not None and filter is not None:
            found = await self._passing(texts, filter, condition)
        if ids is not None:
            among = set(found) if condition is not None else None
            asked = [texts.row_of[id_] for id_ in ids if id_ in texts.row_of]
            rows: Sequence[int] = [row for row in asked if among is None or row in among]
        else:
            rows = found[offset : offset + limit]
        documents = await asyncio.to_thread(_page, [texts.lines[row] for row in rows])
        after = offset + len(documents)
        more = ids is None and after < len(found)
        return Page(documents, len(found), commit.version, after if more else None)

    async def fields(self, project: str, index: str) -> dict[str, list[MetadataValue]]:
        """Return metadata fields of an index's first documents, each with a few of its short values."""
        commit = await self.readable(project, index)
        texts = await self._texts(project, commit)
        if texts.fields is None:
            texts.fields = await asyncio.to_thread(_fields, texts.lines[:_LOOKED_AT])
        return texts.fields

    async def _passing(self, texts: _Texts, text: str, condition: Filter) -> Sequence[int]:
        """Return the rows that pass a filter; what was asked last is known for the next page."""
        rows = texts.passing.get(text)
        if rows is None:
            async with self._busy:
                rows = await asyncio.to_thread(_matching, texts.lines, condition)
            texts.passing[text] = rows
            if len(texts.passing) > _FILTERS:
                texts.passing.popitem(last=False)
        else:
            texts.passing.move_to_end(text)
        return rows

    async def readable(self, project: str, index: str) -> Commit:
        """Return the newest version of an index.

        Raises:
            Refusal: 404 where there is no such index, 409 where only a client can read it.
        """
        commit = (await self._cloud.log.head(project, index)).alive
        if commit is None:
            raise Refusal(404, "index_not_found", "there is no such index")
        if commit.key_ids:
            raise _encrypted()
        return commit

    async def _texts(self, project: str, commit: Commit) -> _Texts:
        texts = self._kept.get(commit.segments)
        if texts is None:
            async with self._busy, self.opened(project, commit) as segments:
                texts = await asyncio.to_thread(_texts, segments)
            self._keep(commit.segments, texts)
        else:
            self._kept.move_to_end(commit.segments)
        return texts

    def _keep(self, key: tuple[SegmentRef, ...], texts: _Texts) -> None:
        self._kept[key] = texts
        while sum(kept.size_bytes for kept in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)

    @asynccontextmanager
    async def opened(self, project: str, commit: Commit) -> AsyncIterator[list[Segment]]:
        """Give a version's segments, their bytes in files; their arrays outlive the files."""
        spools: list[Spool] = []
        try:
            segments = []
            for ref in commit.segments:
                spools.append(Spool())
                segments.append(await self._load(project, commit, ref, spools[-1]))
            yield segments
        finally:
            for spool in spools:
                spool.close()

    async def _load(self, project: str, commit: Commit, ref: SegmentRef, spool: Spool) -> Segment:
        parts = await self._cloud.log.read_segment(project, commit.index, ref.sha256)
        if parts is None:
            raise CorruptDataError(f"segment {ref.sha256[:12]} is gone")
        async for part in parts:
            await spool.write(part)
            if spool.size_bytes > ref.size_bytes:
                raise CorruptDataError(f"segment {ref.sha256[:12]} is larger than its commit says")

        def decode() -> Segment:
            digest, data = spool.finish()
            if digest != ref.sha256:
                raise CorruptDataError(f"segment {ref.sha256[:12]}: SHA-256 differs")
            return decode_segment(data, model_id=commit.model_id, dim=commit.dim)

        return await asyncio.to_thread(decode)

    # --- changing ----------------------------------------------------------------------------------

    async def merge(self, project: str, index: str, data: bytes) -> Commit:
        """Add documents, and update those whose id is there; returns the version with them.

        Args:
            project: The project's id.
            index: The index's name; where there is none, it is made.
            data: The body of the request.

        Raises:
            Refusal: 400 where a document is not sound, 409 where the index is encrypted.
        """
        async with self._busy:
            rows = await asyncio.to_thread(lambda: self._checked(of_json(data, MergeDocuments)))
            head = (await self._cloud.log.head(project, index)).alive
            if head is not None and head.key_ids:
                raise _encrypted()
            if head is not None and (head.model_id, head.dim) != (rows.model_id, rows.dim):
                raise Refusal(
                    400,
                    "model_mismatch",
                    f"model_id or embedding: the index belongs to another model ({head.dim} dimensions)",
                )
            return await self._push(project, index, head, rows, ())

    async def delete(self, project: str, index: str, ids: Sequence[str]) -> tuple[Commit, int]:
        """Delete documents; returns the version without them, and how many there were."""
        head = await self.readable(project, index)
        texts = await self._texts(project, head)
        there = [id_ for id_ in dict.fromkeys(ids) if id_ in texts.row_of]
        if not there:
            return head, 0
        async with self._busy:
            return await self._push(project, index, head, None, there), len(there)

    def _checked(self, wanted: MergeDocuments) -> Segment:
        documents = wanted.documents
        if len(documents) > self._limits.max_request_documents:
            most = self._limits.max_request_documents
            raise Refusal(413, "too_large", f"documents: expected at most {most}")
        ids = [doc.id for doc in documents]
        if len(set(ids)) != len(ids):
            raise Refusal(400, "invalid_argument", "documents: an id is there twice")
        dims = {len(doc.embedding) for doc in documents}
        if len(dims) != 1:
            raise Refusal(400, "invalid_argument", "documents: embeddings differ in length")
        lines = []
        for row, doc in enumerate(documents):
            where = f"documents.{row}"
            with refusing():
                line = _encoded(doc.id, doc.text, doc.metadata, doc.payload, where)
                checks.check_document(line, doc.id, self._limits, where=where)
            lines.append(line)
        terms = [term_ids(doc.text) for doc in documents]
        return Segment(
            model_id=wanted.model_id,
            analyzer=ANALYZER,
            ids=ids,
            documents=lines,
            written_at=np.zeros(len(ids), np.int64),
            vectors=_unit([doc.embedding for doc in documents]),
            postings=Postings.of(terms),
            lengths=np.array([hashes.size for hashes in terms], np.int32),
        )

    async def _push(
        self,
        project: str,
        index: str,
        head: Commit | None,
        rows: Segment | None,
        doomed: Sequence[str],
    ) -> Commit:
        """Push rows or tombstones that are newer than all that is there."""
        now_ms = int(self._now().timestamp() * 1000)
        if head is None:
            assert rows is not None  # noqa: S101 - of what is not there nothing is deleted
            delta = _stamped(rows, (), now_ms)
            count = len(rows)
        else:
            async with self.opened(project, head) as there:
                newest = max([now_ms, *(_latest(segment) + 1 for segment in there)])
                empty = _no_rows(head) if rows is None else rows
                delta = _stamped(empty, doomed, newest)
                count = (await asyncio.to_thread(resolve, [*there, delta])).doc_count
        pushed = await self._cloud.push(
            project,
            index,
            base_version=head.version if head is not None else 0,
            base_segments=head.segments if head is not None else (),
            delta=delta,
            doc_count=count,
            model_id=delta.model_id,
            dim=delta.dim,
            analyzer=delta.analyzer,
            on_conflict="merge",
        )
        commit = pushed.commit
        at = commit.updated_at
        with suppress(MossError):  # the push itself stands
            await self._cloud.put_job(
                project,
                JobStatusResponse(commit.job_id, "completed", 1.0, None, None, at, at, at),
            )
        self._on_version(project, index, commit.version)
        if self._cloud.needs_compaction(commit):
            task = asyncio.create_task(self._look_after(project, commit))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return commit

    async def _look_after(self, project: str, commit: Commit) -> None:
        """Join segments, as clients do after a push of theirs."""
        spools: list[Spool] = []

        async def load(ref: SegmentRef) -> Segment:
            spools.append(Spool())
            return await self._load(project, commit, ref, spools[-1])

        try:
            async with self._busy:
                joined = await self._cloud.compact(project, commit.index, load=load)
            if joined is not None:
                self._on_version(project, commit.index, joined.version)
                await self._cloud.collect(project, commit.index)
        except MossError as error:
            logger.warning("an index was not compacted (%s)", error.code)
        finally:
            for spool in spools:
                spool.close()


def _encrypted() -> Refusal:
    return Refusal(409, "encrypted", "the index is encrypted: only its clients can read it")


def _texts(segments: Sequence[Segment]) -> _Texts:
    found = resolve(segments)
    places = [
        (int(ordinals[row]), segment, row)
        for segment, live, ordinals in zip(segments, found.live, found.ordinals, strict=True)
        for row in np.flatnonzero(live).tolist()
    ]
    places.sort(key=lambda place: place[0])
    lines = [segment.documents[row] for _, segment, row in places]
    row_of = {segment.ids[row]: at for at, (_, segment, row) in enumerate(places)}
    # What Python needs for a bytes, a str and two places in a list and a dictionary: about 300 bytes.
    size = sum(map(len, lines)) + sum(map(len, row_of)) + 300 * len(lines)
    return _Texts(lines, row_of, size)


def _page(lines: Sequence[bytes]) -> list[bytes]:
    """Return documents as they are answered: the first, and as many more as are not too large."""
    documents: list[bytes] = []
    size = 0
    for line in lines:
        size += len(line)
        if size > MAX_PAGE_BYTES and documents:
            break
        documents.append(shown(line))
    return documents


def _metadata(line: bytes) -> dict[str, Any]:
    """Return the metadata of a stored document."""
    try:
        metadata = json.loads(line.decode()).get("metadata")
    except (ValueError, AttributeError, RecursionError):
        raise CorruptDataError("a stored document is damaged") from None
    return metadata if isinstance(metadata, dict) else {}


def _matching(lines: Sequence[bytes], condition: Filter) -> Sequence[int]:
    return array("l", (row for row, line in enumerate(lines) if condition.matches(_metadata(line))))


def _fields(lines: Sequence[bytes]) -> dict[str, list[MetadataValue]]:
    found: dict[str, list[MetadataValue]] = {}
    for line in lines:
        for name, value in _metadata(line).items():
            if len(name) > _SHORT or (name not in found and len(found) == _MOST_FIELDS):
                continue
            values = found.setdefault(name, [])
            is_short = not isinstance(value, str) or len(value) <= _SHORT
            if is_short and len(values) < _MOST_VALUES and value not in values:
                values.append(value)
    return found


def shown(line: bytes) -> bytes:
    """Return a stored document as it is answered: with all four fields."""
    try:
        fields: dict[str, Any] = json.loads(line.decode())
        shown = {name: fields.get(name) for name in ("id", "text", "metadata", "payload")}
        return json.dumps(shown, allow_nan=False, separators=(",", ":")).encode()
    except (ValueError, AttributeError, RecursionError):
        raise CorruptDataError("a stored document is damaged") from None


def _encoded(id_: str, text: str, metadata: Any, payload: Any, where: str) -> bytes:
    try:
        return encode_document(id_, text, metadata, payload)
    except MossError as error:
        raise CorruptDataError(f"{where}: expected text in valid Unicode") from error


def normalised(
    embeddings: Sequence[Sequence[float]],
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Return embeddings as rows of length one, and which of them could be: the finite, not all zero."""
    rows = np.array(embeddings, np.float64)
    largest = np.abs(rows).max(axis=1, keepdims=True)
    sound = np.isfinite(largest[:, 0]) & (largest[:, 0] > 0.0)
    scaled = np.where(sound[:, None], rows, 1.0) / np.where(sound[:, None], largest, 1.0)
    unit = (scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).astype(np.float32)
    return unit, sound


def _unit(embeddings: Sequence[Sequence[float]]) -> npt.NDArray[np.float32]:
    """Return documents' embeddings of length one each.

    Raises:
        Refusal: 400 where one is not finite, or has no length.
    """
    unit, sound = normalised(embeddings)
    if not sound.all():
        row = int(np.flatnonzero(~sound)[0])
        raise Refusal(
            400,
            "invalid_argument",
            f"documents.{row}.embedding: expected finite numbers, not all 0",
        )
    return unit


def _latest(segment: Segment) -> int:
    return max(int(segment.written_at.max(initial=0)), max(segment.tombstones.values(), default=0))


def _stamped(rows: Segment, doomed: Sequence[str], at: int) -> Segment:
    return Segment(
        model_id=rows.model_id,
        analyzer=rows.analyzer,
        ids=rows.ids,
        documents=rows.documents,
        written_at=np.full(len(rows.ids), at, np.int64),
        vectors=rows.vectors,
        postings=rows.postings,
        lengths=rows.lengths,
        tombstones=dict.fromkeys(doomed, at),
    )


def _no_rows(head: Commit) -> Segment:
    return Segment(
        model_id=head.model_id,
        analyzer=ANALYZER,
        ids=(),
        documents=(),
        written_at=np.zeros(0, np.int64),
        vectors=np.zeros((0, head.dim), np.float32),
        postings=Postings.of([]),
        lengths=np.zeros(0, np.int32),
    )
