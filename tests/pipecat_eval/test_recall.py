"""Pipecat's own `pipecat eval` talks to a bot on Pipecat's own runner, in text, without a key.

The bot and the evaluation are processes of their own; `sitecustomize.py` keeps them on this machine.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent
PATIENCE_S = 90.0
# What the scenario's caller says first and asks for last, and the window of the bot's model.
FACT = "KX-4417"
WINDOW = 2


@dataclass(slots=True)
class Bot:
    """A bot that is served, and what it told."""

    url: str = ""
    log: list[str] = field(default_factory=list)
    # What its model was shown for each reply.
    shown: list[list[str]] = field(default_factory=list)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """Return an environment in which nothing of the user's is read, written or reached."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PIPECAT_", "MOSS_"))}
    kinds = ("DATA", "CACHE", "CONFIG", "STATE")
    return {
        **kept,
        **{f"XDG_{kind}_HOME": str(tmp_path / kind.lower()) for kind in kinds},
        "MOSS_VOICE_CLOUD": str(tmp_path / "cloud"),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(FOLDER), kept.get("PYTHONPATH")])),
        "PYTHONUTF8": "1",
        "PYTHON_DOTENV_DISABLED": "1",
        "PIPECAT_HUB_CHECK": "0",
    }


async def start(folder: Path, env: Mapping[str, str], *command: str) -> Any:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=folder, env=env, stdout=pipe, stderr=pipe
    )


@asynccontextmanager
async def served(folder: Path, env: Mapping[str, str], *options: str) -> AsyncIterator[Bot]:
    """Serve the bot on a free port until the block ends; then it is all told."""
    bot = Bot()
    command = (str(FOLDER / "bot.py"), "--host", "127.0.0.1", "--port", "0", *options)
    process = await start(folder, env, *command)
    is_up = asyncio.Event()

    async def follow() -> None:
        async for line in process.stderr:
            bot.log.append(line.decode())
            if found := re.search(r"running on http://(127\.0\.0\.1:\d+)", bot.log[-1]):
                bot.url = f"ws://{found[1]}/ws"
                is_up.set()
        is_up.set()

    async def listen() -> None:
        async for line in process.stdout:
            # The runner tells of itself here too.
            if line.startswith(b"["):
                bot.shown.append(json.loads(line))

    try:
        async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
            tasks.create_task(follow())
            tasks.create_task(listen())
            await is_up.wait()
            assert bot.url, "".join(bot.log)
            yield bot
            process.terminate()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def evaluated(folder: Path, env: Mapping[str, str], url: str) -> tuple[int, str]:
    """Run the scenario with `pipecat eval run`; return its exit code and what it told."""
    command = ("-m", "pipecat.cli.main", "eval", "run", str(FOLDER / "recall.yaml"))
    options = ("--bot-url", url, "--logs-dir", str(folder), "--verbose")
    process = await start(folder, env, *command, *options)
    try:
        told, log = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return process.returncode, told.decode() + log.decode()


async def test_the_scenario_passes_with_the_memory(tmp_path: Path, env: dict[str, str]) -> None:
    """What has left the model's window is answered right, from the recalled block alone."""
    async with served(tmp_path, env) as bot:
        code, told = await evaluated(tmp_path, env, bot.url)
    assert code == 0, told
    assert "1/1 passed" in told
    assert "reached for the network" not in told + "".join(bot.log)
    asked = bot.shown[4]
    (block,) = [text for text in asked if FACT in text]
    assert block.startswith("<call_memory>")
    assert len(asked) == WINDOW + 1


async def test_the_scenario_fails_without_the_memory(tmp_path: Path, env: dict[str, str]) -> None:
    """The same bot with the same window and no memory fails at that question, and not before."""
    async with served(tmp_path, env, "--without-memory") as bot:
        code, told = await evaluated(tmp_path, env, bot.url)
    assert code == 1, told
    assert "0/1 passed, 1 failed" in told
    assert re.findall(r"• turn (\d+)", told) == ["4"], told
    assert "text 'I do not know.' contains 'do not know'" in told
    assert "reached for the network" not in told + "".join(bot.log)
    assert len(bot.shown[4]) == WINDOW
    assert FACT not in "".join(bot.shown[4])
