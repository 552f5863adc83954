"""Nothing that a reader could stumble over is stored: thousands of damaged segments and commits."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from moss_voice.cloud.log import (
    Commit,
    Head,
    SegmentRef,
    decode_commit,
    decode_segment,
    encode_segment,
)
from moss_voice.cloud.objects import Objects, open_objects
from moss_voice.cloud.sealing import MAGIC, is_sealed
from moss_voice.cloud.store import ObjectLog
from moss_voice.errors import (
    CorruptDataError,
    InvalidArgumentError,
    ModelMismatchError,
    MossError,
    TooLargeError,
)
from moss_voice.index import decode_document, encode_document
from moss_voice.server import checks
from moss_voice.server.quota import Quota
from moss_voice.server.refusals import Refusal
from moss_voice.server.settings import Limits, Settings
from tests.server_process import Server, serve, serve_here
from tests.server_samples import DIM, MODEL, Door, Made, code, commit, document, made, segment

LIMITS = Limits()
NOW = datetime(2026, 11, 20, tzinfo=UTC)
# The rate of requests is not what is tried here.
NO_RATE = ("--requests-per-s", "0", "--log-level", "warning")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("store"), *NO_RATE) as running:
        yield running


@pytest.fixture
def door(server: Server) -> Iterator[Door]:
    project, key = server.project()
    door = Door(server.url, project, key)
    yield door
    door.close()


def stored(server: Server, project: str) -> set[str]:
    """Return the names of what is stored of a project, but for its keys."""
    root = Path(server.store) / project
    found = {path for path in root.rglob("*") if path.is_file()}
    return {path.name for path in found if "~keys" not in path.parts}


# --- an oracle: what a reader does with a segment --------------------------------------------------


def readable(data: bytes) -> bool:
    """Tell whether a reader could use all of a segment, and write every document of it again."""
    if is_sealed(data):
        return len(data) > 72
    try:
        found = decode_segment(data)
        assert found.ids or found.tombstones
        for id_, line in zip(found.ids, found.documents, strict=True):
            stored_ = decode_document(line)
            assert stored_.id == id_
            assert isinstance(stored_.text, str)
            flat = {} if stored_.metadata is None else stored_.metadata
            assert isinstance(flat, dict)
            assert all(type(value) in (str, int, float, bool) for value in flat.values())
            encode_document(*stored_)
    except (MossError, AssertionError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return True


def test_the_oracle_takes_what_clients_send() -> None:
    """Sound segments are readable: so what the fuzzing below finds is not the oracle's own fault."""
    for sound in (made("a"), made("a", "b", tombstones={"c": 1}), made(tombstones={"c": 1})):
        assert readable(sound.data)
    assert not readable(made("a", lines=[document("b")]).data)


# --- damage ----------------------------------------------------------------------------------------

Damage = Callable[[random.Random, bytes], bytes]


def flip(rng: random.Random, data: bytes) -> bytes:
    """Change some bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    """Leave out the end."""
    return data[: rng.randrange(len(data))]


def splice(rng: random.Random, data: bytes) -> bytes:
    """Leave out, repeat or exchange a piece in the middle."""
    a, b = sorted(rng.randrange(len(data)) for _ in range(2))
    return rng.choice((data[:a] + data[b:], data[:b] + data[a:], data[b:] + data[:b]))


def stuff(rng: random.Random, data: bytes) -> bytes:
    """Put bytes in."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 8, 300))) + data[at:]


def header(rng: random.Random, data: bytes) -> bytes:
    """Change a value in the header."""
    size = struct.unpack("<Q", data[:8])[0]
    parsed = json.loads(data[8 : 8 + size])
    name = rng.choice(sorted(parsed))
    entry = parsed[name]
    junk: Any = rng.choice(
        (None, -1, 0, 1, 2**53, 1e300, "F64", "U8", [], [0], [2**62, 2**63], {}, "\ud800")
    )
    if rng.random() < 0.2:
        del parsed[name]
    elif name == "__metadata__":
        about = json.loads(entry["moss_voice"])
        about[rng.choice(("format", "model_id", "analyzer"))] = junk
        entry["moss_voice"] = json.dumps(about)
    else:
        entry[rng.choice(sorted(entry))] = junk
    packed = json.dumps(parsed).encode()
    packed += b" " * (-len(packed) % 8)
    return struct.pack("<Q", len(packed)) + packed + data[8 + size :]


