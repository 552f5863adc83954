"""`python -m benchmarks.cloud_faults`: pushes, merges, loads and restarts over a bad line to a dying server.

Several processes share some indexes through a proxy that drops, delays, truncates, fails and repeats
requests, while the server is killed and started again. At the end every push that was acknowledged (done,
or kept in the outbox) must be there, every deletion too, and nothing else: each process keeps a model of
what it was promised, and the store is read directly and compared.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

from moss_voice import DocumentInfo, MossClient
from moss_voice.errors import ConflictError, MossError
from moss_voice.session import SessionIndex
from tests.faulty_proxy import Faults, FaultyProxy
from tests.server_process import Server, serve

ROOT = Path(__file__).parents[1]
INDEXES = [f"call-{n}" for n in range(4)]
BAD_LINE = Faults(
    drop=0.02, lose=0.02, truncate=0.02, refuse=0.02, fail=0.02, duplicate=0.02, delay=0.05, delay_s=0.02
)  # fmt: skip


class Worker:
    """One process: what it does at random, and what it was promised."""

    def __init__(
        self, name: str, seed: int, folder: Path, url: str, project: str, key: str
    ) -> None:
        self.name = name
        self.dice = random.Random(seed)
        self.place: dict[str, Any] = {
            "cloud": url,
            "cache_path": folder / "cache",
            "journal_path": folder / "journal",
        }
        self.project, self.key = project, key
        # Per index: what each document of ours must say in the end; None where it must be gone.
        self.promised: dict[str, dict[str, str | None]] = {index: {} for index in INDEXES}
        # Documents of pushes that raised: they may be there or not.
        self.open: dict[str, set[str]] = {index: set() for index in INDEXES}
        self.counts: Counter[str] = Counter()
        self.sessions: dict[str, SessionIndex] = {}
        self.client = self.make()
        self.made = 0

    def make(self) -> MossClient:
        return MossClient(self.project, self.key, **self.place)

    async def restart(self) -> None:
        """Let go of everything, as a process that ends; what waits is in the outbox."""
        await self.client.close()
        self.sessions.clear()
        self.client = self.make()

    async def session(self, index: str) -> SessionIndex:
        if index not in self.sessions:
            self.sessions[index] = await self.client.session(index, "custom")
        return self.sessions[index]

    async def push(self, index: str, on_conflict: Any) -> None:
        session = await self.session(index)
        # What waits in the outbox is not in a session that was opened since: nobody can delete it there.
        there = {doc.id for doc in await session.get_docs()}
        mine = [id_ for id_ in self.promised[index] if id_ in there]
        changes: dict[str, str | None] = {}
        for _ in range(self.dice.randint(1, 4)):
            if mine and self.dice.random() < 0.4:
                id_ = self.dice.choice(mine)
                gone = self.dice.random() < 0.4
                changes[id_] = None if gone else f"{id_} changed {self.made}"
            else:
                id_ = f"{self.name}-{self.made}"
                changes[id_] = f"{id_} new"
            self.made += 1
        put = [
            DocumentInfo(id_, text, None, tuple(self.dice.uniform(0.1, 1.0) for _ in range(8)))
            for id_, text in changes.items()
            if text is not None
        ]
        await session.add_docs(put)
        await session.delete_docs([id_ for id_, text in changes.items() if text is None])
        try:
            pushed = await session.push_index(on_conflict)
        except ConflictError:
            # Nothing was sent; the session has it, and its next push has too.
            self.counts["conflict told"] += 1
            pushed = await session.push_index("merge")
        self.counts[f"push {pushed.status}"] += 1
        self.counts["merged"] += pushed.merged is not None
        self.promised[index] |= changes

    async def load(self, index: str) -> None:
        """Read as a stranger; what was promised before must be there, unless it still waits."""
        waits = {one.parent for one in (self.place["journal_path"] / "~outbox").rglob("*.push")}
        async with await self.client.session(index, "custom") as fresh:
            self.counts["load stale" if fresh.stale else "load"] += 1
            if fresh.stale or waits:
                return
            texts = {doc.id: doc.text for doc in await fresh.get_docs()}
            for id_, text in self.promised[index].items():
                if id_ not in self.open[index] and texts.get(id_) != text:
                    raise AssertionError(
                        f"{index}: {id_}: promised {text!r}, read {texts.get(id_)!r}"
                    )

    async def step(self) -> None:
        index = self.dice.choice(INDEXES)
        kind = self.dice.choices(
            ("push", "error", "load", "collect", "restart"), (55, 10, 25, 4, 6)
        )[0]
        before = dict(self.promised[index])
        try:
            if kind in ("push", "error"):
                await self.push(index, "merge" if kind == "push" else "error")
            elif kind == "load":
                await self.load(index)
            elif kind == "collect":
                await self.client.collect_index(index)
                self.counts["collect"] += 1
            else:
                await self.restart()
                self.counts["restart"] += 1
        except MossError as error:
            self.counts[f"{kind} raised {error.code}"] += 1
            if kind in ("push", "error") and index in self.sessions:
                # Its edits stay in the session, and may get through with a later push.
                edits = self.sessions.pop(index)
                touched = {*edits._unpushed, *edits._deleted}  # noqa: SLF001 - the model's business
                self.open[index] |= touched - before.keys() | touched
                await edits.close()

    async def finish(self) -> None:
        """Send what waits, now that the line is good."""
        await self.restart()
        for _ in range(20):
            left = [one for one in await self.client.recover() if one.status != "pushed"]
            if not left:
                break
            await asyncio.sleep(0.2)
        self.counts["left in the outbox"] = len(left)
        await self.client.close()


async def work(args: argparse.Namespace) -> None:
    """Be one of the processes: told what to do by arguments, and when to finish by a line of input."""
    worker = Worker(
        f"w{args.worker}", args.seed * 100 + args.worker, Path(args.folder), args.url, args.project, args.key
    )  # fmt: skip
    for _ in range(args.operations):
        await worker.step()
    print(json.dumps({"done": args.worker}), flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await worker.finish()
    told = {
        "promised": worker.promised,
        "open": {index: sorted(ids) for index, ids in worker.open.items()},
        "counts": worker.counts,
    }
    print(json.dumps(told), flush=True)


def kill_now_and_then(
    server: Server, every_s: float, over: threading.Event, kills: list[float]
) -> None:
    """Kill the server and start it again, until it is over."""
    while not over.wait(every_s):
        server.kill()
        kills.append(time.monotonic())
        server.start()


async def compare(store: Path, project: str, told: list[dict[str, Any]]) -> tuple[int, list[str]]:
    """Read the store directly; returns how many documents it holds and what is wrong with them."""
    wrong: list[str] = []
    held = 0
    with tempfile.TemporaryDirectory() as scratch:
        # Right where the server keeps it: no server, no proxy, no cache.
        client = MossClient(
            project, told[0]["key"], cloud=store, cache_path=Path(scratch) / "c", journal_path=Path(scratch) / "j"
        )  # fmt: skip
        async with client:
            names = {index.name for index in await client.list_indexes()}
            for index in INDEXES:
                found = (
                    {doc.id: doc.text for doc in await client.get_docs(index)}
                    if index in names
                    else {}
                )
                held += len(found)
                promised: dict[str, str | None] = {}
                uncertain: set[str] = set()
                for one in told:
                    promised |= one["promised"][index]
                    uncertain |= set(one["open"][index])
                for id_, text in promised.items():
                    if id_ not in uncertain and found.get(id_) != text:
                        wrong.append(f"{index}: {id_}: promised {text!r}, found {found.get(id_)!r}")
                extra = found.keys() - promised.keys() - uncertain
                wrong += [f"{index}: {id_} was promised by nobody" for id_ in sorted(extra)]
    return held, wrong


def run(
    *, operations: int, workers: int, seed: int, kill_every_s: float, rates: Faults
) -> dict[str, Any]:
    """Run the whole; returns what happened."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        with serve(folder / "store", "--requests-per-s", "0") as server:
            project, key = server.project()
            host, _, port = server.url.removeprefix("http://").rpartition(":")
            kills: list[float] = []
            over = threading.Event()
            killer = threading.Thread(
                target=kill_now_and_then, args=(server, kill_every_s, over, kills), daemon=True
            )
            with FaultyProxy(host, int(port), seed=seed, rates=rates) as proxy:
                processes = [
                    subprocess.Popen(
                        [
                            *(sys.executable, "-m", "benchmarks.cloud_faults", "--worker", str(n)),
                            *("--operations", str(operations // workers), "--seed", str(seed)),
                            *("--folder", str(folder / f"machine-{n}"), "--url", proxy.url),
                            *("--project", project, "--key", key),
                        ],
                        cwd=ROOT,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.PIPE,
                        text=True,
                    )
                    for n in range(workers)
                ]
                killer.start()
                try:
                    for process in processes:
                        assert process.stdout is not None
                        if not process.stdout.readline():
                            raise RuntimeError(f"a worker died: {process.wait()}")
                    over.set()
                    killer.join()
                    faults = dict(proxy.counts)
                    proxy.rates = Faults()
                    told = []
                    for process in processes:
                        out, _ = process.communicate("finish\n", timeout=600)
                        told.append({**json.loads(out), "key": key})
                finally:
                    over.set()
                    for process in processes:
                        process.kill()
                        process.wait()
        held, wrong = asyncio.run(compare(folder / "store", project, told))
    counts: Counter[str] = Counter()
    for one in told:
        counts.update(one["counts"])
    return {
        "operations": operations // workers * workers,
        "workers": workers,
        "seed": seed,
        "took_s": round(time.monotonic() - started, 1),
        "server_killed": len(kills),
        "line": faults,
        "counts": dict(sorted(counts.items())),
        "promised": sum(len(ids) for one in told for ids in one["promised"].values()),
        "uncertain": sum(len(ids) for one in told for ids in one["open"].values()),
        "documents": held,
        "wrong": wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill-every-s", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    for hidden in ("--folder", "--url", "--project", "--key"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is not None:
        asyncio.run(work(args))
        return
    report = run(
        operations=args.operations,
        workers=args.workers,
        seed=args.seed,
        kill_every_s=args.kill_every_s,
        rates=BAD_LINE,
    )
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2), encoding="utf-8")
    print(json.dumps({**report, "wrong": report["wrong"][:20]}, indent=2))
    if report["wrong"]:
        sys.exit(f"{len(report['wrong'])} documents are not as they were promised")


if __name__ == "__main__":
    main()
