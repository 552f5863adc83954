"""What a server takes and how long it waits: the numbers that an operator may want to change."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Limits", "Settings"]

_Bytes = Annotated[int, Field(ge=1)]
_Seconds = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]


class Limits(BaseModel):
    """What one project may ask for; told to whoever holds a key.

    Attributes:
        max_segment_bytes: Of one push, as it is stored.
        max_commit_bytes: Of one commit.
        max_commit_segments: Segments that one commit names.
        max_request_bytes: Of a request with documents.
        max_request_documents: Documents of one request.
        max_document_bytes: Of a document's stored line: id, text, metadata and payload.
        max_text_bytes: Of a document's text in UTF-8.
        max_metadata_bytes: Of a document's metadata: keys and values.
        max_id_bytes: Of a document's id in UTF-8.
        max_indexes: Indexes of a project that are alive.
        max_subscribers: Open event streams of a project.
        requests_per_s: Requests of a project in the long run; 0 for any number.
        burst: Requests of a project at once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_segment_bytes: _Bytes = 512 << 20
    max_commit_bytes: _Bytes = 1 << 20
    max_commit_segments: Annotated[int, Field(ge=1)] = 1000
    max_request_bytes: _Bytes = 16 << 20
    max_request_documents: Annotated[int, Field(ge=1)] = 10_000
    max_document_bytes: _Bytes = 1 << 20
    max_text_bytes: _Bytes = 256 << 10
    max_metadata_bytes: _Bytes = 64 << 10
    max_id_bytes: _Bytes = 2000
    max_indexes: Annotated[int, Field(ge=1)] = 100_000
    max_subscribers: Annotated[int, Field(ge=1)] = 1000
    requests_per_s: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 500.0
    burst: Annotated[int, Field(ge=1)] = 1000


class Settings(BaseModel):
    """How one server behaves.

    Attributes:
        limits: What a project may ask for.
        key_cache_s: How long a key that was found right is not looked up again: a revocation is noticed
            within this time.
        failures_burst: Wrong keys that an address may try on a project at once.
        failures_per_s: And in the long run.
        failure_s: How long a wrong key's answer takes at least, so that its time tells nothing.
        watch_interval_s: How often an index that somebody watches is looked at for versions that came
            through other servers.
        heartbeat_s: Between two signs of life on an event stream.
        max_ahead_s: How far ahead of our clock a commit may say that it was made.
        body_idle_s: How long a request's body may pause.
        shutdown_s: How long requests under way may take to finish at the end.
        search_bytes: Memory for indexes that are searched here; one that needs more is not searched.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    limits: Limits = Limits()
    key_cache_s: _Seconds = 5.0
    failures_burst: Annotated[int, Field(ge=1)] = 30
    failures_per_s: _Seconds = 1.0
    failure_s: Annotated[float, Field(ge=0.0, le=10.0)] = 0.1
    watch_interval_s: _Seconds = 1.0
    heartbeat_s: _Seconds = 15.0
    max_ahead_s: _Seconds = 24 * 3600.0
    body_idle_s: _Seconds = 60.0
    shutdown_s: _Seconds = 30.0
    search_bytes: Annotated[int, Field(ge=0)] = 512 << 20
