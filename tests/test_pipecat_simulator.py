"""The simulator of spoken calls, against the installed Pipecat."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

with warnings.catch_warnings():
    # Pipecat's own modules use `audioop` and a class that is deprecated, as they are imported.
    warnings.simplefilter("ignore", DeprecationWarning)
    import pipecat.services.tts_service  # noqa: F401

from loguru import logger
from pipecat.frames.frames import (
    BotStartedSpeakingFrame,
    BotStoppedSpeakingFrame,
    ErrorFrame,
    Frame,
    FunctionCallResultFrame,
    InterimTranscriptionFrame,
    InterruptionFrame,
    LLMContextFrame,
    MetricsFrame,
    StopFrame,
    TranscriptionFrame,
    TTSAudioRawFrame,
)
from pipecat.metrics.metrics import TTFBMetricsData
from pipecat.pipeline import worker as pipecat_worker
from pipecat.pipeline.worker import PipelineParams
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.llm_service import FunctionCallParams
from pipecat_moss_voice.testing import (
    Answer,
    Messages,
    ScriptedLLMService,
    SimulatedCall,
    SpokenTurn,
    ToolCall,
    replay,
)

from moss_voice.calls import CallScript, ScriptTurn, Speaker, read_calls
from moss_voice.errors import InvalidArgumentError
from moss_voice.text import squash

FIRST = (
    "your appointment is on thursday the fourth of may at half past ten in the morning with doctor "
    "okafor."
)
SECOND = "it is in the clinic by the river and you should bring your card and a list of it all."
LONG = f"{FIRST} {SECOND}"


@pytest.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    """Fail where a call leaves a task behind."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left


@pytest.fixture(autouse=True)
def host_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Keep the host quiet, and fail where it warns or logs an error."""
    # Pipecat 1.8 to 1.11 fetch a sentence splitter from the network as they start.
    monkeypatch.setattr(pipecat_worker, "warm_deferred_imports", lambda: None, raising=False)
    logger.remove()
    messages: list[str] = []
    sink = logger.add(lambda message: messages.append(str(message)), level=logging.WARNING)
    yield messages
    logger.remove(sink)
    assert not messages, messages


def _says(text: str) -> ScriptedLLMService:
    return ScriptedLLMService(lambda _: text)


def _said(messages: Messages) -> list[str]:
    return [message["content"] for message in messages if message["role"] == "user"]


def _long_then_short() -> ScriptedLLMService:
    return ScriptedLLMService(lambda messages: LONG if len(_said(messages)) == 1 else "All right.")


def _words(call: SimulatedCall) -> list[tuple[str, str]]:
    return [(turn.speaker, squash(turn.text)) for turn in call.spoken]


def _in_context(call: SimulatedCall) -> list[tuple[str, Any]]:
    messages: list[Any] = call.context.get_messages()
    return [(message["role"], message.get("content")) for message in messages]


def _script(*turns: tuple[Speaker, str] | tuple[Speaker, str, bool]) -> CallScript:
    return CallScript(
        id="made-up",
        turns=tuple(
            ScriptTurn(
                number=number,
                speaker=turn[0],
                text=turn[1],
                start_s=float(number),
                end_s=number + 0.5,
                interrupted=len(turn) > 2,
            )
            for number, turn in enumerate(turns)
        ),
        timing="synthetic",
    )


def _is_cut_short(turn: SpokenTurn, full: str) -> bool:
    return turn.interrupted and bool(turn.text) and full.startswith(turn.text) and turn.text != full


class Watcher(FrameProcessor):
    """Keeps the frames that pass between the user aggregator and the model."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Frame] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        self.seen.append(frame)
        await self.push_frame(frame, direction)


@pytest.mark.parametrize("word_timestamps", [True, False])
async def test_a_turn_is_answered(word_timestamps: bool) -> None:
    """A caller's turn gets the model's answer, and both are reported in the order spoken."""
    model = _says("It is at four. Do not be late!")
    async with SimulatedCall(model, word_timestamps=word_timestamps) as call:
        await call.start()
        await call.caller_says("when is my appointment")
        await call.caller_says("say again")
        assert [(turn.speaker, turn.text) for turn in call.spoken] == [
            ("caller", "when is my appointment"),
            ("agent", "It is at four. Do not be late!"),
            ("caller", "say again"),
            ("agent", "It is at four. Do not be late!"),
        ]
        assert not any(turn.interrupted for turn in call.spoken)
        assert all(turn.timestamp for turn in call.spoken)
        assert _in_context(call) == [
            ("user" if turn.speaker == "caller" else "assistant", turn.text) for turn in call.spoken
        ]


