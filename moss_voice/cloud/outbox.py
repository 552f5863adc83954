"""Pushes that could not be sent: kept on disk until a cloud takes them.

    DIRECTORY/PROJECT/INDEX-RANDOM.push

One file per session that failed to push, replaced whole by each later try, removed by the one that
succeeds. What is sent later is merged: sending it twice, or after the session itself got through, changes
nothing (see `log.resolve`). The first line is `moss-voice-outbox 1 `, the CRC-32 of the JSON in eight
hexadecimal digits, a space, and a JSON object: an `Entry`. Then come the segment's bytes, sealed where the
session has a key. The file appears by a rename, flushed, so it is whole or not there.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import zlib
from contextlib import suppress
from pathlib import Path
from tempfile import mkstemp
from typing import Annotated, Final, Literal, NamedTuple

import pydantic
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from moss_voice.cloud.log import SegmentRef
from moss_voice.cloud.names import encode_name
from moss_voice.errors import CorruptDataError, FormatVersionError, JournalError

__all__ = ["Entry", "Kept", "Outbox"]

_MAGIC: Final = b"moss-voice-outbox"
_FIRST_LINE: Final = re.compile(_MAGIC + rb" (\d{1,9}) ([0-9a-f]{8}) (\{[^\n]*\})\n")
_FORMAT: Final = 1
_SUFFIX: Final = ".push"
_Text = Annotated[str, Field(min_length=1, max_length=2000)]
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]


@checked_dataclass(
    config=ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True), frozen=True
)
class Entry:
    """A push that waits.

    Attributes:
        project_id: The project; its key is never written.
        cloud: The cloud as the caller gave it; None for the embedded cloud.
        index_name: Where it goes.
        model_id: The session's model.
        dim: Its numbers per vector.
        analyzer: The session's `text.ANALYZER`.
        job_id: Of the push.
        created_at_ms: Milliseconds since 1970, UTC.
        base_version: The version that the session's copy was read from; 0 where there was none.
        segment: The address of the segment that follows; None where the push only makes the index.
        ttl_s: The retention period that the push sets, if any.
    """

    project_id: _Text
    cloud: str | None
    index_name: _Text
    model_id: _Text
    dim: Annotated[int, Field(ge=1, le=65536)]
    analyzer: str
    job_id: _Text
    created_at_ms: _Count
    base_version: _Count
    segment: SegmentRef | None
    ttl_s: Annotated[int, Field(ge=1)] | None = None
    format: Literal[1] = 1


_ENTRY: Final = TypeAdapter(Entry)


class Kept(NamedTuple):
    """A push that was found: what it is, and its segment's bytes."""

    entry: Entry
    data: bytes


class Outbox:
    """A directory of pushes that wait. Synchronous: call it from a worker thread."""

    def __init__(self, directory: Path) -> None:
        """Touch nothing yet.

        Args:
            directory: Made when first needed, for its owner alone: it holds transcripts.
        """
        self.directory = directory

    def __repr__(self) -> str:
        return f"<Outbox {self.directory}>"

    def place_for(self, project: str, index: str) -> Path:
        """Return a file of its own for a session's pushes."""
        stem = encode_name(index)[:120]
        folder = self.directory / encode_name(project, what="project id")
        return folder / f"{stem}-{secrets.token_hex(6)}{_SUFFIX}"

    def keep(self, path: Path, entry: Entry, data: bytes) -> None:
        """Keep a push, in the place of what was kept there before; on disk when this returns.

        Raises:
            JournalError: If it cannot be written; what was kept before stays.
        """
        told = json.dumps(_ENTRY.dump_python(entry), sort_keys=True).encode()
        line = b"%s %d %08x %s\n" % (_MAGIC, _FORMAT, zlib.crc32(told), told)
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = mkstemp(prefix=".", suffix=".part", dir=path.parent)
            try:
                with os.fdopen(descriptor, "wb") as file:
                    file.write(line)
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
                Path(name).replace(path)
            except BaseException:
                Path(name).unlink(missing_ok=True)
                raise
            _flush(path.parent)
        except OSError as error:
            raise JournalError(
                error.errno, f"the outbox cannot be written: {error.strerror or error}", str(path)
            ) from error

    def find(self, project: str | None = None, index: str | None = None) -> list[Path]:
        """Return the files of pushes that wait, oldest first."""
        folder = "*" if project is None else encode_name(project, what="project id")
        stem = "*" if index is None else f"{encode_name(index)[:120]}-*"
        found: list[tuple[float, Path]] = []
        # `glob` knows no escape but brackets, and encoded names hold none.
        for path in self.directory.glob(f"{folder}/{stem}{_SUFFIX}"):
            with suppress(FileNotFoundError):  # another client has sent it
                found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def read(self, path: Path) -> Kept | None:
        """Read a push back, checked; None where it is gone, since another client has sent it.

        Raises:
            FormatVersionError: If a newer moss_voice wrote it.
            CorruptDataError: If it is damaged.
            JournalError: If it cannot be read.
        """
        try:
            whole = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise JournalError(
                error.errno, f"the outbox cannot be read: {error.strerror or error}", str(path)
            ) from error
        match = _FIRST_LINE.match(whole)
        if match is None or zlib.crc32(match[3]) != int(match[2], 16):
            raise CorruptDataError(f"{path}: not a push of ours, or damaged")
        if int(match[1]) < 1:
            raise CorruptDataError(f"{path}: not a push of ours, or damaged")
        if int(match[1]) > _FORMAT:
            raise FormatVersionError(f"{path}: written by a newer moss_voice; upgrade this one")
        data = whole[match.end() :]
        try:
            entry = _ENTRY.validate_json(match[3])
        except pydantic.ValidationError:
            raise CorruptDataError(f"{path}: its first line is not one of ours") from None
        ref = entry.segment
        if (ref is None) != (not data) or (
            ref is not None
            and SegmentRef.of(data, rows=ref.rows, tombstones=ref.tombstones, key_id=ref.key_id)
            != ref
        ):
            raise CorruptDataError(f"{path}: its segment is damaged")
        return Kept(entry, data)

    def drop(self, path: Path) -> None:
        """Remove a push that was sent, or is not wanted any more."""
        with suppress(OSError):  # sent once more it changes nothing
            path.unlink(missing_ok=True)


def _flush(folder: Path) -> None:
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
