"""Rows are found where they are: `Vectors` against numpy, `Graph` against the exact scan."""

from __future__ import annotations

import itertools
import os
import struct
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moss_voice.errors import CorruptDataError, InvalidArgumentError
from moss_voice.vectors import EF, EXACT_ROWS, F32, I64, Graph, Vectors

DIM = 32
TOLERANCE = 1e-5  # float32 sums of a few hundred products in another order


def unit(rows: np.ndarray) -> F32:
    norms = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.asarray(rows / norms, dtype=np.float32)


def random_rows(n: int, dim: int = DIM, *, seed: int = 0) -> F32:
    return unit(np.random.default_rng(seed).standard_normal((n, dim)))


def texts_like(n: int, dim: int = 384, *, seed: int = 0) -> F32:
    """Synthetic stand-in for text vectors, which it is not: topics, few directions, noise, repeats.

    A common offset (text vectors share one), 400 topics of unequal size, 16 directions within them,
    a little noise in all dimensions, and every twentieth row said before. The shares were chosen so
    that graphs find a little less than among real texts (docs/decisions/002-exact-then-hnsw.md).
    """
    rng = np.random.default_rng(seed)
    topics = rng.standard_normal((400, dim))
    topic = np.minimum(rng.geometric(0.01, size=n), 400) - 1
    within = rng.standard_normal((16, dim))
    rows = 0.3 * rng.standard_normal(dim) + 0.5 * topics[topic]
    rows += 0.25 * rng.standard_normal((n, 16)) @ within
    rows += 0.15 * rng.standard_normal((n, dim))
    again = rng.integers(1, n, size=n // 20)
    rows[again] = rows[again // 2]
    return unit(rows)


def exact_top(scores: F32, k: int) -> I64:
    return np.argsort(-scores, kind="stable")[:k]


def of(rows: F32) -> Vectors:
    vectors = Vectors(rows.shape[1])
    vectors.append(rows)
    return vectors


# Vectors


@settings(max_examples=60, deadline=None)
@given(
    dim=st.sampled_from([1, 3, 32, 384, 700]),
    base=st.lists(st.integers(0, 40), max_size=3),
    appended=st.lists(st.integers(0, 70), max_size=6),
    data=st.data(),
)
def test_every_reading_agrees_with_one_numpy_matrix(
    dim: int, base: list[int], appended: list[int], data: st.DataObject
) -> None:
    """However rows came in, scan, scan_many, dot and take read the matrix of all of them."""
    matrix = random_rows(sum(base) + sum(appended), dim)
    ends = np.cumsum([0, *base, *appended])
    parts = [matrix[low:high] for low, high in itertools.pairwise(ends.tolist())]
    vectors = Vectors(dim, base=parts[: len(base)])
    for part in parts[len(base) :]:
        vectors.append(part)
    assert vectors.n_rows == len(matrix)

    n_rows = data.draw(st.integers(0, len(matrix)))
    first_row = data.draw(st.integers(0, n_rows))
    queries = random_rows(3, dim, seed=1)
    scores = vectors.scan(queries[0], n_rows=n_rows, first_row=first_row)
    np.testing.assert_allclose(scores, matrix[first_row:n_rows] @ queries[0], atol=TOLERANCE)
    assert scores.dtype == np.float32
    many = vectors.scan_many(queries, n_rows=n_rows, first_row=first_row)
    np.testing.assert_array_equal(many[0], scores)
    np.testing.assert_allclose(many, queries @ matrix[first_row:n_rows].T, atol=TOLERANCE)

    if len(matrix):
        rows = np.array(
            data.draw(st.lists(st.integers(0, len(matrix) - 1), max_size=40)), dtype=np.int64
        )
        np.testing.assert_array_equal(vectors.take(rows), matrix[rows])
        np.testing.assert_allclose(
            vectors.dot(queries[0], rows), matrix[rows] @ queries[0], atol=TOLERANCE
        )


@pytest.mark.parametrize("dim", [5, 384, 768, 1536])
def test_a_vector_has_one_score_wherever_it_lies(dim: int) -> None:
    """Equal rows tie to the last bit, in any place of any block, scanned or picked."""
    row, query = random_rows(2, dim)
    vectors = Vectors(dim, base=[np.tile(row, (n, 1)) for n in (1, 7, 16, 61)])
    for n in (1, 2, 5, 40, 100):
        vectors.append(np.tile(row, (n, 1)))
    scores = vectors.scan(query, n_rows=vectors.n_rows)
    assert len(np.unique(scores)) == 1
    some = np.array([0, 3, 90, 91, 200], dtype=np.int64)
    np.testing.assert_array_equal(vectors.dot(query, some), scores[some])
    np.testing.assert_array_equal(vectors.scan(query, n_rows=211, first_row=9), scores[9:211])


def test_dot_in_many_pieces_equals_the_scan() -> None:
    """A selection larger than one gathered piece is scored whole and in its order."""
    vectors, query = of(random_rows(10_000)), random_rows(1, seed=1)[0]
    rows = np.random.default_rng(2).permutation(10_000)
    np.testing.assert_array_equal(
        vectors.dot(query, rows), vectors.scan(query, n_rows=10_000)[rows]
    )


def test_base_blocks_are_used_in_place(tmp_path: Path) -> None:
    """A mapped, read-only file serves as it is; appending leaves it alone."""
    rows = random_rows(40)
    file = tmp_path / "rows"
    file.write_bytes(rows.tobytes())
    mapped = np.memmap(file, dtype=np.float32, mode="r", shape=rows.shape)
    vectors = Vectors(DIM, base=[mapped])
    assert vectors.nbytes == rows.nbytes
    vectors.append(rows)
    np.testing.assert_array_equal(vectors.take(np.arange(80)), np.concatenate([rows, rows]))
    assert file.read_bytes() == rows.tobytes()


def test_a_short_call_costs_little_memory() -> None:
    """A hundred turns added one by one hold at most an eighth more than their vectors."""
    vectors = Vectors(384)
    assert vectors.nbytes == 0
    for row in random_rows(100, 384):
        vectors.append(row[None])
    assert 100 * 384 * 4 <= vectors.nbytes <= 100 * 384 * 4 * 9 / 8


def test_room_stays_in_proportion_and_blocks_stay_few() -> None:
    """Growing one row at a time wastes at most a quarter, and makes blocks by the logarithm."""
    vectors = Vectors(1)
    one = np.ones((1, 1), dtype=np.float32)
    for n in range(1, 3001):
        vectors.append(one)
        assert vectors.nbytes <= 4 * (1.25 * n + 32)
    assert repr(vectors) == "<Vectors 3000x1 in 21 blocks>"


def test_readers_never_see_a_writers_rows() -> None:
    """While a writer appends, every answer equals that of numpy for the reader's own generation."""
    matrix, queries = random_rows(6000, 64), random_rows(4, 64, seed=1)
    expected = queries @ matrix.T
    vectors = Vectors(64, base=[matrix[:10]])
    published = [10]
    done = threading.Event()
    faults: list[str] = []
    readings = [0] * 3

    def read(reader: int) -> None:
        rng = np.random.default_rng(reader)
        while True:
            last = done.is_set()
            n_rows = published[0]
            at = int(rng.integers(4))
            scores = vectors.scan(queries[at], n_rows=n_rows)
            rows = rng.integers(0, n_rows, size=20)
            picked = vectors.take(rows)
            if not np.allclose(scores, expected[at, :n_rows], atol=TOLERANCE):
                faults.append(f"scan of {n_rows} rows")
            if not np.array_equal(picked, matrix[rows]):
                faults.append(f"take below {n_rows} rows")
            readings[reader] += 1
            if last:
                return

    readers = [threading.Thread(target=read, args=(i,)) for i in range(len(readings))]
    for thread in readers:
        thread.start()
    sizes = np.random.default_rng(9).integers(1, 9, size=6000)
    while published[0] < len(matrix):
        n = published[0]
        vectors.append(matrix[n : n + int(sizes[n])])
        published[0] = vectors.n_rows
    done.set()
    for thread in readers:
        thread.join()
    assert faults == []
    assert all(readings)


def test_a_scan_stays_on_its_thread() -> None:
    """No BLAS thread works while rows are scanned, whatever the size: it would spin and stall.

    In a process of its own, where no other test has woken them. Linux tells the time each thread of
    a process ran; elsewhere that of the process, less that of this thread.
    """
    script = """
import time
import numpy as np
from moss_voice.vectors import Vectors
rows = np.random.default_rng(0).standard_normal((20_000, 384), dtype=np.float32)
rows /= np.linalg.norm(rows, axis=1, keepdims=True)
vectors = Vectors(384, base=[rows])
process, thread = time.process_time(), time.thread_time()
for _ in range(60):
    vectors.scan(rows[0], n_rows=20_000)
    vectors.scan_many(rows[:2], n_rows=5_000)
    vectors.dot(rows[0], np.arange(9_000))
thread = time.thread_time() - thread
assert time.process_time() - process - thread < 0.3 * thread
"""
    root = Path(__file__).parents[1]
    subprocess.run([sys.executable, "-c", script], cwd=root, check=True, env=os.environ.copy())


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.ones((2, 3), np.float32), r"rows: expected \(n, 2\) float32, got \(2, 3\) float32"),
        (np.ones(2, np.float32), r"rows: expected \(n, 2\) float32, got \(2,\) float32"),
        (np.ones((1, 2)), r"rows: expected \(n, 2\) float32, got \(1, 2\) float64"),
        (np.array([[1, 0], [1, 1]], np.float32), r"rows\[1\]: expected a finite vector of norm 1"),
        (np.array([[0, 0]], np.float32), r"rows\[0\]: .* squared norm of 0 \(1 such rows\)"),
        (np.array([[np.nan, 0]], np.float32), r"rows\[0\]: expected a finite vector"),
        (np.array([[np.inf, 0]], np.float32), r"rows\[0\]: expected a finite vector"),
    ],
)
def test_rows_that_do_not_fit_are_refused(rows: F32, message: str) -> None:
    """A wrong shape, dtype or norm is named, and nothing of the batch is kept."""
    vectors = Vectors(2)
    with pytest.raises(InvalidArgumentError, match=message):
        vectors.append(rows)
    assert vectors.n_rows == 0


