"""Three agents, one index: run it with `python examples/multi_agent.py`.

Triage takes the call and hands it to billing and to technical support, who work on it at the same time. No
framework is needed for that, and no shared memory: each agent has a client of its own (here they share a
directory, else a server or a bucket), opens the call by its name, and pushes. A push of a call merges.
"""

import asyncio
import tempfile
from pathlib import Path

from moss_voice import CallMemory, MossClient

CALL = "call-311"


class Agent:
    """An agent's side of the index. What it says is given here; yours would ask its LLM."""

    def __init__(self, name: str, cloud: Path) -> None:
        self.name = name
        own = cloud.parent / name  # as on a machine of its own
        self.client = MossClient(cloud=cloud, cache_path=own, journal_path=own)

    async def take_up(self) -> CallMemory:
        # Between agents a second is no loss; a caller who waits for a reply is given 50 ms.
        return await self.client.call(CALL, deadline_ms=1_000)

    async def say(self, call: CallMemory, text: str) -> None:
        await call.heard(text, "agent", metadata={"agent": self.name})


async def triage(agent: Agent) -> None:
    call = await agent.take_up()
    await call.heard("hi, this is Ines Ibarra, customer four four seven one", "caller")
    await call.heard("the light of my router blinks red since yesterday", "caller")
    await call.heard("and I am still charged for the old contract, sixty euros", "caller")
    await agent.say(call, "I am getting billing and a technician for you.")
    await call.end()  # pushed: whoever is next opens it by its name


async def specialist(agent: Agent, asked: str, found: str, ready: asyncio.Barrier) -> None:
    """Look up what was said to the others, add what came of it, push when the other one does."""
    call = await agent.take_up()
    (hit,) = await call.recall(asked, top_k=1)
    print(f"{agent.name} asks: {asked}\n    {hit.source}: {hit.text}")
    await agent.say(call, found)
    await ready.wait()
    pushed = await call.end()  # of two that push at once, the second merges what the first brought
    if pushed is not None:
        news = f"merged with {', '.join(pushed.merged.added)}" if pushed.merged else "was first"
        print(f"{agent.name} pushed version {pushed.version}: {news}")


async def wrap_up(agent: Agent) -> None:
    """Close the case with what all of them said."""
    call = await agent.take_up()
    print(f"{agent.name} has all of it:")
    for turn in await call.session.get_docs():
        said = turn.metadata or {}
        print(f"    turn {said['turn']}, {said.get('agent', 'caller')}: {turn.text}")
    for asked in ("when does she get her money?", "is the router broken?"):
        (hit,) = await call.recall(asked, top_k=1)
        print(f"{asked}\n    {hit.metadata['agent']}: {hit.text}")
    await call.discard()  # only read


async def main(folder: Path) -> None:
    first, billing, technical = agents = [
        Agent(name, folder / "cloud") for name in ("triage", "billing", "technical")
    ]
    await triage(first)
    both = asyncio.Barrier(2)
    await asyncio.gather(
        specialist(billing, "what is she charged for?", "You get it all back by Friday.", both),
        specialist(
            technical, "what does the light do?", "The router is broken; a new one is sent.", both
        ),
    )
    await wrap_up(first)
    for agent in agents:
        await agent.client.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
