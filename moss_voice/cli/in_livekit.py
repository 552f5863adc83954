"""The demo's call inside a real `AgentSession` of LiveKit Agents: importing this imports the framework.

The law: the session is the host's own, and only its edges are simulated; what is told of it is what the
memory kept, what the language model was asked, and what the loudspeaker played.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, NamedTuple

from livekit.agents import Agent, AgentStateChangedEvent, __version__, llm
from livekit.plugins.moss_voice import attach
from livekit.plugins.moss_voice.testing import ScriptedLLM, SimulatedCall, replay

from moss_voice.call.memory import CallMemory
from moss_voice.calls import CallScript
from moss_voice.cli.play import VISIBLE_TURNS, Played, quantile, spread
from moss_voice.cli.shell import Pace
from moss_voice.cli.stage import Scene
from moss_voice.client import MossClient
from moss_voice.errors import IndexNotFoundError, MossError
from moss_voice.text import squash
from moss_voice.types import CallContext, DocumentInfo, GetDocumentsOptions, PushIndexResult

__all__ = ["LiveKit"]

_FAST: Final = 20.0
# A busy machine may be slow, and a long turn takes as long as it takes; this is for what hangs.
_STEP_S: Final = 60.0
_INSTRUCTIONS: Final = "You are the virtual assistant of Larkline. Be brief and friendly."
# How a recalled block begins. Read off the text, so that no mark of ours is taken at its word.
_BLOCK: Final = "<call_memory>"


class _Kept(NamedTuple):
    """A turn that the plugin handed to the memory, as the memory kept it."""

    place: int
    doc: DocumentInfo
    heard_ms: float
    about: tuple[str, ...]


class _AgentSpeaks(NamedTuple):
    """The agent's voice has begun: nothing more is recalled for this reply."""


class _Over(NamedTuple):
    """The session has closed, or failed."""


class _Requests(NamedTuple):
    """What the language model was asked.

    Attributes:
        with_block: How many of the requests held one block, just before the last user message.
        misplaced: How many held one elsewhere, or several.
        in_history: How many blocks the histories of session and agent hold.
    """

    total: int
    with_block: int
    misplaced: int
    in_history: int


