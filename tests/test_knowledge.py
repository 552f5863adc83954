"""What is known of a knowledge index: its names, where they lie, and how near is near."""

from __future__ import annotations

import gc
import logging
import math
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from uuid import uuid4

import numpy as np
import pytest

from moss_voice import MossClient
from moss_voice.call.knowledge import Knowledge
from moss_voice.call.memory import CallMemory
from moss_voice.index import Places
from moss_voice.session import SessionIndex
from moss_voice.text import term_ids, words
from moss_voice.types import DocumentInfo
from tests.spoken_words import MODEL, SpokenWords, index_of, new_remote

HOUSES = (
    "Zephyr Lodge",
    "Kohinoor Palace",
    "Gonville Manor",
    "Quillfeather Inn",
    "Marrakech Terrace",
    "Ibarra Suites",
    "Wexcombe Arms",
)
RULES = (
    "parking costs ten dollars a night",
    "breakfast is served from seven to ten",
    "dogs are welcome and stay for free",
    "the wifi password is at the desk",
)


def passages(houses: Sequence[str] = HOUSES) -> list[DocumentInfo]:
    """Four passages about each house, one house after another."""
    return [
        DocumentInfo(f"{house}/{n}", f"{house}: {rule}", {"entity": house, "kind": "rule"})
        for house in houses
        for n, rule in enumerate(RULES)
    ]


class Watched(SessionIndex):
    """Counts the studies, and lets a test hold them up or fail them."""

    studies = 0
    free = threading.Event()
    fails = False

    def places_of(self, fields: Sequence[str]) -> Places:
        self.studies += 1
        self.free.wait()
        if self.fails:
            raise RuntimeError(f"cannot read of {HOUSES[0]}")
        return super().places_of(fields)


async def watched() -> Watched:
    index = await index_of(passages(), kind=Watched)
    assert isinstance(index, Watched)
    index.free = threading.Event()
    index.free.set()
    return index


def until(condition: Callable[[], bool]) -> None:
    """Wait for what other threads do."""
    end = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < end
        threading.Event().wait(0.002)


def named(knowledge: Knowledge, text: str) -> list[str]:
    return [each.value for each in knowledge.study().names.find(words(text))]


# --- names -----------------------------------------------------------------------------------------


async def test_names_are_found_by_themselves() -> None:
    """Where nothing is said about fields, the one that holds names is known by what it holds."""
    index = await index_of(passages())
    knowledge = Knowledge(index)
    assert repr(knowledge) == "<Knowledge 'faq', not studied>"
    study = knowledge.study()
    assert study.fields == ("entity",)
    assert study.places is not None
    assert list(study.places.rows) == list(HOUSES)
    assert study.places.rows["Gonville Manor"].tolist() == [8, 9, 10, 11]
    assert named(knowledge, "is there parking at the kohinoor palace") == ["Kohinoor Palace"]
    assert named(knowledge, "and what about the quillfeather") == ["Quillfeather Inn"]
    assert named(knowledge, "what is the rule") == []
    assert repr(knowledge) == "<Knowledge 'faq', 7 names in ('entity',)>"


async def test_fields_can_be_given_by_hand() -> None:
    """Named fields are taken as they are, be they names or not; several go together."""
    index = await index_of(passages())
    by_kind = Knowledge(index, focus=["kind"])
    assert by_kind.study().fields == ("kind",)
    assert len(by_kind.study().names) == 1
    assert named(by_kind, "kohinoor palace") == []
    both = Knowledge(index, focus=["kind", "entity"]).study()
    assert both.places is not None
    assert list(both.places.rows) == ["rule", *HOUSES]
    nothing = Knowledge(index, focus=["nothing"]).study()
    assert nothing.places is not None
    assert nothing.places.rows == {}