def tensor(rng: random.Random, data: bytes) -> bytes:
    """Change numbers of one tensor, leaving the file whole."""
    arrays = {name: array.copy() for name, array in safetensors.numpy.load(data).items()}
    name = rng.choice(sorted(arrays))
    array = arrays[name].reshape(-1)
    if array.size:
        junk: list[Any] = [0, 1, 2, 127]
        if array.dtype.kind == "f":
            junk = [np.nan, np.inf, -np.inf, 0.0, 2.0, 1e38]
        if array.dtype.kind == "i":
            junk = [0, -1, 1, np.iinfo(array.dtype).max, np.iinfo(array.dtype).min]
        array[rng.randrange(array.size)] = rng.choice(junk)
    size = struct.unpack("<Q", data[:8])[0]
    about = json.loads(data[8 : 8 + size])["__metadata__"]
    return safetensors.numpy.save(arrays, metadata=about)


LINES = (
    b"",
    b"null",
    b"[]",
    b"{}",
    b'{"id":"a"}',
    b'{"text":"t"}',
    b'{"id":"a","text":null}',
    b'{"id":"a","text":"t","metadata":[]}',
    b'{"id":"a","text":"t","metadata":{"k":null}}',
    b'{"id":"a","text":"t","metadata":{"k":{}}}',
    b'{"id":"a","text":"t","metadata":{"k":NaN}}',
    b'{"id":"a","text":"t","metadata":{"k":1e999}}',
    b'{"id":"a","text":"t","payload":-Infinity}',
    b'{"id":"a","text":"t","more":1}',
    b'{"id":"b","text":"t"}',
    b'{"id":"a","text":"t"} ',
    b'{"id":"a","text":"t"}x',
    b'{"id":"a","text":"\\ud800"}',
    b'{"id":"a","text":"t","payload":["\\udfff"]}',
    b'{"id":"a","text":"\xff"}',
    b'\xef\xbb\xbf{"id":"a","text":"t"}',
    b'{"id":"a","text":"t","payload":' + b"[" * 3000 + b"]" * 3000 + b"}",
    b'{"id":"a","text":"t","payload":' + b"9" * 5000 + b"}",
    '{"id":"a","text":"t"}'.encode("utf-16"),
    b'__import__("os").system("true")',
    b"\x80\x04\x95",
)


def line(rng: random.Random, data: bytes) -> bytes:
    """Put another line in a document's place."""
    sound = decode_segment(data)
    lines = list(sound.documents)
    if not lines:
        return flip(rng, data)
    lines[rng.randrange(len(lines))] = rng.choice((*LINES, *lines))
    return encode_segment(replace(sound, documents=lines))


DAMAGES: tuple[Damage, ...] = (flip, cut, splice, stuff, header, tensor, line)


@pytest.mark.slow
def test_no_damaged_segment_is_stored(server: Server, door: Door) -> None:
    """Of thousands of damaged segments none is a fault of the server; stored is what can be read, alone."""
    rng = random.Random(20261120)
    samples = [
        made("a", "b", "c").data,
        made("a", tombstones={"x": 1, "y": 2}).data,
        made(tombstones={"x": 5}).data,
        made("a", lines=[document("a", "x" * 3000, metadata={"k": 1.5}, payload=[1])]).data,
    ]
    taken: set[str] = set()
    refused = 0
    for number in range(2100):
        damage = DAMAGES[number % len(DAMAGES)]
        data = damage(rng, rng.choice(samples))
        sha256 = hashlib.sha256(data).hexdigest()
        answer = door.http.put(door.path("call", f"/segments/{sha256}"), content=data)
        if answer.status_code in (200, 201):
            assert readable(data), (number, damage.__name__)
            taken.add(sha256)
        else:
            assert answer.status_code in (400, 413), (number, damage.__name__, answer.text)
            assert code(answer) in {"corrupt_data", "format_version", "too_large"}
            refused += 1
    assert stored(server, door.project) == taken
    assert refused > 1400


