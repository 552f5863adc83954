"""The inspector's page and the fragments that its script asks for, all by the same templates.

The law: every word of a call passes the templates, which escape it; the script of a page makes no markup
of its own. A page is one file that asks for nothing; what the live one may ask is its own server.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Final, NamedTuple

from jinja2 import Environment
from markupsafe import Markup

from moss_voice import pages, ranking
from moss_voice.call.context import tokens
from moss_voice.call.recording import (
    Candidate,
    RecordedContext,
    RecordedLookup,
    RecordedTurn,
    Recording,
)
from moss_voice.inspector import drawing, wording
from moss_voice.inspector.comparing import Comparison
from moss_voice.inspector.engine import Answer, Question

__all__ = ["answer", "comparison", "fault", "page", "policy"]

_ROOM: Final = "moss_voice.inspector"
# Of what was left out, how much is shown with its text and bar for each reason; the rest takes a line each.
# In a long call less is, so that its page can still be opened: by the number of its contexts.
_SHOWN_IN_FULL: Final = ((100, 3), (250, 1))
_EXCERPT: Final = 240
_MOST_NAMES: Final = 300

_PARTS: Final[Mapping[str, str]] = {
    "semantic": "nearness of meaning",
    "keyword": "shared words",
    "focus": "about what the call is about",
    "neighbour": "lent by the turns beside it",
    "recency": "later in the call",
    "repeat": "close to a better hit, or much the same",
}
_STEPS: Final[Mapping[str, str]] = {
    "queued": "waiting for a thread and for earlier turns",
    "embed": "the model",
    "search": "searches beyond the model",
    "merge": "merged, cut to the budget, written",
    "rest": "not accounted for",
}
_OUTCOMES: Final = ("ok", "skipped", "late", "failed")
_OPERATORS: Final[Mapping[str, str]] = {
    "$eq": "is",
    "$ne": "is not",
    "$lt": "less than",
    "$lte": "at most",
    "$gt": "greater than",
    "$gte": "at least",
    "$in": "one of (comma between)",
    "$nin": "none of (comma between)",
    "$near": "near: lat,lng,metres",
}


@cache
def _style() -> str:
    return pages.asset("moss_voice.pages.common", "style.css") + pages.asset(_ROOM, "style.css")


@cache
def _script() -> str:
    return pages.asset(_ROOM, "script.js")


def policy(*, live: bool) -> str:
    """Return the policy of a page, for its header."""
    return pages.policy(styles=[_style()], scripts=[_script()], connects=live)


@cache
def _templates() -> Environment:
    made = pages.environment(_ROOM)
    made.globals |= {
        "excerpt": _excerpt,
        "kind_of": drawing.speaker_kind,
        "scale": drawing.scale,
        "shares": drawing.shares,
        "strip": drawing.strip,
        "wording": wording,
        "part_meanings": _PARTS,
        "step_meanings": _STEPS,
        "ranking_parts": ranking.PARTS,
        "operators": _OPERATORS,
        "movement": wording.movement,
        "tokens": tokens,
    }
    return made


def _excerpt(text: str, most: int = _EXCERPT) -> str:
    line = " ".join(text.split())
    if len(line) <= most:
        return line
    return line[:most].rsplit(" ", 1)[0] + " …"


# --- what a page is made of ------------------------------------------------------------------------


class Item(NamedTuple):
    """A line of the transcript: a turn with its contexts (the used one first), or what belongs to none."""

    turn: RecordedTurn | None = None
    contexts: tuple[RecordedContext, ...] = ()
    lookup: RecordedLookup | None = None
    place: int = 0


@dataclass(frozen=True, slots=True)
class Places:
    """Where in the page a candidate stands whole.

    Attributes:
        turns: The number of each turn by its id.
        passages: The texts of knowledge, each once, by index and id.
    """

    call: str
    turns: Mapping[str, int]
    passages: Mapping[tuple[str, str], tuple[int, Candidate]] = field(default_factory=dict)

    def of_call(self, candidate: Candidate) -> bool:
        """True for a turn of this very call."""
        return candidate.index_name == self.call

    def href(self, candidate: Candidate) -> str:
        """Return where a candidate stands; "" where nowhere."""
        if self.of_call(candidate):
            number = self.turns.get(candidate.id)
            return "" if number is None else f"#turn-{number}"
        known = self.passages.get((candidate.index_name, candidate.id))
        return "" if known is None else f"#passage-{known[0]}"


def _places(recording: Recording, *, passages: bool = False) -> Places:
    turns = {turn.id: turn.number for turn in recording.turns}
    known: dict[tuple[str, str], tuple[int, Candidate]] = {}
    for each in _candidates(recording) if passages else ():
        key = (each.index_name, each.id)
        if each.index_name != recording.call and key not in known:
            known[key] = (len(known) + 1, each)
    return Places(recording.call, turns, known)


def _candidates(recording: Recording) -> Iterable[Candidate]:
    for context in recording.contexts:
        yield from context.hits
        yield from context.left_out
    for lookup in recording.lookups:
        yield from lookup.hits


def _items(recording: Recording) -> list[Item]:
    """Put everything in the order of the call."""
    known = {turn.id for turn in recording.turns}
    asked: dict[str, list[RecordedContext]] = {}
    loose: list[tuple[float, Item]] = []
    for context in recording.contexts:
        if context.turn_id is not None and context.turn_id in known:
            asked.setdefault(context.turn_id, []).append(context)
        else:
            loose.append((context.at_s, Item(contexts=(context,))))
    for place, lookup in enumerate(recording.lookups, start=1):
        loose.append((lookup.at_s, Item(lookup=lookup, place=place)))
    loose.sort(key=lambda pair: pair[0], reverse=True)
    items: list[Item] = []
    for turn in recording.turns:
        while loose and not turn.resumed and loose[-1][0] < turn.start_s:
            items.append(loose.pop()[1])
        items.append(Item(turn, tuple(reversed(asked.get(turn.id, [])))))
    items += [item for _, item in reversed(loose)]
    return items


@dataclass(frozen=True, slots=True)
class Totals:
    """The numbers of a call."""

    turns: int
    resumed: int
    contexts: int
    drafts: int
    outcomes: Mapping[str, int]
    median_ms: float | None
    p95_ms: float | None
    deadline_ms: float
    prefetched_hits: int
    prefetched_vectors: int
    missed: int
    interrupted: int


def _totals(recording: Recording) -> Totals:
    contexts = recording.contexts
    asked = [each for each in contexts if each.outcome != "skipped"]
    took = sorted(each.took_ms for each in asked)
    fresh = Counter(each.prefetched for each in asked if each.outcome == "ok" and not each.again)
    used = {each.turn_id for each in contexts if each.turn_id is not None}
    loose = sum(each.turn_id is None for each in contexts)
    counted = Counter(each.outcome for each in contexts)
    return Totals(
        turns=len(recording.turns),
        resumed=sum(turn.resumed for turn in recording.turns),
        contexts=len(contexts),
        drafts=len(contexts) - len(used) - loose,
        outcomes={name: counted[name] for name in _OUTCOMES},
        median_ms=_quantile(took, 0.5),
        p95_ms=_quantile(took, 0.95),
        deadline_ms=recording.settings.deadline_ms,
        prefetched_hits=fresh["hits"],
        prefetched_vectors=fresh["vector"],
        missed=fresh["no"],
        interrupted=sum(turn.interrupted for turn in recording.turns),
    )


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share of the values does not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else None


# --- pages and fragments ---------------------------------------------------------------------------


def page(
    recording: Recording,
    *,
    live: bool,
    missing: Mapping[str, str] | None = None,
    changed: Mapping[str, str] | None = None,
    fields: Sequence[str] = (),
    values: Sequence[str] = (),
    note: str = "",
    comparison: tuple[str, Comparison] | None = None,
) -> str:
    """Return a recorded call as one HTML file.

    Args:
        recording: What was recorded.
        live: Whether `InspectorServer` answers its search box and its comparisons.
        missing: Knowledge that could not be loaded, and why.
        changed: Knowledge that has another version now, and which.
        fields: Metadata fields for the filter builder.
        values: Names that can be in focus.
        note: Said at the head of the page.
        comparison: With what the call is compared, and what came of it.
    """
    allowed = policy(live=live)
    return (
        _templates()
        .get_template("page.html")
        .render(
            recording=recording,
            live=live,
            missing=missing or {},
            changed=changed or {},
            fields=tuple(fields),
            values=tuple(values)[:_MOST_NAMES],
            note=note,
            comparison=comparison,
            # A document cannot say who may frame it; the server's header can.
            policy="; ".join(
                each for each in allowed.split("; ") if not each.startswith("frame-ancestors")
            ),
            # Ours, and hashed in the policy.
            style=Markup(_style()),  # noqa: S704
            script=Markup(_script()),  # noqa: S704
            axis=drawing.axis(recording),
            items=_items(recording),
            totals=_totals(recording),
            places=_places(recording, passages=True),
            turns={turn.id: turn for turn in recording.turns},
            full=next(
                (full for most, full in _SHOWN_IN_FULL if len(recording.contexts) <= most), 0
            ),
        )
    )


def answer(found: Answer, question: Question, recording: Recording) -> str:
    """Return what the search box shows of an answer."""
    return (
        _templates()
        .get_template("answer.html")
        .render(
            found=found,
            question=question,
            recording=recording,
            places=_places(recording, passages=True),
        )
    )


def comparison(
    compared: Comparison, recording: Recording, *, names: tuple[str, str] = ("A", "B")
) -> str:
    """Return two ways to recall the call side by side.

    Args:
        compared: What came of it.
        recording: The call.
        names: What each side is called.
    """
    return (
        _templates()
        .get_template("comparison.html")
        .render(
            compared=compared,
            recording=recording,
            names=names,
            places=_places(recording, passages=True),
            turns={turn.id: turn for turn in recording.turns},
        )
    )


def fault(message: str) -> str:
    """Return a message in place of an answer."""
    return _templates().get_template("fault.html").render(message=message)
