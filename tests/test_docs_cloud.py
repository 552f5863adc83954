"""Every command of docs/cloud.md runs as it stands, section by section, against real servers."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from tests.s3_server import s3_server

PAGE = Path(__file__).parents[1] / "docs" / "cloud.md"


def sections() -> dict[str, list[str]]:
    """Return the shell blocks of each section, in order."""
    found: dict[str, list[str]] = {}
    for part in re.split(r"^## ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title = part.partition("\n")[0]
        blocks = re.findall(r"^```sh\n(.*?)^```", part, re.DOTALL | re.MULTILINE)
        if blocks:
            found[title] = blocks
    return found


SECTIONS = sections()
# Goes on where another one ends.
AFTER = {"Several servers": ["One server"]}


def free_ports(n: int) -> list[int]:
    sockets = [socket.socket() for _ in range(n)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def run(title: str, folder: Path, environ: dict[str, str]) -> str:
    """Run a section's commands in one shell, and end whatever they leave running."""
    blocks = [block for part in (*AFTER.get(title, ()), title) for block in SECTIONS[part]]
    script = "\n".join(blocks)
    for port, free in zip(("8333", "8334"), free_ports(2), strict=True):
        script = script.replace(port, str(free))
    command = f"{shlex.quote(sys.executable)} -m moss_voice.cli"
    functions = f'moss-voice() {{ {command} "$@"; }}\n'
    log = folder / "log"
    with (
        log.open("wb") as written,
        subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", functions + script],
            cwd=folder,
            env={
                **os.environ,
                "PYTHONPATH": str(PAGE.parents[1]),
                "XDG_DATA_HOME": str(folder / "data"),
                "XDG_CACHE_HOME": str(folder / "cache"),
                **environ,
            },
            stdin=subprocess.DEVNULL,
            stdout=written,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        ) as process,
    ):
        try:
            code = process.wait(180)
        finally:
            # The servers that the commands left in the background.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    told = log.read_text(encoding="utf-8")
    assert code == 0, told[-3000:]
    return told


@pytest.mark.parametrize("title", [title for title in SECTIONS if title != "An object store"])
def test_the_commands_run(title: str, tmp_path: Path) -> None:
    """Each section works from an empty directory, or from where the one before it ends."""
    told = run(title, tmp_path, {})
    assert "Traceback" not in told


def test_the_commands_for_an_object_store_run(tmp_path: Path) -> None:
    """S3's section works against a real S3 server, whose endpoint is all that the environment adds."""
    with s3_server() as server:
        told = run("An object store", tmp_path, server.environ())
    assert "We open at seven" in told


def test_nothing_is_left_out() -> None:
    """The page shows what it promises to show."""
    assert set(SECTIONS) >= {
        "A laptop", "One server", "Several servers", "An object store", "Versions", "Private"
    }  # fmt: skip
