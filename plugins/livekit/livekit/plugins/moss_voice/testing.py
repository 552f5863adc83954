"""Spoken calls against a real `AgentSession`, without a server, a key or a sound device.

The law: everything between the microphone and the loudspeaker is the host's own (turn detection,
preemptive generation, interruptions, tools, handoffs, the transcript of what was really spoken); only
its edges are played here. The recogniser and the voice detector say what they are told, the voice
is silence as long as the words take, the loudspeaker plays in real time. Time is compressed: a call
at `speed=20` passes twenty times as fast as life, and so do the host's own delays.

    async def test_agent() -> None:
        call = SimulatedCall(ScriptedLLM(lambda chat_ctx: "It is at four."))
        async with call:
            await call.start(Agent(instructions=""))
            await call.caller_says("when is my appointment")
        assert [turn.speaker for turn in call.spoken] == ["caller", "agent"]
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

from livekit import rtc
from livekit.agents import (
    DEFAULT_API_CONNECT_OPTIONS,
    NOT_GIVEN,
    Agent,
    AgentSession,
    AgentTask,
    APIConnectOptions,
    ConversationItemAddedEvent,
    LanguageCode,
    NotGivenOr,
    llm,
    stt,
    tts,
    utils,
    vad,
)
from livekit.agents.voice import TranscriptSynchronizer, io

from moss_voice.calls import WORDS_PER_S, CallScript
from moss_voice.errors import InvalidArgumentError
from moss_voice.testing import Answer, Follower, ToolCall, Wait, recognised, replay_script

__all__ = ["Answer", "ScriptedLLM", "SimulatedCall", "SpokenTurn", "ToolCall", "Wait", "replay"]

_SAMPLE_RATE = 8000
# How often a voice detector reports while somebody speaks, in real seconds.
_VAD_STEP_S = 0.01
# How often to look where the host offers no event to wait for.
_POLL_S = 0.002


@dataclass(frozen=True, slots=True)
class SpokenTurn:
    """What one side really said, as the host reports it in `conversation_item_added`.

    Attributes:
        speaker: Who spoke, or typed.
        text: What was said; of an interrupted agent only what was heard of it.
        interrupted: True where the agent was cut off.
        item_id: The id of the host's `ChatMessage`.
    """

    speaker: Literal["caller", "agent"]
    text: str
    interrupted: bool
    item_id: str


class ScriptedLLM(llm.LLM[Any]):
    """A language model whose answers are given by a plain function of the prompt.

    With preemptive generation the host asks more than once for one turn, and a tool call is followed
    by another request: let the answer depend on what the prompt holds, never on the number of calls.

    Args:
        reply: Gets a copy of the prompt, returns the answer. Where it raises, the model fails as a
            real one does: the host tries again after an `APIError` of its own; anything else is final.
        ttft_s: Real seconds before the first token.
        token_s: Real seconds between two tokens; a token is a word.

    Attributes:
        prompts: A copy of each request's chat context, in the order asked, as it was then.
        cancelled: How many streams were closed before the answer was out. A discarded stream that
            had already said everything does not count.
    """

    def __init__(
        self,
        reply: Callable[[llm.ChatContext], Answer],
        *,
        ttft_s: float = 0.0,
        token_s: float = 0.0,
    ) -> None:
        super().__init__()
        self.reply = reply
        self.ttft_s = ttft_s
        self.token_s = token_s
        self.prompts: list[llm.ChatContext] = []
        self.cancelled = 0

    @classmethod
    def following(
        cls, script: CallScript, *, ttft_s: float = 0.0, token_s: float = 0.0
    ) -> ScriptedLLM:
        """Return a model that answers each caller turn of a script with the agent turn after it.

        A caller turn that another one follows gets no answer. Under `replay` the answer is that of
        the turn being played, whatever the host or a plugin made of the prompt; else the turn is
        found by the last user message: the n-th time the same words are said, the n-th such turn.
        """
        return cls(_Prompter(script), ttft_s=ttft_s, token_s=token_s)

    @property
    def model(self) -> str:
        """The model's name, for the host's metrics."""
        return "scripted"

    def chat(
        self,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool] | None = None,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
        parallel_tool_calls: NotGivenOr[bool] = NOT_GIVEN,
        tool_choice: NotGivenOr[llm.ToolChoice] = NOT_GIVEN,
        extra_kwargs: NotGivenOr[dict[str, Any]] = NOT_GIVEN,
    ) -> llm.LLMStream:
        """Record the prompt and start to answer it."""
        del parallel_tool_calls, tool_choice, extra_kwargs
        prompt = _as_it_is(chat_ctx)
        self.prompts.append(prompt)
        return _ScriptedStream(
            self, prompt, chat_ctx=chat_ctx, tools=tools or [], conn_options=conn_options
        )

    def __repr__(self) -> str:
        return f"<ScriptedLLM asked {len(self.prompts)} times, {self.cancelled} cancelled>"


class SimulatedCall:
    """A caller on the line of a real `AgentSession`.

    The session is built at once and started by `start`, so that a plugin can be attached to it in
    between. Build and use it inside a running event loop; any number of calls may run in one loop.

    Args:
        llm: The agent's language model, such as a `ScriptedLLM`.
        speed: How many times faster than life the call passes: speech of both sides, and the host's
            endpointing delay, shortest interruption and false-interruption timeout, which are
            LiveKit's defaults divided by it. The model's delays and all computing are not scaled.
        synchronized: Whether the audio goes through the host's `TranscriptSynchronizer`, as in a
            room. Without it the host takes an interrupted reply for fully heard.
        tools: Tools of the session.
        session_options: More arguments of `AgentSession`, other than the models and the tools; they
            win over those set here. `turn_handling` is merged two levels deep:
            `{"preemptive_generation": {"enabled": False}}` changes that alone. Preemptive
            generation is as the host has it by default: on.
        timeout_s: Real seconds that any one step may take before it raises `TimeoutError`.

    Attributes:
        session: The session; not yet started.
        llm: The model given.
        spoken: What both sides really said so far, in the order the host reported it.
        delays_s: For each caller turn that was answered, real seconds from the end of its speech to
            the first audio of the reply. Typed turns and `agent_says` are not in it.

    Raises:
        InvalidArgumentError: If `speed` or `timeout_s` is not above 0.
    """

    def __init__(
        self,
        llm: llm.LLM[Any],
        *,
        speed: float = 20.0,
        synchronized: bool = True,
        tools: Sequence[llm.Tool | llm.Toolset] = (),
        session_options: Mapping[str, Any] | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        for name, value in (("speed", speed), ("timeout_s", timeout_s)):
            if not value > 0:
                raise InvalidArgumentError(f"{name} must be above 0, not {value!r}")
        self.llm = llm
        self.spoken: list[SpokenTurn] = []
        self.delays_s: list[float] = []
        self._words_per_s = WORDS_PER_S * speed
        self._speed = speed
        self._timeout_s = timeout_s
        self._changed = asyncio.Event()
        self._is_closed = False
        self._heard = 0
        self._committed = 0
        self._committed_before = 0
        self._ended_at: float | None = None
        self._line = _Line()
        self._speaker = _Speaker(self._on_first_audio)
        self._recogniser = _Recogniser(self._changed.set)
        self._detector = _Detector(self._changed.set)
        self._synchronizer: TranscriptSynchronizer | None = None
        self._is_synchronized = synchronized
        self.session: AgentSession[Any] = AgentSession(
            **_session_options(session_options or {}, speed=speed),
            stt=self._recogniser,
            vad=self._detector,
            llm=llm,
            tts=_Voice(self._words_per_s),
            tools=list(tools),
        )
        self._listen()

    async def start(self, agent: Agent) -> None:
        """Connect the line and start the session; the agent's `on_enter` may still run after it."""
        self.session.input.audio = self._line
        if self._is_synchronized:
            self._synchronizer = TranscriptSynchronizer(
                next_in_chain_audio=self._speaker, next_in_chain_text=None, speed=self._speed
            )
            self.session.output.audio = self._synchronizer.audio_output
            self.session.output.transcription = self._synchronizer.text_output
        else:
            self.session.output.audio = self._speaker
        await self.session.start(agent)

    async def caller_says(
        self,
        text: str,
        *,
        interims: Sequence[str] | None = None,
        finals: Sequence[str] | None = None,
        speaker_id: str | None = None,
        confidence: float = 0.9,
        wait: Wait = "reply",
    ) -> None:
        """Speak a turn into the line, at the call's pace.

        Args:
            text: What is said; it also gives the length of the speech.
            interims: What the recogniser reports on the way, spread over the speech, before the
                first final; by default each final grows by a few words at a time.
            finals: The text as the recogniser delivers it, in one or more pieces; by default in one.
                The host makes one user item of them.
            speaker_id: Whom the recogniser takes the speaker for.
            confidence: The recogniser's confidence in its finals, from 0 to 1.
            wait: `reply` returns when the turn was committed and the agent has finished with it:
                answers, tools, handoffs; `committed` when the host has added the user's item;
                `none` when the speech has ended. Where the agent may drop the turn (`StopResponse`,
                speech that must not be interrupted), use `none` and then `settle`.

        Raises:
            InvalidArgumentError: If nothing is said.
            TimeoutError: If a step takes too long; it names the step.
            RuntimeError: If the session closes meanwhile.
        """
        await self._speak(
            text, interims=interims, finals=finals, speaker_id=speaker_id, confidence=confidence
        )
        await self._after(wait)

    async def barge_in(
        self,
        text: str,
        *,
        after_s: float | None = None,
        after_words: int = 3,
        interims: Sequence[str] | None = None,
        finals: Sequence[str] | None = None,
        speaker_id: str | None = None,
        confidence: float = 0.9,
        wait: Wait = "reply",
    ) -> None:
        """Speak over the agent, once it has said a little; the host's own logic interrupts it.

        Args:
            text: What the caller says.
            after_s: How long the agent has spoken by then, as in `hears`.
            after_words: How many words the agent has spoken by then, as in `hears`.
            interims: As in `caller_says`.
            finals: As in `caller_says`.
            speaker_id: As in `caller_says`.
            confidence: As in `caller_says`.
            wait: As in `caller_says`.

        Raises:
            RuntimeError: If the agent had finished before; let it say more.
            TimeoutError: If the agent does not speak at all, or a later step takes too long.
        """
        if not await self.hears(after_s=after_s, after_words=after_words):
            raise RuntimeError(
                "the agent had finished before the caller could barge in: "
                "let it say more, or barge in sooner"
            )
        await self.caller_says(
            text,
            interims=interims,
            finals=finals,
            speaker_id=speaker_id,
            confidence=confidence,
            wait=wait,
        )

    async def hears(self, *, after_s: float | None = None, after_words: int = 3) -> bool:
        """Wait until the agent has spoken a little.

        Args:
            after_s: For how long, in seconds of the call (at its pace, not the real ones); in place
                of `after_words`.
            after_words: How many words, by the agent's average pace. What the host takes for heard
                may differ by a word or two.

        Returns:
            False where the agent had finished before.

        Raises:
            TimeoutError: If the agent does not speak at all.
        """
        heard_s = after_words / self._words_per_s if after_s is None else after_s / self._speed
        # Counted, since a short speech may begin and end between two looks.
        ended = self._speaker.ended

        def is_speaking() -> bool:
            return self._speaker.is_playing and self.session.agent_state == "speaking"

        def has_ended() -> bool:
            return self._speaker.ended > ended

        await self._until(lambda: is_speaking() or has_ended(), "for the agent to speak")
        while not has_ended():
            missing_s = heard_s - self._speaker.position_s
            if missing_s <= 0:
                return True
            await asyncio.sleep(missing_s)
            await self._until(lambda: is_speaking() or has_ended(), "for the agent to go on")
        return False

    async def agent_says(self, text: str) -> None:
        """Let the agent say a text of its own accord, and wait until it is heard."""
        self._ended_at = None
        handle = self.session.say(text)
        await self._in_time(handle.wait_for_playout(), "for the agent to say its text")

    async def types(self, text: str) -> None:
        """Type a turn, as a room's text input brings it, and wait for the reply.

        It does what the host's own text input does by default: interrupt the agent, then
        `generate_reply(user_input=...)`. `session.run` is no stand-in: it is the host's harness for
        tests, records events and refuses to nest. The reply is spoken.

        Raises:
            RuntimeError: If the agent is saying what must not be interrupted.
            TimeoutError: If the reply takes too long.
        """
        self._ended_at = None
        await self.session.interrupt()
        handle = self.session.generate_reply(user_input=text)
        await self._in_time(handle.wait_for_playout(), "for the reply to a typed turn")
        await self.settle()

    async def settle(self, *, timeout_s: float | None = None) -> None:
        """Wait until nothing is under way: no speech, no turn being decided, no reply, tool or handoff.

        An agent's `on_enter` counts too: one that never returns never lets the session come to rest.

        Args:
            timeout_s: Real seconds to wait at most; by default the call's `timeout_s`.

        Raises:
            TimeoutError: If the session does not come to rest.
            RuntimeError: If the session is closed, or not started.
        """
        await self._in_time(self._rest(), "for the session to come to rest", timeout_s)

    async def hang_up(self) -> None:
        """Close the session, as a caller who hangs up does, and everything of this call with it.

        The host interrupts the agent and commits what the caller has said so far. Does nothing the
        second time.
        """
        self._is_closed = True
        await self.session.aclose()
        if self._synchronizer is not None:
            synchronizer, self._synchronizer = self._synchronizer, None
            await synchronizer.aclose()
        self._line.close()
        self._changed.set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.hang_up()

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else self.session.agent_state
        return f"<SimulatedCall {state}, {len(self.spoken)} turns spoken>"

    def _listen(self) -> None:
        def on_item(event: ConversationItemAddedEvent) -> None:
            item = event.item
            if isinstance(item, llm.ChatMessage) and item.role in ("user", "assistant"):
                self.spoken.append(
                    SpokenTurn(
                        speaker="caller" if item.role == "user" else "agent",
                        text=item.text_content or "",
                        interrupted=item.interrupted,
                        item_id=item.id,
                    )
                )
                self._committed += item.role == "user"
            self._changed.set()

        def on_transcript(_: object) -> None:
            self._heard += 1
            self._changed.set()

        def on_close(_: object) -> None:
            self._is_closed = True
            self._changed.set()

        def on_change(_: object) -> None:
            self._changed.set()

        self.session.on("conversation_item_added", on_item)
        self.session.on("user_input_transcribed", on_transcript)
        self.session.on("user_state_changed", on_change)
        self.session.on("agent_state_changed", on_change)
        self.session.on("close", on_close)
        self._speaker.on("playback_started", on_change)
        self._speaker.on("playback_finished", on_change)

    def _on_first_audio(self) -> None:
        if self._ended_at is not None:
            self.delays_s.append(time.perf_counter() - self._ended_at)
            self._ended_at = None

    async def _speak(
        self,
        text: str,
        *,
        interims: Sequence[str] | None,
        finals: Sequence[str] | None,
        speaker_id: str | None,
        confidence: float,
    ) -> None:
        results = list(recognised(text, interims=interims, finals=finals))
        if not any(is_final for _, is_final in results):
            raise InvalidArgumentError("a caller's turn needs at least one word")
        speech_s = len(text.split()) / self._words_per_s
        self._ended_at = None
        await self._until(lambda: bool(self._detector.streams), "for the host to open the line")
        self._detector.report(vad.VADEventType.START_OF_SPEECH, speech_s=0.0)
        await self._until(
            lambda: self.session.user_state == "speaking", "for the host to notice the caller"
        )
        began_at = time.perf_counter()
        for number, (words, is_final) in enumerate(results, start=1):
            await self._keep_speaking(began_at, speech_s * number / len(results))
            await self._recognise(words, is_final, speaker_id=speaker_id, confidence=confidence)
        # The host commits a turn only after its end of speech.
        self._committed_before = self._committed
        self._detector.report(
            vad.VADEventType.END_OF_SPEECH, speech_s=time.perf_counter() - began_at
        )
        self._ended_at = time.perf_counter()
        await self._until(
            lambda: self.session.user_state != "speaking", "for the host to notice the silence"
        )

    async def _keep_speaking(self, began_at: float, until_s: float) -> None:
        # A detector reports all the time: the host interrupts the agent by how long it says that
        # the caller has spoken.
        while (spoken_s := time.perf_counter() - began_at) < until_s:
            await asyncio.sleep(min(_VAD_STEP_S, until_s - spoken_s))
            self._detector.report(
                vad.VADEventType.INFERENCE_DONE, speech_s=time.perf_counter() - began_at
            )

    async def _recognise(
        self, words: str, is_final: bool, *, speaker_id: str | None, confidence: float
    ) -> None:
        await self._until(lambda: bool(self._recogniser.streams), "for the host to listen")
        expected = self._heard + 1
        self._recogniser.report(
            words, is_final=is_final, speaker_id=speaker_id, confidence=confidence
        )
        await self._until(
            lambda: self._heard >= expected,
            f"for the host to take {'a final' if is_final else 'an interim'} transcript",
        )

    async def _after(self, wait: Wait) -> None:
        if wait == "none":
            return
        await self._until(
            lambda: self._committed > self._committed_before,
            "for the host to commit the caller's turn (where the agent may drop it, "
            "pass wait='none' and await settle())",
        )
        if wait == "reply":
            await self.settle()

    async def _rest(self) -> None:
        while True:
            self._check_open()
            try:
                await self.session.wait_for_idle()
            except Exception:  # noqa: BLE001 - its activity was closed under it, by a handoff
                self._check_open()
            if self._is_at_rest():
                return
            # A tool under way, or a handoff: the host has no event for the end of either.
            await asyncio.sleep(_POLL_S)

    def _is_at_rest(self) -> bool:
        session = self.session
        agent = session.current_agent
        task = agent if isinstance(agent, AgentTask) else None
        # A task that says nothing on entering leaves the state at the "thinking" of the tool that
        # awaits it; one that is done is about to hand back.
        states = ("listening", "idle", *(("thinking",) if task is not None else ()))
        if session.agent_state not in states or (task is not None and task.done()):
            return False
        # Private, for the host tells of none of it in public: during a handoff the old agent is idle
        # until the new one has taken over, the new one's on_enter may not have spoken yet, and a
        # tool that awaited a task goes on in silence.
        handoff: asyncio.Task[None] | None = session._update_activity_atask  # noqa: SLF001
        activity = session._activity  # noqa: SLF001
        if (handoff is not None and not handoff.done()) or activity is None:
            return False
        entering: asyncio.Task[None] | None = activity._on_enter_task  # noqa: SLF001
        return (
            activity.agent is agent
            and entering is not None
            and entering.done()
            and not activity._background_speeches  # noqa: SLF001
            and session.current_speech is None
            and session.user_state != "speaking"
            and not self._speaker.is_playing
        )

    async def _until(self, holds: Callable[[], bool], what: str) -> None:
        async def wait() -> None:
            while not holds():
                self._check_open()
                self._changed.clear()
                await self._changed.wait()

        if not holds():
            await self._in_time(wait(), what)

    async def _in_time(
        self, work: Awaitable[Any], what: str, timeout_s: float | None = None
    ) -> None:
        limit_s = self._timeout_s if timeout_s is None else timeout_s
        try:
            async with asyncio.timeout(limit_s):
                await work
        except TimeoutError:
            raise TimeoutError(f"waited {limit_s:g} s {what}: {self!r}") from None

    def _check_open(self) -> None:
        if self._is_closed:
            raise RuntimeError("the call is over: the session has closed")


