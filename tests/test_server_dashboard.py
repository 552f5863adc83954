"""The dashboard as people use it: a real server, a real browser, and what a client sees of it all."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple, TypeVar

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect

from moss_voice import DocumentInfo, MossClient, QueryOptions
from moss_voice.cloud.objects import open_objects
from moss_voice.cloud.sealing import new_key
from moss_voice.cloud.store import ObjectLog
from moss_voice.demo import faq_documents
from moss_voice.server.settings import Settings
from moss_voice.types import JobStatusResponse, SearchResult
from tests.browser import Tab, browser, tab
from tests.server_process import Server, serve, serve_here

__all__ = ["browser", "tab"]

T = TypeVar("T")

FAQ = "support-faq"
SHELF = "shelf"
QUESTION = "how much does it cost to use my phone in america"

# Everything that a page might take for something else.
EVIL = "<script>window.owned=1</script><img src=x onerror=window.owned=1>"
BREAKER = "\"'><svg onload=window.owned=1>{{7*7}}</textarea></script>"
LINK = "javascript:window.owned=1"
TURNED = "abc \u202etxt.exe\u202c \u2066 שלום \u200f مرحبا"
LONG = "w" * 900
ODD = "a\x00b\x07c\x1b[31m\x9f\u2028\ufeff"
EMOJI = "👩‍👩‍👧‍👦🏴‍☠️" * 20
HOSTILE = [EVIL, BREAKER, LINK, TURNED, LONG, ODD, EMOJI]
HOSTILE_INDEX = f"{BREAKER} {TURNED} {EVIL}"


class Site(NamedTuple):
    """A server over a directory, its project, and keys of it."""

    server: Server
    project: str
    key: str
    reader: str
    cloud: dict[str, Any]


def run(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine beside the browser's own loop."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: asyncio.run(work())).result()


def aside(work: Callable[[], T]) -> T:
    """Run what runs a loop of its own."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Start a server, and push an FAQ, a few documents of many kinds, an encrypted index and hostile ones."""
    where = tmp_path_factory.mktemp("dashboard")
    with serve(where / "store") as server:
        project, key = aside(lambda: server.project("larkline"))
        _, reader = aside(lambda: server.project("larkline", read_only=True))
        cloud: dict[str, Any] = {
            "project_id": project,
            "project_key": key,
            "cloud": server.url,
            "cache_path": where / "cache",
            "journal_path": where / "journal",
        }
        shelf = [
            DocumentInfo(
                f"book-{n}", f"book number {n}", {"price": n, "kind": "ab"[n % 2], "rare": n > 25}
            )
            for n in range(30)
        ]
        hostile = [
            DocumentInfo(
                f"{text}{n}",
                f"{text} said the caller",
                {text: text, "n": n},
                payload={text: [text]},
            )
            for n, text in enumerate(HOSTILE)
        ]

        async def push() -> None:
            async with MossClient(**cloud) as client:
                await client.create_index(FAQ, faq_documents())
                await client.create_index(SHELF, shelf)
                await client.create_index(HOSTILE_INDEX, hostile)
            async with MossClient(**cloud, encryption_key=new_key()) as client:
                await client.create_index("sealed", shelf[:2])
            now = datetime.now(UTC)
            log = ObjectLog(open_objects(server.store))
            for n, text in enumerate(HOSTILE):
                job = JobStatusResponse(
                    f"job-{n}", "failed", 0.5, text, f"{text} failed", now, now, now
                )
                await log.put_job(project, job)

        run(push)
        yield Site(server, project, key, reader, cloud)


_sessions: dict[str, Any] = {}


def enter(page: Page, site: Site, key: str | None = None, *, anew: bool = False) -> None:
    """Be signed in: by the form, and from then on by the cookie that it gave, unless `anew`."""
    key = key or site.key
    if key in _sessions and not anew:
        page.context.add_cookies([_sessions[key]])
        page.goto(site.server.url)
    else:
        page.goto(site.server.url)
        page.get_by_label("Project", exact=True).fill(site.project)
        page.get_by_label("Project key").fill(key)
        page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("heading", name="Indexes", level=1)).to_be_visible()
    if not anew:
        (_sessions[key],) = page.context.cookies()


