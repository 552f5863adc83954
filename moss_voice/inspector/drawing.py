"""The geometry of the inspector's pictures: numbers for SVG attributes, nothing else.

The law: pure functions; what a picture shows is said in words beside it, by `wording`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from moss_voice.call.recording import Candidate, RecordedContext, RecordedTurn, Recording, Timing
from moss_voice.types import HitParts

__all__ = ["Axis", "Bar", "Mark", "Overlap", "Scale", "Segment", "Strip", "axis", "scale", "strip"]

# Width of the pictures that stretch with their place, in their own units.
_WIDE: Final = 1000
# How much room a second of a call takes, unless somebody zooms or the call is short.
_PX_PER_S: Final = 3.6
_LEAST_PX: Final = 1000
_STEPS_S: Final = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)
# Between the labels of two times.
_LABEL_PX: Final = 72
_DIGIT_PX: Final = 8

_TIMES_PX: Final = 20
_LANE_PX: Final = 30
_LANE_STEP_PX: Final = 36
_EVENTS_PX: Final = 26


# --- what a hit was ranked by ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of a bar, in units of its picture."""

    name: str
    x: int
    width: int


@dataclass(frozen=True, slots=True)
class Scale:
    """One scale for the bars of several candidates, so that they can be compared by eye."""

    low: float
    high: float

    @property
    def zero(self) -> int:
        """Where nothing is."""
        return self._at(0.0)

    def _at(self, value: float) -> int:
        return round((value - self.low) / (self.high - self.low) * _WIDE)

    def segments(self, parts: HitParts) -> list[Segment]:
        """Stack what adds to the right of zero, and what takes away to the left of it."""
        drawn: list[Segment] = []
        up = down = 0.0
        for name, value in asdict(parts).items():
            if value > 0.0:
                start, end, up = up, up + value, up + value
            else:
                start, end, down = down + value, down, down + value
            width = self._at(end) - self._at(start)
            if width:
                drawn.append(Segment(name, self._at(start), width))
        return drawn

    def total(self, parts: HitParts) -> int:
        """Where the rank score is."""
        return self._at(parts.total)


def scale(candidates: Iterable[Candidate]) -> Scale:
    """Return the scale on which the bars of all of them fit."""
    low, high = 0.0, 0.0
    for candidate in candidates:
        values = asdict(candidate.parts).values()
        low = min(low, sum(value for value in values if value < 0.0))
        high = max(high, sum(value for value in values if value > 0.0))
    return Scale(low, high if high > low else low + 1.0)


# --- where the time went ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Strip:
    """A context's time against its deadline.

    Attributes:
        segments: On the scale of the deadline.
        deadline: Where it is.
        enlarged: The same on the scale of the time that was taken; empty where the first can be read.
        reach: How far the first one goes.
    """

    segments: tuple[Segment, ...]
    deadline: int
    enlarged: tuple[Segment, ...]
    reach: int


def shares(timing: Timing | None, took_ms: float) -> list[tuple[str, float]]:
    """Return where the time went, by name; what is not accounted for is `rest`."""
    if timing is None:
        return [("rest", took_ms)]
    known = [
        ("queued", timing.queued_ms),
        ("embed", timing.embed_ms),
        ("search", timing.search_ms),
        ("merge", timing.merge_ms),
    ]
    rest = took_ms - sum(value for _, value in known)
    return [*known, ("rest", max(0.0, rest))]


def strip(timing: Timing | None, took_ms: float, deadline_ms: float) -> Strip:
    """Draw where the time of a context went."""
    parts = shares(timing, took_ms)
    took = sum(value for _, value in parts)
    whole = max(deadline_ms * 1.05, took * 1.02, 0.001)
    drawn = _row(parts, whole)
    enlarged = _row(parts, took) if 0.0 < took < whole / 3 else ()
    return Strip(drawn, round(deadline_ms / whole * _WIDE), enlarged, round(took / whole * _WIDE))


def _row(parts: Sequence[tuple[str, float]], whole: float) -> tuple[Segment, ...]:
    drawn: list[Segment] = []
    at = 0.0
    for name, value in parts:
        start, at = round(at / whole * _WIDE), at + value
        width = round(at / whole * _WIDE) - start
        if width:
            drawn.append(Segment(name, start, width))
    return tuple(drawn)


# --- who spoke when --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Bar:
    """A turn: `x`, `width` and `end` in percent of the axis.

    Attributes:
        y: In pixels.
        room: For its number: 2 unless zoomed, 1 when zoomed in, 0 never.
    """

    turn: RecordedTurn
    speaker: str
    x: float
    width: float
    y: int
    end: float
    room: int


@dataclass(frozen=True, slots=True)
class Mark:
    """A point in time, in percent of the axis.

    Attributes:
        label: For a time.
        level: 0 is shown at every zoom, 1 from the usual one on, 2 when zoomed in.
        context: For a context.
    """

    x: float
    label: str = ""
    level: int = 0
    context: RecordedContext | None = None
    href: str = ""


