"""Text to unit vectors.

The law: a row is finite, float32 and of length 1, so that a dot product is a cosine; rows come in the
order of the texts; and a text's row does not depend on the texts beside it (with the bundled model: to
a cosine of .99999, since its activation scales are fixed; a model that quantises its
activations as it runs may move more).

One call uses one thread, and several calls may run at once: the work is done outside the interpreter's
lock, and two threads inside one call would spin and hurt the tail of everything else on the machine.
"""

from __future__ import annotations

import json
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt

from moss_voice.errors import ModelLoadError, ModelNotFoundError

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

__all__ = ["Embedder", "ModelSettings", "OnnxEmbedder", "graph_file"]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

# 512 recent texts of 384 floats are 0.8 MB: a long call and its queries.
_CACHE_TEXTS = 512
# A larger call is bulk indexing; remembering it would only push out what a call still needs.
_REMEMBERED_TEXTS = 16
# Padded tokens of one run: throughput has levelled off there, and the run's buffers stay small.
_BATCH_TOKENS = 256
# A batch takes in texts until padding would be more than this share of it.
_PADDING_SHARE = 0.1


@runtime_checkable
class Embedder(Protocol):
    """Anything that turns text into unit rows; safe to share between threads.

    Attributes:
        model_id: The portable id that is stored with an index; equal ids mean comparable vectors.
        dim: The length of a row.
    """

    @property
    def model_id(self) -> str:
        """The portable id."""
        ...

    @property
    def dim(self) -> int:
        """The length of a row."""
        ...

    def embed(self, texts: Sequence[str]) -> F32:
        """Embed documents: (n, dim) float32 unit rows in the order of `texts`."""
        ...

    def embed_query(self, text: str) -> F32:
        """Embed what is searched for: (dim,) float32, with the model's query prompt if it has one."""
        ...

    def cached(self, text: str, *, query: bool = False) -> F32 | None:
        """The row of a recent text, or None; never runs the model."""
        ...