def open_index(page: Page, site: Site, name: str) -> None:
    page.goto(f"{site.server.url}/")
    page.get_by_role("link", name=name, exact=True).click()


def asked(site: Site, index: str, query: str, **options: Any) -> SearchResult:
    """Return what a client finds, with nothing kept from before."""

    async def ask() -> SearchResult:
        async with MossClient(**site.cloud) as client:
            return await client.query(index, query, QueryOptions(**options))

    return run(ask)


def ids_on(page: Page) -> list[str]:
    return page.locator(".document .id").all_inner_texts()


# --- in and out ------------------------------------------------------------------------------------


def test_a_wrong_key_is_told_and_a_right_one_lets_in(tab: Tab, site: Site) -> None:
    """A wrong key leaves no session and is not kept; a right one gives a cookie that no script can read."""
    page = tab.page
    page.goto(site.server.url)
    page.get_by_label("Project", exact=True).fill(site.project)
    page.get_by_label("Project key").fill("mv_wrong")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("does not open")
    assert page.get_by_label("Project", exact=True).input_value() == site.project
    assert page.get_by_label("Project key").input_value() == ""
    assert tab.context.cookies() == []
    assert [line for line in tab.said if "401" not in line] == []
    tab.said.clear()

    page.get_by_label("Project key").fill(site.key)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Indexes", level=1)).to_be_visible()
    (cookie,) = tab.context.cookies()
    assert cookie["httpOnly"]
    assert cookie["sameSite"] == "Strict"
    assert cookie["value"].startswith("mt1.")
    assert page.evaluate("document.cookie") == ""
    secret = site.key.rpartition("_")[2]
    assert secret not in page.content() + page.url + json.dumps(cookie)

    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert tab.context.cookies() == []
    # Whoever took the cookie along has nothing of it.
    tab.context.add_cookies(
        [{"name": cookie["name"], "value": cookie["value"], "url": site.server.url}]
    )
    page.goto(f"{site.server.url}/ui/jobs")
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert secret not in site.server.log()


def test_a_revoked_key_ends_the_session(tab: Tab, site: Site, tmp_path: Any) -> None:
    """Once its key is revoked a session leads to the door, which says so; the cookie is gone."""
    log = ObjectLog(open_objects(tmp_path / "store"))
    made = run(lambda: log.keys.create("p"))
    with serve_here(log, Settings(key_cache_s=0.01)) as (url, _):
        page = tab.page
        page.goto(url)
        page.get_by_label("Project", exact=True).fill("p")
        page.get_by_label("Project key").fill(made.key)
        page.keyboard.press("Enter")
        expect(page.get_by_text("This project has no index yet")).to_be_visible()
        run(lambda: log.keys.revoke("p", made.info.id))
        page.get_by_role("link", name="Jobs").click()
        expect(page.get_by_role("status")).to_contain_text("has ended")
        assert tab.context.cookies() == []
        assert urlpath(page) == "/?ended=1"


def urlpath(page: Page) -> str:
    return re.sub("^https?://[^/]*", "", page.url)


# --- looking ---------------------------------------------------------------------------------------


def test_indexes_are_listed_sorted_and_found(tab: Tab, site: Site) -> None:
    """Each index has its facts; a click sorts, the form finds by a part of the name."""
    page = tab.page
    enter(page, site)
    rows = page.locator("table.indexes tbody tr")
    assert rows.count() == 4
    row = rows.filter(has_text=FAQ)
    for told in ("58", "moss-minilm", "just now", "kB"):
        expect(row).to_contain_text(told)
    expect(rows.filter(has_text="sealed")).to_contain_text("encrypted")
    page.get_by_role("link", name="Documents").click()
    expect(page.locator("th[aria-sort=descending]")).to_contain_text("Documents")
    expect(rows.locator("th a").first).to_have_text(FAQ)
    page.get_by_role("link", name="Documents").click()
    expect(rows.locator("th a").last).to_have_text(FAQ)
    page.get_by_label("Name contains").fill("SHEL")
    page.keyboard.press("Enter")
    expect(rows.locator("th a")).to_have_text([SHELF])
    tab.shoot("dashboard-indexes")


