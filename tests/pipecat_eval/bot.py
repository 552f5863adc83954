"""A keyless bot on Pipecat's own runner, which `test_recall.py` starts for `pipecat eval`.

    python bot.py --host 127.0.0.1 --port 0 [--without-memory]

Its model sees the last two messages, with what is recalled or, `--without-memory`, as they are. It
answers from what it is shown alone, and each time writes what that was to standard output, as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import sys

from pipecat.evals.transport import EvalTransportParams
from pipecat.frames.frames import Frame, LLMContextFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.runner.run import main
from pipecat.runner.types import RunnerArguments
from pipecat.runner.utils import create_transport
from pipecat.transports.base_transport import BaseTransport
from pipecat.turns.user_turn_strategies import ExternalUserTurnStrategies
from pipecat.workers.runner import WorkerRunner
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import Messages, ScriptedLLMService

WINDOW = 2
# What the bot can be asked for, and how it looks.
FACTS = {"order number": r"\b[A-Z]{2}-\d{4}\b", "shoe size": r"\bsize \d{2}\b"}


def answer(messages: Messages) -> str:
    """Say what is asked for where it is in sight."""
    texts = [str(message["content"]) for message in messages]
    sys.stdout.write(json.dumps(texts) + "\n")
    sys.stdout.flush()
    for asked, look in FACTS.items():
        if f"which {asked}" in texts[-1].lower():
            found = re.search(look, "\n".join(texts))
            return f"It is {found[0]}." if found else "I do not know."
    return "I see."


class WindowOnly(FrameProcessor):
    """Shows the model the last messages, and nothing of what was said before."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMContextFrame):
            frame.context = LLMContext([*frame.context.messages][-WINDOW:])
        await self.push_frame(frame, direction)


async def bot(runner_args: RunnerArguments) -> None:
    """Serve one conversation."""
    transport = await create_transport(runner_args, {"eval": EvalTransportParams})
    remembered: FrameProcessor
    if runner_args.cli_args is not None and runner_args.cli_args.without_memory:
        remembered = WindowOnly()
    else:
        # However slow the machine is: no recall is left out.
        remembered = MossVoiceMemory(
            window=WINDOW, open_timeout_s=60, options={"deadline_ms": 60_000.0}
        )
    pair = LLMContextAggregatorPair(
        LLMContext(),
        # Everything is typed: nobody has to tell when a turn ends.
        user_params=LLMUserAggregatorParams(user_turn_strategies=ExternalUserTurnStrategies()),
    )
    model = ScriptedLLMService(answer)
    worker = PipelineWorker(
        Pipeline(
            [
                transport.input(),
                pair.user(),
                remembered,
                model,
                transport.output(),
                pair.assistant(),
            ]
        )
    )

    async def hang_up(_: BaseTransport, __: object) -> None:
        await worker.cancel()

    transport.add_event_handler("on_client_disconnected", hang_up)
    runner = WorkerRunner(handle_sigint=False)
    await runner.add_workers(worker)
    await runner.run()


if __name__ == "__main__":
    options = argparse.ArgumentParser()
    options.add_argument("--without-memory", action="store_true")
    main(options)
