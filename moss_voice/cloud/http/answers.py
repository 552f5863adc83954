"""What a server's answers say, checked: an answer that makes no sense is an error, never a value."""

from __future__ import annotations

import email.utils
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Final

import httpx
import pydantic
from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from moss_voice.cloud import log
from moss_voice.cloud.log import Commit, StoredSegment
from moss_voice.errors import CloudUnavailableError, CorruptDataError

__all__ = [
    "commit_of",
    "count_of",
    "http_date",
    "json_object",
    "read_body",
    "stored_name",
    "stored_segment",
    "version_of",
]


async def read_body(response: httpx.Response, most: int, *, cut: bool = False) -> bytes:
    """Return a body that is not too large; where `cut`, the beginning of one that is."""
    body = bytearray()
    async for part in response.aiter_bytes():
        body += part
        if len(body) > most:
            if cut:
                break
            raise CloudUnavailableError("the server answered with more than any answer of ours")
    return bytes(body)


def json_object(body: bytes) -> dict[str, Any]:
    """Return the fields of a JSON object.

    Raises:
        CorruptDataError: If the body is something else.
    """
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise CorruptDataError("answer of the server: expected a JSON object")
    return fields


def commit_of(item: Any, index: str | None = None) -> Commit:
    """Return a commit, checked as one that was read from a store."""
    commit = log.decode_commit(json.dumps(item).encode())
    if index is not None and commit.index != index:
        raise CorruptDataError(f"commit of index {index!r}: it is another's, {commit.index!r}")
    return commit


@checked_dataclass(config=ConfigDict(hide_input_in_errors=True), frozen=True)
class _Listed:
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
    size_bytes: Annotated[int, Field(ge=0)]
    at: AwareDatetime


_LISTED: Final = TypeAdapter(_Listed)


def stored_name(item: Any) -> str:
    """Return the name of an index, checked."""
    if not isinstance(item, str):
        raise CorruptDataError("answer of the server: names: expected text")
    return log.check_name(item)


def stored_segment(item: Any) -> StoredSegment:
    """Return a segment of a list, checked."""
    try:
        listed = _LISTED.validate_python(item)
    except pydantic.ValidationError:
        raise CorruptDataError(
            "answer of the server: segments: expected sha256, size_bytes and at of each"
        ) from None
    return StoredSegment(listed.sha256, listed.size_bytes, listed.at)


def count_of(number: Any, what: str) -> int:
    """Return a number that counts something, checked."""
    if type(number) is not int or number < 0:
        raise CorruptDataError(f"answer of the server: {what}: expected a number, 0 or more")
    return number


def version_of(data: str) -> int:
    """Return the version that an event tells of.

    Raises:
        CloudUnavailableError: If it tells of none: the line is worth no more than one that was cut.
    """
    try:
        return count_of(json_object(data.encode()).get("version"), "version")
    except CorruptDataError as error:
        raise CloudUnavailableError(f"an event of the server makes no sense: {error}") from None


def http_date(value: str | None) -> datetime | None:
    """Return the time that a header gives; None where it gives none."""
    try:
        date = email.utils.parsedate_to_datetime(value or "")
    except ValueError:
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)
