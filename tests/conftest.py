"""Every test runs away from the user's files and from the network."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parent.parent
_tests = count(1)
# The files that take the longest: begun first, or the others would wait for one of them at the end.
_LONGEST = [
    "test_benchmarks",
    "test_livekit_jobs",
    "test_demo",
    "test_livekit",
    "test_client_over_http",
    "test_pipecat",
    "test_docs_cloud",
    "test_observability",
    "test_pipecat_ends",
    "test_server_dashboard",
    "test_server_openapi",
    "test_docs_site",
    "test_inspector_page",
    "test_redaction",
    "test_cloud_store",
    "test_quality",
    "test_replay",
    "test_recall",
    "test_examples",
    "test_inspector_serving",
    "test_server_checks",
    "test_server_process",
    "test_crash",
    "test_vectors",
    "test_handoff",
    "test_examples_agents",
    "test_inspect_cli",
    "test_server_dashboard_doors",
    "test_inspector_engine",
    "test_recording",
    "test_docs",
    "test_server_events",
    "test_livekit_simulator",
    "test_pipecat_simulator",
    "test_server_search",
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take the longest first; within a file nothing moves."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.path.stem, len(place)))


def _settle(patch: pytest.MonkeyPatch, home: Path) -> None:
    for variable in [*os.environ]:
        if variable.startswith(("MOSS_", "XDG_")) and variable != "MOSS_VOICE_DATA":
            patch.delenv(variable)
    for kind in ("DATA", "CACHE", "CONFIG", "STATE"):
        patch.setenv(f"XDG_{kind}_HOME", str(home / kind.lower()))
    if sys.platform == "darwin":
        patch.setenv("HOME", str(home))


@pytest.fixture(scope="session", autouse=True)
def _home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Settle in a directory of this run's own before any fixture of a module does anything."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        _settle(patch, home / "shared")
        yield home


@pytest.fixture(autouse=True)
def _no_place_of_the_users(_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point the platform's directories to one of this test's own, and forget the user's settings."""
    _settle(monkeypatch, _home / str(next(_tests)))


def _stays_here(family: int, address: Any) -> bool:
    if family not in (socket.AF_INET, socket.AF_INET6):
        return True
    host = address[0]
    if host in ("localhost", ""):
        return True
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def _no_network_but_loopback(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse every connection that leaves this machine, and fail the test that tried one.

    The failure comes at the end too, for code that takes a refused connection in its stride.
    """
    tried: list[str] = []
    real_lookup = socket.getaddrinfo

    def refuse(what: str) -> None:
        tried.append(what)
        raise ConnectionRefusedError(f"tests have no network: {what}")

    def guarded(name: str) -> Any:
        real = getattr(socket.socket, name)

        def call(self: socket.socket, *args: Any) -> Any:
            # sendto takes its address last, the others first.
            address = args[-1] if name == "sendto" else args[0]
            if not _stays_here(self.family, address):
                refuse(f"{name} {address[0]}")
            return real(self, *args)

        return call

    def lookup(host: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name is not None and not _stays_here(socket.AF_INET, (name,)):
            refuse(f"lookup of {name}")
        return real_lookup(host, *args, **options)

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, guarded(name))
    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    yield
    if tried:
        pytest.fail(f"the test reached for the network: {', '.join(tried)}", pytrace=False)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Return the directory of the evaluation data: `MOSS_VOICE_DATA`, or beside the project."""
    given = os.environ.get("MOSS_VOICE_DATA")
    shared = _ROOT.parent / "shared"
    if not given and not shared.is_dir():
        pytest.skip("no evaluation data: ../shared is not here and MOSS_VOICE_DATA is not set")
    folder = Path(given) if given else shared / "data"
    if not (folder / "calls" / "calls.dev.jsonl").is_file():
        pytest.fail(f"{folder} holds no calls/calls.dev.jsonl", pytrace=False)
    return folder
