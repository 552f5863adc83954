"""Private by construction: what an encrypted cloud shows, what is forgotten, what expires, what is redacted."""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moss_voice import DocumentInfo, MossClient, PiiRedactor, QueryOptions
from moss_voice.cloud.log import decode_commit
from moss_voice.cloud.sealing import MAGIC, SealingKey, new_key
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import (
    ConflictError,
    CorruptDataError,
    EncryptionKeyError,
    FilterError,
    InvalidArgumentError,
    MossError,
)

CANARY = "canary-8842-astoria"
CALLER = {"field": "caller_id", "condition": {"$eq": "c-17"}}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., MossClient]:
    """Return what makes clients of one cloud; each `cache` is another machine."""

    def client(cache: str = "one", **options: Any) -> MossClient:
        return MossClient(
            cloud=tmp_path / "cloud",
            cache_path=tmp_path / cache / "cache",
            journal_path=tmp_path / cache / "journal",
            **options,
        )

    return client


def said(n: int, caller: str = "c-17", text: str = CANARY) -> DocumentInfo:
    return DocumentInfo(
        f"turn-{n}", f"{text} number {n}", {"caller_id": caller, "note": text}, None, {"p": text}
    )


def holding(folder: Path, *needles: bytes) -> list[Path]:
    """Return the files below a folder that hold one of some byte strings."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(needle in path.read_bytes() for needle in needles)]


# --- encryption ------------------------------------------------------------------------------------


async def test_an_encrypted_cloud_shows_no_text_metadata_or_vector(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """Neither the cloud nor the cache holds a readable word or vector; who has the key reads all of it."""
    key = new_key()
    async with make(encryption_key=key) as client:
        session = await client.session("calls")
        await session.add_docs([said(n) for n in range(20)])
        vectors = session.vectors_of(["turn-3"])
        await session.push_index()
        call = await client.call("call-1")
        await call.heard(f"my hotel is {CANARY}")
        await call.end()
    needles = (CANARY.encode(), b"caller_id", b"c-17", vectors[0][:8].tobytes())
    assert not holding(tmp_path / "cloud", *needles)
    assert not holding(tmp_path / "one" / "cache", *needles)
    segments = [path for path in (tmp_path / "cloud").rglob("segments/*") if path.is_file()]
    assert segments
    assert all(path.read_bytes().startswith(MAGIC) for path in segments)
    commits = [decode_commit(path.read_bytes()) for path in (tmp_path / "cloud").rglob("log/*")]
    assert {id_ for commit in commits for id_ in commit.key_ids} == {SealingKey(key).id}
    async with make("another machine", encryption_key=key) as client:
        again = await client.session("calls")
        assert [doc.text for doc in await again.get_docs()] == [said(n).text for n in range(20)]
        assert np.array_equal(again.vectors_of(["turn-3"]), vectors)
        found = await again.query(f"{CANARY} number 7", QueryOptions(top_k=1, filter=CALLER))
        assert found.docs[0].payload == {"p": CANARY}
        assert (await client.get_index("calls")).encrypted


async def test_a_missing_or_wrong_key_is_a_clear_error(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """Reading and pushing without the key are refused, by its id; nothing is changed by trying."""
    key = new_key()
    async with make(encryption_key=key) as client:
        await client.create_index("calls", [said(1)])
    before = {path: path.read_bytes() for path in (tmp_path / "cloud").rglob("*") if path.is_file()}
    for wrong in ({}, {"encryption_key": new_key()}):
        async with make("elsewhere", **wrong) as client:
            for attempt in (
                client.session("calls"),
                client.query("calls", "x"),
                client.call("calls"),
            ):
                with pytest.raises(EncryptionKeyError, match=SealingKey(key).id) as caught:
                    await attempt
                assert key not in str(caught.value)
            assert caught.value.code == "encryption_key"
            started = await client._remote()
            blank = await type(await client.session("new")).start(started, "calls")
            await blank.add_docs([said(2)])
            with pytest.raises(EncryptionKeyError):
                await blank.push_index("merge")
    after = {path: path.read_bytes() for path in (tmp_path / "cloud").rglob("*") if path.is_file()}
    assert after == before


async def test_a_plain_index_is_sealed_by_the_first_push_with_a_key(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """Who turns encryption on for an index that exists leaves no plain version behind."""
    async with make() as client:
        await client.create_index("calls", [said(1)])
        await client.add_docs("calls", [said(2)])
    assert holding(tmp_path / "cloud", CANARY.encode())
    async with make("other", encryption_key=new_key()) as client:
        session = await client.session("calls")
        assert session.doc_count == 2
        await session.add_docs([said(3)])
        await session.push_index()
        assert not holding(tmp_path / "cloud", CANARY.encode())
        again = await client.session("calls")
        assert sorted(doc.id for doc in await again.get_docs()) == ["turn-1", "turn-2", "turn-3"]
        assert len(await client.history("calls")) == 1


async def test_a_key_is_rotated_without_a_gap(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """With the new key first both are read; once sealed anew the old key opens nothing."""
    old, new = new_key(), new_key()
    async with make(encryption_key=old) as client:
        await client.create_index("calls", [said(1)])
    key_file = tmp_path / "keys"
    key_file.write_text(f"{new}\n{old}\n")
    async with make("b", encryption_key_file=key_file) as client:
        await client.add_docs("calls", [said(2)])
        head = await (await client._remote()).cloud.read_head("default", "calls")
        assert head is not None
        assert head.key_ids == {SealingKey(old).id, SealingKey(new).id}
        assert await client.encrypt_index("calls")
        assert not await client.encrypt_index("calls")
    async with make("c", encryption_key=new) as client:
        assert (await client.session("calls")).doc_count == 2
    async with make("d", encryption_key=old) as client:
        with pytest.raises(EncryptionKeyError):
            await client.session("calls")


async def test_a_segment_from_another_index_is_not_taken_for_one_of_this(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """Whoever holds the store cannot pass one caller's call off as another's, nor roll back within one."""
    async with make(encryption_key=new_key()) as client:
        await client.create_index("call-1", [said(1)])
        await client.create_index("call-2", [said(2, "c-18")])
        await client.add_docs("call-2", [said(3, "c-18")])
        folder = tmp_path / "cloud" / "default"
        theirs = decode_commit((folder / "call-1/log/000000000001.json").read_bytes())
        path = folder / "call-2/log/000000000002.json"
        ours = decode_commit(path.read_bytes())
        for ref in theirs.segments:
            (folder / "call-2/segments" / ref.sha256).write_bytes(
                (folder / "call-1/segments" / ref.sha256).read_bytes()
            )
        for forged in (
            replace(ours, segments=theirs.segments, doc_count=1),
            replace(ours, segments=ours.segments[:1], doc_count=1),
        ):
            path.write_bytes(forged.encode())
            with pytest.raises(CorruptDataError, match="holder of its key"):
                await client.session("call-2")


async def test_settings_of_keys(
    make: Callable[..., MossClient], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Keys come from the environment too; two ways at once, or no key at all in them, is an error."""
    key = new_key()
    monkeypatch.setenv("MOSS_VOICE_ENCRYPTION_KEY", key)
    async with make() as client:
        await client.create_index("calls", [said(1)])
        assert (await client.get_index("calls")).encrypted
    monkeypatch.delenv("MOSS_VOICE_ENCRYPTION_KEY")
    (tmp_path / "key").write_text(key)
    monkeypatch.setenv("MOSS_VOICE_ENCRYPTION_KEY_FILE", str(tmp_path / "key"))
    async with make() as client:
        assert (await client.session("calls")).doc_count == 1
    with pytest.raises(InvalidArgumentError, match="got both"):
        make(encryption_key=key, encryption_key_file=tmp_path / "key")
    with pytest.raises(EncryptionKeyError, match="cannot be read"):
        make(encryption_key_file=tmp_path / "none")


