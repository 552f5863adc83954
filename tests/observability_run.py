"""Calls in a process of its own, in both hosts and through every fault that is counted, for what they emit.

    python observability_run.py FOLDER WORD

WORD is said in the calls, and names one of them. Prints one JSON object: `metrics`, what an OpenTelemetry reader collected while a call was open and after
all of them; `prometheus`, what OpenTelemetry's own Prometheus exporter makes of it, where it is installed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from livekit.agents import Agent, AgentSession, llm
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.testing import ScriptedLLM, SimulatedCall, ToolCall
from loguru import logger
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricReader
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import Answer, ScriptedLLMService
from pipecat_moss_voice.testing import SimulatedCall as PipecatCall
from pipecat_moss_voice.testing import ToolCall as PipecatToolCall

from moss_voice import CallMemory, DocumentInfo, MossClient
from moss_voice.errors import IndexNotFoundError

PATIENT_MS = 30_000.0
WORD = sys.argv[2]
FAQ = [
    DocumentInfo("refunds", "A refund reaches your card within five working days."),
    DocumentInfo("hours", "The hotline is open from eight to eight."),
]


def typed_session(answer: Any = lambda _: "noted") -> AgentSession[Any]:
    return AgentSession(llm=ScriptedLLM(answer), vad=None, turn_handling={"turn_detection": None})


async def spoken(client: MossClient) -> None:
    """A call in LiveKit: interims, a filler, both tools, a push."""

    def answer(prompt: llm.ChatContext) -> str | ToolCall:
        last = prompt.items[-1]
        if isinstance(last, llm.ChatMessage) and "look up" in (last.raw_text_content or ""):
            return ToolCall("search_knowledge", {"query": "how long does a refund take"})
        if isinstance(last, llm.FunctionCallOutput) and last.name == "search_knowledge":
            return ToolCall("recall_call", {"query": "zebra"})
        return "noted"

    call = SimulatedCall(ScriptedLLM(answer), speed=10)
    await moss_voice.attach(
        call.session,
        client,
        call_id=f"call of {WORD}",
        knowledge=["faq"],
        tools=True,
        window=2,
        deadline_ms=PATIENT_MS,
    )
    async with call:
        await call.start(Agent(instructions=""))
        await call.caller_says(f"my password is {WORD}")
        await call.caller_says("how long does a refund take until it is on my card")
        await call.types("mm-hmm")
        await call.types("please look up the refund")


async def late(client: MossClient) -> None:
    """A model that has no answer before the deadline, and a push that nobody waits for."""
    session = typed_session()
    memory = await moss_voice.attach(session, client, call_id="late", push_timeout_s=0.0)
    await session.start(Agent(instructions=""))
    answered = threading.Event()

    def wait(*_: Any) -> Any:
        answered.wait(30.0)
        raise RuntimeError(WORD)

    with instead(memory, embed_query=wait):
        await session.run(user_input="what is the gate code")
        answered.set()
    await session.aclose()


async def broken(client: MossClient, cloud: Path) -> None:
    """A model that fails, and a cloud that is gone at the hang-up; its journal is then recovered."""

    def fail(*_: Any) -> Any:
        raise RuntimeError(WORD)

    session = typed_session()
    memory = await moss_voice.attach(session, client, call_id="broken", deadline_ms=PATIENT_MS)
    await session.start(Agent(instructions=""))
    with instead(memory, embed=fail, embed_query=fail):
        await session.run(user_input="what is the gate code")
        await memory.heard("it is on the back", "agent")  # after all that was said before it
    await session.run(user_input="and the door code")
    with gone(cloud):
        await session.aclose()
    session = typed_session()
    await moss_voice.attach(session, client, call_id="broken", open_timeout_s=30.0)
    await session.start(Agent(instructions=""))
    await session.aclose()


@contextmanager
def instead(memory: CallMemory, **methods: Any) -> Iterator[None]:
    """Give a call's session a model with other methods."""
    sound = memory.session._embedder
    made: Any = object.__new__(type("Unsound", (type(sound),), methods))
    made.__dict__.update(vars(sound))
    memory.session._embedder = made
    try:
        yield
    finally:
        memory.session._embedder = sound


@contextmanager
def gone(cloud: Path) -> Iterator[None]:
    """Put a file in the place of a cloud's directory, which can be neither read nor made then."""
    away = cloud.rename(cloud.with_name("away"))
    cloud.touch()
    try:
        yield
    finally:
        cloud.unlink()
        away.rename(cloud)


async def piped(client: MossClient) -> None:
    """A call in Pipecat, with a tool."""
    memory = MossVoiceMemory(
        client, call_id="piped", knowledge=["faq"], options={"deadline_ms": PATIENT_MS}
    )

    def answer(messages: Sequence[Any]) -> Answer:
        if messages[-1]["role"] == "tool":
            return "noted"
        return PipecatToolCall("search_knowledge", {"query": "when is the hotline open"})

    call = PipecatCall(
        ScriptedLLMService(answer),
        processors=[memory],
        tools=[memory.search_knowledge, memory.recall_call],
        speed=10,
    )
    async with call:
        await call.start()
        await call.caller_says("when are you open")


async def without_a_journal(folder: Path, collect: Any) -> Any:
    """A call without a journal, ended before its session; returns what is told while it is open."""
    no_folder = Path(__file__)
    async with MossClient(cloud=folder / "cloud", journal_path=no_folder / "j") as client:
        session = typed_session()
        memory = await moss_voice.attach(session, client, call_id="bare", open_timeout_s=30.0)
        await session.start(Agent(instructions=""))
        told = collect()
        await memory.end()
        await session.run(user_input="what is said now is lost")
        await session.aclose()
        unwanted = typed_session()
        memory = await moss_voice.attach(unwanted, client, call_id="unwanted", open_timeout_s=30.0)
        await unwanted.start(Agent(instructions=""))
        await memory.discard()
        await unwanted.aclose()
        with_missing = typed_session()
        try:
            await moss_voice.attach(with_missing, client, knowledge=["none"], open_timeout_s=30.0)
        except IndexNotFoundError:
            return told
        raise AssertionError("it was to be missing")


async def main(folder: Path) -> dict[str, Any]:
    readers: list[MetricReader] = [reader := InMemoryMetricReader()]
    registry: Any = None
    try:
        from opentelemetry.exporter.prometheus import (  # type: ignore[import-not-found,unused-ignore]
            PrometheusMetricReader,
        )
        from prometheus_client import CollectorRegistry, generate_latest
    except ImportError:
        pass
    else:
        registry = CollectorRegistry()
        readers.append(PrometheusMetricReader(scope_info_enabled=False, registry=registry))
    metrics.set_meter_provider(provider := MeterProvider(readers))

    def collect() -> Any:
        data = reader.get_metrics_data()
        return json.loads(data.to_json()) if data is not None else {}

    cloud = folder / "cloud"
    async with MossClient(cloud=cloud, journal_path=folder / "journal") as client:
        await client.create_index("faq", FAQ)
        await spoken(client)
        await late(client)
        await broken(client, cloud)
        await piped(client)
    told = [await without_a_journal(folder, collect), collect()]
    text = generate_latest(registry).decode() if registry is not None else None
    provider.shutdown()
    return {"metrics": told, "prometheus": text}


if __name__ == "__main__":
    logger.remove()  # Pipecat tells of every frame
    logging.disable()
    sys.stdout.write(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
