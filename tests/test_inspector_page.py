"""The inspector's page as a file: everything in it, nothing asked of anybody, nothing a caller said is markup."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from moss_voice.call.recording import Known, RecordedLookup, Recording, Timing, Why
from moss_voice.errors import InvalidArgumentError
from moss_voice.inspector import drawing, wording
from moss_voice.inspector.comparing import compare
from moss_voice.inspector.page import page
from moss_voice.types import HitParts
from tests.browser import Tab, browser, tab
from tests.inspected_calls import (
    candidate,
    context,
    long_recording,
    passage,
    recording,
    turn,
)

__all__ = ["browser", "tab"]

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">'\"&lt;{{ 7*7 }}\u2028]]>"

# How much each text stands out from what lies behind it; WCAG 2.2, 1.4.3.
CONTRAST = r"""
() => {
  const rgb = (told) => told.match(/[\d.]+/g).map(Number);
  const light = ([r, g, b]) => {
    const [x, y, z] = [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    return 0.2126 * x + 0.7152 * y + 0.0722 * z;
  };
  const behind = (at) => {
    for (; at; at = at.parentElement) {
      const colour = rgb(getComputedStyle(at).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faults = new Set();
  for (const at of document.querySelectorAll("body *:not(svg, svg *, script, style, option)")) {
    const style = getComputedStyle(at);
    const said = [...at.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!said || !at.checkVisibility() || at.closest("[disabled]")) continue;
    const [a, b] = [light(rgb(style.color)), light(behind(at))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    if (ratio < 4.5) faults.add(`${at.tagName}.${at.className} ${ratio.toFixed(2)}`);
  }
  return [...faults];
}
"""


# --- what is drawn and said ------------------------------------------------------------------------


def test_what_is_recalled_in_the_same_way_does_not_differ() -> None:
    """A series of contexts compared with itself has no change of any kind."""
    contexts = recording().contexts
    compared = compare(contexts, contexts)
    assert not compared.changed
    assert [hit.change for each in compared.contexts for hit in each.hits] == ["same"] * 6
    assert compared.tokens == (20.0, 20.0)
    assert compared.gates == (0, 0)


def test_hits_are_followed_from_side_to_side() -> None:
    """Each hit is new, gone, moved by so many places or the same, whichever index has its id."""
    one = context(1, 2, hits=(passage("a"), passage("b"), candidate(1), passage("c")))
    other = context(
        1, 2, hits=(passage("b"), passage("a", index_name="other"), passage("a"), passage("c"))
    )
    (each,) = compare([one], [other]).contexts
    told = [(hit.change, hit.by, hit.rank_before, hit.rank_after) for hit in each.hits]
    assert told == [
        ("up", 1, 2, 1),
        ("new", 0, None, 2),
        ("down", -2, 1, 3),
        ("same", 0, 4, 4),
        ("gone", 0, 3, None),
    ]
    assert each.changed
    assert not each.block_changed


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [(0.8, 1.2, "opened"), (1.2, 0.8, "closed"), (1.2, 1.3, ""), (None, 1.3, ""), (0.8, 0.9, "")],
)
def test_the_gate_is_followed(before: float | None, after: float | None, expected: str) -> None:
    """A turn whose knowledge is asked on one side only is told, where both sides have a gate."""
    (each,) = compare([context(1, 2, need=before)], [context(1, 2, need=after)]).contexts
    assert each.gate == expected


def test_other_contexts_are_not_compared() -> None:
    """Series that are not of the same contexts are refused."""
    with pytest.raises(InvalidArgumentError, match="the same contexts"):
        compare([context(1, 2)], [context(2, 2)])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "recalled 2 in 2.5 ms of 50 ms"),
        ({"prefetched": "hits"}, "recalled 2 in 2.5 ms of 50 ms, prefetched"),
        (
            {"again": True, "prefetched": "hits"},
            "recalled 2 in 2.5 ms of 50 ms, the same as asked before",
        ),
        ({"outcome": "late"}, "late: no answer within 50 ms, the reply went without"),
        ({"outcome": "failed"}, "failed after 2.5 ms: the reply went without"),
        ({"outcome": "skipped"}, "skipped: a filler or nothing, so nothing was asked"),
    ],
)
def test_verdicts(changes: dict[str, Any], expected: str) -> None:
    """What came of a context is one plain line."""
    assert wording.verdict(context(1, 2, **changes)) == expected


def test_each_reason_is_said_in_words() -> None:
    """What was left out is grouped by its reason, none is lost, and numbers of the call stand in it."""
    left = [
        candidate(1, why="visible"),
        candidate(2, why="gate"),
        candidate(3, why="rank"),
        candidate(4, why="budget"),
        candidate(5, why="repeat"),
        candidate(6, why="min_score"),
        candidate(7, why="statement"),
        candidate(8, why="rank"),
    ]
    told = wording.groups(
        left, budget=600, top_k=5, min_score=0.55, needs={"faq": 0.83, "other": 1.2}
    )
    assert [(group.title, len(group.candidates)) for group in told] == [
        ("ranked below the first 5", 2),
        ("no room in the budget of 600 tokens", 1),
        ("its words stand in a better hit, or in what the LLM sees", 1),
        ("the LLM sees it anyway", 1),
        ("gate: the turn is too far from this knowledge (faq: need 0.83)", 1),
        ("a statement, nothing asked: only turns that score 0.65 or more", 1),
        ("score under 0.55", 1),
    ]


def test_a_rank_score_is_drawn_as_its_sum() -> None:
    """Bars of one scale begin at the same zero, add to the right, take away to the left, and all fit."""
    parts = [HitParts(0.4, 0.2, 0.3, -0.1, 0.03, -0.2), HitParts(semantic=0.1)]
    on = drawing.scale([candidate(1, parts=each) for each in parts])
    assert on.zero == round(0.3 / 1.23 * 1000)
    drawn = on.segments(parts[0])
    up = [piece for piece in drawn if piece.x >= on.zero]
    down = [piece for piece in drawn if piece.x < on.zero]
    assert [piece.name for piece in up] == ["semantic", "keyword", "focus", "recency"]
    assert [piece.name for piece in down] == ["neighbour", "repeat"]
    assert up[-1].x + up[-1].width == 1000
    assert down[-1].x == 0
    assert all(a.x + a.width == b.x for a, b in pairwise(up))
    assert [piece.x for piece in on.segments(parts[1])] == [on.zero]


@pytest.mark.parametrize(
    ("took_ms", "timing", "enlarged"),
    [
        (2.5, Timing(0.1, 1.6, 0.5, 0.2), True),
        (40.0, Timing(1, 30, 5, 2), False),
        (80.0, None, False),
    ],
)
def test_time_is_drawn_against_the_deadline(
    took_ms: float, timing: Timing | None, enlarged: bool
) -> None:
    """The steps follow one another, end where the whole time does, and are enlarged where they are small."""
    drawn = drawing.strip(timing, took_ms, 50.0)
    last = drawn.segments[-1]
    assert last.x + last.width == drawn.reach
    assert (drawn.reach > drawn.deadline) == (took_ms > 50.0)
    assert bool(drawn.enlarged) == enlarged
    assert max(drawn.deadline, drawn.reach) <= 1000


def test_turns_stand_at_their_time_and_overlaps_are_found() -> None:
    """A bar's place and width are its turn's share of the call; both speaking at once is seen, once."""
    said = [
        turn(1, start_s=0.0, end_s=10.0, speaker="agent", interrupted=True),
        turn(2, start_s=8.0, end_s=20.0, speaker="caller"),
        turn(3, start_s=20.0, end_s=40.0, speaker="operator"),
        turn(4, start_s=5.0, end_s=6.0, speaker="caller", resumed=True),
    ]
    drawn = drawing.axis(recording(said, [], ended_s=40.0, lookups=()))
    assert [name for name, _ in drawn.lanes] == ["caller", "agent", "operator"]
    assert [(bar.x, bar.width) for bar in drawn.bars] == [(0.0, 25.0), (20.0, 30.0), (50.0, 50.0)]
    (overlap,) = drawn.overlaps
    assert (overlap.first.number, overlap.second.number, overlap.seconds) == (1, 2, 2.0)
    assert (overlap.x, overlap.width) == (20.0, 5.0)


@pytest.mark.parametrize("minutes", [0.2, 5, 60, 300])
def test_times_on_the_axis_do_not_run_into_each_other(minutes: float) -> None:
    """At each zoom there is room for the label of every time that it shows."""
    seconds = minutes * 60
    drawn = drawing.axis(recording([turn(1, start_s=0.0, end_s=seconds)], [], lookups=()))
    for level, width in ((0, 1000), (1, drawn.width), (2, 3 * drawn.width)):
        shown = [mark.x / 100.0 * width for mark in drawn.times if mark.level <= level]
        gaps = [b - a for a, b in pairwise(shown)]
        assert min(gaps, default=100) > 50
        assert len(shown) > 1 or minutes < 1


# --- the page --------------------------------------------------------------------------------------


def eventful() -> Recording:
    """A call in which everything happens that a page can show."""
    said = [
        turn(1, resumed=True, text="from before"),
        turn(2, corrections=2),
        turn(3, interrupted=True, start_s=12.0, end_s=17.5),
        turn(4, typed=True, redacted=True),
        turn(5, unanswered=True),
        turn(6, filler=True, text="mm-hmm"),
        turn(8, text="and the last one"),
    ]
    reasons: tuple[Why, ...] = (
        "rank",
        "budget",
        "repeat",
        "visible",
        "gate",
        "statement",
        "min_score",
    )
    left = tuple(
        passage(f"left-{why}-{i}", why=why) if i % 2 else candidate(i + 1, why=why)
        for why in reasons
        for i in range(6)
    )
    asked = [
        context(1, 2, left_out=left, prefetched="hits", need=0.83, needs={"faq": 0.83}),
        context(2, 4, outcome="late", took_ms=50.2, hits=(), text="", tokens=0, timing=None),
        context(3, 6, outcome="skipped", hits=(), left_out=(), text="", timing=None, needs={}),
        context(4, 8, query="and the", prefetched="vector", interim="and the"),
        context(5, 8, took_ms=31.0, timing=Timing(2, 24, 3, 1)),
        context(6, None, query="say hello"),
        context(7, 2, outcome="failed", hits=(), text="", timing=None),
    ]
    return recording(said, asked, missed=3, damaged=1, end="")


@pytest.fixture(scope="module")
def hour() -> tuple[str, float]:
    """The page of a call of an hour, and how long it took."""
    call = long_recording(1000)
    began = time.perf_counter()
    return page(call, live=False), time.perf_counter() - began


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, hour: tuple[str, float]) -> dict[str, str]:
    """Pages as files, as the browser opens them."""
    folder = tmp_path_factory.mktemp("pages")
    call = eventful()
    other = [
        replace(each, hits=(*each.hits[1:], passage("new")), text="another")
        if each.hits and each.number != 6
        else each
        for each in call.contexts
    ]
    shown = {
        "eventful": page(call, live=False, comparison=("alpha=0.4", compare(call.contexts, other))),
        "hostile": page(hostile(), live=False, **hostile_words()),
        "long": hour[0],
        "empty": page(recording([], [], lookups=(), knowledge=()), live=False),
    }
    for name, text in shown.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in shown}


def hostile() -> Recording:
    """A call whose every word tries to be more than one."""
    bad = HOSTILE
    hit = passage(bad, source=bad, index_name=f"{bad} faq", text=bad, metadata={bad: bad})
    own = candidate(1, source=bad, index_name=bad, text=bad, metadata={"turn": 1, "speaker": bad})
    asked = [
        context(
            1,
            2,
            query=bad,
            text=bad,
            interim=bad,
            hits=(hit, own),
            left_out=(replace(hit, why="gate"), replace(own, why="rank")),
            about=(bad,),
            needs={bad: 0.5},
            need=0.5,
        ),
        context(2, None, query=bad),
    ]
    return recording(
        [turn(1, text=bad, id=bad, speaker=bad), turn(2, text=bad), turn(3, speaker=bad)],
        asked,
        call=bad,
        project=bad,
        cloud=bad,
        model_id=bad,
        knowledge=(Known(bad, 1, 2, (bad,)),),
        lookups=(RecordedLookup(5.0, "recall", bad, 1.0, (hit,)),),
    )


def hostile_words() -> dict[str, Any]:
    """What is said around such a call."""
    call = hostile()
    return {
        "missing": {HOSTILE: HOSTILE},
        "changed": {HOSTILE: HOSTILE},
        "fields": (HOSTILE,),
        "values": (HOSTILE,),
        "note": HOSTILE,
        "comparison": (HOSTILE, compare(call.contexts, [context(1, 2), context(2, None)])),
    }


def test_a_file_holds_everything_without_a_script(browser: Any, files: dict[str, str]) -> None:
    """With JavaScript off each turn, context, reason, draft, lookup and comparison can be opened and read."""
    off = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    try:
        shown = off.new_page()
        shown.goto(files["eventful"])
        closed = shown.locator("details:not([open]) > summary:visible")
        while closed.count():
            closed.first.click()
        # Not `inner_text`: what is far from the window is not laid out.
        told = " ".join(str(shown.locator("main").text_content()).split())
        assert not shown.locator(".scripted:visible").count()
    finally:
        off.close()
    for words in (
        "Nothing is redacted",
        "the recording stops before the end",
        "3 lines are missing",
        "1 lines of the recording could not be read",
        "from before this call was opened",
        "corrected 2 times",
        "interrupted",
        "typed",
        "redacted",
        "unanswered",
        "filler, never recalled",
        "need 0.83, below 1: knowledge not asked",
        "late: no answer within 50 ms",
        "failed after 2.5 ms",
        "skipped: a filler or nothing",
        "Draft before",
        "The agent spoke of its own accord",
        "search_knowledge looked up",
        "Prefetch hit: an interim had the same words",
        "an interim held nearly all of the words",
        "embed 24.0 ms",
        "semantic 0.50",
        "+ focus 0.30",
        "\u2212 neighbour 0.02",
        "ranked below the first 5",
        "no room in the budget of 600 tokens",
        "score under 0.55",
        "left-min_score-5",
        "Compared with alpha=0.4: 3 of 7 contexts differ",
        "Passage left-gate-1 of the questions",
    ):
        assert words in told, words


def test_a_file_asks_for_nothing(tab: Tab, files: dict[str, str]) -> None:
    """Opened from a disk it makes one request, for itself, and its policy would allow no other."""
    asked: list[str] = []
    tab.context.on("request", lambda request: asked.append(request.url))
    tab.page.goto(files["eventful"])
    assert asked == [files["eventful"]]
    policy = tab.page.locator("meta[http-equiv=Content-Security-Policy]").get_attribute("content")
    assert policy is not None
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src" not in policy
    assert not tab.page.locator("[style]").count()


def test_no_word_of_a_call_is_markup(tab: Tab, files: dict[str, str]) -> None:
    """Hostile ids, names, texts and metadata stand in a page as they are, and none of them runs."""
    tab.page.goto(files["hostile"])
    assert tab.page.title() == f"{HOSTILE} · call inspector"
    assert not tab.page.locator("img").count()
    assert tab.page.locator("script").count() == 1
    for place in ("h1", "#turn-2 .said", "#context-1 .block", ".about .chip", "#passage-1 p"):
        assert HOSTILE in str(tab.page.locator(place).first.text_content()), place
    assert tab.page.locator("#turn-1 .who").text_content() == HOSTILE


def test_keys_lead_through_a_call(tab: Tab, files: dict[str, str]) -> None:
    """By j and k one goes from context to context, Enter opens, / finds, ? tells the keys, all without a mouse."""
    tab.page.goto(files["eventful"])
    where = "document.activeElement.closest('.turn')?.id"
    tab.page.keyboard.press("j")
    assert tab.page.evaluate(where) == "turn-2"
    tab.page.keyboard.press("ArrowDown")
    assert tab.page.evaluate(where) == "lookup-1"
    tab.page.keyboard.press("k")
    assert tab.page.evaluate(where) == "turn-2"
    tab.page.keyboard.press("Enter")
    assert tab.page.locator("#turn-2 > details").get_attribute("open") is not None
    tab.page.keyboard.press("?")
    assert tab.page.locator("#keys").is_visible()
    tab.page.keyboard.press("Escape")
    assert not tab.page.locator("#keys").is_visible()
    tab.page.keyboard.press("/")
    tab.page.keyboard.type("the last")
    assert tab.page.locator("#find-told").inner_text() == "1 of 9"
    assert tab.page.locator(".turns > .turn:visible").count() == 1
    tab.page.keyboard.press("Escape")
    tab.page.locator("#find").fill("")
    tab.page.get_by_label("only turns with context").check()
    assert tab.page.locator("#find-told").inner_text() == "6 of 9"
    # The first Tab of a page leads past the axis.
    tab.page.goto(files["eventful"])
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    assert tab.page.url.endswith("#transcript")


def test_a_bar_of_the_axis_leads_to_its_turn(tab: Tab, files: dict[str, str]) -> None:
    """Bars have names for who does not see them, one of them takes the focus, and Enter goes to its turn."""
    tab.page.goto(files["eventful"])
    name = "Turn 3, agent, 00:12 to 00:17, interrupted"
    assert tab.page.get_by_role("link", name=name, exact=True).count() == 1
    assert tab.page.locator("#lanes a[tabindex='0']").count() == 1
    tab.page.locator("#lanes .turn-bar").first.focus()
    tab.page.keyboard.press("ArrowRight")
    tab.page.keyboard.press("Enter")
    assert tab.page.url.endswith("#turn-3")
    assert tab.page.locator("#turn-3").bounding_box()["y"] < 200  # type: ignore[index]
    tab.page.locator("nav").get_by_text("Compare").click()
    assert 0 < tab.page.locator("#compare-title").bounding_box()["y"] < 150  # type: ignore[index]
    usual = tab.page.evaluate("document.querySelector('#lanes').clientWidth")
    tab.page.get_by_role("button", name="Zoom in").click()
    assert tab.page.evaluate("document.querySelector('#lanes').clientWidth") > usual
    assert tab.overflow() == 0
    tab.page.get_by_role("button", name="Whole call").click()
    box = "document.querySelector('.axis .scroll')"
    assert tab.page.evaluate(f"{box}.scrollWidth - {box}.clientWidth") <= 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read(tab: Tab, files: dict[str, str], scheme: Any) -> None:
    """Every text stands out by 4.5:1, at 360 px nothing is wider than the screen, with all of it opened."""
    tab.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")
    tab.page.goto(files["eventful"])
    tab.page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert tab.page.evaluate(CONTRAST) == []
    tab.narrow()
    assert tab.overflow() == 0
    tab.page.goto(files["hostile"])
    tab.page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
    assert tab.overflow() == 0


def test_every_field_and_button_has_a_name(tab: Tab, files: dict[str, str]) -> None:
    """Whatever can be used has a name that is said, and every link within the page leads somewhere."""
    tab.page.goto(files["eventful"])
    nameless = tab.page.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea, button, a, summary')]
          .filter((at) => !(at.labels?.length || at.getAttribute('aria-label') || at.textContent.trim()))
          .map((at) => at.outerHTML)"""
    )
    assert nameless == []
    lost = tab.page.evaluate(
        """() => [...document.querySelectorAll('a[href]')].map((at) => at.getAttribute('href'))
          .filter((href) => !href.startsWith('#') || !document.getElementById(href.slice(1)))"""
    )
    assert lost == []
    ids = tab.page.evaluate("[...document.querySelectorAll('[id]')].map((at) => at.id)")
    assert len(ids) == len(set(ids))


def test_a_call_of_an_hour(tab: Tab, files: dict[str, str], hour: tuple[str, float]) -> None:
    """A thousand turns make a page of under 10 MB in bounded time, which opens and can be searched."""
    # Some two seconds where nothing else runs.
    assert hour[1] < 20.0
    assert len(hour[0]) < 10_000_000
    tab.page.goto(files["long"])
    assert tab.page.locator("#find").is_visible()
    assert tab.page.locator("details[open]").count() == 0
    tab.page.locator("#find").fill("turn 777:")
    assert tab.page.locator("#find-told").inner_text() == "1 of 1001"
    assert tab.overflow() == 0
    box = "document.querySelector('.axis .scroll')"
    assert tab.page.evaluate(f"{box}.scrollWidth") > 10_000


def test_a_call_in_which_nothing_was_said(tab: Tab, files: dict[str, str]) -> None:
    """An empty recording is a page too."""
    tab.page.goto(files["empty"])
    assert "Nothing was said." in tab.page.locator("#transcript").inner_text()


def test_a_page_names_what_it_holds() -> None:
    """Whether it is redacted is said in each page, and a redacted one does not say the opposite."""
    plain, redacted = (page(recording(redacted=told), live=False) for told in (False, True))
    assert "Nothing is redacted" in plain
    assert "Nothing is redacted" not in redacted
    assert "It has passed a redactor" in redacted
    for text in (plain, redacted):
        assert "This page holds what was said in the call" in text


def test_the_block_is_shown_as_it_was_sent(tmp_path: Path) -> None:
    """The block in a page is the sent one to the character, references and line ends included."""
    block = "<call_memory>\n- [a: b] 5 &lt; 6 &amp; &#91;x&#93;\n\n  two  spaces\n</call_memory>"
    shown = page(recording(contexts=[context(1, 2, text=block)]), live=False)
    (held,) = re.findall(r'<pre class="block"[^>]*>(.*?)</pre>', shown, re.DOTALL)
    assert "\n- [a: b] 5 &amp;lt; 6 &amp;amp; &amp;#91;x&amp;#93;\n\n  two  spaces\n" in held
