"""What a further job process of a LiveKit worker costs in memory, with and without us.

A real worker starts processes that wait for a call, then each gets one and answers a turn. For every
process are read, from `/proc/PID/smaps_rollup`:

- USS, what is its alone: what a further process costs, and what its death would free;
- PSS, with its share of what several map: sums up to what the machine has in use;
- RSS, with all of that: what `top` shows, and what nobody pays.

    python -m benchmarks.livekit_memory [--json FILE] [--tiny] [--processes N] [--passages N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.corpus import corpus
from benchmarks.run import Row, client_in, machine, settled

# What a worker does with us, by the name of its row; each adds to the one before.
KINDS: Mapping[str, tuple[str, ...]] = {
    "without us": (),
    "attach": ("attach",),
    "attach, prewarm": ("attach", "prewarm"),
    "attach, prewarm, preload": ("attach", "prewarm", "preload"),
    "the same, knowledge preloaded": ("attach", "prewarm", "preload", "share"),
}

# The worker is a program of its own, so that its processes import nothing of the benchmark's.
_WORKER = """
import asyncio, json, math, os, sys
from livekit.agents import Agent, AgentServer, AgentSession, DEFAULT_API_CONNECT_OPTIONS, llm

WITH = set(filter(None, os.environ["BENCH_WITH"].split(",")))
KNOWLEDGE = list(filter(None, os.environ["BENCH_KNOWLEDGE"].split(",")))
if WITH:
    from livekit.plugins import moss_voice

class Stream(llm.LLMStream):
    async def _run(self):
        delta = llm.ChoiceDelta(role="assistant", content="It takes a week.")
        self._event_ch.send_nowait(llm.ChatChunk(id="1", delta=delta))

class Model(llm.LLM):
    def chat(self, *, chat_ctx, tools=None, conn_options=DEFAULT_API_CONNECT_OPTIONS, **_):
        return Stream(self, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options)

async def entrypoint(ctx):
    session = AgentSession(llm=Model(), vad=None, turn_handling={"turn_detection": None})
    hits = []
    if "attach" in WITH:
        # No time limits: what is measured is memory, on a machine that may be busy.
        await moss_voice.attach(session, knowledge=KNOWLEDGE, deadline_ms=60_000,
                                open_timeout_s=60, without=["gate"],
                                on_context=lambda c: hits.extend(c.hits))
    await session.start(Agent(instructions="You take calls."))
    await session.run(user_input="how long does a refund take and when do you open")
    if "attach" in WITH:
        client = ctx.proc.userdata["moss_voice"].client if "prewarm" in WITH else None
        for index in client._loaded.values() if client is not None else ():
            await index.settled()
    with open(os.path.join(os.environ["BENCH_OUT"], ctx.job.room.name), "w") as file:
        file.write(f"{os.getpid()} {len(hits)}\\n")

def setup(proc):
    if "prewarm" in WITH:
        moss_voice.prewarm(proc, knowledge=KNOWLEDGE)

server = AgentServer(
    setup_fnc=setup, host="127.0.0.1", port=0, load_threshold=math.inf, job_memory_warn_mb=0,
    num_idle_processes=int(os.environ["BENCH_PROCESSES"]), initialize_process_timeout=60,
    preload_modules=["livekit.plugins.moss_voice.preload"] if "preload" in WITH else None,
)
server.rtc_session(entrypoint)

def forkserver():
    from multiprocessing import forkserver
    return forkserver._forkserver._forkserver_pid

async def main():
    started = asyncio.Event()
    server.on("worker_started", started.set)
    running = asyncio.create_task(server.run(unregistered=True))
    await asyncio.wait([running, asyncio.create_task(started.wait())],
                       return_when=asyncio.FIRST_COMPLETED)
    pool = server._proc_pool
    # From here on a process that takes a call is not replaced.
    pool._default_num_idle_processes = 0
    loop = asyncio.get_running_loop()
    print(json.dumps({"forkserver": forkserver(), "processes": [p.pid for p in pool.processes]}),
          flush=True)
    while (line := (await loop.run_in_executor(None, sys.stdin.readline)).strip()):
        await server.simulate_job(line, fake_job=True)
    await server.aclose()

if __name__ == "__main__":
    asyncio.run(main())
"""

_MB = 1024.0


def memory_of(pid: int) -> Row:
    """Return a process's RSS, PSS and USS in MB."""
    kb: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()[1:]:
        name, value, *_ = line.split()
        kb[name[:-1]] = int(value)
    return {
        "rss_mb": kb["Rss"] / _MB,
        "pss_mb": kb["Pss"] / _MB,
        "uss_mb": (kb["Private_Clean"] + kb["Private_Dirty"]) / _MB,
    }


