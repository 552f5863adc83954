"""What a contender does, and who takes part."""

from __future__ import annotations

import importlib
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

TOP_K = 5


class Text(NamedTuple):
    """A passage or a turn."""

    id: str
    text: str


class Contender(Protocol):
    """A memory in this process: passages that are there before a call, and its turns.

    Made with the name of an encoder, which it loads. Passages and turns are searched together.
    """

    def __init__(self, encoder: str) -> None: ...

    @abstractmethod
    def ingest(self, folder: Path, passages: Sequence[Text]) -> None:
        """Embed the passages, store them in an empty folder and let go of it."""

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Open what `ingest` stored, ready to be asked."""

    def reopen(self, folder: Path) -> None:
        """Open what a process that was killed left."""
        self.open(folder)

    @abstractmethod
    def add(self, turn: Text) -> None:
        """Embed a turn and store it: when this returns, it is found."""

    @abstractmethod
    def query(self, text: str) -> list[Text]:
        """Embed a text and return the `TOP_K` nearest, with their words, best first."""

    def hearing(self, text: str) -> bool:
        """Take an interim and be done with it; False where there is no such thing."""
        del text
        return False

    def maintain(self) -> None:
        """Do what the maker says is to be done after some twenty changes; its time is not counted."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the folder."""


class Entry(NamedTuple):
    """A contender, as it is told of.

    Attributes:
        title: Its name in the table.
        module: Where its class is, named `Store`.
        packages: Distributions that it needs, besides those of its encoder.
        imports: The packages that those are imported as.
        encoders: The encoders that it is measured with.
        finds: Whether a query returns anything.
    """

    title: str
    module: str
    packages: tuple[str, ...]
    imports: tuple[str, ...]
    encoders: tuple[str, ...] = ("int8", "fp32, 1 thread", "fp32")
    finds: bool = True


ENTRIES = {
    "ours": Entry("moss_voice", "ours", ("moss-voice",), ("moss_voice",), ("own int8",)),
    "model": Entry("the model alone", "model", (), (), finds=False),
    "faiss": Entry("FAISS flat index", "homegrown", ("faiss-cpu",), ("faiss",)),
    "chroma": Entry("Chroma", "chroma", ("chromadb",), ("chromadb",)),
    "qdrant": Entry("Qdrant local mode", "qdrant", ("qdrant-client",), ("qdrant_client",)),
    "lancedb": Entry("LanceDB", "lance", ("lancedb",), ("lancedb",)),
    "mem0": Entry("mem0, infer=False", "mem_zero", ("mem0ai",), ("mem0",)),
}


def load(name: str, encoder: str) -> Contender:
    """Import a contender and load its encoder."""
    module = importlib.import_module(f"benchmarks.peers.{ENTRIES[name].module}")
    store: Contender = module.Store(encoder)
    return store
