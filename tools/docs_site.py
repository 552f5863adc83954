"""The parts of the documentation site that are made as it is built (see `mkdocs.yml`).

The law: a page in `docs/` reads well on GitHub as it is. What only the site has comes from here: the
reference of the command line and the table of errors, read from the program; the examples, the changelog and the guide for
contributors, which live elsewhere in the repository; and links to them, which are relative to the
repository's files in the pages.
"""

from __future__ import annotations

import ast
import html
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import click
import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from moss_voice import errors

__all__ = [
    "BORROWED",
    "command_line",
    "error_codes",
    "examples",
    "on_files",
    "on_nav",
    "on_page_markdown",
    "on_post_build",
]

ROOT: Final = Path(__file__).resolve().parent.parent

# Pages of the site that are files elsewhere in the repository.
BORROWED: Final = {
    "README.md": "readme.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "moss_voice/models/minilm/MODEL_CARD.md": "model-card.md",
}
EXAMPLES: Final = "examples.md"

_LINK: Final = re.compile(r"(?<=\]\()(?P<path>[^()\s#:]+)(?P<anchor>#[^()\s]*)?(?=\))")
_COMMANDS: Final = "<!-- the commands -->"
_ERRORS: Final = "<!-- the errors -->"


# --- what mkdocs calls ---------------------------------------------------------------------------


def on_nav(_nav: Any, *, config: MkDocsConfig, **_: Any) -> None:
    """Let the reference read our own packages alone.

    LiveKit's agents share the namespace of our plugin, and are ten times its size.
    """
    reference: Any = config.plugins["mkdocstrings"]
    handler = reference.get_handler("python")
    handler._paths = [str(ROOT / path) for path in handler.config.paths]  # noqa: SLF001 - no setting does


def on_post_build(*, config: MkDocsConfig) -> None:
    """Take other hosts out of the theme's script: it would ask them for what this site does not use."""
    for script in Path(config.site_dir, "assets", "javascripts").glob("bundle.*.js"):
        code = script.read_text(encoding="utf-8")
        script.write_text(code.replace("https://unpkg.com/", "about:blank#"), encoding="utf-8")
    for sources in Path(config.site_dir).rglob("*.map"):
        sources.unlink()


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that live elsewhere."""
    made = {EXAMPLES: examples()}
    for name, page in BORROWED.items():
        made[page] = (ROOT / name).read_text(encoding="utf-8")
    for page, text in made.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Point the links of a page to the site's own copy of a file, and fill in the commands."""
    if _COMMANDS in markdown:
        markdown = markdown.replace(_COMMANDS, command_line())
    if _ERRORS in markdown:
        markdown = markdown.replace(_ERRORS, error_codes())
    source = page.file.src_uri
    if source == "index.md":
        page.meta["hide"] = ["navigation"]  # it has the map itself
    borrowed = {EXAMPLES: "examples/README.md", **{page: name for name, page in BORROWED.items()}}
    folder = posixpath.dirname(borrowed.get(source) or f"docs/{source}")
    here = posixpath.dirname(source)

    def moved(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link["path"]))
        anchor = link["anchor"] or ""
        if path.startswith("docs/"):
            target = path.removeprefix("docs/")
        elif path in BORROWED:
            target = BORROWED[path]
        elif path.startswith("examples/"):
            name = posixpath.basename(path)
            target, anchor = EXAMPLES, f"#{_anchor(name)}" if name.endswith(".py") else anchor
        else:
            return link[0]
        return posixpath.relpath(target, here or ".") + anchor

    return _LINK.sub(moved, markdown)


# --- the examples --------------------------------------------------------------------------------


def examples() -> str:
    """Return their README, and every example, whole, under the first sentence of its docstring."""
    about = ROOT / "examples" / "README.md"
    head = "# Examples\n\nWhole programs from `examples/` of the repository. The tests run each of them.\n"
    parts = [about.read_text(encoding="utf-8") if about.exists() else head]
    for path in sorted((ROOT / "examples").glob("*.py")):
        code = path.read_text(encoding="utf-8")
        told = (ast.get_docstring(ast.parse(code)) or "").partition("\n\n")[0].replace("\n", " ")
        parts.append(f"## {path.name}\n\n{told}\n\n```python\n{code.rstrip()}\n```\n")
    return "\n".join(parts)


def _anchor(name: str) -> str:
    """Return the anchor of an example's heading."""
    return name.lower().replace(".", "")


# --- errors --------------------------------------------------------------------------------------


def error_codes() -> str:
    """Return a table of the errors: their codes, and the builtins that catch them."""
    rows = ["| error | `code` | also a |\n| --- | --- | --- |"]
    for name in errors.__all__:
        kind = getattr(errors, name)
        builtin = next((base for base in kind.__mro__ if base.__module__ == "builtins"), Exception)
        rows.append(f"| `{name}` | `{kind.code}` | `{builtin.__name__}` |")
    return "\n".join(rows)


# --- the command line ----------------------------------------------------------------------------


def command_line() -> str:
    """Return the reference of every command, as the commands themselves tell it."""
    from moss_voice.cli.app import app

    command = typer.main.get_command(app)
    return "\n".join(_described(command, "moss-voice", None))


def _described(command: Any, name: str, parent: click.Context | None) -> Iterator[str]:
    context = command.make_context(name, [], parent=parent, resilient_parsing=True)
    yield f"## {context.command_path}\n"
    if command.help:
        yield f"{_prose(command.help)}\n"
    pieces = " ".join(command.collect_usage_pieces(context))
    yield f"```text\n{context.command_path} {pieces}\n```\n"
    rows = list(_rows(command, context, shared=parent is not None))
    if rows:
        yield '<div class="options" markdown>\n\n| | |\n| --- | --- |'
        yield from rows
        yield "\n</div>\n"
    for below in command.list_commands(context) if hasattr(command, "list_commands") else ():
        child = command.get_command(context, below)
        if child is not None and not child.hidden:
            yield from _described(child, below, context)


def _rows(command: Any, context: click.Context, *, shared: bool) -> Iterator[str]:
    for param in command.get_params(context):
        if getattr(param, "hidden", False) or param.name == "help":
            continue
        # Told once, for the program itself: every command takes them too.
        if shared and str(getattr(param, "rich_help_panel", "")).startswith("Where"):
            continue
        record = param.get_help_record(context)
        if record is not None:
            names, told = record
            # As HTML, since a code span of Markdown shows the backslash that a table wants before a pipe.
            yield f"| <code>{_cell(html.escape(names))}</code> | {_cell(_prose(told))} |"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "&#124;")


def _prose(text: str) -> str:
    """Return a help text as Markdown: what looks like a tag or an emphasis is meant as it stands."""
    return re.sub(r"(?<!`)[<*_\[](?![^`]*`)", lambda sign: f"\\{sign[0]}", text)
