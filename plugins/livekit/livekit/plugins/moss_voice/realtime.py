"""What a realtime model (speech to speech) is shown of its call.

The law: such a model keeps its context at its provider, where whatever is put in stays. So there is one
block with one id, replaced and never added to, at providers that can replace; it goes in before the reply
that it is for or not at all, and nobody waits for it beyond the deadline. It stands before the last item,
never at the end: the host copies what comes last at the provider into its own history, and leaves alone
what comes in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Container,
    Coroutine,
    Iterator,
    Sequence,
)
from typing import Any, NamedTuple

from livekit.agents import (
    Agent,
    AgentSession,
    AgentStateChangedEvent,
    UserInputTranscribedEvent,
    llm,
)
from livekit.plugins.moss_voice.log import logger
from livekit.plugins.moss_voice.prompt import BLOCK_ID, new_block, read_prompt, shown_to_llm

from moss_voice import CallContext, CallMemory

__all__ = ["RealtimeMemory", "speaks_realtime"]

# How long a provider may take to confirm a block, in which the host's own updates wait; none is as slow.
_CONFIRM_S = 1.0

Recall = Callable[[str | None, Collection[str], Collection[str]], Awaitable[CallContext]]


def speaks_realtime(session: AgentSession[Any]) -> bool:
    """Tell whether the current agent's LLM is a realtime model, its own or the session's."""
    try:
        return _is_realtime(session, session.current_agent)
    except RuntimeError:  # not started
        return isinstance(session.llm, llm.RealtimeModel)


def _is_realtime(session: AgentSession[Any], agent: Agent) -> bool:
    own = agent.llm
    if own is None or isinstance(own, llm.LLM | llm.RealtimeModel):
        return isinstance(own, llm.RealtimeModel)
    return isinstance(session.llm, llm.RealtimeModel)


class _Provider(NamedTuple):
    session: llm.RealtimeSession[Any]
    # The host's own, under which it reads a provider's context and sends it back: whatever comes in
    # between would be deleted by what was read before.
    lock: asyncio.Lock


class _Typed(NamedTuple):
    """The block for a typed message, which the host is about to send."""

    session: llm.RealtimeSession[Any]
    text: str
    block: str


class RealtimeMemory:
    """Keeps the block of the realtime model that speaks, where there is one."""

    def __init__(
        self,
        session: AgentSession[Any],
        memory: CallMemory,
        *,
        turns: Container[str],
        finals: Sequence[str],
        recall: Recall,
        hear: Callable[[llm.ChatMessage], None],
    ) -> None:
        """Start from ready parts; nothing happens before a realtime model speaks.

        Args:
            session: The host's.
            memory: Names the call and sets the deadline.
            turns: Ids of the messages that the call remembers as turns.
            finals: What the recogniser has finished that is no turn yet.
            recall: Gets a text, visible ids and seen texts; as `CallMemory.context`.
            hear: Remembers a message that the host does not tell of itself.
        """
        self._session = session
        self._memory = memory
        self._turns = turns
        self._finals = finals
        self._recall = recall
        self._hear = hear
        self._agents: list[Agent] = []
        # What was put in place of what: owner, name, ours, and the owner's own where it had one.
        self._shadows: list[tuple[object, str, Any, Any]] = []
        self._said: str | None = None
        self._following: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._typed: _Typed | None = None
        self._ended = False

    # --- the host's hooks --------------------------------------------------------------------------

    def tie(self, agent: Agent) -> None:
        """Be asked before the replies of an agent that speaks through a realtime model. Never raises."""
        with self._excused():
            # What another agent's history has handed down.
            _clear(agent, wholly=True)
            if any(known is agent for known in self._agents):
                return
            self._agents.append(agent)
            if not _is_realtime(self._session, agent):
                return
            self._shadow(agent, "on_enter", functools.partial(self._entering, agent))
            self._shadow(
                agent, "on_user_turn_completed", functools.partial(self._completing, agent)
            )
            if self._shadow(self._session, "generate_reply", self._replying):
                self._session.on("agent_state_changed", self._on_agent_state)

    def follow(self, said: str, ev: UserInputTranscribedEvent) -> None:
        """Keep up with what a recogniser makes of a turn that goes on. Returns at once, never raises.

        A provider's own transcript comes after its model has begun to answer: no use for that reply, and
        hardly any for the next, which is mostly about something else.
        """
        with self._excused():
            if self._ended or ev.item_id is not None or not speaks_realtime(self._session):
                return
            self._said = said
            if self._following is None or self._following.done():
                self._following = self._start(self._keep_up(self._session.current_agent))

    def _on_agent_state(self, ev: AgentStateChangedEvent) -> None:
        with self._excused():
            # Where the host ends the turns, it calls the hook of each.
            if (
                ev.new_state == "speaking"
                and self._finals
                and self._caller_goes_untold(by_server=True)
            ):
                self._hear(_spoken(" ".join(self._finals)))

    def _caller_goes_untold(self, *, by_server: bool) -> bool:
        """Tell whether the host reports no message for what the caller says.

        It waits for the provider's transcript, even where a recogniser has one and the provider has none.
        """
        if self._ended or not speaks_realtime(self._session):
            return False
        activity = getattr(self._session.current_agent, "_activity", None)
        rt = getattr(activity, "realtime_llm_session", None)
        if not isinstance(rt, llm.RealtimeSession) or rt.capabilities.user_transcription:
            return False
        return getattr(activity, "_rt_turn_detection_enabled", None) is by_server

    async def _entering(self, agent: Agent, inner: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # What was left off in a call that is taken up or over.
        await self._show_in_time(agent, None)
        await inner()

    async def _completing(
        self,
        agent: Agent,
        inner: Callable[..., Coroutine[Any, Any, None]],
        turn_ctx: llm.ChatContext,
        new_message: llm.ChatMessage,
    ) -> None:
        await inner(turn_ctx, new_message=new_message)
        text = new_message.text_content
        if text and text.strip():
            with self._excused():
                if self._caller_goes_untold(by_server=False):
                    self._hear(_spoken(text, like=new_message))
            await self._show_in_time(agent, text)

    def _replying(self, inner: Callable[..., Any], **told: Any) -> Any:
        with self._excused():
            asked = told.get("user_input")
            text = asked.raw_text_content if isinstance(asked, llm.ChatMessage) else asked
            if isinstance(text, str) and not self._ended and speaks_realtime(self._session):
                # Begun before the host's own task, it gets the host's lock first.
                self._start(self._look_up_typed(self._session.current_agent, text))
        return inner(**told)

    def _shadow(self, owner: Any, name: str, ours: Callable[..., Any]) -> bool:
        if any(known is owner and what == name for known, what, *_ in self._shadows):
            return False
        inner = getattr(owner, name)
        shadow = functools.wraps(inner)(functools.partial(ours, inner))
        self._shadows.append((owner, name, shadow, vars(owner).get(name)))
        setattr(owner, name, shadow)
        return True

    def _unshadow(self) -> None:
        for owner, name, shadow, own in reversed(self._shadows):
            if vars(owner).get(name) is not shadow:
                continue  # somebody has put theirs around ours, which does nothing more
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        self._shadows.clear()
        self._session.off("agent_state_changed", self._on_agent_state)

    # --- the block ---------------------------------------------------------------------------------

    async def _keep_up(self, agent: Agent) -> None:
        while self._said is not None:
            said, self._said = self._said, None
            await self._show(agent, said)

    async def _show_in_time(self, agent: Agent, text: str | None) -> None:
        """Show what is worth knowing for a reply; takes no longer than the deadline, and never raises."""
        if not self._ended:
            # What was sent in time is there in time: a provider does things in the order asked. Its
            # confirmation need not be waited for, and is not cancelled.
            await asyncio.wait({self._start(self._show(agent, text))}, timeout=self._limit_s)

    async def _show(self, agent: Agent, text: str | None) -> None:
        """Put the block for a text at the provider; None where the agent is about to begin."""
        with self._excused():
            provider = _provider_of(agent)
            if provider is None:
                return
            async with self._recalled(provider, agent, text) as block:
                items = None
                if block is not None:
                    items = _with_block(provider.session.chat_ctx.items, block)
                if items is not None:
                    async with asyncio.timeout(_CONFIRM_S):
                        await provider.session.update_chat_ctx(llm.ChatContext(items))
            _clear(agent, wholly=False)

    async def _look_up_typed(self, agent: Agent, text: str) -> None:
        """Find the block for a typed message; the host waits for its lock, and then sends both."""
        with self._excused():
            self._typed = None
            provider = _provider_of(agent)
            if provider is None:
                return
            rt = provider.session
            self._shadow(rt, "update_chat_ctx", functools.partial(self._updating, rt))
            async with self._recalled(provider, agent, text) as block:
                if block is not None:
                    self._typed = _Typed(rt, text, block)
            _clear(agent, wholly=False)

    async def _updating(
        self,
        rt: llm.RealtimeSession[Any],
        inner: Callable[[llm.ChatContext], Coroutine[Any, Any, None]],
        chat_ctx: llm.ChatContext,
    ) -> None:
        both: llm.ChatContext | None = None
        with self._excused():
            both = self._with_typed(rt, chat_ctx)
        if both is not None:
            try:
                return await inner(both)
            except llm.RealtimeError:
                raise  # sent and not confirmed: the host goes on, as without us
            except Exception as error:  # noqa: BLE001 - the block shall not cost the message
                self._complain(error)
        return await inner(chat_ctx)

    def _with_typed(
        self, rt: llm.RealtimeSession[Any], chat_ctx: llm.ChatContext
    ) -> llm.ChatContext | None:
        """Return a context that brings a typed message, with its block; None where nothing is to do."""
        typed = self._typed
        if typed is None or typed.session is not rt or not chat_ctx.items:
            return None
        *items, last = chat_ctx.items
        if not isinstance(last, llm.ChatMessage) or last.raw_text_content != typed.text:
            return None
        self._typed = None
        changed = _with_block(items, typed.block)
        return llm.ChatContext([*changed, last]) if changed is not None else None

    @contextlib.asynccontextmanager
    async def _recalled(
        self, provider: _Provider, agent: Agent, text: str | None
    ) -> AsyncIterator[str | None]:
        """Hold the host's lock, and yield the block for a text; None where that of before may stay."""
        block: str | None = None
        async with contextlib.AsyncExitStack() as held:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._limit_s):
                    await held.enter_async_context(provider.lock)
                    shown = shown_to_llm(provider.session.chat_ctx, window=None)
                    prompt = read_prompt(shown, turns=self._turns)
                    seen = (*prompt.seen, str(agent.instructions))
                    context = await self._recall(text, prompt.visible, seen)
                    block = context.text if context.outcome == "ok" else None
            yield None if self._ended else block

    @property
    def _limit_s(self) -> float:
        return self._memory.deadline_ms / 1000.0

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    @contextlib.contextmanager
    def _excused(self) -> Iterator[None]:
        """Keep faults of ours, and of a provider that takes no block, from the host."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - the reply goes on without us
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        kind = type(error).__name__
        logger.warning(
            "call %r: a realtime model was shown nothing new (%s)", self._memory.name, kind
        )

    # --- the end -----------------------------------------------------------------------------------

    async def end(self) -> None:
        """Take the block out, where its provider is still there, and leave the host. Never raises."""
        if self._ended:
            return
        self._ended = True
        with self._excused():
            self._unshadow()
        under_way = tuple(self._tasks)
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way, timeout=_CONFIRM_S)
        for agent in self._agents:
            with self._excused():
                await self._take_out(agent)
                _clear(agent, wholly=True)

    async def _take_out(self, agent: Agent) -> None:
        provider = _provider_of(agent)
        if provider is None:
            return
        async with asyncio.timeout(_CONFIRM_S), provider.lock:
            items = _with_block(provider.session.chat_ctx.items, "")
            if items is not None:
                await provider.session.update_chat_ctx(llm.ChatContext(items))


def _provider_of(agent: Agent) -> _Provider | None:
    """Return an agent's provider, None where it has none that could replace a block.

    Only where single items can be changed does an update replace: elsewhere (Gemini, Ultravox, Nova
    Sonic, duplex models) a provider takes in what is new, keeps what is old, and would collect a block
    per turn.
    """
    activity = getattr(agent, "_activity", None)
    rt = getattr(activity, "realtime_llm_session", None)
    lock = getattr(activity, "_rt_chat_ctx_lock", None)
    if not isinstance(rt, llm.RealtimeSession) or not isinstance(lock, asyncio.Lock):
        return None
    able = rt.capabilities
    return _Provider(rt, lock) if able.mutable_chat_context and able.message_truncation else None


def _with_block(items: Sequence[llm.ChatItem], block: str) -> list[llm.ChatItem] | None:
    """Return items with the block in place of the one in them; None where that is right as it is.

    Args:
        items: A provider's context, without what is being added to it.
        block: "" takes it out.
    """
    old = "".join(
        item.raw_text_content or ""
        for item in items
        if isinstance(item, llm.ChatMessage) and item.id == BLOCK_ID
    )
    if old == block:
        return None
    kept = [item for item in items if item.id != BLOCK_ID]
    if block:
        message = new_block(block)
        message.id = BLOCK_ID
        kept.insert(_place(kept), message)
    return kept


def _place(items: Sequence[llm.ChatItem]) -> int:
    """Return where a block goes: before the last item, never between a tool's call and its output.

    With nothing before the last item it goes to the end: the host takes what comes first for the last.
    """
    place = max(len(items) - 1, 0)
    while place and items[place - 1].type in ("function_call", "function_call_output"):
        place -= 1
    return place or len(items)


def _clear(agent: Agent, *, wholly: bool) -> None:
    """Take a block that the host has copied out of an agent's history.

    The last item stays unless `wholly`: by it the host tells which item of a provider comes next.
    """
    history = getattr(agent, "_chat_ctx", None)
    if not isinstance(history, llm.ChatContext):
        return
    at = history.index_by_id(BLOCK_ID)
    if at is not None and (wholly or at < len(history.items) - 1):
        del history.items[at]


def _spoken(text: str, *, like: llm.ChatMessage | None = None) -> llm.ChatMessage:
    """Make the message of a caller's turn; as in the host, one without a confidence has 1.0."""
    message = llm.ChatMessage(role="user", content=[text], transcript_confidence=1.0)
    if like is not None:
        message.id = like.id
        message.metrics = like.metrics
        message.created_at = like.created_at
        if like.transcript_confidence is not None:
            message.transcript_confidence = like.transcript_confidence
    return message
