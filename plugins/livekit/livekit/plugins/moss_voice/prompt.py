"""What an LLM is about to see, and where in it the recalled block goes.

The law: the host's chat context is never changed by us. The block goes into a copy, just before the last
user message, so that what comes before it stays the same from turn to turn and providers can cache it;
what a user's own `llm_node` does to the copy is carried back to where it would have happened without us.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass

from livekit.agents import llm

from moss_voice.call.prompt import Kind, block_place, last_user, unanswered

__all__ = [
    "BLOCK_ID",
    "Prompt",
    "carry_back",
    "is_ours",
    "new_block",
    "read_prompt",
    "shown_to_llm",
    "with_block",
]

# Of the one block that a realtime model's provider keeps: what comes back from there has lost its mark.
BLOCK_ID = "moss_voice_memory"
_MARK = "moss_voice"
_INSTRUCTIONS = ("system", "developer")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What of a chat context matters to recall.

    Attributes:
        text: What the agent is to reply to; None where it speaks of its own accord.
        place: The index in the items before which a block goes.
        visible: Ids of the messages in it.
        seen: Texts in it that are no turns of the call: tool outputs, instructions.
    """

    text: str | None
    place: int
    visible: frozenset[str]
    seen: tuple[str, ...]


def is_ours(item: llm.ChatItem) -> bool:
    """Tell whether an item is a block of ours."""
    return isinstance(item, llm.ChatMessage) and (_MARK in item.extra or item.id == BLOCK_ID)


def new_block(block: str) -> llm.ChatMessage:
    """Make the message of a block; it is a user's, never the instructions of anybody."""
    return llm.ChatMessage(role="user", content=[block], extra={_MARK: True})


def shown_to_llm(chat_ctx: llm.ChatContext, *, window: int | None) -> llm.ChatContext:
    """Return a copy to be changed for one reply, with the last `window` items of a long history.

    The instructions stay, and so does everything from the last user message on: a turn is never shown
    without what its tools have answered. A block of ours that found its way into a history is left out.
    """
    copy = chat_ctx.copy()
    if any(is_ours(item) for item in copy.items):
        copy.items[:] = [item for item in copy.items if not is_ours(item)]
    if window is not None:
        last = last_user([_kind(item) for item in copy.items])
        of_turn = len(copy.items) - last if last is not None else 0
        copy.truncate(max_items=max(window, of_turn))
    return copy


def read_prompt(chat_ctx: llm.ChatContext, *, turns: Container[str]) -> Prompt:
    """Read what a reply is due to.

    Args:
        chat_ctx: What the LLM is about to see.
        turns: Ids of the messages that the call remembers as turns; they are known by their ids, so
            that their texts need not be compared.
    """
    items = chat_ctx.items
    kinds = [_kind(item) for item in items]
    asked = unanswered(kinds)
    # The agent's own instructions come first, and some of them change from call to call.
    own = sum(item.id.startswith("lk.agent_task.instructions") for item in items)
    place = block_place(kinds, leading=max(1, own))
    last = items[asked] if asked is not None else None
    text = (last.raw_text_content or "") if isinstance(last, llm.ChatMessage) else None
    visible = frozenset(item.id for item in items if isinstance(item, llm.ChatMessage))
    seen = tuple(_other_texts(items, turns, asked))
    return Prompt(text, place, visible, seen)


def with_block(chat_ctx: llm.ChatContext, prompt: Prompt, block: str) -> llm.ChatMessage:
    """Insert a recalled block."""
    items = chat_ctx.items
    neighbour = items[min(prompt.place, len(items) - 1)] if items else None
    message = new_block(block)
    if neighbour is not None:
        # Hosts sort by time; ours stays where it is.
        side = -1e-6 if prompt.place < len(items) else 1e-6
        message.created_at = neighbour.created_at + side
    items.insert(prompt.place, message)
    return message


def carry_back(
    original: llm.ChatContext, shown: llm.ChatContext, before: Sequence[llm.ChatItem]
) -> None:
    """Make the changes that a user's `llm_node` made to a copy in the original as well.

    The framework keeps such changes for the tool replies of the same turn.

    Args:
        original: The framework's own context of this reply.
        shown: The copy, after the node ran.
        before: The copy's items as the node got them.
    """
    after = [item for item in shown.items if not is_ours(item)]
    known = [item for item in before if not is_ours(item)]
    if [id(item) for item in after] == [id(item) for item in known]:
        return
    was_there, is_there = {id(item) for item in known}, {id(item) for item in after}
    gone = was_there - is_there
    items = [item for item in original.items if id(item) not in gone]
    place = 0
    positions = {id(item): index for index, item in enumerate(items)}
    for item in after:
        if id(item) in was_there:
            place = positions.get(id(item), place - 1) + 1
            continue
        items.insert(place, item)
        place += 1
        positions = {id(item): index for index, item in enumerate(items)}
    original.items[:] = items


def _kind(item: llm.ChatItem) -> Kind:
    if item.type in ("function_call", "function_call_output"):
        return "tool"
    if not isinstance(item, llm.ChatMessage) or is_ours(item):
        return "other"
    return "instructions" if item.role in _INSTRUCTIONS else item.role  # type: ignore[return-value]


def _other_texts(
    items: Sequence[llm.ChatItem], turns: Container[str], asked: int | None
) -> Iterator[str]:
    for index, item in enumerate(items):
        if isinstance(item, llm.FunctionCallOutput):
            yield item.output
        elif isinstance(item, llm.ChatMessage) and index != asked and item.id not in turns:
            text = item.raw_text_content
            if text:
                yield text
