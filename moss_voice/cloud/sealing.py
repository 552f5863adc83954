r"""Segments and commits that only the holder of a key can read or make.

A sealed segment, under which name and hash it is stored:

    20 bytes  b"moss_voice sealed 1\n"
     8        id of the key
    16        id of the segment, random
    12        nonce, random
     n + 16   AES-256-GCM of the segment and its tag; the associated data are all that comes before, the
              project and the index

so that a segment opens under its own name alone: one that is moved to another index or project, or cut, or
changed in one bit, does not open. A commit bears an HMAC-SHA256 over all that it says, so that nobody
without the key can leave out, exchange or bring back a segment within it. Whoever holds the store can still
withhold the newest versions, and sees names, sizes, times, counts and the model's name.

The two keys in use are derived from the given one by HKDF-SHA256 (RFC 5869), one for each purpose.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moss_voice.cloud.log import Buffer, Commit
from moss_voice.errors import CorruptDataError, EncryptionKeyError, InvalidArgumentError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

__all__ = ["MAGIC", "Keyring", "SealingKey", "is_sealed", "new_key", "read_key_id"]

MAGIC: Final = b"moss_voice sealed 1\n"
_KEY_BYTES: Final = 32
_HEADER_BYTES: Final = len(MAGIC) + 8 + 16 + 12
_TAG_BYTES: Final = 16


def new_key() -> str:
    """Make a key: 32 random bytes in URL-safe base64."""
    return base64.urlsafe_b64encode(secrets.token_bytes(_KEY_BYTES)).decode().rstrip("=")


def is_sealed(data: Buffer) -> bool:
    """Tell whether bytes are a sealed segment, as far as their beginning says."""
    return bytes(memoryview(data)[: len(MAGIC)]) == MAGIC


def read_key_id(data: Buffer) -> str:
    """Return the id of the key that a sealed segment needs; for whoever does not have the key.

    Raises:
        CorruptDataError: If it is no sealed segment, or cut short.
    """
    if not is_sealed(data):
        raise CorruptDataError("sealed segment: not one of our files")
    if len(data) <= _HEADER_BYTES + _TAG_BYTES:
        raise CorruptDataError(f"sealed segment: cut short at {len(data)} bytes")
    return bytes(memoryview(data)[len(MAGIC) : len(MAGIC) + 8]).hex()


class SealingKey:
    """A key, with what is derived from it."""

    def __init__(self, key: str | bytes) -> None:
        """Take a key.

        Args:
            key: 32 bytes, or them in base64 (URL-safe or not, padded or not) or as 64 hexadecimal digits.

        Raises:
            InvalidArgumentError: If it is anything else; the message does not quote it.
        """
        self._key = _decoded(key)
        self.id = hashlib.sha256(b"moss_voice key id\0" + self._key).digest()[:8].hex()

    def __repr__(self) -> str:
        return f"<SealingKey {self.id}>"

    @cached_property
    def _cipher(self) -> AESGCM:
        try:
            # An extra of its own: who does not encrypt need not have it.
            from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        except ImportError:
            raise EncryptionKeyError(
                "encryption needs the package `cryptography`: pip install 'moss-voice[encryption]'"
            ) from None
        return AESGCM(self._derived(b"segments"))

    def _derived(self, purpose: bytes) -> bytes:
        """Return a key for one purpose: HKDF-SHA256 (RFC 5869) without salt, one block long."""
        extracted = hmac.digest(b"\0" * 32, self._key, "sha256")
        return hmac.digest(extracted, b"moss_voice " + purpose + b"\x01", "sha256")

    def seal(self, data: Buffer, *, project: str, index: str) -> bytes:
        """Return a segment that only holders of the key can read, for one index alone."""
        nonce = secrets.token_bytes(12)
        header = MAGIC + bytes.fromhex(self.id) + secrets.token_bytes(16) + nonce
        return header + self._cipher.encrypt(nonce, data, _bound(header, project, index))

    def open(self, data: Buffer, *, project: str, index: str) -> bytes:
        """Return what was sealed.

        Raises:
            CorruptDataError: If it was changed, cut short, or sealed for another index.
        """
        from cryptography.exceptions import InvalidTag

        view = memoryview(data)
        header = bytes(view[:_HEADER_BYTES])
        try:
            return self._cipher.decrypt(
                header[-12:], view[_HEADER_BYTES:], _bound(header, project, index)
            )
        except InvalidTag:
            raise CorruptDataError(
                f"index {index!r}: a sealed segment does not open: it was changed, or sealed for another"
                " index"
            ) from None

    def mac(self, commit: Commit, *, project: str) -> str:
        """Return what a commit of a project must bear."""
        said = replace(commit, mac=None).encode()
        told = project.encode() + b"\0" + said
        return hmac.new(self._derived(b"commits"), told, "sha256").hexdigest()


def _bound(header: bytes, project: str, index: str) -> bytes:
    return b"\0".join((header, project.encode(), index.encode()))


class Keyring:
    """The key that new data is sealed with, and older ones that can still be read."""

    def __init__(self, keys: Sequence[str | bytes]) -> None:
        """Take keys, the current one first.

        Raises:
            InvalidArgumentError: If there is none, or one is no key.
        """
        if not keys:
            raise InvalidArgumentError("encryption_key: expected at least one key")
        made = [SealingKey(key) for key in keys]
        self.current = made[0]
        self._by_id = {key.id: key for key in reversed(made)}

    def __repr__(self) -> str:
        return f"<Keyring {self.current.id} and {len(self._by_id) - 1} older>"

    @property
    def ids(self) -> tuple[str, ...]:
        """The ids of the keys, that of the current one first; no secret."""
        older = [key_id for key_id in reversed(self._by_id) if key_id != self.current.id]
        return (self.current.id, *older)

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """Read a key file: one key per line, the current one first; lines that begin with # are notes.

        Raises:
            EncryptionKeyError: If there is no such file, or it cannot be read.
            InvalidArgumentError: If a line is no key.
        """
        try:
            lines = path.read_text(encoding="ascii").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise EncryptionKeyError(
                f"the key file {path} cannot be read: {type(error).__name__}"
            ) from None
        return cls([line.strip() for line in lines if line.strip() and not line.startswith("#")])

    def key(self, key_id: str, *, index: str) -> SealingKey:
        """Return the key that a segment or a commit needs.

        Raises:
            EncryptionKeyError: If it is not on the ring.
        """
        if key_id not in self._by_id:
            raise EncryptionKeyError(
                f"index {index!r} is encrypted with key {key_id}, given: {', '.join(self._by_id)}; add"
                " that key after the current one"
            )
        return self._by_id[key_id]

    def check(self, commit: Commit, *, project: str) -> None:
        """Check that an encrypted index's commit was made by a holder of a key.

        Raises:
            EncryptionKeyError: If none of its keys is here.
            CorruptDataError: If it bears no mark, or one that no key here makes.
        """
        if commit.deleted or not (commit.key_ids or commit.mac):
            return
        for key_id in sorted(commit.key_ids):
            self.key(key_id, index=commit.index)
        macs = (key.mac(commit, project=project) for key in self._by_id.values())
        if commit.mac is None or not any(hmac.compare_digest(m, commit.mac) for m in macs):
            raise CorruptDataError(
                f"index {commit.index!r}: version {commit.version} was not made by a holder of its key, or"
                " was changed since"
            )


def _decoded(key: str | bytes) -> bytes:
    if isinstance(key, bytes):
        raw = key
    else:
        text = key.strip()
        raw = b""
        try:
            if len(text) == 2 * _KEY_BYTES:
                raw = bytes.fromhex(text)
            else:
                padded = text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4)
                raw = base64.b64decode(padded.replace("-", "+").replace("_", "/"), validate=True)
        except (ValueError, binascii.Error):
            raw = b""
    if len(raw) != _KEY_BYTES:
        raise InvalidArgumentError(
            f"encryption_key: expected {_KEY_BYTES} bytes, in base64 or as {2 * _KEY_BYTES} hexadecimal"
            " digits; `moss-voice key new` makes one"
        )
    return raw
