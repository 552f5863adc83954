"""`moss-voice demo`: a support call from the first turn to a colleague who takes it up."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import platformdirs
from rich.console import Console
from rich.text import Text

from moss_voice import demo
from moss_voice.call.recording import find_recordings
from moss_voice.calls import CallScript
from moss_voice.cli.play import (
    Played,
    Tally,
    show_rows,
    show_turn,
    show_wrapped,
    tally_rows,
)
from moss_voice.cli.shell import Host, Pace, Shell, plain, quiet_recordings
from moss_voice.cli.specialist import Visit, ask_specialist
from moss_voice.cli.stage import Scene, Stage, find_stage
from moss_voice.client import MossClient
from moss_voice.errors import MossError
from moss_voice.types import PushIndexResult

__all__ = ["KeptDemo", "kept_demo", "run_demo"]

KNOWLEDGE = "larkline"
PROJECT = "demo"
_TOP_K = 5
_CLOUD = "cloud"
_RECORDINGS = "recordings"


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
    with tempfile.TemporaryDirectory(prefix="moss-voice-demo-") as folder, quiet_recordings():
        root = Path(folder)
        scene = Scene(
            script,
            (KNOWLEDGE,),
            pace,
            top_k,
            deadline_ms,
            _UNSAID,
            without,
            root / _RECORDINGS,
        )
        with shell.progress("Looking for LiveKit", quiet=host is Host.NONE):
            stage = find_stage(host, scene)
        client = MossClient(
            PROJECT,
            shell.project_key,
            cloud=root / _CLOUD,
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
            cloud=str(root / _CLOUD),
            project_id=PROJECT,
            project_key=shell.project_key,
            top_k=_TOP_K,
        )
        kept = await asyncio.to_thread(_keep, root)
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
        _show_next(out, kept)
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
        " loaded included. Everything stays on this machine."
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


def _show_next(out: Console, kept: KeptDemo | None) -> None:
    out.print()
    out.print(Text.assemble(("Next", "bold"), (_program(), "dim")))
    lines = [
        ("moss-voice index create faq FILES...", "index your own FAQ"),
        ('moss-voice query faq "how do I get a refund"', "ask it"),
        ("moss-voice replay CALLS.jsonl --knowledge faq", "play recorded calls with it"),
        ("moss-voice doctor", "check this machine"),
    ]
    if kept is not None:
        lines.insert(0, ("moss-voice inspect demo", "see this call, turn by turn"))
    for line, what in lines:
        out.print(Text.assemble("  ", (f"{line:<47}", "cyan"), what), soft_wrap=True)
    if kept is not None:
        about = (
            f"This call, which is made up, is kept for that in {kept.recording.parents[2]}, with its FAQ;"
            " real calls are recorded only where you ask for it."
        )
        out.print()
        show_wrapped(out, Text(about, style="dim"), head=Text())


def _program() -> str:
    """Tell where the program is, where a shell would not find it by its name."""
    if shutil.which("moss-voice") or not Path(sys.argv[0]).is_file():
        return ""
    here = os.path.relpath(sys.argv[0])
    return f", with {here if not here.startswith('..') else sys.argv[0]} as moss-voice"


# --- what is kept of it ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class KeptDemo:
    """What is kept of the last demo, for `moss-voice inspect demo`."""

    recording: Path
    cloud: Path


def _home() -> Path:
    return Path(platformdirs.user_data_dir("moss_voice", appauthor=False)) / "demo"


def kept_demo() -> KeptDemo | None:
    """Return what is kept of the last demo, None where there was none."""
    found = find_recordings(_home() / _RECORDINGS)
    return KeptDemo(found[0], _home() / _CLOUD) if found else None


def _keep(root: Path) -> KeptDemo | None:
    """Keep the cloud and the recording of a demo in place of the one before; None where it cannot be."""
    home = _home()
    fresh, old = (home.with_name(f"demo~{secrets.token_hex(4)}") for _ in range(2))
    try:
        fresh.mkdir(parents=True)
        for part in (_CLOUD, _RECORDINGS):
            shutil.copytree(root / part, fresh / part)
        with suppress(FileNotFoundError):
            home.replace(old)
        fresh.replace(home)
    except OSError:
        shutil.rmtree(fresh, ignore_errors=True)
        return None
    finally:
        shutil.rmtree(old, ignore_errors=True)
    return kept_demo()
