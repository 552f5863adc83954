"""The server's URL, and the paths below it: names become components, and nothing else gets in.

Every name is checked before it is part of a path, so that none can lead elsewhere.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Final
from urllib.parse import quote, urlsplit

import httpx

from moss_voice.cloud import log
from moss_voice.errors import InvalidArgumentError, JobNotFoundError

__all__ = [
    "checked_url",
    "index_path",
    "is_in_the_clear",
    "job_path",
    "project_path",
    "segment_path",
]

_JOB_ID: Final = re.compile(r"[A-Za-z0-9_-]{1,100}")


def checked_url(url: str) -> str:
    """Return a server's URL without a slash at its end.

    Raises:
        InvalidArgumentError: If it is something else; what came is not quoted, since it may hold a key.
    """
    expected = "cloud: expected http(s)://HOST:PORT/PREFIX"
    try:
        parts = urlsplit(url)
        parsed = httpx.URL(url)
        _ = parts.port
    except (ValueError, httpx.InvalidURL):
        raise InvalidArgumentError(f"{expected}, got something that is no URL") from None
    if "@" in parts.netloc:
        raise InvalidArgumentError(
            f"{expected} without credentials: those go into project_key or MOSS_PROJECT_KEY"
        )
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise InvalidArgumentError(expected)
    if "?" in url or "#" in url:
        raise InvalidArgumentError(f"{expected}, without ? and #")
    return str(parsed).rstrip("/")


def is_in_the_clear(url: str) -> bool:
    """Tell whether what goes to a server can be read on its way: plain HTTP to another machine."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname in (None, "localhost"):
        return False
    try:
        return not ipaddress.ip_address(str(parts.hostname)).is_loopback
    except ValueError:
        return True


def _component(name: str) -> str:
    """Return a name as one component of a path: all but what is unreserved is percent-encoded.

    So are dots that stand alone, which would mean a folder.
    """
    return name.replace(".", "%2E") if name in (".", "..") else quote(name, safe="")


def project_path(project: str) -> str:
    """Return the path of a project, whose id is checked."""
    return f"/v1/projects/{_component(log.check_name(project, what='project id'))}"


def index_path(project: str, index: str) -> str:
    """Return the path of an index, whose name is checked."""
    path = project_path(project)
    return f"{path}/indexes/{_component(log.check_name(index))}"


def segment_path(project: str, index: str, sha256: str) -> str:
    """Return the path of a segment."""
    return f"{index_path(project, index)}/segments/{_component(sha256)}"


def job_path(project: str, job_id: str) -> str:
    """Return the path of a job.

    Raises:
        JobNotFoundError: If no job can have this id.
    """
    if not _JOB_ID.fullmatch(job_id):
        raise JobNotFoundError("there is no job of that id: job ids are letters, digits, - and _")
    return f"{project_path(project)}/jobs/{job_id}"
