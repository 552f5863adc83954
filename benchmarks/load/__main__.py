"""`make bench-load`: the memory under load and at scale. Prints tables and writes JSON.

    python -m benchmarks.load [--only scale|load|long|turn] [--sizes N ...] [--calls N ...]
                              [--seconds S] [--json FILE] [--tiny]

`scale` measures indexes of up to 500,000 passages, `load` up to 200 calls beside each other, `long` a
call of 5,000 turns, `turn` what a turn costs but for the model run. Each measurement has a process of
its own. It all takes some half an hour of a quiet machine, 4 GB of disk and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from rich.console import Console

from benchmarks.load import long_call, passages, replay, scale, turn
from benchmarks.load.process import Row, fresh
from benchmarks.load.tables import tables_of
from benchmarks.run import machine

PARTS = ("scale", "load", "long", "turn")


def measure(
    parts: Sequence[str],
    *,
    sizes: Sequence[int],
    calls: Sequence[int],
    seconds: float,
    speed: float,
    tiny: bool,
    say: Callable[[str], None],
) -> Row:
    """Measure those parts; `tiny` shows that they run, its numbers mean nothing."""
    report: Row = {"machine": machine(), "tiny": tiny}
    knowledge = 120 if tiny else 10_000
    texts = 20 if tiny else 600
    most = max(knowledge, *sizes) if "scale" in parts else knowledge
    with tempfile.TemporaryDirectory(prefix="moss-voice-load-") as name:
        root = Path(name)
        say("(embedding the passages)")
        embedded = min(most, 150 if tiny else passages.MOST_EMBEDDED)
        fresh("benchmarks.load.passages", "embed", folder=name, most=embedded)
        if "scale" in parts:
            report["scale"] = []
            for size in sizes:
                say(f"an index of {size} passages")
                report["scale"].append(scale.scale(root, size, texts=texts))
        if set(parts) - {"scale"}:
            fresh("benchmarks.load.passages", "fill", folder=name, vectors=name, n=knowledge)
            # Its graph is then in the cache.
            fresh("benchmarks.load.scale", "build", folder=name)
        if "load" in parts:
            say(f"{', '.join(map(str, calls))} calls beside each other, {seconds:g} s each")
            report["load"] = replay.levels(root, calls, seconds=seconds, speed=speed)
        if "long" in parts:
            marks = (20, 40) if tiny else long_call.MARKS
            say(f"a call of {marks[-1]} turns")
            window = 8 if tiny else long_call.WINDOW
            report["long"] = long_call.long_call(root, marks=marks, window=window)
        if "turn" in parts:
            say("a turn without its model run")
            report["turn"] = turn.turn(root, knowledge, texts=texts)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="may be given repeatedly")
    parser.add_argument("--sizes", type=int, nargs="+", help="passages, of `scale`")
    parser.add_argument("--calls", type=int, nargs="+", help="beside each other, of `load`")
    parser.add_argument("--seconds", type=float, help="per number of calls, of `load`")
    parser.add_argument("--speed", type=float, help="times faster than life, of `load`")
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    progress = Console(stderr=True)
    report = measure(
        args.only or PARTS,
        sizes=args.sizes or ((200,) if args.tiny else scale.SIZES),
        calls=args.calls or ((3,) if args.tiny else replay.CALLS),
        seconds=args.seconds or (2.0 if args.tiny else replay.SECONDS),
        speed=args.speed or (20.0 if args.tiny else 1.0),
        tiny=args.tiny,
        say=lambda what: progress.print(f"measuring {what}"),
    )
    about = report["machine"]
    console = Console(width=160)
    console.print(
        f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, {about['date']}"
    )
    for table in tables_of(report):
        console.print(table)
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
