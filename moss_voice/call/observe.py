"""What monitoring is told of a call: numbers and sources, and what was said only where the user asks.

The law: observing costs a voice turn nothing that one would notice and can never fail it. Metrics go to
OpenTelemetry where its API is installed, and nowhere else. Their attributes come from short lists: never a
call, an index, a person or a word of a text. `docs/observability.md` is the list of all that is told.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from functools import cache, wraps
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, ParamSpec, Protocol
from weakref import ref

from moss_voice.types import CallContext, HitParts, PushIndexResult, RecoveredCall

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Counter, Histogram, Meter, Observation

__all__ = [
    "Missed",
    "Observed",
    "Tool",
    "call_ended",
    "call_opened",
    "count",
    "looked_up",
    "not_recovered",
    "recovered",
    "span_attributes",
    "turn_kept",
]

logger = logging.getLogger(__name__)

_P = ParamSpec("_P")

Tool = Literal["search_knowledge", "recall_call"]
# Why a call that has ended was not pushed.
Missed = Literal["nothing", "failed", "late", "discarded"]

_PARTS: Final = tuple(part.name for part in fields(HitParts))

# A recall has 50 ms by default, and mostly needs less than 5: fine below, and a boundary at the deadline.
_RECALL_MS: Final = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 40, 50, 75, 100, 250, 500, 1000)
_TURN_MS: Final = (1, 2, 3, 5, 7.5, 10, 15, 20, 30, 50, 75, 100, 250, 500, 1000, 2500, 5000)
# A cloud is asked: up to the 3 s that a call may take to open, and the 30 s that a push may take.
_CLOUD_MS: Final = (5, 10, 25, 50, 100, 250, 500, 1000, 2000, 3000, 5000, 10_000, 30_000)
_HITS: Final = (0, 1, 2, 3, 4, 5, 7, 10, 15, 20)
_TOKENS: Final = (0, 50, 100, 150, 200, 300, 400, 500, 600, 800, 1200, 2400)
_BYTES: Final = tuple(1024 * 4**power for power in range(10))  # 1 KiB to 256 MiB


class _Counters(Protocol):
    @property
    def failed(self) -> int: ...


class Observed(Protocol):
    """What is read of a call while it is open; a `CallMemory` has it."""

    @property
    def durable(self) -> bool:
        """True while its turns would survive a crash."""
        ...

    @property
    def counters(self) -> _Counters:
        """What happened so far."""
        ...


# --- the calls that are open -----------------------------------------------------------------------


class _Open:
    """One call; it is not kept alive by this, and what failed in it outlives it."""

    def __init__(self, call: Observed, host: str) -> None:
        self.host = host
        self.failed = 0
        self._call = ref(call)

    def look(self) -> Observed | None:
        """Return the call while it is there, and note what failed in it."""
        call = self._call()
        if call is not None:
            self.failed = call.counters.failed
        return call

    def is_of(self, call: Observed) -> bool:
        return self._call() is call


class _Calls:
    """The calls that are open, for those who ask now and then from a thread of their own."""

    def __init__(self) -> None:
        self._changing = threading.Lock()
        self._open: list[_Open] = []
        # Of calls that are gone: a total that fell would be taken for a process that began anew.
        self._failed: Tally[str] = Tally()

    def add(self, call: Observed, host: str) -> None:
        with self._changing:
            self._open.append(_Open(call, host))

    def remove(self, call: Observed) -> None:
        with self._changing:
            for each in self._open:
                if each.is_of(call):
                    each.look()
                    self._failed[each.host] += each.failed
            self._open = [each for each in self._open if not each.is_of(call)]

    def look(self) -> list[tuple[str, bool]]:
        """Return host and durability of each open call; whatever is gone without an end is forgotten."""
        with self._changing:
            found, still_open = [], []
            for each in self._open:
                call = each.look()
                if call is None:
                    self._failed[each.host] += each.failed
                else:
                    found.append((each.host, call.durable))
                    still_open.append(each)
            self._open = still_open
            return found

    def failed(self) -> dict[str, int]:
        """Return what failed in all calls of this process so far, by host."""
        self.look()
        with self._changing:
            total = Tally(self._failed)
            for each in self._open:
                total[each.host] += each.failed
            return dict(total)

    @property
    def hosts(self) -> set[str]:
        """Hosts that had a call: their gauges go down to 0 rather than away."""
        with self._changing:
            return {*self._failed, *(each.host for each in self._open)}


_calls = _Calls()


# --- the instruments -------------------------------------------------------------------------------


class _Instruments(NamedTuple):
    recalls: Counter
    recall_ms: Histogram
    hits: Histogram
    tokens: Histogram
    turns: Counter
    turn_ms: Histogram
    lookups: Counter
    lookup_ms: Histogram
    opened: Counter
    open_ms: Histogram
    pushes: Counter
    push_ms: Histogram
    push_bytes: Histogram
    recoveries: Counter
    recovered_turns: Counter


@cache
def _instruments() -> _Instruments | None:
    """Make the instruments; they record nothing until the process sets a provider, before or later."""
    try:
        from opentelemetry import metrics
    except ImportError:
        return None
    meter = metrics.get_meter("moss_voice")
    counter = meter.create_counter
    _observe_calls(meter, metrics.Observation)
    return _Instruments(
        recalls=counter("moss_voice.recalls", "{recall}", "Contexts asked for"),
        recall_ms=_histogram(
            meter, "moss_voice.recall.duration", "ms", "How long the host waited", _RECALL_MS
        ),
        hits=_histogram(
            meter, "moss_voice.recall.hits", "{hit}", "Turns and passages in one context", _HITS
        ),
        tokens=_histogram(
            meter, "moss_voice.recall.tokens", "{token}", "Size of one context, estimated", _TOKENS
        ),
        turns=counter("moss_voice.turns", "{turn}", "Finished turns of both sides"),
        turn_ms=_histogram(
            meter, "moss_voice.turn.duration", "ms", "From a turn to its safe place", _TURN_MS
        ),
        lookups=counter("moss_voice.lookups", "{lookup}", "Tools used by the language model"),
        lookup_ms=_histogram(
            meter, "moss_voice.lookup.duration", "ms", "How long a tool took", _RECALL_MS
        ),
        opened=counter("moss_voice.calls.opened", "{call}", "Calls begun or taken up"),
        open_ms=_histogram(
            meter, "moss_voice.call.open.duration", "ms", "Before a caller is greeted", _CLOUD_MS
        ),
        pushes=counter("moss_voice.pushes", "{push}", "Calls ended, and what became of them"),
        push_ms=_histogram(
            meter, "moss_voice.push.duration", "ms", "From a hang-up to a stored call", _CLOUD_MS
        ),
        push_bytes=_histogram(meter, "moss_voice.push.size", "By", "Bytes sent by a push", _BYTES),
        recoveries=counter("moss_voice.recoveries", "{recovery}", "Journals and pushes found left"),
        recovered_turns=counter("moss_voice.recovered_turns", "{turn}", "Changes brought in so"),
    )


def _histogram(
    meter: Meter, name: str, unit: str, description: str, bounds: Sequence[float]
) -> Histogram:
    try:
        return meter.create_histogram(
            name, unit, description, explicit_bucket_boundaries_advisory=bounds
        )
    except TypeError:  # an API older than 1.30 takes no advice
        return meter.create_histogram(name, unit, description)


def _observe_calls(meter: Meter, observation: type[Observation]) -> None:
    def tell(counted: Callable[[], dict[str, int]]) -> Callable[..., Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            return [observation(value, _told(host)) for host, value in counted().items()]

        return observe

    def live() -> dict[str, int]:
        return _by_host(host for host, _ in _calls.look())

    def not_durable() -> dict[str, int]:
        return _by_host(host for host, durable in _calls.look() if not durable)

    # Called when a reader collects, in its own thread.
    meter.create_observable_up_down_counter(
        "moss_voice.calls.live", [tell(live)], "{call}", "Calls that are open"
    )
    meter.create_observable_up_down_counter(
        "moss_voice.calls.not_durable",
        [tell(not_durable)],
        "{call}",
        "Open calls whose turns would not survive a crash",
    )
    meter.create_observable_counter(
        "moss_voice.faults",
        [tell(_calls.failed)],
        "{fault}",
        "Contexts that failed, and turns that could not be indexed at once",
    )


def _by_host(found: Iterable[str]) -> dict[str, int]:
    counted = Tally(found)
    return {host: counted[host] for host in {*_calls.hosts, *counted}}


def _harmless(function: Callable[_P, None]) -> Callable[_P, None]:
    """Keep whatever an SDK does wrong from the call."""

    @wraps(function)
    def tell(*args: _P.args, **kwargs: _P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - nobody's call is to suffer from being counted
            logger.debug("%s: not counted (%s)", function.__name__, type(error).__name__)

    return tell


def _told(host: str, **more: str | bool) -> dict[str, str | bool]:
    """Return a point's attributes; to whoever reads metrics a `host` is a machine."""
    return {"framework": host, **more}


