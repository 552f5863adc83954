"""The benchmarks run: once, tiny, for what they report and not for how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def benchmark(module: str, *args: str) -> str:
    """Run a benchmark as `make bench` does; returns what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", module, *args],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_everything_is_measured(tmp_path: Path) -> None:
    """`make bench` reports every number that the README shows, as a table and as JSON."""
    path = tmp_path / "bench.json"
    table = benchmark("benchmarks.run", "--tiny", "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["tiny"] is True
    for row in report["turns"]:
        for kind in ("context", "context_prefetched", "heard"):
            assert row[kind]["n"] > 0
            assert row[kind]["p50"] > 0
            assert row[kind]["model"]["p50"] > 0
    assert report["cold_start"]["hits"] > 0
    assert report["push"]["uploaded_kb"] > 0
    assert report["large"]["cache_load_and_first_query_s"] > 0
    assert "context" in table
    assert "push of 20 turns" in table


def test_the_model_is_measured_by_length() -> None:
    """`benchmarks.embedding` reports each length, with and without the tokenizer."""
    report = json.loads(
        benchmark("benchmarks.embedding", "--rounds", "2", "--texts", "8", "--json")
    )
    assert "64" in json.dumps(report)


def test_the_memory_of_livekit_processes_is_measured(tmp_path: Path) -> None:
    """`benchmarks.livekit_memory` reports a worker's processes, waiting and answering, and finds hits."""
    path = tmp_path / "memory.json"
    printed = benchmark("benchmarks.livekit_memory", "--tiny", "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    if "skipped" in report:
        assert report["skipped"] in printed
        return
    [row] = report["workers"].values()
    assert row["hits"] > 0
    for state in ("waiting", "answered", "forkserver"):
        cell = row[state]
        assert 0 < cell["uss_mb"] <= cell["pss_mb"] <= cell["rss_mb"]
    assert "answered" in printed


@pytest.mark.parametrize("host", ["livekit", "pipecat"])
def test_what_we_add_to_a_reply_is_measured(host: str, tmp_path: Path) -> None:
    """`benchmarks.livekit_delay` and `.pipecat_delay` compare replies with and without us in one run."""
    path = tmp_path / "delay.json"
    few = ("--passages", "50", "--calls", "1", "--turns", "2", "--speed", "40")
    printed = benchmark(f"benchmarks.{host}_delay", *few, "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    for row in report.get("rows", [report]):
        assert row["without"]["turns"] == row["with"]["turns"] == 2
        assert row["without"]["requests"] == row["with"]["requests"] == 2
        assert row["without"]["with_block"] == 0
        assert row["with"]["with_block"] == 2
        assert row["with"]["delay_p50_ms"] > 0
        assert row["added_ms"]["low"] <= row["added_ms"]["high"]
    assert "with us" in printed


def test_the_cloud_is_measured(tmp_path: Path) -> None:
    """`benchmarks.cloud` reports what a push and a resume cost, and what a server bears."""
    path = tmp_path / "cloud.json"
    printed = benchmark("benchmarks.cloud", "--tiny", "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    small, large = report["costs"]
    for row in (small, large):
        # What is downloaded is what is new; a cold resume downloads it all, an unchanged one nothing.
        assert 0 < row["warm_kb"] < row["cold_kb"]
        assert row["unchanged_kb"] == 0
        assert row["push_ms"] > 0
    assert large["cold_kb"] > 2 * small["cold_kb"]
    assert large["push_kb"] < 1.2 * small["push_kb"]
    assert {row["clients"] for row in report["load"]} == {1, 8}
    assert all(row[kind]["per_s"] > 0 for row in report["load"] for kind in ("push", "load"))
    assert report["memory"]["requests"] >= 200
    assert report["refresh"]["n"] > 0
    assert "pushes/s" in printed


def test_peers_are_measured_or_left_out_with_the_reason(tmp_path: Path) -> None:
    """`benchmarks.peers` measures who is installed, in processes of their own, and names who is not."""
    path = tmp_path / "peers.json"
    asked = ("ours", "model", "chroma")
    only = [arg for name in asked for arg in ("--only", name)]
    printed = benchmark("benchmarks.peers", "--tiny", *only, "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    [size] = report["sizes"]
    pairs = {(row["contender"], row["encoder"]) for row in size["rows"]}
    out = {(row["contender"], row["encoder"]) for row in report["left_out"]}
    assert {("ours", "own int8"), ("model", "int8")} <= pairs
    assert not pairs & out
    assert {name for name, _ in pairs | out} == set(asked)
    assert all(row["reason"] and row["reason"] in printed for row in report["left_out"])
    for row in size["rows"]:
        assert row["add"]["p50"] > 0
        assert row["query"]["p50"] > 0
        assert row["start_s"] > 0
    ours = size["rows"][0]
    assert ours["prefetched"]["n"] == ours["query"]["n"]
    assert ours["query"]["times_ours"] == 1
    # A turn outlives its process.
    assert report["kept_through_kill"]["ours"] is True


@pytest.mark.slow
def test_load_and_scale_are_measured(tmp_path: Path) -> None:
    """`benchmarks.load` reports sizes, calls beside each other, a long call and a turn's parts."""
    path = tmp_path / "load.json"
    printed = benchmark("benchmarks.load", "--tiny", "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    [size] = report["scale"]
    assert size["passages"] == 200
    assert size["synthetic"] == 50
    for kind in ("query", "context", "heard", "add", "query_after_add"):
        assert size[kind]["n"] > 0
        assert size[kind]["p50"] > 0
        assert size[kind]["model"]["p50"] > 0
    [level] = report["load"]["levels"]
    assert level["delay"]["n"] > 0
    assert level["heard"]["n"] > level["delay"]["n"]
    assert level["loop_lag"]["n"] > 0
    assert level["cores_used"] > 0
    assert set(level["outcomes"]) <= {"ok", "skipped", "late"}
    assert [row["turns"] for row in report["long"]["marks"]] == [20, 40]
    assert report["long"]["resumed_turns"] == 40
    assert report["long"]["journal_mb"] > 0
    for row in report["turn"]["whole"].values():
        assert row["context"]["n"] > 0
        assert row["heard"]["n"] > 0
    assert "keyword half" in report["turn"]["parts"]
    assert "calls beside each other" in printed


@pytest.mark.slow
def test_nothing_that_was_promised_is_lost_over_a_bad_line(tmp_path: Path) -> None:
    """Processes push, merge, load and restart over faults to a server that is killed: all is kept.

    What is compared in the end is the store itself with each process's model of what it was promised.
    """
    path = tmp_path / "faults.json"
    benchmark(
        "benchmarks.cloud_faults",
        *("--operations", "240", "--workers", "6", "--kill-every-s", "5", "--json", str(path)),
    )
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["wrong"] == []
    assert report["operations"] == 240
    counts = report["counts"]
    assert counts["push completed"] > 20
    assert counts["left in the outbox"] == 0
    # The line was bad, the server died, and pushes met: or nothing was tried.
    assert report["server_killed"] > 0
    assert counts["merged"] > 0
    assert all(report["line"][fault] > 0 for fault in ("drop", "lose", "truncate", "fail"))
    assert report["documents"] > 0
