"""Call scripts: recorded or written calls, one JSON object per line, to be replayed.

The law: a script says who spoke which words and when, and never more than it knows; a call without
timing gets a stated pace and is labelled `synthetic`. Transcripts are private: errors name the file,
line and field, and quote nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moss_voice.errors import InvalidArgumentError

__all__ = ["GAP_S", "WORDS_PER_S", "CallScript", "ScriptTurn", "Speaker", "interims", "read_calls"]

Speaker = Literal["caller", "agent", "action"]

# The pace of a call without timing: conversational English, and the usual pause before an answer.
WORDS_PER_S = 2.7
GAP_S = 0.5


@dataclass(frozen=True, slots=True)
class ScriptTurn:
    """One turn of a call.

    Attributes:
        number: The turn's number in the file; other fields and files refer to turns by it.
        speaker: `caller`, `agent`, or `action`: an event of the system, which nobody speaks.
        text: What was said; what was really spoken where `interrupted`.
        start_s: Seconds from the start of the call. Recorded turns may overlap.
        end_s: Seconds from the start of the call; never before `start_s`.
        interrupted: True where the speaker was cut off.
        nbest: What the recogniser took it for, best first; empty where unknown.
        partials: What the recogniser had understood so far, as the turn went on; empty where unknown.
    """

    number: int
    speaker: Speaker
    text: str
    start_s: float
    end_s: float
    interrupted: bool = False
    nbest: tuple[str, ...] = ()
    partials: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CallScript:
    """A call from its first turn to its last.

    Attributes:
        id: Unique within a file.
        turns: In the order of the file.
        timing: `synthetic` where the file has no timing for some spoken turn and the turns were paced
            here, or where it says that its timing was made up; else `recorded`.
        source: Where the call comes from; empty where the file does not say.
        knowledge: For turns that need a passage to be answered: their number and the passages' ids.
    """

    id: str
    turns: tuple[ScriptTurn, ...]
    timing: Literal["recorded", "synthetic"]
    source: str = ""
    knowledge: tuple[tuple[int, tuple[str, ...]], ...] = ()

    @property
    def spoken(self) -> tuple[ScriptTurn, ...]:
        """The turns that somebody spoke."""
        return tuple(turn for turn in self.turns if turn.speaker != "action")


def read_calls(path: str | os.PathLike[str]) -> Iterator[CallScript]:
    """Read calls from a JSON-lines file, one after the other.

    Each line is `{"id", "turns": [{"i", "speaker", "text"}]}`. A speaker is `user` or `caller`,
    `agent` or `assistant`, or `action`. A call may have `source`, `timing` (`synthetic` where its
    times were made up) and `knowledge_turns` (`[{"turn", "gold"}]`); a turn may have `start_ms` with `duration_ms`, `asr_nbest`, `interrupted` and
    `interims`; other fields are left alone. Blank lines are skipped.

    Where a spoken turn has no timing, the whole call is paced at 2.7 words/s with a gap of 0.5 s
    between turns. Actions without timing take no time.

    Args:
        path: A UTF-8 file.

    Yields:
        The calls in file order. The file is read as they are asked for.

    Raises:
        InvalidArgumentError: If the file cannot be read or holds no call, or a line is malformed, lacks
            a field, or repeats a number or a call's id. Names the file, line and field.
    """
    file = Path(path)
    seen: set[str] = set()
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                raw = line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
                if not raw.strip():
                    continue
                call = _call(raw, f"{file.name}:{number}")
                if call.id in seen:
                    raise InvalidArgumentError(
                        f"{file.name}:{number}: id: {call.id!r} is already taken by an earlier call"
                    )
                seen.add(call.id)
                yield call
    except OSError as error:
        raise InvalidArgumentError(f"{file.name}: cannot be read: {error.strerror}") from error
    if not seen:
        raise InvalidArgumentError(f"{file.name}: holds no calls")


def interims(turn: ScriptTurn) -> Iterator[str]:
    """Yield what a speech recogniser would report while the turn is being spoken.

    Recorded partials where the turn has them; else the text growing word by word, the last being the
    whole of it. An action has none. Partial k of n is due at `start_s + k / n * (end_s - start_s)`,
    k from 1.
    """
    if turn.speaker == "action":
        return
    if turn.partials:
        yield from turn.partials
        return
    words = turn.text.split()
    for count in range(1, len(words) + 1):
        yield " ".join(words[:count])


class _Row(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore", hide_input_in_errors=True)


_Milliseconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _TurnRow(_Row):
    i: Annotated[int, Field(ge=0)]
    speaker: Literal["user", "caller", "agent", "assistant", "action"]
    text: str
    start_ms: _Milliseconds | None = None
    duration_ms: _Milliseconds | None = None
    interrupted: bool = False
    asr_nbest: list[str] = []
    interims: list[str] = []


class _KnowledgeRow(_Row):
    turn: int
    gold: list[str]


class _CallRow(_Row):
    id: Annotated[str, Field(min_length=1)]
    turns: Annotated[list[_TurnRow], Field(min_length=1)]
    source: str = ""
    timing: Literal["recorded", "synthetic"] = "recorded"
    knowledge_turns: list[_KnowledgeRow] = []


_SPEAKERS: dict[str, Speaker] = {
    "user": "caller",
    "caller": "caller",
    "agent": "agent",
    "assistant": "agent",
    "action": "action",
}


def _call(raw: bytes, where: str) -> CallScript:
    try:
        row = _CallRow.model_validate_json(raw)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False, include_context=False)[0]
        place = "".join(
            f"[{part}]" if isinstance(part, int) else f".{part}" for part in fault["loc"]
        )
        raise InvalidArgumentError(
            f"{where}: {place.removeprefix('.') or 'the line'}: {fault['msg']}"
        ) from None
    numbers = {turn.i for turn in row.turns}
    if len(numbers) < len(row.turns):
        raise InvalidArgumentError(f"{where}: turns: two turns have the same number 'i'")
    for known in row.knowledge_turns:
        if known.turn not in numbers:
            raise InvalidArgumentError(
                f"{where}: knowledge_turns: the call has no turn numbered {known.turn}"
            )
    is_recorded = all(
        turn.start_ms is not None and turn.duration_ms is not None
        for turn in row.turns
        if turn.speaker != "action"
    )
    return CallScript(
        id=row.id,
        turns=tuple(_turns(row.turns, is_recorded=is_recorded)),
        timing=row.timing if is_recorded else "synthetic",
        source=row.source,
        knowledge=tuple((known.turn, tuple(known.gold)) for known in row.knowledge_turns),
    )


def _turns(rows: list[_TurnRow], *, is_recorded: bool) -> Iterator[ScriptTurn]:
    end_s = 0.0
    for row in rows:
        start_s = end_s
        if is_recorded and row.start_ms is not None:
            start_s = row.start_ms / 1000
            end_s = start_s + (row.duration_ms or 0.0) / 1000
        elif row.speaker != "action":
            start_s = end_s + GAP_S if end_s else 0.0
            end_s = start_s + len(row.text.split()) / WORDS_PER_S
        yield ScriptTurn(
            number=row.i,
            speaker=_SPEAKERS[row.speaker],
            text=row.text,
            start_s=start_s,
            end_s=end_s,
            interrupted=row.interrupted,
            nbest=tuple(row.asr_nbest),
            partials=tuple(row.interims),
        )
