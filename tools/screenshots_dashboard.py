"""Take the dashboard's pictures for the docs: the real program, a real browser, the demo's FAQ and call.

    python tools/screenshots_dashboard.py [FOLDER]

A server over a directory of its own is started and ended; nothing else is touched. `docs/images/` where no
folder is given.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import httpx
from playwright.sync_api import Page, ViewportSize, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from moss_voice import DocumentInfo, MossClient  # noqa: E402 - found by the line above
from moss_voice.demo import call, faq_documents  # noqa: E402
from tests.browser import chromium  # noqa: E402
from tests.server_process import Server, serve  # noqa: E402

WIDE: ViewportSize = {"width": 1280, "height": 860}
NARROW: ViewportSize = {"width": 390, "height": 844}
PROJECT = "larkline"
QUESTION = "is there a cap on roaming charges"


async def fill(server: Server, key: str, where: Path) -> None:
    """Push the FAQ, with a change and a deletion after, and a call that was heard with it at hand."""
    documents = faq_documents()
    async with MossClient(
        PROJECT, key, cloud=server.url, cache_path=where / "cache", journal_path=where / "journal"
    ) as client:
        await client.create_index("larkline-faq", documents)
        await client.add_docs(
            "larkline-faq", [DocumentInfo("notice", "The shop in Leeds is closed on Fridays.")]
        )
        await client.delete_docs("larkline-faq", ["notice"])
        memory = await client.call("call-1042", knowledge=["larkline-faq"])
        for turn in call().turns:
            if turn.speaker != "action":
                await memory.heard(
                    turn.text,
                    turn.speaker,
                    at=turn.start_s,
                    interrupted=turn.interrupted,
                    id=f"turn-{turn.number}",
                )
        await memory.end()


def ask(server: Server, key: str) -> None:
    """Ask the API for this and that, so that there is something to count."""
    index = f"/v1/projects/{PROJECT}/indexes/larkline-faq"
    with httpx.Client(base_url=server.url, headers=server.bearer(key)) as client:
        for question in ("roaming", "my broadband is slow", "how do I cancel", "late fee"):
            for alpha in (0.0, 0.5, 0.8, 1.0):
                client.post(f"{index}/search", json={"query": question, "alpha": alpha})
            client.get(f"{index}/documents")
            client.get(f"{index}/head")
        client.get(f"/v1/projects/{PROJECT}/indexes/larkline-fax")


def shoot(folder: Path) -> list[Path]:
    """Take every picture; returns where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    made: list[Path] = []
    with tempfile.TemporaryDirectory() as temporary:
        where = Path(temporary)
        with serve(where / "store", "--log-level", "warning") as server:
            _, key = server.project(PROJECT)
            asyncio.run(fill(server, key, where))
            ask(server, key)
            with sync_playwright() as playwright:
                browser = playwright.chromium.launch(
                    executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"]
                )
                page = browser.new_page(viewport=WIDE, color_scheme="light")
                for name in _pictures(page, server.url, key):
                    path = folder / f"dashboard-{name}.png"
                    page.screenshot(path=path)
                    made.append(path)
                browser.close()
    return made


def _pictures(page: Page, url: str, key: str) -> Iterator[str]:
    """Walk through the pages, with a stop wherever there is something to see."""
    page.goto(url)
    page.set_viewport_size({"width": 1280, "height": 520})
    yield "sign-in"
    page.get_by_label("Project", exact=True).fill(PROJECT)
    page.get_by_label("Project key").fill(key)
    page.keyboard.press("Enter")
    page.get_by_role("heading", name="Indexes").wait_for()
    page.set_viewport_size({"width": 1280, "height": 420})
    yield "indexes"

    page.set_viewport_size(WIDE)
    page.get_by_role("link", name="larkline-faq").click()
    page.get_by_label("Search for").fill(QUESTION)
    page.get_by_role("button", name="Search").click()
    page.get_by_role("heading", name="Found").wait_for()
    yield "search"

    page.goto(url)
    page.get_by_role("link", name="call-1042").click()
    page.locator(".filter > summary").click()
    for field, operator, value in (("speaker", "$eq", "caller"), ("turn", "$lt", "12")):
        page.get_by_role("button", name="Add condition").click()
        page.get_by_label("Field").last.fill(field)
        page.get_by_label("Operator").last.select_option(operator)
        page.get_by_label("Value").last.fill(value)
    page.get_by_role("button", name="Search").click()
    page.get_by_text("that pass the filter").wait_for()
    page.set_viewport_size({"width": 1280, "height": 1330})
    yield "filter"

    page.set_viewport_size({"width": 1280, "height": 560})
    page.goto(url)
    page.get_by_role("link", name="larkline-faq").click()
    page.get_by_role("link", name="History", exact=True).click()
    yield "history"

    page.set_viewport_size({"width": 1280, "height": 980})
    page.emulate_media(color_scheme="dark")
    page.get_by_role("link", name="Requests").click()
    yield "requests-dark"

    page.emulate_media(color_scheme="light")
    page.set_viewport_size(NARROW)
    page.goto(url)
    page.get_by_role("link", name="call-1042").click()
    page.get_by_label("Search for").fill("why was the broadband down")
    page.get_by_role("button", name="Search").click()
    page.get_by_role("heading", name="Found").scroll_into_view_if_needed()
    page.evaluate("document.getElementById('documents').scrollIntoView()")
    yield "narrow"


if __name__ == "__main__":
    for picture in shoot(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"):
        print(picture, picture.stat().st_size)
