"""A call script, played into a call's memory as a live host would, and shown turn by turn.

The law: what is measured is what a host would wait for, and what is shown is what was recalled, with
misses and late answers as they are.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Sequence
from dataclasses import asdict, dataclass, field

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from moss_voice.call.memory import CallMemory
from moss_voice.calls import CallScript, ScriptTurn, interims
from moss_voice.cli.explain import explained
from moss_voice.cli.shell import Pace, plain
from moss_voice.types import CallContext

__all__ = [
    "VISIBLE_TURNS",
    "Played",
    "Tally",
    "play",
    "quantile",
    "show_line",
    "show_rows",
    "show_turn",
    "show_wrapped",
    "spread",
    "tally_rows",
]

# Which of the script's turns the LLM still sees in its own history: recalling them tells it nothing.
VISIBLE_TURNS = 6
# A recogniser takes some 300 ms and more between its last interim and the final; for an embedding of
# that interim, a hundredth of a second is as good as those.
_SETTLE_S = 0.01
_SHOWN_HITS = 3
_STYLES = {"caller": "bold green", "agent": "bold blue", "action": "dim"}
_LABELS = {"action": "system"}


@dataclass(frozen=True, slots=True)
class Played:
    """A turn that was played.

    Attributes:
        turn: As it was really spoken, at the time by which the memory knows it.
        number: Its place among what was said, from 1, as in `turn 12`; None for what nobody said.
        id: What it is remembered under; None where nothing was kept.
        heard_ms: How long `heard` took; None where nothing was kept.
        context: What was recalled for the reply to it; None where no reply was due.
        gold: The passages that answer it, where the script tells.
        about: What the call is about once it is remembered, the newest first.
    """

    turn: ScriptTurn
    number: int | None = None
    id: str | None = None
    heard_ms: float | None = None
    context: CallContext | None = None
    gold: tuple[str, ...] = ()
    about: tuple[str, ...] = ()

    @property
    def found_gold(self) -> bool:
        """True where a passage that answers it was recalled."""
        hits = self.context.hits if self.context is not None else ()
        return any(hit.id in self.gold for hit in hits)

    def as_json(self) -> dict[str, object]:
        """Return it as JSON values."""
        context = self.context
        return {
            "i": self.turn.number,
            "number": self.number,
            "id": self.id,
            "at_s": round(self.turn.start_s, 3),
            "speaker": self.turn.speaker,
            "text": self.turn.text,
            "interrupted": self.turn.interrupted,
            "heard_ms": self.heard_ms,
            "context": None
            if context is None
            else {
                "outcome": context.outcome,
                "took_ms": context.took_ms,
                "prefetched": context.prefetched,
                "need": context.need,
                "hits": [
                    {
                        "id": hit.id,
                        "source": hit.source,
                        "index_name": hit.index_name,
                        "score": hit.score,
                        "parts": asdict(hit.parts),
                        "text": hit.text,
                    }
                    for hit in context.hits
                ],
            },
            "about": list(self.about),
            **({"gold": list(self.gold), "found_gold": self.found_gold} if self.gold else {}),
        }


async def play(
    memory: CallMemory, script: CallScript, *, pace: Pace = Pace.FAST, visible: int = VISIBLE_TURNS
) -> AsyncGenerator[Played, None]:
    """Play a call into a memory.

    Of a caller's turn the interims come first, then the question for context, then the turn itself;
    of an agent's, what was really spoken.

    Args:
        memory: A call just opened.
        script: What is said.
        pace: `real` waits as long as the speakers take; `fast` not, but that the last interim of a
            turn is a moment ahead of its final, as in life.
        visible: How many turns before the current one the LLM sees anyway.
    """
    gold = dict(script.knowledge)
    seen: deque[str] = deque(maxlen=max(0, visible))
    started, number = time.monotonic(), 0

    async def wait_until(at_s: float) -> None:
        if pace is Pace.REAL:
            await asyncio.sleep(started + at_s - time.monotonic())

    for turn in script.turns:
        await wait_until(turn.start_s)
        if turn.speaker == "action" or not turn.text.strip():
            yield Played(turn)
            continue
        context = None
        if turn.speaker == "caller":
            partials = list(interims(turn))
            for count, partial in enumerate(partials, start=1):
                share = count / len(partials)
                await wait_until(turn.start_s + share * (turn.end_s - turn.start_s))
                memory.hearing(partial)
            await asyncio.sleep(_SETTLE_S)
            context = await memory.context(turn.text, visible=tuple(seen))
        await wait_until(turn.end_s)
        begun = time.perf_counter()
        kept = await memory.heard(
            turn.text,
            turn.speaker,
            at=turn.start_s,
            until=turn.end_s,
            interrupted=turn.interrupted,
            id=f"turn-{turn.number}",  # the same each time the script is played
        )
        heard_ms = (time.perf_counter() - begun) * 1000.0
        if kept is None:
            yield Played(turn, context=context)
            continue
        number += 1
        seen.append(kept)
        about = tuple(memory.about)
        yield Played(turn, number, kept, heard_ms, context, gold.get(turn.number, ()), about)


@dataclass
class Tally:
    """The numbers of one or more calls."""

    calls: int = 0
    turns: int = 0
    context_ms: list[float] = field(default_factory=list)
    heard_ms: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    with_hits: int = 0
    prefetched: int = 0
    gold: int = 0
    found_gold: int = 0

    def add(self, played: Played) -> None:
        """Count a turn."""
        self.turns += played.number is not None
        if played.heard_ms is not None:
            self.heard_ms.append(played.heard_ms)
        if played.context is not None:
            self.outcomes[played.context.outcome] += 1
            self.with_hits += bool(played.context.hits)
            self.prefetched += played.context.prefetched
            if played.context.outcome != "skipped":
                self.context_ms.append(played.context.took_ms)
            if played.gold:
                self.gold += 1
                self.found_gold += played.found_gold

    def merge(self, other: Tally) -> None:
        """Add the numbers of other calls."""
        self.calls += other.calls
        self.turns += other.turns
        self.context_ms += other.context_ms
        self.heard_ms += other.heard_ms
        self.outcomes += other.outcomes
        self.with_hits += other.with_hits
        self.prefetched += other.prefetched
        self.gold += other.gold
        self.found_gold += other.found_gold

    def as_json(self) -> dict[str, object]:
        """Return them as JSON values."""
        return {
            "calls": self.calls,
            "turns": self.turns,
            "contexts": sum(self.outcomes.values()),
            "outcomes": dict(self.outcomes),
            "with_hits": self.with_hits,
            "prefetched": self.prefetched,
            "context_ms": spread(self.context_ms),
            "heard_ms": spread(self.heard_ms),
            **({"knowledge": {"turns": self.gold, "found": self.found_gold}} if self.gold else {}),
        }


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Return median, 95th percentile and maximum as JSON values; None where there is nothing."""
    if not values:
        return None
    return {
        "median": round(quantile(values, 0.5), 3),
        "p95": round(quantile(values, 0.95), 3),
        "max": round(max(values), 3),
    }


