"""The LiveKit plugin inside a real AgentSession: what it remembers, what it adds, and what the host sees."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import pytest
from livekit.agents import (
    NOT_GIVEN,
    Agent,
    AgentSession,
    AgentTask,
    ModelSettings,
    RunContext,
    StopResponse,
    function_tool,
    llm,
)
from livekit.agents.voice.run_result import RunResult
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.testing import (
    Answer,
    ScriptedLLM,
    SimulatedCall,
    ToolCall,
    replay,
)

from moss_voice import CallContext, CallMemory, DocumentInfo, Hit, MossClient, PiiRedactor
from moss_voice.call.context import tokens
from moss_voice.calls import CallScript, read_calls
from moss_voice.errors import CloudUnavailableError, IndexNotFoundError, InvalidArgumentError
from moss_voice.text import squash

PATIENT_MS = 30_000.0
BLOCK = "<call_memory>"
Prompts = Sequence[llm.ChatContext]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[MossClient]:
    client = make_client(tmp_path)
    async with client:
        yield client


def make_client(folder: Path) -> MossClient:
    return MossClient(
        cloud=folder / "cloud", cache_path=folder / "cache", journal_path=folder / "journal"
    )


def written(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def journals(folder: Path) -> list[Path]:
    return list((folder / "journal").rglob("*.journal"))


async def attach(session: AgentSession[Any], client: MossClient, **options: Any) -> CallMemory:
    """Attach with a deadline that a busy machine does not miss."""
    return await moss_voice.attach(
        session, client, **{"call_id": "call", "deadline_ms": PATIENT_MS, **options}
    )


def typed_session(model: llm.LLM[Any], **options: Any) -> AgentSession[Any]:
    """A session without a voice: what is typed comes in, what is said is text."""
    return AgentSession(llm=model, vad=None, turn_handling={"turn_detection": None}, **options)


async def stored(client: MossClient, name: str = "call") -> list[DocumentInfo]:
    async with await client.session(name) as session:
        return await session.get_docs()


def told(docs: Sequence[DocumentInfo]) -> list[tuple[str, str]]:
    return [(str((doc.metadata or {})["speaker"]), doc.text) for doc in docs]


def texts(chat_ctx: llm.ChatContext) -> list[str]:
    return [message.raw_text_content or "" for message in chat_ctx.messages()]


def blocks(chat_ctx: llm.ChatContext) -> list[str]:
    return [text for text in texts(chat_ctx) if BLOCK in text]


def says(text: str) -> Callable[[llm.ChatContext], Answer]:
    return lambda chat_ctx: text


def last_user(chat_ctx: llm.ChatContext) -> str:
    messages = [m for m in chat_ctx.messages() if m.role == "user" and BLOCK not in texts_of(m)]
    return texts_of(messages[-1]) if messages else ""


def texts_of(message: llm.ChatMessage) -> str:
    return message.raw_text_content or ""


# --- what is remembered ------------------------------------------------------------------------------


@pytest.mark.slow
async def test_every_spoken_turn_of_real_calls_is_pushed_exactly_once(
    data_dir: Path, client: MossClient
) -> None:
    """12 calls of 8 sources, spoken in a real session: index, host and script tell the same turns."""
    scripts = _varied(list(read_calls(data_dir / "calls" / "calls.dev.jsonl")), 12)

    async def run(script: CallScript) -> None:
        call = SimulatedCall(ScriptedLLM.following(script))
        memory = await attach(call.session, client, call_id=script.id)
        async with call:
            await call.start(Agent(instructions="Help the caller."))
            await replay(call, script)
        docs = await stored(client, script.id)
        assert told(docs) == [(turn.speaker, turn.text) for turn in call.spoken]
        assert [doc.id for doc in docs] == [turn.item_id for turn in call.spoken]
        said = [(turn.speaker, squash(turn.text)) for turn in script.spoken if squash(turn.text)]
        heard = [(turn.speaker, squash(turn.text)) for turn in call.spoken]
        if not any(turn.interrupted for turn in call.spoken):
            assert heard == said
        assert len(heard) == len(said)
        assert memory.counters.failed == 0
        assert [(doc.metadata or {})["turn"] for doc in docs] == list(range(1, len(docs) + 1))

    for start in range(0, len(scripts), 4):
        await asyncio.gather(*map(run, scripts[start : start + 4]))


async def test_what_is_redacted_is_remembered_without_it(
    client: MossClient, tmp_path: Path
) -> None:
    """The host's own history has the words; memory, journal, cloud and blocks have them not, nor twice."""
    card = "4242 4242 4242 4242"
    model = ScriptedLLM(says("noted"))
    session = typed_session(model)
    memory = await attach(session, client, redact=PiiRedactor(), window=2)
    await session.start(Agent(instructions=""))
    await session.run(user_input=f"my card is {card} and my hotel is the Astoria")
    assert card in "".join(texts(session.history))
    await session.run(user_input="which hotel and which card did I name")
    assert any("[card number]" in hit.text for hit in await memory.recall("hotel card"))
    for prompt in model.prompts:
        assert card not in "".join(blocks(prompt))
    # What the LLM sees itself is not told again, however it is kept.
    seen = await memory.context("hotel", seen=[f"my card is {card} and my hotel is the Astoria"])
    assert "Astoria" not in seen.text
    await session.aclose()
    assert not any(card.encode() in data for data in written(tmp_path))
    assert "[card number]" in (await stored(client))[0].text