@dataclass(frozen=True)
class ModelSettings:
    """How a model wants to be used, as its sentence-transformers files say.

    Attributes:
        pooling: How token vectors become one, where the graph gives out token vectors.
        max_tokens: Longer texts are cut there.
        query_prompt: Put before a text that is searched for.
        document_prompt: Put before a text that is stored.
    """

    pooling: Literal["mean", "cls"] = "mean"
    max_tokens: int = 256
    query_prompt: str = ""
    document_prompt: str = ""

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read `modules.json` and the files that it names; defaults for those that are not there.

        Raises:
            ModelLoadError: If a file is not JSON of the expected form, or asks for a step that is
                not done here (another pooling, a dense layer).
        """
        prompts = _object(directory / "config_sentence_transformers.json").get("prompts") or {}
        if not isinstance(prompts, dict):
            raise ModelLoadError("config_sentence_transformers.json: `prompts` is not an object")
        return cls(
            pooling=_pooling(directory),
            max_tokens=_max_tokens(directory),
            query_prompt=str(prompts.get("query") or ""),
            document_prompt=str(prompts.get("document") or prompts.get("passage") or ""),
        )


class OnnxEmbedder:
    """A sentence-transformers model as an ONNX graph, run on the CPU.

    Graphs that give out `sentence_embedding` and graphs that give out token vectors
    (`last_hidden_state`) both work. What is too long is cut. A blank text has a row too.

    Args:
        session: A loaded graph; see `load`.
        tokenizer: Its tokenizer, cutting at `settings.max_tokens` and not padding.
        settings: How the model wants to be used.
        model_id: The portable id.
        pad_id: The token that fills up the shorter texts of a batch.
        cache_texts: How many recent texts are remembered; 0 remembers none.
    """

    def __init__(
        self,
        session: InferenceSession,
        tokenizer: Tokenizer,
        settings: ModelSettings,
        *,
        model_id: str,
        pad_id: int = 0,
        cache_texts: int = _CACHE_TEXTS,
    ) -> None:
        self.model_id = model_id
        self.settings = settings
        self._session = session
        self._tokenizer = tokenizer
        self._pad_id = pad_id
        self._inputs = _inputs(session)
        output, self._pools = _output(session)
        self._outputs = [output]
        self._recent = _Recent(cache_texts)
        self._graph_normalises = True
        rows = self._probe()
        self.dim = int(rows.shape[1])
        # Left out where it would do nothing: on the hot path even small steps count.
        self._graph_normalises = bool(np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5))

    @classmethod
    def load(
        cls,
        directory: Path | str,
        *,
        model_id: str,
        settings: ModelSettings | None = None,
        cache_texts: int = _CACHE_TEXTS,
    ) -> Self:
        """Load `model.onnx` (or `onnx/model.onnx`) and `tokenizer.json` from a directory.

        The one place where onnxruntime is imported: importing this module costs nothing.

        Args:
            directory: Where the files are.
            model_id: The portable id.
            settings: Taken in place of what the directory's sentence-transformers files say.
            cache_texts: How many recent texts are remembered.

        Raises:
            ModelNotFoundError: If the directory or one of the two files is not there.
            ModelLoadError: If a file cannot be read, or the graph is not a text embedder that runs.
        """
        # Builds of onnxruntime carry a telemetry of their own, which starts with the import.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime
        from tokenizers import Tokenizer

        directory = Path(directory)
        graph, vocabulary = graph_file(directory), directory / "tokenizer.json"
        if not vocabulary.is_file():
            raise ModelNotFoundError(f"no tokenizer.json in {directory}")
        settings = settings or ModelSettings.read(directory)
        try:
            session = onnxruntime.InferenceSession(
                graph, _options(onnxruntime), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelLoadError(f"{graph}: onnxruntime cannot load it: {error}") from error
        try:
            tokenizer = Tokenizer.from_file(str(vocabulary))
        except Exception as error:  # tokenizers raises a bare Exception
            raise ModelLoadError(f"{vocabulary}: not a tokenizer: {error}") from error
        pad_id = int((tokenizer.padding or {}).get("pad_id", 0))
        # A fixed padding in the file would make every text cost as much as the longest.
        tokenizer.no_padding()
        tokenizer.enable_truncation(settings.max_tokens)
        return cls(
            session,
            tokenizer,
            settings,
            model_id=model_id,
            pad_id=pad_id,
            cache_texts=cache_texts,
        )

    def embed(self, texts: Sequence[str], *, threads: int = 1) -> F32:
        """Embed documents.

        Args:
            texts: Any number of texts; equal ones are run once.
            threads: How many batches may run at once. More than one suits bulk indexing when nothing
                else needs the cores.

        Returns:
            (n, dim) float32 unit rows in the order of `texts`, owned by the caller.
        """
        prompt = self.settings.document_prompt
        if len(texts) == 1:
            # A turn of a call: nothing to sort into batches.
            return self._row(prompt + texts[0])[None, :].copy()
        return self._rows([prompt + text for text in texts], threads)

    def embed_query(self, text: str) -> F32:
        """Embed what is searched for; (dim,) float32 of length 1, read-only.

        The same as `embed([text])[0]` where the model has no prompts.
        """
        return self._row(self.settings.query_prompt + text)

    def cached(self, text: str, *, query: bool = False) -> F32 | None:
        """The row of a recent text, read-only, or None; never runs the model."""
        settings = self.settings
        return self._recent.get(
            (settings.query_prompt if query else settings.document_prompt) + text
        )

    def __repr__(self) -> str:
        return f"<OnnxEmbedder {self.model_id!r} {self.dim} dimensions>"

    def _row(self, prompted: str) -> F32:
        row = self._recent.get(prompted)
        if row is None:
            row = self._run([self._tokens(prompted)])[0]
            self._recent.put(prompted, row)
        return row

    def _rows(self, texts: Sequence[str], threads: int) -> F32:
        rows = np.empty((len(texts), self.dim), dtype=np.float32)
        where: dict[str, list[int]] = {}
        for index, text in enumerate(texts):
            where.setdefault(text, []).append(index)
        missing = []
        for text, places in where.items():
            row = self._recent.get(text)
            if row is None:
                missing.append(text)
            else:
                rows[places] = row
        tokens = [self._tokens(text) for text in missing]
        remember = len(missing) <= _REMEMBERED_TEXTS

        def run(batch: list[int]) -> None:
            for index, row in zip(batch, self._run([tokens[i] for i in batch]), strict=True):
                rows[where[missing[index]]] = row
                if remember:
                    self._recent.put(missing[index], row)

        _each(run, _batches([len(row) for row in tokens]), threads)
        return rows

    def _tokens(self, text: str) -> list[int]:
        try:
            ids: list[int] = self._tokenizer.encode(text).ids
        except (TypeError, UnicodeEncodeError):
            # Half a surrogate pair, as careless JSON yields it, is no Unicode text.
            ids = self._tokenizer.encode(text.encode("utf-8", "replace").decode()).ids
        # A tokenizer without special tokens has nothing for a blank text, and no graph runs on nothing.
        return ids or [self._pad_id]

    def _run(self, batch: Sequence[list[int]]) -> F32:
        """Run one batch; (len(batch), dim) float32 unit rows."""
        if len(batch) == 1:
            # The hot path: one turn of a call needs no padding.
            ids = np.array(batch, dtype=np.int64)
            mask = np.ones_like(ids)
        else:
            ids, mask = _padded(batch, self._pad_id)
        values = {"input_ids": ids, "attention_mask": mask}
        feed = {
            name: values[name].astype(dtype, copy=False)
            if name in values
            else np.zeros_like(ids, dtype)
            for name, dtype in self._inputs.items()
        }
        try:
            output: F32 = self._session.run(self._outputs, feed)[0]
        except Exception as error:  # onnxruntime's errors share no base class
            raise ModelLoadError(
                f"model {self.model_id!r} does not run on tokens of shape {ids.shape}: {error}"
            ) from error
        if self._pools:
            output = _pool(output, mask, self.settings.pooling)
        return output if self._graph_normalises else _unit(output)

    def _probe(self) -> F32:
        """Run once, so that what is wrong with a graph shows on load and the first turn is quick."""
        rows = self._run([self._tokens("hello"), self._tokens("")])
        if rows.ndim != 2 or not np.isfinite(rows).all():
            raise ModelLoadError(
                f"model {self.model_id!r}: expected finite (texts, dim) rows, got shape {rows.shape}"
            )
        return rows


class _Recent:
    """The rows of recent texts, least recently used first; every step is under one lock."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()
        self._rows: OrderedDict[str, F32] = OrderedDict()

    def get(self, text: str) -> F32 | None:
        with self._lock:
            row = self._rows.get(text)
            if row is not None:
                self._rows.move_to_end(text)
            return row

    def put(self, text: str, row: F32) -> None:
        # A copy: a row that is a view would keep its whole batch alive.
        row = row.copy()
        row.flags.writeable = False
        with self._lock:
            self._rows[text] = row
            self._rows.move_to_end(text)
            while len(self._rows) > self._size:
                self._rows.popitem(last=False)


