"""Recordings of calls, for people to look at: what was said, and what came of it at each reply.

The law: a recording holds text, so it is made only where somebody asked for it, only on this machine, and
says so in its first line. A call never waits for its recording and never fails by it.

A file is `<directory>/<project>/<call>-<time>-<random>.jsonl`, names percent-encoded, readable by its owner
alone: JSON objects, one a line. The first is the header; then come, as they happened, turns, contexts,
lookups and pushes, and last the end of the call. Texts that the LLM saw anyway are written once and named
by a hash after that. A last line without its line feed was torn off and is left out; a line that cannot be
read is counted as damage, and the rest is kept.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, Self

from pydantic import TypeAdapter, ValidationError

from moss_voice.cloud.names import encode_name
from moss_voice.errors import CorruptDataError, FormatVersionError, InvalidArgumentError
from moss_voice.text import squash
from moss_voice.types import HitParts, Metadata
from moss_voice.workers import pool

__all__ = [
    "Candidate",
    "Known",
    "Recorder",
    "Recording",
    "RecordedContext",
    "RecordedLookup",
    "RecordedTurn",
    "Settings",
    "Timing",
    "Why",
    "find_recordings",
    "read_recording",
]

logger = logging.getLogger(__name__)

FORMAT = 1
_KIND = "moss-voice-recording"
_NOTICE = "This file holds what was said in a call, as text."
# Lines that wait for a disk that does not answer; what comes beyond them is counted as missed.
_MOST_WAITING = 2000
# The pace of a turn whose end nobody told.
_WORDS_PER_S = 2.7

Why = Literal["", "visible", "repeat", "budget", "rank", "min_score", "gate", "statement"]


@dataclass(frozen=True, slots=True)
class Settings:
    """How a call recalls; see `MossClient.call`."""

    top_k: int
    alpha: float
    min_score: float
    max_tokens: int
    deadline_ms: float
    focus: tuple[str, ...] | None = None
    without: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Known:
    """A knowledge index of a call, as it was when the call began.

    Attributes:
        version: Of the index in its cloud.
        fields: The metadata fields that hold names of what a call can be about.
    """

    name: str
    version: int
    doc_count: int
    fields: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Candidate:
    """A turn or passage that was shown to the LLM, or might have been.

    Attributes:
        source: As in the block: `turn 12, caller, 03:21`, or the index and id of a passage.
        score: In [0, 1].
        parts: What it was ranked by. Of what was left out they are those of a second, wider search
            right after the reply, and so comparable within some hundredths.
        why: Why it was left out; "" where it is in the block. `visible`: the LLM sees it anyway.
            `repeat`: its words stand in what the LLM sees, or in a better hit. `budget`: no room in
            the block. `rank`: others were better, and there are no more than `top_k`. `min_score`:
            its score is below the call's least. `gate`: the turn is too far from this knowledge.
            `statement`: who states something, asking nothing, is reminded of near turns only.
    """

    id: str
    source: str
    index_name: str
    text: str
    score: float
    parts: HitParts
    metadata: Metadata = field(default_factory=dict)
    why: Why = ""

    @property
    def is_turn(self) -> bool:
        """True for a turn of the call, False for a passage."""
        return "turn" in self.metadata and "speaker" in self.metadata


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of a context went, in milliseconds.

    Attributes:
        queued_ms: From the question to a thread that works on it, earlier turns included.
        embed_ms: The model; 0 where an interim's embedding was there.
        search_ms: What the searches took beyond the model; 0 where an interim's hits were there.
        merge_ms: Hits merged, repeats and budget looked at, the block written.
    """

    queued_ms: float
    embed_ms: float
    search_ms: float
    merge_ms: float


