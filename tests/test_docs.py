"""Every block of the README and of `docs/` is run, or says why not; every link leads somewhere.

A comment just above a block tells what is not plain: `docs/decisions/010-docs-site.md` has the list.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import importlib
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote, urlsplit

import pytest
from typer.testing import CliRunner

from moss_voice import MossClient
from moss_voice.cli.app import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
LINKING = [
    *PAGES,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "moss_voice" / "models" / "minilm" / "MODEL_CARD.md",
    *sorted((ROOT / "examples").glob("*.md")),
]

# The README is read where comments are not meant to be: its marks, by the first line of a block.
README_MARKS = {
    "make demo   # a support call": "not run: `make test` runs these tests",
    "00:04  14 caller right, okay,": "output: sample",
    'pip install "moss-voice[server]"': "not run: installs; docs/cloud.md runs the same",
    "from livekit.agents import Agent,": "needs: livekit",
    "from typing import Any": "needs: pipecat",
}
# Shell that has a test of its own.
ELSEWHERE = {"docs/cloud.md": "tests/test_docs_cloud.py"}
# Pages whose blocks set up what a process has once: they run in one of their own.
ALONE = {"docs/observability.md"}
# More than these many blocks may not go unrun or uncompared.
MOST_NOT_RUN = 10
MOST_SAMPLES = 10

DATA = {"json", "jsonl", "csv", "markdown", "yaml", "ini"}
SHELL = {"sh", "console"}
LANGUAGES = {"python", "text", *SHELL, *DATA}
MARK = re.compile(
    r"file: (?P<file>[\w.-]+)|needs: (?P<needs>inspector|livekit|pipecat)|output(?P<sample>: sample)?"
    r"|not run: (?P<reason>\S.{8,})"
)
MODULES = {
    "inspector": "moss_voice.inspector",
    "livekit": "livekit.agents",
    "pipecat": "pipecat.pipeline.pipeline",
}
BLOCK = re.compile(
    r"(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>[^\n]*)\n(?P<text>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


class Block(NamedTuple):
    """A fenced block, and the comment above it."""

    where: str
    line: int
    mark: str
    language: str
    text: str

    def says(self, group: str) -> str | None:
        found = MARK.fullmatch(self.mark)
        return found[group] if found else None

    @property
    def not_run(self) -> bool:
        return self.says("reason") is not None

    @property
    def is_output(self) -> bool:
        return self.mark == "output"


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks_of(page: Path) -> list[Block]:
    """Return a page's blocks, in order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        mark = match["mark"] or ""
        if page.name == "README.md":
            starts = [m for start, m in README_MARKS.items() if match["text"].startswith(start)]
            mark = starts[0] if starts else mark
        line = text.count("\n", 0, match.start("text"))
        found.append(Block(name_of(page), line, mark, match["language"], match["text"]))
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
WITH_BLOCKS = sorted({block.where for block in BLOCKS})


# --- what is there -------------------------------------------------------------------------------