class LiveKit:
    """A stage: a caller on the line of a LiveKit agent whose session the memory is attached to."""

    def __init__(self, scene: Scene) -> None:
        self.notes: list[str] = []
        self.pushed: PushIndexResult | None = None
        self._scene = scene
        self._speed = _FAST if scene.pace is Pace.FAST else 1.0
        self._script = _with_unsaid(scene)
        # The script's turns as they are spoken, one after the other.
        self._turns = [turn for turn in scene.script.spoken if squash(turn.text)]
        self._gold = dict(scene.script.knowledge)
        self._model = ScriptedLLM.following(self._script)
        self._agent = Agent(instructions=_INSTRUCTIONS)
        self._events: asyncio.Queue[_Kept | _AgentSpeaks | _Over] = asyncio.Queue()
        # Of the replies to turns that are not yielded yet.
        self._contexts: list[CallContext] = []
        self._caller_turns = 0
        self._delays_ms: list[float] = []
        self._asked = _Requests(0, 0, 0, 0)

    @property
    def about(self) -> str:
        """What it is, for people."""
        is_real = self._speed == 1.0
        pace = "" if is_real else f", {self._speed:g} times as fast as life"
        clock = "" if is_real else " The times are the session's."
        return (
            f"It runs in a real AgentSession of livekit-agents {__version__}, with moss_voice attached."
            f" Speech is simulated{pace}, and the LLM follows a script.{clock}"
        )

    def rows(self) -> list[tuple[str, str]]:
        """Return the session's numbers with their names, for people."""
        asked = self._asked
        block = f"in {asked.with_block}"
        if asked.misplaced:
            block += f"; elsewhere in {asked.misplaced}"
        rows = [
            ("LLM requests", f"{asked.total} for {self._caller_turns} turns of the caller"),
            ("block just before the last user message", block),
            ("blocks left in the chat history", f"{asked.in_history or 'none'}"),
        ]
        if self._delays_ms:
            median = f"median {quantile(self._delays_ms, 0.5):.0f} ms"
            pace = "" if self._speed == 1.0 else "time is compressed, "
            rows.append(("end of speech to first audio", f"{median}; {pace}the LLM scripted"))
        return rows

    def as_json(self) -> dict[str, object]:
        """Return what the host is, and its numbers, as JSON values."""
        return {
            "name": "livekit",
            "version": __version__,
            "speed": self._speed,
            "caller_turns": self._caller_turns,
            "requests": self._asked.total,
            "with_block": self._asked.with_block,
            "misplaced": self._asked.misplaced,
            "in_history": self._asked.in_history,
            "delay_ms": spread(self._delays_ms),
            "notes": list(self.notes),
        }

    async def play(self, client: MossClient) -> AsyncGenerator[Played, None]:
        """Play the scene as a call of the client, to its end.

        A caller's turn is yielded when the agent begins to answer it, since until then the host may
        ask for context again; any other when it has been spoken.

        Raises:
            MossError: If the session stops, leaves the script, or closes without a push.
        """
        with _noted("livekit", self.notes):
            running = asyncio.create_task(self._run(client))
            try:
                async for played in self._as_played():
                    yield played
                await running
            finally:
                running.cancel()
                # Here for its close alone; what it failed with has been raised above.
                await asyncio.gather(running, return_exceptions=True)

    async def _run(self, client: MossClient) -> None:
        script, model = self._script, self._model
        try:
            call = SimulatedCall(model, speed=self._speed, timeout_s=_STEP_S)
            call.session.on("agent_state_changed", self._on_state)
            memory = await attach(
                call.session,
                client,
                call_id=script.id,
                knowledge=self._scene.knowledge,
                without=self._scene.without,
                window=VISIBLE_TURNS + 1,  # the turn to reply to among them
                open_timeout_s=_STEP_S,
                push_timeout_s=_STEP_S,
                on_context=self._contexts.append,
                top_k=self._scene.top_k,
                deadline_ms=self._scene.deadline_ms,
                record=self._scene.record or False,
            )
            self._watch(memory, call)
            async with call:
                await call.start(self._agent)
                await replay(call, script)
            self._count(call)
            # The close has pushed it: asked for here is only what it was told.
            await client.get_index(script.id)
            self.pushed = await memory.end()
            await memory.recorded()
        except (RuntimeError, TimeoutError) as error:
            raise MossError(f"the call in LiveKit did not go on: {error}") from error
        except IndexNotFoundError:
            raise MossError("LiveKit's session closed without a push of the call") from None
        finally:
            self._events.put_nowait(_Over())

    def _on_state(self, ev: AgentStateChangedEvent) -> None:
        if ev.new_state == "speaking":
            self._events.put_nowait(_AgentSpeaks())

    def _watch(self, memory: CallMemory, call: SimulatedCall) -> None:
        """Look on as the plugin hands turns to the memory."""
        heard = memory.heard

        async def watched(text: str, speaker: str = "caller", **told: Any) -> str | None:
            begun = time.perf_counter()
            kept = await heard(text, speaker, **told)
            heard_ms = (time.perf_counter() - begun) * 1000.0
            if kept is not None:
                # The host has reported it before: that is how the plugin knows of it.
                place = [spoken.item_id for spoken in call.spoken].index(kept)
                (doc,) = await memory.session.get_docs(GetDocumentsOptions(doc_ids=[kept]))
                self._events.put_nowait(_Kept(place, doc, heard_ms, tuple(memory.about)))
                if speaker == "caller" and call.session.agent_state == "speaking":
                    self._events.put_nowait(_AgentSpeaks())
            return kept

        memory.heard = watched  # type: ignore[method-assign]

    def _count(self, call: SimulatedCall) -> None:
        histories = (call.session.history, self._agent.chat_ctx)
        self._asked = _requests(self._model.prompts, histories)
        self._caller_turns = sum(turn.speaker == "caller" for turn in call.spoken)
        self._delays_ms = [delay_s * 1000.0 for delay_s in call.delays_s]

    # --- what is told of it ------------------------------------------------------------------------

    async def _as_played(self) -> AsyncGenerator[Played, None]:
        script_turns = iter(self._scene.script.turns)
        waiting: Played | None = None
        at_s = 0.0
        while not isinstance(event := await self._events.get(), _Over):
            if waiting is not None:
                yield self._with_context(waiting)
                waiting = None
            if isinstance(event, _AgentSpeaks):
                continue
            played = self._played(event)
            at_s = played.turn.start_s
            for turn in script_turns:
                if turn.number == played.turn.number:
                    break
                if turn.speaker == "action":
                    yield Played(replace(turn, start_s=at_s, end_s=at_s))
            if played.turn.speaker == "caller":
                waiting = played
            else:
                yield played
        if waiting is not None:
            yield self._with_context(waiting)
        # Without a push the call has not come to its end.
        for turn in script_turns if self.pushed is not None else ():
            if turn.speaker == "action":
                yield Played(replace(turn, start_s=at_s, end_s=at_s))

    def _played(self, kept: _Kept) -> Played:
        metadata = kept.doc.metadata or {}
        turn = self._turns[kept.place] if kept.place < len(self._turns) else None
        if turn is None or turn.speaker != metadata["speaker"]:
            raise MossError(f"the call in LiveKit left the script at turn {kept.place + 1}")
        at_s = float(metadata["at_s"])
        spoken = replace(
            turn,
            text=kept.doc.text,
            start_s=at_s,
            end_s=at_s,
            interrupted=bool(metadata.get("interrupted")),
        )
        gold = self._gold.get(turn.number, ())
        number = int(metadata["turn"])
        return Played(spoken, number, kept.doc.id, kept.heard_ms, gold=gold, about=kept.about)

    def _with_context(self, played: Played) -> Played:
        """Add what the reply was made with: the last that was recalled for the same words."""
        words = squash(played.turn.text)
        places = [i for i, found in enumerate(self._contexts) if squash(found.query) == words]
        if not places:
            return played
        context = self._contexts[places[-1]]
        # What comes after it is for the next turn already.
        del self._contexts[: places[-1] + 1]
        return replace(played, context=context)


