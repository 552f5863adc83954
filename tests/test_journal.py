"""The journal of a call: what is acknowledged is read again, and nothing else."""

from __future__ import annotations

import os
import random
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice.call import journal as journal_module
from moss_voice.call.journal import (
    Delete,
    Header,
    Journal,
    Pushed,
    Put,
    Record,
    decode,
    encode_header,
    encode_record,
    find_journals,
)
from moss_voice.errors import (
    CorruptDataError,
    FormatVersionError,
    InvalidArgumentError,
    JournalError,
)

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden" / "journal-1.journal"

HEADER = Header("acme", "s3://bucket/moss", "call-42", "moss-minilm", 1_760_000_000_000)
RECORDS: list[Record] = [
    Put(
        {
            "id": "t1",
            "text": "hi, i'd like\nto change my booking \u2014 caf\u00e9 \ud800",
            "metadata": {"speaker": "caller", "turn": 1, "at_s": 3.25, "interrupted": False},
            "payload": {"nested": [None, 1.5]},
        },
        1_760_000_000_100,
    ),
    Put({"id": "t2", "text": ""}, 1_760_000_000_200, np.array([0.5, -1.0, 3e-8], np.float32)),
    Pushed(1, 467),
    Delete("t1", 1_760_000_000_300),
    Put({"id": "t2", "text": "again"}, 1_760_000_000_400),
]

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    # Lone surrogates too: they come out of careless JSON decoders, and must not stop a call.
    | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
times = st.integers(0, 2**62)
puts = st.builds(
    lambda doc, doc_id, at, vector: Put({**doc, "id": doc_id}, at, vector),
    st.dictionaries(st.text(), json_values, max_size=4),
    st.text(min_size=1),
    times,
    st.none()
    | st.lists(st.floats(width=32), max_size=8).map(lambda row: np.array(row, np.float32)),
)
records_drawn = st.lists(
    puts | st.builds(Delete, st.text(), times) | st.builds(Pushed, times, times), max_size=6
)


def plain(records: Iterable[Record]) -> list[Any]:
    """Turn records into values that `==` compares to the bit."""
    return [
        (dict(r.document), r.written_at_ms, None if r.embedding is None else r.embedding.tobytes())
        if isinstance(r, Put)
        else r
        for r in records
    ]


def lines(header: Header = HEADER, records: Iterable[Record] = RECORDS) -> list[bytes]:
    return [encode_header(header), *map(encode_record, records)]


def put(number: int, text: str = "hello") -> Put:
    return Put({"id": f"t{number}", "text": text}, number)


def abandoned(directory: Path, header: Header = HEADER, records: Iterable[Record] = ()) -> Path:
    with Journal.create(directory, header) as journal:
        for record in records:
            journal.append(record)
    return journal.path


# ---------------------------------------------------------------------------------------- format


def test_golden_file_reads_as_written_for_ever() -> None:
    """Journals of the first format give the same header and records in every later version."""
    contents = decode(GOLDEN.read_bytes())
    assert contents.header == HEADER
    assert plain(contents.records) == plain(RECORDS)
    assert plain(contents.unpushed) == plain(RECORDS[3:])
    assert (contents.damaged, contents.size) == (0, GOLDEN.stat().st_size)


def test_golden_bytes_are_what_is_written_today() -> None:
    """The format does not drift without a new version number."""
    assert b"".join(lines()) == GOLDEN.read_bytes()


@settings(deadline=None)
@given(records_drawn)
def test_what_is_written_is_read(records: list[Record]) -> None:
    """Any JSON document, id, time and embedding comes back bit for bit, one line each."""
    written = lines(records=records)
    assert all(line.count(b"\n") == 1 and line.isascii() for line in written)
    contents = decode(b"".join(written))
    assert plain(contents.records) == plain(records)
    assert contents.damaged == 0


