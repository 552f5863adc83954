"""Formats and rules of the log: bytes decode to sound values or to our error, and the last writer wins."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moss_voice.cloud.log import (
    MAX_SEGMENTS,
    Commit,
    Segment,
    SegmentRef,
    check_name,
    compact,
    compaction_start,
    decode_commit,
    decode_segment,
    encode_segment,
    head_moved,
    needs_compaction,
    plan_push,
    resolve,
)
from moss_voice.errors import (
    ConflictError,
    CorruptDataError,
    FormatVersionError,
    InvalidArgumentError,
    ModelMismatchError,
)
from moss_voice.keywords import Postings
from moss_voice.types import OnConflict

GOLDEN = Path(__file__).parent / "golden"
NOW = datetime(2026, 11, 20, 23, 42, 37, 123456, tzinfo=UTC)
DIM = 3
# A machine that does other things too is no fault of the code.
unhurried = settings(deadline=None)


def segment(
    rows: Sequence[tuple[str, int]] = (),
    tombstones: dict[str, int] | None = None,
    *,
    text: str = "secret words",
    dim: int = DIM,
    seed: int = 0,
    analyzer: str = "en-1",
    model_id: str = "moss-minilm",
) -> Segment:
    """Make a segment of rows (id, written_at), with contents that differ from row to row."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((len(rows), dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    terms = [rng.integers(-9, 9, size=rng.integers(0, 5)) for _ in rows]
    lines = [
        json.dumps({"id": id_, "text": f"{text} {at} {seed}"}, ensure_ascii=False).encode()
        for id_, at in rows
    ]
    return Segment(
        model_id=model_id,
        analyzer=analyzer,
        ids=[id_ for id_, _ in rows],
        documents=lines,
        written_at=np.array([at for _, at in rows], np.int64),
        vectors=vectors,
        postings=Postings.of(terms),
        lengths=np.array([t.size for t in terms], np.int32),
        tombstones=tombstones or {},
    )


def arrays(one: Segment) -> list[np.ndarray[Any, Any]]:
    return [one.vectors, one.written_at, one.lengths, *one.postings]


def same(one: Segment, other: Segment) -> bool:
    """Tell whether two segments hold the same, bit by bit."""
    return (
        (one.model_id, one.analyzer) == (other.model_id, other.analyzer)
        and list(one.ids) == list(other.ids)
        and list(one.documents) == list(other.documents)
        and dict(one.tombstones) == dict(other.tombstones)
        and one.vectors.shape == other.vectors.shape
        and all(
            a.dtype == b.dtype and a.tobytes() == b.tobytes()
            for a, b in zip(arrays(one), arrays(other), strict=True)
        )
    )


def ref(name: str, rows: int = 1, tombstones: int = 0) -> SegmentRef:
    return SegmentRef(hashlib.sha256(name.encode()).hexdigest(), 100, rows, tombstones)


def commit(**changes: Any) -> Commit:
    fields: dict[str, Any] = {
        "index": "call-42",
        "index_id": "0a1b",
        "version": 7,
        "parent": 6,
        "changed": 7,
        "replaced": None,
        "model_id": "moss-minilm",
        "dim": 384,
        "analyzer": "en-1",
        "segments": (ref("a", 2), ref("b", 1, 1)),
        "doc_count": 2,
        "created_at": NOW - timedelta(days=1),
        "updated_at": NOW,
        "job_id": "job-1",
    }
    return Commit(**{**fields, **changes})


GOLDEN_SEGMENT = segment(
    [("turn-1", 1_795_218_157_000), ("turn-2", 1_795_218_157_001), ("Grüße \U0001f44b", 5)],
    {"turn-0": 1_795_218_157_002, "turn-2": 4},
)


# --- formats ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "encoded"),
    [
        ("segment-1.safetensors", lambda: encode_segment(GOLDEN_SEGMENT)),
        ("commit-1.json", lambda: commit().encode()),
    ],
)
def test_golden_bytes(name: str, encoded: Any) -> None:
    """What format 1 looked like on its first day is what it looks like for ever."""
    if os.environ.get("MOSS_VOICE_WRITE_GOLDEN"):
        (GOLDEN / name).write_bytes(encoded())
    assert (GOLDEN / name).read_bytes() == encoded()


