"""The command line: results on stdout, everything else on stderr, and exit codes that mean something."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer
from typer.testing import CliRunner

import moss_voice
from moss_voice import DocumentInfo, MossClient
from moss_voice.cli import indexes
from moss_voice.cli.app import app
from moss_voice.cli.shell import Shell, command, plain

Run = Callable[..., str]
MODULE = (sys.executable, "-m", "moss_voice.cli")

SECRET = "the caller's password is swordfish"


def run(*args: str | Path, code: int = 0) -> str:
    """Run a command; return its stdout, or its stderr where it is to fail."""
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, f"{result.exit_code}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr
    if code:
        return " ".join(result.stderr.split())
    assert result.stderr == ""
    return result.stdout


def run_json(*args: str | Path) -> Any:
    """Run a command with --json; return its one document."""
    return json.loads(run(*args, "--json"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One FAQ file of each kind."""
    folder = tmp_path_factory.mktemp("faq")
    (folder / "refunds.md").write_text(
        "# Refunds\n\n## How long does a refund take?\n\nRefunds take five working days.\n\n"
        "## Can I send a gift back?\n\nGifts can be sent back within thirty days.\n"
    )
    (folder / "opening.txt").write_text("When do you open?\nWe open at seven every day.\n")
    (folder / "plans.csv").write_text(
        "id,question,answer,plan,price\n"
        "p1,What does the small plan cost?,It costs nine pounds.,small,9\n"
        "p2,What does the large plan cost?,It costs thirty pounds.,large,30\n"
    )
    (folder / "roaming.json").write_text(
        json.dumps([{"id": "r1", "question": "Is Turkey in zone two?", "answer": "Yes, it is."}])
    )
    (folder / "engineers.jsonl").write_text(
        json.dumps({"id": "e1", "text": "An engineer comes within a week.", "payload": {"n": [1]}})
        + "\n"
    )
    return folder