def test_cut_at_every_byte_gives_whole_records_or_our_error() -> None:
    """A file cut anywhere gives exactly the records whose lines are whole; without header, an error."""
    data = b"".join(lines())
    ends = np.cumsum([len(line) for line in lines()]).tolist()
    for length in range(len(data) + 1):
        if length < ends[0]:
            with pytest.raises(CorruptDataError):
                decode(data[:length])
            continue
        contents = decode(data[:length])
        whole = sum(end <= length for end in ends) - 1
        assert plain(contents.records) == plain(RECORDS[:whole])
        assert (contents.damaged, contents.size) == (0, ends[whole])


def test_any_changed_byte_costs_one_record_at_most_and_is_told() -> None:
    """One byte changed never gives a record that was not written, and never costs a second line."""
    data = b"".join(lines())
    first = len(lines()[0])
    originals = [repr(value) for value in plain(RECORDS)]
    for place in range(len(data)):
        for change in (0x01, 0x20, 0xFF):
            damaged = bytearray(data)
            damaged[place] ^= change
            if place < first:
                with pytest.raises(CorruptDataError):
                    decode(bytes(damaged))
                continue
            contents = decode(bytes(damaged))
            read = [repr(value) for value in plain(contents.records)]
            assert set(read) <= set(originals)
            # A line end changed makes one line of two.
            assert len(read) >= len(RECORDS) - (2 if data[place : place + 1] == b"\n" else 1)
            assert contents.damaged >= 1 or contents.size < len(data)


@settings(deadline=None)
@given(st.binary(max_size=200), st.booleans())
def test_foreign_bytes_are_an_error_and_garbage_is_no_record(garbage: bytes, headed: bool) -> None:
    """Bytes that we did not write raise our error, or after a header count as damage."""
    if not headed:
        with pytest.raises(CorruptDataError):
            decode(garbage)
        return
    contents = decode(encode_header(HEADER) + garbage + b"\n" + encode_record(put(1)))
    assert plain(contents.records) == plain([put(1)])
    assert contents.damaged == garbage.count(b"\n") + 1


def test_newer_format_says_so() -> None:
    """A journal of a newer version is told from a damaged one, whatever its header looks like."""
    newer = b"moss-voice-journal 2 something else\n"
    with pytest.raises(FormatVersionError, match="format 2"):
        decode(newer)


@pytest.mark.parametrize(
    "line",
    [
        {"put": {"text": "no id"}, "at": 1},
        {"put": {"id": "a"}},
        {"put": {"id": "a"}, "at": 1, "embedding": "?"},
        {"put": {"id": "a"}, "at": 1, "embedding": "AAA="},
        {"put": {"id": "a"}, "at": 1, "embedding": None},
        {"delete": 3, "at": 1},
        {"pushed": "1", "position": 2},
        {"later": 1},
    ],
)
def test_a_record_of_another_shape_is_damage(line: dict[str, Any]) -> None:
    """A line with a right checksum that holds no record of this format is counted, not guessed at."""
    data = encode_header(HEADER) + journal_module._line(line, what="") + encode_record(put(2))
    contents = decode(data)
    assert plain(contents.records) == plain([put(2)])
    assert contents.damaged == 1


@pytest.mark.parametrize(
    "document",
    [
        {"text": "secret words"},
        {"id": "", "text": "secret words"},
        {"id": "a", "payload": {"secret words"}},
        {"id": "a", "payload": [float("nan")], "text": "secret words"},
    ],
)
def test_what_json_cannot_hold_is_refused_without_quoting_it(document: dict[str, Any]) -> None:
    """A document that would not come back as it was is refused, and its text stays out of the error."""
    with pytest.raises(InvalidArgumentError) as refused:
        encode_record(Put(document, 1))
    assert "secret" not in str(refused.value)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InvalidArgumentError):
        encode_record(Put({"id": "a", "payload": deep}, 1))


def test_only_a_row_is_an_embedding() -> None:
    """A matrix where a row belongs is refused."""
    with pytest.raises(InvalidArgumentError, match=r"\(1, 3\)"):
        encode_record(Put({"id": "a"}, 1, np.ones((1, 3), np.float32)))