async def test_no_fields_mean_no_names() -> None:
    """With () nothing is looked for; how near a turn is to the index is known all the same."""
    index = await index_of(passages())
    study = Knowledge(index, focus=()).study()
    assert (study.fields, study.places, len(study.names)) == ((), None, 0)
    assert study.sample is not None
    assert study.threshold == Knowledge(index).study().threshold > 0.0


async def test_a_word_that_is_said_of_many_names_none() -> None:
    """A name's own word does not name it alone where passages about others use it too."""
    houses = [*HOUSES, "Frobnik Tower"]
    own = await index_of(passages(houses))
    assert named(Knowledge(own), "is there a frobnik") == ["Frobnik Tower"]
    docs = [
        DocumentInfo(f"lobby/{house}", "there is a frobnik in the lobby", {"entity": house})
        for house in houses[:4]
    ]
    shared = await index_of([*passages(houses), *docs])
    assert Knowledge(shared).study().fields == ("entity",)
    assert named(Knowledge(shared), "is there a frobnik") == []
    assert named(Knowledge(shared), "is there one at the frobnik tower") == ["Frobnik Tower"]


# --- one study -------------------------------------------------------------------------------------


async def test_an_index_is_studied_once_for_all_calls() -> None:
    """Two calls on one index share what is known of it; another choice of fields is another study."""
    index = await watched()
    model = index.embedder
    for name in ("call-1", "call-2"):
        session = SessionIndex(name, model_id=MODEL, embedder=model, remote=new_remote())
        call = await CallMemory.open(session, knowledge=[index])
        await call.heard("hello is this the zephyr lodge")
        await call.context("is there parking")
        await call.discard()
    assert index.studies == 1
    assert Knowledge(index).study() is Knowledge(index).study()
    assert Knowledge(index, focus=["entity"]).study() is not Knowledge(index).study()
    assert Knowledge(index, focus=["entity"]).study() is Knowledge(index, focus=("entity",)).study()
    assert index.studies == 2


async def test_calls_that_begin_together_study_once() -> None:
    """Whoever comes while an index is studied waits for that study and makes none of its own."""
    index = await watched()
    index.free.clear()
    with ThreadPoolExecutor(6) as pool:
        runs = [pool.submit(Knowledge(index).study) for _ in range(6)]
        until(lambda: index.studies > 0)
        index.free.set()
        studies = [run.result() for run in runs]
    assert all(study is studies[0] for study in studies)
    assert index.studies == 1


async def test_what_is_known_of_an_index_goes_with_it() -> None:
    """An index that nobody holds any more is not kept alive by its study."""
    index = await index_of(passages())
    Knowledge(index).study()
    kept = weakref.ref(index)
    await index.close()
    del index
    # A worker thread may hold what it worked on last for an instant longer.
    until(lambda: gc.collect() >= 0 and kept() is None)


async def test_a_changed_index_is_studied_again_beside_the_call() -> None:
    """What was known goes on being used until the new study is done; one is made, however many ask."""
    index = await watched()
    knowledge = Knowledge(index)
    old = knowledge.study()
    assert knowledge.study() is old
    index.free.clear()
    await index.add_docs(passages(["Oberon Court"]))
    assert all(knowledge.study() is old for _ in range(20))
    until(lambda: index.studies == 2)
    # Held up: nobody waits for it.
    assert named(knowledge, "the oberon court") == []
    index.free.set()
    until(lambda: knowledge.study() is not old)
    assert named(knowledge, "the oberon court") == ["Oberon Court"]
    assert Knowledge(index).study().revision == index.revision
    assert index.studies == 2


