"""One call to a server, as values: what is asked, what came, how it failed, and whether it is asked again."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import httpx

from moss_voice.errors import MossError

__all__ = [
    "DONE",
    "SUCCESS",
    "Answer",
    "Call",
    "FailedError",
    "Patience",
    "Timeouts",
    "Tries",
]

SUCCESS: Final = frozenset({200, 201})
# Without a body: a page of somebody else's cannot be taken for it.
DONE: Final = frozenset({204})

_FIRST_PAUSE_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long each step of a call may take before the server counts as not answering.

    Attributes:
        connect_s: To connect.
        read_s: From one part of an answer to the next.
        write_s: From one part of a request to the next.
        pool_s: To wait for others' calls, where too many are under way.
        slow_s: In place of `read_s`, where the server goes through a whole index or stores a large segment.
        silence_s: On the line that tells of new versions; the server says something every 15 s.
    """

    connect_s: float = 3.0
    read_s: float = 30.0
    write_s: float = 30.0
    pool_s: float = 5.0
    slow_s: float = 300.0
    silence_s: float = 25.0


@dataclass(frozen=True, slots=True)
class Call:
    """What is asked.

    Attributes:
        path: Below the server's URL, encoded.
        content: Makes the body, for each try.
        expected: The statuses that answer it.
        key: In place of the log's own.
        read_s: In place of the usual timeout.
        missing: Whether "there is no such thing" answers it too.
        watches: Whether the answer goes on and on.
    """

    method: str
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    content: Callable[[], bytes | AsyncIterator[bytes]] | None = None
    expected: frozenset[int] = SUCCESS
    key: str | None = None
    read_s: float | None = None
    missing: bool = False
    watches: bool = False


class Answer(NamedTuple):
    """What came, whole."""

    status: int
    headers: httpx.Headers
    body: bytes


class FailedError(Exception):
    """A try that failed; never leaves this package.

    Attributes:
        error: What the caller is told if it was the last.
        again: Whether another try may go better.
        status: Of the answer; 0 where there was none.
        code: Of the error that it told of, if it was one of ours.
        after_s: How long the server wants to be left alone.
        arrived: Whether the server may have done what was asked.
    """

    def __init__(
        self,
        error: MossError,
        *,
        again: bool,
        status: int = 0,
        code: str = "",
        after_s: float = 0.0,
        arrived: bool = True,
    ) -> None:
        super().__init__(str(error))
        self.error = error
        self.again = again
        self.status = status
        self.code = code
        self.after_s = after_s
        self.arrived = arrived


class Patience(NamedTuple):
    """How often and how long a call is tried."""

    retries: int
    budget_s: float
    sleep: Callable[[float], Awaitable[None]]
    clock: Callable[[], float]


class Tries:
    """The tries of one call.

    Attributes:
        may_have_arrived: Whether one of those that failed may have done what was asked.
    """

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._started = patience.clock()
        self._failed = 0
        self.may_have_arrived = False

    async def wait_after(self, failure: FailedError) -> None:
        """Wait for the next try, for a random time that grows; raises the error where there is none."""
        retries, budget_s, sleep, clock = self._patience
        self._failed += 1
        self.may_have_arrived |= failure.arrived
        # Full jitter: those who failed together do not come again together.
        longest_s = _FIRST_PAUSE_S * 2 ** (self._failed - 1)
        pause_s = failure.after_s + secrets.SystemRandom().uniform(0.0, longest_s)
        in_time = clock() - self._started + pause_s <= budget_s
        if not failure.again or self._failed > retries or not in_time:
            raise failure.error from failure.__cause__
        await sleep(pause_s)
