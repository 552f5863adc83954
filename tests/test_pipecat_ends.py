"""Every way in which a pipeline ends: what was spoken is stored once, and nothing of ours stays.

Pipelines run in the host's own worker and runner; where a process dies, it is a program of its own
(`pipecat_bot_process.py`).
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from loguru import logger as host_log
from pipecat.frames.frames import (
    CancelFrame,
    EndWorkerFrame,
    ErrorFrame,
    Frame,
    LLMContextFrame,
    TranscriptionFrame,
    VADUserStartedSpeakingFrame,
)
from pipecat.pipeline import worker as pipecat_worker
from pipecat.pipeline.worker import PipelineWorker, ProcessorUnusablePolicy
from pipecat.processors.frame_processor import (
    FrameDirection,
    FrameProcessor,
    FrameProcessorSetup,
)
from pipecat.utils.base_object import BaseObject
from pipecat.utils.time import time_now_iso8601
from pipecat.workers.runner import WorkerRunner
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice import processor as processor_module
from pipecat_moss_voice.testing import ScriptedLLMService, SimulatedCall

from moss_voice import DocumentInfo, MossClient
from moss_voice.call.journal import Journal
from moss_voice.call.memory import CallMemory
from moss_voice.cloud.cloud import Cloud
from moss_voice.errors import CloudUnavailableError

PROGRAM = Path(__file__).with_name("pipecat_bot_process.py")
PATIENCE_S = 60.0
PATIENT = {"deadline_ms": 30_000.0}
LONG = " ".join(f"This is sentence number {n} of the long answer." for n in range(6))
NAMED = [("caller", "my name is ada lovelace"), ("agent", "noted")]
FAQ = [
    DocumentInfo("refund", "A refund is paid within fourteen days of the return."),
    DocumentInfo("hours", "The shop is open from nine to five on weekdays."),
]
End = Callable[[SimulatedCall], Awaitable[Any]]


class Stage:
    """What is left of a pipeline: journals, pushes, and what the host has logged as a warning."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pushes: list[str] = []
        self.warnings: list[str] = []

    def journals(self) -> list[Path]:
        return list((self.folder / "journal").rglob("*.journal"))

    def expect(self, *texts: str) -> None:
        """Take out the warnings that a test means to cause."""
        self.warnings = [w for w in self.warnings if not any(text in w for text in texts)]

    def check_ended(self, pushed: Sequence[str] = ("call",)) -> None:
        """See that the calls were pushed, no oftener, and that nothing else is left."""
        assert self.pushes == list(pushed)
        assert not self.journals()
        assert not self.warnings, self.warnings


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
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(tmp_path)
    # Pipecat 1.8 to 1.11 fetch a sentence splitter from the network as they start.
    monkeypatch.setattr(pipecat_worker, "warm_deferred_imports", lambda: None, raising=False)
    push = CallMemory._push

    async def counted(self: CallMemory) -> Any:
        stage.pushes.append(self.name)
        return await push(self)

    monkeypatch.setattr(CallMemory, "_push", counted)
    host_log.remove()
    sink = host_log.add(lambda message: stage.warnings.append(str(message)), level="WARNING")
    yield stage
    host_log.remove(sink)
    assert not stage.warnings, stage.warnings


def remembering(client: MossClient | None, **options: Any) -> MossVoiceMemory:
    """Make a processor with a deadline that a busy machine does not miss."""
    return MossVoiceMemory(client, **{"call_id": "call", "options": PATIENT, **options})


async def stored(client: MossClient, name: str = "call") -> list[tuple[str, str]]:
    """Return who said what, as the cloud has it."""
    async with await client.session(name) as session:
        docs = await session.get_docs()
    return [(str((doc.metadata or {})["speaker"]), doc.text) for doc in docs]


def spoken(call: SimulatedCall) -> list[tuple[str, str]]:
    """Return who said what, as the host reported it."""
    return [(turn.speaker, turn.text) for turn in call.spoken]


