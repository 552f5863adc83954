"""A realtime model without a provider: the far end and LiveKit's end of it, as its OpenAI plugin has them.

The provider holds the conversation (`server`); the plugin mirrors what was acknowledged (`chat_ctx`), and
sends the difference to whatever context the host hands it. What takes a round trip takes `rtt_s`.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

from livekit import rtc
from livekit.agents import NOT_GIVEN, NotGivenOr, llm, utils
from livekit.agents.llm.remote_chat_context import RemoteChatContext
from livekit.agents.llm.utils import compute_chat_ctx_diff
from livekit.plugins.moss_voice.testing import Answer, ToolCall

RATE = 24_000


class FakeRealtimeModel(llm.RealtimeModel):
    """Answers by a plain function of what its provider holds.

    Args:
        reply: Gets a copy of the provider's conversation, the caller's words included.
        turn_detection: Whether the provider tells the end of a turn.
        user_transcription: Whether the provider transcribes the caller.
        replaces: False is a provider that takes in what is new and keeps what is old.
        speaks: Whether it answers in audio.
        auto_tool_reply: Whether it answers a tool's output unasked.
        rtt_s: A round trip to the provider.
        words_per_s: How fast it speaks.
    """

    def __init__(
        self,
        reply: Callable[[llm.ChatContext], Answer],
        *,
        turn_detection: bool = False,
        user_transcription: bool = True,
        replaces: bool = True,
        speaks: bool = False,
        auto_tool_reply: bool = False,
        rtt_s: float = 0.0,
        words_per_s: float = 50.0,
    ) -> None:
        super().__init__(
            capabilities=llm.RealtimeCapabilities(
                message_truncation=replaces,
                turn_detection=turn_detection,
                user_transcription=user_transcription,
                auto_tool_reply_generation=auto_tool_reply,
                audio_output=speaks,
                manual_function_calls=True,
                mutable_chat_context=True,
                mutable_instructions=True,
                mutable_tools=True,
                per_response_tool_choice=True,
            )
        )
        self.reply = reply
        self.rtt_s = rtt_s
        self.words_per_s = words_per_s
        self.sessions: list[FakeRealtimeSession] = []
        # Of all sessions, in the order asked.
        self.prompts: list[llm.ChatContext] = []

    @property
    def model(self) -> str:
        return "fake-realtime"

    def session(self, *, turn_detection_disabled: bool = False) -> FakeRealtimeSession:
        made = FakeRealtimeSession(self)
        self.sessions.append(made)
        return made

    @property
    def now(self) -> FakeRealtimeSession:
        """The newest session."""
        return self.sessions[-1]

    async def aclose(self) -> None:
        pass


class FakeRealtimeSession(llm.RealtimeSession[Literal["fake"]]):
    def __init__(self, model: FakeRealtimeModel) -> None:
        super().__init__(model)
        self.fake = model
        self.server: list[llm.ChatItem] = []
        self.deleted: list[str] = []
        self.created: list[str] = []
        # What a provider answers with an error.
        self.faults: list[str] = []
        self.instructions: list[str] = []
        self.told_tools: list[list[str]] = []
        self.truncated: list[str] = []
        # Contexts that the host, or whoever, handed in.
        self.updates: list[llm.ChatContext] = []
        # Runs before an update is sent; may raise or never return.
        self.before_update: Callable[[llm.ChatContext], Any] | None = None
        # What the caller has said into the buffer; committed as audio, whose words nobody is told.
        self.line = ""
        self.closed = False
        self._tools = llm.ToolContext.empty()
        self._mirror = RemoteChatContext()
        self._lock = asyncio.Lock()
        self._awaited: dict[tuple[str, str], asyncio.Future[None]] = {}
        self._generation: asyncio.Task[None] | None = None
        self._work: set[asyncio.Task[None]] = set()

    @property
    def chat_ctx(self) -> llm.ChatContext:
        return self._mirror.to_chat_ctx()

    @property
    def tools(self) -> llm.ToolContext:
        return self._tools.copy()

    def blocks(self, item_id: str) -> list[str]:
        """The texts of the provider's items of an id."""
        return [
            item.raw_text_content or ""
            for item in self.server
            if isinstance(item, llm.ChatMessage) and item.id == item_id
        ]

    # --- what the host calls -----------------------------------------------------------------------

    async def update_instructions(self, instructions: str) -> None:
        self.instructions.append(instructions)

    async def update_tools(self, tools: list[llm.Tool]) -> None:
        self.told_tools.append(sorted(tool.id for tool in tools))
        self._tools = llm.ToolContext(tools)

    def update_options(self, *, tool_choice: NotGivenOr[llm.ToolChoice | None] = NOT_GIVEN) -> None:
        pass

    async def update_chat_ctx(self, chat_ctx: llm.ChatContext) -> None:
        async with self._lock:
            chat_ctx = chat_ctx.copy(
                exclude_instructions=True, exclude_handoff=True, exclude_config_update=True
            )
            self.updates.append(chat_ctx)
            if self.before_update is not None:
                waiting = self.before_update(chat_ctx)
                if waiting is not None:
                    await waiting
            diff = compute_chat_ctx_diff(self.chat_ctx, chat_ctx)
            acks: list[asyncio.Future[None]] = []
            if not self.fake.capabilities.message_truncation:
                for before, id_ in diff.to_create:
                    acks.append(
                        self._create(self.server[-1].id if self.server else None, chat_ctx, id_)
                    )
                    del before
            else:
                acks += [self._delete(id_) for id_ in diff.to_remove]
                acks += [self._create(before, chat_ctx, id_) for before, id_ in diff.to_create]
                for before, id_ in diff.to_update:
                    if _words(self.chat_ctx.get_by_id(id_)):  # audio is not synced down
                        acks += [self._delete(id_), self._create(before, chat_ctx, id_)]
            try:
                await asyncio.wait_for(asyncio.gather(*acks, return_exceptions=True), 5.0)
            except TimeoutError:
                raise llm.RealtimeError("update_chat_ctx timed out.") from None
            finally:
                self._awaited.clear()

    def push_audio(self, frame: rtc.AudioFrame) -> None:
        pass

    def push_video(self, frame: rtc.VideoFrame) -> None:
        pass

    def generate_reply(
        self,
        *,
        instructions: NotGivenOr[str] = NOT_GIVEN,
        tool_choice: NotGivenOr[llm.ToolChoice] = NOT_GIVEN,
        tools: NotGivenOr[list[llm.Tool]] = NOT_GIVEN,
    ) -> asyncio.Future[llm.GenerationCreatedEvent]:
        created: asyncio.Future[llm.GenerationCreatedEvent] = asyncio.Future()
        self._respond(created)
        return created

    def commit_audio(self) -> None:
        words, self.line = self.line, ""
        if words:
            self._commit(words, utils.shortuuid("item_"))

    def clear_audio(self) -> None:
        self.line = ""

    def interrupt(self) -> None:
        if self._generation is not None:
            self._generation.cancel()

    def truncate(
        self,
        *,
        message_id: str,
        modalities: list[Literal["text", "audio"]],
        audio_end_ms: int,
        audio_transcript: NotGivenOr[str] = NOT_GIVEN,
    ) -> None:
        self.truncated.append(message_id)

    async def aclose(self) -> None:
        self.closed = True
        for task in tuple(self._work):
            task.cancel()
        await asyncio.gather(*self._work, return_exceptions=True)

    # --- what the provider does --------------------------------------------------------------------

    def hears(self, words: str, item_id: str) -> None:
        """Take a caller's turn as a provider that detects its end: answer first, transcribe later."""
        self.emit("input_speech_started", llm.InputSpeechStartedEvent())
        self.emit("input_speech_stopped", llm.InputSpeechStoppedEvent(True))
        self._commit(words, item_id)
        self._respond(None)

    def transcribes(self, words: str, item_id: str, *, is_final: bool = True) -> None:
        self.emit(
            "input_audio_transcription_completed",
            llm.InputTranscriptionCompleted(
                item_id=item_id, transcript=words, is_final=is_final, turn_started_at=time.time()
            ),
        )

    def _commit(self, words: str, item_id: str) -> None:
        before = self.server[-1].id if self.server else None
        self.server.append(llm.ChatMessage(id=item_id, role="user", content=[words]))
        self._added(before, llm.ChatMessage(id=item_id, role="user", content=[]))

    def _create(
        self, before: str | None, chat_ctx: llm.ChatContext, item_id: str
    ) -> asyncio.Future[None]:
        item = chat_ctx.get_by_id(item_id)
        assert item is not None
        ids = [known.id for known in self.server]
        done: asyncio.Future[None] = asyncio.Future()
        if item_id in ids:
            self.faults.append(f"created twice: {item_id}")
            done.set_result(None)
            return done
        if before is not None and before not in ids:
            self.faults.append(f"after an unknown item: {before}")
            done.set_result(None)
            return done
        # A provider keeps neither the host's marks nor its times.
        if isinstance(item, llm.ChatMessage):
            item = llm.ChatMessage(id=item.id, role=item.role, content=list(item.content))
        self.server.insert(0 if before is None else ids.index(before) + 1, item)
        self.created.append(item_id)
        self._awaited["create", item_id] = done
        self._added(before, item.model_copy())
        return done

    def _delete(self, item_id: str) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.Future()
        self.server[:] = [item for item in self.server if item.id != item_id]
        self.deleted.append(item_id)
        self._awaited["delete", item_id] = done

        def acknowledge() -> None:
            if self._mirror.get(item_id) is not None:
                self._mirror.delete(item_id)
            self._settle("delete", item_id)

        self._later(acknowledge)
        return done

    def _added(self, before: str | None, item: llm.ChatItem) -> None:
        def acknowledge() -> None:
            known = before if before is None or self._mirror.get(before) else self._mirror.tail_id
            self._mirror.insert(known, item)
            self.emit("remote_item_added", llm.RemoteItemAddedEvent(before, item))
            self._settle("create", item.id)

        self._later(acknowledge)

    def _settle(self, kind: str, item_id: str) -> None:
        done = self._awaited.pop((kind, item_id), None)
        if done is not None and not done.done():
            done.set_result(None)

    def _later(self, act: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_later(self.fake.rtt_s, act)

    def _respond(self, asked: asyncio.Future[llm.GenerationCreatedEvent] | None) -> None:
        # What the provider has when it is asked is what the model sees.
        prompt = llm.ChatContext([item.model_copy() for item in self.server])
        self.fake.prompts.append(prompt)
        task = asyncio.get_running_loop().create_task(self._generate(prompt, asked))
        self._generation = task
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _generate(
        self, prompt: llm.ChatContext, asked: asyncio.Future[llm.GenerationCreatedEvent] | None
    ) -> None:
        await asyncio.sleep(self.fake.rtt_s)
        answer = self.fake.reply(prompt)
        calls: Sequence[ToolCall] = ()
        words = ""
        if isinstance(answer, str):
            words = answer
        elif answer is not None:
            calls = [answer] if isinstance(answer, ToolCall) else list(answer)
        messages = utils.aio.Chan[llm.MessageGeneration]()
        functions = utils.aio.Chan[llm.FunctionCall]()
        event = llm.GenerationCreatedEvent(
            message_stream=messages,
            function_stream=functions,
            user_initiated=asked is not None,
            response_id=utils.shortuuid("response_"),
        )
        try:
            if asked is not None and not asked.done():
                asked.set_result(event)
            self.emit("generation_created", event)
            if words:
                await self._say(words, messages)
            for call in calls:
                item = llm.FunctionCall(
                    id=utils.shortuuid("item_"),
                    call_id=utils.shortuuid("call_"),
                    name=call.name,
                    arguments=json.dumps(dict(call.arguments)),
                )
                before = self.server[-1].id if self.server else None
                self.server.append(item)
                self._added(before, item.model_copy())
                functions.send_nowait(item)
        finally:
            messages.close()
            functions.close()

    async def _say(self, words: str, messages: utils.aio.Chan[llm.MessageGeneration]) -> None:
        item_id = utils.shortuuid("item_")
        before = self.server[-1].id if self.server else None
        self.server.append(llm.ChatMessage(id=item_id, role="assistant", content=[words]))
        self._added(before, llm.ChatMessage(id=item_id, role="assistant", content=[words]))
        text, audio = utils.aio.Chan[str](), utils.aio.Chan[rtc.AudioFrame]()
        modalities: asyncio.Future[list[Literal["text", "audio"]]] = asyncio.Future()
        modalities.set_result(
            ["text", "audio"] if self.fake.capabilities.audio_output else ["text"]
        )
        messages.send_nowait(llm.MessageGeneration(item_id, text, audio, modalities))
        try:
            for number, word in enumerate(words.split()):
                text.send_nowait(word if number == 0 else f" {word}")
                if self.fake.capabilities.audio_output:
                    samples = round(RATE / self.fake.words_per_s)
                    audio.send_nowait(rtc.AudioFrame(bytes(2 * samples), RATE, 1, samples))
                await asyncio.sleep(0)
        finally:
            text.close()
            audio.close()


def _words(item: llm.ChatItem | None) -> str:
    return (item.raw_text_content or "") if isinstance(item, llm.ChatMessage) else "other"