def _options(onnxruntime: Any) -> Any:
    """Session options: one thread, and none that spins while it waits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised; onnxruntime's stderr is not ours to fill
    return options


def graph_file(directory: Path) -> Path:
    """The graph in a model directory.

    Raises:
        ModelNotFoundError: If there is no directory, or no graph in it.
    """
    if not directory.is_dir():
        raise ModelNotFoundError(f"no such model directory: {directory}")
    for graph in (directory / "model.onnx", directory / "onnx" / "model.onnx"):
        if graph.is_file():
            return graph
    raise ModelNotFoundError(f"neither model.onnx nor onnx/model.onnx in {directory}")


def _inputs(session: InferenceSession) -> dict[str, type[np.generic]]:
    """The graph's inputs and their types; all are made from the token ids."""
    dtypes: dict[str, type[np.generic]] = {"tensor(int64)": np.int64, "tensor(int32)": np.int32}
    inputs: dict[str, type[np.generic]] = {}
    for node in session.get_inputs():
        if node.name not in {"input_ids", "attention_mask", "token_type_ids"}:
            raise ModelLoadError(f"the graph asks for an input {node.name!r}, which is not known")
        if node.type not in dtypes:
            raise ModelLoadError(f"input {node.name!r}: expected integers, got {node.type}")
        inputs[node.name] = dtypes[node.type]
    if "input_ids" not in inputs:
        raise ModelLoadError("the graph has no input `input_ids`: not a text model")
    return inputs