def test_golden_bytes_decode() -> None:
    """Files of format 1 can be read, and hold what they held."""
    assert same(decode_segment((GOLDEN / "segment-1.safetensors").read_bytes()), GOLDEN_SEGMENT)
    assert decode_commit((GOLDEN / "commit-1.json").read_bytes()) == commit()


def test_cut_short() -> None:
    """A file that ends anywhere before its end is our error, at every length."""
    data = encode_segment(GOLDEN_SEGMENT)
    for length in range(len(data)):
        with pytest.raises(CorruptDataError):
            decode_segment(data[:length])
    with pytest.raises(CorruptDataError):
        decode_segment(data + b"\0")
    line = commit().encode()
    for length in range(len(line)):
        with pytest.raises(CorruptDataError):
            decode_commit(line[:length])


@unhurried
@given(
    flips=st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(1, 255)), min_size=1, max_size=4)
)
def test_flipped_bytes_of_a_segment(flips: list[tuple[int, int]]) -> None:
    """Damaged bytes are our error, which quotes no text, or decode to a segment that is sound."""
    data = bytearray(encode_segment(GOLDEN_SEGMENT))
    for at, mask in flips:
        data[at % len(data)] ^= mask
    try:
        decoded = decode_segment(data)
        len(list(decoded.documents)), resolve([decoded])
        encode_segment(decoded)
    except CorruptDataError as error:
        said = str(error)
    else:
        said = ""
    assert "secret" not in said


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text("a\u00e9", max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text("a\u00e9", max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


@settings(unhurried, max_examples=60)
@given(data=st.data())
def test_a_header_that_lies(data: st.DataObject) -> None:
    """Any JSON in any place of the header is our error, or leaves a sound segment."""
    encoded = encode_segment(GOLDEN_SEGMENT)
    size = int.from_bytes(encoded[:8], "little")
    header = json.loads(encoded[8 : 8 + size])
    name = data.draw(st.sampled_from(sorted(header)))
    if data.draw(st.booleans()):
        header[name] = data.draw(JSON)
    elif name != "__metadata__":
        part = data.draw(st.sampled_from(sorted(header[name])))
        small = st.lists(st.integers(-1, 300), min_size=1, max_size=2)
        header[name][part] = data.draw(JSON | small | st.sampled_from(["F32", "I64", "U8"]))
    else:
        header[name]["moss_voice"] = data.draw(JSON | JSON.map(json.dumps))
    packed = json.dumps(header).encode()
    packed += b" " * (-len(packed) % 8)
    try:
        decoded = decode_segment(len(packed).to_bytes(8, "little") + packed + encoded[8 + size :])
        encode_segment(decoded)
    except CorruptDataError:
        return


@unhurried
@given(data=st.data())
def test_a_commit_that_lies(data: st.DataObject) -> None:
    """Any JSON in any field of a commit is our error, or makes a commit that encodes again."""
    fields = json.loads(commit().encode())
    where = data.draw(st.sampled_from([fields, fields["segments"][0]]))
    name = data.draw(st.sampled_from([*sorted(where), "new"]))
    where[name] = data.draw(JSON | st.integers(-2, 9))
    try:
        decoded = decode_commit(json.dumps(fields).encode())
        assert decode_commit(decoded.encode()) == decoded
    except CorruptDataError:
        return


@unhurried
@given(noise=st.binary(max_size=64))
@example(noise=b"[" * 100_000)
@example(noise=b'{"format":' + b"9" * 5000 + b"}")
def test_noise(noise: bytes) -> None:
    """Bytes of any other origin are our error."""
    for decode in (decode_commit, decode_segment):
        with pytest.raises(CorruptDataError):
            decode(noise)
    header = noise + b" " * (-len(noise) % 8)
    with pytest.raises(CorruptDataError):
        decode_segment(len(header).to_bytes(8, "little") + header)


def test_a_newer_format_asks_for_an_upgrade() -> None:
    """What a later version wrote is told apart from damage, whatever else it holds."""
    with pytest.raises(FormatVersionError, match="upgrade"):
        decode_commit(b'{"format":3,"shards":[]}')
    newer = encode_segment(segment([("a", 1)])).replace(rb"\"format\":1", rb"\"format\":2")
    with pytest.raises(FormatVersionError, match="upgrade"):
        decode_segment(newer)


IDS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=4)


@unhurried
@given(
    rows=st.dictionaries(IDS, st.integers(0, 1 << 52), max_size=5),
    tombstones=st.dictionaries(IDS, st.integers(0, 1 << 52), max_size=3),
    dim=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_segment_round_trip(
    rows: dict[str, int], tombstones: dict[str, int], dim: int, seed: int
) -> None:
    """A segment comes back bit by bit, and the same segment always gives the same bytes."""
    made = segment(list(rows.items()), tombstones, dim=dim, seed=seed)
    data = encode_segment(made)
    back = decode_segment(data, model_id="moss-minilm", dim=dim)
    assert same(back, made)
    assert encode_segment(back) == data
    assert back.documents[-1:] == list(made.documents)[-1:]


@unhurried
@given(
    name=st.text(min_size=1, max_size=20),
    refs=st.lists(st.integers(0, 50), unique=True, max_size=4),
    zone=st.integers(-12, 12),
    deleted=st.booleans(),
)
def test_commit_round_trip(name: str, refs: list[int], zone: int, deleted: bool) -> None:
    """A commit comes back equal, and equal commits give equal bytes, whatever their time zone."""
    try:
        check_name(name)
    except InvalidArgumentError:
        name = "index"
    segments = () if deleted else tuple(ref(str(n), n) for n in refs)
    made = commit(index=name, segments=segments, doc_count=0, deleted=deleted)
    assert decode_commit(made.encode()) == made
    elsewhere = NOW.astimezone(timezone(timedelta(hours=zone)))
    assert replace(made, updated_at=elsewhere).encode() == made.encode()


def test_decoding_copies_no_vectors() -> None:
    """Arrays of a decoded segment are read-only views into the bytes given, aligned for numpy."""
    data = np.frombuffer(encode_segment(segment([("a", 1), ("b", 2)], dim=7)), np.uint8)
    decoded = decode_segment(memoryview(data.data))
    for array in (decoded.vectors, decoded.written_at, *decoded.postings):
        assert np.shares_memory(array, data)
        assert array.flags.aligned
        assert not array.flags.writeable


def test_another_model_is_refused() -> None:
    """A segment of another model or dimension than its commit names is damage."""
    data = encode_segment(segment([("a", 1)]))
    with pytest.raises(CorruptDataError, match="model"):
        decode_segment(data, model_id="custom")
    with pytest.raises(CorruptDataError, match="expected 384 numbers per vector, got 3"):
        decode_segment(data, dim=384)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ids": ["a", "a"]}, "ids repeat"),
        ({"ids": ["a", ""]}, "non-empty"),
        ({"ids": ["a"]}, "number"),
        ({"documents": [b"{}"]}, "document_offsets"),
        ({"written_at": np.array([1, -1])}, "negative"),
        ({"written_at": np.array([1.0, 2.0])}, "dtype"),
        ({"lengths": np.array([0, 99], np.int32)}, "counts do not add up"),
        ({"vectors": np.ones((2, 3), np.float32)}, "row 0"),
        ({"vectors": np.array([[1, 0, 0], [0, np.nan, 0]], np.float32)}, "row 1"),
        ({"vectors": np.array([[1, 0, 0], [0, np.inf, 0]], np.float32)}, "row 1"),
        ({"vectors": np.array([[1, 0, 0], [0, 3e38, 3e38]], np.float32)}, "row 1"),
        ({"vectors": np.zeros((2, 0), np.float32)}, "empty"),
        ({"tombstones": {"x": -1}}, "negative"),
    ],
)
def test_parts_that_disagree_are_not_encoded(change: dict[str, Any], message: str) -> None:
    """A segment that nobody could read back is refused before it is stored."""
    with pytest.raises(InvalidArgumentError, match=message):
        encode_segment(replace(segment([("a", 1), ("b", 2)]), **change))