# ----------------------------------------------------------------------------------------- files


def test_turns_said_during_a_push_are_not_covered_by_it(tmp_path: Path) -> None:
    """A push covers what was there when it took its copy, and nothing that came after."""
    with Journal.create(tmp_path, HEADER) as journal:
        journal.append(put(1))
        copied = journal.position
        journal.append(put(2))
        journal.append(Pushed(1, copied))
        journal.append(put(3))
    with Journal.open(journal.path)[0] as again:
        assert plain(decode(again.path.read_bytes()).unpushed) == plain([put(2), put(3)])
        again.append(Pushed(2, again.position))
        assert decode(again.path.read_bytes()).unpushed == ()


def test_opened_at_every_cut_it_can_be_appended_to(tmp_path: Path) -> None:
    """After a crash in mid-write the torn end is cut off, and the next record is read back whole."""
    data = b"".join(lines())
    path = tmp_path / "x.journal"
    for length in range(len(lines()[0]), len(data), 7):
        path.write_bytes(data[:length])
        journal, contents = Journal.open(path)
        with journal:
            assert journal.append(put(9)) == path.stat().st_size
        after = decode(path.read_bytes())
        assert plain(after.records) == plain([*contents.records, put(9)])
        assert after.damaged == 0


def test_a_full_disk_raises_and_leaves_the_journal_whole(tmp_path: Path) -> None:
    """A write that stops midway is an error without text, leaves no half record, and can be retried."""
    with Journal.create(tmp_path, HEADER) as journal:
        journal.append(put(1))
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (journal.position + 300, limits[1]))
        try:
            with pytest.raises(JournalError) as full:
                journal.append(put(2, "secret words " * 100))
            with pytest.raises(JournalError):
                Journal.create(tmp_path, Header("p" * 900, None, "i", "m", 1))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert isinstance(full.value, OSError)
        assert full.value.errno
        assert "secret" not in str(full.value)
        torn = journal.path.read_bytes()
        assert len(torn) > journal.position, "the test must reach a short write"
        assert plain(decode(torn).records) == plain([put(1)])
        # Shorter than the fragment, some of which is then left behind it.
        journal.append(put(3))
        assert plain(decode(journal.path.read_bytes()).records) == plain([put(1), put(3)])
        journal.append(put(4, "longer " * 100))
    _, contents = Journal.open(journal.path)
    assert plain(contents.records) == plain([put(1), put(3), put(4, "longer " * 100)])
    assert contents.damaged == 0


def test_a_directory_that_cannot_be_is_our_error(tmp_path: Path) -> None:
    """Where no journal can be kept, the caller hears it at the start of the call."""
    (tmp_path / "file").write_text("")
    with pytest.raises(JournalError):
        Journal.create(tmp_path / "file", HEADER)
    with pytest.raises(JournalError) as gone:
        Journal.open(tmp_path / "none.journal")
    assert gone.value.errno == 2


def test_only_the_owner_may_read(tmp_path: Path) -> None:
    """Files are 0600 and folders 0700 whatever the umask allows."""
    before = os.umask(0)
    try:
        path = abandoned(tmp_path / "journals", HEADER)
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o777) for p in path.parent.iterdir()} == {"0o600"}
    assert oct(path.parent.stat().st_mode & 0o777) == "0o700"
    assert oct(path.parent.parent.stat().st_mode & 0o777) == "0o700"


def test_a_call_id_used_again_keeps_the_abandoned_journal(tmp_path: Path) -> None:
    """A new call of the same id has a file of its own."""
    first = abandoned(tmp_path, HEADER, [put(1)])
    with Journal.create(tmp_path, HEADER) as second:
        second.append(put(2))
        assert plain(decode(first.read_bytes()).records) == plain([put(1)])
    assert {found.path for found in find_journals(tmp_path)} == {first, second.path}