async def test_prompts_stay_as_they_were() -> None:
    """A recorded prompt holds the history of its moment, and is a copy; the context is the host's."""
    model = _says("Yes.")
    start: list[Any] = [{"role": "user", "content": "before"}]
    async with SimulatedCall(model, context_messages=start) as call:
        await call.start()
        await call.caller_says("one and only")
        await call.caller_says("and another")
        call.context.add_message({"role": "user", "content": "later"})
        assert model.contexts == [call.context] * 2
    assert [_said(prompt) for prompt in model.prompts] == [
        ["before", "one and only"],
        ["before", "one and only", "and another"],
    ]
    assert model.tools == [(), ()]
    assert start == [{"role": "user", "content": "before"}]


async def test_finals_make_one_message() -> None:
    """Several finals of one turn become one user message; the recogniser's frames are as told."""
    heard: list[InterimTranscriptionFrame | TranscriptionFrame] = []

    def on_frame(_: object, frame: Frame) -> None:
        if isinstance(frame, (InterimTranscriptionFrame, TranscriptionFrame)):
            heard.append(frame)

    async with SimulatedCall(_says("Gladly.")) as call:
        call.pair.user().add_event_handler("on_before_process_frame", on_frame)
        await call.start()
        await call.caller_says(
            "two tickets to leeds for friday evening please",
            finals=["two tickets to leeds", "for friday evening please"],
            user_id="ada",
        )
    assert [turn.text for turn in call.spoken if turn.speaker == "caller"] == [
        "two tickets to leeds for friday evening please"
    ]
    assert [(frame.text, isinstance(frame, TranscriptionFrame)) for frame in heard] == [
        ("two tickets to", False),
        ("two tickets to leeds", False),
        ("two tickets to leeds", True),
        ("for friday evening", False),
        ("for friday evening please", False),
        ("for friday evening please", True),
    ]
    assert {frame.user_id for frame in heard} == {"ada"}


async def test_interims_as_given() -> None:
    """Interims that are given are reported as they are, before the final."""
    heard: list[str] = []

    def on_frame(_: object, frame: Frame) -> None:
        if isinstance(frame, (InterimTranscriptionFrame, TranscriptionFrame)):
            heard.append(frame.text)

    async with SimulatedCall(_says("Gladly.")) as call:
        call.pair.user().add_event_handler("on_before_process_frame", on_frame)
        await call.start()
        await call.caller_says("two tickets", interims=["to", "two tick it"])
    assert heard == ["to", "two tick it", "two tickets"]


async def test_barge_in_with_word_timestamps() -> None:
    """A caller who speaks over the bot interrupts it; its turn is cut to the words that were heard."""
    async with SimulatedCall(_long_then_short()) as call:
        await call.start()
        await call.caller_says("when is my appointment", wait="committed")
        assert len(call.spoken) == 1
        await call.barge_in("stop that is enough", after_words=5)
    caller, cut, again, answer = call.spoken
    assert (caller.speaker, cut.speaker, again.speaker) == ("caller", "agent", "caller")
    assert _is_cut_short(cut, LONG)
    assert 5 <= len(cut.text.split()) <= 12
    assert (answer.speaker, answer.text, answer.interrupted) == ("agent", "All right.", False)
    assert _in_context(call)[1] == ("assistant", cut.text)


async def test_barge_in_without_word_timestamps() -> None:
    """Without word timestamps an interrupted turn holds the sentences played to the end, no part of one."""
    async with SimulatedCall(_long_then_short(), word_timestamps=False) as call:
        await call.start()
        await call.caller_says("when is my appointment", wait="committed")
        await call.barge_in("stop", after_words=len(FIRST.split()) + 4)
    assert [(turn.text, turn.interrupted) for turn in call.spoken] == [
        ("when is my appointment", False),
        (FIRST, True),
        ("stop", False),
        ("All right.", False),
    ]


