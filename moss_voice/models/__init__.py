"""The embedding models by name, each loaded once per process.

The law: a model is either complete and as its publisher made it, or it is not there. Files that are
fetched are checked (size and sha256) in a directory of their own, which takes its final name only when
every one of them is right.

| id | what |
| --- | --- |
| `moss-minilm` | all-MiniLM-L6-v2, 384 dimensions, bundled |
| `moss-mediumlm` | bge-small-en-v1.5, 384 dimensions, fetched on first use (134 MB) |
| `custom` | none: callers bring their own vectors |
| a directory | any sentence-transformers model with `model.onnx` and `tokenizer.json` |

A directory is known to an index by its portable id, `path:NAME@HASH`: the directory's name and the first
12 hex digits of a hash of its graph and weights. It means the same model on every machine, and `load_embedder`
takes it too: it finds the model where `MOSS_VOICE_MODEL_DIR/NAME` holds it, or where this process has
loaded it before.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moss_voice.embedding import Embedder, ModelSettings, OnnxEmbedder, graph_file
from moss_voice.errors import InvalidArgumentError, ModelLoadError, ModelNotFoundError

if TYPE_CHECKING:
    import httpx

__all__ = [
    "CUSTOM_MODEL",
    "DEFAULT_MODEL",
    "MODEL_IDS",
    "REMOTE",
    "RemoteFile",
    "RemoteModel",
    "fetch",
    "load_embedder",
]

DEFAULT_MODEL = "moss-minilm"
CUSTOM_MODEL = "custom"
HUB = "https://huggingface.co"
HUB_VARIABLE = "MOSS_VOICE_HUB"
DIRECTORY_VARIABLE = "MOSS_VOICE_MODEL_DIR"

_BUNDLED = Path(__file__).resolve().parent / "minilm"
_SCHEME = "path:"
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """A file at its hub, and what it must be once it is here."""

    path: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The name under which it is kept."""
        return self.path.rpartition("/")[2]


@dataclass(frozen=True)
class RemoteModel:
    """A model at its hub, at one revision for ever."""

    repository: str
    revision: str
    files: tuple[RemoteFile, ...]
    settings: ModelSettings


# The hashes do not come from a download of ours, which could only vouch for itself. Several independent
# public projects pin the same two for this repository and revision, one of them from the hub's own file
# listing; we have not been able to fetch the files from the hub ourselves.
REMOTE = {
    "moss-mediumlm": RemoteModel(
        repository="BAAI/bge-small-en-v1.5",
        revision="5c38ec7c405ec4b44b94cc5a9bb96e735b38267a",
        files=(
            RemoteFile(
                "onnx/model.onnx",
                133_093_490,
                "828e1496d7fabb79cfa4dcd84fa38625c0d3d21da474a00f08db0f559940cf35",
            ),
            RemoteFile(
                "tokenizer.json",
                711_396,
                "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
            ),
        ),
        settings=ModelSettings(
            pooling="cls",
            max_tokens=512,
            query_prompt="Represent this sentence for searching relevant passages: ",
        ),
    )
}
MODEL_IDS = (DEFAULT_MODEL, *REMOTE, CUSTOM_MODEL)


def load_embedder(
    model_id: str | os.PathLike[str] = DEFAULT_MODEL,
    *,
    hub: str | None = None,
    cache_dir: Path | str | None = None,
) -> Embedder:
    """Load a model once per process; later calls get the same object.

    Blocking: 0.1 s for the bundled model, a download for `moss-mediumlm` on its first use. Safe to call
    from several threads: those that ask for the same model wait for the one that loads it, and a failure
    is not remembered. `model_id` of the result is the portable id.

    Args:
        model_id: A known id, a directory, or a directory's portable id.
        hub: Where remote models come from; `MOSS_VOICE_HUB`, else huggingface.co, where None.
        cache_dir: Where fetched models are kept; a directory of the platform's cache where None.

    Raises:
        InvalidArgumentError: If it is `custom`, which embeds nothing.
        ModelNotFoundError: If there is no such model.
        ModelLoadError: If its files cannot be fetched, verified or loaded.
    """
    name = os.fspath(model_id)
    if name == CUSTOM_MODEL:
        raise InvalidArgumentError(
            "the model `custom` embeds no text: give documents and queries an embedding"
        )
    if name == DEFAULT_MODEL:
        return _once(_BUNDLED, lambda: OnnxEmbedder.load(_BUNDLED, model_id=name))
    if name in REMOTE:
        return _load_remote(name, REMOTE[name], hub=hub, cache_dir=cache_dir)
    if name.startswith(_SCHEME):
        return _load_portable(name)
    if Path(name).is_dir():
        return _load_directory(Path(name))
    raise ModelNotFoundError(
        f"no model {name!r}: known are {', '.join(MODEL_IDS)}, or give the path of a directory"
        " with model.onnx and tokenizer.json"
    )


