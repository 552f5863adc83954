"""`make bench-quality`: how well a call recalls what it needs, on real conversations.

All of it through the public API: a call is opened, its turns are heard, and the last is asked for. Beside
it what others do with the same vectors: search with the last turn alone, by meaning, by words, and by
reciprocal rank fusion of the two. Each difference comes with a paired bootstrap interval.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from benchmarks.corpus import data_directory
from benchmarks.run import machine
from moss_voice import DocumentInfo, MossClient, QueryOptions, SearchResult
from moss_voice.ranking import PARTS, Part

Row = dict[str, Any]
F64 = npt.NDArray[np.float64]

# Deep enough for every metric; reciprocal ranks beyond it count nothing.
DEPTH = 10
# A rank that stands for "not found".
MISSED = 10**6


class Asked(NamedTuple):
    """A query of a set: what was said before it, what it says, and what answers it.

    Attributes:
        id: Its own.
        said: (speaker, text) of the turns before it.
        text: The turn.
        gold: Ids of right answers; empty where the turn needs none.
    """

    id: str
    said: Sequence[tuple[str, str]]
    text: str
    gold: frozenset[str]


class FaqSet(NamedTuple):
    """Passages, and turns that ask for them or do not.

    Attributes:
        name: Of its folder.
        docs: As somebody would index them: `name: question answer`, the name as metadata too.
        asked: The queries.
        focus: The metadata field that holds names; None where there is none.
    """

    name: str
    docs: list[DocumentInfo]
    asked: list[Asked]
    focus: str | None


class Meetings(NamedTuple):
    """Meetings, and queries about them: a turn within a span is right."""

    name: str
    turns: Mapping[str, list[Row]]
    queries: list[Row]


def rows_of(path: Path) -> Iterator[Row]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


def splits(folder: Path, stem: str) -> list[Row]:
    """Return the rows of every split that is there: `queries.dev.jsonl`, `queries.test.jsonl`."""
    paths = sorted(folder.glob(f"{stem}*.jsonl"))
    if not paths:
        raise FileNotFoundError(f"{folder}: expected {stem}.*.jsonl")
    return [row for path in paths for row in rows_of(path)]


def read_faq_set(folder: Path) -> FaqSet:
    """Read passages and queries; those that have labels are right for each other by label."""
    docs: list[DocumentInfo] = []
    labels: dict[str, set[str]] = {}
    focus = None
    for row in rows_of(folder / "docs.jsonl"):
        entity, label = row.get("entity"), row.get("label")
        # A label is the answer itself: it may not be read.
        said = row["body"] if label else " ".join(filter(None, (row.get("title"), row["body"])))
        metadata: dict[str, str | int | float | bool] = {}
        if entity:
            focus = "entity"
            metadata["entity"] = entity
        if row.get("domain"):
            metadata["domain"] = row["domain"]
        text = f"{entity}: {said}" if entity else said
        docs.append(DocumentInfo(row["id"], text, metadata or None))
        if label:
            labels.setdefault(label, set()).add(row["id"])
    asked = []
    for row in splits(folder, "queries"):
        gold = labels.get(row["label"], ()) if "label" in row else row.get("gold") or ()
        said = [
            ("caller" if turn["speaker"] == "user" else "agent", turn["text"])
            for turn in row.get("history") or row.get("context") or ()
        ]
        needs = row.get("target", True)
        asked.append(Asked(row["id"], said, row["text"], frozenset(gold if needs else ())))
    return FaqSet(folder.name, docs, asked, focus)


def read_meetings(folder: Path) -> Meetings:
    turns: dict[str, list[Row]] = {}
    for row in splits(folder, "turns"):
        if row["text"].strip():
            turns.setdefault(row["conv_id"], []).append(row)
    return Meetings(folder.name, turns, splits(folder, "queries"))


class Way(NamedTuple):
    """One way to search, and what it found.

    Attributes:
        name: For the table.
        ranks: (n,) place of the best right answer per query, `MISSED` where there is none.
        needs: (n,) what the gate thought of each; empty where nothing was asked of it.
    """

    name: str
    ranks: list[int]
    needs: list[float]


class Setting(NamedTuple):
    """How the call is opened: the default, or with something left out."""

    name: str
    focus: Sequence[str] | None = None
    without: tuple[Part, ...] = ()


DEFAULT = Setting("moss_voice")
OF_PASSAGES: tuple[Part, ...] = (
    "conversation",
    "keyword_window",
    "focus",
    "topic_change",
    "near_duplicates",
    "numbers",
    "gate",
)
OF_TURNS: tuple[Part, ...] = ("neighbours", "recency", "spread", "near_duplicates", "numbers")


def settings(parts: Sequence[Part], *, focus: str | None, ablate: bool) -> list[Setting]:
    found = [DEFAULT]
    if focus is not None:
        found.append(Setting(f"with focus=[{focus!r}] given by hand", [focus]))
    if ablate:
        found += [Setting(f"without {part}", without=(part,)) for part in parts]
        found.append(Setting("without all of these", without=PARTS))
    return found


async def faq_ways(client: MossClient, data: FaqSet, *, ablate: bool) -> list[Way]:
    """Replay each dialogue as a call, and ask its last turn, in every setting.

    What was said before is in the prompt, as in a host that sends its whole history: only passages are
    ranked.
    """
    chosen = settings(OF_PASSAGES, focus=data.focus, ablate=ablate)
    ways = [Way(setting.name, [], []) for setting in chosen]
    for number, asked in enumerate(data.asked):
        # All settings of one dialogue after another: the model's cache then knows its turns.
        for setting, way in zip(chosen, ways, strict=True):
            call = await client.call(
                f"{data.name}-{number}",
                knowledge=[data.name],
                focus=setting.focus,
                without=setting.without,
                journal=False,
                top_k=DEPTH,
                max_tokens=100_000,
                deadline_ms=60_000,
            )
            heard = [await call.heard(text, speaker) for speaker, text in asked.said]
            context = await call.context(asked.text, visible=[id_ for id_ in heard if id_])
            assert context.outcome in {"ok", "skipped"}, context.outcome
            way.ranks.append(rank_of([hit.id for hit in context.hits], asked.gold))
            way.needs.append(context.need if context.need is not None else 0.0)
            await call.discard()
    return ways + await plain_ways(
        lambda text, options: client.query(data.name, text, options),
        [asked.text for asked in data.asked],
        [asked.gold for asked in data.asked],
    )


async def plain_ways(
    query: Callable[[str, QueryOptions], Awaitable[SearchResult]],
    texts: Sequence[str],
    golds: Sequence[Collection[str]],
) -> list[Way]:
    """Search with the last turn alone, as with any vector store: by meaning, by words, and by both."""
    ways = [
        Way(name, [], []) for name in ("last turn, dense", "last turn, BM25", "last turn, RRF 0.8")
    ]
    for text, gold in zip(texts, golds, strict=True):
        dense, words = [
            [doc.id for doc in (await query(text, QueryOptions(top_k=100, alpha=alpha))).docs]
            for alpha in (1.0, 0.0)
        ]
        for way, ids in zip(ways, (dense, words, rrf(dense, words)), strict=True):
            way.ranks.append(rank_of(ids[:DEPTH], gold))
    return ways


def rank_of(ids: Sequence[str], gold: Collection[str]) -> int:
    return next((place for place, id_ in enumerate(ids, 1) if id_ in gold), MISSED)


def rrf(
    dense: Sequence[str], words: Sequence[str], *, alpha: float = 0.8, k: int = 60
) -> list[str]:
    """Fuse two lists by reciprocal ranks (Cormack et al. 2009)."""
    scores: dict[str, float] = {}
    for weight, ids in ((alpha, dense), (1 - alpha, words)):
        for place, id_ in enumerate(ids, 1):
            scores[id_] = scores.get(id_, 0.0) + weight / (k + place)
    return sorted(scores, key=lambda id_: -scores[id_])


async def meeting_ways(client: MossClient, data: Meetings, *, ablate: bool) -> list[Way]:
    """Hear each meeting as a call, push it, and recall from it in every setting."""
    chosen = settings(OF_TURNS, focus=None, ablate=ablate)
    ways = [Way(setting.name, [], []) for setting in chosen]
    plain: list[Way] = []
    for conv_id, turns in data.turns.items():
        queries = [row for row in data.queries if row["conv_id"] == conv_id]
        if not queries:
            continue
        call = await client.call(conv_id, journal=False)
        for turn in turns:
            await call.heard(turn["text"], turn["speaker"], id=turn["id"], at=float(turn["turn"]))
        await call.end()
        golds = [
            {
                turn["id"]
                for turn in turns
                for first, last in query["gold_spans"]
                if first <= turn["turn"] <= last
            }
            for query in queries
        ]
        for setting, way in zip(chosen, ways, strict=True):
            call = await client.call(
                conv_id, without=setting.without, journal=False, deadline_ms=60_000
            )
            for query, gold in zip(queries, golds, strict=True):
                hits = await call.recall(query["text"], top_k=DEPTH)
                way.ranks.append(rank_of([hit.id for hit in hits], gold))
            await call.discard()
        session = await client.session(conv_id)
        found = await plain_ways(session.query, [query["text"] for query in queries], golds)
        await session.close()
        plain = (
            found
            if not plain
            else [
                Way(old.name, old.ranks + new.ranks, [])
                for old, new in zip(plain, found, strict=True)
            ]
        )
    return ways + plain


_DIGITS = dict(
    zip(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"],
        "0123456789",
        strict=True,
    )
)

_READ_OUT = re.compile(rf"(?:\b(?:{'|'.join(_DIGITS)})\b ?){{3,}}")


def spoken_numbers(data: Path) -> list[tuple[list[tuple[str, str]], list[tuple[str, int]]]]:
    """Return the calls of the data in which somebody reads out digits: its turns, and what to ask.

    A query asks for the digits as one would type them; the turn that has them is right.
    """
    found = []
    for row in rows_of(data / "calls.dev.jsonl") if (data / "calls.dev.jsonl").exists() else ():
        turns = [
            (str(turn["speaker"]), str(turn["text"]))
            for turn in row["turns"]
            if turn["speaker"] != "action" and turn["text"].strip()
        ]
        asked: dict[str, int] = {}
        for at, (_, text) in enumerate(turns):
            for run in _READ_OUT.findall(text.lower()):
                asked.setdefault("".join(_DIGITS[word] for word in run.split()), at)
        if asked:
            found.append((turns, list(asked.items())))
    return found


async def number_ways(
    client: MossClient, calls: Sequence[tuple[list[tuple[str, str]], list[tuple[str, int]]]]
) -> list[Way]:
    """Hear each call, and recall from it what was read out, asked for in digits."""
    chosen = [DEFAULT, Setting("without numbers", without=("numbers",))]
    ways = [Way(setting.name, [], []) for setting in chosen]
    for number, (turns, asked) in enumerate(calls):
        for setting, way in zip(chosen, ways, strict=True):
            call = await client.call(
                f"numbers-{number}", without=setting.without, journal=False, deadline_ms=60_000
            )
            ids = [await call.heard(text, speaker) for speaker, text in turns]
            for digits, at in asked:
                hits = await call.recall(f"did you say {digits}", top_k=DEPTH)
                way.ranks.append(rank_of([hit.id for hit in hits], {str(ids[at])}))
            await call.discard()
    return ways


def metrics(ranks: npt.NDArray[np.int64], *, cuts: Sequence[int], mrr: bool) -> dict[str, F64]:
    """Return each metric, per query."""
    found = {f"hit@{cut}": (ranks <= cut).astype(np.float64) for cut in cuts}
    if mrr:
        found["MRR@5"] = np.where(ranks <= 5, 1.0 / ranks, 0.0)
    return found


def interval(differences: F64, *, rounds: int = 2000, seed: int = 1) -> tuple[float, float]:
    """Return the 95% interval of a mean difference, by resampling the queries (paired bootstrap)."""
    rng = np.random.default_rng(seed)
    means = [
        differences[rng.integers(0, differences.size, differences.size)].mean()
        for _ in range(rounds)
    ]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def auc(needs: Sequence[float], wanted: Sequence[bool]) -> float | None:
    """Return how often a turn that needs knowledge is told from one that does not (Mann-Whitney)."""
    scores, mask = np.array(needs), np.array(wanted)
    yes, no = scores[mask], scores[~mask]
    if not yes.size or not no.size:
        return None
    above = (yes[:, None] > no).mean() + 0.5 * (yes[:, None] == no).mean()
    return round(float(above), 4)


def report_of(
    ways: Sequence[Way], wanted: Sequence[bool], *, cuts: Sequence[int], mrr: bool
) -> list[Row]:
    """Return a row per way: its metrics, and how it differs from the first one."""
    mask = np.array(wanted)
    first = metrics(np.array(ways[0].ranks)[mask], cuts=cuts, mrr=mrr)
    rows = []
    for way in ways:
        found = metrics(np.array(way.ranks)[mask], cuts=cuts, mrr=mrr)
        row: Row = {"way": way.name, "queries": int(mask.sum())}
        for name, values in found.items():
            row[name] = round(float(values.mean()), 4)
            if way is not ways[0]:
                low, high = interval(values - first[name])
                row[f"{name} - default"] = [
                    round(float((values - first[name]).mean()), 4),
                    round(low, 4),
                    round(high, 4),
                ]
        if way.needs:
            row["gate AUC"] = auc(way.needs, wanted)
            passed = np.array(way.needs) >= 1.0
            row["needed and asked"] = round(float(passed[mask].mean()), 4)
            if not mask.all():
                row["not needed and asked"] = round(float(passed[~mask].mean()), 4)
        rows.append(row)
    return rows


async def measure(
    folders: Sequence[Path], *, ablate: bool, most: int | None
) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    console = Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="moss-voice-quality-") as name:
        root = Path(name)
        client = MossClient(
            cloud=root / "cloud", cache_path=root / "cache", journal_path=root / "journal"
        )
        async with client:
            for folder in folders:
                started = time.perf_counter()
                console.print(f"measuring {folder.name}")
                if (folder / "calls.dev.jsonl").exists():
                    ways = await number_ways(client, spoken_numbers(folder)[:most])
                    wanted = [True] * len(ways[0].ranks)
                    found["numbers read out in calls, asked for in digits"] = report_of(
                        ways, wanted, cuts=(1, 5), mrr=True
                    )
                elif (folder / "docs.jsonl").exists():
                    data = read_faq_set(folder)
                    if most is not None:
                        data = data._replace(asked=data.asked[:most])
                    await client.create_index(data.name, data.docs)
                    await client.load_index(data.name)
                    if data.focus is not None:
                        # Names of fields given by hand are studied once a call asks for them.
                        await (
                            await client.call("warm", knowledge=[data.name], focus=[data.focus])
                        ).discard()
                        await asyncio.sleep(2.0)
                    ways = await faq_ways(client, data, ablate=ablate)
                    wanted = [bool(asked.gold) for asked in data.asked]
                    found[data.name] = report_of(ways, wanted, cuts=(1, 5), mrr=True)
                    await client.unload_index(data.name)
                else:
                    meetings = read_meetings(folder)
                    if most is not None:
                        meetings = meetings._replace(queries=meetings.queries[:most])
                    ways = await meeting_ways(client, meetings, ablate=ablate)
                    wanted = [True] * len(ways[0].ranks)
                    found[meetings.name] = report_of(ways, wanted, cuts=(1, 5, 10), mrr=False)
                console.print(f"  {time.perf_counter() - started:.0f} s")
    return found


def show(report: Mapping[str, list[Row]], console: Console) -> None:
    """Print a table per set; in brackets the 95% interval of the difference from the first line."""
    for name, rows in report.items():
        keys = [key for key in rows[0] if key not in {"way", "queries"}]
        table = Table(f"{name}, {rows[0]['queries']} queries", *keys)
        for row in rows:
            cells = []
            for key in keys:
                cell = "" if row.get(key) is None else f"{row[key]:.3f}"
                if f"{key} - default" in row:
                    mean, low, high = row[f"{key} - default"]
                    cell += f"  {mean:+.3f} [{low:+.3f}, {high:+.3f}]"
                cells.append(cell)
            table.add_row(row["way"], *cells)
        console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, help="the evaluation data, or one folder of its format"
    )
    parser.add_argument("--sets", nargs="*", help="only these folders of it")
    parser.add_argument("--ablate", action="store_true", help="leave out each part in turn as well")
    parser.add_argument("--most", type=int, help="only so many queries of each set")
    parser.add_argument("--json", type=Path, help="write the report here")
    args = parser.parse_args()
    data = args.data or data_directory()
    if data is None:
        sys.exit("expected the evaluation data: --data DIR or MOSS_VOICE_DATA")
    folders = folders_of(data, args.sets)
    report = asyncio.run(measure(folders, ablate=args.ablate, most=args.most))
    show(report, Console(width=None if sys.stdout.isatty() else 200))
    if args.json is not None:
        whole = {"machine": machine(), "ablated": args.ablate, "sets": report}
        args.json.write_text(json.dumps(whole, indent=2) + "\n")


def folders_of(data: Path, names: Sequence[str] | None) -> list[Path]:
    """Return the folders that hold queries: the directory itself, or those in it."""
    if list(data.glob("queries*.jsonl")):
        return [data]
    paths = (*data.glob("*/queries*.jsonl"), *data.glob("*/calls.dev.jsonl"))
    found = sorted({path.parent for path in paths})
    return [folder for folder in found if not names or folder.name in names]


if __name__ == "__main__":
    main()
