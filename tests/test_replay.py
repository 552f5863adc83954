"""`moss-voice replay` plays any file of calls, tells what happened, and keeps what it is told to."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moss_voice.calls import read_calls
from moss_voice.cli.app import app
from moss_voice.cli.play import Tally, quantile
from moss_voice.ranking import PARTS

PATIENT = ("--deadline-ms", "60000")

CALLS = [
    {
        "id": "order-1",
        "turns": [
            {"i": 0, "speaker": "agent", "text": "Bakery on the Hill, how can I help?"},
            {"i": 1, "speaker": "user", "text": "I ordered a walnut cake, number five one two"},
            {"i": 2, "speaker": "agent", "text": "Five one two, yes. What about it?"},
            {"i": 3, "speaker": "action", "text": "order 512 opened"},
            {"i": 4, "speaker": "user", "text": ""},
            {"i": 5, "speaker": "user", "text": "can I send it back if it is stale?"},
        ],
        "knowledge_turns": [{"turn": 5, "gold": ["returns"]}, {"turn": 1, "gold": ["elsewhere"]}],
    },
    {
        "id": "order-2",
        "turns": [
            {"i": 0, "speaker": "user", "text": "when do you open on sunday?"},
            {"i": 1, "speaker": "agent", "text": "On Sundays at nine.", "interrupted": True},
        ],
    },
]
FAQ = [
    {"id": "returns", "text": "Stale or damaged cakes can be sent back within two days."},
    {"id": "hours", "text": "We open at seven, on Sundays at nine."},
]

INNS = ("Lamplighter Inn", "Quayside Lodge", "Marchmont House", "Thornbury Arms", "Gosforth Hall")
SAID = (
    "can I bring my dog to the quayside lodge",
    "the weather has been lovely all week",
    "and what does parking cost there",
)


@pytest.fixture
def stay(tmp_path: Path) -> tuple[Path, Path]:
    """A call about one of several inns, and what is known of them."""
    turns = [{"i": i, "speaker": "user", "text": text} for i, text in enumerate(SAID)]
    inns = [
        {"id": f"{inn[:4].lower()}-{topic}", "text": f"{text} at {inn}.", "metadata": {"inn": inn}}
        for inn in INNS
        for topic, text in (
            ("dogs", "Dogs are welcome"),
            ("parking", "Parking costs nine pounds a night"),
        )
    ]
    return (
        _lines(tmp_path / "stay.jsonl", [{"id": "stay", "turns": turns}]),
        _lines(tmp_path / "inns.jsonl", inns),
    )


@pytest.fixture
def calls(tmp_path: Path) -> Path:
    return _lines(tmp_path / "calls.jsonl", CALLS)


@pytest.fixture
def faq(tmp_path: Path) -> Path:
    return _lines(tmp_path / "bakery.jsonl", FAQ)


def _lines(path: Path, rows: Sequence[object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def _run(*args: str | Path, code: int = 0) -> str:
    result = CliRunner().invoke(app, [str(arg) for arg in args])
    assert result.exit_code == code, result.stderr
    return result.stdout if code == 0 else result.stderr


def _replay(*args: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return the calls and the summary of a replay's JSON lines."""
    rows = [json.loads(line) for line in _run("replay", *args, "--json", *PATIENT).splitlines()]
    assert [row["kind"] for row in rows] == ["call"] * (len(rows) - 1) + ["summary"]
    return rows[:-1], rows[-1]


def test_every_call_is_played_pushed_and_resumed(calls: Path, faq: Path) -> None:
    """Blank turns and actions are told but not remembered; another process has all the others.

    A passage that is in none of the indexes is no miss.
    """
    played, summary = _replay(calls, "--knowledge", faq)
    assert [call["call"] for call in played] == ["order-1", "order-2"]
    assert [call["timing"] for call in played] == ["synthetic", "synthetic"]
    first = played[0]
    assert [turn["number"] for turn in first["turns"]] == [1, 2, 3, None, None, 4]
    assert first["push"]["doc_count"] == 4
    assert first["turns"][5]["found_gold"] is True
    assert "gold" not in first["turns"][1]
    assert played[1]["turns"][1]["interrupted"] is True
    assert summary["calls"] == 2
    assert summary["turns"] == 6
    assert summary["knowledge"] == {"turns": 1, "found": 1}
    assert summary["specialist"]["resumed"] == 2
    assert summary["specialist"]["found"] == summary["specialist"]["asked"] == 2


def test_nothing_is_kept_unless_asked(calls: Path, faq: Path, tmp_path: Path) -> None:
    """Knowledge may come from the user's cloud, which then holds what it held before."""
    cloud = tmp_path / "cloud"
    _run("--cloud", cloud, "index", "create", "bakery", faq)
    before = {path: path.read_bytes() for path in cloud.rglob("*") if path.is_file()}
    _, summary = _replay(calls, "--cloud", cloud, "--knowledge", "bakery")
    assert summary["knowledge"] == {"turns": 1, "found": 1}
    assert {path: path.read_bytes() for path in cloud.rglob("*") if path.is_file()} == before


