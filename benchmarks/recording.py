"""`python -m benchmarks.recording`: what a call pays for being recorded.

The same recorded calls, each played twice beside the same knowledge, once recorded and once not; which comes
first changes from call to call, and all other calls are played in between, so that no embedding of the first
time is remembered the second. Speakers take time, so a pause stands between two turns, in which the recorder
does what it does beside the call; without one its work falls into the next turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.corpus import corpus
from benchmarks.run import Row, machine
from moss_voice import MossClient

_PATIENT_MS = 60_000.0


async def measure(*, passages: int, calls: int, pause_s: float) -> Row:
    """Play calls into memories with and without a recording, and compare what a host waits for."""
    texts = corpus(passages)
    took: dict[str, dict[str, list[float]]] = {
        what: {"plain": [], "recorded": []} for what in ("context_ms", "heard_ms")
    }
    size, turns = 0, 0
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        async with MossClient(
            cloud=root / "cloud", cache_path=root / "cache", journal_path=root / "journal"
        ) as client:
            await client.create_index("faq", texts.passages)
            for twice in (0, 1):
                for number, said in enumerate(texts.calls[:calls]):
                    kind = "recorded" if (number + twice) % 2 else "plain"
                    memory = await client.call(
                        f"call-{number}-{twice}",
                        knowledge=["faq"],
                        deadline_ms=_PATIENT_MS,
                        record=root / "rec" if kind == "recorded" else False,
                    )
                    for speaker, text in said:
                        if speaker != "agent":
                            begun = time.perf_counter()
                            await memory.context(text)
                            took["context_ms"][kind].append((time.perf_counter() - begun) * 1e3)
                            await asyncio.sleep(pause_s)
                        begun = time.perf_counter()
                        await memory.heard(text, speaker)
                        took["heard_ms"][kind].append((time.perf_counter() - begun) * 1e3)
                        await asyncio.sleep(pause_s)
                    path = await memory.recorded()
                    if path is not None:
                        turns += len(said)
                        size += path.stat().st_size
                    await memory.discard()
    return {
        "passages": passages,
        "calls": min(calls, len(texts.calls)),
        "turns": turns,
        "pause_s": pause_s,
        "kb_per_turn": round(size / 1000 / max(turns, 1), 2),
        **{
            what: {
                **{kind: _spread(values) for kind, values in kinds.items()},
                "x": round(
                    float(np.median(kinds["recorded"]) / np.median(kinds["plain"])),
                    3,
                ),
            }
            for what, kinds in took.items()
        },
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "n": len(values),
        "p50": round(float(np.median(values)), 3),
        "p95": round(float(np.percentile(values, 95)), 3),
        "p99": round(float(np.percentile(values, 99)), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--calls", type=int, default=12)
    parser.add_argument("--pause-s", type=float, default=0.05)
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    # Each recorded call says that it is.
    logging.getLogger("moss_voice").setLevel(logging.ERROR)
    measured = asyncio.run(measure(passages=args.passages, calls=args.calls, pause_s=args.pause_s))
    report = {"machine": machine(), **measured}
    for what in ("context_ms", "heard_ms"):
        row = report[what]
        plain, recorded = row["plain"], row["recorded"]
        print(
            f"{what}: p50 {plain['p50']:.2f} ms, recorded {recorded['p50']:.2f} ({row['x']:.2f} x);"
            f" p95 {plain['p95']:.2f}, {recorded['p95']:.2f}"
        )
    print(f"{report['turns']} turns in {report['calls']} calls, {report['kb_per_turn']} kB a turn")
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
