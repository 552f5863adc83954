"""What the dashboard counts and lists: requests by the minute, indexes of large projects, jobs, versions."""

from __future__ import annotations

import asyncio
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from obstore.store import MemoryStore

from moss_voice.cloud.log import Commit
from moss_voice.cloud.objects import Objects, open_objects
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import JobNotFoundError
from moss_voice.server.dashboard.listing import Listed, Sort, list_indexes
from moss_voice.server.dashboard.showing import address, told_ago, told_period, visible
from moss_voice.server.settings import Settings
from moss_voice.server.traffic import MINUTES, Traffic
from moss_voice.types import JobStatusResponse
from tests.server_process import serve_here
from tests.server_samples import commit, made

# --- requests --------------------------------------------------------------------------------------


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.at = 1_000_000 * 60.0

    def __call__(self) -> float:
        return self.at


def test_requests_are_counted_by_minute_and_forgotten_after_an_hour() -> None:
    """Each minute has its own counts; a slot that comes round again begins anew."""
    clock = Clock()
    traffic = Traffic(clock=clock)
    for status in (200, 304, 404, 409, 429, 500, 503):
        traffic.count("p", status, 0.01)
    clock.at += 60
    traffic.count("p", 201, None)
    minutes = traffic.minutes("p")
    assert len(minutes) == MINUTES
    assert [minute.requests for minute in minutes[-3:]] == [0, 7, 1]
    one = minutes[-2]
    assert (one.done, one.refused, one.failed, one.conflicts, one.limited) == (2, 3, 2, 1, 1)
    assert minutes[-1].median_ms is None, "an event stream's time says nothing"
    assert minutes[-1].at == datetime.fromtimestamp(clock.at, UTC)
    assert traffic.hour("p").requests == 8
    clock.at += 59 * 60
    assert traffic.hour("p").requests == 1
    traffic.count("p", 200, 0.01)
    assert [minute.requests for minute in traffic.minutes("p") if minute.requests] == [1, 1]
    clock.at += 3600
    assert traffic.hour("p").requests == 0


@pytest.mark.parametrize("scale", [0.00002, 0.0004, 0.02, 1.7, 50.0])
def test_times_are_known_to_within_an_eighth(scale: float) -> None:
    """Median and 95th percentile are as near to the true ones as is told, over all that can be measured."""
    traffic = Traffic(clock=Clock())
    times = sorted(scale * (1 + n / 50) for n in range(100))
    for took_s in times:
        traffic.count("p", 200, took_s)
    hour = traffic.hour("p")
    assert hour.median_ms is not None
    assert hour.p95_ms is not None
    if scale < 0.0001:
        assert hour.p95_ms <= 0.1
    elif scale < 20:
        assert hour.median_ms == pytest.approx(times[49] * 1000, rel=0.125)
        assert hour.p95_ms == pytest.approx(times[94] * 1000, rel=0.125)
    else:
        assert hour.p95_ms > 50_000


def test_strangers_and_many_projects_take_up_no_memory() -> None:
    """Who is not let in makes no entry; of very many projects the least recently busy are forgotten."""
    traffic = Traffic(clock=Clock())
    traffic.count("stranger", 401, 0.1, is_known=False)
    assert traffic.hour("stranger").requests == 0
    for n in range(600):
        traffic.count(f"p{n}", 200, 0.01)
        traffic.count("p0", 429, 0.01, is_known=n == 0)
        traffic.count("busy", 200, 0.01)
    assert repr(traffic) == "<Traffic of 500 projects>"
    assert traffic.hour("busy").requests == 600
    assert traffic.hour("p0").requests == 0
    assert traffic.hour("p599").requests == 1


# --- indexes ---------------------------------------------------------------------------------------


@pytest.fixture
def log() -> ObjectLog:
    """A log in memory, of this test alone."""
    return ObjectLog(Objects(MemoryStore(), name="memory"))


def version(name: str, n: int, **fields: object) -> Commit:
    """Return a commit of one small segment."""
    new = commit(name, made(f"{name}-{n}").ref)
    return replace(new, version=n, parent=n - 1, changed=n, **fields)  # type: ignore[arg-type]


