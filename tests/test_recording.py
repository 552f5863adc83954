"""Recordings of calls: made only where asked for, whole, readable again, and never a call's trouble."""

from __future__ import annotations

import asyncio
import json
import logging
import stat
import threading
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from moss_voice import CallMemory, DocumentInfo, MossClient, PiiRedactor, demo
from moss_voice.call.recording import (
    Recorder,
    Recording,
    find_recordings,
    is_recording,
    read_head,
    read_recording,
    recordings_path,
)
from moss_voice.cli.play import Played, play
from moss_voice.errors import (
    CorruptDataError,
    FormatVersionError,
    InvalidArgumentError,
    MossError,
)
from moss_voice.session import SessionIndex
from moss_voice.types import CallContext
from tests.spoken_words import F32, MODEL, SpokenWords, index_of, new_remote

GOLDEN = Path(__file__).parent / "golden" / "recording-1.jsonl"
LONG_MS = 60_000.0


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[MossClient]:
    cloud, cache, journal = (tmp_path / name for name in ("cloud", "cache", "journal"))
    async with MossClient("acme", cloud=cloud, cache_path=cache, journal_path=journal) as made:
        yield made


async def recorded(call: CallMemory) -> Recording:
    """End a call and read its recording."""
    await call.end()
    path = await call.recorded()
    assert path is not None
    return read_recording(path)


def told(recording: Recording) -> list[tuple[int, str, str]]:
    return [(turn.number, turn.speaker, turn.text) for turn in recording.turns]


# --- opt-in ----------------------------------------------------------------------------------------


async def test_nothing_is_recorded_unless_asked_for(client: MossClient, tmp_path: Path) -> None:
    """Without `record` and without the environment no file appears, anywhere."""
    call = await client.call("call-1")
    await call.heard("my name is Ibarra")
    await call.end()
    assert await call.recorded() is None
    assert await asyncio.to_thread(find_recordings, tmp_path) == []
    assert recordings_path(None) is None


