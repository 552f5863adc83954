"""A cloud: pushes, merges, versions and forgetting, over a log that is kept anywhere.

What is promised, on every kind of log: segments are stored before the commit that names them, so a reader
sees a whole push or none of it; of two that push at once, none is lost under `merge`; what was read is
what was written, or an error (size and SHA-256 are checked). With a key, what leaves this process can be
read by its holders alone: see `sealing`.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from moss_voice.cloud import log
from moss_voice.cloud.log import (
    GRACE_S,
    KEEP_COMMITS,
    Commit,
    Head,
    Segment,
    SegmentRef,
    StoredSegment,
)
from moss_voice.cloud.objects import open_objects
from moss_voice.cloud.pacing import TRIES, stand_back, together
from moss_voice.cloud.sealing import Keyring, is_sealed, read_key_id
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import (
    CloudUnavailableError,
    ConflictError,
    CorruptDataError,
    EncryptionKeyError,
    IndexNotFoundError,
    InvalidArgumentError,
)
from moss_voice.keywords import Postings
from moss_voice.types import JobStatusResponse, OnConflict

__all__ = [
    "Authenticator",
    "Cloud",
    "Encoded",
    "Forgotten",
    "Load",
    "Log",
    "Pushed",
    "Received",
    "open_cloud",
]

Load = Callable[[SegmentRef], Awaitable[Segment]]
# Returns a token for a moss-voice server; called again when one is refused.
Authenticator = Callable[[], Awaitable[str]]
# Told how many bytes of how many have come.
Received = Callable[[int, int], None]

PUSH_TRIES: Final = TRIES


class Log(Protocol):
    """Where the logs of a cloud are kept: on objects (`store`), or behind a server (`http`).

    Every method raises `CloudUnavailableError` where the far side does not answer.
    """

    @property
    def name(self) -> str:
        """Where it is, without credentials."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...

    async def check_credentials(self, project_id: str | None, project_key: str | None) -> str:
        """Return the project that the credentials open; raises `AuthenticationError`."""
        ...

    async def head(self, project: str, index: str) -> Head:
        """Return the end of an index's log; cheap where nothing changed since the last time."""
        ...

    async def heads(self, project: str) -> list[Commit]:
        """Return the newest commit of each index, by name."""
        ...

    async def names(self, project: str) -> list[str]:
        """Return the names under which anything is stored: of deleted indexes and unfinished pushes too."""
        ...

    async def history(self, project: str, index: str) -> list[Commit]:
        """Return the versions that are still kept, oldest first."""
        ...

    async def read_commit(self, project: str, index: str, version: int) -> Commit | None:
        """Return one version, or None where it was never made, is collected, or is over."""
        ...

    async def write_commit(self, project: str, commit: Commit) -> bool:
        """Store a commit if its number is free; True too where it is there already, this very one."""
        ...

    async def read_segment(
        self, project: str, index: str, sha256: str
    ) -> AsyncGenerator[bytes] | None:
        """Return a segment's bytes in parts, unchecked, or None where there is none."""
        ...

    async def segment_stored_at(self, project: str, index: str, sha256: str) -> datetime | None:
        """Return when a segment was stored, or None where there is none."""
        ...

    async def write_segment(
        self, project: str, index: str, sha256: str, data: bytes | memoryview
    ) -> bool:
        """Store a segment unless it is there, young; tells whether it was sent."""
        ...

    async def segments(self, project: str, index: str) -> list[StoredSegment]:
        """Return all segments that are stored, also what no commit names."""
        ...

    async def delete_segment(self, project: str, index: str, sha256: str) -> bool:
        """Remove a segment that nothing names and no push is using; tells whether it is gone."""
        ...

    async def delete_index(self, project: str, index: str) -> None:
        """Delete an index; raises `IndexNotFoundError`."""
        ...

    async def collect(self, project: str, index: str, *, grace_s: float, keep: int) -> int:
        """Remove what nobody can still need; returns how many objects that were."""
        ...

    async def put_job(self, project: str, job: JobStatusResponse) -> None:
        """Store how far a job has come."""
        ...

    async def get_job(self, project: str, job_id: str) -> JobStatusResponse:
        """Return how far a job has come; raises `JobNotFoundError`."""
        ...

    def watch(self, project: str, index: str) -> AsyncGenerator[int] | None:
        """Return the versions of an index as they are made, from now on; None where nobody tells.

        Ends, or raises `CloudUnavailableError`, when the line is cut.
        """
        ...