def test_zero_vectors_are_kept() -> None:
    """A row of zeros (a custom embedding of nothing) is not taken for damage."""
    zeros = replace(segment([("a", 1)]), vectors=np.zeros((1, 3), np.float32))
    assert same(decode_segment(encode_segment(zeros)), zeros)


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0, "parent": 0},
        {"parent": 7},
        {"changed": 8},
        {"changed": 0},
        {"doc_count": 4},
        {"deleted": True},
        {"segments": (ref("a"), ref("a"))},
        {"index": " "},
        {"index": "a\nb"},
        {"dim": 0},
        {"segments": (ref("a"), "b")},
        {"created_at": datetime(2026, 1, 1)},  # noqa: DTZ001
    ],
)
def test_a_commit_that_cannot_be_is_not_made(change: dict[str, Any]) -> None:
    """What a reader would refuse cannot be built either."""
    with pytest.raises(pydantic.ValidationError):
        commit(**change)


@pytest.mark.parametrize("name", ["a/b", "..", "Ünï", "50% off", "~x", " con ", "x" * 200])
def test_names_that_are_fine(name: str) -> None:
    """An index may be called nearly anything."""
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", " ", "\t", "a\0b", "a\nb", "a\x7f", "a\x85", "\ud800", "x" * 201]
)
def test_names_that_are_not(name: str) -> None:
    """Blank names, long ones, and ones with control characters are refused."""
    with pytest.raises(InvalidArgumentError, match="index name"):
        check_name(name)