def _with_unsaid(scene: Scene) -> CallScript:
    """Give the agent more to say where it is cut off: `replay` does so half-way through its words."""
    turns = [
        replace(turn, text=f"{turn.text} {scene.unsaid[turn.number]}")
        if turn.interrupted and turn.number in scene.unsaid
        else turn
        for turn in scene.script.turns
    ]
    return replace(scene.script, turns=tuple(turns))


def _requests(
    prompts: Sequence[llm.ChatContext], histories: Sequence[llm.ChatContext]
) -> _Requests:
    with_block = misplaced = 0
    for prompt in prompts:
        messages = prompt.messages()
        blocks = [place for place, message in enumerate(messages) if _is_block(message)]
        if blocks == [len(messages) - 2] and messages[-1].role == "user":
            with_block += 1
        elif blocks:
            misplaced += 1
    in_history = sum(_is_block(message) for ctx in histories for message in ctx.messages())
    return _Requests(len(prompts), with_block, misplaced, in_history)


def _is_block(message: llm.ChatMessage) -> bool:
    return _BLOCK in (message.raw_text_content or "")


class _Notes(logging.Handler):
    """Keeps warnings and worse for later, a line each: between the turns they would be in the way."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.WARNING)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        kind = f" ({record.exc_info[0].__name__})" if record.exc_info and record.exc_info[0] else ""
        line = f"{record.levelname.lower()}: {record.name}: {record.getMessage()}{kind}"
        if line not in self._lines:
            self._lines.append(line)


@contextmanager
def _noted(name: str, lines: list[str]) -> Iterator[None]:
    """Keep what a logger tells, unless somebody has set up logging and is told of it anyway."""
    if logging.getLogger().handlers:
        yield
        return
    logger, notes = logging.getLogger(name), _Notes(lines)
    logger.addHandler(notes)
    try:
        yield
    finally:
        logger.removeHandler(notes)