def test_save_keeps_the_calls_and_can_be_repeated(calls: Path, faq: Path, tmp_path: Path) -> None:
    """With --save the calls are in the user's cloud; playing them again changes no turn."""
    at = ("--cloud", tmp_path / "cloud")
    _run(*at, "index", "create", "bakery", faq)
    for version in (1, 2):
        played, _ = _replay(calls, *at, "--save", "--knowledge", "bakery")
        assert played[0]["push"]["version"] == version
        shown = json.loads(_run("session", "show", "order-1", *at, "--json"))
        assert [turn["turn"] for turn in shown["turns"]] == [1, 2, 3, 4]
        assert shown["turns"][1]["text"] == CALLS[0]["turns"][1]["text"]  # type: ignore[index]
    names = [row["name"] for row in json.loads(_run(*at, "index", "list", "--json"))]
    assert names == ["bakery", "order-1", "order-2"]


def test_calls_are_chosen(calls: Path) -> None:
    """--call plays one, --limit the first ones; without knowledge no passage is judged."""
    assert [call["call"] for call in _replay(calls, "--call", "order-2")[0]] == ["order-2"]
    played, summary = _replay(calls, "--limit", "1")
    assert [call["call"] for call in played] == ["order-1"]
    assert "knowledge" not in summary


def test_text_tells_each_turn_or_each_call(
    calls: Path, faq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default every turn with what was recalled; with --brief a line per call."""
    monkeypatch.setenv("COLUMNS", "80")
    full = _run("replay", calls, "--knowledge", faq, *PATIENT)
    brief = _run("replay", calls, "--knowledge", faq, "--brief", *PATIENT)
    assert "walnut cake" in full
    assert "bakery: returns" in full
    assert "walnut cake" not in brief
    assert brief.count("order-") == 2
    for text in (full, brief):
        assert "2 of 2 with every turn" in text
        assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("width", [80, 120])
def test_a_replay_tells_why(
    stay: tuple[Path, Path], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Per turn what it is about and whether knowledge was needed, per hit what it was ranked by."""
    monkeypatch.setenv("COLUMNS", str(width))
    calls, inns = stay
    asked = ("replay", calls, "--knowledge", inns, "--visible", "0", *PATIENT)
    told = _run(*asked, "--explain")
    lines = told.splitlines()
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip()] == []
    assert len(re.findall(r"about Quayside Lodge", told)) == 3
    assert re.search(r"need 0\.\d\d: turns only", told)
    assert re.search(r"rank \d\.\d\d = semantic 0\.\d\d \+ keyword \S+ \+ focus 0\.50", told)
    hits = [at for at, line in enumerate(lines) if re.match(r" {19}(inns: |turn \d)", line)]
    sums = [at for at, line in enumerate(lines) if re.match(r" {21}rank ", line)]
    assert sums == [at + 1 for at in hits] != []
    plain = _run(*asked)
    for words in ("rank", "about", "need"):
        assert words not in plain


def test_a_replay_in_json_always_tells_why(stay: tuple[Path, Path]) -> None:
    """Need, parts of each hit and what the call is about, without being asked."""
    calls, inns = stay
    (call,), _ = _replay(calls, "--knowledge", inns, "--visible", "0")
    assert [turn["about"] for turn in call["turns"]] == [["Quayside Lodge"]] * 3
    first, second, third = (turn["context"] for turn in call["turns"])
    assert first["need"] >= 1 > second["need"]
    assert {hit["index_name"] for hit in second["hits"]} <= {"stay"}
    best = third["hits"][0]
    assert best["id"] == "quay-parking"
    assert best["parts"]["focus"] == pytest.approx(0.5)
    assert list(best["parts"]) == ["semantic", "keyword", "focus", "neighbour", "recency", "repeat"]


def test_parts_of_the_retrieval_can_be_left_out(stay: tuple[Path, Path]) -> None:
    """--without turns parts off by name, several of them too; a field of no names has no focus either."""
    calls, inns = stay
    (call,), _ = _replay(
        calls, "--knowledge", inns, "--visible", "0", "--without", "gate", "--without", "focus"
    )
    assert [turn["about"] for turn in call["turns"]] == [[]] * 3
    contexts = [turn["context"] for turn in call["turns"]]
    assert [context["need"] for context in contexts] == [None] * 3
    found = [hit for context in contexts for hit in context["hits"]]
    assert found
    assert {hit["parts"]["focus"] for hit in found} == {0.0}
    (call,), _ = _replay(calls, "--knowledge", inns, "--focus", "town")
    assert [turn["about"] for turn in call["turns"]] == [[]] * 3
    (call,), _ = _replay(calls, "--knowledge", inns, "--focus", "inn")
    assert [turn["about"] for turn in call["turns"]] == [["Quayside Lodge"]] * 3


