"""The log of an index on objects: in a directory, in memory, or in an object store.

    PROJECT/INDEX/log/000000000007.json   commits: put if absent, so whoever makes the next one first wins
    PROJECT/INDEX/segments/SHA256         segments: immutable, named by their content
    PROJECT/INDEX/gc.json                 segments that nothing names, and since when
    PROJECT/~jobs/JOB.json                how far a push or a change has come

What is promised: a commit appears at once and complete; of two writers of one commit exactly one wins;
nothing is kept in this process but the last commit seen. A commit that a power failure left empty before
it was acknowledged is passed over. An index whose time is up is deleted by whoever comes upon it first.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

import pydantic
from pydantic import TypeAdapter

from moss_voice.cloud import log
from moss_voice.cloud.contract import Log
from moss_voice.cloud.keys import ProjectKeys, utc_now
from moss_voice.cloud.log import FRESH_S, GRACE_S, KEEP_COMMITS, Commit, Head, StoredSegment
from moss_voice.cloud.names import decode_name, encode_name
from moss_voice.cloud.objects import Store
from moss_voice.cloud.pacing import TRIES, stand_back, together
from moss_voice.errors import (
    CloudUnavailableError,
    CorruptDataError,
    IndexNotFoundError,
    JobNotFoundError,
)
from moss_voice.types import JobStatusResponse

__all__ = ["ObjectLog"]

_COMMIT_FILE: Final = re.compile(r"(\d{12})\.json")
_SEGMENT_FILE: Final = re.compile(r"[0-9a-f]{64}")
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_JOB: Final = TypeAdapter(JobStatusResponse)
_REMEMBERED: Final = 1024


class _Entry(NamedTuple):
    version: int
    size_bytes: int
    at: datetime
    tag: str | None

    @property
    def stamp(self) -> tuple[datetime, str | None]:
        """What tells it from another object of the same number."""
        return self.at, self.tag


class ObjectLog(Log):
    """The logs of many projects in one store.

    Safe to share between tasks; two processes on one store need nothing but the store. Every method
    raises `CloudUnavailableError` where the store cannot be read or written.
    """

    def __init__(self, objects: Store, *, now: Callable[[], datetime] = utc_now) -> None:
        """Take a ready store, and the clock that ends indexes and keys."""
        self.objects = objects
        self.keys = ProjectKeys(objects, now=now)
        self._now = now
        # With what tells the object from another of the same number.
        self._heads: dict[str, tuple[Commit, tuple[datetime, str | None]]] = {}

    def __repr__(self) -> str:
        return f"<ObjectLog {self.name}>"

    @property
    def name(self) -> str:
        """Where it is, without credentials."""
        return self.objects.name

    async def close(self) -> None:
        """Nothing is held open."""

    # --- reading -----------------------------------------------------------------------------------

    async def head(self, project: str, index: str) -> Head:
        """Return the end of an index's log.

        One listing from the last commit seen, and one read if there is a newer one. An index whose time
        is up is deleted on the way, or told as deleted where this store may only be read.

        Raises:
            CorruptDataError: If the newest commit is damaged.
        """
        folder = _folder(project, index)
        for attempt in range(TRIES):
            head = await self._head(folder)
            if head.commit is None or not self._is_over(head.commit):
                return head
            try:
                await self._bury(folder, head)
            except CloudUnavailableError:
                gone = replace(head.commit, deleted=True, segments=(), doc_count=0, mac=None)
                return Head(gone, head.newest)
            await stand_back(attempt)
        raise CloudUnavailableError(f"index {index!r} in {self.name} is pushed to all the time")

    def _is_over(self, commit: Commit) -> bool:
        expires_at = commit.expires_at
        return expires_at is not None and expires_at <= self._now()

    async def _head(self, folder: str) -> Head:
        """Return the newest commit, deleted or not, and the highest number in use."""
        for _ in range(TRIES):
            # Not by its time alone, of which some stores keep but the seconds.
            known, known_at = self._heads.get(folder, (None, None))
            # From one before it, so that the commit known must show itself: if it does not, somebody
            # emptied the store, and what is known is worth nothing.
            after = _commit_file(known.version - 1) if known is not None else None
            entries = await self._entries(folder, after=after)
            if known is not None and known.version not in (entry.version for entry in entries):
                known = None
                entries = await self._entries(folder)
            if not entries:
                return Head(None, 0)
            newest = entries[-1].version
            # An empty commit was never acknowledged; see the law of this module.
            whole = [entry for entry in entries if entry.size_bytes > 0]
            if not whole:
                return Head(None, newest)
            last = whole[-1]
            if known is not None and (known.version, known_at) == (last.version, last.stamp):
                return Head(known, newest)
            commit = await self._read_commit(folder, last.version)
            if commit is not None:
                self._remember(folder, commit, last.stamp)
                return Head(commit, newest)
            # Collected between the listing and the reading: there are newer ones.
        raise CloudUnavailableError(f"the log in {folder} of {self.name} never holds still")

    def _remember(self, folder: str, commit: Commit, stamp: tuple[datetime, str | None]) -> None:
        self._heads.pop(folder, None)
        self._heads[folder] = (commit, stamp)
        if len(self._heads) > _REMEMBERED:
            del self._heads[next(iter(self._heads))]

    async def _entries(self, folder: str, *, after: str | None = None) -> list[_Entry]:
        """Return the commits there are, ascending."""
        found = await self.objects.listing(f"{folder}/log", after=after)
        matches = ((_COMMIT_FILE.fullmatch(file.name), file) for file in found)
        return sorted(
            _Entry(int(match[1]), file.size_bytes, file.at, file.tag)
            for match, file in matches
            if match
        )

    async def read_commit(self, project: str, index: str, version: int) -> Commit | None:
        """Return one version of an index, or None where it was never made, is collected, or is over."""
        commit = await self._read_commit(_folder(project, index), version)
        return None if commit is None or self._is_over(commit) else commit

    async def _read_commit(self, folder: str, version: int) -> Commit | None:
        data = await self.objects.get(_commit_path(folder, version))
        if not data:
            return None
        commit = log.decode_commit(data)
        if commit.version != version or not folder.endswith(f"/{encode_name(commit.index)}"):
            raise CorruptDataError(
                f"commit {version} in {folder} is another's: version {commit.version} of index"
                f" {commit.index!r}"
            )
        return commit

    async def history(self, project: str, index: str, *, most: int | None = None) -> list[Commit]:
        """Return the versions that are still kept, oldest first; none where the index is deleted.

        Args:
            project: The project's id.
            index: The index's name.
            most: Of more than so many the newest.

        Raises:
            CorruptDataError: If one of them is damaged.
        """
        head = await self.head(project, index)
        if head.alive is None:
            return []
        folder = _folder(project, index)
        versions = [entry.version for entry in await self._entries(folder) if entry.size_bytes]
        if most is not None:
            versions = versions[-most:]
        found = await together(self._read_commit(folder, version) for version in versions)
        return [
            commit
            for commit in found
            if commit is not None and not commit.deleted and not self._is_over(commit)
        ]

    async def read_segment(
        self, project: str, index: str, sha256: str
    ) -> AsyncGenerator[bytes] | None:
        """Return a segment's bytes in parts, unchecked, or None where there is none."""
        return await self.objects.stream(_segment_path(_folder(project, index), sha256))

    async def segment_stored_at(self, project: str, index: str, sha256: str) -> datetime | None:
        """Return when a segment was stored, or None where there is none."""
        return await self.objects.stored_at(_segment_path(_folder(project, index), sha256))

    async def segments(self, project: str, index: str) -> list[StoredSegment]:
        """Return all segments that are stored of an index, also what no commit names."""
        found = await self.objects.listing(f"{_folder(project, index)}/segments")
        return [
            StoredSegment(file.name, file.size_bytes, file.at)
            for file in found
            if _SEGMENT_FILE.fullmatch(file.name)
        ]

    async def heads(self, project: str) -> list[Commit]:
        """Return the newest commit of each index, by name.

        Raises:
            CorruptDataError: If one of them is damaged.
        """
        commits = [head.alive for _, head in await self._all_heads(project)]
        return sorted(
            (commit for commit in commits if commit is not None and not self._is_over(commit)),
            key=lambda commit: commit.index,
        )

    async def names(self, project: str) -> list[str]:
        """Return the names under which anything is stored: of deleted indexes and unfinished pushes too.

        Not those that were too long to be kept and never had a commit, which alone would tell them.
        """
        names: list[str] = []
        for folder, head in await self._all_heads(project):
            component = folder.rpartition("/")[2]
            if head.commit is not None:
                names.append(head.commit.index)
            elif "~" not in component:
                names.append(decode_name(component))
        return sorted(names)

    async def _all_heads(self, project: str) -> list[tuple[str, Head]]:
        folders = await self.folders(project)
        return list(zip(folders, await self.heads_in(folders), strict=True))

    # --- reading a part of a large project -----------------------------------------------------------

    async def folders(self, project: str) -> list[str]:
        """Return where each index is kept, of deleted ones and unfinished pushes too; one listing."""
        prefix = encode_name(project, what="project id")
        found = await self.objects.folders(prefix)
        return [folder for folder in found if not folder.rpartition("/")[2].startswith("~")]

    async def heads_in(self, folders: Sequence[str]) -> list[Head]:
        """Return the ends of the logs that are kept in these folders, in their order."""
        return await together(self._head(folder) for folder in folders)

    async def count_versions(self, project: str, index: str) -> int:
        """Return how many versions of an index are kept: a listing and a read, where `history` reads all."""
        folder = _folder(project, index)
        versions = [entry.version for entry in await self._entries(folder) if entry.size_bytes]
        if not versions:
            return 0
        # What was before a deletion is gone, so that one can only be the oldest.
        oldest = await self._read_commit(folder, versions[0])
        return len(versions) - (oldest is not None and oldest.deleted)

    async def newest_jobs(
        self, project: str, *, offset: int, limit: int, most: int
    ) -> tuple[list[tuple[str, JobStatusResponse | None]], int]:
        """Return jobs, the one last written first, and how many there are.

        Args:
            project: The project's id.
            offset: How many to pass over.
            limit: The most to read.
            most: Records to look at, in the store's own order: of more the others are not told.

        Returns:
            Each job's id and record, None where that is damaged.
        """
        folder = f"{encode_name(project, what='project id')}/~jobs"
        found = await self.objects.listing_some(folder, most=most)
        jobs = [file for file in found if _JOB_ID.fullmatch(file.name.removesuffix(".json"))]
        jobs.sort(key=lambda file: (file.at, file.name), reverse=True)
        ids = [file.name.removesuffix(".json") for file in jobs[offset : offset + limit]]
        records = await together(self._job_if_sound(project, id_) for id_ in ids)
        return list(zip(ids, records, strict=True)), len(jobs)

    async def _job_if_sound(self, project: str, job_id: str) -> JobStatusResponse | None:
        with suppress(CorruptDataError, JobNotFoundError):
            return await self.get_job(project, job_id)
        return None

    # --- writing -----------------------------------------------------------------------------------

    async def write_segment(
        self, project: str, index: str, sha256: str, data: bytes | memoryview
    ) -> bool:
        """Store a segment unless it is there, young; tells whether it was sent."""
        path = _segment_path(_folder(project, index), sha256)
        stored_at = await self.objects.stored_at(path)
        # An old one may be about to be collected: storing it again makes it young.
        if stored_at is not None and utc_now() - stored_at < timedelta(seconds=FRESH_S):
            return False
        await self.objects.put(path, data, if_absent=False)
        return True

    async def write_commit(self, project: str, commit: Commit) -> bool:
        """Store a commit if its number is free; False where somebody else was first.

        True also where the commit there is this very one: the answer to an earlier try was lost.
        """
        return await self._write_commit(_folder(project, commit.index), commit)

    async def _write_commit(self, folder: str, commit: Commit) -> bool:
        data = commit.encode()
        path = _commit_path(folder, commit.version)
        if not await self.objects.put(path, data, if_absent=True):
            there = await self.objects.get(path)
            return there is not None and bytes(there) == data
        return True

    async def delete_index(self, project: str, index: str) -> None:
        """Delete an index: a last commit says so, then its segments and older commits are removed.

        A deletion that was interrupted is finished by deleting again, or by `collect`. The numbers of
        the versions go on, should the index be made anew.

        Raises:
            IndexNotFoundError: If there is no such index (any more).
        """
        folder = _folder(project, index)
        for attempt in range(TRIES):
            head = await self._head(folder)
            if head.alive is None:
                if head.commit is not None:
                    await self._erase(folder, head.commit.version)
                raise IndexNotFoundError(f"there is no index {index!r} in {self.name}")
            if await self._bury(folder, head):
                return
            await stand_back(attempt)
        raise CloudUnavailableError(f"index {index!r} in {self.name} is pushed to all the time")

    async def _bury(self, folder: str, head: Head) -> bool:
        """Delete an index, as long as nobody has pushed to it since."""
        assert head.commit is not None  # noqa: S101 - the callers looked
        last = replace(
            head.commit,
            version=head.newest + 1,
            parent=head.commit.version,
            changed=head.newest + 1,
            replaced=None,
            restored=None,
            segments=(),
            doc_count=0,
            updated_at=self._now(),
            job_id=uuid.uuid4().hex,
            deleted=True,
            # What expired and comes again is to expire again; what somebody deleted starts anew.
            ttl_s=head.commit.ttl_s if self._is_over(head.commit) else None,
            mac=None,
        )
        if not await self._write_commit(folder, last):
            return False
        await self._erase(folder, last.version)
        return True

    async def _erase(self, folder: str, before: int) -> None:
        """Remove the commits before a version, and the segments that they name."""
        await self._purge(folder, before, keep=await self._named_from(folder, before))
        # Unnamed segments go too, but for those of a push that is still under way.
        await self._collect(folder, grace_s=FRESH_S, keep=1)

    async def _purge(self, folder: str, before: int, *, keep: frozenset[str]) -> int:
        """Remove the commits before a version and the segments that they alone name.

        The segments first: of a removal that was cut off, the commits still tell what is left to do.
        """
        old = [entry.version for entry in await self._entries(folder) if entry.version < before]
        doomed: set[str] = set()
        for version in old:
            with suppress(CorruptDataError):  # what it named is unnamed now, and collected
                commit = await self._read_commit(folder, version)
                doomed |= {ref.sha256 for ref in commit.segments} if commit is not None else set()
        await self.objects.delete([_segment_path(folder, name) for name in sorted(doomed - keep)])
        await self.objects.delete([_commit_path(folder, version) for version in old])
        return len(doomed - keep) + len(old)

    async def delete_segment(self, project: str, index: str, sha256: str) -> bool:
        """Remove a segment that has lain about unnamed for an hour; tells whether it is gone."""
        folder = _folder(project, index)
        path = _segment_path(folder, sha256)
        stored_at = await self.objects.stored_at(path)
        if stored_at is None:
            return True
        named: set[str] = set()
        for entry in await self._entries(folder):
            commit = await self._read_commit(folder, entry.version)
            named |= {ref.sha256 for ref in commit.segments} if commit is not None else set()
        if sha256 in named or utc_now() - stored_at < timedelta(seconds=FRESH_S):
            return False
        await self.objects.delete([path])
        return True

    async def collect(
        self, project: str, index: str, *, grace_s: float = GRACE_S, keep: int = KEEP_COMMITS
    ) -> int:
        """Remove what no reader or writer can still need, and return how many objects that were.

        Kept are the last `keep` commits, commits and segments younger than `grace_s`, and every
        segment that a commit kept names. A segment that is found unnamed is noted, and removed by a
        collection that comes an hour later (or `grace_s`, where that is less): a push that is under way
        may be about to name it again. Versions below one that forgot documents go at once.

        Raises:
            CorruptDataError: If a commit that is kept is damaged: then nothing is removed.
        """
        folder = _folder(project, index)
        head = await self.head(project, index)
        removed = 0
        if head.commit is not None:
            start = head.commit.version if head.commit.deleted else head.commit.purged
            if start:
                keep_these = await self._named_from(folder, start)
                removed = await self._purge(folder, start, keep=keep_these)
        return removed + await self._collect(folder, grace_s=grace_s, keep=keep)

    async def _named_from(self, folder: str, version: int) -> frozenset[str]:
        named: set[str] = set()
        for entry in await self._entries(folder):
            if entry.version >= version:
                commit = await self._read_commit(folder, entry.version)
                named |= {ref.sha256 for ref in commit.segments} if commit is not None else set()
        return frozenset(named)

    async def _collect(self, folder: str, *, grace_s: float, keep: int) -> int:
        now = utc_now()
        horizon = now - timedelta(seconds=grace_s)
        # Segments first: one that is committed after this listing is then known to be named.
        stored = await self.objects.listing(f"{folder}/segments")
        entries = await self._entries(folder)
        whole = [entry for entry in entries if entry.size_bytes > 0]
        kept = {entry.version for entry in whole if entry.at >= horizon}
        kept |= {entry.version for entry in whole[-max(keep, 1) :]}
        named: set[str] = set()
        for version in sorted(kept):
            commit = await self._read_commit(folder, version)
            named |= {ref.sha256 for ref in commit.segments} if commit is not None else set()
        unnamed = [
            file
            for file in stored
            if _SEGMENT_FILE.fullmatch(file.name) and file.name not in named and file.at < horizon
        ]
        delay = timedelta(seconds=min(grace_s, FRESH_S))
        noted = await self._noted(folder) if unnamed and delay else {}
        # One that was stored again since it was noted begins anew.
        since = {file.name: max(noted.get(file.name, now), file.at) for file in unnamed}
        ripe = {name for name, at in since.items() if at + delay <= now}
        doomed = [
            _commit_path(folder, entry.version) for entry in whole if entry.version not in kept
        ]
        doomed += [_segment_path(folder, name) for name in sorted(ripe)]
        await self.objects.delete(doomed)
        waiting = {name: at for name, at in since.items() if name not in ripe}
        await self._note(folder, waiting, before=noted)
        return len(doomed)

    async def _noted(self, folder: str) -> dict[str, datetime]:
        """Return since when each segment is known to be unnamed; what cannot be read is noted anew."""
        data = await self.objects.get(f"{folder}/gc.json")
        try:
            unnamed = json.loads(bytes(data))["unnamed"] if data else {}
            found = {str(name): datetime.fromisoformat(at) for name, at in unnamed.items()}
            return {name: at for name, at in found.items() if at.tzinfo is not None}
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return {}

    async def _note(
        self, folder: str, waiting: Mapping[str, datetime], *, before: Mapping[str, datetime]
    ) -> None:
        path = f"{folder}/gc.json"
        if not waiting:
            if before:
                await self.objects.delete([path])
        elif waiting != before:
            unnamed = {name: at.astimezone(UTC).isoformat() for name, at in waiting.items()}
            note = json.dumps({"format": log.FORMAT, "unnamed": unnamed}, sort_keys=True)
            await self.objects.put(path, note.encode(), if_absent=False)

    # --- jobs and credentials ----------------------------------------------------------------------

    async def put_job(self, project: str, job: JobStatusResponse) -> None:
        """Store how far a job has come, over what was stored before."""
        path = _job_path(project, job.job_id)
        await self.objects.put(path, _JOB.dump_json(job), if_absent=False)

    async def get_job(self, project: str, job_id: str) -> JobStatusResponse:
        """Return how far a job has come.

        Raises:
            JobNotFoundError: If there is no such job.
            CorruptDataError: If its record is damaged.
        """
        data = await self.objects.get(_job_path(project, job_id))
        if data is None:
            raise JobNotFoundError(f"there is no job {job_id!r} in {self.name}")
        try:
            return _JOB.validate_json(bytes(data))
        except pydantic.ValidationError:
            raise CorruptDataError(f"the record of job {job_id!r} is damaged") from None

    async def check_credentials(self, project_id: str | None, project_key: str | None) -> str:
        """Return the project that the credentials open. See `ProjectKeys.check`."""
        return await self.keys.check(project_id, project_key)

    def watch(self, project: str, index: str) -> None:
        """Nobody tells of new commits here: they are found by looking."""


def _folder(project: str, index: str) -> str:
    return f"{encode_name(project, what='project id')}/{encode_name(index)}"


def _commit_file(version: int) -> str:
    return f"{version:012d}.json"


def _commit_path(folder: str, version: int) -> str:
    return f"{folder}/log/{_commit_file(version)}"


def _segment_path(folder: str, sha256: str) -> str:
    return f"{folder}/segments/{sha256}"


def _job_path(project: str, job_id: str) -> str:
    if not _JOB_ID.fullmatch(job_id):
        raise JobNotFoundError("there is no job of that id: job ids are letters, digits, - and _")
    return f"{encode_name(project, what='project id')}/~jobs/{job_id}.json"
