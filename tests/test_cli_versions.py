"""The command line on versions, retention, encryption and forgetting: nothing goes unasked or untold."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from typer.testing import CliRunner

from moss_voice import DocumentInfo, MossClient
from moss_voice.cli.app import app
from moss_voice.cli.indexes import Column, period, tabled
from moss_voice.cli.shell import Shell, command, counted
from moss_voice.cloud.sealing import SealingKey, new_key
from moss_voice.errors import (
    EncryptionKeyError,
    MossError,
    PermissionDeniedError,
    RateLimitedError,
    TooLargeError,
)

MODULE = (sys.executable, "-m", "moss_voice.cli")
CANARY = "swordfish-4471"
CALLER = "c-17-of-acme"
HOUR_S = 3600


def run(*args: str | Path, code: int = 0, width: int = 80, stderr: bool = False) -> str:
    """Run a command; return its stdout, or its stderr where it is to fail."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], env={"COLUMNS": f"{width}"})
    assert result.exit_code == code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    # What somebody wants forgotten is not for a log of commands.
    assert "export" in args or CALLER not in result.output
    if code:
        return " ".join(result.stderr.replace("│", " ").split())
    assert stderr or result.stderr == ""
    return result.stdout


def run_json(*args: str | Path, code: int = 0) -> Any:
    """Run a command with --json; return its one document."""
    result = CliRunner().invoke(app, [str(arg) for arg in (*args, "--json")])
    assert result.exit_code == code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}"
    return json.loads(result.stdout)


def answered(answer: str, *args: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a command where somebody sits at a terminal and answers."""
    ours, theirs = pty.openpty()
    try:
        os.write(ours, answer.encode())
        return subprocess.run(
            [*MODULE, *map(str, args)],
            stdin=theirs,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        os.close(ours)
        os.close(theirs)


def holding(*places: Path, needle: str = CANARY) -> list[Path]:
    """Return the files below some directories that hold a text."""
    files = [path for place in places for path in place.rglob("*") if path.is_file()]
    return [path for path in files if needle.encode() in path.read_bytes()]


class Machine:
    """A cloud in a directory, and one machine's cache, journals and FAQ files."""

    def __init__(self, root: Path, name: str = "one") -> None:
        self.cloud, self.here = root / "cloud", root / name
        self.cache, self.journal = self.here / "cache", self.here / "journal"
        self.here.mkdir()
        self.at = ("--cloud", self.cloud, "--cache", self.cache, "--journal", self.journal)

    def faq(self, *rows: dict[str, Any]) -> Path:
        path = self.here / "faq.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path

    def make(self, name: str, *rows: dict[str, Any], options: tuple[str | Path, ...] = ()) -> None:
        run(*self.at, "index", "create", name, self.faq(*rows), *options)

    def add(self, name: str, *rows: dict[str, Any], options: tuple[str | Path, ...] = ()) -> None:
        run(*self.at, "index", "add", name, self.faq(*rows), *options)

    def run(self, *args: str | Path, **options: Any) -> str:
        return run(*self.at, *args, **options)

    def run_json(self, *args: str | Path, code: int = 0) -> Any:
        return run_json(*self.at, *args, code=code)

    def client(self) -> MossClient:
        return MossClient(cloud=self.cloud, cache_path=self.cache, journal_path=self.journal)

    def folder(self, index: str) -> Path:
        return self.cloud / "default" / index

    def age(self, index: str, seconds: float) -> None:
        """Make all that is stored of an index older."""
        for path in [path for path in self.folder(index).rglob("*") if path.is_file()]:
            stat = path.stat()
            os.utime(path, (stat.st_atime - seconds, stat.st_mtime - seconds))


@pytest.fixture
def here(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def key_file(here: Machine, *keys: str, name: str = "keys.txt") -> Path:
    path = here.here / name
    path.write_text("".join(key + "\n" for key in keys))
    return path


ONE, TWO, THREE = ({"id": id_, "text": f"text {id_}"} for id_ in ("one", "two", "three"))
SAID = {"id": "said", "text": f"my word is {CANARY}", "metadata": {"caller_id": CALLER}}


# --- options ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        ("demo",),
        ("query",),
        ("recover",),
        ("forget",),
        ("session", "show"),
        ("key", "new"),
        ("key", "id"),
        *(("index", name) for name in ("create", "list", "export", "history", "restore")),
        *(("index", name) for name in ("gc", "ttl", "encrypt")),
    ],
)
def test_every_command_takes_a_key_file_and_none_a_key(path: tuple[str, ...]) -> None:
    """A key on the command line would be read by whoever lists the machine's processes."""
    text = run(*path, "--help")
    for option in ("--json", "--cloud", "--key-file"):
        assert option in text
    assert "--encryption-key" not in text
    assert "--key " not in text


