"""Our own threads."""

from __future__ import annotations

import os
import threading

import pytest

from moss_voice.workers import in_worker, pool, submit, submit_aside


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
