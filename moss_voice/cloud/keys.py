"""The keys of a project: made, checked, revoked; what is stored cannot be turned back into them.

    PROJECT/~project.json      salted scrypt hash of a key that a user chose: the first one used
    PROJECT/~keys/ID.json      salted hash of a key that was made here; several, each with an end of its own

A key that was made here reads `mv_ID_SECRET`, 192 random bits: guessing is hopeless, so one round of
SHA-256 over salt and secret is as safe as a slow hash, and a server can afford it per request. A key that
a user chose may be weak and is hashed by scrypt. Each key is an object of its own, so that making one and
revoking another never meet.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final, Literal, NamedTuple

import pydantic
from pydantic import AwareDatetime, ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked_dataclass

from moss_voice.cloud import log
from moss_voice.cloud.names import encode_name
from moss_voice.cloud.objects import Store
from moss_voice.errors import AuthenticationError, CorruptDataError, InvalidArgumentError

__all__ = ["DEFAULT_PROJECT", "KeyInfo", "NewKey", "ProjectKeys", "utc_now"]

DEFAULT_PROJECT: Final = "default"
_SCRYPT: Final = {"n": 1 << 14, "r": 8, "p": 1}
_MADE: Final = re.compile(r"mv_([0-9a-f]{12})_([A-Za-z0-9_-]{32})")
_KEY_FILE: Final = re.compile(r"([0-9a-f]{12})\.json")
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]


def utc_now() -> datetime:
    """Return the time, aware."""
    return datetime.now(UTC)


@checked_dataclass(
    config=ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True), frozen=True
)
class _Record:
    id: Annotated[str, Field(pattern=r"^[0-9a-f]{12}\z")]
    salt: Annotated[str, Field(pattern=r"^[0-9a-f]{32}\z")]
    sha256: _Hex
    created_at: AwareDatetime
    expires_at: AwareDatetime | None
    read_only: bool
    format: Literal[1] = 1


_RECORD: Final = TypeAdapter(_Record)


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """What may be told of a key.

    Attributes:
        id: The middle part of the key; `chosen` for one that a user chose.
        signing: What signs tokens in the key's name. Never told to anybody.
    """

    id: str
    created_at: datetime | None
    expires_at: datetime | None
    read_only: bool
    signing: bytes = b""

    def __repr__(self) -> str:
        kind = "read-only" if self.read_only else "full"
        return f"<KeyInfo {self.id} {kind}>"


class NewKey(NamedTuple):
    """A key that was just made: the only time that it is seen."""

    key: str
    info: KeyInfo


class ProjectKeys:
    """The keys of the projects in one store."""

    def __init__(self, objects: Store, *, now: Callable[[], datetime] = utc_now) -> None:
        """Take a ready store, and the clock that ends keys."""
        self._objects = objects
        self._now = now
        # Pairs of record and key that passed: scrypt takes 50 ms.
        self._passed: set[bytes] = set()

    # --- making and ending -------------------------------------------------------------------------

    async def create(
        self, project: str, *, read_only: bool = False, expires_in_s: float | None = None
    ) -> NewKey:
        """Make a key, beside those that there are.

        Args:
            project: The project's id; it need not exist yet.
            read_only: True for a key that cannot change anything.
            expires_in_s: Seconds until it opens nothing any more; None for never.

        Raises:
            InvalidArgumentError: If the project's id cannot be a name, or the time is not above 0.
        """
        if expires_in_s is not None and not expires_in_s > 0:
            raise InvalidArgumentError(
                f"expires_in_s: expected a number above 0, got {expires_in_s}"
            )
        now = self._now()
        id_, secret, salt = secrets.token_hex(6), secrets.token_urlsafe(24), secrets.token_hex(16)
        record = _Record(
            id=id_,
            salt=salt,
            sha256=_hash(salt, secret),
            created_at=now,
            expires_at=None if expires_in_s is None else now + timedelta(seconds=expires_in_s),
            read_only=read_only,
        )
        await self._objects.put(_key_path(project, id_), _RECORD.dump_json(record), if_absent=True)
        return NewKey(f"mv_{id_}_{secret}", _info(record))

    async def list_keys(self, project: str) -> list[KeyInfo]:
        """Tell about a project's keys, oldest first; expired ones too."""
        found = await self._objects.listing(_keys_folder(project))
        ids = [match[1] for file in found if (match := _KEY_FILE.fullmatch(file.name))]
        records = [await self._record(project, id_) for id_ in ids]
        infos = [_info(record) for record in records if record is not None]
        infos.sort(key=lambda info: info.created_at or datetime.min.replace(tzinfo=UTC))
        if await self._objects.get(_chosen_path(project)) is not None:
            infos.insert(0, KeyInfo("chosen", None, None, read_only=False))
        return infos

    async def revoke(self, project: str, key_id: str) -> bool:
        """End a key for good; tells whether there was one. Servers notice within seconds."""
        if key_id == "chosen":
            path = _chosen_path(project)
        elif _KEY_FILE.fullmatch(f"{key_id}.json"):
            path = _key_path(project, key_id)
        else:
            raise InvalidArgumentError(
                "key id: expected the twelve hexadecimal digits in the middle of the key"
            )
        there = await self._objects.stored_at(path) is not None
        await self._objects.delete([path])
        return there

    async def end(self, project: str, key_id: str, *, in_s: float) -> KeyInfo | None:
        """Let a key end by itself, unless it ends earlier anyway; returns what it is then, if there is one.

        Raises:
            InvalidArgumentError: If a user chose the key: it has no end, and can only be revoked.
        """
        if not _KEY_FILE.fullmatch(f"{key_id}.json"):
            raise InvalidArgumentError(
                "key id: expected the twelve hexadecimal digits in the middle of the key"
            )
        record = await self._record(project, key_id)
        if record is None:
            return None
        end = self._now() + timedelta(seconds=in_s)
        if record.expires_at is None or end < record.expires_at:
            record = replace(record, expires_at=end)
            path = _key_path(project, key_id)
            await self._objects.put(path, _RECORD.dump_json(record), if_absent=False)
        return _info(record)

    async def projects(self) -> list[str]:
        """Return the folder names of all projects; a name is told back by `names.decode_name`."""
        return sorted(folder.rpartition("/")[2] for folder in await self._objects.folders(""))

    # --- checking ----------------------------------------------------------------------------------

    async def find(self, project: str, key: str) -> KeyInfo | None:
        """Return what a key is, or None where it opens nothing (any more).

        Costs one read, and about 50 ms in a worker thread the first time that a chosen key is seen.

        Raises:
            CorruptDataError: If the stored record is damaged.
        """
        if made := _MADE.fullmatch(key):
            record = await self._record(project, made[1])
            # The same work for a key that is not there, so that time tells nothing.
            salt, expected = (record.salt, record.sha256) if record else ("00" * 16, "00" * 32)
            right = hmac.compare_digest(_hash(salt, made[2]), expected)
            if record is None or not right or _is_over(record, self._now()):
                return None
            return _info(record)
        chosen = await self._objects.get(_chosen_path(project))
        if chosen is None or not await self._opens(bytes(chosen), key):
            return None
        signing = hashlib.sha256(b"moss_voice token\0" + bytes(chosen)).digest()
        return KeyInfo("chosen", None, None, read_only=False, signing=signing)

    async def find_by_id(self, project: str, key_id: str) -> KeyInfo | None:
        """Return a key by its id, or None where there is none (any more): whose tokens are to be checked."""
        if key_id == "chosen":
            chosen = await self._objects.get(_chosen_path(project))
            if chosen is None:
                return None
            signing = hashlib.sha256(b"moss_voice token\0" + bytes(chosen)).digest()
            return KeyInfo("chosen", None, None, read_only=False, signing=signing)
        if not _KEY_FILE.fullmatch(f"{key_id}.json"):
            return None
        record = await self._record(project, key_id)
        return None if record is None or _is_over(record, self._now()) else _info(record)

    async def check(self, project_id: str | None, project_key: str | None) -> str:
        """Return the project that credentials open, for a store that everybody here can read anyway.

        A project belongs to the first key it is used with, of which a salted hash (scrypt) is kept;
        until then it is open, like the project `default` that is used where nothing is given. A key
        guards the cloud's front door, not its files: whoever can read the directory can read them.

        Raises:
            AuthenticationError: If the key is wrong or missing.
            InvalidArgumentError: If the project's id cannot be a name.
        """
        if not project_id:
            if project_key:
                raise AuthenticationError(
                    "expected a project id with the project key; set MOSS_PROJECT_ID too"
                )
            project_id = DEFAULT_PROJECT
        path = _chosen_path(project_id)
        guarded = await self._objects.get(path) is not None or bool(
            await self._objects.listing(_keys_folder(project_id))
        )
        if not project_key:
            if not guarded:
                return project_id
            raise AuthenticationError(
                f"project {project_id!r} needs its project key; set MOSS_PROJECT_KEY"
            )
        if not guarded and not _MADE.fullmatch(project_key):
            made = await asyncio.to_thread(_make_chosen, project_key)
            if await self._objects.put(path, made, if_absent=True):
                return project_id
        if await self.find(project_id, project_key) is None:
            raise AuthenticationError(f"the project key given does not open project {project_id!r}")
        return project_id

    async def _record(self, project: str, key_id: str) -> _Record | None:
        data = await self._objects.get(_key_path(project, key_id))
        if data is None:
            return None
        try:
            return _RECORD.validate_json(bytes(data))
        except pydantic.ValidationError:
            raise CorruptDataError(f"the record of key {key_id} is damaged") from None

    async def _opens(self, record: bytes, key: str) -> bool:
        """Check a key against a record, slowly but for a pair that passed before."""
        pair = hashlib.sha256(record + b"\0" + key.encode("utf-8", "surrogatepass")).digest()
        if pair not in self._passed:
            if not await asyncio.to_thread(_matches_chosen, record, key):
                return False
            self._passed.add(pair)
        return True


