"""`python -m benchmarks.names`: how fast the names of a large index are found in a turn, and what they take.

The names are made up of surnames, kinds and places that are put together by chance; the turns are those
of the recorded calls. Processor time of the one thread that looks, since the machine is shared.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import time
from pathlib import Path

import numpy as np

from benchmarks.corpus import corpus
from benchmarks.run import Row, machine
from moss_voice.call.names import Names
from moss_voice.text import words

_SYLLABLES = [
    "ba",
    "cor",
    "del",
    "en",
    "fa",
    "gar",
    "hol",
    "in",
    "ja",
    "kel",
    "lor",
    "man",
    "nor",
    "os",
    "pel",
    "qui",
    "ro",
    "sta",
    "ton",
    "ur",
    "vel",
    "wick",
    "xan",
    "yor",
    "zel",
    "bury",
    "ford",
    "ham",
    "ley",
    "mont",
]
_KINDS = [
    "Hotel",
    "Inn",
    "Guest-House",
    "Restaurant",
    "Cafe",
    "Bistro",
    "Bar",
    "Kitchen",
    "Grill",
    "Pharmacy",
    "Clinic",
    "Garage",
    "Bakery",
    "Lodge",
    "Museum",
    "Park",
    "Salon",
    "School",
    "Dentistry",
    "Market",
]
_COLOURS = [
    "Golden",
    "Royal",
    "Little",
    "Grand",
    "Old",
    "New",
    "Blue",
    "Red",
    "Happy",
    "Lucky",
    "Silver",
    "Green",
    "Great",
    "Sunny",
]
_PLACES = [
    "San Francisco",
    "Cambridge",
    "Union Square",
    "Pacific Heights",
    "Mission",
    "Oakland",
    "Downtown",
    "North Beach",
    "Sunset District",
    "London",
    "Soho",
]


def made_up_names(n: int, *, seed: int = 1) -> list[str]:
    """Return n distinct names of businesses that might be."""
    chance = random.Random(seed)
    surnames = [
        "".join(chance.choice(_SYLLABLES) for _ in range(chance.choice([2, 2, 3]))).capitalize()
        for _ in range(30_000)
    ]

    def name() -> str:
        surname, kind = chance.choice(surnames), chance.choice(_KINDS)
        form = chance.random()
        if form < 0.3:
            return f"{surname} {kind}"
        if form < 0.5:
            return f"{surname}'s {kind} - {chance.choice(_PLACES)}"
        if form < 0.7:
            return f"The {chance.choice(_COLOURS)} {surname} {kind}"
        if form < 0.85:
            return f"{surname} & {chance.choice(surnames)} {kind}"
        return f"{kind} {surname} {chance.choice(_PLACES)}"

    found: dict[str, None] = {}
    while len(found) < n:
        found[name()] = None
    return list(found)


def resident_mb() -> float:
    gc.collect()
    path = Path("/proc/self/statm")
    return int(path.read_text().split()[1]) * 4096 / 1e6 if path.exists() else float("nan")


def measure(n: int, *, rounds: int) -> Row:
    """Measure building the matcher, and finding names in turns of 10 to 25 words, each several times."""
    names = dict.fromkeys(made_up_names(n))
    said = [words(text) for call in corpus(1).calls for _, text in call]
    turns = [turn for turn in said if 10 <= len(turn) <= 25]
    before_mb, started = resident_mb(), time.perf_counter()
    matcher = Names(names)
    build_s, kept_mb = time.perf_counter() - started, resident_mb() - before_mb
    took_ms: list[float] = []
    for _ in range(rounds):
        for turn in turns:
            begun = time.thread_time_ns()
            matcher.find(turn)
            took_ms.append((time.thread_time_ns() - begun) / 1e6)
    return {
        "names": n,
        "turns": len(turns),
        "build_s": round(build_s, 2),
        "kept_mb": round(kept_mb, 1),
        "find_ms": {
            "p50": round(float(np.median(took_ms)), 4),
            "p95": round(float(np.percentile(took_ms, 95)), 4),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--names", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    report = {"machine": machine(), **measure(args.names, rounds=args.rounds)}
    found = report["find_ms"]
    print(
        f"{report['names']} names, {report['turns']} turns: found in {found['p50']:.3f} ms (p95"
        f" {found['p95']:.3f}); built in {report['build_s']} s, {report['kept_mb']} MB"
    )
    if args.json is not None:
        args.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
