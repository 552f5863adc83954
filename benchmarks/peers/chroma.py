"""Chroma in this process, on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import chromadb

from benchmarks.peers import encoders
from benchmarks.peers.contender import TOP_K, Contender, Text


class Store(Contender):
    """One collection with an HNSW graph of cosines; vectors are handed in."""

    def __init__(self, encoder: str) -> None:
        self._encode = encoders.load(encoder)

    def _client(self, folder: Path) -> Any:
        settings = chromadb.Settings(anonymized_telemetry=False)
        return chromadb.PersistentClient(str(folder), settings=settings)

    def ingest(self, folder: Path, passages: Sequence[Text]) -> None:
        client = self._client(folder)
        collection = client.create_collection(
            "memory", embedding_function=None, configuration={"hnsw": {"space": "cosine"}}
        )
        rows = self._encode([passage.text for passage in passages])
        step = client.get_max_batch_size()
        for start in range(0, len(passages), step):
            some = passages[start : start + step]
            collection.add(
                ids=[passage.id for passage in some],
                documents=[passage.text for passage in some],
                embeddings=rows[start : start + step],
            )
        client.close()

    def open(self, folder: Path) -> None:
        self._opened = self._client(folder)
        self._collection = self._opened.get_collection("memory", embedding_function=None)

    def add(self, turn: Text) -> None:
        self._collection.add(
            ids=[turn.id], documents=[turn.text], embeddings=self._encode([turn.text])
        )

    def query(self, text: str) -> list[Text]:
        found = self._collection.query(
            query_embeddings=self._encode([text]), n_results=TOP_K, include=["documents"]
        )
        return [Text(*hit) for hit in zip(found["ids"][0], found["documents"][0], strict=True)]

    def close(self) -> None:
        self._opened.close()
