"""What the inspector says of a context, in plain words.

The law: the same words for the same thing everywhere, and none that the recording does not bear out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Final

from moss_voice.call.recording import Candidate, RecordedContext, Settings, Why
from moss_voice.inspector.comparing import Moved
from moss_voice.pages import told_ms
from moss_voice.ranking import UNASKED_MIN_SCORE
from moss_voice.types import HitParts

__all__ = [
    "Group",
    "Term",
    "difference",
    "ending",
    "groups",
    "marks",
    "movement",
    "need",
    "prefetched",
    "settings",
    "summed",
    "terms",
    "verdict",
]

_ORDER: Final[tuple[Why, ...]] = (
    "rank",
    "budget",
    "repeat",
    "visible",
    "gate",
    "statement",
    "min_score",
    "",
)


def need(context: RecordedContext) -> str:
    """Say how near the turn was to the knowledge; "" where nothing is known of it."""
    if context.need is None:
        return ""
    if context.need < 1.0:
        return f"need {context.need:.2f}, below 1: knowledge not asked"
    return f"need {context.need:.2f}"


def verdict(context: RecordedContext) -> str:
    """Say in one line what came of a context."""
    took, deadline = told_ms(context.took_ms), _whole_ms(context.deadline_ms)
    if context.outcome == "skipped":
        return "skipped: a filler or nothing, so nothing was asked"
    if context.outcome == "late":
        return f"late: no answer within {deadline}, the reply went without"
    if context.outcome == "failed":
        return f"failed after {took}: the reply went without"
    told = f"recalled {len(context.hits)} in {took} of {deadline}"
    if context.again:
        return f"{told}, the same as asked before"
    return f"{told}, prefetched" if context.prefetched != "no" else told


# What is ready is taken in far less.
_WAITED_MS: Final = 1.0
_PREPARED: Final = {
    "hits": "Prefetch hit: an interim had the same words, and what it led to was taken.",
    "vector": "Prefetch of the embedding: an interim held nearly all of the words; only the search was left.",
}


def prefetched(context: RecordedContext) -> str:
    """Say what an interim had prepared."""
    if context.outcome == "skipped":
        return ""
    if context.again:
        return "Answered from memory: the same was asked for an earlier draft, and nothing changed since."
    if context.prefetched != "no":
        waited = context.timing is not None and context.timing.search_ms >= _WAITED_MS
        late = " Its search was still going on, and was waited for."
        return _PREPARED[context.prefetched] + (
            late if waited and context.prefetched == "hits" else ""
        )
    if not context.interims:
        return "Nothing prefetched: no interim came before the final."
    which = "the one interim" if context.interims == 1 else f"none of {context.interims} interims"
    was = "was not" if context.interims == 1 else "was"
    return f"Prefetch miss: {which} {was} near enough to the final."


def _whole_ms(took_ms: float) -> str:
    return f"{took_ms:g} ms"


@dataclass(frozen=True, slots=True)
class Group:
    """What was left out for one reason, best first."""

    why: Why
    title: str
    candidates: tuple[Candidate, ...]


def groups(
    left_out: Sequence[Candidate],
    *,
    budget: int,
    top_k: int,
    min_score: float,
    needs: dict[str, float],
) -> list[Group]:
    """Sort what was left out by its reason, the reasons that are nearest to a hit first."""
    unmet = ", ".join(f"{name}: need {value:.2f}" for name, value in needs.items() if value < 1.0)
    titles: dict[Why, str] = {
        "rank": f"ranked below the first {top_k}",
        "budget": f"no room in the budget of {budget} tokens",
        "repeat": "its words stand in a better hit, or in what the LLM sees",
        "visible": "the LLM sees it anyway",
        "gate": "gate: the turn is too far from this knowledge" + (f" ({unmet})" if unmet else ""),
        "statement": f"a statement, nothing asked: only turns that score {UNASKED_MIN_SCORE:g} or more",
        "min_score": f"score under {min_score:g}",
        "": "for a reason that was not recorded",
    }
    found = [
        Group(why, titles[why], tuple(each for each in left_out if each.why == why))
        for why in _ORDER
    ]
    return [group for group in found if group.candidates]


@dataclass(frozen=True, slots=True)
class Term:
    """A part of a rank score: its sign as it is written between terms, its name, its size."""

    sign: str
    name: str
    size: str


def terms(parts: HitParts) -> list[Term]:
    """Write a rank score as the sum that it is, without what rounds to nothing."""
    told: list[Term] = []
    for name, value in asdict(parts).items():
        size = f"{abs(value):.2f}"
        if float(size) == 0.0:
            continue
        sign = "\u2212" if value < 0.0 else "+" if told else ""
        told.append(Term(sign, name, size))
    return told


def summed(parts: HitParts) -> str:
    """Write a rank score and its terms in a line."""
    told = " ".join(f"{term.sign} {term.name} {term.size}".strip() for term in terms(parts))
    return f"{parts.total:.2f} = {told}" if told else f"{parts.total:.2f}"


def settings(given: Settings) -> list[tuple[str, str]]:
    """Name settings and their values."""
    if given.focus is None:
        focus = "fields found by what they hold"
    else:
        focus = ", ".join(given.focus) or "off"
    return [
        ("alpha", f"{given.alpha:g}"),
        ("top_k", f"{given.top_k}"),
        ("min_score", f"{given.min_score:g}"),
        ("max_tokens", f"{given.max_tokens}"),
        ("deadline", _whole_ms(given.deadline_ms)),
        ("focus", focus),
        ("without", ", ".join(given.without) or "nothing left out"),
    ]


def difference(given: Settings, own: Settings) -> str:
    """Say in what settings differ from a call's own."""
    was = dict(settings(own))
    told = [f"{name}={value}" for name, value in settings(given) if value != was[name]]
    return ", ".join(told) or "the recorded settings, run again"


def ending(end: str, version: int, doc_count: int) -> str:
    """Say how a call ended."""
    match end:
        case "pushed":
            return f"pushed, {doc_count} turns as version {version}"
        case "unpushed":
            return "its push failed; a journal or the outbox has it"
        case _:
            return "the recording stops before the end"


def marks(turn: object) -> list[tuple[str, str]]:
    """Return what is noted of a turn, with the colour that it has."""
    told = [
        ("interrupted", "interrupted", "warn"),
        ("typed", "typed", ""),
        ("filler", "filler, never recalled", ""),
        ("unanswered", "unanswered", "warn"),
        ("redacted", "redacted", ""),
        ("resumed", "from before this call was opened", ""),
    ]
    found = [(text, colour) for name, text, colour in told if getattr(turn, name)]
    corrections = getattr(turn, "corrections", 0)
    if corrections:
        found.append((f"corrected {'once' if corrections == 1 else f'{corrections} times'}", ""))
    return found


def movement(hit: Moved) -> tuple[str, str] | None:
    """Return what became of a hit, with the colour that it has; None where it stayed."""
    match hit.change:
        case "new":
            return "new", "good"
        case "gone":
            return "gone", "bad"
        case "up":
            return f"\u25b2 up {hit.by}", "good"
        case "down":
            return f"\u25bc down {-hit.by}", "warn"
        case _:
            return None