async def test_barge_in_on_the_first_sentence_without_word_timestamps() -> None:
    """Of a bot interrupted in its first sentence nothing is reported, though a little was heard."""
    async with SimulatedCall(_long_then_short(), word_timestamps=False) as call:
        await call.start()
        await call.caller_says("when is my appointment", wait="committed")
        await call.barge_in("stop", after_words=4)
    assert [turn.text for turn in call.spoken] == ["when is my appointment", "stop", "All right."]


async def test_barge_in_by_seconds() -> None:
    """How much of the bot is heard follows from when the caller barges in."""
    lengths = []
    for after_s in (1.0, 6.0):
        async with SimulatedCall(_says(LONG), record_frames=False) as call:
            await call.start()
            await call.caller_says("go on", wait="committed")
            await call.barge_in("wait a moment", after_s=after_s, wait="committed")
            lengths.append(len(call.spoken[1].text.split()))
            await call.cancel()
    assert 1 <= lengths[0] <= 8
    assert lengths[0] + 5 < lengths[1] < len(LONG.split())


async def test_barge_in_needs_speech() -> None:
    """Barging in on a bot that has finished, or says nothing, is an error that says so."""
    async with SimulatedCall(_says("Yes."), timeout_s=0.5) as call:
        await call.start()
        await call.caller_says("go on", wait="committed")
        with pytest.raises(RuntimeError, match="had finished"):
            await call.barge_in("wait", after_words=50)
        await call.settle()
        with pytest.raises(TimeoutError, match="for the bot to speak"):
            await call.barge_in("wait")


async def test_interrupting_the_model() -> None:
    """A request that is interrupted before its answer is out counts as cancelled, and nothing is said."""
    model = ScriptedLLMService(
        lambda messages: "Too late." if len(_said(messages)) == 1 else "Yes.", ttft_s=0.2
    )
    async with SimulatedCall(model) as call:
        await call.start()
        await call.caller_says("this", wait="committed")
        await call.caller_says("and that")
    assert model.cancelled == 1
    assert [turn.text for turn in call.spoken] == ["this", "and that", "Yes."]


async def test_delays_and_metrics() -> None:
    """Each answered caller turn has its delay, which holds the model's; its TTFB is measured too."""
    model = ScriptedLLMService(
        lambda messages: None if "hush" in _said(messages) else "Yes.", ttft_s=0.2
    )
    options = {"params": PipelineParams(enable_metrics=True)}
    async with SimulatedCall(model, worker_options=options, record_frames=True) as call:
        await call.start()
        await call.caller_says("a question")
        await call.types("a typed question")
        await call.bot_says("anything else")
        await call.caller_says("another question")
        await call.caller_says("hush")
        await call.bot_says("well then")
    assert len(call.delays_s) == 2
    assert all(0.2 < delay_s < 5 for delay_s in call.delays_s)
    measured = [
        data.value
        for _, frame in call.frames
        if isinstance(frame, MetricsFrame)
        for data in frame.data
        if isinstance(data, TTFBMetricsData) and data.processor == model.name and data.value
    ]
    assert len(measured) == 4
    assert all(0.2 <= value < 5 for value in measured)


async def test_a_typed_turn() -> None:
    """A typed turn is answered aloud; it is in the context, but the host reports no turn of it."""
    model = _says("It is at four.")
    async with SimulatedCall(model) as call:
        await call.start()
        await call.types("when is it")
    assert _in_context(call) == [("user", "when is it"), ("assistant", "It is at four.")]
    assert [(turn.speaker, turn.text) for turn in call.spoken] == [("agent", "It is at four.")]
    assert len(model.prompts) == 1
    assert call.delays_s == []


async def test_typing_interrupts() -> None:
    """A turn typed while the bot speaks interrupts it; what was heard of it comes first."""
    async with SimulatedCall(_long_then_short()) as call:
        await call.start()
        await call.caller_says("when is it", wait="committed")
        assert await call.hears()
        await call.types("never mind")
    assert _is_cut_short(call.spoken[1], LONG)
    assert [role for role, _ in _in_context(call)] == ["user", "assistant", "user", "assistant"]
    assert call.spoken[-1].text == "All right."


async def test_the_bot_speaks_first() -> None:
    """What the bot says of its own accord is heard to the end, without asking the model."""
    model = _says("Yes.")
    async with SimulatedCall(model) as call:
        await call.start()
        await call.bot_says("Good morning. How can I help?")
        assert [(turn.speaker, turn.text) for turn in call.spoken] == [
            ("agent", "Good morning. How can I help?")
        ]
        assert model.prompts == []