def test_arguments_that_make_no_sense_are_refused() -> None:
    """Every reader checks what it is asked, and says what it would take."""
    vectors = of(random_rows(5))
    query = random_rows(1, seed=1)[0]
    with pytest.raises(InvalidArgumentError, match="dim: expected at least 1"):
        Vectors(0)
    with pytest.raises(InvalidArgumentError, match=r"base\[1\]: expected \(n, 32\) float32"):
        Vectors(DIM, base=[random_rows(2), random_rows(2, 31)])
    with pytest.raises(InvalidArgumentError, match=r"base\[0\]: expected a C-contiguous"):
        Vectors(DIM, base=[random_rows(8)[::2]])
    with pytest.raises(InvalidArgumentError, match=r"query: expected \(32,\) float32"):
        vectors.scan(query.astype(np.float64), n_rows=5)
    with pytest.raises(InvalidArgumentError, match=r"query: expected \(32,\) float32"):
        vectors.dot(query[:-1], np.arange(3))
    with pytest.raises(InvalidArgumentError, match="n_rows <= 5, got first_row 0, n_rows 6"):
        vectors.scan(query, n_rows=6)
    with pytest.raises(InvalidArgumentError, match="got first_row 4, n_rows 3"):
        vectors.scan_many(query[None], n_rows=3, first_row=4)
    for rows in ([5], [-1]):
        with pytest.raises(InvalidArgumentError, match="rows: expected 0 to 4"):
            vectors.take(np.array(rows))
    with pytest.raises(InvalidArgumentError, match=r"rows: expected \(r,\) int64"):
        vectors.take(np.arange(3, dtype=np.int32))
    with pytest.raises(InvalidArgumentError, match="n_rows: expected 1 to 5, got 6"):
        Graph.build(vectors, 6)
    graph = Graph.build(vectors, 5)
    assert graph is not None
    with pytest.raises(InvalidArgumentError, match="k: expected at least 1, got 0"):
        graph.search(query, 0)
    with pytest.raises(InvalidArgumentError, match=r"query: expected \(32,\) float32"):
        graph.search(query[1:], 1)