def _varied(scripts: list[CallScript], count: int) -> list[CallScript]:
    """Some of each source in turn."""
    by_source: dict[str, list[CallScript]] = {}
    for script in scripts:
        by_source.setdefault(script.source, []).append(script)
    chosen: list[CallScript] = []
    while len(chosen) < count:
        for of_source in by_source.values():
            if of_source and len(chosen) < count:
                chosen.append(of_source.pop(0))
    return chosen


async def test_a_barge_in_is_remembered_as_far_as_it_was_spoken(client: MossClient) -> None:
    """What the caller never heard is not in the index."""
    full = " ".join(f"word{n}" for n in range(40))
    model = ScriptedLLM(
        lambda ctx: full if last_user(ctx) == "tell me everything" else "all right then"
    )
    call = SimulatedCall(model, speed=10.0)
    await attach(call.session, client)
    async with call:
        await call.start(Agent(instructions=""))
        await call.caller_says("tell me everything", wait="committed")
        await call.barge_in("stop that please")
    docs = await stored(client)
    assert told(docs) == [(turn.speaker, turn.text) for turn in call.spoken]
    cut = docs[1]
    assert (cut.metadata or {})["interrupted"] is True
    assert cut.text
    assert full.startswith(cut.text.strip())
    assert len(cut.text) < len(full)


async def test_several_finals_are_one_turn_with_speaker_and_confidence(client: MossClient) -> None:
    """A turn that the recogniser delivers in pieces is remembered once, with who and how sure."""
    call = SimulatedCall(ScriptedLLM(says("noted")))
    await attach(call.session, client)
    async with call:
        await call.start(Agent(instructions=""))
        await call.caller_says(
            "my name is Ibarra and I live in Leeds",
            finals=["my name is Ibarra", "and I live in Leeds"],
            speaker_id="S2",
            confidence=0.75,
        )
    first, answer = await stored(client)
    assert squash(first.text) == "my name is ibarra and i live in leeds"
    metadata = first.metadata or {}
    assert metadata["speaker_id"] == "S2"
    assert metadata["confidence"] == pytest.approx(0.75)
    assert "unanswered" not in metadata
    assert (answer.metadata or {})["agent"] == "default_agent"


async def test_typed_turns_are_remembered_as_typed(client: MossClient) -> None:
    """Typed input, for which LiveKit calls no turn hook, is in the index, and spoken input beside it."""
    call = SimulatedCall(ScriptedLLM(says("noted")))
    await attach(call.session, client)
    async with call:
        await call.start(Agent(instructions=""))
        await call.caller_says("I will type my order number")
        await call.types("4417-B")
    docs = await stored(client)
    assert [text for _, text in told(docs)] == [
        "I will type my order number",
        "noted",
        "4417-B",
        "noted",
    ]
    assert [(doc.metadata or {}).get("typed") for doc in docs] == [None, None, True, None]


class _Deaf(Agent):
    """Ignores every turn, as an agent that waits for a wake word does."""

    async def on_user_turn_completed(
        self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
    ) -> None:
        raise StopResponse


async def test_what_the_app_takes_no_notice_of_was_said_all_the_same(client: MossClient) -> None:
    """A turn that the host drops is nowhere in its events; it is kept, once, and marked."""
    call = SimulatedCall(ScriptedLLM(says("never")))
    await attach(call.session, client)
    async with call:
        await call.start(_Deaf(instructions=""))
        await call.caller_says("my locker code is 5519", wait="none")
        await call.settle()
    docs = await stored(client)
    assert told(docs) == [("caller", "my locker code is 5519")]
    assert (docs[0].metadata or {})["unanswered"] is True
    assert not call.spoken


class _Redacting(Agent):
    async def on_user_turn_completed(
        self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
    ) -> None:
        new_message.content = ["my card is [card number]"]


async def test_a_turn_that_the_app_rewrites_is_remembered_as_rewritten(
    client: MossClient, tmp_path: Path
) -> None:
    """What an app blacks out does not come back through the recogniser's finals."""
    call = SimulatedCall(ScriptedLLM(says("thank you")))
    await attach(call.session, client)
    async with call:
        await call.start(_Redacting(instructions=""))
        await call.caller_says("my card is four one one one two two two two")
    assert told(await stored(client)) == [
        ("caller", "my card is [card number]"),
        ("agent", "thank you"),
    ]
    assert not journals(tmp_path)