@pytest.mark.parametrize("at_once", [True, False])
async def test_a_call_waits_for_the_study_of_a_small_index_alone(
    monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """Of a large one nothing is known at first, which lets every turn pass; a moment later all is."""
    monkeypatch.setattr(
        "moss_voice.call.knowledge._STUDIED_AT_ONCE", len(passages()) - (not at_once)
    )
    index = await watched()
    knowledge = Knowledge(index)
    if not at_once:
        index.free.clear()
    assert knowledge.prepare() == at_once
    if not at_once:
        knowledge.begin()
        assert knowledge.known().fields == ()
        assert knowledge.need(0.0, "anything", {}) == 1.0
        assert knowledge.near(SpokenWords().embed_query("breakfast")) == 0.0
        index.free.set()
        until(lambda: knowledge.known().fields != ())
    assert knowledge.known().fields == ("entity",)
    knowledge.prepare()
    assert index.studies == 1


async def test_a_write_during_a_study_is_not_missed() -> None:
    """What is written while an index is studied is studied after that."""
    index = await watched()
    knowledge = Knowledge(index)
    knowledge.study()
    index.free.clear()
    await index.add_docs(passages(["Oberon Court"]))
    knowledge.study()
    until(lambda: index.studies == 2)
    await index.add_docs(passages(["Prospero House"]))
    index.free.set()
    until(lambda: knowledge.study().revision == index.revision)
    assert named(knowledge, "the oberon court or prospero house") == [
        "Oberon Court",
        "Prospero House",
    ]


async def test_a_study_that_fails_leaves_what_was_known(caplog: pytest.LogCaptureFixture) -> None:
    """The fault is logged by its kind, without a word of the documents; it is tried again after a change.

    Not at every turn: what fails once fails again.
    """
    caplog.set_level(logging.DEBUG)
    index = await watched()
    knowledge = Knowledge(index)
    old = knowledge.study()
    index.fails = True
    await index.add_docs(passages(["Oberon Court"]))
    assert knowledge.study() is old
    until(lambda: bool(caplog.records))
    assert named(knowledge, "the zephyr lodge") == ["Zephyr Lodge"]
    messages = [record.getMessage() for record in caplog.records]
    assert "index 'faq': not studied (RuntimeError)" in messages
    assert not any("Zephyr" in message for message in messages)
    assert not any(record.exc_info for record in caplog.records)
    assert (index.studies, knowledge.study().revision) == (2, index.revision)
    index.fails = False
    await index.add_docs(passages(["Prospero House"]))
    until(lambda: named(knowledge, "the prospero house") == ["Prospero House"])
    assert named(knowledge, "the oberon court") == ["Oberon Court"]


# --- the gate --------------------------------------------------------------------------------------


async def test_the_threshold_is_made_from_the_index_s_own_passages() -> None:
    """A share of the median of how near its passages come to another, each left out of its own."""
    index = await index_of(passages())
    vectors = index.vectors_of([doc.id for doc in passages()])
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -2.0)
    assert cosines.max() < 0.95  # no copies
    own = cosines.max(axis=1)
    knowledge = Knowledge(index)
    assert knowledge.study().threshold == pytest.approx(0.55 * float(np.median(own)), abs=1e-5)
    # How near a turn is: its best cosine, not that of several.
    vector = SpokenWords().embed_query("is breakfast served")
    near = float((vectors @ vector).max())
    assert knowledge.near(vector) == pytest.approx(near, abs=1e-5)
    need = near / knowledge.study().threshold
    assert knowledge.need(near, "breakfast is served", {}) == pytest.approx(need, abs=1e-4)