# Graph


def build(vectors: Vectors, *, seed: int = 100, threads: int = 2) -> Graph:
    graph = Graph.build(vectors, vectors.n_rows, seed=seed, threads=threads)
    assert graph is not None
    return graph


def recall(
    graph: Graph, vectors: Vectors, queries: F32, *, k: int = 10, ef: int = EF
) -> list[float]:
    """Share of the k that a search finds, per query; any of several equal rows will do."""
    shares = []
    for query in queries:
        exact = np.sort(vectors.scan(query, n_rows=graph.n_rows))[::-1][:k]
        _, scores = graph.search(query, k, ef=ef)
        shares.append(float(np.mean(scores >= exact[-1])) * len(scores) / k)
    return shares


@pytest.fixture(scope="module")
def small() -> tuple[Vectors, Graph]:
    vectors = of(texts_like(3000))
    return vectors, build(vectors, threads=1)


@pytest.mark.slow
def test_recall_at_fifty_thousand_rows() -> None:
    """The defaults find .99 of the ten nearest among 50,000 synthetic rows."""
    rows = texts_like(50_400)
    vectors = of(rows[:50_000])
    assert np.mean(recall(build(vectors), vectors, rows[50_000:])) >= 0.99


def test_recall_where_the_graph_takes_over() -> None:
    """At the size from which graphs are used they find nearly all; no query is failed altogether."""
    rows = texts_like(EXACT_ROWS + 200)
    vectors = of(rows[:EXACT_ROWS])
    shares = recall(build(vectors), vectors, rows[EXACT_ROWS:])
    assert np.mean(shares) >= 0.99
    assert min(shares) >= 0.5


