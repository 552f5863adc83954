"""The examples run as they stand; `tests/test_docs.py` runs what the documents show."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Those that need keys are run by tests of their own, the observed one by `test_observability.py`, and the
# rest of these by `test_examples_agents.py`.
NEED_KEYS = ("livekit_agent", "pipecat_bot")
OBSERVED = ("opentelemetry_livekit",)
TOLD_ELSEWHERE = (
    "custom_model",
    "escalation_brief",
    "multi_agent",
    "multi_tenant_worker",
    "omni_channel",
    "own_store",
    "returning_caller",
)
EXAMPLES = sorted(
    path
    for path in (ROOT / "examples").glob("*.py")
    if path.stem not in (*NEED_KEYS, *OBSERVED, *TOLD_ELSEWHERE)
)


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


def quoted(name: str) -> str:
    """Return what `examples/README.md` quotes of what an example prints."""
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    (quote,) = re.findall(
        rf"^\| \[{name}\.py\]\({name}\.py\) \| .* \| `(.+)` \|$", page, re.MULTILINE
    )
    return str(quote)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs_and_prints(path: Path, tmp_path: Path) -> None:
    """Every example runs by itself, without keys or network, and prints what its page quotes."""
    assert quoted(path.stem) in run([str(path)], tmp_path)


def test_every_example_is_on_their_page() -> None:
    """`examples/README.md` lists each example once, and nothing else."""
    page = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[(\w+\.py)\]\(\1\) \|", page, re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in (ROOT / "examples").glob("*.py"))


def test_quickstart_recalls_what_it_claims(tmp_path: Path) -> None:
    """The first example finds the refund passage for the reply and the charge for the specialist."""
    shown = run([str(ROOT / "examples" / "quickstart.py")], tmp_path)
    block, _, recalled = shown.partition("</call_memory>")
    assert "[support-faqs: refunds] Refunds reach your card within five working days." in block
    assert "forty nine ninety nine" in recalled
