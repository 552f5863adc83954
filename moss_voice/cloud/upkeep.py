"""The upkeep of an index: segments joined or sealed anew, older versions restored, a time to live.

Each makes a version of its own, planned on the newest one and planned anew where somebody else commits
first, so that pushes under way lose nothing.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from moss_voice.cloud import log
from moss_voice.cloud.keyed import KeyedLog, Load
from moss_voice.cloud.log import Commit
from moss_voice.cloud.pacing import TRIES, stand_back
from moss_voice.errors import EncryptionKeyError, IndexNotFoundError, InvalidArgumentError

__all__ = ["compact", "needs_compaction", "reseal", "restore", "set_ttl"]


def needs_compaction(keyed: KeyedLog, commit: Commit) -> bool:
    """Tell whether segments are worth joining: there are many, or some are to be sealed."""
    plain = any(ref.key_id is None for ref in commit.segments)
    return log.needs_compaction(commit) or (keyed.keyring is not None and plain)


async def compact(
    keyed: KeyedLog, project: str, index: str, *, load: Load | None = None
) -> Commit | None:
    """Join segments where they pile up, as a new version with the same documents.

    For after a push, in the background. Whoever pushes or reads meanwhile is not disturbed; where
    somebody else compacts first, theirs stands. With a key, what is not sealed is sealed.

    Returns:
        The new head, or None where there was nothing to do.
    """
    head = await keyed.read_head(project, index)
    if head is None or not needs_compaction(keyed, head):
        return None
    if keyed.keyring is not None and any(ref.key_id is None for ref in head.segments):
        return await reseal(keyed, project, index, load=load)
    return await _join(keyed, project, head, log.compaction_start(head), load, purge=False)


async def reseal(
    keyed: KeyedLog, project: str, index: str, *, load: Load | None = None
) -> Commit | None:
    """Write an index anew with the current key, and remove all that is readable without it.

    Returns:
        The new head, or None where there is no such index, or nothing in it, or it is done already.
    """
    if keyed.keyring is None:
        raise EncryptionKeyError("reseal: expected a key; give encryption_key")
    for attempt in range(TRIES):
        head = await keyed.read_head(project, index)
        if head is None or not head.segments:
            return None
        older = any(ref.key_id != keyed.keyring.current.id for ref in head.segments)
        if not older and head.purged == head.version:
            return None
        done = await _join(keyed, project, head, 0, load, purge=True)
        if done is not None:
            await keyed.collect(project, index)
            return done
        await stand_back(attempt)
    raise keyed.storm(index)


async def _join(
    keyed: KeyedLog, project: str, head: Commit, start: int, load: Load | None, *, purge: bool
) -> Commit | None:
    """Replace the segments from a position on by one that stands for them."""
    index = head.index
    old = head.segments[start:]
    segments = [
        await (load(ref) if load is not None else keyed.load_segment(project, head, ref))
        for ref in old
    ]
    if not segments:
        return None
    cutoff = datetime.now(UTC) - timedelta(days=log.TOMBSTONE_DAYS)
    joined = await asyncio.to_thread(
        log.compact,
        segments,
        drop_tombstones_before=int(cutoff.timestamp() * 1000) if start == 0 else None,
    )
    change = await keyed.encoded(project, index, joined)
    new = (change.ref,) if change is not None else ()
    await keyed.send(project, index, change)
    for attempt in range(TRIES):
        now_head, newest = await keyed.log.head(project, index)
        end = start + len(old)
        if now_head is None or now_head.deleted or now_head.segments[start:end] != old:
            return None
        segments_now = (*now_head.segments[:start], *new, *now_head.segments[end:])
        plan = replace(
            now_head,
            version=newest + 1,
            parent=now_head.version,
            replaced=None,
            restored=None,
            segments=segments_now,
            job_id=uuid.uuid4().hex,
            purged=newest + 1 if purge else now_head.purged,
        )
        plan = keyed.signed(project, plan)
        if await keyed.commit(project, plan):
            return plan
        await stand_back(attempt)
    return None


async def restore(keyed: KeyedLog, project: str, index: str, version: int) -> Commit:
    """Make a new version with the documents of an older one.

    Returns:
        The new head; the head itself where it is that version.

    Raises:
        IndexNotFoundError: If there is no such index, or that version is not kept any more.
    """
    for attempt in range(TRIES):
        head, newest = await keyed.log.head(project, index)
        keyed.checked(project, head)
        old = await keyed.read_commit(project, index, version)
        if head is None or head.deleted or old is None or old.deleted or version < head.purged:
            raise IndexNotFoundError(
                f"index {index!r} has no version {version} (any more); `moss-voice index history`"
                " shows what is kept"
            )
        if version == head.version:
            return head
        for ref in old.segments:
            if ref not in head.segments:
                # Stored again, so that it is young: what nothing named may be about to go.
                data = await keyed.fetch_segment(project, index, ref)
                await keyed.log.write_segment(project, index, ref.sha256, data)
        now = datetime.now(UTC)
        plan = replace(
            old,
            version=newest + 1,
            parent=head.version,
            changed=newest + 1,
            replaced=head.version,
            restored=version,
            updated_at=now,
            job_id=uuid.uuid4().hex,
            ttl_s=head.ttl_s,
            purged=head.purged,
        )
        plan = keyed.signed(project, plan)
        if await keyed.commit(project, plan):
            return plan
        await stand_back(attempt)
    raise keyed.storm(index)


async def set_ttl(keyed: KeyedLog, project: str, index: str, ttl_s: int | None) -> Commit:
    """Set after how many seconds without a change an index is deleted; None keeps it.

    Raises:
        IndexNotFoundError: If there is no such index.
        InvalidArgumentError: If the time is not above 0.
    """
    if ttl_s is not None and ttl_s < 1:
        raise InvalidArgumentError(f"ttl: expected seconds, 1 or more, got {ttl_s}")
    for attempt in range(TRIES):
        head, newest = await keyed.log.head(project, index)
        keyed.checked(project, head)
        if head is None or head.deleted:
            raise IndexNotFoundError(f"there is no index {index!r} in {keyed.name}")
        if head.ttl_s == ttl_s:
            return head
        plan = replace(
            head,
            version=newest + 1,
            parent=head.version,
            replaced=None,
            restored=None,
            job_id=uuid.uuid4().hex,
            ttl_s=ttl_s,
        )
        plan = keyed.signed(project, plan)
        if await keyed.commit(project, plan):
            return plan
        await stand_back(attempt)
    raise keyed.storm(index)
