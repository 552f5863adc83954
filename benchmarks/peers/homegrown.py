"""What one writes oneself: an encoder, a flat FAISS index, a list of texts. A turn lives in memory alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import faiss

from benchmarks.peers import encoders
from benchmarks.peers.contender import TOP_K, Contender, Text


class Store(Contender):
    """An exact index that is written when somebody writes it, here after the passages."""

    def __init__(self, encoder: str) -> None:
        self._encode = encoders.load(encoder)

    def ingest(self, folder: Path, passages: Sequence[Text]) -> None:
        index = faiss.IndexFlatIP(encoders.DIM)
        index.add(self._encode([passage.text for passage in passages]))
        folder.mkdir(exist_ok=True)
        faiss.write_index(index, str(folder / "index.faiss"))
        (folder / "texts.json").write_text(json.dumps(passages), encoding="utf-8")

    def open(self, folder: Path) -> None:
        self._index = faiss.read_index(str(folder / "index.faiss"))
        stored = json.loads((folder / "texts.json").read_text(encoding="utf-8"))
        self._texts = [Text(*row) for row in stored]

    def add(self, turn: Text) -> None:
        self._index.add(self._encode([turn.text]))
        self._texts.append(turn)

    def query(self, text: str) -> list[Text]:
        _, rows = self._index.search(self._encode([text]), TOP_K)
        return [self._texts[row] for row in rows[0]]

    def close(self) -> None: ...
