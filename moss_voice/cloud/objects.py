"""Objects by path, in a directory, in memory, or in an object store: the few operations that a log needs.

What is promised: see `Store`, which may be of somebody's own making. What obstore raises becomes
`CloudUnavailableError`, once, here.

A local directory (obstore 0.12 `LocalStore`) keeps the promises thus: an object is written to a
staging file beside its place (`NAME#1`, which no listing shows) and then renamed, or for put-if-absent
hard-linked, which the file system does atomically and for one process only. So the file system must
know hard links (FAT does not; NFS does). obstore does not call fsync: we do after each put, file and
folder, so that an acknowledged push survives a power failure.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit
from urllib.request import url2pathname

import obstore
import obstore.store
import platformdirs
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import LocalStore, MemoryStore, ObjectStore

from moss_voice.errors import AuthenticationError, CloudUnavailableError, InvalidArgumentError

__all__ = ["OBJECT_STORES", "Objects", "Store", "StoredObject", "open_objects"]

# URL schemes of object stores, and where each finds its credentials.
OBJECT_STORES: Final = ("s3", "gs", "az")
# A dead endpoint is told of in seconds: a caller may be waiting, and callers try again themselves. The
# time to read is for the whole answer to an upload (obstore 0.12), of which large ones go in parts.
_CLIENT: Final = {
    "connect_timeout": timedelta(seconds=2),
    "read_timeout": timedelta(seconds=30),
    "timeout": timedelta(seconds=120),
}
_RETRY: Final = {
    "max_retries": 3,
    "retry_timeout": timedelta(seconds=5),
    "backoff": {
        "init_backoff": timedelta(milliseconds=100),
        "max_backoff": timedelta(seconds=1),
        "base": 2,
    },
}
# With client options of our own, obstore no longer reads from the environment whether http will do.
_ALLOW_HTTP: Final = ("AWS_ALLOW_HTTP", "GOOGLE_ALLOW_HTTP", "AZURE_ALLOW_HTTP")

_memories: dict[str, MemoryStore] = {}


class StoredObject(NamedTuple):
    """What a listing tells of an object.

    Attributes:
        name: The last component of its path.
        size_bytes: Of its data.
        at: When it was last put; aware.
        tag: What changes whenever it is put anew; None where the store has no such thing, and `at` is as
            good.
    """

    name: str
    size_bytes: int
    at: datetime
    tag: str | None


class Store(ABC):
    """A store of objects by path, that `MossClient` can keep a cloud in: the contract for one of your own.

    What it must promise: an object appears at once and complete, and is safe when `put` returns; of all
    that put one path `if_absent`, in whatever process, exactly one is told True; what was put or deleted
    shows in the very next answer, to everybody. Everything else (versions, merges, keys of projects,
    encryption) is built on that. Paths are up to five components of at most 200 characters, of lower-case
    letters, digits, `-`, `_`, `.`, `~`, and `%` with capital hexadecimal digits, joined by `/`. A segment
    is one object: as large as what is pushed at once.

    Methods are awaited on any event loop, several at a time; a store whose calls block runs them in a
    thread (`asyncio.to_thread`), since a caller may be on the line. Where it does not answer it raises
    `moss_voice.errors.CloudUnavailableError`: that, and nothing else, is taken for being away. Who made
    it closes it.

    Attributes:
        name: Where it is, without credentials: journals and waiting pushes know their cloud by it.
    """

    name: str

    @abstractmethod
    async def put(self, path: str, data: bytes | memoryview, *, if_absent: bool) -> bool:
        """Store an object whole; False where `if_absent` and there is one."""

    @abstractmethod
    async def get(self, path: str) -> bytes | memoryview | None:
        """Return an object, or None where there is none."""

    @abstractmethod
    async def listing(self, folder: str, *, after: str | None = None) -> list[StoredObject]:
        """Return a folder's objects, those after a name where given (as text sorts), in any order."""

    @abstractmethod
    async def folders(self, folder: str) -> list[str]:
        """Return the paths of the folders in a folder; in the store itself where it is empty."""

    @abstractmethod
    async def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; those that are not there are passed over."""

    @abstractmethod
    async def stored_at(self, path: str) -> datetime | None:
        """Return when an object was last put, aware, or None where there is none."""

    async def check(self) -> None:
        """Raise `CloudUnavailableError` unless the store answers."""
        await self.listing("~ready")

    async def listing_some(self, folder: str, *, most: int) -> list[StoredObject]:
        """Return so many of a folder's objects, whichever come first; here of what `listing` returns."""
        return (await self.listing(folder))[:most]

    async def stream(self, path: str, *, part_bytes: int = 1 << 20) -> AsyncGenerator[bytes] | None:
        """Return an object in parts, or None where there is none; here from what `get` returns."""
        data = await self.get(path)
        if data is None:
            return None

        async def parts() -> AsyncGenerator[bytes]:
            for start in range(0, len(data), part_bytes):
                yield bytes(data[start : start + part_bytes])

        return parts()