# --- showing -------------------------------------------------------------------------------------

_INDENT = 17


def clock(at_s: float) -> str:
    """Return seconds into a call as `03:21`."""
    minutes, seconds = divmod(int(at_s), 60)
    return f"{minutes:02}:{seconds:02}"


def show_line(
    console: Console,
    *,
    at_s: float | None,
    number: int | None,
    speaker: str,
    text: str,
    interrupted: bool = False,
) -> None:
    """Print a turn: time, number, speaker, and what was said."""
    label = _LABELS.get(speaker, speaker)
    head = Text.assemble(
        (f"{clock(at_s) if at_s is not None else '':5} ", "dim"),
        (f"{number if number is not None else '':>3} ", "dim"),
        (f"{label[:6]:<6} ", _STYLES.get(speaker, "bold")),
    )
    body = Text(plain(text), style="dim italic" if speaker == "action" else "")
    if interrupted:
        body.append(" — cut off", style="yellow")
    show_wrapped(console, body, head=head)


def show_wrapped(console: Console, body: Text, *, head: Text) -> None:
    """Print a text in lines that fit, the first after `head` and the others below it.

    Unlike a table it leaves no blanks at the ends of lines, which would be copied and piped.
    """
    width = head.cell_len
    for line in body.wrap(console, max(20, console.width - width)):
        line.rstrip()
        console.print(Text.assemble(head, line), soft_wrap=True)
        head = Text(" " * width)


