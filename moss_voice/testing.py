"""What the simulators of spoken calls share, whatever host a call is played on.

A host's own simulator (`livekit.plugins.moss_voice.testing`, `pipecat_moss_voice.testing`) plays the edges
of a real session; here is the script: who says what next, and what a recogniser makes of it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal, Protocol

from moss_voice.calls import CallScript, interims
from moss_voice.text import squash

__all__ = ["Answer", "Follower", "ToolCall", "Wait", "recognised", "replay_script"]

Wait = Literal["reply", "committed", "none"]

# The words by which a recogniser's interim grows.
_INTERIM_WORDS = 3
_REPLAYED_INTERIMS = 4


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call of a function tool, as a language model asks for it.

    Attributes:
        name: The tool's name.
        arguments: What the tool is called with; JSON values.
        text: What the agent says before the call; empty for nothing.
    """

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    text: str = ""


Answer = str | ToolCall | Sequence[ToolCall] | None
"""What a scripted model answers: words, tool calls, or nothing (`None` or an empty text)."""


class Follower:
    """Knows what the agent of a script says next, by what a prompt holds.

    Attributes:
        script: What is followed.
        turns: Its turns that have words.
        now: The place in them of the caller turn that is being played; None outside of a replay.
    """

    def __init__(self, script: CallScript) -> None:
        self.script = script
        self.turns = [turn for turn in script.spoken if squash(turn.text)]
        self.now: int | None = None

    def answer(self, spoken: Sequence[tuple[str, str]]) -> str | None:
        """Return what the agent says to a prompt; None where it has nothing to say.

        Under a replay it is the answer to the turn that is played, whatever a host or a plugin made of
        the prompt; else the turn is found by the last user message: the n-th time the same words are
        said, the n-th such turn.

        Args:
            spoken: The role, `user` or `assistant`, and the text of the prompt's messages.
        """
        said = [squash(text) for role, text in spoken if role == "user"]
        if not said or spoken[-1][0] != "user":
            return None
        if self.now is not None:
            return self._after(self.now)
        same = [
            number
            for number, turn in enumerate(self.turns)
            if turn.speaker == "caller" and squash(turn.text) == said[-1]
        ]
        return self._after(same[min(said.count(said[-1]), len(same)) - 1]) if same else None

    def _after(self, number: int) -> str | None:
        following = self.turns[number + 1 : number + 2]
        return following[0].text if following and following[0].speaker == "agent" else None


class _Call(Protocol):
    async def hears(self, *, after_s: float | None = None, after_words: int = 3) -> bool: ...

    async def caller_says(
        self, text: str, *, interims: Sequence[str] | None = None, wait: Wait = "reply"
    ) -> None: ...


async def replay_script(
    call: _Call, follower: Follower, speak: Callable[[str, bool], Awaitable[object]]
) -> None:
    """Play a follower's script on a started call, each turn after the one before.

    Args:
        call: A simulated call whose model answers as the follower does.
        follower: Told which turn is played.
        speak: Makes the agent speak of its own accord; gets the text, and whether to wait for its end.
    """
    turns = follower.turns
    cut = {
        number
        for number, (turn, after) in enumerate(pairwise(turns))
        if turn.speaker == "agent" and turn.interrupted and after.speaker == "caller"
    }
    try:
        for number, turn in enumerate(turns):
            if turn.speaker == "caller":
                if number - 1 in cut:
                    # Where the agent was quicker its turn stands whole, and the caller goes on.
                    await call.hears(after_words=max(1, len(turns[number - 1].text.split()) // 2))
                follower.now = number
                await call.caller_says(
                    turn.text,
                    interims=_thinned(list(interims(turn))),
                    wait="committed" if number + 1 in cut else "reply",
                )
            elif number == 0 or turns[number - 1].speaker == "agent":
                await speak(turn.text, number not in cut)
    finally:
        follower.now = None


def recognised(
    text: str, *, interims: Sequence[str] | None, finals: Sequence[str] | None
) -> Iterator[tuple[str, bool]]:
    """Yield what a recogniser reports of a text, and whether it is final.

    Args:
        text: What is said.
        interims: What comes before the first final; where None, each final grows by a few words.
        finals: The text in pieces; in one where None.
    """
    if interims is not None:
        yield from ((words, False) for words in interims if words.strip())
    for final in [text] if finals is None else finals:
        words = final.split()
        if not words:
            continue
        if interims is None:
            for count in [*range(_INTERIM_WORDS, len(words), _INTERIM_WORDS), len(words)]:
                yield " ".join(words[:count]), False
        yield final, True


def _thinned(texts: list[str]) -> list[str]:
    if len(texts) <= _REPLAYED_INTERIMS:
        return texts
    return [
        texts[len(texts) * k // _REPLAYED_INTERIMS - 1] for k in range(1, _REPLAYED_INTERIMS + 1)
    ]
