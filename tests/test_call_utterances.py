"""What a recogniser has finished and a host has not: noted, taken into turns, never lost and never twice.

Beside it the other things that a voice host asks of a call: knowledge alone, a context for no turn,
the recovery of one call. Calls are opened by a client; a call dies where its journal is let go of, as
the death of its process would do it, or in a process that is really killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from concurrent.futures import wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pytest

from moss_voice import CallMemory, MossClient
from moss_voice.call.journal import Delete, Header, Journal, Pushed, Put, decode, encode_record
from moss_voice.embedding import Embedder
from moss_voice.errors import InvalidArgumentError, JournalError, SessionClosedError
from moss_voice.types import DocumentInfo, Hit
from moss_voice.workers import submit_write

F32 = npt.NDArray[np.float32]
# Text, number and whether it was left unanswered.
Told = tuple[str, object, bool]
LONG_MS = 60_000.0
ROOT = Path(__file__).parents[1]
HEADER = Header("default", None, "call-1", "moss-minilm", 1)


class WordEmbedder:
    """Embeds texts as sums of their words' own vectors; blocks and fails when told to."""

    model_id = "moss-minilm"
    dim = 512

    def __init__(self) -> None:
        self.fails = False
        self.free = threading.Event()
        self.free.set()

    def embed_query(self, text: str) -> F32:
        self.free.wait()
        if self.fails:
            raise RuntimeError(f"cannot embed {text!r}")
        total = np.full(self.dim, 1e-3)
        for word in text.lower().split():
            seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:8], "little")
            total += np.random.default_rng(seed).normal(size=self.dim)
        row: F32 = (total / np.linalg.norm(total)).astype(np.float32)
        return row

    def embed(self, texts: Sequence[str]) -> F32:
        rows = [self.embed_query(text) for text in texts]
        return np.array(rows, np.float32).reshape(-1, self.dim)

    def cached(self, text: str, *, query: bool = False) -> F32 | None:
        return None


class Make(Protocol):
    def __call__(self, name: str = ..., **options: Any) -> Awaitable[CallMemory]: ...


@pytest.fixture
def embedder(monkeypatch: pytest.MonkeyPatch) -> WordEmbedder:
    """Make sessions of the default model use the embedder of words."""
    words = WordEmbedder()

    def load(model_id: str) -> Embedder:
        assert model_id == words.model_id
        return words

    monkeypatch.setattr("moss_voice.session.load_embedder", load)
    return words


@pytest.fixture
async def client(embedder: WordEmbedder, tmp_path: Path) -> AsyncIterator[MossClient]:
    """Give a client whose cloud and journals lie in directories of the test's."""
    async with MossClient(cloud=tmp_path / "cloud", journal_path=tmp_path / "journal") as opened:
        yield opened


@pytest.fixture
async def make(client: MossClient, embedder: WordEmbedder) -> AsyncIterator[Make]:
    """Give a function that opens calls with time enough; they are ended after the test."""
    calls: list[CallMemory] = []

    async def make_call(name: str = "call-1", **options: Any) -> CallMemory:
        calls.append(await client.call(name, **{"deadline_ms": LONG_MS, **options}))
        return calls[-1]

    yield make_call
    embedder.free.set()
    for call in calls:
        await call.discard()


async def written(call: CallMemory) -> None:
    """Wait until what was noted is in the journal."""
    await asyncio.to_thread(wait, [write for _, write in call._noted.values()])


async def die(call: CallMemory) -> None:
    """Let go of the journal, as the death of the process would, once it holds what was noted."""
    await written(call)
    assert call._journal is not None
    call._journal.close()


def journals(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "journal").rglob("*") if path.is_file()]


def anywhere(tmp_path: Path, words: str) -> list[Path]:
    """Return the files of cloud and journals that hold some words."""
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    return [path for path in files if words.encode() in path.read_bytes()]


def told(docs: Sequence[DocumentInfo]) -> list[Told]:
    """Return what a call has of its turns, in order."""
    fields = [(doc.text, doc.metadata or {}) for doc in docs]
    return [(text, of.get("turn"), of.get("unanswered", False) is True) for text, of in fields]


async def kept(client: MossClient, name: str = "call-1") -> list[Told]:
    return told(await client.get_docs(name))


def ids(hits: Sequence[Hit]) -> list[str]:
    return [hit.id for hit in hits]


# --- a turn and its utterances ---------------------------------------------------------------------


@pytest.mark.parametrize("at", [None, 1.0])
async def test_utterances_become_one_turn(make: Make, client: MossClient, at: float | None) -> None:
    """While they wait they are not recalled; the turn that they make is, alone, here and in the cloud."""
    call = await make()
    parts = ["my booking code", "is seven four", "thank you"]
    noted = [call.uttered(part, at=n + 1.0) for n, part in enumerate(parts)]
    assert len(set(noted)) == 3
    assert (call.session.doc_count, call.counters.turns) == (0, 0)
    assert await call.recall("booking code") == []
    assert (await call.context("which booking code")).hits == []
    turn = await call.heard(" ".join(parts), at=at)
    await call.heard("noted", speaker="agent")
    assert ids(await call.recall("booking code")) == [turn]
    assert ids(await call.recall("seven four")) == [turn]
    assert [doc.id for doc in await call.session.get_docs()][:1] == [turn]
    assert call.session.doc_count == 2
    result = await call.end()
    assert result is not None
    assert await kept(client) == [(" ".join(parts), 1, False), ("noted", 2, False)]