class Encoded(NamedTuple):
    """A segment, ready to be stored: encoded, sealed where there is a key, and hashed."""

    segment: Segment
    data: bytes
    ref: SegmentRef


class Pushed(NamedTuple):
    """What a push did.

    Attributes:
        commit: The head after it.
        uploaded_bytes: Segment and commit; 0 where there was nothing to push.
        merged_from: The version that somebody else had pushed meanwhile, or None.
    """

    commit: Commit
    uploaded_bytes: int
    merged_from: int | None


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


def open_cloud(
    where: str | Path | None = None,
    *,
    keyring: Keyring | None = None,
    key: str | None = None,
    authenticator: Authenticator | None = None,
    on_sent: Received | None = None,
) -> Cloud:
    """Open a cloud; a server is not asked yet.

    Args:
        where: `http(s)://...` for a moss-voice server; else see `open_objects`.
        keyring: To seal and open with.
        key: The project's key, for a server.
        authenticator: Gives tokens in place of it.
        on_sent: Told of each segment that goes to a server: bytes so far, bytes in all.

    Raises:
        InvalidArgumentError: If the URL is of a kind that this version does not know.
        CloudUnavailableError: If the directory cannot be made.
    """
    if isinstance(where, str) and where.lower().startswith(("http://", "https://")):
        # A tenth of a second of imports that other clouds can do without.
        from moss_voice.cloud.http import HttpLog

        log_ = HttpLog(where, key=key, authenticator=authenticator, on_sent=on_sent)
        return Cloud(log_, keyring=keyring)
    return Cloud(ObjectLog(open_objects(where)), keyring=keyring)