def test_every_odd_line_is_refused(server: Server, door: Door) -> None:
    """Each line that is no document of its row is a 400, and nothing is stored."""
    for odd in LINES:
        sent = made("a", lines=[odd])
        answer = door.put_segment("call", sent)
        if odd == b'{"id":"a","text":"t"} ':  # the one that is only odd
            assert answer.status_code == 201
            continue
        assert answer.status_code in (400, 413), odd
        assert code(answer) in {"corrupt_data", "too_large"}
    assert len(stored(server, door.project)) == 1


def test_bytes_under_another_hash_are_refused(server: Server, door: Door) -> None:
    """Sound bytes under a name that is not their hash are a 400, also when they were taken before."""
    one, other = made("a"), made("b")
    door.put_segment("call", one)
    before = stored(server, door.project)
    path = door.path("call", f"/segments/{other.ref.sha256}")
    for content in (one.data, b"", other.data + b"x", other.data[:-1]):
        answer = door.http.put(path, content=content)
        assert (answer.status_code, code(answer)) == (400, "corrupt_data")
    assert stored(server, door.project) == before


JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, 3, -1, 2**53, 2**70, 1.5, "", "x", "1", "0" * 64, "\x00", "x" * 600,
    [], [1], [[]], {}, {"a": 1}, "2026-11-20", "2026-11-20T00:00:00Z", "9999-12-31T23:59:59Z",
)  # fmt: skip


@pytest.mark.slow
def test_no_damaged_commit_is_stored(server: Server, door: Door) -> None:
    """Of thousands of damaged commits none is a fault of the server; what is stored is on its number and sound."""
    rng = random.Random(20261121)
    sent, more = made("a", "b"), made("c")
    for one in (sent, more):
        door.put_segment("call", one)
    base = commit("call", sent.ref)
    assert door.put_commit(base).status_code == 201
    head = base
    names = [field.name for field in fields(Commit)]
    refused = 0
    for number in range(1600):
        good = json.loads(commit("call", more.ref, on=head).encode())
        kind = number % 4
        if kind == 0:
            good[rng.choice(names)] = rng.choice(JUNK)
        elif kind == 1:
            del good[rng.choice(sorted(good))]
        elif kind == 2:
            refs = good["segments"]
            refs[rng.randrange(len(refs))][
                rng.choice(("sha256", "size_bytes", "rows", "tombstones", "key_id", "x"))
            ] = rng.choice(JUNK)
        content = json.dumps(good).encode()
        if kind == 3:
            content = rng.choice((flip, cut, splice, stuff))(rng, content)
        version = head.version + 1
        answer = door.http.put(door.path("call", f"/commits/{version}"), content=content)
        if answer.status_code == 201:
            new = decode_commit(content)
            assert (new.version, new.parent, new.index) == (version, head.version, "call")
            assert set(new.segments) <= {sent.ref, more.ref}
            assert (new.model_id, new.dim, new.deleted) == (MODEL, DIM, False)
            # From here on again, as somebody who purged or emptied it would not.
            head = new
            restored = commit("call", sent.ref, on=replace(new, segments=(), doc_count=0))
            assert door.put_commit(replace(restored, purged=new.purged)).status_code == 201
            head = replace(restored, purged=new.purged)
        else:
            assert answer.status_code in (400, 409, 413), (number, answer.text)
            code(answer)
            refused += 1
    assert refused > 1000
    versions = {name for name in stored(server, door.project) if name.endswith(".json")}
    assert versions == {f"{n:012d}.json" for n in range(1, head.version + 1)}
    assert door.http.get(door.path("call", "/head")).json()["newest"] == head.version


# --- the checks alone ------------------------------------------------------------------------------


def test_facts_are_what_a_segment_holds() -> None:
    """What is told of a segment is what a decoder finds in it; of a sealed one its envelope alone."""
    sent = made("a", "b", tombstones={"c": 1})
    facts = checks.check_segment(sent.data, LIMITS)
    assert facts == checks.Facts(len(sent.data), 2, 1, MODEL, DIM, None)
    assert checks.check_segment(memoryview(sent.data), LIMITS) == facts
    sealed = MAGIC + bytes(range(8)) + bytes(100)
    found = checks.check_segment(sealed, LIMITS)
    assert found == checks.Facts(len(sealed), None, None, None, None, "0001020304050607")
    for cut_at in range(len(MAGIC), 72):
        with pytest.raises(CorruptDataError):
            checks.check_segment(sealed[:cut_at], LIMITS)


