"""The benchmarks run: once, tiny, for what they report and not for how fast it was."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.names import made_up_names
from benchmarks.quality import (
    MISSED,
    Way,
    auc,
    folders_of,
    interval,
    metrics,
    rank_of,
    read_faq_set,
    report_of,
    rrf,
)
from moss_voice.ranking import PARTS

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
    assert "keyword scores" in report["turn"]["parts"]
    assert "calls beside each other" in printed


@pytest.mark.slow
def test_nothing_that_was_promised_is_lost_over_a_bad_line(tmp_path: Path) -> None:
    """Processes push, merge, load and restart over faults to a server that is killed: all is kept.

    What is compared in the end is the store itself with each process's model of what it was promised.
    """
    path = tmp_path / "faults.json"
    benchmark(
        "benchmarks.cloud_faults",
        *("--operations", "150", "--workers", "6", "--kill-every-s", "4", "--json", str(path)),
    )
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["wrong"] == []
    assert report["operations"] == 150
    counts = report["counts"]
    assert counts["push completed"] > 20
    assert counts["left in the outbox"] == 0
    # The line was bad, the server died, and pushes met: or nothing was tried.
    assert report["server_killed"] > 0
    assert counts["merged"] > 0
    assert all(report["line"][fault] > 0 for fault in ("drop", "lose", "truncate", "fail"))
    assert report["documents"] > 0


# --- quality ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "gold", "rank"),
    [
        (["a", "b", "c"], {"c", "b"}, 2),
        (["a", "b"], {"a"}, 1),
        (["a", "b"], {"x"}, MISSED),
        (["a", "b"], set(), MISSED),
        ([], {"a"}, MISSED),
    ],
)
def test_a_rank_is_that_of_the_best_right_answer(ids: list[str], gold: set[str], rank: int) -> None:
    """Counted from 1; what was not found is far behind every cut."""
    assert rank_of(ids, gold) == rank


def test_metrics_are_told_per_query() -> None:
    """A hit up to the cut counts 1, a reciprocal rank up to 5 its share, what was missed nothing."""
    found = metrics(np.array([1, 3, 5, 6, MISSED]), cuts=(1, 5), mrr=True)
    assert {name: values.tolist() for name, values in found.items()} == {
        "hit@1": [1.0, 0.0, 0.0, 0.0, 0.0],
        "hit@5": [1.0, 1.0, 1.0, 0.0, 0.0],
        "MRR@5": [1.0, 1 / 3, 1 / 5, 0.0, 0.0],
    }
    assert metrics(np.array([11]), cuts=(10,), mrr=False)["hit@10"].tolist() == [0.0]


def test_reciprocal_ranks_are_fused() -> None:
    """b: 0.8/62 + 0.2/61 = .0162 comes before a: 0.8/61 = .0131, and before c: 0.2/62 = .0032."""
    assert rrf(["a", "b"], ["b", "c"]) == ["b", "a", "c"]
    # By words alone: b 1/61, c 1/62, a nothing.
    assert rrf(["a", "b"], ["b", "c"], alpha=0.0) == ["b", "c", "a"]
    # A small constant lets the first place of a list count more: a 0.8/1, b 0.8/2 + 0.2/1.
    assert rrf(["a", "b"], ["b", "c"], k=0) == ["a", "b", "c"]
    assert rrf([], []) == []


@pytest.mark.parametrize(
    ("needs", "wanted", "area"),
    [
        # of four pairs three are in order and one is even
        ([0.9, 0.4, 0.4, 0.1], [True, False, True, False], 0.875),
        ([1.0, 2.0], [False, True], 1.0),
        ([1.0, 2.0], [True, False], 0.0),
        ([1.0, 1.0, 1.0], [True, False, False], 0.5),
        # nothing to tell apart
        ([1.0, 2.0], [True, True], None),
        ([1.0, 2.0], [False, False], None),
    ],
)
def test_the_gate_is_measured_by_pairs(
    needs: list[float], wanted: list[bool], area: float | None
) -> None:
    """The share of pairs of which the turn that needs knowledge is told to; half where they are even."""
    assert auc(needs, wanted) == area


def test_an_interval_holds_what_resampling_gives() -> None:
    """Of a fair coin's 100 throws the mean is known to about a tenth; what is always the same, exactly."""
    assert interval(np.full(30, 0.25)) == (0.25, 0.25)
    coin = np.array([0.0, 1.0] * 50)
    low, high = interval(coin)
    assert (low, high) == pytest.approx((0.402, 0.598), abs=0.015)
    assert interval(coin) == (low, high)
    wide = interval(coin[:16])
    assert wide[0] < low
    assert wide[1] > high


