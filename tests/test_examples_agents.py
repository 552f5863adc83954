"""The examples of agents around one index, and of one's own parts: what each prints is what it claims.

They run as a user runs them, in processes of their own with no argument, all at once to save time.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_examples import ROOT, TOLD_ELSEWHERE, quoted

EXAMPLES = ROOT / "examples"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Run every example in an empty home, and return what each printed, by name."""
    home = tmp_path_factory.mktemp("home")
    places = {f"XDG_{kind}_HOME": str(home / kind) for kind in ("DATA", "CACHE")}
    environ = {**os.environ, **places, "HOME": str(home), "TMPDIR": str(home)}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-W", "error", str(EXAMPLES / f"{name}.py")],
            cwd=home,
            env=environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in TOLD_ELSEWHERE
    }
    try:
        ended = {name: process.communicate(timeout=120) for name, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
    failed = {name: ended[name][1] for name, process in running.items() if process.returncode}
    assert not failed
    assert [*home.iterdir()] == [], "an example left something behind"
    return {name: out for name, (out, _) in ended.items()}


def after(text: str, line: str) -> str:
    """Return the line that follows one."""
    lines = text.splitlines()
    (place,) = [n for n, each in enumerate(lines) if each.strip() == line]
    return lines[place + 1].strip()


def test_omni_channel(told: dict[str, str]) -> None:
    """What was said on the phone is told to the chat agent, and is the first hit of the e-mail agent."""
    shown = told["omni_channel"]
    assert "- [turn 2, agent, 00:09] I am sorry. A technician can come on Thursday" in shown
    fault = after(shown, "what is wrong with the washing machine? (in all)")
    assert fault.startswith("phone: hi it's Ines Ibarra, um, the washing machine")
    assert after(shown, "which bell is he to ring? (in phone)").startswith(
        "phone: thursday is fine, ring the lower bell"
    )
    assert after(shown, "does the repair number change? (in chat)").startswith(
        "chat: Yes, on Friday"
    )
    assert "case-2041 is at version 3, with 7 documents." in shown


def test_escalation_brief(told: dict[str, str]) -> None:
    """The brief has who, what about, what happened, was promised, is open; each line is a turn's, word by word."""
    brief, _, search = told["escalation_brief"].partition("\n\n")
    assert "About: Mobile Plus" in brief
    parts = dict(re.findall(r"^(\w[^\n]*):\n((?:  .*\n?)*)", brief, re.MULTILINE))
    assert "my name is Ines Ibarra" in parts["Who"]
    assert "[turn 3, caller, 00:14]" in parts["What happened"]
    assert "[turn 7, caller, 00:42]" in parts["What happened"]
    assert (
        "refund one of them within five working days.  [turn 6, agent, 00:35]" in parts["Promised"]
    )
    assert "a colleague calls you back today.  [turn 8, agent, 00:49]" in parts["Promised"]
    (number,) = parts["Numbers"].splitlines()
    assert number == "  yes it's four four seven one, nine zero two six  [turn 5, caller, 00:28]"
    waits, asked = parts["Open, the newest first"].splitlines()
    assert waits == "  and do I have to call again?  [turn 10, caller, 01:10]"
    assert "who pays for the calls I made from Lisbon?" in asked
    assert "on the thirtieth  [turn 3, caller, 00:14]" in search


def test_returning_caller(told: dict[str, str]) -> None:
    """The call before is recalled for its caller alone, kept for so long, and forgotten on request."""
    shown = told["returning_caller"]
    moved = "when is the move to the new flat, and what does it cost me?"
    known, other = re.findall(
        rf"^2026-11-20-\d+: '{re.escape(moved)}'.*\n((?:    .*\n)*)", shown, re.MULTILINE
    )
    assert "2026-11-03-1740: Done: the move is booked for the first of December, at no" in known
    assert other == ""
    assert "4 calls, each kept for 90 days" in shown
    assert "forgotten: 7 turns, still found: 0" in shown
    assert "kept: [1] of the other caller" in shown


def test_multi_agent(told: dict[str, str]) -> None:
    """Each agent finds what was said to another; of two pushes at once one merges, and all turns are there."""
    shown = told["multi_agent"]
    assert "turn 3, caller" in after(shown, "billing asks: what is she charged for?")
    assert "turn 2, caller" in after(shown, "technical asks: what does the light do?")
    pushes = dict(re.findall(r"pushed version (\d): (.*)", shown))
    assert pushes["2"] == "was first"
    assert pushes["3"].startswith("merged with turn-5-")
    held = re.findall(r"^    turn (\d), (\w+): ", shown, re.MULTILINE)
    assert sorted(held) == [
        ("1", "caller"), ("2", "caller"), ("3", "caller"), ("4", "triage"), ("5", "billing"), ("5", "technical"),
    ]  # fmt: skip
    assert after(shown, "when does she get her money?") == "billing: You get it all back by Friday."
    assert after(shown, "is the router broken?").startswith("technical: The router is broken")


def test_multi_tenant_worker(told: dict[str, str]) -> None:
    """Tenants on the line at once see their own passages, names and turns; a wrong key opens nothing."""
    shown = told["multi_tenant_worker"]
    for tenant, passage in (("acme", "We open at seven."), ("globex", "We open at noon.")):
        for number in (1, 2):
            line = f"{tenant}, call-{number}: ['{passage}'], clients open: 2"
            assert line in shown.splitlines()
        names = f"{tenant}: ['call-1', 'call-2', 'faq']"
        assert after(shown, names) == f"call-1: ['hello {tenant}, when do you open?']"
    assert "clients open after the calls: 1" in shown
    assert "acme with the key of globex: refused" in shown


def test_custom_model(told: dict[str, str]) -> None:
    """Vectors of one's own find what is misspelled; a directory is a model, and its index takes no other."""
    shown = told["custom_model"]
    assert after(shown, "how do i pair the friz boxx?").startswith("fritzbox: Fritzbox 7590")
    assert after(shown, "so how do I pair my speedport?").startswith(
        "devices: speedport: Speedport"
    )
    assert "path:minilm: The parcel was handed to a neighbour." in shown
    assert "with another model: model_mismatch" in shown


def test_own_store(told: dict[str, str]) -> None:
    """Two that push at once into a store of one's own lose nothing; each version is an object in it."""
    shown = told["own_store"]
    assert "my parcel is with the neighbour" in shown
    assert "the neighbour moved out last week" in shown
    assert re.findall(r"^(\S+)\.json: \d+ bytes", shown, re.MULTILINE) == [
        "000000000001",
        "000000000002",
    ]


@pytest.mark.parametrize("name", TOLD_ELSEWHERE)
def test_their_page_quotes_them(name: str, told: dict[str, str]) -> None:
    """What `examples/README.md` quotes of an example is what it prints."""
    assert quoted(name) in told[name]


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short(path: Path) -> None:
    """Every example has fewer than 100 lines."""
    assert len(path.read_text(encoding="utf-8").splitlines()) < 100
