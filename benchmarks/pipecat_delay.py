"""What the memory adds to each LLM run of a Pipecat pipeline, and to the delay that a caller hears.

The same caller's turns are spoken in real pipelines with us and without us, in one run and taking turns.
Two figures: from the end of speech to the first audio, and what our handler at the LLM's door takes.
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

from loguru import logger
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import ScriptedLLMService, SimulatedCall
from rich.console import Console
from rich.table import Table

from benchmarks.replies import Row, compared, difference, percentile, told
from moss_voice import MossClient


class _Timed(MossVoiceMemory):
    """Notes how long the LLM waits at its door."""

    waits_ms: list[float]

    async def _on_llm_frame(self, source: object, frame: Any) -> None:
        started = time.perf_counter()
        await super()._on_llm_frame(source, frame)
        if frame.__class__.__name__ == "LLMContextFrame":
            self.waits_ms.append((time.perf_counter() - started) * 1000.0)


async def one_call(
    turns: Sequence[str], client: MossClient | None, name: str, *, speed: float
) -> dict[str, list[float]]:
    """Speak some turns to a bot; return what a caller and the LLM waited."""
    model = ScriptedLLMService(lambda _: "let me see what I can do for you", ttft_s=0.02)
    memory = None
    if client is not None:
        # Without the gate, so that every reply has its block.
        memory = _Timed(client, call_id=name, knowledge=["faq"], options={"without": ["gate"]})
        memory.waits_ms = []
    call = SimulatedCall(model, processors=[memory] if memory is not None else [], speed=speed)
    async with call:
        await call.start()
        for turn in turns:
            await call.caller_says(turn)
    assert len(call.delays_s) == len(turns), "every turn was answered"
    return {
        "delays_ms": [delay * 1000.0 for delay in call.delays_s],
        "requests": [len(model.prompts)],
        "with_block": [sum("<call_memory>" in str(prompt) for prompt in model.prompts)],
        "waits_ms": memory.waits_ms if memory is not None else [],
        "late": [memory.memory.counters.late if memory is not None else 0],
    }


async def delays(folder: Path, *, passages: int, calls: int, turns: int, speed: float) -> Row:
    """Compare calls with and without us."""
    arms = await compared(
        partial(one_call, speed=speed), folder, passages=passages, calls=calls, turns=turns
    )
    return {
        **{who: _summed(row) for who, row in arms.items()},
        "added_ms": difference(arms["with"]["delays_ms"], arms["without"]["delays_ms"]),
    }


def _summed(row: dict[str, list[float]]) -> Row:
    return {
        "turns": len(row["delays_ms"]),
        "delay_p50_ms": percentile(row["delays_ms"], 50),
        "delay_p95_ms": percentile(row["delays_ms"], 95),
        "wait_p50_ms": percentile(row["waits_ms"], 50),
        "wait_p95_ms": percentile(row["waits_ms"], 95),
        **{name: sum(row[name]) for name in ("requests", "with_block", "late")},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=8)
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--speed", type=float, default=10.0, help="times faster than life")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    logger.remove()
    with tempfile.TemporaryDirectory() as folder:
        report = asyncio.run(
            delays(
                Path(folder),
                passages=args.passages,
                calls=args.calls,
                turns=args.turns,
                speed=args.speed,
            )
        )
    table = Table(title="a reply's delay in Pipecat, end of speech to first audio")
    for name in ("who", "turns", "p50 ms", "p95 ms", "LLM runs", "with a block", "late",
                 "our part of a run, p50 ms", "p95 ms", "added, median [95%]"):  # fmt: skip
        table.add_column(name, justify="right")
    added = report["added_ms"]
    for who in ("without", "with"):
        row = report[who]
        mine = who == "with"
        table.add_row(
            f"{who} us", str(row["turns"]), f"{row['delay_p50_ms']:.1f}",
            f"{row['delay_p95_ms']:.1f}", str(row["requests"]), str(row["with_block"]),
            str(row["late"]), f"{row['wait_p50_ms']:.2f}" if mine else "",
            f"{row['wait_p95_ms']:.2f}" if mine else "",
            told(added) if mine else "",
        )  # fmt: skip
    Console(width=160).print(table)
    if args.json:
        args.json.write_text(json.dumps({"speed": args.speed, **report}, indent=1), "utf-8")


if __name__ == "__main__":
    main()