def test_documents_are_browsed_in_their_order(tab: Tab, site: Site) -> None:
    """Pages hold every document once, in the order of the API, with its metadata; the count is right."""
    page = tab.page
    enter(page, site)
    open_index(page, site, SHELF)
    expect(page.get_by_text("1 to 25 of 30")).to_be_visible()
    expect(page.locator(".document").nth(1)).to_contain_text("kind b")
    found = ids_on(page)
    page.get_by_role("link", name="Next").click()
    expect(page.get_by_text("26 to 30 of 30")).to_be_visible()
    found += ids_on(page)
    assert found == [f"book-{n}" for n in range(30)]
    page.get_by_role("link", name="Before").click()
    expect(page.get_by_text("1 to 25 of 30")).to_be_visible()


def test_an_encrypted_index_tells_its_size_alone(tab: Tab, site: Site) -> None:
    """Of an encrypted index there are facts and versions, and nothing to search, delete or restore in it."""
    enter(tab.page, site)
    open_index(tab.page, site, "sealed")
    expect(tab.page.get_by_text("This index is encrypted")).to_be_visible()
    assert tab.page.locator("#find, .document").count() == 0
    tab.page.get_by_role("link", name="History", exact=True).click()
    assert tab.page.get_by_role("link", name="Restore").count() == 0


def test_a_search_shows_what_a_client_finds(tab: Tab, site: Site) -> None:
    """The hits are those of `client.query`, in its order, with its scores and parts, whatever alpha says."""
    page = tab.page
    enter(page, site)
    open_index(page, site, FAQ)
    for alpha in (0.8, 0.0, 1.0):
        page.get_by_label("Search for").fill(QUESTION)
        page.get_by_label("Alpha").fill(str(alpha))
        page.get_by_label("At most").fill("7")
        page.get_by_label("Score at least").fill("0.3")
        page.get_by_role("button", name="Search").click()
        manner = {0.8: "meaning and words", 0.0: "words", 1.0: "meaning"}[alpha]
        expect(page.get_by_text(f"ranked by {manner}.")).to_be_visible()
        expected = asked(site, FAQ, QUESTION, top_k=7, alpha=alpha, min_score=0.3).docs
        assert expected
        assert ids_on(page) == [doc.id for doc in expected]
        told = page.locator(".document .score").first.inner_text()
        first = expected[0]
        assert f"score {first.score:.3f}" in told
        assert f"meaning {first.parts.semantic:.3f}, words {first.parts.keyword:.3f}" in told
        tab.shoot(f"dashboard-search-{alpha}")
    # What was asked is a caller's own words: it stands in no address and in no log.
    assert "america" not in page.url
    assert "america" not in site.server.log()


# --- the filter builder ----------------------------------------------------------------------------


def tab_to(page: Page, is_there: str) -> None:
    """Press Tab until the focus is on what a selector finds."""
    for _ in range(60):
        if page.evaluate("s => document.activeElement.matches(s)", is_there):
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"no way to {is_there} by keyboard")


