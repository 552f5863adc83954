"""Why a hit is where it is can be read: off results, off spans, and off the terminal; never what was said."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from moss_voice import CallContext, DocumentInfo, Hit, MossClient, QueryOptions
from moss_voice.call.observe import span_attributes
from moss_voice.cli.explain import explained
from moss_voice.types import HitParts

INNS = ("Lamplighter Inn", "Quayside Lodge", "Marchmont House", "Thornbury Arms", "Gosforth Hall")
TOPICS = {
    "parking": "Parking at {} costs twelve pounds a night.",
    "pets": "Dogs are welcome at {} and stay free of charge.",
    "breakfast": "Breakfast at {} is served from seven to ten.",
}


def inns() -> list[DocumentInfo]:
    """Passages about inns, whose names are in the metadata."""
    return [
        DocumentInfo(f"{inn.split()[0].lower()}-{topic}", text.format(inn), {"inn": inn})
        for inn in INNS
        for topic, text in TOPICS.items()
    ]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[MossClient]:
    async with MossClient(cloud=tmp_path / "cloud", journal_path=tmp_path / "j") as client:
        await client.create_index("inns", inns())
        yield client


# --- the sum, in words -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "lines"),
    [
        (HitParts(0.521, 0.187), ["rank 0.71 = semantic 0.52 + keyword 0.19"]),
        (HitParts(0.5, focus=0.5), ["rank 1.00 = semantic 0.50 + focus 0.50"]),
        (
            HitParts(0.4, 0.2, 0.0, -0.03, 0.02, -0.16),
            [
                "rank 0.43 = semantic 0.40 + keyword 0.20 - neighbour 0.03",
                "          + recency 0.02 - repeat 0.16",
            ],
        ),
        (HitParts(keyword=1.0), ["rank 1.00 = keyword 1.00"]),
        (HitParts(-0.04, 0.1), ["rank 0.06 = semantic -0.04 + keyword 0.10"]),
        (HitParts(0.004, -0.004), ["rank 0.00"]),
    ],
)
def test_a_rank_score_is_told_as_a_sum(parts: HitParts, lines: list[str]) -> None:
    """Parts that round to nothing are left out, negative ones subtracted, long sums go on below."""
    assert explained(parts, width=59) == lines


@pytest.mark.parametrize("width", [20, 30, 40, 80])
def test_a_sum_breaks_between_its_parts(width: int) -> None:
    """However narrow, all parts are there, each on one line with its number."""
    lines = explained(HitParts(0.4, 0.2, 0.1, -0.05, 0.02), width=width)
    told = "rank 0.67 = semantic 0.40 + keyword 0.20 + focus 0.10 - neighbour 0.05 + recency 0.02"
    assert " ".join(" ".join(lines).split()) == told
    assert width < 27 or max(map(len, lines)) <= width


# --- results ---------------------------------------------------------------------------------------


async def test_results_carry_their_parts(client: MossClient) -> None:
    """Of one index or several merged, each result tells what it was ranked by; the order is theirs."""
    await client.create_index("cafe", [DocumentInfo("dogs", "Dogs may sit on the terrace.")])
    one = await client.query("inns", "are dogs welcome", QueryOptions(top_k=3))
    several = await client.query_multi_index(
        ["inns", "cafe"], "are dogs welcome", QueryOptions(top_k=9)
    )
    assert {doc.index_name for doc in several.docs} == {"inns", "cafe"}
    for found in (one, several):
        ranks = [doc.parts.total for doc in found.docs]
        assert ranks == sorted(ranks, reverse=True)
        assert all(doc.parts.semantic > 0.0 for doc in found.docs)
        assert found.docs[0].parts.keyword > 0.0
        assert {doc.parts.focus for doc in found.docs} == {0.0}
    for doc in one.docs:
        assert doc.score == pytest.approx((1 + doc.parts.semantic / 0.8) / 2, abs=1e-5)


async def test_alpha_decides_which_parts_there_are(client: MossClient) -> None:
    """At 1 meaning alone, at 0 keywords alone."""
    for alpha, absent in ((1.0, "keyword"), (0.0, "semantic")):
        found = await client.query("inns", "are dogs welcome", QueryOptions(alpha=alpha))
        assert found.docs
        assert {getattr(doc.parts, absent) for doc in found.docs} == {0.0}


# --- what a call is about --------------------------------------------------------------------------


async def test_a_call_tells_what_it_is_about(client: MossClient) -> None:
    """The values in focus, the newest first; names are found by themselves, and not where told not to."""
    call = await client.call("call", knowledge=["inns"])
    assert call.about == []
    await call.heard("hello, I am calling about the lamplighter inn")
    assert call.about == ["Lamplighter Inn"]
    await call.heard("or rather the Quayside Lodge")
    assert call.about == ["Quayside Lodge", "Lamplighter Inn"]
    hits = (await call.context("are dogs welcome")).hits
    assert hits[0].id == "quayside-pets"
    await call.discard()
    for number, options in enumerate(({"focus": ()}, {"without": ["focus"]})):
        plain = await client.call(f"plain-{number}", knowledge=["inns"], **options)  # type: ignore[arg-type]
        await plain.heard("hello, I am calling about the lamplighter inn")
        assert plain.about == []
        hits = (await plain.context("are dogs welcome")).hits
        assert hits
        assert {hit.parts.focus for hit in hits} == {0.0}
        await plain.discard()


async def test_a_resumed_call_knows_what_it_was_about(client: MossClient) -> None:
    """What was named before the hand-over is in focus from the start."""
    call = await client.call("call", knowledge=["inns"])
    await call.heard("hello, I am calling about the lamplighter inn")
    await call.end()
    async with await client.call("call", knowledge=["inns"]) as resumed:
        assert resumed.about == ["Lamplighter Inn"]


# --- spans -----------------------------------------------------------------------------------------


def test_spans_tell_ranks_and_parts_and_no_text() -> None:
    """Lists in the order of the sources, one for each part that is not 0 in all; need where it is known."""
    hits = [
        Hit("a", "secret", 0.8, "faq", "faq: a", {"inn": "name"}, HitParts(0.48, 0.11, 0.5)),
        Hit("b", "secret", 0.6, "faq", "faq: b", {"inn": "name"}, HitParts(0.16, -1e-9)),
    ]
    told = span_attributes(CallContext("secret", hits, 1.0, query="secret", need=1.23456))
    assert told["moss_voice.sources"] == ["faq: a", "faq: b"]
    assert told["moss_voice.rank_scores"] == [1.09, 0.16]
    assert told["moss_voice.need"] == 1.235
    parts = {key: value for key, value in told.items() if ".parts." in key}
    assert parts == {
        "moss_voice.parts.semantic": [0.48, 0.16],
        "moss_voice.parts.keyword": [0.11, 0.0],
        "moss_voice.parts.focus": [0.5, 0.0],
    }
    assert "-0.0" not in str(parts)
    assert not {"secret", "name"} & set(str(told).replace("'", " ").split())


def test_spans_of_nothing_tell_nothing() -> None:
    """Without hits there are no parts, without knowledge no need."""
    told = span_attributes(CallContext("", [], 1.0))
    assert told["moss_voice.rank_scores"] == []
    assert not [key for key in told if ".parts." in key or key.endswith(".need")]
