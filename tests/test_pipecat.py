"""The Pipecat processor in a real pipeline: what it remembers, what it adds, and what the host sees."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from loguru import logger as host_log
from pipecat.frames.frames import (
    Frame,
    LLMContextFrame,
    LLMMessagesAppendFrame,
    LLMRunFrame,
    MetricsFrame,
)
from pipecat.pipeline import worker as pipecat_worker
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineParams, PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import (
    LLMContextAggregatorPair,
    UserTurnMessageAddedMessage,
)
from pipecat.processors.frame_processor import FrameDirection
from pipecat.processors.frameworks.rtvi import RTVIServerMessageFrame
from pipecat.services.llm_service import FunctionCallParams
from pipecat_moss_voice import MossVoiceMemory
from pipecat_moss_voice.testing import (
    Answer,
    ScriptedLLMService,
    SimulatedCall,
    ToolCall,
    replay,
)

from moss_voice import CallContext, DocumentInfo, MossClient, PiiRedactor
from moss_voice.call.context import tokens
from moss_voice.calls import CallScript, read_calls
from moss_voice.errors import IndexNotFoundError, InvalidArgumentError
from moss_voice.text import squash

PATIENT = {"deadline_ms": 30_000.0}
BLOCK = "<call_memory>"
Message = Mapping[str, Any]


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[MossClient]:
    async with MossClient(
        cloud=tmp_path / "cloud", cache_path=tmp_path / "cache", journal_path=tmp_path / "journal"
    ) as client:
        yield client


@pytest.fixture(autouse=True)
def _no_fetching(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep Pipecat 1.8 to 1.11 from fetching a sentence splitter from the network as they start."""
    monkeypatch.setattr(pipecat_worker, "warm_deferred_imports", lambda: None, raising=False)


@pytest.fixture
def host_errors() -> AsyncIterator[list[str]] | Any:
    """What the host logs as warnings and errors."""
    told: list[str] = []
    sink = host_log.add(lambda message: told.append(str(message)), level="WARNING")
    yield told
    host_log.remove(sink)


def remembering(client: MossClient, **options: Any) -> MossVoiceMemory:
    """Make a processor with a deadline that a busy machine does not miss."""
    return MossVoiceMemory(client, **{"call_id": "call", "options": PATIENT, **options})


async def stored(client: MossClient, name: str = "call") -> list[DocumentInfo]:
    async with await client.session(name) as session:
        return await session.get_docs()


def written(folder: Path) -> list[bytes]:
    return [path.read_bytes() for path in folder.rglob("*") if path.is_file()]


def told(docs: Sequence[DocumentInfo]) -> list[tuple[str, str]]:
    return [(str((doc.metadata or {})["speaker"]), doc.text) for doc in docs]


def texts(messages: Sequence[Any]) -> list[str]:
    return [str(message.get("content") or "") for message in messages]


def blocks(messages: Sequence[Any]) -> list[str]:
    return [text for text in texts(messages) if BLOCK in text]


def last_user(messages: Sequence[Any]) -> str:
    said = [m for m in messages if m["role"] == "user" and BLOCK not in str(m.get("content"))]
    return str(said[-1]["content"]) if said else ""


def says(text: str) -> Callable[[Sequence[Any]], Answer]:
    return lambda messages: text


def _faq() -> list[DocumentInfo]:
    return [
        DocumentInfo("refund", "A refund takes five working days to arrive."),
        DocumentInfo("parcel", "A lost parcel is searched for within two weeks."),
        DocumentInfo("pets", "Dogs are welcome in the garden of the cafe."),
    ]


# --- what is remembered ------------------------------------------------------------------------------


@pytest.mark.slow
async def test_every_spoken_turn_of_real_calls_is_pushed_exactly_once(
    data_dir: Path, client: MossClient
) -> None:
    """12 calls of several sources, spoken in a real pipeline: index, host and script tell the same."""
    by_source: dict[str, list[CallScript]] = {}
    for script in read_calls(data_dir / "calls" / "calls.dev.jsonl"):
        by_source.setdefault(script.source, []).append(script)
    rounds = max(map(len, by_source.values()))
    scripts = [of[n] for n in range(rounds) for of in by_source.values() if n < len(of)][:12]

    async def run(script: CallScript) -> None:
        memory = remembering(client, call_id=script.id)
        call = SimulatedCall(ScriptedLLMService.following(script), processors=[memory], speed=40.0)
        async with call:
            await call.start()
            await replay(call, script)
        docs = await stored(client, script.id)
        assert told(docs) == [(turn.speaker, turn.text) for turn in call.spoken]
        said = [(turn.speaker, squash(turn.text)) for turn in script.spoken if squash(turn.text)]
        assert len(docs) == len(said)
        if not any(turn.interrupted for turn in call.spoken):
            assert [(speaker, squash(text)) for speaker, text in told(docs)] == said
        assert not any((doc.metadata or {}).get("unanswered") for doc in docs)
        assert memory.memory.counters.failed == 0

    for start in range(0, len(scripts), 4):
        await asyncio.gather(*map(run, scripts[start : start + 4]))


