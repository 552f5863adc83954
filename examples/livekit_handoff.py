"""A frontline agent hangs up; a specialist in another session goes on: `python examples/livekit_handoff.py`.

The two share nothing but a folder: it might as well be another machine, days later. No key is needed: the
language models are scripted, and the specialist's says what it was shown.
"""

import asyncio
import tempfile

from livekit.agents import Agent, AgentSession, llm
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.testing import ScriptedLLM

from moss_voice import MossClient

CALL_ID = "call-4711"


def session_of(model: llm.LLM[str]) -> AgentSession[None]:
    """Return a session that is typed to: it needs no microphone."""
    return AgentSession(llm=model, vad=None, turn_handling={"turn_detection": None})


async def frontline(cloud: str) -> None:
    """Take the call; its index is pushed when the session closes."""
    async with MossClient(cloud=cloud) as client:
        session = session_of(ScriptedLLM(lambda _: "I have noted that and will get a specialist."))
        await moss_voice.attach(session, client, call_id=CALL_ID)
        await session.start(Agent(instructions="You take calls."))
        await session.run(user_input="my router is a Fritz 7590 and its red light is on")
        await session.run(user_input="I have restarted it twice already")
        await session.aclose()


class Specialist(Agent):
    """Opens the conversation itself."""

    async def on_enter(self) -> None:
        """Go on where the colleague stopped."""
        await self.session.generate_reply(instructions="Take over the call.")


async def specialist(cloud: str) -> None:
    """Resume the call by its name: nothing is embedded anew, and the first prompt knows of it."""
    model = ScriptedLLM(lambda _: "You have a Fritz 7590 and restarted it. Let us look further.")
    async with MossClient(cloud=cloud) as client:
        session = session_of(model)
        call = await moss_voice.attach(session, client, call_id=CALL_ID)
        print(f"resumed {call.session.doc_count} turns\n")
        await session.start(Specialist(instructions="You are a specialist for routers."))
        await session.run(user_input="which router do I have, again?")
        await session.aclose()
    for prompt in model.prompts:
        print("\n".join(message.raw_text_content or "" for message in prompt.messages()), "\n")


async def main(folder: str) -> None:
    """Run one after the other."""
    await frontline(folder)
    await specialist(folder)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