def test_a_way_is_compared_with_the_first_query_by_query() -> None:
    """Only turns that need an answer have ranks; each difference has its mean and its interval."""
    wanted = [True, True, False, True, True]
    first = Way("first", [1, 2, MISSED, 7, 1], [1.5, 1.2, 0.4, 0.9, 1.1])
    other = Way("other", [1, 1, MISSED, 7, MISSED], [])
    rows = report_of([first, other], wanted, cuts=(1, 5), mrr=True)
    assert rows[0] == {
        "way": "first",
        "queries": 4,
        "hit@1": 0.5,
        "hit@5": 0.75,
        "MRR@5": 0.625,
        "gate AUC": 1.0,
        "needed and asked": 0.75,
        "not needed and asked": 0.0,
    }
    assert rows[1]["hit@1"] == 0.5
    assert rows[1]["hit@5"] == 0.5
    mean, low, high = rows[1]["hit@5 - default"]
    assert (mean, high) == (-0.25, 0.0)
    assert -1.0 < low < -0.25
    assert rows[1]["MRR@5 - default"][0] == -0.125
    assert "gate AUC" not in rows[1]


SMALL_DOCS: list[dict[str, Any]] = [
    {"id": "d1", "entity": "Zephyr Lodge", "domain": "hotel", "title": "Is there parking?"},
    {"id": "d2", "entity": "Kohinoor", "domain": "hotel", "title": "Is there parking?"},
    {"id": "d3", "entity": None, "title": "How do I cancel?"},
]
SMALL_BODIES = ("In the garage.", "On the street.", "Call the desk.")
SMALL_QUERIES: list[dict[str, Any]] = [
    {
        "id": "q1",
        "history": [
            {"speaker": "user", "text": "I am at the Kohinoor"},
            {"speaker": "agent", "text": "How can I help?"},
        ],
        "text": "Can I park there?",
        "target": True,
        "gold": ["d2"],
    },
    {"id": "q2", "text": "thanks a lot for your patience my dear", "target": False},
]


def small_set(folder: Path) -> Path:
    """Write a set of three passages and two queries in the format of the evaluation data."""
    docs = [doc | {"body": body} for doc, body in zip(SMALL_DOCS, SMALL_BODIES, strict=True)]
    for name, rows in {"docs.jsonl": docs, "queries.dev.jsonl": SMALL_QUERIES}.items():
        lines = "".join(f"{json.dumps(row)}\n" for row in rows)
        (folder / name).write_text(lines, encoding="utf-8")
    return folder


def test_a_set_is_read_as_somebody_would_index_it(tmp_path: Path) -> None:
    """The name stands in the text and in the metadata; a turn that needs nothing has no right answer."""
    data = read_faq_set(small_set(tmp_path))
    assert [doc.text for doc in data.docs] == [
        "Zephyr Lodge: Is there parking? In the garage.",
        "Kohinoor: Is there parking? On the street.",
        "How do I cancel? Call the desk.",
    ]
    assert [doc.metadata for doc in data.docs] == [
        {"entity": "Zephyr Lodge", "domain": "hotel"},
        {"entity": "Kohinoor", "domain": "hotel"},
        None,
    ]
    assert (data.name, data.focus) == (tmp_path.name, "entity")
    asked, thanks = data.asked
    assert asked.said == [("caller", "I am at the Kohinoor"), ("agent", "How can I help?")]
    assert asked.gold == {"d2"}
    assert not thanks.gold
    assert not thanks.said


def test_a_label_is_never_read(tmp_path: Path) -> None:
    """Where queries are right by label, the passage's text holds neither the label nor its title."""
    doc = {"id": "d1", "label": "lost_card", "title": "lost card", "body": "It fell in the sea."}
    query = {"id": "q1", "text": "where is it", "label": "lost_card"}
    (tmp_path / "docs.jsonl").write_text(json.dumps(doc) + "\n", encoding="utf-8")
    (tmp_path / "queries.dev.jsonl").write_text(json.dumps(query) + "\n", encoding="utf-8")
    data = read_faq_set(tmp_path)
    assert (data.docs[0].text, data.docs[0].metadata) == ("It fell in the sea.", None)
    assert data.asked[0].gold == {"d1"}


