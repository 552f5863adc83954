"""What a recogniser has finished and its host has not: the parts of a turn that is still going on.

The law: what somebody said is remembered once. A host gathers utterances into a turn and tells of it
when it is over; it may also drop them (the agent could not be interrupted, the app ignored the turn),
and may have them rewritten (an app that blacks out card numbers). A turn takes in the utterances that it
was made of, and they are forgotten; what a later turn cannot have been made of was said all the same,
and becomes a turn of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from moss_voice.text import squash

__all__ = ["Utterance", "Utterances"]

# Between the clocks of a recogniser and of a voice detector, which tell when a turn began.
_SLACK_S = 0.05


class Utterance(NamedTuple):
    """A stretch of speech as the recogniser finished it; `at_s` is in seconds into the call."""

    id: str
    text: str
    speaker: str
    at_s: float


class Utterances:
    """The utterances that no turn has taken in yet, oldest first. Not safe to share between threads."""

    def __init__(self) -> None:
        self._waiting: dict[str, Utterance] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Utterance]:
        return iter(tuple(self._waiting.values()))

    def add(self, utterance: Utterance) -> None:
        """Note one; the same id again is a correction and keeps its place."""
        self._waiting[utterance.id] = utterance

    def settle(
        self, text: str, speaker: str, began_s: float | None
    ) -> tuple[list[Utterance], list[Utterance]]:
        """Take out what a turn settles: the utterances that it is made of, and those that it passed over.

        With the time at which it began, a turn is made of what was said since, and of whatever else has
        its words. Without, it is made of everything from the first utterance whose words it has; of all
        of them where it has none's, since a host may have rewritten it.

        Args:
            text: What the host says was said.
            speaker: Whose utterances it may hold.
            began_s: Seconds into the call; None where the host does not know.

        Returns:
            What it took in, and what was said before and taken in by nothing; both oldest first.
        """
        words = f" {squash(text)} "
        theirs = [u for u in self._waiting.values() if u.speaker == speaker]
        held = [f" {squash(u.text)} " in words for u in theirs]
        if began_s is None:
            first = held.index(True) if any(held) else 0
            inside = [i >= first for i in range(len(theirs))]
        else:
            inside = [
                has or u.at_s >= began_s - _SLACK_S for has, u in zip(held, theirs, strict=True)
            ]
        taken = [u for u, is_in in zip(theirs, inside, strict=True) if is_in]
        passed = [u for u, is_in in zip(theirs, inside, strict=True) if not is_in]
        for utterance in theirs:
            del self._waiting[utterance.id]
        return taken, passed

    def take_all(self) -> list[Utterance]:
        """Take out all that are left: nothing is going to take them in."""
        left = list(self._waiting.values())
        self._waiting.clear()
        return left
