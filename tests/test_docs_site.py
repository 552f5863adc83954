"""The site of the documents: built strictly, whole, and at home in a browser that has only its files."""

from __future__ import annotations

import json
import logging
import re
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import typer
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import MkDocsException

import moss_voice
from moss_voice import errors
from moss_voice.cli.app import app
from tests.browser import Tab, browser, tab
from tools import docs_site

__all__ = ["browser", "tab"]

ROOT = Path(__file__).resolve().parents[1]

# What makes a browser fetch something by itself.
LOADING = {
    "audio": ("src",), "embed": ("src",), "frame": ("src",), "iframe": ("src",), "image": ("href",),
    "img": ("src", "srcset"), "input": ("src",), "link": ("href",), "object": ("data",),
    "script": ("src",), "source": ("src", "srcset"), "track": ("src",), "use": ("href",),
    "video": ("src", "poster"),
}  # fmt: skip


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Build the site as `make docs` does; a warning is an error of the build."""
    with pytest.MonkeyPatch.context() as patch:
        # The theme's word on its own future; decision 010 tells of it.
        patch.setenv("NO_MKDOCS_2_WARNING", "1")
        patch.chdir(ROOT)
        folder = tmp_path_factory.mktemp("site")
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder))
        assert config.strict
        told: list[str] = []

        class Told(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                told.append(record.getMessage())

        handler = Told(logging.WARNING)
        logging.getLogger("mkdocs").addHandler(handler)
        try:
            config.plugins.on_startup(command="build", dirty=False)
            build(config)
        except MkDocsException as error:
            pytest.fail("\n".join([f"{type(error).__name__}: {error}", *told]), pytrace=False)
        finally:
            logging.getLogger("mkdocs").removeHandler(handler)
        assert told == []
        yield folder


class Loads(HTMLParser):
    """Collects what a page makes a browser fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        given = dict(attributes)
        # A link that only says where the page belongs is not fetched.
        if name == "link" and given.get("rel") in {"canonical", "next", "prev"}:
            return
        for attribute in LOADING.get(name, ()):
            value = given.get(attribute)
            if value is not None:
                parts = value.split(",") if attribute == "srcset" else [value]
                self.found += [part.split()[0] for part in parts if part.strip()]


def loads_of(text: str) -> list[str]:
    parser = Loads()
    parser.feed(text)
    return parser.found


def test_what_a_page_loads_is_found() -> None:
    """The parser above sees scripts, styles and images, and not what people click."""
    page = (
        '<a href="https://a.example">a</a><link rel="canonical" href="https://b.example">'
        '<script src="//c.example/x.js"></script><img srcset="d.png 1x, https://d.example/2.png 2x">'
        '<link rel="stylesheet" href="e.css">'
    )
    assert loads_of(page) == [
        "//c.example/x.js", "d.png", "https://d.example/2.png", "e.css"
    ]  # fmt: skip


def test_nothing_is_loaded_from_elsewhere(site: Path) -> None:
    """Whatever a page, a style or a script of the site loads is a file of the site."""
    pages = list(site.rglob("*.html"))
    assert len(pages) > 40
    for page in pages:
        for link in loads_of(page.read_text(encoding="utf-8")):
            parts = urlsplit(link)
            assert not parts.netloc, f"{page.name} loads {link}"
            if parts.scheme == "data":
                continue
            assert not parts.scheme, f"{page.name} loads {link}"
            # The page of an unknown address has absolute paths.
            base = site if parts.path.startswith("/") else page.parent
            target = base / unquote(parts.path).lstrip("/")
            assert target.is_file(), f"{page.name} loads {link}, which is not there"
    for style in site.rglob("*.css"):
        for link in re.findall(r"(?:url\(|@import)\s*['\"]?([^'\")\s;]+)", style.read_text()):
            assert not urlsplit(link).netloc, f"{style.name} loads {link[:80]}"
    hosts = ("unpkg.com", "googleapis.com", "gstatic.com", "jsdelivr", "cdnjs", "google-analytics")
    for script in site.rglob("*.js"):
        code = "" if script.name == "search_index.js" else script.read_text(encoding="utf-8")
        assert [host for host in hosts if host in code] == [], script.name
    assert not list(site.rglob("*.map"))


