"""The README's ten lines of Pipecat, in a real pipeline with a simulated line and voice."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from pipecat.frames.frames import Frame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import ScriptedLLMService, SimulatedCall

from moss_voice import DocumentInfo, MossClient

ROOT = Path(__file__).parents[1]


def example() -> str:
    """Return the README's Python block that builds a pipeline."""
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    (code,) = [block for block in found if "MossVoiceMemory(" in block]
    return str(code)


def test_it_is_ten_lines() -> None:
    """What an engineer pastes is ten lines, blank ones aside."""
    assert len([line for line in example().splitlines() if line.strip()]) <= 10


async def test_it_remembers_and_recalls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pipeline that it builds serves a call: the FAQ is recalled, the turns are pushed."""
    monkeypatch.setenv("MOSS_VOICE_CLOUD", str(tmp_path / "cloud"))
    monkeypatch.setattr("pipecat_moss_voice.processor._shared", None)
    async with MossClient() as client:
        passage = DocumentInfo("refunds", "Refunds reach your card within five working days.")
        await client.create_index("support-faqs", [passage])
        names: dict[str, Any] = {}
        exec(compile(example(), "README.md", "exec"), names)
        model = ScriptedLLMService(lambda _: "let me see")
        call = SimulatedCall(model)

        class Deaf(FrameProcessor):
            """Stands for a recogniser: what it would have heard comes from the line."""

            async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
                await super().process_frame(frame, direction)
                await self.push_frame(frame, direction)

        class Transport:
            def input(self) -> Any:
                return call._line

            def output(self) -> Any:
                return call._speaker

        pipeline: Pipeline = names["build"](Transport(), Deaf(), model, call._voice, call.pair)
        (memory,) = [p for p in pipeline.processors if isinstance(p, MossVoiceMemory)]
        memory._options["deadline_ms"] = 30_000.0
        call.pipeline = pipeline
        call.worker = PipelineWorker(pipeline, enable_rtvi=False, idle_timeout_secs=None)
        call._listen()
        async with call:
            await call.start()
            await call.caller_says("how long does a refund take to my card")
        assert "[support-faqs: refunds] Refunds reach your card" in str(model.prompts[-1])
        async with await client.session("call-123") as pushed:
            texts = [doc.text for doc in await pushed.get_docs()]
        assert texts == ["how long does a refund take to my card", "let me see"]