def test_a_filter_is_built_by_keyboard_alone(tab: Tab, site: Site) -> None:
    """Tab, typing and Enter are enough to build two conditions, one of them negated, and to see what passes."""
    page = tab.page
    enter(page, site)
    open_index(page, site, SHELF)
    offered = page.locator("#fields option").evaluate_all("all => all.map(one => one.value)")
    assert offered == ["price", "kind", "rare"]
    page.focus("body")
    tab_to(page, ".filter > summary")
    page.keyboard.press("Enter")
    tab_to(page, "#builder > button")
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.dataset.part") == "field"
    page.keyboard.type("price")
    page.keyboard.press("Tab")
    page.keyboard.type("is at least")
    page.keyboard.press("Tab")
    page.keyboard.type("24")
    tab_to(page, "#builder > button")
    page.keyboard.press("Enter")
    page.keyboard.type("kind")
    tab_to(page, "[data-part=value]")
    page.keyboard.type("a")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    page.keyboard.press("Shift+Tab")
    assert page.evaluate("document.activeElement.dataset.part") == "not"
    page.keyboard.press("Space")
    assert json.loads(page.get_by_label("Filter as JSON").input_value()) == {
        "$and": [
            {"field": "price", "condition": {"$gte": 24}},
            {"$not": {"field": "kind", "condition": {"$eq": "a"}}},
        ]
    }
    tab.shoot("dashboard-filter")
    tab_to(page, "button.first")
    page.keyboard.press("Enter")
    expect(page.get_by_text("1 to 3 of 3 that pass the filter")).to_be_visible()
    assert ids_on(page) == ["book-25", "book-27", "book-29"]
    # Still there, to be changed.
    assert page.locator(".condition").count() == 2


VALUES: list[tuple[str, str, dict[str, Any]]] = [
    ("$eq", "true", {"$eq": True}),
    ("$eq", '"true"', {"$eq": "true"}),
    ("$eq", "007", {"$eq": "007"}),
    ("$ne", "a, b", {"$ne": "a, b"}),
    ("$in", "a, 2, true", {"$in": ["a", 2, True]}),
    ("$nin", '["a, b", 1]', {"$nin": ["a, b", 1]}),
    ("$gt", "-1e3", {"$gt": -1000}),
    ("$lt", "2.5", {"$lt": 2.5}),
    ("$lte", "x", {"$lte": "x"}),
    ("$near", "52.5,13.4,1000", {"$near": "52.5,13.4,1000"}),
]


def test_values_become_what_they_are(tab: Tab, site: Site) -> None:
    """A typed value becomes the number, truth, text or list that it spells, and comes back from the JSON."""
    page = tab.page
    enter(page, site)
    open_index(page, site, SHELF)
    page.locator(".filter > summary").click()
    text = page.get_by_label("Filter as JSON")
    for operator, typed, expected in VALUES:
        text.fill("")
        page.get_by_role("button", name="Add condition").click()
        page.get_by_label("Field").fill("f")
        page.get_by_label("Operator").select_option(operator)
        page.get_by_label("Value").fill(typed)
        wanted = {"field": "f", "condition": expected}
        assert json.loads(text.input_value()) == wanted
        text.fill(json.dumps({"$or": [wanted, {"$not": wanted}]}))
        assert page.get_by_label("Documents must pass").input_value() == "$or"
        page.get_by_label("Field").first.fill("g")
        assert json.loads(text.input_value()) == {
            "$or": [{**wanted, "field": "g"}, {"$not": wanted}]
        }
    page.get_by_role("button", name="Remove condition 1").click()
    page.get_by_role("button", name="Remove condition 1").click()
    assert text.input_value() == ""


def test_json_that_is_more_than_the_builder_is_sent_as_it_is(tab: Tab, site: Site) -> None:
    """Nested filters are left as they are typed, and counted; a malformed one is told with its path."""
    page = tab.page
    enter(page, site)
    open_index(page, site, SHELF)
    page.locator(".filter > summary").click()
    nested = {
        "$and": [
            {"$or": [{"field": "price", "condition": {"$in": [3, 26]}}]},
            {"field": "price", "condition": {"$gt": 2, "$lt": 30}},
        ]
    }
    page.get_by_label("Filter as JSON").fill(json.dumps(nested))
    expect(page.get_by_role("status")).to_contain_text("more than these fields can show")
    page.get_by_label("Search for").fill("book")
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_text("2 hits")).to_be_visible()
    assert sorted(ids_on(page)) == ["book-26", "book-3"]
    assert json.loads(page.get_by_label("Filter as JSON").input_value()) == nested
    page.get_by_label("Filter as JSON").fill(
        '{"$and": [{"field": "price", "condition": {"$gt": "x"}}]}'
    )
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("alert")).to_contain_text("$and[0].condition.$gt: expected a number")
    assert [line for line in tab.said if "400" not in line] == []
    tab.said.clear()


