"""An agent with a memory in a real AgentSession, without a server or a key: `python examples/livekit_keyless.py`.

The language model is scripted; what it was shown for the last turn is printed.
"""

import asyncio
import tempfile

from livekit.agents import Agent, AgentSession, llm
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.testing import ScriptedLLM

from moss_voice import DocumentInfo, MossClient

FAQ = [
    DocumentInfo("refunds", "Refunds reach your card within five working days."),
    DocumentInfo("hours", "The hotline is open from eight to eight, on Sundays from ten."),
]


def shown(prompt: llm.ChatContext) -> str:
    """Return the end of a prompt: what comes just before the caller's words, and those."""
    before, words = prompt.messages()[-2:]
    return f"{before.raw_text_content}\n{words.raw_text_content}"


async def main(folder: str) -> None:
    """Have a short call, and show what the model was told at the end of it."""
    async with MossClient(cloud=folder) as client:
        await client.create_index("support-faqs", FAQ)
        model = ScriptedLLM(lambda _: "I see.")
        session = AgentSession[None](llm=model, vad=None, turn_handling={"turn_detection": None})
        # The model sees the last four items; the rest is recalled where it helps.
        call = await moss_voice.attach(session, client, knowledge=["support-faqs"], window=4)
        await session.start(Agent(instructions="You are a support agent."))
        for line in (
            "hi, I'm Ines Ibarra and I was charged twice, forty nine ninety nine",
            "my address is still the one in Leeds",
            "and I would like a new card, please",
            "which amount was I charged twice?",
        ):
            await session.run(user_input=line)
        await session.aclose()
        print(shown(model.prompts[-1]))
        print(f"\npushed as {call.name!r}: {call.counters.turns} turns")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
