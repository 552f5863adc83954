"""A Pipecat voice bot that remembers its call, on Pipecat's own runner.

Index your FAQ once, install the runner and the services, and start the bot:

    moss-voice index create support-faqs faq.md
    pip install "moss-voice[pipecat]" "pipecat-ai[runner,webrtc,deepgram,cartesia]"
    python examples/pipecat_bot.py

DEEPGRAM_API_KEY, OPENAI_API_KEY and CARTESIA_API_KEY come from the environment.
"""

import os

from pipecat.audio.vad.silero import SileroVADAnalyzer
from pipecat.frames.frames import LLMRunFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
)
from pipecat.processors.frame_processor import FrameProcessor
from pipecat.runner.types import RunnerArguments
from pipecat.transports.base_transport import BaseTransport, TransportParams
from pipecat.workers.runner import WorkerRunner
from pipecat_moss_voice import MossVoiceMemory

INSTRUCTIONS = (
    "You are the support agent of a telecom company, on the phone. Be brief and friendly. What is"
    " recalled from the call and from the knowledge base comes before the caller's words: rely on it,"
    " and say so when you do not know."
)


def services() -> tuple[FrameProcessor, FrameProcessor, FrameProcessor]:
    """Make the services; others of Pipecat's do as well."""
    from pipecat.services.cartesia.tts import CartesiaTTSService
    from pipecat.services.deepgram.stt import DeepgramSTTService
    from pipecat.services.openai.llm import OpenAILLMService

    voice = CartesiaTTSService.Settings(voice="71a7ad14-091c-4e8e-a314-022ece01c121")
    return (
        DeepgramSTTService(api_key=os.environ["DEEPGRAM_API_KEY"]),
        OpenAILLMService(settings=OpenAILLMService.Settings(system_instruction=INSTRUCTIONS)),
        CartesiaTTSService(api_key=os.environ["CARTESIA_API_KEY"], settings=voice),
    )


async def run_bot(transport: BaseTransport, *, handle_sigint: bool = False) -> None:
    """Serve one call: the memory is one processor in the pipeline."""
    stt, llm, tts = services()
    memory = MossVoiceMemory(knowledge=["support-faqs"], window=24)
    context = LLMContext(tools=[memory.search_knowledge, memory.recall_call])
    user, assistant = LLMContextAggregatorPair(
        context, user_params=LLMUserAggregatorParams(vad_analyzer=SileroVADAnalyzer())
    )
    pipeline = Pipeline(
        [transport.input(), stt, user, memory, llm, tts, transport.output(), assistant]
    )
    worker = PipelineWorker(pipeline, params=PipelineParams(enable_metrics=True))

    async def greet(_: BaseTransport, __: object) -> None:
        context.add_message({"role": "developer", "content": "Greet the caller."})
        await worker.queue_frames([LLMRunFrame()])

    async def hang_up(_: BaseTransport, __: object) -> None:
        await worker.cancel()  # the call is pushed on the way out

    transport.add_event_handler("on_client_connected", greet)
    transport.add_event_handler("on_client_disconnected", hang_up)
    runner = WorkerRunner(handle_sigint=handle_sigint)
    await runner.add_workers(worker)
    await runner.run()


async def bot(runner_args: RunnerArguments) -> None:
    """What Pipecat's runner calls for each call."""
    from pipecat.runner.utils import create_transport

    both_ways = TransportParams(audio_in_enabled=True, audio_out_enabled=True)
    transport = await create_transport(runner_args, {"webrtc": lambda: both_ways})
    await run_bot(transport, handle_sigint=runner_args.handle_sigint)


if __name__ == "__main__":
    from pipecat.runner.run import main

    main()
