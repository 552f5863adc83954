"""The bundled embedder: unit rows, one text like many, threads, recent texts, and foreign graphs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from moss_voice import models
from moss_voice.embedding import Embedder, ModelSettings, OnnxEmbedder, _batches
from moss_voice.errors import ModelLoadError, ModelNotFoundError

F32 = npt.NDArray[np.float32]

BUNDLED = Path(models.__file__).parent / "minilm"
ROOT = Path(__file__).resolve().parents[1]
# What is said of the model in its card holds for these texts too; they were not used to make it.
TEXTS = [
    "hello",
    "Where is my parcel?",
    "My package has not arrived yet.",
    "Is breakfast included in the price?",
    "um yeah so I was wondering if uh if you could maybe move it to the the thirteenth",
    "The pool is open from seven in the morning until ten at night, all year round.",
    "42",
    "¿Dónde está la estación?",
    "no",
    "A guest may bring one dog of up to ten kilograms; it must be announced when booking and costs "
    "fifteen euros a night. Dogs are not allowed in the restaurant or at the pool. " * 4,
]


@pytest.fixture(scope="module")
def embedder() -> OnnxEmbedder:
    return OnnxEmbedder.load(BUNDLED, model_id="moss-minilm")


def cosines(a: F32, b: F32) -> F32:
    return np.asarray((a * b).sum(axis=1))


def test_rows_are_finite_and_of_length_one(embedder: OnnxEmbedder) -> None:
    """Every text, blank and overlong ones too, has a finite float32 row of length 1."""
    rows = embedder.embed([*TEXTS, "", "   ", "\n", "word " * 5000, "x" * 10_000, "\x00", "😀"])
    assert rows.shape == (len(TEXTS) + 7, 384)
    assert rows.dtype == np.float32
    assert np.isfinite(rows).all()
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(), max_size=80))
def test_any_string_has_a_row(embedder: OnnxEmbedder, text: str) -> None:
    """No string breaks it, half surrogate pairs included."""
    row = embedder.embed_query(text)
    assert np.isfinite(row).all()
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)


def test_no_texts_have_no_rows(embedder: OnnxEmbedder) -> None:
    """An empty list gives an empty matrix of the right width."""
    assert embedder.embed([]).shape == (0, 384)


def test_meaning_is_found(embedder: OnnxEmbedder) -> None:
    """A question is nearer to its paraphrase than to any other text."""
    rows = embedder.embed(TEXTS)
    similar = rows @ rows[1]
    assert int(np.argsort(-similar)[1]) == 2


def test_rows_are_those_of_the_published_model() -> None:
    """int8 stays near float32: golden rows that the float32 graph of tools/build_minilm.py gave."""
    golden = np.load(ROOT / "tests" / "golden" / "minilm-fp32.npz", allow_pickle=False)
    fresh = OnnxEmbedder.load(BUNDLED, model_id="moss-minilm")
    texts = [str(text) for text in golden["texts"]]
    assert cosines(fresh.embed(texts), golden["rows"]).min() > 0.96


def test_a_text_alone_is_the_text_in_a_batch() -> None:
    """A row does not depend on what else is embedded in the same call, in any order."""
    one = OnnxEmbedder.load(BUNDLED, model_id="m", cache_texts=0)
    alone = np.concatenate([one.embed([text]) for text in TEXTS])
    assert cosines(one.embed(TEXTS), alone).min() > 0.9999
    assert cosines(one.embed(TEXTS[::-1])[::-1], alone).min() > 0.9999
    assert cosines(one.embed(TEXTS, threads=2), alone).min() > 0.9999


def test_padding_changes_nothing() -> None:
    """In the graph itself, a text padded to four times its length gives the row that it gives alone."""
    one = OnnxEmbedder.load(BUNDLED, model_id="m", cache_texts=0)
    short, long = one._tokens("Where is my parcel?"), one._tokens("word " * 26)
    assert len(long) >= 4 * len(short)
    together = one._run([short, long])
    assert cosines(together[:1], one._run([short]))[0] > 0.9999


def test_what_is_too_long_is_cut_at_256_tokens(embedder: OnnxEmbedder) -> None:
    """Words beyond the limit change nothing; words before it do."""
    base = "card " * 254
    assert embedder.settings.max_tokens == 256
    rows = embedder.embed([base, base + "elephant " * 50, "elephant " + base])
    assert np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], rows[2])


def test_equal_texts_have_equal_rows(embedder: OnnxEmbedder) -> None:
    """Duplicates within a call are the same row, each in its own place."""
    rows = embedder.embed(["one", "two", "one", "two", "one"])
    assert np.array_equal(rows[[0, 0, 1]], rows[[2, 4, 3]])
    assert not np.array_equal(rows[0], rows[1])


def test_the_same_text_gives_the_same_bytes() -> None:
    """Two embedders and two calls agree bit for bit on a single text."""
    a = OnnxEmbedder.load(BUNDLED, model_id="a", cache_texts=0)
    b = OnnxEmbedder.load(BUNDLED, model_id="b", cache_texts=0)
    assert a.embed_query(TEXTS[4]).tobytes() == a.embed_query(TEXTS[4]).tobytes()
    assert a.embed_query(TEXTS[4]).tobytes() == b.embed_query(TEXTS[4]).tobytes()


def test_recent_texts_are_remembered() -> None:
    """`cached` gives back what was embedded, without a run, until newer texts push it out."""
    one = OnnxEmbedder.load(BUNDLED, model_id="m", cache_texts=3)
    assert one.cached("a") is None
    rows = one.embed(["a", "b", "c"])
    kept = one.cached("a")
    assert kept is not None
    assert np.array_equal(kept, rows[0])
    one.embed_query("d")
    assert one.cached("b") is None
    assert one.cached("a") is not None
    assert one.cached("d", query=True) is not None


def test_bulk_indexing_pushes_nothing_out() -> None:
    """A call with many texts leaves the recent ones alone."""
    one = OnnxEmbedder.load(BUNDLED, model_id="m", cache_texts=4)
    one.embed_query("turn")
    one.embed([str(number) for number in range(40)])
    assert one.cached("turn") is not None


def test_no_caller_can_spoil_what_is_remembered(embedder: OnnxEmbedder) -> None:
    """What is shared is read-only; what is writable is the caller's own."""
    row = embedder.embed_query("shared")
    again = embedder.embed_query("shared")
    with pytest.raises(ValueError, match="read-only"):
        again[0] = 5
    rows = embedder.embed(["shared"])
    rows[0] = 0
    row = embedder.embed_query("shared")
    assert np.linalg.norm(row) == pytest.approx(1, abs=1e-5)