# --- changing --------------------------------------------------------------------------------------


def test_a_deleted_document_is_gone_for_clients_and_comes_back(tab: Tab, site: Site) -> None:
    """Deletion asks first, tells its version and is seen by a client; restoring brings the document back."""
    page = tab.page
    best = asked(site, FAQ, QUESTION).docs[0].id
    enter(page, site)
    open_index(page, site, FAQ)
    page.get_by_label("Search for").fill(QUESTION)
    page.get_by_role("button", name="Search").click()
    button = page.get_by_role("button", name="Delete chosen documents")
    expect(button).to_be_disabled()
    page.locator(".document input[type=checkbox]").first.check()
    page.get_by_role("button", name="Delete 1 chosen document").click()
    expect(page.get_by_role("heading", name="Delete 1 document?")).to_be_visible()
    assert ids_on(page) == [best]
    assert best in {doc.id for doc in asked(site, FAQ, QUESTION).docs}, "nothing is gone yet"
    tab.shoot("dashboard-confirm")
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text("1 document is deleted: this is version 2")
    assert best not in {doc.id for doc in asked(site, FAQ, QUESTION, top_k=100).docs}

    page.get_by_role("link", name="History", exact=True).click()
    page.get_by_role("link", name="Restore version 1").click()
    expect(page.get_by_role("heading", name="Restore version 1?")).to_be_visible()
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_role("status")).to_contain_text(
        "Version 3 is there: it holds what version 1 held"
    )
    expect(page.locator("tbody tr").first).to_contain_text("a restore of 1")
    assert asked(site, FAQ, QUESTION).docs[0].id == best
    tab.shoot("dashboard-history")


def test_an_index_goes_only_by_its_name(tab: Tab, site: Site) -> None:
    """Another name deletes nothing; the right one deletes the index for clients too."""

    async def push() -> None:
        async with MossClient(**site.cloud) as client:
            await client.create_index("doomed", [DocumentInfo("a", "b")])

    async def names() -> list[str]:
        async with MossClient(**site.cloud) as client:
            return [info.name for info in await client.list_indexes()]

    run(push)
    page = tab.page
    enter(page, site)
    open_index(page, site, "doomed")
    page.get_by_role("link", name="Delete").click()
    page.get_by_label("Type the name").fill("domed")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("nothing was deleted")
    tab.said.clear()
    assert "doomed" in run(names)
    page.get_by_label("Type the name").fill("doomed")
    page.keyboard.press("Enter")
    expect(page.get_by_role("status")).to_contain_text("deleted")
    assert "doomed" not in run(names)


def test_a_read_only_key_sees_all_and_changes_nothing(tab: Tab, site: Site) -> None:
    """With a read-only key every page is there, and no control that would change anything."""
    page = tab.page
    enter(page, site, site.reader)
    expect(page.get_by_text("read only")).to_be_visible()
    open_index(page, site, SHELF)
    assert page.locator(".document").count() == 25
    assert page.locator(".document input, button.danger").count() == 0
    assert page.get_by_role("link", name="Delete").count() == 0
    page.get_by_label("Search for").fill("book number 7")
    page.keyboard.press("Enter")
    expect(page.locator(".document").first).to_contain_text("book-7")
    page.get_by_role("link", name="History", exact=True).click()
    assert page.get_by_role("link", name="Restore").count() == 0
    for path in ("/ui/index/delete", "/ui/index/restore"):
        page.goto(f"{site.server.url}{path}?name={SHELF}&version=1")
        expect(page.get_by_role("heading", name="Not allowed")).to_be_visible()
    assert [line for line in tab.said if "403" not in line] == []
    tab.said.clear()