@pytest.mark.parametrize(
    "odd",
    [
        made("a", at=10**15).data,
        made("a", tombstones={"b": 10**15}).data,
        made("a", model_id="").data,
        made("a", model_id="m" * 501).data,
        made().data,
    ],
    ids=["written late", "deleted late", "no model", "a long model", "nothing"],
)
def test_a_segment_that_a_commit_could_not_name_is_refused(odd: bytes) -> None:
    """Times that nobody could count on from, and names that no commit may hold, are refused."""
    with pytest.raises(CorruptDataError):
        checks.check_segment(odd, LIMITS)


def test_limits_hold_to_the_byte() -> None:
    """A text, an id, metadata and a line of exactly the limit pass, and one byte more does not."""
    small = Limits(max_text_bytes=10, max_id_bytes=10, max_metadata_bytes=10, max_document_bytes=80)

    def check(id_: str, **more: Any) -> None:
        line = encode_document(id_, more.get("text", ""), more.get("metadata"), more.get("payload"))
        checks.check_document(line, id_, small, where="row 0")

    empty = len(encode_document("a", "", None, "")) - 0
    for good, bad in (
        ({"text": "x" * 10}, {"text": "x" * 11}),
        ({"text": "\u00e9" * 5}, {"text": "\u00e9" * 5 + "x"}),
        ({"metadata": {"k": "x" * 9}}, {"metadata": {"k": "x" * 10}}),
        ({"metadata": {"kk": 12345678}}, {"metadata": {"kk": 123456789}}),
        ({"payload": "x" * (80 - empty)}, {"payload": "x" * (81 - empty)}),
    ):
        check("a", **good)
        with pytest.raises(TooLargeError):
            check("a", **bad)
    check("x" * 10)
    with pytest.raises(TooLargeError):
        check("x" * 11)


def test_nesting_is_counted_outside_of_strings() -> None:
    """Brackets in a text are no levels; 64 levels pass and 65 do not."""
    text = "[{" * 500 + '\\"' + "]" * 7
    checks.check_document(document("a", text), "a", LIMITS, where="row")
    for levels, passes in ((63, True), (64, False)):  # one more is the document itself
        payload = json.loads("[" * levels + "]" * levels)
        line = document("a", "[" * 100, payload=payload)
        if passes:
            checks.check_document(line, "a", LIMITS, where="row")
        else:
            with pytest.raises(TooLargeError):
                checks.check_document(line, "a", LIMITS, where="row")


_values = st.text() | st.integers(-(2**63), 2**63) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)  # fmt: skip
_json = st.recursive(
    st.none() | _values,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    id_=st.text(min_size=1),
    text=st.text(),
    metadata=st.none() | st.dictionaries(st.text(), _values, max_size=4),
    payload=_json,
)
def test_whatever_a_client_writes_passes(
    id_: str, text: str, metadata: dict[str, Any] | None, payload: Any
) -> None:
    """Every document that a session can store is one that a server takes."""
    try:
        line = encode_document(id_, text, metadata, payload)
    except InvalidArgumentError:
        return  # no valid Unicode: a session refuses it as well
    checks.check_document(line, id_, LIMITS, where="row")


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200) | st.sampled_from(LINES) | _json.map(lambda v: json.dumps(v).encode())
)
def test_whatever_is_no_document_is_told_as_such(odd: bytes) -> None:
    """Checking a line passes or raises our error; what passes can be read and written again."""
    try:
        checks.check_document(odd, "a", LIMITS, where="row")
    except (CorruptDataError, TooLargeError):
        return
    encode_document(*decode_document(odd))


