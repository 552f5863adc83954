"""The report as tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.table import Table

from benchmarks.load.process import Row
from benchmarks.load.replay import MOST_LATE, MOST_P99_MS
from benchmarks.load.scale import KINDS
from benchmarks.load.turn import GOAL_MS


def tables_of(report: Row) -> Iterator[Table]:
    """Yield a table or two for each part of a report."""
    if "scale" in report:
        yield _sizes(report["scale"])
        yield _latencies(report["scale"])
    if "load" in report:
        yield from _levels(report["load"])
    if "long" in report:
        yield from _long(report["long"])
    if "turn" in report:
        yield from _turn(report["turn"])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title)
    for name in columns:
        table.add_column(name, justify="right")
    return table


def _told(value: Any, digits: int = 2) -> str:
    return (
        "" if value is None else f"{value:.{digits}f}" if isinstance(value, float) else str(value)
    )


def _cells(latency: Row, *keys: str) -> list[str]:
    return [_told(latency.get(key)) for key in keys]


def _sizes(rows: list[Row]) -> Table:
    table = _table(
        "indexes by size: to load them, and what they take",
        "passages", "synthetic", "stored MB", "from cloud s", "graph s", "cpu s",
        "from cache s", "to 1st answer s", "with graph s", "private MB", "after a build",
    )  # fmt: skip
    keys = (
        "passages", "synthetic", "stored_mb", "load_from_cloud_s", "graph_build_s",
        "load_and_build_cpu_s", "load_from_cache_s", "load_and_first_query_s",
        "with_graph_after_s", "private_mb", "private_mb_with_new_graph",
    )  # fmt: skip
    for row in rows:
        table.add_row(*(_told(row[key]) for key in keys))
    return table


def _latencies(rows: list[Row]) -> Table:
    table = _table(
        "by size, in ms; the model ran the same text just before",
        "passages", "measured", "n", "p50", "p99", "model p50", "x model", "without the model",
    )  # fmt: skip
    for row in rows:
        for kind in KINDS:
            cell = row[kind]
            table.add_row(
                str(row["passages"]),
                kind,
                str(cell["n"]),
                _told(cell["p50"]),
                _told(cell["p99"]),
                _told(cell["model"]["p50"]),
                _told(cell["times_the_model"]),
                _told(cell["without_model_ms"]),
            )
        table.add_section()
    return table


def _levels(report: Row) -> Iterator[Table]:
    delays = _table(
        "calls beside each other in one process, at speaking pace: the delay of a reply, in ms",
        "calls", "asked", "p50", "p95", "p99", "max", "late", "prefetched",
        "from the question p50", "p99", "unforeseen p50",
    )  # fmt: skip
    rest = _table(
        "and the process",
        "calls", "heard p50", "p99", "loop lag p99", "idle p99", "end p50", "cores",
        "calls per core", "private MB", "MB per call",
    )  # fmt: skip
    for row in report["levels"]:
        delays.add_row(
            str(row["calls"]),
            str(row["delay"]["n"]),
            *_cells(row["delay"], "p50", "p95", "p99", "max"),
            f"{row['late']} ({row['late_share']:.2%})",
            f"{row['prefetched_share']:.0%}",
            *_cells(row["asked_to_answered"], "p50", "p99"),
            *_cells(row["asked_to_answered_unforeseen"], "p50"),
        )
        rest.add_row(
            str(row["calls"]),
            *_cells(row["heard"], "p50", "p99"),
            *_cells(row["loop_lag"], "p99"),
            *_cells(row["idle_lag"], "p99"),
            *_cells(row["end"], "p50"),
            _told(row["cores_used"], 3),
            _told(row["calls_per_core"], 0),
            _told(row["private_mb"], 0),
            _told(row["mb_per_call"], 3),
        )
    delays.caption = (
        f"the most calls with a p99 under {MOST_P99_MS:g} ms and under {MOST_LATE:.1%} missed:"
        f" {report['most_calls_held']}"
    )
    if report.get("mb_per_further_call") is not None:
        rest.caption = f"a further call takes {report['mb_per_further_call']} MB"
    yield delays
    yield rest


def _long(report: Row) -> Iterator[Table]:
    table = _table(
        "a long call, in ms",
        "turns", "context p50", "p99", "without the model", "heard p50", "p99",
        "without the model", "private MB",
    )  # fmt: skip
    for row in report["marks"]:
        cells = [
            _told(row[kind].get(key))
            for kind in ("context", "heard")
            for key in ("p50", "p99", "without_model_ms")
        ]
        table.add_row(str(row["turns"]), *cells, _told(row["private_mb"]))
    yield table
    rest = _table("the whole of it", "measured", "value")
    for name, value in (
        ("private MB after each 1,000 turns", report["private_mb_per_1000_turns"]),
        ("journal", f"{report['journal_mb']} MB"),
        ("end and push", f"{report['end_s']} s, {report['pushed_mb']} MB"),
        ("resumed, nothing in the cache", f"{report['resume_cold_s']} s"),
        ("resumed from the cache", f"{report['resume_warm_s']} s"),
        ("first context then", f"{report['first_context_warm_ms']} ms"),
        ("turns resumed", report["resumed_turns"]),
    ):
        rest.add_row(name, str(value))
    yield rest


def _turn(report: Row) -> Iterator[Table]:
    table = _table(
        f"a turn without its model run, {report['passages']} passages; ms",
        "embedding", "measured", "p50", "p99", "model p50", "goal",
    )  # fmt: skip
    for kind, row in report["whole"].items():
        for what in ("context", "heard"):
            goal = f"{GOAL_MS}" if what == "context" else ""
            model = _told(row["model"]["p50"], 3)
            cells = (_told(row[what][key], 3) for key in ("p50", "p99"))
            table.add_row(kind, what, *cells, model, goal)
    yield table
    parts = _table("parts of a context by themselves; ms", "part", "p50", "p99")
    for part, cell in report["parts"].items():
        parts.add_row(part, _told(cell["p50"], 3), _told(cell["p99"], 3))
    yield parts
