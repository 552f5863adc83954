"""A model of words, and indexes around it: for tests in which it must be plain what is near to what."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from moss_voice.cloud.cloud import open_cloud
from moss_voice.session import SessionIndex
from moss_voice.text import words
from moss_voice.types import DocumentInfo
from moss_voice.versions import Remote

F32 = npt.NDArray[np.float32]

MODEL = "words"


class SpokenWords:
    """Embeds a text as the sum of its words' own vectors: the cosine is the share of common words.

    Words of `silent` add nothing.
    """

    model_id = MODEL

    def __init__(self, *, dim: int = 512, silent: str = "") -> None:
        self.dim = dim
        self._silent = frozenset(silent.split())
        self.runs: list[str] = []

    def embed(self, texts: Sequence[str]) -> F32:
        return np.array([self._row(text) for text in texts], np.float32).reshape(-1, self.dim)

    def embed_query(self, text: str) -> F32:
        return self._row(text)

    def cached(self, text: str, *, query: bool = False) -> F32 | None:
        return None

    def _row(self, text: str) -> F32:
        self.runs.append(text)
        said = [word for word in words(text) if word not in self._silent]
        total = np.full(self.dim, 1e-3) + sum(_direction(word, self.dim) for word in said)
        row: F32 = (total / np.linalg.norm(total)).astype(np.float32)
        return row


@lru_cache(4096)
def _direction(word: str, dim: int) -> npt.NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
    drawn = np.random.default_rng(seed).normal(size=dim)
    unit: npt.NDArray[np.float64] = drawn / np.linalg.norm(drawn)
    return unit


def new_remote() -> Remote:
    """Return a cloud of its own, in memory."""
    return Remote(open_cloud(f"memory://{uuid4().hex}"), "default", None)


async def index_of(
    docs: Sequence[DocumentInfo],
    *,
    name: str = "faq",
    model: SpokenWords | None = None,
    kind: type[SessionIndex] = SessionIndex,
) -> SessionIndex:
    """Return an index of these documents, by the model of words where none is given."""
    model = model or SpokenWords()
    index = kind(name, model_id=model.model_id, embedder=model, remote=new_remote())
    if docs:
        await index.add_docs(docs)
    return index
