"""LanceDB, embedded, on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lancedb

from benchmarks.peers import encoders
from benchmarks.peers.contender import TOP_K, Contender, Text


class Store(Contender):
    """One table without an index: its documentation calls one unnecessary up to some 100,000 rows."""

    def __init__(self, encoder: str) -> None:
        self._encode = encoders.load(encoder)

    def _rows(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        vectors = self._encode([text for _, text in texts])
        return [
            {"id": text.id, "text": text.text, "vector": vector}
            for text, vector in zip(texts, vectors, strict=True)
        ]

    def ingest(self, folder: Path, passages: Sequence[Text]) -> None:
        lancedb.connect(folder).create_table("memory", self._rows(passages))

    def open(self, folder: Path) -> None:
        self._table = lancedb.connect(folder).open_table("memory")

    def add(self, turn: Text) -> None:
        self._table.add(self._rows([turn]))

    def query(self, text: str) -> list[Text]:
        # The nearest by Euclid are the nearest by cosine: rows have length one.
        search = self._table.search(self._encode([text])[0]).limit(TOP_K)
        # With the distance named, no search writes a warning about it.
        hits = search.select(["id", "text", "_distance"]).to_list()
        return [Text(hit["id"], hit["text"]) for hit in hits]

    def maintain(self) -> None:
        """Compact: each add is a fragment of its own, and a search reads them all."""
        self._table.optimize()

    def close(self) -> None: ...
