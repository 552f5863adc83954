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

import contextlib
import hashlib
import json
import logging
import os
import secrets
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any, Literal, Self

import platformdirs
from pydantic import TypeAdapter, ValidationError

from moss_voice.cloud.names import encode_name
from moss_voice.errors import (
    CorruptDataError,
    FormatVersionError,
    InvalidArgumentError,
    MossError,
)
from moss_voice.text import squash
from moss_voice.types import HitParts, Metadata
from moss_voice.workers import pool

__all__ = [
    "Candidate",
    "Known",
    "RecordedContext",
    "RecordedLookup",
    "RecordedTurn",
    "Recorder",
    "Recording",
    "Settings",
    "Timing",
    "Why",
    "find_recordings",
    "header_line",
    "is_recording",
    "read_head",
    "read_recording",
    "recordings_path",
]

logger = logging.getLogger(__name__)

FORMAT = 1
_KIND = "moss-voice-recording"
_NOTICE = "This file holds what was said in a call, as text."
# Lines that wait for a disk that does not answer; what comes beyond them is counted as missed.
_MOST_WAITING = 2000
# The pace of a turn whose end nobody told.
_WORDS_PER_S = 2.7

Prefetched = Literal["no", "vector", "hits"]
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
        end_s: When it ended; where `estimated_end`, a guess by when it was told, its words, and what
            came next.
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
        last_turn: The number of the newest turn that the call knew; 0 where nothing was searched.
        query: What was searched for.
        is_turn: False where the agent spoke of its own accord.
        visible: Ids that the LLM saw anyway.
        seen: Texts that it saw anyway.
        budget: The most tokens of the block.
        outcome, took_ms, need: See `CallContext`.
        needs: The need per knowledge index that a gate stands before.
        prefetched: `hits` where an interim had the same words, `vector` where its embedding served.
        interim: The interim that did; "" where none did.
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
    last_turn: int
    query: str
    is_turn: bool
    visible: tuple[str, ...]
    seen: tuple[str, ...]
    budget: int
    top_k: int
    deadline_ms: float
    outcome: Literal["ok", "skipped", "late", "failed"]
    took_ms: float
    prefetched: Prefetched
    interim: str
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
        end: How it ended: `pushed`, `unpushed` (its push failed: a journal or an outbox has it); "" where
            the recording stops before the end. The recording of a call that is discarded goes with it.
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
    end: Literal["", "pushed", "unpushed"]
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


def recordings_path(record: str | Path | bool | None) -> Path | None:
    """Return where recordings go; None where nobody asked for any.

    Args:
        record: A directory; True for `recordings` in the platform's data directory; False for none. Where
            None, `MOSS_VOICE_RECORD` says so: a directory, or `1` for that of the platform.

    Raises:
        InvalidArgumentError: If it is something else.
    """
    if not isinstance(record, str | Path | bool | None) or record == "":
        raise InvalidArgumentError("record: expected True, False or a directory")
    if record is None:
        told = os.environ.get("MOSS_VOICE_RECORD", "").strip()
        record = told if told not in {"", "0", "1"} else told == "1"
    if record is False:
        return None
    if record is True:
        return Path(platformdirs.user_data_dir("moss_voice", appauthor=False)) / "recordings"
    return Path(record).expanduser()


# --- writing ---------------------------------------------------------------------------------------