def in_context(call: SimulatedCall) -> list[tuple[str, str]]:
    """Return who said what, as the host's context has it."""
    who = {"user": "caller", "assistant": "agent"}
    messages: list[Any] = call.context.get_messages()
    return [(who[message["role"]], str(message["content"])) for message in messages]


def simulated(*processors: FrameProcessor, **options: Any) -> SimulatedCall:
    """Make a call whose bot has one long answer and one short."""

    def answer(messages: list[Any]) -> str:
        return LONG if messages[-1]["content"] == "tell me all" else "noted"

    if "worker_options" not in options:
        options["worker_options"] = {"processor_unusable_policy": ProcessorUnusablePolicy.CANCEL}
    options.setdefault("speed", 30.0)
    return SimulatedCall(ScriptedLLMService(answer), processors=processors, **options)


async def utter(call: SimulatedCall, text: str) -> None:
    """Let the recogniser finish some words of a turn that goes on."""
    await call._give(VADUserStartedSpeakingFrame())
    await call._give(TranscriptionFrame(text, "caller-1", time_now_iso8601(), finalized=True))


# --- the ways a live pipeline ends -------------------------------------------------------------------


class Transport(BaseObject):
    """Tells of a client that has gone, as the host's transports do."""

    def __init__(self) -> None:
        super().__init__()
        self._register_event_handler("on_client_disconnected")


async def finished(call: SimulatedCall) -> None:
    assert call._run is not None
    done, _ = await asyncio.wait({call._run}, timeout=PATIENCE_S)
    assert done, call


async def disconnect(call: SimulatedCall) -> None:
    transport = Transport()

    async def on_client_disconnected(_: object, __: object) -> None:
        await call.worker.cancel()

    transport.add_event_handler("on_client_disconnected", on_client_disconnected)
    await transport._call_event_handler("on_client_disconnected", "client")
    await finished(call)
    await transport.cleanup()  # type: ignore[no-untyped-call]


async def hung_up_by_the_bot(call: SimulatedCall) -> None:
    """End as a tool does that hangs up."""
    await call.worker.queue_frame(EndWorkerFrame(), FrameDirection.UPSTREAM)
    await finished(call)


async def unusable(call: SimulatedCall) -> None:
    await call.llm.push_error("the provider has gone", force_treat_as_permanent=True)
    await finished(call)


async def fatal(call: SimulatedCall) -> None:
    # The host warns of its own flag, once in a process.
    with warnings.catch_warnings(record=True):
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
    """Cancel as `asyncio.run` does at a Ctrl-C that nobody handles."""
    assert call._run is not None
    call._run.cancel()
    await finished(call)


ENDS: Mapping[str, tuple[End, Sequence[str]]] = {
    "EndFrame": (SimulatedCall.hang_up, ()),
    "EndWorkerFrame": (hung_up_by_the_bot, ()),
    "StopFrame": (SimulatedCall.stop, ()),
    "CancelFrame": (SimulatedCall.cancel, ()),
    "disconnect": (disconnect, ()),
    "unusable": (unusable, ("the provider has gone", "can no longer do its job")),
    "fatal": (fatal, ("the provider has gone",)),
    "runner twice": (runner_twice, ("interruption detected",)),
    "task cancelled": (task_cancelled, ()),
}
WAYS = pytest.mark.parametrize("way", ENDS)


@pytest.mark.parametrize("word_timestamps", [True, False], ids=["words", "sentences"])
@WAYS
async def test_an_end_in_mid_speech_loses_and_doubles_nothing(
    client: MossClient, stage: Stage, way: str, word_timestamps: bool
) -> None:
    """What the host says was spoken, what the context holds and the index are the same, pushed once."""
    end, logged = ENDS[way]
    memory = remembering(client)
    async with simulated(memory, word_timestamps=word_timestamps) as call:
        await call.start()
        await call.caller_says("my name is ada lovelace")
        await call.caller_says("tell me all", wait="committed")
        assert await call.hears(after_words=14)
        await end(call)
        assert await stored(client) == in_context(call) == spoken(call)
    assert len(spoken(call)) == 4
    assert LONG.startswith(spoken(call)[-1][1])
    if not way.startswith(("End", "Stop")):
        assert spoken(call)[-1][1] != LONG
    stage.expect(*logged)
    stage.check_ended()


