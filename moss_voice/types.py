"""What callers pass and get.

Plain validated values: what is passed in can be built with positional or keyword arguments, what is
returned is frozen, and not validated again. A value that fails validation raises `pydantic.ValidationError` (a `ValueError`)
that names the field and never quotes the value, since values are transcripts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain
from dataclasses import field
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BeforeValidator, ConfigDict, Field
from pydantic.dataclasses import dataclass

__all__ = [
    "CallContext",
    "DocumentInfo",
    "GetDocumentsOptions",
    "Hit",
    "HitParts",
    "IndexInfo",
    "IndexVersion",
    "JobStatus",
    "JobStatusResponse",
    "MergedChanges",
    "Metadata",
    "MetadataValue",
    "MutationOptions",
    "MutationResult",
    "OnConflict",
    "PushIndexResult",
    "QueryOptions",
    "QueryResultDocumentInfo",
    "RecoveredCall",
    "SearchResult",
]

MetadataValue = str | int | float | bool
Metadata = dict[str, MetadataValue]
OnConflict = Literal["replace", "merge", "error"]
JobStatus = Literal["pending", "running", "completed", "failed"]

_CONFIG = ConfigDict(
    hide_input_in_errors=True, arbitrary_types_allowed=True, extra="forbid", allow_inf_nan=False
)


def _vector(value: object) -> object:
    """Turn arrays and sequences of numbers into a tuple of floats; leave the rest to pydantic."""
    if isinstance(value, np.ndarray):
        return tuple(value.astype(float).ravel().tolist()) if value.ndim == 1 else value
    return value


if TYPE_CHECKING:
    # What may be passed; what is kept is a tuple of floats.
    Vector = Sequence[float] | npt.NDArray[Any]
else:
    # Non-finite numbers pass here on purpose: the session names every offending document at once.
    Vector = Annotated[
        tuple[Annotated[float, Field(allow_inf_nan=True)], ...], BeforeValidator(_vector)
    ]


@dataclass(config=_CONFIG)
class DocumentInfo:
    """A document as a caller gives it and gets it back.

    Attributes:
        id: Unique within an index; not empty.
        text: What is embedded and matched by keywords.
        metadata: Flat: each value a str, int, float or bool. Filters read it.
        embedding: (dim,) numbers. Required with the model `custom`; with other models it is used
            in place of a model run when given.
        payload: Any JSON value, stored and handed back untouched, never searched.
    """

    id: Annotated[str, Field(min_length=1)]
    text: str
    metadata: Metadata | None = None
    embedding: Vector | None = None
    payload: Any = None


@dataclass(config=_CONFIG)
class QueryOptions:
    """How to search.

    Attributes:
        embedding: (dim,) numbers to search with in place of embedding the text.
        top_k: The most results to return; 5 where None.
        alpha: 1 ranks by meaning only, 0 by keywords only (nothing is embedded), between: both. 0.8
            where None.
        filter: A metadata filter; see `moss_voice.filters`.
        min_score: Leaves out results whose `score` is lower, in [0, 1].
    """

    embedding: Vector | None = None
    top_k: Annotated[int, Field(ge=1)] | None = None
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    filter: Mapping[str, Any] | None = None
    min_score: Annotated[float, Field(ge=0.0, le=1.0)] | None = None


@dataclass(config=_CONFIG)
class GetDocumentsOptions:
    """Which documents to get: all where `doc_ids` is None, none where it is empty; order is kept."""

    doc_ids: Sequence[str] | None = None


@dataclass(config=_CONFIG)
class MutationOptions:
    """How to add: with `upsert` a known id is updated, without it a known id is left as it is."""

    upsert: bool = True


@plain(frozen=True, slots=True)
class HitParts:
    """What a hit was ranked by: its rank score is the sum, comparable within one search only.

    Attributes:
        semantic: The cosine of its vector with the query's, times alpha.
        keyword: Its BM25 score, scaled, times 1 - alpha.
        focus: For being about what the call is about.
        neighbour: What the turns beside it lent, below 0 where they fit worse than most.
        recency: For being among the later turns of the call.
        repeat: What it lost for being close to a better hit, or saying much the same; 0 or below.
    """

    semantic: float = 0.0
    keyword: float = 0.0
    focus: float = 0.0
    neighbour: float = 0.0
    recency: float = 0.0
    repeat: float = 0.0

    @property
    def total(self) -> float:
        """The rank score."""
        return (
            self.semantic + self.keyword + self.focus + self.neighbour + self.recency + self.repeat
        )


@plain(frozen=True, slots=True)
class QueryResultDocumentInfo:
    """A document found by a query.

    Attributes:
        score: In [0, 1], higher is better.
        parts: What it was ranked by.
    """

    id: str
    text: str
    metadata: Metadata | None
    payload: Any
    score: float
    index_name: str
    parts: HitParts = field(default_factory=HitParts)


@plain(frozen=True, slots=True)
class SearchResult:
    """The documents found, best first."""

    docs: list[QueryResultDocumentInfo]
    query: str
    index_name: str
    time_taken_ms: float


@plain(frozen=True, slots=True)
class MergedChanges:
    """What a merge brought in that others had pushed, by document ids.

    Attributes:
        base_version: The version that this copy was read from.
        head_version: The version that it was merged with.
        added: Documents that are new to this copy.
        updated: Documents of which the others' write was newer.
        deleted: Documents that the others deleted.
    """

    base_version: int
    head_version: int
    added: tuple[str, ...]
    updated: tuple[str, ...]
    deleted: tuple[str, ...]


@plain(frozen=True, slots=True)
class PushIndexResult:
    """What a push did.

    Attributes:
        status: `completed`; `pending` where the cloud was away and the push waits in the outbox.
        version: The version of the index that the push made.
        uploaded_bytes: Bytes sent: new segments and the commit.
        merged_from: The version that somebody else had pushed meanwhile and that this push was merged
            with or replaced; None where nobody had.
        replaced: The version whose changes this push discarded, under `replace`; None where none were.
        merged: What a merge brought in; None where there was nothing to merge.
    """

    job_id: str
    index_name: str
    doc_count: int
    status: JobStatus
    version: int = 0
    uploaded_bytes: int = 0
    merged_from: int | None = None
    replaced: int | None = None
    merged: MergedChanges | None = None


@plain(frozen=True, slots=True)
class MutationResult:
    """What a change of a cloud index did; `doc_count` is the index's count after it."""

    job_id: str
    index_name: str
    doc_count: int


