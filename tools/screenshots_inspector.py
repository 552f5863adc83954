"""Make the pictures of docs/inspector.md from the real program.

    python tools/screenshots_inspector.py [DIRECTORY]

Plays the demo in a temporary place as `moss-voice demo --host none` does, serves its call by `moss-voice
inspect demo`, and takes pictures of it in the machine's own Chromium. What they show is what they are of: no
picture is made of anything else.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 250_000
TURN = "#context-7"  # the context of turn 14


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "images"
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="moss-voice-pictures-") as home:
        environment = {key: value for key, value in os.environ.items() if "MOSS" not in key}
        environment |= {
            f"XDG_{kind}_HOME": str(Path(home, kind.lower()))
            for kind in ("DATA", "CACHE", "CONFIG", "STATE")
        }
        run(environment, "demo", "--host", "none")
        with served(environment) as url:
            shoot(url, folder)
    for picture in sorted(folder.glob("inspector-*.png")):
        size = picture.stat().st_size
        print(f"{picture.name:<28} {size / 1000:.0f} kB")
        if size > MOST_BYTES:
            raise SystemExit(f"{picture.name}: over {MOST_BYTES} bytes")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "moss_voice.cli", *arguments]


def run(environment: Mapping[str, str], *arguments: str) -> None:
    subprocess.run(
        command(*arguments), cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL
    )


@contextmanager
def served(environment: Mapping[str, str]) -> Iterator[str]:
    """Serve the demo's call, and return where."""
    with subprocess.Popen(
        command("inspect", "demo", "--no-browse"),
        cwd=ROOT,
        env={**environment, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.search(r"http://\S+", line):
                    yield found[0]
                    break
            else:
                raise SystemExit("moss-voice inspect told no address")
        finally:
            process.send_signal(signal.SIGINT)


def shoot(url: str, folder: Path) -> None:
    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )

        def opened(width: int, height: int, *, dark: bool = False) -> Page:
            page = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                reduced_motion="reduce",
            ).new_page()
            page.goto(url)
            return page

        def keep(page: Page, name: str) -> None:
            page.screenshot(path=folder / f"inspector-{name}.png")
            page.close()

        page = opened(1280, 960)
        keep(page, "call")

        page = opened(880, 1180)
        page.locator(f"{TURN} > summary").click()
        to(page, "#turn-14")
        keep(page, "turn")

        page = opened(1200, 840)
        page.locator(f"{TURN} > summary").click()
        page.locator(f"{TURN} .ask").click()
        page.locator("#search-answer .founds").first.wait_for()
        to(page, "#turn-13")
        before = page.locator("#search-answer .sum").first.inner_text()
        page.locator("#search-form [name=alpha]").fill("1")
        page.wait_for_function(
            "(before) => document.querySelector('#search-answer .sum')?.innerText !== before",
            arg=before,
        )
        keep(page, "search")

        page = opened(1200, 920)
        page.keyboard.press("c")
        page.locator("#side-b details summary").click()
        page.locator("#side-b [value=keyword_window]").uncheck()
        page.locator("#compare-form button.first").click()
        changed = page.locator("#compare-answer .compared", has_text="Turn 14 ")
        changed.wait_for()
        changed.evaluate("(at) => scrollTo(0, at.getBoundingClientRect().top + scrollY - 150)")
        keep(page, "compare")

        page = opened(1200, 820, dark=True)
        page.locator(f"{TURN} > summary").click()
        to(page, "#turn-12")
        keep(page, "dark")

        page = opened(390, 844)
        page.locator(f"{TURN} > summary").click()
        to(page, "#turn-14")
        keep(page, "narrow")
        browser.close()


def to(page: Page, place: str) -> None:
    """Scroll a turn below the bar that stays, and let nothing have the focus."""
    page.evaluate(
        """(place) => {
          const bar = document.querySelector('body > .bar');
          const high = getComputedStyle(bar).position === 'sticky' ? bar.offsetHeight : 0;
          scrollTo(0, document.querySelector(place).getBoundingClientRect().top + scrollY - high - 8);
          document.activeElement.blur();
        }""",
        place,
    )


if __name__ == "__main__":
    main()
