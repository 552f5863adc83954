"""A recorded call that can be asked again, with the settings that it had or with others.

The law: what answers is what answered in the call: `Recall`, over an index of the same turns and over the
same knowledge, as far as it can still be loaded. Nothing is pushed, and the knowledge is not changed.

The turns are put into an index as far as the call had come, since what a turn gains from its neighbours and
from being late depends on what came after it.
"""

from __future__ import annotations

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from moss_voice import ranking
from moss_voice import text as spoken
from moss_voice.call.context import lay_out, tokens
from moss_voice.call.focus import TURNS
from moss_voice.call.knowledge import Knowledge
from moss_voice.call.oversight import Trace, left_out
from moss_voice.call.recall import SPARE_HITS, Query, Recall, Said, hit_of
from moss_voice.call.recording import (
    Candidate,
    RecordedContext,
    RecordedTurn,
    Recording,
    Settings,
    Timing,
)
from moss_voice.call.witness import candidate_of
from moss_voice.client import MossClient
from moss_voice.errors import InvalidArgumentError, MossError
from moss_voice.filters import Filter, parse_filter
from moss_voice.models import CUSTOM_MODEL
from moss_voice.session import SessionIndex
from moss_voice.types import DocumentInfo, Metadata
from moss_voice.workers import in_worker

__all__ = ["Answer", "Engine", "Question"]

F32 = npt.NDArray[np.float32]
Progress = Callable[[int, int], None]