def test_live_journals_are_nobody_elses(tmp_path: Path) -> None:
    """While a call lives its journal is not listed and cannot be opened; closed, it is both."""
    with Journal.create(tmp_path, HEADER) as journal:
        assert find_journals(tmp_path) == []
        with pytest.raises(JournalError, match="held"):
            Journal.open(journal.path)
    assert find_journals(tmp_path) == [(journal.path, HEADER)]
    with Journal.open(journal.path)[0]:
        assert find_journals(tmp_path) == []


def test_cleared_leaves_nothing(tmp_path: Path) -> None:
    """A cleared journal leaves no file, and clearing or closing it again does nothing."""
    journal = Journal.create(tmp_path, HEADER)
    journal.append(put(1))
    journal.clear()
    journal.clear()
    journal.close()
    assert list(journal.path.parent.iterdir()) == []
    with pytest.raises(JournalError, match="closed"):
        journal.append(put(2))
    with pytest.raises(JournalError, match="closed"):
        journal.sync()
    assert "closed" in repr(journal)


@pytest.mark.parametrize(
    "name",
    ["acme", "..", ".", "", "a/b", "A", "caf\u00e9 \u2603", "x" * 3000, "\ud800", "*", "a\0b"],
)
def test_any_project_and_call_id_is_one_file_below_the_directory(tmp_path: Path, name: str) -> None:
    """No id leaves the directory or fails to be found again, by its own project alone."""
    header = Header(name, None, name, "m", 1)
    path = abandoned(tmp_path / "j", header)
    abandoned(tmp_path / "j", Header(f"{name}-other", None, name, "m", 2))
    assert path.resolve().parent.parent == (tmp_path / "j").resolve()
    assert find_journals(tmp_path / "j", project=name) == [(path, header)]
    assert len(find_journals(tmp_path / "j")) == 2


def test_a_shared_folder_shows_each_project_its_own(tmp_path: Path) -> None:
    """Where a disk ignores case and two projects share a folder, the header decides whose it is."""
    path = abandoned(tmp_path, HEADER)
    other = encode_header(Header("ACME", None, "a", "m", 1))
    (path.parent / "other.journal").write_bytes(other)
    assert find_journals(tmp_path, project="acme") == [(path, HEADER)]


def test_found_oldest_first_and_bad_files_are_told(tmp_path: Path) -> None:
    """Journals come in the order they began; a file that is none of ours is listed and left alone."""
    newer = abandoned(tmp_path, Header("acme", None, "a", "m", 9))
    older = abandoned(tmp_path, Header("acme", None, "b", "m", 5))
    foreign = older.parent / "foreign.journal"
    foreign.write_bytes(b"something else")
    assert find_journals(tmp_path) == [
        (foreign, None),
        (older, Header("acme", None, "b", "m", 5)),
        (newer, Header("acme", None, "a", "m", 9)),
    ]
    with pytest.raises(CorruptDataError):
        Journal.open(foreign)
    assert foreign.read_bytes() == b"something else"
    assert find_journals(tmp_path / "none") == []
    assert find_journals(tmp_path, project="none") == []


def test_a_journal_that_was_never_born_is_swept_up(tmp_path: Path) -> None:
    """A kill during create(), which acknowledged nothing, leaves nothing to recover."""
    folder = tmp_path / "acme"
    folder.mkdir()
    header = lines()[0]
    for length in range(len(header)):
        (folder / f"{length}.journal").write_bytes(header[:length])
    assert find_journals(tmp_path) == []
    assert list(folder.iterdir()) == []


# ------------------------------------------------------------------------------ threads and death


