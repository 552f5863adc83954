"""Indexes that are loaded before a fork: one copy for every process, and nothing that a fork would break."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moss_voice import DocumentInfo, MossClient
from moss_voice.types import QueryOptions
from moss_voice.vectors import EXACT_ROWS

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")

# A server that forks a process per task, as LiveKit's does; each child tells what it found on its pipe.
SERVER = """
import asyncio, json, os, sys, threading
from pathlib import Path
from moss_voice import MossClient, versions as versions_module
from moss_voice.types import QueryOptions

base, names = Path(sys.argv[1]), sys.argv[2].split(",")

def client():
    return MossClient(cloud=base / "cloud", cache_path=base / "cache")

def threads():
    return len(os.listdir("/proc/self/task")) if sys.platform == "linux" else threading.active_count()

async def serve():
    async with client() as mine:
        await mine.load_indexes(["large"])
        index = mine._loaded["large"]
        await index.settled()
        found = await mine.query("large", "", QueryOptions(embedding=[1.0, 2.0, 3.0, 4.0], alpha=1.0))
        versions = [version.index for version in versions_module._shared.values()]
        return {
            "ids": [doc.id for doc in found.docs],
            "shared": any(index._index is version for version in versions),
            "graph": index._index._generation.graph is not None,
            "writable": await wrote(),
        }

async def wrote():
    # A session of the same index is another's to write, in this process too.
    async with client() as other:
        writer = await other.session("large")
        await writer.delete_docs(["doc-0"])
        return writer.doc_count, await other.load_index("large")

def fork():
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, json.dumps(asyncio.run(serve())).encode())
        os._exit(0)
    os.close(writer)
    return open(reader)

shared = client().share_indexes(names)
print(json.dumps({"shared": shared, "threads": threads()}), flush=True)
for line in sys.stdin:
    for told in [fork() for _ in range(3)]:
        print(told.read(), flush=True)
        os.wait()
"""
QUERY = QueryOptions(embedding=(1.0, 2.0, 3.0, 4.0), alpha=1.0)


def documents(n: int, *, seed: int = 0) -> list[DocumentInfo]:
    rows = np.random.default_rng(seed).standard_normal((n, 4))
    return [
        DocumentInfo(f"doc-{i}", f"the text of {i}", None, tuple(row))
        for i, row in enumerate(rows.tolist())
    ]


def client(base: Path) -> MossClient:
    return MossClient(cloud=base / "cloud", cache_path=base / "other-cache")


async def nearest(base: Path) -> list[str]:
    async with client(base) as mine:
        await mine.load_index("large")
        return [doc.id for doc in (await mine.query("large", "", QUERY)).docs]


async def make(base: Path, n: int) -> None:
    async with client(base) as mine:
        await mine.create_index("large", documents(n), "custom")


def test_children_share_what_was_loaded_before_the_fork(tmp_path: Path) -> None:
    """Several children search the one copy, graph included, and find what a process of its own finds.

    No thread is left where it was loaded. A session that is written to has a copy of its own; and a
    version that is pushed later is what children find from then on.
    """
    n = EXACT_ROWS + 100
    asyncio.run(make(tmp_path, n))
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, str(tmp_path), "large,missing"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        assert json.loads(server.stdout.readline()) == {"shared": 1, "threads": 1}

        def ask() -> list[dict[str, Any]]:
            assert server.stdin is not None
            assert server.stdout is not None
            server.stdin.write("\n")
            server.stdin.flush()
            return [json.loads(server.stdout.readline()) for _ in range(3)]

        found = {"shared": True, "graph": True, "ids": asyncio.run(nearest(tmp_path))}
        assert ask() == [{**found, "writable": [n - 1, n]}] * 3

        async def push() -> None:
            async with client(tmp_path) as mine:
                await mine.add_docs(
                    "large", [DocumentInfo("new", "the new one", None, (1, 2, 3, 4))]
                )

        asyncio.run(push())
        for told in ask():
            assert told["ids"][0] == "new"
            assert not told["shared"]
        _, log = server.communicate(timeout=60)
    assert "'missing'" in log
    assert server.returncode == 0


def test_what_takes_too_long_is_not_shared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The fork that reads the cloud is ended when its time is up, and each process loads for itself."""
    script = (
        "import asyncio, sys; from moss_voice import MossClient; from moss_voice.cloud.cloud import Cloud\n"
        "async def hang(*_): await asyncio.sleep(600)\n"
        "Cloud.read_head = hang\n"
        "print(MossClient(cloud=sys.argv[1]).share_indexes(['large'], timeout_s=1))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "0\n"
    assert "0 of 1 indexes are shared" in done.stderr