@pytest.mark.parametrize("pushed", ["never", "before", "after", "both"])
async def test_of_the_utterances_of_a_turn_a_recovery_brings_nothing(
    make: Make, client: MossClient, pushed: str
) -> None:
    """Recovered from the journal too, the words of a turn are there once, whenever the call was pushed."""
    call = await make()
    for part in ("my booking code", "is seven four"):
        call.uttered(part)
    if pushed in ("before", "both"):
        await call.push()
    turn = await call.heard("my booking code is seven four")
    if pushed in ("after", "both"):
        await call.push()
    call.uttered("and my name")
    await die(call)
    [recovered] = await client.recover()
    assert (recovered.status, recovered.damaged) == ("pushed", 0)
    docs = await client.get_docs("call-1")
    assert told(docs) == [("my booking code is seven four", 1, False), ("and my name", 2, True)]
    assert docs[0].id == turn


async def test_what_no_turn_takes_in_becomes_a_turn_of_its_own(
    make: Make, client: MossClient
) -> None:
    """It comes before the next turn, in order, marked, with its own time and metadata, and only once."""
    call = await make()
    dropped = call.uttered("I lost my coat", at=2.0, metadata={"language": "en"})
    second = call.uttered("it is blue", at=4.0, id="stt-2")
    assert second == "stt-2"
    await call.heard("one moment", speaker="agent", at=5.0)
    assert call.session.doc_count == 1, "an agent's turn settles nothing of the caller's"
    call.uttered("are you there", at=9.5)
    await call.heard("are you there?", at=9.0)
    await call.heard("hello?", at=12.0)
    docs = await call.session.get_docs()
    assert told(docs) == [
        ("one moment", 1, False),
        ("I lost my coat", 2, True),
        ("it is blue", 3, True),
        ("are you there?", 4, False),
        ("hello?", 5, False),
    ]
    assert [doc.id for doc in docs][1:3] == [dropped, second]
    assert docs[1].metadata == {
        "language": "en",
        "speaker": "caller",
        "at_s": 2.0,
        "turn": 2,
        "unanswered": True,
    }
    [hit, *_] = await call.recall("which coat")
    assert (hit.id, hit.source) == (dropped, "turn 2, caller, 00:02")
    await call.end()
    assert await kept(client) == told(docs)


async def test_an_unanswered_turn_is_recovered_as_it_was(make: Make, client: MossClient) -> None:
    """What was passed over is one turn in the journal too, numbered as it was, before the turn after it."""
    call = await make()
    call.uttered("I lost my coat", at=2.0)
    await call.heard("hello?", at=12.0)
    before = await call.session.get_docs()
    await die(call)
    assert [(r.turns, r.status) for r in await client.recover()] == [(2, "pushed")]
    assert await client.get_docs("call-1") == before


async def test_at_the_end_what_is_left_becomes_turns(
    make: Make, client: MossClient, tmp_path: Path
) -> None:
    """A caller who hangs up in the middle of a turn has said what was said; nothing is left elsewhere."""
    call = await make()
    await call.heard("hello there", at=0.0)
    call.uttered("I want", at=3.0)
    call.uttered("it is bad", "Ben", at=4.0)
    call.uttered("my money back", at=5.0)
    result = await call.end()
    assert result is not None
    assert await kept(client) == [
        ("hello there", 1, False),
        ("I want", 2, True),
        ("it is bad", 3, True),
        ("my money back", 4, True),
    ]
    assert journals(tmp_path) == []


async def test_a_call_of_nothing_but_utterances_is_pushed(make: Make, client: MossClient) -> None:
    """Also where no turn was ever heard."""
    call = await make()
    call.uttered("is anybody there")
    assert await call.end() is not None
    assert await kept(client) == [("is anybody there", 1, True)]


