"""Who may do what: keys and tokens, wrong ones slowed down, and so many requests of a project.

What is promised: nothing below `/v1` answers without a key or a token of that very project; everything
that is wrong gets one and the same answer; a key that is revoked or expired opens nothing within
`Settings.key_cache_s`; a token neither outlives nor outranks its key. Secrets are kept nowhere: what is
remembered of a key that passed is a hash of it.
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from time import monotonic
from typing import Final

from moss_voice.cloud.keys import KeyInfo, ProjectKeys, utc_now
from moss_voice.cloud.log import check_name
from moss_voice.errors import AuthenticationError, InvalidArgumentError
from moss_voice.server import tokens
from moss_voice.server.names import NO_NAME
from moss_voice.server.rates import Buckets, Failures
from moss_voice.server.refusals import Refusal
from moss_voice.server.settings import Settings

__all__ = ["Access", "Gate"]

KEY_PREFIX: Final = "mv_"
_LOOKING: Final = 8
_REMEMBERED: Final = 10_000
_MAX_CREDENTIAL: Final = 4096
# What a token is checked against where its key is not there: nobody knows it.
_NO_KEY: Final = hashlib.sha256(b"no such key").digest()


@dataclass(frozen=True, slots=True)
class Access:
    """What a request may do.

    Attributes:
        key_id: Of the key, also where a token came.
        expires_at: When it ends: the key's or the token's end, whichever comes first.
        is_token: True where a token came in the key's place.
    """

    project: str
    key_id: str
    expires_at: datetime | None
    read_only: bool
    is_token: bool


class Gate:
    """Checks credentials against the store's keys."""

    def __init__(
        self,
        keys: ProjectKeys,
        settings: Settings,
        *,
        now: Callable[[], datetime] = utc_now,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """Take the keys of the projects, and the clocks: one for dates, one for durations."""
        self._keys = keys
        self._settings = settings
        self._now = now
        self._clock = clock
        # Hash of what passed -> the key, and until when it need not be looked up again.
        self._known: OrderedDict[bytes, tuple[KeyInfo, float]] = OrderedDict()
        # Hash of what passed at some time: whoever was let in is not locked out by a neighbour's guesses.
        self._passed: OrderedDict[bytes, None] = OrderedDict()
        # A chosen key costs 50 ms and 16 MiB: strangers get no more than a share of that.
        self._looking = asyncio.Semaphore(_LOOKING)
        self._requests = Buckets(
            per_s=settings.limits.requests_per_s, burst=settings.limits.burst, clock=clock
        )
        self._failures = Failures(
            per_s=settings.failures_per_s, burst=settings.failures_burst, clock=clock
        )

    def __repr__(self) -> str:
        return f"<Gate {len(self._known)} keys known>"

    async def enter(self, project: str, credential: str | None, address: str) -> Access:
        """Return what a credential opens.

        Args:
            project: The project asked for, unchecked.
            credential: A key or a token; None where none came.
            address: Where the request comes from.

        Raises:
            Refusal: 401 where it opens nothing, 429 where this address tried too many wrong ones, or the
                project has used up its requests.
        """
        if not credential:
            raise _wrong()
        start = self._clock()
        tries = _network(address), project
        digest = _digest(project, credential)
        known = digest in self._passed
        # A key that a user chose may be weak, and is slow to check: so it is counted before.
        slow = not known and not credential.startswith((tokens.PREFIX, KEY_PREFIX))
        if not known and (wait := self._failures.wait_s(*tries)):
            raise Refusal(
                429, "rate_limited", "too many wrong keys from this address", retry_after_s=wait
            )
        if slow:
            self._failures.count(*tries)
        access = await self._opened(project, credential, digest)
        if access is None:
            self._passed.pop(digest, None)
            if not slow:
                self._failures.count(*tries)
            await asyncio.sleep(max(0.0, start + self._settings.failure_s - self._clock()))
            raise _wrong()
        if slow:
            self._failures.forgive(*tries)
        self._passed[digest] = None
        self._passed.move_to_end(digest)
        if len(self._passed) > _REMEMBERED:
            self._passed.popitem(last=False)
        if wait := self._requests.take(project):
            raise Refusal(
                429, "rate_limited", "too many requests of this project", retry_after_s=wait
            )
        return access

    async def stands(self, access: Access) -> bool:
        """Tell whether what was let in would be let in still; for answers that take long."""
        if access.expires_at is not None and access.expires_at <= self._now():
            return False
        return await self._key(access.project, access.key_id) is not None

    async def issue(
        self, access: Access, *, expires_in_s: float, read_only: bool
    ) -> tuple[str, tokens.Claims]:
        """Return a token in the name of the key that was let in, and what it says.

        Raises:
            Refusal: 401 where the key is over.
        """
        info = await self._key(access.project, access.key_id)
        if info is None:
            raise _wrong()
        end = self._now() + timedelta(seconds=expires_in_s)
        if info.expires_at is not None:
            end = min(end, info.expires_at)
        claims = tokens.Claims(
            project=access.project,
            key_id=info.id,
            exp=int(end.timestamp()),
            read_only=read_only or info.read_only,
        )
        return tokens.issue(claims, info.signing), claims

    async def _opened(self, project: str, credential: str, digest: bytes) -> Access | None:
        if len(credential) > _MAX_CREDENTIAL:
            return None
        try:
            check_name(project, what="project id")
        except InvalidArgumentError as error:
            raise Refusal(400, error.code, f"project: {NO_NAME}") from None
        try:
            if credential.startswith(tokens.PREFIX):
                return await self._opened_by_token(project, credential)
            info = self._recall(digest)
            if info is None:
                async with self._looking:
                    info = await self._keys.find(project, credential)
        except AuthenticationError:
            info = None
        if info is None or _is_over(info, self._now()):
            self._known.pop(digest, None)
            return None
        self._remember(digest, info)
        return Access(project, info.id, info.expires_at, info.read_only, is_token=False)

    async def _opened_by_token(self, project: str, token: str) -> Access | None:
        claims = tokens.parse(token)
        info = await self._key(project, claims.key_id) if claims is not None else None
        right = tokens.is_signed(token, info.signing if info is not None else _NO_KEY)
        if claims is None or info is None or not right or claims.project != project:
            return None
        ends = claims.ends_at
        if info.expires_at is not None:
            ends = min(ends, info.expires_at)
        if ends <= self._now():
            return None
        read_only = claims.read_only or info.read_only
        return Access(project, info.id, ends, read_only, is_token=True)

    async def _key(self, project: str, key_id: str) -> KeyInfo | None:
        """Return a key by its id, unless it is over."""
        digest = _digest(project, f"id {key_id}")
        info = self._recall(digest)
        if info is None:
            info = await self._keys.find_by_id(project, key_id)
        if info is None or _is_over(info, self._now()):
            self._known.pop(digest, None)
            return None
        self._remember(digest, info)
        return info

    def _recall(self, digest: bytes) -> KeyInfo | None:
        info, until = self._known.get(digest, (None, 0.0))
        return info if until > self._clock() else None

    def _remember(self, digest: bytes, info: KeyInfo) -> None:
        _, until = self._known.get(digest, (None, 0.0))
        if until <= self._clock():
            until = self._clock() + self._settings.key_cache_s
        self._known[digest] = (info, until)
        self._known.move_to_end(digest)
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)


def _wrong() -> Refusal:
    return Refusal(401, "authentication", "expected a valid key or token of this project")


def _is_over(info: KeyInfo, now: datetime) -> bool:
    return info.expires_at is not None and info.expires_at <= now


def _digest(project: str, credential: str) -> bytes:
    said = f"{len(project)} {project} {credential}"
    return hashlib.sha256(said.encode("utf-8", "surrogatepass")).digest()


def _network(address: str) -> str:
    """Return whom an address belongs to: of IPv6 a customer has 2**64."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if parsed.version == 4:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False).network_address)
