"""Every number that is told is documented, every one that is documented is told, and the dashboard asks for no other.

Real calls in both hosts, a real server and the example run in processes of their own; what they emit is held
against docs/observability.md and observability/grafana.json.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client.parser import text_string_to_metric_families

from tests.server_process import Server, serve
from tests.server_samples import DIM, MODEL, Door, commit, made

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "observability.md").read_text(encoding="utf-8")
DASHBOARD: dict[str, Any] = json.loads((ROOT / "observability" / "grafana.json").read_bytes())
EXAMPLE = ROOT / "examples" / "opentelemetry_livekit.py"
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [(panel["title"], target) for panel in PANELS for target in panel["targets"]]
# Set by whoever scrapes or receives.
FOREIGN_LABELS = {"job", "instance"}
# Said in the calls.
WORD = "heliotrope"
# Pipecat's own warnings, as it is imported.
HOSTS_OWN = [
    option
    for message in ("'audioop' is deprecated", "`AudioContextTTSService` is deprecated")
    for option in ("-W", f"ignore:{message}:DeprecationWarning")
]


# --- what is emitted -------------------------------------------------------------------------------


@dataclass
class Emitted:
    """A metric: what it is, and the values of its labels."""

    kind: str
    unit: str = ""
    labels: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    prometheus: str = ""


def start(script: Path, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """Start a script with this tree's packages, warnings as errors."""
    places = [ROOT, ROOT / "plugins" / "livekit", ROOT / "plugins" / "pipecat"]
    path = os.pathsep.join([*map(str, places), os.environ.get("PYTHONPATH", "")])
    quiet = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    return subprocess.Popen(
        [sys.executable, "-W", "error", *HOSTS_OWN, str(script), *arguments],
        cwd=Path(arguments[0]) if arguments else ROOT,
        env={**quiet, "PYTHONPATH": path, **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def output(process: subprocess.Popen[str]) -> str:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err[-3000:]
    return out


class Receiver(ThreadingHTTPServer):
    """Takes OTLP over HTTP and keeps it."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Taking)
        self.received: list[tuple[str, bytes]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def of(self, path: str) -> list[bytes]:
        return [body for where, body in self.received if where == path]


class _Taking(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        assert isinstance(self.server, Receiver)
        self.server.received.append((self.path, body))
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    thread = threading.Thread(target=receiver.serve_forever)
    thread.start()
    yield receiver
    receiver.shutdown()
    thread.join()
    receiver.server_close()


@pytest.fixture(scope="module")
def running(
    receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Start both programs at once: most of their time is their imports."""
    processes = {
        "calls": start(
            ROOT / "tests" / "observability_run.py", str(tmp_path_factory.mktemp("calls")), WORD
        ),
        "example": start(EXAMPLE, OTEL_EXPORTER_OTLP_ENDPOINT=receiver.url),
    }
    yield processes
    for process in processes.values():
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server_text(running: object, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a server tells after a push and whatever it refuses."""
    del running  # only so that they start first
    with serve(tmp_path_factory.mktemp("store")) as server:
        project, key = server.project()
        door = Door(server.url, project, key)
        first = door.push("call", "a", "b")
        assert door.put_commit(commit("call", made("c").ref)).status_code == 409
        assert door.http.get(door.path("call", f"/segments/{first.segments[0].sha256}")).content
        unsound = made("d")
        path = door.path("call", f"/segments/{unsound.ref.sha256}")
        assert door.http.put(path, content=unsound.data[:-1]).status_code == 400
        twice = commit("call", made("e").ref, model_id="another", on=first)
        assert door.put_segment("call", made("e")).status_code == 201
        assert door.put_commit(twice).status_code == 400
        documents = {
            "documents": [{"id": "x", "text": "hello", "embedding": [1.0] + [0.0] * (DIM - 1)}],
            "model_id": MODEL,
        }
        assert door.http.post(door.path("faq", "/documents"), json=documents).status_code == 201
        assert door.http.delete(door.path("faq")).status_code == 204
        assert httpx.get(server.url + door.path(), headers=Server.bearer("no")).status_code == 401
        with door.http.stream("GET", door.path("call", "/events")) as events:
            next(events.iter_lines())
            text = httpx.get(f"{server.url}/metrics").text
        door.close()
    return text


@pytest.fixture(scope="module")
def told(running: dict[str, subprocess.Popen[str]]) -> dict[str, Any]:
    """What `observability_run.py` prints."""
    found: dict[str, Any] = json.loads(output(running["calls"]))
    return found


def metrics_of(data: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return our instruments' data by their names."""
    return {
        metric["name"]: metric
        for resource in data["resource_metrics"]
        for scope in resource["scope_metrics"]
        if scope["scope"]["name"] == "moss_voice"
        for metric in scope["metrics"]
    }


def value_of(data: Mapping[str, Any], name: str, **labels: object) -> int:
    """Return the sum of a metric's points, or of their counts, that have these labels."""
    points = metrics_of(data)[name]["data"]["data_points"]
    fitting = [p for p in points if labels.items() <= p["attributes"].items()]
    return int(sum(p["value"] if "value" in p else p["count"] for p in fitting))


def prometheus_name(name: str, unit: str, kind: str) -> str:
    """Return the name of a metric in Prometheus, by the rules that OpenTelemetry publishes."""
    spelled = {"ms": "milliseconds", "By": "bytes"}
    parts = [name.replace(".", "_")]
    if not unit.startswith("{"):
        parts.append(spelled[unit])
    if kind == "counter":
        parts.append("total")
    return "_".join(parts)


@pytest.fixture(scope="module")
def agents(told: dict[str, Any]) -> dict[str, Emitted]:
    """The metrics of the calls, by their names in OpenTelemetry."""
    found: dict[str, Emitted] = {}
    for data in told["metrics"]:
        for name, metric in metrics_of(data).items():
            points = metric["data"]["data_points"]
            if "explicit_bounds" in points[0]:
                kind = "histogram"
            else:
                kind = "counter" if metric["data"]["is_monotonic"] else "gauge"
            emitted = found.setdefault(name, Emitted(kind, metric["unit"]))
            emitted.prometheus = prometheus_name(name, metric["unit"], kind)
            for label, value in itertools.chain(*(p["attributes"].items() for p in points)):
                emitted.labels[label].add(json.dumps(value).strip('"'))
    return found


@pytest.fixture(scope="module")
def served(server_text: str) -> dict[str, Emitted]:
    """The metrics of the server, by their names in Prometheus."""
    found: dict[str, Emitted] = {}
    for family in text_string_to_metric_families(server_text):
        if family.name.endswith("_created"):
            continue
        name = f"{family.name}_total" if family.type == "counter" else family.name
        emitted = found.setdefault(name, Emitted(family.type, prometheus=name))
        for sample in family.samples:
            for label, value in sample.labels.items():
                if label != "le":
                    emitted.labels[label].add(value)
    return found


# --- the calls -------------------------------------------------------------------------------------


def test_what_went_wrong_is_counted_once(told: dict[str, Any]) -> None:
    """By hand: one context late, one failed, one push late, one failed, and what became of the rest."""
    _, after = told["metrics"]
    assert value_of(after, "moss_voice.recalls", outcome="late") == 1
    assert value_of(after, "moss_voice.recalls", outcome="failed") == 1
    # A filler, and what was asked once the memory was ended.
    assert value_of(after, "moss_voice.recalls", outcome="skipped") == 2
    # The context, and the turns that the failing model could not index: each at least once.
    assert value_of(after, "moss_voice.faults") > 3
    pushes = {
        outcome: value_of(after, "moss_voice.pushes", framework="livekit", outcome=outcome)
        for outcome in ("pushed", "merged", "nothing", "failed", "late", "discarded")
    }
    assert pushes == {
        "pushed": 2,
        "merged": 0,
        "nothing": 1,
        "failed": 1,
        "late": 1,
        "discarded": 1,
    }
    # The two calls without a journal are degraded; that of a missing index does not begin.
    opened = {
        outcome: value_of(after, "moss_voice.calls.opened", framework="livekit", outcome=outcome)
        for outcome in ("ok", "degraded", "failed")
    }
    assert opened == {"ok": 4, "degraded": 2, "failed": 1}
    assert value_of(after, "moss_voice.recoveries", outcome="pushed") == 1
    assert value_of(after, "moss_voice.recovered_turns") == 5
    # What is said once the memory was ended, and the answer to it.
    assert value_of(after, "moss_voice.turns", outcome="failed") == 2


def test_calls_are_gauged_while_they_are_open(told: dict[str, Any]) -> None:
    """An open call without a journal shows in both gauges, and in none once it has ended."""
    during, after = told["metrics"]
    for name in ("moss_voice.calls.live", "moss_voice.calls.not_durable"):
        assert value_of(during, name, framework="livekit") == 1
        assert value_of(during, name, framework="pipecat") == 0
        assert value_of(after, name) == 0


def test_both_hosts_count_turns_recalls_and_tools(told: dict[str, Any]) -> None:
    """Each host tells of both speakers, of a context an interim prepared, and of its tools."""
    _, after = told["metrics"]
    for host in ("livekit", "pipecat"):
        for speaker in ("caller", "agent"):
            turns = value_of(
                after, "moss_voice.turns", framework=host, speaker=speaker, outcome="kept"
            )
            assert turns >= 1
        assert value_of(after, "moss_voice.recalls", framework=host, prefetched=True) >= 1
        lookups = value_of(
            after, "moss_voice.lookups", framework=host, tool="search_knowledge", found=True
        )
        assert lookups == 1
    assert value_of(after, "moss_voice.lookups", tool="recall_call") == 1
    every = value_of(after, "moss_voice.recalls") - value_of(
        after, "moss_voice.recalls", outcome="skipped"
    )
    for name in ("duration", "hits", "tokens"):
        assert value_of(after, f"moss_voice.recall.{name}") == every
    assert value_of(after, "moss_voice.turn.duration") == value_of(
        after, "moss_voice.turns", outcome="kept"
    )
    assert value_of(after, "moss_voice.push.size") == value_of(
        after, "moss_voice.pushes", outcome="pushed"
    )


def test_buckets_part_at_the_deadline(told: dict[str, Any]) -> None:
    """The share beyond 50 ms can be read off exactly, and the milliseconds below it are told apart."""
    points = metrics_of(told["metrics"][-1])["moss_voice.recall.duration"]["data"]["data_points"]
    for point in points:
        bounds = point["explicit_bounds"]
        assert 50 in bounds
        assert len([bound for bound in bounds if bound < 10]) >= 5
        if point["attributes"]["outcome"] == "late":
            below = sum(point["bucket_counts"][: bounds.index(50) + 1])
            assert below == 0


def test_no_word_of_a_call_is_in_its_metrics(told: dict[str, Any]) -> None:
    """Neither what was said, nor a call's name, nor what a failing model complains of."""
    text = json.dumps(told)
    assert WORD not in text
    for foreign in ("broken", "piped", "faq", "refund", "gate code"):
        assert foreign not in json.dumps([metrics_of(data) for data in told["metrics"]])


def test_opentelemetrys_own_exporter_names_them_so(
    told: dict[str, Any], agents: dict[str, Emitted]
) -> None:
    """The names and labels that Prometheus sees are those that this file works out by rule."""
    pytest.importorskip("opentelemetry.exporter.prometheus")
    seen = {
        family.name: {label for sample in family.samples for label in sample.labels}
        for family in text_string_to_metric_families(told["prometheus"])
        if family.name != "target_info"
    }
    by_rule = {
        emitted.prometheus.removesuffix("_total"): {
            *emitted.labels,
            *(["le"] if emitted.kind == "histogram" else []),
        }
        for emitted in agents.values()
    }
    assert {name: labels for name, labels in seen.items() if name.startswith("moss_")} == by_rule


# --- the page --------------------------------------------------------------------------------------


def rows(heading: str) -> list[list[str]]:
    """Return the cells of the table under a heading of the page."""
    section = PAGE.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    assert len(lines) > 2, f"no table under {heading}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def quoted(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def documented_labels(cell: str) -> dict[str, set[str]]:
    """Read "`outcome`: `ok`, `late`; `by`": labels, with their values where those are listed."""
    labels: dict[str, set[str]] = {}
    for part in filter(None, cell.split(";")):
        name, _, values = part.partition(":")
        for label in quoted(name):
            labels[label] = set(quoted(values))
    return labels


def check_labels(documented: dict[str, set[str]], emitted: Emitted, name: str) -> None:
    labels = {label: values for label, values in emitted.labels.items() if label != "framework"}
    assert documented.keys() == labels.keys(), name
    for label, values in documented.items():
        assert not values or labels[label] <= values, (name, label)


def test_the_page_lists_the_metrics_of_the_agents(agents: dict[str, Emitted]) -> None:
    """Each has its row with its name in Prometheus, kind, unit and labels, and no row is of another."""
    listed = {quoted(row[0])[0]: row for row in rows("Metrics of the agents")}
    assert listed.keys() == agents.keys()
    for name, (_, prometheus, kind, labels, meaning) in listed.items():
        emitted = agents[name]
        assert quoted(prometheus) == [emitted.prometheus]
        assert kind == f"{emitted.kind}, `{emitted.unit}`"
        check_labels(documented_labels(labels), emitted, name)
        assert "framework" in emitted.labels
        assert meaning


def test_the_page_lists_the_metrics_of_the_server(served: dict[str, Emitted]) -> None:
    """Each has its row with its kind and labels, and no row is of another."""
    listed = {name: row for row in rows("Metrics of the server") for name in quoted(row[0])}
    assert listed.keys() == served.keys()
    for name, (_, kind, labels, meaning) in listed.items():
        assert kind == served[name].kind
        check_labels(documented_labels(labels), served[name], name)
        assert meaning


def test_the_page_lists_what_a_span_tells(receiver: Receiver, example: str) -> None:
    """Every attribute of a recall's span is in the page."""
    del example
    listed = {name for row in rows("Spans") for name in quoted(row[0])}
    listed |= {f"moss_voice{name}" for name in listed if name.startswith(".parts")}
    for span in spans(receiver):
        if span.name == "moss_voice.recall":
            assert {attribute.key for attribute in span.attributes} <= listed


# --- the dashboard ---------------------------------------------------------------------------------

FUNCTIONS = {
    *("sum", "max", "topk", "rate", "increase", "histogram_quantile", "vector", "time"),
}
WORDS = {"by", "or"}


def as_prometheus_sees(query: str) -> str:
    """Return a query with Grafana's own words replaced."""
    return query.replace("$__rate_interval", "5m").replace("$__range", "3h")


@dataclass(frozen=True)
class Selector:
    """A metric in a query, with what its labels must be."""

    name: str
    matchers: tuple[tuple[str, str, str], ...]


def selectors(query: str) -> list[Selector]:
    """Return the metrics that a query asks for."""
    found = []
    for name, braces in re.findall(r"\b([a-z_]+)(?:\{([^}]*)\})?(?!\w)", bare(query)):
        if name in FUNCTIONS | WORDS or not (braces or "_" in name):
            continue
        matchers = re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', braces)
        found.append(Selector(name, tuple(matchers)))
    return found


def bare(query: str) -> str:
    """Return a query without its groupings and ranges."""
    query = re.sub(r"\bby \([^)]*\)", "", as_prometheus_sees(query))
    return re.sub(r"\[\w+\]", "", query)


def groupings(query: str) -> set[str]:
    return {
        label.strip()
        for labels in re.findall(r"\bby \(([^)]*)\)", query)
        for label in labels.split(",")
    }


@pytest.fixture(scope="module")
def series(agents: dict[str, Emitted], served: dict[str, Emitted]) -> dict[str, Emitted]:
    """What there is to ask Prometheus for, by name."""
    found: dict[str, Emitted] = {}
    for emitted in (*agents.values(), *served.values()):
        if emitted.kind == "histogram":
            for suffix in ("_sum", "_count", "_bucket"):
                found[emitted.prometheus + suffix] = emitted
        else:
            found[emitted.prometheus] = emitted
    return found


def test_every_query_is_about_what_is_emitted(series: dict[str, Emitted]) -> None:
    """Names, labels, values and groupings of all panels were seen in the real runs."""
    for title, target in QUERIES:
        query = target["expr"]
        asked = selectors(query)
        assert asked, title
        known: set[str] = set()
        for selector in asked:
            assert selector.name in series, (title, selector.name)
            labels = series[selector.name].labels
            known |= {*labels, *FOREIGN_LABELS}
            known |= {"le"} if selector.name.endswith("_bucket") else set()
            for label, operator, value in selector.matchers:
                assert label in {*labels, *FOREIGN_LABELS}, (title, label)
                # What only a broken server answers with is not provoked here.
                if label in FOREIGN_LABELS | {"status"}:
                    continue
                fits = [seen for seen in labels[label] if re.fullmatch(value, seen)]
                assert fits or operator.startswith("!"), (title, label, value)
        assert groupings(query) <= known, title


def test_legends_name_labels_that_their_queries_keep() -> None:
    """No line of a panel is called by a label that its query has summed away."""
    for title, target in QUERIES:
        named = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        kept = groupings(target["expr"])
        if "sum" not in target["expr"]:
            kept |= FOREIGN_LABELS
        assert named <= kept, title


def test_every_metric_is_on_the_dashboard(
    agents: dict[str, Emitted], served: dict[str, Emitted]
) -> None:
    """Who opens the dashboard misses none of them."""
    asked = {selector.name for _, target in QUERIES for selector in selectors(target["expr"])}
    shown = {re.sub("_(bucket|sum|count)$", "", name) for name in asked}
    assert {emitted.prometheus for emitted in agents.values()} <= shown
    assert {name for name in served if name.startswith("moss_voice")} <= shown


def test_queries_are_well_formed() -> None:
    """Brackets and quotes are balanced, and every function called is one that Prometheus has."""
    pairs = {")": "(", "]": "[", "}": "{"}
    for title, target in QUERIES:
        query = re.sub(r'"[^"]*"', "", as_prometheus_sees(target["expr"]))
        assert '"' not in query, title
        stack: list[str] = []
        for char in query:
            if char in pairs.values():
                stack.append(char)
            elif char in pairs:
                assert stack, title
                assert stack.pop() == pairs[char], title
        assert not stack, title
        called = set(re.findall(r"\b([a-z_]+)\s*\(", query)) - WORDS
        assert called <= FUNCTIONS, title


def test_a_parser_of_promql_takes_every_query() -> None:
    """Where the parser is installed: the grammar itself has nothing against them."""
    parser = pytest.importorskip("promql_parser")
    for _, target in QUERIES:
        parser.parse(as_prometheus_sees(target["expr"]))


def test_panels_stand_side_by_side() -> None:
    """Ids are unique; panels lie within 24 columns, none over another."""
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        assert 0 <= at["x"] < at["x"] + at["w"] <= 24, panel["title"]
        cells = set(
            itertools.product(range(at["x"], at["x"] + at["w"]), range(at["y"], at["y"] + at["h"]))
        )
        assert not cells & taken, panel["title"]
        taken |= cells


def test_panels_ask_the_chosen_source_and_tell_what_they_show() -> None:
    """No panel is tied to one installation, and each explains itself."""
    source = {"type": "prometheus", "uid": "${datasource}"}
    for panel in PANELS:
        assert panel["datasource"] == source
        assert all(target["datasource"] == source for target in panel["targets"])
        assert panel["description"].endswith(".")
        letters = [target["refId"] for target in panel["targets"]]
        assert len(set(letters)) == len(letters)
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD["panels"])))
    assert {name for name in used if not name.startswith("__")} <= variables.keys()
    for variable in variables.values():
        assert variable["type"] == "datasource" or variable["datasource"] == source
    assert DASHBOARD["id"] is None
    assert DASHBOARD["title"]


