"""The processor that gives a pipeline's bot the memory of its call.

The law: frames pass as without us, and nothing waits for us longer than a recall's deadline. What was
said comes from the aggregators' events, since neither end nor tool results flow past a processor; what is
recalled goes into a copy of the context at the LLM's own door, so that history never sees it.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from datetime import datetime
from typing import Any

from loguru import logger
from pipecat.frames.frames import (
    Frame,
    InterimTranscriptionFrame,
    LLMContextFrame,
    LLMServiceMetadataFrame,
    TranscriptionFrame,
)
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMAssistantAggregator,
    LLMContextAggregatorPair,
    LLMUserAggregator,
    UserTurnMessageAddedMessage,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor, FrameProcessorSetup
from pipecat.processors.frameworks.rtvi import RTVIServerMessageFrame
from pipecat.services.llm_service import FunctionCallParams, LLMService
from pipecat.utils.base_object import BaseObject

from moss_voice import CallContext, CallMemory, Hit, MossClient
from moss_voice.call.observe import Tool, count, span_attributes
from moss_voice.errors import InvalidArgumentError
from moss_voice.live import (
    OPEN_TIMEOUT_S,
    PUSH_TIMEOUT_S,
    Listener,
    begin_call,
    end_call,
    look_up,
)
from pipecat_moss_voice.prompt import kind_of, message_text, read_prompt, with_block

__all__ = ["MossVoiceMemory"]

_HOST = "pipecat"

OnContext = Callable[[CallContext], object]

_shared: MossClient | None = None


def _client_of_this_process() -> MossClient:
    """Return the client of pipelines that were given none: one copy of each knowledge index."""
    global _shared  # noqa: PLW0603 - one per process
    if _shared is None:
        _shared = MossClient()
    return _shared


class MossVoiceMemory(FrameProcessor):
    """Remembers a call and tells the LLM what is worth knowing before each reply.

    Put it between the user aggregator and the LLM; there is nothing else to wire:

        Pipeline([transport.input(), stt, user_aggregator, memory, llm, tts, transport.output(),
                  assistant_aggregator])

    Frames pass through unchanged. With `tools=[memory.search_knowledge, memory.recall_call]` in the
    `LLMContext` the LLM may also look things up itself; for realtime (speech-to-speech) services, to which
    nothing can be added before a reply, that is the way.
    """

    def __init__(
        self,
        client: MossClient | None = None,
        *,
        call_id: str | None = None,
        knowledge: Sequence[str] = (),
        focus: Sequence[str] | None = None,
        pair: LLMContextAggregatorPair | None = None,
        window: int | None = None,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        push_timeout_s: float = PUSH_TIMEOUT_S,
        on_context: OnContext | None = None,
        rtvi: bool = True,
        send_text: bool = False,
        options: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Note what to do; the call is opened when the pipeline is set up.

        Args:
            client: Where calls are kept; one for all pipelines of the process, made from the environment,
                where None.
            call_id: Names the call and its index; a new name where None.
            knowledge: Names of indexes to look things up in.
            focus: Metadata fields of theirs that hold names of what a call can be about. Where None,
                fields are found that look like it; `()` looks for no names.
            pair: The aggregators to listen to, where a pipeline has several; found where None.
            window: Show the LLM the instructions and the last so many messages of a long conversation;
                what is older can be recalled. All of it where None.
            open_timeout_s: How long the cloud may take to open the call; then it begins empty, and is
                merged with what is stored at its end.
            push_timeout_s: How long the push may hold up the pipeline's end; then it is left to the
                journal.
            on_context: Called with each `CallContext`, before the reply that it is for; must be quick.
            rtvi: Tell clients of each recall in an RTVI server message: sources and milliseconds.
            send_text: Put the recalled text into that message, and query and text into spans; they are
                private.
            options: See `MossClient.call`: `without` (parts of the retrieval to leave out, such as
                `["gate"]`), `model_id`, `top_k`, `alpha`, `min_score`, `max_tokens`, `deadline_ms`,
                `journal`, `redact`, `record`, `ttl`.
            kwargs: For `FrameProcessor`: `name` and others.
        """
        super().__init__(**kwargs)
        if window is not None and window < 1:
            raise InvalidArgumentError(f"window: expected 1 message or more, got {window}")
        if isinstance(knowledge, str) or isinstance(focus, str):
            raise InvalidArgumentError("knowledge and focus: expected a list of names")
        self._client = client
        self._call_id = call_id or f"call-{secrets.token_hex(8)}"
        self._knowledge = tuple(knowledge)
        self._focus = None if focus is None else tuple(focus)
        self._pair = pair
        self._window = window
        self._open_timeout_s, self._push_timeout_s = open_timeout_s, push_timeout_s
        self._on_context = on_context
        self._rtvi, self._send_text = rtvi, send_text
        self._options = dict(options or {})
        self._memory: CallMemory | None = None
        self._listener: Listener | None = None
        self._context: LLMContext | None = None
        self._started_at = time.time()
        self._speaker: dict[str, str] = {}
        # The ids of the turns with a text: the context's messages have no ids of their own.
        self._turns: dict[str, list[str]] = {}
        # The context's messages that have been looked at, by identity; kept alive, so that it stays one.
        self._known: dict[int, Any] = {}
        # Spoken turns without their message yet, and messages without their turn's event.
        self._without_message: Counter[str] = Counter()
        self._without_event: Counter[str] = Counter()
        self._realtime = False
        self._tracing: Any = None
        self._ending: asyncio.Task[None] | None = None
        self._assistants: list[LLMAssistantAggregator] = []
        self._attached: list[tuple[BaseObject, str, Any]] = []

    @property
    def memory(self) -> CallMemory:
        """The call's memory, there from the pipeline's setup on.

        Raises:
            RuntimeError: Before that.
        """
        if self._memory is None:
            raise RuntimeError("the call has not begun: the pipeline is not set up yet")
        return self._memory

    def can_generate_metrics(self) -> bool:
        """Tell that recalls are measured: they show in latency breakdowns."""
        return True

    # --- the pipeline ------------------------------------------------------------------------------

    async def setup(self, setup: FrameProcessorSetup) -> None:  # type: ignore[override]
        """Open the call and listen to the aggregators, the LLMs and the end of the pipeline."""
        await super().setup(setup)
        await self._begin_anew()
        client = self._client or _client_of_this_process()
        self._memory = await begin_call(
            client,
            self._call_id,
            open_timeout_s=self._open_timeout_s,
            host=_HOST,
            knowledge=self._knowledge,
            focus=self._focus,
            **self._options,
        )
        self._listener = Listener(self._memory, host=_HOST)
        self._started_at = time.time()
        self._tracing = setup.tracing_context
        worker = setup.pipeline_worker
        users, assistants, llms = self._partners(worker.pipeline)
        for user in users:
            self._context = user.context
            self._attach(user, "on_before_process_frame", self._on_user_frame)
            self._attach(user, "on_user_turn_message_added", self._on_user_turn)
        for assistant in assistants:
            self._context = self._context or assistant.context
            self._attach(assistant, "on_assistant_turn_stopped", self._on_bot_turn)
            self._attach(assistant, "on_summary_applied", self._on_summary)
        for llm in llms:
            self._attach(llm, "on_before_process_frame", self._on_llm_frame)
        self._attach(worker, "on_pipeline_finished", self._on_finished)
        self._assistants = assistants
        if self._context is None:
            logger.warning(f"{self}: no context aggregators in the pipeline: nothing is remembered")
        else:
            # What the app has put there before the call is not said in it.
            self._look_at_new()

    async def _begin_anew(self) -> None:
        """Forget the run before, where a pipeline that a StopFrame ended runs under another worker."""
        if self._ending is not None:
            await self._end()
        self._ending = self._memory = self._listener = None
        for source, event, handler in self._attached:
            source.remove_event_handler(event, handler)
        self._attached.clear()

    def _attach(self, source: BaseObject, event: str, handler: Callable[..., Any]) -> None:
        source.add_event_handler(event, handler)
        self._attached.append((source, event, handler))

    def _partners(
        self, pipeline: FrameProcessor
    ) -> tuple[list[LLMUserAggregator], list[LLMAssistantAggregator], list[LLMService[Any]]]:
        found = list(_processors_in(pipeline))
        users = [p for p in found if isinstance(p, LLMUserAggregator)]
        assistants = [p for p in found if isinstance(p, LLMAssistantAggregator)]
        if self._pair is not None:
            users, assistants = [self._pair.user()], [self._pair.assistant()]
        elif len({id(user.context) for user in users}) > 1:
            raise InvalidArgumentError(
                f"{self}: the pipeline has aggregators of several contexts: give the pair= to remember"
            )
        return users, assistants, [p for p in found if isinstance(p, LLMService)]

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Pass every frame on."""
        await super().process_frame(frame, direction)
        if isinstance(frame, LLMServiceMetadataFrame):
            self._realtime = frame.is_realtime_service
        await self.push_frame(frame, direction)

    async def cleanup(self) -> None:
        """End the call, should the pipeline not have told of its end."""
        await self._end()
        await super().cleanup()  # type: ignore[no-untyped-call]

    async def _on_finished(self, _: object, __: Frame) -> None:
        await self._end()

    async def _end(self) -> None:
        """Push the call, once, within its time; whoever comes later waits for the same push."""
        if self._ending is None:
            self._ending = asyncio.get_running_loop().create_task(self._push())
        await asyncio.shield(self._ending)

    async def _push(self) -> None:
        if self._memory is None or self._listener is None:
            return
        # The last turns' events are on their way in tasks of the aggregators.
        await asyncio.sleep(0)
        try:
            self._gather_the_last()
        except Exception as error:  # noqa: BLE001 - the pipeline is ending and must be let go
            logger.error(f"{self}: the last words were not gathered ({type(error).__name__})")
        await end_call(
            self._memory,
            keeping=self._listener.keeping,
            push_timeout_s=self._push_timeout_s,
            host=_HOST,
        )

    def _gather_the_last(self) -> None:
        """Keep what no event has told of, and none will."""
        self._reconcile()
        for assistant in self._assistants:
            # A pipeline that could not be cancelled in time has not ended the bot's turn.
            if heard := assistant.aggregation_string().strip():
                self._keep(heard, "agent", interrupted=True)

    # --- what was said -----------------------------------------------------------------------------

    def _on_user_frame(self, _: object, frame: Frame) -> None:
        """Listen in at the user aggregator, which lets no transcription pass."""
        if self._listener is None or not isinstance(
            frame, InterimTranscriptionFrame | TranscriptionFrame
        ):
            return
        if not frame.text.strip():
            return
        try:
            at_s = max(0.0, time.time() - self._started_at)
            if isinstance(frame, InterimTranscriptionFrame):
                self._listener.interim(frame.text, at=at_s)
                return
            told = {"speaker_id": frame.user_id, "language": frame.language}
            self._speaker = {name: str(value) for name, value in told.items() if value}
            self._listener.final(frame.text, at=at_s, metadata=dict(self._speaker))
        except Exception as error:  # noqa: BLE001 - the host must not hear of it
            logger.error(f"{self}: an utterance was not noted ({type(error).__name__})")

    def _on_user_turn(self, _: object, message: UserTurnMessageAddedMessage) -> None:
        text = message.content
        if not text or not text.strip() or self._listener is None:
            return
        metadata = {**self._speaker, **({"speaker_id": message.user_id} if message.user_id else {})}
        self._speaker = {}
        if self._without_event[text]:
            self._without_event[text] -= 1
        else:
            self._without_message[text] += 1
        self._keep(text, "caller", at=self._seconds(message.timestamp), metadata=metadata)

    def _on_bot_turn(self, _: object, message: AssistantTurnStoppedMessage) -> None:
        if message.content and message.content.strip():
            self._keep(
                message.content,
                "agent",
                at=self._seconds(message.timestamp),
                interrupted=message.interrupted,
            )

    def _keep(self, text: str, speaker: str, **told: Any) -> None:
        if self._listener is None or self._memory is None:
            return
        turn_id = f"turn-{secrets.token_hex(6)}"
        self._turns.setdefault(text, []).append(turn_id)
        self._listener.turn(text, speaker, id=turn_id, **told)

    def _seconds(self, timestamp: str) -> float | None:
        try:
            return max(0.0, datetime.fromisoformat(timestamp).timestamp() - self._started_at)
        except (TypeError, ValueError):
            return None

    def _on_summary(self, *_: object) -> None:
        """Take a summary that has replaced a part of the context for what it is: nothing that was said."""
        self._look_at_new()

    def _look_at_new(self) -> list[Any]:
        """Return the messages that were not looked at before."""
        messages = self._context.messages if self._context is not None else []
        new = [message for message in messages if id(message) not in self._known]
        self._known.update((id(message), message) for message in new)
        return new

    def _reconcile(self) -> None:
        """Remember what was typed: it comes into the context without an event.

        A message whose words were spoken belongs to a turn, the event of which may be still on its way.
        """
        if self._listener is None:
            return
        spoken = " ".join(self._listener.finals)
        for message in self._look_at_new():
            text = message_text(message)
            if kind_of(message) != "user" or not text.strip():
                continue
            if self._without_message[text]:
                self._without_message[text] -= 1
            elif self._listener.finals and text in spoken:
                self._without_event[text] += 1
            else:
                self._keep(text, "caller", typed=True)

    # --- what is recalled --------------------------------------------------------------------------

    async def _on_llm_frame(self, _: object, frame: Frame) -> None:
        """Give the LLM a copy of the context with what is recalled; its own where anything fails."""
        if not isinstance(frame, LLMContextFrame) or self._memory is None or self._realtime:
            return
        # Older hosts do not speculate.
        is_speculation = bool(getattr(frame, "speculation", False))
        if frame.context is not self._context and not is_speculation:
            return
        try:
            frame.context = await self._recalled_into(frame.context, is_speculation)
        except Exception as error:  # noqa: BLE001 - the reply goes on without us
            logger.error(f"{self}: no context ({type(error).__name__})")

    async def _recalled_into(self, context: LLMContext, is_speculation: bool) -> LLMContext:
        memory = self.memory
        if not is_speculation:
            self._reconcile()
        prompt = read_prompt(context, turns=self._turns, window=self._window)
        await self.start_ttfb_metrics()
        await self.start_processing_metrics()
        with self._span() as span:
            recalled = await memory.context(prompt.text, visible=prompt.visible, seen=prompt.seen)
            if span is not None and span.is_recording():
                span.set_attributes(span_attributes(recalled))
                if self._send_text:
                    span.set_attribute("gen_ai.retrieval.query.text", prompt.text or "")
        await self.stop_ttfb_metrics()
        await self.stop_processing_metrics()
        await self._tell(recalled)
        if not recalled.text and self._window is None:
            return context
        return with_block(context, prompt, recalled.text)

    def _span(self) -> Any:
        parent = self._tracing.get_turn_context() if self._tracing is not None else None
        if parent is None:
            return nullcontext()
        from opentelemetry import trace

        return trace.get_tracer("moss_voice").start_as_current_span(
            "moss_voice.recall", context=parent
        )

    async def _tell(self, context: CallContext) -> None:
        try:
            count(context, host=_HOST)
            if self._on_context is not None:
                self._on_context(context)
        except Exception as error:  # noqa: BLE001 - the user's callback costs nobody a reply
            logger.error(f"{self}: on_context failed ({type(error).__name__})")
        if self._rtvi and context.outcome != "skipped":
            data: dict[str, Any] = {
                "type": "moss-voice-recall",
                "outcome": context.outcome,
                "took_ms": round(context.took_ms, 2),
                "sources": [hit.source for hit in context.hits],
            }
            if self._send_text:
                data["hits"] = [{"source": h.source, "text": h.text} for h in context.hits]
            await self.push_frame(RTVIServerMessageFrame(data=data))

    # --- tools -------------------------------------------------------------------------------------

    async def search_knowledge(self, params: FunctionCallParams, query: str) -> None:
        """Look something up in the knowledge base. Use it before you say that you do not know.

        Args:
            params: The call of the tool.
            query: What to look for, in a few words.
        """
        await _answer(params, self.memory.search_knowledge, query, "search_knowledge")

    async def recall_call(self, params: FunctionCallParams, query: str) -> None:
        """Find what was said earlier in this call, for example a name, a number or a wish.

        Args:
            params: The call of the tool.
            query: What to look for, in a few words.
        """
        await _answer(params, self.memory.recall, query, "recall_call")


async def _answer(
    params: FunctionCallParams,
    search: Callable[[str], Awaitable[list[Hit]]],
    query: str,
    tool: Tool,
) -> None:
    try:
        hits = await look_up(search, query, tool, host=_HOST)
    except Exception as error:  # noqa: BLE001 - the model is told that there is nothing
        logger.error(f"a lookup failed ({type(error).__name__})")
        hits = []
    found = [{"source": hit.source, "text": hit.text} for hit in hits]
    await params.result_callback({"found": found})


def _processors_in(pipeline: FrameProcessor) -> Iterator[FrameProcessor]:
    for processor in pipeline.processors:
        yield processor
        yield from _processors_in(processor)