asked: list[str] = []


async def lookup(params: FunctionCallParams, day: str) -> None:  # noqa: D417 - the host's
    """Look up the hours.

    Args:
        day: The day of the week.
    """
    asked.append(day)
    await asyncio.sleep(0.05)
    await params.result_callback({"hours": f"nine to five on {day}"})


async def test_a_function_call() -> None:
    """A tool is called by the host itself; the model is asked again with the result, and answers."""

    def answer(messages: Messages) -> Answer:
        if messages[-1]["role"] == "tool":
            return f"The answer is {messages[-1]['content']}."
        days = ("monday", "friday")
        return [
            ToolCall("lookup", {"day": day}, text="One moment." * (day == "monday")) for day in days
        ]

    asked.clear()
    model = ScriptedLLMService(answer)
    async with SimulatedCall(model, tools=[lookup], record_frames=True) as call:
        await call.start()
        await call.caller_says("when are you open")
    assert sorted(asked) == ["friday", "monday"]
    assert model.tools == [("lookup",), ("lookup",)]
    assert [turn.speaker for turn in call.spoken] == ["caller", "agent", "agent"]
    assert call.spoken[1].text == "One moment."
    assert "nine to five on" in call.spoken[2].text
    assert sum(isinstance(frame, FunctionCallResultFrame) for _, frame in call.frames) == 4


async def test_a_model_that_fails(host_log: list[str]) -> None:
    """A failing model sends an ErrorFrame up and leaves the turn unanswered; the call goes on."""

    def answer(messages: Messages) -> Answer:
        if _said(messages)[-1] == "hello":
            raise LookupError("the script has no such turn")
        return "Yes."

    async with SimulatedCall(ScriptedLLMService(answer), record_frames=True) as call:
        await call.start()
        await call.caller_says("hello")
        await call.caller_says("hello again")
    assert [turn.text for turn in call.spoken] == ["hello", "hello again", "Yes."]
    assert [type(frame.exception) for _, frame in call.frames if isinstance(frame, ErrorFrame)] == [
        LookupError
    ]
    assert any("no such turn" in message for message in host_log)
    host_log.clear()


@pytest.mark.parametrize("word_timestamps", [True, False])
async def test_hang_up_while_the_bot_speaks(word_timestamps: bool) -> None:
    """An EndFrame lets the bot say what it has begun to say; its turn is reported whole."""
    async with SimulatedCall(_says(LONG), word_timestamps=word_timestamps) as call:
        await call.start()
        await call.caller_says("when is my appointment", wait="committed")
        assert await call.hears(after_words=8)
        await call.hang_up()
        assert [(turn.text, turn.interrupted) for turn in call.spoken] == [
            ("when is my appointment", False),
            (LONG, False),
        ]


@pytest.mark.parametrize("word_timestamps", [True, False])
async def test_stop_while_the_bot_speaks(word_timestamps: bool) -> None:
    """A StopFrame too waits for the bot; the processors live on until the block ends."""
    async with SimulatedCall(_says(LONG), word_timestamps=word_timestamps) as call:
        await call.start()
        await call.caller_says("when is my appointment", wait="committed")
        assert await call.hears(after_words=8)
        await call.stop()
        assert [(turn.text, turn.interrupted) for turn in call.spoken] == [
            ("when is my appointment", False),
            (LONG, False),
        ]


async def test_cancel_while_the_bot_speaks() -> None:
    """A CancelFrame cuts the bot off; its turn holds the words that were heard."""
    async with SimulatedCall(_says(LONG)) as call:
        await call.start()
        await call.caller_says("when is my appointment", wait="committed")
        assert await call.hears(after_words=8)
        await call.cancel()
        assert len(call.spoken) == 2
        assert _is_cut_short(call.spoken[1], LONG)
        assert 8 <= len(call.spoken[1].text.split()) <= 16
        assert _in_context(call)[1] == ("assistant", call.spoken[1].text)


@pytest.mark.parametrize("end", ["hang_up", "cancel"])
async def test_end_before_the_turn_ends(end: str) -> None:
    """What the caller said last is committed at the end, though the turn was open.

    The host runs the LLM on its way out; at most the beginning of an answer is heard.
    """
    async with SimulatedCall(_says("Never said."), speed=0.5) as call:
        await call.start()
        await call.caller_says("bye", wait="none")
        assert call.spoken == []
        await getattr(call, end)()
        caller, *answer = _words(call)
        assert caller == ("caller", "bye")
        assert answer in ([], [("agent", "never")])


