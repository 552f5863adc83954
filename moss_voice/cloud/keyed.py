"""A log and the keys to it: what is read is checked and opened, what is written is sealed and signed.

What is read is what was written, or an error: size and SHA-256 are checked. With a key, what leaves this
process can be read by its holders alone: see `sealing`.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import NamedTuple

from moss_voice.cloud import log
from moss_voice.cloud.contract import Log
from moss_voice.cloud.log import GRACE_S, KEEP_COMMITS, Commit, Segment, SegmentRef
from moss_voice.cloud.sealing import Keyring
from moss_voice.errors import (
    CloudUnavailableError,
    CorruptDataError,
    EncryptionKeyError,
    InvalidArgumentError,
)

__all__ = ["Encoded", "KeyedLog", "Load", "Received"]

# Reads a segment, say through a cache.
Load = Callable[[SegmentRef], Awaitable[Segment]]
# Told how many bytes of how many have come.
Received = Callable[[int, int], None]


class Encoded(NamedTuple):
    """A segment, ready to be stored: encoded, sealed where there is a key, and hashed."""

    segment: Segment
    data: bytes
    ref: SegmentRef


class KeyedLog:
    """One log, read and written with the keys that are here. Safe to share between tasks."""

    def __init__(self, log_: Log, *, keyring: Keyring | None = None) -> None:
        """Take a ready log, and the keys to seal and open with, if any."""
        self.log = log_
        self.keyring = keyring

    def __repr__(self) -> str:
        sealed = ", sealed" if self.keyring is not None else ""
        return f"<{type(self).__name__} {self.name}{sealed}>"

    @property
    def name(self) -> str:
        """Where it is, without credentials."""
        return self.log.name

    async def close(self) -> None:
        """Let go of connections; the next use opens them anew."""
        await self.log.close()

    # --- reading -----------------------------------------------------------------------------------

    async def read_head(self, project: str, index: str) -> Commit | None:
        """Return the newest commit of an index, or None where there is no such index.

        Raises:
            CorruptDataError: If the newest commit is damaged, or was not made by a holder of its key.
        """
        return self.checked(project, (await self.log.head(project, index)).alive)

    async def read_commit(self, project: str, index: str, version: int) -> Commit | None:
        """Return one version of an index, or None where it was never made, is collected, or is over."""
        return self.checked(project, await self.log.read_commit(project, index, version))

    def checked(self, project: str, commit: Commit | None) -> Commit | None:
        """Return a commit that a holder of its key has made; with no key here, any.

        Raises:
            EncryptionKeyError: If the index is encrypted and its key is not here.
            CorruptDataError: If somebody else made it.
        """
        if commit is not None and self.keyring is not None:
            self.keyring.check(commit, project=project)
        return commit

    async def fetch_segment(
        self, project: str, index: str, ref: SegmentRef, *, on_received: Received | None = None
    ) -> memoryview:
        """Return a segment's bytes as they are stored, checked against their address as they come.

        Raises:
            CorruptDataError: If the bytes are others, or there are none.
        """
        parts = await self.log.read_segment(project, index, ref.sha256)
        if parts is None:
            raise CorruptDataError(
                f"index {index!r}: segment {ref.sha256[:12]} is gone from {self.name}"
            )
        data = bytearray()
        digest = hashlib.sha256()
        async with aclosing(parts):
            async for part in parts:
                data += part
                if len(data) > ref.size_bytes:
                    break
                # A large part would hold up the event loop.
                if len(part) > 1 << 16:
                    await asyncio.to_thread(digest.update, part)
                else:
                    digest.update(part)
                if on_received is not None:
                    on_received(len(data), ref.size_bytes)
        if len(data) != ref.size_bytes:
            raise CorruptDataError(
                f"index {index!r}: segment {ref.sha256[:12]}: expected {ref.size_bytes} bytes, got"
                f" {len(data)}{' or more' if len(data) > ref.size_bytes else ''}"
            )
        if digest.hexdigest() != ref.sha256:
            raise CorruptDataError(f"index {index!r}: segment {ref.sha256[:12]}: SHA-256 differs")
        return memoryview(data).toreadonly()

    def decode(
        self, project: str, index: str, ref: SegmentRef, data: bytes | memoryview
    ) -> Segment:
        """Return a segment of bytes that `fetch_segment` or a cache gave; synchronous, for a worker.

        Raises:
            EncryptionKeyError: If it is sealed with a key that is not here.
            CorruptDataError: If it is damaged.
        """
        if ref.key_id is None:
            return log.decode_segment(data)
        if self.keyring is None:
            raise EncryptionKeyError(
                f"index {index!r} is encrypted with key {ref.key_id}; give encryption_key, or"
                " MOSS_VOICE_ENCRYPTION_KEY"
            )
        key = self.keyring.key(ref.key_id, index=index)
        return log.decode_segment(key.open(data, project=project, index=index))

    async def load_segment(self, project: str, commit: Commit, ref: SegmentRef) -> Segment:
        """Return a segment that a commit names, fetched, opened and decoded.

        Raises:
            CorruptDataError: If it is damaged, gone, or of another model than the commit.
        """
        data = await self.fetch_segment(project, commit.index, ref)
        segment = await asyncio.to_thread(self.decode, project, commit.index, ref, data)
        if (segment.model_id, segment.dim) != (commit.model_id, commit.dim):
            raise CorruptDataError(
                f"index {commit.index!r}: segment {ref.sha256[:12]} was made with another model"
            )
        return segment

    # --- writing -----------------------------------------------------------------------------------

    def encode(self, project: str, index: str, segment: Segment) -> Encoded:
        """Encode, seal where there is a key, and hash; synchronous, for a worker.

        Raises:
            InvalidArgumentError: If the segment has neither rows nor tombstones, or its parts disagree.
        """
        rows, tombstones = len(segment.ids), len(segment.tombstones)
        if not rows and not tombstones:
            raise InvalidArgumentError("segment: expected rows or tombstones, got none")
        data = log.encode_segment(segment)
        key_id = None
        if self.keyring is not None:
            key = self.keyring.current
            data, key_id = key.seal(data, project=project, index=index), key.id
        return Encoded(
            segment, data, SegmentRef.of(data, rows=rows, tombstones=tombstones, key_id=key_id)
        )

    async def encoded(
        self, project: str, index: str, delta: Segment | Encoded | None
    ) -> Encoded | None:
        """Encode in a worker thread; None for a segment that says nothing."""
        if isinstance(delta, Encoded) or delta is None:
            return delta
        if not len(delta.ids) and not delta.tombstones:
            return None
        return await asyncio.to_thread(self.encode, project, index, delta)

    async def put_segment(self, project: str, index: str, segment: Segment) -> SegmentRef:
        """Store a segment unless it is there, and return its address.

        Raises:
            InvalidArgumentError: If it has neither rows nor tombstones.
        """
        encoded = await asyncio.to_thread(self.encode, project, index, segment)
        await self.log.write_segment(project, index, encoded.ref.sha256, encoded.data)
        return encoded.ref

    async def commit(self, project: str, commit: Commit) -> bool:
        """Store a commit if its number is free; False where somebody else was first.

        True also where the commit there is this very one: the answer to an earlier try was lost.
        """
        return await self.log.write_commit(project, commit)

    def signed(self, project: str, commit: Commit) -> Commit:
        """Return a commit with the mark of the key in use; with no key here, without one.

        Raises:
            EncryptionKeyError: If it names what is sealed, and there is no key.
        """
        if self.keyring is None:
            if commit.key_ids:
                raise EncryptionKeyError(
                    f"index {commit.index!r} is encrypted with key {min(commit.key_ids)}; give"
                    " encryption_key, or MOSS_VOICE_ENCRYPTION_KEY"
                )
            return replace(commit, mac=None)
        return replace(commit, mac=self.keyring.current.mac(commit, project=project))

    async def send(self, project: str, index: str, change: Encoded | None) -> int:
        """Store a segment unless it is there, and return how many bytes were sent."""
        if change is None:
            return 0
        sent = await self.log.write_segment(project, index, change.ref.sha256, change.data)
        return len(change.data) if sent else 0

    async def collect(
        self, project: str, index: str, *, grace_s: float = GRACE_S, keep: int = KEEP_COMMITS
    ) -> int:
        """Remove what no reader or writer can still need, and return how many objects that were.

        See `ObjectLog.collect`.
        """
        return await self.log.collect(project, index, grace_s=grace_s, keep=keep)

    def storm(self, index: str) -> CloudUnavailableError:
        """Return the error for an index in which others were first at every try."""
        return CloudUnavailableError(f"index {index!r} in {self.name} is pushed to all the time")
