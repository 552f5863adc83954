"""The cache: what it returns is what was put, or nothing; it stays small, and never gets in the way."""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import pytest

from moss_voice.cloud.cache import SegmentCache
from moss_voice.cloud.log import SegmentRef
from moss_voice.errors import CorruptDataError

ROOT = Path(__file__).parents[1]


def content(number: int, size: int = 1000) -> tuple[SegmentRef, bytes]:
    data = hashlib.sha256(str(number).encode()).digest() * (size // 32 + 1)
    data = data[:size]
    return SegmentRef.of(data, rows=1, tombstones=0), data


def got(cache: SegmentCache, ref: SegmentRef) -> bytes | None:
    data = cache.get(ref)
    return None if data is None else bytes(data)


def put_bytes(data: bytes, path: Path) -> None:
    path.write_bytes(data)


@pytest.fixture
def cache(tmp_path: Path) -> SegmentCache:
    return SegmentCache(tmp_path / "cache")


def segment_file(cache: SegmentCache, ref: SegmentRef) -> Path:
    return cache.directory / "segments" / ref.sha256


def graph_file(cache: SegmentCache) -> Path:
    (path,) = (cache.directory / "graphs").iterdir()
    return path


def test_what_is_put_is_got(cache: SegmentCache) -> None:
    """A segment comes back, read-only, in this process and the next; another is not there."""
    ref, data = content(1)
    assert got(cache, ref) is None
    assert not cache.directory.exists()
    cache.put(ref, data)
    cache.put(ref, memoryview(data))
    for door in (cache, cache, SegmentCache(cache.directory)):
        mapped = door.get(ref)
        assert mapped is not None
        assert mapped.readonly
        assert bytes(mapped) == data
    assert got(cache, content(2)[0]) is None
    assert cache.directory.stat().st_mode & 0o077 == 0
    assert [path.name for path in (cache.directory / "segments").iterdir()] == [ref.sha256]


@pytest.mark.parametrize("damage", ["flipped", "cut", "longer", "empty"])
@pytest.mark.parametrize("seen", [False, True])
def test_a_damaged_segment_is_dropped(
    cache: SegmentCache, damage: str, seen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A file with other bytes is never returned, whether it was good before or not; it can be put anew."""
    ref, data = content(1)
    cache.put(ref, data)
    if seen:
        assert got(cache, ref) == data
    path = segment_file(cache, ref)
    bad = {"flipped": b"x" + data[1:], "cut": data[:-1], "longer": data + b"x", "empty": b""}[
        damage
    ]
    path.write_bytes(bad)
    # The clock of the file system may not have moved on since the file was good.
    stat = path.stat()
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    with caplog.at_level(logging.WARNING):
        assert got(cache, ref) is None
    assert ref.sha256 in caplog.text
    assert not path.exists()
    cache.put(ref, data)
    assert got(cache, ref) == data


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    """Above its size the cache drops what was not used for longest, and what was mapped stays mapped."""
    cache = SegmentCache(tmp_path, max_bytes=3500)
    kept = [content(n) for n in range(3)]
    for n, (ref, data) in enumerate(kept):
        cache.put(ref, data)
        os.utime(segment_file(cache, ref), (n, n))
    mapped = cache.get(kept[1][0])
    assert mapped is not None
    assert got(cache, kept[0][0]) == kept[0][1]
    cache.put(*content(3))
    assert got(cache, kept[2][0]) is None
    assert got(cache, kept[0][0]) is not None
    for n in range(4, 9):
        cache.put(*content(n))
        assert got(cache, content(n)[0]) is not None
    assert got(cache, kept[1][0]) is None
    assert bytes(mapped) == kept[1][1]
    assert sum(path.stat().st_size for path in (tmp_path / "segments").iterdir()) <= 3500


def test_one_that_is_larger_than_the_cache(tmp_path: Path) -> None:
    """What was just put is kept even where it alone exceeds the size."""
    cache = SegmentCache(tmp_path, max_bytes=10)
    for n in range(3):
        ref, data = content(n)
        cache.put(ref, data)
        assert got(cache, ref) == data
    assert len(list((tmp_path / "segments").iterdir())) == 1


def test_what_a_killed_process_left_is_swept(cache: SegmentCache) -> None:
    """A temporary file is left alone while it may be in use, and removed when it is old."""
    cache.put(*content(1))
    young, old = (cache.directory / "segments" / f"{name}.part" for name in ("young", "old"))
    for path in (young, old):
        path.write_bytes(b"x")
    os.utime(old, (time.time() - 7200, time.time() - 7200))
    cache.put(*content(2))
    assert young.exists()
    assert not old.exists()


def test_a_directory_that_cannot_be(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where nothing can be stored the cache is empty, says so in the log, and raises nothing."""
    (tmp_path / "file").write_text("x")
    cache = SegmentCache(tmp_path / "file" / "cache")
    ref, data = content(1)
    with caplog.at_level(logging.WARNING):
        cache.put(ref, data)
        assert got(cache, ref) is None
        cache.write_built("key", lambda path: path.write_bytes(b"g"))
        assert cache.read_built("key", Path.read_bytes) is None
    assert "cannot write" in caplog.text


def test_graphs_by_key(cache: SegmentCache) -> None:
    """A graph comes back under its key alone, and a newer one takes its place."""
    for graph in (b"one", b"two", b"two"):
        cache.write_built("model/segments", partial(put_bytes, graph))
        for door in (cache, SegmentCache(cache.directory)):
            assert door.read_built("model/segments", Path.read_bytes) == graph
    assert cache.read_built("another", Path.read_bytes) is None
    assert graph_file(cache).read_bytes() == b"two"


def test_a_damaged_graph_is_dropped(cache: SegmentCache) -> None:
    """A graph whose bytes changed is not even read; one that its reader refuses is dropped too."""

    def refuse(path: Path) -> bytes:
        raise CorruptDataError("another number of rows")

    cache.write_built("key", lambda path: path.write_bytes(b"graph"))
    graph_file(cache).write_bytes(b"grapf and more")
    assert cache.read_built("key", refuse) is None
    assert list((cache.directory / "graphs").iterdir()) == []
    cache.write_built("key", lambda path: path.write_bytes(b"graph"))
    assert cache.read_built("key", refuse) is None
    assert cache.read_built("key", Path.read_bytes) is None


def test_a_graph_that_fails_to_write(cache: SegmentCache) -> None:
    """An error of the writer is its caller's to see, and leaves nothing behind but the graph before."""

    def fail(path: Path) -> None:
        path.write_bytes(b"half")
        raise MemoryError

    cache.write_built("key", lambda path: path.write_bytes(b"graph"))
    with pytest.raises(MemoryError):
        cache.write_built("key", fail)
    assert cache.read_built("key", Path.read_bytes) == b"graph"
    assert len(list((cache.directory / "graphs").iterdir())) == 1


HAMMER = """
import sys
from pathlib import Path
from moss_voice.cloud.cache import SegmentCache
from moss_voice.cloud.log import SegmentRef
cache = SegmentCache(Path(sys.argv[1]), max_bytes=20_000)
for n in range(60):
    data = str(n % 30).encode() * 1000
    ref = SegmentRef.of(data, rows=1, tombstones=0)
    got = cache.get(ref)
    assert got is None or got == data
    cache.put(ref, data)
    cache.write_built(str(n % 3), lambda path: path.write_bytes(data))
    graph = cache.read_built(str(n % 3), Path.read_bytes)
    assert graph is None or int(graph[:2] if n % 30 > 9 else graph[:1]) >= 0
"""


def test_processes_and_threads_share_a_directory(tmp_path: Path) -> None:
    """Many that read, write and evict at once never see another's half-written file, nor an error."""
    others = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", HAMMER, str(tmp_path)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    errors: list[str] = []
    cache = SegmentCache(tmp_path, max_bytes=20_000)

    def hammer() -> None:
        for n in range(60):
            ref, data = content(n % 30)
            found = got(cache, ref)
            if found is not None and found != data:
                errors.append(ref.sha256)
            cache.put(ref, data)

    threads = [threading.Thread(target=hammer) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for other in others:
        _, said = other.communicate(timeout=60)
        assert (other.returncode, said) == (0, "")
    assert errors == []