class Cloud:
    """The indexes of many projects, on one log. Safe to share between tasks."""

    def __init__(self, log_: Log, *, keyring: Keyring | None = None) -> None:
        """Take a ready log, and the keys to seal and open with, if any."""
        self.log = log_
        self.keyring = keyring

    def __repr__(self) -> str:
        sealed = ", sealed" if self.keyring is not None else ""
        return f"<Cloud {self.name}{sealed}>"

    @property
    def name(self) -> str:
        """Where it is, without credentials."""
        return self.log.name

    async def close(self) -> None:
        """Let go of connections; the next use opens them anew."""
        await self.log.close()

    # --- reading -----------------------------------------------------------------------------------

    async def read_head(self, project: str, index: str) -> Commit | None:
        """Return the newest commit of an index, or None where there is no such index.

        Raises:
            CorruptDataError: If the newest commit is damaged, or was not made by a holder of its key.
        """
        return self.checked(project, (await self.log.head(project, index)).alive)

    async def read_commit(self, project: str, index: str, version: int) -> Commit | None:
        """Return one version of an index, or None where it was never made, is collected, or is over."""
        return self.checked(project, await self.log.read_commit(project, index, version))

    def checked(self, project: str, commit: Commit | None) -> Commit | None:
        """Return a commit that a holder of its key has made; with no key here, any.

        Raises:
            EncryptionKeyError: If the index is encrypted and its key is not here.
            CorruptDataError: If somebody else made it.
        """
        if commit is not None and self.keyring is not None:
            self.keyring.check(commit, project=project)
        return commit

    async def history(self, project: str, index: str) -> list[Commit]:
        """Return the versions that are still kept, oldest first; none where there is no such index."""
        return await self.log.history(project, index)

    async def list_indexes(self, project: str) -> list[Commit]:
        """Return the newest commit of each index, by name.

        Raises:
            CorruptDataError: If one of them is damaged.
        """
        return await self.log.heads(project)

    async def list_names(self, project: str) -> list[str]:
        """Return the names under which anything is stored: of deleted indexes and unfinished pushes too."""
        return await self.log.names(project)

    async def fetch_segment(
        self, project: str, index: str, ref: SegmentRef, *, on_received: Received | None = None
    ) -> memoryview:
        """Return a segment's bytes as they are stored, checked against their address as they come.

        Raises:
            CorruptDataError: If the bytes are others, or there are none.
        """
        parts = await self.log.read_segment(project, index, ref.sha256)
        if parts is None:
            raise CorruptDataError(
                f"index {index!r}: segment {ref.sha256[:12]} is gone from {self.name}"
            )
        data = bytearray()
        digest = hashlib.sha256()
        async with aclosing(parts):
            async for part in parts:
                data += part
                if len(data) > ref.size_bytes:
                    break
                # A large part would hold up the event loop.
                if len(part) > 1 << 16:
                    await asyncio.to_thread(digest.update, part)
                else:
                    digest.update(part)
                if on_received is not None:
                    on_received(len(data), ref.size_bytes)
        if len(data) != ref.size_bytes:
            raise CorruptDataError(
                f"index {index!r}: segment {ref.sha256[:12]}: expected {ref.size_bytes} bytes, got"
                f" {len(data)}{' or more' if len(data) > ref.size_bytes else ''}"
            )
        if digest.hexdigest() != ref.sha256:
            raise CorruptDataError(f"index {index!r}: segment {ref.sha256[:12]}: SHA-256 differs")
        return memoryview(data).toreadonly()

    def decode(
        self, project: str, index: str, ref: SegmentRef, data: bytes | memoryview
    ) -> Segment:
        """Return a segment of bytes that `fetch_segment` or a cache gave; synchronous, for a worker.

        Raises:
            EncryptionKeyError: If it is sealed with a key that is not here.
            CorruptDataError: If it is damaged.
        """
        if ref.key_id is None:
            return log.decode_segment(data)
        if self.keyring is None:
            raise EncryptionKeyError(
                f"index {index!r} is encrypted with key {ref.key_id}; give encryption_key, or"
                " MOSS_VOICE_ENCRYPTION_KEY"
            )
        key = self.keyring.key(ref.key_id, index=index)
        return log.decode_segment(key.open(data, project=project, index=index))

    async def _load(self, project: str, commit: Commit, ref: SegmentRef) -> Segment:
        data = await self.fetch_segment(project, commit.index, ref)
        segment = await asyncio.to_thread(self.decode, project, commit.index, ref, data)
        if (segment.model_id, segment.dim) != (commit.model_id, commit.dim):
            raise CorruptDataError(
                f"index {commit.index!r}: segment {ref.sha256[:12]} was made with another model"
            )
        return segment

    # --- writing -----------------------------------------------------------------------------------

    def encode(self, project: str, index: str, segment: Segment) -> Encoded:
        """Encode, seal where there is a key, and hash; synchronous, for a worker.

        Raises:
            InvalidArgumentError: If the segment has neither rows nor tombstones, or its parts disagree.
        """
        rows, tombstones = len(segment.ids), len(segment.tombstones)
        if not rows and not tombstones:
            raise InvalidArgumentError("segment: expected rows or tombstones, got none")
        data = log.encode_segment(segment)
        key_id = None
        if self.keyring is not None:
            key = self.keyring.current
            data, key_id = key.seal(data, project=project, index=index), key.id
        return Encoded(
            segment, data, SegmentRef.of(data, rows=rows, tombstones=tombstones, key_id=key_id)
        )

    async def _encoded(
        self, project: str, index: str, delta: Segment | Encoded | None
    ) -> Encoded | None:
        """Encode in a worker thread; None for a segment that says nothing."""
        if isinstance(delta, Encoded) or delta is None:
            return delta
        if not len(delta.ids) and not delta.tombstones:
            return None
        return await asyncio.to_thread(self.encode, project, index, delta)

    async def put_segment(self, project: str, index: str, segment: Segment) -> SegmentRef:
        """Store a segment unless it is there, and return its address.

        Raises:
            InvalidArgumentError: If it has neither rows nor tombstones.
        """
        encoded = await asyncio.to_thread(self.encode, project, index, segment)
        await self.log.write_segment(project, index, encoded.ref.sha256, encoded.data)
        return encoded.ref

    async def commit(self, project: str, commit: Commit) -> bool:
        """Store a commit if its number is free; False where somebody else was first.

        True also where the commit there is this very one: the answer to an earlier try was lost.
        """
        return await self.log.write_commit(project, commit)

    def _signed(self, project: str, commit: Commit) -> Commit:
        if self.keyring is None:
            if commit.key_ids:
                raise EncryptionKeyError(
                    f"index {commit.index!r} is encrypted with key {min(commit.key_ids)}; give"
                    " encryption_key, or MOSS_VOICE_ENCRYPTION_KEY"
                )
            return replace(commit, mac=None)
        return replace(commit, mac=self.keyring.current.mac(commit, project=project))

    async def push(
        self,
        project: str,
        index: str,
        *,
        base_version: int,
        base_segments: Sequence[SegmentRef],
        delta: Segment | Encoded | None,
        doc_count: int,
        model_id: str,
        dim: int,
        analyzer: str,
        on_conflict: OnConflict,
        job_id: str | None = None,
        ttl_s: int | None = None,
        whole: Callable[[], Segment] | None = None,
        load: Load | None = None,
        count: bool = False,
    ) -> Pushed:
        """Push what changed since the base, as the next version of the index.

        The new segment goes up first, then the commit; where somebody else commits first, the push is
        planned anew on theirs.

        Args:
            project: The project's id.
            index: The index's name.
            base_version: The version the pusher's copy was read from; 0 where there was none.
            base_segments: That version's segments.
            delta: Rows and tombstones since then; None where nothing changed.
            doc_count: Documents alive in the pusher's copy.
            model_id: The pusher's model.
            dim: Its numbers per vector.
            analyzer: The pusher's `text.ANALYZER`.
            on_conflict: See `log.plan_push`.
            job_id: Of this push; made up where None.
            ttl_s: The index's retention period from now on; None leaves it as it is.
            whole: Makes one segment of the pusher's whole copy (called in a worker thread): needed by
                `replace` where the base's segments were collected or the index was deleted meanwhile.
            load: Reads a segment, say through a cache, to count documents after a merge; fetched from
                the cloud where None.
            count: True where the pusher does not know `doc_count`.

        Raises:
            ConflictError: If somebody else pushed meanwhile, under `error`; or always did, under the
                others; or `replace` needs `whole` and there is none.
            ModelMismatchError: If the index belongs to another model.
            EncryptionKeyError: If the index is encrypted and there is no key.
        """
        base, change = tuple(base_segments), await self._encoded(project, index, delta)
        newest = 0
        for attempt in range(PUSH_TRIES):
            head, newest = await self.log.head(project, index)
            self.checked(project, head)
            moved = log.head_moved(head, base_version)
            if moved and on_conflict == "replace" and not await self._stands(project, head, base):
                base = ()
                change = await self._made_whole(project, index, whole, base_version, newest)
                doc_count = len(change.segment.ids) if change is not None else 0
            plan = log.plan_push(
                head,
                index=index,
                base_version=base_version,
                base_segments=base,
                delta=change.ref if change is not None else None,
                doc_count=doc_count,
                model_id=model_id,
                dim=dim,
                analyzer=analyzer,
                on_conflict=on_conflict,
                job_id=job_id or uuid.uuid4().hex,
                index_id=uuid.uuid4().hex,
                now=datetime.now(UTC),
                version=newest + 1,
                ttl_s=ttl_s,
            )
            merged_from = head.version if head is not None and moved else None
            if plan is head:
                return Pushed(plan, 0, merged_from)
            if count or (moved and on_conflict == "merge"):
                plan = replace(plan, doc_count=await self._count(project, plan, change, load))
            plan = self._signed(project, plan)
            # The segment before the commit, so that nobody sees half a push.
            sent = await self._send(project, index, change)
            if await self.commit(project, plan):
                if change is not None and not sent:
                    # It was there, and may have been about to go: now that it is named it stays.
                    await self._send(project, index, change)
                return Pushed(plan, sent + len(plan.encode()), merged_from)
            await stand_back(attempt)
        raise ConflictError(
            f"index {index!r}: others pushed {PUSH_TRIES} times in a row before this push could; try"
            " again later",
            base_version=base_version,
            head_version=newest,
        )

    async def _send(self, project: str, index: str, change: Encoded | None) -> int:
        """Store a segment unless it is there, and return how many bytes were sent."""
        if change is None:
            return 0
        sent = await self.log.write_segment(project, index, change.ref.sha256, change.data)
        return len(change.data) if sent else 0

    async def _stands(self, project: str, head: Commit | None, base: Sequence[SegmentRef]) -> bool:
        """Tell whether a push may build on these segments: they are there and will stay."""
        if head is None or head.deleted:
            return not base
        others = [ref.sha256 for ref in base if ref not in head.segments]
        found = await together(
            self.log.segment_stored_at(project, head.index, name) for name in others
        )
        return None not in found

    async def _made_whole(
        self,
        project: str,
        index: str,
        whole: Callable[[], Segment] | None,
        base_version: int,
        head_version: int,
    ) -> Encoded | None:
        if whole is None:
            raise ConflictError(
                f"index {index!r}: version {base_version}, on which this push builds, is gone; open the"
                " index anew, or push with on_conflict='merge'",
                base_version=base_version,
                head_version=head_version,
            )
        return await self._encoded(project, index, await asyncio.to_thread(whole))

    async def _count(
        self, project: str, plan: Commit, change: Encoded | None, load: Load | None
    ) -> int:
        segments = [
            change.segment
            if change is not None and ref == change.ref
            else await (load(ref) if load is not None else self._load(project, plan, ref))
            for ref in plan.segments
        ]
        return (await asyncio.to_thread(log.resolve, segments)).doc_count

    # --- looking after -----------------------------------------------------------------------------

    def needs_compaction(self, commit: Commit) -> bool:
        """Tell whether segments are worth joining: there are many, or some are to be sealed."""
        plain = any(ref.key_id is None for ref in commit.segments)
        return log.needs_compaction(commit) or (self.keyring is not None and plain)

    async def compact(self, project: str, index: str, *, load: Load | None = None) -> Commit | None:
        """Join segments where they pile up, as a new version with the same documents.

        For after a push, in the background. Whoever pushes or reads meanwhile is not disturbed; where
        somebody else compacts first, theirs stands. With a key, what is not sealed is sealed.

        Returns:
            The new head, or None where there was nothing to do.
        """
        head = await self.read_head(project, index)
        if head is None or not self.needs_compaction(head):
            return None
        if self.keyring is not None and any(ref.key_id is None for ref in head.segments):
            return await self.reseal(project, index, load=load)
        return await self._join(project, head, log.compaction_start(head), load, purge=False)

    async def reseal(self, project: str, index: str, *, load: Load | None = None) -> Commit | None:
        """Write an index anew with the current key, and remove all that is readable without it.

        Returns:
            The new head, or None where there is no such index, or nothing in it, or it is done already.
        """
        if self.keyring is None:
            raise EncryptionKeyError("reseal: expected a key; give encryption_key")
        for attempt in range(PUSH_TRIES):
            head = await self.read_head(project, index)
            if head is None or not head.segments:
                return None
            older = any(ref.key_id != self.keyring.current.id for ref in head.segments)
            if not older and head.purged == head.version:
                return None
            done = await self._join(project, head, 0, load, purge=True)
            if done is not None:
                await self.collect(project, index)
                return done
            await stand_back(attempt)
        raise CloudUnavailableError(f"index {index!r} in {self.name} is pushed to all the time")

    async def _join(
        self, project: str, head: Commit, start: int, load: Load | None, *, purge: bool
    ) -> Commit | None:
        """Replace the segments from a position on by one that stands for them."""
        index = head.index
        old = head.segments[start:]
        segments = [
            await (load(ref) if load is not None else self._load(project, head, ref)) for ref in old
        ]
        if not segments:
            return None
        cutoff = datetime.now(UTC) - timedelta(days=log.TOMBSTONE_DAYS)
        joined = await asyncio.to_thread(
            log.compact,
            segments,
            drop_tombstones_before=int(cutoff.timestamp() * 1000) if start == 0 else None,
        )
        change = await self._encoded(project, index, joined)
        new = (change.ref,) if change is not None else ()
        await self._send(project, index, change)
        for attempt in range(PUSH_TRIES):
            now_head, newest = await self.log.head(project, index)
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
            plan = self._signed(project, plan)
            if await self.commit(project, plan):
                return plan
            await stand_back(attempt)
        return None

    async def collect(
        self, project: str, index: str, *, grace_s: float = GRACE_S, keep: int = KEEP_COMMITS
    ) -> int:
        """Remove what no reader or writer can still need, and return how many objects that were.

        See `ObjectLog.collect`.
        """
        return await self.log.collect(project, index, grace_s=grace_s, keep=keep)

    async def restore(self, project: str, index: str, version: int) -> Commit:
        """Make a new version with the documents of an older one.

        Returns:
            The new head; the head itself where it is that version.

        Raises:
            IndexNotFoundError: If there is no such index, or that version is not kept any more.
        """
        for attempt in range(PUSH_TRIES):
            head, newest = await self.log.head(project, index)
            self.checked(project, head)
            old = await self.read_commit(project, index, version)
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
                    data = await self.fetch_segment(project, index, ref)
                    await self.log.write_segment(project, index, ref.sha256, data)
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
            plan = self._signed(project, plan)
            if await self.commit(project, plan):
                return plan
            await stand_back(attempt)
        raise CloudUnavailableError(f"index {index!r} in {self.name} is pushed to all the time")

    async def set_ttl(self, project: str, index: str, ttl_s: int | None) -> Commit:
        """Set after how many seconds without a change an index is deleted; None keeps it.

        Raises:
            IndexNotFoundError: If there is no such index.
            InvalidArgumentError: If the time is not above 0.
        """
        if ttl_s is not None and ttl_s < 1:
            raise InvalidArgumentError(f"ttl: expected seconds, 1 or more, got {ttl_s}")
        for attempt in range(PUSH_TRIES):
            head, newest = await self.log.head(project, index)
            self.checked(project, head)
            if head is None or head.deleted:
                raise IndexNotFoundError(f"there is no index {index!r} in {self.name}")
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
            plan = self._signed(project, plan)
            if await self.commit(project, plan):
                return plan
            await stand_back(attempt)
        raise CloudUnavailableError(f"index {index!r} in {self.name} is pushed to all the time")

    async def delete_index(self, project: str, index: str) -> None:
        """Delete an index with all its versions.

        Raises:
            IndexNotFoundError: If there is no such index (any more).
        """
        await self.log.delete_index(project, index)

    async def forget(
        self,
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
            project: The project's id.
            index: The index's name.
            matches: Given a segment, tells which of its rows are to be forgotten: (n,) bool. Called in a
                worker thread.
            dry_run: True only counts.

        Returns:
            What was done; None where there is no such index, nor anything left of one.
        """
        for attempt in range(PUSH_TRIES):
            head, newest = await self.log.head(project, index)
            self.checked(project, head)
            if head is None or head.deleted:
                return await self._forget_leftovers(
                    project, index, newest, matches, dry_run=dry_run
                )
            versions = [head, *await self.log.history(project, index)]
            refs = {ref.sha256: ref for commit in versions for ref in commit.segments}
            rest = [s for s in await self.log.segments(project, index) if s.sha256 not in refs]
            segments = {
                sha256: await self._load(project, head, ref) for sha256, ref in refs.items()
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
            left = [s for s in rest if await self._holds(project, index, s, matches)]
            told = Forgotten(index, len(doomed), rows - len(doomed), head.version)
            if dry_run or (not rows and not left):
                return replace(told, pending=len(left))
            if rows:
                plan = await self._without(project, head, newest, current, doomed)
                if plan is None:
                    await stand_back(attempt)
                    continue
                told = replace(told, version=plan.version)
            removed = await self.collect(project, index)
            gone = [
                await self.log.delete_segment(project, index, segment.sha256) for segment in left
            ]
            return replace(told, removed=removed + gone.count(True), pending=gone.count(False))
        raise CloudUnavailableError(f"index {index!r} in {self.name} is pushed to all the time")

    async def _forget_leftovers(
        self,
        project: str,
        index: str,
        newest: int,
        matches: Callable[[Segment], Any],
        *,
        dry_run: bool,
    ) -> Forgotten | None:
        """Look into what is left of an index that was deleted, or whose first push was cut off."""
        if newest and not dry_run:
            await self.collect(project, index)
        stored = await self.log.segments(project, index)
        left = [one for one in stored if await self._holds(project, index, one, matches)]
        told = Forgotten(index, 0, 0, newest, pending=len(left))
        if not left or dry_run:
            return told if left else None
        gone = [await self.log.delete_segment(project, index, one.sha256) for one in left]
        return replace(told, removed=gone.count(True), pending=gone.count(False))

    async def _without(
        self,
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
            await asyncio.to_thread(log.compact, [*current, deletion])
            if deletion is not None
            else None
        )
        change = await self._encoded(project, head.index, joined)
        await self._send(project, head.index, change)
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
        plan = self._signed(project, plan)
        return plan if await self.commit(project, plan) else None

    async def _holds(
        self,
        project: str,
        index: str,
        stored: StoredSegment,
        matches: Callable[[Segment], Any],
    ) -> bool:
        """Tell whether a segment that no version names holds something to be forgotten.

        One that cannot be read is taken for one that does.
        """
        parts = await self.log.read_segment(project, index, stored.sha256)
        if parts is None:
            return False
        async with aclosing(parts):
            data = b"".join([part async for part in parts])

        def look() -> bool:
            try:
                key_id = read_key_id(data) if is_sealed(data) else None
                ref = SegmentRef(stored.sha256, len(data), 0, 0, key_id)
                segment = self.decode(project, index, ref, data)
            except (CorruptDataError, EncryptionKeyError):
                return True
            return bool(matches(segment).any())

        return await asyncio.to_thread(look)

    # --- jobs and credentials ----------------------------------------------------------------------

    async def report(self, project: str, commit: Commit, *, job_id: str | None = None) -> None:
        """Store the job of a push that is done, so that any process can ask for it.

        Args:
            project: The project's id.
            commit: What the push made.
            job_id: The commit's where None.
        """
        at = commit.updated_at
        done = JobStatusResponse(job_id or commit.job_id, "completed", 1.0, None, None, at, at, at)
        await self.log.put_job(project, done)

    async def put_job(self, project: str, job: JobStatusResponse) -> None:
        """Store how far a job has come, over what was stored before."""
        await self.log.put_job(project, job)

    async def get_job(self, project: str, job_id: str) -> JobStatusResponse:
        """Return how far a job has come.

        Raises:
            JobNotFoundError: If there is no such job.
            CorruptDataError: If its record is damaged.
        """
        return await self.log.get_job(project, job_id)

    async def check_credentials(self, project_id: str | None, project_key: str | None) -> str:
        """Return the project that the credentials open.

        Raises:
            AuthenticationError: If the key is wrong or missing.
            InvalidArgumentError: If the project's id cannot be a name.
        """
        return await self.log.check_credentials(project_id, project_key)