async def test_stop_before_the_turn_ends() -> None:
    """A StopFrame commits nothing: what the caller said in an open turn is lost to the context."""
    async with SimulatedCall(_says("Never said."), speed=0.5) as call:
        await call.start()
        await call.caller_says("bye", wait="none")
        await call.stop()
    assert call.spoken == []
    assert _in_context(call) == []


async def test_ends_twice_and_unstarted() -> None:
    """Ending again, or a call never started, does nothing; a call that is over says that it is."""
    call = SimulatedCall(_says("Yes."))
    await call.hang_up()
    with pytest.raises(RuntimeError, match="not started"):
        await call.caller_says("hello")
    async with SimulatedCall(_says("Yes."), timeout_s=5) as call:
        await call.start()
        with pytest.raises(RuntimeError, match="started before"):
            await call.start()
        await call.hang_up()
        await call.stop()
        await call.cancel()
        for step in (call.settle(), call.caller_says("hello"), call.types("x"), call.bot_says("x")):
            with pytest.raises(RuntimeError, match="the call is over"):
                await step


async def test_the_bot_hangs_up() -> None:
    """A pipeline that ends on its own ends what waits for it."""
    async with SimulatedCall(_says(LONG), timeout_s=5) as call:
        await call.start()
        await call.caller_says("hello", wait="committed")
        await call.worker.cancel()
        with pytest.raises(RuntimeError, match="the call is over"):
            await call.settle()


async def test_leaving_by_an_error() -> None:
    """A block that is left by an error ends the call at once."""
    call = SimulatedCall(_says(LONG))

    async def fail() -> None:
        async with call:
            await call.start()
            await call.caller_says("hello", wait="committed")
            assert await call.hears()
            raise LookupError

    with pytest.raises(LookupError):
        await fail()
    assert _is_cut_short(call.spoken[1], LONG)


class Stuck(FrameProcessor):
    """Keeps back what should end the pipeline."""

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if not isinstance(frame, StopFrame):
            await self.push_frame(frame, direction)


async def test_a_pipeline_that_does_not_end() -> None:
    """A processor that keeps back the end makes ending fail, and leaves nothing behind."""
    async with SimulatedCall(_says("Yes."), processors=[Stuck()], timeout_s=0.5) as call:
        await call.start()
        await call.caller_says("hello")
        with pytest.raises(TimeoutError, match="StopFrame"):
            await call.stop()


async def test_frames_are_recorded() -> None:
    """Frames are kept as they reach the loudspeaker and the line, the very objects that others saw."""
    watcher = Watcher()
    async with SimulatedCall(_says("Yes."), processors=[watcher], record_frames=True) as call:
        await call.start()
        await call.caller_says("hello")
    down = [frame for way, frame in call.frames if way is FrameDirection.DOWNSTREAM]
    up = [frame for way, frame in call.frames if way is FrameDirection.UPSTREAM]
    assert sum(isinstance(frame, InterruptionFrame) for frame in down) == 1
    assert any(isinstance(frame, TTSAudioRawFrame) for frame in down)
    assert [type(frame) for frame in up if type(frame).__name__.startswith("BotSt")] == [
        BotStartedSpeakingFrame,
        BotStoppedSpeakingFrame,
    ]
    assert any(isinstance(frame, LLMContextFrame) for frame in watcher.seen)
    assert not any(isinstance(frame, TranscriptionFrame) for frame in watcher.seen)
    seen = {id(frame) for frame in watcher.seen}
    assert any(id(frame) in seen for frame in down)
    assert any(id(frame) in seen for frame in up)


async def test_without_an_assistant_aggregator() -> None:
    """Without its aggregator the bot still speaks, but nobody reports what."""
    async with SimulatedCall(_says("Yes."), with_assistant_aggregator=False) as call:
        await call.start()
        await call.caller_says("hello")
    assert _words(call) == [("caller", "hello")]
    assert len(call.delays_s) == 1