# --- what the segments make ------------------------------------------------------------------------


def contents(segments: Sequence[Segment]) -> list[tuple[str, int, bytes]]:
    """Return (id, written_at, line) of the live documents, in their order."""
    live, ordinals, _, doc_count = resolve(segments)
    found = [
        (int(ordinals[n][row]), s.ids[row], int(s.written_at[row]), s.documents[row])
        for n, s in enumerate(segments)
        for row in np.flatnonzero(live[n]).tolist()
    ]
    assert len(found) == doc_count == len({id_ for _, id_, _, _ in found})
    assert len({ordinal for ordinal, *_ in found}) == len(found)
    return [(id_, at, line) for _, id_, at, line in sorted(found)]


OPERATIONS = st.lists(
    st.tuples(st.sampled_from(["put", "put", "delete", "push"]), st.integers(0, 6)), max_size=40
)


def replay(operations: list[tuple[str, int]]) -> tuple[dict[str, int], list[Segment]]:
    """Apply operations to a plain dict, and push what changed where `push` comes."""
    docs: dict[str, int] = {}
    segments: list[Segment] = []
    changed: set[str] = set()
    tombstones: dict[str, int] = {}
    for at, (what, number) in enumerate([*operations, ("push", 0)]):
        id_ = f"doc-{number}"
        if what == "put":
            docs[id_] = at
            changed.add(id_)
        elif what == "delete" and id_ in docs:
            del docs[id_]
            tombstones[id_] = at
        elif what == "push":
            rows = [(i, t) for i, t in docs.items() if i in changed]
            segments.append(segment(rows, tombstones, seed=at))
            changed, tombstones = set(), {}
    return docs, segments


@unhurried
@given(operations=OPERATIONS)
def test_one_writer_reads_back_its_dict(operations: list[tuple[str, int]]) -> None:
    """Pushes at any moments add up to the writer's own documents, in the dict's own order."""
    docs, segments = replay(operations)
    assert [(id_, at) for id_, at, _ in contents(segments)] == list(docs.items())


@unhurried
@given(operations=OPERATIONS, cut=st.integers(0, 9), drop=st.booleans())
def test_compaction_changes_nothing(
    operations: list[tuple[str, int]], cut: int, drop: bool
) -> None:
    """Joining the segments from any point on leaves documents, order, words and vectors as they were."""
    _, segments = replay(operations)
    start = 0 if drop else min(cut, len(segments) - 1)
    joined = compact(segments[start:], drop_tombstones_before=1000 if drop else None)
    assert contents([*segments[:start], decode_segment(encode_segment(joined))]) == contents(
        segments
    )
    assert not (drop and joined.tombstones)
    where = {
        (id_, int(at)): (s, row)
        for s in segments
        for row, (id_, at) in enumerate(zip(s.ids, s.written_at, strict=True))
    }
    for row, id_ in enumerate(joined.ids):
        s, old = where[id_, int(joined.written_at[row])]
        assert joined.vectors[row].tobytes() == s.vectors[old].tobytes()
        assert joined.lengths[row] == s.lengths[old]
        new, was = joined.postings.rows == row, s.postings.rows == old
        assert joined.postings.terms[new].tolist() == s.postings.terms[was].tolist()
        assert joined.postings.counts[new].tolist() == s.postings.counts[was].tolist()