async def replay(call: SimulatedCall, script: CallScript) -> None:
    """Play a whole script on a started call.

    Caller turns are spoken with a few of their interims; agent turns are the model's replies to
    them, or spoken of the agent's own accord where no caller turn precedes. Where the script says
    that the agent was interrupted and a caller turn follows, the caller barges in half-way through
    the words. Actions and turns without words are nobody's speech and are left out.

    Args:
        call: Its model must be `ScriptedLLM.following(script)`.
        script: What is said; its times are not followed, each turn waits for the one before.

    Raises:
        InvalidArgumentError: If the call's model does not follow this script.
        TimeoutError: If a step takes too long.
    """
    prompter = call.llm.reply if isinstance(call.llm, ScriptedLLM) else None
    if not isinstance(prompter, _Prompter) or prompter.script is not script:
        raise InvalidArgumentError(
            "the call's model does not follow this script: give the call ScriptedLLM.following(script)"
        )

    async def speak(text: str, wait: bool) -> None:
        if wait:
            await call.agent_says(text)
        else:
            call.session.say(text)

    await replay_script(call, prompter, speak)


class _Prompter(Follower):
    """Answers a chat context."""

    def __call__(self, chat_ctx: llm.ChatContext) -> Answer:
        return self.answer(
            [
                (message.role, message.text_content or "")
                for message in chat_ctx.messages()
                if message.role in ("user", "assistant")
            ]
        )


