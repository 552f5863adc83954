"""Every way in which a pipeline ends: what was spoken is stored once, and nothing of ours stays.

Pipelines run in the host's own worker and runner; where a process dies, it is a program of its own
(`pipecat_bot_process.py`).
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pipecat")

from loguru import logger as host_log
from pipecat.frames.frames import (
    CancelFrame,
    EndFrame,
    EndWorkerFrame,
    ErrorFrame,
    Frame,
    LLMContextFrame,
    StartFrame,
    TranscriptionFrame,
)
from pipecat.pipeline import worker as pipecat_worker
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import (
    FrameDirection,
    FrameProcessor,
    FrameProcessorSetup,
)
from pipecat.utils.base_object import BaseObject
from pipecat.workers.runner import WorkerRunner
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import ScriptedLLMService, SimulatedCall

from moss_voice import DocumentInfo, MossClient
from moss_voice.call.memory import CallMemory
from moss_voice.cloud.store import Cloud

PATIENT = {"deadline_ms": 30_000.0}
SENTENCES = [f"This is sentence number {n} of the long answer." for n in range(12)]
LONG = " ".join(SENTENCES)
End = Callable[[SimulatedCall], Awaitable[Any]]


def make_client(folder: Path) -> MossClient:
    return MossClient(
        cloud=folder / "cloud", cache_path=folder / "cache", journal_path=folder / "journal"
    )


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[MossClient]:
    async with make_client(tmp_path) as client:
        yield client


@pytest.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    """Fail where a pipeline leaves a task behind."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left


@pytest.fixture(autouse=True)
def host_told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What the host warns of; a test takes out what it means to cause, and no more may be there."""
    # Pipecat 1.8 to 1.11 fetch a sentence splitter from the network as they start.
    monkeypatch.setattr(pipecat_worker, "warm_deferred_imports", lambda: None, raising=False)
    host_log.remove()
    told: list[str] = []
    sink = host_log.add(lambda message: told.append(str(message)), level="WARNING")
    yield told
    host_log.remove(sink)
    assert not told, told


@pytest.fixture
def pushes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The calls whose memories were pushed, each time."""
    names: list[str] = []
    push = CallMemory._push

    async def counted(self: CallMemory) -> Any:
        names.append(self.name)
        return await push(self)

    monkeypatch.setattr(CallMemory, "_push", counted)
    return names


def journals(folder: Path) -> list[Path]:
    return list((folder / "journal").rglob("*.journal"))


def remembering(client: MossClient | None, **options: Any) -> MossVoiceMemory:
    """Make a processor with a deadline that a busy machine does not miss."""
    return MossVoiceMemory(client, **{"call_id": "call", "options": PATIENT, **options})


async def stored(client: MossClient, name: str = "call") -> list[tuple[str, str]]:
    """Return who said what, as the cloud has it."""
    async with await client.session(name) as session:
        docs = await session.get_docs()
    return [(str((doc.metadata or {})["speaker"]), doc.text) for doc in docs]


def spoken(call: SimulatedCall) -> list[tuple[str, str]]:
    return [(turn.speaker, turn.text) for turn in call.spoken]


def in_context(call: SimulatedCall) -> list[tuple[str, str]]:
    who = {"user": "caller", "assistant": "agent"}
    messages: list[Any] = call.context.get_messages()
    return [(who[message["role"]], str(message["content"])) for message in messages]


def answer(messages: list[Any]) -> str:
    return LONG if messages[-1]["content"] == "tell me all" else "noted"


def simulated(*processors: FrameProcessor, **options: Any) -> SimulatedCall:
    return SimulatedCall(
        ScriptedLLMService(answer), processors=processors, **{"speed": 20.0, **options}
    )


# --- the ways a live pipeline ends -------------------------------------------------------------------


class Transport(BaseObject):
    """Tells of a client that has gone, as the host's transports do."""

    def __init__(self) -> None:
        super().__init__()
        self._register_event_handler("on_client_disconnected")


async def finished(call: SimulatedCall) -> None:
    assert call._run is not None
    async with asyncio.timeout(30):
        await asyncio.wait({call._run})


async def disconnect(call: SimulatedCall) -> None:
    transport = Transport()

    async def on_client_disconnected(_: object, __: object) -> None:
        await call.worker.cancel()

    transport.add_event_handler("on_client_disconnected", on_client_disconnected)
    await transport._call_event_handler("on_client_disconnected", "client")
    await finished(call)
    await transport.cleanup()  # type: ignore[no-untyped-call]


async def from_within(call: SimulatedCall) -> None:
    """End as a tool does that hangs up."""
    await call.worker.queue_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)
    await finished(call)


async def fatal(call: SimulatedCall) -> None:
    await call.llm.push_error_frame(ErrorFrame("the provider has gone", fatal=True))
    await finished(call)


async def runner_twice(call: SimulatedCall) -> None:
    """Cancel as the first Ctrl-C and the next one do."""
    assert call._runner is not None
    call._runner._sig_handler()
    await asyncio.sleep(0)
    call._runner._sig_handler()
    await call._runner.cancel()
    await finished(call)


async def task_cancelled(call: SimulatedCall) -> None:
    assert call._run is not None
    call._run.cancel()
    await finished(call)


ENDS: Mapping[str, tuple[End, list[str]]] = {
    "EndFrame": (SimulatedCall.hang_up, []),
    "EndWorkerFrame": (from_within, []),
    "StopFrame": (SimulatedCall.stop, []),
    "CancelFrame": (SimulatedCall.cancel, []),
    "client disconnects": (disconnect, []),
    "fatal error": (fatal, ["A fatal error occurred"]),
    "runner cancelled twice": (runner_twice, []),
    "runner's task cancelled": (task_cancelled, []),
}


@pytest.mark.parametrize("word_timestamps", [True, False], ids=["words", "sentences"])
@pytest.mark.parametrize("way", ENDS)
async def test_an_end_in_mid_speech_loses_and_doubles_nothing(
    client: MossClient,
    tmp_path: Path,
    pushes: list[str],
    host_told: list[str],
    way: str,
    word_timestamps: bool,
) -> None:
    """What the host says was spoken, the context and the index are the same, pushed once."""
    end, warnings = ENDS[way]
    memory = remembering(client)
    async with simulated(memory, word_timestamps=word_timestamps) as call:
        await call.start()
        await call.caller_says("my name is ada lovelace")
        await call.caller_says("tell me all", wait="committed")
        assert await call.hears(after_words=14)
        await end(call)
    print(way, word_timestamps, spoken(call)[3:], in_context(call)[3:], host_told)
    told = await stored(client)
    assert told == spoken(call)
    assert told == in_context(call)
    assert pushes == ["call"]
    assert not journals(tmp_path)
