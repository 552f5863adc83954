"""Our own threads: where anything that computes or waits for a disk runs.

The law: nothing of ours runs on the event loop for longer than an instant, nor on asyncio's shared
pool, which may be full of others' work (a wait of 280 ms was seen). A pool is made when it is first
used, one per process, and every session shares it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

__all__ = [
    "in_worker",
    "in_writer",
    "pool",
    "submit",
    "submit_after",
    "submit_aside",
    "submit_write",
]

T = TypeVar("T")

_pools: dict[str, ThreadPoolExecutor] = {}
_pools_lock = threading.Lock()


def pool(name: str, threads: int) -> ThreadPoolExecutor:
    """Return a pool of this process: every session shares it, nothing else uses it."""
    with _pools_lock:
        if name not in _pools:
            _pools[name] = ThreadPoolExecutor(threads, thread_name_prefix=f"moss_voice-{name}")
        return _pools[name]


def _forget_pools() -> None:
    """Drop what did not come along into a forked child: the threads, and whoever held the lock."""
    global _pools_lock  # noqa: PLW0603 - the parent's may be held for ever
    _pools_lock = threading.Lock()
    _pools.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pools)


def submit(function: Callable[..., T], *args: object) -> Future[T]:
    """Start a function on our pool, from any thread."""
    return pool("work", max(4, min(8, os.cpu_count() or 4))).submit(function, *args)


def submit_after(
    before: Iterable[Future[Any] | None], function: Callable[..., T], *args: object
) -> Future[T]:
    """Start a function on our pool once others are done, however they ended; no thread waits for them.

    What waits on a thread keeps it from those who could work: a disk that takes 100 ms to flush once
    made every context of 100 calls late.

    Args:
        before: What to wait for; None counts as done.
        function: What to run then.
        args: Of the function.

    Returns:
        Its future, from now on; cancelling it does nothing.
    """
    waiting = [run for run in before if run is not None and not run.done()]
    if not waiting:
        return submit(function, *args)
    answer: Future[T] = Future()
    answer.set_running_or_notify_cancel()
    left = itertools.count(len(waiting) - 1, -1)

    def start(_: Future[Any]) -> None:
        if next(left) == 0:
            try:
                submit(function, *args).add_done_callback(settle)
            except RuntimeError as error:  # the interpreter is on its way out
                answer.set_exception(error)

    def settle(run: Future[T]) -> None:
        error = run.exception()
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(run.result())

    for run in waiting:
        run.add_done_callback(start)
    return answer


def submit_aside(function: Callable[..., T], *args: object) -> Future[T]:
    """Start something short beside the work pool, whose threads may wait for it.

    For what can be done while the model runs, which leaves the interpreter to others. The function
    must not wait for the pools itself.
    """
    return pool("aside", 2).submit(function, *args)


async def in_worker(function: Callable[..., T], *args: object) -> T:
    """Run a function on our pool; about 0.1 ms of overhead."""
    return await asyncio.wrap_future(submit(function, *args))


def submit_write(function: Callable[..., T], *args: object) -> Future[T]:
    """Start something that waits for a local disk, beside the pool that computes."""
    return pool("disk", 4).submit(function, *args)


async def in_writer(function: Callable[..., T], *args: object) -> T:
    """Run a function that waits for a local disk, beside the pool that computes."""
    return await asyncio.wrap_future(submit_write(function, *args))
