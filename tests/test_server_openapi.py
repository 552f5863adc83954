"""The server is what its own OpenAPI document says: tried by schemathesis on a real process, and read."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server_process import Server, serve
from tests.server_samples import MODEL, Door

ROOT = Path(__file__).resolve().parent.parent
PROJECT = "tried"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    options = ("--requests-per-s", "0", "--log-level", "warning")
    with serve(tmp_path_factory.mktemp("store"), *options) as running:
        yield running


@pytest.fixture(scope="module")
def document(server: Server) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{server.url}/openapi.json").json()
    return found


def operations(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Return every method and path that is described."""
    return [(method, path) for path, ops in document["paths"].items() for method in ops]


def try_all(
    server: Server, document: dict[str, Any], where: Path, *options: str
) -> subprocess.CompletedProcess[str]:
    """Let schemathesis make requests of one project, from a seed, and judge the answers."""
    # With the project's name in the path: a made-up one is a 401, and nothing else would be tried.
    document = copy.deepcopy(document)
    paths = {path.replace("{project}", PROJECT): ops for path, ops in document["paths"].items()}
    for operation in (op for ops in paths.values() for op in ops.values()):
        given = operation.get("parameters", [])
        operation["parameters"] = [one for one in given if one["name"] != "project"]
    where.joinpath("openapi.json").write_text(json.dumps({**document, "paths": paths}))
    return subprocess.run(
        [
            *(sys.executable, "-m", "schemathesis.cli", "run", "openapi.json"),
            *("--url", server.url, "--seed", "20261120", "--no-shrink", "--workers", "1"),
            # A stream has no end.
            *("--exclude-path-regex", "/events$", "--continue-on-failure", "--no-color"),
            *options,
        ],
        cwd=where,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )


@pytest.mark.slow
def test_the_server_is_as_it_is_described(
    server: Server, document: dict[str, Any], tmp_path: Path
) -> None:
    """Whatever is sent, statuses, types, shapes and headers are as described, and no answer is a 5xx."""
    _, key = server.project(PROJECT)
    door = Door(server.url, PROJECT, key)
    door.push("call-42", "a", "b")
    door.http.post(
        door.path("call-42", "/documents"),
        json={
            "model_id": MODEL,
            "documents": [{"id": "c", "text": "t", "embedding": [1, 0, 0, 0]}],
        },
    )
    done = try_all(
        server,
        document,
        tmp_path,
        *("--header", f"Authorization: Bearer {key}", "--max-examples", "10"),
        # What a shape cannot say: the hash in the path, the order of versions, that a vector is not zero.
        *("--exclude-checks", "positive_data_acceptance"),
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert f"{len(operations(document)) - 1} selected" in done.stdout
    assert door.http.get(door.path("call-42", "/documents")).status_code in (200, 404)
    door.close()


@pytest.mark.slow
def test_without_a_key_everything_is_as_described_too(
    server: Server, document: dict[str, Any], tmp_path: Path
) -> None:
    """Without a key whatever is sent is a 401 in the described shape, and changes nothing."""
    server.project(PROJECT)
    before = sorted(Path(server.store).rglob("*"))
    done = try_all(
        server,
        document,
        tmp_path,
        *("--phases", "examples,coverage", "--include-path-regex", "^/v1"),
        *("--checks", "not_a_server_error,status_code_conformance,content_type_conformance"),
        *("--checks", "response_schema_conformance,response_headers_conformance"),
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    below = [path for _, path in operations(document) if path.startswith("/v1")]
    assert f"{len(below) - 1} selected" in done.stdout
    assert sorted(Path(server.store).rglob("*")) == before


def test_every_path_below_v1_says_that_it_needs_a_key(document: dict[str, Any]) -> None:
    """Each operation names the bearer scheme and its 401, and none the framework's own errors."""
    assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation.get("description"), where
            assert "422" not in operation["responses"], where
            if path.startswith("/v1"):
                assert operation["security"] == [{"key": []}], where
                assert {"400", "401", "429", "503"} <= operation["responses"].keys(), where
            else:
                assert "security" not in operation, where


def test_every_shape_that_is_named_is_there(document: dict[str, Any]) -> None:
    """No reference leads nowhere, and nobody outside the document is needed to read it."""
    text = json.dumps(document)
    names = set(document["components"]["schemas"])
    referred = {part.partition('"')[0] for part in text.split('"#/components/schemas/')[1:]}
    assert referred <= names
    assert "HTTPValidationError" not in names
    assert text.count('"$ref": "') == text.count('"$ref": "#/components/schemas/')
    assert "\\\\z" not in text


def test_the_written_contract_names_every_path(document: dict[str, Any]) -> None:
    """docs/server-api.md tells of each method and path that the server has, and of each metric."""
    contract = (ROOT / "docs" / "server-api.md").read_text()
    for path, operations in document["paths"].items():
        short = path.replace("/v1/projects/{project}/indexes/{index}/", ".../{index}/")
        for method in operations:
            said = (
                f"`{method.upper()} {path}`" in contract
                or f"`{method.upper()} {short}`" in contract
                or (path.endswith("/jobs/{job_id}") and f"{path}`, `PUT` the same" in contract)
            )
            assert said, f"{method} {path}"
