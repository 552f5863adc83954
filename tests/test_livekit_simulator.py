"""The simulator of spoken calls, against the installed LiveKit."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from livekit.agents import (
    Agent,
    AgentTask,
    StopResponse,
    UserInputTranscribedEvent,
    function_tool,
    llm,
)
from livekit.plugins.moss_voice.testing import (
    Answer,
    ScriptedLLM,
    SimulatedCall,
    SpokenTurn,
    ToolCall,
    replay,
)

from moss_voice.calls import CallScript, ScriptTurn, Speaker, read_calls
from moss_voice.errors import InvalidArgumentError
from moss_voice.text import squash

LONG = (
    "your appointment is on thursday the fourth of may at half past ten in the morning with doctor "
    "okafor in the clinic by the river and you should bring your card and a list of what you take"
)


@pytest.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    """Fail where a call leaves a task behind."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left


@pytest.fixture(autouse=True)
def _no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail where the host, or the event loop, logs an error."""
    with caplog.at_level(logging.WARNING):
        yield
    errors = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not errors, [r.getMessage() for r in errors]


def _agent() -> Agent:
    return Agent(instructions="You take calls.")


def _says(text: str) -> ScriptedLLM:
    return ScriptedLLM(lambda _: text)


def _words(call: SimulatedCall) -> list[tuple[str, str]]:
    return [(turn.speaker, squash(turn.text)) for turn in call.spoken]


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
    said, whole = squash(turn.text), squash(full)
    return turn.interrupted and bool(said) and whole.startswith(said) and said != whole


async def test_a_turn_is_answered() -> None:
    """A caller's turn gets the model's answer, and both are reported in the order spoken."""
    async with SimulatedCall(_says("It is at four.")) as call:
        await call.start(_agent())
        await call.caller_says("when is my appointment")
        assert _words(call) == [
            ("caller", "when is my appointment"),
            ("agent", squash("It is at four.")),
        ]
        assert call.session.agent_state == "listening"
        assert call.session.user_state == "listening"
        assert [item.id for item in call.session.history.messages()] == [
            turn.item_id for turn in call.spoken
        ]


async def test_without_a_synchronizer() -> None:
    """A plain audio output serves as well."""
    async with SimulatedCall(_says("It is at four."), synchronized=False) as call:
        await call.start(_agent())
        await call.caller_says("when is my appointment")
        assert [speaker for speaker, _ in _words(call)] == ["caller", "agent"]


async def test_finals_make_one_item() -> None:
    """Several finals of one turn become one user item, said by the speaker and as surely as told."""
    heard: list[UserInputTranscribedEvent] = []
    async with SimulatedCall(_says("Gladly.")) as call:
        call.session.on("user_input_transcribed", heard.append)
        await call.start(_agent())
        await call.caller_says(
            "two tickets to leeds for friday evening please",
            finals=["two tickets to leeds", "for friday evening please"],
            speaker_id="S1",
            confidence=0.5,
        )
        message = call.session.history.messages()[0]
    assert [turn.text for turn in call.spoken if turn.speaker == "caller"] == [
        "two tickets to leeds for friday evening please"
    ]
    assert message.transcript_confidence == 0.5
    assert [event.transcript for event in heard if event.is_final] == [
        "two tickets to leeds",
        "for friday evening please",
    ]
    assert {event.speaker_id for event in heard} == {"S1"}
    assert [event.transcript for event in heard if not event.is_final] == [
        "two tickets to",
        "two tickets to leeds",
        "for friday evening",
        "for friday evening please",
    ]


async def test_interims_as_given() -> None:
    """Interims that are given are reported as they are, before the final."""
    heard: list[UserInputTranscribedEvent] = []
    async with SimulatedCall(_says("Gladly.")) as call:
        call.session.on("user_input_transcribed", heard.append)
        await call.start(_agent())
        await call.caller_says(
            "two tickets to leeds", interims=["to", "two tick it", "two tickets"]
        )
    assert [(event.transcript, event.is_final) for event in heard] == [
        ("to", False),
        ("two tick it", False),
        ("two tickets", False),
        ("two tickets to leeds", True),
    ]


async def test_preemptive_generation() -> None:
    """The model is asked before the end of the turn, and once where one final said it all."""
    model = _says("It is at four.")
    asked_at_end_of_turn: list[int] = []

    class Watcher(Agent):
        async def on_user_turn_completed(
            self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
        ) -> None:
            asked_at_end_of_turn.append(len(model.prompts))

    async with SimulatedCall(model) as call:
        await call.start(Watcher(instructions=""))
        for _ in range(3):
            await call.caller_says("when is my appointment please")
    assert asked_at_end_of_turn == [1, 2, 3]
    assert len(model.prompts) == 3
    assert model.cancelled == 0


async def test_preemptive_generation_off() -> None:
    """Options of the session are merged into those of the call."""
    model = _says("It is at four.")
    options = {"turn_handling": {"preemptive_generation": {"enabled": False}}}
    asked: list[int] = []

    class Watcher(Agent):
        async def on_user_turn_completed(
            self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
        ) -> None:
            asked.append(len(model.prompts))

    async with SimulatedCall(model, session_options=options) as call:
        await call.start(Watcher(instructions=""))
        await call.caller_says("when is my appointment please")
        assert call.session.options.endpointing["min_delay"] == 0.5 / 20
    assert asked == [0]
    assert len(model.prompts) == 1


async def test_prompts_stay_as_they_were() -> None:
    """A recorded prompt holds the history of its moment, and what the caller had said by then."""
    model = _says("Yes.")
    async with SimulatedCall(model) as call:
        await call.start(_agent())
        await call.caller_says("one and only")
        await call.caller_says("and another", finals=["and", "another"])
    said = [
        [message.text_content for message in prompt.messages() if message.role != "system"]
        for prompt in model.prompts
    ]
    assert said[0] == ["one and only"]
    assert said[1:] == [
        ["one and only", "Yes.", "and"],
        ["one and only", "Yes.", "and another"],
    ]


async def test_cancelled_streams_are_counted() -> None:
    """An answer that the host gives up before it is out counts as cancelled."""
    model = ScriptedLLM(lambda _: "Yes.", ttft_s=0.5)
    async with SimulatedCall(model) as call:
        await call.start(_agent())
        await call.caller_says("this and that", finals=["this", "and that"])
    assert len(model.prompts) == 2
    assert model.cancelled == 1


@pytest.mark.parametrize("synchronized", [True, False])
async def test_barge_in(synchronized: bool) -> None:
    """A caller who speaks over the agent interrupts it; the item holds what was heard of it."""
    async with SimulatedCall(
        ScriptedLLM(lambda chat_ctx: LONG if len(_said(chat_ctx)) == 1 else "All right."),
        synchronized=synchronized,
    ) as call:
        await call.start(_agent())
        await call.caller_says("when is my appointment", wait="committed")
        assert len(call.spoken) == 1
        await call.barge_in("stop that is enough")
    caller, cut, again, answer = call.spoken
    assert (caller.speaker, again.speaker) == ("caller", "caller")
    assert cut.speaker == "agent"
    assert cut.interrupted
    if synchronized:
        assert _is_cut_short(cut, LONG)
        assert len(cut.text.split()) <= 12
    assert (answer.speaker, answer.text, answer.interrupted) == ("agent", "All right.", False)


def _said(chat_ctx: llm.ChatContext) -> list[str]:
    return [m.text_content or "" for m in chat_ctx.messages() if m.role == "user"]


async def test_barge_in_by_seconds() -> None:
    """How much of the agent is heard follows from when the caller barges in."""
    lengths = []
    for after_s in (1.0, 6.0):
        async with SimulatedCall(_says(LONG)) as call:
            await call.start(_agent())
            await call.caller_says("go on", wait="committed")
            await call.barge_in("wait a moment", after_s=after_s, wait="committed")
            lengths.append(len(call.spoken[1].text.split()))
    assert 1 <= lengths[0] <= 8
    assert lengths[0] + 5 < lengths[1] < len(LONG.split())


async def test_barge_in_needs_speech() -> None:
    """Barging in on an agent that has finished, or says nothing, is an error that says so."""
    async with SimulatedCall(_says("Yes."), timeout_s=0.5) as call:
        await call.start(_agent())
        await call.caller_says("go on", wait="committed")
        with pytest.raises(RuntimeError, match="had finished"):
            await call.barge_in("wait", after_words=50)
        with pytest.raises(TimeoutError, match="for the agent to speak"):
            await call.barge_in("wait")


async def test_delays() -> None:
    """Each answered caller turn has its delay, which holds the model's and the host's."""
    model = ScriptedLLM(lambda chat_ctx: None if "hush" in _said(chat_ctx) else "Yes.", ttft_s=0.2)
    async with SimulatedCall(model) as call:
        await call.start(_agent())
        await call.caller_says("a question")
        await call.types("a typed question")
        await call.agent_says("anything else")
        await call.caller_says("another question")
        await call.caller_says("hush")
        await call.agent_says("well then")
    assert len(call.delays_s) == 2
    assert all(0.1 < delay_s < 5 for delay_s in call.delays_s)


async def test_a_typed_turn() -> None:
    """A typed turn is the caller's, and is answered aloud."""
    model = _says("It is at four.")
    async with SimulatedCall(model) as call:
        await call.start(_agent())
        await call.types("when is it")
    assert _words(call) == [("caller", "when is it"), ("agent", squash("It is at four."))]
    assert len(model.prompts) == 1
    assert call.delays_s == []


