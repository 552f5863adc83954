"""Turns that survive a crash: one append-only file per call.

The law: what was acknowledged can be read again, and what is read was written; a record is whole or
it is not there.

What the calls promise, in words. `Journal.append` is one write to the file: when it returns, the
record is in the operating system's memory and survives the death of the process at any instant
(`kill -9`, a crash, the out-of-memory killer), but not yet a power cut. `Journal.sync` is one
`fdatasync`: when it returns, every record appended before the call is on the disk and survives a power
cut, as far as the disk keeps its own word (where the system has no `fdatasync` it is `fsync`, which on
macOS leaves the drive's cache unflushed). `Journal.create` returns only when the file, its header and
its place in the directory are on the disk.

A file is `<directory>/<project>/<call>-<random>.journal`, names percent-encoded, with a lock beside it
(`.lock`) that the operating system frees when its holder dies, so that a dead call is told from a live
one. A first line names the format and holds the header; then one line per record: a CRC-32 in
hexadecimal, a space, a JSON object in ASCII. See `docs/formats.md`, "The journal".
"""

from __future__ import annotations

import base64
import errno
import hashlib
import json
import os
import re
import secrets
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from moss_voice.errors import (
    CorruptDataError,
    FormatVersionError,
    InvalidArgumentError,
    JournalError,
)

__all__ = [
    "Contents",
    "Delete",
    "FoundJournal",
    "Header",
    "Journal",
    "Pushed",
    "Put",
    "Record",
    "decode",
    "encode_header",
    "encode_record",
    "find_journals",
]

F32 = npt.NDArray[np.float32]

MAGIC = b"moss-voice-journal"
FORMAT_VERSION = 1

_SUFFIX = ".journal"
_FIRST_LINE = re.compile(rb"\A" + MAGIC + rb" (\d{1,9}) ([^\n]*)\n")
_LINE = re.compile(rb"\A([0-9a-f]{8}) (\{.*\})\Z")
_NAME_BYTES = 120
# A look by find_journals holds the lock for an instant; a holder that stays is a live call.
_LOCK_WAIT_S = 0.25


@dataclass(frozen=True, slots=True)
class Header:
    """Where the turns of a journal belong.

    Attributes:
        project_id: The project; its key is never written.
        cloud: The cloud as the caller gave it; None for the embedded cloud.
        index_name: The call's own index.
        model_id: The embedding model of that index.
        created_at_ms: Milliseconds since 1970, UTC.
    """

    project_id: str
    cloud: str | None
    index_name: str
    model_id: str
    created_at_ms: int


@dataclass(frozen=True, slots=True, eq=False)
class Put:
    """A document added or replaced.

    Attributes:
        document: A JSON object with a string `id`; the rest is the caller's.
        written_at_ms: Milliseconds since 1970, UTC; where two writers meet, the newer one wins.
        embedding: (dim,) float32, for what no model here can compute again; else None.
    """

    document: Mapping[str, Any]
    written_at_ms: int
    embedding: F32 | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """A document deleted."""

    id: str
    written_at_ms: int


@dataclass(frozen=True, slots=True)
class Pushed:
    """The cloud holds, as `version`, every record that ends at or before byte `position`.

    The position is `Journal.position` as it was when the push took its copy: turns said while the
    bytes were on their way lie beyond it.
    """

    version: int
    position: int


Record = Put | Delete | Pushed


class Contents(NamedTuple):
    """What a journal holds.

    Attributes:
        header: Where it belongs.
        records: Every readable record, as written.
        unpushed: The puts and deletes that no push has covered, as written.
        damaged: Lines in the middle that are not what was written; each stood for at least a record.
        size: The byte after the last whole line; what follows is a torn record, never acknowledged.
    """

    header: Header
    records: tuple[Record, ...]
    unpushed: tuple[Put | Delete, ...]
    damaged: int
    size: int


class FoundJournal(NamedTuple):
    """An abandoned journal; `header` is None where the header cannot be read."""

    path: Path
    header: Header | None


def encode_header(header: Header) -> bytes:
    """Return the first line of a journal.

    Raises:
        InvalidArgumentError: If a field cannot be written as JSON.
    """
    line = _line(asdict(header), what="the header")
    return b"%s %d %s" % (MAGIC, FORMAT_VERSION, line)


