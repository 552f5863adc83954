"""`make bench-peers`: moss_voice beside what people use in its place. Prints tables and writes JSON.

    python -m benchmarks.peers [--tiny] [--json FILE] [--rounds N] [--only NAME ...] [--encoder NAME ...]

A *contender* is a memory with an encoder. For each size every contender first stores the passages, once;
then come the rounds, and in each of them every contender starts anew, on a copy of what it stored,
answers, and goes through the same turns of calls. Within a round they come one after another, in another
order each time, so that whatever else the machine does hits all alike; ratios are taken within a round.

- **add**: a turn's text -> embedded, stored, found by the next query.
- **query**: a text -> embedded -> the five nearest among the passages and the turns so far.
- **start**: from the start of the process to the first answer.
- **resident**: the process after the first hundred turns.
- **kept**: a turn that `add` returned for is found after `kill -9` at that instant.

Nobody reaches beyond this machine. A contender that is not installed, or fails, is left out with the reason.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.corpus import corpus
from benchmarks.peers import encoders
from benchmarks.peers.contender import ENTRIES
from benchmarks.peers.process import RESULT, Task
from benchmarks.run import Row, machine, percentiles
from moss_voice.text import is_filler

_ROOT = Path(__file__).parents[2]
_TIMEOUT_S = 1800

# Nobody phones home or looks for newer files; whoever tries finds a proxy where nobody listens.
_QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "MEM0_TELEMETRY": "False",
    "ORT_DISABLE_TELEMETRY": "1",
    "OTEL_SDK_DISABLED": "true",
    "POSTHOG_DISABLED": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "NO_PROXY": "127.0.0.1,localhost,::1",
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://127.0.0.1:9"),
    **dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9"),
}


class Pair(NamedTuple):
    """A contender with an encoder."""

    name: str
    encoder: str

    @property
    def title(self) -> str:
        return f"{ENTRIES[self.name].title}, {self.encoder}"


class LeftOutError(Exception):
    """A contender cannot be measured; says why."""


def missing(pair: Pair) -> str | None:
    """Return what a contender lacks here; None where it lacks nothing."""
    needed = (*ENTRIES[pair.name].imports, *encoders.IMPORTS[pair.encoder])
    lacking = [module for module in needed if find_spec(module) is None]
    return f"not installed: {', '.join(lacking)}" if lacking else None


def run(task: Task, home: Path) -> list[tuple[float, Row]]:
    """Run a task in a process; returns its results, each with the seconds from the start of the process.

    Raises:
        LeftOutError: If it fails.
    """
    # Without the user's settings and folders: what is measured is the packages' own defaults.
    places = {name: str(home) for name in ("HOME", "MEM0_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME")}
    results = []
    with (home / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
        started = time.perf_counter()
        with subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.process", json.dumps(task)],
            cwd=_ROOT,
            env={**os.environ, **_QUIET, **places, **encoders.ENVIRONMENT.get(task["encoder"], {})},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process:
            assert process.stdout is not None
            too_long = threading.Timer(_TIMEOUT_S, process.kill)
            too_long.start()
            for line in process.stdout:
                if line.startswith(RESULT):
                    took_s = time.perf_counter() - started
                    results.append((took_s, json.loads(line.removeprefix(RESULT))))
            too_long.cancel()
        errors.seek(0)
        said = errors.read().strip().splitlines()
    killed_itself = task["do"] == "die" and results
    if process.returncode != 0 and not killed_itself:
        raise LeftOutError(f"{task['do']} failed: {said[-1] if said else process.returncode}")
    return results


class Measured:
    """What is measured beside one number of passages.

    Args:
        root: A folder for everything.
        passages: How many.
        most_turns: How many turns are gone through in a round.
    """

    def __init__(self, root: Path, *, passages: int, most_turns: int) -> None:
        texts = corpus(passages)
        self.source = texts.source
        self.passages = passages
        self._root = root
        root.mkdir()
        spoken = [text for call in texts.calls for _, text in call if not is_filler(text)]
        # Each text once, and three more to get warm with.
        turns = list(dict.fromkeys(spoken))[: most_turns + 3]
        for name, rows in (
            ("passages", [(doc.id, doc.text) for doc in texts.passages]),
            ("turns", [(f"turn-{number}", text) for number, text in enumerate(turns)]),
        ):
            (root / f"{name}.json").write_text(json.dumps(rows), encoding="utf-8")
        self._rounds: dict[Pair, list[Row]] = {}
        self._stored: dict[Pair, Row] = {}

    def _folder(self, pair: Pair) -> Path:
        return self._root / f"{pair.name} {pair.encoder}"

    def _run(self, pair: Pair, do: str, folder: Path) -> list[tuple[float, Row]]:
        passages, turns = (str(self._root / f"{name}.json") for name in ("passages", "turns"))
        task = Task(
            do=do,
            contender=pair.name,
            encoder=pair.encoder,
            folder=str(folder),
            passages=passages,
            turns=turns,
        )
        home = self._root / "home"
        home.mkdir(exist_ok=True)
        return run(task, home)

    def _copied(self, pair: Pair) -> Path:
        copy = self._root / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(self._folder(pair), copy)
        return copy

    def store(self, pair: Pair) -> None:
        """Store the passages."""
        self._stored[pair] = self._run(pair, "ingest", self._folder(pair))[0][1]

    def kept(self, pair: Pair) -> bool:
        """Return whether a turn is there after the process that stored it was killed."""
        folder = self._copied(pair)
        self._run(pair, "die", folder)
        return bool(self._run(pair, "look", folder)[0][1]["kept"])

    def round(self, pair: Pair) -> None:
        """Start once and go through the turns."""
        (start_s, _), (_, row) = self._run(pair, "turns", self._copied(pair))
        self._rounds.setdefault(pair, []).append({"start_s": start_s, **row})

    def report(self, pairs: Sequence[Pair]) -> Row:
        ours = next((self._rounds[pair] for pair in pairs if pair.name == "ours"), [])
        return {
            "passages": self.passages,
            "texts": self.source,
            "rows": [self._row(pair, ours) for pair in pairs],
        }

    def _row(self, pair: Pair, ours: Sequence[Row]) -> Row:
        rounds = self._rounds[pair]
        row: Row = {"contender": pair.name, "title": ENTRIES[pair.name].title}
        row["encoder"] = pair.encoder
        row |= {name: round(value, 3) for name, value in self._stored[pair].items()}
        for kind in ("add", "query", "prefetched"):
            pooled = [value for one in rounds for value in one["took_ms"][kind]]
            if not pooled:
                continue
            medians = [statistics.median(one["took_ms"][kind]) for one in rounds]
            row[kind] = {**percentiles(pooled), "p50_of_rounds": [round(m, 3) for m in medians]}
            # An interim saves a query its embedding: what it is beside is a query.
            beside = "query" if kind == "prefetched" else kind
            if ours:
                ratios = [
                    median / statistics.median(our["took_ms"][beside])
                    for median, our in zip(medians, ours, strict=True)
                ]
                row[kind]["times_ours"] = round(statistics.median(ratios), 2)
        for name in ("start_s", "resident_mb", "private_mb"):
            values = [one[name] for one in rounds if name in one]
            row[name] = round(statistics.median(values), 3) if values else None
        row["torch_threads"] = rounds[0]["torch_threads"]
        return row


def versions(pairs: Sequence[Pair]) -> dict[str, str]:
    """Return the versions of what takes part."""
    names = {name for pair in pairs for name in ENTRIES[pair.name].packages}
    names |= {name for pair in pairs for name in encoders.PACKAGES[pair.encoder]}
    found = {}
    for name in sorted(names):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def measure(
    *,
    only: Sequence[str],
    with_encoders: Sequence[str],
    rounds: int,
    tiny: bool,
    say: Callable[[str], None],
    sizes_asked: Sequence[int] = (1_000, 10_000),
) -> Row:
    """Measure everyone who is here; `tiny` shows that it runs, its numbers mean nothing."""
    left_out: list[Row] = []
    kept: Row = {}
    sizes: list[Row] = []
    pairs = [
        Pair(name, encoder)
        for encoder in encoders.PACKAGES
        if not with_encoders or encoder in with_encoders
        for name, entry in ENTRIES.items()
        if encoder in entry.encoders and (not only or name in only)
    ]

    def leave_out(pair: Pair, reason: str) -> None:
        say(f"  left out: {pair.title}: {reason}")
        left_out.append({"contender": pair.name, "encoder": pair.encoder, "reason": reason})
        pairs.remove(pair)

    def each(do: Callable[[Pair], None], *, turned: int = 0) -> None:
        by = turned % max(1, len(pairs))
        for pair in [*pairs[by:], *pairs[:by]]:
            try:
                do(pair)
            except LeftOutError as error:
                leave_out(pair, str(error))

    for pair in list(pairs):
        if (lacks := missing(pair)) is not None:
            leave_out(pair, lacks)
    with tempfile.TemporaryDirectory(prefix="moss-voice-peers-") as name:
        for passages in (40,) if tiny else sizes_asked:
            measured = Measured(
                Path(name) / str(passages),
                passages=passages,
                most_turns=18 if tiny else 450,
            )
            say(f"{passages} passages are stored")
            each(measured.store)
            if not kept:
                say("killed after a turn")

                def be_killed(pair: Pair, measured: Measured = measured) -> None:
                    # How the text was embedded does not matter to that.
                    if pair.name not in kept and ENTRIES[pair.name].finds:
                        kept[pair.name] = measured.kept(pair)

                each(be_killed)
            for number in range(rounds):
                say(f"round {number + 1} of {rounds}, {passages} passages")
                each(measured.round, turned=number * max(1, len(pairs) // rounds))
            sizes.append(measured.report(pairs))
    return {
        "machine": {**machine(), **versions(pairs)},
        "tiny": tiny,
        "rounds": rounds,
        "kept_through_kill": kept,
        "sizes": sizes,
        "left_out": left_out,
    }


def _cells(cell: Row) -> tuple[str, str, str]:
    times = f"{cell['times_ours']:.2f}" if "times_ours" in cell else ""
    return f"{cell['p50']:.2f}", f"{cell['p99']:.2f}", times


def _table(size: Row, kept: Row) -> Table:
    table = Table(title=f"{size['passages']:,} passages", title_justify="left")
    table.add_column("contender")
    table.add_column("model")
    for column in (
        *("query ms\np50", "\np99", "\nx ours"),
        *("add ms\np50", "\np99", "\nx ours"),
        *("start\ns", "resident\nMB", "store all\ns"),
    ):
        table.add_column(column, justify="right")
    table.add_column("kept")
    encoder = None
    for row in size["rows"]:
        if encoder not in (None, row["encoder"]):
            table.add_section()
        encoder = row["encoder"]
        table.add_row(
            row["title"],
            row["encoder"],
            *_cells(row["query"]),
            *_cells(row["add"]),
            f"{row['start_s']:.2f}",
            "" if row["resident_mb"] is None else f"{row['resident_mb']:.0f}",
            f"{row['ingest_s']:.1f}",
            {True: "yes", False: "no", None: ""}[kept.get(row["contender"])],
        )
        if "prefetched" in row:
            table.add_row("  after hearing()", "", *_cells(row["prefetched"]))
    return table


def show(report: Row, console: Console) -> None:
    """Print a report as tables, one for each number of passages."""
    about = report["machine"]
    console.print(
        f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, {about['date']}"
    )
    packages = [name for name in about if name not in ("cpu", "cores", "python", "date")]
    console.print(", ".join(f"{name} {about[name]}" for name in packages), style="dim")
    for size in report["sizes"]:
        console.print(_table(size, report["kept_through_kill"]))
    console.print(f"texts: {report['sizes'][0]['texts']}", style="dim")
    for row in report["left_out"]:
        console.print(f"left out: {row['contender']}, {row['encoder']}: {row['reason']}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--json", type=Path, help="write the report here")
    parser.add_argument("--rounds", type=int, help="3; 1 where tiny")
    parser.add_argument(
        "--only", action="append", default=[], choices=list(ENTRIES), help="may be given again"
    )
    parser.add_argument(
        "--encoder",
        action="append",
        default=[],
        choices=list(encoders.PACKAGES),
        help="may be given again",
    )
    parser.add_argument(
        "--passages",
        action="append",
        default=[],
        type=int,
        help="1000 and 10000; may be given again",
    )
    args = parser.parse_args()
    console = Console(stderr=True)
    rounds = args.rounds or (1 if args.tiny else 3)
    report = measure(
        only=args.only,
        with_encoders=args.encoder,
        rounds=rounds,
        tiny=args.tiny,
        say=console.print,
        sizes_asked=args.passages or (1_000, 10_000),
    )
    # Eleven columns are wider than what is taken for a pipe's width.
    show(report, Console(width=None if sys.stdout.isatty() else 132))
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