def test_variables_ask_for_what_is_emitted(series: dict[str, Emitted]) -> None:
    """The lists of jobs and instances come from metrics that there are."""
    asked = [
        variable["query"]["query"]
        for variable in DASHBOARD["templating"]["list"]
        if variable["type"] == "query"
    ]
    assert len(asked) == 4
    for query in asked:
        name, label = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert name in series
        assert label in FOREIGN_LABELS


# --- the example -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def example(running: dict[str, subprocess.Popen[str]]) -> str:
    """Return what the example printed, once it has ended."""
    return output(running["example"])


def spans(receiver: Receiver) -> list[Any]:
    found: list[Any] = []
    for body in receiver.of("/v1/traces"):
        request = ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                found += scope.spans
    return found


def test_the_example_sends_its_spans(receiver: Receiver, example: str) -> None:
    """Two recalls under the agent's turns, with outcomes, times and sources."""
    assert example == ""  # nothing is printed where there is an endpoint
    found = spans(receiver)
    by_id = {span.span_id: span for span in found}
    recalls = [span for span in found if span.name == "moss_voice.recall"]
    assert len(recalls) == 2
    for span in recalls:
        assert by_id[span.parent_span_id].name == "llm_node"
        told = {attribute.key: attribute.value for attribute in span.attributes}
        assert told["moss_voice.outcome"].string_value == "ok"
        assert told["moss_voice.took_ms"].double_value > 0
        assert told["moss_voice.hits"].int_value == len(
            told["moss_voice.sources"].array_value.values
        )
    sources = {
        value.string_value
        for span in recalls
        for attribute in span.attributes
        if attribute.key == "moss_voice.sources"
        for value in attribute.value.array_value.values
    }
    assert "support-faqs: refunds" in sources


