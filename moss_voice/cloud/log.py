"""Commits and segments: what an index in a cloud is made of, and the plan of a push.

Pure: bytes in, values out. An index is a log of commits, numbered upwards; a commit names the segments
that make the index; a segment holds the rows and tombstones of one push. Neither ever changes once
written. What comes from outside decodes to a value that keeps every promise made here, or raises
`CorruptDataError`; nothing else escapes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, NamedTuple, Self, TypeVar, overload

import numpy as np
import numpy.typing as npt
import pydantic
import safetensors.numpy
from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from moss_voice.errors import (
    ConflictError,
    CorruptDataError,
    FormatVersionError,
    InvalidArgumentError,
    ModelMismatchError,
)
from moss_voice.keywords import Postings
from moss_voice.types import OnConflict

__all__ = [
    "COMMIT_FORMAT",
    "FORMAT",
    "FRESH_S",
    "GRACE_S",
    "KEEP_COMMITS",
    "TOMBSTONE_DAYS",
    "Commit",
    "Head",
    "Lines",
    "Resolution",
    "Segment",
    "SegmentRef",
    "StoredSegment",
    "check_name",
    "compact",
    "compaction_start",
    "decode_commit",
    "decode_segment",
    "encode_segment",
    "head_moved",
    "needs_compaction",
    "plan_push",
    "resolve",
]

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]
_Number = TypeVar("_Number", bound=np.generic)
Buffer = bytes | bytearray | memoryview

FORMAT: Final = 1
# Commits that say nothing beyond format 1 are still written in it, byte for byte.
COMMIT_FORMAT: Final = 2
# A writer that was offline for longer than this may bring a deleted document back by a merge.
TOMBSTONE_DAYS: Final = 30
MAX_SEGMENTS: Final = 16
# What a reader may still be loading, and a writer may still build upon.
KEEP_COMMITS: Final = 10
GRACE_S: Final = 24 * 3600.0
# A segment found already stored is only relied on while it is far younger than the grace period; and
# one that nothing names any more is left for as long, since a push may be about to name it again.
FRESH_S: Final = 3600.0

_MAX_NAME: Final = 200
_MAX_HEADER_BYTES: Final = 1 << 20
_METADATA_KEY: Final = "moss_voice"
_NORM_TOLERANCE: Final = 1e-2
_CHECK_ROWS: Final = 4096


def check_name(name: str, *, what: str = "index name") -> str:
    """Return a name if it may name an index or a project.

    Raises:
        InvalidArgumentError: If it is blank, longer than 200 characters, or holds a control character
            or half of a surrogate pair.
    """
    if not name.strip():
        raise InvalidArgumentError(f"{what}: expected a name, got a blank one")
    if len(name) > _MAX_NAME:
        raise InvalidArgumentError(
            f"{what}: expected at most {_MAX_NAME} characters, got {len(name)}"
        )
    if any(c < " " or "\x7f" <= c <= "\x9f" or "\ud800" <= c <= "\udfff" for c in name):
        raise InvalidArgumentError(
            f"{what}: expected no control characters, got {name.encode('ascii', 'backslashreplace')!r}"
        )
    return name


# --- commits ---------------------------------------------------------------------------------------

_STRICT = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)
_Count = Annotated[int, Field(ge=0, lt=1 << 53)]
_Token = Annotated[str, Field(min_length=1, max_length=500)]
_KeyId = Annotated[str, Field(pattern=r"^[0-9a-f]{16}\z")]


@checked_dataclass(config=_STRICT, frozen=True)
class SegmentRef:
    """The address of a segment, and what can be known without reading it.

    Attributes:
        sha256: Of its bytes, 64 lower-case hex digits; its name in the cloud.
        size_bytes: How many bytes.
        rows: Documents put, dead ones included.
        tombstones: Documents deleted.
        key_id: Of the key that it is sealed with; None where anybody can read it. See `cloud.sealing`.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
    size_bytes: Annotated[_Count, Field(ge=1)]
    rows: _Count
    tombstones: _Count
    key_id: _KeyId | None = None

    @classmethod
    def of(cls, data: Buffer, *, rows: int, tombstones: int, key_id: str | None = None) -> Self:
        """Return the address of encoded bytes; costs one SHA-256 over them."""
        return cls(hashlib.sha256(data).hexdigest(), len(data), rows, tombstones, key_id)


