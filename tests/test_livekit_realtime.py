"""The LiveKit plugin with realtime models: what their provider holds, is sent and is spared."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from livekit.agents import Agent, AgentSession, RunContext, StopResponse, function_tool, llm
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.prompt import BLOCK_ID
from livekit.plugins.moss_voice.realtime import _place
from livekit.plugins.moss_voice.testing import Answer, ScriptedLLM, SimulatedCall, ToolCall

from moss_voice import CallContext, CallMemory, DocumentInfo, MossClient
from tests.livekit_realtime_fake import FakeRealtimeModel, FakeRealtimeSession

PATIENT_MS = 30_000.0
BLOCK = "<call_memory>"
FAQ = [
    DocumentInfo("refund", "A refund takes five working days to arrive."),
    DocumentInfo("parcel", "A lost parcel is searched for within two weeks."),
    DocumentInfo("pets", "Dogs are welcome in the garden of the cafe."),
]
REFUND = "when does my refund arrive"
PARCEL = "what about a lost parcel"
LONG = (
    "your order has left the house and is on its way to you by train and by boat and by bicycle "
    * 3
)


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[MossClient]:
    client = MossClient(
        cloud=tmp_path / "cloud", cache_path=tmp_path / "cache", journal_path=tmp_path / "journal"
    )
    async with client:
        await client.create_index("faq", FAQ)
        yield client


@pytest.fixture
def models() -> Iterator[Callable[..., FakeRealtimeModel]]:
    """Make models, and look afterwards at what their providers were made to do."""
    made: list[FakeRealtimeModel] = []

    def make(reply: str | Callable[[llm.ChatContext], Answer] = "I see", **options: Any) -> Any:
        answer = (lambda chat_ctx: reply) if isinstance(reply, str) else reply
        made.append(FakeRealtimeModel(answer, **options))
        return made[-1]

    yield make
    for session in [session for model in made for session in model.sessions]:
        assert session.faults == []
        # Nothing but the block is ever taken from a provider.
        assert set(session.deleted) <= {BLOCK_ID}
        assert len(session.blocks(BLOCK_ID)) <= 1


@pytest.fixture(autouse=True)
async def _nothing_left() -> AsyncIterator[None]:
    """Fail where a call leaves a task behind."""
    yield
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left, left


@pytest.fixture(autouse=True)
def _no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Fail where the host, the event loop or we log an error."""
    with caplog.at_level(logging.WARNING):
        yield
    errors = [r for r in caplog.get_records("call") if r.levelno >= logging.ERROR]
    assert not errors, [r.getMessage() for r in errors]


async def attach(session: AgentSession[Any], client: MossClient, **options: Any) -> CallMemory:
    """Attach with a deadline that a busy machine does not miss."""
    told = {"call_id": "call", "deadline_ms": PATIENT_MS, "knowledge": ["faq"], **options}
    return await moss_voice.attach(session, client, **told)


def typed_session(model: Any) -> AgentSession[Any]:
    """A session without a voice: what is typed comes in, what is said is text."""
    return AgentSession(llm=model, vad=None, turn_handling={"turn_detection": None})


def spoken(model: FakeRealtimeModel, **options: Any) -> SimulatedCall:
    """A call with a recogniser of its own, in which the host tells the end of a turn."""
    return SimulatedCall(cast("llm.LLM[Any]", model), **options)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        # The host has no event for all that is waited for here.
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def hand_over(session: AgentSession[Any], agent: Agent) -> None:
    session.update_agent(agent)
    assert session._update_activity_atask is not None
    await session._update_activity_atask
    await session.wait_for_idle()


async def stored(client: MossClient) -> list[tuple[str, str]]:
    async with await client.session("call") as session:
        docs = await session.get_docs()
    assert not any(BLOCK in doc.text for doc in docs)
    ordered = sorted(docs, key=lambda doc: cast("int", (doc.metadata or {})["turn"]))
    return [(str((doc.metadata or {})["speaker"]), doc.text) for doc in ordered]


def texts(chat_ctx: llm.ChatContext) -> list[str]:
    return [message.raw_text_content or "" for message in chat_ctx.messages()]


def blocks(chat_ctx: llm.ChatContext) -> list[str]:
    return [text for text in texts(chat_ctx) if BLOCK in text]


def assert_clean(session: AgentSession[Any], *agents: Agent) -> None:
    for history in (session.history, *(agent.chat_ctx for agent in agents)):
        assert blocks(history) == []


# --- tools -------------------------------------------------------------------------------------------


