"""Names of projects and indexes as one path component each."""

from __future__ import annotations

import hashlib
from urllib.parse import unquote

from moss_voice.cloud import log

__all__ = ["decode_name", "encode_name"]


def encode_name(name: str, *, what: str = "index name") -> str:
    """Return the one path component that stands for a name, different for every name.

    Lower-case letters, digits, `-` and `_` stand for themselves and every other byte is
    percent-encoded: also capitals and dots, since some file systems take `Call` for `call` and give
    `..` or a last dot a meaning. What no file system could hold is cut and ends in a hash. A `~` never
    comes out but before that hash, so no name meets our own `~project.json`.

    Raises:
        InvalidArgumentError: See `log.check_name`.
    """
    log.check_name(name, what=what)
    encoded = "".join(
        c if c.isascii() and (c.islower() or c.isdigit() or c in "-_") else _percent(c)
        for c in name
    )
    if len(encoded) <= 200:
        return encoded
    return f"{encoded[:120]}~{hashlib.sha256(name.encode()).hexdigest()}"


def _percent(character: str) -> str:
    return "".join(f"%{byte:02x}" for byte in character.encode())


def decode_name(component: str) -> str:
    """Return the name that a path component stands for; one that was cut is told as it is stored."""
    return component if "~" in component else unquote(component)