@WAYS
async def test_an_end_before_a_turn_is_over_keeps_what_was_said_of_it(
    client: MossClient, stage: Stage, way: str
) -> None:
    """The recogniser has finished words, the host no turn: they are stored once, as the caller's."""
    end, logged = ENDS[way]
    memory = remembering(client)
    async with simulated(memory) as call:
        await call.start()
        await call.caller_says("my name is ada lovelace")
        await utter(call, "my new address is")
        await end(call)
    told = await stored(client)
    assert told == [*NAMED, ("caller", "my new address is")]
    # At a StopFrame the host keeps the turn open.
    assert spoken(call) == told[: 2 if way == "StopFrame" else 3]
    stage.expect(*logged)
    stage.check_ended()


@pytest.mark.parametrize("runner_too", [True, False])
async def test_an_idle_timeout_ends_the_call(
    client: MossClient, stage: Stage, runner_too: bool
) -> None:
    """A caller who says nothing more is hung up on by the host, and the call pushed."""
    memory = remembering(client)
    options = {"idle_timeout_secs": 1.0, "cancel_on_idle_timeout": True}
    if "cancel_runner_on_idle_timeout" in inspect.signature(PipelineWorker).parameters:
        options["cancel_runner_on_idle_timeout"] = runner_too
    async with simulated(memory, worker_options=options) as call:
        await call.start()
        await call.caller_says("my name is ada lovelace")
        await finished(call)
        assert await stored(client) == in_context(call) == spoken(call) == NAMED
    stage.expect("Idle timeout detected", "Idle pipeline detected", "cancelling the runner")
    stage.check_ended()


class Faulty(FrameProcessor):
    """Fails at a kind of frame, or at its setup."""

    def __init__(self, *kinds: type[Frame], at_setup: bool = False) -> None:
        super().__init__()
        self._kinds = kinds
        self._at_setup = at_setup

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        await super().setup(setup)
        if self._at_setup:
            raise RuntimeError("no setup")

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, self._kinds):
            raise RuntimeError("a fault of another processor")  # noqa: TRY004 - of no type
        await self.push_frame(frame, direction)


@pytest.mark.parametrize("way", ["EndFrame", "CancelFrame"])
async def test_a_fault_elsewhere_loses_nothing(client: MossClient, stage: Stage, way: str) -> None:
    """Another processor drops a reply's context by an exception: every turn that was is stored."""
    memory, faulty = remembering(client), Faulty(LLMContextFrame)
    async with simulated(memory, faulty) as call:
        await call.start()
        await call.bot_says("good morning")
        await call.caller_says("my name is ada lovelace")
        await ENDS[way][0](call)
        expected = [("agent", "good morning"), NAMED[0]]
        assert await stored(client) == in_context(call) == spoken(call) == expected
    stage.expect("a fault of another processor")
    stage.check_ended()


async def test_a_pipeline_that_cannot_be_cancelled_loses_no_spoken_word(
    client: MossClient, stage: Stage
) -> None:
    """A processor keeps the CancelFrame: the host gives up and forgets the bot's turn; we have it."""
    memory, faulty = remembering(client), Faulty(CancelFrame)
    async with simulated(memory, faulty, worker_options={"cancel_timeout_secs": 0.2}) as call:
        await call.start()
        await call.caller_says("my name is ada lovelace")
        await call.caller_says("tell me all", wait="committed")
        assert await call.hears(after_words=14)
        await call.cancel()
    told = await stored(client)
    assert told[:3] == spoken(call) == in_context(call)
    assert len(told) == 4
    assert told[3][0] == "agent"
    assert LONG.startswith(told[3][1])
    stage.expect("a fault of another processor", "timeout waiting for CancelFrame")
    stage.check_ended()