async def test_a_discarded_call_leaves_no_utterance(
    make: Make, client: MossClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is kept and nothing is wrong, also where the notes are still being written."""
    call = await make()
    for n in range(50):
        call.uttered(f"word number {n}", id=f"u{n % 20}")
    hearing = asyncio.create_task(call.heard("something else"))
    await asyncio.sleep(0)
    call.uttered("and more")
    await call.discard()
    await hearing
    assert call.counters.turns == 1, "nothing is made of what is not wanted"
    for n in range(10):
        other = await make(f"other-{n}")
        assert other._journal is not None
        with other._journal._state:  # keeps the note from being written
            other.uttered("word")
            discarding = asyncio.create_task(other.discard())
            await asyncio.wait({discarding}, timeout=0.03)
        await discarding
    assert journals(tmp_path) == []
    assert [info.name for info in await client.list_indexes()] == []
    assert [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_what_was_typed_takes_in_nothing(make: Make, client: MossClient) -> None:
    """A chat message beside the voice is a turn, marked, that leaves what is being said alone."""
    call = await make()
    spoken = call.uttered("my code is bravo", at=1.0)
    await call.heard("my code is bravo", typed=True, at=0.5)
    await call.heard("four", typed=True)
    assert told(await call.session.get_docs()) == [
        ("my code is bravo", 1, False),
        ("four", 2, False),
    ]
    fields = [doc.metadata or {} for doc in await call.session.get_docs()]
    assert [of.get("typed") for of in fields] == [True, True]
    other = await make("call-2")
    other.uttered("my code is bravo", at=1.0)
    await other.heard("my code is bravo", typed=True, at=0.5)
    await other.end()
    assert [text for text, _, _ in await kept(client, "call-2")] == ["my code is bravo"] * 2
    turn = await call.heard("my code is bravo indeed", at=0.9)
    docs = await call.session.get_docs()
    assert told(docs)[2:] == [("my code is bravo indeed", 3, False)]
    assert "typed" not in (docs[2].metadata or {})
    assert spoken not in {doc.id for doc in docs}
    assert turn == docs[2].id


@pytest.mark.parametrize("at", [None, 0.9])
@pytest.mark.parametrize("crash", [False, True])
async def test_a_turn_that_was_rewritten_leaves_nothing_of_the_words(
    make: Make, client: MossClient, tmp_path: Path, crash: bool, at: float | None
) -> None:
    """A card number that the app blacked out is in no file of the cloud, and after the end in none."""
    call = await make()
    call.uttered("sesame zanzibar", at=1.0)
    call.uttered("nine nine two", at=2.0)
    await call.push()
    call.uttered("zanzibar nine", at=3.0)
    await call.heard("[redacted]", at=at)
    await call.push()
    call.uttered("thank you", at=7.0)
    if crash:
        await die(call)
        assert [r.status for r in await client.recover()] == ["pushed"]
    else:
        await call.end()
    assert await kept(client) == [("[redacted]", 1, False), ("thank you", 2, True)]
    assert anywhere(tmp_path, "thank you"), "the test must see what is stored"
    for words in ("zanzibar", "nine nine"):
        assert anywhere(tmp_path, words) == []


async def test_a_corrected_utterance_is_what_counts(make: Make, client: MossClient) -> None:
    """Of an utterance told again under its id the last text and place are kept, also by a recovery."""
    for crash in (False, True):
        name = f"call-{crash}"
        call = await make(name)
        call.uttered("my coat", at=1.0, id="u1")
        call.uttered("is bravo", at=2.0, id="u2")
        await call.push()
        for text in ("my toad", "my code"):
            assert call.uttered(text, at=1.5, id="u1") == "u1"
        if crash:
            await die(call)
            await client.recover()
        else:
            await call.end()
        assert [text for text, _, _ in await kept(client, name)] == ["my code", "is bravo"]


async def test_a_turn_may_have_the_id_of_its_utterance(make: Make, client: MossClient) -> None:
    """A host that has one id for both gets one document, and the turn's text."""
    call = await make()
    call.uttered("my code", id="x", at=1.0)
    call.uttered("is bravo", id="y", at=2.0)
    assert await call.heard("my code is bravo", id="x", at=1.0) == "x"
    await die(call)
    await client.recover()
    docs = await client.get_docs("call-1")
    assert [(doc.id, doc.text) for doc in docs] == [("x", "my code is bravo")]
    assert told(docs)[0][2] is False


async def test_blanks_broken_characters_and_callers_own_models(
    make: Make, client: MossClient
) -> None:
    """A blank is not noted, a lone surrogate replaced; without a model there is nothing to note for."""
    call = await make()
    assert call.uttered(" \n") is None
    assert call.uttered("") is None
    assert call.uttered("the hotel \ud83d Astoria") is not None
    await call.end()
    assert await kept(client) == [("the hotel ? Astoria", 1, True)]
    custom = await make("call-2", model_id="custom")
    assert custom.uttered("the hotel") is None
    assert await custom.end() is None


async def test_without_a_journal_it_is_all_the_same(
    make: Make, client: MossClient, tmp_path: Path
) -> None:
    """Only the crash is not survived."""
    call = await make(journal=False)
    call.uttered("I lost my coat", at=1.0)
    call.uttered("are you", at=8.0)
    await call.push()
    await call.heard("are you there", at=8.0)
    call.uttered("hello", at=20.0, id="u")
    call.uttered("hello again", at=20.0, id="u")
    await call.end()
    assert await kept(client) == [
        ("I lost my coat", 1, True),
        ("are you there", 2, False),
        ("hello again", 3, True),
    ]
    assert journals(tmp_path) == []


async def test_a_full_disk_costs_durability_and_no_utterance(
    make: Make, client: MossClient, caplog: pytest.LogCaptureFixture
) -> None:
    """Where a note cannot be written the call says so once, and knows of it all the same."""
    call = await make()
    await call.heard("hello there", at=0.0)
    journal = call._journal
    assert journal is not None
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (journal.position, limits[1]))
    try:
        call.uttered("I lost my coat", at=1.0)
        call.uttered("it is blue", at=2.0)
        await written(call)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not call.durable
    assert caplog.text.count("journal failed") == 1
    await call.heard("coat it is blue", at=1.5)
    await call.end()
    assert await kept(client) == [
        ("hello there", 1, False),
        ("I lost my coat", 2, True),
        ("coat it is blue", 3, False),
    ]