class Objects(Store):
    """The objects of an obstore store. Safe to share between tasks, threads and event loops."""

    def __init__(self, store: ObjectStore, *, name: str) -> None:
        """Take a ready store.

        Args:
            store: Any obstore store.
            name: For messages: where it is, without credentials.
        """
        self.name = name
        self._store = store
        self._directory = store.prefix if isinstance(store, LocalStore) else None

    def __repr__(self) -> str:
        return f"<Objects {self.name}>"

    async def check(self) -> None:
        """Raise `CloudUnavailableError` unless the store answers.

        A directory must be there: one that a volume was mounted on would else be made anew in its place.
        """
        if self._directory is None:
            await super().check()
        elif not await asyncio.to_thread(os.access, self._directory, os.R_OK | os.W_OK | os.X_OK):
            raise CloudUnavailableError(f"{self.name} is not there, or not to be written")

    async def put(self, path: str, data: bytes | memoryview, *, if_absent: bool) -> bool:
        """Store an object whole; False where `if_absent` and there is one."""
        with _translated(f"write to {self.name}"):
            try:
                await obstore.put_async(
                    self._store, path, data, mode="create" if if_absent else "overwrite"
                )
            except AlreadyExistsError:
                return False
            if self._directory is not None:
                await asyncio.to_thread(_sync, self._directory / path, self._directory)
            return True

    async def get(self, path: str) -> memoryview | None:
        """Return an object, or None where there is none."""
        with _translated(f"read from {self.name}"):
            try:
                answer = await obstore.get_async(self._store, path)
                return memoryview(await answer.bytes_async())
            except FileNotFoundError:
                return None

    async def stream(self, path: str, *, part_bytes: int = 1 << 20) -> AsyncGenerator[bytes] | None:
        """Return an object in parts, or None where there is none."""
        with _translated(f"read from {self.name}"):
            try:
                answer = await obstore.get_async(self._store, path)
            except FileNotFoundError:
                return None

        async def parts() -> AsyncGenerator[bytes]:
            with _translated(f"read from {self.name}"):
                async for part in answer.stream(min_chunk_size=part_bytes):
                    yield bytes(part)

        return parts()

    async def listing(self, folder: str, *, after: str | None = None) -> list[StoredObject]:
        """Return a folder's objects, those after a file name where given, in no order."""
        with _translated(f"list {self.name}"):
            offset = None if after is None else f"{folder}/{after}"
            found = await obstore.list(self._store, folder, offset=offset).collect_async()
            return [_stored(meta) for meta in found]

    async def listing_some(self, folder: str, *, most: int) -> list[StoredObject]:
        """Return so many of a folder's objects; what is beyond them is not asked for."""
        found: list[StoredObject] = []
        with _translated(f"list {self.name}"):
            async for part in obstore.list(self._store, folder):
                found += map(_stored, part)
                if len(found) >= most:
                    break
        return found[:most]

    async def folders(self, folder: str) -> list[str]:
        """Return the paths of the folders in a folder; in the store itself where it is empty."""
        with _translated(f"list {self.name}"):
            found = await obstore.list_with_delimiter_async(self._store, folder or None)
            return list(found["common_prefixes"])

    async def delete(self, paths: Sequence[str]) -> None:
        """Remove objects; those that are not there are passed over."""
        with _translated(f"remove from {self.name}"):
            for path in paths:
                with suppress(FileNotFoundError):  # somebody else collects too
                    await obstore.delete_async(self._store, path)

    async def stored_at(self, path: str) -> datetime | None:
        """Return when an object was stored, or None where there is none."""
        with _translated(f"read from {self.name}"):
            try:
                return (await obstore.head_async(self._store, path))["last_modified"]
            except FileNotFoundError:
                return None