@pytest.fixture(scope="module")
def cloud(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cloud with the index `help` and the call `call-1`; tests leave it as it is."""
    place = tmp_path_factory.mktemp("cloud")

    async def fill() -> None:
        async with MossClient(cloud=place, journal_path=place.parent / "journal") as client:
            call = await client.call("call-1")
            await call.heard("hello, I cannot get online", at=1.0)
            await call.heard("Have you restarted the", "agent", at=4.5, interrupted=True)
            await call.heard("yes, twice", at=65.0)
            await call.end()

    asyncio.run(fill())
    names = ("refunds.md", "opening.txt", "plans.csv", "roaming.json", "engineers.jsonl")
    run("--cloud", place, "index", "create", "help", *(files / name for name in names))
    return place


# --- help and options ------------------------------------------------------------------------------


def test_help_names_commands_and_exit_codes() -> None:
    """--help, and no arguments at all, tell what there is; --version tells the version."""
    text = run("--help")
    for name in ("demo", "replay", "index", "query", "session", "recover", "doctor"):
        assert f" {name} " in text
    for words in ("Exit codes", "130 interrupted", "--cloud", "MOSS_PROJECT_KEY"):
        assert words in text
    assert "Usage" in CliRunner().invoke(app, []).output
    assert run("--version") == f"moss-voice {moss_voice.__version__}\n"


@pytest.mark.parametrize(
    "path",
    [
        ("demo",),
        ("replay",),
        ("query",),
        ("recover",),
        ("doctor",),
        ("session", "show"),
        *(("index", name) for name in ("create", "list", "show", "delete", "add", "export")),
    ],
)
def test_every_command_takes_the_shared_options(path: tuple[str, ...]) -> None:
    """Each command explains itself and takes --json, --cloud and their like."""
    text = run(*path, "--help")
    for option in ("--json", "--cloud", "--project-id", "--project-key", "--cache", "--journal"):
        assert option in text


def test_shared_options_stand_before_or_after(cloud: Path, tmp_path: Path) -> None:
    """Before the command, after it, or in the environment; the most specific one counts."""
    wrong = tmp_path / "wrong"
    before = run("--cloud", cloud, "--json", "index", "show", "help")
    assert json.loads(before)["doc_count"] == 7
    assert run("index", "show", "help", "--json", "--cloud", cloud) == before
    assert run("--cloud", wrong, "index", "show", "help", "--json", "--cloud", cloud) == before
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MOSS_VOICE_CLOUD", str(wrong))
        assert run("--cloud", cloud, "index", "show", "help", "--json") == before
        patch.setenv("MOSS_VOICE_CLOUD", str(cloud))
        assert run("index", "show", "help", "--json") == before


# --- indexes ---------------------------------------------------------------------------------------


def test_index_life(files: Path, tmp_path: Path) -> None:
    """Created, listed, shown, added to, exported, made anew from the export, deleted."""
    at = ("--cloud", tmp_path / "cloud")
    assert run(*at, "index", "list").startswith("No indexes yet")
    assert run_json(*at, "index", "list") == []
    created = run_json(*at, "index", "create", "help", files / "plans.csv")
    assert created["index_name"] == "help"
    assert created["doc_count"] == 2
    added = run_json(*at, "index", "add", "help", files / "engineers.jsonl", files / "plans.csv")
    assert added["doc_count"] == 3
    info = run_json(*at, "index", "show", "help")
    assert (info["version"], info["doc_count"], info["model"]) == (2, 3, "moss-minilm")
    assert [row["name"] for row in run_json(*at, "index", "list")] == ["help"]

    out = tmp_path / "out.jsonl"
    assert run_json(*at, "index", "export", "help", "--out", out)["doc_count"] == 3
    assert run(*at, "index", "export", "help") == out.read_text()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["id"] for row in rows] == ["p1", "p2", "e1"]
    assert rows[1]["metadata"]["price"] == "30"
    assert rows[2]["payload"] == {"n": [1]}
    run(*at, "index", "create", "again", out)
    assert run(*at, "index", "export", "again") == out.read_text()
    assert run_json(*at, "index", "export", "again")["docs"] == rows

    assert run_json(*at, "index", "delete", "again", "--yes")["deleted"] is True
    assert [row["name"] for row in run_json(*at, "index", "list")] == ["help"]
    assert "'again'" in run(*at, "index", "delete", "again", "--yes", code=3)


def test_add_leaves_known_documents_where_told_to(tmp_path: Path) -> None:
    """--no-upsert adds what is new and does not touch what is known."""
    at, faq = ("--cloud", tmp_path / "cloud"), tmp_path / "faq.jsonl"
    faq.write_text(json.dumps({"id": "a", "text": "old"}) + "\n")
    run(*at, "index", "create", "help", faq)
    rows = [{"id": "a", "text": "new"}, {"id": "b", "text": "other"}]
    faq.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(*at, "index", "add", "help", faq, "--no-upsert")
    docs = run_json(*at, "index", "export", "help")["docs"]
    assert [(doc["id"], doc["text"]) for doc in docs] == [("a", "old"), ("b", "other")]
    run(*at, "index", "add", "help", faq)
    docs = run_json(*at, "index", "export", "help")["docs"]
    assert {doc["id"]: doc["text"] for doc in docs} == {"a": "new", "b": "other"}


def test_long_rows_stay_whole_where_told_to(tmp_path: Path) -> None:
    """What was exported comes back as it was: --max-words keeps long documents in one piece."""
    at, faq = ("--cloud", tmp_path / "cloud"), tmp_path / "faq.jsonl"
    text = " ".join(f"Sentence number {n} is here." for n in range(60))
    faq.write_text(json.dumps({"id": "long", "text": text}) + "\n")
    assert run_json(*at, "index", "create", "cut", faq)["doc_count"] > 1
    whole = run_json(*at, "index", "create", "whole", faq, "--max-words", "1000")
    assert whole["doc_count"] == 1
    assert run_json(*at, "index", "export", "whole")["docs"][0]["text"] == text


def test_custom_vectors_survive_an_export(tmp_path: Path) -> None:
    """With the model `custom` the documents bring their embeddings, and an export hands them back."""
    at, faq = ("--cloud", tmp_path / "cloud"), tmp_path / "faq.jsonl"
    rows = [{"id": "a", "text": "x", "embedding": [0.6, 0.8]}]
    faq.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(*at, "index", "create", "own", faq, "--model", "custom")
    (doc,) = run_json(*at, "index", "export", "own")["docs"]
    assert doc["embedding"] == pytest.approx([0.6, 0.8], abs=1e-6)
    assert "embedding" in run(*at, "query", "own", "x", code=1)
    assert [d["id"] for d in run_json(*at, "query", "own", "x", "--alpha", "0")["docs"]] == ["a"]


def test_delete_asks_whoever_is_there(tmp_path: Path) -> None:
    """With a terminal it asks, and only a yes deletes; without one it wants --yes."""
    cloud = tmp_path / "cloud"
    faq = tmp_path / "faq.jsonl"
    faq.write_text('{"id": "a", "text": "b"}\n')
    run("--cloud", cloud, "index", "create", "help", faq)
    assert "--yes" in run("--cloud", cloud, "index", "delete", "help", code=2)

    def answer(text: str) -> int:
        ours, theirs = pty.openpty()
        try:
            os.write(ours, text.encode())
            return subprocess.run(
                [*MODULE, "--cloud", str(cloud), "index", "delete", "help"],
                stdin=theirs,
                capture_output=True,
                timeout=60,
                check=False,
            ).returncode
        finally:
            os.close(ours)
            os.close(theirs)

    assert answer("n\n") == 1
    assert len(run_json("--cloud", cloud, "index", "list")) == 1
    assert answer("y\n") == 0
    assert run_json("--cloud", cloud, "index", "list") == []


# --- queries ---------------------------------------------------------------------------------------


def test_query_finds_what_fits(cloud: Path) -> None:
    """The best document first, with its score; the number asked for and no more."""
    result = run_json("--cloud", cloud, "query", "help", "how many working days does a refund take")
    assert result["docs"][0]["id"] == "refunds#how-long-does-a-refund-take"
    assert len(result["docs"]) == 5
    assert result["time_taken_ms"] > 0
    text = run(
        "--cloud",
        cloud,
        "query",
        "help",
        "how many working days does a refund take",
        "--top-k",
        "2",
    )
    assert "1. refunds#how-long-does-a-refund-take" in text
    assert "3. " not in text
    assert "2 found in" in text
    assert "nothing found" in run("--cloud", cloud, "query", "help", "  ")


def test_query_takes_filter_alpha_and_least_score(cloud: Path) -> None:
    """Each option does what `QueryOptions` says."""

    def ids(*options: str) -> list[str]:
        result = run_json("--cloud", cloud, "query", "help", "what does a plan cost", *options)
        return [doc["id"] for doc in result["docs"]]

    assert ids("--filter", '{"field": "plan", "condition": {"$eq": "large"}}') == ["p2"]
    assert ids("--filter", '{"field": "price", "condition": {"$lt": 10}}') == ["p1"]
    assert set(ids("--alpha", "0")) == {"p1", "p2"}
    assert ids("--min-score", "1") == []


def test_query_tells_what_a_result_was_ranked_by(
    cloud: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--explain adds a line per result, at any width; JSON has the parts without being asked."""
    ask = ("--cloud", cloud, "query", "help", "how many working days does a refund take")
    for width in (80, 120):
        monkeypatch.setenv("COLUMNS", str(width))
        lines = run(*ask, "--explain").splitlines()
        heads = [at for at, line in enumerate(lines) if re.match(r"\d\. ", line)]
        assert len(heads) == 5
        for at in heads:
            assert re.fullmatch(r"   rank \d\.\d\d = semantic \S+( \+ keyword \S+)?", lines[at + 1])
        assert max(map(len, lines)) <= width
    assert "rank" not in run(*ask)
    for doc in run_json(*ask)["docs"]:
        parts = doc["parts"]
        assert list(parts) == ["semantic", "keyword", "focus", "neighbour", "recency", "repeat"]
        assert doc["score"] == pytest.approx((1 + parts["semantic"] / 0.8) / 2, abs=1e-5)
    (best,) = run_json(*ask, "--alpha", "0", "--top-k", "1")["docs"]
    assert best["parts"]["semantic"] == 0
    assert best["parts"]["keyword"] == best["score"] == 1


def test_terminal_is_not_driven_by_documents(tmp_path: Path) -> None:
    """Control characters and markup of a document are shown as nothing, or as they are."""
    at, faq = ("--cloud", tmp_path / "cloud"), tmp_path / "faq.jsonl"
    text = "[red]free[/red] \x1b[31mred\x1b[0m \x07bell \x9b2J"
    faq.write_text(json.dumps({"id": "a\x1b[2J", "text": text}) + "\n")
    run(*at, "index", "create", "help", faq)
    told = run(*at, "query", "help", "free")
    assert not {"\x1b", "\x07", "\x9b"} & set(told)
    assert "[red]free[/red]" in told
    assert run_json(*at, "query", "help", "free")["docs"][0]["text"] == text


def test_plain_folds_into_one_line() -> None:
    """Line ends and invisible characters become one space; letters of any script stay."""
    assert plain(" a\r\nb\tc\x1bd\u2028e\u200b ") == "a b c d e"
    assert plain("Ærø 北京 £5") == "Ærø 北京 £5"


# --- calls -----------------------------------------------------------------------------------------


def test_session_is_shown_in_the_order_spoken(cloud: Path) -> None:
    """Time, number, speaker and words of each turn; an interruption is marked."""
    lines = run("--cloud", cloud, "session", "show", "call-1").splitlines()
    assert lines[0].startswith("call-1: 3 documents, version 1")
    assert lines[1:] == [
        "00:01   1 caller hello, I cannot get online",
        "00:04   2 agent  Have you restarted the — cut off",
        "01:05   3 caller yes, twice",
    ]
    shown = run_json("--cloud", cloud, "session", "show", "call-1")
    assert shown["session"] == "call-1"
    assert [turn["turn"] for turn in shown["turns"]] == [1, 2, 3]
    assert shown["turns"][1]["metadata"]["interrupted"] is True
    # An index that is no call is shown too.
    assert "Refunds take five" in run("--cloud", cloud, "session", "show", "help")


DYING = """
import asyncio, os, sys
from moss_voice import MossClient
async def main():
    client = MossClient(cloud=sys.argv[1], journal_path=sys.argv[2])
    call = await client.call("lost")
    await call.heard("my boiler leaks", at=2.0)
    await call.heard("Is the water hot?", "agent", at=5.0)
    os._exit(9)
asyncio.run(main())
"""


def test_recover_pushes_what_a_dead_process_left(tmp_path: Path) -> None:
    """The turns are in the cloud afterwards, in order; a call of another cloud is kept for it."""
    cloud, journal = tmp_path / "cloud", tmp_path / "journal"
    died = subprocess.run(
        [sys.executable, "-c", DYING, str(cloud), str(journal)], timeout=60, check=False
    )
    assert died.returncode == 9
    at = ("--journal", journal)
    (kept,) = run_json("recover", *at, "--cloud", tmp_path / "other")
    assert (kept["status"], kept["detail"]) == ("elsewhere", str(cloud))
    assert "kept: it belongs to" in run("recover", *at, "--cloud", tmp_path / "other")
    (pushed,) = run_json("recover", *at, "--cloud", cloud)
    assert (pushed["index_name"], pushed["turns"], pushed["status"]) == ("lost", 2, "pushed")
    shown = run("session", "show", "lost", "--cloud", cloud)
    assert shown.index("my boiler leaks") < shown.index("Is the water hot?")
    assert run("recover", *at, "--cloud", cloud).startswith("Nothing to recover")
    assert run_json("recover", *at, "--cloud", cloud) == []


def test_recover_fails_where_something_stays_lost(tmp_path: Path) -> None:
    """An unreadable journal is told, kept, and exit code 1."""
    journal = tmp_path / "journal" / "default" / "call-0123.journal"
    journal.parent.mkdir(parents=True)
    journal.write_bytes(b'moss-voice-journal 1 00000000 {"damaged": true}\n')
    at = ("recover", "--journal", tmp_path / "journal", "--cloud", tmp_path / "cloud")
    result = CliRunner().invoke(app, [str(arg) for arg in at])
    assert result.exit_code == 1
    assert "✗ an unreadable journal: kept" in result.stdout
    assert journal.exists()


# --- faults ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("query", "nope", "x"), 3, "error: the cloud holds no index 'nope'"),
        (("query", "nope", "x"), 3, "hint: `moss-voice index list`"),
        (("index", "show", "nope"), 3, "'nope'"),
        (("index", "add", "nope", "{files}"), 3, "'nope'"),
        (("index", "export", "nope"), 3, "'nope'"),
        (("index", "delete", "nope", "--yes"), 3, "'nope'"),
        (("session", "show", "nope"), 3, "'nope'"),
        (("index", "create", "help", "{files}"), 1, "index 'help' exists"),
        (("index", "create", "x", "{files}", "--model", "nope"), 3, "nope"),
        (("index", "create", "", "{files}"), 1, "index name"),
        (("index", "create", "x", "{bad}"), 1, "bad.jsonl"),
        (("index", "create", "x", "{twice}", "{twice}"), 1, "ids must be unique"),
        (("index", "create", "x", "/no/such.md"), 2, "does not exist"),
        (("index", "create", "x"), 2, "Missing argument"),
        (("index", "export", "help", "--out", "/no/such/dir/x"), 1, "No such file or directory"),
        (("query", "help", "x", "--filter", "{{"), 2, "not JSON"),
        (("query", "help", "x", "--filter", "[]"), 2, "expected a JSON object"),
        (
            ("query", "help", "x", "--filter", '{{"field": "a", "condition": {{"$no": 1}}}}'),
            2,
            "condition",
        ),
        (("query", "help", "x", "--top-k", "0"), 2, "--top-k"),
        (("query", "help", "x", "--alpha", "2"), 2, "--alpha"),
        (("query", "help", "x", "--min-score", "-1"), 2, "--min-score"),
        (("demo", "--pace", "slow"), 2, "--pace"),
        (("demo", "--host", "telephone"), 2, "--host"),
        (("frobnicate",), 2, "frobnicate"),
        (("index", "list", "--cloud", "ftp://x/y"), 1, "ftp://"),
        (("index", "list", "--cloud", "{bad}/below"), 1, "Not a directory"),
        (("index", "list", "--project-key", "k"), 4, "MOSS_PROJECT_ID"),
    ],
)
def test_faults_are_told(
    args: tuple[str, ...], code: int, words: str, cloud: Path, files: Path, tmp_path: Path
) -> None:
    """A message for people on stderr, the exit code for scripts, nothing that anybody said."""
    bad, twice = tmp_path / "bad.jsonl", tmp_path / "twice.jsonl"
    bad.write_text(json.dumps({"id": "a", "note": SECRET}) + "\n")
    twice.write_text(json.dumps({"id": "a", "text": SECRET}) + "\n")
    given = [arg.format(files=files, bad=bad, twice=twice) for arg in args]
    told = run("--cloud", cloud, *given, code=code)
    assert words in told
    assert "swordfish" not in told