def test_a_commit_is_checked_against_its_place_and_the_clock() -> None:
    """Index, version, deletion, number of segments and times are looked at, each by itself."""
    good = commit("call", made("a").ref, created_at=NOW, updated_at=NOW)

    def check(new: Commit, **other: Any) -> None:
        checks.check_commit(
            new,
            **{
                "index": "call",
                "version": 1,
                "limits": LIMITS,
                "now": NOW,
                "max_ahead_s": 60,
                **other,
            },
        )

    check(good)
    check(replace(good, updated_at=NOW + timedelta(seconds=60)))
    for new, other in (
        (good, {"index": "other"}),
        (good, {"version": 2}),
        (good, {"limits": Limits(max_commit_segments=1)}),
        (replace(good, deleted=True, segments=(), doc_count=0), {}),
        (replace(good, updated_at=NOW + timedelta(seconds=61)), {}),
        (replace(good, created_at=NOW + timedelta(seconds=61)), {}),
    ):
        if other.get("limits"):
            check(new, **other)
            two = replace(new, segments=(*new.segments, made("b").ref))
            with pytest.raises(TooLargeError):
                check(two, **other)
            continue
        with pytest.raises(InvalidArgumentError):
            check(new, **other)


def test_a_successor_fits_on_the_head() -> None:
    """A new index may be anything; of one that is there the model, the id and what is purged stay."""
    first = commit("call", made("a").ref)
    next_ = commit("call", on=first)
    checks.check_successor(first, Head(None, 0))
    checks.check_successor(next_, Head(first, 1))
    gone = replace(first, deleted=True, segments=(), doc_count=0)
    checks.check_successor(replace(next_, model_id="other", index_id="new"), Head(gone, 1))
    for wrong, expected in (
        (replace(next_, model_id="other"), ModelMismatchError),
        (replace(next_, dim=9), ModelMismatchError),
        (replace(next_, index_id="other"), InvalidArgumentError),
    ):
        with pytest.raises(expected):
            checks.check_successor(wrong, Head(first, 1))
    purged = replace(first, purged=1)
    with pytest.raises(InvalidArgumentError):
        checks.check_successor(next_, Head(purged, 1))
    with pytest.raises(InvalidArgumentError):
        checks.check_successor(next_, Head(replace(gone, purged=1), 1))


def test_a_reference_tells_the_truth() -> None:
    """Every word of a reference is compared; of a sealed segment those that can be seen."""
    sent: Made = made("a", tombstones={"b": 1})
    facts = checks.check_segment(sent.data, LIMITS)
    new = commit("call", sent.ref)
    checks.check_reference(sent.ref, facts, new)
    for lie in (
        replace(sent.ref, size_bytes=1),
        replace(sent.ref, rows=2),
        replace(sent.ref, tombstones=0),
        replace(sent.ref, key_id="0" * 16),
    ):
        with pytest.raises(InvalidArgumentError, match="is not what the segment holds"):
            checks.check_reference(lie, facts, new)
    with pytest.raises(ModelMismatchError):
        checks.check_reference(sent.ref, facts, replace(new, model_id="other"))
    sealed = checks.Facts(100, None, None, None, None, "0" * 16)
    ref = SegmentRef("0" * 64, 100, 7, 3, "0" * 16)
    checks.check_reference(ref, sealed, new)
    with pytest.raises(InvalidArgumentError):
        checks.check_reference(replace(ref, key_id="1" * 16), sealed, new)


def test_a_commit_that_is_none_is_told_without_its_words() -> None:
    """The message names our fields and never what was sent, key or value."""
    good = json.loads(commit("call", made("a").ref).encode())
    secret = "xyzzy"
    for wrong in (
        {**good, secret: secret},
        {**good, "dim": secret},
        {**good, "segments": [{secret: secret}]},
        {secret: secret},
        secret,
    ):
        with pytest.raises(CorruptDataError) as caught:
            checks.decode(json.dumps(wrong).encode())
        assert secret not in str(caught.value)
    assert "dim" in _message({**good, "dim": "x"})


def _message(wrong: dict[str, Any]) -> str:
    with pytest.raises(CorruptDataError) as caught:
        checks.decode(json.dumps(wrong).encode())
    return str(caught.value)


