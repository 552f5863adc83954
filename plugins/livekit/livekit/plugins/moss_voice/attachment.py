"""The tie between one AgentSession and one call's memory.

The law: the host never notices us. Its events are read, its history is left alone, its replies wait for
a recall no longer than the deadline, and nothing that goes wrong in here reaches it. Cancellation passes
through.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection
from contextlib import aclosing
from typing import Any

from livekit.agents import (
    Agent,
    AgentSession,
    CloseEvent,
    ConversationItemAddedEvent,
    ModelSettings,
    UserInputTranscribedEvent,
    llm,
)
from livekit.agents.telemetry import trace_types, tracer
from livekit.plugins.moss_voice.log import HOST, logger
from livekit.plugins.moss_voice.prompt import (
    carry_back,
    is_ours,
    read_prompt,
    shown_to_llm,
    with_block,
)
from livekit.plugins.moss_voice.realtime import RealtimeMemory, speaks_realtime
from livekit.plugins.moss_voice.tools import CallToolset, lookup_tools

from moss_voice import CallContext, CallMemory, Hit, MossClient
from moss_voice.call.observe import count, span_attributes
from moss_voice.live import Listener, end_call, guarded, look_up

__all__ = ["Attachment"]

_WRAPPED = "_moss_voice_attachment"

OnContext = Callable[[CallContext], object]


class Attachment:
    """Listens to a session, adds what is recalled to its replies, and ends the call with it."""

    def __init__(
        self,
        session: AgentSession[Any],
        memory: CallMemory,
        *,
        client: MossClient,
        owns_client: bool,
        tools: bool | None,
        window: int | None,
        push_timeout_s: float,
        on_context: OnContext | None,
        trace_text: bool,
    ) -> None:
        """Start from ready parts; `begin` ties them together."""
        self.session = session
        self.memory = memory
        self._client = client
        self._owns_client = owns_client
        self._window = window
        self._push_timeout_s = push_timeout_s
        self._on_context = on_context
        self._trace_text = trace_text
        self._started_at = time.time()
        self._listener = Listener(memory, host=HOST)
        self._speaker: dict[str, str] = {}
        self._turns: dict[str, str] = {}
        # With what the instance had of its own before, if anything.
        self._agents: list[tuple[Agent, Any]] = []
        self._ending: asyncio.Task[None] | None = None
        self.toolset = CallToolset(
            tools=lookup_tools(self._search_knowledge, self._recall_call),
            taken=self._names_taken,
            offered=lambda: speaks_realtime(session) if tools is None else tools,
            close=self.end,
        )
        self._realtime = RealtimeMemory(
            session,
            memory,
            turns=self._turns,
            finals=self._listener.finals,
            recall=self._recall,
            hear=self._hear,
        )

    def begin(self) -> None:
        """Tie the session to the memory."""
        self.session.tools.append(self.toolset)
        self.session.on("user_input_transcribed", self._on_transcribed)
        self.session.on("conversation_item_added", self._on_item)
        self.session.on("close", self._on_close)
        # Attached late: what was said so far is in the history, and an agent speaks already.
        for item in self.session.history.items:
            if isinstance(item, llm.ChatMessage):
                self._hear(item)
        self._wrap_current()

    # --- what was said -----------------------------------------------------------------------------

    @guarded
    def _on_transcribed(self, ev: UserInputTranscribedEvent) -> None:
        if not ev.transcript or self._ending is not None:
            return
        at_s = self._seconds(ev.created_at)
        if not ev.is_final:
            self._realtime.follow(self._listener.interim(ev.transcript, at=at_s), ev)
            return
        told = {"speaker_id": ev.speaker_id, "language": ev.language}
        self._speaker = {name: str(value) for name, value in told.items() if value}
        said = self._listener.final(
            ev.transcript,
            at=at_s,
            metadata=dict(self._speaker),
            # A realtime model's transcript is a turn already: its item comes right after.
            is_turn=ev.item_id is not None,
        )
        self._realtime.follow(said, ev)

    @guarded
    def _on_item(self, ev: ConversationItemAddedEvent) -> None:
        if isinstance(ev.item, llm.AgentHandoff):
            self._wrap_current()
        elif isinstance(ev.item, llm.ChatMessage):
            self._hear(ev.item)

    def _hear(self, item: llm.ChatMessage) -> None:
        if item.role not in ("user", "assistant") or is_ours(item):
            return
        text = item.text_content
        if not text or not text.strip() or self._turns.get(item.id) == text:
            return
        self._turns[item.id] = text
        began = item.metrics.get("started_speaking_at")
        ended = item.metrics.get("stopped_speaking_at")
        metadata: dict[str, str | float] = {}
        typed = False
        if item.role == "assistant":
            metadata["agent"] = self.session.current_agent.id
            began = item.created_at if began is None else began
        elif item.transcript_confidence is None:
            typed, began = True, item.created_at
        else:
            metadata |= self._speaker
            metadata["confidence"] = round(item.transcript_confidence, 4)
            self._speaker = {}
        self._listener.turn(
            text,
            "agent" if item.role == "assistant" else "caller",
            # Where nobody knows when a spoken turn began, the memory goes by its words.
            at=None if began is None else self._seconds(began),
            until=None if ended is None else self._seconds(ended),
            interrupted=item.interrupted,
            typed=typed,
            id=item.id,
            metadata=metadata,
        )

    def _seconds(self, wall_s: float) -> float:
        return max(0.0, wall_s - self._started_at)

    # --- what is recalled --------------------------------------------------------------------------

    def _wrap_current(self) -> None:
        try:
            agent = self.session.current_agent
        except RuntimeError:  # not started
            return
        self._wrap(agent)
        if self._ending is None:
            self._realtime.tie(agent)

    def _wrap(self, agent: Agent) -> None:
        """Put ourselves around an agent's `llm_node`, its own override included; once."""
        inner: Any = agent.llm_node
        tied = getattr(inner, _WRAPPED, None)
        if tied is self or self._ending is not None:
            return
        if tied is not None:  # an agent that served another session before
            inner = tied.unwrap(agent)
        own = vars(agent).get("llm_node")
        is_default = getattr(inner, "__func__", None) is Agent.llm_node

        @functools.wraps(inner)
        async def llm_node(
            chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
        ) -> Any:
            shown = await self._with_recalled(chat_ctx)
            before = list(shown.items)
            node = inner(shown, tools, model_settings)
            if is_default or shown is chat_ctx:
                return node
            if inspect.isawaitable(node):
                node = await node
            if isinstance(node, AsyncIterable):
                return _then(node, functools.partial(carry_back, chat_ctx, shown, before))
            carry_back(chat_ctx, shown, before)
            return node

        setattr(llm_node, _WRAPPED, self)
        # The framework reads it off the instance for each reply.
        agent.llm_node = llm_node  # type: ignore[method-assign]
        self._agents.append((agent, own))

    def unwrap(self, agent: Agent) -> Any:
        """Give an agent its own `llm_node` back, and return that."""
        tied = getattr(vars(agent).get("llm_node"), _WRAPPED, None)
        for known, own in self._agents if tied is self else ():
            if known is agent and own is not None:
                agent.llm_node = own
            elif known is agent:
                del agent.llm_node  # it came from the class
        self._agents = [pair for pair in self._agents if pair[0] is not agent]
        return agent.llm_node

    async def _with_recalled(self, chat_ctx: llm.ChatContext) -> llm.ChatContext:
        """Return what the LLM is to see: a copy with the block, or the host's own after a fault."""
        try:
            return await self._recalled_into(chat_ctx)
        except Exception as error:  # noqa: BLE001 - the reply goes on without us
            logger.error("call %r: no context (%s)", self.memory.name, type(error).__name__)
            return chat_ctx

    async def _recalled_into(self, chat_ctx: llm.ChatContext) -> llm.ChatContext:
        shown = shown_to_llm(chat_ctx, window=self._window)
        prompt = read_prompt(shown, turns=self._turns)
        context = await self._recall(prompt.text, prompt.visible, prompt.seen)
        if context.text:
            with_block(shown, prompt, context.text)
        return shown

    async def _recall(
        self, text: str | None, visible: Collection[str], seen: Collection[str]
    ) -> CallContext:
        with tracer.start_as_current_span("moss_voice.recall") as span:
            context = await self.memory.context(text, visible=visible, seen=seen)
            if span.is_recording():
                span.set_attributes(span_attributes(context))
                if self._trace_text:
                    span.set_attribute(trace_types.ATTR_GEN_AI_RETRIEVAL_QUERY_TEXT, text or "")
                    span.set_attribute("moss_voice.pii.block", context.text)
        self._tell(context)
        return context

    @guarded
    def _tell(self, context: CallContext) -> None:
        count(context, host=HOST)
        if self._on_context is not None:
            self._on_context(context)

    def _names_taken(self) -> frozenset[str]:
        try:
            theirs = self.session.current_agent.tools
        except RuntimeError:  # not started
            theirs = []
        others = [tool for tool in self.session.tools if tool is not self.toolset]
        return frozenset(llm.tool_context.get_fnc_tool_names([*others, *theirs]))

    async def _search_knowledge(self, query: str) -> list[Hit]:
        return await look_up(self.memory.search_knowledge, query, "search_knowledge", host=HOST)

    async def _recall_call(self, query: str) -> list[Hit]:
        return await look_up(self.memory.recall, query, "recall_call", host=HOST)

    # --- the end -----------------------------------------------------------------------------------

    @guarded
    def _on_close(self, ev: CloseEvent) -> None:  # noqa: ARG002 - every close ends the call
        # The toolset's close comes before it and is waited for; this is a second chance.
        self._start_ending()

    async def on_shutdown(self) -> None:
        """End the call with its job, should the session not have done it."""
        await self.end()

    async def end(self) -> None:
        """Push the call, once, whoever says goodbye first; everybody waits for the same push.

        Never raises. A push that takes longer than its time is left to the journal.
        """
        await asyncio.shield(self._start_ending())

    def _start_ending(self) -> asyncio.Task[None]:
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._end())
        return self._ending

    async def _end(self) -> None:
        await self._realtime.end()
        await end_call(
            self.memory,
            keeping=self._listener.keeping,
            push_timeout_s=self._push_timeout_s,
            host=HOST,
        )
        self._untie()
        if self._owns_client:
            await self._client.close()

    @guarded
    def _untie(self) -> None:
        for agent, _ in tuple(self._agents):
            self.unwrap(agent)
        self.session.off("user_input_transcribed", self._on_transcribed)
        self.session.off("conversation_item_added", self._on_item)


async def _then(node: AsyncIterable[Any], done: Callable[[], None]) -> AsyncIterator[Any]:
    """Pass a node's output on, close it as the framework would, and then do something."""
    stream: Any = node
    try:
        if hasattr(stream, "aclose"):
            async with aclosing(stream):
                async for chunk in stream:
                    yield chunk
        else:
            async for chunk in stream:
                yield chunk
    finally:
        try:
            done()
        except Exception as error:  # noqa: BLE001 - the reply is out
            logger.error("an llm_node's changes were not kept (%s)", type(error).__name__)
