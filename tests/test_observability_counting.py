"""Counting a call never costs it anything: not a fault, not a word, not its life."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from moss_voice import CallContext, MossClient, PushIndexResult, RecoveredCall
from moss_voice.call import observe
from moss_voice.call.context import tokens
from moss_voice.live import begin_call, end_call


class Counts(NamedTuple):
    failed: int


class Call:
    """As much of a call as is observed."""

    def __init__(self) -> None:
        self.durable = True
        self.counters = Counts(0)


PUSHED = PushIndexResult("job", "call", 1, "completed", uploaded_bytes=10)
EVENTS: list[tuple[str, Callable[[], None]]] = [
    ("recall", lambda: observe.count(CallContext("block", [], 1.0), host="livekit")),
    ("turn", lambda: observe.turn_kept("caller", 1.0, host="livekit")),
    ("lookup", lambda: observe.looked_up("recall_call", 1, 1.0, host="livekit")),
    ("open", lambda: observe.call_opened(Call(), 1.0, host="livekit")),
    ("end", lambda: observe.call_ended(Call(), PUSHED, 1.0, host="livekit")),
    ("recovery", lambda: observe.recovered([RecoveredCall("c", 1, 0, "pushed")], host="livekit")),
    ("no recovery", lambda: observe.not_recovered(host="livekit", late=True)),
]


@pytest.fixture
def reader(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryMetricReader]:
    """Read what is counted from here on, whatever provider the process has."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("opentelemetry.metrics.get_meter", provider.get_meter)
    monkeypatch.setattr(observe, "_calls", observe._Calls())
    observe._instruments.cache_clear()
    yield reader
    observe._instruments.cache_clear()
    provider.shutdown()