def _stored(meta: Any) -> StoredObject:
    return StoredObject(
        meta["path"].rpartition("/")[2], meta["size"], meta["last_modified"], meta["e_tag"]
    )


def open_objects(where: str | Path | None = None) -> Objects:
    """Open a store, making its directory if it is one and there is none.

    Args:
        where: None for a directory under the platform's data directory; a path or a `file://` URL;
            `memory://NAME`, which lives as long as this process; `s3://BUCKET/PREFIX`,
            `gs://BUCKET/PREFIX` or `az://CONTAINER/PREFIX`, with the credentials of its usual
            environment (`AWS_*`, `GOOGLE_*`, `AZURE_*`; another S3-compatible endpoint is
            `AWS_ENDPOINT_URL`, and `AWS_ALLOW_HTTP=true` where it has no TLS).

    Raises:
        InvalidArgumentError: If the URL is of a kind that this version does not know.
        CloudUnavailableError: If the directory cannot be made, or the store's settings make no sense.
    """
    if where is None:
        where = Path(platformdirs.user_data_dir("moss_voice", appauthor=False)) / "cloud"
    if isinstance(where, str):
        scheme, separator, _ = where.partition("://")
        if separator:
            if scheme == "memory":
                return Objects(_memories.setdefault(where, MemoryStore()), name=where)
            if scheme in OBJECT_STORES:
                return _open_remote(where)
            where = _path_of_url(where)
    path = where if isinstance(where, Path) else Path(where)
    path = path.expanduser().absolute()
    with _translated(f"open the cloud at {path}"):
        # Transcripts: for the owner alone, unless somebody made the directory for more.
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        return Objects(LocalStore(path), name=str(path))


def _open_remote(url: str) -> Objects:
    parts = urlsplit(url)
    if not parts.netloc or "@" in parts.netloc or parts.query or parts.fragment:
        raise InvalidArgumentError(
            f"cloud: expected {parts.scheme}://BUCKET/PREFIX, without credentials: those come from the"
            " environment"
        )
    plain = any(os.environ.get(name, "").lower() in ("1", "true") for name in _ALLOW_HTTP)
    options: dict[str, Any] = {
        "client_options": {**_CLIENT, "allow_http": plain},
        "retry_config": _RETRY,
    }
    with _translated(f"open {url}"):
        return Objects(obstore.store.from_url(url, **options), name=url)


def _path_of_url(url: str) -> Path:
    parts = urlsplit(url)
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
        raise InvalidArgumentError(
            f"cloud: expected a path, file://, memory://, s3://, gs://, az:// or http(s)://, got"
            f" {parts.scheme}://"
        )
    return Path(url2pathname(parts.path))


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn what the store raises into our error, once, here."""
    try:
        yield
    except (PermissionDeniedError, UnauthenticatedError) as error:
        if not any(f"{scheme}://" in what for scheme in OBJECT_STORES):
            raise CloudUnavailableError(f"could not {what}: not permitted") from error
        raise AuthenticationError(
            f"could not {what}: the store refuses the credentials of its environment (AWS_*, GOOGLE_*,"
            " AZURE_*), or what they allow"
        ) from error
    except (BaseError, OSError) as error:
        # obstore appends a long debug dump to the first line.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CloudUnavailableError(f"could not {what}: {reason}") from error


def _sync(path: Path, root: Path) -> None:
    """Make an object survive a power failure: its bytes, and the folders that lead to it."""
    with suppress(FileNotFoundError), path.open("rb+") as file:  # a deletion may be quicker
        os.fsync(file.fileno())
    if not hasattr(os, "O_DIRECTORY"):
        return  # Windows cannot sync a folder, and writes its own journal of names
    for folder in path.parents:
        descriptor = os.open(folder, os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if folder == root:
            return
