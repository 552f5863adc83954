"""A call goes to a human, with a brief drawn from it: run it with `python examples/escalation_brief.py`.

No LLM writes the brief. Each line is a turn as it was said, with its source, so that nothing in it is made
up: turns found by a few fixed questions, turns that hold a number, and what nobody has answered yet. It can
miss what was said in an unexpected way; an LLM could phrase it better, from the same lines.
"""

import asyncio
import re
import tempfile
from pathlib import Path

from moss_voice import CallMemory, DocumentInfo, MossClient
from moss_voice.text import asks

PLANS = ["Fibre 100", "Fibre 500", "Mobile Basic", "Mobile Plus", "Landline Flat"]
TURNS = """caller: hi, my name is Ines Ibarra, I am calling about my mobile plus
agent: Good morning. What can I do for you?
caller: it was charged twice in march, the second time on the thirtieth
agent: May I have your customer number?
caller: yes it's four four seven one, nine zero two six
agent: Thank you. I see both charges. I will refund one of them within five working days.
caller: and you cancelled the roaming option that I had asked to keep
agent: I cannot switch that on again myself. I promise that a colleague calls you back today.
caller: okay, but who pays for the calls I made from Lisbon?"""
# What is looked for, who will have said it, and how many turns at most.
LOOKED_FOR = [
    ("Who", "caller", "my name is", 1),
    ("What happened", "caller", "what is wrong: charged, cancelled, broken, missing", 2),
    ("Promised", "agent", "I will do it within days, I promise", 2),
]
DIGIT = r"(?:\d+|oh|double|zero|one|two|three|four|five|six|seven|eight|nine)"
NUMBER = re.compile(rf"\b{DIGIT}(?:\W+{DIGIT}){{2,}}\b|\d{{3,}}", re.IGNORECASE)


def said(turn: DocumentInfo) -> str:
    at = turn.metadata or {}
    minutes, seconds = divmod(int(at["at_s"]), 60)
    return f"  {turn.text}  [turn {at['turn']}, {at['speaker']}, {minutes:02}:{seconds:02}]"


async def draw_brief(call: CallMemory) -> str:
    """Return what a human should know before the first word, each line with its turn."""
    lines = [
        f"Brief for {call.name}",
        f"About: {', '.join(call.about) or 'nothing that has a name'}",
    ]
    for title, speaker, question, most in LOOKED_FOR:
        hits = await call.recall(question, top_k=8)
        hits = [hit for hit in hits if hit.metadata.get("speaker") == speaker][:most]
        lines += [f"{title}:", *(f"  {hit.text}  [{hit.source}]" for hit in hits)]
    turns = await call.session.get_docs()  # in the order they were said
    lines += ["Numbers:", *(said(turn) for turn in turns if NUMBER.search(turn.text))]
    lines.append("Open, the newest first:")
    unanswered = True
    for turn in reversed(turns):
        unanswered = unanswered and (turn.metadata or {}).get("speaker") != "agent"
        # Asked after the agent's last word; or dropped by the host, which marks it so.
        if (unanswered and asks(turn.text)) or (turn.metadata or {}).get("unanswered"):
            lines.append(said(turn))
    return "\n".join(lines)


async def frontline(client: MossClient) -> None:
    """Take the call until it is too much for a bot."""
    async with await client.call("call-88", knowledge=["plans"]) as call:
        for at, line in enumerate(TURNS.splitlines()):
            speaker, _, text = line.partition(": ")
            await call.heard(text, speaker, at=7.0 * at)
        # A recogniser's final that no turn was made of: the caller spoke while the line was handed over.
        call.uttered("and do I have to call again?", at=70.0)


async def human(client: MossClient) -> None:
    """Read the brief, then search the call for what it does not say."""
    # A desk is no voice loop: it waits a second where an agent waits 50 ms.
    async with await client.call("call-88", knowledge=["plans"], deadline_ms=1_000) as call:
        print(await draw_brief(call), "\n")
        question = "when was the second payment taken?"
        (found,) = await call.recall(question, top_k=1)
        print(f"{question}\n  {found.text}  [{found.source}]")


async def main(folder: Path) -> None:
    for agent in (frontline, human):
        own = folder / agent.__name__
        async with MossClient(cloud=folder / "cloud", cache_path=own, journal_path=own) as client:
            if agent is frontline:
                docs = [DocumentInfo(plan, f"What {plan} costs.", {"plan": plan}) for plan in PLANS]
                await client.create_index("plans", docs)
            await agent(client)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
