"""How long the bundled model takes, by length, beside other graphs when they are given.

Every graph is run in turn within one loop, so that a busy machine slows all of them alike; read the
ratios. `--fp32` takes the graph that `tools/build_minilm.py --fp32 PATH` writes.

    python -m benchmarks.embedding [--fp32 PATH] [--graph NAME=PATH ...] [--json] [--rounds N]
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from moss_voice import models
from moss_voice.embedding import OnnxEmbedder
from moss_voice.models import DEFAULT_MODEL

BUNDLED = Path(models.__file__).parent / "minilm"
LENGTHS = (8, 16, 32, 64)
# Nouns that are one token each, so that a text has as many tokens as it should.
WORDS = [
    "table",
    "order",
    "card",
    "account",
    "flight",
    "hotel",
    "doctor",
    "price",
    "garden",
    "number",
    "letter",
    "window",
]


def text_of(tokens: int) -> str:
    """Return a text of that many tokens, the two special ones included."""
    return " ".join(WORDS[i % len(WORDS)] for i in range(tokens - 2))


def beside(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Time each of some functions in turn; ms."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            run()  # once unmeasured, so that the caches hold this one's weights and not the last one's
            for _ in range(3):
                started = time.perf_counter()
                run()
                times[name].append((time.perf_counter() - started) * 1000)
    return {
        name: {
            "median_ms": round(float(np.median(taken)), 3),
            "min_ms": round(float(np.min(taken)), 3),
        }
        for name, taken in times.items()
    }


def graph_run(path: Path, tokens: int) -> Callable[[], object]:
    """Return a run of a bare graph on one text of that many tokens."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ids = np.full((1, tokens), 2795, dtype=np.int64)
    names = [node.name for node in session.get_inputs()]
    feed = {name: ids if name == "input_ids" else np.ones_like(ids) for name in names}
    return lambda: session.run(None, feed)


def by_length(graphs: Mapping[str, Path], rounds: int) -> dict[str, Any]:
    """Time `embed_query` of one text, and the bare graphs, at each length."""
    embedder = OnnxEmbedder.load(BUNDLED, model_id=DEFAULT_MODEL, cache_texts=0)
    table: dict[str, Any] = {}
    for tokens in LENGTHS:
        text = text_of(tokens)
        runs: dict[str, Callable[[], object]] = {
            "embed_query": lambda text=text: embedder.embed_query(text),  # type: ignore[misc]
            "graph": graph_run(BUNDLED / "model.onnx", tokens),
        }
        runs |= {name: graph_run(path, tokens) for name, path in graphs.items()}
        table[str(tokens)] = beside(runs, rounds)
    return table


def bulk(texts: int, threads: Sequence[int]) -> dict[str, float]:
    """Texts per second: one at a time, in batches, and in batches on several threads."""
    embedder = OnnxEmbedder.load(BUNDLED, model_id=DEFAULT_MODEL, cache_texts=0)
    lengths = np.random.default_rng(0).integers(8, 48, texts)
    corpus = [f"{index} {text_of(int(tokens))}" for index, tokens in enumerate(lengths)]

    def rate(run: Callable[[], object]) -> float:
        started = time.perf_counter()
        run()
        return round(texts / (time.perf_counter() - started), 1)

    rates = {"one at a time": rate(lambda: [embedder.embed([text]) for text in corpus])}
    for count in threads:
        rates[f"batches, {count} thread{'s' * (count > 1)}"] = rate(
            lambda count=count: embedder.embed(corpus, threads=count)  # type: ignore[misc]
        )
    return rates


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--fp32", type=Path, help="a float32 graph to compare with")
    parser.add_argument("--graph", action="append", default=[], help="NAME=PATH of another graph")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--texts", type=int, default=200, help="texts of the bulk measurement")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    graphs = dict(entry.split("=", 1) for entry in options.graph)
    paths = {name: Path(path) for name, path in graphs.items()}
    if options.fp32:
        paths["fp32"] = options.fp32
    result = {
        "latency": by_length(paths, options.rounds),
        "bulk_per_s": bulk(options.texts, (1, 2)),
    }
    if options.json:
        print(json.dumps(result, indent=2))
        return 0
    console = Console()
    names = list(result["latency"][str(LENGTHS[0])])
    table = Table(
        "", *(f"{tokens} tokens" for tokens in LENGTHS), title="ms, median / min, 1 thread"
    )
    for name in names:
        cells = [result["latency"][str(tokens)][name] for tokens in LENGTHS]
        table.add_row(name, *(f"{c['median_ms']:.2f} / {c['min_ms']:.2f}" for c in cells))
    console.print(table)
    for name, value in result["bulk_per_s"].items():
        console.print(f"{name}: {value} texts/s")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