def test_help_tells_of_commands_and_their_options() -> None:
    """What there is, is found without the documentation."""
    assert " forget " in run("--help")
    assert " key " in run("--help")
    text = run("index", "--help")
    for name in ("history", "restore", "gc", "ttl", "encrypt"):
        assert f" {name} " in text
    for path, options in {
        ("index", "restore"): ("--yes",),
        ("index", "gc"): ("--all", "--grace", "--keep"),
        ("index", "create"): ("--ttl",),
        ("index", "encrypt"): ("--all",),
        ("index", "export"): ("--version",),
        ("session", "show"): ("--version",),
        ("forget",): ("--filter", "--field", "--equals", "--index", "--dry-run", "--yes"),
    }.items():
        text = run(*path, "--help")
        assert all(option in text for option in options)


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("index", "history", "nope"), 3, "'nope'"),
        (("index", "restore", "nope", "1", "--yes"), 3, "'nope'"),
        (("index", "restore", "help", "7", "--yes"), 3, "no version 7"),
        (("index", "restore", "help", "0", "--yes"), 2, "greater than or equal to 1"),
        (("index", "restore", "help", "1"), 2, "pass --yes"),
        (("index", "export", "help", "--version", "7"), 3, "version 7"),
        (("session", "show", "help", "--version", "7"), 3, "version 7"),
        (("index", "gc"), 2, "names of indexes, or --all"),
        (("index", "gc", "help", "--all"), 2, "names of indexes, or --all"),
        (("index", "gc", "help", "--grace", "5m"), 2, "an hour or more"),
        (("index", "gc", "help", "--grace", "soon"), 2, "such as 90s, 15m, 12h or 30d"),
        (("index", "gc", "help", "--keep", "0"), 2, "--keep"),
        (("index", "ttl", "nope", "30d"), 3, "'nope'"),
        (("index", "ttl", "nope", "off"), 3, "'nope'"),
        (("index", "ttl", "help", "soon"), 2, "such as 90s, 15m, 12h or 30d, or off"),
        (("index", "ttl", "help", "0s"), 2, "such as 90s"),
        (("index", "ttl", "help", "-3d"), 2, "-3"),
        (("index", "ttl", "help"), 2, "DURATION|off"),
        (("index", "create", "x", "{faq}", "--ttl", "30x"), 2, "such as 90s"),
        (("index", "encrypt"), 2, "names of indexes, or --all"),
        (("index", "encrypt", "help"), 4, "moss-voice key new"),
        (("index", "encrypt", "help", "--key-file", "/no/such"), 4, "/no/such cannot be read"),
        (("key", "id"), 4, "moss-voice key new"),
        (("forget",), 2, "a filter, or a field and what it equals"),
        (("forget", "--field", "caller_id", "--yes"), 2, "a filter, or a field"),
        (("forget", "--equals", CALLER, "--yes"), 2, "a filter, or a field"),
        (
            ("forget", "--field", "caller_id", "--equals", CALLER, "--filter", "{{}}", "--yes"),
            2,
            "a filter, or a field",
        ),
        (("forget", "--field", "caller_id", "--equals", CALLER), 2, "pass --yes"),
        (("forget", "--filter", "{{}}", "--yes"), 2, "field and condition"),
        (("forget", "--filter", "nonsense", "--yes"), 2, "not JSON"),
        (("forget", "--filter", f'["{CALLER}"]', "--yes"), 2, "JSON object"),
        (
            ("forget", "--filter", f'{{{{"field": "a", "condition": "{CALLER}"}}}}', "--yes"),
            2,
            "filter",
        ),
        (
            ("forget", "--field", "caller_id", "--equals", CALLER, "--index", "nope", "--yes"),
            3,
            "'nope'",
        ),
    ],
)
def test_faults_are_told(
    args: tuple[str, ...], code: int, words: str, here: Machine, clouds: Machine
) -> None:
    """What was expected, on stderr, and the exit code; never the value that is to be forgotten."""
    given = [arg.format(faq=clouds.here / "faq.jsonl") for arg in args]
    assert words in run("--cloud", clouds.cloud, *given, code=code)


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A cloud with the index `help`; tests leave it as it is."""
    made = Machine(tmp_path_factory.mktemp("clouds"))
    made.make("help", ONE)
    return made


def _raising(error: MossError) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback()
    def start(ctx: typer.Context) -> None:
        ctx.obj = Shell()

    @command(app, "raise")
    def fail(shell: Shell) -> NoReturn:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "hint"),
    [
        (EncryptionKeyError("x"), 4, "--key-file"),
        (PermissionDeniedError("x"), 4, "reads only"),
        (RateLimitedError("x", retry_after_s=3.0), 1, "try again in a while"),
        (TooLargeError("x"), 1, "smaller parts"),
    ],
)
def test_errors_of_keys_and_servers_have_hints(error: MossError, code: int, hint: str) -> None:
    """Each tells what to do."""
    result = CliRunner().invoke(_raising(error), ["raise"])
    assert result.exit_code == code
    assert result.stderr.startswith("error: x\nhint: ")
    assert hint in result.stderr


def test_small_words() -> None:
    """Plurals, and durations as the options take them."""
    assert [counted(n, "document") for n in (0, 1, 2)] == [
        "0 documents",
        "1 document",
        "2 documents",
    ]
    told = [period(seconds) for seconds in (1, 90, 5400, 86400, 2592000, 0.5)]
    assert told == ["1s", "90s", "90m", "1d", "30d", "0.5s"]


def test_a_narrow_table_keeps_what_tells_most() -> None:
    """Columns go by rank, and the first one folds rather than vanish."""
    columns = [
        Column("name", ["n" * 30], folds=True),
        Column("count", ["1"], rank=1),
        Column("model", ["a-model"], rank=2),
    ]

    def titles(width: int) -> list[object]:
        return [column.header for column in tabled(columns, width).columns]

    assert titles(40) == ["name", "count", "model"]
    assert titles(39) == ["name", "count"]
    assert titles(10) == ["name"]


# --- versions --------------------------------------------------------------------------------------


def test_history_and_restore(here: Machine) -> None:
    """Each version is told, newest first; an older one comes back as a new one."""
    here.make("help", ONE)
    here.add("help", TWO)
    assert "version 3 holds what 1 held, 1 document" in here.run(
        "index", "restore", "help", "1", "--yes"
    )
    assert "current one already" in here.run("index", "restore", "help", "3", "--yes")
    lines = here.run("index", "history", "help").splitlines()
    assert lines[0].split() == ["version", "what", "documents", "segments", "size", "when"]
    assert [line.split()[:3] for line in lines[1:]] == [
        ["3", "restore", "of"],
        ["2", "push", "2"],
        ["1", "push", "1"],
    ]
    assert "restore of 1, current" in lines[1]
    assert max(map(len, lines)) <= 80
    rows = here.run_json("index", "history", "help")
    assert [(row["version"], row["kind"], row["of"], row["doc_count"]) for row in rows] == [
        (3, "restore", 1, 1),
        (2, "push", None, 2),
        (1, "push", None, 1),
    ]
    assert [row["current"] for row in rows] == [True, False, False]
    restored = here.run_json("index", "restore", "help", "2", "--yes")
    assert (restored["version"], restored["doc_count"]) == (4, 2)
    here.run("index", "ttl", "help", "30d")
    assert here.run_json("index", "history", "help")[0]["kind"] == "upkeep"
    narrow = here.run("index", "history", "help", width=40).splitlines()
    assert narrow[0].split() == ["version", "what", "when"]
    assert max(map(len, narrow)) <= 40


def test_an_older_version_is_exported_and_shown(here: Machine) -> None:
    """As it was, though the index has gone on since; what is exported can be indexed again."""
    here.make("call", {"id": "t1", "text": "hi", "metadata": {"turn": 1, "speaker": "caller"}})
    here.add("call", {"id": "t2", "text": "bye", "metadata": {"turn": 2, "speaker": "agent"}})
    assert [d["id"] for d in here.run_json("index", "export", "call")["docs"]] == ["t1", "t2"]
    old = here.run_json("index", "export", "call", "--version", "1")
    assert [doc["id"] for doc in old["docs"]] == ["t1"]
    lines = here.run("session", "show", "call", "--version", "1").splitlines()
    assert lines[0].startswith("call: 1 document, version 1, updated 2")
    assert "hi" in lines[1]
    assert len(lines) == 2
    shown = here.run_json("session", "show", "call", "--version", "2")
    assert (shown["version"], [turn["id"] for turn in shown["turns"]]) == (2, ["t1", "t2"])


def test_restoring_asks_whoever_is_there(here: Machine) -> None:
    """Only a yes restores; the question tells what would take the place of what."""
    here.make("help", ONE)
    here.add("help", TWO)
    said_no = answered("n\n", *here.at, "index", "restore", "help", "1")
    assert said_no.returncode == 1
    assert "Put version 1 of 'help' (1 document, " in said_no.stderr
    assert "in the place of version 2 (2 documents)?" in said_no.stderr
    assert said_no.stdout == ""
    assert len(here.run_json("index", "history", "help")) == 2
    assert answered("y\n", *here.at, "index", "restore", "help", "1").returncode == 0
    assert here.run_json("index", "show", "help")["doc_count"] == 1


def test_a_question_can_be_interrupted(here: Machine) -> None:
    """Without an answer: nothing is done, and the exit code tells why."""
    here.make("help", ONE)
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*MODULE, *map(str, here.at), "index", "delete", "help"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:
            assert process.stderr is not None
            shown = b""
            while not shown.endswith(b"[y/N]: "):
                shown += process.stderr.read(1)
            process.send_signal(signal.SIGINT)
            assert process.wait(timeout=20) == 130
            assert b"error: interrupted" in process.stderr.read()
    finally:
        os.close(ours)
        os.close(theirs)
    assert here.run_json("index", "show", "help")["doc_count"] == 1


def test_what_nobody_needs_is_collected(here: Machine) -> None:
    """Old versions beyond those to keep go, in the indexes named or in all; young ones stay."""
    for name in ("a", "b"):
        here.make(name, ONE)
        here.add(name, TWO)
        here.add(name, THREE)
    assert here.run("index", "gc", "a") == "a: nothing to remove\n"
    for name in ("a", "b"):
        here.age(name, 30 * HOUR_S)
    assert (
        here.run("index", "gc", "a") == "a: nothing to remove\n"
    )  # of three versions ten are kept
    assert here.run("index", "gc", "a", "--keep", "1", "--grace", "40h") == "a: nothing to remove\n"
    assert here.run_json("index", "gc", "a", "--keep", "2") == [{"index_name": "a", "removed": 1}]
    assert here.run("index", "gc", "--all", "--keep", "1").splitlines() == [
        "a: 1 object removed",
        "b: 2 objects removed",
        "3 objects removed from 2 indexes",
    ]
    assert [row["version"] for row in here.run_json("index", "history", "b")] == [3]
    assert len(here.run_json("index", "export", "b")["docs"]) == 3


def test_leftovers_of_a_deleted_index_are_collected(here: Machine) -> None:
    """A push that broke off leaves a segment; it is noted first and removed an hour later."""
    here.make("gone", ONE)
    [segment] = (here.folder("gone") / "segments").iterdir()
    left = segment.with_name("0" * 64)
    left.write_bytes(segment.read_bytes())
    here.run("index", "delete", "gone", "--yes")
    assert left.exists()
    here.age("gone", 30 * HOUR_S)
    assert here.run("index", "gc", "gone") == "gone: nothing to remove\n"
    note = here.folder("gone") / "gc.json"
    noted = json.loads(note.read_text())
    noted["unnamed"] = dict.fromkeys(noted["unnamed"], "2020-01-01T00:00:00+00:00")
    note.write_text(json.dumps(noted))
    assert here.run("index", "gc", "gone") == "gone: 1 object removed\n"
    assert not left.exists()


# --- retention -------------------------------------------------------------------------------------


def test_retention_is_set_told_and_lifted(here: Machine) -> None:
    """By `create --ttl` and by `ttl`; lists tell it where any index has one."""
    here.make("plain", ONE)
    assert "kept for" not in here.run("index", "list")
    here.make("call", ONE, options=("--ttl", "30d"))
    lines = here.run("index", "list").splitlines()
    assert lines[0].split()[-2:] == ["kept", "for"]
    assert [line.split()[-1] for line in lines[1:]] == ["30d", "-"]
    assert max(map(len, lines)) <= 80
    assert "30d from its last change, now until 20" in here.run("index", "show", "call")
    assert "until somebody deletes it" in here.run("index", "show", "plain")
    assert here.run_json("index", "show", "call")["ttl_s"] == 30 * 24 * HOUR_S
    assert "kept 12h from its last change" in here.run("index", "ttl", "call", "12h")
    assert here.run_json("index", "ttl", "call", "90m")["ttl_s"] == 90 * 60
    assert here.run("index", "ttl", "call", "off") == "call: kept until somebody deletes it\n"
    assert here.run_json("index", "show", "call")["ttl_s"] is None
    assert here.run_json("index", "show", "call")["doc_count"] == 1


def test_a_retention_that_deletes_at_once_is_asked_about(here: Machine) -> None:
    """An index that last changed before its new time would be gone: --yes, or a yes."""
    here.make("old", ONE)
    [commit] = (here.folder("old") / "log").iterdir()
    stored = json.loads(commit.read_text())
    commit.write_text(json.dumps(stored | {"updated_at": "2020-01-01T00:00:00.000000Z"}))
    told = here.run("index", "ttl", "old", "30d", code=2)
    assert "last changed 2020-01-01" in told.replace("2019-12-31", "2020-01-01")
    assert "30d deletes it at once: pass --yes" in told
    said_no = answered("n\n", *here.at, "index", "ttl", "old", "30d")
    assert said_no.returncode == 1
    assert "delete it now, with 1 document, for good?" in said_no.stderr
    assert here.run_json("index", "show", "old")["ttl_s"] is None
    assert here.run("index", "ttl", "old", "30d", "--yes") == "old: deleted, its time was up\n"
    assert here.run_json("index", "list") == []
    assert list((here.folder("old") / "segments").iterdir()) == []


# --- encryption ------------------------------------------------------------------------------------


def test_a_new_key_is_one_line_and_its_use_is_told_beside_it() -> None:
    """The key is alone on stdout, so that it can go into a file; each is another."""
    result = CliRunner().invoke(app, ["key", "new"])
    key = result.stdout.removesuffix("\n")
    assert "\n" not in key
    key_id = SealingKey(key).id
    assert key not in result.stderr
    for words in (key_id, "umask 077", "--key-file", "MOSS_VOICE_ENCRYPTION_KEY", "--all"):
        assert words in result.stderr
    other = run_json("key", "new")
    assert SealingKey(other["key"]).id == other["key_id"] != key_id


def test_ids_of_keys_are_told_and_never_the_keys(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a file, or of the environment; the current one first."""
    keys = [new_key() for _ in range(3)]
    ids = [SealingKey(key).id for key in keys]
    path = key_file(here, "# ours", *keys)
    told = run("key", "id", "--key-file", path)
    assert told.splitlines() == [f"{ids[0]}  current", f"{ids[1]}  older", f"{ids[2]}  older"]
    assert [row["key_id"] for row in run_json("--key-file", path, "key", "id")] == ids
    monkeypatch.setenv("MOSS_VOICE_ENCRYPTION_KEY", f"{keys[2]},{keys[0]}")
    assert run("key", "id").split()[::2] == [ids[2], ids[0]]
    monkeypatch.setenv("MOSS_VOICE_ENCRYPTION_KEY_FILE", str(path))
    assert run("key", "id").split()[::2] == ids
    broken = key_file(here, "hunter2", name="broken.txt")
    told = run("key", "id", "--key-file", broken, code=1)
    assert "32 bytes" in told
    assert "hunter2" not in told


