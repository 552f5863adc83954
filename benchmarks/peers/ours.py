"""moss_voice: the passages as a knowledge index, the turns as a call's memory."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.peers.contender import TOP_K, Contender, Text
from moss_voice import DocumentInfo, MossClient

_T = TypeVar("_T")


class Store(Contender):
    """A call beside one knowledge index: each query searches both, by words and by meaning."""

    def __init__(self, encoder: str) -> None:
        # It loads its own model with the call.
        del encoder
        self._loop = asyncio.new_event_loop()

    def _wait(self, for_what: Coroutine[Any, Any, _T]) -> _T:
        return self._loop.run_until_complete(for_what)

    def _client_in(self, folder: Path) -> MossClient:
        return MossClient(
            cloud=folder / "cloud", cache_path=folder / "cache", journal_path=folder / "journal"
        )

    def ingest(self, folder: Path, passages: Sequence[Text]) -> None:
        async def ingest() -> None:
            async with self._client_in(folder) as client:
                docs = [DocumentInfo(passage.id, passage.text) for passage in passages]
                await client.create_index("passages", docs)
                await client.load_index("passages")
                # The graph too, which others build as they store.
                job = client._loaded["passages"]._graph_job  # noqa: SLF001 - no public reason to wait
                if job is not None:
                    await asyncio.wrap_future(job)

        self._wait(ingest())

    def open(self, folder: Path) -> None:
        async def open_call() -> None:
            self._client = self._client_in(folder)
            self._call = await self._client.call(
                "call",
                knowledge=["passages"],
                top_k=TOP_K,
                # Every query searches, as with the others.
                without=["gate"],
                deadline_ms=10_000,
            )

        self._wait(open_call())

    def reopen(self, folder: Path) -> None:
        async def recover() -> None:
            async with self._client_in(folder) as client:
                await client.recover("call")

        self._wait(recover())
        self.open(folder)

    def add(self, turn: Text) -> None:
        self._wait(self._call.heard(turn.text, id=turn.id))

    def query(self, text: str) -> list[Text]:
        context = self._wait(self._call.context(text))
        if context.outcome != "ok":
            raise RuntimeError(f"a context came out as {context.outcome!r}")
        return [Text(hit.id, hit.text) for hit in context.hits]

    def hearing(self, text: str) -> bool:
        async def hear() -> None:
            self._call.hearing(text)
            await asyncio.gather(*map(asyncio.wrap_future, self._call._interims.values()))  # noqa: SLF001

        self._wait(hear())
        return True

    def close(self) -> None:
        async def close() -> None:
            await self._call.discard()
            await self._client.close()

        self._wait(close())
        self._loop.close()