def test_wrong_key_is_not_let_in(tmp_path: Path) -> None:
    """A project belongs to its first key: another one, or none, is exit code 4."""
    at = ("--cloud", tmp_path, "--project-id", "acme")
    assert run_json("index", "list", *at, "--project-key", "right") == []
    assert "does not open" in run("index", "list", *at, "--project-key", "wrong", code=4)
    assert "needs its project key" in run("index", "list", *at, code=4)


def test_damaged_data_is_told(files: Path, tmp_path: Path) -> None:
    """A flipped byte in a stored segment is exit code 1, and what to do."""
    run("--cloud", tmp_path, "index", "create", "help", files / "opening.txt")
    (segment,) = (path for path in tmp_path.rglob("segments/*") if path.is_file())
    segment.write_bytes(segment.read_bytes()[:-1] + b"\x00")
    elsewhere = ("--cloud", tmp_path, "--cache", tmp_path / "cache")
    told = run(*elsewhere, "index", "export", "help", code=1)
    assert told.startswith("error: ")
    assert "hint: the stored bytes were changed" in told


def _raising(error: BaseException) -> typer.Typer:
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.callback()
    def start(ctx: typer.Context) -> None:
        ctx.obj = Shell()

    @command(app, "raise")
    def fail(shell: Shell) -> NoReturn:
        raise error

    return app


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ValueError(SECRET), 1, "error: unexpected ValueError"),
        (KeyboardInterrupt(), 130, "error: interrupted"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "error: No space left on device"),
        (MemoryError(), 1, "error: unexpected MemoryError"),
    ],
)
def test_unforeseen_faults_quote_nothing(
    error: BaseException, code: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No traceback and no message that may hold a transcript, unless somebody debugs."""
    result = CliRunner().invoke(_raising(error), ["raise"])
    assert result.exit_code == code
    assert result.stderr.startswith(words)
    assert "swordfish" not in result.stderr
    assert "Traceback" not in result.stderr
    monkeypatch.setenv("MOSS_VOICE_DEBUG", "1")
    debugged = CliRunner().invoke(_raising(error), ["raise"])
    assert debugged.exit_code == code
    assert "Traceback" in debugged.stderr


def test_reader_that_leaves_early_is_no_fault(cloud: Path) -> None:
    """`moss-voice index export help | head -0` ends without a word."""
    with subprocess.Popen(
        [*MODULE, "--cloud", str(cloud), "index", "export", "help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        told = process.stderr.read()
        process.wait(timeout=60)
    assert told == ""


def test_narrow_encodings_lose_signs_and_not_the_result(cloud: Path) -> None:
    """Where the terminal knows ASCII alone, other signs become question marks."""
    shown = subprocess.run(
        [*MODULE, "--cloud", str(cloud), "session", "show", "call-1"],
        capture_output=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        timeout=60,
        check=False,
    )
    assert shown.returncode == 0, shown.stderr
    assert b"Have you restarted the ? cut off" in shown.stdout


def test_ids_of_two_files_are_told_apart_by_their_directory(tmp_path: Path) -> None:
    """Two files of one name clash when named one by one, and not as a directory."""
    for folder in ("a", "b"):
        (tmp_path / "faq" / folder).mkdir(parents=True)
        (tmp_path / "faq" / folder / "help.md").write_text("# Title\n\nSome words.\n")
    at = ("--cloud", tmp_path / "cloud", "index", "create", "help")
    both = [tmp_path / "faq" / folder / "help.md" for folder in ("a", "b")]
    assert "pass the directory" in run(*at, *both, code=1)
    assert run_json(*at, tmp_path / "faq")["doc_count"] == 2


def test_export_never_leaves_half_a_file(tmp_path: Path) -> None:
    """A write that fails midway leaves the old file, and nothing beside it."""
    target = tmp_path / "out.jsonl"
    target.write_text("old\n")
    with pytest.raises(TypeError):
        indexes._write(target, [{"id": "a"}, {"id": object()}])
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert target.read_text() == "old\n"


def test_turns_come_before_what_is_no_turn(tmp_path: Path) -> None:
    """A note added to a call's index has no number and is shown last."""

    async def fill() -> None:
        async with MossClient(cloud=tmp_path / "cloud") as client:
            note = DocumentInfo("note", "prefers mornings")
            turn = DocumentInfo("t", "hi", {"turn": 1, "speaker": "caller", "at_s": 3.0})
            await client.create_index("call", [note, turn])

    asyncio.run(fill())
    lines = run("session", "show", "call", "--cloud", tmp_path / "cloud").splitlines()
    assert lines[1:] == ["00:03   1 caller hi", "          -      prefers mornings"]


def test_nothing_is_written_but_what_is_ours(cloud: Path, tmp_path: Path) -> None:
    """No library that we load leaves files of its own, such as telemetry kept for later."""
    home = {name: str(tmp_path / name) for name in ("HOME", "TMPDIR", "XDG_CACHE_HOME")}
    for folder in home.values():
        Path(folder).mkdir()
    subprocess.run(
        [*MODULE, "--cloud", str(cloud), "query", "help", "refund"],
        stdout=subprocess.DEVNULL,
        env={**os.environ, **home},
        timeout=60,
        check=True,
    )
    files = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in files if path.parts[:2] != ("XDG_CACHE_HOME", "moss_voice")} == set()