def test_every_block_is_run_or_says_why_not() -> None:
    """No block escapes: each has a language that is dealt with here and no mark that is unknown."""
    for page in PAGES:
        fences = re.findall(r"^[ \t>]*(?:```|~~~)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks_of(page)), f"{name_of(page)}: a block is not seen here"
    for block in BLOCKS:
        where = f"{block.where}:{block.line}"
        assert block.language in LANGUAGES, f"{where}: what is {block.language!r}?"
        assert not block.mark or MARK.fullmatch(block.mark), f"{where}: unknown mark {block.mark!r}"
        if block.language == "text":
            assert block.mark, f"{where}: an output that nobody compares"
        if block.language == "console":
            assert block.not_run, f"{where}: `sh` is run, `console` is not"


def test_few_blocks_are_not_run() -> None:
    """What is shown and not run stays a list that one can read."""
    assert len([block for block in BLOCKS if block.not_run]) <= MOST_NOT_RUN
    assert len([block for block in BLOCKS if block.mark == "output: sample"]) <= MOST_SAMPLES
    assert len(BLOCKS) > 40


def test_the_readmes_marks_are_of_blocks_that_are_there() -> None:
    """No mark in the table above outlives its block."""
    texts = [block.text for block in BLOCKS if block.where == "README.md"]
    for start in README_MARKS:
        assert any(text.startswith(start) for text in texts), start


def test_python_that_is_not_run_could_be() -> None:
    """Python that is not run compiles, and what it imports is there."""
    for block in BLOCKS:
        if block.language == "python" and block.not_run:
            check_imports(ast.parse(block.text))


def check_imports(tree: ast.Module) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def test_imports_are_looked_for() -> None:
    """The check above finds a name that is not there, or it would show nothing."""
    check_imports(ast.parse("from moss_voice import MossClient, filters"))
    with pytest.raises(ImportError, match="MossServer"):
        check_imports(ast.parse("from moss_voice import MossServer"))


# --- what runs -----------------------------------------------------------------------------------

# `moss-voice` as it is here, whatever is installed.
COMMAND = f'moss-voice() {{ {shlex.quote(sys.executable)} -m moss_voice.cli "$@"; }}\n'


def run_shell(block: Block, folder: Path) -> str:
    """Run a block's commands; returns what they printed to stdout.

    Those of ours are run in this process, which has the model already; others, and ours beside signs that a
    shell reads, in one shell.
    """
    commands = [line for line in block.text.splitlines() if not line.startswith("#")]
    if all(re.fullmatch(r"moss-voice [^$`|&;<>*~\\]+", line) for line in commands):
        return "".join(run_command(block, shlex.split(line)[1:]) for line in commands)
    with subprocess.Popen(
        ["bash", "-euo", "pipefail", "-c", COMMAND + block.text],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            told, complaints = process.communicate(timeout=120)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, (
        f"{block.where}:{block.line}\n{told[-2000:]}{complaints[-2000:]}"
    )
    return told


def run_command(block: Block, arguments: list[str]) -> str:
    done = CliRunner().invoke(app, arguments, env={"COLUMNS": "100", "NO_COLOR": "1"})
    assert done.exit_code == 0, f"{block.where}:{block.line}\n{done.output[-2000:]}"
    return done.stdout


def run_python(block: Block, names: dict[str, Any], runner: asyncio.Runner) -> str:
    """Run a block in a namespace, with `await` outside of functions; returns what it printed."""
    # Tracebacks and asserts tell the line of the page.
    code = compile(
        "\n" * block.line + block.text,
        str(ROOT / block.where),
        "exec",
        flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        dont_inherit=True,
    )
    told = io.StringIO()
    with contextlib.redirect_stdout(told):
        running = eval(code, names)
        if asyncio.iscoroutine(running):
            runner.run(running)
    return told.getvalue()


def comparable(printed: str) -> Iterator[tuple[str, list[float]]]:
    """Yield each line without times and dates, and its numbers with decimals, which may differ a little."""
    for line in textwrap.dedent(printed).strip().splitlines():
        told = re.sub(r"\d+(?:\.\d+)? ?(?:ms|s|MB|kB)\b", "<n>", line)
        told = re.sub(r"\d{4}-\d\d-\d\d(?:[ T]\d\d:\d\d(?::\d\d)?)?", "<when>", told)
        numbers = [float(number) for number in re.findall(r"(?<!\w)\d+\.\d+", told)]
        told = re.sub(r"(?<!\w)\d+\.\d+", "<x>", told)
        yield " ".join(told.split()), numbers


def check_output(block: Block, printed: str) -> None:
    shown, real = list(comparable(block.text)), list(comparable(printed))
    where = f"{block.where}:{block.line}"
    assert [line for line, _ in shown] == [line for line, _ in real], where
    for (_, claimed), (_, measured) in zip(shown, real, strict=True):
        assert claimed == pytest.approx(measured, abs=0.03), where


def test_outputs_are_compared() -> None:
    """Times and dates may be others, a score may be a little; a word may not, nor a line be missing."""
    block = Block(
        "x.md", 1, "output", "text", "1. faq#a  0.750\nfound in 5.1 ms, 2026-11-27 01:09\n"
    )
    check_output(block, "1. faq#a  0.748\nfound in 12 ms, 2027-01-01 22:00\n")
    for other in ("1. faq#b  0.750\n", "1. faq#a  0.610\n", "1. faq#a  0.750\n\nmore\n"):
        with pytest.raises(AssertionError):
            check_output(block, f"{other}found in 5.1 ms, 2026-11-27 01:09\n")


@pytest.mark.parametrize("where", WITH_BLOCKS)
def test_page_runs(where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page's blocks, in order, in one directory and one namespace, do what they say."""
    if where in ALONE and os.environ.get("DOCS_ALONE") != where:
        test = f"{Path(__file__).relative_to(ROOT)}::{test_page_runs.__name__}[{where}]"
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
            cwd=ROOT,
            env={**os.environ, "DOCS_ALONE": where},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert "1 passed" in done.stdout
        return
    monkeypatch.chdir(tmp_path)
    # The blocks are about what is recalled, and this machine may be busy.
    defaults = MossClient.call.__kwdefaults__
    assert defaults is not None
    assert "deadline_ms" in defaults
    monkeypatch.setitem(defaults, "deadline_ms", 60_000.0)
    names: dict[str, Any] = {"__name__": "__main__"}
    printed: str | None = None
    with asyncio.Runner() as runner:
        for block in blocks_of(ROOT / where):
            needed, file = block.says("needs"), block.says("file")
            if file is not None:
                Path(file).write_text(block.text, encoding="utf-8")
            if block.is_output:
                assert printed is not None, f"{where}:{block.line}: an output of nothing that ran"
                check_output(block, printed)
            elif block.not_run or (needed and not is_here(needed)):
                printed = None
            elif block.language == "python" and file is None:
                printed = run_python(block, names, runner)
            elif block.language == "sh" and where not in ELSEWHERE:
                printed = run_shell(block, tmp_path)
            elif block.language == "json":
                for line in block.text.splitlines() if file else [block.text]:
                    json.loads(line)


def is_here(host: str) -> bool:
    try:
        importlib.import_module(MODULES[host])
    except ImportError:
        return False
    return True


def test_what_runs_elsewhere_is_run_there() -> None:
    """A page whose shell is left out above has a test that names it."""
    for page, test in ELSEWHERE.items():
        assert f'"{Path(page).name}"' in (ROOT / test).read_text(encoding="utf-8")


# --- links ---------------------------------------------------------------------------------------


def anchor(heading: str) -> str:
    """Return a heading's anchor, as GitHub makes it."""
    words = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "").strip().lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")


def prose_of(page: Path) -> str:
    """Return a page without its blocks and code."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    return re.sub(r"`[^`\n]*`", "", text)


def anchors_of(page: Path) -> set[str]:
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} +(.+?)\s*#*$", text, re.MULTILINE):
        name = anchor(heading)
        names.add(name if name not in found else f"{name}-{found[name]}")
        found[name] = found.get(name, 0) + 1
    return names


def links_of(page: Path) -> list[str]:
    """Return where the links and images of a page lead."""
    text = prose_of(page)
    inline = re.findall(r"\]\(<?([^()\s>]+(?:\([^()]*\))?)>?(?: \"[^\"]*\")?\)", text)
    return [*inline, *re.findall(r"^\[[^\]]+\]: +(\S+)", text, re.MULTILINE)]


@pytest.mark.parametrize("page", LINKING, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """A link leads to a file of the repository and a heading in it, or to an https address."""
    for link in links_of(page):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            assert parts.scheme == "https", f"{link}: not https"
            assert re.fullmatch(r"[a-z0-9.-]+\.[a-z]{2,}", parts.netloc), link
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link}: outside of the repository"
        if parts.fragment:
            assert parts.fragment in anchors_of(target), f"{link}: no such heading"


def test_links_are_found(tmp_path: Path) -> None:
    """The functions above see what they look for."""
    page = tmp_path / "page.md"
    page.write_text("# A `b`, c: d\n\n## A `b`, c: d\n\n[x](y.md#z) `[no](no.md)` ![i](i.png)\n")
    assert links_of(page) == ["y.md#z", "i.png"]
    assert anchors_of(page) == {"a-b-c-d", "a-b-c-d-1"}


def test_every_page_can_be_reached() -> None:
    """Each page of `docs/` is linked from another page or from the README."""
    linked = {
        (page.parent / urlsplit(link).path).resolve() for page in LINKING for link in links_of(page)
    }
    assert [name_of(page) for page in PAGES[1:] if page not in linked] == []
