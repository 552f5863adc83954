"""Tells a recorder what happens in a call.

The law: whatever the call does is told as it is, at once and without waiting; what takes work is left to
the recorder's own thread. Without a recorder there is no witness, and nothing here costs anything.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

from moss_voice.call.context import tokens
from moss_voice.call.knowledge import Knowledge
from moss_voice.call.oversight import Trace, left_out
from moss_voice.call.recall import Recall
from moss_voice.call.recording import Candidate, Known, Recorder, Settings, Why, header_line
from moss_voice.searching import Match
from moss_voice.session import SessionIndex
from moss_voice.types import CallContext, DocumentInfo, Hit, PushIndexResult
from moss_voice.workers import submit

__all__ = ["Asked", "Witness"]

logger = logging.getLogger(__name__)

# A context that is late is told with what it found after all, if it comes within this.
_LATE_S = 2.0

HitOf = Callable[[SessionIndex, Match], Hit]


class Asked(NamedTuple):
    """What a context was asked with.

    Attributes:
        visible, seen, budget, top_k, deadline_ms, is_turn: See `CallMemory.context`.
        trace: How the answer came about; None where there is none, or not yet.
        late: What still leads to an answer.
        again: True where the answer was there already.
    """

    visible: Sequence[str]
    seen: Sequence[str]
    budget: int
    top_k: int
    deadline_ms: float
    is_turn: bool
    trace: Trace | None = None
    late: Future[Any] | None = None
    again: bool = False


class Witness:
    """What a call tells of itself; use it from the call's event loop.

    Args:
        recorder: Where it is written.
        session: The call's own index.
        knowledge: What its agent knows.
        recall: What searches them.
        settings: How.
        hit_of: Makes a hit of a match.
        turns_after: Returns the ids of the turns after one of a number.
        seconds: How far into the call it is.
    """

    def __init__(
        self,
        recorder: Recorder,
        session: SessionIndex,
        knowledge: Sequence[Knowledge],
        recall: Recall,
        settings: Settings,
        *,
        hit_of: HitOf,
        turns_after: Callable[[int], Collection[str]],
        seconds: Callable[[], float],
    ) -> None:
        self.recorder = recorder
        self._session = session
        self._knowledge = tuple(knowledge)
        self._recall = recall
        self._wide = recall.widely()
        self._settings = settings
        self._hit_of = hit_of
        self._turns_after = turns_after
        self._seconds = seconds
        self._interims = 0

    def __repr__(self) -> str:
        return f"<Witness of {self._session.name!r} to {self.recorder!r}>"

    def begin(self, *, redacted: bool, resumed: Sequence[DocumentInfo]) -> None:
        """Tell what the call is, and the turns that were there already."""
        where = str(self.recorder.path)
        logger.warning(
            "call %r is recorded: what is said is kept as text in %s", self._session.name, where
        )

        def header() -> dict[str, Any]:
            return header_line(
                call=self._session.name,
                project=self.recorder.project,
                cloud=self.recorder.cloud,
                model_id=self._session.model_id,
                redacted=redacted,
                settings=self._settings,
                knowledge=[
                    Known(
                        known.index.name,
                        known.index.version,
                        known.index.doc_count,
                        known.known().fields,
                    )
                    for known in self._knowledge
                ],
            )

        self.recorder.tell("moss-voice-recording", header)
        for doc in resumed:
            self.recorder.tell("turn", partial(_turn, doc, resumed=True))

    def turn(self, doc: DocumentInfo, ended_s: float | None) -> None:
        """Tell of a turn, or of its correction; when it ended, where somebody knows."""
        ended = {} if ended_s is None else {"end_s": round(ended_s, 3)}
        told = {"told_s": round(self._seconds(), 3), **ended}
        self.recorder.tell("turn", lambda: {**_turn(doc), **told})

    def kept(self, turn_id: str, took_ms: float) -> None:
        """Tell how long a turn took to be remembered."""
        self.recorder.tell("kept", lambda: {"id": turn_id, "heard_ms": round(took_ms, 3)})

    def interim(self) -> None:
        """Count an interim that is looked up."""
        self._interims += 1

    def context(self, context: CallContext, asked: Asked) -> None:
        """Tell of a context: what it holds now, what it left out once that has been found out."""
        at_s, interims, self._interims = self._seconds(), self._interims, 0

        def told() -> dict[str, Any]:
            trace = asked.trace
            if asked.late is not None:
                # What failed has been told by the call.
                with contextlib.suppress(Exception):
                    trace = asked.late.result(_LATE_S).trace
            return {
                "at_s": round(at_s, 3),
                "turn_id": None if trace is None else trace.turn_id,
                "last_turn": 0 if trace is None else trace.last_number,
                "query": context.query,
                "is_turn": asked.is_turn,
                "visible": list(asked.visible),
                "seen": [self.recorder.key_of(text) for text in asked.seen],
                "budget": asked.budget,
                "top_k": asked.top_k,
                "deadline_ms": asked.deadline_ms,
                "outcome": context.outcome,
                "took_ms": round(context.took_ms, 3),
                "prefetched": "no" if trace is None else trace.prefetched,
                "interim": "" if trace is None else trace.interim,
                "again": asked.again,
                "need": context.need,
                "needs": {} if trace is None else trace.needs,
                "text": context.text,
                "tokens": tokens(context.text),
                "hits": [asdict(candidate_of(hit)) for hit in context.hits],
                "left_out": [] if trace is None else self._left_out(trace),
                "timing": None if trace is None or asked.again else asdict(trace.timing),
                "about": [] if trace is None else self._about(trace),
                "interims": interims,
            }

        self.recorder.tell("context", told)

    def _about(self, trace: Trace) -> list[str]:
        said = trace.said
        named = self._recall.about([trace.query.words, *said.turns], said.words)
        return [each.value for each in named]

    def _left_out(self, trace: Trace) -> list[dict[str, Any]]:
        model = None if trace.vector is None else trace.vector.view
        # What came meanwhile, the turn itself above all, must not lend to its neighbours.
        later = {*trace.said.left_out, *self._turns_after(trace.last_number)}
        trace = trace._replace(said=trace.said._replace(left_out=later))
        # On the pool that searches, so that there are never more at once than it has threads.
        searched = submit(left_out, trace, self._recall, self._wide, model, self._session).result()
        return [
            asdict(candidate_of(self._hit_of(index, match), why)) for index, match, why in searched
        ]

    def lookup(self, what: str, query: str, took_ms: float, hits: Sequence[Hit]) -> None:
        """Tell of what a tool of the agent looked up."""
        at_s = self._seconds()
        self.recorder.tell(
            "lookup",
            lambda: {
                "at_s": round(at_s, 3),
                "what": what,
                "query": query,
                "took_ms": round(took_ms, 3),
                "hits": [asdict(candidate_of(hit)) for hit in hits],
            },
        )

    def push(self, result: PushIndexResult) -> None:
        """Tell of a push."""
        version, count = result.version, result.doc_count
        self.recorder.tell("push", lambda: {"version": version, "doc_count": count})

    def end(self, *, pushed: bool) -> None:
        """Tell the end of the call."""
        at_s = self._seconds()
        how = "pushed" if pushed else "unpushed"
        self.recorder.close(lambda: {"end": how, "at_s": round(at_s, 3)})

    def discard(self) -> None:
        """Forget what was told: the call is."""
        self.recorder.discard()


def candidate_of(hit: Hit, why: Why = "") -> Candidate:
    """Return a hit as it is recorded."""
    return Candidate(
        hit.id, hit.source, hit.index_name, hit.text, hit.score, hit.parts, hit.metadata, why
    )


_OWN = ("turn", "speaker", "at_s", "interrupted", "typed", "filler", "unanswered", "redacted")


def _turn(doc: DocumentInfo, *, resumed: bool = False) -> dict[str, Any]:
    fields = doc.metadata or {}
    return {
        "id": doc.id,
        "number": fields.get("turn", 0),
        "speaker": str(fields.get("speaker", "")),
        "text": doc.text,
        "start_s": fields.get("at_s", 0.0),
        "resumed": resumed,
        **{mark: True for mark in _OWN[3:] if fields.get(mark)},
        "metadata": {name: value for name, value in fields.items() if name not in _OWN},
    }
