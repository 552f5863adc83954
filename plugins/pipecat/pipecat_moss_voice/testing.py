"""Spoken calls against a real Pipecat pipeline, without a server, a key or a sound device.

The law: everything between the line and the loudspeaker is the host's own (turn detection, aggregation,
interruptions, function calls, the transcript of what was really spoken); only its edges are played
here. The recogniser and the voice detector say what they are told, the voice is silence as long as the
words take, the loudspeaker plays in real time. Time is compressed: a call at `speed=20` passes twenty
times as fast as life, and so does the host's pause before it ends a turn.

    async def test_bot() -> None:
        call = SimulatedCall(ScriptedLLMService(lambda messages: "It is at four."))
        async with call:
            await call.start()
            await call.caller_says("when is my appointment")
        assert [turn.speaker for turn in call.spoken] == ["caller", "agent"]
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Mapping,
    Sequence,
)
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from pipecat.audio.vad.vad_analyzer import VAD_STOP_SECS
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    Frame,
    FunctionCallFromLLM,
    InterimTranscriptionFrame,
    LLMContextFrame,
    LLMFullResponseEndFrame,
    LLMFullResponseStartFrame,
    LLMMessagesAppendFrame,
    OutputAudioRawFrame,
    StartFrame,
    StopFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
    TTSSpeakFrame,
    TTSTextFrame,
    VADUserStartedSpeakingFrame,
    VADUserStoppedSpeakingFrame,
)
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext, LLMSpecificMessage
from pipecat.processors.aggregators.llm_response_universal import (
    AssistantTurnStoppedMessage,
    LLMContextAggregatorPair,
    LLMUserAggregatorParams,
    UserTurnMessageAddedMessage,
)
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.processors.frameworks.rtvi import frames as rtvi_frames
from pipecat.services.llm_service import LLMService
from pipecat.services.settings import LLMSettings, TTSSettings
from pipecat.services.tts_service import TTSService
from pipecat.transports.base_output import BaseOutputTransport
from pipecat.transports.base_transport import TransportParams
from pipecat.turns.user_start import VADUserTurnStartStrategy
from pipecat.turns.user_stop import SpeechTimeoutUserTurnStopStrategy
from pipecat.turns.user_turn_strategies import UserTurnStrategies
from pipecat.utils.text.base_text_aggregator import Aggregation
from pipecat.utils.text.simple_text_aggregator import SimpleTextAggregator
from pipecat.utils.time import time_now_iso8601
from pipecat.workers.runner import WorkerRunner

from moss_voice.calls import WORDS_PER_S, CallScript
from moss_voice.errors import InvalidArgumentError
from moss_voice.testing import Answer, Follower, ToolCall, Wait, recognised, replay_script

__all__ = [
    "Answer",
    "Messages",
    "ScriptedLLMService",
    "SimulatedCall",
    "SpokenTurn",
    "ToolCall",
    "Wait",
    "replay",
]

Messages = list[Any]
"""The messages of a context: dicts with `role` and `content`, or the host's `LLMSpecificMessage`."""

_SAMPLE_RATE = 8000
# What the loudspeaker takes at a time: a tenth of a second of the call.
_CHUNK_10MS = 10
# Pipecat's own default pause before it ends a turn.
_TURN_PAUSE_S = 0.6
# How long the end of a bot's turn may lag behind its sound, in real seconds.
_GRACE_S = 0.05
# How long a pipeline that is cancelled may take before its tasks are, in real seconds.
_PATIENCE_S = 1.0


@dataclass(frozen=True, slots=True)
class SpokenTurn:
    """What one side really said, as the host's aggregators report it.

    Attributes:
        speaker: Who spoke.
        text: What was said; of an interrupted bot only what was heard of it.
        interrupted: True where the bot was cut off.
        timestamp: When the turn began, as the host writes it (ISO 8601).
    """

    speaker: Literal["caller", "agent"]
    text: str
    interrupted: bool
    timestamp: str