def test_threads_get_what_one_caller_gets(embedder: OnnxEmbedder) -> None:
    """Many threads at once, on the same and on different texts, each get the right rows."""
    fresh = OnnxEmbedder.load(BUNDLED, model_id="m", cache_texts=2)
    expected = embedder.embed(TEXTS)

    def work(worker: int) -> bool:
        order = np.random.default_rng(worker).permutation(len(TEXTS))[:5]
        rows = fresh.embed([TEXTS[i] for i in order])
        single = fresh.embed_query(TEXTS[order[0]])
        return bool(
            cosines(rows, expected[order]).min() > 0.999 and single @ expected[order[0]] > 0.9999
        )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(work, range(18)))


def test_other_threads_go_on_during_a_run(embedder: OnnxEmbedder) -> None:
    """The model runs outside the interpreter's lock: another thread counts on meanwhile."""
    gate = threading.Event()
    went_on: list[bool] = []

    def other() -> None:
        gate.wait()
        went_on.append(True)

    ids = np.full((16, 256), 2000, dtype=np.int64)
    feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    thread = threading.Thread(target=other)
    thread.start()
    interval = sys.getswitchinterval()
    # A thread that runs is not made to give way, so only a lock given up lets the other one go on.
    sys.setswitchinterval(1000)
    try:
        gate.set()
        embedder._session.run(None, feed)
        seen = bool(went_on)
    finally:
        sys.setswitchinterval(interval)
        thread.join()
    assert seen


def test_importing_costs_no_onnxruntime() -> None:
    """Only loading a model imports onnxruntime."""
    code = (
        "import sys, moss_voice.embedding, moss_voice.models\n"
        "assert not {'onnxruntime', 'tokenizers', 'httpx'} & "
        "{m for m in sys.modules if 'moss_voice' not in m} - ALLOWED"
    )
    # The package's own __init__ may bring httpx for the cloud; the model's libraries it may not.
    code = code.replace("ALLOWED", "{'httpx'}")
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, env={**os.environ})