class _ScriptedStream(llm.LLMStream):
    def __init__(
        self,
        model: ScriptedLLM,
        prompt: llm.ChatContext,
        *,
        chat_ctx: llm.ChatContext,
        tools: list[llm.Tool],
        conn_options: APIConnectOptions,
    ) -> None:
        super().__init__(model, chat_ctx=chat_ctx, tools=tools, conn_options=conn_options)
        self._model = model
        self._prompt = prompt
        self._id = utils.shortuuid("chat_")

    async def _run(self) -> None:
        answer = self._model.reply(self._prompt)
        await asyncio.sleep(self._model.ttft_s)
        calls: Sequence[ToolCall] = ()
        text = ""
        if isinstance(answer, str):
            text = answer
        elif answer is not None:
            calls = [answer] if isinstance(answer, ToolCall) else list(answer)
            text = " ".join(call.text for call in calls if call.text)
        for token in re.findall(r"\s*\S+\s*", text):
            self._send(llm.ChoiceDelta(role="assistant", content=token))
            await asyncio.sleep(self._model.token_s)
        if calls:
            self._send(
                llm.ChoiceDelta(
                    role="assistant",
                    tool_calls=[
                        llm.FunctionToolCall(
                            name=call.name,
                            arguments=json.dumps(dict(call.arguments)),
                            call_id=utils.shortuuid("call_"),
                        )
                        for call in calls
                    ],
                )
            )

    def _send(self, delta: llm.ChoiceDelta) -> None:
        self._event_ch.send_nowait(llm.ChatChunk(id=self._id, delta=delta))

    async def aclose(self) -> None:
        if not self._task.done():
            self._model.cancelled += 1
        await super().aclose()


