"""`make bench`: how fast, how large. Prints a table and writes JSON.

Every ratio is of medians taken in one run, turn by turn beside each other, since machines are shared
and noisy. What needs a fresh process is measured in one.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.corpus import Corpus, believable_vectors, corpus
from moss_voice import CallMemory, DocumentInfo, MossClient, models
from moss_voice.embedding import OnnxEmbedder
from moss_voice.models import DEFAULT_MODEL
from moss_voice.text import is_filler

Row = dict[str, Any]

BUNDLED = Path(models.__file__).parent / "minilm"


def percentiles(values: list[float]) -> Row:
    """Return n, p50 and p99."""
    return {
        "n": len(values),
        "p50": round(float(np.median(values)), 3),
        "p99": round(float(np.percentile(values, 99)), 3),
    }


def milliseconds(started: float) -> float:
    return (time.perf_counter() - started) * 1000.0


def client_in(folder: Path) -> MossClient:
    return MossClient(
        cloud=folder / "cloud", cache_path=folder / "cache", journal_path=folder / "journal"
    )


async def settled(client: MossClient, name: str) -> None:
    """Wait until the index has its graph, as it has a few seconds after a first load."""
    index = client._loaded[name]  # noqa: SLF001 - no public reason to wait for it
    if index._graph_job is not None:  # noqa: SLF001
        await asyncio.wrap_future(index._graph_job)  # noqa: SLF001


async def turns(folder: Path, texts: Corpus, *, most_turns: int) -> Row:
    """Measure heard() and context() of replayed calls, beside the raw model run for the same text."""
    raw = OnnxEmbedder.load(BUNDLED, model_id=DEFAULT_MODEL, cache_texts=0)
    raw_model: list[float] = []
    results: dict[str, list[float]] = {"context": [], "context_prefetched": [], "heard": []}
    beside: dict[str, list[float]] = {name: [] for name in results}
    misses = 0

    def run_raw(text: str) -> float:
        started = time.perf_counter()
        raw.embed_query(text)
        return milliseconds(started)

    async with client_in(folder) as client:
        await client.create_index("faq", texts.passages)
        await client.load_index("faq")
        await settled(client, "faq")
        spoken = [
            (number, speaker, text)
            for number, call in enumerate(texts.calls)
            for speaker, text in call
            if not is_filler(text)
        ]
        # A text is measured once: the second time the model's cache would answer.
        unseen = list({text: (number, speaker, text) for number, speaker, text in spoken}.values())
        call: CallMemory | None = None
        current = -1
        for step, (number, _, text) in enumerate(unseen[:most_turns]):
            if number != current:
                if call is not None:
                    await call.discard()
                # Without the gate, which spares many turns the search that is measured.
                call = await client.call(
                    f"bench-{number}", knowledge=["faq"], without=["gate"], deadline_ms=10_000
                )
                current = number
            assert call is not None
            # In turn: a reply without an interim, one with, and a turn that nobody has embedded yet.
            kind = ("context", "context_prefetched", "heard")[step % 3]
            model_ms = run_raw(text)
            if kind == "context_prefetched":
                call.hearing(text)
                await asyncio.gather(*map(asyncio.wrap_future, call._interims.values()))  # noqa: SLF001
            started = time.perf_counter()
            if kind == "heard":
                await call.heard(text)
            else:
                context = await call.context(text)
                assert context.outcome == "ok"
                misses += context.prefetched != (kind == "context_prefetched")
            took_ms = milliseconds(started)
            results[kind].append(took_ms)
            beside[kind].append(model_ms)
            raw_model.append(model_ms)
            if kind != "heard":
                await call.heard(text)
        if call is not None:
            await call.discard()
    row: Row = {"passages": len(texts.passages), "texts": texts.source, "wrong_prefetches": misses}
    for kind, values in results.items():
        ratio = float(np.median(values) / np.median(beside[kind]))
        row[kind] = percentiles(values)
        row[kind] |= {"model": percentiles(beside[kind]), "times_the_model": round(ratio, 3)}
    return row


_FIRST_ANSWER = """
import time; started = time.perf_counter()
import asyncio, json, sys
from pathlib import Path
from moss_voice import MossClient
async def main(folder):
    async with MossClient(cloud=folder / "cloud", cache_path=folder / "cache",
                          journal_path=folder / "journal") as client:
        call = await client.call("cold", knowledge=sys.argv[2:], without=["gate"], deadline_ms=10_000)
        context = await call.context("how long does a refund take and when do you open")
        ready = time.perf_counter() - started
        status = dict(line.split(":", 1) for line in open("/proc/self/status")) \\
            if Path("/proc/self/status").exists() else {}
        await call.discard()
        print(json.dumps({"imported_to_answer_s": ready, "hits": len(context.hits),
            "outcome": context.outcome,
            **{key: int(status[key].split()[0]) / 1024 for key in ("VmRSS", "RssAnon", "RssFile")
               if key in status}}))