class ScriptedLLMService(LLMService):
    """A language model service whose answers are given by a plain function of the messages.

    A tool call is followed by another request: let the answer depend on what the messages hold, never
    on the number of requests.

    Args:
        reply: Gets a copy of the messages, returns the answer. Where it raises, the model fails as a
            real one does: an `ErrorFrame` goes upstream and the turn stays unanswered.
        ttft_s: Real seconds before the first token.
        token_s: Real seconds between two tokens; a token is a word.

    Attributes:
        prompts: A deep copy of each request's messages, in the order asked, as they were then.
        tools: The names of the tools that each request offered.
        contexts: The context object of each request itself, for tests of identity.
        cancelled: How many requests were interrupted before the answer was out.
    """

    def __init__(
        self,
        reply: Callable[[Messages], Answer],
        *,
        ttft_s: float = 0.0,
        token_s: float = 0.0,
    ) -> None:
        super().__init__(settings=_settings(LLMSettings, model="scripted"))
        self.reply = reply
        self.ttft_s = ttft_s
        self.token_s = token_s
        self.prompts: list[Messages] = []
        self.tools: list[tuple[str, ...]] = []
        self.contexts: list[LLMContext] = []
        self.cancelled = 0

    @classmethod
    def following(
        cls, script: CallScript, *, ttft_s: float = 0.0, token_s: float = 0.0
    ) -> ScriptedLLMService:
        """Return a model that answers each caller turn of a script with the agent turn after it.

        A caller turn that another one follows gets no answer. Under `replay` the answer is that of
        the turn being played, whatever the host or a plugin made of the messages; else the turn is
        found by the last user message: the n-th time the same words are said, the n-th such turn.
        """
        return cls(_Prompter(script), ttft_s=ttft_s, token_s=token_s)

    def can_generate_metrics(self) -> bool:
        """Say that the time to the first token is measured."""
        return True

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        """Answer a context; pass every other frame on."""
        await super().process_frame(frame, direction)
        if not isinstance(frame, LLMContextFrame):
            await self.push_frame(frame, direction)
            return
        try:
            await self.push_frame(LLMFullResponseStartFrame())
            await self.start_processing_metrics()
            await self._answer(frame.context)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        except Exception as error:  # noqa: BLE001 - whatever a reply raises fails the request
            await self.push_error(f"Error during completion: {error}", exception=error)
        finally:
            await self.stop_processing_metrics()
            await self.push_frame(LLMFullResponseEndFrame())

    async def _answer(self, context: LLMContext) -> None:
        prompt = copy.deepcopy(context.get_messages())
        self.prompts.append(prompt)
        self.tools.append(_tool_names(context))
        self.contexts.append(context)
        await self.start_ttfb_metrics()
        answer = self.reply(copy.deepcopy(prompt))
        await asyncio.sleep(self.ttft_s)
        await self.stop_ttfb_metrics()
        calls: Sequence[ToolCall] = ()
        text = ""
        if isinstance(answer, str):
            text = answer
        elif answer is not None:
            calls = [answer] if isinstance(answer, ToolCall) else list(answer)
            text = " ".join(call.text for call in calls if call.text)
        for token in re.findall(r"\s*\S+\s*", text):
            await self._push_llm_text(token)
            await asyncio.sleep(self.token_s)
        if calls:
            await self.run_function_calls(
                [
                    FunctionCallFromLLM(
                        function_name=call.name,
                        tool_call_id=f"call_{uuid.uuid4().hex}",
                        arguments=dict(call.arguments),
                        context=context,
                    )
                    for call in calls
                ]
            )

    def __repr__(self) -> str:
        return f"<ScriptedLLMService asked {len(self.prompts)} times, {self.cancelled} cancelled>"