class _Recogniser(stt.STT[Any]):
    """Recognises what it is told."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        super().__init__(
            capabilities=stt.STTCapabilities(
                streaming=True, interim_results=True, diarization=True, offline_recognize=False
            )
        )
        self.on_change = on_change
        # The host opens a new stream after some handoffs and whenever it clears a turn.
        self.streams: list[_RecogniserStream] = []

    def stream(
        self,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS,
    ) -> _RecogniserStream:
        del language
        return _RecogniserStream(self, conn_options=conn_options)

    def report(
        self, words: str, *, is_final: bool, speaker_id: str | None, confidence: float
    ) -> None:
        kinds = stt.SpeechEventType
        self.streams[-1].put(
            stt.SpeechEvent(
                type=kinds.FINAL_TRANSCRIPT if is_final else kinds.INTERIM_TRANSCRIPT,
                alternatives=[
                    stt.SpeechData(
                        language=LanguageCode("en"),
                        text=words,
                        confidence=confidence,
                        speaker_id=speaker_id,
                    )
                ],
            )
        )

    async def _recognize_impl(
        self,
        buffer: utils.AudioBuffer,
        *,
        language: NotGivenOr[str] = NOT_GIVEN,
        conn_options: APIConnectOptions,
    ) -> stt.SpeechEvent:
        raise NotImplementedError("the simulated recogniser only streams")


class _RecogniserStream(stt.RecognizeStream):
    def __init__(self, recogniser: _Recogniser, *, conn_options: APIConnectOptions) -> None:
        super().__init__(stt=recogniser, conn_options=conn_options)
        self._recogniser = recogniser

    def put(self, event: stt.SpeechEvent) -> None:
        self._event_ch.send_nowait(event)

    async def _run(self) -> None:
        self._recogniser.streams.append(self)
        self._recogniser.on_change()
        try:
            async for _ in self._input_ch:
                pass
        finally:
            self._recogniser.streams.remove(self)


class _Detector(vad.VAD):
    """Detects speech when it is told."""

    def __init__(self, on_change: Callable[[], None]) -> None:
        super().__init__(capabilities=vad.VADCapabilities(update_interval=_VAD_STEP_S))
        self.on_change = on_change
        # Each agent has a stream of its own.
        self.streams: list[_DetectorStream] = []

    def stream(self) -> _DetectorStream:
        return _DetectorStream(self)

    def report(self, kind: vad.VADEventType, *, speech_s: float) -> None:
        if not self.streams:
            # In the middle of a handoff: nobody listens, as in a room.
            return
        is_speaking = kind is not vad.VADEventType.END_OF_SPEECH
        self.streams[-1].put(
            vad.VADEvent(
                type=kind,
                samples_index=0,
                timestamp=time.time(),
                speech_duration=speech_s,
                silence_duration=0.0,
                speaking=is_speaking,
                probability=float(is_speaking),
                raw_accumulated_speech=speech_s if is_speaking else 0.0,
            )
        )


class _DetectorStream(vad.VADStream):
    def __init__(self, detector: _Detector) -> None:
        super().__init__(detector)
        self._detector = detector

    def put(self, event: vad.VADEvent) -> None:
        self._event_ch.send_nowait(event)

    async def _main_task(self) -> None:
        self._detector.streams.append(self)
        self._detector.on_change()
        try:
            async for _ in self._input_ch:
                pass
        finally:
            self._detector.streams.remove(self)


class _Voice(tts.TTS[Any]):
    """Speaks silence, as long as the words would take."""

    def __init__(self, words_per_s: float) -> None:
        super().__init__(
            capabilities=tts.TTSCapabilities(streaming=True),
            sample_rate=_SAMPLE_RATE,
            num_channels=1,
        )
        self.words_per_s = words_per_s

    def synthesize(
        self, text: str, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.ChunkedStream:
        return self._synthesize_with_stream(text, conn_options=conn_options)

    def stream(
        self, *, conn_options: APIConnectOptions = DEFAULT_API_CONNECT_OPTIONS
    ) -> tts.SynthesizeStream:
        return _VoiceStream(self, conn_options=conn_options)


class _VoiceStream(tts.SynthesizeStream):
    def __init__(self, voice: _Voice, *, conn_options: APIConnectOptions) -> None:
        super().__init__(tts=voice, conn_options=conn_options)
        self._voice = voice

    async def _run(self, output_emitter: tts.AudioEmitter) -> None:
        output_emitter.initialize(
            request_id=utils.shortuuid(),
            sample_rate=_SAMPLE_RATE,
            num_channels=1,
            mime_type="audio/pcm",
            frame_size_ms=20,
            stream=True,
        )
        text = ""
        pushed = 0

        def push(words: int) -> None:
            nonlocal pushed
            due = round(words * _SAMPLE_RATE / self._voice.words_per_s)
            if due > pushed:
                output_emitter.push(bytes(2 * (due - pushed)))
                pushed = due

        async for data in self._input_ch:
            if not isinstance(data, str):
                continue
            if not text:
                self._mark_started()
                output_emitter.start_segment(segment_id=utils.shortuuid())
            text += data
            # The last word may still grow.
            push(len(text.split()) - (not text[-1].isspace()))
        if text.strip():
            push(len(text.split()))
        if text:
            output_emitter.end_segment()


class _Line(io.AudioInput):
    """A line on which nothing sounds: the recogniser and the detector are told what is said."""

    def __init__(self) -> None:
        super().__init__(label="SimulatedLine")
        self._is_closed = asyncio.Event()

    async def __anext__(self) -> rtc.AudioFrame:
        await self._is_closed.wait()
        raise StopAsyncIteration

    def close(self) -> None:
        self._is_closed.set()


class _Speaker(io.AudioOutput):
    """A loudspeaker that plays in real time and knows how far it got."""

    def __init__(self, on_first_audio: Callable[[], None]) -> None:
        super().__init__(
            label="SimulatedSpeaker", capabilities=io.AudioOutputCapabilities(pause=True)
        )
        self._on_first_audio = on_first_audio
        self._is_paused = False
        self._emptied = asyncio.Event()
        # How many speeches have been played out, or cut off.
        self.ended = 0
        self._forget()

    def _forget(self) -> None:
        self._pushed_s = 0.0
        self._played_s = 0.0
        # Since when it has been playing without a break; None while it is not.
        self._since: float | None = None
        self._has_started = False
        self._is_flushed = False
        self._timer: asyncio.TimerHandle | None = None
        self._emptied.set()

    @property
    def is_playing(self) -> bool:
        """Whether something was given that is not played out yet."""
        return self._pushed_s > 0

    @property
    def position_s(self) -> float:
        """How much of the current segment has been played, in real seconds."""
        running_s = 0.0 if self._since is None else time.perf_counter() - self._since
        return min(self._pushed_s, self._played_s + running_s)

    async def capture_frame(self, frame: rtc.AudioFrame) -> None:
        while self._is_flushed:
            self._emptied.clear()
            await self._emptied.wait()
        await super().capture_frame(frame)
        if not self.is_playing:
            self._on_first_audio()
        # Time in which there was nothing to play is no progress.
        self._played_s = self.position_s
        self._pushed_s += frame.duration
        if self._since is not None:
            self._since = time.perf_counter()
        elif not self._is_paused:
            self._play()

    def flush(self) -> None:
        super().flush()
        if self.is_playing and not self._is_flushed:
            self._is_flushed = True
            self._schedule_end()

    def clear_buffer(self) -> None:
        if not self.is_playing:
            return
        if not self._is_flushed:
            super().flush()
        self._end(interrupted=True)

    def pause(self) -> None:
        super().pause()
        self._is_paused = True
        self._played_s = self.position_s
        self._since = None
        self._cancel_timer()

    def resume(self) -> None:
        super().resume()
        if not self._is_paused:
            return
        self._is_paused = False
        if self.is_playing:
            self._play()
            self._schedule_end()

    def _play(self) -> None:
        self._since = time.perf_counter()
        if not self._has_started:
            self._has_started = True
            self.on_playback_started(created_at=time.time())

    def _schedule_end(self) -> None:
        self._cancel_timer()
        if self._is_flushed and self._since is not None:
            # Even with nothing left it ends in a later step of the loop: the host marks the end of
            # its input only after flush() returns.
            self._timer = asyncio.get_running_loop().call_later(
                max(0.0, self._pushed_s - self.position_s), self._end
            )

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self, *, interrupted: bool = False) -> None:
        self._cancel_timer()
        position_s = self.position_s if interrupted else self._pushed_s
        self._forget()
        self.ended += 1
        self.on_playback_finished(playback_position=position_s, interrupted=interrupted)


def _session_options(given: Mapping[str, Any], *, speed: float) -> dict[str, Any]:
    turn_handling: dict[str, Any] = {
        "turn_detection": "vad",
        "endpointing": {"min_delay": 0.5 / speed, "max_delay": 3.0 / speed},
        "interruption": {
            "mode": "vad",
            "min_duration": 0.5 / speed,
            "false_interruption_timeout": 2.0 / speed,
        },
    }
    for name, value in (given.get("turn_handling") or {}).items():
        both = isinstance(value, Mapping) and isinstance(turn_handling.get(name), Mapping)
        turn_handling[name] = {**turn_handling[name], **value} if both else value
    return {
        # Else the caller cannot interrupt for the first three seconds.
        "aec_warmup_duration": None,
        "user_away_timeout": None,
        # How long the host waits at hang-up for a final transcript, which here never comes late.
        "session_close_transcript_timeout": 0.05,
        **given,
        "turn_handling": turn_handling,
    }


def _as_it_is(chat_ctx: llm.ChatContext) -> llm.ChatContext:
    # The host finishes a user message in place after a preemptive request was made with it.
    return llm.ChatContext(
        [
            item.model_copy(update={"content": list(item.content)})
            if isinstance(item, llm.ChatMessage)
            else item.model_copy()
            for item in chat_ctx.items
        ]
    )
