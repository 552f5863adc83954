"""The LiveKit examples that need keys are run in a job without them: only the models are replaced."""

from __future__ import annotations

import asyncio
import os
import re
import runpy
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import Agent, AgentServer, AgentSession, JobContext, llm
from livekit.agents.testing import fake_job_context
from livekit.plugins.moss_voice.testing import ScriptedLLM

from moss_voice import DocumentInfo, MossClient

ROOT = Path(__file__).parents[1]
Entrypoint = Callable[[JobContext], Awaitable[None]]


def readme_example() -> str:
    """Return the README's Python block that attaches to a session."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = [
        block
        for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
        if "moss_voice.attach" in block
    ]
    return str(code)


def test_the_readmes_example_is_ten_lines() -> None:
    """What an engineer pastes is ten lines, blank ones aside."""
    assert len([line for line in readme_example().splitlines() if line.strip()]) <= 10


@pytest.fixture
def model() -> ScriptedLLM:
    return ScriptedLLM(lambda _: "Good question.")


@pytest.fixture
def session_made(model: ScriptedLLM, monkeypatch: pytest.MonkeyPatch) -> list[AgentSession[Any]]:
    """Give every AgentSession a scripted model, no voice and no room, whatever it asked for."""
    made: list[AgentSession[Any]] = []
    original, start = AgentSession.__init__, AgentSession.start

    async def start_without_room(self: AgentSession[Any], agent: Agent, **_: Any) -> None:
        await start(self, agent)

    def scripted(self: AgentSession[Any], **_: Any) -> None:
        original(self, llm=model, vad=None, turn_handling={"turn_detection": None})
        made.append(self)

    monkeypatch.setattr(AgentSession, "__init__", scripted)
    monkeypatch.setattr(AgentSession, "start", start_without_room)
    return made


async def serve(
    names: dict[str, Any],
    sessions: list[AgentSession[Any]],
    model: ScriptedLLM,
    *,
    greetings: int,
) -> tuple[list[str], str]:
    """Prewarm, run the entrypoint, have a short call; returns what was pushed and the last prompt."""
    async with MossClient() as client:
        passage = DocumentInfo("refunds", "Refunds reach your card within five working days.")
        await client.create_index("support-faqs", [passage])
    server: AgentServer = names["server"]
    entrypoint: Entrypoint = names["entrypoint"]
    with fake_job_context() as job:
        assert server.setup_fnc is not None
        await asyncio.to_thread(server.setup_fnc, job.proc)
        await entrypoint(job)
        (session,) = sessions
        async with asyncio.timeout(30):
            while len(session.history.messages()) < greetings:  # noqa: ASYNC110 - the host has no event
                await asyncio.sleep(0.01)
        await session.run(user_input="how long does a refund take to my card")
        await session.aclose()
        for callback in job._shutdown_callbacks:
            await callback("")
        job._tempdir.cleanup()  # the host's fake leaves it to the garbage collector
    async with MossClient() as client:
        (name,) = [info.name for info in await client.list_indexes() if info.name != "support-faqs"]
        async with await client.session(name) as pushed:
            docs = await pushed.get_docs()
    return [doc.text for doc in docs], _text(model.prompts[-1])


def _text(chat_ctx: llm.ChatContext) -> str:
    return "\n".join(message.raw_text_content or "" for message in chat_ctx.messages())


async def test_the_readmes_example_serves_a_call(
    session_made: list[AgentSession[Any]],
    model: ScriptedLLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The ten lines give a job's agent its FAQ and push its call."""
    monkeypatch.setenv("MOSS_VOICE_CLOUD", str(tmp_path / "cloud"))
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(readme_example(), "README.md", "exec"), names)
    texts, prompt = await serve(names, session_made, model, greetings=0)
    assert texts == ["how long does a refund take to my card", "Good question."]
    assert "[support-faqs: refunds] Refunds reach your card" in prompt


async def test_the_worker_example_serves_a_call(
    session_made: list[AgentSession[Any]],
    model: ScriptedLLM,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`examples/livekit_agent.py` greets, recalls from the FAQ and pushes, in under 80 lines."""
    monkeypatch.setenv("MOSS_VOICE_CLOUD", str(tmp_path / "cloud"))
    path = ROOT / "examples" / "livekit_agent.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
    names = runpy.run_path(str(path))
    texts, prompt = await serve(names, session_made, model, greetings=1)
    assert texts == ["Good question.", "how long does a refund take to my card", "Good question."]
    assert "[support-faqs: refunds] Refunds reach your card" in prompt
    assert os.environ["MOSS_VOICE_CLOUD"]
