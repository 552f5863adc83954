"""The registry: names, directories, portable ids, and fetching over (loopback) HTTP."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from moss_voice import models
from moss_voice.embedding import Embedder, ModelSettings
from moss_voice.errors import InvalidArgumentError, ModelLoadError, ModelNotFoundError
from moss_voice.models import DEFAULT_MODEL, REMOTE, RemoteFile, RemoteModel, load_embedder

TOKENIZER = (
    b'{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,'
    b' "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,'
    b' "model": {"type": "WordLevel", "vocab": {"[UNK]": 0, "a": 1, "b": 2, "q": 3}, "unk_token": "[UNK]"}}'
)


def graph_bytes(seed: int = 0, *, external: str | None = None) -> bytes:
    """A graph whose token vectors are rows of a random 4 x 3 table."""
    table = np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32)
    tensor = numpy_helper.from_array(table, "table")
    if external is not None:
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=external)
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])],
        "tiny",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n", "t"])],
        [helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", "t", 3])],
        [tensor],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def write_model(directory: Path, seed: int = 0) -> Path:
    directory.mkdir(parents=True)
    (directory / "model.onnx").write_bytes(graph_bytes(seed))
    (directory / "tokenizer.json").write_bytes(TOKENIZER)
    return directory


@dataclass
class Hub:
    """A hub on loopback: what it serves, and what was asked of it."""

    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    status: int = 200
    short_by: int = 0
    redirect: bool = False
    url: str = ""


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            if state.redirect and not self.path.startswith("/cdn"):
                self.send_response(302)
                self.send_header("Location", f"/cdn{self.path}")
                self.end_headers()
                return
            body = state.files.get(self.path.removeprefix("/cdn"))
            if body is None or state.status != 200:
                self.send_error(404 if body is None else state.status)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) - state.short_by])

        def log_message(self, *args: object) -> None:
            """Keep the test's output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def remote(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> RemoteModel:
    """A registered remote model `tiny`, served by the hub."""
    contents = {"onnx/model.onnx": graph_bytes(), "tokenizer.json": TOKENIZER}
    model = RemoteModel(
        repository="someone/tiny",
        revision="abc123",
        files=tuple(
            RemoteFile(path, len(content), hashlib.sha256(content).hexdigest())
            for path, content in contents.items()
        ),
        settings=ModelSettings(pooling="cls", max_tokens=8, query_prompt="q "),
    )
    hub.files = {f"/someone/tiny/resolve/abc123/{path}": data for path, data in contents.items()}
    monkeypatch.setitem(REMOTE, "tiny", model)
    monkeypatch.delenv(models.HUB_VARIABLE, raising=False)
    monkeypatch.delenv(models.DIRECTORY_VARIABLE, raising=False)
    return model


def left_in(directory: Path) -> list[str]:
    return sorted(
        str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()
    )


def test_the_default_model_is_bundled_and_shared() -> None:
    """`moss-minilm` loads from the package itself, and every caller gets the same object."""
    embedder = load_embedder()
    assert load_embedder(DEFAULT_MODEL) is embedder
    assert (embedder.model_id, embedder.dim) == ("moss-minilm", 384)


def test_custom_embeds_nothing() -> None:
    """`custom` is a known id with nothing to load."""
    with pytest.raises(InvalidArgumentError, match="embedding"):
        load_embedder("custom")


def test_an_unknown_model_is_told_what_is_known() -> None:
    """The error lists every id and says how to give a directory."""
    with pytest.raises(ModelNotFoundError) as caught:
        load_embedder("moss-gigantolm")
    for expected in (*models.MODEL_IDS, "moss-gigantolm", "model.onnx", "tokenizer.json"):
        assert expected in str(caught.value)


def test_the_pinned_model_is_pinned() -> None:
    """`moss-mediumlm` names a commit, not a branch, and a sha256 for each file."""
    model = REMOTE["moss-mediumlm"]
    assert len(bytes.fromhex(model.revision)) == 20
    assert {file.name for file in model.files} == {"model.onnx", "tokenizer.json"}
    assert all(len(bytes.fromhex(file.sha256)) == 32 and file.size > 0 for file in model.files)
    assert model.settings.pooling == "cls"
    assert model.settings.query_prompt.endswith(": ")


# -- directories


def test_a_directory_is_a_model(tmp_path: Path) -> None:
    """A path loads, as str or Path, once, however it is written."""
    directory = write_model(tmp_path / "mine")
    embedder = load_embedder(directory)
    assert load_embedder(str(directory)) is embedder
    assert load_embedder(directory / ".." / "mine") is embedder
    assert embedder.embed(["a b"]).shape == (1, 3)


