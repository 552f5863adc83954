"""A cloud: pushes, merges, versions and forgetting, over a log that is kept anywhere.

What is promised, on every kind of log: segments are stored before the commit that names them, so a reader
sees a whole push or none of it; of two that push at once, none is lost under `merge`; what was read is
what was written, or an error (size and SHA-256 are checked). With a key, what leaves this process can be
read by its holders alone: see `sealing`.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

from moss_voice.cloud import forgetting, log, upkeep
from moss_voice.cloud.contract import Authenticator, Log
from moss_voice.cloud.forgetting import Forgotten
from moss_voice.cloud.keyed import Encoded, KeyedLog, Load, Received
from moss_voice.cloud.log import Commit, Segment, SegmentRef
from moss_voice.cloud.objects import Store, open_objects
from moss_voice.cloud.pacing import TRIES, stand_back, together
from moss_voice.cloud.sealing import Keyring
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import ConflictError
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


def open_cloud(
    where: str | Path | Store | None = None,
    *,
    keyring: Keyring | None = None,
    key: str | None = None,
    authenticator: Authenticator | None = None,
    on_sent: Received | None = None,
) -> Cloud:
    """Open a cloud; a server is not asked yet.

    Args:
        where: `http(s)://...` for a moss-voice server; a store that is ready; else see `open_objects`.
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
    objects = where if isinstance(where, Store) else open_objects(where)
    return Cloud(ObjectLog(objects), keyring=keyring)


class Cloud(KeyedLog):
    """The indexes of many projects, on one log. Safe to share between tasks."""

    # --- reading -----------------------------------------------------------------------------------

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

    # --- pushing -----------------------------------------------------------------------------------

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
        base, change = tuple(base_segments), await self.encoded(project, index, delta)
        newest = 0
        for attempt in range(TRIES):
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
            plan = self.signed(project, plan)
            # The segment before the commit, so that nobody sees half a push.
            sent = await self.send(project, index, change)
            if await self.commit(project, plan):
                if change is not None and not sent:
                    # It was there, and may have been about to go: now that it is named it stays.
                    await self.send(project, index, change)
                return Pushed(plan, sent + len(plan.encode()), merged_from)
            await stand_back(attempt)
        raise ConflictError(
            f"index {index!r}: others pushed {TRIES} times in a row before this push could; try"
            " again later",
            base_version=base_version,
            head_version=newest,
        )

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
        return await self.encoded(project, index, await asyncio.to_thread(whole))

    async def _count(
        self, project: str, plan: Commit, change: Encoded | None, load: Load | None
    ) -> int:
        segments = [
            change.segment
            if change is not None and ref == change.ref
            else await (load(ref) if load is not None else self.load_segment(project, plan, ref))
            for ref in plan.segments
        ]
        return (await asyncio.to_thread(log.resolve, segments)).doc_count

    # --- looking after -----------------------------------------------------------------------------

    def needs_compaction(self, commit: Commit) -> bool:
        """Tell whether segments are worth joining: there are many, or some are to be sealed."""
        return upkeep.needs_compaction(self, commit)

    async def compact(self, project: str, index: str, *, load: Load | None = None) -> Commit | None:
        """Join segments where they pile up; see `upkeep.compact`."""
        return await upkeep.compact(self, project, index, load=load)

    async def reseal(self, project: str, index: str, *, load: Load | None = None) -> Commit | None:
        """Write an index anew with the current key; see `upkeep.reseal`."""
        return await upkeep.reseal(self, project, index, load=load)

    async def restore(self, project: str, index: str, version: int) -> Commit:
        """Make a new version with the documents of an older one; see `upkeep.restore`."""
        return await upkeep.restore(self, project, index, version)

    async def set_ttl(self, project: str, index: str, ttl_s: int | None) -> Commit:
        """Set after how many seconds without a change an index is deleted; see `upkeep.set_ttl`."""
        return await upkeep.set_ttl(self, project, index, ttl_s)

    async def forget(
        self,
        project: str,
        index: str,
        matches: Callable[[Segment], Any],
        *,
        dry_run: bool = False,
    ) -> Forgotten | None:
        """Delete documents so that nothing of the index holds them; see `forgetting.forget`."""
        return await forgetting.forget(self, project, index, matches, dry_run=dry_run)

    async def delete_index(self, project: str, index: str) -> None:
        """Delete an index with all its versions.

        Raises:
            IndexNotFoundError: If there is no such index (any more).
        """
        await self.log.delete_index(project, index)

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
