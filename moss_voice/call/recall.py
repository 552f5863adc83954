"""Finding what is worth knowing for a reply, in the call and in what its agent knows.

The law: one question, asked of every index in the way that suits it. The call's own turns are searched
with the turn alone, because what led up to it is in the prompt anyway, and lend to their neighbours;
knowledge is searched with what the call is about. Which parts are left out is said once, by name.

Synchronous, on a worker. Nothing here changes: what the call was when it was asked comes in as `Said`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moss_voice import ranking
from moss_voice import text as spoken
from moss_voice.call.context import passage_source, turn_source
from moss_voice.call.focus import merged, weights
from moss_voice.call.knowledge import Knowledge
from moss_voice.call.names import Named
from moss_voice.call.numbers import other_forms
from moss_voice.ranking import Part, check_parts
from moss_voice.searching import Manner, Match, Prepared, rank
from moss_voice.session import SessionIndex
from moss_voice.types import Hit
from moss_voice.workers import submit_aside

__all__ = ["SPARE_HITS", "Found", "Query", "Recall", "Said", "hit_of"]

F32 = npt.NDArray[np.float32]
# Found for an interim beyond what is shown, for those that turn out to be visible to the LLM.
SPARE_HITS = 8
# Of how many turns it is kept what they name.
_NAMED_TURNS = 256

Pairs = list[tuple[SessionIndex, Match]]
Model = Callable[[], F32]


class Query(NamedTuple):
    """What is asked.

    Attributes:
        text: The turn.
        words: It squashed.
        visible: Ids that must not be found.
        top_k: The most hits per index.
        given: The caller's own embedding of the text.
        is_turn: False where it is not said now.
        is_asked: True where the agent asks for itself, so that no gate stands before it.
    """

    text: str
    words: str
    visible: frozenset[str]
    top_k: int
    given: tuple[float, ...] | None = None
    is_turn: bool = True
    is_asked: bool = False


class Said(NamedTuple):
    """The call at the moment of a query.

    Attributes:
        left_out: Turns that must not be found, those among them that the query was said in.
        earlier: Unit vectors of the turns before it, the latest last.
        recent: The term ids of the turns before it, the latest first.
        turns: The words of turns before it, squashed, the latest first.
        words: The words said so far.
        in_focus: Names put in focus by hand, the newest first; None where what was said tells.
    """

    left_out: Collection[str]
    earlier: Sequence[F32]
    recent: Sequence[Sequence[int]]
    turns: Sequence[str]
    words: Collection[str]
    in_focus: Sequence[str] | None = None


class Found(NamedTuple):
    """What was found.

    Attributes:
        sources: Per index, best first: the call's own turns, then the knowledge.
        needs: Per knowledge index; see `CallContext.need`.
        vector: (dim,) float32, the query's; None where nothing was embedded.
        embed_ms: How long the model took.
        search_ms: How long the rest took, what was done beside the model left out.
    """

    sources: list[Pairs]
    needs: list[float | None]
    vector: F32 | None = None
    embed_ms: float = 0.0
    search_ms: float = 0.0

    @property
    def need(self) -> float | None:
        """See `CallContext.need`."""
        return max((need for need in self.needs if need is not None), default=None)


class _Asked(NamedTuple):
    """A query as one knowledge index is asked, as far as that needs no vector."""

    knowledge: Knowledge
    search: Prepared | None
    terms: Mapping[int, float]
    in_focus: bool


class Recall:
    """Searches the indexes of one call.

    Args:
        session: The call's own index.
        knowledge: What its agent knows.
        alpha: See `QueryOptions`.
        min_score: The least score of a hit.
        without: Parts that are left out.
    """

    def __init__(
        self,
        session: SessionIndex,
        knowledge: Sequence[Knowledge],
        *,
        alpha: float,
        min_score: float,
        without: frozenset[Part],
    ) -> None:
        self._session = session
        self._knowledge = tuple(knowledge)
        self._alpha = alpha
        self.min_score = min_score
        self._without = without
        # What turns name, by their words: asked for again and again while a call goes on.
        self._named: dict[str, list[Named]] = {}
        self._named_with: tuple[int, ...] = ()
        self._of_turns = Manner(
            keyword_weight=ranking.KEYWORDS_OF_TURNS,
            neighbours=self._has("neighbours"),
            recency=self._has("recency"),
            spread=self._has("spread"),
            near_duplicates=self._has("near_duplicates"),
            ef=ranking.GRAPH_EF,
        )

    def __repr__(self) -> str:
        without = f" without {', '.join(sorted(self._without))}" if self._without else ""
        return f"<Recall of {self._session.name!r} and {len(self._knowledge)} indexes{without}>"

    def widely(self) -> Recall:
        """Return the same with no gate and no least score."""
        without = self._without.union(check_parts(["gate"]))
        return Recall(
            self._session, self._knowledge, alpha=self._alpha, min_score=0.0, without=without
        )

    def _has(self, part: Part) -> bool:
        return part not in self._without

    def about(self, turns: Sequence[str], before: Collection[str]) -> list[Named]:
        """Return what some turns name, of all knowledge, newest first.

        Args:
            turns: Their words, squashed, the latest first.
            before: The words said in the call so far.
        """
        known = [each.known() for each in self._knowledge if self._has("focus")]
        names = [study.names for study in known if len(study.names)]
        if not names:
            return []
        revisions = tuple(study.revision for study in known)
        if revisions != self._named_with or len(self._named) > _NAMED_TURNS:
            self._named, self._named_with = {}, revisions
        found = self._named
        for words in turns:
            if words not in found:
                said = words.split()
                found[words] = [named for each in names for named in each.find(said, before=before)]
        return merged(found[words] for words in turns)

    def search(self, query: Query, said: Said, model: Model | None) -> Found:
        """Search everything; what needs no vector is done while the model runs.

        Args:
            query: What is asked.
            said: The call so far.
            model: Makes the query's vector; None to go by words alone.
        """
        began = time.perf_counter()
        aside = submit_aside(self._prepare, query, said)
        own = model() if model is not None else None
        embedded = time.perf_counter()
        turns, asked = aside.result()
        known = [self._passages(each, query, said, own) for each in asked]
        return Found(
            [self._turns(query, own, turns), *(pairs for pairs, _ in known)],
            [need for _, need in known],
            own,
            (embedded - began) * 1000.0,
            (time.perf_counter() - embedded) * 1000.0,
        )

    def turns(self, query: Query, said: Said, model: Model | None) -> Pairs:
        """Search the call's own turns."""
        turns = self._prepare_turns(query, said, self._terms(query))
        return self._turns(query, model() if model is not None else None, turns)

    def passages(self, query: Query, said: Said, model: Model | None) -> list[Pairs]:
        """Search the knowledge; a list per index."""
        aside = submit_aside(self._prepare, query, said)
        own = model() if model is not None else None
        return [self._passages(each, query, said, own)[0] for each in aside.result()[1]]

    def _prepare(self, query: Query, said: Said) -> tuple[Prepared | None, list[_Asked]]:
        terms = self._terms(query)
        recent = self._in_focus(query, said)
        asked = [
            self._prepare_passages(each, query, said, terms, recent) for each in self._knowledge
        ]
        return self._prepare_turns(query, said, terms), asked

    def _in_focus(self, query: Query, said: Said) -> list[Named]:
        if said.in_focus is not None:
            return [Named(value, 1.0, "exact") for value in said.in_focus]
        return self.about([query.words, *said.turns], said.words)

    def _prepare_turns(
        self, query: Query, said: Said, terms: Mapping[int, float]
    ) -> Prepared | None:
        return self._session.prepare(
            terms, top_k=query.top_k, exclude=said.left_out, manner=self._of_turns
        )

    def _prepare_passages(
        self,
        knowledge: Knowledge,
        query: Query,
        said: Said,
        terms: Mapping[int, float],
        recent: Sequence[Named],
    ) -> _Asked:
        places = knowledge.known().places
        known = places.rows if places is not None and self._has("focus") else {}
        boost = weights([named for named in recent if named.value in known])
        if boost:
            decay, weight = ranking.KEYWORD_DECAY_IN_FOCUS, ranking.KEYWORDS_IN_FOCUS
        else:
            decay = ranking.KEYWORD_DECAY
            weight = ranking.KEYWORDS_IN_CONVERSATION if said.recent else 1.0
        window = said.recent if self._has("keyword_window") else ()
        search = knowledge.index.prepare(
            ranking.decayed(terms, window, decay=decay),
            top_k=query.top_k,
            exclude=query.visible,
            boost=boost,
            places=places,
            manner=Manner(
                weight,
                near_duplicates=self._has("near_duplicates"),
                ef=ranking.GRAPH_EF,
            ),
        )
        return _Asked(knowledge, search, terms, bool(boost))

    def _terms(self, query: Query) -> dict[int, float]:
        terms = dict.fromkeys(spoken.term_ids(query.text).tolist(), 1.0)
        if self._has("numbers"):
            for form, weight in other_forms(query.text).items():
                terms.update(dict.fromkeys(spoken.term_ids(form).tolist(), weight))
        return terms

    def least_of_turns(self, query: Query) -> float:
        """Return the score below which the call's own turns stay out of a reply that asks nothing."""
        gated = self._has("gate") and not query.is_asked and not spoken.asks(query.text)
        # Who reads out a number may well mean one that was read out before.
        gated = gated and not (self._has("numbers") and other_forms(query.text))
        return ranking.UNASKED_MIN_SCORE if gated else 0.0

    def _turns(self, query: Query, own: F32 | None, search: Prepared | None) -> Pairs:
        least = self.least_of_turns(query)
        return self._found(self._session, search, own, query, min_score=least)

    def _passages(
        self, asked: _Asked, query: Query, said: Said, own: F32 | None
    ) -> tuple[Pairs, float | None]:
        knowledge, index = asked.knowledge, asked.knowledge.index
        # Callers' own models share a name, not always a size.
        same = index.model_id == self._session.model_id and (own is None or own.size == index.dim)
        if not same:
            own = index.embedder.embed_query(query.text) if index.embedder is not None else None
        if own is None:
            return self._found(index, asked.search, None, query), None
        before = said.earlier if same and self._has("conversation") else ()
        near = knowledge.near(ranking.widened(own, before, weight=ranking.GATE_CONVERSATION))
        need = None
        if self._has("gate"):
            need = knowledge.need(near, query.text, asked.terms)
        if need is not None and need < 1.0 and not query.is_asked:
            return [], need
        weight = (
            ranking.CONVERSATION_WEIGHT_IN_FOCUS if asked.in_focus else ranking.CONVERSATION_WEIGHT
        )
        vector = ranking.widened(own, before, weight=weight)
        checked = own if self._has("topic_change") else None
        least = ranking.FOCUS_NEARNESS * near
        return self._found(index, asked.search, vector, query, own=checked, least=least), need

    def _found(
        self,
        index: SessionIndex,
        search: Prepared | None,
        vector: F32 | None,
        query: Query,
        *,
        min_score: float = 0.0,
        own: F32 | None = None,
        least: float = -1.0,
    ) -> Pairs:
        if search is None:
            return []
        matches = rank(
            search,
            vector,
            top_k=query.top_k,
            alpha=self._alpha if vector is not None else 0.0,
            min_score=max(min_score, self.min_score) if vector is not None else None,
            own=own,
            least=least,
        )
        return [(index, match) for match in matches]


def hit_of(own: SessionIndex, index: SessionIndex, match: Match) -> Hit:
    """Return a match as a hit of a call whose own index is `own`."""
    doc = match.document
    metadata = doc.metadata or {}
    source = passage_source(index.name, doc.id)
    number, at_s = metadata.get("turn"), metadata.get("at_s")
    if index is own and isinstance(number, int):
        source = turn_source(
            number,
            str(metadata.get("speaker", "unknown")),
            float(at_s) if isinstance(at_s, int | float) else None,
        )
    return Hit(doc.id, doc.text, match.score, index.name, source, metadata, match.parts)