@given(
    lengths=st.lists(st.integers(1, 256), max_size=80),
)
def test_batches_hold_each_text_once_with_little_padding(lengths: list[int]) -> None:
    """Batches cover every text once, stay within their size, and pad a tenth at most."""
    batches = _batches(lengths)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    for batch in batches:
        padded = max(lengths[i] for i in batch) * len(batch)
        assert len(batch) == 1 or padded <= 256
        assert padded - sum(lengths[i] for i in batch) <= 0.1 * padded


def test_it_is_an_embedder_that_tells_its_state(embedder: OnnxEmbedder) -> None:
    """It fits the protocol and its repr names the model."""
    assert isinstance(embedder, Embedder)
    assert repr(embedder) == "<OnnxEmbedder 'moss-minilm' 384 dimensions>"
    assert embedder.dim == 384


# -- foreign graphs, built here


TABLE = np.arange(1, 33, dtype=np.float32).reshape(8, 4) ** 2
A, B, QUERY, DOC = (TABLE[i] for i in (2, 3, 5, 6))


def tiny(
    directory: Path,
    *,
    output: str = "last_hidden_state",
    inputs: tuple[str, ...] = ("input_ids", "attention_mask", "token_type_ids"),
    dtype: int = TensorProto.INT64,
    files: dict[str, object] | None = None,
) -> Path:
    """Write a model of 8 words whose token vectors are rows of a table, with its tokenizer."""
    directory.mkdir(parents=True, exist_ok=True)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["tokens"])]
    if output == "sentence_embedding":
        nodes.append(helper.make_node("ReduceMean", ["tokens", "axis"], [output], keepdims=0))
    else:
        nodes.append(helper.make_node("Identity", ["tokens"], [output]))
    dims: list[str | int | None] = ["n", 4] if output == "sentence_embedding" else ["n", "t", 4]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, dtype, ["n", "t"]) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, dims)],
        [
            numpy_helper.from_array(TABLE, "table"),
            numpy_helper.from_array(np.array([1], dtype=np.int64), "axis"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (directory / "model.onnx").write_bytes(model.SerializeToString())
    vocabulary = {"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4, "query": 5, "doc": 6, "z": 7}
    tokenizer: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": {
            "strategy": {"Fixed": 16},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": None,
        "decoder": None,
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    }
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    for name, content in (files or {}).items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    return directory


def unit(row: F32) -> F32:
    return np.asarray(row / np.linalg.norm(row), dtype=np.float32)


CLS = {"1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}}


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, (A + B + TABLE[4]) / 3),
        (CLS, A),
        ({"1_Pooling/config.json": {"pooling_mode": "cls"}}, A),
        (
            {
                "modules.json": [
                    {"type": "sentence_transformers.models.Transformer", "path": ""},
                    {"type": "sentence_transformers.models.Pooling", "path": "other"},
                ],
                "other/config.json": {"pooling_mode_cls_token": True},
            },
            A,
        ),
        ({"sentence_bert_config.json": {"max_seq_length": 2}}, (A + B) / 2),
        ({"tokenizer_config.json": {"model_max_length": 1e30}}, (A + B + TABLE[4]) / 3),
        (
            {"config_sentence_transformers.json": {"prompts": {"document": "doc "}}},
            (DOC + A + B + TABLE[4]) / 4,
        ),
    ],
)
def test_settings_come_from_the_models_own_files(
    tmp_path: Path, files: dict[str, object], expected: F32
) -> None:
    """Pooling, maximum length and prompts are those of the sentence-transformers files."""
    one = OnnxEmbedder.load(tiny(tmp_path, files=files), model_id="tiny")
    assert one.embed(["a b c"])[0] == pytest.approx(unit(expected), abs=1e-6)


def test_a_query_prompt_is_for_queries_only(tmp_path: Path) -> None:
    """`embed_query` puts the prompt before the text and `embed` does not; they are remembered apart."""
    files: dict[str, object] = {
        "config_sentence_transformers.json": {"prompts": {"query": "query "}}
    }
    one = OnnxEmbedder.load(tiny(tmp_path, files=files), model_id="tiny")
    assert one.embed_query("a") == pytest.approx(unit((QUERY + A) / 2), abs=1e-6)
    assert one.cached("a") is None
    assert one.cached("a", query=True) is not None
    assert one.embed(["a"])[0] == pytest.approx(unit(A), abs=1e-6)