ROWS = st.dictionaries(st.sampled_from("abcd"), st.integers(0, 5), max_size=4)


@unhurried
@given(parts=st.lists(st.tuples(ROWS, ROWS), max_size=5))
def test_last_writer_wins_against_an_oracle(
    parts: list[tuple[dict[str, int], dict[str, int]]],
) -> None:
    """With times that collide at will, resolve agrees with the rule spelt out naively."""
    segments = [segment(list(puts.items()), dels, seed=n) for n, (puts, dels) in enumerate(parts)]
    expected: list[tuple[int, str, int, int]] = []
    for id_ in "abcd":
        died = max((dels[id_] for _, dels in parts if id_ in dels), default=-1)
        puts = [
            (p[id_], n, sum(len(q) for q, _ in parts[:n]) + list(p).index(id_))
            for n, (p, _) in enumerate(parts)
            if id_ in p and p[id_] > died
        ]
        if puts:
            at, n, _ = max(puts)
            expected.append((puts[0][2], id_, at, n))
    got = contents(segments)
    assert [(id_, at) for id_, at, _ in got] == [(id_, at) for _, id_, at, _ in sorted(expected)]
    for (_, _, at, n), (_, _, line) in zip(sorted(expected), got, strict=True):
        assert line.decode().endswith(f'{at} {n}"}}')
    # Deletions do not care which segment they are in, so a late merge brings nothing back.
    _, _, tombstones, _ = resolve(segments)
    assert tombstones == resolve(segments[::-1]).tombstones
    ids = {id_ for id_, _, _ in got}
    assert ids == {id_ for id_, _, _ in contents(segments[::-1])}


def test_compaction_over_two_analyzers_forgets_the_words() -> None:
    """Postings that cannot be joined are left out, under no analyzer's name, rather than mixed."""
    joined = compact([segment([("a", 1)]), segment([("b", 2)], analyzer="en-2", seed=1)])
    assert joined.analyzer == ""
    assert joined.postings.terms.size == 0
    assert same(decode_segment(encode_segment(joined)), joined)


def test_compaction_refuses_to_mix_models() -> None:
    """Vectors of two models are never put into one matrix."""
    with pytest.raises(ModelMismatchError):
        compact([segment([("a", 1)]), segment([("b", 2)], model_id="custom")])


def test_compaction_keeps_up_without_writing_the_large_again() -> None:
    """Over many small pushes segments stay few, and a large first one is never written again."""
    sizes, written = [50_000], 0
    for _ in range(1000):
        sizes.append(3)
        made = commit(
            segments=tuple(ref(str(n), size) for n, size in enumerate(sizes)), doc_count=sum(sizes)
        )
        if needs_compaction(made):
            start = compaction_start(made)
            assert start < len(sizes) - 1
            sizes[start:] = [sum(sizes[start:])]
            written += sizes[-1]
        assert len(sizes) <= MAX_SEGMENTS
    assert sizes[0] == 50_000
    assert written < 3000 * 10


def test_dead_rows_are_swept_out() -> None:
    """Where most rows are dead all segments are joined, whatever their sizes."""
    made = commit(segments=(ref("a", 1000), ref("b", 1, 900)), doc_count=100)
    assert needs_compaction(made)
    assert compaction_start(made) == 0
    assert not needs_compaction(replace(made, doc_count=900))
    assert not needs_compaction(replace(made, segments=(), doc_count=0))


# --- the plan of a push ----------------------------------------------------------------------------


def plan(
    head: Commit | None, base: Commit | None, on_conflict: OnConflict = "merge", **changes: Any
) -> Commit:
    options: dict[str, Any] = {
        "index": "call-42",
        "base_version": base.version if base else 0,
        "base_segments": base.segments if base else (),
        "delta": ref("delta", 5),
        "doc_count": 5,
        "model_id": "moss-minilm",
        "dim": 384,
        "analyzer": "en-1",
        "job_id": "job-2",
        "index_id": "new",
        "now": NOW + timedelta(hours=1),
    }
    return plan_push(head, on_conflict=on_conflict, **{**options, **changes})


