"""What monitoring is told of a recall: numbers and sources, and what was said only where the user asks.

The law: observing costs a voice turn nothing that one would notice and can never fail it. Metrics go to
OpenTelemetry where its API is installed, and nowhere else.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

from moss_voice.types import CallContext

__all__ = ["count", "span_attributes"]


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
            description="Contexts asked for, by outcome (ok, skipped, late, failed) and prefetch",
        ),
        meter.create_histogram(
            "moss_voice.recall.duration", "ms", "How long the host waited for a context"
        ),
        meter.create_histogram("moss_voice.recall.hits", "1", "Turns and passages in one context"),
    )


def count(context: CallContext, *, host: str) -> None:
    """Count a context in the metrics.

    `moss_voice.recalls` has `outcome` (`late` is a missed deadline) and `prefetched`;
    `moss_voice.recall.duration` is in milliseconds.

    Args:
        context: What was recalled.
        host: `livekit` or `pipecat`.
    """
    instruments = _instruments()
    if instruments is None:
        return
    told = {"host": host, "outcome": context.outcome, "prefetched": context.prefetched}
    instruments.recalls.add(1, told)
    if context.outcome != "skipped":
        instruments.duration.record(context.took_ms, {"host": host, "outcome": context.outcome})
        instruments.hits.record(len(context.hits), {"host": host})


def span_attributes(context: CallContext) -> dict[str, str | bool | float | list[str]]:
    """Return what a span tells of a context: counts, times and where the hits come from, no text."""
    return {
        "gen_ai.operation.name": "search_memory",
        "moss_voice.outcome": context.outcome,
        "moss_voice.took_ms": round(context.took_ms, 3),
        "moss_voice.prefetched": context.prefetched,
        "moss_voice.hits": len(context.hits),
        "moss_voice.sources": [hit.source for hit in context.hits],
    }
