"""What of a prompt matters to recall, whatever host it belongs to.

Which words a reply is due to, where a recalled block goes, and what a window keeps: pure functions over
kinds of items.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

__all__ = ["Kind", "block_place", "last_user", "unanswered", "windowed"]

Kind = Literal["user", "assistant", "instructions", "tool", "other"]
"""A message by who wrote it; `tool` is a call or its output, `other` nothing that an LLM reads."""


def last_user(kinds: Sequence[Kind]) -> int | None:
    """Return where the last user message is."""
    return next((i for i in range(len(kinds) - 1, -1, -1) if kinds[i] == "user"), None)


def unanswered(kinds: Sequence[Kind]) -> int | None:
    """Return where the user message is that a reply is due to; None where the agent just speaks.

    What an agent says before it calls a tool is no answer yet.
    """
    after_tool = False
    for index in range(len(kinds) - 1, -1, -1):
        kind = kinds[index]
        if kind == "user":
            return index
        if kind == "assistant" and not after_tool:
            return None
        after_tool = after_tool or kind == "tool"
    return None


def block_place(kinds: Sequence[Kind], *, leading: int = 1) -> int:
    """Return the index before which a recalled block goes.

    Just before the user message that is replied to, so that all before it stays the same from turn to
    turn; where there is none, after everything but the orders for this very reply.

    Args:
        kinds: The items of the prompt.
        leading: How many items at the beginning are the agent's own instructions, never orders for one
            reply.
    """
    asked = unanswered(kinds)
    if asked is not None:
        return asked
    place = len(kinds)
    while place > leading and kinds[place - 1] == "instructions":
        place -= 1
    return place


def windowed(kinds: Sequence[Kind], window: int) -> list[int]:
    """Return which items are shown of a long prompt: the instructions at its head and the last `window`.

    Everything from the last user message on stays, so that a turn is never shown without what its tools
    have answered; and no tool output without its call.
    """
    head = 0
    while head < len(kinds) and kinds[head] == "instructions":
        head += 1
    asked = last_user(kinds)
    of_turn = len(kinds) - asked if asked is not None else 0
    start = max(head, len(kinds) - max(window, of_turn))
    while start < len(kinds) and start > head and kinds[start] == "tool":
        start += 1
    return [*range(head), *range(start, len(kinds))]
