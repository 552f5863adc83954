"""The life of a job: real workers whose jobs end, fail, are shut down and are killed.

Each worker is a process (`livekit_worker.py`) that starts a process per job, as in production; only the
room is LiveKit's own fake. Jobs tell what happened in files.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from livekit.agents import Agent, AgentSession, JobContext, JobExecutorType, JobProcess
from livekit.agents.testing import fake_job_context
from livekit.plugins import moss_voice
from livekit.plugins.moss_voice.processes import prewarmed
from livekit.plugins.moss_voice.testing import ScriptedLLM

from moss_voice import DocumentInfo, MossClient
from moss_voice.cloud.cloud import Cloud
from moss_voice.models import load_embedder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="job processes of the fork server")

PROGRAM = Path(__file__).with_name("livekit_worker.py")
PATIENCE_S = 60.0
SAYS = ["my name is ada lovelace", "the parcel went to the wrong address"]
FAQ = [
    DocumentInfo("refund", "A refund is paid within fourteen days of the return."),
    DocumentInfo("hours", "The shop is open from nine to five on weekdays."),
]
_numbers = count(1)

Report = dict[str, Any]


def until(holds: Callable[[], Any], what: str) -> Any:
    """Wait until something holds; returns it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (value := holds()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.01)
    return value


class Worker:
    """A worker process and what its jobs told."""

    def __init__(
        self, base: Path, process: subprocess.Popen[bytes], environ: dict[str, str]
    ) -> None:
        self.base = base
        self.process = process
        self.environ = environ

    def start_job(self, *, name: str = "", sid: str = "", then: str = "wait", **plan: Any) -> str:
        """Start a job in a room, the same as before where it is named; returns the room's name."""
        room = name or f"room-{next(_numbers)}"
        line = {"name": room, "sid": sid or "RM_1", "plan": {"says": SAYS, "then": then, **plan}}
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        self.process.stdin.flush()
        return room

    def told(self, room: str) -> list[Report]:
        path = self.base / "reports" / room
        # Without a line that is being written.
        whole = path.read_text().rpartition("\n")[0] if path.exists() else ""
        return [*map(json.loads, whole.splitlines())]

    def wait_for(self, event: str, room: str, *, nth: int = 1) -> Report:
        """Wait until a room's jobs have told of an event the n-th time."""

        def found() -> Report | None:
            alive = self.process.poll() is None
            reports = [report for report in self.told(room) if report["event"] == event]
            assert len(reports) >= nth or alive, self.log()
            return reports[nth - 1] if len(reports) >= nth else None

        report: Report = until(found, f"{event!r} of {room}; see {self.base / 'log'}")
        return report

    def kill_job(self, room: str, sign: signal.Signals) -> None:
        """Kill the process of a room's job, and see it die."""
        pid = self.told(room)[-1]["pid"]
        os.kill(pid, sign)
        gone(pid)

    def journals(self) -> list[Path]:
        return [*self.base.rglob("*.journal")]

    def client(self) -> MossClient:
        return MossClient(
            cloud=self.environ["MOSS_VOICE_CLOUD"],
            cache_path=self.base / "cache",
            journal_path=Path(self.environ["XDG_DATA_HOME"]) / "moss_voice" / "journal",
        )

    def pushed(self, call: str) -> list[tuple[str, str]]:
        """Return the turns of a call as the cloud has them: who said what, in order."""

        async def read() -> list[DocumentInfo]:
            async with self.client() as client:
                return await client.get_docs(call)

        docs = asyncio.run(read())
        docs.sort(key=lambda doc: (doc.metadata or {})["turn"])
        return [(str((doc.metadata or {})["speaker"]), doc.text) for doc in docs]

    def recover_by_hand(self) -> str:
        """Run `moss-voice recover`."""
        done = subprocess.run(
            [sys.executable, "-m", "moss_voice.cli", "recover"],
            env=self.environ,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def log(self) -> str:
        return (self.base / "log").read_text()[-4000:]

    def close(self) -> None:
        """Let it end by itself, and see that it does."""
        if self.process.poll() is None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            assert self.process.wait(PATIENCE_S) == 0, self.log()


def gone(pid: int) -> None:
    until(lambda: not Path(f"/proc/{pid}").exists(), f"the end of process {pid}")


def turns_of(says: list[str]) -> list[tuple[str, str]]:
    return [turn for text in says for turn in (("caller", text), ("agent", "noted"))]


@contextmanager
def running(
    base: Path, *args: str, cloud: Path | None = None, preload: str = "", **config: Any
) -> Iterator[Worker]:
    """Run a worker; nothing of it is left when the block is left."""
    (base / "reports").mkdir(parents=True)
    (base / "worker.json").write_text(json.dumps(config))
    environ = {
        **os.environ,
        **{f"XDG_{kind}_HOME": str(base / kind.lower()) for kind in ("DATA", "CACHE", "CONFIG")},
        "LIVEKIT_WORKER_BASE": str(base),
        "MOSS_VOICE_CLOUD": str(cloud or base / "cloud"),
        "MOSS_VOICE_PRELOAD": preload,
        # 250 MB of models that no text needs.
        "LIVEKIT_AGENTS_PRELOAD_LOCAL_INFERENCE": "0",
    }
    with (
        (base / "log").open("wb") as log,
        subprocess.Popen(
            [sys.executable, str(PROGRAM), *args],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            env=environ,
            start_new_session=True,
        ) as process,
    ):
        worker = Worker(base, process, environ)
        try:
            yield worker
            if not args:
                worker.close()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


async def _make_faq(client: MossClient) -> None:
    async with client:
        await client.create_index("faq", FAQ)


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    """A worker that is not set up at all."""
    with running(tmp_path_factory.mktemp("plain"), idle=2) as worker:
        yield worker


def test_a_call_is_pushed_before_its_session_is_closed(worker: Worker) -> None:
    """At a normal end each turn is stored once and the journal gone, by the time the host is told."""
    room = worker.start_job(then="shutdown")
    call = worker.wait_for("attached", room)["call"]
    assert call == f"{room}-RM_1"
    assert worker.wait_for("ready", room)["journals"] == 1
    assert worker.wait_for("closed", room)["journals"] == 0
    assert worker.pushed(call) == turns_of(SAYS)
    gone(worker.told(room)[-1]["pid"])


@pytest.mark.parametrize("when", ["raise", "raise early"])
def test_a_call_whose_entrypoint_fails_is_pushed(worker: Worker, when: str) -> None:
    """A fault of the user's own loses no turn; one before the session started leaves nothing behind."""
    room = worker.start_job(then=when)
    report = worker.wait_for("attached", room)
    gone(report["pid"])
    assert not worker.journals()
    if when == "raise":
        assert worker.pushed(report["call"]) == turns_of(SAYS)


def lost(worker: Worker, room: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the call whose job was killed, and its turns; it is in its journal alone."""
    assert len(worker.journals()) == 1
    assert "closed" not in [report["event"] for report in worker.told(room)]
    return worker.told(room)[0]["call"], turns_of(SAYS)


def test_a_terminated_job_is_recovered_by_the_next_in_its_room(worker: Worker) -> None:
    """SIGTERM ends a job process at once; the next agent in the room has its turns, each of them once."""
    room = worker.start_job()
    worker.wait_for("ready", room)
    worker.kill_job(room, signal.SIGTERM)
    call, turns = lost(worker, room)
    worker.start_job(name=room, then="shutdown", says=["are you still there"])
    again = worker.wait_for("attached", room, nth=2)
    assert (again["call"], again["turns"]) == (call, len(turns))
    assert worker.wait_for("closed", room)["journals"] == 0
    assert worker.pushed(call) == [*turns, *turns_of(["are you still there"])]


def test_a_killed_job_is_recovered_with_what_was_no_turn_yet(worker: Worker) -> None:
    """SIGKILL in mid-sentence: `moss-voice recover` stores each turn once, and the sentence too."""
    room = worker.start_job(utters="and my new address is")
    worker.wait_for("ready", room)
    worker.kill_job(room, signal.SIGKILL)
    call, turns = lost(worker, room)
    assert call in worker.recover_by_hand()
    assert not worker.journals()
    docs = worker.pushed(call)
    assert docs == [*turns, ("caller", "and my new address is")]


def test_a_killed_job_is_recovered_by_the_next_in_its_room(worker: Worker) -> None:
    """SIGKILL in mid-sentence: the next agent in the room goes on where the dead one was."""
    room = worker.start_job(utters="and my new address is")
    worker.wait_for("ready", room)
    worker.kill_job(room, signal.SIGKILL)
    call, turns = lost(worker, room)
    worker.start_job(name=room, then="shutdown", says=["twelve mill lane"])
    assert worker.wait_for("attached", room, nth=2)["turns"] == len(turns) + 1
    worker.wait_for("closed", room)
    cut_off = ("caller", "and my new address is")
    assert worker.pushed(call) == [*turns, cut_off, *turns_of(["twelve mill lane"])]
    assert not worker.journals()


def test_another_call_in_a_room_of_the_same_name_is_another_call(worker: Worker) -> None:
    """A room's name may be used again by another caller: what was said there before is not theirs."""
    room = worker.start_job(then="shutdown")
    worker.wait_for("closed", room)
    worker.start_job(name=room, sid="RM_2", then="shutdown", says=["hello"])
    assert worker.wait_for("attached", room, nth=2)["turns"] == 0
    worker.wait_for("closed", room, nth=2)
    assert worker.pushed(f"{room}-RM_2") == turns_of(["hello"])


def test_a_slow_store_does_not_hold_up_the_close(worker: Worker) -> None:
    """A push that takes too long is let go: the job ends, and the journal has the call."""
    room = worker.start_job(then="shutdown", slow_push_s=600.0, attach={"push_timeout_s": 0.1})
    assert worker.wait_for("closed", room)["journals"] == 1
    gone(worker.told(room)[-1]["pid"])
    worker.recover_by_hand()
    assert worker.pushed(f"{room}-RM_1") == turns_of(SAYS)
    assert not worker.journals()


def test_a_worker_that_is_stopped_loses_no_call(tmp_path: Path) -> None:
    """However a worker under LiveKit's command line is told to stop, its live calls are stored.

    It drains, and then ends the jobs that live on, which push. Where their processes were told as well,
    SIGINT leaves them be, but SIGTERM (as systemd sends it) kills them: their calls are recovered,
    unless a `setup_fnc` makes them ignore it. In a container the worker alone is told.
    """
    ways = {
        "SIGTERM to the worker": (os.kill, signal.SIGTERM, "", True),
        "SIGINT to all": (os.killpg, signal.SIGINT, "", True),
        "SIGTERM to all": (os.killpg, signal.SIGTERM, "", False),
        "SIGTERM to all, ignored by jobs": (os.killpg, signal.SIGTERM, "ignore SIGTERM", True),
    }
    with ExitStack() as stack:
        workers = {
            way: stack.enter_context(
                running(tmp_path / way, "start", idle=0, drain_s=1, setup=setup)
            )
            for way, (_, _, setup, _) in ways.items()
        }
        rooms = {way: worker.start_job() for way, worker in workers.items()}
        pids = {way: worker.wait_for("ready", rooms[way])["pid"] for way, worker in workers.items()}
        for way, (send, sign, _, _) in ways.items():
            send(workers[way].process.pid, sign)
        for way, (_, _, _, is_pushed) in ways.items():
            worker, room = workers[way], rooms[way]
            if is_pushed:
                assert worker.wait_for("closed", room)["journals"] == 0, way
            worker.process.wait(PATIENCE_S)
            gone(pids[way])
            assert bool(worker.journals()) is not is_pushed, way
            worker.recover_by_hand()
            assert worker.pushed(f"{room}-RM_1") == turns_of(SAYS), way
            assert not worker.journals(), way


def test_jobs_may_be_threads(tmp_path: Path) -> None:
    """With LiveKit's thread executor jobs run beside each other, prewarmed each, and are pushed."""
    asyncio.run(_make_faq(MossClient(cloud=tmp_path / "faq")))
    config: dict[str, Any] = {
        "executor": "THREAD",
        "idle": 0,
        "setup": "prewarm",
        "prewarm": {"knowledge": ["faq"]},
    }
    with running(tmp_path / "worker", cloud=tmp_path / "faq", **config) as worker:
        rooms = [worker.start_job(then="shutdown", says=["when is it open", room]) for room in "ab"]
        for room, said in zip(rooms, "ab", strict=True):
            report = worker.wait_for("attached", room)
            assert (report["executor"], report["warm"]) == ("THREAD", True)
            ready = worker.wait_for("ready", room)
            assert not ready["in_main_thread"]
            assert FAQ[1].text in ready["hits"]
            worker.wait_for("closed", room)
            assert worker.pushed(f"{room}-RM_1") == turns_of(["when is it open", said])
        assert not worker.journals()


@pytest.mark.parametrize("preloaded", [False, True], ids=["own", "shared"])
def test_prewarmed_knowledge_is_loaded_once_before_the_call(
    tmp_path: Path, preloaded: bool
) -> None:
    """`setup_fnc=prewarm(...)` goes through the fork server; `attach` finds what it loaded, and no more.

    What does not exist or never comes is left out: the process is ready in time all the same. What was
    loaded in the fork server serves every process, and no thread of ours runs there.
    """
    asyncio.run(_make_faq(MossClient(cloud=tmp_path / "faq")))
    config: dict[str, Any] = {
        "setup": "prewarm",
        "prewarm": {"knowledge": ["missing", "hangs", "faq"], "timeout_s": 1.0},
        "preload_modules": ["livekit.plugins.moss_voice.preload"],
    }
    shared = "missing,faq" if preloaded else ""
    with running(tmp_path / "worker", cloud=tmp_path / "faq", preload=shared, **config) as worker:
        rooms = [
            worker.start_job(
                then="shutdown", says=["when is it open"], attach={"knowledge": ["faq"]}
            )
            for _ in range(3)
        ]
        here = load_embedder()
        for room in rooms:
            report = worker.wait_for("attached", room)
            assert report["warm"]
            before, after = report["loaded"]
            assert sorted(before) == ["faq", "hangs", "missing"]
            assert after == [report["call"]]
            assert report["shared"] == preloaded
            ready = worker.wait_for("ready", room)
            assert FAQ[1].text in ready["hits"]
            # The model was loaded in the fork server: in each child it says what it says here.
            expected = here.embed_query(f"to be computed here: {room}")
            assert np.array_equal(np.array(ready["vector"], np.float32), expected)
            worker.wait_for("closed", room)
        server = Path(f"/proc/{worker.wait_for('started', 'worker')['forkserver']}/task")
        assert len([*server.iterdir()]) == 1


# --- in this process ---------------------------------------------------------------------------------


def _process() -> JobProcess:
    return JobProcess(executor_type=JobExecutorType.PROCESS, user_arguments=None, http_proxy=None)


def test_prewarm_is_a_setup_function_that_can_be_sent() -> None:
    """What `prewarm(...)` returns is picklable, and the plain function is one as well."""
    setup = moss_voice.prewarm(knowledge=["faq"], recover=False, timeout_s=3.0)
    again = pickle.loads(pickle.dumps(setup))
    assert isinstance(again, functools.partial)
    assert again.keywords == {"knowledge": ("faq",), "recover": False, "timeout_s": 3.0}
    assert pickle.loads(pickle.dumps(moss_voice.prewarm)) is moss_voice.prewarm


def test_prewarm_survives_a_cloud_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without its cloud a process is ready all the same, and says what it lacks; `attach` finds the client."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("MOSS_VOICE_CLOUD", str(tmp_path / "file" / "cloud"))
    proc = _process()
    moss_voice.prewarm(proc, knowledge=["faq"])
    assert proc.userdata
    messages = [record.getMessage() for record in caplog.records]
    assert [message.split(":")[1].strip() for message in messages] == [
        "the knowledge 'faq'",
        "recovery",
    ]


def test_a_client_whose_prewarm_ran_out_of_time_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was given up in the prewarm's event loop is tried anew in the call's."""
    open_cloud = Cloud.check_credentials

    async def hanging(self: Cloud, *args: Any) -> Any:
        await asyncio.sleep(PATIENCE_S)

    client = MossClient(cloud=tmp_path / "cloud")
    asyncio.run(_make_faq(MossClient(cloud=tmp_path / "cloud")))
    monkeypatch.setattr(Cloud, "check_credentials", hanging)
    moss_voice.prewarm(_process(), knowledge=["faq"], client=client, timeout_s=0.05)
    monkeypatch.setattr(Cloud, "check_credentials", open_cloud)

    async def load() -> int:
        async with client:
            return await client.load_index("faq")

    assert asyncio.run(load()) == 2


@contextmanager
def job() -> Iterator[JobContext]:
    """Be in a job, in this process."""
    with fake_job_context() as ctx:
        yield ctx
        ctx._tempdir.cleanup()


async def _job_with_a_call(
    ctx: JobContext, end: Callable[[AgentSession[Any]], Awaitable[object]]
) -> str:
    """Have a call in a job, end the session in some way and then the job."""
    session: AgentSession[Any] = AgentSession(
        llm=ScriptedLLM(lambda _: "noted"), vad=None, turn_handling={"turn_detection": None}
    )
    memory = await moss_voice.attach(session)
    await session.start(Agent(instructions=""))
    await session.run(user_input=SAYS[0])
    await end(session)
    ours = [c for c in ctx._shutdown_callbacks if c.__qualname__ == "Attachment.on_shutdown"]
    assert len(ours) == 1
    for callback in [*ours, *ctx._shutdown_callbacks]:
        await callback("")
    return memory.name


@pytest.mark.parametrize("ending", ["toolset", "close", "shutdown"])
async def test_a_call_is_pushed_once_whoever_ends_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
) -> None:
    """Toolset, close event and shutdown callback all end the call: the first one pushes, once.

    The call is named after its room and the room's id; the client is made from the environment.
    """
    monkeypatch.setenv("MOSS_VOICE_CLOUD", str(tmp_path / "cloud"))
    pushes: list[str] = []
    push = Cloud.push

    async def counted(self: Cloud, *args: Any, **options: Any) -> Any:
        pushes.append("push")
        return await push(self, *args, **options)

    monkeypatch.setattr(Cloud, "push", counted)

    async def end(session: AgentSession[Any]) -> None:
        if ending == "toolset":
            await asyncio.gather(*(tool.aclose() for tool in session.tools))  # type: ignore[union-attr]
        if ending != "shutdown":
            await session.aclose()

    with job() as ctx:
        call = await _job_with_a_call(ctx, end)
        room = ctx.job.room
    assert call == f"{room.name}-{room.sid}"
    assert pushes == ["push"]
    async with MossClient() as client:
        docs = await client.get_docs(call)
        assert [doc.text for doc in docs] == [SAYS[0], "noted"]
        assert await client.recover() == []


async def test_a_prewarmed_client_outlives_its_call(tmp_path: Path) -> None:
    """The client that a process keeps for its calls is used by `attach`, and not closed with a call."""
    client = MossClient(cloud=tmp_path / "cloud")
    with job() as ctx:
        moss_voice.prewarm(ctx.proc, client=client)
        warm = prewarmed(ctx)
        assert warm is not None
        assert warm.client is client
        call = await _job_with_a_call(ctx, lambda session: session.aclose())
    assert [info.name for info in await client.list_indexes()] == [call]
    await client.close()