async def test_copies_of_one_passage_do_not_hide_the_answers_of_the_others() -> None:
    """Twenty copies and two others: the copies' cosine of 1 is not what a turn is measured by.

    With the copies counted, the least nearness would be 0.55, which a question that shares four of its
    seven words with a passage of eight (4 / sqrt(56) = 0.53) does not reach.
    """
    model = SpokenWords(dim=4096)
    others = {
        "pool": "the pool opens at nine on every morning",
        "gym": "the gym closes at ten on every evening",
    }
    docs = [
        *(DocumentInfo(f"copy{n}", "dogs are welcome and stay for free") for n in range(20)),
        *(DocumentInfo(id_, text) for id_, text in others.items()),
    ]
    knowledge = Knowledge(await index_of(docs, model=model))
    # Most passages have no other but the two, which share nothing with them.
    assert knowledge.study().threshold < 0.55 * 0.1

    def need(text: str) -> float:
        return knowledge.need(knowledge.near(model.embed_query(text)), text, {})

    near = knowledge.near(model.embed_query("tell us please the pool opens at"))
    assert near == pytest.approx(4 / math.sqrt(7 * 8), abs=0.05)
    assert need("tell us please the pool opens at") > 1.0
    assert need("tell us please the gym closes at") > 1.0
    assert need("my dogs are with me") > 1.0
    # In a call: both answers are found, first.
    session = SessionIndex("call", model_id=MODEL, embedder=model, remote=new_remote())
    call = await CallMemory.open(session, knowledge=[knowledge.index], deadline_ms=60_000)
    for id_, asked in (("pool", "the pool opens at"), ("gym", "the gym closes at")):
        assert (await call.context(f"tell us please {asked}")).hits[0].id == id_
    await call.discard()


async def test_an_index_of_copies_alone_is_always_asked() -> None:
    """Where all passages say the same there is nothing to measure by."""
    docs = [DocumentInfo(f"copy{n}", "dogs are welcome and stay for free") for n in range(20)]
    knowledge = Knowledge(await index_of(docs))
    assert knowledge.study().threshold == -1.0
    assert knowledge.need(0.0, "anything", {}) == 1.0


@pytest.mark.parametrize(
    ("statement", "question"),
    [
        ("breakfast is at seven", "is breakfast at seven?"),
        ("there is breakfast", "when is breakfast"),
        ("i have a dog", "do you take dogs"),
    ],
)
async def test_a_turn_that_asks_needs_more(statement: str, question: str) -> None:
    """Of two turns equally near, the one with the form of a question is nearer by a tenth of a cosine."""
    knowledge = Knowledge(await index_of(passages()))
    least = knowledge.study().threshold
    assert knowledge.need(0.2, statement, {}) == pytest.approx(0.2 / least)
    assert knowledge.need(0.2, question, {}) == pytest.approx(0.3 / least)


async def test_small_talk_is_told_from_a_question() -> None:
    """A turn about what the passages are about is over the threshold, one about anything else is not."""
    model = SpokenWords()
    knowledge = Knowledge(await index_of(passages(), model=model))
    knowledge.study()

    def need(text: str) -> float:
        return knowledge.need(knowledge.near(model.embed_query(text)), text, {})

    assert need("when is breakfast served") > 1.0
    assert need("my brother moved away last summer") < 1.0


async def test_words_that_the_index_has_make_a_turn_need_it() -> None:
    """A turn far from all passages needs them for a rare word; for one that all have it does not."""
    docs = [*passages(), DocumentInfo("valve", "a xylophone valve blinks orange")]
    index = await index_of(docs)
    knowledge = Knowledge(index)
    knowledge.study()

    def need(text: str) -> float:
        return knowledge.need(0.0, text, dict.fromkeys(term_ids(text).tolist(), 1.0))

    by_words = index.best_by_words(dict.fromkeys(term_ids("the xylophone").tolist(), 1.0))
    assert need("the xylophone") == pytest.approx(by_words / math.log1p(len(docs)))
    assert need("orange xylophone valve") > 1.0
    assert need("seven") < 1.0
    assert need("giraffes") == 0.0
    # What is near is not less needed for having no word in common.
    least = knowledge.study().threshold
    assert knowledge.need(2 * least, "giraffes", {}) == pytest.approx(2.0)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
async def test_small_indexes_are_asked_or_empty(n: int) -> None:
    """An index of no passages or one has nothing to measure by: it is asked whatever is said."""
    model = SpokenWords()
    index = await index_of(passages()[:n], model=model)
    knowledge = Knowledge(index)
    study = knowledge.study()
    near = knowledge.near(model.embed_query("parking costs ten dollars"))
    if n < 2:
        assert (study.sample, study.threshold, near) == (None, -1.0, 0.0)
        assert knowledge.need(near, "anything", {}) == 1.0
    else:
        assert near > 0.0
        assert knowledge.need(near, "parking costs ten dollars", {}) > 1.0