@pytest.mark.parametrize("word_timestamps", [True, False])
async def test_a_barge_in_is_remembered_as_far_as_it_was_spoken(
    client: MossClient, word_timestamps: bool
) -> None:
    """To the word where the voice tells words, else whole sentences that were played."""
    sentences = [f"This is sentence number {n} of the long answer." for n in range(12)]
    full = " ".join(sentences)
    model = ScriptedLLMService(lambda m: full if last_user(m) == "tell me" else "all right")
    memory = remembering(client)
    call = SimulatedCall(model, processors=[memory], speed=10.0, word_timestamps=word_timestamps)
    async with call:
        await call.start()
        await call.caller_says("tell me", wait="committed")
        await call.barge_in("stop that please", after_words=12)
    docs = await stored(client)
    assert told(docs) == [(turn.speaker, turn.text) for turn in call.spoken]
    cut = docs[1]
    assert (cut.metadata or {})["interrupted"] is True
    assert squash(full).startswith(squash(cut.text))
    assert 0 < len(cut.text) < len(full)


async def test_several_finals_are_one_turn_with_their_speaker(client: MossClient) -> None:
    """A turn that comes in pieces is remembered once, with who the transcription says it was."""
    memory = remembering(client)
    call = SimulatedCall(ScriptedLLMService(says("noted")), processors=[memory])
    async with call:
        await call.start()
        await call.caller_says(
            "my name is Ibarra and I live in Leeds",
            finals=["my name is Ibarra", "and I live in Leeds"],
            user_id="caller-7",
        )
    first, _ = await stored(client)
    assert squash(first.text) == "my name is ibarra and i live in leeds"
    assert (first.metadata or {})["speaker_id"] == "caller-7"
    assert "unanswered" not in (first.metadata or {})
    assert "typed" not in (first.metadata or {})


async def test_what_is_redacted_is_remembered_without_it(
    client: MossClient, tmp_path: Path
) -> None:
    """Pipecat's context has the words; memory, journal, cloud and blocks have them not."""
    card = "4242 4242 4242 4242"
    model = ScriptedLLMService(says("noted"))
    options = {**PATIENT, "redact": PiiRedactor()}
    memory = remembering(client, options=options, window=2)
    async with SimulatedCall(model, processors=[memory]) as call:
        await call.start()
        await call.caller_says(f"my card is {card} and my hotel is the Astoria")
        await call.caller_says("which hotel and which card did I name")
        assert any("[card number]" in hit.text for hit in await memory.memory.recall("hotel card"))
    for prompt in model.prompts:
        assert card not in "".join(blocks(prompt))
    assert not any(card.encode() in data for data in written(tmp_path))
    assert "[card number]" in (await stored(client))[0].text


async def test_typed_text_is_remembered_as_typed(client: MossClient) -> None:
    """RTVI's typed text fires no turn event; it is found in the context, once."""
    memory = remembering(client)
    call = SimulatedCall(ScriptedLLMService(says("noted")), processors=[memory])
    async with call:
        await call.start()
        await call.caller_says("I will type my order number")
        await call.types("4417-B")
        await call.types("4417-C")
    docs = await stored(client)
    assert [text for _, text in told(docs)] == [
        "I will type my order number", "noted", "4417-B", "noted", "4417-C", "noted",
    ]  # fmt: skip
    assert [(doc.metadata or {}).get("typed") for doc in docs] == [
        None,
        None,
        True,
        None,
        True,
        None,
    ]


async def test_what_the_app_wrote_before_the_call_is_no_turn(client: MossClient) -> None:
    """Messages of the context that were there at the start were not said in this call."""
    memory = remembering(client)
    call = SimulatedCall(
        ScriptedLLMService(says("hello, this is the bot")),
        processors=[memory],
        context_messages=[{"role": "user", "content": "Please introduce yourself."}],
    )
    async with call:
        await call.start()
        await call.worker.queue_frame(LLMRunFrame())
        await call.settle()
    assert told(await stored(client)) == [("agent", "hello, this is the bot")]