# --- what is counted -------------------------------------------------------------------------------


@_harmless
def count(context: CallContext, *, host: str) -> None:
    """Count a context in the metrics.

    `moss_voice.recalls` has `outcome` (`late` is a missed deadline), `prefetched` and, where there is
    knowledge that a gate stands before, `needed`: False where the turn was too far from it to be looked
    up there. `moss_voice.recall.duration` is in milliseconds.

    Args:
        context: What was recalled.
        host: `livekit` or `pipecat`, or a short name of your own that is the same for all calls.
    """
    instruments = _instruments()
    if instruments is None:
        return
    told = _told(host, outcome=context.outcome, prefetched=context.prefetched)
    needed = {} if context.need is None else {"needed": context.need >= 1.0}
    instruments.recalls.add(1, {**told, **needed})
    if context.outcome != "skipped":
        instruments.recall_ms.record(context.took_ms, told)
        instruments.hits.record(len(context.hits), _told(host))
        # As `call.context.tokens` has it.
        size = -(-len(context.text.encode("utf-8", "replace")) // 4)
        instruments.tokens.record(size, _told(host))


@_harmless
def turn_kept(speaker: str, took_ms: float, *, host: str, failed: bool = False) -> None:
    """Count a finished turn, and how long it took until it was safe and could be recalled.

    Args:
        speaker: Who said it; other names than `caller` and `agent` are counted as `other`.
        took_ms: How long `CallMemory.heard` took.
        host: As in `count`.
        failed: True where it was not kept.
    """
    instruments = _instruments()
    if instruments is None:
        return
    who = speaker if speaker in ("caller", "agent") else "other"
    outcome = "failed" if failed else "kept"
    instruments.turns.add(1, _told(host, speaker=who, outcome=outcome))
    if not failed:
        instruments.turn_ms.record(took_ms, _told(host))


@_harmless
def looked_up(tool: Tool, hits: int, took_ms: float, *, host: str) -> None:
    """Count a tool that the language model used, by whether it found anything."""
    instruments = _instruments()
    if instruments is None:
        return
    instruments.lookups.add(1, _told(host, tool=tool, found=hits > 0))
    instruments.lookup_ms.record(took_ms, _told(host, tool=tool))


@_harmless
def call_opened(
    call: Observed | None, took_ms: float, *, host: str, degraded: bool = False
) -> None:
    """Count a call that begins, and watch it until `call_ended`, or until it is gone.

    Args:
        call: None where it could not be opened.
        took_ms: How long its caller waited for it.
        host: As in `count`.
        degraded: True where something was missing that it was to have.
    """
    instruments = _instruments()
    if instruments is None:
        return
    outcome = "failed" if call is None else "degraded" if degraded else "ok"
    told = _told(host, outcome=outcome)
    instruments.opened.add(1, told)
    instruments.open_ms.record(took_ms, told)
    if call is not None:
        _calls.add(call, host)


@_harmless
def call_ended(
    call: Observed,
    pushed: PushIndexResult | None,
    took_ms: float,
    *,
    host: str,
    missed: Missed = "nothing",
) -> None:
    """Count the end of a call, by what became of its push, and watch it no more.

    Args:
        call: As in `call_opened`; ended for good.
        pushed: What was pushed, if anything.
        took_ms: How long the host waited for it.
        host: As in `count`.
        missed: Why nothing was pushed: nothing was said, the push failed, the host did not wait, or it
            was not wanted.
    """
    instruments = _instruments()
    if instruments is None:
        return
    _calls.remove(call)
    outcome: str = missed
    if pushed is not None:
        outcome = "pushed" if pushed.merged_from is None else "merged"
        instruments.push_bytes.record(pushed.uploaded_bytes, _told(host))
    told = _told(host, outcome=outcome)
    instruments.pushes.add(1, told)
    if outcome != "nothing":
        instruments.push_ms.record(took_ms, told)


@_harmless
def recovered(results: Iterable[RecoveredCall], *, host: str) -> None:
    """Count what became of journals and pushes that somebody had left."""
    instruments = _instruments()
    if instruments is None:
        return
    for result in results:
        instruments.recoveries.add(1, _told(host, outcome=result.status))
        if result.status == "pushed":
            instruments.recovered_turns.add(result.turns, _told(host))


@_harmless
def not_recovered(*, host: str, late: bool) -> None:
    """Count a look for what was left that the cloud did not answer, or not in time."""
    instruments = _instruments()
    if instruments is not None:
        instruments.recoveries.add(1, _told(host, outcome="late" if late else "failed"))


# --- spans ---------------------------------------------------------------------------------------


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
