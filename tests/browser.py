"""A headless Chromium for the tests of our pages: the machine's own, told to ask nobody but loopback.

`make test` installs Debian's where it can. Elsewhere these tests are skipped, but where
`MOSS_VOICE_BROWSER=required` (as in CI) they fail instead.

    def test_page(tab: Tab) -> None:
        tab.page.goto(url)

A test that asked another host, or whose page said anything on its console, fails at its end. The functions of
such a module must not be coroutines: Playwright's own loop runs as long as the module's browser.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import (
    Browser,
    BrowserContext,
    ConsoleMessage,
    Page,
    Request,
    sync_playwright,
)

__all__ = ["Tab", "browser", "tab"]

_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """Return where the machine's Chromium is."""
    return next(filter(None, map(shutil.which, _NAMES)), None)


class Tab(NamedTuple):
    """A page in a browser of its own, what it said on its console, and whom else it asked.

    Attributes:
        page: Wide, light, with JavaScript; `context.new_page()` makes another like it.
        said: What a test expects to be said must be taken out of it by the test.
        strangers: Requests to other hosts than loopback.
    """

    page: Page
    context: BrowserContext
    said: list[str]
    strangers: list[str]

    def narrow(self) -> None:
        """Make it as wide as a phone."""
        self.page.set_viewport_size({"width": 360, "height": 780})

    def overflow(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        told = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(told))

    def shoot(self, name: str, *, whole: bool = False) -> None:
        """Keep a picture of it where `MOSS_VOICE_SCREENSHOTS` names a directory."""
        folder = os.environ.get("MOSS_VOICE_SCREENSHOTS") or _SCREENSHOTS
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png", full_page=whole)


# The fixtures of every test forget our settings.
_SCREENSHOTS = os.environ.get("MOSS_VOICE_SCREENSHOTS")
_REQUIRED = os.environ.get("MOSS_VOICE_BROWSER") == "required"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Start a Chromium for the tests of a module."""
    program = chromium()
    if program is None:
        if _REQUIRED:
            pytest.fail("no Chromium here, and MOSS_VOICE_BROWSER=required")
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=_FLAGS)
        yield started
        started.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    """Open a page of its own, without anything of another test."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, color_scheme="light")
    context.set_default_timeout(15_000)
    said: list[str] = []
    strangers: list[str] = []

    def on_request(request: Request) -> None:
        parts = urlsplit(request.url)
        here = parts.scheme in {"file", "data", "blob", "about"}
        if not here and parts.hostname not in {"127.0.0.1", "localhost", "::1"}:
            strangers.append(request.url)

    def on_console(message: ConsoleMessage) -> None:
        said.append(f"{message.type}: {message.text}")

    context.on("request", on_request)
    context.on("console", on_console)
    context.on("weberror", lambda error: said.append(f"error: {error.error}"))
    try:
        yield Tab(context.new_page(), context, said, strangers)
    finally:
        context.close()
    assert not strangers, "the page asked another host"
    assert not said, "the page said something on its console"
