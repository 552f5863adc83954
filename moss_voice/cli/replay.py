"""`moss-voice replay`: calls from a file, played, pushed, and taken up by another process."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from moss_voice.calls import CallScript, read_calls
from moss_voice.cli.play import Played, Tally, play, show_rows, show_turn, tally_rows
from moss_voice.cli.shell import Pace, Shell, plain, where
from moss_voice.cli.specialist import Visit, ask_specialist
from moss_voice.client import MossClient
from moss_voice.errors import IndexNotFoundError, InvalidArgumentError, MossError
from moss_voice.faq import read_documents
from moss_voice.types import DocumentInfo, GetDocumentsOptions, PushIndexResult

__all__ = ["Options", "Place", "bring_knowledge", "place_for", "run_replay", "scripts_of"]

_PROJECT = "replay"


@dataclass(frozen=True, slots=True)
class Options:
    """What to replay, and how.

    Attributes:
        knowledge: Indexes of the cloud, or FAQ files.
        focus: Metadata fields of the knowledge that hold names of what a call can be about; None to
            find them by what they hold.
        without: Parts of the retrieval that are left out.
        explain: Tell what each hit was ranked by, and what the call is about.
        call: The one call to play; all where None.
        limit: The most calls.
        save: Push to the user's cloud, not to a temporary one.
        record: Keep a recording of each call; else as the environment says.
        brief: A line per call in place of its turns.
    """

    knowledge: Sequence[str] = ()
    focus: Sequence[str] | None = None
    without: Sequence[str] = ()
    explain: bool = False
    call: str | None = None
    limit: int | None = None
    save: bool = False
    record: bool = False
    brief: bool = False
    pace: Pace = Pace.FAST
    top_k: int = 5
    deadline_ms: float = 50.0
    visible: int = 6


@dataclass(frozen=True, slots=True)
class Place:
    """Where calls are pushed, as this process and another one open it."""

    client: MossClient
    cloud: str | None
    project_id: str | None
    project_key: str | None


async def run_replay(shell: Shell, path: Path, options: Options) -> None:
    """Play the calls of a file and tell what happened."""
    scripts = await asyncio.to_thread(scripts_of, path, options)
    out = None if shell.json else shell.out
    total, visits, kept = Tally(), list[Visit](), dict[str, int]()
    async with place_for(shell, options) as place:
        names = [await bring_knowledge(shell, place, name, options) for name in options.knowledge]
        scripts = await _with_known_gold(place, scripts, names)
        # The turns, shown on the same terminal, are progress enough.
        shown = out is not None and out.is_terminal
        with shell.progress("Playing the calls", quiet=shown) as moved:
            for done, script in enumerate(scripts):
                moved(done, len(scripts))
                tally, turns, pushed = await _play(out, place, script, names, options)
                total.merge(tally)
                kept[script.id] = pushed.doc_count
                visits.append(Visit(script.id, _probe(turns)))
                if out is None:
                    shell.emit(_call_json(script, turns, tally, pushed), indent=None)
        told = await ask_specialist(
            visits,
            cloud=place.cloud,
            project_id=place.project_id,
            project_key=place.project_key,
            key_file=shell.key_file,
        )
    whole = [call for call in told["calls"] if call["docs"] == kept[call["name"]]]
    probed = [
        (visit, call) for visit, call in zip(visits, told["calls"], strict=True) if visit.queries
    ]
    found = [
        call
        for visit, call in probed
        if any(doc["text"] == visit.queries[0] for doc in call["answers"][0]["docs"])
    ]
    if out is None:
        specialist = {
            "pid": told["pid"],
            "resumed": len(whole),
            "asked": len(probed),
            "found": len(found),
            "calls": [
                {"call": call["name"], "docs": call["docs"], "resume_ms": call["resume_ms"]}
                for call in told["calls"]
            ],
        }
        summary = {"kind": "summary", **total.as_json(), "specialist": specialist}
        shell.emit(summary, indent=None)
    else:
        _show_end(out, shell, options, total, told, len(whole), len(probed), len(found))
    if len(whole) < len(visits):
        raise MossError(
            f"another process resumed {len(whole)} of {len(visits)} calls with every turn"
        )


def scripts_of(path: Path, options: Options) -> list[CallScript]:
    """Return the calls of a file that are wanted."""
    calls = read_calls(path)
    if options.call is not None:
        chosen = [call for call in calls if call.id == options.call]
        if not chosen:
            raise InvalidArgumentError(f"{path.name}: holds no call {options.call!r}")
        return chosen
    return list(islice(calls, options.limit))


@asynccontextmanager
async def place_for(shell: Shell, options: Options) -> AsyncIterator[Place]:
    """Open the user's cloud, or a temporary one that goes with everything pushed to it."""
    if options.save:
        cloud = where(shell.cloud, "MOSS_VOICE_CLOUD")
        if cloud is not None and cloud.startswith("memory://"):
            raise InvalidArgumentError("--save: a memory:// cloud ends with this process")
        async with shell.client() as client:
            yield Place(client, cloud, shell.project_id, shell.project_key)
        return
    with tempfile.TemporaryDirectory(prefix="moss-voice-replay-") as folder:
        root = Path(folder)
        async with MossClient(
            _PROJECT,
            shell.project_key,
            cloud=root / "cloud",
            cache_path=root / "cache",
            journal_path=root / "journal",
            encryption_key_file=shell.key_file,
        ) as client:
            yield Place(client, str(root / "cloud"), _PROJECT, shell.project_key)