def test_an_index_is_encrypted_and_its_key_is_changed(here: Machine, tmp_path: Path) -> None:
    """No byte of a text stays readable, in the cloud or in the cache; each key opens what it should."""
    old, new = new_key(), new_key()
    first, both = key_file(here, old), key_file(here, new, old, name="both.txt")
    last = key_file(here, new, name="last.txt")
    here.make("help", SAID)
    here.make("other", ONE)
    here.run("index", "export", "help")
    (here.here / "faq.jsonl").unlink()
    assert len(holding(here.cloud, here.cache)) == 2

    sealed = here.run("index", "encrypt", "help", "--key-file", first)
    assert sealed == f"help: encrypted with key {SealingKey(old).id}\n"
    assert holding(tmp_path) == []
    lines = here.run("index", "list").splitlines()
    assert [line.split()[-1] for line in lines] == ["encrypted", "yes", "no"]
    assert "encrypted  yes" in here.run("index", "show", "help")
    assert here.run_json("index", "show", "help")["encrypted"] is True

    export = ("index", "export", "help")
    assert CANARY in here.run(*export, "--key-file", first)
    told = here.run(*export, code=4)
    assert f"encrypted with key {SealingKey(old).id}" in told
    assert "hint: give the key with --key-file" in told
    told = here.run(*export, "--key-file", last, code=4)
    assert f"encrypted with key {SealingKey(old).id}, given: {SealingKey(new).id}" in told
    assert not {old, new} & set(told.replace(",", " ").split())

    done = here.run_json("index", "encrypt", "--all", "--key-file", both)
    assert done == [
        {"index_name": name, "key_id": SealingKey(new).id, "changed": True}
        for name in ("help", "other")
    ]
    assert CANARY in here.run(*export, "--key-file", last)
    assert here.run(*export, "--key-file", first, code=4)
    assert here.run("index", "encrypt", "--all", "--key-file", both).splitlines() == [
        "help: nothing to do",
        "other: nothing to do",
    ]
    assert holding(tmp_path) == []
    # What is wrong with one index does not keep the others from it.
    here.make("third", TWO)
    told = here.run("index", "encrypt", "nope", "third", "none", "--key-file", last, code=3)
    assert told.count("error: ") == 2
    assert here.run_json("index", "show", "third")["encrypted"] is True
    assert "No indexes yet" in here.run(
        "--project-id", "empty", "index", "encrypt", "--all", "--key-file", last
    )


