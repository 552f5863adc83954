"""LOAD: calls beside each other in one process, at the pace at which people speak.

The calls are those of the shared data with their own timing, or where a call has none at 2.7 words/s and
0.5 s between turns (`synthetic`). Every caller begins somewhere in a call, and goes on with the next. A
word at the head of each text, different in every call, keeps the model's cache from answering for texts
that another caller has said.

What a host does for a caller's turn: an interim result every 0.6 s; in four of five turns one with the
last word 0.2 s before the end, as a recogniser waits for silence before it commits itself; at the end
the final result, and at once the question for context and, beside it, the turn itself. The delay counts
from the instant at which that was due, so that an event loop that we hold up counts against us; so does
the machine's own lateness, which `idle_lag` tells of before any call is there. `asked_to_answered` has
neither. Both a turn whose words an interim had and one whose end nobody foresaw come up.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks.corpus import data_directory
from benchmarks.load.passages import NAME
from benchmarks.load.process import Row, answer, cpu_s, fresh, grown_mb, latency, private_mb
from benchmarks.run import client_in, milliseconds, settled
from moss_voice import CallMemory, MossClient, demo
from moss_voice.calls import CallScript, read_calls
from moss_voice.text import is_filler

CALLS = (1, 10, 25, 50, 100, 200)
SECONDS = 60.0

# What is promised of a level: of its delays, and of the share of missed deadlines.
MOST_P99_MS = 20.0
MOST_LATE = 0.001

_INTERIM_EVERY_S = 0.6
_LAST_INTERIM_S = 0.2
_FORESEEN_SHARE = 0.8
# Turns that the LLM sees anyway.
_VISIBLE = 12
_PROBE_S = 0.010
_WARM_UP_S = 5.0


class Event(NamedTuple):
    """What a host tells the memory at some second of a call."""

    at_s: float
    kind: Literal["interim", "final", "agent"]
    text: str
    foreseen: bool = False


@dataclass
class Tally:
    """What was measured in one process, in milliseconds."""

    counting: bool = False
    delay: list[float] = field(default_factory=list)
    answer: list[float] = field(default_factory=list)
    unforeseen: list[float] = field(default_factory=list)
    heard: list[float] = field(default_factory=list)
    opened: list[float] = field(default_factory=list)
    ended: list[float] = field(default_factory=list)
    lag: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    prefetched: int = 0
    interims: int = 0
    faults: list[BaseException] = field(default_factory=list)


def levels(folder: Path, calls: Sequence[int], *, seconds: float, speed: float) -> Row:
    """Measure every number of calls; the folder's cloud and cache hold the knowledge."""
    rows = [
        fresh(
            "benchmarks.load.replay",
            "level",
            folder=str(folder),
            calls=n,
            seconds=seconds,
            speed=speed,
        )
        for n in calls
    ]
    held = [
        row["calls"]
        for row in rows
        if row["delay"].get("p99", 0.0) < MOST_P99_MS and row["late_share"] < MOST_LATE
    ]
    report: Row = {"levels": rows, "most_calls_held": max(held, default=0)}
    if len(rows) > 1 and rows[-1]["private_mb"] is not None:
        fewer, more = rows[-2:]
        report["mb_per_further_call"] = round(
            (more["private_mb"] - fewer["private_mb"]) / (more["calls"] - fewer["calls"]), 3
        )
    return report


def scripts() -> list[CallScript]:
    """Return the calls of the shared data, or that of the demo."""
    data = data_directory()
    if data is None:
        return [demo.call()]
    return list(read_calls(data / "calls" / "calls.dev.jsonl"))


def events(script: CallScript, mark: str, rng: random.Random) -> list[Event]:
    """Return what a host is told in a call, in order of time; each text begins with the mark."""
    told: list[Event] = []
    for turn in script.spoken:
        words = turn.text.split()
        if not words:
            continue
        if not is_filler(turn.text):
            words = [mark, *words]
        text = " ".join(words)
        if turn.speaker != "caller":
            told.append(Event(turn.end_s, "agent", text))
            continue
        foreseen = rng.random() < _FORESEEN_SHARE
        told += _interims(turn.start_s, turn.end_s, words, foreseen=foreseen)
        told.append(Event(turn.end_s, "final", text, foreseen))
    return sorted(told, key=lambda event: event.at_s)


def _interims(
    start_s: float, end_s: float, words: Sequence[str], *, foreseen: bool
) -> Iterator[Event]:
    length_s = end_s - start_s
    last_s = max(0.0, length_s - _LAST_INTERIM_S)
    told = 0
    for number in count(1):
        after_s = number * _INTERIM_EVERY_S
        if after_s >= last_s:
            break
        said = int(len(words) * after_s / length_s)
        if said > told:
            told = said
            yield Event(start_s + after_s, "interim", " ".join(words[:said]))
    if foreseen:
        yield Event(start_s + last_s, "interim", " ".join(words))


