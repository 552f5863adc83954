"""What monitoring is told of a recall: numbers and sources, and what was said only where the user asks.

The law: observing costs a voice turn nothing that one would notice and can never fail it. Metrics go to
OpenTelemetry where its API is installed, and nowhere else.
"""

from __future__ import annotations

from dataclasses import fields
from functools import cache
from typing import Any, Final, NamedTuple

from moss_voice.types import CallContext, HitParts

__all__ = ["count", "span_attributes"]


_PARTS: Final = tuple(part.name for part in fields(HitParts))


class _Instruments(NamedTuple):
    recalls: Any
    duration: Any
    hits: Any


@cache
def _instruments() -> _Instruments | None:
    try:
        from opentelemetry import metrics
    except ImportError:
        return None
    meter = metrics.get_meter("moss_voice")
    return _Instruments(
        meter.create_counter(
            "moss_voice.recalls",
            description="Contexts asked for, by outcome (ok, skipped, late, failed), prefetch and need",
        ),
        meter.create_histogram(
            "moss_voice.recall.duration", "ms", "How long the host waited for a context"
        ),
        meter.create_histogram("moss_voice.recall.hits", "1", "Turns and passages in one context"),
    )


def count(context: CallContext, *, host: str) -> None:
    """Count a context in the metrics.

    `moss_voice.recalls` has `outcome` (`late` is a missed deadline), `prefetched` and, where there is
    knowledge that a gate stands before, `needed`: False where the turn was too far from it to be looked
    up there. `moss_voice.recall.duration` is in milliseconds.

    Args:
        context: What was recalled.
        host: `livekit` or `pipecat`.
    """
    instruments = _instruments()
    if instruments is None:
        return
    told: dict[str, str | bool] = {
        "host": host,
        "outcome": context.outcome,
        "prefetched": context.prefetched,
    }
    if context.need is not None:
        told["needed"] = context.need >= 1.0
    instruments.recalls.add(1, told)
    if context.outcome != "skipped":
        instruments.duration.record(context.took_ms, {"host": host, "outcome": context.outcome})
        instruments.hits.record(len(context.hits), {"host": host})


def span_attributes(
    context: CallContext,
) -> dict[str, str | bool | float | list[str] | list[float]]:
    """Return what a span tells of a context, and no text: counts, times, where the hits come from, and why.

    The lists are in the order of the hits: `moss_voice.sources`, `moss_voice.rank_scores`, and one such
    as `moss_voice.parts.semantic` for each part of a rank score that is not 0 in all of them.
    """
    told: dict[str, str | bool | float | list[str] | list[float]] = {
        "gen_ai.operation.name": "search_memory",
        "moss_voice.outcome": context.outcome,
        "moss_voice.took_ms": round(context.took_ms, 3),
        "moss_voice.prefetched": context.prefetched,
        "moss_voice.hits": len(context.hits),
        "moss_voice.sources": [hit.source for hit in context.hits],
        "moss_voice.rank_scores": [round(hit.parts.total, 4) for hit in context.hits],
    }
    if context.need is not None:
        told["moss_voice.need"] = round(context.need, 3)
    for name in _PARTS:
        # Adding 0 makes 0 of -0, which rounding leaves of a tiny negative number.
        values = [round(float(getattr(hit.parts, name)), 4) + 0.0 for hit in context.hits]
        if any(values):
            told[f"moss_voice.parts.{name}"] = values
    return told
