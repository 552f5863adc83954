"""Forgetting: documents go from every version, segment and leftover of an index."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from moss_voice.cloud import log
from moss_voice.cloud.keyed import KeyedLog
from moss_voice.cloud.log import Commit, Segment, SegmentRef, StoredSegment
from moss_voice.cloud.pacing import TRIES, stand_back
from moss_voice.cloud.sealing import is_sealed, read_key_id
from moss_voice.errors import CorruptDataError, EncryptionKeyError
from moss_voice.keywords import Postings

__all__ = ["Forgotten", "forget"]


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What became of the documents of an index that were to be forgotten.

    Attributes:
        index: Its name.
        documents: Documents that matched and are deleted.
        older: Rows of older versions that matched and are removed.
        version: The version without them; the head's where nothing matched.
        removed: Objects that are gone from the store.
        pending: Segments of an unfinished push that hold some and could not be removed yet: forget again
            in an hour.
    """

    index: str
    documents: int
    older: int
    version: int
    removed: int = 0
    pending: int = 0


async def forget(
    keyed: KeyedLog,
    project: str,
    index: str,
    matches: Callable[[Segment], Any],
    *,
    dry_run: bool = False,
) -> Forgotten | None:
    """Delete documents so that no version, segment or leftover of the index holds them.

    The index is written anew without them, and every older version is removed: who still has one
    open can merge, but not put it in the place of this one. What stays is the id of each, among the
    tombstones.

    Args:
        keyed: The log, and the keys to what it holds.
        project: The project's id.
        index: The index's name.
        matches: Given a segment, tells which of its rows are to be forgotten: (n,) bool. Called in a
            worker thread.
        dry_run: True only counts.

    Returns:
        What was done; None where there is no such index, nor anything left of one.
    """
    for attempt in range(TRIES):
        head, newest = await keyed.log.head(project, index)
        keyed.checked(project, head)
        if head is None or head.deleted:
            return await _forget_leftovers(keyed, project, index, newest, matches, dry_run=dry_run)
        versions = [head, *await keyed.log.history(project, index)]
        refs = {ref.sha256: ref for commit in versions for ref in commit.segments}
        rest = [s for s in await keyed.log.segments(project, index) if s.sha256 not in refs]
        segments = {
            sha256: await keyed.load_segment(project, head, ref) for sha256, ref in refs.items()
        }
        hit = {
            sha256: await asyncio.to_thread(matches, segment)
            for sha256, segment in segments.items()
        }
        current = [segments[ref.sha256] for ref in head.segments]
        live = log.resolve(current).live
        doomed: dict[str, int] = {}
        for ref, segment, alive in zip(head.segments, current, live, strict=True):
            for row in (alive & hit[ref.sha256]).nonzero()[0].tolist():
                doomed[segment.ids[row]] = int(segment.written_at[row])
        rows = sum(int(mask.sum()) for mask in hit.values())
        left = [s for s in rest if await _holds(keyed, project, index, s, matches)]
        told = Forgotten(index, len(doomed), rows - len(doomed), head.version)
        if dry_run or (not rows and not left):
            return replace(told, pending=len(left))
        if rows:
            plan = await _without(keyed, project, head, newest, current, doomed)
            if plan is None:
                await stand_back(attempt)
                continue
            told = replace(told, version=plan.version)
        removed = await keyed.collect(project, index)
        gone = [await keyed.log.delete_segment(project, index, segment.sha256) for segment in left]
        return replace(told, removed=removed + gone.count(True), pending=gone.count(False))
    raise keyed.storm(index)


async def _forget_leftovers(
    keyed: KeyedLog,
    project: str,
    index: str,
    newest: int,
    matches: Callable[[Segment], Any],
    *,
    dry_run: bool,
) -> Forgotten | None:
    """Look into what is left of an index that was deleted, or whose first push was cut off."""
    if newest and not dry_run:
        await keyed.collect(project, index)
    stored = await keyed.log.segments(project, index)
    left = [one for one in stored if await _holds(keyed, project, index, one, matches)]
    told = Forgotten(index, 0, 0, newest, pending=len(left))
    if not left or dry_run:
        return told if left else None
    gone = [await keyed.log.delete_segment(project, index, one.sha256) for one in left]
    return replace(told, removed=gone.count(True), pending=gone.count(False))


async def _without(
    keyed: KeyedLog,
    project: str,
    head: Commit,
    newest: int,
    current: Sequence[Segment],
    doomed: dict[str, int],
) -> Commit | None:
    """Write an index anew without some documents; None where somebody else was first."""
    now = datetime.now(UTC)
    at = int(now.timestamp() * 1000)
    deletion = (
        replace(
            current[0],
            ids=(),
            documents=(),
            written_at=current[0].written_at[:0],
            vectors=current[0].vectors[:0],
            postings=Postings.of([]),
            lengths=current[0].lengths[:0],
            tombstones={id_: max(at, written_at) for id_, written_at in doomed.items()},
        )
        if current
        else None
    )
    joined = (
        await asyncio.to_thread(log.compact, [*current, deletion]) if deletion is not None else None
    )
    change = await keyed.encoded(project, head.index, joined)
    await keyed.send(project, head.index, change)
    plan = replace(
        head,
        version=newest + 1,
        parent=head.version,
        changed=newest + 1,
        replaced=None,
        restored=None,
        segments=(change.ref,) if change is not None else (),
        doc_count=len(change.segment.ids) if change is not None else 0,
        updated_at=now,
        job_id=uuid.uuid4().hex,
        purged=newest + 1,
    )
    plan = keyed.signed(project, plan)
    return plan if await keyed.commit(project, plan) else None


async def _holds(
    keyed: KeyedLog,
    project: str,
    index: str,
    stored: StoredSegment,
    matches: Callable[[Segment], Any],
) -> bool:
    """Tell whether a segment that no version names holds something to be forgotten.

    One that cannot be read is taken for one that does.
    """
    parts = await keyed.log.read_segment(project, index, stored.sha256)
    if parts is None:
        return False
    async with aclosing(parts):
        data = b"".join([part async for part in parts])

    def look() -> bool:
        try:
            key_id = read_key_id(data) if is_sealed(data) else None
            ref = SegmentRef(stored.sha256, len(data), 0, 0, key_id)
            segment = keyed.decode(project, index, ref, data)
        except (CorruptDataError, EncryptionKeyError):
            return True
        return bool(matches(segment).any())

    return await asyncio.to_thread(look)
