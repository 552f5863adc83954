"""What the plugin reads from a chat context and does to a copy of it: pure functions, by tables."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from livekit.agents import Agent, AgentSession, llm
from livekit.agents.telemetry import set_tracer_provider
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.prompt import (
    carry_back,
    is_ours,
    read_prompt,
    shown_to_llm,
    with_block,
)
from livekit.plugins.moss_voice.testing import ScriptedLLM, SimulatedCall
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from moss_voice import MossClient
from moss_voice.call import observe

LETTERS = {"s": "system", "d": "developer", "u": "user", "a": "assistant"}


def context(letters: str) -> llm.ChatContext:
    """Build a chat context: s, d, u, a are messages, c a tool call, o its output, h a handoff.

    Each item is called by its letter and place: `u3`.
    """
    items: list[llm.ChatItem] = []
    for place, letter in enumerate(letters):
        name, at = f"{letter}{place}", float(place)
        if letter in LETTERS:
            items.append(
                llm.ChatMessage(id=name, role=LETTERS[letter], content=[name], created_at=at)  # type: ignore[arg-type]
            )
        elif letter == "c":
            items.append(
                llm.FunctionCall(id=name, call_id="x", name="f", arguments="{}", created_at=at)
            )
        elif letter == "o":
            items.append(
                llm.FunctionCallOutput(
                    id=name, call_id="x", name="f", output=name, is_error=False, created_at=at
                )
            )
        else:
            items.append(llm.AgentHandoff(id=name, new_agent_id="b", created_at=at))
    return llm.ChatContext(items)


def names(chat_ctx: llm.ChatContext) -> list[str]:
    return ["*" if is_ours(item) else item.id for item in chat_ctx.items]


@pytest.mark.parametrize(
    ("letters", "text", "shown"),
    [
        ("su", "u1", "s0 * u1"),
        ("suau", "u3", "s0 u1 a2 * u3"),
        # Two turns without an answer between them: before the last.
        ("suu", "u2", "s0 u1 * u2"),
        # A tool reply, with and without a word before the call.
        ("suco", "u1", "s0 * u1 c2 o3"),
        ("suaco", "u1", "s0 * u1 a2 c3 o4"),
        ("suacoco", "u1", "s0 * u1 a2 c3 o4 c5 o6"),
        # Orders for this reply come after the user's words.
        ("sus", "u1", "s0 * u1 s2"),
        ("suh", "u1", "s0 * u1 h2"),
        # The agent speaks of its own accord.
        ("s", None, "s0 *"),
        ("ss", None, "s0 * s1"),
        ("sd", None, "s0 * d1"),
        ("sua", None, "s0 u1 a2 *"),
        ("suas", None, "s0 u1 a2 * s3"),
        # It had called a tool for the turn before, and has answered since.
        ("sucoa", None, "s0 u1 c2 o3 a4 *"),
        ("u", "u0", "* u0"),
        ("", None, "*"),
    ],
)
def test_block_stands_just_before_what_it_is_for(
    letters: str, text: str | None, shown: str
) -> None:
    """By hand: which words a reply is due to, and where the block goes."""
    chat_ctx = context(letters)
    prompt = read_prompt(chat_ctx, turns=())
    assert prompt.text == text
    block = with_block(chat_ctx, prompt, "recalled")
    assert " ".join(names(chat_ctx)) == shown
    assert block.role == "user"


@pytest.mark.parametrize("letters", ["su", "suau", "suco", "suas", "s"])
def test_a_host_that_sorts_by_time_leaves_the_block_in_place(letters: str) -> None:
    """LiveKit inserts by `created_at`; so would a user's own node."""
    chat_ctx = context(letters)
    with_block(chat_ctx, read_prompt(chat_ctx, turns=()), "recalled")
    before = names(chat_ctx)
    chat_ctx.items.sort(key=lambda item: item.created_at)
    assert names(chat_ctx) == before


def test_visible_are_messages_and_seen_is_what_is_no_turn() -> None:
    """Turns are known by id; tool outputs, instructions and foreign messages by their text."""
    prompt = read_prompt(context("suacou"), turns={"u1", "a2"})
    assert prompt.visible == {"s0", "u1", "a2", "u5"}
    assert prompt.seen == ("s0", "o4")
    assert "a2" in read_prompt(context("suau"), turns={"u1"}).seen