def test_threads_share_one_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those who come while a flush runs share the next; nobody returns on a flush begun too early."""
    journal = Journal.create(tmp_path, HEADER)
    running, go_on = threading.Event(), threading.Event()
    flushed: list[int] = []
    real = journal_module._flush

    def flush(fd: int) -> None:
        reached = journal.position
        running.set()
        assert go_on.wait(30)
        real(fd)
        flushed.append(reached)

    monkeypatch.setattr(journal_module, "_flush", flush)
    faults: list[str] = []
    appended = threading.Barrier(9)

    def turn(number: int) -> None:
        position = journal.append(put(number))
        if number:
            appended.wait(30)
        journal.sync()
        if flushed[-1] < position:
            faults.append(f"turn {number}")

    threads = [threading.Thread(target=turn, args=(number,)) for number in range(9)]
    threads[0].start()
    assert running.wait(30)
    for thread in threads[1:]:
        thread.start()
    appended.wait(30)
    go_on.set()
    for thread in threads:
        thread.join(30)
    assert faults == []
    assert len(flushed) == 2
    journal.sync()
    assert len(flushed) == 2, "nothing new, nothing to flush"
    journal.close()


def test_threads_lose_nothing(tmp_path: Path) -> None:
    """Records of many threads are all whole, and in each thread's order."""
    journal = Journal.create(tmp_path, HEADER)

    def write(thread: int) -> None:
        for number in range(50):
            journal.append(put(thread * 1000 + number, "word " * (number % 7)))
            if number % 10 == 0:
                journal.sync()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    journal.close()
    contents = decode(journal.path.read_bytes())
    written = [r.written_at_ms for r in contents.records if isinstance(r, Put)]
    assert contents.damaged == 0
    for number in range(6):
        assert [at for at in written if at // 1000 == number] == [
            number * 1000 + n for n in range(50)
        ]


def test_a_failed_flush_is_never_forgotten(tmp_path: Path) -> None:
    """After one failed flush no later one claims that the lost bytes are safe; appending goes on."""
    journal = Journal.create(tmp_path, HEADER)
    journal.append(put(1))
    kept = os.dup(journal._fd)
    read_end, write_end = os.pipe()
    os.dup2(write_end, journal._fd)  # a pipe cannot be flushed: the system itself says no
    with pytest.raises(JournalError):
        journal.sync()
    os.dup2(kept, journal._fd)
    with pytest.raises(JournalError):
        journal.sync()
    journal.append(put(2))
    journal.close()
    for fd in (kept, read_end, write_end):
        os.close(fd)
    assert plain(decode(journal.path.read_bytes()).records) == plain([put(1), put(2)])


CHILD = """
import os, sys
from moss_voice.call.journal import Header, Journal, Put
journal = Journal.create(sys.argv[1], Header("acme", None, "call", "m", 1))
for number in range(1_000_000):
    journal.append(Put({"id": str(number), "text": "word " * (number % 400)}, number))
    os.write(1, b"%d\\n" % number)
    if number % 50 == 0:
        journal.sync()
"""


@pytest.mark.skipif(os.name == "nt", reason="kill -9 is of POSIX")
def test_every_acknowledged_turn_survives_kill_9(tmp_path: Path) -> None:
    """Killed at a random point, a call leaves every turn that it acknowledged, in order, and no other."""
    chance = random.Random(7)
    for round_number in range(4):
        directory = tmp_path / str(round_number)
        with subprocess.Popen(
            [sys.executable, "-c", CHILD, str(directory)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ) as child:
            assert child.stdout is not None
            output = bytearray()
            while len(output) < chance.choice([1, 100, 10_000, 50_000]):
                said = os.read(child.stdout.fileno(), 4096)
                assert said, "the call died by itself"
                output += said
            assert find_journals(directory) == [], "it is alive"
            child.send_signal(signal.SIGKILL)
            output += child.stdout.read()
        acknowledged = output.count(b"\n")
        [found] = find_journals(directory, project="acme")
        journal, contents = Journal.open(found.path)
        with journal:
            numbers = [r.written_at_ms for r in contents.unpushed if isinstance(r, Put)]
            assert acknowledged <= len(numbers) <= acknowledged + 1
            assert numbers == list(range(len(numbers)))
            assert contents.damaged == 0