async def listed(log: ObjectLog, **options: object) -> Listed:
    wanted: dict[str, object] = {"find": "", "sort": "name", "descending": False, "offset": 0}
    return await list_indexes(log, "p", **{**wanted, **options})  # type: ignore[arg-type]


async def test_a_small_project_is_sorted_by_anything(log: ObjectLog) -> None:
    """Names, documents, sizes and pushes sort both ways, in pages; deleted indexes are not there."""
    start = datetime.now(UTC) - timedelta(days=1)
    long = "Ä long name " * 15
    names = [*(f"call-{n:02}" for n in range(55)), long]
    for n, name in enumerate(names):
        at = start + timedelta(minutes=(n * 7) % 56)
        assert await log.write_commit("p", version(name, 1, updated_at=at, doc_count=n % 2))
    await log.write_commit("p", version("gone", 1))
    await log.delete_index("p", "gone")
    first = await listed(log)
    assert (first.total, first.whole, first.before, first.after) == (56, True, None, 50)
    second = await listed(log, offset=50)
    assert (second.before, second.after) == (0, None)
    assert [row.commit.index for row in (*first.rows, *second.rows)] == sorted(names)
    assert {row.versions for row in first.rows} == {1}
    sorts: list[Sort] = ["documents", "size", "pushed"]
    for sort in sorts:
        found = (await listed(log, sort=sort, descending=True)).rows
        keys = [
            {
                "documents": row.commit.doc_count,
                "size": row.commit.segments[0].size_bytes,
                "pushed": row.commit.updated_at.timestamp(),
            }[sort]
            for row in found
        ]
        assert keys == sorted(keys, reverse=True), sort
    assert [row.commit.index for row in (await listed(log, find="LONG name")).rows] == [long]
    assert (await listed(log, find="nothing")).rows == []
    assert (await listed(log, offset=1000)).rows == []


async def test_of_a_large_project_a_page_alone_is_read(log: ObjectLog) -> None:
    """Of very many indexes a page reads those that it shows: by name, found by a part of it, a long one too."""
    ref = made("a").ref
    long = ("long " * 50)[:200]
    for name in (*(f"call-{n:03}" for n in range(600)), long):
        await log.write_commit("p", commit(name, ref))
    fresh = ObjectLog(log.objects)
    page = await listed(fresh, offset=500, sort="pushed")
    assert (page.total, page.whole, page.before, page.after) == (601, False, 450, 550)
    assert [row.commit.index for row in page.rows] == [f"call-{n:03}" for n in range(500, 550)]
    assert len(fresh._heads) == 50, "no other index was read"
    assert [row.commit.index for row in (await listed(fresh, find="599")).rows] == ["call-599"]
    assert [row.commit.index for row in (await listed(fresh, find="LONG long")).rows] == [long]
    last = (await listed(fresh, descending=True)).rows
    assert [row.commit.index for row in last[:2]] == [long, "call-599"]
    await log.delete_index("p", "call-598")
    assert [row.commit.index for row in (await listed(fresh, find="call-59")).rows] == [
        f"call-{n}" for n in range(590, 600) if n != 598
    ]


async def test_kept_versions_are_counted_as_the_history_has_them(log: ObjectLog) -> None:
    """Also where an index was deleted and came again; the newest of a long history alone, where asked."""
    for n in (1, 2, 3):
        await log.write_commit("p", version("a", n))
    assert await log.count_versions("p", "a") == len(await log.history("p", "a")) == 3
    assert [one.version for one in await log.history("p", "a", most=2)] == [2, 3]
    await log.delete_index("p", "a")
    await log.write_commit("p", version("a", 5))
    assert await log.count_versions("p", "a") == len(await log.history("p", "a")) == 1
    assert await log.count_versions("p", "never") == 0


# --- jobs ------------------------------------------------------------------------------------------


