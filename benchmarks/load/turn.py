"""TURN: what a turn costs but for the model run, and of which parts.

Two ways to leave out the model: a text that it has embedded just before (`known`: its cache answers, all
else is as usual), and an index of the model `custom` with the same vectors, where the caller brings them
(`given`: checked and normalised anew each time). Then the parts by themselves, called as a context calls
them but one after another, on an index of the same passages: they show where the time goes, and their
sum is no context, whose keyword half runs beside the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.load.passages import NAME, Spoken, batches, real_vectors, spoken_turns
from benchmarks.load.process import Row, answer, fresh, latency
from benchmarks.run import BUNDLED, client_in, milliseconds, settled
from moss_voice import Hit, MossClient, ranking
from moss_voice.call.context import passage_source, render
from moss_voice.call.focus import TURNS, merged, weights
from moss_voice.call.memory import MIN_SCORE
from moss_voice.call.names import Named, Names
from moss_voice.embedding import OnnxEmbedder
from moss_voice.index import Batch, Index, encode_document
from moss_voice.models import CUSTOM_MODEL, DEFAULT_MODEL
from moss_voice.searching import CANDIDATES, Manner, Places, rank
from moss_voice.text import is_filler, squash, term_ids, words
from moss_voice.vectors import Graph, Vectors
from moss_voice.workers import in_worker, submit_aside

F32 = npt.NDArray[np.float32]

# The project's own goal for a context without its model run, at 10,000 passages.
GOAL_MS = 0.5
FIELD = "entity"


def turn(folder: Path, n: int, *, texts: int) -> Row:
    """Measure beside an index of n passages; `vectors.npy` lies in the folder, the index in its cloud."""
    place = folder / "custom"
    place.mkdir()
    fresh(
        "benchmarks.load.passages",
        "fill",
        folder=str(place),
        vectors=str(folder),
        n=n,
        model_id=CUSTOM_MODEL,
    )
    whole: Row = {}
    for kind, of in (("known", folder), ("given", place)):
        whole |= fresh(
            "benchmarks.load.turn", "without_model", folder=str(of), kind=kind, texts=texts
        )
    apart = fresh("benchmarks.load.turn", "parts", vectors=str(folder), n=n, texts=texts)
    return {"passages": n, "whole": whole, "parts": apart}


async def without_model(folder: str, kind: str, texts: int) -> Row:
    """Measure `context` and `heard` of calls whose texts need no model run, as usual and without names."""
    async with client_in(Path(folder)) as client:
        await client.load_index(NAME)
        await settled(client, NAME)
        # Of other texts each: what one has embedded, the model would know in the next.
        said, half = spoken_turns()[:texts], texts // 2
        return {
            f"{kind}, no names": await _one_call(client, said[:half], (), given=kind == "given"),
            kind: await _one_call(client, said[half:], None, given=kind == "given"),
        }


async def _one_call(
    client: MossClient, said: Sequence[Spoken], focus: Sequence[str] | None, *, given: bool
) -> Row:
    embedder = OnnxEmbedder.load(BUNDLED, model_id=DEFAULT_MODEL)
    call = await client.call(
        "turns",
        knowledge=[NAME],
        model_id=CUSTOM_MODEL if given else None,
        focus=focus,
        without=["gate"],
        deadline_ms=10_000,
    )
    took: dict[str, list[float]] = {"context": [], "heard": [], "model": []}
    for number, (speaker, text) in enumerate(said):
        # Each makes its own vector, whichever is used: the machine is the same for all.
        started = time.perf_counter()
        known = (call.session.embedder or embedder).embed_query(text)
        took["model"].append(milliseconds(started))
        vector = tuple(known.tolist()) if given else None
        kind = ("context", "heard")[number % 2]
        started = time.perf_counter()
        if kind == "context":
            found = await call.context(text, embedding=vector)
            assert found.outcome == "ok"
            took[kind].append(milliseconds(started))
        await call.heard(text, speaker, embedding=vector)
        if kind == "heard":
            took[kind].append(milliseconds(started))
    await call.discard()
    return {kind: latency(values) for kind, values in took.items()}


class _Clock:
    """Times the parts, by name."""

    def __init__(self) -> None:
        self.took: dict[str, list[float]] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.took.setdefault(part, []).append(milliseconds(started))


def _indexed(real: F32, n: int) -> tuple[Index, Vectors, Graph, Names[None], Places]:
    """Return the passages as an index with a graph; its vectors and graph once more; and their names."""
    index = Index(real.shape[1])
    vectors = Vectors(real.shape[1])
    for docs, rows in batches(real, n):
        lines = [encode_document(doc.id, doc.text, doc.metadata, None) for doc in docs]
        terms = [term_ids(doc.text) for doc in docs]
        ids = [doc.id for doc in docs]
        index.upsert(Batch(ids, lines, rows, terms, np.ones(len(docs), np.int64)))
        vectors.append(rows)
    index.build_graph()
    graph = Graph.build(vectors, n)
    assert graph is not None
    places = index.places_of([FIELD])
    return index, vectors, graph, Names(dict.fromkeys(places.rows)), places


def _conversation(texts: Sequence[str]) -> Iterator[tuple[str, dict[int, float]]]:
    """Yield each text with the weights of its own words and of those said before it."""
    earlier: list[list[int]] = []
    for text in texts:
        terms = term_ids(text).tolist()
        weights = dict.fromkeys(terms, 1.0)
        for age, said in enumerate(reversed(earlier[-ranking.CONVERSATION_TURNS :]), start=1):
            for term in said:
                weights.setdefault(term, ranking.KEYWORD_DECAY**age)
        yield text, weights
        earlier.append(terms)


async def parts(vectors: str, n: int, texts: int) -> Row:
    """Measure the parts of a context by themselves."""
    index, rows, graph, names, places = _indexed(real_vectors(Path(vectors)), n)
    embedder = OnnxEmbedder.load(BUNDLED, model_id=DEFAULT_MODEL, cache_texts=0)
    rng = np.random.default_rng(7)
    clock = _Clock()
    earlier: list[list[Named]] = []
    manner = Manner(near_duplicates=True)
    _, some = index.sample(ranking.GATE_SAMPLE)
    sample = Vectors(some.shape[1], base=[some])
    for text, terms in _conversation([turn.text for turn in spoken_turns()[:texts]]):
        vector = embedder.embed_query(text)
        with clock("a hop to a worker and back"):
            await in_worker(int)
        with clock("a hop aside, waited for"):
            submit_aside(int).result()
        with clock("words: filler, squash, terms"):
            _ = is_filler(text), squash(text), term_ids(text)
        with clock("keyword scores"):
            found = index.words(terms)
        with clock("focus: names and boosts"):
            named = names.find(words(text))
            boost = weights(merged([named, *earlier]))
        earlier = [named, *earlier][:TURNS]
        with clock("gate: nearness to a sample"):
            sample.scan(vector, n_rows=sample.n_rows).max()
        with clock("graph: candidates"):
            near = graph.near(vector, CANDIDATES)
        # As many again stand for those that the keywords propose.
        more = rng.choice(n, min(n, CANDIDATES), replace=False)
        candidates = np.union1d(near, more).astype(np.int64)
        with clock(f"exact scores of {2 * CANDIDATES}"):
            dense = rows.dot(vector, candidates)
        with clock("fuse and choose"):
            fused = ranking.fuse(dense, dense, alpha=ranking.DEFAULT_ALPHA)
            fused[ranking.to_score(dense) < MIN_SCORE] = -np.inf
            ranking.best(fused, candidates, k=ranking.DEFAULT_TOP_K)
        with clock("what is prepared while the model runs"):
            search = index.prepare(
                found, top_k=ranking.DEFAULT_TOP_K, boost=boost, places=places, manner=manner
            )
        with clock("what is left then"):
            matches = rank(
                search,
                vector,
                top_k=ranking.DEFAULT_TOP_K,
                alpha=ranking.DEFAULT_ALPHA,
                min_score=MIN_SCORE,
                own=vector,
                least=0.1,
            )
        with clock("decode the hits"):
            documents = [match.document for match in matches]
        hits = [
            Hit(doc.id, doc.text, match.score, NAME, passage_source(NAME, doc.id), {})
            for doc, match in zip(documents, matches, strict=True)
        ]
        with clock("the block"):
            render(hits)
    return {part: latency(values) for part, values in clock.took.items()}


if __name__ == "__main__":
    answer(without_model, parts)