# --- forgetting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_caller_is_forgotten_in_every_version_of_every_index(
    make: Callable[..., MossClient], tmp_path: Path, sealed: bool
) -> None:
    """No byte of what the caller said is left in the cloud, old versions included; all else stays."""
    options: dict[str, Any] = {"encryption_key": new_key()} if sealed else {}
    async with make(**options) as client:
        other = [said(n, "c-18", "somebody else") for n in range(3)]
        await client.create_index("calls", [*other, said(10), said(11)])
        await client.delete_docs("calls", ["turn-10"])  # stays in the older version
        await client.create_index("mixed", [said(20), said(21, "c-18", "somebody else")])
        await client.create_index("clean", [said(30, "c-18", "somebody else")])
        clean = await client.get_index("clean")
        dry = {one.index: one for one in await client.forget(CALLER, dry_run=True)}
        assert {name: (one.documents, one.older > 0) for name, one in dry.items()} == {
            "calls": (1, True), "mixed": (1, False)
        }  # fmt: skip
        assert sealed or holding(tmp_path / "cloud", CANARY.encode())
        done = {one.index: one for one in await client.forget(CALLER)}
        assert {name: one.documents for name, one in done.items()} == {"calls": 1, "mixed": 1}
        assert all(one.removed and not one.pending for one in done.values())
        assert await client.forget(CALLER) == []
        assert not holding(tmp_path / "cloud", CANARY.encode())
        assert not holding(tmp_path / "one" / "cache", CANARY.encode())
        assert await client.get_index("clean") == clean
        assert [version.current for version in await client.history("calls")] == [True]
    async with make("another", **options) as client:
        session = await client.session("calls")
        assert [doc.text for doc in await session.get_docs()] == [doc.text for doc in other]
        assert (await client.get_index("mixed")).doc_count == 1