@checked_dataclass(config=_STRICT, frozen=True)
class Commit:
    """One version of an index.

    Attributes:
        index: The index's name.
        index_id: Stays through pushes and changes when a deleted index is made anew.
        version: From 1 upwards, never used twice under one name, also not after a deletion.
        parent: The version this one was planned on; 0 where there was none.
        changed: The version at which documents last changed: below `version` where segments were only
            joined since, which is no conflict to anybody.
        replaced: The newest version that this one discards: where somebody else had pushed, or an older
            version was restored.
        model_id: Of the embedding model of every segment.
        dim: Numbers per vector.
        analyzer: Of the pusher's keywords; each segment names its own.
        segments: Oldest first; see `resolve`.
        doc_count: Documents alive.
        created_at: When the index was first pushed.
        updated_at: When its documents last changed.
        job_id: Of the push.
        deleted: True where the index was deleted; it then has no segments.
        restored: The older version whose documents this one brought back.
        ttl_s: Seconds after `updated_at` at which the index is to be gone; None keeps it.
        purged: Versions below this one were removed for good because documents were forgotten; nobody
            may build on them. 0 where none were.
        mac: Hexadecimal HMAC-SHA256 of the commit without it, where the index is encrypted: see
            `cloud.sealing`.
    """

    index: _Token
    index_id: _Token
    version: Annotated[_Count, Field(ge=1)]
    parent: _Count
    changed: Annotated[_Count, Field(ge=1)]
    replaced: _Count | None
    model_id: _Token
    dim: Annotated[int, Field(ge=1, le=65536)]
    analyzer: str
    segments: tuple[SegmentRef, ...]
    doc_count: _Count
    created_at: AwareDatetime
    updated_at: AwareDatetime
    job_id: _Token
    deleted: bool = False
    format: Literal[1, 2] = 1
    restored: _Count | None = None
    ttl_s: Annotated[_Count, Field(ge=1)] | None = None
    purged: _Count = 0
    mac: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")] | None = None

    def __post_init__(self) -> None:
        """Check what the fields owe each other."""
        says_more = any(getattr(self, name) != default for name, default in _LATER.items())
        sealed = any(ref.key_id is not None for ref in self.segments)
        object.__setattr__(self, "format", 2 if says_more or sealed else 1)
        check_name(self.index)
        if self.parent >= self.version:
            raise ValueError("parent must be below version")
        if self.changed > self.version:
            raise ValueError("changed must not be above version")
        if len({ref.sha256 for ref in self.segments}) != len(self.segments):
            raise ValueError("a segment is named twice")
        if self.doc_count > sum(ref.rows for ref in self.segments):
            raise ValueError("doc_count exceeds the rows of the segments")
        if self.deleted and self.segments:
            raise ValueError("a deleted index has no segments")
        if self.purged > self.version:
            raise ValueError("purged must not be above version")
        if self.restored is not None and self.restored >= self.version:
            raise ValueError("restored must be below version")

    @property
    def expires_at(self) -> datetime | None:
        """When the index is to be gone, if nobody pushes to it before; None for never."""
        if self.ttl_s is None or self.deleted:
            return None
        try:
            return self.updated_at + timedelta(seconds=self.ttl_s)
        except OverflowError:
            return None

    @property
    def key_ids(self) -> frozenset[str]:
        """The keys that are needed to read it; none where anybody can."""
        return frozenset(ref.key_id for ref in self.segments if ref.key_id is not None)

    def encode(self) -> bytes:
        """Return canonical JSON: equal commits give equal bytes."""
        fields = _COMMIT.dump_python(self)
        for name, default in _LATER.items():
            if fields[name] == default:
                del fields[name]
        for ref in fields["segments"]:
            if ref["key_id"] is None:
                del ref["key_id"]
        for name in ("created_at", "updated_at"):
            fields[name] = fields[name].astimezone(UTC).isoformat(timespec="microseconds")
        return json.dumps(
            fields, ensure_ascii=False, sort_keys=True, separators=(",", ":")
        ).encode()


# What came with format 2, and what it is where nothing is said of it.
_LATER: Final[Mapping[str, object]] = {
    "restored": None,
    "ttl_s": None,
    "purged": 0,
    "mac": None,
}
_COMMIT: Final = TypeAdapter(Commit)


class Head(NamedTuple):
    """The end of an index's log.

    Attributes:
        commit: The newest whole commit, deleted or not; None where there is none.
        newest: The highest number in use; 0 where there is none.
    """

    commit: Commit | None
    newest: int

    @property
    def alive(self) -> Commit | None:
        """The newest commit, unless the index is deleted."""
        return None if self.commit is None or self.commit.deleted else self.commit


