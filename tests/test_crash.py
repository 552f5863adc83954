"""Nothing that was acknowledged is lost: processes are killed, and what they had heard is recovered.

Every process here is a real one, killed with SIGKILL while it hears turns, pushes, or recovers. The
kills come at points drawn from a seed; where exactly they hit is up to the machine, which is the point.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from moss_voice import MossClient
from moss_voice.types import DocumentInfo

ROOT = Path(__file__).parents[1]

HEAR = """
import asyncio, os, sys
from moss_voice import MossClient

async def main(base, name, who):
    client = MossClient(cloud=f"{base}/cloud", journal_path=f"{base}/journal")
    call = await client.call(name, model_id="custom")
    pushes = []
    for n in range(10_000):
        turn = f"{who}-{n}"
        os.write(1, f"say {turn}\\n".encode())
        assert await call.heard(f"this is {turn}", id=turn, embedding=(1.0, n)) == turn
        assert call.durable
        os.write(1, f"ack {turn}\\n".encode())
        if n % 7 == 6:
            pushes.append(asyncio.create_task(call.push()))
        if n % 11 == 10:
            await asyncio.gather(*pushes)

asyncio.run(main(*sys.argv[1:]))
"""

RECOVER = """
import asyncio, os, sys
from moss_voice import MossClient

async def main(base):
    async with MossClient(cloud=f"{base}/cloud", journal_path=f"{base}/journal") as client:
        await client.list_indexes()
        os.write(1, b"ready\\n")
        sys.stdin.readline()
        os.write(1, b"begin\\n")
        for call in await client.recover():
            assert call.status == "pushed", call
        os.write(1, b"done\\n")

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def process(script: str, *args: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script; it is dead, and its pipes closed, when the block is left."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def spin(seconds: float) -> None:
    """Let a moment pass without giving up the core, for a kill at a point that nobody chose."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def line(child: subprocess.Popen[bytes]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().decode().strip()


def go(child: subprocess.Popen[bytes]) -> None:
    assert child.stdin is not None
    child.stdin.write(b"go\n")
    child.stdin.flush()


def kill_while_it_hears(
    child: subprocess.Popen[bytes], chance: random.Random
) -> tuple[set[str], set[str]]:
    """Kill a process some turns into its call; return what it had said, and what was acknowledged."""
    told = [line(child) for _ in range(2 * chance.randint(1, 40) - chance.randint(0, 1))]
    spin(chance.uniform(0.0, 0.004))
    child.kill()
    assert child.stdout is not None
    told += child.stdout.read().decode().split("\n")
    said = {word[4:] for word in told if word.startswith("say ")}
    acknowledged = {word[4:] for word in told if word.startswith("ack ")}
    assert acknowledged
    return said, acknowledged


def check(docs: list[DocumentInfo], said: set[str], acknowledged: set[str]) -> None:
    ids = [doc.id for doc in docs]
    assert len(set(ids)) == len(ids)
    assert acknowledged <= set(ids) <= said
    assert all(doc.text == f"this is {doc.id}" for doc in docs)
    assert all(doc.embedding is not None for doc in docs)


async def test_every_acknowledged_turn_survives_a_kill(tmp_path: Path) -> None:
    """Eight processes are killed as they hear and push, and three as they recover.

    The last four resume the calls of the first four, whose journals are still there. In the end two
    processes recover at once. Then every acknowledged turn is in its index, once, and no journal is
    left.
    """
    chance = random.Random(20261120)
    said: dict[str, set[str]] = {f"call-{n}": set() for n in range(4)}
    acknowledged: dict[str, set[str]] = {name: set() for name in said}
    for wave in ("first", "second"):
        hearing = [process(HEAR, tmp_path, name, wave) for name in said]
        # Started together; each is killed at its own time.
        children = [context.__enter__() for context in hearing]
        try:
            for name, child in zip(said, children, strict=True):
                more, done = kill_while_it_hears(child, chance)
                said[name] |= more
                acknowledged[name] |= done
        finally:
            for context in hearing:
                context.__exit__(None, None, None)
    journals = tmp_path / "journal"

    def left() -> int:
        return len(list(journals.rglob("*.journal")))

    assert left() == 8

    def commits() -> int:
        return len(list((tmp_path / "cloud").rglob("log/*.json")))

    def reached(child: subprocess.Popen[bytes], point: int, before: tuple[int, int]) -> bool:
        """Tell whether it has begun; has stored a push; has let go of a journal."""
        gone = child.poll() is not None
        return gone or (True, commits() > before[0], left() < before[1])[point]

    for point in range(3):
        with process(RECOVER, tmp_path) as child:
            assert line(child) == "ready"
            before = commits(), left()
            go(child)
            assert line(child) == "begin"
            while not reached(child, point, before):
                spin(0.0002)
            spin(chance.uniform(0.0, 0.01))
            child.kill()
            child.wait()
    assert 0 < left() <= 7
    async with MossClient(cloud=tmp_path / "cloud", journal_path=journals) as client:
        for info in await client.list_indexes():
            # Half recovered or not at all, a call is never broken.
            docs = await client.get_docs(info.name)
            assert {doc.id for doc in docs} <= said[info.name]
            assert info.doc_count == len(docs)

    with process(RECOVER, tmp_path) as one, process(RECOVER, tmp_path) as two:
        both = (one, two)
        assert [line(child) for child in both] == ["ready", "ready"]
        for child in both:
            go(child)
        assert [child.communicate(timeout=60)[0] for child in both] == [b"begin\ndone\n"] * 2
        assert [child.wait() for child in both] == [0, 0]

    async with MossClient(cloud=tmp_path / "cloud", journal_path=journals) as client:
        assert await client.recover() == []
        assert [info.name for info in await client.list_indexes()] == sorted(said)
        for name, words in said.items():
            docs = await client.get_docs(name)
            check(docs, words, acknowledged[name])
            assert (await client.get_index(name)).doc_count == len(docs)
    assert left() == 0


async def test_recovery_leaves_a_call_that_lives_in_another_process(tmp_path: Path) -> None:
    """While a process hears, recovery elsewhere touches nothing of it; once it is dead it takes over."""
    journals = tmp_path / "journal"
    with process(HEAR, tmp_path, "call-1", "a") as child:
        acknowledged = set()
        for _ in range(6):
            word = line(child)
            if word.startswith("ack "):
                acknowledged.add(word[4:])
        async with MossClient(cloud=tmp_path / "cloud", journal_path=journals) as client:
            assert await client.recover() == []
            child.kill()
            child.wait()
            [recovered] = await client.recover()
            assert (recovered.index_name, recovered.status) == ("call-1", "pushed")
            assert recovered.damaged == 0
            assert acknowledged <= {doc.id for doc in await client.get_docs("call-1")}