asyncio.run(main(Path(sys.argv[1])))
"""


def fresh_process(code: str, *args: str) -> Row:
    """Run code in a process of its own; adds how long it took from its start to its last line."""
    started = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        took_s = time.perf_counter() - started
    if process.returncode != 0 or not line:
        raise RuntimeError(f"the measured process failed with {process.returncode}")
    return {**json.loads(line), "start_to_answer_s": took_s}


def cold_start(folder: Path, *, runs: int, passages: int) -> Row:
    """Measure a process that starts, loads the index from the cache and answers."""
    rows = [fresh_process(_FIRST_ANSWER, str(folder), "faq") for _ in range(runs)]
    bare = [fresh_process(_FIRST_ANSWER, str(folder)) for _ in range(runs)]

    def median(of: list[Row], key: str) -> float | None:
        values = [row[key] for row in of if key in row]
        return round(float(np.median(values)), 3) if values else None

    return {
        "passages": passages,
        "runs": runs,
        "start_to_answer_s": median(rows, "start_to_answer_s"),
        "start_to_answer_without_knowledge_s": median(bare, "start_to_answer_s"),
        "resident_mb": median(rows, "VmRSS"),
        "resident_private_mb": median(rows, "RssAnon"),
        "resident_without_knowledge_mb": median(bare, "VmRSS"),
        "hits": rows[0]["hits"],
    }


_SESSIONS = """
import asyncio, gc, json, os, sys
from pathlib import Path
from moss_voice import MossClient
def resident():
    gc.collect()
    for line in open("/proc/self/status"):
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
async def main(folder, sessions, turns):
    async with MossClient(cloud=folder / "cloud", cache_path=folder / "cache",
                          journal_path=folder / "journal") as client:
        texts = [t for t in json.load(open(folder / "texts.json"))][:turns]
        calls = []
        async def one(name):
            call = await client.call(name)
            for number, text in enumerate(texts):
                await call.heard(text, speaker="caller" if number % 2 else "agent")
            await call.context("what did I say about the booking")
            calls.append(call)
        for n in range(3):
            await one(f"warm-{n}")
        before = resident()
        for n in range(sessions):
            await one(f"call-{n}")
        after = resident()
        print(json.dumps({"sessions": sessions, "turns": len(texts),
                          "mb_per_session": (after - before) / sessions}))
        for call in calls:
            await call.discard()
asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])))
"""


def session_memory(folder: Path, texts: Corpus, *, sessions: int, n_turns: int) -> Row:
    """Measure what a further call costs a process that has some."""
    if not Path("/proc/self/status").exists():
        return {"skipped": "needs /proc"}
    said = [text for call in texts.calls for _, text in call]
    (folder / "texts.json").write_text(json.dumps((said * (n_turns // len(said) + 1))[:n_turns]))
    row = fresh_process(_SESSIONS, str(folder), str(sessions), str(n_turns))
    return {**row, "mb_per_session": round(row["mb_per_session"], 3)}


async def large_index(folder: Path, texts: Corpus, *, passages: int) -> Row:
    """Measure the load of a large index from the cloud and from the cache, to the first answer."""
    vectors = believable_vectors(passages, 384)
    docs = [
        DocumentInfo(f"p{n}", texts.passages[n % len(texts.passages)].text, None, tuple(row))
        for n, row in enumerate(vectors.tolist())
    ]
    row: Row = {"passages": passages, "vectors": "synthetic clusters"}
    async with client_in(folder) as client:
        started = time.perf_counter()
        await client.create_index("large", docs)
        row["create_s"] = round(time.perf_counter() - started, 3)
    del docs, vectors
    for kind, cache in (("cloud", folder / "empty"), ("cache", folder / "empty")):
        gc.collect()
        client = MossClient(cloud=folder / "cloud", cache_path=cache, journal_path=folder / "j")
        async with client:
            started = time.perf_counter()
            await client.load_index("large")
            loaded = time.perf_counter()
            result = await client.query("large", "how long does a refund take")
            answered = time.perf_counter()
            assert result.docs
            row[f"{kind}_load_s"] = round(loaded - started, 3)
            row[f"{kind}_first_query_ms"] = round((answered - loaded) * 1000, 2)
            row[f"{kind}_load_and_first_query_s"] = round(answered - started, 3)
            if kind == "cloud":
                await settled(client, "large")
            else:
                await settled(client, "large")
                times = []
                for number in range(200):
                    started = time.perf_counter()
                    await client.query("large", f"{number} is the number of my booking")
                    times.append(milliseconds(started))
                row["query_with_graph_ms"] = percentiles(times)
    return row


async def push_size(folder: Path, texts: Corpus) -> Row:
    """Measure what a push of 20 new turns uploads, on an index that has many documents."""
    said = [text for call in texts.calls for _, text in call]
    async with client_in(folder) as client:
        session = await client.session("faq")
        before = session.doc_count
        started = time.perf_counter()
        await session.add_docs(
            [
                DocumentInfo(f"new-{n}", said[n % len(said)], {"turn": n, "speaker": "caller"})
                for n in range(20)
            ]
        )
        added = time.perf_counter()
        pushed = await session.push_index()
        took_ms = milliseconds(added)
        await session.close()
    return {
        "documents": before,
        "new_turns": 20,
        "uploaded_kb": round(pushed.uploaded_bytes / 1024, 1),
        "add_ms": round((added - started) * 1000, 1),
        "push_ms": round(took_ms, 1),
    }


def machine() -> Row:
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    packages = ("moss-voice", "onnxruntime", "numpy", "hnswlib", "tokenizers", "obstore")
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def measure(*, tiny: bool, say: Callable[[str], None]) -> Row:
    """Measure everything; `tiny` shows that it runs, its numbers mean nothing."""
    sizes = (40, 80) if tiny else (1_000, 10_000)
    report: Row = {"machine": machine(), "tiny": tiny, "turns": []}
    with tempfile.TemporaryDirectory(prefix="moss-voice-bench-") as name:
        root = Path(name)
        for size in sizes:
            say(f"turns of a call beside {size} passages")
            folder = root / str(size)
            texts = corpus(size)
            report["turns"].append(asyncio.run(turns(folder, texts, most_turns=9 if tiny else 600)))
        say("cold start")
        report["cold_start"] = cold_start(folder, runs=1 if tiny else 7, passages=sizes[-1])
        say("memory of further sessions")
        report["sessions"] = session_memory(
            folder, texts, sessions=2 if tiny else 50, n_turns=5 if tiny else 100
        )
        say("push of 20 turns")
        report["push"] = asyncio.run(push_size(folder, texts))
        say("a large index")
        report["large"] = asyncio.run(
            large_index(root / "large", texts, passages=300 if tiny else 50_000)
        )
    return report


def show(report: Row, console: Console) -> None:
    """Print a report as tables, with the floors that the project set itself."""
    about = report["machine"]
    console.print(
        f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, {about['date']}"
    )
    table = Table("measured", "p50 ms", "p99 ms", "model p50 ms", "x model", "floor")
    floors = {"context": 1.5, "context_prefetched": 0.5, "heard": 1.4}
    for row in report["turns"]:
        for kind, floor in floors.items():
            cell = row[kind]
            table.add_row(
                f"{kind}, {row['passages']} passages",
                f"{cell['p50']:.2f}",
                f"{cell['p99']:.2f}",
                f"{cell['model']['p50']:.2f}",
                f"{cell['times_the_model']:.2f}",
                f"{floor}",
            )
    console.print(table)
    rest = Table("measured", "value", "floor")
    cold, large, push, sessions = (report[k] for k in ("cold_start", "large", "push", "sessions"))
    rest.add_row(
        f"start to first answer, {cold['passages']} passages",
        f"{cold['start_to_answer_s']} s",
        "0.8 s",
    )
    rest.add_row("resident then", f"{cold['resident_mb']} MB", "180 MB")
    rest.add_row("of it private", f"{cold['resident_private_mb']} MB", "")
    rest.add_row(
        f"a further session of {sessions.get('turns')} turns",
        f"{sessions.get('mb_per_session')} MB",
        "0.5 MB",
    )
    rest.add_row(
        f"{large['passages']} passages from the cloud, to the first answer",
        f"{large['cloud_load_and_first_query_s']} s",
        "",
    )
    rest.add_row("from the cache", f"{large['cache_load_and_first_query_s']} s", "0.5 s")
    rest.add_row("query then, with graph, p50", f"{large['query_with_graph_ms']['p50']} ms", "")
    rest.add_row(
        f"push of 20 turns on {push['documents']} documents", f"{push['uploaded_kb']} kB", "100 kB"
    )
    console.print(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    console = Console(stderr=True)
    report = measure(tiny=args.tiny, say=lambda what: console.print(f"measuring {what}"))
    show(report, Console())
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
