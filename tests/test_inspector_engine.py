"""A recorded call asked again: as it was, it finds the same; with other settings, what a call would find."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from moss_voice import DocumentInfo, MossClient, PiiRedactor, demo
from moss_voice.call.recording import RecordedContext, Recording, read_recording
from moss_voice.cli.inspecting import with_changes
from moss_voice.cli.play import play
from moss_voice.errors import FilterError, InvalidArgumentError
from moss_voice.inspector.engine import Engine, Question
from moss_voice.inspector.redacting import redacted

LONG_MS = 60_000.0


class Stage:
    """A cloud with the demo's FAQ, and a recording of its call."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = Path()

    def client(self) -> MossClient:
        root = self.root
        return MossClient(
            "demo", cloud=root / "cloud", cache_path=root / "cache", journal_path=root / "journal"
        )

    async def record(self) -> None:
        async with self.client() as client:
            await client.create_index("larkline", demo.faq_documents())
            call = await client.call(
                "larkline-demo",
                knowledge=["larkline"],
                record=self.root / "rec",
                deadline_ms=LONG_MS,
            )
            async for _ in play(call, demo.call()):
                pass
            await call.end()
            path = await call.recorded()
            assert path is not None
            self.path = path

    @property
    def recording(self) -> Recording:
        return read_recording(self.path)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    made = Stage(tmp_path_factory.mktemp("stage"))
    asyncio.run(made.record())
    return made


@pytest.fixture
async def engine(stage: Stage) -> AsyncIterator[Engine]:
    async with stage.client() as client:
        made = await Engine.open(stage.recording, client)
        yield made
        await made.close()


def ranked(context: RecordedContext) -> list[tuple[str, float]]:
    return [(hit.id, round(hit.parts.total, 3)) for hit in context.hits]


async def test_asked_again_as_it_was_a_call_finds_the_same(engine: Engine) -> None:
    """Every context of the demo's call: the same hits in the same order by the same scores, the same block."""
    again = await engine.rerun(engine.recording.settings)
    assert len(again) == len(engine.recording.contexts) >= 15
    for before, after in zip(engine.recording.contexts, again, strict=True):
        assert ranked(after) == ranked(before)
        assert after.text == before.text
        assert after.needs == pytest.approx(before.needs)
        assert (after.number, after.turn_id) == (before.number, before.turn_id)
        # The wider search of the call ran a moment later; most of what it tells is the same.
        if before.outcome == "ok":
            assert {h.id for h in before.left_out} & {h.id for h in after.left_out}
        assert after.outcome == before.outcome


async def test_with_another_alpha_it_finds_what_a_call_finds(engine: Engine, stage: Stage) -> None:
    """The re-run is no estimate: a real call with that setting has the same hits, and they differ."""
    settings = replace(engine.recording.settings, alpha=0.3)
    again = await engine.rerun(settings)
    async with stage.client() as client:
        call = await client.call(
            "other",
            knowledge=["larkline"],
            alpha=0.3,
            deadline_ms=LONG_MS,
            record=stage.root / "r2",
        )
        async for _ in play(call, demo.call()):
            pass
        path = await call.recorded()
        assert path is not None
        real = read_recording(path)
        await call.discard()
    # An interim serves or not, as the machine has it; where it was the same, so are the hits.
    same = [
        (ranked(one), ranked(other))
        for one, other, first in zip(again, real.contexts, engine.recording.contexts, strict=True)
        if (first.prefetched, first.interim) == (other.prefetched, other.interim)
    ]
    assert len(same) >= 3
    assert all(one == other for one, other in same)
    before = [ranked(context) for context in engine.recording.contexts]
    assert sum(b != ranked(a) for b, a in zip(before, again, strict=True)) >= 3


async def test_a_part_left_out_is_missing_from_every_hit(engine: Engine) -> None:
    """`without` reaches the search: no neighbour, no recency; without the gate all needs are unasked."""
    settings = replace(engine.recording.settings, without=("neighbours", "recency", "gate"))
    again = await engine.rerun(settings)
    parts = [hit.parts for context in again for hit in context.hits]
    assert parts
    assert not any(part.neighbour or part.recency for part in parts)
    assert all(not context.needs for context in again)
    gated = [c for c in engine.recording.contexts if c.need is not None and c.need < 1.0]
    assert gated
    by_number = {context.number: context for context in again}
    assert any(not hit.is_turn for context in gated for hit in by_number[context.number].hits)