def test_a_deleted_index_leaves_the_cache_too(here: Machine, tmp_path: Path) -> None:
    """Deleted for good is deleted here as well."""
    here.make("help", SAID)
    here.run("index", "export", "help")
    (here.here / "faq.jsonl").unlink()
    assert holding(here.cache)
    here.run("index", "delete", "help", "--yes")
    assert holding(tmp_path) == []


# --- forgetting ------------------------------------------------------------------------------------

WHO = ("--field", "caller_id", "--equals", CALLER)
FILTER = ("--filter", json.dumps({"field": "caller_id", "condition": {"$eq": CALLER}}))


@pytest.mark.parametrize("sealed", [False, True])
def test_a_caller_is_forgotten_and_it_is_verified(
    here: Machine, tmp_path: Path, *, sealed: bool
) -> None:
    """From all versions of all indexes, the cloud's files and this machine's cache; others' words stay."""
    key = ("--key-file", key_file(here, new_key())) if sealed else ()
    here.make("call-1", SAID, ONE, options=key)
    here.add("call-1", SAID | {"text": f"again {CANARY}"}, options=key)
    here.add("call-1", TWO, options=key)
    here.make("call-2", SAID, options=key)
    here.make("help", THREE, options=key)
    for name in ("call-1", "call-2", "help"):
        here.run("index", "export", name, *key)
    (here.here / "faq.jsonl").unlink()
    assert bool(holding(here.cloud, here.cache)) is not sealed

    lines = here.run("forget", *WHO, "--dry-run", *key).splitlines()
    assert lines[0].split() == ["index", "documents", "older", "rows"]
    assert [line.split() for line in lines[1:3]] == [["call-1", "1", "1"], ["call-2", "1", "0"]]
    assert lines[3] == "2 documents and 1 older row would be forgotten."
    dry = here.run_json("forget", *FILTER, "--dry-run", *key)
    assert (dry["dry_run"], dry["documents"], dry["older"]) == (True, 2, 1)
    assert [one["index"] for one in dry["indexes"]] == ["call-1", "call-2"]
    assert here.run_json("index", "show", "call-1")["doc_count"] == 3

    lines = here.run("forget", *WHO, "--index", "call-2", "--yes", *key).splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["index", "call-2"]
    assert lines[2] == "✓ 1 document forgotten; looked again: nothing that matches is left."
    done = here.run_json("forget", *FILTER, "--yes", *key)
    assert (done["documents"], done["older"], done["left"], done["verified"]) == (1, 1, [], True)
    assert holding(tmp_path) == []
    assert here.run("forget", *WHO, "--yes", *key) == "✓ Nothing matches, in no version.\n"
    assert here.run("forget", *WHO, "--dry-run", *key) == "Nothing matches.\n"
    assert len(here.run_json("index", "history", "call-1")) == 1
    kept = here.run_json("index", "export", "call-1", *key)["docs"]
    assert [doc["id"] for doc in kept] == ["one", "two"]
    assert here.run_json("index", "show", "help")["version"] == 1
    if sealed:
        # Nobody can tell that nothing is left of what he cannot read.
        assert "encrypted with key" in here.run("forget", *WHO, "--yes", code=4)