# --- doctor ----------------------------------------------------------------------------------------


def test_doctor_checks_everything_and_leaves_nothing(tmp_path: Path) -> None:
    """Versions, model, cloud, journal, speed and memory, with numbers; no file stays."""
    at = ("--cloud", tmp_path / "cloud", "--journal", tmp_path / "journal")
    found = run_json("doctor", *at)
    assert found["ok"] is True
    checks = {check["name"]: check for check in found["checks"]}
    assert list(checks) == ["versions", "model", "cloud", "journal", "speed", "memory"]
    # A busy machine may be slow; nothing may fail.
    assert {check["status"] for check in checks.values()} <= {"ok", "slow"}
    assert checks["versions"]["values"]["moss_voice"] == moss_voice.__version__
    assert checks["model"]["values"]["dim"] == 384
    assert checks["journal"]["values"]["sync_ms"] > 0
    speed = checks["speed"]["values"]
    assert speed["embed_ms"] > 0
    assert speed["context_ms"]["p95"] >= speed["context_ms"]["median"] > 0
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert list((tmp_path / "cloud").iterdir()) == list((tmp_path / "journal").iterdir()) == []


def test_doctor_finds_what_is_broken(tmp_path: Path) -> None:
    """A cloud or journal that cannot be written is exit code 1 with what to do; the rest is checked."""
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    at = ("doctor", "--cloud", in_the_way / "cloud", "--journal", in_the_way / "journal")
    result = CliRunner().invoke(app, [str(arg) for arg in (*at, "--json")])
    assert result.exit_code == 1
    found = json.loads(result.stdout)
    assert found["ok"] is False
    failed = {check["name"]: check for check in found["checks"] if check["status"] == "failed"}
    assert set(failed) == {"cloud", "journal"}
    assert all(check["todo"] for check in failed.values())
