"""`moss-voice demo` tells a believable call, truthfully, and leaves nothing behind."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from livekit.plugins.moss_voice.testing import SimulatedCall
from typer.testing import CliRunner

from moss_voice import CallMemory, demo
from moss_voice.cli.app import app
from moss_voice.text import is_filler, squash

Told = dict[str, Any]

# A context may take as long as it likes: what it holds is tested here, not this machine's mood.
PATIENT = ("--deadline-ms", "60000")

# As where LiveKit is not installed: any import of it fails like one of a package that is not there.
NO_LIVEKIT = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "livekit":
            raise {error}

sys.meta_path.insert(0, Absent())
"""
NOT_THERE = 'ModuleNotFoundError(f"No module named {name!r}", name=name)'
BROKEN = 'ImportError("libsomething.so: cannot open shared object file")'


def run_demo(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a real `moss-voice demo`."""
    return subprocess.run(
        [sys.executable, "-m", "moss_voice.cli", "demo", *PATIENT, *options],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=200,
        check=False,
    )


@pytest.fixture(scope="module", params=["livekit", "none"])
def told(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Told:
    """What a real `moss-voice demo --json` prints, in each host."""
    temporary = tmp_path_factory.mktemp("tmp")
    run = run_demo("--json", "--host", request.param, TMPDIR=str(temporary))
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    assert list(temporary.glob("moss-voice*")) == []
    document: Told = json.loads(run.stdout)
    assert document["host"]["name"] == request.param
    document["parent"] = os.getpid()
    return document


def test_call_has_what_real_calls_have(told: Told) -> None:
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


def test_numbers_are_those_that_sources_name(told: Told) -> None:
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


def test_every_turn_worth_a_question_has_a_context(told: Told) -> None:
    """No context is late or failed; most have hits, of both sources, and small talk has none."""
    asked = [
        turn["context"]
        for turn in told["turns"]
        if turn["context"] and turn["context"]["outcome"] != "skipped"
    ]
    assert len(asked) >= 12
    assert {context["outcome"] for context in asked} == {"ok"}
    assert len(asked) > sum(bool(context["hits"]) for context in asked) >= 9
    assert all(context["took_ms"] > 0 for context in asked)
    assert {hit["index_name"] for c in asked for hit in c["hits"]} == {
        told["call"],
        told["knowledge"]["index"],
    }
    assert sum(context["prefetched"] for context in asked) >= len(asked) // 2


def test_right_passages_are_recalled(told: Told) -> None:
    """Of the turns whose passage is known, follow-ups among them, nearly all recall it."""
    known = [turn for turn in told["turns"] if "gold" in turn]
    assert len(known) == len(demo.call().knowledge)
    for turn in known:
        ids = {hit["id"] for hit in turn["context"]["hits"]}
        assert turn["found_gold"] == bool(ids & set(turn["gold"]))
    assert sum(turn["found_gold"] for turn in known) >= len(known) - 2


def test_visible_turns_are_not_recalled(told: Told) -> None:
    """What the LLM still sees in its own history is left out."""
    spoken = [turn for turn in told["turns"] if turn["number"] is not None]
    for position, turn in enumerate(spoken):
        visible = {earlier["id"] for earlier in spoken[max(0, position - 6) : position]}
        if turn["context"]:
            assert not visible & {hit["id"] for hit in turn["context"]["hits"]}


def test_specialist_is_another_process_that_finds_the_answers(told: Told) -> None:
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


def test_summary_counts_what_happened(told: Told) -> None:
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
    heard = sorted(turn["heard_ms"] for turn in turns if turn["number"] is not None)
    assert summary["heard_ms"]["max"] == pytest.approx(heard[-1], abs=1e-3)
    assert told["push"]["version"] == 1
    assert told["push"]["uploaded_bytes"] > 1000


def test_every_turn_of_the_script_is_told_as_it_was_spoken(told: Told) -> None:
    """Each once, in its place, actions included; of the one that is cut off no more than was said."""
    assert [turn["i"] for turn in told["turns"]] == [turn.number for turn in demo.call().turns]
    assert told["push"]["doc_count"] == len(demo.call().spoken)
    ids = [turn["id"] for turn in told["turns"] if turn["speaker"] != "action"]
    assert len(set(ids)) == len(ids)
    assert None not in ids
    times = [turn["at_s"] for turn in told["turns"]]
    assert times == sorted(times)
    for turn, written in zip(told["turns"], demo.call().turns, strict=True):
        assert turn["speaker"] == written.speaker
        assert turn["interrupted"] == written.interrupted
        if turn["interrupted"]:
            said, meant = squash(turn["text"]).split(), squash(written.text).split()
            assert len(said) > 3
            assert said[:-1] == meant[: len(said) - 1] or said[: len(meant)] == meant
        else:
            assert squash(turn["text"]) == squash(written.text)


def test_the_llm_is_asked_once_for_each_turn_and_its_history_stays_clean(told: Told) -> None:
    """Blocks are in the prompts of the turns that something was recalled for, and nowhere else."""
    host = told["host"]
    if host["name"] == "none":  # the same names, of which nothing is known
        names = ("version", "speed", "requests", "with_block", "delay_ms")
        assert host == {"name": "none", **dict.fromkeys(names)}
        return
    callers = [turn for turn in told["turns"] if turn["speaker"] == "caller"]
    assert host["version"] == version("livekit-agents")
    assert host["speed"] > 1
    assert host["requests"] == host["caller_turns"] == len(callers)
    assert host["with_block"] == sum(bool(turn["context"]["hits"]) for turn in callers)
    assert 0 < host["with_block"] < host["requests"]
    assert host["misplaced"] == 0
    assert host["in_history"] == 0
    assert host["notes"] == []
    assert 0 < host["delay_ms"]["median"] <= host["delay_ms"]["max"]


@pytest.mark.parametrize(("host", "width"), [("livekit", 80), ("none", 120)])
def test_text_fits_and_is_plain_where_nobody_watches(
    host: str, width: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Piped output has no colour codes, no line that is too long, and no blanks at line ends."""
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    result = CliRunner().invoke(app, ["demo", "--host", host, *PATIENT])
    assert result.exit_code == 0, result.stderr
    assert result.stderr == ""
    assert "\x1b" not in result.stdout
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    assert [line for line in lines if line != line.rstrip()] == []
    for words in ("recalled 5 in", "a filler", "cut off", "turn 5, agent", "resumed 36"):
        assert words in result.stdout
    text = " ".join(result.stdout.split())
    if host == "livekit":
        assert f"a real AgentSession of livekit-agents {version('livekit-agents')}" in text
        assert "20 times as fast as life" in text
        assert re.search(r"LLM requests +18 for 18 turns of the caller\n", result.stdout)
        assert re.search(r"blocks left in the chat history +none\n", result.stdout)
    else:
        assert "The engine plays it alone, without a voice framework." in text
        assert "LLM requests" not in text
    assert list(tmp_path.glob("moss-voice*")) == []


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (NOT_THERE, "is not installed"),
        (BROKEN, "cannot be imported (libsomething.so: cannot open shared object file)"),
    ],
)
def test_demo_works_without_livekit_and_says_so(error: str, why: str, tmp_path: Path) -> None:
    """Where LiveKit cannot be had the engine plays alone, unless LiveKit was asked for by name."""
    hook = NO_LIVEKIT.replace("{error}", error)
    (tmp_path / "sitecustomize.py").write_text(hook, encoding="utf-8")
    place = {"PYTHONPATH": str(tmp_path), "COLUMNS": "100"}
    run = run_demo(**place)
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    text = " ".join(run.stdout.split())
    assert f"The engine plays it alone: livekit-agents {why}; `pip install 'moss-voice[li" in text
    assert "12 of 12 answers found" in text
    refused = run_demo("--host", "livekit", **place)
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert refused.stderr.startswith(
        f"error: --host livekit: livekit-agents {why}; install it with"
    )
    assert "pip install 'moss-voice[livekit]'" in refused.stderr
    assert "Traceback" not in refused.stderr


