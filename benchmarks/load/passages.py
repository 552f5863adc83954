"""Indexes of any size: real passages as far as they go, then the same texts with vectors made up.

A made-up vector is that of its text, turned some 37 degrees (a cosine of 0.8) by a believable one. So
there are as many neighbours as in an index of that size, and a real query comes as near to them as to
real ones: the graph is walked as it would be. Vectors unrelated to the model's would all be equally far
from a real query.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.corpus import believable_vectors, corpus
from benchmarks.load.process import Row, answer
from benchmarks.run import BUNDLED, client_in
from moss_voice import DocumentInfo
from moss_voice.embedding import OnnxEmbedder
from moss_voice.models import DEFAULT_MODEL
from moss_voice.text import is_filler
from moss_voice.workers import in_worker

F32 = npt.NDArray[np.float32]

NAME = "faq"
# All of the shared data, and some more where there is none and the demo's are varied.
MOST_EMBEDDED = 25_000
_BATCH = 10_000
_TURNED = np.float32(0.75)


class Spoken(NamedTuple):
    """A turn of a call."""

    speaker: str
    text: str


def spoken_turns() -> list[Spoken]:
    """Return the turns of all calls in order, without fillers; each text once."""
    said = [Spoken(*turn) for call in corpus(0).calls for turn in call]
    return list({turn.text: turn for turn in said if not is_filler(turn.text)}.values())


def real_vectors(folder: Path) -> F32:
    """Return the vectors that `embed` has left."""
    vectors: F32 = np.load(folder / "vectors.npy")
    return vectors


async def embed(folder: str, most: int) -> Row:
    """Embed the real passages once, for indexes of every size."""
    texts = [doc.text for doc in corpus(most).passages]
    embedder = OnnxEmbedder.load(BUNDLED, model_id=DEFAULT_MODEL, cache_texts=0)
    rows = [embedder.embed(texts[at : at + 256]) for at in range(0, len(texts), 256)]
    np.save(Path(folder) / "vectors.npy", np.concatenate(rows))
    return {"embedded": len(texts)}


def batches(real: F32, n: int) -> Iterator[tuple[list[DocumentInfo], F32]]:
    """Yield n passages with their unit rows, some thousands at a time."""
    texts = corpus(len(real)).passages
    for start in range(0, n, _BATCH):
        numbers = range(start, min(start + _BATCH, n))
        docs = [
            DocumentInfo(f"p{number}", doc.text, doc.metadata)
            for number in numbers
            for doc in (texts[number % len(texts)],)
        ]
        vectors = real[np.arange(numbers.start, numbers.stop) % len(real)]
        made_up = np.arange(numbers.start, numbers.stop) >= len(real)
        if made_up.any():
            vectors[made_up] += _TURNED * believable_vectors(
                int(made_up.sum()), real.shape[1], seed=start
            )
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        yield docs, vectors


async def fill(folder: str, vectors: str, n: int, model_id: str | None = None) -> Row:
    """Store an index of n passages in the cloud of a folder, with the vectors of another."""
    real = real_vectors(Path(vectors))
    async with client_in(Path(folder)) as client:
        session = await client.session(NAME, model_id)
        for docs, rows in batches(real, n):
            # As add_docs does it, without half a million tuples of floats on the way.
            await in_worker(session.put, docs, rows)
        pushed = await session.push_index()
        await session.close()
    return {
        "passages": pushed.doc_count,
        "synthetic": max(0, n - len(real)),
        "stored_mb": round(pushed.uploaded_bytes / 1024**2, 1),
    }


if __name__ == "__main__":
    answer(embed, fill)