def _info(record: _Record) -> KeyInfo:
    signing = hashlib.sha256(f"moss_voice token {record.salt} {record.sha256}".encode()).digest()
    return KeyInfo(record.id, record.created_at, record.expires_at, record.read_only, signing)


def _is_over(record: _Record, now: datetime) -> bool:
    return record.expires_at is not None and record.expires_at <= now


def _keys_folder(project: str) -> str:
    return f"{encode_name(project, what='project id')}/~keys"


def _key_path(project: str, key_id: str) -> str:
    return f"{_keys_folder(project)}/{key_id}.json"


def _chosen_path(project: str) -> str:
    return f"{encode_name(project, what='project id')}/~project.json"


def _hash(salt: str, secret: str) -> str:
    return hashlib.sha256(f"{salt}{secret}".encode()).hexdigest()


def _scrypt(key: str, salt: bytes, *, n: int, r: int, p: int) -> bytes:
    return hashlib.scrypt(
        key.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=r, p=p, maxmem=1 << 27, dklen=32
    )


def _make_chosen(key: str) -> bytes:
    salt = secrets.token_bytes(16)
    entry = {"salt": salt.hex(), "scrypt": _scrypt(key, salt, **_SCRYPT).hex(), **_SCRYPT}
    return json.dumps({"format": log.FORMAT, "keys": [entry]}, sort_keys=True).encode()


def _matches_chosen(record: bytes, key: str) -> bool:
    try:
        entries: list[dict[str, Any]] = json.loads(record)["keys"]
        matches = [
            hmac.compare_digest(
                _scrypt(
                    key, bytes.fromhex(entry["salt"]), n=entry["n"], r=entry["r"], p=entry["p"]
                ),
                bytes.fromhex(entry["scrypt"]),
            )
            for entry in entries
        ]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise CorruptDataError("the project's record of keys (~project.json) is damaged") from None
    return any(matches)
