"""The door: opens sessions and calls, loads and queries knowledge, manages what the cloud holds.

The law: constructing a client touches nothing; the first call that needs the cloud opens it and checks
the credentials. An index that is loaded is loaded once per client and shared by all its calls.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import signal
import time
import weakref
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import platformdirs

from moss_voice import ranking
from moss_voice.call.context import MAX_TOKENS
from moss_voice.call.journal import Contents, Delete, Header, Journal, Put, find_journals
from moss_voice.call.memory import DEADLINE_MS, MIN_SCORE, CallMemory
from moss_voice.cloud.cache import SegmentCache
from moss_voice.cloud.log import Commit, decode_commit
from moss_voice.cloud.cloud import Cloud, open_cloud
from moss_voice.cloud.keys import DEFAULT_PROJECT
from moss_voice.errors import (
    AuthenticationError,
    CloudUnavailableError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidArgumentError,
    JournalError,
    MossError,
    SessionClosedError,
)
from moss_voice.session import Progress, Remote, SessionIndex, share_version
from moss_voice.types import (
    DocumentInfo,
    GetDocumentsOptions,
    IndexInfo,
    JobStatusResponse,
    MutationOptions,
    MutationResult,
    PushIndexResult,
    QueryOptions,
    RecoveredCall,
    SearchResult,
)
from moss_voice.workers import in_worker, in_writer, submit_write

__all__ = ["Authenticator", "MossClient"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Returns a token for a moss-voice server; called again when one is refused.
Authenticator = Callable[[], Awaitable[str]]

_POLL_S = 0.5


class MossClient:
    """A project's indexes in one cloud.

    Use it as an async context manager, or `close` it. One client serves any number of calls.
    """

    def __init__(
        self,
        project_id: str | None = None,
        project_key: str | None = None,
        *,
        cloud: str | Path | None = None,
        cache_path: str | Path | None = None,
        journal_path: str | Path | None = None,
        authenticator: Authenticator | None = None,
    ) -> None:
        """Note where things are; nothing is touched yet.

        Args:
            project_id: `MOSS_PROJECT_ID` where None; without either, an embedded cloud's project
                `default`.
            project_key: `MOSS_PROJECT_KEY` where None.
            cloud: `MOSS_VOICE_CLOUD` where None; without either, the embedded cloud: a directory
                under the platform's data directory. A path or a `file://` URL is a directory too;
                `memory://NAME` lives as long as this process.
            cache_path: Where segments and graphs are kept; the platform's cache directory where None.
            journal_path: Where calls are journaled; the platform's data directory where None.
            authenticator: Gives tokens for a server in place of a key. Such a client cannot open
                sessions or calls. An embedded cloud has nobody to check a token and never asks.
        """
        self._project_id = project_id or os.environ.get("MOSS_PROJECT_ID") or None
        self._project_key = project_key or os.environ.get("MOSS_PROJECT_KEY") or None
        self._authenticator = authenticator
        where = cloud if cloud is not None else os.environ.get("MOSS_VOICE_CLOUD") or None
        # Absolute, so that a journal names the same cloud from wherever it is recovered.
        self._where = None if where is None else _absolute(str(where))
        data = Path(platformdirs.user_data_dir("moss_voice", appauthor=False))
        cache = Path(platformdirs.user_cache_dir("moss_voice", appauthor=False))
        self._cache_path = cache if cache_path is None else Path(cache_path)
        self._journal_path = data / "journal" if journal_path is None else Path(journal_path)
        self._opening: asyncio.Task[Remote] | None = None
        self._loaded: dict[str, SessionIndex] = {}
        self._loading: dict[str, asyncio.Lock] = {}
        self._sessions: weakref.WeakSet[SessionIndex] = weakref.WeakSet()
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._loaded)} loaded"
        return f"<MossClient {self._project_id or 'default'!r} on {self._where or 'embedded'}, {state}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Unload everything; sessions and calls still open are closed without a push."""
        self._closed = True
        open_ones = [*self._loaded.values(), *self._sessions]
        self._loaded.clear()
        self._sessions.clear()
        await asyncio.gather(*(index.close() for index in open_ones))

    async def _remote(self) -> Remote:
        """Open the cloud and check the credentials, once; a failure is tried anew by the next call."""
        if self._closed:
            raise SessionClosedError("the client is closed; make a new one")
        opening = self._opening
        # Cancelled with the event loop that it ran in, where that was not this one.
        if opening is None or (
            opening.done() and (opening.cancelled() or opening.exception() is not None)
        ):
            self._opening = opening = asyncio.get_running_loop().create_task(self._open())
        return await asyncio.shield(opening)

    async def _open(self) -> Remote:
        cloud: Cloud = await in_worker(open_cloud, self._where)
        project = await cloud.check_credentials(self._project_id, self._project_key)
        return Remote(cloud, project, await in_worker(SegmentCache, self._cache_path))

    # --- sessions and calls ------------------------------------------------------------------------

    async def session(self, index_name: str, model_id: str | None = None) -> SessionIndex:
        """Open a session: resumes the index of that name without embedding anew, or starts empty.

        Args:
            index_name: What `push_index` stores it under.
            model_id: `moss-minilm` (the default), `moss-mediumlm`, `custom`, or a model directory;
                leave it out to use the stored index's.

        Raises:
            AuthenticationError: If the credentials are wrong, or an authenticator was given.
            ModelMismatchError: A `ValueError`, if the stored index belongs to another model.
            ModelNotFoundError: If there is no such model.
            CorruptDataError: If what is stored is damaged.
            CloudUnavailableError: If the cloud does not answer.
        """
        self._check_key_holder("session()")
        session = await SessionIndex.open(await self._remote(), index_name, model_id)
        self._sessions.add(session)
        return session

    def _check_key_holder(self, what: str) -> None:
        if self._authenticator is not None:
            raise AuthenticationError(
                f"{what} needs a client built with project_id and project_key, not with an authenticator"
            )

    async def call(
        self,
        call_id: str,
        *,
        knowledge: Sequence[str] = (),
        focus: Sequence[str] = (),
        model_id: str | None = None,
        top_k: int = ranking.DEFAULT_TOP_K,
        alpha: float = ranking.DEFAULT_ALPHA,
        min_score: float = MIN_SCORE,
        max_tokens: int = MAX_TOKENS,
        deadline_ms: float = DEADLINE_MS,
        journal: bool = True,
        open_timeout_s: float | None = None,
    ) -> CallMemory:
        """Start or resume the memory of a call.

        Args:
            call_id: Names the call and its index.
            knowledge: Names of indexes to look things up in; loaded where they are not yet.
            focus: Metadata fields of theirs that hold names of what a call can be about.
            model_id: See `session`.
            top_k: The most hits in one context.
            alpha: See `QueryOptions`.
            min_score: Hits of a lower score are left out, in [0, 1].
            max_tokens: The budget of one context.
            deadline_ms: How long a context may take.
            journal: False gives up surviving a crash.
            open_timeout_s: How long the cloud may take; a live caller waits. After that, and where it
                does not answer, the call begins with nothing stored and without the knowledge that could
                not be loaded; its push merges it with what is stored. Where None, the cloud is waited
                for, and its failure is raised.

        Raises:
            IndexNotFoundError: If a knowledge index does not exist.
            JournalError: If the journal cannot be written.
            MossError: See `session`.
        """
        self._check_key_holder("call()")
        if isinstance(knowledge, str) or isinstance(focus, str):
            raise InvalidArgumentError("knowledge and focus: expected a list of names")
        if open_timeout_s is None:
            remote = await self._remote()
            session, *indexes = await asyncio.gather(
                self.session(call_id, model_id), *(self._loaded_index(name) for name in knowledge)
            )
        else:
            remote, session, indexes = await self._opened_in_time(
                call_id, model_id, knowledge, open_timeout_s
            )
        book: Journal | None = None
        try:
            if journal:
                header = Header(
                    remote.project, self._where, call_id, session.model_id, time.time_ns() // 10**6
                )
                creating = submit_write(Journal.create, self._journal_path, header)
                try:
                    book = await asyncio.wrap_future(creating)
                except asyncio.CancelledError:
                    # The disk does not hear of it: what it still makes is nobody's.
                    creating.add_done_callback(_cleared)
                    raise
            return await CallMemory.open(
                session,
                knowledge=indexes,
                journal=book,
                focus=focus,
                top_k=top_k,
                alpha=alpha,
                min_score=min_score,
                max_tokens=max_tokens,
                deadline_ms=deadline_ms,
            )
        except BaseException:
            if book is not None:
                book.clear()
            await session.close()
            raise

    async def _opened_in_time(
        self, call_id: str, model_id: str | None, knowledge: Sequence[str], limit_s: float
    ) -> tuple[Remote, SessionIndex, list[SessionIndex]]:
        """Open a call's indexes, those that the cloud gives in time."""

        async def in_time(opening: Awaitable[T], what: str) -> T | None:
            # What is late goes on where others may want it: the next call finds it loaded.
            task = asyncio.ensure_future(opening)
            try:
                return await asyncio.wait_for(asyncio.shield(task), deadline - time.monotonic())
            except (CloudUnavailableError, TimeoutError) as error:
                task.add_done_callback(_retrieved)
                kind = type(error).__name__
                logger.error("call %r begins without %s (%s)", call_id, what, kind)
                return None

        deadline = time.monotonic() + limit_s
        remote = await in_time(self._remote(), "its cloud")
        if remote is None:
            # Nothing is read or written here until the push, which finds out whether it may.
            project = self._project_id or DEFAULT_PROJECT
            cache = await in_worker(SegmentCache, self._cache_path)
            remote = Remote(await in_worker(open_cloud, self._where), project, cache)
            return remote, await SessionIndex.start(remote, call_id, model_id), []
        session, *found = await asyncio.gather(
            in_time(self.session(call_id, model_id), "what is stored of it"),
            *(in_time(self._loaded_index(name), f"the knowledge {name!r}") for name in knowledge),
        )
        if session is None:
            session = await SessionIndex.start(remote, call_id, model_id)
            self._sessions.add(session)
        return remote, session, [index for index in found if index is not None]

    async def recover(self, call_id: str | None = None) -> list[RecoveredCall]:
        """Push the turns of calls whose process died or whose push failed, and clear their journals.

        Calls that are alive, here or in another process, are left alone. Safe to run at any time.

        Args:
            call_id: Only this call's; an agent that takes up a call does so before it opens it.
        """
        remote = await self._remote()
        found = await in_writer(find_journals, self._journal_path, remote.project)
        if call_id is not None:
            found = [
                journal
                for journal in found
                if journal.header is not None and journal.header.index_name == call_id
            ]
        results = [await self._recover(journal.path, journal.header) for journal in found]
        return [result for result in results if result is not None]

    async def _recover(self, path: Path, header: Header | None) -> RecoveredCall | None:
        name = header.index_name if header is not None else ""
        if header is not None and header.cloud != self._where:
            return RecoveredCall(name, 0, 0, "elsewhere", header.cloud or "the embedded cloud")
        try:
            journal, contents = await in_writer(Journal.open, path)
        except JournalError as error:
            # Another process has it in hand, or is done with it.
            taken = error.errno in (errno.EAGAIN, errno.ENOENT)
            return None if taken else RecoveredCall(name, 0, 0, "failed", str(error))
        except MossError as error:
            return RecoveredCall(name, 0, 0, "failed", str(error))
        damaged = contents.damaged
        turns = sum(isinstance(record, Put) for record in _last_words(contents))
        try:
            await self._push_journal(contents)
            await in_writer(journal.clear)
        except MossError as error:
            return RecoveredCall(name, turns, damaged, "failed", f"{error.code}: {error}")
        finally:
            # Where it was not cleared it is kept; closing a cleared one does nothing.
            await in_writer(journal.close)
        return RecoveredCall(name, turns, damaged, "pushed")

    async def _push_journal(self, contents: Contents) -> None:
        records = _last_words(contents)
        if not records:
            return
        async with await self.session(
            contents.header.index_name, contents.header.model_id
        ) as session:
            for record in records:
                if isinstance(record, Delete):
                    await in_worker(
                        partial(session.remove, [record.id], written_at=record.written_at_ms)
                    )
                    continue
                doc = DocumentInfo(
                    record.document["id"],
                    record.document["text"],
                    record.document.get("metadata"),
                    None if record.embedding is None else tuple(record.embedding.tolist()),
                )
                await session.add_docs([doc], written_at=[record.written_at_ms])
            await session.push_index(on_conflict="merge")

    # --- knowledge that is loaded ------------------------------------------------------------------

    async def load_index(
        self,
        index_name: str,
        auto_refresh: bool = False,
        polling_interval_in_seconds: float = 600,
    ) -> int:
        """Load an index into memory, to be queried without the cloud.

        Args:
            index_name: An index of the cloud.
            auto_refresh: Look for newer versions now and then, when it is read.
            polling_interval_in_seconds: How often.

        Returns:
            How many documents it has.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        if polling_interval_in_seconds <= 0:
            raise InvalidArgumentError(
                "polling_interval_in_seconds: expected a number above 0,"
                f" got {polling_interval_in_seconds}"
            )
        index = await self._loaded_index(index_name)
        if auto_refresh:
            index.watch(polling_interval_in_seconds)
        return index.doc_count

    async def load_indexes(
        self,
        index_names: Sequence[str],
        auto_refresh: bool = False,
        polling_interval_in_seconds: float = 600,
    ) -> dict[str, int]:
        """Load several indexes; returns how many documents each has."""
        return {
            name: await self.load_index(name, auto_refresh, polling_interval_in_seconds)
            for name in index_names
        }

    def share_indexes(self, index_names: Sequence[str], *, timeout_s: int = 60) -> int:
        """Load indexes once for every process that will be forked from this one.

        For a server that forks a process per call: of what is loaded here, graphs included, there is one
        copy in memory, and `load_index` in a child takes no time. An index that changes later is loaded
        by each process as usual. Call it before this process has used a client or started a thread. A
        fork of it reads the cloud and fills the cache; this process then reads the cache alone, so that
        no thread and no connection is there to be forked.

        Args:
            index_names: Indexes of the cloud.
            timeout_s: How long all of it may take, the building of graphs included.

        Returns:
            How many could be loaded; what failed is logged. 0 where processes are not forked.
        """
        if not hasattr(os, "fork"):
            return 0
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            # The default: it ends this process, whatever it waits for.
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(timeout_s)
            try:
                os.close(reader)
                asyncio.run(self._fill_cache(index_names, writer))
            finally:
                os._exit(0)
        os.close(writer)
        with open(reader, "rb") as told:  # noqa: PTH123 - a pipe
            commits = told.read().splitlines()
        os.waitpid(child, 0)
        cache = SegmentCache(self._cache_path)
        shared = 0
        for line in commits:
            try:
                shared += share_version(decode_commit(line), cache)
            except MossError as error:
                logger.error("an index cannot be shared: %s", error)
        if shared < len(set(index_names)):
            logger.error("%d of %d indexes are shared", shared, len(set(index_names)))
        return shared

    async def _fill_cache(self, index_names: Sequence[str], told: int) -> None:
        """Bring indexes and their graphs into the cache, and tell their commits, one a line."""
        for name in dict.fromkeys(index_names):
            try:
                remote = await self._remote()
                await (await self._loaded_index(name)).settled()
                head = await remote.cloud.read_head(remote.project, name)
                if head is not None:
                    os.write(told, head.encode() + b"\n")
            except MossError as error:
                logger.error("index %r cannot be shared: %s", name, error)

    async def unload_index(self, index_name: str) -> bool:
        """Let go of a loaded index; tells whether it was loaded."""
        index = self._loaded.pop(index_name, None)
        if index is None:
            return False
        await index.close()
        return True

    async def unload_indexes(self, index_names: Sequence[str] | None = None) -> int:
        """Let go of several loaded indexes, all where None; returns how many there were."""
        names = list(self._loaded) if index_names is None else list(index_names)
        return sum([await self.unload_index(name) for name in names])

    async def refresh_index(self, index_name: str) -> bool:
        """Bring a loaded index to its newest version; tells whether there was a newer one.

        Raises:
            IndexNotFoundError: If it is not loaded.
        """
        if index_name not in self._loaded:
            raise IndexNotFoundError(f"index {index_name!r} is not loaded; call load_index first")
        return await self._loaded[index_name].refresh()

    async def _loaded_index(self, name: str) -> SessionIndex:
        remote = await self._remote()
        async with self._loading.setdefault(name, asyncio.Lock()):
            if name not in self._loaded:
                self._loaded[name] = await SessionIndex.open(
                    remote, name, must_exist=True, shared=True
                )
            return self._loaded[name]

    async def query(
        self, index_name: str, query: str, options: QueryOptions | None = None
    ) -> SearchResult:
        """Query an index; one that is not loaded is loaded first, and stays. See `SessionIndex.query`."""
        return await (await self._loaded_index(index_name)).query(query, options)

    async def query_multi_index(
        self, index_names: Sequence[str], query: str, options: QueryOptions | None = None
    ) -> SearchResult:
        """Query several indexes and merge what they find, best first; each result names its index.

        Args:
            index_names: Indexes whose models' scores can be compared: of the same model, best.
            query: See `SessionIndex.query`.
            options: `top_k` counts the merged results.

        Returns:
            A `SearchResult` whose `index_name` is the names joined by commas.
        """
        if isinstance(index_names, str) or not index_names:
            raise InvalidArgumentError("index_names: expected a list of at least one name")
        started = time.perf_counter()
        top_k = (options.top_k if options is not None else None) or ranking.DEFAULT_TOP_K
        found = []
        # One after another: the first embeds the query and the others find it in the model's cache.
        for name in dict.fromkeys(index_names):
            index = await self._loaded_index(name)
            found += [(match, index) for match in await index.search(query, options)]
        found.sort(key=lambda pair: -pair[0].fused)
        docs = [index.result_of(match) for match, index in found[:top_k]]
        took_ms = (time.perf_counter() - started) * 1000.0
        return SearchResult(docs, query, ",".join(dict.fromkeys(index_names)), took_ms)

    # --- the cloud's indexes -----------------------------------------------------------------------

    async def create_index(
        self,
        name: str,
        docs: Sequence[DocumentInfo],
        model_id: str | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> MutationResult:
        """Embed documents here and store them as a new index.

        Raises:
            IndexExistsError: If there is one of that name.
            InvalidArgumentError: If a document cannot be stored; then nothing is.
        """
        remote = await self._remote()
        head = await remote.cloud.read_head(remote.project, name)
        if head is not None and not head.deleted:
            raise IndexExistsError(
                f"index {name!r} exists with {head.doc_count} documents; add_docs adds to it,"
                " delete_index removes it"
            )
        async with await SessionIndex.open(remote, name, model_id) as session:
            await session.add_docs(docs, on_progress=on_progress)
            return _mutation(await session.push_index(on_conflict="error"))

    async def add_docs(
        self,
        name: str,
        docs: Sequence[DocumentInfo],
        options: MutationOptions | None = None,
        *,
        on_progress: Progress | None = None,
    ) -> MutationResult:
        """Add documents to a stored index, merging with what others push meanwhile.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        async with await self._stored(name) as session:
            await session.add_docs(docs, options, on_progress=on_progress)
            return _mutation(await session.push_index(on_conflict="merge"))

    async def delete_docs(self, name: str, doc_ids: Sequence[str]) -> MutationResult:
        """Delete documents from a stored index; unknown ids are passed over.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        async with await self._stored(name) as session:
            await session.delete_docs(doc_ids)
            return _mutation(await session.push_index(on_conflict="merge"))

    async def get_docs(
        self, name: str, options: GetDocumentsOptions | None = None
    ) -> list[DocumentInfo]:
        """Return documents of a stored index, as it is in the cloud now.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        async with await self._stored(name) as session:
            return await session.get_docs(options)

    async def _stored(self, name: str) -> SessionIndex:
        return await SessionIndex.open(await self._remote(), name, must_exist=True)

    async def get_index(self, name: str) -> IndexInfo:
        """Tell about a stored index.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        remote = await self._remote()
        head = await remote.cloud.read_head(remote.project, name)
        if head is None or head.deleted:
            raise IndexNotFoundError(
                f"the cloud holds no index {name!r} in project {remote.project!r}"
            )
        return _info(head)

    async def list_indexes(self) -> list[IndexInfo]:
        """Tell about every stored index of the project, by name."""
        remote = await self._remote()
        return [_info(head) for head in await remote.cloud.list_indexes(remote.project)]

    async def delete_index(self, name: str) -> None:
        """Delete a stored index with all its versions; a loaded copy is let go of.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        remote = await self._remote()
        await remote.cloud.delete_index(remote.project, name)
        await self.unload_index(name)

    # --- jobs --------------------------------------------------------------------------------------

    async def get_job_status(self, job_id: str) -> JobStatusResponse:
        """Tell how far a push or a change has come.

        Raises:
            JobNotFoundError: If the cloud knows no such job.
        """
        remote = await self._remote()
        return await remote.cloud.get_job(remote.project, job_id)

    async def wait_for_job(self, job_id: str, *, timeout_s: float = 600.0) -> JobStatusResponse:
        """Wait until a job is completed or has failed.

        Raises:
            JobNotFoundError: If the cloud knows no such job.
            TimeoutError: If it takes longer than `timeout_s`.
        """
        async with asyncio.timeout(timeout_s):
            while True:
                job = await self.get_job_status(job_id)
                if job.status in ("completed", "failed"):
                    return job
                await asyncio.sleep(_POLL_S)


