"""Our own threads."""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future

import pytest

from moss_voice.workers import in_worker, pool, submit, submit_after, submit_aside


async def test_work_runs_on_threads_of_ours() -> None:
    """What computes runs neither on the event loop nor on asyncio's shared pool."""
    name = await in_worker(lambda: threading.current_thread().name)
    assert name.startswith("moss_voice-work")


def test_work_may_wait_for_what_runs_aside() -> None:
    """All work threads waiting for something aside at once do not block one another."""
    waiting = [submit(lambda: submit_aside(int).result(timeout=30)) for _ in range(64)]
    assert [run.result(timeout=60) for run in waiting] == [0] * 64


def test_a_pool_is_made_once() -> None:
    """Every session shares one pool of a name."""
    assert pool("work", 1) is pool("work", 9)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_has_threads_of_its_own() -> None:
    """After a fork the child's work runs, though the parent's threads did not come along."""
    submit(int).result(timeout=30)
    child = os.fork()
    if child == 0:
        os._exit(submit(lambda: 7).result(timeout=30))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7


def test_what_waits_for_others_holds_no_thread() -> None:
    """However much waits for something that is not done, what needs no waiting runs at once."""
    gate: Future[None] = Future()
    waiting = [submit_after([None, gate], int) for _ in range(64)]
    assert submit(int).result(timeout=30) == 0
    assert not any(run.done() for run in waiting)
    gate.set_result(None)
    assert [run.result(timeout=30) for run in waiting] == [0] * 64


def test_it_runs_once_all_are_done_however_they_ended() -> None:
    """A failure or a cancellation before it does not keep a function from running; the last one starts it."""
    first: Future[None] = Future()
    second: Future[None] = Future()
    third: Future[None] = Future()
    ran: list[str] = []
    run = submit_after([first, second, third], lambda: ran.append("ran"))
    first.set_exception(OSError("full"))
    assert second.cancel()
    assert not run.done()
    third.set_result(None)
    run.result(timeout=30)
    assert ran == ["ran"]
    assert submit_after([first, None], lambda: 7).result(timeout=30) == 7


def test_its_failure_is_its_own() -> None:
    """What goes wrong in a function that waited is told by its future."""
    before: Future[None] = Future()
    run = submit_after([before], lambda: 1 // 0)
    before.set_result(None)
    with pytest.raises(ZeroDivisionError):
        run.result(timeout=30)