def test_one_folder_or_many_can_be_measured(tmp_path: Path) -> None:
    """A folder of queries is a set; else those in it are, all or some by name."""
    for name in ("b", "a", "no"):
        (tmp_path / name).mkdir()
    for name in ("b", "a"):
        small_set(tmp_path / name)
    assert [folder.name for folder in folders_of(tmp_path, None)] == ["a", "b"]
    assert [folder.name for folder in folders_of(tmp_path, ["b", "x"])] == ["b"]
    assert folders_of(tmp_path / "a", None) == [tmp_path / "a"]


def test_quality_is_measured_on_a_folder_of_one_s_own(tmp_path: Path) -> None:
    """`benchmarks.quality --data FOLDER` reports each way, and with `--ablate` each part left out."""
    path = tmp_path / "quality.json"
    printed = benchmark(
        *("benchmarks.quality", "--ablate", "--data", str(small_set(tmp_path)), "--json", str(path))
    )
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["ablated"] is True
    (rows,) = report["sets"].values()
    ways = [row["way"] for row in rows]
    assert ways[:2] == ["moss_voice", "with focus=['entity'] given by hand"]
    assert ways[-4:] == [
        "without all of these",
        "last turn, dense",
        "last turn, BM25",
        "last turn, RRF 0.8",
    ]
    assert {way.removeprefix("without ") for way in ways[2:-4]} < set(PARTS)
    assert {row["queries"] for row in rows} == {1}
    # What was named two turns ago decides between two passages of the same words.
    assert rows[1]["hit@1"] == 1.0
    assert rows[0]["gate AUC"] == 1.0
    assert "1 queries" in printed


def test_quality_is_measured_on_the_evaluation_data(data_dir: Path, tmp_path: Path) -> None:
    """Passages and meetings, a few queries of each, with the metrics of their sets."""
    path = tmp_path / "quality.json"
    args = ("--data", str(data_dir), "--sets", "banking77", "qmsum", "--most", "4")
    printed = benchmark("benchmarks.quality", *args, "--json", str(path))
    report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    assert report["sets"].keys() == {"banking77", "qmsum"}
    for name, cuts in (
        ("banking77", ("hit@1", "hit@5", "MRR@5")),
        ("qmsum", ("hit@1", "hit@5", "hit@10")),
    ):
        rows = report["sets"][name]
        assert [row["way"] for row in rows] == [
            "moss_voice",
            "last turn, dense",
            "last turn, BM25",
            "last turn, RRF 0.8",
        ]
        for row in rows:
            assert row["queries"] == 4
            assert all(0.0 <= row[cut] <= 1.0 for cut in cuts)
        for row in rows[1:]:
            assert all(len(row[f"{cut} - default"]) == 3 for cut in cuts)
        assert name in printed
    assert "gate AUC" in report["sets"]["banking77"][0]


def test_finding_names_is_measured(tmp_path: Path) -> None:
    """So many distinct names are made up, the same each time, and found in real turns."""
    path = tmp_path / "names.json"
    printed = benchmark("benchmarks.names", "--names", "500", "--rounds", "1", "--json", str(path))
    report = json.loads(path.read_text(encoding="utf-8"))
    assert report["names"] == 500
    assert report["turns"] > 0
    assert 0.0 < report["find_ms"]["p50"] <= report["find_ms"]["p95"]
    assert printed.startswith("500 names, ")
    assert made_up_names(50) == made_up_names(500)[:50]
    assert len(set(made_up_names(500))) == 500


def test_what_recording_costs_is_measured(tmp_path: Path) -> None:
    """The same turns with and without a recording, which is written meanwhile; the ratio is of its medians."""
    path = tmp_path / "recording.json"
    options = ("--passages", "50", "--calls", "1", "--pause-s", "0", "--json", str(path))
    printed = benchmark("benchmarks.recording", *options)
    report = json.loads(path.read_text())
    assert report["kb_per_turn"] > 0.1
    for what in ("context_ms", "heard_ms"):
        plain, recorded = report[what]["plain"], report[what]["recorded"]
        assert plain["n"] == recorded["n"] > 0
        assert report[what]["x"] == pytest.approx(recorded["p50"] / plain["p50"], abs=0.01)
    assert f"{report['turns']} turns in 1 calls" in printed