def test_forgetting_asks_whoever_is_there(here: Machine) -> None:
    """What would go is shown first, and only a yes lets it go."""
    here.make("call", SAID)
    said_no = answered("n\n", *here.at, "forget", *WHO)
    assert said_no.returncode == 1
    assert "call" in said_no.stderr
    assert "Forget 1 document for good?" in said_no.stderr
    assert said_no.stdout == ""
    assert here.run_json("index", "show", "call")["doc_count"] == 1
    said_yes = answered("y\n", *here.at, "forget", *WHO, "--json")
    assert said_yes.returncode == 0
    assert json.loads(said_yes.stdout)["verified"] is True
    assert CALLER not in said_no.stderr + said_yes.stdout + said_yes.stderr


def test_what_an_unfinished_push_holds_is_told(here: Machine, tmp_path: Path) -> None:
    """It may go on for an hour: exit code 1 and when to come again; then it goes too."""
    here.make("call", ONE)
    here.make("theirs", SAID)
    [segment] = (here.folder("theirs") / "segments").iterdir()
    left = here.folder("call") / "segments" / segment.name
    left.write_bytes(segment.read_bytes())
    here.run("index", "delete", "theirs", "--yes")
    (here.here / "faq.jsonl").unlink()

    assert "1 unfinished segment would be" in here.run("forget", *WHO, "--dry-run")
    args = [str(arg) for arg in (*here.at, "forget", *WHO, "--yes")]
    result = CliRunner().invoke(app, args)
    assert result.exit_code == 1
    assert "✗ nothing forgotten, and some is left:" in result.stdout
    assert "again in an hour" in " ".join(result.stdout.split())
    told = here.run_json("forget", *WHO, "--yes", code=1)
    assert (told["verified"], [one["pending"] for one in told["left"]]) == (False, [1])
    here.age("call", 2 * HOUR_S)
    told = here.run("forget", *WHO, "--yes")
    assert "✓ 1 unfinished segment forgotten; looked again" in told
    assert holding(tmp_path) == []


