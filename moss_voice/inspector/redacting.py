"""A recording without what a redactor finds: for a file that leaves this machine.

The law: every text in it passes the redactor, wherever it stands; where the machine keeps things is not told.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from moss_voice.call.recording import (
    Candidate,
    RecordedContext,
    RecordedLookup,
    RecordedTurn,
    Recording,
)
from moss_voice.types import Metadata
from moss_voice.withholding import Withholding

__all__ = ["redacted", "redacted_contexts"]

_Clean = Callable[[str], str]


def redacted(recording: Recording, redact: _Clean) -> Recording:
    """Return a recording whose texts have all passed a redactor.

    Args:
        recording: As it was read.
        redact: Returns what may be kept of a text; where it fails, the text is withheld.
    """
    clean = Withholding(redact).clean
    return replace(
        recording,
        call=clean(recording.call),
        project=clean(recording.project),
        cloud=None,
        path=None,
        redacted=True,
        turns=tuple(_turn(turn, clean) for turn in recording.turns),
        contexts=tuple(_context(context, clean) for context in recording.contexts),
        lookups=tuple(_lookup(lookup, clean) for lookup in recording.lookups),
    )


def redacted_contexts(
    contexts: tuple[RecordedContext, ...], redact: _Clean
) -> tuple[RecordedContext, ...]:
    """Return contexts, as of a call asked again, whose texts have all passed a redactor."""
    clean = Withholding(redact).clean
    return tuple(_context(context, clean) for context in contexts)


def _turn(turn: RecordedTurn, clean: _Clean) -> RecordedTurn:
    text = clean(turn.text)
    return replace(
        turn,
        text=text,
        speaker=clean(turn.speaker),
        metadata=_metadata(turn.metadata, clean),
        redacted=turn.redacted or text != turn.text,
    )


def _context(context: RecordedContext, clean: _Clean) -> RecordedContext:
    return replace(
        context,
        query=clean(context.query),
        interim=clean(context.interim),
        seen=tuple(clean(text) for text in context.seen),
        text=clean(context.text),
        about=tuple(clean(name) for name in context.about),
        hits=tuple(_candidate(hit, clean) for hit in context.hits),
        left_out=tuple(_candidate(hit, clean) for hit in context.left_out),
    )


def _lookup(lookup: RecordedLookup, clean: _Clean) -> RecordedLookup:
    return replace(
        lookup,
        query=clean(lookup.query),
        hits=tuple(_candidate(hit, clean) for hit in lookup.hits),
    )


def _candidate(hit: Candidate, clean: _Clean) -> Candidate:
    return replace(
        hit,
        text=clean(hit.text),
        source=clean(hit.source),
        index_name=clean(hit.index_name),
        metadata=_metadata(hit.metadata, clean),
    )


def _metadata(metadata: Metadata, clean: _Clean) -> Metadata:
    return {
        name: clean(value) if isinstance(value, str) else value for name, value in metadata.items()
    }