@pytest.mark.parametrize("way", ["EndFrame", "CancelFrame"])
async def test_a_processor_that_cannot_be_set_up_is_not_our_end(
    client: MossClient, stage: Stage, way: str
) -> None:
    """The host runs on without it (its policy), and so do we; every turn is stored."""
    memory = remembering(client)
    async with simulated(memory, Faulty(at_setup=True), worker_options={}) as call:
        await call.start()
        await call.caller_says("my name is ada lovelace")
        await ENDS[way][0](call)
        assert await stored(client) == in_context(call) == spoken(call) == NAMED
    stage.expect("no setup", "can no longer do its job")
    stage.check_ended()


async def test_a_pipeline_may_be_given_up_over_a_processor(
    client: MossClient, stage: Stage
) -> None:
    """With the policy to cancel, a processor that cannot be set up ends the pipeline; nothing stays."""
    memory = remembering(client)
    options = {"processor_unusable_policy": ProcessorUnusablePolicy.CANCEL}
    call = simulated(memory, Faulty(at_setup=True), worker_options=options)
    await run(call.worker)
    assert await client.list_indexes() == []
    stage.expect("no setup", "can no longer do its job")
    stage.check_ended(pushed=())


# --- pipelines that never start ----------------------------------------------------------------------


async def run(worker: PipelineWorker) -> None:
    """Run a worker to its end, as a bot does."""
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    async with asyncio.timeout(PATIENCE_S):
        await runner.run()


async def test_a_pipeline_cancelled_before_it_runs_leaves_nothing(
    client: MossClient, stage: Stage
) -> None:
    """Nothing is pushed, no journal is left, and the call can begin again."""
    call = simulated(remembering(client))
    await call.worker.cancel()
    await run(call.worker)
    stage.check_ended(pushed=())
    await has_a_call(client)
    stage.check_ended()