class Recorder:
    """Writes the recording of one call, on a thread of its own; any thread may tell it something.

    What is told is a function that makes the line, so that the teller does not wait for it either.
    Nothing here raises but `create`.
    """

    def __init__(self, path: Path, file: IO[str], *, project: str, cloud: str | None) -> None:
        """Take an empty file that is open; see `create`."""
        self.path = path
        self.project = project
        self.cloud = cloud
        self._file = file
        self._lock = threading.Lock()
        self._waiting = 0
        self._missed = 0
        self._open = True
        self._broken = False
        self._told: set[str] = set()

    @classmethod
    def create(cls, directory: str | Path, *, project: str, cloud: str | None, call: str) -> Self:
        """Make a file that its owner alone can read.

        Args:
            directory: Of all recordings.
            project: Of the call.
            cloud: As the client was given it.
            call: Its id.

        Raises:
            OSError: If it cannot be made.
        """
        folder = Path(directory) / encode_name(project, what="project id")
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        at = datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        path = folder / f"{encode_name(call)}-{at}-{secrets.token_hex(3)}.jsonl"
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        return cls(path, os.fdopen(fd, "w", encoding="utf-8"), project=project, cloud=cloud)

    def __repr__(self) -> str:
        return f"<Recorder {self.path.name!r}{'' if self._open else ', closed'}>"

    def __del__(self) -> None:
        # Of a call that nobody ended.
        self._shut()

    def tell(self, kind: str, make: Callable[[], Mapping[str, Any]]) -> None:
        """Write a line, as soon as the disk can; `make` runs on the recorder's thread."""
        with self._lock:
            if not self._open or self._broken:
                return
            if self._waiting >= _MOST_WAITING:
                self._missed += 1
                return
            self._waiting += 1
        self._submit(self._write, kind, make)

    def key_of(self, text: str) -> str:
        """Return what a text is named by, written once; on the recorder's thread alone."""
        key = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
        if key not in self._told:
            self._told.add(key)
            self._put({"kind": "text", "key": key, "text": text})
        return key

    def close(self, make: Callable[[], Mapping[str, Any]]) -> None:
        """Write the last line and close the file, once all else is written; returns at once."""
        self.tell("end", lambda: {**make(), "missed": self._missed})
        with self._lock:
            self._open = False
        self._submit(self._shut)

    def discard(self) -> None:
        """Remove the file, once what waits has been written."""
        with self._lock:
            self._open = False
        self._submit(self._remove)

    def settle(self, timeout_s: float) -> None:
        """Wait until what was told is written; for who reads it in the same process."""
        done = threading.Event()
        self._submit(done.set)
        done.wait(timeout_s)

    def _submit(self, function: Callable[..., object], *args: object) -> None:
        # On its way out the interpreter takes no more; what waits is still written.
        with contextlib.suppress(RuntimeError):
            pool("recordings", 1).submit(function, *args)

    def _write(self, kind: str, make: Callable[[], Mapping[str, Any]]) -> None:
        try:
            if not self._broken:
                self._put({"kind": kind, **make()})
        except Exception as error:  # noqa: BLE001 - a call never fails by its recording
            logger.error(
                "recording %r: a line is missing (%s)", self.path.name, type(error).__name__
            )
            with self._lock:
                self._missed += 1
                # A disk that is full or gone will not take the next line either.
                self._broken = isinstance(error, OSError)
        finally:
            with self._lock:
                self._waiting -= 1

    def _put(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line, ensure_ascii=True, allow_nan=False) + "\n")
        self._file.flush()

    def _shut(self) -> None:
        with contextlib.suppress(OSError):
            self._file.close()

    def _remove(self) -> None:
        self._shut()
        with contextlib.suppress(OSError):
            self.path.unlink()


# --- reading ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Header:
    format: int
    call: str
    project: str
    cloud: str | None
    model_id: str
    created_at: datetime
    redacted: bool
    settings: Settings
    knowledge: tuple[Known, ...]


_HEADER = TypeAdapter(_Header)
_TURN = TypeAdapter(RecordedTurn)
_CONTEXT = TypeAdapter(RecordedContext)
_LOOKUP = TypeAdapter(RecordedLookup)


def read_recording(path: str | Path) -> Recording:
    """Read a recording, also one that is still being written.

    Raises:
        InvalidArgumentError: If the file cannot be read, or is no recording.
        FormatVersionError: If a newer version of moss_voice wrote it.
        CorruptDataError: If its first line is damaged.
    """
    path = Path(path)
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InvalidArgumentError(f"{path}: {error.strerror or 'cannot be read'}") from None
    first, *rest = lines[:-1] or [b""]
    header = _header(path, first)
    read = _Read()
    for line in rest:
        read.take(line)
    last, turns = read.end, list(read.turns.values())
    return Recording(
        header.call,
        header.project,
        header.cloud,
        header.model_id,
        header.created_at,
        header.redacted,
        header.settings,
        header.knowledge,
        tuple(sorted(_one_after_another(turns), key=lambda turn: turn.number)),
        tuple(_attributed(read)),
        tuple(read.lookups),
        last.get("end", ""),
        read.last_s,
        read.pushed[0],
        read.pushed[1],
        int(last.get("missed", 0)),
        read.damaged,
        path,
    )


