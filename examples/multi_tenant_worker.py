"""One worker serves several tenants: run it with `python examples/multi_tenant_worker.py`.

Each is a project with a key of its own on a server: here one on loopback, of `moss-voice[server]`.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from moss_voice import DocumentInfo, MossClient
from moss_voice.errors import AuthenticationError

COMMAND = [sys.executable, "-m", "moss_voice.cli"]  # `moss-voice` in your shell
OPENING = {"acme": "We open at seven.", "globex": "We open at noon."}


class Tenants:
    """A worker's clients: of tenants on the line, and the `most_idle` others that were used last."""

    def __init__(self, url: str, keys: Mapping[str, str], folder: Path, *, most_idle: int) -> None:
        self._url, self._keys, self._folder, self._most_idle = url, keys, folder, most_idle
        self._calls: Counter[str] = Counter()
        self.open: dict[str, MossClient] = {}  # the last used last

    @asynccontextmanager
    async def client(self, project: str) -> AsyncIterator[MossClient]:
        """Lend a tenant's client, which stays open as long as any call uses it."""
        own = self._folder / project  # nothing of a tenant is on this disk where others read
        client = self.open.pop(project, None) or MossClient(
            project, self._keys[project], cloud=self._url, cache_path=own, journal_path=own
        )
        self.open[project] = client
        self._calls[project] += 1
        try:
            yield client
        finally:
            self._calls[project] -= 1
            await self.close(self._most_idle)

    async def close(self, most_idle: int = 0) -> None:
        idle = [project for project in self.open if not self._calls[project]]
        for project in idle[: max(0, len(idle) - most_idle)]:
            await self.open.pop(project).close()


async def serve(tenants: Tenants, project: str, call_id: str) -> None:
    """Serve one call, by code and names that are the same for every tenant."""
    async with (
        tenants.client(project) as client,
        await client.call(call_id, knowledge=["faq"], deadline_ms=1_000) as call,
    ):
        question = f"hello {project}, when do you open?"
        await call.heard(question, speaker="caller")
        told = [hit.text for hit in (await call.context(question)).hits]
        print(f"{project}, {call_id}: {told}, clients open: {len(tenants.open)}")


async def work(url: str, keys: Mapping[str, str], folder: Path) -> None:
    tenants = Tenants(url, keys, folder, most_idle=1)
    for project, text in OPENING.items():
        async with tenants.client(project) as client:
            await client.create_index("faq", [DocumentInfo("opening", text)])
    await asyncio.gather(*(serve(tenants, p, f"call-{n}") for p in OPENING for n in (1, 2)))
    print("clients open after the calls:", len(tenants.open))
    for project in OPENING:
        async with tenants.client(project) as client:
            print(f"{project}:", [index.name for index in await client.list_indexes()])
            print("    call-1:", [turn.text for turn in await client.get_docs("call-1")])
    thief = Tenants(url, {"acme": keys["globex"]}, folder, most_idle=0)
    try:
        async with thief.client("acme") as client:
            await client.list_indexes()
    except AuthenticationError:
        print("acme with the key of globex: refused")
    await tenants.close()


def main(folder: Path) -> None:
    at = ["--store", str(folder / "store")]
    new_key = [*COMMAND, "project", "create", *at]
    keys = {p: subprocess.check_output([*new_key, p], text=True).strip() for p in OPENING}
    serving = [*COMMAND, "serve", *at, "--port", "0", "--json", "--log-level", "warning"]
    with subprocess.Popen(serving, stdout=subprocess.PIPE, text=True) as server:
        try:
            line = server.stdout.readline() if server.stdout else ""  # it answers from now on
            asyncio.run(work(json.loads(line)["url"], keys, folder))
        finally:
            server.terminate()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        main(Path(folder))
