"""Recall as a call does it: what each part of it changes, what it tells, and that its faults stay inside.

For each part there is a scene in which it decides the answer. The model knows words and no meaning, so
that it is plain what is near to what.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from moss_voice import CallMemory, MossClient
from moss_voice.call.names import Named, Names
from moss_voice.errors import InvalidArgumentError
from moss_voice.index import Places
from moss_voice.ranking import PARTS, Part
from moss_voice.session import SessionIndex
from moss_voice.types import DocumentInfo, HitParts
from tests.spoken_words import MODEL, SpokenWords, index_of, new_remote

LONG_MS = 60_000.0


def call_session(model: SpokenWords) -> SessionIndex:
    return SessionIndex("call", model_id=MODEL, embedder=model, remote=new_remote())


async def open_call(
    model: SpokenWords, knowledge: Sequence[SessionIndex] = (), **options: Any
) -> CallMemory:
    options = {"deadline_ms": LONG_MS, "min_score": 0.0, **options}
    return await CallMemory.open(call_session(model), knowledge=knowledge, **options)


async def settled(call: CallMemory) -> None:
    """Wait until the interims that were noted are worked off."""
    await asyncio.to_thread(wait, list(call._interims.values()))


# --- a scene for each part -------------------------------------------------------------------------


@dataclass(frozen=True)
class Scene:
    """A call in which one part of recall decides what is found.

    Attributes:
        part: Its name.
        asked: The turn, or the query of the agent's own tool.
        found: The ids found, best first; `otherwise` those without the part.
        said: The turns before, by id.
        knowledge: Passages by id; with some, passages are asked for, and else turns.
        about: The `entity` of passages.
        options: Of the call.
        silent: Words that the model does not know.
    """

    part: Part
    asked: str
    found: Sequence[str]
    otherwise: Sequence[str]
    said: Mapping[str, str] = field(default_factory=dict)
    knowledge: Mapping[str, str] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    silent: str = ""


SUNSHINE = "it is such lovely weather today again and so very warm too"


def weather(first: int, last: int) -> dict[str, str]:
    return {f"w{n}": "lovely weather today" for n in range(first, last)}


SCENES = [
    # Meaning alone counts: the turn before told which costs are meant.
    Scene(
        "conversation",
        "what are the costs",
        ["garage"],
        ["breakfast"],
        said={"t": "let us talk of the garage"},
        knowledge={"breakfast": "breakfast costs", "garage": "garage costs"},
        options={"alpha": 1.0},
    ),
    # The model knows neither word: only the keyword of the turn before tells.
    Scene(
        "keyword_window",
        "what are the costs",
        ["garage"],
        ["breakfast"],
        said={"t": "let us talk of the garage"},
        knowledge={"breakfast": "breakfast costs", "garage": "garage costs"},
        silent="garage breakfast",
    ),
    # No passage holds the name: only its metadata does.
    Scene(
        "focus",
        "what are the parking rules",
        ["hilton"],
        ["astoria"],
        said={"t": "i am at the Hilton Inn"},
        knowledge={"astoria": "parking rules apply", "hilton": "parking rules apply"},
        about={"astoria": "Astoria", "hilton": "Hilton Inn"},
        options={"focus": ["entity"]},
    ),
    # Nothing about the hotel can be meant; it would win for its name all the same.
    Scene(
        "topic_change",
        "where do taxis wait at night",
        ["north"],
        ["hilton"],
        said={"t": "i am at the Hilton Inn"},
        knowledge={
            "hilton": "breakfast is written on the board at noon",
            "north": "taxis wait at night by the gate",
            "south": "taxis wait at night near my door",
            "west": "taxis wait at night beside some kiosk",
        },
        about={"hilton": "Hilton Inn", "north": "Astoria", "south": "Bristol", "west": "Corona"},
        options={"focus": ["entity"]},
    ),
    # The answer shares no word with the question that it follows.
    Scene(
        "neighbours",
        "which code is on the parcel",
        ["asked", "answered"],
        ["asked", "near"],
        said={
            **weather(0, 2),
            "asked": "tell me which code is on the parcel",
            "answered": "blue seventy",
            **weather(2, 8),
            "near": "the many of us all here now",
            **weather(8, 12),
        },
    ),
    # Said twice with the same around it.
    Scene(
        "recency",
        "what is my code",
        ["later"],
        ["earlier"],
        said={
            **weather(0, 2),
            "earlier": "my code is blue",
            **weather(2, 8),
            "later": "my code is blue",
            **weather(8, 10),
        },
    ),
    # Two turns of one passage of talk, and another passage.
    Scene(
        "spread",
        "marketing budget plan",
        ["best", "elsewhere"],
        ["best", "before"],
        said={
            **weather(0, 2),
            "before": "marketing budget plan looks good now",
            **weather(2, 3),
            "best": "marketing budget plan agreed",
            **weather(3, 40),
            "elsewhere": "marketing budget plan was also never seen",
            **weather(40, 70),
        },
        options={"without": ["neighbours", "recency"]},
    ),
    # Two passages say nearly the same.
    Scene(
        "near_duplicates",
        "how much is the parking per night",
        ["first", "other"],
        ["first", "second"],
        knowledge={
            "first": "parking is ten dollars per night",
            "second": "parking is maybe ten dollars per night",
            "other": "parking per week is cheaper",
        },
    ),
    # Said in words, asked in digits.
    Scene(
        "numbers",
        "what is 94102",
        ["said"],
        ["w0"],
        said={
            **dict.fromkeys(weather(0, 6), SUNSHINE),
            "said": "nine four one zero two",
            **dict.fromkeys(weather(6, 12), SUNSHINE),
        },
        options={"without": ["neighbours", "recency"]},
    ),
    # Nothing that the knowledge is about: "my" of four words and of six, a cosine of 0.20, where the
    # passages come within 0.62 to 0.67 of each other and a turn must within 0.35.
    Scene(
        "gate",
        "my brother moved away",
        [],
        ["breakfast"],
        knowledge={
            "breakfast": "my breakfast is served from seven",
            "late": "a late breakfast is served from ten",
            "early": "an early breakfast is served from five",
            "never": "no breakfast is served from noon",
        },
    ),
]


async def found_in(scene: Scene, without: Collection[Part]) -> list[str]:
    """Play a scene; returns what is found, without the turns that were said where it has knowledge."""
    model = SpokenWords(dim=4096, silent=scene.silent)
    knowledge = []
    if scene.knowledge:
        docs = [
            DocumentInfo(id_, text, {"entity": scene.about[id_]} if scene.about else None)
            for id_, text in scene.knowledge.items()
        ]
        knowledge = [await index_of(docs, model=model)]
    options = dict(scene.options)
    left_out = {*options.pop("without", ()), *without}
    call = await open_call(model, knowledge, without=left_out, **options)
    try:
        for id_, text in scene.said.items():
            await call.heard(text, id=id_)
        k = max(len(scene.found), len(scene.otherwise))
        if scene.knowledge:
            context = await call.context(scene.asked, visible=[*scene.said], top_k=k)
            assert context.outcome == "ok"
            return [hit.id for hit in context.hits]
        return [hit.id for hit in await call.recall(scene.asked, top_k=k)]
    finally:
        await call.discard()


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: scene.part)
async def test_each_part_decides_and_can_be_left_out(scene: Scene) -> None:
    """With the part the scene's answer is found, without it the other; leaving out no other part matters."""
    assert await found_in(scene, []) == list(scene.found)
    assert await found_in(scene, [scene.part]) == list(scene.otherwise)