@pytest.mark.parametrize("output", ["last_hidden_state", "token_embeddings", "sentence_embedding"])
@pytest.mark.parametrize(
    "inputs", [("input_ids",), ("input_ids", "token_type_ids", "attention_mask")]
)
@pytest.mark.parametrize("dtype", [TensorProto.INT64, TensorProto.INT32])
def test_graphs_of_every_usual_form_work(
    tmp_path: Path, output: str, inputs: tuple[str, ...], dtype: int
) -> None:
    """Token vectors or sentence vectors out, any of the usual inputs in, 32 or 64 bits wide."""
    one = OnnxEmbedder.load(tiny(tmp_path, output=output, inputs=inputs, dtype=dtype), model_id="t")
    assert one.dim == 4
    assert one.embed(["a b", "b"]) == pytest.approx(
        np.stack([unit((A + B) / 2), unit(B)]), abs=1e-6
    )


def test_a_blank_text_has_a_row_without_special_tokens(tmp_path: Path) -> None:
    """A tokenizer that yields nothing for a blank text still gives a finite unit row."""
    row = OnnxEmbedder.load(tiny(tmp_path), model_id="tiny").embed([""])[0]
    assert np.linalg.norm(row) == pytest.approx(1)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"modules.json": "not json"}, "modules.json"),
        ({"modules.json": {"type": "x"}}, "list"),
        ({"modules.json": [{"type": "sentence_transformers.models.Dense"}]}, "Dense"),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, "max_tokens"),
        ({"config_sentence_transformers.json": {"prompts": ["x"]}}, "prompts"),
        ({"sentence_bert_config.json": [1]}, "object"),
        ({"model.onnx": "not a graph"}, "model.onnx"),
        ({"tokenizer.json": "{}"}, "tokenizer"),
    ],
)
def test_bad_files_are_load_errors(tmp_path: Path, files: dict[str, object], message: str) -> None:
    """A file that cannot be used is named; a foreign error never comes through."""
    with pytest.raises(ModelLoadError, match=message):
        OnnxEmbedder.load(tiny(tmp_path, files=files), model_id="tiny")


def test_a_graph_that_is_no_text_model_is_a_load_error(tmp_path: Path) -> None:
    """Unknown inputs, and a graph without token ids, are told apart from damage."""
    with pytest.raises(ModelLoadError, match="pixels"):
        OnnxEmbedder.load(tiny(tmp_path / "a", inputs=("input_ids", "pixels")), model_id="t")
    graph = onnx.load(tiny(tmp_path / "b") / "model.onnx")
    graph.graph.initializer[0].dims[0] = 1
    graph.graph.initializer[0].raw_data = graph.graph.initializer[0].raw_data[:16]
    (tmp_path / "b" / "model.onnx").write_bytes(graph.SerializeToString())
    with pytest.raises(ModelLoadError, match="does not run"):
        OnnxEmbedder.load(tmp_path / "b", model_id="t")


def test_a_run_that_fails_is_our_error_without_the_text(tmp_path: Path) -> None:
    """A graph that breaks on some texts raises our error, which tells the shape and not the text."""
    graph = onnx.load(tiny(tmp_path) / "model.onnx")
    graph.graph.initializer[0].dims[0] = 7
    graph.graph.initializer[0].raw_data = graph.graph.initializer[0].raw_data[: 7 * 16]
    (tmp_path / "model.onnx").write_bytes(graph.SerializeToString())
    one = OnnxEmbedder.load(tmp_path, model_id="seven words")
    assert one.embed(["doc"]).shape == (1, 4)
    with pytest.raises(ModelLoadError, match=r"seven words.*\(1, 2\)") as caught:
        one.embed(["z secret"])
    assert "secret" not in str(caught.value)


def test_missing_files_are_not_found_errors(tmp_path: Path) -> None:
    """What is missing is named; a graph in `onnx/` is found."""
    with pytest.raises(ModelNotFoundError, match="nowhere"):
        OnnxEmbedder.load(tmp_path / "nowhere", model_id="t")
    directory = tiny(tmp_path / "m")
    (directory / "onnx").mkdir()
    (directory / "model.onnx").rename(directory / "onnx" / "model.onnx")
    assert OnnxEmbedder.load(directory, model_id="t").dim == 4
    (directory / "tokenizer.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"tokenizer\.json"):
        OnnxEmbedder.load(directory, model_id="t")
    (directory / "onnx" / "model.onnx").unlink()
    with pytest.raises(ModelNotFoundError, match=r"model\.onnx"):
        OnnxEmbedder.load(directory, model_id="t")


def test_settings_have_defaults_without_files(tmp_path: Path) -> None:
    """A bare directory means mean pooling, 256 tokens and no prompts."""
    assert ModelSettings.read(tmp_path) == ModelSettings()