async def test_a_spoken_message_may_come_before_its_event(client: MossClient) -> None:
    """A message that is in the context already, whose words were just spoken, is not taken for typed."""
    memory = remembering(client)
    call = SimulatedCall(ScriptedLLMService(says("noted")), processors=[memory])
    async with call:
        await call.start()
        assert memory._listener is not None
        memory._listener.final("hello there I have a question", at=0.5)
        call.context.add_message({"role": "user", "content": "hello there I have a question"})
        memory._reconcile()
        assert memory.memory.counters.turns == 0
        told_late = UserTurnMessageAddedMessage(
            content="hello there I have a question", timestamp=""
        )
        memory._on_user_turn(None, told_late)
        memory._reconcile()
        await call.types("hello there I have a question")
    first, second, _ = await stored(client)
    assert (first.metadata or {}).get("typed") is None
    assert (second.metadata or {})["typed"] is True


async def test_two_equal_turns_are_two(client: MossClient) -> None:
    """Saying the same words again is another turn."""
    memory = remembering(client)
    call = SimulatedCall(ScriptedLLMService(says("noted")), processors=[memory])
    async with call:
        await call.start()
        for _ in range(2):
            await call.caller_says("the gate code is 8842")
            await call.types("yes")
    assert [text for _, text in told(await stored(client))] == [
        "the gate code is 8842", "noted", "yes", "noted",
    ] * 2  # fmt: skip


# --- what is added, and what is not ------------------------------------------------------------------


async def test_a_fact_out_of_the_window_is_in_the_prompt(client: MossClient) -> None:
    """What has left the window is recalled just before the words that ask for it."""
    model = ScriptedLLMService(says("I see"))
    memory = remembering(client, window=6)
    call = SimulatedCall(
        model,
        processors=[memory],
        speed=400.0,
        context_messages=[{"role": "developer", "content": "You help."}],
    )
    async with call:
        await call.start()
        await call.types("the booking is under the name Ibarra")
        for number in range(10):
            await call.types(f"what about the weather in town number {number}")
        await call.types("which name is the booking under")
    prompt = model.prompts[-1]
    (block,) = blocks(prompt)
    assert "Ibarra" in block
    assert texts(prompt)[-2:] == [block, "which name is the booking under"]
    assert prompt[-2]["role"] == "user"
    assert texts(prompt)[0] == "You help."
    assert len(prompt) == 1 + 6 + 1


@pytest.mark.slow
async def test_history_stays_clean_after_200_turns(client: MossClient) -> None:
    """The context object is the host's own, holds no block, and grows by what was said alone."""
    await client.create_index("faq", _faq())
    model = ScriptedLLMService(lambda m: f"answer to: {last_user(m)}")
    memory = remembering(client, knowledge=["faq"], options={**PATIENT, "max_tokens": 200})
    call = SimulatedCall(model, processors=[memory], speed=2000.0)
    async with call:
        await call.start()
        for number in range(100):
            await call.types(f"question {number} about parcel {number % 7} and its refund")
        assert len(call.context.messages) == 200
        assert not blocks(call.context.messages)
        assert memory.memory.counters.turns == 200
    assert sum(bool(blocks(prompt)) for prompt in model.prompts) > 90
    for prompt in model.prompts:
        found = blocks(prompt)
        assert len(found) <= 1
        assert all(tokens(block) <= 200 for block in found)
    assert len(await stored(client)) == 200


async def test_tools_see_the_block_again_and_keep_working(client: MossClient) -> None:
    """The run after a tool has the block once, the tools are offered still, and history has neither."""
    await client.create_index("faq", _faq())

    async def look_up_order(params: FunctionCallParams, number: str) -> None:
        """Look up an order.

        Args:
            params: The call.
            number: Its number.
        """
        await params.result_callback({"order": number, "state": "on its way"})

    def reply(messages: Sequence[Any]) -> Answer:
        if messages[-1]["role"] == "tool":
            return "it is on its way"
        return ToolCall("look_up_order", {"number": "77"})

    model = ScriptedLLMService(reply)
    memory = remembering(client, knowledge=["faq"])
    call = SimulatedCall(model, processors=[memory], tools=[look_up_order])
    async with call:
        await call.start()
        await call.caller_says("when does the refund for order 77 arrive")
        assert not blocks(call.context.messages)
    assert len(model.prompts) == 2
    for prompt, offered in zip(model.prompts, model.tools, strict=True):
        (block,) = blocks(prompt)
        assert "five working days" in block
        place = texts(prompt).index(block)
        assert texts(prompt)[place + 1] == "when does the refund for order 77 arrive"
        assert "look_up_order" in offered
    assert [text for _, text in told(await stored(client))] == [
        "when does the refund for order 77 arrive",
        "it is on its way",
    ]