def test_every_part_is_taken_and_named_in_the_help(
    calls: Path, faq: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--help lists the parts that there are, and each of them can be left out, all at once too."""
    monkeypatch.setenv("COLUMNS", "120")
    told = _run("replay", "--help")
    for part in PARTS:
        assert re.search(rf"\b{part}\b", told)
    options = [word for part in PARTS for word in ("--without", part)]
    played, _ = _replay(calls, "--knowledge", faq, *options)
    assert [turn["context"]["outcome"] for turn in played[0]["turns"] if turn["context"]] == [
        "ok"
    ] * 2


def test_results_stay_on_stdout_while_a_bar_is_shown(calls: Path, faq: Path) -> None:
    """With a terminal for stderr alone, stdout still holds every line of JSON, and nothing else."""
    ours, theirs = pty.openpty()
    shown = bytearray()

    def watch() -> None:
        # A terminal that nobody reads from makes its writer wait; one without a writer is an error.
        with contextlib.suppress(OSError):
            while block := os.read(ours, 1 << 16):
                shown.extend(block)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        replayed = subprocess.run(
            [sys.executable, "-m", "moss_voice.cli", "replay", calls, "--json", "--knowledge", faq],
            stdout=subprocess.PIPE,
            stderr=theirs,
            env={**os.environ, "TERM": "xterm-256color"},
            timeout=60,
            check=True,
        )
    finally:
        os.close(theirs)
        watcher.join()
        os.close(ours)
    assert b"Playing the calls" in shown
    rows = [json.loads(line) for line in replayed.stdout.splitlines()]
    assert [row["kind"] for row in rows] == ["call", "call", "summary"]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("missing.jsonl",), 2, "missing.jsonl"),
        (("{calls}", "--call", "order-9"), 1, "holds no call 'order-9'"),
        (("{calls}", "--knowledge", "nothing"), 3, "neither a file here nor an index"),
        (("{broken}",), 1, "broken.jsonl:1: turns[0].text: Field required"),
        (("{calls}", "--save", "--cloud", "memory://x"), 1, "ends with this process"),
        (("{calls}", "--without", "gates"), 2, "--without"),
        (("{calls}", "--without", "gates"), 2, "near_duplicates, numbers, gate; got gates"),
        (("{calls}", "--brief", "--explain"), 2, "--explain"),
    ],
)
def test_faults_are_told(
    args: tuple[str, ...], code: int, words: str, calls: Path, tmp_path: Path
) -> None:
    """A message and an exit code for each; nothing that was said is quoted."""
    broken = _lines(
        tmp_path / "broken.jsonl",
        [{"id": "x", "turns": [{"i": 0, "speaker": "user", "t": "secret"}]}],
    )
    told = _run("replay", *(arg.format(calls=calls, broken=broken) for arg in args), code=code)
    assert words in " ".join(told.split())
    assert "secret" not in told
    assert "Traceback" not in told


def test_quantiles_are_values_that_were_measured() -> None:
    """The p95 of 1..100 is 95; of one value it is that value."""
    assert quantile([float(n) for n in range(100, 0, -1)], 0.95) == 95.0
    assert quantile([float(n) for n in range(1, 5)], 0.5) == 2.0
    assert quantile([7.0], 0.95) == 7.0
    assert Tally().as_json()["context_ms"] is None


def test_development_calls_replay(data_dir: Path, tmp_path: Path) -> None:
    """Real calls of three kinds: every turn said is resumed, every context is answered."""
    lines = (data_dir / "calls" / "calls.dev.jsonl").read_text(encoding="utf-8").splitlines()
    path = tmp_path / "calls.jsonl"
    path.write_text("\n".join(lines[::20]), encoding="utf-8")
    played, summary = _replay(path)
    scripts = list(read_calls(path))
    assert [call["call"] for call in played] == [script.id for script in scripts]
    assert len(scripts) == summary["specialist"]["resumed"] == 3
    for call, script in zip(played, scripts, strict=True):
        assert [turn["text"] for turn in call["turns"] if turn["number"]] == [
            turn.text for turn in script.spoken if turn.text.strip()
        ]
    assert set(summary["outcomes"]) <= {"ok", "skipped"}


@pytest.mark.slow
def test_all_development_calls_replay(data_dir: Path) -> None:
    """All 48 calls are pushed, resumed whole by another process and found there."""
    played, summary = _replay(data_dir / "calls" / "calls.dev.jsonl")
    assert len(played) == summary["calls"] == 48
    assert summary["specialist"]["resumed"] == summary["specialist"]["found"] == 48
    assert set(summary["outcomes"]) <= {"ok", "skipped"}
    assert summary["turns"] == sum(call["push"]["doc_count"] for call in played)
