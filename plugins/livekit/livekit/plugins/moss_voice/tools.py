"""The toolset by which a session closes a call in time, and an LLM may look things up itself.

LiveKit awaits the `aclose` of a session's toolsets within the session's own close, after the last turn was
committed: nothing later is waited for as long.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence

from livekit.agents import llm

from moss_voice import Hit

__all__ = ["TOOL_NAMES", "CallToolset", "lookup_tools"]

Search = Callable[[str], Awaitable[Sequence[Hit]]]

TOOL_NAMES = ("search_knowledge", "recall_call")


class CallToolset(llm.Toolset):
    """Belongs to a session: survives handoffs, and is closed with the session."""

    def __init__(
        self,
        *,
        tools: Sequence[llm.Tool],
        taken: Callable[[], frozenset[str]],
        offered: Callable[[], bool],
        close: Callable[[], Awaitable[None]],
    ) -> None:
        """Start from ready parts.

        Args:
            tools: What the LLM may call.
            taken: Names that the current agent uses itself: a host refuses a name that is there twice.
            offered: Whether the current agent's LLM may call them. The host asks for each reply, and of
                a realtime model once, when its agent starts.
            close: Ends the call; never raises.
        """
        super().__init__(id="moss_voice")
        self._lookups = list(tools)
        self._taken = taken
        self._offered = offered
        self._end = close

    @property
    def tools(self) -> Sequence[llm.Tool | llm.Toolset]:
        """What is offered to the current agent's LLM."""
        if not self._offered():
            return []
        taken = self._taken()
        return [tool for tool in self._lookups if tool.id not in taken]

    async def aclose(self) -> None:
        """End the call: its push is awaited here."""
        await self._end()


def lookup_tools(search_knowledge: Search, recall_call: Search) -> list[llm.Tool]:
    """Return the function tools `search_knowledge` and `recall_call`."""

    async def knowledge(query: str) -> str:
        """Look something up in the knowledge base. Use it before you say that you do not know.

        Args:
            query: What to look for, in a few words.
        """
        return _told(await search_knowledge(query))

    async def recall(query: str) -> str:
        """Find what was said earlier in this call, for example a name, a number or a wish.

        Args:
            query: What to look for, in a few words.
        """
        return _told(await recall_call(query))

    names = dict(zip(TOOL_NAMES, (knowledge, recall), strict=True))
    return [llm.function_tool(function, name=name) for name, function in names.items()]


def _told(hits: Sequence[Hit]) -> str:
    """Return hits as JSON: quoting keeps what they say apart from who says it."""
    if not hits:
        return "nothing found"
    found = [{"source": hit.source, "text": hit.text} for hit in hits]
    return json.dumps(found, ensure_ascii=False)
