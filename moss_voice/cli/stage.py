"""What the demo's call is played on: a real session of a voice framework, or the engine alone."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from moss_voice.calls import CallScript
from moss_voice.cli.play import Played, play
from moss_voice.cli.shell import Host, Pace
from moss_voice.client import MossClient
from moss_voice.errors import MossError
from moss_voice.types import PushIndexResult

__all__ = ["Scene", "Stage", "find_stage"]

_LIVEKIT = ("livekit", "livekit.agents")
_INSTALL = "`pip install 'moss-voice[livekit]'`"


@dataclass(frozen=True, slots=True)
class Scene:
    """What is played, and how.

    Attributes:
        without: Parts of the retrieval that are left out.
        record: Where a recording of the call goes.
        unsaid: By the number of an interrupted turn: what the agent would have gone on to say. A host
            that really cuts it off needs more words than were heard.
    """

    script: CallScript
    knowledge: Sequence[str] = ()
    pace: Pace = Pace.FAST
    top_k: int = 5
    deadline_ms: float = 50.0
    unsaid: Mapping[int, str] = field(default_factory=dict)
    without: Sequence[str] = ()
    record: Path | None = None


class Stage(Protocol):
    """Plays a scene, once, and tells how it went."""

    @property
    def about(self) -> str:
        """What it is, for people."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What the host complained of so far, a line each."""
        ...

    @property
    def pushed(self) -> PushIndexResult | None:
        """What the end of the call pushed; None before, and where it failed."""
        ...

    def play(self, client: MossClient) -> AsyncGenerator[Played, None]:
        """Play the scene as a call of the client, to its end.

        A turn is yielded when it has been remembered. When there are no more, the call is pushed.

        Raises:
            MossError: If the call cannot go on, or cannot be pushed.
        """
        ...

    def rows(self) -> list[tuple[str, str]]:
        """Return the host's numbers with their names, for people."""
        ...

    def as_json(self) -> dict[str, object]:
        """Return what the host is, and its numbers, as JSON values."""
        ...


def find_stage(host: Host, scene: Scene) -> Stage:
    """Find a host that is installed; to import one takes seconds.

    Raises:
        MossError: If the one asked for cannot be had.
    """
    if host is Host.NONE:
        return _Engine(scene, "The engine plays it alone, without a voice framework.")
    try:
        from moss_voice.cli.in_livekit import LiveKit  # the framework may be missing
    except ImportError as error:
        # The name alone where it is just not there; else what is wrong with what is.
        why = (
            "is not installed"
            if isinstance(error, ModuleNotFoundError) and (error.name or "") in _LIVEKIT
            else f"cannot be imported ({error})"
        )
        if host is Host.LIVEKIT:
            raise MossError(
                f"--host livekit: livekit-agents {why}; install it with {_INSTALL}, or leave --host out"
            ) from None
        return _Engine(
            scene, f"The engine plays it alone: livekit-agents {why}; {_INSTALL} brings it."
        )
    return LiveKit(scene)


class _Engine:
    """The engine, called as a host would call it."""

    def __init__(self, scene: Scene, about: str) -> None:
        self.about = about
        self.notes: Sequence[str] = ()
        self.pushed: PushIndexResult | None = None
        self._scene = scene

    async def play(self, client: MossClient) -> AsyncGenerator[Played, None]:
        scene = self._scene
        call = await client.call(
            scene.script.id,
            knowledge=scene.knowledge,
            without=scene.without,
            top_k=scene.top_k,
            deadline_ms=scene.deadline_ms,
            record=scene.record or False,
        )
        async with aclosing(play(call, scene.script, pace=scene.pace)) as turns:
            async for turn in turns:
                yield turn
        self.pushed = await call.end()
        await call.recorded()

    def rows(self) -> list[tuple[str, str]]:
        return []

    def as_json(self) -> dict[str, object]:
        unknown = ("version", "speed", "requests", "with_block", "delay_ms")
        return {"name": "none", **dict.fromkeys(unknown)}