def test_what_is_said_again_and_again_hides_nothing() -> None:
    """Repeated rows are found, all of them and in order, and so is what lies around them."""
    rows = texts_like(2000)
    often = np.random.default_rng(1).permutation(2000)[:800]
    rows[often] = rows[often[0] % 50]
    vectors = of(rows)
    graph = build(vectors)
    assert min(recall(graph, vectors, rows[::50])) >= 0.9
    same = np.flatnonzero((rows == rows[often[0]]).all(axis=1))
    found, scores = graph.search(rows[often[0]], 300)
    np.testing.assert_array_equal(found, same[:300])
    assert len(np.unique(scores)) == 1
    everything, _ = graph.search(rows[often[0]], 5000)
    np.testing.assert_array_equal(np.sort(everything), np.arange(2000))


def test_scores_are_those_of_the_scan(small: tuple[Vectors, Graph]) -> None:
    """A found row has the very score that a scan gives it; best first, equal ones by row."""
    vectors, graph = small
    for query in texts_like(50, seed=5):
        rows, scores = graph.search(query, 20)
        assert rows.dtype == np.int64
        assert scores.dtype == np.float32
        exact = vectors.scan(query, n_rows=3000)
        np.testing.assert_array_equal(scores, exact[rows])
        np.testing.assert_array_equal(np.lexsort((rows, -scores)), np.arange(20))


def test_all_rows_may_be_asked_for() -> None:
    """With k at or beyond the number of rows the graph is the exact ranking."""
    vectors = of(random_rows(60))
    graph = build(vectors)
    query = random_rows(1, seed=1)[0]
    scores = vectors.scan(query, n_rows=60)
    for k in (60, 1000):
        rows, _ = graph.search(query, k)
        np.testing.assert_array_equal(rows, exact_top(scores, 60))
    assert len(graph.search(query, 1, ef=1)[0]) == 1


def test_a_graph_of_one_row() -> None:
    """The smallest graph answers."""
    rows, scores = build(of(random_rows(1))).search(random_rows(1)[0], 5)
    assert rows.tolist() == [0]
    assert scores[0] == pytest.approx(1.0)


