"""`moss-voice inspect` and `recordings` as somebody types them: after a demo, on files, and on what is not there."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner, Result

from moss_voice import demo
from moss_voice.call.recording import find_recordings, read_recording
from moss_voice.cli.app import app

COMMAND = (sys.executable, "-m", "moss_voice.cli")


class Home:
    """A user's directories, with a demo played in them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        kinds = ("DATA", "CACHE", "CONFIG", "STATE")
        self.environ = {
            **{key: value for key, value in os.environ.items() if not key.startswith("MOSS_")},
            **{f"XDG_{kind}_HOME": str(root / kind.lower()) for kind in kinds},
            "HOME": str(root),
        }

    def run(self, *arguments: str, expect: int = 0) -> Result:
        """Run a command in this process, where the model is loaded once."""
        forgotten = {key: None for key in os.environ if key.startswith("MOSS_")}
        done = CliRunner().invoke(app, list(arguments), env={**forgotten, **self.environ})
        assert done.exit_code == expect, done.output
        return done

    def told(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json").stdout)

    @contextmanager
    def served(self, *arguments: str) -> Iterator[str]:
        """Serve a call's pages, and end it as Ctrl-C does."""
        process = subprocess.Popen(
            [*COMMAND, "inspect", *arguments, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ,
            cwd=self.root,
        )
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.communicate()[1]
            yield json.loads(line)["url"]
        finally:
            process.send_signal(signal.SIGINT)
            _, errors = process.communicate(timeout=30)
        assert process.returncode == 0, errors
        assert errors == ""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Home:
    made = Home(tmp_path_factory.mktemp("home"))
    told = made.run("demo", "--host", "none", "--deadline-ms", "60000").stdout
    assert "moss-voice inspect demo" in told
    return made


def test_before_any_demo_it_says_what_to_do(tmp_path: Path) -> None:
    """Nothing recorded: the way to a recording is told, with the exit code of what is not there."""
    home = Home(tmp_path)
    assert "run `moss-voice demo`" in home.run("inspect", "demo", expect=3).stderr
    assert "MOSS_VOICE_RECORD=1" in home.run("inspect", "call-9", expect=3).stderr
    assert "No recordings" in home.run("recordings", "list").stdout


def test_the_demo_is_looked_at_and_asked(home: Home) -> None:
    """The page has turn 14 and what it recalled; a search with another alpha and a comparison answer."""
    with home.served("demo") as url:
        page = httpx.get(url)
        assert page.status_code == 200
        assert "how long does that take" in page.text
        assert "faq#when-can-an-engineer-come" in page.text
        assert "Content-Security-Policy" in page.headers
        assert httpx.get(url.rsplit("/", 2)[0] + "/").status_code == 404


def test_a_file_of_it_needs_nothing_and_compares(home: Home, tmp_path: Path) -> None:
    """One file, with a comparison in it; nothing in it is loaded from anywhere."""
    out = tmp_path / "call.html"
    told = home.told("inspect", "demo", "--out", str(out), "--against", "alpha=0.4")
    text = out.read_text()
    assert told == {"out": str(out), "bytes": len(text.encode()), "redacted": True}
    assert "alpha=0.4" in text
    assert "how long does that take" in text
    assert not re.search(r"""(?:src|href)\s*=\s*["'](?!#)""", text)
    assert str(home.root) not in text


def test_a_file_is_redacted_unless_somebody_says_otherwise(home: Home, tmp_path: Path) -> None:
    """A spoken card number of a replayed call is not in the file, and is with --no-redact."""
    calls = tmp_path / "calls.jsonl"
    turns = [
        {"i": 1, "speaker": "agent", "text": "your card number please"},
        {"i": 2, "speaker": "user", "text": "it is 4111 1111 1111 1111 thank you"},
        {"i": 3, "speaker": "agent", "text": "thank you"},
        {"i": 4, "speaker": "user", "text": "which card did I give you?"},
    ]
    calls.write_text(json.dumps({"id": "card-call", "turns": turns}) + "\n")
    out = tmp_path / "call.html"
    home.run("inspect", str(calls), "--out", str(out))
    assert "which card did I give you?" in out.read_text()
    assert "4111 1111" not in out.read_text()
    home.run("inspect", str(calls), "--out", str(out), "--no-redact")
    assert "4111 1111" in out.read_text()


def test_a_file_of_calls_is_played_with_its_knowledge(home: Home, tmp_path: Path) -> None:
    """The FAQ's file is its knowledge; of several calls one must be named; what is no call is refused."""
    faq = tmp_path / "faq.md"
    faq.write_text("# Refunds\n\n## How long does a refund take?\n\nFive working days.\n")
    calls = tmp_path / "calls.jsonl"
    lines = [
        {
            "id": name,
            "turns": [
                {"i": 1, "speaker": "agent", "text": "hello"},
                {"i": 2, "speaker": "user", "text": "how long does my refund take?"},
            ],
        }
        for name in ("one", "two")
    ]
    calls.write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused = home.run("inspect", str(calls), "--knowledge", str(faq), expect=1).stderr
    assert "holds 2 calls: name one with --call" in refused
    with home.served(str(calls), "--call", "two", "--knowledge", str(faq)) as url:
        assert "Five working days." in httpx.get(url).text
    assert (
        "for a file of calls"
        in home.run("inspect", "demo", "--knowledge", str(faq), expect=1).stderr
    )


def test_wrong_settings_are_told(home: Home, tmp_path: Path) -> None:
    """With the names that there are; nothing is written."""
    out = tmp_path / "call.html"
    told = home.run("inspect", "demo", "--out", str(out), "--against", "beta=1", expect=1).stderr
    assert "expected NAME=VALUE" in told
    assert not out.exists()
    assert (
        "cannot be written" in told
        or "No such file"
        in home.run(
            "inspect", "demo", "--out", str(tmp_path / "none" / "call.html"), expect=1
        ).stderr
    )


def test_recorded_calls_are_listed_opened_by_name_and_deleted(home: Home, tmp_path: Path) -> None:
    """What `replay --record` keeps can be found by the call's id, by its path, and goes when told to."""
    script = tmp_path / "calls.jsonl"
    turns = [
        {"i": turn.number, "speaker": turn.speaker, "text": turn.text}
        for turn in demo.call().spoken[:6]
    ]
    script.write_text(json.dumps({"id": "call-7", "turns": turns}) + "\n")
    home.run("replay", str(script), "--record", "--brief")
    listed = home.told("recordings", "list")
    assert [each["call"] for each in listed] == ["call-7"]
    path = Path(listed[0]["path"])
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert len(read_recording(path).turns) == 6
    assert "call-7" in home.run("recordings", "list").stdout
    out = tmp_path / "call.html"
    for name in ("call-7", str(path)):
        home.run("inspect", name, "--out", str(out))
        assert "is not here" not in out.read_text()
        out.unlink()
    assert (
        "no recording of other"
        in home.run("recordings", "delete", "other", "--yes", expect=3).stderr
    )
    home.run("recordings", "delete", "call-7", "--older-than", "1d", "--yes")
    assert path.exists()
    assert home.told("recordings", "delete", "call-7", "--yes") == {"deleted": [str(path)]}
    assert not path.exists()
    assert "expected ids of calls" in home.run("recordings", "delete", "--yes", expect=2).stderr


def test_a_second_demo_takes_the_place_of_the_first(home: Home) -> None:
    """One demo is kept, whole, and nothing half-done beside it."""
    data = home.root / "data" / "moss_voice"
    (before,) = find_recordings(data / "demo" / "recordings")
    home.run("demo", "--host", "none")
    (after,) = find_recordings(data / "demo" / "recordings")
    assert after != before
    assert [path.name for path in data.iterdir() if path.name.startswith("demo")] == ["demo"]
