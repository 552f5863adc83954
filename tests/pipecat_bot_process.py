"""A bot in a process of its own: the program that `test_pipecat_ends.py` watches and kills.

    python pipecat_bot_process.py PLAN

PLAN is JSON: `says` (turns of the caller), `utters` (what the recogniser finishes after them, no turn
yet), `then` (`wait` for a signal, or `hang up`), `runner` (arguments of the host's runner). What happened
is told on standard output, a JSON object per line; the cloud and the journal are the environment's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import sys
from typing import Any

from pipecat.frames.frames import TranscriptionFrame, VADUserStartedSpeakingFrame
from pipecat.pipeline import worker as pipecat_worker
from pipecat.utils.time import time_now_iso8601
from pipecat.workers.runner import WorkerRunner
from pipecat_moss_voice import MossVoiceMemory, testing

from moss_voice import CallMemory


def no_network(event: str, args: tuple[Any, ...]) -> None:
    """Keep this process on this machine."""
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = str(args[1][0])
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise ConnectionRefusedError(f"tests have no network: {host}")


def tell(event: str, **more: Any) -> None:
    sys.stdout.write(json.dumps({"event": event, **more}) + "\n")
    sys.stdout.flush()


def kept(memory: CallMemory, turns: int) -> bool:
    """Tell whether that many turns, and what was uttered, are in the journal."""
    if memory.counters.turns < turns or (memory._last_kept and not memory._last_kept.done()):
        return False
    return all(write.done() for _, write in memory._noted.values())


async def bot(plan: dict[str, Any]) -> None:
    memory = MossVoiceMemory(call_id="call", open_timeout_s=60, options={"deadline_ms": 60_000.0})
    call = testing.SimulatedCall(
        testing.ScriptedLLMService(lambda _: "noted"), processors=[memory], speed=30.0
    )
    await call.start()
    turns = memory.memory.counters.turns
    tell("started", turns=turns)
    for text in plan["says"]:
        await call.caller_says(text)
    if "utters" in plan:
        await call._give(VADUserStartedSpeakingFrame())
        final = TranscriptionFrame(plan["utters"], "caller-1", time_now_iso8601(), finalized=True)
        await call._give(final)
    while not kept(memory.memory, turns + 2 * len(plan["says"])):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    tell("ready", uttered=len(memory.memory._noted))
    if plan["then"] == "hang up":
        await call.hang_up()
    assert call._run is not None
    await call._run
    tell("ended")


if __name__ == "__main__":
    sys.addaudithook(no_network)
    # Pipecat 1.8 to 1.11 fetch a sentence splitter from the network as they start.
    pipecat_worker.warm_deferred_imports = lambda: None  # type: ignore[attr-defined,unused-ignore]
    plan = json.loads(sys.argv[1])
    # The simulated call's runner listens to no signal.
    options = {"handle_sigint": False, "check_dangling_tasks": False, **plan["runner"]}
    setattr(testing, "WorkerRunner", lambda **_: WorkerRunner(**options))  # noqa: B010 - it is no public name
    asyncio.run(bot(plan))
