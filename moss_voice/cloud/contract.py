"""What a log of commits and segments promises, wherever it is kept."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import Protocol

from moss_voice.cloud.log import Commit, Head, StoredSegment
from moss_voice.types import JobStatusResponse

__all__ = ["Authenticator", "Log"]

# Returns a token for a moss-voice server; called again when one is refused.
Authenticator = Callable[[], Awaitable[str]]


class Log(Protocol):
    """Where the logs of a cloud are kept: on objects (`store`), or behind a server (`http`).

    Every method raises `CloudUnavailableError` where the far side does not answer.
    """

    @property
    def name(self) -> str:
        """Where it is, without credentials."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...

    async def check_credentials(self, project_id: str | None, project_key: str | None) -> str:
        """Return the project that the credentials open; raises `AuthenticationError`."""
        ...

    async def head(self, project: str, index: str) -> Head:
        """Return the end of an index's log; cheap where nothing changed since the last time."""
        ...

    async def heads(self, project: str) -> list[Commit]:
        """Return the newest commit of each index, by name."""
        ...

    async def names(self, project: str) -> list[str]:
        """Return the names under which anything is stored: of deleted indexes and unfinished pushes too."""
        ...

    async def history(self, project: str, index: str) -> list[Commit]:
        """Return the versions that are still kept, oldest first."""
        ...

    async def read_commit(self, project: str, index: str, version: int) -> Commit | None:
        """Return one version, or None where it was never made, is collected, or is over."""
        ...

    async def write_commit(self, project: str, commit: Commit) -> bool:
        """Store a commit if its number is free; True too where it is there already, this very one."""
        ...

    async def read_segment(
        self, project: str, index: str, sha256: str
    ) -> AsyncGenerator[bytes] | None:
        """Return a segment's bytes in parts, unchecked, or None where there is none."""
        ...

    async def segment_stored_at(self, project: str, index: str, sha256: str) -> datetime | None:
        """Return when a segment was stored, or None where there is none."""
        ...

    async def write_segment(
        self, project: str, index: str, sha256: str, data: bytes | memoryview
    ) -> bool:
        """Store a segment unless it is there, young; tells whether it was sent."""
        ...

    async def segments(self, project: str, index: str) -> list[StoredSegment]:
        """Return all segments that are stored, also what no commit names."""
        ...

    async def delete_segment(self, project: str, index: str, sha256: str) -> bool:
        """Remove a segment that nothing names and no push is using; tells whether it is gone."""
        ...

    async def delete_index(self, project: str, index: str) -> None:
        """Delete an index; raises `IndexNotFoundError`."""
        ...

    async def collect(self, project: str, index: str, *, grace_s: float, keep: int) -> int:
        """Remove what nobody can still need; returns how many objects that were."""
        ...

    async def put_job(self, project: str, job: JobStatusResponse) -> None:
        """Store how far a job has come."""
        ...

    async def get_job(self, project: str, job_id: str) -> JobStatusResponse:
        """Return how far a job has come; raises `JobNotFoundError`."""
        ...

    def watch(self, project: str, index: str) -> AsyncGenerator[int] | None:
        """Return the versions of an index as they are made, from now on; None where nobody tells.

        Ends, or raises `CloudUnavailableError`, when the line is cut.
        """
        ...