BASE = commit()
OTHERS = commit(version=8, parent=7, changed=8, segments=(*BASE.segments, ref("c", 4)), doc_count=6)
JOINED = commit(version=8, parent=7, changed=7, segments=(ref("ab", 2),))
GONE = commit(version=9, parent=8, changed=9, segments=(), doc_count=0, deleted=True)


@pytest.mark.parametrize(
    ("head", "base", "on_conflict", "segments", "replaced"),
    [
        (None, None, "error", (ref("delta", 5),), None),
        (BASE, BASE, "error", (*BASE.segments, ref("delta", 5)), None),
        (BASE, BASE, "replace", (*BASE.segments, ref("delta", 5)), None),
        (OTHERS, BASE, "merge", (*OTHERS.segments, ref("delta", 5)), None),
        (OTHERS, BASE, "replace", (*BASE.segments, ref("delta", 5)), 8),
        (OTHERS, None, "replace", (ref("delta", 5),), 8),
        (JOINED, BASE, "error", (*JOINED.segments, ref("delta", 5)), None),
        (JOINED, BASE, "replace", (*JOINED.segments, ref("delta", 5)), None),
        (GONE, None, "error", (ref("delta", 5),), None),
        (GONE, BASE, "merge", (ref("delta", 5),), None),
        (GONE, BASE, "replace", (*BASE.segments, ref("delta", 5)), 9),
    ],
)
def test_plan(
    head: Commit | None,
    base: Commit | None,
    on_conflict: OnConflict,
    segments: tuple[SegmentRef, ...],
    replaced: int | None,
) -> None:
    """A push builds on the head, on the base, or on nothing, as the conflict rule says."""
    made = plan(head, base, on_conflict)
    assert made.segments == segments
    assert made.replaced == replaced
    version = head.version if head else 0
    assert (made.version, made.parent, made.changed) == (version + 1, version, version + 1)
    known = head if head is not None and not head.deleted else None
    assert made.index_id == (known.index_id if known else "new")
    assert made.created_at == (known.created_at if known else made.updated_at)


@pytest.mark.parametrize(
    ("head", "base"),
    [
        (OTHERS, BASE),
        (OTHERS, None),
        (GONE, BASE),
        (None, BASE),
        (commit(version=1, parent=0, changed=1), BASE),
    ],
)
def test_error_on_conflict(head: Commit | None, base: Commit | None) -> None:
    """Under `error` a push fails where others pushed or deleted, and tells both versions."""
    assert head_moved(head, base.version if base else 0)
    with pytest.raises(ConflictError, match="merge") as caught:
        plan(head, base, "error")
    assert caught.value.base_version == (base.version if base else 0)
    assert caught.value.head_version == (head.version if head else 0)


def test_a_merge_counts_no_more_than_there_are() -> None:
    """A pusher's count that cannot be true of the merged segments never makes an impossible commit."""
    assert plan(GONE, BASE, "merge", doc_count=1000).doc_count == 5


def test_nothing_to_push_makes_no_commit() -> None:
    """Without a change, or with one that is there already, the head stands; a new index is made."""
    assert plan(BASE, BASE, delta=None) is BASE
    assert plan(OTHERS, BASE, delta=OTHERS.segments[-1]) is OTHERS
    assert plan(None, None, delta=None, doc_count=0).segments == ()


@pytest.mark.parametrize("on_conflict", ["replace", "merge", "error"])
def test_another_model_cannot_push(on_conflict: OnConflict) -> None:
    """An index stays with its model under every rule; once deleted it is free."""
    for other in ({"model_id": "custom"}, {"dim": 3}):
        with pytest.raises(ModelMismatchError, match="moss-minilm"):
            plan(BASE, BASE, on_conflict, **other)
        assert plan(GONE, None, on_conflict, **other).version == 10


def test_ordinals_ascend_where_nothing_is_updated() -> None:
    """The usual load, one segment after the other, needs no sorting."""
    parts = [segment([("a", 1), ("b", 2)]), segment([("c", 3)], seed=1)]
    ordinals = np.concatenate(resolve(parts).ordinals).tolist()
    assert all(one < two for one, two in pairwise(ordinals))


def test_compaction_drops_only_tombstones_that_are_old() -> None:
    """A deletion is remembered for as long as a late writer may still bring the document."""
    joined = compact([segment([("a", 1)], {"old": 9, "young": 10})], drop_tombstones_before=10)
    assert joined.tombstones == {"young": 10}
