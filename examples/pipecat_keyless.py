"""A bot with a memory in a real pipeline, without a server or a key: `python examples/pipecat_keyless.py`.

The language model is scripted and the voice is silent; what the model was shown for the last turn is
printed.
"""

import asyncio
import tempfile

from loguru import logger
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import ScriptedLLMService, SimulatedCall

from moss_voice import DocumentInfo, MossClient

FAQ = [
    DocumentInfo("refunds", "Refunds reach your card within five working days."),
    DocumentInfo("hours", "The hotline is open from eight to eight, on Sundays from ten."),
]


async def main(folder: str) -> None:
    """Have a short call, and show what the model was told at the end of it."""
    async with MossClient(cloud=folder) as client:
        await client.create_index("support-faqs", FAQ)
        model = ScriptedLLMService(lambda _: "I see.")
        # The model sees the last four messages; the rest is recalled where it helps.
        memory = MossVoiceMemory(client, knowledge=["support-faqs"], window=4)
        call = SimulatedCall(model, processors=[memory], speed=50)
        async with call:
            await call.start()
            await call.caller_says(
                "hi, I'm Ines Ibarra and I was charged twice, forty nine ninety nine"
            )
            await call.types("my address is still the one in Leeds")
            await call.caller_says("and I would like a new card, please")
            await call.caller_says("which amount was I charged twice?")
        for message in model.prompts[-1][-2:]:
            print(message["content"])
        turns = memory.memory.counters.turns
        print(f"\npushed as {memory.memory.name!r}: {turns} turns")


if __name__ == "__main__":
    logger.remove()  # Pipecat tells of every frame
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