def encode_record(record: Record) -> bytes:
    """Return the line of one record.

    Raises:
        InvalidArgumentError: If the document has no string id or cannot be written as JSON, or the
            embedding is not one-dimensional.
    """
    if isinstance(record, Pushed):
        return _line({"pushed": record.version, "position": record.position}, what="a push")
    if isinstance(record, Delete):
        return _line({"delete": record.id, "at": record.written_at_ms}, what="a delete")
    doc_id = record.document.get("id")
    if not isinstance(doc_id, str) or not doc_id:
        raise InvalidArgumentError("A journaled document needs a string under 'id'.")
    value: dict[str, Any] = {"put": dict(record.document), "at": record.written_at_ms}
    if record.embedding is not None:
        vector = np.asarray(record.embedding, dtype="<f4")
        if vector.ndim != 1:
            raise InvalidArgumentError(
                f"The embedding of document {doc_id!r} must be (dim,), got {vector.shape}."
            )
        value["embedding"] = base64.b64encode(vector.tobytes()).decode("ascii")
    return _line(value, what=f"document {doc_id!r}")


def decode(data: bytes) -> Contents:
    """Read a journal's bytes.

    A last line without its end was being written when the process or the machine stopped: it is left
    out. A line in the middle whose checksum or shape is wrong is counted, and the rest is kept.

    Raises:
        FormatVersionError: If a newer moss_voice wrote it.
        CorruptDataError: If the first line is damaged, cut off or not of a journal.
    """
    header, start = _decode_header(data)
    size = data.rfind(b"\n") + 1
    records: list[Record] = []
    changes: list[tuple[int, Put | Delete]] = []
    damaged = covered = 0
    for line in data[start:size].split(b"\n")[:-1]:
        start += len(line) + 1
        value = _checked(line)
        record = None if value is None else _record(value)
        if record is None:
            damaged += 1
            continue
        records.append(record)
        if isinstance(record, Pushed):
            covered = max(covered, record.position)
        else:
            changes.append((start, record))
    unpushed = tuple(record for end, record in changes if end > covered)
    return Contents(header, tuple(records), unpushed, damaged, size)


class Journal:
    """One call's journal, held by this process until it is closed or cleared.

    Safe to use from several threads. Get one with `create`, or with `open` after a crash.
    """

    def __init__(self, path: Path, header: Header, *, fd: int, size: int, lock: FileLock) -> None:
        self.path = path
        self.header = header
        self._fd = fd
        self._lock = lock
        self._state = threading.Condition()
        # Guarded by _state:
        self._size = size
        self._synced = size
        self._syncing = False
        self._closed = False
        self._sync_errno: int | None = None

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{self._size} bytes"
        return f"<Journal {self.header.index_name!r} {state}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @classmethod
    def create(cls, directory: str | Path, header: Header) -> Self:
        """Start the journal of a call, in a file of its own.

        A journal of the same call that a crash left behind stays as it is.

        Raises:
            JournalError: If the file cannot be written.
            InvalidArgumentError: If a field of the header cannot be written as JSON.
        """
        first_line = encode_header(header)
        folder = Path(directory) / _file_name(header.project_id)
        with _translated("create", folder):
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            name = f"{_file_name(header.index_name)}-{secrets.token_hex(8)}{_SUFFIX}"
            path = folder / name
            # The lock comes first: nobody may see a live journal unlocked.
            lock = _acquire(path, wait_s=0)
            try:
                fd = _open(path, os.O_CREAT | os.O_EXCL)
                try:
                    _write(fd, first_line, 0)
                    _flush(fd)
                    _flush_directory(folder)
                    _flush_directory(folder.parent)
                except BaseException:
                    os.close(fd)
                    path.unlink()
                    raise
            except BaseException:
                _discard(lock)
                raise
        return cls(path, header, fd=fd, size=len(first_line), lock=lock)

    @classmethod
    def open(cls, path: str | Path) -> tuple[Self, Contents]:
        """Take over an abandoned journal, to push what it holds and then clear it.

        A torn record at its end is cut off, so that it can be appended to.

        Raises:
            JournalError: If a live call holds it, or it is gone or cannot be read and written.
            FormatVersionError: If a newer moss_voice wrote it.
            CorruptDataError: If its first line is damaged, or it is no journal; it stays as it is.
        """
        path = Path(path)
        with _translated("open", path):
            if not path.is_file():
                raise JournalError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
            lock = _acquire(path, wait_s=_LOCK_WAIT_S)
            try:
                fd = _open(path, 0)
            except FileNotFoundError:
                _discard(lock)  # cleared by another process meanwhile; the lock file is ours
                raise
            except BaseException:
                lock.release()
                raise
            try:
                contents = decode(_read(fd))
                os.ftruncate(fd, contents.size)
                _flush(fd)
            except BaseException:
                os.close(fd)
                lock.release()
                raise
        return cls(path, contents.header, fd=fd, size=contents.size, lock=lock), contents

    @property
    def position(self) -> int:
        """The byte at which the next record starts; see `Pushed`."""
        return self._size

    def append(self, *records: Record) -> int:
        """Write records, all in one write; from then on they survive the death of this process.

        After an error the journal is as it was before, and can be appended to again.

        Returns:
            The position after the records. One write: some ten microseconds.

        Raises:
            InvalidArgumentError: If a record cannot be written as JSON.
            JournalError: If the disk is full or fails, or the journal is closed.
        """
        line = b"".join(map(encode_record, records))
        with _translated("append to", self.path), self._state:
            self._check_open()
            # Always at our own offset: the fragment of a write that failed midway is overwritten by
            # the next, and until then it is a torn tail, which readers leave out.
            _write(self._fd, line, self._size)
            self._size += len(line)
            return self._size

    def sync(self) -> None:
        """Return when every record appended so far survives a power cut.

        Callers that come while a flush runs wait for one that starts after it, and share that one.

        Raises:
            JournalError: If the disk fails, or the journal was closed before the flush. After one
                failed flush every later one fails: the system may have dropped the bytes that it could
                not write, and no later flush would tell.
        """
        with _translated("sync", self.path):
            with self._state:
                wanted = self._size
                while self._syncing and self._synced < wanted:
                    self._state.wait()
                if self._sync_errno is not None:
                    raise OSError(self._sync_errno, os.strerror(self._sync_errno))
                if self._synced >= wanted:
                    return
                self._check_open()
                self._syncing = True
                reached = self._size
            synced, fault = self._synced, None
            try:
                _flush(self._fd)
                synced = reached
            except OSError as error:
                fault = error.errno or errno.EIO
                raise
            finally:
                with self._state:
                    self._synced, self._sync_errno, self._syncing = synced, fault, False
                    self._state.notify_all()

    def close(self) -> None:
        """Let go of the journal and keep its file, for `find_journals`; closing again does nothing."""
        with _translated("close", self.path):
            if self._shut():
                self._lock.release()

    def clear(self) -> None:
        """Remove the file: its turns are in the cloud, or not wanted. Clearing again does nothing.

        Raises:
            JournalError: If the file cannot be removed; it is then closed and stays.
        """
        with _translated("clear", self.path):
            if not self._shut():
                return
            try:
                self.path.unlink(missing_ok=True)
                # A turn that the user discarded must not be back after a power cut.
                _flush_directory(self.path.parent)
            except BaseException:
                self._lock.release()
                raise
            _discard(self._lock)

    def _shut(self) -> bool:
        """Close the file when no flush runs on it; return False where it was closed already."""
        with self._state:
            while self._syncing:
                self._state.wait()
            if self._closed:
                return False
            self._closed = True
            os.close(self._fd)
            return True

    def _check_open(self) -> None:
        if self._closed:
            raise JournalError(errno.EBADF, "The journal is closed.", str(self.path))


