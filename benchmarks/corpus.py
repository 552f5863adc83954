"""Texts to measure on: real ones where the evaluation data is at hand, else the demo's, varied."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from moss_voice import DocumentInfo, demo
from moss_voice.calls import read_calls


class Corpus(NamedTuple):
    """Passages and spoken turns; `source` says where from."""

    source: str
    passages: list[DocumentInfo]
    calls: list[list[tuple[str, str]]]


def data_directory() -> Path | None:
    """Return the evaluation data's directory, None where there is none."""
    given = os.environ.get("MOSS_VOICE_DATA")
    path = Path(given) if given else Path(__file__).parents[2] / "shared" / "data"
    return path if path.is_dir() else None


def corpus(passages: int) -> Corpus:
    """Return that many distinct passages, and calls of (speaker, text) turns."""
    data = data_directory()
    if data is None:
        docs = list(islice(_varied(), passages))
        turns = [
            (str(turn.speaker), turn.text) for turn in demo.call().turns if turn.speaker != "action"
        ]
        return Corpus("the demo's FAQ and call, varied by a number (synthetic)", docs, [turns])
    docs = list(islice(_real(data), passages))
    calls = [
        [(str(turn.speaker), turn.text) for turn in call.turns if turn.speaker != "action"]
        for call in read_calls(data / "calls" / "calls.dev.jsonl")
    ]
    return Corpus("DSTC10/DSTC11 passages and the 48 calls of the shared data", docs, calls)


def _real(data: Path) -> Iterator[DocumentInfo]:
    for folder in ("dstc10_spoken", "dstc11_sktod"):
        with (data / folder / "docs.jsonl").open(encoding="utf-8") as file:
            for row in map(json.loads, file):
                text = " ".join(
                    filter(None, (row.get("entity"), row.get("title"), row.get("body")))
                )
                metadata = {"entity": row["entity"]} if row.get("entity") else None
                yield DocumentInfo(f"{folder}/{row['id']}", text, metadata)


def _varied() -> Iterator[DocumentInfo]:
    docs = demo.faq_documents()
    for number in count():
        doc = docs[number % len(docs)]
        text = doc.text if number < len(docs) else f"{doc.text} (region {number // len(docs)})"
        yield DocumentInfo(f"passage-{number}", text)


def believable_vectors(n: int, dim: int, *, seed: int = 7) -> npt.NDArray[np.float32]:
    """Return unit rows in clusters of low intrinsic dimension, where embedding so many takes too long."""
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((48, dim)).astype(np.float32)
    centres = rng.standard_normal((max(1, n // 50), 48)).astype(np.float32)
    codes = centres[rng.integers(0, len(centres), n)] + 0.6 * rng.standard_normal((n, 48)).astype(
        np.float32
    )
    rows = codes @ basis + 0.5 * rng.standard_normal((n, dim)).astype(np.float32)
    unit: npt.NDArray[np.float32] = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit.astype(np.float32)
