"""The Pipecat bot that needs keys is run without them: only its services and its line are replaced."""

from __future__ import annotations

import asyncio
import functools
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipecat.frames.frames import Frame
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat_moss_voice import testing
from pipecat_moss_voice.testing import ScriptedLLMService, SimulatedCall

from moss_voice import DocumentInfo, MossClient

EXAMPLE = Path(__file__).parents[1] / "examples" / "pipecat_bot.py"


class Deaf(FrameProcessor):
    """Stands for a recogniser: what it would have heard comes from the line."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        await self.push_frame(frame, direction)


class Transport:
    """A simulated call's line and loudspeaker, with the events of a client."""

    def __init__(self, call: SimulatedCall) -> None:
        self.call = call
        self.handlers: dict[str, Callable[..., Any]] = {}

    def input(self) -> FrameProcessor:
        return self.call._line

    def output(self) -> FrameProcessor:
        return self.call._speaker

    def add_event_handler(self, name: str, handler: Callable[..., Any]) -> None:
        self.handlers[name] = handler


class Runner:
    """Leaves the running of the worker to the simulated call."""

    over: asyncio.Event
    begun: asyncio.Event

    def __init__(self, **_: Any) -> None:
        pass

    async def add_workers(self, _: PipelineWorker) -> None:
        pass

    async def run(self) -> None:
        Runner.begun.set()
        await Runner.over.wait()


async def test_the_bot_greets_recalls_and_pushes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It greets who connects, answers from the FAQ, and the call is pushed when the client leaves."""
    monkeypatch.setenv("MOSS_VOICE_CLOUD", str(tmp_path / "cloud"))
    monkeypatch.setattr("pipecat_moss_voice.processor._shared", None)
    async with MossClient() as client:
        passage = DocumentInfo("refunds", "Refunds reach your card within five working days.")
        await client.create_index("support-faqs", [passage])
    Runner.over, Runner.begun = asyncio.Event(), asyncio.Event()
    model = ScriptedLLMService(lambda _: "good day")
    call = SimulatedCall(model)
    transport = Transport(call)

    def worker(pipeline: Any, **_: Any) -> PipelineWorker:
        call.pipeline = pipeline
        call.worker = PipelineWorker(pipeline, enable_rtvi=False, idle_timeout_secs=None)
        return call.worker

    def pair(context: Any, **_: Any) -> LLMContextAggregatorPair:
        call.context = context
        call.pair = LLMContextAggregatorPair(context, user_params=testing._user_params(20.0))
        return call.pair

    run_bot = runpy.run_path(str(EXAMPLE))["run_bot"]
    run_bot.__globals__.update(
        services=lambda: (Deaf(), model, call._voice),
        PipelineWorker=worker,
        LLMContextAggregatorPair=pair,
        WorkerRunner=Runner,
        MossVoiceMemory=functools.partial(
            run_bot.__globals__["MossVoiceMemory"],
            call_id="call-1",
            options={"deadline_ms": 30_000.0},
        ),
    )
    bot = asyncio.create_task(run_bot(transport))
    await asyncio.wait_for(Runner.begun.wait(), 30)
    call._listen()
    async with call:
        await call.start()
        await transport.handlers["on_client_connected"](transport, None)
        await call.settle()
        await call.caller_says("how long does a refund take to my card")
        await transport.handlers["on_client_disconnected"](transport, None)
    Runner.over.set()
    await bot
    assert "[support-faqs: refunds] Refunds reach your card" in str(model.prompts[-1])
    assert {"search_knowledge", "recall_call"} <= set(model.tools[-1])
    async with MossClient() as client, await client.session("call-1") as pushed:
        texts = [doc.text for doc in await pushed.get_docs()]
    assert texts == ["good day", "how long does a refund take to my card", "good day"]


def test_the_bot_is_one_short_file() -> None:
    """As Pipecat asks of community integrations: one file, under 90 lines."""
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 90