def test_every_part_has_a_scene() -> None:
    """No part is without a test of what it is good for."""
    assert [scene.part for scene in SCENES] == list(PARTS)


@pytest.mark.parametrize(
    ("without", "found"),
    [([], ["first", "other"]), (["near_duplicates"], ["first", "second"])],
)
async def test_turns_that_say_the_same_make_room_too(without: list[str], found: list[str]) -> None:
    """Also of turns, one that says nearly what a better one says falls behind another."""
    call = await open_call(
        SpokenWords(dim=4096), without=[*without, "neighbours", "recency", "spread"]
    )
    said = {
        "first": "parking is ten dollars per night",
        **weather(0, 6),
        "second": "parking is maybe ten dollars per night",
        **weather(6, 12),
        "other": "parking per week is cheaper",
    }
    for id_, text in said.items():
        await call.heard(text, id=id_)
    hits = await call.recall("how much is the parking per night", top_k=2)
    assert [hit.id for hit in hits] == found
    await call.discard()


async def test_all_parts_can_be_left_out_together() -> None:
    """What is left is a search by the last turn: of the knowledge and of the turns, with no part but two."""
    model = SpokenWords()
    faq = await index_of(
        [DocumentInfo("a", "wifi password"), DocumentInfo("b", "wifi")], model=model
    )
    call = await open_call(model, [faq], without=PARTS)
    await call.heard("the wifi is slow")
    await call.heard("which wifi", speaker="agent")
    context = await call.context("wifi password")
    assert context.hits[0].id == "a"
    assert context.need is None
    for hit in context.hits:
        assert hit.parts == HitParts(hit.parts.semantic, hit.parts.keyword)
    assert "without conversation, focus, gate" in repr(call._recalling)
    await call.discard()


