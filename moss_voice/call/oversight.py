"""What a context might have held, and why it does not: for people who look at a recording.

The law: the call is not slowed. What was found tells the most; the rest comes from a second, wider search
after the reply, in which nothing is left out, and from comparing the two.

Synchronous; not for the path of a reply.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moss_voice.call.context import Block
from moss_voice.call.recall import Model, Pairs, Query, Recall, Said
from moss_voice.call.recording import Prefetched, Timing, Why
from moss_voice.searching import Match
from moss_voice.session import SessionIndex

__all__ = ["Trace", "left_out"]

F32 = npt.NDArray[np.float32]

# How many more than the block's are looked at, and how many of those are told.
_WIDER = 12
_TOLD = 16


class Trace(NamedTuple):
    """How an answer came about.

    Attributes:
        query: As it was searched for, `visible` among it.
        said: The call as it was, but that nothing is left out for being visible.
        last_number: Of the turns before it.
        turn_id: The newest turn that the query was said in; None where it is not there yet.
        vector: The query's; None where nothing was embedded.
        found: Per index as they were found, all together, best first.
        block: What became of the best of them.
        needs: Per knowledge index that a gate stands before.
        timing: Where the time went.
        prefetched: What an interim had led to.
        interim: That one; "" where there was none.
    """

    query: Query
    said: Said
    last_number: int
    turn_id: str | None
    vector: F32 | None
    found: Pairs
    block: Block
    needs: dict[str, float]
    timing: Timing
    prefetched: Prefetched
    interim: str = ""


def left_out(
    trace: Trace, asked: Recall, wide: Recall, model: Model | None, own: SessionIndex
) -> list[tuple[SessionIndex, Match, Why]]:
    """Return what a block might have held, best first, each with the reason why it does not.

    Args:
        trace: How the answer came about.
        asked: What searched for it.
        wide: The same with no gate and no least score.
        model: Makes the query's vector again.
        own: The call's own index.
    """
    query = trace.query
    shown = {(hit.index_name, hit.id) for hit in trace.block.shown}
    repeats = {(hit.index_name, hit.id) for hit in trace.block.repeats}
    crowded = {(hit.index_name, hit.id) for hit in trace.block.crowded_out}
    found = {(index.name, match.id): match for index, match in trace.found}
    wider = query._replace(visible=frozenset(), top_k=query.top_k + _WIDER)
    # Also what was found and the wider search does not bring.
    pairs = {(index.name, match.id): (index, match) for index, match in trace.found}
    for source in wide.search(wider, trace.said, model).sources:
        for index, match in source:
            pairs.setdefault((index.name, match.id), (index, match))
    least = max(asked.least_of_turns(query), asked.min_score)
    told: list[tuple[SessionIndex, Match, Why]] = []
    for key, (index, match) in pairs.items():
        if key in shown or (index is own and _is_later(match, trace.last_number)):
            continue
        why: Why
        if match.id in query.visible:
            why = "visible"
        elif key in repeats:
            why = "repeat"
        elif key in crowded:
            why = "budget"
        elif key in found:
            why = "rank"
        elif index is not own and trace.needs.get(index.name, 1.0) < 1.0:
            why = "gate"
        elif match.score < asked.min_score:
            why = "min_score"
        elif index is own and match.score < least:
            why = "statement"
        else:
            why = "rank"
        told.append((index, match, why))
    told.sort(key=lambda each: -each[1].fused)
    return told[:_TOLD]


def _is_later(match: Match, last_number: int) -> bool:
    number = (match.document.metadata or {}).get("turn")
    return isinstance(number, int) and number > last_number