async def test_an_index_that_was_empty_is_studied_once_it_is_filled() -> None:
    """Passages that come while a call goes on are known a study later."""
    index = await index_of([])
    knowledge = Knowledge(index)
    assert knowledge.study().fields == ()
    await index.add_docs(passages())
    until(lambda: knowledge.study().fields == ("entity",))
    assert knowledge.study().threshold > 0.0


async def test_a_vector_of_another_size_is_near_to_nothing() -> None:
    """A call's own model may be another: that is no fault, and says nothing about the index."""
    knowledge = Knowledge(await index_of(passages()))
    assert knowledge.near(np.ones(7, np.float32)) == 0.0


async def test_a_call_may_have_another_model_than_its_knowledge() -> None:
    """Each index is asked by its own model, with its own gate; the one that is needed most counts."""
    faq = await index_of(passages(), name="faq", model=SpokenWords(dim=64))
    other = SpokenWords(dim=96)
    other.model_id = "other-words"
    session = SessionIndex("call", model_id=other.model_id, embedder=other, remote=new_remote())
    pets = await index_of(
        [DocumentInfo(f"p{n}", f"cats may sleep in room {n}") for n in range(9)],
        name="pets",
        model=other,
    )
    call = await CallMemory.open(session, knowledge=[faq, pets], deadline_ms=60_000)
    # The vectors of what was said before are of the call's model, and of no use to the other.
    turn = await call.heard("good evening to you all")
    assert turn is not None
    found = await call.context("the wifi password at kohinoor palace", visible=[turn])
    assert found.outcome == "ok"
    assert {hit.index_name for hit in found.hits} == {"faq"}
    assert found.hits[0].id == "Kohinoor Palace/3"
    assert found.need is not None
    assert found.need > 1.0
    assert {
        hit.index_name for hit in (await call.context("may cats sleep", visible=[turn])).hits
    } == {"pets"}
    nothing = await call.context("my brother moved away last summer", visible=[turn])
    assert nothing.hits == []
    assert nothing.need is not None
    assert nothing.need < 1.0
    await call.discard()


async def test_an_index_of_its_owner_s_vectors_has_names_and_a_gate() -> None:
    """Without a model the same is known of it: by the vectors that it holds."""
    model = SpokenWords(dim=64)
    async with MossClient(cloud=f"memory://{uuid4().hex}") as client:
        docs = [
            DocumentInfo(doc.id, doc.text, doc.metadata, model.embed_query(doc.text).tolist())
            for doc in passages()
        ]
        await client.create_index("faq", docs, "custom")
        await client.load_index("faq")
        call = await client.call(
            "call", knowledge=["faq"], model_id="custom", journal=False, deadline_ms=60_000
        )
        (index,) = call.knowledge
        knowledge = Knowledge(index)
        assert knowledge.study().fields == ("entity",)
        asked = "wifi password at kohinoor palace"
        vector = model.embed_query(asked)
        assert knowledge.need(knowledge.near(vector), asked, {}) > 1.0
        found = await call.context(asked, embedding=vector.tolist())
        assert found.hits[0].id == "Kohinoor Palace/3"
        assert found.hits[0].parts.focus == pytest.approx(0.5)
        away = "my brother moved away last summer"
        gone = await call.context(away, embedding=model.embed_query(away).tolist())
        assert (gone.hits, gone.need is not None and gone.need < 1.0) == ([], True)
        # Without a vector the words alone are asked, and no gate can tell.
        by_words = await call.context("wifi password at kohinoor palace")
        assert by_words.need is None
        assert by_words.hits[0].id == "Kohinoor Palace/3"
        await call.discard()