async def test_a_hang_up_keeps_the_words_of_a_turn_that_had_not_ended(client: MossClient) -> None:
    """The caller's last words and the agent's cut-off sentence are both in the index."""
    full = " ".join(f"word{n}" for n in range(60))
    call = SimulatedCall(ScriptedLLM(says(full)), speed=10.0)
    await attach(call.session, client)
    async with call:
        await call.start(Agent(instructions=""))
        await call.caller_says("what are your opening hours", wait="committed")
        await call.caller_says("never mind goodbye", wait="none")
    docs = await stored(client)
    assert told(docs) == [(turn.speaker, turn.text) for turn in call.spoken]
    assert squash("never mind goodbye") in [squash(doc.text) for doc in docs]


# --- what is added, and what is not ------------------------------------------------------------------


async def _recall_scene(client: MossClient | None, *, window: int) -> ScriptedLLM:
    """Say a fact, 60 turns of other things, and ask for it."""
    model = ScriptedLLM(says("I see"))
    session = typed_session(model)
    agent: Agent = Agent(instructions="You help.")
    if client is not None:
        await attach(session, client, window=window)
    else:
        agent = _Windowed(window)
    await session.start(agent)
    await session.run(user_input="the booking is under the name Ibarra")
    for number in range(30):
        await session.run(user_input=f"what about the weather in town number {number}")
    await session.run(user_input="which name is the booking under")
    await session.aclose()
    return model


class _Windowed(Agent):
    """What an engineer without us does about a long history."""

    def __init__(self, window: int) -> None:
        super().__init__(instructions="You help.")
        self._window = window

    async def llm_node(
        self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
    ) -> AsyncIterator[Any]:
        short = chat_ctx.copy().truncate(max_items=self._window)
        async for chunk in Agent.default.llm_node(self, short, tools, model_settings):
            yield chunk


async def test_a_fact_out_of_the_window_is_in_the_prompt_only_with_us(client: MossClient) -> None:
    """An agent whose window holds 12 items fails without us and passes with us, 60 turns later."""
    without = await _recall_scene(None, window=12)
    assert not any("Ibarra" in text for text in texts(without.prompts[-1]))
    model = await _recall_scene(client, window=12)
    prompt = model.prompts[-1]
    (block,) = blocks(prompt)
    assert "Ibarra" in block
    assert texts(prompt)[-1] == "which name is the booking under"
    assert texts(prompt)[-2] == block
    assert texts(prompt)[0] == "You help."
    # The instructions, the window, and the block.
    assert len(prompt.items) == 1 + 12 + 1


async def test_history_and_prompt_stay_clean_after_200_turns(client: MossClient) -> None:
    """No injected text in any history, one block at most in a prompt, within its budget; never repeated."""
    await client.create_index("faq", _faq())
    model = ScriptedLLM(lambda ctx: f"answer to: {last_user(ctx)}")
    session = typed_session(model)
    memory = await attach(session, client, knowledge=["faq"], window=20, max_tokens=200)
    agent = Agent(instructions="You help.")
    await session.start(agent)
    for number in range(100):
        await session.run(user_input=f"question {number} about parcel {number % 7} and its refund")
    assert memory.counters.turns == 200
    for history in (session.history, agent.chat_ctx):
        assert not any(BLOCK in text for text in texts(history))
    with_block = [prompt for prompt in model.prompts if blocks(prompt)]
    assert len(with_block) > 90
    for prompt in model.prompts:
        found = blocks(prompt)
        assert len(found) <= 1
        assert all(tokens(block) <= 200 for block in found)
        for text in texts(prompt):
            if BLOCK not in text and text != "You help.":
                assert not any(f"] {text}\n" in block for block in found)
        # Instructions, 20 items, a block, and what the turn itself added.
        assert len(prompt.items) <= 1 + 20 + 1 + 1
    await session.aclose()
    docs = await stored(client)
    assert len(docs) == 200
    assert not any(BLOCK in doc.text for doc in docs)