def _absolute(where: str) -> str:
    return where if "://" in where else str(Path(where).expanduser().absolute())


def _mutation(pushed: PushIndexResult) -> MutationResult:
    return MutationResult(pushed.job_id, pushed.index_name, pushed.doc_count)


def _info(commit: Commit) -> IndexInfo:
    return IndexInfo(
        id=commit.index_id,
        name=commit.index,
        version=commit.version,
        status="ready",
        doc_count=commit.doc_count,
        created_at=commit.created_at,
        updated_at=commit.updated_at,
        model=commit.model_id,
    )


def _last_words(contents: Contents) -> list[Put | Delete]:
    """Return the last record on each document that no push has covered, in the order of their times.

    Not of their lines: what a push found noted and no turn yet is written again behind it.
    """
    last: dict[str, Put | Delete] = {}
    first_ms: dict[str, int] = {}
    for record in contents.unpushed:
        id_ = record.id if isinstance(record, Delete) else str(record.document["id"])
        last[id_] = record
        first_ms[id_] = min(record.written_at_ms, first_ms.get(id_, record.written_at_ms))
    return [last[id_] for id_ in sorted(last, key=lambda id_: first_ms[id_])]


def _retrieved(task: asyncio.Future[Any]) -> None:
    """Take note of the end of something that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _cleared(creating: Future[Journal]) -> None:
    """Clear a journal that was made for a call which nobody wants any more."""
    if not creating.cancelled() and creating.exception() is None:
        creating.result().clear()