def test_another_site_cannot_send_our_forms(tab: Tab, site: Site) -> None:
    """A form on another site's page, with all but the session's secret, changes nothing: it is not signed in."""
    page = tab.page
    enter(page, site)
    form = (
        f'<!doctype html><form method=post action="{site.server.url}/ui/index/delete">'
        f"<input name=name value={SHELF}><input name=typed value={SHELF}><button>go</button></form>"
    )

    def answer(route: Route) -> None:
        route.fulfill(body=form, content_type="text/html")

    # Another site, as the browser sees it: it is never asked for.
    tab.context.route("http://localhost:9/", answer)
    page.goto("http://localhost:9/")
    page.get_by_role("button").click()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    page.goto(site.server.url)
    expect(page.get_by_role("link", name=SHELF)).to_be_visible()
    tab.said.clear()


# --- without, narrow, dark -------------------------------------------------------------------------


def test_everything_works_without_javascript(browser: Browser, site: Site) -> None:
    """Sign in, browse, filter by JSON in pages, search, and come to a confirmation: with no script at all."""
    context = browser.new_context(java_script_enabled=False)
    context.set_default_timeout(15_000)
    page = context.new_page()
    try:
        enter(page, site, anew=True)
        page.get_by_role("link", name=SHELF, exact=True).click()
        page.locator(".filter > summary").click()
        assert page.locator("#builder").is_hidden()
        page.get_by_label("Filter as JSON").fill('{"field": "price", "condition": {"$lt": 28}}')
        page.get_by_role("button", name="Search").click()
        expect(page.get_by_text("1 to 25 of 28 that pass the filter")).to_be_visible()
        page.get_by_role("button", name="Next").click()
        expect(page.get_by_text("26 to 28 of 28 that pass the filter")).to_be_visible()
        assert ids_on(page) == ["book-25", "book-26", "book-27"]
        page.get_by_label("Search for").fill("book number 9")
        page.get_by_role("button", name="Search").click()
        expect(page.locator(".document").first).to_contain_text("book-9")
        page.locator(".document input[type=checkbox]").first.check()
        page.get_by_role("button", name="Delete chosen documents").click()
        expect(page.get_by_role("heading", name="Delete 1 document?")).to_be_visible()
        page.get_by_role("button", name="Sign out").click()
        expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    finally:
        context.close()


# What a reader needs of a page, looked for in the page itself: a list of what is missing.
AUDIT = """() => {
  const found = [];
  if (document.documentElement.lang !== "en") found.push("no lang");
  if (!document.title.trim()) found.push("no title");
  if (document.querySelectorAll("h1").length !== 1) found.push("not one h1");
  for (const one of document.querySelectorAll("input:not([type=hidden]), select, textarea")) {
    if (![...one.labels].some(l => l.textContent.trim()) && !one.getAttribute("aria-label")) found.push("no label: " + one.outerHTML.slice(0, 80));
  }
  for (const one of document.querySelectorAll("button, a")) if (!one.textContent.trim()) found.push("no name: " + one.outerHTML.slice(0, 80));
  for (const one of document.querySelectorAll("[style], [onclick], [onload], [onerror]")) found.push("inline: " + one.outerHTML.slice(0, 80));
  const parse = text => { const n = text.match(/[\\d.]+/g).map(Number); return text.startsWith("color(srgb") ? [n[0]*255, n[1]*255, n[2]*255, n[3] ?? 1] : [n[0], n[1], n[2], n[3] ?? 1]; };
  const light = ([r, g, b]) => { const f = v => { v /= 255; return v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4; }; return .2126 * f(r) + .7152 * f(g) + .0722 * f(b); };
  const behind = one => { for (let at = one; at; at = at.parentElement) { const c = parse(getComputedStyle(at).backgroundColor); if (c[3] === 1) return c; if (c[3] > 0) throw new Error("see-through: " + at.outerHTML.slice(0, 80)); } return [255, 255, 255, 1]; };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const one = texts.currentNode.parentElement;
    if (!texts.currentNode.textContent.trim() || one.closest("script, template, option, [disabled], .unseen, .skip") || !one.checkVisibility()) continue;
    const [a, b] = [light(parse(getComputedStyle(one).color)), light(behind(one))];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (contrast < 4.5) found.push("contrast " + contrast.toFixed(2) + ": " + one.outerHTML.slice(0, 80));
  }
  return found;
}"""


