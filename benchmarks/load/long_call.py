"""LONG CALLS: one call of thousands of turns beside a knowledge index, pushed and resumed.

The turns are those of the shared calls over and over, each headed by its number, so that no text comes
twice. Up to each mark some turns are measured: in turn a context, whose turn is heard afterwards, and a
turn that nobody has embedded yet; the bare model runs each text just before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

import numpy as np

from benchmarks.load.passages import NAME, Spoken, spoken_turns
from benchmarks.load.process import Row, answer, fresh, grown_mb, latency, private_mb
from benchmarks.run import BUNDLED, client_in, milliseconds, settled
from moss_voice import MossClient
from moss_voice.call.memory import DEADLINE_MS
from moss_voice.embedding import OnnxEmbedder
from moss_voice.models import DEFAULT_MODEL

MARKS = (100, 1_000, 2_500, 5_000)
WINDOW = 80

_CALL = "long"
_MEMORY_EVERY = 1_000
_VISIBLE = 12


def long_call(folder: Path, *, marks: Sequence[int], window: int) -> Row:
    """Measure a call up to the last mark, and its resumption by a process that has nothing of it."""
    options = {"folder": str(folder)}
    row = fresh("benchmarks.load.long_call", "hold", **options, marks=marks, window=window)
    return row | fresh("benchmarks.load.long_call", "resume", **options)


def _numbered() -> Iterator[Spoken]:
    turns = spoken_turns()
    for number in count(1):
        speaker, text = turns[number % len(turns)]
        yield Spoken(speaker, f"{number} {text}")


async def hold(folder: str, marks: list[int], window: int) -> Row:
    """Hold the call and push it."""
    raw = OnnxEmbedder.load(BUNDLED, model_id=DEFAULT_MODEL, cache_texts=0)
    kinds = ("context", "heard")
    took: dict[str, list[float]] = {}
    beside: dict[str, list[float]] = {}
    at: list[Row] = []
    kept: list[str] = []
    async with client_in(Path(folder)) as client:
        await client.load_index(NAME)
        await settled(client, NAME)
        call = await client.call(_CALL, knowledge=[NAME], without=["gate"], deadline_ms=10_000)
        before = private_mb()
        private: list[float | None] = []
        for number, (speaker, text) in enumerate(_numbered(), start=1):
            mark = next(mark for mark in marks if number <= mark)
            kind = kinds[number % 2] if number > mark - window else None
            if number == max(1, mark - window + 1):
                took, beside = {kind: [] for kind in kinds}, {kind: [] for kind in kinds}
            if kind is not None:
                started = time.perf_counter()
                raw.embed_query(text)
                beside[kind].append(milliseconds(started))
            started = time.perf_counter()
            if kind == "context":
                context = await call.context(text, visible=kept[-_VISIBLE:])
                assert context.outcome == "ok"
                took[kind].append(milliseconds(started))
            id_ = await call.heard(text, speaker)
            if kind == "heard":
                took[kind].append(milliseconds(started))
            assert id_ is not None
            kept.append(id_)
            if number % _MEMORY_EVERY == 0:
                private.append(grown_mb(before))
            if number == mark:
                at.append({"turns": mark} | {k: _beside(took[k], beside[k]) for k in kinds})
                at[-1]["beyond_deadline"] = sum(ms > DEADLINE_MS for ms in took["context"])
                at[-1]["private_mb"] = grown_mb(before)
                if mark == marks[-1]:
                    break
        await call.session.settled()
        journal_mb = round(_bytes_of(Path(folder, "journal"), "*.journal") / 1024**2, 2)
        started = time.perf_counter()
        pushed = await call.end()
        assert pushed is not None
        return {
            "marks": at,
            "private_mb_per_1000_turns": private,
            "journal_mb": journal_mb,
            "end_s": round(time.perf_counter() - started, 3),
            "pushed_mb": round(pushed.uploaded_bytes / 1024**2, 2),
        }


def _bytes_of(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.rglob(pattern))


def _beside(ours: Sequence[float], model: Sequence[float]) -> Row:
    without = float(np.median(np.array(ours) - np.array(model)))
    return latency(ours) | {"model": latency(model), "without_model_ms": round(without, 3)}


async def resume(folder: str) -> Row:
    """Take up the call with nothing of it in the cache, as an agent on another machine does, and again."""
    row: Row = {}
    place = Path(folder)
    for kind in ("cold", "warm"):
        client = MossClient(
            cloud=place / "cloud", cache_path=place / "empty", journal_path=place / "journal"
        )
        async with client:
            await client.load_index(NAME)
            before = private_mb()
            started = time.perf_counter()
            call = await client.call(_CALL, knowledge=[NAME], without=["gate"], deadline_ms=10_000)
            resumed = time.perf_counter()
            context = await call.context("what did I say about the booking")
            assert context.outcome == "ok"
            row[f"resume_{kind}_s"] = round(resumed - started, 3)
            row[f"first_context_{kind}_ms"] = round(milliseconds(resumed), 2)
            row["resumed_turns"] = call.counters.turns
            row.setdefault("resumed_private_mb", grown_mb(before))
            await call.discard()
    return row


if __name__ == "__main__":
    answer(hold, resume)
