"""One customer, three channels, one index: run it with `python examples/omni_channel.py`.

A phone agent, a chat agent and an e-mail agent, each a process of its own, one after the other. They share
a directory here; an object store or a server does as well (`cloud=`). Whoever comes next opens the index by
its name: nothing is embedded anew, and what was said on the phone is found from an e-mail.
"""

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

from moss_voice import DocumentInfo, MossClient, QueryOptions

CASE = "case-2041"
SPOKEN = [
    (2.1, "caller", "hi it's Ines Ibarra, um, the washing machine you delivered leaks at the door"),
    (9.4, "agent", "I am sorry. A technician can come on Thursday between eight and twelve."),
    (16.0, "caller", "thursday is fine, ring the lower bell please, the one at the gate is broken"),
    (23.7, "agent", "Noted. Your repair number is four seven one one."),
]
MAIL = """The water has reached the carpet in the hall by now.
I will be at work on Friday, and a neighbour lets the technician in. I told you on the phone which bell
he should ring: please pass that on."""


async def phone(client: MossClient) -> None:
    """Hear a spoken call; in a live one a plugin does this, from the recogniser's finals."""
    async with await client.call(CASE) as call:
        for at, speaker, text in SPOKEN:
            await call.heard(text, speaker, at=at, metadata={"channel": "phone"})
    # The call has ended here, and is pushed.


async def chat(client: MossClient) -> None:
    """Go on in a chat: typed turns in the same index, and the context for a reply."""
    # Who types can wait longer than who is on the phone: a second, where a voice agent gives 50 ms.
    async with await client.call(CASE, deadline_ms=1_000) as call:
        asked = "Could the technician come on Friday instead?"
        await call.heard(asked, "caller", typed=True, metadata={"channel": "chat"})
        context = await call.context(asked)  # what an LLM gets before the customer's words
        print(f"The chat agent resumes {CASE} and is told:\n{context.text}")
        reply = "Yes, on Friday between one and five. The repair number stays the same."
        await call.heard(reply, "agent", typed=True, metadata={"channel": "chat"})


async def email(client: MossClient) -> None:
    """Add an e-mail as a document, and look up what it refers to, channel by channel."""
    session = await client.session(CASE)
    await session.add_docs(
        [DocumentInfo("mail-1", MAIL, {"channel": "email", "subject": "Friday"})]
    )
    print("\nThe e-mail agent looks up:")
    for question, channel in (
        ("what is wrong with the washing machine?", None),
        ("which bell is he to ring?", "phone"),
        ("does the repair number change?", "chat"),
    ):
        only = {"field": "channel", "condition": {"$eq": channel}} if channel else None
        found = (await session.query(question, QueryOptions(top_k=1, filter=only))).docs[0]
        said_in = (found.metadata or {})["channel"]
        print(f"  {question} (in {channel or 'all'})\n    {said_in}: {found.text}")
    # Merged, not replaced: the customer may be on the phone again meanwhile.
    pushed = await session.push_index(on_conflict="merge")
    print(f"\n{CASE} is at version {pushed.version}, with {pushed.doc_count} documents.")


AGENTS = {"phone": phone, "chat": chat, "email": email}


async def work(channel: str, folder: Path) -> None:
    """Be one channel's agent, with a cache and a journal of its own, as on another machine."""
    own = folder / channel
    async with MossClient(cloud=folder / "cloud", cache_path=own, journal_path=own) as client:
        await AGENTS[channel](client)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for channel in AGENTS:
            subprocess.run([sys.executable, __file__, channel, folder], check=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        asyncio.run(work(sys.argv[1], Path(sys.argv[2])))
    else:
        main()
