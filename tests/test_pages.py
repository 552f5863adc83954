"""What every page of ours owes: values escaped, a policy that lets nothing in, numbers that people read."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from jinja2 import UndefinedError

from moss_voice import pages
from tests.browser import Tab, browser, tab

__all__ = ["browser", "tab"]

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">&\u2028"


def test_values_are_escaped_and_missing_ones_raise() -> None:
    """No value is markup, and a template cannot show what it was not given."""
    made = pages.environment("moss_voice.pages", "common")
    shown = made.from_string('<p title="{{ it }}">{{ it }}</p>').render(it=HOSTILE)
    assert "<script" not in shown
    assert "<img" not in shown
    with pytest.raises(UndefinedError):
        made.from_string("{{ it }}").render()


def test_data_for_scripts_comes_back_whole() -> None:
    """What is said can neither close the element that holds it nor change on the way."""
    held = pages.script_data({"text": HOSTILE})
    assert "<" not in held
    assert json.loads(held) == {"text": HOSTILE}


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (pages.told_bytes(0), "0 B"),
        (pages.told_bytes(4_230_000), "4.2 MB"),
        (pages.told_bytes(999_999), "1000 kB"),
        (pages.told_clock(201.9), "03:21"),
        (pages.told_clock(3801), "1:03:21"),
        (pages.told_clock(-3), "00:00"),
        (pages.told_ms(0.418), "0.42 ms"),
        (pages.told_ms(4.2), "4.2 ms"),
        (pages.told_ms(120.4), "120 ms"),
        (pages.told_when(datetime(2026, 11, 27, 1, 12, 9, tzinfo=UTC)), "2026-11-27 01:12:09 UTC"),
    ],
)
def test_numbers_for_people(shown: str, expected: str) -> None:
    """Sizes, times and clocks are written as people read them."""
    assert shown == expected


def test_nothing_runs_but_what_the_policy_names(tab: Tab) -> None:
    """In a real browser: our own inline script runs, one that a value brought does not, nor does an image load."""
    style, script = "p { color: rgb(1, 2, 3); }", "document.body.dataset.ran = 'ours';"
    # A document may not say by whom it is framed.
    told = pages.policy(styles=[style], scripts=[script]).replace("; frame-ancestors 'none'", "")
    # As if a template had forgotten to escape.
    tab.page.set_content(
        f'<meta http-equiv="Content-Security-Policy" content="{told}">'
        f"<style>{style}</style><p>{HOSTILE}</p><script>{script}</script>"
    )
    assert tab.page.evaluate("document.body.dataset.ran") == "ours"
    assert tab.page.title() == ""
    assert (
        tab.page.evaluate("getComputedStyle(document.querySelector('p')).color") == "rgb(1, 2, 3)"
    )
    assert tab.said, "the browser told of what it did not let run"
    tab.said.clear()