async def bring_knowledge(shell: Shell, place: Place, name: str, options: Options) -> str:
    """Bring an FAQ file or an index of the user's cloud to where the calls are; return its name."""
    read = await asyncio.to_thread(_faq, Path(name))
    if read is not None:
        index, documents = read
        with shell.progress(f"Embedding {index}") as moved:
            await place.client.create_index(index, documents, on_progress=moved)
        return index
    if options.save:
        await place.client.get_index(name)
    else:
        await _copy(shell, place, name)
    return name


def _faq(path: Path) -> tuple[str, list[DocumentInfo]] | None:
    return (path.resolve().stem, read_documents(path)) if path.exists() else None


async def _copy(shell: Shell, place: Place, name: str) -> None:
    """Copy an index from the user's cloud to the temporary one, nothing embedded anew."""
    async with shell.client() as theirs:
        try:
            await theirs.copy_index(name, to=place.client)
        except IndexNotFoundError as error:
            raise IndexNotFoundError(
                f"--knowledge {name}: neither a file here nor an index; {error}"
            ) from None


async def _with_known_gold(
    place: Place, scripts: Sequence[CallScript], names: Sequence[str]
) -> list[CallScript]:
    """Leave out the passages that answer a turn but are in none of the indexes: no miss of ours."""
    wanted = sorted({id_ for call in scripts for _, gold in call.knowledge for id_ in gold})
    known: set[str] = set()
    for name in names if wanted else ():
        found = await place.client.get_docs(name, GetDocumentsOptions(doc_ids=wanted))
        known |= {doc.id for doc in found}
    return [
        replace(
            call, knowledge=tuple((turn, gold) for turn, gold in call.knowledge if known & {*gold})
        )
        for call in scripts
    ]


async def _play(
    out: Console | None,
    place: Place,
    script: CallScript,
    knowledge: Sequence[str],
    options: Options,
) -> tuple[Tally, list[Played], PushIndexResult]:
    if out is not None and not options.brief:
        out.print(Rule(Text(f"{script.id} · {script.timing} timing", style="bold"), align="left"))
    tally, turns = Tally(calls=1), list[Played]()
    call = await place.client.call(
        script.id,
        knowledge=knowledge,
        focus=options.focus,
        without=options.without,
        top_k=options.top_k,
        deadline_ms=options.deadline_ms,
        record=True if options.record else None,
    )
    try:
        async for played in play(call, script, pace=options.pace, visible=options.visible):
            tally.add(played)
            turns.append(played)
            if out is not None and not options.brief:
                show_turn(out, played, explain=options.explain)
    finally:
        pushed = await call.end()
    if pushed is None:
        raise MossError(f"call {script.id!r} could not be pushed, or nothing was said in it")
    if out is not None:
        _show_call_end(out, script, tally, pushed, brief=options.brief)
    return tally, turns, pushed


def _probe(turns: Sequence[Played]) -> list[str]:
    """Choose what to ask a resumed call for: the words of its caller's longest turn."""
    said = [p.turn.text for p in turns if p.number is not None and p.turn.speaker == "caller"]
    return [max(said, key=len)] if said else []


def _call_json(
    script: CallScript, turns: Sequence[Played], tally: Tally, pushed: PushIndexResult
) -> dict[str, Any]:
    return {
        "kind": "call",
        "call": script.id,
        "timing": script.timing,
        "source": script.source,
        "turns": [turn.as_json() for turn in turns],
        "summary": tally.as_json(),
        "push": pushed,
    }


def _show_call_end(
    out: Console, script: CallScript, tally: Tally, pushed: PushIndexResult, *, brief: bool
) -> None:
    size = (
        f"{pushed.doc_count} turns, {pushed.uploaded_bytes / 1000:.0f} kB, version {pushed.version}"
    )
    if not brief:
        out.print()
        show_rows(out, [*tally_rows(tally), ("pushed at the end", size)])
        out.print()
        return
    spread = tally.as_json()["context_ms"]
    took = f"in {spread['median']:.1f} ms (median)" if isinstance(spread, dict) else "nothing asked"
    line = Text(f"{plain(script.id):<24} ", style="bold")
    line.append(f"{tally.turns:>3} turns, context for {tally.with_hits:>3}, {took}")
    if tally.gold:
        line.append(f", {tally.found_gold}/{tally.gold} found")
    line.truncate(out.width, overflow="ellipsis")
    out.print(line, soft_wrap=True)


def _show_end(
    out: Console,
    shell: Shell,
    options: Options,
    total: Tally,
    told: dict[str, Any],
    whole: int,
    probed: int,
    found: int,
) -> None:
    out.print(
        Rule(Text("All calls" if total.calls > 1 else "Taken up", style="bold"), align="left")
    )
    calls = told["calls"]
    resume_ms = sum(call["resume_ms"] for call in calls) / len(calls)
    turns = sum(call["docs"] for call in calls)
    rows = [
        (
            f"resumed by process {told['pid']}",
            f"{whole} of {len(calls)} with every turn, {turns} turns, {resume_ms:.0f} ms each",
        ),
        ("found there by the words of a turn", f"{found} of {probed}"),
    ]
    # One call's numbers have just been printed.
    show_rows(out, rows if total.calls == 1 and not options.brief else [*tally_rows(total), *rows])
    if options.save:
        cloud = f" --cloud {shell.cloud}" if shell.cloud else ""
        out.print(
            Text.assemble(
                "\nThe calls are kept: ",
                (f"moss-voice session show {calls[0]['name']}{cloud}", "cyan"),
            )
        )
    else:
        out.print(Text("\nThe temporary cloud is gone; --save keeps the calls.", style="dim"))
