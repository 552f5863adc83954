"""`moss-voice demo` tells a believable call, truthfully, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from moss_voice import demo
from moss_voice.cli.app import app
from moss_voice.text import is_filler

# A context may take as long as it likes: what it holds is tested here, not this machine's mood.
PATIENT = ("--deadline-ms", "60000")


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a real `moss-voice demo --json` prints."""
    temporary = tmp_path_factory.mktemp("tmp")
    run = subprocess.run(
        [sys.executable, "-m", "moss_voice.cli", "demo", "--json", *PATIENT],
        capture_output=True,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert list(temporary.glob("moss-voice*")) == []
    document: dict[str, Any] = json.loads(run.stdout)
    document["parent"] = os.getpid()
    return document


def test_call_has_what_real_calls_have(told: dict[str, Any]) -> None:
    """At least 25 turns, an interruption, fillers for which nothing is asked, a hand-off."""
    turns = told["turns"]
    assert sum(turn["number"] is not None for turn in turns) >= 25
    assert any(turn["interrupted"] for turn in turns if turn["speaker"] == "agent")
    fillers = [t for t in turns if t["speaker"] == "caller" and is_filler(t["text"])]
    assert len(fillers) >= 2
    for turn in fillers:
        assert turn["context"]["outcome"] == "skipped"
        assert turn["context"]["hits"] == []
    assert turns[-1]["speaker"] == "action"


def test_numbers_are_those_that_sources_name(told: dict[str, Any]) -> None:
    """A hit that calls itself `turn 12, caller, 03:21` is what the display calls turn 12."""
    turns = {turn["id"]: turn for turn in told["turns"] if turn["number"] is not None}
    seen = 0
    for turn in turns.values():
        for hit in turn["context"]["hits"] if turn["context"] else ():
            if hit["index_name"] != told["call"]:
                continue
            source = re.fullmatch(r"turn (\d+), (caller|agent), (\d\d):(\d\d)", hit["source"])
            assert source is not None
            recalled = turns[hit["id"]]
            assert int(source[1]) == recalled["number"] < turn["number"]
            assert source[2] == recalled["speaker"]
            assert int(source[3]) * 60 + int(source[4]) == int(recalled["at_s"])
            seen += 1
    assert seen > 0


def test_every_turn_worth_a_question_has_a_context(told: dict[str, Any]) -> None:
    """No context is late, failed or empty, follow-ups included; both sources are drawn from."""
    asked = [
        turn["context"]
        for turn in told["turns"]
        if turn["context"] and turn["context"]["outcome"] != "skipped"
    ]
    assert len(asked) >= 12
    assert {context["outcome"] for context in asked} == {"ok"}
    assert all(context["hits"] for context in asked)
    assert all(context["took_ms"] > 0 for context in asked)
    assert {hit["index_name"] for c in asked for hit in c["hits"]} == {
        told["call"],
        told["knowledge"]["index"],
    }
    assert sum(context["prefetched"] for context in asked) >= len(asked) // 2


def test_right_passages_are_recalled(told: dict[str, Any]) -> None:
    """Of the turns whose passage is known, follow-ups among them, nearly all recall it."""
    known = [turn for turn in told["turns"] if "gold" in turn]
    assert len(known) == len(demo.call().knowledge)
    for turn in known:
        ids = {hit["id"] for hit in turn["context"]["hits"]}
        assert turn["found_gold"] == bool(ids & set(turn["gold"]))
    assert sum(turn["found_gold"] for turn in known) >= len(known) - 2


def test_visible_turns_are_not_recalled(told: dict[str, Any]) -> None:
    """What the LLM still sees in its own history is left out."""
    spoken = [turn for turn in told["turns"] if turn["number"] is not None]
    for position, turn in enumerate(spoken):
        visible = {earlier["id"] for earlier in spoken[max(0, position - 6) : position]}
        if turn["context"]:
            assert not visible & {hit["id"] for hit in turn["context"]["hits"]}


def test_specialist_is_another_process_that_finds_the_answers(told: dict[str, Any]) -> None:
    """It resumes every turn that was pushed and finds at least ten of the twelve answers."""
    specialist = told["specialist"]
    assert specialist["pid"] != told["parent"]
    spoken = [turn for turn in told["turns"] if turn["number"] is not None]
    assert specialist["docs"] == told["push"]["doc_count"] == len(spoken)
    questions = demo.questions()
    assert [answer["query"] for answer in specialist["answers"]] == [q.query for q in questions]
    for answer, question in zip(specialist["answers"], questions, strict=True):
        ranks = [
            rank
            for rank, doc in enumerate(answer["docs"], start=1)
            if doc["id"] in answer["expected"]
            and question.answer.casefold() in doc["text"].casefold()
        ]
        assert answer["rank"] == (ranks[0] if ranks else None)
    assert sum(answer["rank"] is not None for answer in specialist["answers"]) >= 10


def test_summary_counts_what_happened(told: dict[str, Any]) -> None:
    """The totals are those of the turns printed."""
    turns, summary = told["turns"], told["summary"]
    contexts = [turn["context"] for turn in turns if turn["context"]]
    assert summary["turns"] == sum(turn["number"] is not None for turn in turns)
    assert summary["contexts"] == len(contexts)
    assert summary["prefetched"] == sum(context["prefetched"] for context in contexts)
    assert summary["with_hits"] == sum(bool(context["hits"]) for context in contexts)
    took = sorted(c["took_ms"] for c in contexts if c["outcome"] != "skipped")
    assert summary["context_ms"]["max"] == pytest.approx(took[-1], abs=1e-3)
    assert summary["context_ms"]["median"] == pytest.approx(took[(len(took) - 1) // 2], abs=1e-3)
    assert told["push"]["version"] == 1
    assert told["push"]["uploaded_bytes"] > 1000


@pytest.mark.parametrize("width", [80, 120])
def test_text_fits_and_is_plain_where_nobody_watches(
    width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Piped output has no colour codes, no line that is too long, and no blanks at line ends."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = CliRunner().invoke(app, ["demo", *PATIENT])
    assert result.exit_code == 0, result.stderr
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip()] == []
    for words in ("recalled 5 in", "a filler", "cut off", "turn 2, caller, 00:06", "resumed 36"):
        assert words in result.stdout
    assert list(tmp_path.glob("moss-voice*")) == []


def test_interrupt_ends_quietly_and_cleans_up(tmp_path: Path) -> None:
    """Ctrl-C during a call is exit code 130, no traceback, and no temporary directory left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moss_voice.cli", "demo", "--pace", "real"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "agent" in line and "Larkline" in line and line.startswith("00:"):
            break
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert told.startswith("error: interrupted")
    assert list(tmp_path.glob("moss-voice*")) == []
