"""One contender in a process of its own: `python -m benchmarks.peers.process TASK`, TASK as JSON.

Nothing is imported here that a contender does not need, since the time from the start of the process to
its first answer is measured, and its memory. Every line of the standard output that begins with `RESULT`
is a result; whatever else a package prints is left to whoever reads it.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from benchmarks.peers import contender
from benchmarks.peers.contender import Contender, Text

RESULT = "RESULT "
FIRST_QUESTION = "how long does a refund take and when do you open"
MAINTAIN_EVERY = 20
_LOOPBACK = ("127.0.0.1", "::1", "localhost", None)


class Task(TypedDict):
    """What a process is to do.

    Attributes:
        do: `ingest`, `turns`, `die` (store a turn and be killed at once) or `look` for that turn.
        contender: A name in `contender.ENTRIES`.
        encoder: A name in `encoders`.
        folder: Of the store.
        passages: A JSON file of (id, text).
        turns: A JSON file of (id, text).
    """

    do: str
    contender: str
    encoder: str
    folder: str
    passages: str
    turns: str


def stay_here(event: str, args: tuple[Any, ...]) -> None:
    """Refuse to look up or reach anything beyond loopback: a hook on what Python does."""
    if event == "socket.connect":
        address = args[1]
        host = address[0] if isinstance(address, tuple) else None
    elif event == "socket.getaddrinfo":
        host = args[0]
    else:
        return
    if host not in _LOOPBACK:
        raise PermissionError(f"{event} to {host}: nothing here may reach beyond loopback")


def texts_in(path: str) -> list[Text]:
    with Path(path).open(encoding="utf-8") as file:
        return [Text(*row) for row in json.load(file)]


def tell(result: dict[str, Any]) -> None:
    print(f"{RESULT}{json.dumps(result)}", flush=True)


def memory_mb() -> dict[str, float]:
    """Return what is resident, and what of it is no file's; nothing where there is no /proc."""
    status = Path("/proc/self/status")
    if not status.exists():
        return {}
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    names = {"resident_mb": "VmRSS", "private_mb": "RssAnon"}
    return {name: int(lines[field].split()[0]) / 1024 for name, field in names.items()}


def check(store: Contender, texts: Sequence[Text], what: str) -> None:
    """Ask with the words of texts that are stored: each comes first, so that nothing broken is measured."""
    for text in texts:
        found = store.query(text.text)
        if not found or found[0] != text:
            raise RuntimeError(f"{what} {text.id} is not the first that its own words find")


def some(texts: Sequence[Text], n: int) -> list[Text]:
    """Return n texts, spread over all, whose words nothing else has."""
    said: dict[str, int] = {}
    for text in texts:
        said[text.text] = said.get(text.text, 0) + 1
    unique = [text for text in texts if said[text.text] == 1 and len(text.text.split()) > 4]
    return unique[:: max(1, len(unique) // n)][:n]


def ingest(task: Task) -> None:
    store = contender.load(task["contender"], task["encoder"])
    passages = texts_in(task["passages"])
    folder = Path(task["folder"])
    started = time.perf_counter()
    store.ingest(folder, passages)
    took_s = time.perf_counter() - started
    if contender.ENTRIES[task["contender"]].finds:
        store.open(folder)
        check(store, some(passages, 5), "passage")
        store.close()
    disk = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    tell({"ingest_s": took_s, "disk_mb": disk / 1e6})


def turns(task: Task) -> None:
    """Answer once, which is the end of the start; then go through the turns of calls.

    In turn: a query, an add, a query whose words were heard before. Each text is embedded once; those that
    were asked with are stored after that, so that the memory grows as in a call.
    """
    store = contender.load(task["contender"], task["encoder"])
    store.open(Path(task["folder"]))
    finds = contender.ENTRIES[task["contender"]].finds
    if len(store.query(FIRST_QUESTION)) == 0 and finds:
        raise RuntimeError("the first question found nothing")
    tell({"answered": True})

    *said, warm_1, warm_2, warm_3 = texts_in(task["turns"])
    for text in (warm_1, warm_2, warm_3):
        store.query(text.text)
        store.add(text)
    took_ms: dict[str, list[float]] = {"query": [], "add": [], "prefetched": []}
    memory: dict[str, float] = {}
    for number, text in enumerate(said):
        kind = ("query", "add", "prefetched")[number % 3]
        measured = kind != "prefetched" or store.hearing(text.text)
        started = time.perf_counter()
        if kind == "add":
            store.add(text)
        elif measured:
            store.query(text.text)
        if measured:
            took_ms[kind].append((time.perf_counter() - started) * 1000)
        if kind != "add":
            store.add(text)
        if number % MAINTAIN_EVERY == MAINTAIN_EVERY - 1:
            store.maintain()
        if number == min(100, len(said)) - 1:
            memory = memory_mb()
    if finds:
        # What was said just now is in the prompt already, and not recalled by everybody.
        check(store, some(said[: len(said) // 2], 5), "turn")
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    tell({"took_ms": took_ms, **memory, "torch_threads": threads})
    store.close()


def die(task: Task) -> None:
    store = contender.load(task["contender"], task["encoder"])
    store.open(Path(task["folder"]))
    store.add(texts_in(task["turns"])[0])
    tell({"stored": True})
    os.kill(os.getpid(), signal.SIGKILL)


def look(task: Task) -> None:
    store = contender.load(task["contender"], task["encoder"])
    store.reopen(Path(task["folder"]))
    turn, other, *_ = texts_in(task["turns"])
    # The last thing said is in the prompt already, and not recalled by everybody.
    store.add(other)
    tell({"kept": turn in store.query(turn.text)})
    store.close()


def main() -> None:
    sys.addaudithook(stay_here)
    task: Task = json.loads(sys.argv[1])
    {"ingest": ingest, "turns": turns, "die": die, "look": look}[task["do"]](task)


if __name__ == "__main__":
    main()