@pytest.mark.parametrize(
    ("letters", "window", "shown"),
    [
        ("suauaua", None, "s0 u1 a2 u3 a4 u5 a6"),
        ("suauau", 2, "s0 a4 u5"),
        ("suauau", 3, "s0 u3 a4 u5"),
        ("suauau", 99, "s0 u1 a2 u3 a4 u5"),
        # The turn that is replied to stays whole, whatever its tools have answered.
        ("suaucoco", 2, "s0 u3 c4 o5 c6 o7"),
        # No output without its call.
        ("sucoau", 3, "s0 a4 u5"),
    ],
)
def test_window_keeps_the_end_and_the_instructions(
    letters: str, window: int | None, shown: str
) -> None:
    """By hand: the last N items, never less than the current turn."""
    original = context(letters)
    assert " ".join(names(shown_to_llm(original, window=window))) == shown
    assert names(original) == names(context(letters))


def test_a_block_in_a_history_is_not_shown_again() -> None:
    """Whoever stored our copy as history does not get two blocks."""
    chat_ctx = context("suau")
    with_block(chat_ctx, read_prompt(chat_ctx, turns=()), "old")
    assert names(shown_to_llm(chat_ctx, window=None)) == ["s0", "u1", "a2", "u3"]


def _edit(items: list[Any], edits: Sequence[tuple[str, int]], label: str) -> None:
    """Insert and remove as a user's node might."""
    for number, (kind, where) in enumerate(edits):
        if kind == "remove" and items:
            del items[where % len(items)]
        elif kind == "insert":
            new = llm.ChatMessage(id=f"{label}{number}", role="system", content=["x"])
            items.insert(where % (len(items) + 1), new)


@given(
    st.text("uaco", min_size=1, max_size=8),
    st.lists(st.tuples(st.sampled_from(["insert", "remove"]), st.integers(0, 20)), max_size=5),
)
def test_changes_to_the_copy_are_carried_back(letters: str, edits: list[tuple[str, int]]) -> None:
    """Without a window, the original ends up as the copy does, the block left out."""
    original = context("s" + letters)
    shown = shown_to_llm(original, window=None)
    prompt = read_prompt(shown, turns=())
    with_block(shown, prompt, "recalled")
    before = list(shown.items)
    ours = next(item for item in shown.items if is_ours(item))
    items = [item for item in shown.items if item is not ours]
    _edit(items, edits, "new")
    shown.items[:] = [*items, ours]
    carry_back(original, shown, before)
    assert names(original) == [item.id for item in items]


def test_what_a_window_left_out_stays_in_the_original() -> None:
    """A node that adds to a windowed copy does not cost the history of the turn."""
    original = context("suauau")
    shown = shown_to_llm(original, window=2)
    before = list(shown.items)
    shown.add_message(role="system", content="be kind")
    removed = shown.items.pop(1)
    carry_back(original, shown, before)
    assert removed.id == "a4"
    assert names(original)[:-1] == ["s0", "u1", "a2", "u3", "u5"]
    assert original.items[-1] is shown.items[-1]


# --- spans and metrics -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reader() -> InMemoryMetricReader:
    """A reader of the process's metrics, which can be set up once."""
    reader = InMemoryMetricReader()
    metrics.set_meter_provider(MeterProvider([reader]))
    observe._instruments.cache_clear()
    return reader


@pytest.fixture
def spans() -> Iterator[InMemorySpanExporter]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    set_tracer_provider(provider)
    yield exporter
    set_tracer_provider(trace.NoOpTracerProvider())


def _ancestors(span: ReadableSpan, by_id: dict[int, ReadableSpan]) -> list[str]:
    found = []
    while span.parent is not None and span.parent.span_id in by_id:
        span = by_id[span.parent.span_id]
        found.append(span.name)
    return found


