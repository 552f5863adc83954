"""Short-lived tokens in a key's name, checked without a store: `mt1.PAYLOAD.SIGNATURE`.

The payload is JSON in URL-safe base64; the signature is HMAC-SHA256 over what comes before it, with a
secret that is derived from the stored record of the key. So a token ends with its key, and whoever reads
the store's records of keys could make one: they could do anything else with the store, too.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

import pydantic
from pydantic import BaseModel, ConfigDict, Field

__all__ = ["PREFIX", "Claims", "is_signed", "issue", "parse"]

PREFIX: Final = "mt1."


class Claims(BaseModel):
    """What a token says.

    Attributes:
        project: The project that it opens.
        key_id: Of the key in whose name it was issued.
        exp: Seconds since the epoch at which it ends.
        read_only: True where it cannot change anything.
    """

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True)

    format: Literal[1] = 1
    project: str
    key_id: str
    exp: Annotated[int, Field(ge=0, lt=1 << 37)]
    read_only: bool

    @property
    def ends_at(self) -> datetime:
        """When it ends."""
        return datetime.fromtimestamp(self.exp, UTC)


def issue(claims: Claims, signing: bytes) -> str:
    """Return a token."""
    body = PREFIX + _packed(claims.model_dump_json().encode())
    return f"{body}.{_packed(_signature(body, signing))}"


def parse(token: str) -> Claims | None:
    """Return what a token says, unchecked; None where it is none."""
    parts = token.split(".")
    if len(parts) != 3 or f"{parts[0]}." != PREFIX:
        return None
    try:
        return Claims.model_validate_json(_unpacked(parts[1]))
    except (pydantic.ValidationError, ValueError, binascii.Error):
        return None


def is_signed(token: str, signing: bytes) -> bool:
    """Tell whether a token bears the signature of a key; the time says nothing of how wrong it is."""
    body, _, signature = token.rpartition(".")
    expected = _packed(_signature(body, signing))
    return hmac.compare_digest(expected.encode(), signature.encode("utf-8", "surrogatepass"))


def _signature(body: str, signing: bytes) -> bytes:
    return hmac.digest(signing, body.encode("utf-8", "surrogatepass"), hashlib.sha256)


def _packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unpacked(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