def median_of(pids: Sequence[int]) -> Row:
    rows = [memory_of(pid) for pid in pids]
    return {key: round(statistics.median(row[key] for row in rows), 1) for key in rows[0]}


def answers(out: Path, n: int) -> list[list[int]]:
    """Wait for what n jobs tell: the process of each and how many hits it had."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        told = [path.read_text(encoding="ascii") for path in out.iterdir()]
        if sum(text.endswith("\n") for text in told) == n:
            return [[*map(int, text.split())] for text in told]
        time.sleep(0.05)
    raise TimeoutError(f"not all of {n} jobs have answered")


async def worker(folder: Path, parts: Sequence[str], *, processes: int, knowledge: str) -> Row:
    """Measure a worker's processes, waiting and with a turn answered each."""
    program, out = folder / "agent.py", folder / "_".join(["out", *parts])
    program.write_text(_WORKER, encoding="utf-8")
    out.mkdir()
    environ = {
        **os.environ,
        "BENCH_WITH": ",".join(parts),
        "BENCH_KNOWLEDGE": knowledge,
        "BENCH_PROCESSES": str(processes),
        "MOSS_VOICE_PRELOAD": knowledge if "share" in parts else "",
        "BENCH_OUT": str(out),
        "MOSS_VOICE_CLOUD": str(folder / "cloud"),
        "XDG_CACHE_HOME": str(folder / "xdg-cache"),
        "XDG_DATA_HOME": str(folder / "xdg-data"),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(program),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=(folder / "log").open("ab"),
        env=environ,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        started = json.loads(await asyncio.wait_for(process.stdout.readline(), 120))
        pids = started["processes"]
        assert len(pids) == processes, f"{len(pids)} processes; see {folder / 'log'}"
        row: Row = {"forkserver": median_of([started["forkserver"]]), "waiting": median_of(pids)}
        process.stdin.writelines(f"room-{n}\n".encode() for n in range(processes))
        answered = await asyncio.to_thread(answers, out, processes)
        assert sorted(pid for pid, _ in answered) == sorted(pids)
        row |= {"answered": median_of(pids), "hits": min(hits for _, hits in answered)}
        process.stdin.write_eof()
        await asyncio.wait_for(process.wait(), 60)
        return row
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def build(folder: Path, passages: int) -> str:
    """Make the knowledge index, and leave it in the cache with its graph; returns its source."""
    texts = corpus(passages)
    async with client_in(folder) as client:
        await client.create_index("faq", texts.passages)
    cache = folder / "xdg-cache" / "moss_voice"
    async with type(client)(cloud=folder / "cloud", cache_path=cache) as client:
        await client.load_index("faq")
        await settled(client, "faq")
    return texts.source


def measure(*, processes: int, passages: int, kinds: Sequence[str]) -> Row:
    """Measure each kind of worker."""
    if not Path("/proc/self/smaps_rollup").exists():
        return {"skipped": "needs Linux"}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="moss-voice-memory-") as name:
        folder = Path(name)
        console.print(f"embedding {passages} passages")
        source = asyncio.run(build(folder, passages))
        report: Row = {
            "machine": machine(),
            "processes": processes,
            "passages": passages,
            "texts": source,
            "workers": {},
        }
        for kind in kinds:
            console.print(f"measuring a worker: {kind}")
            report["workers"][kind] = asyncio.run(
                worker(folder, KINDS[kind], processes=processes, knowledge="faq")
            )
    return report


def show(report: Row, console: Console) -> None:
    """Print the table."""
    title = f"MB per process, median of {report['processes']}; {report['passages']} passages"
    table = Table("worker", "", "USS", "PSS", "RSS", "USS, us alone", title=title)
    bare = report["workers"].get("without us")
    for kind, row in report["workers"].items():
        for state in ("waiting", "answered", "forkserver"):
            cell = row[state]
            ours = f"{cell['uss_mb'] - bare[state]['uss_mb']:+.1f}" if bare else ""
            table.add_row(
                kind if state == "waiting" else "",
                "the fork server" if state == "forkserver" else state,
                *(f"{cell[key]:.1f}" for key in ("uss_mb", "pss_mb", "rss_mb")),
                "" if state == "forkserver" else ours,
            )
    console.print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="only show that it runs")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--passages", type=int, default=10_000)
    parser.add_argument("--json", type=Path, help="write the report here")
    options = parser.parse_args(arguments)
    report = measure(
        processes=1 if options.tiny else options.processes,
        passages=40 if options.tiny else options.passages,
        kinds=[*KINDS][-1:] if options.tiny else [*KINDS],
    )
    if "workers" in report:
        show(report, Console())
    else:
        print(report["skipped"])
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