def test_a_directorys_id_is_portable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored id names folder and content, not the place, and loads elsewhere by that name."""
    here = load_embedder(write_model(tmp_path / "here" / "mine"))
    there = load_embedder(write_model(tmp_path / "there" / "mine"))
    other = load_embedder(write_model(tmp_path / "other" / "mine", seed=1))
    assert here.model_id.startswith("path:mine@")
    assert here.model_id == there.model_id != other.model_id
    assert load_embedder(here.model_id).model_id == here.model_id
    monkeypatch.setattr(models, "_loaded", {})
    with pytest.raises(ModelNotFoundError, match=models.DIRECTORY_VARIABLE):
        load_embedder(here.model_id)
    monkeypatch.setenv(models.DIRECTORY_VARIABLE, str(tmp_path / "there"))
    assert load_embedder(here.model_id).model_id == here.model_id
    monkeypatch.setattr(models, "_loaded", {})
    monkeypatch.setenv(models.DIRECTORY_VARIABLE, str(tmp_path / "other"))
    with pytest.raises(ModelNotFoundError, match="another one"):
        load_embedder(here.model_id)


@pytest.mark.parametrize("model_id", ["path:", "path:@1", "path:../x@1", "path:/etc@1", "path:x"])
def test_a_crafted_id_reaches_no_other_directory(
    model_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An id out of an index, which somebody else wrote, cannot leave the user's model directory."""
    write_model(tmp_path / "x")
    (tmp_path / "models").mkdir()
    monkeypatch.setenv(models.DIRECTORY_VARIABLE, str(tmp_path / "models"))
    with pytest.raises(ModelNotFoundError, match="no model"):
        load_embedder(model_id)


def test_weights_beside_the_graph_are_part_of_the_id(tmp_path: Path) -> None:
    """Two graphs that differ in their data file alone have different ids."""
    ids = set()
    for seed in (0, 1):
        directory = write_model(tmp_path / str(seed) / "mine")
        (directory / "model.onnx").write_bytes(graph_bytes(external="model.onnx.data"))
        table = np.random.default_rng(seed).standard_normal((4, 3)).astype(np.float32)
        (directory / "model.onnx.data").write_bytes(table.tobytes())
        ids.add(load_embedder(directory).model_id)
    assert len(ids) == 2


def test_concurrent_first_calls_load_once(tmp_path: Path) -> None:
    """Threads that ask for the same model at once share one object; a failure is not remembered."""
    directory = write_model(tmp_path / "mine")
    graph = (directory / "model.onnx").read_bytes()
    (directory / "model.onnx").write_bytes(b"broken")
    with pytest.raises(ModelLoadError):
        load_embedder(directory)
    (directory / "model.onnx").write_bytes(graph)
    barrier = threading.Barrier(8)

    def load(_: int) -> Embedder:
        barrier.wait()
        return load_embedder(directory)

    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(load, range(8)))) == 1


# -- fetching


@pytest.mark.parametrize("redirect", [False, True])
def test_a_model_is_fetched_once_and_kept(
    hub: Hub, remote: RemoteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redirect: bool
) -> None:
    """The first use fetches each file, through redirects too; later processes fetch nothing."""
    hub.redirect = redirect
    embedder = load_embedder("tiny", hub=hub.url, cache_dir=tmp_path)
    assert embedder.model_id == "tiny"
    assert embedder.embed(["a b"]) == pytest.approx(embedder.embed(["a"]))  # cls pooling
    assert not np.allclose(embedder.embed_query("a"), embedder.embed(["a"])[0])  # query prompt
    assert left_in(tmp_path) == [
        f"models/tiny/abc123/{name}" for name in ("model.onnx", "tokenizer.json")
    ]
    asked = len(hub.asked)
    assert asked == 2 * (1 + redirect)
    monkeypatch.setattr(models, "_loaded", {})  # as a new process would see it
    assert load_embedder("tiny", hub="http://127.0.0.1:1", cache_dir=tmp_path) is not embedder
    assert len(hub.asked) == asked


