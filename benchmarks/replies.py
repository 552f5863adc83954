"""What the benchmarks of both hosts share: the turns that are spoken, and how two arms are compared."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.corpus import corpus
from benchmarks.run import client_in, settled
from moss_voice import MossClient
from moss_voice.text import is_filler

Row = dict[str, Any]
# Speaks some turns, with the memory of a client or without one; each value is one per turn or per call.
OneCall = Callable[[Sequence[str], MossClient | None, str], Awaitable[dict[str, list[float]]]]


async def compared(
    one_call: OneCall, folder: Path, *, passages: int, calls: int, turns: int
) -> dict[str, dict[str, list[float]]]:
    """Speak the same turns with us and without us, call by call in turn; returns both arms.

    The first call of each arm warms up and is left out.
    """
    texts = corpus(passages)
    # Turns of one short breath: what is measured comes after them.
    spoken = [
        text
        for call in texts.calls
        for speaker, text in call
        if speaker == "caller" and text.strip() and not is_filler(text) and len(text.split()) < 20
    ]
    arms: dict[str, dict[str, list[float]]] = {"without": {}, "with": {}}
    async with client_in(folder) as client:
        await client.create_index("faq", texts.passages)
        await client.load_index("faq")
        await settled(client, "faq")
        for number in range(calls + 1):
            said = [spoken[(number * turns + i) % len(spoken)] for i in range(turns)]
            for who in ("without", "with") if number % 2 else ("with", "without"):
                row = await one_call(said, client if who == "with" else None, f"call-{number}")
                for name, values in row.items() if number else ():
                    arms[who].setdefault(name, []).extend(values)
    return arms


def difference(ours: Sequence[float], theirs: Sequence[float]) -> Row:
    """Return the difference of the medians with its 95% interval, by a bootstrap over turns."""
    rng = np.random.default_rng(7)
    a, b = np.array(ours), np.array(theirs)
    draws = [
        float(np.median(rng.choice(a, a.size)) - np.median(rng.choice(b, b.size)))
        for _ in range(2000)
    ]
    low, high = np.percentile(draws, [2.5, 97.5])
    return {
        "median": round(float(np.median(a) - np.median(b)), 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
    }


def percentile(values: Sequence[float], share: float) -> float | None:
    """Return a percentile in hundredths; None of nothing."""
    return round(float(np.percentile(values, share)), 2) if values else None


def told(added: Row) -> str:
    """Return a difference for people."""
    return f"{added['median']:+.1f} [{added['low']:+.1f}, {added['high']:+.1f}]"
