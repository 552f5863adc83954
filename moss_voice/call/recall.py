"""Finding what is worth knowing for a reply, in the call and in what its agent knows.

The law: one question, asked of every index in the way that suits it. The call's own turns are searched
with the turn alone, because what led up to it is in the prompt anyway, and lend to their neighbours;
knowledge is searched with what the call is about. Which parts are left out is said once, by name.

Synchronous, on a worker. Nothing here changes: what the call was when it was asked comes in as `Said`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moss_voice import ranking
from moss_voice import text as spoken
from moss_voice.call.focus import merged, weights
from moss_voice.call.knowledge import Knowledge
from moss_voice.call.names import Named
from moss_voice.call.numbers import other_forms
from moss_voice.index import Manner, Match, Words
from moss_voice.ranking import Part
from moss_voice.session import SessionIndex
from moss_voice.workers import submit_aside

__all__ = ["Found", "Query", "Recall", "Said"]

F32 = npt.NDArray[np.float32]
# Of how many values it is asked whether the turn can be about them: those of the greatest weights.
_CHECKED_VALUES = 3

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
        named: What was named before it, the latest first.
        words: The words said so far.
    """

    left_out: Collection[str]
    earlier: Sequence[F32]
    recent: Sequence[Sequence[int]]
    named: Sequence[Named]
    words: Collection[str]


class Found(NamedTuple):
    """What was found.

    Attributes:
        sources: Per index, best first.
        need: See `CallContext.need`.
    """

    sources: list[Pairs]
    need: float | None


