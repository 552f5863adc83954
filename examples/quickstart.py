"""A call remembered, and resumed by another agent: run it with `python examples/quickstart.py`."""

import asyncio
import tempfile

from moss_voice import DocumentInfo, MossClient

FAQ = [
    DocumentInfo("refunds", "Refunds reach your card within five working days."),
    DocumentInfo(
        "cards", "A lost card is blocked at once; the new one comes by post in three days."
    ),
    DocumentInfo("hours", "The hotline is open from eight to eight, on Sundays from ten."),
]


async def main(folder: str) -> None:
    async with MossClient(cloud=folder) as client:
        await client.create_index("support-faqs", FAQ)

        call = await client.call(
            "call-123", knowledge=["support-faqs"], deadline_ms=1_000
        )  # 50 ms by default
        await call.heard(
            "hi, I'm Ines Ibarra, I was charged twice, forty nine ninety nine", speaker="caller"
        )
        await call.heard("I see the double charge and will refund one of them", speaker="agent")
        question = "and how long until I have my money back?"
        context = await call.context(question)
        print(context.text)
        await call.heard(question, speaker="caller")
        await call.end()  # pushed: the next agent resumes it by name

    async with MossClient(cloud=folder) as specialist:
        call = await specialist.call("call-123")
        for hit in await call.recall("how much was the customer charged?", top_k=2):
            print(f"{hit.source}: {hit.text}")
        await call.discard()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(folder))