async def test_typing_interrupts() -> None:
    """A turn typed while the agent speaks interrupts it, as in a room."""
    model = ScriptedLLM(lambda chat_ctx: LONG if len(_said(chat_ctx)) == 1 else "All right.")
    async with SimulatedCall(model) as call:
        await call.start(_agent())
        await call.caller_says("when is it", wait="committed")
        assert await call.hears()
        await call.types("never mind")
    assert _is_cut_short(call.spoken[1], LONG)
    assert call.spoken[-1].text == "All right."


async def test_the_agent_speaks_first() -> None:
    """What the agent says of its own accord is heard to the end, without asking the model."""
    model = _says("Yes.")
    async with SimulatedCall(model) as call:
        await call.start(_agent())
        await call.agent_says("Good morning, how can I help?")
        assert _words(call) == [("agent", squash("Good morning, how can I help?"))]
        assert model.prompts == []


class Clerk(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You look things up.")
        self.asked: list[str] = []

    @function_tool
    async def look_up(self, day: str) -> str:
        """Look up a day.

        Args:
            day: The day.
        """
        self.asked.append(day)
        await asyncio.sleep(0.05)
        return f"nothing on {day}"

    @function_tool
    async def transfer(self) -> Agent:
        """Hand over to the expert."""
        return Expert()


class Expert(Agent):
    def __init__(self) -> None:
        super().__init__(instructions="You know it all.")

    async def on_enter(self) -> None:
        await asyncio.sleep(0.02)
        self.session.say("The expert speaking.")


@pytest.mark.parametrize("text", ["", "One moment."])
async def test_a_tool_call(text: str) -> None:
    """A tool call runs the agent's tool and its output is answered, within the wait for the reply."""

    def answer(chat_ctx: llm.ChatContext) -> Answer:
        if isinstance(chat_ctx.items[-1], llm.FunctionCallOutput):
            return f"There is {chat_ctx.items[-1].output}."
        return ToolCall("look_up", {"day": "friday"}, text=text)

    clerk = Clerk()
    model = ScriptedLLM(answer)
    async with SimulatedCall(model) as call:
        await call.start(clerk)
        await call.caller_says("what is on friday")
    assert clerk.asked == ["friday"]
    assert len(model.prompts) == 2
    spoken = [turn.text for turn in call.spoken]
    assert spoken == ["what is on friday", *([text] if text else []), "There is nothing on friday."]
    assert len(call.delays_s) == 1


async def test_two_tool_calls_at_once() -> None:
    """A sequence of tool calls is made in one answer."""

    def answer(chat_ctx: llm.ChatContext) -> Answer:
        if isinstance(chat_ctx.items[-1], llm.FunctionCallOutput):
            return "Nothing at all."
        return [ToolCall("look_up", {"day": "friday"}), ToolCall("look_up", {"day": "monday"})]

    clerk = Clerk()
    async with SimulatedCall(ScriptedLLM(answer)) as call:
        await call.start(clerk)
        await call.caller_says("what is on friday and monday")
    assert sorted(clerk.asked) == ["friday", "monday"]
    assert call.spoken[-1].text == "Nothing at all."


async def test_a_handoff() -> None:
    """A tool that returns another agent hands the call over, and that one is spoken to next."""

    def answer(chat_ctx: llm.ChatContext) -> Answer:
        return ToolCall("transfer") if "an expert please" in _said(chat_ctx)[-1:] else "I see."

    async with SimulatedCall(ScriptedLLM(answer)) as call:
        await call.start(Clerk())
        await call.caller_says("hello there")
        await call.caller_says("an expert please")
        assert isinstance(call.session.current_agent, Expert)
        assert call.spoken[-1].text == "The expert speaking."
        await call.caller_says("at last")
        assert [turn.text for turn in call.spoken[-2:]] == ["at last", "I see."]


class AskName(AgentTask[str]):
    def __init__(self, question: str) -> None:
        super().__init__(instructions="You ask for a name.")
        self.question = question

    async def on_enter(self) -> None:
        if self.question:
            self.session.say(self.question)

    @function_tool
    async def take_name(self, name: str) -> None:
        """Take the name.

        Args:
            name: The name.
        """
        self.complete(name)


class Receptionist(Agent):
    def __init__(self, question: str) -> None:
        super().__init__(instructions="You receive callers.")
        self.question = question

    async def on_enter(self) -> None:
        await self.session.generate_reply(instructions="Greet the caller.")

    @function_tool
    async def register(self) -> str:
        """Register the caller."""
        name = await AskName(self.question)
        await asyncio.sleep(0.05)
        return f"registered {name}"


@pytest.mark.parametrize("question", ["And your name?", ""])
async def test_a_task_within_a_tool(question: str) -> None:
    """An agent's greeting is waited for, and a task that a tool hands the call to is spoken to."""

    def answer(chat_ctx: llm.ChatContext) -> Answer:
        said = _said(chat_ctx)
        last = chat_ctx.items[-1]
        if not said:
            return "Good morning."
        if isinstance(last, llm.FunctionCallOutput):
            return f"You are {last.output}."
        return ToolCall("take_name", {"name": "ada"}) if said[-1] == "ada" else ToolCall("register")

    async with SimulatedCall(ScriptedLLM(answer)) as call:
        await call.start(Receptionist(question))
        await call.settle()
        assert [turn.text for turn in call.spoken] == ["Good morning."]
        await call.caller_says("sign me up")
        assert isinstance(call.session.current_agent, AskName)
        assert call.spoken[-1].text == (question or "sign me up")
        await call.caller_says("ada")
        assert call.spoken[-1].text == "You are registered ada."
        assert isinstance(call.session.current_agent, Receptionist)


async def test_hang_up_while_the_agent_speaks() -> None:
    """Of an answer cut off by a hang-up the host keeps what was heard."""
    async with SimulatedCall(_says(LONG)) as call:
        await call.start(_agent())
        await call.caller_says("when is my appointment", wait="committed")
        assert await call.hears(after_words=8)
        await call.hang_up()
        assert [turn.speaker for turn in call.spoken] == ["caller", "agent"]
        assert _is_cut_short(call.spoken[1], LONG)


async def test_hang_up_before_the_turn_ends() -> None:
    """What the caller said last is committed at the close, though the turn had not ended."""
    options = {"turn_handling": {"endpointing": {"min_delay": 20.0, "max_delay": 30.0}}}
    async with SimulatedCall(_says("Never said."), session_options=options) as call:
        await call.start(_agent())
        await call.caller_says("one last thing", wait="none")
        assert call.spoken == []
        await call.hang_up()
        assert _words(call) == [("caller", "one last thing")]


async def test_hang_up_twice_and_unstarted() -> None:
    """Hanging up again, or on a call never started, does nothing; a closed call says that it is."""
    call = SimulatedCall(_says("Yes."))
    await call.hang_up()
    async with SimulatedCall(_says("Yes."), timeout_s=5) as call:
        await call.start(_agent())
        await call.hang_up()
        with pytest.raises(RuntimeError, match="the call is over"):
            await call.settle()
        with pytest.raises(RuntimeError, match="the call is over"):
            await call.caller_says("hello")


async def test_a_dropped_turn() -> None:
    """A turn that the agent drops is seen by settling; waiting for it fails, naming the way out."""

    class Deaf(Agent):
        async def on_user_turn_completed(
            self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
        ) -> None:
            await asyncio.sleep(0.02)
            raise StopResponse

    async with SimulatedCall(_says("Yes."), timeout_s=1.0) as call:
        await call.start(Deaf(instructions=""))
        await call.caller_says("hello", wait="none")
        await call.settle()
        assert call.spoken == []
        with pytest.raises(TimeoutError, match="wait='none'"):
            await call.caller_says("hello")


async def test_speech_that_must_not_be_interrupted() -> None:
    """A caller who speaks over uninterruptible speech is not answered, and nothing hangs."""
    async with SimulatedCall(_says("Yes.")) as call:
        await call.start(_agent())
        call.session.say(LONG, allow_interruptions=False)
        await call.barge_in("stop", wait="none")
        await call.settle()
    assert _words(call) == [("agent", squash(LONG))]


async def test_a_model_that_fails() -> None:
    """A failing model leaves the caller's turn unanswered; the call goes on."""

    def answer(chat_ctx: llm.ChatContext) -> Answer:
        if _said(chat_ctx)[-1] == "hello":
            raise LookupError("the script has no such turn")
        return "Yes."

    logger = logging.getLogger("livekit.agents")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        async with SimulatedCall(ScriptedLLM(answer)) as call:
            await call.start(_agent())
            await call.caller_says("hello")
            await call.caller_says("hello again")
    finally:
        logger.setLevel(before)
    assert [turn.text for turn in call.spoken] == ["hello", "hello again", "Yes."]


async def test_arguments_are_checked() -> None:
    """A turn needs words, and a speed is above 0."""
    with pytest.raises(InvalidArgumentError, match="speed"):
        SimulatedCall(_says("Yes."), speed=0)
    async with SimulatedCall(_says("Yes.")) as call:
        await call.start(_agent())
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
    async with SimulatedCall(ScriptedLLM.following(script)) as call:
        await call.start(_agent())
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
    async with SimulatedCall(ScriptedLLM.following(script)) as call:
        await call.start(_agent())
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
    async with SimulatedCall(ScriptedLLM.following(script)) as call:
        await call.start(_agent())
        for text in ("hello", "hello", "hello", "something else", "bye"):
            await call.caller_says(text)
    assert [turn.text for turn in call.spoken if turn.speaker == "agent"] == [
        "first",
        "second",
        "second",
    ]


async def test_replay_of_a_real_call(data_dir: Path) -> None:
    """Every spoken turn of a call is spoken once, in order, with its words."""
    script = next(
        script
        for script in read_calls(data_dir / "calls" / "calls.dev.jsonl")
        if len(script.spoken) == 20
    )
    model = ScriptedLLM.following(script)
    async with SimulatedCall(model, speed=200) as call:
        await call.start(_agent())
        await replay(call, script)
    assert _words(call) == [(turn.speaker, squash(turn.text)) for turn in script.spoken]
    assert len(call.delays_s) == sum(turn.speaker == "agent" for turn in script.spoken)
    assert len(model.prompts) == sum(turn.speaker == "caller" for turn in script.spoken)


async def test_calls_at_the_same_time(data_dir: Path) -> None:
    """Eight calls run in one event loop, and none hears another."""
    scripts = [
        script
        for script in read_calls(data_dir / "calls" / "calls.dev.jsonl")
        if len(script.spoken) <= 16
    ][:8]

    async def play(script: CallScript) -> list[tuple[str, str]]:
        async with SimulatedCall(ScriptedLLM.following(script), speed=200) as call:
            await call.start(_agent())
            await replay(call, script)
        return _words(call)

    spoken = await asyncio.gather(*map(play, scripts))
    assert len(spoken) == 8
    for script, words in zip(scripts, spoken, strict=True):
        assert words == [
            (turn.speaker, squash(turn.text)) for turn in script.spoken if squash(turn.text)
        ]