async def test_a_question_is_answered_like_the_agents_own(engine: Engine, stage: Stage) -> None:
    """Knowledge alone, at the end of the call: what `search_knowledge` of the same call finds."""
    text = "how long does a refund take"
    answer = await engine.ask(Question(text, engine.recording.settings, scope="knowledge"))
    async with stage.client() as client:
        call = await client.call("larkline-demo", knowledge=["larkline"], deadline_ms=LONG_MS)
        found = await call.search_knowledge(text)
        await call.discard()
    assert [hit.id for hit in answer.hits] == [hit.id for hit in found][: len(answer.hits)]
    assert answer.hits[0].id == "faq#how-long-does-a-refund-take"
    assert answer.took_ms > 0.0
    assert answer.text.startswith("<call_memory>")


async def test_scope_filter_and_until_leave_out_what_they_say(engine: Engine) -> None:
    """Only turns, only passages, only what passes the filter, only what had been said by then."""
    settings = replace(engine.recording.settings, min_score=0.0, top_k=8)
    turns = await engine.ask(Question("how long does it take", settings, scope="call"))
    assert turns.hits
    assert all(hit.is_turn for hit in turns.hits)
    passages = await engine.ask(Question("how long does it take", settings, scope="knowledge"))
    assert passages.hits
    assert not any(hit.is_turn for hit in (*passages.hits, *passages.left_out))
    spoken = {"field": "speaker", "condition": {"$eq": "caller"}}
    callers = await engine.ask(Question("how long does it take", settings, filter=spoken))
    assert callers.hits
    assert {hit.metadata["speaker"] for hit in (*callers.hits, *callers.left_out)} == {"caller"}
    early = await engine.ask(Question("how long does it take", settings, until=6, scope="call"))
    numbers = [int(hit.metadata["turn"]) for hit in (*early.hits, *early.left_out)]
    assert numbers
    assert max(numbers) <= 6
    nothing = await engine.ask(Question("router", settings, until=0, scope="call"))
    assert nothing.hits == ()


async def test_names_put_in_focus_by_hand_gain(tmp_path: Path) -> None:
    """A name in focus moves its passages up, and the answer says so; nobody put there, nothing gains."""
    docs = [
        DocumentInfo(f"{hotel}-{what}", f"{what} is from eight to ten.", {"hotel": hotel})
        for hotel in ("Harbour Lodge", "Hill Inn", "Rose Court", "Old Mill")
        for what in ("breakfast", "dinner", "parking", "check in")
    ]
    async with MossClient("p", cloud=tmp_path / "cloud", cache_path=tmp_path / "c") as client:
        await client.create_index("hotels", docs)
        call = await client.call(
            "call", knowledge=["hotels"], focus=["hotel"], record=tmp_path / "rec"
        )
        await call.heard("hello there", id="a")
        await call.end()
        path = await call.recorded()
        assert path is not None
        engine = await Engine.open(read_recording(path), client)
        assert "Hill Inn" in engine.values
        assert "hotel" in engine.fields
        settings = replace(engine.recording.settings, top_k=3)
        plain = await engine.ask(Question("when is breakfast", settings))
        assert not any(hit.parts.focus for hit in plain.hits)
        for hotel in ("Hill Inn", "Old Mill"):
            told = await engine.ask(Question("when is breakfast", settings, focus_on=(hotel,)))
            assert told.hits[0].id == f"{hotel}-breakfast"
            assert told.hits[0].parts.focus > 0.0
            assert told.about == (hotel,)
        await engine.close()


async def test_what_cannot_be_asked_is_refused(engine: Engine) -> None:
    """Bad filters name the path, numbers their range, parts their names; the engine goes on after it."""
    settings = engine.recording.settings
    bad = {"$and": [{"field": "speaker", "condition": {"$like": "x"}}]}
    with pytest.raises(FilterError, match=r"\$and\[0\]"):
        await engine.ask(Question("words", settings, filter=bad))
    for wrong in (
        replace(settings, alpha=1.5),
        replace(settings, top_k=0),
        replace(settings, without=("luck",)),
        replace(settings, min_score=-1.0),
    ):
        with pytest.raises(InvalidArgumentError):
            await engine.ask(Question("words", wrong))
        with pytest.raises(InvalidArgumentError):
            await engine.rerun(wrong)
    with pytest.raises(InvalidArgumentError, match="until"):
        await engine.ask(Question("words", settings, until=99))
    with pytest.raises(InvalidArgumentError):
        await engine.ask(Question("  ", settings))
    assert (await engine.ask(Question("refund", settings))).hits