def _faq() -> list[DocumentInfo]:
    return [
        DocumentInfo("refund", "A refund takes five working days to arrive."),
        DocumentInfo("parcel", "A lost parcel is searched for within two weeks."),
        DocumentInfo("hours", "We are open from nine to five on weekdays."),
        DocumentInfo("pets", "Dogs are welcome in the garden of the cafe."),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("preemptive", [True, False])
async def test_the_llm_is_asked_as_often_as_without_us(
    client: MossClient, preemptive: bool
) -> None:
    """Speculative replies are kept: as many requests as without us, and as many thrown away."""
    await client.create_index("faq", _faq())
    lines = [
        "hello I have a question about my refund",
        "it was for a lost parcel",
        "are you open on saturday",
        "can I bring my dog",
    ]

    async def run(with_us: bool) -> tuple[int, int, int]:
        model = ScriptedLLM(says("let me see what I can do"))
        options = {"preemptive_generation": {"enabled": preemptive}}
        call = SimulatedCall(model, session_options={"turn_handling": options})
        if with_us:
            await attach(call.session, client, knowledge=["faq"])
        async with call:
            await call.start(Agent(instructions=""))
            for line in lines:
                await call.caller_says(line)
        injected = sum(bool(blocks(prompt)) for prompt in model.prompts)
        return len(model.prompts), model.cancelled, injected

    asked, cancelled, injected = await run(with_us=False)
    assert injected == 0
    assert await run(with_us=True) == (asked, cancelled, len(lines))
    assert asked == len(lines)


async def test_a_tool_reply_has_the_block_once(client: MossClient) -> None:
    """Both runs of a turn with a tool see one block, just before the user's words."""
    await client.create_index("faq", _faq())

    class Clerk(Agent):
        @function_tool
        async def look_up_order(self, number: str) -> str:
            """Look up an order."""
            return f"order {number} is on its way"

    def reply(chat_ctx: llm.ChatContext) -> Answer:
        if chat_ctx.items[-1].type == "function_call_output":
            return "it is on its way"
        return ToolCall("look_up_order", {"number": "77"}, text="one moment")

    model = ScriptedLLM(reply)
    call = SimulatedCall(model)
    await attach(call.session, client, knowledge=["faq"])
    async with call:
        await call.start(Clerk(instructions=""))
        await call.caller_says("when does the refund for order 77 arrive")
    assert len(model.prompts) == 2
    for prompt in model.prompts:
        (block,) = blocks(prompt)
        assert "five working days" in block
        assert texts(prompt).index(block) + 1 == texts(prompt).index(
            "when does the refund for order 77 arrive"
        )
        assert "] when does" not in block
    assert not any(BLOCK in text for text in texts(call.session.history))
    assert [text for _, text in told(await stored(client))] == [
        "when does the refund for order 77 arrive",
        "one moment",
        "it is on its way",
    ]


async def test_tools_let_the_llm_look_for_itself(client: MossClient) -> None:
    """`tools=True` offers both lookups; what they have told is not told again by the block."""
    await client.create_index("faq", _faq())

    def reply(chat_ctx: llm.ChatContext) -> Answer:
        outputs = [item for item in chat_ctx.items if item.type == "function_call_output"]
        if last_user(chat_ctx).startswith("my dog"):
            return "lovely"
        if not outputs:
            return ToolCall("search_knowledge", {"query": "dogs in the cafe"})
        if len(outputs) == 1:
            return ToolCall("recall_call", {"query": "name of the dog"})
        return "yes"

    model = ScriptedLLM(reply)
    session = typed_session(model)
    await attach(session, client, knowledge=["faq"], tools=True, top_k=1)
    await session.start(Agent(instructions=""))
    await session.run(user_input="my dog is called Biscuit")
    result: RunResult[Any] = await session.run(user_input="may I bring him")
    result.expect.contains_function_call(name="search_knowledge")
    result.expect.contains_function_call(name="recall_call")
    outputs = [i.output for i in model.prompts[-1].items if i.type == "function_call_output"]
    assert "Dogs are welcome" in outputs[0]
    assert "Biscuit" in outputs[1]
    assert not any("Dogs are welcome" in block for block in blocks(model.prompts[-1]))
    await session.aclose()


async def test_a_tool_of_the_users_own_keeps_its_name(client: MossClient) -> None:
    """LiveKit refuses a name that is there twice, and with it every reply: ours steps back."""

    class Clerk(Agent):
        @function_tool
        async def search_knowledge(self, query: str) -> str:
            """The user's own."""
            return "the user's own answer"

    def reply(chat_ctx: llm.ChatContext) -> Answer:
        if chat_ctx.items[-1].type == "function_call_output":
            return str(chat_ctx.items[-1].output)
        return ToolCall("search_knowledge", {"query": "dogs"})

    session = typed_session(ScriptedLLM(reply))
    await attach(session, client, tools=True)
    await session.start(Clerk(instructions=""))
    result: RunResult[Any] = await session.run(user_input="may I bring my dog")
    result.expect.contains_message(role="assistant")
    assert texts(session.history)[-1] == "the user's own answer"
    await session.aclose()


# --- agents ------------------------------------------------------------------------------------------


class _Specialist(Agent):
    """Starts with nothing but its instructions, and with a word of its own."""

    def __init__(self, model: llm.LLM[Any] | None = None) -> None:
        super().__init__(
            instructions="You are the specialist.", llm=NOT_GIVEN if model is None else model
        )

    async def on_enter(self) -> None:
        await self.session.generate_reply(instructions="Go on where your colleague left off.")


class _Frontline(Agent):
    def __init__(self, model: llm.LLM[Any] | None = None) -> None:
        super().__init__(instructions="You are the frontline.")
        self._model = model

    @function_tool
    async def transfer(self) -> Agent:
        """Hand over to a specialist."""
        return _Specialist(self._model)


@pytest.mark.parametrize("own_llm", [False, True])
async def test_a_handoff_goes_on_with_what_was_said(client: MossClient, own_llm: bool) -> None:
    """A fresh agent, with an LLM of its own or not, knows what the caller said before it came."""

    def reply(chat_ctx: llm.ChatContext) -> Answer:
        if "specialist" in texts(chat_ctx)[0]:
            return "I have your case here"
        return ToolCall("transfer") if "transfer" in last_user(chat_ctx) else "I see"

    model, own = ScriptedLLM(reply), ScriptedLLM(reply)
    call = SimulatedCall(model)
    await attach(call.session, client)
    async with call:
        await call.start(_Frontline(own if own_llm else None))
        await call.caller_says("my router has the serial number kilo seven nine")
        await call.caller_says("please transfer me to somebody about the router")
        await call.caller_says("do you have the serial number of my router")
    prompts = own.prompts if own_llm else [p for p in model.prompts if "specialist" in texts(p)[0]]
    greeting, answer = prompts[0], prompts[-1]
    (block,) = blocks(greeting)
    assert "transfer me to somebody about the router" in block
    assert texts(greeting)[-1] == "Go on where your colleague left off."
    (block,) = blocks(answer)
    assert "kilo seven nine" in block
    docs = await stored(client)
    assert told(docs) == [(turn.speaker, turn.text) for turn in call.spoken]
    agents = [(doc.metadata or {}).get("agent") for doc in docs]
    assert agents[1] != agents[-1]


async def test_an_agent_task_is_remembered_and_gives_its_agent_back(client: MossClient) -> None:
    """A task within a tool hears and is heard; the agent that resumes is served as before."""

    class AskName(AgentTask[str]):
        def __init__(self) -> None:
            super().__init__(instructions="Ask for the name.")

        async def on_enter(self) -> None:
            await self.session.generate_reply(instructions="ask the caller's name")

        @function_tool
        async def got_name(self, name: str) -> None:
            """Take down the name."""
            self.complete(name)

    class Clerk(Agent):
        @function_tool
        async def check_in(self, context: RunContext[Any]) -> str:
            """Check the caller in."""
            return f"checked in {await AskName()}"

    def reply(chat_ctx: llm.ChatContext) -> Answer:
        if texts(chat_ctx)[0] == "Ask for the name.":
            said = last_user(chat_ctx)
            return ToolCall("got_name", {"name": said}) if said == "Ottoline" else "your name?"
        if chat_ctx.items[-1].type == "function_call_output":
            return "you are checked in"
        return ToolCall("check_in") if last_user(chat_ctx) == "check me in" else "fine"

    model = ScriptedLLM(reply)
    session = typed_session(model)
    memory = await attach(session, client, window=2)
    await session.start(Clerk(instructions="You check people in."))
    await session.run(user_input="my luggage is a green trunk")
    await session.run(user_input="check me in")
    await session.run(user_input="Ottoline")
    await session.run(user_input="thanks a lot, lovely weather today")
    await session.run(user_input="what colour is my luggage trunk")
    await session.aclose()
    assert any("green trunk" in block for block in blocks(model.prompts[-1]))
    said = [text for _, text in told(await stored(client))]
    for text in ("check me in", "your name?", "Ottoline", "you are checked in"):
        assert said.count(text) == 1, text
    assert memory.counters.failed == 0


async def test_an_agent_speaks_of_its_own_accord_without_a_block(client: MossClient) -> None:
    """A greeting, and a word to a caller whose turn is in sight, get nothing added."""
    await client.create_index("faq", _faq())
    model = ScriptedLLM(says("hello there"))
    session = typed_session(model)
    await attach(session, client, knowledge=["faq"])
    await session.start(Agent(instructions="You help."))
    await session.generate_reply(instructions="Greet the caller and say that refunds are slow.")
    await session.run(user_input="when does my refund arrive")
    await session.generate_reply(instructions="Ask whether they are still there.")
    await session.aclose()
    assert [len(blocks(prompt)) for prompt in model.prompts] == [0, 1, 0]


async def _inner(
    kind: str, agent: Agent, chat_ctx: llm.ChatContext, tools: list[llm.Tool], settings: Any
) -> Any:
    if kind == "str":
        return "plain text"
    if kind == "none":
        return None
    if kind == "stream":
        return Agent.default.llm_node(agent, chat_ctx, tools, settings)
    raise ValueError(kind)


@pytest.mark.parametrize("kind", ["str", "none", "stream"])
async def test_a_users_own_llm_node_of_any_kind_is_served(client: MossClient, kind: str) -> None:
    """What an override returns passes through, and it sees the block."""
    seen: list[llm.ChatContext] = []

    class Own(Agent):
        async def llm_node(
            self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
        ) -> Any:
            seen.append(chat_ctx.copy())
            return await _inner(kind, self, chat_ctx, tools, model_settings)

    session = typed_session(ScriptedLLM(says("from the model")))
    await attach(session, client, window=2)
    await session.start(Own(instructions=""))
    await session.run(user_input="the gate code is 8842")
    await session.run(user_input="nice weather")
    await session.run(user_input="what is the gate code")
    await session.aclose()
    said = {"str": "plain text", "none": None, "stream": "from the model"}[kind]
    answers = [text for speaker, text in told(await stored(client)) if speaker == "agent"]
    assert answers == ([said] * 3 if said else [])
    assert any("8842" in block for block in blocks(seen[-1]))


async def test_what_a_users_llm_node_adds_stays_for_the_tool_reply(client: MossClient) -> None:
    """LiveKit keeps in-place changes for the rest of the turn; our copy must not cost them."""
    lengths: list[list[str]] = []

    class Own(Agent):
        async def llm_node(
            self, chat_ctx: llm.ChatContext, tools: list[llm.Tool], model_settings: ModelSettings
        ) -> AsyncIterator[Any]:
            if not any("be kind" in text for text in texts(chat_ctx)):
                chat_ctx.add_message(role="system", content="be kind")
            lengths.append(texts(chat_ctx))
            async for chunk in Agent.default.llm_node(self, chat_ctx, tools, model_settings):
                yield chunk

        @function_tool
        async def look(self) -> str:
            """Look."""
            return "seen"

    def reply(chat_ctx: llm.ChatContext) -> Answer:
        done = any(item.type == "function_call_output" for item in chat_ctx.items)
        return "done" if done else ToolCall("look")

    async def run(with_us: bool) -> list[list[str]]:
        lengths.clear()
        session = typed_session(ScriptedLLM(reply))
        if with_us:
            await attach(session, client, call_id="own", window=50)
        await session.start(Own(instructions="You help."))
        await session.run(user_input="look at it")
        assert "be kind" not in texts(session.history)
        await session.aclose()
        return [list(seen) for seen in lengths]

    assert await run(with_us=True) == await run(with_us=False)


async def test_an_agent_object_may_serve_one_session_after_another(client: MossClient) -> None:
    """Each session's replies get their own call's memory, and at the end the agent is as it was."""
    agent = Agent(instructions="You help.")
    for name, code in (("first", "1111"), ("second", "2222")):
        model = ScriptedLLM(says("noted"))
        session = typed_session(model)
        await attach(session, client, call_id=name, window=2)
        await session.start(agent)
        await session.run(user_input=f"the gate code is {code}")
        await session.run(user_input="nice weather")
        await session.run(user_input="what is the gate code")
        assert [code in block for block in blocks(model.prompts[-1])] == [True]
        await session.aclose()
        assert "llm_node" not in vars(agent)
        assert len(await stored(client, name)) == 6


async def test_attaching_late_loses_nothing(client: MossClient) -> None:
    """A session that has started already is taken up with its history and its agent."""
    model = ScriptedLLM(says("noted"))
    session = typed_session(model)
    await session.start(Agent(instructions=""))
    await session.run(user_input="the gate code is 8842")
    await attach(session, client, window=2)
    await session.run(user_input="nice weather")
    await session.run(user_input="what is the gate code")
    assert any("8842" in block for block in blocks(model.prompts[-1]))
    await session.aclose()
    assert len(await stored(client)) == 6


# --- faults ------------------------------------------------------------------------------------------


def _broken(*_: object, **__: object) -> Any:
    raise TypeError("secret transcript words")


@pytest.mark.parametrize("part", ["context", "heard", "hearing", "uttered", "end"])
async def test_a_fault_of_ours_never_reaches_the_host(
    client: MossClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    """Whatever breaks in here, the call goes on as without us, and no word of it is logged."""
    model = ScriptedLLM(says("noted"))
    call = SimulatedCall(model)
    memory = await attach(call.session, client)
    monkeypatch.setattr(memory, part, _broken)
    async with call:
        await call.start(Agent(instructions=""))
        await call.caller_says("the gate code is 8842")
        await call.caller_says("what is the gate code")
    assert [turn.speaker for turn in call.spoken] == ["caller", "agent"] * 2
    assert len(model.prompts) == 2
    ours = [r for r in caplog.records if "moss_voice" in r.name and r.levelno >= logging.ERROR]
    assert ours
    assert not any("secret" in record.getMessage() or record.exc_info for record in ours)
    monkeypatch.undo()
    await memory.end()
    assert len(await stored(client)) == (0 if part == "heard" else 4) or part == "heard"


async def test_a_callback_that_raises_costs_nothing(client: MossClient) -> None:
    """The user's own `on_context` may fail; the block is there all the same."""
    model = ScriptedLLM(says("noted"))
    session = typed_session(model)
    await attach(session, client, window=2, on_context=_broken)
    await session.start(Agent(instructions=""))
    await session.run(user_input="the gate code is 8842")
    await session.run(user_input="nice weather")
    await session.run(user_input="what is the gate code")
    assert blocks(model.prompts[-1])
    await session.aclose()


async def test_a_slow_recall_is_not_waited_for(client: MossClient) -> None:
    """What misses its deadline is left out of the reply, which goes on."""
    model = ScriptedLLM(says("noted"))
    session = typed_session(model)
    told_of: list[CallContext] = []
    memory = await attach(session, client, window=2, deadline_ms=20.0, on_context=told_of.append)
    embedder = memory.session.embedder
    assert embedder is not None
    real = type(embedder).embed_query

    class Slow(type(embedder)):  # type: ignore[misc]
        def embed_query(self, text: str) -> Any:
            time.sleep(1.0)
            return real(self, text)

    slow = object.__new__(Slow)
    slow.__dict__.update(vars(embedder))
    memory.session._embedder = slow
    await session.start(Agent(instructions=""))
    started = time.monotonic()
    await session.run(user_input="what is the gate code")
    assert time.monotonic() - started < 0.9
    assert [context.outcome for context in told_of] == ["late"]
    assert memory.counters.late == 1
    await session.aclose()


@pytest.mark.parametrize(("cache", "turns"), [("another machine's", 2), ("cache", 4)])
async def test_the_call_begins_while_its_cloud_is_away(
    client: MossClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: str, turns: int
) -> None:
    """An agent whose cloud is away knows what this machine has kept; its push merges later."""
    session = typed_session(ScriptedLLM(says("noted")))
    await attach(session, client)
    await session.start(Agent(instructions=""))
    await session.run(user_input="the gate code is 8842")
    await session.aclose()

    async def away(*_: object, **__: object) -> Any:
        raise CloudUnavailableError("away")

    async with MossClient(
        cloud=tmp_path / "cloud", cache_path=tmp_path / cache, journal_path=tmp_path / "journal"
    ) as other:
        session = typed_session(ScriptedLLM(says("noted")))
        with monkeypatch.context() as patch:
            patch.setattr("moss_voice.cloud.cloud.Cloud.read_head", away)
            memory = await attach(session, other, knowledge=["faq"])
        await session.start(Agent(instructions=""))
        await session.run(user_input="the cellar code is 1234")
        await session.aclose()
        assert memory.counters.turns == turns
        said = [text for _, text in told(await stored(other))]
    assert said == ["the gate code is 8842", "noted", "the cellar code is 1234", "noted"]


async def test_a_cloud_that_hangs_holds_up_neither_the_call_nor_its_end(
    client: MossClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Opening and closing are let go when their time is up; the journal has the call."""
    never = asyncio.Event()

    async def hang(*_: object, **__: object) -> Any:
        await never.wait()
        raise CloudUnavailableError("at last")

    with monkeypatch.context() as patch:
        patch.setattr("moss_voice.cloud.cloud.Cloud.read_head", hang)
        patch.setattr("moss_voice.cloud.cloud.Cloud.push", hang)
        session = typed_session(ScriptedLLM(says("noted")))
        memory = await attach(session, client, open_timeout_s=0.2, push_timeout_s=0.3)
        await session.start(Agent(instructions=""))
        await session.run(user_input="the gate code is 8842")
        await asyncio.wait_for(session.aclose(), 20)
        assert journals(tmp_path)
        never.set()
        await memory.end()
    assert journals(tmp_path)
    async with make_client(tmp_path) as other:
        (recovered,) = await other.recover()
        assert (recovered.turns, recovered.status) == (2, "pushed")
        assert [text for _, text in told(await stored(other))] == ["the gate code is 8842", "noted"]


async def test_the_next_agent_in_a_call_finds_what_a_dead_one_left(
    client: MossClient, tmp_path: Path
) -> None:
    """`attach` recovers the journal of its own call before it opens it."""
    memory = await client.call("call")
    await memory.heard("the gate code is 8842", id="turn-of-the-dead")
    # As the operating system does at the death of a process.
    assert memory._journal is not None
    memory._journal.close()
    async with make_client(tmp_path) as other:
        model = ScriptedLLM(says("noted"))
        session = typed_session(model)
        await attach(session, other)
        await session.start(Agent(instructions=""))
        await session.run(user_input="what is the gate code")
        assert any("8842" in block for block in blocks(model.prompts[-1]))
        await session.aclose()
        assert (await stored(other))[0].id == "turn-of-the-dead"
    assert not journals(tmp_path)


async def test_wrong_settings_are_told_before_the_call_begins(client: MossClient) -> None:
    """A knowledge index that does not exist is a mistake in the code, not an outage."""
    session = typed_session(ScriptedLLM(says("noted")))
    with pytest.raises(IndexNotFoundError):
        await attach(session, client, knowledge=["no such index"])
    assert not session.tools
    for wrong in ({"top_k": 0}, {"window": 0}, {"max_tokens": 0}, {"alpha": 2.0}):
        with pytest.raises(InvalidArgumentError):
            await attach(session, client, **wrong)


@pytest.mark.slow
async def test_a_busy_event_loop_loses_nothing(client: MossClient) -> None:
    """With the loop blocked again and again, every turn is there once and replies come."""
    call = SimulatedCall(ScriptedLLM(says("I have taken that down")))
    await attach(call.session, client)
    stop = asyncio.Event()

    async def block() -> None:
        while not stop.is_set():
            time.sleep(0.03)  # noqa: ASYNC251 - it is what the test is about
            await asyncio.sleep(0.01)

    busy = asyncio.create_task(block())
    async with call:
        await call.start(Agent(instructions=""))
        for number in range(6):
            await call.caller_says(f"item number {number} is a blue lamp")
    stop.set()
    await busy
    docs = await stored(client)
    assert told(docs) == [(turn.speaker, turn.text) for turn in call.spoken]
    assert len(docs) == 12


async def test_a_correction_by_item_id_replaces_the_turn(client: MossClient) -> None:
    """An item that comes again with other words is the same turn."""
    session = typed_session(ScriptedLLM(says("noted")))
    memory = await attach(session, client)
    await session.start(Agent(instructions=""))
    await session.run(user_input="my name is Ibara")
    item = session.history.messages()[0]
    fixed = item.model_copy(update={"content": ["my name is Ibarra"]})
    session._conversation_item_added(fixed)
    await session.aclose()
    assert [text for _, text in told(await stored(client))] == ["my name is Ibarra", "noted"]
    assert memory.counters.turns == 2


async def test_the_call_is_pushed_once_whoever_says_goodbye(
    client: MossClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toolset, the close event and the job's shutdown all end the call; one push comes of it."""
    pushes = 0
    real: Callable[..., Coroutine[Any, Any, Any]] = CallMemory._push

    async def counted(self: CallMemory) -> Any:
        nonlocal pushes
        pushes += 1
        return await real(self)

    monkeypatch.setattr(CallMemory, "_push", counted)
    session = typed_session(ScriptedLLM(says("noted")))
    memory = await attach(session, client)
    await session.start(Agent(instructions=""))
    await session.run(user_input="the gate code is 8842")
    await asyncio.gather(session.aclose(), memory.end(), session.aclose())
    await memory.end()
    assert pushes == 1
    assert len(await stored(client)) == 2


INNS = [
    DocumentInfo(f"{inn}-{topic}", f"{text} at {inn}.", {"inn": inn})
    for inn in (
        "Lamplighter Inn",
        "Quayside Lodge",
        "Marchmont House",
        "Thornbury Arms",
        "Gosforth Hall",
    )
    for topic, text in (("dogs", "Dogs are welcome"), ("parking", "Parking costs nine pounds"))
]


@pytest.mark.parametrize(
    ("options", "about", "needs"),
    [
        ({}, ["Quayside Lodge"], True),
        ({"focus": ["inn"]}, ["Quayside Lodge"], True),
        ({"focus": ()}, [], True),
        ({"without": ["focus"]}, [], True),
        ({"without": ["gate"]}, ["Quayside Lodge"], False),
    ],
)
async def test_names_are_found_by_themselves_unless_told_not_to(
    client: MossClient, options: dict[str, Any], about: list[str], needs: bool
) -> None:
    """`focus` and `without` get through to the memory; without either all of the retrieval is on."""
    await client.create_index("inns", INNS)
    memory = await attach(
        typed_session(ScriptedLLM(says("noted"))), client, knowledge=["inns"], **options
    )
    await memory.heard("can I bring my dog to the quayside lodge")
    assert memory.about == about
    context = await memory.context("can I bring my dog to the quayside lodge")
    assert (context.need is not None) is needs
    await memory.discard()


async def test_a_part_that_there_is_not_is_told(client: MossClient) -> None:
    """A wrong name is a mistake in the code: it is raised, with the names that there are."""
    with pytest.raises(InvalidArgumentError, match=r"without: .*conversation.* got gates"):
        await attach(typed_session(ScriptedLLM(says("noted"))), client, without=["gates"])


def test_hits_are_a_public_type() -> None:
    """The names that a user's callback meets are public."""
    assert CallContext.__module__ == Hit.__module__ == "moss_voice.types"