async def test_the_llm_may_look_for_itself(client: MossClient) -> None:
    """Bound methods are tools; what they have told is not told again by the block."""
    await client.create_index("faq", _faq())
    outputs: list[str] = []

    def reply(messages: Sequence[Any]) -> Answer:
        done = [m for m in messages if m["role"] == "tool"]
        outputs[:] = texts(done)
        if last_user(messages).startswith("my dog"):
            return "lovely"
        if not done:
            return ToolCall("search_knowledge", {"query": "dogs in the cafe"})
        if len(done) == 1:
            return ToolCall("recall_call", {"query": "name of the dog"})
        return "yes"

    model = ScriptedLLMService(reply)
    memory = remembering(client, knowledge=["faq"])
    call = SimulatedCall(
        model, processors=[memory], tools=[memory.search_knowledge, memory.recall_call], speed=100.0
    )
    async with call:
        await call.start()
        await call.types("my dog is called Biscuit")
        await call.types("may I bring him")
    assert "Dogs are welcome" in outputs[0]
    assert "Biscuit" in outputs[1]
    assert not any("Dogs are welcome" in block for block in blocks(model.prompts[-1]))


async def test_other_uses_of_the_llm_stay_clean(client: MossClient) -> None:
    """A context that is not the conversation's passes as it is; a speculative one is served."""
    await client.create_index("faq", _faq())
    model = ScriptedLLMService(says("noted"))
    memory = remembering(client, knowledge=["faq"])
    call = SimulatedCall(model, processors=[memory])
    question = {"role": "user", "content": "how long does a refund take"}
    async with call:
        await call.start()
        other = LLMContext(messages=[question])  # type: ignore[list-item]
        frame = LLMContextFrame(context=other)
        await model._call_event_handler("on_before_process_frame", frame)
        assert frame.context is other
        if hasattr(LLMContextFrame, "speculation"):  # newer hosts speculate
            guess = LLMContext(messages=[question])  # type: ignore[list-item]
            frame = LLMContextFrame(context=guess, speculation=True)
            await model._call_event_handler("on_before_process_frame", frame)
            assert blocks(frame.context.messages)
            assert not blocks(guess.messages)
        assert memory.memory.counters.turns == 0


@pytest.mark.skipif(
    not hasattr(LLMContext, "remove_invalid_file_message"), reason="older hosts repair no context"
)
async def test_a_repair_of_the_context_reaches_the_conversation(client: MossClient) -> None:
    """What a service removes after a 4xx is removed from the host's own context as well."""
    await client.create_index("faq", _faq())
    model = ScriptedLLMService(says("noted"))
    memory = remembering(client, knowledge=["faq"])
    call = SimulatedCall(model, processors=[memory], speed=100.0)
    async with call:
        await call.start()
        await call.types("how long does a refund take")
        shown = model.contexts[-1]
        assert shown is not call.context
        bad = {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": "http://x/broken.png"}}],
        }
        call.context.add_message(bad)  # type: ignore[arg-type]
        shown.add_message(bad)  # type: ignore[arg-type]
        assert shown.remove_invalid_file_message()
        assert "broken.png" not in str(call.context.messages)
        assert "broken.png" not in str(shown.messages)


async def test_realtime_services_get_no_block(client: MossClient) -> None:
    """They keep the context object themselves: it must not be swapped for a copy."""
    from pipecat.frames.frames import LLMServiceMetadataFrame

    await client.create_index("faq", _faq())
    model = ScriptedLLMService(says("noted"))
    memory = remembering(client, knowledge=["faq"])
    call = SimulatedCall(model, processors=[memory])
    async with call:
        await call.start()
        await memory.process_frame(
            LLMServiceMetadataFrame(service_name="rt", is_realtime_service=True),
            FrameDirection.UPSTREAM,
        )
        frame = LLMContextFrame(context=call.context)
        call.context.add_message({"role": "user", "content": "how long does a refund take"})
        await model._call_event_handler("on_before_process_frame", frame)
        assert frame.context is call.context