@pytest.mark.parametrize("wrong", [["foci"], ["focus", "Gate"], "focus"])
async def test_a_wrong_name_is_told_with_the_right_ones(wrong: Any, tmp_path: Path) -> None:
    """A part that does not exist is an error of the caller, before anything begins."""
    with pytest.raises(InvalidArgumentError, match="without: expected parts of") as caught:
        CallMemory(call_session(SpokenWords()), without=wrong)
    assert all(part in str(caught.value) for part in PARTS)
    async with MossClient(cloud=f"memory://{uuid4().hex}", journal_path=tmp_path) as client:
        with pytest.raises(InvalidArgumentError):
            await client.call("call", without=wrong, model_id="custom")
    assert not any(files for _, _, files in os.walk(tmp_path))


# --- the gate --------------------------------------------------------------------------------------

RULES = {
    "breakfast": "breakfast is served from seven to ten",
    "parking": "parking is served by the garage from seven to ten",
    "dogs": "dogs are served from ten to seven",
    "wifi": "wifi is served from ten by the desk",
}


async def test_small_talk_brings_no_passages_but_turns() -> None:
    """Where the turn is about nothing that the knowledge is about, the call alone is searched."""
    model = SpokenWords()
    faq = await index_of([DocumentInfo(id_, text) for id_, text in RULES.items()], model=model)
    call = await open_call(model, [faq])
    turn = await call.heard("my brother is tall")
    await call.heard("is he", speaker="agent")
    small = await call.context("yes my brother is away", visible=[])
    assert {hit.index_name for hit in small.hits} == {"call"}
    assert turn in [hit.id for hit in small.hits]
    assert small.need is not None
    assert small.need < 1.0
    asked = await call.context("when is breakfast served")
    assert "breakfast" in [hit.id for hit in asked.hits]
    assert asked.need is not None
    assert asked.need > 1.0
    await call.discard()