def _output(session: InferenceSession) -> tuple[str, bool]:
    """The output to read, and whether it holds token vectors that must be pooled."""
    outputs = session.get_outputs()
    for node in outputs:
        if node.name == "sentence_embedding":
            return node.name, False
    for node in outputs:
        if node.name in {"last_hidden_state", "token_embeddings"}:
            return node.name, True
    first = outputs[0]
    if first.shape is not None and len(first.shape) in {2, 3}:
        return first.name, len(first.shape) == 3
    raise ModelLoadError(
        f"expected an output `sentence_embedding` or `last_hidden_state`, got {first.name!r}"
    )


def _pool(tokens: F32, mask: I64, how: str) -> F32:
    """Token vectors (n, tokens, dim) to (n, dim)."""
    if how == "cls":
        return tokens[:, 0]
    kept = mask[:, :, None].astype(np.float32)
    mean: F32 = (tokens * kept).sum(axis=1) / kept.sum(axis=1)
    return mean


def _padded(batch: Sequence[list[int]], pad_id: int) -> tuple[I64, I64]:
    """Token ids of several texts and their mask, each (texts, longest)."""
    ids = np.full((len(batch), max(map(len, batch))), pad_id, dtype=np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(batch):
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask


def _unit(rows: F32) -> F32:
    """Rows brought to length 1; a row of zeros, which has no direction, gets the first axis."""
    length = np.linalg.norm(rows, axis=-1, keepdims=True)
    unit: F32 = (rows / np.where(length > 0, length, 1)).astype(np.float32, copy=False)
    unit[length[..., 0] == 0, 0] = 1
    return unit


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Split texts into batches of about the same length; indices into `lengths`, longest first."""
    batches: list[list[int]] = []
    used = 0
    # Longest first: the largest buffers are allocated once, and the tail of parallel runs is short.
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        if batches:
            batch = batches[-1]
            padded = lengths[batch[0]] * (len(batch) + 1)
            used += lengths[index]
            if padded <= _BATCH_TOKENS and padded - used <= _PADDING_SHARE * padded:
                batch.append(index)
                continue
        batches.append([index])
        used = lengths[index]
    return batches


def _each(run: Callable[[list[int]], None], batches: Sequence[list[int]], threads: int) -> None:
    if threads <= 1 or len(batches) < 2:
        for batch in batches:
            run(batch)
        return
    with ThreadPoolExecutor(threads, thread_name_prefix="moss-embed") as pool:
        for done in [pool.submit(run, batch) for batch in batches]:
            done.result()


def _object(path: Path) -> dict[str, Any]:
    """A JSON object from a file; empty where there is no such file."""
    value = _json(path, {})
    if not isinstance(value, dict):
        raise ModelLoadError(f"{path}: expected a JSON object")
    return value


def _json(path: Path, default: Any) -> Any:
    if not path.is_file():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelLoadError(f"{path}: not readable as JSON: {error}") from error


def _pooling(directory: Path) -> Literal["mean", "cls"]:
    """The pooling that `modules.json` and the pooling module's file ask for; mean where unsaid."""
    modules = _json(directory / "modules.json", [])
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise ModelLoadError(f"{directory / 'modules.json'}: expected a list of objects")
    place = "1_Pooling"
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            place = str(module.get("path") or place)
        elif kind not in {"Transformer", "Normalize"}:
            raise ModelLoadError(f"modules.json asks for a module {kind!r}, which is not known")
    config = _object(directory / place / "config.json")
    modes = {
        key for key, value in config.items() if key.startswith("pooling_mode") and value is True
    }
    if isinstance(config.get("pooling_mode"), str):
        modes = {f"pooling_mode_{config['pooling_mode']}"}
    if modes <= {"pooling_mode_mean_tokens", "pooling_mode_mean"}:
        return "mean"
    if modes <= {"pooling_mode_cls_token", "pooling_mode_cls"}:
        return "cls"
    raise ModelLoadError(f"expected mean or cls pooling, got {', '.join(sorted(modes))}")


def _max_tokens(directory: Path) -> int:
    """The longest text: what sentence-transformers cuts at, else what the tokenizer or model bears."""
    places = (
        ("sentence_bert_config.json", "max_seq_length"),
        ("tokenizer_config.json", "model_max_length"),
        ("config.json", "max_position_embeddings"),
    )
    for file, key in places:
        value = _object(directory / file).get(key)
        # transformers writes 1e30 for "no limit".
        if isinstance(value, int) and 1 < value <= 1_000_000:
            return value
    return ModelSettings.max_tokens
