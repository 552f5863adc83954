"""Measuring in fresh processes, and what a process can tell of itself."""

from __future__ import annotations

import asyncio
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = dict[str, Any]
Measure = Callable[..., Coroutine[Any, Any, Row]]


def fresh(module: str, measure: str, **options: object) -> Row:
    """Run a measure of a module in a process of its own, so that memory and threads are its alone.

    Raises:
        RuntimeError: If it failed; what it had to say went to stderr.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, measure, json.dumps(options)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    lines = done.stdout.splitlines()
    if done.returncode != 0 or not lines:
        raise RuntimeError(f"{module} {measure} failed with {done.returncode}")
    row: Row = json.loads(lines[-1])
    return row


def answer(*measures: Measure) -> None:
    """Be that process: run what the command line names, print its row."""
    by_name = {measure.__name__: measure for measure in measures}
    name, options = sys.argv[1:]
    print(json.dumps(asyncio.run(by_name[name](**json.loads(options)))))


def private_mb() -> float | None:
    """Return the memory that is this process's alone (`RssAnon`); None where the system won't tell."""
    gc.collect()
    status = Path("/proc/self/status")
    for line in status.read_text().splitlines() if status.exists() else ():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) / 1024
    return None


def grown_mb(before: float | None, *, per: float = 1.0, digits: int = 1) -> float | None:
    """Return what has been added to the private memory since, in shares."""
    now = private_mb()
    return None if now is None or before is None else round((now - before) / per, digits)


def cpu_s() -> float:
    """Return the processor time of this process so far, all threads, user and system."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def latency(values: Sequence[float]) -> Row:
    """Return n, p50, p95, p99 and max; n alone of nothing."""
    if not values:
        return {"n": 0}
    p50, p95, p99 = np.percentile(values, [50, 95, 99]).tolist()
    found = {"p50": p50, "p95": p95, "p99": p99, "max": max(values)}
    return {"n": len(values), **{name: round(value, 3) for name, value in found.items()}}