DYING = """
import asyncio, os, sys
from moss_voice import MossClient
async def main():
    client = MossClient(cloud=sys.argv[1], journal_path=sys.argv[2])
    call = await client.call("lost")
    await call.heard(sys.argv[3], at=2.0, metadata={"caller_id": sys.argv[4]})
    os._exit(9)
asyncio.run(main())
"""


def test_what_waits_here_is_forgotten_too(here: Machine, tmp_path: Path) -> None:
    """The journal of a call whose process died would bring it back: it is pushed, and then forgotten."""
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(here.cloud), str(here.journal), CANARY, CALLER],
        timeout=60,
        check=False,
    )
    assert died.returncode == 9
    assert holding(here.journal)
    # A dry run changes nothing, and so it cannot know.
    assert here.run("forget", *WHO, "--dry-run") == "Nothing matches.\n"
    asked = answered("y\n", *here.at, "forget", *WHO)
    assert "Forget 1 document for good?" in asked.stderr
    assert asked.returncode == 0
    assert holding(tmp_path) == []


def test_another_machine_is_cleaned_by_forgetting_there_as_well(
    here: Machine, tmp_path: Path
) -> None:
    """Its cache holds versions that the cloud has no more; what is clean stays in it."""
    there = Machine(tmp_path, "two")
    here.make("call", SAID)
    here.make("help", ONE)
    here.add("call", TWO)
    (here.here / "faq.jsonl").unlink()
    for name in ("call", "help"):
        there.run("index", "export", name)
    assert holding(there.cache)
    here.run("forget", *WHO, "--yes")
    assert holding(here.cloud, here.cache) == []
    assert holding(there.cache)
    assert "Nothing matches" in there.run("forget", *WHO, "--yes")
    assert holding(there.cache) == []
    kept = {path.name for path in (there.cache / "segments").iterdir()}
    named = {path.name for path in (here.folder("help") / "segments").iterdir()}
    assert named <= kept