@dataclass(frozen=True, slots=True)
class RecordedTurn:
    """A turn of the call.

    Attributes:
        number: Its place in the call, from 1.
        start_s: Seconds into the call.
        end_s: Where `estimated_end`, from its number of words; else when it was told.
        resumed: True where it was there when the call was opened.
        corrections: How often it was told anew under its id; the text is the last one.
        heard_ms: How long `heard` took; None where nobody waited for it.
    """

    id: str
    number: int
    speaker: str
    text: str
    start_s: float
    end_s: float
    estimated_end: bool = False
    interrupted: bool = False
    typed: bool = False
    filler: bool = False
    unanswered: bool = False
    redacted: bool = False
    resumed: bool = False
    corrections: int = 0
    heard_ms: float | None = None
    metadata: Metadata = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RecordedContext:
    """What the LLM was reminded of for one reply, or for a draft of it.

    Attributes:
        number: Its place among the contexts, from 1.
        at_s: When it was asked for, in seconds into the call.
        turn_id: The turn that it is a reply to; None where none was found.
        query: What was searched for.
        is_turn: False where the agent spoke of its own accord.
        visible: Ids that the LLM saw anyway.
        seen: Texts that it saw anyway.
        budget: The most tokens of the block.
        outcome, took_ms, need: See `CallContext`.
        needs: The need per knowledge index that a gate stands before.
        prefetched: `hits` where an interim had the same words, `vector` where its embedding served.
        again: True where the same was asked before, and answered from memory.
        text: The block as sent.
        tokens: Of the block, estimated.
        hits: What the block holds, best first.
        left_out: What it might have held, best first, each with its reason.
        timing: None where nothing was searched, or it was not known when the call ended.
        about: What the call was about, the newest first.
        interims: How many interims were looked up since the context before.
    """

    number: int
    at_s: float
    turn_id: str | None
    query: str
    is_turn: bool
    visible: tuple[str, ...]
    seen: tuple[str, ...]
    budget: int
    top_k: int
    deadline_ms: float
    outcome: Literal["ok", "skipped", "late", "failed"]
    took_ms: float
    prefetched: Literal["no", "vector", "hits"]
    again: bool
    need: float | None
    needs: Mapping[str, float]
    text: str
    tokens: int
    hits: tuple[Candidate, ...]
    left_out: tuple[Candidate, ...]
    timing: Timing | None
    about: tuple[str, ...]
    interims: int


@dataclass(frozen=True, slots=True)
class RecordedLookup:
    """What a tool of the agent looked up for itself."""

    at_s: float
    what: Literal["recall", "search_knowledge"]
    query: str
    took_ms: float
    hits: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class Recording:
    """A call as it was recorded.

    Attributes:
        cloud: As the client was given it; None for the embedded one.
        created_at: When the call was opened.
        redacted: True where what was said had passed a redactor.
        turns: In the order of their numbers.
        contexts, lookups: As they happened.
        end: How it ended: `pushed`, `unpushed` (its push failed: a journal or an outbox has it),
            `discarded`; "" where the recording stops before the end.
        ended_s: Seconds into the call; of the last line where it did not end.
        version, doc_count: Of what was pushed last; 0 where nothing was.
        missed: Lines that a slow disk left no room for.
        damaged: Lines that could not be read.
    """

    call: str
    project: str
    cloud: str | None
    model_id: str
    created_at: datetime
    redacted: bool
    settings: Settings
    knowledge: tuple[Known, ...]
    turns: tuple[RecordedTurn, ...]
    contexts: tuple[RecordedContext, ...]
    lookups: tuple[RecordedLookup, ...]
    end: Literal["", "pushed", "unpushed", "discarded"]
    ended_s: float
    version: int
    doc_count: int
    missed: int
    damaged: int
    path: Path | None = None

    def turn(self, turn_id: str) -> RecordedTurn | None:
        """Return the turn of an id."""
        return next((turn for turn in self.turns if turn.id == turn_id), None)

    def contexts_of(self, turn_id: str) -> list[RecordedContext]:
        """Return the contexts of the replies to a turn: the last one was used, others were drafts."""
        return [context for context in self.contexts if context.turn_id == turn_id]


# --- reading ---------------------------------------------------------------------------------------


def read_recording(path: str | Path) -> Recording:
    """Read a recording.

    Raises:
        InvalidArgumentError: If the file cannot be read, or is no recording.
        FormatVersionError: If a newer version of moss_voice wrote it.
        CorruptDataError: If its first line is damaged.
    """
    raise NotImplementedError


def find_recordings(directory: str | Path) -> Iterator[Path]:
    """Return the files of recordings, the newest first."""
    raise NotImplementedError
