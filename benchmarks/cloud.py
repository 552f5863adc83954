"""`python -m benchmarks.cloud`: what a push and a resume cost as an index grows, and what a server bears.

Costs: an index of n documents is on a server; 20 documents are added and pushed, then the index is resumed
with a warm cache, and with none. Bytes are counted where they cross the line. Load: 1 and 8 clients push
and load as fast as they can, then 20,000 requests while the server's memory is watched.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shutil
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.corpus import believable_vectors
from benchmarks.run import percentiles
from moss_voice import DocumentInfo, MossClient
from moss_voice.cloud.cloud import open_cloud
from moss_voice.session import SessionIndex
from moss_voice.versions import Remote
from tests.server_process import Server, serve

Row = dict[str, Any]

DIM = 384
ADDED = 20


class Meter:
    """Counts the bytes of segments that a client downloads."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str, int], int] = {}

    def __call__(self, index: str, received: int, total: int) -> None:
        self._parts[index, total] = received

    def take(self) -> int:
        taken = sum(self._parts.values())
        self._parts.clear()
        return taken


def documents(start: int, n: int, vectors: npt.NDArray[np.float32]) -> list[DocumentInfo]:
    """Passages of some forty words, each with its vector."""
    return [
        DocumentInfo(
            f"doc-{start + i}",
            " ".join(f"word{(start + i) * 7 % 5000 + k * 13 % 97}" for k in range(40)),
            {"topic": f"t{(start + i) % 20}"},
            vectors[i],
        )
        for i in range(n)
    ]


def make_client(
    server: Server, project: str, key: str, place: Path, meter: Meter | None = None
) -> MossClient:
    return MossClient(
        project,
        key,
        cloud=server.url,
        cache_path=place / "cache",
        journal_path=place / "journal",
        on_received=meter,
    )


async def cost(server: Server, folder: Path, n: int, rounds: int) -> Row:
    """Measure a push of some new documents, and resumes, beside n documents."""
    project, key = await asyncio.to_thread(server.project)
    vectors = believable_vectors(n + ADDED * rounds, DIM)
    # Written to the store directly: how it came there is not what is measured.
    remote = Remote(open_cloud(server.store), project, None)
    seed = await SessionIndex.start(remote, "calls", "custom")
    await seed.add_docs(documents(0, n, vectors[:n]))
    await seed.push_index()
    await seed.close()
    place = folder / f"machine-{n}"
    row: Row = {"documents": n}
    times: dict[str, list[float]] = {name: [] for name in ("push", "warm", "cold", "unchanged")}
    bytes_: dict[str, list[int]] = {name: [] for name in ("push", "warm", "cold", "unchanged")}
    meter = Meter()
    async with make_client(server, project, key, place, meter) as client:
        await (await client.session("calls")).close()
        for number in range(rounds):
            session = await client.session("calls")
            start = n + number * ADDED
            await session.add_docs(documents(start, ADDED, vectors[start : start + ADDED]))
            started = time.perf_counter()
            pushed = await session.push_index()
            times["push"].append((time.perf_counter() - started) * 1000)
            assert pushed.status == "completed"
            bytes_["push"].append(pushed.uploaded_bytes)
            await session.close()
            # As where another machine has pushed: what it added is not in the cache here.
            newest = max(
                (place / "cache" / "segments").iterdir(), key=lambda path: path.stat().st_mtime
            )
            newest.unlink()
            for kind in ("warm", "unchanged"):
                meter.take()
                started = time.perf_counter()
                resumed = await client.session("calls")
                times[kind].append((time.perf_counter() - started) * 1000)
                bytes_[kind].append(meter.take())
                assert resumed.doc_count == start + ADDED
                await resumed.close()
    for number in range(min(rounds, 3)):
        other = folder / f"cold-{n}-{number}"
        async with make_client(server, project, key, other, meter) as client:
            await client.list_indexes()
            meter.take()
            started = time.perf_counter()
            resumed = await client.session("calls")
            times["cold"].append((time.perf_counter() - started) * 1000)
            bytes_["cold"].append(meter.take())
            await resumed.close()
        shutil.rmtree(other)
    for kind, values in times.items():
        row[f"{kind}_ms"] = round(float(np.median(values)), 1)
        row[f"{kind}_kb"] = round(float(np.median(bytes_[kind])) / 1000, 1)
    return row


async def load(server: Server, folder: Path, clients: int, seconds: float) -> Row:
    """Let clients push, and then load, as fast as they can."""
    project, key = await asyncio.to_thread(server.project)
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(4096, DIM)).astype(np.float32)
    made = [
        make_client(server, project, key, folder / f"load-{clients}-{n}") for n in range(clients)
    ]
    for client in made:
        await client.list_indexes()
    pushes: list[float] = []
    loads: list[float] = []

    async def push_on(number: int, until: float) -> None:
        session = await made[number].session(f"call-{number}", "custom")
        n = 0
        while time.perf_counter() < until:
            await session.add_docs(
                [
                    DocumentInfo(f"turn-{n}-{i}", "so it goes", None, vectors[(n + i) % 4096])
                    for i in range(5)
                ]
            )
            started = time.perf_counter()
            pushed = await session.push_index("merge")
            assert pushed.status == "completed"
            pushes.append((time.perf_counter() - started) * 1000)
            n += 1
        await session.close()

    async def load_on(number: int, until: float) -> None:
        while time.perf_counter() < until:
            shutil.rmtree(folder / f"load-{clients}-{number}" / "cache", ignore_errors=True)
            started = time.perf_counter()
            session = await made[number].session(f"call-{number}", "custom")
            loads.append((time.perf_counter() - started) * 1000)
            await session.close()

    row: Row = {"clients": clients}
    for kind, work, values in (("push", push_on, pushes), ("load", load_on, loads)):
        started = time.perf_counter()
        await asyncio.gather(*(work(n, started + seconds) for n in range(clients)))
        took_s = time.perf_counter() - started
        row[kind] = {"per_s": round(len(values) / took_s, 1), **percentiles(values)}
    for client in made:
        await client.close()
    return row