@pytest.mark.parametrize("whose", ["cloud", "journal", "another's"])
async def test_a_pipeline_cancelled_during_its_setup_leaves_nothing(
    client: MossClient, stage: Stage, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """A client that is gone before its bot is ready: no journal is left, the call can begin again."""
    begun, never = asyncio.Event(), asyncio.Event()

    async def hang(*_: object, **__: object) -> Any:
        begun.set()
        await never.wait()

    class Slow(FrameProcessor):
        async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
            await super().setup(setup)
            await hang()

    loop, go_on, created = asyncio.get_running_loop(), threading.Event(), asyncio.Event()
    create = Journal.create

    def slow_disk(*args: Any) -> Journal:
        loop.call_soon_threadsafe(begun.set)
        go_on.wait(PATIENCE_S)
        journal = create(*args)
        loop.call_soon_threadsafe(created.set)
        return journal

    memory = remembering(client, open_timeout_s=PATIENCE_S)
    # Older hosts do not cancel a setup, but wait for its timeout.
    options = {"setup_timeout_secs": 3.0}
    others = [Slow()] if whose == "another's" else []
    call = simulated(memory, *others, worker_options=options)
    with monkeypatch.context() as patch:
        if whose == "cloud":
            patch.setattr(Cloud, "read_head", hang)
        elif whose == "journal":
            patch.setattr(Journal, "create", slow_disk)
        running = asyncio.create_task(run(call.worker))
        await begun.wait()
        if whose == "another's":
            while memory._memory is None and not running.done():  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        await call.worker.cancel()
        await running
        never.set()
        go_on.set()
        if whose == "journal":
            await created.wait()
        async with asyncio.timeout(PATIENCE_S):
            while stage.journals():  # noqa: ASYNC110 - nothing tells of it
                await asyncio.sleep(0.01)
    stage.expect("timeout setting the pipeline up")
    stage.check_ended(pushed=())
    await has_a_call(client)
    stage.check_ended()


async def has_a_call(client: MossClient) -> None:
    async with simulated(remembering(client)) as call:
        await call.start()
        await call.caller_says("my name is ada lovelace")
    assert await stored(client) == NAMED


async def test_a_pipeline_that_is_never_run_touches_nothing(
    client: MossClient, stage: Stage, tmp_path: Path
) -> None:
    """A processor that was only made opens no call and leaves no warning."""
    call = simulated(remembering(client))
    del call
    gc.collect()
    assert not await asyncio.to_thread(lambda: list(tmp_path.iterdir()))
    stage.check_ended(pushed=())


async def test_a_stopped_pipeline_goes_on_under_another_worker(
    client: MossClient, stage: Stage
) -> None:
    """After a StopFrame the same processors may run again: every turn is stored, each of them once."""
    memory = remembering(client)
    call = simulated(memory)
    workers = [call.worker]
    for said in ("my name is ada lovelace", "tell me all", "thank you"):
        await call.start()
        await call.caller_says(said)
        await call.stop()
        assert await stored(client) == in_context(call) == spoken(call)
        # The same processors under a worker of their own.
        call.worker = PipelineWorker(call.pipeline, enable_rtvi=False, idle_timeout_secs=None)
        call.worker.add_event_handler("on_pipeline_started", call._on_started)
        call._run, call._is_started = None, False
        workers.append(call.worker)
    assert len(spoken(call)) == 6
    for worker in workers[:-1]:
        await worker.pipeline.cleanup()  # type: ignore[no-untyped-call]
    # With and without us: the host's output starts anew, and forgets its tasks of before.
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        assert "Moss" not in repr(task)
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
    stage.check_ended(pushed=("call",) * 3)


# --- the time that an end takes ----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["EndFrame", "StopFrame", "CancelFrame", "runner twice"])
async def test_an_end_takes_no_longer_than_the_push(
    client: MossClient, stage: Stage, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """With us a pipeline ends as fast as without, but for the push itself."""
    pushing_s = 0.0
    end = CallMemory.end

    async def timed(self: CallMemory) -> Any:
        nonlocal pushing_s
        started = time.perf_counter()
        try:
            return await end(self)
        finally:
            pushing_s += time.perf_counter() - started

    monkeypatch.setattr(CallMemory, "end", timed)

    async def took_s(*processors: FrameProcessor) -> float:
        async with simulated(*processors) as call:
            await call.start()
            await call.caller_says("my name is ada lovelace")
            started = time.perf_counter()
            await ENDS[way][0](call)
            return time.perf_counter() - started

    without_s = await took_s()
    with_s = await took_s(remembering(client))
    # A busy machine's pause, not a wait of ours: the shortest of those is a second.
    assert with_s - pushing_s < without_s + 0.9
    stage.expect(*ENDS[way][1])
    stage.check_ended()


@pytest.mark.parametrize("way", ["EndFrame", "StopFrame", "CancelFrame", "disconnect"])
async def test_a_slow_store_is_let_go(
    client: MossClient, stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, way: str
) -> None:
    """A push that takes longer than it may does not hold up the end; the journal has the call."""
    never = asyncio.Event()

    async def hang(*_: object, **__: object) -> Any:
        await never.wait()
        raise CloudUnavailableError("at last")

    memory = remembering(client, push_timeout_s=0.3)
    with monkeypatch.context() as patch:
        patch.setattr(Cloud, "push", hang)
        async with simulated(memory) as call:
            await call.start()
            await call.caller_says("my name is ada lovelace")
            started = time.monotonic()
            await ENDS[way][0](call)
            assert time.monotonic() - started < PATIENCE_S / 2
            assert stage.journals()
        never.set()
        # What is left of the push gives up.
        await memory.memory.end()
    assert stage.journals()
    await recovered(tmp_path, NAMED)
    assert not stage.journals()


async def recovered(folder: Path, turns: Sequence[tuple[str, str]]) -> None:
    """Recover the one call that is left, and see that each turn is there once."""
    async with make_client(folder) as other:
        (call,) = await other.recover()
        assert (call.turns, call.status) == (len(turns), "pushed")
        assert await stored(other) == list(turns)


async def test_a_store_that_is_down_at_the_end_costs_nothing(
    client: MossClient, stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Every attempt at the push fails: the pipeline ends, the journal has the call."""

    async def away(*_: object, **__: object) -> Any:
        raise CloudUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Cloud, "push", away)
        patch.setattr("moss_voice.call.memory._PUSH_PAUSES_S", (0.01, 0.01))
        async with simulated(remembering(client)) as call:
            await call.start()
            await call.caller_says("my name is ada lovelace")
            await call.hang_up()
    assert spoken(call) == NAMED
    assert len(stage.journals()) == 1
    assert stage.pushes == ["call"] * 3
    await recovered(tmp_path, NAMED)


async def test_a_store_that_is_down_at_the_beginning_costs_nothing(
    client: MossClient, stage: Stage, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where nothing is kept the pipeline starts without its call's past; the push merges the two."""
    await has_a_call(client)
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)

    async def away(*_: object, **__: object) -> Any:
        raise CloudUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(Cloud, "read_head", away)
        memory = remembering(client, knowledge=["faq"])
        call = simulated(memory)
        await call.start()
    async with call:
        assert memory.memory.counters.turns == 0
        await call.caller_says("the cellar code is 1234")
    assert await stored(client) == [*NAMED, ("caller", "the cellar code is 1234"), NAMED[1]]
    stage.check_ended(pushed=("call", "call"))


# --- several pipelines in a process ------------------------------------------------------------------


@pytest.fixture
async def shared_client(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> AsyncIterator[Callable[[], MossClient]]:
    """Begin with a process that has no client yet; gives the one that pipelines made."""
    monkeypatch.setenv("MOSS_VOICE_CLOUD", str(tmp_path / "cloud"))
    monkeypatch.setattr(processor_module, "_shared", None)
    yield processor_module._client_of_this_process
    await processor_module._client_of_this_process().close()


async def test_pipelines_without_a_client_share_one(
    client: MossClient, shared_client: Callable[[], MossClient]
) -> None:
    """One client, one loaded copy of the knowledge, one model; the end of one is not another's."""
    await client.create_index("faq", FAQ)
    memories = [
        remembering(None, call_id=f"call-{n}", knowledge=["faq"], rtvi=False) for n in range(3)
    ]
    calls = [simulated(memory) for memory in memories]
    await asyncio.gather(*(call.start() for call in calls))
    assert len({id(memory.memory.knowledge[0]._index) for memory in memories}) == 1
    assert len({id(memory.memory.session.embedder) for memory in memories}) == 1
    first, *rest = calls
    await asyncio.gather(*(call.caller_says("my name is ada lovelace") for call in calls))
    await asyncio.gather(first.hang_up(), *(call.caller_says("when is it open") for call in rest))
    assert await stored(shared_client(), "call-0") == NAMED
    for call in rest:
        assert any(FAQ[1].text in str(m["content"]) for m in call.llm.prompts[-1])  # type: ignore[attr-defined]
    await asyncio.gather(*(call.cancel() for call in rest))
    for number in (1, 2):
        turns = [*NAMED, ("caller", "when is it open"), NAMED[1]]
        assert await stored(shared_client(), f"call-{number}") == turns


def test_pipelines_in_event_loops_of_their_own_share_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process that runs bots one after another, each with `asyncio.run`, serves every one."""
    monkeypatch.setenv("MOSS_VOICE_CLOUD", str(tmp_path / "cloud"))
    monkeypatch.setattr(processor_module, "_shared", None)

    async def bot(number: int) -> list[tuple[str, str]]:
        memory = remembering(None, call_id=f"call-{number}")
        async with simulated(memory) as call:
            await call.start()
            await call.caller_says("my name is ada lovelace")
        return await stored(processor_module._client_of_this_process(), f"call-{number}")

    assert [asyncio.run(bot(number)) for number in range(2)] == [NAMED] * 2
    asyncio.run(processor_module._client_of_this_process().close())


# --- the death of a process --------------------------------------------------------------------------

SAYS = ["my name is ada lovelace", "the parcel went to the wrong address"]
UTTERS = "and my new address is"
SAID = [turn for text in SAYS for turn in (("caller", text), ("agent", "noted"))]


class Bot:
    """A process with a bot in it, and what it told."""

    def __init__(self, folder: Path, **plan: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.environ = {
            **os.environ,
            **{f"XDG_{kind}_HOME": str(folder / kind.lower()) for kind in ("CACHE", "CONFIG")},
            "XDG_DATA_HOME": str(folder),
            "MOSS_VOICE_CLOUD": str(folder / "cloud"),
        }
        plan = {"says": SAYS, "then": "wait", "runner": {}, **plan}
        self.log = (folder / "log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, str(PROGRAM), json.dumps(plan)],
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
            env=self.environ,
        )

    def wait_for(self, event: str) -> dict[str, Any]:
        """Wait until it tells of an event."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            told: dict[str, Any] = json.loads(line)
            if told["event"] == event:
                return told
        raise AssertionError((self.folder / "log").read_text()[-4000:])

    def ends(self) -> int:
        """Wait for the end of the process; returns its exit code."""
        return self.process.wait(PATIENCE_S)

    def journals(self) -> list[Path]:
        return list(self.folder.rglob("*.journal"))

    def stored(self) -> list[tuple[str, str]]:
        """Return who said what, as the cloud has it."""

        async def read() -> list[tuple[str, str]]:
            async with make_client(self.folder) as client:
                return await stored(client)

        return asyncio.run(read())

    def recover_by_hand(self) -> str:
        """Run `moss-voice recover`."""
        done = subprocess.run(
            [sys.executable, "-m", "moss_voice.cli", "recover"],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def close(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Bot]]:
    """Start bots, by the name of their folder; none is left."""
    with ExitStack() as stack:

        def start(name: str, **plan: Any) -> Bot:
            bot = Bot(tmp_path / name, **plan)
            stack.callback(bot.close)
            return bot

        yield start


@pytest.mark.parametrize("sign", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_a_killed_bot_is_recovered_with_what_was_no_turn_yet(
    start: Callable[..., Bot], sign: signal.Signals
) -> None:
    """By default SIGTERM ends a process as SIGKILL does: the journal has every turn and utterance.

    `moss-voice recover` stores each of them once, and so does the next pipeline of the same call, which
    has them from its start.
    """
    by_hand, by_the_next = bots = [start(name, utters=UTTERS) for name in ("hand", "next")]
    for bot in bots:
        assert bot.wait_for("ready")["uttered"] == 1
        bot.process.send_signal(sign)
        assert bot.ends() == -sign
        assert len(bot.journals()) == 1
        assert not (bot.folder / "cloud").exists() or not bot.stored()
    after = start("next", says=["are you still there"], then="hang up")
    assert "call" in by_hand.recover_by_hand()
    assert by_hand.stored() == [*SAID, ("caller", UTTERS)]
    assert after.wait_for("started")["turns"] == len(SAID) + 1
    after.wait_for("ended")
    assert after.ends() == 0
    assert by_the_next.stored() == [
        *SAID,
        ("caller", UTTERS),
        ("caller", "are you still there"),
        ("agent", "noted"),
    ]
    assert not by_hand.journals()
    assert not by_the_next.journals()


def test_a_signal_that_the_host_handles_ends_the_call(start: Callable[..., Bot]) -> None:
    """SIGTERM with `handle_sigterm=True`, and Ctrl-C twice: pushed with the words that were no turn."""
    ways: dict[str, tuple[dict[str, bool], list[signal.Signals]]] = {
        "term": ({"handle_sigterm": True}, [signal.SIGTERM]),
        "int": ({"handle_sigint": True}, [signal.SIGINT, signal.SIGINT]),
    }
    bots = {name: start(name, utters=UTTERS, runner=runner) for name, (runner, _) in ways.items()}
    for name, (_, signs) in ways.items():
        bots[name].wait_for("ready")
        for sign in signs:
            bots[name].process.send_signal(sign)
    for bot in bots.values():
        bot.wait_for("ended")
        assert bot.ends() == 0
        assert not bot.journals()
        assert bot.stored() == [*SAID, ("caller", UTTERS)]