def test_pages_are_readable_wide_narrow_light_and_dark(tab: Tab, site: Site) -> None:
    """Every page has one heading, a title, labels and contrast in both schemes, and fits a telephone."""
    page = tab.page
    page.goto(site.server.url)
    assert page.evaluate(AUDIT) == []
    enter(page, site)
    quoted = f"name={SHELF}"
    hostile = str(httpx.QueryParams(name=HOSTILE_INDEX))
    paths = ["/", "/ui/jobs", "/ui/requests", "/ui/project", "/ui/nothing"]
    for name in (quoted, hostile, "name=sealed"):
        paths += [f"/ui/index?{name}", f"/ui/index/history?{name}", f"/ui/index/delete?{name}"]
    paths.append(f"/ui/index/restore?{quoted}&version=1")
    for path in paths:
        tab.page.set_viewport_size({"width": 1280, "height": 900})
        page.goto(site.server.url + path)
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            # Colours move for a moment.
            page.evaluate("Promise.all(document.getAnimations().map(one => one.finished))")
            assert page.evaluate(AUDIT) == [], (path, scheme)
        assert tab.overflow() == 0, path
        tab.narrow()
        assert tab.overflow() == 0, (path, "narrow")
        tab.shoot(f"narrow-dark{path.replace('/', '-').partition('?')[0]}")
    assert [line for line in tab.said if "404" not in line] == []
    tab.said.clear()


def test_hostile_content_is_shown_and_does_nothing(tab: Tab, site: Site) -> None:
    """Markup, attributes, links, turned text, controls and long words in every value stay what they are: text."""
    page = tab.page
    page.on("dialog", lambda dialog: pytest.fail("a dialog"))
    enter(page, site)
    page.locator("table.indexes a").filter(has_text="svg onload").click()
    expect(page.locator("h1")).to_contain_text(BREAKER)
    shown = page.locator(".document").all_inner_texts()
    assert len(shown) == len(HOSTILE)
    for text, told in zip(HOSTILE[:5], shown[:5], strict=True):
        assert told.count(text) >= 4, "id, text, metadata key and value"
    assert r"a\x00b\x07c\x1b[31m\x9f" in shown[5]
    tab.shoot("hostile", whole=True)
    page.get_by_label("Search for").fill(EVIL)
    page.locator(".filter > summary").click()
    page.get_by_label("Filter as JSON").fill(
        json.dumps({"field": EVIL, "condition": {"$eq": EVIL}})
    )
    page.get_by_role("button", name="Search").click()
    expect(page.get_by_role("heading", name="Found")).to_be_visible()
    assert page.locator(".document").count() == 1
    assert page.get_by_label("Search for").input_value() == EVIL
    # Chosen by ids that hold quotes, markup and control characters.
    page.goto(f"{site.server.url}/ui/index?{httpx.QueryParams(name=HOSTILE_INDEX)}")
    for box in page.locator(".document input[type=checkbox]").all():
        box.check()
    page.locator("button.danger").click()
    expect(page.get_by_role("heading", name=f"Delete {len(HOSTILE)} documents?")).to_be_visible()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.get_by_role("status")).to_contain_text(f"{len(HOSTILE)} documents are deleted")
    page.goto(f"{site.server.url}/ui/index/history?{httpx.QueryParams(name=HOSTILE_INDEX)}")
    page.goto(f"{site.server.url}/ui/jobs")
    for error in page.locator("summary").all():
        error.click()
    assert page.get_by_text(f"{EVIL} failed").is_visible()
    assert tab.overflow() == 0
    tab.shoot("hostile-jobs", whole=True)
    assert page.evaluate("window.owned") is None
    assert page.locator("a[href^='javascript' i]").count() == 0