@pytest.mark.parametrize(
    ("before", "without", "passes"),
    [
        ("breakfast is served from seven to ten", (), True),
        # not after a dialogue about something else, nor where nothing was said
        ("my brother moved away last summer", (), False),
        ("", (), False),
        # nor where the conversation is left out
        ("breakfast is served from seven to ten", ("conversation",), False),
    ],
)
async def test_a_follow_up_passes_the_gate_for_what_was_said_before(
    before: str, without: Sequence[str], passes: bool
) -> None:
    """A turn that is not near enough by itself needs the knowledge after a dialogue about it.

    The best cosines of the four passages are 6 / sqrt(70) twice, 5 / 7 and 6 / sqrt(80): 0.55 of their
    median is 0.394. The turn has two of its five words in a passage of seven, 2 / sqrt(35) = 0.338, and
    asks nothing. With a tenth of a turn that says what the passage says it has
    (0.338 + 0.1) / sqrt(1 + 0.01 + 0.2 * 0.338) = 0.422; with a tenth of one unlike it, 0.336.
    """
    model = SpokenWords(dim=4096)
    faq = await index_of([DocumentInfo(id_, text) for id_, text in RULES.items()], model=model)
    call = await open_call(model, [faq], without=without)
    seen = [await call.heard(text) for text in (before,) if text]
    context = await call.context("and to seven on sundays", visible=[turn for turn in seen if turn])
    assert context.need is not None
    assert (context.need >= 1.0) == passes
    assert bool(context.hits) == passes
    await call.discard()


async def test_the_agent_s_own_search_passes_the_gate() -> None:
    """What an agent looks up for itself is looked up, however far it is from the passages."""
    model = SpokenWords()
    faq = await index_of([DocumentInfo(id_, text) for id_, text in RULES.items()], model=model)
    call = await open_call(model, [faq])
    text = "my brother is away"
    assert (await call.context(text)).hits == []
    assert len(await call.search_knowledge(text)) == 4
    await call.discard()


async def test_a_statement_brings_only_turns_that_are_near() -> None:
    """A turn that asks nothing needs no turn that only shares a word; a question, or the tool, may."""
    model = SpokenWords(dim=4096)
    far, near = "parking is ten dollars per night for you", "her brother parks near me"
    call = await open_call(model)
    for text in (far, near):
        await call.heard(text)
        await call.heard("one moment", speaker="agent")
    statement, question = "my brother parks near parking", "does my brother like parking"

    async def found(asked: str, of: CallMemory = call) -> set[str]:
        return {far, near} & {hit.text for hit in (await of.context(asked)).hits}

    assert await found(statement) == {near}
    assert await found(question) == {far, near}
    assert {far, near} <= {hit.text for hit in await call.recall(statement)}
    await call.discard()
    ungated = await open_call(model, without=["gate"])
    for text in (far, near):
        await ungated.heard(text)
        await ungated.heard("one moment", speaker="agent")
    assert await found(statement, ungated) == {far, near}
    await ungated.discard()


async def test_a_turn_that_reads_out_a_number_recalls_it() -> None:
    """It asks nothing and shares no word with it, a score of 0.5; a statement that shares one is held back.

    "the" of three words and of six: a cosine of 1 / sqrt(18) = 0.24, a score of 0.62, and 0.65 is needed.
    """
    model = SpokenWords(dim=4096)
    said = "my account has the number 4471902"
    call = await open_call(model)
    await call.heard(said)
    await call.heard("one moment", speaker="agent")
    read_out = "four four seven one nine oh two"
    for asked, found in ((read_out, {said}), ("the weather turned", set())):
        assert {hit.text for hit in (await call.context(asked)).hits} & {said} == found
    await call.discard()


async def test_the_need_is_told() -> None:
    """None where there is no knowledge or no gate; of several indexes the greatest."""
    model = SpokenWords()
    call = await open_call(model)
    assert (await call.context("when is breakfast")).need is None
    await call.discard()
    rules = [DocumentInfo(id_, text) for id_, text in RULES.items()]
    faq = await index_of(rules, model=model)
    far = await index_of(
        [DocumentInfo(f"c{n}", f"cats purr softly number {n}") for n in range(5)],
        name="cats",
        model=model,
    )
    needs = {}
    for name, knowledge in {"both": [far, faq], "faq": [faq], "far": [far]}.items():
        call = await open_call(model, knowledge)
        needs[name] = (await call.context("when is breakfast served")).need
        await call.discard()
    assert needs["both"] == needs["faq"]
    assert needs["far"] is not None
    assert needs["faq"] is not None
    assert needs["far"] < 1.0 < needs["faq"]