def test_the_hub_can_be_another(
    hub: Hub, remote: RemoteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MOSS_VOICE_HUB names a mirror."""
    monkeypatch.setenv(models.HUB_VARIABLE, hub.url + "/")
    load_embedder("tiny", cache_dir=tmp_path)
    assert hub.asked[0] == "/someone/tiny/resolve/abc123/onnx/model.onnx"


def test_a_provided_directory_is_used_in_place_of_the_hub(
    hub: Hub, remote: RemoteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MOSS_VOICE_MODEL_DIR/<id> needs no network, and keeps the model's id and settings."""
    write_model(tmp_path / "tiny")
    monkeypatch.setenv(models.DIRECTORY_VARIABLE, str(tmp_path))
    embedder = load_embedder("tiny", hub=hub.url, cache_dir=tmp_path / "cache")
    assert embedder.model_id == "tiny"
    assert embedder.embed(["a b"]) == pytest.approx(embedder.embed(["a"]))
    assert hub.asked == []


def corrupt(hub: Hub) -> None:
    path = next(path for path in hub.files if path.endswith("model.onnx"))
    hub.files[path] = hub.files[path][:-1] + b"?"


def lengthen(hub: Hub) -> None:
    path = next(path for path in hub.files if path.endswith("tokenizer.json"))
    hub.files[path] += b" " * 1000


@pytest.mark.parametrize(
    ("harm", "error", "message"),
    [
        (corrupt, ModelLoadError, "sha256"),
        (lengthen, ModelLoadError, "more than"),
        (lambda hub: setattr(hub, "short_by", 5), ModelLoadError, "cannot be fetched"),
        (lambda hub: setattr(hub, "status", 503), ModelLoadError, "503"),
        (lambda hub: setattr(hub, "status", 403), ModelLoadError, "403"),
        (lambda hub: hub.files.popitem(), ModelNotFoundError, "404"),
        (lambda hub: hub.files.clear(), ModelNotFoundError, "404"),
        (
            lambda hub: setattr(hub, "url", "http://127.0.0.1:1"),
            ModelLoadError,
            "cannot be fetched",
        ),
        (lambda hub: setattr(hub, "url", "no url at all"), ModelLoadError, "cannot be fetched"),
    ],
)
def test_a_fetch_that_fails_leaves_nothing(
    hub: Hub,
    remote: RemoteModel,
    tmp_path: Path,
    harm: Callable[[Hub], None],
    error: type[Exception],
    message: str,
) -> None:
    """Whatever goes wrong is a clear error with what to do; nothing is left, and the next try works."""
    files, url = dict(hub.files), hub.url
    harm(hub)
    with pytest.raises(error, match=message) as caught:
        load_embedder("tiny", hub=hub.url, cache_dir=tmp_path)
    assert models.HUB_VARIABLE in str(caught.value)
    assert left_in(tmp_path) == []
    hub.files, hub.url, hub.status, hub.short_by = files, url, 200, 0
    assert load_embedder("tiny", hub=hub.url, cache_dir=tmp_path).dim == 3


def test_an_incomplete_directory_is_fetched_anew(
    hub: Hub, remote: RemoteModel, tmp_path: Path
) -> None:
    """A kept model with a file of the wrong size is not loaded; it is fetched again."""
    target = tmp_path / "models" / "tiny" / "abc123"
    write_model(target)
    (target / "tokenizer.json").write_bytes(b"{")
    assert load_embedder("tiny", hub=hub.url, cache_dir=tmp_path).dim == 3
    assert (target / "tokenizer.json").read_bytes() == TOKENIZER


def test_whoever_fetches_first_is_kept(hub: Hub, remote: RemoteModel, tmp_path: Path) -> None:
    """Two processes that fetch at once end with one whole model and no leftovers."""
    target = tmp_path / "model"
    models.fetch(remote, target, hub=hub.url, name="tiny")
    before = (target / "model.onnx").stat().st_ino
    models.fetch(remote, target, hub=hub.url, name="tiny")
    assert (target / "model.onnx").stat().st_ino == before
    assert left_in(tmp_path) == ["model/model.onnx", "model/tokenizer.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_place_that_cannot_be_written_is_a_load_error(
    hub: Hub, remote: RemoteModel, tmp_path: Path
) -> None:
    """A cache directory that is a file is our error, not a bare OSError."""
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ModelLoadError, match="cannot write"):
        load_embedder("tiny", hub=hub.url, cache_dir=tmp_path / "file")


def test_fetched_graphs_are_checked_before_they_are_used(
    hub: Hub, remote: RemoteModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file with the pinned hash that is no graph is a load error too."""
    junk = b"not a graph"
    path = "/someone/tiny/resolve/abc123/onnx/model.onnx"
    hub.files[path] = junk
    first = replace(remote.files[0], size=len(junk), sha256=hashlib.sha256(junk).hexdigest())
    monkeypatch.setitem(REMOTE, "tiny", replace(remote, files=(first, remote.files[1])))
    with pytest.raises(ModelLoadError, match="onnxruntime"):
        load_embedder("tiny", hub=hub.url, cache_dir=tmp_path)


# -- the bundled files


def test_the_bundled_model_is_whole_and_small() -> None:
    """Graph, weights, tokenizer, settings, licence and card are in the package, within 25 MB."""
    directory = Path(models.__file__).parent / "minilm"
    names = set(left_in(directory))
    assert names >= {
        "1_Pooling/config.json",
        "LICENSE",
        "MODEL_CARD.md",
        "config_sentence_transformers.json",
        "model.onnx",
        "model.onnx.data",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
    }
    assert sum((directory / name).stat().st_size for name in names) < 25e6
    assert "Apache License" in (directory / "LICENSE").read_text()
    assert onnx.load(directory / "model.onnx", load_external_data=False).ir_version <= 10
