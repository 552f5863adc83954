"""Recordings of calls in the real hosts: a LiveKit session with a barge-in, a Pipecat pipeline."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import Agent
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.testing import ScriptedLLM, SimulatedCall
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import ScriptedLLMService
from pipecat_moss_voice.testing import SimulatedCall as PipecatCall

from moss_voice import DocumentInfo, MossClient
from moss_voice.call.recording import Recording, find_recordings, read_recording

FAQ = [
    DocumentInfo("refunds", "A refund reaches your card within five working days."),
    DocumentInfo("hours", "The hotline is open from eight to eight."),
]
LONG_MS = 30_000.0
ANSWER = "a refund takes five working days until it is on your card and then you can see it there"


def client_of(root: Path) -> MossClient:
    return MossClient(cloud=root / "cloud", cache_path=root / "c", journal_path=root / "j")


def read(root: Path) -> Recording:
    (path,) = find_recordings(root / "rec")
    return read_recording(path)


async def test_a_livekit_session_is_recorded_with_its_interruption(tmp_path: Path) -> None:
    """Both speakers with begin and end, the cut off turn overlapped by its barge-in, a context per reply."""
    async with client_of(tmp_path) as client:
        await client.create_index("faq", FAQ)
        call = SimulatedCall(ScriptedLLM(lambda _: ANSWER), speed=10)
        memory = await moss_voice.attach(
            call.session,
            client,
            call_id="spoken",
            knowledge=["faq"],
            record=tmp_path / "rec",
            deadline_ms=LONG_MS,
        )
        async with call:
            await call.start(Agent(instructions=""))
            await call.caller_says("how long does a refund take", wait="committed")
            assert await call.hears(after_words=6)
            await call.caller_says("stop stop that is all that I wanted to hear from you")
        await memory.end()
        await memory.recorded()
    recording = await asyncio.to_thread(read, tmp_path)
    assert recording.end == "pushed"
    assert recording.damaged == recording.missed == 0
    first, cut, barge_in = recording.turns[:3]
    assert (first.speaker, cut.speaker, barge_in.speaker) == ("caller", "agent", "caller")
    assert cut.interrupted
    assert 0 < len(cut.text) < len(ANSWER)
    for turn in (first, cut, barge_in):
        assert turn.end_s > turn.start_s
    assert first.end_s <= cut.start_s + 0.5
    assert barge_in.start_s < cut.end_s + 0.5
    (used, *_) = recording.contexts_of(first.id)
    assert "five working days" in used.text
    assert next(hit.id for hit in used.hits if not hit.is_turn) == "refunds"
    assert recording.contexts_of(barge_in.id)


@pytest.mark.parametrize("record", [True, None])
async def test_a_pipecat_pipeline_is_recorded(
    tmp_path: Path, record: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its options, or by the environment alone; the directory is the platform's."""
    options: dict[str, Any] = {"deadline_ms": LONG_MS}
    if record is None:
        monkeypatch.setenv("MOSS_VOICE_RECORD", str(tmp_path / "rec"))
    else:
        options["record"] = tmp_path / "rec"
    async with client_of(tmp_path) as client:
        await client.create_index("faq", FAQ)
        memory = MossVoiceMemory(client, call_id="piped", knowledge=["faq"], options=options)
        call = PipecatCall(ScriptedLLMService(lambda _: ANSWER), processors=[memory], speed=10)
        async with call:
            await call.start()
            await call.caller_says("how long does a refund take")
        await memory.memory.recorded()
    recording = await asyncio.to_thread(read, tmp_path)
    caller = next(turn for turn in recording.turns if turn.speaker == "caller")
    contexts = recording.contexts_of(caller.id)
    assert contexts
    assert "five working days" in contexts[-1].text
    assert contexts[-1].seen or contexts[-1].visible or len(recording.turns) <= 2
    assert recording.end == "pushed"