# --- the host ----------------------------------------------------------------------------------------


def _kinds(frames: Sequence[tuple[FrameDirection, Frame]]) -> Counter[tuple[str, str]]:
    """Count frames by direction, kind and text; how many chunks of audio there are, and ticks, is chance."""
    counted: Counter[tuple[str, str]] = Counter()
    for direction, frame in frames:
        name = type(frame).__name__
        if isinstance(frame, RTVIServerMessageFrame) or "Audio" in name or "Metrics" in name:
            continue
        kind = direction.name, f"{name} {getattr(frame, 'text', '')}"
        counted[kind] = 1 if name == "BotSpeakingFrame" else counted[kind] + 1
    return counted


async def test_frames_pass_as_without_us(client: MossClient) -> None:
    """The same frames come out at both ends of the pipeline, with us and without."""
    await client.create_index("faq", _faq())
    seen = []
    for with_us in (True, False):
        memory = remembering(client, knowledge=["faq"], rtvi=False)
        call = SimulatedCall(
            ScriptedLLMService(says("a refund takes five days")),
            processors=[memory] if with_us else [],
            record_frames=True,
        )
        async with call:
            await call.start()
            await call.caller_says("how long does a refund take")
            await call.types("and a parcel")
            await call.bot_says("anything else")
        seen.append(_kinds(call.frames))
    assert seen[0] == seen[1]
    assert seen[0]


async def test_a_recall_shows_in_rtvi_and_metrics(client: MossClient) -> None:
    """A server message per recall with sources and milliseconds, text only if asked; and our TTFB."""
    await client.create_index("faq", _faq())
    for send_text in (False, True):
        memory = remembering(client, knowledge=["faq"], send_text=send_text, name="Memory")
        call = SimulatedCall(
            ScriptedLLMService(says("five days")),
            processors=[memory],
            record_frames=True,
            worker_options={"params": PipelineParams(enable_metrics=True)},
        )
        async with call:
            await call.start()
            await call.caller_says("how long does a refund take")
        frames = [frame for _, frame in call.frames]
        (message,) = [f.data for f in frames if isinstance(f, RTVIServerMessageFrame)]
        assert message["type"] == "moss-voice-recall"
        assert "faq: refund" in message["sources"]
        assert message["took_ms"] > 0
        assert ("five working days" in str(message)) is send_text
        measured = [d for f in frames if isinstance(f, MetricsFrame) for d in f.data]
        kinds = {type(d).__name__ for d in measured if d.processor == "Memory"}
        assert {"TTFBMetricsData", "ProcessingMetricsData"} <= kinds


async def test_two_pipelines_keep_their_words_apart(client: MossClient) -> None:
    """Calls in one process never recall each other's turns."""

    async def serve(code: str) -> ScriptedLLMService:
        model = ScriptedLLMService(says("noted"))
        memory = remembering(client, call_id=f"call-{code}", window=1)
        call = SimulatedCall(model, processors=[memory], speed=100.0)
        async with call:
            await call.start()
            for line in (f"the gate code is {code}", "nice weather", "what is the gate code"):
                await call.types(line)
        return model

    codes = ["1111", "2222", "3333"]
    for model, code in zip(await asyncio.gather(*map(serve, codes)), codes, strict=True):
        shown = " ".join(texts(model.prompts[-1]))
        assert [other for other in codes if other in shown] == [code]


async def test_several_aggregators_need_a_pair(client: MossClient) -> None:
    """Which conversation is meant is not guessed; with `pair=` it is remembered."""
    pairs = [LLMContextAggregatorPair(LLMContext()) for _ in range(2)]
    for given in (None, pairs[0]):
        memory = remembering(client, pair=given)
        pipeline = Pipeline([pairs[0].user(), memory, pairs[1].user(), pairs[0].assistant()])
        users, _, _ = (None, None, None)
        if given is None:
            with pytest.raises(InvalidArgumentError, match="pair="):
                memory._partners(pipeline)
        else:
            users, assistants, _ = memory._partners(pipeline)
            assert users == [pairs[0].user()]
            assert assistants == [pairs[0].assistant()]


# --- faults ------------------------------------------------------------------------------------------


def _broken(*_: object, **__: object) -> Any:
    raise TypeError("secret transcript words")