class StoredSegment(NamedTuple):
    """A segment that is stored, whether or not a commit names it."""

    sha256: str
    size_bytes: int
    at: datetime


def decode_commit(data: Buffer) -> Commit:
    """Read back what `Commit.encode` wrote.

    Raises:
        FormatVersionError: If a newer moss_voice wrote it.
        CorruptDataError: If it is anything but a commit; the message names the field.
    """
    text = bytes(data)
    fields = _json(text, "commit")
    if not isinstance(fields, dict):
        raise CorruptDataError("commit: expected a JSON object")
    _check_format(fields, "commit", newest=COMMIT_FORMAT)
    if fields["format"] == 1 and not _LATER.keys().isdisjoint(fields):
        raise CorruptDataError("commit: holds what its format does not know")
    try:
        return _COMMIT.validate_json(text)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"])) or "commit"
        raise CorruptDataError(f"commit: {where}: {first['msg']}") from None


def _json(text: bytes, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise CorruptDataError(f"{what}: expected JSON in UTF-8, got {len(text)} bytes") from None


def _check_format(fields: Mapping[str, Any], what: str, *, newest: int = FORMAT) -> None:
    number = fields.get("format")
    if type(number) is not int or number < 1:
        raise CorruptDataError(f"{what}: expected a format number")
    if number > newest:
        raise FormatVersionError(
            f"{what}: written in format {number}, this moss_voice reads up to {newest}; upgrade it"
        )


# --- segments --------------------------------------------------------------------------------------


class Lines(Sequence[bytes]):
    """Encoded documents in one buffer, cut out only when asked for.

    A loaded index of 50,000 documents needs most of them never.
    """

    __slots__ = ("_data", "_offsets")

    def __init__(self, data: U8, offsets: I64) -> None:
        """Take checked parts.

        Args:
            data: (bytes,) uint8.
            offsets: (n + 1,) int64, ascending from 0 to the size of `data`.
        """
        self._data = data
        self._offsets = offsets

    def __len__(self) -> int:
        return self._offsets.size - 1

    @overload
    def __getitem__(self, row: int) -> bytes: ...
    @overload
    def __getitem__(self, row: slice) -> list[bytes]: ...
    def __getitem__(self, row: int | slice) -> bytes | list[bytes]:
        if isinstance(row, slice):
            return [self[at] for at in range(*row.indices(len(self)))]
        n = len(self)
        if not -n <= row < n:
            raise IndexError(f"row {row} of {n}")
        row %= n
        return self._data[self._offsets[row] : self._offsets[row + 1]].tobytes()

    def __iter__(self) -> Iterator[bytes]:
        # One copy of the whole, then slices of bytes: ten times as fast as slices of an array.
        data = self._data.tobytes()
        bounds = self._offsets.tolist()
        return (data[start:end] for start, end in pairwise(bounds))


@dataclass(frozen=True, eq=False)
class Segment:
    """The rows and tombstones of one push, in the order of insertion.

    Attributes:
        model_id: Of the model that made the vectors.
        analyzer: That made the postings; empty where there are none, to be made anew on load.
        ids: One per row, distinct.
        documents: One encoded line of JSON per row.
        written_at: (n,) int64, milliseconds of a hybrid clock: no writer stamps two changes of one
            document alike.
        vectors: (n, dim) float32 unit rows (or zeros).
        postings: The rows' terms; rows numbered from 0.
        lengths: (n,) int32, terms per row.
        tombstones: When each deleted document was deleted, milliseconds. The segment may hold a row
            of the same id: added again later, or (dead on arrival) deleted after.
    """

    model_id: str
    analyzer: str
    ids: Sequence[str]
    documents: Sequence[bytes]
    written_at: I64
    vectors: F32
    postings: Postings
    lengths: I32
    tombstones: Mapping[str, int] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Segment {len(self.ids)} rows, {len(self.tombstones)} tombstones>"

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return int(self.vectors.shape[1])


_DTYPES: Final[Mapping[str, tuple[str, type[np.generic]]]] = {
    "document_offsets": ("I64", np.int64),
    "documents": ("U8", np.uint8),
    "ids": ("U8", np.uint8),
    "keyword_counts": ("U16", np.uint16),
    "keyword_rows": ("I32", np.int32),
    "keyword_terms": ("I64", np.int64),
    "lengths": ("I32", np.int32),
    "tombstone_ids": ("U8", np.uint8),
    "tombstones_at": ("I64", np.int64),
    "vectors": ("F32", np.float32),
    "written_at": ("I64", np.int64),
}


def encode_segment(segment: Segment) -> bytes:
    """Return a segment as safetensors: equal segments give equal bytes.

    Strings sit in byte tensors (ids as one JSON array, documents as lines with offsets), so that
    loading parses one array of ids and no document. Costs a copy or two of the whole.

    Raises:
        InvalidArgumentError: If the parts disagree: a fault of the caller, better found before the
            bytes are stored than by whoever reads them.
    """
    offsets = np.zeros(len(segment.documents) + 1, np.int64)
    np.cumsum([len(line) for line in segment.documents], out=offsets[1:])
    arrays: dict[str, npt.NDArray[Any]] = {
        "document_offsets": offsets,
        "documents": np.frombuffer(b"".join(segment.documents), np.uint8),
        "ids": _pack_strings(list(segment.ids)),
        "keyword_counts": segment.postings.counts,
        "keyword_rows": segment.postings.rows,
        "keyword_terms": segment.postings.terms,
        "lengths": segment.lengths,
        "tombstone_ids": _pack_strings(list(segment.tombstones)),
        "tombstones_at": np.fromiter(segment.tombstones.values(), np.int64),
        "vectors": segment.vectors,
        "written_at": segment.written_at,
    }
    try:
        _unpack(segment.model_id, segment.analyzer, arrays)
    except CorruptDataError as error:
        raise InvalidArgumentError(str(error)) from None
    about = {"analyzer": segment.analyzer, "format": FORMAT, "model_id": segment.model_id}
    # One key only: the library writes several in an order of its own.
    metadata = {_METADATA_KEY: json.dumps(about, sort_keys=True, separators=(",", ":"))}
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    return safetensors.numpy.save(contiguous, metadata=metadata)


def decode_segment(data: Buffer, *, model_id: str | None = None, dim: int | None = None) -> Segment:
    """Read back what `encode_segment` wrote, in place.

    The arrays are read-only views into `data`: vectors of a mapped file stay in the file. Everything
    that a reader relies on is checked, but for the hash (which whoever fetched the bytes has checked)
    and the JSON of each document, which is parsed when it is asked for.

    Args:
        data: The whole segment; a `memoryview` of an `mmap` is fine.
        model_id: The index's model, where it is known.
        dim: The index's numbers per vector, where they are known.

    Raises:
        FormatVersionError: If a newer moss_voice wrote it.
        CorruptDataError: If it is damaged, cut short, not a segment, or of another model.
    """
    view = memoryview(data).toreadonly().cast("B")
    header, body = _read_header(view)
    about = _about(header.pop("__metadata__", None))
    if header.keys() != _DTYPES.keys():
        odd = sorted(header.keys() ^ _DTYPES.keys())[:3]
        raise CorruptDataError(f"segment: tensors missing or unknown: {', '.join(map(ascii, odd))}")
    arrays: dict[str, npt.NDArray[Any]] = {}
    spans: list[tuple[int, int]] = []
    for name, (code, dtype) in _DTYPES.items():
        shape, start, end = _read_entry(name, header[name], code, np.dtype(dtype).itemsize)
        if end > len(body):
            raise CorruptDataError(f"segment: {name} ends beyond the data: cut short?")
        spans.append((start, end))
        arrays[name] = np.frombuffer(body[start:end], dtype).reshape(shape)
    end_of_last = 0
    for start, end in sorted(spans):
        if start != end_of_last:
            raise CorruptDataError("segment: tensors overlap or leave a gap")
        end_of_last = end
    if end_of_last != len(body):
        raise CorruptDataError("segment: bytes beyond the last tensor")
    segment = _unpack(about["model_id"], about["analyzer"], arrays)
    if model_id is not None and segment.model_id != model_id:
        raise CorruptDataError("segment: made with another model than its commit says")
    if dim is not None and segment.dim != dim:
        raise CorruptDataError(f"segment: expected {dim} numbers per vector, got {segment.dim}")
    return segment


def _read_header(view: memoryview) -> tuple[dict[str, Any], memoryview]:
    """Split a safetensors file into its header and its tensors' bytes."""
    size = int.from_bytes(view[:8], "little")
    if len(view) < 8 or size > min(_MAX_HEADER_BYTES, len(view) - 8) or size % 8:
        raise CorruptDataError(
            f"segment: not a safetensors file, or cut short at {len(view)} bytes"
        )
    header = _json(bytes(view[8 : 8 + size]), "segment header")
    if not isinstance(header, dict):
        raise CorruptDataError("segment header: expected a JSON object")
    return header, view[8 + size :]


def _about(metadata: object) -> dict[str, Any]:
    """Return what the metadata tells, once its format is one that we read."""
    packed = metadata.get(_METADATA_KEY) if isinstance(metadata, dict) else None
    if not isinstance(packed, str):
        raise CorruptDataError("segment: no metadata of moss_voice: not one of our files")
    about = _json(packed.encode("utf-8", "surrogatepass"), "segment metadata")
    if not isinstance(about, dict):
        raise CorruptDataError("segment metadata: expected a JSON object")
    _check_format(about, "segment")
    if not all(isinstance(about.get(name), str) for name in ("analyzer", "model_id")):
        raise CorruptDataError("segment metadata: expected the names of a model and an analyzer")
    return about


def _read_entry(
    name: str, entry: object, code: str, item_bytes: int
) -> tuple[tuple[int, ...], int, int]:
    """Return a tensor's shape and where it sits."""
    if not isinstance(entry, dict) or entry.get("dtype") != code:
        raise CorruptDataError(f"segment: {name}: expected dtype {code}")
    shape = _counts(entry.get("shape"), 2 if name == "vectors" else 1, name)
    start, end = _counts(entry.get("data_offsets"), 2, name)
    if end - start != math.prod(shape) * item_bytes or start % item_bytes:
        raise CorruptDataError(f"segment: {name}: shape and data_offsets disagree")
    return shape, start, end


def _counts(numbers: object, n: int, name: str) -> tuple[int, ...]:
    """Return n whole numbers that no sum or product of a header can overflow."""
    if (
        not isinstance(numbers, list)
        or len(numbers) != n
        or not all(type(number) is int and 0 <= number < 1 << 53 for number in numbers)
    ):
        raise CorruptDataError(f"segment: {name}: expected {n} whole numbers")
    return tuple(numbers)


def _unpack(model_id: str, analyzer: str, arrays: Mapping[str, npt.NDArray[Any]]) -> Segment:
    """Make a segment of its arrays, checking all that they owe each other."""
    for name, (_, dtype) in _DTYPES.items():
        if arrays[name].dtype != dtype or arrays[name].ndim != (2 if name == "vectors" else 1):
            raise CorruptDataError(f"segment: {name}: dtype or number of axes is wrong")
    ids = _unpack_strings(arrays["ids"], "ids")
    tombstone_ids = _unpack_strings(arrays["tombstone_ids"], "tombstone_ids")
    n = len(ids)
    vectors, offsets = arrays["vectors"], arrays["document_offsets"]
    postings = Postings(arrays["keyword_terms"], arrays["keyword_rows"], arrays["keyword_counts"])
    m = postings.terms.size
    _require(len(set(ids)) == n, "ids", "repeat")
    _require(len(set(tombstone_ids)) == len(tombstone_ids), "tombstone_ids", "repeat")
    for name, expected in (
        ("written_at", n),
        ("lengths", n),
        ("vectors", n),
        ("document_offsets", n + 1),
        ("keyword_rows", m),
        ("keyword_counts", m),
        ("tombstones_at", len(tombstone_ids)),
    ):
        got = arrays[name].shape[0]
        _require(got == expected, name, f"number {got} where {expected} are due")
    _require(vectors.shape[1] >= 1, "vectors", "are empty")
    _require(offsets[0] == 0, "document_offsets", "do not start at 0")
    _require(offsets[-1] == arrays["documents"].size, "document_offsets", "miss the end")
    # Compared, not subtracted: a difference of damaged numbers may overflow.
    _require(bool((offsets[1:] >= offsets[:-1]).all()), "document_offsets", "descend")
    for name in ("written_at", "tombstones_at"):
        _require(bool((arrays[name] >= 0).all()), name, "are negative")
    postings.check(arrays["lengths"])
    _check_vectors(vectors)
    return Segment(
        model_id=model_id,
        analyzer=analyzer,
        ids=ids,
        documents=Lines(arrays["documents"], offsets),
        written_at=arrays["written_at"],
        vectors=vectors,
        postings=postings,
        lengths=arrays["lengths"],
        tombstones=dict(zip(tombstone_ids, arrays["tombstones_at"].tolist(), strict=True)),
    )


def _require(holds: bool, name: str, fault: str) -> None:
    if not holds:
        raise CorruptDataError(f"segment: {name} {fault}")


def _check_vectors(vectors: F32) -> None:
    """Check that every row is of length one, or all zeros: neither is true of a NaN or an infinity."""
    for start in range(0, len(vectors), _CHECK_ROWS):
        part = vectors[start : start + _CHECK_ROWS]
        with np.errstate(all="ignore"):
            squares = np.einsum("ij,ij->i", part, part)
            sound = (np.abs(squares - 1.0) <= _NORM_TOLERANCE) | (squares == 0.0)
        if not sound.all():
            row = start + int(np.flatnonzero(~sound)[0])
            raise CorruptDataError(f"segment: vectors: row {row} is not finite and of length one")


def _pack_strings(strings: list[str]) -> U8:
    text = json.dumps(strings, ensure_ascii=False, separators=(",", ":"))
    try:
        packed = text.encode()
    except UnicodeEncodeError:
        packed = json.dumps(strings, separators=(",", ":")).encode()
    return np.frombuffer(packed, np.uint8)


def _unpack_strings(packed: U8, name: str) -> list[str]:
    strings = _json(packed.tobytes(), f"segment: {name}")
    if not isinstance(strings, list) or not set(map(type, strings)) <= {str} or "" in strings:
        raise CorruptDataError(f"segment: {name}: expected a JSON array of non-empty strings")
    return strings


# --- what the segments make ------------------------------------------------------------------------


class Resolution(NamedTuple):
    """Which rows of a commit's segments are alive, and where they belong.

    Attributes:
        live: Per segment, (n,) bool.
        ordinals: Per segment, (n,) int64: the place of each row in the order of first insertion;
            distinct, ascending but for updates, not dense.
        tombstones: The newest deletion of each document that was deleted, also where it was added
            again later.
        doc_count: Rows alive.
    """

    live: tuple[Bool, ...]
    ordinals: tuple[I64, ...]
    tombstones: dict[str, int]
    doc_count: int


def resolve(segments: Sequence[Segment]) -> Resolution:
    """Decide which rows live: per document the last writer wins.

    Of the rows of one id, the one with the greatest (written_at, position of its segment) stands,
    unless a tombstone in any segment, earlier or later, bears the same or a later time: at a tie
    between a deletion and a row the deletion wins, so that the order of segments does not matter. A
    document's place is that of its first row that no tombstone reaches, so an update keeps the place
    and a document deleted and added anew goes to the end.

    Args:
        segments: In the order of the commit.

    Returns:
        O(rows): a set lookup or two per row, more only for ids written twice or deleted. A lone
        segment without tombstones costs two arrays.
    """
    starts = np.cumsum([0, *(len(segment) for segment in segments)])
    live = [np.ones(len(segment), np.bool_) for segment in segments]
    ordinals = [
        np.arange(start, start + len(segment), dtype=np.int64)
        for start, segment in zip(starts, segments, strict=False)
    ]
    deleted_at: dict[str, int] = {}
    for segment in segments:
        for id_, at in segment.tombstones.items():
            deleted_at[id_] = max(at, deleted_at.get(id_, at))
    contested = _contested(segments, deleted_at)
    if contested:
        winners: dict[str, tuple[int, int, int]] = {}  # (written_at, segment, row)
        places: dict[str, np.int64] = {}
        for number, segment in enumerate(segments):
            for row, id_ in enumerate(segment.ids):
                if id_ not in contested:
                    continue
                live[number][row] = False
                at = int(segment.written_at[row])
                if at <= deleted_at.get(id_, -1):
                    continue
                places.setdefault(id_, ordinals[number][row])
                winners[id_] = max(winners.get(id_, (-1, 0, 0)), (at, number, row))
        for id_, (_, number, row) in winners.items():
            live[number][row] = True
            ordinals[number][row] = places[id_]
    return Resolution(
        tuple(live), tuple(ordinals), deleted_at, sum(int(mask.sum()) for mask in live)
    )


def _contested(segments: Sequence[Segment], deleted: Mapping[str, int]) -> set[str]:
    """Return the ids that are written in several segments, or deleted in one."""
    contested = set(deleted)
    if len(segments) > 1:
        # The largest segment is only probed: to build a set of its ids is what costs.
        largest = max(segments, key=len)
        seen: set[str] = set()
        for segment in segments:
            if segment is not largest:
                contested.update(seen.intersection(segment.ids))
                seen.update(segment.ids)
        contested.update(seen.intersection(largest.ids))
    return contested


# --- the plan of a push ----------------------------------------------------------------------------


def head_moved(head: Commit | None, base_version: int) -> bool:
    """Tell whether somebody else pushed since `base_version` was read (0: there was no index)."""
    if head is None:
        return base_version != 0
    if head.deleted and base_version == 0:
        return False
    # A head below the base: the cloud was emptied and filled anew.
    return head.changed > base_version or head.version < base_version


def plan_push(
    head: Commit | None,
    *,
    index: str,
    base_version: int,
    base_segments: Sequence[SegmentRef],
    delta: SegmentRef | None,
    doc_count: int,
    model_id: str,
    dim: int,
    analyzer: str,
    on_conflict: OnConflict,
    job_id: str,
    index_id: str,
    now: datetime,
    version: int | None = None,
    ttl_s: int | None = None,
) -> Commit:
    """Return the commit that a push makes, or `head` itself where there is nothing to commit.

    Args:
        head: The newest commit; a deleted one counts as an empty index of no model.
        index: The index's name.
        base_version: The version that the pusher's copy was read from; 0 where there was none.
        base_segments: The segments of that version.
        delta: What the pusher changed since, or None.
        doc_count: Documents alive in the pusher's copy. Where a merge joins in what others pushed, it is
            but a guess: the caller counts anew from the segments; see `resolve`.
        model_id: The pusher's model.
        dim: Its numbers per vector.
        analyzer: The pusher's.
        on_conflict: Where somebody else pushed meanwhile: `replace` leaves only the base and the
            delta, `merge` adds the delta to what is there, `error` raises.
        job_id: Of this push.
        index_id: For an index that is new.
        now: Aware; the time of the commit.
        version: The number to give; one above the head's where None.
        ttl_s: The index's retention period from now on; None leaves it as it is.

    Raises:
        ConflictError: Under `error`, if somebody else pushed meanwhile; under `replace`, if documents of
            the base were forgotten meanwhile, which it would bring back.
        ModelMismatchError: If the index belongs to another model.
    """
    there = head if head is not None and not head.deleted else None
    if there is not None and (there.model_id, there.dim) != (model_id, dim):
        raise ModelMismatchError(
            f"index {index!r} belongs to model {there.model_id!r} ({there.dim} dimensions), this"
            f" push to {model_id!r} ({dim}); open it with that model or push under another name"
        )
    head_version = head.version if head is not None else 0
    moved = head_moved(head, base_version)
    if moved and on_conflict == "error":
        raise ConflictError(
            f"index {index!r}: version {head_version} was pushed since version {base_version} was"
            " read; open it anew, or push with on_conflict='merge' or 'replace'",
            base_version=base_version,
            head_version=head_version,
        )
    purged = head.purged if head is not None else 0
    if on_conflict == "replace" and 0 < base_version < purged:
        raise ConflictError(
            f"index {index!r}: documents were forgotten since version {base_version} was read, and"
            " 'replace' would bring them back; open it anew, or push with on_conflict='merge'",
            base_version=base_version,
            head_version=head_version,
        )
    joins = not moved or on_conflict == "merge"
    kept = (there.segments if there is not None else ()) if joins else tuple(base_segments)
    # The same bytes twice would say nothing new: a push that is tried again after all went well.
    new = () if delta is None or delta in kept else (delta,)
    ttl_now = head.ttl_s if head is not None else None
    if there is not None and joins and not new and ttl_s in (None, ttl_now):
        return there
    number = version if version is not None else head_version + 1
    segments = (*kept, *new)
    if moved and joins:
        doc_count = min(doc_count, sum(ref.rows for ref in segments))
    return Commit(
        index=index,
        index_id=there.index_id if there is not None else index_id,
        version=number,
        parent=head_version,
        changed=number,
        replaced=head_version if moved and not joins else None,
        model_id=model_id,
        dim=dim,
        analyzer=analyzer,
        segments=segments,
        doc_count=doc_count,
        created_at=there.created_at if there is not None else now,
        updated_at=now,
        job_id=job_id,
        ttl_s=ttl_now if ttl_s is None else ttl_s,
        purged=purged,
    )


def needs_compaction(commit: Commit) -> bool:
    """Tell whether a reader would gain by fewer segments or fewer dead rows."""
    rows = sum(ref.rows for ref in commit.segments)
    dead = rows - commit.doc_count
    return len(commit.segments) > MAX_SEGMENTS or (len(commit.segments) > 1 and 2 * dead > rows)


def compaction_start(commit: Commit) -> int:
    """Return the position from which on the segments are worth joining into one.

    All of them where dead rows prevail; else from the end back, for as long as the next is not much
    larger than what follows it: a large segment is not written again because small ones pile up on it,
    and a row is written again O(log rows) times in all.
    """
    n_rows = sum(ref.rows for ref in commit.segments)
    if 2 * (n_rows - commit.doc_count) > n_rows or not commit.segments:
        return 0
    rows = [ref.rows + ref.tombstones for ref in commit.segments]
    start = len(rows) - 1
    tail = rows[start]
    # Half of the allowance is joined in any case, so that what is left is well below it.
    while start > 0 and (rows[start - 1] <= 2 * tail or start > MAX_SEGMENTS // 2):
        start -= 1
        tail += rows[start]
    return start


def compact(segments: Sequence[Segment], *, drop_tombstones_before: int | None = None) -> Segment:
    """Join segments into one that stands for them: live rows in order of insertion.

    Args:
        segments: Neighbours in a commit, in its order; at least one.
        drop_tombstones_before: Milliseconds. Older tombstones are left out: only right where the
            segments are all that the commit has (else an earlier row would live again), and after
            `TOMBSTONE_DAYS`, so that a late merge cannot bring a deleted document back.

    Returns:
        A segment without an analyzer where the segments' differ: its postings are made anew on load.
        Costs a copy of all live rows.

    Raises:
        ModelMismatchError: If the segments belong to different models.
    """
    first = segments[0]
    if any((s.model_id, s.dim) != (first.model_id, first.dim) for s in segments):
        raise ModelMismatchError("segments of different models cannot be joined")
    live, ordinals, tombstones, n = resolve(segments)
    rows_of = [np.flatnonzero(mask) for mask in live]
    order = np.argsort(_taken(ordinals, rows_of))
    picked = [(s, row) for s, rows in zip(segments, rows_of, strict=True) for row in rows.tolist()]
    picked = [picked[at] for at in order.tolist()]
    same_words = all(s.analyzer == first.analyzer for s in segments)
    return Segment(
        model_id=first.model_id,
        analyzer=first.analyzer if same_words else "",
        ids=[s.ids[row] for s, row in picked],
        documents=[s.documents[row] for s, row in picked],
        written_at=_taken([s.written_at for s in segments], rows_of)[order],
        vectors=_taken([s.vectors for s in segments], rows_of)[order],
        postings=_join_postings(segments, rows_of, order) if same_words else Postings.of([]),
        lengths=(
            _taken([s.lengths for s in segments], rows_of)[order]
            if same_words
            else np.zeros(n, np.int32)
        ),
        tombstones={
            id_: at
            for id_, at in tombstones.items()
            if drop_tombstones_before is None or at >= drop_tombstones_before
        },
    )


def _taken(columns: Sequence[npt.NDArray[_Number]], rows_of: Sequence[I64]) -> npt.NDArray[_Number]:
    """Return some rows of each column, one after the other."""
    return np.concatenate([column[rows] for column, rows in zip(columns, rows_of, strict=True)])


def _join_postings(segments: Sequence[Segment], rows_of: Sequence[I64], order: I64) -> Postings:
    """Return the postings of the rows that are kept, numbered by their new places."""
    place = np.empty(order.size, np.int32)
    place[order] = np.arange(order.size)
    parts: list[Postings] = []
    start = 0
    for segment, rows in zip(segments, rows_of, strict=True):
        renumbered = np.full(len(segment), -1, np.int32)
        renumbered[rows] = place[start : start + rows.size]
        start += rows.size
        new_rows = renumbered[segment.postings.rows]
        kept = new_rows >= 0
        parts.append(
            Postings(segment.postings.terms[kept], new_rows[kept], segment.postings.counts[kept])
        )
    terms = np.concatenate([part.terms for part in parts])
    new = np.concatenate([part.rows for part in parts])
    counts = np.concatenate([part.counts for part in parts])
    # The entries of a row stay together and in order of terms.
    by_row = np.argsort(new, kind="stable")
    return Postings(terms[by_row], new[by_row], counts[by_row])