# --- focus -----------------------------------------------------------------------------------------

HOUSES = ("Astoria", "Hilton Inn", "Grand Hotel")


async def houses(model: SpokenWords, name: str = "faq") -> SessionIndex:
    return await index_of(
        [
            DocumentInfo(f"{house}/{topic}", f"{topic} rules apply", {"entity": house})
            for topic in ("parking", "wifi")
            for house in HOUSES
        ],
        name=name,
        model=model,
    )


async def test_a_corrected_turn_loses_its_focus() -> None:
    """What a turn named by mistake is in focus no more, whether it names another or none."""
    model = SpokenWords()
    faq = await houses(model)
    call = await open_call(
        model, [faq], focus=["entity"], without=["conversation", "keyword_window"]
    )

    async def first() -> tuple[str, Any]:
        hit = (await call.search_knowledge("parking rules"))[0]
        return hit.id, hit.parts.focus

    await call.heard("i am at the Hilton Inn", id="t1")
    assert await first() == ("Hilton Inn/parking", pytest.approx(0.5))
    await call.heard("i am at the Grand Hotel", id="t1")
    assert await first() == ("Grand Hotel/parking", pytest.approx(0.5))
    hits = await call.search_knowledge("parking rules", top_k=9)
    assert [hit.parts.focus for hit in hits if hit.id.startswith("Hilton")] == [0.0, 0.0]
    await call.heard("i am at the grandest of all", id="t1")
    assert await first() == ("Astoria/parking", 0.0)
    await call.discard()


async def test_the_turn_s_own_name_comes_before_those_of_before() -> None:
    """What is named in the turn itself counts in full, before and after the turn was heard."""
    model = SpokenWords()
    call = await open_call(
        model, [await houses(model)], focus=["entity"], without=["gate"], top_k=9
    )
    await call.heard("i am at the Hilton Inn", id="t1")
    await call.heard("noted", speaker="agent", id="a1")
    asked = "wifi rules of the Grand Hotel"
    for _ in range(2):
        hits = await call.search_knowledge(asked)
        focus = {hit.id: hit.parts.focus for hit in hits}
        assert hits[0].id == "Grand Hotel/wifi"
        assert focus["Grand Hotel/wifi"] == pytest.approx(0.5)
        assert focus["Hilton Inn/wifi"] == pytest.approx(0.35)
        await call.heard(asked, id="t2")
    await call.discard()


async def test_a_name_is_in_focus_where_it_is_known() -> None:
    """Of two indexes only the one that knows the name is asked with it; fields are found by each."""
    model = SpokenWords()
    known = await houses(model)
    unknown = await index_of(
        [DocumentInfo(f"u{n}", "parking rules apply", {"entity": f"Other {n}"}) for n in range(3)],
        name="other",
        model=model,
    )
    parts: list[dict[str, HitParts]] = []
    for without in ([], ["focus"]):
        call = await open_call(model, [unknown, known], focus=["entity"], top_k=20, without=without)
        await call.heard("i am at the Hilton Inn", id="t1")
        hits = await call.search_knowledge("parking rules")
        parts.append({hit.id: hit.parts for hit in hits})
        await call.discard()
    with_focus, plain = parts
    assert next(iter(with_focus)) == "Hilton Inn/parking"
    gained = {id_ for id_, each in with_focus.items() if each.focus}
    assert gained == {"Hilton Inn/parking", "Hilton Inn/wifi"}
    # The other is asked as if nothing had been named.
    for n in range(3):
        assert with_focus[f"u{n}"] == plain[f"u{n}"]
    assert with_focus["Astoria/wifi"] != plain["Astoria/wifi"]


