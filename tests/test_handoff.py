"""One call from host to host through a real server: a LiveKit agent, a Pipecat bot, a chat, on one index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import Agent, AgentSession
from livekit.plugins import moss_voice as livekit_plugin
from livekit.plugins.moss_voice.testing import ScriptedLLM
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import ScriptedLLMService
from pipecat_moss_voice.testing import SimulatedCall as PipecatCall

from moss_voice import MossClient
from moss_voice.cloud.sealing import new_key
from tests.server_process import Server, serve

PATIENT_MS = 30_000.0


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("store")) as running:
        yield running


@pytest.fixture
async def make(server: Server, tmp_path: Path) -> AsyncIterator[Callable[..., MossClient]]:
    """Return what makes clients of one encrypted project, each on a machine of its own."""
    project, key = await asyncio.to_thread(server.project)
    sealing = new_key()
    async with AsyncExitStack() as stack:

        def client(machine: str) -> MossClient:
            made = MossClient(
                project,
                key,
                cloud=server.url,
                cache_path=tmp_path / machine / "cache",
                journal_path=tmp_path / machine / "journal",
                encryption_key=sealing,
            )
            stack.push_async_callback(made.close)
            return made

        yield client


def typed_session(model: ScriptedLLM) -> AgentSession[Any]:
    return AgentSession(llm=model, vad=None, turn_handling={"turn_detection": None})


def stored(server: Server) -> bytes:
    """Return all that the server keeps."""
    return b"".join(p.read_bytes() for p in Path(server.store).rglob("*") if p.is_file())


async def test_a_call_goes_from_livekit_to_pipecat_to_a_chat(
    make: Callable[..., MossClient], server: Server
) -> None:
    """Each host resumes by name what the one before it pushed, and recalls it before its own reply."""
    voice = typed_session(ScriptedLLM(lambda _: "I see the charge."))
    await livekit_plugin.attach(
        voice, make("livekit"), call_id="customer-17", deadline_ms=PATIENT_MS, open_timeout_s=30.0
    )
    await voice.start(Agent(instructions="You help callers."))
    await voice.run(user_input="I was charged twice, forty nine ninety nine")
    await voice.aclose()

    model = ScriptedLLMService(lambda _: "It is refunded.")
    memory = MossVoiceMemory(
        make("pipecat"),
        call_id="customer-17",
        open_timeout_s=30.0,
        options={"deadline_ms": PATIENT_MS},
    )
    async with PipecatCall(model, processors=[memory], speed=20.0) as call:
        await call.start()
        await call.caller_says("which amount was I charged twice?")
    blocks = [str(m["content"]) for m in model.prompts[-1] if "<call_memory>" in str(m["content"])]
    assert any("forty nine ninety nine" in block for block in blocks)

    async with await make("chat").session("customer-17") as chat:
        said = [doc.text for doc in await chat.get_docs()]
        found = await chat.query("was the charge refunded?")
    assert said == [
        "I was charged twice, forty nine ninety nine",
        "I see the charge.",
        "which amount was I charged twice?",
        "It is refunded.",
    ]
    assert found.docs
    assert b"forty nine" not in stored(server)


async def test_two_hosts_in_one_call_at_once_lose_nothing(make: Callable[..., MossClient]) -> None:
    """A LiveKit agent and a Pipecat bot both hold the call, and both push: every turn of both is there."""
    voice = typed_session(ScriptedLLM(lambda _: "noted by voice"))
    await livekit_plugin.attach(
        voice, make("livekit"), call_id="call-1", deadline_ms=PATIENT_MS, open_timeout_s=30.0
    )
    await voice.start(Agent(instructions=""))
    await voice.run(user_input="the gate code is 8842")
    memory = MossVoiceMemory(
        make("pipecat"), call_id="call-1", open_timeout_s=30.0, options={"deadline_ms": PATIENT_MS}
    )
    model = ScriptedLLMService(lambda _: "noted by phone")
    async with PipecatCall(model, processors=[memory], speed=20.0) as call:
        await call.start()
        await call.caller_says("the cellar code is 1234")
    await voice.run(user_input="and the alarm code is 77")
    await voice.aclose()
    async with await make("reader").session("call-1") as reader:
        said = {doc.text for doc in await reader.get_docs()}
    assert {"the gate code is 8842", "the cellar code is 1234", "and the alarm code is 77"} <= said
    assert {"noted by voice", "noted by phone"} <= said


async def test_a_server_that_dies_in_a_call_costs_neither_a_reply_nor_a_turn(
    tmp_path: Path,
) -> None:
    """The session goes on without its cloud, closes in time, and the next client brings the call in."""
    with serve(tmp_path / "store") as server:
        project, key = await asyncio.to_thread(server.project)
        places: dict[str, Any] = {
            "cloud": server.url,
            "cache_path": tmp_path / "cache",
            "journal_path": tmp_path / "journal",
        }
        async with MossClient(project, key, **places) as client:
            model = ScriptedLLM(lambda _: "noted")
            voice = typed_session(model)
            await livekit_plugin.attach(
                voice, client, call_id="call-1", deadline_ms=PATIENT_MS, push_timeout_s=20.0
            )
            await voice.start(Agent(instructions=""))
            await voice.run(user_input="the gate code is 8842")
            await asyncio.to_thread(server.kill)
            await voice.run(user_input="which gate code did I give")
            assert any("8842" in (m.raw_text_content or "") for m in model.prompts[-1].messages())
            await asyncio.wait_for(voice.aclose(), 60)
        await asyncio.to_thread(server.start)
        async with MossClient(project, key, **places) as client:
            [recovered] = await client.recover()
            assert (recovered.turns, recovered.status) == (4, "pushed")
            assert len(await client.get_docs("call-1")) == 4