def show_turn(console: Console, played: Played, *, explain: bool = False) -> None:
    """Print a turn, and below it what was recalled, from where, in how many milliseconds.

    With `explain` also what the call is about, how much the turn needs the knowledge, and what each hit
    was ranked by.
    """
    turn = played.turn
    show_line(
        console,
        at_s=turn.start_s,
        number=played.number,
        speaker=turn.speaker,
        text=turn.text,
        interrupted=turn.interrupted,
    )
    if played.context is not None:
        _show_context(console, played, played.context, explain=explain)


def _show_context(console: Console, played: Played, context: CallContext, *, explain: bool) -> None:
    took = f"{context.took_ms:.1f} ms"
    if context.outcome == "skipped":
        verdict = "a filler: nothing asked"
    elif context.outcome == "late":
        verdict = f"late: no context after {took}"
    elif context.outcome == "failed":
        verdict = f"failed after {took}"
    else:
        verdict = f"recalled {len(context.hits)} in {took}"
        verdict += ", prefetched" if context.prefetched else ""
        if explain and context.need is not None:
            verdict += f", need {context.need:.2f}"
            verdict += "" if context.need >= 1.0 else ": turns only"
    bad = context.outcome in ("late", "failed")
    told = Text(f"= {verdict}", style="yellow" if bad else "dim")
    show_wrapped(console, told, head=Text(" " * _INDENT))
    if explain and played.about:
        about = Text(plain(", ".join(played.about)), style="dim")
        show_wrapped(console, about, head=Text(f"{'':{_INDENT}}  about ", style="dim"))
    shown = context.hits if explain else context.hits[:_SHOWN_HITS]
    space = max(20, console.width - _INDENT - 2)
    sources = [plain(hit.source) for hit in shown]
    width = min(max(map(cell_len, sources), default=0), space // 2)
    for source, hit in zip(sources, shown, strict=True):
        of_call = "turn" in hit.metadata
        name = Text(source, style="cyan" if of_call else "magenta")
        name.truncate(width, overflow="ellipsis", pad=True)
        line = Text.assemble("  ", name, f" {hit.score:.2f} ")
        line.append("✓ " if hit.id in played.gold else "  ", style="green")
        # The first line of a passage is its title, which its id tells already.
        _, _, body = hit.text.partition("\n")
        line.append(plain(hit.text if of_call or not body.strip() else body), style="dim")
        line.truncate(space + 2, overflow="ellipsis")
        _print_indented(console, line)
        if explain:
            for why in explained(hit.parts, width=space - 2):
                _print_indented(console, Text(f"    {why}", style="dim"))
    rest = len(context.hits) - len(shown)
    if rest > 0:
        _print_indented(console, Text(f"  and {rest} more", style="dim"))


def _print_indented(console: Console, line: Text) -> None:
    console.print(Text.assemble(" " * _INDENT, line), soft_wrap=True)


def tally_rows(tally: Tally) -> list[tuple[str, str]]:
    """Return the numbers with their names, for people."""
    asked = sum(tally.outcomes.values()) - tally.outcomes["skipped"]
    rows = [("turns remembered", f"{tally.turns}")]
    if tally.calls > 1:
        rows.insert(0, ("calls", f"{tally.calls}"))
    rows.append(("replies with recalled context", f"{tally.with_hits} of {asked} asked for"))
    if tally.outcomes["skipped"]:
        rows.append(("fillers, nothing asked", f"{tally.outcomes['skipped']}"))
    rows += [
        (f"contexts that were {outcome}", f"{tally.outcomes[outcome]}")
        for outcome in ("late", "failed")
        if tally.outcomes[outcome]
    ]
    if tally.gold:
        found = f"{tally.found_gold} of {tally.gold}"
        rows.append(("right passage recalled, where one is known", found))
    if tally.context_ms:
        rows.append(("context()", _told(tally.context_ms)))
        rows.append(("embedded before the final came", f"{tally.prefetched} of {asked}"))
    if tally.heard_ms:
        rows.append(("heard(), indexed and on disk", _told(tally.heard_ms)))
    return rows


def show_rows(console: Console, rows: Sequence[tuple[str, str]]) -> None:
    """Print names and values below each other."""
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        show_wrapped(console, Text(value, style="bold"), head=Text(f"  {name:<{width}}  "))


def _told(values: Sequence[float]) -> str:
    return f"median {quantile(values, 0.5):.1f} ms, p95 {quantile(values, 0.95):.1f} ms"