async def test_what_was_named_before_the_name_was_known_is_in_focus() -> None:
    """Passages about a house come while its guest is on the line: what he said of it counts since."""
    model = SpokenWords()
    faq = await houses(model)
    call = await open_call(model, [faq], focus=["entity"])
    await call.heard("i am at the Oberon Court", id="t1")
    assert not any(hit.parts.focus for hit in await call.search_knowledge("wifi rules"))
    await faq.add_docs([DocumentInfo("oberon", "wifi rules apply", {"entity": "Oberon Court"})])
    for _ in range(200):
        hits = await call.search_knowledge("wifi rules")
        if hits[0].id == "oberon":
            break
        await asyncio.sleep(0.01)
    assert hits[0].id == "oberon"
    assert hits[0].parts.focus == pytest.approx(0.5)
    await call.discard()


async def resumed(model: SpokenWords, faq: SessionIndex, *texts: str) -> CallMemory:
    """Return a call that is taken up where these turns were said in it by another agent."""
    session = call_session(model)
    before = await CallMemory.open(session, deadline_ms=LONG_MS)
    for n, text in enumerate(texts):
        await before.heard(text, id=f"t{n}")
    return await CallMemory.open(
        session, knowledge=[faq], focus=["entity"], deadline_ms=LONG_MS, min_score=0.0
    )


async def test_a_call_that_is_taken_up_knows_what_it_is_about() -> None:
    """The names in the turns that it resumes are in focus at once."""
    model = SpokenWords()
    call = await resumed(model, await houses(model), "i am at the Hilton Inn", "thank you so much")
    assert call.about == ["Hilton Inn"]
    await call.discard()


async def test_a_call_opens_where_names_cannot_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault in reading the turns that it resumes costs the call no more than those names."""
    model = SpokenWords()
    faq = await houses(model)
    with monkeypatch.context() as patch:
        patch.setattr(Names, "find", _fails)
        call = await resumed(model, faq, "i am at the Hilton Inn")
        assert call.about == []
    await call.heard("and my friend at the Astoria")
    assert call.about == ["Astoria", "Hilton Inn"]
    assert (await call.context("what are the wifi rules")).outcome == "ok"
    await call.discard()


async def test_turns_that_could_not_be_read_at_first_are_read_before_the_first_recall(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What failed as the call was opened is done again: the names that it resumes are in focus then."""
    model = SpokenWords()
    faq = await houses(model)
    with monkeypatch.context() as patch:
        patch.setattr(Names, "find", _fails)
        call = await resumed(model, faq, "i am at the Hilton Inn")
    hits = await call.search_knowledge("wifi rules")
    assert (hits[0].id, call.about) == ("Hilton Inn/wifi", ["Hilton Inn"])
    await call.discard()


def _fails(self: Names[Any], words: Sequence[str], *, before: Collection[str] = ()) -> list[Named]:
    raise RuntimeError("cannot find zanzibar")


async def test_a_word_counts_by_where_it_is_looked_for() -> None:
    """In knowledge 1.6 times as much with a conversation before, no more once a name is known."""
    model = SpokenWords()
    faq = await houses(model)
    keyword: dict[str, float] = {}
    for name, said, without in (
        ("alone", [], []),
        ("conversation", ["good evening"], []),
        ("left out", ["good evening"], ["conversation"]),
        ("focus", ["i am at the Hilton Inn"], []),
        ("no focus", ["i am at the Hilton Inn"], ["focus"]),
    ):
        call = await open_call(model, [faq], focus=["entity"], without=without)
        for text in said:
            await call.heard(text)
        hits = await call.search_knowledge("parking rules")
        keyword[name] = next(hit for hit in hits if hit.id == "Hilton Inn/parking").parts.keyword
        await call.discard()
    alone = keyword.pop("alone")
    assert alone > 0.0
    assert {name: value / alone for name, value in keyword.items()} == pytest.approx(
        {"conversation": 1.6, "left out": 1.6, "focus": 1.0, "no focus": 1.6}, abs=1e-4
    )