@pytest.mark.parametrize("trace_text", [False, True])
async def test_a_recall_is_a_span_under_the_agents_turn(
    spans: InMemorySpanExporter, tmp_path: Any, trace_text: bool
) -> None:
    """It nests in `llm_node`, tells counts and sources, and text only where asked."""
    async with MossClient(cloud=tmp_path / "c", journal_path=tmp_path / "j") as client:
        call = SimulatedCall(ScriptedLLM(lambda _: "noted"))
        await moss_voice.attach(
            call.session,
            client,
            call_id="spans",
            window=1,
            deadline_ms=30_000,
            trace_text=trace_text,
        )
        async with call:
            await call.start(Agent(instructions=""))
            await call.caller_says("the gate code is eight eight four two")
            await call.caller_says("what is the gate code")
    finished = spans.get_finished_spans()
    by_id = {span.context.span_id: span for span in finished if span.context is not None}
    recalls = [span for span in finished if span.name == "moss_voice.recall"]
    assert len(recalls) == 2
    for span in recalls:
        assert _ancestors(span, by_id)[:3] == ["llm_node", "agent_turn", "agent_session"]
    told: dict[str, Any] = dict(recalls[-1].attributes or {})
    assert told["moss_voice.outcome"] == "ok"
    assert told["moss_voice.hits"] == 1
    (source,) = told["moss_voice.sources"]
    assert str(source).startswith("turn 1, caller")
    assert told["gen_ai.operation.name"] == "search_memory"
    (semantic,), (rank,) = told["moss_voice.parts.semantic"], told["moss_voice.rank_scores"]
    assert 0 < semantic < 1
    assert isinstance(rank, float)
    assert "moss_voice.need" not in told  # there is no knowledge
    assert ("eight eight four two" in str(told)) is trace_text
    assert ("what is the gate code" in str(told)) is trace_text


async def test_recalls_are_counted(reader: InMemoryMetricReader, tmp_path: Any) -> None:
    """Recalls by outcome, their time and their hits reach OpenTelemetry's metrics; no text does."""
    before = _points(reader)
    async with MossClient(cloud=tmp_path / "c", journal_path=tmp_path / "j") as client:
        session: AgentSession[Any] = AgentSession(
            llm=ScriptedLLM(lambda _: "noted"), vad=None, turn_handling={"turn_detection": None}
        )
        await moss_voice.attach(session, client, call_id="m", window=1, deadline_ms=30_000)
        await session.start(Agent(instructions=""))
        for line in ("the gate code is 8842", "what is the gate code", "mm-hmm"):
            await session.run(user_input=line)
        await session.aclose()
    after = _points(reader)
    assert (
        after["moss_voice.recalls"]["ok"] - before.get("moss_voice.recalls", {}).get("ok", 0) == 2
    )
    assert after["moss_voice.recalls"]["skipped"] >= 1
    assert after["moss_voice.recall.duration"]["ok"] >= 2
    assert "gate" not in str(reader.get_metrics_data())


def _points(reader: InMemoryMetricReader) -> dict[str, dict[str, float]]:
    """Return what each instrument counted, by outcome."""
    data = reader.get_metrics_data()
    points: dict[str, dict[str, float]] = {}
    for resource in data.resource_metrics if data is not None else ():
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for point in metric.data.data_points:
                    outcome = str((point.attributes or {}).get("outcome", ""))
                    value = getattr(point, "value", None)
                    count = value if value is not None else getattr(point, "count", 0)
                    of_metric = points.setdefault(metric.name, {})
                    of_metric[outcome] = of_metric.get(outcome, 0) + count
    return points


def test_observing_without_opentelemetry_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The API is optional for the library itself."""
    import builtins

    from moss_voice import CallContext

    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    observe._instruments.cache_clear()
    try:
        monkeypatch.setattr(builtins, "__import__", without)
        observe.count(CallContext("", [], 1.0), host="livekit")
    finally:
        monkeypatch.undo()
        observe._instruments.cache_clear()


async def test_two_calls_side_by_side_keep_their_words_apart(tmp_path: Any) -> None:
    """Sessions in one process and one client never recall each other's turns."""
    async with MossClient(cloud=tmp_path / "c", journal_path=tmp_path / "j") as client:

        async def serve(name: str, code: str) -> ScriptedLLM:
            model = ScriptedLLM(lambda _: "noted")
            session: AgentSession[Any] = AgentSession(
                llm=model, vad=None, turn_handling={"turn_detection": None}
            )
            await moss_voice.attach(session, client, call_id=name, window=1, deadline_ms=30_000)
            await session.start(Agent(instructions=""))
            for line in (f"the gate code is {code}", "nice weather", "what is the gate code"):
                await session.run(user_input=line)
            await session.aclose()
            return model

        codes = ["1111", "2222", "3333", "4444"]
        models = await asyncio.gather(*(serve(f"call-{code}", code) for code in codes))
    for model, code in zip(models, codes, strict=True):
        shown = " ".join(m.raw_text_content or "" for m in model.prompts[-1].messages())
        assert [other for other in codes if other in shown] == [code]
