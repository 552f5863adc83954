"""A LiveKit voice agent that remembers its call.

Index your FAQ once, then start the worker (LIVEKIT_URL, LIVEKIT_API_KEY and LIVEKIT_API_SECRET are set):

    moss-voice index create support-faqs faq.md
    python -m livekit.agents start examples/livekit_agent.py --dev

The models are LiveKit Inference's by default; name others in STT_MODEL, LLM_MODEL and TTS_MODEL.
"""

import logging
import os

from livekit.agents import Agent, AgentServer, AgentSession, JobContext, JobProcess
from livekit.plugins import moss_voice

from moss_voice import CallContext

logger = logging.getLogger("support-agent")
KNOWLEDGE = os.environ.get("KNOWLEDGE", "support-faqs").split(",")


class SupportAgent(Agent):
    """An agent as any other: nothing in it knows of the memory."""

    def __init__(self) -> None:
        super().__init__(
            instructions=(
                "You are the support agent of a telecom company, on the phone. Be brief and friendly."
                " What is recalled from the call and from the knowledge base comes before the caller's"
                " words: rely on it, and say so when you do not know."
            )
        )

    async def on_enter(self) -> None:
        """Greet the caller."""
        await self.session.generate_reply(instructions="Greet the caller and offer your help.")


def prewarm(proc: JobProcess) -> None:
    """Load the model and the FAQ while the process waits for a call."""
    moss_voice.prewarm(proc, knowledge=KNOWLEDGE)


def note(context: CallContext) -> None:
    """Log what was recalled for a reply: sources and times, never what was said."""
    sources = [hit.source for hit in context.hits]
    logger.info("recalled %s in %.1f ms (%s)", sources, context.took_ms, context.outcome)


server = AgentServer(
    setup_fnc=prewarm,
    # Loads the embedding model once for all job processes.
    preload_modules=["livekit.plugins.moss_voice.preload"],
)


@server.rtc_session()
async def entrypoint(ctx: JobContext) -> None:
    """Serve one call: the memory is one line, before the session starts."""
    session = AgentSession[None](
        stt=os.environ.get("STT_MODEL", "deepgram/nova-3"),
        llm=os.environ.get("LLM_MODEL", "openai/gpt-4.1-mini"),
        tts=os.environ.get("TTS_MODEL", "cartesia/sonic-3"),
    )
    await moss_voice.attach(session, window=24, on_context=note)
    await session.start(SupportAgent(), room=ctx.room)
