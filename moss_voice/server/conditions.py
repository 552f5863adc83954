"""Metadata filters as they come to a server: no larger than it can answer for everybody."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from moss_voice.filters import Filter, parse_filter
from moss_voice.server.refusals import Refusal, refusing

__all__ = ["MAX_FIELDS", "condition_of", "condition_of_text"]

# A searched index keeps a column for each field that was ever asked for.
MAX_FIELDS: Final = 32


def condition_of(raw: Mapping[str, Any] | None) -> Filter | None:
    """Return a filter.

    Raises:
        Refusal: 400 where it is malformed; the message starts with the path of the fault.
    """
    with refusing():
        condition = parse_filter(raw)
    if condition is not None and len(condition.fields) > MAX_FIELDS:
        raise Refusal(400, "invalid_filter", f"filter: expected at most {MAX_FIELDS} fields")
    return condition


def condition_of_text(text: str | None) -> Filter | None:
    """Return a filter that is written as JSON; None where None, or blank."""
    if text is None or not text.strip():
        return None
    try:
        raw = json.loads(text)
    except (ValueError, RecursionError):
        raise Refusal(400, "invalid_filter", "filter: expected JSON") from None
    if raw is None:
        # No filter by name, not by leaving it blank: it may have been meant to keep callers apart.
        raise Refusal(400, "invalid_filter", "filter: expected a mapping, got null")
    return condition_of(raw)