async def test_the_tools_are_told_once_and_answer(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """The provider is told of both tools with the agent's own; a call of one brings the passage."""

    class Clerk(Agent):
        @function_tool
        async def look_up_order(self, number: str) -> str:
            """Look up an order."""
            return number

    def reply(chat_ctx: llm.ChatContext) -> Answer:
        last = chat_ctx.items[-1]
        if isinstance(last, llm.FunctionCallOutput):
            return "five days" if "five working days" in last.output else "no idea"
        return ToolCall("search_knowledge", {"query": "how long does a refund take"})

    # It takes blocks as little as Gemini does: the tools are all it has.
    model = models(reply, replaces=False)
    session = typed_session(model)
    await attach(session, client)
    await session.start(Clerk(instructions="You help."))
    await session.generate_reply(user_input=REFUND)
    await until(lambda: "five days" in texts(session.history))
    await session.aclose()
    assert model.now.told_tools == [["look_up_order", "recall_call", "search_knowledge"]]
    assert await stored(client) == [("caller", REFUND), ("agent", "five days")]


@pytest.mark.parametrize(
    ("tools", "told"), [(False, []), (True, ["recall_call", "search_knowledge"])]
)
async def test_the_tools_can_be_had_or_left(
    client: MossClient, models: Callable[..., FakeRealtimeModel], tools: bool, told: list[str]
) -> None:
    """`tools` has the last word, whatever the model."""
    model = models()
    session = typed_session(model)
    await attach(session, client, tools=tools)
    await session.start(Agent(instructions="You help."))
    await session.aclose()
    assert model.now.told_tools == [told]


async def test_the_tools_come_and_go_with_a_realtime_agent(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """An agent with a realtime model of its own has the tools, those before and after it do not."""
    offered: list[list[str]] = []

    class Plain(Agent):
        async def llm_node(self, chat_ctx: Any, tools: Any, model_settings: Any) -> Any:
            offered.append(sorted(llm.ToolContext(tools).function_tools))
            return "yes"

    model = models()
    session = typed_session(ScriptedLLM(lambda chat_ctx: "yes"))
    await attach(session, client)
    await session.start(Plain(instructions="You help."))
    await session.generate_reply(user_input="hello there")
    await hand_over(session, Agent(instructions="You talk.", llm=model))
    await hand_over(session, Plain(instructions="You help."))
    await session.generate_reply(user_input="hello again")
    await session.aclose()
    assert model.now.told_tools == [["recall_call", "search_knowledge"]]
    assert offered == [[], []]


# --- typed input -------------------------------------------------------------------------------------


async def test_a_typed_turn_finds_its_block(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """The model sees one block, of this very turn, before it answers; then another; then none."""
    model = models()
    session, agent = typed_session(model), Agent(instructions="You help.")
    told_of: list[CallContext] = []
    await attach(session, client, on_context=told_of.append, min_score=0.78)
    await session.start(agent)
    for line in (REFUND, PARCEL, "zebras juggle quietly"):
        await session.generate_reply(user_input=line)
    refund, parcel, none = model.prompts
    assert [len(blocks(prompt)) for prompt in model.prompts] == [1, 1, 0]
    assert "five working days" in blocks(refund)[0]
    assert "within two weeks" in blocks(parcel)[0]
    assert texts(none) == [REFUND, "I see", PARCEL, "I see", "zebras juggle quietly"]
    assert all(isinstance(i, llm.ChatMessage) and i.role != "system" for i in parcel.items)
    assert [context.outcome for context in told_of] == ["skipped", "ok", "ok", "ok"]
    assert_clean(session, agent)
    await session.aclose()
    assert len(await stored(client)) == 6


async def test_the_same_block_is_not_sent_again(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """A block that is there and still right stays where it is: a provider's cache holds."""
    model = models()
    session = typed_session(model)
    await attach(session, client)
    await session.start(Agent(instructions="You help."))
    await session.generate_reply(user_input=REFUND)
    await session.generate_reply(user_input=REFUND)
    assert model.now.created.count(BLOCK_ID) == 1
    assert [len(blocks(prompt)) for prompt in model.prompts] == [1, 1]
    await session.aclose()


async def test_a_provider_that_only_takes_in_is_sent_no_block(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """Where nothing can be replaced, the provider's context grows by nothing of ours."""
    model = models(replaces=False)
    session = typed_session(model)
    await attach(session, client)
    await session.start(Agent(instructions="You help."))
    for line in (REFUND, PARCEL):
        await session.generate_reply(user_input=line)
    await session.aclose()
    assert texts(model.prompts[-1]) == [REFUND, "I see", PARCEL]


# --- the host tells the end of a turn ----------------------------------------------------------------


async def test_a_spoken_turn_finds_its_block(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """With a recogniser in the session, the block of a turn is there when its response is asked for."""
    model = models("it will be there soon", user_transcription=False, speaks=True)
    call, agent = spoken(model), Agent(instructions="You help.")
    await attach(call.session, client)
    async with call:
        await call.start(agent)
        for line in (REFUND, PARCEL):
            model.now.line = line
            asked = len(model.prompts)
            await call.caller_says(line, wait="none")
            await until(lambda asked=asked: len(model.prompts) > asked)  # type: ignore[misc]
            await call.settle()
        assert_clean(call.session, agent)
    refund, parcel = model.prompts
    assert len(blocks(refund)) == len(blocks(parcel)) == 1
    assert "five working days" in blocks(refund)[0]
    assert "within two weeks" in blocks(parcel)[0]
    assert texts(parcel)[-1] == PARCEL
    # The provider transcribes nobody, so the host tells of no caller's message: the turns are kept.
    assert await stored(client) == [
        ("caller", REFUND),
        ("agent", "it will be there soon"),
        ("caller", PARCEL),
        ("agent", "it will be there soon"),
    ]


async def test_an_ignored_turn_has_no_reply_and_no_block(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """The agent's own `on_user_turn_completed` decides first; what it raises reaches the host."""
    completed: list[str] = []

    class Deaf(Agent):
        async def on_user_turn_completed(
            self, turn_ctx: llm.ChatContext, new_message: llm.ChatMessage
        ) -> None:
            completed.append(new_message.text_content or "")
            raise StopResponse

    model = models(user_transcription=False, speaks=True)
    call = spoken(model)
    await attach(call.session, client)
    async with call:
        await call.start(Deaf(instructions="You help."))
        await call.caller_says(REFUND, wait="none")
        await until(lambda: completed)
        await call.settle()
    assert completed == [REFUND]
    assert model.prompts == []
    assert await stored(client) == [("caller", REFUND)]


async def test_what_an_interrupted_agent_said_is_kept_once_as_heard(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """A reply that is cut off is one turn, of the words that were heard."""
    model = models(LONG, user_transcription=False, speaks=True)
    call = spoken(model)
    await attach(call.session, client)
    async with call:
        await call.start(Agent(instructions="You help."))
        model.now.line = "where is my order"
        await call.caller_says("where is my order", wait="none")
        model.now.line = "stop please that is enough for me"
        await call.barge_in("stop please that is enough for me", wait="none")
        await until(lambda: any(turn.interrupted for turn in call.spoken))
        await call.settle()
        (cut,) = [turn for turn in call.spoken if turn.interrupted]
    kept = await stored(client)
    assert kept.count(("agent", cut.text)) == 1
    assert 0 < len(cut.text) < len(LONG)
    callers = [text for speaker, text in kept if speaker == "caller"]
    assert callers == ["where is my order", "stop please that is enough for me"]


# --- the provider tells the end of a turn ------------------------------------------------------------


async def test_a_provider_s_turns_are_kept_once_and_corrected(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """Both sides are indexed by the provider's item ids; a second transcript corrects the first."""
    model = models(turn_detection=True)
    session, agent = typed_session(model), Agent(instructions="You help.")
    await attach(session, client)
    await session.start(agent)
    rt = model.now
    for number, line in enumerate((REFUND, PARCEL)):
        rt.hears(line, f"u{number}")
        await until(lambda number=number: texts(session.history).count("I see") == number + 1)  # type: ignore[misc]
        rt.transcribes("when does", f"u{number}", is_final=False)
        rt.transcribes(line, f"u{number}")
    rt.transcribes("when does my re fund arrive", "u0")
    rt.transcribes(REFUND, "u0")
    # Its own transcripts come when its model has answered: no block is sent for them.
    assert rt.created == []
    assert_clean(session, agent)
    await session.aclose()
    kept = await stored(client)
    assert sorted(kept) == sorted(
        [("caller", REFUND), ("agent", "I see"), ("caller", PARCEL), ("agent", "I see")]
    )


async def test_a_recogniser_s_interims_bring_the_block_before_the_provider_answers(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """With a recogniser in the session the block follows what is being said, and is in time."""
    model = models("soon enough", turn_detection=True, user_transcription=False, speaks=True)
    call, agent = spoken(model), Agent(instructions="You help.")
    await attach(call.session, client)
    async with call:
        await call.start(agent)
        for line in (REFUND, PARCEL):
            words = line.split()
            partly = [" ".join(words[:count]) for count in range(2, len(words))]
            asked = len(model.prompts)
            await call.caller_says(line, interims=partly, wait="none")
            passage = {REFUND: "five working days", PARCEL: "within two weeks"}[line]
            await until(lambda passage=passage: passage in "".join(model.now.blocks(BLOCK_ID)))  # type: ignore[misc]
            model.now.hears(line, f"u{asked}")
            await until(lambda asked=asked: len(model.prompts) > asked)  # type: ignore[misc]
            await until(lambda: call.session.agent_state == "speaking")
            await call.settle()
        assert_clean(call.session, agent)
    assert [len(blocks(prompt)) for prompt in model.prompts] == [1, 1]
    assert "within two weeks" in blocks(model.prompts[1])[0]
    assert await stored(client) == [
        ("caller", REFUND),
        ("agent", "soon enough"),
        ("caller", PARCEL),
        ("agent", "soon enough"),
    ]


# --- calls that are taken over -----------------------------------------------------------------------


async def test_a_call_that_is_resumed_begins_with_what_was_left_off(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """The model has the caller's last wish before its greeting, though it never heard it."""
    async with await client.call("call") as memory:
        await memory.heard("my name is Ibarra and my booking is for Friday")
        await memory.heard("noted", "agent")

    class Greeter(Agent):
        async def on_enter(self) -> None:
            await self.session.generate_reply(instructions="Greet the caller.")

    model = models("welcome back")
    session, agent = typed_session(model), Greeter(instructions="You help.")
    await attach(session, client)
    await session.start(agent)
    await until(lambda: "welcome back" in texts(session.history))
    await session.aclose()
    (block,) = blocks(model.prompts[0])
    assert "Ibarra" in block
    # At an empty provider it came first, and the host took it for its own until the end.
    assert_clean(session, agent)


async def test_there_and_back_leaves_no_block_behind(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """Histories handed from a realtime agent to a normal one and back hold no block of the other."""
    model = models()
    plain = ScriptedLLM(lambda chat_ctx: "very well")
    session = typed_session(plain)
    await attach(session, client)
    agents = [Agent(instructions="You help.")]
    await session.start(agents[0])
    await session.generate_reply(user_input=REFUND)
    for own in (model, None, model, None):
        options: dict[str, Any] = {} if own is None else {"llm": own}
        agents.append(Agent(instructions="Next.", chat_ctx=agents[-1].chat_ctx, **options))
        await hand_over(session, agents[-1])
        for line in (PARCEL, REFUND):
            await session.generate_reply(user_input=line)
            assert_clean(session, *agents)
    await session.aclose()
    assert all(len(blocks(prompt)) == 1 for prompt in [*model.prompts, *plain.prompts])
    assert not any(item.id == BLOCK_ID for prompt in plain.prompts for item in prompt.items)


async def test_a_block_in_a_history_is_not_shown_to_a_normal_model(
    client: MossClient,
) -> None:
    """What a host has copied of a provider's block is known by its id, and left out."""
    plain = ScriptedLLM(lambda chat_ctx: "very well")
    session, history = typed_session(plain), llm.ChatContext.empty()
    history.add_message(role="user", content=f"{BLOCK}\nold", id=BLOCK_ID)
    await attach(session, client)
    await session.start(Agent(instructions="You help.", chat_ctx=history))
    await session.generate_reply(user_input=REFUND)
    await session.aclose()
    (block,) = blocks(plain.prompts[0])
    assert "old" not in block
    assert await stored(client) == [("caller", REFUND), ("agent", "very well")]


async def test_the_end_leaves_nothing_of_ours(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """After the call the session and the agent have what they had: own methods, no block."""

    class Own(Agent):
        async def on_enter(self) -> None:
            pass

    model = models()
    session, agent = typed_session(model), Own(instructions="You help.")
    await attach(session, client)
    await session.start(agent)
    await session.generate_reply(user_input=REFUND)
    assert "generate_reply" in vars(session)
    await session.aclose()
    assert "generate_reply" not in vars(session)
    assert not {"on_enter", "on_user_turn_completed", "llm_node"} & set(vars(agent))
    assert_clean(session, agent)


async def test_an_early_end_takes_the_block_from_the_provider(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """A call that ends before its session leaves no block with the model, which speaks on."""
    model = models()
    session = typed_session(model)
    await attach(session, client)
    await session.start(Agent(instructions="You help."))
    await session.generate_reply(user_input=REFUND)
    assert model.now.blocks(BLOCK_ID)
    (ours,) = [tool for tool in session.tools if isinstance(tool, llm.Toolset)]
    await ours.aclose()
    assert model.now.blocks(BLOCK_ID) == []
    await session.generate_reply(user_input=PARCEL)
    assert blocks(model.prompts[-1]) == []
    await session.aclose()


# --- faults ------------------------------------------------------------------------------------------


def _of_ours(do: Callable[[], Awaitable[None]]) -> Callable[[llm.ChatContext], Any]:
    """Do something in those updates of a provider that bring a block."""

    def before(chat_ctx: llm.ChatContext) -> Awaitable[None] | None:
        return do() if blocks(chat_ctx) else None

    return before


async def _fails() -> None:
    raise llm.RealtimeError("update_chat_ctx timed out.")


async def _breaks() -> None:
    raise ZeroDivisionError


async def _hangs() -> None:
    await asyncio.Event().wait()


async def _will_not_stop() -> None:
    until_s = time.perf_counter() + 1.4
    while (left_s := until_s - time.perf_counter()) > 0:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(left_s)
    raise llm.RealtimeError("update_chat_ctx timed out.")


async def test_a_block_that_a_provider_chokes_on_costs_no_typed_message(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """Where a plugin cannot take the block, the message goes without it, and the next turn too."""
    model = models()
    session = typed_session(model)
    await attach(session, client)
    await session.start(Agent(instructions="You help."))
    model.now.before_update = _of_ours(_breaks)
    for line in (REFUND, PARCEL):
        await session.generate_reply(user_input=line)
    await session.aclose()
    assert texts(model.prompts[1]) == [REFUND, "I see", PARCEL]
    assert [speaker for speaker, _ in await stored(client)] == ["caller", "agent"] * 2


@pytest.mark.parametrize("fault", [_fails, _breaks, _hangs, _will_not_stop])
async def test_a_provider_that_does_not_take_the_block_is_not_waited_for(
    client: MossClient,
    models: Callable[..., FakeRealtimeModel],
    fault: Callable[[], Awaitable[None]],
) -> None:
    """Where the update fails, hangs or cannot be stopped, the agent is entered and answers in time."""
    async with await client.call("call") as before:
        await before.heard("my name is Ibarra and my booking is for Friday")

    class Greeter(Agent):
        async def on_enter(self) -> None:
            entered.append(time.perf_counter() - began)

    entered: list[float] = []
    model = models("it will be there soon", user_transcription=False, speaks=True)
    call, agent = spoken(model), Greeter(instructions="You help.")
    await attach(call.session, client, deadline_ms=200.0)
    make = model.session

    def session(**options: Any) -> FakeRealtimeSession:
        made = make(**options)
        made.before_update = _of_ours(fault)
        return made

    model.session = session  # type: ignore[method-assign]
    async with call:
        began = time.perf_counter()
        await call.start(agent)
        await until(lambda: entered)
        assert entered[0] < 0.9
        model.now.line = REFUND
        await call.caller_says(REFUND, wait="none")
        began = time.perf_counter()
        await until(lambda: model.prompts)
        # The host waits a moment for more words, and then for us.
        assert time.perf_counter() - began < 0.9
        await call.settle()
    # One that cannot be stopped goes on with what it was asked in the end.
    assert texts(model.prompts[0])[-1] == REFUND
    assert ("agent", "it will be there soon") in await stored(client)


async def test_a_slow_recall_is_not_waited_for(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """What misses the deadline is left out, and what was there stays."""
    model = models()
    session = typed_session(model)
    memory = await attach(session, client)
    await session.start(Agent(instructions="You help."))
    await session.generate_reply(user_input=REFUND)
    memory.deadline_ms = 0.0
    await session.generate_reply(user_input=PARCEL)
    assert "five working days" in blocks(model.prompts[1])[0]
    await session.aclose()


async def test_a_fault_of_ours_costs_no_reply(
    client: MossClient, models: Callable[..., FakeRealtimeModel], caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever breaks in looking up a block, the model is asked and answers as without us."""

    class Odd(Agent):
        breaks = False

        @property
        def instructions(self) -> str:
            if self.breaks:
                raise ZeroDivisionError
            return "You help."

    model = models()
    session, agent = typed_session(model), Odd(instructions="")
    await attach(session, client)
    await session.start(agent)
    agent.breaks = True
    await session.generate_reply(user_input=REFUND)
    agent.breaks = False
    await session.aclose()
    assert texts(model.prompts[0]) == [REFUND]
    assert "ZeroDivisionError" in caplog.text
    assert REFUND not in caplog.text


async def test_a_distant_provider_gets_no_block_twice(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """What a provider confirms only after the deadline is not sent again meanwhile."""
    model = models(rtt_s=0.12)
    session = typed_session(model)
    await attach(session, client, deadline_ms=60.0)
    await session.start(Agent(instructions="You help."))
    for line in (REFUND, PARCEL, REFUND, PARCEL, "zebras juggle quietly", REFUND):
        session.generate_reply(user_input=line)
    await until(lambda: texts(session.history).count("I see") == 6)
    await session.aclose()
    # The fixture looks for items created twice, or anything deleted that is not ours.
    assert len([text for text in texts(model.prompts[-1]) if BLOCK not in text]) >= 6


async def test_items_that_arrive_meanwhile_are_not_deleted(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """Audio that a provider commits while a block is looked up and sent stays in its context."""
    model = models(turn_detection=True, rtt_s=0.03)
    session = typed_session(model)
    await attach(session, client)
    await session.start(Agent(instructions="You help."))
    rt = model.now
    for number in range(8):
        session.generate_reply(user_input=(REFUND, PARCEL)[number % 2])
        for step in range(3):
            await asyncio.sleep(0.007)
            rt._commit(f"spoken {number} {step}", f"u{number}-{step}")
    await until(lambda: texts(session.history).count("I see") == 8)
    await session.aclose()
    held = [item.id for item in rt.server]
    assert [id_ for id_ in held if id_.startswith("u")] == [
        f"u{number}-{step}" for number in range(8) for step in range(3)
    ]


# --- what it rests on --------------------------------------------------------------------------------


async def test_the_host_has_what_is_private_and_needed(
    models: Callable[..., FakeRealtimeModel],
) -> None:
    """Without it there are no blocks; this fails where a new LiveKit has renamed it."""
    model = models()
    session, agent = typed_session(model), Agent(instructions="")
    await session.start(agent)
    activity = agent._activity
    assert activity is not None
    assert isinstance(activity._rt_chat_ctx_lock, asyncio.Lock)
    assert activity._rt_turn_detection_enabled is False
    assert isinstance(agent.realtime_llm_session, FakeRealtimeSession)
    await session.aclose()


def _item(kind: str) -> llm.ChatItem:
    if kind == "call":
        return llm.FunctionCall(call_id="1", name="n", arguments="{}")
    if kind == "output":
        return llm.FunctionCallOutput(call_id="1", output="", is_error=False)
    return llm.ChatMessage(role="user" if kind == "user" else "assistant", content=[kind])


@pytest.mark.parametrize(
    ("kinds", "place"),
    [
        ([], 0),
        (["user"], 1),
        (["user", "agent"], 1),
        (["user", "agent", "user"], 2),
        (["user", "agent", "user", "call"], 3),
        (["user", "agent", "call", "output"], 2),
        (["user", "agent", "call", "output", "agent"], 2),
        (["call", "output"], 2),
    ],
)
def test_a_block_s_place(kinds: Sequence[str], place: int) -> None:
    """Before the last item, not between a call and its output, at the end of next to nothing."""
    assert _place([_item(kind) for kind in kinds]) == place


async def test_a_tool_s_reply_sees_the_block_of_its_turn(
    client: MossClient, models: Callable[..., FakeRealtimeModel]
) -> None:
    """A turn with a tool has one block throughout, and the host's own updates leave it there."""

    class Clerk(Agent):
        @function_tool
        async def look_up_order(self, context: RunContext[Any], number: str) -> str:
            """Look up an order."""
            return f"order {number} is on its way"

    def reply(chat_ctx: llm.ChatContext) -> Answer:
        if any(isinstance(item, llm.FunctionCallOutput) for item in chat_ctx.items):
            return "five days"
        return ToolCall("look_up_order", {"number": "77"})

    model = models(reply)
    session = typed_session(model)
    await attach(session, client)
    await session.start(Clerk(instructions="You help."))
    await session.generate_reply(user_input=REFUND)
    await until(lambda: "five days" in texts(session.history))
    await session.aclose()
    first, second = model.prompts
    assert blocks(first) == blocks(second) != []