# Names that are offered to be put in focus, and passages that are looked through for metadata fields.
_MOST_VALUES = 500
_SAMPLE = 2000
# States of the call that are kept: whoever moves a slider asks the same one again and again.
_KEPT_STATES = 4


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a recorded call.

    Attributes:
        text: What is looked for.
        settings: How; of `deadline_ms` nothing is taken.
        filter: A metadata filter on turns and passages.
        focus_on: Names put in focus by hand, the newest first; None to go by what was said.
        scope: Where.
        until: As the call was after the turn of this number; at its end where None.
        is_turn: True where it stands for what the caller says then: the gate stands before the
            knowledge. False where it is asked for its own sake.
    """

    text: str
    settings: Settings
    filter: Mapping[str, Any] | None = None
    focus_on: tuple[str, ...] | None = None
    scope: Literal["all", "call", "knowledge"] = "all"
    until: int | None = None
    is_turn: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """What was found.

    Attributes:
        hits: What the block would hold, best first.
        left_out: What it might have held; see `Candidate.why`.
        about: What the call was about, the newest first.
        needs: The need per knowledge index that a gate stands before.
        took_ms: All of it, the model included where it ran.
        text: The block.
    """

    hits: tuple[Candidate, ...]
    left_out: tuple[Candidate, ...]
    about: tuple[str, ...]
    needs: Mapping[str, float]
    took_ms: float
    timing: Timing
    text: str


class _Asked(NamedTuple):
    """A question as the indexes are asked.

    Attributes:
        embedded: What stands for its text, if anything does.
        ahead: True where an interim was looked up, when nobody knew yet what would be visible.
    """

    text: str
    settings: Settings
    until: int
    current: Collection[str]
    visible: tuple[str, ...] = ()
    seen: tuple[str, ...] = ()
    is_turn: bool = True
    is_asked: bool = False
    condition: Filter | None = None
    focus_on: tuple[str, ...] | None = None
    scope: Literal["all", "call", "knowledge"] = "all"
    embedded: str = ""
    ahead: bool = False


class Engine:
    """A recorded call that can be asked again; use it from one event loop.

    Attributes:
        recording: The call.
        missing: Knowledge that could not be loaded, and why, for people.
        changed: Knowledge that has another version now, and which, for people.
        fields: Metadata fields that turns or passages have.
        values: Names that can be in focus, some hundreds at most.
    """

    def __init__(
        self,
        recording: Recording,
        *,
        home: MossClient,
        knowledge: Sequence[SessionIndex],
        missing: Mapping[str, str],
        changed: Mapping[str, str],
    ) -> None:
        """Take ready parts; see `open`.

        Args:
            recording: The call.
            home: Where the call's turns are put; a cloud that lives no longer than this.
            knowledge: As far as it could be loaded.
            missing: See `Engine`.
            changed: See `Engine`.
        """
        self.recording = recording
        self.missing = missing
        self.changed = changed
        self.fields: tuple[str, ...] = ()
        self.values: tuple[str, ...] = ()
        self._home = home
        self._knowledge = tuple(knowledge)
        self._docs = [_document(turn) for turn in recording.turns]
        self._vectors: list[F32] = []
        self._queries: dict[str, F32] = {}
        self._states: OrderedDict[int, SessionIndex] = OrderedDict()

    @classmethod
    async def open(
        cls,
        recording: Recording,
        client: MossClient | None,
        *,
        unable: str = "its cloud is not here",
        on_progress: Progress | None = None,
    ) -> Self:
        """Load what the call knew, and embed its turns anew.

        Args:
            recording: The call.
            client: Where its knowledge is; None where that is nowhere.
            unable: Why, for people, where there is no client.
            on_progress: Told of each turn embedded: how many so far, how many in all.

        Raises:
            InvalidArgumentError: If the call's model is `custom`: its embeddings were never recorded.
            ModelNotFoundError: If its model is not here.
        """
        if recording.model_id == CUSTOM_MODEL:
            raise InvalidArgumentError(
                "this call's embeddings came from its host (model 'custom') and are not in a recording:"
                " it can be looked at, not asked again"
            )
        knowledge: list[SessionIndex] = []
        missing: dict[str, str] = {}
        changed: dict[str, str] = {}
        for known in recording.knowledge:
            if client is None:
                missing[known.name] = unable
                continue
            try:
                index = await client.session(known.name)
            except MossError as error:
                missing[known.name] = str(error)
                continue
            if index.version == 0:
                await index.close()
                missing[known.name] = "there is no such index any more"
                continue
            if index.version != known.version:
                changed[known.name] = f"version {known.version} then, {index.version} now"
            knowledge.append(index)
        home = MossClient("inspector", cloud=f"memory://inspector-{secrets.token_hex(8)}")
        self = cls(recording, home=home, knowledge=knowledge, missing=missing, changed=changed)
        try:
            # Its own model, which is loaded here.
            first = await self._state(0)
            await in_worker(self._prepare, first, on_progress)
        except BaseException:
            await self.close()
            raise
        return self

    def __repr__(self) -> str:
        return f"<Engine of {self.recording.call!r}, {len(self._knowledge)} indexes>"

    def _prepare(self, session: SessionIndex, on_progress: Progress | None) -> None:
        embedder = session.embedder
        assert embedder is not None  # noqa: S101 - open() looked
        for done, doc in enumerate(self._docs, start=1):
            # One by one, as in the call: in a batch the numbers differ a little.
            self._vectors.append(embedder.embed([doc.text])[0])
            if on_progress is not None:
                on_progress(done, len(self._docs))
        fields: dict[str, None] = {}
        values: dict[str, None] = {}
        for index in self._knowledge:
            for passage in index.sample(_SAMPLE)[0]:
                fields.update(dict.fromkeys(passage.metadata or {}))
            places = Knowledge(index, focus=self.recording.settings.focus).study().places
            values.update(dict.fromkeys(places.rows if places is not None else ()))
        for doc in self._docs:
            fields.update(dict.fromkeys(doc.metadata or {}))
        self.fields = tuple(sorted(fields))
        self.values = tuple(sorted(values)[:_MOST_VALUES])

    async def close(self) -> None:
        """Let go of everything; nothing is pushed."""
        for session in (*self._states.values(), *self._knowledge):
            await session.close()
        self._states.clear()
        await self._home.close()

    # --- asking ------------------------------------------------------------------------------------

    async def ask(self, question: Question) -> Answer:
        """Answer a question.

        Raises:
            FilterError: If the filter is malformed.
            InvalidArgumentError: If something else is out of its range.
        """
        check_settings(question.settings)
        last = len(self._docs) and self.recording.turns[-1].number
        until = last if question.until is None else question.until
        if not 0 <= until <= last:
            raise InvalidArgumentError(f"until: expected the number of a turn, 0 to {last}")
        if not question.text.strip():
            raise InvalidArgumentError("expected some words to look for")
        asked = _Asked(
            question.text,
            question.settings,
            until,
            self._current(question.text, until) if question.is_turn else (),
            is_turn=question.is_turn,
            is_asked=not question.is_turn,
            condition=parse_filter(question.filter),
            focus_on=question.focus_on,
            scope=question.scope,
        )
        return await in_worker(self._answer, await self._state(until), asked)

    async def rerun(
        self, settings: Settings, *, on_progress: Progress | None = None
    ) -> tuple[RecordedContext, ...]:
        """Ask all that the call asked again, with these settings.

        A context that was late is told with what it would have held; a filler stays one.

        Raises:
            InvalidArgumentError: If a setting is out of its range.
        """
        check_settings(settings)
        before = self.recording.settings
        again: list[RecordedContext] = []
        for done, context in enumerate(self.recording.contexts, start=1):
            if context.outcome == "skipped" or not context.query.strip():
                again.append(context)
                continue
            # What the host asked for itself stands, but where the setting is another now.
            own_k = settings.top_k == before.top_k
            own_budget = settings.max_tokens == before.max_tokens
            used = replace(
                settings,
                top_k=context.top_k if own_k else settings.top_k,
                max_tokens=context.budget if own_budget else settings.max_tokens,
            )
            until = self._known_at(context)
            asked = _Asked(
                # Hits that were ready had been found for the interim, whose signs may be others.
                context.interim if context.prefetched == "hits" else context.query,
                used,
                until,
                self._current(context.query, until) if context.is_turn else (),
                visible=context.visible,
                seen=context.seen,
                is_turn=context.is_turn,
                embedded=context.interim,
                ahead=context.prefetched == "hits",
            )
            answer = await in_worker(self._answer, await self._state(until), asked)
            again.append(_replaced(context, used, answer))
            if on_progress is not None:
                on_progress(done, len(self.recording.contexts))
        return tuple(again)

    def _known_at(self, context: RecordedContext) -> int:
        if context.last_turn:
            return context.last_turn
        turn = self.recording.turn(context.turn_id) if context.turn_id else None
        if turn is not None:
            return turn.number - 1
        said = [turn.number for turn in self.recording.turns if turn.end_s <= context.at_s]
        return max(said, default=0)

    def _current(self, text: str, until: int) -> frozenset[str]:
        """Return the turns that a query itself was said in; see `CallMemory`."""
        words = spoken.squash(text)
        current = []
        for turn in reversed([turn for turn in self.recording.turns if turn.number <= until]):
            own = spoken.squash(turn.text) or words
            if turn.speaker == "agent" or f" {own} " not in f" {words} ":
                break
            current.append(turn.id)
        return frozenset(current)

    async def _state(self, until: int) -> SessionIndex:
        """Return an index of the call as it was after a turn."""
        session = self._states.get(until)
        if session is None:
            name = self.recording.call
            session = await self._home.session(name, self.recording.model_id)
            there = [at for at, turn in enumerate(self.recording.turns) if turn.number <= until]
            if there:
                docs = [self._docs[at] for at in there]
                await in_worker(session.put, docs, np.stack([self._vectors[at] for at in there]))
            self._states[until] = session
            while len(self._states) > _KEPT_STATES:
                _, old = self._states.popitem(last=False)
                await old.close()
        self._states.move_to_end(until)
        return session

    def _answer(self, session: SessionIndex, asked: _Asked) -> Answer:
        began = time.perf_counter()
        settings = asked.settings
        without = ranking.check_parts(settings.without)
        indexes = () if asked.scope == "call" else self._knowledge
        known = [Knowledge(index, focus=settings.focus) for index in indexes]
        for each in known:
            each.study()
        recall = Recall(
            session, known, alpha=settings.alpha, min_score=settings.min_score, without=without
        )
        vector = self._vector(session, asked.embedded or asked.text)
        embedded = time.perf_counter()
        failing = self._failing(indexes, asked)
        said = self._said(asked)
        visible = frozenset(asked.visible)
        query = Query(
            asked.text,
            spoken.squash(asked.text),
            failing if asked.ahead else failing | visible,
            settings.top_k + (SPARE_HITS if asked.ahead else 0),
            None,
            asked.is_turn,
            asked.is_asked,
        )
        found = recall.search(
            query, said._replace(left_out={*said.left_out, *query.visible}), vector.view
        )
        sources = found.sources if asked.scope != "knowledge" else found.sources[1:]
        pairs = [pair for source in sources for pair in source if pair[1].id not in visible]
        searched = time.perf_counter()
        pairs.sort(key=lambda pair: -pair[1].fused)
        hits = [hit_of(session, index, match) for index, match in pairs[: settings.top_k]]
        block = lay_out(hits, visible=asked.seen, max_tokens=settings.max_tokens)
        merged = time.perf_counter()
        timing = Timing(
            0.0,
            (embedded - began) * 1000.0,
            (searched - embedded) * 1000.0,
            (merged - searched) * 1000.0,
        )
        needs = {
            index.name: need
            for index, need in zip(indexes, found.needs, strict=True)
            if need is not None
        }
        trace = Trace(
            query._replace(visible=visible, top_k=settings.top_k),
            said._replace(left_out={*said.left_out, *failing}),
            asked.until,
            None,
            vector,
            pairs,
            block,
            needs,
            timing,
            "no",
        )
        overlooked = left_out(trace, recall, recall.widely(), vector.view, session)
        if asked.condition is not None:
            overlooked = [each for each in overlooked if each[1].id not in failing]
        if asked.scope == "knowledge":
            overlooked = [each for each in overlooked if each[0] is not session]
        about = asked.focus_on
        if about is None:
            named = recall.about([query.words, *said.turns], said.words)
            about = tuple(each.value for each in named)
        return Answer(
            tuple(candidate_of(hit) for hit in block.shown),
            tuple(
                candidate_of(hit_of(session, index, match), why) for index, match, why in overlooked
            ),
            about,
            needs,
            (merged - began) * 1000.0,
            timing,
            block.text,
        )

    def _vector(self, session: SessionIndex, text: str) -> F32:
        vector = self._queries.get(text)
        if vector is None:
            assert session.embedder is not None  # noqa: S101 - open() looked
            vector = self._queries[text] = session.embedder.embed_query(text)
        return vector

    def _failing(self, indexes: Sequence[SessionIndex], asked: _Asked) -> frozenset[str]:
        """Return the ids of what the filter does not let pass."""
        condition = asked.condition
        if condition is None:
            return frozenset()
        docs: list[Any] = [*self._docs]
        for index in indexes:
            docs += index.documents()
        return frozenset(doc.id for doc in docs if not condition.matches(doc.metadata))

    def _said(self, asked: _Asked) -> Said:
        """Return the call as it was, seen from the question; see `CallMemory`."""
        there = [
            (turn, vector)
            for turn, vector in zip(self.recording.turns, self._vectors, strict=True)
            if turn.number <= asked.until
        ]
        said = [
            (turn, vector)
            for turn, vector in there
            if not turn.filler and turn.id not in asked.current
        ]
        fillers = [turn.id for turn, _ in there if turn.filler]
        latest = said[: -TURNS - 1 : -1]
        return Said(
            {*asked.current, *fillers},
            [vector for _, vector in said[-ranking.CONVERSATION_TURNS :]],
            [
                tuple(dict.fromkeys(spoken.term_ids(turn.text).tolist()))
                for turn, _ in latest[: ranking.CONVERSATION_TURNS]
            ],
            [spoken.squash(turn.text) for turn, _ in latest],
            {word for turn, _ in there for word in spoken.squash(turn.text).split()},
            asked.focus_on,
        )


def check_settings(settings: Settings) -> None:
    """Look whether settings can be asked with.

    Raises:
        InvalidArgumentError: If one is out of its range.
    """
    for name, value, least, most in (
        ("top_k", settings.top_k, 1, 100),
        ("alpha", settings.alpha, 0.0, 1.0),
        ("min_score", settings.min_score, 0.0, 1.0),
        ("max_tokens", settings.max_tokens, 1, 100_000),
    ):
        if not least <= value <= most:
            raise InvalidArgumentError(f"{name}: expected a number of {least} to {most}")
    try:
        ranking.check_parts(settings.without)
    except ValueError as error:
        raise InvalidArgumentError(f"without: {error}") from None


def _document(turn: RecordedTurn) -> DocumentInfo:
    fields: Metadata = {
        **turn.metadata,
        "speaker": turn.speaker,
        "at_s": round(turn.start_s, 3),
        "turn": turn.number,
    }
    for mark in ("interrupted", "typed", "filler", "unanswered", "redacted"):
        if getattr(turn, mark):
            fields[mark] = True
    return DocumentInfo(turn.id, turn.text, fields)


def _replaced(context: RecordedContext, settings: Settings, answer: Answer) -> RecordedContext:
    return replace(
        context,
        budget=settings.max_tokens,
        top_k=settings.top_k,
        outcome="ok",
        took_ms=answer.took_ms,
        prefetched="no",
        interim="",
        again=False,
        need=max(answer.needs.values(), default=None),
        needs=answer.needs,
        text=answer.text,
        tokens=tokens(answer.text),
        hits=answer.hits,
        left_out=answer.left_out,
        timing=answer.timing,
        about=answer.about,
    )
