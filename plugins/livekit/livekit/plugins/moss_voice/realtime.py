"""What a realtime model (speech to speech) is shown of its call.

The law: such a model keeps its context at its provider, where whatever is put in stays. So there is one
block with one id, replaced and never added to, at providers that can replace; it goes in before the reply
that it is for or not at all, and nobody waits for it beyond the deadline. It stands before the last item,
never at the end: the host copies what comes last at the provider into its own history, and leaves alone
what comes in between.
"""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import Awaitable, Callable, Collection, Container, Coroutine, Sequence
from typing import Any, NamedTuple, ParamSpec

from livekit.agents import Agent, AgentSession, UserInputTranscribedEvent, llm
from livekit.plugins.moss_voice.log import logger
from livekit.plugins.moss_voice.prompt import BLOCK_ID, new_block, read_prompt, shown_to_llm

from moss_voice import CallContext, CallMemory

__all__ = ["RealtimeMemory", "speaks_realtime"]

_P = ParamSpec("_P")
# How long a provider may keep us in the dark about a block that it has not confirmed in time.
_UNSURE_S = 2.0
# How long the end of a call may be held up to take the block out again.
_GOODBYE_S = 0.5

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


class _Sent(NamedTuple):
    """A block on its way; "" where it is taken out."""

    session: llm.RealtimeSession[Any]
    text: str
    until: float