async def test_nothing_is_pushed_and_knowledge_stays_as_it_is(stage: Stage) -> None:
    """Asking and re-running leave the cloud's indexes and versions alone."""
    async with stage.client() as client:
        before = await client.list_indexes()
        engine = await Engine.open(stage.recording, client)
        await engine.ask(Question("refund", engine.recording.settings))
        await engine.rerun(engine.recording.settings)
        await engine.close()
        assert await client.list_indexes() == before


async def test_knowledge_that_is_gone_or_changed_is_told(stage: Stage, tmp_path: Path) -> None:
    """A call from elsewhere can still be asked for its turns, and says what is missing."""
    engine = await Engine.open(stage.recording, None, unable="its cloud is not here")
    assert engine.missing == {"larkline": "its cloud is not here"}
    answer = await engine.ask(Question("refund", engine.recording.settings))
    assert answer.hits
    assert all(hit.is_turn for hit in answer.hits)
    await engine.close()
    async with MossClient("demo", cloud=tmp_path / "cloud", cache_path=tmp_path / "c") as client:
        engine = await Engine.open(stage.recording, client)
        assert engine.missing == {"larkline": "there is no such index any more"}
        await engine.close()
        await client.create_index("larkline", demo.faq_documents()[:10])
        await client.add_docs("larkline", demo.faq_documents()[10:12])
        engine = await Engine.open(stage.recording, client)
        assert engine.missing == {}
        assert engine.changed == {"larkline": "version 1 then, 2 now"}
        await engine.close()


async def test_a_call_of_own_embeddings_cannot_be_asked(tmp_path: Path) -> None:
    """Its embeddings are not in a recording, and the error says so."""
    async with MossClient("p", cloud=tmp_path / "cloud", cache_path=tmp_path / "c") as client:
        call = await client.call("call", model_id="custom", record=tmp_path / "rec")
        await call.heard("hello", embedding=[1.0, 0.0, 0.0])
        await call.end()
        path = await call.recorded()
        assert path is not None
        with pytest.raises(InvalidArgumentError, match="not in a recording"):
            await Engine.open(read_recording(path), client)


# --- what leaves the machine -----------------------------------------------------------------------


async def test_a_redacted_recording_holds_no_number_anywhere(tmp_path: Path) -> None:
    """Turns, queries, blocks, hits, what was left out, seen texts, metadata, and the call's own name."""
    number = "4111 1111 1111 1111"
    async with MossClient("p", cloud=tmp_path / "cloud", cache_path=tmp_path / "c") as client:
        await client.create_index("faq", [DocumentInfo("a", f"the test card is {number}")])
        call = await client.call(
            f"card {number}", knowledge=["faq"], record=tmp_path / "rec", min_score=0.0
        )
        await call.heard(f"my card is {number}", id="a", metadata={"note": f"card {number}"})
        await call.heard("thank you, and what can I do for you?", "agent", id="b")
        call.hearing(f"is {number} my card")
        await call.context(f"is {number} my card?", seen=[f"card {number}"], deadline_ms=LONG_MS)
        await call.recall(f"card {number}")
        await call.end()
        path = await call.recorded()
        assert path is not None
    whole = read_recording(path)
    assert whole.contexts[0].hits
    assert "4111" in repr(whole)
    cleaned = redacted(whole, PiiRedactor())
    assert "4111" not in repr(cleaned)
    assert str(tmp_path) not in repr(cleaned)
    assert cleaned.turns[0].redacted
    assert len(cleaned.contexts) == len(whole.contexts)


@pytest.mark.parametrize(
    ("change", "name", "value"),
    [
        ("alpha=0.4", "alpha", 0.4),
        ("top-k=3", "top_k", 3),
        ("max_tokens=200", "max_tokens", 200),
        ("without=gate, focus", "without", ("gate", "focus")),
        ("focus=hotel", "focus", ("hotel",)),
    ],
)
def test_settings_are_changed_by_name(stage: Stage, change: str, name: str, value: object) -> None:
    """As the command line gives them."""
    assert getattr(with_changes(stage.recording.settings, [change]), name) == value


@pytest.mark.parametrize("change", ["alpha", "beta=1", "alpha=x", "alpha=7", "without=luck", "=1"])
def test_settings_that_are_none_are_refused(stage: Stage, change: str) -> None:
    """With the names that there are, or the range."""
    with pytest.raises(InvalidArgumentError):
        with_changes(stage.recording.settings, [change])