def test_large_segments_go_through_a_file(server: Server, door: Door) -> None:
    """A segment too large for memory comes back as it was sent, and the server does not keep it."""
    rows = 6000
    ids = [f"d{n}" for n in range(rows)]
    whole = segment(*ids, dim=384)
    data = encode_segment(whole)
    assert len(data) > 9 << 20
    ref = SegmentRef.of(data, rows=rows, tombstones=0)
    path = door.path("large", f"/segments/{ref.sha256}")
    assert door.http.put(path, content=data).status_code == 201
    assert door.put_commit(commit("large", ref, dim=384)).status_code == 201
    assert door.http.get(path).content == data
    lie = door.http.put(door.path("large", f"/segments/{'0' * 64}"), content=data)
    assert (lie.status_code, code(lie)) == (400, "corrupt_data")
    page = door.http.get(door.path("large", "/documents?offset=5990&limit=100")).json()
    assert [doc["id"] for doc in page["documents"]] == ids[5990:]
    before = _resident_bytes(server)
    for at in range(2000, 2012):
        again = encode_segment(replace(whole, written_at=np.full(rows, at, np.int64)))
        path = door.path("large", f"/segments/{hashlib.sha256(again).hexdigest()}")
        assert door.http.put(path, content=again).status_code == 201
        assert door.http.get(path).content == again
    assert _resident_bytes(server) - before < 4 * len(data), "it keeps what it was sent"


def _resident_bytes(server: Server) -> float:
    for line in httpx.get(f"{server.url}/metrics").text.splitlines():
        if line.startswith("process_resident_memory_bytes "):
            return float(line.rpartition(" ")[2])
    raise LookupError


def test_a_disk_that_is_full_is_a_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no room for a large segment it is refused for now, and what is small still goes."""
    log = ObjectLog(open_objects(tmp_path / "store"))
    key = asyncio.run(log.keys.create("p")).key
    with serve_here(log, Settings()) as (url, _):
        door = Door(url, "p", key)
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        answer = door.http.put(door.path("i", f"/segments/{'0' * 64}"), content=bytes(4 << 20))
        assert (answer.status_code, code(answer)) == (503, "cloud_unavailable")
        assert "nowhere" not in answer.text
        assert int(answer.headers["retry-after"]) >= 1
        assert door.put_segment("i", made("a")).status_code == 201
        door.close()


class Counted(ObjectLog):
    """A log that has so many indexes, and counts how often it is asked for them."""

    def __init__(self, folders: int, alive: int) -> None:
        super().__init__(Objects(MemoryStore(), name="memory://test"))
        self.asked = {"folders": 0, "heads": 0}
        self.alive = alive

        class Folders(Objects):
            async def folders(self, folder: str) -> list[str]:
                asked["folders"] += 1
                return [f"{folder}/i{n}" for n in range(n_folders)] + [f"{folder}/~keys"]

        asked, n_folders = self.asked, folders
        self.objects = Folders(MemoryStore(), name="memory://test")

    async def heads(self, project: str) -> list[Commit]:
        self.asked["heads"] += 1
        return [commit(f"i{n}") for n in range(self.alive)]


async def test_indexes_are_counted_now_and_then() -> None:
    """A push costs no count: projects are counted once a minute, exactly only where they near the limit."""
    now = 0.0
    log = Counted(folders=7, alive=4)
    quota = Quota(log, most=10, clock=lambda: now)
    for n in range(3):
        await quota.admit("p", f"new{n}")
        await quota.admit("p", f"new{n}")
    assert log.asked == {"folders": 1, "heads": 0}
    for _ in range(3):
        with pytest.raises(Refusal) as refused:
            await quota.admit("p", "one more")
        assert (refused.value.status, refused.value.code) == (429, "too_large")
    await quota.admit("p", "new0")
    assert log.asked == {"folders": 1, "heads": 0}
    # Deleted ones leave folders behind; what is alive counts.
    now = 61.0
    log = Counted(folders=50, alive=9)
    quota = Quota(log, most=10, clock=lambda: now)
    await quota.admit("p", "tenth")
    with pytest.raises(Refusal):
        await quota.admit("p", "eleventh")
    assert log.asked == {"folders": 1, "heads": 1}
    quota.forget("p", "tenth")
    await quota.admit("p", "eleventh")
    assert log.asked == {"folders": 2, "heads": 2}
