"""`moss-voice demo`: a support call from the first turn to a colleague who takes it up."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from moss_voice import demo
from moss_voice.calls import CallScript
from moss_voice.cli.play import (
    Played,
    Tally,
    show_rows,
    show_turn,
    show_wrapped,
    tally_rows,
)
from moss_voice.cli.shell import Host, Pace, Shell, plain
from moss_voice.cli.specialist import Visit, ask_specialist
from moss_voice.cli.stage import Scene, Stage, find_stage
from moss_voice.client import MossClient
from moss_voice.errors import MossError
from moss_voice.types import PushIndexResult

__all__ = ["run_demo"]

KNOWLEDGE = "larkline"
PROJECT = "demo"
_TOP_K = 5


# What the agent was going on to say where the caller cuts in: about as much again.
_UNSAID = {
    9: "fifteen seconds, until the light goes out. That wipes your wi-fi name and password, so you would"
    " have to type them in again afterwards, and it takes about five minutes until the router has found"
    " our network. Shall we try the switch at the wall first, and then see?"
}


async def run_demo(
    shell: Shell,
    *,
    host: Host,
    pace: Pace,
    top_k: int,
    deadline_ms: float,
    without: Sequence[str] = (),
    explain: bool = False,
) -> None:
    """Play the demo in a temporary cloud and tell what happened; `explain` also tells why."""
    script, documents, questions = demo.call(), demo.faq_documents(), demo.questions()
    out = None if shell.json else shell.out
    tally, played = Tally(calls=1), list[Played]()
    scene = Scene(script, (KNOWLEDGE,), pace, top_k, deadline_ms, _UNSAID, without)
    with shell.progress("Looking for LiveKit", quiet=host is Host.NONE):
        stage = find_stage(host, scene)
    with tempfile.TemporaryDirectory(prefix="moss-voice-demo-") as folder:
        root = Path(folder)
        client = MossClient(
            PROJECT,
            shell.project_key,
            cloud=root / "cloud",
            cache_path=root / "cache",
            journal_path=root / "journal",
        )
        async with client:
            started = time.perf_counter()
            with shell.progress("Embedding the FAQ") as moved:
                await client.create_index(KNOWLEDGE, documents, on_progress=moved)
            indexed_ms = (time.perf_counter() - started) * 1000.0
            if out is not None:
                _introduce(out, stage, script, len(documents), indexed_ms)
            try:
                async with aclosing(stage.play(client)) as turns:
                    async for turn in turns:
                        tally.add(turn)
                        played.append(turn)
                        if out is not None:
                            show_turn(out, turn, explain=explain)
            finally:
                for note in stage.notes:
                    shell.err.print(plain(note))
        pushed = _checked(stage.pushed, tally, script)
        if out is not None:
            _show_push(out, stage, tally, pushed)
        told = await ask_specialist(
            [Visit(script.id, [question.query for question in questions])],
            cloud=str(root / "cloud"),
            project_id=PROJECT,
            project_key=shell.project_key,
            top_k=_TOP_K,
        )
    resumed = told["calls"][0]
    ids = {turn.turn.number: turn.id for turn in played if turn.id is not None}
    answers = [
        _judged(question, answer, {ids[number] for number in question.turns if number in ids})
        for question, answer in zip(questions, resumed["answers"], strict=True)
    ]
    if out is not None:
        _show_specialist(
            out, told["pid"], resumed, answers, {turn.id: turn for turn in played if turn.id}
        )
    else:
        shell.emit(
            {
                "call": script.id,
                "timing": script.timing,
                "host": stage.as_json(),
                "knowledge": {"index": KNOWLEDGE, "docs": len(documents), "took_ms": indexed_ms},
                "turns": [turn.as_json() for turn in played],
                "summary": tally.as_json(),
                "push": pushed,
                "specialist": {
                    "pid": told["pid"],
                    "docs": resumed["docs"],
                    "resume_ms": resumed["resume_ms"],
                    "answers": answers,
                },
            }
        )
    if resumed["docs"] != pushed.doc_count:
        raise MossError(
            f"the specialist resumed {resumed['docs']} turns where {pushed.doc_count} were pushed"
        )


def _checked(pushed: PushIndexResult | None, tally: Tally, script: CallScript) -> PushIndexResult:
    """Return the push, which must hold every turn that was spoken, and nothing else."""
    if pushed is None:
        raise MossError("the demo's call could not be pushed")
    spoken = len(script.spoken)
    if not pushed.doc_count == tally.turns == spoken:
        raise MossError(
            f"of the {spoken} turns of the demo's call {tally.turns} were remembered and"
            f" {pushed.doc_count} pushed"
        )
    return pushed


def _judged(
    question: demo.Question, answer: Mapping[str, Any], expected: Collection[str]
) -> dict[str, Any]:
    """Hold what was found against the turns that answer; `rank` is None where none of them was."""
    ranks = [
        rank
        for rank, doc in enumerate(answer["docs"], start=1)
        if doc["id"] in expected and question.answer.casefold() in doc["text"].casefold()
    ]
    return {
        "query": question.query,
        "expected": sorted(expected),
        "rank": ranks[0] if ranks else None,
        "took_ms": answer["took_ms"],
        "docs": answer["docs"],
    }


def _ordinal(rank: int) -> str:
    return {1: "1st", 2: "2nd", 3: "3rd"}.get(rank, f"{rank}th")


def _introduce(
    out: Console, stage: Stage, script: CallScript, passages: int, indexed_ms: float
) -> None:
    out.print(Text("moss_voice: the memory of a voice agent", style="bold"))
    turns, minutes = len(script.spoken), script.turns[-1].end_s / 60
    about = (
        f"A call of {turns} turns in {minutes:.0f} minutes to Larkline, a telecom company made up"
        f" for this demo. Its {passages} FAQ passages were indexed in {indexed_ms:.0f} ms, the model"
        " loaded included. Everything stays on this machine, in a temporary directory."
    )
    show_wrapped(out, Text(about), head=Text())
    show_wrapped(out, Text(stage.about), head=Text())
    legend = Text(
        "Below each caller's turn: what the agent is reminded of before it replies, from "
    )
    legend.append("earlier turns", style="cyan")
    legend.append(" and from the ")
    legend.append("FAQ", style="magenta")
    legend.append(
        ", with scores; ✓ marks the passage that answers. Turns that the LLM still sees are left out."
    )
    show_wrapped(out, legend, head=Text())
    out.print()


def _show_push(out: Console, stage: Stage, tally: Tally, pushed: PushIndexResult) -> None:
    out.print()
    out.print(Text("The call in numbers", style="bold"))
    size = f"{pushed.doc_count} turns, {pushed.uploaded_bytes / 1000:.0f} kB, as version {pushed.version}"
    show_rows(out, [*tally_rows(tally), *stage.rows(), ("pushed at the hang-up", size)])


def _show_specialist(
    out: Console,
    pid: int,
    resumed: Mapping[str, Any],
    answers: list[dict[str, Any]],
    played: Mapping[str, Played],
) -> None:
    out.print()
    out.print(Text("The specialist, another process, takes up the call", style="bold"))
    about = (
        f"Process {pid} resumed {resumed['docs']} turns by name in {resumed['resume_ms']:.0f} ms (the"
        " model loaded included), without embedding one of them again, and asks:"
    )
    show_wrapped(out, Text(about), head=Text("  "))
    for answer in answers:
        rank = answer["rank"]
        mark = Text("  ✓ ", style="green") if rank else Text("  ✗ ", style="red")
        asked = Text.assemble((answer["query"], "bold"), (f"  {answer['took_ms']:.1f} ms", "dim"))
        show_wrapped(out, asked, head=mark)
        if not rank:
            told = Text(f"not among the first {_TOP_K} found", style="red")
        else:
            doc = answer["docs"][rank - 1]
            told = Text(
                f"turn {played[doc['id']].number}, {doc['metadata']['speaker']}", style="cyan"
            )
            told.append(f" {doc['score']:.2f}{f', found {_ordinal(rank)}' if rank > 1 else ''}: ")
            told.append(plain(doc["text"]), style="dim")
        show_wrapped(out, told, head=Text("    "))
    found = sum(answer["rank"] is not None for answer in answers)
    first = sum(answer["rank"] == 1 for answer in answers)
    out.print(f"  {found} of {len(answers)} answers found, {first} of them in first place.")
    out.print()
    out.print(Text("Next", style="bold"))
    for line, what in (
        ("moss-voice index create faq FILES...", "index your own FAQ"),
        ('moss-voice query faq "how do I get a refund"', "ask it"),
        ("moss-voice replay CALLS.jsonl --knowledge faq", "play recorded calls with it"),
        ("moss-voice doctor", "check this machine"),
    ):
        out.print(Text.assemble("  ", (f"{line:<47}", "cyan"), what), soft_wrap=True)