async def test_arguments_are_checked() -> None:
    """A turn needs words, and a speed is above 0."""
    with pytest.raises(InvalidArgumentError, match="speed"):
        SimulatedCall(_says("Yes."), speed=0)
    async with SimulatedCall(_says("Yes.")) as call:
        await call.start()
        with pytest.raises(InvalidArgumentError, match="at least one word"):
            await call.caller_says("  ")


async def test_replay_of_every_shape() -> None:
    """A script's turns are spoken once each, in order, whoever speaks first, twice or the same."""
    script = _script(
        ("agent", "good morning"),
        ("agent", "this is the desk"),
        ("action", "looks up the account"),
        ("caller", "hello hello"),
        ("caller", "hello hello"),
        ("agent", "yes what is it"),
        ("caller", "hello hello"),
        ("agent", "i can hear you"),
        ("agent", "  "),
        ("agent", "just go on"),
        ("caller", "goodbye"),
    )
    async with SimulatedCall(ScriptedLLMService.following(script)) as call:
        await call.start()
        await replay(call, script)
    assert _words(call) == [
        (turn.speaker, turn.text) for turn in script.spoken if turn.text.strip()
    ]


async def test_replay_of_interruptions() -> None:
    """Where the script cuts the agent off, the caller barges in; the last words may be cut by none."""
    script = _script(
        ("agent", LONG, True),
        ("caller", "stop please"),
        ("agent", LONG, True),
        ("caller", "stop i said"),
        ("agent", "sorry for that"),
        ("caller", "goodbye"),
        ("agent", "good", True),
    )
    async with SimulatedCall(ScriptedLLMService.following(script)) as call:
        await call.start()
        await replay(call, script)
    assert [turn.speaker for turn in call.spoken] == [turn.speaker for turn in script.turns]
    assert _is_cut_short(call.spoken[0], LONG)
    assert _is_cut_short(call.spoken[2], LONG)
    assert [turn.text for turn in call.spoken[3:]] == [turn.text for turn in script.turns[3:]]


async def test_replay_needs_the_script_in_the_model() -> None:
    """A model that does not follow the script cannot play its agent."""
    script = _script(("caller", "hello"), ("agent", "yes"))
    async with SimulatedCall(_says("Yes.")) as call:
        with pytest.raises(InvalidArgumentError, match="following"):
            await replay(call, script)


async def test_following_without_replay() -> None:
    """Outside of a replay the answer is found by the caller's words, the n-th time the n-th."""
    script = _script(
        ("caller", "hello"),
        ("agent", "first"),
        ("caller", "Hello!"),
        ("agent", "second"),
        ("caller", "bye"),
    )
    async with SimulatedCall(ScriptedLLMService.following(script)) as call:
        await call.start()
        for text in ("hello", "hello", "hello", "something else", "bye"):
            await call.caller_says(text)
    assert [turn.text for turn in call.spoken if turn.speaker == "agent"] == [
        "first",
        "second",
        "second",
    ]


@pytest.mark.parametrize("word_timestamps", [True, False])
async def test_replay_of_a_real_call(data_dir: Path, word_timestamps: bool) -> None:
    """Every spoken turn of a call is spoken once, in order, with its words."""
    script = next(
        script
        for script in read_calls(data_dir / "calls" / "calls.dev.jsonl")
        if len(script.spoken) == 20
    )
    model = ScriptedLLMService.following(script)
    async with SimulatedCall(model, speed=200, word_timestamps=word_timestamps) as call:
        await call.start()
        await replay(call, script)
    assert _words(call) == [(turn.speaker, squash(turn.text)) for turn in script.spoken]
    assert len(model.prompts) == sum(turn.speaker == "caller" for turn in script.spoken)
    assert model.cancelled == 0


async def test_calls_at_the_same_time(data_dir: Path) -> None:
    """Four calls run in one event loop, and none hears another."""
    scripts = [
        script
        for script in read_calls(data_dir / "calls" / "calls.dev.jsonl")
        if len(script.spoken) <= 16
    ][:4]

    async def play(script: CallScript) -> list[tuple[str, str]]:
        async with SimulatedCall(ScriptedLLMService.following(script), speed=200) as call:
            await call.start()
            await replay(call, script)
        return _words(call)

    spoken = await asyncio.gather(*map(play, scripts))
    assert len(spoken) == 4
    for script, words in zip(scripts, spoken, strict=True):
        assert words == [
            (turn.speaker, squash(turn.text)) for turn in script.spoken if squash(turn.text)
        ]
