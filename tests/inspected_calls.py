"""Recordings for the tests of the inspector: the demo's call as it is recalled here, and made-up ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moss_voice import MossClient, demo
from moss_voice.call.recording import (
    Candidate,
    Known,
    RecordedContext,
    RecordedLookup,
    RecordedTurn,
    Recording,
    Settings,
    Timing,
    Why,
    find_recordings,
    read_recording,
)
from moss_voice.cli.play import play
from moss_voice.types import HitParts

__all__ = [
    "candidate",
    "context",
    "demo_client",
    "demo_recording",
    "long_recording",
    "passage",
    "recording",
    "turn",
]

SETTINGS = Settings(5, 0.8, 0.55, 600, 50.0)


def candidate(number: int, *, why: Why = "", score: float = 0.7, **changes: Any) -> Candidate:
    """A turn that was found."""
    made = Candidate(
        f"turn-{number}",
        f"turn {number}, caller, 00:{number % 60:02}",
        "call-1",
        f"what was said in turn {number}",
        score,
        HitParts(semantic=0.4, keyword=0.11, neighbour=-0.02, recency=0.01, repeat=-0.04),
        {"turn": number, "speaker": "caller"},
        why,
    )
    return replace(made, **changes)


def passage(name: str, *, why: Why = "", score: float = 0.8, **changes: Any) -> Candidate:
    """A passage that was found."""
    made = Candidate(
        name,
        f"faq: {name}",
        "faq",
        f"Passage {name} of the questions that callers ask.",
        score,
        HitParts(semantic=0.5, keyword=0.08, focus=0.3),
        {"source": "faq.md"},
        why,
    )
    return replace(made, **changes)


def context(number: int, turn_number: int | None, **changes: Any) -> RecordedContext:
    """A context of the reply to a turn."""
    made = RecordedContext(
        number=number,
        at_s=float(turn_number or number) * 4.0 + 3.0,
        turn_id=None if turn_number is None else f"turn-{turn_number}",
        last_turn=max(0, (turn_number or 0) - 1),
        query=f"what about {turn_number}",
        is_turn=turn_number is not None,
        visible=(),
        seen=(),
        budget=600,
        top_k=5,
        deadline_ms=50.0,
        outcome="ok",
        took_ms=2.5,
        prefetched="no",
        interim="",
        again=False,
        need=1.4,
        needs={"faq": 1.4},
        text="<call_memory>\nRecalled.\n- [faq: refunds] Passage refunds\n</call_memory>",
        tokens=20,
        hits=(passage("refunds"), candidate(1)),
        left_out=(candidate(2, why="visible"), candidate(3, why="rank", score=0.6)),
        timing=Timing(0.1, 1.6, 0.5, 0.2),
        about=("Lamplighter Inn",),
        interims=2,
    )
    return replace(made, **changes)


def turn(number: int, **changes: Any) -> RecordedTurn:
    """A turn of four seconds, the odd ones the agent's."""
    speaker = "agent" if number % 2 else "caller"
    made = RecordedTurn(
        f"turn-{number}",
        number,
        speaker,
        f"what {speaker} says in turn {number}",
        number * 4.0,
        number * 4.0 + 3.5,
    )
    return replace(made, **changes)


def recording(
    turns: Sequence[RecordedTurn] | None = None,
    contexts: Sequence[RecordedContext] | None = None,
    **changes: Any,
) -> Recording:
    """A call of six turns with a context for each of the caller's."""
    said = [turn(number) for number in range(1, 7)] if turns is None else turns
    asked = (
        [
            context(place, each.number)
            for place, each in enumerate(
                (each for each in said if each.speaker == "caller"), start=1
            )
        ]
        if contexts is None
        else contexts
    )
    made = Recording(
        call="call-1",
        project="shop",
        cloud=None,
        model_id="moss-minilm",
        created_at=datetime(2026, 11, 27, 9, 30, 0, tzinfo=UTC),
        redacted=False,
        settings=SETTINGS,
        knowledge=(Known("faq", 3, 34, ("title",)),),
        turns=tuple(said),
        contexts=tuple(asked),
        lookups=(
            RecordedLookup(9.0, "search_knowledge", "opening hours", 3.1, (passage("hours"),)),
        ),
        end="pushed",
        ended_s=max((each.end_s for each in said), default=0.0),
        version=1,
        doc_count=len(said),
        missed=0,
        damaged=0,
    )
    return replace(made, **changes)


def long_recording(turns: int) -> Recording:
    """A call of many turns, each of the caller's with five hits and sixteen left out."""
    said = [
        turn(number, text=f"turn {number}: " + "so what I was going to ask is this " * 4)
        for number in range(1, turns + 1)
    ]
    reasons: tuple[Why, ...] = ("visible", "repeat", "budget", "rank", "min_score", "gate")
    asked = list[RecordedContext]()
    for each in said:
        if each.speaker != "caller":
            continue
        hits = tuple(
            passage(f"passage-{each.number % 40}-{i}", text="A passage of some length. " * 16)
            for i in range(5)
        )
        left = tuple(
            candidate(
                1 + (each.number * 7 + i) % turns,
                why=reasons[i % len(reasons)],
                text="so what I was going to ask is this " * 4,
            )
            for i in range(16)
        )
        block = "\n".join(f"- [{hit.source}] {hit.text}" for hit in hits)
        asked.append(
            context(len(asked) + 1, each.number, hits=hits, left_out=left, text=block, tokens=590)
        )
    return recording(said, asked)


async def demo_recording(folder: Path, **options: Any) -> Recording:
    """Play the demo's call with a real memory that is recorded; its cloud stays below the folder."""
    script = demo.call()
    async with demo_client(folder) as client:
        await client.create_index("larkline", demo.faq_documents())
        call = await client.call(
            script.id, knowledge=["larkline"], record=folder / "recordings", **options
        )
        try:
            async for _ in play(call, script):
                pass
        finally:
            await call.end()
            await call.recorded()
    (path,) = find_recordings(folder / "recordings")
    return read_recording(path)


def demo_client(folder: Path) -> MossClient:
    """Where the knowledge of such a call is."""
    return MossClient(
        "demo", cloud=folder / "cloud", cache_path=folder / "cache", journal_path=folder / "journal"
    )