def collected(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: list(metric.data.data_points)
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


def value(reader: InMemoryMetricReader, name: str) -> dict[str, Any]:
    """Return a metric's values by framework."""
    return {str(p.attributes["framework"]): p.value for p in collected(reader)[name]}


@pytest.mark.parametrize("event", [event for _, event in EVENTS], ids=[name for name, _ in EVENTS])
def test_without_opentelemetry_nothing_happens(
    event: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API is optional: nothing is counted, nothing raised, and no call watched."""
    monkeypatch.setattr(observe, "_calls", observe._Calls())
    monkeypatch.setitem(__import__("sys").modules, "opentelemetry", None)
    observe._instruments.cache_clear()
    try:
        event()
        assert observe._instruments() is None
        assert observe._calls.look() == []
    finally:
        observe._instruments.cache_clear()


@pytest.mark.parametrize("event", [event for _, event in EVENTS], ids=[name for name, _ in EVENTS])
def test_an_sdk_that_fails_fails_nobody(
    event: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an SDK raises, whether its instruments are made or used, stays inside."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    monkeypatch.setattr(observe, "_instruments", Broken)
    event()

    def unmade() -> Any:
        raise RuntimeError

    monkeypatch.setattr(observe, "_instruments", unmade)
    event()


def test_an_api_that_takes_no_advice_is_counted_by() -> None:
    """Before 1.30 a histogram's bounds could not be given: it is made without them."""
    made: list[tuple[str, ...]] = []

    class Meter:
        def create_histogram(self, name: str, unit: str, description: str) -> str:
            made.append((name, unit, description))
            return name

    meter: Any = Meter()
    histogram: Any = observe._histogram(meter, "name", "ms", "what", (1, 2))
    assert histogram == "name"
    assert made == [("name", "ms", "what")]


def test_tokens_are_those_of_the_budget(reader: InMemoryMetricReader) -> None:
    """The size that is told of a block is the one that its budget is counted in."""
    texts = ["", "a", "abcd", "abcde", "größer als gedacht", "\ud800 broken", "x" * 999]
    for text in texts:
        observe.count(CallContext(text, [], 1.0), host="livekit")
    (point,) = collected(reader)["moss_voice.recall.tokens"]
    assert point.sum == sum(map(tokens, texts))


def test_a_skipped_context_has_no_duration(reader: InMemoryMetricReader) -> None:
    """Nothing was looked up: it would only flatter the percentiles."""
    observe.count(CallContext("", [], 0.01, "skipped"), host="livekit")
    found = collected(reader)
    assert [point.value for point in found["moss_voice.recalls"]] == [1]
    assert "moss_voice.recall.duration" not in found


def test_speakers_names_are_no_labels(reader: InMemoryMetricReader) -> None:
    """Whoever else speaks is `other`: neither a person nor an endless list comes into a label."""
    for name in ("caller", "agent", "Ines Ibarra", "supervisor"):
        observe.turn_kept(name, 1.0, host="livekit")
    points = collected(reader)["moss_voice.turns"]
    assert {p.attributes["speaker"]: p.value for p in points} == {
        "caller": 1, "agent": 1, "other": 2
    }  # fmt: skip


def test_a_call_is_not_kept_alive(reader: InMemoryMetricReader) -> None:
    """A call that nobody ended is forgotten once it is gone; its gauges go to 0."""
    call = Call()
    observe.call_opened(call, 1.0, host="livekit")
    assert value(reader, "moss_voice.calls.live") == {"livekit": 1}
    del call
    gc.collect()
    assert value(reader, "moss_voice.calls.live") == {"livekit": 0}
    assert value(reader, "moss_voice.calls.not_durable") == {"livekit": 0}
    assert observe._calls._open == []


def test_a_total_of_faults_never_falls(reader: InMemoryMetricReader) -> None:
    """Faults of calls that ended, or that are gone without an end, stay counted, each once."""
    lost, ended, going_on = Call(), Call(), Call()
    for call in (lost, ended, going_on):
        observe.call_opened(call, 1.0, host="livekit")
    lost.counters, going_on.counters = Counts(1), Counts(100)
    assert value(reader, "moss_voice.faults") == {"livekit": 101}
    ended.counters = Counts(10)
    observe.call_ended(ended, None, 1.0, host="livekit")
    observe.call_ended(ended, None, 1.0, host="livekit")  # again, as no host should
    ended.counters = Counts(9999)
    del lost, call
    gc.collect()
    assert value(reader, "moss_voice.faults") == {"livekit": 111}
    assert value(reader, "moss_voice.calls.live") == {"livekit": 1}
    assert value(reader, "moss_voice.faults") == {"livekit": 111}


def test_durability_is_read_when_it_is_asked_for(reader: InMemoryMetricReader) -> None:
    """A journal that fails in the middle of a call shows at the next collection."""
    sound, failing = Call(), Call()
    observe.call_opened(sound, 1.0, host="livekit")
    observe.call_opened(failing, 1.0, host="pipecat")
    assert value(reader, "moss_voice.calls.not_durable") == {"livekit": 0, "pipecat": 0}
    failing.durable = False
    assert value(reader, "moss_voice.calls.not_durable") == {"livekit": 0, "pipecat": 1}


def test_a_reader_in_its_own_thread_meets_calls_that_come_and_go(
    reader: InMemoryMetricReader,
) -> None:
    """Collecting while calls are opened and ended in another thread raises nothing and loses none."""
    stop, faults = threading.Event(), 0

    def come_and_go() -> None:
        nonlocal faults
        while not stop.is_set():
            call = Call()
            observe.call_opened(call, 1.0, host="livekit")
            call.counters = Counts(1)
            faults += 1
            observe.call_ended(call, None, 1.0, host="livekit")

    observe._instruments()
    thread = threading.Thread(target=come_and_go)
    thread.start()
    seen = [0]
    for _ in range(500):
        observe._calls.look()
        seen.append(observe._calls.failed().get("livekit", 0))
    stop.set()
    thread.join()
    assert seen == sorted(seen)
    assert value(reader, "moss_voice.faults") == {"livekit": faults}
    assert value(reader, "moss_voice.calls.live") == {"livekit": 0}


async def test_a_real_call_is_watched_from_its_opening_to_its_end(
    reader: InMemoryMetricReader, tmp_path: Any
) -> None:
    """What a plugin opens and ends is counted once; a merge is told apart from a plain push."""
    async with (
        MossClient(cloud=tmp_path / "c", journal_path=tmp_path / "1") as one,
        MossClient(cloud=tmp_path / "c", journal_path=tmp_path / "2") as two,
    ):
        options = {"host": "livekit", "open_timeout_s": 30.0}
        first = await begin_call(one, "call", **options)  # type: ignore[arg-type]
        second = await begin_call(two, "call", **options)  # type: ignore[arg-type]
        await first.heard("my gate code is 8842")
        await second.heard("the door is green")
        assert value(reader, "moss_voice.calls.live") == {"livekit": 2}
        for call in (first, second):
            await end_call(call, keeping=set(), host="livekit")
    found = collected(reader)
    assert {p.attributes["outcome"]: p.value for p in found["moss_voice.pushes"]} == {
        "pushed": 1, "merged": 1
    }  # fmt: skip
    assert [p.value for p in found["moss_voice.calls.opened"]] == [2]
    assert [p.value for p in found["moss_voice.calls.live"]] == [0]
    (sizes,) = found["moss_voice.push.size"]
    assert sizes.count == 2
    assert sizes.min > 500
    assert "8842" not in str(found)