async def test_a_topic_that_comes_back_is_in_focus_again() -> None:
    """A turn about something else drops the boost for itself, and forgets nothing."""
    model = SpokenWords()
    taxis = [
        DocumentInfo(f"taxi{n}", f"taxis wait at night by gate {n}", {"entity": f"Gate {n}"})
        for n in range(3)
    ]
    faq = await houses(model)
    await faq.add_docs(taxis)
    call = await open_call(model, [faq], focus=["entity"], without=["conversation"])
    await call.heard("i am at the Hilton Inn", id="t1")
    away = await call.context("where do taxis wait at night", visible=["t1"])
    assert away.hits[0].id.startswith("taxi")
    assert {hit.parts.focus for hit in away.hits} == {0.0}
    back = await call.context("and what about parking rules", visible=["t1"])
    assert back.hits[0].id == "Hilton Inn/parking"
    await call.discard()


# --- what is told ----------------------------------------------------------------------------------


async def test_hits_tell_what_they_were_ranked_by() -> None:
    """Each hit of a context has its parts, which add up to its place; the score is of meaning alone."""
    model = SpokenWords()
    call = await open_call(model, [await houses(model)], focus=["entity"], top_k=9)
    for n, text in enumerate(["i am at the Hilton Inn", "which rules apply", "parking rules"]):
        await call.heard(text, id=f"t{n}")
        await call.heard("one moment", speaker="agent", id=f"a{n}")
    context = await call.context("what are the parking rules")
    assert {hit.index_name for hit in context.hits} == {"call", "faq"}
    totals = [hit.parts.total for hit in context.hits]
    assert totals == sorted(totals, reverse=True)
    for hit in context.hits:
        if hit.index_name == "call":
            assert hit.parts.semantic == pytest.approx(0.8 * (2 * hit.score - 1), abs=1e-5)
            assert hit.parts.focus == 0.0
            assert 0.0 <= hit.parts.recency <= 0.03
        else:
            assert (hit.parts.neighbour, hit.parts.recency) == (0.0, 0.0)
    turns = [hit.parts for hit in context.hits if hit.index_name == "call"]
    assert any(parts.neighbour for parts in turns)
    assert any(hit.parts.focus for hit in context.hits)
    recalled = await call.recall("what are the parking rules", top_k=9)
    assert recalled[0].parts.recency > 0.0
    await call.discard()


async def answers(call: CallMemory, asked: str, *, top_k: int) -> list[list[str]]:
    """Return what is found for a turn that no interim foretold, and for one that came as an interim."""
    found = []
    for prefetched in (False, True):
        if prefetched:
            # A turn of no words of its own makes earlier answers old.
            await call.heard("hm", speaker="agent")
            call.hearing(asked)
            await settled(call)
        context = await call.context(asked, top_k=top_k)
        assert context.prefetched == prefetched
        found.append([hit.id for hit in context.hits if hit.index_name == "faq"])
    return found


async def test_an_interim_finds_what_the_turn_finds() -> None:
    """What was looked up while the caller spoke is what would be found after: with focus, gate and need."""
    model = SpokenWords()
    call = await open_call(model, [await houses(model)], focus=["entity"], top_k=2)
    await call.heard("i am at the Hilton Inn")
    direct, foreseen = await answers(call, "what are the wifi rules", top_k=2)
    assert direct == foreseen
    assert direct[0] == "Hilton Inn/wifi"
    call.hearing("my brother moved away last summer")
    await settled(call)
    small = await call.context("my brother moved away last summer")
    assert (small.prefetched, small.need is not None and small.need < 1.0) == (True, True)
    assert {hit.index_name for hit in small.hits} <= {"call"}
    await call.discard()


NEARLY = [DocumentInfo(f"p{n}", f"parking is ten dollars per night at door {n}") for n in range(6)]
OTHER = DocumentInfo("other", "parking per week is cheaper in winter")


async def test_an_interim_s_answer_has_no_more_twins_than_the_turn_s() -> None:
    """What says nearly the same makes room for something else also where it was looked up ahead."""
    model = SpokenWords()
    faq = await index_of([*NEARLY, OTHER], model=model)
    call = await open_call(model, [faq], top_k=3)
    direct, foreseen = await answers(call, "how much is parking per night", top_k=3)
    assert "other" in direct
    assert foreseen == direct