def read_head(path: str | Path) -> tuple[str, str, datetime] | None:
    """Return a recording's call, project and beginning; None where its first line is not sound."""
    try:
        with Path(path).open("rb") as file:
            head = _header(Path(path), file.readline())
    except (OSError, MossError):
        return None
    return head.call, head.project, head.created_at


def find_recordings(directory: str | Path) -> list[Path]:
    """Return the files of recordings below a directory, the newest first."""
    found = [path for path in Path(directory).glob("*/*.jsonl") if path.is_file()]
    # A name ends in its time and six random digits.
    return sorted(found, key=lambda path: path.stem.rsplit("-", 2)[-2:], reverse=True)


def is_recording(path: str | Path) -> bool:
    """Tell whether a file begins as a recording does."""
    try:
        with Path(path).open("rb") as file:
            return f'"{_KIND}"'.encode() in file.readline(4096)
    except OSError:
        return False


def header_line(
    *,
    call: str,
    project: str,
    cloud: str | None,
    model_id: str,
    redacted: bool,
    settings: Settings,
    knowledge: Iterable[Known],
) -> dict[str, Any]:
    """Return the first line of a recording, for `Recorder.tell` under the kind `moss-voice-recording`."""
    return {
        "format": FORMAT,
        "notice": _NOTICE,
        "call": call,
        "project": project,
        "cloud": cloud,
        "model_id": model_id,
        "created_at": datetime.now(UTC).isoformat(),
        "redacted": redacted,
        "settings": asdict(settings),
        "knowledge": [asdict(known) for known in knowledge],
    }


def _header(path: Path, line: bytes) -> _Header:
    told = _object(line)
    if told is None or told.get("kind") != _KIND:
        if f'"{_KIND}"'.encode() in line:
            raise CorruptDataError(f"{path}: the first line is damaged")
        raise InvalidArgumentError(f"{path}: not a recording of a call")
    number = told.get("format")
    if isinstance(number, int) and number > FORMAT:
        raise FormatVersionError(
            f"{path}: recording format {number}, and this version reads up to {FORMAT}: install a newer"
            " moss-voice"
        )
    try:
        return _HEADER.validate_python(told)
    except ValidationError:
        raise CorruptDataError(f"{path}: the first line is damaged") from None


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        told = json.loads(line)
    except ValueError:
        return None
    return told if isinstance(told, dict) else None


