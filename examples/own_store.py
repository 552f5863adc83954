"""Bring your own store: a cloud in one SQLite file. Run it with `python examples/own_store.py`.

A store is six short methods. What makes it safe is put-if-absent: here a unique key of the database.
"""

import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from moss_voice import MossClient, Store, StoredObject
from moss_voice.errors import CloudUnavailableError

SCHEMA = """PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS objects (
    id INTEGER PRIMARY KEY AUTOINCREMENT, folder TEXT, name TEXT, at REAL, data BLOB, UNIQUE (folder, name));"""
HERE = "FROM objects WHERE folder = ? AND name = ?"


class SqliteStore(Store):
    """Objects in a table; any number of threads and processes may have the file open."""

    def __init__(self, path: Path) -> None:
        self.name = f"sqlite://{path.absolute()}"
        self._path = path

    async def _run(self, sql: str, *values: object) -> list[Any]:
        """Run one statement, which commits by itself, in a thread that may wait for the disk."""

        def run() -> list[Any]:
            # A connection belongs to one thread and to no fork of the process: each statement has its own.
            with closing(sqlite3.connect(self._path, timeout=10, isolation_level=None)) as db:
                db.executescript(SCHEMA)
                return db.execute(sql, values).fetchall()

        try:
            return await asyncio.to_thread(run)
        except sqlite3.OperationalError as error:  # locked for long, no such folder, disk full
            raise CloudUnavailableError(f"{self.name}: {error}") from error

    async def put(self, path: str, data: bytes | memoryview, *, if_absent: bool) -> bool:
        put = f"INSERT OR {'IGNORE' if if_absent else 'REPLACE'} INTO objects (folder, name, at, data)"
        values = (*path.rsplit("/", 1), time.time(), data)
        return bool(await self._run(f"{put} VALUES (?, ?, ?, ?) RETURNING id", *values))

    async def get(self, path: str) -> bytes | None:
        found = await self._run(f"SELECT data {HERE}", *path.rsplit("/", 1))
        return found[0][0] if found else None

    async def stored_at(self, path: str) -> datetime | None:
        found = await self._run(f"SELECT at {HERE}", *path.rsplit("/", 1))
        return datetime.fromtimestamp(found[0][0], UTC) if found else None

    async def listing(self, folder: str, *, after: str | None = None) -> list[StoredObject]:
        listed = "SELECT name, length(data), at, id FROM objects WHERE folder = ? AND name > ?"
        return [
            StoredObject(name, size, datetime.fromtimestamp(at, UTC), str(id_))
            for name, size, at, id_ in await self._run(listed, folder, after or "")
        ]

    async def folders(self, folder: str) -> list[str]:
        above = f"{folder}/" if folder else ""
        below = "SELECT DISTINCT folder FROM objects WHERE substr(folder, 1, ?) = ?"
        found = await self._run(below, len(above), above)
        return sorted({above + path[len(above) :].partition("/")[0] for (path,) in found})

    async def delete(self, paths: Sequence[str]) -> None:
        for path in paths:
            await self._run(f"DELETE {HERE}", *path.rsplit("/", 1))


async def main(folder: Path) -> None:
    # Two agents in one call, each with a cache and a journal of its own, as on two machines.
    store = SqliteStore(folder / "cloud.db")
    one, two = (
        MossClient(cloud=store, cache_path=folder / w, journal_path=folder / w) for w in "ab"
    )
    async with one, two:
        voice, chat = await one.call("call-1"), await two.call("call-1")
        await voice.heard("my parcel is with the neighbour at number nine", speaker="caller")
        await chat.heard("the neighbour moved out last week", speaker="caller", typed=True)
        await asyncio.gather(voice.end(), chat.end())  # at once: one is first, the other merges
        print("turns kept:", [turn.text for turn in await one.get_docs("call-1")])
        for file in await store.listing("default/call-1/log"):
            print(f"{file.name}: {file.size_bytes} bytes")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
