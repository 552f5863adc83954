"""The encoder with nothing around it: what no memory that embeds with it can be faster than."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import encoders
from benchmarks.peers.contender import Contender, Text


class Store(Contender):
    """Embeds, and keeps nothing."""

    def __init__(self, encoder: str) -> None:
        self._encode = encoders.load(encoder)

    def ingest(self, folder: Path, passages: Sequence[Text]) -> None:
        folder.mkdir(exist_ok=True)
        self._encode([passage.text for passage in passages])

    def open(self, folder: Path) -> None: ...

    def add(self, turn: Text) -> None:
        self._encode([turn.text])

    def query(self, text: str) -> list[Text]:
        self._encode([text])
        return []

    def close(self) -> None: ...