@pytest.mark.parametrize("part", ["context", "heard", "hearing", "uttered"])
async def test_a_fault_of_ours_never_reaches_the_host(
    client: MossClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    host_errors: list[str],
    part: str,
) -> None:
    """Whatever breaks in here, the bot answers as without us, and no word of it is logged."""
    model = ScriptedLLMService(says("noted"))
    memory = remembering(client)
    call = SimulatedCall(model, processors=[memory])
    async with call:
        await call.start()
        monkeypatch.setattr(memory.memory, part, _broken)
        await call.caller_says("the gate code is 8842")
        await call.caller_says("what is the gate code")
    assert [turn.speaker for turn in call.spoken] == ["caller", "agent"] * 2
    assert len(model.prompts) == 2
    ours = [r.getMessage() for r in caplog.records if "moss_voice" in r.name]
    assert any(part in line or "not kept" in line for line in [*ours, *host_errors]) or host_errors
    assert not any("secret" in line for line in [*ours, *host_errors])


async def test_a_slow_recall_is_not_waited_for(client: MossClient) -> None:
    """What misses its deadline is left out of the reply, which goes on."""
    seen: list[CallContext] = []
    memory = remembering(client, options={"deadline_ms": 20.0}, on_context=seen.append)
    call = SimulatedCall(ScriptedLLMService(says("noted")), processors=[memory], speed=100.0)
    async with call:
        await call.start()
        embedder = memory.memory.session.embedder
        assert embedder is not None
        kind: Any = type(embedder)

        class Slow(kind):  # type: ignore[misc]
            def embed_query(self, text: str) -> Any:
                time.sleep(1.0)
                return super().embed_query(text)

        slow = object.__new__(Slow)
        slow.__dict__.update(vars(embedder))
        memory.memory.session._embedder = slow
        started = time.monotonic()
        await call.types("what is the gate code")
        assert time.monotonic() - started < 0.9
    assert [context.outcome for context in seen] == ["late"]


async def test_a_callback_that_raises_costs_nothing(client: MossClient) -> None:
    """The user's own `on_context` may fail; the block is there all the same."""
    await client.create_index("faq", _faq())
    model = ScriptedLLMService(says("noted"))
    memory = remembering(client, knowledge=["faq"], on_context=_broken)
    call = SimulatedCall(model, processors=[memory], speed=100.0)
    async with call:
        await call.start()
        await call.types("how long does a refund take")
    assert blocks(model.prompts[-1])


async def test_wrong_settings_are_told(client: MossClient) -> None:
    """A mistake in the code is an error that says what was expected."""
    with pytest.raises(InvalidArgumentError, match="window"):
        remembering(client, window=0)
    with pytest.raises(InvalidArgumentError, match="list of names"):
        remembering(client, knowledge="faq")
    memory = remembering(client)
    with pytest.raises(RuntimeError, match="not set up"):
        _ = memory.memory
    logging.getLogger("moss_voice").debug("%s %s", IndexNotFoundError, PipelineWorker)


async def test_messages_appended_without_a_run_are_remembered_at_the_end(
    client: MossClient,
) -> None:
    """Typed text that no LLM run followed is in the pushed index."""
    memory = remembering(client)
    call = SimulatedCall(ScriptedLLMService(says("noted")), processors=[memory])
    async with call:
        await call.start()
        await call.caller_says("hello there, I have a question")
        await call.worker.queue_frame(
            LLMMessagesAppendFrame(
                messages=[{"role": "user", "content": "my order is 4417"}], run_llm=False
            )
        )
        await call.settle()
    assert [text for _, text in told(await stored(client))][-1] == "my order is 4417"


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
    ("options", "about"),
    [
        ({}, ["Quayside Lodge"]),
        ({"focus": ["inn"]}, ["Quayside Lodge"]),
        ({"focus": ()}, []),
        ({"options": {**PATIENT, "without": ["focus"]}}, []),
    ],
)
async def test_names_are_found_by_themselves_unless_told_not_to(
    client: MossClient, options: dict[str, Any], about: list[str]
) -> None:
    """`focus` and `without` get through to the memory; without either all of the retrieval is on."""
    await client.create_index("inns", INNS)
    memory = remembering(client, knowledge=["inns"], **options)
    call = SimulatedCall(ScriptedLLMService(says("noted")), processors=[memory])
    async with call:
        await call.start()
        await call.caller_says("can I bring my dog to the quayside lodge")
        assert memory.memory.about == about
