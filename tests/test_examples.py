"""The examples run as they stand; `tests/test_docs.py` runs what the documents show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Those that need keys are run by tests of their own.
NEED_KEYS = {"livekit_agent.py", "pipecat_bot.py"}
EXAMPLES = sorted(p for p in (ROOT / "examples").glob("*.py") if p.name not in NEED_KEYS)

# Pipecat's own, as it is imported.
HOSTS_OWN = [
    option
    for message in ("'audioop' is deprecated", "`AudioContextTTSService` is deprecated")
    for option in ("-W", f"ignore:{message}:DeprecationWarning")
]


def run(code: list[str], folder: Path) -> str:
    """Run Python in a process of its own, warnings as errors; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", *HOSTS_OWN, *code],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_prints(path: Path, tmp_path: Path) -> None:
    """Every example runs by itself, without keys or network, and shows something."""
    assert run([str(path)], tmp_path).strip()


def test_quickstart_recalls_what_it_claims(tmp_path: Path) -> None:
    """The first example finds the refund passage for the reply and the charge for the specialist."""
    shown = run([str(ROOT / "examples" / "quickstart.py")], tmp_path)
    block, _, recalled = shown.partition("</call_memory>")
    assert "[support-faqs: refunds] Refunds reach your card within five working days." in block
    assert "forty nine ninety nine" in recalled