def test_the_example_sends_its_metrics(
    receiver: Receiver, example: str, agents: dict[str, Emitted]
) -> None:
    """They arrive under the service's name, with our buckets, and are of those that are documented."""
    del example
    arrived: dict[str, Any] = {}
    for body in receiver.of("/v1/metrics"):
        for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
            told = {a.key: a.value.string_value for a in resource.resource.attributes}
            assert told["service.name"] == "support-agent"
            for scope in resource.scope_metrics:
                if scope.scope.name == "moss_voice":
                    arrived |= {metric.name: metric for metric in scope.metrics}
    assert arrived.keys() <= agents.keys()
    assert arrived.keys() >= {
        "moss_voice.recalls", "moss_voice.turns", "moss_voice.pushes", "moss_voice.calls.opened"
    }  # fmt: skip
    (recalls,) = [point for point in arrived["moss_voice.recalls"].sum.data_points if point.as_int]
    assert recalls.as_int == 2
    for point in arrived["moss_voice.recall.duration"].histogram.data_points:
        assert 50.0 in point.explicit_bounds


def test_no_word_of_the_examples_call_arrives(receiver: Receiver, example: str) -> None:
    """Neither in our spans nor in the host's, nor in a metric: in no byte that was sent."""
    del example
    sent = b"".join(body for _, body in receiver.received)
    assert b"moss_voice.recall" in sent
    for said in (
        b"charged twice", b"forty nine", b"how long", b"my card", b"working days", b"hotline",
        b"I see", b"support agent",
    ):  # fmt: skip
        assert said not in sent
    assert len(EXAMPLE.read_text(encoding="utf-8").splitlines()) < 100