def find_journals(directory: str | Path, project: str | None = None) -> list[FoundJournal]:
    """List the journals that a dead process left, oldest first; live ones are left out.

    Args:
        directory: As given to `Journal.create`; it need not exist.
        project: Only those of this project; all where None. A journal whose header is damaged
            belongs to the project that its folder is named for.

    Raises:
        JournalError: If the directory cannot be read.
    """
    root = Path(directory)
    found: list[tuple[int, FoundJournal]] = []
    with _translated("look for", root):
        if not root.is_dir():
            return []
        folders = list(root.iterdir()) if project is None else [root / _file_name(project)]
        for path in chain.from_iterable(folder.glob(f"*{_SUFFIX}") for folder in folders):
            try:
                lock = _acquire(path, wait_s=0)
            except (JournalError, PermissionError):
                continue  # a live call, another process that recovers it, or another user's
            header, unborn = _peek(path)
            if unborn:
                # Its create() never returned, so that nothing was ever acknowledged in it.
                path.unlink(missing_ok=True)
                _discard(lock)
                continue
            lock.release()
            # On a disk that ignores case two projects may share a folder.
            if project is None or header is None or header.project_id == project:
                age = header.created_at_ms if header else 0
                found.append((age, FoundJournal(path, header)))
    return [journal for _, journal in sorted(found, key=lambda item: (item[0], item[1].path))]


# ------------------------------------------------------------------------------------------ lines


def _line(value: object, *, what: str) -> bytes:
    """Return checksum, JSON and line end. ASCII, so that lone surrogates pass and no text ends a line."""
    try:
        body = json.dumps(value, separators=(",", ":"), allow_nan=False).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgumentError(
            f"The journal cannot write {what} as JSON ({type(error).__name__}): values must be "
            "objects, lists, strings, finite numbers, booleans or null."
        ) from None
    return b"%08x %s\n" % (zlib.crc32(body), body)