def test_the_reference_is_whole(site: Path) -> None:
    """Each public name, each error and each method that a caller has is on a page of the reference."""
    lines = zlib.decompress((site / "objects.inv").read_bytes().split(b"\n", 4)[4]).decode()
    known = {line.split(" ", 1)[0] for line in lines.splitlines()}
    homes = moss_voice._HOMES
    for name in moss_voice.__all__:
        if name == "__version__":
            continue
        home = homes.get(name, "moss_voice.types")
        found = f"{home}.{name}" in known or f"moss_voice.{name}" in known
        assert found, f"no page in docs/api/ has `::: {home}.{name}`"
    for name in errors.__all__:
        assert f"moss_voice.errors.{name}" in known, name
    for method in vars(moss_voice.MossClient):
        if not method.startswith("_"):
            assert f"moss_voice.client.MossClient.{method}" in known, method
    for method in vars(moss_voice.CallMemory):
        if not method.startswith("_") and method != "open":
            assert f"moss_voice.call.memory.CallMemory.{method}" in known, method
    for name in (
        "livekit.plugins.moss_voice.attach.attach",
        "livekit.plugins.moss_voice.processes.prewarm",
        "pipecat_moss_voice.processor.MossVoiceMemory",
        "livekit.plugins.moss_voice.testing.SimulatedCall",
        "pipecat_moss_voice.testing.SimulatedCall",
        "moss_voice.server.app.create_app",
        "moss_voice.live.begin_call",
    ):
        assert name in known, name


def commands(command: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        if not below.hidden:
            yield from commands(below, f"{path} {name}")


def test_the_command_line_is_whole(site: Path) -> None:
    """Each command, and each option of its own, is on the page of the command line."""
    page = (site / "api" / "cli.html").read_text(encoding="utf-8")
    for path, command in commands(typer.main.get_command(app), "moss-voice"):
        assert f">{path}<" in page or f'title="{path}"' in page, path
        for param in command.params:
            for option in (*param.opts, *param.secondary_opts):
                if option.startswith("--") and not param.hidden and option != "--help":
                    assert option in page, f"{path} {option}"


def test_every_example_is_there(site: Path) -> None:
    """The page of examples has each file of `examples/`."""
    page = (site / "examples.html").read_text(encoding="utf-8")
    for path in (ROOT / "examples").glob("*.py"):
        assert f'id="{path.name.replace(".", "")}"' in page


def test_what_is_made_of_links() -> None:
    """A link of the repository leads to the site's own copy, from a page at any depth."""

    class Page:
        meta: dict[str, Any] = {}  # noqa: RUF012 - one page of a test

        def __init__(self, source: str) -> None:
            self.file = type("File", (), {"src_uri": source})

    def turned(source: str, text: str) -> str:
        return docs_site.on_page_markdown(text, page=Page(source))

    assert turned("call.md", "[a](../CHANGELOG.md#x)") == "[a](changelog.md#x)"
    assert turned("api/live.md", "[a](../../CONTRIBUTING.md)") == "[a](../contributing.md)"
    assert turned("readme.md", "[a](docs/call.md)") == "[a](call.md)"
    assert turned("readme.md", "[a](examples/x_y.py)") == "[a](examples.md#x_ypy)"
    assert turned("examples.md", "[a](x_y.py)") == "[a](examples.md#x_ypy)"
    assert turned("call.md", "[a](b.md) [c](https://d.example/)") == (
        "[a](b.md) [c](https://d.example/)"
    )


def test_search_works_from_a_folder(site: Path, tab: Tab) -> None:
    """Opened from disk, without a server, the site finds what is asked for, and asks no host."""
    tab.page.goto((site / "index.html").as_uri())
    tab.page.keyboard.press("s")
    tab.page.keyboard.type("hybrid clock")
    result = tab.page.locator(".md-search-result__link").first
    result.wait_for()
    link = result.get_attribute("href")
    assert link is not None
    tab.page.goto(link)
    assert "clock" in tab.page.inner_text("main").lower()


@pytest.mark.parametrize("name", ["index", "start", "call", "coming-from", "api/call", "api/cli"])
def test_pages_fit(site: Path, tab: Tab, name: str) -> None:
    """Wide, dark and as narrow as a phone a page stays within its window, and names itself."""
    shown = name.replace("/", "-")
    tab.page.goto((site / f"{name}.html").as_uri())
    assert tab.page.locator("h1").count() == 1
    assert tab.overflow() == 0
    tab.shoot(f"docs-{shown}")
    tab.page.emulate_media(color_scheme="dark")
    tab.page.reload()
    assert tab.page.evaluate("document.body.dataset.mdColorScheme") == "slate"
    tab.shoot(f"docs-{shown}-dark")
    tab.narrow()
    assert tab.overflow() == 0
    tab.shoot(f"docs-{shown}-narrow")


def test_keyboard_alone_reaches_a_page(site: Path, tab: Tab) -> None:
    """The first stop skips to the text, and what has the focus can be seen."""
    tab.page.goto((site / "start.html").as_uri())
    tab.page.keyboard.press("Tab")
    assert tab.page.evaluate("document.activeElement.matches('.md-skip')")
    tab.page.locator(".md-typeset a[href]").nth(1).focus()
    tab.page.keyboard.press("Tab")
    outline = tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none"


def test_the_search_index_holds_every_page(site: Path) -> None:
    """Each page of the navigation can be found."""
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"].partition("#")[0] for entry in index["docs"]}
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html").as_posix()
        assert name in found or name == "index.html", name
