"""The memory of one call: hears turns, gives context, ends the call.

The law: the voice loop never waits for us and never hears of our faults. Every turn is on disk before
`heard` returns; every answer comes within its deadline, empty where it must be; what goes wrong inside
is logged by kind and count, never by what was said.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, wait
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from moss_voice import ranking
from moss_voice import text as spoken
from moss_voice.call.context import MAX_TOKENS, Block, lay_out
from moss_voice.call.focus import TURNS
from moss_voice.call.journal import Delete, Journal, Pushed, Put
from moss_voice.call.knowledge import Knowledge
from moss_voice.call.oversight import Trace
from moss_voice.call.recall import SPARE_HITS, Found, Pairs, Query, Recall, Said, hit_of
from moss_voice.call.recording import Prefetched, Recorder, Settings, Timing
from moss_voice.call.utterances import Utterance, Utterances
from moss_voice.call.witness import Asked, Witness
from moss_voice.errors import InvalidArgumentError, MossError, SessionClosedError
from moss_voice.index import encode_document
from moss_voice.searching import Match
from moss_voice.session import SessionIndex, normalised
from moss_voice.types import (
    CallContext,
    DocumentInfo,
    Hit,
    Metadata,
    MetadataValue,
    PushIndexResult,
)
from moss_voice.withholding import Withholding
from moss_voice.workers import (
    in_worker,
    in_writer,
    submit,
    submit_after,
    submit_write,
)

__all__ = ["CallMemory", "Counters"]

logger = logging.getLogger(__name__)

F32 = npt.NDArray[np.float32]
_T = TypeVar("_T")

DEADLINE_MS = 50.0
# A turn or passage whose cosine is below 0.1 says nothing about the query, whatever words they share
# by chance.
MIN_SCORE = 0.55
# An interim stands for the final it begins where at most one word in six is still to come.
PREFIX_SHARE = 5 / 6
_KEPT_INTERIMS = 8
_KEPT_ANSWERS = 4
# When a call begins to study a large index that nobody has loaded ahead.
_STUDY_AFTER_S = 0.3
# How many turns are looked through for the last ones that are no fillers.
_LOOKED_BACK = 2 * TURNS
# How long somebody who asks for a recording waits for its last lines.
_SETTLED_S = 5.0
_PUSH_PAUSES_S = (0.2, 0.5, 1.0)


Ending = Literal["pushed", "nothing", "failed", "discarded"]


class Counters(NamedTuple):
    """What happened so far: numbers for metrics, none of it content."""

    turns: int
    contexts: int
    skipped: int
    late: int
    failed: int
    prefetched: int


class _Turn(NamedTuple):
    id: str
    number: int
    speaker: str
    words: str
    terms: tuple[int, ...]
    filler: bool

    @classmethod
    def of(cls, id_: str, number: int, speaker: str, text: str) -> Self:
        terms = tuple(dict.fromkeys(spoken.term_ids(text).tolist()))
        return cls(id_, number, speaker, spoken.squash(text), terms, spoken.is_filler(text))


class _Foreseen(NamedTuple):
    """What an interim led to: its vector, what was found per index, and in which state of the call."""

    vector: F32
    found: Found
    revision: int
    partial: str


class _Answer(NamedTuple):
    text: str
    hits: list[Hit]
    prefetched: bool
    need: float | None = None
    trace: Trace | None = None


class CallMemory:
    """What an agent knows of the call that it is in.

    Get one from `MossClient.call`. Use it from one event loop; `hearing` may be called from any thread.
    Bad arguments raise; nothing else that goes wrong in here reaches the caller.
    """

    def __init__(
        self,
        session: SessionIndex,
        *,
        knowledge: Sequence[SessionIndex] = (),
        journal: Journal | None = None,
        focus: Sequence[str] | None = None,
        without: Collection[str] = (),
        top_k: int = ranking.DEFAULT_TOP_K,
        alpha: float = ranking.DEFAULT_ALPHA,
        min_score: float = MIN_SCORE,
        max_tokens: int = MAX_TOKENS,
        deadline_ms: float = DEADLINE_MS,
        redact: Callable[[str], str] | None = None,
        recorder: Recorder | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start from ready parts.

        Args:
            session: The call's own index, closed at the end of the call.
            knowledge: Loaded indexes, shared and not closed.
            journal: Where turns survive a crash; without one they do not.
            focus: Metadata fields of the knowledge indexes that hold names of what a call can be about;
                where None, they are found by what they hold.
            without: Parts of the retrieval to leave out; see `ranking.Part`.
            top_k: The most hits in one context.
            alpha: See `QueryOptions`.
            min_score: Hits of a lower score are left out, in [0, 1].
            max_tokens: The budget of one context.
            deadline_ms: How long `context` and `recall` may take.
            redact: Returns what may be kept of a text, before anything is embedded, journaled or pushed;
                see `moss_voice.redaction`. Where it fails, the text is withheld.
            recorder: What is told all that happens, with its text; nobody where None.
            now: Seconds on a clock that never goes back: how far into the call a turn is.

        Raises:
            InvalidArgumentError: If a number is out of its range.
        """
        _check_range("top_k", top_k, least=1)
        _check_range("max_tokens", max_tokens, least=1)
        _check_range("alpha", alpha, least=0.0, most=1.0)
        _check_range("min_score", min_score, least=0.0, most=1.0)
        _check_range("deadline_ms", deadline_ms, least=0.0)
        try:
            left_out = ranking.check_parts(without)
        except ValueError as error:
            raise InvalidArgumentError(f"without: {error}") from None
        self.session = session
        self.knowledge = tuple(knowledge)
        self._knowledge = [Knowledge(index, focus=focus) for index in knowledge]
        self._recalling = Recall(
            session, self._knowledge, alpha=alpha, min_score=min_score, without=left_out
        )
        self.top_k = top_k
        self.alpha = alpha
        self.min_score = min_score
        self.max_tokens = max_tokens
        self.deadline_ms = deadline_ms
        self._withholding = Withholding(redact)
        self._journal = journal
        self._now = now
        self._started = now()
        self._writer = secrets.token_hex(3)
        # Guarded by _state, since workers read what the event loop writes.
        # Entered again where a model run is done before its callback is added.
        self._state = threading.RLock()
        self._turns: dict[str, _Turn] = {}
        self._fillers: set[str] = set()
        self._last_number = 0
        self._vectors: deque[tuple[str, F32]] = deque(maxlen=ranking.CONVERSATION_TURNS + 1)
        self._said_words: set[str] = set()
        self._unindexed: dict[str, tuple[DocumentInfo, int]] = {}
        self._interims: OrderedDict[str, Future[_Foreseen]] = OrderedDict()
        self._next_interim: str | None = None
        self._answers: OrderedDict[object, _Answer] = OrderedDict()
        # Goes up with each change of what can be recalled: an answer stands for one revision.
        self._revision = 0
        # The revision of each turn's last change, the newest last.
        self._changed_at: OrderedDict[str, int] = OrderedDict()
        self._counts = dict.fromkeys(Counters._fields, 0)
        self._durable = journal is not None
        self._last_kept: Future[Any] | None = None
        self._last_flush: Future[None] | None = None
        # The event loop's alone: turns that are being indexed.
        self._on_the_way: dict[str, Future[Any]] = {}
        # The event loop's alone, with the writes that bring each of them to the journal.
        self._utterances = Utterances()
        self._noted: dict[str, tuple[Put, Future[None]]] = {}
        self._last_note: Future[None] | None = None
        self._last_noted_ms = 0
        self._end: asyncio.Task[PushIndexResult | None] | None = None
        self._ending: Ending | None = None
        self._witness = None if recorder is None else self._witness_of(recorder, focus, left_out)

    def _witness_of(
        self, recorder: Recorder, focus: Sequence[str] | None, without: Collection[str]
    ) -> Witness:
        settings = Settings(
            self.top_k,
            self.alpha,
            self.min_score,
            self.max_tokens,
            self.deadline_ms,
            None if focus is None else tuple(focus),
            tuple(sorted(without)),
        )
        return Witness(
            recorder,
            self.session,
            self._knowledge,
            self._recalling,
            settings,
            hit_of=self._hit,
            turns_after=self._turns_after,
            seconds=lambda: self._now() - self._started,
        )

    @classmethod
    async def open(
        cls,
        session: SessionIndex,
        *,
        knowledge: Sequence[SessionIndex] = (),
        journal: Journal | None = None,
        focus: Sequence[str] | None = None,
        **options: object,
    ) -> Self:
        """Take up a call, with the turns that its session resumed and the names worth a focus."""
        self = cls(session, knowledge=knowledge, journal=journal, focus=focus, **options)  # type: ignore[arg-type]
        await in_worker(self._prepare)
        for known in self._knowledge:
            if not known.prepare():
                # Not now: a first answer may be on its way, and the names can wait until it is there.
                asyncio.get_running_loop().call_later(_STUDY_AFTER_S, known.begin)
        if self._witness is not None:
            docs = [doc for doc in session.documents() if doc.id in self._turns]
            self._witness.begin(
                redacted=bool(self._withholding),
                resumed=[DocumentInfo(doc.id, doc.text, doc.metadata) for doc in docs],
            )
        return self

    def _prepare(self) -> None:
        for doc in self.session.documents():
            metadata = doc.metadata or {}
            number = metadata.get("turn")
            if isinstance(number, int):
                self._last_number = max(self._last_number, number)
                self._remember(_Turn.of(doc.id, number, str(metadata.get("speaker", "")), doc.text))
        for knowledge in self._knowledge:
            knowledge.prepare()
        said = [turn for turn in self._turns.values() if not turn.filler]
        recent = [turn.id for turn in said[-ranking.CONVERSATION_TURNS - 1 :]]
        self._vectors.extend(zip(recent, self.session.vectors_of(recent), strict=True))
        # The first turn of a call shall not wait for what every first run sets up.
        if self.session.embedder is not None:
            self.session.embedder.embed_query("hello")

    def __repr__(self) -> str:
        state = "ended" if self._end is not None else "live"
        durable = "" if self._durable else ", not durable"
        return f"<CallMemory {self.name!r} {len(self._turns)} turns, {state}{durable}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.end()

    @property
    def name(self) -> str:
        """The call's id, and its index's name."""
        return self.session.name

    @property
    def durable(self) -> bool:
        """True while every acknowledged turn is in the journal; False without one or after it failed."""
        return self._durable

    @property
    def counters(self) -> Counters:
        """What happened so far."""
        with self._state:
            return Counters(**{**self._counts, "turns": len(self._turns)})

    async def recorded(self) -> Path | None:
        """Wait until what happened so far is in the call's recording, and return where that is.

        Returns:
            None where the call is not recorded.
        """
        if self._witness is None:
            return None
        recorder = self._witness.recorder
        await in_writer(recorder.settle, _SETTLED_S)
        return recorder.path

    @property
    def about(self) -> list[str]:
        """What the call is about: the values in focus, newest first; empty where nothing was named."""
        with self._state:
            turns = [turn.words for turn in islice(reversed(self._turns.values()), TURNS)]
        try:
            named = self._recalling.about(turns, self._said_words)
        except Exception as error:  # noqa: BLE001 - the host must not hear of it
            logger.error("call %r: no names (%s)", self.name, type(error).__name__)
            return []
        return [each.value for each in named]

    # --- hearing -----------------------------------------------------------------------------------

    async def heard(
        self,
        text: str,
        speaker: str = "caller",
        *,
        at: float | None = None,
        until: float | None = None,
        final: bool = True,
        interrupted: bool = False,
        typed: bool = False,
        id: str | None = None,  # noqa: A002 - the published signature
        metadata: Mapping[str, MetadataValue] | None = None,
        embedding: Sequence[float] | None = None,
    ) -> str | None:
        """Remember a finished turn: when this returns, it is on disk and can be recalled.

        The journal is written and flushed while the model runs, so that the turn survives `kill -9`
        and, where `durable`, a power cut. A blank is not kept; a filler ("mm-hmm") is kept and never
        recalled. The speaker's utterances that the turn is made of are forgotten; those that it passed
        over become turns of their own before it, marked `unanswered` (see `uttered`).

        Args:
            text: What was really spoken: after an interruption, no more than that.
            speaker: `caller`, `agent`, or a name.
            at: When it began, in seconds into the call; now where None.
            until: When it ended, for a recording; unknown where None.
            final: False hands the text to `hearing`.
            interrupted: True where the speaker was cut off.
            typed: True where it was not spoken; it takes in no utterances.
            id: Of the turn, to correct it later by the same id; made up where None.
            metadata: Kept with the turn.
            embedding: (dim,) numbers, where the call's model is `custom`.

        Returns:
            The turn's id; None where nothing was kept.

        Raises:
            InvalidArgumentError: If an argument is not what it should be.
            SessionClosedError: After `end` or `discard`.
        """
        began = time.perf_counter()
        if not isinstance(text, str) or not isinstance(speaker, str) or not speaker:
            raise InvalidArgumentError("heard: expected a text and a speaker's name, both str")
        if id is not None and (not isinstance(id, str) or not id):
            raise InvalidArgumentError("heard: expected a turn id that is not empty")
        self._check_live()
        if not final:
            self.hearing(text)
            return None
        if not text.strip():
            return None
        at_s, ended_s = self._seconds(at), None if until is None else self._seconds(until)
        fields: Metadata = {**(metadata or {}), "speaker": speaker, "at_s": round(at_s, 3)}
        if interrupted:
            fields["interrupted"] = True
        if typed:
            fields["typed"] = True
        vector = None if embedding is None else tuple(float(x) for x in embedding)
        # A recogniser's broken characters must not cost the turn.
        text = _sound(text)
        kept = self._withholding.clean(text)
        if kept != text:
            fields["redacted"] = True
        doc = DocumentInfo(id or "turn", kept, fields, vector)
        self._check_turn(doc)
        # From here on nothing raises.
        taken: list[Utterance] = []
        # A correction of an earlier turn has nothing to do with the one that goes on.
        if not typed and id not in self._turns:
            began_s = None if at is None else at_s
            taken, passed = self._utterances.settle(text, speaker, began_s)
            self._keep_unanswered(passed)
        turn_id = self._begin_turn(id, doc, [*taken], ended_s=ended_s)
        assert self._last_kept is not None  # noqa: S101 - just set
        # A host that cancels its own task at hang-up does not cancel this with it.
        flushing = await _settled(self._last_kept)
        if flushing is not None and not flushing.done():
            await _done(flushing)
        if self._witness is not None:
            self._witness.kept(turn_id, (time.perf_counter() - began) * 1000.0)
        return turn_id

    def _seconds(self, at: float | None) -> float:
        if at is None:
            return self._now() - self._started
        try:
            return float(at)
        except (TypeError, ValueError):
            raise InvalidArgumentError(
                f"at: expected seconds into the call, got {type(at).__name__}"
            ) from None

    def _begin_turn(
        self,
        id_: str | None,
        doc: DocumentInfo,
        settled: Sequence[Utterance] = (),
        *,
        ended_s: float | None = None,
    ) -> str:
        """Number a turn and queue what keeps it, with the end of the utterances that it settles."""
        fields = doc.metadata
        assert fields is not None  # noqa: S101 - ours
        with self._state:
            turn = self._number(id_, doc.text, str(fields["speaker"]))
        fields["turn"] = turn.number
        if turn.filler:
            fields["filler"] = True
        doc.id = turn.id
        notes = [self._noted.pop(utterance.id) for utterance in settled]
        ends = [put.document["id"] for put, _ in notes if put.document["id"] != doc.id]
        before = [self._last_kept, *(write for _, write in notes)]
        self._last_kept = kept = submit_after(before, self._keep, doc, ends)
        self._on_the_way = {id_: run for id_, run in self._on_the_way.items() if not run.done()} | {
            turn.id: kept
        }
        if self._witness is not None:
            self._witness.turn(doc, ended_s)
        return turn.id

    def _keep_unanswered(self, utterances: Sequence[Utterance]) -> None:
        """Make turns of utterances that the host took no notice of."""
        for utterance in utterances:
            put, _ = self._noted[utterance.id]
            doc = DocumentInfo(utterance.id, put.document["text"], dict(put.document["metadata"]))
            self._begin_turn(utterance.id, doc, [utterance])

    def uttered(
        self,
        text: str,
        speaker: str = "caller",
        *,
        at: float | None = None,
        id: str | None = None,  # noqa: A002 - as in `heard`
        metadata: Mapping[str, MetadataValue] | None = None,
    ) -> str | None:
        """Note what a recogniser has finished of a turn that is still going on.

        It is in the journal at once, so that it survives `kill -9`, and cannot be recalled yet: that
        comes with the turn, told by `heard`, which takes it in. Where no turn does (the host dropped
        it, the call ended) it becomes a turn of its own. Returns at once. Where the model is `custom`
        nothing is noted: there would be no embedding for it.

        Args:
            text: As the recogniser has it.
            speaker: As in `heard`.
            at: When it was said, in seconds into the call; now where None.
            id: To correct it later by the same id; made up where None.
            metadata: Kept with a turn that is made of this alone.

        Returns:
            The utterance's id; None where nothing was noted.

        Raises:
            InvalidArgumentError: If an argument is not what it should be.
            SessionClosedError: After `end` or `discard`.
        """
        if not isinstance(text, str) or not isinstance(speaker, str) or not speaker:
            raise InvalidArgumentError("uttered: expected a text and a speaker's name, both str")
        if id is not None and (not isinstance(id, str) or not id):
            raise InvalidArgumentError("uttered: expected an utterance id that is not empty")
        self._check_live()
        if id in self._turns:
            raise InvalidArgumentError("uttered: that is a turn already; `heard` corrects it")
        if self.session.embedder is None or not text.strip():
            return None
        at_s = self._seconds(at)
        fields: Metadata = {**(metadata or {}), "speaker": speaker, "at_s": round(at_s, 3)}
        utterance_id = id or f"utterance-{self._writer}-{secrets.token_hex(4)}"
        text = _sound(text)
        # As a recovery is to find it: a turn like others, of the number that the next one gets.
        fields |= {"turn": self._last_number + 1, "unanswered": True}
        waiting = [
            said.text
            for said in self._utterances
            if said.speaker == speaker and said.id != utterance_id
        ]
        kept = self._withholding.clean_part(waiting, text)
        doc = DocumentInfo(utterance_id, kept, fields)
        encode_document(doc.id, kept, doc.metadata, None)  # raises too for what could not be kept
        # The session's own clock may be held by a writer, and nobody else writes under this id.
        written_at = self._last_noted_ms = max(self._last_noted_ms + 1, time.time_ns() // 10**6)
        put = Put({"id": doc.id, "text": kept, "metadata": doc.metadata}, written_at)
        self._utterances.add(Utterance(utterance_id, text, speaker, at_s))
        # One after another, or a recovery would bring them in the order that two threads made of it.
        self._last_note = submit_write(self._note, put, self._last_note)
        self._noted[utterance_id] = put, self._last_note
        return utterance_id

    def _note(self, put: Put, before: Future[None] | None) -> None:
        if before is not None:
            wait([before])
        journal = self._journal
        if journal is not None:
            self._excused(lambda: journal.append(put))

    def _check_turn(self, doc: DocumentInfo) -> None:
        """Raise for a turn that could never be indexed."""
        encode_document(doc.id, doc.text, doc.metadata, None)
        if self.session.embedder is None or doc.embedding is not None:
            vector, dim = _unit(doc), self.session.dim
            if dim is not None and vector.size != dim:
                raise InvalidArgumentError(
                    f"heard: expected an embedding of {dim} numbers, got {vector.size}"
                )

    def _remember(self, turn: _Turn) -> None:
        self._turns[turn.id] = turn
        self._said_words.update(turn.words.split())
        if turn.filler:
            self._fillers.add(turn.id)
        else:
            self._fillers.discard(turn.id)

    def _number(self, id_: str | None, text: str, speaker: str) -> _Turn:
        known = self._turns.get(id_) if id_ is not None else None
        if known is None:
            self._last_number += 1
        number = known.number if known is not None else self._last_number
        # The writer's mark keeps two agents that resumed the same call from using one id twice.
        turn_id = id_ if id_ is not None else f"turn-{number}-{self._writer}"
        turn = _Turn.of(turn_id, number, speaker, text)
        self._remember(turn)
        self._changed(turn.id)
        return turn

    def _changed(self, turn_id: str) -> None:
        self._revision += 1
        self._changed_at[turn_id] = self._revision
        self._changed_at.move_to_end(turn_id)

    def _keep(self, doc: DocumentInfo, ended: Sequence[str]) -> Future[None] | None:
        """Journal and index a turn, each whatever becomes of the other; one turn after another.

        The notes of the utterances that the turn is made of end in the write that brings the turn.

        Returns:
            The turn's way to the disk, which goes on beside the model and whatever comes next.
        """
        written_at = self.session.stamp()
        flushing = self._write(doc, written_at, ended)
        self._index(doc, written_at)
        return flushing

    def _write(
        self, doc: DocumentInfo, written_at: int, ended: Sequence[str]
    ) -> Future[None] | None:
        journal = self._journal
        if journal is None:
            return None
        vector = None if doc.embedding is None else np.array(doc.embedding, np.float32)
        document = {"id": doc.id, "text": doc.text, "metadata": doc.metadata}
        ends = [Delete(id_, written_at) for id_ in ended]
        self._excused(lambda: journal.append(Put(document, written_at, vector), *ends))
        if not self._durable:
            return None
        self._last_flush = submit_write(self._excused, journal.sync)
        return self._last_flush

    def _excused(self, journaling: Callable[[], object]) -> None:
        try:
            journaling()
        except MossError as error:
            # Said once; later turns are still written, since a disk may have room again and what is
            # only written survives the death of the process.
            if self._durable:
                self._durable = False
                logger.error(
                    "call %r: its journal failed and is no longer safe: %s", self.name, error
                )

    def _index(self, doc: DocumentInfo, written_at: int) -> None:
        with self._state:
            # Of a turn that was corrected meanwhile, the old text is not wanted any more.
            self._unindexed.pop(doc.id, None)
        self._index_waiting()
        self._try_to_index(doc, written_at)

    def _notice_others(self) -> None:
        """Take note of what another agent in this call has said or corrected, once it is merged in."""
        docs = self.session.documents()
        with self._state:
            for doc in docs:
                number = (doc.metadata or {}).get("turn")
                if isinstance(number, int):
                    self._last_number = max(self._last_number, number)
                    if doc.id not in self._turns and spoken.is_filler(doc.text):
                        self._fillers.add(doc.id)
            self._revision += 1
            self._interims.clear()

    def _index_waiting(self) -> None:
        with self._state:
            waiting = list(self._unindexed.values())
        for doc, written_at in waiting:
            self._try_to_index(doc, written_at)

    def _try_to_index(self, doc: DocumentInfo, written_at: int) -> None:
        try:
            self._index_one(doc, written_at)
        except Exception as error:  # noqa: BLE001 - the host must not hear of it
            with self._state:
                self._unindexed[doc.id] = (doc, written_at)
                self._counts["failed"] += 1
            logger.error(
                "call %r: a turn was not indexed (%s) and will be tried again",
                self.name,
                type(error).__name__,
            )
        else:
            with self._state:
                self._unindexed.pop(doc.id, None)

    def _index_one(self, doc: DocumentInfo, written_at: int) -> None:
        embedder = self.session.embedder
        if embedder is None or doc.embedding is not None:
            vector = _unit(doc)
        else:
            vector = embedder.embed([doc.text])[0]
        self.session.put([doc], vector[None, :], written_at=[written_at])
        with self._state:
            turn = self._turns[doc.id]
            self._vectors = deque(
                [(id_, old) for id_, old in self._vectors if id_ != doc.id],
                maxlen=self._vectors.maxlen,
            )
            if not turn.filler:
                self._vectors.append((doc.id, vector))
            self._changed(doc.id)

    def hearing(self, partial: str) -> None:
        """Take note of an interim transcript, and look up what a reply to it would need.

        A final of the same words then finds its hits ready, one of hardly more words its embedding.
        Returns at once. One interim is worked on at a time; of those that come meanwhile, the newest.
        """
        embedder = self.session.embedder
        if self._end is not None or embedder is None or not isinstance(partial, str):
            return
        partial = self._withholding.clean(partial)
        if spoken.is_filler(partial):
            return
        with self._state:
            if spoken.squash(partial) in self._interims:
                return
            if any(not run.done() for run in self._interims.values()):
                self._next_interim = partial
                return
            self._start_interim(partial)

    def _start_interim(self, partial: str) -> None:
        run = submit(self._foresee, partial)
        if self._witness is not None:
            self._witness.interim()
        self._interims[spoken.squash(partial)] = run
        while len(self._interims) > _KEPT_INTERIMS:
            self._interims.popitem(last=False)
        run.add_done_callback(self._interim_done)

    def _foresee(self, partial: str) -> _Foreseen:
        embedder = self.session.embedder
        assert embedder is not None  # noqa: S101 - hearing() looked
        with self._state:
            revision = self._revision
        vector = embedder.embed_query(partial)
        query = Query(partial, spoken.squash(partial), frozenset(), self.top_k + SPARE_HITS)
        found = self._recalling.search(query, self._said(query), vector.view)
        return _Foreseen(vector, found, revision, partial)

    def _interim_done(self, _: Future[_Foreseen]) -> None:
        with self._state:
            partial, self._next_interim = self._next_interim, None
            if partial is not None and self._end is None:
                with contextlib.suppress(RuntimeError):  # the interpreter is on its way out
                    self._start_interim(partial)

    # --- recalling ---------------------------------------------------------------------------------

    async def context(
        self,
        text: str | None,
        *,
        visible: Collection[str] = (),
        seen: Collection[str] = (),
        budget: int | None = None,
        top_k: int | None = None,
        deadline_ms: float | None = None,
        embedding: Sequence[float] | None = None,
        is_turn: bool = True,
    ) -> CallContext:
        """Return what is worth knowing for the reply to a turn, from this call and the knowledge.

        Has no side effect on what is remembered, and asking again is cheap: a host may ask for every
        draft of a reply. Never raises but for bad arguments, and never takes much longer than the
        deadline: late or after a fault it is empty, and `outcome` says so.

        Args:
            text: The turn to reply to, whether or not it was `heard` yet; it is left out itself. None
                where the agent speaks of its own accord: what was said last is recalled if the LLM does
                not see it, as after a hand-over, and nothing otherwise.
            visible: Ids of turns and passages that the LLM sees anyway.
            seen: Texts that it sees anyway; hits that only repeat them are left out.
            budget: The most tokens of the block; the call's `max_tokens` where None.
            top_k: The most hits; the call's where None.
            deadline_ms: The call's where None.
            embedding: (dim,) numbers for `text`, where the model is `custom`.
            is_turn: False where the text is not said now, so that no turn is left out for having its
                words: an agent that takes over asks for what was said last.
        """
        started = time.perf_counter()
        if not isinstance(text, str | None) or isinstance(visible, str) or isinstance(seen, str):
            raise InvalidArgumentError(
                "context: expected a text or None, and collections of visible ids and seen texts"
            )
        if budget is not None and budget < 1:
            raise InvalidArgumentError(
                f"context: expected a budget of 1 token or more, got {budget}"
            )
        if top_k is not None and top_k < 1:
            raise InvalidArgumentError(f"context: expected a top_k of 1 or more, got {top_k}")
        with self._state:
            self._counts["contexts"] += 1
            revision = self._revision
            if text is None:
                is_turn, text = False, self._left_off(visible)
            else:
                text = self._withholding.clean(text)
        tokens = self.max_tokens if budget is None else budget
        limit_ms = self.deadline_ms if deadline_ms is None else deadline_ms
        # As our own hits are kept, or one that the LLM sees would not be recognised.
        texts = tuple(map(self._withholding.clean, seen))
        most = top_k or self.top_k
        asked = Asked((*visible,), texts, tokens, most, limit_ms, is_turn)
        if self._end is not None or (embedding is None and spoken.is_filler(text)):
            return self._context(_NOTHING, started, "skipped", text, asked)
        shown = frozenset(visible)
        given = None if embedding is None else tuple(embedding)
        words = spoken.squash(text)
        key = (words, shown, texts, tokens, most, given, is_turn, revision)
        with self._state:
            answer = self._answers.get(key)
        if answer is not None:
            asked = asked._replace(trace=answer.trace, again=True)
            return self._context(answer, started, "ok", text, asked)
        query = Query(text, words, shown, most, given, is_turn)
        # What was said before may be on its way still; the turn itself is not waited for, but by who
        # takes over, since that one asks for what was said last.
        with self._state:
            current = self._current(words) if is_turn else set()
        before = [kept for id_, kept in self._on_the_way.items() if id_ not in current]
        run = submit_after(before, self._answer, key, query, texts, tokens, started)
        try:
            answer = await _within(run, limit_ms / 1000.0 - (time.perf_counter() - started))
        except TimeoutError:
            asked = asked._replace(late=run)
            return self._context(_NOTHING, started, "late", text, asked)
        except Exception as error:  # noqa: BLE001 - the host must not hear of it
            logger.error("call %r: no context (%s)", self.name, type(error).__name__)
            return self._context(_NOTHING, started, "failed", text, asked)
        return self._context(answer, started, "ok", text, asked._replace(trace=answer.trace))

    def _left_off(self, visible: Collection[str]) -> str:
        """Return the words of the caller's last turn, "" where the LLM sees it anyway."""
        last = next(
            (t for t in reversed(self._turns.values()) if t.speaker != "agent" and not t.filler),
            None,
        )
        return "" if last is None or last.id in visible else last.words

    def _context(
        self, answer: _Answer, started: float, outcome: str, query: str, asked: Asked
    ) -> CallContext:
        with self._state:
            if outcome != "ok":
                self._counts[outcome] += 1
            self._counts["prefetched"] += answer.prefetched
        took_ms = (time.perf_counter() - started) * 1000.0
        context = CallContext(
            answer.text,
            answer.hits,
            took_ms,
            outcome,  # type: ignore[arg-type]
            answer.prefetched,
            query,
            answer.need,
        )
        if self._witness is not None:
            self._witness.context(context, asked)
        return context

    def _answer(
        self,
        key: object,
        query: Query,
        seen: Sequence[str],
        tokens: int,
        asked: float,
    ) -> _Answer:
        began = time.perf_counter()
        foreseen, same_words = self._foreseen(query)
        pairs = self._still_good(query, foreseen) if foreseen is not None and same_words else None
        found = None if foreseen is None else foreseen.found
        prefetched: Prefetched = "hits"
        if found is None or pairs is None:
            model = self._model(query) if foreseen is None else foreseen.vector.view
            found = self._recalling.search(query, self._said(query), model)
            pairs = [pair for source in found.sources for pair in source]
            prefetched = "no" if foreseen is None else "vector"
        searched = time.perf_counter()
        # Python's sort keeps equal hits in order: the call's own turns first.
        pairs.sort(key=lambda pair: -pair[1].fused)
        hits = [self._hit(index, match) for index, match in pairs[: query.top_k]]
        block = lay_out(hits, visible=seen, max_tokens=tokens)
        trace = None
        if self._witness is not None:
            merged = time.perf_counter()
            embed_s = found.embed_ms / 1000.0 if prefetched == "no" else 0.0
            times = began - asked, embed_s, searched - began - embed_s, merged - searched
            trace = self._trace(query, found, pairs, block, prefetched, times)
            if foreseen is not None:
                trace = trace._replace(interim=foreseen.partial)
        answer = _Answer(block.text, block.shown, foreseen is not None, found.need, trace)
        with self._state:
            self._answers[key] = answer
            while len(self._answers) > _KEPT_ANSWERS:
                self._answers.popitem(last=False)
        return answer

    def _trace(
        self,
        query: Query,
        found: Found,
        pairs: Pairs,
        block: Block,
        prefetched: Prefetched,
        times_s: Sequence[float],
    ) -> Trace:
        with self._state:
            current = self._current(query.words) if query.is_turn else set()
        names = [known.name for known in self.knowledge]
        return Trace(
            query,
            self._said(query._replace(visible=frozenset())),
            self._last_number,
            max(current, key=lambda id_: self._turns[id_].number, default=None),
            found.vector,
            pairs,
            block,
            {n: need for n, need in zip(names, found.needs, strict=True) if need is not None},
            Timing(*(round(time_s * 1000.0, 3) for time_s in times_s)),
            prefetched,
        )

    def _turns_after(self, number: int) -> set[str]:
        with self._state:
            later = takewhile(lambda turn: turn.number > number, reversed(self._turns.values()))
            return {turn.id for turn in later}

    def _foreseen(self, query: Query) -> tuple[_Foreseen | None, bool]:
        """Return what an interim that stands for the query found, and whether it has its words."""
        if query.given is not None or not query.is_turn:
            return None, False
        with self._state:
            run = self._interims.get(query.words)
            same_words = run is not None
            if run is None:
                run = next(
                    (
                        started
                        for interim, started in reversed(self._interims.items())
                        if query.words.startswith(f"{interim} ")
                        and len(interim.split()) >= PREFIX_SHARE * len(query.words.split())
                    ),
                    None,
                )
        # One that has not begun would wait behind this very function.
        if run is not None and (run.done() or run.running()):
            with contextlib.suppress(Exception):
                return run.result(), same_words
        return None, False

    def _still_good(self, query: Query, foreseen: _Foreseen) -> Pairs | None:
        """Return the hits found for an interim, less those that must not be shown now.

        None where another turn than those of the query was said or corrected meanwhile, or where too
        few are left of a list that was cut.
        """
        with self._state:
            current = self._current(query.words)
            since = takewhile(
                lambda change: change[1] > foreseen.revision, reversed(self._changed_at.items())
            )
            if any(turn_id not in current for turn_id, _ in since):
                return None
            left_out = query.visible | current | self._fillers
        found: Pairs = []
        for source in foreseen.found.sources:
            kept = [pair for pair in source if pair[1].id not in left_out]
            if len(kept) < query.top_k and len(source) >= self.top_k + SPARE_HITS:
                return None
            found += kept
        return found

    def _model(self, query: Query) -> Callable[[], F32] | None:
        """Return what makes the query's vector; None where there is no way to one."""
        if query.given is not None:
            return partial(_unit, DocumentInfo("query", query.text, None, query.given))
        embedder = self.session.embedder
        return None if embedder is None else partial(embedder.embed_query, query.text)

    def _said(self, query: Query) -> Said:
        """Return the call as it is, seen from a query."""
        with self._state:
            current = self._current(query.words) if query.is_turn else set()
            turns = reversed(self._turns.values())
            said = [t for t in islice(turns, _LOOKED_BACK) if not t.filler and t.id not in current]
            return Said(
                query.visible | current | self._fillers,
                [old for id_, old in self._vectors if id_ not in current],
                [turn.terms for turn in said[: ranking.CONVERSATION_TURNS]],
                [turn.words for turn in said[:TURNS]],
                self._said_words,
            )

    def _current(self, words: str) -> set[str]:
        """Return the turns that the query itself was said in: the newest ones whose words it holds."""
        current: set[str] = set()
        for turn in reversed(self._turns.values()):
            # A turn without words, such as "...", is held by any.
            if turn.speaker == "agent" or f" {turn.words or words} " not in f" {words} ":
                break
            current.add(turn.id)
        return current

    async def recall(self, text: str, *, top_k: int | None = None) -> list[Hit]:
        """Return the turns of this call that fit a text, best first: for an agent's own tool.

        Like `context` it is empty where it would be late or fails.
        """
        return await self._looked_up(self._recall, text, top_k, what="recall")

    async def search_knowledge(self, text: str, *, top_k: int | None = None) -> list[Hit]:
        """Return the passages of the knowledge that fit a text, best first: for an agent's own tool.

        Like `context` it takes into account what the call is about, and is empty where it would be late
        or fails.
        """
        return await self._looked_up(self._passages, text, top_k, what="search_knowledge")

    async def _looked_up(
        self,
        search: Callable[[Query], Pairs],
        text: str,
        top_k: int | None,
        *,
        what: str,
    ) -> list[Hit]:
        if not isinstance(text, str):
            raise InvalidArgumentError(f"{what}: expected a text, got {type(text).__name__}")
        if top_k is not None and top_k < 1:
            raise InvalidArgumentError(f"{what}: expected a top_k of 1 or more, got {top_k}")
        if self._end is not None or not text.strip():
            return []
        text = self._withholding.clean(text)
        query = Query(text, spoken.squash(text), frozenset(), top_k or self.top_k, is_asked=True)

        def run() -> list[Hit]:
            return [self._hit(*pair) for pair in search(query)[: query.top_k]]

        started, hits = time.perf_counter(), list[Hit]()
        try:
            hits = await _within(submit(run), self.deadline_ms / 1000.0)
        except Exception as error:  # noqa: BLE001 - the host must not hear of it
            logger.error("call %r: no %s (%s)", self.name, what, type(error).__name__)
        if self._witness is not None:
            self._witness.lookup(what, text, (time.perf_counter() - started) * 1000.0, hits)
        return hits

    def _recall(self, query: Query) -> Pairs:
        foreseen, _ = self._foreseen(query)
        model = self._model(query) if foreseen is None else foreseen.vector.view
        return self._recalling.turns(query, self._said(query), model)

    def _passages(self, query: Query) -> Pairs:
        sources = self._recalling.passages(query, self._said(query), self._model(query))
        return sorted(
            (pair for source in sources for pair in source), key=lambda pair: -pair[1].fused
        )

    def _hit(self, index: SessionIndex, match: Match) -> Hit:
        return hit_of(self.session, index, match)

    # --- ending ------------------------------------------------------------------------------------

    async def push(self) -> PushIndexResult:
        """Store the call so far, so that another agent can resume it; the call goes on.

        Raises:
            CloudUnavailableError: If the cloud does not answer; nothing is lost.
        """
        self._check_live()
        return await self._push()

    def _catch_up(self) -> tuple[int, bool]:
        """Index what is waiting; returns the journal's position and whether all up to it is indexed."""
        # A turn that still cannot be indexed holds nobody up: it stays in the journal.
        self._index_waiting()
        position = self._journal.position if self._journal is not None else 0
        return position, self._durable and not self._unindexed

    async def _push(self) -> PushIndexResult:
        caught_up = submit_after([self._last_kept], self._catch_up)
        # Turns heard from now on wait for it, and have a flush of their own.
        self._last_kept = submit_after([caught_up], _nothing)
        position, covered = await _settled(caught_up)
        # The journal is the call's outbox; without one the session's stands in.
        result = await self.session.push_index(
            on_conflict="merge", if_unreachable="raise" if self._durable else "queue"
        )
        if self._witness is not None:
            self._witness.push(result)
        if result.merged_from is not None:
            await in_worker(self._notice_others)
        if self._journal is not None and covered:
            # What is noted and no turn yet lies before the position, and is not in the cloud.
            notes = [put for put, _ in self._noted.values()]
            pushed = Pushed(result.version, position)
            self._last_note = write = submit_write(self._note_push, pushed, notes, self._last_note)
            # What corrects or settles them meanwhile comes after this, or it would be undone by it.
            self._noted = {id_: (put, write) for id_, (put, _) in self._noted.items()}
            await _settled(write)
        return result

    def _note_push(self, pushed: Pushed, notes: Sequence[Put], before: Future[None] | None) -> None:
        if before is not None:
            wait([before])
        journal = self._journal
        assert journal is not None  # noqa: S101 - _push() looked
        try:
            # The push comes last: torn off, it leaves more to push again, which changes nothing.
            journal.append(*notes, pushed)
        except MossError as error:
            # The push stands; a recovery would push the same turns again.
            logger.warning("call %r: the push was not journaled (%s)", self.name, error)

    async def end(self) -> PushIndexResult | None:
        """End the call: push its index, then clear the journal.

        Call it as often as you like, from wherever the host says goodbye: all get the same answer. A
        push that fails is tried again; where it keeps failing, the journal stays for
        `moss-voice recover` and for the next process.

        Returns:
            What was pushed; None where nothing was said, or where the push failed (which is logged).
        """
        if self._end is None:
            self._end = asyncio.get_running_loop().create_task(self._finish(keep=True))
        # Whoever waits may be cancelled; the push goes on.
        return await asyncio.shield(self._end)

    async def discard(self) -> None:
        """End the call and forget it: nothing is pushed, the journal is cleared."""
        if self._end is None:
            self._end = asyncio.get_running_loop().create_task(self._finish(keep=False))
        await asyncio.shield(self._end)

    async def _finish(self, *, keep: bool) -> PushIndexResult | None:
        left = self._utterances.take_all()
        if keep:
            self._keep_unanswered(left)
        for _, write in tuple(self._noted.values()):
            await _settled(write)
        if self._last_kept is not None:
            await _done(self._last_kept)
        if self._last_flush is not None:
            await _done(self._last_flush)
        result, done = None, True
        ending: Ending = "nothing" if keep else "discarded"
        if keep and (self._turns or self.session.unpushed):
            result = await self._push_patiently()
            done = result is not None and not self._unindexed
            ending = "failed" if result is None else "pushed"
        with contextlib.suppress(MossError):
            await self.session.close()
        if self._journal is not None:
            try:
                await in_writer(self._journal.clear if done else self._journal.close)
            except MossError as error:
                logger.error("call %r: the journal stays (%s)", self.name, error)
        if self._witness is not None:
            if keep:
                self._witness.end(pushed=done)
            else:
                self._witness.discard()
        self._ending = ending
        return result

    @property
    def ending(self) -> Ending | None:
        """How the call ended; None before.

        Its turns are `pushed`, there was `nothing` to push, the push `failed`, or it was `discarded`.
        """
        return self._ending

    async def _push_patiently(self) -> PushIndexResult | None:
        for pause_s in (*_PUSH_PAUSES_S, None):
            try:
                return await self._push()
            except Exception as error:  # noqa: BLE001 - the host is hanging up and must be let go
                if pause_s is None:
                    kept = (
                        "its journal is kept: run `moss-voice recover`" if self._durable else "lost"
                    )
                    name = error.code if isinstance(error, MossError) else type(error).__name__
                    logger.error("call %r was not pushed (%s); %s", self.name, name, kept)
                else:
                    await asyncio.sleep(pause_s)
        return None

    def _check_live(self) -> None:
        if self._end is not None:
            raise SessionClosedError(f"call {self.name!r} has ended")


_NOTHING = _Answer("", [], prefetched=False)


def _check_range(name: str, value: object, *, least: float, most: float = math.inf) -> None:
    if not isinstance(value, int | float) or not least <= value <= most:
        limits = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise InvalidArgumentError(f"{name}: expected a number of {limits}, got {value!r}")


def _sound(text: str) -> str:
    """Replace what is no Unicode text."""
    return text.encode("utf-8", "replace").decode()


def _unit(doc: DocumentInfo) -> F32:
    rows, sound = normalised(np.array([doc.embedding or (0.0,)], np.float64))
    if not sound[0]:
        raise InvalidArgumentError(
            f"{doc.id!r}: expected an embedding of finite numbers that are not all zero; the model"
            " 'custom' needs one"
        )
    unit: F32 = rows[0]
    return unit


def _nothing() -> None:
    """Stand for something that is done."""


async def _done(run: Future[Any]) -> None:
    """Wait until a function on the pool has ended, however."""
    with contextlib.suppress(Exception):
        await _settled(run)


async def _settled(run: Future[_T]) -> _T:
    """Wait for a function on the pool, which goes on should the waiter be cancelled."""
    return await _within(run, None)


async def _within(run: Future[_T], limit_s: float | None) -> _T:
    """Wait for a function on the pool, but not for long; what is late goes on.

    A run that has not begun is not cancelled: the next draft of the same reply would find nothing.

    Raises:
        TimeoutError: When the time is up.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def settle() -> None:
        if not over.done():
            over.set_result(None)

    def wake(_: Future[_T]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(settle)

    run.add_done_callback(wake)
    timer = None if limit_s is None else loop.call_later(max(0.0, limit_s), settle)
    try:
        await over
    finally:
        if timer is not None:
            timer.cancel()
    if not run.done():
        raise TimeoutError
    return run.result()