@pytest.mark.parametrize("host", ["livekit", "none"])
def test_a_turn_that_is_lost_fails_the_demo(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns pushed must be turns spoken: a memory that drops one is no success."""
    heard = CallMemory.heard

    async def forgetful(self: CallMemory, text: str, *args: Any, **options: Any) -> str | None:
        if squash(text) == "and does that cost me anything":
            return None
        return await heard(self, text, *args, **options)

    monkeypatch.setattr(CallMemory, "heard", forgetful)
    # What was said and became no turn would be kept after all.
    monkeypatch.setattr(CallMemory, "uttered", lambda *args, **options: None)
    result = CliRunner().invoke(app, ["demo", "--json", "--host", host, *PATIENT])
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "of the 36 turns of the demo's call 35 were remembered and 35 pushed" in result.stderr


def test_a_livekit_session_that_breaks_fails_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that stops in the middle of the call is told as such, and its complaints with it."""
    say = SimulatedCall.caller_says

    async def breaking(self: SimulatedCall, text: str, **options: Any) -> None:
        if squash(text) == "mm hmm":
            logging.getLogger("livekit.agents").error("the line is dead")
            raise TimeoutError("waited 60 s for the host to listen")
        await say(self, text, **options)

    monkeypatch.setattr(SimulatedCall, "caller_says", breaking)
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    result = CliRunner().invoke(app, ["demo", "--host", "livekit", *PATIENT])
    assert result.exit_code == 1
    assert "The call in numbers" not in result.stdout
    assert "Handed over" not in result.stdout
    note, error, *_ = result.stderr.splitlines()
    assert note == "error: livekit.agents: the line is dead"
    assert error.startswith("error: the call in LiveKit did not go on: waited 60 s for the host")


def test_other_commands_do_not_import_livekit() -> None:
    """The framework takes seconds to import: the demo alone does, and only in it."""
    code = (
        "import sys, moss_voice.cli.app, moss_voice.cli.demo, moss_voice.cli.replay,"
        " moss_voice.cli.doctor, moss_voice.cli.indexes;"
        "print([name for name in sys.modules if name.partition('.')[0] == 'livekit'])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"


@pytest.mark.parametrize("host", ["livekit", "none"])
def test_interrupt_ends_quietly_and_cleans_up(host: str, tmp_path: Path) -> None:
    """Ctrl-C during a call is exit code 130, no traceback, and no temporary directory left."""
    process = subprocess.Popen(
        [sys.executable, "-m", "moss_voice.cli", "demo", "--pace", "real", "--host", host],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        # Where the tests run in the background of a shell, that one's children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
    )
    assert process.stdout is not None
    for line in process.stdout:
        if "agent" in line and "Larkline" in line and line.startswith("00:"):
            break
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert told == "error: interrupted\n"
    assert list(tmp_path.glob("moss-voice*")) == []
