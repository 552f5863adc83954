"""An LLM's context with a recalled block in it, made from the host's own, which stays as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pipecat.processors.aggregators.llm_context import LLMContext

from moss_voice.call.prompt import Kind, block_place, unanswered, windowed

__all__ = ["Prompt", "RecalledContext", "kind_of", "message_text", "read_prompt", "with_block"]

_KINDS: dict[str, Kind] = {
    "user": "user",
    "system": "instructions",
    "developer": "instructions",
    "tool": "tool",
}


class Prompt(NamedTuple):
    """What of a context matters to recall.

    Attributes:
        messages: What the LLM is to see, without the block.
        text: What the bot is to reply to; None where it speaks of its own accord.
        place: The index in `messages` before which the block goes.
        visible: Ids of turns in it.
        seen: Texts in it that are no turns of the call.
    """

    messages: list[Any]
    text: str | None
    place: int
    visible: frozenset[str]
    seen: tuple[str, ...]


class RecalledContext(LLMContext):
    """A copy with a block in it; what a service repairs in it is repaired in the original too."""

    def __init__(self, original: LLMContext, messages: list[Any]) -> None:
        """Share tools and tool choice with the original."""
        super().__init__(messages=messages, tools=original.tools, tool_choice=original.tool_choice)
        self._original = original

    def remove_invalid_file_message(self) -> bool:
        """Remove a file that the provider has refused, from the conversation as well."""
        removed = super().remove_invalid_file_message()
        return self._original.remove_invalid_file_message() or removed


def message_text(message: Any) -> str:
    """Return the text of a message, "" where it has none."""
    content = message.get("content") if isinstance(message, Mapping) else None
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence):
        return ""
    parts = [part.get("text") for part in content if isinstance(part, Mapping)]
    return "\n".join(part for part in parts if isinstance(part, str))


def kind_of(message: Any) -> Kind:
    """Return who wrote a message; a provider's own kind of message is none that we read."""
    if not isinstance(message, Mapping):
        return "other"
    role = message.get("role")
    if role == "assistant":
        return "tool" if message.get("tool_calls") and not message_text(message) else "assistant"
    return _KINDS.get(str(role), "other")


def read_prompt(
    context: LLMContext, *, turns: Mapping[str, Sequence[str]], window: int | None
) -> Prompt:
    """Read what a reply is due to.

    Args:
        context: The host's.
        turns: For each text that was said, the ids of its turns: messages have no ids of their own.
        window: How many messages of a long conversation are shown; all where None.
    """
    messages = list(context.messages)
    if window is not None:
        messages = [messages[i] for i in windowed([kind_of(m) for m in messages], window)]
    kinds = [kind_of(message) for message in messages]
    asked = unanswered(kinds)
    text = None if asked is None else message_text(messages[asked])
    texts = [message_text(message) for message in messages]
    visible = frozenset(id_ for said in texts for id_ in turns.get(said, ()))
    leading = next((i for i, kind in enumerate(kinds) if kind != "instructions"), len(kinds))
    # Where nothing but instructions is there, the last of them is an order for this reply.
    leading = leading if leading < len(kinds) else min(1, len(kinds))
    return Prompt(
        messages,
        text,
        block_place(kinds, leading=leading),
        visible,
        tuple(_others(texts, turns, asked)),
    )


def _others(
    texts: Sequence[str], turns: Mapping[str, Sequence[str]], asked: int | None
) -> Iterator[str]:
    for index, text in enumerate(texts):
        if text and index != asked and text not in turns:
            yield text


def with_block(context: LLMContext, prompt: Prompt, block: str) -> LLMContext:
    """Return what the LLM is to see; the block is a user's message, never anybody's instructions."""
    messages = list(prompt.messages)
    if block:
        messages.insert(prompt.place, {"role": "user", "content": block})
    return RecalledContext(context, messages)