def test_rows_appended_later_are_left_out() -> None:
    """A graph stays what it was when its vectors grow."""
    rows = random_rows(300)
    vectors = of(rows[:200])
    graph = build(vectors)
    before = graph.search(rows[250], 10)
    vectors.append(rows[200:])
    after = graph.search(rows[250], 10)
    assert graph.n_rows == 200
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_one_thread_and_one_seed_make_one_graph(
    small: tuple[Vectors, Graph], tmp_path: Path
) -> None:
    """The same build gives the same bytes; another seed does not."""
    vectors, graph = small
    for name, built in (
        ("a", graph),
        ("b", build(vectors, threads=1)),
        ("c", build(vectors, threads=1, seed=7)),
    ):
        built.write(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a").read_bytes() != (tmp_path / "c").read_bytes()


@pytest.mark.parametrize("turns", [0, 1, 5])
def test_a_build_stops_when_told(turns: int) -> None:
    """`should_stop` is asked before each piece of work, and obeyed."""
    answers = iter([False] * turns + [True])
    assert Graph.build(of(random_rows(4000)), 4000, should_stop=lambda: next(answers)) is None
    assert next(answers, "asked for the last") == "asked for the last"


def test_searches_with_different_ef_do_not_meet(small: tuple[Vectors, Graph]) -> None:
    """Concurrent searches, each with its own ef and k, give what they give alone."""
    _, graph = small
    queries = texts_like(40, seed=8)
    asks = [(5, 5), (10, 400), (50, 20)]
    alone = {
        (i, k, ef): graph.search(q, k, ef=ef)[0] for i, q in enumerate(queries) for k, ef in asks
    }
    faults: list[tuple[int, int, int]] = []

    def ask(k: int, ef: int) -> None:
        faults.extend(
            (i, k, ef)
            for i, query in enumerate(queries)
            if not np.array_equal(graph.search(query, k, ef=ef)[0], alone[i, k, ef])
        )

    threads = [threading.Thread(target=ask, args=of_ask) for of_ask in asks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


# Graph files


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> tuple[Vectors, Graph, Path]:
    rows = random_rows(500)
    rows[400:420] = rows[3]
    vectors = of(rows)
    graph = build(vectors, threads=1)
    path = tmp_path_factory.mktemp("graph") / "graph-é"
    graph.write(path)
    return vectors, graph, path


def test_a_graph_read_back_answers_as_before(stored: tuple[Vectors, Graph, Path]) -> None:
    """Written and read, it finds the same rows with the same scores, repeats among them."""
    vectors, graph, path = stored
    again = Graph.read(path, vectors, n_rows=500)
    assert (again.n_rows, repr(again)) == (500, "<Graph over 500x32>")
    assert again.nbytes == graph.nbytes == path.stat().st_size
    for query in random_rows(30, seed=4):
        for old, new in zip(graph.search(query, 30), again.search(query, 30), strict=True):
            np.testing.assert_array_equal(old, new)
    twins, _ = again.search(vectors.take(np.array([3]))[0], 21)
    assert twins.tolist() == [3, *range(400, 420)]


def test_a_truncated_graph_is_refused(stored: tuple[Vectors, Graph, Path], tmp_path: Path) -> None:
    """Cut anywhere, or with bytes too many, a file raises our error and nothing worse."""
    vectors, _, path = stored
    whole = path.read_bytes()
    cut = tmp_path / "cut"
    for size in {*range(130), *range(130, len(whole), 997), *range(len(whole) - 40, len(whole))}:
        cut.write_bytes(whole[:size])
        with pytest.raises(CorruptDataError, match="graph file"):
            Graph.read(cut, vectors, n_rows=500)
    cut.write_bytes(whole + b"\0")
    with pytest.raises(CorruptDataError, match="graph file"):
        Graph.read(cut, vectors, n_rows=500)


def test_a_foreign_graph_is_refused(stored: tuple[Vectors, Graph, Path], tmp_path: Path) -> None:
    """Other bytes, other dimensions, other counts and other rows are all told apart."""
    vectors, _, path = stored
    other = tmp_path / "other"
    other.write_bytes(np.random.default_rng(0).bytes(200_000))
    with pytest.raises(CorruptDataError):
        Graph.read(other, vectors, n_rows=500)
    with pytest.raises(CorruptDataError, match="not a whole graph of 480 rows of 31 numbers"):
        Graph.read(
            path, of(np.concatenate([random_rows(480, 31)] + [random_rows(1, 31)] * 20)), n_rows=500
        )
    with pytest.raises(CorruptDataError, match="expected 399 rows, got 480"):
        Graph.read(path, vectors, n_rows=399)
    rows = random_rows(500, seed=77)
    rows[400:420] = rows[3]
    with pytest.raises(CorruptDataError, match="other vectors"):
        Graph.read(path, of(rows), n_rows=500)
    with pytest.raises(CorruptDataError, match="other vectors"):
        Graph.read(path, of(random_rows(480, seed=77)), n_rows=480)
    with pytest.raises(FileNotFoundError):
        Graph.read(tmp_path / "none", vectors, n_rows=500)


@pytest.mark.parametrize("field", range(12))
@pytest.mark.parametrize("value", [0, 1, 5, 1 << 31, (1 << 62) + 3])
def test_a_lying_header_is_refused(
    stored: tuple[Vectors, Graph, Path], tmp_path: Path, field: int, value: int
) -> None:
    """A header that differs in any number that hnswlib allocates or walks by never reaches it."""
    vectors, _, path = stored
    header = struct.Struct("=6Q i I 3Q d Q")
    raw = path.read_bytes()
    numbers = list(header.unpack_from(raw))
    allocates = field not in {1, 6, 7, 11}  # room, top level, entry row, level factor
    numbers[field] = value % 2**31 if field in {6, 7} else value
    if not allocates or numbers == list(header.unpack_from(raw)):
        return
    lie = tmp_path / "lie"
    lie.write_bytes(header.pack(*numbers) + raw[header.size :])
    with pytest.raises(CorruptDataError):
        Graph.read(lie, vectors, n_rows=500)


def test_a_graph_that_cannot_be_written_says_so(
    stored: tuple[Vectors, Graph, Path], tmp_path: Path
) -> None:
    """Where a file cannot be made hnswlib is silent; we are not."""
    _, graph, _ = stored
    with pytest.raises(FileNotFoundError):
        graph.write(tmp_path / "nowhere" / "graph")
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="not written whole"):
            graph.write(Path("/dev/full"))