async def test_a_model_that_fails_costs_no_utterance(
    make: Make, client: MossClient, embedder: WordEmbedder, tmp_path: Path
) -> None:
    """What could not be indexed at the end stays in the journal, and a later process brings it in."""
    call = await make()
    call.uttered("I lost my coat", at=1.0)
    embedder.fails = True
    await call.end()
    assert len(journals(tmp_path)) > 0
    embedder.fails = False
    assert [(r.turns, r.status) for r in await client.recover()] == [(1, "pushed")]
    assert await kept(client) == [("I lost my coat", 1, True)]


async def test_bad_arguments_are_named_and_leave_no_trace(
    make: Make, client: MossClient, tmp_path: Path
) -> None:
    """A fault of the host's own code raises at once, as in `heard`, and nothing comes of it later."""
    call = await make()
    for ours in (
        {"text": None},
        {"text": b"x"},
        {"speaker": ""},
        {"speaker": None},
        {"speaker": "\ud800"},
        {"id": ""},
        {"id": 7},
        {"at": "soon"},
        {"at": ()},
    ):
        with pytest.raises(InvalidArgumentError):
            call.uttered(**{"text": "a secret word", **ours})  # type: ignore[arg-type]
    for foreign in (
        {"at": float("nan")},
        {"at": float("inf")},
        {"id": "\ud800"},
        {"metadata": {"a": {"b": 1}}},
        {"metadata": {"a": None}},
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            call.uttered("a secret word", **foreign)
        assert "secret" not in f"{caught.value!s} {caught.value!r}"
    assert call.durable
    assert await call.end() is None
    assert journals(tmp_path) == []
    assert await client.list_indexes() == []


async def test_after_the_end_nothing_is_noted(make: Make) -> None:
    """From the moment it is ended or discarded on, whether or not that is done."""
    ended, discarded = await make("ended"), await make("discarded")
    ending = [asyncio.create_task(ended.end()), asyncio.create_task(discarded.discard())]
    await asyncio.sleep(0)
    for _ in range(2):
        for call in (ended, discarded):
            with pytest.raises(SessionClosedError, match="has ended"):
                call.uttered("too late")
        await asyncio.gather(*ending)


CANARY = "zanzibar"


async def test_nothing_that_was_said_is_logged(
    make: Make,
    client: MossClient,
    embedder: WordEmbedder,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No log record of a call holds a word of its utterances or searches, whatever fails."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setattr("moss_voice.call.memory._PUSH_PAUSES_S", (0.0,))
    await client.create_index("faq", [DocumentInfo("f", f"all about {CANARY}")])
    call = await make(knowledge=["faq"])
    said = f"the codeword is {CANARY}"
    call.uttered(said, at=1.0)
    embedder.fails = True
    assert await call.search_knowledge(f"what is {said}") == []
    await call.heard("something else", at=9.0)
    await die(call)
    call.uttered(said, at=10.0)
    await written(call)
    await call.push()
    call.uttered(said, at=11.0)
    await call.end()
    embedder.fails = False
    assert [r.status for r in await client.recover()] == ["pushed"]
    records = [f"{r.getMessage()} {r.exc_info}" for r in caplog.records]
    assert len(records) > 3
    assert not any(CANARY in record for record in records)
    assert CANARY not in f"{call!r} {call.counters} {call.session!r}"


# --- pushes in the middle, and deaths --------------------------------------------------------------


@pytest.mark.parametrize("pushes", [0, 1, 2])
async def test_a_push_in_the_middle_of_a_turn_loses_no_utterance(
    make: Make, client: MossClient, pushes: int
) -> None:
    """The cloud does not have it, though it was in the journal before the push was; a recovery brings it."""
    call = await make()
    await call.heard("hello there", at=0.0)
    noted = [call.uttered("I lost my coat", at=1.0), call.uttered("it is blue", at=2.0)]
    for _ in range(pushes):
        await call.push()
        assert await kept(client) == [("hello there", 1, False)]
    await die(call)
    [recovered] = await client.recover()
    assert (recovered.turns, recovered.status) == (2 if pushes else 3, "pushed")
    docs = await client.get_docs("call-1")
    assert told(docs) == [
        ("hello there", 1, False),
        ("I lost my coat", 2, True),
        ("it is blue", 2, True),
    ]
    assert [doc.id for doc in docs][1:] == noted
    assert await client.recover() == []


async def test_utterances_are_recovered_in_the_order_they_were_told(
    make: Make, client: MossClient
) -> None:
    """However many there are, corrected or not, before and during a push, and by however many threads."""
    call = await make()
    # Long, so that the thread that writes them again lets others run.
    told_first = [f"word {n} {'x' * 8000}" for n in range(20)]
    disk = threading.Event()
    busy = [submit_write(disk.wait) for _ in range(4)]
    for n, word in enumerate(told_first):
        call.uttered(f"draft of {word}", id=f"u{n}")
        call.uttered(word, id=f"u{n}")
    disk.set()
    await written(call)
    assert call._journal is not None
    records = decode(call._journal.path.read_bytes()).records
    assert [r.document["text"] for r in records if isinstance(r, Put)] == [
        text for word in told_first for text in (f"draft of {word}", word)
    ]
    disk.clear()
    busy += [submit_write(disk.wait) for _ in range(4)]
    pushing = asyncio.create_task(call.push())
    # As far as it comes: to the note of the push, which waits for a thread.
    await asyncio.wait({pushing}, timeout=0.3)
    meanwhile = [f"late {n}" for n in range(10)]
    for n, word in enumerate(meanwhile):
        call.uttered(word)
        call.uttered(f"corrected {n}", id=f"u{n}")
    disk.set()
    await asyncio.to_thread(wait, busy)
    await pushing
    call.uttered("the end")
    await die(call)
    await client.recover()
    corrected = [f"corrected {n}" for n in range(10)]
    assert [text for text, _, _ in await kept(client)] == [
        *corrected,
        *told_first[10:],
        *meanwhile,
        "the end",
    ]


async def test_a_recovered_utterance_is_a_turn_of_the_call(make: Make, client: MossClient) -> None:
    """Whoever takes up the call after a crash is told who said it and when, and counts on from it."""
    call = await make()
    await call.heard("hello there", at=0.0)
    call.uttered("I lost my coat", at=61.0, metadata={"language": "en"})
    await die(call)
    await client.recover("call-1")
    again = await make()
    [hit] = await again.recall("coat")
    assert hit.source == "turn 2, caller, 01:01"
    assert hit.metadata["language"] == "en"
    assert again.counters.turns == 2
    await again.heard("are you there", at=70.0)
    assert told(await again.session.get_docs())[1:] == [
        ("I lost my coat", 2, True),
        ("are you there", 3, False),
    ]


@pytest.mark.parametrize("corrected", [False, True])
async def test_a_turn_heard_while_a_push_is_noted_stays_settled(
    make: Make, client: MossClient, corrected: bool
) -> None:
    """What the push notes again comes before the turn that takes it in, however slow the disk is."""
    call = await make()
    call.uttered("my code", at=1.0, id="u1")
    call.uttered("is coat" if corrected else "is bravo", at=2.0, id="u2")
    await written(call)
    disk = threading.Event()
    busy = [submit_write(disk.wait) for _ in range(4)]
    pushing = asyncio.create_task(call.push())
    # As far as it comes: the disk, whose threads are all taken, is what it waits for.
    await asyncio.wait({pushing}, timeout=0.3)
    assert not pushing.done()
    if corrected:
        call.uttered("is bravo", at=2.0, id="u2")
    hearing = asyncio.create_task(call.heard("my code is bravo", at=0.9))
    await asyncio.wait({hearing}, timeout=0.3)
    disk.set()
    await asyncio.to_thread(wait, busy)
    await asyncio.gather(pushing, hearing)
    await die(call)
    await client.recover()
    assert await kept(client) == [("my code is bravo", 1, False)]


async def test_a_journal_cut_in_a_push_s_note_loses_no_utterance(make: Make) -> None:
    """At whatever byte the write that notes a push is cut off, what is noted and not pushed stays."""
    call = await make()
    await call.heard("hello there", at=0.0)
    call.uttered("I lost my coat", at=1.0, id="u1")
    call.uttered("it is blue", at=2.0, id="u2")
    await written(call)
    journal = call._journal
    assert journal is not None
    before = journal.position
    await call.push()
    data = journal.path.read_bytes()
    assert len(data) == journal.position > before
    for length in range(before, len(data) + 1):
        contents = decode(data[:length])
        left = {str(r.document["id"]) for r in contents.unpushed if isinstance(r, Put)}
        assert {"u1", "u2"} <= left
        assert contents.damaged == 0
    assert left == {"u1", "u2"}
    assert isinstance(contents.records[-1], Pushed)


HEAR = """
import asyncio, json, os, sys
from moss_voice import MossClient

async def run(client, name, steps):
    call = await client.call(name)
    for do, *told in steps:
        if do == "push":
            await call.push()
        elif do == "heard":
            await call.heard(told[0], at=told[1])
        else:
            call.uttered(told[0], at=told[1], id=told[2])

async def main(base, calls):
    client = MossClient(cloud=f"{base}/cloud", journal_path=f"{base}/journal")
    await asyncio.gather(*(run(client, name, steps) for name, steps in json.loads(calls).items()))
    os.write(1, b"done\\n")
    sys.stdin.readline()

asyncio.run(main(*sys.argv[1:]))
"""

TALK = """
import asyncio, os, random, sys
from moss_voice import MossClient

async def main(base, seed):
    chance = random.Random(seed)
    client = MossClient(cloud=f"{base}/cloud", journal_path=f"{base}/journal")
    call = await client.call("call-1")
    pushes = []
    for n in range(10_000):
        parts = [f"part{n}x{k}" for k in range(chance.randint(1, 3))]
        for k, part in enumerate(parts):
            call.uttered(part, at=10.0 * n + k)
            if chance.random() < 0.2:
                pushes.append(asyncio.create_task(call.push()))
            if chance.random() < 0.5:
                await asyncio.sleep(0)
        if chance.random() < 0.8:
            await call.heard(" ".join(parts), at=10.0 * n)
            os.write(1, f"{' '.join(parts)}\\n".encode())
        if len(pushes) > 4:
            await asyncio.gather(*pushes)
            pushes.clear()

asyncio.run(main(*sys.argv[1:]))
"""


@contextmanager
def process(script: str, *args: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a script; it is dead, and its pipes closed, when the block is left."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def said(text: str, at: float, id_: str = "u1") -> tuple[str, str, float, str]:
    return ("uttered", text, at, id_)


def turn(text: str, at: float) -> tuple[str, str, float]:
    return ("heard", text, at)


PUSH = ("push",)
ONE, TWO = said("my code", 1.0), said("is bravo", 2.0, "u2")
BOTH = turn("my code is bravo", 1.0)
LOST: list[Told] = [("my code", 1, True), ("is bravo", 1, True)]
PASSED: list[Told] = [("my code", 1, True), ("is bravo", 2, True), ("hello", 3, False)]
KEPT: list[Told] = [("my code is bravo", 1, False)]
DEATHS: dict[str, tuple[list[tuple[Any, ...]], list[Told]]] = {
    "noted": ([ONE, TWO], LOST),
    "noted-pushed": ([ONE, TWO, PUSH], LOST),
    "pushed-between": ([ONE, PUSH, TWO], LOST),
    "pushed-often": ([ONE, PUSH, TWO, PUSH, PUSH], LOST),
    "heard": ([ONE, TWO, BOTH], KEPT),
    "heard-pushed": ([ONE, TWO, BOTH, PUSH], KEPT),
    "pushed-heard": ([ONE, PUSH, TWO, BOTH], KEPT),
    "pushed-heard-pushed": ([ONE, TWO, PUSH, BOTH, PUSH], KEPT),
    "rewritten": ([ONE, PUSH, TWO, turn("[redacted]", 1.0)], [("[redacted]", 1, False)]),
    "passed": ([ONE, TWO, turn("hello", 9.0)], PASSED),
    "passed-pushed": ([ONE, PUSH, TWO, turn("hello", 9.0), PUSH], PASSED),
    "corrected": ([said("my coat", 1.0), PUSH, ONE, TWO], LOST),
    "going-on": (
        [ONE, TWO, BOTH, PUSH, said("and", 9.0), PUSH, said("so on", 10.0, "u3")],
        [*KEPT, ("and", 2, True), ("so on", 2, True)],
    ),
}


def holds_all(journals: Path) -> bool:
    """Tell whether each journal has its call's last step, and no more is to come."""
    found = 0
    for path in journals.rglob("*.journal"):
        contents = decode(path.read_bytes())
        last = DEATHS[contents.header.index_name][0][-1]
        found += (
            any(isinstance(r, Put) and r.document["text"] == last[1] for r in contents.records)
            if last != PUSH
            else True
        )
    return found == len(DEATHS)


async def test_a_killed_process_leaves_each_word_once(tmp_path: Path) -> None:
    """Killed right after a note, between notes and turn, or after it, with pushes or without: all is there."""
    steps = {name: told for name, (told, _) in DEATHS.items()}
    with process(HEAR, tmp_path, json.dumps(steps)) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"done\n"
        end = time.monotonic() + 30.0
        # `uttered` returns before the disk has it, by the time that a thread takes to wake up.
        while not holds_all(tmp_path / "journal"):
            assert time.monotonic() < end
        child.kill()
        child.wait()
    async with MossClient(cloud=tmp_path / "cloud", journal_path=tmp_path / "journal") as client:
        results = await client.recover()
        assert {r.index_name for r in results} == set(DEATHS)
        assert {(r.status, r.damaged) for r in results} == {("pushed", 0)}
        for name, (_, expected) in DEATHS.items():
            assert (name, await kept(client, name)) == (name, expected)


@pytest.mark.parametrize("seed", range(4))
async def test_killed_anywhere_no_word_is_lost_or_there_twice(tmp_path: Path, seed: int) -> None:
    """Killed at a point that nobody chose while it notes, hears, drops turns and pushes all at once."""
    chance = random.Random(seed)
    with process(TALK, tmp_path, seed) as child:
        assert child.stdout is not None
        output = [child.stdout.readline() for _ in range(chance.randint(1, 30))]
        end = time.perf_counter() + chance.uniform(0.0, 0.01)
        while time.perf_counter() < end:
            pass
        child.kill()
        output += child.stdout.read().split(b"\n")
    acknowledged = b" ".join(output).decode().split()
    assert acknowledged
    async with MossClient(cloud=tmp_path / "cloud", journal_path=tmp_path / "journal") as client:
        [recovered] = await client.recover()
        assert (recovered.status, recovered.damaged) == ("pushed", 0)
        words = Counter(" ".join(doc.text for doc in await client.get_docs("call-1")).split())
    assert set(acknowledged) <= set(words)
    assert set(words.values()) == {1}
    # Of the turns that the host dropped, all that came before the last one it told of.
    last = max(int(word[4:].partition("x")[0]) for word in acknowledged)
    numbers = {int(word[4:].partition("x")[0]) for word in words}
    assert set(range(last + 1)) <= numbers


async def test_recovery_of_one_call_leaves_the_others_alone(make: Make, client: MossClient) -> None:
    """An agent that takes up a call recovers that one; other calls' journals wait for their own."""
    for name in ("a", "b", "ab"):
        call = await make(name)
        call.uttered(f"this is {name}")
        await die(call)
    first = [(r.index_name, r.turns, r.status) for r in await client.recover("a")]
    assert first == [("a", 1, "pushed")]
    assert [info.name for info in await client.list_indexes()] == ["a"]
    assert await client.recover("a") == []
    assert await client.recover("nobody") == []
    assert [r.index_name for r in await client.recover()] == ["b", "ab"]
    assert await kept(client, "b") == [("this is b", 1, True)]


# --- several records in one write ------------------------------------------------------------------


def put(id_: str, text: str = "hello") -> Put:
    return Put({"id": id_, "text": text}, 1)


def read(data: bytes) -> list[object]:
    return [r.document["id"] if isinstance(r, Put) else r for r in decode(data).records]


def test_a_torn_write_of_several_records_leaves_the_first_ones(tmp_path: Path) -> None:
    """It is one write but several lines: cut off, the whole lines of its beginning are read.

    So it is not all or nothing. What holds: what was there before is there; a record is whole or not
    there; and none is read before those ahead of it. A turn is written ahead of the end of its
    utterances, so that a torn write leaves its words twice, and never not at all.
    """
    several: list[Put | Delete] = [put("turn"), Delete("u1", 2), Delete("u2", 2)]
    with Journal.create(tmp_path, HEADER) as journal:
        journal.append(put("u1"))
        start = journal.append(put("u2"))
        assert journal.append(*several) == journal.path.stat().st_size
    data = journal.path.read_bytes()
    assert data[start:] == b"".join(map(encode_record, several))
    for length in range(start, len(data) + 1):
        whole = data[start:length].count(b"\n")
        assert read(data[:length]) == ["u1", "u2", "turn", *several[1:]][: 2 + whole]
        assert decode(data[:length]).damaged == 0
        journal.path.write_bytes(data[:length])
        again, contents = Journal.open(journal.path)
        with again:
            again.append(put("next"))
        assert contents.size <= length
        assert read(journal.path.read_bytes())[-1] == "next"
        assert decode(journal.path.read_bytes()).damaged == 0


def test_of_records_that_cannot_all_be_written_none_is(tmp_path: Path) -> None:
    """One that is no JSON refuses them all, before a byte is written; none at all is no record."""
    bad = Put({"id": "bad", "text": "a secret", "payload": {1, 2}}, 1)
    with Journal.create(tmp_path, HEADER) as journal:
        before = journal.append(put("a"))
        with pytest.raises(InvalidArgumentError):
            journal.append(put("b"), bad)
        assert journal.append() == before == journal.path.stat().st_size
        journal.append(put("c"), put("d"))
        assert read(journal.path.read_bytes()) == ["a", "c", "d"]


def test_a_full_disk_amid_several_records_takes_nothing_that_was_there(tmp_path: Path) -> None:
    """The records of a write that failed may be read; the next write takes their place, and all is told.

    After it a reader may find the rest of the failed one, which is counted as damage and read as
    nothing.
    """
    with Journal.create(tmp_path, HEADER) as journal:
        before = journal.append(put("a"))
        first = len(encode_record(put("b", "long " * 40)))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (before + first + 20, limits[1]))
        try:
            with pytest.raises(JournalError):
                journal.append(put("b", "long " * 40), put("c"))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert journal.position == before
        assert set(read(journal.path.read_bytes())) - {"a", "b"} == set()
        journal.append(put("d"))
        assert read(journal.path.read_bytes()) == ["a", "d"]
        journal.append(put("e", "longer " * 60))
        contents = decode(journal.path.read_bytes())
        assert [r.document["id"] for r in contents.records if isinstance(r, Put)] == ["a", "d", "e"]
        assert contents.damaged == 0


# --- knowledge alone -------------------------------------------------------------------------------


async def rules(client: MossClient) -> None:
    """Store two knowledge indexes."""
    for name in ("faq", "terms"):
        docs = [DocumentInfo(f"{name}-{n}", f"booking rule {n} of {name}") for n in range(8)]
        await client.create_index(name, docs)


async def test_knowledge_alone_is_found(make: Make, client: MossClient) -> None:
    """Passages of all indexes, best first, and no turn, however alike; as many as were asked for."""
    await rules(client)
    call = await make(knowledge=["faq", "terms"], top_k=3)
    await call.heard("booking rule 5 of terms")
    await call.heard("booking rule 5 of terms indeed", speaker="agent")
    call.uttered("booking rule 5")
    hits = await call.search_knowledge("booking rule 5 of terms")
    assert (hits[0].id, hits[0].source, hits[0].index_name) == (
        "terms-5",
        "terms: terms-5",
        "terms",
    )
    assert len(hits) == 3
    for top_k in (1, 5, 12):
        hits = await call.search_knowledge("booking rule 5 of terms", top_k=top_k)
        assert len(hits) == top_k
        assert hits[0].id == "terms-5"
    assert {hit.index_name for hit in hits} == {"faq", "terms"}
    assert await call.search_knowledge(" \n") == []
    lone = await make("call-2")
    await lone.heard("booking rule 5 of terms")
    assert await lone.search_knowledge("booking rule") == []


async def test_knowledge_is_searched_with_what_the_call_is_about(
    make: Make, client: MossClient
) -> None:
    """As in a context: what was said before tells which of two passages is meant."""
    docs = [DocumentInfo("b", "breakfast rates"), DocumentInfo("a", "garage rates")]
    await client.create_index("faq", docs)
    for topic, wanted in (("garage", "a"), ("breakfast", "b")):
        call = await make(f"call-{topic}", knowledge=["faq"])
        await call.heard(f"is there a {topic}")
        await call.heard("there is", speaker="agent")
        hits = await call.search_knowledge("what are the rates")
        assert ids(hits)[0] == wanted


async def test_a_search_of_knowledge_never_hurts_the_host(
    make: Make, client: MossClient, embedder: WordEmbedder, caplog: pytest.LogCaptureFixture
) -> None:
    """Bad arguments raise; late, broken or after the end it is empty."""
    await rules(client)
    call = await make(knowledge=["faq"])
    for top_k in (0, -1):
        with pytest.raises(InvalidArgumentError, match="search_knowledge: expected a top_k"):
            await call.search_knowledge("booking", top_k=top_k)
    with pytest.raises(InvalidArgumentError, match="search_knowledge: expected a text"):
        await call.search_knowledge(None)  # type: ignore[arg-type]
    assert await call.search_knowledge("booking rule")
    embedder.free.clear()
    call.deadline_ms = 5.0
    assert await call.search_knowledge("booking rule 2") == []
    embedder.free.set()
    call.deadline_ms = LONG_MS
    assert ids(await call.search_knowledge("booking rule 2"))[0] == "faq-2"
    embedder.fails = True
    assert await call.search_knowledge("booking rule 3") == []
    assert "no search_knowledge (RuntimeError)" in caplog.text
    assert "booking" not in caplog.text
    embedder.fails = False
    assert await call.search_knowledge("booking rule 3")
    await call.end()
    assert await call.search_knowledge("booking rule 3") == []


# --- a context for no turn -------------------------------------------------------------------------


async def test_a_context_for_no_turn_gives_the_newest_one(make: Make) -> None:
    """An agent that takes over asks with the caller's last words and gets that turn; a reply does not."""
    call = await make()
    await call.heard("I need a hotel", speaker="caller")
    await call.heard("where to", speaker="agent")
    newest = await call.heard("a hotel in Lisbon")
    assert newest is not None
    words = "a hotel in Lisbon"
    for is_turn in (True, False, True):
        found = await call.context(words, is_turn=is_turn)
        assert found.outcome == "ok"
        assert (newest in ids(found.hits)) is not is_turn
        assert ("Lisbon" in found.text) is not is_turn
    seen = await call.context(words, is_turn=False, visible=[newest])
    assert newest not in ids(seen.hits)
    assert not seen.hits or "Lisbon" not in seen.text


async def test_an_interim_does_not_answer_for_no_turn(make: Make) -> None:
    """Hits prepared for a reply to these words leave the turn out; asked for no turn, it is there."""
    call = await make()
    await call.heard("where to", speaker="agent")
    newest = await call.heard("a hotel in Lisbon")
    call.hearing("a hotel in Lisbon")
    await asyncio.to_thread(wait, list(call._interims.values()))
    assert newest in ids((await call.context("a hotel in Lisbon", is_turn=False)).hits)
    assert newest not in ids((await call.context("a hotel in Lisbon")).hits)