async def test_what_is_forgotten_is_not_brought_back(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """A session that was open before merges without it, and cannot put its copy in the place of it."""
    async with make() as client, make("elsewhere") as other:
        await client.create_index("calls", [said(1), said(2, "c-18", "else")])
        stale, stubborn = await other.session("calls"), await other.session("calls")
        await client.forget(CALLER)
        await stale.add_docs([said(3, "c-18", "else")])
        result = await stale.push_index("merge")
        assert result.merged is not None
        assert result.merged.deleted == ("turn-1",)
        assert [doc.id for doc in await stale.get_docs()] == ["turn-2", "turn-3"]
        await stubborn.add_docs([said(4, "c-18", "else")])
        with pytest.raises(ConflictError, match="forgotten"):
            await stubborn.push_index("replace")
        assert not holding(tmp_path / "cloud", CANARY.encode())


async def test_forgetting_races_with_pushes(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """Pushes that go on meanwhile are all kept, and what was forgotten stays away."""
    async with make() as client, make("elsewhere") as other:
        await client.create_index("calls", [said(n) for n in range(5)])

        async def push(n: int) -> None:
            session = await other.session("calls")
            await session.add_docs([said(100 + n, "c-18", "else")])
            await session.push_index("merge")

        await asyncio.gather(client.forget(CALLER), *(push(n) for n in range(8)))
        await client.forget(CALLER)
        docs = await client.get_docs("calls")
        assert {doc.id for doc in docs} == {f"turn-{100 + n}" for n in range(8)}
        assert not holding(tmp_path / "cloud", CANARY.encode())


async def test_forgetting_everything_by_mistake_is_refused(
    make: Callable[..., MossClient],
) -> None:
    """An empty or malformed filter forgets nothing."""
    async with make() as client:
        await client.create_index("calls", [said(1)])
        bads: list[dict[str, Any]] = [{}, {"field": "x"}, {"$and": []}]
        for bad in bads:
            with pytest.raises(FilterError):
                await client.forget(bad)
        assert (await client.get_index("calls")).doc_count == 1


async def test_a_leftover_of_a_broken_push_is_looked_into(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """A segment that no version names and that holds the caller's words is found and, once old, removed."""
    async with make() as client:
        await client.create_index("calls", [said(1, "c-18", "else")])
        await client.create_index("theirs", [said(2)])
        folder = tmp_path / "cloud" / "default"
        [segment] = (folder / "theirs/segments").iterdir()
        left = folder / "calls/segments" / segment.name
        left.write_bytes(segment.read_bytes())
        await client.delete_index("theirs")
        [found] = await client.forget(CALLER)
        assert (found.pending, found.removed) == (1, 0)  # a push may be under way
        assert left.exists()
        import os

        os.utime(left, (1_600_000_000, 1_600_000_000))
        [found] = await client.forget(CALLER)
        assert found.pending == 0
        assert not left.exists()
        assert await client.forget(CALLER) == []


# --- retention -------------------------------------------------------------------------------------


class Clock:
    """A clock that goes when it is told to, beside the real one that stamps files."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


async def test_an_index_is_gone_when_its_time_is_up(
    make: Callable[..., MossClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the retention period nothing of it is read or stored any more; what came back expires again."""
    clock = Clock()
    monkeypatch.setattr("moss_voice.cloud.store.utc_now", clock)
    monkeypatch.setattr(ObjectLog.__init__, "__kwdefaults__", {"now": clock})
    async with make() as client:
        call = await client.call("call-1", ttl=timedelta(days=30))
        await call.heard(f"my hotel is {CANARY}", id="turn-1")
        await call.end()
        await client.create_index("kept", [said(1)])
        info = await client.get_index("call-1")
        assert info.ttl_s == 30 * 24 * 3600
        clock.ahead = timedelta(days=29)
        assert (await client.get_index("call-1")).doc_count == 1
        session = await client.session("call-1")
        clock.ahead = timedelta(days=30, seconds=1)
        assert [index.name for index in await client.list_indexes()] == ["kept"]
        assert (await client.session("call-1")).doc_count == 0
        assert not holding(tmp_path / "cloud" / "default" / "call-1", CANARY.encode())
        clock.ahead = timedelta()
        # A session from before brings back only what it changed itself, and that expires too.
        await session.add_docs([DocumentInfo("turn-2", "and the gate code is 1")])
        await session.push_index("merge")
        assert [doc.id for doc in await client.get_docs("call-1")] == ["turn-2"]
        assert (await client.get_index("call-1")).ttl_s == 30 * 24 * 3600


async def test_a_retention_period_can_be_set_and_lifted(make: Callable[..., MossClient]) -> None:
    """It is a version like any other, which changes no document and conflicts with nobody."""
    async with make() as client:
        await client.create_index("calls", [said(1)], ttl=3600)
        session = await client.session("calls")
        assert (await client.set_ttl("calls", None)).ttl_s is None
        assert (await client.set_ttl("calls", timedelta(days=1))).ttl_s == 86400
        await session.add_docs([said(2)])
        pushed = await session.push_index("error")
        assert pushed.merged_from is None
        assert (await client.get_index("calls")).ttl_s == 86400
        assert [v.kind for v in await client.history("calls")] == [
            "push",
            "upkeep",
            "upkeep",
            "push",
        ]
        for bad in (0, -1, "soon"):
            with pytest.raises(InvalidArgumentError):
                await client.set_ttl("calls", bad)  # type: ignore[arg-type]


# --- redaction -------------------------------------------------------------------------------------

CARD = "four two four two four two four two four two four two four two four two"


async def test_a_card_number_leaves_no_trace(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """What a redactor takes out of a turn is in no journal, index, cloud, cache or context."""
    async with make(redact=PiiRedactor()) as client:
        call = await client.call("call-1")
        turn = await call.heard(f"my card is {CARD} and my hotel is the Astoria")
        call.hearing("my mail is ada dot lovelace at example dot com")
        await call.heard("write to ada.lovelace@example.com please", id="turn-2")
        await call.heard("which hotel was it", id="turn-3")
        assert not holding(tmp_path, b"four two four", b"lovelace")
        hits = await call.recall("Astoria hotel")
        assert hits[0].id == turn
        assert "[card number]" in hits[0].text
        assert "Astoria" in hits[0].text
        assert hits[0].metadata["redacted"] is True
        context = await call.context("which card did I give", deadline_ms=60_000)
        assert "four two" not in context.text
        await call.end()
    assert not holding(tmp_path, b"four two four", b"lovelace")


async def test_a_number_said_in_several_breaths_is_withheld_until_its_turn_is_whole(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """Parts that only together are a card number do not reach the journal one by one."""
    words = CARD.split()
    first, second = " ".join(words[:8]), " ".join(words[8:])
    async with make(redact=PiiRedactor()) as client:
        call = await client.call("call-1")
        call.uttered(f"it is {first}", id="u-1")
        call.uttered(second, id="u-2")
        await call.heard("hello there", speaker="agent")
        # The first part alone is no card number, and is all that there is of it.
        assert not holding(tmp_path, f"{first} {second}".encode(), f'"{second}"'.encode())
        assert holding(tmp_path, b'"[withheld]"')
        await call.heard(f"it is {first} {second}", id="turn-1")
        hits = await call.recall("it is", top_k=9)
        assert [hit.text for hit in hits if hit.id == "turn-1"] == ["it is [card number]"]
        assert {hit.id for hit in hits}.isdisjoint({"u-1", "u-2"})
        await call.end()
    assert not holding(tmp_path / "cloud", b"four two")


async def test_a_redactor_that_fails_costs_the_words_and_not_the_privacy(
    make: Callable[..., MossClient], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The turn is kept without its text; no error reaches the host, and no log holds what was said."""

    def broken(text: str) -> str:
        raise RuntimeError(text)

    def wrong(text: str) -> Any:
        return None

    for redact in (broken, wrong):
        async with make(redact=redact) as client:
            call = await client.call(f"call-{redact.__name__}")
            await call.heard(f"my hotel is {CANARY}", id="turn-1")
            call.hearing(CANARY)
            assert (await call.context(CANARY, deadline_ms=60_000)).outcome in ("ok", "skipped")
            await call.end()
            [doc] = await client.get_docs(f"call-{redact.__name__}")
            assert doc.text == "[withheld]"
    assert CANARY not in caplog.text
    assert "redactor" in caplog.text
    assert not holding(tmp_path, CANARY.encode())


async def test_sessions_redact_and_knowledge_does_not(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """What is added to a session is redacted, metadata too; a support line's number in a FAQ stays."""
    faq = "Call us at 415-555-2671 or write to help@example.com."
    async with make(redact=PiiRedactor()) as client:
        await client.create_index("faq", [DocumentInfo("contact", faq)])
        session = await client.session("notes")
        note = DocumentInfo("a", "mail ada@example.org", {"mail": "ada@example.org", "n": 3})
        await session.add_docs([note])
        [kept] = await session.get_docs()
        assert (kept.text, kept.metadata) == ("mail [email]", {"mail": "[email]", "n": 3})
        plain = await client.session("raw", redact=lambda text: text)
        await plain.add_docs([note])
        assert (await plain.get_docs())[0].text == note.text
        assert (await client.get_docs("faq"))[0].text == faq


async def test_logs_of_it_all_hold_no_content(
    make: Callable[..., MossClient], caplog: pytest.LogCaptureFixture
) -> None:
    """Encrypting, forgetting and expiring are logged by names and counts alone."""
    caplog.set_level(logging.DEBUG)
    key = new_key()
    async with make(encryption_key=key) as client:
        await client.create_index("calls", [said(1)], ttl=100)
        found = await client.forget(CALLER)
        assert CANARY not in repr((found, client, await client.history("calls")))
    with pytest.raises(MossError) as caught:
        async with make("b") as client:
            await client.session("calls")
    told = caplog.text + str(caught.value)
    assert CANARY not in told
    assert key not in told
    assert not re.search(r"c-17", told)


async def test_a_leftover_is_found_where_there_is_no_index(
    make: Callable[..., MossClient], tmp_path: Path
) -> None:
    """What a broken push left under a deleted name, or one that never was, is forgotten too."""
    async with make() as client:
        await client.create_index("theirs", [said(2)])
        await client.create_index("gone", [said(3)])
        folder = tmp_path / "cloud" / "default"
        [segment] = (folder / "theirs/segments").iterdir()
        await client.delete_index("gone")
        for name in ("gone", "never%20was"):
            (folder / name / "segments").mkdir(parents=True, exist_ok=True)
            left = folder / name / "segments" / segment.name
            left.write_bytes(segment.read_bytes())
            os.utime(left, (1_600_000_000, 1_600_000_000))
        assert await client.list_names() == ["gone", "never was", "theirs"]
        assert [index.name for index in await client.list_indexes()] == ["theirs"]
        found = {one.index: one for one in await client.forget(CALLER)}
        assert {name: (one.documents, one.pending) for name, one in found.items()} == {
            "gone": (0, 0), "never was": (0, 0), "theirs": (1, 0)
        }  # fmt: skip
        assert not holding(tmp_path / "cloud", CANARY.encode())
        assert await client.forget(CALLER) == []
