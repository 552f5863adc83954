"""What the memory adds to the delay of a LiveKit agent's reply, and to the LLM's requests.

The same caller's turns are spoken in real AgentSessions with us and without us, in one run and taking
turns, so that both meet the same machine. The delay is the one that a caller hears: from the end of
speech to the first frame of the answer. Two figures come of it: of a whole reply, and of `llm_node`
alone, where all that we add is.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from livekit.agents import Agent, llm
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.testing import ScriptedLLM, SimulatedCall
from rich.console import Console
from rich.table import Table

from benchmarks.corpus import corpus
from benchmarks.run import client_in, settled
from moss_voice import CallContext, MossClient
from moss_voice.text import is_filler

Row = dict[str, Any]


class _Timed(ScriptedLLM):
    """Notes when it is asked, to tell what came before it."""

    def __init__(self, ttft_s: float) -> None:
        super().__init__(lambda _: "let me see what I can do for you", ttft_s=ttft_s)
        self.blocks = 0

    def chat(self, *, chat_ctx: llm.ChatContext, **options: Any) -> llm.LLMStream:
        shown = [message.raw_text_content or "" for message in chat_ctx.messages()]
        self.blocks += any("<call_memory>" in text for text in shown)
        return super().chat(chat_ctx=chat_ctx, **options)


async def one_call(
    turns: Sequence[str], client: MossClient | None, name: str, *, speed: float, preemptive: bool
) -> Row:
    """Speak some turns to an agent; return what a caller waited, and what the LLM was asked."""
    model = _Timed(ttft_s=0.02)
    contexts: list[CallContext] = []
    call = SimulatedCall(
        model,
        speed=speed,
        session_options={"turn_handling": {"preemptive_generation": {"enabled": preemptive}}},
    )
    if client is not None:
        await moss_voice.attach(
            call.session, client, call_id=name, knowledge=["faq"], on_context=contexts.append
        )
    async with call:
        await call.start(Agent(instructions="You help callers."))
        for turn in turns:
            await call.caller_says(turn)
    assert len(call.delays_s) == len(turns), "every turn was answered"
    return {
        "delays_ms": [delay * 1000.0 for delay in call.delays_s],
        "requests": len(model.prompts),
        "thrown_away": model.cancelled,
        "with_block": model.blocks,
        "context_ms": [context.took_ms for context in contexts],
        "late": sum(context.outcome == "late" for context in contexts),
    }


async def delays(
    folder: Path, *, passages: int, calls: int, turns: int, speed: float, preemptive: bool
) -> Row:
    """Compare calls with and without us, one after the other."""
    texts = corpus(passages)
    # Turns of one short breath: what is measured comes after them.
    spoken = [
        text
        for call in texts.calls
        for speaker, text in call
        if speaker == "caller" and text.strip() and not is_filler(text) and len(text.split()) < 20
    ]
    sums: dict[str, Row] = {}
    async with client_in(folder) as client:
        await client.create_index("faq", texts.passages)
        await client.load_index("faq")
        await settled(client, "faq")
        for number in range(calls + 1):
            said = [spoken[(number * turns + i) % len(spoken)] for i in range(turns)]
            for who in ("without", "with") if number % 2 else ("with", "without"):
                row = await one_call(
                    said,
                    client if who == "with" else None,
                    f"call-{number}",
                    speed=speed,
                    preemptive=preemptive,
                )
                if number == 0:  # both warm up
                    continue
                total = sums.setdefault(who, {name: [] for name in row})
                for name, value in row.items():
                    total[name] += value if isinstance(value, list) else [value]
    return {"preemptive": preemptive, **{who: _summed(row) for who, row in sums.items()}} | {
        "added_ms": _difference(sums["with"]["delays_ms"], sums["without"]["delays_ms"])
    }


def _summed(row: Row) -> Row:
    return {
        "turns": len(row["delays_ms"]),
        "delay_p50_ms": round(float(np.median(row["delays_ms"])), 2),
        "delay_p95_ms": round(float(np.percentile(row["delays_ms"], 95)), 2),
        "requests": sum(row["requests"]),
        "thrown_away": sum(row["thrown_away"]),
        "with_block": sum(row["with_block"]),
        "late": sum(row["late"]),
        "context_p50_ms": round(float(np.median(row["context_ms"])), 2)
        if row["context_ms"]
        else None,
    }


def _difference(ours: Sequence[float], theirs: Sequence[float]) -> Row:
    """Return the difference of the medians with its 95% interval, by a bootstrap over turns."""
    rng = np.random.default_rng(7)
    a, b = np.array(ours), np.array(theirs)
    draws = [
        float(np.median(rng.choice(a, a.size)) - np.median(rng.choice(b, b.size)))
        for _ in range(2000)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {
        "median": round(float(np.median(a) - np.median(b)), 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
    }


def table_of(rows: Sequence[Row]) -> Table:
    """Show the rows."""
    table = Table(title="a reply's delay in LiveKit, end of speech to first audio")
    for name in (
        "preemptive generation", "who", "turns", "p50 ms", "p95 ms", "LLM requests", "with a block",
        "thrown away", "late", "added, median [95%]",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        for who in ("without", "with"):
            part, added = row[who], row["added_ms"]
            table.add_row(
                "on" if row["preemptive"] else "off",
                f"{who} us",
                str(part["turns"]),
                f"{part['delay_p50_ms']:.1f}",
                f"{part['delay_p95_ms']:.1f}",
                str(part["requests"]),
                str(part["with_block"]),
                str(part["thrown_away"]),
                str(part["late"]),
                f"{added['median']:+.1f} [{added['low']:+.1f}, {added['high']:+.1f}]"
                if who == "with"
                else "",
            )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=10)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--speed", type=float, default=10.0, help="times faster than life")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = []
    started = time.perf_counter()
    for preemptive in (True, False):
        with tempfile.TemporaryDirectory() as folder:
            rows.append(
                asyncio.run(
                    delays(
                        Path(folder),
                        passages=args.passages,
                        calls=args.calls,
                        turns=args.turns,
                        speed=args.speed,
                        preemptive=preemptive,
                    )
                )
            )
    Console(width=160).print(table_of(rows))
    print(f"took {time.perf_counter() - started:.0f} s")
    if args.json:
        args.json.write_text(json.dumps({"speed": args.speed, "rows": rows}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