# --- pushes that wait, downloads, hostile names ----------------------------------------------------


@contextmanager
def away(here: Machine) -> Iterator[None]:
    """Take the project's directory away: nothing can be read from it or written to it."""
    project, hidden = here.cloud / "default", here.cloud / "hidden"
    project.rename(hidden)
    project.write_text("no directory")
    try:
        yield
    finally:
        project.unlink()
        hidden.rename(project)


def test_recover_tells_of_pushes_that_waited(here: Machine) -> None:
    """As of journals: the index, and how many changes."""
    here.make("help", ONE)

    async def push(*ids: str) -> None:
        async with here.client() as client, await client.session("help") as session:
            await session.add_docs([DocumentInfo(id_, "text") for id_ in ids])
            with away(here):
                assert (await session.push_index("merge")).status == "pending"

    asyncio.run(push("a", "b"))
    assert here.run("recover") == "✓ help: pushed, 2 changes\n"
    assert here.run("recover").startswith("Nothing to recover")
    asyncio.run(push("c"))
    [told] = here.run_json("recover")
    assert (told["index_name"], told["turns"], told["status"]) == ("help", 1, "pushed")
    assert here.run_json("index", "show", "help")["doc_count"] == 4


def test_large_downloads_are_shown_to_whoever_watches(here: Machine) -> None:
    """A bar on a terminal, gone when it is done; nothing of it on stdout, or where nobody watches."""

    async def fill() -> None:
        async with here.client() as client:
            doc = DocumentInfo("large", "text", None, (1.0, 0.0), "x" * 4_000_000)
            await client.create_index("[/large]", [doc], "custom")

    asyncio.run(fill())
    here.make("small", ONE)

    def watched(name: str) -> tuple[str, str]:
        ours, theirs = pty.openpty()
        try:
            at = ("--cloud", here.cloud, "--cache", here.here / f"{name}-cache")
            with subprocess.Popen(
                [*MODULE, *map(str, at), "index", "export", name, "--json"],
                stdout=subprocess.PIPE,
                stderr=theirs,
                env={**os.environ, "TERM": "xterm", "COLUMNS": "80"},
            ) as process:
                assert process.stdout is not None
                told = process.stdout.read()
                process.wait(timeout=60)
            os.set_blocking(ours, False)
            try:
                return told.decode(), os.read(ours, 1 << 20).decode()
            except BlockingIOError:
                return told.decode(), ""
        finally:
            os.close(ours)
            os.close(theirs)

    told, shown = watched("[/large]")
    assert json.loads(told)["doc_count"] == 1
    assert "Downloading [/large]" in shown
    assert " MB" in shown
    told, shown = watched("small")
    assert json.loads(told)["doc_count"] == 1
    assert shown == ""


def test_hostile_names_do_not_drive_the_terminal(here: Machine) -> None:
    """Marks that turn the writing about, and markup, are shown as nothing or as they are."""
    name = "[/b]\u202e[red]\u200bcall"
    key = ("--key-file", key_file(here, new_key()))
    here.make(name, SAID)
    told = [
        here.run("index", "list"),
        here.run("index", "history", name),
        here.run("index", "ttl", name, "30d"),
        here.run("index", "show", name),
        here.run("index", "gc", "--all"),
        here.run("index", "gc", name),
        here.run("index", "encrypt", name, *key),
        here.run("index", "restore", name, "3", "--yes", *key),
        here.run("forget", *WHO, "--dry-run", *key),
        here.run("forget", *WHO, "--yes", *key),
        here.run("index", "encrypt", name, code=4),
    ]
    assert not {"\u202e", "\u200b", "\x1b"} & set("".join(told))
    assert sum("[/b] [red] call" in text for text in told) == 9
