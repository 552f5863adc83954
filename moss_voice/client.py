"""The door: opens sessions and calls, loads and queries knowledge, manages what the cloud holds.

The law: constructing a client touches nothing; the first call that needs the cloud opens it and checks
the credentials. An index that is loaded is loaded once per client and shared by all its calls.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import time
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, TypeVar

import numpy as np
import numpy.typing as npt
import platformdirs

from moss_voice import ranking
from moss_voice.call.context import MAX_TOKENS
from moss_voice.call.journal import Header, Journal
from moss_voice.call.knowledge import Knowledge
from moss_voice.call.memory import DEADLINE_MS, MIN_SCORE, CallMemory
from moss_voice.call.recording import Recorder, recordings_path
from moss_voice.cloud.cache import SegmentCache
from moss_voice.cloud.cloud import Authenticator, Forgotten, open_cloud
from moss_voice.cloud.keys import DEFAULT_PROJECT
from moss_voice.cloud.log import (
    FRESH_S,
    GRACE_S,
    KEEP_COMMITS,
    Commit,
    Segment,
    decode_commit,
    decode_segment,
)
from moss_voice.cloud.objects import Store
from moss_voice.cloud.outbox import Outbox
from moss_voice.cloud.sealing import Keyring, is_sealed
from moss_voice.errors import (
    AuthenticationError,
    CloudUnavailableError,
    CorruptDataError,
    FilterError,
    IndexExistsError,
    IndexNotFoundError,
    InvalidArgumentError,
    MossError,
    SessionClosedError,
)
from moss_voice.filters import parse_filter
from moss_voice.index import decode_document
from moss_voice.recovery import find_waiting, recover_journals, send_waiting
from moss_voice.session import Progress, SessionIndex
from moss_voice.types import (
    DocumentInfo,
    GetDocumentsOptions,
    IndexInfo,
    IndexVersion,
    JobStatusResponse,
    MutationOptions,
    MutationResult,
    PushIndexResult,
    QueryOptions,
    RecoveredCall,
    SearchResult,
)
from moss_voice.versions import Remote, built_keys, share_version
from moss_voice.workers import in_worker, in_writer, submit_write

__all__ = ["Authenticator", "MossClient"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

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
        cloud: str | Path | Store | None = None,
        cache_path: str | Path | None = None,
        journal_path: str | Path | None = None,
        authenticator: Authenticator | None = None,
        encryption_key: str | bytes | Sequence[str | bytes] | None = None,
        encryption_key_file: str | Path | None = None,
        redact: Callable[[str], str] | None = None,
        on_received: Callable[[str, int, int], None] | None = None,
        on_sent: Callable[[int, int], None] | None = None,
    ) -> None:
        """Note where things are; nothing is touched yet.

        Args:
            project_id: `MOSS_PROJECT_ID` where None; without either, an embedded cloud's project
                `default`.
            project_key: `MOSS_PROJECT_KEY` where None.
            cloud: `MOSS_VOICE_CLOUD` where None; without either, the embedded cloud: a directory
                under the platform's data directory. A path or a `file://` URL is a directory too;
                `s3://`, `gs://` and `az://` are object stores, with the credentials of their usual
                environment; `http(s)://` is a moss-voice server; `memory://NAME` lives as long as this
                process. A `Store` of your own may be given as it is; who made it closes it.
            cache_path: Where segments and graphs are kept; the platform's cache directory where None.
            journal_path: Where calls are journaled and pushes wait that a cloud did not take; the
                platform's data directory where None.
            authenticator: Gives tokens for a server in place of a key. Such a client cannot open
                sessions or calls. An embedded cloud has nobody to check a token and never asks.
            encryption_key: What is pushed is sealed with, so that the cloud holds no readable text,
                metadata or vector: 32 bytes, in base64 or hexadecimal (`moss-voice key new` makes one).
                Of several the first is used, and all can be read. `MOSS_VOICE_ENCRYPTION_KEY` where None.
            encryption_key_file: A file of such keys, one a line, in place of it;
                `MOSS_VOICE_ENCRYPTION_KEY_FILE` where None.
            redact: Returns what may be kept of a text: applied to what is said in calls and added to
                sessions, before it is embedded, journaled or pushed, and to what is asked of them;
                `moss_voice.PiiRedactor()` finds card numbers, addresses and the like. It runs for each
                turn and interim, on the event loop: it must be quick. Knowledge indexes are stored as
                they are given.
            on_received: Told of each download as it comes: the index, bytes so far, bytes in all.
            on_sent: Told of each segment as it goes to a server: bytes so far, bytes in all.

        Raises:
            InvalidArgumentError: If an encryption key is none, or a cloud is none of these.
            EncryptionKeyError: If the key file cannot be read.
        """
        self._project_id = project_id or os.environ.get("MOSS_PROJECT_ID") or None
        self._project_key = project_key or os.environ.get("MOSS_PROJECT_KEY") or None
        self._authenticator = authenticator
        where = cloud if cloud is not None else os.environ.get("MOSS_VOICE_CLOUD") or None
        self._store = where if isinstance(where, Store) else None
        if not isinstance(where, Store | str | os.PathLike | None):
            raise InvalidArgumentError(
                f"cloud: expected a path, a URL or a moss_voice.Store, got {type(where).__name__}"
            )
        # Absolute, so that a journal names the same cloud from wherever it is recovered.
        self._where = _address(where)
        data = Path(platformdirs.user_data_dir("moss_voice", appauthor=False))
        cache = Path(platformdirs.user_cache_dir("moss_voice", appauthor=False))
        self._cache_path = cache if cache_path is None else Path(cache_path)
        self._journal_path = data / "journal" if journal_path is None else Path(journal_path)
        self._keyring = _keyring(encryption_key, encryption_key_file)
        self._redact = redact
        self._on_received = on_received
        self._on_sent = on_sent
        # Until the cloud has answered, nobody knows whether the credentials are right.
        self._unchecked = False
        self._sending: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[Remote] | None = None
        self._loaded: dict[str, SessionIndex] = {}
        self._loading: dict[str, asyncio.Lock] = {}
        self._sessions: weakref.WeakSet[SessionIndex] = weakref.WeakSet()
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self._loaded)} loaded"
        return f"<MossClient {self._project_id or 'default'!r} on {self._where or 'embedded'}, {state}>"

    @property
    def encryption_key_ids(self) -> tuple[str, ...]:
        """The ids of the encryption keys, that of the current one first; none without a key."""
        return self._keyring.ids if self._keyring is not None else ()

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
        if self._sending is not None:
            self._sending.cancel()
        await asyncio.gather(*(index.close() for index in open_ones))
        opening = self._opening
        opened = opening is not None and opening.done() and not opening.cancelled()
        if opening is not None and opened and opening.exception() is None:
            await opening.result().cloud.close()

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
        remote = await asyncio.shield(opening)
        if self._unchecked and not remote.outage.lasts:
            await self._check_in(remote)
        return remote

    async def _open(self) -> Remote:
        remote = await self._far_side()
        await self._check_in(remote)
        return remote

    async def _far_side(self) -> Remote:
        """Put together where indexes live; the cloud is not asked."""
        opened = partial(
            open_cloud,
            self._store or self._where,
            keyring=self._keyring,
            key=self._project_key,
            authenticator=self._authenticator,
            on_sent=self._on_sent,
        )
        return Remote(
            cloud=await in_worker(opened),
            project=self._project_id or DEFAULT_PROJECT,
            cache=await in_worker(SegmentCache, self._cache_path),
            outbox=Outbox(self._journal_path / "~outbox"),
            where=self._where,
            on_received=self._on_received,
        )

    async def _check_in(self, remote: Remote) -> None:
        """Check the credentials, and send what waits; put off while the cloud is away."""
        try:
            await remote.cloud.check_credentials(self._project_id, self._project_key)
        except CloudUnavailableError as error:
            # What is kept here can be used meanwhile; whatever is not kept raises by itself.
            remote.outage.noticed()
            self._unchecked = True
            logger.warning("the cloud is away (%s): using what is kept here", error.code)
            return
        self._unchecked = False
        if self._sending is None or self._sending.done():
            sending = self._send_quietly(remote)
            self._sending = asyncio.get_running_loop().create_task(sending)

    async def _send_quietly(self, remote: Remote) -> None:
        try:
            for sent in await send_waiting(remote):
                log = logger.info if sent.status == "pushed" else logger.warning
                log("a push of %r that waited: %s", sent.index_name, sent.status)
        except MossError as error:
            logger.warning("the outbox cannot be sent (%s)", error.code)

    # --- sessions and calls ------------------------------------------------------------------------

    async def session(
        self,
        index_name: str,
        model_id: str | None = None,
        *,
        version: int | None = None,
        ttl: timedelta | float | None = None,
        redact: Callable[[str], str] | None = None,
    ) -> SessionIndex:
        """Open a session: resumes the index of that name without embedding anew, or starts empty.

        While the cloud is away, what was kept of the index here is opened, and is `stale` until the cloud
        is back.

        Args:
            index_name: What `push_index` stores it under.
            model_id: `moss-minilm` (the default), `moss-mediumlm`, `custom`, or a model directory;
                leave it out to use the stored index's.
            version: An older version to open; `history` tells which there are. A push then conflicts with
                what came after it.
            ttl: The index's retention period, set by each push: so long after its last push it is
                deleted. Seconds, or a timedelta; None leaves it as it is.
            redact: See `MossClient`; the client's where None.

        Raises:
            AuthenticationError: If the credentials are wrong, or an authenticator was given.
            IndexNotFoundError: If there is no such version (any more).
            EncryptionKeyError: If the index is encrypted and its key was not given.
            ModelMismatchError: A `ValueError`, if the stored index belongs to another model.
            ModelNotFoundError: If there is no such model.
            CorruptDataError: If what is stored is damaged.
            CloudUnavailableError: If the cloud does not answer.
        """
        self._check_key_holder("session()")
        session = await SessionIndex.open(
            await self._remote(),
            index_name,
            model_id,
            version=version,
            ttl_s=_seconds(ttl),
            redact=redact or self._redact,
        )
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
        focus: Sequence[str] | None = None,
        without: Collection[str] = (),
        model_id: str | None = None,
        top_k: int = ranking.DEFAULT_TOP_K,
        alpha: float = ranking.DEFAULT_ALPHA,
        min_score: float = MIN_SCORE,
        max_tokens: int = MAX_TOKENS,
        deadline_ms: float = DEADLINE_MS,
        journal: bool = True,
        open_timeout_s: float | None = None,
        ttl: timedelta | float | None = None,
        redact: Callable[[str], str] | None = None,
        record: bool | str | Path | None = None,
    ) -> CallMemory:
        """Start or resume the memory of a call.

        Args:
            call_id: Names the call and its index.
            knowledge: Names of indexes to look things up in; loaded where they are not yet.
            focus: Metadata fields of theirs that hold names of what a call can be about; where None,
                fields are found that look like it.
            without: Parts of the retrieval to leave out, such as `["gate"]`; see `ranking.Part`.
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
            ttl: See `session`.
            redact: See `MossClient`; the client's where None.
            record: Keep a recording of the call for `moss-voice inspect`: in this directory, or, where
                True, in `recordings` of the platform's data directory. **It holds what is said, as
                text**, in a file that its owner alone can read and that stays until somebody deletes
                it. Where None, as `MOSS_VOICE_RECORD` says, and without that none is made.

        Raises:
            IndexNotFoundError: If a knowledge index does not exist.
            JournalError: If the journal cannot be written.
            MossError: See `session`.
        """
        self._check_key_holder("call()")
        ttl_s, recordings = _seconds(ttl), recordings_path(record)
        if any(isinstance(names, str) for names in (knowledge, focus, without)):
            raise InvalidArgumentError("knowledge, focus and without: expected a list of names")
        if open_timeout_s is None:
            remote = await self._remote()
            session, *indexes = await asyncio.gather(
                self.session(call_id, model_id, ttl=ttl_s),
                *(self._loaded_index(name) for name in knowledge),
            )
        else:
            remote, session, indexes = await self._opened_in_time(
                call_id, model_id, knowledge, open_timeout_s, ttl_s
            )
        book: Journal | None = None
        recorder: Recorder | None = None
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
            if recordings is not None:
                recorder = await in_writer(
                    _recorder, recordings, remote.project, self._where, call_id
                )
            return await CallMemory.open(
                session,
                knowledge=indexes,
                journal=book,
                focus=focus,
                without=without,
                top_k=top_k,
                alpha=alpha,
                min_score=min_score,
                max_tokens=max_tokens,
                deadline_ms=deadline_ms,
                redact=redact or self._redact,
                recorder=recorder,
            )
        except BaseException:
            if book is not None:
                book.clear()
            if recorder is not None:
                recorder.discard()
            await session.close()
            raise

    async def _opened_in_time(
        self,
        call_id: str,
        model_id: str | None,
        knowledge: Sequence[str],
        limit_s: float,
        ttl_s: int | None,
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
            remote = await self._far_side()
            return remote, await SessionIndex.start(remote, call_id, model_id, ttl_s=ttl_s), []
        session, *found = await asyncio.gather(
            in_time(self.session(call_id, model_id, ttl=ttl_s), "what is stored of it"),
            *(in_time(self._loaded_index(name), f"the knowledge {name!r}") for name in knowledge),
        )
        if session is None:
            session = await SessionIndex.start(remote, call_id, model_id, ttl_s=ttl_s)
            self._sessions.add(session)
        return remote, session, [index for index in found if index is not None]

    async def recover(self, call_id: str | None = None) -> list[RecoveredCall]:
        """Push the turns of calls whose process died or whose push failed, and pushes that wait.

        Calls that are alive, here or in another process, are left alone. Safe to run at any time.

        Args:
            call_id: Only this call's; an agent that takes up a call does so before it opens it.
        """
        remote = await self._remote()
        waiting = await send_waiting(remote, call_id)
        return waiting + await recover_journals(remote, self._journal_path, call_id)

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
        # A call that loads it does not wait for this; who loads it ahead has the time.
        await in_worker(Knowledge(index).study)
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
        ttl: timedelta | float | None = None,
    ) -> MutationResult:
        """Embed documents here and store them as a new index.

        Args:
            name: The index's name.
            docs: See `DocumentInfo`.
            model_id: See `session`.
            on_progress: Told how many of how many are embedded.
            ttl: See `session`.

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
        opening = SessionIndex.open(remote, name, model_id, ttl_s=_seconds(ttl))
        async with await opening as session:
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
            return _mutation(await session.push_index(on_conflict="merge", if_unreachable="raise"))

    async def copy_index(
        self, name: str, *, to: MossClient, new_name: str | None = None
    ) -> MutationResult:
        """Copy an index, as it is now, to another cloud or project, or under another name here.

        Nothing is embedded anew; what one client seals and the other does not is sealed or not there.

        Args:
            name: The index's name.
            to: The client whose cloud and project it goes to.
            new_name: Its name there; the same where None.

        Raises:
            IndexNotFoundError: If there is no such index here.
            IndexExistsError: If there is one of that name there.
        """
        remote = await to._remote()
        async with await self._stored(name) as session:
            return _mutation(await session.copy_to(remote, new_name or name))

    async def delete_docs(self, name: str, doc_ids: Sequence[str]) -> MutationResult:
        """Delete documents from a stored index; unknown ids are passed over.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        async with await self._stored(name) as session:
            await session.delete_docs(doc_ids)
            return _mutation(await session.push_index(on_conflict="merge", if_unreachable="raise"))

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

    async def list_names(self) -> list[str]:
        """Return the names under which anything is stored: of deleted indexes and unfinished pushes too.

        For who looks after the cloud; `list_indexes` tells what can be opened.
        """
        remote = await self._remote()
        return await remote.cloud.list_names(remote.project)

    async def delete_index(self, name: str) -> None:
        """Delete a stored index with all its versions; copies that are loaded or cached are let go of.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        remote = await self._remote()
        before: list[Commit] = []
        with suppress(CorruptDataError):  # what is damaged can be deleted too
            before = await remote.cloud.history(remote.project, name)
        await remote.cloud.delete_index(remote.project, name)
        await self._let_go(remote, before)
        await self.unload_index(name)

    async def history(self, name: str) -> list[IndexVersion]:
        """Tell about the versions of an index that are still kept, newest first.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        remote = await self._remote()
        commits = await remote.cloud.history(remote.project, name)
        if not commits:
            raise IndexNotFoundError(
                f"the cloud holds no index {name!r} in project {remote.project!r}"
            )
        newest = commits[-1].version
        return [_version(commit, newest) for commit in reversed(commits)]

    async def restore_index(self, name: str, version: int) -> IndexInfo:
        """Make a new version of an index with the documents of an older one.

        Raises:
            IndexNotFoundError: If there is no such index, or that version is not kept any more.
        """
        remote = await self._remote()
        return _info(await remote.cloud.restore(remote.project, name, version))

    async def set_ttl(self, name: str, ttl: timedelta | float | None) -> IndexInfo:
        """Set an index's retention period: so long after its last change it is deleted; None keeps it.

        Raises:
            IndexNotFoundError: If the cloud has none of that name.
        """
        remote = await self._remote()
        return _info(await remote.cloud.set_ttl(remote.project, name, _seconds(ttl)))

    async def collect_index(
        self, name: str, *, grace: timedelta | float = GRACE_S, keep: int = KEEP_COMMITS
    ) -> int:
        """Remove what nobody can need any more: old versions, and segments that no version names.

        A push of an index does it now and then by itself. What a push under way may be using is left.

        Args:
            name: The index's name; also one that was deleted.
            grace: How old a version or segment must be to be removed, in seconds or as a timedelta; at
                least an hour.
            keep: How many versions are kept however old they are.

        Returns:
            How many objects were removed.
        """
        grace_s = _seconds(grace)
        if grace_s is None or grace_s < FRESH_S or keep < 1:
            raise InvalidArgumentError(
                f"collect_index: expected a grace of {FRESH_S:g} seconds or more and 1 version or more to"
                f" keep, got {grace} and {keep}"
            )
        remote = await self._remote()
        return await remote.cloud.collect(remote.project, name, grace_s=grace_s, keep=keep)

    async def encrypt_index(self, name: str) -> bool:
        """Write an index anew, sealed with the current key, and remove all that is not.

        For an index that was made without a key, or with an older one. Its older versions go, and what the
        local cache holds of them.

        Returns:
            False where there was nothing to do.

        Raises:
            EncryptionKeyError: If the client has no key, or not the one that it is sealed with now.
            IndexNotFoundError: If the cloud has none of that name.
        """
        await self.get_index(name)
        remote = await self._remote()
        before = await remote.cloud.history(remote.project, name)
        done = await remote.cloud.reseal(remote.project, name)
        if done is not None:
            await self._let_go(remote, before)
        return done is not None

    async def forget(
        self,
        filter: Mapping[str, Any],  # noqa: A002 - as in QueryOptions
        *,
        index_names: Sequence[str] | None = None,
        dry_run: bool = False,
    ) -> list[Forgotten]:
        """Delete every document whose metadata match, from all versions of all indexes.

        Say, all that one caller ever said: `{"field": "caller_id", "condition": {"$eq": "c-17"}}`. What
        waits here to be pushed is pushed first, so that nothing brings it back. Ask again to verify: what
        is gone is not found, in no version, segment or leftover.

        What it cannot reach: other machines' caches and journals, sessions that are open elsewhere (they
        can merge, and not put back what they hold), and backups of the store. The ids of the documents
        stay, among the tombstones.

        Args:
            filter: A metadata filter; see `moss_voice.filters`.
            index_names: Where to look; in every index of the project where None.
            dry_run: True only counts.

        Returns:
            What was found, per index that held some; see `Forgotten`.

        Raises:
            FilterError: If the filter is malformed, or empty: that would be everything.
            EncryptionKeyError: If an index is encrypted and its key was not given.
        """
        condition = parse_filter(filter)
        if condition is None or not condition.fields:
            raise FilterError("filter: expected a condition; an empty one would forget everything")
        remote = await self._remote()
        if not dry_run:
            left = [one for one in await self.recover() if one.status == "failed"]
            if left:
                raise CloudUnavailableError(
                    f"{len(left)} pushes or journals that wait here could not be sent, and may hold what"
                    " is to be forgotten; see `moss-voice recover`"
                )
        if index_names is None:
            index_names = await remote.cloud.list_names(remote.project)

        def matches(segment: Segment) -> npt.NDArray[np.bool_]:
            told = (decode_document(line).metadata for line in segment.documents)
            return np.fromiter((condition.matches(one) for one in told), np.bool_, len(segment))

        results: list[Forgotten] = []
        clean: list[Commit] = []
        for name in dict.fromkeys(index_names):
            before = await remote.cloud.history(remote.project, name)
            found = await remote.cloud.forget(remote.project, name, matches, dry_run=dry_run)
            told = (found.documents, found.older, found.removed, found.pending) if found else ()
            if found is None or not any(told):
                clean += before
                continue
            results.append(found)
            if not dry_run:
                await self._let_go(remote, before)
                if name in self._loaded:
                    await self._loaded[name].refresh()
        if not dry_run and remote.cache is not None:
            await in_worker(_sweep, remote.cache, clean, matches)
        return results

    @staticmethod
    async def _let_go(remote: Remote, versions: Sequence[Commit]) -> None:
        """Remove what the local cache holds of versions."""
        if remote.cache is not None:
            names = {ref.sha256 for commit in versions for ref in commit.segments}
            built = {key for commit in versions for key in built_keys(commit)}
            await in_worker(remote.cache.drop, names, built)

    # --- jobs --------------------------------------------------------------------------------------

    async def get_job_status(self, job_id: str) -> JobStatusResponse:
        """Tell how far a push or a change has come.

        Raises:
            JobNotFoundError: If the cloud knows no such job.
        """
        remote = await self._remote()
        waiting = await find_waiting(remote, job_id)
        return waiting or await remote.cloud.get_job(remote.project, job_id)

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


def _address(cloud: str | Path | Store | None) -> str | None:
    """Return what a cloud is known by: a path is absolute."""
    if cloud is None or isinstance(cloud, Store):
        return None if cloud is None else cloud.name
    where = str(cloud)
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
        ttl_s=commit.ttl_s,
        encrypted=bool(commit.key_ids),
    )


def _version(commit: Commit, newest: int) -> IndexVersion:
    kind: Literal["push", "restore", "replace", "upkeep"] = "push"
    of = None
    if commit.restored is not None:
        kind, of = "restore", commit.restored
    elif commit.changed < commit.version:
        kind = "upkeep"
    elif commit.replaced is not None:
        kind, of = "replace", commit.replaced
    return IndexVersion(
        version=commit.version,
        parent=commit.parent,
        doc_count=commit.doc_count,
        at=commit.updated_at,
        kind=kind,
        of=of,
        segments=len(commit.segments),
        size_bytes=sum(ref.size_bytes for ref in commit.segments),
        current=commit.version == newest,
    )


def _seconds(period: timedelta | float | None) -> int | None:
    """Return a period in whole seconds, at least one.

    Raises:
        InvalidArgumentError: If it is not above 0, or no period.
    """
    if period is None:
        return None
    seconds = period.total_seconds() if isinstance(period, timedelta) else period
    if not isinstance(seconds, int | float) or not 0 < seconds < 1 << 40:
        raise InvalidArgumentError(
            "ttl or grace: expected seconds above 0, or a timedelta, got"
            f" {period if isinstance(period, int | float) else type(period).__name__}"
        )
    return math.ceil(seconds)


def _keyring(
    keys: str | bytes | Sequence[str | bytes] | None, path: str | Path | None
) -> Keyring | None:
    if keys is not None and path is not None:
        raise InvalidArgumentError("expected encryption_key or encryption_key_file, got both")
    if keys is None and path is None:
        # Of an environment that has both, the file is the safer place.
        path = os.environ.get("MOSS_VOICE_ENCRYPTION_KEY_FILE") or None
        given = os.environ.get("MOSS_VOICE_ENCRYPTION_KEY") or None
        keys = given.replace(",", " ").split() if path is None and given is not None else None
    if path is not None:
        return Keyring.load(Path(path))
    if keys is None:
        return None
    return Keyring([keys] if isinstance(keys, str | bytes) else keys)


def _sweep(
    cache: SegmentCache,
    clean: Sequence[Commit],
    matches: Callable[[Segment], npt.NDArray[np.bool_]],
) -> None:
    """Remove from a cache what may hold documents to be forgotten, also of versions that are no more.

    Of a graph, or of what is sealed, nobody can tell here what is in it: what is not known to be clean
    goes, to be fetched or built anew.
    """

    def doomed(data: memoryview) -> bool:
        try:
            return is_sealed(data) or bool(matches(decode_segment(data)).any())
        except CorruptDataError:
            return True

    names = {ref.sha256 for commit in clean for ref in commit.segments}
    built = {key for commit in clean for key in built_keys(commit)}
    cache.sweep(doomed, keep=names, keep_built=built)


def _retrieved(task: asyncio.Future[Any]) -> None:
    """Take note of the end of something that nobody waits for any more."""
    if not task.cancelled():
        task.exception()


def _recorder(directory: Path, project: str, cloud: str | None, call: str) -> Recorder | None:
    """Begin a recording; a call goes on without one that cannot be made."""
    try:
        return Recorder.create(directory, project=project, cloud=cloud, call=call)
    except OSError as error:
        logger.error("call %r is not recorded (%s)", call, error.strerror or type(error).__name__)
        return None


def _cleared(creating: Future[Journal]) -> None:
    """Clear a journal that was made for a call which nobody wants any more."""
    if not creating.cancelled() and creating.exception() is None:
        creating.result().clear()
