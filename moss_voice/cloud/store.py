"""The log of an index on a directory, in memory, or on an object store.

    PROJECT/INDEX/log/000000000007.json   commits: put if absent, so whoever makes the next one first wins
    PROJECT/INDEX/segments/SHA256         segments: immutable, named by their content
    PROJECT/~jobs/JOB.json                how far a push or a change has come
    PROJECT/~project.json                 salted hashes of the project's keys

What is promised: segments are stored before the commit that names them, so a reader sees a whole push
or none of it; an object appears at once and complete; of two writers of one commit exactly one wins;
what was read is what was written, or an error (size and SHA-256 are checked). Nothing assumes a
directory, and nothing is kept in this process but the last commit seen.

A local directory (obstore 0.12 `LocalStore`) keeps the promises thus: an object is written to a
staging file beside its place (`NAME#1`, which no listing shows) and then renamed, or for put-if-absent
hard-linked, which the file system does atomically and for one process only. So the file system must
know hard links (FAT does not; NFS does). obstore does not call fsync: we do after each put, file and
folder, so that an acknowledged push survives a power failure; a commit that a power failure left empty
before it was acknowledged is passed over.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import re
import secrets
import uuid
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
import platformdirs
import pydantic
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore, ObjectStore
from pydantic import TypeAdapter

from moss_voice.cloud import log
from moss_voice.cloud.log import Commit, Segment, SegmentRef
from moss_voice.errors import (
    AuthenticationError,
    CloudUnavailableError,
    ConflictError,
    CorruptDataError,
    IndexNotFoundError,
    InvalidArgumentError,
    JobNotFoundError,
)
from moss_voice.types import JobStatusResponse, OnConflict

__all__ = ["Cloud", "Pushed", "encode_name", "open_cloud"]

DEFAULT_PROJECT: Final = "default"
# How often a push is planned anew because somebody else was first. Each round somebody wins, so this
# many lost in a row means a storm.
PUSH_TRIES: Final = 50
# What a reader may still be loading, and a writer may still build upon.
KEEP_COMMITS: Final = 10
GRACE_S: Final = 24 * 3600.0
# A segment found already stored is only relied on while it is far younger than the grace period.
_FRESH: Final = timedelta(hours=1)

_COMMIT_FILE: Final = re.compile(r"(\d{12})\.json")
_SEGMENT_FILE: Final = re.compile(r"[0-9a-f]{64}")
_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")
_SCRYPT: Final = {"n": 1 << 14, "r": 8, "p": 1}
_JOB: Final = TypeAdapter(JobStatusResponse)
_PARALLEL: Final = 16
_REMEMBERED: Final = 1024

_memories: dict[str, MemoryStore] = {}


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


def encode_name(name: str, *, what: str = "index name") -> str:
    """Return the one path component that stands for a name, different for every name.

    Lower-case letters, digits, `-` and `_` stand for themselves and every other byte is
    percent-encoded: also capitals and dots, since some file systems take `Call` for `call` and give
    `..` or a last dot a meaning. What no file system could hold is cut and ends in a hash. A `~` never
    comes out but before that hash, so no name meets our own `~project.json`.

    Raises:
        InvalidArgumentError: See `log.check_name`.
    """
    log.check_name(name, what=what)
    encoded = "".join(
        c if c.isascii() and (c.islower() or c.isdigit() or c in "-_") else _percent(c)
        for c in name
    )
    if len(encoded) <= 200:
        return encoded
    return f"{encoded[:120]}~{hashlib.sha256(name.encode()).hexdigest()}"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02x}" for byte in character.encode())


def open_cloud(where: str | Path | None = None) -> Cloud:
    """Open a cloud, making its directory if there is none.

    Args:
        where: None for the embedded cloud (a directory under the platform's data directory), a path
            or a `file://` URL, or `memory://NAME` for a cloud that lives as long as this process.

    Raises:
        InvalidArgumentError: If the URL is of a kind that this version does not know.
        CloudUnavailableError: If the directory cannot be made.
    """
    if where is None:
        where = Path(platformdirs.user_data_dir("moss_voice", appauthor=False)) / "cloud"
    if isinstance(where, str):
        scheme, separator, _ = where.partition("://")
        if separator:
            if scheme == "memory":
                return Cloud(_memories.setdefault(where, MemoryStore()), name=where)
            where = _path_of_url(where)
    path = where if isinstance(where, Path) else Path(where)
    path = path.expanduser().absolute()
    with _translated(f"open the cloud at {path}"):
        # Transcripts: for the owner alone, unless somebody made the directory for more.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Cloud(LocalStore(path), name=str(path))


def _path_of_url(url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
        raise InvalidArgumentError(
            f"cloud: expected a path, file:// or memory://, got {parts.scheme}://; object stores and"
            " servers are not supported in this version"
        )
    return Path(url2pathname(parts.path))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what the store raises into our error, once, here."""
    try:
        yield
    except (BaseError, OSError) as error:
        # obstore appends a long debug dump to the first line.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CloudUnavailableError(f"could not {what}: {reason}") from error


class Cloud:
    """The logs of many projects in one store.

    Safe to share between tasks; two processes on one store need nothing but the store. Every method
    raises `CloudUnavailableError` where the store cannot be read or written.
    """

    def __init__(self, store: ObjectStore, *, name: str) -> None:
        """Take a ready store.

        Args:
            store: Any obstore store.
            name: For messages: where it is, without credentials.
        """
        self.name = name
        self._store = store
        self._directory = store.prefix if isinstance(store, LocalStore) else None
        # With the time of the object, which tells it from another of the same number.
        self._heads: dict[str, tuple[Commit, datetime]] = {}
        self._known_keys: set[bytes] = set()

    def __repr__(self) -> str:
        return f"<Cloud {self.name}>"

    # --- objects -----------------------------------------------------------------------------------

    async def _put(self, path: str, data: bytes | memoryview, *, if_absent: bool) -> bool:
        """Store an object whole; False where `if_absent` and there is one."""
        with _translated(f"write to {self.name}"):
            try:
                await obstore.put_async(
                    self._store, path, data, mode="create" if if_absent else "overwrite"
                )
            except AlreadyExistsError:
                return False
            if self._directory is not None:
                await asyncio.to_thread(_sync, self._directory / path, self._directory)
            return True

    async def _get(self, path: str) -> memoryview | None:
        with _translated(f"read from {self.name}"):
            try:
                answer = await obstore.get_async(self._store, path)
                return memoryview(await answer.bytes_async())
            except FileNotFoundError:
                return None

    async def _list(
        self, folder: str, *, after: str | None = None
    ) -> list[tuple[str, int, datetime]]:
        """Return (file name, size, time) of a folder's objects, those after a name where given."""
        with _translated(f"list {self.name}"):
            offset = None if after is None else f"{folder}/{after}"
            found = await obstore.list(self._store, folder, offset=offset).collect_async()
            return [
                (meta["path"].rpartition("/")[2], meta["size"], meta["last_modified"])
                for meta in found
            ]

    async def _delete(self, paths: Sequence[str]) -> None:
        with _translated(f"remove from {self.name}"):
            for path in paths:
                with suppress(FileNotFoundError):  # somebody else collects too
                    await obstore.delete_async(self._store, path)

    async def _stored_at(self, path: str) -> datetime | None:
        with _translated(f"read from {self.name}"):
            try:
                return (await obstore.head_async(self._store, path))["last_modified"]
            except FileNotFoundError:
                return None

    # --- reading -----------------------------------------------------------------------------------

    async def read_head(self, project: str, index: str) -> Commit | None:
        """Return the newest commit of an index, or None where there is no such index.

        One listing from the last commit seen, and one read if there is a newer one.

        Raises:
            CorruptDataError: If the newest commit is damaged.
        """
        head, _ = await self._head(_folder(project, index))
        return None if head is None or head.deleted else head

    async def read_commit(self, project: str, index: str, version: int) -> Commit | None:
        """Return one version of an index, or None where it was never made or is collected."""
        return await self._read_commit(_folder(project, index), version)

    async def _read_commit(self, folder: str, version: int) -> Commit | None:
        data = await self._get(_commit_path(folder, version))
        if data is None:
            return None
        commit = log.decode_commit(data)
        if commit.version != version or not folder.endswith(f"/{encode_name(commit.index)}"):
            raise CorruptDataError(
                f"commit {version} in {folder} is another's: version {commit.version} of index"
                f" {commit.index!r}"
            )
        return commit

    async def _head(self, folder: str) -> tuple[Commit | None, int]:
        """Return the newest commit, deleted or not, and the highest number in use."""
        for _ in range(PUSH_TRIES):
            known, known_at = self._heads.get(folder, (None, None))
            # From one before it, so that the commit known must show itself: if it does not, somebody
            # emptied the store, and what is known is worth nothing.
            after = _commit_file(known.version - 1) if known is not None else None
            numbers = await self._numbers(folder, after=after)
            if known is not None and known.version not in (number for number, _, _ in numbers):
                known = None
                numbers = await self._numbers(folder)
            if not numbers:
                return None, 0
            newest = numbers[-1][0]
            # An empty commit was never acknowledged; see the law of this module.
            whole = [(number, at) for number, size, at in numbers if size > 0]
            if not whole:
                return None, newest
            if known is not None and (known.version, known_at) == whole[-1]:
                return known, newest
            commit = await self._read_commit(folder, whole[-1][0])
            if commit is not None:
                self._remember(folder, commit, whole[-1][1])
                return commit, newest
            # Collected between the listing and the reading: there are newer ones.
        raise CloudUnavailableError(f"the log in {folder} of {self.name} never holds still")

    def _remember(self, folder: str, commit: Commit, at: datetime) -> None:
        self._heads.pop(folder, None)
        self._heads[folder] = (commit, at)
        if len(self._heads) > _REMEMBERED:
            del self._heads[next(iter(self._heads))]

    async def _numbers(
        self, folder: str, *, after: str | None = None
    ) -> list[tuple[int, int, datetime]]:
        """Return (version, size, time) of the commits there are, ascending."""
        found = await self._list(f"{folder}/log", after=after)
        matches = ((_COMMIT_FILE.fullmatch(name), size, at) for name, size, at in found)
        return sorted((int(match[1]), size, at) for match, size, at in matches if match)

    async def fetch_segment(self, project: str, index: str, ref: SegmentRef) -> memoryview:
        """Return a segment's bytes, checked against its address.

        Raises:
            CorruptDataError: If the bytes are others, or there are none.
        """
        data = await self._get(_segment_path(_folder(project, index), ref.sha256))
        if data is None:
            raise CorruptDataError(
                f"index {index!r}: segment {ref.sha256[:12]} is gone from {self.name}"
            )
        if len(data) != ref.size_bytes:
            raise CorruptDataError(
                f"index {index!r}: segment {ref.sha256[:12]}: expected {ref.size_bytes} bytes, got"
                f" {len(data)}"
            )
        digest = await asyncio.to_thread(hashlib.sha256, data)
        if digest.hexdigest() != ref.sha256:
            raise CorruptDataError(f"index {index!r}: segment {ref.sha256[:12]}: SHA-256 differs")
        return data

    async def list_indexes(self, project: str) -> list[Commit]:
        """Return the newest commit of each index, by name.

        Raises:
            CorruptDataError: If one of them is damaged.
        """
        prefix = encode_name(project, what="project id")
        with _translated(f"list {self.name}"):
            found = await obstore.list_with_delimiter_async(self._store, prefix)
        folders = [f for f in found["common_prefixes"] if not f.rpartition("/")[2].startswith("~")]
        heads: list[Commit | None] = []
        for start in range(0, len(folders), _PARALLEL):
            part = folders[start : start + _PARALLEL]
            found_heads = await asyncio.gather(*(self._head(folder) for folder in part))
            heads += [head for head, _ in found_heads]
        return sorted(
            (head for head in heads if head is not None and not head.deleted),
            key=lambda head: head.index,
        )

    # --- writing -----------------------------------------------------------------------------------

    async def put_segment(self, project: str, index: str, segment: Segment) -> SegmentRef:
        """Store a segment unless it is there, and return its address.

        Raises:
            InvalidArgumentError: If it has neither rows nor tombstones.
        """
        encoded = await _encoded(segment)
        if encoded is None:
            raise InvalidArgumentError("segment: expected rows or tombstones, got none")
        await self._put_encoded(_folder(project, index), encoded)
        return encoded.ref

    async def _put_encoded(self, folder: str, encoded: _Encoded) -> int:
        """Store a segment unless it is there, and return how many bytes were sent."""
        path = _segment_path(folder, encoded.ref.sha256)
        stored_at = await self._stored_at(path)
        # An old one may be about to be collected: storing it again makes it young.
        if stored_at is not None and datetime.now(UTC) - stored_at < _FRESH:
            return 0
        await self._put(path, encoded.data, if_absent=False)
        return len(encoded.data)

    async def commit(self, project: str, commit: Commit) -> bool:
        """Store a commit if its number is free; False where somebody else was first.

        True also where the commit there is this very one: the answer to an earlier try was lost.
        """
        folder = _folder(project, commit.index)
        data = commit.encode()
        path = _commit_path(folder, commit.version)
        if not await self._put(path, data, if_absent=True):
            there = await self._get(path)
            if there is None or bytes(there) != data:
                return False
        return True

    async def push(
        self,
        project: str,
        index: str,
        *,
        base_version: int,
        base_segments: Sequence[SegmentRef],
        delta: Segment | None,
        doc_count: int,
        model_id: str,
        dim: int,
        analyzer: str,
        on_conflict: OnConflict,
        job_id: str | None = None,
        whole: Callable[[], Segment] | None = None,
        load: Callable[[SegmentRef], Awaitable[Segment]] | None = None,
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
            whole: Makes one segment of the pusher's whole copy (called in a worker thread): needed by
                `replace` where the base's segments were collected or the index was deleted meanwhile.
            load: Reads a segment, say through a cache, to count documents after a merge; fetched from
                the cloud where None.

        Raises:
            ConflictError: If somebody else pushed meanwhile, under `error`; or always did, under the
                others; or `replace` needs `whole` and there is none.
            ModelMismatchError: If the index belongs to another model.
        """
        folder = _folder(project, index)
        base, change = tuple(base_segments), await _encoded(delta)
        for attempt in range(PUSH_TRIES):
            head, newest = await self._head(folder)
            moved = log.head_moved(head, base_version)
            if moved and on_conflict == "replace" and not await self._stands(folder, head, base):
                base, change = (), await _made_whole(whole, index, base_version, newest)
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
            )
            merged_from = head.version if head is not None and moved else None
            if plan is head:
                return Pushed(head, 0, merged_from)
            if moved and on_conflict == "merge":
                plan = replace(plan, doc_count=await self._count(project, plan, change, load))
            # The segment before the commit, so that nobody sees half a push.
            sent = await self._put_encoded(folder, change) if change is not None else 0
            if await self.commit(project, plan):
                return Pushed(plan, sent + len(plan.encode()), merged_from)
            await _stand_back(attempt)
        raise ConflictError(
            f"index {index!r}: others pushed {PUSH_TRIES} times in a row before this push could; try"
            " again later",
            base_version=base_version,
            head_version=newest,
        )

    async def _stands(self, folder: str, head: Commit | None, base: Sequence[SegmentRef]) -> bool:
        """Tell whether a push may build on these segments: they are there and will stay."""
        if head is None or head.deleted:
            return not base
        paths = [_segment_path(folder, ref.sha256) for ref in base if ref not in head.segments]
        return all([await self._stored_at(path) is not None for path in paths])

    async def _count(
        self,
        project: str,
        plan: Commit,
        change: _Encoded | None,
        load: Callable[[SegmentRef], Awaitable[Segment]] | None,
    ) -> int:
        segments = [
            change.segment
            if change is not None and ref == change.ref
            else await (load(ref) if load is not None else self._load(project, plan, ref))
            for ref in plan.segments
        ]
        return (await asyncio.to_thread(log.resolve, segments)).doc_count

    async def _load(self, project: str, commit: Commit, ref: SegmentRef) -> Segment:
        data = await self.fetch_segment(project, commit.index, ref)
        return await asyncio.to_thread(
            log.decode_segment, data, model_id=commit.model_id, dim=commit.dim
        )

    async def compact(
        self,
        project: str,
        index: str,
        *,
        load: Callable[[SegmentRef], Awaitable[Segment]] | None = None,
    ) -> Commit | None:
        """Join segments where they pile up, as a new version with the same documents.

        For after a push, in the background. Whoever pushes or reads meanwhile is not disturbed; where
        somebody else compacts first, theirs stands.

        Returns:
            The new head, or None where there was nothing to do.
        """
        folder = _folder(project, index)
        head = await self.read_head(project, index)
        if head is None or not log.needs_compaction(head):
            return None
        start = log.compaction_start(head)
        old = head.segments[start:]
        segments = [
            await (load(ref) if load is not None else self._load(project, head, ref)) for ref in old
        ]
        cutoff = datetime.now(UTC) - timedelta(days=log.TOMBSTONE_DAYS)
        joined = await asyncio.to_thread(
            log.compact,
            segments,
            drop_tombstones_before=int(cutoff.timestamp() * 1000) if start == 0 else None,
        )
        change = await _encoded(joined)
        new = (change.ref,) if change is not None else ()
        if change is not None:
            await self._put_encoded(folder, change)
        for attempt in range(PUSH_TRIES):
            now_head, newest = await self._head(folder)
            end = start + len(old)
            if now_head is None or now_head.segments[start:end] != old:
                return None
            segments_now = (*now_head.segments[:start], *new, *now_head.segments[end:])
            plan = replace(
                now_head,
                version=newest + 1,
                parent=now_head.version,
                replaced=None,
                segments=segments_now,
                job_id=uuid.uuid4().hex,
            )
            if await self.commit(project, plan):
                return plan
            await _stand_back(attempt)
        return None

    async def delete_index(self, project: str, index: str) -> None:
        """Delete an index: a last commit says so, then its segments and older commits are removed.

        A deletion that was interrupted is finished by deleting again, or by `collect`. The numbers of
        the versions go on, should the index be made anew.

        Raises:
            IndexNotFoundError: If there is no such index (any more).
        """
        folder = _folder(project, index)
        for attempt in range(PUSH_TRIES):
            head, newest = await self._head(folder)
            if head is None or head.deleted:
                if head is not None:
                    await self._erase(folder, head.version)
                raise IndexNotFoundError(f"there is no index {index!r} in {self.name}")
            last = replace(
                head,
                version=newest + 1,
                parent=head.version,
                changed=newest + 1,
                replaced=None,
                segments=(),
                doc_count=0,
                updated_at=datetime.now(UTC),
                job_id=uuid.uuid4().hex,
                deleted=True,
            )
            if await self.commit(project, last):
                await self._erase(folder, last.version)
                return
            await _stand_back(attempt)
        raise CloudUnavailableError(f"index {index!r} in {self.name} is pushed to all the time")

    async def _erase(self, folder: str, before: int) -> None:
        """Remove the commits before a version, and the segments that they name."""
        old = [number for number, _, _ in await self._numbers(folder) if number < before]
        doomed: set[str] = set()
        for number in old:
            with suppress(CorruptDataError):  # what it named is unnamed now, and collected below
                commit = await self._read_commit(folder, number)
                doomed |= {ref.sha256 for ref in commit.segments} if commit is not None else set()
        # Unnamed segments go too, but for those of a push that is still under way.
        await self._delete([_segment_path(folder, sha256) for sha256 in sorted(doomed)])
        await self._delete([_commit_path(folder, number) for number in old])
        await self._collect(folder, grace=_FRESH, keep=1)

    async def collect(
        self, project: str, index: str, *, grace_s: float = GRACE_S, keep: int = KEEP_COMMITS
    ) -> int:
        """Remove what no reader or writer can still need, and return how many objects that were.

        Kept are the last `keep` commits, commits and segments younger than `grace_s`, and every
        segment that a commit kept names.

        Raises:
            CorruptDataError: If a commit that is kept is damaged: then nothing is removed.
        """
        grace = timedelta(seconds=grace_s)
        return await self._collect(_folder(project, index), grace=grace, keep=keep)

    async def _collect(self, folder: str, *, grace: timedelta, keep: int) -> int:
        horizon = datetime.now(UTC) - grace
        # Segments first: one that is committed after this listing is then known to be named.
        stored = await self._list(f"{folder}/segments")
        numbers = await self._numbers(folder)
        whole = [(number, at) for number, size, at in numbers if size > 0]
        kept = {number for number, at in whole if at >= horizon}
        kept |= {number for number, _ in whole[-max(keep, 1) :]}
        named: set[str] = set()
        for number in sorted(kept):
            commit = await self._read_commit(folder, number)
            named |= {ref.sha256 for ref in commit.segments} if commit is not None else set()
        doomed = [_commit_path(folder, number) for number, _ in whole if number not in kept]
        doomed += [
            _segment_path(folder, name)
            for name, _, at in stored
            if _SEGMENT_FILE.fullmatch(name) and name not in named and at < horizon
        ]
        await self._delete(doomed)
        return len(doomed)

    # --- jobs and credentials ----------------------------------------------------------------------

    async def put_job(self, project: str, job: JobStatusResponse) -> None:
        """Store how far a job has come, over what was stored before."""
        await self._put(_job_path(project, job.job_id), _JOB.dump_json(job), if_absent=False)

    async def get_job(self, project: str, job_id: str) -> JobStatusResponse:
        """Return how far a job has come.

        Raises:
            JobNotFoundError: If there is no such job.
            CorruptDataError: If its record is damaged.
        """
        data = await self._get(_job_path(project, job_id))
        if data is None:
            raise JobNotFoundError(f"there is no job {job_id!r} in {self.name}")
        try:
            return _JOB.validate_json(bytes(data))
        except pydantic.ValidationError:
            raise CorruptDataError(f"the record of job {job_id!r} is damaged") from None

    async def check_credentials(self, project_id: str | None, project_key: str | None) -> str:
        """Return the project that the credentials open.

        A project belongs to the first key it is used with, of which a salted hash (scrypt) is kept;
        until then it is open, like the project `default` that is used where nothing is given. A key
        guards the cloud's front door, not its files: whoever can read the directory can read them.

        Costs one read, and about 50 ms in a worker thread the first time a key is seen.

        Raises:
            AuthenticationError: If the key is wrong or missing.
            InvalidArgumentError: If the project's id cannot be a name.
        """
        if not project_id:
            if project_key:
                raise AuthenticationError(
                    "expected a project id with the project key; set MOSS_PROJECT_ID too"
                )
            project_id = DEFAULT_PROJECT
        path = f"{encode_name(project_id, what='project id')}/~project.json"
        record = await self._get(path)
        if record is None:
            if not project_key:
                return project_id
            made = await asyncio.to_thread(_make_key_record, project_key)
            if await self._put(path, made, if_absent=True):
                return project_id
            record = await self._get(path)
        if not project_key:
            raise AuthenticationError(
                f"project {project_id!r} needs its project key; set MOSS_PROJECT_KEY"
            )
        if not await self._opens(bytes(record or b""), project_key):
            raise AuthenticationError(f"the project key given does not open project {project_id!r}")
        return project_id

    async def _opens(self, record: bytes, key: str) -> bool:
        """Check a key against a record, slowly but for a pair that passed before."""
        pair = hashlib.sha256(record + b"\0" + key.encode("utf-8", "surrogatepass")).digest()
        if pair not in self._known_keys:
            if not await asyncio.to_thread(_matches_key_record, record, key):
                return False
            self._known_keys.add(pair)
        return True


class _Encoded(NamedTuple):
    """A segment, ready to be stored."""

    segment: Segment
    data: bytes
    ref: SegmentRef


async def _encoded(segment: Segment | None) -> _Encoded | None:
    """Encode and hash in a worker thread; None for a segment that says nothing."""
    if segment is None or not (len(segment.ids) or segment.tombstones):
        return None

    def encode() -> _Encoded:
        data = log.encode_segment(segment)
        rows, tombstones = len(segment.ids), len(segment.tombstones)
        return _Encoded(segment, data, SegmentRef.of(data, rows=rows, tombstones=tombstones))

    return await asyncio.to_thread(encode)


async def _made_whole(
    whole: Callable[[], Segment] | None, index: str, base_version: int, head_version: int
) -> _Encoded | None:
    if whole is None:
        raise ConflictError(
            f"index {index!r}: version {base_version}, on which this push builds, is gone; open the"
            " index anew, or push with on_conflict='merge'",
            base_version=base_version,
            head_version=head_version,
        )
    return await _encoded(await asyncio.to_thread(whole))


async def _stand_back(attempt: int) -> None:
    """Let others go first for a random moment, longer from try to try."""
    await asyncio.sleep(secrets.SystemRandom().uniform(0.0, 0.005 * 2 ** min(attempt, 6)))


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


def _sync(path: Path, root: Path) -> None:
    """Make an object survive a power failure: its bytes, and the folders that lead to it."""
    with suppress(FileNotFoundError), path.open("rb+") as file:  # a deletion may be quicker
        os.fsync(file.fileno())
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot sync a folder, and writes its own journal of names
    for folder in path.parents:
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if folder == root:
            return


def _scrypt(key: str, salt: bytes, *, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        key.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=r, p=p, maxmem=1 << 27, dklen=32
    )


def _make_key_record(key: str) -> bytes:
    salt = secrets.token_bytes(16)
    entry = {"salt": salt.hex(), "scrypt": _scrypt(key, salt, **_SCRYPT).hex(), **_SCRYPT}
    return json.dumps({"format": log.FORMAT, "keys": [entry]}, sort_keys=True).encode()


def _matches_key_record(record: bytes, key: str) -> bool:
    try:
        entries: list[dict[str, Any]] = json.loads(record)["keys"]
        matches = [
            hmac.compare_digest(
                _scrypt(
                    key, bytes.fromhex(entry["salt"]), n=entry["n"], r=entry["r"], p=entry["p"]
                ),
                bytes.fromhex(entry["scrypt"]),
            )
            for entry in entries
        ]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CorruptDataError("the project's record of keys (~project.json) is damaged") from None
    return any(matches)