# --- faults ----------------------------------------------------------------------------------------


class Broken(SessionIndex):
    """An index of which nothing can be told when it is broken."""

    broken = False

    def prepare(self, terms: Mapping[int, float], **options: Any) -> Any:
        if self.broken:
            raise RuntimeError("cannot read of zanzibar")
        return super().prepare(terms, **options)

    def places_of(self, fields: Sequence[str]) -> Places:
        if self.broken:
            raise RuntimeError("cannot read of zanzibar")
        return super().places_of(fields)


async def broken_faq(model: SpokenWords) -> Broken:
    docs = [DocumentInfo(f"{h}/wifi", f"wifi rules of {h}", {"entity": h}) for h in HOUSES]
    faq = await index_of(docs, model=model, kind=Broken)
    assert isinstance(faq, Broken)
    return faq


async def test_knowledge_that_fails_costs_a_context_and_no_call(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A fault while knowledge is searched is an empty context; turns are kept, and recalled by the tool."""
    caplog.set_level(logging.DEBUG)
    model = SpokenWords()
    faq = await broken_faq(model)
    call = await open_call(model, [faq], focus=["entity"])
    faq.broken = True
    turn = await call.heard("i asked for the wifi rules of zanzibar")
    await call.heard("one moment", speaker="agent")
    context = await call.context("wifi rules please")
    assert (context.outcome, context.text, context.hits) == ("failed", "", [])
    assert (await call.recall("wifi rules"))[0].id == turn
    assert await call.search_knowledge("wifi rules") == []
    faq.broken = False
    assert (await call.context("wifi rules now")).outcome == "ok"
    assert call.counters.failed == 1
    assert not any("zanzibar" in record.getMessage() for record in caplog.records)
    assert not any(record.exc_info for record in caplog.records)
    result = await call.end()
    assert result is not None
    assert result.doc_count == 2


async def test_names_that_cannot_be_found_cost_no_turn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A fault in looking for names reaches nobody: the turn is kept, recalled and pushed."""
    model = SpokenWords()
    call = await open_call(model, [await houses(model)], focus=["entity"])

    with monkeypatch.context() as patch:
        patch.setattr(Names, "find", _fails)
        turn = await call.heard("i am at the Hilton Inn")
        await call.heard("one moment", speaker="agent")
        context = await call.context("what are the wifi rules")
        assert (context.outcome, context.hits) == ("failed", [])
        assert await call.search_knowledge("wifi rules") == []
        assert (await call.recall("who is at the Hilton Inn"))[0].id == turn
    assert not any("zanzibar" in record.getMessage() for record in caplog.records)
    # Once it works again, what was named in the meantime is in focus.
    await call.heard("thank you very much indeed")
    context = await call.context("what are the wifi rules")
    assert context.outcome == "ok"
    assert context.hits[0].id == "Hilton Inn/wifi"
    result = await call.end()
    assert result is not None
    assert result.doc_count == 3


async def test_knowledge_that_cannot_be_studied_does_not_stop_a_call() -> None:
    """A call begins also where nothing can be told of its knowledge; it is asked without names then."""
    model = SpokenWords()
    faq = await broken_faq(model)
    faq.broken = True
    call = await open_call(model, [faq], focus=["entity"])
    faq.broken = False
    assert (await call.context("wifi rules of the Astoria")).outcome == "ok"


async def test_the_deadline_holds_while_an_index_is_studied() -> None:
    """An index that changed is studied beside the call: no answer waits for it."""
    model = SpokenWords()
    faq = await broken_faq(model)
    call = await open_call(model, [faq], focus=["entity"])
    faq.broken = True
    await faq.add_docs([DocumentInfo("new", "wifi rules of Corona", {"entity": "Corona"})])
    faq.broken = False
    context = await call.context("wifi rules of the Astoria")
    assert context.outcome == "ok"
    assert context.hits[0].id == "Astoria/wifi"
    await call.discard()
