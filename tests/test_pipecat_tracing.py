"""A recall is a span under the turn of Pipecat's own tracing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from pipecat.observers.user_bot_latency_observer import UserBotLatencyObserver
from pipecat.pipeline.worker import PipelineParams
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import ScriptedLLMService, SimulatedCall

from moss_voice import DocumentInfo, MossClient


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    """What the process's tracer, which can be set once, has finished."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    return exporter


@pytest.mark.parametrize("send_text", [False, True])
async def test_a_recall_nests_under_its_turn(
    spans: InMemorySpanExporter, tmp_path: Path, send_text: bool
) -> None:
    """The span has the turn for its parent, counts and sources, and text only if asked."""
    spans.clear()
    async with MossClient(cloud=tmp_path / "cloud", journal_path=tmp_path / "j") as client:
        await client.create_index("faq", [DocumentInfo("refund", "A refund takes five days.")])
        memory = MossVoiceMemory(
            client,
            call_id="call",
            knowledge=["faq"],
            send_text=send_text,
            options={"deadline_ms": 30_000.0},
        )
        call = SimulatedCall(
            ScriptedLLMService(lambda _: "five days"),
            processors=[memory],
            worker_options={"enable_tracing": True, "enable_turn_tracking": True},
        )
        async with call:
            await call.start()
            await call.caller_says("how long does a refund take")
    finished = spans.get_finished_spans()
    by_id = {span.context.span_id: span for span in finished if span.context is not None}
    (recall,) = [span for span in finished if span.name == "moss_voice.recall"]
    assert recall.parent is not None
    assert by_id[recall.parent.span_id].name == "turn"
    told: dict[str, Any] = dict(recall.attributes or {})
    assert told["moss_voice.outcome"] == "ok"
    assert told["moss_voice.sources"] == ("faq: refund",)
    assert told["moss_voice.need"] == 1.0  # of one passage nobody can tell what is far from it
    (rank,), (keyword,) = told["moss_voice.rank_scores"], told["moss_voice.parts.keyword"]
    assert 0 < keyword < rank
    assert ("how long does a refund take" in str(told)) is send_text


async def test_a_recall_is_in_the_latency_breakdown(tmp_path: Path) -> None:
    """Pipecat's own observer lists our part of the time from the caller's words to the bot's."""
    observer = UserBotLatencyObserver()
    broken_down = []
    observer.add_event_handler(
        "on_latency_breakdown", lambda _, breakdown: broken_down.append(breakdown)
    )
    async with MossClient(cloud=tmp_path / "cloud", journal_path=tmp_path / "j") as client:
        memory = MossVoiceMemory(
            client, call_id="call", name="Memory", options={"deadline_ms": 30_000.0}
        )
        call = SimulatedCall(
            ScriptedLLMService(lambda _: "five days"),
            processors=[memory],
            worker_options={
                "params": PipelineParams(enable_metrics=True),
                "observers": [observer],
            },
        )
        async with call:
            await call.start()
            await call.caller_says("how long does a refund take")
    assert "Memory" in str(broken_down)