class Caller:
    """One of the callers: speaks call after call, from somewhere in the first one."""

    def __init__(
        self,
        number: int,
        client: MossClient,
        tally: Tally,
        calls: Sequence[CallScript],
        speed: float,
    ) -> None:
        self._number = number
        self._client = client
        self._tally = tally
        self._calls = calls
        self._speed = speed
        self._rng = random.Random(number)
        self._visible: deque[str] = deque(maxlen=_VISIBLE)
        self._asking: set[asyncio.Task[None]] = set()
        self._lap = 0
        self.memory: CallMemory | None = None

    async def open(self) -> None:
        started = time.perf_counter()
        name = f"call-{self._number}-{self._lap}"
        self.memory = await self._client.call(name, knowledge=[NAME])
        self._tally.opened.append(milliseconds(started))
        self._visible.clear()

    async def speak(self) -> None:
        while True:
            script = self._calls[(self._number + self._lap) % len(self._calls)]
            told = events(script, f"{self._number}{self._lap:02}", self._rng)
            from_s = self._rng.uniform(0.0, told[-1].at_s) if self._lap == 0 else 0.0
            began = time.perf_counter() - from_s / self._speed
            for event in told:
                if event.at_s < from_s:
                    continue
                due = began + event.at_s / self._speed
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                self._tell(event, due)
            if self._asking:
                await asyncio.wait(self._asking)
            started = time.perf_counter()
            assert self.memory is not None
            await self.memory.end()
            self._tally.ended.append(milliseconds(started))
            self._lap += 1
            await self.open()

    def _tell(self, event: Event, due: float) -> None:
        assert self.memory is not None
        if event.kind == "interim":
            self._tally.interims += self._tally.counting
            self.memory.hearing(event.text)
            return
        if event.kind == "final":
            # What `moss_voice.live.Listener` does with a recogniser's final.
            self.memory.hearing(event.text)
            self.memory.uttered(event.text)
            self._begin(self._ask(self.memory, event, due))
        speaker = "caller" if event.kind == "final" else "agent"
        self._begin(self._hear(self.memory, event.text, speaker))

    def _begin(self, asking: Awaitable[None]) -> None:
        task = asyncio.ensure_future(asking)
        self._asking.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        fault = None if task.cancelled() else task.exception()
        if fault is not None:
            self._tally.faults.append(fault)

    async def _ask(self, memory: CallMemory, event: Event, due: float) -> None:
        asked = time.perf_counter()
        context = await memory.context(event.text, visible=tuple(self._visible))
        if not self._tally.counting:
            return
        self._tally.outcomes[context.outcome] += 1
        if context.outcome != "skipped":
            self._tally.delay.append(milliseconds(due))
            answered = milliseconds(asked)
            self._tally.answer.append(answered)
            if not event.foreseen:
                self._tally.unforeseen.append(answered)
            self._tally.prefetched += context.prefetched

    async def _hear(self, memory: CallMemory, text: str, speaker: str) -> None:
        started = time.perf_counter()
        kept = await memory.heard(text, speaker)
        if self._tally.counting:
            self._tally.heard.append(milliseconds(started))
        if kept is not None:
            self._visible.append(kept)


async def _probe(tally: Tally) -> None:
    """Note how late the event loop wakes whoever sleeps."""
    while True:
        started = time.perf_counter()
        await asyncio.sleep(_PROBE_S)
        if tally.counting:
            tally.lag.append(milliseconds(started) - _PROBE_S * 1000.0)


async def _idle_lag(seconds: float) -> Row:
    """Return how late an event loop wakes that has nothing to do: the machine's own share."""
    tally = Tally(counting=True)
    probe = asyncio.create_task(_probe(tally))
    await asyncio.sleep(seconds)
    probe.cancel()
    return latency(tally.lag)


async def level(folder: str, calls: int, seconds: float, speed: float) -> Row:
    """Measure so many calls beside each other for a while."""
    tally = Tally()
    played = scripts()
    async with client_in(Path(folder)) as client:
        await client.load_index(NAME)
        await settled(client, NAME)
        # A first call, for what is set up once.
        first = Caller(calls, client, Tally(), played, speed)
        await first.open()
        assert first.memory is not None
        await first.memory.discard()
        idle = await _idle_lag(min(_WARM_UP_S, seconds / 4))
        before = private_mb()
        callers = [Caller(number, client, tally, played, speed) for number in range(calls)]
        for caller in callers:
            await caller.open()
        tasks = [asyncio.create_task(caller.speak()) for caller in callers]
        tasks.append(asyncio.create_task(_probe(tally)))
        await asyncio.sleep(min(_WARM_UP_S, seconds / 4))
        tally.counting = True
        started, used = time.perf_counter(), cpu_s()
        done, _ = await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        wall_s, busy_s = time.perf_counter() - started, cpu_s() - used
        tally.counting = False
        per_call, private = grown_mb(before, per=calls, digits=3), private_mb()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in done:
            task.result()  # raises what went wrong
        if tally.faults:
            raise tally.faults[0]
        for caller in callers:
            if caller.memory is not None:
                await caller.memory.discard()
    cores = busy_s / wall_s
    asked = sum(tally.outcomes.values()) - tally.outcomes["skipped"]
    return {
        "calls": calls,
        "speed": speed,
        "timing": dict(Counter(script.timing for script in played)),
        "seconds": round(wall_s, 1),
        "delay": latency(tally.delay),
        "asked_to_answered": latency(tally.answer),
        "asked_to_answered_unforeseen": latency(tally.unforeseen),
        "heard": latency(tally.heard),
        "idle_lag": idle,
        "loop_lag": latency(tally.lag),
        "open": latency(tally.opened),
        "end": latency(tally.ended),
        "interims": tally.interims,
        "outcomes": dict(tally.outcomes),
        "late": tally.outcomes["late"],
        "late_share": round(tally.outcomes["late"] / max(1, asked), 5),
        "prefetched_share": round(tally.prefetched / max(1, asked), 3),
        "cores_used": round(cores, 3),
        "calls_per_core": round(calls / cores, 1),
        "private_mb": None if private is None else round(private, 1),
        "mb_per_call": per_call,
    }


if __name__ == "__main__":
    answer(level)