async def test_jobs_come_newest_first_in_pages(log: ObjectLog) -> None:
    """Each job once, the last written first; a damaged record is told as such, and no more are looked at than asked."""
    now = datetime.now(UTC)
    for n in range(7):
        job = JobStatusResponse(f"job-{n}", "running", n / 7, f"phase {n}", None, now, now, None)
        await log.put_job("p", job)
        await asyncio.sleep(0.002)  # the store's clock tells which was first
    await log.objects.put("p/~jobs/job-8.json", b"{", if_absent=False)
    await log.objects.put("p/~jobs/no job.json", b"{}", if_absent=False)
    first, total = await log.newest_jobs("p", offset=0, limit=5, most=100)
    rest, _ = await log.newest_jobs("p", offset=5, limit=5, most=100)
    assert total == 8
    assert [id_ for id_, _ in first + rest] == ["job-8", *(f"job-{n}" for n in reversed(range(7)))]
    assert first[0][1] is None
    assert first[1][1] is not None
    assert first[1][1].current_phase == "phase 6"
    few, total = await log.newest_jobs("p", offset=0, limit=5, most=3)
    assert (len(few), total) == (3, 3)
    assert await log.newest_jobs("other", offset=0, limit=5, most=3) == ([], 0)
    with pytest.raises(JobNotFoundError):
        await log.get_job("p", "job-7")


def test_jobs_and_long_names_on_their_pages(tmp_path: Path) -> None:
    """A damaged job is a row that says so; an index with the longest name, or one of dots, is reached by its link."""
    log = ObjectLog(open_objects(tmp_path / "store"))
    names = ["..", ".", "a/b", "50% + x&y=z#", "ö" * 200, " spaced "]

    async def fill() -> str:
        for name in names:
            await log.write_commit(
                "p", version(name, 1, ttl_s=30 * 86400 if name == "a/b" else None)
            )
        await log.objects.put("p/~jobs/broken.json", b"{", if_absent=False)
        return (await log.keys.create("p")).key

    key = asyncio.run(fill())
    headers = {"Sec-Fetch-Site": "same-origin"}
    with serve_here(log, Settings()) as (url, _), httpx.Client(headers=headers) as client:
        client.post(f"{url}/ui/sign-in", data={"project": "p", "key": key})
        assert "its record cannot be read" in client.get(f"{url}/ui/jobs").text
        shown = client.get(f"{url}/").text
        assert shown.count("kept 30 d") == 1
        links = re.findall('href="(/ui/index[?]name=[^"]+)"', shown)
        assert len(links) == len(names)
        for link, name in zip(links, sorted(names), strict=True):
            # The history needs no segment, of which there are none here.
            page = client.get(url + link.replace("/ui/index?", "/ui/index/history?"))
            assert page.status_code == 200
            assert f"<h1><bdi>{name.replace('&', '&amp;')}</bdi></h1>" in page.text


# --- values as they are shown ----------------------------------------------------------------------


def test_what_cannot_be_seen_is_made_visible() -> None:
    """Controls become their numbers, halves of pairs a mark; lines, tabs, emoji and scripts stay."""
    assert (
        visible("a\x00\x1b\x7f\x85\ud800\tb\r\nc\rd")
        == r"a\x00\x1b\x7f\x85" + "\ufffd\tb\nc" + r"\x0dd"
    )
    assert visible("👩‍👩‍👧 שלום\u202e") == "👩‍👩‍👧 שלום\u202e"
    assert visible(True) == "True"


def test_times_and_addresses_for_people() -> None:
    """Ages, periods and addresses are written as people and browsers read them."""
    now = datetime(2026, 11, 27, 12, tzinfo=UTC)
    ages = {5: "just now", 61: "1 min ago", 7300: "2 h ago", 90000: "1 d ago", -5: "in the future"}
    for seconds, told in ages.items():
        assert told_ago(now - timedelta(seconds=seconds), now) == told
    periods = {45: "45 s", 129600: "1 d 12 h", 2592000: "30 d", 3661: "1 h 1 min"}
    assert {seconds: told_period(seconds) for seconds in periods} == periods
    assert address("/a", name="x/y &é", more=None, n=3) == "/a?name=x%2Fy+%26%C3%A9&n=3"
    assert address("/a") == "/a"
