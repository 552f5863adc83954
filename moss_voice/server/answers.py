"""The shapes of answers and of requests, as OpenAPI tells them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from moss_voice.cloud.log import FRESH_S, Commit
from moss_voice.ranking import DEFAULT_ALPHA, DEFAULT_TOP_K
from moss_voice.server.settings import Limits
from moss_voice.types import Metadata

__all__ = [
    "CollectRequest",
    "Collected",
    "Commits",
    "DeleteDocuments",
    "DocumentFound",
    "DocumentIn",
    "DocumentOut",
    "Documents",
    "DocumentsDeleted",
    "DocumentsMerged",
    "ErrorAnswer",
    "Fault",
    "Gone",
    "HeadAnswer",
    "Index",
    "Indexes",
    "JobRecord",
    "MergeDocuments",
    "Names",
    "Parts",
    "Project",
    "SearchAnswer",
    "SearchRequest",
    "Segment",
    "SegmentStored",
    "Status",
    "Stored",
    "StoredSegments",
    "Token",
    "TokenRequest",
]

_STRICT = ConfigDict(extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Fault(BaseModel):
    """A stable code, and a message for people."""

    code: str
    message: str


class ErrorAnswer(BaseModel):
    """What went wrong: a stable code, and a message for people."""

    error: Fault


class Status(BaseModel):
    """That it works."""

    status: str


class Project(BaseModel):
    """What the key or token in use may do."""

    project: str
    key_id: str
    read_only: bool
    expires_at: datetime | None
    limits: Limits


class TokenRequest(BaseModel):
    """The token that is wanted."""

    model_config = _STRICT

    expires_in_s: Annotated[float, Field(ge=1.0, le=86400.0)] = 600.0
    read_only: Annotated[bool, Field(strict=True)] = True


class Token(BaseModel):
    """A token, told once."""

    token: str
    expires_at: datetime
    read_only: bool


class Commits(BaseModel):
    """Versions of one index, oldest first."""

    commits: list[Commit]


class Indexes(BaseModel):
    """The newest commit of each index of the project, by name."""

    indexes: list[Commit]


class Names(BaseModel):
    """Names under which anything is stored: of deleted indexes and unfinished pushes too."""

    names: list[str]


class HeadAnswer(BaseModel):
    """The end of an index's log: its newest whole commit, and the highest number in use."""

    commit: Commit | None
    newest: int


class Index(BaseModel):
    """One index."""

    id: str
    name: str
    version: int
    status: str
    doc_count: int
    created_at: datetime
    updated_at: datetime
    model: str
    ttl_s: int | None
    encrypted: bool


class Stored(BaseModel):
    """The version that is stored."""

    version: int


class SegmentStored(BaseModel):
    """The segment that is stored; `sent` is false where it was there, young."""

    sha256: str
    size_bytes: int
    sent: bool


class Segment(BaseModel):
    """A segment that is stored."""

    sha256: str
    size_bytes: int
    at: datetime


class StoredSegments(BaseModel):
    """Segments that are stored, also what no commit names."""

    segments: list[Segment]


class Gone(BaseModel):
    """Whether a segment is gone."""

    gone: bool


class CollectRequest(BaseModel):
    """What a collection leaves."""

    model_config = _STRICT

    grace_s: Annotated[float, Field(ge=FRESH_S, le=100 * 366 * 86400.0)] = 86400.0
    keep: Annotated[int, Field(ge=1, le=1_000_000, strict=True)] = 10


class Collected(BaseModel):
    """How many objects a collection removed."""

    removed: int


class DocumentOut(BaseModel):
    """A document, without its embedding."""

    id: str
    text: str
    metadata: Metadata | None
    payload: Any = None


class Documents(BaseModel):
    """Some documents of one version of an index, in order.

    `total` counts all of the index, or all that pass the filter. Fewer than asked for come where they are large; `next_offset` is where
    the rest begins, null at the end.
    """

    documents: list[DocumentOut]
    total: int
    version: int
    next_offset: int | None


class SearchRequest(BaseModel):
    """What to look for.

    `alpha` 1 ranks by meaning only, 0 by keywords only; an `embedding` is searched with in place of the
    query's own. `filter` is applied before ranking; `min_score` leaves out what scores lower.
    """

    model_config = _STRICT

    query: Annotated[str, Field(max_length=20_000)] = ""
    top_k: Annotated[int, Field(ge=1, le=100, strict=True)] = DEFAULT_TOP_K
    alpha: Annotated[float, Field(ge=0.0, le=1.0)] = DEFAULT_ALPHA
    filter: dict[str, Any] | None = None
    min_score: Annotated[float, Field(ge=0.0, le=1.0)] | None = None
    embedding: Annotated[list[float], Field(min_length=1, max_length=65536)] | None = None


class Parts(BaseModel):
    """What a hit was ranked by: its rank is their sum, comparable within one search only."""

    semantic: float
    keyword: float
    focus: float
    neighbour: float
    recency: float
    repeat: float


class DocumentFound(DocumentOut):
    """A document with its score in [0, 1], higher is better."""

    score: float
    parts: Parts


class SearchAnswer(BaseModel):
    """Documents of one version, best first; fewer than asked for where they are large.

    `by` tells what they were ranked by: `keywords` also where the server does not have the index's model,
    whatever `alpha` said.
    """

    documents: list[DocumentFound]
    version: int
    by: Literal["meaning", "both", "keywords"]
    took_ms: float


class DocumentIn(BaseModel):
    """A document with its embedding, of any length but zero: it is made one long."""

    model_config = _STRICT

    id: Annotated[str, Field(min_length=1)]
    text: str
    metadata: Metadata | None = None
    payload: Any = None
    embedding: Annotated[list[float], Field(min_length=1, max_length=65536)]


class MergeDocuments(BaseModel):
    """Documents to add, or to put in the place of those of the same id."""

    model_config = _STRICT

    documents: Annotated[list[DocumentIn], Field(min_length=1)]
    model_id: Annotated[str, Field(min_length=1, max_length=500)]


class DocumentsMerged(BaseModel):
    """The version with the documents in it."""

    version: int
    doc_count: int
    job_id: str


class DeleteDocuments(BaseModel):
    """Documents to delete; ids that are not there are passed over."""

    model_config = _STRICT

    ids: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)]


class DocumentsDeleted(BaseModel):
    """The version without the documents, and how many there were."""

    version: int
    doc_count: int
    deleted: int


class JobRecord(BaseModel):
    """How far a job has come; `progress` is in [0, 1]."""

    model_config = _STRICT

    job_id: Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,100}$")]
    status: Annotated[str, Field(pattern="^(pending|running|completed|failed)$")]
    progress: Annotated[float, Field(ge=0.0, le=1.0)]
    current_phase: Annotated[str, Field(max_length=1000)] | None
    error: Annotated[str, Field(max_length=10_000)] | None
    created_at: AwareDatetime
    updated_at: AwareDatetime
    completed_at: AwareDatetime | None