class _Asked(NamedTuple):
    """A query as one knowledge index is asked."""

    knowledge: Knowledge
    words: Words | None
    boost: Mapping[str, float]
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
        self._min_score = min_score
        self._without = without
        self._of_turns = Manner(
            keyword_weight=ranking.KEYWORDS_OF_TURNS,
            neighbours=self._has("neighbours"),
            recency=self._has("recency"),
            spread=self._has("spread"),
            near_duplicates=self._has("near_duplicates"),
        )

    def __repr__(self) -> str:
        without = f" without {', '.join(sorted(self._without))}" if self._without else ""
        return f"<Recall of {self._session.name!r} and {len(self._knowledge)} indexes{without}>"

    def _has(self, part: Part) -> bool:
        return part not in self._without

    def named(self, text: str, before: Collection[str]) -> list[Named]:
        """Return the names that a turn names, of all knowledge.

        Args:
            text: The turn.
            before: The words said in the call so far.
        """
        if not self._has("focus"):
            return []
        words = spoken.words(text)
        names = (each.study().names for each in self._knowledge)
        return [named for each in names if len(each) for named in each.find(words, before=before)]

    def search(self, query: Query, said: Said, model: Model | None) -> Found:
        """Search everything; the words are looked up while the model runs.

        Args:
            query: What is asked.
            said: The call so far.
            model: Makes the query's vector; None to go by words alone.
        """
        aside = submit_aside(self._prepare, query, said)
        own = model() if model is not None else None
        words, asked = aside.result()
        known = [self._passages(each, query, said, own) for each in asked]
        return Found(
            [self._turns(query, said, own, words), *(pairs for pairs, _ in known)],
            max((need for _, need in known if need is not None), default=None),
        )

    def turns(self, query: Query, said: Said, model: Model | None) -> Pairs:
        """Search the call's own turns."""
        words = self._session.words(self._terms(query))
        return self._turns(query, said, model() if model is not None else None, words)

    def passages(self, query: Query, said: Said, model: Model | None) -> list[Pairs]:
        """Search the knowledge; a list per index."""
        aside = submit_aside(self._prepare, query, said)
        own = model() if model is not None else None
        return [self._passages(each, query, said, own)[0] for each in aside.result()[1]]

    def _prepare(self, query: Query, said: Said) -> tuple[Words | None, list[_Asked]]:
        """Do what needs no vector."""
        terms = self._terms(query)
        recent = merged(self.named(query.text, said.words), said.named)
        asked = []
        for knowledge in self._knowledge:
            places = knowledge.study().places
            known = places.rows if places is not None and self._has("focus") else {}
            boost = weights([named for named in recent if named.value in known])
            decay = ranking.KEYWORD_DECAY_IN_FOCUS if boost else ranking.KEYWORD_DECAY
            window = said.recent if self._has("keyword_window") else ()
            words = knowledge.index.words(ranking.decayed(terms, window, decay=decay))
            asked.append(_Asked(knowledge, words, boost, bool(boost)))
        return self._session.words(terms), asked

    def _terms(self, query: Query) -> dict[int, float]:
        terms = dict.fromkeys(spoken.term_ids(query.text).tolist(), 1.0)
        if self._has("numbers"):
            for form in other_forms(query.text):
                terms.update(dict.fromkeys(spoken.term_ids(form).tolist(), 1.0))
        return terms

    def _turns(self, query: Query, said: Said, own: F32 | None, words: Words | None) -> Pairs:
        gated = self._has("gate") and not query.is_asked and not spoken.asks(query.text)
        return self._find(
            self._session,
            own,
            words,
            query.top_k,
            exclude=said.left_out,
            manner=self._of_turns,
            min_score=ranking.UNASKED_MIN_SCORE if gated else 0.0,
        )

    def _passages(
        self, asked: _Asked, query: Query, said: Said, own: F32 | None
    ) -> tuple[Pairs, float | None]:
        knowledge, index = asked.knowledge, asked.knowledge.index
        # Callers' own models share a name, not always a size.
        same = index.model_id == self._session.model_id and (own is None or own.size == index.dim)
        if not same:
            own = index.embedder.embed_query(query.text) if index.embedder is not None else None
        near = knowledge.near(own) if own is not None else 0.0
        need = None
        if own is not None and self._has("gate"):
            need = knowledge.need(near, query.text)
            if need < 1.0 and not query.is_asked:
                return [], need
        boost = asked.boost
        if own is not None and boost and self._has("topic_change"):
            boost = self._still_meant(knowledge, own, near, boost)
        vector = own
        if own is not None and same and self._has("conversation"):
            weight = (
                ranking.CONVERSATION_WEIGHT_IN_FOCUS
                if asked.in_focus
                else ranking.CONVERSATION_WEIGHT
            )
            vector = ranking.widened(own, said.earlier, weight=weight)
        alone = 1.0 if vector is own else ranking.KEYWORDS_IN_CONVERSATION
        manner = Manner(
            keyword_weight=ranking.KEYWORDS_IN_FOCUS if asked.in_focus else alone,
            near_duplicates=self._has("near_duplicates"),
        )
        found = self._find(
            index,
            vector,
            asked.words,
            query.top_k,
            exclude=query.visible,
            manner=manner,
            boost=boost,
            knowledge=knowledge,
        )
        return found, need

    @staticmethod
    def _still_meant(
        knowledge: Knowledge, own: F32, near: float, boost: Mapping[str, float]
    ) -> Mapping[str, float]:
        """Leave out the values about which there is nothing that the turn could be about."""
        study = knowledge.study()
        if study.places is None:
            return boost
        checked = list(boost)[:_CHECKED_VALUES]
        least = ranking.FOCUS_NEARNESS * near
        nearest = knowledge.index.nearest_of(own, study.places, checked)
        gone = {value for value, near in zip(checked, nearest, strict=True) if near < least}
        return {value: weight for value, weight in boost.items() if value not in gone}

    def _find(
        self,
        index: SessionIndex,
        vector: F32 | None,
        words: Words | None,
        top_k: int,
        *,
        exclude: Collection[str],
        manner: Manner,
        boost: Mapping[str, float] | None = None,
        knowledge: Knowledge | None = None,
        min_score: float = 0.0,
    ) -> Pairs:
        if words is None:
            return []
        matches = index.find(
            vector,
            words,
            top_k=top_k,
            alpha=self._alpha if vector is not None else 0.0,
            exclude=exclude,
            boost=boost,
            places=knowledge.study().places if knowledge is not None else None,
            min_score=max(min_score, self._min_score) if vector is not None else None,
            manner=manner,
        )
        return [(index, match) for match in matches]