async def refresh(server: Server, folder: Path, rounds: int) -> Row:
    """Measure from the end of a push to the moment that another machine's loaded copy has it."""
    project, key = await asyncio.to_thread(server.project)
    vectors = believable_vectors(1000 + ADDED * rounds, DIM)
    took: list[float] = []
    writer = make_client(server, project, key, folder / "writer")
    reader = make_client(server, project, key, folder / "reader")
    async with writer, reader:
        session = await writer.session("faq", "custom")
        await session.add_docs(documents(0, 1000, vectors[:1000]))
        await session.push_index()
        copy = await reader.session("faq")
        copy.watch(3600.0)
        await asyncio.sleep(0.5)  # the line is open
        for number in range(rounds):
            start = 1000 + number * ADDED
            await session.add_docs(documents(start, ADDED, vectors[start : start + ADDED]))
            await session.push_index()
            started = time.perf_counter()
            async with asyncio.timeout(60):
                while copy.doc_count < start + ADDED:  # noqa: ASYNC110 - nothing tells of it
                    await asyncio.sleep(0.001)
            took.append((time.perf_counter() - started) * 1000)
        await copy.close()
        await session.close()
    return percentiles(took)


def resident_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("no VmRSS")


async def memory(server: Server, requests: int) -> Row:
    """Watch the server's memory over many requests of every kind that a client makes."""
    project, key = await asyncio.to_thread(server.project)
    headers = server.bearer(key)
    base = f"/v1/projects/{project}"
    place = Path(tempfile.mkdtemp())
    async with make_client(server, project, key, place) as client:
        session = await client.session("calls", "custom")
        await session.add_docs([DocumentInfo("a", "x" * 2000, None, [1.0] * DIM)])
        await session.push_index()
        commit = (await client.history("calls"))[0]
        (segment,) = (place / "cache" / "segments").iterdir()
        sha256 = segment.name
        await session.close()
    paths = [
        f"{base}/indexes/calls/head",
        f"{base}/indexes/calls/commits/{commit.version}",
        f"{base}/indexes/calls/segments/{sha256}",
        f"{base}/indexes/calls/documents",
        f"{base}/indexes",
        f"{base}/jobs/nothing",
        "/healthz",
    ]
    marks: list[float] = []
    every = max(1, requests // 10)
    started = time.perf_counter()
    async with httpx.AsyncClient(base_url=server.url, headers=headers) as http:
        done = 0
        while done < requests:
            answers = await asyncio.gather(
                *(http.get(paths[(done + i) % len(paths)]) for i in range(20))
            )
            assert all(answer.status_code < 500 for answer in answers)
            done += len(answers)
            if done % every < 20:
                marks.append(round(resident_mb(server.pid), 1))
    shutil.rmtree(place)
    return {
        "requests": done,
        "per_s": round(done / (time.perf_counter() - started)),
        "resident_mb": marks,
    }


def measure(*, sizes: list[int], rounds: int, seconds: float, requests: int) -> Row:
    report: Row = {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with serve(folder / "store", "--requests-per-s", "0", "--log-level", "warning") as server:
            report["costs"] = [asyncio.run(cost(server, folder, n, rounds)) for n in sizes]
            report["load"] = [
                asyncio.run(load(server, folder, clients, seconds)) for clients in (1, 8)
            ]
            report["refresh"] = asyncio.run(refresh(server, folder, 5 * rounds))
            report["memory"] = asyncio.run(memory(server, requests))
    return report


def show(report: Row) -> None:
    console = Console(width=120)
    table = Table(title="what an index of n documents costs; 20 are new")
    names = ("push", "warm", "unchanged", "cold")
    for column in ("documents", *(f"{name} {unit}" for name in names for unit in ("ms", "kB"))):
        table.add_column(column, justify="right")
    for row in report["costs"]:
        cells = [f"{row[f'{name}_{unit}']:,}" for name in names for unit in ("ms", "kb")]
        table.add_row(f"{row['documents']:,}", *cells)
    console.print(table)
    table = Table(title="a server on this machine, its clients beside it")
    for column in ("clients", "pushes/s", "p50 ms", "p99 ms", "loads/s", "p50 ms", "p99 ms"):
        table.add_column(column, justify="right")
    for row in report["load"]:
        cells = [
            f"{row[kind][name]:,}" for kind in ("push", "load") for name in ("per_s", "p50", "p99")
        ]
        table.add_row(f"{row['clients']}", *cells)
    console.print(table)
    console.print(
        "from the end of a push to another machine's loaded copy, ms:"
        f" p50 {report['refresh']['p50']}, p99 {report['refresh']['p99']}"
    )
    told = report["memory"]
    console.print(
        f"{told['requests']:,} requests at {told['per_s']}/s; resident MB as they went: {told['resident_mb']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a moment's work, to see that it runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.tiny:
        report = measure(sizes=[100, 300], rounds=2, seconds=0.5, requests=200)
    else:
        report = measure(
            sizes=[100, 1000, 10_000, 100_000], rounds=7, seconds=10.0, requests=20_000
        )
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    show(report)


if __name__ == "__main__":
    main()
