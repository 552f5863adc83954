"""SCALE: what a query, a context and a new document take as an index grows.

A size is measured in three processes: one fills the cloud, one loads from it and builds the graph, and
one, as of a later day, loads from the cache and asks. There each text is run through the bare model just
before what is measured, so that the two meet the same machine; a text is used once.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np

from benchmarks.load.passages import NAME, spoken_turns
from benchmarks.load.process import Row, answer, cpu_s, fresh, grown_mb, latency, private_mb
from benchmarks.run import BUNDLED, client_in, milliseconds, settled
from moss_voice import DocumentInfo, MossClient
from moss_voice.embedding import OnnxEmbedder
from moss_voice.models import DEFAULT_MODEL

SIZES = (100, 1_000, 10_000, 50_000, 100_000, 500_000)

KINDS = ("query", "context", "heard", "add", "query_after_add")


def scale(folder: Path, n: int, *, texts: int) -> Row:
    """Measure an index of n passages; `vectors.npy` lies in the folder."""
    place = folder / f"scale-{n}"
    place.mkdir()
    try:
        filled = fresh(
            "benchmarks.load.passages", "fill", folder=str(place), vectors=str(folder), n=n
        )
        built = fresh("benchmarks.load.scale", "build", folder=str(place))
        asked = fresh("benchmarks.load.scale", "ask", folder=str(place), texts=texts)
    finally:
        shutil.rmtree(place)
    return {**filled, **built, **asked}


async def build(folder: str) -> Row:
    """Load an index from the cloud and build its graph."""
    async with client_in(Path(folder)) as client:
        await _warmed_up(client)
        before = private_mb()
        started, used = time.perf_counter(), cpu_s()
        await client.load_index(NAME)
        loaded = time.perf_counter()
        await settled(client, NAME)
        return {
            "load_from_cloud_s": round(loaded - started, 3),
            "graph_build_s": round(time.perf_counter() - loaded, 3),
            "load_and_build_cpu_s": round(cpu_s() - used, 3),
            "private_mb_with_new_graph": grown_mb(before),
        }


async def ask(folder: str, texts: int) -> Row:
    """Load an index from the cache, and measure every kind of use beside the bare model."""
    unseen = spoken_turns()
    async with client_in(Path(folder)) as client:
        await _warmed_up(client)
        row = await _loaded(client)
        raw = OnnxEmbedder.load(BUNDLED, model_id=DEFAULT_MODEL, cache_texts=0)
        session = await client.session(NAME)
        await session.settled()
        call = await client.call("call", knowledge=[NAME], without=["gate"], deadline_ms=10_000)

        async def context(text: str) -> None:
            found = await call.context(text)
            assert found.outcome == "ok"

        steps: dict[str, Callable[[str], Awaitable[object]]] = {
            "query": lambda text: client.query(NAME, text),
            "context": context,
            "heard": call.heard,
            "add": lambda text: session.add_docs([DocumentInfo(f"new: {text}", text)]),
            "query_after_add": session.query,
        }
        took: dict[str, list[float]] = {kind: [] for kind in KINDS}
        beside: dict[str, list[float]] = {kind: [] for kind in KINDS}
        for number, turn in enumerate(unseen[:texts]):
            kind = KINDS[number % len(KINDS)]
            started = time.perf_counter()
            raw.embed_query(turn.text)
            beside[kind].append(milliseconds(started))
            started = time.perf_counter()
            await steps[kind](turn.text)
            took[kind].append(milliseconds(started))
        await call.discard()
        await session.close()
    for kind in KINDS:
        ours, model = np.array(took[kind]), np.array(beside[kind])
        row[kind] = latency(took[kind]) | {
            "model": latency(beside[kind]),
            "times_the_model": round(float(np.median(ours) / np.median(model)), 3),
            "without_model_ms": round(float(np.median(ours - model)), 3),
        }
    return row


async def _warmed_up(client: MossClient) -> None:
    """Bring in what every process has, whatever its index: the libraries and the model."""
    async with await client.session("another") as session:
        await session.add_docs([DocumentInfo("1", "hello")])
        await session.query("hello")


async def _loaded(client: MossClient) -> Row:
    before = private_mb()
    started = time.perf_counter()
    await client.load_index(NAME)
    loaded = time.perf_counter()
    await client.query(NAME, "how long does a refund take")
    answered = time.perf_counter()
    await settled(client, NAME)
    return {
        "load_from_cache_s": round(loaded - started, 3),
        "load_and_first_query_s": round(answered - started, 3),
        "with_graph_after_s": round(time.perf_counter() - started, 3),
        "private_mb": grown_mb(before),
    }


if __name__ == "__main__":
    answer(build, ask)
