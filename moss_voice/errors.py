"""What callers may catch.

Every error of ours is a `MossError` with a stable `code`; each leaf also inherits the builtin that a
Python programmer would catch. A message says what was expected, what came and what to do, and never
holds document or transcript text: ids, counts and field names only.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "AuthenticationError",
    "CloudUnavailableError",
    "ConflictError",
    "CorruptDataError",
    "EncryptionKeyError",
    "FilterError",
    "FormatVersionError",
    "IndexExistsError",
    "IndexNotFoundError",
    "InvalidArgumentError",
    "JobNotFoundError",
    "JournalError",
    "ModelLoadError",
    "ModelMismatchError",
    "ModelNotFoundError",
    "MossError",
    "PermissionDeniedError",
    "RateLimitedError",
    "RecordingNotFoundError",
    "SessionClosedError",
    "TooLargeError",
]


class MossError(Exception):
    """Any error that moss_voice raises on purpose."""

    code: ClassVar[str] = "error"


class InvalidArgumentError(MossError, ValueError):
    """An argument is not what the call takes."""

    code = "invalid_argument"


class FilterError(InvalidArgumentError):
    """A metadata filter is malformed; the message starts with the path of the fault."""

    code = "invalid_filter"


class ModelMismatchError(InvalidArgumentError):
    """Documents or an index belong to another embedding model than the one in use."""

    code = "model_mismatch"


class ModelNotFoundError(MossError, LookupError):
    """No embedding model of that name or at that path."""

    code = "model_not_found"


class ModelLoadError(MossError, RuntimeError):
    """An embedding model's files could not be fetched, verified or loaded."""

    code = "model_load"


class IndexNotFoundError(MossError, LookupError):
    """The cloud holds no index of that name."""

    code = "index_not_found"


class RecordingNotFoundError(MossError, LookupError):
    """No call of that name was recorded."""

    code = "recording_not_found"


class IndexExistsError(MossError, ValueError):
    """The cloud already holds an index of that name."""

    code = "index_exists"


class JobNotFoundError(MossError, LookupError):
    """The cloud knows no job of that id."""

    code = "job_not_found"


class AuthenticationError(MossError, PermissionError):
    """The project's credentials are missing, incomplete or wrong."""

    code = "authentication"


class PermissionDeniedError(AuthenticationError):
    """The credentials are right and do not allow this: a read-only key, or another project's."""

    code = "permission_denied"


class EncryptionKeyError(MossError, PermissionError):
    """An index is encrypted and its key is missing, or another one was given."""

    code = "encryption_key"


class ConflictError(MossError, RuntimeError):
    """Somebody else pushed since this copy was read.

    Attributes:
        base_version: The version that the caller's copy was read from.
        head_version: The version now in the cloud.
    """

    code = "conflict"

    def __init__(self, message: str, *, base_version: int, head_version: int) -> None:
        super().__init__(message)
        self.base_version = base_version
        self.head_version = head_version


class CorruptDataError(MossError, ValueError):
    """Stored bytes are damaged, truncated, or not ours."""

    code = "corrupt_data"


class FormatVersionError(CorruptDataError):
    """Stored bytes were written by a newer moss_voice than this one."""

    code = "format_version"


class CloudUnavailableError(MossError, ConnectionError):
    """The cloud did not answer, or refused to store."""

    code = "cloud_unavailable"


class RateLimitedError(CloudUnavailableError):
    """A server took no more requests of this project for now.

    Attributes:
        retry_after_s: When to try again.
    """

    code = "rate_limited"

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class TooLargeError(InvalidArgumentError):
    """Something is larger, or there are more of it, than a server takes; the message tells its limit."""

    code = "too_large"


class SessionClosedError(MossError, RuntimeError):
    """The session, call or client was used after it was closed."""

    code = "closed"


class JournalError(MossError, OSError):
    """A call's journal cannot be written, or another process holds it."""

    code = "journal"