def fetch(model: RemoteModel, target: Path, *, hub: str, name: str) -> None:
    """Download a model's files into `target`, which appears whole or not at all.

    A progress bar is shown on a terminal. Where two processes fetch at once, one result is kept.

    Args:
        model: What to fetch.
        target: The directory to make; its parent is made if need be.
        hub: The hub's base URL.
        name: The model's id, for messages.

    Raises:
        ModelNotFoundError: If the hub does not have a file.
        ModelLoadError: If the hub does not answer, breaks off, or sends other bytes than expected.
    """
    import httpx

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the last step is a rename within one file system.
        draft = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=target.parent))
    except OSError as error:
        raise ModelLoadError(f"{name}: cannot write to {target.parent}: {error}") from error
    try:
        with httpx.Client(follow_redirects=True, timeout=_TIMEOUT_S) as client:
            for file in model.files:
                url = f"{hub.rstrip('/')}/{model.repository}/resolve/{model.revision}/{file.path}"
                with _errors_named(name, url):
                    _download(client, url, file, draft / file.name, label=name)
        _publish(draft, target)
    except OSError as error:
        raise ModelLoadError(f"{name}: cannot write to {target.parent}: {error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


_guard = threading.Lock()
_locks: dict[Path, threading.Lock] = {}
_loaded: dict[Path, Embedder] = {}


def _once(directory: Path, load: Callable[[], Embedder]) -> Embedder:
    """The embedder of a directory, made by `load` on the first call for it."""
    key = directory.resolve()
    with _guard:
        lock = _locks.setdefault(key, threading.Lock())
    # Loading takes long, so it holds this model's own lock only.
    with lock:
        if key not in _loaded:
            _loaded[key] = load()
        return _loaded[key]


def _load_remote(
    name: str, model: RemoteModel, *, hub: str | None, cache_dir: Path | str | None
) -> Embedder:
    provided = _provided(name)
    if provided is not None:
        return _once(
            provided, lambda: OnnxEmbedder.load(provided, model_id=name, settings=model.settings)
        )
    if cache_dir is None:
        import platformdirs

        cache_dir = platformdirs.user_cache_path("moss-voice")
    target = Path(cache_dir) / "models" / name / model.revision

    def load() -> Embedder:
        if not _complete(target, model):
            shutil.rmtree(target, ignore_errors=True)
            fetch(model, target, hub=hub or os.environ.get(HUB_VARIABLE) or HUB, name=name)
        return OnnxEmbedder.load(target, model_id=name, settings=model.settings)

    return _once(target, load)


def _load_directory(directory: Path) -> Embedder:
    return _once(
        directory, lambda: OnnxEmbedder.load(directory, model_id=_portable_id(directory.resolve()))
    )


def _load_portable(name: str) -> Embedder:
    """Find the model that another machine knew by a directory's portable id."""
    with _guard:
        known = [embedder for embedder in _loaded.values() if embedder.model_id == name]
    if known:
        return known[0]
    folder = name.removeprefix(_SCHEME).rpartition("@")[0]
    directory = _provided(folder) if folder and Path(folder).name == folder else None
    if directory is None:
        raise ModelNotFoundError(
            f"no model {name!r} here: pass its directory as model_id, or put it into a directory and"
            f" set {DIRECTORY_VARIABLE} to that directory's parent"
        )
    embedder = _load_directory(directory)
    if embedder.model_id != name:
        raise ModelNotFoundError(
            f"{directory} holds {embedder.model_id!r}, not {name!r}: its model.onnx is another one"
        )
    return embedder


def _provided(name: str) -> Path | None:
    """The directory of that name that the user keeps models in, if there is one."""
    parent = os.environ.get(DIRECTORY_VARIABLE)
    directory = Path(parent) / name if parent else None
    return directory if directory is not None and directory.is_dir() else None


def _portable_id(directory: Path) -> str:
    graph = graph_file(directory)
    # Large graphs keep their weights in files of their own beside them: model.onnx.data, model.onnx_data.
    parts = sorted(path for path in graph.parent.glob("model.onnx*") if path.is_file())
    digest = hashlib.sha256()
    for part in parts:
        with part.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return f"{_SCHEME}{directory.name}@{digest.hexdigest()[:12]}"


def _complete(target: Path, model: RemoteModel) -> bool:
    """Whether a fetched model is there.

    The sizes are looked at, not the hashes: those were right when the directory got its name, and
    hashing 134 MB on each start would cost more than loading it.
    """
    return all(
        (target / file.name).is_file() and (target / file.name).stat().st_size == file.size
        for file in model.files
    )


def _publish(draft: Path, target: Path) -> None:
    draft.chmod(0o755)  # mkdtemp made it for this user alone
    try:
        draft.rename(target)
    except OSError:
        # Another process was first, and its files passed the same checks.
        if not target.is_dir():
            raise


@contextmanager
def _errors_named(name: str, url: str) -> Iterator[None]:
    """Turn httpx's errors into ours, which say what to do."""
    import httpx

    remedy = (
        f"check the network or {HUB_VARIABLE}, or put the model's files into"
        f" {DIRECTORY_VARIABLE}/{name}"
    )
    try:
        yield
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        kind = ModelNotFoundError if status in {404, 410} else ModelLoadError
        raise kind(f"{name}: {url} answered {status}; {remedy}") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = str(error) or type(error).__name__
        raise ModelLoadError(f"{name}: {url} cannot be fetched: {reason}; {remedy}") from error


def _download(
    client: httpx.Client, url: str, file: RemoteFile, target: Path, *, label: str
) -> None:
    """Stream one file to disk, and check that it is the one that was pinned."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    digest = hashlib.sha256()
    size = 0
    with (
        client.stream("GET", url) as response,
        target.open("wb") as out,
        Progress(*columns, console=console, disable=not console.is_terminal) as progress,
    ):
        response.raise_for_status()
        task = progress.add_task(f"{label}: {file.name}", total=file.size)
        for chunk in response.iter_bytes():
            size += len(chunk)
            # A server that never ends is not let fill the disk.
            if size > file.size:
                break
            digest.update(chunk)
            out.write(chunk)
            progress.update(task, completed=size)
    if size != file.size or digest.hexdigest() != file.sha256:
        raise ModelLoadError(
            f"{label}: {url} is not the pinned file: expected {file.size} bytes with sha256"
            f" {file.sha256}, got {'more than ' if size > file.size else ''}{min(size, file.size)} bytes"
            f" with sha256 {digest.hexdigest()}; try again, or use another {HUB_VARIABLE}"
        )
