"""A worker as a user would write one: the program whose jobs `test_livekit_jobs.py` watches and kills.

    LIVEKIT_WORKER_BASE=BASE python livekit_worker.py [start]

`BASE/worker.json` says how it is set up. Each line on its standard input is the JSON of a room; a job is
started in it, and does what the room's metadata says, telling what happened in `BASE/reports/ROOM`.
With `start` it is LiveKit's own command line that runs it, signals and all.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import json
import math
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from livekit.agents import (
    Agent,
    AgentServer,
    AgentSession,
    JobContext,
    JobExecutorType,
    JobProcess,
    UserInputTranscribedEvent,
    cli,
)
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.processes import prewarmed
from livekit.plugins.moss_voice.testing import ScriptedLLM
from livekit.protocol import models

from moss_voice import CallMemory
from moss_voice import versions as versions_module
from moss_voice.cloud.cloud import Cloud
from moss_voice.session import SessionIndex

BASE = Path(os.environ["LIVEKIT_WORKER_BASE"])
CONFIG: dict[str, Any] = json.loads((BASE / "worker.json").read_text(encoding="utf-8"))


def no_network(event: str, args: tuple[Any, ...]) -> None:
    """Keep this process, and those it makes, on this machine."""
    if event == "socket.connect" and isinstance(args[1], tuple):
        host = str(args[1][0])
        if host != "localhost" and not ipaddress.ip_address(host).is_loopback:
            raise ConnectionRefusedError(f"tests have no network: {host}")


sys.addaudithook(no_network)


def tell(room: str, event: str, **more: Any) -> None:
    line = json.dumps({"event": event, "pid": os.getpid(), **more}) + "\n"
    file = os.open(BASE / "reports" / room, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, line.encode())
    os.close(file)


def journals() -> int:
    return len(list(BASE.rglob("*.journal")))


# What this process loaded of the cloud, to tell what was loaded twice; and a cloud that may be slow.
loaded: list[str] = []
slow_push_s = 0.0
_open, _push, _read_head = SessionIndex.open.__func__, Cloud.push, Cloud.read_head  # type: ignore[attr-defined]


async def _noted_open(cls: Any, remote: Any, name: str, *args: Any, **options: Any) -> Any:
    loaded.append(name)
    return await _open(cls, remote, name, *args, **options)


async def _slow_push(self: Cloud, *args: Any, **options: Any) -> Any:
    await asyncio.sleep(slow_push_s)
    return await _push(self, *args, **options)


async def _hanging_read_head(self: Cloud, project: str, index: str) -> Any:
    if index == "hangs":
        await asyncio.sleep(math.inf)
    return await _read_head(self, project, index)


SessionIndex.open = classmethod(_noted_open)  # type: ignore[method-assign,assignment]
Cloud.push = _slow_push  # type: ignore[method-assign]
Cloud.read_head = _hanging_read_head  # type: ignore[method-assign,assignment]


def kept(memory: CallMemory, turns: int) -> bool:
    """Tell whether that many turns, and what was uttered, are in the journal."""
    if memory.counters.turns < turns or (memory._last_kept and not memory._last_kept.done()):
        return False
    return all(write.done() for _, write in memory._noted.values())


async def entrypoint(ctx: JobContext) -> None:
    room = ctx.job.room.name
    plan: dict[str, Any] = json.loads(ctx.job.room.metadata)
    hits: list[str] = []
    session: AgentSession[Any] = AgentSession(
        llm=ScriptedLLM(lambda chat_ctx: plan.get("reply", "noted")),
        vad=None,
        turn_handling={"turn_detection": None},
    )
    warm = prewarmed(ctx)
    before = list(loaded)
    memory = await moss_voice.attach(
        session,
        on_context=lambda context: hits.extend(hit.text for hit in context.hits),
        # The machine may be busy: what is late is not what these tests are about.
        open_timeout_s=60,
        deadline_ms=60_000,
        **plan.get("attach", {}),
    )
    turns = memory.counters.turns
    versions = versions_module._shared.values()
    tell(
        room,
        "attached",
        call=memory.name,
        warm=warm is not None,
        loaded=[before, loaded[len(before) :]],
        shared=any(
            index._index is version.index for index in memory.knowledge for version in versions
        ),
        turns=turns,
        executor=ctx.proc.executor_type.name,
    )
    if plan["then"] == "raise early":
        raise RuntimeError("the entrypoint fails before the session is started")
    session.on("close", lambda ev: tell(room, "closed", journals=journals()))
    global slow_push_s  # noqa: PLW0603 - this process's cloud, from now on
    slow_push_s = plan.get("slow_push_s", 0.0)
    await session.start(Agent(instructions="You take calls."))
    for text in plan["says"]:
        await session.run(user_input=text)
    if "utters" in plan:
        event = UserInputTranscribedEvent(transcript=plan["utters"], is_final=True)
        session._user_input_transcribed(event)
    while not kept(memory, turns + 2 * len(plan["says"])):  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)
    embedder = memory.session.embedder
    assert embedder is not None
    tell(
        room,
        "ready",
        hits=hits,
        journals=journals(),
        vector=embedder.embed_query(f"to be computed here: {room}").tolist(),
        in_main_thread=threading.current_thread() is threading.main_thread(),
    )
    if plan["then"] == "raise":
        raise RuntimeError("the entrypoint fails")
    if plan["then"] == "shutdown":
        ctx.shutdown("the caller has hung up")


def ignore_sigterm(proc: JobProcess) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def setup() -> Any:
    match CONFIG.get("setup"):
        case "ignore SIGTERM":
            return ignore_sigterm
        case "prewarm":
            return moss_voice.prewarm(**CONFIG["prewarm"])
    return None


server = AgentServer(
    setup_fnc=setup(),
    job_executor_type=JobExecutorType[CONFIG.get("executor", "PROCESS")],
    preload_modules=CONFIG.get("preload_modules"),
    num_idle_processes=CONFIG.get("idle", 1),
    load_threshold=math.inf,
    # A busy machine takes its time.
    initialize_process_timeout=CONFIG.get("initialize_s", 60),
    drain_timeout=CONFIG.get("drain_s", 60),
    host="127.0.0.1",
    port=0,
    ws_url="ws://127.0.0.1:9",  # discard: nobody listens
    api_key="key",
    api_secret="secret-of-enough-characters-for-a-token",
)
server.rtc_session(entrypoint)


async def take_rooms(server: AgentServer) -> None:
    """Start a job per line, until the input ends."""
    lines = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(functools.partial(asyncio.StreamReaderProtocol, lines), sys.stdin)
    while line := await lines.readline():
        room = json.loads(line)
        info = models.Room(name=room["name"], sid=room["sid"], metadata=json.dumps(room["plan"]))
        await server.simulate_job(room["name"], room_info=info, fake_job=True)


def started() -> None:
    from multiprocessing import forkserver

    tell("worker", "started", forkserver=forkserver._forkserver._forkserver_pid)  # type: ignore[attr-defined]


async def run_unregistered() -> None:
    ready = asyncio.Event()
    server.on("worker_started", ready.set)
    running = asyncio.create_task(server.run(unregistered=True))
    await ready.wait()
    started()
    await take_rooms(server)
    await server.aclose()
    await running


def run_as_users_do() -> None:
    tasks = []

    def begin() -> None:
        started()
        tasks.append(asyncio.get_running_loop().create_task(take_rooms(server)))

    server.on("worker_started", begin)
    cli.run_app(server)


if __name__ == "__main__":
    if sys.argv[1:] == ["start"]:
        run_as_users_do()
    else:
        asyncio.run(run_unregistered())