class _Read:
    """Lines, taken in one after another."""

    def __init__(self) -> None:
        self.turns: dict[str, RecordedTurn] = {}
        self.contexts: list[RecordedContext] = []
        self.lookups: list[RecordedLookup] = []
        self.pushed = (0, 0)
        self.end: dict[str, Any] = {}
        self.last_s = 0.0
        self.damaged = 0
        # On which line a turn was first told, by its id, and a context, by its number.
        self.line_of: dict[str | int, int] = {}
        # Turns told before they were said.
        self.not_live: set[str] = set()
        self._line = 0
        self._texts: dict[str, str] = {}

    def take(self, line: bytes) -> None:
        self._line += 1
        told = _object(line)
        try:
            if told is None:
                raise ValueError
            self._take(told)
        except (ValidationError, ValueError, TypeError, KeyError):
            self.damaged += 1

    def _take(self, told: dict[str, Any]) -> None:
        kind = told.pop("kind")
        if kind == "turn":
            self._take_turn(told)
        elif kind == "kept":
            turn = self.turns[told["id"]]
            self.turns[turn.id] = replace(turn, heard_ms=float(told["heard_ms"]))
        elif kind == "text":
            self._texts[told["key"]] = str(told["text"])
        elif kind == "context":
            told["seen"] = [self._texts[key] for key in told["seen"]]
            told["number"] = len(self.contexts) + 1
            self.contexts.append(_CONTEXT.validate_python(told))
            self.line_of[len(self.contexts)] = self._line
            self.last_s = max(self.last_s, self.contexts[-1].at_s)
        elif kind == "lookup":
            self.lookups.append(_LOOKUP.validate_python(told))
        elif kind == "push":
            self.pushed = int(told["version"]), int(told["doc_count"])
        elif kind == "end":
            if told["end"] not in {"pushed", "unpushed"}:
                raise ValueError(told["end"])
            self.end = told
            self.last_s = max(self.last_s, float(told["at_s"]))
        # Other kinds are of later versions, which only ever add.

    def _take_turn(self, told: dict[str, Any]) -> None:
        told_s, end_s = told.pop("told_s", None), told.pop("end_s", None)
        start_s = float(told["start_s"])
        estimated = end_s is None or end_s < start_s
        if estimated:
            end_s = _ended(start_s, told_s, len(str(told["text"]).split()))
        if told_s is None or told_s < start_s:
            self.not_live.add(told["id"])
        before = self.turns.get(told["id"])
        turn = _TURN.validate_python({**told, "end_s": end_s, "estimated_end": estimated})
        if before is not None:
            # Corrected: what it says now, when it was said.
            turn = replace(
                turn,
                start_s=before.start_s,
                end_s=before.end_s,
                estimated_end=before.estimated_end,
                corrections=before.corrections + 1,
            )
        self.turns[turn.id] = turn
        self.line_of.setdefault(turn.id, self._line)
        self.last_s = max(self.last_s, turn.end_s)


def _ended(start_s: float, told_s: float | None, words: int) -> float:
    """Return when a turn may have ended whose host did not tell.

    A turn is told some time after its end; what was replayed from a script, or brought in later, at any
    time, and then the number of its words says how long it took.
    """
    longest = 10.0 + 2.0 * words
    if told_s is not None and start_s < told_s <= start_s + longest:
        return float(told_s)
    return start_s + max(0.4, words / _WORDS_PER_S)


def _one_after_another(turns: Iterable[RecordedTurn]) -> Iterator[RecordedTurn]:
    """End turns whose end is a guess where the next one begins, but those that were cut off."""
    starts = sorted({turn.start_s for turn in turns})
    for turn in turns:
        if turn.estimated_end and not turn.interrupted:
            at = bisect_right(starts, turn.start_s)
            if at < len(starts) and starts[at] < turn.end_s:
                turn = replace(turn, end_s=starts[at])  # noqa: PLW2901 - the same turn
        yield turn


def _attributed(read: _Read) -> Iterator[RecordedContext]:
    """Give each context the turn that it is a reply to: a host may ask before it tells the turn."""
    said = [(turn, f" {squash(turn.text)} ") for turn in read.turns.values()]
    said = [(turn, words) for turn, words in said if turn.speaker != "agent" and words.strip()]
    for context in read.contexts:
        words = f" {squash(context.query)} "
        found = context.turn_id
        if found is None and words.strip():
            # The last of several turns that a host joined; of words said twice, those told nearest to it.
            asked = read.line_of[context.number]
            near = [
                (abs(read.line_of[turn.id] - asked), -turn.number, turn.id)
                for turn, own in said
                if own == words or (context.is_turn and own in words)
            ]
            # A draft, asked for before the turn was over.
            near = near or [
                (read.line_of[turn.id] - asked, -turn.number, turn.id)
                for turn, own in said
                if context.is_turn and read.line_of[turn.id] > asked and own.startswith(words)
            ]
            found = min(near)[2] if near else None
        turn = read.turns.get(found) if found is not None else None
        # On what is played faster than it was said, the clock tells nothing.
        at_s = turn.end_s if turn is not None and turn.id in read.not_live else context.at_s
        yield replace(context, turn_id=found, at_s=at_s)
