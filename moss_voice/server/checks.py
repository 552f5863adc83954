"""What a server asks of a segment and of a commit before it keeps them. Pure: values in, verdicts out.

Nothing that is sent is run, and nothing is believed: a segment is decoded and every line of it parsed, and
what a commit says of a segment is compared with what was found in it. Of an encrypted one the envelope is
all that can be looked at. A verdict names fields, rows, numbers and hashes, never text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

from moss_voice.cloud import log
from moss_voice.cloud.log import Buffer, Commit, Head, SegmentRef
from moss_voice.cloud.sealing import is_sealed, read_key_id
from moss_voice.errors import (
    CorruptDataError,
    FormatVersionError,
    InvalidArgumentError,
    ModelMismatchError,
    TooLargeError,
)
from moss_voice.server.settings import Limits

__all__ = [
    "Facts",
    "check_commit",
    "check_document",
    "check_reference",
    "check_segment",
    "check_successor",
    "decode",
]

# Readers parse recursively.
_MAX_DEPTH: Final = 64
# The year 9999, in milliseconds: whoever writes after a later stamp could not count on from it.
_MAX_TIME_MS: Final = 253_402_300_799_999
_KEYS: Final = frozenset({"id", "text", "metadata", "payload"})


class Facts(NamedTuple):
    """What was found in a segment.

    Attributes:
        rows: Documents put; None where only a key's holder could tell, as the next three.
        key_id: Of the key that it is sealed with; None where anybody can read it.
    """

    size_bytes: int
    rows: int | None
    tombstones: int | None
    model_id: str | None
    dim: int | None
    key_id: str | None


def check_segment(data: Buffer, limits: Limits) -> Facts:
    """Check all of a segment but its hash. About 6 us for a document.

    Raises:
        FormatVersionError: If a newer moss_voice wrote it.
        CorruptDataError: If a reader could stumble over it.
        TooLargeError: If a document in it is larger than the limits allow.
    """
    if is_sealed(data):
        return Facts(len(data), None, None, None, None, read_key_id(data))
    segment = log.decode_segment(data)
    if not 1 <= len(segment.model_id) <= 500:
        raise CorruptDataError("segment: model_id: expected 1 to 500 characters")
    if segment.dim > 65536:
        raise CorruptDataError("segment: vectors: expected at most 65536 numbers each")
    if not len(segment) and not segment.tombstones:
        raise CorruptDataError("segment: expected rows or tombstones, got none")
    latest = max(
        int(segment.written_at.max(initial=0)), max(segment.tombstones.values(), default=0)
    )
    if latest > _MAX_TIME_MS:
        raise CorruptDataError("segment: a time is beyond the year 9999")
    for id_ in segment.tombstones:
        if len(id_) > limits.max_id_bytes:
            raise TooLargeError(f"segment: an id is longer than {limits.max_id_bytes} bytes")
    for row, id_ in enumerate(segment.ids):  # one by one: all lines at once would be a copy of them
        check_document(segment.documents[row], id_, limits, where=f"segment: row {row}")
    return Facts(
        len(data), len(segment), len(segment.tombstones), segment.model_id, segment.dim, None
    )


def check_document(line: bytes, id_: str, limits: Limits, *, where: str) -> None:
    """Check one stored line: that it is the document of that id, and no larger than allowed.

    Raises:
        CorruptDataError: If it is not what `index.encode_document` writes.
        TooLargeError: If a part of it is larger than the limits allow.
    """
    if len(line) > limits.max_document_bytes:
        raise TooLargeError(
            f"{where}: expected a document of at most {limits.max_document_bytes} bytes, got {len(line)}"
        )
    parts = _parsed(line, where)
    if not isinstance(parts, dict) or not parts.keys() <= _KEYS:
        raise CorruptDataError(f"{where}: expected an object of id, text, metadata and payload")
    text, metadata = parts.get("text"), parts.get("metadata")
    if parts.get("id") != id_:
        raise CorruptDataError(f"{where}: the id in the document is another than the row's")
    if not isinstance(text, str):
        raise CorruptDataError(f"{where}: text: expected a string")
    if metadata is not None and not _is_flat(metadata):
        raise CorruptDataError(
            f"{where}: metadata: expected an object of strings, numbers and booleans"
        )
    # What is shorter as a line is shorter in its parts: JSON makes nothing smaller.
    if len(line) > limits.max_text_bytes and _size(text) > limits.max_text_bytes:
        raise TooLargeError(f"{where}: text: expected at most {limits.max_text_bytes} bytes")
    if len(line) > limits.max_id_bytes and _size(id_) > limits.max_id_bytes:
        raise TooLargeError(f"{where}: id: expected at most {limits.max_id_bytes} bytes")
    if metadata and len(line) > limits.max_metadata_bytes:
        size = sum(_size(key) + _size(str(value)) for key, value in metadata.items())
        if size > limits.max_metadata_bytes:
            raise TooLargeError(
                f"{where}: metadata: expected at most {limits.max_metadata_bytes} bytes, got {size}"
            )


def _parsed(line: bytes, where: str) -> Any:
    try:
        text = line.decode()
        # Every level opens with a bracket, so few brackets need no look.
        if line.count(b"[") + line.count(b"{") > _MAX_DEPTH and _depth(text) > _MAX_DEPTH:
            raise TooLargeError(f"{where}: expected at most {_MAX_DEPTH} levels of nesting")
        value = _DECODER.decode(text)
        if b"\\u" in line:
            # Half of a surrogate pair: a string that cannot be sent to anybody.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        if isinstance(error, TooLargeError):
            raise
        raise CorruptDataError(f"{where}: expected a line of JSON in UTF-8") from None
    return value


def _depth(text: str) -> int:
    """Return how deep brackets nest, outside of strings."""
    depth = deepest = 0
    inside = escaped = False
    for c in text:
        if inside:
            if escaped:
                escaped = False
            elif c == "\\":
                escaped = True
            elif c == '"':
                inside = False
        elif c == '"':
            inside = True
        elif c in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif c in "]}":
            depth -= 1
    return deepest


def _refused(constant: str) -> Any:  # noqa: ARG001
    raise ValueError("not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError("not finite")
    return number


_DECODER: Final = json.JSONDecoder(parse_constant=_refused, parse_float=_finite)


def _is_flat(metadata: object) -> bool:
    return isinstance(metadata, dict) and all(
        isinstance(value, str | int | float) for value in metadata.values()
    )


def _size(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


# --- commits ---------------------------------------------------------------------------------------

_FIELDS: Final = frozenset(field.name for field in fields(Commit))


def decode(data: Buffer) -> Commit:
    """Return the commit that was sent.

    Raises:
        FormatVersionError: If a newer moss_voice wrote it.
        CorruptDataError: If it is none; of its fields only the names of ours are told.
    """
    try:
        return log.decode_commit(data)
    except FormatVersionError:
        raise
    except CorruptDataError as error:
        field = str(error).removeprefix("commit: ").partition(":")[0].partition(".")[0]
        told = str(error) if field in _FIELDS else "commit: expected the fields of one, in JSON"
        raise CorruptDataError(told) from None


def check_commit(
    commit: Commit, *, index: str, version: int, limits: Limits, now: datetime, max_ahead_s: float
) -> None:
    """Check what a commit says of itself and where it was sent.

    Raises:
        InvalidArgumentError: If it belongs elsewhere, deletes, or was made in the future.
        TooLargeError: If it names more segments than allowed.
    """
    if commit.index != index:
        raise InvalidArgumentError("commit: index: expected the index of the path")
    if commit.version != version:
        raise InvalidArgumentError(
            f"commit: version: expected {version}, as in the path, got {commit.version}"
        )
    if commit.deleted:
        raise InvalidArgumentError("commit: deleted: an index is deleted by DELETE")
    if len(commit.segments) > limits.max_commit_segments:
        raise TooLargeError(
            f"commit: expected at most {limits.max_commit_segments} segments, got"
            f" {len(commit.segments)}"
        )
    latest = now + timedelta(seconds=max_ahead_s)
    for name in ("created_at", "updated_at"):
        if getattr(commit, name) > latest:
            raise InvalidArgumentError(f"commit: {name}: is in the future; check the clock")


def check_successor(commit: Commit, head: Head) -> None:
    """Check that a commit fits on the newest one.

    Raises:
        ModelMismatchError: If the index belongs to another model.
        InvalidArgumentError: If it would take back what a commit stands for.
    """
    there = head.alive
    if head.commit is not None and commit.purged < head.commit.purged:
        raise InvalidArgumentError(
            f"commit: purged: expected {head.commit.purged} or more, got {commit.purged}"
        )
    if there is None:
        return
    if (there.model_id, there.dim) != (commit.model_id, commit.dim):
        raise ModelMismatchError(
            f"commit: model_id or dim: the index belongs to another model ({there.dim} dimensions)"
        )
    if there.index_id != commit.index_id:
        raise InvalidArgumentError("commit: index_id: the index has another one")


def check_reference(ref: SegmentRef, facts: Facts, commit: Commit) -> None:
    """Check that what a commit says of a segment is true.

    Raises:
        InvalidArgumentError: If it is not.
        ModelMismatchError: If the segment was made with another model.
    """
    said: Mapping[str, object] = {
        "size_bytes": ref.size_bytes,
        "rows": ref.rows,
        "tombstones": ref.tombstones,
        "key_id": ref.key_id,
    }
    unknown: Sequence[str] = () if facts.key_id is None else ("rows", "tombstones")
    for name, value in said.items():
        if name not in unknown and value != getattr(facts, name):
            raise InvalidArgumentError(
                f"commit: segment {ref.sha256[:12]}: {name}: is not what the segment holds"
            )
    if facts.key_id is None and (facts.model_id, facts.dim) != (commit.model_id, commit.dim):
        raise ModelMismatchError(
            f"commit: segment {ref.sha256[:12]} was made with another model than the commit says"
        )