class SimulatedCall:
    """A caller on the line of a real pipeline.

    `[line, user aggregator, *processors, llm, voice, loudspeaker, assistant aggregator]`, in a real
    `PipelineWorker`. It is built at once and started by `start`, so that handlers can be attached in
    between. Build and use it inside a running event loop; any number of calls may run in one loop.

    Args:
        llm: The bot's language model, such as a `ScriptedLLMService`.
        processors: What stands between the user aggregator and the model.
        speed: How many times faster than life the call passes: speech of both sides, and the pause
            before the host ends a turn. The model's delays and all computing are not scaled.
        word_timestamps: Whether the voice tells when it says which word, as most do. Without them
            the host takes a sentence for said only once all of it was heard.
        tools: Tools of the context, as `LLMContext` takes them.
        context_messages: What the context holds at the start.
        pair_options: More arguments of `LLMContextAggregatorPair`; they win over those set here.
            With `user_params` of your own you also choose the turn strategies: the host's default
            needs sound.
        worker_options: More arguments of `PipelineWorker`; they win over those set here, which are
            no RTVI and no idle timeout.
        with_assistant_aggregator: False leaves it out: then nobody reports what the bot said.
        record_frames: Whether to keep `frames`.
        timeout_s: Real seconds that any one step may take before it raises `TimeoutError`.

    Attributes:
        context: The conversation's `LLMContext`.
        pair: Its aggregators.
        pipeline: The pipeline, as above; the worker wraps it into one of its own.
        worker: The worker; not yet started.
        llm: The model given.
        spoken: What both sides really said so far, in the order the host reported it: the caller by
            `on_user_turn_message_added`, the bot by `on_assistant_turn_stopped`. Typed text is in
            the context, but the host reports no turn for it; bot turns without a word are left out.
        delays_s: For each caller turn that was answered, real seconds from the end of its speech to
            the first audio of the reply. Typed turns and `bot_says` are not in it.
        frames: Where `record_frames`: the frames that reached the loudspeaker going down, and those
            that reached the line going up, as they came.

    Raises:
        InvalidArgumentError: If `speed` or `timeout_s` is not above 0.
    """

    def __init__(
        self,
        llm: LLMService,
        *,
        processors: Sequence[FrameProcessor] = (),
        speed: float = 20.0,
        word_timestamps: bool = True,
        tools: Any = None,
        context_messages: Sequence[Any] = (),
        pair_options: Mapping[str, Any] | None = None,
        worker_options: Mapping[str, Any] | None = None,
        with_assistant_aggregator: bool = True,
        record_frames: bool = False,
        timeout_s: float = 30.0,
    ) -> None:
        for name, value in (("speed", speed), ("timeout_s", timeout_s)):
            if not value > 0:
                raise InvalidArgumentError(f"{name} must be above 0, not {value!r}")
        self.llm = llm
        self.spoken: list[SpokenTurn] = []
        self.delays_s: list[float] = []
        self.frames: list[tuple[FrameDirection, Frame]] = []
        self._words_per_s = WORDS_PER_S * speed
        self._word_timestamps = word_timestamps
        self._has_assistant = with_assistant_aggregator
        self._timeout_s = timeout_s
        self._changed = asyncio.Event()
        self._runner: WorkerRunner | None = None
        self._run: asyncio.Task[None] | None = None
        self._is_started = False
        self._is_cleaned_up = True
        self._is_caller_speaking = False
        self._is_user_turn = False
        self._is_bot_turn = False
        self._committed = 0
        self._committed_before = 0
        # Counts whatever happens, so that a rest can be told from a pause.
        self._happened = 0
        self._taken: set[int] = set()
        self._ended_at: float | None = None
        # How many speeches of the bot belong to what went before the last turn.
        self._speeches_before = 0
        self.context = LLMContext(
            messages=list(context_messages), **({} if tools is None else {"tools": tools})
        )
        self.pair = LLMContextAggregatorPair(
            self.context,
            **{"user_params": _user_params(speed), **(pair_options or {})},
        )
        recorded = self.frames if record_frames else None
        self._line = _Line(recorded, self._note)
        self._voice = _Voice(self._words_per_s, has_word_timestamps=word_timestamps)
        self._speaker = _Speaker(speed, recorded, self._on_speech)
        self.pipeline = Pipeline(
            [
                self._line,
                self.pair.user(),
                *processors,
                llm,
                self._voice,
                self._speaker,
                *([self.pair.assistant()] if with_assistant_aggregator else []),
            ]
        )
        self.worker = PipelineWorker(
            self.pipeline,
            **{"enable_rtvi": False, "idle_timeout_secs": None, **(worker_options or {})},
        )
        self._listen()

    async def start(self) -> None:
        """Start the worker, and wait until every processor has started.

        Raises:
            RuntimeError: If the call was started before, or the pipeline does not start.
            TimeoutError: If it takes too long.
        """
        if self._run is not None:
            raise RuntimeError("the call was started before; build another one")
        runner = self._runner = WorkerRunner(handle_sigint=False, check_dangling_tasks=False)
        await runner.add_workers(self.worker)
        self._run = asyncio.create_task(runner.run(), name=f"simulated call {self.worker.name}")
        self._run.add_done_callback(lambda _: self._changed.set())
        await self._until(lambda: self._is_started, "for the pipeline to start")

    async def caller_says(
        self,
        text: str,
        *,
        interims: Sequence[str] | None = None,
        finals: Sequence[str] | None = None,
        user_id: str = "caller-1",
        wait: Wait = "reply",
    ) -> None:
        """Speak a turn into the line, at the call's pace.

        Args:
            text: What is said; it also gives the length of the speech.
            interims: What the recogniser reports on the way, spread over the speech, before the
                first final; by default each final grows by a few words at a time.
            finals: The text as the recogniser delivers it, in one or more pieces; by default in one.
                The host makes one user message of them.
            user_id: Whom the transcription frames name as the speaker.
            wait: `reply` returns when the turn was committed and the bot has finished with it:
                answers, function calls; `committed` when the host has added the user's message;
                `none` when the speech has ended. Where nothing may come of the turn (a muted
                caller), use `none` and then `settle`.

        Raises:
            InvalidArgumentError: If nothing is said.
            TimeoutError: If a step takes too long; it names the step.
            RuntimeError: If the pipeline ends meanwhile.
        """
        await self._speak(text, interims=interims, finals=finals, user_id=user_id)
        await self._after(wait)

    async def barge_in(
        self,
        text: str,
        *,
        after_s: float | None = None,
        after_words: int = 3,
        interims: Sequence[str] | None = None,
        finals: Sequence[str] | None = None,
        user_id: str = "caller-1",
        wait: Wait = "reply",
    ) -> None:
        """Speak over the bot, once it has said a little; the host's own logic interrupts it.

        Args:
            text: What the caller says.
            after_s: How long the bot has spoken by then, as in `hears`.
            after_words: How many words the bot has spoken by then, as in `hears`.
            interims: As in `caller_says`.
            finals: As in `caller_says`.
            user_id: As in `caller_says`.
            wait: As in `caller_says`.

        Raises:
            RuntimeError: If the bot had finished before; let it say more.
            TimeoutError: If the bot does not speak at all, or a later step takes too long.
        """
        if not await self.hears(after_s=after_s, after_words=after_words):
            raise RuntimeError(
                "the bot had finished before the caller could barge in: "
                "let it say more, or barge in sooner"
            )
        await self.caller_says(text, interims=interims, finals=finals, user_id=user_id, wait=wait)

    async def hears(self, *, after_s: float | None = None, after_words: int = 3) -> bool:
        """Wait until the bot has spoken a little: in answer to the last turn, or in a `bot_says`.

        Args:
            after_s: For how long, in seconds of the call (at its pace, not the real ones); in place
                of `after_words`.
            after_words: How many words: with word timestamps exactly what the host takes for said by
                then, else by the average pace. A few more may be out when the caller is heard.

        Returns:
            False where the bot had finished before.

        Raises:
            TimeoutError: If the bot does not speak at all.
        """
        speaker = self._speaker
        before = self._speeches_before

        def has_ended() -> bool:
            return speaker.ended > before

        def is_enough() -> bool:
            if not speaker.is_speaking or speaker.ended < before:
                return False
            if after_s is not None:
                return speaker.played_s >= after_s
            if self._word_timestamps:
                return speaker.words >= after_words
            return speaker.played_s * WORDS_PER_S >= after_words

        await self._until(
            lambda: has_ended() or (speaker.is_speaking and speaker.ended == before),
            "for the bot to speak",
        )
        await self._until(lambda: has_ended() or is_enough(), "for the bot to go on")
        return not has_ended()

    async def bot_says(self, text: str, *, wait: bool = True) -> None:
        """Let the bot say a text of its own accord (a `TTSSpeakFrame`).

        Args:
            text: What is said.
            wait: Whether to return only when it was heard.

        Raises:
            TimeoutError: If it takes too long.
            RuntimeError: If the pipeline ends meanwhile.
        """
        self._ended_at = None
        self._turn_page()
        await self._queue(TTSSpeakFrame(text))
        if wait:
            await self.settle()

    async def types(self, text: str) -> None:
        """Type a turn, as a client's `send-text` brings it, and wait for the reply.

        It does what the host's RTVI processor does with one: interrupt the bot, let the pipeline run
        dry, then push an `LLMMessagesAppendFrame` that runs the model. The reply is spoken.

        Raises:
            TimeoutError: If the reply takes too long.
            RuntimeError: If the pipeline ends meanwhile.
        """
        self._ended_at = None
        self._check_open()
        await self._line.broadcast_interruption()  # type: ignore[no-untyped-call]
        await self._in_time(self._flush(self._timeout_s), "for the pipeline to run dry")
        self._turn_page()
        message: Any = {"role": "user", "content": text}
        await self._queue(LLMMessagesAppendFrame(messages=[message], run_llm=True))
        # Newer hosts tell of the text in a frame of its own.
        told = getattr(rtvi_frames, "RTVISendTextFrame", None)
        if told is not None:
            await self._queue(told(msg_id=uuid.uuid4().hex, text=text))
        await self.settle()

    async def settle(self, *, timeout_s: float | None = None) -> None:
        """Wait until nothing is under way: no speech, no turn being decided, no reply or function call.

        What a processor does in a task of its own is not seen.

        Args:
            timeout_s: Real seconds to wait at most; by default the call's `timeout_s`.

        Raises:
            TimeoutError: If the pipeline does not come to rest.
            RuntimeError: If the pipeline has ended, or was not started.
        """
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        await self._in_time(self._rest(limit_s), "for the pipeline to come to rest", limit_s)
        self._turn_page()

    async def hang_up(self) -> None:
        """End the call with an `EndFrame`: what the bot has begun to say is said to the end.

        For a caller who is gone at once, as a transport's disconnect handler has it, use `cancel`.
        Does nothing on a call that has ended, or was never started.

        Raises:
            TimeoutError: If the pipeline does not end; it is cancelled then.
        """
        await self._end(self.worker.stop_when_done, "for the EndFrame to end the pipeline")

    async def stop(self) -> None:
        """End the call with a `StopFrame`: the worker ends, the processors are not cleaned up.

        They are when the `async with` block ends. Does nothing on a call that has ended, or was never
        started.

        Raises:
            TimeoutError: If the worker does not end; it is cancelled then.
        """

        async def queue() -> None:
            await self.worker.queue_frame(StopFrame())

        await self._end(queue, "for the StopFrame to end the worker")

    async def cancel(self) -> None:
        """End the call with a `CancelFrame`, at once, in the middle of a word.

        Does nothing on a call that has ended, or was never started.

        Raises:
            TimeoutError: If the pipeline does not end.
        """
        await self._end(self.worker.cancel, "for the CancelFrame to end the pipeline")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            await (self.hang_up() if kind is None else self.cancel())
        finally:
            await self._close()

    def __repr__(self) -> str:
        state = "unstarted"
        if self._run is not None:
            state = "ended" if self._run.done() else "running"
        under_way = [
            what
            for what, holds in (
                ("caller speaking", self._is_caller_speaking),
                ("user turn open", self._is_user_turn),
                ("bot turn open", self._is_bot_turn),
                ("bot speaking", self._speaker.is_speaking),
                ("functions running", self._has_functions_running()),
            )
            if holds
        ]
        return f"<SimulatedCall {', '.join([state, *under_way])}, {len(self.spoken)} turns spoken>"

    def _listen(self) -> None:
        user, assistant = self.pair.user(), self.pair.assistant()
        for source, event, handler in (
            (self.worker, "on_pipeline_started", self._on_started),
            (self.worker, "on_pipeline_finished", self._on_finished),
            (user, "on_user_turn_started", self._on_user_turn_started),
            (user, "on_user_turn_stopped", self._on_user_turn_stopped),
            (user, "on_user_turn_message_added", self._on_user_message),
            (user, "on_after_process_frame", self._on_taken),
            (self.llm, "on_before_process_frame", self._on_asked),
            (assistant, "on_assistant_turn_started", self._on_bot_turn_started),
            (assistant, "on_assistant_turn_stopped", self._on_bot_turn_stopped),
            (assistant, "on_after_process_frame", self._on_assistant_frame),
        ):
            source.add_event_handler(event, handler)

    def _on_started(self, *_: object) -> None:
        self._is_started = True
        self._note()

    def _on_finished(self, _: object, frame: Frame) -> None:
        # A StopFrame leaves the processors as they are.
        self._is_cleaned_up = not isinstance(frame, StopFrame)

    def _on_user_turn_started(self, *_: object) -> None:
        self._is_user_turn = True
        self._note()

    def _on_user_turn_stopped(self, *_: object) -> None:
        self._is_user_turn = False
        self._note()

    def _on_user_message(self, _: object, message: UserTurnMessageAddedMessage) -> None:
        self.spoken.append(
            SpokenTurn(
                speaker="caller",
                text=message.content,
                interrupted=False,
                timestamp=message.timestamp,
            )
        )
        self._committed += 1
        self._note()

    def _on_bot_turn_started(self, *_: object) -> None:
        self._is_bot_turn = True
        self._note()

    def _on_bot_turn_stopped(self, _: object, message: AssistantTurnStoppedMessage) -> None:
        self._is_bot_turn = False
        if message.content:
            self.spoken.append(
                SpokenTurn(
                    speaker="agent",
                    text=message.content,
                    interrupted=message.interrupted,
                    timestamp=message.timestamp,
                )
            )
        self._note()

    def _on_taken(self, _: object, frame: Frame) -> None:
        if frame.id in self._taken:
            self._taken.discard(frame.id)
            self._note()

    def _on_asked(self, _: object, frame: Frame) -> None:
        if isinstance(frame, LLMContextFrame):
            self._note()

    def _on_assistant_frame(self, *_: object) -> None:
        # Function calls come to their end in one of them.
        self._changed.set()

    def _note(self) -> None:
        self._happened += 1
        self._changed.set()

    def _on_speech(self, *, is_first: bool) -> None:
        if is_first and self._ended_at is not None:
            self.delays_s.append(time.perf_counter() - self._ended_at)
            self._ended_at = None
        self._note()

    async def _speak(
        self,
        text: str,
        *,
        interims: Sequence[str] | None,
        finals: Sequence[str] | None,
        user_id: str,
    ) -> None:
        results = list(recognised(text, interims=interims, finals=finals))
        if not any(is_final for _, is_final in results):
            raise InvalidArgumentError("a caller's turn needs at least one word")
        speech_s = len(text.split()) / self._words_per_s
        self._ended_at = None
        self._is_caller_speaking = True
        # Each frame waits for the one before: the start of a turn clears the queues of the pipeline,
        # and the end of the speech would overtake the words.
        await self._give(VADUserStartedSpeakingFrame())
        began_at = time.perf_counter()
        for number, (words, is_final) in enumerate(results, start=1):
            due_s = began_at + speech_s * number / len(results) - time.perf_counter()
            await asyncio.sleep(max(0.0, due_s))
            await self._give(
                TranscriptionFrame(words, user_id, time_now_iso8601(), finalized=True)
                if is_final
                else InterimTranscriptionFrame(words, user_id, time_now_iso8601())
            )
        self._committed_before = self._committed
        self._ended_at = time.perf_counter()
        self._is_caller_speaking = False
        self._turn_page()
        await self._give(VADUserStoppedSpeakingFrame(stop_secs=VAD_STOP_SECS))

    def _turn_page(self) -> None:
        # A speech that is being cut off just now counts as over.
        self._speeches_before = self._speaker.ended + self._speaker.is_speaking

    async def _give(self, frame: Frame) -> None:
        """Queue a frame, and wait until the user aggregator has dealt with it."""
        self._taken.add(frame.id)
        await self._queue(frame)
        await self._until(
            lambda: frame.id not in self._taken,
            f"for the user aggregator to take a {type(frame).__name__}",
        )

    async def _queue(self, frame: Frame) -> None:
        self._check_open()
        await self.worker.queue_frame(frame)

    async def _after(self, wait: Wait) -> None:
        if wait == "none":
            return
        await self._until(
            lambda: self._committed > self._committed_before,
            "for the host to commit the caller's turn (where nothing may come of it, "
            "pass wait='none' and await settle())",
        )
        if wait == "reply":
            await self.settle()

    async def _rest(self, limit_s: float) -> None:
        while True:
            await self._until(self._is_quiet, "for the pipeline to come to rest", limit_s)
            happened = self._happened
            await self._flush(limit_s)
            if self._is_bot_turn and self._happened == happened:
                # Before 1.14 the end of a reply without words may overtake its start, and that turn
                # stays open until the next.
                await asyncio.sleep(_GRACE_S)
            if self._is_quiet() and self._happened == happened:
                return

    async def _flush(self, limit_s: float) -> None:
        """Wait until every frame under way has arrived, and what came of it going up."""
        run = self._check_open()
        flush = asyncio.create_task(self.worker.flush_pipeline(timeout=limit_s))
        try:
            await asyncio.wait({flush, run}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            flush.cancel()
            await asyncio.wait({flush})
        self._check_open()

    def _is_quiet(self) -> bool:
        return not (
            self._is_caller_speaking
            or self._is_user_turn
            or self._speaker.is_speaking
            or self._has_functions_running()
        )

    def _has_functions_running(self) -> bool:
        return self._has_assistant and self.pair.assistant().has_function_calls_in_progress

    async def _until(
        self, holds: Callable[[], bool], what: str, timeout_s: float | None = None
    ) -> None:
        async def wait() -> None:
            while not holds():
                self._check_open()
                self._changed.clear()
                await self._changed.wait()

        if not holds():
            await self._in_time(wait(), what, timeout_s)

    async def _in_time(
        self, work: Awaitable[Any], what: str, timeout_s: float | None = None
    ) -> None:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await work
        except TimeoutError:
            raise TimeoutError(f"waited {limit_s:g} s {what}: {self!r}") from None

    def _check_open(self) -> asyncio.Task[None]:
        if self._run is None:
            raise RuntimeError("the call was not started")
        if self._run.done():
            raise RuntimeError("the call is over: the pipeline has ended")
        return self._run

    async def _end(self, ask: Callable[[], Awaitable[None]], what: str) -> None:
        run = self._run
        if run is None or run.done():
            return
        await ask()
        done, _ = await asyncio.wait({run}, timeout=self._timeout_s)
        if not done:
            await self._close()
            raise TimeoutError(f"waited {self._timeout_s:g} s {what}: {self!r}")
        run.result()

    async def _close(self) -> None:
        """Leave nothing behind, whatever has happened before."""
        run, runner = self._run, self._runner
        if run is None or runner is None:
            return
        if not run.done():
            run.cancel()
            await asyncio.wait({run}, timeout=_PATIENCE_S)
        while not run.done():
            # A processor keeps back the frame that ends the pipeline, and the host waits for it.
            for task in {*runner.task_manager.current_tasks(), run}:
                task.cancel()
            await asyncio.wait({run}, timeout=_PATIENCE_S)
        if not self._is_cleaned_up:
            self._is_cleaned_up = True
            await self.worker.pipeline.cleanup()  # type: ignore[no-untyped-call]


async def replay(call: SimulatedCall, script: CallScript) -> None:
    """Play a whole script on a started call.

    Caller turns are spoken with a few of their interims; agent turns are the model's replies to
    them, or spoken of the bot's own accord where no caller turn precedes. Where the script says that
    the agent was interrupted and a caller turn follows, the caller barges in half-way through the
    words. Actions and turns without words are nobody's speech and are left out.

    Args:
        call: Its model must be `ScriptedLLMService.following(script)`.
        script: What is said; its times are not followed, each turn waits for the one before.

    Raises:
        InvalidArgumentError: If the call's model does not follow this script.
        TimeoutError: If a step takes too long.
    """
    prompter = call.llm.reply if isinstance(call.llm, ScriptedLLMService) else None
    if not isinstance(prompter, _Prompter) or prompter.script is not script:
        raise InvalidArgumentError(
            "the call's model does not follow this script: "
            "give the call ScriptedLLMService.following(script)"
        )
    await replay_script(call, prompter, lambda text, wait: call.bot_says(text, wait=wait))


class _Prompter(Follower):
    """Answers the messages of a context."""

    def __call__(self, messages: Messages) -> Answer:
        return self.answer(
            [
                (message["role"], _text_of(message))
                for message in messages
                if not isinstance(message, LLMSpecificMessage)
                and message.get("role") in ("user", "assistant")
            ]
        )


class _Line(FrameProcessor):
    """Where the frames come in: what is said is told, nothing sounds."""

    def __init__(
        self, recorded: list[tuple[FrameDirection, Frame]] | None, on_frame: Callable[[], None]
    ) -> None:
        super().__init__(name="SimulatedLine")
        self._recorded = recorded
        self._on_frame = on_frame

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if direction is FrameDirection.UPSTREAM and self._recorded is not None:
            self._recorded.append((direction, frame))
        await self.push_frame(frame, direction)


class _Sentences(SimpleTextAggregator):
    """Splits at marks alone: the host's own splitter may need data from the network (Pipecat 1.8)."""

    async def aggregate(self, text: str) -> AsyncIterator[Aggregation]:
        self._text += text
        *whole, self._text = re.split(r"(?<=[.!?])\s+(?=\S)", self._text)
        for sentence in whole:
            yield Aggregation(text=sentence.strip(" "), type="sentence")


class _Voice(TTSService):
    """Speaks silence, as long as the words would take."""

    def __init__(self, words_per_s: float, *, has_word_timestamps: bool) -> None:
        super().__init__(
            push_text_frames=not has_word_timestamps,
            push_start_frame=True,
            push_stop_frames=True,
            sample_rate=_SAMPLE_RATE,
            settings=_settings(TTSSettings, model="simulated"),
            name="SimulatedVoice",
        )
        self._text_aggregator = _Sentences()  # type: ignore[no-untyped-call]
        self._words_per_s = words_per_s
        self._has_word_timestamps = has_word_timestamps
        # The words spoken so far in each speech: the host counts its time from the first of them.
        self._spoken: dict[str, int] = {}

    def can_generate_metrics(self) -> bool:
        return True

    async def run_tts(self, text: str, context_id: str) -> AsyncGenerator[Frame | None, None]:
        words = text.split()
        before = self._spoken.get(context_id, 0)
        self._spoken[context_id] = before + len(words)
        # Sounds as long as in life; the loudspeaker is what plays it faster.
        samples = round(len(words) * _SAMPLE_RATE / WORDS_PER_S)
        yield TTSAudioRawFrame(bytes(2 * samples), _SAMPLE_RATE, 1, context_id=context_id)
        if self._has_word_timestamps:
            await self.add_word_timestamps(
                [
                    (word, number / self._words_per_s)
                    for number, word in enumerate(words, start=before)
                ],
                context_id,
            )

    async def on_audio_context_interrupted(self, context_id: str) -> None:
        self._spoken.pop(context_id, None)

    async def on_audio_context_completed(self, context_id: str) -> None:
        self._spoken.pop(context_id, None)


class _Speaker(BaseOutputTransport):
    """A loudspeaker that plays in real time, and knows how far it got."""

    def __init__(
        self,
        speed: float,
        recorded: list[tuple[FrameDirection, Frame]] | None,
        on_speech: Callable[..., None],
    ) -> None:
        super().__init__(
            TransportParams(
                audio_out_enabled=True,
                audio_out_sample_rate=_SAMPLE_RATE,
                audio_out_10ms_chunks=_CHUNK_10MS,
                audio_out_end_silence_secs=0,
            ),
            name="SimulatedSpeaker",
        )
        self._speed = speed
        self._recorded = recorded
        self._on_speech = on_speech
        self._free_at = 0.0
        self.is_speaking = False
        # Of the current speech: seconds of the call, and words with a time of their own.
        self.played_s = 0.0
        self.words = 0
        # How many speeches have been played out, or cut off.
        self.ended = 0

    async def start(self, frame: StartFrame) -> None:
        await super().start(frame)
        await self.set_transport_ready(frame)

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        if direction is FrameDirection.DOWNSTREAM and self._recorded is not None:
            self._recorded.append((direction, frame))
        await super().process_frame(frame, direction)

    async def push_frame(
        self, frame: Frame, direction: FrameDirection = FrameDirection.DOWNSTREAM
    ) -> None:
        # The host tells of a speech in both directions; once is enough here.
        if direction is FrameDirection.DOWNSTREAM:
            if isinstance(frame, BotStartedSpeakingFrame):
                self.is_speaking = True
                self._on_speech(is_first=True)
            elif isinstance(frame, BotStoppedSpeakingFrame):
                self.is_speaking = False
                self.ended += 1
                # Not when the next begins: its first word may come before its first sound.
                self.played_s = 0.0
                self.words = 0
                self._on_speech(is_first=False)
        await super().push_frame(frame, direction)
        if direction is FrameDirection.DOWNSTREAM and isinstance(frame, TTSTextFrame):
            self.words += 1
            self._on_speech(is_first=False)

    async def write_audio_frame(self, frame: OutputAudioRawFrame) -> bool:
        chunk_s = len(frame.audio) / (2 * frame.num_channels * frame.sample_rate)
        self._free_at = max(self._free_at, time.perf_counter()) + chunk_s / self._speed
        await asyncio.sleep(self._free_at - time.perf_counter())
        if self.is_speaking:
            self.played_s += chunk_s
            self._on_speech(is_first=False)
        return True


def _user_params(speed: float) -> LLMUserAggregatorParams:
    return LLMUserAggregatorParams(
        user_turn_strategies=UserTurnStrategies(
            start=[VADUserTurnStartStrategy()],
            stop=[SpeechTimeoutUserTurnStopStrategy(user_speech_timeout=_TURN_PAUSE_S / speed)],
        )
    )


def _settings(kind: type[Any], *, model: str) -> Any:
    """Return settings in which every field has a value, as the host demands; which, differs by version."""
    settings = kind(model=model)
    for name in vars(settings):
        if name not in ("model", "extra"):
            setattr(settings, name, None)
    return settings


def _tool_names(context: LLMContext) -> tuple[str, ...]:
    tools = getattr(context.tools, "standard_tools", [])
    return tuple(tool.name for tool in tools)


def _text_of(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    return " ".join(part.get("text", "") for part in parts if isinstance(part, dict))