@dataclass(frozen=True, slots=True)
class Overlap:
    """Two turns of different speakers at once."""

    first: RecordedTurn
    second: RecordedTurn
    seconds: float
    x: float
    width: float


@dataclass(frozen=True, slots=True)
class Axis:
    """The call on its time axis.

    Attributes:
        width: In pixels, unless zoomed.
        lanes: A speaker's name and where its lane begins.
        kinds: `caller`, `agent` or `other` by speaker.
        events: Where the row of contexts and lookups begins.
    """

    seconds: float
    width: int
    height: int
    lanes: tuple[tuple[str, int], ...]
    bars: tuple[Bar, ...]
    overlaps: tuple[Overlap, ...]
    times: tuple[Mark, ...]
    contexts: tuple[Mark, ...]
    lookups: tuple[Mark, ...]
    events: int
    lane: int = _LANE_PX


def speaker_kind(speaker: str) -> str:
    """Return by which colour a speaker is known."""
    return speaker if speaker in {"caller", "agent"} else "other"


def axis(recording: Recording) -> Axis:
    """Draw a call; turns that were there when it was opened have no time on it."""
    turns = [turn for turn in recording.turns if not turn.resumed]
    seconds = max(
        [
            1.0,
            recording.ended_s,
            *(turn.end_s for turn in turns),
            *(each.at_s for each in recording.contexts),
            *(each.at_s for each in recording.lookups),
        ]
    )
    width = max(_LEAST_PX, round(seconds * _PX_PER_S))

    def at(value_s: float) -> float:
        return round(100.0 * min(max(0.0, value_s), seconds) / seconds, 3)

    spoke = dict.fromkeys(["caller", "agent", *(turn.speaker for turn in turns)])
    said = {turn.speaker for turn in turns}
    lanes = {
        speaker: _TIMES_PX + place * _LANE_STEP_PX
        for place, speaker in enumerate(name for name in spoke if name in said)
    }
    bars = []
    for turn in turns:
        x, end = at(turn.start_s), at(turn.end_s)
        px = (end - x) / 100.0 * width
        needed = _DIGIT_PX * len(str(turn.number)) + 6
        room = 2 if px > needed else 1 if 2 * px > needed else 0
        bars.append(
            Bar(
                turn,
                speaker_kind(turn.speaker),
                x,
                # What is said in a moment must be seen too.
                round(max(300.0 / width, end - x), 3),
                lanes[turn.speaker],
                end,
                room,
            )
        )
    events = _TIMES_PX + len(lanes) * _LANE_STEP_PX
    return Axis(
        seconds,
        width,
        events + _EVENTS_PX,
        tuple(lanes.items()),
        tuple(bars),
        tuple(
            Overlap(first, second, end_s - start_s, at(start_s), round(at(end_s) - at(start_s), 3))
            for first, second, start_s, end_s in _overlaps(turns)
        ),
        _times(seconds, width, at),
        tuple(
            Mark(at(each.at_s), context=each, href=f"#context-{each.number}")
            for each in recording.contexts
        ),
        tuple(
            Mark(at(each.at_s), href=f"#lookup-{place}")
            for place, each in enumerate(recording.lookups, start=1)
        ),
        events,
    )


def _overlaps(
    turns: Sequence[RecordedTurn],
) -> list[tuple[RecordedTurn, RecordedTurn, float, float]]:
    """Return which turns of different speakers were spoken at once, from when to when. O(n log n)."""
    found = []
    open_: list[RecordedTurn] = []
    for turn in sorted((turn for turn in turns if not turn.typed), key=lambda turn: turn.start_s):
        open_ = [earlier for earlier in open_ if earlier.end_s > turn.start_s]
        for earlier in open_:
            end_s = min(earlier.end_s, turn.end_s)
            if earlier.speaker != turn.speaker and end_s > turn.start_s:
                found.append((earlier, turn, turn.start_s, end_s))
        # Ends that nobody told may make a crowd of turns that seem to go on.
        open_ = [*open_, turn][-8:]
    return found


def _times(seconds: float, width: int, at: Callable[[float], float]) -> tuple[Mark, ...]:
    marks: dict[int, Mark] = {}
    for level, px in enumerate((_LEAST_PX, width, 3 * width)):
        px_per_s = px / seconds
        step = next((step for step in _STEPS_S if step * px_per_s >= _LABEL_PX), _STEPS_S[-1])
        for time_s in range(0, int(seconds) + 1, step):
            minutes, rest = divmod(time_s, 60)
            hours, minutes = divmod(minutes, 60)
            label = f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
            # At the very end there is no room for it.
            fits = (seconds - time_s) * px_per_s >= _LABEL_PX / 2
            marks.setdefault(time_s, Mark(at(time_s), label if fits else "", level))
    return tuple(marks[time_s] for time_s in sorted(marks))