@pytest.mark.parametrize(
    ("record", "variable", "expected"),
    [
        (None, "", None),
        (None, "0", None),
        (None, "1", "moss_voice/recordings"),
        (None, "/somewhere", "/somewhere"),
        (True, "", "moss_voice/recordings"),
        (True, "0", "moss_voice/recordings"),
        (False, "1", None),
        ("/elsewhere", "1", "/elsewhere"),
        (Path("/elsewhere"), "", "/elsewhere"),
    ],
)
def test_who_asks_for_a_recording(
    record: Any, variable: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a call is given counts, and else the environment."""
    monkeypatch.setenv("MOSS_VOICE_RECORD", variable)
    path = recordings_path(record)
    assert (path is None) if expected is None else str(path).endswith(expected)


@pytest.mark.parametrize("record", ["", 3, b"x"])
async def test_a_wrong_argument_is_told(client: MossClient, record: Any) -> None:
    """Anything that is neither a flag nor a directory is refused before the call begins."""
    with pytest.raises(InvalidArgumentError, match="record: expected True, False or a directory"):
        await client.call("call-1", record=record)


async def test_a_recording_says_what_it_is_and_is_its_owners_alone(
    client: MossClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and the first line say that text is kept; nobody else may read it; the log holds no text."""
    call = await client.call("call-1", record=tmp_path / "rec")
    await call.heard("my name is Ibarra")
    recording = await recorded(call)
    assert recording.path is not None
    assert stat.S_IMODE(recording.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(recording.path.parent.stat().st_mode) == 0o700
    first = json.loads(recording.path.read_text().splitlines()[0])
    assert first["notice"] == "This file holds what was said in a call, as text."
    said = [record for record in caplog.records if "is recorded" in record.message]
    assert [record.levelno for record in said] == [logging.WARNING]
    assert "kept as text" in said[0].message
    assert "Ibarra" not in caplog.text
    assert recording.end == "pushed"
    assert (recording.version, recording.doc_count) == (1, 1)


async def test_a_discarded_call_leaves_no_recording(client: MossClient, tmp_path: Path) -> None:
    """What is to be forgotten is forgotten here too."""
    call = await client.call("call-1", record=tmp_path / "rec")
    await call.heard("my name is Ibarra")
    path = await call.recorded()
    assert path is not None
    assert "Ibarra" in path.read_text()
    await call.discard()
    await call.recorded()
    assert not path.exists()


async def test_a_redacted_call_is_recorded_redacted(client: MossClient, tmp_path: Path) -> None:
    """No line holds what the redactor took out, neither of turns nor of what was asked."""
    call = await client.call("call-1", record=tmp_path / "rec", redact=PiiRedactor())
    await call.heard("my card is 4111 1111 1111 1111 thanks", id="a")
    call.hearing("is my card 4111 1111 1111 1111 blocked")
    await call.context("is my card 4111 1111 1111 1111 blocked?", seen=["card 4111 1111 1111 1111"])
    await call.recall("4111 1111 1111 1111")
    recording = await recorded(call)
    assert recording.path is not None
    text = recording.path.read_text()
    assert "4111" not in text
    assert recording.redacted
    assert recording.turns[0].redacted
    assert recording.contexts[0].seen != ()


# --- what it holds ---------------------------------------------------------------------------------


async def test_turns_are_told_as_they_were(client: MossClient, tmp_path: Path) -> None:
    """Speaker, time, marks, corrections and metadata of each turn come back; fillers are marked."""
    first = await client.call("call-1", record=tmp_path / "rec")
    await first.heard("hello, this is Larkline", "agent", at=0.5, id="a")
    await first.end()
    call = await client.call("call-1", record=tmp_path / "rec")
    await call.heard("my rooter is broken", at=3.0, id="b", metadata={"channel": "phone"})
    await call.heard("mm-hmm", at=6.0, id="c")
    await call.heard("please turn it off and", "agent", at=7.0, id="d", interrupted=True)
    await call.heard("typed words", at=9.0, id="e", typed=True)
    await call.heard("my router is broken", at=3.0, id="b", metadata={"channel": "phone"})
    call.uttered("and nobody answered this", at=11.0, id="f")
    recording = await recorded(call)
    turns = {turn.id: turn for turn in recording.turns}
    assert [turn.number for turn in recording.turns] == [1, 2, 3, 4, 5, 6]
    assert turns["a"].resumed
    assert turns["a"].speaker == "agent"
    assert turns["b"].text == "my router is broken"
    assert turns["b"].corrections == 1
    assert turns["b"].metadata == {"channel": "phone"}
    assert turns["b"].heard_ms is not None
    assert turns["b"].heard_ms > 0.0
    assert turns["c"].filler
    assert turns["d"].interrupted
    assert turns["e"].typed
    assert turns["f"].unanswered
    assert [turn.start_s for turn in recording.turns] == [0.5, 3.0, 6.0, 7.0, 9.0, 11.0]
    assert all(turn.end_s > turn.start_s for turn in recording.turns)
    assert (await read_both(tmp_path / "rec"))[0].turns[0].resumed is False


async def read_both(directory: Path) -> list[Recording]:
    paths = await asyncio.to_thread(find_recordings, directory)
    assert len(paths) == 2
    return sorted(map(read_recording, paths), key=lambda recording: recording.created_at)


async def test_when_a_turn_ended(tmp_path: Path) -> None:
    """As the host tells it; else by the clock, by what came next, or by its words, and then it says so."""
    now = 0.0

    def clock() -> float:
        return now

    recorder = Recorder.create(tmp_path, project="p", cloud=None, call="call")
    session = SessionIndex("call", model_id=MODEL, embedder=SpokenWords(), remote=new_remote())
    call = await CallMemory.open(session, recorder=recorder, now=clock)
    now = 4.0
    await call.heard("the host knows", at=1.5, until=3.25, id="known")
    now = 9.0
    await call.heard("told a while after it ended", at=5.0, id="live")
    await call.heard("cut off in", "agent", at=8.0, id="cut", interrupted=True)
    now = 12.0
    await call.heard("as you say", at=8.5, id="next")
    await call.heard("of a script, long after: " + "word " * 22, at=120.0, id="script")
    recording = await recorded(call)
    ends = {turn.id: (turn.end_s, turn.estimated_end) for turn in recording.turns}
    assert ends["script"][0] == pytest.approx(120.0 + 27 / 2.7)
    assert ends.pop("script")[1]
    assert ends == {
        "known": (3.25, False),
        "live": (8.0, True),
        "cut": (9.0, True),
        "next": (12.0, True),
    }


async def test_a_draft_belongs_to_the_turn_that_it_begins(
    client: MossClient, tmp_path: Path
) -> None:
    """What is asked before a turn is over is a draft of the reply to it; words said elsewhere stay apart."""
    call = await client.call("call-1", record=tmp_path / "rec", deadline_ms=LONG_MS)
    await call.heard("how much is it then", id="before")
    await call.context("how much is it")
    await call.context("how much is it to park there?")
    await call.heard("how much is it to park there?", id="turn")
    await call.context("something that nobody says")
    recording = await recorded(call)
    assert [context.turn_id for context in recording.contexts] == ["turn", "turn", None]
    assert [context.number for context in recording.contexts_of("turn")] == [1, 2]


REASONS_FAQ = {
    "near": "the parcel costs money",
    "same": "the parcel costs money",
    "long": "parcel parcel " + "costs of another kind and more " * 20,
    "far": "the parcel weighs something else entirely today",
}


async def reasons(tmp_path: Path, **options: Any) -> tuple[CallContext, Counter[str], Recording]:
    """Ask one question of a call with turns and passages, and tell what was left out, and why."""
    model = SpokenWords()
    recorder = Recorder.create(tmp_path, project="p", cloud=None, call="call")
    session = SessionIndex("call", model_id=MODEL, embedder=model, remote=new_remote())
    faq = await index_of([DocumentInfo(*each) for each in REASONS_FAQ.items()], model=model)
    asked = {name: options.pop(name) for name in ("visible", "seen", "budget") if name in options}
    text = options.pop("text", "what does the parcel cost?")
    call = await CallMemory.open(
        session,
        knowledge=[faq],
        recorder=recorder,
        deadline_ms=LONG_MS,
        **{"min_score": 0.0, **options},
    )
    for number, said in enumerate(["the parcel cost three", "my parcel", "it rains here"]):
        await call.heard(said, "agent", id=f"t{number}")
    context = await call.context(text, **asked)
    recording = await recorded(call)
    return context, Counter(hit.why for hit in recording.contexts[0].left_out), recording


async def test_why_a_hit_was_left_out(tmp_path: Path) -> None:
    """Each reason is told where it is the reason, and what is in the block has none."""
    context, why, recording = await reasons(tmp_path / "1", visible=["t0"], top_k=2)
    assert why["visible"] == 1
    assert why["rank"] >= 2
    assert [hit.id for hit in context.hits] == [hit.id for hit in recording.contexts[0].hits]
    assert all(hit.why == "" for hit in recording.contexts[0].hits)
    assert recording.contexts[0].text == context.text
    left = {hit.id: hit for hit in recording.contexts[0].left_out}
    assert left["t0"].why == "visible"
    assert left["t0"].source.startswith("turn 1, agent")

    _, why, _ = await reasons(tmp_path / "2", seen=["well, the parcel costs money, you know"])
    assert why["repeat"] >= 1

    context, why, _ = await reasons(tmp_path / "3", budget=85)
    assert context.hits
    assert why["budget"] >= 1

    _, why, _ = await reasons(tmp_path / "4", min_score=0.75)
    assert why["min_score"] >= 1


async def test_what_a_gate_kept_away_is_told(client: MossClient, tmp_path: Path) -> None:
    """On the demo's call: a turn too far from the FAQ, and a statement that is reminded of near turns only."""
    recording, played = await demo_call(client, tmp_path)
    why = Counter(hit.why for context in recording.contexts for hit in context.left_out)
    assert why["gate"] > 10
    assert why["statement"] >= 1
    gated = [context for context in recording.contexts if context.need and context.need < 1.0]
    assert gated
    for context in gated:
        assert context.needs == {"larkline": context.need}
        assert {hit.why for hit in context.left_out if not hit.is_turn} <= {"gate", "min_score"}
        assert not [hit for hit in context.hits if not hit.is_turn]
    asked = [turn for turn in played if turn.context is not None]
    assert len(recording.contexts) == len(asked)
    for context, turn in zip(recording.contexts, asked, strict=True):
        assert turn.context is not None
        assert context.turn_id == turn.id
        assert context.outcome == turn.context.outcome
        assert context.text == turn.context.text
        assert [asdict(hit.parts) for hit in context.hits] == [
            asdict(hit.parts) for hit in turn.context.hits
        ]
        if context.outcome == "ok":
            assert context.timing is not None
            assert context.timing.embed_ms > 0.0 or context.prefetched != "no"
            assert context.last_turn == (turn.number or 0) - 1


async def demo_call(client: MossClient, tmp_path: Path) -> tuple[Recording, list[Played]]:
    await client.create_index("larkline", demo.faq_documents())
    call = await client.call(
        "larkline-demo", knowledge=["larkline"], record=tmp_path / "rec", deadline_ms=LONG_MS
    )
    played = [turn async for turn in play(call, demo.call())]
    return await recorded(call), played


async def test_times_add_up(client: MossClient, tmp_path: Path) -> None:
    """The parts of a context's time are no longer than the whole, and a second question is told as one."""
    call = await client.call("call-1", record=tmp_path / "rec", deadline_ms=LONG_MS)
    await call.heard("the parcel costs three euros", "agent")
    await call.context("what does it cost?")
    await call.context("what does it cost?")
    recording = await recorded(call)
    first, second = recording.contexts
    assert first.timing is not None
    assert 0.0 < sum(asdict(first.timing).values()) <= first.took_ms + 0.01
    assert first.timing.embed_ms > 0.0
    assert (first.again, second.again) == (False, True)
    assert second.timing is None
    assert second.hits == first.hits


class Held(SpokenWords):
    """Answers queries only once it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def embed_query(self, text: str) -> F32:
        # Opening a call embeds a word of its own.
        if text != "hello":
            assert self.free.wait(30.0)
        return super().embed_query(text)


async def test_a_late_context_is_told_with_what_came_after_all(tmp_path: Path) -> None:
    """It was empty for the host; where its time went, and what it missed, is in the recording."""
    model = Held()
    recorder = Recorder.create(tmp_path, project="p", cloud=None, call="call")
    session = SessionIndex("call", model_id=MODEL, embedder=model, remote=new_remote())
    call = await CallMemory.open(session, recorder=recorder, deadline_ms=5.0, min_score=0.0)
    await call.heard("the parcel costs three", "agent")
    context = await call.context("what does the parcel cost?")
    assert context.outcome == "late"
    model.free.set()
    recording = await recorded(call)
    (late,) = recording.contexts
    assert late.outcome == "late"
    assert late.hits == ()
    assert late.text == ""
    assert late.timing is not None
    # Where it waited is up to the machine; the host's deadline had passed before it was done.
    assert late.timing.queued_ms + late.timing.embed_ms >= 4.0


async def test_lookups_of_tools_are_told(client: MossClient, tmp_path: Path) -> None:
    """What an agent looks up for itself is there with what it found."""
    await client.create_index("faq", [DocumentInfo("refunds", "Refunds take five days.")])
    call = await client.call("call-1", knowledge=["faq"], record=tmp_path / "rec")
    await call.heard("I want my money back", id="a")
    turns = await call.recall("money")
    passages = await call.search_knowledge("refund")
    recording = await recorded(call)
    assert [(each.what, each.query) for each in recording.lookups] == [
        ("recall", "money"),
        ("search_knowledge", "refund"),
    ]
    assert [hit.id for hit in recording.lookups[0].hits] == [hit.id for hit in turns]
    assert [hit.id for hit in recording.lookups[1].hits] == [hit.id for hit in passages]


async def test_recording_changes_nothing(client: MossClient, tmp_path: Path) -> None:
    """The same call recalls the same with a recording and without."""
    await client.create_index("larkline", demo.faq_documents())
    texts = []
    for record in (False, tmp_path / "rec"):
        call = await client.call(
            f"call-{bool(record)}", knowledge=["larkline"], record=record, deadline_ms=LONG_MS
        )
        contexts = []
        for turn in demo.call().spoken[:14]:
            if turn.speaker == "caller":
                contexts.append((await call.context(turn.text)).text)
            await call.heard(turn.text, turn.speaker, at=turn.start_s, id=f"turn-{turn.number}")
        await call.discard()
        texts.append(contexts)
    assert texts[0] == texts[1]
    assert any(texts[0])


# --- what goes wrong -------------------------------------------------------------------------------


async def test_a_call_goes_on_where_none_can_be_made(
    client: MossClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A directory that is a file costs the recording, not the call."""
    (tmp_path / "rec").write_text("")
    call = await client.call("call-1", record=tmp_path / "rec")
    await call.heard("my name is Ibarra")
    assert await call.recorded() is None
    assert (await call.end()) is not None
    assert "is not recorded" in caplog.text


@pytest.fixture
def full_disk() -> Recorder:
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("no /dev/full here")
    return Recorder(path, path.open("w"), project="p", cloud=None)


async def test_a_full_disk_costs_the_recording_alone(
    client: MossClient, full_disk: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be written is told once, the call is kept and pushed."""
    session = await client.session("call-1")
    call = await CallMemory.open(session, recorder=full_disk)
    for number in range(5):
        await call.heard(f"number {number}, my name is Ibarra")
        await call.context("what was my name?", deadline_ms=LONG_MS)
    assert (await call.end()) is not None
    await asyncio.to_thread(full_disk.settle, 5.0)
    assert caplog.text.count("a line is missing (OSError)") == 1
    assert "Ibarra" not in caplog.text


async def test_a_call_that_could_not_be_pushed_says_so(tmp_path: Path) -> None:
    """The end is told as it was."""
    recorder = Recorder.create(tmp_path, project="p", cloud=None, call="call")
    remote = new_remote()
    session = SessionIndex("call", model_id=MODEL, embedder=SpokenWords(), remote=remote)
    call = await CallMemory.open(session, recorder=recorder)
    await call.heard("my name is Ibarra")
    # Closed under it: every try fails.
    await session.close()
    await call.end()
    path = await call.recorded()
    assert path is not None
    assert read_recording(path).end == "unpushed"


# --- reading ---------------------------------------------------------------------------------------


def test_the_bytes_of_every_version_are_read() -> None:
    """The golden file is read as it was written."""
    recording = read_recording(GOLDEN)
    assert recording.call == "call-1"
    assert recording.settings.alpha == 0.8
    assert [known.name for known in recording.knowledge] == ["faq"]
    assert [turn.number for turn in recording.turns] == [1, 2, 3, 4]
    assert recording.turns[2].interrupted
    assert [context.outcome for context in recording.contexts] == ["ok", "skipped"]
    assert recording.contexts[0].hits
    assert recording.contexts[0].left_out
    assert recording.contexts[0].seen == ("You help callers.",)
    assert len(recording.lookups) == 1
    assert recording.end == "pushed"
    assert (recording.damaged, recording.missed) == (0, 0)


def test_a_recording_cut_off_anywhere_is_read_as_far_as_it_goes(tmp_path: Path) -> None:
    """At every length: either our error or what was whole; a torn last line is left out."""
    data = GOLDEN.read_bytes()
    whole = read_recording(GOLDEN)
    first = data.index(b"\n")
    path = tmp_path / "cut.jsonl"
    for length in [*range(0, len(data), 7), len(data) - 1]:
        path.write_bytes(data[:length])
        if length <= first:
            with pytest.raises(MossError):
                read_recording(path)
            continue
        recording = read_recording(path)
        assert recording.damaged == 0
        assert told(recording) == told(whole)[: len(recording.turns)]
        assert recording.end == ""


def test_damage_is_counted_and_the_rest_is_kept(tmp_path: Path) -> None:
    """A line that is no JSON, lacks a field, or is of a wrong kind costs itself."""
    lines = GOLDEN.read_bytes().splitlines(keepends=True)
    broken = [lines[0], b"{not json\n", b'{"kind": "turn"}\n', b"[1]\n", b'{"kind": "new"}\n']
    path = tmp_path / "broken.jsonl"
    path.write_bytes(b"".join([*broken, *lines[1:]]))
    recording = read_recording(path)
    assert recording.damaged == 3
    assert told(recording) == told(read_recording(GOLDEN))


def test_other_files_are_told_apart(tmp_path: Path) -> None:
    """No recording, a newer one, a damaged one, none at all: each with its own error."""
    path = tmp_path / "x.jsonl"
    path.write_text('{"id": "call", "turns": []}\n')
    assert not is_recording(path)
    with pytest.raises(InvalidArgumentError, match="not a recording"):
        read_recording(path)
    first = GOLDEN.read_text().splitlines()[0]
    path.write_text(first.replace('"format": 1', '"format": 2') + "\n")
    assert is_recording(path)
    with pytest.raises(FormatVersionError, match="install a newer moss-voice"):
        read_recording(path)
    path.write_text(first.replace('"project"', '"pro"') + "\n")
    with pytest.raises(CorruptDataError):
        read_recording(path)
    assert read_head(path) is None
    with pytest.raises(InvalidArgumentError):
        read_recording(tmp_path / "none.jsonl")


async def test_recordings_are_found_newest_first(client: MossClient, tmp_path: Path) -> None:
    """Also those of one call, and of names that no file system takes."""
    names = ["b", "a/../x", "b", "Ünïcode"]
    for name in names:
        call = await client.call(name, record=tmp_path / "rec")
        await call.heard("words")
        await call.end()
        await call.recorded()
    heads = [read_head(path) for path in find_recordings(tmp_path / "rec")]
    assert [head[0] for head in heads if head] == names[::-1]