def _checked(line: bytes) -> dict[str, Any] | None:
    """Return the JSON object of a line without its end, None where the line is damaged."""
    match = _LINE.match(line)
    if match is None or int(match[1], 16) != zlib.crc32(match[2]):
        return None
    try:
        value = json.loads(match[2])
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _decode_header(data: bytes) -> tuple[Header, int]:
    match = _FIRST_LINE.match(data)
    if match is None:
        raise CorruptDataError("Not a journal of moss_voice, or its first line is cut off.")
    version, end = int(match[1]), match.end()
    if version > FORMAT_VERSION:
        raise FormatVersionError(
            f"The journal has format {version}; this moss_voice reads up to {FORMAT_VERSION}. "
            "Recover it with the moss_voice that wrote it."
        )
    match _checked(match[2]):
        case {
            "project_id": str(project_id),
            "cloud": str() | None as cloud,
            "index_name": str(index_name),
            "model_id": str(model_id),
            "created_at_ms": int(created_at_ms),
        } if version == FORMAT_VERSION:
            header = Header(project_id, cloud, index_name, model_id, created_at_ms)
        case _:
            raise CorruptDataError("The journal's header is damaged.")
    return header, end


def _record(value: dict[str, Any]) -> Record | None:
    """Return the record that a line's object stands for, None where it stands for none."""
    match value:
        case {"pushed": int(version), "position": int(position)}:
            return Pushed(version, position)
        case {"delete": str(doc_id), "at": int(at)}:
            return Delete(doc_id, at)
        case {"put": {"id": str()} as document, "at": int(at), "embedding": str(encoded)}:
            embedding = _vector(encoded)
            return None if embedding is None else Put(document, at, embedding)
        case {"put": {"id": str()} as document, "at": int(at)} if "embedding" not in value:
            return Put(document, at)
    return None


def _vector(encoded: str) -> F32 | None:
    try:
        raw = base64.b64decode(encoded, validate=True)
        return np.frombuffer(raw, dtype="<f4").astype(np.float32)
    except ValueError:  # not base64, or not whole float32s
        return None


# ------------------------------------------------------------------------------------------ files


@contextmanager
def _translated(action: str, path: Path) -> Iterator[None]:
    """Turn an OSError of the system into a JournalError that keeps errno and path."""
    try:
        yield
    except JournalError:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else type(error).__name__
        message = f"Cannot {action} the journal: {reason}"
        raise JournalError(error.errno, message, str(path)) from error


def _file_name(name: str) -> str:
    """Return `name` as one part of a path: percent-encoded, never `.` or `..`, of bounded length."""
    encoded = quote(name, safe="", errors="surrogatepass")
    if encoded.startswith("."):
        encoded = "%2E" + encoded[1:]
    if 0 < len(encoded) <= _NAME_BYTES:
        return encoded
    # `~` is never percent-encoded, and a short name keeps its own.
    digest = hashlib.blake2b(encoded.encode("ascii"), digest_size=8).hexdigest()
    return f"{encoded[: _NAME_BYTES - 20]}~{digest}"


def _acquire(path: Path, *, wait_s: float) -> FileLock:
    # thread_local: the thread that ends a call is rarely the one that began it.
    lock = FileLock(f"{path}.lock", mode=0o600, thread_local=False)
    try:
        lock.acquire(timeout=wait_s, poll_interval=0.02)
    except Timeout:
        raise JournalError(
            errno.EAGAIN,
            "The journal is held: its call is alive, or it is being recovered",
            str(path),
        ) from None
    return lock


def _discard(lock: FileLock) -> None:
    """Free the lock and remove its file. Names are never used twice, so nobody waits for this one."""
    lock.release()
    Path(lock.lock_file).unlink(missing_ok=True)


def _open(path: Path, flags: int) -> int:
    return os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0) | flags, 0o600)


def _write(fd: int, data: bytes, offset: int) -> None:
    os.lseek(fd, offset, os.SEEK_SET)
    rest = memoryview(data)
    while rest:
        # A short write is what a filling disk gives first; the next try raises.
        rest = rest[os.write(fd, rest) :]


def _read(fd: int) -> bytes:
    with os.fdopen(os.dup(fd), "rb") as file:
        file.seek(0)
        return file.read()


_flush = getattr(os, "fdatasync", os.fsync)


def _flush_directory(path: Path) -> None:
    if os.name == "nt":  # Windows has no way to flush a directory; its own journal keeps the name
        return
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _peek(path: Path) -> tuple[Header | None, bool]:
    """Read the header alone; True beside it where a crash stopped the file's creation."""
    try:
        with path.open("rb") as file:
            first_line = file.readline()
    except FileNotFoundError:
        return None, True  # cleared since it was listed: what is left is our lock file
    ours = first_line.startswith(MAGIC) or MAGIC.startswith(first_line)
    if ours and not first_line.endswith(b"\n"):
        return None, True
    try:
        return _decode_header(first_line)[0], False
    except CorruptDataError:
        return None, False