class RealtimeMemory:
    """Keeps the block of the realtime model that speaks, where there is one."""

    def __init__(
        self,
        session: AgentSession[Any],
        memory: CallMemory,
        *,
        turns: Container[str],
        recall: Recall,
        hear: Callable[[llm.ChatMessage], None],
    ) -> None:
        """Start from ready parts; nothing happens before a realtime model speaks.

        Args:
            session: The host's.
            memory: Names the call and sets the deadline.
            turns: Ids of the messages that the call remembers as turns.
            recall: Gets a text, visible ids and seen texts; as `CallMemory.context`.
            hear: Remembers a message of a host that tells of no such message itself.
        """
        self._session = session
        self._memory = memory
        self._turns = turns
        self._recall = recall
        self._hear = hear
        self._agents: list[Agent] = []
        # What was put in place of what: owner, name, ours, and the owner's own where it had one.
        self._shadows: list[tuple[object, str, Any, Any]] = []
        self._said: str | None = None
        self._following: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Any]] = set()
        self._sent: _Sent | None = None
        self._ended = False

    # --- the host's hooks --------------------------------------------------------------------------

    def tie(self, agent: Agent) -> None:
        """Be asked before the replies of an agent that speaks through a realtime model. Never raises."""
        try:
            # What another agent's history has handed down.
            _clear(agent, wholly=True)
            if any(known is agent for known in self._agents):
                return
            self._agents.append(agent)
            if _is_realtime(self._session, agent):
                self._shadow(agent, "on_enter", functools.partial(self._entering, agent))
                self._shadow(
                    agent, "on_user_turn_completed", functools.partial(self._completing, agent)
                )
                if all(owner is not self._session for owner, *_ in self._shadows):
                    self._shadow(self._session, "generate_reply", self._replying)
        except Exception as error:  # noqa: BLE001 - the agent speaks without us
            self._complain(error)

    def follow(self, said: str, ev: UserInputTranscribedEvent) -> None:
        """Keep up with what a recogniser makes of a turn that goes on. Returns at once, never raises.

        A provider's own transcript comes after its model has begun to answer: no use for that reply, and
        hardly any for the next, which is mostly about something else.
        """
        if self._ended or ev.item_id is not None or not speaks_realtime(self._session):
            return
        self._said = said
        if self._following is None or self._following.done():
            self._following = self._start(self._keep_up(self._session.current_agent))

    def hear_before(self, item: llm.ChatMessage, finals: Sequence[str]) -> None:
        """Remember what the caller said before an agent's turn, where the host tells of no such message.

        Args:
            item: What the host has added to the history.
            finals: What the recogniser has finished that is no turn yet.
        """
        if item.role == "assistant" and finals and self._caller_goes_untold():
            self._hear(_spoken(" ".join(finals)))

    def _caller_goes_untold(self) -> bool:
        """Tell whether the host leaves out what the caller says: it waits for the provider's transcript."""
        if not speaks_realtime(self._session):
            return False
        rt = getattr(
            getattr(self._session.current_agent, "_activity", None), "realtime_llm_session", None
        )
        return isinstance(rt, llm.RealtimeSession) and not rt.capabilities.user_transcription

    async def _entering(self, agent: Agent, inner: Callable[[], Coroutine[Any, Any, None]]) -> None:
        # What was left off in a call that is taken up or over.
        await self._refresh(agent, None)
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
        if not self._ended and text and text.strip():
            try:
                if self._caller_goes_untold():
                    self._hear(_spoken(text, like=new_message))
            except Exception as error:  # noqa: BLE001 - the turn goes on
                self._complain(error)
            await self._refresh(agent, text)

    def _replying(self, inner: Callable[_P, Any], *args: _P.args, **kwargs: _P.kwargs) -> Any:
        try:
            self._look_up_typed(kwargs.get("user_input"))
        except Exception as error:  # noqa: BLE001 - the reply goes on
            self._complain(error)
        return inner(*args, **kwargs)

    def _look_up_typed(self, user_input: object) -> None:
        text = user_input.text_content if isinstance(user_input, llm.ChatMessage) else user_input
        if self._ended or not isinstance(text, str) or not speaks_realtime(self._session):
            return
        # Begun before the host's own task, it holds the host's lock first: the typed message waits
        # for the block.
        self._start(self._refresh(self._session.current_agent, text))

    def _shadow(self, owner: Any, name: str, ours: Callable[..., Any]) -> None:
        inner = getattr(owner, name)
        shadow = functools.wraps(inner)(functools.partial(ours, inner))
        self._shadows.append((owner, name, shadow, vars(owner).get(name)))
        setattr(owner, name, shadow)

    def _unshadow(self) -> None:
        for owner, name, shadow, own in reversed(self._shadows):
            if vars(owner).get(name) is not shadow:
                continue  # somebody has put theirs around ours, which does nothing more
            if own is None:
                delattr(owner, name)
            else:
                setattr(owner, name, own)
        self._shadows.clear()

    # --- the block ---------------------------------------------------------------------------------

    async def _keep_up(self, agent: Agent) -> None:
        while self._said is not None:
            said, self._said = self._said, None
            await self._refresh(agent, said)

    async def _refresh(self, agent: Agent, text: str | None) -> None:
        """Show what is worth knowing for the reply to a text; None where the agent is about to begin.

        Takes no longer than the deadline, and raises nothing but a cancellation.
        """
        if self._ended:
            return
        try:
            async with asyncio.timeout(self._memory.deadline_ms / 1000.0):
                provider = _provider_of(agent)
                if provider is None:
                    return
                async with provider.lock:
                    block = await self._recalled(provider, agent, text)
                    if block is not None:
                        await self._put(provider, block)
        except TimeoutError:
            logger.debug("call %r: a block was not confirmed in time", self._memory.name)
        except Exception as error:  # noqa: BLE001 - the reply goes on without us
            self._complain(error)
        _clear(agent, wholly=False)

    async def _recalled(self, provider: _Provider, agent: Agent, text: str | None) -> str | None:
        """Return the block's text; None where the one that is there may stay."""
        prompt = read_prompt(
            shown_to_llm(provider.session.chat_ctx, window=None), turns=self._turns
        )
        context = await self._recall(text, prompt.visible, (*prompt.seen, str(agent.instructions)))
        return context.text if context.outcome == "ok" else None

    async def _put(self, provider: _Provider, block: str) -> None:
        """Put the block in place of the one that is there; "" takes it out."""
        rt = provider.session
        now = time.monotonic()
        # Read and sent without a pause in between.
        items = rt.chat_ctx.items
        old = "".join(
            item.raw_text_content or ""
            for item in items
            if isinstance(item, llm.ChatMessage) and item.id == BLOCK_ID
        )
        sent = self._sent
        if sent is not None and sent.session is rt and sent.text != old and now < sent.until:
            return  # one of its id is on its way
        self._sent = None
        if old == block:
            return
        items = [item for item in items if item.id != BLOCK_ID]
        if block:
            message = new_block(block)
            message.id = BLOCK_ID
            items.insert(_place(items), message)
        self._sent = _Sent(rt, block, now + _UNSURE_S)
        # In a task of its own, so that one that will not be cancelled holds nobody up.
        sending = self._start(rt.update_chat_ctx(llm.ChatContext(items)))
        try:
            await asyncio.wait({sending})
        finally:
            sending.cancel()
        if not sending.cancelled():
            sending.result()
            self._sent = None

    def _start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        # Looked at by whoever waits; where nobody does any more, asyncio shall not complain.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

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
        self._unshadow()
        for task in tuple(self._tasks):
            task.cancel()
        for agent in self._agents:
            await self._take_out(agent)
            _clear(agent, wholly=True)

    async def _take_out(self, agent: Agent) -> None:
        limit_s = min(_GOODBYE_S, self._memory.deadline_ms / 1000.0)
        try:
            async with asyncio.timeout(limit_s):
                provider = _provider_of(agent)
                if provider is not None:
                    async with provider.lock:
                        await self._put(provider, "")
        except Exception as error:  # noqa: BLE001 - the host is hanging up and must be let go
            logger.debug("call %r: a block was left (%s)", self._memory.name, type(error).__name__)


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