@plain(frozen=True, slots=True)
class IndexInfo:
    """An index in the cloud."""

    id: str
    name: str
    version: int
    status: Literal["ready"]
    doc_count: int
    created_at: datetime
    updated_at: datetime
    model: str
    ttl_s: int | None = None
    encrypted: bool = False


@plain(frozen=True, slots=True)
class IndexVersion:
    """A version of an index that is still kept.

    Attributes:
        version: Its number.
        parent: The version it was made on.
        doc_count: Its documents.
        at: When it was made, for a version that changed documents; else when they last changed.
        kind: `push`; `restore` (of the version `of`); `replace` (it discarded the version `of`);
            `upkeep`: segments were joined, sealed or given another retention period, and no document
            changed.
        of: See `kind`.
        segments: How many it is made of.
        size_bytes: Of its segments.
        current: True for the newest.
    """

    version: int
    parent: int
    doc_count: int
    at: datetime
    kind: Literal["push", "restore", "replace", "upkeep"]
    of: int | None
    segments: int
    size_bytes: int
    current: bool


@plain(frozen=True, slots=True)
class JobStatusResponse:
    """How far a job has come; `progress` is in [0, 1]."""

    job_id: str
    status: JobStatus
    progress: float
    current_phase: str | None
    error: str | None
    created_at: datetime
    updated_at: datetime
    completed_at: datetime | None


@plain(frozen=True, slots=True)
class Hit:
    """A turn of the call or a knowledge passage, recalled for a reply.

    Attributes:
        score: In [0, 1], higher is better.
        index_name: The call's own index, or the knowledge index that it comes from.
        source: For people and prompts: `turn 12, caller, 03:21`, or the index and id of a passage.
        parts: What it was ranked by.
    """

    id: str
    text: str
    score: float
    index_name: str
    source: str
    metadata: Metadata = field(default_factory=dict)
    parts: HitParts = field(default_factory=HitParts)


@plain(frozen=True, slots=True)
class CallContext:
    """What to put before the last user message for one reply; `text` is empty where nothing is.

    Attributes:
        text: The delimited, escaped block.
        hits: What the block holds, best first.
        took_ms: Milliseconds from the call of `context()` to its answer.
        outcome: `ok`; `skipped` (a blank or a filler: nothing was asked), `late` (the deadline
            passed) or `failed` (an error of ours, logged): in all three the block is empty.
        prefetched: True where the embedding of an interim was reused.
        query: The turn that it was asked for; after a hand-over, the one that the agent takes up.
        need: How near the turn is to what the knowledge knows, over what it takes to be asked: below 1
            nothing was looked up there. None where no knowledge was there to be asked.
    """

    text: str
    hits: list[Hit]
    took_ms: float
    outcome: Literal["ok", "skipped", "late", "failed"] = "ok"
    prefetched: bool = False
    query: str = ""
    need: float | None = None


@plain(frozen=True, slots=True)
class RecoveredCall:
    """What became of a journal that a dead process left.

    Attributes:
        index_name: The call's index; empty where the journal could not be read.
        turns: Changes in it that no push had covered.
        damaged: Records that could not be read.
        status: `pushed`; `elsewhere` (it belongs to another cloud, which `detail` names) or `failed`
            (`detail` says why): in both the journal is kept.
    """

    index_name: str
    turns: int
    damaged: int
    status: Literal["pushed", "elsewhere", "failed"]
    detail: str = ""
