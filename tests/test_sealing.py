"""What only the holder of a key can read or make: sealed segments, signed commits, keyrings."""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moss_voice.cloud.log import Commit, SegmentRef, decode_commit
from moss_voice.cloud.sealing import (
    MAGIC,
    Keyring,
    SealingKey,
    is_sealed,
    new_key,
    read_key_id,
)
from moss_voice.errors import CorruptDataError, EncryptionKeyError, InvalidArgumentError

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 11, 26, tzinfo=UTC)
KEY = "00112233445566778899aabbccddeeff" * 2


def commit(*refs: SegmentRef, **changes: object) -> Commit:
    made = Commit(
        index="call-42",
        index_id="i",
        version=7,
        parent=6,
        changed=7,
        replaced=None,
        model_id="m",
        dim=4,
        analyzer="en-1",
        segments=refs,
        doc_count=sum(ref.rows for ref in refs),
        created_at=NOW,
        updated_at=NOW,
        job_id="j",
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def opened(key: SealingKey, data: bytes | bytearray) -> bytes:
    """Open as a reader does, who looks first which key it needs."""
    read_key_id(data)
    return key.open(data, project="p", index="i")


@given(st.binary(min_size=1, max_size=300))
def test_what_is_sealed_opens_and_shows_nothing(data: bytes) -> None:
    """Sealing and opening give back the bytes; twice sealed they differ, and both know their key."""
    key = SealingKey(KEY)
    one, two = (key.seal(data, project="p", index="i") for _ in range(2))
    assert one != two
    assert is_sealed(one)
    assert read_key_id(one) == key.id
    if len(data) > 8:
        assert data not in one[len(MAGIC) :]
    for sealed in (one, memoryview(two)):
        assert key.open(sealed, project="p", index="i") == data


def test_a_sealed_segment_opens_in_its_own_place_alone() -> None:
    """Moved to another project or index, or with project and index told otherwise, it does not open."""
    key = SealingKey(KEY)
    sealed = key.seal(b"the gate code is 8842", project="acme", index="call-1")
    for project, index in (("other", "call-1"), ("acme", "call-2"), ("acmecall-1", ""), ("a", "b")):
        with pytest.raises(CorruptDataError, match="does not open"):
            key.open(sealed, project=project, index=index)


def test_a_sealed_segment_that_was_touched_does_not_open() -> None:
    """Any bit flipped, any length cut: it is an error of ours, never other bytes."""
    key = SealingKey(KEY)
    sealed = key.seal(b"the gate code is 8842", project="p", index="i")
    for at in range(len(sealed)):
        flipped = bytearray(sealed)
        flipped[at] ^= 1
        with pytest.raises(CorruptDataError):
            opened(key, flipped)
    for size in range(len(sealed)):
        with pytest.raises(CorruptDataError):
            opened(key, sealed[:size])


def test_golden_bytes_still_open() -> None:
    """A segment that was sealed by this version's format opens for ever."""
    sealed = (GOLDEN / "sealed-1.bin").read_bytes()
    assert sealed.startswith(MAGIC)
    assert SealingKey(KEY).open(sealed, project="acme", index="call-42") == b"golden segment"
    kept = (GOLDEN / "commit-2.json").read_bytes()
    made = decode_commit(kept)
    assert made.encode() == kept
    Keyring([KEY]).check(made, project="acme")


def test_keys_in_every_spelling() -> None:
    """Bytes, hexadecimal, base64 with and without padding are one key; what is none is not quoted."""
    raw = bytes.fromhex(KEY)
    spelled: list[str | bytes] = [raw, KEY, KEY.upper(), base64.b64encode(raw).decode()]
    spelled += [base64.urlsafe_b64encode(raw).decode().rstrip("="), f" {KEY}\n"]
    assert len({SealingKey(key).id for key in spelled}) == 1
    bads: list[str | bytes] = [
        "",
        "secret",
        KEY[:-2],
        KEY + "00",
        raw[:-1],
        "!" * 43,
        "é" * 43,
        "secret" * 9,
    ]
    for bad in bads:
        with pytest.raises(InvalidArgumentError, match="expected 32 bytes") as caught:
            SealingKey(bad)
        assert "secret" not in str(caught.value)
    assert len({new_key() for _ in range(50)}) == 50
    assert KEY not in repr(SealingKey(KEY))


def test_a_keyring_reads_with_all_and_seals_with_the_first(tmp_path: Path) -> None:
    """A key file holds the current key and older ones; a key that is missing is named by its id."""
    old, new = new_key(), new_key()
    path = tmp_path / "keys"
    path.write_text(f"# made today\n{new}\n\n{old}\n")
    ring = Keyring.load(path)
    assert ring.current.id == SealingKey(new).id
    assert ring.key(SealingKey(old).id, index="i").id == SealingKey(old).id
    foreign = SealingKey(new_key()).id
    with pytest.raises(EncryptionKeyError, match=foreign) as caught:
        ring.key(foreign, index="i")
    assert old not in str(caught.value)
    for missing in (tmp_path / "none", tmp_path):
        with pytest.raises(EncryptionKeyError, match="cannot be read"):
            Keyring.load(missing)
    path.write_text("# nothing\n")
    with pytest.raises(InvalidArgumentError):
        Keyring.load(path)


def test_a_commit_of_an_encrypted_index_is_signed() -> None:
    """Whatever it says is under the signature: changed, moved or unsigned, it is refused."""
    ring = Keyring([KEY])
    ref = SegmentRef("a" * 64, 100, 3, 0, ring.current.id)
    other = SegmentRef("b" * 64, 100, 3, 0, ring.current.id)
    made = commit(ref)
    signed = replace(made, mac=ring.current.mac(made, project="p"))
    ring.check(signed, project="p")
    ring.check(decode_commit(signed.encode()), project="p")
    forged = [
        replace(signed, segments=(), doc_count=0),
        replace(signed, segments=(ref, other)),
        replace(signed, doc_count=2),
        replace(signed, version=8),
        replace(signed, purged=0, ttl_s=5),
        replace(signed, model_id="n"),
        replace(signed, index="call-43"),
        replace(signed, mac=None),
        replace(signed, mac="0" * 64),
    ]
    for commit_ in forged:
        with pytest.raises(CorruptDataError, match="was not made by a holder"):
            ring.check(commit_, project="p")
    with pytest.raises(CorruptDataError):
        ring.check(signed, project="q")
    with pytest.raises(EncryptionKeyError, match=ring.current.id):
        Keyring([new_key()]).check(signed, project="p")
    # What was never encrypted has nothing to check.
    ring.check(commit(SegmentRef("a" * 64, 100, 3, 0)), project="p")


def test_an_index_of_plain_commits_is_written_as_ever() -> None:
    """A commit that says nothing new is format 1, without the names of format 2; one that does is 2."""
    ref = SegmentRef("a" * 64, 100, 3, 0)
    plain = commit(ref)
    assert plain.format == 1
    assert not any(name in plain.encode() for name in (b"mac", b"ttl_s", b"purged", b"key_id"))
    for says_more in (
        commit(ref, ttl_s=60),
        commit(ref, purged=7),
        commit(ref, restored=3),
        commit(ref, mac="0" * 64),
        commit(SegmentRef("a" * 64, 100, 3, 0, "0" * 16)),
    ):
        assert says_more.format == 2
        assert decode_commit(says_more.encode()) == says_more
        assert b'"format":2' in says_more.encode()
    smuggled = commit(ref, ttl_s=60).encode().replace(b'"format":2', b'"format":1')
    with pytest.raises(CorruptDataError, match="does not know"):
        decode_commit(smuggled)
