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
from functools import partial
from pathlib import Path
from typing import Any

from livekit.agents import Agent, llm
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.testing import ScriptedLLM, SimulatedCall
from rich.console import Console
from rich.table import Table

from benchmarks.replies import Row, compared, difference, percentile, told
from moss_voice import CallContext, MossClient


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
) -> dict[str, list[float]]:
    """Speak some turns to an agent; return what a caller waited, and what the LLM was asked."""
    model = _Timed(ttft_s=0.02)
    contexts: list[CallContext] = []
    call = SimulatedCall(
        model,
        speed=speed,
        session_options={"turn_handling": {"preemptive_generation": {"enabled": preemptive}}},
    )
    if client is not None:
        # Without the gate, so that every reply has its block.
        await moss_voice.attach(
            call.session,
            client,
            call_id=name,
            knowledge=["faq"],
            on_context=contexts.append,
            without=["gate"],
        )
    async with call:
        await call.start(Agent(instructions="You help callers."))
        for turn in turns:
            await call.caller_says(turn)
    assert len(call.delays_s) == len(turns), "every turn was answered"
    return {
        "delays_ms": [delay * 1000.0 for delay in call.delays_s],
        "requests": [len(model.prompts)],
        "thrown_away": [model.cancelled],
        "with_block": [model.blocks],
        "context_ms": [context.took_ms for context in contexts],
        "late": [sum(context.outcome == "late" for context in contexts)],
    }


async def delays(
    folder: Path, *, passages: int, calls: int, turns: int, speed: float, preemptive: bool
) -> Row:
    """Compare calls with and without us."""
    arms = await compared(
        partial(one_call, speed=speed, preemptive=preemptive),
        folder,
        passages=passages,
        calls=calls,
        turns=turns,
    )
    return {
        "preemptive": preemptive,
        **{who: _summed(row) for who, row in arms.items()},
        "added_ms": difference(arms["with"]["delays_ms"], arms["without"]["delays_ms"]),
    }


def _summed(row: dict[str, list[float]]) -> Row:
    return {
        "turns": len(row["delays_ms"]),
        "delay_p50_ms": percentile(row["delays_ms"], 50),
        "delay_p95_ms": percentile(row["delays_ms"], 95),
        "context_p50_ms": percentile(row["context_ms"], 50),
        **{name: sum(row[name]) for name in ("requests", "thrown_away", "with_block", "late")},
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
                told(added) if who == "with" else "",
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
