"""Downloaded segments and built graphs on local disk: a copy that may vanish at any time.

Nothing in it is trusted: a file is hashed before it is used (once per process, as long as its size,
time and inode stay), and what does not match is dropped, to be fetched or built again. Files appear
whole, by a rename, so any number of processes may share a directory; they are never changed in place,
so a mapped segment stays what it was, also once it is evicted. A cache that cannot be read or written
costs time, never an answer: it logs and does without.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import threading
import time
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkstemp
from typing import Final, TypeVar

from filelock import FileLock, Timeout

from moss_voice.cloud.log import Commit, SegmentRef, decode_commit
from moss_voice.errors import CorruptDataError

__all__ = ["DEFAULT_MAX_BYTES", "SegmentCache"]

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES: Final = 4 << 30
# What a process that was killed left half written is swept out after this long.
_STALE_S: Final = 3600.0
_TEMPORARY: Final = ".part"

T = TypeVar("T")
_Stamp = tuple[int, int, int]


class SegmentCache:
    """Segments by their hash, and graphs by a key, in a directory of bounded size.

    Synchronous: call it from a worker thread (hashing 85 MB takes a few hundred ms). Thread-safe.
    """

    def __init__(self, directory: Path, *, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        """Touch nothing yet.

        Args:
            directory: Made when first needed, for its owner alone: it holds transcripts.
            max_bytes: Above it the least recently used files are evicted, but for the newest.
        """
        self.directory = directory
        self.max_bytes = max_bytes
        self._segments = directory / "segments"
        self._graphs = directory / "graphs"
        self._verified: dict[Path, _Stamp] = {}
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<SegmentCache {self.directory}>"

    def get(self, ref: SegmentRef) -> memoryview | None:
        """Return a segment, mapped from disk and verified, or None where it must be fetched.

        Costs a CRC-32 over the file the first time in a process (0.04 s for 100 MB, where SHA-256 takes
        0.3), some microseconds after. What came from a cloud was checked by its SHA-256; the CRC, taken
        then, tells a file that the disk or a crash has damaged since.
        """
        path = self._segments / ref.sha256
        with self._forgiving("read", path):
            stamp = self._stamp(path)
            if stamp is None:
                return None
            if stamp[0] == ref.size_bytes:
                with path.open("rb") as file:
                    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
                if self._sound(path, stamp, ref.sha256, data):
                    return data
            else:
                logger.warning("dropping a cached file of another size: %s", path.name)
            self._drop(path)
        return None

    def holds(self, ref: SegmentRef) -> bool:
        """Tell whether there is a file of a segment's name and size; it is checked when it is read."""
        try:
            return (self._segments / ref.sha256).stat().st_size == ref.size_bytes
        except OSError:
            return False

    def put(self, ref: SegmentRef, data: bytes | memoryview) -> None:
        """Keep a segment that was just fetched or pushed; whoever fetched it has checked its hash."""
        path = self._segments / ref.sha256
        with self._forgiving("write", path):
            with self._writing(path) as temporary:
                temporary.write_bytes(data)
            with self._writing(self._sum_of(path)) as temporary:
                temporary.write_text(f"{zlib.crc32(data):08x}")
            self._evict(keep=path)

    def drop(self, sha256s: Collection[str], built_keys: Collection[str] = ()) -> None:
        """Remove segments, and what was built by its keys, that nobody is to find here any more."""
        for path in [self._segments / sha256 for sha256 in sha256s]:
            with self._forgiving("remove", path):
                self._drop(path)
        for key in built_keys:
            for path in self._graph_files(key):
                with self._forgiving("remove", path):
                    self._drop(path)

    def sweep(
        self,
        doomed: Callable[[memoryview], bool],
        *,
        keep: Collection[str],
        keep_built: Collection[str],
    ) -> None:
        """Remove every segment of which `doomed` says so, and all that was built, but for what to keep.

        Args:
            doomed: Given a segment's bytes, unchecked.
            keep: Segments that are not looked at.
            keep_built: Keys of what was built.
        """
        for path in self._segments.glob("*"):
            # What is temporary may be under way, and is swept out by and by.
            if path.name not in keep and path.suffix != _TEMPORARY:
                with self._forgiving("read", path):
                    if doomed(memoryview(path.read_bytes())):
                        self._drop(path)
        stems = {_graph_stem(key) for key in keep_built}
        for path in self._graphs.glob("*"):
            if path.name.partition(".")[0] not in stems and path.suffix != _TEMPORARY:
                with self._forgiving("remove", path):
                    self._drop(path)

    def write_head(self, cloud: str, project: str, commit: Commit) -> None:
        """Remember the newest commit of an index, for when its cloud is away.

        Args:
            cloud: The cloud's name.
            project: The project in it.
            commit: Of an index whose segments are here.
        """
        path = self._head_of(cloud, project, commit.index)
        data = commit.encode()
        with self._forgiving("write", path):
            # An index that is opened again and again mostly has not changed.
            if path.exists() and path.read_bytes() == data:
                return
            with self._writing(path) as temporary:
                temporary.write_bytes(data)

    def read_head(self, cloud: str, project: str, index: str) -> Commit | None:
        """Return the commit remembered, or None where there is none, or it is damaged."""
        path = self._head_of(cloud, project, index)
        with self._forgiving("read", path):
            try:
                commit = decode_commit(path.read_bytes())
            except CorruptDataError:
                logger.warning("dropping a cached commit that is damaged: %s", path.name)
                path.unlink(missing_ok=True)
                return None
            return commit if commit.index == index else None
        return None

    def _head_of(self, cloud: str, project: str, index: str) -> Path:
        name = hashlib.sha256(f"{cloud}\0{project}\0{index}".encode()).hexdigest()
        return self.directory / "heads" / f"{name}.json"

    def read_built(self, key: str, read: Callable[[Path], T]) -> T | None:
        """Return what `read` makes of what is kept under a key, or None where there is nothing.

        Args:
            key: Names all that it was built from, and how: a graph, or postings in order.
            read: Takes a path; raises `CorruptDataError` where the file is not what it should be.
        """
        for path in self._graph_files(key):
            with self._forgiving("read", path):
                stamp = self._stamp(path)
                if stamp is not None and self._sound(path, stamp, path.suffix[1:]):
                    try:
                        return read(path)
                    except CorruptDataError:
                        logger.warning("dropping a cached file that does not fit: %s", path.name)
                self._drop(path)
        return None

    def write_built(self, key: str, write: Callable[[Path], object]) -> None:
        """Keep what was built under a key; its checksum becomes part of its file's name.

        Args:
            key: See `read_built`.
            write: Writes it to the path it is given.
        """
        stem = self._graphs / _graph_stem(key)
        with self._forgiving("write", stem):
            before = self._graph_files(key)
            with self._writing(stem, named_by_hash=True) as temporary:
                write(temporary)
            after = set(self._graph_files(key)).difference(before)
            for path in before if after else []:
                self._drop(path)
            self._evict(keep=next(iter(after), stem))

    def _graph_files(self, key: str) -> list[Path]:
        stem = _graph_stem(key)
        return [path for path in self._graphs.glob(f"{stem}.*") if path.suffix != _TEMPORARY]

    @contextmanager
    def _writing(self, path: Path, *, named_by_hash: bool = False) -> Iterator[Path]:
        """Give a temporary file that takes its place, whole, when the block ends without an error."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        descriptor, name = mkstemp(suffix=_TEMPORARY, dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            if named_by_hash:
                path = path.with_name(f"{path.name}.{_sha256_of(temporary)}")
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def _stamp(self, path: Path) -> _Stamp | None:
        """Return what changes when a file does, and mark the file as used."""
        try:
            stat = path.stat()
            os.utime(path, ns=(time.time_ns(), stat.st_mtime_ns))
        except FileNotFoundError:
            return None
        return stat.st_size, stat.st_mtime_ns, stat.st_ino

    def _sound(
        self, path: Path, stamp: _Stamp, sha256: str, data: memoryview | None = None
    ) -> bool:
        """Tell whether a file is what it should be, hashing it unless that was done before."""
        with self._lock:
            if self._verified.get(path) == stamp:
                return True
        if data is None:
            sound = _sha256_of(path) == sha256
        elif (known := self._read_sum(path)) is not None:
            sound = f"{zlib.crc32(data):08x}" == known
        else:
            sound = hashlib.sha256(data).hexdigest() == sha256
        if not sound:
            logger.warning("dropping a cached file that does not match its hash: %s", path.name)
            return False
        with self._lock:
            self._verified[path] = stamp
        return True

    def _sum_of(self, path: Path) -> Path:
        return self.directory / "sums" / path.name

    def _read_sum(self, path: Path) -> str | None:
        try:
            return self._sum_of(path).read_text(encoding="ascii")
        except (FileNotFoundError, UnicodeDecodeError):
            return None

    def _drop(self, path: Path) -> None:
        with self._lock:
            self._verified.pop(path, None)
        path.unlink(missing_ok=True)
        if path.parent == self._segments:
            self._sum_of(path).unlink(missing_ok=True)

    def _evict(self, *, keep: Path) -> None:
        """Bring the directory back under its size; where another process is at it, leave it to that."""
        with suppress(Timeout), FileLock(self.directory / "evict.lock", timeout=0):
            now = time.time()
            files: list[tuple[float, int, Path]] = []
            for folder in (self._segments, self._graphs):
                for path in folder.glob("*"):
                    with suppress(FileNotFoundError):
                        stat = path.stat()
                        if path.suffix != _TEMPORARY:
                            files.append((stat.st_atime, stat.st_size, path))
                        elif now - stat.st_mtime > _STALE_S:
                            path.unlink()
            excess = sum(size for _, size, _ in files) - self.max_bytes
            for _, size, path in sorted(files):
                if excess <= 0:
                    break
                if path != keep:
                    self._drop(path)
                    excess -= size

    @contextmanager
    def _forgiving(self, verb: str, path: Path) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if verb == "read" and isinstance(error, FileNotFoundError):
                return  # another process evicted it between our looking and our reading
            logger.warning("cannot %s the cache file %s: %s", verb, path, error.strerror or error)


def _graph_stem(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:32]


def _sha256_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
